//! Entropy, budgets, selection, the cascade and compaction against the f64 reference, through one checker per stage. Scoring and
//! attention are in `scoring.rs`.

mod common;

use common::{Random, aligned, carver, shape};
use lava::cascade::{Cascade, CascadeParams};
use lava::*;
use proptest::prelude::*;

/// Kept sets against sorting.
fn check_select(scores: &[Vec<f32>], window: usize, params: &SelectParams, budget: u64) {
    let prefix = scores[0].len();
    let shape = shape(prefix + window, (scores.len(), scores.len()), (1, 1), window);
    let mut workspace = aligned(select::workspace_size(&shape).unwrap());
    let mut kept = vec![u32::MAX; select::n_kept(&shape, budget).unwrap() as usize];
    let mut cu = vec![u32::MAX; scores.len() + 1];
    let flat = scores.concat();
    let done = select::select(&shape, params, &flat, budget, &mut carver(&mut workspace), &mut kept, &mut cu)
        .unwrap();
    let want = reference::select(scores, params, budget);
    for (g, want) in want.iter().enumerate() {
        let want: Vec<u32> = want.iter().copied().chain(prefix..prefix + window).map(|i| i as u32).collect();
        assert_eq!(
            &kept[cu[g] as usize..cu[g + 1] as usize],
            want,
            "head {g} of {scores:?} {params:?} {budget}"
        );
    }
    let mass: f64 = flat.iter().map(|&s| s as f64).sum();
    let kept_mass: f64 = want.iter().zip(scores).flat_map(|(w, s)| w.iter().map(|&i| s[i] as f64)).sum();
    if mass > 0.0 {
        assert!((done.evicted_share - (1.0 - kept_mass / mass)).abs() < 1e-12);
    }
    assert_eq!(done.everything_kept, budget as usize == flat.len());
}

fn floors() -> impl Strategy<Value = (HeadFloor, f64)> {
    let alpha = prop_oneof![Just(0.0), Just(0.2), Just(0.5), Just(1.0), 0.0..1.0f64];
    (prop_oneof![Just(HeadFloor::None), Just(HeadFloor::Guaranteed), Just(HeadFloor::Affine)], alpha)
}

/// Few different values: plateaus everywhere. Or many. Some heads far above the others, so that floors matter.
fn layer_scores(heads: usize, prefix: usize, levels: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random(seed);
    let mut head = |_| {
        let size = [0.37, 0.37, 3.7, 37.0][random.below(4)];
        (0..prefix).map(|_| random.below(levels) as f32 * size).collect()
    };
    (0..heads).map(&mut head).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn selection_is_what_sorting_gives(
        (heads, prefix, window) in (1usize..6, 1usize..90, 1usize..5),
        levels in prop_oneof![Just(1usize), Just(2), Just(5), Just(1_000_000)],
        seed: u64, (head_floor, alpha) in floors(), n_sink in 0usize..6, head_min in 0usize..9, masked: bool, fill in 0.0..=1.0f64,
    ) {
        let scores = layer_scores(heads, prefix, levels, seed);
        let mask: Vec<u8> = (0..prefix).map(|i| (masked && (i * 7 + 3) % 11 == 0) as u8).collect();
        let head_min = head_min * (seed % 2) as usize;
        let params = SelectParams {
            head_floor, alpha, head_min, n_sink, protected_mask: masked.then_some(&mask), ..Default::default()
        };
        let least = (heads * params.minimum(prefix)) as u64;
        let budget = least + ((heads * prefix) as u64 - least).min((fill * (heads * prefix) as f64) as u64);
        check_select(&scores, window, &params, budget);
    }

    #[test]
    fn head_weights_are_head_budgets(
        (heads, prefix, window) in (1usize..6, 1usize..90, 1usize..5),
        levels in prop_oneof![Just(2usize), Just(1_000_000)],
        seed: u64, weights in prop::collection::vec(0u32..64, 6), fill in 0.0..=1.0f64,
    ) {
        let scores = layer_scores(heads, prefix, levels, seed);
        let weights: Vec<f64> = weights[..heads].iter().map(|&w| w as f64 / 64.0).collect();
        let params = SelectParams { head_weights: Some(&weights), ..Default::default() };
        check_select(&scores, window, &params, (fill * (heads * prefix) as f64) as u64);
    }

    #[test]
    fn one_sort_over_all_layers(
        (n_layers, heads, prefix, window) in (1usize..5, 1usize..4, 0usize..40, 1usize..5),
        levels in prop_oneof![Just(1usize), Just(2), Just(5), Just(1_000_000)],
        seed: u64, guaranteed: bool, alpha in 0.0..=1.0f64, head_min in 0usize..4, n_sink in 0usize..3, fill in 0.0..=1.1f64,
    ) {
        let layers: Vec<_> = (0..n_layers).map(|l| layer_scores(heads, prefix, levels, seed ^ l as u64)).collect();
        let head_floor = if guaranteed { HeadFloor::Guaranteed } else { HeadFloor::None };
        let params = SelectParams { head_floor, alpha, head_min, n_sink, ..Default::default() };
        let all = (n_layers * heads * prefix) as u64;
        let total = ((fill * all as f64) as u64).max((n_layers * heads * params.minimum(prefix)) as u64);
        let shape = shape(prefix + window, (heads, heads), (1, 1), window);
        let flat = layers.concat().concat();
        let mut workspace = aligned(select::global_budgets_workspace_size(&shape, n_layers).unwrap());
        let (mut budgets, mut head_weights) = (vec![u64::MAX; n_layers], vec![f64::NAN; n_layers * heads]);
        select::global_budgets(&shape, n_layers, &params, &flat, total, &mut carver(&mut workspace), &mut budgets, &mut head_weights).unwrap();
        // As if all were one layer; and selecting layer by layer with these counts keeps the same.
        let want = reference::select(&layers.concat(), &params, total.min(all));
        prop_assert_eq!(budgets.iter().sum::<u64>(), total.min(all));
        for (l, scores) in layers.iter().enumerate() {
            let own = &head_weights[l * heads..(l + 1) * heads];
            let params = SelectParams { head_weights: Some(own), n_sink, ..Default::default() };
            let budget = budgets[l];
            let mut workspace = aligned(select::workspace_size(&shape).unwrap());
            let mut kept = vec![0; select::n_kept(&shape, budget).unwrap() as usize];
            let mut cu = vec![0; heads + 1];
            select::select(&shape, &params, &scores.concat(), budget, &mut carver(&mut workspace), &mut kept, &mut cu).unwrap();
            for h in 0..heads {
                let kept = &kept[cu[h] as usize..cu[h + 1] as usize - window];
                prop_assert_eq!(kept, want[l * heads + h].iter().map(|&i| i as u32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn layer_budgets_are_exact(
        layers in prop::collection::vec((0u32..64, 0u64..300), 1..12), total in 0u64..2500,
    ) {
        // Weights are multiples of 1/64: every product is exact in the reference.
        let weights: Vec<f64> = layers.iter().map(|l| l.0 as f64 / 64.0).collect();
        let capacities: Vec<u64> = layers.iter().map(|l| l.1).collect();
        let mut budgets = vec![0; layers.len()];
        budget::layer_budgets(&weights, &capacities, None, total, &mut budgets).unwrap();
        prop_assert_eq!(&budgets, &reference::layer_budgets(&weights, &capacities, total));
        prop_assert_eq!(budgets.iter().sum::<u64>(), total.min(capacities.iter().sum()));
    }

    #[test]
    fn layer_budgets_respect_both_bounds(
        layers in prop::collection::vec((0.0..1.0f64, 0u64..100, 0u64..200), 1..12), extra in 0u64..1500,
    ) {
        let weights: Vec<f64> = layers.iter().map(|l| l.0).collect();
        let minimums: Vec<u64> = layers.iter().map(|l| l.1).collect();
        let capacities: Vec<u64> = layers.iter().map(|l| l.1 + l.2).collect();
        let total = minimums.iter().sum::<u64>() + extra;
        let mut budgets = vec![0; layers.len()];
        budget::layer_budgets(&weights, &capacities, Some(&minimums), total, &mut budgets).unwrap();
        prop_assert_eq!(budgets.iter().sum::<u64>(), total.min(capacities.iter().sum()));
        // One level λ explains all: a layer between its bounds has λ · weight, give or take its rounding.
        let mut level = (f64::NEG_INFINITY, f64::INFINITY);
        for l in 0..layers.len() {
            prop_assert!((minimums[l]..=capacities[l]).contains(&budgets[l]));
            if weights[l] > 1e-6 {
                let (b, w) = (budgets[l] as f64, weights[l]);
                if budgets[l] > minimums[l] { level.0 = level.0.max((b - 1.0) / w); }
                if budgets[l] < capacities[l] { level.1 = level.1.min((b + 1.0) / w); }
            }
        }
        prop_assert!(level.0 <= level.1 + 1e-9, "{level:?} {weights:?} {minimums:?} {capacities:?} {budgets:?}");
    }

    #[test]
    fn a_cascade_ends_where_one_shot_does(
        (n_layers, heads, prefix, window) in (1usize..7, 1usize..6, 1usize..40, 1usize..4),
        levels in prop_oneof![Just(2usize), Just(7), Just(1_000_000)],
        seed: u64, (head_floor, alpha) in floors(), n_sink in 0usize..3, head_min in 0usize..4, fill in 0.0..=1.1f64,
        layer_budgets in prop_oneof![
            Just(LayerBudgets::Entropy), Just(LayerBudgets::Equal), Just(LayerBudgets::Weights), Just(LayerBudgets::Global)
        ],
        weights in prop::collection::vec(prop_oneof![Just(0.0), 0.0..2.0f64], 7), weighed: bool,
        evict_every in prop_oneof![0usize..8, Just(u32::MAX as usize)],
    ) {
        let global = layer_budgets == LayerBudgets::Global;
        let head_floor = if global && head_floor == HeadFloor::Affine { HeadFloor::Guaranteed } else { head_floor };
        let head_min = head_min * (seed % 2) as usize;
        let mut random = Random(seed);
        let head_weights: Vec<f64> = (0..n_layers * heads).map(|_| random.below(5) as f64).collect();
        let head_weights = (weighed && !global).then_some(&head_weights[..]);
        let select_params = SelectParams { head_floor, alpha, n_sink, head_min, head_weights, ..Default::default() };
        let shape = shape(prefix + window, (heads, heads), (1, 1), window);
        let all = (n_layers * heads * prefix) as u64;
        let least = (n_layers * heads * select_params.minimum(prefix)) as u64;
        let total = ((fill * all as f64) as u64).max(least);
        let params = CascadeParams { shape, n_layers, total, layer_budgets, select: select_params, evict_every };
        let mut memory = aligned(cascade::state_size(&params).unwrap());
        let mut cascade = Cascade::new(&params, &mut carver(&mut memory)).unwrap();
        // Layers of very unlike entropy: some almost constant, some with a single score.
        let layers: Vec<Vec<f32>> = (0..n_layers).map(|l| {
            let mut scores = layer_scores(heads, prefix, levels, seed ^ (l as u64 * 77)).concat();
            if (seed >> l) & 3 == 0 { let keep = l % scores.len(); for (i, s) in scores.iter_mut().enumerate() { if i != keep { *s *= 1e-6; } } }
            scores
        }).collect();
        // The positions that the caller's cache holds, moved along by `rows` alone, and only when it is time.
        let mut held: Vec<Vec<Vec<u32>>> = vec![];
        for (l, scores) in layers.iter().enumerate() {
            match layer_budgets {
                LayerBudgets::Weights => cascade.push_weighted(scores, weights[l]).unwrap(),
                _ => cascade.push(scores).unwrap(),
            }
            held.push(vec![(0..shape.n_tokens as u32).collect(); heads]);
            let evicts = l + 1 == n_layers || (l + 1) % evict_every.max(1) == 0;
            for (j, layer_held) in held.iter_mut().enumerate() {
                let now = cascade.layer(j).unwrap();
                for (g, head) in layer_held.iter_mut().enumerate() {
                    let range = now.cu_kept[g] as usize..now.cu_kept[g + 1] as usize;
                    prop_assert_eq!((now.cu_rows[g + 1] - now.cu_rows[g]) as usize, head.len());
                    let kept: Vec<u32> = now.rows[range.clone()].iter().map(|&r| head[r as usize]).collect();
                    prop_assert_eq!(&now.kept_indices[range], &kept[..]);
                    if evicts {
                        *head = kept;
                    }
                }
            }
            if head_floor == HeadFloor::None && head_min == 0 && !weighed {
                let kept: u64 = (0..=l).map(|j| cascade.layer(j).unwrap().budget).sum();
                prop_assert!(kept <= total + n_layers as u64);
            }
        }
        prop_assert!(cascade.push(&layers[0]).is_err());

        let mut budgets = vec![0; n_layers];
        let mut of_heads: Vec<f64> = head_weights.map_or(vec![], |w| w.to_vec());
        if global {
            let mut workspace = aligned(select::global_budgets_workspace_size(&shape, n_layers).unwrap());
            of_heads = vec![0.0; n_layers * heads];
            select::global_budgets(&shape, n_layers, &select_params, &layers.concat(), total, &mut carver(&mut workspace), &mut budgets, &mut of_heads).unwrap();
        }
        let entropies: Vec<f64> = layers.iter().map(|s| entropy::entropy(s, heads, prefix).unwrap().entropy).collect();
        let capacities = vec![(heads * prefix) as u64; n_layers];
        let minimums = vec![(heads * select_params.minimum(prefix)) as u64; n_layers];
        let layer_weights = match layer_budgets {
            LayerBudgets::Entropy => entropies,
            LayerBudgets::Weights => weights[..n_layers].to_vec(),
            _ => vec![1.0; n_layers],
        };
        if !global {
            budget::layer_budgets(&layer_weights, &capacities, Some(&minimums), total, &mut budgets).unwrap();
        }
        let mut workspace = aligned(select::workspace_size(&shape).unwrap());
        for (l, scores) in layers.iter().enumerate() {
            let mut kept = vec![0; select::n_kept(&shape, budgets[l]).unwrap() as usize];
            let mut cu = vec![0; heads + 1];
            let own = (!of_heads.is_empty()).then(|| &of_heads[l * heads..(l + 1) * heads]);
            // One sort has taken the floors in already.
            let select_params = SelectParams { head_weights: own, head_min: if global { 0 } else { head_min }, ..select_params };
            let done = select::select(&shape, &select_params, scores, budgets[l], &mut carver(&mut workspace), &mut kept, &mut cu).unwrap();
            let end = cascade.layer(l).unwrap();
            prop_assert_eq!(end.kept_indices, &kept[..]);
            prop_assert_eq!(end.cu_kept, &cu[..]);
            prop_assert_eq!(end.budget, done.budget);
            prop_assert_eq!(end.evicted_share.to_bits(), done.evicted_share.to_bits());
            prop_assert_eq!(end.mass.to_bits(), done.mass.to_bits());
        }
    }

    #[test]
    fn the_smallest_budget_for_a_share(
        n in 1usize..200, levels in prop_oneof![Just(1usize), Just(2), Just(9), Just(1_000_000)], seed: u64, epsilon in 0.0..=1.0f64,
    ) {
        let scores = layer_scores(1, n, levels, seed).concat();
        let mut workspace = aligned(select::budget_for_share_workspace_size().unwrap());
        let budget = select::budget_for_share(&scores, epsilon, &mut carver(&mut workspace)).unwrap();
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mass: f64 = scores.iter().map(|&s| s as f64).sum();
        let evicted = |b: u64| sorted[b as usize..].iter().map(|&s| s as f64).sum::<f64>() / mass.max(1e-300);
        prop_assert!(evicted(budget) <= epsilon + 1e-9);
        prop_assert!(budget == 0 || evicted(budget - 1) >= epsilon - 1e-9);
    }
}

/// The published rule in integers, where its step needs no rounding: `b_l = most − l · (most − least) / (L − 1)`.
#[test]
fn a_pyramid_falls_linearly_and_is_exact() {
    let pyramid = |n, average, all, beta: f64| {
        let mut weights = vec![0.0; n];
        budget::pyramid_weights(average, all, beta, &mut weights).unwrap();
        let mut budgets = vec![0; n];
        let capacities = vec![2 * all; n];
        budget::layer_budgets(&weights, &capacities, None, 2 * average * n as u64, &mut budgets).unwrap();
        budgets
    };
    // Two KV heads. Average 100, last 100 / 20 = 5, first 195.
    assert_eq!(pyramid(5, 100, 1000, 20.0), [390, 295, 200, 105, 10]);
    // Only 150 tokens: the first has them all, the last 200 − 150 = 50.
    assert_eq!(pyramid(3, 100, 150, 20.0), [300, 200, 100]);
    assert_eq!(pyramid(1, 100, 150, 20.0), [200]);
    assert_eq!(pyramid(4, 150, 150, 20.0), [300; 4]);
    assert!(budget::pyramid_weights(10, 10, 0.5, &mut [0.0]).is_err());
}

#[test]
fn bounds_that_cancel_are_both_kept() {
    // Shares 2 and 8; one layer needs one more, the other can take one less.
    let mut budgets = [0; 2];
    budget::layer_budgets(&[0.2, 0.8], &[10, 7], Some(&[3, 0]), 10, &mut budgets).unwrap();
    assert_eq!(budgets, [3, 7]);
}

#[test]
fn entropy_agrees_with_the_reference() {
    for (heads, prefix) in [(1, 2), (1, 7), (2, 8), (3, 9), (8, 1000)] {
        let scores = layer_scores(heads, prefix, 1000, 5).concat();
        let got = entropy::entropy(&scores, heads, prefix).unwrap().entropy;
        assert!((got - reference::entropy(&scores)).abs() < 1e-13);
    }
}

#[test]
fn compaction_moves_rows_in_every_layout() {
    let (n, heads, dim) = (40usize, 3usize, 5usize);
    let mut random = Random(8);
    let value = |t: usize, h: usize, c: usize| (t * 100 + h * 10 + c) as f32;
    let layouts = [
        Strides::token_major(heads, dim),
        Strides::head_major(n, dim),
        // Transposed, and padded in every direction.
        Strides { token: 1, head: (dim * n) as i64, dim: n as i64, row_start: None },
        Strides { token: 64, head: 14, dim: 2, row_start: None },
    ];
    for strides in layouts {
        let mut kept = vec![];
        let mut cu = vec![0u32];
        for _ in 0..heads {
            kept.extend((0..n as u32).filter(|_| random.below(3) > 0));
            cu.push(kept.len() as u32);
        }
        let at = |t: usize, h: usize, c: usize| {
            t * strides.token as usize + h * strides.head as usize + c * strides.dim as usize
        };
        let mut memory = vec![-1.0f32; at(n - 1, heads - 1, dim - 1) + 1];
        for (t, h, c) in (0..n).flat_map(|t| (0..heads).flat_map(move |h| (0..dim).map(move |c| (t, h, c)))) {
            memory[at(t, h, c)] = value(t, h, c);
        }
        let before = memory.clone();

        let mut ragged = vec![-1.0f32; kept.len() * dim];
        {
            let src = Tensor::from_slice(&memory, strides, Rows::Same(n), heads, dim).unwrap();
            let mut dst =
                TensorMut::from_slice(&mut ragged, Strides::ragged(&cu, dim), Rows::Cu(&cu), heads, dim)
                    .unwrap();
            compact::compact(&src, &mut dst, &kept, &cu, 0..heads).unwrap();
        }
        let mut in_place = TensorMut::from_slice(&mut memory, strides, Rows::Cu(&cu), heads, dim).unwrap();
        compact::compact_within(&mut in_place.within(None, Rows::Same(n)).unwrap(), &kept, &cu).unwrap();
        let mut untouched = before.clone();
        for h in 0..heads {
            for (r, &t) in kept[cu[h] as usize..cu[h + 1] as usize].iter().enumerate() {
                for c in 0..dim {
                    let want = value(t as usize, h, c);
                    assert_eq!(ragged[(cu[h] as usize + r) * dim + c], want);
                    assert_eq!(memory[at(r, h, c)], want, "in place, {strides:?}");
                    untouched[at(r, h, c)] = want;
                }
            }
        }
        assert_eq!(memory, untouched, "rows behind the kept ones are as they were");
    }
}

#[test]
fn bad_indices_move_nothing() {
    let mut memory: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let before = memory.clone();
    let mut tensor =
        TensorMut::from_slice(&mut memory, Strides::token_major(1, 2), Rows::Same(6), 1, 2).unwrap();
    for (rows, cu) in [(vec![2, 1], [0, 2]), (vec![1, 1], [0, 2]), (vec![5, 6], [0, 2]), (vec![1, 2], [2, 0])]
    {
        let mut within = tensor.within(None, Rows::Same(6)).unwrap();
        let error = compact::compact_within(&mut within, &rows, &cu).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Indices);
    }
    assert_eq!(memory, before);
}
