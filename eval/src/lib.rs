//! What KV-cache eviction loses: methods, tasks and measures, at equal bytes. `make eval` runs it on a published model,
//! `make eval-small` on one that was trained for this.
//!
//! | file | |
//! |---|---|
//! | `model.rs` | the model: prefill with full attention, decoding over compacted caches |
//! | `cache.rs` | one layer's compacted cache |
//! | `published/` | the same on a published model: what advice rests on |
//! | `colours.rs` | a method's colour in all pictures |
//! | `tasks.rs` | prompts and what is asked of them |
pub mod cache;
pub mod colours;
pub mod keep;
pub mod lkv;
pub mod measure;
pub mod methods;
pub mod model;
pub mod plot;
pub mod published;
pub mod report;
pub mod statistics;
pub mod tasks;
