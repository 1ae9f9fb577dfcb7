//! The functions, family by family. Comments are the header's.
//!
//! Every function here is `unsafe` for the same reason, stated once in the header: pointers must be NULL or lead to as
//! much memory as the comment says, readable or writable as it says, for the length of the call.
#![allow(clippy::missing_safety_doc)]
// Brackets in these comments are C shapes and indices, not links.
#![allow(rustdoc::broken_intra_doc_links)]
// Each unsafe block below relies on that contract of the C header and on nothing else, unless it says so.
#![allow(clippy::undocumented_unsafe_blocks)]

use core::ffi::{c_char, c_void};

use super::*;
use crate::attend::{self, AttendInputs, AttendParams, Positions};
use crate::backend::Backend;
use crate::cascade::{self, Cascade, CascadeParams};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{SelectParams, Shape, ValueWeight, split};
use crate::score::{self, ScoreInputs};
use crate::view::{Rows, Tensor, TensorMut};
use crate::workspace::Carver;
use crate::{budget, compact, entropy, params, select};

/// The version as a number: major * 10000 + minor * 100 + patch. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_version() -> u32 {
    const PARTS: [&str; 3] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    let number = |digits: &str| digits.bytes().fold(0, |n, digit| n * 10 + (digit - b'0') as u32);
    PARTS.iter().fold(0, |n, part| n * 100 + number(part))
}

/// The version as text, static, such as "0.1.0". Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr() as *const c_char
}

/// A status in words, static, never NULL; "unknown status" for a number that is none. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_status_string(status: lava_status) -> *const c_char {
    status_message(status).as_ptr()
}

/// Name of the kernels that this machine gets, static, such as "avx2" or "scalar". Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_backend_name() -> *const c_char {
    Backend::detect().kernels.name.as_ptr()
}

/// Prefix entries that a budget means for a whole model: (budget - window) * n_layers * n_kv_heads, at most all there are.
///
/// budget: average number of tokens kept per KV head per layer, window included. At least the window
///     (LAVA_ERR_BUDGET), unless the window covers all tokens.
/// total: receives the number; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, BUDGET. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_total_entries(
    shape: *const lava_shape,
    budget: u32,
    n_layers: u32,
    total: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(total, 1, c"total")?;
            out[0] = params::total_entries(&shape, budget as usize, n_layers as usize)?;
            Ok(())
        })
    }
}

/// The budget that a ratio of the tokens means: floor(ratio * n_tokens).
///
/// ratio: in [0, 1]; the budget must not be below the window (LAVA_ERR_BUDGET).
/// budget: receives tokens per KV head per layer, window included; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ARGUMENT, BUDGET. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_budget_from_ratio(
    shape: *const lava_shape,
    ratio: f64,
    budget: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(budget, 1, c"budget")?;
            out[0] = params::budget_from_ratio(&shape, ratio)? as u32;
            Ok(())
        })
    }
}

/// Bytes of workspace that each part of lava_score needs: at most a tenth of the layer's K and V in f16, from about a
/// thousand tokens on (the queries of one head and one block of keys must fit).
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ARGUMENT. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_workspace_size(
    shape: *const lava_shape,
    params: *const lava_score_params,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let (shape, params) =
                (read_struct(shape, c"shape")?.check()?, read_struct(params, c"params")?.check()?);
            let out = slice_mut(size, 1, c"size")?;
            out[0] = score::workspace_size(&shape, &params)?;
            Ok(())
        })
    }
}

/// Scores the prefix of one layer: window attention, pooled, reduced over each group, times the value norm.
///
///     scores[g][i] = vmax[g] * max_{h in group g} pool(mean_j softmax_i(scale * q_j.k_i))
///
/// This is LAVa's score, the default; params make it another paper's.
///
/// q:   [min(window, n_tokens), n_q_heads, head_dim_k], the last window queries of the prompt, after RoPE.
/// k:   [n_tokens, n_kv_heads, head_dim_k], after RoPE.
/// v:   [n_tokens, n_kv_heads, head_dim_v].
/// lse: NULL, or f32 [min(window, n_tokens), n_q_heads, 1]: natural log-sum-exp of each query's scaled, capped, masked logits over all
///      keys it sees, as flash attention returns it. Saves a pass and the memory for it. It is believed: a wrong one gives
///      wrong scores.
/// part, n_parts: this call does share `part` of `n_parts` of the KV heads: n_kv_heads * part / n_parts up to
///      n_kv_heads * (part + 1) / n_parts. Parts may run at the same time, each with a workspace of its own. The scores
///      are the same bits for every n_parts. More parts than KV heads leave some with nothing to do.
/// workspace: lava_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN; contents neither needed nor kept.
/// scores: f32 [n_kv_heads, n_tokens - window] for all heads, without gaps, of which the part writes its own. All are
///      finite and not negative. On error the part's own may be partly written. Where the window covers all
///      tokens nothing is written, and scores may be NULL.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE,
///      NONFINITE (naming the layer and one of the heads at fault). Inputs may share memory with each other, outputs with
///      nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score(
    shape: *const lava_shape,
    params: *const lava_score_params,
    q: *const lava_tensor,
    k: *const lava_tensor,
    v: *const lava_tensor,
    lse: *const lava_tensor,
    part: u32,
    n_parts: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let params = read_struct(params, c"params")?.check()?;
            let attention = attention_inputs(&shape, q, k, lse)?;
            let inputs = match params.value_weight {
                ValueWeight::None => attention,
                _ => {
                    let v = tensor(v, Rows::Same(shape.n_tokens), shape.n_kv_heads, shape.head_dim_v, c"v");
                    ScoreInputs { v: v.map_err(|e| e.of(c"v"))?, ..attention }
                }
            };
            let heads = score::part_heads(&shape, part as usize, n_parts as usize)?;
            let prefix_len = shape.prefix_len();
            reads_inputs(&inputs)
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(scores, prefix_len * shape.n_kv_heads, c"scores")
                .check()?;
            let mut carver = super::call::workspace(workspace, workspace_size)?;
            let own = if prefix_len == 0 {
                &mut []
            } else {
                check_pointer(scores, c"scores")?;
                // Other parts write the other heads at the same time: the slice covers this part's only.
                slice_mut(scores.add(heads.start * prefix_len), heads.len() * prefix_len, c"scores")?
            };
            score::score(
                Backend::detect(),
                &shape,
                &params,
                &inputs,
                part as usize,
                n_parts as usize,
                &mut carver,
                own,
            )
        })
    }
}

/// The inputs of attention. The values are not: keys stand in their place.
unsafe fn attention_inputs<'a>(
    shape: &Shape,
    q: *const lava_tensor,
    k: *const lava_tensor,
    lse: *const lava_tensor,
) -> Result<ScoreInputs<'a>> {
    unsafe {
        let rows = Rows::Same(shape.n_tokens);
        let window = Rows::Same(shape.window.min(shape.n_tokens));
        let q = tensor(q, window, shape.n_q_heads, shape.head_dim_k, c"q").map_err(|e| e.of(c"q"))?;
        let k = tensor(k, rows, shape.n_kv_heads, shape.head_dim_k, c"k").map_err(|e| e.of(c"k"))?;
        let lse = match lse.is_null() {
            true => None,
            false => Some(tensor(lse, window, shape.n_q_heads, 1, c"lse").map_err(|e| e.of(c"lse"))?),
        };
        Ok(ScoreInputs { q, k, v: k, lse })
    }
}

/// What scoring reads, for the check of overlaps.
fn reads_inputs(inputs: &ScoreInputs) -> Memory {
    let memory = Memory::default()
        .reads_tensor(&inputs.q, c"q")
        .reads_tensor(&inputs.k, c"k")
        .reads_tensor(&inputs.v, c"v");
    match &inputs.lse {
        Some(lse) => memory.reads_tensor(lse, c"lse"),
        None => memory,
    }
}

/// Gives all heads the mean of their scores, in place. With equal head budgets (LAVA_FLOOR_AFFINE, alpha 1) they then keep the same
/// tokens: TOVA's one set for all heads (arXiv 2401.06104).
///
/// scores: f32 [n_kv_heads, n_tokens - window], finite.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, NONFINITE. Untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_mean_over_heads(
    shape: *const lava_shape,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let n = shape.prefix_entries() as usize;
            let scores = if n == 0 { &mut [] } else { slice_mut(scores, n, c"scores")? };
            score::mean_over_heads(scores, shape.n_kv_heads, shape.prefix_len())
                .map_err(|e| e.at_layer(shape.layer))
        })
    }
}

/// How the window looks at the prefix, two numbers per KV head: what lava_preference makes a layer's weight of.
///
///     entropy  = sum over heads, window and prefix of -A ln A
///     variance = sum over heads and prefix of the variance of A over the window, divided by window - 1
///
/// where heads are the query heads of the KV head.
///
/// Another pass over K beside lava_score's.
///
/// params: scale, softcap and sliding_window are used.
/// q, k, lse, part, n_parts, workspace: as in lava_score; lava_score_workspace_size of any params with these will do.
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
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let params = read_struct(params, c"params")?.check()?;
            let inputs = attention_inputs(&shape, q, k, lse)?;
            let heads = score::part_heads(&shape, part as usize, n_parts as usize)?;
            check_pointer(stats, c"stats")?;
            reads_inputs(&inputs)
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(stats, 2 * shape.n_kv_heads, c"stats")
                .check()?;
            // Two doubles are an AttentionStats. Other parts write the other heads at the same time.
            let first = (stats as *mut score::AttentionStats).add(heads.start);
            score::attention_stats(
                Backend::detect(),
                &shape,
                &params,
                &inputs,
                part as usize,
                n_parts as usize,
                &mut super::call::workspace(workspace, workspace_size)?,
                slice_mut(first, heads.len(), c"stats")?,
            )
        })
    }
}

/// CAKE's weight of a layer (arXiv 2503.12491): (sum of entropies)^(1/tau1) * (sum of variances)^(1/tau2).
///
/// stats: [n_kv_heads, 2] from lava_attention_stats.
/// tau1, tau2: above 0, chosen per model; 1 says nothing in particular.
/// weight: receives it, for lava_layer_budgets or lava_cascade_push_weighted; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, OVERLAP, ARGUMENT, NONFINITE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_preference(
    shape: *const lava_shape,
    stats: *const f64,
    tau1: f64,
    tau2: f64,
    weight: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let stats = stats as *const score::AttentionStats;
            Memory::default()
                .reads(stats, shape.n_kv_heads, c"stats")
                .writes(weight, 1, c"weight")
                .check()?;
            let stats = slice(stats, shape.n_kv_heads, c"stats")?;
            let out = slice_mut(weight, 1, c"weight")?;
            out[0] = score::preference(stats, tau1, tau2).map_err(|e| e.at_layer(shape.layer))?;
            Ok(())
        })
    }
}

/// Normalised entropy of a layer's scores, the layer's weight when layers share a total.
///
///     p = scores / sum(scores)        entropy = -sum(p ln p) / ln(n_kv_heads * prefix_len)
///
/// scores: f32 [n_kv_heads, n_tokens - window], not negative.
/// entropy: receives a number in [0, 1]; 0 where there is nothing to spread. The same bits on every machine.
/// mass: NULL, or receives sum(scores).
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, OVERLAP, NONFINITE. Outputs untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_entropy(
    shape: *const lava_shape,
    scores: *const f32,
    entropy: *mut f64,
    mass: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            Memory::default()
                .reads(scores, shape.prefix_entries() as usize, c"scores")
                .writes(entropy, 1, c"entropy")
                .writes(mass, 1, c"mass")
                .check()?;
            let scores = scores_of(&shape, scores)?;
            let out = slice_mut(entropy, 1, c"entropy")?;
            let spread = entropy::entropy(scores, shape.n_kv_heads, shape.prefix_len())
                .map_err(|e| e.at_layer(shape.layer))?;
            if !mass.is_null() {
                slice_mut(mass, 1, c"mass")?[0] = spread.mass;
            }
            out[0] = spread.entropy;
            Ok(())
        })
    }
}

/// A layer's scores; NULL will do where there are none.
unsafe fn scores_of<'a>(shape: &Shape, scores: *const f32) -> Result<&'a [f32]> {
    match shape.prefix_entries() {
        0 => Ok(&[]),
        n => unsafe { slice(scores, n as usize, c"scores") },
    }
}

/// Shares a total among layers in proportion to their weights, as integers.
///
/// The budgets sum to exactly min(total, sum(capacities)): largest remainder, ties to the lower layer. No layer gets more
/// than its capacity or less than its minimum; what it cannot use goes to the others in proportion. Where all weights are
/// zero, layers share equally.
///
/// n_layers: 1 to LAVA_MAX_LAYERS.
/// weights: [n_layers], finite, not negative; for LAVa the entropies. Resolved to 2^-52.
/// capacities: [n_layers], prefix entries of each layer (n_kv_heads * prefix_len), below 2^32.
/// minimums: NULL, or [n_layers], such as each layer's protected entries (n_kv_heads times the protected tokens).
/// total: prefix entries over all layers; see lava_total_entries.
/// budgets: [n_layers], receives each layer's prefix entries; untouched on error.
/// Errors: NULL, ALIGNMENT, SHAPE, OVERLAP, OVERFLOW, NONFINITE (naming the layer), BUDGET (minimums do not fit). Any
///     thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_layer_budgets(
    n_layers: u32,
    weights: *const f64,
    capacities: *const u64,
    minimums: *const u64,
    total: u64,
    budgets: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let n = n_layers as usize;
            ensure(n > 0 && n <= budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
            Memory::default()
                .reads(weights, n, c"weights")
                .reads(capacities, n, c"capacities")
                .reads(minimums, n, c"minimums")
                .writes(budgets, n, c"budgets")
                .check()?;
            let minimums = if minimums.is_null() { None } else { Some(slice(minimums, n, c"minimums")?) };
            budget::layer_budgets(
                slice(weights, n, c"weights")?,
                slice(capacities, n, c"capacities")?,
                minimums,
                total,
                slice_mut(budgets, n, c"budgets")?,
            )
        })
    }
}

/// PyramidKV's weights for lava_layer_budgets (arXiv 2406.02069): budgets fall linearly from the first layer to the last.
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
    unsafe {
        run(error, || {
            let n = n_layers as usize;
            ensure(n > 0 && n <= budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
            budget::pyramid_weights(prefix_budget, prefix_len, beta, slice_mut(weights, n, c"weights")?)
        })
    }
}

/// Bytes of workspace that lava_global_budgets needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_global_budgets_workspace_size(
    shape: *const lava_shape,
    n_layers: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(size, 1, c"size")?;
            out[0] = select::global_budgets_workspace_size(&shape, n_layers as usize)?;
            Ok(())
        })
    }
}

/// Layer and head budgets by one sort over the whole model: the `total` largest scores win, in whatever layer and head they are. Ties go to
/// the lower layer, then the lower head, then the lower token.
///
/// For each layer, lava_select with its budget, and its part of head_weights in lava_select_params, keeps exactly those entries. Layer
/// weights go into the scores (lava_score_params.weight).
///
/// shape: of every layer. n_layers * n_kv_heads * n_tokens must be below 2^32.
/// params: head_min, sinks, the mask and LAVA_FLOOR_GUARANTEED are as in one layer, with total / (n_layers * n_kv_heads) as a
///     head's share. LAVA_FLOOR_AFFINE and head_weights are refused.
/// scores: f32 [n_layers, n_kv_heads, n_tokens - window], finite.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// workspace: lava_global_budgets_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// budgets: [n_layers], receives each layer's prefix entries, in all min(total, all there are); untouched on error.
/// head_weights: [n_layers, n_kv_heads], receives each head's prefix entries, as doubles; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, BUDGET (below what the heads are promised),
///     NONFINITE (naming layer and head, or head_weights). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_global_budgets(
    shape: *const lava_shape,
    n_layers: u32,
    params: *const lava_select_params,
    scores: *const f32,
    total: u64,
    workspace: *mut c_void,
    workspace_size: usize,
    budgets: *mut u64,
    head_weights: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let n_heads = select::as_one_layer(&shape, n_layers as usize)?.n_kv_heads;
            let params = read_struct(params, c"params")?;
            // They are refused, so how many can be read is nobody's promise.
            ensure(params.head_weights.is_null(), ErrorKind::Argument, c"head_weights")?;
            let params = params.check(&shape, n_layers as usize)?;
            let n = n_heads * shape.prefix_len();
            reads_options(&params, &shape, n_layers as usize)
                .reads(scores, n, c"scores")
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(budgets, n_layers as usize, c"budgets")
                .writes(head_weights, n_heads, c"head_weights")
                .check()?;
            select::global_budgets(
                &shape,
                n_layers as usize,
                &params,
                if n == 0 { &[] } else { slice(scores, n, c"scores")? },
                total,
                &mut super::call::workspace(workspace, workspace_size)?,
                slice_mut(budgets, n_layers as usize, c"budgets")?,
                slice_mut(head_weights, n_heads, c"head_weights")?,
            )
        })
    }
}

/// The arrays that selection's options lead to, for the check of overlaps.
fn reads_options(params: &SelectParams, shape: &Shape, n_layers: usize) -> Memory {
    let mask = params.protected_mask.map_or(core::ptr::null(), |m| m.as_ptr());
    let weights = params.head_weights.map_or(core::ptr::null(), |w| w.as_ptr());
    Memory::default().reads(mask, shape.prefix_len(), c"protected_mask").reads(
        weights,
        shape.n_kv_heads * n_layers,
        c"head_weights",
    )
}

/// Rows that lava_select keeps for a layer budget: the entries that kept_indices needs.
///
/// n_kept: receives min(budget, all) + n_kv_heads * min(window, n_tokens); untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_n_kept(
    shape: *const lava_shape,
    budget: u64,
    n_kept: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(n_kept, 1, c"n_kept")?;
            out[0] = select::n_kept(&shape, budget)?;
            Ok(())
        })
    }
}

/// Bytes of workspace that lava_select needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_select_workspace_size(
    shape: *const lava_shape,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(size, 1, c"size")?;
            out[0] = select::workspace_size(&shape)?;
            Ok(())
        })
    }
}

/// Keeps a layer's best entries: the `budget` largest scores over all heads, and every head's window.
///
/// Ties go to the lower head, then to the lower token, so the kept set is a function of the scores: the same on every
/// backend, in every run.
///
/// scores: f32 [n_kv_heads, n_tokens - window], finite; from lava_score or from anywhere else. NULL will do where the
///     window covers all tokens.
/// budget: prefix entries to keep in this layer, over all heads. More than there are keeps everything.
/// workspace: lava_select_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// kept_indices: receives each head's token positions, ascending, head behind head.
/// kept_capacity: entries that kept_indices has room for, at least what lava_n_kept says.
/// cu_kept: n_kv_heads + 1 entries, receives the exclusive prefix sum of the counts, from 0: head h keeps
///     kept_indices[cu_kept[h]] up to kept_indices[cu_kept[h + 1]].
/// selection: NULL, or receives what was done, in particular whether nothing was evicted.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, BUDGET (below the
///     protected entries or head_min), NONFINITE. Outputs untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_select(
    shape: *const lava_shape,
    params: *const lava_select_params,
    scores: *const f32,
    budget: u64,
    workspace: *mut c_void,
    workspace_size: usize,
    kept_indices: *mut u32,
    kept_capacity: u64,
    cu_kept: *mut u32,
    selection: *mut lava_selection,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let params = read_struct(params, c"params")?.check(&shape, 1)?;
            if !selection.is_null() {
                check_out_struct(selection, c"selection")?;
            }
            let n_kept = select::n_kept(&shape, budget)?;
            ensure(kept_capacity >= n_kept, ErrorKind::BufferSize, c"kept_indices")?;
            reads_options(&params, &shape, 1)
                .reads(scores, shape.prefix_entries() as usize, c"scores")
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(kept_indices, n_kept as usize, c"kept_indices")
                .writes(cu_kept, shape.n_kv_heads + 1, c"cu_kept")
                .writes(selection, 1, c"selection")
                .check()?;
            let done = select::select(
                &shape,
                &params,
                scores_of(&shape, scores)?,
                budget,
                &mut super::call::workspace(workspace, workspace_size)?,
                slice_mut(kept_indices, n_kept as usize, c"kept_indices")?,
                slice_mut(cu_kept, shape.n_kv_heads + 1, c"cu_kept")?,
            )?;
            if !selection.is_null() {
                write_struct(
                    selection,
                    lava_selection {
                        struct_size: 0,
                        everything_kept: done.everything_kept as u32,
                        n_kept: done.n_kept,
                        budget: done.budget,
                        mass: done.mass,
                        evicted_share: done.evicted_share,
                    },
                );
            }
            Ok(())
        })
    }
}

/// Bytes of workspace that lava_budget_for_share needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_budget_for_share_workspace_size(
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let out = slice_mut(size, 1, c"size")?;
            out[0] = select::budget_for_share_workspace_size()?;
            Ok(())
        })
    }
}

/// The smallest budget of a layer whose evicted share of score mass is at most epsilon, without floors or protected
/// entries: ask for a bound on the loss instead of a size.
///
/// scores: f32 [n_kv_heads, n_tokens - window], finite, not negative.
/// epsilon: in [0, 1].
/// workspace: lava_budget_for_share_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// budget: receives prefix entries, for lava_select; untouched on error. The share holds to within 1e-12.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, NONFINITE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_budget_for_share(
    shape: *const lava_shape,
    scores: *const f32,
    epsilon: f64,
    workspace: *mut c_void,
    workspace_size: usize,
    budget: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(budget, 1, c"budget")?;
            Memory::default()
                .reads(scores, shape.prefix_entries() as usize, c"scores")
                .writes(workspace as *mut u8, workspace_size, c"workspace")
                .writes(budget, 1, c"budget")
                .check()?;
            let mut carver = super::call::workspace(workspace, workspace_size)?;
            out[0] = select::budget_for_share(scores_of(&shape, scores)?, epsilon, &mut carver)
                .map_err(|e| e.at_layer(shape.layer))?;
            Ok(())
        })
    }
}

/// Evicts: gathers each head's kept rows of K and V, in position order, into another cache or in place.
///
/// Row rows[cu_kept[h] + r] of head h becomes row r of head h. Keys carry their RoPE; nothing is re-rotated. True positions
/// stay with the caller in kept_indices.
///
/// shape: n_tokens, n_kv_heads, head_dim_k and head_dim_v are used.
/// k_src, v_src: the caches as they are, [rows, n_kv_heads, head_dim]. v_src and v_dst may both be NULL (a cache of keys only).
/// cu_rows: NULL if each head has n_tokens rows; else n_kv_heads + 1 entries, the prefix sum of each head's rows in
///     the source (from lava_cascade_get, or the cu_kept of an earlier compression).
/// rows: kept_indices of lava_select, or rows of lava_cascade_get: ascending per head.
/// cu_kept: n_kv_heads + 1 entries.
/// k_dst, v_dst: where the kept rows go, of the source's element type; each head needs room for its kept rows. Any layout:
///     ragged with row_start = cu_kept is the smallest; ragged with room behind each head lets it grow.
///     In place is the source's memory, with the same data, dtype, stride_token and stride_dim. Then either the
///     heads stay where they are (no row_start, or the same): each head's rows move to the front of its own. Or both are
///     ragged and every row moves to the front of the buffer or stays (the heads close ranks; row_start may lead anywhere
///     into a larger buffer, such as an arena that layers share): then n_parts must be 1.
///     Otherwise a destination may not share memory with a source or the other destination; K and V interleaved in one
///     buffer with the same strides are fine.
/// part, n_parts: as in lava_score: a share of the KV heads. In place each part runs once: a second run would move rows
///     again. What moves is what the cache holds now; the scores are not looked at.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, STRIDE, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, DTYPE, INDICES. Neither
///     cache is touched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_compact(
    shape: *const lava_shape,
    k_src: *const lava_tensor,
    v_src: *const lava_tensor,
    cu_rows: *const u32,
    rows: *const u32,
    cu_kept: *const u32,
    k_dst: *const lava_tensor,
    v_dst: *const lava_tensor,
    part: u32,
    n_parts: u32,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let n_heads = shape.n_kv_heads;
            let heads = split(n_heads, part as usize, n_parts as usize)?;
            let cu_kept = slice(cu_kept, n_heads + 1, c"cu_kept")?;
            ensure(cu_kept.is_sorted(), ErrorKind::Indices, c"cu_kept")?;
            let rows = match cu_kept[n_heads] as usize {
                0 => &[],
                n => slice(rows, n, c"rows")?,
            };
            let before = match cu_rows.is_null() {
                true => Rows::Same(shape.n_tokens),
                false => Rows::Cu(slice(cu_rows, n_heads + 1, c"cu_rows")?),
            };
            let view =
                |t, rows, dim, name| tensor(t, rows, n_heads, dim, name).map_err(|e: Error| e.of(name));
            let after = Rows::Cu(cu_kept);
            let k = (
                view(k_src, before, shape.head_dim_k, c"k_src")?,
                view(k_dst, after, shape.head_dim_k, c"k_dst")?,
                c"k_dst",
            );
            let v = match v_src.is_null() && v_dst.is_null() {
                true => None,
                false => Some((
                    view(v_src, before, shape.head_dim_v, c"v_src")?,
                    view(v_dst, after, shape.head_dim_v, c"v_dst")?,
                    c"v_dst",
                )),
            };

            // Every check, of both tensors and all heads, before the first row moves.
            for (src, dst, name) in [Some(k), v].into_iter().flatten() {
                compact::check_rows(&src, &dst, rows, cu_kept, 0..n_heads)
                    .map_err(|e| if e.argument == c"dst" { e.of(name) } else { e }.at_layer(shape.layer))?;
                let apart = src.is_disjoint(&dst);
                ensure(
                    apart || dst.is_in_place_of(&src, rows, cu_kept, n_parts == 1),
                    ErrorKind::Overlap,
                    name,
                )?;
                // Whatever is read while rows move. A destination's own row_start is added with it.
                let mut memory = Memory::default()
                    .reads(rows.as_ptr(), rows.len(), c"rows")
                    .reads(cu_kept.as_ptr(), cu_kept.len(), c"cu_kept")
                    .reads(cu_rows, n_heads + 1, c"cu_rows")
                    .writes_tensor(&dst, name);
                for t in [Some(k), v].into_iter().flatten().flat_map(|(src, dst, _)| [src, dst]) {
                    memory = memory.reads(t.row_start().as_ptr(), t.row_start().len(), c"row_start");
                }
                memory.check()?;
            }
            if let Some(v) = v {
                ensure(k.1.is_disjoint(&v.0) && k.1.is_disjoint(&v.1), ErrorKind::Overlap, c"k_dst")?;
                ensure(v.1.is_disjoint(&k.0), ErrorKind::Overlap, c"v_dst")?;
            }
            for (src, dst, _) in [Some(k), v].into_iter().flatten() {
                // SAFETY: the header asks that a destination be writable; other parts write other heads' rows.
                let mut dst = TensorMut::from_tensor(dst);
                compact::compact(&src, &mut dst, rows, cu_kept, heads.clone())?;
            }
            Ok(())
        })
    }
}

/// What a cascade is told: the same for its size and its start.
unsafe fn cascade_params<'a>(
    shape: *const lava_shape,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
) -> Result<CascadeParams<'a>> {
    unsafe {
        let shape = read_struct(shape, c"shape")?.check()?;
        let params = read_struct(params, c"params")?;
        let n_layers = n_layers as usize;
        ensure(n_layers > 0 && n_layers <= budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
        let select = params.check(&shape, n_layers)?;
        let (layer_budgets, evict_every) = (params.layers()?, params.evict_every as usize);
        Ok(CascadeParams { shape, n_layers, total, layer_budgets, select, evict_every })
    }
}

/// Bytes of state that a cascade needs: about 12 per prefix entry of the total, and its windows.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ARGUMENT, NONFINITE (head_weights), BUDGET (the protected entries or head_min alone
///     exceed the total). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_state_size(
    shape: *const lava_shape,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let params = cascade_params(shape, n_layers, total, params)?;
            let out = slice_mut(size, 1, c"size")?;
            out[0] = cascade::state_size(&params)?;
            Ok(())
        })
    }
}

/// Starts a cascade: compress while prefilling, layer by layer, instead of at the end.
///
/// shape: n_tokens, n_kv_heads and window, the same for every layer.
/// n_layers: layers that will be pushed.
/// total: prefix entries to keep over all layers; see lava_total_entries.
/// params: floors, sinks, the protected mask, head weights, how the layers share the total, and how often the caller evicts. All is
///     copied.
/// state: lava_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it, start it
///     again or copy it at any time: it holds no resources and no pointers.
/// Errors: as lava_cascade_state_size, and ALIGNMENT, OVERLAP, WORKSPACE. Any thread, but one call on a state at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_init(
    shape: *const lava_shape,
    n_layers: u32,
    total: u64,
    params: *const lava_select_params,
    state: *mut c_void,
    state_size: usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let params = cascade_params(shape, n_layers, total, params)?;
            reads_options(&params.select, &params.shape, params.n_layers)
                .writes(state as *mut u8, state_size, c"state")
                .check()?;
            ensure(state_size >= cascade::state_size(&params)?, ErrorKind::Workspace, c"state")?;
            Cascade::new(
                &params,
                &mut super::call::workspace(state, state_size).map_err(|e| e.of(c"state"))?,
            )?;
            Ok(())
        })
    }
}

/// Finds a state again.
unsafe fn reopen<'a>(state: *mut c_void, state_size: usize) -> Result<Cascade<'a>> {
    unsafe {
        let mut carver = Carver::reopen_raw(state as *mut u8, state_size).map_err(|e| e.of(c"state"))?;
        Cascade::reopen(&mut carver).map_err(|e| e.of(c"state"))
    }
}

/// Takes in the next layer's scores and decides anew what every layer so far keeps.
///
/// After it, lava_cascade_get says for each layer 0 to l which rows the caller's cache is to keep; lava_compact moves them, at once or
/// as often as evict_every of lava_select_params says.
/// After the last of n_layers pushes the kept sets are exactly, bit for bit, those of lava_layer_budgets and lava_select
/// on all layers at once. Before it, a layer may hold one entry more than its share, so all together at most total + l
/// prefix entries, plus what a head floor may still ask for (alpha of that, and one per head and layer).
///
/// Under LAVA_LAYERS_GLOBAL the final kept sets are those of lava_global_budgets, and before it all layers hold at most `total`
/// together, plus what a floor or head_min may still ask for.
///
/// scores: f32 [n_kv_heads, n_tokens - window] of the next layer, not negative.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, OVERLAP, WORKSPACE, STATE (not initialised or complete), NONFINITE (naming
///     layer and head), ARGUMENT (LAVA_LAYERS_WEIGHTS: use lava_cascade_push_weighted). The cascade is unchanged on error. Any
///     thread, but one call on a state at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_push(
    state: *mut c_void,
    state_size: usize,
    scores: *const f32,
    error: *mut lava_error,
) -> lava_status {
    unsafe { run(error, || push(state, state_size, scores, None)) }
}

/// The same with the layer's weight, under LAVA_LAYERS_WEIGHTS: for pyramids, CAKE's preference, what was learned.
///
/// weight: finite, not negative.
/// Errors: as lava_cascade_push; ARGUMENT under any other LAVA_LAYERS_; NONFINITE for the weight.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_push_weighted(
    state: *mut c_void,
    state_size: usize,
    scores: *const f32,
    weight: f64,
    error: *mut lava_error,
) -> lava_status {
    unsafe { run(error, || push(state, state_size, scores, Some(weight))) }
}

unsafe fn push(state: *mut c_void, state_size: usize, scores: *const f32, weight: Option<f64>) -> Result<()> {
    unsafe {
        let mut cascade = reopen(state, state_size)?;
        let n = cascade.prefix_entries();
        Memory::default()
            .reads(scores, n, c"scores")
            .writes(state as *mut u8, state_size, c"state")
            .check()?;
        let scores = if n == 0 { &[] } else { slice(scores, n, c"scores")? };
        match weight {
            None => cascade.push(scores),
            Some(weight) => cascade.push_weighted(scores, weight),
        }
    }
}

/// What layer `layer` keeps after the last push, and how to get there from what the caller's cache holds.
///
/// out: receives pointers into the state, good until the next push; untouched on error. What they lead to may be read by
///     several threads at a time. That it lies outside the state is not checked.
/// Errors: NULL, STRUCT_SIZE, ALIGNMENT, WORKSPACE, STATE (not initialised, or that layer was not pushed yet). Any thread,
///     but one call on a state at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cascade_get(
    state: *mut c_void,
    state_size: usize,
    layer: u32,
    out: *mut lava_cascade_layer,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            check_out_struct(out, c"out")?;
            let cascade = reopen(state, state_size)?;
            let got = cascade.layer(layer as usize)?;
            write_struct(
                out,
                lava_cascade_layer {
                    struct_size: 0,
                    unchanged: (got.rows.len() == *got.cu_rows.last().unwrap_or(&0) as usize) as u32,
                    kept_indices: got.kept_indices.as_ptr(),
                    cu_kept: got.cu_kept.as_ptr(),
                    rows: got.rows.as_ptr(),
                    cu_rows: got.cu_rows.as_ptr(),
                    budget: got.budget,
                    entropy: got.entropy,
                    mass: got.mass,
                    evicted_share: got.evicted_share,
                },
            );
            Ok(())
        })
    }
}

/// Bytes of workspace that each part of lava_attend needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_attend_workspace_size(
    shape: *const lava_shape,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let out = slice_mut(size, 1, c"size")?;
            out[0] = attend::workspace_size(&shape)?;
            Ok(())
        })
    }
}

/// Attention of new queries over a compressed cache: heads of unlike length, grouped queries.
///
/// shape: n_tokens is the number of new queries, n_q_heads, n_kv_heads and the head dimensions as ever; window is not
///     used but must be at least 1.
/// q:   [n_tokens, n_q_heads, head_dim_k], after RoPE.
/// k:   [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
/// v:   [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
/// n_rows: n_kv_heads entries, each head's rows, the new tokens' own included if causal: then at least n_tokens.
/// out: f32 [n_tokens, n_q_heads, head_dim_v]. A query that sees no row gets zeros.
/// lse: NULL, or f32 [n_tokens, n_q_heads, 1]: natural log-sum-exp of each query's logits, for merging with
///     attention over other rows. -inf where no row is seen.
/// part, n_parts: a share of the KV heads with their query heads; the result is the same bits for every n_parts.
/// workspace: lava_attend_workspace_size bytes, one per part, aligned to LAVA_WORKSPACE_ALIGN.
/// Errors: NULL (kept_indices, with a sliding window), STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE,
///     WORKSPACE, OVERFLOW, DTYPE, INDICES, NONFINITE (in q, k or v, or a sum over values that overflows; rows that no query sees may
///     or may not be looked at). The cache is never written; out and lse may be partly written on NONFINITE and are untouched
///     otherwise. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_attend(
    shape: *const lava_shape,
    params: *const lava_attend_params,
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
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            let params = read_struct(params, c"params")?.check(&shape)?;
            let rows = Rows::PerHead(slice(n_rows, shape.n_kv_heads, c"n_rows")?);
            let new = Rows::Same(shape.n_tokens);
            let view =
                |t, rows, heads, dim, name| tensor(t, rows, heads, dim, name).map_err(|e: Error| e.of(name));
            let inputs = AttendInputs {
                q: view(q, new, shape.n_q_heads, shape.head_dim_k, c"q")?,
                k: view(k, rows, shape.n_kv_heads, shape.head_dim_k, c"k")?,
                v: view(v, rows, shape.n_kv_heads, shape.head_dim_v, c"v")?,
            };
            let out = view(out, new, shape.n_q_heads, shape.head_dim_v, c"out")?;
            let lse = match lse.is_null() {
                true => None,
                false => Some(view(lse, new, shape.n_q_heads, 1, c"lse")?),
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
            if let Some(p) = &params.positions {
                memory = memory.reads(p.kept_indices.as_ptr(), p.kept_indices.len(), c"kept_indices").reads(
                    p.cu_kept.as_ptr(),
                    p.cu_kept.len(),
                    c"cu_kept",
                );
            }
            memory.check()?;
            let mut carver = super::call::workspace(workspace, workspace_size)?;
            // SAFETY: the header asks that out and lse be writable; other parts write other query heads' rows.
            let (mut out, mut lse) =
                (TensorMut::from_tensor(out), lse.map(|t: Tensor| TensorMut::from_tensor(t)));
            attend::attend(
                Backend::detect(),
                &shape,
                &params,
                &inputs,
                &mut out,
                lse.as_mut(),
                part as usize,
                n_parts as usize,
                &mut carver,
            )
        })
    }
}

impl lava_attend_params {
    unsafe fn check<'a>(&self, shape: &Shape) -> Result<AttendParams<'a>> {
        ensure(self.causal <= 1, ErrorKind::Argument, c"causal")?;
        let positions = match (self.kept_indices.is_null(), self.cu_kept.is_null()) {
            (true, true) => None,
            (false, true) => return Err(Error::new(ErrorKind::Null, c"cu_kept")),
            (_, false) => {
                let cu_kept = unsafe { slice(self.cu_kept, shape.n_kv_heads + 1, c"cu_kept")? };
                let kept_indices = match cu_kept[shape.n_kv_heads] as usize {
                    0 => &[],
                    n => unsafe { slice(self.kept_indices, n, c"kept_indices")? },
                };
                Some(Positions { kept_indices, cu_kept, n_base: self.n_base })
            }
        };
        let given = |x: f32| (x != 0.0).then_some(x);
        Ok(AttendParams {
            scale: given(self.scale),
            softcap: given(self.softcap),
            causal: self.causal == 1,
            sliding_window: (self.sliding_window > 0).then_some(self.sliding_window as usize),
            positions,
        })
    }
}
