//! From scores to the kept set: a threshold, never a sort.
//!
//! The kept set is a function of the scores. Scores become integer keys with the same order; the `b` largest keys of the
//! layer are found by a radix histogram, and of the keys equal to the threshold the first are taken: lower head first,
//! then lower token. Plateaus are common after max-pooling, so that rule decides often.
//!
//! A head's budget is how many of its entries are among the kept. The head floors only change those counts; every head
//! always keeps its own best. Time is linear in the number of entries.
//!
//! Source: arXiv 2509.09754, section 4.2; floors as in Ada-KV (arXiv 2407.11550).

use crate::budget::{self, Rounding};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, SelectParams, Shape};
use crate::workspace::{Carver, size_of_carve};

/// What a selection did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Kept rows over all heads, window included: `cu_kept[n_kv_heads]`.
    pub n_kept: u64,
    /// Kept prefix entries: the budget, or all there are.
    pub budget: u64,
    /// Nothing was evicted.
    pub everything_kept: bool,
    /// ΣS over the prefix.
    pub mass: f64,
    /// The evicted scores' share of `mass`: up to the constant 2·C, the paper's bound on the change of the attention output.
    pub evicted_share: f64,
}

/// Bits per radix pass: 11 + 11 + 10.
const DIGIT_BITS: u32 = 11;
const BUCKETS: usize = 1 << DIGIT_BITS;
/// Key of a protected entry, above every score's.
const PROTECTED: u32 = u32::MAX;

/// An integer with the order of the score.
#[inline(always)]
fn order_key(score: f32) -> u32 {
    // -0.0 and 0.0 are the same score.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// The key by which an entry competes.
#[inline(always)]
pub(crate) fn entry_key(score: f32, is_protected: bool) -> u32 {
    if is_protected { PROTECTED } else { order_key(score) }
}

/// Scored entries of a layer, head by head in token order. Dense before the first eviction, ragged in a cascade.
pub(crate) trait Entries {
    /// KV heads.
    fn n_heads(&self) -> usize;
    /// Entries of a head, without its window.
    fn len(&self, head: usize) -> usize;
    /// Score of an entry.
    fn score(&self, head: usize, i: usize) -> f32;
    /// Whether it is kept whatever its score.
    fn is_protected(&self, head: usize, i: usize) -> bool;

    #[inline(always)]
    fn key(&self, head: usize, i: usize) -> u32 {
        entry_key(self.score(head, i), self.is_protected(head, i))
    }
}

/// Which entries of a head are kept: those with a key above `key`, and the first `ties` with that key.
#[derive(Clone, Copy, Debug)]
struct Cut {
    key: u32,
    ties: u64,
}

impl Cut {
    const NOTHING: Self = Self { key: u32::MAX, ties: 0 };

    /// A filter for a head's keys in token order.
    #[inline(always)]
    fn keeper(self) -> impl FnMut(u32) -> bool + use<> {
        let mut ties = self.ties;
        move |key| {
            let tie = key == self.key && ties > 0;
            ties -= tie as u64;
            key > self.key || tie
        }
    }
}

/// Memory of a selection: a histogram and a few numbers per head.
pub(crate) struct Buffers<'a> {
    histogram: &'a mut [u32],
    cut_key: &'a mut [u32],
    cut_ties: &'a mut [u64],
    /// How many entries each head keeps.
    pub counts: &'a mut [u64],
    spare: &'a mut [u64],
}

impl<'a> Buffers<'a> {
    pub fn carve(c: &mut Carver<'a>, n_kv_heads: usize) -> Result<Self> {
        Ok(Self {
            histogram: c.take(BUCKETS)?,
            cut_key: c.take(n_kv_heads)?,
            cut_ties: c.take(n_kv_heads)?,
            counts: c.take(n_kv_heads)?,
            spare: c.take(n_kv_heads)?,
        })
    }

    /// The part for the first `n_heads`: in a cascade there are fewer heads at first.
    fn first(&mut self, n_heads: usize) -> Buffers<'_> {
        Buffers {
            histogram: self.histogram,
            cut_key: &mut self.cut_key[..n_heads],
            cut_ties: &mut self.cut_ties[..n_heads],
            counts: &mut self.counts[..n_heads],
            spare: &mut self.spare[..n_heads],
        }
    }

    fn set_cut(&mut self, head: usize, cut: Cut) {
        (self.cut_key[head], self.cut_ties[head]) = (cut.key, cut.ties);
    }

    /// A filter that keeps, of a head's entries shown in order, what [`plan`] decided.
    pub fn keeper(&self, head: usize) -> impl FnMut(u32) -> bool + use<> {
        Cut { key: self.cut_key[head], ties: self.cut_ties[head] }.keeper()
    }
}

/// Keys that can be gone through more than once.
trait Keys {
    fn for_each(&self, f: impl FnMut(u32));
}

/// One head's keys.
struct HeadKeys<'a, E>(&'a E, usize);

impl<E: Entries> Keys for HeadKeys<'_, E> {
    #[inline(always)]
    fn for_each(&self, f: impl FnMut(u32)) {
        let Self(entries, head) = *self;
        (0..entries.len(head)).map(|i| entries.key(head, i)).for_each(f);
    }
}

/// All heads' keys but those that the floor has taken.
struct Competing<'a, E> {
    entries: &'a E,
    taken_key: &'a [u32],
    taken_ties: &'a [u64],
}

impl<E: Entries> Competing<'_, E> {
    #[inline(always)]
    fn head(&self, head: usize) -> impl Iterator<Item = u32> {
        let mut taken = Cut { key: self.taken_key[head], ties: self.taken_ties[head] }.keeper();
        let entries = self.entries;
        (0..entries.len(head)).map(move |i| entries.key(head, i)).filter(move |&key| !taken(key))
    }
}

impl<E: Entries> Keys for &Competing<'_, E> {
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(u32)) {
        for head in 0..self.entries.n_heads() {
            self.head(head).for_each(&mut f);
        }
    }
}

/// The `k`-th largest of `keys`, as a cut that keeps exactly `k` of them. `k ≥ 1` and at most their
/// number.
fn kth_largest(k: u64, histogram: &mut [u32], keys: impl Keys) -> Cut {
    let mut wanted = k;
    let (mut prefix, mut fixed_bits) = (0u32, 0u32);
    while fixed_bits < 32 {
        let bits = DIGIT_BITS.min(32 - fixed_bits);
        let shift = 32 - fixed_bits - bits;
        histogram.fill(0);
        let mask = (1u32 << bits) - 1;
        keys.for_each(|key| {
            let is_candidate = fixed_bits == 0 || key >> (32 - fixed_bits) == prefix;
            histogram[(key >> shift & mask) as usize] += is_candidate as u32;
        });
        let mut bucket = mask as usize;
        while (histogram[bucket] as u64) < wanted {
            wanted -= histogram[bucket] as u64;
            bucket -= 1;
        }
        prefix = if fixed_bits == 0 { 0 } else { prefix << bits } | bucket as u32;
        fixed_bits += bits;
    }
    Cut { key: prefix, ties: wanted }
}

/// Decides how many entries each head keeps and where its cut is. `budget` counts prefix entries and is at most their
/// number; it holds each head's `minimum`, the protected ones among them.
///
/// With [`Rounding::Up`] the set is the smallest that this file can promise to hold every set that the same entries would
/// give for `budget` or less, with any rounding: what a cascade may not evict yet. Without a floor that is the set itself.
pub(crate) fn plan<E: Entries>(
    entries: &E,
    params: &SelectParams,
    minimum: u64,
    budget: u64,
    rounding: Rounding,
    b: &mut Buffers,
) {
    let n_heads = entries.n_heads();
    let b = &mut b.first(n_heads);
    match params.head_weights {
        Some(weights) => {
            b.spare.iter_mut().enumerate().for_each(|(head, len)| *len = entries.len(head) as u64);
            let least = |head: usize| minimum.min(entries.len(head) as u64);
            budget::water_fill(&weights[..n_heads], b.spare, least, budget, rounding, b.counts);
        }
        None if compete(entries, params, budget, rounding, b) => return,
        None => {}
    }
    for head in 0..n_heads {
        b.counts[head] = b.counts[head].min(entries.len(head) as u64);
        let cut = if b.counts[head] == 0 {
            Cut::NOTHING
        } else {
            kth_largest(b.counts[head], b.histogram, HeadKeys(entries, head))
        };
        b.set_cut(head, cut);
    }
}

/// The counts of heads that compete, floors included. Returns whether the cuts are known with them.
fn compete<E: Entries>(
    entries: &E,
    params: &SelectParams,
    budget: u64,
    rounding: Rounding,
    b: &mut Buffers,
) -> bool {
    let n_heads = entries.n_heads();
    let floor = match params.head_floor {
        HeadFloor::Guaranteed => budget::guaranteed_floor(params.alpha, budget, n_heads),
        _ => 0,
    };
    let floor = floor.max(params.head_min as u64);

    // Free competition, of all entries or of those that the floor has not taken.
    let guarantee = if rounding == Rounding::Exact { floor } else { 0 };
    for head in 0..n_heads {
        let cut = if guarantee == 0 {
            Cut::NOTHING
        } else {
            kth_largest(guarantee.min(entries.len(head) as u64), b.histogram, HeadKeys(entries, head))
        };
        b.set_cut(head, cut);
        b.counts[head] = guarantee.min(entries.len(head) as u64);
    }
    let left = budget - b.counts.iter().sum::<u64>();
    if left > 0 {
        let competing = Competing { entries, taken_key: b.cut_key, taken_ties: b.cut_ties };
        let threshold = kth_largest(left, b.histogram, &competing);
        let mut ties = threshold.ties;
        for head in 0..n_heads {
            let (mut above, mut equal) = (0u64, 0u64);
            for key in competing.head(head) {
                above += (key > threshold.key) as u64;
                equal += (key == threshold.key) as u64;
            }
            // Ties go to the lower head.
            let won = equal.min(ties);
            ties -= won;
            b.counts[head] += above + won;
            b.spare[head] = won;
        }
        if guarantee == 0 {
            b.cut_key.fill(threshold.key);
            b.cut_ties.copy_from_slice(b.spare);
        }
    }

    for head in 0..n_heads {
        b.counts[head] = b.counts[head].max(floor.min(entries.len(head) as u64));
    }
    if params.head_floor == HeadFloor::Affine {
        b.spare.copy_from_slice(b.counts);
        budget::affine_counts(params.alpha, budget, rounding, b.spare, b.counts);
        if rounding == Rounding::Up {
            // The counts of a later, smaller budget start from free competition again.
            b.counts.iter_mut().zip(&*b.spare).for_each(|(count, &free)| *count = (*count).max(free));
        }
    }
    floor == 0 && params.head_floor != HeadFloor::Affine
}

/// Scores as `lava_score` leaves them: `[n_kv_heads, prefix_len]`.
pub(crate) struct Dense<'a> {
    pub scores: &'a [f32],
    pub n_kv_heads: usize,
    pub prefix_len: usize,
    pub params: SelectParams<'a>,
}

impl Entries for Dense<'_> {
    fn n_heads(&self) -> usize {
        self.n_kv_heads
    }
    fn len(&self, _: usize) -> usize {
        self.prefix_len
    }
    #[inline(always)]
    fn score(&self, head: usize, i: usize) -> f32 {
        self.scores[head * self.prefix_len + i]
    }
    #[inline(always)]
    fn is_protected(&self, _: usize, i: usize) -> bool {
        self.params.protects(i)
    }
}

/// Bytes of workspace that [`select`] needs.
pub fn workspace_size(shape: &Shape) -> Result<usize> {
    shape.validate()?;
    size_of_carve(|c| Buffers::carve(c, shape.n_kv_heads))
}

/// Rows that [`select`] writes for a layer budget: the entries of `kept_indices`.
pub fn n_kept(shape: &Shape, budget: u64) -> Result<u64> {
    shape.validate()?;
    let window = (shape.n_tokens - shape.prefix_len()) as u64 * shape.n_kv_heads as u64;
    Ok(budget.min(shape.prefix_entries()) + window)
}

/// Keeps the `budget` best prefix entries of a layer, and every head's window.
///
/// `kept_indices` receives each head's token positions, ascending, head behind head; `cu_kept` the exclusive prefix sum of
/// the counts, `n_kv_heads + 1` entries from 0. On an error nothing is written.
pub fn select(
    shape: &Shape,
    params: &SelectParams,
    scores: &[f32],
    budget: u64,
    workspace: &mut Carver,
    kept_indices: &mut [u32],
    cu_kept: &mut [u32],
) -> Result<Selection> {
    shape.validate()?;
    let prefix_len = shape.prefix_len();
    params.validate(shape.n_kv_heads, prefix_len).map_err(|e| e.at_layer(shape.layer))?;
    let n_entries = shape.prefix_entries() as usize;
    ensure(scores.len() >= n_entries, ErrorKind::BufferSize, c"scores")?;
    let n_kept = n_kept(shape, budget)?;
    ensure(kept_indices.len() as u64 >= n_kept, ErrorKind::BufferSize, c"kept_indices")?;
    ensure(cu_kept.len() > shape.n_kv_heads, ErrorKind::BufferSize, c"cu_kept")?;
    let minimum = params.minimum(prefix_len) as u64;
    let budget = budget.min(n_entries as u64);
    ensure(budget >= minimum * shape.n_kv_heads as u64, ErrorKind::Budget, c"budget")
        .map_err(|e| e.at_layer(shape.layer))?;
    let mut buffers = Buffers::carve(workspace, shape.n_kv_heads)?;
    check_finite(&scores[..n_entries], prefix_len).map_err(|e| e.at_layer(shape.layer))?;

    let entries = Dense { scores, n_kv_heads: shape.n_kv_heads, prefix_len, params: *params };
    plan(&entries, params, minimum, budget, Rounding::Exact, &mut buffers);
    let mut n = 0;
    let mut kept_mass = 0.0;
    cu_kept[0] = 0;
    for head in 0..shape.n_kv_heads {
        let mut keep = buffers.keeper(head);
        for i in (0..prefix_len).filter(|&i| keep(entries.key(head, i))) {
            kept_indices[n] = i as u32;
            kept_mass += entries.score(head, i) as f64;
            n += 1;
        }
        for i in prefix_len..shape.n_tokens {
            kept_indices[n] = i as u32;
            n += 1;
        }
        cu_kept[head + 1] = n as u32;
    }
    debug_assert_eq!(n as u64, n_kept);
    let everything_kept = budget == n_entries as u64;
    let mass = crate::entropy::mass(&scores[..n_entries], prefix_len);
    Ok(Selection {
        n_kept,
        budget,
        everything_kept,
        mass,
        evicted_share: evicted_share(everything_kept, mass, kept_mass),
    })
}

/// That scores are numbers; an error names the head.
fn check_finite(scores: &[f32], prefix_len: usize) -> Result<()> {
    for (h, head) in scores.chunks_exact(prefix_len.max(1)).enumerate() {
        ensure(head.iter().all(|s| s.is_finite()), ErrorKind::NonFinite, c"scores")
            .map_err(|e| e.at_head(h))?;
    }
    Ok(())
}

/// Sizes of a model whose layers' heads compete as those of one layer do. Their entries must be below 2³² all together.
pub(crate) fn as_one_layer(shape: &Shape, n_layers: usize) -> Result<Shape> {
    shape.validate()?;
    ensure(n_layers > 0 && n_layers <= budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
    let n_kv_heads =
        shape.n_kv_heads.checked_mul(n_layers).ok_or(Error::new(ErrorKind::Overflow, c"n_layers"))?;
    let all = Shape { n_kv_heads, n_q_heads: n_kv_heads, window: 1, ..*shape };
    all.validate().map_err(|_| Error::new(ErrorKind::Overflow, c"n_layers"))?;
    Ok(Shape { window: shape.window, ..all })
}

/// Bytes of workspace that [`global_budgets`] needs.
pub fn global_budgets_workspace_size(shape: &Shape, n_layers: usize) -> Result<usize> {
    let all = as_one_layer(shape, n_layers)?;
    size_of_carve(|c| Buffers::carve(c, all.n_kv_heads))
}

/// Head budgets by one sort over all layers: the `total` largest scores of the model win, whichever layer and head they are in; ties go
/// to the lower layer, then the lower head, then the lower token.
///
/// `scores` is `[n_layers, n_kv_heads, prefix_len]`. `budgets`, `[n_layers]`, receives each layer's prefix entries, which sum to
/// `min(total, all there are)`, and `head_weights`, `[n_layers, n_kv_heads]`, each head's. A layer's part of that as
/// [`SelectParams::head_weights`], and its budget, make [`select`] keep exactly those entries. Floors are as in one layer: with α each head's top `⌊α · total / (n_layers · n_kv_heads)⌋`, with `head_min` its
/// top so many; `Affine` and `head_weights` have no meaning here.
///
/// Source: KV-Compress (arXiv 2410.00161) sorts squared attention so; for LAVa's score it minimises the paper's bound summed
/// over the layers.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn global_budgets(
    shape: &Shape,
    n_layers: usize,
    params: &SelectParams,
    scores: &[f32],
    total: u64,
    workspace: &mut Carver,
    budgets: &mut [u64],
    head_weights: &mut [f64],
) -> Result<()> {
    let all = as_one_layer(shape, n_layers)?;
    let prefix_len = shape.prefix_len();
    check_global(params)?;
    params.validate(all.n_kv_heads, prefix_len)?;
    let n_entries = all.n_kv_heads * prefix_len;
    ensure(scores.len() >= n_entries, ErrorKind::BufferSize, c"scores")?;
    ensure(budgets.len() >= n_layers, ErrorKind::BufferSize, c"budgets")?;
    ensure(head_weights.len() >= all.n_kv_heads, ErrorKind::BufferSize, c"head_weights")?;
    let minimum = params.minimum(prefix_len) as u64;
    let total = total.min(n_entries as u64);
    ensure(total >= minimum * all.n_kv_heads as u64, ErrorKind::Budget, c"total")?;
    let mut buffers = Buffers::carve(workspace, all.n_kv_heads)?;
    for (l, layer) in scores[..n_entries].chunks_exact((shape.n_kv_heads * prefix_len).max(1)).enumerate() {
        check_finite(layer, prefix_len).map_err(|e| e.at_layer(l as u32))?;
    }
    let entries = Dense { scores, n_kv_heads: all.n_kv_heads, prefix_len, params: *params };
    plan(&entries, params, minimum, total, Rounding::Exact, &mut buffers);
    head_weights.iter_mut().zip(&*buffers.counts).for_each(|(weight, &count)| *weight = count as f64);
    let layers = buffers.counts.chunks_exact(shape.n_kv_heads);
    budgets.iter_mut().zip(layers).for_each(|(budget, heads)| *budget = heads.iter().sum());
    Ok(())
}

/// That the options mean something where the heads of all layers compete.
pub(crate) fn check_global(params: &SelectParams) -> Result<()> {
    ensure(params.head_floor != HeadFloor::Affine, ErrorKind::Argument, c"head_floor")?;
    ensure(params.head_weights.is_none(), ErrorKind::Argument, c"head_weights")
}

/// `1 − kept / mass`, between 0 and 1. Both sums run in head and token order, so a cascade, which still has the kept scores
/// but not the evicted ones, arrives at the same bits.
pub(crate) fn evicted_share(everything_kept: bool, mass: f64, kept_mass: f64) -> f64 {
    if everything_kept || mass <= 0.0 { 0.0 } else { (1.0 - kept_mass / mass).clamp(0.0, 1.0) }
}

/// Bytes of workspace that [`budget_for_share`] needs.
pub fn budget_for_share_workspace_size() -> Result<usize> {
    size_of_carve(carve_share)
}

fn carve_share<'a>(c: &mut Carver<'a>) -> Result<(&'a mut [u32], &'a mut [f64])> {
    Ok((c.take(BUCKETS)?, c.take(BUCKETS)?))
}

/// The smallest layer budget whose evicted share of score mass is at most `epsilon`, give or take 1e-12, without head
/// floors or protected entries.
///
/// `scores` is `[n_kv_heads, prefix_len]`, not negative.
pub fn budget_for_share(scores: &[f32], epsilon: f64, workspace: &mut Carver) -> Result<u64> {
    ensure((0.0..=1.0).contains(&epsilon), ErrorKind::Argument, c"epsilon")?;
    ensure(scores.iter().all(|s| *s >= 0.0 && s.is_finite()), ErrorKind::NonFinite, c"scores")?;
    let (counts, masses) = carve_share(workspace)?;
    let mass: f64 = scores.iter().map(|&s| s as f64).sum();
    // Less than f64 sums in another order may differ by would ask for entries that add nothing.
    let wanted = mass * (1.0 - epsilon - 1e-12);
    // As in `kth_largest`, but a digit is settled by the mass above it instead of the count.
    let (mut budget, mut kept) = (0u64, 0.0f64);
    let (mut prefix, mut fixed_bits) = (0u32, 0u32);
    while fixed_bits < 32 {
        let bits = DIGIT_BITS.min(32 - fixed_bits);
        let shift = 32 - fixed_bits - bits;
        let mask = (1u32 << bits) - 1;
        counts.fill(0);
        masses.fill(0.0);
        for &score in scores {
            let key = order_key(score);
            if fixed_bits == 0 || key >> (32 - fixed_bits) == prefix {
                let bucket = (key >> shift & mask) as usize;
                counts[bucket] += 1;
                masses[bucket] += score as f64;
            }
        }
        let mut bucket = mask as usize;
        while bucket > 0 && kept + masses[bucket] < wanted {
            kept += masses[bucket];
            budget += counts[bucket] as u64;
            bucket -= 1;
        }
        prefix = if fixed_bits == 0 { 0 } else { prefix << bits } | bucket as u32;
        fixed_bits += bits;
    }
    // What is left are equal scores.
    let score = f32::from_bits(prefix & 0x7FFF_FFFF) as f64;
    let missing = wanted - kept;
    if missing > 0.0 && score > 0.0 {
        budget += libm::ceil(missing / score) as u64;
    }
    Ok(budget.min(scores.len() as u64))
}
