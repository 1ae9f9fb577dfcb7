//! The end of a cascade's case: ranks that decide together give each head what the cascade gave it, and sums that nobody has counted are
//! taken or refused, by all ranks alike.

use crate::choices::Choices;
use crate::memory::Block;
use crate::score::{c_shape, no_error};
use crate::select_compact::Layer;
use crate::tensors::side;
use lava::ffi::*;
use std::ptr::{null, null_mut};

/// What all ranks ask for.
pub struct Asked<'a> {
    pub layers: &'a [Layer],
    pub params: lava_select_params,
    pub total: u64,
    pub share: i32,
    pub weights: Option<&'a [f64]>,
}

/// A rank's memory, each block at the edge of what can be touched.
struct Rank {
    /// First head and number of heads of each layer.
    own: Vec<(usize, usize)>,
    rank: lava_rank,
    state: Block,
    n_words: u32,
    /// What the shapes and the rank lead to.
    _memory: Vec<Block>,
}

impl Rank {
    fn new(c: &mut Choices, asked: &Asked, own: Vec<(usize, usize)>) -> Self {
        let (mut memory, mut shapes, mut scores) = (vec![], vec![], Vec::<f32>::new());
        for (layer, &(first, n)) in asked.layers.iter().zip(&own) {
            let shape = layer.shape();
            let mut mine = lava_shape { n_kv_heads: n as u32, n_q_heads: n as u32, ..c_shape(&shape) };
            (mine.cu_rows, mine.positions) = (null(), null());
            scores.extend(&layer.scores[shape.first_score(first)..shape.first_score(first + n)]);
            if let Some(rows) = shape.ragged.filter(|_| n > 0) {
                let from = rows.cu_rows[first];
                let cu: Vec<u32> = rows.cu_rows[first..=first + n].iter().map(|cu| cu - from).collect();
                let positions = &rows.positions[from as usize..rows.cu_rows[first + n] as usize];
                let [cu, positions] = [&cu[..], positions].map(|rows| Block::of(rows, side(c)));
                (mine.cu_rows, mine.positions) = (cu.ptr(), positions.ptr());
                memory.extend([cu, positions]);
            }
            shapes.push(mine);
        }
        let n_kv_heads: Vec<u32> = asked.layers.iter().map(|layer| layer.shape().n_kv_heads as u32).collect();
        let first: Vec<u32> = own.iter().map(|own| own.0 as u32).collect();
        let shapes = Block::of(&shapes, side(c));
        let [n_kv_heads, first] = [n_kv_heads, first].map(|numbers| Block::of(&numbers, side(c)));
        let scores = Block::of(&scores, side(c));
        let params = Block::of(&[asked.params], side(c));
        let weights = asked.weights.map(|weights| Block::of(weights, side(c)));
        let n = asked.layers.len() as u32;
        let rank = lava_rank {
            struct_size: size_of::<lava_rank>() as u32,
            n_layers: n,
            n_shapes: n,
            layers: asked.share,
            total: asked.total,
            more_layers: 0,
            reserved: 0,
            shapes: shapes.ptr(),
            n_kv_heads: n_kv_heads.ptr(),
            first_head: first.ptr(),
            scores: scores.ptr(),
            params: params.ptr(),
            weights: weights.as_ref().map_or(null(), |weights| weights.ptr::<f64>()),
        };
        memory.extend([shapes, n_kv_heads, first, scores, params]);
        memory.extend(weights);
        let (mut size, mut n_words, mut error) = (0, 0, no_error());
        // SAFETY: all memory is as large as the header asks, here and below.
        let status = unsafe { lava_ranks_size(&rank, &mut size, &mut n_words, &mut error) };
        assert_eq!(status, LAVA_OK);
        let state = Block::new(size, side(c));
        // SAFETY: as above.
        let status = unsafe { lava_ranks_start(&rank, state.ptr(), size, &mut error) };
        assert_eq!(status, LAVA_OK);
        Self { own, rank, state, n_words, _memory: memory }
    }

    fn count(&self, c: &mut Choices) -> Vec<u64> {
        let exchange = Block::new(8 * self.n_words as usize, side(c));
        let (mut n, mut error, size) = (0, no_error(), self.state.len());
        let (state, to) = (self.state.ptr(), exchange.ptr());
        // SAFETY: as in `new`.
        let status =
            unsafe { lava_ranks_count(&self.rank, state, size, to, self.n_words, &mut n, &mut error) };
        assert_eq!(status, LAVA_OK);
        exchange.slice::<u64>()[..n as usize].to_vec()
    }

    fn round(&self, c: &mut Choices, sums: &[u64]) -> (lava_status, u32) {
        let exchange = Block::of(sums, side(c));
        let (mut done, mut error, n) = (9, no_error(), sums.len() as u32);
        let (state, size) = (self.state.ptr(), self.state.len());
        // SAFETY: as in `new`.
        let status =
            unsafe { lava_ranks_round(&self.rank, state, size, exchange.ptr(), n, &mut done, &mut error) };
        (status, done)
    }

    /// The counts of its heads, layer after layer.
    fn counts(&self, c: &mut Choices) -> Vec<f64> {
        let n: usize = self.own.iter().map(|own| own.1).sum();
        let (entries, weights) = (Block::new(8 * self.own.len(), side(c)), Block::new(8 * n, side(c)));
        let (mut error, state, size) = (no_error(), self.state.ptr(), self.state.len());
        let (entries, to) = (entries.ptr(), weights.ptr());
        // SAFETY: as in `new`.
        let status = unsafe {
            lava_ranks_entries(&self.rank, state, size, entries, to, null_mut(), null_mut(), &mut error)
        };
        assert_eq!(status, LAVA_OK);
        weights.to_vec()
    }
}

/// Decides twice: with the sums as they are, for what `want` says of a layer's heads; and with some words changed.
pub fn check(c: &mut Choices, asked: &Asked, want: impl Fn(usize) -> Vec<u64>) {
    let n_ranks = c.within(1..=4);
    let mut all = vec![vec![]; n_ranks];
    for layer in asked.layers {
        let n = layer.shape().n_kv_heads;
        let mut cuts: Vec<usize> = (1..n_ranks).map(|_| c.below(n + 1)).collect();
        cuts.extend([0, n]);
        cuts.sort();
        all.iter_mut().zip(cuts.windows(2)).for_each(|(own, cut)| own.push((cut[0], cut[1] - cut[0])));
    }
    for spoilt in [false, true] {
        let ranks: Vec<_> = all.iter().map(|own| Rank::new(c, asked, own.clone())).collect();
        let mut outcome = (LAVA_OK, 0);
        while outcome == (LAVA_OK, 0) {
            let mut sums: Vec<u64> = vec![];
            for rank in &ranks {
                let words = rank.count(c);
                sums.resize(words.len(), 0);
                sums.iter_mut().zip(words).for_each(|(sum, x)| *sum += x);
            }
            if spoilt && c.once_in(3) {
                // Not the word of those who report an internal error, which is told apart from one here.
                let at =
                    Some(c.below(sums.len())).filter(|&at| at != -LAVA_ERR_INTERNAL as usize).unwrap_or(0);
                sums[at] = match c.below(3) {
                    0 => c.bits(),
                    1 => sums[at].wrapping_add(1),
                    _ => sums[at] ^ 1 << c.below(64),
                };
            }
            let outcomes: Vec<_> = ranks.iter().map(|rank| rank.round(c, &sums)).collect();
            // Whether a changed sum is one that it can have counted, a rank may see by what it has itself.
            let alone = outcomes.iter().find(|other| *other != &outcomes[0] && spoilt);
            outcome = *alone.unwrap_or(&outcomes[0]);
            let agree = outcomes.iter().all(|other| other == &outcomes[0]);
            assert!(agree || outcomes.iter().all(|other| other.0 == LAVA_OK || other.0 == LAVA_ERR_STATE));
            if !agree {
                break;
            }
        }
        assert!(spoilt || outcome == (LAVA_OK, 1), "{outcome:?}");
        assert_ne!(outcome.0, LAVA_ERR_INTERNAL);
        for rank in ranks.iter().filter(|_| !spoilt) {
            let counts = rank.counts(c);
            let mut counts = counts.into_iter();
            for (l, &(first, n)) in rank.own.iter().enumerate() {
                let got: Vec<u64> = counts.by_ref().take(n).map(|count| count as u64).collect();
                assert_eq!(got, want(l)[first..first + n], "layer {l}, heads from {first} on");
            }
        }
    }
}
