//! Layers of one model that differ in everything share one total: budgets, the one sort and the cascade, in one call each, against
//! brute force.

use ffi_tests::oracle::{Rule, check_kept, check_positions, is_live, positions};
use ffi_tests::*;
use proptest::prelude::*;

/// Of one layer: heads, prefix, window, sliding window (0: none), whether it has been compressed before.
type Sizes = (usize, usize, usize, usize, bool);

#[derive(Clone, Debug)]
struct Model {
    layers: Vec<Sizes>,
    /// Of all that can be kept, in thousandths.
    kept: usize,
    floor: i32,
    billionths: u64,
    sinks: u32,
    head_min: u32,
    mask: bool,
    evict_every: u32,
    /// Steps of the scores: few make ties.
    steps: u64,
    seed: u64,
}

prop_compose! {
    fn models()(
        layers in prop::collection::vec(
            (
                prop_oneof![1 => Just(0usize), 6 => 1usize..5],
                prop_oneof![1 => Just(0usize), 6 => 1usize..30],
                1usize..5,
                prop_oneof![Just(0usize), 1usize..40],
                any::<bool>(),
            ),
            1..7,
        ),
        kept in 0usize..1100,
        floor in LAVA_FLOOR_NONE..=LAVA_FLOOR_GUARANTEED,
        billionths in prop_oneof![Just(100_000_000u64), Just(1_000_000_000), 0..1_000_000_000u64],
        sinks in prop_oneof![Just(0u32), 0u32..5],
        head_min in prop_oneof![3 => Just(0u32), 1 => 0u32..6],
        mask: bool,
        evict_every in prop_oneof![0u32..4, Just(u32::MAX)],
        steps in prop_oneof![Just(1u64), Just(5), Just(1 << 20)],
        seed: u64,
    ) -> Model {
        Model { layers, kept, floor, billionths, sinks, head_min, mask, evict_every, steps, seed }
    }
}

/// The model's shapes and all they lead to, its scores, its options.
struct World {
    shapes: Vec<lava_shape>,
    /// What the shapes lead to.
    _rows: Vec<Rows>,
    scores: Vec<Vec<f32>>,
    mask: Vec<u8>,
    params: lava_select_params,
}

impl World {
    fn new(model: &Model) -> Self {
        let rng = &mut Rng(model.seed);
        let (mut shapes, mut all_rows, mut scores) = (vec![], vec![], vec![]);
        for &(heads, prefix, window, keys, ragged) in &model.layers {
            let dense = sliding(shape(prefix + window, (2 * heads, heads), (3, 2), window), keys);
            let rows = Rows::random(rng, &dense);
            let shape = if ragged && heads > 0 { rows.of(dense) } else { dense };
            all_rows.push(rows);
            let mut own = vec![];
            for h in 0..heads {
                let prefix_rows = positions(&shape, h).len() - window;
                for &p in &positions(&shape, h)[..prefix_rows] {
                    let score = rng.below(model.steps + 1) as f32 / model.steps as f32;
                    // As lava_score writes them.
                    own.push(if is_live(&shape, p) { score } else { 0.0 });
                }
            }
            shapes.push(shape);
            scores.push(own);
        }
        let mask = (0..30).map(|_| (rng.below(6) == 0) as u8 * 3).collect();
        let mut world = Self { shapes, _rows: all_rows, scores, mask, params: select_params() };
        let p = &mut world.params;
        (p.head_floor, p.alpha) = (model.floor, model.billionths as f64 / 1e9);
        (p.n_sink, p.head_min) = (model.sinks, model.head_min);
        if model.mask {
            p.protected_mask = world.mask.as_ptr();
        }
        world
    }

    fn heads(&self, l: usize) -> usize {
        self.shapes[l].n_kv_heads as usize
    }

    /// One layer's rule.
    fn rule(&self, l: usize) -> Rule {
        Rule::of(&self.shapes[l..=l], &self.scores[l], &self.params)
    }

    /// That of all layers' heads together.
    fn whole(&self) -> Rule {
        Rule::of(&self.shapes, &self.scores.concat(), &self.params)
    }

    /// What a total of the model is.
    fn total(&self, model: &Model) -> u64 {
        let whole = self.whole();
        (whole.capacity() * model.kept / 1000).max(whole.minimum()) as u64
    }

    /// Counts of heads where `n` entries are kept.
    fn counts(&self, rule: &Rule, n: usize, model: &Model) -> Vec<usize> {
        match model.floor {
            LAVA_FLOOR_NONE => rule.free(n),
            _ => rule.guaranteed(n, model.billionths as u128),
        }
    }

    /// Pushes all layers and checks, on the way, that the rows to keep are those that the caller's cache still has. Returns what
    /// each layer's cache holds in the end, as positions.
    fn cascade(&self, model: &Model, total: u64, layers: i32, weights: Option<&[f64]>) -> Vec<CascadeLayer> {
        let evict_every = model.evict_every;
        let options = lava_cascade_params { layers, evict_every, ..cascade_params() };
        let cascade = Cascade::new(&self.shapes, total, &self.params, &options).unwrap();
        let n_layers = self.shapes.len();
        let last = (0..n_layers).rev().find(|&l| self.heads(l) > 0);
        // Positions of each head's rows as the caller's caches have them.
        let mut caches: Vec<Vec<Vec<u32>>> = vec![];
        let mut n_pushed = 0;
        for l in 0..n_layers {
            caches.push((0..self.heads(l)).map(|h| positions(&self.shapes[l], h)).collect());
            if self.heads(l) == 0 {
                continue;
            }
            cascade.push(&self.shapes[l], &self.scores[l], weights.map(|w| w[l])).unwrap();
            n_pushed += 1;
            let evicts = Some(l) == last || n_pushed % evict_every.max(1) == 0;
            for (earlier, cache) in caches.iter_mut().enumerate().filter(|_| evicts) {
                let got = cascade.get(earlier, cache.len());
                for (h, head) in cache.iter_mut().enumerate() {
                    let own = got.cu[h] as usize..got.cu[h + 1] as usize;
                    let n_rows = (got.cu_rows[h + 1] - got.cu_rows[h]) as usize;
                    assert_eq!(n_rows, head.len(), "rows of layer {earlier}'s cache after push {n_pushed}");
                    let kept: Vec<u32> = got.rows[own].iter().map(|&r| head[r as usize]).collect();
                    assert_eq!(kept, got.head(h), "layer {earlier}, head {h} after push {n_pushed}");
                    *head = kept;
                }
            }
        }
        cascade.check_end();
        (0..n_layers).filter(|_| last.is_some()).map(|l| cascade.get(l, self.heads(l))).collect()
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// One layer: dead rows are never kept, and what is kept is what a sort keeps of the others.
    #[test]
    fn selection_is_what_a_sort_keeps_of_any_layer(model in models()) {
        let world = World::new(&model);
        for l in (0..world.shapes.len()).filter(|&l| world.heads(l) > 0) {
            let (shape, rule) = (&world.shapes[l], world.rule(l));
            let n = (rule.capacity() * model.kept / 1000).max(rule.minimum());
            let kept = n.min(rule.capacity());
            let got = select(shape, &world.params, &world.scores[l], n as u64).unwrap();
            prop_assert_eq!(got.report.n_entries, kept as u64);
            prop_assert_eq!(got.report.everything_kept == 1, kept == rule.capacity());
            let mass: f64 = world.scores[l].iter().map(|&s| s as f64).sum();
            let heads = rule.kept(&world.counts(&rule, kept, &model));
            check_kept("select", shape, &heads, &got);
            let kept_mass: f64 = heads.iter().flatten().map(|e| e.score as f64).sum();
            let share = if mass > 0.0 { (mass - kept_mass) / mass } else { 0.0 };
            prop_assert!((got.report.evicted_share - share).abs() <= 1e-12);
            for h in 0..world.heads(l) {
                let window = shape.window.min(shape.n_tokens);
                let dead = |&&p: &&u32| !is_live(shape, p) && p < shape.n_tokens - window;
                prop_assert_eq!(got.head(h).iter().find(dead), None);
            }
            if rule.minimum() > 0 {
                let less = select(shape, &world.params, &world.scores[l], rule.minimum() as u64 - 1);
                prop_assert_eq!(less.unwrap_err().status, LAVA_ERR_BUDGET);
            }
        }
    }

    /// All layers: the total of a budget, the one sort, and the cascade under it.
    #[test]
    fn one_sort_over_unlike_layers(model in models()) {
        let world = World::new(&model);
        let total = world.total(&model);
        let whole = world.whole();
        let kept = (total as usize).min(whole.capacity());
        let counts = world.counts(&whole, kept, &model);
        let (entries, heads) = global_entries(&world.shapes, &world.params, &world.scores.concat(), total).unwrap();
        prop_assert_eq!(heads.iter().map(|&n| n as usize).collect::<Vec<_>>(), counts.clone());
        prop_assert_eq!(entries.iter().sum::<u64>(), kept as u64);

        let cascade = world.cascade(&model, total, LAVA_LAYERS_GLOBAL, None);
        let all = whole.kept(&counts);
        let mut first = 0;
        for (l, got) in cascade.iter().enumerate() {
            let own = first..first + world.heads(l);
            first = own.end;
            let of_layer: usize = counts[own.clone()].iter().sum();
            prop_assert_eq!((entries[l], got.report.n_entries), (of_layer as u64, of_layer as u64));
            if own.is_empty() {
                prop_assert_eq!((&got.indices, &got.cu), (&vec![], &vec![0]));
                continue;
            }
            check_positions("cascade", &world.shapes[l], &all[own.clone()], got);
            // lava_select with the layer's entries and its heads' weights keeps the same.
            let head_weights = heads[own.clone()].as_ptr();
            let params = lava_select_params { head_weights, ..world.params };
            let selected = select(&world.shapes[l], &params, &world.scores[l], entries[l]).unwrap();
            check_kept("select", &world.shapes[l], &all[own], &selected);
        }
    }

    /// Layers share by entropy, in equal parts, by weights: the cascade ends where all at once ends.
    #[test]
    fn a_cascade_of_unlike_layers_ends_where_all_at_once_ends(model in models()) {
        let world = World::new(&model);
        let total = world.total(&model);
        let n = world.shapes.len();
        let taking_part: Vec<usize> = (0..n).filter(|&l| world.heads(l) > 0).collect();
        let mut by_entropy = vec![f64::NAN; n];
        let mut masses = vec![0.0; n];
        for &l in &taking_part {
            (by_entropy[l], masses[l]) = entropy(&world.shapes[l], &world.scores[l]).unwrap();
        }
        let outside: Vec<f64> = (0..n).map(|l| (l % 3) as f64 / 2.0).collect();
        for (share, weights) in [
            (LAVA_LAYERS_ENTROPY, by_entropy.clone()),
            (LAVA_LAYERS_EQUAL, vec![1.0; n]),
            (LAVA_LAYERS_WEIGHTS, outside.clone()),
        ] {
            let entries = layer_entries(&world.shapes, &world.params, &weights, total).unwrap();
            let can_use: Vec<u64> = (0..n).map(|l| world.rule(l).capacity() as u64).collect();
            prop_assert_eq!(entries.iter().sum::<u64>(), total.min(can_use.iter().sum()));
            prop_assert!(entries.iter().zip(&can_use).all(|(e, most)| e <= most), "{:?} of {:?}", entries, can_use);
            let given = (share == LAVA_LAYERS_WEIGHTS).then_some(&outside[..]);
            let cascade = world.cascade(&model, total, share, given);
            for &l in &taking_part {
                let want = select(&world.shapes[l], &world.params, &world.scores[l], entries[l]).unwrap();
                prop_assert_eq!(&cascade[l].rest.indices, &want.rest.indices, "layer {}, share {}", l, share);
                prop_assert_eq!(&cascade[l].rest.cu, &want.rest.cu);
                let report = &cascade[l].report;
                let bits = |values: [f64; 3]| values.map(f64::to_bits);
                prop_assert_eq!(
                    bits([report.entropy, report.mass, report.evicted_share]),
                    bits([by_entropy[l], masses[l], want.report.evicted_share])
                );
            }
        }
    }

    /// A budget's entries; and one shape may stand for any number of layers.
    #[test]
    fn totals_of_unlike_layers(model in models(), more in 0u32..40) {
        let world = World::new(&model);
        // What earlier compressions left to a head does not matter, only what later queries could see of it.
        let of = |shape: &lava_shape, budget: u32| -> u64 {
            let visible = (0..prefix_len(shape) as u32).filter(|&p| is_live(shape, p)).count() as u64;
            shape.n_kv_heads as u64 * visible.min(budget.saturating_sub(shape.window) as u64)
        };
        let there_are = world.whole().capacity() as u64;
        let needs = |shape: &&lava_shape| shape.n_kv_heads > 0 && shape.window < shape.n_tokens;
        let least = world.shapes.iter().filter(needs).map(|s| s.window).max().unwrap_or(0);
        let want: u64 = world.shapes.iter().map(|s| of(s, least + more)).sum::<u64>().min(there_are);
        prop_assert_eq!(total_entries(&world.shapes, least + more), Ok(want));
        if least > 0 {
            let refused = total_entries(&world.shapes, least - 1).unwrap_err();
            let first = world.shapes.iter().position(|s| needs(&s) && s.window == least).unwrap() as u32;
            prop_assert_eq!((refused.status, refused.layer), (LAVA_ERR_BUDGET, Some(first)));
        }
        for shape in &world.shapes {
            let alike = number(|total, e| unsafe { lava_total_entries(shape, 1, 5, least + more, total, e) });
            prop_assert_eq!(alike, total_entries(&[*shape; 5], least + more));
        }
    }
}

/// Five sliding layers to a full one, 20%: what no later query can see takes no budget, whatever the layers share by.
#[test]
fn dead_entries_never_take_budget() {
    const TOKENS: usize = 2048;
    const WINDOW: usize = 16;
    const KEYS: usize = 128;
    // Other heads and head dimensions too, as Gemma's layers have them.
    let full = shape(TOKENS, (8, 2), (16, 16), WINDOW);
    let local = sliding(shape(TOKENS, (4, 4), (8, 8), WINDOW), KEYS);
    let shapes = [local, local, local, local, local, full];
    let first_live = (TOKENS + 1 - KEYS) as u32;
    // With smoothing, which must not be added to what no query sees.
    for smoothing in [0.0, 0.3] {
        for preset in
            [score_params(), unsafe { lava_score_params_default() }, unsafe { lava_score_params_snapkv() }]
        {
            let scores: Vec<Vec<f32>> = shapes
                .iter()
                .enumerate()
                .map(|(l, shape)| {
                    let layer = Layer::random(l as u64, *shape);
                    let params = lava_score_params { smoothing, ..preset };
                    let scores = Layer { params, ..layer }.score().unwrap();
                    let prefix = TOKENS - WINDOW;
                    for (i, &score) in scores.iter().enumerate() {
                        let is_dead = l < 5 && ((i % prefix) as u32) < first_live;
                        assert!(if is_dead { score == 0.0 } else { score > 0.0 }, "layer {l}, {i}: {score}");
                    }
                    scores
                })
                .collect();
            check_gemma(&shapes, &scores, first_live);
        }
    }
}

fn check_gemma(shapes: &[lava_shape], scores: &[Vec<f32>], first_live: u32) {
    let budget = budget_from_ratio(&shapes[5], None, 0.2).unwrap();
    assert_eq!(budget, 409);
    let total = total_entries(shapes, budget).unwrap();
    // Sliding layers get all that they can use, the full one what was asked for: nothing is lost to dead rows.
    let live = (shapes[5].n_tokens - 16 - first_live) as u64;
    assert_eq!((live, total), (111, 5 * 4 * 111 + 2 * (409 - 16)));
    for total in [total, total / 2, 200] {
        let params = unsafe { lava_select_params_default() };
        let whole = Rule::of(shapes, &scores.concat(), &params);
        let counts = whole.guaranteed(total as usize, 200_000_000);
        let (entries, heads) = global_entries(shapes, None, &scores.concat(), total).unwrap();
        assert_eq!(heads.iter().map(|&n| n as usize).collect::<Vec<_>>(), counts);
        assert_eq!(entries.iter().sum::<u64>(), total);
        for layers in [LAVA_LAYERS_GLOBAL, LAVA_LAYERS_ENTROPY, LAVA_LAYERS_EQUAL] {
            let options = lava_cascade_params { layers, ..cascade_params() };
            let cascade = Cascade::new(shapes, total, None, &options).unwrap();
            shapes.iter().zip(scores).for_each(|(s, own)| cascade.push(s, own, None).unwrap());
            let (mut held, mut first) = (0, 0);
            for (l, shape) in shapes.iter().enumerate() {
                let n_heads = shape.n_kv_heads as usize;
                let got = cascade.get(l, n_heads);
                held += got.report.n_entries;
                for h in (0..n_heads).filter(|_| l < 5) {
                    assert!(
                        got.head(h).iter().all(|&p| p >= first_live),
                        "a dead entry is kept in layer {l}"
                    );
                }
                if layers == LAVA_LAYERS_GLOBAL {
                    let kept = whole.kept(&counts);
                    check_positions("one sort", shape, &kept[first..first + n_heads], &got);
                }
                first += n_heads;
            }
            assert_eq!(held, total, "the whole total is used, whatever layers share by ({layers})");
        }
    }
}

/// Arrays of shapes: as many as layers, or one; of one version.
#[test]
fn arrays_of_layers() {
    let one = shape(20, (2, 2), (3, 3), 4);
    let shapes = [one; 5];
    let of = |n_shapes, n_layers| {
        let got = number(|n, e| unsafe { lava_total_entries(shapes.as_ptr(), n_shapes, n_layers, 10, n, e) });
        got.map_err(|f| (f.status, f.argument))
    };
    for (n_shapes, n_layers, want) in [(1, 5, 60), (5, 5, 60), (1, 1, 12), (3, 3, 36), (1, 1024, 12 * 1024)] {
        assert_eq!(of(n_shapes, n_layers), Ok(want));
    }
    for (n_shapes, n_layers) in [(0, 5), (2, 5), (4, 5), (6, 5), (u32::MAX, 5), (5, 1)] {
        assert_eq!(
            of(n_shapes, n_layers),
            Err((LAVA_ERR_SHAPE, "n_shapes".into())),
            "{n_shapes} of {n_layers}"
        );
    }
    for n_layers in [0, 1025, u32::MAX] {
        assert_eq!(of(1, n_layers), Err((LAVA_ERR_SHAPE, "n_layers".into())));
    }

    // A newer caller's structs: larger, all alike; what is not known must be zero.
    const LARGER: usize = size_of::<lava_shape>() + 16;
    let memory = Memory::new(3 * LARGER);
    let fill = |sizes: [usize; 3], tail: u8| {
        (0..memory.len()).for_each(|i| memory.set(i, tail));
        for (l, size) in sizes.into_iter().enumerate() {
            // SAFETY: aligned to 8, and inside.
            unsafe {
                let to = memory.ptr::<u8>().add(l * LARGER) as *mut lava_shape;
                to.write(lava_shape { struct_size: size as u32, n_tokens: 20 + l as u32, ..one });
            }
        }
        let got = number(|n, e| unsafe { lava_total_entries(memory.ptr(), 3, 3, 1000, n, e) });
        got.map_err(|f| (f.status, f.argument, f.layer))
    };
    assert_eq!(fill([LARGER; 3], 0), Ok(2 * (16 + 17 + 18)));
    assert_eq!(fill([LARGER; 3], 1), Err((LAVA_ERR_STRUCT_SIZE, "shapes".into(), Some(0))));
    for (sizes, layer) in
        [([LARGER, LARGER - 8, LARGER], 1), ([LARGER, LARGER, LARGER + 8], 2), ([LARGER, 0, LARGER], 1)]
    {
        assert_eq!(fill(sizes, 0), Err((LAVA_ERR_STRUCT_SIZE, "shapes".into(), Some(layer))), "{sizes:?}");
    }
}

/// An error names the layer that has the fault, whatever its own `layer` says.
#[test]
fn errors_name_the_layer_of_an_array() {
    let one = lava_shape { layer: 77, ..shape(20, (2, 2), (3, 3), 4) };
    let mut shapes = [one; 4];
    shapes[2].window = 0;
    let refused = total_entries(&shapes, 10).unwrap_err();
    assert_eq!((refused.status, refused.layer), (LAVA_ERR_SHAPE, Some(2)));
    shapes[2] = sliding(shape(50, (3, 3), (3, 3), 4), 30);
    let n: usize = shapes.iter().map(n_scores).sum();
    let mut scores = vec![0.5f32; n];
    let third: usize = shapes[..2].iter().map(n_scores).sum();
    // The last score of the third layer's second head.
    scores[third + 2 * 46 - 1] = f32::NAN;
    let refused = global_entries(&shapes, &select_params(), &scores, 30).unwrap_err();
    assert_eq!((refused.status, refused.layer, refused.head), (LAVA_ERR_NONFINITE, Some(2), Some(1)));
    let refused = layer_entries(&shapes, &select_params(), &[1.0, 1.0, 1.0, f64::NAN], 30).unwrap_err();
    assert_eq!((refused.status, refused.layer), (LAVA_ERR_NONFINITE, Some(3)));
    let refused = layer_entries(&shapes, &select_params(), &[1.0, -1.0, 1.0, 1.0], 30).unwrap_err();
    assert_eq!((refused.status, refused.layer), (LAVA_ERR_ARGUMENT, Some(1)));
}

/// A cascade takes each layer's own shape, and no other.
#[test]
fn a_cascade_expects_its_layers() {
    let shapes = [shape(20, (2, 2), (3, 3), 4), no_layer(), sliding(shape(30, (4, 4), (3, 3), 4), 9)];
    let cascade = Cascade::new(&shapes, 40, &select_params(), None).unwrap();
    let scores = vec![0.5f32; 4 * 26];
    let before = cascade.memory.to_vec::<u8>();
    for wrong in [
        shapes[2],
        shape(21, (2, 2), (3, 3), 4),
        shape(20, (1, 1), (3, 3), 4),
        shape(20, (2, 2), (3, 3), 5),
        sliding(shapes[0], 9),
    ] {
        let refused = cascade.push(&wrong, &scores, None).unwrap_err();
        assert_eq!((refused.status, refused.argument.as_str()), (LAVA_ERR_SHAPE, "shape"));
        assert!(cascade.memory.to_vec::<u8>() == before, "unchanged on error");
    }
    cascade.push(&shapes[0], &scores[..32], None).unwrap();
    // The second layer takes no part: the third is next. Layers without heads have no rows.
    cascade.push(&shapes[2], &scores, None).unwrap();
    assert_eq!(cascade.get(1, 0).cu, [0]);
    assert_eq!(cascade.get(2, 4).cu.len(), 5);
    let refused = cascade.push(&shapes[2], &scores, None).unwrap_err();
    assert_eq!(refused.status, LAVA_ERR_STATE);
}
