//! One decision over many ranks, exactly: tensor-parallel ranks have some KV heads of each layer, pipeline stages some layers.
//!
//! A rank writes what it counts into a buffer of u64, the engine's all-reduce sums these buffers over all ranks, and each rank takes the
//! sums in: [`Ranks::count`], the engine, [`Ranks::round`], until that says that it is decided. Nothing here communicates. Then each rank
//! has for each of its heads how many entries it keeps, as [`crate::select::global_entries`] gives them, and [`crate::select::select`]
//! keeps them: exactly the entries that one process with all scores would keep.
//!
//! | exchange | words after the header | sums say |
//! |---|---|---|
//! | hello | for each bit of a fingerprint, how many ranks have it set; how many layers are split | whether all ranks ask for the same |
//! | heads | for each head of the model what it can and must keep, and the sums of its layer's entropy | shares of layers, promises to heads |
//! | four digits | for each competition, keys per next 8 bits of the key, two counts to a word | a threshold, as [`crate::select`] finds it in one process |
//! | ties | for each head, entries beyond the threshold and at it | counts of heads; ties go to the model's lower head |
//!
//! All sums are of integers, so their order does not matter. A number of one head (f64 as bits) has a word that all other ranks leave 0: a
//! sum that only carries it. What follows from such numbers each rank computes in the order of the model's heads, as one process does.
//!
//! Each exchange begins with a header: how many ranks take part, and how many report which error. So a rank that cannot go on
//! ([`refuse`]) stops all others in the same round, with the same error.

mod part;

use crate::budget::{self, Bounds, MAX_LAYERS};
use crate::entropy;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, LayerShare, Layers};
use crate::select::{Buffers, Cut, Promise, Scored, Search, best, count_left, least, mix, plan, stand, win};
use crate::workspace::{Carver, size_of_carve};
use part::{Group, Print, shape_print};

pub use part::Part;

/// Words of the first exchange, whatever the model: a header, a fingerprint's bits, and how many layers are split.
pub const HELLO_WORDS: usize = HEADER + FINGERPRINT_BITS + 1;

/// Words at the start of each exchange: the number of ranks, then for each error how many report it.
const HEADER: usize = 32;
const FINGERPRINT_BITS: usize = 64;
/// Bits of a key that an exchange settles. More make fewer exchanges of more bytes: 11, as in one process, would make 3 of 8 kB.
const DIGIT_BITS: u32 = 8;
/// Words of its counts, two to a word: fewer than 2³² entries compete, so that no sum carries from one into the other.
const DIGIT_WORDS: usize = (1 << DIGIT_BITS) / 2;

/// Words of the state's header.
const MAGIC: usize = 0;
const N_LAYERS: usize = 1;
const N_HEADS: usize = 2;
const SHARE: usize = 3;
const OWN_PRINT: usize = 4;
const PHASE: usize = 5;
const N_RANKS: usize = 6;
const N_SPLIT: usize = 7;
const WORDS: usize = 8;
/// "lavarnk1"
const MAGIC_VALUE: u64 = u64::from_le_bytes(*b"lavarnk1");

/// Which exchange comes next.
const HELLO: u64 = 0;
const HEADS: u64 = 1;
const DIGITS: u64 = 2;
const TIES: u64 = DIGITS + (32 / DIGIT_BITS) as u64;
const DECIDED: u64 = TIES + 1;
const FAILED: u64 = DECIDED + 1;

/// A decision in the caller's memory: numbers only, no pointers.
pub struct Ranks<'a> {
    header: &'a mut [u64],
    /// Of the model's heads. Cuts are known of this rank's own.
    buffers: Buffers<'a>,
    /// Entries that each group keeps.
    asked: &'a mut [u64],
    /// Each group's search: how many are wanted of the keys in question, and the digits so far. 0 wanted: nothing is left to compete for.
    wanted: &'a mut [u64],
    prefix: &'a mut [u32],
    entropies: &'a mut [f64],
}

/// Bytes of state that a decision needs.
pub fn state_size<L: Layers + ?Sized>(part: &Part<L>) -> Result<usize> {
    part.validate()?;
    size_of_carve(|c| {
        let header = c.take(WORDS)?;
        Ranks::carve(header, c, part.n_layers(), part.n_heads() as usize, part.n_groups())
    })
}

/// Words of the longest exchange.
pub fn most_words<L: Layers + ?Sized>(part: &Part<L>) -> Result<usize> {
    part.validate()?;
    let has_entropies = part.share == LayerShare::Entropy;
    let words = |phase| n_words(phase, part.n_heads() as usize, part.n_groups(), has_entropies);
    Ok((HELLO..DECIDED).map(words).max().unwrap_or(0))
}

fn n_words(phase: u64, n_heads: usize, n_groups: usize, has_entropies: bool) -> usize {
    match phase {
        HELLO => HELLO_WORDS,
        HEADS => HEADER + n_heads.saturating_mul(words_per_head(has_entropies)),
        DIGITS..TIES => HEADER + n_groups * DIGIT_WORDS,
        TIES => HEADER + n_heads,
        _ => 0,
    }
}

/// Who has it and what is wrong with it; its layer's fingerprint; what it must keep and can keep; for entropies two sums.
fn words_per_head(has_entropies: bool) -> usize {
    if has_entropies { 5 } else { 3 }
}

/// Fills an exchange with nothing but this error, for a rank that cannot take part in it.
pub fn refuse(kind: ErrorKind, exchange: &mut [u64]) -> Result<()> {
    ensure(exchange.len() >= HEADER, ErrorKind::BufferSize, c"exchange")?;
    exchange.fill(0);
    exchange[0] = 1;
    exchange[-(kind as i32) as usize] = 1;
    Ok(())
}

/// What is wrong with a head, in its word of the second exchange.
const IS_NOT_FINITE: u64 = 1;
const IS_NEGATIVE: u64 = 2;

fn two(low: u64, high: u64) -> u64 {
    low | high << 32
}

fn low(word: u64) -> u64 {
    word & u32::MAX as u64
}

fn high(word: u64) -> u64 {
    word >> 32
}

/// One of the counts of a digit.
fn count_of(words: &[u64], bucket: usize) -> u64 {
    let word = words[bucket / 2];
    if bucket.is_multiple_of(2) { low(word) } else { high(word) }
}

fn no_state() -> Error {
    Error::new(ErrorKind::State, c"state")
}

fn not_a_sum() -> Error {
    Error::new(ErrorKind::State, c"exchange")
}

impl<'a> Ranks<'a> {
    fn carve(
        header: &'a mut [u64],
        c: &mut Carver<'a>,
        n_layers: usize,
        n_heads: usize,
        n_groups: usize,
    ) -> Result<Self> {
        Ok(Self {
            header,
            buffers: Buffers::carve(c, n_heads)?,
            asked: c.take(n_groups)?,
            wanted: c.take(n_groups)?,
            prefix: c.take(n_groups)?,
            entropies: c.take(n_layers)?,
        })
    }

    /// Starts a decision in memory of at least [`state_size`] bytes.
    pub fn new<L: Layers + ?Sized>(part: &Part<L>, state: &mut Carver<'a>) -> Result<Self> {
        part.validate()?;
        let (n_layers, n_heads) = (part.n_layers(), part.n_heads() as usize);
        let header = state.take(WORDS)?;
        let ranks = Self::carve(header, state, n_layers, n_heads, part.n_groups())?;
        // Last, so that a state without room for the rest is none.
        let share = part.share as u64;
        let words = [MAGIC_VALUE, n_layers as u64, n_heads as u64, share, part.own_print(), HELLO, 0, 0];
        ranks.header.copy_from_slice(&words);
        Ok(ranks)
    }

    /// Opens a decision again in memory that [`Ranks::new`] has filled.
    pub fn reopen(state: &mut Carver<'a>) -> Result<Self> {
        let header: &mut [u64] = state.take(WORDS)?;
        let size = |word: usize| usize::try_from(header[word]).map_err(|_| no_state());
        ensure(header[MAGIC] == MAGIC_VALUE, ErrorKind::State, c"state")?;
        let (n_layers, n_heads) = (size(N_LAYERS)?, size(N_HEADS)?);
        let n_groups = if header[SHARE] == LayerShare::Global as u64 { 1 } else { n_layers };
        Self::carve(header, state, n_layers, n_heads, n_groups)
    }

    /// Words of the exchange that comes next; 0 once all is decided, or an error has ended it.
    pub fn n_words(&self) -> usize {
        let has_entropies = self.header[SHARE] == LayerShare::Entropy as u64;
        n_words(self.header[PHASE], self.buffers.counts.len(), self.asked.len(), has_entropies)
    }

    /// Fills the first [`Ranks::n_words`] words of `exchange`, to be summed over all ranks.
    ///
    /// On an error they hold the report of it, and summing them tells all other ranks; but not if this is
    /// [`ErrorKind::BufferSize`] of `exchange`, or [`ErrorKind::State`] of `state`, where nothing is written.
    pub fn count<L: Layers + ?Sized>(&mut self, part: &Part<L>, exchange: &mut [u64]) -> Result<()> {
        let n = self.n_words();
        ensure(n > 0, ErrorKind::State, c"state")?;
        ensure(exchange.len() >= n, ErrorKind::BufferSize, c"exchange")?;
        let exchange = &mut exchange[..n];
        if let Err(e) = self.check(part) {
            refuse(e.kind, exchange)?;
            return Err(e);
        }
        exchange.fill(0);
        exchange[0] = 1;
        let words = &mut exchange[HEADER..];
        match self.header[PHASE] {
            HELLO => hello(part, words),
            HEADS => heads(part, words),
            TIES => self.ties(part, words),
            _ => self.digits(part, words),
        }
        Ok(())
    }

    /// Takes in the sums over all ranks, and says whether all is decided.
    ///
    /// On an error the decision has ended; all ranks that take in the same sums get the same one. Except where `part` is not the one that
    /// this was started with, or `exchange` too short: then nothing has happened, and other ranks know nothing of it.
    pub fn round<L: Layers + ?Sized>(&mut self, part: &Part<L>, exchange: &[u64]) -> Result<bool> {
        let n = self.n_words();
        ensure(n > 0, ErrorKind::State, c"state")?;
        ensure(exchange.len() >= n, ErrorKind::BufferSize, c"exchange")?;
        self.check(part)?;
        let next = self.take(part, &exchange[..n]);
        self.header[PHASE] = *next.as_ref().unwrap_or(&FAILED);
        next.map(|phase| phase == DECIDED)
    }

    /// Entries of this rank's heads: for each layer their sum, and for each head, the heads of all layers in order, as many as
    /// [`crate::SelectParams::head_weights`]. With both [`crate::select::select`] keeps exactly what one process would of these heads.
    pub fn entries<L: Layers + ?Sized>(
        &self,
        part: &Part<L>,
        entries: &mut [u64],
        head_weights: &mut [f64],
    ) -> Result<()> {
        ensure(self.header[PHASE] == DECIDED, ErrorKind::State, c"state")?;
        self.check(part)?;
        ensure(entries.len() >= part.n_layers(), ErrorKind::BufferSize, c"entries")?;
        let n_own = part.layers.n_heads() as usize;
        ensure(head_weights.len() >= n_own, ErrorKind::BufferSize, c"head_weights")?;
        let mut weights = head_weights.iter_mut();
        for (layer, entries) in part.runs(1).zip(entries) {
            *entries = 0;
            for (h, _) in layer.own() {
                let count = self.buffers.counts[layer.heads.start + h];
                *entries += count;
                if let Some(weight) = weights.next() {
                    *weight = count as f64;
                }
            }
        }
        Ok(())
    }

    /// What each layer keeps over all ranks, and the normalised entropy of its scores under [`LayerShare::Entropy`], else 0. As many as
    /// `entries` and `entropies` have room for.
    pub fn layers<L: Layers + ?Sized>(
        &self,
        part: &Part<L>,
        entries: &mut [u64],
        entropies: &mut [f64],
    ) -> Result<()> {
        ensure(self.header[PHASE] == DECIDED, ErrorKind::State, c"state")?;
        self.check(part)?;
        for ((l, layer), entries) in part.runs(1).enumerate().zip(entries) {
            let counts = &self.buffers.counts[layer.heads];
            *entries = if part.is_global() { counts.iter().sum() } else { self.asked[l] };
        }
        entropies.iter_mut().zip(&*self.entropies).for_each(|(out, &entropy)| *out = entropy);
        Ok(())
    }

    /// That the part is the one that this was started with.
    fn check<L: Layers + ?Sized>(&self, part: &Part<L>) -> Result<()> {
        part.validate()?;
        ensure(self.header[OWN_PRINT] == part.own_print(), ErrorKind::State, c"rank")
    }

    /// The next phase, once all ranks' words of this one are in.
    fn take<L: Layers + ?Sized>(&mut self, part: &Part<L>, exchange: &[u64]) -> Result<u64> {
        let (header, words) = exchange.split_at(HEADER);
        let n_ranks = header[0];
        if let Some(number) = (1..HEADER).find(|&number| header[number] > 0) {
            let kind = ErrorKind::from_status(-(number as i32)).unwrap_or(ErrorKind::State);
            return Err(Error::new(kind, c"rank"));
        }
        let phase = self.header[PHASE];
        ensure(
            n_ranks > 0 && (phase == HELLO || n_ranks == self.header[N_RANKS]),
            ErrorKind::State,
            c"exchange",
        )?;
        match phase {
            HELLO => {
                let (bits, split) = words.split_at(FINGERPRINT_BITS);
                let same = bits.iter().all(|&n| n == 0 || n == n_ranks);
                ensure(same, ErrorKind::Shape, c"rank")?;
                (self.header[N_RANKS], self.header[N_SPLIT]) = (n_ranks, split[0]);
                Ok(HEADS)
            }
            HEADS => self.take_heads(part, words),
            TIES => self.take_ties(part, words),
            _ => self.take_digits(words),
        }
    }

    fn take_heads<L: Layers + ?Sized>(&mut self, part: &Part<L>, words: &[u64]) -> Result<u64> {
        let b = &mut self.buffers;
        let per_head = words_per_head(part.share == LayerShare::Entropy);
        let (mut least, mut most) = ([0; MAX_LAYERS], [0; MAX_LAYERS]);
        for (l, layer) in part.runs(1).enumerate() {
            let of = |h: usize| &words[(layer.heads.start + h) * per_head..][..per_head];
            let n = layer.heads.len();
            let at = |e: Error| e.at_layer(l as u32);
            let none = |bad: &dyn Fn(&[u64]) -> bool, kind, name| match (0..n).find(|&h| bad(of(h))) {
                Some(h) => Err(at(Error::new(kind, name).at_head(h))),
                None => Ok(()),
            };
            none(&|word| low(word[0]) != 1, ErrorKind::Shape, c"first_head")?;
            none(&|word| high(word[0]) == IS_NOT_FINITE, ErrorKind::NonFinite, c"scores")?;
            none(&|word| high(word[0]) == IS_NEGATIVE, ErrorKind::Argument, c"scores")?;
            none(&|word| word[1] != of(0)[1], ErrorKind::Shape, c"shapes")?;
            none(&|word| low(word[2]) > high(word[2]), ErrorKind::State, c"exchange")?;
            for h in 0..n {
                let head = layer.heads.start + h;
                (b.least[head], b.most[head]) = (low(of(h)[2]), high(of(h)[2]));
            }
            least[l] = b.least[layer.heads.clone()].iter().sum();
            most[l] = b.most[layer.heads.clone()].iter().sum();
            ensure(most[l] <= u32::MAX as u64, ErrorKind::Overflow, c"n_kv_heads").map_err(at)?;
            if part.share == LayerShare::Entropy {
                let sums_of = |words: &[u64]| [words[3], words[4]].map(f64::from_bits);
                none(&|words| !entropy::are_sums(sums_of(words)), ErrorKind::State, c"exchange")?;
                let sums = (0..n).map(|h| sums_of(of(h)));
                self.entropies[l] = entropy::of_sums(most[l], sums).entropy;
            }
        }
        let bounds = Bounds { least: &least[..part.n_layers()], most: &most[..part.n_layers()] };
        if part.is_global() {
            let all = bounds.most.iter().sum::<u64>();
            ensure(all <= u32::MAX as u64, ErrorKind::Overflow, c"n_kv_heads")?;
            self.asked[0] = part.total.min(all);
            let fits = bounds.least.iter().sum::<u64>() <= self.asked[0];
            ensure(fits, ErrorKind::Budget, c"total")?;
        } else {
            let weight = |l: usize| match part.weights {
                _ if part.n_kv_heads[l] == 0 => 0.0,
                Some(weights) => weights[l],
                None if part.share == LayerShare::Entropy => self.entropies[l],
                None => 1.0,
            };
            budget::share(weight, bounds, part.total, part.rounding(), self.asked)?;
        }
        self.promise(part)
    }

    /// Gives each head what it is promised. Says whether anything is left to compete for, over ranks.
    fn promise<L: Layers + ?Sized>(&mut self, part: &Part<L>) -> Result<u64> {
        let is_whole = !part.is_global() && self.header[N_SPLIT] == 0;
        for (g, group) in part.groups().enumerate() {
            let b = &mut self.buffers.of(group.heads.clone());
            let n_entries = self.asked[g];
            if is_whole {
                // No other rank has heads of a layer that this one has: it decides by itself.
                let mut n_own = 0;
                for (h, head) in group.own() {
                    n_own += 1;
                    let counted =
                        b.least[h] == least(&head, &group.params) && b.most[h] == head.capacity as u64;
                    ensure(counted, ErrorKind::State, c"exchange")?;
                }
                ensure(n_own == 0 || n_own == group.heads.len(), ErrorKind::State, c"exchange")?;
                if n_own > 0 {
                    // As one layer: another kind of entries would be another copy of all that selection is.
                    let shape = part.layers.layer(g);
                    let entries = Scored::layer(&shape, group.scores, &group.params);
                    plan(&entries, &group.params, n_entries, part.rounding(), b);
                }
                continue;
            }
            if let Some(weights) = group.params.head_weights {
                let bounds = Bounds { least: b.least, most: b.most };
                budget::water_fill(|h| weights[h], bounds, n_entries, part.rounding(), b.counts);
                continue;
            }
            let promise = Promise::new(&group.params, n_entries, b.bounds());
            // While layers follow, all compete for all, and promises come on top: as in `select::plan`.
            let now = promise.any && !part.more_layers;
            for h in 0..b.counts.len() {
                b.counts[h] = if now { promise.of(b.least[h], b.most[h]) } else { 0 };
                b.set_cut(h, Cut::NOTHING);
            }
            for (h, head) in group.own() {
                let n = b.counts[h].min(head.scores.len() as u64);
                let cut = best(&head, n, b.histogram);
                b.set_cut(h, cut);
            }
            self.wanted[g] = n_entries.saturating_sub(b.counts.iter().sum());
        }
        if is_whole {
            return Ok(DECIDED);
        }
        if self.wanted.iter().all(|&n| n == 0) { self.decide(part) } else { Ok(DIGITS) }
    }

    /// Keys of this rank by their next digit.
    fn digits<L: Layers + ?Sized>(&mut self, part: &Part<L>, words: &mut [u64]) {
        let fixed_bits = (self.header[PHASE] - DIGITS) as u32 * DIGIT_BITS;
        for (g, (group, words)) in part.groups().zip(words.chunks_exact_mut(DIGIT_WORDS)).enumerate() {
            let search = Search { wanted: self.wanted[g], prefix: self.prefix[g], fixed_bits };
            if search.wanted == 0 || group.own().next().is_none() {
                continue;
            }
            let b = &mut self.buffers.of(group.heads.clone());
            count_left(&group, search, DIGIT_BITS, b);
            let counts = b.histogram.chunks_exact(2);
            words
                .iter_mut()
                .zip(counts)
                .for_each(|(word, two_of)| *word = two(two_of[0] as u64, two_of[1] as u64));
        }
    }

    fn take_digits(&mut self, words: &[u64]) -> Result<u64> {
        let phase = self.header[PHASE];
        let fixed_bits = (phase - DIGITS) as u32 * DIGIT_BITS;
        for (g, words) in words.chunks_exact(DIGIT_WORDS).enumerate() {
            if self.wanted[g] == 0 {
                continue;
            }
            let search = Search { wanted: self.wanted[g], prefix: self.prefix[g], fixed_bits };
            let search = search.settle(DIGIT_BITS, |bucket| count_of(words, bucket)).ok_or(not_a_sum())?;
            (self.wanted[g], self.prefix[g]) = (search.wanted, search.prefix);
        }
        Ok(phase + 1)
    }

    /// How this rank's heads stand to the thresholds.
    fn ties<L: Layers + ?Sized>(&mut self, part: &Part<L>, words: &mut [u64]) {
        for (g, group) in part.groups().enumerate().filter(|(g, _)| self.wanted[*g] > 0) {
            let threshold = self.threshold(g);
            let b = &mut self.buffers.of(group.heads.clone());
            stand(&group, threshold, b);
            for (h, word) in words[group.heads.clone()].iter_mut().enumerate() {
                *word = two(b.spare[h], b.equal[h]);
            }
        }
    }

    fn take_ties<L: Layers + ?Sized>(&mut self, part: &Part<L>, words: &[u64]) -> Result<u64> {
        for (g, group) in part.groups().enumerate().filter(|(g, _)| self.wanted[*g] > 0) {
            let threshold = self.threshold(g);
            let b = &mut self.buffers.of(group.heads.clone());
            for (h, &word) in words[group.heads.clone()].iter().enumerate() {
                (b.spare[h], b.equal[h]) = (low(word), high(word));
            }
            win(threshold, b);
            let fits = b.counts.iter().zip(&*b.most).all(|(count, most)| count <= most);
            ensure(fits && b.counts.iter().sum::<u64>() == self.asked[g], ErrorKind::State, c"exchange")?;
        }
        self.decide(part)
    }

    fn threshold(&self, g: usize) -> Cut {
        Search { wanted: self.wanted[g], prefix: self.prefix[g], fixed_bits: 32 }.cut()
    }

    /// What follows from free competition.
    fn decide<L: Layers + ?Sized>(&mut self, part: &Part<L>) -> Result<u64> {
        let competed = |group: &Group<L>| group.params.head_weights.is_none();
        for (g, group) in part.groups().enumerate().filter(|(_, group)| competed(group)) {
            let (n_entries, b) = (self.asked[g], &mut self.buffers.of(group.heads));
            let promise = Promise::new(&group.params, n_entries, b.bounds());
            if part.more_layers && promise.any {
                for h in 0..b.counts.len() {
                    b.counts[h] = b.counts[h].max(promise.of(b.least[h], b.most[h]));
                }
            }
            if group.params.head_floor == HeadFloor::Affine {
                mix(&group.params, n_entries, part.rounding(), b);
            }
        }
        Ok(DECIDED)
    }
}

/// Says what this rank asks for.
fn hello<L: Layers + ?Sized>(part: &Part<L>, words: &mut [u64]) {
    let print = part.fingerprint();
    (0..FINGERPRINT_BITS).for_each(|bit| words[bit] = print >> bit & 1);
    let is_split = |l: &usize| {
        let n = part.own(*l).len();
        n > 0 && n < part.n_kv_heads[*l] as usize
    };
    words[FINGERPRINT_BITS] = (0..part.n_layers()).filter(is_split).count() as u64;
}

/// What this rank's heads are.
fn heads<L: Layers + ?Sized>(part: &Part<L>, words: &mut [u64]) {
    let has_entropies = part.share == LayerShare::Entropy;
    let per_head = words_per_head(has_entropies);
    for (l, layer) in part.runs(1).enumerate() {
        let mut print = None;
        for (h, head) in layer.own() {
            let words = &mut words[(layer.heads.start + h) * per_head..][..per_head];
            let (smallest, is_finite) = entropy::smallest_of(head.scores);
            let fault = match (is_finite, has_entropies && smallest < 0.0) {
                (false, _) => IS_NOT_FINITE,
                (true, true) => IS_NEGATIVE,
                (true, false) => 0,
            };
            words[0] = two(1, fault);
            words[1] = *print.get_or_insert_with(|| {
                let shape = part.layers.layer(l);
                let print = &mut Print(shape_print(&shape));
                let mask = part.select.protected_mask.map_or(&[][..], |mask| &mask[..shape.prefix_len()]);
                mask.iter().for_each(|&byte| _ = print.add((byte != 0) as u64));
                print.0
            });
            words[2] = two(least(&head, &part.select), head.capacity as u64);
            if has_entropies && fault == 0 {
                words[3..].copy_from_slice(&entropy::head_sums(head.scores).map(f64::to_bits));
            }
        }
    }
}
