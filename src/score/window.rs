//! Stages 1 and 2: the queries' attention, summed over them for each key, or the largest. Mostly they are the window's.
//!
//! The attention matrix is never stored whole. Keys go by in blocks; each block is widened once for all query rows that
//! look at it. What a column sum needs, each row's log-sum-exp, is known only after the last key. Three ways:
//!
//! - The caller has the log-sum-exp: one pass, which also shows whether it is right.
//! - There is memory for the exponentials of one or more query heads over all keys (within a tenth of the layer's own
//!   size; 24 bits each): one pass leaves `exp(logit − maximum so far)` there, a second, without arithmetic to speak
//!   of, weighs and sums it.
//! - There is not, or more than a weighted sum or a maximum is wanted: the logits are computed twice. Short prompts end
//!   up here, where it does not matter.

use core::ops::Range;

use super::plan::{Buffers, Plan};
use super::pool::reduce;
use super::task::{Task, blocks};
use crate::backend::{Block, ExactSoftmax, KEY_BLOCK, Kernels, PUT_AWAY, Softmax, Spread, UNSEEN};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::Attention;
use crate::view::Tensor;

/// A row's log-sum-exp in f32, over ln 2, is off by half a unit of its last place. Up to here that is less than 8e-6,
/// below what the rounding of a logit's products makes of it; beyond, attention would not sum to 1.
const LARGEST_SHIFT: f64 = 256.0;

/// By how much the attention of a row may miss 1 with a log-sum-exp that was given. One that comes as f16 is off by up
/// to 3% at 128.
const LSE_TOLERANCE: f64 = 0.05;

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

/// Sums over the queries, or maxima, for each row of `wanted`, of the attention of the group's heads from the `first`-th
/// on that go together; sums are yet to be divided by the number of queries; reduced over these heads into `out`.
pub(super) fn attention(
    task: &Task,
    plan: Plan,
    b: &mut Buffers,
    first: usize,
    wanted: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    look_at_rows(task, plan, b, first)?;
    if task.params.attention == Attention::Exponential {
        weigh_rows(task, b.weight);
    }
    if plan.store {
        sum_stored_columns(task, plan, b, first, wanted, out);
        return Ok(());
    }
    let given = task.inputs.lse.is_some();
    for (block, next) in blocks(task.seen.clone()) {
        let columns = block.start.max(wanted.start)..block.end.min(wanted.end);
        // Only to check a log-sum-exp that was given must every key be looked at.
        if columns.is_empty() && !given {
            continue;
        }
        let mut ahead = load_keys(task, plan, b.keys, &block, next);
        for h in 0..plan.together {
            logits(task, b, h, &block, &mut ahead)?;
            let (sums, weight) = (sums(task, b, h, given), task.attention_weight(first + h));
            if !columns.is_empty() {
                let of_block = columns.start - block.start..columns.end - block.start;
                let of_out = columns.start - wanted.start..columns.end - wanted.start;
                reduce(task.params.group_reduce, weight, &sums[of_block], &mut out[of_out]);
            }
        }
    }
    if given { check_lse(task, plan, b, first) } else { Ok(()) }
}

/// Loads the queries of the heads from the `first`-th of the group on, and finds what makes attention of their logits.
pub(super) fn look_at_rows(task: &Task, plan: Plan, b: &mut Buffers, first: usize) -> Result<()> {
    let rows = task.padded_rows();
    b.panel.fill(0.0);
    for (h, panel) in b.panel.chunks_exact_mut(rows * task.shape.head_dim_k).enumerate() {
        task.for_each_query(first + h, |j, query| {
            for (to, word) in panel.chunks_exact_mut(rows).zip(query) {
                to[j] = *word;
            }
        });
    }
    b.weight.fill(1.0);
    b.exact_weight.fill(1.0);
    b.totals.fill(0.0);
    match &task.inputs.lse {
        Some(lse) => load_lse(task, lse, first, b.shift),
        None => first_pass(task, plan, b, first),
    }
}

/// Weighs the rows by their age: `w · decay · (1 − decay)^age`, the oldest `w · (1 − decay)^age`, so that their sum is
/// `w`.
fn weigh_rows(task: &Task, weight: &mut [f32]) {
    let (w, decay) = (task.n_queries(), task.params.decay as f64);
    for weight in weight.chunks_exact_mut(task.padded_rows()) {
        for (j, weight) in weight[..w].iter_mut().enumerate() {
            let newest = if j == 0 { 1.0 } else { decay };
            *weight *= (w as f64 * newest * libm::pow(1.0 - decay, (w - 1 - j) as f64)) as f32;
        }
    }
}

fn load_lse(task: &Task, lse: &Tensor, first: usize, out: &mut [f32]) -> Result<()> {
    for (h, out) in out.chunks_exact_mut(task.padded_rows()).enumerate() {
        let (own, padding) = out.split_at_mut(task.n_queries());
        for (j, out) in own.iter_mut().enumerate() {
            lse.for_each(task.query_head(first + h), j, |_, x| *out = x);
            ensure(out.is_finite(), ErrorKind::NonFinite, c"lse")?;
            *out *= task.params.lse_base.to_two();
        }
        padding.fill(f32::INFINITY);
    }
    Ok(())
}

/// That each row's attention by the log-sum-exp that was given, to all keys that it sees and to the sink, sums to 1.
pub(super) fn check_lse(task: &Task, plan: Plan, b: &Buffers, first: usize) -> Result<()> {
    let rows = task.padded_rows();
    for h in 0..plan.together {
        let sink = task.sink(first + h);
        for j in h * rows..h * rows + task.n_queries() {
            let to_sink = sink.map_or(0.0, |sink| libm::exp2(sink as f64 - b.shift[j] as f64));
            let misses = (b.totals[j] + to_sink - 1.0).abs();
            ensure(misses <= LSE_TOLERANCE, ErrorKind::Argument, c"lse")?;
        }
    }
    Ok(())
}

/// The queries' mean attention to the sink of the `in_group`-th query head, which is at row `h` of the buffers.
pub(super) fn sink_share(task: &Task, b: &Buffers, in_group: usize, h: usize) -> f64 {
    let (rows, w) = (task.padded_rows(), task.n_queries());
    let Some(sink) = task.sink(in_group) else { return 0.0 };
    let to_sink = |j: usize| libm::exp2(sink as f64 - b.shift[j] as f64) * b.weight[j] as f64;
    (h * rows..h * rows + w).map(to_sink).sum::<f64>() / w as f64
}

/// Shifts and weights of the rows, from all keys that they see; the exponentials of the live prefix stay in `b.exps` if
/// there is room.
fn first_pass(task: &Task, plan: Plan, b: &mut Buffers, first: usize) -> Result<()> {
    let (rows, exponent) = (task.padded_rows(), task.exponent());
    b.shift.fill(UNSEEN);
    b.exact_weight.fill(0.0);
    for (block, next) in blocks(task.seen.clone()) {
        let mut ahead = load_keys(task, plan, b.keys, &block, next);
        for h in 0..plan.together {
            logits(task, b, h, &block, &mut ahead)?;
            let away = if plan.store { put_away(task, plan, &block, h) } else { 0..0 };
            let own = h * rows..(h + 1) * rows;
            let (max, sum) = (&mut b.shift[own.clone()], &mut b.exact_weight[own]);
            match task.exactly() {
                true => (task.kernels.absorb_exactly)(b.tile, exponent, max, sum),
                false => (task.kernels.absorb)(b.tile, exponent, max, sum, &mut b.exps[bytes(&away)]),
            }
            b.exps_max[away.clone()].copy_from_slice(&max[..away.len()]);
        }
    }
    for h in 0..plan.together {
        let sink = task.sink(first + h);
        for j in h * rows..(h + 1) * rows {
            if j - h * rows >= task.n_queries() {
                (b.shift[j], b.exact_weight[j]) = (f32::INFINITY, 1.0);
                continue;
            }
            // Every query sees its own key, so the sum is at least 1, unless a logit was too large for its scale.
            let max = b.shift[j] as f64;
            let sum = b.exact_weight[j] + sink.map_or(0.0, |sink| libm::exp2(sink as f64 - max));
            let lse = max + libm::log2(sum);
            ensure(max.is_finite(), ErrorKind::NonFinite, c"q or k")?;
            if lse.abs() < LARGEST_SHIFT && !task.exactly() {
                (b.shift[j], b.exact_weight[j]) = (lse as f32, 1.0);
            } else {
                b.exact_weight[j] = 1.0 / sum;
                b.weight[j] = b.exact_weight[j] as f32;
            }
        }
    }
    Ok(())
}

/// Where the exponentials of a block and a head are put away, counted in rows; nowhere, if the block has no live row.
fn put_away(task: &Task, plan: Plan, block: &Range<usize>, h: usize) -> Range<usize> {
    if block.start >= task.live.end || block.end <= task.live.start {
        return 0..0;
    }
    let (rows, nth) = (task.padded_rows(), block.start / KEY_BLOCK - task.live.start / KEY_BLOCK);
    let slot = nth * plan.together + h;
    slot * rows..(slot + 1) * rows
}

/// Bytes of rows that are put away, a block of keys each.
fn bytes(rows: &Range<usize>) -> Range<usize> {
    rows.start * KEY_BLOCK * PUT_AWAY..rows.end * KEY_BLOCK * PUT_AWAY
}

/// What becomes of a tile of logits: a number per key, a sum yet to be divided by the number of queries. With `totals`,
/// each row's attention is added up as well.
fn sums(task: &Task, b: &mut Buffers, h: usize, totals: bool) -> [f32; KEY_BLOCK] {
    let (rows, exponent, w) = (task.padded_rows(), task.exponent(), task.n_queries());
    let own = h * rows..(h + 1) * rows;
    let softmax = Softmax { shift: &b.shift[own.clone()], weight: &b.weight[own.clone()] };
    let totals = if totals { &mut b.totals[own.clone()] } else { &mut [] };
    let mut sums = [0.0f32; KEY_BLOCK];
    match task.params.attention {
        Attention::Max => (task.kernels.max_exp)(b.tile, exponent, softmax, &mut sums, totals),
        Attention::Norm4 => {
            (task.kernels.add_fourths)(b.tile, exponent, softmax, &mut sums, totals);
            sums = sums.map(fourth_root);
        }
        Attention::Squared => (task.kernels.add_squares)(b.tile, exponent, softmax, &mut sums, totals),
        Attention::MeanVariance => {
            let exact = ExactSoftmax { shift: softmax.shift, weight: &b.exact_weight[own], n: w };
            let mut spread = Spread::default();
            (task.kernels.spread)(b.tile, exponent, exact, &mut spread, totals);
            // The mean alone where there is one query.
            let of_deviations = if w > 1 { w as f32 * task.params.gamma / (w - 1) as f32 } else { 0.0 };
            sums = core::array::from_fn(|i| spread.sums[i] + of_deviations * spread.deviations[i]);
        }
        _ => (task.kernels.add_exp)(b.tile, exponent, softmax, &mut sums, totals),
    }
    sums
}

fn fourth_root(x: f32) -> f32 {
    libm::sqrtf(libm::sqrtf(x))
}

/// The same of the exponentials that were put away.
fn sum_stored_columns(
    task: &Task,
    plan: Plan,
    b: &mut Buffers,
    first: usize,
    wanted: Range<usize>,
    out: &mut [f32],
) {
    let of_stored = match task.params.attention {
        Attention::Max => task.kernels.max_weighted,
        Attention::Norm4 => task.kernels.fourths_weighted,
        _ => task.kernels.add_weighted,
    };
    let rows = task.padded_rows();
    for (block, _) in blocks(task.seen.clone()) {
        let columns = block.start.max(wanted.start)..block.end.min(wanted.end);
        if columns.is_empty() {
            continue;
        }
        for h in 0..plan.together {
            let (away, own) = (put_away(task, plan, &block, h), h * rows..(h + 1) * rows);
            let softmax = Softmax { shift: &b.shift[own.clone()], weight: &b.weight[own] };
            let mut sums = [0.0f32; KEY_BLOCK];
            of_stored(&b.exps[bytes(&away)], &b.exps_max[away], softmax, &mut sums);
            if task.params.attention == Attention::Norm4 {
                sums = sums.map(fourth_root);
            }
            let weight = task.attention_weight(first + h);
            let of_block = columns.start - block.start..columns.end - block.start;
            let of_out = columns.start - wanted.start..columns.end - wanted.start;
            reduce(task.params.group_reduce, weight, &sums[of_block], &mut out[of_out]);
        }
    }
}

/// Loads a block of keys; the next one is to be asked for meanwhile.
pub(super) fn load_keys<'a>(
    task: &'a Task,
    plan: Plan,
    keys: &mut [f32],
    block: &Range<usize>,
    next: Range<usize>,
) -> Ahead<'a> {
    (task.kernels.load_keys)(&task.keys(block.clone()), &mut keys[..KEY_BLOCK * task.words()]);
    let requests = plan.together * KEY_BLOCK / KEYS_AT_ONCE;
    Ahead { step: next.len().div_ceil(requests), rows: task.keys(next) }
}

/// Logits of the loaded keys and the `h`-th query head at hand; `UNSEEN` where the query does not look.
pub(super) fn logits(
    task: &Task,
    b: &mut Buffers,
    h: usize,
    block: &Range<usize>,
    ahead: &mut Ahead,
) -> Result<()> {
    let (rows, words, w) = (task.padded_rows(), task.words(), task.n_queries());
    let panel = &b.panel[h * rows * task.shape.head_dim_k..][..rows * words];
    let keys = b.keys[..KEY_BLOCK * words].chunks_exact(KEYS_AT_ONCE * words);
    let mut finite = true;
    for (keys, tile) in keys.zip(b.tile.chunks_exact_mut(KEYS_AT_ONCE * rows)) {
        ahead.ask(task.kernels);
        finite &= (task.kernels.logits)(keys, words, panel, tile);
    }
    ensure(finite, ErrorKind::NonFinite, c"q or k")?;
    if let Some(cap) = task.params.softcap {
        (task.kernels.softcap)(b.tile, task.scale.size, cap);
    }
    // Positions ascend: the first key goes out of sight first, the last comes into sight last.
    let all_seen = block.len() == KEY_BLOCK
        && task.seen_by(block.start).end == w
        && task.seen_by(block.end - 1).start == 0;
    if !all_seen {
        for (i, row) in b.tile.chunks_exact_mut(rows).enumerate() {
            let seen = if i < block.len() { task.seen_by(block.start + i) } else { 0..0 };
            row[..seen.start].fill(UNSEEN);
            row[seen.end..w].fill(UNSEEN);
        }
    }
    Ok(())
}
