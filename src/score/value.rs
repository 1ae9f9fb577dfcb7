//! Stage 4: what the values have to say about the entries.

use core::ops::Range;

use super::task::Queries;
use crate::backend::{Block, Kernels};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{MAX_HEAD_DIM, Shape, ValueSpan, ValueWeight};
use crate::view::Tensor;

/// Stage 4: `max ‖V[i]‖₁` over the live prefix rows, or over those and the window's, into `out[head]`; or the mean of `‖V[i]‖₂`
/// over the same. All of these rows are read, once, so that every NaN among them is found; where the output is wanted, so are dead rows
/// that a query sees.
///
/// Not head by head where the heads of a token are neighbours: then they are read together, in the order of memory.
pub(super) fn of_heads(
    kernels: &Kernels,
    shape: &Shape,
    queries: Queries,
    (weight, span): (ValueWeight, ValueSpan),
    v: &Tensor,
    heads: Range<usize>,
    out: &mut [f64],
) -> Result<()> {
    let side_by_side = shape.ragged.is_none() && v.is_token_major();
    let (batch, step) = if side_by_side { (heads.len().max(1), 1) } else { (1, 256) };
    let add_rows = if weight == ValueWeight::HeadMeanL2 { add_l2 } else { larger_l1 };
    for first_head in heads.clone().step_by(batch) {
        let live = shape.live(first_head);
        if live.is_empty() {
            continue;
        }
        let together = first_head..(first_head + batch).min(heads.end);
        let dead = if weight == ValueWeight::Output {
            queries.seen_rows(shape, first_head).start
        } else {
            live.start
        };
        let window = live.end..shape.rows(first_head);
        let with_window = span == ValueSpan::All;
        let runs = [(dead..live.start, false), (live.clone(), true), (window.clone(), with_window)];
        for (rows, counts) in runs {
            for first in rows.clone().step_by(step) {
                for head in together.clone() {
                    let block = Block { tensor: v, head, first, n: step.min(rows.end - first) };
                    let all = add_rows(kernels, &block, if counts { out[head] } else { 0.0 });
                    ensure(all.is_finite(), ErrorKind::NonFinite, c"v").map_err(|e| e.at_head(head))?;
                    if counts {
                        out[head] = all;
                    }
                }
            }
        }
        if weight == ValueWeight::HeadMeanL2 {
            let n = live.len() + if with_window { window.len() } else { 0 };
            out[together].iter_mut().for_each(|sum| *sum /= n as f64);
        }
    }
    Ok(())
}

fn larger_l1(kernels: &Kernels, rows: &Block, so_far: f64) -> f64 {
    let norm = (kernels.max_l1)(rows) as f64;
    if norm <= so_far { so_far } else { norm }
}

/// Row by row, so that the sum does not depend on how many are read at once.
fn add_l2(kernels: &Kernels, rows: &Block, so_far: f64) -> f64 {
    let mut norms = [1.0f32; 256];
    let norms = &mut norms[..rows.n];
    (kernels.times_l2)(rows, norms);
    norms.iter().fold(so_far, |sum, &norm| sum + norm as f64)
}

/// `s_i · ‖v_i‖₁`, of the rows from `first` on.
pub(super) fn times_norms(kernels: &Kernels, v: &Tensor, head: usize, first: usize, scores: &mut [f32]) {
    for (i, s) in scores.iter_mut().enumerate() {
        *s *= (kernels.max_l1)(&Block { tensor: v, head, first: first + i, n: 1 });
    }
}

/// `a_i → a_i / (1 − a_i) · ‖o − v_i‖₂`, where `o = Σ_i a_i v_i`: the change of the output if entry `i` alone goes and
/// the others take its share. Source: CAOTE, arXiv 2504.14051, theorem 3.2.
///
/// `row` holds `w · a_i` of all rows from `first` on, and gets `w` times the change. `sink` is the attention of an
/// entry without a value.
///
/// An entry with nearly all the attention is nearly the output: both differences would be lost in rounding. So for the
/// largest entry, the only one that may hold more than half, the others are summed by themselves: with their mean
/// `m = Σ a_k v_k / Σ a_k` over `k ≠ i`, the change is `a_i · ‖m − v_i‖₂`. Where their attention is less than f32
/// holds, m is 0.
pub(super) fn to_output_change(v: &Tensor, head: usize, first: usize, w: usize, sink: f64, row: &mut [f32]) {
    let a = |a: f32| a as f64 / w as f64;
    let mut largest = 0;
    for (i, a) in row.iter().enumerate() {
        if *a > row[largest] {
            largest = i;
        }
    }
    let (mut others, mut rest) = ([0.0f64; MAX_HEAD_DIM], sink);
    for (i, &x) in row.iter().enumerate().filter(|(i, x)| *i != largest && **x > 0.0) {
        rest += a(x);
        v.for_each(head, first + i, |c, x| others[c] += a(row[i]) * x as f64);
    }
    let all = rest + a(row[largest]);
    let (mut mean, mut output) = ([0.0f64; MAX_HEAD_DIM], [0.0f64; MAX_HEAD_DIM]);
    v.for_each(head, first + largest, |c, x| {
        mean[c] = if rest > 0.0 { others[c] / rest } else { 0.0 };
        output[c] = (others[c] + a(row[largest]) * x as f64) / all;
    });
    for (i, s) in row.iter_mut().enumerate() {
        let (from, share) = if i == largest { (&mean, all) } else { (&output, all - a(*s)) };
        let mut squares = 0.0;
        v.for_each(head, first + i, |c, x| squares += (from[c] - x as f64) * (from[c] - x as f64));
        *s = if *s > 0.0 { (*s as f64 / share * libm::sqrt(squares)) as f32 } else { 0.0 };
    }
}
