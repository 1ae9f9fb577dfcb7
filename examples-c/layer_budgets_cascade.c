/*
 * Layers that share a total, and a cascade that never holds more than one layer's full cache in addition to what is kept.
 *
 * First: what each layer gets, by one sort over all layers (the recommended preset), and by the entropies of the scores
 * (as in LAVa's paper). Then the sort again while the layers arrive, with two buffers and no further allocation for K
 * and V: `full`, where prefill leaves each layer in turn, and `arena`, where all layers are stored one after the other. When a
 * layer arrives, those before it shrink and move toward the front, in place, and it is compressed into the room after
 * them.
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
    lava_shape shape = capture_shape(&c, &in[0], 0, WINDOW);  /* all layers are alike: one shape stands for all */
    size_t n_scores = lava_n_scores(&shape), row = c.head_dim * sizeof(uint16_t);

    uint32_t budget;
    uint64_t total;
    CHECK(lava_budget_from_ratio(&shape, NULL, ratio, &budget, &error));
    CHECK(lava_total_entries(&shape, 1, n_layers, budget, &total, &error));
    uint64_t n_rows_final = total + (uint64_t) n_layers * n_heads * WINDOW;

    size_t sizes[3], workspace_size = 0, state_size;
    CHECK(lava_score_workspace_size(&shape, NULL, &sizes[0], &error));
    CHECK(lava_global_entries_workspace_size(&shape, 1, n_layers, &sizes[1], &error));
    CHECK(lava_select_workspace_size(&shape, &sizes[2], &error));
    for (int i = 0; i < 3; i++)
        if (sizes[i] > workspace_size) workspace_size = sizes[i];
    CHECK(lava_cascade_state_size(&shape, 1, n_layers, total, NULL, NULL, &state_size, &error));
    void *workspace = allocate(workspace_size), *state = allocate(state_size);

    /* What each layer gets when all are known. */
    float *all_scores = allocate(n_layers * n_scores * sizeof(float));
    double *entropies = allocate(n_layers * sizeof(double));
    double *head_weights = allocate((size_t) n_layers * n_heads * sizeof(double));
    uint64_t *entries = allocate(n_layers * sizeof(uint64_t)), *by_entropy = allocate(n_layers * sizeof(uint64_t));
    for (uint32_t l = 0; l < n_layers; l++) {
        float *scores = all_scores + l * n_scores;
        shape.layer = l;
        CHECK(lava_score(&shape, NULL, &in[l].q, &in[l].k, &in[l].v, NULL, 0, 1, workspace, workspace_size, scores,
                         &error));
        CHECK(lava_entropy(&shape, scores, &entropies[l], NULL, &error));
    }
    CHECK(lava_global_entries(&shape, 1, n_layers, NULL, all_scores, total, workspace, workspace_size, entries,
                              head_weights, &error));
    CHECK(lava_layer_entries(&shape, 1, n_layers, NULL, entropies, total, by_entropy, &error));
    printf("%u of %u tokens per head are %llu prefix entries for %u layers of %zu:\n", budget, shape.n_tokens,
           (unsigned long long) total, n_layers, n_scores);
    printf("  layer   by one sort   by entropy   entropy\n");
    for (uint32_t l = 0; l < n_layers; l++)
        printf("  %-5u   %11llu   %10llu   %7.4f\n", l, (unsigned long long) entries[l],
               (unsigned long long) by_entropy[l], entropies[l]);

    /* The cascade. full: K, then V of the layer that prefill has just done. arena: all K, then all V. Before the last
       push, layers may hold what heads are guaranteed beside what wins: the preset's fifth. */
    uint64_t n_rows = n_rows_final + (uint64_t) (lava_select_params_default().alpha * (double) total);
    size_t full_size = in[0].k.size, arena_size = n_rows * row;
    char *full = allocate(2 * full_size), *arena = allocate(2 * arena_size);
    char *k_full_rows = full, *v_full_rows = full + full_size, *k_rows = arena, *v_rows = arena + arena_size;
    lava_tensor k_full = lava_tensor_token_major(LAVA_F16, k_full_rows, full_size, n_heads, c.head_dim);
    lava_tensor v_full = lava_tensor_token_major(LAVA_F16, v_full_rows, full_size, n_heads, c.head_dim);
    uint32_t *first = allocate(n_layers * sizeof(uint32_t));  /* each layer's first row in the arena */
    uint32_t *from = allocate(n_heads * sizeof(uint32_t)), *to = allocate(n_heads * sizeof(uint32_t));
    lava_cascade_layer layer = lava_cascade_layer_init();
    printf("the cascade, in %zu bytes for a full layer, %zu for what is kept and %zu of state:\n", 2 * full_size,
           2 * arena_size, state_size);
    CHECK(lava_cascade_init(&shape, 1, n_layers, total, NULL, NULL, state, state_size, &error));
    uint32_t end = 0;  /* the arena's first free row */
    for (uint32_t l = 0; l < n_layers; l++) {
        memcpy(k_full_rows, in[l].k.data, full_size);  /* prefill */
        memcpy(v_full_rows, in[l].v.data, full_size);
        shape.layer = l;
        CHECK(lava_cascade_push(state, state_size, &shape, all_scores + l * n_scores, NULL, &error));

        end = 0;
        for (uint32_t i = 0; i <= l; i++) {
            CHECK(lava_cascade_get(state, state_size, i, &layer, &error));
            expect(end + (uint64_t) layer.cu_kept[n_heads] <= n_rows, "what is held fits the arena");
            for (uint32_t h = 0; h < n_heads; h++) {
                from[h] = i < l ? first[i] + layer.cu_rows[h] : 0;
                to[h] = end + layer.cu_kept[h];
            }
            lava_tensor k_to = lava_tensor_ragged(LAVA_F16, k_rows, arena_size, to, c.head_dim), k_from = k_to;
            lava_tensor v_to = lava_tensor_ragged(LAVA_F16, v_rows, arena_size, to, c.head_dim), v_from = v_to;
            k_from.row_start = v_from.row_start = from;
            shape.layer = i;
            if (i == l) {  /* from the full layer's buffer */
                CHECK(lava_compact(&shape, &k_full, &v_full, NULL, layer.rows, layer.cu_kept, &k_to, &v_to, 0, 1,
                                   &error));
            } else if (!layer.unchanged || first[i] != end) {  /* toward the front of the same buffer */
                CHECK(lava_compact(&shape, &k_from, &v_from, layer.cu_rows, layer.rows, layer.cu_kept, &k_to, &v_to, 0,
                                   1, &error));
            }
            first[i] = end;
            end += layer.cu_kept[n_heads];
        }
        printf("  layer %u is in: %u of %llu rows of the arena used\n", l, end, (unsigned long long) n_rows);
    }
    expect(end == n_rows_final, "exactly the total is kept");

    /* It ends where selecting all layers at once ends, and the rows are the prompt's. */
    lava_select_params selecting = lava_select_params_default();
    uint32_t *kept = allocate(n_rows_final * sizeof(uint32_t)), *cu = allocate((n_heads + 1) * sizeof(uint32_t));
    for (uint32_t l = 0; l < n_layers; l++) {
        shape.layer = l;
        selecting.head_weights = head_weights + l * n_heads;
        CHECK(lava_select(&shape, &selecting, all_scores + l * n_scores, entries[l], workspace, workspace_size, kept,
                          n_rows_final, cu, NULL, NULL, &error));
        CHECK(lava_cascade_get(state, state_size, l, &layer, &error));
        expect(layer.n_entries == entries[l], "the cascade ends with the layer's entries");
        expect(memcmp(cu, layer.cu_kept, (n_heads + 1) * sizeof(uint32_t)) == 0, "heads keep as many as at the end");
        expect(memcmp(kept, layer.kept_indices, cu[n_heads] * sizeof(uint32_t)) == 0, "and the same tokens");
        for (uint32_t h = 0; h < n_heads; h++) {
            for (uint32_t r = cu[h]; r < cu[h + 1]; r++) {
                size_t dense = ((size_t) kept[r] * n_heads + h) * row, ragged = (size_t) (first[l] + r) * row;
                expect(memcmp(k_rows + ragged, (char *) in[l].k.data + dense, row) == 0, "the key is the token's");
                expect(memcmp(v_rows + ragged, (char *) in[l].v.data + dense, row) == 0, "the value is the token's");
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
    free(by_entropy);
    free(entries);
    free(head_weights);
    free(entropies);
    free(all_scores);
    free(state);
    free(workspace);
    free(in);
    capture_close(&c);
    return 0;
}
