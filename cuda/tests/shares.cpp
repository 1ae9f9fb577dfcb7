// lava_entropy, lava_layer_entries and lava_mean_over_heads: the bits of the CPU library.
#include "test.h"

#include <algorithm>

#include "../entropy.cu"
#include "../budgets.cu"
#include "../mean.cu"

using namespace test;

static long n_cases = 0;

static void check_entropy(uint32_t heads, const std::vector<uint32_t> &lengths, int kind) {
    SAMPLE;
    Random random(heads * 77 + lengths[0] + uint32_t(kind));
    lava_cuda_entropy_args a = {};
    Buffer<double> entropy(lengths.size()), mass(lengths.size());
    std::vector<std::unique_ptr<Buffer<float>>> scores;
    Buffer<lava_cuda_entropy_item> list(lengths.size());
    a.items = list.data(), a.n_items = uint32_t(lengths.size()), a.n_kv_heads = heads;
    a.max_prefix = *std::max_element(lengths.begin(), lengths.end());
    const uint32_t pieces = lava_cuda_pieces(a.max_prefix);
    for (uint32_t i = 0; i < a.n_items; i++) {
        scores.emplace_back(new Buffer<float>(size_t(heads) * lengths[i]));
        for (size_t e = 0; e < scores[i]->size(); e++) {
            const float x = fabsf(random.normal());
            (*scores[i])[e] = kind == 0 ? x : kind == 1 ? expf(-40 * x) : kind == 2 ? 0.0f : e == 3 ? 1.0f : 0.0f;
        }
        list[i] = {scores[i]->data(), &entropy[i], &mass[i], lengths[i], i};
    }
    Buffer<double> workspace(lava_cuda_entropy_workspace(a.n_items, heads, a.max_prefix) / 8);
    Buffer<uint64_t> status(1, 0xFF);
    a.workspace = workspace.data(), a.status = status.data();
    for (unsigned seed = 0; seed < n_seeds(); seed++) {
        launch(lava_entropy_pieces, pieces, heads, a.n_items, LAVA_CUDA_ENTROPY_THREADS, 0, seed, a);
        launch(lava_entropy_layer, a.n_items, 1, 1, LAVA_CUDA_BUDGET_THREADS, 0, seed, a);
        for (uint32_t i = 0; i < a.n_items; i++) {
            const lava_shape shape = lava_shape_init(lengths[i] + 1, heads, heads, 1, 1, 1);
            double e = -1, m = -1;
            CHECK(lava_entropy(&shape, scores[i]->data(), &e, &m, nullptr) == LAVA_OK, "the CPU refuses");
            CHECK(memcmp(&e, &entropy[i], 8) == 0, "entropy of [%u, %u] kind %d: %.17g, the CPU %.17g", heads, lengths[i], kind, entropy[i], e);
            CHECK(memcmp(&m, &mass[i], 8) == 0, "mass of [%u, %u]: %.17g, the CPU %.17g", heads, lengths[i], mass[i], m);
        }
        CHECK(status[0] == LAVA_NO_FAULT, "status %llx", (unsigned long long) status[0]);
    }
    n_cases++;
    if (lengths[0] == 0) return;
    for (const float bad : {-1.0f, NAN, INFINITY}) {
        (*scores[0])[size_t(heads) * lengths[0] - 1] = bad;
        status[0] = LAVA_NO_FAULT;
        launch(lava_entropy_pieces, pieces, heads, a.n_items, LAVA_CUDA_ENTROPY_THREADS, 0, 0, a);
        CHECK(status[0] == lava_fault(LAVA_FAULT_SCORES, 0, 0, heads - 1), "status %llx", (unsigned long long) status[0]);
    }
}

static void check_entries(uint32_t n, uint64_t seed) {
    SAMPLE;
    Random random(seed * 1000 + n);
    Buffer<double> weights(n);
    Buffer<uint64_t> capacities(n), minimums(n), entries(n), status(1, 0xFF);
    std::vector<uint64_t> want(n, 1);
    std::vector<lava_shape> shapes;
    const uint32_t kind = random.below(6);
    lava_select_params params = lava_select_params_lava();
    params.head_min = random.below(2) ? random.below(300) : 0;
    uint64_t all = 0, promised = 0;
    for (uint32_t l = 0; l < n; l++) {
        weights[l] = kind == 0 ? 0.0 : kind == 1 ? double(random.below(3)) : kind == 2 ? 1e30 * random.below(9) : 0.5 + 0.5 * random.uniform();
        if (kind == 3 && random.below(4) == 0) weights[l] = 1e-20;
        // Weights that a coarse grid turns into zeros, until the large ones are settled.
        if (kind == 5) weights[l] = ldexp(1 + random.below(9), -70 * int(random.below(3)));
        const uint32_t heads = random.below(9) == 0 ? 0 : 1 + random.below(4);
        const uint32_t prefix = random.below(3) == 0 ? random.below(4) : random.below(1u << (4 + random.below(25)));
        shapes.push_back(lava_shape_init(prefix + 1, heads, heads, 1, 1, 1));
        capacities[l] = uint64_t(heads) * prefix;
        minimums[l] = heads * std::min(params.head_min, prefix);
        // A layer that takes no part has no weight.
        if (heads == 0) weights[l] = 0;
        all += capacities[l], promised += minimums[l];
    }
    const uint64_t total = random.below(8) == 0 ? all + 5 : promised + (all - promised) / (1 + random.below(9));
    lava_cuda_share_args a = {};
    a.n_items = 1, a.status = status.data();
    a.one = {weights.data(), capacities.data(), params.head_min > 0 ? minimums.data() : nullptr, entries.data(), total, n, 0};
    const lava_status on_cpu = lava_layer_entries(shapes.data(), n, n, &params, weights.data(), total, want.data(), nullptr);
    launch(lava_share_layers, 1, 1, 1, LAVA_CUDA_BUDGET_THREADS, 0, unsigned(seed), a);
    CHECK(on_cpu == LAVA_OK && status[0] == LAVA_NO_FAULT, "%d, %llx", on_cpu, (unsigned long long) status[0]);
    for (uint32_t l = 0; l < n; l++) CHECK(entries[l] == want[l], "n %u seed %llu layer %u: %llu, the CPU %llu", n, (unsigned long long) seed, l, (unsigned long long) entries[l], (unsigned long long) want[l]);
    n_cases++;
}

static void check_mean(uint32_t heads, const std::vector<uint32_t> &lengths) {
    Random random(heads * 13 + lengths[0]);
    lava_cuda_mean_args a = {};
    std::vector<std::unique_ptr<Buffer<float>>> scores;
    std::vector<std::vector<float>> want;
    Buffer<lava_cuda_mean_item> list(lengths.size());
    Buffer<uint64_t> status(1, 0xFF);
    a.items = list.data(), a.n_items = uint32_t(lengths.size()), a.n_kv_heads = heads, a.status = status.data();
    for (uint32_t i = 0; i < a.n_items; i++) {
        scores.emplace_back(new Buffer<float>(size_t(heads) * lengths[i]));
        for (size_t e = 0; e < scores[i]->size(); e++) (*scores[i])[e] = expf(20 * random.normal());
        want.emplace_back(scores[i]->data(), scores[i]->data() + scores[i]->size());
        const lava_shape shape = lava_shape_init(lengths[i] + 1, heads, heads, 1, 1, 1);
        CHECK(lava_mean_over_heads(&shape, want[i].data(), nullptr) == LAVA_OK, "the CPU refuses");
        list[i] = {scores[i]->data(), lengths[i], i};
        a.max_prefix = std::max(a.max_prefix, lengths[i]);
    }
    const uint32_t blocks = (a.max_prefix + LAVA_CUDA_MEAN_THREADS - 1) / LAVA_CUDA_MEAN_THREADS;
    launch(lava_mean_heads, blocks, a.n_items, 1, LAVA_CUDA_MEAN_THREADS, 0, 1, a);
    CHECK(status[0] == LAVA_NO_FAULT, "status %llx", (unsigned long long) status[0]);
    for (uint32_t i = 0; i < a.n_items; i++)
        CHECK(memcmp(scores[i]->data(), want[i].data(), scores[i]->bytes()) == 0, "mean over %u heads of %u", heads, lengths[i]);
    n_cases++;
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        float &last = (*scores.back())[scores.back()->size() - 1];
        last = bad, status[0] = LAVA_NO_FAULT;
        launch(lava_mean_heads, blocks, a.n_items, 1, LAVA_CUDA_MEAN_THREADS, 0, 1, a);
        CHECK(status[0] == lava_fault(LAVA_FAULT_SCORES, a.n_items - 1, a.n_items - 1, heads - 1), "status %llx", (unsigned long long) status[0]);
        CHECK(memcmp(&last, &bad, 4) == 0, "%g became %g", bad, last);
    }
}

int main() {
    for (int kind = 0; kind < 4; kind++)
        for (const uint32_t n : {5u, 8u, 9u, 1023u, 1024u, 1025u, 2100u}) check_entropy(1 + n % 3, {n}, kind);
    check_entropy(2, {0}, 0), check_entropy(1, {1}, 0), check_entropy(3, {100, 7, 1500}, 0);
    for (uint64_t seed = 0; seed < 20; seed++)
        for (const uint32_t n : {1u, 2u, 7u, 32u, 127u, 128u, 129u, 300u}) check_entries(n, seed);
    check_entries(LAVA_CUDA_MAX_LAYERS, 1);
    check_mean(1, {1}), check_mean(3, {255, 256, 257}), check_mean(8, {700}), check_mean(33, {5, 1});
    return finish("shares", n_cases);
}
