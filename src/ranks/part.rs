//! What one rank has of a model: some heads of some layers, each in its place among all heads.

use core::ops::Range;

use crate::budget::{Rounding, check_weight};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, LayerShare, Layers, SelectParams, Shape};
use crate::select::{self, Entries, Head};

/// Changes with the meaning of any word that ranks exchange, so that two versions of this do not take each other's sums.
const FORMAT: u64 = 1;

/// What a rank has, and what all ranks ask for. The same in every call of one decision.
#[derive(Clone, Copy)]
pub struct Part<'a, L: ?Sized> {
    /// All layers of the model, each with the heads that this rank has: a layer of other ranks has 0 KV heads here.
    pub layers: &'a L,
    /// Heads of each layer over all ranks, 0 where it takes no part. The same on all ranks, as is everything below `scores`.
    pub n_kv_heads: &'a [u32],
    /// Which head of the layer is this rank's first. It has those from there on. Not looked at where it has none.
    pub first_head: &'a [u32],
    /// Scores of its heads, the layers' one after the other.
    pub scores: &'a [f32],
    /// Prefix entries to keep over all layers and ranks.
    pub total: u64,
    /// How the layers share it. For one layer [`LayerShare::Equal`], whose share is all.
    pub share: LayerShare,
    /// Each layer's weight, with [`LayerShare::Weights`] and only then.
    pub weights: Option<&'a [f64]>,
    /// Floors, sinks, the mask; `head_weights` are those of the heads of these layers over all ranks, in order.
    pub select: SelectParams<'a>,
    /// These are the model's first layers, and more will follow, as in a cascade: what is kept now holds all that a decision with more of
    /// them, or the last one, may keep. Shares are rounded up, and floors added to free competition.
    pub more_layers: bool,
}

/// A hash of numbers.
pub(super) struct Print(pub u64);

impl Print {
    pub fn add(&mut self, x: u64) -> &mut Self {
        self.0 = (self.0 ^ x).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        self.0 ^= self.0 >> 32;
        self
    }
}

impl<'a, L: Layers + ?Sized> Part<'a, L> {
    pub(super) fn n_layers(&self) -> usize {
        self.layers.n_layers()
    }

    /// Heads of the model.
    pub(super) fn n_heads(&self) -> u64 {
        self.n_kv_heads[..self.n_layers()].iter().map(|&n| n as u64).sum()
    }

    pub(super) fn rounding(&self) -> Rounding {
        if self.more_layers { Rounding::Up } else { Rounding::Exact }
    }

    pub(super) fn is_global(&self) -> bool {
        self.share == LayerShare::Global
    }

    /// Which heads of layer `l` this rank has.
    pub(super) fn own(&self, l: usize) -> Range<usize> {
        let n = self.layers.layer(l).n_kv_heads;
        let first = if n > 0 { self.first_head[l] as usize } else { 0 };
        first..first + n
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.layers.validate()?;
        let n = self.n_layers();
        ensure(self.n_kv_heads.len() >= n, ErrorKind::BufferSize, c"n_kv_heads")?;
        ensure(self.first_head.len() >= n, ErrorKind::BufferSize, c"first_head")?;
        for l in 0..n {
            let fits = self.own(l).end <= self.n_kv_heads[l] as usize;
            ensure(fits, ErrorKind::Shape, c"first_head").map_err(|e| e.at_layer(l as u32))?;
        }
        if self.is_global() {
            select::check_global(self.layers, &self.select)?;
        }
        let n_heads = usize::try_from(self.n_heads());
        let n_heads = n_heads.map_err(|_| Error::new(ErrorKind::Overflow, c"n_kv_heads"))?;
        self.select.validate(n_heads, self.layers.longest_prefix())?;
        let by_weights = self.share == LayerShare::Weights;
        ensure(self.weights.is_some() == by_weights, ErrorKind::Argument, c"weights")?;
        if let Some(weights) = self.weights {
            ensure(weights.len() >= n, ErrorKind::BufferSize, c"weights")?;
            for l in (0..n).filter(|&l| self.n_kv_heads[l] > 0) {
                check_weight(weights[l], c"weights").map_err(|e| e.at_layer(l as u32))?;
            }
        }
        ensure(self.scores.len() as u64 >= self.layers.n_scores(), ErrorKind::BufferSize, c"scores")
    }

    /// Of all that must be the same on every rank, whatever it has. Not of the mask, which is looked at layer by layer.
    pub(super) fn fingerprint(&self) -> u64 {
        let p = &mut Print(FORMAT);
        p.add(self.share as u64).add(self.total).add(self.n_layers() as u64).add(self.more_layers as u64);
        self.n_kv_heads[..self.n_layers()].iter().for_each(|&n| _ = p.add(n as u64));
        let s = &self.select;
        let alpha = if s.head_floor == HeadFloor::None { 0.0 } else { s.alpha };
        p.add(s.head_floor as u64).add(alpha.to_bits()).add(s.head_min as u64).add(s.n_sink as u64);
        p.add(s.protected_mask.is_some() as u64).add(s.head_weights.is_some() as u64);
        let heads = s.head_weights.map_or(&[][..], |all| &all[..self.n_heads() as usize]);
        let layers = self.weights.map_or(&[][..], |all| &all[..self.n_layers()]);
        heads.iter().chain(layers).for_each(|weight| _ = p.add(weight.to_bits()));
        p.0
    }

    /// Of what this rank has.
    pub(super) fn own_print(&self) -> u64 {
        let p = &mut Print(self.fingerprint());
        for l in 0..self.n_layers() {
            let (shape, own) = (self.layers.layer(l), self.own(l));
            p.add(own.start as u64).add(own.end as u64);
            if !own.is_empty() {
                p.add(shape.n_rows()).add(shape_print(&shape));
            }
        }
        p.0
    }

    /// How many competitions there are.
    pub(super) fn n_groups(&self) -> usize {
        if self.is_global() { 1 } else { self.n_layers() }
    }

    /// What competes, in order: all heads of the model, or those of each layer.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group<'_, 'a, L>> {
        let layers_of = if self.is_global() { self.n_layers() } else { 1 };
        self.runs(layers_of)
    }

    /// Heads of so many layers at a time.
    pub(super) fn runs(&self, n_at_once: usize) -> impl Iterator<Item = Group<'_, 'a, L>> {
        let (mut head, mut rest) = (0, self.scores);
        (0..self.n_layers()).step_by(n_at_once).map(move |l| {
            let layers = l..l + n_at_once;
            let heads =
                head..head + self.n_kv_heads[layers.clone()].iter().map(|&n| n as usize).sum::<usize>();
            head = heads.end;
            let n_scores = layers.clone().map(|l| self.n_scores(l)).sum();
            let (scores, others) = rest.split_at(n_scores);
            rest = others;
            let head_weights = self.select.head_weights.map(|all| &all[heads.clone()]);
            Group { part: self, layers, heads, scores, params: SelectParams { head_weights, ..self.select } }
        })
    }

    fn n_scores(&self, l: usize) -> usize {
        let shape = self.layers.layer(l);
        if shape.n_kv_heads > 0 { shape.n_scores() as usize } else { 0 }
    }
}

/// What the heads of a layer have in common.
pub(super) fn shape_print(shape: &Shape) -> u64 {
    let keys = shape.sliding_window.unwrap_or(0);
    Print(FORMAT).add(shape.n_tokens as u64).add(shape.window as u64).add(keys as u64).0
}

/// Heads that compete with each other: this rank's, and the others' as heads without entries, so that each is in its place.
pub(super) struct Group<'s, 'a, L: ?Sized> {
    part: &'s Part<'a, L>,
    layers: Range<usize>,
    /// Which heads of the model.
    pub heads: Range<usize>,
    /// From the first layer's on.
    pub scores: &'a [f32],
    pub params: SelectParams<'a>,
}

impl<L: Layers + ?Sized> Group<'_, '_, L> {
    /// Each head, and whether it is this rank's.
    fn all(&self) -> impl Iterator<Item = (bool, Head<'_>)> {
        let mut rest = self.scores;
        self.layers.clone().flat_map(move |l| {
            let (shape, own) = (self.part.layers.layer(l), self.part.own(l));
            let (scores, others) = rest.split_at(self.part.n_scores(l));
            rest = others;
            (0..self.part.n_kv_heads[l] as usize).map(move |h| match own.contains(&h) {
                true => (true, Head::of(&shape, h - own.start, scores, &self.params)),
                false => (false, Head::ELSEWHERE),
            })
        })
    }

    /// This rank's heads, with their numbers in the group.
    pub fn own(&self) -> impl Iterator<Item = (usize, Head<'_>)> {
        self.all().enumerate().filter(|(_, (is_own, _))| *is_own).map(|(h, (_, head))| (h, head))
    }
}

impl<L: Layers + ?Sized> Entries for Group<'_, '_, L> {
    fn n_heads(&self) -> usize {
        self.heads.len()
    }

    fn heads(&self) -> impl Iterator<Item = Head<'_>> {
        self.all().map(|(_, head)| head)
    }
}
