//! Scoring, its statistics, and attention.

use crate::params::{
    Attention, GroupReduce, LseBase, Pool, ScoreParams, SelectParams, Shape, ValueSpan, ValueWeight,
};
use crate::rope::{Rope, RopeStyle};

/// `x[head][row][element]`. Heads may have unlike numbers of rows.
pub type Heads = Vec<Vec<Vec<f64>>>;

/// Logit of one query and one key.
fn logit(q: &[f64], k: &[f64], scale: Option<f32>, softcap: Option<f32>) -> f64 {
    let scale = scale.map_or(1.0 / (q.len() as f64).sqrt(), f64::from);
    let s = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
    softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
}

/// One query's attention.
struct Row {
    /// To each key; 0 where it is not seen.
    keys: Vec<f64>,
    /// To the sink.
    sink: f64,
    /// Natural log-sum-exp of all logits, the sink's among them.
    lse: f64,
}

/// Softmax, where `None` is a key that is not seen.
fn softmax(logits: &[Option<f64>], sink: Option<f32>) -> Row {
    let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
    let max = logits.iter().flatten().fold(sink, |m, &x| m.max(x));
    if max == f64::NEG_INFINITY {
        return Row { keys: vec![0.0; logits.len()], sink: 0.0, lse: max };
    }
    let exps: Vec<f64> = logits.iter().map(|l| l.map_or(0.0, |x| (x - max).exp())).collect();
    let sum = exps.iter().sum::<f64>() + (sink - max).exp();
    Row { keys: exps.iter().map(|e| e / sum).collect(), sink: (sink - max).exp() / sum, lse: max + sum.ln() }
}

/// Log-sum-exp of the window's queries, in the base of the options: `lse[h][j]`.
pub fn log_sum_exp(shape: &Shape, params: &ScoreParams, q: &Heads, k: &Heads) -> Vec<Vec<f64>> {
    let unit = if params.lse_base == LseBase::Two { std::f64::consts::LN_2 } else { 1.0 };
    let positions = window_positions(shape);
    let row = |h: usize, j: usize| attention(shape, params, (&q[h][j], positions[j]), k, h);
    (0..q.len()).map(|h| (0..positions.len()).map(|j| row(h, j).lse / unit).collect()).collect()
}

/// Where the window's queries stand.
fn window_positions(shape: &Shape) -> Vec<usize> {
    (shape.prefix_len()..shape.n_tokens).collect()
}

/// Stage 1, one row: attention of a query of head `h`, at its position, over all rows of its KV head.
fn attention(
    shape: &Shape,
    params: &ScoreParams,
    (q, position): (&[f64], usize),
    k: &Heads,
    h: usize,
) -> Row {
    let g = h / shape.group_size();
    let logits: Vec<Option<f64>> = (0..shape.rows(g))
        .map(|i| {
            let key = shape.position(g, i);
            let seen = key <= position
                && shape.sliding_window.is_none_or(|keys| key.saturating_add(keys) > position);
            seen.then(|| logit(q, &k[g][i], params.scale, params.softcap))
        })
        .collect();
    softmax(&logits, params.sink_logits.map(|sinks| sinks[h]))
}

/// Stage 2: what becomes of a key's attention from the queries, the oldest first.
fn over_queries(a: &[f64], params: &ScoreParams) -> f64 {
    let w = a.len() as f64;
    let mean = a.iter().sum::<f64>() / w;
    match params.attention {
        Attention::Mean => mean,
        Attention::Squared => a.iter().map(|x| x * x).sum::<f64>() / w,
        Attention::MeanVariance => {
            let deviations = a.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            mean + f64::from(params.gamma) * if w > 1.0 { deviations / (w - 1.0) } else { 0.0 }
        }
        Attention::Exponential => {
            let decay = f64::from(params.decay);
            a[1..].iter().fold(a[0], |average, x| decay * x + (1.0 - decay) * average)
        }
        Attention::Norm4 => a.iter().map(|x| x.powi(4)).sum::<f64>().powf(0.25),
        Attention::Max => a.iter().copied().fold(0.0, f64::max),
        Attention::Recency => unreachable!("is not attention"),
    }
}

/// What evicting each row alone does to the output: `a / (1 − a) · ‖o − v‖₂`. With the mean `m` of the other rows'
/// values, weighted by their attention, `o − v = (1 − a) · (m − v)`: so nothing is subtracted that is nearly the same.
/// A sink is a row of zeros.
fn output_change(a: &[f64], sink: f64, v: &[Vec<f64>]) -> Vec<f64> {
    let change = |i: usize| {
        let others = || (0..a.len()).filter(move |&k| k != i);
        let rest = others().map(|k| a[k]).sum::<f64>() + sink;
        let mean = |c: usize| others().map(|k| a[k] * v[k][c]).sum::<f64>() / rest;
        let distance = (0..v[i].len()).map(|c| (mean(c) - v[i][c]).powi(2)).sum::<f64>().sqrt();
        if a[i] > 0.0 { a[i] * distance } else { 0.0 }
    };
    (0..a.len()).map(change).collect()
}

/// Stages 1 to 5: `scores[g][i]`.
pub fn scores(shape: &Shape, params: &ScoreParams, q: &Heads, k: &Heads, v: &Heads) -> Vec<Vec<f64>> {
    scores_by(shape, params, &window_positions(shape), q, k, v)
}

/// The same by queries that are not in the cache: each sees what one at position N does.
pub fn scores_by_queries(
    shape: &Shape,
    params: &ScoreParams,
    q: &Heads,
    k: &Heads,
    v: &Heads,
) -> Vec<Vec<f64>> {
    scores_by(shape, params, &vec![shape.n_tokens; q[0].len()], q, k, v)
}

/// By queries that see what queries at these positions see.
pub fn scores_by(
    shape: &Shape,
    params: &ScoreParams,
    positions: &[usize],
    q: &Heads,
    k: &Heads,
    v: &Heads,
) -> Vec<Vec<f64>> {
    let group = shape.group_size();
    let (before, after) = match params.pool {
        Pool::After => (params.pool_kernel - 1, 0),
        _ => (params.pool_kernel / 2, params.pool_kernel / 2),
    };
    let mut scores = vec![];
    for g in 0..shape.n_kv_heads {
        let (n, live) = (shape.rows(g), shape.live(g));
        let n_live = live.len();
        // Stage 4: the largest L1 norm among the head's values.
        let l1 = |i: usize| v[g][i].iter().map(|x| x.abs()).sum::<f64>();
        let l2 = |i: usize| v[g][i].iter().map(|x| x * x).sum::<f64>().sqrt();
        let span = if params.value_span == ValueSpan::All { live.start..n } else { live.clone() };
        let vmax = span.clone().map(l1).fold(0.0, f64::max);
        let mean_l2 = span.clone().map(l2).sum::<f64>() / span.len() as f64;
        let mut pooled = vec![];
        for h in g * group..(g + 1) * group {
            // Stages 1 and 2: attention of the queries.
            let queries = q[h].iter().zip(positions);
            let rows: Vec<Row> =
                queries.map(|(q, &position)| attention(shape, params, (q, position), k, h)).collect();
            let column = |i: usize| rows.iter().map(|row| row.keys[i]).collect::<Vec<f64>>();
            let mut a: Vec<f64> = match params.attention {
                Attention::Recency => (0..n).map(|i| shape.position(g, i) as f64 + 1.0).collect(),
                _ => (0..n).map(|i| over_queries(&column(i), params)).collect(),
            };
            if params.value_weight == ValueWeight::Output {
                let sink = rows.iter().map(|row| row.sink).collect::<Vec<f64>>();
                a = output_change(&a, over_queries(&sink, params), &v[g]);
            }
            // Dead rows have no part in what follows.
            let a = &a[live.clone()];
            // Stage 3: pooling along the tokens, and what the query head counts.
            let weight = params.query_head_weights.map_or(1.0, |weights| f64::from(weights[h]));
            pooled.push(
                (0..n_live)
                    .map(|i| {
                        let near = &a[i.saturating_sub(before)..(i + after + 1).min(n_live)];
                        match params.pool {
                            Pool::Max | Pool::After => weight * near.iter().copied().fold(0.0, f64::max),
                            Pool::Avg => weight * near.iter().sum::<f64>() / params.pool_kernel as f64,
                        }
                    })
                    .collect::<Vec<f64>>(),
            );
        }
        // Stage 5: one score per KV head.
        let value = |i: usize| match params.value_weight {
            ValueWeight::HeadMax => vmax,
            ValueWeight::HeadMeanL2 => mean_l2,
            ValueWeight::Token => l1(live.start + i),
            ValueWeight::TokenL2 => l2(live.start + i),
            ValueWeight::None | ValueWeight::Output => 1.0,
        };
        let head: Vec<f64> = (0..n_live)
            .map(|i| {
                let column = pooled.iter().map(|p| p[i]);
                let reduced = match params.group_reduce {
                    GroupReduce::Max => column.fold(0.0, f64::max),
                    GroupReduce::Mean => column.sum::<f64>() / group as f64,
                };
                reduced * value(i) * f64::from(params.weight)
            })
            .collect();
        let more = f64::from(params.smoothing) * head.iter().sum::<f64>() / n_live as f64;
        let dead = vec![0.0; live.start];
        scores.push(dead.into_iter().chain(head.iter().map(|s| s + more)).collect());
    }
    scores
}

/// Adds `smoothing` times each head's mean to its live scores; what is protected has no part in the mean.
pub fn smoothed(shape: &Shape, select: &SelectParams, smoothing: f32, scores: &[Vec<f64>]) -> Vec<Vec<f64>> {
    by_means(shape, select, smoothing, scores, |score, more| score + more)
}

/// Raises live scores to `share` times their head's mean; what is protected has no part in the mean.
pub fn clamped(shape: &Shape, select: &SelectParams, share: f32, scores: &[Vec<f64>]) -> Vec<Vec<f64>> {
    by_means(shape, select, share, scores, f64::max)
}

fn by_means(
    shape: &Shape,
    select: &SelectParams,
    factor: f32,
    scores: &[Vec<f64>],
    change: fn(f64, f64) -> f64,
) -> Vec<Vec<f64>> {
    let of_head = |(g, head): (usize, &Vec<f64>)| {
        let live = shape.live(g);
        let counts = |i: &usize| !select.protects(shape.position(g, *i));
        let counted: Vec<f64> = live.clone().filter(counts).map(|i| head[i]).collect();
        let mean = counted.iter().sum::<f64>() / counted.len().max(1) as f64;
        let changed = |i: usize| change(head[i], f64::from(factor) * mean);
        (0..head.len()).map(|i| if live.contains(&i) { changed(i) } else { head[i] }).collect()
    };
    scores.iter().enumerate().map(of_head).collect()
}

/// Live rows of a head that come first by another score, `by`: the fewest that hold `share` of its sum, no more than `most`.
pub fn first_rows(shape: &Shape, head: usize, by: &[f64], share: f64, most: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = shape.live(head).collect();
    let all: f64 = rows.iter().map(|&i| by[i]).sum();
    rows.sort_by(|&a, &b| by[b].total_cmp(&by[a]).then(a.cmp(&b)));
    let mut so_far = 0.0;
    let before = |&&i: &&usize| {
        let more = share >= 1.0 || so_far < share * all;
        so_far += by[i];
        more
    };
    rows.iter().take(most).take_while(before).copied().collect()
}

/// Novelty of each of a layer's queries `q[h][j]`: minus the sum over the heads of the cosine of it and the mean of all.
pub fn novelty(q: &Heads) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mean = |head: &Vec<Vec<f64>>| -> Vec<f64> {
        (0..head[0].len()).map(|c| head.iter().map(|q| q[c]).sum::<f64>() / head.len() as f64).collect()
    };
    let means: Vec<Vec<f64>> = q.iter().map(mean).collect();
    let cosine = |a: &[f64], b: &[f64]| match (dot(a, a) * dot(b, b)).sqrt() {
        0.0 => 0.0,
        length => dot(a, b) / length,
    };
    (0..q[0].len()).map(|j| -q.iter().zip(&means).map(|(head, m)| cosine(&head[j], m)).sum::<f64>()).collect()
}

/// One query turned to a position.
pub fn rotated(rope: &Rope, position: u32, q: &[f64]) -> Vec<f64> {
    let (mut out, n) = (q.to_vec(), rope.frequencies.len());
    for (i, &frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = if rope.style == RopeStyle::Pairs { (2 * i, 2 * i + 1) } else { (i, n + i) };
        let (sin, cos) = (f64::from(position) * f64::from(frequency)).sin_cos();
        out[a] = f64::from(rope.magnitude) * (q[a] * cos - q[b] * sin);
        out[b] = f64::from(rope.magnitude) * (q[a] * sin + q[b] * cos);
    }
    out
}

/// KeyDiff's scores of the live rows: `1 − cos(k_i, Σ_j k_j / ‖k_j‖)`.
pub fn key_differences(shape: &Shape, k: &Heads) -> Vec<Vec<f64>> {
    let length = |k: &[f64]| k.iter().map(|x| x * x).sum::<f64>().sqrt();
    let of_head = |g: usize| {
        let keys = &k[g][shape.live(g)];
        let sum: Vec<f64> =
            (0..shape.head_dim_k).map(|c| keys.iter().map(|k| k[c] / length(k)).sum()).collect();
        let dot = |k: &[f64]| k.iter().zip(&sum).map(|(a, b)| a * b).sum::<f64>();
        let own = keys.iter().map(|k| 1.0 - dot(k) / (length(k) * length(&sum)));
        std::iter::repeat_n(0.0, shape.live(g).start).chain(own).collect()
    };
    (0..shape.n_kv_heads).map(of_head).collect()
}

/// `xᵀ G x`, `G` line by line.
fn form(x: &[f64], gram: &[f64]) -> f64 {
    let line = |line: &[f64]| line.iter().zip(x).map(|(g, y)| g * y).sum::<f64>();
    x.iter().zip(gram.chunks_exact(x.len())).map(|(a, g)| a * line(g)).sum()
}

/// Norms of the live rows' values less their head's centre, by a form for each head.
pub fn value_norms(shape: &Shape, gram: &[Vec<f64>], centre: &[Vec<f64>], v: &Heads) -> Vec<Vec<f64>> {
    let of_row = |g: usize, i: usize| {
        let x: Vec<f64> = v[g][i].iter().zip(&centre[g]).map(|(x, o)| x - o).collect();
        form(&x, &gram[g]).sqrt()
    };
    let of_head = |g: usize| {
        let rows = 0..shape.live(g).end;
        rows.map(|i| if shape.live(g).contains(&i) { of_row(g, i) } else { 0.0 }).collect()
    };
    (0..shape.n_kv_heads).map(of_head).collect()
}

/// Mean and covariance of each query head's queries `q[h][j]`, turned by the mean rotation of some positions.
pub fn query_statistics(
    rope: &Rope,
    positions: std::ops::Range<u32>,
    q: &Heads,
) -> Vec<(Vec<f64>, Vec<f64>)> {
    let n = positions.len() as f64;
    // A rotation is linear, and so is the mean of rotations.
    let turned = |x: &[f64]| {
        let mut mean = vec![0.0; x.len()];
        for position in positions.clone() {
            let one = rotated(rope, position, x);
            mean[..2 * rope.frequencies.len()].iter_mut().zip(&one).for_each(|(m, y)| *m += y / n);
        }
        mean[2 * rope.frequencies.len()..].copy_from_slice(&x[2 * rope.frequencies.len()..]);
        mean
    };
    let of_head = |q: &Vec<Vec<f64>>| {
        let d = q[0].len();
        let q: Vec<Vec<f64>> = q.iter().map(|q| turned(q)).collect();
        let n = q.len() as f64;
        let mean: Vec<f64> = (0..d).map(|c| q.iter().map(|q| q[c]).sum::<f64>() / n).collect();
        let product =
            |a: usize, b: usize| q.iter().map(|q| (q[a] - mean[a]) * (q[b] - mean[b])).sum::<f64>() / n;
        let covariance = (0..d * d).map(|i| product(i / d, i % d)).collect();
        (mean, covariance)
    };
    q.iter().map(of_head).collect()
}

/// Expected Attention's scores of the live rows, by each query head's mean and covariance.
pub fn expected_attention(
    shape: &Shape,
    scale: Option<f32>,
    statistics: &[(Vec<f64>, Vec<f64>)],
    k: &Heads,
) -> Vec<Vec<f64>> {
    let scale = scale.map_or(1.0 / (shape.head_dim_k as f64).sqrt(), f64::from);
    let group = shape.group_size();
    let of_head = |g: usize| {
        let mut scores = vec![0.0; shape.live(g).end];
        for (mean, covariance) in &statistics[g * group..(g + 1) * group] {
            let z = |i: usize| {
                let dot: f64 = mean.iter().zip(&k[g][i]).map(|(a, b)| a * b).sum();
                scale * dot + scale * scale / 2.0 * form(&k[g][i], covariance)
            };
            let logits: Vec<Option<f64>> =
                (0..scores.len()).map(|i| shape.live(g).contains(&i).then(|| z(i))).collect();
            let attention = softmax(&logits, None).keys;
            scores.iter_mut().zip(attention).for_each(|(s, a)| *s += a / group as f64);
        }
        scores
    };
    (0..shape.n_kv_heads).map(of_head).collect()
}

/// CAKE's two numbers per KV head: `(entropy, variance)` of the attention that the window pays the live prefix.
pub fn attention_stats(shape: &Shape, params: &ScoreParams, q: &Heads, k: &Heads) -> Vec<(f64, f64)> {
    let (positions, group) = (window_positions(shape), shape.group_size());
    let w = positions.len();
    let mut stats = vec![];
    for g in 0..shape.n_kv_heads {
        let (mut entropy, mut variance) = (0.0, 0.0);
        for h in g * group..(g + 1) * group {
            let row = |j: usize| attention(shape, params, (&q[h][j], positions[j]), k, h).keys;
            let rows: Vec<_> = (0..w).map(row).collect();
            for i in shape.live(g) {
                let a: Vec<f64> = rows.iter().map(|row| row[i]).collect();
                let mean = a.iter().sum::<f64>() / w as f64;
                entropy -= a.iter().filter(|a| **a > 0.0).map(|a| a * a.ln()).sum::<f64>();
                if w > 1 {
                    variance += a.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (w - 1) as f64;
                }
            }
        }
        stats.push((entropy, variance));
    }
    stats
}

/// Attention of one query over one head's rows, `None` where a row is not seen: the output, and the natural
/// log-sum-exp.
pub fn attend(
    q: &[f64],
    rows: &[Option<(&[f64], &[f64])>],
    dim_v: usize,
    scale: Option<f32>,
    softcap: Option<f32>,
    sink: Option<f32>,
) -> (Vec<f64>, f64) {
    let logits: Vec<Option<f64>> = rows.iter().map(|r| r.map(|(k, _)| logit(q, k, scale, softcap))).collect();
    let weights = softmax(&logits, sink);
    let mut out = vec![0.0; dim_v];
    for (weight, row) in weights.keys.iter().zip(rows) {
        if let Some((_, v)) = row {
            out.iter_mut().zip(*v).for_each(|(o, x)| *o += weight * x);
        }
    }
    (out, weights.lse)
}
