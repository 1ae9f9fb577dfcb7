/*
 * Mistakes of a caller that a sanitizer must see inside the library: `overread` gives lava_entropy one score too few, `unwritten`
 * gives it all, the last of them never written, `race` gives two threads one workspace. If these run without a finding, the library is not
 * instrumented. `negative` makes a mistake that is found before the call: a length below zero.
 */
#include <lava.h>

#include <pthread.h>  /* POSIX: also in mingw-w64, not in MSVC */
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 4000, WINDOW = 4, DIM = 16 };

static float q[WINDOW * DIM], k[TOKENS * DIM], v[TOKENS * DIM];
static void *workspace;
static size_t size;

static void *score(void *scores) {
    const lava_shape shape = lava_shape_init(TOKENS, 1, 1, DIM, DIM, WINDOW);
    const lava_score_params params = lava_score_params_lava();
    const lava_tensor tq = lava_tensor_token_major(LAVA_F32, q, sizeof(q), 1, DIM);
    const lava_tensor tk = lava_tensor_token_major(LAVA_F32, k, sizeof(k), 1, DIM);
    const lava_tensor tv = lava_tensor_token_major(LAVA_F32, v, sizeof(v), 1, DIM);
    lava_score(&shape, &params, &tq, &tk, &tv, NULL, 0, 1, workspace, size, scores, NULL);
    return NULL;
}

static int race(void) {
    const lava_shape shape = lava_shape_init(TOKENS, 1, 1, DIM, DIM, WINDOW);
    const lava_score_params params = lava_score_params_lava();
    static float scores[2][TOKENS];
    pthread_t threads[2];
    if (lava_score_workspace_size(&shape, &params, &size, NULL) != LAVA_OK || (workspace = malloc(size)) == NULL) return 1;
    for (int t = 0; t < 2; t++) pthread_create(&threads[t], NULL, score, scores[t]);
    for (int t = 0; t < 2; t++) pthread_join(threads[t], NULL);
    free(workspace);
    return 0;
}

/* The first `n` scores exist, the first `written` of them hold something; lava_entropy is told that all of them do. */
static int too_few(size_t n, size_t written) {
    const lava_shape shape = lava_shape_init(100, 1, 1, DIM, DIM, WINDOW);
    double entropy = 0;
    float *scores = malloc(n * sizeof(float));
    if (scores == NULL) return 1;
    for (size_t i = 0; i < written; i++) scores[i] = 1;
    lava_entropy(&shape, scores, &entropy, NULL, NULL);
    free(scores);
    return 0;
}

static int negative(int n_tokens) {
    const lava_shape shape = lava_shape_init(n_tokens, 1, 1, DIM, DIM, WINDOW);
    double entropy = 0;
    return lava_entropy(&shape, q, &entropy, NULL, NULL) == LAVA_OK;
}

int main(int n, char **arguments) {
    const size_t all = 100 - WINDOW;
    const char *mistake = n == 2 ? arguments[1] : "";
    if (strcmp(mistake, "race") == 0) return race();
    if (strcmp(mistake, "negative") == 0) return negative(-n);
    return strcmp(mistake, "unwritten") == 0 ? too_few(all, all - 1) : too_few(all - 1, all - 1);
}
