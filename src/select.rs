//! From scores to the kept set.
//!
//! The kept set is a function of the scores: the largest scores of the layer are kept; ties go to the lower head, then to the
//! lower token. Plateaus are common after max-pooling, so that rule decides often. A head keeps as many entries as it has among
//! the largest; head floors change that number, and every head keeps its own best. Time is linear in the number of entries.
//!
//! Only live entries compete: one that no later query can see is never kept, protected or not.
//!
//! - `entries`: who competes
//! - `plan`: how many entries each head keeps, and its threshold
//! - `share`: the other way round, the fewest entries for a bound on the loss
//!
//! Source: arXiv 2509.09754, section 4.2; floors as in Ada-KV (arXiv 2407.11550).

mod entries;
mod plan;
mod share;

pub(crate) use entries::{Entries, Head, Positions, Scored, entry_key};
pub(crate) use plan::{Buffers, Cut, Promise, Search, best, count_left, least, mix, plan, stand, win};
pub use share::{entries_for_share, entries_for_share_workspace_size};

use crate::budget::Rounding;
use crate::entropy;
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::{HeadFloor, Layers, SelectParams, Shape};
use crate::workspace::{Carver, size_of_carve};

/// What a selection did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Kept rows over all heads, window included: `cu_kept[n_kv_heads]`.
    pub n_kept: u64,
    /// Kept prefix entries: as many as were asked for, or all live ones.
    pub n_entries: u64,
    /// No live entry was evicted.
    pub everything_kept: bool,
    /// ΣS over the layer's live entries. Where the smallest score is negative, scores count from there: Σ(S − smallest).
    pub mass: f64,
    /// The evicted scores' share of `mass`: up to the constant 2·C, the paper's bound on the change of the attention output.
    pub evicted_share: f64,
}

/// Bytes of workspace that [`select`] needs.
pub fn workspace_size(shape: &Shape) -> Result<usize> {
    shape.validate()?;
    size_of_carve(|c| Buffers::carve(c, shape.n_kv_heads))
}

/// Rows that [`select`] writes for `n_entries` prefix entries of a layer: the length of `kept_indices`.
pub fn n_kept(shape: &Shape, n_entries: u64) -> Result<u64> {
    shape.validate()?;
    Ok(n_entries.min(shape.capacity()) + shape.window_rows() as u64 * shape.n_kv_heads as u64)
}

/// Keeps the `n_entries` best live prefix entries of a layer, and every head's window.
///
/// `scores` are f32, head after head, each head's prefix rows; finite where entries are live, and not looked at where they are dead.
/// `kept_indices` receives each head's token positions, ascending, head after head; `cu_kept` the exclusive prefix sum of
/// the counts, `n_kv_heads + 1` entries from 0; `rows`, as long as `kept_indices`, which of the head's rows in the cache each
/// one is. On an error nothing is written.
#[expect(clippy::too_many_arguments, reason = "the C function's arguments, one to one")]
pub fn select(
    shape: &Shape,
    params: &SelectParams,
    scores: &[f32],
    n_entries: u64,
    workspace: &mut Carver,
    kept_indices: &mut [u32],
    cu_kept: &mut [u32],
    rows: Option<&mut [u32]>,
) -> Result<Selection> {
    let at = |e: Error| e.at_layer(shape.layer);
    let n_kept = n_kept(shape, n_entries)?;
    params.validate(shape.n_kv_heads, shape.prefix_len()).map_err(at)?;
    ensure(scores.len() as u64 >= shape.n_scores(), ErrorKind::BufferSize, c"scores")?;
    ensure(kept_indices.len() as u64 >= n_kept, ErrorKind::BufferSize, c"kept_indices")?;
    ensure(cu_kept.len() > shape.n_kv_heads, ErrorKind::BufferSize, c"cu_kept")?;
    let room = rows.as_ref().is_none_or(|rows| rows.len() as u64 >= n_kept);
    ensure(room, ErrorKind::BufferSize, c"rows")?;
    let capacity = shape.capacity();
    let n_entries = n_entries.min(capacity);
    ensure(n_entries >= params.layer_minimum(shape), ErrorKind::Budget, c"n_entries").map_err(at)?;
    let mut buffers = Buffers::carve(workspace, shape.n_kv_heads)?;
    let base = entropy::check_finite(shape, scores)? as f64;

    let entries = Scored::layer(shape, scores, params);
    plan(&entries, params, n_entries, Rounding::Exact, &mut buffers);
    // Rows first. Where rows are tokens, that is all.
    let mut n = 0;
    let mut kept_mass = 0.0;
    cu_kept[0] = 0;
    for (h, head) in entries.heads().enumerate() {
        let mut keep = buffers.keeper(h);
        let first = shape.live(h).start;
        head.for_each(|i, key| {
            if keep(key) {
                kept_indices[n] = (first + i) as u32;
                kept_mass += head.scores[i] as f64 - base;
                n += 1;
            }
        });
        for row in shape.prefix_rows(h)..shape.rows(h) {
            kept_indices[n] = row as u32;
            n += 1;
        }
        cu_kept[h + 1] = n as u32;
    }
    debug_assert_eq!(n as u64, n_kept);
    if let Some(rows) = rows {
        rows[..n].copy_from_slice(&kept_indices[..n]);
    }
    if shape.ragged.is_some() {
        for h in 0..shape.n_kv_heads {
            let kept = &mut kept_indices[cu_kept[h] as usize..cu_kept[h + 1] as usize];
            kept.iter_mut().for_each(|index| *index = shape.position(h, *index as usize) as u32);
        }
    }
    let everything_kept = n_entries == capacity;
    let mass = entropy::mass(shape, scores, base);
    Ok(Selection {
        n_kept,
        n_entries,
        everything_kept,
        mass,
        evicted_share: evicted_share(everything_kept, mass, kept_mass),
    })
}

/// Bytes of workspace that [`global_entries`] needs.
pub fn global_entries_workspace_size(layers: &(impl Layers + ?Sized)) -> Result<usize> {
    check_global(layers, &SelectParams::lava())?;
    size_of_carve(|c| Buffers::carve(c, layers.n_heads() as usize))
}

/// Layer and head counts by one sort over all layers: the `total` largest live scores of the model win, whichever layer and head they
/// are in; ties go to the lower layer, then the lower head, then the lower token.
///
/// `scores` are those of all layers, one after the other. `entries`, `[n_layers]`, receives each layer's prefix entries, which sum to
/// `min(total, all live entries)`, and `head_weights` each head's, the heads of all layers in order. A layer's part of that as
/// [`SelectParams::head_weights`], and its entries, make [`select`] keep exactly those. On an error nothing is written.
///
/// Floors are as in one layer: α promises each head its top `⌊α · total / heads of all layers⌋`, and `head_min` its top `head_min`.
/// `Affine` and `head_weights` have no meaning here.
///
/// Source: KV-Compress (arXiv 2410.00161) sorts squared attention so; for LAVa's score it minimises the paper's bound summed
/// over the layers.
pub fn global_entries(
    layers: &(impl Layers + ?Sized),
    params: &SelectParams,
    scores: &[f32],
    total: u64,
    workspace: &mut Carver,
    entries: &mut [u64],
    head_weights: &mut [f64],
) -> Result<()> {
    check_global(layers, params)?;
    let (n_layers, n_heads) = (layers.n_layers(), layers.n_heads() as usize);
    ensure(scores.len() as u64 >= layers.n_scores(), ErrorKind::BufferSize, c"scores")?;
    ensure(entries.len() >= n_layers, ErrorKind::BufferSize, c"entries")?;
    ensure(head_weights.len() >= n_heads, ErrorKind::BufferSize, c"head_weights")?;
    let total = total.min(layers.n_entries());
    ensure(total >= layers.sum(&|shape| params.layer_minimum(shape)), ErrorKind::Budget, c"total")?;
    let mut buffers = Buffers::carve(workspace, n_heads)?;
    let mut rest = scores;
    for l in (0..n_layers).filter(|&l| layers.layer(l).n_kv_heads > 0) {
        let shape = layers.layer(l);
        entropy::check_finite(&shape, rest).map_err(|e| e.at_layer(l as u32))?;
        rest = &rest[shape.n_scores() as usize..];
    }

    let all = Scored { layers, scores, params: *params };
    plan(&all, params, total, Rounding::Exact, &mut buffers);
    let mut counts = &buffers.counts[..];
    head_weights.iter_mut().zip(counts).for_each(|(weight, &count)| *weight = count as f64);
    for (l, n) in entries[..n_layers].iter_mut().enumerate() {
        let (own, others) = counts.split_at(layers.layer(l).n_kv_heads);
        (*n, counts) = (own.iter().sum(), others);
    }
    Ok(())
}

/// Checks that the heads of all layers can compete: the options have a meaning there, and all rows can be counted in 32 bits.
pub(crate) fn check_global(layers: &(impl Layers + ?Sized), params: &SelectParams) -> Result<()> {
    layers.validate()?;
    ensure(params.head_floor != HeadFloor::Affine, ErrorKind::Argument, c"head_floor")?;
    ensure(params.head_weights.is_none(), ErrorKind::Argument, c"head_weights")?;
    params.validate(0, layers.longest_prefix())?;
    ensure(layers.sum(&|shape| shape.n_rows()) <= u32::MAX as u64, ErrorKind::Overflow, c"n_layers")
}

/// `1 − kept / mass`, between 0 and 1. Both sums run in head and token order, so a cascade, which still has the kept scores
/// but not the evicted ones, arrives at the same bits.
pub(crate) fn evicted_share(everything_kept: bool, mass: f64, kept_mass: f64) -> f64 {
    if everything_kept || mass <= 0.0 { 0.0 } else { (1.0 - kept_mass / mass).clamp(0.0, 1.0) }
}
