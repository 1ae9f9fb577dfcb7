//! Scores of methods that need what the library does not look at: the model's weights, or queries that have not come yet. They come from
//! outside, `[n_kv_heads, prefix_len]` a layer, as an engine would hand them to the library.

use anyhow::Result;
use lava::adjust::{clamp, raise};
use lava::rope::{Rope, RopeStyle};
use lava::score::{QueryStatistics, query_statistics, score_expected, value_norms};
use lava::{Rows, SelectParams, Shape, Strides, Tensor};

use super::ask::frequencies;
use crate::cache::shape;
use crate::keep::keep_best;
use crate::model::{LayerState, Model, exp, product};

/// DefensiveKV (arXiv 2510.13334), before its first stage: each window query's attention, averaged over five tokens and rescaled to its
/// mass; the largest over queries and group, no less than the head's mean; times the norm of what the output projection makes of the
/// value, as a share of that of all heads.
pub fn defensive(model: &Model, l: usize, layer: &LayerState, window: usize) -> Result<Vec<f32>> {
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
    let shape = shape(cfg, n, window);
    clamp(&shape, &SelectParams::lava(), 1.0, &mut scores)?;
    let norms = projected_l1(model, l, layer, prefix);
    for i in 0..prefix {
        let all: f32 = (0..cfg.n_kv_heads).map(|g| norms[g * prefix + i]).sum();
        (0..cfg.n_kv_heads).map(|g| g * prefix + i).for_each(|at| scores[at] *= norms[at] / all);
    }
    Ok(scores)
}

/// Its first stage: in each head the entries with the largest mean attention, until together with the window they hold 0.9 of it, but no
/// more than `most`, come first. `mass`: mean attention, of the group too.
pub fn raise_mass(shape: &Shape, scores: &mut [f32], mass: &[f32], most: usize) -> Result<()> {
    let heads = mass.chunks_exact(shape.prefix_len());
    let on_window = 1.0 - heads.clone().map(|m| m.iter().sum::<f32>()).sum::<f32>() / heads.len() as f32;
    // Where the window alone holds as much, nothing comes first.
    let share = (0.9 - on_window as f64).max(1e-9);
    Ok(raise(shape, mass, share, Some(&vec![most as u32; shape.n_kv_heads]), scores)?)
}

/// CriticalKV's scores (arXiv 2502.03805), before its first stage: SnapKV's, and 0.0001, times what the output projection makes of the
/// value. The first stage goes by SnapKV's, half of each head's share of the layer.
pub fn critical(
    model: &Model,
    l: usize,
    layer: &LayerState,
    shape: &Shape,
    snapkv: &[f32],
    n_entries: usize,
) -> Result<Vec<f32>> {
    let prefix = shape.prefix_len();
    let kept = keep_best(shape, &SelectParams::lava_released(), snapkv, n_entries as u64)?;
    let most: Vec<u32> = kept.cu.windows(2).map(|cu| (cu[1] - cu[0] - shape.window as u32) / 2).collect();
    let norms = projected_l1(model, l, layer, prefix);
    let mut scores: Vec<f32> = snapkv.iter().zip(norms).map(|(s, norm)| (s + 1e-4) * norm).collect();
    raise(shape, snapkv, 1.0, Some(&most), &mut scores)?;
    Ok(scores)
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

/// Positions that Expected Attention looks ahead.
const AHEAD: u32 = 512;

/// Expected Attention (arXiv 2510.00636): the attention that a query pays which is distributed as the prompt's are before RoPE, at the next
/// 512 positions; mean over the group, a fiftieth added, times the value's norm.
pub fn expected(model: &Model, shape: &Shape, layer: &LayerState) -> Result<Vec<f32>> {
    let (heads, kv_heads, d) = (shape.n_q_heads, shape.n_kv_heads, shape.head_dim_k);
    let width = heads * d;
    let q = &layer.before_rope[4 * width..];
    let n = q.len() / width;
    let q = Tensor::from_slice(q, Strides::token_major(heads, d), Rows::Same(n), heads, d)?;
    let frequencies = frequencies(model, shape.layer as usize);
    let rope = Rope { frequencies: &frequencies, style: RopeStyle::Pairs, magnitude: 1.0 };
    let (mut mean, mut covariance) = (vec![0.0; width], vec![0.0; width * d]);
    let mut statistics = QueryStatistics { mean: &mut mean, covariance: &mut covariance };
    query_statistics(shape, &rope, n, &q, shape.n_tokens as u32, AHEAD, &mut statistics)?;
    let rows =
        |x| Tensor::from_slice(x, Strides::token_major(kv_heads, d), Rows::Same(shape.n_tokens), kv_heads, d);
    let mut scores = vec![0.0; shape.n_scores() as usize];
    let (mut logits, mut norms) = (vec![0.0; shape.prefix_len()], scores.clone());
    score_expected(shape, None, &mean, Some(&covariance), &rows(&layer.k)?, 0, 1, &mut logits, &mut scores)?;
    value_norms(shape, None, None, &rows(&layer.v)?, 0, 1, &mut norms)?;
    scores.iter_mut().zip(norms).for_each(|(s, norm)| *s = (*s + 0.02) * norm);
    Ok(scores)
}
