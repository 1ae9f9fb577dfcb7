//! The C structs, with their sizes pinned.

// Brackets in these comments are C shapes and indices, not links.
#![allow(rustdoc::broken_intra_doc_links)]

use core::ffi::{c_char, c_void};
use core::mem::{offset_of, size_of};

use super::Versioned;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{
    Attention, GroupReduce, HeadFloor, LayerBudgets, Pool, ScoreParams, SelectParams, Shape, ValueSpan,
    ValueWeight,
};
use crate::view::Dtype;

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
/// A struct_size is smaller than the first version of its struct, or bytes behind what this library knows are not zero.
pub const LAVA_ERR_STRUCT_SIZE: lava_status = -2;
/// An option is out of range.
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
/// A size does not fit its type; n_kv_heads * n_tokens must be below 2^32.
pub const LAVA_ERR_OVERFLOW: lava_status = -10;
/// An element type that is unknown or not accepted here.
pub const LAVA_ERR_DTYPE: lava_status = -11;
/// The budget is smaller than the window, or than the protected entries.
pub const LAVA_ERR_BUDGET: lava_status = -12;
/// NaN or infinity in the input, or a score that overflows. lava_error names the layer and the head.
pub const LAVA_ERR_NONFINITE: lava_status = -13;
/// Kept indices that do not ascend or lie outside the cache, or prefix sums that decrease.
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
/// Of lava_cuda.h: this build has no kernels, or none for these options.
pub const LAVA_ERR_UNSUPPORTED: lava_status = -20;

/// IEEE 754 binary32.
pub const LAVA_F32: lava_dtype = 0;
/// IEEE 754 binary16.
pub const LAVA_F16: lava_dtype = 1;
/// bfloat16.
pub const LAVA_BF16: lava_dtype = 2;

/// Largest of the neighbourhood, clipped at both ends of the prefix.
pub const LAVA_POOL_MAX: i32 = 0;
/// Mean of the neighbourhood; positions outside the prefix count as zero.
pub const LAVA_POOL_AVG: i32 = 1;
/// The largest over the query heads of a group.
pub const LAVA_GROUP_MAX: i32 = 0;
/// The mean over the query heads of a group.
pub const LAVA_GROUP_MEAN: i32 = 1;
/// The value norm's maximum runs over the prefix, as in the authors' released code.
pub const LAVA_VALUES_PREFIX: i32 = 0;
/// The value norm's maximum runs over all tokens, as in the paper's text.
pub const LAVA_VALUES_ALL: i32 = 1;
/// An entry's attention: the mean over the window's queries. LAVa, SnapKV, Ada-KV, PyramidKV, VATP, CAOTE, TOVA.
pub const LAVA_ATTENTION_MEAN: i32 = 0;
/// The mean of the squares. KV-Compress (arXiv 2410.00161).
pub const LAVA_ATTENTION_SQUARED: i32 = 1;
/// The mean plus gamma times the variance over the window's queries (divided by window - 1). CAKE (arXiv 2503.12491).
pub const LAVA_ATTENTION_MEAN_VARIANCE: i32 = 2;
/// a[0] = A[0], a[j] = decay * A[j] + (1 - decay) * a[j - 1] over the window's queries. ReST-KV (arXiv 2605.08840); with a decay of 1
/// the last query alone, SAGE-KV (arXiv 2503.08879).
pub const LAVA_ATTENTION_EXPONENTIAL: i32 = 3;
/// None: position + 1, so that the newest win. q and k are not looked at. StreamingLLM (arXiv 2309.17453). f32 tells positions apart
/// up to 2^24.
pub const LAVA_ATTENTION_RECENCY: i32 = 4;
/// Attention is multiplied by the largest L1 norm among the head's values. LAVa.
pub const LAVA_VALUE_HEAD_MAX: i32 = 0;
/// By nothing. v is not looked at, and may be NULL.
pub const LAVA_VALUE_NONE: i32 = 1;
/// By the L1 norm of the entry's own value, behind pooling and reduction. VATP (arXiv 2406.12335).
pub const LAVA_VALUE_TOKEN: i32 = 2;
/// a becomes a / (1 - a) * |o - v|, o = sum of a * v over all tokens: what evicting the entry alone does to the output, for
/// each query head before pooling. With LAVA_ATTENTION_MEAN and _EXPONENTIAL only. CAOTE (arXiv 2504.14051), ReST-KV.
pub const LAVA_VALUE_OUTPUT: i32 = 3;
/// Layers share the total in proportion to the entropies of their scores. LAVa.
pub const LAVA_LAYERS_ENTROPY: i32 = 0;
/// In equal parts.
pub const LAVA_LAYERS_EQUAL: i32 = 1;
/// In proportion to weights that lava_cascade_push_weighted takes.
pub const LAVA_LAYERS_WEIGHTS: i32 = 2;
/// The heads of all layers compete for the total, as those of one layer do for its budget: one sort over the model.
pub const LAVA_LAYERS_GLOBAL: i32 = 3;
/// No head is promised anything: the layer's largest scores win.
pub const LAVA_FLOOR_NONE: i32 = 0;
/// Each head's top floor(alpha * budget / n_kv_heads) entries are kept first, the rest compete.
pub const LAVA_FLOOR_GUARANTEED: i32 = 1;
/// Head counts are h * (1 - alpha) + alpha * budget / n_kv_heads, rounded so that they sum exactly. Takes time that grows with the
/// square of n_kv_heads.
pub const LAVA_FLOOR_AFFINE: i32 = 2;

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

/// Sizes of one attention layer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_shape {
    /// sizeof(lava_shape); lava_shape_init sets it.
    pub struct_size: u32,
    /// Index of the layer. Only used to name it in errors.
    pub layer: u32,
    /// N: tokens in the cache, window included. For lava_attend: the number of new queries.
    pub n_tokens: u32,
    /// Query heads, a multiple of n_kv_heads. Query head h reads KV head h / (n_q_heads / n_kv_heads).
    pub n_q_heads: u32,
    /// KV heads. n_kv_heads * n_tokens must be below 2^32.
    pub n_kv_heads: u32,
    /// Elements of a query and of a key, 1 to LAVA_MAX_HEAD_DIM.
    pub head_dim_k: u32,
    /// Elements of a value, 1 to LAVA_MAX_HEAD_DIM.
    pub head_dim_v: u32,
    /// w: the last tokens of the prompt. Their queries score the others; they are always kept. At least 1, and
    /// n_q_heads * window below 2^32. The prefix is the n_tokens - window tokens before it, or nothing if the window is
    /// longer.
    pub window: u32,
}

/// A caller's buffer, seen as [rows, heads, dim].
///
/// Element c of row r of head h is at
///     data + (row_start ? row_start[h] : 0) * stride_token + h * stride_head + r * stride_token + c * stride_dim,
/// strides in elements. Rows are tokens in a dense cache, kept tokens in a compressed one. So
///     token-major  [n_tokens, n_heads, dim]: stride_token = n_heads * dim, stride_head = dim, stride_dim = 1
///     head-major   [n_heads, n_tokens, dim]: stride_token = dim, stride_head = n_tokens * dim, stride_dim = 1
///     transposed   [n_heads, dim, n_tokens]: stride_token = 1, stride_head = dim * n_tokens, stride_dim = n_tokens
///     ragged       rows of dim elements, head h from row row_start[h] on: stride_token = dim, stride_head = 0,
///                  stride_dim = 1
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
    /// Bytes that may be accessed from data on. Every element is checked to lie within; without row_start as if every head
    /// had as many rows as the longest.
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

/// Options of lava_score. lava_score_params_default gives the preset that measures best, lava_score_params_init LAVa's,
/// lava_score_params_snapkv and its neighbours those of other papers.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_score_params {
    /// sizeof(lava_score_params).
    pub struct_size: u32,
    /// LAVA_POOL_MAX or LAVA_POOL_AVG: how attention is smoothed along the tokens.
    pub pool: i32,
    /// Width of the pooling, odd, 1 (none) to LAVA_MAX_POOL_KERNEL. The paper's is 7.
    pub pool_kernel: u32,
    /// LAVA_GROUP_MAX or LAVA_GROUP_MEAN: how the query heads of a KV head become one score.
    pub group_reduce: i32,
    /// LAVA_VALUES_PREFIX or LAVA_VALUES_ALL: the tokens whose values enter the norm.
    pub value_span: i32,
    /// Sliding-window attention: each query sees this many keys, its own included. 0: all earlier ones.
    pub sliding_window: u32,
    /// Factor on q.k. 0: 1 / sqrt(head_dim_k).
    pub scale: f32,
    /// Logits become softcap * tanh(logit / softcap). 0: no cap.
    pub softcap: f32,
    /// One of LAVA_ATTENTION_: what becomes of the window's attention to an entry.
    pub attention: i32,
    /// One of LAVA_VALUE_: what that is multiplied by.
    pub value_weight: i32,
    /// Of LAVA_ATTENTION_MEAN_VARIANCE, not negative.
    pub gamma: f32,
    /// Of LAVA_ATTENTION_EXPONENTIAL, the newest query's weight, above 0 and at most 1. 0: 1.
    pub decay: f32,
    /// A factor on all scores of the layer, not negative. It decides nothing inside a layer; under LAVA_LAYERS_GLOBAL and in
    /// lava_global_budgets it is the layer's weight. 0: 1.
    pub weight: f32,
    /// So many times a head's mean score is added to all its scores: what nobody has looked at yet may still be looked at, more
    /// so in heads that are much looked at. Not negative.
    pub smoothing: f32,
}

/// Options of lava_select and of a cascade. lava_select_params_default gives the preset that measures best; the others are
/// lava_select_params_paper (all zero, as lava_select_params_init), _released and _equal.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_select_params {
    /// sizeof(lava_select_params).
    pub struct_size: u32,
    /// LAVA_FLOOR_NONE, LAVA_FLOOR_GUARANTEED or LAVA_FLOOR_AFFINE.
    pub head_floor: i32,
    /// In [0, 1], taken in billionths: the floor's share of the budget. Not used by LAVA_FLOOR_NONE.
    pub alpha: f64,
    /// NULL, or prefix_len bytes: a token whose byte is not zero is kept in every head. Protected tokens count toward
    /// the budget.
    pub protected_mask: *const u8,
    /// So many first tokens are kept in every head. They count toward the budget.
    pub n_sink: u32,
    /// Each head's best so many entries, the protected ones among them, are kept before any compete. They count toward the
    /// budget.
    pub head_min: u32,
    /// NULL, or head budgets from outside: n_kv_heads weights, for a cascade [n_layers, n_kv_heads], finite and not negative. Heads
    /// share the layer's budget in proportion, with the rules of lava_layer_budgets, instead of competing; the floors do nothing
    /// then. Counts that sum to the budget are taken exactly.
    pub head_weights: *const f64,
    /// One of LAVA_LAYERS_: how the layers of a cascade share its total. Not used by lava_select and lava_global_budgets.
    pub layer_budgets: i32,
    /// Pushes of a cascade from one eviction to the next: the caller compacts all layers so far after pushes evict_every,
    /// 2 * evict_every, ... and after the last one, and at no other time. 0 and 1: after each push; n_layers or more: only at the
    /// end. What is kept does not depend on it. Not used by lava_select and lava_global_budgets.
    pub evict_every: u32,
}

/// What lava_select did.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_selection {
    /// sizeof(lava_selection), set by the caller.
    pub struct_size: u32,
    /// 1 if nothing was evicted, else 0.
    pub everything_kept: u32,
    /// Kept rows over all heads, windows included: cu_kept[n_kv_heads].
    pub n_kept: u64,
    /// Kept prefix entries: the budget asked for, or all there are.
    pub budget: u64,
    /// Sum of the layer's scores.
    pub mass: f64,
    /// Share of mass that was evicted, in [0, 1]. Up to a constant the paper's bound on the change of the layer's
    /// attention output.
    pub evicted_share: f64,
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
    /// of lava_select_params). Of a layer pushed since then: token positions.
    pub rows: *const u32,
    /// Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
    pub cu_rows: *const u32,
    /// Prefix entries kept. After the last push exactly the layer's budget; before, at most one more than its share plus
    /// what a head floor may still ask for.
    pub budget: u64,
    /// Normalised entropy of the layer's scores.
    pub entropy: f64,
    /// Sum of the layer's scores.
    pub mass: f64,
    /// Share of mass evicted so far.
    pub evicted_share: f64,
}

/// Options of lava_attend. lava_attend_params_init gives causal attention without cap or sliding window.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_attend_params {
    /// sizeof(lava_attend_params).
    pub struct_size: u32,
    /// 1: each head's last rows are the new queries' own, so that query t sees all rows but the last n_tokens - 1 - t.
    /// 0: every query sees every row.
    pub causal: u32,
    /// Factor on q.k. 0: 1 / sqrt(head_dim_k).
    pub scale: f32,
    /// Logits become softcap * tanh(logit / softcap). 0: no cap.
    pub softcap: f32,
    /// Each query sees the last so many positions, its own included. 0: all. Needs kept_indices and cu_kept. With causal
    /// 1 a query's own position is that of its row, with 0 query t stands t behind the position after the last row.
    pub sliding_window: u32,
    /// Position of each head's first row behind its kept ones; later rows count on from there.
    pub n_base: u32,
    /// NULL, or the positions of each head's first rows, ascending. That they ascend is not checked: others give another mask, and
    /// nothing worse.
    pub kept_indices: *const u32,
    /// NULL, or their prefix sum, n_kv_heads + 1 entries.
    pub cu_kept: *const u32,
}

/// Why a call was refused. Every call takes one, or NULL. It is written on success too. That it shares no memory with the other
/// arguments is not checked.
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
    ($($type:ident: $size:literal, $first:literal { $($field:ident @ $offset:literal),* })*) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size);
            $(const _: () = assert!(offset_of!($type, $field) == $offset);)*
            // SAFETY: repr(C), struct_size comes first, every bit pattern is a value (pointers are raw).
            unsafe impl Versioned for $type { const FIRST_SIZE: usize = $first; }
        )*
    };
}

#[cfg(feature = "cuda")]
pub(super) use layout;

// 64-bit pointers; the header asserts the same. The second number is the size of the struct's first version.
layout! {
    lava_shape: 32, 32 { struct_size @ 0, layer @ 4, n_tokens @ 8, n_q_heads @ 12, n_kv_heads @ 16, head_dim_k @ 20, head_dim_v @ 24, window @ 28 }
    lava_tensor: 56, 56 { struct_size @ 0, dtype @ 4, data @ 8, size @ 16, stride_token @ 24, stride_head @ 32, stride_dim @ 40, row_start @ 48 }
    lava_score_params: 56, 32 { struct_size @ 0, pool @ 4, pool_kernel @ 8, group_reduce @ 12, value_span @ 16, sliding_window @ 20, scale @ 24, softcap @ 28, attention @ 32, value_weight @ 36, gamma @ 40, decay @ 44, weight @ 48, smoothing @ 52 }
    lava_select_params: 48, 32 { struct_size @ 0, head_floor @ 4, alpha @ 8, protected_mask @ 16, n_sink @ 24, head_min @ 28, head_weights @ 32, layer_budgets @ 40, evict_every @ 44 }
    lava_selection: 40, 40 { struct_size @ 0, everything_kept @ 4, n_kept @ 8, budget @ 16, mass @ 24, evicted_share @ 32 }
    lava_cascade_layer: 72, 72 { struct_size @ 0, unchanged @ 4, kept_indices @ 8, cu_kept @ 16, rows @ 24, cu_rows @ 32, budget @ 40, entropy @ 48, mass @ 56, evicted_share @ 64 }
    lava_attend_params: 40, 40 { struct_size @ 0, causal @ 4, scale @ 8, softcap @ 12, sliding_window @ 16, n_base @ 20, kept_indices @ 24, cu_kept @ 32 }
    lava_error: 32, 32 { struct_size @ 0, status @ 4, layer @ 8, head @ 12, argument @ 16, message @ 24 }
}

impl lava_shape {
    pub(super) fn check(&self) -> Result<Shape> {
        let shape = Shape {
            layer: self.layer,
            n_tokens: self.n_tokens as usize,
            n_q_heads: self.n_q_heads as usize,
            n_kv_heads: self.n_kv_heads as usize,
            head_dim_k: self.head_dim_k as usize,
            head_dim_v: self.head_dim_v as usize,
            window: self.window as usize,
        };
        shape.validate().map_err(|e| e.at_layer(shape.layer))?;
        Ok(shape)
    }
}

/// 0 stands for "not given".
fn given<T: PartialEq + Default>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// The enum value with this number.
fn choose<T: Copy>(number: i32, of: &[T], argument: &'static core::ffi::CStr) -> Result<T> {
    let index = usize::try_from(number).ok().filter(|&i| i < of.len());
    ensure(index.is_some(), ErrorKind::Argument, argument)?;
    Ok(of[index.unwrap_or(0)])
}

impl lava_score_params {
    pub(super) fn check(&self) -> Result<ScoreParams> {
        let attentions = [
            Attention::Mean,
            Attention::Squared,
            Attention::MeanVariance,
            Attention::Exponential,
            Attention::Recency,
        ];
        let values = [ValueWeight::HeadMax, ValueWeight::None, ValueWeight::Token, ValueWeight::Output];
        let params = ScoreParams {
            scale: given(self.scale),
            softcap: given(self.softcap),
            sliding_window: given(self.sliding_window as usize),
            pool: choose(self.pool, &[Pool::Max, Pool::Avg], c"pool")?,
            pool_kernel: self.pool_kernel as usize,
            group_reduce: choose(self.group_reduce, &[GroupReduce::Max, GroupReduce::Mean], c"group_reduce")?,
            value_span: choose(self.value_span, &[ValueSpan::Prefix, ValueSpan::All], c"value_span")?,
            attention: choose(self.attention, &attentions, c"attention")?,
            gamma: self.gamma,
            decay: given(self.decay).unwrap_or(1.0),
            value_weight: choose(self.value_weight, &values, c"value_weight")?,
            smoothing: self.smoothing,
            weight: given(self.weight).unwrap_or(1.0),
        };
        params.validate()?;
        Ok(params)
    }
}

impl lava_select_params {
    /// # Safety
    /// `protected_mask` must be NULL or readable over the prefix, `head_weights` NULL or readable over the heads of `n_layers` layers.
    pub(super) unsafe fn check<'a>(&self, shape: &Shape, n_layers: usize) -> Result<SelectParams<'a>> {
        let floors = [HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine];
        let n_heads =
            shape.n_kv_heads.checked_mul(n_layers).ok_or(Error::new(ErrorKind::Overflow, c"n_layers"))?;
        let weights = self.head_weights;
        let params = SelectParams {
            head_floor: choose(self.head_floor, &floors, c"head_floor")?,
            alpha: self.alpha,
            head_min: self.head_min as usize,
            head_weights: match weights.is_null() {
                true => None,
                // SAFETY: the caller's promise; `slice` checks the alignment.
                false => Some(unsafe { super::call::slice(weights, n_heads, c"head_weights")? }),
            },
            n_sink: self.n_sink as usize,
            // SAFETY: the caller's promise; u8 needs no alignment.
            protected_mask: (!self.protected_mask.is_null())
                .then(|| unsafe { core::slice::from_raw_parts(self.protected_mask, shape.prefix_len()) }),
        };
        params.validate(n_heads, shape.prefix_len())?;
        Ok(params)
    }

    /// How a cascade's layers share its total.
    pub(super) fn layers(&self) -> Result<LayerBudgets> {
        let all = [LayerBudgets::Entropy, LayerBudgets::Equal, LayerBudgets::Weights, LayerBudgets::Global];
        choose(self.layer_budgets, &all, c"layer_budgets")
    }
}

/// The element type with this number.
pub(super) fn dtype(number: lava_dtype) -> Result<Dtype> {
    match number {
        LAVA_F32 => Ok(Dtype::F32),
        LAVA_F16 => Ok(Dtype::F16),
        LAVA_BF16 => Ok(Dtype::BF16),
        _ => ensure(false, ErrorKind::Dtype, c"dtype").map(|()| Dtype::F32),
    }
}
