//! Eviction.

use super::*;
use crate::backend::cuda::plan::{CompactArgs, CompactBatch, CompactItem};

/// One cache of lava_cuda_compact: a layer of a sequence. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_compact_sequence {
    /// sizeof(lava_cuda_compact_sequence), the same for all of a call.
    pub struct_size: u32,
    /// No head has more rows than this before; at most the shape's.
    pub n_tokens: u32,
    /// As in lava_compact.
    pub k_src: *const lava_tensor,
    /// As in lava_compact; v_src and v_dst may both be NULL.
    pub v_src: *const lava_tensor,
    /// As in lava_compact.
    pub k_dst: *const lava_tensor,
    /// As in lava_compact.
    pub v_dst: *const lava_tensor,
    /// Device memory: kept_indices of lava_cuda_select, or rows of lava_cuda_cascade_get: ascending per head.
    pub rows: *const u32,
    /// Device memory, n_kv_heads + 1 entries.
    pub cu_kept: *const u32,
    /// NULL, or device memory, one number: rows begins so many entries later.
    pub rows_offset: *const u64,
}

layout! {
    lava_cuda_compact_sequence: 64, 64 { struct_size @ 0, n_tokens @ 4, k_src @ 8, v_src @ 16, k_dst @ 24, v_dst @ 32, rows @ 40, cu_kept @ 48, rows_offset @ 56 }
}

/// Where a cache's rows go.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Apart,
    /// In place, and each head's rows stay its own.
    Heads,
    /// In place, and the rows of all heads move to the front.
    Ragged,
}

/// lava_compact for caches side by side, counts and rows unread by the host.
///
/// What the host cannot see, it believes: that rows ascend per head and lie inside the source, that cu_kept ascends, that each
/// head of a destination has room, and in place that no row moves backwards. K and V go by themselves: of a call, all K are in place
/// or none is, with one size of elements, and so are all V.
///
/// context: from lava_cuda_init.
/// shape: n_tokens is that of the longest sequence; n_kv_heads, head_dim_k and head_dim_v are used.
/// sequences: host memory, n_sequences of them, read during the call, as are the tensors they point to. In place is as in lava_compact,
///     both ragged or both not.
/// workspace: device memory, 256 bytes for each sequence, aligned to LAVA_WORKSPACE_ALIGN; NULL will do for a single one.
/// stream: as for lava_cuda_score. There is no status: rows are moved as bits.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE, STATE, CONTEXT: nothing was
///     launched. LAUNCH: some launches may have been. Any thread that has the context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_compact(
    context: *const c_void,
    shape: *const lava_shape,
    sequences: *const lava_cuda_compact_sequence,
    n_sequences: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    stream: *mut c_void,
    error: *mut lava_error,
) -> lava_status {
    unsafe {
        run(error, || {
            let cuda = current(context)?;
            let longest = read_struct(shape, c"shape")?.check()?;
            check_batch(&longest, n_sequences)?;
            if n_sequences > 1 {
                check_device_memory(workspace)?;
            }
            let n = n_sequences as usize;
            let room = workspace_size / 2 / WORKSPACE_ALIGN * WORKSPACE_ALIGN;
            let first = read_struct(sequences, c"sequences")?;
            // Everything of both is looked at before the first is launched.
            let mut k = batch(&longest, &first, false, n_sequences)?;
            let mut v = batch(&longest, &first, true, n_sequences)?;
            for i in 0..n {
                let s = nth(sequences, i)?;
                let mut memory = Memory::default();
                for (tensor, of_v) in [(&k, false), (&v, true)] {
                    ensure(tensor.is_none() == (of_v && s.v_src.is_null()), ErrorKind::Null, c"v_src")?;
                    let Some((batch, place)) = tensor else { continue };
                    let (item, own) = item(&longest, &s, of_v)?;
                    ensure(own.place == *place, ErrorKind::Argument, own.name)?;
                    ensure(own.bytes == batch.bytes, ErrorKind::Dtype, own.name)?;
                    memory = memory.writes(own.dst.0, own.dst.1, own.name);
                    if own.place == Place::Apart {
                        memory = memory.reads(item.src.data as *const u8, own.src_bytes, own.name);
                    }
                }
                memory
                    .reads(s.rows, 1, c"rows")
                    .reads(s.cu_kept, longest.n_kv_heads + 1, c"cu_kept")
                    .reads(s.rows_offset, 1, c"rows_offset")
                    .writes(workspace as *mut u8, workspace_size, c"workspace")
                    .check()?;
            }
            let needed = if n > 1 { 2 * (n * size_of::<CompactItem>()).next_multiple_of(16) } else { 0 };
            ensure(workspace_size >= needed, ErrorKind::Workspace, c"workspace_size")?;
            for (tensor, of_v) in [(&mut k, false), (&mut v, true)] {
                let Some((batch, _)) = tensor else { continue };
                let at = if of_v { workspace.wrapping_byte_add(room) } else { workspace };
                let of = |i| item(&longest, &nth(sequences, i)?, of_v).map(|(item, _)| item);
                cuda.run(batch, n, &of, at, if n > 1 { room } else { 0 }, stream)?;
            }
            Ok(())
        })
    }
}

/// What the host knows of one tensor's move.
struct Own {
    place: Place,
    bytes: u32,
    src_bytes: usize,
    dst: (*mut u8, usize),
    name: &'static CStr,
}

/// What all sequences of a call must have in common with the first, or nothing if it has no such tensor.
unsafe fn batch(
    longest: &Shape,
    first: &lava_cuda_compact_sequence,
    of_v: bool,
    n_sequences: u32,
) -> Result<Option<(CompactBatch, Place)>> {
    if of_v && first.v_src.is_null() {
        ensure(first.v_dst.is_null(), ErrorKind::Null, c"v_src")?;
        return Ok(None);
    }
    let (one, own) = unsafe { item(longest, first, of_v)? };
    let args = CompactArgs {
        items: core::ptr::null(),
        one,
        n_items: n_sequences,
        n_kv_heads: longest.n_kv_heads as u32,
        per_head: u32::from(own.place == Place::Heads),
        reserved: 0,
    };
    let within = own.place != Place::Apart;
    Ok(Some((CompactBatch { args, within, bytes: own.bytes, max_dim: one.dim }, own.place)))
}

/// K or V of a sequence.
unsafe fn item(longest: &Shape, s: &lava_cuda_compact_sequence, of_v: bool) -> Result<(CompactItem, Own)> {
    let shape = shorter(longest, s.n_tokens, longest.layer)?;
    check_pointer(s.rows, c"rows")?;
    check_pointer(s.cu_kept, c"cu_kept")?;
    check_optional(s.rows_offset, c"rows_offset")?;
    let (src, dst, dim) = match of_v {
        false => ((s.k_src, c"k_src"), (s.k_dst, c"k_dst"), shape.head_dim_k),
        true => ((s.v_src, c"v_src"), (s.v_dst, c"v_dst"), shape.head_dim_v),
    };
    let name = dst.1;
    let (src, src_bytes) = unsafe { device_tensor(src.0, shape.n_tokens, shape.n_kv_heads, dim, src.1)? };
    // How many rows it has to hold is known on the device alone: one of each head is the least.
    let (dst, dst_bytes) = unsafe { device_tensor(dst.0, 1, shape.n_kv_heads, dim, dst.1)? };
    ensure(src.dtype == dst.dtype, ErrorKind::Dtype, name)?;
    let place = if src.data != dst.data {
        Place::Apart
    } else {
        let same = src.stride_token == dst.stride_token && src.stride_dim == dst.stride_dim;
        ensure(same, ErrorKind::Overlap, name)?;
        if src.row_start == dst.row_start {
            ensure(src.stride_head == dst.stride_head, ErrorKind::Overlap, name)?;
            Place::Heads
        } else {
            ensure(!src.row_start.is_null() && !dst.row_start.is_null(), ErrorKind::Overlap, name)?;
            Place::Ragged
        }
    };
    let bytes = if src.dtype == Dtype::F32 as i32 { 4 } else { 2 };
    let own = Own { place, bytes, src_bytes, dst: (dst.data as *mut u8, dst_bytes), name };
    let item = CompactItem {
        src,
        dst,
        rows: s.rows,
        cu_kept: s.cu_kept,
        rows_offset: s.rows_offset,
        dim: dim as u32,
        reserved: 0,
    };
    Ok((item, own))
}
