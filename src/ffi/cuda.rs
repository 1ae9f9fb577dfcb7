//! The functions of `include/lava_cuda.h`, a family a file; their comments are that header's. Everything that can be
//! checked on the host is checked before anything is launched. Memory of the device is never followed here.
//!
//! As in the rest of `ffi`, every function is `unsafe` for one reason: pointers must be NULL or lead to as much memory
//! as the function's comment says, on the host or on the device as it says, for as long as it says.

mod attend;
mod budgets;
mod cascade;
mod compact;
mod context;
mod score;
mod select;
mod stats;

pub use attend::*;
pub use budgets::*;
pub use cascade::*;
pub use compact::*;
pub use context::*;
pub use score::*;
pub use select::*;
pub use stats::*;

use core::ffi::{CStr, c_void};
use core::mem::{align_of, offset_of, size_of};

use super::checked;
use super::types::layout;
use super::*;
use crate::backend::cuda::Context;
use crate::backend::cuda::plan::{Batch, DeviceTensor};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{ScoreParams, SelectParams, Shape};
use crate::view::{Dtype, Rows, Strides, Tensor};
use crate::workspace::WORKSPACE_ALIGN;

fn check_context_memory(context: *const c_void) -> Result<()> {
    ensure(!context.is_null(), ErrorKind::Null, c"context")?;
    const { assert!(align_of::<Context>() <= WORKSPACE_ALIGN) };
    ensure((context as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c"context")
}

/// # Safety
/// `context` must be NULL or lead to a context's size of host memory, for `'a`.
unsafe fn reopen<'a>(context: *const c_void) -> Result<&'a Context> {
    check_context_memory(context)?;
    // SAFETY: not NULL and aligned; the size is the caller's promise.
    unsafe { Context::reopen(context) }
}

/// A context whose kernels can be launched from this thread.
///
/// # Safety
/// As for [`reopen`].
unsafe fn current<'a>(context: *const c_void) -> Result<&'a Context> {
    // SAFETY: the caller's promise.
    let cuda = unsafe { reopen(context)? };
    cuda.check_current().map(|()| cuda)
}

/// What a call is given in addition to what it works on. The context's kernels can be launched from this thread.
struct Call<'a> {
    cuda: &'a Context,
    workspace: *mut c_void,
    workspace_size: usize,
    status: *mut u64,
    stream: *mut c_void,
}

impl Call<'_> {
    /// # Safety
    /// As for [`reopen`]. The workspace, the status word and the stream must be the context's, as the header says.
    unsafe fn new(
        context: *const c_void,
        workspace: *mut c_void,
        workspace_size: usize,
        status: *mut u64,
        stream: *mut c_void,
    ) -> Result<Self> {
        // SAFETY: the caller's promise.
        let cuda = unsafe { current(context)? };
        check_pointer(status, c"status")?;
        Ok(Self { cuda, workspace, workspace_size, status, stream })
    }

    /// What it writes in addition to its results.
    fn memory(&self) -> Memory {
        let workspace = self.workspace as *mut u8;
        Memory::default().writes(workspace, self.workspace_size, c"workspace").writes(
            self.status,
            1,
            c"status",
        )
    }

    /// # Safety
    /// What `batch` and the sequences point to must be the device's and as large as the header says, until the stream
    /// has run it.
    unsafe fn run<B: Batch>(
        &self,
        mut batch: B,
        n_sequences: u32,
        sequence: &dyn Fn(usize) -> Result<B::Sequence>,
    ) -> Result<()> {
        let (n, workspace, size) = (n_sequences as usize, self.workspace, self.workspace_size);
        // SAFETY: the caller's promise; the workspace's is that of `new`.
        unsafe { self.cuda.run(&mut batch, n, sequence, workspace, size, self.stream) }
    }
}

/// Bytes of workspace that a batch needs.
///
/// # Safety
/// As for [`reopen`], and `size` must be NULL or writable.
unsafe fn tell_size<B: Batch>(
    context: *const c_void,
    mut batch: B,
    n_sequences: u32,
    size: *mut usize,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let cuda = reopen(context)?;
        put(size, c"size", || Ok(cuda.workspace_size(&mut batch, n_sequences as usize)))
    }
}

fn check_device_memory(workspace: *mut c_void) -> Result<()> {
    ensure(!workspace.is_null(), ErrorKind::Null, c"workspace")?;
    ensure((workspace as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c"workspace")
}

/// Sequence `i` of an array whose elements are as large as their writer's header says.
///
/// # Safety
/// `sequences` must be NULL or lead to more than `i` structs of the size that the first one says.
unsafe fn nth<T: Versioned>(sequences: *const T, i: usize) -> Result<T> {
    // SAFETY: the caller's promise.
    unsafe {
        let first = read_struct(sequences, c"sequences")?;
        let size = (sequences as *const u32).read() as usize;
        let offset = size.checked_mul(i).ok_or(Error::new(ErrorKind::Overflow, c"n_sequences"))?;
        if i == 0 {
            return Ok(first);
        }
        let at = sequences.wrapping_byte_add(offset);
        check_pointer(at, c"sequences")?;
        ensure((at as *const u32).read() as usize == size, ErrorKind::StructSize, c"sequences")?;
        read_struct(at, c"sequences")
    }
}

fn check_n_sequences(n_sequences: u32) -> Result<()> {
    ensure((1..=LAVA_CUDA_MAX_SEQUENCES).contains(&n_sequences), ErrorKind::Argument, c"n_sequences")
}

/// NULL or aligned.
fn check_optional<T>(p: *const T, name: &'static CStr) -> Result<()> {
    if p.is_null() { Ok(()) } else { check_pointer(p, name) }
}

/// Scores of a layer that has some.
fn check_scores(scores: *const f32, shape: &Shape) -> Result<()> {
    match shape.prefix_len() {
        0 => check_optional(scores, c"scores"),
        _ => check_pointer(scores, c"scores"),
    }
}

/// Checks that the GPU can do what a caller asks for: the table at the top of the header.
fn supports(ok: bool, argument: &'static CStr) -> Result<()> {
    ensure(ok, ErrorKind::Unsupported, argument)
}

/// Most tokens of a sequence. Kernels count in 32 bits, and in steps that may end after the last token.
const MAX_TOKENS: usize = (u32::MAX - 4095) as usize;

/// A caller's shape, checked. Ragged heads are refused before their rows are looked at.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_shape`.
unsafe fn dense_shape(p: *const lava_shape) -> Result<Shape<'static>> {
    // SAFETY: the caller's promise; there are no rows or positions to be followed.
    let shape = unsafe {
        let given = read_struct(p, c"shape")?;
        supports(given.cu_rows.is_null(), c"cu_rows").map_err(|e| e.at_layer(given.layer))?;
        checked::shape(p)?
    };
    in_layer(&shape, || ensure(shape.n_tokens <= MAX_TOKENS, ErrorKind::Overflow, c"n_tokens"))?;
    Ok(shape)
}

/// The same, for kernels that do not tell entries that no later query can see from the others.
///
/// # Safety
/// As for [`dense_shape`].
unsafe fn shape_without_sliding(p: *const lava_shape) -> Result<Shape<'static>> {
    // SAFETY: the caller's promise.
    let shape = unsafe { dense_shape(p)? };
    in_layer(&shape, || supports(shape.sliding_window.is_none(), c"sliding_window"))?;
    Ok(shape)
}

/// Options of scoring.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_score_params`.
unsafe fn score_params(p: *const lava_score_params, n_q_heads: usize) -> Result<ScoreParams<'static>> {
    // SAFETY: the caller's promise; there are neither sink logits nor weights to be followed.
    unsafe {
        if let Some(given) = read_option(p, c"params")? {
            supports(given.sink_logits.is_null(), c"sink_logits")?;
            supports(given.query_head_weights.is_null(), c"query_head_weights")?;
            supports(given.backend == LAVA_BACKEND_BEST, c"backend")?;
        }
        Ok(checked::score_params(p, n_q_heads)?.0)
    }
}

/// Options of selection that lead to no memory: each sequence has its own.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_select_params`.
unsafe fn select_params(p: *const lava_select_params) -> Result<SelectParams<'static>> {
    // SAFETY: the caller's promise; there is neither a mask nor weights to be followed.
    unsafe {
        if let Some(given) = read_option(p, c"params")? {
            ensure(given.protected_mask.is_null(), ErrorKind::Argument, c"protected_mask")?;
            ensure(given.head_weights.is_null(), ErrorKind::Argument, c"head_weights")?;
        }
        checked::select_params(p, 0, 0)
    }
}

/// A sequence's or layer's own shape, of no more tokens than the longest.
fn shorter(longest: &Shape<'static>, n_tokens: u32, layer: u32) -> Result<Shape<'static>> {
    let shape = Shape { n_tokens: n_tokens as usize, layer, ..*longest };
    in_layer(&shape, || {
        shape.validate()?;
        ensure(shape.n_tokens <= longest.n_tokens, ErrorKind::Shape, c"n_tokens")?;
        ensure(layer <= 0xffff, ErrorKind::Argument, c"layer")
    })?;
    Ok(shape)
}

fn check_batch(shape: &Shape, n_sequences: u32) -> Result<()> {
    check_n_sequences(n_sequences)?;
    let most = LAVA_CUDA_MAX_SEQUENCES as usize;
    ensure(shape.n_kv_heads <= most, ErrorKind::Shape, c"n_kv_heads")?;
    ensure(shape.layer <= 0xffff, ErrorKind::Argument, c"layer")
}

/// A tensor of the device: checked as strictly as the CPU's, but `row_start` and what it leads to cannot be looked at.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_tensor`.
unsafe fn device_tensor(
    p: *const lava_tensor,
    rows: usize,
    n_heads: usize,
    dim: usize,
    name: &'static CStr,
) -> Result<(DeviceTensor, usize)> {
    // SAFETY: the caller's promise.
    let t = unsafe { read_struct(p, name)? };
    let check = || {
        let dtype = checked::dtype(t.dtype)?;
        let strides =
            Strides { token: t.stride_token, head: t.stride_head, dim: t.stride_dim, row_start: None };
        let heads = if t.row_start.is_null() { n_heads } else { 1 };
        if !t.row_start.is_null() {
            check_pointer(t.row_start, c"row_start")?;
            ensure(t.stride_head == 0, ErrorKind::Stride, c"stride_head")?;
            ensure(t.stride_token > 0, ErrorKind::Stride, c"stride_token")?;
        }
        // SAFETY: the view is for its checks, which are arithmetic; nothing is read through it.
        let view = unsafe {
            Tensor::from_raw(t.data as *mut u8, t.size, dtype, strides, Rows::Same(rows), heads, dim)?
        };
        Ok(if t.row_start.is_null() { view.span().len() } else { t.size })
    };
    let bytes = check().map_err(|e: Error| e.of(name))?;
    let tensor = DeviceTensor {
        data: t.data,
        stride_token: t.stride_token,
        stride_head: t.stride_head,
        stride_dim: t.stride_dim,
        row_start: t.row_start,
        dtype: t.dtype,
        reserved: 0,
    };
    Ok((tensor, bytes))
}

/// The same for f32 alone.
///
/// # Safety
/// As for [`device_tensor`].
unsafe fn device_f32(
    p: *const lava_tensor,
    rows: usize,
    n_heads: usize,
    dim: usize,
    name: &'static CStr,
) -> Result<(DeviceTensor, usize)> {
    // SAFETY: the caller's promise.
    let tensor = unsafe { device_tensor(p, rows, n_heads, dim, name)? };
    ensure(tensor.0.dtype == Dtype::F32 as i32, ErrorKind::Dtype, name)?;
    Ok(tensor)
}

/// As on the CPU.
fn scale(given: Option<f32>, shape: &Shape) -> f32 {
    given.unwrap_or_else(|| (1.0 / (shape.head_dim_k as f64).sqrt()) as f32)
}
