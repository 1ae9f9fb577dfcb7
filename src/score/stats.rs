//! How a layer's window looks at the prefix, as numbers per KV head: what CAKE's layer preference is made of.
//!
//! ```text
//! entropy   = Σ_{h, j, i} −A ln A                 over the KV head's query heads, the window and the prefix
//! variance  = Σ_{h, i} Σ_j (A − m)² / (w − 1)     m: the mean over the window's queries
//! weight    = (Σ entropy)^(1/τ1) · (Σ variance)^(1/τ2)      sums over the layer's heads
//! ```
//!
//! Source: CAKE, arXiv 2503.12491, section 3.2; the published code has `A ln(A + 1e-10)`. `A` is what the softmax over all
//! tokens gives the prefix; it is not normalised anew.

use super::window::{Buffers, Plan, rows_of, variance};
use super::{ScoreInputs, Task, check_inputs, part_heads};
use crate::backend::scalar::exp2;
use crate::backend::{Backend, KEY_BLOCK};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{Attention, ScoreParams, Shape, ValueWeight};
use crate::workspace::Carver;

/// Spread of the attention that one KV head gets from the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct AttentionStats {
    /// In nats, over the head's query heads and the window's queries.
    pub entropy: f64,
    /// Over the window's queries, summed over query heads and entries.
    pub variance: f64,
}

/// Statistics of the KV heads of one part, `stats[0]` being the part's first head's.
///
/// Of `params` only the logits' options are used, of `inputs` not the values. The workspace is that of `score`. On an error `stats`
/// may be partly written.
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
    shape.validate()?;
    params.validate()?;
    let params = ScoreParams { attention: Attention::Mean, value_weight: ValueWeight::None, ..*params };
    check_inputs(shape, &params, inputs)?;
    let heads = part_heads(shape, part, n_parts)?;
    ensure(stats.len() >= heads.len(), ErrorKind::BufferSize, c"stats")?;
    let plan = Plan::LEAST;
    let mut buffers = Buffers::carve(workspace, shape, &params, plan)?;
    let kernels = backend.kernels.for_product(&inputs.q, &inputs.k);
    for (head, out) in heads.zip(stats) {
        let task = Task { kernels, shape, params: &params, inputs, plan, head };
        *out = task.stats(&mut buffers).map_err(|e| e.at_head(head).at_layer(shape.layer))?;
    }
    Ok(())
}

/// CAKE's weight of a layer, from the statistics of all its heads. `tau1` and `tau2` are above 0.
pub fn preference(stats: &[AttentionStats], tau1: f64, tau2: f64) -> Result<f64> {
    check_tau(tau1, tau2)?;
    let sum = |f: fn(&AttentionStats) -> f64| stats.iter().map(f).fold(0.0, |sum, x| sum + x);
    let weight = libm::pow(sum(|s| s.entropy), 1.0 / tau1) * libm::pow(sum(|s| s.variance), 1.0 / tau2);
    ensure(weight.is_finite(), ErrorKind::NonFinite, c"stats")?;
    Ok(weight)
}

pub(crate) fn check_tau(tau1: f64, tau2: f64) -> Result<()> {
    ensure(tau1.is_finite() && tau1 > 0.0, ErrorKind::Argument, c"tau1")?;
    ensure(tau2.is_finite() && tau2 > 0.0, ErrorKind::Argument, c"tau2")
}

impl Task<'_> {
    fn stats(&self, b: &mut Buffers) -> Result<AttentionStats> {
        let (rows, w, prefix) = (rows_of(self.shape), self.shape.window, self.shape.prefix_len());
        let mut stats = AttentionStats::default();
        if prefix == 0 {
            return Ok(stats);
        }
        if self.inputs.lse.is_some() {
            self.check_window_keys()?;
        }
        for h in 0..self.shape.group_size() {
            self.look_at_rows(b, h)?;
            for first in (0..prefix).step_by(KEY_BLOCK) {
                let n = KEY_BLOCK.min(prefix - first);
                let mut ahead = self.load_keys(b.keys, (first, n), prefix);
                self.logits(b, 0, (first, n), &mut ahead)?;
                for key in b.tile[..n * rows].chunks_exact(rows) {
                    let (mut sum, mut of_squares, mut entropy) = (0.0f32, 0.0f32, 0.0f32);
                    for (logit, lse) in key[..w].iter().zip(&*b.max) {
                        let power = logit * self.exponent() - lse;
                        let a = exp2(power);
                        sum += a;
                        of_squares += a * a;
                        // An unseen key's power is −∞, and 0 · ln 0 = 0.
                        entropy -= if a > 0.0 { a * power } else { 0.0 };
                    }
                    stats.variance += variance(w as f32, sum, of_squares) as f64;
                    stats.entropy += entropy as f64 * core::f64::consts::LN_2;
                }
            }
        }
        // A row that has all attention has a logarithm a rounding error above 0.
        stats.entropy = stats.entropy.max(0.0);
        Ok(stats)
    }
}
