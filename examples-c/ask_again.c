/*
 * Facts that are asked for later. A prompt's last lines, the window, do not look at most of what a later question will.
 * So the prompt's own queries are asked again, from the position after it: what they look at from there is what a later
 * mention of the same things will look at.
 *
 * Engines have these queries during prefill, before RoPE. Here everything is made up: a prompt of eight sections, each on
 * a topic of its own, with one fact in its middle. A section's queries look for its fact, and the window lies in the
 * last one.
 */
#include "capture.h"
#include "lava_methods.h"

#include <math.h>

enum { LAYERS = 2, Q_HEADS = 4, HEADS = 2, DIM = 32, TOKENS = 1024, WINDOW = 8, TOPICS = 8, FIRST = 4, ASKED = 255 };

static uint32_t topic_of(uint32_t token) { return token / (TOKENS / TOPICS); }
static uint32_t fact_of(uint32_t topic) { return topic * (TOKENS / TOPICS) + TOKENS / TOPICS / 2; }

/* The same numbers everywhere, in [-0.5, 0.5). */
static float noise(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float) (state >> 8) / 16777216.0f - 0.5f;
}

/* One layer: queries before RoPE, keys after it, values. */
typedef struct {
    float *q, *k, *v;
} made_layer;

static made_layer make_layer(const lava_shape *shape, const float *frequencies) {
    made_layer made = {allocate(TOKENS * Q_HEADS * DIM * sizeof(float)), allocate(TOKENS * HEADS * DIM * sizeof(float)),
                       allocate(TOKENS * HEADS * DIM * sizeof(float))};
    /* The slowest pairs of RoPE say what a token is about, two elements to a topic: a direction that it hardly turns. */
    for (uint32_t i = 0; i < TOKENS * Q_HEADS * DIM; i++) made.q[i] = noise();
    for (uint32_t i = 0; i < TOKENS * HEADS * DIM; i++) made.k[i] = noise(), made.v[i] = noise();
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t h = 0; h < Q_HEADS; h++)
            made.q[(t * Q_HEADS + h) * DIM + DIM / 2 - TOPICS + topic_of(t)] += 6;
    for (uint32_t topic = 0; topic < TOPICS; topic++)
        for (uint32_t h = 0; h < HEADS; h++)
            made.k[(fact_of(topic) * HEADS + h) * DIM + DIM / 2 - TOPICS + topic] += 6;
    /* The model turns its keys to where they stand. lava_rotate can do that too, for one position at a time. */
    lava_shape of_keys = lava_shape_init(shape->n_tokens, HEADS, HEADS, DIM, DIM, WINDOW);
    float turned[HEADS * DIM];
    for (uint32_t t = 0; t < TOKENS; t++) {
        float *row = made.k + (size_t) t * HEADS * DIM;
        lava_tensor from = lava_tensor_token_major(LAVA_F32, row, sizeof turned, HEADS, DIM);
        lava_tensor to = lava_tensor_token_major(LAVA_F32, turned, sizeof turned, HEADS, DIM);
        lava_error error = lava_error_init();
        CHECK(lava_rotate(&of_keys, 1, &from, frequencies, DIM, LAVA_ROPE_HALVES, 1, t, &to, &error));
        memcpy(row, turned, sizeof turned);
    }
    return made;
}

/* How many of the facts each head still has, on average, if all layers share this many entries by these scores. */
static double facts_kept(const lava_shape *shape, const lava_select_params *params, const float *scores, uint64_t total) {
    lava_error error = lava_error_init();
    size_t global_size, select_size;
    uint64_t entries[LAYERS];
    double head_weights[LAYERS * HEADS];
    CHECK(lava_global_entries_workspace_size(shape, 1, LAYERS, &global_size, &error));
    CHECK(lava_select_workspace_size(shape, &select_size, &error));
    size_t size = global_size > select_size ? global_size : select_size;
    void *workspace = allocate(size);
    CHECK(lava_global_entries(shape, 1, LAYERS, params, scores, total, workspace, size, entries, head_weights, &error));
    uint32_t kept_facts = 0;
    for (uint32_t l = 0; l < LAYERS; l++) {
        lava_select_params own = *params;
        own.head_weights = head_weights + l * HEADS;
        uint64_t n_kept;
        CHECK(lava_n_kept(shape, entries[l], &n_kept, &error));
        uint32_t *kept = allocate(n_kept * sizeof(uint32_t)), cu_kept[HEADS + 1];
        CHECK(lava_select(shape, &own, scores + l * lava_n_scores(shape), entries[l], workspace, size, kept, n_kept,
                          cu_kept, NULL, NULL, &error));
        for (uint64_t i = 0; i < n_kept; i++) kept_facts += kept[i] == fact_of(topic_of(kept[i]));
        free(kept);
    }
    free(workspace);
    return (double) kept_facts / (LAYERS * HEADS);
}

int main(void) {
    lava_error error = lava_error_init();
    lava_shape shape = lava_shape_init(TOKENS, Q_HEADS, HEADS, DIM, DIM, WINDOW);
    float frequencies[DIM / 2];
    for (uint32_t i = 0; i < DIM / 2; i++) frequencies[i] = powf(1e6f, -(float) i / (DIM / 2));

    /* What each query head counts in the layer: the norm of its part of the output matrix over sqrt(DIM) and the norm of
       the residual stream, which makes heads and layers comparable. */
    const float head_weights[Q_HEADS] = {0.9f, 1.1f, 1.0f, 0.8f};
    const lava_score_params ask_window = lava_score_params_ask_window(head_weights);
    const lava_score_params ask_again = lava_score_params_ask_again(head_weights);
    const lava_select_params select = lava_select_params_default();

    const uint64_t n_scores = lava_n_scores(&shape);
    float *by_window = allocate(LAYERS * n_scores * sizeof(float)), *by_all = allocate(LAYERS * n_scores * sizeof(float));
    for (uint32_t l = 0; l < LAYERS; l++) {
        shape.layer = l;
        made_layer made = make_layer(&shape, frequencies);
        const size_t k_bytes = TOKENS * HEADS * DIM * sizeof(float), row = Q_HEADS * DIM * sizeof(float);
        lava_tensor k = lava_tensor_token_major(LAVA_F32, made.k, k_bytes, HEADS, DIM);
        lava_tensor v = lava_tensor_token_major(LAVA_F32, made.v, k_bytes, HEADS, DIM);

        /* The window's queries, where they stand. An engine has them after RoPE already. */
        float *turned = allocate(ASKED * row);
        for (uint32_t j = 0; j < WINDOW; j++) {
            float *at = made.q + (size_t) (TOKENS - WINDOW + j) * Q_HEADS * DIM, *to = turned + j * Q_HEADS * DIM;
            lava_tensor before = lava_tensor_token_major(LAVA_F32, at, row, Q_HEADS, DIM);
            lava_tensor after = lava_tensor_token_major(LAVA_F32, to, row, Q_HEADS, DIM);
            CHECK(lava_rotate(&shape, 1, &before, frequencies, DIM, LAVA_ROPE_HALVES, 1, TOKENS - WINDOW + j, &after,
                              &error));
        }
        lava_tensor window = lava_tensor_token_major(LAVA_F32, turned, WINDOW * row, Q_HEADS, DIM);
        float *scores = by_all + l * n_scores;
        size_t size;
        CHECK(lava_score_workspace_size(&shape, &ask_window, &size, &error));
        void *workspace = allocate(size);
        CHECK(lava_score(&shape, &ask_window, &window, &k, &v, NULL, 0, 1, workspace, size, scores, &error));
        free(workspace);
        memcpy(by_window + l * n_scores, scores, n_scores * sizeof(float));

        /* Of each four tokens the query that is least like the others, as it was before RoPE, all of them turned to the
           position after the prompt. They see all keys. */
        float *after_first = made.q + (size_t) FIRST * Q_HEADS * DIM, *novelty = allocate((TOKENS - FIRST) * sizeof(float));
        uint32_t picked[ASKED];
        lava_tensor all = lava_tensor_token_major(LAVA_F32, after_first, (TOKENS - FIRST) * row, Q_HEADS, DIM);
        CHECK(lava_pick_queries(&shape, TOKENS - FIRST, &all, ASKED, novelty, picked, &error));
        float *before = allocate(ASKED * row);
        for (uint32_t j = 0; j < ASKED; j++) memcpy(before + j * Q_HEADS * DIM, after_first + picked[j] * Q_HEADS * DIM, row);
        lava_tensor from = lava_tensor_token_major(LAVA_F32, before, ASKED * row, Q_HEADS, DIM);
        lava_tensor asked = lava_tensor_token_major(LAVA_F32, turned, ASKED * row, Q_HEADS, DIM);
        CHECK(lava_rotate(&shape, ASKED, &from, frequencies, DIM, LAVA_ROPE_HALVES, 1, TOKENS, &asked, &error));
        free(before), free(novelty);
        CHECK(lava_score_queries_workspace_size(&shape, &ask_again, ASKED, &size, &error));
        workspace = allocate(size);
        CHECK(lava_score_queries(&shape, &ask_again, ASKED, &asked, &k, &v, 0, 1, workspace, size, scores, &error));
        free(workspace);

        /* What nobody asked about is not nothing. */
        CHECK(lava_smooth(&shape, &select, 0.5f, by_window + l * n_scores, &error));
        CHECK(lava_smooth(&shape, &select, 0.5f, scores, &error));
        free(turned), free(made.v), free(made.k), free(made.q);
    }

    printf("of %d facts in a prompt of %d tokens, a head still has, on average\n", TOPICS, TOKENS);
    printf("  %-14s %12s %12s\n", "tokens kept", "by window", "asked again");
    for (uint32_t percent = 20; percent >= 5; percent /= 2) {
        uint32_t budget;
        uint64_t total;
        CHECK(lava_budget_from_ratio(&shape, &select, percent / 100.0, &budget, &error));
        CHECK(lava_total_entries(&shape, 1, LAYERS, budget, &total, &error));
        double window = facts_kept(&shape, &select, by_window, total), all = facts_kept(&shape, &select, by_all, total);
        printf("  %3u%%, %4u      %12.2f %12.2f\n", percent, budget, window, all);
        expect(all >= window && all > TOPICS - 1, "asked again, nearly all facts are kept");
    }
    free(by_all), free(by_window);
    return 0;
}
