//! Attention over the ragged cache against a plain softmax in f64.

use ffi_tests::*;

/// One setting: new queries, heads, dims, rows per KV head, what each query sees, learned sinks, and the options.
struct Case {
    new: usize,
    heads: (usize, usize),
    dims: (usize, usize),
    rows: Vec<u32>,
    sliding_window: u32,
    sinks: Vec<f32>,
    params: lava_attend_params,
    dtype: lava_dtype,
}

fn case(new: usize, heads: (usize, usize), dims: (usize, usize), rows: &[u32]) -> Case {
    let (rows, params) = (rows.to_vec(), attend_params());
    Case { new, heads, dims, rows, sliding_window: 0, sinks: vec![], params, dtype: LAVA_F32 }
}

fn with(mut case: Case, change: impl FnOnce(&mut lava_attend_params)) -> Case {
    change(&mut case.params);
    case
}

/// `position(h, r)` is where row r of head h is in the text.
fn check(what: &str, case: &Case, position: impl Fn(usize, usize) -> u64) {
    let rng = &mut Rng(what.len() as u64);
    let (most, mut params) = (*case.rows.iter().max().unwrap() as usize, case.params);
    let (dk, dv) = case.dims;
    // Tokens and window are not used: not even looked at.
    let shape = lava_shape { sliding_window: case.sliding_window, ..shape(0, case.heads, case.dims, 0) };
    if !case.sinks.is_empty() {
        params.sink_logits = case.sinks.as_ptr();
    }
    let q = Grid::random(rng, case.new, case.heads.0, dk);
    let k = Grid::random(rng, most.max(1), case.heads.1, dk);
    let v = Grid::random(rng, most.max(1), case.heads.1, dv);

    // Ragged: each head has its own number of rows, and some room after them.
    let starts: Vec<u32> =
        case.rows.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n + 2))).collect();
    let lay = |grid: &Grid| {
        let layout = Layout::ragged(&starts, grid.dim).of(case.dtype);
        let laid = Laid::empty(layout, starts[starts.len() - 1] as usize + most + 2, 1, grid.dim);
        for (h, &n) in case.rows.iter().enumerate() {
            for r in 0..n as usize {
                grid.row(r, h)
                    .iter()
                    .enumerate()
                    .for_each(|(c, &x)| laid.layout.set(&laid.memory, r, h, c, x));
            }
        }
        laid
    };
    let (k_laid, v_laid) = (lay(&k), lay(&v));
    let q_laid = Laid::new(Layout::token_major(case.heads.0, dk).of(case.dtype), &q);
    let tensors = [&q_laid.tensor(), &k_laid.tensor(), &v_laid.tensor()];
    let (out, lse) = attend(&shape, &params, case.new, tensors, &case.rows, WHOLE).expect(what);

    let scale = if params.scale == 0.0 { 1.0 / (dk as f64).sqrt() } else { params.scale as f64 };
    for (t, h) in (0..case.new).flat_map(|t| (0..case.heads.0).map(move |h| (t, h))) {
        let g = h / (case.heads.0 / case.heads.1);
        let n_rows = case.rows[g] as usize;
        let end = if params.causal == 1 { n_rows + t + 1 - case.new } else { n_rows };
        // Without `causal` the queries come one after the other, after all rows.
        let own = || if params.causal == 1 { position(g, end - 1) } else { position(g, n_rows) + t as u64 };
        let sees =
            |r: &usize| case.sliding_window == 0 || position(g, *r) + case.sliding_window as u64 > own();
        let seen: Vec<usize> = (0..end).filter(sees).collect();
        let mut largest = params.softcap as f64;
        let logits: Vec<f64> = seen
            .iter()
            .map(|&r| {
                let terms = q.row(t, h).iter().zip(k.row(r, g)).map(|(a, b)| *a as f64 * *b as f64 * scale);
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                largest = size.max(largest);
                let cap = params.softcap as f64;
                if cap > 0.0 { cap * (sum / cap).tanh() } else { sum }
            })
            .collect();
        // The sink is one logit more, neither scaled nor capped, without a value.
        let sink = case.sinks.get(h).map_or(f64::NEG_INFINITY, |&s| s as f64);
        let top = logits.iter().fold(sink, |m, &x| m.max(x));
        let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum::<f64>() + (sink - top).exp();

        // A dot product of d terms in f32, in any order, is off by at most d + 1 roundings of the sum of the terms' sizes, a
        // few more for scale, cap and exp; twice that moves a weight's share. Sums over the rows add a rounding each.
        let eps = (0.5f64).powi(24);
        let logit_error = (dk + 8) as f64 * eps * (largest + 1.0);
        let error = 2.0 * logit_error + 2.0 * (seen.len() + 16) as f64 * eps;
        for c in 0..dv {
            let values = seen.iter().zip(&logits).map(|(&r, x)| (x - top).exp() * v.row(r, g)[c] as f64);
            let want = if seen.is_empty() { 0.0 } else { values.sum::<f64>() / sum };
            let got = out[(t * case.heads.0 + h) * dv + c] as f64;
            // Values are below 2.
            assert!(
                (got - want).abs() <= 2.0 * error,
                "{what}: query {t}, head {h}, {c}: {got}, want {want}"
            );
        }
        let unit = if params.lse_base == LAVA_LSE_BASE2 { std::f64::consts::LN_2 } else { 1.0 };
        let (got, want) = (lse[t * case.heads.0 + h] as f64, (top + sum.ln()) / unit);
        if seen.is_empty() && case.sinks.is_empty() {
            assert_eq!(got, f64::NEG_INFINITY, "{what}");
        } else {
            assert!((got - want).abs() <= error / unit + eps * want.abs(), "{what}: lse {got}, want {want}");
        }
    }
}

#[test]
fn agrees_with_plain_softmax() {
    let none = |_, _| 0;
    check("one query", &case(1, (1, 1), (8, 8), &[5]), none);
    check("one row", &case(1, (2, 1), (8, 4), &[1]), none);
    check("grouped", &case(1, (8, 2), (16, 16), &[33, 70]), none);
    check("different dims", &case(1, (4, 2), (24, 7), &[40, 9]), none);
    check("wide keys", &case(2, (2, 1), (576, 512), &[20]), none);
    check("causal chunk", &case(5, (4, 2), (16, 12), &[5, 130]), none);
    // More queries and rows than any block holds.
    check("long chunk", &case(21, (6, 3), (8, 8), &[21, 300, 150]), none);
    check("not causal", &with(case(3, (4, 2), (8, 8), &[1, 60]), |p| p.causal = 0), none);
    check("head without rows", &with(case(2, (4, 2), (8, 8), &[0, 6]), |p| p.causal = 0), none);
    check("soft cap", &with(case(3, (4, 2), (16, 8), &[50, 20]), |p| p.softcap = 1.5), none);
    check("scale", &with(case(3, (4, 2), (16, 8), &[50, 20]), |p| p.scale = 0.03), none);
    check("negative scale", &with(case(1, (4, 2), (16, 8), &[50, 20]), |p| p.scale = -0.4), none);
}

#[test]
fn element_types_agree_with_plain_softmax() {
    for dtype in [LAVA_F32, LAVA_F16, LAVA_BF16] {
        let case = Case { dtype, ..case(4, (6, 2), (20, 12), &[90, 17]) };
        check(["f32", "f16", "bf16"][dtype as usize], &case, |_, _| 0);
    }
}

#[test]
fn a_sliding_window_goes_by_true_positions() {
    // Of a prompt of 100, head 0 keeps five rows and head 1 three; then new tokens from 100 on.
    let kept_indices = [2u32, 40, 90, 98, 99, 0, 97, 99];
    let cu_kept = [0u32, 5, 8];
    let position = |h: usize, r: usize| {
        let own = &kept_indices[cu_kept[h] as usize..cu_kept[h + 1] as usize];
        own.get(r).map_or(100 + (r - own.len().min(r)) as u64, |&p| p as u64)
    };
    for (sliding_window, causal) in [1, 2, 4, 12, 61, 1000].into_iter().flat_map(|w| [(w, 1), (w, 0)]) {
        // More than the queries that are taken over the cache together.
        for new in [1usize, 3, 7, 20] {
            // Without `causal` there may be fewer rows than queries: no new ones, or none at all.
            let causal_rows = [5 + new as u32, 3 + 20];
            for rows in [causal_rows, [5, 3], [0, 2]].into_iter().take(if causal == 1 { 1 } else { 3 }) {
                let case = with(case(new, (4, 2), (8, 8), &rows), |p| {
                    (p.n_base, p.causal) = (100, causal);
                    (p.kept_indices, p.cu_kept) = (kept_indices.as_ptr(), cu_kept.as_ptr());
                });
                let case = Case { sliding_window, ..case };
                check(
                    &format!("window {sliding_window}, {new} new, causal {causal}, {rows:?}"),
                    &case,
                    position,
                );
            }
        }
    }
}

/// Where nothing was kept there are no positions to give: all rows are numbered from the base on.
#[test]
fn a_sliding_window_over_a_cache_of_new_rows_only() {
    let cu_kept = [0u32; 3];
    for (sliding_window, causal) in [(1, 1), (4, 1), (4, 0), (9, 0)] {
        let case = with(case(3, (4, 2), (8, 8), &[3, 11]), |p| {
            (p.n_base, p.causal) = (6, causal);
            p.cu_kept = cu_kept.as_ptr();
        });
        let case = Case { sliding_window, ..case };
        check(&format!("window {sliding_window}, causal {causal}"), &case, |_, r| 6 + r as u64);
    }
}

/// Merged by their log-sum-exps, two halves of a cache give what the whole gives.
#[test]
fn log_sum_exp_merges_halves() {
    let (rows, dim) = (48, 8);
    let layer = Layer::random(9, shape(rows, (2, 1), (dim, dim), 1));
    let shape = shape(1, (2, 1), (dim, dim), 1);
    let mut params = attend_params();
    params.causal = 0;
    let (k, v) = (layer.k.lay(), layer.v.lay());
    let of = |first: usize, n: u32| {
        let part = |t: &Laid| t.layout.clone().from(first * dim).tensor(&t.memory);
        attend(&shape, &params, 1, [&layer.q.lay().tensor(), &part(&k), &part(&v)], &[n], WHOLE).unwrap()
    };
    let (whole, (a, a_lse), (b, b_lse)) = (of(0, 48), of(0, 20), of(20, 28));
    for h in 0..2 {
        let weight = 1.0 / (1.0 + (b_lse[h] - a_lse[h]).exp());
        for c in h * dim..(h + 1) * dim {
            let merged = a[c] * weight + b[c] * (1.0 - weight);
            assert!((merged - whole.0[c]).abs() <= 1e-5, "{merged}, want {}", whole.0[c]);
        }
    }
}

/// Learned sinks: one logit per query head in the denominator, whatever the scale and the cap, also where no row is seen.
#[test]
fn learned_sinks() {
    let none = |_, _| 0;
    for (i, backend) in backends().into_iter().enumerate() {
        for dtype in [LAVA_F32, LAVA_BF16] {
            let of = |new, heads, dims, rows: &[u32], sinks: &[f32]| Case {
                sinks: sinks.to_vec(),
                dtype,
                ..with(case(new, heads, dims, rows), |p| p.backend = backend)
            };
            let what = |name| format!("{name}, backend {i}, type {dtype}");
            // One that draws nearly all attention, one that draws none, and some between.
            let sinks = [30.0, -80.0, 0.0, 1.25, -1.0, 4.0];
            check(&what("grouped"), &of(3, (6, 2), (16, 8), &[50, 20], &sinks), none);
            let capped =
                with(of(3, (6, 3), (24, 7), &[5, 70, 33], &sinks), |p| (p.softcap, p.scale) = (1.5, 0.7));
            check(&what("scaled and capped"), &capped, none);
            let base = with(of(21, (2, 1), (8, 8), &[300], &sinks[2..4]), |p| p.lse_base = LAVA_LSE_BASE2);
            check(&what("in base two"), &base, none);
            let nothing_seen = with(of(2, (4, 2), (8, 8), &[0, 6], &sinks[..4]), |p| p.causal = 0);
            check(&what("head without rows"), &nothing_seen, none);
        }
    }
}

#[test]
fn log_sum_exp_in_base_two() {
    let case = with(case(5, (4, 2), (16, 12), &[5, 130]), |p| p.lse_base = LAVA_LSE_BASE2);
    check("base two", &case, |_, _| 0);
}

/// Every kind of kernels that the machine has, by its number.
#[test]
fn every_backend_agrees_with_plain_softmax() {
    for backend in backends() {
        for dtype in [LAVA_F32, LAVA_F16, LAVA_BF16] {
            let case = with(case(5, (6, 2), (40, 24), &[90, 17]), |p| p.backend = backend);
            check(&format!("backend {backend}, type {dtype}"), &Case { dtype, ..case }, |_, _| 0);
        }
    }
}
