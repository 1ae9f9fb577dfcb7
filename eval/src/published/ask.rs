//! The largest attention that any of some queries gives an entry: the window's, and those of tokens spread over the prompt, asked
//! again from the position after it. Times the entry's own value norm, and if wanted times what its query head's output
//! projection does over the layer's residual norm. All of it the library's: `score`, `rotate`, `score_queries`, `smooth`.

use anyhow::Result;
use lava::rope::{Rope, RopeStyle, rotate};
use lava::score::{ScoreInputs, queries_workspace_size, score_queries, smooth};
use lava::{Backend, Rows, ScoreParams, SelectParams, Shape, Strides, Tensor, TensorMut};

use crate::cache::with_workspace;
use crate::model::{LayerState, Model};

/// What is done beside scoring by the window.
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

/// After `score`: asks again, if that is wanted, and smooths.
pub fn finish(
    model: &Model,
    shape: &Shape,
    params: &ScoreParams,
    layer: &LayerState,
    inputs: &ScoreInputs,
    ask: Ask,
    scores: &mut [f32],
) -> Result<()> {
    let (heads, d) = (shape.n_q_heads, shape.head_dim_k);
    let n = layer.spread.len() / (heads * d);
    if ask.again && n > 0 {
        let rows = Strides::token_major(heads, d);
        let frequencies: Vec<f32> = model.frequencies().iter().map(|&f| f as f32).collect();
        let rope = Rope { frequencies: &frequencies, style: RopeStyle::Pairs, magnitude: 1.0 };
        let mut turned = vec![0.0f32; layer.spread.len()];
        let q = Tensor::from_slice(&layer.spread, rows, Rows::Same(n), heads, d)?;
        let mut out = TensorMut::from_slice(&mut turned, rows, Rows::Same(n), heads, d)?;
        rotate(shape, &rope, n, shape.n_tokens as u32, &q, &mut out)?;
        let again = ScoreInputs { q: Tensor::from_slice(&turned, rows, Rows::Same(n), heads, d)?, ..*inputs };
        with_workspace(queries_workspace_size(shape, params, n)?, |w| {
            score_queries(Backend::detect(), shape, params, n, &again, 0, 1, w, scores)
        })?;
    }
    let sinks = SelectParams { n_sink: ask.n_sink, ..SelectParams::lava() };
    Ok(smooth(shape, &sinks, ask.smoothing, scores)?)
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
