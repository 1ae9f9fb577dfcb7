/*
 * plan_attention.h - what the kernels of score.cu, output.cu, pool.cu and attend.cu are launched with, and how; rules as in plan.h.
 *
 * Sequences may differ in length; for attention, only the largest length is needed on the host, so a captured graph stays valid while
 * they change.
 *
 * The launches of a score, in this order on one stream. `lse` given for every sequence: without the first.
 *
 *     kernel          grid                                              block
 *     score_stats     n_ranges, n_kv_heads, n_sequences                 threads          maximum and sum per row and range of keys
 *     score_lse       rows / 16, n_kv_heads, n_sequences                256              their merge: one log-sum-exp per row
 *     score_columns   n_ranges * (value norms ? 2 : 1), n_kv, n_seq     threads          sums over the window; value norms
 *     score_values    n_ranges, n_kv_heads, n_sequences                 256              LAVA_VALUE_OUTPUT alone: the values' weighted sums
 *     score_output    output blocks, n_kv_heads, n_sequences            256              the same: their merge, each query head's output
 *     score_change    n_ranges, n_kv_heads, n_sequences                 256              the same: by how much each entry would change it
 *     score_pool      pool blocks, n_kv_heads, n_sequences              256              pooling, factors, scores
 *     score_smooth    the same, only with smoothing                                      each head's mean is added
 *
 * Of statistics (LAVA_SCORE_SPREAD), instead of the last two:
 *
 *     stats_sum       n_kv_heads, n_sequences                           256              entropy and variance of each head
 *
 * `threads` is lava_score_threads. n_ranges is lava_score_ranges, rows lava_score_rows, pool blocks lava_score_pool_blocks, output blocks
 * lava_score_output_blocks.
 *
 * The two launches of an attention:
 *
 *     attend_rows     any number of blocks: as many as run at once      32 * LAVA_ATTEND_WARPS
 *     attend_merge    n_queries * group_size, n_kv_heads, n_sequences       128
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef LAVA_CUDA_PLAN_ATTENTION_H
#define LAVA_CUDA_PLAN_ATTENTION_H

#include "plan.h"

/* ---------------------------------------------------------------- score ---- */

/** Keys that a block of threads looks at together. A range is a whole number of them. */
#define LAVA_SCORE_KEYS 64
/** Rows of one step of the tensor cores. Each query head's window is padded to a multiple of it. */
#define LAVA_SCORE_ROWS 16

/**
 * An `attention` in addition to those of lava.h: what lava_cuda_attention_stats asks for. Columns are variances over the window and entropies,
 * summed over the group. group_reduce is the mean, pool_kernel 1, value_weight LAVA_VALUE_NONE, smoothing 0.
 */
#define LAVA_SCORE_SPREAD 64

typedef struct lava_score_sequence {
    /** [window, n_q_heads, head_dim_k]. */
    lava_device_tensor q;
    /** [n_tokens, n_kv_heads, head_dim_k]. */
    lava_device_tensor k;
    /** [n_tokens, n_kv_heads, head_dim_v]. */
    lava_device_tensor v;
    /** f32 [window, n_q_heads, 1]; data NULL: not given. Given for all sequences of a launch or for none. */
    lava_device_tensor lse;
    union {
        /** [n_kv_heads, n_tokens - window]. */
        float *scores;
        /** LAVA_SCORE_SPREAD: [n_kv_heads, 2], entropy and variance. */
        double *stats;
    };
    /** With window tokens or fewer there is nothing to score. */
    uint32_t n_tokens;
    uint32_t reserved;
} lava_score_sequence;

typedef struct lava_score_args {
    /** n_sequences of them in device memory, or NULL: `one` is the only one. */
    const lava_score_sequence *items;
    lava_score_sequence one;

    uint32_t layer;
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim_k;
    uint32_t head_dim_v;
    uint32_t window;

    /* As in lava_score_params and lava_shape, with the defaults put in: scale and decay are what they are, softcap 0 is none. */
    int32_t pool;
    uint32_t pool_kernel;
    int32_t group_reduce;
    int32_t value_span;
    int32_t attention;
    int32_t value_weight;
    uint32_t sliding_window;
    float scale;
    float softcap;
    float gamma;
    float decay;
    float weight;
    float smoothing;

    /** Whether `lse` is given. */
    uint32_t has_lse;
    /** What a given log-sum-exp is multiplied by to be of base 2. */
    float lse_to_base_2;
    uint32_t n_sequences;
    /** The longest sequence's n_tokens. */
    uint32_t max_tokens;
    /** Keys of a range, a multiple of LAVA_SCORE_KEYS, for tests; 0: as many as lava_score_range_keys says. */
    uint32_t keys_per_range;
    /** A block's warps: row_warps (a power of two) that share the rows, for each of key_split shares of the keys of a tile. */
    uint32_t row_warps;
    uint32_t key_split;
    /** Row tiles of which score_columns makes one sum per key: 2, a warp's, where it has one head's two; not for a variance. */
    uint32_t tiles_of_sum;
    /** lava_score_kinds. */
    uint32_t kinds;

    /** Workspace; see lava_score_layout. */
    float *partial;
    /**
     * Each row's log-sum-exp, over ln 2. Where that is so large that its rounding would show, and for a variance, the row's largest logit,
     * and in row_rest what is left of it; else 0 there.
     */
    float *row_lse;
    float *row_rest;
    float *columns;
    uint32_t *value_max;
    float *value_norms;
    double *sums;
    float *partial_outputs;
    float *outputs;
    /** Set to LAVA_NO_FAULT by the caller. */
    uint64_t *status;
} lava_score_args;

/** Rows of the queries of one KV head: the group's windows, each padded. */
LAVA_PLAN uint32_t lava_score_rows(const lava_score_args *a) {
    const uint32_t padded = (a->window + LAVA_SCORE_ROWS - 1) / LAVA_SCORE_ROWS * LAVA_SCORE_ROWS;
    return a->n_q_heads / a->n_kv_heads * padded;
}

/**
 * Keys of one of a sequence's ranges: about 64 ranges, since with a few heads that is enough blocks for any GPU, of at least 4 steps and at
 * most 16. It depends on the sequence alone, and so do the bits of its scores.
 */
LAVA_PLAN uint32_t lava_score_range_keys(const lava_score_args *a, uint32_t n_tokens) {
    const uint32_t steps = (uint32_t) (((uint64_t) n_tokens + 64 * LAVA_SCORE_KEYS - 1) / (64 * LAVA_SCORE_KEYS));
    if (a->keys_per_range != 0) return a->keys_per_range;
    return (steps < 4 ? 4 : steps > 16 ? 16 : steps) * LAVA_SCORE_KEYS;
}

/** No sequence of a launch has a longer range. */
LAVA_PLAN uint32_t lava_score_most_keys(const lava_score_args *a) { return lava_score_range_keys(a, a->max_tokens); }

/** Ranges of a sequence. */
LAVA_PLAN uint32_t lava_score_ranges_of(const lava_score_args *a, uint32_t n_tokens) {
    const uint32_t keys = lava_score_range_keys(a, n_tokens);
    return (uint32_t) (((uint64_t) n_tokens + keys - 1) / keys);
}

/** No sequence of a launch has more ranges: one of fewer tokens than the longest may have more than that, but not more than 64. */
LAVA_PLAN uint32_t lava_score_ranges(const lava_score_args *a) {
    const uint32_t of_shorter = (a->max_tokens + 4 * LAVA_SCORE_KEYS - 1) / (4 * LAVA_SCORE_KEYS);
    const uint32_t own = lava_score_ranges_of(a, a->max_tokens);
    if (a->keys_per_range != 0) return own;
    return (uint32_t) lava_cuda_max(own, lava_cuda_min(of_shorter, 64));
}

/** Prefix entries of the longest sequence. */
LAVA_PLAN uint32_t lava_score_max_prefix(const lava_score_args *a) {
    return a->max_tokens > a->window ? a->max_tokens - a->window : 0;
}

/** LAVA_VALUE_OUTPUT: each query head's attention becomes the change of its output, to which all tokens contribute. */
LAVA_PLAN int lava_score_has_output(const lava_score_args *a) { return a->value_weight == 3; }

/** Room of a row of column sums: no sequence of a launch has more keys whose attention is summed. */
LAVA_PLAN uint32_t lava_score_max_columns(const lava_score_args *a) {
    return lava_score_has_output(a) ? a->max_tokens : lava_score_max_prefix(a);
}

/**
 * Whether the group is reduced before pooling: where the two commute, and a head's output is not needed by itself (as score.rs decides it).
 * Otherwise every query head has its own row of column sums.
 */
LAVA_PLAN int lava_score_reduces_first(const lava_score_args *a) {
    const int alike = (a->pool == 0 && a->group_reduce == 0) || (a->pool == 1 && a->group_reduce == 1);
    return !lava_score_has_output(a) && (alike || a->n_q_heads == a->n_kv_heads || a->pool_kernel == 1);
}

/** Rows of column sums of a KV head: one, its query heads', or with LAVA_SCORE_SPREAD variance and entropy. */
LAVA_PLAN uint32_t lava_score_column_rows(const lava_score_args *a) {
    if (a->attention == LAVA_SCORE_SPREAD) return 2;
    return lava_score_reduces_first(a) ? 1 : a->n_q_heads / a->n_kv_heads;
}

/** Whether a variance is wanted: LAVA_ATTENTION_MEAN_VARIANCE and LAVA_SCORE_SPREAD. */
LAVA_PLAN int lava_score_spreads(const lava_score_args *a) { return a->attention == 2 || a->attention == LAVA_SCORE_SPREAD; }

/**
 * What is summed of the attention: itself; for LAVA_ATTENTION_SQUARED its squares too. For a variance how much it differs from that of a
 * tile's first row, the squares of that, and that row's attention; for LAVA_SCORE_SPREAD also its entropy.
 */
LAVA_PLAN uint32_t lava_score_kinds(const lava_score_args *a) {
    return a->attention == LAVA_SCORE_SPREAD ? 4 : lava_score_spreads(a) ? 3 : a->attention == 1 ? 2 : 1;
}

/** Whether the values' norms are wanted: LAVA_VALUE_HEAD_MAX and LAVA_VALUE_TOKEN. */
LAVA_PLAN int lava_score_has_values(const lava_score_args *a) { return a->value_weight == 0 || a->value_weight == 2; }

/** Blocks along x of score_columns: one of each pair reads values. */
LAVA_PLAN uint32_t lava_score_column_blocks(const lava_score_args *a) {
    return lava_score_ranges(a) * (lava_score_has_values(a) ? 2 : 1);
}

/** Takes `n` times 4 bytes from a workspace of which `*used` bytes are used; 16-byte aligned. */
static inline void *lava_take(void *workspace, size_t *used, size_t n) {
    void *taken = workspace ? (char *) workspace + *used : NULL;
    *used += (4 * n + 15) / 16 * 16;
    return taken;
}

/** Scores of one block of score_pool and score_smooth. */
#define LAVA_SCORE_POOLED 256
LAVA_PLAN uint32_t lava_score_pool_blocks(const lava_score_args *a) {
    return (uint32_t) (((uint64_t) lava_score_max_prefix(a) + LAVA_SCORE_POOLED - 1) / LAVA_SCORE_POOLED);
}

/** Numbers of one KV head's query heads' outputs. */
LAVA_PLAN uint64_t lava_score_output_len(const lava_score_args *a) {
    return (uint64_t) (a->n_q_heads / a->n_kv_heads) * a->head_dim_v;
}

/**
 * What a range leaves of them: weighted sums of the values of all its tokens but the one with the largest attention, [group, head_dim_v]; the
 * sum of their attention, the largest one, and its token, [group] each.
 */
LAVA_PLAN uint64_t lava_score_partial_output_len(const lava_score_args *a) {
    return lava_score_output_len(a) + 3 * (a->n_q_heads / a->n_kv_heads);
}

/**
 * And what comes of all ranges: outputs, and the mean of all values but the one with the largest attention, [group, head_dim_v] each; the
 * sum of the attention, and the token with the largest, [group] each.
 */
LAVA_PLAN uint64_t lava_score_whole_output_len(const lava_score_args *a) {
    return 2 * lava_score_output_len(a) + 2 * (a->n_q_heads / a->n_kv_heads);
}

/** Threads of a block of score_values, score_output and score_change. */
#define LAVA_SCORE_OUTPUT_THREADS 256
LAVA_PLAN uint32_t lava_score_output_blocks(const lava_score_args *a) {
    return (uint32_t) ((lava_score_output_len(a) + LAVA_SCORE_OUTPUT_THREADS - 1) / LAVA_SCORE_OUTPUT_THREADS);
}

/** Sets the workspace's pointers (workspace NULL: to NULL) and returns the bytes needed. All other fields are set before. */
static inline size_t lava_score_layout(lava_score_args *a, void *workspace) {
    const size_t heads = (size_t) a->n_sequences * a->n_kv_heads, rows = lava_score_rows(a);
    const size_t prefix = lava_score_max_prefix(a), outputs = lava_score_has_output(a) ? heads : 0;
    size_t used = 0;
    a->partial = (float *) lava_take(workspace, &used, a->has_lse ? 0 : 2 * heads * lava_score_ranges(a) * a->key_split * rows);
    a->row_lse = (float *) lava_take(workspace, &used, heads * rows);
    a->row_rest = (float *) lava_take(workspace, &used, heads * rows);
    a->columns = (float *) lava_take(workspace, &used, heads * lava_score_column_rows(a) * lava_score_max_columns(a));
    a->value_max = (uint32_t *) lava_take(workspace, &used, heads);
    a->value_norms = (float *) lava_take(workspace, &used, a->value_weight == 2 ? heads * prefix : 0);
    a->sums = (double *) lava_take(workspace, &used, a->smoothing > 0 ? 2 * heads * lava_score_pool_blocks(a) : 0);
    a->partial_outputs = (float *) lava_take(workspace, &used, outputs * lava_score_ranges(a) * lava_score_partial_output_len(a));
    a->outputs = (float *) lava_take(workspace, &used, outputs * lava_score_whole_output_len(a));
    return used;
}

/** The dimensions that score_stats_* and score_columns_* are made for; others take score_stats_any, score_columns_any. */
LAVA_PLAN int lava_score_has_instance(uint32_t head_dim_k) {
    return head_dim_k == 64 || head_dim_k == 80 || head_dim_k == 96 || head_dim_k == 128 || head_dim_k == 256;
}

/** Whether a sequence may take the instance for its head_dim_k: q and k of one 16-bit type, rows of k aligned. */
static inline int lava_score_is_aligned(const lava_score_args *a, const lava_score_sequence *s) {
    return lava_score_has_instance(a->head_dim_k) && s->k.dtype != 0 && s->q.dtype == s->k.dtype &&
           lava_rows_are_aligned(&s->k, a->head_dim_k);
}

/** Tiles of 16 rows that one warp of an instance holds in registers. */
#define LAVA_SCORE_TILES_OF_WARP(head_dim_k) ((head_dim_k) > 128 ? 1 : 2)

/** Sets row_warps, key_split, tiles_of_sum and kinds. `instance`: not score_*_any. */
static inline void lava_score_split(lava_score_args *a, int instance) {
    const uint32_t per_warp = LAVA_SCORE_TILES_OF_WARP(a->head_dim_k), tiles = lava_score_rows(a) / LAVA_SCORE_ROWS;
    const uint32_t wanted = (tiles + per_warp - 1) / per_warp, of_head = (a->window + LAVA_SCORE_ROWS - 1) / LAVA_SCORE_ROWS;
    a->tiles_of_sum = per_warp == 2 && of_head % 2 == 0 && !lava_score_spreads(a) ? 2 : 1;
    a->kinds = lava_score_kinds(a);
    a->row_warps = a->key_split = 2; /* what score_*_any are made for */
    if (!instance) return;
    a->row_warps = wanted > 4 ? 8 : wanted > 2 ? 4 : wanted;
    a->key_split = a->row_warps < 4 ? 4 / a->row_warps : 1;
}

/** Threads of a block of score_stats and score_columns. */
LAVA_PLAN uint32_t lava_score_threads(const lava_score_args *a) { return 32 * a->row_warps * a->key_split; }

/** Tiles of keys on their way from memory at the same time, and being worked on. */
#define LAVA_SCORE_STAGES(head_dim_k) ((head_dim_k) > 128 ? 2 : 3)

/** Bytes of dynamic shared memory of score_stats_*: the tiles, their rows 16 bytes apart from each other. */
LAVA_PLAN uint32_t lava_score_stats_shared(const lava_score_args *a) {
    return LAVA_SCORE_STAGES(a->head_dim_k) * LAVA_SCORE_KEYS * (a->head_dim_k + 8) * 2;
}

/** Row tiles that the warps of a block hold together. */
LAVA_PLAN uint32_t lava_score_row_tiles_at_once(const lava_score_args *a) {
    return a->row_warps * LAVA_SCORE_TILES_OF_WARP(a->head_dim_k);
}

/** Sums per key that score_columns makes of them. */
LAVA_PLAN uint32_t lava_score_sums_at_once(const lava_score_args *a) { return lava_score_row_tiles_at_once(a) / a->tiles_of_sum; }

/** The same of score_columns_*: also two buffers of those sums, a row's rest for each thread, and what is carried from round to round. */
LAVA_PLAN uint32_t lava_score_columns_shared(const lava_score_args *a) {
    const uint32_t one_round = lava_score_rows(a) / LAVA_SCORE_ROWS <= lava_score_row_tiles_at_once(a);
    return lava_score_stats_shared(a) + 4 * (2 * a->kinds * lava_score_sums_at_once(a) * LAVA_SCORE_KEYS + lava_score_threads(a) +
                                             (one_round ? 0 : 4 * lava_score_most_keys(a)));
}

/* --------------------------------------------------------------- attend ---- */

#define LAVA_ATTEND_WARPS 4
/** Query rows that are taken over a cache together. */
#define LAVA_ATTEND_QUERIES 16
/** Cache rows of one step of a warp. */
#define LAVA_ATTEND_KEYS 16

typedef struct lava_attend_sequence {
    /** [n_queries, n_q_heads, head_dim_k]. */
    lava_device_tensor q;
    /** [n_rows[h], n_kv_heads, head_dim_k]. */
    lava_device_tensor k;
    /** [n_rows[h], n_kv_heads, head_dim_v]. */
    lava_device_tensor v;
    /** f32 [n_queries, n_q_heads, head_dim_v]; written. */
    lava_device_tensor out;
    /** f32 [n_queries, n_q_heads, 1], written; data NULL: not wanted. */
    lava_device_tensor lse;
    /** n_kv_heads counts. */
    const uint32_t *n_rows;
    /** As in lava_attend_params; NULL without a sliding window. */
    const uint32_t *kept_indices;
    const uint32_t *cu_kept;
    /** NULL, or one number: kept_indices begin that many entries later. */
    const uint64_t *kept_offset;
    uint32_t n_base;
    /** A larger count is taken as this one. */
    uint32_t max_rows;
} lava_attend_sequence;

typedef struct lava_attend_args {
    /** n_sequences of them in device memory, or NULL: `one` is the only one. */
    const lava_attend_sequence *items;
    lava_attend_sequence one;

    uint32_t layer;
    uint32_t n_queries;
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim_k;
    uint32_t head_dim_v;
    uint32_t causal;
    uint32_t sliding_window;
    float scale;
    float softcap;
    /** What a log-sum-exp of base 2 is multiplied by to be the caller's. */
    float lse_from_base_2;
    uint32_t n_sequences;
    /** Cache rows that one warp handles, a multiple of LAVA_ATTEND_KEYS. Results are the same bits for the same one. */
    uint32_t rows_per_item;
    /** Items that the workspace has room for: at least that of lava_attend_items. */
    uint32_t max_items;

    /** [max_items, queries, lava_attend_partial]: sums, maximum and sum of a query over an item's rows. */
    float *partial;
    /** Set to LAVA_NO_FAULT by the caller. */
    uint64_t *status;
} lava_attend_args;

/** Query rows of one KV head. */
LAVA_PLAN uint32_t lava_attend_queries(const lava_attend_args *a) { return a->n_queries * (a->n_q_heads / a->n_kv_heads); }

/** Floats from one query's partial results to the next's: whole sectors of memory, so that none is written twice. */
LAVA_PLAN uint32_t lava_attend_partial(const lava_attend_args *a) { return (a->head_dim_v + 2 + 7) / 8 * 8; }

/** The most items that `total_rows` rows over all sequences and heads make. */
static inline uint32_t lava_attend_items(const lava_attend_args *a, uint64_t total_rows) {
    return (uint32_t) (total_rows / a->rows_per_item + (uint64_t) a->n_sequences * a->n_kv_heads);
}

/** Sets the workspace's pointer and returns the bytes needed. All other fields are set before. */
static inline size_t lava_attend_layout(lava_attend_args *a, void *workspace) {
    size_t used = 0;
    a->partial = (float *) lava_take(workspace, &used,
                                     (size_t) a->max_items * lava_attend_queries(a) * lava_attend_partial(a));
    return used;
}

/** Whether a sequence may take attend_rows_<type>_<dim>: one 16-bit type, both dimensions `dim`, rows of k and v aligned. */
static inline int lava_attend_is_aligned(const lava_attend_args *a, const lava_attend_sequence *s) {
    return lava_score_has_instance(a->head_dim_k) && a->head_dim_k == a->head_dim_v && s->k.dtype != 0 &&
           s->q.dtype == s->k.dtype && s->v.dtype == s->k.dtype && lava_rows_are_aligned(&s->k, a->head_dim_k) &&
           lava_rows_are_aligned(&s->v, a->head_dim_v);
}

/**
 * Steps of a warp on their way from memory at the same time, and being worked on. Up to 128 dimensions three blocks have room for theirs on
 * the largest GPUs, and one on the smallest.
 */
#define LAVA_ATTEND_STAGES(head_dim_k) ((head_dim_k) > 80 ? 2 : 3)

/** Blocks of attend_rows that a processor holds, as far as registers go: what the kernels' launch bounds ask for. */
#define LAVA_ATTEND_BLOCKS(head_dim_k) ((head_dim_k) > 128 ? 2 : 3)
#define LAVA_ATTEND_ANY_BLOCKS 4

/** Bytes of dynamic shared memory of attend_rows_<type>_<dim>. */
LAVA_PLAN uint32_t lava_attend_shared(const lava_attend_args *a) {
    return LAVA_ATTEND_WARPS * LAVA_ATTEND_STAGES(a->head_dim_k) * LAVA_ATTEND_KEYS * 2 * (a->head_dim_k + 8) * 2;
}

#endif
