//! The largest attention that any of some queries gives an entry: the window's, and those of tokens spread over the prompt, asked
//! again from the position after it. Times the entry's own value norm, and if wanted times what its query head's output
//! projection makes of it over the layer's residual norm.

use crate::model::{LAST_QUERIES, LayerState, Model, Prefill, exp, l2, product};

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Not only the window asks, but queries spread over the prompt too.
    pub again: bool,
    /// Query heads weigh what their part of the output projection does, over the layer's residual norm.
    pub projection: bool,
    /// This many times a head's mean is added to its scores; sinks have no part in the mean.
    pub smoothing: f32,
    pub n_sink: usize,
}

/// Scores of a layer, `[n_kv_heads, prefix_len]`.
pub fn layer_scores(model: &Model, prefill: &Prefill, l: usize, window: usize, ask: Ask) -> Vec<f32> {
    let cfg = &model.cfg;
    let (layer, n, d) = (&prefill.layers[l], prefill.n_tokens, cfg.head_dim);
    let prefix = n - window;
    let q = &layer.q[(LAST_QUERIES - window) * cfg.q_width()..];
    let mut again = if ask.again { layer.spread.clone() } else { vec![] };
    model.rotate(&mut again, cfg.n_q_heads, |_| n);
    let weights = if ask.projection { head_weights(model, l, layer) } else { vec![1.0; cfg.n_q_heads] };
    let mut scores = vec![0.0f32; cfg.n_kv_heads * prefix];
    for (g, scores) in scores.chunks_exact_mut(prefix).enumerate() {
        let rows = |x: &[half::f16]| -> Vec<f32> {
            x.chunks_exact(cfg.kv_width()).flat_map(|row| &row[g * d..][..d]).map(|x| x.to_f32()).collect()
        };
        let (k, v) = (rows(&layer.k), rows(&layer.v));
        for h in g * cfg.group_size()..(g + 1) * cfg.group_size() {
            let mut most = vec![0.0f32; prefix];
            largest(&mut most, &q[h * d..], cfg.q_width(), &k, d, |i| prefix + i + 1);
            largest(&mut most, again.get(h * d..).unwrap_or(&[]), cfg.q_width(), &k, d, |_| n);
            scores.iter_mut().zip(&most).for_each(|(s, m)| *s = s.max(m * weights[h]));
        }
        scores.iter_mut().zip(v.chunks_exact(d)).for_each(|(s, v)| *s *= l2(v));
        let open = &scores[ask.n_sink.min(prefix)..];
        let mean = open.iter().map(|&s| s as f64).sum::<f64>() / open.len() as f64;
        scores.iter_mut().for_each(|s| *s += ask.smoothing * mean as f32);
    }
    scores
}

/// What the output projection does to each query head's output, in the size of the residual stream that it is added to.
pub fn head_weights(model: &Model, l: usize, layer: &LayerState) -> Vec<f32> {
    let cfg = &model.cfg;
    let d = cfg.head_dim;
    let size = |h: usize| {
        let rows = model.blocks[l].attn_output.chunks_exact(cfg.q_width());
        rows.map(|row| row[h * d..][..d].iter().map(|w| w * w).sum::<f32>()).sum::<f32>().sqrt()
    };
    (0..cfg.n_q_heads).map(|h| size(h) / (d as f32).sqrt() / layer.residual_norm).collect()
}

/// Raises `most` to the attention of each of the queries, whose rows are `q_row` apart; query `i` sees the first `seen(i)` keys.
fn largest(most: &mut [f32], q: &[f32], q_row: usize, k: &[f32], d: usize, seen: impl Fn(usize) -> usize) {
    let n_queries = q.len().div_ceil(q_row);
    let n = k.len() / d;
    let scale = 1.0 / (d as f32).sqrt();
    let mut logits = vec![0.0f32; n_queries * n];
    product(&mut logits, n, q, q_row, k, (1, d), (n_queries, n, d));
    for (i, row) in logits.chunks_exact_mut(n).enumerate() {
        let row = &mut row[..seen(i)];
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        row.iter_mut().for_each(|x| *x = exp((*x - max) * scale));
        let inverse = 1.0 / row.iter().sum::<f32>();
        most.iter_mut().zip(&*row).for_each(|(m, x)| *m = m.max(x * inverse));
    }
}
