//! The interface of the backends: a table of kernels, one entry per inner loop.
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
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod neon;
pub mod scalar;
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_feature = "neon", target_endian = "little")
))]
mod vector;

use core::ffi::CStr;

use crate::error::{Error, ErrorKind, Result};
use crate::view::{Dtype, Tensor};

/// Keys per block.
pub const KEY_BLOCK: usize = 32;

/// Query rows of a head are filled up to a multiple of this, so that they fill registers: one of AVX-512, two of AVX2.
pub const ROW_BLOCK: usize = 16;

/// Bytes of an exponential that is stored for later. For each [`ROW_BLOCK`] first the upper 16 bits,
/// `[KEY_BLOCK, ROW_BLOCK]`, then the lower 8.
///
/// A number from 0 to 1 has its two highest bits clear, so bits 29 to 6 of the f32 are kept: rounded to 17 bits after
/// the leading one, an error of 2⁻¹⁸ = 3.8e-6 of it.
pub const PUT_AWAY: usize = 3;

/// A key that a query does not see. 2 to it is 0 whatever is subtracted.
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

/// What turns a query row's logits into attention: `2^(scale · logit − shift) · weight`.
///
/// Usually `shift` is the row's log-sum-exp and `weight` is 1. Where the log-sum-exp is so large that its rounding
/// would show, `shift` is the largest of the row's scaled logits, so that the difference is exact, and `weight` is 1
/// over the sum of the exponentials. Padding rows have a `shift` of +∞.
#[derive(Clone, Copy)]
pub(crate) struct Softmax<'a> {
    pub shift: &'a [f32],
    pub weight: &'a [f32],
}

/// The same with weights in f64, for the first `n` rows.
#[derive(Clone, Copy)]
pub(crate) struct ExactSoftmax<'a> {
    pub shift: &'a [f32],
    pub weight: &'a [f64],
    pub n: usize,
}

/// How the attention that each key of a block gets is spread over the query rows.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spread {
    /// `Σ_r a[i, r]`.
    pub sums: [f32; KEY_BLOCK],
    /// `Σ_r (a[i, r] − mean)²`.
    pub deviations: [f32; KEY_BLOCK],
}

/// One entry per inner loop.
///
/// In scoring, lanes hold query rows: a tile is `[KEY_BLOCK, rows]`, a panel of queries `[words, rows]`, with `rows` a
/// multiple of [`ROW_BLOCK`]. In `attend`, with its few queries, they hold keys: a tile is `[queries, KEY_BLOCK]`. A
/// key or query of `words` numbers is a row of the cache, or what [`Self::to_words`] makes of it. All are f32 without
/// gaps.
///
/// Logits are `q·k`. Exponentials are powers of two: their `scale > 0`, and every maximum and log-sum-exp, is in units
/// of ln 2, which saves one product per exponential.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub name: &'static CStr,
    /// Dims of a row that make one word: 1 for numbers, 2 for pairs.
    pub dims_per_word: usize,
    /// The table for bf16 queries and bf16 keys, if it is a different one.
    pub bf16: Option<&'static Kernels>,
    /// `prefetch(rows)`: these rows are needed soon. In a token-major cache one head's rows are too far apart for the
    /// hardware to see that by itself.
    pub prefetch: fn(&Block),
    /// `to_words(query, words)`: one query, as `logits` and `dots` want it.
    pub to_words: fn(&[f32], &mut [f32]),
    /// `load_keys(keys, rows)`: the block's keys, `[KEY_BLOCK, words]`, as `logits` wants them; zero for `i ≥ n`.
    pub load_keys: fn(&Block, &mut [f32]),
    /// `logits(keys, words, panel, tile) -> finite`: `tile[i, r] = Σ_c keys[i, c] · panel[c, r]`. False if any result
    /// is NaN or infinite.
    pub logits: fn(&[f32], usize, &[f32], &mut [f32]) -> bool,
    /// `dots(keys, q, tile) -> finite`: the same straight from the cache, `tile[r, i]`, `UNSEEN` for `i ≥ n`. Better
    /// for a few queries.
    pub dots: fn(&Block, &[f32], &mut [f32]) -> bool,
    /// `softcap(x, scale, cap)`: `x = cap · tanh(scale · x / cap)`.
    pub softcap: fn(&mut [f32], f32, f32),
    /// `absorb(tile, scale, max, sum, away)`: takes the logits into each query row's running maximum and its sum of
    /// `2^(scale · logit − maximum)`. These exponentials are stored in `away`, [`PUT_AWAY`] bytes each, unless it is
    /// empty.
    #[expect(clippy::type_complexity, reason = "a named type would hide the shapes")]
    pub absorb: fn(&[f32], f32, &mut [f32], &mut [f64], &mut [u8]),
    /// `absorb_exactly(tile, scale, max, sum)`: the same with every exponential added in f64, so that what a row's
    /// largest one leaves to the others is not lost.
    pub absorb_exactly: fn(&[f32], f32, &mut [f32], &mut [f64]),
    /// `add_exp(tile, scale, rows, sums, totals)`: `sums[i] += Σ_r e[i, r] · weight[r]`, and `totals[r] += Σ_i e[i, r]`
    /// unless `totals` is empty, where `e[i, r] = 2^(scale · tile[i, r] − shift[r])`.
    pub add_exp: fn(&[f32], f32, Softmax, &mut [f32; KEY_BLOCK], &mut [f64]),
    /// `add_squares(tile, scale, rows, sums, totals)`: the same with `sums[i] += Σ_r (e[i, r] · weight[r])²`.
    pub add_squares: fn(&[f32], f32, Softmax, &mut [f32; KEY_BLOCK], &mut [f64]),
    /// `add_fourths(tile, scale, rows, sums, totals)`: the same with `sums[i] += Σ_r (e[i, r] · weight[r])⁴`.
    pub add_fourths: fn(&[f32], f32, Softmax, &mut [f32; KEY_BLOCK], &mut [f64]),
    /// `max_exp(tile, scale, rows, maxima, totals)`: the same with `maxima[i] = max(maxima[i], max_r e[i, r] · weight[r])`.
    pub max_exp: fn(&[f32], f32, Softmax, &mut [f32; KEY_BLOCK], &mut [f64]),
    /// `add_weighted(away, max, rows, sums)`: `sums[i] += Σ_r 2^(max[r] − shift[r]) · weight[r] · tile[i, r]`, of a
    /// stored tile.
    pub add_weighted: fn(&[u8], &[f32], Softmax, &mut [f32; KEY_BLOCK]),
    /// `fourths_weighted(away, max, rows, sums)`: the same with the fourth powers.
    pub fourths_weighted: fn(&[u8], &[f32], Softmax, &mut [f32; KEY_BLOCK]),
    /// `max_weighted(away, max, rows, maxima)`: the same with the largest in place of the sum.
    pub max_weighted: fn(&[u8], &[f32], Softmax, &mut [f32; KEY_BLOCK]),
    /// `spread(tile, scale, rows, spread, totals)`: mean and deviations of `a[i, r] = e[i, r] · weight[r]` over the
    /// query rows, in f64. Overwrites the tile.
    pub spread: fn(&mut [f32], f32, ExactSoftmax, &mut Spread, &mut [f64]),
    /// `softmax_rows(tile, scale, max, sum)`: as `absorb`, for a tile of `attend`; replaces the logits by their
    /// exponentials.
    pub softmax_rows: fn(&mut [f32], f32, &mut [f32], &mut [f64]),
    /// `max_l1(values)`: the largest `Σ|v|` of the rows; NaN or infinite if any element is.
    pub max_l1: fn(&Block) -> f32,
    /// `times_l2(values, x)`: `x[i] *= sqrt(Σv²)` of row `i`, however small or large the squares are. `x` has `n` elements.
    pub times_l2: fn(&Block, &mut [f32]),
    /// `pool_max(x, kernel, out)`: `out[i] = max(x[i .. i + kernel])`.
    pub pool_max: fn(&[f32], usize, &mut [f32]),
    /// `add_values(values, tile, acc)`: `acc[r, c] += Σ_i tile[r, i] · values[i, c]`.
    pub add_values: fn(&Block, &[f32], &mut [f32]),
}

impl Kernels {
    /// The table to use for these queries and keys.
    pub fn for_product(&'static self, q: &Tensor, k: &Tensor) -> &'static Self {
        let pairs = q.dtype() == Dtype::BF16
            && k.dtype() == Dtype::BF16
            && k.is_row_contiguous()
            && k.dim().is_multiple_of(2);
        if pairs { self.bf16.unwrap_or(self) } else { self }
    }
}

/// Backends by name. The numbers are the C ABI's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum BackendKind {
    /// The fastest that this machine can run.
    #[default]
    Best = 0,
    /// Plain code, on every machine.
    Scalar = 1,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2 = 2,
    /// The same with AVX-512F.
    Avx512 = 3,
    /// The same with products of pairs of bf16.
    Avx512Bf16 = 4,
    /// aarch64 with NEON.
    Neon = 5,
}

/// A set of kernels that this machine can run.
#[derive(Clone, Copy)]
pub struct Backend {
    pub(crate) kernels: &'static Kernels,
}

impl Backend {
    /// The backend of this name. One that this machine cannot run is `Unsupported`.
    pub fn of(kind: BackendKind) -> Result<Self> {
        match kind {
            BackendKind::Best => Some(Self::detect()),
            BackendKind::Scalar => Some(Self::scalar()),
            BackendKind::Avx2 => Self::avx2(),
            BackendKind::Avx512 => Self::avx512(),
            BackendKind::Avx512Bf16 => Self::avx512_bf16(),
            BackendKind::Neon => Self::neon(),
        }
        .ok_or(Error::new(ErrorKind::Unsupported, c"backend"))
    }

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

    /// AVX-512F and all that AVX2 needs, where the machine has them.
    #[cfg(target_arch = "x86_64")]
    pub fn avx512() -> Option<Self> {
        cpufeatures::new!(avx512f, "avx512f");
        (avx512f::get() && Self::avx2().is_some()).then_some(Self { kernels: &avx512::KERNELS })
    }

    /// AVX-512F and all that AVX2 needs, where the machine has them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn avx512() -> Option<Self> {
        None
    }

    /// The same with products of pairs of bf16, for queries and keys that are both bf16.
    #[cfg(target_arch = "x86_64")]
    pub fn avx512_bf16() -> Option<Self> {
        let has = Self::avx512().is_some() && avx512::has_bf16();
        has.then_some(Self { kernels: &avx512::KERNELS_BF16 })
    }

    /// The same with products of pairs of bf16, for queries and keys that are both bf16.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn avx512_bf16() -> Option<Self> {
        None
    }

    /// NEON, which every aarch64 with floating point has.
    #[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
    pub fn neon() -> Option<Self> {
        Some(Self { kernels: &neon::KERNELS })
    }

    /// NEON, which every aarch64 with floating point has.
    #[cfg(not(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little")))]
    pub fn neon() -> Option<Self> {
        None
    }

    /// Every backend that this machine can run, the scalar one first, the fastest last: for tests that try them all.
    pub fn all() -> impl Iterator<Item = Self> {
        [Some(Self::scalar()), Self::avx2(), Self::avx512(), Self::avx512_bf16(), Self::neon()]
            .into_iter()
            .flatten()
    }

    /// The fastest backend that this machine can run.
    pub fn detect() -> Self {
        Self::all().last().unwrap_or(Self::scalar())
    }

    /// Its name, for reports.
    pub fn name(&self) -> &'static str {
        self.c_name().to_str().unwrap_or_default()
    }

    /// The same, NUL-terminated.
    pub fn c_name(&self) -> &'static CStr {
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
    fn stored_exponentials_come_back_within_their_bound() {
        for rows in [ROW_BLOCK, 2 * ROW_BLOCK, 3 * ROW_BLOCK] {
            // Exponentials from 1 down to the smallest of exp2, and zero. Every row has its maximum, 0, in its first
            // key.
            let tile: Vec<f32> =
                (0..KEY_BLOCK * rows).map(|i| if i < rows { 0.0 } else { -(i as f32) * 0.1 }).collect();
            for backend in Backend::all() {
                let kernels = backend.kernels;
                let (mut max, mut sum) = (vec![UNSEEN; rows], vec![0.0; rows]);
                let mut away = vec![0; KEY_BLOCK * rows * PUT_AWAY];
                (kernels.absorb)(&tile, 1.0, &mut max, &mut sum, &mut away);
                assert!(max.iter().all(|m| *m == 0.0));
                // The scalar kernel reads what every backend wrote: the format is the same. Row by row, so that
                // errors do not average out.
                for r in 0..2 * rows {
                    let (reader, r) = if r < rows { (kernels, r) } else { (&scalar::KERNELS, r - rows) };
                    let lse: Vec<f32> =
                        (0..rows).map(|other| if other == r { 1.0 } else { f32::INFINITY }).collect();
                    let mut sums = [0.0; KEY_BLOCK];
                    let softmax = Softmax { shift: &lse, weight: &vec![1.0; rows] };
                    (reader.add_weighted)(&away, &max, softmax, &mut sums);
                    for (i, got) in sums.iter().enumerate() {
                        let want = (tile[i * rows + r] as f64 - 1.0).exp2();
                        // Half a unit of the last of 17 bits, and some of f32; below 2^-126 the result is 0.
                        let bound = want * (1.0 / (1 << 18) as f64 + 3e-7) + 1.2e-38;
                        assert!((*got as f64 - want).abs() <= bound, "{}: {got} for {want}", backend.name());
                    }
                }
            }
        }
    }

    #[test]
    fn powers_of_two_are_within_three_ulp() {
        // One row of each key counts; the others see nothing.
        let power = |kernels: &Kernels, x: [f32; KEY_BLOCK]| {
            let mut tile = vec![UNSEEN; KEY_BLOCK * ROW_BLOCK];
            (0..KEY_BLOCK).for_each(|i| tile[i * ROW_BLOCK + i % ROW_BLOCK] = x[i]);
            let mut sums = [0.0; KEY_BLOCK];
            let softmax = Softmax { shift: &[0.0; ROW_BLOCK], weight: &[1.0; ROW_BLOCK] };
            (kernels.add_exp)(&tile, 1.0, softmax, &mut sums, &mut []);
            sums
        };
        for backend in Backend::all() {
            for step in 0..10_000 {
                let x =
                    core::array::from_fn(|i| -126.0 + (step * KEY_BLOCK + i) as f32 * (156.0 / 320_000.0));
                for (x, got) in x.iter().zip(power(backend.kernels, x)) {
                    let want = libm::exp2(*x as f64);
                    let bound = 3.0 * f32::EPSILON as f64 * want + 1.2e-38;
                    assert!((got as f64 - want).abs() <= bound, "{}: 2^{x} = {got}", backend.name());
                }
            }
            assert_eq!(power(backend.kernels, [0.0; KEY_BLOCK]), [1.0; KEY_BLOCK], "{}", backend.name());
            assert_eq!(power(backend.kernels, [-140.0; KEY_BLOCK]), [0.0; KEY_BLOCK], "{}", backend.name());
        }
    }

    /// Squares, deviations and totals of every backend against f64, with and without padding rows.
    #[test]
    fn kernels_of_a_tile_agree_with_f64() {
        for (rows, n) in [(ROW_BLOCK, 16), (ROW_BLOCK, 5), (2 * ROW_BLOCK, 32), (3 * ROW_BLOCK, 33)] {
            let logit = |i: usize, r: usize| ((i * 7 + r * 13) % 29) as f64 * -0.25;
            let tile: Vec<f32> = (0..KEY_BLOCK * rows).map(|at| logit(at / rows, at % rows) as f32).collect();
            let weight: Vec<f64> = (0..rows).map(|r| 1.0 - 1.0 / (r + 3) as f64).collect();
            let weight_32: Vec<f32> = weight.iter().map(|&x| x as f32).collect();
            let shift: Vec<f32> = (0..rows).map(|r| if r < n { 0.5 } else { f32::INFINITY }).collect();
            let softmax = Softmax { shift: &shift, weight: &weight_32 };
            let exact = ExactSoftmax { shift: &shift, weight: &weight, n };
            let e = |i: usize, r: usize| (logit(i, r) * 2.0 - 0.5).exp2();
            for Backend { kernels } in Backend::all() {
                let near = |got: f64, want: f64| {
                    assert!((got / want - 1.0).abs() < 2e-6, "{:?}: {got} for {want}", kernels.name)
                };
                let (mut sums, mut squares) = ([0.0; KEY_BLOCK], [0.0; KEY_BLOCK]);
                let (mut fourths, mut stored) = ([0.0; KEY_BLOCK], [0.0; KEY_BLOCK]);
                let (mut totals, mut spread) = ([(); 4].map(|_| vec![0.0; rows]), Spread::default());
                (kernels.add_exp)(&tile, 2.0, softmax, &mut sums, &mut totals[0]);
                (kernels.add_squares)(&tile, 2.0, softmax, &mut squares, &mut totals[1]);
                (kernels.spread)(&mut tile.clone(), 2.0, exact, &mut spread, &mut totals[2]);
                (kernels.add_fourths)(&tile, 2.0, softmax, &mut fourths, &mut totals[3]);
                let (mut max, mut sum) = (vec![UNSEEN; rows], vec![0.0; rows]);
                let mut away = vec![0; KEY_BLOCK * rows * PUT_AWAY];
                (kernels.absorb)(&tile, 2.0, &mut max, &mut sum, &mut away);
                (kernels.fourths_weighted)(&away, &max, softmax, &mut stored);
                for i in 0..KEY_BLOCK {
                    let a: Vec<f64> = (0..n).map(|r| e(i, r) * weight[r]).collect();
                    let sum: f64 = a.iter().sum();
                    near(sums[i] as f64, sum);
                    near(spread.sums[i] as f64, sum);
                    near(squares[i] as f64, a.iter().map(|a| a * a).sum());
                    // Those below 2^-124 are none; what was stored has 17 bits, and four times their error in a fourth power.
                    let fourth: f64 = a.iter().map(|a| a.powi(4)).sum();
                    near(fourths[i] as f64, fourth);
                    assert!((stored[i] as f64 / fourth - 1.0).abs() < 1.7e-5, "{:?}", kernels.name);
                    near(spread.deviations[i] as f64, a.iter().map(|a| (a - sum / n as f64).powi(2)).sum());
                }
                for r in 0..n {
                    totals.iter().for_each(|t| near(t[r], (0..KEY_BLOCK).map(|i| e(i, r)).sum()));
                }
                // The sum of what is absorbed, where the largest leaves little to the others.
                let column: Vec<f32> = (0..KEY_BLOCK * rows)
                    .map(|at| if at < rows { 0.0 } else { -40.0 - (at / rows) as f32 })
                    .collect();
                let (mut max, mut sum) = (vec![UNSEEN; rows], vec![0.0; rows]);
                (kernels.absorb_exactly)(&column, 1.0, &mut max, &mut sum);
                near(sum[0] - 1.0, (1..KEY_BLOCK).map(|i| (-40.0 - i as f64).exp2()).sum());
            }
        }
    }
}
