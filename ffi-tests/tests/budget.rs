//! What a person sets: a ratio or a budget. Every ratio works at every length, and its result works in the calls after it.

use ffi_tests::oracle::Rule;
use ffi_tests::*;

/// floor(ratio * n), the ratio in billionths, exactly.
fn floor(ratio: f64, n: u32) -> u32 {
    // No ratio here has more than nine digits, so that its decimal text is what was meant.
    let digits = format!("{ratio:.9}");
    let billionths: u128 = digits.replace('.', "").parse().unwrap();
    (billionths * n as u128 / 1_000_000_000) as u32
}

#[test]
fn ratios_at_every_length() {
    let mask: Vec<u8> = (0..2000).map(|i| (i % 50 == 7) as u8).collect();
    let masked = lava_select_params { protected_mask: mask.as_ptr(), ..select_params() };
    let options = [
        ("LAVa", Some(select_params())),
        ("NULL", None),
        ("recommended", Some(unsafe { lava_select_params_default() })),
        ("a minimum", Some(lava_select_params { head_min: 9, n_sink: 3, ..select_params() })),
        ("a mask", Some(masked)),
        ("all sinks", Some(lava_select_params { n_sink: u32::MAX, ..select_params() })),
    ];
    let hundredths = (0..=100).step_by(3).map(|i| i as f64 / 100.0);
    let ratios: Vec<f64> =
        hundredths.chain([0.001, 0.29, 0.57, 0.125, 1e-9, 0.999_999_999, 1.0 / 1024.0]).collect();
    for (what, params) in &options {
        let params = params.as_ref();
        for (n, keys) in
            (1..=2000u32).step_by(if params.is_none() { 1 } else { 7 }).flat_map(|n| [(n, 0), (n, 100)])
        {
            let window = 32;
            let shape = sliding(shape(n as usize, (2, 2), (4, 4), window), keys);
            // What each head keeps whatever is asked for, by the rule of selection.
            let effective = params.copied().unwrap_or(unsafe { lava_select_params_default() });
            let rule = Rule::of(&[shape], &vec![0.0; n_scores(&shape)], &effective);
            let always = n.min(window as u32) + rule.minimum() as u32 / 2;
            for &ratio in &ratios {
                let budget = budget_from_ratio(&shape, params, ratio).unwrap();
                let want = floor(ratio, n).max(always).min(n);
                assert_eq!(budget, want, "{what}: {ratio} of {n}, {keys} keys");
            }
        }
    }
}

/// The issue's own numbers.
#[test]
fn ratios_are_what_they_say() {
    let of = |n, window, ratio| {
        budget_from_ratio(&shape(n, (2, 2), (4, 4), window), &select_params(), ratio).unwrap()
    };
    assert_eq!(of(100, 4, 0.29), 29);
    assert_eq!([32, 33, 100, 159, 160, 165].map(|n| of(n, 32, 0.2)), [32, 32, 32, 32, 32, 33]);
    assert_eq!([of(7, 1, 0.0), of(7, 1, 1.0), of(1, 9, 0.5)], [1, 7, 1]);
    let long = |ratio| {
        budget_from_ratio(&shape(u32::MAX as usize, (1, 1), (4, 4), 1), &select_params(), ratio).unwrap()
    };
    assert_eq!([long(1.0), long(0.5), long(1e-9)], [u32::MAX, u32::MAX / 2, 4]);
}

/// What a ratio gives works in every call that takes a budget.
#[test]
fn budgets_of_ratios_work() {
    let mask: Vec<u8> = (0..300).map(|i| (i % 9 == 2) as u8).collect();
    for (n, keys) in
        [1, 2, 31, 32, 33, 34, 40, 77, 159, 160, 161, 300].into_iter().flat_map(|n| [(n, 0), (n, 50)])
    {
        let one = sliding(shape(n, (2, 2), (4, 4), 32), keys);
        let scores: Vec<f32> = (0..n_scores(&one)).map(|i| (i * 31 % 97) as f32).collect();
        for ratio in [0.0, 0.01, 0.2, 0.5, 0.999, 1.0] {
            let minimum = lava_select_params { head_min: 5, ..select_params() };
            let masked = lava_select_params { protected_mask: mask.as_ptr(), n_sink: 6, ..select_params() };
            for params in [None, Some(select_params()), Some(minimum), Some(masked)] {
                let params = params.as_ref();
                let what = format!("{ratio} of {n}, {keys} keys");
                let budget = budget_from_ratio(&one, params, ratio).expect(&what);
                let total = total_entries(&[one; 3], budget).expect(&what);
                let kept = select(&one, params, &scores, total / 3).expect(&what);
                assert_eq!(kept.report.n_entries, total / 3, "{what}");
                assert_eq!(
                    layer_entries(&[one; 3], params, &[1.0; 3], total).expect(&what),
                    [total / 3; 3],
                    "{what}"
                );
                let (entries, _) = global_entries(&[one; 3], params, &scores.repeat(3), total).expect(&what);
                assert_eq!(entries.iter().sum::<u64>(), total, "{what}");
                let cascade = Cascade::new(&[one; 3], total, params, None).expect(&what);
                (0..3).for_each(|_| cascade.push(&one, &scores, None).expect(&what));
            }
        }
    }
}

/// Scores from outside may be negative: what is evicted is counted from the smallest.
#[test]
fn scores_from_outside_may_be_negative() {
    let shape = shape(13, (2, 2), (2, 2), 3);
    let mut rng = Rng(3);
    for (shift, spread) in [(0.0, 8.0), (-8.0, 8.0), (-3.0, 8.0), (-1e6, 1.0), (-1.0, 0.0), (2.0, 0.0)] {
        let scores: Vec<f32> = (0..20).map(|_| rng.unit() * spread + shift).collect();
        for n_entries in 0..=20usize {
            let kept = select(&shape, &select_params(), &scores, n_entries as u64).unwrap();
            // From the smallest where any is negative, else as they are.
            let smallest = scores.iter().fold(0.0, |m: f64, &s| m.min(s as f64));
            let mut ordered: Vec<f64> = scores.iter().map(|&s| s as f64 - smallest).collect();
            ordered.sort_by(|a, b| b.total_cmp(a));
            let all: f64 = ordered.iter().sum();
            let evicted: f64 = ordered[n_entries..].iter().sum();
            let share = if all > 0.0 { evicted / all } else { 0.0 };
            let got = kept.report.evicted_share;
            assert!((got - share).abs() <= 1e-12, "{n_entries} of {scores:?}: {got}, want {share}");
            assert!((kept.report.mass - all).abs() <= 1e-12 * all.max(1.0), "{} for {all}", kept.report.mass);
            let rule = Rule::dense(&scores, 2, &[false; 10]);
            ffi_tests::oracle::check_kept("mixed", &shape, &rule.kept(&rule.free(n_entries)), &kept);
        }
    }
}

/// Negative numbers that have no meaning are refused as out of range, not as "NaN or infinity".
#[test]
fn negative_numbers_are_out_of_range() {
    let shape = shape(13, (2, 2), (2, 2), 3);
    let scores: Vec<f32> = (0..20).map(|i| i as f32 - 3.0).collect();
    let told = |f: Failure| (f.status, f.argument);
    let of = |name: &str| (LAVA_ERR_ARGUMENT, name.to_owned());
    assert_eq!(told(entropy(&shape, &scores).unwrap_err()), of("scores"));
    assert_eq!(told(entries_for_share(&shape, &scores, 0.1).unwrap_err()), of("scores"));
    assert_eq!(told(layer_entries(&[shape; 2], None, &[1.0, -1.0], 20).unwrap_err()), of("weights"));
    let weights = [1.0, -0.5];
    let params = lava_select_params { head_weights: weights.as_ptr(), ..select_params() };
    assert_eq!(told(select(&shape, &params, &scores, 5).unwrap_err()), of("head_weights"));
    let cascade = Cascade::new(&[shape], 5, &select_params(), None).unwrap();
    assert_eq!(told(cascade.push(&shape, &scores, None).unwrap_err()), of("scores"));
    let by_weights = lava_cascade_params { layers: LAVA_LAYERS_WEIGHTS, ..cascade_params() };
    let cascade = Cascade::new(&[shape], 5, &select_params(), &by_weights).unwrap();
    assert_eq!(told(cascade.push(&shape, &[1.0; 20], Some(-1.0)).unwrap_err()), of("weight"));
    let (stats, tau) = ([-1.0, 1.0, 1.0, 1.0f64], 1.0);
    let refused =
        number(|w, e| unsafe { lava_preference(&shape, stats.as_ptr(), tau, tau, w, e) }).unwrap_err();
    assert_eq!(told(refused), of("stats"));
}
