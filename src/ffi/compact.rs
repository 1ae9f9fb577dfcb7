//! Compaction: kept rows move together.

use super::call::*;
use super::checked;
use super::score::cache_rows;
use super::types::*;
use crate::compact;
use crate::error::{ErrorKind, ensure};
use crate::params::split;
use crate::view::{Rows, TensorMut};

/// Evicts: gathers each head's kept rows of K and V, in position order, into another cache or in place.
///
/// Row rows[cu_kept[h] + r] of head h becomes row r of head h. Keys already include RoPE; nothing is re-rotated. True positions
/// stay with the caller in kept_indices.
///
/// shape: n_kv_heads, head_dim_k and head_dim_v are used, and for the source n_tokens or cu_rows; its positions are not.
/// k_src, v_src: the caches as they are, [rows, n_kv_heads, head_dim]. v_src and v_dst may both be NULL (a cache of keys only).
/// cu_rows: NULL if each head has the rows that the shape says; else n_kv_heads + 1 entries, the prefix sum of each head's rows in
///     the source (from lava_cascade_get).
/// rows: rows of lava_select or lava_cascade_get; ascending per head. May be NULL where cu_kept ends in 0.
/// cu_kept: n_kv_heads + 1 entries.
/// k_dst, v_dst: where the kept rows go, of the source's element type; each head needs room for its kept rows. Any layout:
///     ragged with row_start = cu_kept is the smallest; ragged with room after each head lets it grow.
///     In place is the source's memory, with the same data, dtype, stride_token and stride_dim. Then either the
///     heads stay where they are (no row_start, or the same): each head's rows move to its own front. Or both are
///     ragged and every row moves to the front of the buffer or stays (the heads close ranks; row_start may lead anywhere
///     into a larger buffer, such as an arena that layers share): then n_parts must be 1.
///     Otherwise a destination may not share memory with a source or the other destination; K and V interleaved in one
///     buffer with the same strides are fine.
/// part, n_parts: as in lava_score: a share of the KV heads. In place each part runs once: a second run would move rows
///     again. What moves is what the cache holds now; the scores are not looked at.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, STRIDE, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, DTYPE, INDICES. Neither
///     cache is touched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_compact(
    shape: *const lava_shape,
    k_src: *const lava_tensor,
    v_src: *const lava_tensor,
    cu_rows: *const u32,
    rows: *const u32,
    cu_kept: *const u32,
    k_dst: *const lava_tensor,
    v_dst: *const lava_tensor,
    part: u32,
    n_parts: u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says, destinations to memory that may be written; other parts
    // write other heads' rows: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape_to_compact(shape, cu_rows.is_null())?;
            in_layer(&shape, || {
                let n_heads = shape.n_kv_heads;
                let heads = split(n_heads, part as usize, n_parts as usize)?;
                let cu_kept = slice(cu_kept, n_heads + 1, c"cu_kept")?;
                ensure(cu_kept.is_sorted(), ErrorKind::Indices, c"cu_kept")?;
                let rows = match cu_kept[n_heads] as usize {
                    0 => &[],
                    n => slice(rows, n, c"rows")?,
                };
                let before = match cu_rows.is_null() {
                    true => cache_rows(&shape),
                    false => Rows::Cu(slice(cu_rows, n_heads + 1, c"cu_rows")?),
                };
                let view = |t, rows, dim, name| tensor(t, rows, n_heads, dim, name);
                let after = Rows::Cu(cu_kept);
                let k = (
                    view(k_src, before, shape.head_dim_k, c"k_src")?,
                    view(k_dst, after, shape.head_dim_k, c"k_dst")?,
                    c"k_dst",
                );
                let v = match v_src.is_null() && v_dst.is_null() {
                    true => None,
                    false => Some((
                        view(v_src, before, shape.head_dim_v, c"v_src")?,
                        view(v_dst, after, shape.head_dim_v, c"v_dst")?,
                        c"v_dst",
                    )),
                };

                // Every check, of both tensors and all heads, before the first row moves.
                for (src, dst, name) in [Some(k), v].into_iter().flatten() {
                    compact::check_rows(&src, &dst, rows, cu_kept, 0..n_heads)
                        .map_err(|e| if e.argument == c"dst" { e.of(name) } else { e })?;
                    let apart = src.is_disjoint(&dst);
                    let in_place = || dst.is_in_place_of(&src, rows, cu_kept, n_parts == 1);
                    ensure(apart || in_place(), ErrorKind::Overlap, name)?;
                    // All that is read while rows move. A destination's own row_start is added with it.
                    let mut memory = Memory::default()
                        .reads(rows.as_ptr(), rows.len(), c"rows")
                        .reads(cu_kept.as_ptr(), cu_kept.len(), c"cu_kept")
                        .reads(cu_rows, n_heads + 1, c"cu_rows")
                        .reads_rows(&shape)
                        .writes_tensor(&dst, name);
                    for t in [Some(k), v].into_iter().flatten().flat_map(|(src, dst, _)| [src, dst]) {
                        memory = memory.reads(t.row_start().as_ptr(), t.row_start().len(), c"row_start");
                    }
                    memory.check()?;
                }
                if let Some(v) = v {
                    ensure(k.1.is_disjoint(&v.0) && k.1.is_disjoint(&v.1), ErrorKind::Overlap, c"k_dst")?;
                    ensure(v.1.is_disjoint(&k.0), ErrorKind::Overlap, c"v_dst")?;
                }
                for (src, dst, _) in [Some(k), v].into_iter().flatten() {
                    let mut dst = TensorMut::from_tensor(dst);
                    compact::compact(&src, &mut dst, rows, cu_kept, heads.clone())?;
                }
                Ok(())
            })
        })
    }
}
