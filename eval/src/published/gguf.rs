//! Weights and tokenizer of a llama or a Gemma 3 out of its GGUF file.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::model::{Architecture, Config, Model};

// GGUF's kinds of token: ordinary ones, special ones, and those that a text is split at first.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

pub struct Gguf {
    content: Content,
    file: BufReader<File>,
    architecture: String,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| {
            format!("{} is not there: run eval/fetch.sh, which `make eval` does", path.display())
        })?;
        let mut file = BufReader::new(file);
        let content = Content::read(&mut file)?;
        let name = content.metadata.get("general.architecture").context("the model has no architecture")?;
        let architecture = name.to_string()?.clone();
        Ok(Self { content, file, architecture })
    }

    fn value(&self, name: &str) -> Result<&Value> {
        self.content.metadata.get(name).with_context(|| format!("the model's metadata lacks {name}"))
    }

    fn size(&self, name: &str) -> Result<usize> {
        Ok(self.value(&format!("{}.{name}", self.architecture))?.to_u32()? as usize)
    }

    fn list<T>(&self, name: &str, item: impl Fn(&Value) -> candle_core::Result<T>) -> Result<Vec<T>> {
        Ok(self.value(name)?.to_vec()?.iter().map(item).collect::<candle_core::Result<_>>()?)
    }

    fn number(&self, name: &str) -> Result<f32> {
        Ok(self.value(&format!("{}.{name}", self.architecture))?.to_f32()?)
    }

    /// The model in f32. RoPE goes over adjacent pairs: a llama's rows of queries and keys are in that order in llama.cpp's files, and
    /// Gemma's, whose pairs are half a head apart, are put in it. llama.cpp's files have the 1 that Gemma adds to its norms' weights.
    pub fn model(&mut self) -> Result<Model> {
        let (n_embd, n_q_heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let rope_theta = self.number("rope.freq_base")? as f64;
        let (kind, head_dim) = match &*self.architecture {
            "llama" => {
                let head_dim = n_embd / n_q_heads;
                let of = self.size("rope.dimension_count")?;
                ensure!(of == head_dim, "RoPE over a part of the head is not supported");
                (Architecture::Llama { rope_theta }, head_dim)
            }
            "gemma3" => {
                let sliding_window = self.size("attention.sliding_window")?;
                (Architecture::Gemma3 { rope_theta, sliding_window }, self.size("attention.key_length")?)
            }
            other => bail!("there is no reader for {other}"),
        };
        let cfg = Config {
            n_layers: self.size("block_count")?,
            n_q_heads,
            n_kv_heads: self.size("attention.head_count_kv")?,
            head_dim,
            n_embd,
            n_ff: self.size("feed_forward_length")?,
            rms_eps: self.number("attention.layer_norm_rms_epsilon")?,
            vocab_size: self.value("tokenizer.ggml.tokens")?.to_vec()?.len(),
            kind,
        };
        let tied = !self.content.tensor_infos.contains_key("output.weight");
        Model::from_tensors(cfg, tied, |name| {
            let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu)?;
            let numbers: Vec<f32> = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            let halves = matches!(kind, Architecture::Gemma3 { .. })
                && ["attn_q.", "attn_k.", "attn_q_norm.", "attn_k_norm."]
                    .iter()
                    .any(|part| name.contains(part));
            // The norms have a number for each of a head's places, the products a row.
            let row = if name.contains("norm") { 1 } else { n_embd };
            Ok(if halves { adjacent_pairs(&numbers, head_dim, row) } else { numbers })
        })
    }

    /// The token that a text begins with, if the model wants one.
    pub fn bos(&self) -> Result<Option<u32>> {
        match self.content.metadata.get("tokenizer.ggml.add_bos_token") {
            Some(add) if add.to_bool()? => Ok(Some(self.value("tokenizer.ggml.bos_token_id")?.to_u32()?)),
            _ => Ok(None),
        }
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &**self.value("tokenizer.ggml.model")?.to_string()? {
            "llama" => self.sentence_pieces(),
            _ => self.byte_level(),
        }
    }

    /// SentencePiece's BPE, which joins the two neighbours that make the token with the highest score, and spells what is not in the
    /// vocabulary in bytes. Any two tokens that make a third are a merge.
    fn sentence_pieces(&self) -> Result<Tokenizer> {
        let tokens = self.list("tokenizer.ggml.tokens", |v| v.to_string().cloned())?;
        let kinds = self.list("tokenizer.ggml.token_type", |v| v.to_i32().map(i64::from))?;
        let scores = self.list("tokenizer.ggml.scores", Value::to_f32)?;
        let numbers: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
        let mut order: Vec<usize> = (0..tokens.len()).filter(|&i| kinds[i] == NORMAL).collect();
        order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
        let is_part = |part: &str| numbers.get(part).is_some_and(|&i| kinds[i] == NORMAL);
        let merges: Vec<[&str; 2]> = (order.iter().map(|&i| tokens[i].as_str()))
            .flat_map(|token| token.char_indices().skip(1).map(move |(at, _)| token.split_at(at)))
            .filter(|(a, b)| is_part(a) && is_part(b))
            .map(|(a, b)| [a, b])
            .collect();
        let added: Vec<_> = (0..tokens.len())
            .filter(|&i| kinds[i] == CONTROL || kinds[i] == USER_DEFINED)
            .map(|i| added(i, &tokens[i], kinds[i] == CONTROL))
            .collect();
        let all = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
            ] },
            "model": { "type": "BPE", "vocab": numbers, "merges": merges, "byte_fallback": true, "fuse_unk": true },
        });
        Tokenizer::from_bytes(serde_json::to_vec(&all)?).map_err(anyhow::Error::from_boxed)
    }

    /// Byte-level BPE whose digits stand alone, which llama.cpp calls smollm.
    fn byte_level(&self) -> Result<Tokenizer> {
        let pre = self.value("tokenizer.ggml.pre")?.to_string()?;
        ensure!(pre == "smollm", "the pre-tokenizer is {pre}, not smollm");
        let text = |v: &Value| v.to_string().cloned();
        let tokens = self.list("tokenizer.ggml.tokens", text)?;
        let kinds = self.list("tokenizer.ggml.token_type", |v| v.to_i32().map(i64::from))?;
        let vocabulary: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(i, token)| (token.clone(), json!(i))).collect();
        let special: Vec<_> =
            (0..tokens.len()).filter(|&i| kinds[i] == CONTROL).map(|i| added(i, &tokens[i], true)).collect();
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        let all = json!({
            "version": "1.0",
            "added_tokens": special,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{ "type": "Digits", "individual_digits": true }, bytes],
            },
            "decoder": bytes,
            "model": { "type": "BPE", "vocab": vocabulary, "merges": self.list("tokenizer.ggml.merges", text)? },
        });
        Tokenizer::from_bytes(serde_json::to_vec(&all)?).map_err(anyhow::Error::from_boxed)
    }
}

fn added(id: usize, content: &str, special: bool) -> serde_json::Value {
    json!({ "id": id, "content": content, "special": special, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false })
}

/// Heads of `head_dim` rows whose pairs are half a head apart, with each pair's rows one after the other.
fn adjacent_pairs(x: &[f32], head_dim: usize, row: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let order = (0..head_dim).map(|i| i % 2 * half + i / 2);
    let heads = x.chunks_exact(head_dim * row);
    heads.flat_map(|head| order.clone().flat_map(|i| &head[i * row..(i + 1) * row])).copied().collect()
}

/// Tokens of a text.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(anyhow::Error::from_boxed)?;
    Ok(encoding.get_ids().to_vec())
}
