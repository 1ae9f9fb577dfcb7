//! From C structs to the core's checked types.

use core::ffi::CStr;

use super::call::slice;
use super::types::*;
use super::versioned::{read_option, read_struct, struct_size};
use crate::attend::{AttendParams, Positions};
use crate::backend::Backend;
use crate::cascade::CascadeParams;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{
    Attention, GroupReduce, HeadFloor, LayerShare, Layers, LseBase, Pool, RaggedRows, ScoreParams,
    SelectParams, Shape, ValueSpan, ValueWeight,
};
use crate::rope::{Rope, RopeStyle};
use crate::view::Dtype;

/// 0 stands for "not given".
fn given<T: PartialEq + Default>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// The enum value with this number.
fn choose<T: Copy>(number: i32, of: &[T], argument: &'static CStr) -> Result<T> {
    let chosen = usize::try_from(number).ok().and_then(|i| of.get(i).copied());
    chosen.ok_or(Error::new(ErrorKind::Argument, argument))
}

/// That a field which means nothing yet is 0, as what follows a struct that this library knows.
pub(super) fn unused(field: u32) -> Result<()> {
    ensure(field == 0, ErrorKind::StructSize, c"reserved")
}

/// The element type with this number.
pub(super) fn dtype(number: lava_dtype) -> Result<Dtype> {
    match number {
        LAVA_F32 => Ok(Dtype::F32),
        LAVA_F16 => Ok(Dtype::F16),
        LAVA_BF16 => Ok(Dtype::BF16),
        _ => Err(Error::new(ErrorKind::Dtype, c"dtype")),
    }
}

/// The kernels with this number.
pub(super) fn backend(number: i32) -> Result<Backend> {
    let found = match number {
        LAVA_BACKEND_BEST => Some(Backend::detect()),
        LAVA_BACKEND_SCALAR => Some(Backend::scalar()),
        LAVA_BACKEND_AVX2 => Backend::avx2(),
        LAVA_BACKEND_AVX512 => Backend::avx512(),
        LAVA_BACKEND_AVX512_BF16 => Backend::avx512_bf16(),
        LAVA_BACKEND_NEON => Backend::neon(),
        _ => return Err(Error::new(ErrorKind::Argument, c"backend")),
    };
    found.ok_or(Error::new(ErrorKind::Unsupported, c"backend"))
}

impl lava_shape {
    /// The sizes as they are given, rows and positions as slices.
    ///
    /// # Safety
    /// `cu_rows` and `positions` must be NULL or lead to what the header says, for `'a`.
    unsafe fn read<'a>(&self) -> Result<Shape<'a>> {
        unused(self.reserved)?;
        let n_heads = self.n_kv_heads as usize;
        let ragged = match self.cu_rows.is_null() || n_heads == 0 {
            true => None,
            false => {
                // SAFETY: not NULL, so the caller promises n_kv_heads + 1 entries.
                let cu_rows = unsafe { slice(self.cu_rows, n_heads + 1, c"cu_rows")? };
                let positions = match cu_rows[n_heads] as usize {
                    0 => &[],
                    // SAFETY: with cu_rows the caller promises a position for each row.
                    n => unsafe { slice(self.positions, n, c"positions")? },
                };
                Some(RaggedRows { cu_rows, positions })
            }
        };
        Ok(Shape {
            layer: self.layer,
            n_tokens: self.n_tokens as usize,
            n_q_heads: self.n_q_heads as usize,
            n_kv_heads: n_heads,
            head_dim_k: self.head_dim_k as usize,
            head_dim_v: self.head_dim_v as usize,
            window: self.window as usize,
            sliding_window: given(self.sliding_window as usize),
            ragged,
        })
    }
}

/// A caller's shape, checked.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_shape` that leads to what the header says, for `'a`.
pub(super) unsafe fn shape<'a>(p: *const lava_shape) -> Result<Shape<'a>> {
    // SAFETY: the caller's promise.
    unsafe {
        let given = read_struct(p, c"shape")?;
        let shape = given.read().map_err(|e| e.at_layer(given.layer))?;
        shape.validate()?;
        Ok(shape)
    }
}

/// The same where rows and tokens mean nothing: attention over a cache that the call describes itself.
///
/// # Safety
/// As for [`shape`].
pub(super) unsafe fn shape_of_heads<'a>(p: *const lava_shape) -> Result<Shape<'a>> {
    // SAFETY: the caller's promise.
    unsafe {
        let given = lava_shape {
            cu_rows: core::ptr::null(),
            positions: core::ptr::null(),
            ..read_struct(p, c"shape")?
        };
        let shape = given.read().map_err(|e| e.at_layer(given.layer))?;
        shape.validate_heads()?;
        Ok(shape)
    }
}

/// A caller's array of layers, or one shape for all of them. Checked when it is made, and read again whenever a layer is asked
/// for: there is no memory to keep so many in.
#[derive(Clone, Copy)]
pub(super) struct ShapeArray {
    first: *const lava_shape,
    /// Bytes from one to the next: 0 where one stands for all.
    step: usize,
    n_layers: usize,
}

impl ShapeArray {
    /// # Safety
    /// `shapes` must be NULL or lead to `n_shapes` structs of one version, each leading to what the header says, for as long as this
    /// is used.
    pub unsafe fn new(shapes: *const lava_shape, n_shapes: u32, n_layers: u32) -> Result<Self> {
        let n_layers = n_layers as usize;
        ensure(n_layers > 0 && n_layers <= crate::budget::MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
        ensure(n_shapes == 1 || n_shapes as usize == n_layers, ErrorKind::Shape, c"n_shapes")?;
        // SAFETY: the caller's promise.
        let size = unsafe { struct_size(shapes, c"shapes")? };
        let array = Self { first: shapes, step: if n_shapes == 1 { 0 } else { size }, n_layers };
        for l in 0..n_shapes as usize {
            let at = |e: Error| e.at_layer(l as u32);
            // SAFETY: there are n_shapes structs of `size` bytes.
            let own = unsafe { struct_size(array.pointer(l), c"shapes").map_err(at)? };
            ensure(own == size, ErrorKind::StructSize, c"shapes").map_err(at)?;
            array.read(l).map_err(at)?;
        }
        Layers::validate(&array)?;
        Ok(array)
    }

    fn pointer(&self, l: usize) -> *const lava_shape {
        (self.first as *const u8).wrapping_add(l * self.step) as *const lava_shape
    }

    fn read(&self, l: usize) -> Result<Shape<'_>> {
        // SAFETY: `new` was promised the structs and what they lead to, for as long as this is used.
        unsafe { read_struct(self.pointer(l), c"shapes")?.read() }
    }

    /// Where the structs are, for the check of overlaps.
    pub fn bytes(&self) -> (*const u8, usize) {
        let n = if self.step == 0 { 1 } else { self.n_layers };
        (self.first as *const u8, n * self.step.max(core::mem::size_of::<lava_shape>()))
    }
}

impl Layers for ShapeArray {
    fn n_layers(&self) -> usize {
        self.n_layers
    }

    fn layer(&self, l: usize) -> Shape<'_> {
        // `new` has read each of them. A caller that writes them meanwhile breaks the header's rule; a layer that takes no part is
        // what does least then.
        let shape = self.read(l).unwrap_or(Shape::dense(0, 0, 0, 0, 0, 0));
        Shape { layer: l as u32, ..shape }
    }
}

/// Options of scoring, and the kernels that are asked for.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_score_params` that leads to what the header says for `n_q_heads` query heads, for `'a`.
pub(super) unsafe fn score_params<'a>(
    p: *const lava_score_params,
    n_q_heads: usize,
) -> Result<(ScoreParams<'a>, Backend)> {
    // SAFETY: the caller's promise.
    let Some(p) = (unsafe { read_option(p, c"params")? }) else {
        return Ok((ScoreParams::default(), Backend::detect()));
    };
    unused(p.reserved)?;
    let attentions = [
        Attention::Mean,
        Attention::Squared,
        Attention::MeanVariance,
        Attention::Exponential,
        Attention::Recency,
        Attention::Max,
        Attention::Norm4,
    ];
    let values = [
        ValueWeight::HeadMax,
        ValueWeight::None,
        ValueWeight::Token,
        ValueWeight::Output,
        ValueWeight::TokenL2,
        ValueWeight::HeadMeanL2,
    ];
    let params = ScoreParams {
        scale: given(p.scale),
        softcap: given(p.softcap),
        // SAFETY: the caller's promise.
        sink_logits: unsafe { optional(p.sink_logits, n_q_heads, c"sink_logits")? },
        // SAFETY: the caller's promise.
        query_head_weights: unsafe { optional(p.query_head_weights, n_q_heads, c"query_head_weights")? },
        lse_base: lse_base(p.lse_base)?,
        pool: choose(p.pool, &[Pool::Max, Pool::Avg, Pool::After], c"pool")?,
        pool_kernel: p.pool_kernel as usize,
        group_reduce: choose(p.group_reduce, &[GroupReduce::Max, GroupReduce::Mean], c"group_reduce")?,
        value_span: choose(p.value_span, &[ValueSpan::Prefix, ValueSpan::All], c"value_span")?,
        attention: choose(p.attention, &attentions, c"attention")?,
        gamma: p.gamma,
        decay: given(p.decay).unwrap_or(1.0),
        value_weight: choose(p.value_weight, &values, c"value_weight")?,
        smoothing: p.smoothing,
        weight: given(p.weight).unwrap_or(1.0),
    };
    params.validate(n_q_heads)?;
    Ok((params, backend(p.backend)?))
}

/// The same for queries that ask again, for which NULL is the preset of that name.
///
/// # Safety
/// As above.
pub(super) unsafe fn asking_params<'a>(
    p: *const lava_score_params,
    n_q_heads: usize,
) -> Result<(ScoreParams<'a>, Backend)> {
    if p.is_null() {
        return Ok((ScoreParams::ask_again(None), Backend::detect()));
    }
    // SAFETY: the caller's promise.
    unsafe { score_params(p, n_q_heads) }
}

/// How a model turns its queries.
///
/// # Safety
/// `frequencies` must be NULL or readable over `n_rot / 2` numbers for `'a`.
pub(super) unsafe fn rope<'a>(
    shape: &Shape,
    frequencies: *const f32,
    n_rot: u32,
    style: i32,
    magnitude: f32,
) -> Result<Rope<'a>> {
    let n_rot = n_rot as usize;
    ensure(n_rot.is_multiple_of(2), ErrorKind::Argument, c"n_rot")?;
    ensure(n_rot <= shape.head_dim_k, ErrorKind::Shape, c"n_rot")?;
    let frequencies = match n_rot {
        0 => &[],
        // SAFETY: the caller's promise.
        _ => unsafe { slice(frequencies, n_rot / 2, c"frequencies")? },
    };
    let style = choose(style, &[RopeStyle::Pairs, RopeStyle::Halves], c"style")?;
    Ok(Rope { frequencies, style, magnitude: if magnitude == 0.0 { 1.0 } else { magnitude } })
}

fn lse_base(number: i32) -> Result<LseBase> {
    choose(number, &[LseBase::Natural, LseBase::Two], c"lse_base")
}

/// NULL, or `n` elements.
///
/// # Safety
/// `p` must be NULL or readable over `n` elements for `'a`.
pub(super) unsafe fn optional<'a, T>(p: *const T, n: usize, name: &'static CStr) -> Result<Option<&'a [T]>> {
    // SAFETY: the caller's promise.
    if p.is_null() { Ok(None) } else { unsafe { slice(p, n, name).map(Some) } }
}

/// Options of selection over `n_heads` heads, whose longest prefix has `prefix_len` tokens.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_select_params` that leads to what the header says for so many heads and tokens, for `'a`.
pub(super) unsafe fn select_params<'a>(
    p: *const lava_select_params,
    n_heads: usize,
    prefix_len: usize,
) -> Result<SelectParams<'a>> {
    // SAFETY: the caller's promise.
    let Some(p) = (unsafe { read_option(p, c"params")? }) else { return Ok(SelectParams::default()) };
    let floors = [HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine];
    let params = SelectParams {
        head_floor: choose(p.head_floor, &floors, c"head_floor")?,
        alpha: p.alpha,
        head_min: p.head_min as usize,
        // SAFETY: the caller's promise.
        head_weights: unsafe { optional(p.head_weights, n_heads, c"head_weights")? },
        n_sink: p.n_sink as usize,
        // SAFETY: the caller's promise.
        protected_mask: unsafe { optional(p.protected_mask, prefix_len, c"protected_mask")? },
    };
    params.validate(n_heads, prefix_len)?;
    Ok(params)
}

/// Options of a cascade.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_cascade_params`.
pub(super) unsafe fn cascade_params(p: *const lava_cascade_params) -> Result<CascadeParams> {
    // SAFETY: the caller's promise.
    let Some(p) = (unsafe { read_option(p, c"cascade")? }) else { return Ok(CascadeParams::default()) };
    unused(p.reserved)?;
    Ok(CascadeParams { layers: layer_share(p.layers)?, evict_every: p.evict_every as usize })
}

/// How layers share a total.
pub(super) fn layer_share(number: i32) -> Result<LayerShare> {
    let all = [LayerShare::Entropy, LayerShare::Equal, LayerShare::Weights, LayerShare::Global];
    choose(number, &all, c"layers")
}

/// Options of attention, and the kernels that are asked for.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_attend_params` that leads to what the header says for the shape's heads, for `'a`.
pub(super) unsafe fn attend_params<'a>(
    p: *const lava_attend_params,
    shape: &Shape,
) -> Result<(AttendParams<'a>, Backend)> {
    // SAFETY: the caller's promise.
    let Some(p) = (unsafe { read_option(p, c"params")? }) else {
        return Ok((AttendParams { causal: true, ..AttendParams::default() }, Backend::detect()));
    };
    unused(p.reserved)?;
    ensure(p.causal <= 1, ErrorKind::Argument, c"causal")?;
    let positions = match (p.kept_indices.is_null(), p.cu_kept.is_null()) {
        (true, true) => None,
        (false, true) => return Err(Error::new(ErrorKind::Null, c"cu_kept")),
        (_, false) => {
            // SAFETY: not NULL, so the caller promises n_kv_heads + 1 entries.
            let cu_kept = unsafe { slice(p.cu_kept, shape.n_kv_heads + 1, c"cu_kept")? };
            let kept_indices = match cu_kept[shape.n_kv_heads] as usize {
                0 => &[],
                // SAFETY: the caller promises as many positions as cu_kept says.
                n => unsafe { slice(p.kept_indices, n, c"kept_indices")? },
            };
            Some(Positions { kept_indices, cu_kept, n_base: p.n_base })
        }
    };
    let params = AttendParams {
        scale: given(p.scale),
        softcap: given(p.softcap),
        causal: p.causal == 1,
        positions,
        lse_base: lse_base(p.lse_base)?,
        // SAFETY: the caller's promise.
        sink_logits: unsafe { optional(p.sink_logits, shape.n_q_heads, c"sink_logits")? },
    };
    Ok((params, backend(p.backend)?))
}

/// The same for compaction: of a ragged shape the rows are looked at, if they are the source's, and never the positions.
///
/// # Safety
/// As for [`shape`].
pub(super) unsafe fn shape_to_compact<'a>(p: *const lava_shape, has_rows: bool) -> Result<Shape<'a>> {
    // SAFETY: the caller's promise.
    unsafe {
        let given = read_struct(p, c"shape")?;
        let dense = lava_shape { cu_rows: core::ptr::null(), positions: core::ptr::null(), ..given };
        let shape = dense.read().map_err(|e| e.at_layer(given.layer))?;
        shape.validate()?;
        if !has_rows || given.cu_rows.is_null() {
            return Ok(shape);
        }
        let cu_rows =
            slice(given.cu_rows, shape.n_kv_heads + 1, c"cu_rows").map_err(|e| e.at_layer(given.layer))?;
        Ok(shape.with_rows(cu_rows, &[]))
    }
}
