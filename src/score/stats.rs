//! How a layer's window looks at the prefix, as numbers per KV head: what CAKE's layer preference is made of.
//!
//! ```text
//! entropy   = Σ_{h, j, i} −A ln A                 over the KV head's query heads, the window and the prefix
//! variance  = Σ_{h, i} Σ_j (A − m)² / (w − 1)     m: the mean over the window's queries
//! weight    = (Σ entropy)^(1/τ1) · (Σ variance)^(1/τ2)      sums over the layer's heads
//! ```
//!
//! Source: CAKE, arXiv 2503.12491, section 3.2; the published code has `A ln(A + 1e-10)`. `A` is what the softmax over
//! all tokens gives the prefix; it is not normalised anew.

use super::plan::{Buffers, Plan};
use super::task::{Task, blocks};
use super::window;
use crate::backend::scalar::exp2;
use crate::error::{Error, ErrorKind, Result, ensure};

/// Spread of the attention that one KV head gets from the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct AttentionStats {
    /// In nats, over the head's query heads and the window's queries.
    pub entropy: f64,
    /// Over the window's queries, summed over query heads and entries.
    pub variance: f64,
}

/// CAKE's weight of a layer, from the statistics of all its heads, finite and not negative. `tau1` and `tau2` are above
/// 0.
pub fn preference(stats: &[AttentionStats], tau1: f64, tau2: f64) -> Result<f64> {
    check_tau(tau1, tau2)?;
    for (head, s) in stats.iter().enumerate() {
        let at = |e: Error| e.at_head(head);
        let finite = s.entropy.is_finite() && s.variance.is_finite();
        ensure(finite, ErrorKind::NonFinite, c"stats").map_err(at)?;
        ensure(s.entropy >= 0.0 && s.variance >= 0.0, ErrorKind::Argument, c"stats").map_err(at)?;
    }
    let sum = |f: fn(&AttentionStats) -> f64| stats.iter().map(f).fold(0.0, |sum, x| sum + x);
    let weight = libm::pow(sum(|s| s.entropy), 1.0 / tau1) * libm::pow(sum(|s| s.variance), 1.0 / tau2);
    ensure(weight.is_finite(), ErrorKind::NonFinite, c"stats")?;
    Ok(weight)
}

pub(crate) fn check_tau(tau1: f64, tau2: f64) -> Result<()> {
    ensure(tau1.is_finite() && tau1 > 0.0, ErrorKind::Argument, c"tau1")?;
    ensure(tau2.is_finite() && tau2 > 0.0, ErrorKind::Argument, c"tau2")
}

/// The statistics of one head, of a task whose sums are exact.
pub(super) fn of_head(task: &Task, b: &mut Buffers) -> Result<AttentionStats> {
    let (rows, w, exponent) = (task.padded_rows(), task.n_queries(), task.exponent());
    let mut stats = AttentionStats::default();
    if task.live.is_empty() {
        return Ok(stats);
    }
    let given = task.inputs.lse.is_some();
    for h in 0..task.shape.group_size() {
        window::look_at_rows(task, Plan::LEAST, b, h)?;
        // −log2 of each row's weight, a term of every entry's entropy.
        b.weight.iter_mut().zip(&*b.exact_weight).for_each(|(x, &weight)| *x = -libm::log2(weight) as f32);
        for (block, next) in blocks(task.seen.clone()) {
            // Only to check a log-sum-exp that was given must every key be looked at.
            if !given && (block.end <= task.live.start || block.start >= task.live.end) {
                continue;
            }
            let mut ahead = window::load_keys(task, Plan::LEAST, b.keys, &block, next);
            window::logits(task, b, 0, &block, &mut ahead)?;
            for (row, key) in block.zip(b.tile.chunks_exact_mut(rows)) {
                let (mut sum, mut entropy) = (0.0f64, 0.0f64);
                for (j, x) in key[..w].iter_mut().enumerate() {
                    let power = *x * exponent - b.shift[j];
                    *x = exp2(power);
                    b.totals[j] += *x as f64;
                    let a = *x as f64 * b.exact_weight[j];
                    sum += a;
                    // An unseen key's power is −∞, and 0 · ln 0 = 0.
                    entropy += if *x > 0.0 { a * (b.weight[j] - power) as f64 } else { 0.0 };
                }
                if !task.live.contains(&row) {
                    continue;
                }
                let mean = sum / w as f64;
                let deviation = |(x, weight): (&f32, &f64)| *x as f64 * weight - mean;
                let squares =
                    key[..w].iter().zip(&*b.exact_weight).map(deviation).map(|d| d * d).sum::<f64>();
                stats.variance += if w > 1 { squares / (w - 1) as f64 } else { 0.0 };
                stats.entropy += entropy * core::f64::consts::LN_2;
            }
        }
        if given {
            window::check_lse(task, Plan::LEAST, b, h)?;
        }
    }
    // A row that has all attention has a logarithm a rounding error above 0.
    stats.entropy = stats.entropy.max(0.0);
    Ok(stats)
}
