//! The C structs, with their sizes pinned.

// Brackets in these comments are C shapes and indices, not links.
#![allow(rustdoc::broken_intra_doc_links)]

use core::ffi::{c_char, c_void};
use core::mem::{offset_of, size_of};

use super::versioned::Versioned;

/// Result of every call that can fail: LAVA_OK, or one of the negative LAVA_ERR_ codes.
#[allow(non_camel_case_types)]
pub type lava_status = i32;

/// Element type of a tensor: LAVA_F32, LAVA_F16 or LAVA_BF16.
#[allow(non_camel_case_types)]
pub type lava_dtype = i32;

/// The call did what it says.
pub const LAVA_OK: lava_status = 0;
/// A pointer that must not be NULL is NULL.
pub const LAVA_ERR_NULL: lava_status = -1;
/// A struct_size is smaller than the first version of its struct, or what this library does not know of it is not zero.
pub const LAVA_ERR_STRUCT_SIZE: lava_status = -2;
/// An option is out of range, or an input contradicts the others.
pub const LAVA_ERR_ARGUMENT: lava_status = -3;
/// Sizes do not fit together.
pub const LAVA_ERR_SHAPE: lava_status = -4;
/// A stride is zero, negative, or lets two elements share memory.
pub const LAVA_ERR_STRIDE: lava_status = -5;
/// A pointer is not aligned to its element, or a workspace or state not to LAVA_WORKSPACE_ALIGN.
pub const LAVA_ERR_ALIGNMENT: lava_status = -6;
/// An output shares memory with another argument.
pub const LAVA_ERR_OVERLAP: lava_status = -7;
/// A buffer is smaller than its shape and strides need.
pub const LAVA_ERR_BUFFER_SIZE: lava_status = -8;
/// The workspace or state is smaller than its size function says.
pub const LAVA_ERR_WORKSPACE: lava_status = -9;
/// A size does not fit its type; a layer's rows over all heads must be below 2^32.
pub const LAVA_ERR_OVERFLOW: lava_status = -10;
/// An element type that is unknown or not accepted here.
pub const LAVA_ERR_DTYPE: lava_status = -11;
/// The budget is smaller than what is always kept: the window, or the protected entries.
pub const LAVA_ERR_BUDGET: lava_status = -12;
/// NaN or infinity in the input, or a score that overflows. lava_error names the layer and the head.
pub const LAVA_ERR_NONFINITE: lava_status = -13;
/// Row indices or positions that do not ascend or lie outside the cache, or prefix sums that decrease.
pub const LAVA_ERR_INDICES: lava_status = -14;
/// A cascade that is not initialised, already complete, or has no such layer yet.
pub const LAVA_ERR_STATE: lava_status = -15;
/// A bug in the library. Please report it.
pub const LAVA_ERR_INTERNAL: lava_status = -16;
/// Of lava_cuda.h: no libcuda, or one that is too old, finds no device or does not take the kernels.
pub const LAVA_ERR_DRIVER: lava_status = -17;
/// Of lava_cuda.h: no CUDA context is current on the calling thread, or another than lava_cuda_init saw.
pub const LAVA_ERR_CONTEXT: lava_status = -18;
/// Of lava_cuda.h: the driver refused a launch.
pub const LAVA_ERR_LAUNCH: lava_status = -19;
/// This build or this machine cannot do what was asked for.
pub const LAVA_ERR_UNSUPPORTED: lava_status = -20;

/// IEEE 754 binary32.
pub const LAVA_F32: lava_dtype = 0;
/// IEEE 754 binary16.
pub const LAVA_F16: lava_dtype = 1;
/// bfloat16.
pub const LAVA_BF16: lava_dtype = 2;

/// Pooling: the largest of the neighbourhood, clipped at both ends of what competes.
pub const LAVA_POOL_MAX: i32 = 0;
/// Pooling: the mean of the neighbourhood; positions outside of what competes count as zero.
pub const LAVA_POOL_AVG: i32 = 1;
/// Pooling: the largest of the entry itself and the pool_kernel - 1 before it, 1 to 127, even or odd: what is looked at, and what
/// comes after it, for a model goes on where it has looked. The recommended preset.
pub const LAVA_POOL_AFTER: i32 = 2;
/// Of the query heads of a KV head: the largest.
pub const LAVA_GROUP_MAX: i32 = 0;
/// Of the query heads of a KV head: the mean.
pub const LAVA_GROUP_MEAN: i32 = 1;
/// The value norm's maximum runs over the prefix, as in the authors' released code.
pub const LAVA_VALUES_PREFIX: i32 = 0;
/// The value norm's maximum runs over the window too, as in the paper's text.
pub const LAVA_VALUES_ALL: i32 = 1;
/// An entry's attention: the mean over the window's queries. LAVa.
pub const LAVA_ATTENTION_MEAN: i32 = 0;
/// The largest of the queries' (DefensiveKV, arXiv 2510.13334; KVzip, arXiv 2505.23416). The recommended preset.
pub const LAVA_ATTENTION_MAX: i32 = 5;
/// Attention is multiplied by the largest L1 norm among the head's values. LAVa.
pub const LAVA_VALUE_HEAD_MAX: i32 = 0;
/// By nothing. v is not looked at, and may be NULL.
pub const LAVA_VALUE_NONE: i32 = 1;
/// By the mean L2 norm of the head's values, over the rows that value_span says. The recommended preset.
pub const LAVA_VALUE_HEAD_MEAN_L2: i32 = 5;
/// A log-sum-exp is ln(sum(exp(logit))): FlashAttention, PyTorch.
pub const LAVA_LSE_NATURAL: i32 = 0;
/// A log-sum-exp is log2(sum(exp(logit))): FlashInfer.
pub const LAVA_LSE_BASE2: i32 = 1;
/// Layers share the total in proportion to the entropies of their scores. LAVa.
pub const LAVA_LAYERS_ENTROPY: i32 = 0;
/// In equal parts.
pub const LAVA_LAYERS_EQUAL: i32 = 1;
/// In proportion to weights that lava_cascade_push takes.
pub const LAVA_LAYERS_WEIGHTS: i32 = 2;
/// The heads of all layers compete for the total: one sort over the model. The recommended preset.
pub const LAVA_LAYERS_GLOBAL: i32 = 3;
/// No head is promised anything: the layer's largest scores win. LAVa.
pub const LAVA_FLOOR_NONE: i32 = 0;
/// Each head's top floor(alpha * n_entries / n_kv_heads) entries, or fewer where that does not fit, are kept first, the rest compete.
/// The recommended preset.
pub const LAVA_FLOOR_GUARANTEED: i32 = 1;
/// Head counts are h * (1 - alpha) + alpha * n_entries / n_kv_heads, exactly, h being those of free competition. O(n_kv_heads^2).
pub const LAVA_FLOOR_AFFINE: i32 = 2;
/// The best kernels that this machine can run.
pub const LAVA_BACKEND_BEST: i32 = 0;
/// Plain code, on every machine.
pub const LAVA_BACKEND_SCALAR: i32 = 1;
/// AVX2 with FMA and F16C.
pub const LAVA_BACKEND_AVX2: i32 = 2;
/// AVX-512F beside these.
pub const LAVA_BACKEND_AVX512: i32 = 3;
/// The same with products of pairs of bf16, where queries and keys are both bf16.
pub const LAVA_BACKEND_AVX512_BF16: i32 = 4;
/// NEON, on aarch64.
pub const LAVA_BACKEND_NEON: i32 = 5;

/// Alignment that workspaces and cascade states need, in bytes. Memory from malloc has it.
pub const LAVA_WORKSPACE_ALIGN: usize = 16;
const _: () = assert!(LAVA_WORKSPACE_ALIGN == crate::workspace::WORKSPACE_ALIGN);
/// Largest head_dim_k and head_dim_v.
pub const LAVA_MAX_HEAD_DIM: u32 = 576;
const _: () = assert!(LAVA_MAX_HEAD_DIM as usize == crate::params::MAX_HEAD_DIM);
/// Largest pool_kernel.
pub const LAVA_MAX_POOL_KERNEL: u32 = 127;
const _: () = assert!(LAVA_MAX_POOL_KERNEL as usize == crate::params::MAX_POOL_KERNEL);
/// Most layers that share a total.
pub const LAVA_MAX_LAYERS: u32 = 1024;
const _: () = assert!(LAVA_MAX_LAYERS as usize == crate::budget::MAX_LAYERS);
/// In lava_error: no layer or head is to blame.
pub const LAVA_NONE: u32 = u32::MAX;

/// One attention layer: its sizes, its rows, and what its queries see. lava_shape_init makes one of which nothing has been
/// evicted, with attention to all earlier tokens; the fields after window may be set then.
///
/// The prefix is the rows before the window; they have scores and compete. A layer with a sliding window has rows that no later
/// query can see: position + sliding_window <= n_tokens. These are dead: they score 0, count nowhere and are always evicted.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_shape {
    /// sizeof(lava_shape); lava_shape_init sets it.
    pub struct_size: u32,
    /// Index of the layer. Only used to name it in errors.
    pub layer: u32,
    /// N: tokens so far, window included. The next token's position.
    pub n_tokens: u32,
    /// Query heads, a multiple of n_kv_heads. Query head h reads KV head h / (n_q_heads / n_kv_heads).
    pub n_q_heads: u32,
    /// KV heads. n_kv_heads * n_tokens must be below 2^32. In an array of layers, 0 is a layer that takes no part.
    pub n_kv_heads: u32,
    /// Elements of a query and of a key, 1 to LAVA_MAX_HEAD_DIM.
    pub head_dim_k: u32,
    /// Elements of a value, 1 to LAVA_MAX_HEAD_DIM.
    pub head_dim_v: u32,
    /// w, at least 1: the last tokens, always kept, whose queries score the others. One of n_tokens or more leaves no prefix.
    pub window: u32,
    /// Each query sees this many keys, its own included. 0: all earlier ones.
    pub sliding_window: u32,
    /// 0.
    pub reserved: u32,
    /// NULL: each head has n_tokens rows, and row i is token i. Else n_kv_heads + 1 entries from 0, the prefix sum of the heads'
    /// rows: a cache that has been compressed before.
    pub cu_rows: *const u32,
    /// With cu_rows: the true position of each row, ascending in each head, whose last min(window, n_tokens) rows are the window's.
    pub positions: *const u32,
}

/// A caller's buffer, seen as [rows, heads, dim].
///
/// Element c of row r of head h is at
///     data + (row_start ? row_start[h] : 0) * stride_token + h * stride_head + r * stride_token + c * stride_dim,
/// strides in elements. Rows are tokens in a dense cache, kept tokens in a compressed one. So
///     token-major  [n_tokens, n_heads, dim]: stride_token = n_heads * dim, stride_head = dim, stride_dim = 1
///     head-major   [n_heads, n_tokens, dim]: stride_token = dim, stride_head = n_tokens * dim, stride_dim = 1
///     transposed   [n_heads, dim, n_tokens]: stride_token = 1, stride_head = dim * n_tokens, stride_dim = n_tokens
///     ragged       rows without gaps, head h from row row_start[h] on: stride_token = dim, stride_head = 0, stride_dim = 1
/// Strides are positive; one that is never used (over one element or none) may be anything. No two elements may share
/// memory. How many rows and heads there are, the call that takes the tensor says.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_tensor {
    /// sizeof(lava_tensor); lava_tensor_init sets it.
    pub struct_size: u32,
    /// LAVA_F32, LAVA_F16 or LAVA_BF16.
    pub dtype: lava_dtype,
    /// First element, aligned to the element's size. Tensors that a call only reads are never written.
    pub data: *mut c_void,
    /// Bytes from data on. Every element must lie within them; without row_start as if all heads had the longest's rows.
    pub size: usize,
    /// Elements from one row of a head to the next.
    pub stride_token: i64,
    /// Elements from one head to the next; 0 where row_start is given.
    pub stride_head: i64,
    /// Elements from one element of a row to the next.
    pub stride_dim: i64,
    /// NULL, or one first row per head, ascending, the heads' rows not overlapping (else LAVA_ERR_OVERLAP).
    pub row_start: *const u32,
}

/// Options of lava_score. NULL in its place, and lava_score_params_default, are the recommended preset; lava_score_params_lava is
/// LAVa as published; lava_methods.h has other papers'.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_score_params {
    /// sizeof(lava_score_params).
    pub struct_size: u32,
    /// One of LAVA_ATTENTION_: what becomes of the window's attention to an entry.
    pub attention: i32,
    /// One of LAVA_VALUE_: what that is multiplied by.
    pub value_weight: i32,
    /// LAVA_POOL_MAX, _AVG or _AFTER: how attention is pooled along the tokens.
    pub pool: i32,
    /// Width of the pooling, 1 (none) to LAVA_MAX_POOL_KERNEL; odd, but for LAVA_POOL_AFTER.
    pub pool_kernel: u32,
    /// LAVA_GROUP_MAX or LAVA_GROUP_MEAN: how the query heads of a KV head become one score.
    pub group_reduce: i32,
    /// LAVA_VALUES_PREFIX or LAVA_VALUES_ALL: the tokens whose values enter LAVA_VALUE_HEAD_MAX and _HEAD_MEAN_L2.
    pub value_span: i32,
    /// LAVA_LSE_NATURAL or LAVA_LSE_BASE2: of the log-sum-exp that lava_score takes.
    pub lse_base: i32,
    /// One of LAVA_BACKEND_: the kernels. One that this machine cannot run is LAVA_ERR_UNSUPPORTED.
    pub backend: i32,
    /// Factor on q.k. 0: 1 / sqrt(head_dim_k).
    pub scale: f32,
    /// Logits become softcap * tanh(logit / softcap). 0: no cap.
    pub softcap: f32,
    /// Of LAVA_ATTENTION_MEAN_VARIANCE, not negative.
    pub gamma: f32,
    /// Of LAVA_ATTENTION_EXPONENTIAL, the newest query's weight, above 0 and at most 1. 0: 1.
    pub decay: f32,
    /// A factor on all scores of the layer: its weight where all layers compete. Not negative. 0: 1.
    pub weight: f32,
    /// This many times a head's mean score is added to all its scores. Not negative.
    pub smoothing: f32,
    /// 0.
    pub reserved: u32,
    /// NULL, or the model's learned attention sinks: one logit per query head, n_q_heads of them, neither scaled nor capped, that
    /// is part of each softmax's denominator. Not looked at where a log-sum-exp is given: that includes them.
    pub sink_logits: *const f32,
    /// NULL, or n_q_heads factors, finite and not negative, on the query heads' attention before the group becomes one score.
    pub query_head_weights: *const f32,
}

/// Options of selection. NULL in its place, and lava_select_params_default, are the recommended preset; lava_select_params_lava
/// is LAVa as published, lava_select_params_equal gives all heads equal budgets.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_select_params {
    /// sizeof(lava_select_params).
    pub struct_size: u32,
    /// LAVA_FLOOR_NONE, LAVA_FLOOR_GUARANTEED or LAVA_FLOOR_AFFINE.
    pub head_floor: i32,
    /// In [0, 1], taken in billionths: the floor's share. Not used by LAVA_FLOOR_NONE.
    pub alpha: f64,
    /// NULL, or one byte per token position, for the longest prefix (n_tokens - window): a token whose byte is not zero is kept in
    /// every head that still has it and can see it. Protected tokens count toward the entries to keep.
    pub protected_mask: *const u8,
    /// Tokens at positions below this are protected too.
    pub n_sink: u32,
    /// Each head's best so many entries, the protected ones among them, are kept before any compete. They count too.
    pub head_min: u32,
    /// NULL, or head budgets from outside: a weight per KV head, of all layers one after the other where a call takes layers;
    /// finite and not negative. Heads share the layer's entries in proportion, with the rules of lava_layer_entries, instead of
    /// competing; the floors do nothing then. Weights that sum to the entries are counts, taken exactly.
    pub head_weights: *const f64,
}

/// What lava_select did.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_selection {
    /// sizeof(lava_selection), set by the caller.
    pub struct_size: u32,
    /// 1 if nothing that a later query can see was evicted, else 0.
    pub everything_kept: u32,
    /// Kept rows over all heads, windows included: cu_kept[n_kv_heads].
    pub n_kept: u64,
    /// Kept prefix entries: as many as asked for, or all that later queries can see.
    pub n_entries: u64,
    /// Sum of the layer's scores. Where there are negative ones all are counted from the smallest.
    pub mass: f64,
    /// Share of mass that was evicted, in [0, 1]. For LAVa's score, up to a constant, the paper's bound on the output's change.
    pub evicted_share: f64,
}

/// Options of a cascade. NULL in its place, and lava_cascade_params_default, are the recommended preset: one sort over all layers.
/// lava_cascade_params_lava is LAVa as published: layers share by entropy.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cascade_params {
    /// sizeof(lava_cascade_params).
    pub struct_size: u32,
    /// One of LAVA_LAYERS_: how the layers share the total.
    pub layers: i32,
    /// Pushes from one eviction to the next: the caller compacts all layers so far after pushes evict_every, 2 * evict_every, ...
    /// and after the last one, and at no other time. 0 and 1: after each push; n_layers or more: only at the end. What is kept
    /// does not depend on it.
    pub evict_every: u32,
    /// 0.
    pub reserved: u32,
}

/// What a layer of a cascade holds after a push. The pointers lead into the state and are good until the next push.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cascade_layer {
    /// sizeof(lava_cascade_layer), set by the caller.
    pub struct_size: u32,
    /// 1 if nothing of this layer has been evicted since the caller last compacted it: no row moves.
    pub unchanged: u32,
    /// True token positions kept by each head, ascending, window included.
    pub kept_indices: *const u32,
    /// Exclusive prefix sum of the kept counts, n_kv_heads + 1 entries.
    pub cu_kept: *const u32,
    /// For lava_compact: which rows are kept of those that the caller's cache holds, as the last eviction left it (see evict_every
    /// of lava_cascade_params).
    pub rows: *const u32,
    /// Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
    pub cu_rows: *const u32,
    /// Prefix entries kept. Before the last push at most one more than its share, plus what a head floor may still ask for.
    pub n_entries: u64,
    /// Normalised entropy of the layer's scores.
    pub entropy: f64,
    /// Sum of the layer's scores.
    pub mass: f64,
    /// Share of mass evicted so far.
    pub evicted_share: f64,
}

/// Options of lava_attend. NULL in its place, and lava_attend_params_default, are causal attention without cap or positions.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_attend_params {
    /// sizeof(lava_attend_params).
    pub struct_size: u32,
    /// 1: each head's last rows are the new queries' own, so that query t sees all rows but the last n_queries - 1 - t.
    /// 0: every query sees every row.
    pub causal: u32,
    /// Factor on q.k. 0: 1 / sqrt(head_dim_k).
    pub scale: f32,
    /// Logits become softcap * tanh(logit / softcap). 0: no cap.
    pub softcap: f32,
    /// Position of each head's first row after its kept ones; later rows count on from there.
    pub n_base: u32,
    /// LAVA_LSE_NATURAL or LAVA_LSE_BASE2: of the log-sum-exp that lava_attend returns.
    pub lse_base: i32,
    /// One of LAVA_BACKEND_: the kernels. One that this machine cannot run is LAVA_ERR_UNSUPPORTED.
    pub backend: i32,
    /// 0.
    pub reserved: u32,
    /// NULL, or the positions of each head's first rows, ascending; needed where the shape has a sliding window. That they ascend
    /// is not checked: others give another mask, and nothing worse.
    pub kept_indices: *const u32,
    /// NULL, or their prefix sum, n_kv_heads + 1 entries.
    pub cu_kept: *const u32,
    /// NULL, or learned attention sinks, as in lava_score_params.
    pub sink_logits: *const f32,
}

/// Why a call was refused. Every call takes one, or NULL. Written on success too. Its overlap with other arguments is not checked.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_error {
    /// sizeof(lava_error), set by the caller.
    pub struct_size: u32,
    /// What the call returned.
    pub status: lava_status,
    /// The layer, or LAVA_NONE.
    pub layer: u32,
    /// The KV head, or LAVA_NONE.
    pub head: u32,
    /// Name of the argument or field at fault, static; "" on success.
    pub argument: *const c_char,
    /// The status in words, static.
    pub message: *const c_char,
}

macro_rules! layout {
    ($($type:ident: $size:literal, $first:literal { $($field:ident @ $offset:literal),* $(,)? })*) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size);
            $(const _: () = assert!(offset_of!($type, $field) == $offset);)*
            // SAFETY: repr(C), struct_size comes first, every bit pattern is a value (pointers are raw).
            unsafe impl Versioned for $type { const FIRST_SIZE: usize = $first; }
        )*
    };
}

pub(super) use layout;

// 64-bit pointers; the header asserts the same. The second number is the size of the struct's first version.
layout! {
    lava_shape: 56, 56 {
        struct_size @ 0, layer @ 4, n_tokens @ 8, n_q_heads @ 12, n_kv_heads @ 16, head_dim_k @ 20, head_dim_v @ 24, window @ 28,
        sliding_window @ 32, reserved @ 36, cu_rows @ 40, positions @ 48,
    }
    lava_tensor: 56, 56 {
        struct_size @ 0, dtype @ 4, data @ 8, size @ 16, stride_token @ 24, stride_head @ 32, stride_dim @ 40, row_start @ 48,
    }
    lava_score_params: 80, 80 {
        struct_size @ 0, attention @ 4, value_weight @ 8, pool @ 12, pool_kernel @ 16, group_reduce @ 20, value_span @ 24,
        lse_base @ 28, backend @ 32, scale @ 36, softcap @ 40, gamma @ 44, decay @ 48, weight @ 52, smoothing @ 56, reserved @ 60,
        sink_logits @ 64, query_head_weights @ 72,
    }
    lava_select_params: 40, 40 {
        struct_size @ 0, head_floor @ 4, alpha @ 8, protected_mask @ 16, n_sink @ 24, head_min @ 28, head_weights @ 32,
    }
    lava_selection: 40, 40 { struct_size @ 0, everything_kept @ 4, n_kept @ 8, n_entries @ 16, mass @ 24, evicted_share @ 32 }
    lava_cascade_params: 16, 16 { struct_size @ 0, layers @ 4, evict_every @ 8, reserved @ 12 }
    lava_cascade_layer: 72, 72 {
        struct_size @ 0, unchanged @ 4, kept_indices @ 8, cu_kept @ 16, rows @ 24, cu_rows @ 32, n_entries @ 40, entropy @ 48,
        mass @ 56, evicted_share @ 64,
    }
    lava_attend_params: 56, 56 {
        struct_size @ 0, causal @ 4, scale @ 8, softcap @ 12, n_base @ 16, lse_base @ 20, backend @ 24, reserved @ 28,
        kept_indices @ 32, cu_kept @ 40, sink_logits @ 48,
    }
    lava_error: 32, 32 { struct_size @ 0, status @ 4, layer @ 8, head @ 12, argument @ 16, message @ 24 }
}
