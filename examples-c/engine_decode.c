/*
 * Decoding on a compressed cache, as an engine does it: heads of different lengths, new tokens after each head's rows, and
 * compressing again when there are too many.
 *
 * The prompt's layer is compressed into a ragged cache with a reserve after each head. Each decode step writes its
 * token's K and V after every head's rows and attends. That is compared with attending to all steps at once, and with
 * plain loops over the tokens that are left. Then the same with a sliding window, for which the rows' true positions
 * matter. Last, the layer is compressed again, decoded tokens included: the shape says which rows are left.
 */
#include "capture.h"

#include <math.h>

enum { WINDOW = 32, SLIDING = 400 };

static double from_half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;  /* infinities do not occur */
    double value = exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024, exponent - 25);
    return bits >> 15 ? -value : value;
}

/* The captured rows of K and V at a position, of the prompt or of a decode step. */
static const uint16_t *captured(const capture *c, const capture_layer *in, int want_v, uint32_t position, uint32_t g) {
    int is_new = position >= in->n_tokens;
    const lava_tensor *t = want_v ? (is_new ? &in->v_next : &in->v) : is_new ? &in->k_next : &in->k;
    size_t token = is_new ? position - in->n_tokens : position;
    return (const uint16_t *) t->data + (token * c->n_kv_heads + g) * c->head_dim;
}

/* Plain attention of decode step t, query head `head`, over the tokens at these positions. Returns the largest
   difference from `got`. */
static double compare(const capture *c, const capture_layer *in, uint32_t t, uint32_t head, const uint32_t *positions,
                      uint32_t n, uint32_t sliding, const float *got) {
    uint32_t dim = c->head_dim, g = head / (c->n_q_heads / c->n_kv_heads), mine = in->n_tokens + t;
    const float *q = (const float *) in->q_next.data + ((size_t) t * c->n_q_heads + head) * dim;
    double *out = allocate(dim * sizeof(double)), sum = 0, worst = 0;
    for (uint32_t d = 0; d < dim; d++) out[d] = 0;
    for (uint32_t r = 0; r < n; r++) {
        if (positions[r] > mine || (sliding != 0 && positions[r] + sliding <= mine)) continue;
        const uint16_t *k = captured(c, in, 0, positions[r], g), *v = captured(c, in, 1, positions[r], g);
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

/* A ragged cache of one layer. Head h's rows begin at row_start[h], with room up to row_start[h + 1]. */
typedef struct {
    lava_tensor k, v;
    uint32_t *row_start;  /* n_kv_heads + 1 entries */
    uint32_t *n_rows;     /* rows that each head holds */
    uint32_t *positions;  /* the token of each row, at the row's place */
} cache;

/* The largest difference from plain loops, over the decode steps from `from` on. out: [n_next, n_q_heads, head_dim]. */
static double compare_all(const capture *c, const capture_layer *in, const cache *held, uint32_t from, uint32_t sliding,
                          const float *out) {
    double worst = 0;
    for (uint32_t t = from; t < c->n_next; t++) {
        for (uint32_t head = 0; head < c->n_q_heads; head++) {
            uint32_t g = head / (c->n_q_heads / c->n_kv_heads);
            const uint32_t *positions = held->positions + held->row_start[g];
            const float *got = out + ((size_t) t * c->n_q_heads + head) * c->head_dim;
            worst = fmax(worst, compare(c, in, t, head, positions, held->n_rows[g], sliding, got));
        }
    }
    return worst;
}

static void print_rows(const char *what, const cache *held, uint32_t n_heads) {
    printf("%s:", what);
    for (uint32_t h = 0; h < n_heads; h++) printf(" %u", held->n_rows[h]);
    printf("\n");
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
    uint64_t n_entries, n_kept;
    CHECK(lava_budget_from_ratio(&shape, NULL, 0.25, &budget, &error));
    CHECK(lava_total_entries(&shape, 1, 1, budget, &n_entries, &error));
    CHECK(lava_n_kept(&shape, n_entries, &n_kept, &error));
    size_t sizes[3], workspace_size = 0;
    CHECK(lava_score_workspace_size(&shape, NULL, &sizes[0], &error));
    CHECK(lava_select_workspace_size(&shape, &sizes[1], &error));
    CHECK(lava_attend_workspace_size(&shape, c.n_next, &sizes[2], &error));
    for (int i = 0; i < 3; i++)
        if (sizes[i] > workspace_size) workspace_size = sizes[i];
    void *workspace = allocate(workspace_size);
    float *scores = allocate(lava_n_scores(&shape) * sizeof(float));
    uint32_t *kept = allocate(n_kept * sizeof(uint32_t)), *cu_kept = allocate((n_heads + 1) * sizeof(uint32_t));
    CHECK(lava_score(&shape, NULL, &in.q, &in.k, &in.v, NULL, 0, 1, workspace, workspace_size, scores, &error));
    CHECK(lava_select(&shape, NULL, scores, n_entries, workspace, workspace_size, kept, n_kept, cu_kept, NULL, NULL,
                      &error));

    /* The cache: each head's kept rows, and `reserve` free rows after them. */
    cache held;
    size_t n_room = n_kept + (size_t) n_heads * reserve;
    char *k_rows = allocate(n_room * row), *v_rows = allocate(n_room * row);
    held.row_start = allocate((n_heads + 1) * sizeof(uint32_t));
    held.n_rows = allocate(n_heads * sizeof(uint32_t));
    held.positions = allocate(n_room * sizeof(uint32_t));
    for (uint32_t h = 0; h <= n_heads; h++) held.row_start[h] = cu_kept[h] + h * reserve;
    for (uint32_t h = 0; h < n_heads; h++) {
        held.n_rows[h] = cu_kept[h + 1] - cu_kept[h];
        memcpy(held.positions + held.row_start[h], kept + cu_kept[h], held.n_rows[h] * sizeof(uint32_t));
    }
    held.k = lava_tensor_ragged(LAVA_F16, k_rows, n_room * row, held.row_start, dim);
    held.v = lava_tensor_ragged(LAVA_F16, v_rows, n_room * row, held.row_start, dim);
    CHECK(lava_compact(&shape, &in.k, &in.v, NULL, kept, cu_kept, &held.k, &held.v, 0, 1, &error));
    printf("%u tokens, a quarter is kept, with room for %u more after each head\n", in.n_tokens, reserve);
    print_rows("rows of each KV head", &held, n_heads);

    /* Decode, a token at a time. */
    size_t out_size = c.n_next * step * sizeof(float);
    float *out = allocate(out_size), *out_at_once = allocate(out_size);
    for (uint32_t t = 0; t < c.n_next; t++) {
        for (uint32_t h = 0; h < n_heads; h++) {
            size_t to = held.row_start[h] + held.n_rows[h]++, from = (size_t) t * n_heads + h;
            memcpy(k_rows + to * row, (char *) in.k_next.data + from * row, row);
            memcpy(v_rows + to * row, (char *) in.v_next.data + from * row, row);
            held.positions[to] = in.n_tokens + t;
        }
        float *q_row = (float *) in.q_next.data + t * step;
        lava_tensor q = lava_tensor_token_major(LAVA_F32, q_row, step * sizeof(float), c.n_q_heads, dim);
        lava_tensor to = lava_tensor_token_major(LAVA_F32, out + t * step, step * sizeof(float), c.n_q_heads, dim);
        CHECK(lava_attend(&shape, NULL, 1, &q, &held.k, &held.v, held.n_rows, &to, NULL, 0, 1, workspace,
                          workspace_size, &error));
    }
    double worst = compare_all(&c, &in, &held, 0, 0, out);
    printf("%u decode steps, one by one: at most %.1e from plain loops over the kept tokens\n", c.n_next, worst);
    expect(worst < 1e-4, "attention over the ragged cache is attention over the kept tokens");

    /* The same queries at once: each sees all rows but those of the steps after it. */
    lava_tensor to_all = lava_tensor_token_major(LAVA_F32, out_at_once, out_size, c.n_q_heads, dim);
    CHECK(lava_attend(&shape, NULL, c.n_next, &in.q_next, &held.k, &held.v, held.n_rows, &to_all, NULL, 0, 1, workspace,
                      workspace_size, &error));
    double apart = 0;
    for (size_t i = 0; i < c.n_next * step; i++) apart = fmax(apart, fabs((double) out[i] - (double) out_at_once[i]));
    printf("all at once, causal: at most %.1e from one by one\n", apart);
    expect(apart < 1e-5, "one by one and all at once agree");

    /* A sliding window goes by positions, not rows: kept rows have kept_indices, new ones are numbered from n_base on. */
    lava_shape sliding = shape;
    sliding.sliding_window = SLIDING;
    lava_attend_params with_positions = lava_attend_params_default();
    with_positions.kept_indices = kept;
    with_positions.cu_kept = cu_kept;
    with_positions.n_base = in.n_tokens;
    CHECK(lava_attend(&sliding, &with_positions, c.n_next, &in.q_next, &held.k, &held.v, held.n_rows, &to_all, NULL, 0,
                      1, workspace, workspace_size, &error));
    worst = compare_all(&c, &in, &held, 0, SLIDING, out_at_once);
    printf("with a sliding window of %d positions: at most %.1e from plain loops\n", SLIDING, worst);
    expect(worst < 1e-4, "the sliding window is over true positions");

    /*
     * The reserve is full: compress again. The window is the last WINDOW tokens, here half of them decoded; an engine
     * keeps the last queries. cu_rows and positions say which rows are left; there is no padding.
     */
    lava_shape again = shape;
    uint32_t *cu_rows = allocate((n_heads + 1) * sizeof(uint32_t));
    uint32_t *positions = allocate(n_room * sizeof(uint32_t));
    cu_rows[0] = 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        memcpy(positions + cu_rows[h], held.positions + held.row_start[h], held.n_rows[h] * sizeof(uint32_t));
        cu_rows[h + 1] = cu_rows[h] + held.n_rows[h];
    }
    again.n_tokens = in.n_tokens + c.n_next;
    again.cu_rows = cu_rows;
    again.positions = positions;

    size_t n_old = WINDOW - c.n_next, q_size = WINDOW * step * sizeof(float);
    float *queries = allocate(q_size);
    memcpy(queries, (float *) in.q.data + c.n_next * step, n_old * step * sizeof(float));
    memcpy(queries + n_old * step, in.q_next.data, c.n_next * step * sizeof(float));
    lava_tensor q = lava_tensor_token_major(LAVA_F32, queries, q_size, c.n_q_heads, dim);

    uint32_t *rows = allocate(n_kept * sizeof(uint32_t));
    CHECK(lava_score_workspace_size(&again, NULL, &sizes[0], &error));
    CHECK(lava_select_workspace_size(&again, &sizes[1], &error));
    size_t again_size = sizes[0] > sizes[1] ? sizes[0] : sizes[1];
    void *again_workspace = allocate(again_size);
    float *again_scores = allocate(lava_n_scores(&again) * sizeof(float));
    lava_selection done = lava_selection_init();
    CHECK(lava_score(&again, NULL, &q, &held.k, &held.v, NULL, 0, 1, again_workspace, again_size, again_scores,
                     &error));
    CHECK(lava_select(&again, NULL, again_scores, n_entries, again_workspace, again_size, kept, n_kept, cu_kept, rows,
                      &done, &error));
    /* In place, each head in its own memory: a head never keeps more rows than it had. rows says which ones move. */
    CHECK(lava_compact(&again, &held.k, &held.v, NULL, rows, cu_kept, &held.k, &held.v, 0, 1, &error));
    for (uint32_t h = 0; h < n_heads; h++) {
        held.n_rows[h] = cu_kept[h + 1] - cu_kept[h];
        memcpy(held.positions + held.row_start[h], kept + cu_kept[h], held.n_rows[h] * sizeof(uint32_t));
        for (uint32_t r = 0; r < held.n_rows[h]; r++) {
            size_t at = held.row_start[h] + r;
            expect(memcmp(k_rows + at * row, captured(&c, &in, 0, held.positions[at], h), row) == 0
                       && memcmp(v_rows + at * row, captured(&c, &in, 1, held.positions[at], h), row) == 0,
                   "a row is that of the token at its position");
        }
    }
    printf("compressed again, %u tokens by now: %.2f%% of the score mass of what was left evicted\n", again.n_tokens,
           100 * done.evicted_share);
    print_rows("rows of each KV head", &held, n_heads);
    expect(done.n_entries == n_entries && done.n_kept == n_kept, "as many rows as after the first time");

    /* The last decode step's query once more, over what is left. */
    uint32_t last = c.n_next - 1;
    lava_tensor q_last = lava_tensor_token_major(LAVA_F32, (float *) in.q_next.data + last * step, step * sizeof(float),
                                                 c.n_q_heads, dim);
    lava_tensor to_last = lava_tensor_token_major(LAVA_F32, out + last * step, step * sizeof(float), c.n_q_heads, dim);
    CHECK(lava_attend(&again, NULL, 1, &q_last, &held.k, &held.v, held.n_rows, &to_last, NULL, 0, 1, workspace,
                      workspace_size, &error));
    worst = compare_all(&c, &in, &held, last, 0, out);
    printf("the last step over that: at most %.1e from plain loops\n", worst);
    expect(worst < 1e-4, "attention goes on over the smaller cache");

    free(again_scores);
    free(again_workspace);
    free(rows);
    free(queries);
    free(positions);
    free(cu_rows);
    free(out_at_once);
    free(out);
    free(held.positions);
    free(held.n_rows);
    free(held.row_start);
    free(v_rows);
    free(k_rows);
    free(cu_kept);
    free(kept);
    free(scores);
    free(workspace);
    capture_close(&c);
    return 0;
}
