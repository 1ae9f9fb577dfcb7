//! Stages 1 and 2: the window's attention, summed over its queries for each key.
//!
//! The attention matrix is never stored whole. Keys go by in blocks; each block is widened once for all query rows that look
//! at it. What a column sum needs, each row's log-sum-exp, is known only behind the last key. Three ways:
//!
//! - The caller has the log-sum-exp: one pass.
//! - There is memory for the exponentials of one or more query heads over all keys (within a tenth of the layer's own
//!   size; 24 bits each): one pass leaves `exp(logit − maximum so far)` there, a second, without arithmetic to speak of, weighs
//!   and sums it.
//! - There is not, or more than a weighted sum is wanted: the logits are computed twice. Short prompts end up here, where it
//!   does not matter.

use core::f32::consts::LOG2_E;
use core::ops::Range;

use super::{Task, reduce_first};
use crate::backend::{Block, KEY_BLOCK, Kernels, PUT_AWAY, ROW_BLOCK, UNSEEN};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{Attention, MAX_HEAD_DIM, Scale, ScoreParams, Shape, ValueWeight};
use crate::view::Tensor;
use crate::workspace::{Carver, size_of_carve};

/// How the query heads of a group are gone through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Query heads that look at each loaded block of keys together; a divisor of the group's size.
    pub together: usize,
    /// Whether their exponentials over the prefix are stored, so that the logits need not be computed twice.
    pub store: bool,
}

impl Plan {
    /// The largest plan whose buffers are at most a tenth of the layer's K and V in f16: storing before not storing, more
    /// heads before fewer. One head at a time, not stored, if there is none.
    pub fn new(shape: &Shape, params: &ScoreParams, has_lse: bool) -> Result<Self> {
        let layer = 2
            * shape.n_tokens as u64
            * shape.n_kv_heads as u64
            * (shape.head_dim_k + shape.head_dim_v) as u64;
        // Heads that are pooled one by one are computed one by one.
        let most = if reduce_first(shape, params) { shape.group_size() } else { 1 };
        // With the log-sum-exp given there is nothing to store, and only a weighted sum can be made of what was.
        let sums_only = matches!(params.attention, Attention::Mean | Attention::Exponential);
        let may_store = !has_lse && sums_only && params.value_weight != ValueWeight::Output;
        for store in [true, false].into_iter().skip(!may_store as usize) {
            for together in divisors(most) {
                let plan = Self { together, store };
                match size_of_carve(|c| Buffers::carve(c, shape, params, plan)) {
                    Ok(size) if size as u64 <= layer / 10 => return Ok(plan),
                    _ => {}
                }
            }
        }
        Ok(Self::LEAST)
    }

    /// What needs no more workspace than any other.
    pub const LEAST: Self = Self { together: 1, store: false };
}

/// Divisors of `n`, the largest first, in steps that grow with its root: a caller may ask for billions of heads.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let small = (1..=n.isqrt()).filter(move |d| n.is_multiple_of(*d));
    small.clone().map(move |d| n / d).chain(small.rev().filter(move |d| d * d < n))
}

/// Buffers of one part. `rows` are the window's query rows of one head, filled up to [`ROW_BLOCK`]s with rows of zeros, whose
/// log-sum-exp is +∞: nothing they look at gets any attention.
pub(super) struct Buffers<'a> {
    /// Queries of the heads that go together: `[together, head_dim_k, rows]`.
    panel: &'a mut [f32],
    /// One block of keys: `[KEY_BLOCK, head_dim_k]`.
    pub keys: &'a mut [f32],
    /// Logits of the block and one query head: `[KEY_BLOCK, rows]`.
    pub tile: &'a mut [f32],
    /// Per query row, its maximum, and behind the last key its log-sum-exp, over ln 2: `[together, rows]`.
    pub max: &'a mut [f32],
    /// Per query row, its sum: `[together, rows]`.
    sum: &'a mut [f64],
    /// Stage 4's result: `[n_kv_heads]`, of which the part's own are used.
    pub value_max: &'a mut [f32],
    /// Twice `max`, where squares are summed: `[together, rows]`.
    twice: &'a mut [f32],
    /// One query head's attention: `[prefix_len]`, only where each head must be pooled by itself; `[n_tokens]` where its output is
    /// wanted.
    pub head_row: &'a mut [f32],
    /// Exponentials over the prefix, block by block, put away: `[blocks, together, KEY_BLOCK, rows · PUT_AWAY]`. Or nothing.
    exps: &'a mut [u8],
    /// The maximum that each of them was taken with: `[blocks, together, rows]`.
    exps_max: &'a mut [f32],
}

/// Bytes of rows that are put away, a block of keys each.
fn bytes(rows: &Range<usize>) -> Range<usize> {
    rows.start * KEY_BLOCK * PUT_AWAY..rows.end * KEY_BLOCK * PUT_AWAY
}

/// Whether squares of the attention are summed.
fn squares(params: &ScoreParams) -> bool {
    matches!(params.attention, Attention::Squared | Attention::MeanVariance)
}

/// Query rows of a head, filled up.
pub(super) fn rows_of(shape: &Shape) -> usize {
    shape.window.next_multiple_of(ROW_BLOCK)
}

impl<'a> Buffers<'a> {
    pub fn carve(c: &mut Carver<'a>, shape: &Shape, params: &ScoreParams, plan: Plan) -> Result<Self> {
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
            twice: c.take(if squares(params) { all } else { 0 })?,
            head_row: c.take(match params.value_weight {
                ValueWeight::Output => any * shape.n_tokens,
                _ if reduce_first(shape, params) => 0,
                _ => shape.prefix_len(),
            })?,
            exps: c.take(stored.saturating_mul(KEY_BLOCK * PUT_AWAY))?,
            exps_max: c.take(stored)?,
        })
    }
}

/// Keys whose logits are computed between two requests for rows to come.
const KEYS_AT_ONCE: usize = 16;

/// Rows of the next block of keys, asked for a few at a time: a core can wait for a few dozen cache lines only.
pub(super) struct Ahead<'a> {
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

impl Task<'_> {
    /// Loads the queries of the heads from `first` of the group on, and finds what their attention is divided by.
    pub(super) fn look_at_rows(&self, b: &mut Buffers, first: usize) -> Result<()> {
        self.load_queries(first, b.panel);
        match &self.inputs.lse {
            Some(lse) => self.load_lse(lse, first, b.max)?,
            None => self.first_pass(b)?,
        }
        match self.params.attention {
            Attention::Exponential => self.weigh_rows(b.max),
            _ if squares(self.params) => {
                b.twice.iter_mut().zip(&*b.max).for_each(|(two, one)| *two = 2.0 * one)
            }
            _ => {}
        }
        Ok(())
    }

    /// Weighs the rows by their age: `w · decay · (1 − decay)^age`, the oldest `w · (1 − decay)^age`, so that their sum is `w`. A
    /// factor on the exponentials is a term in their exponents.
    fn weigh_rows(&self, lse: &mut [f32]) {
        let (w, decay) = (self.shape.window, self.params.decay as f64);
        for lse in lse.chunks_exact_mut(rows_of(self.shape)) {
            for (j, lse) in lse[..w].iter_mut().enumerate() {
                let newest = if j == 0 { 1.0 } else { decay };
                let weight = w as f64 * newest * libm::pow(1.0 - decay, (w - 1 - j) as f64);
                *lse -= libm::log2(weight) as f32;
            }
        }
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
    pub(super) fn words(&self) -> usize {
        self.shape.head_dim_k / self.kernels.dims_per_word
    }

    pub(super) fn scale(&self) -> Scale {
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
    pub(super) fn check_window_keys(&self) -> Result<()> {
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

    /// For each key of `out`, the sum over the window of its attention, reduced over the heads at hand.
    pub(super) fn sum_columns(&self, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let end = out.len();
        for (block, out) in out.chunks_mut(KEY_BLOCK).enumerate() {
            let keys = (block * KEY_BLOCK, out.len());
            let mut ahead = self.load_keys(b.keys, keys, end);
            for h in 0..self.plan.together {
                self.logits(b, h, keys, &mut ahead)?;
                let sums = self.sums(b, h);
                self.reduce_into(&sums[..keys.1], out);
            }
        }
        Ok(())
    }

    /// What becomes of a tile of logits: a number per key, yet to be divided by `w`.
    fn sums(&self, b: &Buffers, h: usize) -> [f32; KEY_BLOCK] {
        let rows = rows_of(self.shape);
        let own = h * rows..(h + 1) * rows;
        let (mut sums, mut of_squares) = ([0.0f32; KEY_BLOCK], [0.0f32; KEY_BLOCK]);
        if self.params.attention != Attention::Squared {
            (self.kernels.add_exp)(b.tile, self.exponent(), &b.max[own.clone()], &mut sums);
        }
        if squares(self.params) {
            (self.kernels.add_exp)(b.tile, 2.0 * self.exponent(), &b.twice[own], &mut of_squares);
        }
        match self.params.attention {
            Attention::Squared => of_squares,
            Attention::MeanVariance => {
                let w = self.shape.window as f32;
                core::array::from_fn(|i| {
                    sums[i] + w * self.params.gamma * variance(w, sums[i], of_squares[i])
                })
            }
            _ => sums,
        }
    }

    /// The same of the exponentials that were put away.
    pub(super) fn sum_stored_columns(&self, b: &mut Buffers, out: &mut [f32]) {
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
    pub(super) fn exponent(&self) -> f32 {
        self.scale().of_exponent(self.params.softcap)
    }

    /// Loads the keys `first .. first + n`; the block behind them, up to key `end`, is to be asked for meanwhile.
    pub(super) fn load_keys(&self, keys: &mut [f32], (first, n): (usize, usize), end: usize) -> Ahead<'_> {
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
    pub(super) fn logits(
        &self,
        b: &mut Buffers,
        h: usize,
        (first, n): (usize, usize),
        ahead: &mut Ahead,
    ) -> Result<()> {
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
}

/// The variance of `w` numbers, given their sum and the sum of their squares: `(Σx² − (Σx)² / w) / (w − 1)`.
pub(super) fn variance(w: f32, sum: f32, of_squares: f32) -> f32 {
    if w > 1.0 { ((of_squares - sum * (sum / w)) / (w - 1.0)).max(0.0) } else { 0.0 }
}
