/*
 * A program of someone who has only installed lava: compresses one layer of made-up numbers to half.
 * Prints the version and the backend; the exit code is the line that failed.
 */
#include <lava.h>

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition) \
    do { \
        if (!(condition)) return __LINE__ % 255 + 1; \
    } while (0)

enum { N_TOKENS = 64, N_HEADS = 2, DIM = 8, WINDOW = 8, PREFIX = N_TOKENS - WINDOW, N_ENTRIES = N_HEADS * PREFIX / 2 };
enum { N_ROWS = N_ENTRIES + N_HEADS * WINDOW };

int main(void) {
    static float q[WINDOW * N_HEADS * DIM], k[N_TOKENS * N_HEADS * DIM], v[N_TOKENS * N_HEADS * DIM];
    static float k_small[N_ROWS * DIM], v_small[N_ROWS * DIM], scores[N_HEADS * PREFIX];
    static uint32_t kept[N_ROWS], cu_kept[N_HEADS + 1];
    for (int i = 0; i < WINDOW * N_HEADS * DIM; i++) q[i] = (float) (i * 7 % 13 - 6) / 8;
    for (int i = 0; i < N_TOKENS * N_HEADS * DIM; i++) {
        k[i] = (float) (i * 5 % 17 - 8) / 8;
        v[i] = (float) (i * 3 % 19 - 9) / 8;
    }

    lava_shape shape = lava_shape_init(N_TOKENS, N_HEADS, N_HEADS, DIM, DIM, WINDOW);
    lava_tensor q_in = lava_tensor_token_major(LAVA_F32, q, sizeof(q), N_HEADS, DIM);
    lava_tensor k_in = lava_tensor_token_major(LAVA_F32, k, sizeof(k), N_HEADS, DIM);
    lava_tensor v_in = lava_tensor_token_major(LAVA_F32, v, sizeof(v), N_HEADS, DIM);
    lava_tensor k_out = lava_tensor_ragged(LAVA_F32, k_small, sizeof(k_small), cu_kept, DIM);
    lava_tensor v_out = lava_tensor_ragged(LAVA_F32, v_small, sizeof(v_small), cu_kept, DIM);
    size_t score_size, select_size;
    REQUIRE(lava_score_workspace_size(&shape, NULL, &score_size, NULL) == LAVA_OK);
    REQUIRE(lava_select_workspace_size(&shape, &select_size, NULL) == LAVA_OK);
    size_t size = score_size > select_size ? score_size : select_size;
    void *workspace = malloc(size);
    REQUIRE(workspace != NULL);
    REQUIRE(lava_score(&shape, NULL, &q_in, &k_in, &v_in, NULL, 0, 1, workspace, size, scores, NULL) == LAVA_OK);
    REQUIRE(lava_select(&shape, NULL, scores, N_ENTRIES, workspace, size, kept, N_ROWS, cu_kept, NULL, NULL, NULL) == LAVA_OK);
    REQUIRE(lava_compact(&shape, &k_in, &v_in, NULL, kept, cu_kept, &k_out, &v_out, 0, 1, NULL) == LAVA_OK);
    free(workspace);

    REQUIRE(cu_kept[N_HEADS] == N_ROWS);
    for (uint32_t h = 0; h < N_HEADS; h++)
        for (uint32_t r = cu_kept[h]; r < cu_kept[h + 1]; r++)
            for (uint32_t d = 0; d < DIM; d++) REQUIRE(k_small[r * DIM + d] == k[(kept[r] * N_HEADS + h) * DIM + d]);
    printf("%s %s\n", lava_version_string(), lava_backend_name(LAVA_BACKEND_BEST));
    return 0;
}
