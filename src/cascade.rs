//! Compress while prefilling: after layer `l`'s attention, layers `0..=l` share the total by their entropies (or as
//! [`LayerBudgets`] says), so layer `l` is compressed and earlier layers are compressed further.
//!
//! The state keeps, for each entry that is still in some layer's cache, its score and its position; nothing about
//! evicted ones. It ends in exactly the kept sets that compressing all layers at once gives:
//!
//! - A layer's real share only shrinks as layers arrive. Rounded by largest remainders it could still grow by one, and so
//!   could a head's count under a floor. So before the last layer shares are rounded up and floors are added to free
//!   competition instead of replacing a part of it: at most one entry per layer, or α of the budget where there is a
//!   floor, waits for the last push. That push rounds exactly.
//! - A smaller top-b is a subset of a larger one, ties included, since the tie rule is a total order.
//! - Where the heads of all layers compete, the threshold only rises as layers arrive; earlier layers win ties.
//!
//! The caller moves the rows: after each push, or after every so many ([`CascadeParams::evict_every`]), [`Cascade::layer`]
//! says for each layer which of the rows that the caller's cache holds now are to be kept. Peak memory of K and V: the final
//! total, plus the full cache of each layer pushed since the last eviction, plus the entries in waiting.
//!
//! Source: arXiv 2509.09754, section 4.3.

use crate::budget::{self, MAX_LAYERS, Rounding};
use crate::entropy::entropy;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, LayerBudgets, SelectParams, Shape};
use crate::select::{self, Buffers, Dense, Entries, entry_key, evicted_share};
use crate::workspace::{Carver, size_of_carve};

/// What a cascade is told once.
#[derive(Clone, Copy, Debug)]
pub struct CascadeParams<'a> {
    /// Sizes of each layer; `layer`, `n_q_heads` and the head dimensions are not used.
    pub shape: Shape,
    /// Layers that will be pushed.
    pub n_layers: usize,
    /// Prefix entries to keep over all layers: `total_entries` of the budget.
    pub total: u64,
    /// How the layers share the total.
    pub layer_budgets: LayerBudgets,
    /// Floors, sinks and the protected mask, the same for every layer. `head_weights` are `[n_layers, n_kv_heads]`.
    pub select: SelectParams<'a>,
    /// Pushes from one eviction to the next: the caller compacts all layers so far after pushes `evict_every`,
    /// `2 * evict_every`, ... and after the last one, and at no other time. 0 and 1: after each. What is kept does not depend
    /// on it.
    pub evict_every: usize,
}

impl CascadeParams<'_> {
    pub(crate) fn validate(&self) -> Result<()> {
        self.shape.validate()?;
        ensure(self.n_layers > 0 && self.n_layers <= MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
        let n_heads = self.n_heads()?;
        self.select.validate(n_heads, self.shape.prefix_len())?;
        if self.layer_budgets == LayerBudgets::Global {
            select::check_global(&self.select)?;
            select::as_one_layer(&self.shape, self.n_layers)?;
        }
        let minimum = self.minimum() as u128 * n_heads as u128;
        ensure(minimum <= self.total_or_all() as u128, ErrorKind::Budget, c"total")
    }

    fn total_or_all(&self) -> u64 {
        self.total.min(self.shape.prefix_entries().saturating_mul(self.n_layers as u64))
    }

    /// Heads of all layers.
    fn n_heads(&self) -> Result<usize> {
        let n = self.n_layers.checked_mul(self.shape.n_kv_heads);
        n.ok_or(Error::new(ErrorKind::Overflow, c"n_layers"))
    }

    /// Entries that each head keeps before any compete.
    fn minimum(&self) -> u64 {
        self.select.minimum(self.shape.prefix_len()) as u64
    }

    fn window_rows(&self) -> usize {
        self.shape.n_tokens - self.shape.prefix_len()
    }

    /// Most rows that are held at a time, windows included.
    fn capacity(&self) -> Result<usize> {
        let (layers, heads) = (self.n_layers as u64, self.shape.n_kv_heads as u64);
        let overflow = Error::new(ErrorKind::Overflow, c"total");
        // Shares rounded up, and what a floor may add to them.
        let shares = self.total_or_all().checked_add(layers).ok_or(overflow)?;
        let floors = match self.select.head_floor {
            HeadFloor::None => 0,
            _ => libm::ceil(self.select.alpha * shares as f64) as u64 + layers * heads,
        };
        // One more for each head whose weight's share is rounded up.
        let each = self.select.head_min.min(self.shape.prefix_len()) as u64
            + self.select.head_weights.is_some() as u64;
        let floors = floors.saturating_add(each.saturating_mul(layers * heads));
        let prefix = shares.saturating_add(floors).min(self.shape.prefix_entries() * layers);
        let rows =
            (heads * layers).checked_mul(self.window_rows() as u64).and_then(|w| w.checked_add(prefix));
        rows.and_then(|n| usize::try_from(n).ok()).ok_or(overflow)
    }
}

/// Words of the header, which lets C find the state again.
mod header {
    pub const WORDS: usize = 16;
    pub const MAGIC: usize = 0;
    pub const N_TOKENS: usize = 1;
    pub const N_KV_HEADS: usize = 2;
    pub const WINDOW: usize = 3;
    pub const N_LAYERS: usize = 4;
    pub const TOTAL: usize = 5;
    pub const HEAD_FLOOR: usize = 6;
    pub const ALPHA: usize = 7;
    pub const N_SINK: usize = 8;
    pub const HAS_MASK: usize = 9;
    pub const N_PUSHED: usize = 10;
    pub const HEAD_MIN: usize = 11;
    pub const HAS_WEIGHTS: usize = 12;
    pub const LAYER_BUDGETS: usize = 13;
    pub const EVICT_EVERY: usize = 14;
    /// "lavacsc3"
    pub const MAGIC_VALUE: u64 = u64::from_le_bytes(*b"lavacsc3");
}

/// A cascade in the caller's memory.
pub struct Cascade<'a> {
    params: CascadeParams<'a>,
    header: &'a mut [u64],
    entropies: &'a mut [f64],
    weights: &'a mut [f64],
    masses: &'a mut [f64],
    shares: &'a mut [f64],
    /// Before a layer's selection: prefix entries that it may keep. After it: those that it keeps.
    budgets: &'a mut [u64],
    capacities: &'a mut [u64],
    minimums: &'a mut [u64],
    /// First row of each layer in the arrays below.
    starts: &'a mut [u64],
    /// `[n_layers, n_kv_heads + 1]`: rows per head now.
    cu_kept: &'a mut [u32],
    /// `[n_layers, n_kv_heads + 1]`: rows per head in the caller's cache.
    cu_rows: &'a mut [u32],
    scores: &'a mut [f32],
    kept_indices: &'a mut [u32],
    /// Which rows of the caller's cache they are.
    rows: &'a mut [u32],
    buffers: Buffers<'a>,
}

/// What a layer holds after a push.
#[derive(Clone, Copy, Debug)]
pub struct CascadeLayer<'a> {
    /// True token positions kept by each head, ascending, window included.
    pub kept_indices: &'a [u32],
    /// Exclusive prefix sum of the counts, `n_kv_heads + 1` entries.
    pub cu_kept: &'a [u32],
    /// Which of the rows that the caller's cache holds since the last eviction are kept: what `compact` is to gather. For a
    /// layer pushed since then these are token positions.
    pub rows: &'a [u32],
    /// Prefix sum of the row counts of that cache.
    pub cu_rows: &'a [u32],
    /// Prefix entries kept now; after the last push exactly the layer's budget.
    pub budget: u64,
    /// Normalised entropy.
    pub entropy: f64,
    /// ΣS over the layer's prefix.
    pub mass: f64,
    /// Share of `mass` evicted so far.
    pub evicted_share: f64,
}

/// Entries of a layer that has been compressed before.
struct Ragged<'a> {
    scores: &'a [f32],
    positions: &'a [u32],
    cu: &'a [u32],
    window_rows: usize,
    select: SelectParams<'a>,
}

impl Entries for Ragged<'_> {
    fn n_heads(&self) -> usize {
        self.cu.len() - 1
    }
    fn len(&self, head: usize) -> usize {
        (self.cu[head + 1] - self.cu[head]) as usize - self.window_rows
    }
    #[inline(always)]
    fn score(&self, head: usize, i: usize) -> f32 {
        self.scores[self.cu[head] as usize + i]
    }
    #[inline(always)]
    fn is_protected(&self, head: usize, i: usize) -> bool {
        self.select.protects(self.positions[self.cu[head] as usize + i] as usize)
    }
}

/// Entries of all layers so far, layer behind layer: of those that have been compressed before, and of the new one.
struct AllLayers<'a> {
    /// The new layer, and so the number of the others.
    layer: usize,
    /// KV heads of a layer.
    heads: usize,
    scores: &'a [f32],
    positions: &'a [u32],
    starts: &'a [u64],
    cu: &'a [u32],
    window_rows: usize,
    new: Dense<'a>,
}

impl AllLayers<'_> {
    /// The first row of a head of an earlier layer.
    #[inline(always)]
    fn first_row(&self, head: usize) -> usize {
        let (layer, head) = (head / self.heads, head % self.heads);
        self.starts[layer] as usize + self.cu[layer * (self.heads + 1) + head] as usize
    }
}

impl Entries for AllLayers<'_> {
    fn n_heads(&self) -> usize {
        (self.layer + 1) * self.heads
    }
    fn len(&self, head: usize) -> usize {
        let (layer, in_layer) = (head / self.heads, head % self.heads);
        if layer == self.layer {
            return self.new.len(in_layer);
        }
        let cu = &self.cu[layer * (self.heads + 1) + in_layer..][..2];
        (cu[1] - cu[0]) as usize - self.window_rows
    }
    #[inline(always)]
    fn score(&self, head: usize, i: usize) -> f32 {
        match head.checked_sub(self.layer * self.heads) {
            Some(in_layer) => self.new.score(in_layer, i),
            None => self.scores[self.first_row(head) + i],
        }
    }
    #[inline(always)]
    fn is_protected(&self, head: usize, i: usize) -> bool {
        match head.checked_sub(self.layer * self.heads) {
            Some(in_layer) => self.new.is_protected(in_layer, i),
            None => self.new.params.protects(self.positions[self.first_row(head) + i] as usize),
        }
    }
}

/// Whether the heads of all layers compete.
fn is_global(params: &CascadeParams) -> bool {
    params.layer_budgets == LayerBudgets::Global
}

/// Bytes of state that a cascade needs.
pub fn state_size(params: &CascadeParams) -> Result<usize> {
    params.validate()?;
    size_of_carve(|c| {
        // Sizes do not depend on what the mask and the weights say.
        let select = SelectParams {
            protected_mask: params.select.protected_mask.map(|_| &[][..]),
            head_weights: params.select.head_weights.map(|_| &[][..]),
            ..params.select
        };
        let own = CascadeParams { select, shape: params.shape, ..*params };
        let header = c.take(header::WORDS)?;
        take_copies(c, &own)?;
        Cascade::carve(c, own, header)
    })
}

/// Memory for what a cascade copies: the mask and the weights. Empty where there is none.
fn take_copies<'a>(c: &mut Carver<'a>, params: &CascadeParams) -> Result<(&'a mut [u8], &'a mut [f64])> {
    let n_bytes = if params.select.protected_mask.is_some() { params.shape.prefix_len() } else { 0 };
    let n_weights = if params.select.head_weights.is_some() { params.n_heads()? } else { 0 };
    Ok((c.take(n_bytes)?, c.take(n_weights)?))
}

/// The same options over the copies.
fn over_copies<'a>(params: &CascadeParams, (mask, weights): (&'a [u8], &'a [f64])) -> CascadeParams<'a> {
    CascadeParams {
        select: SelectParams {
            protected_mask: params.select.protected_mask.map(|_| mask),
            head_weights: params.select.head_weights.map(|_| weights),
            ..params.select
        },
        shape: params.shape,
        ..*params
    }
}

impl<'a> Cascade<'a> {
    /// Starts a cascade in memory of at least [`state_size`] bytes.
    pub fn new(params: &CascadeParams, state: &mut Carver<'a>) -> Result<Self> {
        use header::*;
        params.validate()?;
        let head = state.take::<u64>(WORDS)?;
        // The caller's mask and weights need not outlive this call.
        let (mask, weights) = take_copies(state, params)?;
        if let Some(given) = params.select.protected_mask {
            mask.copy_from_slice(&given[..mask.len()]);
        }
        if let Some(given) = params.select.head_weights {
            weights.copy_from_slice(&given[..weights.len()]);
        }
        let cascade = Self::carve(state, over_copies(params, (mask, weights)), head)?;
        cascade.header[N_TOKENS] = params.shape.n_tokens as u64;
        cascade.header[N_KV_HEADS] = params.shape.n_kv_heads as u64;
        cascade.header[WINDOW] = params.shape.window as u64;
        cascade.header[N_LAYERS] = params.n_layers as u64;
        cascade.header[TOTAL] = params.total;
        cascade.header[HEAD_FLOOR] = params.select.head_floor as u64;
        cascade.header[ALPHA] = params.select.alpha.to_bits();
        cascade.header[N_SINK] = params.select.n_sink as u64;
        cascade.header[HAS_MASK] = params.select.protected_mask.is_some() as u64;
        cascade.header[N_PUSHED] = 0;
        cascade.header[HEAD_MIN] = params.select.head_min as u64;
        cascade.header[HAS_WEIGHTS] = params.select.head_weights.is_some() as u64;
        cascade.header[LAYER_BUDGETS] = params.layer_budgets as u64;
        cascade.header[EVICT_EVERY] = params.evict_every as u64;
        cascade.header[MAGIC] = MAGIC_VALUE;
        Ok(cascade)
    }

    /// Finds a cascade again in memory that [`Cascade::new`] has filled.
    pub(crate) fn reopen(carver: &mut Carver<'a>) -> Result<Self> {
        use header::*;
        let head = carver.take::<u64>(WORDS)?;
        let bad = Error::new(ErrorKind::State, c"state");
        ensure(head[MAGIC] == MAGIC_VALUE, ErrorKind::State, c"state")?;
        let size = |word: u64| usize::try_from(word).map_err(|_| bad);
        let shape = Shape {
            layer: 0,
            n_tokens: size(head[N_TOKENS])?,
            n_q_heads: size(head[N_KV_HEADS])?,
            n_kv_heads: size(head[N_KV_HEADS])?,
            head_dim_k: 1,
            head_dim_v: 1,
            window: size(head[WINDOW])?,
        };
        shape.validate().map_err(|_| bad)?;
        let head_floor = match head[HEAD_FLOOR] {
            0 => HeadFloor::None,
            1 => HeadFloor::Guaranteed,
            2 => HeadFloor::Affine,
            _ => return Err(bad),
        };
        let layer_budgets = match head[LAYER_BUDGETS] {
            0 => LayerBudgets::Entropy,
            1 => LayerBudgets::Equal,
            2 => LayerBudgets::Weights,
            3 => LayerBudgets::Global,
            _ => return Err(bad),
        };
        let select = SelectParams {
            head_floor,
            alpha: f64::from_bits(head[ALPHA]),
            head_min: size(head[HEAD_MIN])?,
            head_weights: (head[HAS_WEIGHTS] != 0).then_some(&[]),
            n_sink: size(head[N_SINK])?,
            protected_mask: (head[HAS_MASK] != 0).then_some(&[]),
        };
        let params = CascadeParams {
            shape,
            n_layers: size(head[N_LAYERS])?,
            total: head[TOTAL],
            layer_budgets,
            select,
            evict_every: size(head[EVICT_EVERY])?,
        };
        let (mask, weights) = take_copies(carver, &params)?;
        let params = over_copies(&params, (mask, weights));
        params.validate().map_err(|_| bad)?;
        ensure(head[N_PUSHED] <= head[N_LAYERS], ErrorKind::State, c"state")?;
        Self::carve(carver, params, head)
    }

    fn carve(c: &mut Carver<'a>, params: CascadeParams<'a>, header: &'a mut [u64]) -> Result<Self> {
        let n = params.n_layers;
        let heads = params.shape.n_kv_heads;
        let cu = n.checked_mul(heads + 1).ok_or(Error::new(ErrorKind::Overflow, c"n_layers"))?;
        let capacity = params.capacity()?;
        Ok(Self {
            params,
            header,
            entropies: c.take(n)?,
            weights: c.take(n)?,
            masses: c.take(n)?,
            shares: c.take(n)?,
            budgets: c.take(n)?,
            capacities: c.take(n)?,
            minimums: c.take(n)?,
            starts: c.take(n)?,
            cu_kept: c.take(cu)?,
            cu_rows: c.take(cu)?,
            scores: c.take(capacity)?,
            kept_indices: c.take(capacity)?,
            rows: c.take(capacity)?,
            buffers: Buffers::carve(c, if is_global(&params) { params.n_heads()? } else { heads })?,
        })
    }

    /// Layers pushed so far.
    pub fn n_pushed(&self) -> usize {
        self.header[header::N_PUSHED] as usize
    }

    /// Layers that will be pushed.
    pub fn n_layers(&self) -> usize {
        self.params.n_layers
    }

    /// Scores that a push takes.
    pub fn prefix_entries(&self) -> usize {
        self.params.shape.prefix_entries() as usize
    }

    /// Takes the next layer's scores, `[n_kv_heads, prefix_len]`, and decides anew what every layer so far keeps.
    ///
    /// On an error the cascade is as it was.
    pub fn push(&mut self, scores: &[f32]) -> Result<()> {
        self.take_in(scores, None)
    }

    /// The same under [`LayerBudgets::Weights`], with the layer's weight: finite, not negative.
    pub fn push_weighted(&mut self, scores: &[f32], weight: f64) -> Result<()> {
        self.take_in(scores, Some(weight))
    }

    fn take_in(&mut self, scores: &[f32], weight: Option<f64>) -> Result<()> {
        let layer = self.n_pushed();
        let n_layers = self.params.n_layers;
        let shape = self.params.shape;
        let prefix_len = shape.prefix_len();
        ensure(layer < n_layers, ErrorKind::State, c"state")?;
        ensure(scores.len() as u64 >= shape.prefix_entries(), ErrorKind::BufferSize, c"scores")?;
        let scores = &scores[..shape.prefix_entries() as usize];
        let at = |e: Error| e.at_layer(layer as u32);
        let spread = entropy(scores, shape.n_kv_heads, prefix_len).map_err(at)?;
        let weight = match (self.params.layer_budgets, weight) {
            (LayerBudgets::Weights, Some(weight)) => {
                ensure(weight.is_finite() && weight >= 0.0, ErrorKind::NonFinite, c"weight").map_err(at)?;
                weight
            }
            (LayerBudgets::Weights, None) | (_, Some(_)) => {
                return Err(at(Error::new(ErrorKind::Argument, c"weight")));
            }
            (LayerBudgets::Entropy, None) => spread.entropy,
            (LayerBudgets::Equal | LayerBudgets::Global, None) => 1.0,
        };

        self.weights[layer] = weight;
        self.entropies[layer] = spread.entropy;
        self.masses[layer] = spread.mass;
        self.capacities[layer] = shape.prefix_entries();
        self.minimums[layer] = self.params.minimum() * shape.n_kv_heads as u64;
        let n = layer + 1;
        let rounding = if n == n_layers { Rounding::Exact } else { Rounding::Up };
        if !is_global(&self.params) {
            budget::share(
                &self.weights[..n],
                &self.capacities[..n],
                Some(&self.minimums[..n]),
                self.params.total,
                rounding,
                &mut self.budgets[..n],
            )
            .map_err(at)?;
        }

        if self.evicts_after(layer) {
            let earlier = ..self.cu_range(layer).start;
            self.cu_rows[earlier].copy_from_slice(&self.cu_kept[earlier]);
        }
        if is_global(&self.params) {
            self.plan_global(layer, scores, rounding);
        }
        let mut at_row = 0;
        for l in 0..layer {
            at_row = self.shrink(l, rounding, at_row);
        }
        self.append(layer, scores, rounding, at_row);
        self.header[header::N_PUSHED] = n as u64;
        Ok(())
    }

    /// The heads of all layers so far compete for the total.
    fn plan_global(&mut self, layer: usize, scores: &[f32], rounding: Rounding) {
        let params = self.params;
        let heads = params.shape.n_kv_heads;
        let entries = AllLayers {
            layer,
            heads,
            scores: self.scores,
            positions: self.kept_indices,
            starts: self.starts,
            cu: self.cu_kept,
            window_rows: params.window_rows(),
            new: Dense {
                scores,
                n_kv_heads: heads,
                prefix_len: params.shape.prefix_len(),
                params: params.select,
            },
        };
        let there = (0..entries.n_heads()).map(|head| entries.len(head) as u64).sum::<u64>();
        let total = params.total.min(there);
        select::plan(&entries, &params.select, params.minimum(), total, rounding, &mut self.buffers);
    }

    fn cu_range(&self, layer: usize) -> core::ops::Range<usize> {
        let width = self.params.shape.n_kv_heads + 1;
        layer * width..(layer + 1) * width
    }

    /// Whether the caller evicts behind the `n`-th push, before the next one.
    fn evicts_after(&self, n: usize) -> bool {
        n.is_multiple_of(self.params.evict_every.max(1))
    }

    /// Compresses an earlier layer further and moves what is left of it to row `to`. Returns the row behind it.
    fn shrink(&mut self, layer: usize, rounding: Rounding, mut to: usize) -> usize {
        let cu_range = self.cu_range(layer);
        let evicted = self.evicts_after(self.n_pushed());
        let heads = self.params.shape.n_kv_heads;
        let window_rows = self.params.window_rows();
        let select = self.select_of(layer);
        let from = self.starts[layer] as usize;
        let cu_kept = &mut self.cu_kept[cu_range];
        let n_rows = cu_kept[heads] as usize;
        let entries = Ragged {
            scores: &self.scores[from..from + n_rows],
            positions: &self.kept_indices[from..from + n_rows],
            cu: cu_kept,
            window_rows,
            select,
        };
        let first_head = if is_global(&self.params) { layer * heads } else { 0 };
        if !is_global(&self.params) {
            let budget = self.budgets[layer].min((n_rows - heads * window_rows) as u64);
            select::plan(&entries, &select, self.params.minimum(), budget, rounding, &mut self.buffers);
        }

        self.starts[layer] = to as u64;
        let start = to;
        let mut kept_mass = 0.0;
        let mut end = 0;
        for head in 0..heads {
            let begin = end;
            end = cu_kept[head + 1] as usize;
            let mut keep = self.buffers.keeper(first_head + head);
            for row in 0..end - begin {
                // `to` never passes `at`: rows move towards the front only.
                let at = from + begin + row;
                let (score, position) = (self.scores[at], self.kept_indices[at]);
                let in_window = row >= end - begin - window_rows;
                if in_window || keep(entry_key(score, select.protects(position as usize))) {
                    self.rows[to] = if evicted { row as u32 } else { self.rows[at] };
                    (self.scores[to], self.kept_indices[to]) = (score, position);
                    kept_mass += if in_window { 0.0 } else { score as f64 };
                    to += 1;
                }
            }
            cu_kept[head + 1] = (to - start) as u32;
        }
        self.settle(layer, to - start, kept_mass);
        to
    }

    /// Takes in the new layer from row `to` on.
    fn append(&mut self, layer: usize, scores: &[f32], rounding: Rounding, mut to: usize) {
        let cu_range = self.cu_range(layer);
        let shape = self.params.shape;
        let prefix_len = shape.prefix_len();
        let select = self.select_of(layer);
        let entries = Dense { scores, n_kv_heads: shape.n_kv_heads, prefix_len, params: select };
        let first_head = if is_global(&self.params) { layer * shape.n_kv_heads } else { 0 };
        if !is_global(&self.params) {
            let (minimum, budget) = (self.params.minimum(), self.budgets[layer]);
            select::plan(&entries, &select, minimum, budget, rounding, &mut self.buffers);
        }
        self.starts[layer] = to as u64;
        let start = to;
        let mut kept_mass = 0.0;
        for head in 0..shape.n_kv_heads {
            let mut keep = self.buffers.keeper(first_head + head);
            for position in 0..shape.n_tokens {
                let in_window = position >= prefix_len;
                let score = if in_window { 0.0 } else { entries.score(head, position) };
                if in_window || keep(entries.key(head, position)) {
                    (self.scores[to], self.kept_indices[to], self.rows[to]) =
                        (score, position as u32, position as u32);
                    kept_mass += score as f64;
                    to += 1;
                }
            }
            self.cu_kept[cu_range.start + head + 1] = (to - start) as u32;
            self.cu_rows[cu_range.start + head + 1] = ((head + 1) * shape.n_tokens) as u32;
        }
        self.cu_kept[cu_range.start] = 0;
        self.cu_rows[cu_range.start] = 0;
        self.settle(layer, to - start, kept_mass);
    }

    /// The options with the layer's own head weights.
    fn select_of(&self, layer: usize) -> SelectParams<'a> {
        let select = self.params.select;
        let heads = self.params.shape.n_kv_heads;
        let own = |all: &'a [f64]| &all[layer * heads..(layer + 1) * heads];
        SelectParams { head_weights: select.head_weights.map(own), ..select }
    }

    fn settle(&mut self, layer: usize, n_rows: usize, kept_mass: f64) {
        let shape = &self.params.shape;
        let kept = (n_rows - shape.n_kv_heads * self.params.window_rows()) as u64;
        self.budgets[layer] = kept;
        self.shares[layer] = evicted_share(kept == shape.prefix_entries(), self.masses[layer], kept_mass);
    }

    /// What layer `layer` keeps after the last push.
    pub fn layer(&self, layer: usize) -> Result<CascadeLayer<'_>> {
        ensure(layer < self.n_pushed(), ErrorKind::State, c"layer").map_err(|e| e.at_layer(layer as u32))?;
        let cu_kept = &self.cu_kept[self.cu_range(layer)];
        let start = self.starts[layer] as usize;
        let range = start..start + cu_kept[cu_kept.len() - 1] as usize;
        Ok(CascadeLayer {
            kept_indices: &self.kept_indices[range.clone()],
            cu_kept,
            rows: &self.rows[range],
            cu_rows: &self.cu_rows[self.cu_range(layer)],
            budget: self.budgets[layer],
            entropy: self.entropies[layer],
            mass: self.masses[layer],
            evicted_share: self.shares[layer],
        })
    }
}
