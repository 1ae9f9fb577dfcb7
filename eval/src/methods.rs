//! A method is a scorer, a rule for layers and a rule for heads, at a budget that is the same for all.

use anyhow::Result;
use lava::budget::layer_budgets;
use lava::entropy::entropy;
use lava::score::{ScoreInputs, score};
use lava::select::select;
use lava::{Backend, GroupReduce, HeadFloor, Pool, Rows, ScoreParams, SelectParams, Shape, Strides, Tensor};

use crate::cache::{Kept, shape, with_workspace};
use crate::model::{LAST_QUERIES, Model, Prefill, l2};

/// What a value adds to the attention that its token gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// The largest L1 norm of the head: LAVa.
    HeadMax,
    /// Nothing.
    None,
    /// The token's own L1 norm: VATP.
    Token,
}

/// How prefix entries are scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scorer {
    pub pool: Pool,
    pub pool_kernel: usize,
    pub group_reduce: GroupReduce,
    pub values: Values,
    /// Not by attention but by position: the later the better.
    pub recency: bool,
    pub window: usize,
}

pub const WINDOW: usize = 32;

pub const LAVA: Scorer = Scorer {
    pool: Pool::Max,
    pool_kernel: 7,
    group_reduce: GroupReduce::Max,
    values: Values::HeadMax,
    recency: false,
    window: WINDOW,
};

/// How the total is shared among layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layers {
    Equal,
    /// By the entropy of their scores: LAVa.
    Entropy,
    /// Falling from the first layer to the last: PyramidKV.
    Pyramid {
        beta: f64,
    },
    /// All layers' entries in one sort: what is largest anywhere is kept.
    Global(Weight),
    /// In proportion to `entropy^(1 − mass) · mass^mass`.
    Blend {
        mass: f64,
    },
}

/// A factor on a layer's scores before they meet another layer's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    One,
    /// Frobenius norm of the output projection.
    Projection,
    /// The same over the residual stream's norm at that layer.
    ProjectionOverResidual,
    /// One over the layer's sum of scores.
    Mass,
    /// The layer's entropy over its sum of scores.
    EntropyOverMass,
}

/// How a layer's budget, or with [`Layers::Global`] the total, is shared among heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Heads {
    /// The largest scores win.
    Flatten,
    Guaranteed(f64),
    Affine(f64),
    Equal,
}

/// Which of equal scores goes first. Max-pooling makes plateaus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ties {
    /// The library's rule.
    LowerToken,
    HigherToken,
    /// The one with the larger score before pooling.
    Unpooled,
}

/// Whether layer budgets are shares of all tokens, window and sinks among them, or of what competes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Retention {
    Apart,
    Inside,
}

/// In which tables a method stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LAVa's presets.
    Lava,
    Peer,
    Ablation,
    /// Settings that the paper does not have.
    Beyond,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lava => "lava",
            Self::Peer => "peers",
            Self::Ablation => "ablations",
            Self::Beyond => "beyond",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Method {
    pub name: &'static str,
    pub family: Family,
    pub scorer: Scorer,
    pub layers: Layers,
    pub heads: Heads,
    pub n_sink: usize,
    pub ties: Ties,
    pub retention: Retention,
    /// Whether all budgets are the same for every prompt.
    pub is_static: bool,
    pub source: &'static str,
}

/// A method whose name all others are compared with.
pub const BASE: &str = "LAVa";

pub fn all() -> Vec<Method> {
    let lava = Method {
        name: BASE,
        family: Family::Lava,
        scorer: LAVA,
        layers: Layers::Entropy,
        heads: Heads::Flatten,
        n_sink: 0,
        ties: Ties::LowerToken,
        retention: Retention::Apart,
        is_static: false,
        source: "arXiv 2509.09754",
    };
    let plain = Scorer { values: Values::None, ..LAVA };
    let equal = Method { layers: Layers::Equal, heads: Heads::Equal, is_static: true, ..lava };
    let peer = Method { family: Family::Peer, ..equal };
    let ablation = Method { family: Family::Ablation, source: "", ..lava };
    let windowed = |name, window| Method { name, scorer: Scorer { window, ..LAVA }, ..ablation };
    let beyond = Method { family: Family::Beyond, layers: Layers::Global(Weight::One), ..ablation };
    vec![
        lava,
        Method { name: "LAVa, released", heads: Heads::Affine(0.2), source: "the authors' code", ..lava },
        Method { name: "SnapKV", scorer: plain, source: "arXiv 2404.14469", ..peer },
        Method {
            name: "Ada-KV",
            scorer: Scorer { group_reduce: GroupReduce::Mean, ..plain },
            heads: Heads::Affine(0.2),
            is_static: false,
            source: "arXiv 2407.11550",
            ..peer
        },
        Method {
            name: "PyramidKV",
            scorer: Scorer { window: 8, ..plain },
            layers: Layers::Pyramid { beta: 20.0 },
            source: "arXiv 2406.02069",
            ..peer
        },
        Method {
            name: "StreamingLLM",
            scorer: Scorer { recency: true, ..plain },
            n_sink: 4,
            source: "arXiv 2309.17453",
            ..peer
        },
        Method {
            name: "VATP",
            scorer: Scorer { values: Values::Token, pool_kernel: 1, ..LAVA },
            n_sink: 20,
            source: "arXiv 2406.12335",
            ..peer
        },
        Method { name: "no head budgets", heads: Heads::Equal, ..ablation },
        Method { name: "no layer budgets", layers: Layers::Equal, ..ablation },
        Method { name: "neither", layers: Layers::Equal, heads: Heads::Equal, is_static: true, ..ablation },
        Method { name: "no value norm", scorer: plain, ..ablation },
        Method { name: "value norm per token", scorer: Scorer { values: Values::Token, ..LAVA }, ..ablation },
        Method { name: "no pooling", scorer: Scorer { pool_kernel: 1, ..LAVA }, ..ablation },
        Method { name: "average pooling", scorer: Scorer { pool: Pool::Avg, ..LAVA }, ..ablation },
        Method { name: "group mean", scorer: Scorer { group_reduce: GroupReduce::Mean, ..LAVA }, ..ablation },
        Method { name: "floor guaranteed 0.2", heads: Heads::Guaranteed(0.2), ..ablation },
        Method { name: "floor guaranteed 0.5", heads: Heads::Guaranteed(0.5), ..ablation },
        Method { name: "floor affine 0.5", heads: Heads::Affine(0.5), ..ablation },
        Method { name: "sinks 4", n_sink: 4, ..ablation },
        Method { name: "ties by unpooled score", ties: Ties::Unpooled, ..ablation },
        Method { name: "ties to higher token", ties: Ties::HigherToken, ..ablation },
        windowed("window 8", 8),
        windowed("window 16", 16),
        windowed("window 64", 64),
        Method { name: "window inside shares", retention: Retention::Inside, ..ablation },
        Method { name: "global", ..beyond },
        Method { name: "global, affine 0.2", heads: Heads::Affine(0.2), ..beyond },
        Method { name: "global, guaranteed 0.2", heads: Heads::Guaranteed(0.2), ..beyond },
        Method { name: "global, guaranteed 0.5", heads: Heads::Guaranteed(0.5), ..beyond },
        Method { name: "global, W_o", layers: Layers::Global(Weight::Projection), ..beyond },
        Method {
            name: "global, W_o/residual",
            layers: Layers::Global(Weight::ProjectionOverResidual),
            ..beyond
        },
        Method { name: "global, 1/mass", layers: Layers::Global(Weight::Mass), ..beyond },
        Method { name: "global, entropy/mass", layers: Layers::Global(Weight::EntropyOverMass), ..beyond },
        Method { name: "global, ties unpooled", ties: Ties::Unpooled, ..beyond },
        Method { name: "global, no value norm", scorer: plain, ..beyond },
        Method {
            name: "global, value norm per token",
            scorer: Scorer { values: Values::Token, ..LAVA },
            ..beyond
        },
        Method { name: "blend 0.5", layers: Layers::Blend { mass: 0.5 }, ..beyond },
        Method { name: "blend 1.0", layers: Layers::Blend { mass: 1.0 }, ..beyond },
    ]
}

/// Scores of all layers, each `[n_kv_heads, prefix_len]`.
type Scores = Vec<Vec<f32>>;

/// A prompt's scores, computed once for all methods and budgets.
pub struct Scored<'a> {
    model: &'a Model,
    prefill: &'a Prefill,
    known: Vec<(Scorer, Scores)>,
}

impl<'a> Scored<'a> {
    pub fn new(model: &'a Model, prefill: &'a Prefill) -> Self {
        Self { model, prefill, known: vec![] }
    }

    fn scores(&mut self, scorer: Scorer) -> Result<&Scores> {
        let at = match self.known.iter().position(|(s, _)| *s == scorer) {
            Some(at) => at,
            None => {
                let layers = 0..self.prefill.layers.len();
                let scores = layers.map(|l| self.score_layer(scorer, l)).collect::<Result<_>>()?;
                self.known.push((scorer, scores));
                self.known.len() - 1
            }
        };
        Ok(&self.known[at].1)
    }

    fn score_layer(&self, scorer: Scorer, l: usize) -> Result<Vec<f32>> {
        let cfg = &self.model.cfg;
        let (layer, n, d) = (&self.prefill.layers[l], self.prefill.n_tokens, cfg.head_dim);
        let shape = Shape { layer: l as u32, ..shape(cfg, n, scorer.window) };
        let prefix = shape.prefix_len();
        if scorer.recency {
            return Ok((0..cfg.n_kv_heads).flat_map(|_| (0..prefix).map(|i| i as f32)).collect());
        }
        let params = ScoreParams {
            pool: scorer.pool,
            pool_kernel: scorer.pool_kernel,
            group_reduce: scorer.group_reduce,
            ..ScoreParams::default()
        };
        let q = &layer.q[(LAST_QUERIES - scorer.window) * cfg.q_width()..];
        let kv = |x| {
            Tensor::from_slice(x, Strides::token_major(cfg.n_kv_heads, d), Rows::Same(n), cfg.n_kv_heads, d)
        };
        let inputs = ScoreInputs {
            q: Tensor::from_slice(
                q,
                Strides::token_major(cfg.n_q_heads, d),
                Rows::Same(scorer.window),
                cfg.n_q_heads,
                d,
            )?,
            k: kv(&layer.k)?,
            v: kv(&layer.v)?,
            lse: None,
        };
        let mut scores = vec![0.0; cfg.n_kv_heads * prefix];
        with_workspace(lava::score::workspace_size(&shape, &params)?, |w| {
            score(Backend::detect(), &shape, &params, &inputs, 0, 1, w, &mut scores)
        })?;
        if scorer.values != Values::HeadMax {
            let norm = |h: usize, i: usize| -> f32 {
                let row = &layer.v[(i * cfg.n_kv_heads + h) * d..][..d];
                row.iter().map(|x| x.to_f32().abs()).sum()
            };
            for (h, head) in scores.chunks_exact_mut(prefix).enumerate() {
                let norms: Vec<f32> = (0..prefix).map(|i| norm(h, i)).collect();
                let max = norms.iter().fold(0.0, |m: f32, &x| m.max(x));
                let of = |i: usize| if scorer.values == Values::Token { norms[i] } else { 1.0 };
                head.iter_mut().enumerate().for_each(|(i, s)| *s *= of(i) / max);
            }
        }
        Ok(scores)
    }

    /// What each layer keeps at `budget` tokens a head on average, window included. `None` where the method's window and
    /// sinks alone are more.
    pub fn keep(&mut self, method: &Method, budget: usize) -> Result<Option<Vec<Kept>>> {
        let cfg = self.model.cfg;
        let n = self.prefill.n_tokens;
        let shape = shape(&cfg, n, method.scorer.window);
        if budget < shape.window + method.n_sink {
            return Ok(None);
        }
        let mut scores = self.scores(method.scorer)?.clone();
        let total = lava::params::total_entries(&shape, budget, cfg.n_layers)?;
        let entropies = scores
            .iter()
            .map(|s| entropy(s, cfg.n_kv_heads, shape.prefix_len()))
            .collect::<lava::Result<Vec<_>>>()?;
        if let Layers::Global(weight) = method.layers {
            for (l, scores) in scores.iter_mut().enumerate() {
                let projection = l2(&self.model.blocks[l].attn_output);
                let factor = match weight {
                    Weight::One => 1.0,
                    Weight::Projection => projection,
                    Weight::ProjectionOverResidual => projection / self.prefill.layers[l].residual_norm,
                    Weight::Mass => 1.0 / entropies[l].mass as f32,
                    Weight::EntropyOverMass => (entropies[l].entropy / entropies[l].mass) as f32,
                };
                scores.iter_mut().for_each(|s| *s *= factor);
            }
        }
        if method.ties != Ties::LowerToken {
            let unpooled = self.scores(Scorer { pool_kernel: 1, ..method.scorer })?;
            scores = ranked(&scores, unpooled, method.ties, shape.prefix_len());
        }
        let (head_floor, alpha) = match method.heads {
            Heads::Flatten => (HeadFloor::None, 0.0),
            Heads::Guaranteed(alpha) => (HeadFloor::Guaranteed, alpha),
            Heads::Affine(alpha) => (HeadFloor::Affine, alpha),
            // Without free competition nothing is left but equal shares.
            Heads::Equal => (HeadFloor::Affine, 1.0),
        };
        let params = SelectParams { head_floor, alpha, n_sink: method.n_sink, ..SelectParams::default() };
        let weights: Vec<f64> = match method.layers {
            Layers::Global(_) => {
                let kept = keep_best(
                    &Shape {
                        n_kv_heads: cfg.n_kv_heads * cfg.n_layers,
                        n_q_heads: cfg.n_q_heads * cfg.n_layers,
                        ..shape
                    },
                    &params,
                    &scores.concat(),
                    total,
                )?;
                return Ok(Some(split(&kept, cfg.n_kv_heads)));
            }
            Layers::Equal => vec![1.0; cfg.n_layers],
            Layers::Entropy => entropies.iter().map(|e| e.entropy).collect(),
            Layers::Blend { mass } => {
                entropies.iter().map(|e| e.entropy.powf(1.0 - mass) * e.mass.powf(mass)).collect()
            }
            Layers::Pyramid { beta } => {
                pyramid(cfg.n_layers, budget - shape.window, shape.prefix_len(), beta)
            }
        };
        let heads = cfg.n_kv_heads as u64;
        let protected = vec![method.n_sink as u64 * heads; cfg.n_layers];
        let capacities = vec![shape.prefix_entries(); cfg.n_layers];
        let mut budgets = vec![0; cfg.n_layers];
        match method.retention {
            Retention::Apart => layer_budgets(&weights, &capacities, Some(&protected), total, &mut budgets)?,
            Retention::Inside => {
                let window = shape.window as u64 * heads;
                let with_window = |x: &[u64]| x.iter().map(|x| x + window).collect::<Vec<_>>();
                let total = total + window * cfg.n_layers as u64;
                let (capacities, minimums) = (with_window(&capacities), with_window(&protected));
                layer_budgets(&weights, &capacities, Some(&minimums), total, &mut budgets)?;
                budgets.iter_mut().for_each(|b| *b -= window);
            }
        }
        let layers = scores.iter().zip(&budgets);
        layers.map(|(s, &b)| keep_best(&shape, &params, s, b)).collect::<Result<_>>().map(Some)
    }
}

fn keep_best(shape: &Shape, params: &SelectParams, scores: &[f32], budget: u64) -> Result<Kept> {
    let mut kept = Kept {
        indices: vec![0; lava::select::n_kept(shape, budget)? as usize],
        cu: vec![0; shape.n_kv_heads + 1],
    };
    with_workspace(lava::select::workspace_size(shape)?, |w| {
        select(shape, params, scores, budget, w, &mut kept.indices, &mut kept.cu)
    })?;
    Ok(kept)
}

/// All layers' heads, one behind the other → layers.
fn split(kept: &Kept, n_kv_heads: usize) -> Vec<Kept> {
    let layers = (kept.cu.len() - 1) / n_kv_heads;
    (0..layers)
        .map(|l| {
            let cu = &kept.cu[l * n_kv_heads..=(l + 1) * n_kv_heads];
            Kept {
                indices: kept.indices[cu[0] as usize..cu[n_kv_heads] as usize].to_vec(),
                cu: cu.iter().map(|c| c - cu[0]).collect(),
            }
        })
        .collect()
}

/// PyramidKV's prefix budgets of a head: a line from the first layer down to the last, `b / beta`.
fn pyramid(n_layers: usize, b: usize, prefix: usize, beta: f64) -> Vec<f64> {
    let mut min = (b as f64 / beta).floor();
    let mut max = 2.0 * b as f64 - min;
    if max >= prefix as f64 {
        max = prefix as f64;
        min = 2.0 * b as f64 - max;
    }
    let step = ((max - min) / (n_layers - 1) as f64).floor();
    (0..n_layers).map(|l| max - l as f64 * step).collect()
}

/// Scores with the same order but no ties: their ranks, which f32 holds exactly. Ties that are left go to the lower layer,
/// head and token, or to the higher token.
fn ranked(scores: &Scores, unpooled: &Scores, ties: Ties, prefix: usize) -> Scores {
    let mut order: Vec<(usize, usize)> =
        (0..scores.len()).flat_map(|l| (0..scores[l].len()).map(move |i| (l, i))).collect();
    order.sort_by(|&(l, i), &(m, j)| {
        let by_score = scores[m][j].total_cmp(&scores[l][i]);
        by_score.then_with(|| match ties {
            Ties::LowerToken => (l, i).cmp(&(m, j)),
            Ties::HigherToken => {
                (l, i / prefix, prefix - i % prefix).cmp(&(m, j / prefix, prefix - j % prefix))
            }
            Ties::Unpooled => unpooled[m][j].total_cmp(&unpooled[l][i]).then((l, i).cmp(&(m, j))),
        })
    });
    let mut ranks: Scores = scores.iter().map(|s| vec![0.0; s.len()]).collect();
    for (rank, &(l, i)) in order.iter().enumerate() {
        ranks[l][i] = (order.len() - rank) as f32;
    }
    ranks
}
