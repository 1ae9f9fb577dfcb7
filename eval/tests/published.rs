//! The published model is the one that llama.cpp runs: the same tokens, the same probabilities of what comes next. Left out, and said,
//! where `eval/fetch.sh` has not brought the model.

use std::path::PathBuf;

use eval::cache::{Cache, Kept};
use eval::published::gguf::{Gguf, encode};
use serde::Deserialize;

fn gguf(file: &str) -> Option<Gguf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/published").join(file);
    if !path.exists() {
        eprintln!("left out: run eval/fetch.sh for {file}, with the argument gemma for gemma.gguf");
        return None;
    }
    Some(Gguf::open(&path).unwrap())
}

/// What `llama.cpp` in this folder writes.
#[derive(Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    /// The likeliest next tokens and their log-probabilities, position by position.
    next: Vec<Vec<(usize, f64)>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("llama.json")).unwrap()
}

/// The same of `gemma.txt`, the beginning of the Apache licence, and gemma-3-270m.
fn gemma_golden() -> Golden {
    serde_json::from_str(include_str!("gemma.json")).unwrap()
}

#[test]
fn the_tokens_are_llama_cpps_and_the_text_comes_back() {
    let Some(gguf) = gguf("model.gguf") else { return };
    let tokenizer = gguf.tokenizer().unwrap();
    let text = include_str!("llama.txt");
    let tokens = encode(&tokenizer, text).unwrap();
    assert_eq!(tokens, golden().tokens);
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
}

/// Texts begin with a token of their own, and are longer than the sliding window.
#[test]
fn gemmas_tokens_are_llama_cpps_and_the_text_comes_back() {
    let Some(gguf) = gguf("gemma.gguf") else { return };
    let tokenizer = gguf.tokenizer().unwrap();
    let text = include_str!("gemma.txt");
    let tokens = encode(&tokenizer, text).unwrap();
    let bos = gguf.bos().unwrap().unwrap();
    assert_eq!([&[bos], &tokens[..]].concat(), gemma_golden().tokens);
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
}

#[test]
fn the_probabilities_are_llama_cpps() {
    agrees("model.gguf", golden());
}

#[test]
fn gemmas_probabilities_are_llama_cpps() {
    agrees("gemma.gguf", gemma_golden());
}

fn agrees(file: &str, golden: Golden) {
    let Some(mut gguf) = gguf(file) else { return };
    let model = gguf.model().unwrap();
    let Golden { tokens, next } = golden;
    let (prompt, last) = tokens.split_at(tokens.len() - next.len());
    let prefill = model.prefill(prompt);
    let all = Kept::everything(model.cfg.n_kv_heads, prompt.len());
    let mut caches: Vec<Cache> =
        prefill.layers.iter().map(|l| Cache::compact(&model.cfg, l, &all, last.len()).unwrap()).collect();
    let logits = model.decode(&mut caches, prompt.len(), last, None).unwrap();
    let mut divergence = 0.0;
    let mut agree = 0;
    for (row, theirs) in logits.chunks_exact(model.cfg.vocab_size).zip(&next) {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)) as f64;
        let log_sum = row.iter().map(|&x| (x as f64 - max).exp()).sum::<f64>().ln() + max;
        let ours = |t: usize| row[t] as f64 - log_sum;
        // Of the likeliest ones and all the rest together: a lower bound of the whole, and no less telling.
        let parts: Vec<(f64, f64)> = theirs.iter().map(|&(t, lp)| (lp.exp(), ours(t).exp())).collect();
        let (p, q) = parts.iter().fold((0.0, 0.0), |(a, b), (p, q)| (a + p, b + q));
        divergence += parts.iter().map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        divergence += (1.0 - p).max(1e-9) * ((1.0 - p).max(1e-9) / (1.0 - q).max(1e-9)).ln();
        agree += (0..row.len()).all(|t| row[t] <= row[theirs[0].0]) as usize;
    }
    let divergence = divergence / next.len() as f64;
    eprintln!(
        "KL from llama.cpp's {divergence:.5} nats, the same first choice {agree} times of {}",
        next.len()
    );
    // llama.cpp rounds activations to 8 bits before its products with 4-bit weights.
    assert!(divergence < 0.01, "{divergence}");
    assert!(agree * 100 >= next.len() * 93, "{agree} of {}", next.len());
}
