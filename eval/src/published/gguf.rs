//! Weights and tokenizer of a llama out of its GGUF file.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::model::{Config, Model};

/// Special tokens, of GGUF's kinds of token.
const CONTROL: i64 = 3;

pub struct Gguf {
    content: Content,
    file: BufReader<File>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| {
            format!("{} is not there: run eval/fetch.sh, which `make eval` does", path.display())
        })?;
        let mut file = BufReader::new(file);
        Ok(Self { content: Content::read(&mut file)?, file })
    }

    fn value(&self, name: &str) -> Result<&Value> {
        self.content.metadata.get(name).with_context(|| format!("the model's metadata lacks {name}"))
    }

    fn size(&self, name: &str) -> Result<usize> {
        Ok(self.value(&format!("llama.{name}"))?.to_u32()? as usize)
    }

    fn list<T>(&self, name: &str, item: impl Fn(&Value) -> candle_core::Result<T>) -> Result<Vec<T>> {
        Ok(self.value(name)?.to_vec()?.iter().map(item).collect::<candle_core::Result<_>>()?)
    }

    /// The model in f32. llama.cpp's files have the rows of queries and keys in the order of RoPE on adjacent pairs, as ours does.
    pub fn model(&mut self) -> Result<Model> {
        let (n_embd, n_q_heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = n_embd / n_q_heads;
        ensure!(
            self.size("rope.dimension_count")? == head_dim,
            "RoPE over a part of the head is not supported"
        );
        let cfg = Config {
            n_layers: self.size("block_count")?,
            n_q_heads,
            n_kv_heads: self.size("attention.head_count_kv")?,
            head_dim,
            n_embd,
            n_ff: self.size("feed_forward_length")?,
            rope_theta: self.value("llama.rope.freq_base")?.to_f32()? as f64,
            rms_eps: self.value("llama.attention.layer_norm_rms_epsilon")?.to_f32()?,
            vocab_size: self.size("vocab_size")?,
        };
        let tied = !self.content.tensor_infos.contains_key("output.weight");
        Model::from_tensors(cfg, tied, |name| {
            let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu)?;
            Ok(tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?)
        })
    }

    /// Byte-level BPE whose digits stand alone, which llama.cpp calls smollm.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let pre = self.value("tokenizer.ggml.pre")?.to_string()?;
        ensure!(pre == "smollm", "the pre-tokenizer is {pre}, not smollm");
        let text = |v: &Value| v.to_string().cloned();
        let tokens = self.list("tokenizer.ggml.tokens", text)?;
        let kinds = self.list("tokenizer.ggml.token_type", |v| v.to_i32().map(i64::from))?;
        let vocabulary: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(i, token)| (token.clone(), json!(i))).collect();
        let special: Vec<_> = (0..tokens.len())
            .filter(|&i| kinds[i] == CONTROL)
            .map(|i| {
                json!({ "id": i, "content": tokens[i], "special": true, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false })
            })
            .collect();
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

/// Tokens of a text.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(anyhow::Error::from_boxed)?;
    Ok(encoding.get_ids().to_vec())
}
