//! The whole method in plain f64 loops: the oracle of every test, and the place to read what is computed.
//!
//! Nothing here is fast or shares code with the stages it checks. Arrays are nested the way the formulas index them.
//!
//! Source: arXiv 2509.09754; stage numbers as in the README's page on the method.

use crate::params::{Attention, GroupReduce, Pool, ScoreParams, ValueSpan, ValueWeight};

mod decide;
pub use decide::*;

/// `x[token][head][element]`.
pub type Heads = Vec<Vec<Vec<f64>>>;

/// Logit of one query and one key.
fn logit(q: &[f64], k: &[f64], scale: Option<f32>, softcap: Option<f32>) -> f64 {
    let scale = scale.map_or(1.0 / (q.len() as f64).sqrt(), f64::from);
    let s = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
    softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
}

/// Softmax, where `None` is a key that is not seen. Also the log-sum-exp.
fn softmax(logits: &[Option<f64>]) -> (Vec<f64>, f64) {
    let max = logits.iter().flatten().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
    let exps: Vec<f64> = logits.iter().map(|l| l.map_or(0.0, |x| (x - max).exp())).collect();
    let sum: f64 = exps.iter().sum();
    let lse = if sum > 0.0 { max + sum.ln() } else { f64::NEG_INFINITY };
    (exps.iter().map(|e| if sum > 0.0 { e / sum } else { 0.0 }).collect(), lse)
}

/// Log-sum-exp of the window's queries: `lse[j][h]`.
pub fn log_sum_exp(q: &Heads, k: &Heads, params: &ScoreParams) -> Vec<Vec<f64>> {
    let group = q[0].len() / k[0].len();
    (0..q.len())
        .map(|j| (0..q[0].len()).map(|h| window_attention(q, k, params, j, h, h / group).1).collect())
        .collect()
}

/// Stage 1, one row: attention of window query `j`, query head `h`, over all keys of KV head `g`.
fn window_attention(
    q: &Heads,
    k: &Heads,
    params: &ScoreParams,
    j: usize,
    h: usize,
    g: usize,
) -> (Vec<f64>, f64) {
    let position = k.len() - q.len() + j;
    let logits: Vec<Option<f64>> = (0..k.len())
        .map(|i| {
            let causal = i <= position;
            let in_window = params.sliding_window.is_none_or(|swa| i + swa > position);
            (causal && in_window).then(|| logit(&q[j][h], &k[i][g], params.scale, params.softcap))
        })
        .collect();
    softmax(&logits)
}

/// Stage 2: what becomes of a key's attention from the window's queries, the oldest first.
fn over_window(a: &[f64], params: &ScoreParams) -> f64 {
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
        Attention::Recency => unreachable!("is not attention"),
    }
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// Stages 1 to 5: `scores[g][i]`.
pub fn scores(q: &Heads, k: &Heads, v: &Heads, params: &ScoreParams) -> Vec<Vec<f64>> {
    let (w, n_q_heads, n_kv_heads) = (q.len(), q[0].len(), k[0].len());
    let (n, prefix, group) = (k.len(), k.len() - w, n_q_heads / n_kv_heads);
    let radius = params.pool_kernel / 2;
    let mut scores = vec![];
    for g in 0..n_kv_heads {
        // Stage 4: the largest L1 norm among the head's values.
        let l1 = |i: usize| v[i][g].iter().map(|x| x.abs()).sum::<f64>();
        let span = if params.value_span == ValueSpan::All { n } else { prefix };
        let vmax = (0..span).map(l1).fold(0.0, f64::max);
        let mut pooled = vec![];
        for h in g * group..(g + 1) * group {
            // Stages 1 and 2: attention over the window.
            let mut a: Vec<f64> = match params.attention {
                Attention::Recency => (1..=n).map(|i| i as f64).collect(),
                _ => {
                    let rows: Vec<_> = (0..w).map(|j| window_attention(q, k, params, j, h, g).0).collect();
                    let column = |i: usize| rows.iter().map(|row| row[i]).collect::<Vec<f64>>();
                    (0..n).map(|i| over_window(&column(i), params)).collect()
                }
            };
            if params.value_weight == ValueWeight::Output {
                let o = |c: usize| (0..n).map(|i| a[i] * v[i][g][c]).sum::<f64>();
                let o: Vec<f64> = (0..v[0][g].len()).map(o).collect();
                a = (0..prefix)
                    .map(|i| a[i] / (1.0 - a[i]) * norm(o.iter().zip(&v[i][g]).map(|(o, v)| o - v)))
                    .collect();
            }
            a.truncate(prefix);
            // Stage 3: pooling along the tokens.
            pooled.push(
                (0..prefix)
                    .map(|i| {
                        let near = &a[i.saturating_sub(radius)..(i + radius + 1).min(prefix)];
                        match params.pool {
                            Pool::Max => near.iter().copied().fold(0.0, f64::max),
                            Pool::Avg => near.iter().sum::<f64>() / params.pool_kernel as f64,
                        }
                    })
                    .collect::<Vec<f64>>(),
            );
        }
        // Stage 5: one score per KV head.
        let value = |i: usize| match params.value_weight {
            ValueWeight::HeadMax => vmax,
            ValueWeight::Token => l1(i),
            ValueWeight::None | ValueWeight::Output => 1.0,
        };
        let head: Vec<f64> = (0..prefix)
            .map(|i| {
                let column = pooled.iter().map(|p| p[i]);
                let reduced = match params.group_reduce {
                    GroupReduce::Max => column.fold(0.0, f64::max),
                    GroupReduce::Mean => column.sum::<f64>() / group as f64,
                };
                reduced * value(i) * f64::from(params.weight)
            })
            .collect();
        let more = f64::from(params.smoothing) * head.iter().sum::<f64>() / prefix as f64;
        scores.push(head.iter().map(|s| s + more).collect());
    }
    scores
}

/// CAKE's two numbers per KV head: `(entropy, variance)` of the attention that the window pays the prefix.
pub fn attention_stats(q: &Heads, k: &Heads, params: &ScoreParams) -> Vec<(f64, f64)> {
    let (w, group, prefix) = (q.len(), q[0].len() / k[0].len(), k.len() - q.len());
    let mut stats = vec![];
    for g in 0..k[0].len() {
        let (mut entropy, mut variance) = (0.0, 0.0);
        for h in g * group..(g + 1) * group {
            let rows: Vec<_> = (0..w).map(|j| window_attention(q, k, params, j, h, g).0).collect();
            for i in 0..prefix {
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

/// Attention of one query over one head's rows, `None` where a row is not seen: the output, and the log-sum-exp.
pub fn attend(
    q: &[f64],
    rows: &[Option<(&[f64], &[f64])>],
    dim_v: usize,
    scale: Option<f32>,
    softcap: Option<f32>,
) -> (Vec<f64>, f64) {
    let logits: Vec<Option<f64>> = rows.iter().map(|r| r.map(|(k, _)| logit(q, k, scale, softcap))).collect();
    let (weights, lse) = softmax(&logits);
    let mut out = vec![0.0; dim_v];
    for (weight, row) in weights.iter().zip(rows) {
        if let Some((_, v)) = row {
            out.iter_mut().zip(*v).for_each(|(o, x)| *o += weight * x);
        }
    }
    (out, lse)
}
