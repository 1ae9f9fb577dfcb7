/*
 * The library starts no threads; it splits work for the engine's own. lava_score, lava_compact and lava_attend take
 * (part, n_parts) and do that share of the KV heads; calls for different layers are independent as well. However it is
 * split, the results are the same bits.
 *
 * Here: all layers of a prompt, scored, selected and compacted by 1, 2, 3 and 5 threads.
 */
#include "capture.h"

#include <pthread.h>  /* POSIX: also in mingw-w64, not in MSVC */

enum { WINDOW = 32, MAX_THREADS = 5 };

/* What all threads see. Inputs are shared; each writes its own parts of the outputs. */
typedef struct {
    uint32_t n_layers, n_heads, dim, n_parts;
    capture_layer *in;
    lava_shape *shapes;
    uint64_t n_entries, n_kept;  /* of each layer: all get the same, so that the buffers are simple */
    size_t n_scores, row, score_size, select_size;
    float *scores;    /* [n_layers, n_scores] */
    uint32_t *kept;   /* [n_layers, n_kept] */
    uint32_t *cu;     /* [n_layers, n_heads + 1] */
    char *k, *v;      /* [n_layers, n_kept] rows */
} work;

typedef struct {
    work *w;
    uint32_t part;
    void *workspace;  /* one for each thread */
} worker;

/* Splits every layer by KV heads. */
static void *score(void *argument) {
    worker *me = argument;
    work *w = me->w;
    lava_error error = lava_error_init();
    for (uint32_t l = 0; l < w->n_layers; l++)
        CHECK(lava_score(&w->shapes[l], NULL, &w->in[l].q, &w->in[l].k, &w->in[l].v, NULL, me->part, w->n_parts,
                         me->workspace, w->score_size, w->scores + l * w->n_scores, &error));
    return NULL;
}

/* One call per layer: threads take layers in turn. */
static void *select_rows(void *argument) {
    worker *me = argument;
    work *w = me->w;
    lava_error error = lava_error_init();
    for (uint32_t l = me->part; l < w->n_layers; l += w->n_parts)
        CHECK(lava_select(&w->shapes[l], NULL, w->scores + l * w->n_scores, w->n_entries, me->workspace, w->select_size,
                          w->kept + l * w->n_kept, w->n_kept, w->cu + l * (w->n_heads + 1), NULL, NULL, &error));
    return NULL;
}

static void *compact(void *argument) {
    worker *me = argument;
    work *w = me->w;
    lava_error error = lava_error_init();
    for (uint32_t l = 0; l < w->n_layers; l++) {
        size_t size = w->n_kept * w->row;
        const uint32_t *cu = w->cu + l * (w->n_heads + 1);
        lava_tensor k = lava_tensor_ragged(LAVA_F16, w->k + l * size, size, cu, w->dim);
        lava_tensor v = lava_tensor_ragged(LAVA_F16, w->v + l * size, size, cu, w->dim);
        CHECK(lava_compact(&w->shapes[l], &w->in[l].k, &w->in[l].v, NULL, w->kept + l * w->n_kept, cu, &k, &v, me->part,
                           w->n_parts, &error));
    }
    return NULL;
}

/* Runs a stage on n_parts threads and waits for all: the next stage needs all parts of this one. */
static void run(work *w, void *(*stage)(void *)) {
    pthread_t threads[MAX_THREADS];
    worker workers[MAX_THREADS];
    size_t size = w->score_size > w->select_size ? w->score_size : w->select_size;
    for (uint32_t part = 0; part < w->n_parts; part++) {
        workers[part] = (worker) {w, part, allocate(size)};
        expect(pthread_create(&threads[part], NULL, stage, &workers[part]) == 0, "a thread starts");
    }
    for (uint32_t part = 0; part < w->n_parts; part++) {
        expect(pthread_join(threads[part], NULL) == 0, "a thread ends");
        free(workers[part].workspace);
    }
}

static void give_outputs(work *w) {
    size_t rows = w->n_layers * w->n_kept;
    w->scores = allocate(w->n_layers * w->n_scores * sizeof(float));
    w->kept = allocate(rows * sizeof(uint32_t));
    w->cu = allocate((size_t) w->n_layers * (w->n_heads + 1) * sizeof(uint32_t));
    w->k = allocate(rows * w->row);
    w->v = allocate(rows * w->row);
}

static void free_outputs(work *w) {
    free(w->v);
    free(w->k);
    free(w->cu);
    free(w->kept);
    free(w->scores);
}

int main(void) {
    static const uint32_t n_threads[] = {1, 2, 3, MAX_THREADS};
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    work one = {.n_layers = c.n_layers, .n_heads = c.n_kv_heads, .dim = c.head_dim};
    one.row = c.head_dim * sizeof(uint16_t);
    one.in = allocate(c.n_layers * sizeof(*one.in));
    one.shapes = allocate(c.n_layers * sizeof(*one.shapes));
    for (uint32_t l = 0; l < c.n_layers; l++) {
        one.in[l] = capture_get(&c, 0, l, WINDOW);
        one.shapes[l] = capture_shape(&c, &one.in[l], l, WINDOW);
    }
    uint32_t budget;
    CHECK(lava_budget_from_ratio(&one.shapes[0], NULL, 0.2, &budget, &error));
    CHECK(lava_total_entries(&one.shapes[0], 1, 1, budget, &one.n_entries, &error));
    CHECK(lava_n_kept(&one.shapes[0], one.n_entries, &one.n_kept, &error));
    CHECK(lava_score_workspace_size(&one.shapes[0], NULL, &one.score_size, &error));
    CHECK(lava_select_workspace_size(&one.shapes[0], &one.select_size, &error));
    one.n_scores = lava_n_scores(&one.shapes[0]);

    for (size_t i = 0; i < sizeof(n_threads) / sizeof(n_threads[0]); i++) {
        work many = one;
        many.n_parts = n_threads[i];
        give_outputs(&many);
        run(&many, score);
        run(&many, select_rows);
        run(&many, compact);
        if (i == 0) {
            one = many;
        } else {
            size_t rows = one.n_layers * one.n_kept;
            size_t scores = one.n_layers * one.n_scores, counts = (size_t) one.n_layers * (one.n_heads + 1);
            expect(memcmp(many.scores, one.scores, scores * sizeof(float)) == 0, "scores are the same bits");
            expect(memcmp(many.kept, one.kept, rows * sizeof(uint32_t)) == 0, "the same tokens are kept");
            expect(memcmp(many.cu, one.cu, counts * sizeof(uint32_t)) == 0, "the same number for each head");
            expect(memcmp(many.k, one.k, rows * one.row) == 0 && memcmp(many.v, one.v, rows * one.row) == 0,
                   "K and V are the same bytes");
            free_outputs(&many);
        }
        printf("%u thread%s, %u layers of %u KV heads: %s\n", n_threads[i], n_threads[i] == 1 ? "" : "s", one.n_layers,
               one.n_heads, i == 0 ? "done" : "the same bits");
    }
    free_outputs(&one);
    free(one.shapes);
    free(one.in);
    capture_close(&c);
    return 0;
}
