//! Stage 4: what the values have to say about the entries.

use core::ops::Range;

use super::Task;
use crate::backend::{Block, Kernels};
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{MAX_HEAD_DIM, ScoreParams, Shape, ValueSpan};
use crate::view::Tensor;

/// Stage 4: `max ‖V[i]‖₁` over the prefix, or over all tokens. Every row is read, so that every NaN is found.
///
/// Not head by head: where the heads of a token are neighbours, they are read together, in the order of memory.
pub(super) fn maxima(
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

impl Task<'_> {
    /// `s_i · ‖v_i‖₁`.
    pub(super) fn times_token_norms(&self, out: &mut [f32]) {
        for (i, s) in out.iter_mut().enumerate() {
            *s *= (self.kernels.max_l1)(&Block { tensor: &self.inputs.v, head: self.head, first: i, n: 1 });
        }
    }

    /// `a_i → w · a_i / (1 − a_i) · ‖o − v_i‖₂`, where `o = Σ_i a_i v_i`: the change of the output if entry `i` alone goes and the others
    /// take its share. `row` holds `w · a_i` for all tokens. Source: CAOTE, arXiv 2504.14051, theorem 3.2.
    ///
    /// An entry that has all attention is the output: its norm is 0, and what it is divided by is taken as 2⁻²⁴.
    pub(super) fn to_output_change(&self, row: &mut [f32]) {
        let (w, v, dim) = (self.shape.window as f32, &self.inputs.v, self.shape.head_dim_v);
        let mut output = [0.0f64; MAX_HEAD_DIM];
        for (i, a) in row.iter().enumerate() {
            v.for_each(self.head, i, |c, x| output[c] += (a / w) as f64 * x as f64);
        }
        let mut centre = [0.0f32; MAX_HEAD_DIM];
        centre.iter_mut().zip(&output[..dim]).for_each(|(c, &o)| *c = o as f32);
        for (i, a) in row[..self.shape.prefix_len()].iter_mut().enumerate() {
            let mut squares = 0.0f32;
            v.for_each(self.head, i, |c, x| squares += (centre[c] - x) * (centre[c] - x));
            *a *= libm::sqrtf(squares) / (1.0 - *a / w).max(f32::EPSILON / 2.0);
        }
    }
}
