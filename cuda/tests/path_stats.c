/*
 * path_stats.c - what CAKE and TOVA need in addition to scores: statistics of the attention, a layer's preference, the mean over heads.
 */
#include "path.h"

enum { SEQUENCES = 3, WINDOW = 6, Q_HEADS = 4, HEADS = 2, DIM = 64 };

static const uint32_t lengths[SEQUENCES] = {150, WINDOW, 71};
static void preferences(lava_dtype dtype, int has_lse) {
    lava_tensor t[SEQUENCES][3], copies[SEQUENCES][3];
    lava_cuda_stats_sequence list[SEQUENCES];
    lava_cuda_preference_sequence weighs[SEQUENCES];
    lava_cuda_entries_sequence shares;
    lava_shape shape = lava_shape_init(lengths[0], Q_HEADS, HEADS, DIM, 1, WINDOW);
    lava_score_params params = lava_score_params_cake(2);
    const double tau1 = 1.6, tau2 = 0.7;
    double *stats = allocate(SEQUENCES * 2 * HEADS * 8), *weights = allocate(SEQUENCES * 8);
    uint64_t *capacities = allocate(SEQUENCES * 8), *entries = allocate(SEQUENCES * 8);
    shape.layer = 4;
    memset(list, 0, sizeof(list)), memset(weighs, 0, sizeof(weighs)), memset(&shares, 0, sizeof(shares));
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        t[i][0] = tensor(dtype, WINDOW, Q_HEADS, DIM, 1);
        t[i][1] = tensor(dtype, lengths[i], HEADS, DIM, 1);
        t[i][2] = log_sum_exp(&t[i][0], &t[i][1], lengths[i], WINDOW, Q_HEADS, HEADS, DIM);
        memcpy(copies[i], t[i], sizeof(t[i]));
        list[i].struct_size = sizeof(list[i]);
        list[i].n_tokens = lengths[i];
        list[i].q = &t[i][0];
        list[i].k = &t[i][1];
        list[i].lse = has_lse ? &t[i][2] : NULL;
        list[i].stats = stats + i * 2 * HEADS;
        weighs[i].struct_size = sizeof(weighs[i]);
        weighs[i].layer = 4;
        weighs[i].stats = list[i].stats;
        weighs[i].weight = &weights[i];
        capacities[i] = 100;
    }
    /* As if the sequences were layers. */
    shares.struct_size = sizeof(shares);
    shares.n_layers = SEQUENCES;
    shares.total = 101;
    shares.weights = weights;
    shares.capacities = capacities;
    shares.entries = entries;
    size_t size = 0;
    OK(lava_cuda_attention_stats_workspace_size(context, &shape, &params, SEQUENCES, &size, &error));
    void *workspace = allocate(size), *small = allocate(24 * SEQUENCES);
    memset(workspace, 0xff, size);
#define STATS lava_cuda_attention_stats(context, &shape, &params, list, SEQUENCES, workspace, size, status, stream, &error)
#define PREFERENCE(tau) lava_cuda_preference(context, &shape, tau, tau2, weighs, SEQUENCES, small, 24 * SEQUENCES, status, stream, &error)
#define SHARES lava_cuda_layer_entries(context, &shares, 1, NULL, 0, status, stream, &error)

    begin_capture();
    OK(STATS);
    OK(PREFERENCE(tau1));
    OK(SHARES);
    void *graph = end_capture();
    memset(t, 0xff, sizeof(t));
    expect_fine();
    double worst = 0;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        lava_shape own = lava_shape_init(lengths[i], Q_HEADS, HEADS, DIM, 1, WINDOW);
        size_t cpu_size;
        double want[2 * HEADS], weight;
        OK(lava_score_workspace_size(&own, &params, &cpu_size, &error));
        void *cpu = malloc(cpu_size);
        OK(lava_attention_stats(&own, &params, &copies[i][0], &copies[i][1], has_lse ? &copies[i][2] : NULL, 0, 1, cpu, cpu_size, want, &error));
        free(cpu);
        /* Both sides as in score.cpp's check_stats; a head's attention is at most that of all its queries. */
        double e = 2 * (2 * logit_error(DIM) + U * (lengths[i] + WINDOW + 40)), all = WINDOW * (Q_HEADS / HEADS);
        for (int x = 0; x < 2 * HEADS; x++) {
            double off = fabs(want[x] - list[i].stats[x]);
            CHECK(off <= e * (want[x] + 2 * all) && (lengths[i] > WINDOW) == (list[i].stats[x] > 0));
            worst = off > worst ? off : worst;
        }
        OK(lava_preference(&own, list[i].stats, tau1, tau2, &weight, &error));
        CHECK(fabs(weights[i] - weight) <= 1e-14 * weight);
    }
    uint64_t want[SEQUENCES];
    lava_shape of_hundred = lava_shape_init(101, 1, 1, 1, 1, 1);
    lava_select_params nothing = lava_select_params_lava();
    OK(lava_layer_entries(&of_hundred, 1, SEQUENCES, &nothing, weights, 101, want, &error));
    CHECK(memcmp(want, entries, sizeof(want)) == 0 && entries[1] == 0);
    printf("  stats   %-52s off by %.1e\n", has_lse ? "preferences of three sequences, lse, as a graph" : "preferences of three sequences, as a graph", worst);
    CU(cuGraphExecDestroy, graph);
    memcpy(t, copies, sizeof(t));

    /* What is found: the cause, not its consequences. */
    unsigned char *element = (unsigned char *) t[2][1].data + DIM * element_size(dtype), saved[4];
    memcpy(saved, element, 4);
    memset(element, 0xff, 4);
    OK(STATS);
    OK(PREFERENCE(tau1));
    OK(SHARES);
    expect_fault(LAVA_ERR_NONFINITE, "q", 4, 2, 1);
    CHECK(entries[0] == UINT64_MAX - 1);
    memcpy(element, saved, 4);
    OK(STATS);
    settle();
    stats[5] = NAN;
    OK(PREFERENCE(tau1));
    OK(SHARES);
    expect_fault(LAVA_ERR_NONFINITE, "stats", 4, 1, LAVA_NONE);
    CHECK(entries[0] == UINT64_MAX - 1);

    /* What is refused. */
    REFUSED(LAVA_ERR_ARGUMENT, "tau1", PREFERENCE(0));
    shape.layer = 65536;
    REFUSED(LAVA_ERR_ARGUMENT, "layer", STATS);
    shape.layer = 4;
    weighs[1].layer = 65536;
    REFUSED(LAVA_ERR_ARGUMENT, "layer", PREFERENCE(tau1));
    weighs[1].layer = 4;
    weighs[2].weight = (double *) weighs[2].stats;
    REFUSED(LAVA_ERR_OVERLAP, "weight", PREFERENCE(tau1));
    weighs[2].weight = NULL;
    REFUSED(LAVA_ERR_NULL, "weight", PREFERENCE(tau1));
    list[1].stats = NULL;
    REFUSED(LAVA_ERR_NULL, "stats", STATS);
    list[1].stats = t[1][1].data;
    REFUSED(LAVA_ERR_OVERLAP, "stats", STATS);
    list[1].stats = stats + 2 * HEADS;
    list[1].lse = has_lse ? NULL : &t[1][2];
    REFUSED(LAVA_ERR_ARGUMENT, "lse", STATS);
    list[1].lse = has_lse ? &t[1][2] : NULL;
    size = 120;
    REFUSED(LAVA_ERR_WORKSPACE, "workspace_size", STATS);
    expect_fine();
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (int x = 0; x < 3; x++) release(copies[i][x].data);
    release(stats), release(weights), release(capacities), release(entries), release(workspace), release(small);
}

static void means(void) {
    lava_cuda_mean_sequence list[SEQUENCES];
    lava_shape shape = lava_shape_init(lengths[0], HEADS, HEADS, 1, 1, WINDOW);
    float *want[SEQUENCES];
    void *workspace = allocate(16 * SEQUENCES);
    memset(list, 0, sizeof(list));
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        size_t n = (size_t) HEADS * (lengths[i] - WINDOW);
        lava_shape own = lava_shape_init(lengths[i], HEADS, HEADS, 1, 1, WINDOW);
        list[i].struct_size = sizeof(list[i]);
        list[i].n_tokens = lengths[i];
        list[i].layer = 9;
        list[i].scores = n ? elements(LAVA_F32, n, 1) : NULL;
        want[i] = malloc(4 * n + 1);
        if (n) memcpy(want[i], list[i].scores, 4 * n);
        OK(lava_mean_over_heads(&own, want[i], &error));
    }
#define MEAN lava_cuda_mean_over_heads(context, &shape, list, SEQUENCES, workspace, 16 * SEQUENCES, status, stream, &error)
    OK(MEAN);
    expect_fine();
    for (uint32_t i = 0; i < SEQUENCES; i++)
        CHECK(list[i].scores == NULL || memcmp(list[i].scores, want[i], 4 * HEADS * (lengths[i] - WINDOW)) == 0);
    printf("  stats   %-52s the CPU's bits\n", "mean over the heads of three sequences");
    list[2].scores[lengths[2] - WINDOW] = NAN;
    OK(MEAN);
    expect_fault(LAVA_ERR_NONFINITE, "scores", 9, 2, 1);
    list[0].reserved = 1;
    REFUSED(LAVA_ERR_STRUCT_SIZE, "reserved", MEAN);
    list[0].reserved = 0;
    list[2].n_tokens = lengths[0] + 1;
    REFUSED(LAVA_ERR_SHAPE, "n_tokens", MEAN);
    list[2].n_tokens = lengths[2];
    float *last = list[2].scores;
    list[2].scores = NULL;
    REFUSED(LAVA_ERR_NULL, "scores", MEAN);
    list[2].scores = workspace;
    REFUSED(LAVA_ERR_OVERLAP, "workspace", MEAN);
    list[2].scores = last;
    expect_fine();
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        if (list[i].scores) release(list[i].scores);
        free(want[i]);
    }
    release(workspace);
}

void statistics(void) {
    begin_status();
    preferences(LAVA_F32, 0);
    preferences(LAVA_BF16, 1);
    means();
    release(status);
}
