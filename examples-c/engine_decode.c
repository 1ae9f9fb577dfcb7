/*
 * Decoding on a compressed cache, as an engine does it: heads of unlike length, new tokens behind each.
 *
 * The prompt's layer is compressed into a ragged cache with a reserve behind each head. Each decode step writes its token's
 * K and V behind every head's rows and attends. That is compared with attending to all steps at once, and with plain
 * loops over the kept tokens. Last, the same with a sliding window, for which the rows' true positions matter.
 */
#include "capture.h"

#include <math.h>

enum { WINDOW = 32, SLIDING = 400 };

static double from_half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024, exponent - 25);  /* infinities are not met */
    return bits >> 15 ? -value : value;
}

/*
 * Plain attention of decode step t, query head `head`, over `n_kept` tokens of the prompt and the decode tokens up to t.
 * Dense inputs, true positions. Returns the largest difference from `got`.
 */
static double compare(const capture *c, const capture_layer *in, uint32_t t, uint32_t head, const uint32_t *kept, uint32_t n_kept,
                      uint32_t sliding, const float *got) {
    uint32_t dim = c->head_dim, g = head / (c->n_q_heads / c->n_kv_heads);
    const float *q = (const float *) in->q_next.data + ((size_t) t * c->n_q_heads + head) * dim;
    double *out = allocate(dim * sizeof(double)), sum = 0, worst = 0;
    for (uint32_t d = 0; d < dim; d++) out[d] = 0;
    for (uint32_t r = 0; r < n_kept + t + 1; r++) {
        uint32_t token = r < n_kept ? kept[r] : r - n_kept, position = r < n_kept ? token : in->n_tokens + token;
        if (sliding != 0 && position + sliding <= in->n_tokens + t) continue;
        size_t at = ((size_t) token * c->n_kv_heads + g) * dim;
        const uint16_t *k = (const uint16_t *) (r < n_kept ? &in->k : &in->k_next)->data + at;
        const uint16_t *v = (const uint16_t *) (r < n_kept ? &in->v : &in->v_next)->data + at;
        double logit = 0;
        for (uint32_t d = 0; d < dim; d++) logit += (double) q[d] * from_half(k[d]);
        double weight = exp(logit / sqrt(dim));
        for (uint32_t d = 0; d < dim; d++) out[d] += weight * from_half(v[d]);
        sum += weight;
    }
    for (uint32_t d = 0; d < dim; d++) {
        expect(isfinite(got[d]), "attention's output is finite");
        worst = fmax(worst, fabs(out[d] / sum - (double) got[d]));
    }
    free(out);
    return worst;
}

int main(void) {
    const uint32_t prompt = 0, layer = 1;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    capture_layer in = capture_get(&c, prompt, layer, WINDOW);
    lava_shape shape = capture_shape(&c, &in, layer, WINDOW);
    uint32_t n_heads = c.n_kv_heads, dim = c.head_dim, reserve = c.n_next;
    size_t row = dim * sizeof(uint16_t), step = (size_t) c.n_q_heads * dim;

    /* Which tokens are kept: as in one_layer.c. */
    uint32_t budget;
    uint64_t entries, n_kept;
    CHECK(lava_budget_from_ratio(&shape, 0.25, &budget, &error));
    CHECK(lava_total_entries(&shape, budget, 1, &entries, &error));
    CHECK(lava_n_kept(&shape, entries, &n_kept, &error));
    lava_score_params how_to_score = lava_score_params_init();
    lava_select_params how_to_select = lava_select_params_init();
    lava_shape steps = shape, one_step = shape;  /* for lava_attend n_tokens is the number of queries */
    steps.n_tokens = c.n_next;
    one_step.n_tokens = 1;
    size_t sizes[3], workspace_size = 0;
    CHECK(lava_score_workspace_size(&shape, &how_to_score, &sizes[0], &error));
    CHECK(lava_select_workspace_size(&shape, &sizes[1], &error));
    CHECK(lava_attend_workspace_size(&steps, &sizes[2], &error));
    for (int i = 0; i < 3; i++)
        if (sizes[i] > workspace_size) workspace_size = sizes[i];
    void *workspace = allocate(workspace_size);
    float *scores = allocate((size_t) n_heads * (in.n_tokens - WINDOW) * sizeof(float));
    uint32_t *kept = allocate(n_kept * sizeof(uint32_t)), *cu_kept = allocate((n_heads + 1) * sizeof(uint32_t));
    CHECK(lava_score(&shape, &how_to_score, &in.q, &in.k, &in.v, NULL, 0, 1, workspace, workspace_size, scores, &error));
    CHECK(lava_select(&shape, &how_to_select, scores, entries, workspace, workspace_size, kept, n_kept, cu_kept, NULL, &error));

    /* The cache: head h's rows from row_start[h] on, with `reserve` free rows behind the kept ones. */
    uint32_t *row_start = allocate(n_heads * sizeof(uint32_t)), *n_rows = allocate(n_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < n_heads; h++) {
        row_start[h] = cu_kept[h] + h * reserve;
        n_rows[h] = cu_kept[h + 1] - cu_kept[h];
    }
    size_t cache_size = (n_kept + (size_t) n_heads * reserve) * row;
    char *k_rows = allocate(cache_size), *v_rows = allocate(cache_size);
    lava_tensor k = lava_tensor_ragged(LAVA_F16, k_rows, cache_size, row_start, dim);
    lava_tensor v = lava_tensor_ragged(LAVA_F16, v_rows, cache_size, row_start, dim);
    CHECK(lava_compact(&shape, &in.k, &in.v, NULL, kept, cu_kept, &k, &v, 0, 1, &error));
    printf("%u tokens; kept by each KV head, with room for %u more:", in.n_tokens, reserve);
    for (uint32_t h = 0; h < n_heads; h++) printf(" %u", n_rows[h]);
    printf("\n");

    /* Decode. */
    size_t out_size = c.n_next * step * sizeof(float);
    float *out = allocate(out_size), *out_at_once = allocate(out_size);
    lava_attend_params params = lava_attend_params_init();
    double worst = 0;
    for (uint32_t t = 0; t < c.n_next; t++) {
        for (uint32_t h = 0; h < n_heads; h++) {
            size_t to = (row_start[h] + n_rows[h]) * row, from = ((size_t) t * n_heads + h) * row;
            memcpy(k_rows + to, (char *) in.k_next.data + from, row);
            memcpy(v_rows + to, (char *) in.v_next.data + from, row);
            n_rows[h]++;
        }
        lava_tensor q = lava_tensor_token_major(LAVA_F32, (float *) in.q_next.data + t * step, step * sizeof(float), c.n_q_heads, dim);
        lava_tensor to = lava_tensor_token_major(LAVA_F32, out + t * step, step * sizeof(float), c.n_q_heads, dim);
        CHECK(lava_attend(&one_step, &params, &q, &k, &v, n_rows, &to, NULL, 0, 1, workspace, workspace_size, &error));
        for (uint32_t head = 0; head < c.n_q_heads; head++) {
            uint32_t g = head / (c.n_q_heads / n_heads);
            worst = fmax(worst, compare(&c, &in, t, head, kept + cu_kept[g], cu_kept[g + 1] - cu_kept[g], 0, out + t * step + head * dim));
        }
    }
    printf("%u decode steps, one by one: at most %.1e from plain loops over the kept tokens\n", c.n_next, worst);
    expect(worst < 1e-4, "attention over the ragged cache is attention over the kept tokens");

    /* The same queries at once: each sees all rows but those of the steps behind it. */
    lava_tensor to_all = lava_tensor_token_major(LAVA_F32, out_at_once, out_size, c.n_q_heads, dim);
    CHECK(lava_attend(&steps, &params, &in.q_next, &k, &v, n_rows, &to_all, NULL, 0, 1, workspace, workspace_size, &error));
    double apart = 0;
    for (size_t i = 0; i < c.n_next * step; i++) apart = fmax(apart, fabs((double) out[i] - (double) out_at_once[i]));
    printf("all at once, causal: at most %.1e from one by one\n", apart);
    expect(apart < 1e-5, "one by one and all at once agree");

    /* A sliding window looks at positions, not rows: kept rows have those of kept_indices, new ones count on from n_base. */
    params.sliding_window = SLIDING;
    params.kept_indices = kept;
    params.cu_kept = cu_kept;
    params.n_base = in.n_tokens;
    CHECK(lava_attend(&steps, &params, &in.q_next, &k, &v, n_rows, &to_all, NULL, 0, 1, workspace, workspace_size, &error));
    worst = 0;
    for (uint32_t t = 0; t < c.n_next; t++) {
        for (uint32_t head = 0; head < c.n_q_heads; head++) {
            uint32_t g = head / (c.n_q_heads / n_heads);
            worst = fmax(worst, compare(&c, &in, t, head, kept + cu_kept[g], cu_kept[g + 1] - cu_kept[g], SLIDING,
                                        out_at_once + t * step + head * dim));
        }
    }
    printf("with a sliding window of %d positions: at most %.1e from plain loops\n", SLIDING, worst);
    expect(worst < 1e-4, "the sliding window is over true positions");

    free(out_at_once);
    free(out);
    free(v_rows);
    free(k_rows);
    free(n_rows);
    free(row_start);
    free(cu_kept);
    free(kept);
    free(scores);
    free(workspace);
    capture_close(&c);
    return 0;
}
