//! Every option of lava_score against the method in plain f64 loops.

use ffi_tests::oracle::{check_scores, log_sum_exps, scores};
use ffi_tests::*;

/// Checks the scores with and without given log-sum-exps, natural and in base two.
fn check(what: &str, layer: &Layer) {
    let want = scores(layer);
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
    for lse_base in [None, Some(LAVA_LSE_NATURAL), Some(LAVA_LSE_BASE2)] {
        let params = lava_score_params { lse_base: lse_base.unwrap_or(0), ..layer.params };
        let with_base =
            Layer { params, q: layer.q.clone(), k: layer.k.clone(), v: layer.v.clone(), ..*layer };
        let lse = log_sum_exps(&with_base).lay();
        let given = lse_base.map(|_| lse.tensor());
        let got = score(&layer.shape, &params, tensors, given.as_ref(), WHOLE).expect(what);
        check_scores(&format!("{what}, log-sum-exp {lse_base:?}"), &got, &want);
    }
}

/// A layer whose largest value is in the window, so that the value span shows.
fn layer(tokens: usize, heads: (usize, usize), window: usize) -> Layer {
    let mut layer = Layer::random(tokens as u64, shape(tokens, heads, (24, 10), window));
    (0..heads.1).for_each(|g| (0..10).for_each(|c| layer.v.set(tokens - 1, g, c, 3.0)));
    layer
}

#[test]
fn options_do_what_they_say() {
    type Change = fn(&mut Layer);
    let options: &[(&str, Change)] = &[
        ("default", |_| {}),
        ("average", |l| l.params.pool = LAVA_POOL_AVG),
        ("mean", |l| l.params.group_reduce = LAVA_GROUP_MEAN),
        ("average, mean", |l| {
            (l.params.pool, l.params.group_reduce) = (LAVA_POOL_AVG, LAVA_GROUP_MEAN);
        }),
        ("no pooling", |l| l.params.pool_kernel = 1),
        ("widest pooling", |l| l.params.pool_kernel = 127),
        ("all values", |l| l.params.value_span = LAVA_VALUES_ALL),
        ("scale", |l| l.params.scale = 0.05),
        ("negative scale", |l| l.params.scale = -0.3),
        ("soft cap", |l| l.params.softcap = 1.25),
        ("weight and smoothing", |l| (l.params.weight, l.params.smoothing) = (2.5, 0.5)),
        ("sees itself only", |l| l.shape.sliding_window = 1),
        ("sees a few", |l| l.shape.sliding_window = 9),
        ("sees across blocks", |l| l.shape.sliding_window = 100),
        ("sees more than all", |l| l.shape.sliding_window = u32::MAX),
        ("all of it", |l| {
            let p = &mut l.params;
            (p.pool, p.pool_kernel, p.group_reduce, p.value_span) =
                (LAVA_POOL_AVG, 5, LAVA_GROUP_MAX, LAVA_VALUES_ALL);
            (l.shape.sliding_window, p.scale, p.softcap, p.smoothing) = (40, 0.2, 3.0, 0.1);
        }),
        ("recommended", |l| l.params = unsafe { lava_score_params_default() }),
    ];
    for (what, change) in options {
        let mut layer = layer(200, (6, 2), 7);
        change(&mut layer);
        check(what, &layer);
    }
}

#[test]
fn sizes_around_every_block() {
    for tokens in [4, 5, 63, 64, 65, 66, 67, 68, 130, 257, 300, 515] {
        check(&format!("{tokens} tokens"), &layer(tokens, (4, 2), 3));
    }
    for window in [1, 2, 8, 31, 64, 69] {
        check(&format!("window {window}"), &layer(70, (3, 3), window));
    }
}

/// Learned sinks: a logit per query head in each softmax's denominator, whatever scale, cap and sliding window are.
#[test]
fn learned_sinks() {
    let sinks = [9.0, -70.0, 0.0, 1.5, 4.0, -2.0f32];
    for params in
        [score_params(), unsafe { lava_score_params_default() }, unsafe { lava_score_params_cake(200.0) }]
    {
        for (sliding_window, softcap, scale) in [(0, 0.0, 0.0), (60, 0.0, 0.3), (0, 1.5, 0.0)] {
            for backend in backends() {
                let mut layer = layer(150, (6, 2), 7);
                layer.shape.sliding_window = sliding_window;
                layer.params =
                    lava_score_params { softcap, scale, backend, sink_logits: sinks.as_ptr(), ..params };
                check(&format!("window {sliding_window}, cap {softcap}, backend {backend}"), &layer);
            }
        }
    }
    // One that draws nearly all: the small part that is left is still right.
    let mut layer = layer(80, (2, 2), 3);
    let sinks = [12.0f32, 0.0];
    layer.params.sink_logits = sinks.as_ptr();
    check("a strong sink", &layer);
    assert!(scores(&layer)[..77].iter().all(|&s| s < 0.1));
}

/// Every kind of kernels that the machine has, by its number, in every element type.
#[test]
fn backends_agree() {
    let by_name = |b: i32| text(unsafe { lava_backend_name(b) });
    for backend in backends() {
        let mut layer = layer(200, (6, 2), 7);
        layer.params.backend = backend;
        check(&by_name(backend), &layer);
        let want = scores(&layer);
        for dtype in [LAVA_F16, LAVA_BF16] {
            let lay = |grid: &Grid| Laid::new(Layout::token_major(grid.heads, grid.dim).of(dtype), grid);
            let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(lay);
            let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
            let got = score(&layer.shape, &layer.params, tensors, None, WHOLE).unwrap();
            check_scores(&format!("{}, type {dtype}", by_name(backend)), &got, &want);
        }
    }
    // The best one is one of the others, by its name.
    let best = by_name(LAVA_BACKEND_BEST);
    assert!(backends()[1..].iter().any(|&b| by_name(b) == best), "{best}");
    let names: std::collections::BTreeSet<_> = backends()[1..].iter().map(|&b| by_name(b)).collect();
    assert_eq!(names.len(), backends().len() - 1, "each has its own name");
    assert!(unsafe { lava_backend_name(LAVA_BACKEND_NEON + 1).is_null() && lava_backend_name(-1).is_null() });
    // What the machine lacks is refused, in scoring and in attention.
    for missing in (LAVA_BACKEND_BEST..=LAVA_BACKEND_NEON).filter(|b| !backends().contains(b)) {
        let mut layer = layer(20, (2, 2), 3);
        layer.params.backend = missing;
        let refused = layer.score().unwrap_err();
        assert_eq!((refused.status, refused.argument.as_str()), (LAVA_ERR_UNSUPPORTED, "backend"));
        let params = lava_attend_params { backend: missing, ..attend_params() };
        let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
        let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
        let refused = attend(&layer.shape, &params, 3, tensors, &[20, 20], WHOLE).unwrap_err();
        assert_eq!((refused.status, refused.argument.as_str()), (LAVA_ERR_UNSUPPORTED, "backend"));
    }
    assert!(backends().len() > 1 && backends().contains(&LAVA_BACKEND_SCALAR));
}

/// A log-sum-exp by which a query's attention does not sum to 1 is refused; rounding, in half precision too, is not.
#[test]
fn a_log_sum_exp_is_checked() {
    let layer = layer(150, (6, 2), 7);
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
    let right = log_sum_exps(&layer);
    let with = |lse: &Grid, lse_base| {
        let params = lava_score_params { lse_base, ..layer.params };
        score(&layer.shape, &params, tensors, Some(&lse.lay().tensor()), WHOLE)
    };
    let map = |change: &dyn Fn(usize, f32) -> f32| {
        let values = right.values.iter().enumerate().map(|(i, &x)| change(i, x)).collect();
        Grid { values, ..right.clone() }
    };
    with(&right, LAVA_LSE_NATURAL).unwrap();
    let base_two = map(&|_, x| (x as f64 / std::f64::consts::LN_2) as f32);
    with(&base_two, LAVA_LSE_BASE2).unwrap();
    // As another program gives it in f16.
    with(&map(&|_, x| half::f16::from_f32(x).to_f32()), LAVA_LSE_NATURAL).unwrap();
    with(&map(&|_, x| half::bf16::from_f32(x).to_f32()), LAVA_LSE_NATURAL).unwrap();
    with(&map(&|_, x| x + 0.03), LAVA_LSE_NATURAL).unwrap();
    with(&map(&|_, x| x - 0.03), LAVA_LSE_NATURAL).unwrap();

    let last = right.values.len() - 1;
    let wrong: [(&str, Grid, i32); 8] = [
        ("base two taken for natural", base_two.clone(), LAVA_LSE_NATURAL),
        ("natural taken for base two", right.clone(), LAVA_LSE_BASE2),
        ("zeros", map(&|_, _| 0.0), LAVA_LSE_NATURAL),
        ("zeros in base two", map(&|_, _| 0.0), LAVA_LSE_BASE2),
        ("a little too large", map(&|_, x| x + 0.1), LAVA_LSE_NATURAL),
        ("a little too small", map(&|_, x| x - 0.1), LAVA_LSE_NATURAL),
        ("the last one alone", map(&|i, x| if i == last { x + 1.0 } else { x }), LAVA_LSE_NATURAL),
        ("far too small", map(&|_, x| x - 1e4), LAVA_LSE_NATURAL),
    ];
    for (what, lse, base) in wrong {
        let refused = with(&lse, base).expect_err(what);
        let told = (refused.status, refused.argument.as_str(), refused.layer);
        assert_eq!(told, (LAVA_ERR_ARGUMENT, "lse", Some(0)), "{what}");
        // Statistics of attention refuse it too.
        let bytes =
            number(|n, e| unsafe { lava_score_workspace_size(&layer.shape, &layer.params, n, e) }).unwrap();
        let (space, stats) = (Memory::new(bytes), Memory::new(32));
        let params = lava_score_params { lse_base: base, ..layer.params };
        let laid = lse.lay();
        let refused = call(|e| unsafe {
            let (shape, lse, space) = (&layer.shape, &laid.tensor(), space.ptr());
            lava_attention_stats(
                shape,
                &params,
                tensors[0],
                tensors[1],
                lse,
                0,
                1,
                space,
                bytes,
                stats.ptr(),
                e,
            )
        });
        assert_eq!(refused.expect_err(what).status, LAVA_ERR_ARGUMENT, "{what}");
    }
    // One that is not finite is refused as such.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let lse = map(&|i, x| if i == 3 { bad } else { x });
        assert_eq!(with(&lse, LAVA_LSE_NATURAL).unwrap_err().status, LAVA_ERR_NONFINITE);
    }
}

/// Rows that no query of the window sees may hold anything: they are not looked at. Rows that one sees are.
#[test]
fn rows_out_of_sight_are_not_looked_at() {
    let (tokens, window, keys) = (300, 4, 40);
    // The first query's position is 296; it sees 257 to 296.
    let unseen = tokens - window - keys + 1;
    for params in [score_params(), unsafe { lava_score_params_default() }] {
        let mut layer = layer(tokens, (4, 2), window);
        (layer.shape.sliding_window, layer.params) = (keys as u32, params);
        let want = layer.score().unwrap();
        for (token, g) in (0..unseen).flat_map(|t| [(t, 0), (t, 1)]) {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][token % 3];
            (0..24).for_each(|c| layer.k.set(token, g, c, bad));
            (0..10).for_each(|c| layer.v.set(token, g, c, bad));
        }
        assert_eq!(bits(&layer.score().unwrap()), bits(&want));
        layer.k.set(unseen, 1, 0, f32::NAN);
        assert_eq!(layer.score().unwrap_err().head, Some(1));
    }
}

/// In a layer with a sliding window only what its queries see is read: the time does not grow with the rest.
#[test]
fn a_sliding_layer_costs_what_it_sees() {
    let of = |sliding_window: u32| {
        let mut layer = Layer::random(1, shape(24_000, (4, 2), (64, 64), 16));
        layer.shape.sliding_window = sliding_window;
        let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
        let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
        let run = |_| {
            let start = std::time::Instant::now();
            score(&layer.shape, &layer.params, tensors, None, WHOLE).unwrap();
            start.elapsed()
        };
        (0..5).map(run).min().unwrap()
    };
    let (all, few) = (of(0), of(128));
    // 24,000 rows against 144.
    assert!(few * 10 < all, "{few:?} for a window, {all:?} for all");
}
