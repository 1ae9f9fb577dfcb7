/*
 * What compression does to a real KV cache: run it from the project's root.
 *
 * For the captured prompts of a small model, at 50%, 20% and 10% of their tokens, it shares the same total in five
 * ways, the recommended preset first, and measures for each how far attention's output of the next decode steps moves.
 * Then it compresses while the layers arrive, as an engine would during prefill (a cascade), and compares with
 * compressing at the end. Last, it draws who keeps what: budget-map.svg.
 *
 *     quickstart [path of the picture]        default: target/budget-map.svg
 */
#include "capture.h"
#include "lava_methods.h"
#include "report.h"

#include <math.h>
#include <time.h>

enum { WINDOW = 32, N_METHODS = 5, N_RATIOS = 3 };

static const double RATIOS[N_RATIOS] = {0.5, 0.2, 0.1};
static const double SHOWN_RATIO = 0.2;  /* of the timeline and the picture */

/* The scores that methods use. */
typedef enum { RECOMMENDED_SCORES, LAVA_SCORES, N_SCORERS } scorer;

/* The ways to share a total that are compared. */
typedef struct {
    const char *name;
    scorer scores;
    lava_select_params select;  /* heads share by their scores, or each gets the same */
    int32_t layers;             /* LAVA_LAYERS_: how the layers share */
} method;

static void make_methods(method methods[N_METHODS]) {
    lava_select_params lava = lava_select_params_lava(), equal = lava_select_params_equal();
    methods[0] = (method) {"recommended preset", RECOMMENDED_SCORES, lava_select_params_default(), LAVA_LAYERS_GLOBAL};
    methods[1] = (method) {"LAVa's scores, equal budgets", LAVA_SCORES, equal, LAVA_LAYERS_EQUAL};
    methods[2] = (method) {"LAVa's scores and head budgets", LAVA_SCORES, lava, LAVA_LAYERS_EQUAL};
    methods[3] = (method) {"LAVa, head and layer budgets", LAVA_SCORES, lava, LAVA_LAYERS_ENTROPY};
    methods[4] = (method) {"LAVa as its authors' code has it", LAVA_SCORES, lava_select_params_lava_released(),
                           LAVA_LAYERS_ENTROPY};
}

/* CPU time: every C library has it, and one thread does all the work. On Windows it advances in whole milliseconds. */
static double now_ms(void) {
    return 1e3 * (double) clock() / CLOCKS_PER_SEC;
}

/* K and V are malloc'ed here and counted, so that the bytes printed are those that were really held. */
static size_t kv_bytes, kv_peak;

static void *kv_resize(void *memory, size_t old_size, size_t new_size) {
    kv_bytes += new_size - old_size;
    if (kv_bytes > kv_peak) kv_peak = kv_bytes;
    if (new_size == 0) {
        free(memory);
        return NULL;
    }
    memory = realloc(memory, new_size);
    if (memory == NULL) {
        fprintf(stderr, "out of memory (%zu bytes)\n", new_size);
        exit(1);
    }
    return memory;
}

/* One layer's cache: dense [n_tokens, n_kv_heads, head_dim] at first, later head h's rows from row cu[h] on. */
typedef struct {
    void *k, *v;
    size_t size;        /* bytes of each */
    uint32_t *indices;  /* NULL while dense */
    uint32_t *cu;
} layer_cache;

/* One prompt as an engine holds it at the end of prefill, and what was found out about it. */
typedef struct {
    const capture *c;
    uint32_t n_tokens;
    size_t row;             /* bytes of a row of K or of V */
    capture_layer *layers;  /* views of the file */
    lava_shape *shapes;
    uint64_t n_scores;          /* of each layer: n_kv_heads * (n_tokens - WINDOW) */
    float *scores[N_SCORERS];   /* [n_layers, n_scores] */
    double *entropies;          /* of LAVa's scores */
    float **full;               /* per layer: attention's output of the decode steps with nothing evicted */
    void *workspace;
    size_t workspace_size;
    double score_ms;            /* of the recommended preset's scores */
} prompt;

static float *layer_scores(const prompt *p, scorer s, uint32_t l) { return p->scores[s] + l * p->n_scores; }

static size_t n_outputs(const prompt *p) { return (size_t) p->c->n_next * p->c->n_q_heads * p->c->head_dim; }

/*
 * Attention of the decode steps over a layer's cache of n_rows[h] rows in head h, and over the decode tokens up to
 * each. The two are attended separately and merged by their log-sum-exps, so the cache needs no room for the new
 * tokens; engine_decode.c shows the other way.
 */
static void decode(const prompt *p, uint32_t l, const lava_tensor *k, const lava_tensor *v, const uint32_t *n_rows,
                   float *out) {
    const capture *c = p->c;
    const capture_layer *in = &p->layers[l];
    lava_error error = lava_error_init();
    const lava_shape *shape = &p->shapes[l];

    size_t n = n_outputs(p), n_lse = (size_t) c->n_next * c->n_q_heads;
    float *parts = allocate((n + 2 * n_lse) * sizeof(float));
    float *out_new = parts, *lse_old = parts + n, *lse_new = lse_old + n_lse;
    lava_tensor to_old = lava_tensor_token_major(LAVA_F32, out, n * sizeof(float), c->n_q_heads, c->head_dim);
    lava_tensor to_new = lava_tensor_token_major(LAVA_F32, out_new, n * sizeof(float), c->n_q_heads, c->head_dim);
    lava_tensor lse_to_old = lava_tensor_token_major(LAVA_F32, lse_old, n_lse * sizeof(float), c->n_q_heads, 1);
    lava_tensor lse_to_new = lava_tensor_token_major(LAVA_F32, lse_new, n_lse * sizeof(float), c->n_q_heads, 1);

    lava_attend_params everything = lava_attend_params_default();
    everything.causal = 0;  /* every decode step sees all of the prompt that is left */
    CHECK(lava_attend(shape, &everything, c->n_next, &in->q_next, k, v, n_rows, &to_old, &lse_to_old, 0, 1,
                      p->workspace, p->workspace_size, &error));
    uint32_t *n_new = allocate(c->n_kv_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < c->n_kv_heads; h++) n_new[h] = c->n_next;
    /* and the decode tokens up to itself: NULL is causal */
    CHECK(lava_attend(shape, NULL, c->n_next, &in->q_next, &in->k_next, &in->v_next, n_new, &to_new, &lse_to_new, 0, 1,
                      p->workspace, p->workspace_size, &error));

    for (size_t i = 0; i < n_lse; i++) {
        float share = 1 / (1 + expf(lse_new[i] - lse_old[i]));  /* the old rows' part of the softmax */
        for (size_t d = i * c->head_dim; d < (i + 1) * c->head_dim; d++)
            out[d] = share * out[d] + (1 - share) * out_new[d];
    }
    free(n_new);
    free(parts);
}

/* Scores every layer, and attends with nothing evicted. */
static prompt load_prompt(const capture *c, uint32_t index) {
    prompt p = {.c = c, .row = c->head_dim * sizeof(uint16_t)};
    p.layers = allocate(c->n_layers * sizeof(*p.layers));
    p.shapes = allocate(c->n_layers * sizeof(*p.shapes));
    p.full = allocate(c->n_layers * sizeof(*p.full));
    p.entropies = allocate(c->n_layers * sizeof(*p.entropies));
    lava_error error = lava_error_init();

    for (uint32_t l = 0; l < c->n_layers; l++) {
        p.layers[l] = capture_get(c, index, l, WINDOW);
        p.shapes[l] = capture_shape(c, &p.layers[l], l, WINDOW);
    }
    p.n_tokens = p.layers[0].n_tokens;
    p.n_scores = lava_n_scores(&p.shapes[0]);

    /* one workspace, as large as the call that needs most */
    const lava_score_params params[N_SCORERS] = {lava_score_params_default(), lava_score_params_lava()};
    size_t sizes[5];
    CHECK(lava_score_workspace_size(&p.shapes[0], &params[RECOMMENDED_SCORES], &sizes[0], &error));
    CHECK(lava_score_workspace_size(&p.shapes[0], &params[LAVA_SCORES], &sizes[1], &error));
    CHECK(lava_global_entries_workspace_size(p.shapes, c->n_layers, c->n_layers, &sizes[2], &error));
    CHECK(lava_select_workspace_size(&p.shapes[0], &sizes[3], &error));
    CHECK(lava_attend_workspace_size(&p.shapes[0], c->n_next, &sizes[4], &error));
    for (int i = 0; i < 5; i++)
        if (sizes[i] > p.workspace_size) p.workspace_size = sizes[i];
    p.workspace = allocate(p.workspace_size);

    for (int s = 0; s < N_SCORERS; s++) {
        p.scores[s] = allocate(c->n_layers * p.n_scores * sizeof(float));
        double start = now_ms();
        for (uint32_t l = 0; l < c->n_layers; l++) {
            const capture_layer *in = &p.layers[l];
            CHECK(lava_score(&p.shapes[l], &params[s], &in->q, &in->k, &in->v, NULL, 0, 1, p.workspace,
                             p.workspace_size, layer_scores(&p, s, l), &error));
        }
        if (s == RECOMMENDED_SCORES) p.score_ms = now_ms() - start;
    }
    for (uint32_t l = 0; l < c->n_layers; l++)
        CHECK(lava_entropy(&p.shapes[l], layer_scores(&p, LAVA_SCORES, l), &p.entropies[l], NULL, &error));

    uint32_t *n_rows = allocate(c->n_kv_heads * sizeof(uint32_t));
    for (uint32_t h = 0; h < c->n_kv_heads; h++) n_rows[h] = p.n_tokens;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        p.full[l] = allocate(n_outputs(&p) * sizeof(float));
        decode(&p, l, &p.layers[l].k, &p.layers[l].v, n_rows, p.full[l]);
    }
    free(n_rows);
    return p;
}

static void free_prompt(prompt *p) {
    for (uint32_t l = 0; l < p->c->n_layers; l++) free(p->full[l]);
    for (int s = 0; s < N_SCORERS; s++) free(p->scores[s]);
    free(p->workspace);
    free(p->entropies);
    free(p->full);
    free(p->shapes);
    free(p->layers);
}

/* The layer's K and V as the prefill leaves them, in our own memory. */
static layer_cache dense_layer(const prompt *p, uint32_t l) {
    layer_cache cache = {.size = p->layers[l].k.size};
    cache.k = kv_resize(NULL, 0, cache.size);
    cache.v = kv_resize(NULL, 0, cache.size);
    memcpy(cache.k, p->layers[l].k.data, cache.size);
    memcpy(cache.v, p->layers[l].v.data, cache.size);
    return cache;
}

static void free_layer(layer_cache *cache) {
    kv_resize(cache->k, cache->size, 0);
    kv_resize(cache->v, cache->size, 0);
    free(cache->indices);
    free(cache->cu);
    memset(cache, 0, sizeof(*cache));
}

/* Gathers rows (see lava_compact) of a dense layer into a cache of exactly their size; the dense one is freed. */
static void shrink_dense(const prompt *p, uint32_t l, layer_cache *cache, const uint32_t *rows, const uint32_t *cu) {
    const capture *c = p->c;
    lava_error error = lava_error_init();
    layer_cache small = {.size = cu[c->n_kv_heads] * p->row, .indices = cache->indices, .cu = cache->cu};
    small.k = kv_resize(NULL, 0, small.size);
    small.v = kv_resize(NULL, 0, small.size);
    lava_tensor k = lava_tensor_token_major(LAVA_F16, cache->k, cache->size, c->n_kv_heads, c->head_dim);
    lava_tensor v = lava_tensor_token_major(LAVA_F16, cache->v, cache->size, c->n_kv_heads, c->head_dim);
    lava_tensor k_small = lava_tensor_ragged(LAVA_F16, small.k, small.size, cu, c->head_dim);
    lava_tensor v_small = lava_tensor_ragged(LAVA_F16, small.v, small.size, cu, c->head_dim);
    CHECK(lava_compact(&p->shapes[l], &k, &v, NULL, rows, cu, &k_small, &v_small, 0, 1, &error));
    kv_resize(cache->k, cache->size, 0);
    kv_resize(cache->v, cache->size, 0);
    *cache = small;
}

/* How much each layer gets; and each head, where heads of different layers compete. */
static void share(const prompt *p, const method *m, uint64_t total, uint64_t *entries, double *head_weights) {
    lava_error error = lava_error_init();
    uint32_t n_layers = p->c->n_layers;
    if (m->layers == LAVA_LAYERS_GLOBAL) {
        CHECK(lava_global_entries(p->shapes, n_layers, n_layers, &m->select, p->scores[m->scores], total, p->workspace,
                                  p->workspace_size, entries, head_weights, &error));
        return;
    }
    double *weights = allocate(n_layers * sizeof(double));
    for (uint32_t l = 0; l < n_layers; l++) weights[l] = m->layers == LAVA_LAYERS_ENTROPY ? p->entropies[l] : 1;
    CHECK(lava_layer_entries(p->shapes, n_layers, n_layers, &m->select, weights, total, entries, &error));
    free(weights);
}

/* Share of LAVa's score mass that is evicted: one measure for all methods, whatever scores they use. */
static double evicted_share(const prompt *p, uint32_t l, const layer_cache *cache) {
    const float *scores = layer_scores(p, LAVA_SCORES, l);
    uint32_t n_prefix = p->n_tokens - WINDOW;
    double mass = 0, kept = 0;
    for (uint64_t i = 0; i < p->n_scores; i++) mass += scores[i];
    for (uint32_t h = 0; h < p->c->n_kv_heads; h++)
        for (uint32_t i = cache->cu[h]; i < cache->cu[h + 1] && cache->indices[i] < n_prefix; i++)
            kept += scores[(size_t) h * n_prefix + cache->indices[i]];
    return 1 - kept / mass;
}

/* Compresses a whole prompt at the end of its prefill. Returns a layer_cache per layer. */
static layer_cache *compress(const prompt *p, const method *m, uint64_t total, report_row *row) {
    const capture *c = p->c;
    lava_error error = lava_error_init();
    uint32_t n_layers = c->n_layers;
    layer_cache *caches = allocate(n_layers * sizeof(*caches));
    for (uint32_t l = 0; l < n_layers; l++) caches[l] = dense_layer(p, l);

    uint64_t *entries = allocate(n_layers * sizeof(uint64_t));
    double *head_weights = allocate((size_t) n_layers * c->n_kv_heads * sizeof(double));
    lava_select_params params = m->select;
    double start = now_ms();
    share(p, m, total, entries, head_weights);
    row->select_ms = now_ms() - start;

    row->method = m->name;
    row->bytes = 0;
    row->least = UINT32_MAX;
    row->most = 0;
    row->evicted = row->compact_ms = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        layer_cache *cache = &caches[l];
        uint64_t n_kept;
        CHECK(lava_n_kept(&p->shapes[l], entries[l], &n_kept, &error));
        cache->indices = allocate(n_kept * sizeof(uint32_t));
        cache->cu = allocate((c->n_kv_heads + 1) * sizeof(uint32_t));

        /* which tokens each head keeps */
        lava_selection selection = lava_selection_init();
        if (m->layers == LAVA_LAYERS_GLOBAL) params.head_weights = head_weights + l * c->n_kv_heads;
        start = now_ms();
        CHECK(lava_select(&p->shapes[l], &params, layer_scores(p, m->scores, l), entries[l], p->workspace,
                          p->workspace_size, cache->indices, n_kept, cache->cu, NULL, &selection, &error));
        double selected = now_ms();
        /* and the smaller cache */
        shrink_dense(p, l, cache, cache->indices, cache->cu);
        row->select_ms += selected - start;
        row->compact_ms += now_ms() - selected;

        double evicted = evicted_share(p, l, cache);
        expect(m->scores != LAVA_SCORES || fabs(evicted - selection.evicted_share) < 1e-9, "the report counts right");
        row->evicted += evicted / n_layers;
        for (uint32_t h = 0; h < c->n_kv_heads; h++) {
            uint32_t kept = cache->cu[h + 1] - cache->cu[h];
            if (kept < row->least) row->least = kept;
            if (kept > row->most) row->most = kept;
        }
    }
    row->bytes = kv_bytes;
    free(head_weights);
    free(entries);
    return caches;
}

static void free_caches(const prompt *p, layer_cache *caches) {
    for (uint32_t l = 0; l < p->c->n_layers; l++) free_layer(&caches[l]);
    free(caches);
}

/* Mean over layers and decode steps of |output - full output| / |full output|, 2-norms over all heads of a step. */
static double output_error(const prompt *p, const layer_cache *caches) {
    const capture *c = p->c;
    size_t step = (size_t) c->n_q_heads * c->head_dim;
    float *out = allocate(n_outputs(p) * sizeof(float));
    uint32_t *n_rows = allocate(c->n_kv_heads * sizeof(uint32_t));
    double sum = 0;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const layer_cache *cache = &caches[l];
        lava_tensor k = lava_tensor_ragged(LAVA_F16, cache->k, cache->size, cache->cu, c->head_dim);
        lava_tensor v = lava_tensor_ragged(LAVA_F16, cache->v, cache->size, cache->cu, c->head_dim);
        for (uint32_t h = 0; h < c->n_kv_heads; h++) n_rows[h] = cache->cu[h + 1] - cache->cu[h];
        decode(p, l, &k, &v, n_rows, out);
        for (uint32_t t = 0; t < c->n_next; t++) {
            double difference = 0, norm = 0;
            for (size_t i = t * step; i < (t + 1) * step; i++) {
                double d = (double) out[i] - (double) p->full[l][i];
                difference += d * d;
                norm += (double) p->full[l][i] * (double) p->full[l][i];
            }
            sum += sqrt(difference / norm);
        }
    }
    free(n_rows);
    free(out);
    expect(isfinite(sum), "attention's output is finite");
    return sum / ((double) c->n_layers * c->n_next);
}

static uint64_t total_for(const prompt *p, double ratio, uint32_t *budget) {
    lava_error error = lava_error_init();
    uint64_t total;
    CHECK(lava_budget_from_ratio(&p->shapes[0], NULL, ratio, budget, &error));
    CHECK(lava_total_entries(p->shapes, p->c->n_layers, p->c->n_layers, *budget, &total, &error));
    return total;
}

/*
 * The cascade: each layer is compressed as soon as it is computed, and those before it give up the share that it gets.
 * At no time is more held than the shares of the layers so far and one dense layer.
 */
static void show_cascade(const prompt *p, double ratio, const method *m) {
    const capture *c = p->c;
    lava_error error = lava_error_init();
    uint32_t budget;
    uint64_t total = total_for(p, ratio, &budget);
    size_t state_size;
    lava_cascade_params how = lava_cascade_params_default();
    how.layers = m->layers;
    CHECK(lava_cascade_state_size(p->shapes, c->n_layers, c->n_layers, total, &m->select, &how, &state_size, &error));
    void *state = allocate(state_size);
    layer_cache *caches = allocate(c->n_layers * sizeof(*caches));
    lava_cascade_layer layer = lava_cascade_layer_init();

    /* to compare with: all layers at the end of prefill */
    report_row at_end;
    kv_peak = 0;
    layer_cache *wanted = compress(p, m, total, &at_end);
    size_t peak_at_end = kv_peak, other = kv_bytes;

    printf("\n  compressing while the layers arrive (%s, keep %.0f%%):\n", m->name, 100 * ratio);
    printf("    %-8s %14s %14s %10s   %s\n", "layer", "K+V before", "K+V after", "time",
           "tokens kept by each layer so far, all heads");
    kv_peak = 0;
    double time = 0;
    CHECK(lava_cascade_init(p->shapes, c->n_layers, c->n_layers, total, &m->select, &how, state, state_size, &error));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        caches[l] = dense_layer(p, l);  /* an engine's prefill computes it now */
        size_t before = kv_bytes - other;
        double start = now_ms();
        CHECK(lava_cascade_push(state, state_size, &p->shapes[l], layer_scores(p, m->scores, l), NULL, &error));
        for (uint32_t i = 0; i <= l; i++) {
            layer_cache *cache = &caches[i];
            CHECK(lava_cascade_get(state, state_size, i, &layer, &error));
            if (i == l) {
                shrink_dense(p, i, cache, layer.rows, layer.cu_kept);
                continue;
            }
            if (layer.unchanged) continue;
            /* in place: every head's kept rows move to the front of the buffer, then its end is given back */
            lava_tensor k = lava_tensor_ragged(LAVA_F16, cache->k, cache->size, layer.cu_rows, c->head_dim), k_less = k;
            lava_tensor v = lava_tensor_ragged(LAVA_F16, cache->v, cache->size, layer.cu_rows, c->head_dim), v_less = v;
            k_less.row_start = v_less.row_start = layer.cu_kept;
            CHECK(lava_compact(&p->shapes[i], &k, &v, layer.cu_rows, layer.rows, layer.cu_kept, &k_less, &v_less, 0, 1,
                               &error));
            size_t less = layer.cu_kept[c->n_kv_heads] * p->row;
            cache->k = kv_resize(cache->k, cache->size, less);
            cache->v = kv_resize(cache->v, cache->size, less);
            cache->size = less;
        }
        double took = now_ms() - start;
        time += took;
        printf("    %-8u %14zu %14zu %7.2f ms  ", l, before, kv_bytes - other, took);
        for (uint32_t i = 0; i <= l; i++) printf(" %4zu", caches[i].size / p->row);
        printf("\n");
    }

    size_t peak = kv_peak - other;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        CHECK(lava_cascade_get(state, state_size, l, &layer, &error));
        uint32_t n_kept = layer.cu_kept[c->n_kv_heads];
        expect(memcmp(layer.cu_kept, wanted[l].cu, (c->n_kv_heads + 1) * sizeof(uint32_t)) == 0
                   && memcmp(layer.kept_indices, wanted[l].indices, n_kept * sizeof(uint32_t)) == 0,
               "the cascade keeps what compressing at the end keeps");
        expect(caches[l].size == wanted[l].size && memcmp(caches[l].k, wanted[l].k, wanted[l].size) == 0
                   && memcmp(caches[l].v, wanted[l].v, wanted[l].size) == 0,
               "the cascade's K and V are those of compressing at the end");
    }
    printf("    peak %zu bytes of K+V and %zu of state, %.2f ms in all\n", peak, state_size, time);
    printf("    at the end of prefill: peak %zu bytes, %.2f ms\n", peak_at_end, at_end.select_ms + at_end.compact_ms);
    printf("    both kept the same tokens, and the same bytes of K and V\n");
    free_caches(p, wanted);
    free_caches(p, caches);
    free(state);
}

/* The picture. The layers' caches say who keeps what. */
static bool draw(const prompt *p, uint32_t index, double ratio, const method *m, const char *path) {
    const capture *c = p->c;
    uint32_t budget;
    uint64_t total = total_for(p, ratio, &budget);
    report_row row;
    layer_cache *caches = compress(p, m, total, &row);
    const uint32_t **indices = allocate(c->n_layers * sizeof(*indices)), **cu = allocate(c->n_layers * sizeof(*cu));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        indices[l] = caches[l].indices;
        cu[l] = caches[l].cu;
    }
    char title[160], subtitle[160];
    snprintf(title, sizeof(title), "Who keeps what: %.0f%% of prompt %u, \"%s\"", 100 * ratio, index,
             capture_kind(c, index));
    snprintf(subtitle, sizeof(subtitle), "%u tokens; budget %u per head on average, shared by the %s", p->n_tokens,
             budget, m->name);
    report_map map = {title, subtitle, c->n_layers, c->n_kv_heads, p->n_tokens, WINDOW, indices, cu};
    bool written = report_write_svg(path, &map);
    free(indices);
    free(cu);
    free_caches(p, caches);
    return written;
}

int main(int argc, char **argv) {
    const char *picture = argc > 1 ? argv[1] : "target/budget-map.svg";
    const uint32_t shown = 0;  /* the prompt of the timeline and the picture */
    method methods[N_METHODS];
    make_methods(methods);
    const method *recommended = &methods[0];

    capture c = capture_open(CAPTURE_PATH);
    printf("lava %s, %s kernels. %u prompts of a small model: %u layers, %u query and %u KV heads of %u, f16.\n",
           lava_version_string(), lava_backend_name(LAVA_BACKEND_BEST), c.n_prompts, c.n_layers, c.n_q_heads,
           c.n_kv_heads, c.head_dim);
    printf("Mass evicted: the share of LAVa's scores, mean over layers.\n"
           "Output error: |attention's output - the same with nothing evicted| / |the latter|, mean over layers and\n"
           "the %u decode steps after the prompt. < marks the smallest.\n"
           "A model this small shows that everything works. It is too small for choosing a method.\n", c.n_next);

    uint32_t wins[N_METHODS] = {0}, n_groups = 0;
    bool drawn = false;
    for (uint32_t i = 0; i < c.n_prompts; i++) {
        prompt p = load_prompt(&c, i);
        size_t before = 2 * (size_t) c.n_layers * p.layers[0].k.size;
        printf("\nprompt %u: %s; %u tokens, all layers scored in %.1f ms\n", i, capture_kind(&c, i), p.n_tokens,
               p.score_ms);
        for (int r = 0; r < N_RATIOS; r++) {
            report_row rows[N_METHODS];
            uint32_t budget;
            uint64_t total = total_for(&p, RATIOS[r], &budget);
            for (int m = 0; m < N_METHODS; m++) {
                layer_cache *caches = compress(&p, &methods[m], total, &rows[m]);
                rows[m].error = output_error(&p, caches);
                free_caches(&p, caches);
                expect(rows[m].bytes == rows[0].bytes, "all ways to share a total end at the same bytes");
            }
            report_group(RATIOS[r], budget, before, rows, N_METHODS);
            wins[report_best(rows, N_METHODS)]++;
            n_groups++;
        }
        if (i == shown) {
            show_cascade(&p, SHOWN_RATIO, recommended);
            drawn = draw(&p, i, SHOWN_RATIO, recommended, picture);
        }
        free_prompt(&p);
    }

    printf("\nsmallest output error, of %u comparisons:\n", n_groups);
    for (int m = 0; m < N_METHODS; m++) printf("    %-34s %u\n", methods[m].name, wins[m]);
    capture_close(&c);
    if (drawn) printf("who keeps what, as a picture: %s\n", picture);
    else printf("no picture was written%s\n", argc > 1 ? "" : ": make the folder target/, or give a path");
    return drawn || argc <= 1 ? 0 : 1;
}
