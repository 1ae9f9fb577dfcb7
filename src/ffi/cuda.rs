//! The functions of `include/lava_cuda.h`; comments are that header's. As in `functions.rs`, what is checked is checked before anything is
//! launched, and pointers are believed to lead to as much memory as the comments say. Memory of the device is never followed here.
#![allow(clippy::missing_safety_doc)]
// Brackets in these comments are C shapes and indices, not links.
#![allow(rustdoc::broken_intra_doc_links)]
// Each unsafe block below relies on the contract of the C header and on nothing else, unless it says so.
#![allow(clippy::undocumented_unsafe_blocks)]

mod budgets;
mod cascade;
mod compact;
mod select;
mod stats;

pub use budgets::*;
pub use cascade::*;
pub use compact::*;
pub use select::*;
pub use stats::*;

use core::ffi::{CStr, c_void};
use core::mem::{align_of, offset_of, size_of};

use super::types::layout;
use super::*;
use crate::backend::cuda::Context;
use crate::backend::cuda::plan::{
    AttendArgs, AttendBatch, AttendSequence, Batch, DeviceTensor, ScoreArgs, ScoreSequence,
};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{ScoreParams, Shape, ValueWeight, validate_logit_options};
use crate::view::{Dtype, Rows, Strides, Tensor};
use crate::workspace::WORKSPACE_ALIGN;

/// Most sequences of a call, and most KV heads: a launch's grid has no more.
pub const LAVA_CUDA_MAX_SEQUENCES: u32 = 65535;

/// One sequence of lava_cuda_score. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_score_sequence {
    /// sizeof(lava_cuda_score_sequence), the same for all of a call.
    pub struct_size: u32,
    /// N of this sequence, at most the shape's. With window tokens or fewer there is nothing to score.
    pub n_tokens: u32,
    /// [window, n_q_heads, head_dim_k], after RoPE.
    pub q: *const lava_tensor,
    /// [n_tokens, n_kv_heads, head_dim_k], after RoPE.
    pub k: *const lava_tensor,
    /// [n_tokens, n_kv_heads, head_dim_v]; may be NULL with LAVA_VALUE_NONE.
    pub v: *const lava_tensor,
    /// NULL, or f32 [window, n_q_heads, 1] as in lava_score. Given for all sequences of a call or for none.
    pub lse: *const lava_tensor,
    /// Device memory, f32 [n_kv_heads, n_tokens - window] without gaps; written. May be NULL where there is nothing to score.
    pub scores: *mut f32,
}

/// One sequence of lava_cuda_attend. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_attend_sequence {
    /// sizeof(lava_cuda_attend_sequence), the same for all of a call.
    pub struct_size: u32,
    /// No head has more rows than this when the kernels run.
    pub max_rows: u32,
    /// All heads together have no more rows than this when the kernels run. 0: max_rows * n_kv_heads.
    pub total_rows: u64,
    /// [n_new, n_q_heads, head_dim_k], after RoPE.
    pub q: *const lava_tensor,
    /// [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
    pub k: *const lava_tensor,
    /// [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
    pub v: *const lava_tensor,
    /// f32 [n_new, n_q_heads, head_dim_v]; written.
    pub out: *const lava_tensor,
    /// NULL, or f32 [n_new, n_q_heads, 1]; written.
    pub lse: *const lava_tensor,
    /// Device memory, n_kv_heads counts: each head's rows, the new tokens' own included if causal.
    pub n_rows: *const u32,
    /// Device memory, as in lava_attend_params; needed with a sliding window only.
    pub kept_indices: *const u32,
    /// Device memory, n_kv_heads + 1 entries; needed with a sliding window only.
    pub cu_kept: *const u32,
    /// As in lava_attend_params.
    pub n_base: u32,
    /// Must be 0.
    pub reserved: u32,
    /// NULL, or device memory, one number: kept_indices begins so many entries later. `offset` of lava_cuda_cascade_get.
    pub kept_offset: *const u64,
}

layout! {
    lava_cuda_score_sequence: 48, 48 { struct_size @ 0, n_tokens @ 4, q @ 8, k @ 16, v @ 24, lse @ 32, scores @ 40 }
    lava_cuda_attend_sequence: 96, 96 { struct_size @ 0, max_rows @ 4, total_rows @ 8, q @ 16, k @ 24, v @ 32, out @ 40, lse @ 48, n_rows @ 56, kept_indices @ 64, cu_kept @ 72, n_base @ 80, reserved @ 84, kept_offset @ 88 }
}

/// Bytes of host memory that a context needs, aligned to LAVA_WORKSPACE_ALIGN. The same for one library. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_cuda_context_size() -> usize {
    size_of::<Context>()
}

/// Loads the kernels into the CUDA context that is current on the calling thread.
///
/// The first call of a process loads libcuda, which stays; that, and what the driver does to load code, are the only allocations
/// behind this header. Not to be called while a stream of the context is being captured.
///
/// context: lava_cuda_context_size bytes of host memory, for as long as it is used; what it holds is overwritten. It may be
///     moved, and be used by many threads at a time. A CUDA context needs one of its own.
/// Errors: NULL, ALIGNMENT, BUFFER_SIZE, UNSUPPORTED (a library built without nvcc), DRIVER (argument names a function that
///     libcuda lacks, or the driver's error), CONTEXT. On error nothing stays loaded, and the memory is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_init(
    context: *mut c_void,
    context_size: usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            check_context_memory(context)?;
            ensure(context_size >= size_of::<Context>(), ErrorKind::BufferSize, c"context_size")?;
            let loaded = Context::load()?;
            (context as *mut Context).write(loaded);
            Ok(())
        })
    }
}

/// Unloads the kernels. Nothing that was launched with them may still be running, and no captured graph be launched any more.
///
/// context: from lava_cuda_init. Afterwards it holds none (STATE), whether or not the driver had something to say.
/// Errors: NULL, ALIGNMENT, STATE, CONTEXT (then it is untouched), DRIVER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_destroy(context: *mut c_void, error: *mut lava_error) -> lava_status {
    unsafe {
        run(error, || {
            let loaded = reopen(context)?;
            loaded.check_current()?;
            let result = loaded.unload();
            (context as *mut u64).write(0);
            result
        })
    }
}

/// What a status word says, once the stream is past the calls that were given it and the word is back on the host.
///
/// word: *status of those calls. All bits set: nothing went wrong.
/// sequence: NULL, or receives the sequence of the batch, LAVA_NONE without a fault.
/// error: NULL, or the layer, the KV head, and what was not finite: "lse", "q", "v", "scores", "stats" or "weights"; "q" may be k as well.
///     LAVA_ERR_BUDGET: "total". Where it is no head's, as with the weights of layers, head is LAVA_NONE.
/// Returns LAVA_OK, LAVA_ERR_NONFINITE, LAVA_ERR_BUDGET, or LAVA_ERR_ARGUMENT for what is no status word. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_result(
    word: u64,
    sequence: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let (fault, of_batch) = match word {
                u64::MAX => (None, LAVA_NONE),
                _ => (Some(word & 0xff), (word >> 28) as u32 & 0xfffff),
            };
            let argument = match fault {
                None => c"",
                Some(1) => c"lse",
                Some(2) => c"q",
                Some(3) => c"v",
                Some(4) => c"scores",
                Some(5) => c"total",
                Some(6) => c"stats",
                Some(7) => c"weights",
                Some(_) => return Err(Error::new(ErrorKind::Argument, c"word")),
            };
            if !sequence.is_null() {
                slice_mut(sequence, 1, c"sequence")?[0] = of_batch;
            }
            if fault.is_none() {
                return Ok(());
            }
            let (layer, head) = ((word >> 48) as u32, (word >> 8) as usize & 0xfffff);
            let budget = fault == Some(5);
            let kind = if budget { ErrorKind::Budget } else { ErrorKind::NonFinite };
            let error = Error::new(kind, argument).at_layer(layer);
            Err(if budget || head == NO_HEAD { error } else { error.at_head(head) })
        })
    }
}

/// Bytes of device memory that lava_cuda_score needs as a workspace.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence.
/// size: receives the bytes, enough for tensors of any type and layout, with and without lse; untouched on error.
/// Errors: as lava_cuda_score. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_score_workspace_size(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_score_params,
    n_sequences: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let cuda = reopen(context)?;
            let (shape, mut batch) = score_args(shape, params, n_sequences)?;
            let out = slice_mut(size, 1, c"size")?;
            out[0] = match shape.prefix_len() {
                0 => 0,
                _ => cuda.workspace_size(&mut batch, n_sequences as usize),
            };
            Ok(())
        })
    }
}

/// lava_score for one layer of a batch of sequences of unlike length.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; layer is below 65536.
/// params: as for lava_score.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to. f16 or bf16 rows of
///     elements side by side, 16-byte aligned, have faster kernels, if all sequences have them. The scores of a sequence are the
///     same bits on every device and in every batch of the same kind of tensors.
/// workspace: device memory, lava_cuda_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN, of no other call until the stream
///     is past this one.
/// status: device memory; see the top.
/// stream: a CUstream or cudaStream_t of the context, NULL for its default stream.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, UNSUPPORTED, STATE,
///     CONTEXT: nothing was launched. LAUNCH: some launches may have been. Any thread that has the context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_score(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_score_params,
    sequences: *const lava_cuda_score_sequence,
    n_sequences: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    status: *mut u64,
    stream: *mut c_void,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let cuda = current(context)?;
            let (shape, mut batch) = score_args(shape, params, n_sequences)?;
            check_pointer(status, c"status")?;
            batch.status = status;
            let first = read_struct(sequences, c"sequences")?;
            batch.has_lse = u32::from(!first.lse.is_null());
            let (has_lse, has_values) =
                (!first.lse.is_null(), batch.value_weight != ValueWeight::None as i32);
            let sequence = |i| {
                let s = nth(sequences, i)?;
                let own = shorter(&shape, s.n_tokens, shape.layer)?;
                check_scores(s.scores, &own)?;
                let memory = with_status(workspace, workspace_size, status);
                let memory = memory.writes(s.scores, own.prefix_entries() as usize, c"scores");
                score_sequence(&own, &s, has_lse, has_values, memory)
            };
            if shape.prefix_len() == 0 {
                return (0..n_sequences as usize).try_for_each(|i| sequence(i).map(|_| ()));
            }
            cuda.run(&mut batch, n_sequences as usize, &sequence, workspace, workspace_size, stream)
        })
    }
}

/// Bytes of device memory that lava_cuda_attend needs as a workspace.
///
/// shape: n_tokens is the number of new queries of each sequence; window is not used but must be at least 1.
/// total_rows: sum over the sequences of total_rows, or of what stands for it.
/// size: receives the bytes, enough for tensors of any type and layout; untouched on error.
/// Errors: as lava_cuda_attend. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_attend_workspace_size(
    context: *const c_void,
    shape: *const lava_shape,
    n_sequences: u32,
    total_rows: u64,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let shape = read_struct(shape, c"shape")?.check()?;
            tell_size(
                context,
                attend_args(&shape, &lava_attend_params::none(), n_sequences, total_rows)?,
                n_sequences,
                size,
            )
        })
    }
}

/// lava_attend for a batch of sequences, each with as many new queries and a compressed cache of its own.
///
/// The counts n_rows are read on the device, when the kernels run: a captured graph stays good while caches grow, up to max_rows and
/// total_rows. A larger count is taken as max_rows, and what all heads together have more than total_rows is left out. With causal, a head of fewer than n_tokens rows has queries that see
/// nothing: the first ones.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is the number of new queries of each sequence; layer is below 65536.
/// params: kept_indices, cu_kept and n_base are 0 here: each sequence has its own.
/// sequences, workspace, status, stream: as for lava_cuda_score. The workspace is lava_cuda_attend_workspace_size bytes. A sequence's
///     outputs are the same bits whatever other sequences there are, for the same kinds of tensors.
/// Errors: as lava_cuda_score.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_attend(
    context: *const c_void,
    shape: *const lava_shape,
    params: *const lava_attend_params,
    sequences: *const lava_cuda_attend_sequence,
    n_sequences: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    status: *mut u64,
    stream: *mut c_void,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let cuda = current(context)?;
            let shape = read_struct(shape, c"shape")?.check()?;
            let params = read_struct(params, c"params")?;
            check_pointer(status, c"status")?;
            check_batch(&shape, n_sequences)?;
            let mut total_rows = 0u64;
            for i in 0..n_sequences as usize {
                let rows = total_rows_of(&nth(sequences, i)?, &shape)?;
                total_rows =
                    total_rows.checked_add(rows).ok_or(Error::new(ErrorKind::Overflow, c"total_rows"))?;
            }
            let mut batch = attend_args(&shape, &params, n_sequences, total_rows)?;
            batch.args.status = status;
            let slides = params.sliding_window > 0;
            let sequence = |i| {
                let s = nth(sequences, i)?;
                let memory = with_status(workspace, workspace_size, status);
                attend_sequence(&shape, &s, slides, memory)
            };
            cuda.run(&mut batch, n_sequences as usize, &sequence, workspace, workspace_size, stream)
        })
    }
}

/// In a status word, where a fault is no head's (plan.h: LAVA_NO_HEAD).
const NO_HEAD: usize = 0xfffff;

fn check_context_memory(context: *const c_void) -> Result<()> {
    ensure(!context.is_null(), ErrorKind::Null, c"context")?;
    const { assert!(align_of::<Context>() <= WORKSPACE_ALIGN) };
    ensure((context as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c"context")
}

unsafe fn reopen<'a>(context: *const c_void) -> Result<&'a Context> {
    check_context_memory(context)?;
    unsafe { Context::reopen(context) }
}

/// A context whose kernels can be launched from this thread.
unsafe fn current<'a>(context: *const c_void) -> Result<&'a Context> {
    let cuda = unsafe { reopen(context)? };
    cuda.check_current().map(|()| cuda)
}

/// Bytes of workspace that a batch needs.
unsafe fn tell_size<B: Batch>(
    context: *const c_void,
    mut batch: B,
    n_sequences: u32,
    size: *mut usize,
) -> Result<()> {
    unsafe {
        let cuda = reopen(context)?;
        slice_mut(size, 1, c"size")?[0] = cuda.workspace_size(&mut batch, n_sequences as usize);
        Ok(())
    }
}

fn check_device_memory(workspace: *mut c_void) -> Result<()> {
    ensure(!workspace.is_null(), ErrorKind::Null, c"workspace")?;
    ensure((workspace as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c"workspace")
}

/// Sequence `i` of an array whose elements are as large as their writer's header says.
unsafe fn nth<T: Versioned>(sequences: *const T, i: usize) -> Result<T> {
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

/// A sequence's or layer's own shape, of no more tokens than the longest.
fn shorter(longest: &Shape, n_tokens: u32, layer: u32) -> Result<Shape> {
    let shape = Shape { n_tokens: n_tokens as usize, layer, ..*longest };
    shape.validate()?;
    ensure(shape.n_tokens <= longest.n_tokens, ErrorKind::Shape, c"n_tokens")?;
    ensure(layer <= 0xffff, ErrorKind::Argument, c"layer")?;
    Ok(shape)
}

/// What every call writes.
fn with_status(workspace: *mut c_void, workspace_size: usize, status: *mut u64) -> Memory {
    Memory::default().writes(workspace as *mut u8, workspace_size, c"workspace").writes(status, 1, c"status")
}

fn check_batch(shape: &Shape, n_sequences: u32) -> Result<()> {
    check_n_sequences(n_sequences)?;
    let most = LAVA_CUDA_MAX_SEQUENCES as usize;
    ensure(shape.n_kv_heads <= most, ErrorKind::Shape, c"n_kv_heads")?;
    ensure(shape.layer <= 0xffff, ErrorKind::Argument, c"layer")
}

/// A tensor of the device: as strict as the CPU's, but that `row_start` and what it leads to cannot be looked at.
unsafe fn device_tensor(
    p: *const lava_tensor,
    rows: usize,
    n_heads: usize,
    dim: usize,
    name: &'static CStr,
) -> Result<(DeviceTensor, usize)> {
    let t = unsafe { read_struct(p, name)? };
    let check = || {
        let dtype = super::types::dtype(t.dtype)?;
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
unsafe fn device_f32(
    p: *const lava_tensor,
    rows: usize,
    n_heads: usize,
    dim: usize,
    name: &'static CStr,
) -> Result<(DeviceTensor, usize)> {
    let tensor = unsafe { device_tensor(p, rows, n_heads, dim, name)? };
    ensure(tensor.0.dtype == Dtype::F32 as i32, ErrorKind::Dtype, name)?;
    Ok(tensor)
}

/// What scoring is launched with, but for the sequences and the status.
unsafe fn score_args(
    shape: *const lava_shape,
    params: *const lava_score_params,
    n_sequences: u32,
) -> Result<(Shape, ScoreArgs)> {
    let (shape, params) =
        unsafe { (read_struct(shape, c"shape")?.check()?, read_struct(params, c"params")?.check()?) };
    check_batch(&shape, n_sequences)?;
    let ScoreParams { pool, group_reduce, value_span, attention, value_weight, .. } = params;
    // The largest things the plan multiplies: sums and maxima of each row in each range of at least 64 keys, by up to 4 warps; column
    // sums; outputs of each query head in each range.
    let rows = shape.group_size() as u128 * (shape.window as u128).next_multiple_of(16);
    let heads = shape.n_kv_heads as u128 * n_sequences as u128;
    let outputs = shape.group_size() as u128 * shape.head_dim_v as u128;
    let bytes = 4
        * heads
        * ((8 * rows + outputs) * (shape.n_tokens as u128 / 64 + 2)
            + 4 * shape.n_q_heads as u128 * shape.n_tokens as u128);
    ensure(rows <= u32::MAX as u128 && bytes <= isize::MAX as u128, ErrorKind::Overflow, c"n_tokens")?;
    let args = ScoreArgs {
        sequences: core::ptr::null(),
        one: ScoreSequence {
            q: DeviceTensor::NONE,
            k: DeviceTensor::NONE,
            v: DeviceTensor::NONE,
            lse: DeviceTensor::NONE,
            scores: core::ptr::null_mut(),
            n_tokens: 0,
            reserved: 0,
        },
        layer: shape.layer,
        n_q_heads: shape.n_q_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim_k: shape.head_dim_k as u32,
        head_dim_v: shape.head_dim_v as u32,
        window: shape.window as u32,
        pool: pool as i32,
        pool_kernel: params.pool_kernel as u32,
        group_reduce: group_reduce as i32,
        value_span: value_span as i32,
        attention: attention as i32,
        value_weight: value_weight as i32,
        sliding_window: params.sliding_window.unwrap_or(0) as u32,
        scale: scale(params.scale, &shape),
        softcap: params.softcap.unwrap_or(0.0),
        gamma: params.gamma,
        decay: params.decay,
        weight: params.weight,
        smoothing: params.smoothing,
        has_lse: 0,
        n_sequences,
        max_tokens: shape.n_tokens as u32,
        keys_per_range: 0,
        row_warps: 0,
        key_split: 0,
        reserved: 0,
        workspace: [core::ptr::null_mut(); 8],
        status: core::ptr::null_mut(),
    };
    Ok((shape, args))
}

/// As the CPU has it.
fn scale(given: Option<f32>, shape: &Shape) -> f32 {
    given.unwrap_or_else(|| (1.0 / (shape.head_dim_k as f64).sqrt()) as f32)
}

/// A sequence of its own shape; what it writes is in `memory`.
unsafe fn score_sequence(
    shape: &Shape,
    s: &lava_cuda_score_sequence,
    has_lse: bool,
    has_values: bool,
    memory: Memory,
) -> Result<ScoreSequence> {
    let window = shape.window.min(shape.n_tokens);
    unsafe {
        let (q, q_bytes) = device_tensor(s.q, window, shape.n_q_heads, shape.head_dim_k, c"q")?;
        let (k, k_bytes) = device_tensor(s.k, shape.n_tokens, shape.n_kv_heads, shape.head_dim_k, c"k")?;
        let (v, v_bytes) = match has_values {
            true => device_tensor(s.v, shape.n_tokens, shape.n_kv_heads, shape.head_dim_v, c"v")?,
            false => (DeviceTensor::NONE, 0),
        };
        ensure(s.lse.is_null() != has_lse, ErrorKind::Argument, c"lse")?;
        let (lse, lse_bytes) = match has_lse {
            true => device_f32(s.lse, window, shape.n_q_heads, 1, c"lse")?,
            false => (DeviceTensor::NONE, 0),
        };
        memory
            .reads(q.data as *const u8, q_bytes, c"q")
            .reads(k.data as *const u8, k_bytes, c"k")
            .reads(v.data as *const u8, v_bytes, c"v")
            .reads(lse.data as *const u8, lse_bytes, c"lse")
            .check()?;
        Ok(ScoreSequence { q, k, v, lse, scores: s.scores, n_tokens: s.n_tokens, reserved: 0 })
    }
}

impl lava_attend_params {
    /// What a workspace's size does not depend on.
    fn none() -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            causal: 0,
            scale: 0.0,
            softcap: 0.0,
            sliding_window: 0,
            n_base: 0,
            kept_indices: core::ptr::null(),
            cu_kept: core::ptr::null(),
        }
    }
}

/// What attention is launched with, but for the sequences and the status.
fn attend_args(
    shape: &Shape,
    params: &lava_attend_params,
    n_sequences: u32,
    total_rows: u64,
) -> Result<AttendBatch> {
    check_batch(shape, n_sequences)?;
    ensure(params.causal <= 1, ErrorKind::Argument, c"causal")?;
    ensure(params.kept_indices.is_null(), ErrorKind::Argument, c"kept_indices")?;
    ensure(params.cu_kept.is_null(), ErrorKind::Argument, c"cu_kept")?;
    ensure(params.n_base == 0, ErrorKind::Argument, c"n_base")?;
    let given = |x: f32| (x != 0.0).then_some(x);
    validate_logit_options(given(params.scale), given(params.softcap))?;
    // The plan's sizes: an item is at least one row, and each head may end in a part of one.
    let queries = shape.n_tokens as u128 * shape.group_size() as u128;
    let items = total_rows as u128 / 16 + n_sequences as u128 * shape.n_kv_heads as u128;
    let bytes = items * queries * (shape.head_dim_v as u128 + 2) * 4;
    ensure(queries <= i32::MAX as u128, ErrorKind::Overflow, c"n_tokens")?;
    ensure(items <= u32::MAX as u128 && bytes <= isize::MAX as u128, ErrorKind::Overflow, c"total_rows")?;
    let args = AttendArgs {
        sequences: core::ptr::null(),
        one: AttendSequence {
            q: DeviceTensor::NONE,
            k: DeviceTensor::NONE,
            v: DeviceTensor::NONE,
            out: DeviceTensor::NONE,
            lse: DeviceTensor::NONE,
            n_rows: core::ptr::null(),
            kept_indices: core::ptr::null(),
            cu_kept: core::ptr::null(),
            kept_offset: core::ptr::null(),
            n_base: 0,
            max_rows: 0,
        },
        layer: shape.layer,
        n_new: shape.n_tokens as u32,
        n_q_heads: shape.n_q_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim_k: shape.head_dim_k as u32,
        head_dim_v: shape.head_dim_v as u32,
        causal: params.causal,
        sliding_window: params.sliding_window,
        scale: scale(given(params.scale), shape),
        softcap: params.softcap,
        n_sequences,
        rows_per_item: 0,
        max_items: 0,
        reserved: 0,
        partial: core::ptr::null_mut(),
        status: core::ptr::null_mut(),
    };
    Ok(AttendBatch { args, total_rows })
}

fn total_rows_of(s: &lava_cuda_attend_sequence, shape: &Shape) -> Result<u64> {
    let most = s.max_rows as u64 * shape.n_kv_heads as u64;
    ensure(s.total_rows <= most, ErrorKind::Argument, c"total_rows")?;
    Ok(if s.total_rows == 0 { most } else { s.total_rows })
}

unsafe fn attend_sequence(
    shape: &Shape,
    s: &lava_cuda_attend_sequence,
    slides: bool,
    memory: Memory,
) -> Result<AttendSequence> {
    ensure(s.reserved == 0, ErrorKind::Argument, c"reserved")?;
    let (n_new, rows) = (shape.n_tokens, s.max_rows as usize);
    unsafe {
        let (q, q_bytes) = device_tensor(s.q, n_new, shape.n_q_heads, shape.head_dim_k, c"q")?;
        let (k, k_bytes) = device_tensor(s.k, rows, shape.n_kv_heads, shape.head_dim_k, c"k")?;
        let (v, v_bytes) = device_tensor(s.v, rows, shape.n_kv_heads, shape.head_dim_v, c"v")?;
        let (out, out_bytes) = device_f32(s.out, n_new, shape.n_q_heads, shape.head_dim_v, c"out")?;
        let (lse, lse_bytes) = match s.lse.is_null() {
            true => (DeviceTensor::NONE, 0),
            false => device_f32(s.lse, n_new, shape.n_q_heads, 1, c"lse")?,
        };
        check_pointer(s.n_rows, c"n_rows")?;
        if slides {
            check_pointer(s.kept_indices, c"kept_indices")?;
            check_pointer(s.cu_kept, c"cu_kept")?;
            check_optional(s.kept_offset, c"kept_offset")?;
        }
        memory
            .reads(q.data as *const u8, q_bytes, c"q")
            .reads(k.data as *const u8, k_bytes, c"k")
            .reads(v.data as *const u8, v_bytes, c"v")
            .reads(s.n_rows, shape.n_kv_heads, c"n_rows")
            .writes(out.data as *mut u8, out_bytes, c"out")
            .writes(lse.data as *mut u8, lse_bytes, c"lse")
            .check()?;
        let (kept_indices, cu_kept) = (s.kept_indices, s.cu_kept);
        Ok(AttendSequence {
            q,
            k,
            v,
            out,
            lse,
            n_rows: s.n_rows,
            kept_indices,
            cu_kept,
            kept_offset: s.kept_offset,
            n_base: s.n_base,
            max_rows: s.max_rows,
        })
    }
}
