/*
 * The code of include/GUIDE.md, "Put LAVa into your engine", as one program: a toy engine with a head-major cache,
 * which prefills a prompt in chunks, compresses all layers in place, gives the memory back, decodes on, rolls back, and
 * compresses again. A test checks that the guide's blocks are here.
 */
#include "capture.h"

#include <math.h>
#include <pthread.h>  /* POSIX: also in mingw-w64, not in MSVC */

enum { WINDOW = 32, CHUNK = 48, N_THREADS = 2, ROOM = 16, DRAFT = 3 };

typedef struct {
    uint32_t n_layers, n_q_heads, n_heads, dim;
    uint32_t n_tokens;        /* so far: the next token's position */
    const uint32_t *sliding;  /* each layer's sliding window, or 0 */
} engine;

/* What the engine holds for one layer. */
typedef struct {
    char *k, *v;             /* f16, head h's rows from row start[h] on */
    size_t size;             /* bytes of each */
    uint32_t *start;         /* each head's first row in the buffer */
    uint32_t *n_rows;        /* rows that each head holds */
    uint32_t *positions;     /* the position of each row, at the row's place */
    float *q;                /* f32 [WINDOW, n_q_heads, dim]: the last queries */
    float *scores;           /* where lava_score leaves them */
    uint32_t *kept, *rows;   /* kept_indices, and which rows those were */
    uint32_t *cu;            /* cu_kept */
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
    void *workspace;  /* each thread's own */
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
        void *own = workspaces + part * workspace_size;
        tasks[part] = (score_task) {e, l, shape, part, own, workspace_size, lava_error_init()};
        expect(pthread_create(&threads[part], NULL, score_part, &tasks[part]) == 0, "a thread starts");
    }
    for (uint32_t part = 0; part < N_THREADS; part++) pthread_join(threads[part], NULL);
    for (uint32_t part = 0; part < N_THREADS; part++)
        check(tasks[part].error.status, &tasks[part].error, __FILE__, __LINE__, "lava_score");
}

/*
 * Evicts: each head's kept rows, with ROOM free rows after them. In place they move to the front of the buffer, and its
 * end is given back; else they go to a buffer of just that size.
 */
static void compact_layer(const engine *e, layer_cache *l, const lava_shape *shape, int in_place) {
    lava_error error = lava_error_init();
    uint32_t n_rows = l->cu[e->n_heads] + e->n_heads * ROOM;
    size_t size = (size_t) n_rows * e->dim * sizeof(uint16_t);
    uint32_t *start = allocate(e->n_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < e->n_heads; h++) start[h] = l->cu[h] + h * ROOM;
    char *k_new = in_place ? l->k : allocate(size), *v_new = in_place ? l->v : allocate(size);

    lava_tensor k_from = cache_tensor(e, l, l->k), v_from = cache_tensor(e, l, l->v);
    lava_tensor k_to = lava_tensor_ragged(LAVA_F16, k_new, in_place ? l->size : size, start, e->dim);
    lava_tensor v_to = lava_tensor_ragged(LAVA_F16, v_new, in_place ? l->size : size, start, e->dim);
    CHECK(lava_compact(shape, &k_from, &v_from, NULL, l->rows, l->cu, &k_to, &v_to, 0, 1, &error));

    if (in_place) {
        k_new = realloc(l->k, size);
        v_new = realloc(l->v, size);
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

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* Compresses all layers to `total` prefix entries. */
static void compress(const engine *e, layer_cache *layers, const lava_shape *shapes, uint64_t total, int in_place) {
    lava_error error = lava_error_init();
    size_t score_size = 0, workspace_size, size;
    uint64_t n_scores = 0;
    CHECK(lava_global_entries_workspace_size(shapes, e->n_layers, e->n_layers, &workspace_size, &error));
    for (uint32_t i = 0; i < e->n_layers; i++) {
        CHECK(lava_score_workspace_size(&shapes[i], NULL, &size, &error));
        score_size = max_size(score_size, size);
        CHECK(lava_select_workspace_size(&shapes[i], &size, &error));
        workspace_size = max_size(workspace_size, size);
        n_scores += lava_n_scores(&shapes[i]);
    }
    score_size = (score_size + LAVA_WORKSPACE_ALIGN - 1) / LAVA_WORKSPACE_ALIGN * LAVA_WORKSPACE_ALIGN;
    char *score_workspaces = allocate(N_THREADS * score_size);
    void *workspace = allocate(workspace_size);

    /* Scores, one layer after the other, and from them what each layer and each of its heads may keep. */
    float *scores = allocate(n_scores * sizeof(float)), *next = scores;
    for (uint32_t i = 0; i < e->n_layers; i++) {
        layers[i].scores = next;
        next += lava_n_scores(&shapes[i]);
        score_layer(e, &layers[i], &shapes[i], score_workspaces, score_size);
    }
    uint64_t *entries = allocate(e->n_layers * sizeof(uint64_t));
    double *head_weights = allocate((size_t) e->n_layers * e->n_heads * sizeof(double));
    CHECK(lava_global_entries(shapes, e->n_layers, e->n_layers, NULL, scores, total, workspace, workspace_size, entries,
                              head_weights, &error));

    /* What each head keeps. */
    lava_select_params selecting = lava_select_params_default();
    for (uint32_t i = 0; i < e->n_layers; i++) {
        layer_cache *l = &layers[i];
        uint64_t n_kept;
        lava_selection report = lava_selection_init();
        free(l->kept);
        free(l->rows);
        selecting.head_weights = head_weights + i * e->n_heads;
        CHECK(lava_n_kept(&shapes[i], entries[i], &n_kept, &error));
        l->kept = allocate(n_kept * sizeof(uint32_t));
        l->rows = allocate(n_kept * sizeof(uint32_t));
        CHECK(lava_select(&shapes[i], &selecting, l->scores, entries[i], workspace, workspace_size, l->kept, n_kept,
                          l->cu, l->rows, &report, &error));
        compact_layer(e, l, &shapes[i], in_place);
        printf("  layer %u: %4llu of %4llu prefix entries, %5.2f%% of the score mass evicted\n", i,
               (unsigned long long) entries[i], (unsigned long long) lava_n_scores(&shapes[i]),
               100 * report.evicted_share);
        l->scores = NULL;
    }
    free(head_weights);
    free(entries);
    free(scores);
    free(workspace);
    free(score_workspaces);
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
                        const char *v_new, float *out) {
    lava_error error = lava_error_init();
    size_t row = e->dim * sizeof(uint16_t), q_size = (size_t) e->n_q_heads * e->dim * sizeof(float), workspace_size;
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
    CHECK(lava_attend_workspace_size(&shape, 1, &workspace_size, &error));
    void *workspace = allocate(workspace_size);
    lava_tensor k = cache_tensor(e, l, l->k), v = cache_tensor(e, l, l->v);
    CHECK(lava_attend(&shape, NULL, 1, &query, &k, &v, l->n_rows, &result, NULL, 0, 1, workspace, workspace_size,
                      &error));
    free(workspace);
}

/* A head-major cache [n_heads, capacity, dim] with the prompt in it, and the prompt's last queries, chunk by chunk. */
static void prefill(const engine *e, layer_cache *l, const capture *c, uint32_t prompt, uint32_t layer) {
    capture_layer in = capture_get(c, prompt, layer, c->n_queries);
    uint32_t capacity = e->n_tokens + ROOM;
    size_t row = e->dim * sizeof(uint16_t), q_row = (size_t) e->n_q_heads * e->dim;
    l->size = e->n_heads * capacity * row;
    l->k = allocate(l->size);
    l->v = allocate(l->size);
    l->start = allocate(e->n_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < e->n_heads; h++) {
        l->start[h] = h * capacity;
        for (uint32_t i = 0; i < e->n_tokens; i++) {
            size_t from = ((size_t) i * e->n_heads + h) * row, to = (l->start[h] + i) * row;
            memcpy(l->k + to, (char *) in.k.data + from, row);
            memcpy(l->v + to, (char *) in.v.data + from, row);
        }
    }
    l->n_rows = allocate(e->n_heads * sizeof(uint32_t));
    l->cu = allocate((e->n_heads + 1) * sizeof(uint32_t));
    l->q = allocate(WINDOW * q_row * sizeof(float));
    memset(l->q, 0, WINDOW * q_row * sizeof(float));
    for (uint32_t i = 0; i < c->n_queries; i += CHUNK)
        keep_queries(e, l, (float *) in.q.data + i * q_row, c->n_queries - i < CHUNK ? c->n_queries - i : CHUNK);
    expect(memcmp(l->q, (float *) in.q.data + (c->n_queries - WINDOW) * q_row, WINDOW * q_row * sizeof(float)) == 0,
           "the last queries are kept");
}

/* Each row is that of the token at its position, of the prompt or decoded. */
static void check_rows(const engine *e, const layer_cache *l, const capture_layer *in) {
    size_t row = e->dim * sizeof(uint16_t);
    for (uint32_t h = 0; h < e->n_heads; h++) {
        for (uint32_t r = 0; r < l->n_rows[h]; r++) {
            size_t at = l->start[h] + r;
            uint32_t position = l->positions[at], is_new = position >= in->n_tokens;
            size_t token = ((size_t) (is_new ? position - in->n_tokens : position) * e->n_heads + h) * row;
            const char *k = is_new ? in->k_next.data : in->k.data, *v = is_new ? in->v_next.data : in->v.data;
            expect(memcmp(l->k + at * row, k + token, row) == 0 && memcmp(l->v + at * row, v + token, row) == 0,
                   "a row is that of the token at its position");
        }
    }
}

static size_t bytes_held(const engine *e, const layer_cache *layers) {
    size_t sum = 0;
    for (uint32_t i = 0; i < e->n_layers; i++) sum += 2 * layers[i].size;
    return sum;
}

int main(void) {
    const uint32_t prompt = 0;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    uint32_t *sliding = allocate(c.n_layers * sizeof(uint32_t));
    memset(sliding, 0, c.n_layers * sizeof(uint32_t));  /* this model has none */
    uint32_t n_prompt = capture_get(&c, prompt, 0, WINDOW).n_tokens;
    engine e = {c.n_layers, c.n_q_heads, c.n_kv_heads, c.head_dim, n_prompt, sliding};
    layer_cache *layers = allocate(e.n_layers * sizeof(*layers));
    memset(layers, 0, e.n_layers * sizeof(*layers));
    lava_shape *shapes = allocate(e.n_layers * sizeof(*shapes));
    for (uint32_t i = 0; i < e.n_layers; i++) {
        prefill(&e, &layers[i], &c, prompt, i);
        shapes[i] = layer_shape(&e, i);
    }

    /* How much is kept. */
    uint32_t budget;  /* tokens per KV head, on average, window included */
    uint64_t total;   /* prefix entries, over all layers and heads */
    CHECK(lava_budget_from_ratio(&shapes[0], NULL, 0.2, &budget, &error));
    CHECK(lava_total_entries(shapes, e.n_layers, e.n_layers, budget, &total, &error));

    /* After prefill. */
    printf("%u tokens, %u are kept per KV head on average:\n", e.n_tokens, budget);
    size_t before = bytes_held(&e, layers);
    compress(&e, layers, shapes, total, 1);
    size_t after = bytes_held(&e, layers);
    printf("K and V: %zu bytes before, %zu after, with room for %d more tokens\n", before, after, ROOM);
    expect(after * 3 < before, "memory is freed");

    /* Decode a draft, roll it back, decode the same again: the same. */
    size_t step = (size_t) e.n_q_heads * e.dim, kv_row = e.n_heads * e.dim * sizeof(uint16_t);
    uint32_t n_new = c.n_next - DRAFT;  /* tokens before compressing again; the last ones come after it */
    float *out = allocate(step * sizeof(float)), *again = allocate(step * sizeof(float));
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        capture_layer in = capture_get(&c, prompt, i, WINDOW);
        float *q = in.q_next.data;
        char *k = in.k_next.data, *v = in.v_next.data;
        check_rows(&e, l, &in);
        for (uint32_t t = 0; t < DRAFT; t++)
            decode_step(&e, l, i, n_prompt + t, q + t * step, k + t * kv_row, v + t * kv_row, out);
        for (uint32_t h = 0; h < e.n_heads; h++) {
            uint32_t last = l->n_rows[h] - 1, query = n_prompt + DRAFT - 1;
            expect(is_visible(l, h, last, query, 1), "a token sees itself");
            expect(!is_visible(l, h, last, query - 1, 0), "but not the tokens after it");
            expect(is_visible(l, h, 0, query, 0) && !is_visible(l, h, 0, query, DRAFT), "a sliding window ends");
        }
        expect(!roll_back(&e, l, n_prompt - 1), "the prompt's last token, by which entries were chosen, cannot be forgotten");
        expect(roll_back(&e, l, n_prompt), "a draft can be forgotten");
        for (uint32_t t = 0; t < DRAFT; t++)
            decode_step(&e, l, i, n_prompt + t, q + t * step, k + t * kv_row, v + t * kv_row, again);
        expect(memcmp(out, again, step * sizeof(float)) == 0, "rolled back and decoded again");

        /* It is accepted, so its queries are kept, and decoding goes on. */
        keep_queries(&e, l, q, DRAFT);
        for (uint32_t t = DRAFT; t < n_new; t++) {
            decode_step(&e, l, i, n_prompt + t, q + t * step, k + t * kv_row, v + t * kv_row, out);
            keep_queries(&e, l, q + t * step, 1);
        }
    }
    printf("decoded %d tokens, rolled back, decoded them again: the same bits\n", DRAFT);

    /* The memory is nearly full: compress again, to the same size. */
    e.n_tokens = n_prompt + n_new;
    uint32_t **cu_rows = allocate(e.n_layers * sizeof(*cu_rows));
    uint32_t **positions = allocate(e.n_layers * sizeof(*positions));
    for (uint32_t i = 0; i < e.n_layers; i++) {
        size_t n_room = layers[i].size / (e.dim * sizeof(uint16_t));
        cu_rows[i] = allocate((e.n_heads + 1) * sizeof(uint32_t));
        positions[i] = allocate(n_room * sizeof(uint32_t));
        shapes[i] = ragged_shape(&e, &layers[i], i, cu_rows[i], positions[i]);
    }
    printf("%u tokens by now, compressed again:\n", e.n_tokens);
    compress(&e, layers, shapes, total, 0);
    expect(bytes_held(&e, layers) == after, "as many bytes as after the first time");
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        capture_layer in = capture_get(&c, prompt, i, WINDOW);
        float *q = in.q_next.data;
        char *k = in.k_next.data, *v = in.v_next.data;
        for (uint32_t t = n_new; t < c.n_next; t++)
            decode_step(&e, l, i, n_prompt + t, q + t * step, k + t * kv_row, v + t * kv_row, out);
        check_rows(&e, l, &in);
        for (size_t d = 0; d < step; d++) expect(isfinite(out[d]), "attention's output is finite");
    }
    printf("and decoded on: %u tokens\n", n_prompt + c.n_next);

    free(again);
    free(out);
    for (uint32_t i = 0; i < e.n_layers; i++) {
        layer_cache *l = &layers[i];
        free(positions[i]);
        free(cu_rows[i]);
        free(l->rows);
        free(l->kept);
        free(l->cu);
        free(l->q);
        free(l->positions);
        free(l->n_rows);
        free(l->start);
        free(l->v);
        free(l->k);
    }
    free(positions);
    free(cu_rows);
    free(shapes);
    free(layers);
    free(sliding);
    capture_close(&c);
    return 0;
}
