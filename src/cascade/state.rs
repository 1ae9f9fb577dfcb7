//! Where things are in a cascade's memory: numbers only, so that it can be copied, and found again from C.

use core::ops::{Deref, Range};

use super::CascadeLayer;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, LayerShare, SelectParams};
use crate::select::Buffers;
use crate::workspace::{Block, Carver, Reader, size_of_carve};

/// Words of the header.
const MAGIC: usize = 0;
const N_LAYERS: usize = 1;
const N_HEADS: usize = 2;
const HEADS_AT_ONCE: usize = 3;
const N_ROWS: usize = 4;
const MASK_LEN: usize = 5;
const HAS_WEIGHTS: usize = 6;
const HEAD_FLOOR: usize = 7;
const ALPHA: usize = 8;
const HEAD_MIN: usize = 9;
const N_SINK: usize = 10;
const LAYERS: usize = 11;
const EVICT_EVERY: usize = 12;
const TOTAL: usize = 13;
const NEXT_LAYER: usize = 14;
const N_PUSHES: usize = 15;
const WORDS: usize = 16;
/// "lavacsc4"
const MAGIC_VALUE: u64 = u64::from_le_bytes(*b"lavacsc4");

fn no_state() -> Error {
    Error::new(ErrorKind::State, c"state")
}

/// What decides how long the arrays are.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    pub n_layers: usize,
    /// Heads of all layers.
    pub n_heads: usize,
    /// Heads that compete at a time.
    pub heads_at_once: usize,
    /// Most rows that are held at a time, windows included.
    pub n_rows: usize,
    /// Bytes of the mask; 0: there is none.
    pub mask_len: usize,
    pub has_weights: bool,
}

/// A cascade's options, over copies of their arrays.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    pub select: SelectParams<'a>,
    pub layers: LayerShare,
    pub evict_every: usize,
    pub total: u64,
}

impl<'a> Options<'a> {
    /// The options of selection for these heads of the model, with their own weights.
    pub fn of_heads(&self, heads: Range<usize>) -> SelectParams<'a> {
        SelectParams { head_weights: self.select.head_weights.map(|all| &all[heads]), ..self.select }
    }
}

/// The state's first words.
pub(super) struct Header<W>(W);

impl<W: Deref<Target = [u64]>> Header<W> {
    /// The header of a state that has been started.
    fn of(words: W) -> Result<Self> {
        let header = Self(words);
        ensure(header.0[MAGIC] == MAGIC_VALUE, ErrorKind::State, c"state")?;
        ensure(header.0[NEXT_LAYER] <= header.0[N_LAYERS], ErrorKind::State, c"state")?;
        Ok(header)
    }

    /// The layer that is pushed next.
    pub fn next_layer(&self) -> usize {
        self.0[NEXT_LAYER] as usize
    }

    /// Layers pushed so far.
    pub fn n_pushes(&self) -> usize {
        self.0[N_PUSHES] as usize
    }

    fn size(&self, word: usize) -> Result<usize> {
        usize::try_from(self.0[word]).map_err(|_| no_state())
    }

    fn counts(&self) -> Result<Counts> {
        Ok(Counts {
            n_layers: self.size(N_LAYERS)?,
            n_heads: self.size(N_HEADS)?,
            heads_at_once: self.size(HEADS_AT_ONCE)?,
            n_rows: self.size(N_ROWS)?,
            mask_len: self.size(MASK_LEN)?,
            has_weights: self.0[HAS_WEIGHTS] != 0,
        })
    }

    /// The options, over the copied arrays, which are not written any more.
    fn options<'a>(&self, work: &mut Work<'a>) -> Result<Options<'a>> {
        let mask = &*core::mem::take::<&'a mut [u8]>(&mut work.mask);
        let head_weights = &*core::mem::take::<&'a mut [f64]>(&mut work.head_weights);
        let head_floor = match self.0[HEAD_FLOOR] {
            0 => HeadFloor::None,
            1 => HeadFloor::Guaranteed,
            2 => HeadFloor::Affine,
            _ => return Err(no_state()),
        };
        let layers = match self.0[LAYERS] {
            0 => LayerShare::Entropy,
            1 => LayerShare::Equal,
            2 => LayerShare::Weights,
            3 => LayerShare::Global,
            _ => return Err(no_state()),
        };
        let select = SelectParams {
            head_floor,
            alpha: f64::from_bits(self.0[ALPHA]),
            head_min: self.size(HEAD_MIN)?,
            head_weights: (self.0[HAS_WEIGHTS] != 0).then_some(head_weights),
            n_sink: self.size(N_SINK)?,
            protected_mask: (!mask.is_empty()).then_some(mask),
        };
        Ok(Options { select, layers, evict_every: self.size(EVICT_EVERY)?, total: self.0[TOTAL] })
    }
}

impl Header<&mut [u64]> {
    fn fill(&mut self, counts: &Counts, options: &Options) {
        let w = &mut self.0;
        w[N_LAYERS] = counts.n_layers as u64;
        w[N_HEADS] = counts.n_heads as u64;
        w[HEADS_AT_ONCE] = counts.heads_at_once as u64;
        w[N_ROWS] = counts.n_rows as u64;
        w[MASK_LEN] = counts.mask_len as u64;
        w[HAS_WEIGHTS] = counts.has_weights as u64;
        w[HEAD_FLOOR] = options.select.head_floor as u64;
        w[ALPHA] = options.select.alpha.to_bits();
        w[HEAD_MIN] = options.select.head_min as u64;
        w[N_SINK] = options.select.n_sink as u64;
        w[LAYERS] = options.layers as u64;
        w[EVICT_EVERY] = options.evict_every as u64;
        w[TOTAL] = options.total;
        w[MAGIC] = MAGIC_VALUE;
    }

    pub fn set_pushed(&mut self, next_layer: usize, n_pushes: usize) {
        self.0[NEXT_LAYER] = next_layer as u64;
        self.0[N_PUSHES] = n_pushes as u64;
    }
}

/// What layers hold: the part that readers need too.
pub(super) struct Held<'a, B: Block<'a>> {
    /// The first head of each layer, and of the one after the last.
    pub first_head: B::Buffer<u64>,
    /// First row of each layer in the arrays of rows.
    pub starts: B::Buffer<u64>,
    /// Before a layer's selection: prefix entries that it may keep. After it: those that it keeps.
    pub n_entries: B::Buffer<u64>,
    pub entropies: B::Buffer<f64>,
    pub masses: B::Buffer<f64>,
    pub evicted_shares: B::Buffer<f64>,
    /// Each layer's prefix sum of rows per head now: `heads + 1` numbers a layer.
    pub cu_kept: B::Buffer<u32>,
    /// The same of the rows in the caller's cache.
    pub cu_rows: B::Buffer<u32>,
    pub kept_indices: B::Buffer<u32>,
    /// Which rows of the caller's cache they are.
    pub rows: B::Buffer<u32>,
}

impl<'a, B: Block<'a>> Held<'a, B> {
    fn take(b: &mut B, counts: &Counts) -> Result<Self> {
        let n = counts.n_layers;
        let cu = counts.n_heads.checked_add(n).ok_or(Error::new(ErrorKind::Overflow, c"n_layers"))?;
        Ok(Self {
            first_head: b.take(n.saturating_add(1))?,
            starts: b.take(n)?,
            n_entries: b.take(n)?,
            entropies: b.take(n)?,
            masses: b.take(n)?,
            evicted_shares: b.take(n)?,
            cu_kept: b.take(cu)?,
            cu_rows: b.take(cu)?,
            kept_indices: b.take(counts.n_rows)?,
            rows: b.take(counts.n_rows)?,
        })
    }

    /// Heads of a layer, counted over all layers.
    pub fn heads(&self, layer: usize) -> Range<usize> {
        self.first_head[layer] as usize..self.first_head[layer + 1] as usize
    }

    /// A layer's part of `cu_kept` and `cu_rows`.
    pub fn cu_range(&self, layer: usize) -> Range<usize> {
        let heads = self.heads(layer);
        heads.start + layer..heads.end + layer + 1
    }

    /// What a layer holds, of those before `next_layer`.
    pub fn layer(&self, layer: usize, next_layer: usize) -> Result<CascadeLayer<'_>> {
        let error = Error::new(ErrorKind::State, c"layer");
        let error = u32::try_from(layer).map_or(error, |l| error.at_layer(l));
        if layer >= next_layer {
            return Err(error);
        }
        let cu_kept = &self.cu_kept[self.cu_range(layer)];
        let start = self.starts[layer] as usize;
        let range = start..start + cu_kept[cu_kept.len() - 1] as usize;
        Ok(CascadeLayer {
            kept_indices: &self.kept_indices[range.clone()],
            cu_kept,
            rows: &self.rows[range],
            cu_rows: &self.cu_rows[self.cu_range(layer)],
            n_entries: self.n_entries[layer],
            entropy: self.entropies[layer],
            mass: self.masses[layer],
            evicted_share: self.evicted_shares[layer],
        })
    }
}

/// What only pushes use.
pub(super) struct Work<'a> {
    mask: &'a mut [u8],
    /// One weight per head of the model.
    head_weights: &'a mut [f64],
    /// Score of each held row; the window's rows have none.
    pub scores: &'a mut [f32],
    /// Weight of each layer that has been pushed.
    pub weights: &'a mut [f64],
    /// What each layer had when the cascade was started: prefix rows, those of them that can be kept, those that must be kept, and
    /// a head's rows of the window.
    pub n_scores: &'a mut [u64],
    pub most: &'a mut [u64],
    pub least: &'a mut [u64],
    pub window_rows: &'a mut [u64],
    /// Live entries of each head of the model.
    pub live: &'a mut [u32],
}

impl<'a> Work<'a> {
    fn take(c: &mut Carver<'a>, counts: &Counts) -> Result<Self> {
        let n = counts.n_layers;
        Ok(Self {
            mask: c.take(counts.mask_len)?,
            head_weights: c.take(if counts.has_weights { counts.n_heads } else { 0 })?,
            scores: c.take(counts.n_rows)?,
            weights: c.take(n)?,
            n_scores: c.take(n)?,
            most: c.take(n)?,
            least: c.take(n)?,
            window_rows: c.take(n)?,
            live: c.take(counts.n_heads)?,
        })
    }
}

/// All of a state, to be written.
pub(super) struct State<'a> {
    pub header: Header<&'a mut [u64]>,
    pub options: Options<'a>,
    pub held: Held<'a, Carver<'a>>,
    pub work: Work<'a>,
    pub buffers: Buffers<'a>,
}

impl<'a> State<'a> {
    /// Bytes of a state.
    pub fn size(counts: &Counts) -> Result<usize> {
        size_of_carve(|c| {
            c.take::<u64>(WORDS)?;
            Held::take(c, counts)?;
            Work::take(c, counts)?;
            Buffers::carve(c, counts.heads_at_once)
        })
    }

    /// A new one. The mask and the weights of `options` are copied, so they need not outlive this call.
    pub fn new(c: &mut Carver<'a>, counts: &Counts, options: &Options) -> Result<Self> {
        let mut header = Header(c.take(WORDS)?);
        let held = Held::take(c, counts)?;
        let mut work = Work::take(c, counts)?;
        let buffers = Buffers::carve(c, counts.heads_at_once)?;
        if let Some(given) = options.select.protected_mask {
            work.mask.copy_from_slice(&given[..counts.mask_len]);
        }
        if let Some(given) = options.select.head_weights {
            work.head_weights.copy_from_slice(&given[..counts.n_heads]);
        }
        header.fill(counts, options);
        let options = header.options(&mut work)?;
        Ok(Self { header, options, held, work, buffers })
    }

    /// A state that has been started.
    pub fn reopen(c: &mut Carver<'a>) -> Result<Self> {
        let header = Header::of(c.take(WORDS)?)?;
        let counts = header.counts()?;
        let held = Held::take(c, &counts)?;
        let mut work = Work::take(c, &counts)?;
        let buffers = Buffers::carve(c, counts.heads_at_once)?;
        let options = header.options(&mut work)?;
        Ok(Self { header, options, held, work, buffers })
    }
}

/// The part that readers need of a state that has been started.
pub(super) fn read<'a>(r: &mut Reader<'a>) -> Result<(Header<&'a [u64]>, Held<'a, Reader<'a>>)> {
    let header = Header::of(r.take(WORDS)?)?;
    let counts = header.counts()?;
    // A state that was cut off is refused here too, although readers need only its first part.
    r.holds(State::size(&counts)?)?;
    let held = Held::take(r, &counts)?;
    Ok((header, held))
}
