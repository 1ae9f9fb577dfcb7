/*
 * One set of inputs, several threads, no locks: each scores the whole layer, selects, and attends, all at the same time, from the
 * same Q, K, V, shape, parameters and tensors, and one cascade's layer is read by all. For ThreadSanitizer and helgrind; by
 * itself it checks that all threads get the same bits.
 */
#include <lava.h>

#include <pthread.h>  /* POSIX: also in mingw-w64, not in MSVC */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "line %d: %s\n", __LINE__, #condition); exit(1); } } while (0)

enum { TOKENS = 300, WINDOW = 8, Q_HEADS = 4, HEADS = 2, DIM = 32, ENTRIES = 100, THREADS = 4, ROUNDS = 10 };
enum { PREFIX = TOKENS - WINDOW, KEPT = ENTRIES + HEADS * WINDOW };

/* Shared, only read. */
static lava_shape shape;
static lava_score_params score_params;
static lava_select_params select_params;
static lava_attend_params attend_params;
static float q[WINDOW * Q_HEADS * DIM], k[TOKENS * HEADS * DIM], v[TOKENS * HEADS * DIM];
static lava_tensor tq, tk, tv;
static uint32_t n_rows[HEADS] = {TOKENS, TOKENS};
static lava_cascade_layer layer;

/* What a thread writes: its own. */
typedef struct {
    float scores[HEADS * PREFIX], out[WINDOW * Q_HEADS * DIM];
    uint32_t kept[KEPT], cu[HEADS + 1];
    uint64_t sum;
} results;

static void *work(void *argument) {
    results *mine = argument;
    size_t score_size, select_size, attend_size;
    CHECK(lava_score_workspace_size(&shape, &score_params, &score_size, NULL) == LAVA_OK);
    CHECK(lava_select_workspace_size(&shape, &select_size, NULL) == LAVA_OK);
    CHECK(lava_attend_workspace_size(&shape, WINDOW, &attend_size, NULL) == LAVA_OK);
    size_t size = score_size > select_size ? score_size : select_size;
    if (attend_size > size) size = attend_size;
    void *workspace = malloc(size);
    CHECK(workspace != NULL);
    lava_tensor to = lava_tensor_token_major(LAVA_F32, mine->out, sizeof(mine->out), Q_HEADS, DIM);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(lava_score(&shape, &score_params, &tq, &tk, &tv, NULL, 0, 1, workspace, size, mine->scores, NULL) == LAVA_OK);
        CHECK(lava_select(&shape, &select_params, mine->scores, ENTRIES, workspace, size, mine->kept, KEPT, mine->cu, NULL, NULL,
                          NULL) == LAVA_OK);
        CHECK(lava_attend(&shape, &attend_params, WINDOW, &tq, &tk, &tv, n_rows, &to, NULL, 0, 1, workspace, size, NULL) ==
              LAVA_OK);
        for (uint32_t r = 0; r < layer.cu_kept[HEADS]; r++) mine->sum += layer.kept_indices[r] + layer.rows[r];
        CHECK(strlen(lava_backend_name(LAVA_BACKEND_BEST)) > 0);
    }
    free(workspace);
    return NULL;
}

static void fill(float *x, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float) (seed >> 24) / 64.0f - 2.0f;
    }
}

int main(void) {
    shape = lava_shape_init(TOKENS, Q_HEADS, HEADS, DIM, DIM, WINDOW);
    score_params = lava_score_params_default();
    select_params = lava_select_params_default();
    attend_params = lava_attend_params_default();
    fill(q, sizeof(q) / 4, 1), fill(k, sizeof(k) / 4, 2), fill(v, sizeof(v) / 4, 3);
    tq = lava_tensor_token_major(LAVA_F32, q, sizeof(q), Q_HEADS, DIM);
    tk = lava_tensor_token_major(LAVA_F32, k, sizeof(k), HEADS, DIM);
    tv = lava_tensor_token_major(LAVA_F32, v, sizeof(v), HEADS, DIM);

    size_t size;
    static float flat[HEADS * PREFIX];
    fill(flat, HEADS * PREFIX, 4);
    for (int i = 0; i < HEADS * PREFIX; i++) flat[i] += 2;
    CHECK(lava_cascade_state_size(&shape, 1, 1, ENTRIES, &select_params, NULL, &size, NULL) == LAVA_OK);
    void *state = malloc(size);
    CHECK(lava_cascade_init(&shape, 1, 1, ENTRIES, &select_params, NULL, state, size, NULL) == LAVA_OK);
    CHECK(lava_cascade_push(state, size, &shape, flat, NULL, NULL) == LAVA_OK);
    layer = lava_cascade_layer_init();
    CHECK(lava_cascade_get(state, size, 0, &layer, NULL) == LAVA_OK);

    static results all[THREADS];
    pthread_t threads[THREADS];
    for (int t = 0; t < THREADS; t++) CHECK(pthread_create(&threads[t], NULL, work, &all[t]) == 0);
    for (int t = 0; t < THREADS; t++) CHECK(pthread_join(threads[t], NULL) == 0);
    for (int t = 1; t < THREADS; t++) CHECK(memcmp(&all[t], &all[0], sizeof(results)) == 0);
    free(state);
    printf("%d threads, one set of inputs: the same bits\n", THREADS);
    return 0;
}
