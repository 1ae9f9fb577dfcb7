//! How many entries each head keeps, and where its cut is: a threshold, never a sort.
//!
//! Scores become integer keys with the same order; the `b` largest keys are found by a radix histogram, and of the keys equal
//! to the threshold the first are taken: lower head first, then lower token. Head floors only change how many entries a head
//! keeps; every head always keeps its own best.

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
    histogram: &'a mut [u32],
    cut_key: &'a mut [u32],
    cut_ties: &'a mut [u64],
    /// How many entries each head keeps.
    pub counts: &'a mut [u64],
    /// What it keeps before any compete, and what it can keep.
    least: &'a mut [u64],
    most: &'a mut [u64],
    spare: &'a mut [u64],
    equal: &'a mut [u64],
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

    /// The part for the first `n_heads`: a cascade has memory for its largest layer, or for all layers' heads.
    fn first(&mut self, n_heads: usize) -> Buffers<'_> {
        Buffers {
            histogram: self.histogram,
            cut_key: &mut self.cut_key[..n_heads],
            cut_ties: &mut self.cut_ties[..n_heads],
            counts: &mut self.counts[..n_heads],
            least: &mut self.least[..n_heads],
            most: &mut self.most[..n_heads],
            spare: &mut self.spare[..n_heads],
            equal: &mut self.equal[..n_heads],
        }
    }

    fn cut(&self, head: usize) -> Cut {
        Cut { key: self.cut_key[head], ties: self.cut_ties[head] }
    }

    fn set_cut(&mut self, head: usize, cut: Cut) {
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

/// A head's best `n`.
fn best(head: &Head, n: u64, histogram: &mut [u32]) -> Cut {
    if n == 0 { Cut::NOTHING } else { kth_largest(n, histogram, *head) }
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
    let b = &mut b.first(entries.n_heads());
    for (h, head) in entries.heads().enumerate() {
        b.least[h] = head.n_protected().max(params.head_min.min(head.capacity)) as u64;
        b.most[h] = head.capacity as u64;
    }
    let bounds = Bounds { least: b.least, most: b.most };
    match params.head_weights {
        Some(weights) => {
            budget::water_fill(|h| weights[h], bounds, n_entries, rounding, b.counts);
        }
        None => {
            compete(entries, params, n_entries, rounding, b);
            if params.head_floor != HeadFloor::Affine {
                return;
            }
            let bounds = Bounds { least: b.least, most: b.most };
            b.spare.copy_from_slice(b.counts);
            budget::affine_counts(params.alpha, b.spare, bounds, n_entries, rounding, b.equal, b.counts);
            if rounding == Rounding::Up {
                // The counts of a later, smaller number start from free competition again.
                b.counts.iter_mut().zip(&*b.spare).for_each(|(count, &free)| *count = (*count).max(free));
            }
        }
    }
    for (h, head) in entries.heads().enumerate() {
        b.counts[h] = b.counts[h].min(head.scores.len() as u64);
        let cut = best(&head, b.counts[h], b.histogram);
        b.set_cut(h, cut);
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
    let floor = match params.head_floor {
        HeadFloor::Guaranteed => {
            budget::guaranteed_floor(params.alpha, n_entries, Bounds { least: b.least, most: b.most })
        }
        _ => 0,
    };
    // What is protected wins anyway.
    let any = floor > 0 || params.head_min > 0;
    let promised = |least: u64, len: usize| if any { least.max(floor).min(len as u64) } else { 0 };

    b.cut_key.fill(Cut::NOTHING.key);
    b.cut_ties.fill(Cut::NOTHING.ties);
    b.counts.fill(0);
    if any && rounding == Rounding::Exact {
        for (h, head) in entries.heads().enumerate() {
            b.counts[h] = promised(b.least[h], head.scores.len());
            let cut = best(&head, b.counts[h], b.histogram);
            b.set_cut(h, cut);
        }
    }
    let left = n_entries.saturating_sub(b.counts.iter().sum());
    if left > 0 {
        let threshold = if b.counts.iter().all(|&count| count == 0) {
            kth_largest(left, b.histogram, All(entries))
        } else {
            let competing = Left { entries, cut_key: b.cut_key, cut_ties: b.cut_ties };
            kth_largest(left, b.histogram, competing)
        };
        win(entries, threshold, b);
    }
    // Promises of a cascade's later pushes are smaller, but what is left for competition may be more.
    if any && rounding == Rounding::Up {
        for (h, head) in entries.heads().enumerate() {
            let promised = promised(b.least[h], head.scores.len());
            if b.counts[h] < promised {
                b.counts[h] = promised;
                let cut = best(&head, promised, b.histogram);
                b.set_cut(h, cut);
            }
        }
    }
}

/// Gives each head its entries beyond the threshold of those that are left. Ties go to the lower head.
fn win<E: Entries>(entries: &E, threshold: Cut, b: &mut Buffers) {
    let mut ties = threshold.ties;
    for (h, head) in entries.heads().enumerate() {
        let mut taken = b.cut(h).keeper();
        let (mut above, mut equal) = (0u64, 0u64);
        head.for_each(|_, key| {
            let is_left = !taken(key);
            above += (is_left && key > threshold.key) as u64;
            equal += (is_left && key == threshold.key) as u64;
        });
        let won = equal.min(ties);
        ties -= won;
        b.counts[h] += above + won;
        let cut = b.cut(h).and(Cut { key: threshold.key, ties: won });
        b.set_cut(h, cut);
    }
}
