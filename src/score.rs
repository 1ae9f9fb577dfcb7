//! Stages 1 to 5: queries of the window, keys and values → one f32 score per prefix entry.
//!
//! ```text
//! A[h, j, i] = softmax_i(scale · q_j·k_i)       over all keys that query j sees
//! a[h, i]    = 1/w Σ_j A[h, j, i]               for i < P
//! S[g, i]    = vmax[g] · max_{h in g} maxpool(a)[h, i]     vmax[g] = max_i ‖V[i, g]‖₁
//! ```
//!
//! This is LAVa's score. What becomes of `A` ([`Attention`]), what it is multiplied by ([`ValueWeight`]), pooling and
//! reduction are options; with them other published scores are points of the same frame (`ScoreParams::snapkv` and its
//! neighbours).
//!
//! Other queries than the window's can be asked too ([`score_queries`]): those that nobody has asked yet, as far as one
//! can guess them.
//!
//! With a sliding window each query sees so many keys only. Rows that no query of the window sees are not read, and
//! *dead* ones, those that no later query can see, score 0.
//!
//! | file | |
//! |---|---|
//! | `score/task.rs` | what a call works on: one KV head |
//! | `score/plan.rs` | which query heads go together, and the memory for it |
//! | `score/head.rs` | one head's scores, stage after stage |
//! | `score/window.rs` | attention of the window, summed for each key |
//! | `score/pool.rs` | pooling along the tokens, and the reduction over the group |
//! | `score/value.rs` | what the values have to say |
//! | `score/keys.rs` | scores without queries: KeyDiff, Expected Attention; norms of values for weights of the caller's |
//! | `score/stats.rs` | entropy and variance of the attention: CAKE's layer preference |
//!
//! Source: arXiv 2509.09754, section 4.1. The work of one KV head touches nobody else's, so heads are the unit of
//! `(part, n_parts)`.

mod head;
mod keys;
mod plan;
mod pool;
mod stats;
mod task;
mod value;
mod window;

use core::ops::Range;

use crate::backend::Backend;
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{Attention, ScoreParams, Shape, ValueWeight, split};
use crate::view::{Dtype, Tensor};
use crate::workspace::{Carver, size_of_carve};
use plan::{Buffers, Plan};
use task::{Queries, Task};

pub use keys::{QueryStatistics, query_statistics, score_expected, score_keys, value_norms};
#[cfg(feature = "cuda")]
pub(crate) use stats::check_tau;
pub use stats::{AttentionStats, preference};
pub use task::ScoreInputs;

/// Bytes of workspace that one part of [`score`] or [`attention_stats`] needs.
pub fn workspace_size(shape: &Shape, params: &ScoreParams) -> Result<usize> {
    size_for(shape, params, Queries::Window)
}

/// Bytes of workspace that one part of [`score_queries`] needs.
pub fn queries_workspace_size(shape: &Shape, params: &ScoreParams, n_queries: usize) -> Result<usize> {
    size_for(shape, params, Queries::After(n_queries))
}

fn size_for(shape: &Shape, params: &ScoreParams, queries: Queries) -> Result<usize> {
    check_options(shape, params, queries)?;
    let size = |has_lse| {
        let plan = Plan::new(shape, params, queries, has_lse)?;
        size_of_carve(|c| Buffers::carve(c, shape, params, queries, plan))
    };
    let most = size(false).and_then(|without| Ok(without.max(size(true)?)));
    most.map_err(|e| e.at_layer(shape.layer))
}

fn check_options(shape: &Shape, params: &ScoreParams, queries: Queries) -> Result<()> {
    shape.validate()?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    params.validate(shape.n_q_heads).map_err(at_layer)?;
    let n = match queries {
        Queries::Window => return Ok(()),
        Queries::After(n) => n,
        Queries::At(positions) => positions.len(),
    };
    ensure(n > 0, ErrorKind::Shape, c"n_queries").map_err(at_layer)?;
    let rows = (n as u64).checked_mul(shape.n_q_heads as u64);
    ensure(rows.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c"n_queries")
        .map_err(at_layer)?;
    // What is added here would take part in the next maximum.
    ensure(params.smoothing == 0.0, ErrorKind::Argument, c"smoothing").map_err(at_layer)
}

/// The KV heads that `part` of `n_parts` works on.
pub fn part_heads(shape: &Shape, part: usize, n_parts: usize) -> Result<Range<usize>> {
    split(shape.n_kv_heads, part, n_parts).map_err(|e| e.at_layer(shape.layer))
}

/// Scores the KV heads of one part.
///
/// `scores` begins at `shape.first_score(heads.start)`, where `heads = part_heads(shape, part, n_parts)`, and holds
/// `shape.prefix_rows(h)` numbers for each of them. Each part needs a workspace of its own. The scores do not depend on
/// `n_parts`. On an error `scores` may be partly written; where several heads are at fault, it names one of them.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn score(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
    part: usize,
    n_parts: usize,
    workspace: &mut Carver,
    scores: &mut [f32],
) -> Result<()> {
    score_by(Queries::Window, backend, shape, params, inputs, part, n_parts, workspace, scores)
}

/// Asks again: scores the KV heads of one part by `n_queries` queries that are not the cache's last rows, and joins the result with
/// what `scores` holds: of each live entry the larger of the two.
///
/// `inputs.q` is `[n_queries, n_q_heads, head_dim_k]`, after RoPE. Each query sees what one at position `n_tokens` would: every row of
/// the cache, the window's too, as far as a sliding window reaches. So these may be the prompt's own queries, turned to that position
/// ([`crate::rope::rotate`]), in any order and in instalments. All else is as in [`score`]; `scores` holds what that left there, or
/// zeros. `smoothing` must be 0: [`crate::adjust::smooth`] does that after the last of them.
///
/// On an error `scores` may be partly joined.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn score_queries(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    n_queries: usize,
    inputs: &ScoreInputs,
    part: usize,
    n_parts: usize,
    workspace: &mut Carver,
    scores: &mut [f32],
) -> Result<()> {
    score_by(Queries::After(n_queries), backend, shape, params, inputs, part, n_parts, workspace, scores)
}

/// The same by queries that see what queries at these positions would, one position for each, ascending, at most `n_tokens`: tokens that
/// only ask, or those of a prompt whose prefix is scored piece by piece. A row that stands after a query is not seen by it.
///
/// Each query must see a row of each head of the part, or it is an error of [`ErrorKind::Argument`].
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn score_queries_at(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    positions: &[u32],
    inputs: &ScoreInputs,
    part: usize,
    n_parts: usize,
    workspace: &mut Carver,
    scores: &mut [f32],
) -> Result<()> {
    score_by(Queries::At(positions), backend, shape, params, inputs, part, n_parts, workspace, scores)
}

/// That each query sees a row of a head.
fn check_seen(shape: &Shape, positions: &[u32], head: usize) -> Result<()> {
    let sees = |&p: &u32| {
        let oldest = shape.sliding_window.map_or(0, |keys| (p as usize + 1).saturating_sub(keys));
        let row = shape.first_row_at(head, oldest);
        row < shape.rows(head) && shape.position(head, row) <= p as usize
    };
    ensure(positions.iter().all(sees), ErrorKind::Argument, c"positions")
}

#[expect(clippy::too_many_arguments, reason = "those of the functions above")]
fn score_by(
    queries: Queries,
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
    part: usize,
    n_parts: usize,
    workspace: &mut Carver,
    scores: &mut [f32],
) -> Result<()> {
    check_options(shape, params, queries)?;
    let heads = part_heads(shape, part, n_parts)?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    check_inputs(shape, params, queries, inputs).map_err(at_layer)?;
    if let Queries::At(positions) = queries {
        let ascend = positions.is_sorted() && positions.last().is_none_or(|&p| p as usize <= shape.n_tokens);
        ensure(ascend, ErrorKind::Argument, c"positions").map_err(at_layer)?;
        for head in heads.clone() {
            check_seen(shape, positions, head).map_err(|e| at_layer(e.at_head(head)))?;
        }
    }
    let first = shape.first_score(heads.start);
    let fits = scores.len() >= shape.first_score(heads.end) - first;
    ensure(fits, ErrorKind::BufferSize, c"scores").map_err(at_layer)?;
    let plan = Plan::new(shape, params, queries, inputs.lse.is_some())?;
    let mut buffers = Buffers::carve(workspace, shape, params, queries, plan).map_err(at_layer)?;
    if shape.prefix_len() == 0 {
        return Ok(()); // the window covers everything: nothing competes
    }
    if params.value_weight != ValueWeight::None {
        let of_values = (params.value_weight, params.value_span);
        let kernels = backend.kernels;
        value::of_heads(kernels, shape, queries, of_values, &inputs.v, heads.clone(), buffers.head_value)
            .map_err(at_layer)?;
    }
    let kernels = backend.kernels.for_product(&inputs.q, &inputs.k);
    for head in heads {
        let out = &mut scores[shape.first_score(head) - first..shape.first_score(head + 1) - first];
        let task = Task::new(kernels, shape, params, inputs, head, queries);
        let done = match queries {
            Queries::Window => head::score(&task, plan, &mut buffers, out),
            Queries::After(_) | Queries::At(_) => {
                let joining = core::mem::take(&mut buffers.joining);
                let more = &mut joining[..out.len()];
                let done = head::score(&task, plan, &mut buffers, more);
                let done = done.and_then(|()| join(&more[task.live.clone()], &mut out[task.live.clone()]));
                buffers.joining = joining;
                done
            }
        };
        done.map_err(|e| at_layer(e.at_head(head)))?;
    }
    Ok(())
}

/// The larger of two scores of each entry, in `scores`, which must have been finite.
fn join(more: &[f32], scores: &mut [f32]) -> Result<()> {
    let mut finite = true;
    for (s, &x) in scores.iter_mut().zip(more) {
        finite &= s.is_finite();
        *s = if x > *s { x } else { *s };
    }
    ensure(finite, ErrorKind::NonFinite, c"scores")
}

/// Statistics of the KV heads of one part, `stats[0]` being the part's first head's, over their live prefix rows.
///
/// Of `params` only the logits' options are used, of `inputs` not the values. The workspace is that of `score`. On an
/// error `stats` may be partly written.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn attention_stats(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
    part: usize,
    n_parts: usize,
    workspace: &mut Carver,
    stats: &mut [AttentionStats],
) -> Result<()> {
    check_options(shape, params, Queries::Window)?;
    let params =
        ScoreParams { attention: Attention::MeanVariance, value_weight: ValueWeight::None, ..*params };
    let heads = part_heads(shape, part, n_parts)?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    check_inputs(shape, &params, Queries::Window, inputs).map_err(at_layer)?;
    ensure(stats.len() >= heads.len(), ErrorKind::BufferSize, c"stats").map_err(at_layer)?;
    let mut buffers =
        Buffers::carve(workspace, shape, &params, Queries::Window, Plan::LEAST).map_err(at_layer)?;
    let kernels = backend.kernels.for_product(&inputs.q, &inputs.k);
    for (head, out) in heads.zip(stats) {
        let task = Task::new(kernels, shape, &params, inputs, head, Queries::Window);
        *out = stats::of_head(&task, &mut buffers).map_err(|e| at_layer(e.at_head(head)))?;
    }
    Ok(())
}

/// That the tensors have the shape they should.
fn check_inputs(shape: &Shape, params: &ScoreParams, queries: Queries, inputs: &ScoreInputs) -> Result<()> {
    let fits = |t: &Tensor, heads: usize, dim: usize, rows: &dyn Fn(usize) -> usize| {
        t.n_heads() == heads && t.dim() == dim && (0..heads).all(|h| t.rows(h) >= rows(h))
    };
    let n_queries = |_| if shape.prefix_len() == 0 { 0 } else { queries.n(shape) };
    let rows = |h| shape.rows(h);
    ensure(fits(&inputs.q, shape.n_q_heads, shape.head_dim_k, &n_queries), ErrorKind::Shape, c"q")?;
    ensure(fits(&inputs.k, shape.n_kv_heads, shape.head_dim_k, &rows), ErrorKind::Shape, c"k")?;
    let v = fits(&inputs.v, shape.n_kv_heads, shape.head_dim_v, &rows);
    ensure(v || params.value_weight == ValueWeight::None, ErrorKind::Shape, c"v")?;
    let Some(lse) = &inputs.lse else { return Ok(()) };
    ensure(lse.dtype() == Dtype::F32, ErrorKind::Dtype, c"lse")?;
    ensure(fits(lse, shape.n_q_heads, 1, &n_queries), ErrorKind::Shape, c"lse")
}
