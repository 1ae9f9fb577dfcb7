/*
 * Every function of lava.h, lava_methods.h and lava_ranks.h once, over memory from malloc of exactly the size that the headers ask for, so that a
 * sanitizer or valgrind notices a byte too much. Exits with 0, or says which check failed.
 */
#include <lava_methods.h>
#include <lava_ranks.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "line %d: %s\n", __LINE__, #condition); exit(1); } } while (0)
#define OK(call) do { lava_error error = lava_error_init(); lava_status status = (call); if (status != LAVA_OK) { \
    fprintf(stderr, "line %d: %s: %s (%s)\n", __LINE__, #call, error.message, error.argument); exit(1); } } while (0)

enum { TOKENS = 150, WINDOW = 9, Q_HEADS = 6, HEADS = 3, DK = 24, DV = 17, LAYERS = 3, NEW = 11 };
enum { PREFIX = TOKENS - WINDOW, ENTRIES = HEADS * PREFIX };

/* Never NULL, and not initialised: that is part of the check. */
static void *allocate(size_t size) {
    void *memory = malloc(size ? size : 1);
    CHECK(memory != NULL);
    return memory;
}

/* Elements of any type, small numbers, repeatable. */
static void *elements(lava_dtype dtype, size_t n, uint32_t seed) {
    uint32_t *words = allocate(n * (dtype == LAVA_F32 ? 4 : 2));
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        float x = (float) (seed >> 24) / 64.0f - 2.0f;
        uint32_t bits;
        memcpy(&bits, &x, 4);
        /* The upper half of an f32 is a bf16; as an f16, some other number of moderate size. */
        if (dtype == LAVA_F32) words[i] = bits;
        else ((uint16_t *) words)[i] = (uint16_t) (dtype == LAVA_BF16 ? bits >> 16 : 0x3000 | (bits >> 16 & 0x83ff));
    }
    return words;
}

static size_t bytes(lava_dtype dtype, size_t n) {
    return n * (dtype == LAVA_F32 ? 4 : 2);
}

/* What was kept goes into a separate cache, is scored there by its rows and positions, and compressed again. */
static void again(lava_dtype dtype, const lava_shape *layer, const lava_tensor *k, const lava_tensor *v, const uint32_t *kept,
                  const uint32_t *cu) {
    uint32_t *cu_rows = allocate((HEADS + 1) * 4), *positions = allocate(cu[HEADS] * 4);
    memcpy(cu_rows, cu, (HEADS + 1) * 4), memcpy(positions, kept, cu[HEADS] * 4);
    lava_shape shape = *layer;
    void *k_kept = elements(dtype, cu[HEADS] * DK, 7), *v_kept = elements(dtype, cu[HEADS] * DV, 8);
    lava_tensor tk = lava_tensor_ragged(dtype, k_kept, bytes(dtype, cu[HEADS] * DK), cu_rows, DK);
    lava_tensor tv = lava_tensor_ragged(dtype, v_kept, bytes(dtype, cu[HEADS] * DV), cu_rows, DV);
    OK(lava_compact(&shape, k, v, NULL, kept, cu, &tk, &tv, 0, 1, &error));
    shape.cu_rows = cu_rows;
    shape.positions = positions;

    void *q = elements(dtype, WINDOW * Q_HEADS * DK, 9);
    lava_tensor tq = lava_tensor_token_major(dtype, q, bytes(dtype, WINDOW * Q_HEADS * DK), Q_HEADS, DK);
    const uint64_t n = lava_n_scores(&shape);
    CHECK(n == cu[HEADS] - HEADS * WINDOW);
    float *scores = allocate(n * 4);
    size_t size;
    OK(lava_score_workspace_size(&shape, NULL, &size, &error));
    void *workspace = allocate(size);
    OK(lava_score(&shape, NULL, &tq, &tk, &tv, NULL, 0, 1, workspace, size, scores, &error));
    free(workspace);

    const uint64_t n_entries = n / 2;
    uint64_t n_kept;
    OK(lava_n_kept(&shape, n_entries, &n_kept, &error));
    uint32_t *indices = allocate(n_kept * 4), *rows = allocate(n_kept * 4), *to = allocate((HEADS + 1) * 4);
    const lava_select_params params = lava_select_params_lava();
    OK(lava_select_workspace_size(&shape, &size, &error));
    workspace = allocate(size);
    OK(lava_select(&shape, &params, scores, n_entries, workspace, size, indices, n_kept, to, rows, NULL, &error));
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t r = to[h]; r < to[h + 1]; r++) CHECK(positions[cu_rows[h] + rows[r]] == indices[r]);
    /* In place: each head's rows move to its front. */
    OK(lava_compact(&shape, &tk, &tv, NULL, rows, to, &tk, &tv, 0, 1, &error));
    free(workspace), free(to), free(rows), free(indices), free(scores), free(q), free(v_kept), free(k_kept);
    free(positions), free(cu_rows);
}

/* Further queries, from before RoPE, over a layer's scores. */
static void ask_again(const lava_shape *layer, float *scores) {
    enum { ASKED = 5, TURNED = DK / 2 * 2 };
    const lava_shape shape = *layer;
    const lava_score_params params = lava_score_params_lava();
    void *before = elements(LAVA_F16, ASKED * Q_HEADS * DK, 7);
    void *k = elements(LAVA_F32, TOKENS * HEADS * DK, 8), *v = elements(LAVA_F32, TOKENS * HEADS * DV, 9);
    float *after = allocate(ASKED * Q_HEADS * DK * 4), *frequencies = allocate(TURNED / 2 * 4), first = scores[0];
    for (int i = 0; i < TURNED / 2; i++) frequencies[i] = 1.0f / (float) (1 + i);
    lava_tensor tb = lava_tensor_token_major(LAVA_F16, before, bytes(LAVA_F16, ASKED * Q_HEADS * DK), Q_HEADS, DK);
    lava_tensor tq = lava_tensor_head_major(LAVA_F32, after, ASKED * Q_HEADS * DK * 4, ASKED, DK);
    lava_tensor tk = lava_tensor_head_major(LAVA_F32, k, TOKENS * HEADS * DK * 4, TOKENS, DK);
    lava_tensor tv = lava_tensor_transposed(LAVA_F32, v, TOKENS * HEADS * DV * 4, TOKENS, DV);
    float novelty[ASKED];
    uint32_t picked[2];
    OK(lava_pick_queries(&shape, ASKED, &tb, 2, novelty, picked, &error));
    CHECK(picked[0] < 2 && picked[1] >= 2 && picked[1] < ASKED && novelty[picked[0]] >= novelty[1 - picked[0]]);
    OK(lava_rotate(&shape, ASKED, &tb, frequencies, TURNED, LAVA_ROPE_PAIRS, 1, TOKENS, &tq, &error));
    size_t size;
    OK(lava_score_queries_workspace_size(&shape, &params, ASKED, &size, &error));
    for (uint32_t part = 0; part < 2; part++) {
        void *workspace = allocate(size);
        OK(lava_score_queries(&shape, &params, ASKED, &tq, &tk, &tv, part, 2, workspace, size, scores, &error));
        free(workspace);
    }
    CHECK(scores[0] >= first);
    first = scores[0];
    const uint32_t positions[ASKED] = {0, 1, 2, 3, TOKENS};
    void *space = allocate(size);
    OK(lava_score_queries_at(&shape, &params, ASKED, positions, &tq, &tk, &tv, 0, 1, space, size, scores, &error));
    free(space);
    CHECK(scores[0] >= first);
    first = scores[0];
    OK(lava_smooth(&shape, NULL, 0.5f, scores, &error));
    CHECK(scores[0] > first);
    first = scores[0];
    OK(lava_clamp(&shape, NULL, 100, scores, &error));
    CHECK(scores[0] > first);
    const uint32_t most[HEADS] = {1};
    float *others = allocate(ENTRIES * 4), sum = 0;
    for (int i = 0; i < ENTRIES; i++) others[i] = i < ENTRIES - 1 ? 0 : 2;
    OK(lava_raise(&shape, scores, 1, most, others, &error));
    for (int i = 0; i < PREFIX; i++) sum += others[i];
    CHECK(sum == 2);
    OK(lava_score_keys(&shape, &tk, 0, 1, others, &error));
    OK(lava_value_norms(&shape, NULL, NULL, &tv, 0, 1, others, &error));
    CHECK(others[0] > 0);
    double *mean = allocate(Q_HEADS * DK * 8), *covariance = allocate(Q_HEADS * DK * DK * 8), *logits = allocate(PREFIX * 8);
    OK(lava_query_statistics(&shape, ASKED, &tb, frequencies, TURNED, LAVA_ROPE_PAIRS, 1, TOKENS, 9, mean, covariance, &error));
    OK(lava_score_expected(&shape, 0, mean, covariance, &tk, 0, 1, logits, others, &error));
    CHECK(others[0] > 0 && others[0] < 1);
    free(logits), free(covariance), free(mean);
    free(others);
    free(frequencies), free(after), free(v), free(k), free(before);
}

/* One layer, from scores to attention over what is left. Writes its scores. */
static void one_layer(lava_dtype dtype, const lava_shape *layer, const lava_score_params *params, float *scores) {
    const lava_shape shape = *layer;
    void *q = elements(dtype, WINDOW * Q_HEADS * DK, 1), *k = elements(dtype, TOKENS * HEADS * DK, 2);
    void *v = elements(dtype, TOKENS * HEADS * DV, 3);
    lava_tensor tq = lava_tensor_token_major(dtype, q, bytes(dtype, WINDOW * Q_HEADS * DK), Q_HEADS, DK);
    lava_tensor tk = lava_tensor_head_major(dtype, k, bytes(dtype, TOKENS * HEADS * DK), TOKENS, DK);
    lava_tensor tv = lava_tensor_transposed(dtype, v, bytes(dtype, TOKENS * HEADS * DV), TOKENS, DV);
    size_t size;
    OK(lava_score_workspace_size(&shape, params, &size, &error));
    for (uint32_t part = 0; part < 2; part++) {
        void *workspace = allocate(size);
        OK(lava_score(&shape, params, &tq, &tk, &tv, NULL, part, 2, workspace, size, scores, &error));
        free(workspace);
    }

    double *stats = allocate(2 * HEADS * 8), *weight = allocate(8);
    for (uint32_t part = 0; part < 2; part++) {
        void *workspace = allocate(size);
        OK(lava_attention_stats(&shape, params, &tq, &tk, NULL, part, 2, workspace, size, stats, &error));
        free(workspace);
    }
    OK(lava_preference(&shape, stats, 1, 1, weight, &error));
    CHECK(*weight > 0);
    free(stats), free(weight);

    double *entropy = allocate(8), *mass = allocate(8);
    OK(lava_entropy(&shape, scores, entropy, mass, &error));
    CHECK(*entropy > 0 && *entropy <= 1 && *mass > 0);
    free(entropy), free(mass);

    uint64_t *n_entries = allocate(8), *n_kept = allocate(8);
    OK(lava_entries_for_share_workspace_size(&size, &error));
    void *workspace = allocate(size);
    OK(lava_entries_for_share(&shape, scores, 0.2, workspace, size, n_entries, &error));
    free(workspace);
    CHECK(*n_entries > 0 && *n_entries < ENTRIES);
    if (*n_entries < 9) *n_entries = 9;
    OK(lava_n_kept(&shape, *n_entries, n_kept, &error));
    uint8_t *mask = allocate(PREFIX);
    for (int i = 0; i < PREFIX; i++) mask[i] = i == 40;
    lava_select_params select = lava_select_params_lava_released();
    select.n_sink = 2;
    select.protected_mask = mask;
    uint32_t *kept = allocate(*n_kept * 4), *row = allocate(*n_kept * 4), *cu = allocate((HEADS + 1) * 4);
    lava_selection *selection = allocate(sizeof(*selection));
    *selection = lava_selection_init();
    OK(lava_select_workspace_size(&shape, &size, &error));
    workspace = allocate(size);
    OK(lava_select(&shape, &select, scores, *n_entries, workspace, size, kept, *n_kept, cu, row, selection, &error));
    CHECK(selection->n_kept == *n_kept && cu[HEADS] == *n_kept && memcmp(row, kept, *n_kept * 4) == 0);
    CHECK(shape.sliding_window != 0 || (kept[0] == 0 && kept[1] == 1));
    free(workspace), free(mask), free(selection), free(n_entries);
    again(dtype, &shape, &tk, &tv, kept, cu);

    /* Into a ragged cache with room for new rows, then in place in the source. */
    uint32_t *start = allocate(HEADS * 4), *n_rows = allocate(HEADS * 4);
    for (uint32_t h = 0; h < HEADS; h++) start[h] = cu[h] + h * NEW, n_rows[h] = cu[h + 1] - cu[h] + NEW;
    size_t rows = cu[HEADS] + HEADS * NEW;
    void *k_kept = elements(dtype, rows * DK, 4), *v_kept = elements(dtype, rows * DV, 5);
    lava_tensor to_k = lava_tensor_ragged(dtype, k_kept, bytes(dtype, rows * DK), start, DK);
    lava_tensor to_v = lava_tensor_ragged(dtype, v_kept, bytes(dtype, rows * DV), start, DV);
    for (uint32_t part = 0; part < 2; part++)
        OK(lava_compact(&shape, &tk, &tv, NULL, kept, cu, &to_k, &to_v, part, 2, &error));
    OK(lava_compact(&shape, &tk, &tv, NULL, kept, cu, &tk, &tv, 0, 1, &error));

    lava_shape new_shape = shape;
    new_shape.sliding_window = 100;
    float *sinks = allocate(Q_HEADS * 4);
    for (int h = 0; h < Q_HEADS; h++) sinks[h] = (float) h - 2;
    lava_attend_params attend = lava_attend_params_default();
    attend.n_base = TOKENS;
    attend.kept_indices = kept;
    attend.cu_kept = cu;
    attend.softcap = 20;
    attend.sink_logits = sinks;
    void *new_q = elements(dtype, NEW * Q_HEADS * DK, 6);
    lava_tensor tn = lava_tensor_token_major(dtype, new_q, bytes(dtype, NEW * Q_HEADS * DK), Q_HEADS, DK);
    float *out = allocate(NEW * Q_HEADS * DV * 4), *lse = allocate(NEW * Q_HEADS * 4);
    lava_tensor to = lava_tensor_token_major(LAVA_F32, out, NEW * Q_HEADS * DV * 4, Q_HEADS, DV);
    lava_tensor to_lse = lava_tensor_token_major(LAVA_F32, lse, NEW * Q_HEADS * 4, Q_HEADS, 1);
    OK(lava_attend_workspace_size(&new_shape, NEW, &size, &error));
    workspace = allocate(size);
    OK(lava_attend(&new_shape, &attend, NEW, &tn, &to_k, &to_v, n_rows, &to, &to_lse, 0, 1, workspace, size, &error));
    /* Every number of the result is read: valgrind knows whether it was written. */
    for (int i = 0; i < NEW * Q_HEADS * DV; i++) CHECK(isfinite(out[i]));
    for (int i = 0; i < NEW * Q_HEADS; i++) CHECK(isfinite(lse[i]));

    free(workspace), free(lse), free(out), free(sinks), free(new_q), free(v_kept), free(k_kept), free(n_rows), free(start);
    free(cu), free(row), free(kept), free(n_kept), free(v), free(k), free(q);
}

/* Layers that differ: what each keeps, at once and in cascades. The last stands for a layer that takes no part. */
/* Two ranks, of one head and of the others, keep in each layer what one process keeps in it; then one refuses. */
static void ranks(const lava_shape shapes[LAYERS + 1], const float *all, uint64_t total, int mode, const uint64_t *entries) {
    enum { RANKS = 2, N = LAYERS + 1 };
    lava_rank *rank[RANKS];
    lava_shape *own[RANKS];
    uint32_t *heads[RANKS], *first[RANKS], *n_words[RANKS], *is_done = allocate(4);
    float *scores[RANKS];
    void *state[RANKS];
    size_t size;
    for (uint32_t r = 0; r < RANKS; r++) {
        own[r] = allocate(N * sizeof(lava_shape)), heads[r] = allocate(N * 4), first[r] = allocate(N * 4), n_words[r] = allocate(4);
        const uint32_t n_own = r == 0 ? 1 : HEADS - 1;
        scores[r] = allocate(LAYERS * n_own * PREFIX * sizeof(float));
        for (uint32_t l = 0; l < N; l++) {
            own[r][l] = shapes[l];
            heads[r][l] = shapes[l].n_kv_heads;
            first[r][l] = r;
            if (shapes[l].n_kv_heads == 0) continue;
            own[r][l].n_q_heads = n_own * (Q_HEADS / HEADS);
            own[r][l].n_kv_heads = n_own;
            memcpy(scores[r] + l * n_own * PREFIX, all + l * ENTRIES + r * PREFIX, n_own * PREFIX * sizeof(float));
        }
        rank[r] = allocate(sizeof(lava_rank));
        *rank[r] = lava_rank_init(N, own[r], heads[r], first[r], scores[r], total);
        rank[r]->layers = mode;
        OK(lava_ranks_size(rank[r], &size, n_words[r], &error));
        state[r] = allocate(size);
    }
    const uint32_t capacity = *n_words[0];
    for (int refused = 0; refused < 2; refused++) {
        for (uint32_t r = 0; r < RANKS; r++) OK(lava_ranks_start(rank[r], state[r], size, &error));
        for (*is_done = 0; !*is_done;) {
            uint64_t *exchange[RANKS];
            for (uint32_t r = 0; r < RANKS; r++) {
                exchange[r] = allocate(capacity * sizeof(uint64_t));
                OK(lava_ranks_count(rank[r], state[r], size, exchange[r], capacity, n_words[r], &error));
            }
            if (refused) OK(lava_ranks_refuse(LAVA_ERR_WORKSPACE, exchange[0], *n_words[0], &error));
            uint64_t *sums = allocate(*n_words[0] * sizeof(uint64_t));
            for (uint32_t i = 0; i < *n_words[0]; i++) sums[i] = exchange[0][i] + exchange[1][i];
            for (uint32_t r = 0; r < RANKS; r++) {
                lava_status status = lava_ranks_round(rank[r], state[r], size, sums, *n_words[r], is_done, NULL);
                CHECK(status == (refused ? LAVA_ERR_WORKSPACE : LAVA_OK));
                free(exchange[r]);
            }
            free(sums);
            if (refused) break;
        }
        uint64_t kept[N] = {0};
        for (uint32_t r = 0; r < RANKS && !refused; r++) {
            const uint32_t n_own = r == 0 ? 1 : HEADS - 1;
            uint64_t *mine = allocate(N * 8), *layers = allocate(N * 8);
            double *weights = allocate(LAYERS * n_own * sizeof(double)), *entropies = allocate(N * sizeof(double));
            OK(lava_ranks_entries(rank[r], state[r], size, mine, weights, layers, entropies, &error));
            for (uint32_t l = 0; l < N; l++) kept[l] += mine[l];
            CHECK(memcmp(layers, entries, N * 8) == 0);
            free(mine), free(layers), free(weights), free(entropies);
        }
        CHECK(refused || memcmp(kept, entries, N * 8) == 0);
    }
    for (uint32_t r = 0; r < RANKS; r++) {
        free(rank[r]), free(own[r]), free(heads[r]), free(first[r]), free(n_words[r]), free(scores[r]), free(state[r]);
    }
    free(is_done);
}

static void model(const lava_shape shapes[LAYERS + 1], float *const scores[LAYERS]) {
    const lava_select_params params = lava_select_params_lava();
    const lava_cascade_params by_entropy = lava_cascade_params_lava();
    uint32_t *budget = allocate(4);
    uint64_t *total = allocate(8), *entries = allocate((LAYERS + 1) * 8);
    double *weights = allocate((LAYERS + 1) * 8);
    OK(lava_budget_from_ratio(&shapes[0], NULL, 0.3, budget, &error));
    OK(lava_total_entries(shapes, LAYERS + 1, LAYERS + 1, *budget, total, &error));
    for (int l = 0; l < LAYERS; l++) OK(lava_entropy(&shapes[l], scores[l], &weights[l], NULL, &error));
    weights[LAYERS] = 0;
    OK(lava_layer_entries(shapes, LAYERS + 1, LAYERS + 1, &params, weights, *total, entries, &error));
    CHECK(entries[LAYERS] == 0);

    size_t size;
    OK(lava_cascade_state_size(shapes, LAYERS + 1, LAYERS + 1, *total, &params, &by_entropy, &size, &error));
    void *state = allocate(size);
    OK(lava_cascade_init(shapes, LAYERS + 1, LAYERS + 1, *total, &params, &by_entropy, state, size, &error));
    for (int l = 0; l < LAYERS; l++) OK(lava_cascade_push(state, size, &shapes[l], scores[l], NULL, &error));
    lava_cascade_layer first = lava_cascade_layer_init();
    OK(lava_cascade_get(state, size, 0, &first, &error));
    for (uint32_t l = 0; l < LAYERS; l++) {
        lava_cascade_layer layer = lava_cascade_layer_init();
        OK(lava_cascade_get(state, size, l, &layer, &error));
        CHECK(layer.n_entries == entries[l] && layer.cu_kept[HEADS] == entries[l] + HEADS * WINDOW);
        for (uint32_t i = 0; i < layer.cu_kept[HEADS]; i++) CHECK(layer.kept_indices[i] < TOKENS && layer.rows[i] < TOKENS);
        CHECK(layer.cu_rows[HEADS] >= layer.cu_kept[HEADS]);
        /* The first layer's pointers are still valid. */
        CHECK(first.cu_kept[HEADS] == entries[0] + HEADS * WINDOW && first.kept_indices[0] < TOKENS);
    }
    free(state);

    /* The same by one sort over all layers, in a cascade and at once; and with weights. */
    float *all = allocate(LAYERS * ENTRIES * sizeof(float));
    for (int l = 0; l < LAYERS; l++) memcpy(all + l * ENTRIES, scores[l], ENTRIES * sizeof(float));
    double *head_weights = allocate(LAYERS * HEADS * 8);
    OK(lava_global_entries_workspace_size(shapes, LAYERS + 1, LAYERS + 1, &size, &error));
    void *workspace = allocate(size);
    OK(lava_global_entries(shapes, LAYERS + 1, LAYERS + 1, NULL, all, *total, workspace, size, entries, head_weights, &error));
    free(workspace);
    uint64_t sum = 0;
    for (int l = 0; l <= LAYERS; l++) sum += entries[l];
    CHECK(sum == *total && head_weights[0] + head_weights[1] <= (double) entries[0]);
    ranks(shapes, all, *total, LAVA_LAYERS_GLOBAL, entries);
    OK(lava_pyramid_weights(LAYERS, *budget - WINDOW, TOKENS - WINDOW, 20, weights, &error));
    for (int mode = LAVA_LAYERS_EQUAL; mode <= LAVA_LAYERS_GLOBAL; mode++) {
        lava_select_params by = params;
        lava_cascade_params cascade = lava_cascade_params_default();
        cascade.layers = mode;
        if (mode == LAVA_LAYERS_GLOBAL) by.head_min = 1;
        OK(lava_cascade_state_size(shapes, LAYERS + 1, LAYERS + 1, *total, &by, &cascade, &size, &error));
        state = allocate(size);
        OK(lava_cascade_init(shapes, LAYERS + 1, LAYERS + 1, *total, &by, &cascade, state, size, &error));
        for (int l = 0; l < LAYERS; l++) {
            double *weight = allocate(8);
            *weight = weights[l];
            OK(lava_cascade_push(state, size, &shapes[l], scores[l], mode == LAVA_LAYERS_WEIGHTS ? weight : NULL, &error));
            free(weight);
        }
        sum = 0;
        for (uint32_t l = 0; l <= LAYERS; l++) {
            lava_cascade_layer layer = lava_cascade_layer_init();
            OK(lava_cascade_get(state, size, l, &layer, &error));
            sum += layer.n_entries;
        }
        CHECK(sum == *total);
        free(state);
    }
    ask_again(&shapes[0], all);
    OK(lava_mean_over_heads(&shapes[0], all, &error));
    CHECK(all[0] == all[TOKENS - WINDOW]);
    free(all), free(head_weights), free(weights), free(entries), free(total), free(budget);
}

int main(void) {
    CHECK(lava_version() > 0 && strlen(lava_version_string()) > 0 && strlen(lava_status_string(-3)) > 0);
    float *scores[LAYERS], *sinks = allocate(Q_HEADS * sizeof(float));
    lava_shape shapes[LAYERS + 1];
    for (int h = 0; h < Q_HEADS; h++) sinks[h] = 1 - (float) h / 2;
    for (lava_dtype dtype = LAVA_F32; dtype <= LAVA_BF16; dtype++) {
        shapes[dtype] = lava_shape_init(TOKENS, Q_HEADS, HEADS, DK, DV, WINDOW);
        lava_score_params params = lava_score_params_lava();
        if (dtype == LAVA_F16) params.pool = LAVA_POOL_AVG, params.sink_logits = sinks;
        if (dtype == LAVA_BF16) shapes[dtype].sliding_window = 60, params.softcap = 30;
        scores[dtype] = allocate(ENTRIES * sizeof(float));
        one_layer(dtype, &shapes[dtype], &params, scores[dtype]);
    }
    shapes[LAYERS] = lava_shape_init(1, 0, 0, 1, 1, 1);
    model(shapes, scores);
    for (int l = 0; l < LAYERS; l++) free(scores[l]);
    free(sinks);
    printf("every function, with %s kernels\n", lava_backend_name(LAVA_BACKEND_BEST));
    return 0;
}
