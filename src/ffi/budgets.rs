//! Budgets: what a person asks for, and how many entries that is for the model, a layer and a head.

use core::ffi::c_void;

use super::call::*;
use super::checked::{self, ShapeArray};
use super::types::*;
use crate::error::Result;
use crate::params::{self, Layers, SelectParams, Shape};
use crate::{budget, entropy, select};

/// The budget that a ratio of the tokens means: floor(ratio * n_tokens), with the ratio in billionths, so that 0.29 of 100 is 29. Never
/// less than what every head keeps whatever is asked for (the window, protected entries, head_min), never more than n_tokens. So every
/// ratio works at every length.
///
/// shape: where layers differ, the one with the longest cache.
/// params: may be NULL.
/// ratio: in [0, 1].
/// budget: receives tokens per KV head per layer, window included; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_budget_from_ratio(
    shape: *const lava_shape,
    params: *const lava_select_params,
    ratio: f64,
    budget: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, params, budget and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                // Weights of heads say nothing about what is always kept.
                let params = checked::select_params(params, 0, shape.prefix_len())?;
                put(budget, c"budget", || Ok(params::budget_from_ratio(&shape, &params, ratio)? as u32))
            })
        })
    }
}

/// Prefix entries that a budget means for a whole model: the sum over all heads of budget - window, or of the prefix positions that a
/// later query can see where those are fewer; at most all rows. Compressing again asks for the same total.
///
/// shapes: n_shapes of them: one for each layer, or 1 that stands for all n_layers. Layers may differ in everything; one without KV heads
///     takes no part.
/// budget: average tokens kept per KV head per layer, window included. At least each window (BUDGET), unless it covers all tokens.
/// total: receives the number; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, BUDGET. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_total_entries(
    shapes: *const lava_shape,
    n_shapes: u32,
    n_layers: u32,
    budget: u32,
    total: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shapes, total and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let layers = ShapeArray::new(shapes, n_shapes, n_layers)?;
            put(total, c"total", || params::total_entries(&layers, budget as usize))
        })
    }
}

/// Normalised entropy of a layer's scores, the layer's weight when layers share a total as in LAVa.
///
///     p = scores / sum(scores)        entropy = -sum(p ln p) / ln(number of scores)
///
/// scores: f32, lava_n_scores(shape) of them, not negative (ARGUMENT). Those of dead rows do not count.
/// entropy: receives a number in [0, 1]; 0 where there is nothing to spread. The same bits on every machine.
/// mass: NULL, or receives sum(scores).
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, OVERLAP, ARGUMENT, NONFINITE. Untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_entropy(
    shape: *const lava_shape,
    scores: *const f32,
    entropy: *mut f64,
    mass: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                Memory::default()
                    .reads(scores, shape.n_scores() as usize, c"scores")
                    .reads_rows(&shape)
                    .writes(entropy, 1, c"entropy")
                    .writes(mass, 1, c"mass")
                    .check()?;
                let scores = scores_of(&shape, scores)?;
                let out = slice_mut(entropy, 1, c"entropy")?;
                let spread = entropy::entropy(&shape, scores)?;
                if !mass.is_null() {
                    slice_mut(mass, 1, c"mass")?[0] = spread.mass;
                }
                out[0] = spread.entropy;
                Ok(())
            })
        })
    }
}

/// A layer's scores; NULL where there are none.
///
/// # Safety
/// `scores` must be NULL or readable over the layer's scores for `'a`.
pub(super) unsafe fn scores_of<'a>(shape: &Shape, scores: *const f32) -> Result<&'a [f32]> {
    // SAFETY: the caller's promise.
    unsafe { some_scores(shape.n_scores(), scores) }
}

/// # Safety
/// `scores` must be NULL or readable over `n` elements for `'a`.
unsafe fn some_scores<'a>(n: u64, scores: *const f32) -> Result<&'a [f32]> {
    // SAFETY: the caller's promise.
    if n == 0 { Ok(&[]) } else { unsafe { slice(scores, n as usize, c"scores") } }
}

/// Heads of all layers, and the longest prefix.
pub(super) fn heads_and_prefix(layers: &impl Layers) -> (usize, usize) {
    (0..layers.n_layers()).fold((0, 0), |(heads, prefix), l| {
        let shape = layers.layer(l);
        let own = if shape.n_kv_heads > 0 { shape.prefix_len() } else { 0 };
        (heads + shape.n_kv_heads, prefix.max(own))
    })
}

/// What a call reads of the layers and of the options, for the check of overlaps.
pub(super) fn reads_options(
    layers: &ShapeArray,
    params: &SelectParams,
    (n_heads, prefix_len): (usize, usize),
) -> Memory {
    let (shapes, n_bytes) = layers.bytes();
    reads_params(params, (n_heads, prefix_len)).reads(shapes, n_bytes, c"shapes")
}

/// What a call reads of the options, for the check of overlaps.
pub(super) fn reads_params(params: &SelectParams, (n_heads, prefix_len): (usize, usize)) -> Memory {
    let mask = params.protected_mask.map_or(core::ptr::null(), |m| m.as_ptr());
    let weights = params.head_weights.map_or(core::ptr::null(), |w| w.as_ptr());
    Memory::default().reads(mask, prefix_len, c"protected_mask").reads(weights, n_heads, c"head_weights")
}

/// Shares a total among layers in proportion to their weights, as integers.
///
/// The entries sum to exactly min(total, all that later queries can see): largest remainder, ties to the lower layer. No layer gets
/// more than it can use or less than what params protect; what it cannot use goes to the others in proportion. Where all weights are
/// zero, layers share equally.
///
/// shapes, n_shapes, n_layers: as in lava_total_entries; n_layers at most LAVA_MAX_LAYERS.
/// params: may be NULL; sinks, the mask and head_min are used.
/// weights: [n_layers], finite, not negative (ARGUMENT), for LAVa the entropies; resolved to 2^-52.
/// total: prefix entries over all layers; see lava_total_entries.
/// entries: [n_layers], receives each layer's prefix entries; untouched on error.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, SHAPE, OVERLAP, OVERFLOW, INDICES, ARGUMENT, NONFINITE (naming the layer), BUDGET (what is
///     protected exceeds the total). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_layer_entries(
    shapes: *const lava_shape,
    n_shapes: u32,
    n_layers: u32,
    params: *const lava_select_params,
    weights: *const f64,
    total: u64,
    entries: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let layers = ShapeArray::new(shapes, n_shapes, n_layers)?;
            let (_, prefix_len) = heads_and_prefix(&layers);
            let params = checked::select_params(params, 0, prefix_len)?;
            let n = layers.n_layers();
            reads_options(&layers, &params, (0, prefix_len))
                .reads(weights, n, c"weights")
                .writes(entries, n, c"entries")
                .check_layers(&layers)?;
            let (weights, entries) = (slice(weights, n, c"weights")?, slice_mut(entries, n, c"entries")?);
            budget::layer_entries(&layers, &params, weights, total, entries)
        })
    }
}

/// Bytes of workspace that lava_global_entries needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_global_entries_workspace_size(
    shapes: *const lava_shape,
    n_shapes: u32,
    n_layers: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shapes, size and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let layers = ShapeArray::new(shapes, n_shapes, n_layers)?;
            put(size, c"size", || select::global_entries_workspace_size(&layers))
        })
    }
}

/// Entries of layers and heads by one sort over the whole model: the `total` largest scores win, whichever layer and head they are in.
/// Ties go to the lower layer, then the lower head, then the lower token.
///
/// For each layer, lava_select with its entries, and its part of head_weights in lava_select_params, keeps exactly those. Layer weights
/// go into the scores (lava_score_params.weight).
///
/// shapes, n_shapes, n_layers: as in lava_total_entries. All layers together must have fewer than 2^32 rows.
/// params: may be NULL; head_min, sinks, the mask and LAVA_FLOOR_GUARANTEED are as in one layer, with the total over all heads of the model
///     as a head's share. LAVA_FLOOR_AFFINE and head_weights are refused.
/// scores: f32, the layers' scores one layer after the other, each as lava_score leaves them; finite.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// workspace: lava_global_entries_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// entries: [n_layers], receives each layer's prefix entries, in all min(total, all that later queries can see); untouched on error.
/// head_weights: a double for each KV head of all layers, layer after layer; receives the head's prefix entries. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, BUDGET (below what the heads are
///     promised), NONFINITE (naming layer and head). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_global_entries(
    shapes: *const lava_shape,
    n_shapes: u32,
    n_layers: u32,
    params: *const lava_select_params,
    scores: *const f32,
    total: u64,
    workspace: *mut c_void,
    workspace_size: usize,
    entries: *mut u64,
    head_weights: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise. Of head_weights, which are refused,
    // nothing is read.
    unsafe {
        run(error, || {
            let layers = ShapeArray::new(shapes, n_shapes, n_layers)?;
            let (n_heads, prefix_len) = heads_and_prefix(&layers);
            let params = checked::select_params(params, 0, prefix_len)?;
            let n_scores = (0..layers.n_layers()).map(|l| layers.layer(l).n_scores()).sum();
            reads_options(&layers, &params, (0, prefix_len))
                .reads(scores, n_scores as usize, c"scores")
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(entries, layers.n_layers(), c"entries")
                .writes(head_weights, n_heads, c"head_weights")
                .check_layers(&layers)?;
            select::global_entries(
                &layers,
                &params,
                some_scores(n_scores, scores)?,
                total,
                &mut super::call::workspace(workspace, workspace_size)?,
                slice_mut(entries, layers.n_layers(), c"entries")?,
                slice_mut(head_weights, n_heads, c"head_weights")?,
            )
        })
    }
}
