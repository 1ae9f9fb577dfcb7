//! Stages 1 to 5: queries of the window, keys and values → one f32 score per prefix entry.
//!
//! ```text
//! A[h, j, i] = softmax_i(scale · q_j·k_i)       over all keys that query j sees
//! a[h, i]    = 1/w Σ_j A[h, j, i]               for i < P
//! S[g, i]    = vmax[g] · max_{h in g} maxpool(a)[h, i]     vmax[g] = max_i ‖V[i, g]‖₁
//! ```
//!
//! The attention matrix is never stored whole. Keys go by in blocks; each block is widened once for all query rows that look
//! at it. What a column sum needs, each row's log-sum-exp, is known only behind the last key. Three ways:
//!
//! - The caller has the log-sum-exp: one pass.
//! - There is memory for the exponentials of one or more query heads over all keys (within a tenth of the layer's own
//!   size; 24 bits each): one pass leaves `exp(logit − maximum so far)` there, a second, without arithmetic to speak of, weighs
//!   and sums it.
//! - There is not: the logits are computed twice. Short prompts end up here, where it does not matter.
//!
//! Source: arXiv 2509.09754, section 4.1. The work of one KV head touches nobody else's, so heads are the unit of
//! `(part, n_parts)`.

use core::f32::consts::LOG2_E;
use core::ops::Range;

use crate::backend::{Backend, Block, KEY_BLOCK, Kernels, PUT_AWAY, ROW_BLOCK, UNSEEN};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{
    GroupReduce, MAX_HEAD_DIM, MAX_POOL_KERNEL, Pool, Scale, ScoreParams, Shape, ValueSpan, split,
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
    /// Query heads that look at each loaded block of keys together; a divisor of the group's size.
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
            for together in divisors(most) {
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

/// Divisors of `n`, the largest first, in steps that grow with its root: a caller may ask for billions of heads.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let small = (1..=n.isqrt()).filter(move |d| n.is_multiple_of(*d));
    small.clone().map(move |d| n / d).chain(small.rev().filter(move |d| d * d < n))
}

/// Buffers of one part. `rows` are the window's query rows of one head, filled up to [`ROW_BLOCK`]s with rows of zeros, whose
/// log-sum-exp is +∞: nothing they look at gets any attention.
struct Buffers<'a> {
    /// Queries of the heads that go together: `[together, head_dim_k, rows]`.
    panel: &'a mut [f32],
    /// One block of keys: `[KEY_BLOCK, head_dim_k]`.
    keys: &'a mut [f32],
    /// Logits of the block and one query head: `[KEY_BLOCK, rows]`.
    tile: &'a mut [f32],
    /// Per query row, its maximum, and behind the last key its log-sum-exp, over ln 2: `[together, rows]`.
    max: &'a mut [f32],
    /// Per query row, its sum: `[together, rows]`.
    sum: &'a mut [f64],
    /// Stage 4's result: `[n_kv_heads]`, of which the part's own are used.
    value_max: &'a mut [f32],
    /// One query head's attention: `[prefix_len]`, only where each head must be pooled by itself.
    head_row: &'a mut [f32],
    /// Exponentials over the prefix, block by block, put away: `[blocks, together, KEY_BLOCK, rows · PUT_AWAY]`. Or nothing.
    exps: &'a mut [u8],
    /// The maximum that each of them was taken with: `[blocks, together, rows]`.
    exps_max: &'a mut [f32],
}

/// Bytes of rows that are put away, a block of keys each.
fn bytes(rows: &Range<usize>) -> Range<usize> {
    rows.start * KEY_BLOCK * PUT_AWAY..rows.end * KEY_BLOCK * PUT_AWAY
}

/// Query rows of a head, filled up.
fn rows_of(shape: &Shape) -> usize {
    shape.window.next_multiple_of(ROW_BLOCK)
}

impl<'a> Buffers<'a> {
    fn carve(c: &mut Carver<'a>, shape: &Shape, params: &ScoreParams, plan: Plan) -> Result<Self> {
        // Where nothing competes nothing is needed.
        let any = (shape.prefix_len() > 0) as usize;
        let rows = any * rows_of(shape);
        let all = plan.together * rows;
        let stored = if plan.store { all.saturating_mul(shape.prefix_len().div_ceil(KEY_BLOCK)) } else { 0 };
        Ok(Self {
            panel: c.take(all.saturating_mul(shape.head_dim_k))?,
            keys: c.take(any * shape.head_dim_k * KEY_BLOCK)?,
            tile: c.take(rows.saturating_mul(KEY_BLOCK))?,
            max: c.take(all)?,
            sum: c.take(all)?,
            value_max: c.take(any * shape.n_kv_heads)?,
            head_row: c.take(if reduce_first(shape, params) { 0 } else { shape.prefix_len() })?,
            exps: c.take(stored.saturating_mul(KEY_BLOCK * PUT_AWAY))?,
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
    let kernels = backend.kernels.for_product(&inputs.q, &inputs.k);
    for (head, out) in heads.zip(scores.chunks_exact_mut(prefix)) {
        let task = Task { kernels, shape, params, inputs, plan, head };
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

/// Keys whose logits are computed between two requests for rows to come.
const KEYS_AT_ONCE: usize = 16;

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
            self.load_queries(first, b.panel);
            match &self.inputs.lse {
                Some(lse) => self.load_lse(lse, first, b.max)?,
                None => self.first_pass(b)?,
            }
            // Heads that must be pooled one by one need a row of their own before they meet.
            let own = core::mem::take(&mut b.head_row);
            let row = if reduce_first(shape, params) { &mut *out } else { &mut *own };
            match self.plan.store {
                true => self.sum_stored_columns(b, row),
                false => self.sum_columns(b, row)?,
            }
            if !reduce_first(shape, params) {
                pool(self.kernels, params, own);
                self.reduce_into(own, out);
                own.fill(0.0);
            }
            b.head_row = own;
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

    /// The queries of the heads from `first` of the group on, as panels.
    fn load_queries(&self, first: usize, panel: &mut [f32]) {
        let (rows, words) = (rows_of(self.shape), self.words());
        let sign = self.scale().sign;
        let mut numbers = [0.0; MAX_HEAD_DIM];
        let mut row = [0.0; MAX_HEAD_DIM];
        for (h, panel) in panel.chunks_exact_mut(rows * self.shape.head_dim_k).enumerate() {
            panel.fill(0.0);
            for j in 0..self.shape.window {
                let numbers = &mut numbers[..self.shape.head_dim_k];
                self.inputs.q.widen(self.query_head(first + h), j, numbers);
                numbers.iter_mut().for_each(|x| *x *= sign);
                (self.kernels.to_words)(numbers, &mut row[..words]);
                for (to, word) in panel.chunks_exact_mut(rows).zip(&row[..words]) {
                    to[j] = *word;
                }
            }
        }
    }

    /// Words of a key or a query.
    fn words(&self) -> usize {
        self.shape.head_dim_k / self.kernels.dims_per_word
    }

    fn scale(&self) -> Scale {
        Scale::new(self.params.scale, self.shape.head_dim_k)
    }

    fn query_head(&self, in_group: usize) -> usize {
        self.head * self.shape.group_size() + in_group
    }

    fn load_lse(&self, lse: &Tensor, first: usize, out: &mut [f32]) -> Result<()> {
        for (h, out) in out.chunks_exact_mut(rows_of(self.shape)).enumerate() {
            let (own, padding) = out.split_at_mut(self.shape.window);
            for (j, out) in own.iter_mut().enumerate() {
                lse.for_each(self.query_head(first + h), j, |_, x| *out = x);
                ensure(out.is_finite(), ErrorKind::NonFinite, c"lse")?;
                *out *= LOG2_E;
            }
            padding.fill(f32::INFINITY);
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
        let rows = rows_of(self.shape);
        b.max.fill(UNSEEN);
        b.sum.fill(0.0);
        for first in (0..self.shape.n_tokens).step_by(KEY_BLOCK) {
            let n = KEY_BLOCK.min(self.shape.n_tokens - first);
            let mut ahead = self.load_keys(b.keys, (first, n), self.shape.n_tokens);
            for h in 0..self.plan.together {
                self.logits(b, h, (first, n), &mut ahead)?;
                let away = match self.plan.store && first < self.shape.prefix_len() {
                    true => self.put_away(first / KEY_BLOCK, h),
                    false => 0..0,
                };
                let own = h * rows..(h + 1) * rows;
                let (max, sum) = (&mut b.max[own.clone()], &mut b.sum[own]);
                (self.kernels.absorb)(b.tile, self.exponent(), max, sum, &mut b.exps[bytes(&away)]);
                b.exps_max[away.clone()].copy_from_slice(&max[..away.len()]);
            }
        }
        for (max, sum) in b.max.chunks_exact_mut(rows).zip(b.sum.chunks_exact(rows)) {
            for (j, (max, sum)) in max.iter_mut().zip(sum).enumerate() {
                // Every query sees its own key, so the sum is at least 1.
                *max = if j < self.shape.window {
                    (*max as f64 + libm::log2(*sum)) as f32
                } else {
                    f32::INFINITY
                };
            }
        }
        Ok(())
    }

    /// Where the rows of a block and a head are put away, counted in rows.
    fn put_away(&self, block: usize, h: usize) -> Range<usize> {
        let (rows, slot) = (rows_of(self.shape), block * self.plan.together + h);
        slot * rows..(slot + 1) * rows
    }

    /// For each prefix key, the sum over the window of its attention, reduced over the heads at hand into `out`.
    fn sum_columns(&self, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let rows = rows_of(self.shape);
        for (block, out) in out.chunks_mut(KEY_BLOCK).enumerate() {
            let keys = (block * KEY_BLOCK, out.len());
            let mut ahead = self.load_keys(b.keys, keys, self.shape.prefix_len());
            for h in 0..self.plan.together {
                let mut sums = [0.0f32; KEY_BLOCK];
                self.logits(b, h, keys, &mut ahead)?;
                (self.kernels.add_exp)(b.tile, self.exponent(), &b.max[h * rows..(h + 1) * rows], &mut sums);
                self.reduce_into(&sums[..keys.1], out);
            }
        }
        Ok(())
    }

    /// The same of the exponentials that were put away.
    fn sum_stored_columns(&self, b: &mut Buffers, out: &mut [f32]) {
        let rows = rows_of(self.shape);
        for (block, out) in out.chunks_mut(KEY_BLOCK).enumerate() {
            for h in 0..self.plan.together {
                let away = self.put_away(block, h);
                let lse = &b.max[h * rows..(h + 1) * rows];
                let mut sums = [0.0f32; KEY_BLOCK];
                (self.kernels.add_weighted)(&b.exps[bytes(&away)], &b.exps_max[away], lse, &mut sums);
                self.reduce_into(&sums[..out.len()], out);
            }
        }
    }

    /// The factor of the exponents.
    fn exponent(&self) -> f32 {
        self.scale().of_exponent(self.params.softcap)
    }

    /// Loads the keys `first .. first + n`; the block behind them, up to key `end`, is to be asked for meanwhile.
    fn load_keys(&self, keys: &mut [f32], (first, n): (usize, usize), end: usize) -> Ahead<'_> {
        (self.kernels.load_keys)(&self.keys(first, n), &mut keys[..KEY_BLOCK * self.words()]);
        self.ahead(first + n, end)
    }

    fn keys(&self, first: usize, n: usize) -> Block<'_> {
        Block { tensor: &self.inputs.k, head: self.head, first, n }
    }

    /// The block of keys from `first` on, up to key `end`.
    fn ahead(&self, first: usize, end: usize) -> Ahead<'_> {
        let n = KEY_BLOCK.min(end.saturating_sub(first));
        Ahead { rows: self.keys(first, n), step: n.div_ceil(self.plan.together * KEY_BLOCK / KEYS_AT_ONCE) }
    }

    /// Logits of the loaded keys `first .. first + n` and the `h`-th query head at hand; `UNSEEN` where the query does not look.
    fn logits(&self, b: &mut Buffers, h: usize, (first, n): (usize, usize), ahead: &mut Ahead) -> Result<()> {
        let (rows, words, w) = (rows_of(self.shape), self.words(), self.shape.window);
        let panel = &b.panel[h * rows * self.shape.head_dim_k..][..rows * words];
        let keys = b.keys[..KEY_BLOCK * words].chunks_exact(KEYS_AT_ONCE * words);
        let mut finite = true;
        for (keys, tile) in keys.zip(b.tile.chunks_exact_mut(KEYS_AT_ONCE * rows)) {
            ahead.ask(self.kernels);
            finite &= (self.kernels.logits)(keys, words, panel, tile);
        }
        ensure(finite, ErrorKind::NonFinite, c"q or k")?;
        if let Some(cap) = self.params.softcap {
            (self.kernels.softcap)(b.tile, self.scale().size, cap);
        }
        let all_seen = n == KEY_BLOCK
            && first + n <= self.shape.prefix_len() + 1
            && self.params.sliding_window.is_none_or(|swa| first + swa >= self.shape.n_tokens);
        if !all_seen {
            for (i, row) in b.tile.chunks_exact_mut(rows).enumerate() {
                let seen = if i < n { self.seen_by(first + i) } else { 0..0 };
                row[..seen.start].fill(UNSEEN);
                row[seen.end..w].fill(UNSEEN);
            }
        }
        Ok(())
    }

    /// The rows of the window that see a key: from its own position on, as far as the sliding window reaches.
    fn seen_by(&self, key: usize) -> Range<usize> {
        let (prefix, w) = (self.shape.prefix_len(), self.shape.window);
        let end =
            self.params.sliding_window.map_or(w, |swa| key.saturating_add(swa).saturating_sub(prefix).min(w));
        key.saturating_sub(prefix).min(end)..end
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
