/*
 * Many ranks, one decision. The captured model's KV heads are split over tensor-parallel ranks and its layers over pipeline stages; each
 * rank scores, selects and compacts what it has, and all keep exactly what one process would.
 *
 *     mpicc -DWITH_MPI -I include examples-c/ranks.c liblava.a -lm -lpthread -ldl -o ranks
 *     mpirun -n 8 ./ranks
 *
 * Without MPI it is one rank, for which nothing is to be summed. With an argument something goes wrong on the last rank, and every rank
 * says what it has heard of it: `nan` a score is not a number, `total` it asks for something else, `memory` it cannot take part, `gone` it
 * leaves without a word.
 */
#include "lava_ranks.h"

#include "capture.h"

#include <math.h>

#ifdef WITH_MPI
#include <mpi.h>

/* The engine's part: sums the words of all ranks' buffers, in place. */
static void all_reduce(uint64_t *words, uint32_t n_words) {
    MPI_Allreduce(MPI_IN_PLACE, words, (int) n_words, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
}

static void start(int *argc, char ***argv, uint32_t *rank, uint32_t *n_ranks) {
    int r, n;
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &r);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    *rank = (uint32_t) r, *n_ranks = (uint32_t) n;
}

static void finish(void) {
    MPI_Finalize();
}
#else
static void all_reduce(uint64_t *words, uint32_t n_words) {
    (void) words, (void) n_words;
}

static void start(int *argc, char ***argv, uint32_t *rank, uint32_t *n_ranks) {
    (void) argc, (void) argv;
    *rank = 0, *n_ranks = 1;
}

static void finish(void) {}
#endif

enum { PROMPT = 0, WINDOW = 32, MAX_LAYERS = 64 };

/* What was exchanged, for the report. */
static size_t n_exchanges, n_bytes;

/* Counts, sums, rounds, until all is decided. Every rank comes out of it in the same exchange, with the same status. */
static lava_status decide(const lava_rank *rank, void *state, size_t state_size, uint64_t *exchange, uint32_t capacity,
                          lava_error *error) {
    uint32_t is_done = 0;
    while (!is_done) {
        uint32_t n_words = 0;
        lava_status status = lava_ranks_count(rank, state, state_size, exchange, capacity, &n_words, error);
        if (n_words == 0) return status;  /* a mistake in this program: nothing can be summed */
        all_reduce(exchange, n_words);    /* after an error too, which the exchange then reports */
        status = lava_ranks_round(rank, state, state_size, exchange, n_words, &is_done, error);
        if (status != LAVA_OK) return status;
        n_exchanges++, n_bytes += n_words * sizeof(uint64_t);
    }
    return LAVA_OK;
}

/* What a rank that cannot take part does instead: the others are in their first exchange, and hear of it there. */
static void refuse(lava_status status) {
    uint64_t exchange[LAVA_RANKS_HELLO_WORDS];
    lava_ranks_refuse(status, exchange, LAVA_RANKS_HELLO_WORDS, NULL);
    all_reduce(exchange, LAVA_RANKS_HELLO_WORDS);
}

/* These heads of a tensor [rows, n_heads, dim]: the first one's address, and the same strides. A rank's own cache would have no others. */
static lava_tensor heads_of(lava_tensor tensor, uint32_t first) {
    size_t skipped = (size_t) first * (size_t) tensor.stride_head * (tensor.dtype == LAVA_F32 ? 4 : 2);
    tensor.data = (char *) tensor.data + skipped;
    tensor.size -= skipped;
    return tensor;
}

int main(int argc, char **argv) {
    uint32_t rank, n_ranks;
    start(&argc, &argv, &rank, &n_ranks);
    const char *fault = argc > 1 && rank == n_ranks - 1 ? argv[1] : "none";
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    const uint32_t n_layers = c.n_layers, group = c.n_q_heads / c.n_kv_heads;
    expect(n_layers <= MAX_LAYERS, "the capture has few layers");

    /* Heads are split first, as far as they go; then layers. */
    const uint32_t n_tensor = n_ranks < c.n_kv_heads ? n_ranks : c.n_kv_heads, n_stages = n_ranks / n_tensor;
    expect(n_tensor * n_stages == n_ranks && n_stages <= n_layers, "1, 2, 4 or 8 ranks for this capture");
    const uint32_t stage = rank / n_tensor, part = rank % n_tensor;
    const uint32_t first_own = c.n_kv_heads * part / n_tensor;
    const uint32_t n_own = c.n_kv_heads * (part + 1) / n_tensor - first_own;
    const uint32_t first_layer = n_layers * stage / n_stages, end_layer = n_layers * (stage + 1) / n_stages;

    /* The whole model as every rank knows it, and what this one has of it. */
    capture_layer in[MAX_LAYERS];
    lava_shape whole[MAX_LAYERS], shapes[MAX_LAYERS];
    uint32_t n_kv_heads[MAX_LAYERS], first_head[MAX_LAYERS];
    uint64_t n_scores = 0, n_all = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        in[l] = capture_get(&c, PROMPT, l, WINDOW);
        whole[l] = shapes[l] = capture_shape(&c, &in[l], l, WINDOW);
        int is_own = first_layer <= l && l < end_layer;
        shapes[l].n_kv_heads = is_own ? n_own : 0;
        shapes[l].n_q_heads = shapes[l].n_kv_heads * group;
        n_kv_heads[l] = c.n_kv_heads;
        first_head[l] = first_own;
        n_scores += is_own ? lava_n_scores(&shapes[l]) : 0;
        n_all += lava_n_scores(&whole[l]);
    }

    /* The budget is the whole model's: it needs sizes, not caches, so every rank computes it. */
    uint32_t budget;
    uint64_t total;
    CHECK(lava_budget_from_ratio(&whole[0], NULL, 0.2, &budget, &error));
    CHECK(lava_total_entries(whole, n_layers, n_layers, budget, &total, &error));
    if (strcmp(fault, "total") == 0) total++;

    size_t workspace_size, size;
    CHECK(lava_global_entries_workspace_size(whole, n_layers, n_layers, &workspace_size, &error));
    for (uint32_t l = 0; l < n_layers; l++) {
        CHECK(lava_score_workspace_size(&whole[l], NULL, &size, &error));
        if (size > workspace_size) workspace_size = size;
        CHECK(lava_select_workspace_size(&whole[l], &size, &error));
        if (size > workspace_size) workspace_size = size;
    }
    void *workspace = allocate(workspace_size);

    /* Scores of this rank's heads, layer after layer. */
    float *scores = allocate(n_scores * sizeof(float));
    uint64_t at = 0;
    for (uint32_t l = first_layer; l < end_layer; l++) {
        lava_tensor q = heads_of(in[l].q, first_own * group), k = heads_of(in[l].k, first_own), v = heads_of(in[l].v, first_own);
        CHECK(lava_score(&shapes[l], NULL, &q, &k, &v, NULL, 0, 1, workspace, workspace_size, scores + at, &error));
        at += lava_n_scores(&shapes[l]);
    }
    if (strcmp(fault, "nan") == 0) scores[0] = NAN;
    if (strcmp(fault, "gone") == 0) exit(3);

    /* One decision of all ranks. */
    lava_rank mine = lava_rank_init(n_layers, shapes, n_kv_heads, first_head, scores, total);
    size_t state_size;
    uint32_t n_words;
    CHECK(lava_ranks_size(&mine, &state_size, &n_words, &error));
    void *state = strcmp(fault, "memory") == 0 ? NULL : malloc(state_size);
    uint64_t *exchange = malloc(n_words * sizeof(uint64_t));
    lava_status status = LAVA_ERR_WORKSPACE;
    if (state == NULL || exchange == NULL) {
        refuse(status);
    } else {
        CHECK(lava_ranks_start(&mine, state, state_size, &error));
        status = decide(&mine, state, state_size, exchange, n_words, &error);
    }
    if (status != LAVA_OK) {
        printf("rank %u: status %d of %s: %s\n", rank, status, error.argument, lava_status_string(status));
        finish();
        return 0;
    }

    /* This rank's part: entries of its layers, and of its heads, for lava_select. */
    uint64_t entries[MAX_LAYERS], layer_entries[MAX_LAYERS];
    double *head_weights = allocate((size_t) n_layers * n_own * sizeof(double));
    CHECK(lava_ranks_entries(&mine, state, state_size, entries, head_weights, layer_entries, NULL, &error));

    /* What an engine does not do: compare with one process that has everything. */
    float *all = allocate(n_all * sizeof(float));
    uint64_t one_entries[MAX_LAYERS], sum = 0;
    double *one_weights = allocate((size_t) n_layers * c.n_kv_heads * sizeof(double));
    for (uint32_t l = 0; l < n_layers; l++)
        CHECK(lava_score(&whole[l], NULL, &in[l].q, &in[l].k, &in[l].v, NULL, 0, 1, workspace, workspace_size,
                         all + l * lava_n_scores(&whole[l]), &error));
    CHECK(lava_global_entries(whole, n_layers, n_layers, NULL, all, total, workspace, workspace_size, one_entries, one_weights,
                              &error));
    expect(memcmp(layer_entries, one_entries, n_layers * sizeof(uint64_t)) == 0, "layers get what they get in one process");

    const uint32_t n_tokens = in[0].n_tokens;
    uint32_t *kept = allocate((size_t) c.n_kv_heads * n_tokens * sizeof(uint32_t)), cu_kept[64];
    uint32_t *one_kept = allocate((size_t) c.n_kv_heads * n_tokens * sizeof(uint32_t)), one_cu[64];
    expect(c.n_kv_heads < 64, "the capture has few heads");
    const size_t row = c.head_dim * sizeof(uint16_t);
    lava_select_params selecting = lava_select_params_default();
    at = 0;
    for (uint32_t l = first_layer, first = 0; l < end_layer; l++, first += n_own) {
        uint64_t n_kept;
        selecting.head_weights = head_weights + first;
        CHECK(lava_n_kept(&shapes[l], entries[l], &n_kept, &error));
        CHECK(lava_select(&shapes[l], &selecting, scores + at, entries[l], workspace, workspace_size, kept, n_kept, cu_kept, NULL,
                          NULL, &error));
        at += lava_n_scores(&shapes[l]);
        sum += entries[l];

        /* Each rank compacts its own heads. */
        lava_tensor k = heads_of(in[l].k, first_own), v = heads_of(in[l].v, first_own);
        void *k_rows = allocate(n_kept * row), *v_rows = allocate(n_kept * row);
        lava_tensor k_small = lava_tensor_ragged(LAVA_F16, k_rows, n_kept * row, cu_kept, c.head_dim);
        lava_tensor v_small = lava_tensor_ragged(LAVA_F16, v_rows, n_kept * row, cu_kept, c.head_dim);
        CHECK(lava_compact(&shapes[l], &k, &v, NULL, kept, cu_kept, &k_small, &v_small, 0, 1, &error));
        free(v_rows);
        free(k_rows);

        selecting.head_weights = one_weights + l * c.n_kv_heads;
        CHECK(lava_n_kept(&whole[l], one_entries[l], &n_kept, &error));
        CHECK(lava_select(&whole[l], &selecting, all + l * lava_n_scores(&whole[l]), one_entries[l], workspace, workspace_size,
                          one_kept, n_kept, one_cu, NULL, NULL, &error));
        for (uint32_t h = 0; h < n_own; h++) {
            uint32_t n = cu_kept[h + 1] - cu_kept[h], other = first_own + h;
            expect(one_cu[other + 1] - one_cu[other] == n
                       && memcmp(kept + cu_kept[h], one_kept + one_cu[other], n * sizeof(uint32_t)) == 0,
                   "a head keeps what it keeps in one process");
        }
    }
    printf("rank %u of %u: layers %u to %u, heads %u to %u keep %llu of %llu entries, as in one process; %zu exchanges, %zu bytes\n",
           rank, n_ranks, first_layer, end_layer - 1, first_own, first_own + n_own - 1, (unsigned long long) sum,
           (unsigned long long) total, n_exchanges, n_bytes);

    free(one_kept);
    free(kept);
    free(one_weights);
    free(all);
    free(head_weights);
    free(exchange);
    free(state);
    free(scores);
    free(workspace);
    capture_close(&c);
    finish();
    return 0;
}
