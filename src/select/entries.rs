//! Who competes: live entries, one head at a time. Selection sees a layer, a layer that has been compressed before, and all layers
//! of a model in the same way: as heads in order, each with a slice of scores.

use crate::entropy;
use crate::params::{Layers, SelectParams, Shape};

/// Key of a protected entry, above that of every score.
const PROTECTED: u32 = u32::MAX;

/// An integer with the order of the score.
#[inline(always)]
pub(crate) fn order_key(score: f32) -> u32 {
    // -0.0 and 0.0 are the same score.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// The key by which an entry competes.
#[inline(always)]
pub(crate) fn entry_key(score: f32, is_protected: bool) -> u32 {
    if is_protected { PROTECTED } else { order_key(score) }
}

/// Where a head's entries are among the tokens.
#[derive(Clone, Copy)]
pub(crate) enum Positions<'a> {
    /// One after the other, from this one on.
    From(usize),
    /// Ascending.
    At(&'a [u32]),
}

/// The live entries of one head, in the order of their positions.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub scores: &'a [f32],
    /// How many there were before any of them was evicted.
    pub capacity: usize,
    positions: Positions<'a>,
    /// How many of the first tokens are sinks.
    n_sinks: usize,
    mask: Option<&'a [u8]>,
}

impl<'a> Head<'a> {
    pub fn new(
        scores: &'a [f32],
        positions: Positions<'a>,
        capacity: usize,
        params: &SelectParams<'a>,
    ) -> Self {
        let n_sinks = match positions {
            Positions::From(first) => params.n_sink.saturating_sub(first).min(scores.len()),
            Positions::At(all) => all.partition_point(|&p| (p as usize) < params.n_sink),
        };
        Self { scores, capacity, positions, n_sinks, mask: params.protected_mask }
    }

    /// A head whose entries another rank has.
    pub const ELSEWHERE: Self =
        Self { scores: &[], capacity: 0, positions: Positions::From(0), n_sinks: 0, mask: None };

    /// Head `h` of a layer with these scores.
    pub fn of(shape: &Shape<'a>, h: usize, scores: &'a [f32], params: &SelectParams<'a>) -> Self {
        let live = shape.live(h);
        let positions = match &shape.ragged {
            None => Positions::From(live.start),
            Some(rows) => {
                let first = rows.cu_rows[h] as usize;
                Positions::At(&rows.positions[first + live.start..first + live.end])
            }
        };
        Self::new(entropy::live(shape, scores, h), positions, live.len(), params)
    }

    /// Calls `f` with each entry's number and key, in order.
    #[inline(always)]
    pub fn for_each(&self, mut f: impl FnMut(usize, u32)) {
        let n_sinks = self.n_sinks;
        (0..n_sinks).for_each(|i| f(i, PROTECTED));
        let rest = (n_sinks..).zip(&self.scores[n_sinks..]);
        // One loop for each case: it is where selection spends its time.
        match (self.mask, self.positions) {
            (None, _) => rest.for_each(|(i, &score)| f(i, order_key(score))),
            (Some(mask), Positions::From(first)) => {
                let mask = &mask[first + n_sinks..];
                rest.zip(mask).for_each(|((i, &score), &byte)| f(i, entry_key(score, byte != 0)));
            }
            (Some(mask), Positions::At(positions)) => {
                let positions = &positions[n_sinks..];
                rest.zip(positions)
                    .for_each(|((i, &score), &p)| f(i, entry_key(score, mask[p as usize] != 0)));
            }
        }
    }

    /// Entries that are kept whatever their score.
    pub fn n_protected(&self) -> usize {
        let mut n = self.n_sinks;
        if self.mask.is_some() {
            n = 0;
            self.for_each(|_, key| n += (key == PROTECTED) as usize);
        }
        n
    }
}

/// Heads that compete, of one layer or of several.
pub(crate) trait Entries {
    /// How many heads there are.
    fn n_heads(&self) -> usize;
    /// The heads, in order: ties go to the first.
    fn heads(&self) -> impl Iterator<Item = Head<'_>>;
}

/// Layers whose scores are stored one after the other.
pub(crate) struct Scored<'a, L: ?Sized> {
    pub layers: &'a L,
    pub scores: &'a [f32],
    pub params: SelectParams<'a>,
}

impl<'a> Scored<'a, [Shape<'a>]> {
    /// One layer.
    pub fn layer(shape: &'a Shape<'a>, scores: &'a [f32], params: &SelectParams<'a>) -> Self {
        Self { layers: core::slice::from_ref(shape), scores, params: *params }
    }
}

impl<L: Layers + ?Sized> Entries for Scored<'_, L> {
    fn n_heads(&self) -> usize {
        self.layers.n_heads() as usize
    }

    fn heads(&self) -> impl Iterator<Item = Head<'_>> {
        let mut rest = self.scores;
        (0..self.layers.n_layers()).flat_map(move |l| {
            let shape = self.layers.layer(l);
            let n_scores = if shape.n_kv_heads > 0 { shape.n_scores() as usize } else { 0 };
            let (scores, others) = rest.split_at(n_scores);
            rest = others;
            (0..shape.n_kv_heads).map(move |h| Head::of(&shape, h, scores, &self.params))
        })
    }
}
