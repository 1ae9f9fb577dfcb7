/*
 * lava with no libc, and no operating system except for the exit: score, select and compact a tiny layer.
 * Exits with 0, or with the number of the line whose check failed.
 */
#include <lava.h>

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n and $-16, %rsp\n call run\n mov %eax, %edi\n mov $60, %eax\n syscall\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n mov x29, #0\n bl run\n mov x8, #93\n svc #0\n");
#else
#error "no entry for this machine"
#endif

/* All that the library needs from outside. */
void *memcpy(void *to, const void *from, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *) to)[i] = ((const char *) from)[i];
    return to;
}

void *memmove(void *to, const void *from, size_t n) {
    if ((uintptr_t) to <= (uintptr_t) from) return memcpy(to, from, n);
    while (n-- > 0) ((char *) to)[n] = ((const char *) from)[n];
    return to;
}

void *memset(void *to, int byte, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *) to)[i] = (char) byte;
    return to;
}

int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i]) return x[i] - y[i];
    return 0;
}

int bcmp(const void *a, const void *b, size_t n) {
    return memcmp(a, b, n);
}

#define CHECK(condition) do { if (!(condition)) return __LINE__; } while (0)

enum { TOKENS = 10, WINDOW = 2, HEADS = 2, DIM = 4, ENTRIES = 3, KEPT = ENTRIES + HEADS * WINDOW };

static _Alignas(16) unsigned char workspace[1 << 16];
static float q[WINDOW][HEADS][DIM], k[TOKENS][HEADS][DIM], v[TOKENS][HEADS][DIM];
static float scores[HEADS][TOKENS - WINDOW], k_kept[KEPT][DIM], v_kept[KEPT][DIM];

int run(void);

int run(void) {
    const lava_shape shape = lava_shape_init(TOKENS, HEADS, HEADS, DIM, DIM, WINDOW);
    lava_score_params params = lava_score_params_lava();
    params.pool_kernel = 1;
    /* Queries have only a first element. Head 0 finds tokens 1 and 5, head 1 finds token 6. */
    for (int h = 0; h < HEADS; h++) {
        for (int j = 0; j < WINDOW; j++) q[j][h][0] = 4;
        for (int i = 0; i < TOKENS; i++) {
            k[i][h][1] = (float) i;
            v[i][h][0] = (float) (i % 3);
        }
    }
    k[1][0][0] = k[5][0][0] = k[6][1][0] = 5;

    const lava_tensor tq = lava_tensor_token_major(LAVA_F32, q, sizeof(q), HEADS, DIM);
    const lava_tensor tk = lava_tensor_token_major(LAVA_F32, k, sizeof(k), HEADS, DIM);
    const lava_tensor tv = lava_tensor_token_major(LAVA_F32, v, sizeof(v), HEADS, DIM);
    size_t size = 0;
    CHECK(lava_score_workspace_size(&shape, &params, &size, NULL) == LAVA_OK && size <= sizeof(workspace));
    CHECK(lava_score(&shape, &params, &tq, &tk, &tv, NULL, 0, 1, workspace, size, &scores[0][0], NULL) == LAVA_OK);

    const lava_select_params select = lava_select_params_lava();
    uint32_t kept[KEPT], cu_kept[HEADS + 1];
    CHECK(lava_select_workspace_size(&shape, &size, NULL) == LAVA_OK && size <= sizeof(workspace));
    CHECK(lava_select(&shape, &select, &scores[0][0], ENTRIES, workspace, size, kept, KEPT, cu_kept, NULL, NULL, NULL) ==
          LAVA_OK);
    const uint32_t want[KEPT] = {1, 5, 8, 9, 6, 8, 9}, want_cu[HEADS + 1] = {0, 4, KEPT};
    CHECK(memcmp(kept, want, sizeof(want)) == 0);
    CHECK(memcmp(cu_kept, want_cu, sizeof(want_cu)) == 0);

    const lava_tensor to_k = lava_tensor_ragged(LAVA_F32, k_kept, sizeof(k_kept), cu_kept, DIM);
    const lava_tensor to_v = lava_tensor_ragged(LAVA_F32, v_kept, sizeof(v_kept), cu_kept, DIM);
    CHECK(lava_compact(&shape, &tk, &tv, NULL, kept, cu_kept, &to_k, &to_v, 0, 1, NULL) == LAVA_OK);
    for (int h = 0; h < HEADS; h++)
        for (uint32_t r = cu_kept[h]; r < cu_kept[h + 1]; r++) {
            CHECK(memcmp(k_kept[r], k[kept[r]][h], sizeof(k_kept[r])) == 0);
            CHECK(memcmp(v_kept[r], v[kept[r]][h], sizeof(v_kept[r])) == 0);
        }

    /* Refusals work without a runtime too. */
    lava_error error = lava_error_init();
    k[3][1][2] = (float) (1e300 * 1e300);
    CHECK(lava_score_workspace_size(&shape, &params, &size, &error) == LAVA_OK);
    CHECK(lava_score(&shape, &params, &tq, &tk, &tv, NULL, 0, 1, workspace, size, &scores[0][0], &error) == LAVA_ERR_NONFINITE);
    CHECK(error.head == 1);
    return 0;
}
