//! Every stage against the f64 reference, through one checker per stage, for every backend and with sizes that straddle
//! every block edge.

use half::{bf16, f16};
use lava::attend::{AttendInputs, AttendParams, Positions};
use lava::reference::{self, Heads};
use lava::score::ScoreInputs;
use lava::workspace::Carver;
use lava::*;

/// A reproducible stream of numbers (splitmix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn reals(&mut self, n: usize, size: f64) -> Vec<f64> {
        (0..n).map(|_| self.real() * size).collect()
    }
}

/// A tensor's elements in memory, in its element type, and the same numbers for the reference.
struct Data {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    dtype: Dtype,
    values: Heads,
    dims: (usize, usize, usize),
}

impl Data {
    fn new(
        random: &mut Random,
        dtype: Dtype,
        (tokens, heads, dim): (usize, usize, usize),
        size: f64,
    ) -> Self {
        let raw = random.reals(tokens * heads * dim, size);
        let f32: Vec<f32> = raw.iter().map(|&x| x as f32).collect();
        let f16: Vec<f16> = raw.iter().map(|&x| f16::from_f64(x)).collect();
        let bf16: Vec<bf16> = raw.iter().map(|&x| bf16::from_f64(x)).collect();
        // What the library sees: rounded to the element type.
        let at = |i: usize| match dtype {
            Dtype::F32 => f32[i] as f64,
            Dtype::F16 => f16[i].to_f64(),
            Dtype::BF16 => bf16[i].to_f64(),
        };
        let values = (0..tokens)
            .map(|t| (0..heads).map(|h| (0..dim).map(|c| at((t * heads + h) * dim + c)).collect()).collect())
            .collect();
        Self { f32, f16, bf16, dtype, values, dims: (tokens, heads, dim) }
    }

    fn view(&self) -> Tensor<'_> {
        let (tokens, heads, dim) = self.dims;
        let (strides, rows) = (Strides::token_major(heads, dim), Rows::Same(tokens));
        match self.dtype {
            Dtype::F32 => Tensor::from_slice(&self.f32, strides, rows, heads, dim),
            Dtype::F16 => Tensor::from_slice(&self.f16, strides, rows, heads, dim),
            Dtype::BF16 => Tensor::from_slice(&self.bf16, strides, rows, heads, dim),
        }
        .expect("a dense tensor is valid")
    }
}

fn aligned(bytes: usize) -> Vec<u128> {
    vec![0; bytes.div_ceil(16)]
}

fn carver(memory: &mut [u128]) -> Carver<'_> {
    // SAFETY: u128s are bytes too, and the slice covers exactly their memory.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, size_of_val(memory)) };
    Carver::over(bytes).expect("u128s are aligned")
}

fn run_score(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
) -> Result<Vec<f32>> {
    let mut scores = vec![f32::NAN; shape.n_kv_heads * shape.prefix_len()];
    let mut workspace = aligned(score::workspace_size(shape, params)?);
    score::score(backend, shape, params, inputs, 0, 1, &mut carver(&mut workspace), &mut scores)?;
    Ok(scores)
}

/// Scores against the reference.
///
/// Bound: a logit is a sum of `d` products in f32, off by at most about `d · 2⁻²⁴ · Σ|q·k|`, here below 1e-5 relative to 1;
/// `exp` turns that into a relative error of the attention; all else adds a few ulp. 2e-5 of the largest score holds all.
fn check_score(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    dtypes: [Dtype; 3],
    seed: u64,
    with_lse: bool,
) {
    let mut random = Random(seed);
    let Shape { n_tokens: n, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window, .. } = *shape;
    let q = Data::new(&mut random, dtypes[0], (window, n_q_heads, head_dim_k), 2.0);
    let k = Data::new(&mut random, dtypes[1], (n, n_kv_heads, head_dim_k), 2.0);
    let v = Data::new(&mut random, dtypes[2], (n, n_kv_heads, head_dim_v), 2.0);
    let lse: Vec<f32> =
        reference::log_sum_exp(&q.values, &k.values, params).iter().flatten().map(|&x| x as f32).collect();
    let lse = Tensor::from_slice(&lse, Strides::token_major(n_q_heads, 1), Rows::Same(window), n_q_heads, 1);
    let lse = with_lse.then(|| lse.expect("a dense tensor is valid"));
    let inputs = ScoreInputs { q: q.view(), k: k.view(), v: v.view(), lse };
    let got = run_score(backend, shape, params, &inputs).expect("valid input");
    let want: Vec<f64> = reference::scores(&q.values, &k.values, &v.values, params).concat();
    let largest = want.iter().copied().fold(0.0, f64::max);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(
            (*got as f64 - want).abs() <= 2e-5 * largest,
            "{} entry {i}: {got} for {want}, {shape:?} {params:?} {dtypes:?}",
            backend.name()
        );
    }
}

fn shape(n_tokens: usize, heads: (usize, usize), dims: (usize, usize), window: usize) -> Shape {
    Shape {
        layer: 3,
        n_tokens,
        n_q_heads: heads.0,
        n_kv_heads: heads.1,
        head_dim_k: dims.0,
        head_dim_v: dims.1,
        window,
    }
}

#[test]
fn scores_at_every_block_edge() {
    // 32 keys are a block, 256 a block of the pooling.
    for prefix in [1, 2, 6, 7, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300] {
        for backend in Backend::all() {
            let shape = shape(prefix + 5, (4, 2), (16, 16), 5);
            for dtype in [Dtype::F32, Dtype::BF16] {
                check_score(backend, &shape, &ScoreParams::default(), [dtype; 3], prefix as u64, false);
            }
        }
    }
}

#[test]
fn scores_of_every_window() {
    // Query rows fill registers of 4, 8 or 16, and are filled up to 16.
    for window in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 64, 100] {
        for (i, scale) in [None, Some(-0.3), Some(0.0)].into_iter().enumerate() {
            for dtype in [Dtype::F32, Dtype::BF16] {
                for backend in Backend::all() {
                    let params =
                        ScoreParams { scale, sliding_window: (i == 2).then_some(20), ..Default::default() };
                    let shape = shape(75 + window, (4, 2), (32, 16), window);
                    check_score(backend, &shape, &params, [dtype; 3], window as u64, i == 1);
                }
            }
        }
    }
}

#[test]
fn scores_of_every_head_dim() {
    for dim in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 96, 127, 128, 192, 256, 575, 576] {
        for backend in Backend::all() {
            let params = ScoreParams { scale: Some(0.05), ..Default::default() };
            for dtype in [Dtype::F32, Dtype::BF16] {
                let shape = shape(70, (2, 1), (dim, 577 - dim), 6);
                check_score(backend, &shape, &params, [dtype; 3], dim as u64, false);
            }
        }
    }
}

#[test]
fn scores_with_every_option_and_dtype() {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16];
    let mut seed = 0;
    for pool in [Pool::Max, Pool::Avg] {
        for group_reduce in [GroupReduce::Max, GroupReduce::Mean] {
            for (pool_kernel, heads) in [(1, (6, 2)), (7, (6, 2)), (3, (2, 2)), (127, (4, 1))] {
                for (softcap, sliding_window, value_span) in [
                    (None, None, ValueSpan::Prefix),
                    (Some(1.5), Some(40), ValueSpan::All),
                    (None, Some(9), ValueSpan::Prefix),
                ] {
                    let params = ScoreParams {
                        scale: None,
                        softcap,
                        sliding_window,
                        pool,
                        pool_kernel,
                        group_reduce,
                        value_span,
                        ..Default::default()
                    };
                    seed += 1;
                    let dtypes = [dtypes[seed % 3], dtypes[seed / 3 % 3], dtypes[seed / 9 % 3]];
                    for backend in Backend::all() {
                        let shape = shape(150, heads, (24, 20), 8);
                        check_score(backend, &shape, &params, dtypes, seed as u64, seed % 2 == 0);
                    }
                }
            }
        }
    }
}

/// Every scorer of the frame, crossed with both poolings and both reductions, with the log-sum-exp given and not.
#[test]
fn scores_of_every_method() {
    let scorers = [
        ScoreParams::snapkv(),
        ScoreParams::cake(200.0),
        ScoreParams::cake(0.5),
        ScoreParams::tova(),
        ScoreParams::streaming(),
        ScoreParams::vatp(),
        ScoreParams::caote(),
        ScoreParams::rest_kv(0.3),
        ScoreParams::rest_kv(1.0),
        ScoreParams::kv_compress(),
        ScoreParams::sage_kv(),
        ScoreParams { weight: 3.5, smoothing: 1.5, ..ScoreParams::vatp() },
        ScoreParams { smoothing: 1.0, ..ScoreParams::streaming() },
    ];
    let mut seed = 1000u64;
    for scorer in scorers {
        for (pool, group_reduce) in [
            (scorer.pool, scorer.group_reduce),
            (Pool::Max, GroupReduce::Mean),
            (Pool::Avg, GroupReduce::Mean),
            (Pool::Avg, GroupReduce::Max),
        ] {
            // One window query has no variance; 64 dims and 8 KV heads are where exponentials are stored.
            for (prefix, heads, window, dim) in
                [(1, (4, 2), 1, 16), (33, (3, 3), 1, 24), (150, (6, 2), 8, 24), (129, (16, 8), 5, 64)]
            {
                for pool_kernel in [scorer.pool_kernel, 1, 9] {
                    seed += 1;
                    let sliding_window = seed.is_multiple_of(3).then_some(40);
                    let params = ScoreParams { pool, group_reduce, pool_kernel, sliding_window, ..scorer };
                    let shape = shape(prefix + window, heads, (dim, dim + 4), window);
                    let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][seed as usize % 3];
                    for backend in Backend::all() {
                        check_score(backend, &shape, &params, [dtype; 3], seed, seed.is_multiple_of(2));
                    }
                }
            }
        }
    }
}

/// Bound: the attention is right within 2e-5 (see `check_score`), and so is the variance, a sum of squares; an entropy's terms are off
/// by that times their logarithm, which f32 keeps below 104.
#[test]
fn attention_stats_agree_with_the_reference() {
    for (prefix, heads, window) in [(1, (2, 1), 1), (31, (4, 2), 3), (65, (6, 2), 17), (300, (8, 8), 32)] {
        for (softcap, sliding_window) in [(None, None), (Some(1.5), Some(40))] {
            let params = ScoreParams { softcap, sliding_window, ..Default::default() };
            let shape = shape(prefix + window, heads, (24, 8), window);
            let mut random = Random(prefix as u64);
            let q = Data::new(&mut random, Dtype::F32, (window, heads.0, 24), 2.0);
            let k = Data::new(&mut random, Dtype::BF16, (prefix + window, heads.1, 24), 2.0);
            let inputs = ScoreInputs { q: q.view(), k: k.view(), v: k.view(), lse: None };
            let want = reference::attention_stats(&q.values, &k.values, &params);
            for backend in Backend::all() {
                for n_parts in [1, 2] {
                    let mut got = vec![];
                    for part in 0..n_parts {
                        let heads = score::part_heads(&shape, part, n_parts).unwrap();
                        let mut stats = vec![score::AttentionStats::default(); heads.len()];
                        let mut workspace = aligned(score::workspace_size(&shape, &params).unwrap());
                        let memory = &mut carver(&mut workspace);
                        score::attention_stats(
                            backend, &shape, &params, &inputs, part, n_parts, memory, &mut stats,
                        )
                        .unwrap();
                        got.extend(stats);
                    }
                    for (got, (entropy, variance)) in got.iter().zip(&want) {
                        assert!(
                            (got.entropy - entropy).abs() <= 1e-4 * entropy.max(1e-3),
                            "{got:?} {entropy}"
                        );
                        assert!(
                            (got.variance - variance).abs() <= 1e-4 * variance + 1e-9,
                            "{got:?} {variance}"
                        );
                    }
                    let (h, v) = want.iter().fold((0.0, 0.0), |(h, v), s| (h + s.0, v + s.1));
                    let weight = score::preference(&got, 2.0, 0.5).unwrap();
                    assert!((weight - h.sqrt() * v * v).abs() <= 1e-3 * weight + 1e-12);
                }
            }
        }
    }
}

#[test]
fn one_set_for_all_heads() {
    let mut scores = [1.0, 2.0, 4.0, 0.5, 3.0, 0.0, 0.0, 0.25, 8.0];
    score::mean_over_heads(&mut scores, 3, 3).unwrap();
    let mean = [1.5 / 3.0, 5.25 / 3.0, 12.0 / 3.0];
    assert_eq!(scores.chunks(3).collect::<Vec<_>>(), [mean; 3]);
    assert!(score::mean_over_heads(&mut [1.0, f32::NAN], 2, 1).is_err_and(|e| e.head == Some(1)));
    assert!(score::mean_over_heads(&mut [], 2, 0).is_ok());
}

/// Short prompts of few heads never have room to store exponentials; here there is, as in every layer of a real size.
#[test]
fn scores_where_exponentials_are_stored() {
    let mut seed = 100;
    for prefix in [97, 127, 128, 129, 160, 255, 290] {
        for (heads, window) in [((16, 8), 5), ((24, 8), 3), ((8, 8), 9)] {
            for (pool, group_reduce) in [
                (Pool::Max, GroupReduce::Max),
                (Pool::Avg, GroupReduce::Mean),
                (Pool::Max, GroupReduce::Mean),
            ] {
                for (softcap, sliding_window) in [(None, None), (Some(1.5), Some(50))] {
                    let params =
                        ScoreParams { softcap, sliding_window, pool, group_reduce, ..Default::default() };
                    let shape = shape(prefix + window, heads, (64, 72), window);
                    let one_head = window.next_multiple_of(16) * prefix.div_ceil(32) * 32 * 3;
                    let size = score::workspace_size(&shape, &params).unwrap();
                    assert!(size > one_head + 64 * 32 * 4, "{size} bytes: nothing is stored for {shape:?}");
                    seed += 1;
                    for backend in Backend::all() {
                        for dtypes in [[Dtype::F32, Dtype::F16, Dtype::BF16], [Dtype::BF16; 3]] {
                            check_score(backend, &shape, &params, dtypes, seed, false);
                        }
                    }
                }
            }
        }
    }
}

/// What the header promises of backends: the same scores but for rounding. And of threads: the same bits.
#[test]
fn backends_and_threads_agree() {
    for (n, dim, dtype) in [(2500, 128, Dtype::F16), (700, 80, Dtype::BF16), (1311, 33, Dtype::F32)] {
        let shape = shape(n, (8, 2), (dim, dim), 32);
        let mut random = Random(n as u64);
        let q = Data::new(&mut random, dtype, (32, 8, dim), 2.0);
        let k = Data::new(&mut random, dtype, (n, 2, dim), 2.0);
        let v = Data::new(&mut random, dtype, (n, 2, dim), 2.0);
        let inputs = ScoreInputs { q: q.view(), k: k.view(), v: v.view(), lse: None };
        let params = ScoreParams::default();
        let want = run_score(Backend::scalar(), &shape, &params, &inputs).unwrap();
        let largest = want.iter().copied().fold(0.0, f32::max);
        for backend in Backend::all() {
            let got = run_score(backend, &shape, &params, &inputs).unwrap();
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5 * largest, "{}: off by {} of the largest", backend.name(), worst / largest);
            #[cfg(feature = "rayon")]
            for n_parts in [1, 2, 3] {
                let mut workspace = vec![0; parallel::workspace_size(&shape, &params, n_parts).unwrap()];
                let mut scores = vec![f32::NAN; got.len()];
                parallel::score(backend, &shape, &params, &inputs, n_parts, &mut workspace, &mut scores)
                    .unwrap();
                assert!(scores == got);
            }
        }
    }
}

#[test]
fn scoring_needs_at_most_a_tenth_of_the_layer() {
    let real = [
        (8192, (32, 1), 128),
        (4096, (71, 1), 64),
        (1024, (8, 2), 32),
        (4096, (32, 8), 128),
        (32768, (32, 8), 128),
        (8192, (8, 8), 64),
    ];
    for (n_tokens, heads, dim) in real {
        let shape = shape(n_tokens, heads, (dim, dim), 32);
        let layer = n_tokens * heads.1 * dim * 2 * 2; // f16 K and V
        let size = score::workspace_size(&shape, &ScoreParams::default()).unwrap();
        assert!(size * 10 <= layer, "{size} bytes to score {layer}");
    }
}

/// Attention over a ragged cache against the reference.
///
/// Bound: weights are off by the logits' error (see `check_score`), below 1e-5 relative; values are at most 2.
fn check_attend(
    backend: Backend,
    shape: &Shape,
    n_rows: &[u32],
    params: &AttendParams,
    dtype: Dtype,
    seed: u64,
) {
    let mut random = Random(seed);
    let Shape { n_tokens: n_new, n_q_heads, n_kv_heads, head_dim_k: dk, head_dim_v: dv, .. } = *shape;
    // Rows of all heads one behind the other, with a gap of one row after each.
    let row_start: Vec<u32> = (0..n_kv_heads).map(|h| n_rows[..h].iter().map(|n| n + 1).sum()).collect();
    let total = n_rows.iter().map(|n| n + 1).sum::<u32>() as usize;
    // An engine's queries are f32 or what its cache is.
    let q_dtype = if seed.is_multiple_of(2) { dtype } else { Dtype::F32 };
    let q = Data::new(&mut random, q_dtype, (n_new, n_q_heads, dk), 2.0);
    let k = Data::new(&mut random, dtype, (total, 1, dk), 2.0);
    let v = Data::new(&mut random, dtype, (total, 1, dv), 2.0);
    fn ragged<'a>(d: &'a Data, start: &'a [u32], rows: &'a [u32]) -> Tensor<'a> {
        let (strides, rows, dim) = (Strides::ragged(start, d.dims.2), Rows::PerHead(rows), d.dims.2);
        match d.dtype {
            Dtype::F32 => Tensor::from_slice(&d.f32, strides, rows, start.len(), dim),
            Dtype::F16 => Tensor::from_slice(&d.f16, strides, rows, start.len(), dim),
            Dtype::BF16 => Tensor::from_slice(&d.bf16, strides, rows, start.len(), dim),
        }
        .expect("a ragged tensor is valid")
    }
    let inputs =
        AttendInputs { q: q.view(), k: ragged(&k, &row_start, n_rows), v: ragged(&v, &row_start, n_rows) };
    let mut out = vec![f32::NAN; n_new * n_q_heads * dv];
    let mut lse = vec![f32::NAN; n_new * n_q_heads];
    let mut workspace = aligned(attend::workspace_size(shape).unwrap());
    let dense = |dim| (Strides::token_major(n_q_heads, dim), Rows::Same(n_new));
    {
        let mut out = TensorMut::from_slice(&mut out, dense(dv).0, dense(dv).1, n_q_heads, dv).unwrap();
        let mut lse = TensorMut::from_slice(&mut lse, dense(1).0, dense(1).1, n_q_heads, 1).unwrap();
        attend::attend(
            backend,
            shape,
            params,
            &inputs,
            &mut out,
            Some(&mut lse),
            0,
            1,
            &mut carver(&mut workspace),
        )
        .unwrap();
    }
    let position = |h: usize, r: usize| {
        let p = params.positions.as_ref().unwrap();
        let kept = &p.kept_indices[p.cu_kept[h] as usize..p.cu_kept[h + 1] as usize];
        kept.get(r).map_or_else(|| p.n_base as usize + r - kept.len(), |&i| i as usize)
    };
    for t in 0..n_new {
        for hq in 0..n_q_heads {
            let h = hq / (n_q_heads / n_kv_heads);
            let n = n_rows[h] as usize;
            let seen = if params.causal { n - (n_new - 1 - t) } else { n };
            let rows: Vec<_> = (0..n)
                .map(|r| {
                    let near =
                        params.sliding_window.is_none_or(|swa| position(h, r) + swa > position(h, seen - 1));
                    let at = row_start[h] as usize + r;
                    (r < seen && near).then(|| (&k.values[at][0][..], &v.values[at][0][..]))
                })
                .collect();
            let (want, want_lse) =
                reference::attend(&q.values[t][hq], &rows, dv, params.scale, params.softcap);
            for c in 0..dv {
                let got = out[(t * n_q_heads + hq) * dv + c] as f64;
                assert!(
                    (got - want[c]).abs() <= 4e-5,
                    "{got} for {}, {shape:?} {n_rows:?} {params:?}",
                    want[c]
                );
            }
            let got = lse[t * n_q_heads + hq] as f64;
            assert!(got == want_lse || (got - want_lse).abs() <= 2e-5, "lse {got} for {want_lse}");
        }
    }
}

#[test]
fn attention_over_ragged_rows() {
    for backend in Backend::all() {
        for (seed, rows) in [[1, 2], [31, 32], [33, 64], [65, 3], [200, 1]].into_iter().enumerate() {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let one = shape(1, (6, 2), (24, 40), 1);
                let params = AttendParams { causal: true, ..Default::default() };
                check_attend(backend, &one, &rows, &params, dtype, seed as u64);
                let capped = AttendParams { softcap: Some(2.0), scale: Some(0.3), ..Default::default() };
                check_attend(backend, &shape(3, (6, 2), (24, 40), 1), &rows, &capped, dtype, seed as u64);
            }
        }
        // Groups that fill the kernels' steps of four, two and one query, and rows that fill registers, or not quite.
        for (seed, group) in [1, 2, 3, 4, 5, 7, 8].into_iter().enumerate() {
            for dims in [(64, 128), (62, 80), (33, 17)] {
                for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                    let shape = shape(1, (2 * group, 2), dims, 1);
                    let params = AttendParams { scale: Some(-0.07), ..Default::default() };
                    check_attend(backend, &shape, &[70, 35], &params, dtype, seed as u64);
                    check_attend(backend, &shape, &[70, 35], &params, dtype, seed as u64 + 1);
                }
            }
        }
        // A chunk of new tokens, longer than a tile of queries.
        let chunk = shape(19, (4, 2), (16, 16), 1);
        let causal = AttendParams { causal: true, ..Default::default() };
        check_attend(backend, &chunk, &[19, 70], &causal, Dtype::F16, 9);
        // Kept positions with holes, then the new tokens; the window reaches into the holes.
        let kept: Vec<u32> = (0..12).map(|i| i * 5).chain((0..30).map(|i| i * 2)).collect();
        let positions = Positions { kept_indices: &kept, cu_kept: &[0, 12, 42], n_base: 60 };
        for swa in [1, 4, 25, 1000] {
            let params = AttendParams {
                sliding_window: Some(swa),
                positions: Some(positions),
                causal: true,
                ..Default::default()
            };
            check_attend(backend, &shape(5, (4, 2), (16, 16), 1), &[17, 35], &params, Dtype::F32, 10);
        }
    }
}

/// Finite logits whose sum is not: every one counts by itself. One that is infinite is still found.
#[test]
fn logits_near_the_largest_number() {
    let (dk, dv) = (2, 3);
    let run = |backend: Backend, logits: &[f32], q: f32| -> Result<()> {
        let shape = shape(1, (1, 1), (dk, dv), 1);
        let n = logits.len();
        let query = [q, 0.0];
        let keys: Vec<f32> = logits.iter().flat_map(|&x| [x, 1.0]).collect();
        let values: Vec<f32> = (0..n * dv).map(|i| (i % 5) as f32).collect();
        let tensor = |data, rows, dim| {
            Tensor::from_slice(data, Strides::token_major(1, dim), Rows::Same(rows), 1, dim).unwrap()
        };
        let inputs = AttendInputs {
            q: tensor(&query[..], 1, dk),
            k: tensor(&keys[..], n, dk),
            v: tensor(&values[..], n, dv),
        };
        let params = AttendParams { scale: Some(1.0), ..Default::default() };
        let (mut out, mut lse) = (vec![f32::NAN; dv], [f32::NAN]);
        let mut workspace = aligned(attend::workspace_size(&shape).unwrap());
        {
            let dense = |data, dim| {
                TensorMut::from_slice(data, Strides::token_major(1, dim), Rows::Same(1), 1, dim).unwrap()
            };
            let (mut out, mut lse) = (dense(&mut out[..], dv), dense(&mut lse[..], 1));
            let carver = &mut carver(&mut workspace);
            attend::attend(backend, &shape, &params, &inputs, &mut out, Some(&mut lse), 0, 1, carver)?;
        }
        // Rows of the largest logit share the weight.
        let top = logits.iter().fold(f32::MIN, |m, &x| m.max(x));
        let seen: Vec<usize> = (0..n).filter(|&r| logits[r] == top).collect();
        for c in 0..dv {
            let want = seen.iter().map(|r| values[r * dv + c]).sum::<f32>() / seen.len() as f32;
            assert!((out[c] - want).abs() <= 1e-5, "{}: {} for {want}, {n} rows", backend.name(), out[c]);
        }
        assert_eq!(lse[0], top * q);
        Ok(())
    };
    for backend in Backend::all() {
        for n in [2, 3, 8, 17, 32, 33, 70] {
            assert_eq!(run(backend, &vec![2e38; n], 1.0), Ok(()), "{} {n}", backend.name());
            let mut both = vec![-2e38; n];
            both[n - 1] = 2e38;
            assert_eq!(run(backend, &both, 1.0), Ok(()), "{} {n}", backend.name());
            // 4e38 is not finite; that the others are does not hide it.
            let mut one = vec![1.0; n];
            one[n / 2] = 2e38;
            let found = run(backend, &one, 2.0).unwrap_err();
            assert_eq!(found.kind, ErrorKind::NonFinite, "{} {n}", backend.name());
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let shape = shape(2, (2, 2), (4, 4), 1);
    check_attend(Backend::scalar(), &shape, &[0, 3], &AttendParams::default(), Dtype::F32, 1);
}
