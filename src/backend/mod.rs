//! The seam where backends meet: a table of kernels, one entry per inner loop.
//!
//! A stage decides what is computed and in which order; a kernel does the arithmetic of one block. [`scalar`] is safe
//! Rust and fills every slot. A backend for an instruction set copies that table and replaces the slots it does better,
//! so each slot can be held to the scalar one by the same test.
//!
//! Selection and compaction have no slots here: they move integers and bytes, and give the same result everywhere.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod scalar;
#[cfg(target_arch = "x86_64")]
mod vector;

use crate::view::Tensor;

/// Keys per block of a tile. Two AVX-512 or four AVX2 registers of f32.
pub const KEY_BLOCK: usize = 32;

/// Bytes of a tile's row that is put away: 24 bits a number, first the upper 16 of all, then the lower 8.
///
/// A number from 0 to 1 has its two highest bits clear, so bits 29 to 6 of the f32 are kept: rounded to 17 bits behind the
/// leading one, an error of 2⁻¹⁸ = 3.8e-6 of it.
pub const PUT_AWAY_ROW: usize = KEY_BLOCK * 3;

/// A key that a query does not see. `exp` of it is 0 whatever is subtracted.
pub(crate) const UNSEEN: f32 = f32::NEG_INFINITY;

/// Rows `first .. first + n` of one head.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub tensor: &'a Tensor<'a>,
    pub head: usize,
    pub first: usize,
    pub n: usize,
}

impl Block<'_> {
    /// Address of the block's row `i`.
    #[inline(always)]
    pub fn row(&self, i: usize) -> *const u8 {
        self.tensor.row_ptr(self.head, self.first + i)
    }
}

/// One entry per inner loop. A tile is `[rows, KEY_BLOCK]`, a panel `[dim, KEY_BLOCK]`, both f32 without gaps.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub name: &'static str,
    /// `prefetch(rows)`: these rows are needed soon. In a token-major cache one head's rows are too far apart for the
    /// hardware to see that by itself.
    pub prefetch: fn(&Block),
    /// `pack_keys(keys, panel)`: `panel[c, i] = keys[i, c]`, zero for `i ≥ n`.
    pub pack_keys: fn(&Block, &mut [f32]),
    /// `logits(q, panel, tile) -> finite`: `tile[r, i] = Σ_c q[r, c] · panel[c, i]`. False if any result is NaN or infinite.
    pub logits: fn(&[f32], &[f32], &mut [f32]) -> bool,
    /// `dots(keys, q, tile) -> finite`: the same for keys that were not packed; `tile[r, i]` is `UNSEEN` for `i ≥ n`. Better
    /// than packing for a few queries.
    pub dots: fn(&Block, &[f32], &mut [f32]) -> bool,
    /// `softcap(x, cap)`: `x = cap · tanh(x / cap)`.
    pub softcap: fn(&mut [f32], f32),
    /// `softmax_rows(tile, max, sum)`: takes each row's logits into the row's running maximum and into its sum of
    /// `exp(logit − maximum)`, and replaces the logits by `exp(logit − maximum)`.
    pub softmax_rows: fn(&mut [f32], &mut [f32], &mut [f64]),
    /// `put_away(tile, memory)`: each row of the tile, numbers from 0 to 1, in [`PUT_AWAY_ROW`] bytes. `memory` is aligned to 16
    /// and not needed again soon.
    pub put_away: fn(&[f32], &mut [u8]),
    /// `add_exp_rows(tile, lse, sums)`: `sums[i] += Σ_r exp(tile[r, i] − lse[r])`.
    pub add_exp_rows: fn(&[f32], &[f32], &mut [f32; KEY_BLOCK]),
    /// `add_weighted_rows(memory, max, lse, sums)`: `sums[i] += Σ_r exp(max[r] − lse[r]) · tile[r, i]`, of a tile put away.
    #[expect(clippy::type_complexity, reason = "a type of its own would hide the shapes")]
    pub add_weighted_rows: fn(&[u8], &[f32], &[f32], &mut [f32; KEY_BLOCK]),
    /// `max_l1(values)`: the largest `Σ|v|` of the rows; NaN or infinite if any element is.
    pub max_l1: fn(&Block) -> f32,
    /// `pool_max(x, kernel, out)`: `out[i] = max(x[i .. i + kernel])`.
    pub pool_max: fn(&[f32], usize, &mut [f32]),
    /// `add_values(values, tile, acc)`: `acc[r, c] += Σ_i tile[r, i] · values[i, c]`.
    pub add_values: fn(&Block, &[f32], &mut [f32]),
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

    /// AVX2, FMA and F16C, where the machine has them.
    #[cfg(target_arch = "x86_64")]
    pub fn avx2() -> Option<Self> {
        cpufeatures::new!(avx2_fma, "avx2", "fma");
        (avx2_fma::get() && avx2::has_f16c()).then_some(Self { kernels: &avx2::KERNELS })
    }

    /// AVX2, FMA and F16C, where the machine has them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn avx2() -> Option<Self> {
        None
    }

    /// AVX-512F beside all that AVX2 needs, where the machine has them. Not what [`Self::detect`] returns, until it has been
    /// measured against AVX2 on such a machine.
    #[cfg(target_arch = "x86_64")]
    pub fn avx512() -> Option<Self> {
        cpufeatures::new!(avx512f, "avx512f");
        (avx512f::get() && Self::avx2().is_some()).then_some(Self { kernels: &avx512::KERNELS })
    }

    /// AVX-512F beside all that AVX2 needs, where the machine has them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn avx512() -> Option<Self> {
        None
    }

    /// Every backend that this machine can run, the scalar one first: what a test goes through.
    pub fn all() -> impl Iterator<Item = Self> {
        [Some(Self::scalar()), Self::avx2(), Self::avx512()].into_iter().flatten()
    }

    /// The fastest backend that this machine can run.
    pub fn detect() -> Self {
        Self::avx2().unwrap_or(Self::scalar())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_away_comes_back_within_its_bound() {
        // From 1 down to what exp still gives, and zero.
        let tile: Vec<f32> = (0..7 * KEY_BLOCK).map(|i| scalar::exp(-(i as f32) * 0.39)).collect();
        let rows = tile.len() / KEY_BLOCK;
        // u128s: aligned as a workspace is.
        let pack = |kernels: &Kernels| {
            let mut memory = vec![0u128; rows * PUT_AWAY_ROW / 16];
            // SAFETY: u128s are bytes too.
            let bytes = unsafe {
                core::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, rows * PUT_AWAY_ROW)
            };
            (kernels.put_away)(&tile, bytes);
            bytes.to_vec()
        };
        let want = pack(&scalar::KERNELS);
        for backend in Backend::all() {
            assert!(pack(backend.kernels) == want, "{} packs other bytes", backend.name());
            for r in 0..rows {
                let mut sums = [0.0; KEY_BLOCK];
                let row = &want[r * PUT_AWAY_ROW..(r + 1) * PUT_AWAY_ROW];
                (backend.kernels.add_weighted_rows)(row, &[0.5], &[0.5], &mut sums);
                for (sum, x) in sums.iter().zip(&tile[r * KEY_BLOCK..]) {
                    // Half a unit of the last of 17 bits; the smallest numbers have zeros there.
                    let bound = x * (1.0 / (1 << 18) as f32);
                    assert!((sum - x).abs() <= bound, "{}: {sum} for {x}", backend.name());
                }
            }
        }
    }
}
