//! The C ABI: every `lava_*` function checks its arguments, makes views, calls the stage and maps the result to a status.
//!
//! The doc comments of these functions are the text of `include/lava.h`, so they speak to a C programmer.

mod call;
#[cfg(feature = "cuda")]
mod cuda;
mod functions;
#[cfg(all(feature = "ffi-panic-handler", not(feature = "std"), not(test)))]
mod no_runtime;
mod types;

#[cfg(feature = "cuda")]
pub use cuda::*;
pub use functions::*;
pub use types::*;

pub(crate) use call::*;
