//! LKV as trained by `eval/model/lkv.py`: a share of the total for each head of the model, and a scorer that reads a cached row.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::f16;
use safetensors::SafeTensors;

use crate::model::{Config, LayerState, numbers};

pub struct Lkv {
    /// `[n_layers · n_kv_heads]`, sums to 1.
    pub head_share: Vec<f64>,
    /// One for each layer and KV head.
    scorers: Vec<Scorer>,
}

/// `w2 · relu(w1 · [k, v] + b1) + b2`.
struct Scorer {
    /// `[hidden, 2 · head_dim]`.
    w1: Vec<f32>,
    b1: Vec<f32>,
    w2: Vec<f32>,
    b2: f32,
}

impl Lkv {
    pub fn load(cfg: &Config, path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let get = |name: &str| Ok::<_, anyhow::Error>(numbers(&file.tensor(name)?));
        let head_share: Vec<f64> = get("head_share")?.into_iter().map(f64::from).collect();
        ensure!(head_share.len() == cfg.n_layers * cfg.n_kv_heads, "{} is of another model", path.display());
        let mut scorers = vec![];
        for l in 0..cfg.n_layers {
            let part = |name: &str| get(&format!("blk.{l}.scorer.{name}"));
            let (w1, b1, w2, b2) = (part("w1")?, part("b1")?, part("w2")?, part("b2")?);
            let hidden = b1.len() / cfg.n_kv_heads;
            ensure!(w1.len() == b1.len() * 2 * cfg.head_dim, "{} is of another model", path.display());
            let heads = w1.chunks_exact(hidden * 2 * cfg.head_dim).zip(b1.chunks_exact(hidden));
            for (((w1, b1), w2), &b2) in heads.zip(w2.chunks_exact(hidden)).zip(&b2) {
                scorers.push(Scorer { w1: w1.to_vec(), b1: b1.to_vec(), w2: w2.to_vec(), b2 });
            }
        }
        Ok(Self { head_share, scorers })
    }

    /// `[n_kv_heads, prefix_len]` of layer `l`.
    pub fn scores(&self, cfg: &Config, l: usize, layer: &LayerState, prefix_len: usize) -> Vec<f32> {
        let (heads, d) = (cfg.n_kv_heads, cfg.head_dim);
        let of = |g: usize, i: usize| {
            let s = &self.scorers[l * heads + g];
            let at = (i * heads + g) * d;
            let wide = |x: &[f16]| x[at..at + d].iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            let row = [wide(&layer.k), wide(&layer.v)].concat();
            let hidden = s.w1.chunks_exact(row.len()).zip(&s.b1).zip(&s.w2);
            s.b2 + hidden
                .map(|((w, b), w2)| w2 * (w.iter().zip(&row).map(|(w, x)| w * x).sum::<f32>() + b).max(0.0))
                .sum::<f32>()
        };
        (0..heads).flat_map(|g| (0..prefix_len).map(move |i| (g, i))).map(|(g, i)| of(g, i)).collect()
    }
}
