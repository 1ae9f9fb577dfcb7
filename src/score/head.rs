//! One KV head's scores, stage after stage.

use super::plan::{Buffers, Plan, reduce_first};
use super::task::Task;
use super::{pool, value, window};
use crate::backend::Block;
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{Attention, GroupReduce, ValueWeight};

/// Scores the prefix rows of the task's head. Dead ones get 0.
pub(super) fn score(task: &Task, plan: Plan, b: &mut Buffers, out: &mut [f32]) -> Result<()> {
    let params = task.params;
    out.fill(0.0);
    let out = &mut out[task.live.clone()];
    if out.is_empty() {
        return Ok(());
    }
    let n_summed = match params.attention {
        Attention::Recency => recency(task, out),
        _ => attention(task, plan, b, out)?,
    };
    match params.value_weight {
        ValueWeight::Token => {
            value::times_norms(task.kernels, &task.inputs.v, task.head, task.live.start, out)
        }
        ValueWeight::TokenL2 => {
            let rows =
                Block { tensor: &task.inputs.v, head: task.head, first: task.live.start, n: out.len() };
            (task.kernels.times_l2)(&rows, out);
        }
        _ => {}
    }
    // The values' part is last: all else is at most 1, or known.
    let values = match params.value_weight {
        ValueWeight::HeadMax | ValueWeight::HeadMeanL2 => b.head_value[task.head] as f32,
        _ => 1.0,
    };
    let factor = 1.0 / n_summed as f32;
    let mut finite = true;
    for s in out.iter_mut() {
        *s = *s * factor * values * params.weight;
        finite &= s.is_finite();
    }
    if params.smoothing > 0.0 {
        let mean = crate::entropy::total(out) / out.len() as f64;
        let more = (params.smoothing as f64 * mean) as f32;
        for s in out.iter_mut() {
            *s += more;
            finite &= s.is_finite();
        }
    }
    ensure(finite, ErrorKind::NonFinite, c"scores")
}

/// Positions for scores, the same for all query heads of the group.
fn recency(task: &Task, out: &mut [f32]) -> usize {
    let position = |i: usize| task.shape.position(task.head, task.live.start + i);
    out.iter_mut().enumerate().for_each(|(i, s)| *s = (position(i) + 1) as f32);
    pool::pool(task.kernels, task.params.pool, task.params.pool_kernel, out);
    if task.params.query_head_weights.is_none() {
        return 1;
    }
    let mut weight = [0.0];
    let mode = task.params.group_reduce;
    for h in 0..task.shape.group_size() {
        pool::reduce(mode, task.head_weight(h), &[1.0], &mut weight);
    }
    out.iter_mut().for_each(|s| *s *= weight[0]);
    n_reduced(task)
}

/// How many query heads were added up.
fn n_reduced(task: &Task) -> usize {
    if task.params.group_reduce == GroupReduce::Mean { task.shape.group_size() } else { 1 }
}

/// Attention to the live rows, pooled and reduced over the group. Returns by how much it is yet to be divided.
fn attention(task: &Task, plan: Plan, b: &mut Buffers, out: &mut [f32]) -> Result<usize> {
    let (shape, params) = (task.shape, task.params);
    let group = shape.group_size();
    let pool = |x: &mut [f32]| pool::pool(task.kernels, params.pool, params.pool_kernel, x);
    for first in (0..group).step_by(plan.together) {
        if reduce_first(shape, params) {
            window::attention(task, plan, b, first, task.live.clone(), out)?;
            continue;
        }
        // Heads that must be pooled one by one need a row of their own before they meet.
        let output = params.value_weight == ValueWeight::Output;
        let wanted = if output { task.seen.clone() } else { task.live.clone() };
        let head_row = core::mem::take(&mut b.head_row);
        let row = &mut head_row[..wanted.len()];
        row.fill(0.0);
        window::attention(task, plan, b, first, wanted.clone(), row)?;
        if output {
            let sink = window::sink_share(task, b, first, 0);
            let n = task.n_queries();
            value::to_output_change(&task.inputs.v, task.head, wanted.start, n, sink, row);
        }
        let live = &mut row[task.live.start - wanted.start..task.live.end - wanted.start];
        pool(live);
        let weight = if output { task.head_weight(first) } else { 1.0 };
        pool::reduce(params.group_reduce, weight, live, out);
        b.head_row = head_row;
    }
    if reduce_first(shape, params) {
        pool(out);
    }
    // Attention is a mean over the queries, unless it is their maximum or a norm, and so may be the group's.
    let is_mean = !matches!(params.attention, Attention::Max | Attention::Norm4);
    let n_added = if is_mean { task.n_queries() } else { 1 };
    Ok(n_added * n_reduced(task))
}
