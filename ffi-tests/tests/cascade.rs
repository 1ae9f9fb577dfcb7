//! A cascade ends where compressing all layers at once ends, bit for bit, and never needs more memory than it said.

use ffi_tests::*;
use proptest::prelude::*;
use std::slice::from_raw_parts;

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
    /// Per layer: 0 zeros, 1 all equal, 2 one spike, else random on so many steps, which makes ties.
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

/// `lava_cascade_get`, copied out.
struct Got {
    indices: Vec<u32>,
    cu: Vec<u32>,
    rows: Vec<u32>,
    cu_rows: Vec<u32>,
    report: lava_cascade_layer,
}

fn get(state: &Memory, layer: usize, heads: usize) -> Got {
    let mut report = unsafe { lava_cascade_layer_init() };
    call(|e| unsafe { lava_cascade_get(state.ptr(), state.len(), layer as u32, &mut report, e) }).unwrap();
    // SAFETY: the header's lengths; the state is not pushed to before these are copied.
    unsafe {
        let cu = from_raw_parts(report.cu_kept, heads + 1).to_vec();
        let n = cu[heads] as usize;
        Got {
            indices: from_raw_parts(report.kept_indices, n).to_vec(),
            rows: from_raw_parts(report.rows, n).to_vec(),
            cu_rows: from_raw_parts(report.cu_rows, heads + 1).to_vec(),
            cu,
            report,
        }
    }
}

fn check(case: &Case) {
    let (shape, mask) = (case.shape(), case.mask());
    let mut params = select_params();
    (params.head_floor, params.alpha, params.n_sink) = (case.floor, case.alpha, case.sinks);
    params.evict_every = case.evict_every;
    if case.mask {
        params.protected_mask = mask.as_ptr();
    }
    let capacity = (case.prefix * case.heads) as u64;
    let minimum = (case.n_protected(&mask) * case.heads) as u64;
    let all = capacity * case.layers as u64;
    let total = (all * case.kept / 1000).max(minimum * case.layers as u64);
    let n_layers = case.layers as u32;

    let size =
        number(|size, e| unsafe { lava_cascade_state_size(&shape, n_layers, total, &params, size, e) })
            .unwrap();
    // Poison behind the state shows a byte too much.
    let memory = Memory::new(size + 64);
    let state = |f: &dyn Fn(*mut std::ffi::c_void, *mut lava_error) -> lava_status| {
        call(|e| f(memory.ptr(), e)).unwrap()
    };
    state(&|s, e| unsafe { lava_cascade_init(&shape, n_layers, total, &params, s, size, e) });

    let mut caches: Vec<(Laid, Laid)> = Vec::new();
    let mut grids = Vec::new();
    // Layers that have been compacted; those behind them are dense still: every head has all its tokens.
    let mut n_compacted = 0;
    for layer in 0..case.layers {
        let scores = case.scores(layer);
        state(&|s, e| unsafe { lava_cascade_push(s, size, scores.as_ptr(), e) });
        let data = Layer::random(case.seed ^ 77 ^ layer as u64, shape);
        caches.push((data.k.lay(), data.v.lay()));
        grids.push(data);
        let n_pushed = layer + 1;
        let evicts = n_pushed == case.layers || n_pushed % case.evict_every.max(1) as usize == 0;
        let mut held = 0;
        for (l, cache) in caches.iter_mut().enumerate() {
            let got = get(&memory, l, case.heads);
            held += got.report.budget;
            assert_eq!(got.report.budget, (got.indices.len() - case.window * case.heads) as u64);
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
    let (capacities, minimums) = (vec![capacity; case.layers], vec![minimum; case.layers]);
    let budgets = layer_budgets(&weights, &capacities, Some(&minimums), total).unwrap();
    for (l, &budget) in budgets.iter().enumerate() {
        let (got, want) =
            (get(&memory, l, case.heads), select(&shape, &params, &case.scores(l), budget).unwrap());
        assert_eq!((&got.indices, &got.cu), (&want.indices, &want.cu), "layer {l}");
        assert_eq!(got.report.budget, want.report.budget);
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
    assert!(memory.to_vec::<u8>()[size..].iter().all(|&b| b == POISON), "written behind the state");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cascade_ends_where_all_at_once_ends(case in cases()) {
        check(&case);
    }
}

/// A caller of an earlier version, whose options end before evict_every, evicts after each push, whatever lies behind them.
#[test]
fn options_without_evict_every() {
    let (shape, scores) = (shape(20, (2, 2), (3, 2), 2), vec![0.5f32; 36]);
    let held = |struct_size: usize, evict_every: u32| {
        let params = lava_select_params { struct_size: struct_size as u32, evict_every, ..select_params() };
        let size =
            number(|size, e| unsafe { lava_cascade_state_size(&shape, 2, 30, &params, size, e) }).unwrap();
        let state = Memory::new(size);
        call(|e| unsafe { lava_cascade_init(&shape, 2, 30, &params, state.ptr(), size, e) }).unwrap();
        for _ in 0..2 {
            call(|e| unsafe { lava_cascade_push(state.ptr(), size, scores.as_ptr(), e) }).unwrap();
        }
        get(&state, 0, 2).cu_rows[2]
    };
    // Of the first of two layers: what is kept after its own push, 30 entries, or all.
    let (kept, all) = (30 + 4, 40);
    let whole = size_of::<lava_select_params>();
    assert_eq!(
        [held(whole, 0), held(whole, 1), held(whole, 2), held(whole, u32::MAX)],
        [kept, kept, all, all]
    );
    assert_eq!([held(32, 2), held(44, 2)], [kept, kept]);
}
