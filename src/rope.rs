//! Rotary position embedding: queries that were taken before it, turned to one position.
//!
//! ```text
//! (x, y) → (x cos φ − y sin φ, x sin φ + y cos φ) · magnitude        φ = position · frequency of the pair
//! ```
//!
//! The model's keys were turned by its own rule; what that says is in the frequencies, one per pair of elements: `base^(−2i / n_rot)`, or
//! what YaRN (arXiv 2309.00071), Llama 3 and others make of them. YaRN also has a magnitude, on sines and cosines alike.
//!
//! Source: RoFormer, arXiv 2104.09864.

use crate::error::{ErrorKind, Result, ensure};
use crate::params::{MAX_HEAD_DIM, Shape};
use crate::view::{Dtype, Tensor, TensorMut};

/// Which elements are a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum RopeStyle {
    /// `2i` and `2i + 1`: the paper's, GPT-J's, Llama's as Meta published it.
    #[default]
    Pairs = 0,
    /// `i` and `i + n_rot / 2`: GPT-NeoX's, and all of Hugging Face's.
    Halves = 1,
}

impl RopeStyle {
    /// The elements of pair `i`.
    pub(crate) fn pair(self, i: usize, n_pairs: usize) -> (usize, usize) {
        match self {
            Self::Pairs => (2 * i, 2 * i + 1),
            Self::Halves => (i, i + n_pairs),
        }
    }
}

/// How queries are turned.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Radians per position of each pair, finite. Twice as many elements are turned, the first of each query; the others are copied.
    pub frequencies: &'a [f32],
    /// Which elements are a pair.
    pub style: RopeStyle,
    /// What the model multiplies sines and cosines by, finite and above 0: YaRN's attention factor, else 1.
    pub magnitude: f32,
}

impl Rope<'_> {
    /// For queries of `dim` elements.
    pub(crate) fn validate(&self, dim: usize) -> Result<()> {
        ensure(2 * self.frequencies.len() <= dim, ErrorKind::Shape, c"n_rot")?;
        ensure(self.frequencies.iter().all(|f| f.is_finite()), ErrorKind::NonFinite, c"frequencies")?;
        ensure(self.magnitude.is_finite() && self.magnitude > 0.0, ErrorKind::Argument, c"magnitude")
    }
}

/// Turns `n_queries` queries of every query head to `position`.
///
/// Of the shape query heads and `head_dim_k` are used. `q` is `[n_queries, n_q_heads, head_dim_k]` before RoPE; `out` is f32 of the same
/// shape. Angles are formed in f64. NaN in `q` becomes NaN in `out`, which scoring finds.
pub fn rotate(
    shape: &Shape,
    rope: &Rope,
    n_queries: usize,
    position: u32,
    q: &Tensor,
    out: &mut TensorMut,
) -> Result<()> {
    shape.validate_heads()?;
    check(shape, rope, n_queries, q, out).map_err(|e| e.at_layer(shape.layer))?;
    let n_pairs = rope.frequencies.len();
    let mut turns = [(0.0f32, 0.0f32); MAX_HEAD_DIM / 2];
    let turns = &mut turns[..n_pairs];
    for (turn, &frequency) in turns.iter_mut().zip(rope.frequencies) {
        let (sin, cos) = libm::sincos(position as f64 * frequency as f64);
        let magnitude = rope.magnitude as f64;
        *turn = ((cos * magnitude) as f32, (sin * magnitude) as f32);
    }
    let mut row = [0.0f32; MAX_HEAD_DIM];
    let row = &mut row[..shape.head_dim_k];
    for h in 0..shape.n_q_heads {
        for j in 0..n_queries {
            q.widen(h, j, row);
            for (i, &(cos, sin)) in turns.iter().enumerate() {
                let (a, b) = rope.style.pair(i, n_pairs);
                let (x, y) = (row[a], row[b]);
                (row[a], row[b]) = (x * cos - y * sin, x * sin + y * cos);
            }
            out.write_row(h, j, row);
        }
    }
    Ok(())
}

fn check(shape: &Shape, rope: &Rope, n_queries: usize, q: &Tensor, out: &TensorMut) -> Result<()> {
    ensure(n_queries > 0, ErrorKind::Shape, c"n_queries")?;
    rope.validate(shape.head_dim_k)?;
    let fits = |t: &Tensor| {
        let heads = shape.n_q_heads;
        t.n_heads() == heads && t.dim() == shape.head_dim_k && (0..heads).all(|h| t.rows(h) >= n_queries)
    };
    ensure(fits(q), ErrorKind::Shape, c"q")?;
    ensure(out.as_tensor().dtype() == Dtype::F32, ErrorKind::Dtype, c"out")?;
    ensure(fits(&out.as_tensor()), ErrorKind::Shape, c"out")
}
