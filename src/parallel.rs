//! Scoring on rayon's threads, for Rust programs without their own thread pool (feature `rayon`).
//!
//! An engine with its own threads calls [`score::score`] with `(part, n_parts)` instead; the scores are the same bits.

use rayon::prelude::*;

use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{ScoreParams, Shape};
use crate::score::{self, ScoreInputs};
use crate::workspace::{Carver, WORKSPACE_ALIGN};

/// Bytes of workspace that [`score`] needs for `n_parts` parts, wherever they begin.
pub fn workspace_size(shape: &Shape, params: &ScoreParams, n_parts: usize) -> Result<usize> {
    let part = score::workspace_size(shape, params)?.next_multiple_of(WORKSPACE_ALIGN);
    part.checked_mul(n_parts)
        .and_then(|n| n.checked_add(WORKSPACE_ALIGN))
        .ok_or(Error::new(ErrorKind::Overflow, c"workspace"))
}

/// Scores all KV heads of a layer in `n_parts` parts on the current rayon pool. Otherwise as [`score::score`].
pub fn score(
    backend: Backend,
    shape: &Shape,
    params: &ScoreParams,
    inputs: &ScoreInputs,
    n_parts: usize,
    workspace: &mut [u8],
    scores: &mut [f32],
) -> Result<()> {
    ensure(n_parts > 0, ErrorKind::Argument, c"n_parts")?;
    // A part without a head has nothing to do.
    let n_parts = n_parts.min(shape.n_kv_heads);
    let size = score::workspace_size(shape, params)?.next_multiple_of(WORKSPACE_ALIGN);
    let start = workspace.as_ptr().align_offset(WORKSPACE_ALIGN);
    let needed = workspace_size(shape, params, n_parts)? - WORKSPACE_ALIGN;
    ensure(workspace.len() >= start.saturating_add(needed), ErrorKind::Workspace, c"workspace")?;
    ensure(scores.len() as u64 >= shape.n_scores(), ErrorKind::BufferSize, c"scores")
        .map_err(|e| e.at_layer(shape.layer))?;
    let mut spaces = workspace[start..start + needed].chunks_exact_mut(size.max(1));
    let mut rest = scores;
    let mut parts = Vec::with_capacity(n_parts);
    for part in 0..n_parts {
        let heads = score::part_heads(shape, part, n_parts)?;
        let (own, others) = rest.split_at_mut(shape.first_score(heads.end) - shape.first_score(heads.start));
        rest = others;
        parts.push((part, spaces.next().unwrap_or_default(), own));
    }
    parts.into_par_iter().try_for_each(|(part, space, own)| {
        score::score(backend, shape, params, inputs, part, n_parts, &mut Carver::over(space)?, own)
    })
}
