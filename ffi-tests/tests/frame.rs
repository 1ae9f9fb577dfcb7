//! The options that make other papers' methods, through the C ABI, each against a few lines of what it publishes.

use ffi_tests::*;

const WINDOW: usize = 4;
const PREFIX: usize = 37;
const HEADS: (usize, usize) = (6, 3);
const DIMS: (usize, usize) = (8, 5);

fn layer(seed: u64, params: lava_score_params) -> Layer {
    Layer { params, ..Layer::random(seed, shape(PREFIX + WINDOW, HEADS, DIMS, WINDOW)) }
}

/// `A[j][i]` of a query head.
fn attention(layer: &Layer, h: usize) -> Vec<Vec<f64>> {
    let g = h / (HEADS.0 / HEADS.1);
    let row = |j: usize| {
        let logit = |i: usize| {
            let dot: f64 =
                layer.q.row(j, h).iter().zip(layer.k.row(i, g)).map(|(a, b)| *a as f64 * *b as f64).sum();
            if i <= PREFIX + j { (dot / (DIMS.0 as f64).sqrt()).exp() } else { 0.0 }
        };
        let exps: Vec<f64> = (0..PREFIX + WINDOW).map(logit).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|x| x / sum).collect()
    };
    (0..WINDOW).map(row).collect()
}

fn mean(a: &[Vec<f64>], i: usize) -> f64 {
    a.iter().map(|row| row[i]).sum::<f64>() / WINDOW as f64
}

fn variance(a: &[Vec<f64>], i: usize) -> f64 {
    a.iter().map(|row| (row[i] - mean(a, i)).powi(2)).sum::<f64>() / (WINDOW - 1) as f64
}

fn l1(layer: &Layer, i: usize, g: usize) -> f64 {
    layer.v.row(i, g).iter().map(|x| x.abs() as f64).sum()
}

/// CAOTE's theorem: `a / (1 − a) · ‖o − v‖`.
fn output_change(layer: &Layer, g: usize, a: &[f64]) -> Vec<f64> {
    let value = |i: usize, c: usize| layer.v.row(i, g)[c] as f64;
    let o: Vec<f64> = (0..DIMS.1).map(|c| (0..a.len()).map(|i| a[i] * value(i, c)).sum()).collect();
    let norm = |i: usize| (0..DIMS.1).map(|c| (o[c] - value(i, c)).powi(2)).sum::<f64>().sqrt();
    (0..PREFIX).map(|i| a[i] / (1.0 - a[i]) * norm(i)).collect()
}

fn max_pool(x: Vec<f64>) -> Vec<f64> {
    (0..PREFIX)
        .map(|i| x[i.saturating_sub(3)..(i + 4).min(PREFIX)].iter().copied().fold(0.0, f64::max))
        .collect()
}

/// Each published score, per KV head and prefix token, of one query head; then how the group's are reduced.
#[test]
fn published_scores() {
    type OfHead = fn(&Layer, usize, &[Vec<f64>]) -> Vec<f64>;
    // SAFETY: plain functions of the header.
    let methods: [(&str, lava_score_params, bool, OfHead); 9] = unsafe {
        [
            ("SnapKV", lava_score_params_snapkv(), false, |_, _, a| {
                max_pool((0..PREFIX).map(|i| mean(a, i)).collect())
            }),
            ("CAKE", lava_score_params_cake(200.0), true, |_, _, a| {
                let x: Vec<f64> = (0..PREFIX).map(|i| mean(a, i) + 200.0 * variance(a, i)).collect();
                (0..PREFIX)
                    .map(|i| x[i.saturating_sub(2)..(i + 3).min(PREFIX)].iter().sum::<f64>() / 5.0)
                    .collect()
            }),
            ("TOVA before it is one set", lava_score_params_tova(), true, |_, _, a| {
                (0..PREFIX).map(|i| mean(a, i)).collect()
            }),
            ("StreamingLLM", lava_score_params_streaming(), false, |_, _, _| {
                (0..PREFIX).map(|i| (i + 1) as f64).collect()
            }),
            ("VATP", lava_score_params_vatp(), false, |layer, g, a| {
                (0..PREFIX).map(|i| mean(a, i) * l1(layer, i, g)).collect()
            }),
            ("CAOTE", lava_score_params_caote(), false, |layer, g, a| {
                let a: Vec<f64> = (0..PREFIX + WINDOW).map(|i| mean(a, i)).collect();
                output_change(layer, g, &a)
            }),
            ("ReST-KV", lava_score_params_rest_kv(0.3), false, |layer, g, a| {
                let average =
                    |i: usize| a[1..].iter().fold(a[0][i], |average, row| 0.3 * row[i] + 0.7 * average);
                let a: Vec<f64> = (0..PREFIX + WINDOW).map(average).collect();
                max_pool(output_change(layer, g, &a))
            }),
            ("KV-Compress", lava_score_params_kv_compress(), true, |_, _, a| {
                let squares = |i: usize| a.iter().map(|row| row[i] * row[i]).sum::<f64>() / WINDOW as f64;
                max_pool((0..PREFIX).map(squares).collect())
            }),
            ("SAGE-KV", lava_score_params_sage_kv(), false, |_, _, a| a[WINDOW - 1][..PREFIX].to_vec()),
        ]
    };
    for (name, params, is_mean, of_head) in methods {
        for seed in 0..4 {
            let layer = layer(seed, params);
            let got = layer.score().unwrap();
            let group = HEADS.0 / HEADS.1;
            for g in 0..HEADS.1 {
                let heads: Vec<_> =
                    (g * group..(g + 1) * group).map(|h| of_head(&layer, g, &attention(&layer, h))).collect();
                let want = |i: usize| match is_mean {
                    true => heads.iter().map(|head| head[i]).sum::<f64>() / group as f64,
                    false => heads.iter().map(|head| head[i]).fold(0.0, f64::max),
                };
                let largest = (0..PREFIX).map(want).fold(0.0, f64::max);
                for i in 0..PREFIX {
                    let (got, want) = (got[g * PREFIX + i] as f64, want(i));
                    assert!((got - want).abs() <= 2e-5 * largest, "{name}, head {g}, {i}: {got} for {want}");
                }
            }
        }
    }
}

/// Without a value weight V may be NULL, and with recency Q and K may be anything.
#[test]
fn what_is_not_needed_is_not_looked_at() {
    let mut layer = layer(1, unsafe { lava_score_params_snapkv() });
    let want = layer.score().unwrap();
    let [q, k] = [&layer.q, &layer.k].map(Grid::lay);
    let bytes =
        number(|size, e| unsafe { lava_score_workspace_size(&layer.shape, &layer.params, size, e) }).unwrap();
    let (workspace, scores) = (Memory::new(bytes), Memory::new(want.len() * 4));
    call(|e| unsafe {
        let (q, k, v, lse) = (&q.tensor(), &k.tensor(), nothing(), nothing());
        let to = scores.ptr();
        lava_score(&layer.shape, &layer.params, q, k, v, lse, 0, 1, workspace.ptr(), bytes, to, e)
    })
    .unwrap();
    assert_eq!(scores.to_vec::<f32>(), want);
    layer.v.set(0, 0, 0, f32::NAN);
    assert_eq!(layer.score().unwrap(), want);
    layer.params = unsafe { lava_score_params_streaming() };
    layer.k.set(3, 1, 0, f32::INFINITY);
    layer.score().unwrap();
}

/// The layer's weight is a factor on its scores.
#[test]
fn a_weight_scales_the_scores() {
    let (one, four) =
        (layer(2, score_params()), layer(2, lava_score_params { weight: 4.0, ..score_params() }));
    let one: Vec<f32> = one.score().unwrap().iter().map(|s| 4.0 * s).collect();
    assert_eq!(four.score().unwrap(), one);
}

#[test]
fn tova_keeps_one_set_for_all_heads() {
    let layer = Layer {
        params: unsafe { lava_score_params_tova() },
        ..Layer::random(5, shape(PREFIX + 1, HEADS, DIMS, 1))
    };
    let mut scores = layer.score().unwrap();
    let mean: Vec<f32> = (0..PREFIX)
        .map(|i| ((0..HEADS.1).map(|g| scores[g * PREFIX + i] as f64).sum::<f64>() / HEADS.1 as f64) as f32)
        .collect();
    call(|e| unsafe { lava_mean_over_heads(&layer.shape, scores.as_mut_ptr(), e) }).unwrap();
    assert_eq!(scores, mean.repeat(HEADS.1));
    let kept =
        select(&layer.shape, &unsafe { lava_select_params_equal() }, &scores, 10 * HEADS.1 as u64).unwrap();
    let mut best: Vec<u32> = (0..PREFIX as u32).collect();
    best.sort_by(|&i, &j| mean[j as usize].total_cmp(&mean[i as usize]));
    best.truncate(10);
    best.sort();
    best.push(PREFIX as u32);
    (0..HEADS.1).for_each(|h| assert_eq!(kept.head(h), best));
}

#[test]
fn cakes_preference() {
    let layer = layer(3, unsafe { lava_score_params_cake(200.0) });
    let [q, k] = [&layer.q, &layer.k].map(Grid::lay);
    let bytes =
        number(|size, e| unsafe { lava_score_workspace_size(&layer.shape, &layer.params, size, e) }).unwrap();
    let (mut entropy, mut spread) = (0.0, 0.0);
    for h in 0..HEADS.0 {
        let a = attention(&layer, h);
        entropy -= a.iter().flat_map(|row| &row[..PREFIX]).map(|a| a * a.ln()).sum::<f64>();
        spread += (0..PREFIX).map(|i| variance(&a, i)).sum::<f64>();
    }
    for n_parts in [1, 2, 5] {
        let stats = Memory::new(2 * 8 * HEADS.1);
        in_parts(n_parts, true, |part| {
            let (workspace, stats) = (Memory::new(bytes), stats.ptr());
            let (shape, params, q, k) = (&layer.shape, &layer.params, &q.tensor(), &k.tensor());
            call(|e| unsafe {
                let workspace = workspace.ptr();
                lava_attention_stats(
                    shape,
                    params,
                    q,
                    k,
                    nothing(),
                    part,
                    n_parts,
                    workspace,
                    bytes,
                    stats,
                    e,
                )
            })
        })
        .unwrap();
        let weight =
            number(|weight, e| unsafe { lava_preference(&layer.shape, stats.ptr(), 2.0, 0.5, weight, e) })
                .unwrap();
        let want = entropy.sqrt() * spread * spread;
        assert!((weight - want).abs() < 1e-4 * want, "{weight} for {want}");
    }
}

#[test]
fn a_pyramid() {
    let mut weights = [0.0; 5];
    call(|e| unsafe { lava_pyramid_weights(5, 100, 1000, 20.0, weights.as_mut_ptr(), e) }).unwrap();
    let layers = [shape(1001, (2, 2), (1, 1), 1); 5];
    assert_eq!(layer_entries(&layers, &select_params(), &weights, 1000).unwrap(), [390, 295, 200, 105, 10]);
}

#[test]
fn head_budgets_from_outside() {
    let shape = shape(PREFIX + WINDOW, HEADS, DIMS, WINDOW);
    let scores: Vec<f32> = (0..HEADS.1 * PREFIX).map(|i| (i * 31 % 17) as f32).collect();
    // Counts that sum to the budget are taken as they are; others in proportion.
    for (weights, budget, want) in [
        ([5.0, 0.0, 11.0], 16, [5, 0, 11]),
        ([1.0, 1.0, 2.0], 20, [5, 5, 10]),
        ([0.0, 0.0, 1.0], 40, [2, 1, 37]),
    ] {
        let params = lava_select_params { head_weights: weights.as_ptr(), ..select_params() };
        let kept = select(&shape, &params, &scores, budget).unwrap();
        assert_eq!([0, 1, 2].map(|h| kept.head(h).len() - WINDOW), want);
    }
    // Every head keeps its best.
    let params = lava_select_params { head_min: 4, ..select_params() };
    let alone: Vec<f32> =
        (0..HEADS.1 * PREFIX).map(|i| if i < PREFIX { 9.0 } else { i as f32 * 1e-3 }).collect();
    let kept = select(&shape, &params, &alone, 20).unwrap();
    assert_eq!([0, 1, 2].map(|h| kept.head(h).len() - WINDOW), [12, 4, 4]);
}

/// How a cascade's layers share the total, against the calls that do it at once.
#[test]
fn every_allocator_in_a_cascade() {
    const LAYERS: usize = 4;
    let (shape, heads) = (shape(PREFIX + WINDOW, HEADS, DIMS, WINDOW), HEADS.1);
    let mut rng = Rng(11);
    let layers: Vec<Vec<f32>> = (0..LAYERS)
        .map(|l| (0..heads * PREFIX).map(|_| rng.unit() * [1.0, 8.0, 0.1, 3.0][l]).collect())
        .collect();
    let head_weights: Vec<f64> = (0..LAYERS * heads).map(|i| (i % 5) as f64).collect();
    let weights = [0.5, 0.0, 2.0, 1.5];
    let (total, shapes) = (100, [shape; LAYERS]);
    for (share, weighed) in [
        (LAVA_LAYERS_ENTROPY, false),
        (LAVA_LAYERS_EQUAL, true),
        (LAVA_LAYERS_WEIGHTS, false),
        (LAVA_LAYERS_WEIGHTS, true),
        (LAVA_LAYERS_GLOBAL, false),
    ] {
        let of_heads = if weighed { head_weights.as_ptr() } else { std::ptr::null() };
        let params = lava_select_params { head_weights: of_heads, n_sink: 1, ..select_params() };
        let cascade = lava_cascade_params { layers: share, ..cascade_params() };
        let cascade = Cascade::new(&shapes, total, &params, &cascade).unwrap();
        for (scores, weight) in layers.iter().zip(weights) {
            cascade.push(&shape, scores, (share == LAVA_LAYERS_WEIGHTS).then_some(weight)).unwrap();
        }

        // The same at once: each layer's entries, and under one sort each head's.
        let by = |weights: &[f64]| layer_entries(&shapes, &params, weights, total).unwrap();
        let mut of_heads = if weighed { head_weights.clone() } else { vec![] };
        let entries = match share {
            LAVA_LAYERS_ENTROPY => {
                by(&layers.iter().map(|s| entropy(&shape, s).unwrap().0).collect::<Vec<_>>())
            }
            LAVA_LAYERS_EQUAL => by(&[1.0; LAYERS]),
            LAVA_LAYERS_WEIGHTS => by(&weights),
            _ => {
                let (entries, counts) = global_entries(&shapes, &params, &layers.concat(), total).unwrap();
                assert_eq!(entries.iter().sum::<u64>(), total);
                of_heads = counts;
                entries
            }
        };
        for (l, scores) in layers.iter().enumerate() {
            let own = of_heads.get(l * heads..).filter(|own| !own.is_empty());
            let own = own.map_or(std::ptr::null(), <[f64]>::as_ptr);
            let params = lava_select_params { head_weights: own, ..params };
            let (got, want) = (cascade.get(l, heads), select(&shape, &params, scores, entries[l]).unwrap());
            assert_eq!((&got.indices, &got.cu), (&want.indices, &want.cu), "layer {l}, allocator {share}");
            assert_eq!(got.report.n_entries, entries[l]);
        }
    }
}
