//! Attention over a compressed cache.

use super::*;
use crate::attend::AttendParams;
use crate::backend::cuda::plan::{AttendArgs, AttendBatch, AttendSequence};
use crate::params::{LseBase, validate_logit_options};

/// One sequence of lava_cuda_attend. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_attend_sequence {
    /// sizeof(lava_cuda_attend_sequence), the same for all of a call.
    pub struct_size: u32,
    /// No head has more rows than this when the kernels run.
    pub max_rows: u32,
    /// All heads together have no more rows than this when the kernels run. 0: max_rows * n_kv_heads.
    pub total_rows: u64,
    /// [n_queries, n_q_heads, head_dim_k], after RoPE.
    pub q: *const lava_tensor,
    /// [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
    pub k: *const lava_tensor,
    /// [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
    pub v: *const lava_tensor,
    /// f32 [n_queries, n_q_heads, head_dim_v]; written.
    pub out: *const lava_tensor,
    /// NULL, or f32 [n_queries, n_q_heads, 1]; written.
    pub lse: *const lava_tensor,
    /// Device memory, n_kv_heads counts: each head's rows, the new tokens' own included if causal.
    pub n_rows: *const u32,
    /// Device memory, as in lava_attend_params; needed with a sliding window only.
    pub kept_indices: *const u32,
    /// Device memory, n_kv_heads + 1 entries; needed with a sliding window only.
    pub cu_kept: *const u32,
    /// As in lava_attend_params.
    pub n_base: u32,
    /// 0.
    pub reserved: u32,
    /// NULL, or device memory, one number: kept_indices begins so many entries later. `offset` of
    /// lava_cuda_cascade_get.
    pub kept_offset: *const u64,
}

layout! {
    lava_cuda_attend_sequence: 96, 96 {
        struct_size @ 0, max_rows @ 4, total_rows @ 8, q @ 16, k @ 24, v @ 32, out @ 40, lse @ 48, n_rows @ 56,
        kept_indices @ 64, cu_kept @ 72, n_base @ 80, reserved @ 84, kept_offset @ 88,
    }
}

/// Bytes of device memory that lava_cuda_attend needs as a workspace.
///
/// shape: heads and head dimensions are used.
/// n_queries: as for lava_cuda_attend.
/// total_rows: sum over the sequences of their total_rows, or of max_rows * n_kv_heads where that is 0.
/// size: receives the bytes, enough for tensors of any type and layout; untouched on error.
/// Errors: as lava_cuda_attend. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_attend_workspace_size(
    context: *const c_void,
    shape: *const lava_shape,
    n_queries: u32,
    n_sequences: u32,
    total_rows: u64,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context, shape, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || {
                // It does not depend on the options.
                let batch =
                    attend_args(&shape, &AttendParams::default(), n_queries, n_sequences, total_rows)?;
                tell_size(context, batch, n_sequences, size)
            })
        })
    }
}

/// lava_attend for a batch of sequences, each with the same number of new queries and its own compressed cache.
///
/// The counts n_rows are read on the device, when the kernels run: a captured graph stays valid while caches grow, up
/// to max_rows and total_rows. A larger count is taken as max_rows. Where all together have more rows than that,
/// nothing is written after the workspace's end, but the outputs must not be used. With causal, a head of fewer than
/// n_queries rows has queries that see nothing: the first ones.
///
/// context: from lava_cuda_init.
/// shape: heads, head dimensions and sliding_window are used; layer is below 65536. With a sliding window each sequence
///     has its positions.
/// params: may be NULL: causal. kept_indices, cu_kept and n_base are 0 here: each sequence has its own.
/// n_queries: new queries of each sequence, at least 1.
/// sequences, workspace, status, stream: as for lava_cuda_score. The workspace is lava_cuda_attend_workspace_size
///     bytes. A sequence's outputs are the same bits where its scores would be: in every run, in every batch of the
///     same kinds of tensors.
/// Errors: as lava_cuda_score.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_attend(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_attend_params,
    n_queries: u32,
    sequences: *const lava_cuda_attend_sequence,
    n_sequences: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    status: *mut u64,
    stream: *mut c_void,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let call = Call::new(context, workspace, workspace_size, status, stream)?;
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || {
                let params = attend_params(params, &shape)?;
                check_batch(&shape, n_sequences)?;
                let mut total_rows = 0u64;
                for i in 0..n_sequences as usize {
                    let rows = total_rows_of(&nth(sequences, i)?, &shape)?;
                    total_rows =
                        total_rows.checked_add(rows).ok_or(Error::new(ErrorKind::Overflow, c"total_rows"))?;
                }
                let mut batch = attend_args(&shape, &params, n_queries, n_sequences, total_rows)?;
                batch.args.status = call.status;
                let sequence =
                    |i| attend_sequence(&shape, n_queries as usize, &nth(sequences, i)?, call.memory());
                call.run(batch, n_sequences, &sequence)
            })
        })
    }
}

/// Options that lead to no memory: each sequence has its own.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_attend_params`.
unsafe fn attend_params(p: *const lava_attend_params, shape: &Shape) -> Result<AttendParams<'static>> {
    // SAFETY: the caller's promise; there are neither positions nor sink logits to be followed.
    unsafe {
        if let Some(given) = read_option(p, c"params")? {
            ensure(given.kept_indices.is_null(), ErrorKind::Argument, c"kept_indices")?;
            ensure(given.cu_kept.is_null(), ErrorKind::Argument, c"cu_kept")?;
            ensure(given.n_base == 0, ErrorKind::Argument, c"n_base")?;
            supports(given.sink_logits.is_null(), c"sink_logits")?;
            supports(given.backend == LAVA_BACKEND_BEST, c"backend")?;
        }
        Ok(checked::attend_params(p, shape)?.0)
    }
}

/// What attention is launched with, except the sequences and the status.
fn attend_args(
    shape: &Shape,
    params: &AttendParams,
    n_queries: u32,
    n_sequences: u32,
    total_rows: u64,
) -> Result<AttendBatch> {
    check_batch(shape, n_sequences)?;
    ensure(n_queries > 0, ErrorKind::Shape, c"n_queries")?;
    validate_logit_options(params.scale, params.softcap, None, 0)?;
    // The plan's sizes: an item is at least one row, and each head may end in a part of one.
    let queries = n_queries as u128 * shape.group_size() as u128;
    let items = total_rows as u128 / 16 + n_sequences as u128 * shape.n_kv_heads as u128;
    let bytes = items * queries * (shape.head_dim_v as u128 + 2) * 4;
    ensure(queries <= i32::MAX as u128, ErrorKind::Overflow, c"n_queries")?;
    ensure(items <= u32::MAX as u128 && bytes <= isize::MAX as u128, ErrorKind::Overflow, c"total_rows")?;
    let args = AttendArgs {
        layer: shape.layer,
        n_queries,
        n_q_heads: shape.n_q_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim_k: shape.head_dim_k as u32,
        head_dim_v: shape.head_dim_v as u32,
        causal: params.causal.into(),
        sliding_window: shape.sliding_window.unwrap_or(0) as u32,
        scale: scale(params.scale, shape),
        softcap: params.softcap.unwrap_or(0.0),
        lse_from_base_2: match params.lse_base {
            LseBase::Natural => core::f32::consts::LN_2,
            LseBase::Two => 1.0,
        },
        n_sequences,
        ..AttendArgs::EMPTY
    };
    Ok(AttendBatch { args, total_rows })
}

fn total_rows_of(s: &lava_cuda_attend_sequence, shape: &Shape) -> Result<u64> {
    let most = s.max_rows as u64 * shape.n_kv_heads as u64;
    ensure(s.total_rows <= most, ErrorKind::Argument, c"total_rows")?;
    Ok(if s.total_rows == 0 { most } else { s.total_rows })
}

/// # Safety
/// The tensors of `s` must be NULL or lead to a `lava_tensor`.
unsafe fn attend_sequence(
    shape: &Shape,
    n_queries: usize,
    s: &lava_cuda_attend_sequence,
    memory: Memory,
) -> Result<AttendSequence> {
    ensure(s.reserved == 0, ErrorKind::StructSize, c"reserved")?;
    let rows = s.max_rows as usize;
    // SAFETY: the caller's promise.
    unsafe {
        let (q, q_bytes) = device_tensor(s.q, n_queries, shape.n_q_heads, shape.head_dim_k, c"q")?;
        let (k, k_bytes) = device_tensor(s.k, rows, shape.n_kv_heads, shape.head_dim_k, c"k")?;
        let (v, v_bytes) = device_tensor(s.v, rows, shape.n_kv_heads, shape.head_dim_v, c"v")?;
        let (out, out_bytes) = device_f32(s.out, n_queries, shape.n_q_heads, shape.head_dim_v, c"out")?;
        let (lse, lse_bytes) = match s.lse.is_null() {
            true => (DeviceTensor::NONE, 0),
            false => device_f32(s.lse, n_queries, shape.n_q_heads, 1, c"lse")?,
        };
        check_pointer(s.n_rows, c"n_rows")?;
        if shape.sliding_window.is_some() {
            check_pointer(s.kept_indices, c"kept_indices")?;
            check_pointer(s.cu_kept, c"cu_kept")?;
            check_optional(s.kept_offset, c"kept_offset")?;
        }
        memory
            .reads(q.data as *const u8, q_bytes, c"q")
            .reads(k.data as *const u8, k_bytes, c"k")
            .reads(v.data as *const u8, v_bytes, c"v")
            .reads(s.n_rows, shape.n_kv_heads, c"n_rows")
            .writes(out.data as *mut u8, out_bytes, c"out")
            .writes(lse.data as *mut u8, lse_bytes, c"lse")
            .check()?;
        let (kept_indices, cu_kept) = (s.kept_indices, s.cu_kept);
        Ok(AttendSequence {
            q,
            k,
            v,
            out,
            lse,
            n_rows: s.n_rows,
            kept_indices,
            cu_kept,
            kept_offset: s.kept_offset,
            n_base: s.n_base,
            max_rows: s.max_rows,
        })
    }
}
