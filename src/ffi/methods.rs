//! What other papers' methods need beside lava.h: statistics of attention, layer weights.

use core::ffi::c_void;

use super::call::*;
use super::checked;
use super::score::{attention_inputs, reads_inputs};
use super::types::*;
use super::versioned::check_pointer;
use crate::budget;
use crate::error::{ErrorKind, ensure};
use crate::score::{self, AttentionStats};

/// Gives all heads the mean of their scores, in place. With equal head budgets (lava_select_params_equal) they then keep the same
/// tokens: TOVA's one set for all heads (arXiv 2401.06104).
///
/// shape: without cu_rows, since heads must have the same tokens (UNSUPPORTED).
/// scores: f32 [n_kv_heads, n_tokens - window], finite.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, NONFINITE, UNSUPPORTED. Untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_mean_over_heads(
    shape: *const lava_shape,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, scores and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                ensure(shape.ragged.is_none(), ErrorKind::Unsupported, c"cu_rows")?;
                let n = shape.n_scores() as usize;
                let scores = if n == 0 { &mut [] } else { slice_mut(scores, n, c"scores")? };
                score::mean_over_heads(&shape, scores)
            })
        })
    }
}

/// How the window looks at the prefix, two numbers per KV head: what lava_preference makes a layer's weight of.
///
///     entropy  = sum over heads, window and prefix of -A ln A
///     variance = sum over heads and prefix of the variance of A over the window, divided by window - 1
///
/// where heads are the query heads of the KV head. Another pass over K in addition to lava_score's.
///
/// params: may be NULL; scale, softcap, sink_logits, lse_base and backend are used.
/// q, k, lse, part, n_parts, workspace: as in lava_score; lava_score_workspace_size of any params with these is enough.
/// stats: [n_kv_heads, 2] doubles, entropy and variance, for all heads, of which the part writes its own. On error the part's own
///     may be partly written.
/// Errors: as lava_score. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_attention_stats(
    shape: *const lava_shape,
    params: *const lava_score_params,
    q: *const lava_tensor,
    k: *const lava_tensor,
    lse: *const lava_tensor,
    part: u32,
    n_parts: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    stats: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise. Two doubles are an
    // AttentionStats.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (params, backend) = checked::score_params(params, shape.n_q_heads)?;
                let inputs = attention_inputs(&shape, q, k, lse)?;
                let heads = score::part_heads(&shape, part as usize, n_parts as usize)?;
                check_pointer(stats, c"stats")?;
                reads_inputs(&shape, &inputs)
                    .writes(workspace as *mut u8, workspace_size, c"workspace")
                    .writes(stats, 2 * shape.n_kv_heads, c"stats")
                    .check()?;
                // Other parts write the other heads at the same time.
                let first = (stats as *mut AttentionStats).add(heads.start);
                score::attention_stats(
                    backend,
                    &shape,
                    &params,
                    &inputs,
                    part as usize,
                    n_parts as usize,
                    &mut super::call::workspace(workspace, workspace_size)?,
                    slice_mut(first, heads.len(), c"stats")?,
                )
            })
        })
    }
}

/// CAKE's weight of a layer (arXiv 2503.12491): (sum of entropies)^(1/tau1) * (sum of variances)^(1/tau2).
///
/// stats: [n_kv_heads, 2] from lava_attention_stats.
/// tau1, tau2: above 0, chosen per model; 1 is neutral.
/// weight: receives it, for lava_layer_entries or lava_cascade_push; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, OVERLAP, ARGUMENT, NONFINITE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_preference(
    shape: *const lava_shape,
    stats: *const f64,
    tau1: f64,
    tau2: f64,
    weight: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, stats, weight and error are NULL or lead to what the comment above says: the caller's promise. Two doubles
    // are an AttentionStats.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let stats = stats as *const AttentionStats;
                let apart =
                    Memory::default().reads(stats, shape.n_kv_heads, c"stats").writes(weight, 1, c"weight");
                apart.check()?;
                let stats = slice(stats, shape.n_kv_heads, c"stats")?;
                put(weight, c"weight", || score::preference(stats, tau1, tau2))
            })
        })
    }
}

/// PyramidKV's weights for lava_layer_entries (arXiv 2406.02069): budgets fall linearly from the first layer to the last.
///
/// prefix_budget: average prefix tokens kept per head: budget - window.
/// prefix_len: all there are: n_tokens - window. No layer gets more.
/// beta: how small the last layer's budget is: prefix_budget / beta. At least 1; published: 20, with a window of 8.
/// weights: [n_layers], receives them; untouched on error.
/// Errors: NULL, ALIGNMENT, SHAPE, ARGUMENT. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_pyramid_weights(
    n_layers: u32,
    prefix_budget: u64,
    prefix_len: u64,
    beta: f64,
    weights: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: weights and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let n = n_layers as usize;
            ensure(n > 0 && n <= budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
            budget::pyramid_weights(prefix_budget, prefix_len, beta, slice_mut(weights, n, c"weights")?)
        })
    }
}
