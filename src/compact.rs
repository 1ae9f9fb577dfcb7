//! Eviction: each head's kept rows move together, in position order.
//!
//! Out of place, the destination may have any layout: the ragged cache of exactly the kept size, or ragged with room after
//! each head for the tokens to come. In place, rows only ever move towards the front. Keys already include RoPE; nothing is
//! re-rotated, and the true positions stay with the caller in `kept_indices`. `rows` are the `rows` of a selection or a
//! cascade, or `kept_indices` where rows are tokens.
//!
//! A run of rows that are neighbours before and after moves in one copy.

use core::ops::Range;

use crate::error::{ErrorKind, Result, ensure};
use crate::view::{Tensor, TensorMut, Within};

/// Checks, for the given heads, that `rows[cu[h] .. cu[h+1]]` is strictly ascending and below the head's number of rows in
/// `src`, and that `dst` has room for them.
pub fn check_rows(src: &Tensor, dst: &Tensor, rows: &[u32], cu: &[u32], heads: Range<usize>) -> Result<()> {
    ensure(cu.len() > heads.end, ErrorKind::BufferSize, c"cu_kept")?;
    ensure(heads.end <= src.n_heads() && src.n_heads() == dst.n_heads(), ErrorKind::Shape, c"dst")?;
    ensure(src.dim() == dst.dim(), ErrorKind::Shape, c"dst")?;
    ensure(src.dtype() == dst.dtype(), ErrorKind::Dtype, c"dst")?;
    for h in heads {
        let at = |e: crate::error::Error| e.at_head(h);
        ensure(cu[h] <= cu[h + 1], ErrorKind::Indices, c"cu_kept").map_err(at)?;
        ensure(cu[h + 1] as usize <= rows.len(), ErrorKind::BufferSize, c"rows").map_err(at)?;
        let kept = &rows[cu[h] as usize..cu[h + 1] as usize];
        let ascending = kept.windows(2).all(|w| w[0] < w[1]);
        let inside = kept.last().is_none_or(|&last| (last as usize) < src.rows(h));
        ensure(ascending && inside, ErrorKind::Indices, c"rows").map_err(at)?;
        ensure(dst.rows(h) >= kept.len(), ErrorKind::BufferSize, c"dst").map_err(at)?;
    }
    Ok(())
}

/// Moves row `rows[cu[h] + r]` of `src`'s head `h` to row `r` of `dst`'s, for each of `heads`. Checks as [`check_rows`] does
/// before it moves anything.
pub fn compact(
    src: &Tensor,
    dst: &mut TensorMut,
    rows: &[u32],
    cu: &[u32],
    heads: Range<usize>,
) -> Result<()> {
    check_rows(src, &dst.as_tensor(), rows, cu, heads.clone())?;
    gather(rows, cu, heads, |h, to, from, n| dst.copy_rows(h, to, src, from, n));
    Ok(())
}

/// The same within one memory, for all heads. Rows move towards the front only: an error where one would have to move back.
pub fn compact_within(memory: &mut Within, rows: &[u32], cu: &[u32]) -> Result<()> {
    let heads = 0..memory.after().n_heads();
    check_rows(memory.before(), memory.after(), rows, cu, heads.clone())?;
    let forwards = memory.after().is_in_place_of(memory.before(), rows, cu, true);
    ensure(forwards, ErrorKind::Overlap, c"dst")?;
    gather(rows, cu, heads, |h, to, from, n| memory.copy_rows(h, to, from, n));
    Ok(())
}

/// Calls `copy(head, to, from, n)` for each run of neighbours.
fn gather(rows: &[u32], cu: &[u32], heads: Range<usize>, mut copy: impl FnMut(usize, usize, usize, usize)) {
    for h in heads {
        let kept = &rows[cu[h] as usize..cu[h + 1] as usize];
        let mut r = 0;
        while r < kept.len() {
            let run = 1 + kept[r..].windows(2).take_while(|w| w[0] + 1 == w[1]).count();
            copy(h, r, kept[r] as usize, run);
            r += run;
        }
    }
}
