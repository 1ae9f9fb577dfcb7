//! Stages 1 to 5: queries of the window, keys and values → one f32 score per prefix entry.
//!
//! ```text
//! A[h, j, i] = softmax_i(scale · q_j·k_i)       over all keys that query j sees
//! a[h, i]    = 1/w Σ_j A[h, j, i]               for i < P
//! S[g, i]    = vmax[g] · max_{h in g} maxpool(a)[h, i]     vmax[g] = max_i ‖V[i, g]‖₁
//! ```
//!
//! The attention matrix is never stored whole. Keys go by in blocks; each block is widened and transposed once for all
//! query rows that look at it. What a column sum needs, each row's log-sum-exp, is known only behind the last key. Three ways:
//!
//! - The caller has the log-sum-exp: one pass.
//! - There is memory for the exponentials of one or more query heads over all keys (within a tenth of the layer's own
//!   size; 24 bits each): one pass leaves `exp(logit − maximum so far)` there, a second, without arithmetic to speak of, weighs and sums it.
//! - There is not: the logits are computed twice. Short prompts end up here, where it does not matter.
//!
//! Source: arXiv 2509.09754, section 4.1. The work of one KV head touches nobody else's, so heads are the unit of
//! `(part, n_parts)`.

use core::ops::Range;

use crate::backend::{Backend, Block, KEY_BLOCK, Kernels, PUT_AWAY_ROW, UNSEEN};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{
    GroupReduce, MAX_POOL_KERNEL, Pool, ScoreParams, Shape, ValueSpan, scale_or_default, split,
};
use crate::view::Tensor;
use crate::workspace::{Carver, size_of_carve};

/// What scoring reads.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInputs<'a> {
    /// The last w queries after RoPE: `[window, n_q_heads, head_dim_k]`.
    pub q: Tensor<'a>,
    /// Keys after RoPE: `[n_tokens, n_kv_heads, head_dim_k]`.
    pub k: Tensor<'a>,
    /// Values: `[n_tokens, n_kv_heads, head_dim_v]`.
    pub v: Tensor<'a>,
    /// Natural log-sum-exp of each window query's scaled, capped, masked logits: f32 `[window, n_q_heads, 1]`.
    pub lse: Option<Tensor<'a>>,
}

/// How the query heads of a group are gone through.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Query heads that look at each packed block of keys together; a divisor of the group's size.
    together: usize,
    /// Whether their exponentials over the prefix are stored, so that the logits need not be computed twice.
    store: bool,
}

impl Plan {
    /// The largest plan whose buffers are at most a tenth of the layer's K and V in f16: storing before not storing, more
    /// heads before fewer. One head at a time, not stored, if there is none.
    fn new(shape: &Shape, params: &ScoreParams, has_lse: bool) -> Result<Self> {
        let layer = 2
            * shape.n_tokens as u64
            * shape.n_kv_heads as u64
            * (shape.head_dim_k + shape.head_dim_v) as u64;
        // Heads that are pooled one by one are computed one by one.
        let most = if reduce_first(shape, params) { shape.group_size() } else { 1 };
        // With the log-sum-exp given there is nothing to store.
        for store in [true, false].into_iter().skip(has_lse as usize) {
            for together in (1..=most).rev().filter(|n| shape.group_size().is_multiple_of(*n)) {
                let plan = Self { together, store };
                match size_of_carve(|c| Buffers::carve(c, shape, params, plan)) {
                    Ok(size) if size as u64 <= layer / 10 => return Ok(plan),
                    _ => {}
                }
            }
        }
        Ok(Self { together: 1, store: false })
    }
}

/// Buffers of one part. `rows` are the query rows of the heads that go together: `together · window`.
struct Buffers<'a> {
    /// Queries, scaled: `[rows, head_dim_k]`.
    q: &'a mut [f32],
    /// One block of keys, transposed: `[head_dim_k, KEY_BLOCK]`.
    panel: &'a mut [f32],
    /// Logits of one query head against the block: `[window, KEY_BLOCK]`.
    tile: &'a mut [f32],
    /// Per query row: its maximum, and behind the last key its log-sum-exp.
    max: &'a mut [f32],
    /// Per query row: its sum.
    sum: &'a mut [f64],
    /// Stage 4's result: `[n_kv_heads]`, of which the part's own are used.
    value_max: &'a mut [f32],
    /// One query head's attention: `[prefix_len]`, only where each head must be pooled by itself.
    head_row: &'a mut [f32],
    /// Exponentials over the prefix, block by block, put away in 24 bits each: `[blocks, rows, PUT_AWAY_ROW]`. Or nothing.
    exps: &'a mut [u8],
    /// The maximum that each of them was taken with: `[blocks, rows]`.
    exps_max: &'a mut [f32],
}

impl<'a> Buffers<'a> {
    fn carve(c: &mut Carver<'a>, shape: &Shape, params: &ScoreParams, plan: Plan) -> Result<Self> {
        // Where nothing competes nothing is needed.
        let any = (shape.prefix_len() > 0) as usize;
        let rows = any * plan.together * shape.window;
        let stored = if plan.store { rows.saturating_mul(shape.prefix_len().div_ceil(KEY_BLOCK)) } else { 0 };
        Ok(Self {
            q: c.take(rows.saturating_mul(shape.head_dim_k))?,
            panel: c.take(any * shape.head_dim_k * KEY_BLOCK)?,
            tile: c.take(any * shape.window.saturating_mul(KEY_BLOCK))?,
            max: c.take(rows)?,
            sum: c.take(rows)?,
            value_max: c.take(any * shape.n_kv_heads)?,
            head_row: c.take(if reduce_first(shape, params) { 0 } else { shape.prefix_len() })?,
            exps: c.take(stored.saturating_mul(PUT_AWAY_ROW))?,
            exps_max: c.take(stored)?,
        })
    }
}

/// Whether the group may be reduced before pooling: the two commute if both are maxima or both are means, or if there is
/// nothing to reduce or to pool. This is the common case, and it needs no row per query head.
fn reduce_first(shape: &Shape, params: &ScoreParams) -> bool {
    let alike = matches!(
        (params.pool, params.group_reduce),
        (Pool::Max, GroupReduce::Max) | (Pool::Avg, GroupReduce::Mean)
    );
    alike || shape.group_size() == 1 || params.pool_kernel == 1
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
    check_inputs(shape, inputs)?;
    let heads = part_heads(shape, part, n_parts)?;
    let prefix = shape.prefix_len();
    ensure(scores.len() >= heads.len() * prefix, ErrorKind::BufferSize, c"scores")?;
    let plan = Plan::new(shape, params, inputs.lse.is_some())?;
    let mut buffers = Buffers::carve(workspace, shape, params, plan)?;
    if prefix == 0 {
        return Ok(()); // the window covers everything: nothing competes
    }
    value_maxima(backend.kernels, shape, params, &inputs.v, heads.clone(), buffers.value_max)?;
    for (head, out) in heads.zip(scores.chunks_exact_mut(prefix)) {
        let task = Task { kernels: backend.kernels, shape, params, inputs, plan, head };
        task.run(&mut buffers, out).map_err(|e| e.at_head(head).at_layer(shape.layer))?;
    }
    Ok(())
}

/// Stage 4: `max ‖V[i]‖₁` over the prefix, or over all tokens. Every row is read, so that every NaN is found.
///
/// Not head by head: where the heads of a token are neighbours, they are read together, in the order of memory.
fn value_maxima(
    kernels: &Kernels,
    shape: &Shape,
    params: &ScoreParams,
    v: &Tensor,
    heads: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let step = if v.is_token_major() { 1 } else { 256 };
    let (prefix, n) = (shape.prefix_len(), shape.n_tokens);
    for tokens in [0..prefix, prefix..n] {
        let counts = tokens.end == prefix || params.value_span == ValueSpan::All;
        for first in tokens.clone().step_by(step) {
            for head in heads.clone() {
                let block = Block { tensor: v, head, first, n: step.min(tokens.end - first) };
                let norm = (kernels.max_l1)(&block);
                ensure(norm.is_finite(), ErrorKind::NonFinite, c"v")
                    .map_err(|e| e.at_head(head).at_layer(shape.layer))?;
                if counts && norm > out[head] {
                    out[head] = norm;
                }
            }
        }
    }
    Ok(())
}

/// That the tensors have the shape they should.
fn check_inputs(shape: &Shape, inputs: &ScoreInputs) -> Result<()> {
    let fits = |t: &Tensor, rows: usize, heads: usize, dim: usize| {
        t.n_heads() == heads && t.dim() == dim && (0..heads).all(|h| t.rows(h) >= rows)
    };
    let window = if shape.prefix_len() == 0 { 0 } else { shape.window };
    ensure(fits(&inputs.q, window, shape.n_q_heads, shape.head_dim_k), ErrorKind::Shape, c"q")?;
    ensure(fits(&inputs.k, shape.n_tokens, shape.n_kv_heads, shape.head_dim_k), ErrorKind::Shape, c"k")?;
    ensure(fits(&inputs.v, shape.n_tokens, shape.n_kv_heads, shape.head_dim_v), ErrorKind::Shape, c"v")?;
    match &inputs.lse {
        None => Ok(()),
        Some(lse) => {
            ensure(lse.dtype() == crate::view::Dtype::F32, ErrorKind::Dtype, c"lse")?;
            ensure(fits(lse, window, shape.n_q_heads, 1), ErrorKind::Shape, c"lse")
        }
    }
}

/// Query rows whose logits are computed between two requests for rows to come.
const QUERY_BLOCK: usize = 16;

/// Rows of the next block of keys, asked for a few at a time: a core can wait for a few dozen cache lines only.
struct Ahead<'a> {
    rows: Block<'a>,
    step: usize,
}

impl Ahead<'_> {
    fn ask(&mut self, kernels: &Kernels) {
        let n = self.step.min(self.rows.n);
        (kernels.prefetch)(&Block { n, ..self.rows });
        self.rows.first += n;
        self.rows.n -= n;
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
        let (shape, params) = (self.shape, self.params);
        let vmax = b.value_max[self.head];
        let group = shape.group_size();
        if self.inputs.lse.is_some() {
            self.check_window_keys()?;
        }
        out.fill(0.0);
        for first in (0..group).step_by(self.plan.together) {
            self.load_queries(first, b.q);
            match &self.inputs.lse {
                Some(lse) => self.load_lse(lse, first, b.max)?,
                None => self.first_pass(b)?,
            }
            if reduce_first(shape, params) {
                self.sum_columns(b, out)?;
            } else {
                let row = core::mem::take(&mut b.head_row);
                row.fill(0.0);
                self.sum_columns(b, row)?;
                pool(self.kernels, params, row);
                self.reduce_into(row, out);
                b.head_row = row;
            }
        }
        if reduce_first(shape, params) {
            pool(self.kernels, params, out);
        }
        // Attention is a mean over the window; a mean over the group is folded in. `vmax` is last: all else is at most 1.
        let mean = if params.group_reduce == GroupReduce::Mean { group } else { 1 };
        let factor = 1.0 / (shape.window * mean) as f32;
        let mut finite = true;
        for s in out.iter_mut() {
            *s = *s * factor * vmax;
            finite &= s.is_finite();
        }
        ensure(finite, ErrorKind::NonFinite, c"scores")
    }

    /// The queries of the heads from `first` of the group on, scaled, one head behind the other.
    fn load_queries(&self, first: usize, q: &mut [f32]) {
        let (w, d) = (self.shape.window, self.shape.head_dim_k);
        let scale = scale_or_default(self.params.scale, d);
        for (r, row) in q.chunks_exact_mut(d).enumerate() {
            self.inputs.q.widen(self.query_head(first + r / w), r % w, row);
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }

    fn query_head(&self, in_group: usize) -> usize {
        self.head * self.shape.group_size() + in_group
    }

    fn load_lse(&self, lse: &Tensor, first: usize, out: &mut [f32]) -> Result<()> {
        let w = self.shape.window;
        for (r, out) in out.iter_mut().enumerate() {
            lse.for_each(self.query_head(first + r / w), r % w, |_, x| *out = x);
            ensure(out.is_finite(), ErrorKind::NonFinite, c"lse")?;
        }
        Ok(())
    }

    /// With the log-sum-exp given, only the prefix's keys are gone through; the window's are looked at here.
    fn check_window_keys(&self) -> Result<()> {
        let mut finite = true;
        for i in self.shape.prefix_len()..self.shape.n_tokens {
            self.inputs.k.for_each(self.head, i, |_, x| finite &= x.is_finite());
        }
        ensure(finite, ErrorKind::NonFinite, c"k")
    }

    /// Log-sum-exp of the rows over all keys that they see, into `b.max`; the exponentials of the prefix stay in `b.exps` if
    /// there is room.
    fn first_pass(&self, b: &mut Buffers) -> Result<()> {
        let (w, heads) = (self.shape.window, self.plan.together);
        b.max.fill(UNSEEN);
        b.sum.fill(0.0);
        for first in (0..self.shape.n_tokens).step_by(KEY_BLOCK) {
            let n = KEY_BLOCK.min(self.shape.n_tokens - first);
            (self.kernels.pack_keys)(&self.keys(first, n), b.panel);
            let mut ahead = self.ahead(first + n, self.shape.n_tokens);
            for h in 0..heads {
                let own = h * w..(h + 1) * w;
                self.logits(b.q, b.panel, b.tile, h, (first, n), &mut ahead)?;
                (self.kernels.softmax_rows)(b.tile, &mut b.max[own.clone()], &mut b.sum[own.clone()]);
                if self.plan.store && first < self.shape.prefix_len() {
                    let slot = (first / KEY_BLOCK * heads + h) * w;
                    (self.kernels.put_away)(
                        b.tile,
                        &mut b.exps[slot * PUT_AWAY_ROW..(slot + w) * PUT_AWAY_ROW],
                    );
                    b.exps_max[slot..slot + w].copy_from_slice(&b.max[own]);
                }
            }
        }
        for (max, sum) in b.max.iter_mut().zip(&*b.sum) {
            // Every query sees its own key, so the sum is at least 1.
            *max = (*max as f64 + libm::log(*sum)) as f32;
        }
        Ok(())
    }

    /// For each prefix key, the sum over the window of its attention, reduced over the heads at hand into `out`.
    fn sum_columns(&self, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let (w, heads) = (self.shape.window, self.plan.together);
        for (block, out) in out.chunks_mut(KEY_BLOCK).enumerate() {
            let (first, n) = (block * KEY_BLOCK, out.len());
            if !self.plan.store {
                (self.kernels.pack_keys)(&self.keys(first, n), b.panel);
            }
            let mut ahead = self.ahead(first + n, self.shape.prefix_len());
            for h in 0..heads {
                let lse = &b.max[h * w..(h + 1) * w];
                let mut sums = [0.0f32; KEY_BLOCK];
                if self.plan.store {
                    let slot = (block * heads + h) * w;
                    let exps = &b.exps[slot * PUT_AWAY_ROW..(slot + w) * PUT_AWAY_ROW];
                    (self.kernels.add_weighted_rows)(exps, &b.exps_max[slot..slot + w], lse, &mut sums);
                } else {
                    self.logits(b.q, b.panel, b.tile, h, (first, n), &mut ahead)?;
                    (self.kernels.add_exp_rows)(b.tile, lse, &mut sums);
                }
                self.reduce_into(&sums[..n], out);
            }
        }
        Ok(())
    }

    fn keys(&self, first: usize, n: usize) -> Block<'_> {
        Block { tensor: &self.inputs.k, head: self.head, first, n }
    }

    /// The block of keys from `first` on, up to key `end`, to be asked for while the block before it is at work.
    fn ahead(&self, first: usize, end: usize) -> Ahead<'_> {
        let n = KEY_BLOCK.min(end.saturating_sub(first));
        let times = self.plan.together * self.shape.window.div_ceil(QUERY_BLOCK);
        Ahead { rows: self.keys(first, n), step: n.div_ceil(times) }
    }

    /// Logits of the `h`-th query head at hand against the packed keys `first .. first + n`; `UNSEEN` where the query does not look.
    fn logits(
        &self,
        q: &[f32],
        panel: &[f32],
        tile: &mut [f32],
        h: usize,
        (first, n): (usize, usize),
        ahead: &mut Ahead,
    ) -> Result<()> {
        let (w, d) = (self.shape.window, self.shape.head_dim_k);
        let q = &q[h * w * d..(h + 1) * w * d];
        let mut finite = true;
        for (q, tile) in q.chunks(QUERY_BLOCK * d).zip(tile.chunks_mut(QUERY_BLOCK * KEY_BLOCK)) {
            ahead.ask(self.kernels);
            finite &= (self.kernels.logits)(q, panel, tile);
        }
        ensure(finite, ErrorKind::NonFinite, c"q or k")?;
        if let Some(cap) = self.params.softcap {
            (self.kernels.softcap)(tile, cap);
        }
        let all_seen = n == KEY_BLOCK
            && first + n <= self.shape.prefix_len() + 1
            && self.params.sliding_window.is_none_or(|swa| first + swa >= self.shape.n_tokens);
        if !all_seen {
            for (j, row) in tile.chunks_exact_mut(KEY_BLOCK).enumerate() {
                let sees = self.visible(j, first, n);
                row[..sees.start].fill(UNSEEN);
                row[sees.end..].fill(UNSEEN);
            }
        }
        Ok(())
    }

    /// Which of the keys `first .. first + n` window query `j` sees, as a range within the block.
    fn visible(&self, j: usize, first: usize, n: usize) -> Range<usize> {
        let position = self.shape.prefix_len() + j;
        let oldest = self.params.sliding_window.map_or(0, |swa| (position + 1).saturating_sub(swa));
        let begin = oldest.saturating_sub(first).min(n);
        let end = (position + 1).saturating_sub(first).min(n);
        begin..end.max(begin)
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

/// Stage 3, in place: block by block through the stack, each block with `radius` neighbours on both sides. Positions outside
/// the prefix are zero: the smallest score for a maximum, and what the field's average counts.
fn pool(kernels: &Kernels, params: &ScoreParams, x: &mut [f32]) {
    const BLOCK: usize = 256;
    const MAX_RADIUS: usize = MAX_POOL_KERNEL / 2;
    let kernel = params.pool_kernel;
    let radius = kernel / 2;
    if radius == 0 {
        return;
    }
    let mut around = [0.0f32; BLOCK + 2 * MAX_RADIUS];
    for first in (0..x.len()).step_by(BLOCK) {
        let n = BLOCK.min(x.len() - first);
        // The left neighbours have been overwritten in x; the last block's copy still has them.
        if first > 0 {
            around.copy_within(BLOCK..BLOCK + radius, 0);
        }
        let right = (first + n + radius).min(x.len());
        let filled = radius + right - first;
        around[radius..filled].copy_from_slice(&x[first..right]);
        around[filled..].fill(0.0);
        let out = &mut x[first..first + n];
        match params.pool {
            Pool::Max => (kernels.pool_max)(&around[..n + kernel - 1], kernel, out),
            Pool::Avg => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = around[i..i + kernel].iter().sum::<f32>() / kernel as f32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_in_place_sees_what_was_there() {
        for n in [1, 2, 255, 256, 257, 511, 512, 513, 700] {
            for kernel in [1, 3, 7, 63, 127] {
                for mode in [Pool::Max, Pool::Avg] {
                    // Falling and rising runs: a neighbour more or less shows.
                    let x: Vec<f32> =
                        (0..n).map(|i| ((i * 37) % 101) as f32 + (i as f32 - 300.0).abs()).collect();
                    let radius = kernel / 2;
                    let want = |i: usize| {
                        let near = &x[i.saturating_sub(radius)..(i + radius + 1).min(n)];
                        match mode {
                            Pool::Max => near.iter().copied().fold(0.0, f32::max),
                            Pool::Avg => near.iter().sum::<f32>() / kernel as f32,
                        }
                    };
                    let mut got = x.clone();
                    pool(
                        Backend::scalar().kernels,
                        &ScoreParams { pool: mode, pool_kernel: kernel, ..Default::default() },
                        &mut got,
                    );
                    for i in 0..n {
                        assert!(
                            (got[i] - want(i)).abs() <= 1e-5 * want(i),
                            "{i} of {n}, kernel {kernel}, {mode:?}"
                        );
                    }
                }
            }
        }
    }
}
