//! One decision over tensor- and pipeline-parallel ranks.

use core::ffi::c_void;
use core::mem::{offset_of, size_of};

use super::budgets::{heads_and_prefix, reads_options};
use super::call::*;
use super::checked::{self, ShapeArray};
use super::types::*;
use super::versioned::{Versioned, check_pointer, read_struct};
use crate::error::{Error, ErrorKind, Result, ensure};
use crate::params::Layers;
use crate::ranks::{self, Part, Ranks};
use crate::workspace::Carver;

/// Words of the first exchange, whatever the model.
pub const LAVA_RANKS_HELLO_WORDS: u32 = 97;
const _: () = assert!(LAVA_RANKS_HELLO_WORDS as usize == ranks::HELLO_WORDS);

/// What one rank has of a model, and what all ranks ask for. lava_rank_init makes one; the fields after scores may be set then. All
/// calls of one decision take the same, over the same arrays.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct lava_rank {
    /// sizeof(lava_rank); lava_rank_init sets it.
    pub struct_size: u32,
    /// Layers of the whole model, at most LAVA_MAX_LAYERS. As is total, the same on every rank.
    pub n_layers: u32,
    /// n_layers, or 1: one shape stands for all layers.
    pub n_shapes: u32,
    /// One of LAVA_LAYERS_: how layers share the total. The same on every rank. For one layer LAVA_LAYERS_EQUAL gives it the total.
    pub layers: i32,
    /// Prefix entries to keep over all layers and ranks: lava_total_entries of the whole model, or, for one layer, its entries.
    pub total: u64,
    /// 1: these are the model's first layers, and more will follow, as in a cascade; what is kept now holds all that a decision with more
    /// of them may keep. 0: these are all. The same on every rank.
    pub more_layers: u32,
    /// 0.
    pub reserved: u32,
    /// [n_shapes], each with the heads that this rank has of the layer: n_kv_heads 0 where it has none. n_tokens, window and
    /// sliding_window are the same on all ranks that have a part of the layer.
    pub shapes: *const lava_shape,
    /// [n_layers], KV heads of each layer over all ranks, 0 where it takes no part. The same on every rank.
    pub n_kv_heads: *const u32,
    /// [n_layers], which of them is this rank's first: it has those from there on. Not looked at where it has none. Each head is one
    /// rank's; where several hold copies, one has it here, and the others n_kv_heads 0.
    pub first_head: *const u32,
    /// f32, the scores of this rank's heads, the layers' one after the other, each as lava_score leaves them. NULL where there are none.
    pub scores: *const f32,
    /// NULL, or options of selection, the same on every rank. head_weights are those of all heads of the whole model.
    pub params: *const lava_select_params,
    /// NULL; under LAVA_LAYERS_WEIGHTS [n_layers], each layer's weight, finite and not negative, the same on every rank.
    pub weights: *const f64,
}

layout! {
    lava_rank: 80, 80 {
        struct_size @ 0, n_layers @ 4, n_shapes @ 8, layers @ 12, total @ 16, more_layers @ 24, reserved @ 28, shapes @ 32,
        n_kv_heads @ 40, first_head @ 48, scores @ 56, params @ 64, weights @ 72,
    }
}

/// Does something with a caller's rank, and with the memory that it leads to.
///
/// # Safety
/// `p` must be NULL or lead to a `lava_rank` that leads to what the header says, for the length of the call.
unsafe fn with_rank<T>(
    p: *const lava_rank,
    body: impl FnOnce(&Part<ShapeArray>, Memory) -> Result<T>,
) -> Result<T> {
    // SAFETY: the caller's promise.
    unsafe {
        let rank = read_struct(p, c"rank")?;
        checked::unused(rank.reserved)?;
        ensure(rank.more_layers <= 1, ErrorKind::Argument, c"more_layers")?;
        let layers = ShapeArray::new(rank.shapes, rank.n_shapes, rank.n_layers)?;
        let n = layers.n_layers();
        let n_kv_heads = slice(rank.n_kv_heads, n, c"n_kv_heads")?;
        let first_head = slice(rank.first_head, n, c"first_head")?;
        let n_heads = n_kv_heads.iter().map(|&n| n as usize).sum();
        let (_, prefix_len) = heads_and_prefix(&layers);
        let params = checked::select_params(rank.params, n_heads, prefix_len)?;
        let n_scores = layers.n_scores() as usize;
        let part = Part {
            layers: &layers,
            n_kv_heads,
            first_head,
            scores: if n_scores == 0 { &[] } else { slice(rank.scores, n_scores, c"scores")? },
            total: rank.total,
            share: checked::layer_share(rank.layers)?,
            weights: checked::optional(rank.weights, n, c"weights")?,
            select: params,
            more_layers: rank.more_layers == 1,
        };
        let memory = reads_options(&layers, &params, (n_heads, prefix_len))
            .reads(p, 1, c"rank")
            .reads(n_kv_heads.as_ptr(), n, c"n_kv_heads")
            .reads(first_head.as_ptr(), n, c"first_head")
            .reads(rank.scores, n_scores, c"scores")
            .reads(rank.params, 1, c"params")
            .reads(rank.weights, n, c"weights");
        body(&part, memory)
    }
}

/// A decision that has been started.
///
/// # Safety
/// `state` must be NULL or writable over `size` bytes for `'a`, by nobody else.
unsafe fn reopen<'a>(state: *mut c_void, size: usize) -> Result<Ranks<'a>> {
    // SAFETY: the caller's promise; what a state contains is trusted, as the header says.
    let carver = unsafe { Carver::reopen_raw(state as *mut u8, size) };
    carver.and_then(|mut carver| Ranks::reopen(&mut carver)).map_err(of_state)
}

/// An error of the memory of a state names it.
fn of_state(e: Error) -> Error {
    if e.argument == c"workspace" { e.of(c"state") } else { e }
}

/// Bytes of state that a decision needs, and words of its longest exchange.
///
/// rank: the scores may be written later; where they are must be known.
/// state_size: receives bytes: about 9 kB, 52 for each head of the model and 28 for each layer.
/// n_words: receives words of 8 bytes, at least LAVA_RANKS_HELLO_WORDS. For both: untouched on error. The same on ranks that agree.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, NONFINITE (in weights or head_weights). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_ranks_size(
    rank: *const lava_rank,
    state_size: *mut usize,
    n_words: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            with_rank(rank, |part, memory| {
                let memory = memory.writes(state_size, 1, c"state_size").writes(n_words, 1, c"n_words");
                memory.check_layers(part.layers)?;
                let bytes = slice_mut(state_size, 1, c"state_size")?;
                let words = slice_mut(n_words, 1, c"n_words")?;
                let most = u32::try_from(ranks::most_words(part)?);
                let most = most.map_err(|_| Error::new(ErrorKind::Overflow, c"n_kv_heads"))?;
                bytes[0] = ranks::state_size(part)?;
                words[0] = most;
                Ok(())
            })
        })
    }
}

/// Starts a decision.
///
/// state: lava_ranks_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it or start it again at any time: it
///     holds no resources and no pointers. What it contains is trusted: only the functions of this header may write it.
/// Errors: as lava_ranks_size, and WORKSPACE. On an error the state may be partly written. Any thread, but one call on a state at a time,
///     here and below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_ranks_start(
    rank: *const lava_rank,
    state: *mut c_void,
    state_size: usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            with_rank(rank, |part, memory| {
                memory.writes(state as *mut u8, state_size, c"state").check_layers(part.layers)?;
                let started = workspace(state, state_size).and_then(|mut c| Ranks::new(part, &mut c));
                started.map(drop).map_err(of_state)
            })
        })
    }
}

/// Fills an exchange with what this rank counts. Then the engine sums the first n_words words of all ranks' exchanges, as uint64_t (int64_t
/// is the same), and each rank gives the sums to lava_ranks_round.
///
/// exchange: receives words to be summed.
/// capacity: words that it has room for, at least those of this exchange; lava_ranks_size says what is enough for all.
/// n_words: receives how many there are, the same on every rank. Where it was written the exchange is to be summed also after an error: it
///     then holds the report of it, by which lava_ranks_round ends the decision on every rank. Where it is untouched, so is the exchange,
///     and lava_ranks_refuse fills it.
/// Errors: as lava_ranks_size, and BUFFER_SIZE, WORKSPACE, STATE (not started or ended, or another rank than it was started with). Scores that
///     are not finite are no error here, but in lava_ranks_round.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_ranks_count(
    rank: *const lava_rank,
    state: *mut c_void,
    state_size: usize,
    exchange: *mut u64,
    capacity: u32,
    n_words: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            check_pointer(exchange, c"exchange")?;
            check_pointer(n_words, c"n_words")?;
            let written = Memory::default()
                .writes(state as *mut u8, state_size, c"state")
                .writes(exchange, capacity as usize, c"exchange")
                .writes(n_words, 1, c"n_words");
            written.reads(rank, 1, c"rank").check()?;
            let mut ranks = reopen(state, state_size)?;
            let n = ranks.n_words();
            ensure(n > 0, ErrorKind::State, c"state")?;
            ensure(capacity as usize >= n, ErrorKind::BufferSize, c"exchange")?;
            let counted = with_rank(rank, |part, memory| {
                memory
                    .writes(state as *mut u8, state_size, c"state")
                    .writes(exchange, n, c"exchange")
                    .writes(n_words, 1, c"n_words")
                    .check_layers(part.layers)?;
                ranks.count(part, slice_mut(exchange, n, c"exchange")?)
            });
            if let Err(e) = counted {
                // What shares memory cannot be written, the report neither.
                ensure(e.kind != ErrorKind::Overlap, e.kind, e.argument)?;
                ranks::refuse(e.kind, slice_mut(exchange, n, c"exchange")?)?;
            }
            slice_mut(n_words, 1, c"n_words")?[0] = n as u32;
            counted
        })
    }
}

/// Takes in the sums over all ranks.
///
/// exchange: the sums.
/// n_words: how many there are, as lava_ranks_count has said.
/// is_done: receives 1 if all is decided, and 0 if there is another exchange; untouched on error.
/// Errors: of this rank alone, whose state is then unchanged, so that it can be called again with the same sums: what lava_ranks_size
///     returns, WORKSPACE, BUFFER_SIZE, STATE of state (not started, or ended) and of rank (another than it was started with). All
///     others are the same on every rank that takes in the same sums, and end the decision: NONFINITE and ARGUMENT of scores (negative,
///     under LAVA_LAYERS_ENTROPY), naming layer and head; BUDGET (what is protected exceeds the total); SHAPE of rank (ranks ask for
///     different things), of first_head (a head is no rank's, or several ranks'), of shapes (ranks differ in a layer's sizes or in its
///     mask); OVERFLOW (2^32 entries that compete); STATE of exchange (no sum of what these ranks have counted; where only what one
///     rank has tells, of that rank alone); and what a rank has reported, as an error of rank.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_ranks_round(
    rank: *const lava_rank,
    state: *mut c_void,
    state_size: usize,
    exchange: *const u64,
    n_words: u32,
    is_done: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            with_rank(rank, |part, memory| {
                memory
                    .reads(exchange, n_words as usize, c"exchange")
                    .writes(state as *mut u8, state_size, c"state")
                    .writes(is_done, 1, c"is_done")
                    .check_layers(part.layers)?;
                let exchange = slice(exchange, n_words as usize, c"exchange")?;
                let mut ranks = reopen(state, state_size)?;
                put(is_done, c"is_done", || Ok(ranks.round(part, exchange)? as u32))
            })
        })
    }
}

/// Fills an exchange with nothing but an error, for a rank that cannot take part in it: one whose lava_ranks_size or lava_ranks_start was
/// refused, whose scoring failed, that has no memory. Summed like any other, it ends the decision on all other ranks.
///
/// status: one of LAVA_ERR_ (ARGUMENT), which the others' lava_ranks_round returns.
/// exchange: receives n_words words; untouched on error.
/// n_words: those of the exchange that the other ranks are about to make: LAVA_RANKS_HELLO_WORDS for the first. At least 32 (BUFFER_SIZE).
/// Errors: NULL, ALIGNMENT, ARGUMENT, BUFFER_SIZE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_ranks_refuse(
    status: lava_status,
    exchange: *mut u64,
    n_words: u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: exchange and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let exchange = slice_mut(exchange, n_words as usize, c"exchange")?;
            let kind = ErrorKind::from_status(status).ok_or(Error::new(ErrorKind::Argument, c"status"))?;
            ranks::refuse(kind, exchange)
        })
    }
}

/// What this rank keeps, once all is decided. For each of its layers, lava_select with the layer's entries, and its part of head_weights
/// in lava_select_params, keeps exactly what one process with all heads would keep of these. So does a rank with copies of another's heads,
/// if it is given that rank's numbers.
///
/// entries: [n_layers], receives the prefix entries of this rank's heads of each layer, for lava_select.
/// head_weights: a double for each of this rank's KV heads, layer after layer; receives the head's prefix entries. May be NULL if it has none.
/// layer_entries: NULL, or [n_layers], receives each layer's prefix entries over all ranks.
/// entropies: NULL, or [n_layers], under LAVA_LAYERS_ENTROPY receives what lava_entropy of the whole layer gives, else 0.
/// Errors: as lava_ranks_size, and WORKSPACE, STATE (not decided, or another rank than it was started with). Outputs untouched on error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_ranks_entries(
    rank: *const lava_rank,
    state: *mut c_void,
    state_size: usize,
    entries: *mut u64,
    head_weights: *mut f64,
    layer_entries: *mut u64,
    entropies: *mut f64,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: every pointer is NULL or leads to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            with_rank(rank, |part, memory| {
                let (n, n_own) = (part.layers.n_layers(), part.layers.n_heads() as usize);
                memory
                    .writes(state as *mut u8, state_size, c"state")
                    .writes(entries, n, c"entries")
                    .writes(head_weights, n_own, c"head_weights")
                    .writes(layer_entries, n, c"layer_entries")
                    .writes(entropies, n, c"entropies")
                    .check_layers(part.layers)?;
                let entries = slice_mut(entries, n, c"entries")?;
                let head_weights =
                    if n_own == 0 { &mut [] } else { slice_mut(head_weights, n_own, c"head_weights")? };
                let layer_entries = optional_mut(layer_entries, n, c"layer_entries")?;
                let entropies = optional_mut(entropies, n, c"entropies")?;
                let ranks = reopen(state, state_size)?;
                ranks.entries(part, entries, head_weights)?;
                ranks.layers(part, layer_entries.unwrap_or_default(), entropies.unwrap_or_default())
            })
        })
    }
}

/// NULL, or `n` elements to write.
///
/// # Safety
/// As for [`slice_mut`].
unsafe fn optional_mut<'a, T>(
    p: *mut T,
    n: usize,
    name: &'static core::ffi::CStr,
) -> Result<Option<&'a mut [T]>> {
    // SAFETY: the caller's promise.
    if p.is_null() { Ok(None) } else { unsafe { slice_mut(p, n, name).map(Some) } }
}
