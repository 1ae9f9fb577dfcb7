//! What other methods need beside lava.h: further queries, statistics of attention, layer weights.

use core::ffi::c_void;

use super::call::*;
use super::checked;
use super::score::{Asked, attention_inputs, reads_inputs, score_by};
use super::types::*;
use super::versioned::check_pointer;
use crate::budget;
use crate::error::{ErrorKind, ensure};
use crate::novelty::pick_queries;
use crate::rope;
use crate::score::{self, AttentionStats};
use crate::view::{Rows, TensorMut};

/// For attention of lava_score_params: the mean of the squares (KV-Compress, arXiv 2410.00161).
pub const LAVA_ATTENTION_SQUARED: i32 = 1;
/// The mean plus gamma times the variance over the window's queries, divided by window - 1 (CAKE, arXiv 2503.12491).
pub const LAVA_ATTENTION_MEAN_VARIANCE: i32 = 2;
/// a[0] = A[0], a[j] = decay * A[j] + (1 - decay) * a[j - 1] over the window's queries (ReST-KV, arXiv 2605.08840). With a decay of 1
/// the last query alone (SAGE-KV, arXiv 2503.08879).
pub const LAVA_ATTENTION_EXPONENTIAL: i32 = 3;
/// None: position + 1, so that the newest win; q and k are not looked at (StreamingLLM, arXiv 2309.17453). Exact up to 2^24.
pub const LAVA_ATTENTION_RECENCY: i32 = 4;
/// For attention: the 4-norm of the queries', (sum of A^4)^(1/4), between their maximum and their sum. A below 2^-31 counts as 0.
pub const LAVA_ATTENTION_NORM4: i32 = 6;
/// For value_weight: attention is multiplied by the L1 norm of the entry's own value, after pooling and reduction (VATP, arXiv 2406.12335).
pub const LAVA_VALUE_TOKEN: i32 = 2;
/// a becomes a / (1 - a) * |o - v|, o = sum of a * v over all tokens: what evicting the entry alone does to the output, for
/// each query head before pooling (CAOTE, arXiv 2504.14051; ReST-KV). With LAVA_ATTENTION_MEAN and _EXPONENTIAL only.
pub const LAVA_VALUE_OUTPUT: i32 = 3;
/// By the L2 norm of the entry's own value, after pooling and reduction (Expected Attention, arXiv 2510.00636).
pub const LAVA_VALUE_TOKEN_L2: i32 = 4;
/// Elements 2i and 2i + 1 of a query are turned together: GPT-J, Llama as Meta published it, most GGUF files of Llama's kind.
pub const LAVA_ROPE_PAIRS: i32 = 0;
/// Elements i and i + n_rot / 2: GPT-NeoX, Qwen, all of Hugging Face's models.
pub const LAVA_ROPE_HALVES: i32 = 1;

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
                let inputs = attention_inputs(&shape, shape.window_rows(), q, k, lse)?;
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

/// Bytes of workspace that each part of lava_score_queries needs.
///
/// params, n_queries: as in lava_score_queries.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT, NONFINITE, UNSUPPORTED. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_queries_workspace_size(
    shape: *const lava_shape,
    params: *const lava_score_params,
    n_queries: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, params, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (params, _) = checked::asking_params(params, shape.n_q_heads)?;
                let bytes = || score::queries_workspace_size(&shape, &params, n_queries as usize);
                put(size, c"size", bytes)
            })
        })
    }
}

/// Asks again: scores a layer's prefix by queries that are not the cache's last rows, and joins the result with what scores holds. Each
/// entry gets the larger of the two.
///
/// Each of the queries sees what one at position n_tokens would: every row, the window's too, as far as a sliding window reaches. So
/// they may be the prompt's own, from before RoPE, turned to that position by lava_rotate: what they look at from there is what a later
/// mention of the same things will look at. Their order matters to LAVA_ATTENTION_EXPONENTIAL only.
///
/// Called after lava_score, or with scores set to 0, as often as wanted; then lava_smooth, if at all.
///
/// params: may be NULL: lava_score_params_ask_again(NULL). Else those of lava_score, or such that their scores can be compared. smoothing
///     must be 0 (ARGUMENT).
/// n_queries: at least 1.
/// q: [n_queries, n_q_heads, head_dim_k], after RoPE.
/// k, v, part, n_parts: as in lava_score.
/// workspace: lava_score_queries_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// scores: as in lava_score, read and written; finite. On error the part's own may be partly joined.
/// Errors: as lava_score. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_queries(
    shape: *const lava_shape,
    params: *const lava_score_params,
    n_queries: u32,
    q: *const lava_tensor,
    k: *const lava_tensor,
    v: *const lava_tensor,
    part: u32,
    n_parts: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    let (tensors, memory) = ([q, k, v, core::ptr::null()], (workspace, workspace_size));
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            score_by(shape, params, Asked::After(n_queries), tensors, (part, n_parts), memory, scores)
        })
    }
}

/// The same by queries that see what queries at positions of their own would: tokens that only ask and are not kept, or all of a prompt's
/// queries, where each sees what is before it, in instalments as they come.
///
/// positions: u32 [n_queries], ascending, at most n_tokens (ARGUMENT). Each query sees the rows up to its position, as far back as a sliding
///     window reaches, and must see one of each head (ARGUMENT).
/// All else, the workspace's size too: as in lava_score_queries.
/// params: may be NULL.
/// Errors: as lava_score. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_score_queries_at(
    shape: *const lava_shape,
    params: *const lava_score_params,
    n_queries: u32,
    positions: *const u32,
    q: *const lava_tensor,
    k: *const lava_tensor,
    v: *const lava_tensor,
    part: u32,
    n_parts: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    let (tensors, memory) = ([q, k, v, core::ptr::null()], (workspace, workspace_size));
    let asked = Asked::At(positions, n_queries);
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe { run(error, || score_by(shape, params, asked, tensors, (part, n_parts), memory, scores)) }
}

/// Which of a layer's queries to ask again with: the rows are cut into n_picked stretches, equal but for one row, and each gives the row
/// least like all others, whose queries look for what no other does; of equals the first.
///
///     novelty[j] = -(sum over query heads of the cosine of q[j] and the mean of q over all rows)
///
/// The same rows on every machine.
///
/// shape: n_q_heads and head_dim_k are used.
/// n_rows: at least 1.
/// q: [n_rows, n_q_heads, head_dim_k], before RoPE. Leave out the prompt's first 4 or so, where attention sinks stand.
/// n_picked: 1 to n_rows (ARGUMENT). 256 do for prompts of 1k to 4k tokens.
/// novelty: f32 [n_rows], receives each row's. On error it may be partly written.
/// picked: u32 [n_picked], receives rows, ascending. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, ARGUMENT, NONFINITE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_pick_queries(
    shape: *const lava_shape,
    n_rows: u32,
    q: *const lava_tensor,
    n_picked: u32,
    novelty: *mut f32,
    picked: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || {
                let (n_rows, n_picked) = (n_rows as usize, n_picked as usize);
                ensure(n_rows > 0, ErrorKind::Shape, c"n_rows")?;
                ensure((1..=n_rows).contains(&n_picked), ErrorKind::Argument, c"n_picked")?;
                let q = tensor(q, Rows::Same(n_rows), shape.n_q_heads, shape.head_dim_k, c"q")?;
                Memory::default()
                    .reads_tensor(&q, c"q")
                    .writes(novelty, n_rows, c"novelty")
                    .writes(picked, n_picked, c"picked")
                    .check()?;
                let novelty = slice_mut(novelty, n_rows, c"novelty")?;
                let picked = slice_mut(picked, n_picked, c"picked")?;
                pick_queries(&shape, n_rows, &q, novelty, picked)
            })
        })
    }
}

/// Turns queries from before RoPE to one position, for lava_score_queries: that position is the shape's n_tokens, or a later one.
///
/// Of each pair (x, y) of a query's first n_rot elements x cos - y sin and x sin + y cos are written, times magnitude, the angle being
/// position times the pair's frequency; other elements are copied. What the model does to its keys is in the frequencies:
/// base^(-2i / n_rot), or what YaRN (arXiv 2309.00071), Llama 3 and others make of that.
///
/// shape: n_q_heads and head_dim_k are used.
/// n_queries: at least 1.
/// q: [n_queries, n_q_heads, head_dim_k], before RoPE, after all that the model does to queries before it.
/// frequencies: [n_rot / 2], radians per position, finite.
/// n_rot: even (ARGUMENT), at most head_dim_k (SHAPE). 0: frequencies may be NULL.
/// style: LAVA_ROPE_PAIRS or LAVA_ROPE_HALVES.
/// magnitude: what the model multiplies sines and cosines by: YaRN's attention factor. 0: 1.
/// out: f32 [n_queries, n_q_heads, head_dim_k], any strides. Shares memory with nothing, q included. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, ARGUMENT, NONFINITE (in frequencies; NaN in q becomes
///     NaN in out, which lava_score_queries finds). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_rotate(
    shape: *const lava_shape,
    n_queries: u32,
    q: *const lava_tensor,
    frequencies: *const f32,
    n_rot: u32,
    style: i32,
    magnitude: f32,
    position: u32,
    out: *const lava_tensor,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says, out to memory that may be written: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_of_heads(shape)?;
            in_layer(&shape, || {
                let rope = checked::rope(&shape, frequencies, n_rot, style, magnitude)?;
                let rows = Rows::Same(n_queries as usize);
                let q = tensor(q, rows, shape.n_q_heads, shape.head_dim_k, c"q")?;
                let out = tensor(out, rows, shape.n_q_heads, shape.head_dim_k, c"out")?;
                Memory::default()
                    .reads_tensor(&q, c"q")
                    .reads(rope.frequencies.as_ptr(), rope.frequencies.len(), c"frequencies")
                    .writes_tensor(&out, c"out")
                    .check()?;
                let mut out = TensorMut::from_tensor(out);
                rope::rotate(&shape, &rope, n_queries as usize, position, &q, &mut out)
            })
        })
    }
}
