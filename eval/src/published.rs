//! The evaluation on a published model: SmolLM2-135M-Instruct over real English, as `eval/fetch.sh` brings them.
//!
//! | file | |
//! |---|---|
//! | `gguf.rs` | weights and tokenizer out of the GGUF file |
//! | `books.rs` | English text, one half of each book to choose settings on, the other to report |
//! | `tasks.rs` | text that goes on, and facts among text |
//! | `methods.rs` | the rows of the table |
//! | `ask.rs` | attention's maximum, over the window and over queries that are asked again after the prompt |
//! | `run.rs` | one text through all methods and budgets: a line of JSON |
//! | `table.rs` | lines → means with paired intervals |
pub mod ask;
pub mod books;
pub mod gguf;
pub mod methods;
pub mod run;
pub mod table;
pub mod tasks;
