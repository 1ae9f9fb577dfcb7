//! Compress while prefilling, without the host waiting between layers.

use super::*;
use crate::backend::cuda::plan::{CascadeArgs, CascadeItem, DeviceSelectParams};
use crate::params::{Alike, LayerShare};

/// The host's part of a cascade: in the caller's memory, filled by lava_cuda_cascade_init. It may be moved; of two
/// copies, only one may be pushed.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_cascade {
    /// sizeof(lava_cuda_cascade), set by the caller.
    pub struct_size: u32,
    /// Layers pushed so far.
    pub n_pushed: u32,
    /// As given to lava_cuda_cascade_init.
    pub n_layers: u32,
    /// The shape's.
    pub n_kv_heads: u32,
    /// Prefix tokens of each head.
    pub prefix_len: u32,
    /// Window tokens of each head.
    pub window_rows: u32,
    /// As in lava_cascade_params.
    pub layers: i32,
    /// As in lava_select_params.
    pub head_floor: i32,
    /// alpha of lava_select_params, in billionths.
    pub alpha_billionths: u32,
    /// As in lava_select_params.
    pub n_sink: u32,
    /// As in lava_select_params.
    pub head_min: u32,
    /// As in lava_cascade_params, but at least 1.
    pub evict_every: u32,
    /// As given to lava_cuda_cascade_init.
    pub total: u64,
    /// As in lava_select_params, on the device.
    pub protected_mask: *const u8,
    /// As in lava_select_params, on the device.
    pub head_weights: *const f64,
    /// As given to lava_cuda_cascade_init.
    pub state: *mut c_void,
}

/// Where a layer of a cascade lies on the device after the last push: inside the state, and valid until the next push
/// runs.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_cascade_layer {
    /// sizeof(lava_cuda_cascade_layer), set by the caller.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// One number: kept_indices and rows of this layer begin so many entries after the pointers below. rows_offset of
    /// lava_cuda_compact, kept_offset of lava_cuda_attend.
    pub offset: *const u64,
    /// True token positions kept by each head, ascending, window included.
    pub kept_indices: *const u32,
    /// Exclusive prefix sum of the kept counts, n_kv_heads + 1 entries.
    pub cu_kept: *const u32,
    /// For lava_cuda_compact: which rows are kept of those that the caller's cache holds; see lava_cascade_layer.
    pub rows: *const u32,
    /// Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
    pub cu_rows: *const u32,
    /// One number, like the three below; see lava_cascade_layer.
    pub n_entries: *const u64,
    /// Normalised entropy of the layer's scores; 0 where layers do not share by it.
    pub entropy: *const f64,
    /// Sum of the layer's scores.
    pub mass: *const f64,
    /// Share of mass evicted so far, within 1e-12 of the CPU's.
    pub evicted_share: *const f64,
}

/// One sequence of lava_cuda_cascade_push. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_push_sequence {
    /// sizeof(lava_cuda_push_sequence), the same for all of a call.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// From lava_cuda_cascade_init, a different one for each sequence; counts the push. Unchanged on error.
    pub cascade: *mut lava_cuda_cascade,
    /// Device memory, f32 [n_kv_heads, n_tokens - window] of the cascade's next layer, not negative.
    pub scores: *const f32,
    /// With LAVA_LAYERS_WEIGHTS device memory, one number, finite and not negative: the layer's weight. Else NULL.
    pub weight: *const f64,
}

layout! {
    lava_cuda_push_sequence: 32, 32 { struct_size @ 0, reserved @ 4, cascade @ 8, scores @ 16, weight @ 24 }
    lava_cuda_cascade: 80, 80 {
        struct_size @ 0, n_pushed @ 4, n_layers @ 8, n_kv_heads @ 12, prefix_len @ 16, window_rows @ 20, layers @ 24,
        head_floor @ 28, alpha_billionths @ 32, n_sink @ 36, head_min @ 40, evict_every @ 44, total @ 48,
        protected_mask @ 56, head_weights @ 64, state @ 72,
    }
    lava_cuda_cascade_layer: 80, 80 {
        struct_size @ 0, reserved @ 4, offset @ 8, kept_indices @ 16, cu_kept @ 24, rows @ 32, cu_rows @ 40,
        n_entries @ 48, entropy @ 56, mass @ 64, evicted_share @ 72,
    }
}

/// Bytes of device memory that a cascade's state needs.
///
/// shape: of every layer; n_kv_heads, n_tokens and window are used.
/// n_layers, total, params, cascade_params: as for lava_cuda_cascade_init.
/// size: receives the bytes; untouched on error.
/// Errors: as lava_cuda_cascade_init. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_cascade_state_size(
    shape: *const lava_shape,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    cascade_params: *const lava_cascade_params,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let cascade = new(shape, n_layers, total, params, cascade_params)?;
            put(size, c"size", || Ok(item_of(&cascade).state_size()))
        })
    }
}

/// Bytes of device memory that lava_cuda_cascade_push needs as a workspace, enough for every layer.
///
/// context: from lava_cuda_init.
/// cascade: from lava_cuda_cascade_init. A call with cascades of several shapes needs the largest of their sizes.
/// n_sequences: as for lava_cuda_cascade_push.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, STATE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_cascade_workspace_size(
    context: *const c_void,
    cascade: *const lava_cuda_cascade,
    n_sequences: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context, cascade, size and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            check_n_sequences(n_sequences)?;
            let batch = CascadeArgs::EMPTY.with(&item_of(&opened(cascade)?));
            tell_size(context, CascadeArgs { n_items: n_sequences, ..batch }, n_sequences, size)
        })
    }
}

/// lava_cascade_init on the device.
///
/// context: from lava_cuda_init.
/// shape: of every layer; n_kv_heads, n_tokens and window are used. n_kv_heads is at most LAVA_CUDA_MAX_HEADS,
///     n_kv_heads * n_tokens below 2^32.
/// n_layers, total: as for lava_cascade_init.
/// params: may be NULL. As for lava_cascade_init, but protected_mask and head_weights are device memory. They are not
///     copied: they must stay until the last push has run.
/// cascade_params: may be NULL.
/// state: device memory, lava_cuda_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN, the cascade's until
///     nobody looks at its layers any more.
/// cascade: receives the host's part; untouched on error.
/// status, stream: as for lava_cuda_score. A total below what the mask protects is LAVA_ERR_BUDGET, "total", of layer
///     0; pushes do nothing then.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, ALIGNMENT, OVERLAP, WORKSPACE (state_size), OVERFLOW, BUDGET,
///     UNSUPPORTED, STATE, CONTEXT: nothing was launched. LAUNCH. Any thread on which the context is current, but one
///     call on a cascade at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_cascade_init(
    context: *const c_void,
    shape: *const lava_shape,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    cascade_params: *const lava_cascade_params,
    state: *mut c_void,
    state_size: usize,
    cascade: *mut lava_cuda_cascade,
    status: *mut u64,
    stream: *mut c_void,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let cuda = current(context)?;
            check_out_struct(cascade, c"cascade")?;
            let made = lava_cuda_cascade { state, ..new(shape, n_layers, total, params, cascade_params)? };
            check_pointer(status, c"status")?;
            check_device_memory(state).map_err(|e| e.of(c"state"))?;
            memory_of(&made, Memory::default())
                .writes(state as *mut u8, state_size, c"state")
                .writes(status, 1, c"status")
                .check()?;
            let one = item_of(&made);
            ensure(state_size >= one.state_size(), ErrorKind::Workspace, c"state_size")?;
            cuda.begin_cascade(&CascadeArgs { one, status, ..CascadeArgs::EMPTY }, stream)?;
            write_struct(cascade, made);
            Ok(())
        })
    }
}

/// lava_cascade_push on the device, for sequences side by side: after it has run, every layer so far keeps what it
/// keeps on the CPU, bit for bit.
///
/// context: from lava_cuda_init.
/// sequences: host memory, n_sequences of them, read during the call. Their cascades may be of any shapes, each at a
///     layer of its own.
/// workspace: device memory, lava_cuda_cascade_workspace_size bytes, as for lava_cuda_score.
/// status, stream: as for lava_cuda_score; the stream of the calls before, or one that waits for it. A fault in a
///     layer's scores or weights ("scores", "weights"), or entries that cannot hold what is protected
///     (LAVA_ERR_BUDGET), makes this push and all later ones of the cascade do nothing.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, ALIGNMENT, OVERLAP, WORKSPACE, STATE (complete, or not from
///     lava_cuda_cascade_init), CONTEXT: nothing was launched. LAUNCH: some launches may have been, and the cascades
///     must not be used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_cascade_push(
    context: *const c_void,
    sequences: *const lava_cuda_push_sequence,
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
            let sequence = |i| {
                let s: lava_cuda_push_sequence = nth(sequences, i)?;
                ensure(s.reserved == 0, ErrorKind::StructSize, c"reserved")?;
                let own = opened(s.cascade)?;
                ensure(own.n_pushed < own.n_layers, ErrorKind::State, c"cascade")?;
                if own.prefix_len > 0 {
                    check_pointer(s.scores, c"scores")?;
                }
                let weighted = own.layers == LAVA_LAYERS_WEIGHTS;
                ensure(weighted || s.weight.is_null(), ErrorKind::Argument, c"weight")?;
                if weighted {
                    check_pointer(s.weight, c"weight")?;
                }
                let item = CascadeItem { scores: s.scores, weight: s.weight, ..item_of(&own) };
                let entries = own.n_kv_heads as usize * own.prefix_len as usize;
                memory_of(&own, call.memory())
                    .reads(s.scores, entries, c"scores")
                    .reads(s.weight, 1, c"weight")
                    .writes(own.state as *mut u8, item.state_size(), c"state")
                    .check()?;
                Ok(item)
            };
            let mut batch = CascadeArgs { status, ..CascadeArgs::EMPTY };
            for i in 0..n_sequences as usize {
                batch = batch.with(&sequence(i)?);
            }
            call.run(batch, n_sequences, &sequence)?;
            for i in 0..n_sequences as usize {
                let cascade = nth(sequences, i)?.cascade;
                let own = opened(cascade)?;
                write_struct(cascade, lava_cuda_cascade { n_pushed: own.n_pushed + 1, ..own });
            }
            Ok(())
        })
    }
}

/// Where a layer is after the last push.
///
/// cascade: from lava_cuda_cascade_init, with pushes.
/// layer: below n_pushed.
/// out: receives pointers to device memory; untouched on error. What they lead to is valid once the last push has run.
/// Errors: NULL, STRUCT_SIZE, STATE (not from lava_cuda_cascade_init, or no such layer yet). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_cascade_get(
    cascade: *const lava_cuda_cascade,
    layer: u32,
    out: *mut lava_cuda_cascade_layer,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: cascade, out and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let own = opened(cascade)?;
            check_out_struct(out, c"out")?;
            ensure(layer < own.n_pushed, ErrorKind::State, c"layer")?;
            let place = CascadeItem { layer: own.n_pushed - 1, ..item_of(&own) }.place(layer);
            let found = lava_cuda_cascade_layer {
                struct_size: 0,
                reserved: 0,
                offset: place.offset,
                kept_indices: place.kept_indices,
                cu_kept: place.cu_kept,
                rows: place.rows,
                cu_rows: place.cu_rows,
                n_entries: place.n_entries,
                entropy: place.entropy,
                mass: place.mass,
                evicted_share: place.evicted_share,
            };
            write_struct(out, found);
            Ok(())
        })
    }
}

/// The host's part of a cascade that has no memory yet.
///
/// # Safety
/// Every pointer must be NULL or lead to a struct of its type.
unsafe fn new(
    shape: *const lava_shape,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    cascade_params: *const lava_cascade_params,
) -> Result<lava_cuda_cascade> {
    // SAFETY: the caller's promise. What the options of selection lead to is on the device, and is left out where they
    // are checked.
    let (shape, memory, select, cascade) = unsafe {
        let shape = shape_without_sliding(shape)?;
        let given = read_option(params, c"params")?;
        let on_host = given.map(|given| lava_select_params {
            protected_mask: core::ptr::null(),
            head_weights: core::ptr::null(),
            ..given
        });
        let select = checked::select_params(on_host.as_ref().map_or(core::ptr::null(), |p| p), 0, 0)?;
        let memory =
            given.map_or((core::ptr::null(), core::ptr::null()), |p| (p.protected_mask, p.head_weights));
        (shape, memory, select, checked::cascade_params(cascade_params)?)
    };
    let (protected_mask, head_weights) = memory;
    check_optional(head_weights, c"head_weights")?;
    if cascade.layers == LayerShare::Global {
        ensure(head_weights.is_null(), ErrorKind::Argument, c"head_weights")?;
    }
    // Whatever the CPU's cascade refuses.
    crate::cascade::state_size(&Alike(shape, n_layers as usize), total, &select, &cascade)?;
    check_selection(&shape)?;
    let device = device_params(&select);
    Ok(lava_cuda_cascade {
        struct_size: size_of::<lava_cuda_cascade>() as u32,
        n_pushed: 0,
        n_layers,
        n_kv_heads: shape.n_kv_heads as u32,
        prefix_len: shape.prefix_len() as u32,
        window_rows: shape.window_rows() as u32,
        layers: cascade.layers as i32,
        head_floor: select.head_floor as i32,
        alpha_billionths: device.alpha_billionths,
        n_sink: device.n_sink,
        head_min: device.head_min,
        evict_every: cascade.evict_every.max(1) as u32,
        total,
        protected_mask,
        head_weights,
        state: core::ptr::null_mut(),
    })
}

/// A cascade that `new` made, as far as can be told.
///
/// # Safety
/// `cascade` must be NULL or lead to a `lava_cuda_cascade`.
unsafe fn opened(cascade: *const lava_cuda_cascade) -> Result<lava_cuda_cascade> {
    // SAFETY: the caller's promise.
    let own = unsafe { read_struct(cascade, c"cascade")? };
    let layers = 1..=crate::budget::MAX_LAYERS as u32;
    let heads = 1..=LAVA_CUDA_MAX_HEADS;
    let fine = layers.contains(&own.n_layers)
        && heads.contains(&own.n_kv_heads)
        && own.n_pushed <= own.n_layers
        && !own.state.is_null()
        && own.evict_every > 0;
    ensure(fine, ErrorKind::State, c"cascade")?;
    Ok(own)
}

/// The memory that its options lead to, too.
fn memory_of(own: &lava_cuda_cascade, memory: Memory) -> Memory {
    let n_heads = own.n_kv_heads as usize * own.n_layers as usize;
    memory.reads(own.protected_mask, own.prefix_len as usize, c"protected_mask").reads(
        own.head_weights,
        n_heads,
        c"head_weights",
    )
}

/// What its kernels are given for its next push, except what that push brings.
fn item_of(own: &lava_cuda_cascade) -> CascadeItem {
    CascadeItem {
        scores: core::ptr::null(),
        state: own.state,
        params: DeviceSelectParams {
            protected_mask: own.protected_mask,
            head_floor: own.head_floor as u32,
            alpha_billionths: own.alpha_billionths,
            n_sink: own.n_sink,
            head_min: own.head_min,
            head_weights: own.head_weights,
        },
        total: own.total,
        layer: own.n_pushed,
        n_layers: own.n_layers,
        n_kv_heads: own.n_kv_heads,
        prefix_len: own.prefix_len,
        window_rows: own.window_rows,
        layers: own.layers as u32,
        evict_every: own.evict_every,
        reserved: 0,
        weight: core::ptr::null(),
    }
}
