//! Every option of lava_score against the method in plain f64 loops.

use ffi_tests::*;

/// Logits of window query `j` of head `h`: one per token, `None` where it sees nothing.
fn logits(layer: &Layer, j: usize, h: usize) -> Vec<Option<f64>> {
    let (shape, params) = (&layer.shape, &layer.params);
    let g = h / (shape.n_q_heads / shape.n_kv_heads) as usize;
    let scale =
        if params.scale == 0.0 { 1.0 / (shape.head_dim_k as f64).sqrt() } else { params.scale as f64 };
    let own = prefix_len(shape) + j;
    let logit = |i: usize| {
        let reach = if params.sliding_window == 0 { usize::MAX } else { params.sliding_window as usize };
        let dot: f64 =
            layer.q.row(j, h).iter().zip(layer.k.row(i, g)).map(|(a, b)| *a as f64 * *b as f64).sum();
        let cap = params.softcap as f64;
        let capped = if cap > 0.0 { cap * (scale * dot / cap).tanh() } else { scale * dot };
        (i <= own && own - i < reach).then_some(capped)
    };
    (0..shape.n_tokens as usize).map(logit).collect()
}

fn log_sum_exp(logits: &[Option<f64>]) -> f64 {
    logits.iter().flatten().map(|x| x.exp()).sum::<f64>().ln()
}

/// Stages 1 to 5, one after the other.
fn plain(layer: &Layer) -> Vec<f64> {
    let (shape, params) = (&layer.shape, &layer.params);
    let (prefix, window) = (prefix_len(shape), shape.window as usize);
    let group = (shape.n_q_heads / shape.n_kv_heads) as usize;
    let radius = params.pool_kernel as usize / 2;
    let pooled = |h: usize| -> Vec<f64> {
        let mut mean = vec![0.0; prefix];
        for j in 0..window {
            let logits = logits(layer, j, h);
            let lse = log_sum_exp(&logits);
            for (m, x) in mean.iter_mut().zip(&logits) {
                *m += x.map_or(0.0, |x| (x - lse).exp()) / window as f64;
            }
        }
        let near = |i: usize| &mean[i.saturating_sub(radius)..(i + radius + 1).min(prefix)];
        let pool = |i| match params.pool {
            LAVA_POOL_MAX => near(i).iter().fold(0.0, |m: f64, &x| m.max(x)),
            _ => near(i).iter().sum::<f64>() / params.pool_kernel as f64,
        };
        (0..prefix).map(pool).collect()
    };
    let mut scores = Vec::new();
    for g in 0..shape.n_kv_heads as usize {
        let span = if params.value_span == LAVA_VALUES_ALL { shape.n_tokens as usize } else { prefix };
        let norm = |i| layer.v.row(i, g).iter().map(|x| x.abs() as f64).sum::<f64>();
        let largest = (0..span).map(norm).fold(0.0, f64::max);
        let heads: Vec<_> = (g * group..(g + 1) * group).map(pooled).collect();
        scores.extend((0..prefix).map(|i| {
            let of_heads = heads.iter().map(|head| head[i]);
            largest
                * match params.group_reduce {
                    LAVA_GROUP_MAX => of_heads.fold(0.0, f64::max),
                    _ => of_heads.sum::<f64>() / group as f64,
                }
        }));
    }
    scores
}

/// Checks the scores with and without the log-sum-exps handed in.
fn check(what: &str, layer: &Layer) {
    let shape = &layer.shape;
    let want = plain(layer);
    let (window, heads) = (shape.window as usize, shape.n_q_heads as usize);
    let lse = (0..window).flat_map(|j| (0..heads).map(move |h| (j, h)));
    let values = lse.map(|(j, h)| log_sum_exp(&logits(layer, j, h)) as f32).collect();
    let lse = Grid { rows: window, heads, dim: 1, values }.lay();
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    for lse in [None, Some(&lse.tensor())] {
        let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
        let got = score(shape, &layer.params, tensors, lse, WHOLE).expect(what);
        // The golden data's bound.
        let bound = 1e-5 * want.iter().fold(0.0, |m: f64, &x| m.max(x));
        assert_eq!(got.len(), want.len());
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            assert!((got as f64 - want).abs() <= bound, "{what}, entry {i}: {got}, want {want}");
        }
    }
}

/// A layer whose largest value stands in the window, so that the value span shows.
fn layer(tokens: usize, heads: (usize, usize), window: usize) -> Layer {
    let mut layer = Layer::random(tokens as u64, shape(tokens, heads, (24, 10), window));
    (0..heads.1).for_each(|g| (0..10).for_each(|c| layer.v.set(tokens - 1, g, c, 3.0)));
    layer
}

#[test]
fn options_do_what_they_say() {
    type Change = fn(&mut lava_score_params);
    let options: &[(&str, Change)] = &[
        ("default", |_| {}),
        ("average", |p| p.pool = LAVA_POOL_AVG),
        ("mean", |p| p.group_reduce = LAVA_GROUP_MEAN),
        ("average, mean", |p| (p.pool, p.group_reduce) = (LAVA_POOL_AVG, LAVA_GROUP_MEAN)),
        ("no pooling", |p| p.pool_kernel = 1),
        ("widest pooling", |p| p.pool_kernel = 127),
        ("all values", |p| p.value_span = LAVA_VALUES_ALL),
        ("scale", |p| p.scale = 0.05),
        ("negative scale", |p| p.scale = -0.3),
        ("soft cap", |p| p.softcap = 1.25),
        ("sees itself only", |p| p.sliding_window = 1),
        ("sees a few", |p| p.sliding_window = 9),
        ("sees across blocks", |p| p.sliding_window = 100),
        ("sees more than all", |p| p.sliding_window = u32::MAX),
        ("all of it", |p| {
            (p.pool, p.pool_kernel, p.group_reduce, p.value_span) =
                (LAVA_POOL_AVG, 5, LAVA_GROUP_MAX, LAVA_VALUES_ALL);
            (p.sliding_window, p.scale, p.softcap) = (40, 0.2, 3.0);
        }),
    ];
    for (what, change) in options {
        let mut layer = layer(200, (6, 2), 7);
        change(&mut layer.params);
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
