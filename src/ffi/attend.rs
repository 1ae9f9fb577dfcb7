//! Attention over a compressed cache.

use core::ffi::c_void;

use super::call::*;
use super::checked;
use super::types::*;
use crate::attend::{self, AttendInputs};
use crate::view::{Rows, Tensor, TensorMut};

/// Bytes of workspace that each part of lava_attend needs.
///
/// n_queries: as in lava_attend.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_attend_workspace_size(
    shape: *const lava_shape,
    n_queries: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, size and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || put(size, c"size", || attend::workspace_size(&shape, n_queries as usize)))
        })
    }
}

/// Attention of new queries over a compressed cache: heads of different lengths, grouped queries.
///
/// shape: heads, head dimensions and sliding_window are used. With a sliding window, params must have positions: a query's own is that of
///     its row if causal, else query t is t after the position that follows the last row.
/// params: may be NULL: causal, without positions.
/// n_queries: new queries, at least 1.
/// q:   [n_queries, n_q_heads, head_dim_k], after RoPE.
/// k:   [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
/// v:   [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
/// n_rows: n_kv_heads entries, each head's rows, the new tokens' own included if causal: then at least n_queries.
/// out: f32 [n_queries, n_q_heads, head_dim_v]. A query that sees no row gets zeros.
/// lse: NULL, or f32 [n_queries, n_q_heads, 1]: log-sum-exp of each query's logits, its learned sink included, in the base that lse_base
///     says, for merging with attention over other rows. -inf where there is nothing to sum.
/// part, n_parts: a share of the KV heads with their query heads; the result is the same bits for every n_parts.
/// workspace: lava_attend_workspace_size bytes, one per part, aligned to LAVA_WORKSPACE_ALIGN.
/// Errors: NULL (kept_indices, with a sliding window), STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE,
///     WORKSPACE, OVERFLOW, DTYPE, INDICES, UNSUPPORTED, NONFINITE (in q, k or v, or a sum over values that overflows; rows that no query
///     sees may or may not be looked at). The cache is never written; out and lse may be partly written on NONFINITE and are
///     untouched otherwise. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_attend(
    shape: *const lava_shape,
    params: *const lava_attend_params,
    n_queries: u32,
    q: *const lava_tensor,
    k: *const lava_tensor,
    v: *const lava_tensor,
    n_rows: *const u32,
    out: *const lava_tensor,
    lse: *const lava_tensor,
    part: u32,
    n_parts: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says, out and lse to memory that may be written; other parts
    // write other query heads' rows: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || {
                let (params, backend) = checked::attend_params(params, &shape)?;
                let rows = Rows::PerHead(slice(n_rows, shape.n_kv_heads, c"n_rows")?);
                let new = Rows::Same(n_queries as usize);
                let inputs = AttendInputs {
                    q: tensor(q, new, shape.n_q_heads, shape.head_dim_k, c"q")?,
                    k: tensor(k, rows, shape.n_kv_heads, shape.head_dim_k, c"k")?,
                    v: tensor(v, rows, shape.n_kv_heads, shape.head_dim_v, c"v")?,
                };
                let out = tensor(out, new, shape.n_q_heads, shape.head_dim_v, c"out")?;
                let lse = match lse.is_null() {
                    true => None,
                    false => Some(tensor(lse, new, shape.n_q_heads, 1, c"lse")?),
                };
                let mut memory = Memory::default()
                    .reads_tensor(&inputs.q, c"q")
                    .reads_tensor(&inputs.k, c"k")
                    .reads_tensor(&inputs.v, c"v")
                    .reads(n_rows, shape.n_kv_heads, c"n_rows")
                    .writes_tensor(&out, c"out")
                    .writes(workspace as *mut u8, workspace_size, c"workspace");
                if let Some(lse) = &lse {
                    memory = memory.writes_tensor(lse, c"lse");
                }
                if let Some(sinks) = params.sink_logits {
                    memory = memory.reads(sinks.as_ptr(), sinks.len(), c"sink_logits");
                }
                if let Some(p) = &params.positions {
                    memory = memory
                        .reads(p.kept_indices.as_ptr(), p.kept_indices.len(), c"kept_indices")
                        .reads(p.cu_kept.as_ptr(), p.cu_kept.len(), c"cu_kept");
                }
                memory.check()?;
                let mut carver = super::call::workspace(workspace, workspace_size)?;
                let (mut out, mut lse) =
                    (TensorMut::from_tensor(out), lse.map(|t: Tensor| TensorMut::from_tensor(t)));
                attend::attend(
                    backend,
                    &shape,
                    &params,
                    n_queries as usize,
                    &inputs,
                    &mut out,
                    lse.as_mut(),
                    part as usize,
                    n_parts as usize,
                    &mut carver,
                )
            })
        })
    }
}
