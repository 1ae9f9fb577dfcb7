/*
 * What the compiled kernels ask of the hardware for each step of the method, counted by the interpreter of PTX as it runs them: bytes of
 * global memory against the least that the step must move, and passes over shared memory against those without bank conflicts. What it
 * prints is the same every time; traffic.txt has it. There are no caches here: a sector that two instructions ask for counts twice.
 */
#include "path.h"

#include <dlfcn.h>

enum { Q_HEADS = 32, HEADS = 8, WINDOW = 32, LAYERS = 4 };

static const lava_dtype DTYPE = LAVA_BF16;

/* ptx::Counts, all of its numbers. */
enum { LAUNCHES, INSTRUCTIONS, LANES, TENSOR, SPECIAL, WIDE, READ_ASKED, READ, WRITE_ASKED, WRITTEN, PASSES, LEAST, N_COUNTS };
static void (*counts)(void (*tell)(const char *kernel, const uint64_t *counts));
static uint64_t moved;

static void row(const char *kernel, const uint64_t *c) {
    moved += c[READ] + c[WRITTEN];
    printf("  %-34s %4d %9.3f %6.0f%% %8.3f %7.3f %7.3f %9.3f %5.2f %9.3f %5.2f %9.3f %5.2f\n", kernel, (int) c[LAUNCHES], c[INSTRUCTIONS] * 1e-6,
           100.0 * c[LANES] / (32.0 * c[INSTRUCTIONS]), c[TENSOR] * 1e-6, c[SPECIAL] * 1e-6, c[WIDE] * 1e-6, c[READ] * 1e-6,
           c[READ_ASKED] ? (double) c[READ] / c[READ_ASKED] : 0, c[WRITTEN] * 1e-6, c[WRITE_ASKED] ? (double) c[WRITTEN] / c[WRITE_ASKED] : 0,
           c[PASSES] * 1e-6, c[LEAST] ? (double) c[PASSES] / c[LEAST] : 0);
}
static void forget(const char *kernel, const uint64_t *c) { (void) kernel, (void) c; }
static void begin(void) {
    settle();
    counts(forget);
}
/* `floor`: bytes that any such step must move. */
static void end(const char *step, double floor) {
    expect_fine();
    printf("\n%s\n", step);
    moved = 0;
    counts(row);
    printf("  moved %.3f MB, %.2f of the floor\n", moved * 1e-6, moved / floor);
}

static void *zeros(size_t bytes) { return memset(allocate(bytes), 0, bytes); }

static void score(uint32_t n, uint32_t dim, const lava_score_params *params, int with_lse, const char *what) {
    lava_shape shape = lava_shape_init(n, Q_HEADS, HEADS, dim, dim, WINDOW);
    lava_tensor q = tensor(DTYPE, WINDOW, Q_HEADS, dim, 1), k = tensor(DTYPE, n, HEADS, dim, 1), v = tensor(DTYPE, n, HEADS, dim, 1);
    lava_tensor lse = tensor(LAVA_F32, WINDOW, Q_HEADS, 1, 1);
    for (size_t i = 0; i < WINDOW * Q_HEADS; i++) ((float *) lse.data)[i] = 9;
    size_t size;
    OK(lava_cuda_score_workspace_size(context, &shape, params, 1, &size, &error));
    void *workspace = allocate(size), *scores = allocate((size_t) HEADS * (n - WINDOW) * 4);
    lava_cuda_score_sequence sequence = {sizeof(sequence), n, &q, &k, &v, with_lse ? &lse : NULL, scores};
    begin();
    OK(lava_cuda_score(context, &shape, params, &sequence, 1, workspace, size, status, stream, &error));
    char step[120];
    snprintf(step, sizeof(step), "score %u tokens, d = %u%s", n, dim, what);
    end(step, (double) (k.size + v.size));
    release(q.data), release(k.data), release(v.data), release(lse.data), release(workspace), release(scores);
}

/* Layers pushed, and each evicted into another cache in the end; then, of the last one, a step of decoding. */
static void prefill(uint32_t n, uint32_t dim, double ratio, int32_t layers) {
    const uint32_t prefix = n - WINDOW;
    lava_shape shape = lava_shape_init(n, Q_HEADS, HEADS, dim, dim, WINDOW);
    lava_cascade_params how = lava_cascade_params_default();
    how.layers = layers;
    how.evict_every = LAYERS;
    const uint64_t total = (uint64_t) (ratio * LAYERS * HEADS * prefix);
    size_t state_size, push_size, compact_size, attend_size;
    OK(lava_cuda_cascade_state_size(&shape, LAYERS, total, NULL, &how, &state_size, &error));
    OK(lava_cuda_compact_workspace_size(context, LAYERS, &compact_size, &error));
    void *state = allocate(state_size), *compact_workspace = allocate(compact_size);
    lava_cuda_cascade cascade;
    cascade.struct_size = sizeof(cascade);
    OK(lava_cuda_cascade_init(context, &shape, LAYERS, total, NULL, &how, state, state_size, &cascade, status, stream, &error));
    OK(lava_cuda_cascade_workspace_size(context, &cascade, 1, &push_size, &error));
    void *push_workspace = allocate(push_size);
    float *scores = allocate((size_t) HEADS * prefix * 4);
    begin();
    for (uint32_t l = 0; l < LAYERS; l++) {
        settle();
        for (size_t i = 0; i < (size_t) HEADS * prefix; i++) scores[i] = expf(2 * number());
        lava_cuda_push_sequence push = {sizeof(push), 0, &cascade, scores, NULL};
        OK(lava_cuda_cascade_push(context, &push, 1, push_workspace, push_size, status, stream, &error));
    }
    char step[120];
    snprintf(step, sizeof(step), "push %u layers of %u tokens, %.0f%% kept, %s", LAYERS, n, 100 * ratio, layers == LAVA_LAYERS_GLOBAL ? "one sort" : "by entropy");
    end(step, (double) LAYERS * HEADS * prefix * 4);

    lava_tensor k[2 * LAYERS], v[2 * LAYERS];
    lava_cuda_compact_sequence moves[LAYERS];
    lava_cuda_cascade_layer layers[LAYERS];
    uint32_t *n_rows = zeros(HEADS * 4);
    double kept = 0;
    for (uint32_t l = 0; l < LAYERS; l++) {
        layers[l].struct_size = sizeof(layers[l]);
        OK(lava_cuda_cascade_get(&cascade, l, &layers[l], &error));
        const size_t size = (size_t) layers[l].cu_kept[HEADS] * dim * 2;
        for (int side = 0; side < 2; side++) {
            lava_tensor *t = side ? v : k;
            t[l] = tensor(DTYPE, n, HEADS, dim, 1);
            t[LAYERS + l] = lava_tensor_ragged(DTYPE, allocate(size), size, layers[l].cu_kept, dim);
        }
        uint32_t most = 0;
        for (int h = 0; h < HEADS; h++) {
            const uint32_t rows = layers[l].cu_kept[h + 1] - layers[l].cu_kept[h];
            most = rows > most ? rows : most;
        }
        moves[l] = (lava_cuda_compact_sequence) {sizeof(moves[l]), n, most, 0, &k[l], &v[l], &k[LAYERS + l], &v[LAYERS + l], layers[l].rows, layers[l].offset,
                                                 layers[l].cu_kept, l == LAYERS - 1 ? n_rows : NULL};
        kept += 2.0 * size;
    }
    begin();
    OK(lava_cuda_compact(context, &shape, moves, LAYERS, compact_workspace, compact_size, status, stream, &error));
    end("compact those", 2 * kept);
    for (uint32_t l = 0; l < LAYERS; l++) moves[l].k_dst = &k[l], moves[l].v_dst = &v[l];
    begin();
    OK(lava_cuda_compact(context, &shape, moves, LAYERS, compact_workspace, compact_size, status, stream, &error));
    end("compact those in place", 2 * kept);

    /* Of the last layer, as often as there are layers: a batch. */
    const uint64_t rows = layers[LAYERS - 1].cu_kept[HEADS];
    lava_tensor q = tensor(DTYPE, 1, Q_HEADS, dim, 1), out = tensor(LAVA_F32, LAYERS, Q_HEADS, dim, 1), outs[LAYERS];
    lava_cuda_attend_sequence list[LAYERS];
    for (uint32_t i = 0; i < LAYERS; i++) {
        outs[i] = lava_tensor_token_major(LAVA_F32, (float *) out.data + (size_t) i * Q_HEADS * dim, Q_HEADS * dim * 4, Q_HEADS, dim);
        memset(&list[i], 0, sizeof(list[i]));
        list[i].struct_size = sizeof(list[i]);
        list[i].max_rows = n, list[i].total_rows = rows;
        list[i].q = &q, list[i].k = &k[2 * LAYERS - 1], list[i].v = &v[2 * LAYERS - 1], list[i].out = &outs[i], list[i].n_rows = n_rows;
    }
    OK(lava_cuda_attend_workspace_size(context, &shape, 1, LAYERS, LAYERS * rows, &attend_size, &error));
    void *attend_workspace = allocate(attend_size);
    begin();
    OK(lava_cuda_attend(context, &shape, NULL, 1, list, LAYERS, attend_workspace, attend_size, status, stream, &error));
    snprintf(step, sizeof(step), "attend %u sequences, %.0f rows of a head", LAYERS, (double) rows / HEADS);
    end(step, LAYERS * 2.0 * rows * dim * 2);
    for (int i = 0; i < 2 * LAYERS; i++) release(k[i].data), release(v[i].data);
    release(q.data), release(out.data), release(attend_workspace), release(state), release(push_workspace), release(compact_workspace);
    release(scores), release(n_rows);
}

int main(void) {
    libcuda = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(libcuda != NULL);
    void *found = dlsym(libcuda, "fake_counts");
    CHECK(found != NULL && getenv("FAKE_PTX") != NULL);
    memcpy(&counts, &found, sizeof(found));
    CU(cuInit, 0u);
    CU(cuDevicePrimaryCtxRetain, &cuda_context, 0);
    CU(cuCtxSetCurrent, cuda_context);
    CU(cuStreamCreate, &stream, 1u);
    context = aligned_alloc(LAVA_WORKSPACE_ALIGN, (lava_cuda_context_size() + 15) / 16 * 16);
    OK(lava_cuda_init(context, lava_cuda_context_size(), &error));
    begin_status();

    printf("bf16, %u query and %u KV heads, window %u. In millions: instructions of warps (with how many of their lanes), of them matrix\n"
           "products, ex2 and rcp, f64; MB of global memory, in sectors of 32 bytes, and how much more that is than was asked for (less where\n"
           "lanes share sectors); passes over shared memory in millions, and how many for one without bank conflicts.\n", Q_HEADS, HEADS, WINDOW);
    printf("\n  %-34s %4s %9s %7s %8s %7s %7s %9s %5s %9s %5s %9s %5s\n", "kernel", "n", "instr.", "lanes", "products", "ex2", "f64", "read", "x", "written", "x",
           "shared", "x");
    lava_score_params published = lava_score_params_lava(), preset = lava_score_params_squares();
    const uint32_t dims[] = {64, 80, 96, 128, 256}, N = 32768;
    for (int i = 0; i < 5; i++) score(dims[i] == 128 ? N : N / 4, dims[i], &published, 0, "");
    score(N, 128, &published, 1, ", lse given");
    score(N, 128, &preset, 0, ", the default preset");
    prefill(N, 128, 0.2, LAVA_LAYERS_GLOBAL);
    prefill(N, 128, 1.0 / 32, LAVA_LAYERS_ENTROPY);
    OK(lava_cuda_destroy(context, &error));
    free(context);
    return 0;
}
