//! Numbers where rounding would show: attention that is nearly total, variances that are nearly zero, logits that are huge. On
//! every kind of kernels that the machine has.

use ffi_tests::oracle::{attention, check_scores, scores};
use ffi_tests::*;

/// One KV head, one element per key and value: a layer with every number written out.
fn small(q: &[f32], k: &[f32], v: &[f32], params: lava_score_params) -> Layer {
    let grid = |values: &[f32]| Grid { rows: values.len(), heads: 1, dim: 1, values: values.to_vec() };
    let shape = shape(k.len(), (1, 1), (1, 1), q.len());
    Layer { shape, params, q: grid(q), k: grid(k), v: grid(v) }
}

/// CAOTE's score of a token that draws the attention a, where all others' values are zero, is a / (1 - a) * |a - 1| = a.
#[test]
fn what_evicting_does_to_the_output_at_any_attention() {
    for backend in backends() {
        for g in 1..=60 {
            let mut params = unsafe { lava_score_params_caote() };
            (params.scale, params.backend) = (1.0, backend);
            let layer = small(&[1.0], &[g as f32, 0.0, 0.0], &[1.0, 0.0, 0.0], params);
            let got = layer.score().unwrap();
            let a = 1.0 / (1.0 + 2.0 * (-g as f64).exp());
            assert!((got[0] as f64 - a).abs() <= 1e-5 * a, "g = {g}, backend {backend}: {} for {a}", got[0]);
            check_scores(&format!("g = {g}, backend {backend}"), &got, &scores(&layer));
        }
    }
}

/// A sink that leaves the others 1e-11 of the attention: evicting it gives the output to them, |mean of the others - v| = 6.
#[test]
fn what_evicting_a_sink_of_total_attention_does() {
    let rng = &mut Rng(8);
    for (window, reduce) in [(1, LAVA_GROUP_MAX), (5, LAVA_GROUP_MEAN)] {
        for preset in [unsafe { lava_score_params_caote() }, unsafe { lava_score_params_rest_kv(0.3) }] {
            for backend in backends() {
                let mut layer = Layer::random(7, shape(60, (4, 2), (8, 6), window));
                layer.params =
                    lava_score_params { scale: 1.0, backend, group_reduce: reduce, pool_kernel: 1, ..preset };
                // All queries have only a first element, where the sink has 29 and the others less than 1.
                for h in 0..4 {
                    for j in 0..window {
                        (0..8).for_each(|c| {
                            layer.q.set(j, h, c, if c == 0 { 1.0 } else { rng.element() / 64.0 })
                        });
                    }
                }
                for (t, g) in (0..60).flat_map(|t| [(t, 0), (t, 1)]) {
                    layer.k.set(t, g, 0, if t == 7 { 29.0 } else { rng.unit() });
                    (0..6)
                        .for_each(|c| layer.v.set(t, g, c, if t == 7 { 2.5 } else { rng.element() / 32.0 }));
                }
                let want = scores(&layer);
                assert!((5.0..7.0).contains(&want[7]), "{}", want[7]);
                let rest = 1.0 - attention(&layer, 0, 0, &(0..60).collect::<Vec<_>>()).rows[7];
                assert!(rest < 1e-10, "{rest}");
                let got = layer.score().unwrap();
                check_scores(&format!("window {window}, backend {backend}"), &got, &want);
                // The layer's largest.
                assert!(got.iter().all(|&s| s <= got[7].max(got[7 + 60 - window])));
            }
        }
    }
    // More than an f32 holds, and still a score.
    let mut params = unsafe { lava_score_params_caote() };
    params.scale = 1.0;
    for g in [90.0, 200.0, 1e4, 1e9] {
        let got = small(&[1.0], &[g, 0.0, 0.0], &[1.0, 0.0, 0.0], params).score().unwrap();
        assert!(got.iter().all(|s| s.is_finite() && *s >= 0.0), "g = {g}: {got:?}");
    }
}

/// `lava_attention_stats`: entropy and variance per KV head.
fn stats(layer: &Layer) -> Vec<f64> {
    let [q, k] = [&layer.q, &layer.k].map(Grid::lay);
    let (shape, params) = (&layer.shape, &layer.params);
    let bytes = number(|size, e| unsafe { lava_score_workspace_size(shape, params, size, e) }).unwrap();
    let (workspace, stats) = (Memory::new(bytes), Memory::new(16 * shape.n_kv_heads as usize));
    let (q, k) = (&q.tensor(), &k.tensor());
    call(|e| unsafe {
        let (space, to) = (workspace.ptr(), stats.ptr());
        lava_attention_stats(shape, params, q, k, nothing(), 0, 1, space, bytes, to, e)
    })
    .unwrap();
    stats.to_vec()
}

/// The attention that the window pays each prefix token: `[token][query]`.
fn columns(layer: &Layer) -> Vec<Vec<f64>> {
    let rows: Vec<u32> = (0..layer.shape.n_tokens).collect();
    let seen: Vec<_> = (0..layer.shape.window as usize).map(|j| attention(layer, j, 0, &rows).rows).collect();
    (0..prefix_len(&layer.shape)).map(|i| seen.iter().map(|a| a[i]).collect()).collect()
}

fn variance(a: &[f64]) -> f64 {
    let mean = a.iter().sum::<f64>() / a.len() as f64;
    a.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (a.len() - 1) as f64
}

/// A sink that draws `share` of the attention of queries that differ by 1%.
fn sink(share: f64, window: usize, backend: i32) -> Layer {
    let n = 40;
    // Eighths, and queries in 1024ths: their products are exact.
    let g = ((share / (1.0 - share) * (n - 1) as f64).ln() * 8.0).round() as f32 / 8.0;
    let step = 10.0 / (window - 1) as f32;
    let q: Vec<f32> = (0..window).map(|j| 1.0 + ((j * 7 % window) as f32 * step).round() / 1024.0).collect();
    let k: Vec<f32> = (0..n + window).map(|i| if i == 3 { g } else { 0.0 }).collect();
    let params = lava_score_params { scale: 1.0, backend, ..unsafe { lava_score_params_cake(200.0) } };
    small(&q, &k, &vec![1.0; n + window], lava_score_params { pool_kernel: 1, ..params })
}

#[test]
fn variances_of_attention_that_hardly_varies() {
    for share in [0.01, 0.3, 0.5, 0.8, 0.945, 0.99, 0.999, 0.99999] {
        for (window, backend) in
            [2, 4, 8, 32].into_iter().flat_map(|w| backends().into_iter().map(move |b| (w, b)))
        {
            let layer = sink(share, window, backend);
            let columns = columns(&layer);
            let (want, got) = (columns.iter().map(|a| variance(a)).sum::<f64>(), stats(&layer)[1]);
            let what = format!("sink {share}, window {window}, backend {backend}");
            // Of two queries there is one difference, whose rounding in f32 nothing averages.
            let bound = if window == 2 { 2e-5 } else { 1e-5 };
            assert!((got - want).abs() <= bound * want, "{what}: {got:e} for {want:e}");
            // CAKE's score of the sink is its mean and 200 times its variance.
            let want = columns[3].iter().sum::<f64>() / window as f64 + 200.0 * variance(&columns[3]);
            let got = layer.score().unwrap()[3] as f64;
            assert!((got - want).abs() <= 1e-6 * want, "{what}: {got} for {want}");
        }
    }
}

/// Queries that are all the same have variance zero.
#[test]
fn equal_queries_have_no_variance() {
    for backend in backends() {
        let mut layer = sink(0.945, 8, backend);
        layer.q.values.fill(1.0);
        // The last query sees seven keys more than the first: no prefix token's attention is the same twice.
        let want: f64 = columns(&layer).iter().map(|a| variance(a)).sum();
        let got = stats(&layer)[1];
        assert!((got - want).abs() <= 1e-5 * want, "{got:e} for {want:e}");
    }
}

/// Keys that are all the same: each query pays every key that it sees an equal share, at any size of logits.
#[test]
fn attention_sums_to_one_at_any_logit() {
    for (backend, dim) in backends().into_iter().flat_map(|b| [1usize, 8, 64].map(|dim| (b, dim))) {
        for (tokens, window) in [(3, 1), (50, 1), (130, 4), (67, 8)] {
            let powers = [1e4f32, 1e5, 1e6, 1e7, 1e8, 1e9, -1e6, -1e9];
            let logits = powers.into_iter().chain([13, 20, 26, 30].map(|p| 2f32.powi(p)));
            for (logit, scale) in logits.flat_map(|logit| [(logit, 1.0f32), (logit, 0.125), (logit, 0.0)]) {
                let mut layer = Layer::random(1, shape(tokens, (2, 1), (dim, 1), window));
                layer.params = unsafe { lava_score_params_snapkv() };
                (layer.params.pool_kernel, layer.params.backend, layer.params.scale) = (1, backend, scale);
                layer.params.group_reduce = LAVA_GROUP_MEAN;
                // Eighths of 1e4 are exact, and so is every sum of products.
                layer.q.values.fill(logit / dim as f32);
                layer.k.values.fill(1.0);
                let prefix = tokens - window;
                let each = (0..window).map(|j| 1.0 / (prefix + j + 1) as f64).sum::<f64>() / window as f64;
                for (i, got) in layer.score().unwrap().into_iter().enumerate() {
                    let what = format!("{tokens} tokens, {dim} elements, logit {logit}, scale {scale}");
                    assert!(
                        (got as f64 - each).abs() <= 1e-5 * each,
                        "{what}, backend {backend}, {i}: {got} for {each}"
                    );
                }
            }
        }
    }
}

/// The same in 16 bits, which has other kernels: logits that f16 and bf16 can make.
#[test]
fn attention_sums_to_one_in_half_precision() {
    for (backend, dtype) in backends().into_iter().flat_map(|b| [(b, LAVA_F16), (b, LAVA_BF16)]) {
        for power in [12, 16, 20, 24] {
            let mut layer = Layer::random(1, shape(130, (2, 1), (64, 1), 4));
            layer.params = unsafe { lava_score_params_snapkv() };
            (layer.params.pool_kernel, layer.params.backend, layer.params.scale) = (1, backend, 1.0);
            layer.q.values.fill(2f32.powi(power / 2));
            layer.k.values.fill(2f32.powi(power / 2 - 6));
            let lay = |grid: &Grid| Laid::new(Layout::token_major(grid.heads, grid.dim).of(dtype), grid);
            let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(lay);
            let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
            let each = (0..4).map(|j| 1.0 / (127 + j) as f64).sum::<f64>() / 4.0;
            for got in score(&layer.shape, &layer.params, tensors, None, WHOLE).unwrap() {
                assert!(
                    (got as f64 - each).abs() <= 1e-5 * each,
                    "2^{power}, type {dtype}: {got} for {each}"
                );
            }
        }
    }
}
