/*
 * From scores to evicted caches through lava_cuda.h, against the CPU library: entries, kept sets and caches are the same bits.
 */
#include "path.h"

enum { HEADS = 2, WINDOW = 4, MOST = 3 };

/* Scores of a layer: not negative, with plateaus and ties. */
static float *some_scores(uint32_t prefix) {
    size_t n = (size_t) HEADS * prefix;
    float *scores = allocate(4 * n), x = 0;
    for (size_t i = 0; i < n; i++) {
        float next = number();
        if (next > 0.5f) x = next * next;
        scores[i] = x;
    }
    return scores;
}

static void *numbers(size_t n, size_t bytes) {
    void *memory = allocate(n * bytes);
    memset(memory, 0xa5, n * bytes);
    return memory;
}

static void told(const char *family, const char *what) { printf("  %-7s %-52s the CPU's bits\n", family, what); }

/* --------------------------------------------------------------------- entropy ---- */

static void entropies(void) {
    const uint32_t prefixes[MOST] = {70, 0, 2500};
    lava_cuda_entropy_sequence list[MOST];
    lava_shape longest = lava_shape_init(2500 + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    double *results = numbers(2 * MOST, 8);
    for (uint32_t i = 0; i < MOST; i++) {
        memset(&list[i], 0, sizeof(list[i]));
        list[i].struct_size = sizeof(list[i]);
        list[i].n_tokens = prefixes[i] + WINDOW;
        list[i].layer = 3 + i;
        list[i].scores = some_scores(prefixes[i]);
        list[i].entropy = &results[2 * i];
        list[i].mass = &results[2 * i + 1];
    }
    size_t size = 0;
    OK(lava_cuda_entropy_workspace_size(context, &longest, MOST, &size, &error));
    void *workspace = numbers(size, 1);
#define ENTROPY(n) lava_cuda_entropy(context, &longest, list, n, workspace, size, status, stream, &error)
    OK(ENTROPY(MOST));
    expect_fine();
    for (uint32_t i = 0; i < MOST; i++) {
        lava_shape shape = lava_shape_init(list[i].n_tokens, HEADS, HEADS, 1, 1, WINDOW);
        double want[2];
        OK(lava_entropy(&shape, list[i].scores, &want[0], &want[1], &error));
        CHECK(memcmp(want, &results[2 * i], 16) == 0);
    }
    ((float *) list[2].scores)[9] = -1;
    OK(ENTROPY(MOST));
    expect_fault(LAVA_ERR_NONFINITE, "scores", 5, 2, 0);
    /* Sharing by it reports nothing else, though it knows neither the sequence nor the head. */
    lava_cuda_entries_sequence by_it;
    memset(&by_it, 0, sizeof(by_it));
    by_it.struct_size = sizeof(by_it);
    by_it.n_layers = 1;
    by_it.total = 3;
    by_it.weights = list[2].entropy;
    by_it.capacities = numbers(1, 8);
    by_it.entries = numbers(1, 8);
    *(uint64_t *) by_it.capacities = 10;
    OK(ENTROPY(MOST));
    OK(lava_cuda_layer_entries(context, &by_it, 1, NULL, 0, status, stream, &error));
    expect_fault(LAVA_ERR_NONFINITE, "scores", 5, 2, 0);
    CHECK(*by_it.entries == UINT64_MAX - 1);
    release((void *) by_it.capacities), release(by_it.entries);
    size--;
    REFUSED(LAVA_ERR_WORKSPACE, "workspace_size", ENTROPY(MOST));
    size++;
    REFUSED(LAVA_ERR_ARGUMENT, "n_sequences", ENTROPY(0));
    list[1].reserved = 1;
    REFUSED(LAVA_ERR_STRUCT_SIZE, "reserved", ENTROPY(MOST));
    list[1].reserved = 0;
    list[1].n_tokens = 2501 + WINDOW;
    REFUSED(LAVA_ERR_SHAPE, "n_tokens", ENTROPY(MOST));
    list[1].n_tokens = WINDOW;
    list[1].entropy = NULL;
    REFUSED(LAVA_ERR_NULL, "entropy", ENTROPY(MOST));
    list[1].entropy = &results[2];
    list[1].mass = list[1].entropy;
    REFUSED(LAVA_ERR_OVERLAP, "entropy", ENTROPY(MOST));
    expect_fine();
    told("entropy", "three layers of different lengths, one of none");
    for (uint32_t i = 0; i < MOST; i++) release((void *) list[i].scores);
    release(results);
    release(workspace);
}

/* --------------------------------------------------------------------- entries ---- */

static void entries_of_layers(void) {
    enum { LAYERS = 5, LEAST = 7 };
    lava_cuda_entries_sequence list[2];
    double *weights = allocate(2 * LAYERS * 8);
    uint64_t *capacities = allocate(2 * LAYERS * 8), *minimums = allocate(LAYERS * 8), *results = numbers(2 * LAYERS, 8);
    lava_shape shapes[2 * LAYERS];
    for (int l = 0; l < 2 * LAYERS; l++) {
        weights[l] = number() + 2, capacities[l] = 20 + 37 * (unsigned) l % 90;
        shapes[l] = lava_shape_init((uint32_t) capacities[l] + 1, 1, 1, 1, 1, 1);
    }
    for (int l = 0; l < LAYERS; l++) minimums[l] = LEAST;
    for (int i = 0; i < 2; i++) {
        memset(&list[i], 0, sizeof(list[i]));
        list[i].struct_size = sizeof(list[i]);
        list[i].n_layers = LAYERS;
        list[i].total = 111;
        list[i].weights = weights + LAYERS * i;
        list[i].capacities = capacities + LAYERS * i;
        list[i].minimums = i ? minimums : NULL;
        list[i].entries = results + LAYERS * i;
    }
    size_t size = 96;
    void *workspace = numbers(size, 1);
#define ENTRIES(n) lava_cuda_layer_entries(context, list, n, workspace, size, status, stream, &error)
    OK(ENTRIES(2));
    expect_fine();
    for (int i = 0; i < 2; i++) {
        uint64_t want[LAYERS];
        lava_select_params params = lava_select_params_lava();
        params.head_min = i ? LEAST : 0;
        OK(lava_layer_entries(shapes + LAYERS * i, LAYERS, LAYERS, &params, list[i].weights, list[i].total, want, &error));
        CHECK(memcmp(want, list[i].entries, sizeof(want)) == 0);
    }
    /* A single one needs no memory. */
    memset(results, 0, LAYERS * 8);
    OK(lava_cuda_layer_entries(context, list, 1, NULL, 0, status, stream, &error));
    expect_fine();
    CHECK(results[0] + results[1] + results[2] + results[3] + results[4] == 111);
    weights[LAYERS + 2] = NAN;
    OK(ENTRIES(2));
    expect_fault(LAVA_ERR_NONFINITE, "weights", 2, 1, LAVA_NONE);
    weights[LAYERS + 2] = 1;
    list[1].total = 34;
    OK(ENTRIES(2));
    expect_fault(LAVA_ERR_BUDGET, "total", 0, 1, LAVA_NONE);
    list[1].n_layers = 1025;
    REFUSED(LAVA_ERR_SHAPE, "n_layers", ENTRIES(2));
    list[1].n_layers = LAYERS;
    list[1].entries = NULL;
    REFUSED(LAVA_ERR_NULL, "entries", ENTRIES(2));
    list[1].entries = (uint64_t *) (weights + LAYERS);
    REFUSED(LAVA_ERR_OVERLAP, "entries", ENTRIES(2));
    size = 95;
    REFUSED(LAVA_ERR_WORKSPACE, "workspace_size", (list[1].entries = results + LAYERS, ENTRIES(2)));
    expect_fine();
    told("entries", "two sequences, one with minimums");
    release(weights), release(capacities), release(minimums), release(results), release(workspace);
}

/* ------------------------------------------------------------------- selection ---- */

typedef struct selected {
    uint32_t prefix;
    uint64_t n_entries;
    uint32_t *kept, *cu;
    lava_selection *report;
    size_t room;
} selected;

static lava_cuda_select_sequence selection_of(selected *s, const float *scores, uint64_t *n_entries, uint32_t layer) {
    lava_cuda_select_sequence made;
    memset(&made, 0, sizeof(made));
    made.struct_size = sizeof(made);
    made.n_tokens = s->prefix + WINDOW;
    made.layer = layer;
    made.scores = scores;
    made.n_entries = n_entries;
    made.kept_indices = s->kept = numbers(s->room, 4);
    made.cu_kept = s->cu = numbers(HEADS + 1, 4);
    made.selection = s->report = numbers(1, sizeof(lava_selection));
    return made;
}

/* The CPU keeps the same. */
static void same_selection(const selected *s, const float *scores, lava_select_params params, uint64_t n_entries) {
    lava_shape shape = lava_shape_init(s->prefix + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    size_t size = 0;
    OK(lava_select_workspace_size(&shape, &size, &error));
    void *workspace = malloc(size + 1);
    uint32_t *kept = malloc(4 * s->room), cu[HEADS + 1];
    lava_selection report = lava_selection_init();
    OK(lava_select(&shape, &params, scores, n_entries, workspace, size, kept, s->room, cu, NULL, &report, &error));
    CHECK(memcmp(cu, s->cu, sizeof(cu)) == 0 && memcmp(kept, s->kept, 4 * (size_t) cu[HEADS]) == 0);
    CHECK(s->report->struct_size == sizeof(report) && s->report->n_kept == report.n_kept && s->report->n_entries == report.n_entries);
    CHECK(s->report->everything_kept == report.everything_kept);
    CHECK(fabs(s->report->mass - report.mass) <= 1e-12 * report.mass && fabs(s->report->evicted_share - report.evicted_share) <= 1e-12);
    free(kept);
    free(workspace);
}

static void check_selection(const char *what, const uint32_t *prefixes, uint32_t n, lava_select_params params, int with_memory) {
    selected s[MOST];
    lava_cuda_select_sequence list[MOST];
    uint64_t *n_entries = allocate(8 * MOST);
    uint8_t *mask = allocate(6000);
    double *weights = allocate(HEADS * 8);
    for (int i = 0; i < 6000; i++) mask[i] = i % 11 == 3;
    weights[0] = 0.25, weights[1] = 0.5;
    uint32_t longest = 0;
    for (uint32_t i = 0; i < n; i++) {
        longest = prefixes[i] > longest ? prefixes[i] : longest;
        s[i].prefix = prefixes[i];
        n_entries[i] = (uint64_t) HEADS * prefixes[i] / 3 + i;
        s[i].room = n_entries[i] + HEADS * WINDOW;
        list[i] = selection_of(&s[i], some_scores(prefixes[i]), &n_entries[i], i);
        if (with_memory && i == 0) list[i].protected_mask = mask;
        if (with_memory && i == 1) list[i].head_weights = weights;
    }
    lava_shape shape = lava_shape_init(longest + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    size_t size = 0;
    OK(lava_cuda_select_workspace_size(context, &shape, n, &size, &error));
    void *workspace = numbers(size, 1);
    begin_capture();
    OK(lava_cuda_select(context, &shape, &params, list, n, workspace, size, status, stream, &error));
    void *graph = end_capture();
    for (int turn = 0; turn < 2; turn++) {
        expect_fine();
        for (uint32_t i = 0; i < n; i++) {
            lava_select_params own = params;
            own.protected_mask = list[i].protected_mask;
            own.head_weights = list[i].head_weights;
            same_selection(&s[i], list[i].scores, own, n_entries[i]);
            memset(s[i].kept, 0, 4 * s[i].room);
        }
        /* The numbers are the device's: the same graph, other numbers. */
        for (uint32_t i = 0; i < n && turn == 0; i++) n_entries[i] -= n_entries[i] / 5;
        if (turn == 0) CU(cuGraphLaunch, graph, stream);
    }
    CU(cuGraphExecDestroy, graph);
    told("select", what);
    for (uint32_t i = 0; i < n; i++) release((void *) list[i].scores), release(s[i].kept), release(s[i].cu), release(s[i].report);
    release(n_entries), release(mask), release(weights), release(workspace);
}

static void refused_selections(void) {
    selected s = {20, 10, NULL, NULL, NULL, 10 + HEADS * WINDOW};
    uint64_t *n_entries = allocate(8);
    float *scores = some_scores(20);
    *n_entries = 10;
    lava_shape shape = lava_shape_init(20 + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    lava_select_params params = lava_select_params_lava();
    const lava_cuda_select_sequence good = selection_of(&s, scores, n_entries, 9);
    lava_cuda_select_sequence one = good;
    size_t size = 0;
    OK(lava_cuda_select_workspace_size(context, &shape, 1, &size, &error));
    void *workspace = numbers(size, 1);
    uint8_t mask[1] = {0};
    const double weight = 1;
#define SELECT lava_cuda_select(context, &shape, &params, &one, 1, workspace, size, status, stream, &error)
#define WRONG(status_, argument_, change) do { change; REFUSED(status_, argument_, SELECT); one = good; } while (0)
    WRONG(LAVA_ERR_NULL, "scores", one.scores = NULL);
    WRONG(LAVA_ERR_NULL, "n_entries", one.n_entries = NULL);
    WRONG(LAVA_ERR_NULL, "kept_indices", one.kept_indices = NULL);
    WRONG(LAVA_ERR_NULL, "cu_kept", one.cu_kept = NULL);
    WRONG(LAVA_ERR_ALIGNMENT, "head_weights", one.head_weights = (double *) (void *) ((char *) n_entries + 4));
    WRONG(LAVA_ERR_OVERLAP, "cu_kept", one.cu_kept = (uint32_t *) (void *) scores);
    WRONG(LAVA_ERR_OVERLAP, "workspace", one.selection = (lava_selection *) workspace);
    WRONG(LAVA_ERR_ARGUMENT, "layer", one.layer = 65536);
    WRONG(LAVA_ERR_STRUCT_SIZE, "sequences", one.struct_size = 8);
    params.protected_mask = mask;
    WRONG(LAVA_ERR_ARGUMENT, "protected_mask", (void) 0);
    params.protected_mask = NULL;
    params.head_weights = &weight;
    WRONG(LAVA_ERR_ARGUMENT, "head_weights", (void) 0);
    params.head_weights = NULL;
    params.alpha = 2, params.head_floor = LAVA_FLOOR_AFFINE;
    WRONG(LAVA_ERR_ARGUMENT, "alpha", (void) 0);
    params = lava_select_params_lava();
    size--;
    WRONG(LAVA_ERR_WORKSPACE, "workspace_size", (void) 0);
    size++;
    shape.n_kv_heads = shape.n_q_heads = LAVA_CUDA_MAX_HEADS + 1;
    WRONG(LAVA_ERR_SHAPE, "n_kv_heads", (void) 0);
    shape = lava_shape_init(20 + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    shape.sliding_window = 9;
    WRONG(LAVA_ERR_UNSUPPORTED, "sliding_window", (void) 0);
    shape = lava_shape_init(UINT32_MAX, HEADS, HEADS, 1, 1, WINDOW);
    WRONG(LAVA_ERR_OVERFLOW, "n_tokens", (void) 0);
    shape = lava_shape_init(20 + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    settle();
    CHECK(s.kept[0] == 0xa5a5a5a5u && s.cu[0] == 0xa5a5a5a5u);

    params.n_sink = 6;
    OK(SELECT);
    expect_fault(LAVA_ERR_BUDGET, "total", 9, 0, LAVA_NONE);
    params.n_sink = 0;
    scores[25] = INFINITY;
    OK(SELECT);
    expect_fault(LAVA_ERR_NONFINITE, "scores", 9, 0, 1);
    CHECK(s.kept[0] == 0xa5a5a5a5u && s.cu[0] == 0xa5a5a5a5u);
    told("select", "what is refused, and what is found");
    release(n_entries), release(scores), release(s.kept), release(s.cu), release(s.report), release(workspace);
}

static void selections(void) {
    const uint32_t one[] = {5500}, three[] = {800, 60, 2100};
    lava_select_params params = lava_select_params_lava();
    check_selection("one layer, by blocks that wait for each other", one, 1, params, 0);
    params.head_floor = LAVA_FLOOR_GUARANTEED, params.alpha = 0.3, params.n_sink = 2, params.head_min = 5;
    check_selection("three sequences, floors, a mask, head weights", three, 3, params, 1);
    params.head_floor = LAVA_FLOOR_AFFINE, params.alpha = 0.2, params.head_min = 0;
    check_selection("three sequences, the released code's floor", three, 3, params, 0);
    refused_selections();
}

/* -------------------------------------------------- one sort over all layers ---- */

static void one_sort(void) {
    enum { LAYERS = 4 };
    const uint32_t prefix = 300;
    float *in_order = allocate(4 * LAYERS * HEADS * (size_t) prefix);
    const float **layers = allocate(8 * LAYERS);
    for (int l = 0; l < LAYERS; l++) {
        float *scores = some_scores(prefix);
        for (size_t i = 0; i < (size_t) HEADS * prefix; i++) in_order[(size_t) l * HEADS * prefix + i] = scores[i] * (float) (1 + l);
        layers[l] = in_order + (size_t) l * HEADS * prefix;
        release(scores);
    }
    lava_shape shape = lava_shape_init(prefix + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
    lava_select_params params = lava_select_params_default();
    lava_cuda_global_sequence one;
    memset(&one, 0, sizeof(one));
    one.struct_size = sizeof(one);
    one.n_tokens = shape.n_tokens;
    one.total = 500;
    one.scores = layers;
    one.entries = numbers(LAYERS, 8);
    one.head_weights = numbers(LAYERS * HEADS, 8);
    size_t size = 0, select_size = 0;
    OK(lava_cuda_global_entries_workspace_size(context, &shape, LAYERS, 1, &size, &error));
    OK(lava_cuda_select_workspace_size(context, &shape, LAYERS, &select_size, &error));
    void *workspace = numbers(size, 1), *select_workspace = numbers(select_size, 1);
    selected s[LAYERS];
    lava_cuda_select_sequence list[LAYERS];
    for (uint32_t l = 0; l < LAYERS; l++) {
        s[l].prefix = prefix;
        s[l].room = 500 + HEADS * WINDOW;
        list[l] = selection_of(&s[l], layers[l], &one.entries[l], l);
        list[l].head_weights = one.head_weights + HEADS * l;
    }
    /* Numbers go from the one call to the other on the device. No options are the default's. */
#define GLOBAL lava_cuda_global_entries(context, &shape, LAYERS, &params, &one, 1, workspace, size, status, stream, &error)
    OK(lava_cuda_global_entries(context, &shape, LAYERS, NULL, &one, 1, workspace, size, status, stream, &error));
    OK(lava_cuda_select(context, &shape, NULL, list, LAYERS, select_workspace, select_size, status, stream, &error));
    expect_fine();
    uint64_t want[LAYERS];
    double weights[LAYERS * HEADS];
    size_t cpu_size = 0;
    OK(lava_global_entries_workspace_size(&shape, 1, LAYERS, &cpu_size, &error));
    void *cpu = malloc(cpu_size);
    OK(lava_global_entries(&shape, 1, LAYERS, &params, in_order, 500, cpu, cpu_size, want, weights, &error));
    CHECK(memcmp(want, one.entries, sizeof(want)) == 0 && memcmp(weights, one.head_weights, sizeof(weights)) == 0);
    for (uint32_t l = 0; l < LAYERS; l++) {
        lava_select_params own = params;
        own.head_weights = weights + HEADS * l;
        same_selection(&s[l], layers[l], own, want[l]);
    }
    one.total = 3, params.head_min = 1;
    OK(GLOBAL);
    OK(lava_cuda_select(context, &shape, &params, list, LAYERS, select_workspace, select_size, status, stream, &error));
    expect_fault(LAVA_ERR_BUDGET, "total", 0, 0, LAVA_NONE);
    params.head_floor = LAVA_FLOOR_AFFINE;
    REFUSED(LAVA_ERR_ARGUMENT, "head_floor", GLOBAL);
    params = lava_select_params_default();
    one.scores = NULL;
    REFUSED(LAVA_ERR_NULL, "scores", GLOBAL);
    told("global", "four layers in one sort, and their selections");
    free(cpu);
    for (uint32_t l = 0; l < LAYERS; l++) release(s[l].kept), release(s[l].cu), release(s[l].report);
    release(in_order), release(layers), release(one.entries), release(one.head_weights), release(workspace), release(select_workspace);
}

/* ------------------------------------------------------------------ compaction ---- */

static void compactions(void) {
    enum { ROWS = 60, DIM_K = 40, DIM_V = 24 };
    uint32_t *rows = allocate(4 * HEADS * ROWS), *cu = allocate(4 * (HEADS + 1)), n = 0;
    for (uint32_t h = 0; h < HEADS; h++) {
        cu[h] = n;
        for (uint32_t r = h; r < ROWS; r += 2 + h) rows[n++] = r;
    }
    cu[HEADS] = n;
    lava_shape shape = lava_shape_init(ROWS, HEADS, HEADS, DIM_K, DIM_V, 1);
    lava_tensor k = tensor(LAVA_BF16, ROWS, HEADS, DIM_K, 1), v = tensor(LAVA_F32, ROWS, HEADS, DIM_V, 1);
    size_t bytes[2] = {(size_t) n * DIM_K * 2, (size_t) n * DIM_V * 4};
    void *out[2] = {numbers(bytes[0], 1), numbers(bytes[1], 1)}, *want[2] = {malloc(bytes[0]), malloc(bytes[1])};
    lava_tensor k_out = lava_tensor_ragged(LAVA_BF16, out[0], bytes[0], cu, DIM_K), v_out = lava_tensor_ragged(LAVA_F32, out[1], bytes[1], cu, DIM_V);
    lava_tensor k_want = lava_tensor_ragged(LAVA_BF16, want[0], bytes[0], cu, DIM_K), v_want = lava_tensor_ragged(LAVA_F32, want[1], bytes[1], cu, DIM_V);
    lava_cuda_compact_sequence one;
    memset(&one, 0, sizeof(one));
    one.struct_size = sizeof(one);
    one.max_rows = ROWS;
    one.max_kept = ROWS / 2;
    one.n_rows = numbers(HEADS, 4);
    one.k_src = &k, one.v_src = &v, one.k_dst = &k_out, one.v_dst = &v_out;
    one.rows = rows, one.cu_kept = cu;
    const lava_cuda_compact_sequence good = one;
    size_t size = 0;
    OK(lava_cuda_compact_workspace_size(context, 2, &size, &error));
    void *workspace = numbers(size, 1);
#define COMPACT(list, n) lava_cuda_compact(context, &shape, list, n, workspace, size, status, stream, &error)
    /* Where something has gone wrong before, nothing moves. */
    *status = lava_fault(LAVA_FAULT_SCORES, 0, 0, 0);
    OK(COMPACT(&one, 1));
    settle();
    for (size_t i = 0; i < bytes[0]; i++) CHECK(((unsigned char *) out[0])[i] == 0xa5);
    CHECK(one.n_rows[0] == 0xa5a5a5a5u);
    *status = UINT64_MAX;
    OK(COMPACT(&one, 1));
    expect_fine();
    for (int h = 0; h < HEADS; h++) CHECK(one.n_rows[h] == cu[h + 1] - cu[h]);
    OK(lava_compact(&shape, &k, &v, NULL, rows, cu, &k_want, &v_want, 0, 1, &error));
    CHECK(memcmp(out[0], want[0], bytes[0]) == 0 && memcmp(out[1], want[1], bytes[1]) == 0);

    one.k_dst = &k;
    one.v_dst = NULL;
    REFUSED(LAVA_ERR_NULL, "v_dst", COMPACT(&one, 1));
    one.v_src = NULL;
    lava_tensor twisted = k;
    twisted.stride_token *= 2;
    twisted.size *= 4;
    one.k_dst = &twisted;
    REFUSED(LAVA_ERR_OVERLAP, "k_dst", COMPACT(&one, 1));
    one = good;
    one.rows = NULL;
    REFUSED(LAVA_ERR_NULL, "rows", COMPACT(&one, 1));
    one = good;
    lava_tensor other = k_out;
    other.dtype = LAVA_F16;
    one.k_dst = &other;
    REFUSED(LAVA_ERR_DTYPE, "k_dst", COMPACT(&one, 1));
    one = good;
    one.max_kept = ROWS + 1;
    REFUSED(LAVA_ERR_ARGUMENT, "max_kept", COMPACT(&one, 1));
    one = good;
    lava_tensor over = k_out;
    over.data = (char *) k.data + 2;
    one.k_dst = &over;
    REFUSED(LAVA_ERR_OVERLAP, "k_dst", COMPACT(&one, 1));
    one = good;
    one.n_rows = cu;
    REFUSED(LAVA_ERR_OVERLAP, "n_rows", COMPACT(&one, 1));
    one = good;
    lava_cuda_compact_sequence both[2] = {good, good};
    both[0].n_rows = both[1].n_rows = NULL;
    size--;
    REFUSED(LAVA_ERR_WORKSPACE, "workspace_size", COMPACT(both, 2));
    size++;

    /* Two caches at once, in place, each head its own rows. */
    lava_tensor k2 = tensor(LAVA_BF16, ROWS, HEADS, DIM_K, 1), v2 = tensor(LAVA_F32, ROWS, HEADS, DIM_V, 1);
    both[0].k_dst = &k, both[0].v_dst = &v;
    both[1].k_src = both[1].k_dst = &k2, both[1].v_src = both[1].v_dst = &v2;
    void *copies[4] = {malloc(k.size), malloc(v.size), malloc(k.size), malloc(v.size)};
    lava_tensor cpu[4] = {k, v, k2, v2};
    for (int i = 0; i < 4; i++) memcpy(copies[i], cpu[i].data, cpu[i].size), cpu[i].data = copies[i];
    begin_capture();
    OK(COMPACT(both, 2));
    void *graph = end_capture();
    settle();
    CU(cuGraphExecDestroy, graph);
    for (int i = 0; i < 4; i += 2) OK(lava_compact(&shape, &cpu[i], &cpu[i + 1], NULL, rows, cu, &cpu[i], &cpu[i + 1], 0, 1, &error));
    CHECK(memcmp(k.data, copies[0], k.size) == 0 && memcmp(v.data, copies[1], v.size) == 0);
    CHECK(memcmp(k2.data, copies[2], k.size) == 0 && memcmp(v2.data, copies[3], v.size) == 0);
    told("compact", "apart and ragged, two caches in place");
    release(good.n_rows);
    for (int i = 0; i < 4; i++) free(copies[i]);
    free(want[0]), free(want[1]);
    release(rows), release(cu), release(k.data), release(v.data), release(k2.data), release(v2.data), release(out[0]), release(out[1]), release(workspace);
}

/* -------------------------------------------------------------------- cascades ---- */

static lava_cuda_push_sequence push_of(lava_cuda_cascade *cascade, const float *scores, const double *weight) {
    lava_cuda_push_sequence s = {sizeof(s), 0, cascade, scores, weight};
    return s;
}

/* Sequences of different lengths and options, the second a layer after the first: pushed together, each keeps what it keeps alone. */
static void neighbours(void) {
    enum { N = 3 };
    const uint32_t prefixes[N] = {170, 2300, 0}, layers[N] = {3, 2, 2};
    const uint64_t totals[N] = {200, 900, 5};
    void *state[N], *cpu[N];
    size_t cpu_size[N], needed = 0;
    lava_cuda_cascade cascades[N];
    lava_cuda_push_sequence list[N];
    float *scores[N][3];
    double *weight = allocate(8);
    memset(cascades, 0, sizeof(cascades));
    for (int i = 0; i < N; i++) {
        lava_shape shape = lava_shape_init(prefixes[i] + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
        lava_select_params params = lava_select_params_lava();
        lava_cascade_params how = lava_cascade_params_lava();
        if (i == 0) params.n_sink = 3, how.layers = LAVA_LAYERS_WEIGHTS, how.evict_every = 2;
        size_t size = 0, own = 0;
        OK(lava_cuda_cascade_state_size(&shape, layers[i], totals[i], &params, &how, &size, &error));
        state[i] = numbers(size, 1);
        cascades[i].struct_size = sizeof(cascades[i]);
        OK(lava_cuda_cascade_init(context, &shape, layers[i], totals[i], &params, &how, state[i], size, &cascades[i], status, stream, &error));
        OK(lava_cuda_cascade_workspace_size(context, &cascades[i], N, &own, &error));
        needed = own > needed ? own : needed;
        OK(lava_cascade_state_size(&shape, 1, layers[i], totals[i], &params, &how, &cpu_size[i], &error));
        cpu[i] = malloc(cpu_size[i]);
        OK(lava_cascade_init(&shape, 1, layers[i], totals[i], &params, &how, cpu[i], cpu_size[i], &error));
        for (uint32_t l = 0; l < layers[i]; l++) scores[i][l] = some_scores(prefixes[i]);
    }
    *weight = 2.5;
    void *workspace = numbers(needed, 1);
    for (uint32_t turn = 0; turn < 3; turn++) {
        uint32_t n = 0;
        for (int i = 0; i < N; i++)
            if (i == 0 || turn > 0) list[n++] = push_of(&cascades[i], scores[i][turn - (i > 0)], i == 0 ? weight : NULL);
        /* One is at fault: none is pushed. */
        list[n - 1].reserved = 1;
        REFUSED(LAVA_ERR_STRUCT_SIZE, "reserved", lava_cuda_cascade_push(context, list, n, workspace, needed, status, stream, &error));
        list[n - 1].reserved = 0;
        CHECK(cascades[0].n_pushed == turn && cascades[1].n_pushed == (turn > 0 ? turn - 1 : 0));
        OK(lava_cuda_cascade_push(context, list, n, workspace, needed, status, stream, &error));
        expect_fine();
        for (int i = 0; i < N; i++) {
            if (i > 0 && turn == 0) continue;
            uint32_t l = turn - (i > 0);
            lava_shape shape = lava_shape_init(prefixes[i] + WINDOW, HEADS, HEADS, 1, 1, WINDOW);
            OK(lava_cascade_push(cpu[i], cpu_size[i], &shape, scores[i][l], i == 0 ? weight : NULL, &error));
            CHECK(cascades[i].n_pushed == l + 1);
            for (uint32_t layer = 0; layer <= l; layer++) {
                lava_cascade_layer want = lava_cascade_layer_init();
                lava_cuda_cascade_layer got = {sizeof(got), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL};
                OK(lava_cascade_get(cpu[i], cpu_size[i], layer, &want, &error));
                OK(lava_cuda_cascade_get(&cascades[i], layer, &got, &error));
                CHECK(memcmp(want.cu_kept, got.cu_kept, 4 * (HEADS + 1)) == 0);
                CHECK(memcmp(want.kept_indices, got.kept_indices + *got.offset, 4 * (size_t) want.cu_kept[HEADS]) == 0);
                CHECK(memcmp(want.cu_rows, got.cu_rows, 4 * (HEADS + 1)) == 0);
                CHECK(memcmp(want.rows, got.rows + *got.offset, 4 * (size_t) want.cu_kept[HEADS]) == 0);
            }
        }
    }
    REFUSED(LAVA_ERR_STATE, "cascade", lava_cuda_cascade_push(context, list, N, workspace, needed, status, stream, &error));
    told("cascade", "three sequences side by side, at different layers");
    for (int i = 0; i < N; i++) {
        for (uint32_t l = 0; l < layers[i]; l++) release(scores[i][l]);
        release(state[i]), free(cpu[i]);
    }
    release(weight), release(workspace);
}

/* ------------------------------------------------------- the whole of a prefill ---- */

enum { LAYERS = 4, TOKENS = 180, Q_HEADS = 4, DIM = 64 };

typedef struct model_layer {
    lava_tensor q, k, v, k_cpu, v_cpu;
    float *scores;
    double *weight;
} model_layer;

/* Whether the caller evicts after the n-th push. */
static int evicts_after(uint32_t n, const lava_cascade_params *how) {
    return n == LAYERS || n % (how->evict_every > 1 ? how->evict_every : 1) == 0;
}

/* Score, push, evict in place, for each layer; then a decoding step over the last: all of it one graph, and one wait. */
static void prefill(const char *what, const lava_select_params *params, const lava_cascade_params *given) {
    const lava_cascade_params how = given ? *given : lava_cascade_params_default();
    const int weighted = how.layers == LAVA_LAYERS_WEIGHTS;
    const lava_shape shape = lava_shape_init(TOKENS, Q_HEADS, HEADS, DIM, DIM, WINDOW);
    const uint64_t total = (uint64_t) LAYERS * HEADS * 40;
    const size_t prefix = TOKENS - WINDOW;
    model_layer model[LAYERS];
    for (int l = 0; l < LAYERS; l++) {
        model_layer *m = &model[l];
        m->q = tensor(LAVA_BF16, WINDOW, Q_HEADS, DIM, 0.5f);
        m->k = tensor(LAVA_BF16, TOKENS, HEADS, DIM, 0.5f);
        m->v = tensor(LAVA_BF16, TOKENS, HEADS, DIM, 1);
        m->k_cpu = m->k, m->v_cpu = m->v;
        m->k_cpu.data = malloc(m->k.size), m->v_cpu.data = malloc(m->v.size);
        memcpy(m->k_cpu.data, m->k.data, m->k.size), memcpy(m->v_cpu.data, m->v.data, m->v.size);
        m->scores = numbers(HEADS * prefix, 4);
        m->weight = allocate(8);
        *m->weight = 1 + l % 3;
    }
    size_t state_size = 0, sizes[3] = {0, 0, 0};
    OK(lava_cuda_cascade_state_size(&shape, LAYERS, total, params, given, &state_size, &error));
    void *state = numbers(state_size, 1);
    lava_cuda_cascade cascade;
    memset(&cascade, 0, sizeof(cascade));
    cascade.struct_size = sizeof(cascade);
    const lava_score_params scoring = lava_score_params_squares();
    OK(lava_cuda_score_workspace_size(context, &shape, &scoring, 1, &sizes[0], &error));
    uint32_t *n_rows = numbers(HEADS, 4);
    lava_tensor q = tensor(LAVA_BF16, 1, Q_HEADS, DIM, 0.5f), out = tensor(LAVA_F32, 1, Q_HEADS, DIM, 0);
    lava_shape new_shape = lava_shape_init(1, Q_HEADS, HEADS, DIM, DIM, 1);
    OK(lava_cuda_attend_workspace_size(context, &new_shape, 1, 1, (uint64_t) HEADS * TOKENS, &sizes[2], &error));
    void *workspaces[3] = {numbers(sizes[0], 1), NULL, numbers(sizes[2], 1)};
    size_t compact_size = 0;
    OK(lava_cuda_compact_workspace_size(context, LAYERS, &compact_size, &error));
    void *compact_workspace = numbers(compact_size, 1);

    lava_cuda_cascade_layer last[LAYERS];
    begin_capture();
    OK(lava_cuda_cascade_init(context, &shape, LAYERS, total, params, given, state, state_size, &cascade, status, stream, &error));
    OK(lava_cuda_cascade_workspace_size(context, &cascade, 1, &sizes[1], &error));
    void *graphs[2] = {end_capture(), NULL};
    settle();
    workspaces[1] = numbers(sizes[1], 1);
    begin_capture();
    CHECK(cascade.n_pushed == 0);
    for (uint32_t l = 0; l < LAYERS; l++) {
        lava_cuda_score_sequence s;
        memset(&s, 0, sizeof(s));
        s.struct_size = sizeof(s);
        s.n_tokens = TOKENS;
        s.q = &model[l].q, s.k = &model[l].k, s.v = &model[l].v;
        s.scores = model[l].scores;
        lava_shape own = shape;
        own.layer = l;
        OK(lava_cuda_score(context, &own, &scoring, &s, 1, workspaces[0], sizes[0], status, stream, &error));
        lava_cuda_push_sequence push = push_of(&cascade, model[l].scores, weighted ? model[l].weight : NULL);
        OK(lava_cuda_cascade_push(context, &push, 1, workspaces[1], sizes[1], status, stream, &error));
        if (!evicts_after(l + 1, &how)) continue;
        lava_cuda_compact_sequence list[LAYERS];
        for (uint32_t i = 0; i <= l; i++) {
            last[i].struct_size = sizeof(last[i]);
            OK(lava_cuda_cascade_get(&cascade, i, &last[i], &error));
            memset(&list[i], 0, sizeof(list[i]));
            list[i].struct_size = sizeof(list[i]);
            list[i].max_rows = TOKENS;
            list[i].k_src = list[i].k_dst = &model[i].k;
            list[i].v_src = list[i].v_dst = &model[i].v;
            list[i].rows = last[i].rows;
            list[i].cu_kept = last[i].cu_kept;
            list[i].rows_offset = last[i].offset;
            if (i == LAYERS - 1) list[i].n_rows = n_rows;
        }
        OK(lava_cuda_compact(context, &shape, list, l + 1, compact_workspace, compact_size, status, stream, &error));
    }
    graphs[1] = end_capture();
    expect_fine();
    CHECK(cascade.n_pushed == LAYERS);
    lava_cuda_push_sequence late = push_of(&cascade, model[0].scores, NULL);
    REFUSED(LAVA_ERR_STATE, "cascade", lava_cuda_cascade_push(context, &late, 1, workspaces[1], sizes[1], status, stream, &error));

    /* The CPU, with the GPU's scores. */
    size_t cpu_size = 0;
    OK(lava_cascade_state_size(&shape, 1, LAYERS, total, params, given, &cpu_size, &error));
    void *cpu = malloc(cpu_size);
    OK(lava_cascade_init(&shape, 1, LAYERS, total, params, given, cpu, cpu_size, &error));
    for (uint32_t l = 0; l < LAYERS; l++) {
        OK(lava_cascade_push(cpu, cpu_size, &shape, model[l].scores, weighted ? model[l].weight : NULL, &error));
        for (uint32_t i = 0; i <= l && evicts_after(l + 1, &how); i++) {
            lava_cascade_layer its = lava_cascade_layer_init();
            OK(lava_cascade_get(cpu, cpu_size, i, &its, &error));
            OK(lava_compact(&shape, &model[i].k_cpu, &model[i].v_cpu, its.cu_rows, its.rows, its.cu_kept, &model[i].k_cpu, &model[i].v_cpu, 0, 1, &error));
        }
    }
    for (uint32_t l = 0; l < LAYERS; l++) {
        lava_cascade_layer its = lava_cascade_layer_init();
        OK(lava_cascade_get(cpu, cpu_size, l, &its, &error));
        CHECK(memcmp(its.cu_kept, last[l].cu_kept, 4 * (HEADS + 1)) == 0);
        CHECK(memcmp(its.kept_indices, last[l].kept_indices + *last[l].offset, 4 * (size_t) its.cu_kept[HEADS]) == 0);
        CHECK(its.n_entries == *last[l].n_entries && fabs(its.evicted_share - *last[l].evicted_share) <= 1e-12);
        CHECK(fabs(its.mass - *last[l].mass) <= 1e-12 * its.mass);
        CHECK(memcmp(model[l].k.data, model[l].k_cpu.data, model[l].k.size) == 0 && memcmp(model[l].v.data, model[l].v_cpu.data, model[l].v.size) == 0);
        for (int h = 0; h < HEADS && l == LAYERS - 1; h++) CHECK(n_rows[h] == its.cu_kept[h + 1] - its.cu_kept[h]);
    }

    /* A decoding step over the last layer, whose heads have room after their rows. */
    lava_cuda_attend_sequence a;
    memset(&a, 0, sizeof(a));
    a.struct_size = sizeof(a);
    a.max_rows = TOKENS;
    a.q = &q, a.k = &model[LAYERS - 1].k, a.v = &model[LAYERS - 1].v, a.out = &out;
    a.n_rows = n_rows;
    OK(lava_cuda_attend(context, &new_shape, NULL, 1, &a, 1, workspaces[2], sizes[2], status, stream, &error));
    expect_fine();
    size_t attend_size = 0;
    OK(lava_attend_workspace_size(&new_shape, 1, &attend_size, &error));
    void *cpu_workspace = malloc(attend_size);
    float want[Q_HEADS * DIM], *got = out.data;
    lava_tensor want_tensor = lava_tensor_token_major(LAVA_F32, want, sizeof(want), Q_HEADS, DIM);
    OK(lava_attend(&new_shape, NULL, 1, &q, &model[LAYERS - 1].k_cpu, &model[LAYERS - 1].v_cpu, n_rows, &want_tensor, NULL, 0, 1, cpu_workspace, attend_size, &error));
    /* Logits of at most 8 in size, values of at most 2: see attend.cpp. */
    for (int i = 0; i < Q_HEADS * DIM; i++) CHECK(fabsf(got[i] - want[i]) <= 1e-4f);
    told("prefill", what);

    for (int l = 0; l < LAYERS; l++) {
        release(model[l].q.data), release(model[l].k.data), release(model[l].v.data), release(model[l].scores), release(model[l].weight);
        free(model[l].k_cpu.data), free(model[l].v_cpu.data);
    }
    CU(cuGraphExecDestroy, graphs[0]);
    CU(cuGraphExecDestroy, graphs[1]);
    for (int i = 0; i < 3; i++) release(workspaces[i]);
    release(state), release(n_rows), release(q.data), release(out.data), release(compact_workspace);
    free(cpu), free(cpu_workspace);
}

static void refused_cascades(void) {
    lava_shape shape = lava_shape_init(24, HEADS, HEADS, 1, 1, WINDOW);
    lava_select_params params = lava_select_params_lava();
    lava_cascade_params how = lava_cascade_params_lava();
    size_t size = 0;
    OK(lava_cuda_cascade_state_size(&shape, 2, 30, &params, &how, &size, &error));
    void *state = numbers(size, 1);
    lava_cuda_cascade cascade;
    memset(&cascade, 0, sizeof(cascade));
    cascade.struct_size = sizeof(cascade);
    float *scores = some_scores(20);
    double *weight = allocate(8);
#define INIT lava_cuda_cascade_init(context, &shape, 2, 30, &params, &how, state, size, &cascade, status, stream, &error)
    size--;
    REFUSED(LAVA_ERR_WORKSPACE, "state_size", INIT);
    size++;
    params.head_weights = weight, how.layers = LAVA_LAYERS_GLOBAL;
    REFUSED(LAVA_ERR_ARGUMENT, "head_weights", INIT);
    params = lava_select_params_lava();
    how = lava_cascade_params_lava();
    shape.sliding_window = 9;
    REFUSED(LAVA_ERR_UNSUPPORTED, "sliding_window", INIT);
    shape.sliding_window = 0;
    params.n_sink = 8;
    REFUSED(LAVA_ERR_BUDGET, "total", INIT);
    params.n_sink = 0;
    lava_cuda_push_sequence push = push_of(&cascade, scores, NULL);
    REFUSED(LAVA_ERR_STATE, "cascade", lava_cuda_cascade_push(context, &push, 1, state, size, status, stream, &error));
    OK(INIT);
    size_t needed = 0;
    OK(lava_cuda_cascade_workspace_size(context, &cascade, 1, &needed, &error));
    void *workspace = numbers(needed, 1);
#define PUSH(scores, weight, size) (push = push_of(&cascade, scores, weight), lava_cuda_cascade_push(context, &push, 1, workspace, size, status, stream, &error))
    lava_cuda_cascade_layer layer;
    memset(&layer, 0, sizeof(layer));
    layer.struct_size = sizeof(layer);
    REFUSED(LAVA_ERR_STATE, "layer", lava_cuda_cascade_get(&cascade, 0, &layer, &error));
    REFUSED(LAVA_ERR_NULL, "scores", PUSH(NULL, NULL, needed));
    REFUSED(LAVA_ERR_ARGUMENT, "weight", PUSH(scores, weight, needed));
    REFUSED(LAVA_ERR_WORKSPACE, "workspace_size", PUSH(scores, NULL, needed - 1));
    REFUSED(LAVA_ERR_OVERLAP, "state", PUSH((float *) state, NULL, needed));
    push.reserved = 1;
    REFUSED(LAVA_ERR_STRUCT_SIZE, "reserved", lava_cuda_cascade_push(context, &push, 1, workspace, needed, status, stream, &error));
    push = push_of(NULL, scores, NULL);
    REFUSED(LAVA_ERR_NULL, "cascade", lava_cuda_cascade_push(context, &push, 1, workspace, needed, status, stream, &error));
    REFUSED(LAVA_ERR_ARGUMENT, "n_sequences", lava_cuda_cascade_push(context, &push, 0, workspace, needed, status, stream, &error));
    CHECK(cascade.n_pushed == 0);
    scores[3] = NAN;
    OK(PUSH(scores, NULL, needed));
    expect_fault(LAVA_ERR_NONFINITE, "scores", 0, 0, 0);
    told("prefill", "what is refused, and what is found");
    release(state), release(scores), release(weight), release(workspace);
}

void decisions(void) {
    begin_status();
    entropies();
    entries_of_layers();
    selections();
    one_sort();
    compactions();
    neighbours();
    lava_select_params params = lava_select_params_lava();
    lava_cascade_params how = lava_cascade_params_lava();
    prefill("four layers by entropy, as a graph", &params, &how);
    how.layers = LAVA_LAYERS_EQUAL, params.head_floor = LAVA_FLOOR_GUARANTEED, params.alpha = 0.25, params.n_sink = 2;
    prefill("four layers alike, with a floor and sinks", &params, &how);
    how.layers = LAVA_LAYERS_WEIGHTS, params.head_min = 3;
    prefill("four layers by weights", &params, &how);
    prefill("four layers in one sort, the default preset", NULL, NULL);
    how = lava_cascade_params_default();
    how.evict_every = 3;
    prefill("the same, evicting after three and in the end", NULL, &how);
    params = lava_select_params_lava(), how = lava_cascade_params_lava();
    how.evict_every = UINT32_MAX;
    prefill("four layers by entropy, evicting in the end", &params, &how);
    refused_cascades();
    release(status);
}
