/*
 * The code of include/GUIDE.md, "Put LAVa into your engine", as one program: a toy engine with a head-major cache. It
 * prefills a prompt in chunks, compresses all layers in place, gives the memory back, decodes on, rolls back, and
 * compresses again. A test holds the guide's blocks to this file.
 */
#include "capture.h"

#include <math.h>
#include <pthread.h>

enum { WINDOW = 32, CHUNK = 48, N_THREADS = 2, ROOM = 16 };

typedef struct {
    uint32_t n_layers, n_q_heads, n_heads, dim;
    const uint32_t *sliding;  /* by layer: how many keys a query sees; 0: all */
    uint32_t n_tokens;        /* so far */
    uint32_t capacity;        /* tokens that each head has room for before it is compressed */
} engine;

/* What the engine has of one layer. */
typedef struct {
    char *k, *v;            /* f16 [n_heads, capacity, dim], later ragged: head h's rows from row start[h] on */
    size_t size;            /* bytes of each */
    uint32_t *start;        /* each head's first row in the buffer */
    uint32_t *n_rows;       /* rows that each head holds */
    uint32_t *positions;    /* of each row of the buffer; NULL until the layer is compressed */
    float *q;               /* f32 [WINDOW, n_q_heads, dim]: the last queries */
    float *scores;          /* of every row before the window */
    uint32_t *kept, *rows;  /* kept_indices and rows of the last selection */
    uint32_t *cu;           /* cu_kept */
} layer_cache;

/* What the library is told of a layer. Layers may differ in all of it. */
static lava_shape layer_shape(const engine *e, uint32_t layer) {
    lava_shape shape = lava_shape_init(e->n_tokens, e->n_q_heads, e->n_heads, e->dim, e->dim, WINDOW);
    shape.layer = layer;                       /* errors name it */
    shape.sliding_window = e->sliding[layer];  /* how many keys a query sees; 0: all */
    return shape;
}

/* The same for a layer that has been compressed before: how many rows each head has, and the position of each row. */
static lava_shape ragged_shape(const engine *e, const layer_cache *l, uint32_t layer, uint32_t *cu_rows,
                               uint32_t *positions) {
    cu_rows[0] = 0;
    for (uint32_t h = 0; h < e->n_heads; h++) {
        memcpy(positions + cu_rows[h], l->positions + l->start[h], l->n_rows[h] * sizeof(uint32_t));
        cu_rows[h + 1] = cu_rows[h] + l->n_rows[h];
    }
    lava_shape shape = layer_shape(e, layer);
    shape.cu_rows = cu_rows;
    shape.positions = positions;
    return shape;
}

/* K or V as the engine keeps it. A head-major cache is a ragged one whose heads start `capacity` rows apart. */
static lava_tensor cache_tensor(const engine *e, const layer_cache *l, void *data) {
    return lava_tensor_ragged(LAVA_F16, data, l->size, l->start, e->dim);
}

/* Called for each chunk of the prompt and for each new token, after RoPE. The last WINDOW rows stay, oldest first. */
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
    const lava_shape *shape;
    uint32_t part;
    void *workspace;  /* each thread has one */
    size_t workspace_size;
    lava_error error;
} score_task;

static void *score_part(void *argument) {
    score_task *t = argument;
    const layer_cache *l = t->cache;
    size_t q_size = (size_t) WINDOW * t->e->n_q_heads * t->e->dim * sizeof(float);
    lava_tensor q = lava_tensor_token_major(LAVA_F32, l->q, q_size, t->e->n_q_heads, t->e->dim);
    lava_tensor k = cache_tensor(t->e, l, l->k), v = cache_tensor(t->e, l, l->v);
    lava_score(t->shape, NULL, &q, &k, &v, NULL, t->part, N_THREADS, t->workspace, t->workspace_size, l->scores,
               &t->error);
    return NULL;
}

/* Scores a layer on N_THREADS threads. */
static void score_layer(const engine *e, const layer_cache *l, const lava_shape *shape, char *workspaces,
                        size_t workspace_size) {
    pthread_t threads[N_THREADS];
    score_task tasks[N_THREADS];
    for (uint32_t part = 0; part < N_THREADS; part++) {
        void *workspace = workspaces + part * workspace_size;
        tasks[part] = (score_task) {e, l, shape, part, workspace, workspace_size, lava_error_init()};
        expect(pthread_create(&threads[part], NULL, score_part, &tasks[part]) == 0, "a thread starts");
    }
    for (uint32_t part = 0; part < N_THREADS; part++) pthread_join(threads[part], NULL);
    for (uint32_t part = 0; part < N_THREADS; part++)
        check(tasks[part].error.status, &tasks[part].error, __FILE__, __LINE__, "lava_score");
}

/*
 * Evicts: kept rows move to the front of the buffer, with ROOM free rows after each head; the rest is given back. The
 * first time that is done in place. Later a head may keep more rows than the last time, so that the heads after it
 * would move away from the front: then the rows go into another buffer.
 */
static void compact_layer(const engine *e, layer_cache *l, const lava_shape *shape) {
    lava_error error = lava_error_init();
    uint32_t *start = allocate(e->n_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < e->n_heads; h++) start[h] = l->cu[h] + h * ROOM;
    size_t n_rows = l->cu[e->n_heads] + (size_t) e->n_heads * ROOM, size = n_rows * e->dim * sizeof(uint16_t);
    int in_place = shape->cu_rows == NULL;
    char *k_new = in_place ? l->k : allocate(size), *v_new = in_place ? l->v : allocate(size);

    lava_tensor k_from = cache_tensor(e, l, l->k), v_from = cache_tensor(e, l, l->v);
    lava_tensor k_to = lava_tensor_ragged(LAVA_F16, k_new, in_place ? l->size : size, start, e->dim);
    lava_tensor v_to = lava_tensor_ragged(LAVA_F16, v_new, in_place ? l->size : size, start, e->dim);
    CHECK(lava_compact(shape, &k_from, &v_from, NULL, l->rows, l->cu, &k_to, &v_to, 0, 1, &error));

    if (in_place) {
        k_new = realloc(k_new, size);
        v_new = realloc(v_new, size);
        expect(k_new != NULL && v_new != NULL, "memory shrinks");
    } else {
        free(l->k);
        free(l->v);
    }
    free(l->start);
    free(l->positions);
    l->k = k_new;
    l->v = v_new;
    l->size = size;
    l->start = start;
    l->positions = allocate(n_rows * sizeof(uint32_t));
    for (uint32_t h = 0; h < e->n_heads; h++) {
        l->n_rows[h] = l->cu[h + 1] - l->cu[h];
        memcpy(l->positions + l->start[h], l->kept + l->cu[h], l->n_rows[h] * sizeof(uint32_t));
    }
}

/* Compresses all layers to `total` prefix entries. Returns the rows that are left. */
static uint64_t compress(const engine *e, layer_cache *layers, const lava_shape *shapes, uint64_t total) {
    lava_error error = lava_error_init();
    uint64_t n_scores = 0, n_rows = 0, n_kept;
    size_t workspace_size = 0, score_size = 0, size;
    for (uint32_t i = 0; i < e->n_layers; i++) {
        CHECK(lava_score_workspace_size(&shapes[i], NULL, &size, &error));
        if (size > score_size) score_size = size;
        CHECK(lava_select_workspace_size(&shapes[i], &size, &error));
        if (size > workspace_size) workspace_size = size;
        n_scores += lava_n_scores(&shapes[i]);
    }
    CHECK(lava_global_entries_workspace_size(shapes, e->n_layers, e->n_layers, &size, &error));
    if (size > workspace_size) workspace_size = size;
    score_size = (score_size + LAVA_WORKSPACE_ALIGN - 1) / LAVA_WORKSPACE_ALIGN * LAVA_WORKSPACE_ALIGN;
    char *score_workspaces = allocate(N_THREADS * score_size);
    void *workspace = allocate(workspace_size);
    float *scores = allocate(n_scores * sizeof(float)), *next = scores;  /* of all layers, one after the other */
    uint64_t *entries = allocate(e->n_layers * sizeof(uint64_t));
    double *head_weights = allocate(e->n_layers * e->n_heads * sizeof(double));

    for (uint32_t i = 0; i < e->n_layers; i++) {
        layers[i].scores = next;
        next += lava_n_scores(&shapes[i]);
        score_layer(e, &layers[i], &shapes[i], score_workspaces, score_size);
    }
    CHECK(lava_global_entries(shapes, e->n_layers, e->n_layers, NULL, scores, total, workspace, workspace_size, entries,
                              head_weights, &error));

    lava_select_params selecting = lava_select_params_default();
    for (uint32_t i = 0; i < e->n_layers; i++) {
        layer_cache *l = &layers[i];
        lava_selection report = lava_selection_init();
        free(l->kept);
        free(l->rows);
        selecting.head_weights = head_weights + i * e->n_heads;
        CHECK(lava_n_kept(&shapes[i], entries[i], &n_kept, &error));
        l->kept = allocate(n_kept * sizeof(uint32_t));
        l->rows = allocate(n_kept * sizeof(uint32_t));
        CHECK(lava_select(&shapes[i], &selecting, l->scores, entries[i], workspace, workspace_size, l->kept, n_kept,
                          l->cu, l->rows, &report, &error));
        compact_layer(e, l, &shapes[i]);
        n_rows += n_kept;
        printf("layer %u: %llu of %llu prefix entries, %.2f%% of the score mass evicted\n", i,
               (unsigned long long) entries[i], (unsigned long long) lava_n_scores(&shapes[i]),
               100 * report.evicted_share);
    }
    free(head_weights);
    free(entries);
    free(scores);
    free(workspace);
    free(score_workspaces);
    return n_rows;
}

/* Whether a query sees a row: for an attention kernel of the engine, with a mask for each KV head. */
static int is_visible(const layer_cache *l, uint32_t h, uint32_t r, uint32_t query, uint32_t sliding) {
    uint32_t position = l->positions[l->start[h] + r];
    return position <= query && (sliding == 0 || position + sliding > query);
}

/*
 * Forgets all tokens from `position` on. Only what came after the last compression can be forgotten: every head holds
 * all of it, at its end. Returns 0, and changes nothing, where the prompt must be prefilled again.
 */
static int roll_back(const engine *e, layer_cache *l, uint32_t position) {
    if (position <= l->kept[l->cu[1] - 1]) return 0;  /* the compressed prompt's last token, which every head keeps */
    for (uint32_t h = 0; h < e->n_heads; h++)
        while (l->positions[l->start[h] + l->n_rows[h] - 1] >= position) l->n_rows[h]--;
    return 1;
}

/* One decode step of one layer: the token's K and V [n_heads, dim] go after every head's rows, then it attends. */
static void decode_step(const engine *e, layer_cache *l, uint32_t layer, uint32_t position, float *q, const char *k_new,
                        const char *v_new, float *out, void *workspace, size_t workspace_size) {
    lava_error error = lava_error_init();
    size_t row = e->dim * sizeof(uint16_t), q_size = (size_t) e->n_q_heads * e->dim * sizeof(float);
    keep_queries(e, l, q, 1);
    for (uint32_t h = 0; h < e->n_heads; h++) {
        expect(l->n_rows[h] < l->cu[h + 1] - l->cu[h] + ROOM, "there is room after the head's rows");
        size_t to = l->start[h] + l->n_rows[h]++;
        memcpy(l->k + to * row, k_new + h * row, row);
        memcpy(l->v + to * row, v_new + h * row, row);
        l->positions[to] = position;
    }
    lava_shape shape = layer_shape(e, layer);
    lava_tensor query = lava_tensor_token_major(LAVA_F32, q, q_size, e->n_q_heads, e->dim);
    lava_tensor result = lava_tensor_token_major(LAVA_F32, out, q_size, e->n_q_heads, e->dim);
    lava_tensor k = cache_tensor(e, l, l->k), v = cache_tensor(e, l, l->v);
    CHECK(lava_attend(&shape, NULL, 1, &query, &k, &v, l->n_rows, &result, NULL, 0, 1, workspace, workspace_size,
                      &error));
}

static void prefill(const engine *e, layer_cache *l, const capture *c, uint32_t prompt, uint32_t layer) {
    capture_layer in = capture_get(c, prompt, layer, c->n_queries);
    size_t row = e->dim * sizeof(uint16_t), q_row = (size_t) e->n_q_heads * e->dim;
    for (uint32_t h = 0; h < e->n_heads; h++) {
        for (uint32_t i = 0; i < e->n_tokens; i++) {
            size_t from = ((size_t) i * e->n_heads + h) * row, to = ((size_t) l->start[h] + i) * row;
            memcpy(l->k + to, (char *) in.k.data + from, row);
            memcpy(l->v + to, (char *) in.v.data + from, row);
        }
        l->n_rows[h] = e->n_tokens;
    }
    for (uint32_t i = 0; i < c->n_queries; i += CHUNK)
        keep_queries(e, l, (float *) in.q.data + i * q_row, c->n_queries - i < CHUNK ? c->n_queries - i : CHUNK);
    expect(memcmp(l->q, (float *) in.q.data + (c->n_queries - WINDOW) * q_row, WINDOW * q_row * sizeof(float)) == 0,
           "the last queries are kept");
}

/* Every row is the row of the token at its position: of the prompt, or of what was decoded after it. */
static void expect_rows(const engine *e, const layer_cache *l, const capture_layer *in) {
    size_t row = e->dim * sizeof(uint16_t);
    for (uint32_t h = 0; h < e->n_heads; h++) {
        for (uint32_t r = 0; r < l->n_rows[h]; r++) {
            uint32_t position = l->positions[l->start[h] + r];
            const lava_tensor *k = position < in->n_tokens ? &in->k : &in->k_next;
            uint32_t token = position < in->n_tokens ? position : position - in->n_tokens;
            expect(r == 0 || position > l->positions[l->start[h] + r - 1], "positions ascend");
            const char *own = l->k + (l->start[h] + (size_t) r) * row;
            expect(memcmp(own, (char *) k->data + ((size_t) token * e->n_heads + h) * row, row) == 0,
                   "a row is the token's of its position");
        }
    }
}

int main(void) {
    const uint32_t prompt = 0;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    uint32_t *sliding = allocate(c.n_layers * sizeof(uint32_t));
    memset(sliding, 0, c.n_layers * sizeof(uint32_t));
    const uint32_t n_prompt = capture_get(&c, prompt, 0, WINDOW).n_tokens;
    engine e = {c.n_layers, c.n_q_heads, c.n_kv_heads, c.head_dim, sliding, n_prompt, 0};
    e.capacity = e.n_tokens + ROOM;
    layer_cache *layers = allocate(e.n_layers * sizeof(*layers));
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        memset(l, 0, sizeof(*l));
        l->size = (size_t) e.n_heads * e.capacity * e.dim * sizeof(uint16_t);
        l->k = allocate(l->size);
        l->v = allocate(l->size);
        l->q = allocate((size_t) WINDOW * e.n_q_heads * e.dim * sizeof(float));
        l->cu = allocate((e.n_heads + 1) * sizeof(uint32_t));
        l->start = allocate(e.n_heads * sizeof(uint32_t));
        l->n_rows = allocate(e.n_heads * sizeof(uint32_t));
        for (uint32_t h = 0; h < e.n_heads; h++) l->start[h] = h * e.capacity;
        memset(l->q, 0, (size_t) WINDOW * e.n_q_heads * e.dim * sizeof(float));
        prefill(&e, l, &c, prompt, i);
    }
    size_t before = 2 * e.n_layers * layers[0].size;

    /* How much is kept. */
    lava_shape *shapes = allocate(e.n_layers * sizeof(*shapes));
    for (uint32_t i = 0; i < e.n_layers; i++) shapes[i] = layer_shape(&e, i);
    uint32_t budget;  /* tokens per KV head, on average, window included */
    uint64_t total;   /* prefix entries, over all layers and heads */
    CHECK(lava_budget_from_ratio(&shapes[0], NULL, 0.2, &budget, &error));
    CHECK(lava_total_entries(shapes, e.n_layers, e.n_layers, budget, &total, &error));

    uint64_t n_rows = compress(&e, layers, shapes, total);
    size_t after = 2 * (n_rows + (size_t) e.n_layers * e.n_heads * ROOM) * e.dim * sizeof(uint16_t);
    printf("K and V: %zu bytes before, %zu after, room for %d more tokens included\n", before, after, ROOM);
    expect(after * 3 < before, "memory is freed");

    /* Decode on, roll back, decode the same again: the same. */
    size_t attend_size;
    CHECK(lava_attend_workspace_size(&shapes[0], 1, &attend_size, &error));
    void *attend_workspace = allocate(attend_size);
    size_t step = (size_t) e.n_q_heads * e.dim, kv_row = e.n_heads * e.dim * sizeof(uint16_t);
    float *out = allocate(step * sizeof(float)), *again = allocate(step * sizeof(float));
    uint32_t n_new = c.n_next < ROOM ? c.n_next : ROOM;
    expect(n_new >= 3, "there are tokens to decode");
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        capture_layer in = capture_get(&c, prompt, i, WINDOW);
        for (uint32_t t = 0; t < 3; t++)
            decode_step(&e, l, i, n_prompt + t, (float *) in.q_next.data + t * step,
                        (char *) in.k_next.data + t * kv_row, (char *) in.v_next.data + t * kv_row, out,
                        attend_workspace, attend_size);
        for (uint32_t h = 0; h < e.n_heads; h++) {
            uint32_t last = l->n_rows[h] - 1, query = n_prompt + 2;
            expect(l->positions[l->start[h] + last] == query, "the last row is the last token's");
            expect(is_visible(l, h, last, query, 1), "a token sees itself");
            expect(is_visible(l, h, 0, query, 0) && !is_visible(l, h, 0, query, 3), "and all without a sliding window");
            expect(!is_visible(l, h, last, query - 1, 0), "but not ahead");
        }
        expect(!roll_back(&e, l, n_prompt - 1), "into the compressed prompt there is no way back");
        expect_rows(&e, l, &in);
        expect(roll_back(&e, l, n_prompt), "decoded tokens can be forgotten");
        for (uint32_t t = 0; t < n_new; t++) {
            decode_step(&e, l, i, n_prompt + t, (float *) in.q_next.data + t * step,
                        (char *) in.k_next.data + t * kv_row, (char *) in.v_next.data + t * kv_row, again,
                        attend_workspace, attend_size);
            if (t == 2) expect(memcmp(out, again, step * sizeof(float)) == 0, "rolled back and decoded again");
        }
        for (size_t d = 0; d < step; d++) expect(isfinite(out[d]), "attention's output is finite");
        expect_rows(&e, l, &in);
    }
    e.n_tokens += n_new;
    printf("decoded 3 tokens, rolled back, decoded them again: the same bits\n");

    /* Compress again, to as many entries as before. */
    uint32_t *cu_rows = allocate(e.n_layers * (e.n_heads + 1) * sizeof(uint32_t));
    uint64_t n_now = n_rows + (uint64_t) e.n_layers * e.n_heads * n_new;
    uint32_t *positions = allocate(n_now * sizeof(uint32_t)), *next = positions;
    for (uint32_t i = 0; i < e.n_layers; i++) {
        shapes[i] = ragged_shape(&e, &layers[i], i, cu_rows + i * (e.n_heads + 1), next);
        next += shapes[i].cu_rows[e.n_heads];
    }
    expect(compress(&e, layers, shapes, total) == n_rows, "as many rows are left as after the first compression");
    for (uint32_t i = 0; i < e.n_layers; i++) {
        capture_layer in = capture_get(&c, prompt, i, WINDOW);
        expect_rows(&e, &layers[i], &in);
    }
    printf("compressed again, the decoded tokens included: as many rows as before\n");

    free(positions);
    free(cu_rows);
    free(again);
    free(out);
    free(attend_workspace);
    free(shapes);
    for (uint32_t i = 0; i < e.n_layers; i++) {
        free(layers[i].rows);
        free(layers[i].kept);
        free(layers[i].n_rows);
        free(layers[i].positions);
        free(layers[i].start);
        free(layers[i].cu);
        free(layers[i].q);
        free(layers[i].v);
        free(layers[i].k);
    }
    free(layers);
    free(sliding);
    capture_close(&c);
    return 0;
}
