//! A cascade ends where compressing all layers at once ends, bit for bit, and never needs more memory than it said.

use ffi_tests::*;
use proptest::prelude::*;

/// One model's layers and options.
#[derive(Clone, Debug)]
struct Case {
    prefix: usize,
    window: usize,
    heads: usize,
    layers: usize,
    /// Of all entries, in thousandths.
    kept: u64,
    floor: i32,
    alpha: f64,
    sinks: u32,
    mask: bool,
    evict_every: u32,
    /// Per layer: 0 zeros, 1 all equal, 2 one spike, else random with this many values, which makes ties.
    kinds: Vec<u32>,
    seed: u64,
}

prop_compose! {
    fn cases()(
        sizes in (0usize..40, 1usize..5, 1usize..6, 1usize..7),
        kept in 0u64..1100,
        floor in LAVA_FLOOR_NONE..=LAVA_FLOOR_AFFINE,
        alpha in prop_oneof![Just(0.0), Just(0.2), Just(1.0), 0.0..1.0f64],
        sinks in prop_oneof![Just(0u32), 0u32..6],
        mask: bool,
        evict_every in prop_oneof![0u32..8, Just(u32::MAX)],
        kinds in prop::collection::vec(prop_oneof![Just(0u32), Just(1), Just(2), Just(4), Just(1000)], 7),
        seed: u64,
    ) -> Case {
        let (prefix, window, heads, layers) = sizes;
        Case { prefix, window, heads, layers, kept, floor, alpha, sinks, mask, evict_every, kinds, seed }
    }
}

impl Case {
    fn shape(&self) -> lava_shape {
        shape(self.prefix + self.window, (self.heads, self.heads), (3, 2), self.window)
    }

    fn scores(&self, layer: usize) -> Vec<f32> {
        let mut rng = Rng(self.seed ^ layer as u64);
        let n = self.prefix * self.heads;
        match self.kinds[layer] {
            0 => vec![0.0; n],
            1 => vec![0.25; n],
            2 => (0..n).map(|i| if i == n / 2 { 3.0 } else { 0.0 }).collect(),
            steps => (0..n).map(|_| rng.below(steps as u64 + 1) as f32 / steps as f32).collect(),
        }
    }

    fn mask(&self) -> Vec<u8> {
        let mut rng = Rng(!self.seed);
        (0..self.prefix).map(|_| (rng.below(5) == 0) as u8 * 7).collect()
    }

    fn n_protected(&self, mask: &[u8]) -> usize {
        (0..self.prefix).filter(|&i| i < self.sinks as usize || (self.mask && mask[i] != 0)).count()
    }
}

fn check(case: &Case) {
    let (shape, mask) = (case.shape(), case.mask());
    let mut params = select_params();
    (params.head_floor, params.alpha, params.n_sink) = (case.floor, case.alpha, case.sinks);
    if case.mask {
        params.protected_mask = mask.as_ptr();
    }
    let capacity = (case.prefix * case.heads) as u64;
    let minimum = (case.n_protected(&mask) * case.heads) as u64;
    let all = capacity * case.layers as u64;
    let total = (all * case.kept / 1000).max(minimum * case.layers as u64);
    let shapes = vec![shape; case.layers];
    let by_entropy = lava_cascade_params { evict_every: case.evict_every, ..cascade_params() };
    let cascade = Cascade::new(&shapes, total, &params, &by_entropy).unwrap();

    let mut caches: Vec<(Laid, Laid)> = Vec::new();
    let mut grids = Vec::new();
    // Layers that have been compacted; later ones are still dense: every head has all its tokens.
    let mut n_compacted = 0;
    for layer in 0..case.layers {
        let scores = case.scores(layer);
        cascade.push(&shape, &scores, None).unwrap();
        let data = Layer::random(case.seed ^ 77 ^ layer as u64, shape);
        caches.push((data.k.lay(), data.v.lay()));
        grids.push(data);
        let n_pushed = layer + 1;
        let evicts = n_pushed == case.layers || n_pushed % case.evict_every.max(1) as usize == 0;
        let mut held = 0;
        for (l, cache) in caches.iter_mut().enumerate() {
            let got = cascade.get(l, case.heads);
            held += got.report.n_entries;
            assert_eq!(got.report.n_entries, (got.indices.len() - case.window * case.heads) as u64);
            let cu_rows = (l < n_compacted).then_some(&got.cu_rows[..]);
            if cu_rows.is_none() {
                let dense: Vec<u32> = (0..=case.heads as u32).map(|h| h * shape.n_tokens).collect();
                assert_eq!(got.cu_rows, dense);
            }
            let unchanged = got.cu == got.cu_rows;
            assert_eq!(got.report.unchanged == 1, unchanged);
            if !evicts {
                continue;
            }
            let ragged = |dim| Laid::empty(Layout::ragged(&got.cu, dim), got.indices.len(), 1, dim);
            let moved = (ragged(3), ragged(2));
            compact(
                &shape,
                [&cache.0.tensor(), &cache.1.tensor()],
                cu_rows,
                (&got.rows, &got.cu),
                [&moved.0.tensor(), &moved.1.tensor()],
                WHOLE,
            )
            .unwrap();
            *cache = moved;
        }
        n_compacted = if evicts { n_pushed } else { n_compacted };
        if case.floor == LAVA_FLOOR_NONE {
            assert!(held <= total + layer as u64 + 1, "{held} held of {total} after layer {layer}");
        }
    }

    // All at once.
    let entropies: Vec<_> = (0..case.layers).map(|l| entropy(&shape, &case.scores(l)).unwrap()).collect();
    let weights: Vec<f64> = entropies.iter().map(|e| e.0).collect();
    let entries = layer_entries(&shapes, &params, &weights, total).unwrap();
    for (l, &n_entries) in entries.iter().enumerate() {
        let (got, want) =
            (cascade.get(l, case.heads), select(&shape, &params, &case.scores(l), n_entries).unwrap());
        assert_eq!((&got.indices, &got.cu), (&want.indices, &want.cu), "layer {l}");
        assert_eq!(got.report.n_entries, want.report.n_entries);
        let bits = |values: [f64; 3]| values.map(f64::to_bits);
        assert_eq!(
            bits([got.report.entropy, got.report.mass, got.report.evicted_share]),
            bits([entropies[l].0, want.report.mass, want.report.evicted_share]),
        );
        for (cache, grid) in [(&caches[l].0, &grids[l].k), (&caches[l].1, &grids[l].v)] {
            for h in 0..case.heads {
                for (r, &token) in want.head(h).iter().enumerate() {
                    let row = cache.layout.row(&cache.memory, r, h, grid.dim);
                    assert_eq!(row, grid.row(token as usize, h));
                }
            }
        }
    }
    cascade.check_end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cascade_ends_where_all_at_once_ends(case in cases()) {
        check(&case);
    }
}

/// After each push, after every second, only at the end: what the caller is told to compact.
#[test]
fn how_often_the_caller_evicts() {
    let (shape, scores) = (shape(20, (2, 2), (3, 2), 2), vec![0.5f32; 36]);
    let held = |evict_every: u32| {
        let params = lava_cascade_params { evict_every, ..cascade_params() };
        let cascade = Cascade::new(&[shape; 2], 30, &select_params(), &params).unwrap();
        (0..2).for_each(|_| cascade.push(&shape, &scores, None).unwrap());
        cascade.get(0, 2).cu_rows[2]
    };
    // Of the first of two layers: what is kept after its own push, 30 entries, or all.
    let (kept, all) = (30 + 4, 40);
    assert_eq!([held(0), held(1), held(2), held(u32::MAX)], [kept, kept, all, all]);
}

/// One layer's pointers lead to the same numbers after other layers were asked for, until the next push.
#[test]
fn pointers_of_earlier_gets_stay_valid() {
    let shapes = [shape(30, (3, 3), (2, 2), 2), shape(40, (2, 2), (2, 2), 4)];
    let cascade = Cascade::new(&shapes, 60, &select_params(), &cascade_params()).unwrap();
    let mut rng = Rng(5);
    for shape in &shapes {
        let scores: Vec<f32> = (0..n_scores(shape)).map(|_| rng.unit()).collect();
        cascade.push(shape, &scores, None).unwrap();
    }
    let get = |layer| {
        let mut out = unsafe { lava_cascade_layer_init() };
        let (state, size) = (cascade.memory.ptr::<std::ffi::c_void>().cast_const(), cascade.size);
        call(|e| unsafe { lava_cascade_get(state, size, layer, &mut out, e) }).unwrap();
        out
    };
    let read = |layer: &lava_cascade_layer, heads: usize| {
        // SAFETY: the header's lengths, and no push since.
        let of = |p: *const u32, n: usize| unsafe { std::slice::from_raw_parts(p, n) }.to_vec();
        let cu = of(layer.cu_kept, heads + 1);
        let n = cu[heads] as usize;
        (of(layer.kept_indices, n), of(layer.rows, n), of(layer.cu_rows, heads + 1), cu)
    };
    let first = get(0);
    let before = read(&first, 3);
    let (second, again) = (get(1), get(0));
    assert_eq!(read(&first, 3), before);
    assert_eq!(read(&again, 3), before);
    let copy = cascade.get(1, 2);
    assert_eq!(read(&second, 2).0, copy.indices);
    assert_eq!(read(&first, 3), before, "after the other layer's pointers were read");
}
