/*
 * Beyond a number of tokens: protecting some of them, bounding the loss instead of the size, and saving a pass over K.
 *
 *   - the engine's own attention knows the log-sum-exp of the window's queries: lava_score takes it
 *   - the first tokens and a mask (a system prompt, say) are kept in every head, whatever their scores
 *   - lava_entries_for_share says how many entries it takes to lose at most a given share of the score mass
 */
#include "capture.h"

#include <math.h>

enum { WINDOW = 32, SYSTEM_FROM = 100, SYSTEM_TO = 120 };

int main(void) {
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    const uint32_t prompt = 1, layer = 2;
    capture_layer in = capture_get(&c, prompt, layer, WINDOW);
    lava_shape shape = capture_shape(&c, &in, layer, WINDOW);
    const uint32_t prefix = in.n_tokens - WINDOW, heads = c.n_kv_heads;
    const uint64_t all = lava_n_scores(&shape), room = (uint64_t) heads * in.n_tokens;

    /* Attention of the window, as an engine computes it during prefill. lava_attend stands in for it here: WINDOW new
       queries, whose own rows are the last of every head. */
    size_t size;
    CHECK(lava_attend_workspace_size(&shape, WINDOW, &size, &error));
    void *scratch = allocate(size);
    size_t out_bytes = (size_t) WINDOW * c.n_q_heads * c.head_dim * sizeof(float);
    size_t lse_bytes = (size_t) WINDOW * c.n_q_heads * sizeof(float);
    float *out = allocate(out_bytes), *lse = allocate(lse_bytes);
    lava_tensor out_tensor = lava_tensor_token_major(LAVA_F32, out, out_bytes, c.n_q_heads, c.head_dim);
    lava_tensor lse_tensor = lava_tensor_token_major(LAVA_F32, lse, lse_bytes, c.n_q_heads, 1);
    uint32_t *n_rows = allocate(heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < heads; h++) n_rows[h] = in.n_tokens;
    CHECK(lava_attend(&shape, NULL, WINDOW, &in.q, &in.k, &in.v, n_rows, &out_tensor, &lse_tensor, 0, 1, scratch, size,
                      &error));
    free(scratch);

    /* With it and without: the same scores except for rounding, with one pass less. */
    CHECK(lava_score_workspace_size(&shape, NULL, &size, &error));
    scratch = allocate(size);
    float *scores = allocate(all * sizeof(float)), *with_lse = allocate(all * sizeof(float));
    CHECK(lava_score(&shape, NULL, &in.q, &in.k, &in.v, NULL, 0, 1, scratch, size, scores, &error));
    CHECK(lava_score(&shape, NULL, &in.q, &in.k, &in.v, &lse_tensor, 0, 1, scratch, size, with_lse, &error));
    free(scratch);
    float largest = 0, apart = 0;
    for (uint64_t i = 0; i < all; i++) {
        largest = fmaxf(largest, scores[i]);
        apart = fmaxf(apart, fabsf(scores[i] - with_lse[i]));
    }
    printf("with the attention's log-sum-exp: scores within %.1e of the largest\n", apart / largest);
    expect(apart <= 2e-5f * largest, "the log-sum-exp changes nothing but rounding");

    /* Protected: the first tokens, as in the recommended preset, and a stretch that the engine knows must stay. */
    uint8_t *mask = allocate(prefix);
    memset(mask, 0, prefix);
    memset(mask + SYSTEM_FROM, 1, SYSTEM_TO - SYSTEM_FROM);
    lava_select_params selecting = lava_select_params_default();
    selecting.protected_mask = mask;
    const uint64_t n_entries = all / 20;
    const uint64_t n_protected = (uint64_t) heads * (selecting.n_sink + SYSTEM_TO - SYSTEM_FROM);
    CHECK(lava_select_workspace_size(&shape, &size, &error));
    scratch = allocate(size);
    uint32_t *kept = allocate(room * sizeof(uint32_t)), *cu_kept = allocate((heads + 1) * sizeof(uint32_t));
    lava_selection done = lava_selection_init();
    CHECK(lava_select(&shape, &selecting, scores, n_entries, scratch, size, kept, room, cu_kept, NULL, &done, &error));
    uint64_t found = 0;
    for (uint32_t i = 0; i < cu_kept[heads]; i++)
        found += kept[i] < selecting.n_sink || (kept[i] >= SYSTEM_FROM && kept[i] < SYSTEM_TO);
    printf("5%% of the prefix, %llu entries, %llu of them protected: all there, %.1f%% of the score mass evicted\n",
           (unsigned long long) done.n_entries, (unsigned long long) n_protected, 100 * done.evicted_share);
    expect(found == n_protected && done.n_entries == n_entries, "protected entries are kept and count");

    /* Entries that cannot hold them are refused, and the error says so. */
    lava_status refused = lava_select(&shape, &selecting, scores, n_protected - 1, scratch, size, kept, room, cu_kept,
                                      NULL, NULL, &error);
    printf("one entry less than the protected: \"%s: %s\", layer %u\n", error.argument, error.message, error.layer);
    expect(refused == LAVA_ERR_BUDGET, "too few entries are an error");
    free(scratch);

    /* The other way round: how many entries for how much loss? By LAVa's scores, since it is their evicted share that
       bounds how far attention's output moves; and without floors and sinks, which the share does not count. */
    lava_score_params bounding = lava_score_params_lava();
    lava_select_params plain = lava_select_params_lava();
    size_t score_size, select_size, share_size;
    CHECK(lava_score_workspace_size(&shape, &bounding, &score_size, &error));
    CHECK(lava_select_workspace_size(&shape, &select_size, &error));
    CHECK(lava_entries_for_share_workspace_size(&share_size, &error));
    size = score_size > select_size ? score_size : select_size;
    if (size < share_size) size = share_size;
    scratch = allocate(size);
    CHECK(lava_score(&shape, &bounding, &in.q, &in.k, &in.v, &lse_tensor, 0, 1, scratch, size, scores, &error));
    const double shares[] = {0.01, 0.05, 0.2, 0.5};
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        uint64_t enough;
        CHECK(lava_entries_for_share(&shape, scores, shares[i], scratch, size, &enough, &error));
        CHECK(lava_select(&shape, &plain, scores, enough, scratch, size, kept, room, cu_kept, NULL, &done, &error));
        printf("to evict at most %4.0f%% of LAVa's score mass: keep %5llu of %llu entries (%4.1f%%)\n", 100 * shares[i],
               (unsigned long long) enough, (unsigned long long) all, 100.0 * (double) enough / (double) all);
        expect(done.evicted_share <= shares[i] + 1e-9, "the share is not exceeded");
    }

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
