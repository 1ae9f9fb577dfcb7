//! The complete backend, in safe Rust: every slot, every element type, every stride.
//!
//! Loops run over fixed blocks of f32 without branches, so that a compiler can vectorise them; sums run in one fixed
//! order, so that the result does not depend on the compiler.

use super::{Block, ExactSoftmax, KEY_BLOCK, Kernels, PUT_AWAY, ROW_BLOCK, Softmax, Spread, UNSEEN};

/// The scalar table.
pub(crate) static KERNELS: Kernels = Kernels {
    name: c"scalar",
    dims_per_word: 1,
    bf16: None,
    prefetch: |_| {},
    to_words: |row, words| words.copy_from_slice(row),
    load_keys,
    logits,
    dots,
    softcap,
    absorb,
    absorb_exactly,
    add_exp,
    add_squares,
    add_fourths,
    max_exp,
    add_weighted,
    fourths_weighted,
    max_weighted,
    spread,
    softmax_rows,
    max_l1,
    times_l2,
    pool_max,
    add_values,
};

impl Block<'_> {
    /// Calls `f(c, value)` for each element of the block's row `i`.
    #[inline(always)]
    fn for_each(&self, i: usize, f: impl FnMut(usize, f32)) {
        self.tensor.for_each(self.head, self.first + i, f);
    }
}

fn load_keys(keys: &Block, rows: &mut [f32]) {
    let d = keys.tensor.dim();
    for (i, row) in rows.chunks_exact_mut(d).enumerate() {
        if i < keys.n {
            keys.for_each(i, |c, x| row[c] = x);
        } else {
            row.fill(0.0);
        }
    }
}

fn logits(keys: &[f32], words: usize, panel: &[f32], tile: &mut [f32]) -> bool {
    let rows = panel.len() / words;
    let mut finite = true;
    for (key, out) in keys.chunks_exact(words).zip(tile.chunks_exact_mut(rows)) {
        out.fill(0.0);
        for (&x, q) in key.iter().zip(panel.chunks_exact(rows)) {
            for r in 0..rows {
                out[r] += x * q[r];
            }
        }
        finite &= out.iter().all(|x| x.is_finite());
    }
    finite
}

pub(super) fn dots(keys: &Block, q: &[f32], tile: &mut [f32]) -> bool {
    let mut finite = true;
    for (q, out) in q.chunks_exact(keys.tensor.dim()).zip(tile.chunks_exact_mut(KEY_BLOCK)) {
        for (i, out) in out[..keys.n].iter_mut().enumerate() {
            // Eight sums side by side, added pairwise at the end.
            let mut sums = [0.0f32; 8];
            keys.for_each(i, |c, x| sums[c % 8] += q[c] * x);
            *out = pairwise(sums);
            finite &= out.is_finite();
        }
        out[keys.n..].fill(UNSEEN);
    }
    finite
}

fn softcap(x: &mut [f32], scale: f32, cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * libm::tanhf(*x * scale / cap));
}

fn absorb(tile: &[f32], scale: f32, max: &mut [f32], sum: &mut [f64], away: &mut [u8]) {
    let rows = max.len();
    for r in 0..rows {
        let column = |i: usize| tile[i * rows + r] * scale;
        let largest = (0..KEY_BLOCK).map(column).fold(max[r], |m, x| if x > m { x } else { m });
        if largest > max[r] {
            sum[r] *= exp2(max[r] - largest) as f64;
            max[r] = largest;
        }
        let mut total = 0.0;
        for i in 0..KEY_BLOCK {
            let e = exp2(column(i) - largest);
            total += e;
            if !away.is_empty() {
                let (upper, lower) = put_away_at(r, i);
                let bits = (e.to_bits() + (1 << 5)) >> 6;
                away[upper..upper + 2].copy_from_slice(&((bits >> 8) as u16).to_ne_bytes());
                away[lower] = bits as u8;
            }
        }
        sum[r] += total as f64;
    }
}

/// Where the two upper bytes and the lower byte of row `r` and key `i` are stored.
fn put_away_at(r: usize, i: usize) -> (usize, usize) {
    const PLANE: usize = KEY_BLOCK * ROW_BLOCK;
    let (block, at) = (r / ROW_BLOCK * PLANE * PUT_AWAY, i * ROW_BLOCK + r % ROW_BLOCK);
    (block + 2 * at, block + 2 * PLANE + at)
}

fn absorb_exactly(tile: &[f32], scale: f32, max: &mut [f32], sum: &mut [f64]) {
    let rows = max.len();
    for r in 0..rows {
        let column = |i: usize| tile[i * rows + r] * scale;
        let largest = (0..KEY_BLOCK).map(column).fold(max[r], |m, x| if x > m { x } else { m });
        if largest > max[r] {
            sum[r] *= exp2(max[r] - largest) as f64;
            max[r] = largest;
        }
        for i in 0..KEY_BLOCK {
            sum[r] += exp2(column(i) - largest) as f64;
        }
    }
}

fn add_exp(tile: &[f32], scale: f32, rows: Softmax, sums: &mut [f32; KEY_BLOCK], totals: &mut [f64]) {
    add_exp_and(|e, weight| e * weight, add, -126.0, tile, scale, rows, sums, totals);
}

fn max_exp(tile: &[f32], scale: f32, rows: Softmax, maxima: &mut [f32; KEY_BLOCK], totals: &mut [f64]) {
    add_exp_and(|e, weight| e * weight, larger, -126.0, tile, scale, rows, maxima, totals);
}

fn add(a: f32, b: f32) -> f32 {
    a + b
}

fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Below 2 to this power nothing is squared: the result would be subnormal, which is slow, and negligible among the
/// scores.
pub(super) const LEAST_SQUARED: f32 = -63.0;

fn add_squares(tile: &[f32], scale: f32, rows: Softmax, sums: &mut [f32; KEY_BLOCK], totals: &mut [f64]) {
    let square = |x: f32| x * x;
    let of = |e, weight| square(e) * square(weight);
    add_exp_and(of, add, LEAST_SQUARED, tile, scale, rows, sums, totals);
}

/// The same for fourth powers.
pub(super) const LEAST_FOURTH: f32 = -31.0;

fn fourth(x: f32) -> f32 {
    let square = x * x;
    square * square
}

fn add_fourths(tile: &[f32], scale: f32, rows: Softmax, sums: &mut [f32; KEY_BLOCK], totals: &mut [f64]) {
    let of = |e, weight| {
        let x: f32 = e * weight;
        if x > exp2(LEAST_FOURTH) { fourth(x) } else { 0.0 }
    };
    add_exp_and(of, add, -126.0, tile, scale, rows, sums, totals);
}

/// Sums over the rows of `of(e, weight)`, where `e` is 0 below 2 to the power of `least`; `add` may be something else than a sum.
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments and three numbers of its own")]
fn add_exp_and(
    of: impl Fn(f32, f32) -> f32,
    add: impl Fn(f32, f32) -> f32,
    least: f32,
    tile: &[f32],
    scale: f32,
    rows: Softmax,
    sums: &mut [f32; KEY_BLOCK],
    totals: &mut [f64],
) {
    for (key, sum) in tile.chunks_exact(rows.shift.len()).zip(sums) {
        let mut of_key = 0.0;
        for (r, x) in key.iter().enumerate() {
            let power = x * scale - rows.shift[r];
            let e = if power > least { exp2(power) } else { 0.0 };
            of_key = add(of_key, of(e, rows.weight[r]));
            if let Some(total) = totals.get_mut(r) {
                *total += e as f64;
            }
        }
        *sum = add(*sum, of_key);
    }
}

fn spread(tile: &mut [f32], scale: f32, rows: ExactSoftmax, out: &mut Spread, totals: &mut [f64]) {
    for (i, key) in tile.chunks_exact_mut(rows.shift.len()).enumerate() {
        key.iter_mut().zip(rows.shift).for_each(|(x, shift)| *x = exp2(*x * scale - shift));
        let a = || key[..rows.n].iter().zip(rows.weight).map(|(&e, weight)| e as f64 * weight);
        let sum = a().sum::<f64>();
        let mean = sum / rows.n as f64;
        out.sums[i] = sum as f32;
        out.deviations[i] = a().map(|a| (a - mean) * (a - mean)).sum::<f64>() as f32;
        totals.iter_mut().zip(key.iter()).for_each(|(total, &e)| *total += e as f64);
    }
}

fn add_weighted(away: &[u8], max: &[f32], rows: Softmax, sums: &mut [f32; KEY_BLOCK]) {
    weighted(|x| x, add, away, max, rows, sums);
}

fn fourths_weighted(away: &[u8], max: &[f32], rows: Softmax, sums: &mut [f32; KEY_BLOCK]) {
    let of = |x| if x > exp2(LEAST_FOURTH) { fourth(x) } else { 0.0 };
    weighted(of, add, away, max, rows, sums);
}

fn max_weighted(away: &[u8], max: &[f32], rows: Softmax, maxima: &mut [f32; KEY_BLOCK]) {
    weighted(|x| x, larger, away, max, rows, maxima);
}

fn weighted(
    of: impl Fn(f32) -> f32,
    add: impl Fn(f32, f32) -> f32,
    away: &[u8],
    max: &[f32],
    rows: Softmax,
    sums: &mut [f32; KEY_BLOCK],
) {
    for r in 0..max.len() {
        let weight = exp2(max[r] - rows.shift[r]) * rows.weight[r];
        for (i, sum) in sums.iter_mut().enumerate() {
            let (upper, lower) = put_away_at(r, i);
            let bits = u16::from_ne_bytes([away[upper], away[upper + 1]]) as u32;
            *sum = add(*sum, of(weight * f32::from_bits((bits << 8 | away[lower] as u32) << 6)));
        }
    }
}

fn softmax_rows(tile: &mut [f32], scale: f32, max: &mut [f32], sum: &mut [f64]) {
    for (r, row) in tile.chunks_exact_mut(KEY_BLOCK).enumerate() {
        row.iter_mut().for_each(|x| *x *= scale);
        let largest = row.iter().fold(max[r], |m, &x| if x > m { x } else { m });
        if largest > max[r] {
            sum[r] *= exp2(max[r] - largest) as f64;
            max[r] = largest;
        }
        row.iter_mut().for_each(|x| *x = exp2(*x - largest));
        sum[r] += row.iter().sum::<f32>() as f64;
    }
}

pub(super) fn max_l1(values: &Block) -> f32 {
    let (mut max, mut poison) = (0.0f32, 0.0f32);
    for i in 0..values.n {
        let mut sums = [0.0f32; 8];
        values.for_each(i, |c, x| sums[c % 8] += x.abs());
        let norm = pairwise(sums);
        poison += 0.0 * norm;
        max = if norm > max { norm } else { max };
    }
    max + poison
}

pub(super) fn times_l2(values: &Block, x: &mut [f32]) {
    for (i, x) in x.iter_mut().enumerate() {
        let mut sums = [0.0f32; 8];
        values.for_each(i, |c, v| sums[c % 8] += v * v);
        *x *= l2(values, i, pairwise(sums));
    }
}

/// The L2 norm of row `i`, from its sum of squares in f32 where that is one that f32 can hold.
#[inline(always)]
pub(super) fn l2(values: &Block, i: usize, squares: f32) -> f32 {
    match SQUARES_HELD.contains(&squares) {
        true => libm::sqrtf(squares),
        false => l2_of_any(values, i),
    }
}

/// Sums of squares whose terms have lost nothing to speak of, and have not overflowed.
const SQUARES_HELD: core::ops::RangeInclusive<f32> = 1e-27..=1e38;

#[cold]
fn l2_of_any(values: &Block, i: usize) -> f32 {
    let mut squares = 0.0f64;
    values.for_each(i, |_, v| squares += v as f64 * v as f64);
    libm::sqrt(squares) as f32
}

fn pool_max(x: &[f32], kernel: usize, out: &mut [f32]) {
    let n = out.len();
    out.copy_from_slice(&x[..n]);
    for shift in 1..kernel {
        for (o, &x) in out.iter_mut().zip(&x[shift..shift + n]) {
            *o = if x > *o { x } else { *o };
        }
    }
}

pub(super) fn add_values(values: &Block, tile: &[f32], acc: &mut [f32]) {
    for (row, acc) in tile.chunks_exact(KEY_BLOCK).zip(acc.chunks_exact_mut(values.tensor.dim())) {
        for i in 0..values.n {
            let weight = row[i];
            values.for_each(i, |c, x| acc[c] += weight * x);
        }
    }
}

fn pairwise(s: [f32; 8]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

/// `2^r` on [−½, ½], highest power first: the polynomial with the least relative error, 2.6e-9, of those that are 1 at 0.
pub(super) const EXP2: [f32; 7] =
    [1.559_467_8e-4, 1.340_664_4e-3, 9.617_693e-3, 5.550_310_6e-2, 2.402_265_3e-1, 6.931_472_2e-1, 1.0];

/// `2^x` within 2 ulp; 0 for NaN and below −126, where the result would be subnormal; capped at `2^127`, near the
/// largest f32. So `exp2(UNSEEN − x)` is 0 for every `x`, `UNSEEN` included.
///
/// `x = n + r`, then a polynomial in `r`, without a branch.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to an integer without a call.
    const ROUND: f32 = 12_582_912.0;
    let z = if x > -126.0 { x } else { -126.0 };
    let z = if z < 127.0 { z } else { 127.0 };
    let n = (z + ROUND) - ROUND;
    let r = z - n;
    let mut y = EXP2[0];
    for i in 1..EXP2.len() {
        y = y * r + EXP2[i];
    }
    let scale = f32::from_bits((((n as i32) + 127) as u32) << 23);
    if x > -126.0 { y * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_two_ulp_and_ends_in_zero() {
        let mut x = -125.9f32;
        while x < 30.0 {
            let want = libm::exp2(x as f64);
            let ulp = f32::EPSILON as f64 * want;
            assert!((exp2(x) as f64 - want).abs() <= 2.0 * ulp, "exp2({x})");
            x += 0.000_53;
        }
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(-140.0), 0.0);
        assert_eq!(exp2(UNSEEN - UNSEEN), 0.0);
    }
}
