//! The seam where backends meet: a table of kernels, one entry per inner loop.
//!
//! A stage decides what is computed and in which order; a kernel does the arithmetic of one block. [`scalar`] is safe
//! Rust and fills every slot. A backend for an instruction set copies that table and replaces the slots it does better,
//! so each slot can be held to the scalar one by the same test.
//!
//! Selection and compaction have no slots here: they move integers and bytes, and give the same result everywhere.

pub mod scalar;

use crate::view::Tensor;

/// Keys per block of a tile. Two AVX-512 or four AVX2 registers of f32.
pub const KEY_BLOCK: usize = 32;

/// Largest logit of a query row so far, and the sum of `exp(logit − max)`.
#[derive(Clone, Copy, Debug)]
pub struct RowStat {
    /// The largest logit seen.
    pub max: f32,
    /// Sum over the logits seen of `exp(logit − max)`. In f64, so that the length of the row costs no precision.
    pub sum: f64,
}

impl RowStat {
    /// Nothing seen yet.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// One entry per inner loop.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub name: &'static str,
    /// `pack_keys(k, head, first, n, panel)`: `panel[c · KEY_BLOCK + i] = k[first + i, head, c]` in f32 for `i < n`, zero
    /// for the other `i`. `panel` has `dim · KEY_BLOCK` elements.
    pub pack_keys: fn(&Tensor, usize, usize, usize, &mut [f32]),
    /// `logits(q, panel, tile) -> finite`: `tile[r · KEY_BLOCK + i] = Σ_c q[r · d + c] · panel[c · KEY_BLOCK + i]`, with
    /// `d = panel.len() / KEY_BLOCK` and `q.len() / d` rows. False if any result is NaN or infinite.
    pub logits: fn(&[f32], &[f32], &mut [f32]) -> bool,
    /// `softcap(x, cap)`: `x = cap · tanh(x / cap)`.
    pub softcap: fn(&mut [f32], f32),
    /// `row_stats(logits, stat)`: takes the logits of some keys into a row's statistics.
    pub row_stats: fn(&[f32], &mut RowStat),
    /// `add_exp(logits, lse, sums)`: `sums[i] += exp(logits[i] − lse)`.
    pub add_exp: fn(&[f32], f32, &mut [f32]),
    /// `l1_norm(v, head, row)`: Σ|v|; NaN or infinite if any element is.
    pub l1_norm: fn(&Tensor, usize, usize) -> f32,
    /// `pool_max(x, kernel, out)`: `out[i] = max(x[i .. i + kernel])`.
    pub pool_max: fn(&[f32], usize, &mut [f32]),
    /// `dot(k, head, row, q, out)`: `out[r] = q_r · k[row, head]` for the `out.len()` queries in `q`.
    pub dot: fn(&Tensor, usize, usize, &[f32], &mut [f32]),
    /// `add_scaled(v, head, row, weights, acc)`: `acc_r += weights[r] · v[row, head]` for each of the `weights.len()` rows.
    pub add_scaled: fn(&Tensor, usize, usize, &[f32], &mut [f32]),
}

/// A set of kernels that this machine can run.
#[derive(Clone, Copy)]
pub struct Backend {
    pub(crate) kernels: &'static Kernels,
}

impl Backend {
    /// Plain Rust, on every machine.
    pub fn scalar() -> Self {
        Self { kernels: &scalar::KERNELS }
    }

    /// The fastest backend that this machine can run.
    pub fn detect() -> Self {
        Self::scalar()
    }

    /// Its name, for reports.
    pub fn name(&self) -> &'static str {
        self.kernels.name
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::detect()
    }
}
