/*
 * One layer in four layouts. The library reads and compacts an engine's buffers where they are; strides describe them.
 *
 *     token-major   K, V [n_tokens, n_heads, dim]
 *     head-major    K, V [n_heads, room, dim]: a cache with more room than tokens
 *     transposed    V [n_heads, dim, room]: llama.cpp without flash attention, whose Q is head-major too
 *     interleaved   K and V in one buffer [n_tokens, n_heads, 2, dim]
 *
 * In each, the same tokens are kept, and compaction in place moves each head's rows to the front of the head's own memory.
 */
#include "capture.h"

enum { WINDOW = 32, N_LAYOUTS = 4 };

typedef struct {
    const char *name;
    lava_tensor q, k, v;
} layout;

/* Element (head, row, column) of a tensor: what lava.h says strides mean. */
static char *element(const lava_tensor *t, uint32_t head, uint32_t row, uint32_t column) {
    int64_t at = head * t->stride_head + row * t->stride_token + column * t->stride_dim;
    return (char *) t->data + at * (t->dtype == LAVA_F32 ? 4 : 2);
}

/* Copies elements one by one from one layout to another. */
static void convert(const lava_tensor *from, const lava_tensor *to, uint32_t n_rows, uint32_t n_heads, uint32_t dim) {
    for (uint32_t h = 0; h < n_heads; h++)
        for (uint32_t r = 0; r < n_rows; r++)
            for (uint32_t d = 0; d < dim; d++)
                memcpy(element(to, h, r, d), element(from, h, r, d), from->dtype == LAVA_F32 ? 4 : 2);
}

int main(void) {
    const uint32_t prompt = 2, layer = 2;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    capture_layer in = capture_get(&c, prompt, layer, WINDOW);
    lava_shape shape = capture_shape(&c, &in, layer, WINDOW);
    uint32_t n = in.n_tokens, n_heads = c.n_kv_heads, dim = c.head_dim, room = (n / 256 + 1) * 256;

    size_t size = in.k.size, roomy = (size_t) n_heads * room * dim * sizeof(uint16_t);
    char *k0 = allocate(size), *v0 = allocate(size);
    char *k1 = allocate(roomy), *v1 = allocate(roomy), *k2 = allocate(roomy), *v2 = allocate(roomy);
    char *kv3 = allocate(2 * size);
    float *q_rows = allocate(in.q.size);
    int64_t row = dim, pair = 2 * row;
    lava_tensor q_head_major = lava_tensor_head_major(LAVA_F32, q_rows, in.q.size, WINDOW, dim);
    const layout layouts[N_LAYOUTS] = {
        {"token-major", in.q,
         lava_tensor_token_major(LAVA_F16, k0, size, n_heads, dim),
         lava_tensor_token_major(LAVA_F16, v0, size, n_heads, dim)},
        {"head-major", in.q,
         lava_tensor_head_major(LAVA_F16, k1, roomy, room, dim),
         lava_tensor_head_major(LAVA_F16, v1, roomy, room, dim)},
        {"transposed", q_head_major,
         lava_tensor_token_major(LAVA_F16, k2, roomy, n_heads, dim),
         lava_tensor_transposed(LAVA_F16, v2, roomy, room, dim)},
        {"interleaved", in.q,
         lava_tensor_init(LAVA_F16, kv3, 2 * size, n_heads * pair, pair, 1),
         lava_tensor_init(LAVA_F16, kv3 + row * 2, 2 * size - (size_t) row * 2, n_heads * pair, pair, 1)},
    };

    uint32_t budget;
    uint64_t n_entries, n_kept;
    CHECK(lava_budget_from_ratio(&shape, NULL, 0.2, &budget, &error));
    CHECK(lava_total_entries(&shape, 1, 1, budget, &n_entries, &error));
    CHECK(lava_n_kept(&shape, n_entries, &n_kept, &error));
    size_t score_size, select_size;
    CHECK(lava_score_workspace_size(&shape, NULL, &score_size, &error));
    CHECK(lava_select_workspace_size(&shape, &select_size, &error));
    size_t workspace_size = score_size > select_size ? score_size : select_size;
    void *workspace = allocate(workspace_size);
    float *scores = allocate(lava_n_scores(&shape) * sizeof(float));
    uint32_t *kept = allocate(n_kept * sizeof(uint32_t)), *cu = allocate((n_heads + 1) * sizeof(uint32_t));
    uint32_t *kept_first = allocate(n_kept * sizeof(uint32_t));
    uint32_t *cu_first = allocate((n_heads + 1) * sizeof(uint32_t));

    convert(&in.q, &q_head_major, WINDOW, c.n_q_heads, dim);
    for (int i = 0; i < N_LAYOUTS; i++) {
        const layout *a = &layouts[i];
        convert(&in.k, &a->k, n, n_heads, dim);
        convert(&in.v, &a->v, n, n_heads, dim);

        CHECK(lava_score(&shape, NULL, &a->q, &a->k, &a->v, NULL, 0, 1, workspace, workspace_size, scores, &error));
        CHECK(lava_select(&shape, NULL, scores, n_entries, workspace, workspace_size, kept, n_kept, cu, NULL, NULL,
                          &error));
        if (i == 0) {
            memcpy(kept_first, kept, n_kept * sizeof(uint32_t));
            memcpy(cu_first, cu, (n_heads + 1) * sizeof(uint32_t));
        }
        expect(memcmp(cu, cu_first, (n_heads + 1) * sizeof(uint32_t)) == 0, "heads keep as many in every layout");
        expect(memcmp(kept, kept_first, n_kept * sizeof(uint32_t)) == 0, "heads keep the same tokens in every layout");

        /* in place: the destination is the source */
        CHECK(lava_compact(&shape, &a->k, &a->v, NULL, kept, cu, &a->k, &a->v, 0, 1, &error));
        for (uint32_t h = 0; h < n_heads; h++) {
            for (uint32_t r = 0; r < cu[h + 1] - cu[h]; r++) {
                for (uint32_t d = 0; d < dim; d++) {
                    uint32_t token = kept[cu[h] + r];
                    expect(memcmp(element(&a->k, h, r, d), element(&in.k, h, token, d), 2) == 0
                               && memcmp(element(&a->v, h, r, d), element(&in.v, h, token, d), 2) == 0,
                           "row r of the head is the token's");
                }
            }
        }
        printf("%-12s strides of V in elements: token %5lld, head %6lld, dim %4lld; kept", a->name,
               (long long) a->v.stride_token, (long long) a->v.stride_head, (long long) a->v.stride_dim);
        for (uint32_t h = 0; h < n_heads; h++) printf(" %u", cu[h + 1] - cu[h]);
        printf(" of %u\n", n);
    }
    printf("same tokens in every layout, and each head's rows are at the front of its memory\n");

    free(cu_first);
    free(kept_first);
    free(cu);
    free(kept);
    free(scores);
    free(workspace);
    free(q_rows);
    free(kv3);
    free(v2);
    free(k2);
    free(v1);
    free(k1);
    free(v0);
    free(k0);
    capture_close(&c);
    return 0;
}
