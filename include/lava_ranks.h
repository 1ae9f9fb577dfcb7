/*
 * lava_ranks.h - one decision over many ranks: tensor-parallel ranks have some KV heads of each layer, pipeline stages some layers.
 *
 * Made by cbindgen from src/ffi/ranks.rs; `UPDATE_HEADER=1 cargo test --test header` rewrites it. Edit the comments there.
 *
 * Ranks that decide each by itself keep something else than one process would: a head with little to say keeps as much as one with a lot.
 * Here they count, and agree. What each of them keeps of its heads is exactly what one process with all scores would keep of them, to the
 * bit, whatever the layers share by, whatever heads are promised, in any split. Ties go to the lower head of the whole model.
 *
 * The library does not communicate. Ranks score their heads as usual; then
 *
 *     lava_ranks_size, lava_ranks_start
 *     do {
 *         lava_ranks_count     fills a buffer of uint64_t with what this rank counts
 *         the engine           sums these buffers over all ranks: MPI_Allreduce, ncclAllReduce, anything that adds integers
 *         lava_ranks_round     takes in the sums
 *     } while it is not done;
 *     lava_ranks_entries       what lava_select needs for this rank's heads
 *
 * Beside lava_select nothing else changes: lava_score before it and lava_compact after it work on each rank's own heads. Everything after
 * the scores is the same bits for every split; the scores themselves are, if each head's K, V and Q have the same layout.
 *
 * The exchanges, each at most once. A header of 32 words comes first in each: the number of ranks, then for each LAVA_ERR_ how many ranks
 * report it, at the status's number without its sign. H is the number of heads over all layers, C that of competitions: 1 under
 * LAVA_LAYERS_GLOBAL, else n_layers.
 *
 *     hello     65 words       for each bit of a fingerprint how many ranks have it set; how many layers are split
 *     heads     3 H, or 5 H    what each head can and must keep, and under LAVA_LAYERS_ENTROPY two sums (doubles, as their bits)
 *     digits    128 C, 4 times of each competition, keys of scores by their next 8 bits, two counts to a word
 *     ties      H              of each head, entries beyond the threshold and at it
 *
 * All are sums of integers, or numbers in a word that all other ranks leave 0: the order of summing does not matter. Digits and ties are
 * left out where nothing is left to compete for, and, except under LAVA_LAYERS_GLOBAL, where no layer is split: pipeline stages exchange
 * hello and heads, once, at the end of prefill.
 *
 * Faults are the same on every rank, in the same round: lava_ranks_round returns the same status everywhere. A rank that cannot go on fills
 * its part by lava_ranks_refuse instead, once. Whether a rank that is gone hangs the others is up to what sums.
 *
 * Numbers that belong to one head can be gathered in the same way: zero an array for all heads, let each rank write its own, sum it as
 * uint64_t, whatever the type. lava_attention_stats and lava_preference work so: [n_kv_heads, 2] doubles of the whole layer. And
 * lava_mean_over_heads, for which all scores must be gathered. Weights so made go into lava_rank.
 *
 * A cascade (compress while prefilling) is one decision after each layer, or every few, over the layers so far, with more_layers 1 until
 * the last; scores of all layers must be kept. What it keeps is what lava_cascade_get says after that push.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LAVA_RANKS_H
#define LAVA_RANKS_H

#include "lava.h"


/// Words of the first exchange, whatever the model.
#define LAVA_RANKS_HELLO_WORDS 97

/// What one rank has of a model, and what all ranks ask for. lava_rank_init makes one; the fields after scores may be set then. All
/// calls of one decision take the same, over the same arrays.
typedef struct lava_rank {
    /// sizeof(lava_rank); lava_rank_init sets it.
    uint32_t struct_size;
    /// Layers of the whole model, at most LAVA_MAX_LAYERS. As is total, the same on every rank.
    uint32_t n_layers;
    /// n_layers, or 1: one shape stands for all layers.
    uint32_t n_shapes;
    /// One of LAVA_LAYERS_: how layers share the total. The same on every rank. For one layer LAVA_LAYERS_EQUAL gives it the total.
    int32_t layers;
    /// Prefix entries to keep over all layers and ranks: lava_total_entries of the whole model, or, for one layer, its entries.
    uint64_t total;
    /// 1: these are the model's first layers, and more will follow, as in a cascade; what is kept now holds all that a decision with more
    /// of them may keep. 0: these are all. The same on every rank.
    uint32_t more_layers;
    /// 0.
    uint32_t reserved;
    /// [n_shapes], each with the heads that this rank has of the layer: n_kv_heads 0 where it has none. n_tokens, window and
    /// sliding_window are the same on all ranks that have a part of the layer.
    const lava_shape *shapes;
    /// [n_layers], KV heads of each layer over all ranks, 0 where it takes no part. The same on every rank.
    const uint32_t *n_kv_heads;
    /// [n_layers], which of them is this rank's first: it has those from there on. Not looked at where it has none. Each head is one
    /// rank's; where several hold copies, one has it here, and the others n_kv_heads 0.
    const uint32_t *first_head;
    /// f32, the scores of this rank's heads, the layers' one after the other, each as lava_score leaves them. NULL where there are none.
    const float *scores;
    /// NULL, or options of selection, the same on every rank. head_weights are those of all heads of the whole model.
    const lava_select_params *params;
    /// NULL; under LAVA_LAYERS_WEIGHTS [n_layers], each layer's weight, finite and not negative, the same on every rank.
    const double *weights;
} lava_rank;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Bytes of state that a decision needs, and words of its longest exchange.
///
/// rank: the scores may be written later; where they are must be known.
/// state_size: receives bytes: about 9 kB, 52 for each head of the model and 28 for each layer.
/// n_words: receives words of 8 bytes, at least LAVA_RANKS_HELLO_WORDS. For both: untouched on error. The same on ranks that agree.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, NONFINITE (in weights or head_weights). Any thread.
lava_status lava_ranks_size(const lava_rank *rank, size_t *state_size, uint32_t *n_words, lava_error *error);

/// Starts a decision.
///
/// state: lava_ranks_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it or start it again at any time: it
///     holds no resources and no pointers. What it contains is trusted: only the functions of this header may write it.
/// Errors: as lava_ranks_size, and WORKSPACE. On an error the state may be partly written. Any thread, but one call on a state at a time,
///     here and below.
lava_status lava_ranks_start(const lava_rank *rank, void *state, size_t state_size, lava_error *error);

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
lava_status lava_ranks_count(const lava_rank *rank, void *state, size_t state_size, uint64_t *exchange,
    uint32_t capacity, uint32_t *n_words, lava_error *error);

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
lava_status lava_ranks_round(const lava_rank *rank, void *state, size_t state_size, const uint64_t *exchange,
    uint32_t n_words, uint32_t *is_done, lava_error *error);

/// Fills an exchange with nothing but an error, for a rank that cannot take part in it: one whose lava_ranks_size or lava_ranks_start was
/// refused, whose scoring failed, that has no memory. Summed like any other, it ends the decision on all other ranks.
///
/// status: one of LAVA_ERR_ (ARGUMENT), which the others' lava_ranks_round returns.
/// exchange: receives n_words words; untouched on error.
/// n_words: those of the exchange that the other ranks are about to make: LAVA_RANKS_HELLO_WORDS for the first. At least 32 (BUFFER_SIZE).
/// Errors: NULL, ALIGNMENT, ARGUMENT, BUFFER_SIZE. Any thread.
lava_status lava_ranks_refuse(lava_status status, uint64_t *exchange, uint32_t n_words, lava_error *error);

/// What this rank keeps, once all is decided. For each of its layers, lava_select with the layer's entries, and its part of head_weights
/// in lava_select_params, keeps exactly what one process with all heads would keep of these. So does a rank with copies of another's heads,
/// if it is given that rank's numbers.
///
/// entries: [n_layers], receives the prefix entries of this rank's heads of each layer, for lava_select.
/// head_weights: a double for each of this rank's KV heads, layer after layer; receives the head's prefix entries. May be NULL if it has none.
/// layer_entries: NULL, or [n_layers], receives each layer's prefix entries over all ranks.
/// entropies: NULL, or [n_layers], under LAVA_LAYERS_ENTROPY receives what lava_entropy of the whole layer gives, else 0.
/// Errors: as lava_ranks_size, and WORKSPACE, STATE (not decided, or another rank than it was started with). Outputs untouched on error.
lava_status lava_ranks_entries(const lava_rank *rank, void *state, size_t state_size, uint64_t *entries,
    double *head_weights, uint64_t *layer_entries, double *entropies, lava_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#if defined(__cplusplus)
static_assert(sizeof(lava_rank) == 80 && offsetof(lava_rank, weights) == 72, "lava_rank");
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(lava_rank) == 80 && offsetof(lava_rank, weights) == 72, "lava_rank");
#endif

/// A rank of the recommended preset: all heads of all layers compete for the total. Arrays as in lava_rank, shapes one for each layer.
static inline lava_rank lava_rank_init(uint32_t n_layers, const lava_shape *shapes, const uint32_t *n_kv_heads,
                                       const uint32_t *first_head, const float *scores, uint64_t total) {
#ifdef __cplusplus
    lava_rank rank = {};
#else
    lava_rank rank = {0};
#endif
    rank.struct_size = (uint32_t) sizeof(rank);
    rank.n_layers = n_layers;
    rank.n_shapes = n_layers;
    rank.layers = LAVA_LAYERS_GLOBAL;
    rank.total = total;
    rank.shapes = shapes;
    rank.n_kv_heads = n_kv_heads;
    rank.first_head = first_head;
    rank.scores = scores;
    return rank;
}

#endif /* LAVA_RANKS_H */
