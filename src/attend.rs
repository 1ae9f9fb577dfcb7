//! Attention of new queries over the compressed cache: heads of different lengths, grouped queries, no copy of K or V.
//!
//! Online softmax: rows are taken in blocks; each query keeps its maximum, its sum and a weighted sum of values, rescaled
//! when the maximum grows. Each kept row is read once for all query heads of its group.

use crate::backend::scalar::exp2;
use crate::backend::{Backend, Block, KEY_BLOCK, UNSEEN};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{LseBase, MAX_HEAD_DIM, Scale, Shape, split, validate_logit_options};
use crate::view::{Dtype, Tensor, TensorMut};
use crate::workspace::{Carver, size_of_carve};

/// New tokens that are taken over the cache together.
const QUERY_TILE: usize = 8;

/// Options of [`attend`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AttendParams<'a> {
    /// Factor on `q · k`. `None`: `1 / sqrt(head_dim_k)`.
    pub scale: Option<f32>,
    /// Logit soft-cap, as in `ScoreParams`.
    pub softcap: Option<f32>,
    /// Learned attention sinks: one logit per query head, neither scaled nor capped, that is part of the softmax's
    /// denominator.
    pub sink_logits: Option<&'a [f32]>,
    /// The base of the log-sum-exp that is returned.
    pub lse_base: LseBase,
    /// Whether each head's last `n_queries` rows are the new tokens' own, so that query `t` sees all rows but the last
    /// `n_queries − 1 − t`. Otherwise every query sees every row.
    pub causal: bool,
    /// Where the rows are in the text. A sliding window needs it.
    pub positions: Option<Positions<'a>>,
}

/// True positions of the rows.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// Positions of each head's first rows, as `select` returned them.
    pub kept_indices: &'a [u32],
    /// Their prefix sum, `n_kv_heads + 1` entries.
    pub cu_kept: &'a [u32],
    /// Position of each head's next row after the kept ones; later rows follow it one by one.
    pub n_base: u32,
}

impl Positions<'_> {
    fn of(&self, head: usize, row: usize) -> u64 {
        let kept = &self.kept_indices[self.cu_kept[head] as usize..self.cu_kept[head + 1] as usize];
        match kept.get(row) {
            Some(&position) => position as u64,
            None => self.n_base as u64 + (row - kept.len()) as u64,
        }
    }

    fn validate(&self, n_kv_heads: usize) -> Result<()> {
        ensure(self.cu_kept.len() > n_kv_heads, ErrorKind::BufferSize, c"cu_kept")?;
        ensure(self.cu_kept[..=n_kv_heads].is_sorted(), ErrorKind::Indices, c"cu_kept")?;
        let n = self.cu_kept[n_kv_heads] as usize;
        ensure(n <= self.kept_indices.len(), ErrorKind::BufferSize, c"kept_indices")
    }
}

/// What [`attend`] reads.
#[derive(Clone, Copy, Debug)]
pub struct AttendInputs<'a> {
    /// New queries after RoPE: `[n_queries, n_q_heads, head_dim_k]`.
    pub q: Tensor<'a>,
    /// Keys: `[rows of each head, n_kv_heads, head_dim_k]`.
    pub k: Tensor<'a>,
    /// Values: `[rows of each head, n_kv_heads, head_dim_v]`.
    pub v: Tensor<'a>,
}

struct Buffers<'a> {
    q: &'a mut [f32],
    /// `[queries, KEY_BLOCK]`: logits, then weights.
    tile: &'a mut [f32],
    acc: &'a mut [f32],
    max: &'a mut [f32],
    old_max: &'a mut [f32],
    sum: &'a mut [f64],
}

impl<'a> Buffers<'a> {
    fn carve(c: &mut Carver<'a>, shape: &Shape, n_queries: usize) -> Result<Self> {
        let rows = shape.group_size().saturating_mul(QUERY_TILE.min(n_queries));
        Ok(Self {
            q: c.take(rows.saturating_mul(shape.head_dim_k))?,
            tile: c.take(rows.saturating_mul(KEY_BLOCK))?,
            acc: c.take(rows.saturating_mul(shape.head_dim_v))?,
            max: c.take(rows)?,
            old_max: c.take(rows)?,
            sum: c.take(rows)?,
        })
    }
}

/// Bytes of workspace that one part of [`attend`] needs.
pub fn workspace_size(shape: &Shape, n_queries: usize) -> Result<usize> {
    check_shape(shape, n_queries)?;
    size_of_carve(|c| Buffers::carve(c, shape, n_queries)).map_err(|e| e.at_layer(shape.layer))
}

/// What attention over a compressed cache uses of a shape: heads, head dimensions and the sliding window.
fn check_shape(shape: &Shape, n_queries: usize) -> Result<()> {
    shape.validate_heads()?;
    let at_layer = |e: Error| e.at_layer(shape.layer);
    ensure(shape.sliding_window != Some(0), ErrorKind::Shape, c"sliding_window").map_err(at_layer)?;
    ensure(n_queries > 0, ErrorKind::Shape, c"n_queries").map_err(at_layer)
}

/// Attention of `n_queries` new queries over the rows of `k` and `v`, for the KV heads of one part.
///
/// Of the shape, heads, head dimensions and the sliding window are used. `out` is f32 `[n_queries, n_q_heads,
/// head_dim_v]`; `lse`, if wanted, f32 `[n_queries, n_q_heads, 1]`, includes the sinks. A query that sees no row gets
/// zeros, and its sink or −∞. Parts write different query heads. The result does not depend on `n_parts`.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn attend(
    backend: Backend,
    shape: &Shape,
    params: &AttendParams,
    n_queries: usize,
    inputs: &AttendInputs,
    out: &mut TensorMut,
    mut lse: Option<&mut TensorMut>,
    part: usize,
    n_parts: usize,
    workspace: &mut Carver,
) -> Result<()> {
    check_shape(shape, n_queries)?;
    let at_layer = |e: Error| e.at_layer(shape.layer);
    check_arguments(shape, params, n_queries, inputs, out, lse.as_deref()).map_err(at_layer)?;
    let heads = split(shape.n_kv_heads, part, n_parts).map_err(at_layer)?;
    let mut b = Buffers::carve(workspace, shape, n_queries).map_err(at_layer)?;
    for head in heads {
        for first in (0..n_queries).step_by(QUERY_TILE) {
            let n = QUERY_TILE.min(n_queries - first);
            let tile = Tile { backend, shape, params, inputs, n_queries, head, first, n };
            tile.run(&mut b).map_err(|e| at_layer(e.at_head(head)))?;
            tile.write(&b, out, lse.as_deref_mut());
        }
    }
    Ok(())
}

fn check_arguments(
    shape: &Shape,
    params: &AttendParams,
    n_queries: usize,
    AttendInputs { q, k, v }: &AttendInputs,
    out: &TensorMut,
    lse: Option<&TensorMut>,
) -> Result<()> {
    validate_logit_options(params.scale, params.softcap, params.sink_logits, shape.n_q_heads)?;
    let fits = |t: &Tensor, heads: usize, dim: usize, rows: &dyn Fn(usize) -> bool| {
        t.n_heads() == heads && t.dim() == dim && (0..heads).all(rows)
    };
    ensure(fits(q, shape.n_q_heads, shape.head_dim_k, &|h| q.rows(h) >= n_queries), ErrorKind::Shape, c"q")?;
    ensure(
        fits(k, shape.n_kv_heads, shape.head_dim_k, &|h| !params.causal || k.rows(h) >= n_queries),
        ErrorKind::Shape,
        c"k",
    )?;
    ensure(fits(v, shape.n_kv_heads, shape.head_dim_v, &|h| v.rows(h) >= k.rows(h)), ErrorKind::Shape, c"v")?;
    let result = |t: &TensorMut, dim: usize, name| {
        let t = t.as_tensor();
        ensure(t.dtype() == Dtype::F32, ErrorKind::Dtype, name)?;
        ensure(fits(&t, shape.n_q_heads, dim, &|h| t.rows(h) >= n_queries), ErrorKind::Shape, name)
    };
    result(out, shape.head_dim_v, c"out")?;
    lse.map_or(Ok(()), |lse| result(lse, 1, c"lse"))?;
    match (&params.positions, shape.sliding_window) {
        (Some(positions), _) => positions.validate(shape.n_kv_heads),
        (None, Some(_)) => Err(Error::new(ErrorKind::Null, c"kept_indices")),
        (None, None) => Ok(()),
    }
}

/// `n` new tokens' queries of one KV head's group, from token `first` on.
struct Tile<'a> {
    backend: Backend,
    shape: &'a Shape<'a>,
    params: &'a AttendParams<'a>,
    inputs: &'a AttendInputs<'a>,
    n_queries: usize,
    head: usize,
    first: usize,
    n: usize,
}

impl Tile<'_> {
    /// Rows of the tile: its tokens' queries of all heads of the group.
    fn n_rows(&self) -> usize {
        self.n * self.shape.group_size()
    }

    /// Token and query head of the tile's `r`-th query.
    fn query(&self, r: usize) -> (usize, usize) {
        let group = self.shape.group_size();
        (self.first + r / group, self.head * group + r % group)
    }

    /// The rows that new token `t` sees.
    fn visible(&self, t: usize) -> core::ops::Range<usize> {
        let n_rows = self.inputs.k.rows(self.head);
        let end = if self.params.causal { n_rows - (self.n_queries - 1 - t) } else { n_rows };
        let begin = match (self.shape.sliding_window, &self.params.positions) {
            (Some(keys), Some(positions)) if end > 0 => {
                // A query's own row is its last visible one; without `causal` it comes after all rows.
                let own = if self.params.causal {
                    positions.of(self.head, end - 1)
                } else {
                    positions.of(self.head, end) + t as u64
                };
                let oldest = (own + 1).saturating_sub(keys as u64);
                // Positions ascend along the rows.
                partition_point(end, |row| positions.of(self.head, row) < oldest)
            }
            _ => 0,
        };
        begin.min(end)..end
    }

    fn run(&self, b: &mut Buffers) -> Result<()> {
        let kernels = self.backend.kernels.for_product(&self.inputs.q, &self.inputs.k);
        let (dk, dv, n) = (self.shape.head_dim_k, self.shape.head_dim_v, self.n_rows());
        let AttendInputs { q, k, v } = self.inputs;
        let scale = Scale::new(self.params.scale, dk);
        let words = dk / kernels.dims_per_word;
        let mut numbers = [0.0f32; MAX_HEAD_DIM];
        for (r, row) in b.q[..n * words].chunks_exact_mut(words).enumerate() {
            let (t, h) = self.query(r);
            q.widen(h, t, &mut numbers[..dk]);
            numbers[..dk].iter_mut().for_each(|x| *x *= scale.sign);
            (kernels.to_words)(&numbers[..dk], row);
        }
        b.acc.fill(0.0);
        b.max.fill(UNSEEN);
        b.sum.fill(0.0);
        let begin = (self.first..self.first + self.n).map(|t| self.visible(t).start).min().unwrap_or(0);
        let end = self.visible(self.first + self.n - 1).end;
        for first in (begin..end).step_by(KEY_BLOCK) {
            let n_rows = KEY_BLOCK.min(end - first);
            let tile = &mut b.tile[..n * KEY_BLOCK];
            let finite = (kernels.dots)(
                &Block { tensor: k, head: self.head, first, n: n_rows },
                &b.q[..n * words],
                tile,
            );
            ensure(finite, ErrorKind::NonFinite, c"q or k")?;
            if let Some(cap) = self.params.softcap {
                (kernels.softcap)(tile, scale.size, cap);
            }
            for (r, row) in tile.chunks_exact_mut(KEY_BLOCK).enumerate() {
                let sees = self.visible(self.query(r).0);
                row[..sees.start.saturating_sub(first).min(n_rows)].fill(UNSEEN);
                row[sees.end.saturating_sub(first).min(n_rows)..].fill(UNSEEN);
            }
            b.old_max.copy_from_slice(b.max);
            let exponent = scale.of_exponent(self.params.softcap);
            (kernels.softmax_rows)(tile, exponent, &mut b.max[..n], &mut b.sum[..n]);
            for (r, acc) in b.acc[..n * dv].chunks_exact_mut(dv).enumerate() {
                if b.max[r] > b.old_max[r] {
                    let shrink = exp2(b.old_max[r] - b.max[r]);
                    acc.iter_mut().for_each(|x| *x *= shrink);
                }
            }
            (kernels.add_values)(
                &Block { tensor: v, head: self.head, first, n: n_rows },
                tile,
                &mut b.acc[..n * dv],
            );
        }
        ensure(b.acc[..n * dv].iter().all(|x| x.is_finite()), ErrorKind::NonFinite, c"v")
    }

    fn write(&self, b: &Buffers, out: &mut TensorMut, mut lse: Option<&mut TensorMut>) {
        let dv = self.shape.head_dim_v;
        let mut values = [0.0f32; MAX_HEAD_DIM];
        let unit = match self.params.lse_base {
            LseBase::Natural => core::f64::consts::LN_2,
            LseBase::Two => 1.0,
        };
        for r in 0..self.n_rows() {
            let (t, h) = self.query(r);
            let sink = self.params.sink_logits.map(|sinks| sinks[h] as f64 * core::f64::consts::LOG2_E);
            let (factor, of_row) = normalise(b.max[r] as f64, b.sum[r], sink);
            for (value, &x) in values.iter_mut().zip(&b.acc[r * dv..(r + 1) * dv]) {
                *value = x * factor;
            }
            out.write_row(h, t, &values[..dv]);
            if let Some(lse) = &mut lse {
                lse.write_row(h, t, &[(of_row * unit) as f32]);
            }
        }
    }
}

/// What a row's weighted sum of values is multiplied by, and its log-sum-exp, from its maximum, its sum of exponentials
/// and its sink's logit, all over ln 2.
fn normalise(max: f64, sum: f64, sink: Option<f64>) -> (f32, f64) {
    match sink {
        // The sink outweighs all that the row sees, or the row sees nothing.
        Some(sink) if sink - max > 1000.0 => (0.0, sink),
        _ => {
            let sum = sum + sink.map_or(0.0, |sink| libm::exp2(sink - max));
            (if sum > 0.0 { (1.0 / sum) as f32 } else { 0.0 }, max + libm::log2(sum))
        }
    }
}

/// How many of the first `n` indices satisfy `before`, which holds up to some index and for none after it.
fn partition_point(n: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = (low + high) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
