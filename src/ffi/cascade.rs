//! The cascade: compress while prefilling.

use core::ffi::c_void;

use super::budgets::{heads_and_prefix, reads_options};
use super::call::*;
use super::checked::{self, ShapeArray};
use super::types::*;
use super::versioned::{check_out_struct, write_struct};
use crate::cascade::{self, Cascade, CascadeView};
use crate::error::{ErrorKind, ensure};
use crate::workspace::{Carver, Reader};

/// Bytes of state that a cascade needs: about 12 per prefix entry of the total, and its windows.
///
/// shapes, n_shapes, n_layers: as in lava_total_entries.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// params, cascade: may be NULL.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT, NONFINITE, BUDGET (what is protected exceeds it). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_state_size(
    shapes: *const lava_shape,
    n_shapes: u32,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    cascade: *const lava_cascade_params,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let layers = ShapeArray::new(shapes, n_shapes, n_layers)?;
            let (n_heads, prefix_len) = heads_and_prefix(&layers);
            let params = checked::select_params(params, n_heads, prefix_len)?;
            let cascade = checked::cascade_params(cascade)?;
            put(size, c"size", || cascade::state_size(&layers, total, &params, &cascade))
        })
    }
}

/// Starts a cascade: compress while prefilling, layer by layer, instead of at the end.
///
/// shapes, n_shapes, n_layers: as in lava_total_entries: layers in the order in which they will be pushed.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// params: may be NULL. Floors, sinks, the protected mask, head weights. All are copied.
/// cascade: may be NULL. How the layers share the total, and how often the caller evicts.
/// state: lava_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it, start it
///     again or copy it at any time: it holds no resources and no pointers.
/// Errors: as lava_cascade_state_size, and ALIGNMENT, OVERLAP, WORKSPACE. Any thread, but one call on a state at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_init(
    shapes: *const lava_shape,
    n_shapes: u32,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    cascade: *const lava_cascade_params,
    state: *mut c_void,
    state_size: usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let layers = ShapeArray::new(shapes, n_shapes, n_layers)?;
            let (n_heads, prefix_len) = heads_and_prefix(&layers);
            let params = checked::select_params(params, n_heads, prefix_len)?;
            let cascade = checked::cascade_params(cascade)?;
            reads_options(&layers, &params, (n_heads, prefix_len))
                .writes(state as *mut u8, state_size, c"state")
                .check_layers(&layers)?;
            let needed = cascade::state_size(&layers, total, &params, &cascade)?;
            ensure(state_size >= needed, ErrorKind::Workspace, c"state")?;
            let mut carver = workspace(state, state_size).map_err(|e| e.of(c"state"))?;
            Cascade::new(&layers, total, &params, &cascade, &mut carver)?;
            Ok(())
        })
    }
}

/// Takes in the next layer's scores and decides again what every layer so far keeps.
///
/// After it, lava_cascade_get says for each layer 0 to l which rows the caller's cache must keep; lava_compact moves them, at once or
/// as often as evict_every of lava_cascade_params says. A layer without KV heads is skipped.
/// After the last layer's push the kept sets are exactly, bit for bit, those of lava_layer_entries and lava_select
/// on all layers at once. Before it, a layer may hold one entry more than its share, and what a head
/// floor may still ask for (alpha of the total, and one entry per head and layer).
///
/// Under LAVA_LAYERS_GLOBAL the final kept sets are those of lava_global_entries, and before it all layers hold at most `total`
/// together, plus what a floor or head_min may still ask for.
///
/// shape: the layer's, as lava_cascade_init was given it.
/// scores: f32, lava_n_scores(shape) of them, not negative (ARGUMENT).
/// weight: NULL; under LAVA_LAYERS_WEIGHTS the layer's weight, finite and not negative.
/// Errors: NULL, STRUCT_SIZE, SHAPE (not the layer that the cascade expects), OVERFLOW, INDICES, ALIGNMENT, OVERLAP, WORKSPACE, STATE (not
///     initialised or complete), NONFINITE (naming layer and head), ARGUMENT (also a weight where none is used, or none where it is). The
///     cascade is unchanged on error. Any thread, but one call on a state at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_push(
    state: *mut c_void,
    state_size: usize,
    shape: *const lava_shape,
    scores: *const f32,
    weight: *const f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says, state to what lava_cascade_init and this function have
    // written: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            let mut carver = Carver::reopen_raw(state as *mut u8, state_size).map_err(|e| e.of(c"state"))?;
            let mut cascade = Cascade::reopen(&mut carver).map_err(|e| e.of(c"state"))?;
            Memory::default()
                .reads(scores, shape.n_scores() as usize, c"scores")
                .reads(weight, 1, c"weight")
                .reads_rows(&shape)
                .writes(state as *mut u8, state_size, c"state")
                .check()?;
            let weight = if weight.is_null() { None } else { Some(slice(weight, 1, c"weight")?[0]) };
            cascade.push(&shape, super::budgets::scores_of(&shape, scores)?, weight)
        })
    }
}

/// What layer `layer` keeps after the last push, and how to get there from what the caller's cache holds.
///
/// state: only read. Pointers that earlier calls returned stay valid until the next push.
/// out: receives pointers into the state; untouched on error. That it is outside the state is not checked. A layer without KV heads
///     has no rows.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, WORKSPACE, STATE (not initialised, or that layer was not pushed yet). Any thread, several at a
///     time, but none during a push.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_get(
    state: *const c_void,
    state_size: usize,
    layer: u32,
    out: *mut lava_cascade_layer,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says, state to what lava_cascade_init and lava_cascade_push have
    // written: the caller's promise.
    unsafe {
        run(error, || {
            check_out_struct(out, c"out")?;
            let mut reader = Reader::over_raw(state as *const u8, state_size).map_err(|e| e.of(c"state"))?;
            let view = CascadeView::read(&mut reader).map_err(|e| e.of(c"state"))?;
            let got = view.layer(layer as usize)?;
            let report = lava_cascade_layer {
                struct_size: 0,
                unchanged: (got.rows.len() == *got.cu_rows.last().unwrap_or(&0) as usize) as u32,
                kept_indices: got.kept_indices.as_ptr(),
                cu_kept: got.cu_kept.as_ptr(),
                rows: got.rows.as_ptr(),
                cu_rows: got.cu_rows.as_ptr(),
                n_entries: got.n_entries,
                entropy: got.entropy,
                mass: got.mass,
                evicted_share: got.evicted_share,
            };
            write_struct(out, report);
            Ok(())
        })
    }
}
