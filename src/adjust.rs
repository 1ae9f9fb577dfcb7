//! What may be done to a layer's scores between scoring and selection.
//!
//! ```text
//! smooth    s_i + smoothing · mean(s)              what nobody asked about is not nothing
//! clamp     max(s_i, share · mean(s))              nor is what the window did not look at (DefensiveKV)
//! raise     the layer's largest, where by_i is among the first of its head: two stages (DefensiveKV, CriticalKV)
//! mean_over_heads                                  one set of tokens for all heads (TOVA)
//! ```
//!
//! Scores are the caller's f32 numbers, so what needs no more than them, such as a weight for each entry, is a loop in the caller's
//! code. All heads of a layer at once: it takes far less time than scoring.

use crate::error::{ErrorKind, Result, ensure};
use crate::params::{SelectParams, Shape};

/// Adds `smoothing` times a head's mean score to all its live scores.
///
/// The same as [`ScoreParams::smoothing`](crate::ScoreParams::smoothing), but after scores have been joined, and with what `select`
/// protects left out of the mean: the first tokens hold so much attention that they would be most of it. Of `select` only that is used.
/// `scores` are as [`crate::score::score`] leaves them, of all heads, finite. On an error they are untouched.
pub fn smooth(shape: &Shape, select: &SelectParams, smoothing: f32, scores: &mut [f32]) -> Result<()> {
    by_means(shape, select, (smoothing, c"smoothing"), scores, |score, more| score + more)
}

/// Raises a head's live scores to `share` times its mean where they are less.
///
/// Source: DefensiveKV, arXiv 2510.13334, which takes the mean over all entries (`n_sink` 0 here) and a share of 1. All else as in
/// [`smooth`].
pub fn clamp(shape: &Shape, select: &SelectParams, share: f32, scores: &mut [f32]) -> Result<()> {
    by_means(
        shape,
        select,
        (share, c"share"),
        scores,
        |score, least| if score < least { least } else { score },
    )
}

/// `change(score, factor · mean of the head)` for every live score.
fn by_means(
    shape: &Shape,
    select: &SelectParams,
    (factor, name): (f32, &'static core::ffi::CStr),
    scores: &mut [f32],
    change: fn(f32, f32) -> f32,
) -> Result<()> {
    shape.validate()?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    SelectParams { head_weights: None, ..*select }.validate(0, shape.prefix_len()).map_err(at_layer)?;
    ensure(factor.is_finite() && factor >= 0.0, ErrorKind::Argument, name).map_err(at_layer)?;
    check_scores(shape, scores)?;
    if shape.n_scores() == 0 {
        return Ok(());
    }
    // First whether all goes well.
    for dry in [true, false] {
        for h in 0..shape.n_kv_heads {
            let (first, live) = (shape.first_score(h), shape.live(h));
            let head = &mut scores[first + live.start..first + live.end];
            let of_mean = (factor as f64 * mean_of_unprotected(shape, h, select, head)) as f32;
            match dry {
                true => ensure(
                    head.iter().all(|&s| change(s, of_mean).is_finite()),
                    ErrorKind::NonFinite,
                    c"scores",
                )
                .map_err(|e| at_layer(e.at_head(h)))?,
                false => head.iter_mut().for_each(|s| *s = change(*s, of_mean)),
            }
        }
    }
    Ok(())
}

/// That these are a layer's scores, finite.
fn check_scores(shape: &Shape, scores: &[f32]) -> Result<()> {
    ensure(scores.len() as u64 >= shape.n_scores(), ErrorKind::BufferSize, c"scores")
        .map_err(|e| e.at_layer(shape.layer))?;
    crate::entropy::check_finite(shape, scores).map(|_| ())
}

/// The mean of a head's live scores without those that are kept whatever they are; 0 where there is none.
fn mean_of_unprotected(shape: &Shape, h: usize, select: &SelectParams, live: &[f32]) -> f64 {
    let n_protected = select.n_protected(shape, h);
    if n_protected == live.len() {
        return 0.0;
    }
    let sum = match select.protected_mask {
        // Sinks come first.
        None => crate::entropy::total(&live[n_protected..]),
        Some(_) => {
            let rows = shape.live(h).zip(live);
            let unprotected = rows.filter(|(row, _)| !select.protects(shape.position(h, *row)));
            unprotected.fold(0.0, |sum, (_, &s)| sum + s as f64)
        }
    };
    sum / (live.len() - n_protected) as f64
}

/// Gives the first entries of each head by `by` the layer's largest score, so that selection takes them before all others: the fewest,
/// the largest first, that hold `share` of the head's sum of `by`, but no more than `most[head]`. Of equals the first.
///
/// `by` has the shape of `scores`; both are as [`crate::score::score`] leaves them, of all heads, finite, `by` not negative. With a
/// `share` of 1 or more only `most` counts, without `most` only `share`. On an error `scores` are untouched.
///
/// Sources: the stage by attention's mass of DefensiveKV, arXiv 2510.13334; the first stage of CriticalKV, arXiv 2502.03805, for which
/// `most` is half of each head's budget.
pub fn raise(shape: &Shape, by: &[f32], share: f64, most: Option<&[u32]>, scores: &mut [f32]) -> Result<()> {
    shape.validate()?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    ensure(share > 0.0, ErrorKind::Argument, c"share").map_err(at_layer)?;
    ensure(most.is_none_or(|most| most.len() >= shape.n_kv_heads), ErrorKind::BufferSize, c"most")
        .map_err(at_layer)?;
    ensure(by.len() as u64 >= shape.n_scores(), ErrorKind::BufferSize, c"by").map_err(at_layer)?;
    check_scores(shape, scores)?;
    if shape.n_scores() == 0 {
        return Ok(());
    }
    let live = |h: usize| {
        let (first, live) = (shape.first_score(h), shape.live(h));
        first + live.start..first + live.end
    };
    let mut largest = f32::NEG_INFINITY;
    for h in 0..shape.n_kv_heads {
        let by = &by[live(h)];
        let valid = ensure(by.iter().all(|x| x.is_finite()), ErrorKind::NonFinite, c"by")
            .and_then(|()| ensure(by.iter().all(|&x| x >= 0.0), ErrorKind::Argument, c"by"));
        valid.map_err(|e| at_layer(e.at_head(h)))?;
        largest = scores[live(h)].iter().fold(largest, |m, &s| if s > m { s } else { m });
    }
    for h in 0..shape.n_kv_heads {
        let most = most.map_or(u32::MAX, |most| most[h]) as usize;
        raise_head(&by[live(h)], share, most, largest, &mut scores[live(h)]);
    }
    Ok(())
}

/// What is at least 0 in the order of its bits; −0 is 0.
fn key(x: f32) -> u32 {
    (x + 0.0).to_bits()
}

fn raise_head(by: &[f32], share: f64, most: usize, largest: f32, scores: &mut [f32]) {
    let enough = if share < 1.0 { share * crate::entropy::total(by) } else { f64::INFINITY };
    // How many are above a key, and their sum.
    let above = |least: u32| {
        let larger = by.iter().filter(|&&x| key(x) > least);
        larger.fold((0, 0.0), |(n, sum), &x| (n + 1, sum + x as f64))
    };
    let is_room = |(n, sum): (usize, f64)| n <= most && (n == 0 || sum < enough);
    // Both grow as the key falls: the smallest key above which there is room, and of those that have it as many as fit.
    let (mut low, mut high) = (0, f32::INFINITY.to_bits());
    while low < high {
        let middle = low + (high - low) / 2;
        if is_room(above(middle)) { high = middle } else { low = middle + 1 }
    }
    let (mut n, mut sum) = above(low);
    for (&x, score) in by.iter().zip(scores.iter_mut()) {
        let equal = key(x) == low && n < most && sum < enough;
        if equal {
            (n, sum) = (n + 1, sum + x as f64);
        }
        if equal || key(x) > low {
            *score = largest;
        }
    }
}

/// Gives all heads the mean of their scores, so that they keep the same tokens under equal head budgets: TOVA's one set
/// for all.
///
/// `scores` is `[n_kv_heads, prefix_len]`: heads of unlike rows have no mean. The mean of the group means is the mean
/// over all query heads.
pub fn mean_over_heads(shape: &Shape, scores: &mut [f32]) -> Result<()> {
    shape.validate()?;
    let at_layer = |e: crate::Error| e.at_layer(shape.layer);
    ensure(shape.ragged.is_none(), ErrorKind::Unsupported, c"cu_rows").map_err(at_layer)?;
    let (n_kv_heads, prefix_len) = (shape.n_kv_heads, shape.prefix_len());
    let n = n_kv_heads * prefix_len;
    ensure(scores.len() >= n, ErrorKind::BufferSize, c"scores").map_err(at_layer)?;
    let scores = &mut scores[..n];
    for (h, head) in scores.chunks_exact(prefix_len.max(1)).enumerate() {
        ensure(head.iter().all(|s| s.is_finite()), ErrorKind::NonFinite, c"scores")
            .map_err(|e| at_layer(e.at_head(h)))?;
    }
    for i in 0..prefix_len {
        let column = scores.iter().skip(i).step_by(prefix_len);
        scores[i] = (column.map(|&s| s as f64).sum::<f64>() / n_kv_heads as f64) as f32;
    }
    let (mean, rest) = scores.split_at_mut(prefix_len);
    rest.chunks_exact_mut(prefix_len.max(1)).for_each(|head| head.copy_from_slice(mean));
    Ok(())
}
