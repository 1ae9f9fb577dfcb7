//! Shapes and options, validated once: past this file no stage meets a bad size.

use crate::error::{ErrorKind, Result, ensure};

/// Head dimensions go up to this (DeepSeek's MLA keys have 576).
pub const MAX_HEAD_DIM: usize = 576;
/// Pooling kernels go up to this.
pub const MAX_POOL_KERNEL: usize = 127;

/// The sizes of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which layer this is: used in errors only.
    pub layer: u32,
    /// N: tokens in the cache, the observation window included.
    pub n_tokens: usize,
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_q_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Elements of a query and of a key.
    pub head_dim_k: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
    /// w: the last tokens, always kept, whose queries do the scoring.
    pub window: usize,
}

impl Shape {
    /// Checks that the sizes fit together and that `n_kv_heads · n_tokens` is below 2³².
    pub fn validate(&self) -> Result<()> {
        ensure(self.n_tokens > 0, ErrorKind::Shape, c"n_tokens")?;
        ensure(self.n_kv_heads > 0, ErrorKind::Shape, c"n_kv_heads")?;
        ensure(
            self.n_q_heads > 0 && self.n_q_heads.is_multiple_of(self.n_kv_heads),
            ErrorKind::Shape,
            c"n_q_heads",
        )?;
        ensure((1..=MAX_HEAD_DIM).contains(&self.head_dim_k), ErrorKind::Shape, c"head_dim_k")?;
        ensure((1..=MAX_HEAD_DIM).contains(&self.head_dim_v), ErrorKind::Shape, c"head_dim_v")?;
        ensure(self.window > 0, ErrorKind::Shape, c"window")?;
        let entries = (self.n_tokens as u64).checked_mul(self.n_kv_heads as u64);
        ensure(entries.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c"n_tokens")?;
        let rows = (self.window as u64).checked_mul(self.n_q_heads as u64);
        ensure(rows.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c"window")
    }

    /// Query heads that share one KV head.
    pub fn group_size(&self) -> usize {
        self.n_q_heads / self.n_kv_heads
    }

    /// P = N − w: the tokens that compete. Zero when the window covers everything.
    pub fn prefix_len(&self) -> usize {
        self.n_tokens.saturating_sub(self.window)
    }

    /// Prefix entries of the layer: `n_kv_heads · prefix_len`.
    pub fn prefix_entries(&self) -> u64 {
        self.n_kv_heads as u64 * self.prefix_len() as u64
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
    /// The L1 norm of its own value, behind pooling and the reduction over the group. VATP (arXiv 2406.12335).
    Token = 2,
    /// What evicting it alone does to the output: `a → a / (1 − a) · ‖o − v_i‖₂`, where `o = Σ_i a_i v_i` over all tokens; query head by
    /// query head, before pooling. Only for attention that sums to 1 (mean, exponential). CAOTE (arXiv 2504.14051), ReST-KV.
    Output = 3,
}

/// Options of scoring. `Default` is LAVa's setting; [`ScoreParams::global`] is the preset that measures best, and [`ScoreParams::snapkv`] and
/// the others are published methods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreParams {
    /// Factor on `q · k`. `None`: `1 / sqrt(head_dim_k)`.
    pub scale: Option<f32>,
    /// Logit soft-cap `c`: logits become `c · tanh(s / c)`. `None`: no cap.
    pub softcap: Option<f32>,
    /// Each query sees this many keys, its own included. `None`: all earlier ones.
    pub sliding_window: Option<usize>,
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
    /// This many times a head's mean score is added to all its scores: what nobody has looked at yet may still be looked at, in
    /// heads that are much looked at more than in others. Not negative.
    pub smoothing: f32,
    /// A factor on all scores of the layer, finite and above 0. It decides nothing inside a layer; under
    /// [`LayerBudgets::Global`] it is the layer's weight.
    pub weight: f32,
}

impl Default for ScoreParams {
    fn default() -> Self {
        Self {
            scale: None,
            softcap: None,
            sliding_window: None,
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
}

impl ScoreParams {
    /// The preset that `make eval` chose, for one sort over all layers (C: `lava_score_params_default`): squared attention, which tells
    /// sharp heads from blurred ones; each token's own value norm; and a head's mean added.
    pub fn global() -> Self {
        Self {
            attention: Attention::Squared,
            value_weight: ValueWeight::Token,
            smoothing: 1.0,
            ..Self::default()
        }
    }

    /// SnapKV, and with other budgets Ada-KV and PyramidKV: mean attention, max-pooled.
    pub fn snapkv() -> Self {
        Self { value_weight: ValueWeight::None, ..Self::default() }
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

    /// TOVA: the mean over all heads of the last query's attention. For a window of 1; `score::mean_over_heads` does the rest.
    pub fn tova() -> Self {
        Self { pool_kernel: 1, group_reduce: GroupReduce::Mean, ..Self::snapkv() }
    }

    /// StreamingLLM: the newest tokens. Published with 4 sinks (`SelectParams::n_sink`).
    pub fn streaming() -> Self {
        Self { attention: Attention::Recency, pool_kernel: 1, ..Self::snapkv() }
    }

    /// VATP: attention times the value's own norm. Published with 20 sinks.
    pub fn vatp() -> Self {
        Self { value_weight: ValueWeight::Token, pool_kernel: 1, ..Self::default() }
    }

    /// CAOTE over the window's mean attention.
    pub fn caote() -> Self {
        Self { value_weight: ValueWeight::Output, pool_kernel: 1, ..Self::default() }
    }

    /// ReST-KV without the output matrix. Published with a decay of 0.3 and a window of 32.
    pub fn rest_kv(decay: f32) -> Self {
        Self {
            attention: Attention::Exponential,
            decay,
            value_weight: ValueWeight::Output,
            ..Self::default()
        }
    }

    /// KV-Compress: squared attention, the group's sum (here its mean: the same order).
    pub fn kv_compress() -> Self {
        Self { attention: Attention::Squared, group_reduce: GroupReduce::Mean, ..Self::snapkv() }
    }

    /// SAGE-KV: the last query's attention, whatever the window.
    pub fn sage_kv() -> Self {
        Self { attention: Attention::Exponential, decay: 1.0, pool_kernel: 1, ..Self::snapkv() }
    }

    /// Checks every option's range.
    pub fn validate(&self) -> Result<()> {
        let odd = self.pool_kernel % 2 == 1 && self.pool_kernel <= MAX_POOL_KERNEL;
        ensure(odd, ErrorKind::Argument, c"pool_kernel")?;
        ensure(self.gamma.is_finite() && self.gamma >= 0.0, ErrorKind::Argument, c"gamma")?;
        ensure(self.decay > 0.0 && self.decay <= 1.0, ErrorKind::Argument, c"decay")?;
        ensure(self.smoothing.is_finite() && self.smoothing >= 0.0, ErrorKind::Argument, c"smoothing")?;
        ensure(self.weight.is_finite() && self.weight > 0.0, ErrorKind::Argument, c"weight")?;
        let sums_to_1 = matches!(self.attention, Attention::Mean | Attention::Exponential);
        ensure(sums_to_1 || self.value_weight != ValueWeight::Output, ErrorKind::Argument, c"value_weight")?;
        validate_logit_options(self.scale, self.softcap)
    }
}

/// Checks a scale and a soft-cap: finite, and the cap positive.
pub(crate) fn validate_logit_options(scale: Option<f32>, softcap: Option<f32>) -> Result<()> {
    ensure(scale.is_none_or(f32::is_finite), ErrorKind::Argument, c"scale")?;
    ensure(softcap.is_none_or(|c| c.is_finite() && c > 0.0), ErrorKind::Argument, c"softcap")
}

use core::f32::consts::LOG2_E;

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

    /// The factor of the exponents of two: what is left to do behind the soft-cap, which scales what it caps, over ln 2.
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
pub enum LayerBudgets {
    /// In proportion to the entropies of their scores. LAVa.
    #[default]
    Entropy = 0,
    /// In equal parts.
    Equal = 1,
    /// In proportion to weights that come with the scores: pyramids, CAKE's preference, what was learned.
    Weights = 2,
    /// Not at all: the heads of all layers compete, as those of one layer do. One threshold for the whole model.
    Global = 3,
}

/// Options of selection. The default is the paper's setting. Equal head budgets are [`HeadFloor::Affine`] with α = 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelectParams<'a> {
    /// The head floor's mode.
    pub head_floor: HeadFloor,
    /// α in [0, 1]: how much of the budget the floor takes. Unused with [`HeadFloor::None`].
    pub alpha: f64,
    /// Each head's best so many entries are kept before any compete, the protected ones among them.
    pub head_min: usize,
    /// Head budgets from outside: heads share the layer's budget in proportion to these, one per KV head, finite and not
    /// negative, with the rules of `budget::layer_budgets`. They replace the competition and the floors.
    pub head_weights: Option<&'a [f64]>,
    /// This many first tokens are kept in every head.
    pub n_sink: usize,
    /// One byte per prefix token: non-zero is kept in every head.
    pub protected_mask: Option<&'a [u8]>,
}

impl SelectParams<'_> {
    /// The paper's preset: no head floor.
    pub fn paper() -> Self {
        Self::default()
    }

    /// The preset of the authors' released code: an affine floor with α = 0.2, here with exact totals.
    pub fn released() -> Self {
        Self { head_floor: HeadFloor::Affine, alpha: 0.2, ..Self::default() }
    }

    /// What goes with [`ScoreParams::global`] and [`LayerBudgets::Global`]: each head is sure of its best tenth of a share.
    pub fn global() -> Self {
        Self { head_floor: HeadFloor::Guaranteed, alpha: 0.1, ..Self::default() }
    }

    /// Equal head budgets: SnapKV, PyramidKV, CAKE and all that came before Ada-KV.
    pub fn equal() -> Self {
        Self { head_floor: HeadFloor::Affine, alpha: 1.0, ..Self::default() }
    }

    /// Checks α, the weights of `n_heads` heads, and the mask's length against the prefix.
    pub fn validate(&self, n_heads: usize, prefix_len: usize) -> Result<()> {
        let in_range = self.head_floor == HeadFloor::None || (0.0..=1.0).contains(&self.alpha);
        ensure(in_range, ErrorKind::Argument, c"alpha")?;
        if let Some(weights) = self.head_weights {
            ensure(weights.len() >= n_heads, ErrorKind::BufferSize, c"head_weights")?;
            let fine = weights[..n_heads].iter().position(|w| !w.is_finite() || *w < 0.0);
            ensure(fine.is_none(), ErrorKind::NonFinite, c"head_weights")
                .map_err(|e| fine.map_or(e, |head| e.at_head(head)))?;
        }
        ensure(
            self.protected_mask.is_none_or(|m| m.len() >= prefix_len),
            ErrorKind::BufferSize,
            c"protected_mask",
        )
    }

    /// Whether prefix token `position` is kept whatever its score.
    pub fn protects(&self, position: usize) -> bool {
        position < self.n_sink || self.protected_mask.is_some_and(|m| m[position] != 0)
    }

    /// Entries that a head keeps before any compete: the protected ones, or `head_min` if that is more.
    pub fn minimum(&self, prefix_len: usize) -> usize {
        self.n_protected(prefix_len).max(self.head_min.min(prefix_len))
    }

    /// How many prefix tokens are protected.
    pub fn n_protected(&self, prefix_len: usize) -> usize {
        match self.protected_mask {
            None => self.n_sink.min(prefix_len),
            Some(_) => (0..prefix_len).filter(|&i| self.protects(i)).count(),
        }
    }
}

/// Prefix entries to keep over the whole model: `(budget − window) · n_layers · n_kv_heads`, and at most all of them.
///
/// `budget` is the average number of tokens kept per KV head per layer, window included.
pub fn total_entries(shape: &Shape, budget: usize, n_layers: usize) -> Result<u64> {
    shape.validate()?;
    ensure(n_layers > 0 && n_layers <= crate::budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
    let per_head = shape.prefix_len().min(prefix_budget(shape, budget, c"budget")?);
    Ok(per_head as u64 * n_layers as u64 * shape.n_kv_heads as u64)
}

/// The budget that a ratio of the tokens means: `⌊ratio · n_tokens⌋`.
pub fn budget_from_ratio(shape: &Shape, ratio: f64) -> Result<usize> {
    shape.validate()?;
    ensure((0.0..=1.0).contains(&ratio), ErrorKind::Argument, c"ratio")?;
    let budget = (ratio * shape.n_tokens as f64) as usize;
    prefix_budget(shape, budget, c"ratio")?;
    Ok(budget)
}

/// Prefix tokens that `budget` leaves for a head. Below the window is an error, unless the window covers everything.
fn prefix_budget(shape: &Shape, budget: usize, argument: &'static core::ffi::CStr) -> Result<usize> {
    let fits = budget >= shape.window || shape.prefix_len() == 0;
    ensure(fits, ErrorKind::Budget, argument).map_err(|e| e.at_layer(shape.layer))?;
    Ok(budget.saturating_sub(shape.window))
}

/// Which of `n_parts` equal shares of `n` items `part` does: a contiguous range, the same for everybody who asks.
pub(crate) fn split(n: usize, part: usize, n_parts: usize) -> Result<core::ops::Range<usize>> {
    ensure(n_parts > 0, ErrorKind::Argument, c"n_parts")?;
    ensure(part < n_parts, ErrorKind::Argument, c"part")?;
    let at = |p: usize| (n as u64 * p as u64 / n_parts as u64) as usize;
    Ok(at(part)..at(part + 1))
}
