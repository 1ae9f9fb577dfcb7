// lava_share_globally: the entries and head weights of the CPU library, and the same kept sets when lava_select_entries takes them from
// where they are.
#include "test.h"
#include "../global.cu"
#include "../select.cu"

using namespace test;

static long n_cases = 0;

static lava_cuda_select_params on_device(const lava_select_params &p) {
    return {p.protected_mask, uint32_t(p.head_floor), uint32_t(rint(p.alpha * 1e9)), p.n_sink, p.head_min, p.head_weights};
}

/// One sequence: what the kernels get, and what the CPU says.
struct Sequence {
    uint32_t prefix;
    lava_select_params params = lava_select_params_lava();
    uint64_t total;
    Buffer<uint8_t> mask;
    Buffer<float> scores; // [n_layers, n_kv_heads, prefix]
    Buffer<const float *> layers;
    Buffer<uint64_t> entries;
    Buffer<double> head_weights;
    std::vector<uint64_t> want_entries;
    std::vector<double> want_weights;

    Sequence(Random &random, uint32_t n_layers, uint32_t heads, uint32_t prefix)
        : prefix(prefix), mask(prefix), scores(size_t(n_layers) * heads * prefix), layers(n_layers), entries(n_layers),
          head_weights(n_layers * heads), want_entries(n_layers), want_weights(n_layers * heads) {
        // Plateaus as max-pooling leaves them, few values, or none at all; some layers are zero, some larger throughout.
        const uint32_t kind = random.below(4);
        for (uint32_t l = 0; l < n_layers; l++) {
            // Layers are not in order in memory.
            const uint32_t at = (l + 1) % n_layers;
            layers[l] = scores.data() + size_t(at) * heads * prefix;
            const float size = random.below(4) == 0 ? 0.0f : powf(2.0f, float(random.below(4)));
            float x = 0;
            for (size_t i = 0; i < size_t(heads) * prefix; i++) {
                if (kind != 0 || random.below(3) == 0) x = kind == 3 ? 0.25f : kind == 2 ? 0.125f * float(random.below(4)) : size * fabsf(random.normal());
                scores[size_t(at) * heads * prefix + i] = x;
            }
        }
        params.head_floor = int(random.below(2));
        params.alpha = random.below(4) == 0 ? 1.0 : 0.05 * random.below(20);
        params.head_min = random.below(3) == 0 ? random.below(prefix + 1) / (1 + random.below(8)) : random.below(6) == 0 ? prefix + 3 : 0;
        params.n_sink = random.below(3) == 0 ? random.below(6) : 0;
        uint32_t n_protected = 0;
        for (uint32_t t = 0; t < prefix; t++) mask[t] = random.below(16) == 0;
        if (random.below(3) == 0) params.protected_mask = mask.data();
        for (uint32_t t = 0; t < prefix; t++) n_protected += t < params.n_sink || (params.protected_mask != nullptr && mask[t] != 0);
        const uint32_t all = n_layers * heads * prefix, least = n_layers * heads * std::max(n_protected, std::min(params.head_min, prefix));
        total = random.below(8) == 0 ? all + 7ull : least + random.below(all - least + 1) / (1 + random.below(5));

        const lava_shape shape = lava_shape_init(prefix + 2, heads, heads, 1, 1, 2);
        std::vector<float> in_order;
        for (uint32_t l = 0; l < n_layers; l++) in_order.insert(in_order.end(), layers[l], layers[l] + size_t(heads) * prefix);
        size_t size = 0;
        lava_global_entries_workspace_size(&shape, 1, n_layers, &size, nullptr);
        std::unique_ptr<char, void (*)(void *)> workspace(static_cast<char *>(aligned_alloc(64, (size + 64) / 64 * 64)), free);
        const lava_status on_cpu = lava_global_entries(&shape, 1, n_layers, &params, in_order.data(), total, workspace.get(), size, want_entries.data(), want_weights.data(), nullptr);
        CHECK(on_cpu == LAVA_OK, "the CPU refuses: %d", on_cpu);
    }

    lava_cuda_global_item item() { return {layers.data(), entries.data(), head_weights.data(), on_device(params), total, prefix, 0}; }
};

/// The kept sets of all layers of a sequence, from the entries on the device.
static void check_selection(Sequence &sequence, uint32_t n_layers, uint32_t heads, uint32_t n_blocks, unsigned seed) {
    const uint32_t window = 2, prefix = sequence.prefix;
    const lava_shape shape = lava_shape_init(prefix + window, heads, heads, 1, 1, window);
    Buffer<lava_cuda_select_item> list(n_layers);
    std::vector<std::unique_ptr<Buffer<uint32_t>>> kept, cu;
    for (uint32_t l = 0; l < n_layers; l++) {
        kept.emplace_back(new Buffer<uint32_t>(sequence.want_entries[l] + heads * window)), cu.emplace_back(new Buffer<uint32_t>(heads + 1));
        list[l] = {sequence.layers[l], &sequence.entries[l], kept[l]->data(), cu[l]->data(), nullptr, on_device(sequence.params), prefix, window, l, 0};
        list[l].params.head_weights = sequence.head_weights.data() + size_t(l) * heads;
    }
    Buffer<unsigned char> workspace(lava_cuda_choice_workspace(n_layers, heads, prefix));
    Buffer<uint64_t> status(1, 0xFF);
    lava_cuda_select_args a = {};
    a.items = list.data(), a.n_items = n_layers, a.n_kv_heads = heads, a.max_prefix = prefix, a.workspace = workspace.data(), a.status = status.data();
    launch(lava_select_begin, n_layers, 1, 1, 32, 0, seed, a);
    launch(lava_select_entries, n_blocks, n_layers, 1, LAVA_CUDA_SELECT_THREADS, 0, seed, a, n_blocks == 1 ? 3 : 0);
    CHECK(status[0] == LAVA_NO_FAULT, "status %llx", (unsigned long long) status[0]);
    for (uint32_t l = 0; l < n_layers; l++) {
        lava_select_params params = sequence.params;
        params.head_weights = sequence.want_weights.data() + size_t(l) * heads;
        std::vector<uint32_t> want_kept(kept[l]->size()), want_cu(heads + 1);
        size_t size = 0;
        lava_select_workspace_size(&shape, &size, nullptr);
        std::unique_ptr<char, void (*)(void *)> memory(static_cast<char *>(aligned_alloc(64, (size + 64) / 64 * 64)), free);
        CHECK(lava_select(&shape, &params, sequence.layers[l], sequence.want_entries[l], memory.get(), size, want_kept.data(), want_kept.size(), want_cu.data(), nullptr, nullptr, nullptr) == LAVA_OK, "the CPU refuses");
        CHECK(memcmp(cu[l]->data(), want_cu.data(), 4 * (heads + 1)) == 0 && memcmp(kept[l]->data(), want_kept.data(), kept[l]->bytes()) == 0, "layer %u of %u: kept_indices", l, n_layers);
    }
}

static void check(uint32_t n_layers, uint32_t heads, const std::vector<uint32_t> &prefixes, uint64_t seed) {
    SAMPLE;
    Random random(seed * 977 + n_layers);
    const uint32_t n = uint32_t(prefixes.size());
    std::vector<std::unique_ptr<Sequence>> sequences;
    Buffer<lava_cuda_global_item> list(n);
    Buffer<uint64_t> status(1);
    lava_cuda_global_args a = {};
    a.n_items = n, a.n_layers = n_layers, a.n_kv_heads = heads, a.status = status.data();
    for (uint32_t i = 0; i < n; i++) {
        sequences.emplace_back(new Sequence(random, n_layers, heads, prefixes[i]));
        list[i] = sequences[i]->item();
        a.max_prefix = std::max(a.max_prefix, prefixes[i]);
    }
    // One alone goes in the arguments.
    if (n == 1) a.one = list[0];
    else a.items = list.data();
    Buffer<unsigned char> workspace(lava_cuda_global_workspace(n, n_layers, heads, a.max_prefix));
    a.workspace = workspace.data();
    for (const uint32_t n_blocks : {1u, 3u})
        for (unsigned s = 0; s < n_seeds() && !(is_quick() && n_blocks == 1); s++) {
            memset(workspace.data(), 0xA5, workspace.bytes());
            launch(lava_global_begin, n, 1, 1, 32, 0, s, a);
            status[0] = LAVA_NO_FAULT;
            for (auto &sequence : sequences) memset(sequence->entries.data(), 0xA5, sequence->entries.bytes()), memset(sequence->head_weights.data(), 0xA5, sequence->head_weights.bytes());
            launch(lava_share_globally, n_blocks, n, 1, LAVA_CUDA_SELECT_THREADS, 0, s, a, 0);
            CHECK(status[0] == LAVA_NO_FAULT, "status %llx", (unsigned long long) status[0]);
            for (uint32_t i = 0; i < n; i++) {
                Sequence &sequence = *sequences[i];
                const lava_select_params &p = sequence.params;
                const bool same = memcmp(sequence.entries.data(), sequence.want_entries.data(), 8 * n_layers) == 0 && memcmp(sequence.head_weights.data(), sequence.want_weights.data(), 8 * n_layers * heads) == 0;
                CHECK(same, "%u layers of [%u, %u], total %llu, floor %d of %g, min %u, %u blocks", n_layers, heads, sequence.prefix, (unsigned long long) sequence.total, p.head_floor, p.alpha, p.head_min, n_blocks);
                // Blocks that wait for each other have to run side by side: a GPU has room for 128. ThreadSanitizer takes eight thousand
                // threads, and the last case's layers are too many for it altogether.
                const uint32_t room = is_quick() ? 24 / n_layers : std::max(1u, 128 / n_layers), fits = std::min(n_blocks, room);
                if (same && s == 0 && fits > 0) check_selection(sequence, n_layers, heads, fits, s);
            }
        }
    n_cases++;
}

static void check_faults() {
    const uint32_t n_layers = 3, heads = 2, prefix = 20;
    Random random(5);
    Sequence sequence(random, n_layers, heads, prefix), fine(random, n_layers, heads, prefix);
    for (size_t i = 0; i < sequence.scores.size(); i++) sequence.scores[i] = 1;
    Buffer<lava_cuda_global_item> list(2);
    Buffer<uint64_t> status(1);
    lava_cuda_global_args a = {};
    a.items = list.data(), a.n_items = 2, a.n_layers = n_layers, a.n_kv_heads = heads, a.max_prefix = prefix, a.status = status.data();
    Buffer<unsigned char> workspace(lava_cuda_global_workspace(2, n_layers, heads, prefix));
    a.workspace = workspace.data();
    const auto run = [&](uint32_t n_sink, uint32_t head_min, uint64_t total, unsigned seed) {
        launch(lava_global_begin, 2, 1, 1, 32, 0, 1, a);
        memset(sequence.head_weights.data(), 0xA5, sequence.head_weights.bytes());
        sequence.params = lava_select_params_lava();
        sequence.params.n_sink = n_sink, sequence.params.head_min = head_min, sequence.total = total;
        list[0] = fine.item(), list[1] = sequence.item();
        status[0] = LAVA_NO_FAULT;
        launch(lava_share_globally, 2, 2, 1, LAVA_CUDA_SELECT_THREADS, 0, seed, a, 0);
        CHECK(memcmp(fine.entries.data(), fine.want_entries.data(), fine.entries.bytes()) == 0, "the other sequence's entries");
        if (status[0] != LAVA_NO_FAULT) {
            for (uint32_t l = 0; l < n_layers; l++) CHECK(sequence.entries[l] == LAVA_NO_ENTRIES, "a number despite a fault");
            CHECK(memcmp(sequence.head_weights.data(), "\xA5\xA5\xA5\xA5\xA5\xA5\xA5\xA5", 8) == 0, "a weight despite a fault");
        }
        return status[0];
    };
    CHECK(run(0, 0, 9, 1) == LAVA_NO_FAULT, "nothing is wrong");
    CHECK(run(3, 0, 18, 1) == LAVA_NO_FAULT, "three of six heads fit");
    CHECK(run(3, 0, 17, 1) == lava_fault(LAVA_FAULT_BUDGET, 0, 1, 0), "but not into less");
    CHECK(run(3, 4, 23, 1) == lava_fault(LAVA_FAULT_BUDGET, 0, 1, 0), "nor four");
    // Of equal scores the first head's win, except for two of each head.
    CHECK(run(0, 2, 15, 1) == LAVA_NO_FAULT && sequence.entries[0] == 7 && sequence.entries[1] == 4 && sequence.entries[2] == 4, "two of each head");
    CHECK(run(3, 99, 200, 1) == LAVA_NO_FAULT, "more than there are: all");
    const_cast<float *>(sequence.layers[2])[3] = NAN;
    CHECK(run(0, 0, 9, 1) == lava_fault(LAVA_FAULT_SCORES, 2, 1, 0), "NaN in layer 2, head 0");
    const_cast<float *>(sequence.layers[1])[20] = INFINITY;
    CHECK(run(0, 0, 9, 2) == lava_fault(LAVA_FAULT_SCORES, 1, 1, 1), "and infinity in layer 1, head 1");
    n_cases += 8;
}

int main() {
    uint64_t seed = 0;
    for (const uint32_t heads : {1u, 2u, 3u})
        for (int i = 0; i < (is_quick() ? 5 : 10); i++) {
            Random random(seed);
            check(1 + random.below(5), heads, {1 + random.below(200)}, seed);
            seed++;
        }
    check(3, 2, {40, 0, 2100, 1}, seed++);
    check(2, 2, {2049}, seed++);
    // More heads than threads.
    check(150, 2, {9}, seed++);
    check_faults();
    return finish("global", n_cases);
}
