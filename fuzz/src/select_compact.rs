//! Selection against sorting, entropy and budgets against their definitions, and compaction byte for byte: out of place into any
//! layout, in place, and again on what an earlier compaction left.

use crate::choices::Choices;
use crate::memory::Block;
use crate::score::{c_shape, no_error};
use crate::tensors::{DTYPES, Laid, Layout, side};
use lava::ffi::*;
use lava::reference;
use lava::{HeadFloor, SelectParams, Shape};
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
            layer_budgets: LAVA_LAYERS_ENTROPY,
            evict_every: 0,
        }
    }
}

/// What `lava_select` kept.
pub struct Kept {
    pub indices: Vec<u32>,
    pub cu: Vec<u32>,
    pub report: lava_selection,
}

/// `lava_select` with room for exactly what `lava_n_kept` says.
pub fn select(c: &mut Choices, shape: &Shape, options: &Options, scores: &[f32], budget: u64) -> Kept {
    let (shape, params, mut error) = (c_shape(shape), options.c(), no_error());
    let (mut n_kept, mut size) = (0, 0);
    let mut report = lava_selection {
        struct_size: size_of::<lava_selection>() as u32,
        everything_kept: 9,
        n_kept: 0,
        budget: 0,
        mass: 0.0,
        evicted_share: 0.0,
    };
    let scores = Block::of(scores, side(c));
    // SAFETY: all memory is as large as the header asks.
    unsafe {
        assert_eq!(lava_n_kept(&shape, budget, &mut n_kept, &mut error), LAVA_OK);
        assert_eq!(lava_select_workspace_size(&shape, &mut size, &mut error), LAVA_OK);
        let workspace = Block::new(size, side(c));
        let indices = Block::new(n_kept as usize * 4, side(c));
        let cu = Block::new((shape.n_kv_heads as usize + 1) * 4, side(c));
        let status = lava_select(
            &shape,
            &params,
            scores.ptr(),
            budget,
            workspace.ptr(),
            size,
            indices.ptr(),
            n_kept,
            cu.ptr(),
            &mut report,
            &mut error,
        );
        assert_eq!(status, LAVA_OK, "{budget} of {} tokens", shape.n_tokens);
        Kept { indices: indices.to_vec(), cu: cu.to_vec(), report }
    }
}

struct Case {
    shape: Shape,
    options: Options,
    scores: Vec<Vec<f32>>,
}

impl Case {
    fn new(c: &mut Choices) -> Self {
        let heads = c.within(1..=5);
        let prefix = if c.rarely(24) { c.below(200) } else { c.below(20) };
        let window = c.within(1..=4);
        let dims = (c.within(1..=9), c.within(1..=9));
        let shape = Shape {
            layer: 1,
            n_tokens: prefix + window,
            n_q_heads: heads,
            n_kv_heads: heads,
            head_dim_k: dims.0,
            head_dim_v: dims.1,
            window,
        };
        let options = Options::new(c, prefix);
        let of_all = c.coin().then(|| scores(c, prefix * heads));
        let scores = (0..heads).map(|h| match &of_all {
            Some(all) => all[h * prefix..(h + 1) * prefix].to_vec(),
            None => scores(c, prefix),
        });
        let scores = scores.collect();
        Self { shape, options, scores }
    }

    fn entries(&self) -> usize {
        self.shape.prefix_entries() as usize
    }

    fn select(&self, c: &mut Choices) -> Kept {
        let (prefix, window) = (self.shape.prefix_len(), self.shape.window);
        let params = self.options.rust();
        let least = params.minimum(prefix) * self.shape.n_kv_heads;
        let budget = least + c.below(self.entries() - least + 1);
        let flat = self.scores.concat();
        let kept = select(c, &self.shape, &self.options, &flat, budget as u64);
        let want = reference::select(&self.scores, &params, budget as u64);
        let mut kept_mass = 0.0;
        for (h, want) in want.iter().enumerate() {
            kept_mass += want.iter().map(|&i| self.scores[h][i] as f64).sum::<f64>();
            let want: Vec<u32> =
                want.iter().copied().chain(prefix..prefix + window).map(|i| i as u32).collect();
            let got = &kept.indices[kept.cu[h] as usize..kept.cu[h + 1] as usize];
            assert_eq!(got, want, "head {h}, budget {budget}, {params:?}, {:?}", self.scores);
        }
        let mass: f64 = flat.iter().map(|&s| s as f64).sum();
        assert_eq!(kept.report.budget, budget as u64);
        assert_eq!(kept.report.n_kept as usize, kept.indices.len());
        assert_eq!(kept.report.everything_kept == 1, budget == self.entries());
        assert!((kept.report.mass - mass).abs() <= 1e-12 * mass);
        let share = if mass > 0.0 { 1.0 - kept_mass / mass } else { 0.0 };
        assert!((kept.report.evicted_share - share).abs() <= 1e-12, "{} {share}", kept.report.evicted_share);
        kept
    }

    /// Entropy, the budget for a share, and layers' budgets.
    fn numbers(&self, c: &mut Choices) {
        let flat = self.scores.concat();
        let (shape, mut error) = (c_shape(&self.shape), no_error());
        let (mut entropy, mut mass, mut size, mut budget) = (9.0, 9.0, 0, 0);
        let epsilon = c.pick(&[0.0, 1.0, 0.5, 0.01, 1e-6]);
        // SAFETY: all memory is as large as the header asks.
        unsafe {
            let scores = Block::of(&flat, side(c));
            let status = lava_entropy(&shape, scores.ptr(), &mut entropy, &mut mass, &mut error);
            assert_eq!(status, LAVA_OK);
            assert_eq!(lava_budget_for_share_workspace_size(&mut size, &mut error), LAVA_OK);
            let workspace = Block::new(size, side(c));
            let status = lava_budget_for_share(
                &shape,
                scores.ptr(),
                epsilon,
                workspace.ptr(),
                size,
                &mut budget,
                &mut error,
            );
            assert_eq!(status, LAVA_OK);
        }
        let want = reference::entropy(&flat);
        assert!((entropy - want).abs() <= 1e-12, "{entropy} for {want}");
        let mut ordered: Vec<f64> = flat.iter().map(|&s| s as f64).collect();
        ordered.sort_by(|a, b| b.total_cmp(a));
        let evicted = |n: usize| match mass > 0.0 {
            true => ordered[n..].iter().rev().sum::<f64>() / mass,
            false => 0.0,
        };
        let budget = budget as usize;
        assert!(evicted(budget) <= epsilon + 2e-12, "{budget} evicts {}", evicted(budget));
        assert!(budget == 0 || evicted(budget - 1) > epsilon - 2e-12, "{} would do", budget - 1);

        let n = c.within(1..=9);
        // Products of such weights with such totals are exact, which the reference needs.
        let weights: Vec<f64> = (0..n).map(|_| c.below(2049) as f64 / 2048.0).collect();
        let capacities: Vec<u64> = (0..n).map(|_| c.below(300) as u64).collect();
        let total = c.below(2000) as u64;
        let (w, caps) = (Block::of(&weights, side(c)), Block::of(&capacities, side(c)));
        let budgets = Block::new(n * 8, side(c));
        // SAFETY: as above.
        let status = unsafe {
            lava_layer_budgets(n as u32, w.ptr(), caps.ptr(), null(), total, budgets.ptr(), &mut error)
        };
        assert_eq!(status, LAVA_OK);
        let want = reference::layer_budgets(&weights, &capacities, total);
        assert_eq!(budgets.to_vec::<u64>(), want, "{weights:?} {capacities:?} {total}");

        // With minimums: bounds, and the sum.
        let minimums: Vec<u64> = capacities.iter().map(|&n| c.below(n as usize + 1) as u64 / 2).collect();
        let sum: u64 = capacities.iter().sum();
        let total = total.max(minimums.iter().sum());
        let mins = Block::of(&minimums, side(c));
        // SAFETY: as above.
        let status = unsafe {
            lava_layer_budgets(n as u32, w.ptr(), caps.ptr(), mins.ptr(), total, budgets.ptr(), &mut error)
        };
        assert_eq!(status, LAVA_OK);
        let got = budgets.to_vec::<u64>();
        assert_eq!(got.iter().sum::<u64>(), total.min(sum));
        assert!((0..n).all(|l| (minimums[l]..=capacities[l]).contains(&got[l])), "{got:?}");
    }

    fn compact(&self, c: &mut Choices, kept: &Kept) {
        let heads = self.shape.n_kv_heads;
        let dense = vec![self.shape.n_tokens; heads];
        let mut random = c.random();
        let dtypes = [c.pick(&DTYPES), c.pick(&DTYPES)];
        // Any bits are carried over, those of NaN too.
        let mut fill = |laid: &Laid| {
            let bytes: Vec<u8> = (0..laid.block.len()).map(|_| random.bits() as u8).collect();
            laid.block.fill(&bytes);
        };
        let src = [(0, self.shape.head_dim_k), (1, self.shape.head_dim_v)].map(|(i, dim)| {
            let (layout, side) = (Layout::any(c, &dense, dim), side(c));
            let laid = Laid::empty(layout, dtypes[i], &dense, dim, side);
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
                let own = &kept.indices[kept.cu[h] as usize..kept.cu[h + 1] as usize];
                for (r, &token) in own.iter().enumerate() {
                    for e in 0..at.dim {
                        let to = at.layout.index(r, h, e) * size;
                        let from = from.layout.index(token as usize, h, e) * size;
                        want[to..to + size].copy_from_slice(&before[from..from + size]);
                    }
                }
            }
            assert!(
                at.block.bytes() == want,
                "{what}, {:?} to {:?}, {:?} {:?}",
                from.layout,
                at.layout,
                kept.indices,
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
        self.call(c, of(&src), None, (&kept.indices, &kept.cu), of(&dst), n, n_parts);
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
        self.call(c, of(&src), None, (&kept.indices, &kept.cu), of(&src), n, n_parts);
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
        let (shape, mut error) = (c_shape(&self.shape), no_error());
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
