/*
 * The core of it: one layer of a KV cache is scored, the entries to keep are selected, and their rows are gathered into
 * a smaller cache. Everything else is about doing this for all layers, in the layouts and at the moments that an engine
 * needs.
 */
#include "capture.h"

int main(void) {
    enum { WINDOW = 32 };
    const double ratio = 0.2;
    lava_error error = lava_error_init();

    capture c = capture_open(CAPTURE_PATH);
    const uint32_t prompt = 0, layer = 1;
    capture_layer in = capture_get(&c, prompt, layer, WINDOW);
    lava_shape shape = capture_shape(&c, &in, layer, WINDOW);

    /* How much is kept: 20% of the tokens per head, as a number of prefix entries over all heads of this layer. */
    uint32_t budget;
    uint64_t n_entries, n_kept;
    CHECK(lava_budget_from_ratio(&shape, NULL, ratio, &budget, &error));
    CHECK(lava_total_entries(&shape, 1, 1, budget, &n_entries, &error));
    CHECK(lava_n_kept(&shape, n_entries, &n_kept, &error));

    /* All memory is ours; lava.h says how much. NULL instead of params is the recommended preset. */
    size_t score_size, select_size;
    CHECK(lava_score_workspace_size(&shape, NULL, &score_size, &error));
    CHECK(lava_select_workspace_size(&shape, &select_size, &error));
    size_t workspace_size = score_size > select_size ? score_size : select_size;
    size_t row = c.head_dim * sizeof(uint16_t);
    void *workspace = allocate(workspace_size);
    float *scores = allocate(lava_n_scores(&shape) * sizeof(float));
    uint32_t *kept = allocate(n_kept * sizeof(uint32_t));
    uint32_t *cu_kept = allocate((c.n_kv_heads + 1) * sizeof(uint32_t));
    void *k_small = allocate(n_kept * row), *v_small = allocate(n_kept * row);
    lava_tensor k_out = lava_tensor_ragged(LAVA_F16, k_small, n_kept * row, cu_kept, c.head_dim);
    lava_tensor v_out = lava_tensor_ragged(LAVA_F16, v_small, n_kept * row, cu_kept, c.head_dim);

    /* The core. In a cache that has not been compressed before, row i is token i: so kept also says which rows they are. */
    lava_selection done = lava_selection_init();
    CHECK(lava_score(&shape, NULL, &in.q, &in.k, &in.v, NULL, 0, 1, workspace, workspace_size, scores, &error));
    CHECK(lava_select(&shape, NULL, scores, n_entries, workspace, workspace_size, kept, n_kept, cu_kept, NULL, &done,
                      &error));
    CHECK(lava_compact(&shape, &in.k, &in.v, NULL, kept, cu_kept, &k_out, &v_out, 0, 1, &error));

    printf("lava %s (%s): layer %u of \"%s\": %zu of %zu bytes of K and V kept, %.2f%% of the score mass evicted\n",
           lava_version_string(), lava_backend_name(LAVA_BACKEND_BEST), layer, capture_kind(&c, prompt),
           k_out.size + v_out.size, in.k.size + in.v.size, 100 * done.evicted_share);
    for (uint32_t h = 0; h < c.n_kv_heads; h++) {
        const uint32_t *mine = kept + cu_kept[h], n = cu_kept[h + 1] - cu_kept[h];
        printf("  KV head %u keeps %u of %u tokens: %u, %u, %u, %u, %u, %u, ... %u\n", h, n, in.n_tokens, mine[0],
               mine[1], mine[2], mine[3], mine[4], mine[5], mine[n - 1]);
    }

    /* Row r of head h is the row of token kept[cu_kept[h] + r]. */
    for (uint32_t h = 0; h < c.n_kv_heads; h++) {
        for (uint32_t i = cu_kept[h]; i < cu_kept[h + 1]; i++) {
            size_t from = ((size_t) kept[i] * c.n_kv_heads + h) * row;
            expect(memcmp((char *) k_small + i * row, (char *) in.k.data + from, row) == 0
                       && memcmp((char *) v_small + i * row, (char *) in.v.data + from, row) == 0,
                   "a kept row is the token's row");
        }
    }

    free(v_small);
    free(k_small);
    free(cu_kept);
    free(kept);
    free(scores);
    free(workspace);
    capture_close(&c);
    return 0;
}
