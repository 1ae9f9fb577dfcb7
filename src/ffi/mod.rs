//! The C ABI: every `lava_*` function checks its arguments, makes views, calls the stage and maps the result to a status.
//!
//! The doc comments of these functions are the text of the headers, so they speak to a C programmer.
//!
//! | file | |
//! |---|---|
//! | `types.rs` | the C structs and constants |
//! | `versioned.rs` | structs of any version, in and out |
//! | `checked.rs` | from C structs to the core's types |
//! | `call.rs` | slices, tensors, overlaps, the status |
//! | `library.rs` | version, names |
//! | `score.rs`, `budgets.rs`, `select.rs`, `compact.rs`, `cascade.rs`, `attend.rs` | the functions of `lava.h`, one file per family |
//! | `adjust.rs` | what is done to scores: in `lava_methods.h` |
//! | `keys.rs` | scores without queries, norms of values: in `lava_methods.h` |
//! | `methods.rs` | what else is in `lava_methods.h` |
//! | `ranks.rs` | those of `lava_ranks.h` |
//! | `cuda.rs`, `cuda/` | those of `lava_cuda.h` |
//!
//! Every function here is `unsafe` for one reason, stated once in the header: pointers must be NULL or lead to as much memory as the
//! function's comment says, readable or writable as it says, for the length of the call.
#![allow(clippy::missing_safety_doc, reason = "the comments are the header's, and its rule is the one above")]
#![allow(rustdoc::broken_intra_doc_links, reason = "brackets in these comments are C shapes and indices")]

mod adjust;
mod attend;
mod budgets;
mod call;
mod cascade;
mod checked;
mod compact;
#[cfg(feature = "cuda")]
mod cuda;
mod keys;
mod library;
mod methods;
#[cfg(all(feature = "ffi-panic-handler", not(feature = "std"), not(test)))]
mod no_runtime;
mod ranks;
mod score;
mod select;
mod types;
mod versioned;

pub use adjust::*;
pub use attend::*;
pub use budgets::*;
pub use cascade::*;
pub use compact::*;
#[cfg(feature = "cuda")]
pub use cuda::*;
pub use keys::*;
pub use library::*;
pub use methods::*;
pub use ranks::*;
pub use score::*;
pub use select::*;
pub use types::*;

#[cfg(feature = "cuda")]
pub(crate) use call::*;
#[cfg(feature = "cuda")]
pub(crate) use versioned::*;
