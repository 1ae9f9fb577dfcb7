//! From queries, keys and values to scores.

use super::*;
use crate::backend::cuda::plan::{ScoreArgs, ScoreSequence};
use crate::params::{Attention, Pool, ScoreParams, ValueWeight};

/// One sequence of lava_cuda_score. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_score_sequence {
    /// sizeof(lava_cuda_score_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's. With window tokens or fewer there is nothing to score.
    pub n_tokens: u32,
    /// [window, n_q_heads, head_dim_k], after RoPE.
    pub q: *const lava_tensor,
    /// [n_tokens, n_kv_heads, head_dim_k], after RoPE.
    pub k: *const lava_tensor,
    /// [n_tokens, n_kv_heads, head_dim_v]; may be NULL with LAVA_VALUE_NONE.
    pub v: *const lava_tensor,
    /// NULL, or f32 [window, n_q_heads, 1] as in lava_score, in the base that lse_base says. Given for all sequences of
    /// a call or for none.
    pub lse: *const lava_tensor,
    /// Device memory, f32 [n_kv_heads, n_tokens - window] without gaps; written. May be NULL where there is nothing to
    /// score.
    pub scores: *mut f32,
}

layout! {
    lava_cuda_score_sequence: 48, 48 { struct_size @ 0, n_tokens @ 4, q @ 8, k @ 16, v @ 24, lse @ 32, scores @ 40 }
}

/// Bytes of device memory that lava_cuda_score needs as a workspace.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence.
/// params: may be NULL.
/// size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
/// Errors: as lava_cuda_score. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_score_workspace_size(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_score_params,
    n_sequences: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context, shape, params, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let cuda = reopen(context)?;
            let shape = dense_shape(shape)?;
            in_layer(&shape, || {
                let mut batch = score_args(&shape, params, n_sequences)?;
                put(size, c"size", || {
                    Ok(match shape.prefix_len() {
                        0 => 0,
                        _ => cuda.workspace_size(&mut batch, n_sequences as usize),
                    })
                })
            })
        })
    }
}

/// lava_score for one layer of a batch of sequences of different lengths.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: may be NULL.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to. There are
///     faster kernels for f16 or bf16 rows of adjacent elements, aligned to 16 bytes; they are used if all sequences
///     have such rows. The scores of a sequence are the same bits in every run, in every batch of the same kind of
///     tensors, on devices of one architecture: CUDA does not say in which order tensor cores add. From the same scores
///     the same entries are kept everywhere.
/// workspace: device memory, lava_cuda_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN. No other call may
///     use it until the stream has run this one.
/// status: device memory; see the top.
/// stream: a CUstream or cudaStream_t of the context, NULL for its default stream.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE,
///     UNSUPPORTED, STATE, CONTEXT: nothing was launched. LAUNCH: some launches may have been. Any thread on which the
///     context is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_score(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_score_params,
    sequences: *const lava_cuda_score_sequence,
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
            let shape = dense_shape(shape)?;
            in_layer(&shape, || {
                let mut batch = score_args(&shape, params, n_sequences)?;
                batch.status = call.status;
                let has_lse = !read_struct(sequences, c"sequences")?.lse.is_null();
                let has_values = batch.value_weight != ValueWeight::None as i32;
                batch.has_lse = has_lse.into();
                let sequence = |i| {
                    let s = nth(sequences, i)?;
                    let own = shorter(&shape, s.n_tokens, shape.layer)?;
                    check_scores(s.scores, &own)?;
                    let memory = call.memory().writes(s.scores, own.n_scores() as usize, c"scores");
                    score_sequence(&own, &s, has_lse, has_values, memory)
                };
                if shape.prefix_len() == 0 {
                    return (0..n_sequences as usize).try_for_each(|i| sequence(i).map(|_| ()));
                }
                call.run(batch, n_sequences, &sequence)
            })
        })
    }
}

/// What scoring is launched with, except the sequences and the status.
///
/// # Safety
/// `params` must be NULL or lead to a `lava_score_params`.
pub(super) unsafe fn score_args(
    shape: &Shape,
    params: *const lava_score_params,
    n_sequences: u32,
) -> Result<ScoreArgs> {
    // SAFETY: the caller's promise.
    let params = unsafe { score_params(params, shape.n_q_heads)? };
    supports(!matches!(params.attention, Attention::Max | Attention::Norm4), c"attention")?;
    let of_l2 = matches!(params.value_weight, ValueWeight::TokenL2 | ValueWeight::HeadMeanL2);
    supports(!of_l2, c"value_weight")?;
    supports(params.pool != Pool::After, c"pool")?;
    args_of(shape, &params, n_sequences)
}

/// The same of any options: statistics have an attention of their own.
pub(super) fn args_of(shape: &Shape, params: &ScoreParams, n_sequences: u32) -> Result<ScoreArgs> {
    check_batch(shape, n_sequences)?;
    let ScoreParams { pool, group_reduce, value_span, attention, value_weight, .. } = *params;
    // The largest things the plan multiplies: sums and maxima of each row in each range of at least 64 keys, by up to 4
    // warps; column sums; outputs of each query head in each range.
    let rows = shape.group_size() as u128 * (shape.window as u128).next_multiple_of(16);
    let heads = shape.n_kv_heads as u128 * n_sequences as u128;
    let outputs = shape.group_size() as u128 * (2 * shape.head_dim_v as u128 + 3);
    let bytes = 4
        * heads
        * ((8 * rows + outputs) * (shape.n_tokens as u128 / 64 + 2)
            + 4 * shape.n_q_heads as u128 * shape.n_tokens as u128);
    ensure(rows <= u32::MAX as u128 && bytes <= isize::MAX as u128, ErrorKind::Overflow, c"n_tokens")?;
    Ok(ScoreArgs {
        layer: shape.layer,
        n_q_heads: shape.n_q_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim_k: shape.head_dim_k as u32,
        head_dim_v: shape.head_dim_v as u32,
        window: shape.window as u32,
        pool: pool as i32,
        pool_kernel: params.pool_kernel as u32,
        group_reduce: group_reduce as i32,
        value_span: value_span as i32,
        attention: attention as i32,
        value_weight: value_weight as i32,
        sliding_window: shape.sliding_window.unwrap_or(0) as u32,
        scale: scale(params.scale, shape),
        softcap: params.softcap.unwrap_or(0.0),
        gamma: params.gamma,
        decay: params.decay,
        weight: params.weight,
        smoothing: params.smoothing,
        lse_to_base_2: params.lse_base.to_two(),
        n_sequences,
        max_tokens: shape.n_tokens as u32,
        ..ScoreArgs::EMPTY
    })
}

/// A sequence with its own shape; what it writes is in `memory`.
///
/// # Safety
/// The tensors of `s` must be NULL or lead to a `lava_tensor`.
pub(super) unsafe fn score_sequence(
    shape: &Shape,
    s: &lava_cuda_score_sequence,
    has_lse: bool,
    has_values: bool,
    memory: Memory,
) -> Result<ScoreSequence> {
    let window = shape.window_rows();
    // SAFETY: the caller's promise.
    unsafe {
        let (q, q_bytes) = device_tensor(s.q, window, shape.n_q_heads, shape.head_dim_k, c"q")?;
        let (k, k_bytes) = device_tensor(s.k, shape.n_tokens, shape.n_kv_heads, shape.head_dim_k, c"k")?;
        let (v, v_bytes) = match has_values {
            true => device_tensor(s.v, shape.n_tokens, shape.n_kv_heads, shape.head_dim_v, c"v")?,
            false => (DeviceTensor::NONE, 0),
        };
        ensure(s.lse.is_null() != has_lse, ErrorKind::Argument, c"lse")?;
        let (lse, lse_bytes) = match has_lse {
            true => device_f32(s.lse, window, shape.n_q_heads, 1, c"lse")?,
            false => (DeviceTensor::NONE, 0),
        };
        memory
            .reads(q.data as *const u8, q_bytes, c"q")
            .reads(k.data as *const u8, k_bytes, c"k")
            .reads(v.data as *const u8, v_bytes, c"v")
            .reads(lse.data as *const u8, lse_bytes, c"lse")
            .check()?;
        Ok(ScoreSequence { q, k, v, lse, scores: s.scores, n_tokens: s.n_tokens, reserved: 0 })
    }
}
