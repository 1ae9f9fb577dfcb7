//! What a call works on: one KV head with the query heads of its group.

use core::ops::Range;

use crate::backend::{Block, KEY_BLOCK, Kernels, ROW_BLOCK};
use crate::params::{Attention, MAX_HEAD_DIM, Scale, ScoreParams, Shape, ValueWeight};
use crate::view::Tensor;

/// Whose attention is scored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Queries<'a> {
    /// The window's: the cache's last rows, of which each sees itself and what is before it.
    Window,
    /// So many that are not in the cache: each sees what a query at position N sees.
    After(usize),
    /// Those that are not in the cache either, and see what queries at these positions see, which ascend.
    At(&'a [u32]),
}

impl Queries<'_> {
    /// How many there are.
    pub fn n(self, shape: &Shape) -> usize {
        match self {
            Self::Window => shape.window,
            Self::After(n) => n,
            Self::At(positions) => positions.len(),
        }
    }

    /// Query rows of a head, filled up to whole registers.
    pub fn padded_rows(self, shape: &Shape) -> usize {
        self.n(shape).next_multiple_of(ROW_BLOCK)
    }

    /// The rows of KV head `head` that some query sees: from where the first of them reaches to.
    pub fn seen_rows(self, shape: &Shape, head: usize) -> Range<usize> {
        let oldest = match self {
            Self::Window => {
                shape.sliding_window.map_or(0, |keys| (shape.prefix_len() + 1).saturating_sub(keys))
            }
            Self::After(_) => shape.first_visible(),
            Self::At(positions) => {
                let first = positions.first().map_or(0, |&p| p as usize);
                shape.sliding_window.map_or(0, |keys| (first + 1).saturating_sub(keys))
            }
        };
        shape.first_row_at(head, oldest)..shape.rows(head)
    }
}

/// What scoring reads.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInputs<'a> {
    /// The last w queries after RoPE: `[window, n_q_heads, head_dim_k]`. Or others, `[n_queries, ..]`, for `score_queries`.
    pub q: Tensor<'a>,
    /// Keys after RoPE: `[rows of each head, n_kv_heads, head_dim_k]`.
    pub k: Tensor<'a>,
    /// Values: `[rows of each head, n_kv_heads, head_dim_v]`. Not looked at with `ValueWeight::None`.
    pub v: Tensor<'a>,
    /// Log-sum-exp of each query's scaled, capped, masked logits, sinks included, in the base that the options name: f32
    /// `[window or n_queries, n_q_heads, 1]`. By it each row's attention must sum to 1 within 5%. Scores are as exact as
    /// it is.
    pub lse: Option<Tensor<'a>>,
}

/// One KV head.
pub(super) struct Task<'a> {
    pub kernels: &'static Kernels,
    pub shape: &'a Shape<'a>,
    pub params: &'a ScoreParams<'a>,
    pub inputs: &'a ScoreInputs<'a>,
    pub head: usize,
    pub queries: Queries<'a>,
    /// The rows that some query may see, the window's own among them. No other is read.
    pub seen: Range<usize>,
    /// The prefix rows that compete: those that a later query can see. They are among `seen`.
    pub live: Range<usize>,
    pub scale: Scale,
}

impl<'a> Task<'a> {
    pub fn new(
        kernels: &'static Kernels,
        shape: &'a Shape<'a>,
        params: &'a ScoreParams<'a>,
        inputs: &'a ScoreInputs<'a>,
        head: usize,
        queries: Queries<'a>,
    ) -> Self {
        let (seen, live) = (queries.seen_rows(shape, head), shape.live(head));
        let scale = Scale::new(params.scale, shape.head_dim_k);
        Self { kernels, shape, params, inputs, head, queries, seen, live, scale }
    }

    /// Queries of a head.
    pub fn n_queries(&self) -> usize {
        self.queries.n(self.shape)
    }

    /// The same, filled up to whole registers.
    pub fn padded_rows(&self) -> usize {
        self.queries.padded_rows(self.shape)
    }

    /// The `in_group`-th query head.
    pub fn query_head(&self, in_group: usize) -> usize {
        self.head * self.shape.group_size() + in_group
    }

    /// Words of a key or a query, as the kernels have it.
    pub fn words(&self) -> usize {
        self.shape.head_dim_k / self.kernels.dims_per_word
    }

    /// The factor of the exponents.
    pub fn exponent(&self) -> f32 {
        self.scale.of_exponent(self.params.softcap)
    }

    /// Whether sums are to be so exact that what the largest entry leaves to the others is right: a variance is nothing
    /// else.
    pub fn exactly(&self) -> bool {
        self.params.attention == Attention::MeanVariance
    }

    /// Rows of the head's keys.
    pub fn keys(&self, rows: Range<usize>) -> Block<'_> {
        Block { tensor: &self.inputs.k, head: self.head, first: rows.start, n: rows.len() }
    }

    /// The queries that see a row of `seen`: the window's from its own position on, as far as the sliding window reaches.
    pub fn seen_by(&self, row: usize) -> Range<usize> {
        match self.queries {
            Queries::After(n) => return 0..n,
            Queries::At(positions) => {
                let row = self.shape.position(self.head, row);
                let before = |position: usize| positions.partition_point(|&p| (p as usize) < position);
                let end = self.shape.sliding_window.map(|keys| before(row.saturating_add(keys)));
                return before(row)..end.unwrap_or(positions.len());
            }
            Queries::Window => {}
        }
        let (prefix, w) = (self.shape.prefix_len(), self.shape.window);
        let position = self.shape.position(self.head, row);
        let reach = |keys| position.saturating_add(keys).saturating_sub(prefix).min(w);
        let end = self.shape.sliding_window.map_or(w, reach);
        position.saturating_sub(prefix).min(end)..end
    }

    /// The logit of the `in_group`-th query head's attention sink, over ln 2.
    pub fn sink(&self, in_group: usize) -> Option<f32> {
        self.params.sink_logits.map(|sinks| sinks[self.query_head(in_group)] * core::f32::consts::LOG2_E)
    }

    /// What the `in_group`-th query head counts.
    pub fn head_weight(&self, in_group: usize) -> f32 {
        self.params.query_head_weights.map_or(1.0, |weights| weights[self.query_head(in_group)])
    }

    /// The same where attention is added up: what becomes of the output is known only of attention as it is.
    pub fn attention_weight(&self, in_group: usize) -> f32 {
        if self.params.value_weight == ValueWeight::Output { 1.0 } else { self.head_weight(in_group) }
    }

    /// The queries of the `in_group`-th query head, one after the other, as the kernels want them: `f(query, words)`.
    pub fn for_each_query(&self, in_group: usize, mut f: impl FnMut(usize, &[f32])) {
        let (mut numbers, mut row) = ([0.0; MAX_HEAD_DIM], [0.0; MAX_HEAD_DIM]);
        let (numbers, row) = (&mut numbers[..self.shape.head_dim_k], &mut row[..self.words()]);
        for j in 0..self.n_queries() {
            self.inputs.q.widen(self.query_head(in_group), j, numbers);
            numbers.iter_mut().for_each(|x| *x *= self.scale.sign);
            (self.kernels.to_words)(numbers, row);
            f(j, row);
        }
    }
}

/// Rows in blocks that end at multiples of [`KEY_BLOCK`], so that what a block holds does not depend on where a sliding
/// window begins; each with the one after it.
pub(super) fn blocks(rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let block = move |at: usize| at..((at / KEY_BLOCK + 1) * KEY_BLOCK).min(rows.end);
    let after = move |at: usize| if at < rows.end { block(at) } else { at..at };
    let first = Some(after(rows.start)).filter(|block| !block.is_empty());
    core::iter::successors(first.map(|block| (block.clone(), after(block.end))), move |(_, next)| {
        (!next.is_empty()).then(|| (next.clone(), after(next.end)))
    })
}
