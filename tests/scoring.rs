//! Scoring, its statistics and attention over a compressed cache against the f64 reference, through one checker per
//! stage, for every backend and with sizes that straddle every block edge.

mod common;

use common::{Random, aligned, carver, shape};
use half::{bf16, f16};
use lava::adjust;
use lava::attend::{AttendInputs, AttendParams, Positions};
use lava::novelty::pick_queries;
use lava::reference::{self, Heads};
use lava::rope::{self, Rope, RopeStyle};
use lava::score::ScoreInputs;
use lava::*;

/// A tensor's elements in memory, in the vector of its element type, and the same numbers for the reference.
struct Data {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    dtype: Dtype,
    /// First row of each head, where heads follow each other. Without, a token's heads do.
    cu: Option<Vec<u32>>,
    values: Heads,
}

impl Data {
    /// Of these numbers, token-major, or head after head.
    fn of(dtype: Dtype, raw: &Heads, ragged: bool) -> Self {
        // What the library sees: rounded to the element type.
        let rounded = |x: f64| match dtype {
            Dtype::F32 => x as f32 as f64,
            Dtype::F16 => f16::from_f64(x).to_f64(),
            Dtype::BF16 => bf16::from_f64(x).to_f64(),
        };
        let values: Heads = raw
            .iter()
            .map(|head| head.iter().map(|row| row.iter().map(|&x| rounded(x)).collect()).collect())
            .collect();
        let flat: Vec<f64> = match ragged {
            true => values.concat().concat(),
            false => (0..values[0].len())
                .flat_map(|r| values.iter().flat_map(move |head| head[r].clone()))
                .collect(),
        };
        let cu = ragged
            .then(|| (0..=values.len()).map(|h| values[..h].iter().map(|v| v.len() as u32).sum()).collect());
        let of = |wanted: Dtype| if dtype == wanted { &flat[..] } else { &[] };
        Self {
            f32: of(Dtype::F32).iter().map(|&x| x as f32).collect(),
            f16: of(Dtype::F16).iter().map(|&x| f16::from_f64(x)).collect(),
            bf16: of(Dtype::BF16).iter().map(|&x| bf16::from_f64(x)).collect(),
            dtype,
            cu,
            values,
        }
    }

    /// Random numbers, `rows[h]` rows of head `h`.
    fn random(
        random: &mut Random,
        dtype: Dtype,
        rows: &[usize],
        dim: usize,
        size: f64,
        ragged: bool,
    ) -> Self {
        let raw: Heads = rows.iter().map(|&n| (0..n).map(|_| random.reals(dim, size)).collect()).collect();
        Self::of(dtype, &raw, ragged)
    }

    fn new(
        random: &mut Random,
        dtype: Dtype,
        (tokens, heads, dim): (usize, usize, usize),
        size: f64,
    ) -> Self {
        Self::random(random, dtype, &vec![tokens; heads], dim, size, false)
    }

    fn view(&self) -> Tensor<'_> {
        let (heads, dim) = (self.values.len(), self.values[0][0].len());
        let (strides, rows) = match &self.cu {
            None => (Strides::token_major(heads, dim), Rows::Same(self.values[0].len())),
            Some(cu) => (Strides::ragged(cu, dim), Rows::Cu(cu)),
        };
        match self.dtype {
            Dtype::F32 => Tensor::from_slice(&self.f32, strides, rows, heads, dim),
            Dtype::F16 => Tensor::from_slice(&self.f16, strides, rows, heads, dim),
            Dtype::BF16 => Tensor::from_slice(&self.bf16, strides, rows, heads, dim),
        }
        .expect("a tensor without gaps is valid")
    }
}

/// Queries, keys and values of a layer.
struct Layer {
    q: Data,
    k: Data,
    v: Data,
}

impl Layer {
    fn random(shape: &Shape, dtypes: [Dtype; 3], seed: u64) -> Self {
        let mut random = Random(seed);
        let rows: Vec<usize> = (0..shape.n_kv_heads).map(|h| shape.rows(h)).collect();
        let ragged = shape.ragged.is_some();
        Self {
            q: Data::new(
                &mut random,
                dtypes[0],
                (shape.window_rows(), shape.n_q_heads, shape.head_dim_k),
                2.0,
            ),
            k: Data::random(&mut random, dtypes[1], &rows, shape.head_dim_k, 2.0, ragged),
            v: Data::random(&mut random, dtypes[2], &rows, shape.head_dim_v, 2.0, ragged),
        }
    }

    /// f32, of a function of head, row and element.
    fn of(
        shape: &Shape,
        q: impl Fn(usize, usize, usize) -> f64,
        k: impl Fn(usize, usize, usize) -> f64,
        v: impl Fn(usize, usize, usize) -> f64,
    ) -> Self {
        let data = |of: &dyn Fn(usize, usize, usize) -> f64,
                    heads: usize,
                    rows: &dyn Fn(usize) -> usize,
                    dim: usize| {
            let row = |h: usize, r: usize| (0..dim).map(|c| of(h, r, c)).collect::<Vec<f64>>();
            let raw = (0..heads).map(|h| (0..rows(h)).map(|r| row(h, r)).collect()).collect();
            Data::of(Dtype::F32, &raw, shape.ragged.is_some() && heads == shape.n_kv_heads)
        };
        Self {
            q: data(&q, shape.n_q_heads, &|_| shape.window_rows(), shape.head_dim_k),
            k: data(&k, shape.n_kv_heads, &|h| shape.rows(h), shape.head_dim_k),
            v: data(&v, shape.n_kv_heads, &|h| shape.rows(h), shape.head_dim_v),
        }
    }

    fn inputs(&self) -> ScoreInputs<'_> {
        ScoreInputs { q: self.q.view(), k: self.k.view(), v: self.v.view(), lse: None }
    }

    fn want(&self, shape: &Shape, params: &ScoreParams) -> Vec<f64> {
        reference::scores(shape, params, &self.q.values, &self.k.values, &self.v.values).concat()
    }

    fn lse(&self, shape: &Shape, params: &ScoreParams) -> Lse {
        let lse = reference::log_sum_exp(shape, params, &self.q.values, &self.k.values);
        Lse(lse.iter().flatten().map(|&x| x as f32).collect(), shape.window_rows(), shape.n_q_heads)
    }
}

/// Log-sum-exps, head after head.
#[derive(Clone)]
struct Lse(Vec<f32>, usize, usize);

impl Lse {
    fn view(&self) -> Tensor<'_> {
        let strides = Strides { token: 1, head: self.1 as i64, dim: 1, row_start: None };
        Tensor::from_slice(&self.0, strides, Rows::Same(self.1), self.2, 1).expect("a dense tensor is valid")
    }
}

fn run_score(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
) -> Result<Vec<f32>> {
    let mut scores = vec![f32::NAN; shape.n_scores() as usize];
    let mut workspace = aligned(score::workspace_size(shape, params)?);
    score::score(backend, shape, params, inputs, 0, 1, &mut carver(&mut workspace), &mut scores)?;
    Ok(scores)
}

fn run_stats(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
) -> Result<Vec<score::AttentionStats>> {
    let mut stats = vec![score::AttentionStats::default(); shape.n_kv_heads];
    let mut workspace = aligned(score::workspace_size(shape, params)?);
    score::attention_stats(backend, shape, params, inputs, 0, 1, &mut carver(&mut workspace), &mut stats)?;
    Ok(stats)
}

fn assert_scores(backend: Backend, got: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().copied().fold(0.0, f64::max);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let near = (*got as f64 - want).abs() <= bound * largest;
        assert!(near, "{} entry {i}: {got} for {want}, {what}", backend.name());
    }
}

/// Scores of every backend against the reference.
///
/// Bound: a logit is a sum of `d` products in f32, off by at most about `d · 2⁻²⁴ · Σ|q·k|`, here below 1e-5 relative
/// to 1; `exp` turns that into a relative error of the attention; all else adds a few ulp. 2e-5 of the largest score
/// holds all.
fn check_score(shape: &Shape, params: &ScoreParams, dtypes: [Dtype; 3], seed: u64, with_lse: bool) {
    let layer = Layer::random(shape, dtypes, seed);
    let lse = layer.lse(shape, params);
    let inputs = ScoreInputs { lse: with_lse.then(|| lse.view()), ..layer.inputs() };
    let want = layer.want(shape, params);
    for backend in Backend::all() {
        let got = run_score(backend, shape, params, &inputs).expect("valid input");
        assert_scores(backend, &got, &want, 2e-5, &format!("{shape:?} {params:?} {dtypes:?} lse {with_lse}"));
    }
}

#[test]
fn scores_at_every_block_edge() {
    // 32 keys are a block, 256 a block of the pooling.
    for prefix in [1, 2, 6, 7, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300] {
        let shape = shape(prefix + 5, (4, 2), (16, 16), 5);
        for dtype in [Dtype::F32, Dtype::BF16] {
            for params in [ScoreParams::lava(), ScoreParams::default()] {
                check_score(&shape, &params, [dtype; 3], prefix as u64, false);
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
                let params = ScoreParams { scale, ..ScoreParams::lava() };
                let dense = shape(75 + window, (4, 2), (32, 16), window);
                let shape = if i == 2 { dense.sliding(20 + window) } else { dense };
                check_score(&shape, &params, [dtype; 3], window as u64, i == 1);
            }
        }
    }
}

#[test]
fn scores_of_every_head_dim() {
    for dim in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 96, 127, 128, 192, 256, 575, 576] {
        let params = ScoreParams { scale: Some(0.05), ..ScoreParams::lava() };
        for dtype in [Dtype::F32, Dtype::BF16] {
            let shape = shape(70, (2, 1), (dim, 577 - dim), 6);
            check_score(&shape, &params, [dtype; 3], dim as u64, false);
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
                        pool,
                        pool_kernel,
                        group_reduce,
                        value_span,
                        ..ScoreParams::lava()
                    };
                    seed += 1;
                    let dtypes = [dtypes[seed % 3], dtypes[seed / 3 % 3], dtypes[seed / 9 % 3]];
                    let shape = Shape { sliding_window, ..shape(150, heads, (24, 20), 8) };
                    check_score(&shape, &params, dtypes, seed as u64, seed % 2 == 0);
                }
            }
        }
    }
}

/// Maximum attention, not pooled: what asks again.
fn largest(value_weight: ValueWeight) -> ScoreParams<'static> {
    ScoreParams { attention: Attention::Max, value_weight, pool_kernel: 1, ..ScoreParams::lava() }
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
        largest(ValueWeight::None),
        largest(ValueWeight::HeadMax),
        largest(ValueWeight::TokenL2),
        ScoreParams { pool_kernel: 5, smoothing: 0.5, ..largest(ValueWeight::Token) },
        ScoreParams { attention: Attention::Norm4, ..largest(ValueWeight::None) },
        ScoreParams { attention: Attention::Norm4, ..largest(ValueWeight::HeadMeanL2) },
        ScoreParams { value_span: ValueSpan::All, ..largest(ValueWeight::HeadMeanL2) },
        ScoreParams { pool: Pool::After, pool_kernel: 7, ..largest(ValueWeight::TokenL2) },
        ScoreParams { pool: Pool::After, pool_kernel: 127, ..ScoreParams::lava() },
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
                    let sinks: Vec<f32> = (0..heads.0).map(|h| (h as f32 - 4.0) * 0.7).collect();
                    let sink_logits = seed.is_multiple_of(5).then_some(&sinks[..]);
                    let lse_base = if seed.is_multiple_of(4) { LseBase::Two } else { LseBase::Natural };
                    let weights: Vec<f32> = (0..heads.0).map(|h| [0.3, 0.0, 1.0, 5.5][h % 4]).collect();
                    let query_head_weights = (seed % 7 < 2).then_some(&weights[..]);
                    let params = ScoreParams {
                        pool,
                        group_reduce,
                        pool_kernel,
                        sink_logits,
                        query_head_weights,
                        lse_base,
                        ..scorer
                    };
                    let shape = shape(prefix + window, heads, (dim, dim + 4), window);
                    let shape = Shape { sliding_window, ..shape };
                    let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][seed as usize % 3];
                    check_score(&shape, &params, [dtype; 3], seed, seed.is_multiple_of(2));
                }
            }
        }
    }
}

/// Bound: the attention is right within 2e-5 (see `check_score`), and so is the variance, a sum of squares; an
/// entropy's terms are off by that times their logarithm, which f32 keeps below 104.
#[test]
fn attention_stats_agree_with_the_reference() {
    for (prefix, heads, window) in [(1, (2, 1), 1), (31, (4, 2), 3), (65, (6, 2), 17), (300, (8, 8), 32)] {
        for (softcap, sliding_window) in [(None, None), (Some(1.5), Some(40))] {
            let params = ScoreParams { softcap, ..Default::default() };
            let shape = Shape { sliding_window, ..shape(prefix + window, heads, (24, 8), window) };
            let layer = Layer::random(&shape, [Dtype::F32, Dtype::BF16, Dtype::F32], prefix as u64);
            let lse = layer.lse(&shape, &params);
            let want = reference::attention_stats(&shape, &params, &layer.q.values, &layer.k.values);
            for backend in Backend::all() {
                for lse in [None, Some(lse.view())] {
                    let inputs = ScoreInputs { lse, ..layer.inputs() };
                    let whole = run_stats(backend, &shape, &params, &inputs).unwrap();
                    let mut parts = vec![];
                    for part in 0..2 {
                        let heads = score::part_heads(&shape, part, 2).unwrap();
                        let mut stats = vec![score::AttentionStats::default(); heads.len()];
                        let mut workspace = aligned(score::workspace_size(&shape, &params).unwrap());
                        let memory = &mut carver(&mut workspace);
                        score::attention_stats(
                            backend, &shape, &params, &inputs, part, 2, memory, &mut stats,
                        )
                        .unwrap();
                        parts.extend(stats);
                    }
                    assert_eq!(whole, parts);
                    for (got, (entropy, variance)) in whole.iter().zip(&want) {
                        let near = |got: f64, want: f64| (got - want).abs() <= 2e-5 * want + 1e-9;
                        assert!(near(got.entropy, *entropy), "{got:?} {entropy}");
                        assert!(near(got.variance, *variance), "{got:?} {variance}");
                    }
                    let (h, v) = want.iter().fold((0.0, 0.0), |(h, v), s| (h + s.0, v + s.1));
                    let weight = score::preference(&whole, 2.0, 0.5).unwrap();
                    assert!((weight - h.sqrt() * v * v).abs() <= 1e-3 * weight + 1e-12);
                }
            }
        }
    }
}

#[test]
fn one_set_for_all_heads() {
    let heads = |n: usize, prefix: usize| shape(prefix + 1, (n, n), (1, 1), 1);
    let mut scores = [1.0, 2.0, 4.0, 0.5, 3.0, 0.0, 0.0, 0.25, 8.0];
    adjust::mean_over_heads(&heads(3, 3), &mut scores).unwrap();
    let mean = [1.5 / 3.0, 5.25 / 3.0, 12.0 / 3.0];
    assert_eq!(scores.chunks(3).collect::<Vec<_>>(), [mean; 3]);
    let error = adjust::mean_over_heads(&heads(2, 1), &mut [1.0, f32::NAN]).unwrap_err();
    assert_eq!((error.kind, error.head, error.layer), (ErrorKind::NonFinite, Some(1), Some(3)));
    assert!(adjust::mean_over_heads(&heads(2, 0), &mut []).is_ok());
    assert!(adjust::mean_over_heads(&heads(0, 5), &mut []).is_err_and(|e| e.kind == ErrorKind::Shape));
    let ragged = heads(2, 1).with_rows(&[0, 2, 3], &[0, 1, 1]);
    let error = adjust::mean_over_heads(&ragged, &mut [1.0]).unwrap_err();
    assert_eq!((error.kind, error.argument), (ErrorKind::Unsupported, c"cu_rows"));
}

/// Short prompts of few heads never have room to store exponentials; here there is, as in every layer of a real size.
#[test]
fn scores_where_exponentials_are_stored() {
    let mut seed = 100u64;
    for prefix in [97, 127, 128, 129, 160, 255, 290] {
        for (heads, window) in [((16, 8), 5), ((24, 8), 3), ((8, 8), 9)] {
            for (pool, group_reduce) in [
                (Pool::Max, GroupReduce::Max),
                (Pool::Avg, GroupReduce::Mean),
                (Pool::Max, GroupReduce::Mean),
            ] {
                for (softcap, sliding_window) in [(None, None), (Some(1.5), Some(50))] {
                    let params = ScoreParams { softcap, pool, group_reduce, ..ScoreParams::lava() };
                    let shape = Shape { sliding_window, ..shape(prefix + window, heads, (64, 72), window) };
                    let one_head = window.next_multiple_of(16) * shape.live(0).len().div_ceil(32) * 32 * 3;
                    let size = score::workspace_size(&shape, &params).unwrap();
                    assert!(size > one_head + 64 * 32 * 4, "{size} bytes: nothing is stored for {shape:?}");
                    seed += 1;
                    let weights: Vec<f32> = (0..heads.0).map(|h| 0.5 + (h % 3) as f32).collect();
                    let query_head_weights = seed.is_multiple_of(2).then_some(&weights[..]);
                    let params = ScoreParams { query_head_weights, ..params };
                    for dtypes in [[Dtype::F32, Dtype::F16, Dtype::BF16], [Dtype::BF16; 3]] {
                        for attention in [Attention::Mean, Attention::Max, Attention::Norm4] {
                            check_score(&shape, &ScoreParams { attention, ..params }, dtypes, seed, false);
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
        let layer = Layer::random(&shape, [dtype; 3], n as u64);
        let inputs = layer.inputs();
        let params = ScoreParams::lava();
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
    (shape, n_new): (&Shape, usize),
    n_rows: &[u32],
    params: &AttendParams,
    dtype: Dtype,
    seed: u64,
) {
    let mut random = Random(seed);
    let Shape { n_q_heads, n_kv_heads, head_dim_k: dk, head_dim_v: dv, .. } = *shape;
    // Rows of all heads one after the other, with a gap of one row after each.
    let row_start: Vec<u32> = (0..n_kv_heads).map(|h| n_rows[..h].iter().map(|n| n + 1).sum()).collect();
    let total = n_rows.iter().map(|n| n + 1).sum::<u32>() as usize;
    // An engine's queries are f32 or what its cache is.
    let q_dtype = if seed.is_multiple_of(2) { dtype } else { Dtype::F32 };
    let q = Data::new(&mut random, q_dtype, (n_new, n_q_heads, dk), 2.0);
    let k = Data::new(&mut random, dtype, (total, 1, dk), 2.0);
    let v = Data::new(&mut random, dtype, (total, 1, dv), 2.0);
    fn ragged<'a>(d: &'a Data, start: &'a [u32], rows: &'a [u32]) -> Tensor<'a> {
        let dim = d.values[0][0].len();
        let (strides, rows) = (Strides::ragged(start, dim), Rows::PerHead(rows));
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
    let mut workspace = aligned(attend::workspace_size(shape, n_new).unwrap());
    let dense = |dim| (Strides::token_major(n_q_heads, dim), Rows::Same(n_new));
    {
        let mut out = TensorMut::from_slice(&mut out, dense(dv).0, dense(dv).1, n_q_heads, dv).unwrap();
        let mut lse = TensorMut::from_slice(&mut lse, dense(1).0, dense(1).1, n_q_heads, 1).unwrap();
        attend::attend(
            backend,
            shape,
            params,
            n_new,
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
                        shape.sliding_window.is_none_or(|swa| position(h, r) + swa > position(h, seen - 1));
                    let at = row_start[h] as usize + r;
                    (r < seen && near).then(|| (&k.values[0][at][..], &v.values[0][at][..]))
                })
                .collect();
            let sink = params.sink_logits.map(|sinks| sinks[hq]);
            let (want, want_lse) =
                reference::attend(&q.values[hq][t], &rows, dv, params.scale, params.softcap, sink);
            let unit = if params.lse_base == LseBase::Two { std::f64::consts::LN_2 } else { 1.0 };
            let want_lse = want_lse / unit;
            for c in 0..dv {
                let got = out[(t * n_q_heads + hq) * dv + c] as f64;
                assert!(
                    (got - want[c]).abs() <= 4e-5,
                    "{got} for {}, {shape:?} {n_rows:?} {params:?}",
                    want[c]
                );
            }
            let got = lse[t * n_q_heads + hq] as f64;
            let bound = 2e-5 + 1e-7 * want_lse.abs();
            assert!(got == want_lse || (got - want_lse).abs() <= bound, "lse {got} for {want_lse}");
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
                check_attend(backend, (&one, 1), &rows, &params, dtype, seed as u64);
                let capped = AttendParams { softcap: Some(2.0), scale: Some(0.3), ..Default::default() };
                check_attend(backend, (&one, 3), &rows, &capped, dtype, seed as u64);
            }
        }
        // Groups that fill the kernels' steps of four, two and one query, and rows that fill registers, or not quite.
        for (seed, group) in [1, 2, 3, 4, 5, 7, 8].into_iter().enumerate() {
            for dims in [(64, 128), (62, 80), (33, 17)] {
                for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                    let shape = shape(1, (2 * group, 2), dims, 1);
                    let params = AttendParams { scale: Some(-0.07), ..Default::default() };
                    check_attend(backend, (&shape, 1), &[70, 35], &params, dtype, seed as u64);
                    check_attend(backend, (&shape, 1), &[70, 35], &params, dtype, seed as u64 + 1);
                }
            }
        }
        // A chunk of new tokens, longer than a tile of queries.
        let chunk = shape(1, (4, 2), (16, 16), 1);
        let causal = AttendParams { causal: true, ..Default::default() };
        check_attend(backend, (&chunk, 19), &[19, 70], &causal, Dtype::F16, 9);
        // Kept positions with holes, then the new tokens; the window reaches into the holes.
        let kept: Vec<u32> = (0..12).map(|i| i * 5).chain((0..30).map(|i| i * 2)).collect();
        let positions = Positions { kept_indices: &kept, cu_kept: &[0, 12, 42], n_base: 60 };
        for keys in [1, 4, 25, 1000] {
            let params = AttendParams { positions: Some(positions), causal: true, ..Default::default() };
            check_attend(backend, (&chunk.sliding(keys), 5), &[17, 35], &params, Dtype::F32, 10);
        }
        // Learned sinks, small and large.
        let sinks = [0.0, 3.0, -200.0, 40.0];
        for (lse_base, causal) in [(LseBase::Natural, true), (LseBase::Two, false)] {
            let params = AttendParams { sink_logits: Some(&sinks), lse_base, causal, ..Default::default() };
            check_attend(backend, (&chunk, 3), &[19, 70], &params, Dtype::BF16, 11);
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
        let mut workspace = aligned(attend::workspace_size(&shape, 1).unwrap());
        {
            let dense = |data, dim| {
                TensorMut::from_slice(data, Strides::token_major(1, dim), Rows::Same(1), 1, dim).unwrap()
            };
            let (mut out, mut lse) = (dense(&mut out[..], dv), dense(&mut lse[..], 1));
            let carver = &mut carver(&mut workspace);
            attend::attend(backend, &shape, &params, 1, &inputs, &mut out, Some(&mut lse), 0, 1, carver)?;
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
    let shape = shape(1, (2, 2), (4, 4), 1);
    check_attend(Backend::scalar(), (&shape, 2), &[0, 3], &AttendParams::default(), Dtype::F32, 1);
    // Then the sink has all the attention, and its logit is the log-sum-exp.
    for lse_base in [LseBase::Natural, LseBase::Two] {
        let params = AttendParams { sink_logits: Some(&[-3.5, 1e6]), lse_base, ..Default::default() };
        check_attend(Backend::scalar(), (&shape, 2), &[0, 3], &params, Dtype::F32, 1);
    }
}

#[test]
fn faults_of_attention_name_the_layer() {
    let good = shape(1, (2, 2), (4, 4), 1);
    let mut random = Random(1);
    let (q, k) = (
        Data::new(&mut random, Dtype::F32, (2, 2, 4), 1.0),
        Data::new(&mut random, Dtype::F32, (9, 2, 4), 1.0),
    );
    let fault = |shape: &Shape, n_queries: usize, params: &AttendParams, dim_v: usize| {
        let v = Data::new(&mut Random(1), Dtype::F32, (9, 2, dim_v), 1.0);
        let inputs = AttendInputs { q: q.view(), k: k.view(), v: v.view() };
        let mut out = vec![0.0; 16];
        let mut out =
            TensorMut::from_slice(&mut out, Strides::token_major(2, 4), Rows::Same(2), 2, 4).unwrap();
        let mut workspace = aligned(1 << 16);
        let memory = &mut carver(&mut workspace);
        let error = attend::attend(
            Backend::scalar(),
            shape,
            params,
            n_queries,
            &inputs,
            &mut out,
            None,
            0,
            1,
            memory,
        )
        .unwrap_err();
        assert_eq!(error.layer, Some(3), "{error}");
        (error.kind, error.argument)
    };
    let plain = AttendParams::default();
    assert_eq!(fault(&good, 0, &plain, 4), (ErrorKind::Shape, c"n_queries"));
    assert_eq!(fault(&good, 3, &plain, 4), (ErrorKind::Shape, c"q"));
    assert_eq!(fault(&good, 2, &plain, 5), (ErrorKind::Shape, c"v"));
    assert_eq!(fault(&Shape { n_q_heads: 3, ..good }, 2, &plain, 4), (ErrorKind::Shape, c"n_q_heads"));
    assert_eq!(fault(&good.sliding(0), 2, &plain, 4), (ErrorKind::Shape, c"sliding_window"));
    assert_eq!(fault(&good.sliding(5), 2, &plain, 4), (ErrorKind::Null, c"kept_indices"));
    let few = AttendParams { sink_logits: Some(&[1.0]), ..plain };
    assert_eq!(fault(&good, 2, &few, 4), (ErrorKind::BufferSize, c"sink_logits"));
}

/// Evicting the entry that draws all attention changes the output most. Its share of 1 and its distance to the output
/// cancel if they are taken literally: the score was 0 from g = 16 on.
#[test]
fn what_all_look_at_is_not_evicted_first() {
    let params = ScoreParams { scale: Some(1.0), ..ScoreParams::caote() };
    let shape = shape(3, (1, 1), (1, 1), 1);
    for g in 1..=60 {
        let first = |x: f64| move |_, row, _| if row == 0 { x } else { 0.0 };
        let layer = Layer::of(&shape, |_, _, _| 1.0, first(g as f64), first(1.0));
        // a / (1 − a) · |a − 1| = a.
        let a = 1.0 / (1.0 + 2.0 * (-(g as f64)).exp());
        let want = layer.want(&shape, &params);
        assert!((want[0] - a).abs() < 1e-14, "{want:?}");
        for backend in Backend::all() {
            let got = run_score(backend, &shape, &params, &layer.inputs()).unwrap();
            assert_scores(backend, &got, &want, 2e-6, &format!("g = {g}"));
        }
    }
    // Where the others' attention is nothing in f32, so is their mean.
    let layer =
        Layer::of(&shape, |_, _, _| 1.0, |_, row, _| if row == 0 { 500.0 } else { 0.0 }, |_, _, _| 3.0);
    for backend in Backend::all() {
        assert_eq!(run_score(backend, &shape, &params, &layer.inputs()).unwrap(), [3.0, 0.0]);
    }
}

/// A sink that leaves 1e-11, 1e-3 or nearly half of the attention to the others, with learned sinks and without.
#[test]
fn output_weights_at_any_sink() {
    let (n, w, dim) = (200, 4, 8);
    let learned = [0.5, -2.0, 1.0, 20.0];
    for pull in [0.0, 4.0, 8.0, 12.0, 32.0, 60.0] {
        let shape = shape(n, (4, 2), (dim, dim), w);
        let noise = |size: f64| {
            move |h: usize, r: usize, c: usize| {
                Random((h * 7919 + r * 31 + c + 1) as u64 * 0x9E37_79B9).real() * size
            }
        };
        let (q, k, v) = (noise(0.3), noise(1.0), noise(2.0));
        let sink = move |h, r, c| if r == 5 && c == 0 { pull } else { k(h, r, c) };
        let query = move |h, r, c| if c == 0 { 1.0 } else { q(h, r, c) };
        let layer = Layer::of(&shape, query, sink, v);
        for preset in [ScoreParams::caote(), ScoreParams::rest_kv(0.3)] {
            for sink_logits in [None, Some(&learned[..])] {
                let params = ScoreParams { scale: Some(1.0), sink_logits, ..preset };
                let want = layer.want(&shape, &params);
                for backend in Backend::all() {
                    let got = run_score(backend, &shape, &params, &layer.inputs()).unwrap();
                    assert_scores(backend, &got, &want, 1e-5, &format!("{pull} {params:?}"));
                }
            }
        }
    }
}

/// A sink whose queries differ by about 1%. The variance is what little of its attention is not the same for all, so
/// nothing may be lost of what it leaves to the others: the sum of squares less the square of the sum was 20% off at
/// 0.945, 3 times too large at 0.999.
#[test]
fn variance_at_any_sink() {
    let (n, w, dim) = (300, 32, 4);
    let shape = shape(n, (1, 1), (dim, dim), w);
    for share in [0.5, 0.945, 0.999, 0.99999] {
        // The logits of the others are multiples of 2^-4 or so, and all products exact: what is tested is what becomes
        // of them.
        let pull = (share / (1.0 - share) * (n - w) as f64).ln();
        let query = |_, j: usize, c: usize| match c {
            0 => ((1.0 + 0.01 * Random(j as u64 + 1).real()) * 512.0).round() / 512.0,
            _ => (Random(j as u64 + 100 * c as u64).real() * 8.0).round() / 64.0,
        };
        let key = |_, r: usize, c: usize| match (r, c) {
            (7, 0) => (pull * 16.0).round() / 16.0,
            (_, 0) => 0.0,
            _ => (Random((r * 17 + c) as u64).real() * 8.0).round() / 8.0,
        };
        let layer = Layer::of(&shape, query, key, |_, _, _| 1.0);
        let params = ScoreParams {
            scale: Some(1.0),
            attention: Attention::MeanVariance,
            // So large that the mean is nothing beside the variance.
            gamma: 1e12,
            pool_kernel: 1,
            value_weight: ValueWeight::None,
            ..ScoreParams::lava()
        };
        let want = layer.want(&shape, &params);
        let stats = reference::attention_stats(&shape, &params, &layer.q.values, &layer.k.values);
        for backend in Backend::all() {
            let got = run_score(backend, &shape, &params, &layer.inputs()).unwrap();
            let off = (got[7] as f64 / want[7] - 1.0).abs();
            assert!(off <= 1e-5, "{}: {share}: {} for {}", backend.name(), got[7], want[7]);
            let got = run_stats(backend, &shape, &params, &layer.inputs()).unwrap()[0];
            assert!((got.variance / stats[0].1 - 1.0).abs() <= 1e-5, "{share} {got:?} {stats:?}");
            assert!((got.entropy / stats[0].0 - 1.0).abs() <= 1e-5, "{share} {got:?} {stats:?}");
        }
    }
}

/// The scaled logit less its maximum must be formed before it is rounded: attention was 4e-4 off at 1e5, 12% at 1e7.
#[test]
fn attention_sums_to_one_at_large_logits() {
    for logit in [1e2, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9] {
        // The larger one stores exponentials.
        for (prefix, heads, dim) in [(9, (2, 1), 4), (100, (16, 8), 64)] {
            let w = 5;
            let shape = shape(prefix + w, heads, (dim, dim), w);
            // Query j sees prefix + 1 + j keys that are all the same.
            let layer = Layer::of(&shape, |_, _, _| logit / dim as f64, |_, _, _| 1.0, |_, _, _| 1.0);
            for preset in [
                ScoreParams::snapkv(),
                ScoreParams::kv_compress(),
                ScoreParams { group_reduce: GroupReduce::Max, pool: Pool::Max, ..ScoreParams::cake(200.0) },
                ScoreParams::rest_kv(0.3),
                ScoreParams { value_weight: ValueWeight::None, ..ScoreParams::rest_kv(0.3) },
            ] {
                let params = ScoreParams { scale: Some(1.0), ..preset };
                let want = layer.want(&shape, &params);
                for backend in Backend::all() {
                    let got = run_score(backend, &shape, &params, &layer.inputs()).unwrap();
                    // All values are the same: then evicting one changes nothing.
                    let bound = if params.value_weight == ValueWeight::Output { f64::MAX } else { 1e-5 };
                    assert_scores(backend, &got, &want, bound, &format!("{logit} {params:?}"));
                }
            }
            let stats =
                reference::attention_stats(&shape, &ScoreParams::snapkv(), &layer.q.values, &layer.k.values);
            for backend in Backend::all() {
                let got = run_stats(backend, &shape, &ScoreParams::snapkv(), &layer.inputs()).unwrap()[0];
                assert!((got.entropy / stats[0].0 - 1.0).abs() < 1e-5, "{got:?} {stats:?}");
            }
        }
    }
    // A logit that its scale makes infinite is found.
    let shape = shape(9, (1, 1), (1, 1), 2);
    let layer = Layer::of(&shape, |_, _, _| 1e20, |_, _, _| 1e18, |_, _, _| 1.0);
    let params = ScoreParams { scale: Some(1e3), ..ScoreParams::lava() };
    for backend in Backend::all() {
        let error = run_score(backend, &shape, &params, &layer.inputs()).unwrap_err();
        assert_eq!((error.kind, error.layer, error.head), (ErrorKind::NonFinite, Some(3), Some(0)));
    }
}

/// Positions that a sliding window has passed by get nothing and give nothing; rows that nobody sees are not read.
#[test]
fn a_sliding_window_scores_what_it_can_reach() {
    let (n, w) = (150, 6);
    let methods = [
        ScoreParams::lava(),
        ScoreParams { value_span: ValueSpan::All, pool: Pool::Avg, ..ScoreParams::lava() },
        ScoreParams { smoothing: 1.0, pool_kernel: 9, ..ScoreParams::default() },
        ScoreParams::cake(5.0),
        ScoreParams::caote(),
        ScoreParams::streaming(),
    ];
    for keys in [1, 6, 7, 33, 64, 100, 149, 150, 151, usize::MAX] {
        let shape = shape(n, (4, 2), (16, 8), w).sliding(keys);
        let live = shape.live(0);
        assert_eq!(live.len(), keys.saturating_sub(1).min(n).saturating_sub(w));
        let unseen = (n - w + 1).saturating_sub(keys).min(n - w);
        for (i, params) in methods.iter().enumerate() {
            let mut layer = Layer::random(&shape, [Dtype::F32, Dtype::F16, Dtype::F32], i as u64);
            let want = layer.want(&shape, params);
            // What is not read: keys that no query sees; values of dead rows, unless they are part of the output.
            let unread = match params.value_weight {
                ValueWeight::Output => unseen,
                _ => live.start,
            };
            layer.k.f16[..unseen * 2 * 16].fill(f16::NAN);
            layer.v.f32[..unread * 2 * 8].fill(f32::NAN);
            for backend in Backend::all() {
                for lse in [None, Some(layer.lse(&shape, params))] {
                    let inputs = ScoreInputs { lse: lse.as_ref().map(Lse::view), ..layer.inputs() };
                    let got = run_score(backend, &shape, params, &inputs).unwrap();
                    assert_scores(backend, &got, &want, 2e-5, &format!("{keys} {params:?}"));
                    for head in got.chunks(n - w) {
                        assert!(head[..live.start].iter().all(|&s| s == 0.0));
                    }
                    run_stats(backend, &shape, params, &inputs).unwrap();
                }
            }
            // Dead keys that the window still sees are part of its softmax.
            if unseen < live.start && !live.is_empty() && params.attention != Attention::Recency {
                layer.k.f16[unseen * 2 * 16] = f16::NAN;
                let error = run_score(Backend::detect(), &shape, params, &layer.inputs()).unwrap_err();
                assert_eq!(error.kind, ErrorKind::NonFinite);
            }
        }
    }
}

/// A layer's rows, of which each head has lost its own.
fn holes(n: usize, w: usize, heads: usize, keep: impl Fn(usize, usize) -> bool) -> (Vec<u32>, Vec<u32>) {
    let (mut cu, mut positions) = (vec![0], vec![]);
    for h in 0..heads {
        positions.extend((0..n as u32).filter(|&p| p as usize >= n - w || keep(h, p as usize)));
        cu.push(positions.len() as u32);
    }
    (cu, positions)
}

#[test]
fn ragged_rows_agree_with_the_reference() {
    let mut seed = 7;
    for (n, w, heads, dim) in [(300, 5, (6, 3), 16), (90, 33, (4, 2), 24), (260, 4, (16, 8), 64)] {
        // The first head has lost all it could, the second nothing.
        let (cu, positions) = holes(n, w, heads.1, |h, p| match h {
            0 => false,
            1 => true,
            _ => !(p * 7 + h).is_multiple_of(3),
        });
        for sliding_window in [None, Some(70)] {
            let shape = shape(n, heads, (dim, dim + 3), w).with_rows(&cu, &positions);
            let shape = Shape { sliding_window, ..shape };
            for params in [
                ScoreParams::lava(),
                ScoreParams::default(),
                ScoreParams { smoothing: 1.0, group_reduce: GroupReduce::Mean, ..ScoreParams::lava() },
                ScoreParams::cake(10.0),
                ScoreParams::rest_kv(0.3),
                ScoreParams::streaming(),
            ] {
                seed += 1;
                let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][seed as usize % 3];
                check_score(&shape, &params, [dtype; 3], seed, false);
                check_score(&shape, &params, [dtype; 3], seed, true);
            }
            let layer = Layer::random(&shape, [Dtype::F32; 3], seed);
            let params = ScoreParams::default();
            let want = reference::attention_stats(&shape, &params, &layer.q.values, &layer.k.values);
            for (got, want) in
                run_stats(Backend::detect(), &shape, &params, &layer.inputs()).unwrap().iter().zip(&want)
            {
                assert!((got.entropy - want.0).abs() <= 2e-5 * want.0, "{got:?} {want:?}");
                assert!((got.variance - want.1).abs() <= 2e-5 * want.1, "{got:?} {want:?}");
            }
        }
    }
}

/// Nothing evicted: the same bits as the dense layer's, in any number of parts.
#[test]
fn ragged_rows_without_holes_are_dense_rows() {
    let (n, w, heads, dim) = (150, 7, (16, 8), 64);
    let (cu, positions) = holes(n, w, heads.1, |_, _| true);
    for (sliding_window, dtype) in [(None, Dtype::F32), (None, Dtype::BF16), (Some(100), Dtype::F16)] {
        let dense = Shape { sliding_window, ..shape(n, heads, (dim, dim), w) };
        let ragged = dense.with_rows(&cu, &positions);
        {
            let layer = Layer::random(&dense, [dtype; 3], 5);
            let rows = |data: &Data| Data::of(dtype, &data.values, true);
            let (k, v) = (rows(&layer.k), rows(&layer.v));
            let lse = layer.lse(&dense, &ScoreParams::lava());
            for params in
                [ScoreParams::lava(), ScoreParams::default(), ScoreParams::caote(), ScoreParams::streaming()]
            {
                for backend in Backend::all() {
                    for lse in [None, Some(lse.view())] {
                        let of_dense = ScoreInputs { lse, ..layer.inputs() };
                        let of_ragged = ScoreInputs { k: k.view(), v: v.view(), ..of_dense };
                        let want = run_score(backend, &dense, &params, &of_dense).unwrap();
                        let got = run_score(backend, &ragged, &params, &of_ragged).unwrap();
                        assert!(got == want, "{} {params:?}", backend.name());
                        let mut parts = vec![];
                        for part in 0..3 {
                            let heads = score::part_heads(&ragged, part, 3).unwrap();
                            let mut own = vec![
                                f32::NAN;
                                ragged.first_score(heads.end) - ragged.first_score(heads.start)
                            ];
                            let mut workspace = aligned(score::workspace_size(&ragged, &params).unwrap());
                            let memory = &mut carver(&mut workspace);
                            score::score(backend, &ragged, &params, &of_ragged, part, 3, memory, &mut own)
                                .unwrap();
                            parts.extend(own);
                        }
                        assert!(parts == want);
                    }
                }
            }
        }
    }
}

/// A learned sink takes attention from all entries.
#[test]
fn learned_sinks_are_in_the_denominator() {
    let shape = shape(70, (4, 2), (8, 8), 3);
    let none = [-1e4; 4];
    let some = [0.0, 5.0, 30.0, -5.0];
    let layer = Layer::random(&shape, [Dtype::F32; 3], 3);
    for preset in [ScoreParams::lava(), ScoreParams::default(), ScoreParams::cake(3.0), ScoreParams::caote()]
    {
        for backend in Backend::all() {
            let run = |sink_logits| {
                run_score(backend, &shape, &ScoreParams { sink_logits, ..preset }, &layer.inputs()).unwrap()
            };
            assert!(run(Some(&none[..])) == run(None), "a sink far below all logits is none");
            let params = ScoreParams { sink_logits: Some(&some), ..preset };
            let want = layer.want(&shape, &params);
            assert_scores(backend, &run(Some(&some)), &want, 2e-5, &format!("{params:?}"));
        }
    }
    // So large that nothing is left, and not NaN.
    let params = ScoreParams { sink_logits: Some(&[1e30, 0.0, 1e4, 0.0]), ..ScoreParams::snapkv() };
    for backend in Backend::all() {
        assert!(run_score(backend, &shape, &params, &layer.inputs()).is_ok());
    }
    let few = ScoreParams { sink_logits: Some(&[0.0; 3]), ..ScoreParams::lava() };
    let error = run_score(Backend::scalar(), &shape, &few, &layer.inputs()).unwrap_err();
    assert_eq!((error.kind, error.argument, error.layer), (ErrorKind::BufferSize, c"sink_logits", Some(3)));
}

/// A log-sum-exp that does not belong to these queries and keys is refused, by layer and head.
#[test]
fn a_wrong_log_sum_exp_is_refused() {
    let sinks = [6.0, 5.0, 9.0, 7.0];
    for (sliding_window, sink_logits) in [(None, None), (Some(50), None), (None, Some(&sinks[..]))] {
        let shape = Shape { sliding_window, ..shape(100, (4, 2), (16, 16), 9) };
        let layer = Layer::random(&shape, [Dtype::F16; 3], 1);
        for preset in
            [ScoreParams::lava(), ScoreParams::default(), ScoreParams::cake(3.0), ScoreParams::sage_kv()]
        {
            let natural = ScoreParams { sink_logits, ..preset };
            let two = ScoreParams { lse_base: LseBase::Two, ..natural };
            let right = layer.lse(&shape, &natural);
            let of = |f: &dyn Fn(f32) -> f32| Lse(right.0.iter().map(|&x| f(x)).collect(), right.1, right.2);
            let one = |at: usize, by: f32| {
                let mut lse = right.clone();
                lse.0[at] += by;
                lse
            };
            let without_sinks = layer.lse(&shape, &preset);
            for backend in Backend::all() {
                let run = |params: &ScoreParams, lse: &Lse| {
                    let inputs = ScoreInputs { lse: Some(lse.view()), ..layer.inputs() };
                    let stats = run_stats(backend, &shape, params, &inputs).map(|_| ());
                    let scores = run_score(backend, &shape, params, &inputs);
                    assert_eq!(scores.clone().map(|_| ()), stats);
                    scores
                };
                let want = run(&natural, &right).unwrap();
                let in_two = run(&two, &layer.lse(&shape, &two)).unwrap();
                assert_scores(
                    backend,
                    &in_two,
                    &want.iter().map(|&x| x as f64).collect::<Vec<_>>(),
                    1e-5,
                    "base 2",
                );
                // As exact as f16.
                run(&natural, &of(&|x| f16::from_f32(x).to_f32())).unwrap();
                let refused = |params: &ScoreParams, lse: &Lse, head: u32| {
                    let error = run(params, lse).unwrap_err();
                    assert_eq!((error.kind, error.argument), (ErrorKind::Argument, c"lse"), "{error}");
                    assert_eq!((error.layer, error.head), (Some(3), Some(head)));
                };
                refused(&natural, &of(&|_| 0.0), 0);
                refused(&natural, &layer.lse(&shape, &two), 0);
                refused(&two, &right, 0);
                refused(&natural, &of(&|x| x - 100.0), 0);
                refused(&natural, &of(&|x| x + 100.0), 0);
                // Stale: of other queries. Or wrong in one row of one head only.
                refused(&natural, &Layer::random(&shape, [Dtype::F16; 3], 2).lse(&shape, &natural), 0);
                refused(&natural, &one(4 * 9 - 1, 0.06), 1);
                refused(&natural, &one(2 * 9, -0.06), 1);
                if sink_logits.is_some() {
                    refused(&natural, &without_sinks, 0);
                }
            }
        }
    }
}

#[test]
fn preferences_of_nonsense_are_refused() {
    let of = |entropy, variance| score::preference(&[score::AttentionStats { entropy, variance }], 1.0, 1.0);
    assert_eq!(of(2.0, 3.0), Ok(6.0));
    assert!(of(-1.0, 1.0).is_err_and(|e| (e.kind, e.head) == (ErrorKind::Argument, Some(0))));
    assert!(of(1.0, -1.0).is_err_and(|e| e.kind == ErrorKind::Argument));
    assert!(of(f64::NAN, 1.0).is_err_and(|e| e.kind == ErrorKind::NonFinite));
    assert!(score::preference(&[], 0.0, 1.0).is_err());
}

/// Other queries than the window's, over the same cache.
fn ask(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
    n_queries: usize,
    n_parts: usize,
    scores: &mut [f32],
) -> Result<()> {
    for part in 0..n_parts {
        let heads = score::part_heads(shape, part, n_parts)?;
        let own = &mut scores[shape.first_score(heads.start)..shape.first_score(heads.end)];
        let mut workspace = aligned(score::queries_workspace_size(shape, params, n_queries)?);
        let memory = &mut carver(&mut workspace);
        score::score_queries(backend, shape, params, n_queries, inputs, part, n_parts, memory, own)?;
    }
    Ok(())
}

/// The same by queries at positions of their own.
fn ask_at(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
    at: &[u32],
    n_parts: usize,
    scores: &mut [f32],
) -> Result<()> {
    for part in 0..n_parts {
        let heads = score::part_heads(shape, part, n_parts)?;
        let own = &mut scores[shape.first_score(heads.start)..shape.first_score(heads.end)];
        let mut workspace = aligned(score::queries_workspace_size(shape, params, at.len())?);
        let memory = &mut carver(&mut workspace);
        score::score_queries_at(backend, shape, params, at, inputs, part, n_parts, memory, own)?;
    }
    Ok(())
}

/// Queries that are not in the cache see all that one at position N does: against the reference, and as the window of a longer prompt.
#[test]
fn other_queries_are_asked() {
    let mut seed = 500u64;
    for (n, w, heads, dim) in [(40, 3, (2, 2), 8), (150, 8, (6, 2), 24), (140, 5, (16, 8), 64)] {
        let (cu, positions) = holes(n, w, heads.1, |h, p| h == 0 || !(p * 7 + h).is_multiple_of(3));
        for (sliding_window, ragged) in [(None, false), (Some(31), false), (None, true), (Some(70), true)] {
            let shape = Shape { sliding_window, ..shape(n, heads, (dim, dim + 3), w) };
            let shape = if ragged { shape.with_rows(&cu, &positions) } else { shape };
            for (params, n_queries) in [
                (largest(ValueWeight::TokenL2), 1),
                (largest(ValueWeight::TokenL2), 40),
                (largest(ValueWeight::HeadMax), 16),
                (ScoreParams::lava(), 17),
                (ScoreParams { value_span: ValueSpan::All, ..ScoreParams::squares() }, 33),
                (ScoreParams::ask_again(None), 50),
                (ScoreParams::cake(10.0), 5),
                (ScoreParams::caote(), 128),
                (ScoreParams::rest_kv(0.3), 4),
                (ScoreParams::streaming(), 2),
            ] {
                seed += 1;
                let weights: Vec<f32> = (0..heads.0).map(|h| 0.5 + (h % 3) as f32).collect();
                let query_head_weights = seed.is_multiple_of(2).then_some(&weights[..]);
                let sinks: Vec<f32> = (0..heads.0).map(|h| h as f32 * 0.5 - 1.0).collect();
                let sink_logits = seed.is_multiple_of(3).then_some(&sinks[..]);
                let params = ScoreParams { query_head_weights, sink_logits, ..params };
                let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][seed as usize % 3];
                let layer = Layer::random(&shape, [dtype; 3], seed);
                let q = Data::new(&mut Random(seed), dtype, (n_queries, heads.0, dim), 2.0);
                let by_queries = reference::scores_by_queries(
                    &shape,
                    &params,
                    &q.values,
                    &layer.k.values,
                    &layer.v.values,
                );
                let by_window = layer.want(&shape, &params);
                let want: Vec<f64> =
                    by_window.iter().zip(by_queries.iter().flatten()).map(|(a, b)| a.max(*b)).collect();
                for backend in Backend::all() {
                    let what = format!("{shape:?} {params:?} {n_queries}");
                    let window = run_score(backend, &shape, &params, &layer.inputs()).unwrap();
                    let inputs = ScoreInputs { q: q.view(), ..layer.inputs() };
                    let mut scores = window.clone();
                    ask(backend, &shape, &params, &inputs, n_queries, 1, &mut scores).unwrap();
                    assert_scores(backend, &scores, &want, 2e-5, &what);
                    let mut alone = vec![0.0; scores.len()];
                    ask(backend, &shape, &params, &inputs, n_queries, 3, &mut alone).unwrap();
                    assert_scores(backend, &alone, &by_queries.concat(), 2e-5, &what);
                    // The same bits, however it is divided; and asking twice changes nothing.
                    let joined: Vec<f32> = window.iter().zip(&alone).map(|(a, b)| a.max(*b)).collect();
                    assert!(joined == scores, "{what}");
                    ask(backend, &shape, &params, &inputs, n_queries, 2, &mut scores).unwrap();
                    assert!(joined == scores, "{what}");

                    // Each at a position of its own, some of them the same; a window's query sees all heads' rows.
                    let first = if ragged { n - w } else { 0 };
                    let at = |j: usize| (first + (j / 2 * 7) % (n - first)) as u32;
                    let mut at: Vec<u32> = (0..n_queries).map(at).collect();
                    at.sort_unstable();
                    let own: Vec<usize> = at.iter().map(|&p| p as usize).collect();
                    let (q, k, v) = (&q.values, &layer.k.values, &layer.v.values);
                    let want = reference::scores_by(&shape, &params, &own, q, k, v).concat();
                    let mut alone = vec![0.0; scores.len()];
                    ask_at(backend, &shape, &params, &inputs, &at, 2, &mut alone).unwrap();
                    assert_scores(backend, &alone, &want, 2e-5, &what);
                    // Behind everything they are the others.
                    let (mut alone, behind) = (vec![0.0; scores.len()], vec![n as u32; n_queries]);
                    ask_at(backend, &shape, &params, &inputs, &behind, 1, &mut alone).unwrap();
                    assert_scores(backend, &alone, &by_queries.concat(), 2e-5, &what);
                }
            }
        }
    }
}

#[test]
fn positions_of_queries_ascend_and_see_something() {
    let shape = shape(20, (2, 2), (8, 8), 2);
    let layer = Layer::random(&shape, [Dtype::F32; 3], 1);
    let q = Data::new(&mut Random(2), Dtype::F32, (2, 2, 8), 2.0);
    let (cu, positions) = holes(20, 2, 2, |h, p| h == 0 || p > 9);
    let evicted = shape.with_rows(&cu, &positions);
    let of_evicted = Layer::random(&evicted, [Dtype::F32; 3], 1);
    let mut scores = vec![0.0; shape.n_scores() as usize];
    let mut fault = |shape: &Shape, layer: &Layer, at: [u32; 2]| {
        let inputs = ScoreInputs { q: q.view(), ..layer.inputs() };
        ask_at(Backend::detect(), shape, &ScoreParams::lava(), &inputs, &at, 1, &mut scores)
            .err()
            .map(|e| (e.kind, e.argument, e.head))
    };
    let refused = |head| Some((ErrorKind::Argument, c"positions", head));
    assert_eq!(fault(&shape, &layer, [0, 20]), None);
    assert_eq!(fault(&shape, &layer, [3, 2]), refused(None));
    assert_eq!(fault(&shape, &layer, [3, 21]), refused(None));
    assert_eq!(fault(&evicted, &of_evicted, [9, 10]), refused(Some(1)));
    assert_eq!(fault(&evicted, &of_evicted, [10, 10]), None);
}

/// A maximum over queries is the maximum over instalments of them, bit by bit.
#[test]
fn instalments_are_one_question() {
    let shape = shape(260, (6, 2), (32, 24), 4);
    let params = largest(ValueWeight::TokenL2);
    let layer = Layer::random(&shape, [Dtype::F32, Dtype::F16, Dtype::BF16], 1);
    let q = Data::new(&mut Random(2), Dtype::F32, (48, 6, 32), 2.0);
    let strides = Strides::token_major(6, 32);
    for backend in Backend::all() {
        let some = |queries: std::ops::Range<usize>, scores: &mut [f32]| {
            let (rows, elements) = (Rows::Same(queries.len()), queries.start * 192..queries.end * 192);
            let q = Tensor::from_slice(&q.f32[elements], strides, rows, 6, 32).unwrap();
            ask(backend, &shape, &params, &ScoreInputs { q, ..layer.inputs() }, queries.len(), 1, scores)
                .unwrap();
        };
        let (mut whole, mut parts) = (vec![0.0; 512], vec![0.0; 512]);
        some(0..48, &mut whole);
        some(17..48, &mut parts);
        some(0..16, &mut parts);
        some(16..17, &mut parts);
        assert!(whole == parts, "{}", backend.name());
    }
}

#[test]
fn faults_of_asking_name_the_layer() {
    let shape = shape(20, (4, 2), (8, 8), 4);
    let layer = Layer::random(&shape, [Dtype::F32; 3], 1);
    let params = largest(ValueWeight::TokenL2);
    let fault = |params: &ScoreParams, n_queries: usize, scores: &mut [f32]| {
        let error =
            ask(Backend::detect(), &shape, params, &layer.inputs(), n_queries, 1, scores).unwrap_err();
        assert_eq!(error.layer, Some(3));
        (error.kind, error.argument, error.head)
    };
    let scores = &mut [0.0; 32][..];
    assert_eq!(fault(&params, 0, scores), (ErrorKind::Shape, c"n_queries", None));
    assert_eq!(fault(&params, 5, scores), (ErrorKind::Shape, c"q", None));
    assert_eq!(fault(&params, 1 << 40, scores), (ErrorKind::Overflow, c"n_queries", None));
    let smooth = ScoreParams { smoothing: 0.5, ..params };
    assert_eq!(fault(&smooth, 4, scores), (ErrorKind::Argument, c"smoothing", None));
    for (weights, kind) in [
        (&[1.0; 3][..], ErrorKind::BufferSize),
        (&[1.0, 1.0, f32::NAN, 1.0], ErrorKind::NonFinite),
        (&[1.0, 1.0, -0.5, 1.0], ErrorKind::Argument),
    ] {
        let weighed = ScoreParams { query_head_weights: Some(weights), ..params };
        assert_eq!(fault(&weighed, 4, scores), (kind, c"query_head_weights", None));
    }
    scores[17] = f32::NAN;
    assert_eq!(fault(&params, 4, scores), (ErrorKind::NonFinite, c"scores", Some(1)));
    // Where nothing competes nothing is asked.
    let short = Shape { n_tokens: 4, ..shape };
    let layer = Layer::random(&short, [Dtype::F32; 3], 1);
    assert_eq!(ask(Backend::detect(), &short, &params, &layer.inputs(), 9, 1, &mut []), Ok(()));
}

/// Squares that f32 does not hold: too small, too large, and both next to ordinary ones.
#[test]
fn l2_norms_of_any_size() {
    let params = ScoreParams { scale: Some(0.0), ..largest(ValueWeight::TokenL2) };
    for dim in [1, 3, 16, 40] {
        let shape = shape(9, (1, 1), (2, dim), 1);
        let sizes = [1e-30, 1e-18, 1e-13, 1.0, 1e15, 1e19, 1e25, 0.0];
        let v = |_, row: usize, c: usize| sizes.get(row).map_or(0.0, |size| size * (1.0 + c as f64));
        let layer = Layer::of(&shape, |_, _, _| 1.0, |_, _, _| 1.0, v);
        let want = layer.want(&shape, &params);
        for backend in Backend::all() {
            let got = run_score(backend, &shape, &params, &layer.inputs()).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert!((*got as f64 - want).abs() <= 2e-6 * want, "{}: {got} {want}", backend.name());
            }
        }
    }
}

#[test]
fn smoothing_and_clamps_leave_the_protected_out_of_the_mean() {
    let (n, w, heads) = (300, 5, 3);
    let mut mask: Vec<u8> = (0..n - w).map(|p| (p % 11 == 3) as u8).collect();
    let (cu, positions) = holes(n, w, heads, |h, p| h == 0 || !(p * 7 + h).is_multiple_of(3));
    let masks = [None, Some(mask.clone()), {
        mask.fill(1);
        Some(mask)
    }];
    for (sliding_window, ragged) in [(None, false), (Some(70), false), (None, true), (Some(70), true)] {
        let shape = Shape { sliding_window, ..shape(n, (heads, heads), (1, 1), w) };
        let shape = if ragged { shape.with_rows(&cu, &positions) } else { shape };
        let mut random = Random(3);
        let mut scores = vec![];
        for h in 0..heads {
            let dead = shape.live(h).start;
            let score = |i: usize| if i < dead { 0.0 } else { random.real().abs() as f32 };
            scores.push((0..shape.prefix_rows(h)).map(score).collect::<Vec<f32>>());
        }
        for (n_sink, mask) in [0, 4, 1000].into_iter().flat_map(|n| masks.iter().map(move |mask| (n, mask))) {
            let select = SelectParams { n_sink, protected_mask: mask.as_deref(), ..SelectParams::lava() };
            let exact: Vec<Vec<f64>> = scores.iter().map(|s| s.iter().map(|&x| x.into()).collect()).collect();
            let what = format!("{shape:?} {select:?}");
            let want = reference::smoothed(&shape, &select, 0.5, &exact).concat();
            let mut got = scores.concat();
            adjust::smooth(&shape, &select, 0.5, &mut got).unwrap();
            assert_scores(Backend::detect(), &got, &want, 1e-7, &what);

            let want = reference::clamped(&shape, &select, 0.75, &exact).concat();
            let mut got = scores.concat();
            adjust::clamp(&shape, &select, 0.75, &mut got).unwrap();
            assert_scores(Backend::detect(), &got, &want, 1e-7, &what);
        }
    }
    // With nothing protected it is what scoring does, bit by bit.
    let shape = shape(2500, (4, 2), (16, 16), 8).sliding(2300);
    let layer = Layer::random(&shape, [Dtype::F32; 3], 1);
    let plain = ScoreParams::squares();
    let smooth = ScoreParams { smoothing: 0.7, ..plain };
    let mut got = run_score(Backend::detect(), &shape, &plain, &layer.inputs()).unwrap();
    adjust::smooth(&shape, &SelectParams::lava(), 0.7, &mut got).unwrap();
    assert!(got == run_score(Backend::detect(), &shape, &smooth, &layer.inputs()).unwrap());
}

#[test]
fn faults_of_smoothing_leave_the_scores() {
    let shape = shape(4, (2, 2), (1, 1), 1);
    let select = SelectParams::default();
    let fault = |select: &SelectParams, smoothing: f32, scores: [f32; 6]| {
        let mut own = scores;
        let error = adjust::smooth(&shape, select, smoothing, &mut own).unwrap_err();
        assert_eq!(error.layer, Some(3));
        assert_eq!(own.map(f32::to_bits), scores.map(f32::to_bits));
        (error.kind, error.argument, error.head)
    };
    for smoothing in [-0.5, f32::NAN, f32::INFINITY] {
        assert_eq!(fault(&select, smoothing, [1.0; 6]), (ErrorKind::Argument, c"smoothing", None));
    }
    let bad = [1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0];
    assert_eq!(fault(&select, 0.5, bad), (ErrorKind::NonFinite, c"scores", Some(1)));
    let large = [1.0, 1.0, 1.0, 3e38, 3e38, 3e38];
    let none = SelectParams::lava();
    assert_eq!(fault(&none, 0.5, large), (ErrorKind::NonFinite, c"scores", Some(1)));
    let short = SelectParams { protected_mask: Some(&[1, 1]), ..select };
    assert_eq!(fault(&short, 0.5, [1.0; 6]), (ErrorKind::BufferSize, c"protected_mask", None));
    let few = adjust::smooth(&shape, &select, 0.5, &mut [1.0; 5]).unwrap_err();
    assert_eq!((few.kind, few.argument), (ErrorKind::BufferSize, c"scores"));
    assert_eq!(adjust::smooth(&Shape { n_tokens: 1, ..shape }, &select, 0.5, &mut []), Ok(()));
}

/// A form for each head that is a product with its transpose, and so not negative.
fn grams(random: &mut Random, n_heads: usize, dim: usize) -> Vec<Vec<f64>> {
    let of_head = |_| {
        let w: Vec<Vec<f64>> = (0..dim).map(|_| random.reals(dim + 3, 1.0)).collect();
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        (0..dim * dim).map(|i| (product(&w[i / dim], &w[i % dim]) as f32).into()).collect()
    };
    (0..n_heads).map(of_head).collect()
}

#[test]
fn scores_without_queries_agree_with_the_reference() {
    let (n, w, heads, dims) = (140, 5, (6, 3), (22, 17));
    let (cu, positions) = holes(n, w, heads.1, |h, p| h == 0 || !(p * 7 + h).is_multiple_of(3));
    let mut random = Random(9);
    let gram = grams(&mut random, heads.1, dims.1);
    let centre: Vec<Vec<f64>> = (0..heads.1).map(|_| random.reals(dims.1, 1.0)).collect();
    let centre: Vec<Vec<f64>> =
        centre.iter().map(|o| o.iter().map(|&x| (x as f32).into()).collect()).collect();
    let asked = Data::new(&mut random, Dtype::F32, (60, heads.0, dims.0), 2.0);
    let frequencies: Vec<f32> = (0..9).map(|i| 0.6f32.powi(i)).collect();
    let narrow = |all: &[Vec<f64>]| all.concat().iter().map(|&x| x as f32).collect::<Vec<f32>>();
    for (style, sliding_window, ragged) in [
        (RopeStyle::Pairs, None, false),
        (RopeStyle::Halves, Some(40), false),
        (RopeStyle::Pairs, None, true),
        (RopeStyle::Halves, Some(40), true),
    ] {
        let shape = Shape { sliding_window, ..shape(n, heads, dims, w) };
        let shape = if ragged { shape.with_rows(&cu, &positions) } else { shape };
        let rope = Rope { frequencies: &frequencies, style, magnitude: 1.1 };
        let (mut mean, mut covariance) = (vec![0.0; 6 * 22], vec![0.0; 6 * 22 * 22]);
        let mut out = score::QueryStatistics { mean: &mut mean, covariance: &mut covariance };
        score::query_statistics(&shape, &rope, 60, &asked.view(), 140, 31, &mut out).unwrap();
        let statistics = reference::query_statistics(&rope, 140..171, &asked.values);
        for (h, (of_mean, of_covariance)) in statistics.iter().enumerate() {
            let near = |got: &[f64], want: &[f64]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(near(&mean[h * 22..], of_mean) && near(&covariance[h * 22 * 22..], of_covariance));
        }
        for dtype in [Dtype::F32, Dtype::F16] {
            let layer = Layer::random(&shape, [dtype; 3], 4);
            let (k, v) = (layer.k.view(), layer.v.view());
            let n_scores = shape.n_scores() as usize;
            for n_parts in [1, 2, 5] {
                let parts = |f: &mut dyn FnMut(usize, &mut [f32]) -> Result<()>| {
                    let mut all = vec![f32::NAN; n_scores];
                    for part in 0..n_parts {
                        let first =
                            shape.first_score(score::part_heads(&shape, part, n_parts).unwrap().start);
                        f(part, &mut all[first..]).unwrap();
                    }
                    all
                };
                let what = format!("{style:?} {sliding_window:?} {ragged} {dtype:?}");
                let got = parts(&mut |part, out| score::score_keys(&shape, &k, part, n_parts, out));
                let want = reference::key_differences(&shape, &layer.k.values).concat();
                assert_near(&got, &want, 1e-6, &what);

                let (g, o) = (narrow(&gram), narrow(&centre));
                let got = parts(&mut |part, out| {
                    score::value_norms(&shape, Some(&g), Some(&o), &v, part, n_parts, out)
                });
                let want = reference::value_norms(&shape, &gram, &centre, &layer.v.values).concat();
                assert_near(&got, &want, 1e-4, &what);
                let got =
                    parts(&mut |part, out| score::value_norms(&shape, None, None, &v, part, n_parts, out));
                let unit: Vec<f64> = (0..17 * 17).map(|i| (i % 18 == 0) as u8 as f64).collect();
                let (unit, zero) = (vec![unit; heads.1], vec![vec![0.0; 17]; heads.1]);
                let want = reference::value_norms(&shape, &unit, &zero, &layer.v.values).concat();
                assert_near(&got, &want, 1e-5, &what);

                for (scale, scatter) in [(None, true), (Some(0.1), true), (None, false)] {
                    let mut logits = vec![0.0; n];
                    let scatters = scatter.then_some(&covariance[..]);
                    let got = parts(&mut |part, out| {
                        score::score_expected(
                            &shape,
                            scale,
                            &mean,
                            scatters,
                            &k,
                            part,
                            n_parts,
                            &mut logits,
                            out,
                        )
                    });
                    let known: Vec<_> = (statistics.iter().cloned())
                        .map(|(mean, c)| (mean, if scatter { c } else { vec![0.0; 22 * 22] }))
                        .collect();
                    let want = reference::expected_attention(&shape, scale, &known, &layer.k.values).concat();
                    assert_near(&got, &want, 1e-7, &what);
                }
            }
        }
    }
}

/// The largest difference is at most so much.
fn assert_near(got: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((*got as f64 - want).abs() <= bound, "{what}: {i} is {got}, not {want}");
    }
}

#[test]
fn faults_of_scores_without_queries() {
    let shape = shape(6, (2, 2), (2, 2), 1);
    let kind = |outcome: Result<()>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.layer, Some(3));
        (error.kind, error.argument, error.head)
    };
    let mut layer = Layer::random(&shape, [Dtype::F32; 3], 1);
    let mut out = [0.0; 10];
    let (mean, mut logits) = ([1.0; 4], [0.0; 5]);
    {
        let (k, v) = (layer.k.view(), layer.v.view());
        let few = &mut [0.0; 9];
        let small = (ErrorKind::BufferSize, c"scores", None);
        assert_eq!(kind(score::score_keys(&shape, &k, 0, 1, few)), small);
        let gram = |n| vec![1.0f32; n];
        let norms =
            |gram: &[f32], out: &mut [f32]| kind(score::value_norms(&shape, Some(gram), None, &v, 0, 1, out));
        assert_eq!(norms(&gram(7), &mut out), (ErrorKind::BufferSize, c"gram", Some(0)));
        assert_eq!(norms(&[1.0, 0.0, 0.0, 1.0, f32::NAN, 0.0, 0.0, 1.0], &mut out).2, Some(1));
        let mut expect = |scale, mean: &[f64], logits: &mut [f64]| {
            kind(score::score_expected(&shape, scale, mean, None, &k, 0, 1, logits, &mut out))
        };
        for scale in [0.0, -1.0, f32::NAN] {
            assert_eq!(expect(Some(scale), &mean, &mut logits).0, ErrorKind::Argument);
        }
        assert_eq!(expect(None, &mean[1..], &mut logits), (ErrorKind::BufferSize, c"mean", Some(0)));
        assert_eq!(expect(None, &mean, &mut [0.0; 4]), (ErrorKind::BufferSize, c"logits", Some(0)));
        assert_eq!(expect(None, &[1.0, f64::INFINITY, 1.0, 1.0], &mut logits).1, c"mean");
    }
    // Token-major: row 2 of head 1.
    layer.k.f32[(2 * 2 + 1) * 2] = f32::NAN;
    let k = layer.k.view();
    assert_eq!(kind(score::score_keys(&shape, &k, 0, 1, &mut out)), (ErrorKind::NonFinite, c"k", Some(1)));
    let asked = score::score_expected(&shape, None, &mean, None, &k, 0, 1, &mut logits, &mut out);
    assert_eq!(kind(asked), (ErrorKind::NonFinite, c"k", Some(1)));
}

/// Scores and what they are raised by, which have many equals so that ties matter; dead rows have none.
fn scores_with_ties(shape: &Shape, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random(seed);
    let mut of_row = |live: bool| if live { (random.real().abs() * 8.0).floor() as f32 / 4.0 } else { 0.0 };
    (0..shape.n_kv_heads)
        .map(|h| (0..shape.prefix_rows(h)).map(|i| of_row(shape.live(h).contains(&i))).collect())
        .collect()
}

#[test]
fn the_first_by_another_score_get_the_largest() {
    let (n, w, heads) = (120, 5, 3);
    let (cu, positions) = holes(n, w, heads, |h, p| h == 0 || !(p * 7 + h).is_multiple_of(3));
    for (sliding_window, ragged) in [(None, false), (Some(40), false), (None, true), (Some(40), true)] {
        let shape = Shape { sliding_window, ..shape(n, (heads, heads), (1, 1), w) };
        let shape = if ragged { shape.with_rows(&cu, &positions) } else { shape };
        let (scores, by) = (scores_with_ties(&shape, 1), scores_with_ties(&shape, 2));
        let largest = scores.concat().iter().fold(0.0f32, |m, &s| m.max(s));
        for share in [1e-9, 0.3, 0.9, 1.0, f64::INFINITY] {
            for most in [None, Some([0u32, 1, 9]), Some([30, u32::MAX, 2])] {
                let mut got = scores.concat();
                adjust::raise(&shape, &by.concat(), share, most.as_ref().map(|m| &m[..]), &mut got).unwrap();
                let mut want = scores.clone();
                for h in 0..heads {
                    let exact: Vec<f64> = by[h].iter().map(|&x| x.into()).collect();
                    let most = most.map_or(usize::MAX, |most| most[h] as usize);
                    for i in reference::first_rows(&shape, h, &exact, share, most) {
                        want[h][i] = largest;
                    }
                }
                assert_eq!(got, want.concat(), "{share} {most:?} {shape:?}");
            }
        }
    }
}

#[test]
fn faults_of_raising_leave_the_scores() {
    let shape = shape(4, (2, 2), (1, 1), 1);
    let fault = |by: &[f32], share: f64, most: Option<&[u32]>| {
        let mut own = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let error = adjust::raise(&shape, by, share, most, &mut own).unwrap_err();
        assert_eq!((error.layer, own), (Some(3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        (error.kind, error.argument, error.head)
    };
    for share in [0.0, -1.0, f64::NAN] {
        assert_eq!(fault(&[1.0; 6], share, None), (ErrorKind::Argument, c"share", None));
    }
    assert_eq!(fault(&[1.0; 5], 0.5, None), (ErrorKind::BufferSize, c"by", None));
    assert_eq!(fault(&[1.0; 6], 0.5, Some(&[1])), (ErrorKind::BufferSize, c"most", None));
    let nan = [1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0];
    assert_eq!(fault(&nan, 0.5, None), (ErrorKind::NonFinite, c"by", Some(1)));
    assert_eq!(fault(&[0.0, -0.5, 1.0, 1.0, 1.0, 1.0], 0.5, None), (ErrorKind::Argument, c"by", Some(0)));
    let mut own = [1.0, 2.0, f32::NAN, 4.0, 5.0, 6.0];
    let error = adjust::raise(&shape, &[1.0; 6], 0.5, None, &mut own).unwrap_err();
    assert_eq!((error.kind, error.argument, error.head), (ErrorKind::NonFinite, c"scores", Some(0)));
    assert_eq!(adjust::raise(&Shape { n_tokens: 1, ..shape }, &[], 0.5, None, &mut []), Ok(()));
    // Nothing holds a share of nothing; minus zero is zero.
    let mut own = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    adjust::raise(&shape, &[0.0, -0.0, 0.0, 0.0, 0.0, 0.0], 0.5, None, &mut own).unwrap();
    assert_eq!(own, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    adjust::raise(&shape, &[0.0, -0.0, 0.0, -0.0, 0.0, 0.0], 1.0, Some(&[1, 1]), &mut own).unwrap();
    assert_eq!(own, [6.0, 2.0, 3.0, 6.0, 5.0, 6.0]);
}

fn picked(shape: &Shape, q: &Data, n_rows: usize, n_picked: usize) -> Result<(Vec<f32>, Vec<u32>)> {
    let (mut novelty, mut picked) = (vec![f32::NAN; n_rows], vec![u32::MAX; n_picked]);
    pick_queries(shape, n_rows, &q.view(), &mut novelty, &mut picked).map(|()| (novelty, picked))
}

#[test]
fn each_stretch_gives_its_most_novel_query() {
    for (n, heads, dim) in [(1, 1, 1), (7, 2, 3), (100, 6, 24), (101, 3, 64), (64, 9, 576)] {
        let shape = shape(1, (heads, 1), (dim, 1), 1);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let q = Data::new(&mut Random(n as u64), dtype, (n, heads, dim), 2.0);
            let want = reference::novelty(&q.values);
            for n_picked in [1, n.div_ceil(3), n] {
                let (novelty, rows) = picked(&shape, &q, n, n_picked).unwrap();
                for (got, want) in novelty.iter().zip(&want) {
                    assert!((*got as f64 - want).abs() < 1e-6 * heads as f64, "{got}, not {want}");
                }
                for (i, &row) in rows.iter().enumerate() {
                    let stretch = i * n / n_picked..(i + 1) * n / n_picked;
                    assert!(stretch.contains(&(row as usize)));
                    assert!(stretch.clone().all(|j| novelty[j] <= novelty[row as usize]));
                    assert!(stretch.start == row as usize || novelty[row as usize] > novelty[stretch.start]);
                }
            }
        }
    }
}

/// The one query that looks elsewhere is found; of equals the first is taken; a query of zeros looks for nothing.
#[test]
fn picked_queries_by_hand() {
    let shape = shape(1, (1, 1), (2, 1), 1);
    let rows = [[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]];
    let q = Data::of(Dtype::F32, &vec![rows.map(Vec::from).to_vec()], false);
    let (novelty, rows) = picked(&shape, &q, 6, 2).unwrap();
    // The mean is (5, 3) / 6; rows 3 and 4 are alike, and row 5 has no direction.
    let (along, across) = (-(5.0 / 34f64.sqrt()) as f32, -(3.0 / 34f64.sqrt()) as f32);
    assert_eq!(rows, [2, 5]);
    for (got, want) in novelty.iter().zip([along, along, across, along, along, 0.0]) {
        assert!((got - want).abs() < 1e-6);
    }
    assert_eq!(picked(&shape, &q, 5, 2).unwrap().1, [0, 2]);
    assert_eq!(picked(&shape, &q, 5, 5).unwrap().1, [0, 1, 2, 3, 4]);
}

#[test]
fn faults_of_picking_leave_the_rows() {
    let shape = shape(1, (2, 1), (2, 1), 1);
    let q = Data::new(&mut Random(1), Dtype::F32, (6, 2, 2), 1.0);
    let fault = |shape: &Shape, q: &Data, n_rows, n_picked| {
        let (mut novelty, mut picked) = (vec![0.0; 6], vec![7; n_picked]);
        let error = pick_queries(shape, n_rows, &q.view(), &mut novelty, &mut picked).unwrap_err();
        assert!(error.layer == Some(3) && picked.iter().all(|&p| p == 7));
        (error.kind, error.argument)
    };
    assert_eq!(fault(&shape, &q, 0, 1), (ErrorKind::Shape, c"n_rows"));
    assert_eq!(fault(&shape, &q, 6, 0), (ErrorKind::Argument, c"n_picked"));
    assert_eq!(fault(&shape, &q, 4, 5), (ErrorKind::Argument, c"n_picked"));
    assert_eq!(fault(&shape, &q, 7, 1), (ErrorKind::BufferSize, c"novelty"));
    assert_eq!(fault(&Shape { n_q_heads: 3, ..shape }, &q, 6, 1), (ErrorKind::Shape, c"q"));
    for bad in [f64::NAN, f64::INFINITY] {
        let mut values = q.values.clone();
        values[1][4][1] = bad;
        let q = Data::of(Dtype::F32, &values, false);
        assert_eq!(fault(&shape, &q, 6, 1), (ErrorKind::NonFinite, c"q"));
    }
}

fn turned(shape: &Shape, rope: &Rope, position: u32, q: &Data) -> Result<Vec<f32>> {
    let (heads, dim, n) = (shape.n_q_heads, shape.head_dim_k, q.values[0].len());
    let mut out = vec![f32::NAN; n * heads * dim];
    let (strides, rows) = (Strides::token_major(heads, dim), Rows::Same(n));
    let mut view = TensorMut::from_slice(&mut out, strides, rows, heads, dim).unwrap();
    rope::rotate(shape, rope, n, position, &q.view(), &mut view)?;
    Ok(out)
}

#[test]
fn queries_are_turned_as_the_reference_does() {
    for (dim, n_pairs) in [(2, 1), (16, 8), (16, 5), (64, 16), (576, 288), (7, 3), (8, 0)] {
        let frequencies: Vec<f32> = (0..n_pairs).map(|i| 1e4f32.powf(-(i as f32) / n_pairs as f32)).collect();
        let shape = shape(1, (3, 1), (dim, 1), 1);
        for style in [RopeStyle::Pairs, RopeStyle::Halves] {
            for (position, magnitude) in [(0, 1.0), (1, 1.2), (4095, 1.0), (131_072, 0.7), (u32::MAX, 1.0)] {
                for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                    let rope = Rope { frequencies: &frequencies, style, magnitude };
                    let q = Data::new(&mut Random(dim as u64), dtype, (4, 3, dim), 2.0);
                    let got = turned(&shape, &rope, position, &q).unwrap();
                    for (i, got) in got.chunks(dim).enumerate() {
                        let want = reference::rotated(&rope, position, &q.values[i % 3][i / 3]);
                        for (got, want) in got.iter().zip(want) {
                            assert!((*got as f64 - want).abs() <= 1e-6, "{got} {want} {dim} {style:?}");
                        }
                    }
                }
            }
        }
    }
    // A logit depends on how far apart the two are.
    let shape = shape(1, (1, 1), (32, 1), 1);
    let frequencies: Vec<f32> = (0..16).map(|i| 1e4f32.powf(-(i as f32) / 16.0)).collect();
    let [q, k] = [1, 2].map(|seed| Data::new(&mut Random(seed), Dtype::F32, (1, 1, 32), 1.0));
    for style in [RopeStyle::Pairs, RopeStyle::Halves] {
        let rope = Rope { frequencies: &frequencies, style, magnitude: 1.0 };
        let logit = |p: u32, r: u32| {
            let (q, k) = (turned(&shape, &rope, p, &q).unwrap(), turned(&shape, &rope, r, &k).unwrap());
            q.iter().zip(&k).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((logit(1000, 900) - logit(100, 0)).abs() < 1e-4);
    }
}

#[test]
fn faults_of_turning_name_the_layer() {
    let shape = shape(1, (2, 1), (8, 1), 1);
    let q = Data::new(&mut Random(1), Dtype::F32, (2, 2, 8), 1.0);
    let good = Rope { frequencies: &[1.0, 0.1], style: RopeStyle::Pairs, magnitude: 1.0 };
    let fault = |shape: &Shape, rope: &Rope| {
        let error = turned(shape, rope, 1, &q).unwrap_err();
        assert_eq!(error.layer, Some(3));
        (error.kind, error.argument)
    };
    assert!(turned(&shape, &good, 1, &q).is_ok());
    assert_eq!(fault(&shape, &Rope { frequencies: &[1.0; 5], ..good }), (ErrorKind::Shape, c"n_rot"));
    let bad = Rope { frequencies: &[1.0, f32::NAN], ..good };
    assert_eq!(fault(&shape, &bad), (ErrorKind::NonFinite, c"frequencies"));
    for magnitude in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_eq!(fault(&shape, &Rope { magnitude, ..good }), (ErrorKind::Argument, c"magnitude"));
    }
    assert_eq!(fault(&Shape { n_q_heads: 3, ..shape }, &good), (ErrorKind::Shape, c"q"));
}
