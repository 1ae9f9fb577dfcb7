//! What queries other than the window's find: those of the prompt's tokens, asked again from the position after it, or those of a second
//! pass that repeats it. All of it the library's: `pick_queries`, `rotate`, `score_queries`, `smooth`.

use anyhow::Result;
use lava::adjust::smooth;
use lava::novelty::pick_queries;
use lava::rope::{Rope, RopeStyle, rotate};
use lava::score::{ScoreInputs, queries_workspace_size, score_queries};
use lava::{Backend, Pool, Rows, ScoreParams, SelectParams, Shape, Strides, Tensor, TensorMut};

use crate::cache::with_workspace;
use crate::model::{LayerState, Model};

/// Whose queries ask, beside the window's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Again {
    /// Nobody's.
    No,
    /// So many of the prompt's tokens, equally far apart, none of the first four, where attention sinks stand.
    Spread(usize),
    /// Of each so many tokens after the first four the one whose query is least like the others', in each layer, but no more than 512.
    Novel(usize),
    /// All of a second pass that repeats the prompt, and nobody's in the window: KVzip (arXiv 2505.23416).
    SecondPass,
}

/// What is done beside scoring by the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    pub again: Again,
    /// Query heads weigh what their part of the output projection does, over the layer's residual norm.
    pub projection: bool,
    /// This many times a head's mean is added to its scores; sinks have no part in the mean.
    pub smoothing: f32,
    pub n_sink: usize,
}

/// The first tokens, whose queries are never asked again.
const N_FIRST: usize = 4;
/// No more than so many ask again, so that what it costs grows with the prompt and not with its square.
const MOST_QUERIES: usize = 512;

/// Queries of a layer that ask again, `[n, n_q_heads, head_dim]`, turned to position `n_tokens`; none if the prompt is too short.
fn asking(model: &Model, shape: &Shape, layer: &LayerState, again: Again) -> Result<Vec<f32>> {
    let (heads, d) = (shape.n_q_heads, shape.head_dim_k);
    let width = heads * d;
    let n = (layer.before_rope.len() / width).saturating_sub(N_FIRST);
    let after_first = &layer.before_rope[(layer.before_rope.len() / width - n) * width..];
    let rows = Strides::token_major(heads, d);
    let view = |x| Tensor::from_slice(x, rows, Rows::Same(n), heads, d);
    let picked: Vec<u32> = match again {
        Again::Spread(most) => (0..n as u32).step_by((n + N_FIRST).div_ceil(most)).collect(),
        Again::Novel(stretch) if n >= stretch => {
            let mut picked = vec![0; (n / stretch).min(MOST_QUERIES)];
            pick_queries(shape, n, &view(after_first)?, &mut vec![0.0; n], &mut picked)?;
            picked
        }
        _ => vec![],
    };
    let q: Vec<f32> =
        picked.iter().flat_map(|&j| &after_first[j as usize * width..][..width]).copied().collect();
    if picked.is_empty() {
        return Ok(q);
    }
    let frequencies = frequencies(model, shape.layer as usize);
    let rope = Rope { frequencies: &frequencies, style: RopeStyle::Pairs, magnitude: 1.0 };
    let mut turned = vec![0.0f32; q.len()];
    let from = Tensor::from_slice(&q, rows, Rows::Same(picked.len()), heads, d)?;
    let mut out = TensorMut::from_slice(&mut turned, rows, Rows::Same(picked.len()), heads, d)?;
    rotate(shape, &rope, picked.len(), shape.n_tokens as u32, &from, &mut out)?;
    Ok(turned)
}

/// RoPE's, of layer `l`.
pub(super) fn frequencies(model: &Model, l: usize) -> Vec<f32> {
    model.frequencies(&model.blocks[l]).iter().map(|&f| f as f32).collect()
}

/// After `score`, or without it: asks again, if that is wanted, and smooths. `second_pass`: that pass' queries, after RoPE.
#[expect(clippy::too_many_arguments, reason = "what scoring has, and what it does not")]
pub fn finish(
    model: &Model,
    shape: &Shape,
    params: &ScoreParams,
    layer: &LayerState,
    inputs: &ScoreInputs,
    ask: Ask,
    second_pass: &[f32],
    scores: &mut [f32],
) -> Result<()> {
    let (heads, d) = (shape.n_q_heads, shape.head_dim_k);
    let turned = match ask.again {
        Again::No => vec![],
        Again::SecondPass => second_pass.to_vec(),
        again => asking(model, shape, layer, again)?,
    };
    let n = turned.len() / (heads * d);
    if n > 0 {
        // What comes after a place that is looked at is the window's alone: nobody has begun to copy it.
        let params = ScoreParams { pool: Pool::Max, pool_kernel: 1, weight: 1.0, ..*params };
        let q = Tensor::from_slice(&turned, Strides::token_major(heads, d), Rows::Same(n), heads, d)?;
        let inputs = ScoreInputs { q, ..*inputs };
        with_workspace(queries_workspace_size(shape, &params, n)?, |w| {
            score_queries(Backend::detect(), shape, &params, n, &inputs, 0, 1, w, scores)
        })?;
    }
    let sinks = SelectParams { n_sink: ask.n_sink, ..SelectParams::lava() };
    Ok(smooth(shape, &sinks, ask.smoothing, scores)?)
}

/// What the output projection, and a norm behind it, do to each query head's output, in the size of the residual stream that it is
/// added to.
pub fn head_weights(model: &Model, l: usize, layer: &LayerState) -> Vec<f32> {
    let cfg = &model.cfg;
    let d = cfg.head_dim;
    let size = |h: usize| {
        let rows = model.blocks[l].attn_output.chunks_exact(cfg.q_width());
        let square = |(i, row): (usize, &[f32])| {
            model.output_gain(l, i).powi(2) * row[h * d..][..d].iter().map(|w| w * w).sum::<f32>()
        };
        rows.enumerate().map(square).sum::<f32>().sqrt() / layer.output_rms
    };
    (0..cfg.n_q_heads).map(|h| size(h) / (d as f32).sqrt() / layer.residual_norm).collect()
}
