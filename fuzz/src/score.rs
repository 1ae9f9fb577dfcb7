//! Every backend's scores against the f64 reference; the C function gives the best backend's bits, in any split.

use crate::choices::Choices;
use crate::memory::{Block, Side};
use crate::tensors::{DTYPES, Laid, contents, side};
use lava::ffi::*;
use lava::score::{self, ScoreInputs};
use lava::workspace::Carver;
use lava::*;
use std::ptr::null;

/// A layer with its options.
struct Case {
    dense: Shape<'static>,
    /// Prefix sum and positions of a cache that has been compressed before.
    rows: Option<(Block, Block)>,
    plain: ScoreParams<'static>,
    sinks: Option<Block>,
    weights: Option<Block>,
    q: Laid,
    k: Laid,
    v: Laid,
    lse: Option<Laid>,
}

/// Small, with a few around the sizes from which exponentials are stored, those of one head or of its whole group.
fn sizes(c: &mut Choices) -> Shape<'static> {
    let wide = c.rarely(128);
    let (n_kv_heads, group) = (if wide { 16 } else { c.within(1..=2) }, c.within(1..=3));
    let dim = |c: &mut Choices| match c.below(16) {
        _ if c.rarely(16) => c.within(1..=130),
        0 => c.pick(&[16, 32, 64]),
        _ => c.within(1..=10),
    };
    let (dims, prefix) = if wide {
        ((c.within(12..=20), c.within(50..=70)), c.within(60..=100))
    } else {
        ((dim(c), dim(c)), c.below(30))
    };
    let prefix = if !wide && c.rarely(32) { c.within(0..=300) } else { prefix };
    let window = if c.once_in(8) { c.within(1..=34) } else { c.within(1..=5) };
    let shape = Shape::dense(prefix + window, n_kv_heads * group, n_kv_heads, dims.0, dims.1, window);
    let sliding_window = if c.coin() { None } else { Some(c.within(1..=60)) };
    Shape { layer: c.byte() as u32, sliding_window, ..shape }
}

fn options(c: &mut Choices) -> ScoreParams<'static> {
    ScoreParams {
        scale: c.pick(&[None, None, Some(0.3), Some(-0.7), Some(1e-30)]),
        softcap: c.pick(&[None, None, Some(0.5), Some(30.0)]),
        pool: c.pick(&[Pool::Max, Pool::Avg, Pool::After]),
        pool_kernel: c.pick(&[1, 3, 7, 7, 9, 63, 127]),
        group_reduce: c.pick(&[GroupReduce::Max, GroupReduce::Mean]),
        value_span: c.pick(&[ValueSpan::Prefix, ValueSpan::All]),
        ..scorer(c)
    }
}

/// One of the frame's statistics and value weights, LAVa's most often.
fn scorer(c: &mut Choices) -> ScoreParams<'static> {
    let (attention, value_weight) = c.pick(&[
        (Attention::Mean, ValueWeight::HeadMax),
        (Attention::Mean, ValueWeight::HeadMax),
        (Attention::Mean, ValueWeight::HeadMax),
        (Attention::Mean, ValueWeight::Token),
        (Attention::Squared, ValueWeight::None),
        (Attention::MeanVariance, ValueWeight::HeadMax),
        (Attention::Exponential, ValueWeight::HeadMax),
        (Attention::Recency, ValueWeight::None),
        (Attention::Max, ValueWeight::TokenL2),
        (Attention::Max, ValueWeight::None),
        (Attention::Squared, ValueWeight::TokenL2),
        (Attention::Norm4, ValueWeight::HeadMeanL2),
        (Attention::Mean, ValueWeight::HeadMeanL2),
    ]);
    let (gamma, decay) = (c.pick(&[0.0, 1.0, 200.0]), c.pick(&[0.3, 1.0]));
    let smoothing = c.pick(&[0.0, 0.0, 1.0]);
    ScoreParams { attention, value_weight, gamma, decay, smoothing, ..ScoreParams::lava() }
}

impl Case {
    fn new(c: &mut Choices) -> Self {
        let (dense, plain) = (sizes(c), options(c));
        let Shape { n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window, .. } = dense;
        let rows = c.once_in(4).then(|| compressed(c, &dense));
        let sinks = c.once_in(4).then(|| {
            let logits: Vec<f32> = (0..n_q_heads).map(|_| c.pick(&[-3.0, 0.0, 0.5, 4.0, 30.0])).collect();
            Block::of(&logits, side(c))
        });
        let weights = c.once_in(4).then(|| {
            let weights: Vec<f32> = (0..n_q_heads).map(|_| c.pick(&[0.0, 0.01, 0.5, 1.0, 7.0])).collect();
            Block::of(&weights, side(c))
        });
        let (shape, params) = (with_rows(dense, &rows), with_arrays(plain, &sinks, &weights));
        let same = c.coin();
        let of_all = c.pick(&DTYPES);
        let tensor = |c: &mut Choices, rows: &[usize], dim: usize| {
            let dtype = if same { of_all } else { c.pick(&DTYPES) };
            let mut next = contents(c);
            Laid::new(c, dtype, rows, dim, |_, _, _| next())
        };
        let of_cache: Vec<usize> = (0..n_kv_heads).map(|h| shape.rows(h)).collect();
        let q = tensor(c, &vec![window; n_q_heads], head_dim_k);
        let k = tensor(c, &of_cache, head_dim_k);
        let v = tensor(c, &of_cache, head_dim_v);
        let lse = c.once_in(3).then(|| {
            let lse = reference::log_sum_exp(&shape, &params, &q.values, &k.values);
            Laid::new(c, Dtype::F32, &vec![window; n_q_heads], 1, |j, h, _| lse[h][j] as f32)
        });
        Self { dense, rows, plain, sinks, weights, q, k, v, lse }
    }

    fn shape(&self) -> Shape<'_> {
        with_rows(self.dense, &self.rows)
    }

    fn params(&self) -> ScoreParams<'_> {
        with_arrays(self.plain, &self.sinks, &self.weights)
    }

    fn tensors(&self) -> [&Laid; 3] {
        [&self.q, &self.k, &self.v]
    }

    /// By the Rust function, all heads at once.
    fn by(&self, backend: Backend, side: Side) -> Result<Vec<f32>> {
        let (shape, params) = (&self.shape(), &self.params());
        let of_cache = shape.ragged.map_or(Rows::Same(shape.n_tokens), |rows| Rows::Cu(rows.cu_rows));
        let inputs = ScoreInputs {
            q: self.q.view(Rows::Same(shape.window)),
            k: self.k.view(of_cache),
            v: self.v.view(of_cache),
            lse: self.lse.as_ref().map(|lse| lse.view(Rows::Same(shape.window))),
        };
        let workspace = Block::new(score::workspace_size(shape, params)?, side);
        let scores = Block::new(shape.n_scores() as usize * 4, side);
        let mut carver = Carver::over(workspace.slice_mut())?;
        score::score(backend, shape, params, &inputs, 0, 1, &mut carver, scores.slice_mut())?;
        Ok(scores.to_vec())
    }

    /// Those scores joined with what the same queries find from behind the prompt, all heads at once.
    fn joined(&self, backend: Backend, side: Side, scores: &[f32]) -> Result<Vec<f32>> {
        let (shape, params) = (&self.shape(), &self.params());
        let of_cache = shape.ragged.map_or(Rows::Same(shape.n_tokens), |rows| Rows::Cu(rows.cu_rows));
        let n = shape.window;
        let [q, k, v] = [self.q.view(Rows::Same(n)), self.k.view(of_cache), self.v.view(of_cache)];
        let inputs = ScoreInputs { q, k, v, lse: None };
        let workspace = Block::new(score::queries_workspace_size(shape, params, n)?, side);
        let scores = Block::of(scores, side);
        let mut carver = Carver::over(workspace.slice_mut())?;
        score::score_queries(backend, shape, params, n, &inputs, 0, 1, &mut carver, scores.slice_mut())?;
        Ok(scores.to_vec())
    }

    /// By the C function, in parts from the last to the first or the other way round.
    fn by_c(&self, c: &mut Choices, n_parts: u32) -> (lava_status, lava_error, Vec<f32>) {
        let shape = c_shape(&self.shape());
        let params = c_score_params(&self.params());
        let (tensors, lse) = (self.tensors().map(Laid::c), self.lse.as_ref().map(Laid::c));
        let scores = Block::new(self.shape().n_scores() as usize * 4, side(c));
        let mut error = no_error();
        let mut size = 0;
        // SAFETY: all memory is as large as the header asks.
        unsafe {
            assert_eq!(lava_score_workspace_size(&shape, &params, &mut size, &mut error), LAVA_OK);
            let forwards = c.coin();
            for i in 0..n_parts {
                let part = if forwards { i } else { n_parts - 1 - i };
                let workspace = Block::new(size, side(c));
                let [q, k, v] = &tensors;
                let lse = lse.as_ref().map_or(null(), |lse| lse);
                let status = lava_score(
                    &shape,
                    &params,
                    q,
                    k,
                    v,
                    lse,
                    part,
                    n_parts,
                    workspace.ptr(),
                    size,
                    scores.ptr(),
                    &mut error,
                );
                if status != LAVA_OK {
                    return (status, error, vec![]);
                }
            }
        }
        (LAVA_OK, error, scores.to_vec())
    }

    /// Largest Σ|q·k| of a logit, scaled.
    fn largest_logit(&self) -> f64 {
        let (q, k) = (&self.q.values, &self.k.values);
        let group = self.dense.group_size();
        let scale = self.plain.scale.map_or(1.0 / (self.dense.head_dim_k as f64).sqrt(), f64::from).abs();
        let of = |q: &[f64], k: &[f64]| q.iter().zip(k).map(|(a, b)| (a * b).abs()).sum::<f64>() * scale;
        let of_head = |h: usize| q[h].iter().flat_map(move |q| k[h / group].iter().map(move |k| of(q, k)));
        let sinks = self.sinks.as_ref().map_or(vec![], |sinks| sinks.to_vec::<f32>());
        let sinks = sinks.into_iter().map(|s| s.abs() as f64);
        (0..q.len()).flat_map(of_head).chain(sinks).fold(0.0, f64::max)
    }

    fn check(&self, c: &mut Choices) {
        let (shape, params) = (&self.shape(), &self.params());
        let want = reference::scores(shape, params, &self.q.values, &self.k.values, &self.v.values).concat();
        // A logit is a sum of d products in f32; the log-sum-exp is rounded to f32 too. Each moves an exponential by as much, the
        // attention by both, and a stored one is off by 3.8e-6 at most.
        let largest_logit = self.largest_logit().max(params.softcap.unwrap_or(0.0) as f64);
        let logit_error =
            (shape.head_dim_k + 8) as f64 * 0.5f64.powi(24) * (largest_logit + (shape.n_tokens as f64).ln());
        // An exponential's relative error goes twice into its square. A variance is a difference of two sums of squares over w - 1, and they
        // are at most w times the mean: however small it is, it is off by 8 times the mean's error, if w is 2, and gamma multiplies that.
        let kind = match params.attention {
            Attention::Squared => 2.0,
            Attention::MeanVariance => 1.0 + 8.0 * params.gamma as f64,
            _ => 1.0,
        };
        let error = kind * (1e-5 + 4.0 * logit_error);
        let largest = want.iter().copied().fold(0.0, f64::max);
        // Of a 4-norm, attention below 2^-31 counts as none: no query's part of it, whatever the head counts and its values are.
        let least = match params.attention {
            Attention::Norm4 => {
                let l2 = |v: &Vec<f64>| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                let value = self.v.values.iter().flatten().map(l2).fold(1.0, f64::max);
                let head = params.query_head_weights.map_or(1.0, |w| w.iter().fold(1.0f32, |m, &x| m.max(x)));
                let parts = (shape.window as f64).sqrt().sqrt() * (1.0 + params.smoothing as f64);
                0.5f64.powi(31) * parts * value * head as f64
            }
            _ => 0.0,
        };
        let backend = any_backend(c);
        let got = self.by(backend, side(c)).expect("valid input");
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            assert!(got.is_finite() && got >= 0.0, "{} entry {i}: {got}", backend.name());
            assert!(
                (got as f64 - want).abs() <= error * largest + least + 1e-35,
                "{} entry {i}: {got} for {want}, {shape:?} {:?}",
                backend.name(),
                params
            );
        }
        if params.smoothing == 0.0 {
            let values = [&self.q.values, &self.k.values, &self.v.values];
            let asked = reference::scores_by_queries(shape, params, values[0], values[1], values[2]).concat();
            let joined = self.joined(backend, side(c), &got).expect("valid input");
            let largest = asked.iter().copied().fold(largest, f64::max);
            for (i, (&joined, (asked, want))) in joined.iter().zip(asked.iter().zip(&want)).enumerate() {
                assert!(
                    (joined as f64 - asked.max(*want)).abs() <= error * largest + least + 1e-35,
                    "{} entry {i}, joined: {joined} for {asked} and {want}, {shape:?} {params:?}",
                    backend.name()
                );
            }
        }
        if !is_best(backend) {
            return;
        }
        let best = got;
        let n_parts = c.within(1..=shape.n_kv_heads + 2) as u32;
        let (status, error, got) = self.by_c(c, n_parts);
        assert_eq!((status, error.status), (LAVA_OK, LAVA_OK));
        assert!(
            got.iter().zip(&best).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{n_parts} parts, other bits"
        );
    }

    /// One element that is not finite is found, by every backend, with its layer and its head.
    fn check_nonfinite(&self, c: &mut Choices) {
        let bad = c.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        let laid = self.tensors()[c.below(3)];
        let (h, e) = (c.below(laid.rows.len()), c.below(laid.dim));
        let row = c.below(laid.rows[h]);
        laid.set(row, h, e, bad);
        let shape = self.shape();
        let head = (h / (laid.rows.len() / shape.n_kv_heads)) as u32;
        // What is not needed is not looked at.
        let is_values = std::ptr::eq(laid, self.tensors()[2]);
        let is_needed = match is_values {
            true => self.plain.value_weight != ValueWeight::None,
            false => self.plain.attention != Attention::Recency,
        };
        // Rows that no query sees are not looked at, nor all values of the others: such a number may be found, but need not be.
        let may_be_dead = shape.sliding_window.is_some();
        if shape.live(head as usize).is_empty() || may_be_dead || !is_needed {
            return;
        }
        let backend = any_backend(c);
        let error = self.by(backend, side(c)).expect_err("NaN and infinity are refused");
        assert_eq!(
            (error.kind, error.head, error.layer),
            (ErrorKind::NonFinite, Some(head), Some(shape.layer)),
            "{}",
            backend.name()
        );
        let (status, error, _) = self.by_c(c, 1);
        assert_eq!((status, error.head, error.layer), (LAVA_ERR_NONFINITE, head, shape.layer));
    }

    /// Numbers so large that sums overflow: refused, or valid scores.
    fn check_large(&self, c: &mut Choices) {
        let huge = c.pick(&[6e4, 1e18, 2e19, 3e38]);
        for laid in self.tensors() {
            let sign = if c.coin() { 1.0 } else { -1.0 };
            if c.coin() && laid.dtype != Dtype::F16 {
                (0..laid.dim).for_each(|e| laid.set(0, 0, e, huge * sign));
            }
        }
        let backend = any_backend(c);
        match self.by(backend, side(c)) {
            Ok(scores) => {
                assert!(scores.iter().all(|s| s.is_finite() && *s >= 0.0), "{}", backend.name())
            }
            // The earlier log-sum-exp is refused, if nothing else is.
            Err(error) if self.lse.is_some() => {
                assert!(matches!(error.kind, ErrorKind::NonFinite | ErrorKind::Argument))
            }
            Err(error) => assert_eq!(error.kind, ErrorKind::NonFinite),
        }
    }
}

/// Rows and positions of a cache from which each head has lost some of its prefix.
pub fn compressed(c: &mut Choices, shape: &Shape) -> (Block, Block) {
    let mut random = c.random();
    let (mut cu, mut positions) = (vec![0u32], vec![]);
    for _ in 0..shape.n_kv_heads {
        let keep = random.below(5);
        positions.extend((0..shape.prefix_len() as u32).filter(|_| random.below(4) < keep));
        positions.extend(shape.prefix_len() as u32..shape.n_tokens as u32);
        cu.push(positions.len() as u32);
    }
    (Block::of(&cu, side(c)), Block::of(&positions, side(c)))
}

fn with_rows<'a>(shape: Shape<'static>, rows: &'a Option<(Block, Block)>) -> Shape<'a> {
    rows.as_ref().map_or(shape, |(cu, positions)| shape.with_rows(cu.slice(), positions.slice()))
}

fn with_arrays<'a>(
    params: ScoreParams<'static>,
    sinks: &'a Option<Block>,
    weights: &'a Option<Block>,
) -> ScoreParams<'a> {
    let sink_logits = sinks.as_ref().map(|sinks| sinks.slice());
    ScoreParams { sink_logits, query_head_weights: weights.as_ref().map(|weights| weights.slice()), ..params }
}

/// One of those that this machine can run; the best as often as all together.
pub fn any_backend(c: &mut Choices) -> Backend {
    let all: Vec<Backend> = Backend::all().collect();
    if c.coin() { Backend::detect() } else { c.pick(&all) }
}

/// Whether the C functions use it.
pub fn is_best(backend: Backend) -> bool {
    backend.name() == Backend::detect().name()
}

pub fn run(data: &[u8]) {
    let c = &mut Choices::new(data);
    let case = Case::new(c);
    let inputs = case.tensors().map(|t| t.block.bytes().to_vec());
    match c.below(8) {
        0 => return case.check_nonfinite(c),
        1 => return case.check_large(c),
        _ => case.check(c),
    }
    assert!(
        case.tensors().iter().zip(&inputs).all(|(t, before)| t.block.bytes() == before),
        "wrote an input"
    );
}

// The structs of the header, from those of Rust.

pub fn c_shape(shape: &Shape) -> lava_shape {
    lava_shape {
        struct_size: size_of::<lava_shape>() as u32,
        layer: shape.layer,
        n_tokens: shape.n_tokens as u32,
        n_q_heads: shape.n_q_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim_k: shape.head_dim_k as u32,
        head_dim_v: shape.head_dim_v as u32,
        window: shape.window as u32,
        sliding_window: shape.sliding_window.unwrap_or(0) as u32,
        reserved: 0,
        cu_rows: shape.ragged.map_or(null(), |rows| rows.cu_rows.as_ptr()),
        positions: shape.ragged.map_or(null(), |rows| rows.positions.as_ptr()),
    }
}

fn c_score_params(params: &ScoreParams) -> lava_score_params {
    lava_score_params {
        struct_size: size_of::<lava_score_params>() as u32,
        pool: params.pool as i32,
        pool_kernel: params.pool_kernel as u32,
        group_reduce: params.group_reduce as i32,
        value_span: params.value_span as i32,
        scale: params.scale.unwrap_or(0.0),
        softcap: params.softcap.unwrap_or(0.0),
        attention: params.attention as i32,
        value_weight: params.value_weight as i32,
        gamma: params.gamma,
        decay: params.decay,
        weight: params.weight,
        smoothing: params.smoothing,
        lse_base: params.lse_base as i32,
        backend: LAVA_BACKEND_BEST,
        reserved: 0,
        sink_logits: params.sink_logits.map_or(null(), |sinks| sinks.as_ptr()),
        query_head_weights: params.query_head_weights.map_or(null(), |weights| weights.as_ptr()),
    }
}

pub fn no_error() -> lava_error {
    lava_error {
        struct_size: size_of::<lava_error>() as u32,
        status: 0,
        layer: LAVA_NONE,
        head: LAVA_NONE,
        argument: null(),
        message: null(),
    }
}
