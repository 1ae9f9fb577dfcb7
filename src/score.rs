//! Stages 1 to 5: queries of the window, keys and values → one f32 score per prefix entry.
//!
//! ```text
//! A[h, j, i] = softmax_i(scale · q_j·k_i)       over all keys that query j sees
//! a[h, i]    = 1/w Σ_j A[h, j, i]               for i < P
//! S[g, i]    = vmax[g] · max_{h in g} maxpool(a)[h, i]     vmax[g] = max_i ‖V[i, g]‖₁
//! ```
//!
//! This is LAVa's score. What becomes of `A` ([`Attention`]), what it is multiplied by ([`ValueWeight`]), pooling and reduction are
//! options; with them other published scores are points of the same frame (`ScoreParams::snapkv` and its neighbours).
//!
//! | file | |
//! |---|---|
//! | `score/window.rs` | attention of the window, summed for each key |
//! | `score/pool.rs` | pooling along the tokens |
//! | `score/value.rs` | what the values have to say |
//! | `score/stats.rs` | entropy and variance of the attention: CAKE's layer preference |
//!
//! Source: arXiv 2509.09754, section 4.1. The work of one KV head touches nobody else's, so heads are the unit of
//! `(part, n_parts)`.

mod pool;
mod stats;
mod value;
mod window;

use core::ops::Range;

use crate::backend::{Backend, Kernels};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{Attention, GroupReduce, Pool, ScoreParams, Shape, ValueWeight, split};
use crate::view::Tensor;
use crate::workspace::{Carver, size_of_carve};

#[cfg(feature = "cuda")]
pub(crate) use stats::check_tau;
pub use stats::{AttentionStats, attention_stats, preference};
use window::{Buffers, Plan};

/// What scoring reads.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInputs<'a> {
    /// The last w queries after RoPE: `[window, n_q_heads, head_dim_k]`.
    pub q: Tensor<'a>,
    /// Keys after RoPE: `[n_tokens, n_kv_heads, head_dim_k]`.
    pub k: Tensor<'a>,
    /// Values: `[n_tokens, n_kv_heads, head_dim_v]`. Not looked at with [`ValueWeight::None`].
    pub v: Tensor<'a>,
    /// Natural log-sum-exp of each window query's scaled, capped, masked logits: f32 `[window, n_q_heads, 1]`.
    pub lse: Option<Tensor<'a>>,
}

/// Whether the group may be reduced before pooling: the two commute if both are maxima or both are means, or if there is
/// nothing to reduce or to pool. This is the common case, and it needs no row per query head. A head's output is its own.
fn reduce_first(shape: &Shape, params: &ScoreParams) -> bool {
    let alike = matches!(
        (params.pool, params.group_reduce),
        (Pool::Max, GroupReduce::Max) | (Pool::Avg, GroupReduce::Mean)
    );
    let commute = alike || shape.group_size() == 1 || params.pool_kernel == 1;
    commute && params.value_weight != ValueWeight::Output
}

/// Bytes of workspace that one part of [`score`] needs.
pub fn workspace_size(shape: &Shape, params: &ScoreParams) -> Result<usize> {
    shape.validate()?;
    params.validate()?;
    let size = |has_lse| {
        let plan = Plan::new(shape, params, has_lse)?;
        size_of_carve(|c| Buffers::carve(c, shape, params, plan))
    };
    Ok(size(false)?.max(size(true)?))
}

/// The KV heads that `part` of `n_parts` works on.
pub fn part_heads(shape: &Shape, part: usize, n_parts: usize) -> Result<Range<usize>> {
    split(shape.n_kv_heads, part, n_parts)
}

/// Scores the KV heads of one part.
///
/// `scores` is `[heads of the part, prefix_len]`, where the part's heads are `part_heads(shape, part, n_parts)`. Each part
/// needs a workspace of its own. The scores do not depend on `n_parts`. On an error `scores` may be partly written; where
/// several heads are at fault, it names one of them.
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
    shape.validate()?;
    params.validate()?;
    check_inputs(shape, params, inputs)?;
    let heads = part_heads(shape, part, n_parts)?;
    let prefix = shape.prefix_len();
    ensure(scores.len() >= heads.len() * prefix, ErrorKind::BufferSize, c"scores")?;
    let plan = Plan::new(shape, params, inputs.lse.is_some())?;
    let mut buffers = Buffers::carve(workspace, shape, params, plan)?;
    if prefix == 0 {
        return Ok(()); // the window covers everything: nothing competes
    }
    if params.value_weight != ValueWeight::None {
        value::maxima(backend.kernels, shape, params, &inputs.v, heads.clone(), buffers.value_max)?;
    }
    let kernels = backend.kernels.for_product(&inputs.q, &inputs.k);
    for (head, out) in heads.zip(scores.chunks_exact_mut(prefix)) {
        let task = Task { kernels, shape, params, inputs, plan, head };
        task.run(&mut buffers, out).map_err(|e| e.at_head(head).at_layer(shape.layer))?;
    }
    Ok(())
}
/// That the tensors have the shape they should.
fn check_inputs(shape: &Shape, params: &ScoreParams, inputs: &ScoreInputs) -> Result<()> {
    let fits = |t: &Tensor, rows: usize, heads: usize, dim: usize| {
        t.n_heads() == heads && t.dim() == dim && (0..heads).all(|h| t.rows(h) >= rows)
    };
    let window = if shape.prefix_len() == 0 { 0 } else { shape.window };
    ensure(fits(&inputs.q, window, shape.n_q_heads, shape.head_dim_k), ErrorKind::Shape, c"q")?;
    ensure(fits(&inputs.k, shape.n_tokens, shape.n_kv_heads, shape.head_dim_k), ErrorKind::Shape, c"k")?;
    let v = fits(&inputs.v, shape.n_tokens, shape.n_kv_heads, shape.head_dim_v);
    ensure(v || params.value_weight == ValueWeight::None, ErrorKind::Shape, c"v")?;
    match &inputs.lse {
        None => Ok(()),
        Some(lse) => {
            ensure(lse.dtype() == crate::view::Dtype::F32, ErrorKind::Dtype, c"lse")?;
            ensure(fits(lse, window, shape.n_q_heads, 1), ErrorKind::Shape, c"lse")
        }
    }
}

/// One KV head.
struct Task<'a> {
    kernels: &'static Kernels,
    shape: &'a Shape,
    params: &'a ScoreParams,
    inputs: &'a ScoreInputs<'a>,
    plan: Plan,
    head: usize,
}

impl Task<'_> {
    fn run(&self, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let params = self.params;
        out.fill(0.0);
        let n_summed = match params.attention {
            Attention::Recency => self.recency(out),
            _ => self.attention(b, out)?,
        };
        if params.value_weight == ValueWeight::Token {
            self.times_token_norms(out);
        }
        // The values' part is last: all else is at most 1, or known.
        let values = match params.value_weight {
            ValueWeight::HeadMax => b.value_max[self.head],
            _ => 1.0,
        };
        let factor = 1.0 / n_summed as f32;
        let mut finite = true;
        for s in out.iter_mut() {
            *s = *s * factor * values * params.weight;
            finite &= s.is_finite();
        }
        if params.smoothing > 0.0 {
            let mean = crate::entropy::mass(out, out.len()) / out.len() as f64;
            let more = (params.smoothing as f64 * mean) as f32;
            for s in out.iter_mut() {
                *s += more;
                finite &= s.is_finite();
            }
        }
        ensure(finite, ErrorKind::NonFinite, c"scores")
    }

    /// Positions for scores.
    fn recency(&self, out: &mut [f32]) -> usize {
        out.iter_mut().enumerate().for_each(|(i, s)| *s = (i + 1) as f32);
        pool::pool(self.kernels, self.params, out);
        1
    }

    /// Attention, pooled and reduced over the group. Returns by how much it is yet to be divided.
    fn attention(&self, b: &mut Buffers, out: &mut [f32]) -> Result<usize> {
        let (shape, params) = (self.shape, self.params);
        let group = shape.group_size();
        if self.inputs.lse.is_some() {
            self.check_window_keys()?;
        }
        for first in (0..group).step_by(self.plan.together) {
            self.look_at_rows(b, first)?;
            // Heads that must be pooled one by one need a row of their own before they meet.
            let own = core::mem::take(&mut b.head_row);
            let row = if reduce_first(shape, params) { &mut *out } else { &mut *own };
            match self.plan.store {
                true => self.sum_stored_columns(b, row),
                false => self.sum_columns(b, row)?,
            }
            if !reduce_first(shape, params) {
                if params.value_weight == ValueWeight::Output {
                    self.to_output_change(own);
                }
                let prefix = &mut own[..shape.prefix_len()];
                pool::pool(self.kernels, params, prefix);
                self.reduce_into(prefix, out);
                own.fill(0.0);
            }
            b.head_row = own;
        }
        if reduce_first(shape, params) {
            pool::pool(self.kernels, params, out);
        }
        // Attention is a mean over the window, and so may be the group's.
        let of_group = if params.group_reduce == GroupReduce::Mean { group } else { 1 };
        Ok(shape.window * of_group)
    }

    /// Stage 5, without the mean's division.
    fn reduce_into(&self, from: &[f32], into: &mut [f32]) {
        for (o, &x) in into.iter_mut().zip(from) {
            *o = match self.params.group_reduce {
                GroupReduce::Max if x > *o => x,
                GroupReduce::Max => *o,
                GroupReduce::Mean => *o + x,
            };
        }
    }
}

/// Gives all heads the mean of their scores, so that they keep the same tokens under equal head budgets: TOVA's one set for all.
///
/// `scores` is `[n_kv_heads, prefix_len]`. The mean of the group means is the mean over all query heads.
pub fn mean_over_heads(scores: &mut [f32], n_kv_heads: usize, prefix_len: usize) -> Result<()> {
    let n = n_kv_heads.checked_mul(prefix_len).ok_or(Error::new(ErrorKind::Overflow, c"prefix_len"))?;
    ensure(scores.len() >= n, ErrorKind::BufferSize, c"scores")?;
    let scores = &mut scores[..n];
    for (h, head) in scores.chunks_exact(prefix_len.max(1)).enumerate() {
        ensure(head.iter().all(|s| s.is_finite()), ErrorKind::NonFinite, c"scores")
            .map_err(|e| e.at_head(h))?;
    }
    let column =
        |scores: &[f32], i| scores.iter().skip(i).step_by(prefix_len).map(|&s| s as f64).sum::<f64>();
    for i in 0..prefix_len {
        scores[i] = (column(scores, i) / n_kv_heads as f64) as f32;
    }
    if let Some((mean, rest)) = scores.split_at_mut_checked(prefix_len) {
        rest.chunks_exact_mut(prefix_len.max(1)).for_each(|head| head.copy_from_slice(mean));
    }
    Ok(())
}
