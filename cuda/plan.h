/*
 * plan.h - what the kernels of this folder are given, and how they are launched: argument structs, grids, workspace sizes. That of scoring
 * and attention is in plan_attention.h.
 *
 * Plain C, so that a host in any language can mirror it (src/backend/cuda/plan.rs does). Argument structs are passed by value as the
 * kernel's only parameter, of at most 32,764 bytes, and a captured graph holds them. Pointers lead to
 * device memory. All memory is the caller's; sizes are in bytes, strides in elements.
 *
 * The items of a batch are in device memory, where lava_upload puts them, or a single one in the arguments.
 *
 * How work is cut depends on an item's own sizes only: neither the number of processors nor the batch changes a result's bits.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef LAVA_CUDA_PLAN_H
#define LAVA_CUDA_PLAN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define LAVA_PLAN static __host__ __device__ inline
#else
#define LAVA_PLAN static inline
#endif

enum {
    LAVA_CUDA_MAX_HEADS = 1024, /* KV heads of a selection */
    LAVA_CUDA_MAX_LAYERS = 1024,
    LAVA_CUDA_PIECE = 1024, /* scores of a head that are summed by themselves, as in src/entropy.rs */
    LAVA_CUDA_ENTROPY_THREADS = 256,
    LAVA_CUDA_BUDGET_THREADS = 128,
    LAVA_CUDA_SELECT_THREADS = 256,
    LAVA_CUDA_SELECT_TILE = 2048, /* entries that a block goes through together */
    LAVA_CUDA_BUCKETS = 2048,
    LAVA_CUDA_COMPACT_THREADS = 256,
    LAVA_CUDA_COMPACT_BLOCKS = 4, /* of lava_compact_{16,32} that a processor holds */
    LAVA_CUDA_MEAN_THREADS = 256,
    LAVA_CUDA_UPLOAD_THREADS = 512,
    LAVA_CUDA_UPLOAD_WORDS = 500,
    LAVA_CUDA_UPLOAD_MANY_WORDS = 4000
};

/*
 * The status word, set to all ones by the caller (a memset of 0xFF): nothing is wrong. A kernel that finds a fault lowers it, so of
 * several faults the first layer's, sequence's and head's is reported, whatever the schedule: 16 + 20 + 20 + 8 bits.
 */
#define LAVA_NO_FAULT UINT64_MAX
enum {
    LAVA_FAULT_LSE = 1,
    LAVA_FAULT_Q_OR_K = 2,
    LAVA_FAULT_V = 3,
    LAVA_FAULT_SCORES = 4,
    LAVA_FAULT_BUDGET = 5,
    LAVA_FAULT_STATS = 6,
    LAVA_FAULT_WEIGHTS = 7
};
/* The head of layer weights' faults. It comes after all others of the sequence, which may be its cause. */
#define LAVA_NO_HEAD 0xfffffu
/* What a kernel that finds a fault leaves as a number of entries. Selection does nothing for such an item; the fault has been reported. */
#define LAVA_NO_ENTRIES (UINT64_MAX - 1)
LAVA_PLAN uint64_t lava_fault(uint32_t what, uint32_t layer, uint32_t sequence, uint32_t head) {
    return (uint64_t) (layer & 0xffff) << 48 | (uint64_t) (sequence & 0xfffff) << 28 | (uint64_t) (head & 0xfffff) << 8 | what;
}

/* As lava_tensor, in device memory, row_start too: element c of row r of head h is at
 * data + ((row_start ? row_start[h] : 0) + r) * stride_token + h * stride_head + c * stride_dim. */
typedef struct lava_device_tensor {
    void *data;
    int64_t stride_token, stride_head, stride_dim;
    const uint32_t *row_start; /* NULL, or one first row per head */
    int32_t dtype;             /* LAVA_F32, LAVA_F16 or LAVA_BF16 */
    int32_t reserved;
} lava_device_tensor;

/*
 * Whether rows are read 16 bytes at a time: elements side by side, and every row 16-byte aligned. Without conditions, so that a kernel
 * asks for all of the tensor at once.
 */
LAVA_PLAN int lava_rows_are_aligned(const lava_device_tensor *t, uint32_t dim) {
    const int64_t within = t->dtype == 0 ? 3 : 7; /* elements of 16 bytes, less one */
    return ((t->stride_dim == 1) | (dim == 1)) & (((dim | t->stride_token | t->stride_head) & within) == 0) & ((uintptr_t) t->data % 16 == 0);
}

LAVA_PLAN uint64_t lava_cuda_round_up(uint64_t n, uint64_t step) { return (n + step - 1) / step * step; }
LAVA_PLAN uint64_t lava_cuda_min(uint64_t a, uint64_t b) { return a < b ? a : b; }
LAVA_PLAN uint64_t lava_cuda_max(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Item i of a batch, in a kernel. */
#define LAVA_ITEM(args, i) ((args).items != NULL ? (args).items[i] : (args).one)

/* ---- Upload ------------------------------------------------------------------------------------------------------- */

/*
 * lava_upload, lava_upload_many: grid (n_words / threads), LAVA_CUDA_UPLOAD_THREADS threads. Puts a launch's own arguments into device
 * memory: they are copied when the launch is requested, so no host memory has to stay, and a captured graph holds them. Two kernels, since
 * words that are not used are copied too.
 */
typedef struct lava_upload_args {
    uint64_t *to;
    uint64_t n_words;
    uint64_t words[LAVA_CUDA_UPLOAD_WORDS];
} lava_upload_args;
typedef struct lava_upload_many_args {
    uint64_t *to;
    uint64_t n_words;
    uint64_t words[LAVA_CUDA_UPLOAD_MANY_WORDS];
} lava_upload_many_args;

/* ---- Entropy ------------------------------------------------------------------------------------------------------ */

/*
 * The entropy of a layer with a fault in its scores, which lava_entropy_pieces reports, and the preference of one without any: a NaN that
 * sharing kernels do not report again, since they know neither the sequence nor the head.
 */
#define LAVA_NO_ENTROPY 0x7ff80000acedbad5ull

/*
 * lava_entropy_pieces: grid (lava_cuda_pieces(max_prefix), n_kv_heads, n_items), LAVA_CUDA_ENTROPY_THREADS threads. lava_entropy_layer: grid
 * (n_items), LAVA_CUDA_BUDGET_THREADS threads.
 */
typedef struct lava_cuda_entropy_item {
    const float *scores; /* [n_kv_heads, prefix_len] */
    double *entropy;     /* receives one number */
    double *mass;        /* NULL, or receives one number */
    uint32_t prefix_len, layer;
} lava_cuda_entropy_item;
typedef struct lava_cuda_entropy_args {
    const lava_cuda_entropy_item *items;
    lava_cuda_entropy_item one;
    uint64_t *status;
    double *workspace; /* [n_items, lava_cuda_piece_sums]: lava_cuda_entropy_workspace bytes */
    uint32_t n_items, n_kv_heads, max_prefix, reserved;
} lava_cuda_entropy_args;
LAVA_PLAN uint32_t lava_cuda_pieces(uint32_t prefix_len) {
    return (uint32_t) (((uint64_t) prefix_len + LAVA_CUDA_PIECE - 1) / LAVA_CUDA_PIECE);
}
/* Doubles for a layer's pieces, [n_kv_heads, pieces, 2], with room for the sums of heads that have none. */
LAVA_PLAN uint64_t lava_cuda_piece_sums(uint32_t n_kv_heads, uint32_t prefix_len) {
    return (uint64_t) n_kv_heads * lava_cuda_max(lava_cuda_pieces(prefix_len), 1) * 2;
}
LAVA_PLAN uint64_t lava_cuda_entropy_workspace(uint32_t n_items, uint32_t n_kv_heads, uint32_t max_prefix) {
    return n_items * lava_cuda_piece_sums(n_kv_heads, max_prefix) * 8;
}

/* ---- Other weights of a layer, and the mean of its heads ------------------------------------------------------------ */

/* lava_stats_preference: grid (n_items), 32 threads. */
typedef struct lava_cuda_preference_item {
    const double *stats; /* [n_kv_heads, 2], of lava_stats_sum */
    double *weight;      /* receives one number, or LAVA_NO_ENTROPY */
    uint32_t layer, reserved;
} lava_cuda_preference_item;
typedef struct lava_cuda_preference_args {
    const lava_cuda_preference_item *items;
    lava_cuda_preference_item one;
    uint64_t *status;
    double tau1, tau2;
    uint32_t n_items, n_kv_heads;
} lava_cuda_preference_args;

/* lava_mean_heads: grid (max_prefix / threads, n_items), LAVA_CUDA_MEAN_THREADS threads. A token with a fault stays as it is. */
typedef struct lava_cuda_mean_item {
    float *scores; /* [n_kv_heads, prefix_len], changed */
    uint32_t prefix_len, layer;
} lava_cuda_mean_item;
typedef struct lava_cuda_mean_args {
    const lava_cuda_mean_item *items;
    lava_cuda_mean_item one;
    uint64_t *status;
    uint32_t n_items, n_kv_heads, max_prefix, reserved;
} lava_cuda_mean_args;

/* ---- Entries of layers -------------------------------------------------------------------------------------------- */

/* lava_share_layers: grid (n_items), LAVA_CUDA_BUDGET_THREADS threads. */
typedef struct lava_cuda_share_item {
    const double *weights;      /* [n_layers] */
    const uint64_t *capacities; /* [n_layers] */
    const uint64_t *minimums;   /* [n_layers], or NULL */
    uint64_t *entries;          /* [n_layers], receives */
    uint64_t total;
    uint32_t n_layers, round_up; /* round_up 1: as in a cascade that is not complete */
} lava_cuda_share_item;
typedef struct lava_cuda_share_args {
    const lava_cuda_share_item *items;
    lava_cuda_share_item one;
    uint64_t *status;
    uint32_t n_items;
} lava_cuda_share_args;

/* ---- Selection ---------------------------------------------------------------------------------------------------- */

/* As lava_select_params; alpha in billionths, rounded by the host: rint(alpha * 1e9). */
typedef struct lava_cuda_select_params {
    const uint8_t *protected_mask; /* [prefix_len], or NULL */
    uint32_t head_floor, alpha_billionths, n_sink, head_min;
    const double *head_weights; /* [n_kv_heads] of the layer, of a cascade [n_layers, n_kv_heads]; or NULL */
} lava_cuda_select_params;

/* As lava_selection. */
typedef struct lava_cuda_selection {
    uint32_t struct_size, everything_kept;
    uint64_t n_kept, n_entries;
    double mass, evicted_share; /* within 1e-12 of the CPU's; the order of the sums differs */
} lava_cuda_selection;

typedef struct lava_cuda_select_item {
    const float *scores;            /* [n_kv_heads, prefix_len] */
    const uint64_t *n_entries;      /* one number, on the device: the host does not wait for the layers' shares */
    uint32_t *kept_indices;         /* receives min(n_entries, all) + n_kv_heads * window_rows positions */
    uint32_t *cu_kept;              /* receives n_kv_heads + 1 */
    lava_cuda_selection *selection; /* NULL, or receives a report */
    lava_cuda_select_params params;
    uint32_t prefix_len, window_rows, layer, reserved;
} lava_cuda_select_item;

/*
 * lava_select_begin: grid (n_items), 32 threads: zeroes the workspace's control words.
 * lava_select_entries: grid (n_blocks, n_items), LAVA_CUDA_SELECT_THREADS threads. With n_blocks > 1 the blocks wait for each other: all of
 * the grid must fit on the GPU at once (a cooperative launch). Any n_blocks gives the same bits. Of several faults an item tells the
 * first of WEIGHTS (of the head), BUDGET (below the protected entries or head_min) and SCORES (of the head), and then writes nothing.
 */
enum { LAVA_CUDA_CONTROL_BYTES = 64 };
typedef struct lava_cuda_select_args {
    const lava_cuda_select_item *items;
    lava_cuda_select_item one;
    uint64_t *status;
    unsigned char *workspace;
    uint32_t n_items, n_kv_heads, max_prefix, reserved;
} lava_cuda_select_args;

/* Of one item, after the control words of all. */
typedef struct lava_cuda_choice_layout {
    uint64_t histogram, head, tile, tile_mass, size;
} lava_cuda_choice_layout;
/* Of a head with this many entries. Without a sum: there may be nearly 2^32. */
LAVA_PLAN uint32_t lava_cuda_tiles(uint32_t len) { return len / LAVA_CUDA_SELECT_TILE + (len % LAVA_CUDA_SELECT_TILE != 0); }
LAVA_PLAN uint32_t lava_cuda_choice_tiles(uint32_t n_kv_heads, uint32_t max_prefix) { return n_kv_heads * lava_cuda_tiles(max_prefix); }
LAVA_PLAN lava_cuda_choice_layout lava_cuda_choice_place(uint32_t n_kv_heads, uint32_t max_prefix) {
    lava_cuda_choice_layout l;
    const uint64_t tiles = lava_cuda_choice_tiles(n_kv_heads, max_prefix);
    l.histogram = 0;
    l.head = l.histogram + (uint64_t) n_kv_heads * LAVA_CUDA_BUCKETS * 4;
    l.tile = l.head + lava_cuda_round_up(7ull * n_kv_heads * 4, 16);
    l.tile_mass = l.tile + lava_cuda_round_up(tiles * 8, 16);
    l.size = lava_cuda_round_up(l.tile_mass + tiles * 16, 16);
    return l;
}
LAVA_PLAN uint64_t lava_cuda_choice_workspace(uint32_t n_items, uint32_t n_kv_heads, uint32_t max_prefix) {
    return n_items * (LAVA_CUDA_CONTROL_BYTES + lava_cuda_choice_place(n_kv_heads, max_prefix).size);
}

/* ---- One sort over all layers ------------------------------------------------------------------------------------- */

/*
 * lava_global_begin, lava_share_globally: grids and threads as of lava_select_begin and lava_select_entries. An item is one sequence; of
 * all layers' entries the `total` largest win. After it lava_select_entries with each layer's n_entries, &entries[l], and
 * params.head_weights = head_weights + l * n_kv_heads keeps exactly those.
 *
 * The host sees to it that n_layers * n_kv_heads * prefix_len is below 2^32, that head_floor is not the affine one, and that
 * params.head_weights is NULL. Faults: BUDGET (of layer 0), SCORES (of the layer and head).
 */
typedef struct lava_cuda_global_item {
    const float *const *scores; /* [n_layers], on the device: each layer's [n_kv_heads, prefix_len] */
    uint64_t *entries;          /* [n_layers], receives prefix entries, or LAVA_NO_ENTRIES on a fault */
    double *head_weights;       /* [n_layers, n_kv_heads], receives each head's prefix entries; untouched on a fault */
    lava_cuda_select_params params;
    uint64_t total;
    uint32_t prefix_len, reserved;
} lava_cuda_global_item;
typedef struct lava_cuda_global_args {
    const lava_cuda_global_item *items;
    lava_cuda_global_item one;
    uint64_t *status;
    unsigned char *workspace; /* lava_cuda_global_workspace bytes */
    uint32_t n_items, n_layers, n_kv_heads, max_prefix;
} lava_cuda_global_args;
LAVA_PLAN uint64_t lava_cuda_global_workspace(uint32_t n_items, uint32_t n_layers, uint32_t n_kv_heads, uint32_t max_prefix) {
    return lava_cuda_choice_workspace(n_items, n_layers * n_kv_heads, max_prefix);
}

/* ---- Cascade ------------------------------------------------------------------------------------------------------ */

/*
 * State of a cascade: lava_cuda_cascade_state bytes, aligned to 16, which the caller owns. Positions, scores and rows of what is
 * kept are there twice; a push reads one copy and writes the other, so that all layers move at once.
 *
 *     lava_cascade_begin   grid 1, LAVA_CUDA_BUDGET_THREADS threads, once, before the first push; looks at no pointer but status,
 *                          state and those of params
 * Then for each layer, with item.layer = 0, 1, ... (the host counts; nothing is read back):
 *     lava_cascade_pieces  grid (max_pieces, max_heads, n_items), LAVA_CUDA_ENTROPY_THREADS threads
 *     lava_cascade_share   grid (1, 1, n_items), LAVA_CUDA_BUDGET_THREADS threads
 *     lava_cascade_plan    grid (n_blocks, 1, n_items), LAVA_CUDA_SELECT_THREADS threads, cooperative if n_blocks > 1; any n_blocks
 *                          gives the same bits
 *     lava_cascade_write   the same
 * A fault in a layer's scores or weight, invalid head weights, or minimums that do not fit lower the status word and make
 * every later push of this cascade do nothing. The mask and the head weights are not copied: they stay where they are until the
 * last push.
 */
typedef struct lava_cuda_cascade_item {
    const float *scores; /* of the layer that is pushed: [n_kv_heads, prefix_len] */
    unsigned char *state;
    lava_cuda_select_params params;
    uint64_t total;
    uint32_t layer, n_layers, n_kv_heads, prefix_len, window_rows;
    uint32_t layers;        /* LAVA_LAYERS_; with _GLOBAL as for lava_share_globally: no affine floor, no head weights */
    uint32_t evict_every;   /* at least 1: the caller compacts after this many pushes */
    uint32_t reserved;
    const double *weight;   /* LAVA_LAYERS_WEIGHTS: one number on the device, of the layer that is pushed. Else not looked at */
} lava_cuda_cascade_item;
typedef struct lava_cuda_cascade_args {
    const lava_cuda_cascade_item *items;
    lava_cuda_cascade_item one;
    uint64_t *status;
    unsigned char *workspace; /* n_items * workspace_each bytes, the latter lava_cuda_cascade_workspace of an item; needs no contents */
    uint64_t workspace_each;
    uint32_t n_items;
    uint32_t max_layers, max_heads, max_tiles, max_pieces, reserved; /* the most of an item: layer + 1, n_kv_heads, lava_cuda_choice_tiles ... */
} lava_cuda_cascade_args;
/* Of any of its pushes. */
LAVA_PLAN uint64_t lava_cuda_cascade_workspace(const lava_cuda_cascade_item *a) {
    return lava_cuda_choice_workspace(a->n_layers, a->n_kv_heads, a->prefix_len);
}

typedef struct lava_cuda_cascade_layout {
    uint64_t entropies, masses, shares, n_entries, capacities, minimums; /* [n_layers] */
    uint64_t starts;            /* u64 [2, n_layers]: first row of each layer, in either copy */
    uint64_t cu;                /* u32 [2, n_layers, n_kv_heads + 1]: rows per head, in either copy */
    uint64_t cu_rows;           /* u32 [n_layers, n_kv_heads + 1]: rows per head in the caller's cache */
    uint64_t scores, positions; /* [2, capacity] */
    uint64_t rows;              /* u32 [2, capacity]: which rows of the caller's cache they are */
    uint64_t piece_sums;        /* f64 [lava_cuda_piece_sums] */
    uint64_t failed;            /* u32 */
    uint64_t weights;           /* f64 [n_layers]: by which layers share the total */
    uint64_t size, capacity;
} lava_cuda_cascade_layout;
/* After the push of layer l, copy (l + 1) % 2 is what is kept. */
LAVA_PLAN lava_cuda_cascade_layout lava_cuda_cascade_place(const lava_cuda_cascade_item *a) {
    lava_cuda_cascade_layout l;
    const uint64_t layers = a->n_layers, heads = a->n_kv_heads, entries = heads * a->prefix_len;
    /* Shares rounded up, and what a floor may add to them. */
    const uint64_t shares = lava_cuda_min(a->total, entries * layers) + layers;
    const uint64_t whole = shares / 1000000000, part = shares % 1000000000;
    const uint64_t alpha = a->params.alpha_billionths;
    const uint64_t floors = a->params.head_floor == 0 ? 0 : whole * alpha + (part * alpha + 999999999) / 1000000000 + layers * heads;
    /* And one more for each head whose weight's share is rounded up. */
    const uint64_t each = lava_cuda_min(a->params.head_min, a->prefix_len) + (a->params.head_weights != NULL);
    l.capacity = lava_cuda_min(shares + floors + each * layers * heads, entries * layers) + heads * layers * a->window_rows;
    l.entropies = 0;
    l.masses = l.entropies + layers * 8;
    l.shares = l.masses + layers * 8;
    l.n_entries = l.shares + layers * 8;
    l.capacities = l.n_entries + layers * 8;
    l.minimums = l.capacities + layers * 8;
    l.starts = l.minimums + layers * 8;
    l.cu = l.starts + 2 * layers * 8;
    l.cu_rows = l.cu + 2 * layers * (heads + 1) * 4;
    l.scores = l.cu_rows + layers * (heads + 1) * 4;
    l.positions = l.scores + 2 * l.capacity * 4;
    l.rows = l.positions + 2 * l.capacity * 4;
    l.piece_sums = lava_cuda_round_up(l.rows + 2 * l.capacity * 4, 16);
    l.failed = l.piece_sums + lava_cuda_piece_sums(a->n_kv_heads, a->prefix_len) * 8;
    l.weights = l.failed + 16;
    l.size = lava_cuda_round_up(l.weights + layers * 8, 16);
    return l;
}
LAVA_PLAN uint64_t lava_cuda_cascade_state(const lava_cuda_cascade_item *a) { return lava_cuda_cascade_place(a).size; }

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
    lava_device_tensor src, dst;
    const uint32_t *rows, *cu_kept;
    const uint64_t *rows_offset; /* NULL, or one number: rows begin that many entries later (a cascade's starts) */
    uint32_t dim, reserved;      /* head_dim_k or head_dim_v */
    uint32_t *n_rows;            /* NULL, or receives each head's rows, for attention */
} lava_cuda_compact_item;
typedef struct lava_cuda_compact_args {
    const lava_cuda_compact_item *items; /* K and V are two items */
    lava_cuda_compact_item one;
    const uint64_t *status; /* with a fault in it nothing moves: rows and cu_kept may not have been written */
    uint32_t n_items, n_kv_heads, per_head, reserved;
} lava_cuda_compact_args;
/* 32 bytes of each row: whole sectors. */
LAVA_PLAN uint32_t lava_cuda_compact_slices(uint32_t max_dim, uint32_t element_size) { return (max_dim * element_size + 31) / 32; }

#endif
