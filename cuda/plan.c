/*
 * plan.c - the launches of each call. How a launch is cut and how a workspace is laid out is in plan*.h, which the kernels
 * include too; this file makes functions of it that Rust can call, so that it is written once. src/backend/cuda/plan.rs has the
 * other side, with the same sizes.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "plan_attention.h"

_Static_assert(sizeof(lava_device_tensor) == 48, "plan.rs: DeviceTensor");
_Static_assert(sizeof(lava_score_sequence) == 208, "plan.rs: ScoreSequence");
_Static_assert(offsetof(lava_score_sequence, scores) == 192, "plan.rs: ScoreSequence");
_Static_assert(sizeof(lava_score_args) == 408, "plan.rs: ScoreArgs");
_Static_assert(offsetof(lava_score_args, layer) == 216, "plan.rs: ScoreArgs");
_Static_assert(offsetof(lava_score_args, has_lse) == 292, "plan.rs: ScoreArgs");
_Static_assert(offsetof(lava_score_args, partial) == 328, "plan.rs: ScoreArgs");
_Static_assert(sizeof(lava_attend_sequence) == 280, "plan.rs: AttendSequence");
_Static_assert(offsetof(lava_attend_sequence, n_base) == 272, "plan.rs: AttendSequence");
_Static_assert(sizeof(lava_attend_args) == 360, "plan.rs: AttendArgs");
_Static_assert(offsetof(lava_attend_args, layer) == 288, "plan.rs: AttendArgs");
_Static_assert(offsetof(lava_attend_args, partial) == 344, "plan.rs: AttendArgs");
_Static_assert(sizeof(lava_cuda_entropy_item) == 32 && sizeof(lava_cuda_entropy_args) == 72, "plan.rs: EntropyArgs");
_Static_assert(sizeof(lava_cuda_preference_item) == 24 && sizeof(lava_cuda_preference_args) == 64, "plan.rs: PreferenceArgs");
_Static_assert(sizeof(lava_cuda_mean_item) == 16 && sizeof(lava_cuda_mean_args) == 48, "plan.rs: MeanArgs");
_Static_assert(sizeof(lava_cuda_share_item) == 48 && sizeof(lava_cuda_share_args) == 72, "plan.rs: ShareArgs");
_Static_assert(sizeof(lava_cuda_select_params) == 32 && sizeof(lava_cuda_select_item) == 88, "plan.rs: SelectItem");
_Static_assert(offsetof(lava_cuda_select_item, prefix_len) == 72 && sizeof(lava_cuda_select_args) == 128, "plan.rs: SelectArgs");
_Static_assert(sizeof(lava_cuda_compact_item) == 136 && sizeof(lava_cuda_compact_args) == 168, "plan.rs: CompactArgs");
_Static_assert(sizeof(lava_cuda_global_item) == 72 && sizeof(lava_cuda_global_args) == 112, "plan.rs: GlobalArgs");
_Static_assert(sizeof(lava_cuda_cascade_item) == 96 && offsetof(lava_cuda_cascade_item, layer) == 56, "plan.rs: CascadeItem");
_Static_assert(sizeof(lava_cuda_cascade_args) == 152, "plan.rs: CascadeArgs");
_Static_assert(sizeof(lava_upload_args) == 4016 && sizeof(lava_upload_many_args) == 32016, "plan.rs: UploadArgs");
_Static_assert(sizeof(lava_upload_many_args) <= 32764, "a kernel's parameters");

/** Kernels that exist for any tensors, and for f16 and bf16 of the dimensions of lava_score_has_instance. */
#define ALL_OF(name)                                                                                                       \
    name "_any", name "_f16_64", name "_f16_80", name "_f16_96", name "_f16_128", name "_f16_256", name "_bf16_64",        \
        name "_bf16_80", name "_bf16_96", name "_bf16_128", name "_bf16_256"
#define N_OF_ALL 11

enum {
    SCORE_STATS = 0,
    SCORE_COLUMNS = SCORE_STATS + N_OF_ALL,
    ATTEND_ROWS = SCORE_COLUMNS + N_OF_ALL,
    SCORE_LSE = ATTEND_ROWS + N_OF_ALL,
    SCORE_VALUES,
    SCORE_OUTPUT,
    SCORE_CHANGE,
    SCORE_POOL,
    SCORE_SMOOTH,
    STATS_SUM,
    STATS_PREFERENCE,
    MEAN_HEADS,
    ATTEND_MERGE,
    UPLOAD,
    UPLOAD_MANY,
    ENTROPY_PIECES,
    ENTROPY_LAYER,
    SHARE_LAYERS,
    SELECT_BEGIN,
    SELECT_ENTRIES,
    GLOBAL_BEGIN,
    SHARE_GLOBALLY,
    COMPACT_16,
    COMPACT_32,
    COMPACT_WITHIN_16,
    COMPACT_WITHIN_32,
    CASCADE_BEGIN,
    CASCADE_PIECES,
    CASCADE_SHARE,
    CASCADE_PLAN,
    CASCADE_WRITE,
    N_KERNELS
};

/** The kernels by name, in the order of the numbers above. */
const char *const lava_plan_kernels[] = {
    ALL_OF("lava_score_stats"), ALL_OF("lava_score_columns"), ALL_OF("lava_attend_rows"), "lava_score_lse",
    "lava_score_values", "lava_score_output", "lava_score_change", "lava_score_pool", "lava_score_smooth", "lava_stats_sum",
    "lava_stats_preference", "lava_mean_heads", "lava_attend_merge", "lava_upload", "lava_upload_many", "lava_entropy_pieces", "lava_entropy_layer", "lava_share_layers",
    "lava_select_begin", "lava_select_entries", "lava_global_begin", "lava_share_globally", "lava_compact_16", "lava_compact_32", "lava_compact_within_16",
    "lava_compact_within_32", "lava_cascade_begin", "lava_cascade_pieces", "lava_cascade_share", "lava_cascade_plan",
    "lava_cascade_write",
};
_Static_assert(sizeof(lava_plan_kernels) / sizeof(lava_plan_kernels[0]) == N_KERNELS, "a name for each number");
_Static_assert(N_KERNELS == 61, "plan.rs: N_KERNELS");
_Static_assert(LAVA_CUDA_PIECE == 1024, "plan.rs: entropy::PIECE");
_Static_assert(LAVA_SCORE_SPREAD == 64, "plan.rs: SPREAD");
_Static_assert(LAVA_NO_HEAD == 0xfffff, "ffi/cuda/context.rs: NO_HEAD");
_Static_assert(LAVA_CUDA_SELECT_THREADS == 256, "plan.rs: SELECT_THREADS");

typedef struct lava_launch {
    uint32_t kernel;
    uint32_t grid[3];
    uint32_t block;
    uint32_t shared_bytes;
    /** Blocks wait for each other: all must be on the device at once. */
    uint32_t cooperative;
} lava_launch;

/** What the device has. */
typedef struct lava_processors {
    uint32_t count;
    /** Bytes of shared memory that one block may have. */
    uint32_t shared_bytes;
    /** Blocks of selection, and of the cascade's, that may wait for each other; 1 where none may. */
    uint32_t select_blocks;
    uint32_t global_blocks;
    uint32_t cascade_blocks;
} lava_processors;

/** Which of ALL_OF. dtype: of an instance, LAVA_F16 or LAVA_BF16; anything else is _any. */
static uint32_t which(int instance, int32_t dtype, uint32_t dim) {
    const uint32_t of_dim = dim == 64 ? 0 : dim == 80 ? 1 : dim == 96 ? 2 : dim == 128 ? 3 : 4;
    return instance ? 1 + 5 * (dtype == 2) + of_dim : 0;
}

static lava_launch *add(lava_launch *at, uint32_t kernel, uint32_t x, uint32_t y, uint32_t z, uint32_t block, uint32_t shared_bytes) {
    at->kernel = kernel;
    at->grid[0] = x;
    at->grid[1] = y;
    at->grid[2] = z;
    at->block = block;
    at->shared_bytes = shared_bytes;
    at->cooperative = 0;
    return at + 1;
}

int32_t lava_plan_score_is_aligned(const lava_score_args *a, const lava_score_sequence *s) { return lava_score_is_aligned(a, s); }

/**
 * Cuts the work, lays out the workspace and returns its bytes. *instance: whether all sequences are of one type and
 * lava_plan_score_is_aligned; becomes 0 where the device has too little shared memory for it.
 */
size_t lava_plan_score(lava_score_args *a, int32_t *instance, const lava_processors *device, void *workspace) {
    lava_score_split(a, *instance);
    if (*instance && lava_score_columns_shared(a) > device->shared_bytes) {
        *instance = 0;
        lava_score_split(a, 0);
    }
    return lava_score_layout(a, workspace);
}

/** The launches of a planned score, at most 8. */
uint32_t lava_plan_score_launches(const lava_score_args *a, int32_t instance, int32_t dtype, lava_launch *launches) {
    const uint32_t kernel = which(instance, dtype, a->head_dim_k), heads = a->n_kv_heads, n = a->n_sequences;
    const int looks = a->attention != 4; /* LAVA_ATTENTION_RECENCY */
    lava_launch *next = launches;
    if (looks && !a->has_lse)
        next = add(next, SCORE_STATS + kernel, lava_score_ranges(a), heads, n, lava_score_threads(a), instance ? lava_score_stats_shared(a) : 0);
    next = add(next, SCORE_LSE, lava_score_rows(a) / LAVA_SCORE_ROWS, heads, n, 256, 0);
    next = add(next, SCORE_COLUMNS + kernel, lava_score_column_blocks(a), heads, n, lava_score_threads(a),
               instance ? lava_score_columns_shared(a) : 0);
    if (a->attention == LAVA_SCORE_SPREAD) {
        next = add(next, STATS_SUM, heads, n, 1, LAVA_SCORE_POOLED, 0);
        return (uint32_t) (next - launches);
    }
    if (lava_score_has_output(a)) {
        next = add(next, SCORE_VALUES, lava_score_ranges(a), heads, n, LAVA_SCORE_OUTPUT_THREADS, 0);
        next = add(next, SCORE_OUTPUT, lava_score_output_blocks(a), heads, n, LAVA_SCORE_OUTPUT_THREADS, 0);
        next = add(next, SCORE_CHANGE, lava_score_ranges(a), heads, n, LAVA_SCORE_OUTPUT_THREADS, 0);
    }
    next = add(next, SCORE_POOL, lava_score_pool_blocks(a), heads, n, LAVA_SCORE_POOLED, 0);
    if (a->smoothing > 0) next = add(next, SCORE_SMOOTH, lava_score_pool_blocks(a), heads, n, LAVA_SCORE_POOLED, 0);
    return (uint32_t) (next - launches);
}

int32_t lava_plan_attend_is_aligned(const lava_attend_args *a, const lava_attend_sequence *s) { return lava_attend_is_aligned(a, s); }

/** As lava_plan_score. total_rows: the most that all heads of all sequences have together; fewer than 2^32 items come of them. */
size_t lava_plan_attend(lava_attend_args *a, int32_t *instance, const lava_processors *device, uint64_t total_rows, void *workspace) {
    if (lava_attend_shared(a) > device->shared_bytes) *instance = 0;
    /* Few queries: short items, so that one sequence's reach all processors. Many: an item leaves sums for each of them. */
    a->rows_per_item = lava_attend_queries(a) <= LAVA_ATTEND_QUERIES ? 64 : 128;
    a->max_items = lava_attend_items(a, total_rows);
    return lava_attend_layout(a, workspace);
}

/** Blocks of attend_rows that a processor holds: shared memory decides, of which CUDA takes 1 KB for each, or the launch bounds do. */
static uint32_t attend_blocks(const lava_attend_args *a, int32_t instance, const lava_processors *device) {
    const uint32_t by_registers = instance ? LAVA_ATTEND_BLOCKS(a->head_dim_k) : LAVA_ATTEND_ANY_BLOCKS;
    const uint32_t by_memory = instance ? (device->shared_bytes + 1024) / (lava_attend_shared(a) + 1024) : by_registers;
    return by_memory < 1 ? 1 : by_memory < by_registers ? by_memory : by_registers;
}

/**
 * The launches of a planned attention: 2. As many blocks as run at once, since their warps go round; one more would begin when all
 * are done. With few items each gets its own block, and so its own processor.
 */
uint32_t lava_plan_attend_launches(const lava_attend_args *a, int32_t instance, int32_t dtype, const lava_processors *device,
                                   lava_launch *launches) {
    const uint64_t chunks = (lava_attend_queries(a) + LAVA_ATTEND_QUERIES - 1) / LAVA_ATTEND_QUERIES;
    const uint64_t most = (uint64_t) attend_blocks(a, instance, device) * device->count, wanted = a->max_items * chunks;
    lava_launch *next = launches;
    next = add(next, ATTEND_ROWS + which(instance, dtype, a->head_dim_k), (uint32_t) (wanted < most ? wanted : most), 1, 1,
               32 * LAVA_ATTEND_WARPS, instance ? lava_attend_shared(a) : 0);
    next = add(next, ATTEND_MERGE, lava_attend_queries(a), a->n_kv_heads, a->n_sequences, 128, 0);
    return (uint32_t) (next - launches);
}

/** Of n_words words, at most LAVA_CUDA_UPLOAD_MANY_WORDS. */
lava_launch lava_plan_upload(uint64_t n_words) {
    lava_launch launch;
    add(&launch, n_words <= LAVA_CUDA_UPLOAD_WORDS ? UPLOAD : UPLOAD_MANY,
        (uint32_t) ((n_words + LAVA_CUDA_UPLOAD_THREADS - 1) / LAVA_CUDA_UPLOAD_THREADS), 1, 1, LAVA_CUDA_UPLOAD_THREADS, 0);
    return launch;
}

/* Of the plans below: workspace is set and its bytes are returned; the items come before it. */

size_t lava_plan_entropy(lava_cuda_entropy_args *a, void *workspace) {
    a->workspace = (double *) workspace;
    return lava_cuda_entropy_workspace(a->n_items, a->n_kv_heads, a->max_prefix);
}

uint32_t lava_plan_entropy_launches(const lava_cuda_entropy_args *a, lava_launch *launches) {
    lava_launch *next = add(launches, ENTROPY_PIECES, lava_cuda_pieces(a->max_prefix), a->n_kv_heads, a->n_items, LAVA_CUDA_ENTROPY_THREADS, 0);
    next = add(next, ENTROPY_LAYER, a->n_items, 1, 1, LAVA_CUDA_BUDGET_THREADS, 0);
    return (uint32_t) (next - launches);
}

uint32_t lava_plan_preference_launches(const lava_cuda_preference_args *a, lava_launch *launches) {
    add(launches, STATS_PREFERENCE, a->n_items, 1, 1, 32, 0);
    return 1;
}

uint32_t lava_plan_mean_launches(const lava_cuda_mean_args *a, lava_launch *launches) {
    const uint32_t blocks = (uint32_t) (((uint64_t) a->max_prefix + LAVA_CUDA_MEAN_THREADS - 1) / LAVA_CUDA_MEAN_THREADS);
    add(launches, MEAN_HEADS, blocks, a->n_items, 1, LAVA_CUDA_MEAN_THREADS, 0);
    return 1;
}

uint32_t lava_plan_share_launches(const lava_cuda_share_args *a, lava_launch *launches) {
    add(launches, SHARE_LAYERS, a->n_items, 1, 1, LAVA_CUDA_BUDGET_THREADS, 0);
    return 1;
}

/** Blocks for each of `n` selections of this many tiles, of which `resident` may be on the device at once. */
static uint32_t blocks_of(uint32_t resident, uint32_t n, uint32_t tiles) {
    const uint32_t each = resident / n;
    return each < 1 ? 1 : each < tiles ? each : tiles < 1 ? 1 : tiles;
}

static lava_launch *add_selection(lava_launch *at, uint32_t kernel, uint32_t n_blocks, uint32_t y, uint32_t z) {
    lava_launch *next = add(at, kernel, n_blocks, y, z, LAVA_CUDA_SELECT_THREADS, 0);
    at->cooperative = n_blocks > 1;
    return next;
}

size_t lava_plan_select(lava_cuda_select_args *a, void *workspace) {
    a->workspace = (unsigned char *) workspace;
    return lava_cuda_choice_workspace(a->n_items, a->n_kv_heads, a->max_prefix);
}

uint32_t lava_plan_select_launches(const lava_cuda_select_args *a, const lava_processors *device, lava_launch *launches) {
    const uint32_t tiles = lava_cuda_choice_tiles(a->n_kv_heads, a->max_prefix);
    lava_launch *next = add(launches, SELECT_BEGIN, a->n_items, 1, 1, 32, 0);
    next = add_selection(next, SELECT_ENTRIES, blocks_of(device->select_blocks, a->n_items, tiles), a->n_items, 1);
    return (uint32_t) (next - launches);
}

size_t lava_plan_global(lava_cuda_global_args *a, void *workspace) {
    a->workspace = (unsigned char *) workspace;
    return lava_cuda_global_workspace(a->n_items, a->n_layers, a->n_kv_heads, a->max_prefix);
}

uint32_t lava_plan_global_launches(const lava_cuda_global_args *a, const lava_processors *device, lava_launch *launches) {
    const uint32_t tiles = lava_cuda_choice_tiles(a->n_layers * a->n_kv_heads, a->max_prefix);
    lava_launch *next = add(launches, GLOBAL_BEGIN, a->n_items, 1, 1, 32, 0);
    next = add_selection(next, SHARE_GLOBALLY, blocks_of(device->global_blocks, a->n_items, tiles), a->n_items, 1);
    return (uint32_t) (next - launches);
}

/** bytes: of an element. max_dim: of the items. within: all are in place. */
uint32_t lava_plan_compact_launches(const lava_cuda_compact_args *a, int32_t within, uint32_t bytes, uint32_t max_dim,
                                    const lava_processors *device, lava_launch *launches) {
    const uint32_t narrow = bytes == 2, heads = a->n_kv_heads;
    if (within) {
        add(launches, narrow ? COMPACT_WITHIN_16 : COMPACT_WITHIN_32, lava_cuda_compact_slices(max_dim, bytes), a->per_head ? heads : 1,
            a->n_items, LAVA_CUDA_COMPACT_THREADS, 0);
    } else {
        /* The host does not know how many rows there are: as many blocks as run at once, and they go round. */
        const uint64_t pairs = (uint64_t) heads * a->n_items, most = LAVA_CUDA_COMPACT_BLOCKS * (uint64_t) device->count;
        const uint64_t wanted = (most + pairs - 1) / pairs;
        add(launches, narrow ? COMPACT_16 : COMPACT_32, (uint32_t) wanted, heads, a->n_items, LAVA_CUDA_COMPACT_THREADS, 0);
    }
    return 1;
}

size_t lava_plan_cascade_state(const lava_cuda_cascade_item *a) { return lava_cuda_cascade_state(a); }

/** One more cascade: makes room for it in what the launches are cut by. */
void lava_plan_cascade_with(lava_cuda_cascade_args *a, const lava_cuda_cascade_item *item) {
    const uint32_t tiles = lava_cuda_choice_tiles(item->n_kv_heads, item->prefix_len);
    a->n_items++;
    a->max_layers = (uint32_t) lava_cuda_max(a->max_layers, item->layer + 1);
    a->max_heads = (uint32_t) lava_cuda_max(a->max_heads, item->n_kv_heads);
    a->max_tiles = (uint32_t) lava_cuda_max(a->max_tiles, tiles);
    a->max_pieces = (uint32_t) lava_cuda_max(a->max_pieces, lava_cuda_pieces(item->prefix_len));
    a->workspace_each = lava_cuda_max(a->workspace_each, lava_cuda_cascade_workspace(item));
}

size_t lava_plan_cascade(lava_cuda_cascade_args *a, void *workspace) {
    a->workspace = (unsigned char *) workspace;
    return a->n_items * a->workspace_each;
}

uint32_t lava_plan_cascade_begin(lava_launch *launches) {
    add(launches, CASCADE_BEGIN, 1, 1, 1, LAVA_CUDA_BUDGET_THREADS, 0);
    return 1;
}

/** The launches of a push, 4. */
uint32_t lava_plan_cascade_push(const lava_cuda_cascade_args *a, const lava_processors *device, lava_launch *launches) {
    const uint32_t n_blocks = blocks_of(device->cascade_blocks, a->n_items, a->max_tiles * a->max_layers);
    lava_launch *next = add(launches, CASCADE_PIECES, a->max_pieces, a->max_heads, a->n_items, LAVA_CUDA_ENTROPY_THREADS, 0);
    next = add(next, CASCADE_SHARE, 1, 1, a->n_items, LAVA_CUDA_BUDGET_THREADS, 0);
    next = add_selection(next, CASCADE_PLAN, n_blocks, 1, a->n_items);
    next = add_selection(next, CASCADE_WRITE, n_blocks, 1, a->n_items);
    return (uint32_t) (next - launches);
}

/** Where a layer's part of the state is; all on the device. */
typedef struct lava_cascade_place {
    const uint32_t *kept_indices, *cu_kept, *rows, *cu_rows;
    const uint64_t *offset, *n_entries;
    const double *entropy, *mass, *evicted_share;
} lava_cascade_place;

/** After the push of a->layer. */
void lava_plan_cascade_get(const lava_cuda_cascade_item *a, uint32_t layer, lava_cascade_place *out) {
    const lava_cuda_cascade_layout l = lava_cuda_cascade_place(a);
    const uint64_t now = (a->layer + 1) % 2, layers = a->n_layers, heads = a->n_kv_heads + 1;
    out->kept_indices = (const uint32_t *) (a->state + l.positions) + now * l.capacity;
    out->rows = (const uint32_t *) (a->state + l.rows) + now * l.capacity;
    out->cu_kept = (const uint32_t *) (a->state + l.cu) + (now * layers + layer) * heads;
    out->cu_rows = (const uint32_t *) (a->state + l.cu_rows) + layer * heads;
    out->offset = (const uint64_t *) (a->state + l.starts) + now * layers + layer;
    out->n_entries = (const uint64_t *) (a->state + l.n_entries) + layer;
    out->entropy = (const double *) (a->state + l.entropies) + layer;
    out->mass = (const double *) (a->state + l.masses) + layer;
    out->evicted_share = (const double *) (a->state + l.shares) + layer;
}
