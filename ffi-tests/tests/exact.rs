//! Integers that sum exactly, kept sets that are those of a plain sort, and the ends of every range.

use ffi_tests::oracle::{Rule, check_kept, largest_remainder};
use ffi_tests::*;
use proptest::prelude::*;

fn config() -> ProptestConfig {
    ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }
}

/// Layers that share a total: their weights, their heads, and the prefix of each.
fn layers() -> impl Strategy<Value = Vec<(f64, u64, u64)>> {
    let weight =
        prop_oneof![Just(0.0), Just(0.5), (0u32..=1024).prop_map(|w| w as f64 / 1024.0), 0.0..1.0f64];
    let sizes = prop_oneof![Just((1u64, 40u64)), (0u64..4, 0u64..60)];
    prop::collection::vec((weight, sizes).prop_map(|(w, (heads, prefix))| (w, heads, prefix)), 1..12)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn layer_entries_sum_exactly_within_bounds_and_in_proportion(
        layers in layers(),
        thousandths in 0u64..1200,
        sinks in prop_oneof![Just(0u32), 0u32..20],
        head_min in prop_oneof![Just(0u32), 0u32..30],
        mask in prop::option::of(prop::collection::vec(prop_oneof![Just(0u8), Just(1)], 60)),
    ) {
        let weights: Vec<f64> = layers.iter().map(|l| l.0).collect();
        let shapes: Vec<_> = layers.iter().map(|&(_, heads, prefix)| shape_of(heads as usize, prefix as usize, 1)).collect();
        let mut params = select_params();
        (params.n_sink, params.head_min) = (sinks, head_min);
        params.protected_mask = mask.as_ref().map_or(nothing(), |m| m.as_ptr());
        let capacities: Vec<u64> = layers.iter().map(|&(_, heads, prefix)| heads * prefix).collect();
        let protected = |i: u64| i < sinks as u64 || mask.as_ref().is_some_and(|m| m[i as usize] != 0);
        let minimum = |prefix: u64| ((0..prefix).filter(|&i| protected(i)).count() as u64).max(prefix.min(head_min as u64));
        let minimums: Vec<u64> = layers.iter().map(|&(_, heads, prefix)| heads * minimum(prefix)).collect();
        let all: u64 = capacities.iter().sum();
        let least: u64 = minimums.iter().sum();
        if least > 0 {
            prop_assert_eq!(layer_entries(&shapes, &params, &weights, least - 1).unwrap_err().status, LAVA_ERR_BUDGET);
        }
        let total = (all * thousandths / 1000).max(least);
        let budgets = layer_entries(&shapes, &params, &weights, total).unwrap();
        prop_assert_eq!(budgets.iter().sum::<u64>(), total.min(all));
        let n = budgets.len();
        for l in 0..n {
            prop_assert!((minimums[l]..=capacities[l]).contains(&budgets[l]));
        }
        let inside = |l: usize| minimums[l] < budgets[l] && budgets[l] < capacities[l];
        for (a, b) in (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).filter(|&(a, b)| inside(a) && inside(b)) {
            // Both are less than 1 away from their share of the same real number per weight.
            let difference = budgets[a] as f64 * weights[b] - budgets[b] as f64 * weights[a];
            prop_assert!(difference.abs() <= (weights[a] + weights[b]) * (1.0 + 1e-9), "{a} {b}: {budgets:?}");
            // Of equals the lower gets the extra one.
            if weights[a] == weights[b] {
                prop_assert!(budgets[a] == budgets[b] || budgets[a] == budgets[b] + 1, "{a} {b}: {budgets:?}");
            }
        }
    }

    #[test]
    fn unbounded_layer_entries_are_largest_remainders(
        weights in prop::collection::vec(0u32..2000, 1..10),
        total in 0u64..100_000,
    ) {
        let n = weights.len();
        // 2^-11 steps are exact.
        let given: Vec<f64> = weights.iter().map(|&w| w as f64 / 2048.0).collect();
        let sum: u128 = weights.iter().map(|&w| w as u128).sum();
        // All zero: equal shares.
        let numerators: Vec<u128> =
            weights.iter().map(|&w| total as u128 * if sum == 0 { 1 } else { w as u128 }).collect();
        let want = largest_remainder(&numerators, if sum == 0 { n as u128 } else { sum }, total as usize);
        let got = layer_entries(&vec![shape_of(1, 1 << 20, 1); n], &select_params(), &given, total).unwrap();
        prop_assert_eq!(got, want.into_iter().map(|b| b as u64).collect::<Vec<_>>());
    }
}

prop_compose! {
    /// Scores on few steps, so that ties are common, or on many.
    fn scored()(
        heads in 1usize..6,
        prefix in 1usize..50,
        steps in prop_oneof![Just(1u64), Just(4), Just(1 << 20)],
        seed: u64,
    ) -> (usize, usize, Vec<f32>) {
        let mut rng = Rng(seed);
        let scores = (0..heads * prefix).map(|_| rng.below(steps + 1) as f32 / 64.0).collect();
        (heads, prefix, scores)
    }
}

fn shape_of(heads: usize, prefix: usize, window: usize) -> lava_shape {
    shape(prefix + window, (heads, heads), (1, 1), window)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn selection_is_what_a_sort_keeps(
        (heads, prefix, scores) in scored(),
        window in 1usize..4,
        thousandths in 0usize..1100,
        floor in LAVA_FLOOR_NONE..=LAVA_FLOOR_AFFINE,
        billionths in prop_oneof![Just(0u64), Just(1_000_000_000), Just(200_000_000), 0..1_000_000_000u64],
        sinks in prop_oneof![Just(0usize), 0usize..5],
        mask in prop::option::of(prop::collection::vec(prop::bool::weighted(0.1), 50)),
    ) {
        let shape = shape_of(heads, prefix, window);
        let protected: Vec<bool> = (0..prefix).map(|i| i < sinks || mask.as_ref().is_some_and(|m| m[i])).collect();
        let least = heads * protected.iter().filter(|&&p| p).count();
        let budget = (heads * prefix * thousandths / 1000).max(least);
        let bytes = mask.map(|m| m.into_iter().map(|p| if p { 255u8 } else { 0 }).collect::<Vec<_>>());
        let mut params = select_params();
        (params.head_floor, params.alpha, params.n_sink) = (floor, billionths as f64 / 1e9, sinks as u32);
        params.protected_mask = bytes.as_ref().map_or(nothing(), |b| b.as_ptr());
        let got = select(&shape, &params, &scores, budget as u64).unwrap();

        let rule = Rule::dense(&scores, heads, &protected);
        let kept = budget.min(heads * prefix);
        let counts = match floor {
            LAVA_FLOOR_NONE => rule.free(kept),
            LAVA_FLOOR_GUARANTEED => rule.guaranteed(kept, billionths as u128),
            _ => rule.affine(kept, billionths as u128),
        };
        prop_assert_eq!(counts.iter().sum::<usize>(), kept);
        let (mut all, mut kept_mass) = (scores.iter().map(|&s| s as f64).sum::<f64>(), 0.0);
        let heads_keep = rule.kept(&counts);
        kept_mass += heads_keep.iter().flatten().map(|e| e.score as f64).sum::<f64>();
        check_kept("select", &shape, &heads_keep, &got);
        prop_assert_eq!((got.report.n_entries, got.report.mass), (kept as u64, all));
        prop_assert_eq!(got.report.everything_kept == 1, kept == heads * prefix);
        all = if all == 0.0 { 1.0 } else { all };
        let evicted = scores.iter().map(|&s| s as f64).sum::<f64>() - kept_mass;
        prop_assert!((got.report.evicted_share - evicted / all).abs() <= 1e-12);
    }

    #[test]
    fn the_entries_for_a_share_are_the_fewest(
        (heads, prefix, scores) in scored(),
        wide: bool,
        epsilon in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64, 0.0..0.01f64],
    ) {
        let mut scores = scores;
        if wide {
            // Sums that round.
            scores.iter_mut().for_each(|s| *s = if *s > 0.0 { (-40.0 * *s / 64.0).exp() } else { 0.0 });
        }
        let got = entries_for_share(&shape_of(heads, prefix, 1), &scores, epsilon).unwrap() as usize;
        let mut ordered: Vec<f64> = scores.iter().map(|&s| s as f64).collect();
        ordered.sort_by(|a, b| b.total_cmp(a));
        let mass: f64 = ordered.iter().rev().sum();
        let evicted = |budget: usize| if mass == 0.0 { 0.0 } else { ordered[budget..].iter().rev().sum::<f64>() / mass };
        prop_assert!(evicted(got) <= epsilon + 1e-12, "{got} evicts {}", evicted(got));
        prop_assert!(got == 0 || evicted(got - 1) > epsilon - 1e-12, "{} would be enough", got - 1);
        // Whatever the share, no entry of score 0 needs to be kept.
        prop_assert!(got <= ordered.iter().filter(|&&s| s > 0.0).count());
    }
}

#[test]
fn a_window_that_covers_all_tokens_evicts_nothing() {
    for (tokens, window) in [(5, 5), (5, 6), (1, 1), (3, 1000)] {
        let shape = shape(tokens, (4, 2), (3, 3), window);
        // No scores anywhere: NULL is allowed.
        assert_eq!(Layer::random(1, shape).score().unwrap(), []);
        assert_eq!(entropy(&shape, &[]).unwrap(), (0.0, 0.0));
        assert_eq!(total_entries(&[shape; 3], 0), Ok(0));
        let kept = select(&shape, &select_params(), &[], 0).unwrap();
        assert_eq!(kept.report.everything_kept, 1);
        for h in 0..2 {
            assert_eq!(kept.head(h), (0..tokens as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn budgets_at_both_ends() {
    let (tokens, window) = (20, 4);
    let shape = shape(tokens, (2, 2), (3, 3), window);
    let total = |budget| number(|total, e| unsafe { lava_total_entries(&shape, 1, 3, budget, total, e) });
    // The window alone; one more; all; more than all.
    assert_eq!([4, 5, 20, 21, u32::MAX].map(total), [0, 6, 96, 96, 96].map(Ok));
    let ratio = |ratio| budget_from_ratio(&shape, &select_params(), ratio);
    assert_eq!([0.2, 0.5, 0.549, 0.55, 1.0].map(ratio), [4, 10, 10, 11, 20].map(Ok));

    let scores = Layer::random(2, shape).score().unwrap();
    let nothing_kept = select(&shape, &select_params(), &scores, 0).unwrap();
    assert_eq!(nothing_kept.indices, [16, 17, 18, 19, 16, 17, 18, 19]);
    assert_eq!((nothing_kept.report.evicted_share, nothing_kept.report.everything_kept), (1.0, 0));
    for budget in [32, 33, u64::MAX] {
        let all_kept = select(&shape, &select_params(), &scores, budget).unwrap();
        assert_eq!(all_kept.indices, (0..40).map(|i| i % 20).collect::<Vec<_>>());
        assert_eq!((all_kept.report.evicted_share, all_kept.report.everything_kept), (0.0, 1));
    }
}

/// The alphas next to where a head's count changes, a billionth apart: `alpha * budget / 2` at an integer or at a half.
#[test]
fn alpha_counts_in_billionths() {
    const ONE: u128 = 1_000_000_000;
    let (prefix, budget) = (200_000usize, 199_999usize);
    let shape = shape_of(2, prefix, 1);
    // Free competition gives head 0 everything.
    let scores: Vec<f32> = (0..2 * prefix).map(|i| if i < prefix { 2.0 } else { 1.0 }).collect();
    // Head 1's entries, its window aside.
    let got = |floor, billionths: u128| {
        let mut params = select_params();
        (params.head_floor, params.alpha) = (floor, billionths as f64 / ONE as f64);
        let cu = select(&shape, &params, &scores, budget as u64).unwrap().rest.cu;
        (cu[2] - cu[1]) as usize - 1
    };
    let b = budget as u128;
    for count in [1u128, 7, 1234, 33_333, 65_537, 99_998] {
        // The smallest alpha that promises head 1 that many.
        let alpha = (2 * ONE * count).div_ceil(b);
        for (alpha, want) in [(alpha - 1, count - 1), (alpha, count)] {
            assert_eq!(alpha * b / (2 * ONE), want);
            assert_eq!(got(LAVA_FLOOR_GUARANTEED, alpha) as u128, want, "guaranteed, alpha {alpha} e-9");
        }
        // The largest alpha that leaves head 1 at or below that many and a half: of equal remainders head 0's rounds up.
        let alpha = (2 * count + 1) * ONE / b;
        for (alpha, more) in [(alpha, 0), (alpha + 1, 1)] {
            let exact = [(ONE - alpha) * b * 2 + alpha * b, alpha * b];
            let want = largest_remainder(&exact, 2 * ONE, budget)[1];
            assert_eq!(want as u128, count + more);
            assert_eq!(got(LAVA_FLOOR_AFFINE, alpha), want, "affine, alpha {alpha} e-9");
        }
    }
}

#[test]
fn equal_scores_go_to_the_lower_head_then_the_lower_token() {
    let shape = shape_of(3, 4, 1);
    for value in [0.0, 0.25, f32::MAX] {
        let scores = [value; 12];
        let kept = select(&shape, &select_params(), &scores, 6).unwrap();
        assert_eq!(kept.indices, [0, 1, 2, 3, 4, 0, 1, 4, 4]);
        let (entropy, mass) = entropy(&shape, &scores).unwrap();
        assert_eq!(mass, 12.0 * value as f64);
        assert!((entropy - if value > 0.0 { 1.0 } else { 0.0 }).abs() <= 1e-14, "{entropy}");
    }
    // Both zeros are the same score.
    let zeros = [0.0, -0.0, 0.0, -0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(select(&shape, &select_params(), &zeros, 5).unwrap().indices, [0, 1, 2, 3, 4, 0, 4, 4]);
}

#[test]
fn values_that_are_all_zero_give_zero_scores() {
    let mut layer = Layer::random(3, shape(30, (4, 2), (5, 3), 4));
    layer.v.values.fill(0.0);
    let scores = layer.score().unwrap();
    assert_eq!(scores, [0.0; 52]);
    assert_eq!(entropy(&layer.shape, &scores).unwrap(), (0.0, 0.0));
    assert_eq!(select(&layer.shape, &select_params(), &scores, 3).unwrap().report.evicted_share, 0.0);
    assert_eq!(entries_for_share(&layer.shape, &scores, 0.0).unwrap(), 0);
}

#[test]
fn one_token_of_prefix_one_head_one_layer() {
    let layer = Layer::random(4, shape(4, (1, 1), (1, 1), 3));
    let scores = layer.score().unwrap();
    assert!(scores.len() == 1 && scores[0] > 0.0);
    // One entry has nothing to spread over.
    assert_eq!(entropy(&layer.shape, &scores).unwrap(), (0.0, scores[0] as f64));
    assert_eq!(layer_entries(&[layer.shape], &select_params(), &[0.0], 5).unwrap(), [1]);
    assert_eq!(select(&layer.shape, &select_params(), &scores, 0).unwrap().indices, [1, 2, 3]);
    assert_eq!(select(&layer.shape, &select_params(), &scores, 1).unwrap().indices, [0, 1, 2, 3]);
    assert_eq!(entries_for_share(&layer.shape, &scores, 0.5).unwrap(), 1);
}
