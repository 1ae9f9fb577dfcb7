//! Scores: window attention, values, pooling, the group.

use core::ffi::c_void;
use core::ops::Range;

use super::call::*;
use super::checked;
use super::types::*;
use super::versioned::check_pointer;
use crate::error::Result;
use crate::params::{Shape, ValueWeight};
use crate::score::{self, ScoreInputs};
use crate::view::Rows;

/// Bytes of workspace that each part of lava_score needs: at most a tenth of the layer's K and V in f16, from about a
/// thousand tokens on (the queries of one head and one block of keys must fit).
///
/// params: may be NULL.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT, NONFINITE, UNSUPPORTED. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_workspace_size(
    shape: *const lava_shape,
    params: *const lava_score_params,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, params, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (params, _) = checked::score_params(params, shape.n_q_heads)?;
                put(size, c"size", || score::workspace_size(&shape, &params))
            })
        })
    }
}

/// Scores the prefix of one layer: window attention, pooled, reduced over each group, times what the values say. LAVa's score is
///
///     scores[g][i] = vmax[g] * max_{h in group g} maxpool(mean_j softmax_i(scale * q_j.k_i))
///
/// and params make it another.
///
/// params: may be NULL.
/// q:   [min(window, n_tokens), n_q_heads, head_dim_k], the last window queries of the prompt, after RoPE.
/// k:   [rows, n_kv_heads, head_dim_k], after RoPE; n_tokens rows a head, or as the shape's cu_rows says.
/// v:   [rows, n_kv_heads, head_dim_v]. May be NULL with LAVA_VALUE_NONE.
/// lse: NULL, or f32 [min(window, n_tokens), n_q_heads, 1]: log-sum-exp of each query's scaled, capped, masked logits over all
///      keys that it sees, learned sinks included, as flash attention returns it (lse_base says in which base). Saves a pass and
///      the memory for it. One by which a query's attention does not sum to 1, within 5%, is refused (ARGUMENT).
/// part, n_parts: this call does share `part` of `n_parts` of the KV heads: n_kv_heads * part / n_parts up to
///      n_kv_heads * (part + 1) / n_parts, of which there may be none. Each part needs a workspace of its own.
/// workspace: lava_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN; contents neither needed nor kept.
/// scores: f32, lava_n_scores(shape) of them for all heads, head after head, one per prefix row, of which the part writes its own.
///      Without cu_rows [n_kv_heads, n_tokens - window]. All are finite and not negative. On error the part's own may be partly
///      written. May be NULL where there is no prefix.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, INDICES,
///      UNSUPPORTED, NONFINITE (naming the layer and one of the heads at fault; rows that no query sees are not looked at). Inputs
///      may share memory with each other, outputs with nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score(
    shape: *const lava_shape,
    params: *const lava_score_params,
    q: *const lava_tensor,
    k: *const lava_tensor,
    v: *const lava_tensor,
    lse: *const lava_tensor,
    part: u32,
    n_parts: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            score_by(
                shape,
                params,
                Asked::ByWindow,
                [q, k, v, lse],
                (part, n_parts),
                (workspace, workspace_size),
                scores,
            )
        })
    }
}

/// Whose queries score.
#[derive(Clone, Copy)]
pub(super) enum Asked {
    ByWindow,
    /// So many others, from behind the prompt.
    After(u32),
    /// So many others, at positions of their own.
    At(*const u32, u32),
}

/// Scores by the window's queries, or joins those by others.
///
/// # Safety
/// Every pointer must be NULL or lead to what the header says of lava_score and lava_score_queries.
pub(super) unsafe fn score_by(
    shape: *const lava_shape,
    params: *const lava_score_params,
    asked: Asked,
    [q, k, v, lse]: [*const lava_tensor; 4],
    (part, n_parts): (u32, u32),
    (workspace, workspace_size): (*mut c_void, usize),
    scores: *mut f32,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let shape = checked::shape(shape)?;
        in_layer(&shape, || {
            let (params, backend) = match asked {
                Asked::ByWindow => checked::score_params(params, shape.n_q_heads)?,
                Asked::After(_) | Asked::At(..) => checked::asking_params(params, shape.n_q_heads)?,
            };
            let (part, n_parts) = (part as usize, n_parts as usize);
            let positions = match asked {
                Asked::At(positions, n) if n > 0 => slice(positions, n as usize, c"positions")?,
                _ => &[],
            };
            let rows = match asked {
                Asked::ByWindow => shape.window_rows(),
                Asked::After(n) | Asked::At(_, n) => n as usize,
            };
            let attention = attention_inputs(&shape, rows, q, k, lse)?;
            let inputs = match params.value_weight {
                ValueWeight::None => attention,
                _ => {
                    let v = tensor(v, cache_rows(&shape), shape.n_kv_heads, shape.head_dim_v, c"v")?;
                    ScoreInputs { v, ..attention }
                }
            };
            let heads = score::part_heads(&shape, part, n_parts)?;
            let n_scores = shape.n_scores() as usize;
            let per_query_head = |x: Option<&[f32]>| x.map_or(core::ptr::null(), |x| x.as_ptr());
            reads_inputs(&shape, &inputs)
                .reads(per_query_head(params.sink_logits), shape.n_q_heads, c"sink_logits")
                .reads(per_query_head(params.query_head_weights), shape.n_q_heads, c"query_head_weights")
                .reads(positions.as_ptr(), positions.len(), c"positions")
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(scores, n_scores, c"scores")
                .check()?;
            let mut carver = super::call::workspace(workspace, workspace_size)?;
            let memory = &mut carver;
            let own = own_scores(&shape, heads, scores, c"scores")?;
            match asked {
                Asked::ByWindow => {
                    score::score(backend, &shape, &params, &inputs, part, n_parts, memory, own)
                }
                Asked::After(n) => {
                    let n = n as usize;
                    score::score_queries(backend, &shape, &params, n, &inputs, part, n_parts, memory, own)
                }
                Asked::At(..) => {
                    let at = positions;
                    score::score_queries_at(backend, &shape, &params, at, &inputs, part, n_parts, memory, own)
                }
            }
        })
    }
}

/// The scores of some heads, or what is laid out like them. Other parts write the other heads at the same time.
///
/// # Safety
/// `all` must be NULL or writable over the layer's scores for `'a`.
pub(super) unsafe fn own_scores<'a>(
    shape: &Shape,
    heads: Range<usize>,
    all: *mut f32,
    name: &'static core::ffi::CStr,
) -> Result<&'a mut [f32]> {
    if shape.n_scores() == 0 {
        return Ok(&mut []);
    }
    check_pointer(all, name)?;
    let (first, end) = (shape.first_score(heads.start), shape.first_score(heads.end));
    // SAFETY: the caller's promise.
    unsafe { slice_mut(all.add(first), end - first, name) }
}

/// How many rows each head of the layer's cache has.
pub(super) fn cache_rows<'a>(shape: &Shape<'a>) -> Rows<'a> {
    match shape.ragged {
        None => Rows::Same(shape.n_tokens),
        Some(rows) => Rows::Cu(rows.cu_rows),
    }
}

/// The inputs of the attention of `n_queries` queries. The values are not among them: keys stand in their place.
///
/// # Safety
/// `q`, `k` and `lse` must be NULL or tell the truth about their memory for `'a`.
pub(super) unsafe fn attention_inputs<'a>(
    shape: &Shape<'a>,
    n_queries: usize,
    q: *const lava_tensor,
    k: *const lava_tensor,
    lse: *const lava_tensor,
) -> Result<ScoreInputs<'a>> {
    let rows = Rows::Same(n_queries);
    // SAFETY: the caller's promise.
    unsafe {
        let q = tensor(q, rows, shape.n_q_heads, shape.head_dim_k, c"q")?;
        let k = tensor(k, cache_rows(shape), shape.n_kv_heads, shape.head_dim_k, c"k")?;
        let lse = match lse.is_null() {
            true => None,
            false => Some(tensor(lse, rows, shape.n_q_heads, 1, c"lse")?),
        };
        Ok(ScoreInputs { q, k, v: k, lse })
    }
}

/// What scoring reads, for the check of overlaps.
pub(super) fn reads_inputs(shape: &Shape, inputs: &ScoreInputs) -> Memory {
    let memory = Memory::default()
        .reads_tensor(&inputs.q, c"q")
        .reads_tensor(&inputs.k, c"k")
        .reads_tensor(&inputs.v, c"v")
        .reads_rows(shape);
    match &inputs.lse {
        Some(lse) => memory.reads_tensor(lse, c"lse"),
        None => memory,
    }
}
