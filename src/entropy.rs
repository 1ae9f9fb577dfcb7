//! Stage 6: how evenly a layer's scores are spread, as a number in [0, 1].
//!
//! ```text
//! p = S / ΣS          e = −Σ p·ln p / ln n  =  (ln ΣS − Σ S·ln S / ΣS) / ln n          n: the layer's live entries
//! ```
//!
//! Entries that no later query can see take no part. The right-hand form needs one pass and no second array. All in f64,
//! with sums in one fixed order and our own logarithm without fused operations: the entropy decides what layers keep, so it
//! must have the same bits on every machine. The order is one that a machine of any width can keep: eight running sums for each
//! thousand of a head's live scores, then their sums one by one.
//! (The authors' released code computes it in the model's dtype, which gives values above 1 in bf16 and NaN in f16.)

use core::ops::Range;

use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::Shape;

/// Entropy and sum of a layer's scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerEntropy {
    /// Normalised entropy in [0, 1]; 0 where there is nothing to spread (no entry, one entry, all scores zero).
    pub entropy: f64,
    /// ΣS over the layer's live entries.
    pub mass: f64,
}

/// Side-by-side sums, so that a compiler can vectorise without changing the order.
const LANES: usize = 8;

/// Scores of a head that are summed by themselves, so that a GPU can take them all at once (`cuda/plan.h`: `LAVA_CUDA_PIECE`).
pub(crate) const PIECE: usize = 1024;

/// Entropy of a layer's `scores`: f32, head after head, each head's prefix rows. An error names the head of a score that is NaN or
/// infinite ([`ErrorKind::NonFinite`]) or negative ([`ErrorKind::Argument`]).
pub fn entropy(shape: &Shape, scores: &[f32]) -> Result<LayerEntropy> {
    shape.validate()?;
    ensure(scores.len() as u64 >= shape.n_scores(), ErrorKind::BufferSize, c"scores")?;
    let n = shape.capacity();
    if n == 0 {
        return Ok(LayerEntropy { entropy: 0.0, mass: 0.0 });
    }
    check_not_negative(shape, scores)?;
    Ok(of_sums(n, heads(shape).map(|h| head_sums(live(shape, scores, h)))))
}

/// ΣS·ln S and ΣS of a head's live scores, none of them negative.
pub(crate) fn head_sums(head: &[f32]) -> [f64; 2] {
    // 0 · ln 0 = 0.
    [lane_sum(head, |s| s * ln(if s > 0.0 { s } else { 1.0 })), lane_sum(head, |s| s)]
}

/// Whether these can be sums of a head: of fewer than 2³² scores that are 0 or between 2⁻¹⁴⁹ and 2¹²⁸.
pub(crate) fn are_sums([weighted, mass]: [f64; 2]) -> bool {
    weighted.abs() < 1e52 && (mass == 0.0 || (1e-46..1e50).contains(&mass))
}

/// The entropy of `n` live entries, from their heads' sums in order.
pub(crate) fn of_sums(n: u64, sums: impl Iterator<Item = [f64; 2]>) -> LayerEntropy {
    let [weighted, mass] = sums.fold([0.0; 2], |[w, m], [weighted, mass]| [w + weighted, m + mass]);
    if n <= 1 || mass == 0.0 {
        return LayerEntropy { entropy: 0.0, mass };
    }
    let entropy = (ln(mass) - weighted / mass) / ln(n as f64);
    // One score holding everything, or all the same, may miss 0 and 1 by a rounding error.
    LayerEntropy { entropy: entropy.clamp(0.0, 1.0), mass }
}

/// Checks that live scores are numbers. Returns the smallest, or 0 if none is negative.
pub(crate) fn check_finite(shape: &Shape, scores: &[f32]) -> Result<f32> {
    let mut smallest = 0.0f32;
    for h in heads(shape) {
        let (low, finite) = smallest_of(live(shape, scores, h));
        ensure(finite, ErrorKind::NonFinite, c"scores").map_err(|e| e.at_layer(shape.layer).at_head(h))?;
        smallest = smallest.min(low);
    }
    Ok(smallest)
}

/// The smallest of a head's scores, or 0 if none is negative; and whether all are finite. Several at a time and without leaving the
/// loop early, so that it vectorises.
pub(crate) fn smallest_of(head: &[f32]) -> (f32, bool) {
    let (mut low, mut zero) = ([0.0f32; LANES], [0.0f32; LANES]);
    let mut look = |lane: usize, score: f32| {
        low[lane] = if score < low[lane] { score } else { low[lane] };
        // NaN if the score is not finite.
        zero[lane] += score * 0.0;
    };
    let blocks = head.chunks_exact(LANES);
    blocks.remainder().iter().enumerate().for_each(|(lane, &score)| look(lane, score));
    for block in blocks {
        (0..LANES).for_each(|lane| look(lane, block[lane]));
    }
    (low.into_iter().fold(0.0, f32::min), zero == [0.0; LANES])
}

/// Checks that live scores are numbers, and none is negative.
pub(crate) fn check_not_negative(shape: &Shape, scores: &[f32]) -> Result<()> {
    if check_finite(shape, scores)? == 0.0 {
        return Ok(());
    }
    let negative = |&h: &usize| live(shape, scores, h).iter().any(|&s| s < 0.0);
    let error = Error::new(ErrorKind::Argument, c"scores").at_layer(shape.layer);
    Err(heads(shape).find(negative).map_or(error, |h| error.at_head(h)))
}

/// Σ(S − base) over a layer's live entries: the same bits for every caller.
pub(crate) fn mass(shape: &Shape, scores: &[f32], base: f64) -> f64 {
    sum(shape, scores, |s| s - base)
}

/// Head by head. Not `sum()`, which gives -0.0 for no terms.
fn sum(shape: &Shape, scores: &[f32], f: impl Fn(f64) -> f64 + Copy) -> f64 {
    heads(shape).fold(0.0, |sum, h| sum + lane_sum(live(shape, scores, h), f))
}

/// The heads of a layer that have scores.
fn heads(shape: &Shape) -> Range<usize> {
    0..if shape.n_scores() > 0 { shape.n_kv_heads } else { 0 }
}

/// Scores of a head's live entries.
#[inline]
pub(crate) fn live<'a>(shape: &Shape, scores: &'a [f32], h: usize) -> &'a [f32] {
    let (first, live) = (shape.first_score(h), shape.live(h));
    &scores[first + live.start..first + live.end]
}

/// The sum of a head's scores, in the order of all sums here.
pub(crate) fn total(head: &[f32]) -> f64 {
    lane_sum(head, |s| s)
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

    fn of(scores: &[f32], heads: usize) -> Result<LayerEntropy> {
        entropy(&Shape::dense(scores.len() / heads + 1, heads, heads, 1, 1, 1), scores)
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(of(&[], 2).unwrap().entropy, 0.0);
        assert_eq!(of(&[3.0], 1).unwrap().entropy, 0.0);
        assert_eq!(of(&[0.0; 8], 2).unwrap(), LayerEntropy { entropy: 0.0, mass: 0.0 });
        assert_eq!(of(&[0.0, 0.0, 7.5, 0.0], 2).unwrap().entropy, 0.0);
        assert!((of(&[0.1; 600], 3).unwrap().entropy - 1.0).abs() < 1e-14);
    }

    #[test]
    fn a_bad_score_is_named() {
        for (bad, kind) in [
            (f32::NAN, ErrorKind::NonFinite),
            (f32::INFINITY, ErrorKind::NonFinite),
            (f32::NEG_INFINITY, ErrorKind::NonFinite),
            (-1.0, ErrorKind::Argument),
        ] {
            let error = of(&[1.0, 1.0, 1.0, bad], 2).unwrap_err();
            assert_eq!((error.kind, error.head), (kind, Some(1)));
        }
        // Dead ones are not looked at.
        let shape = Shape::dense(5, 1, 1, 1, 1, 1).sliding(3);
        assert_eq!(entropy(&shape, &[f32::NAN, -1.0, f32::INFINITY, 2.0]).unwrap().mass, 2.0);
    }
}
