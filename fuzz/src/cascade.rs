//! A cascade ends in the same bits as all layers at once, whatever the layers are like. On the way its state is copied elsewhere, given
//! scores that are refused, dropped and started again; and the caller's cache, here only row numbers, is compacted by the rows that the
//! cascade names, whenever that is due.

use crate::choices::Choices;
use crate::memory::{Block, POISON};
use crate::ranks;
use crate::score::{c_shape, no_error};
use crate::select_compact::{Layer, Options, select};
use crate::tensors::side;
use lava::ffi::*;
use lava::{HeadFloor, LayerShare};
use std::ptr::{null, null_mut};
use std::slice::from_raw_parts;

struct Case {
    layers: Vec<Layer>,
    options: Options,
    total: u64,
    share: LayerShare,
    evict_every: u32,
    weights: Vec<f64>,
}

impl Case {
    fn new(c: &mut Choices) -> Self {
        let n = c.within(1..=6);
        let window = c.within(1..=3);
        let prefix = if c.rarely(24) { c.below(120) } else { c.below(16) };
        let alike = c.coin().then(|| c.within(1..=4));
        let layer = |c: &mut Choices| {
            let heads = alike.unwrap_or_else(|| c.below(5));
            Layer::new(c, heads, prefix, window)
        };
        let layers: Vec<Layer> = (0..n).map(|_| layer(c)).collect();
        let share =
            c.pick(&[LayerShare::Entropy, LayerShare::Equal, LayerShare::Weights, LayerShare::Global]);
        let mut options = Options::new(c, prefix);
        if share == LayerShare::Global && options.params.head_floor == HeadFloor::Affine {
            options.params.head_floor = HeadFloor::Guaranteed;
        }
        let (least, all) = layers.iter().fold((0, 0), |(least, all), layer| {
            (least + options.rust().layer_minimum(&layer.shape()), all + layer.shape().capacity())
        });
        let total = least + c.below((all - least) as usize + 1) as u64;
        let total = if c.once_in(16) { u64::MAX } else { total };
        let evict_every = c.pick(&[0, 1, 2, 3, 5, u32::MAX]);
        let weights = (0..n).map(|_| c.below(2049) as f64 / 2048.0).collect();
        Self { layers, options, total, share, evict_every, weights }
    }

    fn shapes(&self) -> Vec<lava_shape> {
        self.layers.iter().map(|layer| c_shape(&layer.shape())).collect()
    }

    fn cascade(&self) -> lava_cascade_params {
        let struct_size = size_of::<lava_cascade_params>() as u32;
        lava_cascade_params {
            struct_size,
            layers: self.share as i32,
            evict_every: self.evict_every,
            reserved: 0,
        }
    }

    fn size(&self) -> usize {
        let (shapes, mut size, mut error) = (self.shapes(), 0, no_error());
        let (n, params, cascade) = (shapes.len() as u32, self.options.c(), self.cascade());
        // SAFETY: all memory is as large as the header asks, here and below.
        let status = unsafe {
            lava_cascade_state_size(
                shapes.as_ptr(),
                n,
                n,
                self.total,
                &params,
                &cascade,
                &mut size,
                &mut error,
            )
        };
        assert_eq!(status, LAVA_OK);
        size
    }

    fn init(&self, state: &Block) {
        let (shapes, mut error) = (self.shapes(), no_error());
        let (n, params, cascade) = (shapes.len() as u32, self.options.c(), self.cascade());
        let (memory, size) = (state.ptr(), state.len());
        // SAFETY: see `size`.
        let status = unsafe {
            lava_cascade_init(shapes.as_ptr(), n, n, self.total, &params, &cascade, memory, size, &mut error)
        };
        assert_eq!(status, LAVA_OK);
    }

    fn push(&self, c: &mut Choices, state: &Block, l: usize, scores: &[f32]) -> (lava_status, lava_error) {
        let (shape, scores, mut error) =
            (c_shape(&self.layers[l].shape()), Block::of(scores, side(c)), no_error());
        let weight = if self.share == LayerShare::Weights { &raw const self.weights[l] } else { null() };
        // SAFETY: see `size`.
        let status =
            unsafe { lava_cascade_push(state.ptr(), state.len(), &shape, scores.ptr(), weight, &mut error) };
        (status, error)
    }
}

/// `lava_cascade_get`, copied out.
struct Got {
    indices: Vec<u32>,
    cu: Vec<u32>,
    rows: Vec<u32>,
    cu_rows: Vec<u32>,
    report: lava_cascade_layer,
}

fn get(state: &Block, layer: usize, heads: usize) -> Got {
    let mut report = lava_cascade_layer {
        struct_size: size_of::<lava_cascade_layer>() as u32,
        unchanged: 9,
        kept_indices: null(),
        cu_kept: null(),
        rows: null(),
        cu_rows: null(),
        n_entries: 0,
        entropy: 0.0,
        mass: 0.0,
        evicted_share: 0.0,
    };
    let mut error = no_error();
    // SAFETY: see `size`; the lengths are the header's, and what they lead to is copied before the next push.
    unsafe {
        let status = lava_cascade_get(state.ptr(), state.len(), layer as u32, &mut report, &mut error);
        assert_eq!(status, LAVA_OK);
        let inside = |p: *const u32, n: usize| {
            let (from, state) =
                (p as usize, state.ptr::<u8>() as usize..state.ptr::<u8>() as usize + state.len());
            assert!(
                n == 0 || state.contains(&from) && state.contains(&(from + 4 * n - 1)),
                "not in the state"
            );
            if n == 0 { vec![] } else { from_raw_parts(p, n).to_vec() }
        };
        let (cu, cu_rows) = (inside(report.cu_kept, heads + 1), inside(report.cu_rows, heads + 1));
        let n = cu[heads] as usize;
        Got { indices: inside(report.kept_indices, n), rows: inside(report.rows, n), cu, cu_rows, report }
    }
}

pub fn run(data: &[u8]) {
    let c = &mut Choices::new(data);
    let case = Case::new(c);
    let (size, n_layers) = (case.size(), case.layers.len());
    let takes_part = |l: &usize| case.layers[*l].shape().n_kv_heads > 0;
    let pushed: Vec<usize> = (0..n_layers).filter(takes_part).collect();
    let mut state = Block::new(size, side(c));
    if c.once_in(4) && !pushed.is_empty() {
        // A state of another cascade, dropped half way.
        case.init(&state);
        let first = pushed[0];
        assert_eq!(case.push(c, &state, first, &case.layers[first].scores).0, LAVA_OK);
    }
    case.init(&state);

    // What each head of each layer's cache holds, by row of the cache that came in.
    let mut caches: Vec<(usize, Vec<Vec<u32>>)> = vec![];
    for (done, &l) in pushed.iter().enumerate() {
        let shape = case.layers[l].shape();
        let heads = shape.n_kv_heads;
        let live: Vec<(usize, usize)> =
            (0..heads).flat_map(|h| shape.live(h).map(move |row| (h, shape.first_score(h) + row))).collect();
        if c.once_in(6) && !live.is_empty() {
            let mut bad = case.layers[l].scores.clone();
            let (head, at) = live[c.below(live.len())];
            let (value, want) = c.pick(&[
                (f32::NAN, LAVA_ERR_NONFINITE),
                (f32::INFINITY, LAVA_ERR_NONFINITE),
                (-1.0, LAVA_ERR_ARGUMENT),
            ]);
            bad[at] = value;
            let before = state.bytes().to_vec();
            let (status, error) = case.push(c, &state, l, &bad);
            assert_eq!((status, error.layer, error.head), (want, l as u32, head as u32));
            assert!(state.bytes() == before, "a refused push changed the state");
        }
        if c.once_in(4) {
            // It holds no pointers: a copy goes on where the original was.
            let copy = Block::of(state.bytes(), side(c));
            state.fill(&vec![POISON; size]);
            state = copy;
        }
        assert_eq!(case.push(c, &state, l, &case.layers[l].scores).0, LAVA_OK);
        caches.push((l, (0..heads).map(|h| (0..shape.rows(h) as u32).collect()).collect()));
        let n_pushed = done + 1;
        let evicts = n_pushed == pushed.len() || n_pushed.is_multiple_of(case.evict_every.max(1) as usize);
        let mut held = 0;
        for (i, cache) in &mut caches {
            let shape = case.layers[*i].shape();
            let heads = shape.n_kv_heads;
            let got = get(&state, *i, heads);
            let before: u32 = cache.iter().map(|head| head.len() as u32).sum();
            assert_eq!((got.cu[0], got.cu_rows[0], got.cu_rows[heads]), (0, 0, before));
            for (h, head) in cache.iter_mut().enumerate() {
                assert_eq!((got.cu_rows[h + 1] - got.cu_rows[h]) as usize, head.len());
                let own = got.cu[h] as usize..got.cu[h + 1] as usize;
                let rows = &got.rows[own.clone()];
                assert!(rows.windows(2).all(|w| w[0] < w[1]));
                let kept: Vec<u32> = rows.iter().map(|&r| head[r as usize]).collect();
                let positions: Vec<u32> =
                    kept.iter().map(|&row| shape.position(h, row as usize) as u32).collect();
                assert_eq!(positions, got.indices[own], "layer {i}, head {h}");
                if evicts {
                    *head = kept;
                }
            }
            assert_eq!(got.report.unchanged == 1, got.cu == got.cu_rows);
            assert_eq!(got.report.n_entries as usize, got.indices.len() - heads * shape.window_rows());
            held += got.report.n_entries;
        }
        let params = &case.options.params;
        if params.head_floor == HeadFloor::None && params.head_min == 0 {
            // Entries that wait because shares are rounded up.
            let waits = done;
            assert!(held <= case.total.saturating_add(waits as u64), "{held} held of {}", case.total);
        }
    }
    if let Some(&l) = pushed.first() {
        let (status, _) = case.push(c, &state, l, &case.layers[l].scores);
        assert_eq!(status, LAVA_ERR_STATE, "complete");
    }
    all_at_once(c, &case, &state);
    let asked = ranks::Asked {
        layers: &case.layers,
        params: case.options.c(),
        total: case.total,
        share: case.share as i32,
        weights: (case.share == LayerShare::Weights).then_some(&case.weights),
    };
    ranks::check(c, &asked, |l| {
        let shape = case.layers[l].shape();
        let counts = get(&state, l, shape.n_kv_heads).cu;
        counts.windows(2).map(|cu| (cu[1] - cu[0]) as u64 - shape.window_rows() as u64).collect()
    });
}

/// The same from all layers together.
fn all_at_once(c: &mut Choices, case: &Case, state: &Block) {
    let (shapes, mut error) = (case.shapes(), no_error());
    let n = shapes.len() as u32;
    let mut entropies = vec![0.0; shapes.len()];
    for ((layer, shape), entropy) in case.layers.iter().zip(&shapes).zip(&mut entropies) {
        if shape.n_kv_heads > 0 {
            let scores = Block::of(&layer.scores, side(c));
            // SAFETY: see `size`, here and below.
            let status = unsafe { lava_entropy(shape, scores.ptr(), entropy, null_mut(), &mut error) };
            assert_eq!(status, LAVA_OK);
        }
    }
    let params = case.options.c();
    let mut entries = vec![0u64; shapes.len()];
    let n_heads: usize = shapes.iter().map(|shape| shape.n_kv_heads as usize).sum();
    let mut head_weights = vec![0.0f64; n_heads];
    let ones = vec![1.0; shapes.len()];
    let weights = match case.share {
        LayerShare::Entropy => &entropies,
        LayerShare::Weights => &case.weights,
        LayerShare::Equal | LayerShare::Global => &ones,
    };
    if case.share == LayerShare::Global {
        let scores: Vec<f32> = case.layers.iter().flat_map(|layer| layer.scores.clone()).collect();
        let scores = Block::of(&scores, side(c));
        let mut size = 0;
        // SAFETY: see `size`.
        let status = unsafe {
            let first = shapes.as_ptr();
            assert_eq!(lava_global_entries_workspace_size(first, n, n, &mut size, &mut error), LAVA_OK);
            let workspace = Block::new(size, side(c));
            let (memory, entries, heads) = (workspace.ptr(), entries.as_mut_ptr(), head_weights.as_mut_ptr());
            lava_global_entries(
                first,
                n,
                n,
                &params,
                scores.ptr(),
                case.total,
                memory,
                size,
                entries,
                heads,
                &mut error,
            )
        };
        assert_eq!(status, LAVA_OK);
    } else {
        // SAFETY: see `size`.
        let status = unsafe {
            let (weights, entries) = (weights.as_ptr(), entries.as_mut_ptr());
            lava_layer_entries(shapes.as_ptr(), n, n, &params, weights, case.total, entries, &mut error)
        };
        assert_eq!(status, LAVA_OK);
    }
    let mut first_head = 0;
    for (l, layer) in case.layers.iter().enumerate() {
        let heads = layer.shape().n_kv_heads;
        let got = get(state, l, heads);
        let own = &head_weights[first_head..first_head + heads];
        first_head += heads;
        if heads == 0 {
            assert!(got.indices.is_empty() && entries[l] == 0, "a layer that takes no part");
            continue;
        }
        let want = match case.share {
            LayerShare::Global => select_by_weights(c, layer, &case.options, own, entries[l]),
            _ => select(c, layer, &case.options, entries[l]),
        };
        assert_eq!((&got.indices, &got.cu), (&want.indices, &want.cu), "layer {l}");
        let bits = |values: [f64; 3]| values.map(f64::to_bits);
        let (got, want) = (got.report, want.report);
        assert_eq!(got.n_entries, want.n_entries);
        assert_eq!(
            bits([got.entropy, got.mass, got.evicted_share]),
            bits([entropies[l], want.mass, want.evicted_share])
        );
    }
}

/// Selection with what one sort has given each head.
fn select_by_weights(
    c: &mut Choices,
    layer: &Layer,
    options: &Options,
    weights: &[f64],
    n_entries: u64,
) -> crate::select_compact::Kept {
    let weights = Block::of(weights, side(c));
    crate::select_compact::select_with(
        c,
        layer,
        &lava_select_params { head_weights: weights.ptr(), ..options.c() },
        n_entries,
    )
}
