//! A layer of random numbers, and the library's stages over it.

use half::{bf16, f16};
use lava::attend::{AttendInputs, AttendParams};
use lava::score::ScoreInputs;
use lava::view::Element;
use lava::workspace::Carver;
use lava::*;

/// Query heads, KV heads, head dimension.
pub const SHAPES: [(usize, usize, usize); 2] = [(32, 8, 128), (8, 8, 64)];
pub const WINDOW: usize = 32;

/// Element types that can be made from a number.
pub trait Number: Element + Send + Sync {
    const NAME: &str;
    fn from_f32(x: f32) -> Self;
}
impl Number for f32 {
    const NAME: &str = "f32";
    fn from_f32(x: f32) -> Self {
        x
    }
}
impl Number for f16 {
    const NAME: &str = "f16";
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}
impl Number for bf16 {
    const NAME: &str = "bf16";
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

/// Q, K and V, token-major as engines hold them.
pub struct Layer<T> {
    pub backend: Backend,
    pub shape: Shape<'static>,
    pub params: ScoreParams<'static>,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    /// The window's log-sum-exp, `[WINDOW, n_q_heads]`.
    lse: Vec<f32>,
}

/// Where the stages write to.
pub struct Outputs<T> {
    pub scores: Vec<f32>,
    pub kept: Vec<u32>,
    pub cu: Vec<u32>,
    n_entries: u64,
    k: Vec<T>,
    v: Vec<T>,
    /// More compressed layers, so that each is out of the caches when its turn comes, as when a model decodes.
    layers: Vec<[Vec<T>; 2]>,
    turn: usize,
    attention: Vec<f32>,
    workspaces: Vec<Vec<u128>>,
}

fn carver(memory: &mut [u128]) -> Carver<'_> {
    // SAFETY: the same memory, seen as bytes.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, size_of_val(memory)) };
    Carver::over(bytes).expect("u128s are aligned")
}

impl<T: Number> Layer<T> {
    pub fn new(
        (n_q_heads, n_kv_heads, dim): (usize, usize, usize),
        n_tokens: usize,
        backend: Backend,
    ) -> Self {
        let mut state = 1u64;
        let mut random = |n: usize, size: f32| -> Vec<T> {
            (0..n)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    T::from_f32(((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size)
                })
                .collect()
        };
        let mut layer = Self {
            backend,
            shape: Shape::dense(n_tokens, n_q_heads, n_kv_heads, dim, dim, WINDOW),
            params: ScoreParams::lava(),
            q: random(WINDOW * n_q_heads * dim, 2.0),
            k: random(n_tokens * n_kv_heads * dim, 2.0),
            v: random(n_tokens * n_kv_heads * dim, 1.0),
            lse: vec![],
        };
        layer.lse = layer.log_sum_exp();
        layer
    }

    /// As an engine's own attention over the whole cache would return it.
    fn log_sum_exp(&self) -> Vec<f32> {
        let Shape { n_q_heads, head_dim_v: dim, .. } = self.shape;
        let ScoreInputs { q, k, v, .. } = self.inputs(false);
        let (mut lse, mut out) = (vec![0.0; WINDOW * n_q_heads], vec![0.0; WINDOW * n_q_heads * dim]);
        let rows = Rows::Same(WINDOW);

        let mut lse_view =
            TensorMut::from_slice(&mut lse, Strides::token_major(n_q_heads, 1), rows, n_q_heads, 1)
                .expect("dense");
        let mut out_view =
            TensorMut::from_slice(&mut out, Strides::token_major(n_q_heads, dim), rows, n_q_heads, dim)
                .expect("dense");
        let params = AttendParams { causal: true, ..AttendParams::default() };
        let size = attend::workspace_size(&self.shape, WINDOW).expect("a valid shape");
        attend::attend(
            self.backend,
            &self.shape,
            &params,
            WINDOW,
            &AttendInputs { q, k, v },
            &mut out_view,
            Some(&mut lse_view),
            0,
            1,
            &mut carver(&mut vec![0; size.div_ceil(16)]),
        )
        .expect("valid input");
        lse
    }

    /// Bytes of K and V.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.k[..]) + size_of_val(&self.v[..])
    }

    pub fn keys(&self) -> &[T] {
        &self.k
    }

    /// Bytes of scoring's workspace, for one part.
    pub fn workspace_bytes(&self) -> usize {
        score::workspace_size(&self.shape, &self.params).expect("a valid shape")
    }

    fn tensor<'a>(&self, data: &'a [T], rows: usize, heads: usize) -> Tensor<'a> {
        let dim = self.shape.head_dim_k;
        Tensor::from_slice(data, Strides::token_major(heads, dim), Rows::Same(rows), heads, dim)
            .expect("dense")
    }

    fn inputs(&self, with_lse: bool) -> ScoreInputs<'_> {
        let Shape { n_tokens, n_q_heads, n_kv_heads, .. } = self.shape;
        let lse = Tensor::from_slice(
            &self.lse,
            Strides::token_major(n_q_heads, 1),
            Rows::Same(WINDOW),
            n_q_heads,
            1,
        );
        ScoreInputs {
            q: self.tensor(&self.q, WINDOW, n_q_heads),
            k: self.tensor(&self.k, n_tokens, n_kv_heads),
            v: self.tensor(&self.v, n_tokens, n_kv_heads),
            lse: with_lse.then(|| lse.expect("dense")),
        }
    }

    /// Scores on `n_threads` of our own threads, one part each.
    pub fn score(&self, out: &mut Outputs<T>, n_threads: usize, with_lse: bool) {
        let (inputs, n_parts) = (self.inputs(with_lse), n_threads.max(1));
        let prefix = self.shape.prefix_len();
        std::thread::scope(|scope| {
            let mut rest = &mut out.scores[..];
            for (part, workspace) in out.workspaces.iter_mut().enumerate().take(n_parts) {
                let heads = score::part_heads(&self.shape, part, n_parts).expect("a valid part");
                let (own, others) = rest.split_at_mut(heads.len() * prefix);
                rest = others;
                let mut work = move || {
                    score::score(
                        self.backend,
                        &self.shape,
                        &self.params,
                        &inputs,
                        part,
                        n_parts,
                        &mut carver(workspace),
                        own,
                    )
                    .expect("valid input")
                };
                if n_parts == 1 {
                    work();
                } else {
                    scope.spawn(work);
                }
            }
        });
    }

    pub fn entropy(&self, out: &Outputs<T>) -> f64 {
        entropy::entropy(&self.shape, &out.scores).expect("scores").entropy
    }

    pub fn select(&self, out: &mut Outputs<T>) {
        select::select(
            &self.shape,
            &SelectParams::lava(),
            &out.scores,
            out.n_entries,
            &mut carver(&mut out.workspaces[0]),
            &mut out.kept,
            &mut out.cu,
            None,
        )
        .expect("valid scores");
    }

    pub fn compact(&self, out: &mut Outputs<T>) {
        let Shape { n_tokens, n_kv_heads, head_dim_k: dim, .. } = self.shape;
        for (from, to) in [(&self.k, &mut out.k), (&self.v, &mut out.v)] {
            let (strides, rows) = (Strides::ragged(&out.cu, dim), Rows::Cu(&out.cu));
            let mut to = TensorMut::from_slice(to, strides, rows, n_kv_heads, dim).expect("ragged");
            let from = self.tensor(from, n_tokens, n_kv_heads);
            compact::compact(&from, &mut to, &out.kept, &out.cu, 0..n_kv_heads).expect("valid indices");
        }
    }

    /// One decode step over the kept rows of one of the layers that [`Outputs::spread`] made.
    pub fn attend(&self, out: &mut Outputs<T>) {
        out.turn = (out.turn + 1) % out.layers.len();
        let [k, v] = &out.layers[out.turn];
        let Shape { n_q_heads, n_kv_heads, head_dim_k: dim, .. } = self.shape;
        let ragged = |data| {
            Tensor::from_slice(data, Strides::ragged(&out.cu, dim), Rows::Cu(&out.cu), n_kv_heads, dim)
                .expect("ragged")
        };
        let inputs = AttendInputs {
            q: self.tensor(&self.q[..n_q_heads * dim], 1, n_q_heads),
            k: ragged(k),
            v: ragged(v),
        };
        let strides = Strides::token_major(n_q_heads, dim);
        let mut to =
            TensorMut::from_slice(&mut out.attention, strides, Rows::Same(1), n_q_heads, dim).expect("dense");
        attend::attend(
            self.backend,
            &self.shape,
            &AttendParams::default(),
            1,
            &inputs,
            &mut to,
            None,
            0,
            1,
            &mut carver(&mut out.workspaces[0]),
        )
        .expect("valid input");
    }
}

impl<T: Number> Outputs<T> {
    /// For a budget of this many tokens per KV head.
    pub fn new(layer: &Layer<T>, budget: usize) -> Self {
        let shape = &layer.shape;
        let entries = params::total_entries(&Alike(*shape, 1), budget).expect("a valid budget");
        let n_kept = select::n_kept(shape, entries).expect("a valid shape") as usize;
        let size = layer
            .workspace_bytes()
            .max(select::workspace_size(shape).expect("a valid shape"))
            .max(attend::workspace_size(shape, 1).expect("a valid shape"));
        Self {
            scores: vec![0.0; shape.n_scores() as usize],
            kept: vec![0; n_kept],
            cu: vec![0; shape.n_kv_heads + 1],
            n_entries: entries,
            k: vec![T::from_f32(0.0); n_kept * shape.head_dim_k],
            v: vec![T::from_f32(0.0); n_kept * shape.head_dim_v],
            layers: vec![],
            turn: 0,
            attention: vec![0.0; shape.n_q_heads * shape.head_dim_v],
            workspaces: vec![vec![0; size.div_ceil(16)]; 2],
        }
    }

    /// Copies what is kept to as many layers as make 256 MB.
    pub fn spread(&mut self) {
        let n = (256 << 20) / self.bytes().max(1) + 1;
        self.layers = vec![[self.k.clone(), self.v.clone()]; n];
    }

    /// Bytes of K and V that are kept.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.k[..]) + size_of_val(&self.v[..])
    }
}

/// Bytes that a cascade asked for.
pub struct CascadeReport {
    /// One full layer's K and V, and the final total.
    pub buffers: usize,
    /// The cascade's state, scoring's workspace and one layer's scores.
    pub state: usize,
}

/// A prefill of `n_layers` layers that compresses as it goes, in two buffers: one full layer and an arena of the final
/// size, in which layers close ranks as they shrink. `ready` is called when all inputs are made.
pub fn run_cascade<T: Number>(
    shape: (usize, usize, usize),
    n_tokens: usize,
    n_layers: usize,
    budget: usize,
    ready: impl FnOnce(),
) -> CascadeReport {
    use lava::cascade::{Cascade, CascadeParams, state_size};
    let heads = shape.1;
    let dim = shape.2;
    ready();
    let mut layer = Layer::<T>::new(shape, n_tokens, Backend::detect());
    let mut out = Outputs::new(&layer, WINDOW);
    let layers = Alike(layer.shape, n_layers);
    let total = params::total_entries(&layers, budget).expect("a valid budget");
    let (select, cascade) = (SelectParams::lava(), CascadeParams::lava());
    let size = state_size(&layers, total, &select, &cascade).expect("valid");
    let mut state = vec![0u128; size.div_ceil(16)];
    // Before the last push up to an entry per layer waits.
    let rows = total as usize + n_layers * (heads * WINDOW + 1);
    let mut arenas = [vec![T::from_f32(0.0); rows * dim], vec![T::from_f32(0.0); rows * dim]];
    let report = CascadeReport {
        buffers: layer.bytes() + 2 * size_of_val(&arenas[0][..]),
        state: size_of_val(&state[..]) + layer.workspace_bytes() + size_of_val(&out.scores[..]),
    };
    let mut cascade =
        Cascade::new(&layers, total, &select, &cascade, &mut carver(&mut state)).expect("valid");
    let mut starts = vec![0u32; n_layers * heads];
    for l in 0..n_layers {
        // Another layer's numbers: the same ones, elsewhere.
        let by = 1 + l * 77 % layer.q.len();
        layer.q.rotate_left(by);
        layer.score(&mut out, 1, false);
        cascade.push(&layer.shape, &out.scores, None).expect("valid scores");
        let mut next = 0u32;
        for j in 0..=l {
            let now = cascade.layer(j).expect("pushed");
            let to: Vec<u32> = now.cu_kept[..heads].iter().map(|c| next + c).collect();
            for (arena, fresh) in arenas.iter_mut().zip([&layer.k, &layer.v]) {
                let to = TensorMut::from_slice(
                    arena,
                    Strides::ragged(&to, dim),
                    Rows::Cu(now.cu_kept),
                    heads,
                    dim,
                );
                let mut to = to.expect("the arena is large enough");
                if j == l {
                    let from = layer.tensor(fresh, n_tokens, heads);
                    compact::compact(&from, &mut to, now.rows, now.cu_kept, 0..heads).expect("valid rows");
                } else {
                    let from = &starts[j * heads..(j + 1) * heads];
                    let mut within =
                        to.within(Some(from), Rows::Cu(now.cu_rows)).expect("what was written before");
                    compact::compact_within(&mut within, now.rows, now.cu_kept).expect("rows close ranks");
                }
            }
            starts[j * heads..(j + 1) * heads].copy_from_slice(&to);
            next += now.cu_kept[heads];
        }
    }
    std::hint::black_box(&arenas);
    report
}
