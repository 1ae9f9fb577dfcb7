//! The complete backend, in safe Rust: every slot, every element type, every stride.
//!
//! Loops run over fixed blocks of f32 without branches, so that a compiler can vectorise them; sums run in one fixed
//! order, so that the result does not depend on who does.

use super::{Block, KEY_BLOCK, Kernels, PUT_AWAY_ROW, UNSEEN};

/// The scalar table.
pub(crate) static KERNELS: Kernels = Kernels {
    name: "scalar",
    prefetch: |_| {},
    pack_keys,
    logits,
    dots,
    softcap,
    softmax_rows,
    put_away,
    add_exp_rows,
    add_weighted_rows,
    max_l1,
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

pub(super) fn pack_keys(keys: &Block, panel: &mut [f32]) {
    if keys.n < KEY_BLOCK {
        panel.fill(0.0);
    }
    for i in 0..keys.n {
        keys.for_each(i, |c, x| panel[c * KEY_BLOCK + i] = x);
    }
}

fn logits(q: &[f32], panel: &[f32], tile: &mut [f32]) -> bool {
    let d = panel.len() / KEY_BLOCK;
    let mut poison = [0.0f32; KEY_BLOCK];
    for (row, out) in q.chunks_exact(d).zip(tile.chunks_exact_mut(KEY_BLOCK)) {
        let mut acc = [0.0f32; KEY_BLOCK];
        for (&x, keys) in row.iter().zip(panel.chunks_exact(KEY_BLOCK)) {
            for i in 0..KEY_BLOCK {
                acc[i] += x * keys[i];
            }
        }
        for i in 0..KEY_BLOCK {
            // 0 · x is 0 for every finite x, and NaN for the others.
            poison[i] += 0.0 * acc[i];
        }
        out.copy_from_slice(&acc);
    }
    poison.iter().all(|p| *p == 0.0)
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

fn softcap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * libm::tanhf(*x / cap));
}

fn softmax_rows(tile: &mut [f32], max: &mut [f32], sum: &mut [f64]) {
    for (r, row) in tile.chunks_exact_mut(KEY_BLOCK).enumerate() {
        let largest = row.iter().fold(max[r], |m, &x| if x > m { x } else { m });
        if largest > max[r] {
            sum[r] *= exp(max[r] - largest) as f64;
            max[r] = largest;
        }
        row.iter_mut().for_each(|x| *x = exp(*x - largest));
        sum[r] += row.iter().sum::<f32>() as f64;
    }
}

fn add_exp_rows(tile: &[f32], lse: &[f32], sums: &mut [f32; KEY_BLOCK]) {
    for (row, lse) in tile.chunks_exact(KEY_BLOCK).zip(lse) {
        for i in 0..KEY_BLOCK {
            sums[i] += exp(row[i] - lse);
        }
    }
}

fn put_away(tile: &[f32], memory: &mut [u8]) {
    for (row, memory) in tile.chunks_exact(KEY_BLOCK).zip(memory.chunks_exact_mut(PUT_AWAY_ROW)) {
        let (upper, lower) = memory.split_at_mut(2 * KEY_BLOCK);
        for i in 0..KEY_BLOCK {
            let bits = (row[i].to_bits() + (1 << 5)) >> 6;
            upper[2 * i..2 * i + 2].copy_from_slice(&((bits >> 8) as u16).to_ne_bytes());
            lower[i] = bits as u8;
        }
    }
}

fn add_weighted_rows(memory: &[u8], max: &[f32], lse: &[f32], sums: &mut [f32; KEY_BLOCK]) {
    for ((memory, max), lse) in memory.chunks_exact(PUT_AWAY_ROW).zip(max).zip(lse) {
        let (upper, lower) = memory.split_at(2 * KEY_BLOCK);
        let weight = exp(max - lse);
        for i in 0..KEY_BLOCK {
            let bits = (u16::from_ne_bytes([upper[2 * i], upper[2 * i + 1]]) as u32) << 8 | lower[i] as u32;
            sums[i] += weight * f32::from_bits(bits << 6);
        }
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

/// ln 2 in two parts, the first exact in few bits.
pub(super) const LN2_HI: f32 = 0.693_359_4;
pub(super) const LN2_LO: f32 = -2.121_944_4e-4;
/// `e^r` on [−½ ln 2, ½ ln 2], highest power first (Cephes' coefficients).
pub(super) const EXP: [f32; 8] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0];

/// `e^x` within 2 ulp; 0 for NaN and below −87.3, where the result would be subnormal; capped at `e^88`, near the largest
/// f32. So `exp(UNSEEN − x)` is 0 for every `x`, `UNSEEN` included.
///
/// Cody-Waite reduction `x = n·ln 2 + r`, then a polynomial in `r`, without a branch.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to an integer without a call.
    const ROUND: f32 = 12_582_912.0;
    let z = if x > -87.3 { x } else { -87.3 };
    let z = if z < 88.0 { z } else { 88.0 };
    let n = (z * core::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (z - n * LN2_HI) - n * LN2_LO;
    let mut y = EXP[0];
    for i in 1..EXP.len() {
        y = y * r + EXP[i];
    }
    let scale = f32::from_bits((((n as i32) + 127) as u32) << 23);
    if x > -87.3 { y * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_ends_in_zero() {
        let mut x = -87.2f32;
        while x < 20.0 {
            let want = libm::exp(x as f64);
            let ulp = f32::EPSILON as f64 * want;
            assert!((exp(x) as f64 - want).abs() <= 2.0 * ulp, "exp({x})");
            x += 0.000_37;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(UNSEEN - UNSEEN), 0.0);
    }
}
