//! How many entries each head keeps, and where its cut is: a threshold, never a sort.
//!
//! Scores become integer keys with the same order; the `b` largest keys are found by a radix histogram, and of the keys equal
//! to the threshold the first are taken: lower head first, then lower token. Head floors only change how many entries a head
//! keeps; every head always keeps its own best.

use core::ops::Range;

use super::entries::{Entries, Head};
use crate::budget::{self, Bounds, Rounding};
use crate::error::Result;
use crate::params::{HeadFloor, SelectParams};
use crate::workspace::Carver;

/// Bits per radix pass: 11 + 11 + 10.
pub(super) const DIGIT_BITS: u32 = 11;
pub(super) const BUCKETS: usize = 1 << DIGIT_BITS;

/// Which entries of a head are kept: those with a key above `key`, and the first `ties` with that key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    key: u32,
    ties: u64,
}

impl Cut {
    pub const NOTHING: Self = Self { key: u32::MAX, ties: 0 };

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

    /// What this cut keeps, and what `other` keeps of the rest.
    fn and(self, other: Self) -> Self {
        match self.key.cmp(&other.key) {
            core::cmp::Ordering::Less => self,
            core::cmp::Ordering::Equal => Self { key: self.key, ties: self.ties + other.ties },
            core::cmp::Ordering::Greater => other,
        }
    }
}

/// Memory of a selection: a histogram and a few numbers per head.
pub(crate) struct Buffers<'a> {
    pub histogram: &'a mut [u32],
    cut_key: &'a mut [u32],
    cut_ties: &'a mut [u64],
    /// How many entries each head keeps.
    pub counts: &'a mut [u64],
    /// What it keeps before any compete, and what it can keep.
    pub least: &'a mut [u64],
    pub most: &'a mut [u64],
    /// While heads compete: entries beyond the threshold, and at it.
    pub spare: &'a mut [u64],
    pub equal: &'a mut [u64],
}

impl<'a> Buffers<'a> {
    pub fn carve(c: &mut Carver<'a>, n_heads: usize) -> Result<Self> {
        Ok(Self {
            histogram: c.take(BUCKETS)?,
            cut_key: c.take(n_heads)?,
            cut_ties: c.take(n_heads)?,
            counts: c.take(n_heads)?,
            least: c.take(n_heads)?,
            most: c.take(n_heads)?,
            spare: c.take(n_heads)?,
            equal: c.take(n_heads)?,
        })
    }

    /// The part for these heads: a cascade has memory for its largest layer, or for all layers' heads; ranks decide layer by layer.
    pub fn of(&mut self, heads: Range<usize>) -> Buffers<'_> {
        Buffers {
            histogram: self.histogram,
            cut_key: &mut self.cut_key[heads.clone()],
            cut_ties: &mut self.cut_ties[heads.clone()],
            counts: &mut self.counts[heads.clone()],
            least: &mut self.least[heads.clone()],
            most: &mut self.most[heads.clone()],
            spare: &mut self.spare[heads.clone()],
            equal: &mut self.equal[heads],
        }
    }

    /// What heads keep before any compete, and what they can keep.
    pub fn bounds(&self) -> Bounds<'_> {
        Bounds { least: self.least, most: self.most }
    }

    fn cut(&self, head: usize) -> Cut {
        Cut { key: self.cut_key[head], ties: self.cut_ties[head] }
    }

    pub(crate) fn set_cut(&mut self, head: usize, cut: Cut) {
        (self.cut_key[head], self.cut_ties[head]) = (cut.key, cut.ties);
    }

    /// A filter that keeps, of a head's entries shown in order, what [`plan`] decided.
    pub fn keeper(&self, head: usize) -> impl FnMut(u32) -> bool + use<> {
        self.cut(head).keeper()
    }
}

/// Keys that can be read more than once.
trait Keys {
    fn for_each(&self, f: impl FnMut(u32));
}

impl Keys for Head<'_> {
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(u32)) {
        Head::for_each(self, |_, key| f(key));
    }
}

/// All heads' keys.
struct All<'a, E>(&'a E);

impl<E: Entries> Keys for All<'_, E> {
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(u32)) {
        self.0.heads().for_each(|head| head.for_each(|_, key| f(key)));
    }
}

/// All heads' keys but those that the cuts keep already.
struct Left<'a, E> {
    entries: &'a E,
    cut_key: &'a [u32],
    cut_ties: &'a [u64],
}

impl<E: Entries> Keys for Left<'_, E> {
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(u32)) {
        let cuts = self.cut_key.iter().zip(self.cut_ties);
        for (head, (&key, &ties)) in self.entries.heads().zip(cuts) {
            let mut taken = Cut { key, ties }.keeper();
            head.for_each(|_, key| {
                if !taken(key) {
                    f(key);
                }
            });
        }
    }
}

/// A search for the `wanted`-th largest key, digit by digit from the top: count the keys that are still in question by their next digit,
/// settle that digit. Counts of several places may be summed in between, which is how ranks agree on a threshold.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    pub wanted: u64,
    pub prefix: u32,
    pub fixed_bits: u32,
}

impl Search {
    /// For the `k`-th largest of keys of which there are as many.
    pub fn new(k: u64) -> Self {
        Self { wanted: k, prefix: 0, fixed_bits: 0 }
    }

    /// Counts keys by their next digit, of `bits` bits.
    #[inline(always)]
    fn count(self, bits: u32, keys: &impl Keys, histogram: &mut [u32]) {
        let Self { prefix, fixed_bits, .. } = self;
        let shift = 32 - fixed_bits - bits;
        let mask = (1u32 << bits) - 1;
        let histogram = &mut histogram[..1 << bits];
        histogram.fill(0);
        keys.for_each(|key| {
            let is_candidate = fixed_bits == 0 || key >> (32 - fixed_bits) == prefix;
            histogram[(key >> shift & mask) as usize] += is_candidate as u32;
        });
    }

    /// Settles that digit by the counts. Nothing where they are fewer keys than are wanted, which only counts from elsewhere can be.
    pub fn settle(self, bits: u32, count: impl Fn(usize) -> u64) -> Option<Self> {
        let mut wanted = self.wanted;
        for bucket in (0..1usize << bits).rev() {
            let here = count(bucket);
            if here >= wanted {
                let prefix = if self.fixed_bits == 0 { 0 } else { self.prefix << bits } | bucket as u32;
                return Some(Self { wanted, prefix, fixed_bits: self.fixed_bits + bits });
            }
            wanted -= here;
        }
        None
    }

    /// A cut that keeps exactly as many, once all digits are settled.
    pub fn cut(self) -> Cut {
        Cut { key: self.prefix, ties: self.wanted }
    }
}

/// The `k`-th largest of `keys`, as a cut that keeps exactly `k` of them. `k ≥ 1` and at most their
/// number.
fn kth_largest(k: u64, histogram: &mut [u32], keys: &impl Keys) -> Cut {
    let mut search = Search::new(k);
    while search.fixed_bits < 32 {
        let bits = DIGIT_BITS.min(32 - search.fixed_bits);
        search.count(bits, keys, histogram);
        let Some(next) = search.settle(bits, |bucket| histogram[bucket] as u64) else {
            debug_assert!(false, "more are wanted than there are");
            break;
        };
        search = next;
    }
    search.cut()
}

/// A head's best `n`.
pub(crate) fn best(head: &Head, n: u64, histogram: &mut [u32]) -> Cut {
    if n == 0 { Cut::NOTHING } else { kth_largest(n, histogram, head) }
}

/// Decides how many entries each head keeps and where its cut is. `n_entries` is at most the number of entries, and not less than
/// what the heads keep before any compete: what is protected, or `head_min` if that is more.
///
/// With [`Rounding::Up`] the set is the smallest that this file can promise to hold every set that the same entries would
/// give for `n_entries` or less, with any rounding: what a cascade may not evict yet. Without a floor that is the set itself.
pub(crate) fn plan<E: Entries>(
    entries: &E,
    params: &SelectParams,
    n_entries: u64,
    rounding: Rounding,
    b: &mut Buffers,
) {
    let b = &mut b.of(0..entries.n_heads());
    for (h, head) in entries.heads().enumerate() {
        b.least[h] = least(&head, params);
        b.most[h] = head.capacity as u64;
    }
    match params.head_weights {
        Some(weights) => {
            let bounds = Bounds { least: b.least, most: b.most };
            budget::water_fill(|h| weights[h], bounds, n_entries, rounding, b.counts);
        }
        None => {
            compete(entries, params, n_entries, rounding, b);
            if params.head_floor != HeadFloor::Affine {
                return;
            }
            mix(params, n_entries, rounding, b);
        }
    }
    for (h, head) in entries.heads().enumerate() {
        b.counts[h] = b.counts[h].min(head.scores.len() as u64);
        let cut = best(&head, b.counts[h], b.histogram);
        b.set_cut(h, cut);
    }
}

/// What a head keeps before any compete.
pub(crate) fn least(head: &Head, params: &SelectParams) -> u64 {
    head.n_protected().max(params.head_min.min(head.capacity)) as u64
}

/// What heads are promised before their entries compete.
#[derive(Clone, Copy)]
pub(crate) struct Promise {
    floor: u64,
    /// Whether anything is. What is protected wins anyway.
    pub any: bool,
}

impl Promise {
    pub fn new(params: &SelectParams, n_entries: u64, bounds: Bounds) -> Self {
        let floor = match params.head_floor {
            HeadFloor::Guaranteed => budget::guaranteed_floor(params.alpha, n_entries, bounds),
            _ => 0,
        };
        Self { floor, any: floor > 0 || params.head_min > 0 }
    }

    /// Of a head that must keep `least` and has `n` entries.
    pub fn of(self, least: u64, n: u64) -> u64 {
        if self.any { least.max(self.floor).min(n) } else { 0 }
    }
}

/// Lets heads compete, after each has got what it is promised: counts and cuts.
fn compete<E: Entries>(
    entries: &E,
    params: &SelectParams,
    n_entries: u64,
    rounding: Rounding,
    b: &mut Buffers,
) {
    let promise = Promise::new(params, n_entries, b.bounds());
    b.cut_key.fill(Cut::NOTHING.key);
    b.cut_ties.fill(Cut::NOTHING.ties);
    b.counts.fill(0);
    if promise.any && rounding == Rounding::Exact {
        for (h, head) in entries.heads().enumerate() {
            b.counts[h] = promise.of(b.least[h], head.scores.len() as u64);
            let cut = best(&head, b.counts[h], b.histogram);
            b.set_cut(h, cut);
        }
    }
    let left = n_entries.saturating_sub(b.counts.iter().sum());
    if left > 0 {
        let threshold = if b.counts.iter().all(|&count| count == 0) {
            kth_largest(left, b.histogram, &All(entries))
        } else {
            kth_largest(left, b.histogram, &Left { entries, cut_key: b.cut_key, cut_ties: b.cut_ties })
        };
        stand(entries, threshold, b);
        win(threshold, b);
    }
    // Promises of a cascade's later pushes are smaller, but what is left for competition may be more.
    if promise.any && rounding == Rounding::Up {
        for (h, head) in entries.heads().enumerate() {
            let promised = promise.of(b.least[h], head.scores.len() as u64);
            if b.counts[h] < promised {
                b.counts[h] = promised;
                let cut = best(&head, promised, b.histogram);
                b.set_cut(h, cut);
            }
        }
    }
}

/// Counts keys that no promise has taken by a search's next digit, into the first buckets of the histogram.
pub(crate) fn count_left<E: Entries>(entries: &E, search: Search, bits: u32, b: &mut Buffers) {
    if b.counts.iter().all(|&count| count == 0) {
        search.count(bits, &All(entries), b.histogram);
    } else {
        search.count(bits, &Left { entries, cut_key: b.cut_key, cut_ties: b.cut_ties }, b.histogram);
    }
}

/// Counts each head's entries beyond the threshold of those that are left, and at it.
pub(crate) fn stand<E: Entries>(entries: &E, threshold: Cut, b: &mut Buffers) {
    for (h, head) in entries.heads().enumerate() {
        let mut taken = b.cut(h).keeper();
        let (mut above, mut equal) = (0u64, 0u64);
        head.for_each(|_, key| {
            let is_left = !taken(key);
            above += (is_left && key > threshold.key) as u64;
            equal += (is_left && key == threshold.key) as u64;
        });
        (b.spare[h], b.equal[h]) = (above, equal);
    }
}

/// Gives each head its entries beyond the threshold, and of those at it as many as are wanted. Ties go to the lower head.
pub(crate) fn win(threshold: Cut, b: &mut Buffers) {
    let mut ties = threshold.ties;
    for h in 0..b.counts.len() {
        let (above, equal) = (b.spare[h], b.equal[h]);
        let won = equal.min(ties);
        ties -= won;
        b.counts[h] += above + won;
        let cut = b.cut(h).and(Cut { key: threshold.key, ties: won });
        b.set_cut(h, cut);
    }
}

/// The affine floor: from the counts of free competition to those that are kept.
pub(crate) fn mix(params: &SelectParams, n_entries: u64, rounding: Rounding, b: &mut Buffers) {
    let bounds = Bounds { least: b.least, most: b.most };
    b.spare.copy_from_slice(b.counts);
    budget::affine_counts(params.alpha, b.spare, bounds, n_entries, rounding, b.equal, b.counts);
    if rounding == Rounding::Up {
        // The counts of a later, smaller number start from free competition again.
        b.counts.iter_mut().zip(&*b.spare).for_each(|(count, &free)| *count = (*count).max(free));
    }
}
