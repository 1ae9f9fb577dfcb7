/*
 * Layers that differ, in one array and one call. As in Gemma, most layers have a sliding window, and one of six sees
 * all tokens, here with fewer KV heads. One more takes no part, as a recurrent layer would, or one that shares
 * another's cache.
 *
 * All compete for one total. In a layer with a sliding window, rows that no later query can see are dead: they take no
 * budget, and are evicted. So what these layers cannot use goes to those that can.
 *
 * The captured model's layers are alike. Here its tensors, of two prompts of the same length, stand for a model whose
 * layers are not: the last one is only the first half of a captured layer's heads, with the same strides.
 */
#include "capture.h"

enum { WINDOW = 32, SLIDING = 256, N_LAYERS = 7 };

/* Each layer, and the captured layer that stands for it. 0 KV heads: takes no part. */
static const struct {
    const char *name;
    uint32_t prompt, layer, n_kv_heads, sliding;
} PLAN[N_LAYERS] = {
    {"sliding window", 0, 0, 2, SLIDING}, {"sliding window", 0, 1, 2, SLIDING}, {"sliding window", 0, 2, 2, SLIDING},
    {"takes no part", 0, 0, 0, 0},        {"sliding window", 0, 3, 2, SLIDING}, {"sliding window", 1, 2, 2, SLIDING},
    {"sees all tokens", 1, 1, 1, 0},
};

int main(void) {
    const double ratio = 0.2;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);

    /* Each layer as it is: heads, and how far its queries see. */
    capture_layer in[N_LAYERS];
    lava_shape shapes[N_LAYERS];
    uint32_t n_heads = 0, first_head[N_LAYERS];
    uint64_t n_scores = 0, first_score[N_LAYERS];
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        in[l] = capture_get(&c, PLAN[l].prompt, PLAN[l].layer, WINDOW);
        uint32_t n_q_heads = PLAN[l].n_kv_heads * (c.n_q_heads / c.n_kv_heads);  /* the first ones of the captured */
        shapes[l] = lava_shape_init(in[l].n_tokens, n_q_heads, PLAN[l].n_kv_heads, c.head_dim, c.head_dim, WINDOW);
        shapes[l].layer = l;
        shapes[l].sliding_window = PLAN[l].sliding;
        first_head[l] = n_heads;
        first_score[l] = n_scores;
        n_heads += shapes[l].n_kv_heads;
        n_scores += lava_n_scores(&shapes[l]);
    }

    /* The budget is a share of the longest cache's tokens, on average over all heads that have any. */
    uint32_t budget;
    uint64_t total;
    CHECK(lava_budget_from_ratio(&shapes[N_LAYERS - 1], NULL, ratio, &budget, &error));
    CHECK(lava_total_entries(shapes, N_LAYERS, N_LAYERS, budget, &total, &error));
    printf("%u of %u tokens per KV head are %llu prefix entries over %u layers\n", budget, in[0].n_tokens,
           (unsigned long long) total, N_LAYERS);

    size_t workspace_size, size, state_size;
    CHECK(lava_global_entries_workspace_size(shapes, N_LAYERS, N_LAYERS, &workspace_size, &error));
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        if (shapes[l].n_kv_heads == 0) continue;
        CHECK(lava_score_workspace_size(&shapes[l], NULL, &size, &error));
        if (size > workspace_size) workspace_size = size;
        CHECK(lava_select_workspace_size(&shapes[l], &size, &error));
        if (size > workspace_size) workspace_size = size;
    }
    CHECK(lava_cascade_state_size(shapes, N_LAYERS, N_LAYERS, total, NULL, NULL, &state_size, &error));
    void *workspace = allocate(workspace_size), *state = allocate(state_size);
    float *scores = allocate(n_scores * sizeof(float));
    double *head_weights = allocate(n_heads * sizeof(double));
    uint64_t entries[N_LAYERS];

    /* Scores one layer after the other, and pushes each to the cascade at once. */
    CHECK(lava_cascade_init(shapes, N_LAYERS, N_LAYERS, total, NULL, NULL, state, state_size, &error));
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        float *own = scores + first_score[l];
        if (shapes[l].n_kv_heads == 0) continue;  /* nothing to score; the cascade skips it */
        CHECK(lava_score(&shapes[l], NULL, &in[l].q, &in[l].k, &in[l].v, NULL, 0, 1, workspace, workspace_size, own,
                         &error));
        CHECK(lava_cascade_push(state, state_size, &shapes[l], own, NULL, &error));
    }

    /* One sort over all of them. */
    CHECK(lava_global_entries(shapes, N_LAYERS, N_LAYERS, NULL, scores, total, workspace, workspace_size, entries,
                              head_weights, &error));

    uint32_t *kept = allocate((size_t) c.n_kv_heads * in[0].n_tokens * sizeof(uint32_t));
    uint32_t *cu_kept = allocate((c.n_kv_heads + 1) * sizeof(uint32_t));
    lava_select_params selecting = lava_select_params_default();
    uint64_t sum = 0;
    printf("  %-5s  %-15s  %8s  %8s  %8s  %12s   %s\n", "layer", "", "KV heads", "can use", "gets", "mass evicted",
           "rows of each head");
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        const lava_shape *shape = &shapes[l];
        if (shape->n_kv_heads == 0) {
            printf("  %-5u  %-15s  %8u  %8s  %8llu\n", l, PLAN[l].name, 0u, "-", (unsigned long long) entries[l]);
            expect(entries[l] == 0, "a layer without KV heads gets nothing");
            continue;
        }
        uint64_t n_kept, most;
        CHECK(lava_n_kept(shape, entries[l], &n_kept, &error));
        CHECK(lava_n_kept(shape, UINT64_MAX, &most, &error));  /* all that later queries can see, windows included */
        lava_selection done = lava_selection_init();
        selecting.head_weights = head_weights + first_head[l];
        CHECK(lava_select(shape, &selecting, scores + first_score[l], entries[l], workspace, workspace_size, kept,
                          n_kept, cu_kept, NULL, &done, &error));

        printf("  %-5u  %-15s  %8u  %8llu  %8llu  %11.2f%%  ", l, PLAN[l].name, shape->n_kv_heads,
               (unsigned long long) (most - (uint64_t) shape->n_kv_heads * WINDOW), (unsigned long long) entries[l],
               100 * done.evicted_share);
        for (uint32_t h = 0; h < shape->n_kv_heads; h++) printf(" %4u", cu_kept[h + 1] - cu_kept[h]);
        printf("\n");
        sum += entries[l];

        /* Nothing dead is kept. */
        for (uint64_t i = 0; i < n_kept && shape->sliding_window != 0; i++)
            expect(kept[i] + shape->sliding_window > shape->n_tokens, "every row that is kept can still be seen");

        /* The cascade ends with the same. */
        lava_cascade_layer same = lava_cascade_layer_init();
        CHECK(lava_cascade_get(state, state_size, l, &same, &error));
        expect(memcmp(same.cu_kept, cu_kept, (shape->n_kv_heads + 1) * sizeof(uint32_t)) == 0
                   && memcmp(same.kept_indices, kept, n_kept * sizeof(uint32_t)) == 0,
               "the cascade keeps the same");

        /* And the rows: k_small's row r of head h is that of token kept[cu_kept[h] + r]. */
        size_t row = c.head_dim * sizeof(uint16_t);
        char *k_rows = allocate(n_kept * row), *v_rows = allocate(n_kept * row);
        lava_tensor k_small = lava_tensor_ragged(LAVA_F16, k_rows, n_kept * row, cu_kept, c.head_dim);
        lava_tensor v_small = lava_tensor_ragged(LAVA_F16, v_rows, n_kept * row, cu_kept, c.head_dim);
        CHECK(lava_compact(shape, &in[l].k, &in[l].v, NULL, kept, cu_kept, &k_small, &v_small, 0, 1, &error));
        for (uint32_t h = 0; h < shape->n_kv_heads; h++) {
            for (uint32_t i = cu_kept[h]; i < cu_kept[h + 1]; i++) {
                size_t from = ((size_t) kept[i] * c.n_kv_heads + h) * row;
                expect(memcmp(k_rows + i * row, (char *) in[l].k.data + from, row) == 0
                           && memcmp(v_rows + i * row, (char *) in[l].v.data + from, row) == 0,
                       "a kept row is the token's row");
            }
        }
        free(v_rows);
        free(k_rows);
    }
    expect(sum == total, "exactly the total is kept");
    printf("%llu entries in all, and later queries can see each of them; the cascade keeps the same\n",
           (unsigned long long) sum);

    free(cu_kept);
    free(kept);
    free(head_weights);
    free(scores);
    free(state);
    free(workspace);
    capture_close(&c);
    return 0;
}
