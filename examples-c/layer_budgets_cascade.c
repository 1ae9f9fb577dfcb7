/*
 * Layer budgets, and a cascade that never holds more than one layer's full cache and the final total.
 *
 * First: layers share a total by the entropies of their scores. Then the same while the layers arrive, with two buffers
 * and not one more allocation for K and V: `full`, where prefill leaves each layer in turn, and `arena`, exactly as large
 * as what is kept in the end. All layers lie in the arena one behind the other. When a layer arrives, those before it
 * shrink and move up, in place, and it is compressed into the room behind them.
 */
#include "capture.h"

enum { WINDOW = 32 };

int main(void) {
    const uint32_t prompt = 1;
    const double ratio = 0.2;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    uint32_t n_layers = c.n_layers, n_heads = c.n_kv_heads;
    capture_layer *in = allocate(n_layers * sizeof(*in));
    for (uint32_t l = 0; l < n_layers; l++) in[l] = capture_get(&c, prompt, l, WINDOW);
    lava_shape shape = capture_shape(&c, &in[0], 0, WINDOW);
    uint32_t n_tokens = shape.n_tokens;
    size_t n_scores = (size_t) n_heads * (n_tokens - WINDOW), row = c.head_dim * sizeof(uint16_t);

    uint32_t budget;
    uint64_t total;
    CHECK(lava_budget_from_ratio(&shape, ratio, &budget, &error));
    CHECK(lava_total_entries(&shape, budget, n_layers, &total, &error));
    uint64_t n_rows_final = total + (uint64_t) n_layers * n_heads * WINDOW;

    lava_score_params how_to_score = lava_score_params_init();
    lava_select_params how_to_select = lava_select_params_init();
    size_t score_size, select_size, state_size;
    CHECK(lava_score_workspace_size(&shape, &how_to_score, &score_size, &error));
    CHECK(lava_select_workspace_size(&shape, &select_size, &error));
    CHECK(lava_cascade_state_size(&shape, n_layers, total, &how_to_select, &state_size, &error));
    size_t workspace_size = score_size > select_size ? score_size : select_size;
    void *workspace = allocate(workspace_size), *state = allocate(state_size);

    /* Layer budgets, as they are shared out when all layers are known. */
    float *all_scores = allocate(n_layers * n_scores * sizeof(float));
    double *entropies = allocate(n_layers * sizeof(double));
    uint64_t *capacities = allocate(n_layers * sizeof(uint64_t)), *budgets = allocate(n_layers * sizeof(uint64_t));
    for (uint32_t l = 0; l < n_layers; l++) {
        float *scores = all_scores + l * n_scores;
        shape.layer = l;
        CHECK(lava_score(&shape, &how_to_score, &in[l].q, &in[l].k, &in[l].v, NULL, 0, 1, workspace, workspace_size, scores,
                         &error));
        CHECK(lava_entropy(&shape, scores, &entropies[l], NULL, &error));
        capacities[l] = n_scores;
    }
    CHECK(lava_layer_budgets(n_layers, entropies, capacities, NULL, total, budgets, &error));
    printf("%u of %u tokens per head are %llu prefix entries for %u layers:\n", budget, n_tokens, (unsigned long long) total,
           n_layers);
    for (uint32_t l = 0; l < n_layers; l++)
        printf("  layer %u: entropy %.4f, %llu of %llu entries\n", l, entropies[l], (unsigned long long) budgets[l],
               (unsigned long long) capacities[l]);

    /* The cascade. full: K, then V of the layer that prefill has just done. arena: all K, then all V. */
    size_t full_size = in[0].k.size, arena_size = n_rows_final * row;
    char *full = allocate(2 * full_size), *arena = allocate(2 * arena_size);
    lava_tensor k_full = lava_tensor_token_major(LAVA_F16, full, full_size, n_heads, c.head_dim);
    lava_tensor v_full = lava_tensor_token_major(LAVA_F16, full + full_size, full_size, n_heads, c.head_dim);
    uint32_t *first = allocate(n_layers * sizeof(uint32_t));  /* each layer's first row in the arena */
    uint32_t *from = allocate(n_heads * sizeof(uint32_t)), *to = allocate(n_heads * sizeof(uint32_t));
    lava_cascade_layer layer = lava_cascade_layer_init();
    printf("the cascade, in %zu bytes for a full layer, %zu for what is kept and %zu of state:\n", 2 * full_size,
           2 * arena_size, state_size);
    CHECK(lava_cascade_init(&shape, n_layers, total, &how_to_select, state, state_size, &error));
    for (uint32_t l = 0; l < n_layers; l++) {
        memcpy(full, in[l].k.data, full_size);  /* prefill */
        memcpy(full + full_size, in[l].v.data, full_size);
        CHECK(lava_cascade_push(state, state_size, all_scores + l * n_scores, &error));

        uint32_t end = 0;  /* the arena's first free row */
        for (uint32_t i = 0; i <= l; i++) {
            CHECK(lava_cascade_get(state, state_size, i, &layer, &error));
            expect(end + (uint64_t) layer.cu_kept[n_heads] <= n_rows_final, "what is held fits the final total");
            for (uint32_t h = 0; h < n_heads; h++) {
                from[h] = i < l ? first[i] + layer.cu_rows[h] : 0;
                to[h] = end + layer.cu_kept[h];
            }
            lava_tensor k_to = lava_tensor_ragged(LAVA_F16, arena, arena_size, to, c.head_dim), k_from = k_to;
            lava_tensor v_to = lava_tensor_ragged(LAVA_F16, arena + arena_size, arena_size, to, c.head_dim), v_from = v_to;
            k_from.row_start = v_from.row_start = from;
            shape.layer = i;
            if (i == l) {  /* from the full layer's buffer */
                CHECK(lava_compact(&shape, &k_full, &v_full, NULL, layer.rows, layer.cu_kept, &k_to, &v_to, 0, 1, &error));
            } else if (!layer.unchanged || first[i] != end) {  /* towards the front of the same buffer */
                CHECK(lava_compact(&shape, &k_from, &v_from, layer.cu_rows, layer.rows, layer.cu_kept, &k_to, &v_to, 0, 1,
                                   &error));
            }
            first[i] = end;
            end += layer.cu_kept[n_heads];
        }
        printf("  layer %u is in: %u of %llu rows of the arena used\n", l, end, (unsigned long long) n_rows_final);
    }

    /* It ends where selecting all layers at once ends, and the rows are the prompt's. */
    uint32_t *kept = allocate(n_rows_final * sizeof(uint32_t)), *cu = allocate((n_heads + 1) * sizeof(uint32_t));
    for (uint32_t l = 0; l < n_layers; l++) {
        shape.layer = l;
        CHECK(lava_select(&shape, &how_to_select, all_scores + l * n_scores, budgets[l], workspace, workspace_size, kept,
                          n_rows_final, cu, NULL, &error));
        CHECK(lava_cascade_get(state, state_size, l, &layer, &error));
        expect(layer.budget == budgets[l], "the cascade ends at the layer's budget");
        expect(memcmp(cu, layer.cu_kept, (n_heads + 1) * sizeof(uint32_t)) == 0, "heads keep as many as at the end");
        expect(memcmp(kept, layer.kept_indices, cu[n_heads] * sizeof(uint32_t)) == 0, "heads keep the same as at the end");
        for (uint32_t h = 0; h < n_heads; h++) {
            for (uint32_t r = cu[h]; r < cu[h + 1]; r++) {
                size_t dense = ((size_t) kept[r] * n_heads + h) * row, ragged = (size_t) (first[l] + r) * row;
                expect(memcmp(arena + ragged, (char *) in[l].k.data + dense, row) == 0, "the key is the token's");
                expect(memcmp(arena + arena_size + ragged, (char *) in[l].v.data + dense, row) == 0, "the value is the token's");
            }
        }
    }
    printf("same kept tokens as selecting all layers at the end; all rows are where they belong\n");

    free(cu);
    free(kept);
    free(to);
    free(from);
    free(first);
    free(arena);
    free(full);
    free(budgets);
    free(capacities);
    free(entropies);
    free(all_scores);
    free(state);
    free(workspace);
    free(in);
    capture_close(&c);
    return 0;
}
