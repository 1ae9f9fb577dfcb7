//! Every backend's attention over a ragged cache against the f64 reference; the C function gives the best backend's bits, in any
//! split.

use crate::choices::Choices;
use crate::memory::Block;
use crate::score::{any_backend, c_shape, is_best, no_error};
use crate::tensors::{DTYPES, Laid, Layout, contents, side};
use lava::attend::{self, AttendInputs, AttendParams, Positions};
use lava::ffi::*;
use lava::workspace::Carver;
use lava::*;
use std::ptr::null;

struct Case {
    shape: Shape<'static>,
    n_queries: usize,
    sinks: Option<Block>,
    params: AttendParams<'static>,
    /// Positions: kept ones, their prefix sum, and where new rows begin.
    positions: Option<(Block, Block, u32)>,
    q: Laid,
    k: Laid,
    v: Laid,
    n_rows: Vec<u32>,
}

/// Where the results go.
struct Results {
    out: Laid,
    lse: Laid,
}

impl Results {
    fn nothing_between(&self) {
        for laid in [&self.out, &self.lse] {
            let outside = laid.element_bytes().into_iter().zip(laid.block.bytes()).filter(|(own, _)| !own);
            assert!({ outside }.all(|(_, &b)| b == crate::memory::POISON), "written between the elements");
        }
    }
}

impl Case {
    fn new(c: &mut Choices) -> Self {
        let (n_kv_heads, group) = (c.within(1..=2), c.within(1..=4));
        let dim = |c: &mut Choices| if c.rarely(16) { c.within(1..=130) } else { c.within(1..=12) };
        let n_new = if c.rarely(8) { c.within(1..=20) } else { c.within(1..=3) };
        let (layer, dims) = (c.byte() as u32, (dim(c), dim(c)));
        let shape = Shape::dense(1, n_kv_heads * group, n_kv_heads, dims.0, dims.1, 1);
        let sliding_window = if c.coin() { None } else { Some(c.within(1..=50)) };
        let shape = Shape { layer, sliding_window, ..shape };
        let params = AttendParams {
            scale: c.pick(&[None, None, Some(0.2), Some(-0.4)]),
            softcap: c.pick(&[None, None, Some(2.0), Some(40.0)]),
            causal: c.coin(),
            positions: None,
            ..AttendParams::default()
        };
        let least = if params.causal { n_new } else { 0 };
        let longest = if c.rarely(12) { 150 } else { 30 };
        let rows: Vec<usize> = (0..n_kv_heads).map(|_| least + c.below(longest)).collect();
        let n_rows = rows.iter().map(|&n| n as u32).collect();
        let tensor = |c: &mut Choices, rows: &[usize], dim: usize| {
            let (dtype, mut next) = (c.pick(&DTYPES), contents(c));
            Laid::new(c, dtype, rows, dim, |_, _, _| next())
        };
        let q = tensor(c, &vec![n_new; shape.n_q_heads], shape.head_dim_k);
        let (k, v) = (tensor(c, &rows, shape.head_dim_k), tensor(c, &rows, shape.head_dim_v));
        let positions = (sliding_window.is_some() || c.once_in(4)).then(|| {
            // Each head's first rows have kept positions, with holes; some heads have fewer rows than that.
            let (mut kept, mut cu, mut last) = (vec![], vec![0u32], 0);
            for &n in &rows {
                let mut at = c.below(4) as u32;
                for _ in 0..if c.once_in(8) { n + 2 } else { n - c.below(n + 1) } {
                    kept.push(at);
                    last = last.max(at);
                    at += 1 + c.below(6) as u32;
                }
                cu.push(kept.len() as u32);
            }
            (Block::of(&kept, side(c)), Block::of(&cu, side(c)), last + 1 + c.below(9) as u32)
        });
        let sinks = c.once_in(4).then(|| {
            let logits: Vec<f32> =
                (0..shape.n_q_heads).map(|_| c.pick(&[-3.0, 0.0, 0.5, 4.0, 30.0])).collect();
            Block::of(&logits, side(c))
        });
        Self { shape, n_queries: n_new, sinks, params, positions, q, k, v, n_rows }
    }

    fn results(&self, c: &mut Choices) -> Results {
        let rows = vec![self.n_queries; self.shape.n_q_heads];
        let mut empty = |dim| Laid::empty(Layout::any(c, &rows, dim), Dtype::F32, &rows, dim, side(c));
        Results { out: empty(self.shape.head_dim_v), lse: empty(1) }
    }

    /// By the Rust function, all heads at once.
    fn by(&self, backend: Backend, c: &mut Choices, to: &Results) -> Result<()> {
        let kept = self.positions.as_ref().map(|(kept, cu, n_base)| (kept.to_vec(), cu.to_vec(), *n_base));
        let positions = kept.as_ref().map(|(kept_indices, cu_kept, n_base)| Positions {
            kept_indices,
            cu_kept,
            n_base: *n_base,
        });
        let sink_logits = self.sinks.as_ref().map(|sinks| sinks.slice());
        let params = AttendParams { positions, sink_logits, ..self.params };
        let rows = Rows::PerHead(&self.n_rows);
        let new = Rows::Same(self.n_queries);
        let inputs = AttendInputs { q: self.q.view(new), k: self.k.view(rows), v: self.v.view(rows) };
        let workspace = Block::new(attend::workspace_size(&self.shape, self.n_queries)?, side(c));
        // SAFETY: the results' memory is written through these views only.
        let (mut out, mut lse) =
            unsafe { (TensorMut::from_tensor(to.out.view(new)), TensorMut::from_tensor(to.lse.view(new))) };
        let mut carver = Carver::over(workspace.slice_mut())?;
        attend::attend(
            backend,
            &self.shape,
            &params,
            self.n_queries,
            &inputs,
            &mut out,
            Some(&mut lse),
            0,
            1,
            &mut carver,
        )
    }

    fn by_c(&self, c: &mut Choices, to: &Results, n_parts: u32) -> (lava_status, lava_error) {
        let shape = c_shape(&self.shape);
        let params = lava_attend_params {
            struct_size: size_of::<lava_attend_params>() as u32,
            causal: self.params.causal as u32,
            scale: self.params.scale.unwrap_or(0.0),
            softcap: self.params.softcap.unwrap_or(0.0),
            n_base: self.positions.as_ref().map_or(0, |p| p.2),
            kept_indices: self.positions.as_ref().map_or(null(), |p| p.0.ptr::<u32>()),
            cu_kept: self.positions.as_ref().map_or(null(), |p| p.1.ptr::<u32>()),
            lse_base: self.params.lse_base as i32,
            backend: LAVA_BACKEND_BEST,
            reserved: 0,
            sink_logits: self.sinks.as_ref().map_or(null(), |sinks| sinks.ptr::<f32>()),
        };
        let n_queries = self.n_queries as u32;
        let [q, k, v, out, lse] = [&self.q, &self.k, &self.v, &to.out, &to.lse].map(Laid::c);
        let n_rows = Block::of(&self.n_rows, side(c));
        let mut error = no_error();
        let mut size = 0;
        let forwards = c.coin();
        // SAFETY: all memory is as large as the header asks.
        unsafe {
            assert_eq!(lava_attend_workspace_size(&shape, n_queries, &mut size, &mut error), LAVA_OK);
            for i in 0..n_parts {
                let part = if forwards { i } else { n_parts - 1 - i };
                let workspace = Block::new(size, side(c));
                let status = lava_attend(
                    &shape,
                    &params,
                    n_queries,
                    &q,
                    &k,
                    &v,
                    n_rows.ptr(),
                    &out,
                    &lse,
                    part,
                    n_parts,
                    workspace.ptr(),
                    size,
                    &mut error,
                );
                if status != LAVA_OK {
                    return (status, error);
                }
            }
        }
        (LAVA_OK, error)
    }

    /// Where row `r` of KV head `g` is in the text.
    fn position(&self, kept: &[u32], cu: &[u32], g: usize, r: usize) -> usize {
        let own = &kept[cu[g] as usize..cu[g + 1] as usize];
        let n_base = self.positions.as_ref().map_or(0, |p| p.2) as usize;
        own.get(r).map_or_else(|| n_base + r - own.len(), |&p| p as usize)
    }

    fn check(&self, c: &mut Choices) {
        let Shape { n_q_heads, head_dim_k: dk, head_dim_v: dv, .. } = self.shape;
        let n_new = self.n_queries;
        let (q, k, v) = (&self.q.values, &self.k.values, &self.v.values);
        let (kept, cu) = match &self.positions {
            Some((kept, cu, _)) => (kept.to_vec::<u32>(), cu.to_vec::<u32>()),
            None => (vec![], vec![]),
        };
        let (backend, results) = (any_backend(c), self.results(c));
        self.by(backend, c, &results).expect("valid input");
        let largest_value = v.iter().flatten().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
        let scale = self.params.scale.map_or(1.0 / (dk as f64).sqrt(), f64::from).abs();
        for (t, h) in (0..n_new).flat_map(|t| (0..n_q_heads).map(move |h| (t, h))) {
            let g = h / self.shape.group_size();
            let n = self.n_rows[g] as usize;
            let end = if self.params.causal { n - (n_new - 1 - t) } else { n };
            let near = |r: usize| {
                self.shape.sliding_window.is_none_or(|reach| {
                    let at = |r| self.position(&kept, &cu, g, r);
                    let own = if self.params.causal { at(end - 1) } else { at(n) + t };
                    at(r) + reach > own
                })
            };
            let rows: Vec<_> =
                (0..n).map(|r| (r < end && near(r)).then(|| (&k[g][r][..], &v[g][r][..]))).collect();
            let sink = self.sinks.as_ref().map(|sinks| sinks.slice::<f32>()[h]);
            let (want, want_lse) =
                reference::attend(&q[h][t], &rows, dv, self.params.scale, self.params.softcap, sink);
            let size = |k: &[f64]| q[h][t].iter().zip(k).map(|(a, b)| (a * b).abs()).sum::<f64>() * scale;
            let largest =
                rows.iter().flatten().map(|(k, _)| size(k)).fold(sink.unwrap_or(0.0).abs() as f64, f64::max);
            let largest = largest.max(self.params.softcap.unwrap_or(0.0) as f64) + (n as f64 + 1.0).ln();
            // As for scores; and a rounding for each row that is added up.
            let eps = 0.5f64.powi(24);
            let error = 1e-6 + 4.0 * (dk + 8) as f64 * eps * (largest + 1.0) + 2.0 * (n + 16) as f64 * eps;
            for (e, &want) in want.iter().enumerate() {
                let got = results.out.get(t, h, e) as f64;
                assert!(
                    (got - want).abs() <= error * largest_value + 1e-35,
                    "{}: query {t}, head {h}, {e}: {got} for {want}",
                    backend.name(),
                );
            }
            let got = results.lse.get(t, h, 0) as f64;
            assert!(
                got == want_lse || (got - want_lse).abs() <= error,
                "{}: query {t}, head {h}: lse {got} for {want_lse}",
                backend.name()
            );
        }
        results.nothing_between();
        if !is_best(backend) {
            return;
        }
        let to = self.results(c);
        let n_parts = c.within(1..=self.shape.n_kv_heads + 2) as u32;
        assert_eq!(self.by_c(c, &to, n_parts).0, LAVA_OK);
        for (t, h) in (0..n_new).flat_map(|t| (0..n_q_heads).map(move |h| (t, h))) {
            let bits = |to: &Results| {
                let values = (0..dv).map(|e| to.out.get(t, h, e)).chain([to.lse.get(t, h, 0)]);
                values.map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(&to), bits(&results), "{n_parts} parts: other bits");
        }
        to.nothing_between();
    }

    /// A row that a query sees and that is not finite is found.
    fn check_nonfinite(&self, c: &mut Choices) {
        let bad = c.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        let of_q = c.coin();
        let laid = if of_q { &self.q } else { c.pick(&[&self.k, &self.v]) };
        let (h, e) = (c.below(laid.rows.len()), c.below(laid.dim));
        let g = if of_q { h / self.shape.group_size() } else { h };
        // Without a window the last new query sees every row.
        if self.n_rows[g] == 0 || self.shape.sliding_window.is_some() {
            return;
        }
        laid.set(c.below(laid.rows[h]), h, e, bad);
        {
            let backend = any_backend(c);
            let to = self.results(c);
            let error = self.by(backend, c, &to).expect_err("NaN and infinity are refused");
            assert_eq!(
                (error.kind, error.head, error.layer),
                (ErrorKind::NonFinite, Some(g as u32), Some(self.shape.layer)),
                "{}",
                backend.name()
            );
        }
        let to = self.results(c);
        let (status, error) = self.by_c(c, &to, 1);
        assert_eq!((status, error.head, error.layer), (LAVA_ERR_NONFINITE, g as u32, self.shape.layer));
    }
}

pub fn run(data: &[u8]) {
    let c = &mut Choices::new(data);
    let case = Case::new(c);
    if c.once_in(8) {
        return case.check_nonfinite(c);
    }
    let inputs = [&case.q, &case.k, &case.v];
    let before = inputs.map(|t| t.block.bytes().to_vec());
    case.check(c);
    assert!(inputs.iter().zip(&before).all(|(t, before)| t.block.bytes() == before), "wrote an input");
}
