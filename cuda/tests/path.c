/*
 * The path from C through liblava and the driver to the kernels, and back: what lava_cuda.h says, against lava.h on the same numbers.
 * Written for managed memory and the driver's functions alone, so that it runs on a GPU as well as over fake_driver.cpp, whose
 * launches run late and whose captures forbid what the real ones do.
 *
 *     path                              everything
 *     path init STATUS ARGUMENT         only that lava_cuda_init returns this, and names that
 */
#define _POSIX_C_SOURCE 200809L
#include "path.h"

#include <dlfcn.h>

/* -------------------------------------------------------------------- contexts ---- */

static void *context_memory(void) {
    void *memory = aligned_alloc(LAVA_WORKSPACE_ALIGN, (lava_cuda_context_size() + 15) / 16 * 16);
    CHECK(memory != NULL);
    return memory;
}

/* Set where libcuda is fake_driver.cpp: modules that are loaded. */
static int (*fake_modules)(void);

static void initialise(void) {
    size_t size = lava_cuda_context_size();
    context = context_memory();
    memset(context, 0x5a, size);
    REFUSED(LAVA_ERR_CONTEXT, "no current context", lava_cuda_init(context, size, &error));
    CU(cuInit, 0u);
    CU(cuDevicePrimaryCtxRetain, &cuda_context, 0);
    CU(cuCtxSetCurrent, cuda_context);
    CU(cuStreamCreate, &stream, 1u);
    REFUSED(LAVA_ERR_NULL, "context", lava_cuda_init(NULL, size, &error));
    REFUSED(LAVA_ERR_ALIGNMENT, "context", lava_cuda_init((char *) context + 8, size, &error));
    REFUSED(LAVA_ERR_BUFFER_SIZE, "context_size", lava_cuda_init(context, size - 1, &error));
    REFUSED(LAVA_ERR_STATE, "context", lava_cuda_destroy(context, &error));
    if (fake_modules) {
        setenv("FAKE_FAIL", "load", 1);
        REFUSED(LAVA_ERR_DRIVER, "CUDA_ERROR_NO_BINARY_FOR_GPU", lava_cuda_init(context, size, &error));
        unsetenv("FAKE_FAIL");
        CHECK(fake_modules() == 0);
        setenv("FAKE_FAIL", "third load", 1);
        REFUSED(LAVA_ERR_DRIVER, "CUDA_ERROR_NO_BINARY_FOR_GPU", lava_cuda_init(context, size, &error));
        unsetenv("FAKE_FAIL");
        CHECK(fake_modules() == 0);
    }
    for (size_t i = 0; i < size; i++) CHECK(((unsigned char *) context)[i] == 0x5a);
    OK(lava_cuda_init(context, size, &error));
    /* It may be moved. */
    void *moved = context_memory();
    memcpy(moved, context, size);
    memset(context, 0xff, size);
    free(context);
    context = moved;
}

static void finish(void) {
    CU(cuCtxSetCurrent, NULL);
    REFUSED(LAVA_ERR_CONTEXT, "no current context", lava_cuda_destroy(context, &error));
    CU(cuCtxSetCurrent, cuda_context);
    OK(lava_cuda_destroy(context, &error));
    REFUSED(LAVA_ERR_STATE, "context", lava_cuda_destroy(context, &error));
    if (fake_modules) CHECK(fake_modules() == 0);
    free(context);
}

/* ----------------------------------------------------------------------- score ---- */

enum { MOST = 160, LAYER = 7 };

typedef struct score_case {
    const char *name;
    uint32_t lengths[MOST], n_sequences, n_q_heads, n_kv_heads, dim_k, dim_v, window, sliding_window;
    lava_dtype q, k, v;
    int lse, captured;
    lava_score_params params;
} score_case;

/* A batch in memory, and what the CPU says of it. */
typedef struct score_batch {
    lava_shape shape;
    lava_tensor tensors[MOST][4];
    lava_cuda_score_sequence sequences[MOST];
    float *want[MOST];
    size_t n_scores[MOST], workspace_size;
    void *workspace;
    uint64_t *status;
} score_batch;

static score_batch *make_scores(const score_case *c) {
    score_batch *b = calloc(1, sizeof(score_batch));
    CHECK(b != NULL);
    uint32_t longest = 0;
    for (uint32_t i = 0; i < c->n_sequences; i++) {
        uint32_t n = c->lengths[i], prefix = n > c->window ? n - c->window : 0;
        lava_tensor *t = b->tensors[i];
        longest = n > longest ? n : longest;
        t[0] = tensor(c->q, c->window, c->n_q_heads, c->dim_k, 1);
        t[1] = tensor(c->k, n, c->n_kv_heads, c->dim_k, 1);
        t[2] = tensor(c->v, n, c->n_kv_heads, c->dim_v, 1);
        t[3] = c->lse ? log_sum_exp(&t[0], &t[1], n, c->window, c->n_q_heads, c->n_kv_heads, c->dim_k) : tensor(LAVA_F32, c->window, c->n_q_heads, 1, 1);
        for (size_t e = 0; c->params.lse_base == LAVA_LSE_BASE2 && e < (size_t) c->window * c->n_q_heads; e++)
            ((float *) t[3].data)[e] = (float) (((float *) t[3].data)[e] / log(2.0));
        b->n_scores[i] = (size_t) c->n_kv_heads * prefix;
        b->want[i] = malloc(4 * b->n_scores[i] + 1);
        lava_shape shape = lava_shape_init(n, c->n_q_heads, c->n_kv_heads, c->dim_k, c->dim_v, c->window);
        shape.sliding_window = c->sliding_window;
        size_t size;
        OK(lava_score_workspace_size(&shape, &c->params, &size, &error));
        void *workspace = malloc(size);
        OK(lava_score(&shape, &c->params, &t[0], &t[1], &t[2], c->lse ? &t[3] : NULL, 0, 1, workspace, size, b->want[i], &error));
        free(workspace);
        lava_cuda_score_sequence *s = &b->sequences[i];
        s->struct_size = sizeof(*s);
        s->n_tokens = n;
        s->q = &t[0];
        s->k = &t[1];
        s->v = c->params.value_weight == LAVA_VALUE_NONE ? NULL : &t[2];
        s->lse = c->lse ? &t[3] : NULL;
        s->scores = prefix > 0 ? allocate(4 * b->n_scores[i]) : NULL;
    }
    b->shape = lava_shape_init(longest, c->n_q_heads, c->n_kv_heads, c->dim_k, c->dim_v, c->window);
    b->shape.layer = LAYER;
    b->shape.sliding_window = c->sliding_window;
    OK(lava_cuda_score_workspace_size(context, &b->shape, &c->params, c->n_sequences, &b->workspace_size, &error));
    b->workspace = allocate(b->workspace_size);
    memset(b->workspace, 0xff, b->workspace_size);
    b->status = allocate(8);
    *b->status = UINT64_MAX;
    return b;
}

static lava_status score(const score_case *c, score_batch *b, lava_error *error) {
    return lava_cuda_score(context, &b->shape, &c->params, b->sequences, c->n_sequences, b->workspace, b->workspace_size, b->status,
                           stream, error);
}

static void free_scores(const score_case *c, score_batch *b, float *const *scores, lava_tensor (*tensors)[4]) {
    for (uint32_t i = 0; i < c->n_sequences; i++) {
        for (int t = 0; t < 4; t++) release(tensors[i][t].data);
        if (scores[i]) release(scores[i]);
        free(b->want[i]);
    }
    release(b->workspace);
    release(b->status);
    free(b);
}

static void check_scores(const score_case *c) {
    score_batch *b = make_scores(c);
    float *scores[MOST];
    lava_tensor tensors[MOST][4];
    for (uint32_t i = 0; i < c->n_sequences; i++) scores[i] = b->sequences[i].scores;
    memcpy(tensors, b->tensors, sizeof(tensors));
    if (c->captured) begin_capture();
    OK(score(c, b, &error));
    void *graph = c->captured ? end_capture() : NULL;
    /* The host's structs are not needed any more. */
    memset(b->sequences, 0xff, sizeof(b->sequences));
    memset(b->tensors, 0xff, sizeof(b->tensors));
    settle();
    double bound = 2 * (2 * logit_error(c->dim_k) + U * (b->shape.n_tokens + c->window + c->dim_v + 60)), worst = 0;
    /* Of these numbers no key has half of the attention, and no value is nearer to the output than a quarter of the largest one. */
    if (c->params.value_weight == LAVA_VALUE_OUTPUT) bound *= 8;
    for (int turn = 0; turn < (graph ? 2 : 1); turn++) {
        if (turn == 1) {
            for (uint32_t i = 0; i < c->n_sequences; i++) memset(scores[i], 0, 4 * b->n_scores[i]);
            CU(cuGraphLaunch, graph, stream);
            settle();
        }
        for (uint32_t i = 0; i < c->n_sequences; i++)
            for (size_t e = 0; e < b->n_scores[i]; e++) {
                double want = b->want[i][e], off = fabs(scores[i][e] - want) / (want + 1e-30);
                if (!(off <= bound)) {
                    fprintf(stderr, "%s: sequence %u, score %zu: %g, not %g\n", c->name, i, e, scores[i][e], want);
                    exit(1);
                }
                worst = off > worst ? off : worst;
            }
    }
    uint32_t sequence = 0;
    OK(lava_cuda_result(*b->status, &sequence, &error));
    CHECK(sequence == LAVA_NONE);
    printf("  score   %-52s off by %.1e, bound %.1e\n", c->name, worst, bound);
    if (graph) CU(cuGraphExecDestroy, graph);
    free_scores(c, b, scores, tensors);
}

static score_case plain_score(const char *name) {
    score_case c;
    memset(&c, 0, sizeof(c));
    c.name = name;
    c.n_sequences = 1;
    c.lengths[0] = 150;
    c.n_q_heads = 4;
    c.n_kv_heads = 2;
    c.dim_k = 64;
    c.dim_v = 24;
    c.window = 8;
    c.q = c.k = c.v = LAVA_BF16;
    c.params = lava_score_params_lava();
    return c;
}

static void scores(void) {
    score_case c = plain_score("one sequence, bf16");
    check_scores(&c);
    c = plain_score("one sequence, f16, 128, captured");
    c.q = c.k = c.v = LAVA_F16;
    c.dim_k = c.dim_v = 128;
    c.captured = 1;
    check_scores(&c);
    c = plain_score("160 sequences, uploaded in two pieces, captured");
    c.captured = 1;
    c.n_sequences = MOST;
    c.window = 4;
    for (uint32_t i = 0; i < c.n_sequences; i++) c.lengths[i] = 1 + i * 37 % 90;
    check_scores(&c);
    c = plain_score("three sequences, one as long as the window, lse");
    c.n_sequences = 3;
    c.lengths[1] = 8;
    c.lengths[2] = 70;
    c.lse = 1;
    check_scores(&c);
    c.name = "the same, of base two";
    c.params.lse_base = LAVA_LSE_BASE2;
    check_scores(&c);
    c = plain_score("f32, 33 elements");
    c.q = c.k = c.v = LAVA_F32;
    c.dim_k = 33;
    check_scores(&c);
    c = plain_score("three types in one");
    c.q = LAVA_F32;
    c.v = LAVA_F16;
    check_scores(&c);
    c = plain_score("SnapKV, soft cap, sliding window, no values");
    c.params = lava_score_params_snapkv();
    c.params.softcap = 20;
    c.sliding_window = 90;
    c.params.scale = 0.125f;
    check_scores(&c);
    c = plain_score("squares, two sequences");
    c.params = lava_score_params_squares();
    c.n_sequences = 2;
    c.lengths[1] = 400;
    check_scores(&c);
    c = plain_score("CAOTE, three sequences, one as long as the window");
    c.params = lava_score_params_caote();
    c.n_sequences = 3;
    c.lengths[1] = 8;
    c.lengths[2] = 400;
    check_scores(&c);
    c = plain_score("ReST-KV, f32, 33 elements, captured");
    c.params = lava_score_params_rest_kv(0.3f);
    c.q = c.k = c.v = LAVA_F32;
    c.dim_k = c.dim_v = 33;
    c.captured = 1;
    check_scores(&c);
    c = plain_score("nothing to score");
    c.lengths[0] = 8;
    check_scores(&c);
}

/* A fault in the last of many sequences, which go to the device in pieces: not even the first piece is launched. */
static void refused_late(void) {
    score_case c = plain_score("refused");
    c.n_sequences = MOST;
    for (uint32_t i = 0; i < c.n_sequences; i++) c.lengths[i] = 20;
    score_batch *b = make_scores(&c);
    float *outputs[MOST];
    lava_tensor tensors[MOST][4];
    for (uint32_t i = 0; i < c.n_sequences; i++) outputs[i] = b->sequences[i].scores;
    memcpy(tensors, b->tensors, sizeof(tensors));
    b->sequences[MOST - 1].k = NULL;
    REFUSED(LAVA_ERR_NULL, "k", score(&c, b, &error));
    settle();
    for (size_t i = 0; i < b->workspace_size; i++) CHECK(((unsigned char *) b->workspace)[i] == 0xff);
    free_scores(&c, b, outputs, tensors);
}

/* What a call refuses, it refuses before it launches anything. */
static void refused_scores(void) {
    score_case c = plain_score("refused");
    c.n_sequences = 2;
    c.lengths[1] = 100;
    score_batch *b = make_scores(&c);
    float *outputs[MOST] = {b->sequences[0].scores, b->sequences[1].scores};
    lava_tensor tensors[MOST][4];
    memcpy(tensors, b->tensors, sizeof(tensors));
    float before = outputs[0][0];
    const score_batch good = *b;
    const score_case good_case = c;
#define WRONG(status_, argument_, change) do { change; REFUSED(status_, argument_, score(&c, b, &error)); *b = good; c = good_case; } while (0)
    WRONG(LAVA_ERR_NULL, "status", b->status = NULL);
    WRONG(LAVA_ERR_ALIGNMENT, "status", b->status = (uint64_t *) (void *) ((char *) b->status + 4));
    WRONG(LAVA_ERR_NULL, "workspace", b->workspace = NULL);
    WRONG(LAVA_ERR_ALIGNMENT, "workspace", b->workspace = (char *) b->workspace + 8);
    WRONG(LAVA_ERR_WORKSPACE, "workspace_size", b->workspace_size = 208 * 2);
    WRONG(LAVA_ERR_ARGUMENT, "n_sequences", c.n_sequences = 0);
    WRONG(LAVA_ERR_ARGUMENT, "n_sequences", c.n_sequences = LAVA_CUDA_MAX_SEQUENCES + 1);
    WRONG(LAVA_ERR_ARGUMENT, "layer", b->shape.layer = 65536);
    WRONG(LAVA_ERR_SHAPE, "n_q_heads", b->shape.n_q_heads = 3);
    const uint32_t cu_rows[3] = {0, 1, 2};
    const float sinks[4] = {0};
    WRONG(LAVA_ERR_UNSUPPORTED, "cu_rows", b->shape.cu_rows = cu_rows);
    WRONG(LAVA_ERR_UNSUPPORTED, "sink_logits", c.params.sink_logits = sinks);
    WRONG(LAVA_ERR_UNSUPPORTED, "query_head_weights", c.params.query_head_weights = sinks);
    WRONG(LAVA_ERR_UNSUPPORTED, "attention", c.params.attention = LAVA_ATTENTION_MAX);
    WRONG(LAVA_ERR_UNSUPPORTED, "attention", c.params.attention = LAVA_ATTENTION_NORM4);
    WRONG(LAVA_ERR_UNSUPPORTED, "attention", c.params = lava_score_params_default());
    WRONG(LAVA_ERR_UNSUPPORTED, "pool", c.params.pool = LAVA_POOL_AFTER);
    WRONG(LAVA_ERR_UNSUPPORTED, "value_weight", c.params.value_weight = LAVA_VALUE_TOKEN_L2);
    WRONG(LAVA_ERR_UNSUPPORTED, "value_weight", c.params.value_weight = LAVA_VALUE_HEAD_MEAN_L2);
    WRONG(LAVA_ERR_UNSUPPORTED, "backend", c.params.backend = LAVA_BACKEND_SCALAR);
    WRONG(LAVA_ERR_OVERFLOW, "n_tokens", (b->shape = lava_shape_init(UINT32_MAX - 4094, 1, 1, 1, 1, 1)));
    WRONG(LAVA_ERR_ARGUMENT, "pool_kernel", c.params.pool_kernel = 4);
    WRONG(LAVA_ERR_ARGUMENT, "value_weight", c.params = lava_score_params_caote(); c.params.attention = LAVA_ATTENTION_RECENCY);
    WRONG(LAVA_ERR_STRUCT_SIZE, "sequences", b->sequences[1].struct_size = 56);
    WRONG(LAVA_ERR_STRUCT_SIZE, "sequences", b->sequences[0].struct_size = 40);
    WRONG(LAVA_ERR_SHAPE, "n_tokens", b->sequences[1].n_tokens = 151);
    WRONG(LAVA_ERR_SHAPE, "n_tokens", b->sequences[1].n_tokens = 0);
    WRONG(LAVA_ERR_NULL, "k", b->sequences[1].k = NULL);
    WRONG(LAVA_ERR_NULL, "v", b->sequences[1].v = NULL);
    WRONG(LAVA_ERR_NULL, "scores", b->sequences[1].scores = NULL);
    WRONG(LAVA_ERR_ARGUMENT, "lse", b->sequences[1].lse = &b->tensors[1][3]);
    WRONG(LAVA_ERR_DTYPE, "k", b->tensors[1][1].dtype = 9);
    WRONG(LAVA_ERR_STRIDE, "k", b->tensors[1][1].stride_token = 1);
    WRONG(LAVA_ERR_STRIDE, "q", b->tensors[1][0].stride_head = -64);
    WRONG(LAVA_ERR_BUFFER_SIZE, "v", b->tensors[1][2].size -= 2);
    WRONG(LAVA_ERR_ALIGNMENT, "q", b->tensors[0][0].data = (char *) b->tensors[0][0].data + 1);
    WRONG(LAVA_ERR_STRIDE, "k", b->tensors[1][1].row_start = (uint32_t *) b->workspace);
    WRONG(LAVA_ERR_OVERLAP, "scores", b->sequences[1].scores = (float *) b->tensors[1][1].data);
    WRONG(LAVA_ERR_OVERLAP, "workspace", b->sequences[1].scores = (float *) b->workspace);
    CU(cuCtxSetCurrent, NULL);
    WRONG(LAVA_ERR_CONTEXT, "no current context", (void) 0);
    CU(cuCtxSetCurrent, cuda_context);
    if (fake_modules) {
        setenv("FAKE_FAIL", "launch", 1);
        WRONG(LAVA_ERR_LAUNCH, "CUDA_ERROR_ILLEGAL_ADDRESS", (void) 0);
        unsetenv("FAKE_FAIL");
    }
    settle();
    CHECK(memcmp(&before, &outputs[0][0], 4) == 0 && *b->status == UINT64_MAX);
    refused_late();
    /* Errors name the layer. */
    lava_error of_layer = lava_error_init();
    b->tensors[1][1].dtype = 9;
    CHECK(score(&c, b, &of_layer) == LAVA_ERR_DTYPE && of_layer.layer == LAYER);
    *b = good;

    /* What is not finite is found by the kernels. */
    ((uint16_t *) b->tensors[1][1].data)[(5 * 2 + 1) * 64 + 3] = 0x7fc0;
    OK(score(&c, b, &error));
    settle();
    uint32_t sequence = 0;
    lava_error error = lava_error_init();
    CHECK(lava_cuda_result(*b->status, &sequence, &error) == LAVA_ERR_NONFINITE);
    CHECK(sequence == 1 && error.layer == LAYER && error.head == 1 && strcmp(error.argument, "q") == 0);
    free_scores(&c, b, outputs, tensors);
    printf("  score   what is refused, and what is not finite\n");
}

/* ---------------------------------------------------------------------- attend ---- */

typedef struct attend_case {
    const char *name;
    uint32_t n_sequences, n_queries, n_q_heads, dim, sliding_window;
    lava_dtype dtype;
    uint32_t rows[MOST][2];
} attend_case;

enum { KV_HEADS = 2, ROOM = 6, BEFORE = 3 };

/* Caches of two heads, ragged, with room for ROOM rows after each. A graph is launched again when they have grown by some. */
static void check_attend(const attend_case *c) {
    lava_tensor t[MOST][5], copies[MOST][5];
    lava_cuda_attend_sequence sequences[MOST];
    uint32_t *n_rows[MOST], *starts[MOST], *kept[MOST], *cu_kept[MOST];
    uint64_t total_rows = 0;
    lava_shape shape = lava_shape_init(1, c->n_q_heads, KV_HEADS, c->dim, c->dim, 1);
    lava_attend_params params = lava_attend_params_default();
    shape.sliding_window = c->sliding_window;
    uint64_t *offset = allocate(8);
    *offset = BEFORE;
    memset(sequences, 0, sizeof(sequences));
    for (uint32_t i = 0; i < c->n_sequences; i++) {
        const uint32_t *rows = c->rows[i];
        uint32_t all = rows[0] + rows[1] + 2 * ROOM, n = 0;
        n_rows[i] = allocate(8);
        starts[i] = allocate(8);
        cu_kept[i] = allocate(12);
        kept[i] = allocate(4 * (BEFORE + rows[0] + rows[1]));
        starts[i][0] = 0;
        starts[i][1] = rows[0] + ROOM;
        cu_kept[i][0] = 0;
        for (int h = 0; h < KV_HEADS; h++) {
            n_rows[i][h] = rows[h];
            for (uint32_t r = 0; r + c->n_queries < rows[h]; r++) kept[i][BEFORE + n++] = 3 * r;
            cu_kept[i][h + 1] = n;
        }
        size_t bytes = (size_t) all * c->dim * element_size(c->dtype);
        t[i][0] = tensor(c->dtype, c->n_queries, c->n_q_heads, c->dim, 1);
        t[i][1] = lava_tensor_ragged(c->dtype, elements(c->dtype, (size_t) all * c->dim, 1), bytes, starts[i], c->dim);
        t[i][2] = lava_tensor_ragged(c->dtype, elements(c->dtype, (size_t) all * c->dim, 0.5f), bytes, starts[i], c->dim);
        t[i][3] = tensor(LAVA_F32, c->n_queries, c->n_q_heads, c->dim, 1);
        t[i][4] = tensor(LAVA_F32, c->n_queries, c->n_q_heads, 1, 1);
        memcpy(copies[i], t[i], sizeof(t[i]));
        lava_cuda_attend_sequence *s = &sequences[i];
        s->struct_size = sizeof(*s);
        s->max_rows = (rows[0] > rows[1] ? rows[0] : rows[1]) + ROOM;
        s->total_rows = all;
        total_rows += all;
        s->q = &t[i][0];
        s->k = &t[i][1];
        s->v = &t[i][2];
        s->out = &t[i][3];
        s->lse = &t[i][4];
        s->n_rows = n_rows[i];
        if (c->sliding_window) s->kept_indices = kept[i], s->cu_kept = cu_kept[i], s->kept_offset = offset;
        s->n_base = 400;
    }
    size_t size;
    OK(lava_cuda_attend_workspace_size(context, &shape, c->n_queries, c->n_sequences, total_rows, &size, &error));
    void *workspace = allocate(size);
    memset(workspace, 0xff, size);
    uint64_t *status = allocate(8);
    *status = UINT64_MAX;
#define ATTEND lava_cuda_attend(context, &shape, &params, c->n_queries, sequences, c->n_sequences, workspace, size, status, stream, &error)
    REFUSED(LAVA_ERR_WORKSPACE, "workspace_size", (lava_cuda_attend)(context, &shape, &params, c->n_queries, sequences, c->n_sequences,
                                                                      workspace, 16, status, stream, &error));
#define WRONG_ATTEND(status_, argument_, place, value) do { \
    unsigned char saved[sizeof(place)]; memcpy(saved, &(place), sizeof(place)); place = value; \
    REFUSED(status_, argument_, ATTEND); memcpy(&(place), saved, sizeof(place)); } while (0)
    WRONG_ATTEND(LAVA_ERR_NULL, "n_rows", sequences[0].n_rows, NULL);
    WRONG_ATTEND(LAVA_ERR_NULL, "out", sequences[0].out, NULL);
    WRONG_ATTEND(LAVA_ERR_DTYPE, "out", t[0][3].dtype, LAVA_F16);
    WRONG_ATTEND(LAVA_ERR_OVERLAP, "out", t[0][3].data, t[0][1].data);
    WRONG_ATTEND(LAVA_ERR_ARGUMENT, "total_rows", sequences[0].total_rows, 100000);
    WRONG_ATTEND(LAVA_ERR_ARGUMENT, "n_base", params.n_base, 1);
    WRONG_ATTEND(LAVA_ERR_ARGUMENT, "causal", params.causal, 2);
    const float sinks[6] = {0};
    WRONG_ATTEND(LAVA_ERR_UNSUPPORTED, "sink_logits", params.sink_logits, sinks);
    WRONG_ATTEND(LAVA_ERR_UNSUPPORTED, "backend", params.backend, LAVA_BACKEND_SCALAR);
    WRONG_ATTEND(LAVA_ERR_ARGUMENT, "softcap", params.softcap, -1);
    WRONG_ATTEND(LAVA_ERR_BUFFER_SIZE, "k", t[0][1].size, 16);
    if (c->sliding_window) WRONG_ATTEND(LAVA_ERR_NULL, "kept_indices", sequences[0].kept_indices, NULL);
    if (c->sliding_window) WRONG_ATTEND(LAVA_ERR_ALIGNMENT, "kept_offset", sequences[0].kept_offset, (uint64_t *) (void *) ((char *) offset + 4));

    begin_capture();
    OK(ATTEND);
    void *graph = end_capture();
    memset(sequences, 0xff, sizeof(sequences));
    memset(t, 0xff, sizeof(t));
    settle();
    double worst = 0, bound = 0;
    for (int turn = 0; turn < 2; turn++) {
        if (turn == 1) {
            for (uint32_t i = 0; i < c->n_sequences; i++) n_rows[i][0] += ROOM, n_rows[i][1] += 1;
            CU(cuGraphLaunch, graph, stream);
            settle();
        }
        for (uint32_t i = 0; i < c->n_sequences; i++) {
            lava_tensor *x = copies[i], out = x[3], lse = x[4];
            size_t n_out = (size_t) c->n_queries * c->n_q_heads * c->dim, n_lse = (size_t) c->n_queries * c->n_q_heads, cpu_size;
            lava_attend_params own = params;
            own.n_base = 400;
            if (c->sliding_window) own.kept_indices = kept[i] + BEFORE, own.cu_kept = cu_kept[i];
            out.data = malloc(4 * n_out);
            lse.data = malloc(4 * n_lse);
            OK(lava_attend_workspace_size(&shape, c->n_queries, &cpu_size, &error));
            void *cpu = malloc(cpu_size);
            OK(lava_attend(&shape, &own, c->n_queries, &x[0], &x[1], &x[2], n_rows[i], &out, &lse, 0, 1, cpu, cpu_size, &error));
            /* Values are at most 1; the tensor cores take weights in two pieces of 8 bits or more. */
            bound = 2 * (2 * logit_error(c->dim) + U * (n_rows[i][0] + n_rows[i][1] + 40) + 1.0 / (1 << 17));
            for (size_t e = 0; e < n_out + n_lse; e++) {
                float want = e < n_out ? ((float *) out.data)[e] : ((float *) lse.data)[e - n_out];
                float got = e < n_out ? ((float *) x[3].data)[e] : ((float *) x[4].data)[e - n_out];
                double off = want == got ? 0 : fabs((double) want - got);
                if (!(off <= bound)) {
                    fprintf(stderr, "%s: launch %d, sequence %u, number %zu: %g, not %g\n", c->name, turn, i, e, got, want);
                    exit(1);
                }
                worst = off > worst ? off : worst;
            }
            free(out.data);
            free(lse.data);
            free(cpu);
        }
    }
    OK(lava_cuda_result(*status, NULL, &error));
    printf("  attend  %-52s off by %.1e, bound %.1e\n", c->name, worst, bound);
    CU(cuGraphExecDestroy, graph);
    for (uint32_t i = 0; i < c->n_sequences; i++) {
        for (int x = 0; x < 5; x++) release(copies[i][x].data);
        release(n_rows[i]);
        release(starts[i]);
        release(kept[i]);
        release(cu_kept[i]);
    }
    release(offset);
    release(workspace);
    release(status);
}

static void attends(void) {
    attend_case one = {"one sequence, bf16, 128, a graph while it grows", 1, 1, 4, 128, 0, LAVA_BF16, {{70, 150}}};
    attend_case many = {"120 sequences, uploaded in two pieces, f16, 64", 120, 2, 4, 64, 0, LAVA_F16, {{0, 0}}};
    attend_case slides = {"sliding window, f32, 33", 2, 2, 6, 33, 12, LAVA_F32, {{20, 9}, {2, 60}}};
    for (uint32_t i = 0; i < many.n_sequences; i++) many.rows[i][0] = 2 + i % 7, many.rows[i][1] = 2 + i * 13 % 40;
    check_attend(&one);
    check_attend(&many);
    check_attend(&slides);
}

/* ---------------------------------------------------------------- status words ---- */

static void status_words(void) {
    static const char *const names[] = {"lse", "q", "v", "scores", "total", "stats", "weights"};
    for (uint32_t fault = LAVA_FAULT_LSE; fault <= LAVA_FAULT_WEIGHTS; fault++) {
        uint32_t sequence = 0;
        lava_error error = lava_error_init();
        lava_status want = fault == LAVA_FAULT_BUDGET ? LAVA_ERR_BUDGET : LAVA_ERR_NONFINITE;
        CHECK(lava_cuda_result(lava_fault(fault, 65535, 65534, 1000), &sequence, &error) == want);
        CHECK(error.layer == 65535 && sequence == 65534 && error.head == (fault == LAVA_FAULT_BUDGET ? LAVA_NONE : 1000));
        CHECK(strcmp(error.argument, names[fault - LAVA_FAULT_LSE]) == 0);
    }
    lava_error error = lava_error_init();
    CHECK(lava_cuda_result(lava_fault(LAVA_FAULT_WEIGHTS, 2, 0, LAVA_NO_HEAD), NULL, &error) == LAVA_ERR_NONFINITE);
    CHECK(error.layer == 2 && error.head == LAVA_NONE);
    REFUSED(LAVA_ERR_ARGUMENT, "word", lava_cuda_result(0, NULL, &error));
    REFUSED(LAVA_ERR_ARGUMENT, "word", lava_cuda_result(UINT64_MAX - 1, NULL, &error));
    OK(lava_cuda_result(LAVA_NO_FAULT, NULL, &error));
}

static int init_only(const char *status, const char *argument) {
    void *memory = context_memory();
    lava_error error = lava_error_init();
    lava_status got = lava_cuda_init(memory, lava_cuda_context_size(), &error);
    lava_status want = strcmp(status, "LAVA_ERR_DRIVER") == 0 ? LAVA_ERR_DRIVER : LAVA_ERR_UNSUPPORTED;
    int same = got == want && strcmp(error.argument, argument) == 0;
    printf("  init    %s (%s)%s\n", error.message, error.argument, same ? "" : ": NOT what was expected");
    free(memory);
    return !same;
}

int main(int argc, char **argv) {
    if (argc == 4) return init_only(argv[2], argv[3]);
    libcuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!libcuda) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    void *fake = dlsym(libcuda, "fake_modules");
    memcpy(&fake_modules, &fake, sizeof(fake));
    printf("lava_cuda.h over %s\n", fake ? "the fake driver" : "the driver");
    status_words();
    initialise();
    scores();
    refused_scores();
    attends();
    statistics();
    decisions();
    finish();
    printf("the CUDA path is as it should be\n");
    return 0;
}
