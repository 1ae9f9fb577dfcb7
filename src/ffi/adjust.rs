//! What is done to scores between scoring and selection.

use super::budgets::reads_params;
use super::call::*;
use super::checked;
use super::types::*;
use crate::adjust;
use crate::error::{ErrorKind, Result, ensure};
use crate::params::{SelectParams, Shape};

/// Gives all heads the mean of their scores, in place. With equal head budgets (lava_select_params_equal) they then keep the same
/// tokens: TOVA's one set for all heads (arXiv 2401.06104).
///
/// shape: without cu_rows, since heads must have the same tokens (UNSUPPORTED).
/// scores: f32 [n_kv_heads, n_tokens - window], finite.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, NONFINITE, UNSUPPORTED. Untouched on error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_mean_over_heads(
    shape: *const lava_shape,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: shape, scores and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                ensure(shape.ragged.is_none(), ErrorKind::Unsupported, c"cu_rows")?;
                let n = shape.n_scores() as usize;
                let scores = if n == 0 { &mut [] } else { slice_mut(scores, n, c"scores")? };
                adjust::mean_over_heads(&shape, scores)
            })
        })
    }
}

/// Adds smoothing times a head's mean score to all its scores: what nobody asked about is not nothing. As smoothing of
/// lava_score_params, but after scores were joined, and with what is protected left out of the mean: the first tokens draw so much
/// attention that they would be most of it.
///
/// params: may be NULL; of these n_sink and protected_mask are used: what will be selected with.
/// smoothing: finite, not negative.
/// scores: f32, lava_n_scores(shape) of them, as in lava_score, finite; read and written. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, NONFINITE (naming the head). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_smooth(
    shape: *const lava_shape,
    params: *const lava_select_params,
    smoothing: f32,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise. Of head_weights nothing is read.
    unsafe {
        by_means(shape, params, scores, error, |shape, params, s| adjust::smooth(shape, params, smoothing, s))
    }
}

/// Raises a head's scores to share times its mean score where they are less: what the window did not look at is not nothing
/// (DefensiveKV, arXiv 2510.13334: a share of 1, the mean over all entries, so params with n_sink 0).
///
/// params: may be NULL; as in lava_smooth.
/// share: finite, not negative.
/// scores: as in lava_smooth. Untouched on error.
/// Errors: as lava_smooth. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_clamp(
    shape: *const lava_shape,
    params: *const lava_select_params,
    share: f32,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise. Of head_weights nothing is read.
    unsafe {
        by_means(shape, params, scores, error, |shape, params, s| adjust::clamp(shape, params, share, s))
    }
}

/// Gives the first entries of each head by another score the layer's largest score, so that selection takes them before all others: the
/// fewest, the largest first, that hold share of the head's sum of by, but no more than most[head]. Of equals the first.
///
/// Two papers select in two stages. DefensiveKV (arXiv 2510.13334): by is attention's mean, share 0.9. CriticalKV (arXiv 2502.03805): by is
/// any score, most half of each head's budget, and scores are by's times the norms of what the output matrix makes of the values.
///
/// by: f32, lava_n_scores(shape) of them, as in lava_score: finite, not negative (ARGUMENT).
/// share: above 0. 1 or more: most alone counts.
/// most: u32 [n_kv_heads]; may be NULL: share alone counts.
/// scores: f32, lava_n_scores(shape) of them, as in lava_score, finite; read and written. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, NONFINITE (naming the head). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_raise(
    shape: *const lava_shape,
    by: *const f32,
    share: f64,
    most: *const u32,
    scores: *mut f32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let (n, heads) = (shape.n_scores() as usize, shape.n_kv_heads);
                let n_most = if most.is_null() { 0 } else { heads };
                Memory::default()
                    .reads(by, n, c"by")
                    .reads(most, n_most, c"most")
                    .reads_rows(&shape)
                    .writes(scores, n, c"scores")
                    .check()?;
                let most = if most.is_null() { None } else { Some(slice(most, heads, c"most")?) };
                let by = if n == 0 { &[] } else { slice(by, n, c"by")? };
                let scores = if n == 0 { &mut [] } else { slice_mut(scores, n, c"scores")? };
                adjust::raise(&shape, by, share, most, scores)
            })
        })
    }
}

/// What lava_smooth and lava_clamp have in common.
///
/// # Safety
///
/// Every pointer is NULL or leads to what the comments of the two say.
unsafe fn by_means(
    shape: *const lava_shape,
    params: *const lava_select_params,
    scores: *mut f32,
    error: *mut lava_error,
    change: impl FnOnce(&Shape, &SelectParams, &mut [f32]) -> Result<()>,
) -> lava_status {
    // SAFETY: the caller's promise.
    unsafe {
        run(error, || {
            let shape = checked::shape(shape)?;
            in_layer(&shape, || {
                let prefix_len = shape.prefix_len();
                let params = checked::select_params(params, 0, prefix_len)?;
                let n = shape.n_scores() as usize;
                reads_params(&params, (0, prefix_len))
                    .reads_rows(&shape)
                    .writes(scores, n, c"scores")
                    .check()?;
                let scores = if n == 0 { &mut [] } else { slice_mut(scores, n, c"scores")? };
                change(&shape, &params, scores)
            })
        })
    }
}
