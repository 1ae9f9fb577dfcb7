//! Scores of methods that need what the library does not look at: the model's weights, or queries that have not come yet. They come from
//! outside, `[n_kv_heads, prefix_len]` a layer, as an engine would hand them to the library.

use crate::model::{LayerState, Model, exp, product};

/// DefensiveKV (arXiv 2510.13334), before its first stage: each window query's attention, averaged over five tokens and rescaled to its
/// mass; the largest over queries and group, no less than the head's mean; times the norm of what the output projection makes of the
/// value, as a share of that of all heads.
pub fn defensive(model: &Model, l: usize, layer: &LayerState, window: usize) -> Vec<f32> {
    let cfg = &model.cfg;
    let (d, qw, kw, group) = (cfg.head_dim, cfg.q_width(), cfg.kv_width(), cfg.group_size());
    let (n, first) = (layer.k.len() / kw, layer.q.len() / qw - window);
    let prefix = n - window;
    let k: Vec<f32> = layer.k.iter().map(|x| x.to_f32()).collect();
    let scale = 1.0 / (d as f32).sqrt();
    let mut scores = vec![0.0f32; cfg.n_kv_heads * prefix];
    let mut tile = vec![0.0; window * n];
    for h in 0..cfg.n_q_heads {
        let (q_at, k_at) = (&layer.q[first * qw + h * d..], &k[h / group * d..]);
        product(&mut tile, n, q_at, qw, k_at, (1, kw), (window, n, d));
        for (j, row) in tile.chunks_exact_mut(n).enumerate() {
            let seen = &mut row[..prefix + j + 1];
            let max = seen.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            seen.iter_mut().for_each(|x| *x = exp((*x - max) * scale));
            let sum: f32 = seen.iter().sum();
            let a = &seen[..prefix];
            let near = |i: usize| a[i.saturating_sub(2)..(i + 3).min(prefix)].iter().sum::<f32>() / 5.0;
            let (mass, pooled) = (a.iter().sum::<f32>(), (0..prefix).map(near).sum::<f32>());
            let factor = if pooled > 0.0 { mass / pooled / sum } else { 0.0 };
            let own = &mut scores[h / group * prefix..][..prefix];
            own.iter_mut().enumerate().for_each(|(i, s)| *s = s.max(near(i) * factor));
        }
    }
    let norms = projected_l1(model, l, layer, prefix);
    for (g, head) in scores.chunks_exact_mut(prefix).enumerate() {
        let mean = head.iter().sum::<f32>() / prefix as f32;
        for (i, s) in head.iter_mut().enumerate() {
            let all: f32 = (0..cfg.n_kv_heads).map(|g| norms[g * prefix + i]).sum();
            *s = s.max(mean) * norms[g * prefix + i] / all;
        }
    }
    scores
}

/// Its first stage: in each head the entries with the largest mean attention, until together with the window they hold 0.9 of it, but no
/// more than `most`, get the layer's largest score. `mass`: mean attention, of the group too.
pub fn raise_mass(scores: &mut [f32], mass: &[f32], prefix: usize, most: usize) {
    let largest = scores.iter().fold(0.0f32, |m, &s| m.max(s));
    let heads = mass.chunks_exact(prefix);
    let on_window = 1.0 - heads.clone().map(|m| m.iter().sum::<f32>()).sum::<f32>() / heads.len() as f32;
    for (scores, mass) in scores.chunks_exact_mut(prefix).zip(heads) {
        let mut order: Vec<usize> = (0..prefix).collect();
        order.sort_by(|&a, &b| mass[b].total_cmp(&mass[a]).then(a.cmp(&b)));
        let all: f32 = mass.iter().sum();
        let mut so_far = 0.0;
        for &i in order.iter().take(most) {
            so_far += mass[i] / all;
            if so_far >= 0.9 - on_window {
                break;
            }
            scores[i] = largest;
        }
    }
}

/// `‖v W_O‖₁` of each entry, mean over its group's query heads: `[n_kv_heads, prefix]`.
fn projected_l1(model: &Model, l: usize, layer: &LayerState, prefix: usize) -> Vec<f32> {
    let cfg = &model.cfg;
    let (d, kw, group, e) = (cfg.head_dim, cfg.kv_width(), cfg.group_size(), cfg.n_embd);
    let v: Vec<f32> = layer.v.iter().map(|x| x.to_f32()).collect();
    let mut norms = vec![0.0f32; cfg.n_kv_heads * prefix];
    let mut projected = vec![0.0; prefix * e];
    for h in 0..cfg.n_q_heads {
        // W_O is [n_embd, q_width]: a head's columns.
        let of_head = &model.blocks[l].attn_output[h * d..];
        product(&mut projected, e, &v[h / group * d..], kw, of_head, (1, cfg.q_width()), (prefix, e, d));
        let own = norms[h / group * prefix..][..prefix].iter_mut();
        for (norm, row) in own.zip(projected.chunks_exact(e)) {
            *norm += row.iter().map(|x| x.abs()).sum::<f32>() / group as f32;
        }
    }
    norms
}

/// KeyDiff (arXiv 2504.15364): keys that are unlike the others, `1 − cos(k, mean of all k / ‖k‖)`.
pub fn key_difference(model: &Model, layer: &LayerState, prefix: usize) -> Vec<f32> {
    let cfg = &model.cfg;
    let (d, kw) = (cfg.head_dim, cfg.kv_width());
    let mut scores = vec![];
    for g in 0..cfg.n_kv_heads {
        let unit = |i: usize| -> Vec<f32> {
            let k: Vec<f32> = layer.k[i * kw + g * d..][..d].iter().map(|x| x.to_f32()).collect();
            let norm = k.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            k.iter().map(|x| x / norm).collect()
        };
        let keys: Vec<Vec<f32>> = (0..prefix).map(unit).collect();
        let mean: Vec<f32> = (0..d).map(|c| keys.iter().map(|k| k[c]).sum::<f32>() / prefix as f32).collect();
        let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        scores.extend(keys.iter().map(|k| 1.0 - k.iter().zip(&mean).map(|(a, b)| a * b).sum::<f32>() / norm));
    }
    scores
}

/// Positions that Expected Attention looks ahead.
const AHEAD: usize = 512;

/// Expected Attention (arXiv 2510.00636): the attention that a query pays which is distributed as the prompt's are before RoPE, at the next
/// 512 positions; mean over the group, a fiftieth added, times the value's norm.
pub fn expected(model: &Model, l: usize, layer: &LayerState, prefix: usize) -> Vec<f32> {
    let cfg = &model.cfg;
    let (d, qw, kw, group) = (cfg.head_dim, cfg.q_width(), cfg.kv_width(), cfg.group_size());
    let (n, rows) = (layer.k.len() / kw, layer.before_rope.len() / qw);
    // The mean rotation of each pair, over the positions to come.
    let turns: Vec<(f64, f64)> = (model.frequencies(&model.blocks[l]).iter())
        .map(|f| {
            let of = |t: usize| ((n + t) as f64 * f).sin_cos();
            let (sin, cos) = (0..AHEAD).map(of).fold((0.0, 0.0), |(a, b), (s, c)| (a + s, b + c));
            (cos / AHEAD as f64, sin / AHEAD as f64)
        })
        .collect();
    let turned = |x: &[f64]| -> Vec<f64> {
        let pair =
            |(x, (cos, sin)): (&[f64], &(f64, f64))| [x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos];
        x.chunks_exact(2).zip(&turns).flat_map(pair).collect()
    };
    let scale = 1.0 / (d as f64).sqrt();
    let mut scores = vec![0.0f32; cfg.n_kv_heads * prefix];
    for h in 0..cfg.n_q_heads {
        let q: Vec<Vec<f64>> = (4..rows)
            .map(|j| layer.before_rope[j * qw + h * d..][..d].iter().map(|&x| x as f64).collect())
            .collect();
        let mean: Vec<f64> = (0..d).map(|c| q.iter().map(|q| q[c]).sum::<f64>() / q.len() as f64).collect();
        let mut covariance = vec![0.0; d * d];
        for q in &q {
            let less: Vec<f64> = q.iter().zip(&mean).map(|(q, m)| q - m).collect();
            for (a, line) in covariance.chunks_exact_mut(d).enumerate() {
                line.iter_mut().zip(&less).for_each(|(x, b)| *x += less[a] * b / (rows - 4) as f64);
            }
        }
        // R Σ Rᵀ: the rows, then the columns.
        let lines: Vec<Vec<f64>> = covariance.chunks_exact(d).map(&turned).collect();
        let columns: Vec<Vec<f64>> =
            (0..d).map(|c| turned(&lines.iter().map(|line| line[c]).collect::<Vec<f64>>())).collect();
        let mean = turned(&mean);
        let logit = |i: usize| {
            let k: Vec<f64> = layer.k[i * kw + h / group * d..][..d].iter().map(|x| x.to_f64()).collect();
            let dot = |a: &[f64]| a.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>();
            let square: f64 = columns.iter().zip(&k).map(|(column, x)| x * dot(column)).sum();
            dot(&mean) * scale + square * scale * scale / 2.0
        };
        let logits: Vec<f64> = (0..prefix).map(logit).collect();
        let max = logits.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
        let own = scores[h / group * prefix..][..prefix].iter_mut();
        own.zip(&logits).for_each(|(s, x)| *s += ((x - max).exp() / sum) as f32 / group as f32);
    }
    for (g, head) in scores.chunks_exact_mut(prefix).enumerate() {
        for (i, s) in head.iter_mut().enumerate() {
            let v = &layer.v[i * kw + g * d..][..d];
            *s = (*s + 0.02) * v.iter().map(|x| x.to_f32().powi(2)).sum::<f32>().sqrt();
        }
    }
    scores
}
