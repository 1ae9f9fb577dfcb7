//! A llama in f32: prefill with full attention, and decoding over caches that the library has compacted. It is the small model of
//! `eval/model/recall.safetensors` or a published one (`published/gguf.rs`).
//!
//! Prefill has its own attention, blockwise over GEMM, so that what every method is compared with owes nothing to the
//! library. Decoding goes through [`lava::attend`], with the whole cache as well as with a part of it.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::f16;
use safetensors::SafeTensors;

use crate::cache::Cache;

/// Sizes, from the file's metadata.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub n_layers: usize,
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub n_embd: usize,
    pub n_ff: usize,
    pub rms_eps: f32,
    pub vocab_size: usize,
    pub kind: Architecture,
}

/// What differs between the architectures beside sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Architecture {
    Llama {
        rope_theta: f64,
    },
    /// Gemma 3 (arXiv 2503.19786): embeddings times the square root of their width, norms of queries and keys and behind attention and
    /// feed-forward, GELU, and of each six layers the first five with a sliding window of so many keys and RoPE's base 10,000.
    Gemma3 {
        rope_theta: f64,
        sliding_window: usize,
    },
}

impl Architecture {
    /// RoPE's base and the sliding window of layer `l`.
    fn layer(self, l: usize) -> (f64, Option<usize>) {
        match self {
            Self::Llama { rope_theta } => (rope_theta, None),
            Self::Gemma3 { sliding_window, .. } if l % 6 < 5 => (10_000.0, Some(sliding_window)),
            Self::Gemma3 { rope_theta, .. } => (rope_theta, None),
        }
    }
}

impl Config {
    pub fn group_size(&self) -> usize {
        self.n_q_heads / self.n_kv_heads
    }
    pub fn q_width(&self) -> usize {
        self.n_q_heads * self.head_dim
    }
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// Weights are `[out, in]`.
pub struct Block {
    attn_norm: Vec<f32>,
    /// Queries, keys and values in one product.
    qkv: Vec<f32>,
    pub attn_output: Vec<f32>,
    ffn_norm: Vec<f32>,
    /// Gate and up in one product.
    gate_up: Vec<f32>,
    ffn_down: Vec<f32>,
    more_norms: Option<MoreNorms>,
    rope_theta: f64,
    /// A query sees so many keys, its own among them; `None`: all.
    pub sliding_window: Option<usize>,
}

/// Gemma's, beside a llama's.
struct MoreNorms {
    q: Vec<f32>,
    k: Vec<f32>,
    post_attn: Vec<f32>,
    post_ffn: Vec<f32>,
}

pub struct Model {
    pub cfg: Config,
    pub blocks: Vec<Block>,
    token_embd: Vec<f32>,
    output_norm: Vec<f32>,
    /// `None`: the embeddings do both.
    output: Option<Vec<f32>>,
}

/// What prefill leaves of a layer.
pub struct LayerState {
    /// Queries of the last tokens after RoPE, at most [`LAST_QUERIES`] of them: `[n, n_q_heads, head_dim]`.
    pub q: Vec<f32>,
    /// Queries of all tokens before RoPE: `[n_tokens, n_q_heads, head_dim]`. Those that [`Model::decode_many`] adds have none.
    pub before_rope: Vec<f32>,
    /// Keys after RoPE: `[n_tokens, n_kv_heads, head_dim]`.
    pub k: Vec<f16>,
    /// Values: `[n_tokens, n_kv_heads, head_dim]`.
    pub v: Vec<f16>,
    /// Mean L2 norm of the residual stream at those last tokens, behind the attention.
    pub residual_norm: f32,
    /// Mean root mean square of what the output projection made at those last tokens, which a norm behind it divides by; 1 without one.
    pub output_rms: f32,
    /// As its block has it.
    pub sliding_window: Option<usize>,
}

/// The longest observation window that a method may ask for.
pub const LAST_QUERIES: usize = 64;

/// A prompt's cache, before anything is evicted.
pub struct Prefill {
    pub n_tokens: usize,
    pub tokens: Vec<u32>,
    pub layers: Vec<LayerState>,
}

/// What decoding did in a layer: queries, new keys and values after RoPE, attention output before the projection.
#[derive(Default)]
pub struct LayerTrace {
    pub q: Vec<f32>,
    pub k: Vec<f16>,
    pub v: Vec<f16>,
    pub out: Vec<f32>,
}

/// Queries that look at the keys together in prefill.
const QUERY_BLOCK: usize = 64;

/// `y[n, out] = x[n, inner] · wᵀ`, `w` `[out, inner]`.
fn project(x: &[f32], w: &[f32], inner: usize) -> Vec<f32> {
    let (n, out) = (x.len() / inner, w.len() / inner);
    let mut y = vec![0.0; n * out];
    product(&mut y, out, x, inner, w, (1, inner), (n, out, inner));
    y
}

/// `y[m, n] = x[m, k] · b`, where `b[k, n]` has the strides (row, column); rows of `y` and `x` are so far apart.
pub(crate) fn product(
    y: &mut [f32],
    y_row: usize,
    x: &[f32],
    x_row: usize,
    b: &[f32],
    b_strides: (usize, usize),
    (m, n, k): (usize, usize, usize),
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(y.len() >= (m - 1) * y_row + n && x.len() >= (m - 1) * x_row + k);
    assert!(b.len() > (k - 1) * b_strides.0 + (n - 1) * b_strides.1);
    // SAFETY: the asserts hold the largest offset of each operand inside its slice; y is borrowed mutably, so apart.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            y_row as isize,
            false,
            x.as_ptr(),
            1,
            x_row as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `e^x` for `x ≤ 0`, within 2e-7 of it; a loop over it becomes vector instructions.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let t = (x * std::f32::consts::LOG2_E).max(-126.0);
    let n = (t - 0.5) as i32 as f32;
    let f = (t - n) * std::f32::consts::LN_2;
    let p = 1.0
        + f * (1.0
            + f * (0.5
                + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0 + f / 5040.0))))));
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

impl Model {
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let meta: &HashMap<String, String> =
            header.metadata().as_ref().context("the weights have no metadata")?;
        let number = |name: &str| -> Result<f64> {
            let text = meta.get(name).with_context(|| format!("metadata lacks {name}"))?;
            text.parse().with_context(|| format!("{name} = {text} is no number"))
        };
        let size = |name: &str| Ok::<_, anyhow::Error>(number(name)? as usize);
        let cfg = Config {
            n_layers: size("n_layers")?,
            n_q_heads: size("n_q_heads")?,
            n_kv_heads: size("n_kv_heads")?,
            head_dim: size("head_dim")?,
            n_embd: size("n_embd")?,
            n_ff: size("n_ff")?,
            rms_eps: number("rms_eps")? as f32,
            vocab_size: size("vocab_size")?,
            kind: Architecture::Llama { rope_theta: number("rope_theta")? },
        };
        let file = SafeTensors::deserialize(&bytes)?;
        Self::from_tensors(cfg, false, |name| Ok(numbers(&file.tensor(name)?)))
    }

    /// From tensors by their GGUF names, whose queries and keys are laid out for RoPE on adjacent pairs.
    pub fn from_tensors(
        cfg: Config,
        tied: bool,
        mut tensor: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let mut read = |name: String, n: usize| {
            let numbers = tensor(&format!("{name}.weight"))?;
            ensure!(numbers.len() == n, "{name} has {} numbers, not {n}", numbers.len());
            Ok(numbers)
        };
        let (e, ff) = (cfg.n_embd, cfg.n_ff);
        let blocks = (0..cfg.n_layers)
            .map(|l| {
                let mut read = |name: &str, n| read(format!("blk.{l}.{name}"), n);
                let more_norms = match cfg.kind {
                    Architecture::Llama { .. } => None,
                    Architecture::Gemma3 { .. } => Some(MoreNorms {
                        q: read("attn_q_norm", cfg.head_dim)?,
                        k: read("attn_k_norm", cfg.head_dim)?,
                        post_attn: read("post_attention_norm", e)?,
                        post_ffn: read("post_ffw_norm", e)?,
                    }),
                };
                let (rope_theta, sliding_window) = cfg.kind.layer(l);
                Ok(Block {
                    attn_norm: read("attn_norm", e)?,
                    qkv: [
                        read("attn_q", cfg.q_width() * e)?,
                        read("attn_k", cfg.kv_width() * e)?,
                        read("attn_v", cfg.kv_width() * e)?,
                    ]
                    .concat(),
                    attn_output: read("attn_output", e * cfg.q_width())?,
                    ffn_norm: read("ffn_norm", e)?,
                    gate_up: [read("ffn_gate", ff * e)?, read("ffn_up", ff * e)?].concat(),
                    ffn_down: read("ffn_down", e * ff)?,
                    more_norms,
                    rope_theta,
                    sliding_window,
                })
            })
            .collect::<Result<_>>()?;
        let token_embd = read("token_embd".into(), cfg.vocab_size * e)?;
        let output_norm = read("output_norm".into(), e)?;
        let output = if tied { None } else { Some(read("output".into(), cfg.vocab_size * e)?) };
        Ok(Self { cfg, blocks, token_embd, output_norm, output })
    }

    /// Full causal attention over a prompt.
    pub fn prefill(&self, tokens: &[u32]) -> Prefill {
        let cfg = &self.cfg;
        let last = tokens.len().min(LAST_QUERIES);
        let mut x = self.embed(tokens);
        let mut layers = Vec::with_capacity(cfg.n_layers);
        for block in &self.blocks {
            let (mut q, mut k, v) = self.qkv(block, &x);
            let before_rope = q.clone();
            self.rotate(block, &mut q, cfg.n_q_heads, |i| i);
            self.rotate(block, &mut k, cfg.n_kv_heads, |i| i);
            let out = self.causal_attention(&q, &k, &v, block.sliding_window);
            let output_rms = self.add_attention(block, &mut x, &out, last);
            let norms = x[(tokens.len() - last) * cfg.n_embd..].chunks_exact(cfg.n_embd).map(l2);
            layers.push(LayerState {
                q: q[(tokens.len() - last) * cfg.q_width()..].to_vec(),
                before_rope,
                k: to_f16(&k),
                v: to_f16(&v),
                residual_norm: norms.sum::<f32>() / last as f32,
                output_rms,
                sliding_window: block.sliding_window,
            });
            self.feed_forward(block, &mut x);
        }
        Prefill { n_tokens: tokens.len(), tokens: tokens.to_vec(), layers }
    }

    /// Given tokens, one after the other, over compressed caches that have room for them: logits `[n, vocab_size]`.
    pub fn decode(
        &self,
        caches: &mut [Cache],
        n_prompt: usize,
        tokens: &[u32],
        trace: Option<&mut Vec<LayerTrace>>,
    ) -> Result<Vec<f32>> {
        Ok(self.logits(&self.decode_many(&mut [caches], n_prompt, &[(0, tokens)], trace)?))
    }

    /// Several sequences of the same length in one product each, `sequences` saying over which of `sets` of caches each goes: what
    /// [`Model::logits`] wants, `[sequences, n, n_embd]`. What a set holds after its prompt is overwritten by each of its sequences.
    pub fn decode_many(
        &self,
        sets: &mut [&mut [Cache]],
        n_prompt: usize,
        sequences: &[(usize, &[u32])],
        mut trace: Option<&mut Vec<LayerTrace>>,
    ) -> Result<Vec<f32>> {
        let cfg = &self.cfg;
        let n = sequences.first().map_or(0, |(_, tokens)| tokens.len());
        ensure!(sequences.iter().all(|(_, tokens)| tokens.len() == n), "sequences of unlike length");
        let mut x: Vec<f32> = sequences.iter().flat_map(|(_, tokens)| self.embed(tokens)).collect();
        for (l, block) in self.blocks.iter().enumerate() {
            let (mut q, mut k, v) = self.qkv(block, &x);
            self.rotate(block, &mut q, cfg.n_q_heads, |i| n_prompt + i % n);
            self.rotate(block, &mut k, cfg.n_kv_heads, |i| n_prompt + i % n);
            let (k, v) = (to_f16(&k), to_f16(&v));
            let mut out = Vec::with_capacity(q.len());
            let (q_len, kv_len) = (n * cfg.q_width(), n * cfg.kv_width());
            for (i, (set, _)) in sequences.iter().enumerate() {
                let own = i * kv_len..(i + 1) * kv_len;
                let cache = &mut sets[*set][l];
                cache.set_new(&k[own.clone()], &v[own]);
                out.extend(cache.attend(cfg, &q[i * q_len..(i + 1) * q_len])?);
            }
            self.add_attention(block, &mut x, &out, n);
            if let Some(trace) = &mut trace {
                trace.push(LayerTrace { q, k, v, out });
            }
            self.feed_forward(block, &mut x);
        }
        self.rms_norm(&mut x, &self.output_norm);
        Ok(x)
    }

    /// Logits `[n, vocab_size]` of rows of [`Model::decode_many`].
    pub fn logits(&self, rows: &[f32]) -> Vec<f32> {
        project(rows, self.output.as_ref().unwrap_or(&self.token_embd), self.cfg.n_embd)
    }

    fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let e = self.cfg.n_embd;
        let factor = match self.cfg.kind {
            Architecture::Llama { .. } => 1.0,
            Architecture::Gemma3 { .. } => (e as f32).sqrt(),
        };
        tokens.iter().flat_map(|&t| &self.token_embd[t as usize * e..][..e]).map(|x| x * factor).collect()
    }

    fn rms_norm(&self, x: &mut [f32], weight: &[f32]) {
        for row in x.chunks_exact_mut(weight.len()) {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / weight.len() as f32;
            let factor = 1.0 / (mean + self.cfg.rms_eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(x, w)| *x *= factor * w);
        }
    }

    /// Each `[n, heads, head_dim]`, before RoPE.
    fn qkv(&self, block: &Block, x: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let cfg = &self.cfg;
        let mut h = x.to_vec();
        self.rms_norm(&mut h, &block.attn_norm);
        let (qw, kw) = (cfg.q_width(), cfg.kv_width());
        let all = project(&h, &block.qkv, cfg.n_embd);
        let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
        for row in all.chunks_exact(qw + 2 * kw) {
            q.extend_from_slice(&row[..qw]);
            k.extend_from_slice(&row[qw..qw + kw]);
            v.extend_from_slice(&row[qw + kw..]);
        }
        if let Some(norms) = &block.more_norms {
            self.rms_norm(&mut q, &norms.q);
            self.rms_norm(&mut k, &norms.k);
        }
        (q, k, v)
    }

    /// RoPE on adjacent pairs of `[n, heads, head_dim]`; row `i` stands at `position(i)`.
    pub fn rotate(&self, block: &Block, x: &mut [f32], heads: usize, position: impl Fn(usize) -> usize) {
        let d = self.cfg.head_dim;
        let frequencies = self.frequencies(block);
        for (i, row) in x.chunks_exact_mut(heads * d).enumerate() {
            let rotation: Vec<(f32, f32)> = frequencies
                .iter()
                .map(|f| (position(i) as f64 * f).sin_cos())
                .map(|(sin, cos)| (sin as f32, cos as f32))
                .collect();
            for head in row.chunks_exact_mut(d) {
                for (pair, (sin, cos)) in head.chunks_exact_mut(2).zip(&rotation) {
                    (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
                }
            }
        }
    }

    /// A layer's radians per position in RoPE.
    pub fn frequencies(&self, block: &Block) -> Vec<f64> {
        let d = self.cfg.head_dim;
        (0..d / 2).map(|i| block.rope_theta.powf(-2.0 * i as f64 / d as f64)).collect()
    }

    /// Query blocks of one KV head's whole group at a time: logits, softmax, product with V.
    fn causal_attention(&self, q: &[f32], k: &[f32], v: &[f32], sliding: Option<usize>) -> Vec<f32> {
        let cfg = &self.cfg;
        let (d, qw, kw, group) = (cfg.head_dim, cfg.q_width(), cfg.kv_width(), cfg.group_size());
        let n = q.len() / qw;
        let scale = 1.0 / (d as f32).sqrt();
        let mut out = vec![0.0; q.len()];
        let mut tile = vec![0.0; QUERY_BLOCK * n];
        for first in (0..n).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(n - first);
            let n_keys = first + rows;
            for h in 0..cfg.n_q_heads {
                let (q_at, kv_at) = (first * qw + h * d, h / group * d);
                product(&mut tile, n_keys, &q[q_at..], qw, &k[kv_at..], (1, kw), (rows, n_keys, d));
                for (i, row) in tile.chunks_exact_mut(n_keys).take(rows).enumerate() {
                    let (seen, unseen) = row.split_at_mut(first + i + 1);
                    let too_far = sliding.map_or(0, |keys| seen.len().saturating_sub(keys));
                    let (behind, seen) = seen.split_at_mut(too_far);
                    behind.fill(0.0);
                    let max = lanes(seen, f32::NEG_INFINITY, |m, x| if x > m { x } else { m });
                    seen.iter_mut().for_each(|x| *x = exp((*x - max) * scale));
                    let inverse = 1.0 / lanes(seen, 0.0, |sum, x| sum + x);
                    seen.iter_mut().for_each(|x| *x *= inverse);
                    unseen.fill(0.0);
                }
                product(&mut out[q_at..], qw, &tile, n_keys, &v[kv_at..], (kw, 1), (rows, d, n_keys));
            }
        }
        out
    }

    /// Returns the mean root mean square, over the `last` tokens, of what a norm behind the projection divides by; 1 without one.
    fn add_attention(&self, block: &Block, x: &mut [f32], out: &[f32], last: usize) -> f32 {
        let e = self.cfg.n_embd;
        let mut y = project(out, &block.attn_output, self.cfg.q_width());
        let mut rms = 1.0;
        if let Some(norms) = &block.more_norms {
            let rows = y[y.len() - last * e..].chunks_exact(e);
            rms = rows.map(|row| l2(row) / (e as f32).sqrt()).sum::<f32>() / last as f32;
            self.rms_norm(&mut y, &norms.post_attn);
        }
        x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
        rms
    }

    /// What element `i` of the output projection's result is multiplied by in the norm behind it; 1 without one.
    pub fn output_gain(&self, l: usize, i: usize) -> f32 {
        self.blocks[l].more_norms.as_ref().map_or(1.0, |norms| norms.post_attn[i])
    }

    fn feed_forward(&self, block: &Block, x: &mut [f32]) {
        let (e, ff) = (self.cfg.n_embd, self.cfg.n_ff);
        let mut h = x.to_vec();
        self.rms_norm(&mut h, &block.ffn_norm);
        let both = project(&h, &block.gate_up, e);
        let activation: fn(f32) -> f32 = match self.cfg.kind {
            Architecture::Llama { .. } => silu,
            Architecture::Gemma3 { .. } => gelu,
        };
        let inner: Vec<f32> = both
            .chunks_exact(2 * ff)
            .flat_map(|row| {
                let (gate, up) = row.split_at(ff);
                gate.iter().zip(up).map(move |(&g, u)| activation(g) * u)
            })
            .collect();
        let mut y = project(&inner, &block.ffn_down, ff);
        if let Some(norms) = &block.more_norms {
            self.rms_norm(&mut y, &norms.post_ffn);
        }
        x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// GELU by its approximation with tanh.
fn gelu(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// Folds sixteen streams side by side, then those, in a fixed order: the compiler may use vectors.
fn lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, &x)| *l = f(*l, x));
    }
    lanes.iter().chain(rest).fold(start, |a, &x| f(a, x))
}

pub fn l2(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

pub fn to_f16(x: &[f32]) -> Vec<f16> {
    x.iter().map(|&x| f16::from_f32(x)).collect()
}

/// A tensor's numbers in f32.
pub fn numbers(tensor: &safetensors::tensor::TensorView) -> Vec<f32> {
    let bytes = tensor.data();
    match tensor.dtype() {
        safetensors::Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        safetensors::Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        safetensors::Dtype::I32 => {
            bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect()
        }
        other => panic!("no reader for {other:?}"),
    }
}
