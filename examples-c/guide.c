/*
 * The code of include/GUIDE.md, "Put LAVa into your engine", as one program: a toy engine with a head-major cache, which
 * prefills a prompt in chunks, compresses all layers in place, gives the memory back and decodes on. A test holds the
 * guide's blocks to this file.
 */
#include "capture.h"

#include <math.h>
#include <pthread.h>  /* POSIX: also in mingw-w64, not in MSVC */

enum { WINDOW = 32, CHUNK = 48, N_THREADS = 2, ROOM = 16 };

typedef struct {
    uint32_t n_layers, n_q_heads, n_heads, dim;
    uint32_t n_tokens;  /* of the prompt */
    uint32_t capacity;  /* tokens that each head has room for */
} engine;

/* What the engine has of one layer. */
typedef struct {
    char *k, *v;          /* f16 [n_heads, capacity, dim], later ragged */
    float *q;             /* f32 [WINDOW, n_q_heads, dim]: the last queries */
    float *scores;        /* [n_heads, n_tokens - WINDOW] */
    uint32_t *kept, *cu;  /* kept_indices, cu_kept */
    uint32_t *start;      /* each head's first row in the buffer */
    uint32_t *n_rows;     /* rows that each head holds */
} layer_cache;

static lava_shape layer_shape(const engine *e, uint32_t layer) {
    lava_shape shape = lava_shape_init(e->n_tokens, e->n_q_heads, e->n_heads, e->dim, e->dim, WINDOW);
    shape.layer = layer;
    return shape;
}

/* K or V as the engine keeps it: [n_heads, capacity, dim]. */
static lava_tensor full_cache(const engine *e, void *data) {
    size_t size = (size_t) e->n_heads * e->capacity * e->dim * sizeof(uint16_t);
    return lava_tensor_head_major(LAVA_F16, data, size, e->capacity, e->dim);
}

/* Prefill calls this for each chunk, behind RoPE. The last WINDOW rows stay, the oldest first. */
static void keep_queries(const engine *e, layer_cache *l, const float *q, uint32_t n_new) {
    size_t row = (size_t) e->n_q_heads * e->dim;
    uint32_t n_taken = n_new < WINDOW ? n_new : WINDOW, n_old = WINDOW - n_taken;
    memmove(l->q, l->q + n_taken * row, n_old * row * sizeof(float));
    memcpy(l->q + n_old * row, q + (n_new - n_taken) * row, n_taken * row * sizeof(float));
}

/* A task for the engine's thread pool: one part of one layer. */
typedef struct {
    const engine *e;
    const layer_cache *cache;
    uint32_t layer, part;
    void *workspace;  /* each thread's own */
    size_t workspace_size;
    lava_error error;
} score_task;

static void *score_part(void *argument) {
    score_task *t = argument;
    const engine *e = t->e;
    lava_shape shape = layer_shape(e, t->layer);
    lava_score_params params = lava_score_params_default();
    size_t q_size = (size_t) WINDOW * e->n_q_heads * e->dim * sizeof(float);
    lava_tensor q = lava_tensor_token_major(LAVA_F32, t->cache->q, q_size, e->n_q_heads, e->dim);
    lava_tensor k = full_cache(e, t->cache->k), v = full_cache(e, t->cache->v);
    lava_score(&shape, &params, &q, &k, &v, NULL, t->part, N_THREADS, t->workspace, t->workspace_size, t->cache->scores,
               &t->error);
    return NULL;
}

/* Scores a layer on N_THREADS threads. */
static void score_layer(const engine *e, layer_cache *l, uint32_t layer, char *workspaces, size_t workspace_size) {
    pthread_t threads[N_THREADS];
    score_task tasks[N_THREADS];
    for (uint32_t part = 0; part < N_THREADS; part++) {
        void *own = workspaces + part * workspace_size;
        tasks[part] = (score_task) {e, l, layer, part, own, workspace_size, lava_error_init()};
        expect(pthread_create(&threads[part], NULL, score_part, &tasks[part]) == 0, "a thread starts");
    }
    for (uint32_t part = 0; part < N_THREADS; part++) pthread_join(threads[part], NULL);
    for (uint32_t part = 0; part < N_THREADS; part++)
        check(tasks[part].error.status, &tasks[part].error, __FILE__, __LINE__, "lava_score");
}

/* Evicts in place: kept rows move to the front of the buffer, with ROOM free rows behind each head; the rest is given back. */
static void compact_layer(const engine *e, layer_cache *l, uint32_t layer) {
    lava_error error = lava_error_init();
    lava_shape shape = layer_shape(e, layer);
    uint32_t *from = allocate(e->n_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < e->n_heads; h++) {
        from[h] = h * e->capacity;
        l->start[h] = l->cu[h] + h * ROOM;
        l->n_rows[h] = l->cu[h + 1] - l->cu[h];
    }
    size_t size = (size_t) e->n_heads * e->capacity * e->dim * sizeof(uint16_t);
    lava_tensor k_from = lava_tensor_ragged(LAVA_F16, l->k, size, from, e->dim), k_to = k_from;
    lava_tensor v_from = lava_tensor_ragged(LAVA_F16, l->v, size, from, e->dim), v_to = v_from;
    k_to.row_start = v_to.row_start = l->start;
    CHECK(lava_compact(&shape, &k_from, &v_from, NULL, l->kept, l->cu, &k_to, &v_to, 0, 1, &error));
    free(from);

    size_t smaller = (l->cu[e->n_heads] + (size_t) e->n_heads * ROOM) * e->dim * sizeof(uint16_t);
    l->k = realloc(l->k, smaller);
    l->v = realloc(l->v, smaller);
    expect(l->k != NULL && l->v != NULL, "memory shrinks");
}

/* The position of row r of head h: kept tokens keep theirs, later ones count on from the prompt's end. */
static uint32_t row_position(const engine *e, const layer_cache *l, uint32_t h, uint32_t r) {
    uint32_t n_kept = l->cu[h + 1] - l->cu[h];
    return r < n_kept ? l->kept[l->cu[h] + r] : e->n_tokens + (r - n_kept);
}

/* Whether a query sees a row: for an attention kernel of the engine's own, with a mask for each KV head. */
static int is_visible(const engine *e, const layer_cache *l, uint32_t h, uint32_t r, uint32_t query, uint32_t sliding) {
    uint32_t position = row_position(e, l, h, r);
    return position <= query && (sliding == 0 || position + sliding > query);
}

/* Forgets all tokens from `position` on. Positions ascend in each head, so they are the last rows. */
static void roll_back(const engine *e, layer_cache *l, uint32_t position) {
    for (uint32_t h = 0; h < e->n_heads; h++)
        while (l->n_rows[h] > 0 && row_position(e, l, h, l->n_rows[h] - 1) >= position) l->n_rows[h]--;
}

/* One decode step of one layer: the token's K and V [n_heads, dim] go behind every head's rows, then it attends. */
static void decode_step(const engine *e, layer_cache *l, float *q, const char *k_new, const char *v_new, float *out,
                        void *workspace, size_t workspace_size) {
    lava_error error = lava_error_init();
    size_t row = e->dim * sizeof(uint16_t), q_size = (size_t) e->n_q_heads * e->dim * sizeof(float);
    for (uint32_t h = 0; h < e->n_heads; h++) {
        expect(l->n_rows[h] < l->cu[h + 1] - l->cu[h] + ROOM, "there is room behind the head");
        memcpy(l->k + (l->start[h] + l->n_rows[h]) * row, k_new + h * row, row);
        memcpy(l->v + (l->start[h] + l->n_rows[h]) * row, v_new + h * row, row);
        l->n_rows[h]++;
    }
    size_t size = (l->cu[e->n_heads] + (size_t) e->n_heads * ROOM) * row;
    lava_shape shape = layer_shape(e, 0);
    shape.n_tokens = 1;  /* new queries */
    lava_attend_params params = lava_attend_params_init();
    lava_tensor query = lava_tensor_token_major(LAVA_F32, q, q_size, e->n_q_heads, e->dim);
    lava_tensor result = lava_tensor_token_major(LAVA_F32, out, q_size, e->n_q_heads, e->dim);
    lava_tensor k = lava_tensor_ragged(LAVA_F16, l->k, size, l->start, e->dim);
    lava_tensor v = lava_tensor_ragged(LAVA_F16, l->v, size, l->start, e->dim);
    CHECK(lava_attend(&shape, &params, &query, &k, &v, l->n_rows, &result, NULL, 0, 1, workspace, workspace_size, &error));
}

static void prefill(const engine *e, layer_cache *l, const capture *c, uint32_t prompt, uint32_t layer) {
    capture_layer in = capture_get(c, prompt, layer, c->n_queries);
    size_t row = e->dim * sizeof(uint16_t), q_row = (size_t) e->n_q_heads * e->dim;
    for (uint32_t h = 0; h < e->n_heads; h++) {
        for (uint32_t i = 0; i < e->n_tokens; i++) {
            memcpy(l->k + ((size_t) h * e->capacity + i) * row, (char *) in.k.data + ((size_t) i * e->n_heads + h) * row, row);
            memcpy(l->v + ((size_t) h * e->capacity + i) * row, (char *) in.v.data + ((size_t) i * e->n_heads + h) * row, row);
        }
    }
    for (uint32_t i = 0; i < c->n_queries; i += CHUNK)
        keep_queries(e, l, (float *) in.q.data + i * q_row, c->n_queries - i < CHUNK ? c->n_queries - i : CHUNK);
    expect(memcmp(l->q, (float *) in.q.data + (c->n_queries - WINDOW) * q_row, WINDOW * q_row * sizeof(float)) == 0,
           "the last queries are kept");
}

int main(void) {
    const uint32_t prompt = 0;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    engine e = {c.n_layers, c.n_q_heads, c.n_kv_heads, c.head_dim, capture_get(&c, prompt, 0, WINDOW).n_tokens, 0};
    e.capacity = e.n_tokens + ROOM;
    layer_cache *layers = allocate(e.n_layers * sizeof(*layers));
    size_t cache_size = (size_t) e.n_heads * e.capacity * e.dim * sizeof(uint16_t);
    uint64_t n_scores = (uint64_t) e.n_heads * (e.n_tokens - WINDOW);

    /* Once, when the model is loaded: how much is kept, and the scratch memory for it. */
    lava_shape shape = layer_shape(&e, 0);
    uint32_t budget;  /* tokens per KV head, on average */
    uint64_t total;   /* prefix entries, over all layers and heads */
    CHECK(lava_budget_from_ratio(&shape, 0.2, &budget, &error));
    CHECK(lava_total_entries(&shape, budget, e.n_layers, &total, &error));

    lava_score_params scoring = lava_score_params_default();
    lava_select_params selecting = lava_select_params_default();
    lava_shape one_query = shape;
    one_query.n_tokens = 1;
    size_t score_size, select_size, share_size, attend_size;
    CHECK(lava_score_workspace_size(&shape, &scoring, &score_size, &error));
    CHECK(lava_select_workspace_size(&shape, &select_size, &error));
    CHECK(lava_global_budgets_workspace_size(&shape, e.n_layers, &share_size, &error));
    CHECK(lava_attend_workspace_size(&one_query, &attend_size, &error));
    if (select_size < share_size) select_size = share_size;
    score_size = (score_size + LAVA_WORKSPACE_ALIGN - 1) / LAVA_WORKSPACE_ALIGN * LAVA_WORKSPACE_ALIGN;
    char *score_workspaces = allocate(N_THREADS * score_size);
    void *select_workspace = allocate(select_size), *attend_workspace = allocate(attend_size);
    float *scores = allocate(e.n_layers * n_scores * sizeof(float));  /* of all layers, one behind the other */

    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        l->k = allocate(cache_size);
        l->v = allocate(cache_size);
        l->q = allocate((size_t) WINDOW * e.n_q_heads * e.dim * sizeof(float));
        l->scores = scores + i * n_scores;
        l->cu = allocate((e.n_heads + 1) * sizeof(uint32_t));
        l->start = allocate(e.n_heads * sizeof(uint32_t));
        l->n_rows = allocate(e.n_heads * sizeof(uint32_t));
        memset(l->q, 0, (size_t) WINDOW * e.n_q_heads * e.dim * sizeof(float));
        prefill(&e, l, &c, prompt, i);
    }

    /* After prefill: scores of every layer, and from them what each layer and each of its heads may keep. */
    uint64_t *budgets = allocate(e.n_layers * sizeof(uint64_t));
    double *head_weights = allocate(e.n_layers * e.n_heads * sizeof(double));
    for (uint32_t i = 0; i < e.n_layers; i++) score_layer(&e, &layers[i], i, score_workspaces, score_size);
    CHECK(lava_global_budgets(&shape, e.n_layers, &selecting, scores, total, select_workspace, select_size, budgets,
                              head_weights, &error));

    /* What each head keeps. */
    size_t before = 2 * e.n_layers * cache_size, after = 0;
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        shape = layer_shape(&e, i);
        uint64_t n_kept;
        lava_selection report = lava_selection_init();
        selecting.head_weights = head_weights + i * e.n_heads;
        CHECK(lava_n_kept(&shape, budgets[i], &n_kept, &error));
        l->kept = allocate(n_kept * sizeof(uint32_t));
        CHECK(lava_select(&shape, &selecting, l->scores, budgets[i], select_workspace, select_size, l->kept, n_kept, l->cu,
                          &report, &error));
        compact_layer(&e, l, i);
        after += 2 * (n_kept + (size_t) e.n_heads * ROOM) * e.dim * sizeof(uint16_t);
        printf("layer %u: %llu of %llu prefix entries, %.2f%% of the score mass evicted\n", i, (unsigned long long) budgets[i],
               (unsigned long long) n_scores, 100 * report.evicted_share);
    }
    printf("K and V: %zu bytes before, %zu after, room for %d more tokens included\n", before, after, ROOM);
    expect(after * 3 < before, "memory is freed");

    /* Decode on, roll back, decode the same again: the same. */
    size_t step = (size_t) e.n_q_heads * e.dim, kv_row = e.n_heads * e.dim * sizeof(uint16_t);
    float *out = allocate(step * sizeof(float)), *again = allocate(step * sizeof(float));
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        capture_layer in = capture_get(&c, prompt, i, WINDOW);
        for (uint32_t h = 0; h < e.n_heads; h++)
            for (uint32_t r = 0; r < l->n_rows[h]; r++)
                expect(memcmp(l->k + (size_t) (l->start[h] + r) * e.dim * 2,
                              (char *) in.k.data + ((size_t) row_position(&e, l, h, r) * e.n_heads + h) * e.dim * 2, e.dim * 2) == 0,
                       "a row is the token's of its position");
        for (uint32_t t = 0; t < 3; t++)
            decode_step(&e, l, (float *) in.q_next.data + t * step, (char *) in.k_next.data + t * kv_row,
                        (char *) in.v_next.data + t * kv_row, out, attend_workspace, attend_size);
        for (uint32_t h = 0; h < e.n_heads; h++) {
            uint32_t last = l->n_rows[h] - 1, query = e.n_tokens + 2;
            expect(row_position(&e, l, h, last) == query && is_visible(&e, l, h, last, query, 1), "a token sees itself");
            expect(is_visible(&e, l, h, 0, query, 0) && !is_visible(&e, l, h, 0, query, 3), "and further without a window");
            expect(!is_visible(&e, l, h, last, query - 1, 0), "but not ahead");
        }
        roll_back(&e, l, e.n_tokens);
        for (uint32_t t = 0; t < 3; t++)
            decode_step(&e, l, (float *) in.q_next.data + t * step, (char *) in.k_next.data + t * kv_row,
                        (char *) in.v_next.data + t * kv_row, again, attend_workspace, attend_size);
        expect(memcmp(out, again, step * sizeof(float)) == 0, "rolled back and decoded again");
        for (size_t d = 0; d < step; d++) expect(isfinite(out[d]), "attention's output is finite");
    }
    printf("decoded 3 tokens, rolled back, decoded them again: the same bits\n");

    free(again);
    free(out);
    free(budgets);
    free(head_weights);
    free(scores);
    for (uint32_t i = 0; i < e.n_layers; i++) {
        free(layers[i].n_rows);
        free(layers[i].start);
        free(layers[i].cu);
        free(layers[i].kept);
        free(layers[i].q);
        free(layers[i].v);
        free(layers[i].k);
    }
    free(attend_workspace);
    free(select_workspace);
    free(score_workspaces);
    free(layers);
    capture_close(&c);
    return 0;
}
