//! Compress while prefilling: after layer `l`'s attention, layers `0..=l` share the total by their entropies (or as
//! [`LayerShare`] says), so layer `l` is compressed and earlier layers are compressed further.
//!
//! The state keeps, for each entry that is still in some layer's cache, its score and its position; nothing about
//! evicted ones. It ends in exactly the kept sets that compressing all layers at once gives:
//!
//! - A layer's real share only shrinks as layers arrive. Rounded by largest remainders it could still grow by one, and so
//!   could a head's count under a floor. So before the last layer shares are rounded up and floors are added to free
//!   competition instead of replacing a part of it: at most one entry per layer, or α of the total where there is
//!   a floor, waits for the last push. That push rounds exactly.
//! - A smaller top-b is a subset of a larger one, ties included, since the tie rule is a total order.
//! - Where the heads of all layers compete, the threshold only rises as layers arrive; earlier layers win ties.
//! - What a head is promised depends on what it had when its layer was pushed, not on what it still holds.
//!
//! The caller moves the rows: after each push, or after every few ([`CascadeParams::evict_every`]), [`Cascade::layer`]
//! says for each layer which of the rows that the caller's cache holds now must be kept. Peak memory of K and V: the final
//! total, plus the full cache of each layer pushed since the last eviction, plus the entries in waiting.
//!
//! Source: arXiv 2509.09754, section 4.3.

mod state;

use core::ops::Range;

use crate::budget::{self, Bounds, Rounding, check_weight};
use crate::entropy::entropy;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, LayerShare, Layers, SelectParams, Shape};
use crate::select::{self, Entries, Head, Positions, Scored, entry_key, evicted_share};
use crate::workspace::{Carver, Reader};
use state::{Counts, Held, Options, State, Work};

/// Options of a cascade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CascadeParams {
    /// How the layers share the total.
    pub layers: LayerShare,
    /// Pushes from one eviction to the next: the caller compacts all layers so far after pushes `evict_every`,
    /// `2 * evict_every`, ... and after the last one, and at no other time. 0 and 1: after each. What is kept does not depend
    /// on it.
    pub evict_every: usize,
}

impl Default for CascadeParams {
    /// The recommended preset (C: `lava_cascade_params_default`): one sort over all layers.
    fn default() -> Self {
        Self { layers: LayerShare::Global, evict_every: 1 }
    }
}

impl CascadeParams {
    /// LAVa as published: layers share the total by their entropies.
    pub const fn lava() -> Self {
        Self { layers: LayerShare::Entropy, evict_every: 1 }
    }
}

/// A cascade in the caller's memory.
pub struct Cascade<'a>(State<'a>);

/// A cascade that is only read. There may be several at a time, and what one of them returned stays valid until the next push.
pub struct CascadeView<'a> {
    next_layer: usize,
    held: Held<'a, Reader<'a>>,
}

/// What a layer holds after a push.
#[derive(Clone, Copy, Debug)]
pub struct CascadeLayer<'a> {
    /// True token positions kept by each head, ascending, window included.
    pub kept_indices: &'a [u32],
    /// Exclusive prefix sum of the counts, `n_kv_heads + 1` entries.
    pub cu_kept: &'a [u32],
    /// Which of the rows that the caller's cache holds since the last eviction are kept: those that `compact` gathers. For a
    /// layer pushed since then these are rows of its shape.
    pub rows: &'a [u32],
    /// Prefix sum of the row counts of that cache.
    pub cu_rows: &'a [u32],
    /// Prefix entries kept now; after the last push exactly the layer's share.
    pub n_entries: u64,
    /// Normalised entropy.
    pub entropy: f64,
    /// ΣS over the layer's live entries.
    pub mass: f64,
    /// Share of `mass` evicted so far.
    pub evicted_share: f64,
}

/// Checks what a cascade is given, and counts what it needs.
fn counts(
    layers: &(impl Layers + ?Sized),
    total: u64,
    select: &SelectParams,
    params: &CascadeParams,
) -> Result<Counts> {
    layers.validate()?;
    let overflow = Error::new(ErrorKind::Overflow, c"n_layers");
    let size = |n: u64| usize::try_from(n).map_err(|_| overflow);
    let is_global = params.layers == LayerShare::Global;
    if is_global {
        select::check_global(layers, select)?;
    }
    let n_heads = size(layers.n_heads())?;
    select.validate(n_heads, layers.longest_prefix())?;
    ensure(layers.sum(&|shape| select.layer_minimum(shape)) <= total, ErrorKind::Budget, c"total")?;
    let largest = (0..layers.n_layers()).map(|l| layers.layer(l).n_kv_heads).max().unwrap_or(0);
    Ok(Counts {
        n_layers: layers.n_layers(),
        n_heads,
        heads_at_once: if is_global { n_heads } else { largest },
        n_rows: size(most_rows(layers, total, select).ok_or(overflow)?)?,
        mask_len: if select.protected_mask.is_some() { layers.longest_prefix() } else { 0 },
        has_weights: select.head_weights.is_some(),
    })
}

/// Most rows that are held at a time, windows included.
fn most_rows(layers: &(impl Layers + ?Sized), total: u64, select: &SelectParams) -> Option<u64> {
    let (n_layers, n_heads, all) = (layers.n_layers() as u64, layers.n_heads(), layers.n_entries());
    // Shares rounded up, and what floors, the heads' minimums and their weights' roundings may add to them.
    let shares = total.min(all) + n_layers;
    let floors = match select.head_floor {
        HeadFloor::None => 0,
        _ => (libm::ceil(select.alpha * shares as f64) as u64).checked_add(n_heads)?,
    };
    let head_min = SelectParams { head_min: select.head_min, ..SelectParams::lava() };
    let minimums = layers.sum(&|shape| head_min.layer_minimum(shape));
    let rounded = if select.head_weights.is_some() { n_heads } else { 0 };
    let prefix = [floors, minimums, rounded].into_iter().try_fold(shares, u64::checked_add)?.min(all);
    prefix.checked_add(layers.sum(&|shape| shape.n_kv_heads as u64 * shape.window_rows() as u64))
}

/// Bytes of state that a cascade needs. What the mask and the weights say does not matter, only whether there are any.
pub fn state_size(
    layers: &(impl Layers + ?Sized),
    total: u64,
    select: &SelectParams,
    params: &CascadeParams,
) -> Result<usize> {
    State::size(&counts(layers, total, select, params)?)
}

impl<'a> Cascade<'a> {
    /// Starts a cascade in memory of at least [`state_size`] bytes. Of `layers` only numbers are kept, and of the options copies.
    ///
    /// `total`: prefix entries to keep over all layers, `params::total_entries` of the budget. `select`: floors, sinks and the
    /// protected mask, the same for every layer; `head_weights` are those of the heads of all layers in order.
    pub fn new(
        layers: &(impl Layers + ?Sized),
        total: u64,
        select: &SelectParams,
        params: &CascadeParams,
        state: &mut Carver<'a>,
    ) -> Result<Self> {
        let counts = counts(layers, total, select, params)?;
        let options =
            Options { select: *select, layers: params.layers, evict_every: params.evict_every, total };
        let mut state = State::new(state, &counts, &options)?;
        let State { held, work, .. } = &mut state;
        let mut n_heads = 0;
        for l in 0..counts.n_layers {
            let shape = layers.layer(l);
            held.first_head[l] = n_heads as u64;
            if shape.n_kv_heads > 0 {
                (work.n_scores[l], work.most[l]) = (shape.n_scores(), shape.capacity());
                (work.least[l], work.window_rows[l]) =
                    (select.layer_minimum(&shape), shape.window_rows() as u64);
                let live = &mut work.live[n_heads..n_heads + shape.n_kv_heads];
                live.iter_mut().enumerate().for_each(|(h, live)| *live = shape.live(h).len() as u32);
            }
            n_heads += shape.n_kv_heads;
        }
        held.first_head[counts.n_layers] = n_heads as u64;
        let mut cascade = Self(state);
        let first = cascade.layer_from(0);
        cascade.0.header.set_pushed(first, 0);
        Ok(cascade)
    }

    /// Opens a cascade again in memory that [`Cascade::new`] has filled.
    pub fn reopen(state: &mut Carver<'a>) -> Result<Self> {
        Ok(Self(State::reopen(state)?))
    }

    /// The first layer from `l` on that takes part, or the number of layers.
    fn layer_from(&self, l: usize) -> usize {
        let n_layers = self.0.work.weights.len();
        (l..n_layers).find(|&l| !self.0.held.heads(l).is_empty()).unwrap_or(n_layers)
    }

    /// The layer that is pushed next, or the number of layers where all have been.
    pub fn next_layer(&self) -> usize {
        self.0.header.next_layer()
    }

    /// Scores that the next push takes.
    pub fn n_scores(&self) -> u64 {
        self.0.work.n_scores.get(self.next_layer()).copied().unwrap_or(0)
    }

    /// Takes the scores of the next layer that has KV heads, and decides again what every layer so far keeps.
    ///
    /// `shape` is that layer's, as at the start: other numbers of heads, rows, live entries or protected ones are refused
    /// ([`ErrorKind::Shape`]). `scores` are not negative, and those of dead entries are not looked at. `weight` is given under
    /// [`LayerShare::Weights`] and only then: finite, not negative.
    ///
    /// On an error the cascade is unchanged.
    pub fn push(&mut self, shape: &Shape, scores: &[f32], weight: Option<f64>) -> Result<()> {
        let layer = self.next_layer();
        let n_layers = self.0.work.weights.len();
        ensure(layer < n_layers, ErrorKind::State, c"state")?;
        let at = |e: Error| e.at_layer(layer as u32);
        shape.validate().and_then(|()| self.check_shape(layer, shape)).map_err(at)?;
        let spread = entropy(shape, scores).map_err(at)?;
        let options = self.0.options;
        let weight = match (options.layers, weight) {
            (LayerShare::Weights, Some(weight)) => {
                check_weight(weight, c"weight").map_err(at)?;
                weight
            }
            (LayerShare::Weights, None) | (_, Some(_)) => {
                return Err(at(Error::new(ErrorKind::Argument, c"weight")));
            }
            (LayerShare::Entropy, None) => spread.entropy,
            (LayerShare::Equal | LayerShare::Global, None) => 1.0,
        };

        let next = self.layer_from(layer + 1);
        let rounding = if next == n_layers { Rounding::Exact } else { Rounding::Up };
        self.0.work.weights[layer] = weight;
        self.0.held.entropies[layer] = spread.entropy;
        self.0.held.masses[layer] = spread.mass;
        match options.layers {
            LayerShare::Global => self.plan_all(layer, shape, scores, rounding),
            _ => self.share(layer, rounding).map_err(at)?,
        }

        let n_pushes = self.0.header.n_pushes();
        let evicted = n_pushes.is_multiple_of(options.evict_every.max(1));
        if evicted {
            let held = &mut self.0.held;
            let earlier = ..held.cu_range(layer).start;
            held.cu_rows[earlier].copy_from_slice(&held.cu_kept[earlier]);
        }
        let mut to = 0;
        for l in 0..layer {
            to = self.shrink(l, rounding, evicted, to);
        }
        self.append(layer, shape, scores, rounding, to);
        self.0.header.set_pushed(next, n_pushes + 1);
        Ok(())
    }

    /// Checks that `shape` has the numbers that the cascade was started with.
    fn check_shape(&self, layer: usize, shape: &Shape) -> Result<()> {
        let State { held, work, options, .. } = &self.0;
        let heads = held.heads(layer);
        let same = heads.len() == shape.n_kv_heads
            && work.n_scores[layer] == shape.n_scores()
            && work.window_rows[layer] == shape.window_rows() as u64
            && work.live[heads].iter().enumerate().all(|(h, &live)| live as usize == shape.live(h).len())
            && options.select.protected_mask.is_none_or(|mask| mask.len() >= shape.prefix_len())
            && work.least[layer] == options.select.layer_minimum(shape);
        ensure(same, ErrorKind::Shape, c"shape")
    }

    /// The layers so far share the total.
    fn share(&mut self, layer: usize, rounding: Rounding) -> Result<()> {
        let State { held, work, options, .. } = &mut self.0;
        let n = layer + 1;
        let bounds = Bounds { least: &work.least[..n], most: &work.most[..n] };
        let weight = |l: usize| work.weights[l];
        budget::share(weight, bounds, options.total, rounding, &mut held.n_entries[..n])
    }

    /// The heads of all layers so far compete for the total.
    fn plan_all(&mut self, layer: usize, shape: &Shape, scores: &[f32], rounding: Rounding) {
        let State { held, work, options, buffers, .. } = &mut self.0;
        let params = options.select;
        let new = Some(Scored::layer(shape, scores, &params));
        let entries = SoFar { layers: 0..layer, held, work, params, new };
        let there = entries.heads().map(|head| head.scores.len() as u64).sum();
        select::plan(&entries, &params, options.total.min(there), rounding, buffers);
    }

    /// Compresses an earlier layer further and moves what is left of it to row `to`. Returns the row after it.
    fn shrink(&mut self, layer: usize, rounding: Rounding, evicted: bool, mut to: usize) -> usize {
        let State { held, work, options, buffers, .. } = &mut self.0;
        let params = options.of_heads(held.heads(layer));
        let planned = options.layers == LayerShare::Global;
        if !planned {
            let entries = SoFar { layers: layer..layer + 1, held, work, params, new: None };
            let there = entries.heads().map(|head| head.scores.len() as u64).sum();
            select::plan(&entries, &params, held.n_entries[layer].min(there), rounding, buffers);
        }

        let heads = held.heads(layer);
        let first_head = if planned { heads.start } else { 0 };
        let window_rows = work.window_rows[layer] as usize;
        let cu_range = held.cu_range(layer);
        let from = core::mem::replace(&mut held.starts[layer], to as u64) as usize;
        let start = to;
        let mut kept_mass = 0.0;
        let mut end = 0;
        for head in 0..heads.len() {
            let begin = end;
            let cu = &mut held.cu_kept[cu_range.start + head + 1];
            end = *cu as usize;
            let mut keep = buffers.keeper(first_head + head);
            for row in 0..end - begin {
                // `to` never passes `at`: rows move towards the front only.
                let at = from + begin + row;
                let (score, position) = (work.scores[at], held.kept_indices[at]);
                let in_window = row >= end - begin - window_rows;
                if in_window || keep(entry_key(score, params.protects(position as usize))) {
                    held.rows[to] = if evicted { row as u32 } else { held.rows[at] };
                    (work.scores[to], held.kept_indices[to]) = (score, position);
                    kept_mass += if in_window { 0.0 } else { score as f64 };
                    to += 1;
                }
            }
            *cu = (to - start) as u32;
        }
        self.settle(layer, to - start, kept_mass);
        to
    }

    /// Takes in the new layer from row `to` on.
    fn append(&mut self, layer: usize, shape: &Shape, scores: &[f32], rounding: Rounding, mut to: usize) {
        let State { held, work, options, buffers, .. } = &mut self.0;
        let params = options.of_heads(held.heads(layer));
        let entries = Scored::layer(shape, scores, &params);
        let planned = options.layers == LayerShare::Global;
        if !planned {
            select::plan(&entries, &params, held.n_entries[layer], rounding, buffers);
        }

        let first_head = if planned { held.heads(layer).start } else { 0 };
        let cu_range = held.cu_range(layer);
        held.starts[layer] = to as u64;
        let start = to;
        let mut kept_mass = 0.0;
        let (mut n_rows, cu_kept, cu_rows) =
            (0, &mut held.cu_kept[cu_range.clone()], &mut held.cu_rows[cu_range]);
        for (h, head) in entries.heads().enumerate() {
            let mut keep = buffers.keeper(first_head + h);
            let first = shape.live(h).start;
            let mut hold = |row: usize, score: f32| {
                work.scores[to] = score;
                held.kept_indices[to] = shape.position(h, row) as u32;
                held.rows[to] = row as u32;
                to += 1;
            };
            head.for_each(|i, key| {
                if keep(key) {
                    kept_mass += head.scores[i] as f64;
                    hold(first + i, head.scores[i]);
                }
            });
            (shape.prefix_rows(h)..shape.rows(h)).for_each(|row| hold(row, 0.0));
            n_rows += shape.rows(h);
            (cu_kept[h + 1], cu_rows[h + 1]) = ((to - start) as u32, n_rows as u32);
        }
        (cu_kept[0], cu_rows[0]) = (0, 0);
        self.settle(layer, to - start, kept_mass);
    }

    fn settle(&mut self, layer: usize, n_rows: usize, kept_mass: f64) {
        let State { held, work, .. } = &mut self.0;
        let kept = n_rows as u64 - held.heads(layer).len() as u64 * work.window_rows[layer];
        held.n_entries[layer] = kept;
        held.evicted_shares[layer] = evicted_share(kept == work.most[layer], held.masses[layer], kept_mass);
    }

    /// What layer `layer` keeps after the last push: nothing if it takes no part.
    pub fn layer(&self, layer: usize) -> Result<CascadeLayer<'_>> {
        self.0.held.layer(layer, self.next_layer())
    }
}

impl<'a> CascadeView<'a> {
    /// Reads a cascade in memory that [`Cascade::new`] has filled.
    pub fn read(state: &mut Reader<'a>) -> Result<Self> {
        let (header, held) = state::read(state)?;
        Ok(Self { next_layer: header.next_layer(), held })
    }

    /// As [`Cascade::layer`].
    pub fn layer(&self, layer: usize) -> Result<CascadeLayer<'_>> {
        self.held.layer(layer, self.next_layer)
    }
}

/// Entries that layers still hold, and those of a new layer after them.
struct SoFar<'s, 'a> {
    layers: Range<usize>,
    held: &'s Held<'a, Carver<'a>>,
    work: &'s Work<'a>,
    params: SelectParams<'s>,
    new: Option<Scored<'s, [Shape<'s>]>>,
}

impl SoFar<'_, '_> {
    fn layer(&self, layer: usize) -> impl Iterator<Item = Head<'_>> {
        let Self { held, work, params, .. } = self;
        let first = held.starts[layer] as usize;
        let heads = held.cu_kept[held.cu_range(layer)].windows(2).zip(&work.live[held.heads(layer)]);
        heads.map(move |(cu, &live)| {
            let end = first + cu[1] as usize - work.window_rows[layer] as usize;
            let rows = first + cu[0] as usize..end;
            let positions = Positions::At(&held.kept_indices[rows.clone()]);
            Head::new(&work.scores[rows], positions, live as usize, params)
        })
    }
}

impl Entries for SoFar<'_, '_> {
    fn n_heads(&self) -> usize {
        let earlier = self.layers.clone().map(|l| self.held.heads(l).len()).sum::<usize>();
        earlier + self.new.as_ref().map_or(0, |new| new.n_heads())
    }

    fn heads(&self) -> impl Iterator<Item = Head<'_>> {
        self.layers.clone().flat_map(|l| self.layer(l)).chain(self.new.iter().flat_map(|new| new.heads()))
    }
}
