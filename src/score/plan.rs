//! How a call goes about its query heads, and the memory for it.

use core::ops::Range;

use super::task::Queries;
use crate::backend::{KEY_BLOCK, PUT_AWAY};
use crate::error::Result;
use crate::params::{Attention, GroupReduce, Pool, ScoreParams, Shape, ValueWeight};
use crate::workspace::{Carver, size_of_carve};

/// How the query heads of a group are gone through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Query heads that look at each loaded block of keys together; a divisor of the group's size.
    pub together: usize,
    /// Whether their exponentials over the live prefix are stored, so that the logits need not be computed twice.
    pub store: bool,
}

impl Plan {
    /// The largest plan whose buffers are at most a tenth of the layer's K and V in f16: storing before not storing,
    /// more heads before fewer. One head at a time, not stored, if there is none.
    pub fn new(shape: &Shape, params: &ScoreParams, queries: Queries, has_lse: bool) -> Result<Self> {
        let layer = 2 * shape.n_rows() * (shape.head_dim_k + shape.head_dim_v) as u64;
        // Heads that are pooled one by one are computed one by one.
        let most = if reduce_first(shape, params) { shape.group_size() } else { 1 };
        // With the log-sum-exp given there is nothing to store; squares and a variance need more bits than were stored.
        let of_stored = !matches!(params.attention, Attention::Squared | Attention::MeanVariance);
        let may_store = !has_lse && of_stored && params.value_weight != ValueWeight::Output;
        for store in [true, false].into_iter().skip(!may_store as usize) {
            for together in divisors(most) {
                let plan = Self { together, store };
                match size_of_carve(|c| Buffers::carve(c, shape, params, queries, plan)) {
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

/// Whether the group may be reduced before pooling: the two commute if both are maxima or both are means, or if there
/// is nothing to reduce or to pool. This is the common case, and it needs no row per query head. A head's output is its
/// own.
pub(super) fn reduce_first(shape: &Shape, params: &ScoreParams) -> bool {
    let alike = matches!(
        (params.pool, params.group_reduce),
        (Pool::Max | Pool::After, GroupReduce::Max) | (Pool::Avg, GroupReduce::Mean)
    );
    let commute = alike || shape.group_size() == 1 || params.pool_kernel == 1;
    commute && params.value_weight != ValueWeight::Output
}

/// Divisors of `n`, the largest first, in steps that grow with its root: a caller may ask for billions of heads.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let small = (1..=n.isqrt()).filter(move |d| n.is_multiple_of(*d));
    small.clone().map(move |d| n / d).chain(small.rev().filter(move |d| d * d < n))
}

/// The largest of a number over the layer's heads. Heads that are alike are not gone through: there may be billions, if
/// only in a caller's mistake.
fn most(shape: &Shape, of: impl Fn(usize) -> usize) -> usize {
    let heads = if shape.ragged.is_some() { shape.n_kv_heads } else { 1 };
    (0..heads).map(of).max().unwrap_or(0)
}

/// Buffers of one part. `rows` are the query rows of one head, filled up to whole registers with rows of zeros, whose
/// shift is +∞: nothing they look at gets any attention.
pub(super) struct Buffers<'a> {
    /// Queries of the heads that go together: `[together, head_dim_k, rows]`.
    pub panel: &'a mut [f32],
    /// One block of keys: `[KEY_BLOCK, head_dim_k]`.
    pub keys: &'a mut [f32],
    /// Logits of the block and one query head: `[KEY_BLOCK, rows]`.
    pub tile: &'a mut [f32],
    /// Per query row, its maximum so far, and after the last key the shift of `backend::Softmax`: `[together, rows]`.
    pub shift: &'a mut [f32],
    /// Per query row, its sum so far, and after the last key the weight of `backend::Softmax`: `[together, rows]`.
    pub exact_weight: &'a mut [f64],
    /// Stage 4's result: `[n_kv_heads]`, of which the part's own are used.
    pub head_value: &'a mut [f64],
    /// One query head's attention, only where each head must be pooled by itself, `[live rows]`, or where its output is
    /// wanted, `[seen rows]`.
    pub head_row: &'a mut [f32],
    /// Exponentials over the live prefix, block by block, put away: `[blocks, together, KEY_BLOCK, rows · PUT_AWAY]`.
    /// Or nothing.
    pub exps: &'a mut [u8],
    /// The maximum that each of them was taken with: `[blocks, together, rows]`.
    pub exps_max: &'a mut [f32],
    /// `exact_weight` in f32, and in it what the query's place among the others counts: `[together, rows]`.
    pub weight: &'a mut [f32],
    /// Per query row, the attention that it pays by a log-sum-exp that was given: `[together, rows]`.
    pub totals: &'a mut [f64],
    /// A head's scores that are yet to be joined with others: `[prefix rows]`.
    pub joining: &'a mut [f32],
}

impl<'a> Buffers<'a> {
    pub fn carve(
        c: &mut Carver<'a>,
        shape: &Shape,
        params: &ScoreParams,
        queries: Queries,
        plan: Plan,
    ) -> Result<Self> {
        // Where nothing competes nothing is needed.
        let any = (shape.prefix_len() > 0) as usize;
        let rows = any * queries.padded_rows(shape);
        let all = plan.together.saturating_mul(rows);
        let blocks = if plan.store { most(shape, |h| n_blocks(&shape.live(h))) } else { 0 };
        let stored = all.saturating_mul(blocks);
        Ok(Self {
            panel: c.take(all.saturating_mul(shape.head_dim_k))?,
            keys: c.take(any * shape.head_dim_k * KEY_BLOCK)?,
            tile: c.take(rows.saturating_mul(KEY_BLOCK))?,
            shift: c.take(all)?,
            exact_weight: c.take(all)?,
            head_value: c.take(any * shape.n_kv_heads)?,
            head_row: c.take(match params.value_weight {
                // What queries at other positions see is not known yet when the size is asked for.
                ValueWeight::Output => match queries {
                    Queries::Window => any * most(shape, |h| queries.seen_rows(shape, h).len()),
                    Queries::After(_) | Queries::At(_) => any * most(shape, |h| shape.rows(h)),
                },
                _ if reduce_first(shape, params) => 0,
                _ => most(shape, |h| shape.live(h).len()),
            })?,
            exps: c.take(stored.saturating_mul(KEY_BLOCK * PUT_AWAY))?,
            exps_max: c.take(stored)?,
            weight: c.take(all)?,
            totals: c.take(all)?,
            joining: c.take(match queries {
                Queries::Window => 0,
                Queries::After(_) | Queries::At(_) => most(shape, |h| shape.prefix_rows(h)),
            })?,
        })
    }
}

/// Blocks of keys that rows lie in.
fn n_blocks(rows: &Range<usize>) -> usize {
    if rows.is_empty() { 0 } else { rows.end.div_ceil(KEY_BLOCK) - rows.start / KEY_BLOCK }
}
