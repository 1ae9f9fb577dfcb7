//! Conformance of `lava` through its C headers alone: bindings made from them, and what the tests share.
//!
//! The bindings are as raw as C. The wrappers here give each call exactly the memory that the header asks for, filled
//! with poison, so that a byte too much or a byte not written shows.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};

mod bindings {
    #![allow(non_camel_case_types, clippy::useless_transmute, clippy::missing_safety_doc)]
    // For its symbols.
    use lava as _;
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
pub use bindings::*;

pub mod header;
pub mod library;
pub mod oracle;

// SAFETY: parts of one call read the same descriptions on several threads; the tests keep apart what they lead to.
unsafe impl Sync for lava_shape {}
unsafe impl Sync for lava_tensor {}
unsafe impl Sync for lava_score_params {}
unsafe impl Sync for lava_attend_params {}

/// What `lava_error` says about a refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: lava_status,
    pub layer: Option<u32>,
    pub head: Option<u32>,
    pub argument: String,
}

pub type Outcome<T> = Result<T, Failure>;

/// A static C string.
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "only given what the library returns")]
pub fn text(p: *const c_char) -> String {
    assert!(!p.is_null());
    // SAFETY: the header promises static strings.
    unsafe { CStr::from_ptr(p) }.to_str().unwrap().to_owned()
}

/// Makes a call with an error report and checks the report against the status.
pub fn call(function: impl FnOnce(*mut lava_error) -> lava_status) -> Outcome<()> {
    // SAFETY: as the header requires.
    let mut error = unsafe { lava_error_init() };
    let status = function(&mut error);
    assert_eq!(error.status, status, "lava_error and the return value agree");
    // SAFETY: any number is allowed.
    assert_eq!(text(error.message), text(unsafe { lava_status_string(status) }));
    assert!(!text(error.message).is_empty());
    let known = |n: u32| (n as i64 != LAVA_NONE).then_some(n);
    let failure = Failure {
        status,
        layer: known(error.layer),
        head: known(error.head),
        argument: text(error.argument),
    };
    if status == LAVA_OK {
        assert_eq!((failure.argument.as_str(), failure.layer, failure.head), ("", None, None));
        return Ok(());
    }
    assert!(!failure.argument.is_empty(), "a refusal names an argument: {failure:?}");
    Err(failure)
}

/// Makes a call that writes one number, and returns it.
pub fn number<T: Default>(function: impl FnOnce(*mut T, *mut lava_error) -> lava_status) -> Outcome<T> {
    let mut value = T::default();
    call(|e| function(&mut value, e)).map(|()| value)
}

/// Runs `work` once for each part, one after the other from the last to the first, or all at once.
pub fn in_parts(n_parts: u32, at_once: bool, work: impl Fn(u32) -> Outcome<()> + Sync) -> Outcome<()> {
    if !at_once {
        return (0..n_parts).rev().try_for_each(work);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..n_parts).map(|part| scope.spawn(move || work(part))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}

/// How a call is split: `(n_parts, on threads)`.
pub type Split = (u32, bool);
pub const WHOLE: Split = (1, false);

/// Small fast generator; the same numbers everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// A multiple of 1/64 in [-1.98, 1.98]: the same value in f32, f16 and bf16.
    pub fn element(&mut self) -> f32 {
        (self.below(255) as f32 - 127.0) / 64.0
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1u32 << 24) as f32
    }
}

/// Memory as C sees it: bytes that several pointers may lead to. Aligned to 16, filled with poison.
pub struct Memory {
    words: Vec<UnsafeCell<u128>>,
    len: usize,
}

// SAFETY: the tests let no two threads write the same bytes.
unsafe impl Sync for Memory {}

pub const POISON: u8 = 0xA5;

impl Memory {
    pub fn new(len: usize) -> Self {
        let word = u128::from_ne_bytes([POISON; 16]);
        // One word at least: a pointer to no elements must not be NULL.
        Self { words: (0..len.div_ceil(16).max(1)).map(|_| UnsafeCell::new(word)).collect(), len }
    }

    pub fn of<T: Copy>(values: &[T]) -> Self {
        let memory = Self::new(size_of_val(values));
        for (i, &value) in values.iter().enumerate() {
            memory.set(i, value);
        }
        memory
    }

    pub fn poison(&self) {
        (0..self.len).for_each(|i| self.set(i, POISON));
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn ptr<T>(&self) -> *mut T {
        self.words[0].get() as *mut T
    }

    fn element<T>(&self, i: usize) -> *mut T {
        assert!((i + 1) * size_of::<T>() <= self.len);
        self.ptr::<T>().wrapping_add(i)
    }

    pub fn get<T: Copy>(&self, i: usize) -> T {
        // SAFETY: inside (checked) and initialised; T is one of the plain number types.
        unsafe { self.element::<T>(i).read() }
    }

    pub fn set<T: Copy>(&self, i: usize, value: T) {
        // SAFETY: as for `get`.
        unsafe { self.element::<T>(i).write(value) }
    }

    pub fn to_vec<T: Copy>(&self) -> Vec<T> {
        // SAFETY: the block is that long and initialised; T is one of the plain number types. This is a copy.
        unsafe { std::slice::from_raw_parts(self.ptr::<T>(), self.len / size_of::<T>()) }.to_vec()
    }
}

/// Values of a tensor before they are laid out anywhere: `[rows, heads, dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    pub rows: usize,
    pub heads: usize,
    pub dim: usize,
    pub values: Vec<f32>,
}

impl Grid {
    pub fn random(rng: &mut Rng, rows: usize, heads: usize, dim: usize) -> Self {
        Self { rows, heads, dim, values: (0..rows * heads * dim).map(|_| rng.element()).collect() }
    }

    pub fn row(&self, r: usize, h: usize) -> &[f32] {
        &self.values[(r * self.heads + h) * self.dim..][..self.dim]
    }

    pub fn set(&mut self, r: usize, h: usize, c: usize, value: f32) {
        self.values[(r * self.heads + h) * self.dim + c] = value;
    }

    /// Token-major f32.
    pub fn lay(&self) -> Laid {
        Laid::new(Layout::token_major(self.heads, self.dim), self)
    }

    /// These rows of each head, one head after the other: a compressed cache.
    pub fn lay_rows(&self, rows: &Rows) -> Laid {
        let n = rows.positions.len().max(1);
        let laid = Laid::empty(Layout::ragged(&rows.cu[..self.heads], self.dim), n, 1, self.dim);
        for h in 0..self.heads {
            for (r, &token) in rows.head(h).iter().enumerate() {
                let row = self.row(token as usize, h);
                row.iter().enumerate().for_each(|(c, &x)| laid.layout.set(&laid.memory, r, h, c, x));
            }
        }
        laid
    }
}

/// Where a tensor's elements are, in elements.
#[derive(Clone, Debug)]
pub struct Layout {
    pub dtype: lava_dtype,
    pub first: usize,
    pub token: usize,
    pub head: usize,
    pub dim: usize,
    pub row_start: Option<Vec<u32>>,
}

impl Layout {
    pub fn strides(token: usize, head: usize, dim: usize) -> Self {
        Self { dtype: LAVA_F32, first: 0, token, head, dim, row_start: None }
    }
    pub fn token_major(heads: usize, dim: usize) -> Self {
        Self::strides(heads * dim, dim, 1)
    }
    pub fn head_major(rows: usize, dim: usize) -> Self {
        Self::strides(dim, rows * dim, 1)
    }
    pub fn transposed(rows: usize, dim: usize) -> Self {
        Self::strides(1, dim * rows, rows)
    }
    pub fn ragged(row_start: &[u32], dim: usize) -> Self {
        Self { row_start: Some(row_start.to_vec()), ..Self::strides(dim, 0, 1) }
    }
    pub fn of(self, dtype: lava_dtype) -> Self {
        Self { dtype, ..self }
    }
    pub fn from(self, first: usize) -> Self {
        Self { first, ..self }
    }

    pub fn element_size(&self) -> usize {
        if self.dtype == LAVA_F32 { 4 } else { 2 }
    }

    /// By the formula of lava.h.
    pub fn index(&self, r: usize, h: usize, c: usize) -> usize {
        let start = self.row_start.as_ref().map_or(0, |s| s[h] as usize);
        self.first + start * self.token + h * self.head + r * self.token + c * self.dim
    }

    pub fn get(&self, memory: &Memory, r: usize, h: usize, c: usize) -> f32 {
        let i = self.index(r, h, c);
        match self.dtype {
            LAVA_F32 => memory.get::<f32>(i),
            LAVA_F16 => memory.get::<half::f16>(i).to_f32(),
            _ => memory.get::<half::bf16>(i).to_f32(),
        }
    }

    pub fn set(&self, memory: &Memory, r: usize, h: usize, c: usize, value: f32) {
        let i = self.index(r, h, c);
        match self.dtype {
            LAVA_F32 => memory.set(i, value),
            LAVA_F16 => memory.set(i, half::f16::from_f32(value)),
            _ => memory.set(i, half::bf16::from_f32(value)),
        }
    }

    pub fn row(&self, memory: &Memory, r: usize, h: usize, dim: usize) -> Vec<f32> {
        (0..dim).map(|c| self.get(memory, r, h, c)).collect()
    }

    pub fn fill(&self, memory: &Memory, grid: &Grid) {
        for r in 0..grid.rows {
            for h in 0..grid.heads {
                grid.row(r, h).iter().enumerate().for_each(|(c, &x)| self.set(memory, r, h, c, x));
            }
        }
    }

    /// The description of all memory from the first element on. It lives as long as the layout.
    pub fn tensor(&self, memory: &Memory) -> lava_tensor {
        let offset = self.first * self.element_size();
        // SAFETY: as the header requires.
        let mut tensor = unsafe {
            lava_tensor_init(
                self.dtype,
                memory.ptr::<u8>().wrapping_add(offset) as *mut c_void,
                memory.len() - offset,
                self.token as i64,
                self.head as i64,
                self.dim as i64,
            )
        };
        tensor.row_start = self.row_start.as_ref().map_or(null(), |s| s.as_ptr());
        tensor
    }
}

/// A tensor with its own memory, not a byte more than its elements need.
pub struct Laid {
    pub layout: Layout,
    pub memory: Memory,
}

impl Laid {
    pub fn new(layout: Layout, grid: &Grid) -> Self {
        let laid = Self::empty(layout, grid.rows, grid.heads, grid.dim);
        laid.layout.fill(&laid.memory, grid);
        laid
    }

    /// Poison. For a ragged layout `rows` counts all heads' rows together.
    pub fn empty(layout: Layout, rows: usize, heads: usize, dim: usize) -> Self {
        let last =
            layout.first + (rows - 1) * layout.token + (heads - 1) * layout.head + (dim - 1) * layout.dim;
        let memory = Memory::new((last + 1) * layout.element_size());
        Self { layout, memory }
    }

    pub fn tensor(&self) -> lava_tensor {
        self.layout.tensor(&self.memory)
    }
}

/// `lava_shape_init`.
pub fn shape(n_tokens: usize, heads: (usize, usize), dims: (usize, usize), window: usize) -> lava_shape {
    let n = |x: usize| u32::try_from(x).unwrap();
    // SAFETY: as the header requires, here and below.
    unsafe { lava_shape_init(n(n_tokens), n(heads.0), n(heads.1), n(dims.0), n(dims.1), n(window)) }
}

/// The same with a sliding window.
pub fn sliding(shape: lava_shape, keys: usize) -> lava_shape {
    lava_shape { sliding_window: u32::try_from(keys).unwrap(), ..shape }
}

/// A layer that takes no part.
pub fn no_layer() -> lava_shape {
    shape(1, (0, 0), (1, 1), 1)
}

/// Tokens before the window.
pub fn prefix_len(shape: &lava_shape) -> usize {
    shape.n_tokens.saturating_sub(shape.window) as usize
}

/// `lava_n_scores`.
pub fn n_scores(shape: &lava_shape) -> usize {
    unsafe { lava_n_scores(shape) as usize }
}

/// The rows of a cache that has been compressed before: what a shape's `cu_rows` and `positions` lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub cu: Vec<u32>,
    pub positions: Vec<u32>,
}

impl Rows {
    pub fn new(heads: &[Vec<u32>]) -> Self {
        let mut rows = Self { cu: vec![0], positions: vec![] };
        for head in heads {
            rows.positions.extend(head);
            rows.cu.push(rows.positions.len() as u32);
        }
        rows
    }

    /// A random part of each head's prefix, and the window.
    pub fn random(rng: &mut Rng, shape: &lava_shape) -> Self {
        let prefix = prefix_len(shape) as u32;
        let heads: Vec<Vec<u32>> = (0..shape.n_kv_heads)
            .map(|_| {
                let of_ten = rng.below(11);
                (0..shape.n_tokens).filter(|&p| p >= prefix || rng.below(10) < of_ten).collect()
            })
            .collect();
        Self::new(&heads)
    }

    /// The shape with these rows, which must outlive it.
    pub fn of(&self, shape: lava_shape) -> lava_shape {
        lava_shape { cu_rows: self.cu.as_ptr(), positions: self.positions.as_ptr(), ..shape }
    }

    pub fn head(&self, h: usize) -> &[u32] {
        &self.positions[self.cu[h] as usize..self.cu[h + 1] as usize]
    }
}

/// LAVa as published, here and in the next three: the plainest options, to which tests add what they test.
pub fn score_params() -> lava_score_params {
    unsafe { lava_score_params_lava() }
}

pub fn select_params() -> lava_select_params {
    unsafe { lava_select_params_lava() }
}

pub fn cascade_params() -> lava_cascade_params {
    unsafe { lava_cascade_params_lava() }
}

pub fn attend_params() -> lava_attend_params {
    unsafe { lava_attend_params_default() }
}

/// The LAVA_BACKEND_ numbers that this machine can run.
pub fn backends() -> Vec<i32> {
    (LAVA_BACKEND_BEST..=LAVA_BACKEND_NEON).filter(|&b| !unsafe { lava_backend_name(b) }.is_null()).collect()
}

fn or_null<T>(value: Option<&T>) -> *const T {
    value.map_or(null(), |v| v)
}

/// `lava_score` over tensors `[q, k, v]`, each part with its own workspace.
pub fn score<'a>(
    shape: &lava_shape,
    params: impl Into<Option<&'a lava_score_params>>,
    [q, k, v]: [&lava_tensor; 3],
    lse: Option<&lava_tensor>,
    (n_parts, at_once): Split,
) -> Outcome<Vec<f32>> {
    let params = params.into();
    let bytes = number(|size, e| unsafe { lava_score_workspace_size(shape, or_null(params), size, e) })?;
    let scores = Memory::new(n_scores(shape) * 4);
    in_parts(n_parts, at_once, |part| {
        let workspace = Memory::new(bytes);
        let (params, lse, to) = (or_null(params), or_null(lse), scores.ptr());
        call(|e| unsafe {
            lava_score(shape, params, q, k, v, lse, part, n_parts, workspace.ptr(), bytes, to, e)
        })
    })?;
    Ok(scores.to_vec())
}

/// One layer's inputs. K and V have a row per token, even if the shape has lost some.
pub struct Layer {
    pub shape: lava_shape,
    pub params: lava_score_params,
    pub q: Grid,
    pub k: Grid,
    pub v: Grid,
}

impl Layer {
    pub fn random(seed: u64, shape: lava_shape) -> Self {
        let rng = &mut Rng(seed);
        let [tokens, q_heads, kv_heads, dk, dv, window] = [
            shape.n_tokens,
            shape.n_q_heads,
            shape.n_kv_heads,
            shape.head_dim_k,
            shape.head_dim_v,
            shape.window.min(shape.n_tokens),
        ]
        .map(|n| n as usize);
        Self {
            shape,
            params: score_params(),
            q: Grid::random(rng, window, q_heads, dk),
            k: Grid::random(rng, tokens, kv_heads, dk),
            v: Grid::random(rng, tokens, kv_heads, dv),
        }
    }

    /// Scores of token-major f32 inputs.
    pub fn score(&self) -> Outcome<Vec<f32>> {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(Grid::lay);
        score(&self.shape, &self.params, [&q.tensor(), &k.tensor(), &v.tensor()], None, WHOLE)
    }

    /// Scores of the same layer from which all but `rows` have been evicted.
    pub fn score_rows(&self, rows: &Rows) -> Outcome<Vec<f32>> {
        let [k, v] = [&self.k, &self.v].map(|grid| grid.lay_rows(rows));
        let (shape, q) = (rows.of(self.shape), self.q.lay());
        score(&shape, &self.params, [&q.tensor(), &k.tensor(), &v.tensor()], None, WHOLE)
    }
}

/// `lava_entropy`: the entropy and the mass.
pub fn entropy(shape: &lava_shape, scores: &[f32]) -> Outcome<(f64, f64)> {
    let mut mass = 0.0;
    let entropy = number(|out, e| unsafe { lava_entropy(shape, scores.as_ptr(), out, &mut mass, e) })?;
    Ok((entropy, mass))
}

/// `lava_budget_from_ratio`.
pub fn budget_from_ratio<'a>(
    shape: &lava_shape,
    params: impl Into<Option<&'a lava_select_params>>,
    ratio: f64,
) -> Outcome<u32> {
    let params = or_null(params.into());
    number(|budget, e| unsafe { lava_budget_from_ratio(shape, params, ratio, budget, e) })
}

/// `n_shapes` and `n_layers` of layers with a shape each.
fn count(shapes: &[lava_shape]) -> u32 {
    shapes.len() as u32
}

/// `lava_total_entries` of layers with a shape each.
pub fn total_entries(shapes: &[lava_shape], budget: u32) -> Outcome<u64> {
    let n = count(shapes);
    number(|total, e| unsafe { lava_total_entries(shapes.as_ptr(), n, n, budget, total, e) })
}

/// `lava_layer_entries`.
pub fn layer_entries<'a>(
    shapes: &[lava_shape],
    params: impl Into<Option<&'a lava_select_params>>,
    weights: &[f64],
    total: u64,
) -> Outcome<Vec<u64>> {
    let mut entries = vec![u64::MAX; weights.len()];
    let (n_shapes, n, params) = (count(shapes), weights.len() as u32, or_null(params.into()));
    call(|e| unsafe {
        let (shapes, weights, to) = (shapes.as_ptr(), weights.as_ptr(), entries.as_mut_ptr());
        lava_layer_entries(shapes, n_shapes, n, params, weights, total, to, e)
    })?;
    Ok(entries)
}

/// `lava_global_entries`: each layer's entries and each head's, layer after layer.
pub fn global_entries<'a>(
    shapes: &[lava_shape],
    params: impl Into<Option<&'a lava_select_params>>,
    scores: &[f32],
    total: u64,
) -> Outcome<(Vec<u64>, Vec<f64>)> {
    let (n, params) = (count(shapes), or_null(params.into()));
    let bytes =
        number(|size, e| unsafe { lava_global_entries_workspace_size(shapes.as_ptr(), n, n, size, e) })?;
    let workspace = Memory::new(bytes);
    let n_heads: u32 = shapes.iter().map(|s| s.n_kv_heads).sum();
    let (mut entries, mut heads) = (vec![u64::MAX; shapes.len()], vec![f64::NAN; n_heads as usize]);
    call(|e| unsafe {
        let (shapes, scores, space) = (shapes.as_ptr(), scores.as_ptr(), workspace.ptr());
        let (entries, heads) = (entries.as_mut_ptr(), heads.as_mut_ptr());
        lava_global_entries(shapes, n, n, params, scores, total, space, bytes, entries, heads, e)
    })?;
    Ok((entries, heads))
}

/// What `lava_select` or `lava_cascade_get` keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    pub indices: Vec<u32>,
    pub cu: Vec<u32>,
    pub rows: Vec<u32>,
}

/// What `lava_select` keeps, and what it says about it.
#[derive(Debug)]
pub struct Kept {
    pub rest: Rest,
    pub report: lava_selection,
}

impl std::ops::Deref for Kept {
    type Target = Rest;
    fn deref(&self) -> &Rest {
        &self.rest
    }
}

impl Rest {
    pub fn head(&self, h: usize) -> &[u32] {
        &self.indices[self.cu[h] as usize..self.cu[h + 1] as usize]
    }
}

/// `lava_select`, with room for exactly what `lava_n_kept` says.
pub fn select<'a>(
    shape: &lava_shape,
    params: impl Into<Option<&'a lava_select_params>>,
    scores: &[f32],
    n_entries: u64,
) -> Outcome<Kept> {
    let params = or_null(params.into());
    let n_kept = number(|n, e| unsafe { lava_n_kept(shape, n_entries, n, e) })?;
    let bytes = number(|size, e| unsafe { lava_select_workspace_size(shape, size, e) })?;
    let workspace = Memory::new(bytes);
    let empty = |n: usize| vec![u32::MAX; n];
    let mut rest = Rest {
        indices: empty(n_kept as usize),
        cu: empty(shape.n_kv_heads as usize + 1),
        rows: empty(n_kept as usize),
    };
    let mut report = unsafe { lava_selection_init() };
    let (indices, cu, rows) = (rest.indices.as_mut_ptr(), rest.cu.as_mut_ptr(), rest.rows.as_mut_ptr());
    let (from, space) = (scores.as_ptr(), workspace.ptr());
    call(|e| unsafe {
        let report = &mut report;
        lava_select(shape, params, from, n_entries, space, bytes, indices, n_kept, cu, rows, report, e)
    })?;
    assert_eq!(report.n_kept, n_kept);
    assert_eq!((rest.cu[0], rest.cu[shape.n_kv_heads as usize] as u64), (0, n_kept));
    if shape.cu_rows.is_null() {
        assert_eq!(rest.rows, rest.indices, "row i is token i");
    }
    Ok(Kept { rest, report })
}

/// `lava_entries_for_share`.
pub fn entries_for_share(shape: &lava_shape, scores: &[f32], epsilon: f64) -> Outcome<u64> {
    let bytes = number(|size, e| unsafe { lava_entries_for_share_workspace_size(size, e) })?;
    let workspace = Memory::new(bytes);
    number(|n_entries, e| unsafe {
        lava_entries_for_share(shape, scores.as_ptr(), epsilon, workspace.ptr(), bytes, n_entries, e)
    })
}

/// `lava_compact` of K and V from `src` to `dst`.
pub fn compact(
    shape: &lava_shape,
    src: [&lava_tensor; 2],
    cu_rows: Option<&[u32]>,
    (rows, cu_kept): (&[u32], &[u32]),
    dst: [&lava_tensor; 2],
    (n_parts, at_once): Split,
) -> Outcome<()> {
    in_parts(n_parts, at_once, |part| {
        let cu_rows = cu_rows.map_or(null(), |cu| cu.as_ptr());
        let (rows, cu_kept) = (rows.as_ptr(), cu_kept.as_ptr());
        call(|e| unsafe {
            lava_compact(shape, src[0], src[1], cu_rows, rows, cu_kept, dst[0], dst[1], part, n_parts, e)
        })
    })
}

/// A cascade and its state, with poison after it that shows a byte too much.
pub struct Cascade {
    pub memory: Memory,
    pub size: usize,
}

/// `lava_cascade_get`, copied out.
pub struct CascadeLayer {
    pub rest: Rest,
    pub cu_rows: Vec<u32>,
    pub report: lava_cascade_layer,
}

impl std::ops::Deref for CascadeLayer {
    type Target = Rest;
    fn deref(&self) -> &Rest {
        &self.rest
    }
}

impl Cascade {
    /// `lava_cascade_init` of layers with a shape each.
    pub fn new<'a>(
        shapes: &[lava_shape],
        total: u64,
        params: impl Into<Option<&'a lava_select_params>>,
        cascade: impl Into<Option<&'a lava_cascade_params>>,
    ) -> Outcome<Self> {
        let (params, cascade) = (or_null(params.into()), or_null(cascade.into()));
        let (n, shapes) = (count(shapes), shapes.as_ptr());
        let size = number(|size, e| unsafe {
            lava_cascade_state_size(shapes, n, n, total, params, cascade, size, e)
        })?;
        let memory = Memory::new(size + 64);
        let state = memory.ptr();
        call(|e| unsafe { lava_cascade_init(shapes, n, n, total, params, cascade, state, size, e) })?;
        Ok(Self { memory, size })
    }

    pub fn push(&self, shape: &lava_shape, scores: &[f32], weight: Option<f64>) -> Outcome<()> {
        let (state, weight) = (self.memory.ptr(), or_null(weight.as_ref()));
        call(|e| unsafe { lava_cascade_push(state, self.size, shape, scores.as_ptr(), weight, e) })
    }

    pub fn get(&self, layer: usize, n_heads: usize) -> CascadeLayer {
        let mut report = unsafe { lava_cascade_layer_init() };
        let out = &mut report;
        call(|e| unsafe { lava_cascade_get(self.memory.ptr(), self.size, layer as u32, out, e) }).unwrap();
        // SAFETY: the header's lengths; the state is not pushed to before these are copied.
        let copy = |p: *const u32, n: usize| unsafe { std::slice::from_raw_parts(p, n) }.to_vec();
        let cu = copy(report.cu_kept, n_heads + 1);
        let n = cu[n_heads] as usize;
        CascadeLayer {
            rest: Rest { indices: copy(report.kept_indices, n), rows: copy(report.rows, n), cu },
            cu_rows: copy(report.cu_rows, n_heads + 1),
            report,
        }
    }

    /// Checks that nothing after the state was written.
    pub fn check_end(&self) {
        let end = &self.memory.to_vec::<u8>()[self.size..];
        assert!(end.iter().all(|&b| b == POISON), "written after the state");
    }
}

/// Checks that `memory` holds exactly the kept rows, and in every other byte what it held before.
pub fn check_rows(
    what: &str,
    memory: &Memory,
    before: &[u8],
    views: &[(&Layout, &Grid)],
    (rows, cu): (&[u32], &[u32]),
) {
    let want = Memory::of(before);
    for (layout, grid) in views {
        for h in 0..grid.heads {
            let kept = &rows[cu[h] as usize..cu[h + 1] as usize];
            for (to, &from) in kept.iter().enumerate() {
                let row = grid.row(from as usize, h);
                row.iter().enumerate().for_each(|(c, &x)| layout.set(&want, to, h, c, x));
            }
        }
    }
    let (got, want) = (memory.to_vec::<u8>(), want.to_vec::<u8>());
    let differs = got.iter().zip(&want).position(|(a, b)| a != b);
    assert!(differs.is_none(), "{what}: first difference at byte {differs:?}");
}

/// `lava_attend` of tensors `[q, k, v]`: the outputs `[n_queries, n_q_heads, head_dim_v]` and the log-sum-exps.
pub fn attend<'a>(
    shape: &lava_shape,
    params: impl Into<Option<&'a lava_attend_params>>,
    n_queries: usize,
    [q, k, v]: [&lava_tensor; 3],
    n_rows: &[u32],
    (n_parts, at_once): Split,
) -> Outcome<(Vec<f32>, Vec<f32>)> {
    let (params, n) = (params.into(), n_queries as u32);
    let bytes = number(|size, e| unsafe { lava_attend_workspace_size(shape, n, size, e) })?;
    let [heads, dv] = [shape.n_q_heads, shape.head_dim_v].map(|n| n as usize);
    let result = |dim| Laid::empty(Layout::token_major(heads, dim), n_queries, heads, dim);
    let (out, lse) = (result(dv), result(1));
    let (out_tensor, lse_tensor) = (out.tensor(), lse.tensor());
    in_parts(n_parts, at_once, |part| {
        let (workspace, out, lse) = (Memory::new(bytes), &raw const out_tensor, &raw const lse_tensor);
        let (params, n_rows, space) = (or_null(params), n_rows.as_ptr(), workspace.ptr());
        call(|e| unsafe {
            lava_attend(shape, params, n, q, k, v, n_rows, out, lse, part, n_parts, space, bytes, e)
        })
    })?;
    Ok((out.memory.to_vec(), lse.memory.to_vec()))
}

/// The bits of numbers that must be the same.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// NULL.
pub fn nothing<T>() -> *mut T {
    null_mut()
}
