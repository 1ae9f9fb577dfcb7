//! Stage 6: how evenly a layer's scores are spread, as a number in [0, 1].
//!
//! ```text
//! p = S / ΣS          e = −Σ p·ln p / ln(n_kv_heads · P)  =  (ln ΣS − Σ S·ln S / ΣS) / ln(n_kv_heads · P)
//! ```
//!
//! The right-hand form needs one pass and no second array. All in f64, with sums in one fixed order and a logarithm of
//! our own without fused operations: the entropy decides budgets, so it must have the same bits on every machine. The order
//! is one that a machine of any width can keep: eight running sums for each thousand scores, then their sums one by one.
//! (The authors' released code computes it in the model's dtype, which gives values above 1 in bf16 and NaN in f16.)

use crate::error::{Error, ErrorKind, Result, ensure};

/// Entropy and sum of a layer's scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerEntropy {
    /// Normalised entropy in [0, 1]; 0 where there is nothing to spread (no entry, one entry, all scores zero).
    pub entropy: f64,
    /// ΣS over the layer's prefix entries.
    pub mass: f64,
}

/// Side-by-side sums, so that a compiler can vectorise without changing the order.
const LANES: usize = 8;

/// Scores of a head that are summed by themselves, so that a GPU can take them all at once (`cuda/plan.h`: `LAVA_CUDA_PIECE`).
pub(crate) const PIECE: usize = 1024;

/// Entropy of `scores`, `[n_kv_heads, prefix_len]`. An error names the head of a score that is negative, NaN or infinite.
pub fn entropy(scores: &[f32], n_kv_heads: usize, prefix_len: usize) -> Result<LayerEntropy> {
    let n = n_kv_heads.checked_mul(prefix_len).ok_or(Error::new(ErrorKind::Overflow, c"prefix_len"))?;
    ensure(scores.len() >= n, ErrorKind::BufferSize, c"scores")?;
    if n == 0 {
        return Ok(LayerEntropy { entropy: 0.0, mass: 0.0 });
    }
    let mut weighted = 0.0;
    for (h, head) in scores[..n].chunks_exact(prefix_len).enumerate() {
        ensure(head.iter().all(|s| *s >= 0.0 && s.is_finite()), ErrorKind::NonFinite, c"scores")
            .map_err(|e| e.at_head(h))?;
        // 0 · ln 0 = 0.
        weighted += lane_sum(head, |s| s * ln(if s > 0.0 { s } else { 1.0 }));
    }
    let mass = mass(&scores[..n], prefix_len);
    if n == 1 || mass == 0.0 {
        return Ok(LayerEntropy { entropy: 0.0, mass });
    }
    let entropy = (ln(mass) - weighted / mass) / ln(n as f64);
    // One score holding everything, or all the same, may miss 0 and 1 by a rounding error.
    Ok(LayerEntropy { entropy: entropy.clamp(0.0, 1.0), mass })
}

/// ΣS of a layer's scores, head by head: the same bits wherever it is asked for.
pub(crate) fn mass(scores: &[f32], prefix_len: usize) -> f64 {
    // Not `sum()`: of nothing that is -0.0.
    scores.chunks(prefix_len.max(1)).fold(0.0, |mass, head| mass + lane_sum(head, |s| s))
}

fn lane_sum(head: &[f32], f: impl Fn(f64) -> f64 + Copy) -> f64 {
    head.chunks(PIECE).fold(0.0, |sum, piece| sum + piece_sum(piece, f))
}

fn piece_sum(piece: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut l = [0.0f64; LANES];
    let blocks = piece.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for i in 0..LANES {
            l[i] += f(block[i] as f64);
        }
    }
    for (l, &s) in l.iter_mut().zip(rest) {
        *l += f(s as f64);
    }
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// Natural logarithm of a positive normal f64, within 2 ulp of the larger of 1 and the result.
///
/// `x = m · 2^k` with `m` in [√½, √2); `ln m = 2·atanh(s)`, `s = (m − 1)/(m + 1)`, `|s| ≤ 0.172`: ten terms of
/// its series leave less than 1e-17.
#[inline(always)]
fn ln(x: f64) -> f64 {
    const SQRT_HALF_BITS: i64 = 0x3FE6_A09E_667F_3BCD;
    let bits = x.to_bits() as i64;
    let k = (bits - SQRT_HALF_BITS) >> 52;
    let m = f64::from_bits((bits - (k << 52)) as u64);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 21.0;
    for n in [19.0f64, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * z + 1.0 / n;
    }
    k as f64 * core::f64::consts::LN_2 + 2.0 * s * p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_agrees_with_libm() {
        let mut x = 1e-45f64;
        while x < 1e40 {
            let want = libm::log(x);
            assert!((ln(x) - want).abs() <= 5e-16 * want.abs().max(1.0), "ln({x}) = {} want {want}", ln(x));
            x *= 1.000_73;
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(entropy(&[], 2, 0).unwrap().entropy, 0.0);
        assert_eq!(entropy(&[3.0], 1, 1).unwrap().entropy, 0.0);
        assert_eq!(entropy(&[0.0; 8], 2, 4).unwrap(), LayerEntropy { entropy: 0.0, mass: 0.0 });
        assert_eq!(entropy(&[0.0, 0.0, 7.5, 0.0], 2, 2).unwrap().entropy, 0.0);
        assert!((entropy(&[0.1; 600], 3, 200).unwrap().entropy - 1.0).abs() < 1e-14);
    }

    #[test]
    fn a_bad_score_is_named() {
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let error = entropy(&[1.0, 1.0, 1.0, bad], 2, 2).unwrap_err();
            assert_eq!((error.kind, error.head), (ErrorKind::NonFinite, Some(1)));
        }
    }
}
