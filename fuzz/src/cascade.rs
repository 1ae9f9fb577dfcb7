//! A cascade ends in the same bits as all layers at once. On the way its state is copied elsewhere, given scores that are
//! refused, dropped and started again; and the caller's cache, token numbers here, follows the rows that it names, when it is time.

use crate::choices::Choices;
use crate::memory::{Block, POISON};
use crate::score::{c_shape, no_error};
use crate::select_compact::{Options, scores, select};
use crate::tensors::side;
use lava::Shape;
use lava::ffi::*;
use std::ptr::null;
use std::slice::from_raw_parts;

struct Case {
    shape: Shape,
    options: Options,
    total: u64,
    evict_every: u32,
    layers: Vec<Vec<f32>>,
}

impl Case {
    fn new(c: &mut Choices) -> Self {
        let (heads, layers, window) = (c.within(1..=4), c.within(1..=6), c.within(1..=3));
        let prefix = if c.rarely(24) { c.below(120) } else { c.below(16) };
        let shape = Shape {
            layer: 0,
            n_tokens: prefix + window,
            n_q_heads: heads,
            n_kv_heads: heads,
            head_dim_k: 1,
            head_dim_v: 1,
            window,
        };
        let options = Options::new(c, prefix);
        let least = options.rust().minimum(prefix) * heads * layers;
        let all = heads * prefix * layers;
        let total = (least + c.below(all - least + 1)) as u64;
        let total = if c.once_in(16) { u64::MAX } else { total };
        let evict_every = c.pick(&[0, 1, 2, 3, 5, u32::MAX]);
        Self {
            shape,
            options,
            total,
            evict_every,
            layers: (0..layers).map(|_| scores(c, prefix * heads)).collect(),
        }
    }

    fn params(&self) -> lava_select_params {
        lava_select_params { evict_every: self.evict_every, ..self.options.c() }
    }

    fn size(&self) -> usize {
        let (mut size, mut error) = (0, no_error());
        let n = self.layers.len() as u32;
        // SAFETY: all memory is as large as the header asks, here and below.
        let status = unsafe {
            lava_cascade_state_size(
                &c_shape(&self.shape),
                n,
                self.total,
                &self.params(),
                &mut size,
                &mut error,
            )
        };
        assert_eq!(status, LAVA_OK);
        size
    }

    fn init(&self, state: &Block) {
        let (n, mut error) = (self.layers.len() as u32, no_error());
        let (shape, params) = (c_shape(&self.shape), self.params());
        // SAFETY: see `size`.
        let status = unsafe {
            lava_cascade_init(&shape, n, self.total, &params, state.ptr(), state.len(), &mut error)
        };
        assert_eq!(status, LAVA_OK);
    }

    fn push(&self, c: &mut Choices, state: &Block, scores: &[f32]) -> (lava_status, lava_error) {
        let (scores, mut error) = (Block::of(scores, side(c)), no_error());
        // SAFETY: see `size`.
        let status = unsafe { lava_cascade_push(state.ptr(), state.len(), scores.ptr(), &mut error) };
        (status, error)
    }
}

/// `lava_cascade_get`, copied out.
struct Got {
    indices: Vec<u32>,
    cu: Vec<u32>,
    rows: Vec<u32>,
    cu_rows: Vec<u32>,
    report: lava_cascade_layer,
}

fn get(state: &Block, layer: usize, heads: usize) -> Got {
    let mut report = lava_cascade_layer {
        struct_size: size_of::<lava_cascade_layer>() as u32,
        unchanged: 9,
        kept_indices: null(),
        cu_kept: null(),
        rows: null(),
        cu_rows: null(),
        budget: 0,
        entropy: 0.0,
        mass: 0.0,
        evicted_share: 0.0,
    };
    let mut error = no_error();
    // SAFETY: see `size`; the lengths are the header's, and what they lead to is copied before the next push.
    unsafe {
        let status = lava_cascade_get(state.ptr(), state.len(), layer as u32, &mut report, &mut error);
        assert_eq!(status, LAVA_OK);
        let inside = |p: *const u32, n: usize| {
            let (from, state) =
                (p as usize, state.ptr::<u8>() as usize..state.ptr::<u8>() as usize + state.len());
            assert!(
                n == 0 || state.contains(&from) && state.contains(&(from + 4 * n - 1)),
                "not in the state"
            );
            if n == 0 { vec![] } else { from_raw_parts(p, n).to_vec() }
        };
        let (cu, cu_rows) = (inside(report.cu_kept, heads + 1), inside(report.cu_rows, heads + 1));
        let n = cu[heads] as usize;
        Got { indices: inside(report.kept_indices, n), rows: inside(report.rows, n), cu, cu_rows, report }
    }
}

pub fn run(data: &[u8]) {
    let c = &mut Choices::new(data);
    let case = Case::new(c);
    let Shape { n_kv_heads: heads, n_tokens, window, .. } = case.shape;
    let (prefix, size, n_layers) = (case.shape.prefix_len(), case.size(), case.layers.len());
    let mut state = Block::new(size, side(c));
    if c.once_in(4) {
        // A state of another cascade, dropped half way.
        case.init(&state);
        let layer = c.below(n_layers);
        assert_eq!(case.push(c, &state, &case.layers[layer]).0, LAVA_OK);
    }
    case.init(&state);

    // What each head of each layer's cache holds, by token.
    let mut caches: Vec<Vec<Vec<u32>>> = vec![];
    for (l, scores) in case.layers.iter().enumerate() {
        if c.once_in(6) && prefix > 0 {
            let mut bad = scores.clone();
            let at = c.below(bad.len());
            bad[at] = c.pick(&[f32::NAN, f32::INFINITY, -1.0]);
            let before = state.bytes().to_vec();
            let (status, error) = case.push(c, &state, &bad);
            assert_eq!(
                (status, error.layer, error.head),
                (LAVA_ERR_NONFINITE, l as u32, (at / prefix) as u32)
            );
            assert!(state.bytes() == before, "a refused push changed the state");
        }
        if c.once_in(4) {
            // It holds no pointers: a copy goes on where the original was.
            let copy = Block::of(state.bytes(), side(c));
            state.fill(&vec![POISON; size]);
            state = copy;
        }
        assert_eq!(case.push(c, &state, scores).0, LAVA_OK);
        caches.push(vec![(0..n_tokens as u32).collect(); heads]);
        let n_pushed = l + 1;
        let evicts = n_pushed == n_layers || n_pushed.is_multiple_of(case.evict_every.max(1) as usize);
        let mut held = 0;
        for (i, cache) in caches.iter_mut().enumerate() {
            let got = get(&state, i, heads);
            let before: u32 = cache.iter().map(|head| head.len() as u32).sum();
            assert_eq!((got.cu[0], got.cu_rows[0], got.cu_rows[heads]), (0, 0, before));
            for (h, head) in cache.iter_mut().enumerate() {
                assert_eq!((got.cu_rows[h + 1] - got.cu_rows[h]) as usize, head.len());
                let own = got.cu[h] as usize..got.cu[h + 1] as usize;
                let rows = &got.rows[own.clone()];
                assert!(rows.windows(2).all(|w| w[0] < w[1]));
                let kept: Vec<u32> = rows.iter().map(|&r| head[r as usize]).collect();
                assert_eq!(kept, got.indices[own], "layer {i}, head {h}");
                if evicts {
                    *head = kept;
                }
            }
            assert_eq!(got.report.unchanged == 1, got.cu == got.cu_rows);
            assert_eq!(got.report.budget as usize, got.indices.len() - heads * window);
            held += got.report.budget;
        }
        let params = &case.options.params;
        if params.head_floor == lava::HeadFloor::None && params.head_min == 0 {
            assert!(held <= case.total.saturating_add(l as u64), "{held} held of {}", case.total);
        }
    }
    let (status, _) = case.push(c, &state, &case.layers[0]);
    assert_eq!(status, LAVA_ERR_STATE, "complete");

    // All at once.
    let (shape, mut error) = (c_shape(&case.shape), no_error());
    let mut weights = vec![0.0; n_layers];
    for (scores, weight) in case.layers.iter().zip(&mut weights) {
        let scores = Block::of(scores, side(c));
        // SAFETY: see `size`.
        let status = unsafe { lava_entropy(&shape, scores.ptr(), weight, std::ptr::null_mut(), &mut error) };
        assert_eq!(status, LAVA_OK);
    }
    let least = (case.options.rust().minimum(prefix) * heads) as u64;
    let (capacities, minimums) = (vec![case.shape.prefix_entries(); n_layers], vec![least; n_layers]);
    let mut budgets = vec![0; n_layers];
    // SAFETY: see `size`.
    let status = unsafe {
        lava_layer_budgets(
            n_layers as u32,
            weights.as_ptr(),
            capacities.as_ptr(),
            minimums.as_ptr(),
            case.total,
            budgets.as_mut_ptr(),
            &mut error,
        )
    };
    assert_eq!(status, LAVA_OK);
    for (l, scores) in case.layers.iter().enumerate() {
        let (got, want) = (get(&state, l, heads), select(c, &case.shape, &case.options, scores, budgets[l]));
        assert_eq!((&got.indices, &got.cu), (&want.indices, &want.cu), "layer {l}");
        let bits = |values: [f64; 3]| values.map(f64::to_bits);
        let (got, want) = (got.report, want.report);
        assert_eq!(got.budget, want.budget);
        assert_eq!(
            bits([got.entropy, got.mass, got.evicted_share]),
            bits([weights[l], want.mass, want.evicted_share])
        );
    }
}
