//! From scores to how many entries each layer and head keeps.

use super::*;
use crate::backend::cuda::plan::DeviceSelectParams;
use crate::backend::cuda::plan::{EntropyArgs, EntropyItem, GlobalArgs, GlobalItem, ShareArgs, ShareItem};
use crate::budget::MAX_LAYERS;
use crate::params::Alike;

/// One layer, of one sequence, of lava_cuda_entropy. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_entropy_sequence {
    /// sizeof(lava_cuda_entropy_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's.
    pub n_tokens: u32,
    /// For lava_cuda_result, below 65536.
    pub layer: u32,
    /// 0.
    pub reserved: u32,
    /// Device memory, f32 [n_kv_heads, n_tokens - window], not negative.
    pub scores: *const f32,
    /// Device memory; receives the normalised entropy.
    pub entropy: *mut f64,
    /// NULL, or device memory; receives the sum of the scores.
    pub mass: *mut f64,
}

/// One sequence of lava_cuda_layer_entries.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_entries_sequence {
    /// sizeof(lava_cuda_entries_sequence), the same for all of a call.
    pub struct_size: u32,
    /// Layers that share, at most LAVA_MAX_LAYERS.
    pub n_layers: u32,
    /// Prefix entries to keep over all layers, as in lava_layer_entries.
    pub total: u64,
    /// Device memory, n_layers numbers, finite and not negative.
    pub weights: *const f64,
    /// Device memory, n_layers numbers below 2^32: the most entries that each layer can keep. 0 for a layer that takes
    /// no part.
    pub capacities: *const u64,
    /// NULL, or device memory, n_layers numbers: the fewest entries that each layer keeps.
    pub minimums: *const u64,
    /// Device memory; receives n_layers numbers, as that of lava_layer_entries does.
    pub entries: *mut u64,
}

/// One sequence of lava_cuda_global_entries. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_global_sequence {
    /// sizeof(lava_cuda_global_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's.
    pub n_tokens: u32,
    /// Prefix entries to keep over all layers, as in lava_global_entries.
    pub total: u64,
    /// Device memory, n_layers pointers to device memory: each layer's f32 [n_kv_heads, n_tokens - window], finite.
    pub scores: *const *const f32,
    /// NULL, or device memory, as in lava_select_params.
    pub protected_mask: *const u8,
    /// Device memory; receives n_layers numbers, as that of lava_global_entries does. Where there is a fault, what
    /// lava_cuda_select refuses.
    pub entries: *mut u64,
    /// Device memory; receives n_layers * n_kv_heads numbers, as that of lava_global_entries does. Untouched where
    /// there is a fault.
    pub head_weights: *mut f64,
}

layout! {
    lava_cuda_global_sequence: 48, 48 {
        struct_size @ 0, n_tokens @ 4, total @ 8, scores @ 16, protected_mask @ 24, entries @ 32, head_weights @ 40,
    }
    lava_cuda_entropy_sequence: 40, 40 {
        struct_size @ 0, n_tokens @ 4, layer @ 8, reserved @ 12, scores @ 16, entropy @ 24, mass @ 32,
    }
    lava_cuda_entries_sequence: 48, 48 {
        struct_size @ 0, n_layers @ 4, total @ 8, weights @ 16, capacities @ 24, minimums @ 32, entries @ 40,
    }
}

/// Bytes of device memory that lava_cuda_entropy needs as a workspace.
///
/// n_sequences: as for lava_cuda_entropy.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_entropy. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_entropy_workspace_size(
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
            tell_size(context, entropy_args(&shape, n_sequences)?, n_sequences, size)
        })
    }
}

/// lava_entropy for layers or sequences side by side: the same bits as on the CPU.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads and window are used.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_entropy_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Where scores are negative or not finite ("scores"), the sequence's numbers
///     must not be used.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_entropy(
    context: *const c_void,
    shape: *const lava_shape,
    sequences: *const lava_cuda_entropy_sequence,
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
            let mut batch = entropy_args(&longest, n_sequences)?;
            batch.status = call.status;
            let sequence = |i| {
                let s = nth(sequences, i)?;
                ensure(s.reserved == 0, ErrorKind::StructSize, c"reserved")?;
                let shape = shorter(&longest, s.n_tokens, s.layer)?;
                in_layer(&shape, || {
                    check_scores(s.scores, &shape)?;
                    check_pointer(s.entropy, c"entropy")?;
                    check_optional(s.mass, c"mass")?;
                    call.memory()
                        .reads(s.scores, shape.n_scores() as usize, c"scores")
                        .writes(s.entropy, 1, c"entropy")
                        .writes(s.mass, 1, c"mass")
                        .check()?;
                    Ok(EntropyItem {
                        scores: s.scores,
                        entropy: s.entropy,
                        mass: s.mass,
                        prefix_len: shape.prefix_len() as u32,
                        layer: s.layer,
                    })
                })
            };
            call.run(batch, n_sequences, &sequence)
        })
    }
}

/// lava_layer_entries for sequences side by side: the same numbers as on the CPU, without waiting for weights that are
/// on the device. The layers may be unlike: what counts is what they can keep.
///
/// context: from lava_cuda_init.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, 48 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; may be NULL for a single one.
/// status, stream: as for lava_cuda_score. Weights that are negative or not finite are "weights". A total below the
///     minimums' sum, minimums above a capacity, and capacities of 2^32 or more, are LAVA_ERR_BUDGET, "total". The
///     entries are then what lava_cuda_select refuses.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, STATE, CONTEXT: nothing was launched.
///     LAUNCH. Any thread on which the context is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_layer_entries(
    context: *const c_void,
    sequences: *const lava_cuda_entries_sequence,
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
            check_n_sequences(n_sequences)?;
            let batch = ShareArgs { status, n_items: n_sequences, ..ShareArgs::EMPTY };
            let sequence = |i| {
                let s = nth(sequences, i)?;
                let n = s.n_layers as usize;
                ensure(n > 0 && n <= MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
                check_pointer(s.weights, c"weights")?;
                check_pointer(s.capacities, c"capacities")?;
                check_optional(s.minimums, c"minimums")?;
                check_pointer(s.entries, c"entries")?;
                call.memory()
                    .reads(s.weights, n, c"weights")
                    .reads(s.capacities, n, c"capacities")
                    .reads(s.minimums, n, c"minimums")
                    .writes(s.entries, n, c"entries")
                    .check()?;
                Ok(ShareItem {
                    weights: s.weights,
                    capacities: s.capacities,
                    minimums: s.minimums,
                    entries: s.entries,
                    total: s.total,
                    n_layers: s.n_layers,
                    round_up: 0,
                })
            };
            call.run(batch, n_sequences, &sequence)
        })
    }
}

/// Bytes of device memory that lava_cuda_global_entries needs as a workspace.
///
/// shape, n_layers, n_sequences: as for lava_cuda_global_entries.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_global_entries. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_global_entries_workspace_size(
    context: *const c_void,
    shape: *const lava_shape,
    n_layers: u32,
    n_sequences: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context, shape, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = shape_without_sliding(shape)?;
            tell_size(context, global_args(&shape, n_layers, n_sequences)?, n_sequences, size)
        })
    }
}

/// lava_global_entries for sequences side by side: the same numbers as on the CPU. With them lava_cuda_select keeps
/// exactly the largest scores of the whole model: a layer's n_entries is &entries[l], its head_weights head_weights + l
/// * n_kv_heads.
///
/// context: from lava_cuda_init.
/// shape: of every layer; n_tokens is that of the longest sequence. n_kv_heads is at most LAVA_CUDA_MAX_HEADS, n_layers
///     * n_kv_heads * n_tokens below 2^32.
/// n_layers: at most LAVA_MAX_LAYERS.
/// params: may be NULL. As for lava_global_entries, but protected_mask is NULL here: each sequence has its own.
/// sequences: host memory, n_sequences of them, read during the call.
/// workspace: device memory, lava_cuda_global_entries_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score. Scores that are not finite are "scores"; a total below what the heads are
///     promised is LAVA_ERR_BUDGET, "total", of layer 0.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE, OVERFLOW, UNSUPPORTED, STATE, CONTEXT:
///     nothing was launched. LAUNCH: some launches may have been. Any thread on which the context is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_global_entries(
    context: *const c_void,
    shape: *const lava_shape,
    n_layers: u32,
    params: *const lava_select_params,
    sequences: *const lava_cuda_global_sequence,
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
            let mut batch = global_args(&longest, n_layers, n_sequences)?;
            crate::select::check_global(&Alike(longest, n_layers as usize), &params)?;
            batch.status = call.status;
            let n_heads = n_layers as usize * longest.n_kv_heads;
            let sequence = |i| {
                let s = nth(sequences, i)?;
                let shape = shorter(&longest, s.n_tokens, longest.layer)?;
                check_pointer(s.scores, c"scores")?;
                check_pointer(s.entries, c"entries")?;
                check_pointer(s.head_weights, c"head_weights")?;
                call.memory()
                    .reads(s.scores, n_layers as usize, c"scores")
                    .reads(s.protected_mask, shape.prefix_len(), c"protected_mask")
                    .writes(s.entries, n_layers as usize, c"entries")
                    .writes(s.head_weights, n_heads, c"head_weights")
                    .check()?;
                Ok(GlobalItem {
                    scores: s.scores,
                    entries: s.entries,
                    head_weights: s.head_weights,
                    params: DeviceSelectParams { protected_mask: s.protected_mask, ..device_params(&params) },
                    total: s.total,
                    prefix_len: shape.prefix_len() as u32,
                    reserved: 0,
                })
            };
            call.run(batch, n_sequences, &sequence)
        })
    }
}

fn global_args(shape: &Shape, n_layers: u32, n_sequences: u32) -> Result<GlobalArgs> {
    check_batch(shape, n_sequences)?;
    ensure((1..=MAX_LAYERS as u32).contains(&n_layers), ErrorKind::Shape, c"n_layers")?;
    check_selection(shape)?;
    let rows = shape.n_kv_heads as u64 * shape.n_tokens as u64 * n_layers as u64;
    ensure(rows <= u32::MAX as u64, ErrorKind::Overflow, c"n_layers")?;
    Ok(GlobalArgs {
        n_items: n_sequences,
        n_layers,
        n_kv_heads: shape.n_kv_heads as u32,
        max_prefix: shape.prefix_len() as u32,
        ..GlobalArgs::EMPTY
    })
}

fn entropy_args(shape: &Shape, n_sequences: u32) -> Result<EntropyArgs> {
    check_batch(shape, n_sequences)?;
    let (n_items, n_kv_heads) = (n_sequences, shape.n_kv_heads as u32);
    Ok(EntropyArgs { n_items, n_kv_heads, max_prefix: shape.prefix_len() as u32, ..EntropyArgs::EMPTY })
}
