//! From scores and numbers of entries to what is kept.

use super::*;
use crate::backend::cuda::plan::{DeviceSelectParams, SelectArgs, SelectItem};
use crate::params::{HeadFloor, SelectParams};

/// Most KV heads of lava_cuda_select and of a cascade.
pub const LAVA_CUDA_MAX_HEADS: u32 = 1024;

/// One layer, of one sequence, of lava_cuda_select. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_select_sequence {
    /// sizeof(lava_cuda_select_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's.
    pub n_tokens: u32,
    /// For lava_cuda_result, below 65536.
    pub layer: u32,
    /// 0.
    pub reserved: u32,
    /// Device memory, f32 [n_kv_heads, n_tokens - window], finite.
    pub scores: *const f32,
    /// Device memory, one number: prefix entries to keep. Read when the kernels run, so nobody waits for
    /// lava_cuda_layer_entries.
    pub n_entries: *const u64,
    /// NULL, or device memory, as in lava_select_params.
    pub protected_mask: *const u8,
    /// NULL, or device memory, n_kv_heads numbers, as in lava_select_params.
    pub head_weights: *const f64,
    /// Device memory with room for min(*n_entries, all prefix entries) + n_kv_heads * min(window, n_tokens) positions;
    /// receives them, as that of lava_select does. For lava_cuda_compact they are the rows.
    pub kept_indices: *mut u32,
    /// Device memory; receives n_kv_heads + 1 entries.
    pub cu_kept: *mut u32,
    /// NULL, or device memory; receives the report, struct_size included. The evicted share is within 1e-12 of the
    /// CPU's.
    pub selection: *mut lava_selection,
}

layout! {
    lava_cuda_select_sequence: 72, 72 {
        struct_size @ 0, n_tokens @ 4, layer @ 8, reserved @ 12, scores @ 16, n_entries @ 24, protected_mask @ 32,
        head_weights @ 40, kept_indices @ 48, cu_kept @ 56, selection @ 64,
    }
}

/// Bytes of device memory that lava_cuda_select needs as a workspace.
///
/// shape, n_sequences: as for lava_cuda_select.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_select. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_select_workspace_size(
    context: *const c_void,
    shape: *const lava_shape,
    n_sequences: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context, shape, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = shape_without_sliding(shape)?;
            tell_size(context, select_args(&shape, n_sequences)?, n_sequences, size)
        })
    }
}

/// lava_select for layers or sequences side by side: the same kept sets as on the CPU, bit for bit.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads is at most LAVA_CUDA_MAX_HEADS, and n_kv_heads *
///     n_tokens below 2^32.
/// params: may be NULL. protected_mask and head_weights are NULL here: each sequence has its own.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_select_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Nothing is written for a sequence with scores that are not finite
///     ("scores"), weights that are negative or not finite ("weights"), or fewer entries than are protected
///     (LAVA_ERR_BUDGET, "total").
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_select(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_select_params,
    sequences: *const lava_cuda_select_sequence,
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
            let longest = shape_without_sliding(shape)?;
            let params = select_params(params)?;
            let mut batch = select_args(&longest, n_sequences)?;
            batch.status = call.status;
            let sequence = |i| {
                let s = nth(sequences, i)?;
                ensure(s.reserved == 0, ErrorKind::StructSize, c"reserved")?;
                let shape = shorter(&longest, s.n_tokens, s.layer)?;
                in_layer(&shape, || select_sequence(&shape, &params, &s, call.memory()))
            };
            call.run(batch, n_sequences, &sequence)
        })
    }
}

/// A sequence with its own shape; what the call writes is in `memory`.
fn select_sequence(
    shape: &Shape,
    params: &SelectParams,
    s: &lava_cuda_select_sequence,
    memory: Memory,
) -> Result<SelectItem> {
    check_scores(s.scores, shape)?;
    check_pointer(s.n_entries, c"n_entries")?;
    check_optional(s.head_weights, c"head_weights")?;
    check_pointer(s.kept_indices, c"kept_indices")?;
    check_pointer(s.cu_kept, c"cu_kept")?;
    check_optional(s.selection, c"selection")?;
    // Only the device knows how many rows are written; at least the windows are.
    memory
        .reads(s.scores, shape.n_scores() as usize, c"scores")
        .reads(s.n_entries, 1, c"n_entries")
        .reads(s.protected_mask, shape.prefix_len(), c"protected_mask")
        .reads(s.head_weights, shape.n_kv_heads, c"head_weights")
        .writes(s.kept_indices, shape.n_kv_heads * shape.window_rows(), c"kept_indices")
        .writes(s.cu_kept, shape.n_kv_heads + 1, c"cu_kept")
        .writes(s.selection, 1, c"selection")
        .check()?;
    Ok(SelectItem {
        scores: s.scores,
        n_entries: s.n_entries,
        kept_indices: s.kept_indices,
        cu_kept: s.cu_kept,
        selection: s.selection as *mut c_void,
        params: DeviceSelectParams {
            protected_mask: s.protected_mask,
            head_weights: s.head_weights,
            ..device_params(params)
        },
        prefix_len: shape.prefix_len() as u32,
        window_rows: shape.window_rows() as u32,
        layer: s.layer,
        reserved: 0,
    })
}

/// The options, except the memory that they lead to.
pub(super) fn device_params(params: &SelectParams) -> DeviceSelectParams {
    DeviceSelectParams {
        protected_mask: core::ptr::null(),
        head_floor: params.head_floor as u32,
        // Not used, and perhaps not a number, without a floor.
        alpha_billionths: match params.head_floor {
            HeadFloor::None => 0,
            _ => crate::budget::alpha_units(params.alpha) as u32,
        },
        n_sink: params.n_sink as u32,
        head_min: params.head_min as u32,
        head_weights: core::ptr::null(),
    }
}

/// Checks that a selection's counts fit into the kernels' types.
pub(super) fn check_selection(shape: &Shape) -> Result<()> {
    ensure(shape.n_kv_heads <= LAVA_CUDA_MAX_HEADS as usize, ErrorKind::Shape, c"n_kv_heads")?;
    let rows = shape.n_kv_heads as u64 * shape.n_tokens as u64;
    ensure(rows <= u32::MAX as u64, ErrorKind::Overflow, c"n_tokens")
}

fn select_args(shape: &Shape, n_sequences: u32) -> Result<SelectArgs> {
    check_batch(shape, n_sequences)?;
    check_selection(shape)?;
    Ok(SelectArgs {
        n_items: n_sequences,
        n_kv_heads: shape.n_kv_heads as u32,
        max_prefix: shape.prefix_len() as u32,
        ..SelectArgs::EMPTY
    })
}
