/*
 * plan.h - what the kernels of this folder are told, and how they are launched: argument structs, grids, workspace sizes.
 *
 * Plain C, so that a host in any language can mirror it. Argument structs are passed by value as the kernel's only parameter
 * (below 4 KB, so any driver takes them, and a captured graph holds them). Pointers lead to device memory unless a comment
 * says otherwise. All memory is the caller's; sizes are in bytes, strides in elements.
 *
 * Numbers of splits and spans depend on a sequence's own length only: neither the GPU nor the batch changes a result's bits.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef LAVA_CUDA_PLAN_H
#define LAVA_CUDA_PLAN_H

#include <stdint.h>

#if defined(__CUDACC__)
#define LAVA_PLAN static __host__ __device__ inline
#else
#define LAVA_PLAN static inline
#endif

enum {
    LAVA_CUDA_MAX_SEQS = 16,      /* sequences, layers or caches of one launch */
    LAVA_CUDA_MAX_SPLITS = 32,    /* parts that a sequence's keys are divided into */
    LAVA_CUDA_MAX_HEAD_DIM = 576,
    LAVA_CUDA_MAX_HEADS = 1024,   /* KV heads of a selection */
    LAVA_CUDA_MAX_LAYERS = 1024,
    LAVA_CUDA_VALUE_THREADS = 256,
    LAVA_CUDA_LSE_THREADS = 128,
    LAVA_CUDA_POOL_THREADS = 256,
    LAVA_CUDA_POOL_TILE = 1024,   /* scores of one block of lava_score_pool */
    LAVA_CUDA_ENTROPY_THREADS = 256,
    LAVA_CUDA_BUDGET_THREADS = 128,
    LAVA_CUDA_SELECT_THREADS = 256,
    LAVA_CUDA_SELECT_TILE = 2048, /* entries that a block goes through together */
    LAVA_CUDA_BUCKETS = 2048,
    LAVA_CUDA_COMPACT_THREADS = 256,
    LAVA_CUDA_ATTEND_THREADS = 128,
    LAVA_CUDA_ATTEND_ROWS = 4,    /* queries of one block of lava_attend */
    LAVA_CUDA_ATTEND_KEYS = 32    /* keys that a warp takes at a time */
};

/*
 * The status word, 64 bits, set to all ones by the caller (a memset of 0xFF): nothing is wrong. A kernel that finds a fault
 * lowers it, so of several faults the first layer's, sequence's and head's is told, whatever the schedule.
 */
#define LAVA_CUDA_STATUS_OK UINT64_MAX
enum { LAVA_CUDA_BAD_QK = 1, LAVA_CUDA_BAD_V = 2, LAVA_CUDA_BAD_LSE = 3, LAVA_CUDA_BAD_SCORES = 4, LAVA_CUDA_BAD_BUDGET = 5, LAVA_CUDA_BAD_WEIGHTS = 6 };
#define LAVA_CUDA_STATUS(layer, seq, head, what) \
    ((uint64_t) ((layer) < 0xffff ? (layer) : 0xfffe) << 48 | (uint64_t) (seq) << 40 | (uint64_t) (head) << 8 | (uint64_t) (what))

/* As lava_tensor, without what the host has checked: element c of row r of head h is at
 * data + ((row_start ? row_start[h] : 0) + r) * stride_token + h * stride_head + c * stride_dim. */
typedef struct lava_cuda_tensor {
    void *data;
    const uint32_t *row_start; /* NULL, or one first row per head */
    int64_t stride_token, stride_head, stride_dim;
} lava_cuda_tensor;

LAVA_PLAN uint64_t lava_cuda_round_up(uint64_t n, uint64_t step) { return (n + step - 1) / step * step; }
LAVA_PLAN uint64_t lava_cuda_min(uint64_t a, uint64_t b) { return a < b ? a : b; }
LAVA_PLAN uint64_t lava_cuda_max(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* ---- Scores ------------------------------------------------------------------------------------------------------- */

typedef struct lava_cuda_score_seq {
    lava_cuda_tensor q;   /* [window, n_q_heads, head_dim_k] */
    lava_cuda_tensor k;   /* [n_tokens, n_kv_heads, head_dim_k], of q's dtype */
    lava_cuda_tensor v;   /* [n_tokens, n_kv_heads, head_dim_v] */
    lava_cuda_tensor lse; /* f32 [window, n_q_heads]; data NULL: computed */
    float *scores;        /* [n_kv_heads, n_tokens - window] */
    uint32_t n_tokens;
    uint32_t layer;       /* for the status word only */
} lava_cuda_score_seq;

/*
 * Launches, in order, all with this struct, grid.y = n_kv_heads, grid.z = n_seqs:
 *     lava_score_values_{f16,bf16,f32}          grid.x = the most lava_cuda_score_splits of a sequence,
 *                                               LAVA_CUDA_VALUE_THREADS threads
 *     lava_score_rows_{f16,bf16}_{64,80,96,128,256,any}, lava_score_rows_f32
 *                                               the same grid, 32 * n_warps threads, shared_bytes; not needed
 *                                               where every sequence has lse
 *     lava_score_lse                            grid.x = ceil(n_rows / LAVA_CUDA_LSE_THREADS)
 *     lava_score_columns_...                    as lava_score_rows_
 *     lava_score_pool                           grid.x = ceil(longest prefix / LAVA_CUDA_POOL_TILE)
 * A sequence whose window covers it is skipped by all of them. The workspace needs no contents.
 */
typedef struct lava_cuda_score_args {
    lava_cuda_score_seq seq[LAVA_CUDA_MAX_SEQS];
    uint64_t *status;
    unsigned char *workspace; /* lava_cuda_score_workspace bytes, aligned to 16 */
    uint32_t n_seqs, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window;
    uint32_t pool, pool_kernel, group_reduce, value_span, sliding_window; /* as lava_score_params */
    float scale, softcap;     /* scale: not 0; softcap 0: none */
    uint32_t max_prefix;      /* of the longest sequence */
    uint32_t chunk_rows, n_warps, shared_bytes; /* lava_cuda_score_plan */
} lava_cuda_score_args;

LAVA_PLAN uint32_t lava_cuda_score_prefix(uint32_t n_tokens, uint32_t window) { return n_tokens > window ? n_tokens - window : 0; }
/* Query rows of a head, filled up so that 16 rows belong to one head. */
LAVA_PLAN uint32_t lava_cuda_score_head_rows(const lava_cuda_score_args *a) { return (uint32_t) lava_cuda_round_up(a->window, 16); }
LAVA_PLAN uint32_t lava_cuda_score_rows(const lava_cuda_score_args *a) { return lava_cuda_score_head_rows(a) * (a->n_q_heads / a->n_kv_heads); }
/* Keys of one block: at most LAVA_CUDA_MAX_SPLITS of them, in whole steps. */
LAVA_PLAN uint32_t lava_cuda_score_span(uint32_t n_tokens) {
    return (uint32_t) lava_cuda_round_up((n_tokens + LAVA_CUDA_MAX_SPLITS - 1) / LAVA_CUDA_MAX_SPLITS, 128);
}
/* Blocks that a sequence's keys take. */
LAVA_PLAN uint32_t lava_cuda_score_splits(uint32_t n_tokens) {
    const uint32_t span = lava_cuda_score_span(n_tokens);
    return (n_tokens + span - 1) / span;
}
/* Whether the group is reduced before pooling: both maxima, both means, or one of the two does nothing. */
LAVA_PLAN int lava_cuda_score_reduce_first(const lava_cuda_score_args *a) {
    return a->pool == a->group_reduce || a->n_q_heads == a->n_kv_heads || a->pool_kernel == 1;
}
LAVA_PLAN uint32_t lava_cuda_score_is_tuned(uint32_t d) { return d == 64 || d == 80 || d == 96 || d == 128 || d == 256; }
/* Keys that a warp takes at a time. */
LAVA_PLAN uint32_t lava_cuda_score_keys(uint32_t d, uint32_t element_size) {
    return element_size == 4 ? 8 : lava_cuda_score_is_tuned(d) && d <= 128 ? 32 : 16;
}
/* Elements from a row in shared memory to the next: 16 bytes more than it needs, so that neighbours use other banks. */
LAVA_PLAN uint32_t lava_cuda_score_row_stride(uint32_t d, uint32_t element_size) {
    return (uint32_t) lava_cuda_round_up(d, 16) + 16 / element_size;
}

/* Partial maxima and sums of each row; each row's log-sum-exp; the values' maxima; raw scores before pooling, and where a head's
 * rows do not fit into one chunk, its sums so far. */
typedef struct lava_cuda_score_layout {
    uint64_t partial, lse, value_max, raw, open, size;
} lava_cuda_score_layout;
LAVA_PLAN lava_cuda_score_layout lava_cuda_score_place(const lava_cuda_score_args *a) {
    lava_cuda_score_layout l;
    const uint64_t heads = (uint64_t) a->n_seqs * a->n_kv_heads, rows = lava_cuda_score_rows(a);
    const uint64_t raw_rows = lava_cuda_score_reduce_first(a) ? 1 : a->n_q_heads / a->n_kv_heads;
    l.partial = 0;
    l.lse = l.partial + heads * LAVA_CUDA_MAX_SPLITS * rows * 8;
    l.value_max = l.lse + heads * rows * 4;
    l.raw = l.value_max + heads * LAVA_CUDA_MAX_SPLITS * 4;
    l.open = l.raw + lava_cuda_round_up(heads * raw_rows * a->max_prefix * 4, 16);
    l.size = l.open + lava_cuda_round_up(heads * a->max_prefix * 4, 16);
    return l;
}
LAVA_PLAN uint64_t lava_cuda_score_workspace(const lava_cuda_score_args *a) { return lava_cuda_score_place(a).size; }

LAVA_PLAN uint64_t lava_cuda_score_shared(const lava_cuda_score_args *a, uint32_t element_size, uint32_t chunk, uint32_t warps) {
    const uint64_t row = (uint64_t) lava_cuda_score_row_stride(a->head_dim_k, element_size) * element_size;
    /* Queries, two slices of keys per warp, and per row its statistics in each warp or its log-sum-exp. */
    return chunk * row + 2ull * warps * lava_cuda_score_keys(a->head_dim_k, element_size) * row + (uint64_t) chunk * warps * 8;
}
/* Chooses rows on chip and warps for `shared_limit` bytes of shared memory a block (every GPU from sm_80 on gives 99 KB, which
 * is enough for any shape). Whole heads, if they fit. */
LAVA_PLAN void lava_cuda_score_plan(lava_cuda_score_args *a, uint32_t element_size, uint32_t shared_limit) {
    const uint32_t rows = lava_cuda_score_rows(a), head = lava_cuda_score_head_rows(a);
    uint32_t warps = rows > 128 ? 8 : 4, chunk;
    while (warps > 1 && lava_cuda_score_shared(a, element_size, (uint32_t) lava_cuda_min(rows, 64), warps) > shared_limit) warps /= 2;
    chunk = rows;
    while (chunk > 16 && lava_cuda_score_shared(a, element_size, chunk, warps) > shared_limit) chunk -= 16;
    while (warps > 1 && lava_cuda_score_shared(a, element_size, chunk, warps) > shared_limit) warps /= 2;
    if (chunk >= head) chunk = chunk / head * head;
    a->chunk_rows = chunk;
    a->n_warps = warps;
    a->shared_bytes = (uint32_t) lava_cuda_score_shared(a, element_size, chunk, warps);
}

/* ---- Entropy ------------------------------------------------------------------------------------------------------ */

/* lava_entropy_heads: grid (n_kv_heads, n_items), LAVA_CUDA_ENTROPY_THREADS threads. lava_entropy_layer: grid (n_items), 32 threads. */
typedef struct lava_cuda_entropy_item {
    const float *scores; /* [n_kv_heads, prefix_len] */
    double *entropy;     /* receives one number */
    double *mass;        /* receives one number */
    uint32_t prefix_len, layer;
} lava_cuda_entropy_item;
typedef struct lava_cuda_entropy_args {
    lava_cuda_entropy_item item[LAVA_CUDA_MAX_SEQS];
    uint64_t *status;
    double *workspace; /* [n_items, n_kv_heads, 2]: lava_cuda_entropy_workspace bytes */
    uint32_t n_items, n_kv_heads;
} lava_cuda_entropy_args;
LAVA_PLAN uint64_t lava_cuda_entropy_workspace(uint32_t n_items, uint32_t n_kv_heads) { return (uint64_t) n_items * n_kv_heads * 16; }

/* ---- Layer budgets ------------------------------------------------------------------------------------------------ */

/* lava_share_layers: grid (n_items), LAVA_CUDA_BUDGET_THREADS threads. */
typedef struct lava_cuda_budget_item {
    const double *weights;      /* [n_layers] */
    const uint64_t *capacities; /* [n_layers] */
    const uint64_t *minimums;   /* [n_layers], or NULL */
    uint64_t *budgets;          /* [n_layers], receives */
    uint64_t total;
    uint32_t n_layers, round_up; /* round_up 1: as in a cascade that is not complete */
} lava_cuda_budget_item;
typedef struct lava_cuda_budget_args {
    lava_cuda_budget_item item[LAVA_CUDA_MAX_SEQS];
    uint64_t *status;
    uint32_t n_items;
} lava_cuda_budget_args;

/* ---- Selection ---------------------------------------------------------------------------------------------------- */

/* As lava_select_params; alpha in billionths, rounded by the host: rint(alpha * 1e9). */
typedef struct lava_cuda_select_params {
    const uint8_t *protected_mask; /* [prefix_len], or NULL */
    uint32_t head_floor, alpha_billionths, n_sink, reserved;
} lava_cuda_select_params;

typedef struct lava_cuda_selection {
    uint64_t n_kept, budget;
    double mass, evicted_share; /* within 1e-12 of the CPU's; the order of the sums is another */
    uint32_t everything_kept, reserved;
} lava_cuda_selection;

typedef struct lava_cuda_select_item {
    const float *scores;            /* [n_kv_heads, prefix_len] */
    const uint64_t *budget;         /* one number, on the device: nobody waits for the layer budgets */
    uint32_t *kept_indices;         /* receives min(budget, all) + n_kv_heads * window_rows positions */
    uint32_t *cu_kept;              /* receives n_kv_heads + 1 */
    lava_cuda_selection *selection; /* NULL, or receives a report */
    lava_cuda_select_params params;
    uint32_t prefix_len, window_rows, layer, reserved;
} lava_cuda_select_item;

/*
 * lava_select_entries: grid (n_blocks, n_items), LAVA_CUDA_SELECT_THREADS threads. With n_blocks > 1 the blocks wait for each other: all of
 * the grid must fit on the GPU at once (a cooperative launch). Any n_blocks gives the same bits. The workspace's first
 * n_items * LAVA_CUDA_CONTROL_BYTES must be zero.
 */
enum { LAVA_CUDA_CONTROL_BYTES = 64 };
typedef struct lava_cuda_select_args {
    lava_cuda_select_item item[LAVA_CUDA_MAX_SEQS];
    uint64_t *status;
    unsigned char *workspace;
    uint32_t n_items, n_kv_heads, max_prefix, reserved;
} lava_cuda_select_args;

/* Of one item, behind the control words of all. */
typedef struct lava_cuda_choice_layout {
    uint64_t histogram, head, tile, tile_mass, size;
} lava_cuda_choice_layout;
LAVA_PLAN uint32_t lava_cuda_choice_tiles(uint32_t n_kv_heads, uint32_t max_prefix) {
    return n_kv_heads * ((max_prefix + LAVA_CUDA_SELECT_TILE - 1) / LAVA_CUDA_SELECT_TILE);
}
LAVA_PLAN lava_cuda_choice_layout lava_cuda_choice_place(uint32_t n_kv_heads, uint32_t max_prefix) {
    lava_cuda_choice_layout l;
    const uint64_t tiles = lava_cuda_choice_tiles(n_kv_heads, max_prefix);
    l.histogram = 0;
    l.head = l.histogram + (uint64_t) n_kv_heads * LAVA_CUDA_BUCKETS * 4;
    l.tile = l.head + lava_cuda_round_up(9ull * n_kv_heads * 4, 16);
    l.tile_mass = l.tile + lava_cuda_round_up(tiles * 8, 16);
    l.size = lava_cuda_round_up(l.tile_mass + tiles * 16, 16);
    return l;
}
LAVA_PLAN uint64_t lava_cuda_choice_workspace(uint32_t n_items, uint32_t n_kv_heads, uint32_t max_prefix) {
    return n_items * (LAVA_CUDA_CONTROL_BYTES + lava_cuda_choice_place(n_kv_heads, max_prefix).size);
}

/* ---- Cascade ------------------------------------------------------------------------------------------------------ */

/*
 * State of a cascade: lava_cuda_cascade_state bytes, aligned to 16, which the caller owns. Positions and scores of what is kept
 * are there twice; a push reads one copy and writes the other, so that all layers move at once.
 *
 *     lava_cascade_begin   grid 1, LAVA_CUDA_BUDGET_THREADS threads, once, before the first push
 * Then for each layer, with args.layer = 0, 1, ... (the host counts; nothing is read back):
 *     lava_cascade_heads   grid (n_kv_heads), LAVA_CUDA_ENTROPY_THREADS threads
 *     lava_cascade_share   grid 1, LAVA_CUDA_BUDGET_THREADS threads
 *     lava_cascade_plan    grid (n_blocks, layer + 1), LAVA_CUDA_SELECT_THREADS threads, cooperative if n_blocks > 1
 *     lava_cascade_write   grid (n_blocks, layer + 1), LAVA_CUDA_SELECT_THREADS threads
 * A fault in a layer's scores, or protected entries that do not fit, lower the status word and make every later push of this
 * cascade do nothing.
 */
typedef struct lava_cuda_cascade_args {
    const float *scores; /* of the layer that is pushed: [n_kv_heads, prefix_len] */
    uint64_t *status;
    unsigned char *state;
    unsigned char *workspace; /* lava_cuda_choice_workspace(layer + 1, ...) bytes; needs no contents */
    lava_cuda_select_params params;
    uint64_t total;
    uint32_t layer, n_layers, n_kv_heads, prefix_len, window_rows, reserved;
} lava_cuda_cascade_args;

typedef struct lava_cuda_cascade_layout {
    uint64_t entropies, masses, shares, budgets, capacities, minimums; /* [n_layers] */
    uint64_t starts;            /* u64 [2, n_layers]: first row of each layer, in either copy */
    uint64_t cu;                /* u32 [2, n_layers, n_kv_heads + 1]: rows per head, in either copy */
    uint64_t scores, positions; /* [2, capacity] */
    uint64_t rows;              /* u32 [capacity]: which rows of those before the push are kept */
    uint64_t head_sums;         /* f64 [n_kv_heads, 2] */
    uint64_t failed;            /* u32 */
    uint64_t size, capacity;
} lava_cuda_cascade_layout;
/* After the push of layer l, copy (l + 1) % 2 is what is kept, and cu of copy l % 2 what was before (of layer l itself: all rows). */
LAVA_PLAN lava_cuda_cascade_layout lava_cuda_cascade_place(const lava_cuda_cascade_args *a) {
    lava_cuda_cascade_layout l;
    const uint64_t layers = a->n_layers, heads = a->n_kv_heads, entries = heads * a->prefix_len;
    const uint64_t total = lava_cuda_min(a->total, entries * layers), shares = total + layers;
    /* Shares rounded up, and what a floor may add to them. */
    const uint64_t whole = shares / 1000000000, part = shares % 1000000000;
    const uint64_t alpha = a->params.alpha_billionths;
    const uint64_t floors = a->params.head_floor == 0 ? 0 : whole * alpha + (part * alpha + 999999999) / 1000000000 + layers * heads;
    l.capacity = lava_cuda_min(shares + floors, entries * layers) + heads * layers * a->window_rows;
    l.entropies = 0;
    l.masses = l.entropies + layers * 8;
    l.shares = l.masses + layers * 8;
    l.budgets = l.shares + layers * 8;
    l.capacities = l.budgets + layers * 8;
    l.minimums = l.capacities + layers * 8;
    l.starts = l.minimums + layers * 8;
    l.cu = l.starts + 2 * layers * 8;
    l.scores = l.cu + 2 * layers * (heads + 1) * 4;
    l.positions = l.scores + 2 * l.capacity * 4;
    l.rows = l.positions + 2 * l.capacity * 4;
    l.head_sums = lava_cuda_round_up(l.rows + l.capacity * 4, 16);
    l.failed = l.head_sums + heads * 16;
    l.size = l.failed + 16;
    return l;
}
LAVA_PLAN uint64_t lava_cuda_cascade_state(const lava_cuda_cascade_args *a) { return lava_cuda_cascade_place(a).size; }

/* ---- Compaction --------------------------------------------------------------------------------------------------- */

/*
 * Row rows[cu_kept[h] + r] of head h of src becomes row r of head h of dst.
 *     lava_compact_{16,32}   (bits of an element) grid (n_blocks, n_kv_heads, n_items), LAVA_CUDA_COMPACT_THREADS threads; src and
 *                            dst share no memory
 *     lava_compact_within_{16,32}   grid (column slices, heads, n_items): in place. per_head 1: heads stay where they are, one
 *                            block row each (heads = n_kv_heads). 0: both ragged, rows of all heads move to the front
 *                            (heads = 1). Slices: lava_cuda_compact_slices.
 */
typedef struct lava_cuda_compact_item {
    lava_cuda_tensor src, dst;
    const uint32_t *rows, *cu_kept;
    const uint64_t *rows_offset; /* NULL, or one number: rows begin so many entries later (a cascade's starts) */
    uint32_t dim, reserved;      /* head_dim_k or head_dim_v */
} lava_cuda_compact_item;
typedef struct lava_cuda_compact_args {
    lava_cuda_compact_item item[LAVA_CUDA_MAX_SEQS]; /* K and V are two items */
    uint32_t n_items, n_kv_heads, per_head, reserved;
} lava_cuda_compact_args;
/* 32 bytes of each row: whole sectors. */
LAVA_PLAN uint32_t lava_cuda_compact_slices(uint32_t max_dim, uint32_t element_size) { return (max_dim * element_size + 31) / 32; }

/* ---- Attention over the compressed cache -------------------------------------------------------------------------- */

typedef struct lava_cuda_attend_seq {
    lava_cuda_tensor q;   /* [n_new, n_q_heads, head_dim_k] */
    lava_cuda_tensor k;   /* [n_rows[h], n_kv_heads, head_dim_k] */
    lava_cuda_tensor v;   /* [n_rows[h], n_kv_heads, head_dim_v] */
    lava_cuda_tensor out; /* f32 [n_new, n_q_heads, head_dim_v] */
    lava_cuda_tensor lse; /* f32 [n_new, n_q_heads]; data NULL: not wanted */
    const uint32_t *n_rows;                 /* [n_kv_heads] */
    const uint32_t *kept_indices, *cu_kept; /* positions of the first rows, for a sliding window; or NULL */
    uint32_t n_base, layer;
} lava_cuda_attend_seq;

enum { LAVA_CUDA_ATTEND_MAX_SEQS = 12 };

/*
 * lava_attend_{f16,bf16,f32}_{2,3,4,8,18}: q, k and v of one dtype; the number is lava_cuda_attend_columns(head_dim_v).
 *     grid (n_splits * query tiles, n_kv_heads, n_seqs), LAVA_CUDA_ATTEND_THREADS threads, lava_cuda_attend_shared bytes
 * lava_attend_merge: grid (n_new * group_size, n_kv_heads, n_seqs), LAVA_CUDA_ATTEND_THREADS threads.
 */
typedef struct lava_cuda_attend_args {
    lava_cuda_attend_seq seq[LAVA_CUDA_ATTEND_MAX_SEQS];
    uint64_t *status;
    float *workspace; /* lava_cuda_attend_workspace bytes; needs no contents */
    uint32_t n_seqs, n_new, n_q_heads, n_kv_heads, head_dim_k, head_dim_v;
    uint32_t causal, sliding_window, n_splits;
    float scale, softcap;
    uint32_t reserved;
} lava_cuda_attend_args;
/* Columns of a value per lane: the kernel's variant. */
LAVA_PLAN uint32_t lava_cuda_attend_columns(uint32_t head_dim_v) {
    return head_dim_v <= 64 ? 2 : head_dim_v <= 96 ? 3 : head_dim_v <= 128 ? 4 : head_dim_v <= 256 ? 8 : 18;
}
LAVA_PLAN uint32_t lava_cuda_attend_tiles(const lava_cuda_attend_args *a) {
    return (a->n_new * (a->n_q_heads / a->n_kv_heads) + LAVA_CUDA_ATTEND_ROWS - 1) / LAVA_CUDA_ATTEND_ROWS;
}
/* Parts of a head's rows, from the most rows that any head may have. */
LAVA_PLAN uint32_t lava_cuda_attend_splits(uint32_t max_rows) {
    return (uint32_t) lava_cuda_max(1, lava_cuda_min(LAVA_CUDA_MAX_SPLITS, max_rows / 256));
}
LAVA_PLAN uint64_t lava_cuda_attend_shared(const lava_cuda_attend_args *a) {
    const uint64_t warps = LAVA_CUDA_ATTEND_THREADS / 32;
    const uint64_t merge = warps * LAVA_CUDA_ATTEND_ROWS * (lava_cuda_attend_columns(a->head_dim_v) * 32 + 2);
    const uint64_t rows = (uint64_t) LAVA_CUDA_ATTEND_ROWS * lava_cuda_round_up(a->head_dim_k, 4);
    return 4 * (rows + merge);
}
/* Per query row and split: maximum, sum, weighted sum of values. */
LAVA_PLAN uint64_t lava_cuda_attend_workspace(const lava_cuda_attend_args *a) {
    return (uint64_t) a->n_seqs * a->n_kv_heads * a->n_splits * lava_cuda_attend_tiles(a) * LAVA_CUDA_ATTEND_ROWS * (a->head_dim_v + 2) * 4;
}

#endif
