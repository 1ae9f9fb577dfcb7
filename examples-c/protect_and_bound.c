/*
 * Beyond a number of tokens: protecting some of them, bounding the loss instead of the size, and saving a pass over K.
 *
 *   - the engine's own attention knows the log-sum-exp of the window's queries: lava_score takes it
 *   - sinks and a mask (a system prompt, say) are kept in every head, whatever their scores
 *   - lava_budget_for_share asks how many entries it takes to lose at most a given share of the score mass
 */
#include "capture.h"

#include <math.h>

enum { WINDOW = 32, N_SINK = 4, SYSTEM_FROM = 100, SYSTEM_TO = 120 };

int main(void) {
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    const uint32_t prompt = 1, layer = 2;
    capture_layer in = capture_get(&c, prompt, layer, WINDOW);
    lava_shape shape = capture_shape(&c, &in, layer, WINDOW);
    const uint32_t prefix = in.n_tokens - WINDOW, heads = c.n_kv_heads;
    const uint64_t all = (uint64_t) heads * prefix;

    /* Attention of the window, as an engine computes it during prefill. lava_attend stands in for it here: 32 new queries,
       whose own rows are the last 32 of every head. */
    lava_shape attention = shape;
    attention.n_tokens = WINDOW;
    lava_attend_params causal = lava_attend_params_init();
    size_t size;
    CHECK(lava_attend_workspace_size(&attention, &size, &error));
    void *scratch = allocate(size);
    size_t out_bytes = (size_t) WINDOW * c.n_q_heads * c.head_dim * sizeof(float);
    size_t lse_bytes = (size_t) WINDOW * c.n_q_heads * sizeof(float);
    float *out = allocate(out_bytes), *lse = allocate(lse_bytes);
    lava_tensor out_tensor = lava_tensor_token_major(LAVA_F32, out, out_bytes, c.n_q_heads, c.head_dim);
    lava_tensor lse_tensor = lava_tensor_token_major(LAVA_F32, lse, lse_bytes, c.n_q_heads, 1);
    uint32_t *n_rows = allocate(heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < heads; h++) n_rows[h] = in.n_tokens;
    CHECK(lava_attend(&attention, &causal, &in.q, &in.k, &in.v, n_rows, &out_tensor, &lse_tensor, 0, 1, scratch, size,
                      &error));
    free(scratch);

    /* With it and without: the same scores but for rounding, with a pass less. */
    lava_score_params scoring = lava_score_params_init();
    CHECK(lava_score_workspace_size(&shape, &scoring, &size, &error));
    scratch = allocate(size);
    float *scores = allocate(all * sizeof(float)), *with_lse = allocate(all * sizeof(float));
    CHECK(lava_score(&shape, &scoring, &in.q, &in.k, &in.v, NULL, 0, 1, scratch, size, scores, &error));
    CHECK(lava_score(&shape, &scoring, &in.q, &in.k, &in.v, &lse_tensor, 0, 1, scratch, size, with_lse, &error));
    free(scratch);
    float largest = 0, apart = 0;
    for (uint64_t i = 0; i < all; i++) {
        largest = fmaxf(largest, scores[i]);
        apart = fmaxf(apart, fabsf(scores[i] - with_lse[i]));
    }
    printf("with the attention's log-sum-exp: scores within %.1e of the largest\n", apart / largest);
    expect(apart <= 2e-5f * largest, "the log-sum-exp changes nothing but rounding");

    /* Protected: the first tokens, and a stretch that the engine knows must stay. */
    uint8_t *mask = allocate(prefix);
    memset(mask, 0, prefix);
    memset(mask + SYSTEM_FROM, 1, SYSTEM_TO - SYSTEM_FROM);
    lava_select_params selecting = lava_select_params_init();
    selecting.n_sink = N_SINK;
    selecting.protected_mask = mask;
    const uint64_t budget = all / 20, n_protected = (uint64_t) heads * (N_SINK + SYSTEM_TO - SYSTEM_FROM);
    CHECK(lava_select_workspace_size(&shape, &size, &error));
    scratch = allocate(size);
    uint32_t *kept = allocate((size_t) heads * in.n_tokens * sizeof(uint32_t));
    uint32_t *cu_kept = allocate((heads + 1) * sizeof(uint32_t));
    lava_selection done = lava_selection_init();
    CHECK(lava_select(&shape, &selecting, scores, budget, scratch, size, kept, (uint64_t) heads * in.n_tokens, cu_kept,
                      &done, &error));
    uint64_t found = 0;
    for (uint32_t i = 0; i < cu_kept[heads]; i++)
        found += kept[i] < N_SINK || (kept[i] >= SYSTEM_FROM && kept[i] < SYSTEM_TO);
    printf("5%% of the prefix, %llu entries, %llu of them protected: all there, %.1f%% of the score mass evicted\n",
           (unsigned long long) done.budget, (unsigned long long) n_protected, 100 * done.evicted_share);
    expect(found == n_protected && done.budget == budget, "protected entries are kept and count toward the budget");

    /* A budget that cannot hold them is refused, and says so. */
    lava_status refused = lava_select(&shape, &selecting, scores, n_protected - 1, scratch, size, kept,
                                      (uint64_t) heads * in.n_tokens, cu_kept, NULL, &error);
    printf("one entry less than the protected: \"%s: %s\", layer %u\n", error.argument, error.message, error.layer);
    expect(refused == LAVA_ERR_BUDGET, "too small a budget is an error");

    /* The other way round: how many entries for how much loss? */
    size_t share_size;
    CHECK(lava_budget_for_share_workspace_size(&share_size, &error));
    void *share_scratch = allocate(share_size);
    lava_select_params plain = lava_select_params_init();
    const double shares[] = {0.01, 0.05, 0.2, 0.5};
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        uint64_t entries;
        CHECK(lava_budget_for_share(&shape, scores, shares[i], share_scratch, share_size, &entries, &error));
        CHECK(lava_select(&shape, &plain, scores, entries, scratch, size, kept, (uint64_t) heads * in.n_tokens, cu_kept,
                          &done, &error));
        printf("to evict at most %4.0f%% of the score mass: keep %5llu of %llu entries (%4.1f%%)\n", 100 * shares[i],
               (unsigned long long) entries, (unsigned long long) all, 100.0 * (double) entries / (double) all);
        expect(done.evicted_share <= shares[i] + 1e-9, "the share is not exceeded");
    }

    free(share_scratch);
    free(scratch);
    free(cu_kept);
    free(kept);
    free(mask);
    free(with_lse);
    free(scores);
    free(n_rows);
    free(lse);
    free(out);
    capture_close(&c);
    return 0;
}
