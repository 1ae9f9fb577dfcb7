//! From a prompt's cache to what a method keeps of it.

use anyhow::{Context, Result, ensure};
use half::f16;
use lava::adjust::mean_over_heads;
use lava::budget::{layer_entries, pyramid_weights};
use lava::entropy::entropy;
use lava::score::{AttentionStats, ScoreInputs, attention_stats, preference, score, score_keys};
use lava::select::{global_entries, global_entries_workspace_size, select};
use lava::{Backend, GroupReduce, HeadFloor, Rows, ScoreParams, SelectParams, Shape, Strides, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::cache::{Cache, Kept, shape, with_workspace};
use crate::lkv::Lkv;
use crate::methods::{Kind, Layers, Method, Scorer, Ties, Weight};
use crate::model::{LAST_QUERIES, LayerState, Model, Prefill, l2};
use crate::published::ask::{self, Again, Ask};
use crate::published::others;

/// Scores of all layers, each `[n_kv_heads, prefix_len]`.
pub type Scores = Vec<Vec<f32>>;

/// A prompt, and those of its scores that were asked for: methods and budgets share them.
pub struct Prompt<'a> {
    model: &'a Model,
    lkv: Option<&'a Lkv>,
    prefill: &'a Prefill,
    known: Vec<(Scorer, Scores)>,
    /// CAKE's weights of the layers.
    preferences: Vec<(f64, Vec<f64>)>,
    /// Queries of a pass that repeats the prompt, layer by layer, after RoPE.
    second_pass: Vec<Vec<f32>>,
}

impl<'a> Prompt<'a> {
    pub fn new(model: &'a Model, lkv: Option<&'a Lkv>, prefill: &'a Prefill) -> Self {
        Self { model, lkv, prefill, known: vec![], preferences: vec![], second_pass: vec![] }
    }

    /// What each layer keeps at `budget` tokens per head on average, window included. `None` if the method's window and
    /// sinks alone are more.
    pub fn keep(&mut self, method: &Method, budget: usize) -> Result<Option<Vec<Kept>>> {
        let cfg = self.model.cfg;
        let shape = shape(&cfg, self.prefill.n_tokens, method.scorer.window);
        if budget < shape.window + method.select.n_sink {
            return Ok(None);
        }
        // A share of the tokens is the same share of what each layer would hold: a sliding window's dead rows are dropped for nothing.
        let layers: Vec<Shape> = (self.prefill.layers.iter().enumerate())
            .map(|(l, layer)| Shape { layer: l as u32, sliding_window: layer.sliding_window, ..shape })
            .collect();
        let live = |s: &Shape| s.prefix_len() - s.first_visible() + s.window;
        let held: usize = layers.iter().map(|s| budget * live(s) / s.n_tokens).sum();
        let Some(total) = held.checked_sub(shape.window * cfg.n_layers) else { return Ok(None) };
        let total = (total * cfg.n_kv_heads) as u64;
        if total < layers.iter().map(|s| method.select.layer_minimum(s)).sum() {
            return Ok(None);
        }
        let mut scores = self.scores(method.scorer)?.clone();
        if method.scorer.kind == Kind::Defensive {
            let params =
                ScoreParams { pool_kernel: 1, group_reduce: GroupReduce::Mean, ..ScoreParams::snapkv() };
            let mass = self.scores(Scorer { params, kind: Kind::AsTheyAre, ..method.scorer })?;
            for (scores, mass) in scores.iter_mut().zip(mass) {
                others::raise_mass(&shape, scores, mass, budget - shape.window)?;
            }
        }
        if method.scorer.kind == Kind::Critical {
            let entries = (budget - shape.window) * cfg.n_kv_heads;
            for (l, scores) in scores.iter_mut().enumerate() {
                let layer = &self.prefill.layers[l];
                *scores = others::critical(self.model, l, layer, &shape, scores, entries)?;
            }
        }
        if let Layers::Global(weight) | Layers::Blend { weight, .. } = method.layers {
            for (l, layer) in scores.iter_mut().enumerate() {
                let factor = self.layer_factor(weight, l, layer);
                layer.iter_mut().for_each(|s| *s *= factor);
            }
        }
        let ordered = if method.ties == Ties::LowerToken {
            None
        } else {
            let params = ScoreParams { pool_kernel: 1, ..method.scorer.params };
            let unpooled = self.scores(Scorer { params, ..method.scorer })?;
            Some(ranked(&scores, unpooled, method.ties, shape.prefix_len()))
        };
        let ordered = ordered.as_ref().unwrap_or(&scores);

        // LKV's heads share one total over all layers by weights of their own: they are treated as the heads of one large layer.
        let whole = Shape {
            n_kv_heads: cfg.n_kv_heads * cfg.n_layers,
            n_q_heads: cfg.n_q_heads * cfg.n_layers,
            ..shape
        };
        let weights = match method.layers {
            Layers::Global(_) => {
                return one_sort(&layers, &method.select, ordered, total).map(Some);
            }
            Layers::Learned => {
                let head_weights = Some(&self.lkv()?.head_share[..]);
                let params = SelectParams { head_weights, head_floor: HeadFloor::None, ..method.select };
                let kept = keep_best(&whole, &params, &ordered.concat(), total)?;
                return Ok(Some(split(&kept, cfg.n_kv_heads)));
            }
            Layers::Equal => vec![1.0; cfg.n_layers],
            Layers::Pyramid { beta } => {
                let mut weights = vec![0.0; cfg.n_layers];
                let per_head = (budget - shape.window) as u64;
                pyramid_weights(per_head, shape.prefix_len() as u64, beta, &mut weights)?;
                weights
            }
            Layers::Preference { tau1, weight } => {
                let preferences = self.preferences(method.scorer, tau1)?;
                let factor = |l: usize| self.layer_factor(weight, l, &scores[l]) as f64;
                preferences.iter().enumerate().map(|(l, p)| p * factor(l)).collect()
            }
            Layers::Entropy | Layers::Blend { .. } => {
                let share = if let Layers::Blend { mass, .. } = method.layers { mass } else { 0.0 };
                let spread = scores.iter().zip(&layers).map(|(s, shape)| entropy(shape, s));
                let weight =
                    |e: lava::entropy::LayerEntropy| e.entropy.powf(1.0 - share) * e.mass.powf(share);
                spread.map(|e| e.map(weight)).collect::<lava::Result<_>>()?
            }
        };
        let mut entries = vec![0; cfg.n_layers];
        layer_entries(&layers[..], &method.select, &weights, total, &mut entries)?;
        let each = layers.iter().zip(ordered).zip(&entries);
        let kept = each.map(|((shape, s), &n)| keep_best(shape, &method.select, s, n));
        kept.collect::<Result<_>>().map(Some)
    }

    fn lkv(&self) -> Result<&'a Lkv> {
        self.lkv.context("LKV's weights are not there: give --lkv, or leave the method out")
    }

    fn layer_factor(&self, weight: Weight, l: usize, scores: &[f32]) -> f32 {
        let projection = || l2(&self.model.blocks[l].attn_output);
        match weight {
            Weight::One => 1.0,
            Weight::Projection => projection(),
            Weight::ProjectionOverResidual => projection() / self.prefill.layers[l].residual_norm,
            Weight::Mass(power) => scores.iter().sum::<f32>().powf(power),
        }
    }

    /// `[n_kv_heads, prefix_len]` for each layer.
    pub fn scores(&mut self, scorer: Scorer) -> Result<&Scores> {
        let at = match self.known.iter().position(|(s, _)| *s == scorer) {
            Some(at) => at,
            None => {
                if matches!(scorer.kind, Kind::Asked(Ask { again: Again::SecondPass, .. })) {
                    self.read_again()?;
                }
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
        let layer = &self.prefill.layers[l];
        let sliding_window = layer.sliding_window;
        let shape =
            Shape { layer: l as u32, sliding_window, ..shape(cfg, self.prefill.n_tokens, scorer.window) };
        let prefix = shape.prefix_len();
        if scorer.kind == Kind::Learned {
            return Ok(self.lkv()?.scores(cfg, l, layer, prefix));
        }
        let from_outside =
            matches!(scorer.kind, Kind::Defensive | Kind::Critical | Kind::KeyDifference | Kind::Expected);
        ensure!(!from_outside || sliding_window.is_none(), "published/others.rs knows no sliding windows");
        match scorer.kind {
            Kind::Defensive => return others::defensive(self.model, l, layer, scorer.window),
            Kind::KeyDifference => {
                let mut scores = vec![0.0; cfg.n_kv_heads * prefix];
                score_keys(&shape, &inputs(&shape, layer)?.k, 0, 1, &mut scores)?;
                return Ok(scores);
            }
            Kind::Expected => return others::expected(self.model, &shape, layer),
            _ => {}
        }
        if scorer.kind == Kind::Random {
            let mut rng = ChaCha8Rng::seed_from_u64(l as u64);
            return Ok((0..cfg.n_kv_heads * prefix).map(|_| rng.random()).collect());
        }
        let mut scores = vec![0.0; cfg.n_kv_heads * prefix];
        let weights = match scorer.kind {
            Kind::Asked(Ask { projection: true, .. }) => Some(ask::head_weights(self.model, l, layer)),
            _ => None,
        };
        let params = ScoreParams { query_head_weights: weights.as_deref(), ..scorer.params };
        let inputs = inputs(&shape, layer)?;
        if !matches!(scorer.kind, Kind::Asked(Ask { again: Again::SecondPass, .. })) {
            with_workspace(lava::score::workspace_size(&shape, &params)?, |w| {
                score(Backend::detect(), &shape, &params, &inputs, 0, 1, w, &mut scores)
            })?;
        }
        match scorer.kind {
            Kind::OneForAll => mean_over_heads(&shape, &mut scores)?,
            Kind::ProjectedToken | Kind::ProjectedMax => {
                for (g, head) in scores.chunks_exact_mut(prefix).enumerate() {
                    let norms = self.projected_norms(l, g, prefix);
                    let largest = norms.iter().fold(0.0f32, |m, &x| m.max(x));
                    let of = |i: usize| if scorer.kind == Kind::ProjectedMax { largest } else { norms[i] };
                    head.iter_mut().enumerate().for_each(|(i, s)| *s *= of(i));
                }
            }
            Kind::Asked(ask) => {
                let second = self.second_pass.get(l).map_or(&[][..], Vec::as_slice);
                ask::finish(self.model, &shape, &params, layer, &inputs, ask, second, &mut scores)?;
            }
            _ => {}
        }
        Ok(scores)
    }

    /// Runs the prompt once more after itself, over the whole cache.
    fn read_again(&mut self) -> Result<()> {
        if !self.second_pass.is_empty() {
            return Ok(());
        }
        let (cfg, prefill) = (&self.model.cfg, self.prefill);
        let all = Kept::everything(cfg.n_kv_heads, prefill.n_tokens);
        let compact = |layer| Cache::compact(cfg, layer, &all, prefill.n_tokens);
        let mut caches: Vec<Cache> = prefill.layers.iter().map(compact).collect::<Result<_>>()?;
        let (mut trace, tokens) = (vec![], &prefill.tokens[..]);
        self.model.decode_many(&mut [&mut caches], prefill.n_tokens, &[(0, tokens)], Some(&mut trace))?;
        self.second_pass = trace.into_iter().map(|layer| layer.q).collect();
        Ok(())
    }

    /// `‖W_o v_i‖` of KV head `g`, root mean square over its query heads: `vᵀ (Σ_h W_hᵀ W_h / group) v`.
    fn projected_norms(&self, l: usize, g: usize, prefix: usize) -> Vec<f32> {
        let cfg = &self.model.cfg;
        let (d, group) = (cfg.head_dim, cfg.group_size());
        let mut gram = vec![0.0f32; d * d];
        for row in self.model.blocks[l].attn_output.chunks_exact(cfg.q_width()) {
            for head in row[g * group * d..(g + 1) * group * d].chunks_exact(d) {
                for (a, line) in gram.chunks_exact_mut(d).enumerate() {
                    line.iter_mut().zip(head).for_each(|(x, w)| *x += head[a] * w);
                }
            }
        }
        let norm = |i: usize| {
            let at = (i * cfg.n_kv_heads + g) * d;
            let v: Vec<f32> = self.prefill.layers[l].v[at..at + d].iter().map(|x: &f16| x.to_f32()).collect();
            let lines = gram.chunks_exact(d).zip(&v);
            let square: f32 =
                lines.map(|(line, x)| x * line.iter().zip(&v).map(|(g, y)| g * y).sum::<f32>()).sum();
            (square / group as f32).sqrt()
        };
        (0..prefix).map(norm).collect()
    }

    /// CAKE's weights of the layers.
    fn preferences(&mut self, scorer: Scorer, tau1: f64) -> Result<Vec<f64>> {
        if let Some((_, known)) = self.preferences.iter().find(|(tau, _)| *tau == tau1) {
            return Ok(known.clone());
        }
        let cfg = &self.model.cfg;
        let alike = shape(cfg, self.prefill.n_tokens, scorer.window);
        let mut weights = vec![];
        for layer in &self.prefill.layers {
            let shape = Shape { sliding_window: layer.sliding_window, ..alike };
            let mut stats = vec![AttentionStats::default(); cfg.n_kv_heads];
            with_workspace(lava::score::workspace_size(&shape, &scorer.params)?, |w| {
                let inputs = inputs(&shape, layer)?;
                attention_stats(Backend::detect(), &shape, &scorer.params, &inputs, 0, 1, w, &mut stats)
            })?;
            weights.push(preference(&stats, tau1, 1.0)?);
        }
        self.preferences.push((tau1, weights.clone()));
        Ok(weights)
    }
}

fn inputs<'a>(shape: &Shape, layer: &'a LayerState) -> lava::Result<ScoreInputs<'a>> {
    let (hq, hkv, d) = (shape.n_q_heads, shape.n_kv_heads, shape.head_dim_k);
    let q = &layer.q[(LAST_QUERIES - shape.window) * hq * d..];
    let kv = |x| Tensor::from_slice(x, Strides::token_major(hkv, d), Rows::Same(shape.n_tokens), hkv, d);
    Ok(ScoreInputs {
        q: Tensor::from_slice(q, Strides::token_major(hq, d), Rows::Same(shape.window), hq, d)?,
        k: kv(&layer.k)?,
        v: kv(&layer.v)?,
        lse: None,
    })
}

pub(crate) fn keep_best(
    shape: &Shape,
    params: &SelectParams,
    scores: &[f32],
    n_entries: u64,
) -> Result<Kept> {
    let mut kept = Kept {
        indices: vec![0; lava::select::n_kept(shape, n_entries)? as usize],
        cu: vec![0; shape.n_kv_heads + 1],
    };
    with_workspace(lava::select::workspace_size(shape)?, |w| {
        select(shape, params, scores, n_entries, w, &mut kept.indices, &mut kept.cu, None)
    })?;
    Ok(kept)
}

/// One sort over the heads of all layers, which need not be alike.
fn one_sort(layers: &[Shape], params: &SelectParams, scores: &Scores, total: u64) -> Result<Vec<Kept>> {
    let heads = layers[0].n_kv_heads;
    let (mut entries, mut counts) = (vec![0; layers.len()], vec![0.0; layers.len() * heads]);
    with_workspace(global_entries_workspace_size(layers)?, |w| {
        global_entries(layers, params, &scores.concat(), total, w, &mut entries, &mut counts)
    })?;
    let each = layers.iter().zip(scores).zip(&entries).zip(counts.chunks_exact(heads));
    each.map(|(((shape, scores), &n), counts)| {
        // The floors are in the counts already.
        let params = SelectParams { head_weights: Some(counts), head_floor: HeadFloor::None, ..*params };
        keep_best(shape, &params, scores, n)
    })
    .collect()
}

/// All layers' heads, one after the other → layers.
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

/// Scores with the same order but no ties: their ranks, which f32 holds exactly.
fn ranked(scores: &Scores, unpooled: &Scores, ties: Ties, prefix: usize) -> Scores {
    let mut order: Vec<(usize, usize)> =
        (0..scores.len()).flat_map(|l| (0..scores[l].len()).map(move |i| (l, i))).collect();
    order.sort_by(|&(l, i), &(m, j)| {
        let by_head = || (l, i / prefix).cmp(&(m, j / prefix));
        scores[m][j].total_cmp(&scores[l][i]).then_with(|| match ties {
            Ties::LowerToken => by_head().then(i.cmp(&j)),
            Ties::HigherToken => by_head().then(j.cmp(&i)),
            Ties::Unpooled => unpooled[m][j].total_cmp(&unpooled[l][i]).then(by_head()).then(i.cmp(&j)),
        })
    });
    let mut ranks: Scores = scores.iter().map(|s| vec![0.0; s.len()]).collect();
    for (rank, &(l, i)) in order.iter().enumerate() {
        ranks[l][i] = (order.len() - rank) as f32;
    }
    ranks
}
