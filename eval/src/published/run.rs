//! One text through all methods and budgets.
//!
//! The prompt is read once, with full attention. Every method and budget then decodes over what the library has compacted of that
//! cache, several of them side by side so that each weight is read once for all.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::tasks::{Fact, Facts, GoesOn, N_SUMMARY, Summary};
use crate::cache::{Cache, Kept};
use crate::keep::Prompt;
use crate::methods::Method;
use crate::model::{LAST_QUERIES, LayerState, Model, Prefill, exp};

/// What one text showed of one method at one budget.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    pub method: String,
    /// Share of the tokens that is kept, window included.
    pub budget: f64,
    /// Kullback-Leibler divergence from the full cache's next-token distributions, in nats: the mean over the predictions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Growth of the negative log-likelihood of what the text really says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll: Option<f64>,
    /// Share of predictions with the full cache's first choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agree: Option<f64>,
    /// Facts that come back when they are asked for only after eviction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later: Option<usize>,
    /// Which facts those are, in the order of `Line::depths`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub came_back: Vec<bool>,
    /// Facts that come back when the question is in the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<usize>,
    /// Facts that come back when all are asked for after eviction, one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_turn: Option<usize>,
}

/// A line of the results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Line {
    pub task: String,
    pub length: usize,
    pub text: usize,
    pub seed: u64,
    pub book: String,
    /// With the full cache: the text's negative log-likelihood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll: Option<f64>,
    /// Facts that the full cache answers: those that count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_later: Option<usize>,
    /// Where in the text those facts stand, from 0 to 1. Lines that were made before this was kept have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<f64>,
    /// And of those, how many were asked in the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_known: Option<usize>,
    /// The same of those that are asked for one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_in_turn: Option<usize>,
    pub rows: Vec<Row>,
}

/// How many entries each head keeps of one text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeptCounts {
    pub length: usize,
    pub seed: u64,
    pub book: String,
    /// Share of the tokens that is kept, window included.
    pub budget: f64,
    pub methods: Vec<MethodCounts>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MethodCounts {
    pub method: String,
    /// Of each layer, of each head.
    pub layers: Vec<Vec<usize>>,
}

/// Facts of a text whose question is put into the window: each needs scores of its own.
const N_KNOWN: usize = 4;
/// Rows that go through the model together: enough for the products to be at their best.
const ROWS: usize = 768;

/// Rounded where a digit more would say nothing.
fn rounded(x: f64) -> f64 {
    (x * 1e5).round() / 1e5
}

/// What each method keeps at each budget; `None`, and no row, where its window does not fit.
fn keep(
    model: &Model,
    prefill: &Prefill,
    methods: &[Method],
    budgets: &[f64],
) -> Result<Vec<(Row, Vec<Kept>)>> {
    let mut prompt = Prompt::new(model, None, prefill);
    let mut sets = vec![];
    for method in methods {
        for &budget in budgets {
            let tokens = (budget * prefill.n_tokens as f64).round() as usize;
            if let Some(kept) = prompt.keep(method, tokens)? {
                sets.push((Row { method: method.name.into(), budget, ..Row::default() }, kept));
            }
        }
    }
    Ok(sets)
}

fn compact(model: &Model, prefill: &Prefill, kept: &[Kept], room: usize) -> Result<Vec<Cache>> {
    let layers = prefill.layers.iter().zip(kept);
    layers.map(|(layer, kept)| Cache::compact(&model.cfg, layer, kept, room)).collect()
}

fn everything(model: &Model, prefill: &Prefill) -> Vec<Kept> {
    vec![Kept::everything(model.cfg.n_kv_heads, prefill.n_tokens); model.cfg.n_layers]
}

/// Decodes the same sequences over each of the sets; `each` gets a set's number and its rows `[sequences, n, n_embd]`.
fn decode(
    model: &Model,
    prefill: &Prefill,
    kept: &[&[Kept]],
    sequences: &[&[u32]],
    mut each: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let n = sequences[0].len();
    let together = (ROWS / (n * sequences.len())).max(1);
    for (first, kept) in kept.chunks(together).enumerate().map(|(i, c)| (i * together, c)) {
        let mut caches: Vec<Vec<Cache>> =
            kept.iter().map(|k| compact(model, prefill, k, n)).collect::<Result<_>>()?;
        let mut sets: Vec<&mut [Cache]> = caches.iter_mut().map(Vec::as_mut_slice).collect();
        let all: Vec<(usize, &[u32])> =
            (0..sets.len()).flat_map(|set| sequences.iter().map(move |s| (set, *s))).collect();
        let rows = model.decode_many(&mut sets, prefill.n_tokens, &all, None)?;
        for (i, rows) in rows.chunks_exact(sequences.len() * n * model.cfg.n_embd).enumerate() {
            each(first + i, rows);
        }
    }
    Ok(())
}

/// Turns logits into log-probabilities.
fn log_softmax(logits: &mut [f32], vocab_size: usize) {
    for row in logits.chunks_exact_mut(vocab_size) {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        let sums = row.chunks(1024).map(|part| part.iter().map(|&x| exp(x - max)).sum::<f32>() as f64);
        let log_sum = max + sums.sum::<f64>().ln() as f32;
        row.iter_mut().for_each(|x| *x -= log_sum);
    }
}

fn first_choice(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// What the full cache predicts for given tokens after a prompt, from the `first`-th of them on, and how far each method is from it.
fn distances(
    model: &Model,
    prefill: &Prefill,
    (tokens, first): (&[u32], usize),
    methods: &[Method],
    budgets: &[f64],
) -> Result<(Vec<Row>, f64)> {
    let (vocab, e) = (model.cfg.vocab_size, model.cfg.n_embd);
    // The last token predicts what is not there any more.
    let targets: Vec<usize> = tokens[first + 1..].iter().map(|&t| t as usize).collect();
    let n = targets.len();
    let log_probs = |rows: &[f32]| {
        let mut logits = model.logits(&rows[first * e..(first + n) * e]);
        log_softmax(&mut logits, vocab);
        logits
    };
    let mut full = vec![];
    decode(model, prefill, &[&everything(model, prefill)], &[tokens], |_, rows| full = log_probs(rows))?;
    let probs: Vec<f32> = full.iter().map(|&x| exp(x)).collect();
    let choices: Vec<usize> = full.chunks_exact(vocab).map(first_choice).collect();

    let (mut rows, kept): (Vec<Row>, Vec<Vec<Kept>>) =
        keep(model, prefill, methods, budgets)?.into_iter().unzip();
    let kept: Vec<&[Kept]> = kept.iter().map(Vec::as_slice).collect();
    decode(model, prefill, &kept, &[tokens], |i, hidden| {
        let ours = log_probs(hidden);
        let (mut kl, mut nll, mut agree) = (0.0, 0.0, 0);
        for (t, row) in ours.chunks_exact(vocab).enumerate() {
            let at = t * vocab..(t + 1) * vocab;
            let parts = probs[at.clone()].iter().zip(&full[at.clone()]).zip(row);
            kl += parts.map(|((p, a), b)| (p * (a - b)) as f64).sum::<f64>();
            nll += (full[at][targets[t]] - row[targets[t]]) as f64;
            agree += (first_choice(row) == choices[t]) as usize;
        }
        rows[i].kl = Some(rounded(kl / n as f64));
        rows[i].nll = Some(rounded(nll / n as f64));
        rows[i].agree = Some(rounded(agree as f64 / n as f64));
    })?;
    let nll = full.chunks_exact(vocab).zip(&targets).map(|(row, &t)| -row[t] as f64).sum::<f64>() / n as f64;
    Ok((rows, rounded(nll)))
}

pub fn goes_on(model: &Model, text: &GoesOn, methods: &[Method], budgets: &[f64]) -> Result<Line> {
    let prefill = model.prefill(&text.prompt);
    let (rows, nll) = distances(model, &prefill, (&text.next, 0), methods, budgets)?;
    Ok(Line { book: text.book.into(), nll: Some(nll), rows, ..Line::default() })
}

/// How many entries each head keeps, window included.
pub fn kept_counts(model: &Model, text: &GoesOn, methods: &[Method], budget: f64) -> Result<KeptCounts> {
    let prefill = model.prefill(&text.prompt);
    let counts = |kept: &Kept| (1..kept.cu.len()).map(|h| kept.head(h - 1).len()).collect();
    let sets = keep(model, &prefill, methods, &[budget])?;
    let each = sets
        .into_iter()
        .map(|(row, kept)| MethodCounts { method: row.method, layers: kept.iter().map(counts).collect() });
    Ok(KeptCounts {
        length: prefill.n_tokens,
        book: text.book.into(),
        budget,
        methods: each.collect(),
        ..KeptCounts::default()
    })
}

/// Something is asked for after eviction; the full cache's own answer, word by word its first choice, is forced.
pub fn told(model: &Model, text: &Summary, methods: &[Method], budgets: &[f64]) -> Result<Line> {
    let prefill = model.prefill(&text.prompt);
    let mut tokens = text.question.clone();
    for _ in 0..N_SUMMARY {
        let mut next = 0;
        decode(model, &prefill, &[&everything(model, &prefill)], &[&tokens], |_, rows| {
            let last = &rows[rows.len() - model.cfg.n_embd..];
            next = first_choice(&model.logits(last)) as u32;
        })?;
        if next == text.end {
            break;
        }
        tokens.push(next);
    }
    let first = text.question.len() - 1;
    let (rows, nll) = distances(model, &prefill, (&tokens, first), methods, budgets)?;
    Ok(Line { book: text.book.into(), nll: Some(nll), rows, ..Line::default() })
}

/// The facts' questions one after another in one dialogue over the same compressed cache, each followed by its right answer.
pub fn in_turn(model: &Model, text: &Facts, methods: &[Method], budgets: &[f64]) -> Result<Line> {
    let prefill = model.prefill(&text.prompt);
    let mut tokens = vec![];
    let mut before = vec![];
    for (i, fact) in text.facts.iter().enumerate() {
        if i > 0 {
            tokens.extend(&text.between);
        }
        tokens.extend(&fact.question);
        before.push(tokens.len() - 1);
        tokens.extend(&fact.answer);
    }
    let right = |hidden: &[f32]| -> Vec<bool> {
        before.iter().zip(&text.facts).map(|(&at, f)| is_right(model, hidden, at, &f.answer)).collect()
    };
    let mut answered = vec![];
    decode(model, &prefill, &[&everything(model, &prefill)], &[&tokens], |_, hidden| {
        answered = right(hidden)
    })?;
    let count =
        |right: Vec<bool>| right.iter().zip(&answered).filter(|(ours, full)| **ours && **full).count();
    let mut line =
        Line { book: text.book.into(), asked_in_turn: Some(count(answered.clone())), ..Line::default() };
    if line.asked_in_turn == Some(0) {
        return Ok(line);
    }
    let (mut rows, kept): (Vec<Row>, Vec<Vec<Kept>>) =
        keep(model, &prefill, methods, budgets)?.into_iter().unzip();
    let kept: Vec<&[Kept]> = kept.iter().map(Vec::as_slice).collect();
    decode(model, &prefill, &kept, &[&tokens], |i, hidden| rows[i].in_turn = Some(count(right(hidden))))?;
    line.rows = rows;
    Ok(line)
}

/// Whether the rows that stand before the answer's tokens choose them; `before` is the number of the first.
fn is_right(model: &Model, hidden: &[f32], before: usize, answer: &[u32]) -> bool {
    let e = model.cfg.n_embd;
    let logits = model.logits(&hidden[before * e..(before + answer.len()) * e]);
    logits.chunks_exact(model.cfg.vocab_size).zip(answer).all(|(row, &t)| first_choice(row) == t as usize)
}

pub fn facts(model: &Model, text: &Facts, methods: &[Method], budgets: &[f64]) -> Result<Line> {
    let prefill = model.prefill(&text.prompt);
    let (mut line, asked) = later(model, &prefill, text, methods, budgets)?;
    let asked = &asked[..asked.len().min(N_KNOWN)];
    line.asked_known = Some(asked.len());
    known(model, &prefill, asked, methods, budgets, &mut line.rows)?;
    Ok(line)
}

/// The facts asked later alone. It takes a fraction of the time, and is enough to see which depths come back.
pub fn needles(model: &Model, text: &Facts, methods: &[Method], budgets: &[f64]) -> Result<Line> {
    Ok(later(model, &model.prefill(&text.prompt), text, methods, budgets)?.0)
}

/// Asks for every fact after eviction. Also gives back those that the full cache answers.
fn later<'a>(
    model: &Model,
    prefill: &Prefill,
    text: &'a Facts,
    methods: &[Method],
    budgets: &[f64],
) -> Result<(Line, Vec<&'a Fact>)> {
    // All of one length: what comes after an answer changes nothing before it.
    let padded = |facts: &[&Fact]| -> Vec<Vec<u32>> {
        let of = |f: &Fact| [&f.question[..], &f.answer[..f.answer.len() - 1]].concat();
        let longest = facts.iter().map(|f| f.question.len() + f.answer.len() - 1).max().unwrap_or(0);
        let pad = |mut s: Vec<u32>| {
            s.resize(longest, 0);
            s
        };
        facts.iter().map(|f| pad(of(f))).collect()
    };
    let right = |facts: &[&Fact], hidden: &[f32]| -> Vec<bool> {
        let each = hidden.chunks_exact(hidden.len() / facts.len());
        each.zip(facts).map(|(rows, f)| is_right(model, rows, f.question.len() - 1, &f.answer)).collect()
    };
    let all: Vec<&Fact> = text.facts.iter().collect();
    let sequences = padded(&all);
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut answered = vec![];
    decode(model, prefill, &[&everything(model, prefill)], &sequences, |_, hidden| {
        answered = right(&all, hidden);
    })?;
    let asked: Vec<&Fact> = all.into_iter().zip(answered).filter(|(_, ok)| *ok).map(|(f, _)| f).collect();
    let mut line = Line {
        book: text.book.into(),
        asked_later: Some(asked.len()),
        depths: asked.iter().map(|f| rounded(f.depth)).collect(),
        ..Line::default()
    };
    if asked.is_empty() {
        return Ok((line, asked));
    }

    let (mut rows, kept): (Vec<Row>, Vec<Vec<Kept>>) =
        keep(model, prefill, methods, budgets)?.into_iter().unzip();
    let kept: Vec<&[Kept]> = kept.iter().map(Vec::as_slice).collect();
    let sequences = padded(&asked);
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    decode(model, prefill, &kept, &sequences, |i, hidden| {
        rows[i].came_back = right(&asked, hidden);
        rows[i].later = Some(rows[i].came_back.iter().filter(|&&ok| ok).count());
    })?;
    line.rows = rows;
    Ok((line, asked))
}

/// Asks for each fact in the window, and adds what comes back to the rows.
fn known(
    model: &Model,
    prefill: &Prefill,
    asked: &[&Fact],
    methods: &[Method],
    budgets: &[f64],
    rows: &mut [Row],
) -> Result<()> {
    for fact in asked {
        // The question's last token is decoded after eviction, so that all of the answer is.
        let (last, question) = fact.question.split_last().expect("a question");
        let prompt = extended(model, prefill, question)?;
        let sequence = [&[*last], &fact.answer[..fact.answer.len() - 1]].concat();
        let (at, kept): (Vec<Row>, Vec<Vec<Kept>>) =
            keep(model, &prompt, methods, budgets)?.into_iter().unzip();
        let kept: Vec<&[Kept]> = kept.iter().map(Vec::as_slice).collect();
        decode(model, &prompt, &kept, &[&sequence], |i, hidden| {
            let row = &mut rows[i];
            assert!(row.method == at[i].method && row.budget == at[i].budget);
            *row.known.get_or_insert(0) += is_right(model, hidden, 0, &fact.answer) as usize;
        })?;
    }
    Ok(())
}

/// The prompt and more tokens after it. The queries from before RoPE stay the shorter prompt's.
fn extended(model: &Model, prefill: &Prefill, tokens: &[u32]) -> Result<Prefill> {
    let mut caches = compact(model, prefill, &everything(model, prefill), tokens.len())?;
    let mut trace = vec![];
    model.decode_many(&mut [&mut caches], prefill.n_tokens, &[(0, tokens)], Some(&mut trace))?;
    let layers = prefill.layers.iter().zip(trace).map(|(layer, new)| {
        let q = [&layer.q[..], &new.q].concat();
        LayerState {
            q: q[q.len() - LAST_QUERIES * model.cfg.q_width()..].to_vec(),
            before_rope: layer.before_rope.clone(),
            k: [&layer.k[..], &new.k].concat(),
            v: [&layer.v[..], &new.v].concat(),
            residual_norm: layer.residual_norm,
            output_rms: layer.output_rms,
            sliding_window: layer.sliding_window,
        }
    });
    let all = [&prefill.tokens[..], tokens].concat();
    Ok(Prefill { n_tokens: all.len(), tokens: all, layers: layers.collect() })
}
