//! What other methods need: how a window attends to the prefix, and one set of entries for all heads.

use super::*;
use crate::backend::cuda::plan::{
    MeanArgs, MeanItem, PreferenceArgs, PreferenceItem, SPREAD, ScoreArgs, ScoreSequence,
};
use crate::params::{GroupReduce, Pool, ValueWeight};
use crate::score::check_tau;

/// One sequence of lava_cuda_attention_stats. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_stats_sequence {
    /// sizeof(lava_cuda_stats_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's. With window tokens or fewer its statistics are 0.
    pub n_tokens: u32,
    /// As in lava_cuda_score_sequence.
    pub q: *const lava_tensor,
    /// As in lava_cuda_score_sequence.
    pub k: *const lava_tensor,
    /// As in lava_cuda_score_sequence.
    pub lse: *const lava_tensor,
    /// Device memory, [n_kv_heads, 2] doubles; receives entropy and variance of each head.
    pub stats: *mut f64,
}

/// One layer, of one sequence, of lava_cuda_preference.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_preference_sequence {
    /// sizeof(lava_cuda_preference_sequence), the same for all of a call.
    pub struct_size: u32,
    /// For lava_cuda_result, below 65536.
    pub layer: u32,
    /// Device memory, [n_kv_heads, 2], from lava_cuda_attention_stats.
    pub stats: *const f64,
    /// Device memory; receives one number, for lava_cuda_layer_entries or lava_cuda_cascade_push.
    pub weight: *mut f64,
}

/// One layer, of one sequence, of lava_cuda_mean_over_heads. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_mean_sequence {
    /// sizeof(lava_cuda_mean_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's.
    pub n_tokens: u32,
    /// For lava_cuda_result, below 65536.
    pub layer: u32,
    /// 0.
    pub reserved: u32,
    /// Device memory, f32 [n_kv_heads, n_tokens - window], finite; read and written.
    pub scores: *mut f32,
}

layout! {
    lava_cuda_stats_sequence: 40, 40 { struct_size @ 0, n_tokens @ 4, q @ 8, k @ 16, lse @ 24, stats @ 32 }
    lava_cuda_preference_sequence: 24, 24 { struct_size @ 0, layer @ 4, stats @ 8, weight @ 16 }
    lava_cuda_mean_sequence: 24, 24 { struct_size @ 0, n_tokens @ 4, layer @ 8, reserved @ 12, scores @ 16 }
}

/// Bytes of device memory that lava_cuda_attention_stats needs as a workspace.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence.
/// params: may be NULL.
/// size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
/// Errors: as lava_cuda_attention_stats. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_attention_stats_workspace_size(
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
            let shape = dense_shape(shape)?;
            in_layer(&shape, || {
                tell_size(context, stats_args(&shape, params, n_sequences)?, n_sequences, size)
            })
        })
    }
}

/// lava_attention_stats (lava_methods.h) for one layer of a batch of sequences of unlike length. K is read twice, once
/// with lse.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: may be NULL; scale, softcap and lse_base are used.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to; what
///     lava_cuda_score says of its own is true of them. The statistics of a sequence are the same bits where its scores
///     would be.
/// workspace: device memory, lava_cuda_attention_stats_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score.
/// Errors: as lava_cuda_score.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_attention_stats(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_score_params,
    sequences: *const lava_cuda_stats_sequence,
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
                let mut batch = stats_args(&shape, params, n_sequences)?;
                batch.status = call.status;
                let has_lse = !read_struct(sequences, c"sequences")?.lse.is_null();
                batch.has_lse = has_lse.into();
                let sequence = |i| {
                    let s = nth(sequences, i)?;
                    check_pointer(s.stats, c"stats")?;
                    let own = shorter(&shape, s.n_tokens, shape.layer)?;
                    let inputs = lava_cuda_score_sequence {
                        struct_size: size_of::<lava_cuda_score_sequence>() as u32,
                        n_tokens: s.n_tokens,
                        q: s.q,
                        k: s.k,
                        v: core::ptr::null(),
                        lse: s.lse,
                        scores: core::ptr::null_mut(),
                    };
                    let memory = call.memory().writes(s.stats, 2 * shape.n_kv_heads, c"stats");
                    let read = score_sequence(&own, &inputs, has_lse, false, memory)?;
                    Ok(ScoreSequence { scores: s.stats as *mut f32, ..read })
                };
                call.run(batch, n_sequences, &sequence)
            })
        })
    }
}

/// lava_preference (lava_methods.h) for layers or sequences side by side.
///
/// context: from lava_cuda_init.
/// shape: n_kv_heads is used.
/// tau1, tau2: as for lava_preference.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 24 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. A weight that is not finite is "stats", of no head. lava_cuda_layer_entries
///     then writes numbers that lava_cuda_select refuses, and a cascade's pushes do nothing.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, UNSUPPORTED, STATE, CONTEXT: nothing was
///     launched. LAUNCH. Any thread on which the context is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_preference(
    context: *const c_void,
    shape: *const lava_shape,
    tau1: f64,
    tau2: f64,
    sequences: *const lava_cuda_preference_sequence,
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
            check_batch(&shape, n_sequences)?;
            check_tau(tau1, tau2)?;
            let (n_items, n_kv_heads) = (n_sequences, shape.n_kv_heads as u32);
            let batch = PreferenceArgs { status, tau1, tau2, n_items, n_kv_heads, ..PreferenceArgs::EMPTY };
            let sequence = |i| {
                let s = nth(sequences, i)?;
                ensure(s.layer <= 0xffff, ErrorKind::Argument, c"layer")?;
                check_pointer(s.stats, c"stats")?;
                check_pointer(s.weight, c"weight")?;
                call.memory()
                    .reads(s.stats, 2 * shape.n_kv_heads, c"stats")
                    .writes(s.weight, 1, c"weight")
                    .check()?;
                Ok(PreferenceItem { stats: s.stats, weight: s.weight, layer: s.layer, reserved: 0 })
            };
            call.run(batch, n_sequences, &sequence)
        })
    }
}

/// lava_mean_over_heads (lava_methods.h) for layers or sequences side by side: the same bits as on the CPU.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads and window are used.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 16 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. Where scores are not finite ("scores"), the sequence's must not be used.
/// Errors: as lava_cuda_preference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_mean_over_heads(
    context: *const c_void,
    shape: *const lava_shape,
    sequences: *const lava_cuda_mean_sequence,
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
            let longest = dense_shape(shape)?;
            check_batch(&longest, n_sequences)?;
            let batch = MeanArgs {
                status,
                n_items: n_sequences,
                n_kv_heads: longest.n_kv_heads as u32,
                max_prefix: longest.prefix_len() as u32,
                ..MeanArgs::EMPTY
            };
            let sequence = |i| {
                let s = nth(sequences, i)?;
                ensure(s.reserved == 0, ErrorKind::StructSize, c"reserved")?;
                let shape = shorter(&longest, s.n_tokens, s.layer)?;
                in_layer(&shape, || {
                    check_scores(s.scores, &shape)?;
                    call.memory().writes(s.scores, shape.n_scores() as usize, c"scores").check()?;
                    Ok(MeanItem { scores: s.scores, prefix_len: shape.prefix_len() as u32, layer: s.layer })
                })
            };
            call.run(batch, n_sequences, &sequence)
        })
    }
}

/// What statistics are launched with: a score of another kind of attention, up to its columns.
///
/// # Safety
/// `params` must be NULL or lead to a `lava_score_params`.
unsafe fn stats_args(shape: &Shape, params: *const lava_score_params, n_sequences: u32) -> Result<ScoreArgs> {
    // SAFETY: the caller's promise.
    let params = unsafe { score_params(params, shape.n_q_heads)? };
    let args = args_of(shape, &params, n_sequences)?;
    Ok(ScoreArgs {
        attention: SPREAD,
        pool: Pool::Avg as i32,
        group_reduce: GroupReduce::Mean as i32,
        value_weight: ValueWeight::None as i32,
        smoothing: 0.0,
        ..args
    })
}
