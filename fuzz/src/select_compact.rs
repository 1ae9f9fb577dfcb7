//! Selection against sorting, entropy and shares against their definitions, and compaction byte for byte: out of place into any
//! layout, in place, and again on what an earlier compaction left.

use crate::choices::Choices;
use crate::memory::Block;
use crate::score::{c_shape, compressed, no_error};
use crate::tensors::{DTYPES, Laid, Layout, side};
use lava::ffi::*;
use lava::{HeadFloor, SelectParams, Shape, reference};
use std::ptr::null;

/// Scores as one head of a layer may have them.
pub fn scores(c: &mut Choices, n: usize) -> Vec<f32> {
    let (kind, mut random) = (c.below(8), c.random());
    let size = c.pick(&[1.0, 1.0, 1e-30, 1e30]);
    let one = |i: usize| match kind {
        0 => 0.0,
        1 => size,
        2 => size * (i == n / 2) as u8 as f32,
        3 => size * random.below(3) as f32,
        4 => size * (-(random.below(40) as f32)).exp(),
        // Neighbours in the order of numbers.
        5 => f32::from_bits(size.to_bits() + random.below(5) as u32),
        _ => size * random.real().abs(),
    };
    (0..n).map(one).collect()
}

/// Options, and the mask that they lead to.
pub struct Options {
    pub params: SelectParams<'static>,
    pub mask: Option<Block>,
}

impl Options {
    pub fn new(c: &mut Choices, prefix: usize) -> Self {
        let mask = c.once_in(4).then(|| {
            let mut random = c.random();
            let mask: Vec<u8> = (0..prefix).map(|_| (random.below(6) == 0) as u8 * 9).collect();
            Block::of(&mask, side(c))
        });
        let params = SelectParams {
            head_floor: c.pick(&[HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine]),
            alpha: match c.below(4) {
                0 => 0.2,
                1 => c.below(2) as f64,
                _ => c.below(65536) as f64 / 65535.0,
            },
            head_min: if c.once_in(4) { c.below(4) } else { 0 },
            head_weights: None,
            n_sink: if c.coin() { 0 } else { c.below(5) },
            protected_mask: None,
        };
        Self { params, mask }
    }

    pub fn rust(&self) -> SelectParams<'_> {
        SelectParams { protected_mask: self.mask.as_ref().map(Block::bytes), ..self.params }
    }

    pub fn c(&self) -> lava_select_params {
        lava_select_params {
            struct_size: size_of::<lava_select_params>() as u32,
            head_floor: self.params.head_floor as i32,
            alpha: self.params.alpha,
            protected_mask: self.mask.as_ref().map_or(null(), |m| m.ptr::<u8>()),
            n_sink: self.params.n_sink as u32,
            head_min: self.params.head_min as u32,
            head_weights: null(),
        }
    }
}

/// A layer with the rows that its shape leads to.
pub struct Layer {
    dense: Shape<'static>,
    /// Prefix sum and positions of a cache that has been compressed before.
    rows: Option<(Block, Block)>,
    pub scores: Vec<f32>,
}

impl Layer {
    /// Of `heads` heads, with a window of `window` tokens: dense or compressed before, sliding or not.
    pub fn new(c: &mut Choices, heads: usize, prefix: usize, window: usize) -> Self {
        let n_tokens = prefix + window;
        let sliding_window = c.once_in(3).then(|| c.within(1..=n_tokens + 2));
        let dims = (c.within(1..=9), c.within(1..=9));
        let dense = Shape::dense(n_tokens, heads, heads, dims.0, dims.1, window);
        let dense = Shape { layer: 1, sliding_window, ..dense };
        let rows = (heads > 0 && c.once_in(3)).then(|| compressed(c, &dense));
        let mut layer = Self { dense, rows, scores: vec![] };
        let of_all = c.coin();
        layer.scores = match of_all {
            true => scores(c, layer.shape().n_scores() as usize),
            false => (0..heads).flat_map(|h| scores(c, layer.shape().prefix_rows(h))).collect(),
        };
        layer
    }

    pub fn shape(&self) -> Shape<'_> {
        let rows = self.rows.as_ref();
        rows.map_or(self.dense, |(cu, positions)| self.dense.with_rows(cu.slice(), positions.slice()))
    }

    /// The same for the reference.
    pub fn plain(&self) -> reference::Layer {
        let shape = self.shape();
        let head = |h: usize| {
            let (first, n) = (shape.first_score(h), shape.prefix_rows(h));
            let positions = (0..n).map(|row| shape.position(h, row)).collect();
            reference::Head { positions, scores: self.scores[first..first + n].to_vec() }
        };
        let heads = (0..shape.n_kv_heads).map(head).collect();
        reference::Layer { n_tokens: shape.n_tokens, sliding_window: shape.sliding_window, heads }
    }
}

/// What `lava_select` kept.
pub struct Kept {
    pub indices: Vec<u32>,
    pub rows: Vec<u32>,
    pub cu: Vec<u32>,
    pub report: lava_selection,
}

/// `lava_select` with room for exactly what `lava_n_kept` says.
pub fn select(c: &mut Choices, layer: &Layer, options: &Options, n_entries: u64) -> Kept {
    select_with(c, layer, &options.c(), n_entries)
}

/// The same by the options of C.
pub fn select_with(c: &mut Choices, layer: &Layer, params: &lava_select_params, n_entries: u64) -> Kept {
    let (shape, mut error) = (c_shape(&layer.shape()), no_error());
    let (mut n_kept, mut size) = (0, 0);
    let mut report = lava_selection {
        struct_size: size_of::<lava_selection>() as u32,
        everything_kept: 9,
        n_kept: 0,
        n_entries: 0,
        mass: 0.0,
        evicted_share: 0.0,
    };
    let scores = Block::of(&layer.scores, side(c));
    // SAFETY: all memory is as large as the header asks.
    unsafe {
        assert_eq!(lava_n_kept(&shape, n_entries, &mut n_kept, &mut error), LAVA_OK);
        assert_eq!(lava_select_workspace_size(&shape, &mut size, &mut error), LAVA_OK);
        let workspace = Block::new(size, side(c));
        let [indices, rows] = [0, 1].map(|_| Block::new(n_kept as usize * 4, side(c)));
        let cu = Block::new((shape.n_kv_heads as usize + 1) * 4, side(c));
        let status = lava_select(
            &shape,
            params,
            scores.ptr(),
            n_entries,
            workspace.ptr(),
            size,
            indices.ptr(),
            n_kept,
            cu.ptr(),
            rows.ptr(),
            &mut report,
            &mut error,
        );
        assert_eq!(status, LAVA_OK, "{n_entries} of {} tokens", shape.n_tokens);
        Kept { indices: indices.to_vec(), rows: rows.to_vec(), cu: cu.to_vec(), report }
    }
}

struct Case {
    layer: Layer,
    options: Options,
}

impl Case {
    fn new(c: &mut Choices) -> Self {
        let heads = c.within(1..=5);
        let prefix = if c.rarely(24) { c.below(200) } else { c.below(20) };
        let window = c.within(1..=4);
        let options = Options::new(c, prefix);
        Self { layer: Layer::new(c, heads, prefix, window), options }
    }

    fn select(&self, c: &mut Choices) -> Kept {
        let (shape, params) = (self.layer.shape(), self.options.rust());
        let (least, all) = (params.layer_minimum(&shape), shape.capacity());
        let n_entries = least + c.below((all - least) as usize + 1) as u64;
        let kept = select(c, &self.layer, &self.options, n_entries);
        let plain = self.layer.plain();
        let want = &reference::select(std::slice::from_ref(&plain), &params, n_entries)[0];
        let (mut kept_mass, mut mass) = (0.0, 0.0);
        for (h, want) in want.iter().enumerate() {
            let score = |&row: &usize| plain.heads[h].scores[row] as f64;
            kept_mass += want.iter().map(score).sum::<f64>();
            mass += plain.live(h).iter().map(score).sum::<f64>();
            let rows: Vec<usize> = want.iter().copied().chain(shape.prefix_rows(h)..shape.rows(h)).collect();
            let own = kept.cu[h] as usize..kept.cu[h + 1] as usize;
            let numbers =
                |of: &dyn Fn(usize) -> usize| rows.iter().map(|&row| of(row) as u32).collect::<Vec<_>>();
            assert_eq!(
                kept.rows[own.clone()],
                numbers(&|row| row),
                "head {h}, {n_entries}, {params:?}, {plain:?}"
            );
            assert_eq!(kept.indices[own], numbers(&|row| shape.position(h, row)), "head {h}");
        }
        assert_eq!(kept.report.n_entries, n_entries);
        assert_eq!(kept.report.n_kept as usize, kept.indices.len());
        assert_eq!(kept.report.everything_kept == 1, n_entries == all);
        assert!((kept.report.mass - mass).abs() <= 1e-12 * mass);
        let share = if mass > 0.0 { 1.0 - kept_mass / mass } else { 0.0 };
        assert!((kept.report.evicted_share - share).abs() <= 1e-12, "{} {share}", kept.report.evicted_share);
        kept
    }

    /// Entropy, the entries for a share, and layers' entries.
    fn numbers(&self, c: &mut Choices) {
        let plain = self.layer.plain();
        let (shape, mut error) = (c_shape(&self.layer.shape()), no_error());
        let (mut entropy, mut mass, mut size, mut n_entries) = (9.0, 9.0, 0, 0);
        let epsilon = c.pick(&[0.0, 1.0, 0.5, 0.01, 1e-6]);
        // SAFETY: all memory is as large as the header asks.
        unsafe {
            let scores = Block::of(&self.layer.scores, side(c));
            let status = lava_entropy(&shape, scores.ptr(), &mut entropy, &mut mass, &mut error);
            assert_eq!(status, LAVA_OK);
            assert_eq!(lava_entries_for_share_workspace_size(&mut size, &mut error), LAVA_OK);
            let workspace = Block::new(size, side(c));
            let (memory, out) = (workspace.ptr(), &mut n_entries);
            let status = lava_entries_for_share(&shape, scores.ptr(), epsilon, memory, size, out, &mut error);
            assert_eq!(status, LAVA_OK);
        }
        let want = plain.entropy();
        assert!((entropy - want).abs() <= 1e-12, "{entropy} for {want}");
        let live = |h: usize| {
            plain.live(h).into_iter().map(|row| plain.heads[h].scores[row] as f64).collect::<Vec<_>>()
        };
        let mut ordered: Vec<f64> = (0..plain.heads.len()).flat_map(live).collect();
        ordered.sort_by(|a, b| b.total_cmp(a));
        let evicted = |n: usize| match mass > 0.0 {
            true => ordered[n..].iter().rev().sum::<f64>() / mass,
            false => 0.0,
        };
        let n = n_entries as usize;
        assert!(evicted(n) <= epsilon + 2e-12, "{n} evicts {}", evicted(n));
        assert!(n == 0 || evicted(n - 1) > epsilon - 2e-12, "{} is enough", n - 1);
    }

    fn compact(&self, c: &mut Choices, kept: &Kept) {
        let shape = self.layer.shape();
        let heads = shape.n_kv_heads;
        let held_rows: Vec<usize> = (0..heads).map(|h| shape.rows(h)).collect();
        let mut random = c.random();
        let dtypes = [c.pick(&DTYPES), c.pick(&DTYPES)];
        // Any bits are carried over, those of NaN too.
        let mut fill = |laid: &Laid| {
            let bytes: Vec<u8> = (0..laid.block.len()).map(|_| random.bits() as u8).collect();
            laid.block.fill(&bytes);
        };
        let src = [(0, shape.head_dim_k), (1, shape.head_dim_v)].map(|(i, dim)| {
            let (layout, side) = (Layout::any(c, &held_rows, dim), side(c));
            let laid = Laid::empty(layout, dtypes[i], &held_rows, dim, side);
            fill(&laid);
            laid
        });
        let counts: Vec<usize> = kept.cu.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        let keys_only = c.once_in(8);
        let n = if keys_only { 1 } else { 2 };
        let before = [0, 1].map(|i| src[i].block.bytes().to_vec());
        let check = |what: &str, at: &Laid, before_at: &[u8], from: &Laid, before: &[u8]| {
            let mut want = before_at.to_vec();
            let size = at.dtype.size();
            for h in 0..heads {
                let own = &kept.rows[kept.cu[h] as usize..kept.cu[h + 1] as usize];
                for (r, &row) in own.iter().enumerate() {
                    for e in 0..at.dim {
                        let to = at.layout.index(r, h, e) * size;
                        let from = from.layout.index(row as usize, h, e) * size;
                        want[to..to + size].copy_from_slice(&before[from..from + size]);
                    }
                }
            }
            assert!(
                at.block.bytes() == want,
                "{what}, {:?} to {:?}, {:?} {:?}",
                from.layout,
                at.layout,
                kept.rows,
                kept.cu
            );
        };

        // Out of place.
        let dst = [0, 1].map(|i| {
            let layout = match c.below(3) {
                0 => Layout {
                    row_start: Some(kept.cu[..heads].to_vec()),
                    ..Layout::ragged(c, &counts, src[i].dim)
                },
                1 => Layout::ragged(c, &counts, src[i].dim),
                _ => Layout::any(c, &counts, src[i].dim),
            };
            Laid::empty(layout, src[i].dtype, &counts, src[i].dim, side(c))
        });
        let poison = [0, 1].map(|i| dst[i].block.bytes().to_vec());
        let n_parts = c.within(1..=heads + 2) as u32;
        let of = |laid: &[Laid; 2]| [0, 1].map(|i| laid[i].c());
        self.call(c, of(&src), None, (&kept.rows, &kept.cu), of(&dst), n, n_parts);
        for i in 0..n {
            check("out of place", &dst[i], &poison[i], &src[i], &before[i]);
            assert_eq!(src[i].block.bytes(), before[i], "the source is as it was");
        }

        // Again, from where it went, every other row; heads close ranks, or each moves to its own front.
        let (mut rows, mut cu) = (vec![], vec![0u32]);
        for &n in &counts {
            rows.extend((0..n as u32).filter(|_| random.below(2) == 0));
            cu.push(rows.len() as u32);
        }
        let again: Vec<usize> = cu.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        let held = [0, 1].map(|i| dst[i].block.bytes().to_vec());
        let close = n == 2 && dst.iter().all(|d| d.layout.row_start.is_some()) && c.coin();
        let mut target = of(&dst);
        let starts = Block::of(&cu, side(c));
        if close {
            target.iter_mut().for_each(|t| t.row_start = starts.ptr());
        }
        let n_parts = if close { 1 } else { c.within(1..=heads + 2) as u32 };
        self.call(c, of(&dst), Some(&kept.cu), (&rows, &cu), target, n, n_parts);
        for i in 0..n {
            let (size, bytes) = (dst[i].dtype.size(), dst[i].block.bytes());
            for (h, r) in (0..heads).flat_map(|h| (0..again[h]).map(move |r| (h, r))) {
                let from = rows[cu[h] as usize + r] as usize;
                for e in 0..dst[i].dim {
                    let want = &held[i][dst[i].layout.index(from, h, e) * size..][..size];
                    let to = match close {
                        false => dst[i].layout.index(r, h, e),
                        true => (cu[h] as usize + r) * dst[i].dim + e,
                    };
                    assert!(
                        &bytes[to * size..][..size] == want,
                        "in place, close {close}: row {r} of head {h}"
                    );
                }
            }
        }

        // In place in the source.
        let n_parts = c.within(1..=heads + 2) as u32;
        self.call(c, of(&src), None, (&kept.rows, &kept.cu), of(&src), n, n_parts);
        for i in 0..n {
            check("in place", &src[i], &before[i], &src[i], &before[i]);
        }
    }

    /// `lava_compact` of the first `n` of K and V, parts in any order.
    #[expect(clippy::too_many_arguments, reason = "the C function's arguments")]
    fn call(
        &self,
        c: &mut Choices,
        src: [lava_tensor; 2],
        cu_rows: Option<&[u32]>,
        (rows, cu): (&[u32], &[u32]),
        dst: [lava_tensor; 2],
        n: usize,
        n_parts: u32,
    ) {
        let (shape, mut error) = (c_shape(&self.layer.shape()), no_error());
        let [rows, cu] = [rows, cu].map(|values| Block::of(values, side(c)));
        let cu_rows = cu_rows.map(|values| Block::of(values, side(c)));
        let forwards = c.coin();
        for i in 0..n_parts {
            let part = if forwards { i } else { n_parts - 1 - i };
            let v = |t: &[lava_tensor; 2]| if n == 2 { &raw const t[1] } else { null() };
            // SAFETY: all memory is as large as the header asks.
            let status = unsafe {
                lava_compact(
                    &shape,
                    &src[0],
                    v(&src),
                    cu_rows.as_ref().map_or(null(), |b| b.ptr::<u32>()),
                    rows.ptr(),
                    cu.ptr(),
                    &dst[0],
                    v(&dst),
                    part,
                    n_parts,
                    &mut error,
                )
            };
            assert_eq!(status, LAVA_OK, "part {part} of {n_parts}");
        }
    }
}

pub fn run(data: &[u8]) {
    let c = &mut Choices::new(data);
    let case = Case::new(c);
    let kept = case.select(c);
    case.numbers(c);
    case.compact(c, &kept);
}
