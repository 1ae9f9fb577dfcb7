//! KV-cache compression for inference engines: LAVa (arXiv 2509.09754) over the caller's own buffers.
//!
//! After prefill, each entry of the cache gets a score: the attention that the last `window` prompt tokens pay it, times
//! the largest L1 norm among its head's values. Layers share a total by the entropy of their scores, heads of a layer
//! compete for its budget, and what loses is evicted. No training, no attention matrix, no allocation.
//!
//! | stage | file | in → out |
//! |---|---|---|
//! | look at a caller's buffer | [`view`] | pointer, element type, strides → rows of f32 |
//! | layers and options | [`params`] | what a layer is, what is asked for → checked numbers |
//! | window attention, pooling, value norm, group reduction | [`score`] | Q, K, V → scores |
//! | changes to scores: smoothing, clamps, two stages | [`adjust`] | scores → scores |
//! | entropy | [`entropy`] | scores → one number per layer |
//! | budgets | [`budget`] | weights of the layers, total → integers that sum exactly |
//! | selection | [`select`] | scores, entries to keep → `kept_indices`, `cu_kept`, `rows` |
//! | eviction | [`compact`] | cache, kept rows → smaller cache |
//! | the same while prefilling | [`cascade`] | each layer's scores as it arrives → all layers' kept rows |
//! | the same over tensor- and pipeline-parallel ranks | [`ranks`] | each rank's scores, sums of all ranks' counts → entries of layers and heads |
//! | which of the prompt's queries to ask again | [`novelty`] | pre-RoPE Q → rows of it |
//! | queries from before RoPE, turned to another position, to ask again | [`rope`] | pre-RoPE Q → Q |
//! | decoding | [`attend`] | new queries, compressed cache → attention output |
//!
//! A stage with more than one file keeps the others in a folder of its name (`score/`, `select/`, `cascade/`); its own file says what is
//! in which.
//!
//! LAVa is one choice of scorer × head budgets × layer budgets. The options of [`ScoreParams`], [`SelectParams`] and [`LayerShare`]
//! make other papers' methods. `Default` is the recommended preset; LAVa as published is `lava()`.
//!
//! Around them: [`backend`] (SIMD and other CPU kernels), [`workspace`] (the caller's scratch memory),
//! `ffi` (the C ABI: `include/lava.h`, `lava_methods.h`, `lava_ranks.h`, `lava_cuda.h`), and `reference` (the whole method in plain f64 loops, the oracle
//! of the tests).
//!
//! Features: `std` (default; panics are caught at the C boundary, `half` uses the CPU's conversions), `capi` (default;
//! the `lava_*` functions), `rayon` ([`score::score`] on rayon's threads, `parallel`), `ffi-panic-handler` (for C programs without a Rust runtime).
#![cfg_attr(not(feature = "std"), no_std)]
// The C boundary checks more than a borrow checker needs to: overlaps, memory carved by an earlier call.
#![cfg_attr(not(feature = "capi"), allow(dead_code))]
// Loops run over indices where the formulas do.
#![allow(clippy::needless_range_loop)]
#![deny(missing_docs, unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

#[forbid(unsafe_code)]
pub mod adjust;
#[forbid(unsafe_code)]
pub mod attend;
pub mod backend;
#[forbid(unsafe_code)]
pub mod budget;
#[forbid(unsafe_code)]
pub mod cascade;
#[forbid(unsafe_code)]
pub mod compact;
#[forbid(unsafe_code)]
pub mod entropy;
#[forbid(unsafe_code)]
pub mod error;
#[cfg(feature = "capi")]
pub mod ffi;
#[forbid(unsafe_code)]
pub mod novelty;
#[cfg(feature = "rayon")]
#[forbid(unsafe_code)]
pub mod parallel;
#[forbid(unsafe_code)]
pub mod params;
#[forbid(unsafe_code)]
pub mod ranks;
#[cfg(feature = "std")]
#[forbid(unsafe_code)]
pub mod reference;
#[forbid(unsafe_code)]
pub mod rope;
#[forbid(unsafe_code)]
pub mod score;
#[forbid(unsafe_code)]
pub mod select;
pub mod view;
pub mod workspace;

pub use backend::Backend;
pub use error::{Error, ErrorKind, Result};
pub use params::{
    Alike, Attention, GroupReduce, HeadFloor, LayerShare, Layers, LseBase, Pool, RaggedRows, ScoreParams,
    SelectParams, Shape, ValueSpan, ValueWeight,
};
pub use view::{Dtype, Rows, Strides, Tensor, TensorMut};
