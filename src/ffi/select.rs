//! Selection: scores → kept rows.

use core::ffi::c_void;

use super::budgets::{reads_params, scores_of};
use super::call::*;
use super::checked;
use super::types::*;
use super::versioned::{check_out_struct, write_struct};
use crate::error::{ErrorKind, ensure};
use crate::select;

/// Rows that lava_select keeps: what kept_indices must have room for.
///
/// n_entries: prefix entries to keep.
/// n_kept: receives min(n_entries, all that later queries can see) + n_kv_heads * min(window, n_tokens); untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_n_kept(
    shape: *const lava_shape,
    n_entries: u64,
    n_kept: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, n_kept and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            put(n_kept, c"n_kept", || select::n_kept(&shape, n_entries))
        })
    }
}

/// Bytes of workspace that lava_select needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_select_workspace_size(
    shape: *const lava_shape,
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, size and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            put(size, c"size", || select::workspace_size(&shape))
        })
    }
}

/// Keeps a layer's best entries: the `n_entries` largest scores over all heads, and every head's window.
///
/// Ties go to the lower head, then to the lower token, so the kept set is a function of the scores: the same on every
/// backend, in every run.
///
/// params: may be NULL.
/// scores: f32, lava_n_scores(shape) of them, finite; from lava_score or from anywhere else. May be NULL where there is no prefix.
/// n_entries: prefix entries to keep in this layer, over all heads. If there are fewer, everything that a later query can see is kept.
/// workspace: lava_select_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// kept_indices: receives each head's true token positions, ascending, head after head.
/// kept_capacity: entries that kept_indices (and rows) have room for, at least what lava_n_kept says.
/// cu_kept: n_kv_heads + 1 entries, receives the exclusive prefix sum of the counts, from 0: head h keeps
///     kept_indices[cu_kept[h]] up to kept_indices[cu_kept[h + 1]].
/// rows: NULL, or receives for each kept entry which row of its head in the cache it is, for lava_compact. Without the shape's cu_rows
///     the same numbers as kept_indices.
/// selection: NULL, or receives what was done, in particular whether nothing was evicted.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, BUDGET (below the
///     protected entries or head_min), NONFINITE. Outputs untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_select(
    shape: *const lava_shape,
    params: *const lava_select_params,
    scores: *const f32,
    n_entries: u64,
    workspace: *mut c_void,
    workspace_size: usize,
    kept_indices: *mut u32,
    kept_capacity: u64,
    cu_kept: *mut u32,
    rows: *mut u32,
    selection: *mut lava_selection,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (n_heads, prefix_len) = (shape.n_kv_heads, shape.prefix_len());
                let params = checked::select_params(params, n_heads, prefix_len)?;
                if !selection.is_null() {
                    check_out_struct(selection, c"selection")?;
                }
                let n_kept = select::n_kept(&shape, n_entries)?;
                ensure(kept_capacity >= n_kept, ErrorKind::BufferSize, c"kept_indices")?;
                let n_kept = n_kept as usize;
                reads_params(&params, (n_heads, prefix_len))
                    .reads_rows(&shape)
                    .reads(scores, shape.n_scores() as usize, c"scores")
                    .writes(workspace as *mut u8, workspace_size, c"workspace")
                    .writes(kept_indices, n_kept, c"kept_indices")
                    .writes(cu_kept, n_heads + 1, c"cu_kept")
                    .writes(rows, n_kept, c"rows")
                    .writes(selection, 1, c"selection")
                    .check()?;
                let done = select::select(
                    &shape,
                    &params,
                    scores_of(&shape, scores)?,
                    n_entries,
                    &mut super::call::workspace(workspace, workspace_size)?,
                    slice_mut(kept_indices, n_kept, c"kept_indices")?,
                    slice_mut(cu_kept, n_heads + 1, c"cu_kept")?,
                    if rows.is_null() { None } else { Some(slice_mut(rows, n_kept, c"rows")?) },
                )?;
                if !selection.is_null() {
                    let report = lava_selection {
                        struct_size: 0,
                        everything_kept: done.everything_kept as u32,
                        n_kept: done.n_kept,
                        n_entries: done.n_entries,
                        mass: done.mass,
                        evicted_share: done.evicted_share,
                    };
                    write_struct(selection, report);
                }
                Ok(())
            })
        })
    }
}

/// Bytes of workspace that lava_entries_for_share needs.
///
/// size: receives the bytes; untouched on error.
/// Errors: NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_entries_for_share_workspace_size(
    size: *mut usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: size and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe { run(error, || put(size, c"size", select::entries_for_share_workspace_size)) }
}

/// The fewest entries of a layer whose evicted share of score mass is at most epsilon, without floors or protected
/// entries: for a caller who wants a bound on the loss instead of a size.
///
/// scores: f32, lava_n_scores(shape) of them, finite, not negative (ARGUMENT).
/// epsilon: in [0, 1].
/// workspace: lava_entries_for_share_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// n_entries: receives prefix entries, for lava_select; untouched on error. The share holds to within 1e-12.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, NONFINITE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_entries_for_share(
    shape: *const lava_shape,
    scores: *const f32,
    epsilon: f64,
    workspace: *mut c_void,
    workspace_size: usize,
    n_entries: *mut u64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                Memory::default()
                    .reads(scores, shape.n_scores() as usize, c"scores")
                    .reads_rows(&shape)
                    .writes(workspace as *mut u8, workspace_size, c"workspace")
                    .writes(n_entries, 1, c"n_entries")
                    .check()?;
                let mut carver = super::call::workspace(workspace, workspace_size)?;
                let scores = scores_of(&shape, scores)?;
                put(n_entries, c"n_entries", || {
                    select::entries_for_share(&shape, scores, epsilon, &mut carver)
                })
            })
        })
    }
}
