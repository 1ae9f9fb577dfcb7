//! Scores that need no queries of the window: of keys alone, or of what queries are like on the whole.

use super::part_heads;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{MAX_HEAD_DIM, Scale, Shape};
use crate::rope::{Rope, RopeStyle};
use crate::view::Tensor;

/// Calls `f(head, its first score, its live rows)` for each KV head of a part, having checked sizes.
fn for_each_head(
    shape: &Shape,
    (keys, name, dim): (&Tensor, &'static core::ffi::CStr, usize),
    part: usize,
    n_parts: usize,
    (out, out_name): (&mut [f32], &'static core::ffi::CStr),
    mut f: impl FnMut(usize, core::ops::Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    shape.validate()?;
    let heads = part_heads(shape, part, n_parts)?;
    let at_layer = |e: Error| e.at_layer(shape.layer);
    let has_rows = (0..shape.n_kv_heads).all(|h| keys.rows(h) >= shape.rows(h));
    let fits = keys.n_heads() == shape.n_kv_heads && keys.dim() == dim && has_rows;
    ensure(fits, ErrorKind::Shape, name).map_err(at_layer)?;
    let first = shape.first_score(heads.start);
    ensure(out.len() >= shape.first_score(heads.end) - first, ErrorKind::BufferSize, out_name)
        .map_err(at_layer)?;
    for h in heads {
        let own = &mut out[shape.first_score(h) - first..shape.first_score(h + 1) - first];
        own.fill(0.0);
        let live = shape.live(h);
        if live.is_empty() {
            continue;
        }
        f(h, live.clone(), &mut own[live]).map_err(|e| at_layer(e.at_head(h)))?;
        ensure(own.iter().all(|x| x.is_finite()), ErrorKind::NonFinite, name)
            .map_err(|e| at_layer(e.at_head(h)))?;
    }
    Ok(())
}

/// Scores the KV heads of one part by their keys alone: `1 − cos(k_i, Σ_j k_j / ‖k_j‖)`, the sum over the live prefix rows. From 0 to
/// 2; dead rows get 0, and so does a key of zeros.
///
/// `k` is `[rows of each head, n_kv_heads, head_dim_k]`, after RoPE. `scores` are laid out as [`super::score`]'s. On an error they may
/// be partly written.
///
/// Source: KeyDiff, arXiv 2504.15364.
pub fn score_keys(shape: &Shape, k: &Tensor, part: usize, n_parts: usize, scores: &mut [f32]) -> Result<()> {
    let dim = shape.head_dim_k;
    for_each_head(shape, (k, c"k", dim), part, n_parts, (scores, c"scores"), |h, live, out| {
        let (mut sum, mut row) = ([0.0f64; MAX_HEAD_DIM], [0.0f32; MAX_HEAD_DIM]);
        let (sum, row) = (&mut sum[..dim], &mut row[..dim]);
        let squares = |row: &[f32]| row.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
        for i in live.clone() {
            k.widen(h, i, row);
            let length = libm::sqrt(squares(row));
            if length != 0.0 {
                sum.iter_mut().zip(row.iter()).for_each(|(s, &x)| *s += x as f64 / length);
            }
        }
        let of_sum = sum.iter().map(|x| x * x).sum::<f64>();
        for (i, score) in live.zip(out) {
            k.widen(h, i, row);
            let dot: f64 = row.iter().zip(sum.iter()).map(|(&x, s)| x as f64 * s).sum();
            let length = libm::sqrt(squares(row) * of_sum);
            // Rounding may make a cosine a little more than 1.
            let unlike = 1.0 - dot / length;
            *score = if length == 0.0 || unlike < 0.0 { 0.0 } else { unlike as f32 };
        }
        Ok(())
    })
}

/// Norms of values as they meet the residual stream, of the KV heads of one part: `sqrt((v_i − o)ᵀ G (v_i − o))`, which is
/// `‖(v_i − o) W‖₂` if `G = W Wᵀ`.
///
/// `v` is `[rows of each head, n_kv_heads, head_dim_v]`. `gram` is `[n_kv_heads, head_dim_v, head_dim_v]`, symmetric, not negative
/// definite: with `W_q` the rows of the output matrix that belong to query head `q`, `[head_dim_v, n_embd]`, the mean of `W_q W_qᵀ` over
/// the group; `None`: the unit matrix. `centre` is `[n_kv_heads, head_dim_v]`, the mean output `o`, say; `None`: zeros. `norms` are laid
/// out as scores; those of dead rows are 0. On an error they may be partly written.
pub fn value_norms(
    shape: &Shape,
    gram: Option<&[f32]>,
    centre: Option<&[f32]>,
    v: &Tensor,
    part: usize,
    n_parts: usize,
    norms: &mut [f32],
) -> Result<()> {
    let dim = shape.head_dim_v;
    for_each_head(shape, (v, c"v", dim), part, n_parts, (norms, c"norms"), |h, live, out| {
        let gram = of_head(gram, c"gram", shape.n_kv_heads, h, dim * dim)?;
        let centre = of_head(centre, c"centre", shape.n_kv_heads, h, dim)?;
        let mut row = [0.0f32; MAX_HEAD_DIM];
        let row = &mut row[..dim];
        for (i, norm) in live.zip(out) {
            v.widen(h, i, row);
            if let Some(centre) = centre {
                row.iter_mut().zip(centre).for_each(|(x, o)| *x -= o);
            }
            let square = match gram {
                None => row.iter().map(|&x| x as f64 * x as f64).sum(),
                Some(gram) => form(row, gram),
            };
            // Rounding may make a form that is not negative a little less than 0; NaN stays.
            *norm = libm::sqrt(if square < 0.0 { 0.0 } else { square }) as f32;
        }
        Ok(())
    })
}

/// A head's part of what the caller has for each, if it has any.
fn of_head<'a, T: Copy + Into<f64>>(
    all: Option<&'a [T]>,
    name: &'static core::ffi::CStr,
    n_heads: usize,
    head: usize,
    n: usize,
) -> Result<Option<&'a [T]>> {
    let Some(all) = all else { return Ok(None) };
    ensure(n_heads.checked_mul(n).is_some_and(|n| all.len() >= n), ErrorKind::BufferSize, name)?;
    let own = &all[head * n..(head + 1) * n];
    ensure(own.iter().all(|&x| x.into().is_finite()), ErrorKind::NonFinite, name)?;
    Ok(Some(own))
}

/// `xᵀ G x` of a symmetric `G`: what is above its diagonal counts twice. In lanes, in one order, so that it is fast and the same
/// everywhere.
fn form<T: Copy + Into<f64>>(x: &[f32], gram: &[T]) -> f64 {
    const LANES: usize = 8;
    let n = x.len();
    let mut sum = 0.0;
    for (a, &xa) in x.iter().enumerate() {
        let line = &gram[a * n + a + 1..(a + 1) * n];
        let mut lanes = [0.0f64; LANES];
        let (xs, gs) = (x[a + 1..].chunks_exact(LANES), line.chunks_exact(LANES));
        let rest: f64 = xs.remainder().iter().zip(gs.remainder()).map(|(&x, &g)| x as f64 * g.into()).sum();
        for (xs, gs) in xs.zip(gs) {
            (0..LANES).for_each(|l| lanes[l] += xs[l] as f64 * gs[l].into());
        }
        let above = lanes.iter().sum::<f64>() + rest;
        sum += xa as f64 * (xa as f64 * gram[a * n + a].into() + 2.0 * above);
    }
    sum
}

/// What queries are like on the whole: their mean, and how they scatter about it.
#[derive(Debug)]
pub struct QueryStatistics<'a> {
    /// `[n_q_heads, head_dim_k]`.
    pub mean: &'a mut [f64],
    /// `[n_q_heads, head_dim_k, head_dim_k]`.
    pub covariance: &'a mut [f64],
}

/// Mean and covariance of `n_rows` queries of every query head, turned by the mean rotation of positions `position` to
/// `position + n_ahead − 1`: what queries to come will be like.
///
/// Of the shape query heads and `head_dim_k` are used. `q` is `[n_rows, n_q_heads, head_dim_k]` before RoPE; leave out the first tokens,
/// on which attention sinks stand. On an error `out` may be partly written.
///
/// Source: Expected Attention, arXiv 2510.00636, which looks 512 positions ahead.
pub fn query_statistics(
    shape: &Shape,
    rope: &Rope,
    n_rows: usize,
    q: &Tensor,
    position: u32,
    n_ahead: u32,
    out: &mut QueryStatistics,
) -> Result<()> {
    shape.validate_heads()?;
    let at_layer = |e: Error| e.at_layer(shape.layer);
    let (heads, d) = (shape.n_q_heads, shape.head_dim_k);
    rope.validate(d).map_err(at_layer)?;
    ensure(n_rows > 0, ErrorKind::Shape, c"n_rows").map_err(at_layer)?;
    ensure(n_ahead > 0, ErrorKind::Argument, c"n_ahead").map_err(at_layer)?;
    let fits = q.n_heads() == heads && q.dim() == d && (0..heads).all(|h| q.rows(h) >= n_rows);
    ensure(fits, ErrorKind::Shape, c"q").map_err(at_layer)?;
    let holds = |n: usize, each: usize| heads.checked_mul(each).is_some_and(|all| n >= all);
    ensure(holds(out.mean.len(), d), ErrorKind::BufferSize, c"mean").map_err(at_layer)?;
    ensure(holds(out.covariance.len(), d * d), ErrorKind::BufferSize, c"covariance").map_err(at_layer)?;
    let mut turns = [(0.0f64, 0.0f64); MAX_HEAD_DIM / 2];
    let turns = &mut turns[..rope.frequencies.len()];
    for (turn, &frequency) in turns.iter_mut().zip(rope.frequencies) {
        let (mut sines, mut cosines) = (0.0, 0.0);
        for ahead in 0..n_ahead {
            let (sin, cos) = libm::sincos((position as f64 + ahead as f64) * frequency as f64);
            (sines, cosines) = (sines + sin, cosines + cos);
        }
        let factor = rope.magnitude as f64 / n_ahead as f64;
        *turn = (cosines * factor, sines * factor);
    }
    let mut row = [0.0f32; MAX_HEAD_DIM];
    let row = &mut row[..d];
    for h in 0..heads {
        let mean = &mut out.mean[h * d..(h + 1) * d];
        let covariance = &mut out.covariance[h * d * d..(h + 1) * d * d];
        mean.fill(0.0);
        covariance.fill(0.0);
        for j in 0..n_rows {
            q.widen(h, j, row);
            mean.iter_mut().zip(row.iter()).for_each(|(m, &x)| *m += x as f64 / n_rows as f64);
        }
        ensure(mean.iter().all(|m| m.is_finite()), ErrorKind::NonFinite, c"q").map_err(at_layer)?;
        let mut less = [0.0f64; MAX_HEAD_DIM];
        for j in 0..n_rows {
            q.widen(h, j, row);
            (0..d).for_each(|c| less[c] = row[c] as f64 - mean[c]);
            for (a, line) in covariance.chunks_exact_mut(d).enumerate() {
                let factor = less[a] / n_rows as f64;
                line.iter_mut().zip(&less).for_each(|(x, y)| *x += factor * y);
            }
        }
        // R Σ Rᵀ: each line, then each column.
        turn(rope.style, turns, mean, 0, 1);
        (0..d).for_each(|line| turn(rope.style, turns, covariance, line * d, 1));
        (0..d).for_each(|column| turn(rope.style, turns, covariance, column, d));
    }
    Ok(())
}

/// Turns the pairs of a vector whose elements lie `stride` apart from `first` on.
fn turn(style: RopeStyle, turns: &[(f64, f64)], x: &mut [f64], first: usize, stride: usize) {
    for (i, &(cos, sin)) in turns.iter().enumerate() {
        let (a, b) = style.pair(i, turns.len());
        let (a, b) = (first + a * stride, first + b * stride);
        (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
    }
}

/// Scores the KV heads of one part by the attention that queries are expected to pay which are distributed so, a normal distribution:
///
/// ```text
/// z[h, i] = s · μ_h·k_i + s²/2 · k_iᵀ Σ_h k_i          s = scale, 1 / sqrt(head_dim_k) if it is None
/// S[g, i] = mean over the group of softmax_i(z[h, i])   over the live prefix rows
/// ```
///
/// `k` is `[rows of each head, n_kv_heads, head_dim_k]`, after RoPE; `mean` and `covariance` are as [`query_statistics`] leaves them,
/// without `covariance` it is the attention of the mean query. `logits` is scratch memory for the rows of one head, each part's own.
/// `scores` are laid out as [`super::score`]'s; dead rows get 0. On an error they may be partly written.
///
/// Source: Expected Attention, arXiv 2510.00636, which adds 0.02 to each score and multiplies it by the L2 norm of the value
/// ([`value_norms`]), and keeps 4 sinks.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn score_expected(
    shape: &Shape,
    scale: Option<f32>,
    mean: &[f64],
    covariance: Option<&[f64]>,
    k: &Tensor,
    part: usize,
    n_parts: usize,
    logits: &mut [f64],
    scores: &mut [f32],
) -> Result<()> {
    let (d, group) = (shape.head_dim_k, shape.group_size());
    let in_range = scale.is_none_or(|scale| scale.is_finite() && scale > 0.0);
    ensure(in_range, ErrorKind::Argument, c"scale").map_err(|e| e.at_layer(shape.layer))?;
    let scale = Scale::new(scale, d).size as f64;
    for_each_head(shape, (k, c"k", d), part, n_parts, (scores, c"scores"), |h, live, out| {
        ensure(logits.len() >= live.len(), ErrorKind::BufferSize, c"logits")?;
        let logits = &mut logits[..live.len()];
        let mut row = [0.0f32; MAX_HEAD_DIM];
        let row = &mut row[..d];
        for head in h * group..(h + 1) * group {
            let mean = of_head(Some(mean), c"mean", shape.n_q_heads, head, d)?.unwrap_or(&[]);
            let covariance = of_head(covariance, c"covariance", shape.n_q_heads, head, d * d)?;
            let mut largest = f64::NEG_INFINITY;
            for (i, logit) in live.clone().zip(logits.iter_mut()) {
                k.widen(h, i, row);
                let dot: f64 = row.iter().zip(mean).map(|(&x, m)| x as f64 * m).sum();
                let scatter = covariance.map_or(0.0, |covariance| form(row, covariance));
                *logit = scale * dot + 0.5 * scale * scale * scatter;
                ensure(logit.is_finite(), ErrorKind::NonFinite, c"k")?;
                largest = if *logit > largest { *logit } else { largest };
            }
            let mut sum = 0.0;
            for logit in logits.iter_mut() {
                *logit = libm::exp(*logit - largest);
                sum += *logit;
            }
            for (score, x) in out.iter_mut().zip(logits.iter()) {
                *score += (x / sum / group as f64) as f32;
            }
        }
        Ok(())
    })
}
