//! Scores that need no queries of the window, and norms of values.

use super::call::*;
use super::checked;
use super::score::{cache_rows, own_scores};
use super::types::*;
use crate::error::{ErrorKind, Result, ensure};
use crate::params::Shape;
use crate::score::{self, QueryStatistics};
use crate::view::{Rows, Tensor};

/// Scores a layer's prefix by its keys alone: those that are unlike the others are kept (KeyDiff, arXiv 2504.15364). Published with equal
/// heads and layers.
///
///     scores[i] = 1 - cos(k[i], sum over the live prefix of k[j] / |k[j]|)
///
/// k, part, n_parts: as in lava_score.
/// scores: as in lava_score, from 0 to 2; of dead rows, and keys of zeros, 0. On error the part's own may be partly written.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, OVERFLOW, INDICES, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, ARGUMENT, NONFINITE (naming the
///     head). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_keys(
    shape: *const lava_shape,
    k: *const lava_tensor,
    part: u32,
    n_parts: u32,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (part, n_parts) = (part as usize, n_parts as usize);
                let k = tensor(k, cache_rows(&shape), shape.n_kv_heads, shape.head_dim_k, c"k")?;
                let heads = score::part_heads(&shape, part, n_parts)?;
                reads_rows_of(&shape, &k, c"k")
                    .writes(scores, shape.n_scores() as usize, c"scores")
                    .check()?;
                let own = own_scores(&shape, heads, scores, c"scores")?;
                score::score_keys(&shape, &k, part, n_parts, own)
            })
        })
    }
}

/// Norms of values as they meet the residual stream, for weights of your own: multiply a score by its entry's norm before you select.
///
///     norms[i] = sqrt((v[i] - o)^T G (v[i] - o))      which is |(v[i] - o) W| if G = W W^T
///
/// gram: f32 [n_kv_heads, head_dim_v, head_dim_v], symmetric, the mean of W W^T over the group's query heads, W [head_dim_v, n_embd] being
///     the query head's rows of the output matrix: computed once for a model. May be NULL: the unit matrix, so the L2 norm of v[i] - o.
/// centre: f32 [n_kv_heads, head_dim_v], o: the attention's mean output, say, so that what is like it counts for nothing. May be NULL: 0.
/// v, part, n_parts: as in lava_score.
/// norms: f32, lava_n_scores(shape) of them, laid out as scores; of dead rows 0. On error the part's own may be partly written.
/// Errors: as lava_score_keys. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_value_norms(
    shape: *const lava_shape,
    gram: *const f32,
    centre: *const f32,
    v: *const lava_tensor,
    part: u32,
    n_parts: u32,
    norms: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (part, n_parts) = (part as usize, n_parts as usize);
                let v = tensor(v, cache_rows(&shape), shape.n_kv_heads, shape.head_dim_v, c"v")?;
                let heads = score::part_heads(&shape, part, n_parts)?;
                let gram =
                    optional_array(gram, shape.n_kv_heads, shape.head_dim_v * shape.head_dim_v, c"gram")?;
                let centre = optional_array(centre, shape.n_kv_heads, shape.head_dim_v, c"centre")?;
                reads_rows_of(&shape, &v, c"v")
                    .reads(pointer(gram), gram.map_or(0, <[_]>::len), c"gram")
                    .reads(pointer(centre), centre.map_or(0, <[_]>::len), c"centre")
                    .writes(norms, shape.n_scores() as usize, c"norms")
                    .check()?;
                let own = own_scores(&shape, heads, norms, c"norms")?;
                score::value_norms(&shape, gram, centre, &v, part, n_parts, own)
            })
        })
    }
}

/// What a layer's queries are like on the whole, turned to positions to come: their mean and their covariance, for lava_score_expected
/// (Expected Attention, arXiv 2510.00636).
///
/// shape: n_q_heads and head_dim_k are used.
/// n_rows: at least 1.
/// q: [n_rows, n_q_heads, head_dim_k], before RoPE. Leave out the prompt's first 4 or so, where attention sinks stand.
/// frequencies, n_rot, style, magnitude: as in lava_rotate.
/// position, n_ahead: the mean rotation is that of so many positions from this one on, usually n_tokens; published: 512. At least 1
///     (ARGUMENT).
/// mean: f64 [n_q_heads, head_dim_k]. On error it may be partly written.
/// covariance: f64 [n_q_heads, head_dim_k, head_dim_k]. On error it may be partly written.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, OVERFLOW, ARGUMENT, NONFINITE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_query_statistics(
    shape: *const lava_shape,
    n_rows: u32,
    q: *const lava_tensor,
    frequencies: *const f32,
    n_rot: u32,
    style: i32,
    magnitude: f32,
    position: u32,
    n_ahead: u32,
    mean: *mut f64,
    covariance: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || {
                let rope = checked::rope(&shape, frequencies, n_rot, style, magnitude)?;
                let (heads, d) = (shape.n_q_heads, shape.head_dim_k);
                ensure(n_rows > 0, ErrorKind::Shape, c"n_rows")?;
                let q = tensor(q, Rows::Same(n_rows as usize), heads, d, c"q")?;
                let (n_mean, n_covariance) = (elements(heads, d)?, elements(heads, d * d)?);
                Memory::default()
                    .reads_tensor(&q, c"q")
                    .reads(rope.frequencies.as_ptr(), rope.frequencies.len(), c"frequencies")
                    .writes(mean, n_mean, c"mean")
                    .writes(covariance, n_covariance, c"covariance")
                    .check()?;
                let mut out = QueryStatistics {
                    mean: slice_mut(mean, n_mean, c"mean")?,
                    covariance: slice_mut(covariance, n_covariance, c"covariance")?,
                };
                score::query_statistics(&shape, &rope, n_rows as usize, &q, position, n_ahead, &mut out)
            })
        })
    }
}

/// Scores a layer's prefix by the attention that queries are expected to pay which are normally distributed (Expected Attention, arXiv
/// 2510.00636; there 0.02 is added and the sum multiplied by lava_value_norms' L2 norm, and 4 sinks are kept).
///
///     z[h, i]      = s * mean[h] . k[i] + s^2 / 2 * k[i]^T covariance[h] k[i]
///     scores[g, i] = mean over the query heads of a group of softmax over the live prefix of z[h]
///
/// scale: s, above 0; 0 means 1 / sqrt(head_dim_k).
/// mean: f64 [n_q_heads, head_dim_k], from lava_query_statistics.
/// covariance: f64 [n_q_heads, head_dim_k, head_dim_k]; may be NULL: the attention of the mean query.
/// k, part, n_parts: as in lava_score.
/// logits: f64, as many as the head with the most rows has in the prefix; scratch memory, each part's own.
/// scores: as in lava_score; of dead rows 0. On error the part's own may be partly written.
/// Errors: as lava_score_keys. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_expected(
    shape: *const lava_shape,
    scale: f32,
    mean: *const f64,
    covariance: *const f64,
    k: *const lava_tensor,
    part: u32,
    n_parts: u32,
    logits: *mut f64,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (part, n_parts) = (part as usize, n_parts as usize);
                let (q_heads, d) = (shape.n_q_heads, shape.head_dim_k);
                let k = tensor(k, cache_rows(&shape), shape.n_kv_heads, d, c"k")?;
                let heads = score::part_heads(&shape, part, n_parts)?;
                let mean = slice(mean, elements(q_heads, d)?, c"mean")?;
                let covariance = optional_array(covariance, q_heads, d * d, c"covariance")?;
                let n_logits = (0..shape.n_kv_heads).map(|h| shape.prefix_rows(h)).max().unwrap_or(0);
                reads_rows_of(&shape, &k, c"k")
                    .reads(mean.as_ptr(), mean.len(), c"mean")
                    .reads(pointer(covariance), covariance.map_or(0, <[_]>::len), c"covariance")
                    .writes(logits, n_logits, c"logits")
                    .writes(scores, shape.n_scores() as usize, c"scores")
                    .check()?;
                let logits = if n_logits == 0 { &mut [] } else { slice_mut(logits, n_logits, c"logits")? };
                let own = own_scores(&shape, heads, scores, c"scores")?;
                let scale = if scale == 0.0 { None } else { Some(scale) };
                score::score_expected(&shape, scale, mean, covariance, &k, part, n_parts, logits, own)
            })
        })
    }
}

/// So many elements of each of so many heads.
fn elements(n_heads: usize, each: usize) -> Result<usize> {
    n_heads.checked_mul(each).ok_or(crate::Error::new(ErrorKind::Overflow, c"n_q_heads"))
}

/// NULL, or what each of so many heads has.
///
/// # Safety
/// `p` must be NULL or readable over that for `'a`.
unsafe fn optional_array<'a, T>(
    p: *const T,
    n_heads: usize,
    each: usize,
    name: &'static core::ffi::CStr,
) -> Result<Option<&'a [T]>> {
    if p.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { slice(p, elements(n_heads, each)?, name).map(Some) }
}

fn pointer<T>(all: Option<&[T]>) -> *const T {
    all.map_or(core::ptr::null(), <[T]>::as_ptr)
}

fn reads_rows_of(shape: &Shape, t: &Tensor, name: &'static core::ffi::CStr) -> Memory {
    Memory::default().reads_tensor(t, name).reads_rows(shape)
}
