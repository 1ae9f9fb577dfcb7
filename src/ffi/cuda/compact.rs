//! Compaction: kept rows move together.

use core::cell::Cell;

use super::*;
use crate::backend::cuda::plan::{CompactArgs, CompactBatch, CompactItem};

/// Most caches of a call of lava_cuda_compact: K and V are two in a launch.
pub const LAVA_CUDA_MAX_COMPACT_SEQUENCES: u32 = 32767;

/// One layer of one sequence for lava_cuda_compact. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_cuda_compact_sequence {
    /// sizeof(lava_cuda_compact_sequence), the same for all of a call.
    pub struct_size: u32,
    /// No head of the source has more rows than this when the kernels run.
    pub max_rows: u32,
    /// No head keeps more rows than this. 0: max_rows.
    pub max_kept: u32,
    /// 0.
    pub reserved: u32,
    /// The caches as they are, [rows, n_kv_heads, head_dim]. v_src and v_dst may both be NULL.
    pub k_src: *const lava_tensor,
    /// See k_src.
    pub v_src: *const lava_tensor,
    /// Where the kept rows go, as in lava_compact; in place too.
    pub k_dst: *const lava_tensor,
    /// See k_dst.
    pub v_dst: *const lava_tensor,
    /// Device memory: kept_indices of lava_cuda_select, or rows of lava_cuda_cascade_get; ascending per head.
    pub rows: *const u32,
    /// NULL, or device memory, one number: rows begins that many entries later. From lava_cuda_cascade_get.
    pub rows_offset: *const u64,
    /// Device memory, n_kv_heads + 1 entries.
    pub cu_kept: *const u32,
    /// NULL, or device memory, n_kv_heads entries; receives each head's rows, for lava_cuda_attend. Untouched where
    /// nothing moves: set to zeros before, they keep attention inside the cache after a fault.
    pub n_rows: *mut u32,
}

layout! {
    lava_cuda_compact_sequence: 80, 80 {
        struct_size @ 0, max_rows @ 4, max_kept @ 8, reserved @ 12, k_src @ 16, v_src @ 24, k_dst @ 32, v_dst @ 40,
        rows @ 48, rows_offset @ 56, cu_kept @ 64, n_rows @ 72,
    }
}

/// Bytes of device memory that lava_cuda_compact needs as a workspace.
///
/// size: receives the bytes, enough for tensors of any type and layout; untouched on error.
/// Errors: as lava_cuda_compact. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_compact_workspace_size(
    context: *const c_void,
    n_sequences: u32,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context, size and error are NULL or lead to what the header says: the caller's promise.
    unsafe {
        run(error, || {
            reopen(context)?;
            check_n_caches(n_sequences)?;
            put(size, c"size", || Ok(workspace_size_of(n_sequences)))
        })
    }
}

fn check_n_caches(n_sequences: u32) -> Result<()> {
    let most = LAVA_CUDA_MAX_COMPACT_SEQUENCES;
    ensure((1..=most).contains(&n_sequences), ErrorKind::Argument, c"n_sequences")
}

/// K and V of each cache, each in a launch with those of its kind.
fn workspace_size_of(n_sequences: u32) -> usize {
    2 * n_sequences as usize * size_of::<CompactItem>() + Kind::MANY * WORKSPACE_ALIGN
}

/// lava_compact for any layers of any sequences: gathers each head's kept rows of K and V, into another cache or in
/// place. Everything that rows and cu_kept say stays on the device, so it may follow lava_cuda_select or
/// lava_cuda_cascade_push at once.
///
/// context: from lava_cuda_init.
/// shape: n_kv_heads, head_dim_k and head_dim_v are used; layer is named in errors.
/// sequences: host memory, n_sequences of them, at most LAVA_CUDA_MAX_COMPACT_SEQUENCES, read during the call, as are
///     the tensors they point to. In place is the source's memory with the same data, dtype, stride_token and
///     stride_dim. Then either stride_head or row_start is the very same: each head's rows move to the front of its
///     own. Or both are ragged: rows of all heads close ranks. The caller promises that every row then moves to the
///     front or stays, and that row_start leaves room for what is kept. Otherwise a destination may not share memory
///     with a source or the other destination; K and V interleaved without row_start, with the same strides, are fine.
///     Caches of one call must not share memory that one of them writes.
/// workspace, stream: as for lava_cuda_score; the workspace is lava_cuda_compact_workspace_size bytes.
/// status: device memory, only read: where it has a fault when the kernels run, nothing moves and the caches stay as
///     they were. It must be the status of those calls on this stream which wrote rows and cu_kept, and not change
///     while this call runs.
/// Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE,
///     STATE, CONTEXT: nothing was launched. LAUNCH: some launches may have been, and only part of the tensors moved.
///     Any thread on which the context is
///     current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_compact(
    context: *const c_void,
    shape: *const lava_shape,
    sequences: *const lava_cuda_compact_sequence,
    n_sequences: u32,
    workspace: *mut c_void,
    workspace_size: usize,
    status: *const u64,
    stream: *mut c_void,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let cuda = current(context)?;
            let shape = checked::shape_to_compact(shape, false)?;
            check_n_caches(n_sequences)?;
            ensure(shape.n_kv_heads <= LAVA_CUDA_MAX_SEQUENCES as usize, ErrorKind::Shape, c"n_kv_heads")?;
            check_pointer(status, c"status")?;
            check_device_memory(workspace)?;
            let needed = workspace_size_of(n_sequences);
            ensure(workspace_size >= needed, ErrorKind::Workspace, c"workspace_size")?;
            let moves = |i: usize| {
                let s = nth(sequences, i / 2)?;
                let memory = Memory::default()
                    .writes(workspace as *mut u8, workspace_size, c"workspace")
                    .reads(status, 1, c"status");
                let [k, v] = moves_of(&shape, &s, memory).map_err(|e| e.at_layer(shape.layer))?;
                Ok(if i.is_multiple_of(2) { k } else { v })
            };
            let n_moves = 2 * n_sequences as usize;
            let mut groups = [Group::default(); Kind::MANY];
            for i in 0..n_moves {
                if let Some(found) = moves(i)? {
                    groups[found.kind.number()].add(&found);
                }
            }
            let mut used = 0;
            for (number, group) in groups.iter().enumerate().filter(|(_, group)| group.n > 0) {
                let kind = Kind::of(number);
                let mut batch = CompactBatch {
                    args: CompactArgs {
                        status,
                        n_items: group.n as u32,
                        n_kv_heads: shape.n_kv_heads as u32,
                        per_head: kind.per_head.into(),
                        ..CompactArgs::EMPTY
                    },
                    within: kind.within,
                    bytes: if kind.narrow { 2 } else { 4 },
                    max_dim: group.max_dim,
                };
                // Asked for in order, so the search continues from the last one.
                let last = Cell::new((0, 0));
                let member = |wanted: usize| {
                    let (mut i, mut n) = if wanted < last.get().1 { (0, 0) } else { last.get() };
                    while i < n_moves {
                        if let Some(found) = moves(i)?.filter(|found| found.kind == kind) {
                            if n == wanted {
                                last.set((i, n));
                                return Ok(found.item);
                            }
                            n += 1;
                        }
                        i += 1;
                    }
                    Err(Error::new(ErrorKind::Internal, c"sequences"))
                };
                let (rest, room) = (workspace.wrapping_byte_add(used), workspace_size - used);
                cuda.run(&mut batch, group.n, &member, rest, room, stream)?;
                used += (group.n * size_of::<CompactItem>()).next_multiple_of(WORKSPACE_ALIGN);
            }
            Ok(())
        })
    }
}

/// What tensors of one launch have in common.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    /// In place.
    within: bool,
    /// In place, and each head for itself.
    per_head: bool,
    /// Elements of 16 bits.
    narrow: bool,
}

impl Kind {
    const MANY: usize = 8;

    fn number(self) -> usize {
        usize::from(self.within) + 2 * usize::from(self.per_head) + 4 * usize::from(self.narrow)
    }

    fn of(number: usize) -> Self {
        Self { within: number & 1 != 0, per_head: number & 2 != 0, narrow: number & 4 != 0 }
    }
}

/// K or V of an item.
#[derive(Clone, Copy)]
struct Move {
    kind: Kind,
    item: CompactItem,
}

/// The moves of one kind.
#[derive(Clone, Copy, Default)]
struct Group {
    n: usize,
    max_dim: u32,
}

impl Group {
    fn add(&mut self, found: &Move) {
        self.n += 1;
        self.max_dim = self.max_dim.max(found.item.dim);
    }
}

/// A tensor of an item, and the memory that it takes.
struct Side {
    gpu: DeviceTensor,
    /// Without row_start: what is between its elements is known.
    view: Option<Tensor<'static>>,
    bytes: usize,
}

impl Side {
    /// # Safety
    /// `p` must be NULL or lead to a `lava_tensor`.
    unsafe fn new(
        p: *const lava_tensor,
        shape: &Shape,
        rows: u32,
        dim: usize,
        name: &'static CStr,
    ) -> Result<Self> {
        // SAFETY: the caller's promise.
        let (gpu, bytes) = unsafe { device_tensor(p, rows as usize, shape.n_kv_heads, dim, name)? };
        let strides =
            Strides { token: gpu.stride_token, head: gpu.stride_head, dim: gpu.stride_dim, row_start: None };
        let (data, dtype) = (gpu.data as *mut u8, checked::dtype(gpu.dtype)?);
        let view = match gpu.row_start.is_null() {
            // SAFETY: the view is for its checks, which are arithmetic; nothing is read through it.
            true => Some(unsafe {
                Tensor::from_raw(
                    data,
                    bytes,
                    dtype,
                    strides,
                    Rows::Same(rows as usize),
                    shape.n_kv_heads,
                    dim,
                )?
            }),
            false => None,
        };
        Ok(Self { gpu, view, bytes })
    }

    fn is_disjoint(&self, other: &Side) -> bool {
        if let (Some(a), Some(b)) = (&self.view, &other.view) {
            return a.is_disjoint(b);
        }
        let (a, b) = (self.gpu.data as usize, other.gpu.data as usize);
        self.bytes == 0 || other.bytes == 0 || a + self.bytes <= b || b + other.bytes <= a
    }

    /// Whether rows move within one memory, and then each head for itself.
    fn in_place_of(&self, src: &Side, shape: &Shape, rows: u32, dim: usize) -> Option<bool> {
        let (a, b) = (&self.gpu, &src.gpu);
        let same = |x: i64, y: i64, used: bool| !used || x == y;
        let same_rows = a.data == b.data
            && a.dtype == b.dtype
            && same(a.stride_token, b.stride_token, rows > 1 || !a.row_start.is_null())
            && same(a.stride_dim, b.stride_dim, dim > 1);
        let same_heads =
            a.row_start == b.row_start && same(a.stride_head, b.stride_head, shape.n_kv_heads > 1);
        let both_ragged = !a.row_start.is_null() && !b.row_start.is_null();
        (same_rows && (same_heads || both_ragged)).then_some(same_heads)
    }

    fn touches(&self, memory: Memory, written: bool, n_heads: usize, name: &'static CStr) -> Memory {
        let data = self.gpu.data as *mut u8;
        let memory = match written {
            true => memory.writes(data, self.bytes, name),
            false => memory.reads(data as *const u8, self.bytes, name),
        };
        memory.reads(self.gpu.row_start, n_heads, c"row_start")
    }
}

/// The moves of K and V, every check done. `memory`: what else the call uses.
///
/// # Safety
/// The tensors of `s` must be NULL or lead to a `lava_tensor`.
unsafe fn moves_of(
    shape: &Shape,
    s: &lava_cuda_compact_sequence,
    memory: Memory,
) -> Result<[Option<Move>; 2]> {
    ensure(s.reserved == 0, ErrorKind::StructSize, c"reserved")?;
    ensure(s.max_kept <= s.max_rows, ErrorKind::Argument, c"max_kept")?;
    let entries = s.max_rows as u64 * shape.n_kv_heads as u64;
    ensure(entries <= u32::MAX as u64, ErrorKind::Overflow, c"max_rows")?;
    let max_kept = if s.max_kept == 0 { s.max_rows } else { s.max_kept };
    check_pointer(s.rows, c"rows")?;
    check_pointer(s.cu_kept, c"cu_kept")?;
    check_optional(s.rows_offset, c"rows_offset")?;
    check_optional(s.n_rows, c"n_rows")?;
    // SAFETY: the caller's promise.
    let side = |p, rows, dim, name| unsafe { Side::new(p, shape, rows, dim, name) };
    let k = (
        side(s.k_src, s.max_rows, shape.head_dim_k, c"k_src")?,
        side(s.k_dst, max_kept, shape.head_dim_k, c"k_dst")?,
        shape.head_dim_k,
        c"k_dst",
    );
    let v = match s.v_src.is_null() && s.v_dst.is_null() {
        true => None,
        false => Some((
            side(s.v_src, s.max_rows, shape.head_dim_v, c"v_src")?,
            side(s.v_dst, max_kept, shape.head_dim_v, c"v_dst")?,
            shape.head_dim_v,
            c"v_dst",
        )),
    };
    let mut moves = [None; 2];
    for (to, (src, dst, dim, name)) in moves.iter_mut().zip([Some(&k), v.as_ref()].into_iter().flatten()) {
        ensure(src.gpu.dtype == dst.gpu.dtype, ErrorKind::Dtype, name)?;
        let in_place = dst.in_place_of(src, shape, max_kept, *dim);
        ensure(in_place.is_some() || src.is_disjoint(dst), ErrorKind::Overlap, name)?;
        // Only the device knows how many rows there are: at least one, unless the whole cache is evicted.
        let mut own = Memory::default()
            .reads(s.rows, if s.rows_offset.is_null() { 1 } else { 0 }, c"rows")
            .reads(s.rows_offset, 1, c"rows_offset")
            .reads(s.cu_kept, shape.n_kv_heads + 1, c"cu_kept");
        for other in [Some(&k), v.as_ref()].into_iter().flatten() {
            own = own.reads(other.0.gpu.row_start, shape.n_kv_heads, c"row_start");
            own = own.reads(other.1.gpu.row_start, shape.n_kv_heads, c"row_start");
        }
        let own = own.writes(s.n_rows, shape.n_kv_heads, c"n_rows");
        dst.touches(own, true, 0, name).check()?;
        let is_k = *name == c"k_dst";
        let narrow = src.gpu.dtype != Dtype::F32 as i32;
        *to = Some(Move {
            kind: Kind { within: in_place.is_some(), per_head: in_place == Some(true), narrow },
            item: CompactItem {
                src: src.gpu,
                dst: dst.gpu,
                rows: s.rows,
                cu_kept: s.cu_kept,
                rows_offset: s.rows_offset,
                dim: *dim as u32,
                reserved: 0,
                // Written once, with the keys.
                n_rows: if is_k { s.n_rows } else { core::ptr::null_mut() },
            },
        });
    }
    if let Some(v) = &v {
        ensure(k.1.is_disjoint(&v.0) && k.1.is_disjoint(&v.1), ErrorKind::Overlap, c"k_dst")?;
        ensure(v.1.is_disjoint(&k.0), ErrorKind::Overlap, c"v_dst")?;
    }
    // The workspace is written while all the others are read or waited for.
    let mut memory = memory.reads(s.rows, 1, c"rows").reads(s.rows_offset, 1, c"rows_offset").reads(
        s.cu_kept,
        shape.n_kv_heads + 1,
        c"cu_kept",
    );
    for (src, dst, ..) in [Some(&k), v.as_ref()].into_iter().flatten() {
        memory = src.touches(memory, false, shape.n_kv_heads, c"src");
        memory = dst.touches(memory, false, shape.n_kv_heads, c"dst");
    }
    memory.check()?;
    Ok(moves)
}
