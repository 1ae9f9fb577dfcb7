//! Shapes and options, validated once: past this file no stage meets a bad size.

use core::f32::consts::LOG2_E;
use core::ops::Range;

use crate::error::{Error, ErrorKind, Result, ensure};

/// Head dimensions go up to this (DeepSeek's MLA keys have 576).
pub const MAX_HEAD_DIM: usize = 576;
/// Pooling kernels go up to this.
pub const MAX_POOL_KERNEL: usize = 127;

/// One attention layer: its sizes, its rows, and what its queries see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape<'a> {
    /// Which layer this is: used in errors only.
    pub layer: u32,
    /// N: tokens so far, the observation window included. Positions are below it.
    pub n_tokens: usize,
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_q_heads: usize,
    /// KV heads. In an array of layers, 0 is a layer that takes no part.
    pub n_kv_heads: usize,
    /// Elements of a query and of a key.
    pub head_dim_k: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
    /// w: the last tokens, always kept, whose queries do the scoring.
    pub window: usize,
    /// Each query sees this many keys, its own included. `None`: all earlier ones.
    pub sliding_window: Option<usize>,
    /// The rows of a cache that has been compressed before. `None`: every head has `n_tokens` rows, and row `i` is token `i`.
    pub ragged: Option<RaggedRows<'a>>,
}

/// Rows of heads of unlike length, head after head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaggedRows<'a> {
    /// Exclusive prefix sum of the heads' rows, `n_kv_heads + 1` entries from 0.
    pub cu_rows: &'a [u32],
    /// True position of each row, ascending per head, below `n_tokens`. Each head's last rows are the observation window's.
    pub positions: &'a [u32],
}

impl<'a> Shape<'a> {
    /// A layer of which nothing has been evicted, with attention to all earlier tokens.
    pub const fn dense(
        n_tokens: usize,
        n_q_heads: usize,
        n_kv_heads: usize,
        head_dim_k: usize,
        head_dim_v: usize,
        window: usize,
    ) -> Self {
        Self {
            layer: 0,
            n_tokens,
            n_q_heads,
            n_kv_heads,
            head_dim_k,
            head_dim_v,
            window,
            sliding_window: None,
            ragged: None,
        }
    }

    /// The same layer where each query sees `keys` keys, its own included.
    pub const fn sliding(self, keys: usize) -> Self {
        Self { sliding_window: Some(keys), ..self }
    }

    /// The same layer with the rows of a cache that has been compressed before.
    pub const fn with_rows<'b>(self, cu_rows: &'b [u32], positions: &'b [u32]) -> Shape<'b>
    where
        'a: 'b,
    {
        Shape { ragged: Some(RaggedRows { cu_rows, positions }), ..self }
    }

    /// Checks that the sizes fit together, that the layer has fewer than 2³² rows over all heads, and that ragged rows are in order
    /// and end in the window.
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.ragged.map_or(Ok(()), |rows| self.validate_rows(rows)).map_err(|e| e.at_layer(self.layer))
    }

    fn validate_sizes(&self) -> Result<()> {
        self.validate_heads()?;
        let check = |ok, kind, name| ensure(ok, kind, name).map_err(|e: Error| e.at_layer(self.layer));
        check(self.n_tokens > 0, ErrorKind::Shape, c"n_tokens")?;
        check(self.window > 0, ErrorKind::Shape, c"window")?;
        check(self.sliding_window != Some(0), ErrorKind::Shape, c"sliding_window")?;
        let entries = (self.n_tokens as u64).checked_mul(self.n_kv_heads as u64);
        check(entries.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c"n_tokens")?;
        let rows = (self.window as u64).checked_mul(self.n_q_heads as u64);
        check(rows.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c"window")
    }

    /// Checks heads and head dimensions, which is all that attention over a compressed cache uses.
    pub fn validate_heads(&self) -> Result<()> {
        let check = |ok, name| ensure(ok, ErrorKind::Shape, name).map_err(|e: Error| e.at_layer(self.layer));
        check(self.n_kv_heads > 0, c"n_kv_heads")?;
        check(self.n_q_heads > 0 && self.n_q_heads.is_multiple_of(self.n_kv_heads), c"n_q_heads")?;
        check((1..=MAX_HEAD_DIM).contains(&self.head_dim_k), c"head_dim_k")?;
        check((1..=MAX_HEAD_DIM).contains(&self.head_dim_v), c"head_dim_v")
    }

    fn validate_rows(&self, RaggedRows { cu_rows, positions }: RaggedRows) -> Result<()> {
        let n = self.n_kv_heads;
        ensure(cu_rows.len() > n, ErrorKind::BufferSize, c"cu_rows")?;
        ensure(cu_rows[0] == 0 && cu_rows[..=n].is_sorted(), ErrorKind::Indices, c"cu_rows")?;
        ensure(positions.len() >= cu_rows[n] as usize, ErrorKind::BufferSize, c"positions")?;
        for h in 0..n {
            let own = &positions[cu_rows[h] as usize..cu_rows[h + 1] as usize];
            let at = |e: Error| e.at_head(h);
            ensure(own.len() >= self.window_rows(), ErrorKind::Indices, c"cu_rows").map_err(at)?;
            let ascending = own.is_sorted_by(|a, b| a < b);
            // Strictly ascending and below N: the window's rows are the last w positions if the first of them is.
            let last = own.last().is_none_or(|&p| (p as usize) + 1 == self.n_tokens);
            let first =
                own.get(own.len() - self.window_rows()).is_none_or(|&p| p as usize == self.prefix_len());
            ensure(ascending && last && first, ErrorKind::Indices, c"positions").map_err(at)?;
        }
        Ok(())
    }

    /// Query heads that share one KV head.
    pub fn group_size(&self) -> usize {
        self.n_q_heads.checked_div(self.n_kv_heads).unwrap_or(0)
    }

    /// P = N − w: the positions before the observation window. Zero when the window covers everything.
    pub fn prefix_len(&self) -> usize {
        self.n_tokens.saturating_sub(self.window)
    }

    /// Rows of the observation window, which every head holds: `min(w, N)`.
    pub fn window_rows(&self) -> usize {
        self.n_tokens.min(self.window)
    }

    /// Rows of head `h`.
    #[inline]
    pub fn rows(&self, h: usize) -> usize {
        match &self.ragged {
            None => self.n_tokens,
            Some(rows) => (rows.cu_rows[h + 1] - rows.cu_rows[h]) as usize,
        }
    }

    /// Rows of head `h` before the window: each has a score.
    #[inline]
    pub fn prefix_rows(&self, h: usize) -> usize {
        self.rows(h) - self.window_rows()
    }

    /// Prefix rows of the longest head.
    pub fn most_prefix_rows(&self) -> usize {
        match self.ragged {
            None => self.prefix_len(),
            Some(_) => (0..self.n_kv_heads).map(|h| self.prefix_rows(h)).max().unwrap_or(0),
        }
    }

    /// Rows of all heads.
    pub fn n_rows(&self) -> u64 {
        match &self.ragged {
            None => self.n_kv_heads as u64 * self.n_tokens as u64,
            Some(rows) => rows.cu_rows[self.n_kv_heads] as u64,
        }
    }

    /// Where the scores of head `h` begin. `h` may be `n_kv_heads`: where they end.
    #[inline]
    pub fn first_score(&self, h: usize) -> usize {
        match &self.ragged {
            None => h * self.prefix_len(),
            Some(rows) => rows.cu_rows[h] as usize - h * self.window_rows(),
        }
    }

    /// Scores of the layer: one per prefix row, head after head.
    pub fn n_scores(&self) -> u64 {
        self.n_rows() - self.n_kv_heads as u64 * self.window_rows() as u64
    }

    /// True position of row `row` of head `h`.
    #[inline]
    pub fn position(&self, h: usize, row: usize) -> usize {
        match &self.ragged {
            None => row,
            Some(rows) => rows.positions[rows.cu_rows[h] as usize + row] as usize,
        }
    }

    /// The first position that a query at position N can see.
    pub fn first_visible(&self) -> usize {
        self.sliding_window.map_or(0, |keys| (self.n_tokens + 1).saturating_sub(keys))
    }

    /// The first of head `h`'s rows whose position is at least `position`.
    pub fn first_row_at(&self, h: usize, position: usize) -> usize {
        match &self.ragged {
            None => position.min(self.n_tokens),
            Some(rows) => rows.positions[rows.cu_rows[h] as usize..rows.cu_rows[h + 1] as usize]
                .partition_point(|&p| (p as usize) < position),
        }
    }

    /// Prefix rows of head `h` that compete: those that a later query can see. The others are dead: they score 0 and are evicted.
    pub fn live(&self, h: usize) -> Range<usize> {
        let end = self.prefix_rows(h);
        self.first_row_at(h, self.first_visible()).min(end)..end
    }

    /// Prefix entries of the layer that can be kept.
    pub fn capacity(&self) -> u64 {
        match self.ragged {
            // Heads that are alike are not gone through: there may be billions, if only in a caller's mistake.
            None if self.n_kv_heads > 0 => self.n_kv_heads as u64 * self.live(0).len() as u64,
            _ => (0..self.n_kv_heads).map(|h| self.live(h).len() as u64).sum(),
        }
    }
}

/// The layers of a model, alike or not.
pub trait Layers {
    /// How many there are.
    fn n_layers(&self) -> usize;

    /// Layer `l`. With no KV heads it takes no part.
    fn layer(&self, l: usize) -> Shape<'_>;

    /// Heads of all layers.
    fn n_heads(&self) -> u64 {
        (0..self.n_layers()).map(|l| self.layer(l).n_kv_heads as u64).sum()
    }

    /// Scores of all layers.
    fn n_scores(&self) -> u64 {
        self.sum(&|shape| shape.n_scores())
    }

    /// Prefix entries of all layers that can be kept.
    fn n_entries(&self) -> u64 {
        self.sum(&|shape| shape.capacity())
    }

    /// The sum of a number over the layers that take part, all of them valid.
    fn sum(&self, number: &dyn Fn(&Shape) -> u64) -> u64 {
        let layers = (0..self.n_layers()).map(|l| self.layer(l));
        layers.filter(|shape| shape.n_kv_heads > 0).map(|shape| number(&shape)).sum()
    }

    /// Positions before the observation window in the layer that has most: the length of a protected mask.
    fn longest_prefix(&self) -> usize {
        let layers = (0..self.n_layers()).map(|l| self.layer(l));
        layers.filter(|shape| shape.n_kv_heads > 0).map(|shape| shape.prefix_len()).max().unwrap_or(0)
    }

    /// Checks their number and each of them.
    fn validate(&self) -> Result<()> {
        let n = self.n_layers();
        ensure(n > 0 && n <= crate::budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
        for l in 0..n {
            let shape = self.layer(l);
            if shape.n_kv_heads > 0 {
                shape.validate().map_err(|e| e.at_layer(l as u32))?;
            }
        }
        Ok(())
    }
}

/// Layers one by one.
impl Layers for [Shape<'_>] {
    fn n_layers(&self) -> usize {
        self.len()
    }
    fn layer(&self, l: usize) -> Shape<'_> {
        self[l]
    }
}

/// So many layers that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Alike<'a>(pub Shape<'a>, pub usize);

impl Layers for Alike<'_> {
    fn n_layers(&self) -> usize {
        self.1
    }
    fn layer(&self, l: usize) -> Shape<'_> {
        Shape { layer: l as u32, ..self.0 }
    }
}

/// How attention is smoothed along the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Pool {
    /// Largest of the neighbourhood, clipped at both ends of the prefix.
    #[default]
    Max = 0,
    /// Mean of the neighbourhood; positions outside the prefix count as zero.
    Avg = 1,
    /// Largest of the entry itself and the `pool_kernel − 1` before it: what is looked at, and what comes after it. For a model
    /// goes on where it has looked: the token that it copies next is the one after the last. The kernel may be even.
    After = 2,
}

/// How the query heads of one KV head become one score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum GroupReduce {
    /// The largest.
    #[default]
    Max = 0,
    /// The mean.
    Mean = 1,
}

/// Which tokens' values enter `vmax`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum ValueSpan {
    /// The prefix, as the authors' released code does.
    #[default]
    Prefix = 0,
    /// All tokens, as the paper's text says.
    All = 1,
}

/// What becomes of the window's attention to an entry: `A[h, j, i]` over the window's queries `j` → `a[h, i]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Attention {
    /// `1/w Σ_j A`. LAVa, SnapKV (arXiv 2404.14469), Ada-KV, PyramidKV, VATP, CAOTE; with w = 1 TOVA (arXiv 2401.06104).
    #[default]
    Mean = 0,
    /// `1/w Σ_j A²`. KV-Compress (arXiv 2410.00161), which leaves it a sum.
    Squared = 1,
    /// `m + γ · Σ_j (A − m)² / (w − 1)`, where `m` is the mean; the mean alone where w = 1. CAKE (arXiv 2503.12491).
    MeanVariance = 2,
    /// `a_0 = A_0`, `a_j = decay · A_j + (1 − decay) · a_{j−1}`: the newest query weighs most. ReST-KV (arXiv 2605.08840). With a decay
    /// of 1 the last query decides alone: SAGE-KV (arXiv 2503.08879).
    Exponential = 3,
    /// `i + 1`: the newest entries are best. Queries and keys are not looked at. StreamingLLM (arXiv 2309.17453). f32 tells positions
    /// apart up to 2²⁴.
    Recency = 4,
    /// `max_j A`: an entry that one query needs is as good as one that all do. DefensiveKV (arXiv 2510.13334), KVzip (arXiv 2505.23416).
    Max = 5,
    /// `(Σ_j A⁴)^¼`: between the maximum and the sum. One query is enough, as for the maximum, but what several need comes first.
    /// Attention below 2⁻³¹ counts as none.
    Norm4 = 6,
}

/// What an entry's attention is multiplied by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum ValueWeight {
    /// The largest L1 norm among its head's values. LAVa.
    #[default]
    HeadMax = 0,
    /// Nothing; the values are not looked at. SnapKV and most others.
    None = 1,
    /// The L1 norm of its own value, after pooling and the reduction over the group. VATP (arXiv 2406.12335).
    Token = 2,
    /// What evicting it alone does to the output: `a → a / (1 − a) · ‖o − v_i‖₂`, where `o = Σ_i a_i v_i` over all tokens; query head by
    /// query head, before pooling. Only for attention that sums to 1 (mean, exponential). CAOTE (arXiv 2504.14051), ReST-KV.
    Output = 3,
    /// The L2 norm of its own value, after pooling and the reduction over the group. Expected Attention (arXiv 2510.00636).
    TokenL2 = 4,
    /// The mean L2 norm of its head's values: heads are told apart, entries are not. So attention sinks, whose values are tiny, keep
    /// what they draw.
    HeadMeanL2 = 5,
}

/// The base of a log-sum-exp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum LseBase {
    /// `ln Σ exp(logit)`: FlashAttention, PyTorch.
    #[default]
    Natural = 0,
    /// `log2 Σ exp(logit)`: FlashInfer.
    Two = 1,
}

impl LseBase {
    /// What a log-sum-exp of this base is multiplied by to be one of base 2.
    pub(crate) fn to_two(self) -> f32 {
        match self {
            Self::Natural => LOG2_E,
            Self::Two => 1.0,
        }
    }
}

/// Options of scoring. `Default` is the recommended preset, [`ScoreParams::lava`] is LAVa as published, [`ScoreParams::snapkv`] and
/// the others are other published methods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreParams<'a> {
    /// Factor on `q · k`. `None`: `1 / sqrt(head_dim_k)`.
    pub scale: Option<f32>,
    /// Logit soft-cap `c`: logits become `c · tanh(s / c)`. `None`: no cap.
    pub softcap: Option<f32>,
    /// Learned attention sinks: one logit per query head, neither scaled nor capped, that is part of the softmax's denominator.
    pub sink_logits: Option<&'a [f32]>,
    /// One factor per query head on its attention, before the group becomes one score; finite, not negative. What a head's output counts
    /// in the residual stream, say: `‖W_O of the head‖_F / sqrt(head_dim_v)` over the norm of the layer's residual. Where the model
    /// normalises what the projection makes, its gains are part of `W_O`, and what it divides by is divided by. `None`: all 1.
    pub query_head_weights: Option<&'a [f32]>,
    /// The base of a log-sum-exp that comes with the inputs.
    pub lse_base: LseBase,
    /// Pooling along tokens.
    pub pool: Pool,
    /// Width of the pooling, odd, at most [`MAX_POOL_KERNEL`]; 1 pools nothing.
    pub pool_kernel: usize,
    /// Reduction over the query heads of a group.
    pub group_reduce: GroupReduce,
    /// Tokens that `vmax` is taken over.
    pub value_span: ValueSpan,
    /// What becomes of the window's attention.
    pub attention: Attention,
    /// γ of [`Attention::MeanVariance`], not negative.
    pub gamma: f32,
    /// Weight of the newest query in [`Attention::Exponential`], above 0 and at most 1.
    pub decay: f32,
    /// What the attention is multiplied by.
    pub value_weight: ValueWeight,
    /// This many times a head's mean score is added to all its scores. Not negative.
    pub smoothing: f32,
    /// A factor on all scores of the layer, finite and above 0. It decides nothing inside a layer; under
    /// [`LayerShare::Global`] it is the layer's weight.
    pub weight: f32,
}

impl Default for ScoreParams<'_> {
    /// The recommended preset (C: `lava_score_params_default`), for one sort over all layers: the largest attention of the window's
    /// queries, also for the five entries after the one that draws it; half of a head's mean is added. Values are not read.
    fn default() -> Self {
        Self {
            attention: Attention::Max,
            value_weight: ValueWeight::None,
            pool: Pool::After,
            pool_kernel: 6,
            smoothing: 0.5,
            ..Self::lava()
        }
    }
}

impl<'a> ScoreParams<'a> {
    /// LAVa as published: mean attention, max-pooled over 7, times the head's largest value norm.
    pub const fn lava() -> Self {
        Self {
            scale: None,
            softcap: None,
            sink_logits: None,
            query_head_weights: None,
            lse_base: LseBase::Natural,
            pool: Pool::Max,
            pool_kernel: 7,
            group_reduce: GroupReduce::Max,
            value_span: ValueSpan::Prefix,
            attention: Attention::Mean,
            gamma: 0.0,
            decay: 1.0,
            value_weight: ValueWeight::HeadMax,
            smoothing: 0.0,
            weight: 1.0,
        }
    }

    /// The recommended preset where an engine can say what each query head's output counts
    /// ([`query_head_weights`](Self::query_head_weights)): times that, and times the head's mean value norm.
    pub fn weighted(query_head_weights: &'a [f32]) -> Self {
        Self::default().and_weights(Some(query_head_weights))
    }

    /// Queries that ask again, for [`crate::score::score_queries`]: the 4-norm of their attention; with weights, times these and the head's
    /// mean value norm. Their scores are smoothed after they are joined ([`crate::adjust::smooth`]). For a window of 8.
    pub fn ask_again(query_head_weights: Option<&'a [f32]>) -> Self {
        let attention = Self { attention: Attention::Norm4, pool_kernel: 1, ..Self::snapkv() };
        attention.and_weights(query_head_weights)
    }

    /// The window's queries beside those that ask again: the same, and for the seven entries after; they count half.
    pub fn ask_window(query_head_weights: Option<&'a [f32]>) -> Self {
        Self { pool: Pool::After, pool_kernel: 8, weight: 0.5, ..Self::ask_again(query_head_weights) }
    }

    /// The values' norms are comparable only with what the output projection does to them: both, or neither.
    fn and_weights(self, query_head_weights: Option<&'a [f32]>) -> Self {
        let value_weight =
            if query_head_weights.is_some() { ValueWeight::HeadMeanL2 } else { ValueWeight::None };
        Self { value_weight, query_head_weights, ..self }
    }

    /// Squared attention times the entry's own value norm, max-pooled over 7: what was recommended before a published model was at
    /// hand, and what the CUDA kernels have of it.
    pub fn squares() -> Self {
        Self { attention: Attention::Squared, value_weight: ValueWeight::Token, ..Self::lava() }
    }

    /// SnapKV, and with other budgets Ada-KV and PyramidKV: mean attention, max-pooled.
    pub fn snapkv() -> Self {
        Self { value_weight: ValueWeight::None, ..Self::lava() }
    }

    /// CAKE: mean and variance, average-pooled over 5, the group's mean. Published with γ = 200 and a window of 32.
    pub fn cake(gamma: f32) -> Self {
        Self {
            attention: Attention::MeanVariance,
            gamma,
            pool: Pool::Avg,
            pool_kernel: 5,
            group_reduce: GroupReduce::Mean,
            ..Self::snapkv()
        }
    }

    /// TOVA: the mean over all heads of the last query's attention. For a window of 1; `adjust::mean_over_heads` does the rest.
    pub fn tova() -> Self {
        Self { pool_kernel: 1, group_reduce: GroupReduce::Mean, ..Self::snapkv() }
    }

    /// StreamingLLM: the newest tokens. Published with 4 sinks (`SelectParams::n_sink`).
    pub fn streaming() -> Self {
        Self { attention: Attention::Recency, pool_kernel: 1, ..Self::snapkv() }
    }

    /// VATP: attention times the value's own norm. Published with 20 sinks.
    pub fn vatp() -> Self {
        Self { value_weight: ValueWeight::Token, pool_kernel: 1, ..Self::lava() }
    }

    /// CAOTE over the window's mean attention.
    pub fn caote() -> Self {
        Self { value_weight: ValueWeight::Output, pool_kernel: 1, ..Self::lava() }
    }

    /// ReST-KV without the output matrix. Published with a decay of 0.3 and a window of 32.
    pub fn rest_kv(decay: f32) -> Self {
        Self { attention: Attention::Exponential, decay, value_weight: ValueWeight::Output, ..Self::lava() }
    }

    /// KV-Compress: squared attention, the group's sum (here its mean: the same order).
    pub fn kv_compress() -> Self {
        Self { attention: Attention::Squared, group_reduce: GroupReduce::Mean, ..Self::snapkv() }
    }

    /// SAGE-KV: the last query's attention, whatever the window.
    pub fn sage_kv() -> Self {
        Self { attention: Attention::Exponential, decay: 1.0, pool_kernel: 1, ..Self::snapkv() }
    }

    /// Checks every option's range, and that there are sink logits and weights for `n_q_heads` query heads, where there are any.
    pub fn validate(&self, n_q_heads: usize) -> Result<()> {
        let odd = self.pool_kernel % 2 == 1 || self.pool == Pool::After;
        let valid = odd && (1..=MAX_POOL_KERNEL).contains(&self.pool_kernel);
        ensure(valid, ErrorKind::Argument, c"pool_kernel")?;
        ensure(self.gamma.is_finite() && self.gamma >= 0.0, ErrorKind::Argument, c"gamma")?;
        ensure(self.decay > 0.0 && self.decay <= 1.0, ErrorKind::Argument, c"decay")?;
        ensure(self.smoothing.is_finite() && self.smoothing >= 0.0, ErrorKind::Argument, c"smoothing")?;
        ensure(self.weight.is_finite() && self.weight > 0.0, ErrorKind::Argument, c"weight")?;
        let sums_to_1 = matches!(self.attention, Attention::Mean | Attention::Exponential);
        ensure(sums_to_1 || self.value_weight != ValueWeight::Output, ErrorKind::Argument, c"value_weight")?;
        if let Some(weights) = self.query_head_weights {
            ensure(weights.len() >= n_q_heads, ErrorKind::BufferSize, c"query_head_weights")?;
            let weights = &weights[..n_q_heads];
            ensure(weights.iter().all(|w| w.is_finite()), ErrorKind::NonFinite, c"query_head_weights")?;
            ensure(weights.iter().all(|w| *w >= 0.0), ErrorKind::Argument, c"query_head_weights")?;
        }
        validate_logit_options(self.scale, self.softcap, self.sink_logits, n_q_heads)
    }
}

/// Checks what makes logits: a finite scale, a positive soft-cap, a finite sink logit for each query head.
pub(crate) fn validate_logit_options(
    scale: Option<f32>,
    softcap: Option<f32>,
    sink_logits: Option<&[f32]>,
    n_q_heads: usize,
) -> Result<()> {
    ensure(scale.is_none_or(f32::is_finite), ErrorKind::Argument, c"scale")?;
    ensure(softcap.is_none_or(|c| c.is_finite() && c > 0.0), ErrorKind::Argument, c"softcap")?;
    let Some(sinks) = sink_logits else { return Ok(()) };
    ensure(sinks.len() >= n_q_heads, ErrorKind::BufferSize, c"sink_logits")?;
    ensure(sinks[..n_q_heads].iter().all(|s| s.is_finite()), ErrorKind::NonFinite, c"sink_logits")
}

/// The factor on `q·k` in two parts, since the kernels want one above 0: the sign goes into the queries.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub sign: f32,
    pub size: f32,
}

impl Scale {
    /// The caller's, or `1 / sqrt(head_dim_k)`.
    pub fn new(scale: Option<f32>, head_dim_k: usize) -> Self {
        let scale = scale.unwrap_or_else(|| (1.0 / libm::sqrt(head_dim_k as f64)) as f32);
        // Never 0: 0 · UNSEEN would be NaN. The smallest number makes all logits that mean anything 0 as well.
        Self { sign: 1.0f32.copysign(scale), size: scale.abs().max(f32::MIN_POSITIVE) }
    }

    /// The factor of the exponents of two: what is left to do after the soft-cap, which scales what it caps, over ln 2.
    pub fn of_exponent(&self, softcap: Option<f32>) -> f32 {
        LOG2_E * if softcap.is_some() { 1.0 } else { self.size }
    }
}

/// What each head of a layer is promised before its entries compete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum HeadFloor {
    /// Nothing: the largest scores of the layer win. The paper's rule.
    #[default]
    None = 0,
    /// Each head's top `⌊α · b / n_kv_heads⌋` are kept first, the rest compete.
    Guaranteed = 1,
    /// Counts are `h · (1 − α) + α · b / n_kv_heads`, rounded so that they sum to `b`. The released code's rule, made exact.
    Affine = 2,
}

/// How layers share a total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum LayerShare {
    /// In proportion to the entropies of their scores. LAVa.
    Entropy = 0,
    /// In equal parts.
    Equal = 1,
    /// In proportion to weights that come with the scores: pyramids, CAKE's preference, what was learned.
    Weights = 2,
    /// Not at all: the heads of all layers compete, as those of one layer do. One threshold for the whole model. The recommended
    /// preset.
    #[default]
    Global = 3,
}

/// Options of selection. `Default` is the recommended preset, [`SelectParams::lava`] is LAVa as published.
#[derive(Clone, Copy, Debug)]
pub struct SelectParams<'a> {
    /// The head floor's mode.
    pub head_floor: HeadFloor,
    /// α in [0, 1]: how much of the budget the floor takes. Unused with [`HeadFloor::None`].
    pub alpha: f64,
    /// Each head's best so many entries are kept before any compete, the protected ones among them.
    pub head_min: usize,
    /// Head budgets from outside: heads share the layer's entries in proportion to these, one per KV head, finite and not
    /// negative, with the rules of `budget::layer_entries`. They replace the competition and the floors.
    pub head_weights: Option<&'a [f64]>,
    /// Tokens at positions below this are kept in every head.
    pub n_sink: usize,
    /// One byte per token position, for the whole prefix: non-zero is kept in every head.
    pub protected_mask: Option<&'a [u8]>,
}

impl Default for SelectParams<'_> {
    /// The recommended preset (C: `lava_select_params_default`), for [`LayerShare::Global`]: each head is sure of its best fifth of
    /// an equal part, and keeps the first four tokens.
    fn default() -> Self {
        Self { head_floor: HeadFloor::Guaranteed, alpha: 0.2, n_sink: 4, ..Self::lava() }
    }
}

impl SelectParams<'_> {
    /// LAVa as published: no head floor, nothing protected.
    pub const fn lava() -> Self {
        Self {
            head_floor: HeadFloor::None,
            alpha: 0.0,
            head_min: 0,
            head_weights: None,
            n_sink: 0,
            protected_mask: None,
        }
    }

    /// LAVa as its authors' code has it: an affine floor with α = 0.2, here with exact totals.
    pub const fn lava_released() -> Self {
        Self { head_floor: HeadFloor::Affine, alpha: 0.2, ..Self::lava() }
    }

    /// Equal head budgets: SnapKV, PyramidKV, CAKE and all that came before Ada-KV.
    pub const fn equal() -> Self {
        Self { head_floor: HeadFloor::Affine, alpha: 1.0, ..Self::lava() }
    }

    /// Checks α, the weights of `n_heads` heads, and the mask's length against the prefix.
    pub fn validate(&self, n_heads: usize, prefix_len: usize) -> Result<()> {
        let in_range = self.head_floor == HeadFloor::None || (0.0..=1.0).contains(&self.alpha);
        ensure(in_range, ErrorKind::Argument, c"alpha")?;
        if let Some(weights) = self.head_weights {
            ensure(weights.len() >= n_heads, ErrorKind::BufferSize, c"head_weights")?;
            for (head, w) in weights[..n_heads].iter().enumerate() {
                let at = |e: Error| e.at_head(head);
                ensure(w.is_finite(), ErrorKind::NonFinite, c"head_weights").map_err(at)?;
                ensure(*w >= 0.0, ErrorKind::Argument, c"head_weights").map_err(at)?;
            }
        }
        ensure(
            self.protected_mask.is_none_or(|m| m.len() >= prefix_len),
            ErrorKind::BufferSize,
            c"protected_mask",
        )
    }

    /// Whether the token at `position` is kept whatever its score. Nothing beyond the mask is.
    #[inline]
    pub fn protects(&self, position: usize) -> bool {
        position < self.n_sink
            || self.protected_mask.is_some_and(|m| m.get(position).is_some_and(|&b| b != 0))
    }

    /// How many of a head's live entries are protected.
    pub fn n_protected(&self, shape: &Shape, head: usize) -> usize {
        let live = shape.live(head);
        match self.protected_mask {
            None => shape.first_row_at(head, self.n_sink).clamp(live.start, live.end) - live.start,
            Some(_) => live.filter(|&row| self.protects(shape.position(head, row))).count(),
        }
    }

    /// Entries that a head keeps before any compete: the protected ones, or `head_min` if that is more.
    pub fn minimum(&self, shape: &Shape, head: usize) -> usize {
        self.n_protected(shape, head).max(self.head_min.min(shape.live(head).len()))
    }

    /// The same over all heads of a layer.
    pub fn layer_minimum(&self, shape: &Shape) -> u64 {
        match shape.ragged {
            // Heads that are alike are not gone through.
            None if shape.n_kv_heads > 0 => self.minimum(shape, 0) as u64 * shape.n_kv_heads as u64,
            _ => (0..shape.n_kv_heads).map(|h| self.minimum(shape, h) as u64).sum(),
        }
    }
}

/// Prefix entries to keep over the whole model, for an average of `budget` tokens per KV head per layer, window included: the sum
/// over all heads of `budget − window`, or of the prefix positions that later queries can see where those are fewer; and at most all
/// that there are. What earlier compressions have left to a head does not matter, so compressing again asks for the same total.
pub fn total_entries(layers: &(impl Layers + ?Sized), budget: usize) -> Result<u64> {
    layers.validate()?;
    let (mut total, mut there_are) = (0u64, 0u64);
    for l in 0..layers.n_layers() {
        let shape = layers.layer(l);
        if shape.n_kv_heads == 0 {
            continue;
        }
        let fits = budget >= shape.window || shape.prefix_len() == 0;
        ensure(fits, ErrorKind::Budget, c"budget").map_err(|e| e.at_layer(l as u32))?;
        let visible = shape.prefix_len().saturating_sub(shape.first_visible());
        total += visible.min(budget.saturating_sub(shape.window)) as u64 * shape.n_kv_heads as u64;
        there_are += shape.capacity();
    }
    Ok(total.min(there_are))
}

/// A ratio is taken in billionths, so that 0.29 of 100 is 29.
const RATIO_ONE: u128 = 1_000_000_000;

/// The budget that a ratio of the tokens means: `⌊ratio · n_tokens⌋`, with the ratio in billionths; but never less than what every head
/// keeps whatever is asked for, the window and what `params` protects, and never more than `n_tokens`.
pub fn budget_from_ratio(shape: &Shape, params: &SelectParams, ratio: f64) -> Result<usize> {
    shape.validate()?;
    params.validate(0, shape.prefix_len())?;
    ensure((0.0..=1.0).contains(&ratio), ErrorKind::Argument, c"ratio")?;
    let asked = libm::rint(ratio * RATIO_ONE as f64) as u128 * shape.n_tokens as u128 / RATIO_ONE;
    let heads = if shape.ragged.is_some() { shape.n_kv_heads } else { 1 };
    let kept = shape.window_rows() + (0..heads).map(|h| params.minimum(shape, h)).max().unwrap_or(0);
    Ok((asked as usize).max(kept).min(shape.n_tokens))
}

/// Which of `n_parts` equal shares of `n` items `part` does: a contiguous range, the same for everybody who asks.
pub(crate) fn split(n: usize, part: usize, n_parts: usize) -> Result<core::ops::Range<usize>> {
    ensure(n_parts > 0, ErrorKind::Argument, c"n_parts")?;
    ensure(part < n_parts, ErrorKind::Argument, c"part")?;
    let at = |p: usize| (n as u128 * p as u128 / n_parts as u128) as usize;
    Ok(at(part)..at(part + 1))
}
