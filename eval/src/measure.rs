//! One text through all methods and budgets: what each of them changes.

use anyhow::Result;

use crate::cache::{Cache, Kept};
use crate::keep::Prompt;
use crate::lkv::Lkv;
use crate::methods::{Method, WINDOW};
use crate::model::{LayerTrace, Model, Prefill, l2};
use crate::tasks::Text;

/// What was measured for one text, method and budget. Means over the text's scored predictions, except `error`.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Share of predictions whose first choice is right.
    pub accuracy: f64,
    /// Relative L2 error of the attention output for the full run's queries, mean over layers and steps.
    pub error: f64,
    /// The same for each layer.
    pub layer_error: Vec<f64>,
    /// Kullback-Leibler divergence of the next token's distribution from the full cache's, in nats.
    pub kl: f64,
    /// Growth of the negative log-likelihood over the full cache's, in nats.
    pub nll: f64,
    /// Bytes of the prompt's K and V that are kept.
    pub bytes: usize,
    /// Each layer's share of the kept prefix entries.
    pub layer_share: Vec<f64>,
    /// Whether each scored prediction was right.
    pub hits: Vec<bool>,
}

/// A text's outcomes: with the whole cache, and `of[method][ratio]`, `None` where a method's window does not fit.
pub struct TextResult {
    pub full: Outcome,
    pub of: Vec<Vec<Option<Outcome>>>,
    pub depths: Vec<Option<f32>>,
}

/// Tokens that a head keeps on average: the window, and this share of what is before it.
pub fn budget(n_tokens: usize, ratio: f64) -> usize {
    WINDOW + ((n_tokens - WINDOW) as f64 * ratio).round() as usize
}

pub fn run(
    model: &Model,
    lkv: Option<&Lkv>,
    text: &Text,
    methods: &[Method],
    ratios: &[f64],
) -> Result<TextResult> {
    let prefill = model.prefill(&text.prompt);
    let everything = vec![Kept::everything(model.cfg.n_kv_heads, prefill.n_tokens); model.cfg.n_layers];
    let mut trace = vec![];
    let mut caches = compact(model, &prefill, &everything, text)?;
    let logits = model.decode(&mut caches, prefill.n_tokens, &text.continuation, Some(&mut trace))?;
    let reference = Reference { model, text, prefill: &prefill, trace, log_probs: log_probs(model, &logits) };
    let full = reference.outcome(&everything, WINDOW)?;
    let mut prompt = Prompt::new(model, lkv, &prefill);
    let of = methods
        .iter()
        .map(|method| {
            let at_ratio = |&ratio: &f64| {
                let kept = prompt.keep(method, budget(prefill.n_tokens, ratio))?;
                kept.map(|kept| reference.outcome(&kept, method.scorer.window)).transpose()
            };
            ratios.iter().map(at_ratio).collect()
        })
        .collect::<Result<_>>()?;
    Ok(TextResult { full, of, depths: text.scored.iter().map(|s| s.depth).collect() })
}

fn compact(model: &Model, prefill: &Prefill, kept: &[Kept], text: &Text) -> Result<Vec<Cache>> {
    let layers = prefill.layers.iter().zip(kept);
    layers.map(|(layer, kept)| Cache::compact(&model.cfg, layer, kept, text.continuation.len())).collect()
}

fn log_probs(model: &Model, logits: &[f32]) -> Vec<Vec<f64>> {
    logits
        .chunks_exact(model.cfg.vocab_size)
        .map(|row| {
            let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)) as f64;
            let log_sum = row.iter().map(|&x| (x as f64 - max).exp()).sum::<f64>().ln() + max;
            row.iter().map(|&x| x as f64 - log_sum).collect()
        })
        .collect()
}

/// The run with the whole cache.
struct Reference<'a> {
    model: &'a Model,
    text: &'a Text,
    prefill: &'a Prefill,
    trace: Vec<LayerTrace>,
    log_probs: Vec<Vec<f64>>,
}

impl Reference<'_> {
    /// `window` is the method's, which it keeps in any case.
    fn outcome(&self, kept: &[Kept], window: usize) -> Result<Outcome> {
        let (cfg, text) = (&self.model.cfg, self.text);
        let mut caches = compact(self.model, self.prefill, kept, text)?;
        let mut layer_error = vec![];
        for (cache, trace) in caches.iter_mut().zip(&self.trace) {
            cache.set_new(&trace.k, &trace.v);
            let out = cache.attend(cfg, &trace.q)?;
            let steps = out.chunks_exact(cfg.q_width()).zip(trace.out.chunks_exact(cfg.q_width()));
            let errors = steps.map(|(ours, full)| {
                let difference: Vec<f32> = ours.iter().zip(full).map(|(a, b)| a - b).collect();
                (l2(&difference) / l2(full)) as f64
            });
            layer_error.push(errors.sum::<f64>() / text.continuation.len() as f64);
        }
        let logits = self.model.decode(&mut caches, self.prefill.n_tokens, &text.continuation, None)?;
        let log_probs = log_probs(self.model, &logits);
        let mut o = Outcome {
            error: layer_error.iter().sum::<f64>() / cfg.n_layers as f64,
            layer_error,
            bytes: caches.iter().map(Cache::bytes).sum(),
            ..Outcome::default()
        };
        let share = 1.0 / text.scored.len() as f64;
        for scored in &text.scored {
            let (ours, full) = (&log_probs[scored.step], &self.log_probs[scored.step]);
            let target = scored.target as usize;
            let hit = ours.iter().enumerate().all(|(i, &p)| p < ours[target] || i == target);
            o.hits.push(hit);
            o.accuracy += hit as u8 as f64 * share;
            o.kl += ours.iter().zip(full).map(|(a, b)| b.exp() * (b - a)).sum::<f64>() * share;
            o.nll += (full[target] - ours[target]) * share;
        }
        let prefix: Vec<f64> =
            kept.iter().map(|k| k.indices.len() as f64 - (window * cfg.n_kv_heads) as f64).collect();
        let all: f64 = prefix.iter().sum();
        o.layer_share = prefix.iter().map(|p| p / all).collect();
        Ok(o)
    }
}
