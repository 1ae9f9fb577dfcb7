// lava_select_entries and the cascade: the kept sets of the CPU library, for any number of blocks and any schedule.
#include "test.h"
#include "../select.cu"
#include "../cascade.cu"
// The launches of a push are the library's own.
#define _Static_assert static_assert
#include "../plan.c"

using namespace test;

static long n_cases = 0;

static lava_cuda_select_params on_device(const lava_select_params &p) {
    return {p.protected_mask, uint32_t(p.head_floor), uint32_t(rint(p.alpha * 1e9)), p.n_sink, p.head_min, p.head_weights};
}

/// Scores with plateaus, as max-pooling leaves them; or few values; or all the same; or of both signs, or all negative.
static void fill(Random &random, float *scores, size_t n, int kind) {
    float x = 0;
    for (size_t i = 0; i < n; i++) {
        if (kind > 2) x = random.normal() - (kind == 4 ? 9 : 0);
        else if (kind != 0 || random.below(3) == 0) x = kind == 2 ? 0.25f : kind == 1 ? 0.125f * float(random.below(4)) : fabsf(random.normal());
        scores[i] = x;
    }
}

struct Item {
    uint32_t prefix, window;
    uint64_t n_entries;
    lava_select_params params;
};

static void check(uint32_t heads, const std::vector<Item> &items, int kind, uint64_t seed) {
    SAMPLE;
    Random random(seed);
    const uint32_t n = uint32_t(items.size());
    lava_cuda_select_args a = {};
    Buffer<lava_cuda_select_item> list(n);
    a.items = list.data(), a.n_items = n, a.n_kv_heads = heads;
    std::vector<std::unique_ptr<Buffer<float>>> scores;
    std::vector<std::unique_ptr<Buffer<uint32_t>>> kept, cu;
    std::vector<std::vector<uint32_t>> want_kept, want_cu;
    std::vector<lava_selection> want;
    Buffer<uint64_t> n_entries(n), status(1);
    Buffer<lava_cuda_selection> selections(n);
    for (uint32_t i = 0; i < n; i++) {
        const Item &item = items[i];
        const uint64_t entries = uint64_t(heads) * item.prefix, n_kept = std::min(item.n_entries, entries) + uint64_t(heads) * item.window;
        scores.emplace_back(new Buffer<float>(entries));
        fill(random, scores[i]->data(), entries, kind);
        kept.emplace_back(new Buffer<uint32_t>(n_kept)), cu.emplace_back(new Buffer<uint32_t>(heads + 1));
        n_entries[i] = item.n_entries;
        list[i] = {scores[i]->data(), &n_entries[i], kept[i]->data(), cu[i]->data(), &selections[i],
                   on_device(item.params), item.prefix, item.window, 0, 0};
        a.max_prefix = std::max(a.max_prefix, item.prefix);
        const lava_shape shape = lava_shape_init(item.prefix + item.window, heads, heads, 1, 1, item.window);
        size_t size = 0;
        lava_select_workspace_size(&shape, &size, nullptr);
        std::unique_ptr<char, void (*)(void *)> workspace(static_cast<char *>(aligned_alloc(64, (size + 64) / 64 * 64)), free);
        want_kept.emplace_back(n_kept), want_cu.emplace_back(heads + 1), want.push_back(lava_selection_init());
        CHECK(lava_select(&shape, &item.params, scores[i]->data(), item.n_entries, workspace.get(), size, want_kept[i].data(), n_kept, want_cu[i].data(), nullptr, &want[i], nullptr) == LAVA_OK, "the CPU refuses");
    }
    Buffer<unsigned char> workspace(lava_cuda_choice_workspace(n, heads, a.max_prefix));
    a.workspace = workspace.data(), a.status = status.data();
    for (const uint32_t n_blocks : {1u, 3u})
        for (unsigned s = 0; s < n_seeds() && !(is_quick() && n_blocks == 1); s++) {
            memset(workspace.data(), 0xA5, workspace.bytes());
            launch(lava_select_begin, n, 1, 1, 32, 0, s, a);
            status[0] = LAVA_NO_FAULT;
            for (uint32_t i = 0; i < n; i++) memset(kept[i]->data(), 0xA5, kept[i]->bytes()), memset(cu[i]->data(), 0xA5, cu[i]->bytes());
            launch(lava_select_entries, n_blocks, n, 1, LAVA_CUDA_SELECT_THREADS, 0, s, a, 0);
            CHECK(status[0] == LAVA_NO_FAULT, "status %llx", (unsigned long long) status[0]);
            for (uint32_t i = 0; i < n; i++) {
                CHECK(memcmp(cu[i]->data(), want_cu[i].data(), 4 * (heads + 1)) == 0, "cu_kept: %u heads, prefix %u, %llu entries, floor %d, min %u, weights %d, %u blocks", heads, items[i].prefix, (unsigned long long) items[i].n_entries, items[i].params.head_floor, items[i].params.head_min, items[i].params.head_weights != nullptr, n_blocks);
                CHECK(kept[i]->bytes() == 0 || memcmp(kept[i]->data(), want_kept[i].data(), kept[i]->bytes()) == 0, "kept_indices: %u heads, prefix %u, %llu entries, floor %d, min %u, weights %d, %u blocks", heads, items[i].prefix, (unsigned long long) items[i].n_entries, items[i].params.head_floor, items[i].params.head_min, items[i].params.head_weights != nullptr, n_blocks);
                const lava_cuda_selection &got = selections[i];
                CHECK(got.n_kept == want[i].n_kept && got.n_entries == want[i].n_entries && got.everything_kept == want[i].everything_kept, "report");
                CHECK(fabs(got.mass - want[i].mass) <= 1e-12 * want[i].mass && fabs(got.evicted_share - want[i].evicted_share) <= 1e-12, "mass %g %g, share %g %g", got.mass, want[i].mass, got.evicted_share, want[i].evicted_share);
            }
        }
    n_cases++;
}

static void check_faults() {
    Buffer<float> scores(40);
    for (int i = 0; i < 40; i++) scores[i] = 1;
    Buffer<uint64_t> n_entries(1), status(1);
    Buffer<uint32_t> kept(40), cu(3);
    Buffer<unsigned char> workspace(lava_cuda_choice_workspace(1, 2, 20));
    lava_cuda_select_args a = {};
    a.n_items = 1, a.n_kv_heads = 2, a.max_prefix = 20, a.workspace = workspace.data(), a.status = status.data();
    a.one = {scores.data(), n_entries.data(), kept.data(), cu.data(), nullptr, {nullptr, 0, 0, 3, 0, nullptr}, 20, 0, 5, 0};
    const auto run = [&] {
        launch(lava_select_begin, 1, 1, 1, 32, 0, 1, a);
        status[0] = LAVA_NO_FAULT;
        launch(lava_select_entries, 2, 1, 1, LAVA_CUDA_SELECT_THREADS, 0, 1, a, 0);
        CHECK(kept[0] == 0xA5A5A5A5u && cu[0] == 0xA5A5A5A5u, "something was written");
        return status[0];
    };
    n_entries[0] = 5;
    CHECK(run() == lava_fault(LAVA_FAULT_BUDGET, 5, 0, 0), "six are protected");
    a.one.params.head_min = 7, n_entries[0] = 13;
    CHECK(run() == lava_fault(LAVA_FAULT_BUDGET, 5, 0, 0), "seven of each head");
    n_entries[0] = LAVA_NO_ENTRIES;
    CHECK(run() == LAVA_NO_FAULT, "a missing number is reported elsewhere");
    n_entries[0] = 14, scores[39] = NAN;
    CHECK(run() == lava_fault(LAVA_FAULT_SCORES, 5, 0, 1), "NaN in head 1");
    scores[3] = INFINITY;
    CHECK(run() == lava_fault(LAVA_FAULT_SCORES, 5, 0, 0), "and infinity in head 0");
    Buffer<double> weights(2);
    a.one.params.head_weights = weights.data();
    for (const double bad : {-1.0, double(NAN), double(INFINITY)}) {
        weights[0] = 1, weights[1] = bad;
        CHECK(run() == lava_fault(LAVA_FAULT_WEIGHTS, 5, 0, 1), "a weight of %g", bad);
    }
    n_cases += 8;
}

/// Options at random, many of them at once, for heads of `prefix` entries; `weights` has one number per head.
struct Options {
    lava_select_params params = lava_select_params_lava();
    Buffer<uint8_t> mask;
    Buffer<double> weights;
    uint32_t least = 0; // that a head keeps

    Options(Random &random, uint32_t heads, uint32_t prefix) : mask(prefix, 0), weights(heads) {
        params.head_floor = int(random.below(3));
        params.alpha = random.below(3) == 0 ? 1.0 : 0.05 * random.below(20);
        // Up to more than there are.
        params.head_min = random.below(2) ? random.below(prefix + 1) / (1 + random.below(8)) : random.below(4) == 0 ? prefix + 5 : 0;
        params.n_sink = random.below(3) == 0 ? random.below(8) : 0;
        for (uint32_t t = 0; t < prefix; t++) mask[t] = random.below(16) == 0;
        if (random.below(3) == 0) params.protected_mask = mask.data();
        const uint32_t kind = random.below(5);
        for (uint32_t h = 0; h < heads; h++)
            weights[h] = kind == 0 ? 0.0 : kind == 1 ? double(random.below(prefix + 1)) : kind == 2 ? 1e30 * random.below(9) : kind == 3 ? double(random.below(3)) : 0.5 + 0.5 * random.uniform();
        if (random.below(2)) params.head_weights = weights.data();
        for (uint32_t t = 0; t < prefix; t++) least += t < params.n_sink || (params.protected_mask != nullptr && mask[t] != 0);
        least = std::max(least, std::min(params.head_min, prefix));
    }
};

static void check_random(uint32_t heads, int n_items, uint64_t seed) {
    SAMPLE;
    Random random(seed * 7919 + heads);
    std::vector<Item> items;
    std::vector<std::unique_ptr<Options>> options;
    for (int i = 0; i < n_items; i++) {
        const uint32_t prefix = random.below(8) == 0 ? random.below(3) : 20 + random.below(300);
        options.emplace_back(new Options(random, heads, prefix));
        const uint32_t least = heads * options[i]->least;
        items.push_back({prefix, 1 + random.below(4), least + random.below(heads * prefix - least + 1) / (1 + random.below(4)), options[i]->params});
    }
    check(heads, items, int(random.below(3)), seed);
}

static lava_cascade_params cascade_by(int layers, uint32_t evict_every = 0) {
    lava_cascade_params params = lava_cascade_params_lava();
    params.layers = layers, params.evict_every = evict_every;
    return params;
}

/// A cascade on both sides.
struct Cascade {
    const uint32_t heads, layers, prefix;
    const lava_select_params params;
    const lava_cascade_params how;
    lava_shape shape;
    Random random;
    size_t size = 0;
    std::unique_ptr<char, void (*)(void *)> cpu{nullptr, free};
    lava_cuda_cascade_item item = {};
    Buffer<float> scores;
    Buffer<double> weight{1};
    std::unique_ptr<Buffer<unsigned char>> state;

    Cascade(uint32_t heads, uint32_t layers, uint32_t prefix, uint32_t window, uint64_t total, const lava_select_params &params, const lava_cascade_params &how, uint64_t seed)
        : heads(heads), layers(layers), prefix(prefix), params(params), how(how), shape(lava_shape_init(prefix + window, heads, heads, 1, 1, window)),
          random(seed), scores(size_t(heads) * prefix) {
        CHECK(lava_cascade_state_size(&shape, 1, layers, total, &params, &how, &size, nullptr) == LAVA_OK, "the CPU refuses");
        cpu.reset(static_cast<char *>(aligned_alloc(64, (size + 64) / 64 * 64)));
        lava_cascade_init(&shape, 1, layers, total, &params, &how, cpu.get(), size, nullptr);
        item.params = on_device(params);
        item.layers = uint32_t(how.layers);
        item.weight = weight.data(), item.scores = scores.data();
        item.evict_every = std::max(how.evict_every, 1u);
        item.total = total, item.n_layers = layers, item.n_kv_heads = heads, item.prefix_len = prefix, item.window_rows = window;
        state.reset(new Buffer<unsigned char>(lava_cuda_cascade_state(&item)));
        item.state = state->data();
    }
    bool is_complete() const { return item.layer == layers; }
    void next_scores() {
        fill(random, scores.data(), scores.size(), int(random.below(2)));
        for (size_t i = 0; i < scores.size(); i++) scores[i] = powf(scores[i], float(1 + 6 * (item.layer % 3))); // of different entropies
        // Now and then a head that would keep nothing without a promise.
        if (random.below(2) == 0) for (size_t i = 0; i < prefix; i++) scores[scores.size() - prefix + i] *= 1e-4f;
        weight[0] = random.below(3) == 0 ? 0.0 : fabs(double(random.normal()));
    }
    /// After the push of item.layer, which the CPU then does too.
    void check() {
        const uint32_t layer = item.layer;
        const double *const its_weight = how.layers == LAVA_LAYERS_WEIGHTS ? weight.data() : nullptr;
        const lava_status pushed = lava_cascade_push(cpu.get(), size, &shape, scores.data(), its_weight, nullptr);
        CHECK(pushed == LAVA_OK, "the CPU refuses: %d", pushed);
        const lava_cuda_cascade_layout l = lava_cuda_cascade_place(&item);
        const uint64_t now = (layer + 1) % 2;
        const auto word = [&](uint64_t at) { return reinterpret_cast<uint32_t *>(state->data() + at); };
        for (uint32_t i = 0; i <= layer; i++) {
            lava_cascade_layer want = lava_cascade_layer_init();
            lava_cascade_get(cpu.get(), size, i, &want, nullptr);
            const uint32_t *cu = word(l.cu) + (now * layers + i) * (heads + 1), *cu_rows = word(l.cu_rows) + i * (heads + 1);
            const uint64_t start = reinterpret_cast<uint64_t *>(state->data() + l.starts)[now * layers + i];
            const auto number = [&](uint64_t at) { return reinterpret_cast<double *>(state->data() + at)[i]; };
            const bool same_counts = memcmp(cu, want.cu_kept, 4 * (heads + 1)) == 0;
            CHECK(same_counts && memcmp(cu_rows, want.cu_rows, 4 * (heads + 1)) == 0, "layer %u after push %u of %u: counts", i, layer, layers);
            CHECK(reinterpret_cast<uint64_t *>(state->data() + l.n_entries)[i] == want.n_entries && number(l.entropies) == want.entropy && number(l.masses) == want.mass, "layer %u after push %u: report", i, layer);
            CHECK(fabs(number(l.shares) - want.evicted_share) <= 1e-12, "layer %u after push %u: share", i, layer);
            if (!same_counts) continue;
            CHECK(start + cu[heads] <= l.capacity, "more rows than there is room for");
            CHECK(memcmp(word(l.positions) + now * l.capacity + start, want.kept_indices, 4 * cu[heads]) == 0, "layer %u after push %u: kept_indices", i, layer);
            CHECK(memcmp(word(l.rows) + now * l.capacity + start, want.rows, 4 * cu[heads]) == 0, "layer %u after push %u: rows", i, layer);
        }
    }
};

/// Launches for some cascades; a single one is passed by value.
struct Pushes {
    lava_cuda_cascade_args a = {};
    Buffer<lava_cuda_cascade_item> items;
    std::unique_ptr<Buffer<unsigned char>> workspace;

    Pushes(const std::vector<lava_cuda_cascade_item> &list, uint64_t *status) : items(list.size()) {
        a.one = list[0], a.status = status;
        if (list.size() > 1) a.items = items.data();
        for (size_t i = 0; i < list.size(); i++) items[i] = list[i], lava_plan_cascade_with(&a, &list[i]);
        workspace.reset(new Buffer<unsigned char>(lava_plan_cascade(&a, nullptr)));
        lava_plan_cascade(&a, workspace->data());
    }
    void begin(unsigned seed) { launch(lava_cascade_begin, 1, 1, 1, LAVA_CUDA_BUDGET_THREADS, 0, seed, a); }
    /// On a device that has room for this many blocks which wait for each other.
    void push(uint32_t resident, unsigned seed) {
        void (*const kernels[])(const lava_cuda_cascade_args) = {lava_cascade_pieces, lava_cascade_share, lava_cascade_plan, lava_cascade_write};
        const lava_processors device = {1, 0, resident, resident, resident};
        lava_launch launches[4];
        const uint32_t n = lava_plan_cascade_push(&a, &device, launches);
        CHECK(n == 4, "%u launches", n);
        for (const lava_launch &l : launches) launch(kernels[l.kernel - CASCADE_PIECES], l.grid[0], l.grid[1], l.grid[2], l.block, l.shared_bytes, seed, a, l.cooperative ? 0 : 3);
    }
};

/// Cascades side by side, each begun a push later than the one before it.
static void push_all(const std::vector<Cascade *> &cascades, uint32_t resident, uint64_t seed) {
    Buffer<uint64_t> status(1, 0xFF);
    for (uint32_t turn = 0;; turn++) {
        std::vector<Cascade *> pushed;
        std::vector<lava_cuda_cascade_item> items;
        for (uint32_t i = 0; i < cascades.size() && i <= turn; i++) {
            if (i == turn) Pushes({cascades[i]->item}, status.data()).begin(unsigned(seed));
            if (cascades[i]->is_complete()) continue;
            cascades[i]->next_scores();
            pushed.push_back(cascades[i]);
            items.push_back(cascades[i]->item);
        }
        if (pushed.empty()) break;
        Pushes(items, status.data()).push(resident, unsigned(seed * 100 + turn));
        CHECK(status[0] == LAVA_NO_FAULT, "status %llx", (unsigned long long) status[0]);
        for (Cascade *cascade : pushed) cascade->check(), cascade->item.layer++;
    }
    n_cases++;
}

static void check_cascade(uint32_t heads, uint32_t layers, uint32_t prefix, uint32_t window, uint64_t total, const lava_select_params &params, const lava_cascade_params &how, uint32_t resident, uint64_t seed) {
    SAMPLE;
    Cascade one(heads, layers, prefix, window, total, params, how, seed);
    push_all({&one}, resident, seed);
}

static void check_cascades_together(uint32_t resident, uint64_t seed) {
    SAMPLE;
    lava_select_params with_sinks = lava_select_params_lava();
    with_sinks.n_sink = 2;
    const lava_cascade_params by_weights = cascade_by(LAVA_LAYERS_WEIGHTS, 2);
    Cascade long_one(2, 4, 2100, 4, 3000, lava_select_params_lava(), lava_cascade_params_lava(), seed), of_none(1, 3, 0, 2, 0, with_sinks, by_weights, seed);
    Cascade of_more(5, 5, 40, 1, 300, lava_select_params_default(), lava_cascade_params_default(), seed), by_weight(3, 2, 70, 3, 100, with_sinks, by_weights, seed);
    push_all({&long_one, &of_none, &of_more, &by_weight}, resident, seed);
}

static void check_random_cascade(int by, uint32_t resident, uint64_t seed) {
    SAMPLE;
    Random random(seed * 31 + 7);
    const uint32_t heads = 1 + random.below(3), layers = 1 + random.below(5), prefix = random.below(8) == 0 ? random.below(3) : 10 + random.below(120);
    Options options(random, layers * heads, prefix);
    lava_select_params &p = options.params;
    const lava_cascade_params how = cascade_by(by, random.below(layers + 2));
    if (by == LAVA_LAYERS_GLOBAL) p.head_weights = nullptr, p.head_floor = int(random.below(2));
    const uint32_t all = layers * heads * prefix, least = layers * heads * options.least;
    check_cascade(heads, layers, prefix, 1 + random.below(4), least + random.below(all - least + 1) / (1 + random.below(4)), p, how, resident, seed);
}

/// A fault ends a cascade: what was kept before it stays, and no later push does anything. Its neighbour goes on.
static void check_cascade_faults() {
    const uint32_t heads = 2, layers = 3, prefix = 20;
    Buffer<float> scores(heads * prefix);
    for (size_t i = 0; i < scores.size(); i++) scores[i] = float(1 + i % 7);
    Buffer<uint64_t> status(1);
    Buffer<double> weight(1), head_weights(layers * heads);
    lava_cuda_cascade_item a = {};
    a.evict_every = 1, a.total = 60, a.n_layers = layers, a.n_kv_heads = heads, a.prefix_len = prefix, a.window_rows = 1;
    a.scores = scores.data(), a.weight = weight.data();
    const auto run = [&](uint32_t bad_layer, double bad_weight, float bad_score) {
        Buffer<unsigned char> state(lava_cuda_cascade_state(&a));
        Cascade neighbour(1, layers, 30, 2, 40, lava_select_params_lava(), lava_cascade_params_lava(), 5);
        a.state = state.data();
        status[0] = LAVA_NO_FAULT;
        a.layer = 0;
        Pushes({a}, status.data()).begin(1);
        Pushes({neighbour.item}, status.data()).begin(1);
        std::vector<unsigned char> before;
        for (a.layer = 0; a.layer < layers; a.layer++, neighbour.item.layer++) {
            weight[0] = a.layer == bad_layer ? bad_weight : 1.0;
            scores[25] = a.layer == bad_layer ? bad_score : 1.0f;
            neighbour.next_scores();
            const lava_cuda_cascade_layout l = lava_cuda_cascade_place(&a);
            if (a.layer == bad_layer) before.assign(state.data() + l.starts, state.data() + l.piece_sums);
            Pushes({neighbour.item, a}, status.data()).push(8, 1);
            if (a.layer >= bad_layer) CHECK(memcmp(before.data(), state.data() + l.starts, before.size()) == 0, "a push after the fault did something");
            neighbour.check();
        }
        return status[0];
    };
    a.layers = LAVA_LAYERS_WEIGHTS;
    CHECK(run(3, 1, 1) == LAVA_NO_FAULT, "nothing is wrong");
    // The last is what a preference with a fault leaves.
    const uint64_t none = LAVA_NO_ENTROPY;
    double no_weight;
    memcpy(&no_weight, &none, sizeof no_weight);
    for (const double bad : {-1.0, double(NAN), double(INFINITY), no_weight}) CHECK(run(1, bad, 1) == lava_fault(LAVA_FAULT_WEIGHTS, 1, 1, LAVA_NO_HEAD), "a weight of %g", bad);
    for (const int by : {LAVA_LAYERS_ENTROPY, LAVA_LAYERS_EQUAL, LAVA_LAYERS_WEIGHTS, LAVA_LAYERS_GLOBAL}) {
        a.layers = uint32_t(by);
        CHECK(run(1, 1, -1.0f) == lava_fault(LAVA_FAULT_SCORES, 1, 1, 1), "a negative score");
    }
    a.params.head_min = 11;
    CHECK(run(0, 1, 1) == lava_fault(LAVA_FAULT_BUDGET, 0, 0, 0), "eleven of each head are 66");
    a.params.head_min = 10;
    CHECK(run(3, 1, 1) == LAVA_NO_FAULT, "ten are 60");
    a.layers = LAVA_LAYERS_EQUAL;
    for (size_t i = 0; i < head_weights.size(); i++) head_weights[i] = 1;
    head_weights[5] = NAN, a.params.head_weights = head_weights.data(), a.params.head_min = 11;
    CHECK(run(0, 1, 1) == lava_fault(LAVA_FAULT_WEIGHTS, 2, 0, 1), "NaN for the last head");
    n_cases += 11;
}

/// Of the most entries that a head can have.
static void check_tiles() {
    for (const uint32_t n : {0u, 1u, 2048u, 2049u, 4294965248u, 4294965249u, UINT32_MAX}) {
        const uint64_t tiles = (uint64_t(n) + LAVA_CUDA_SELECT_TILE - 1) / LAVA_CUDA_SELECT_TILE;
        CHECK(lava_cuda_choice_tiles(1, n) == tiles, "%u entries are %u tiles", n, lava_cuda_choice_tiles(1, n));
        CHECK(lava_cuda_choice_workspace(1, 1, n) > tiles * 24, "%u entries: a workspace without them", n);
    }
    n_cases += 7;
}

int main() {
    const auto params = [](int floor, double alpha, uint32_t sink, const uint8_t *mask) {
        lava_select_params p = lava_select_params_lava();
        p.head_floor = floor, p.alpha = alpha, p.n_sink = sink, p.protected_mask = mask;
        return p;
    };
    Buffer<uint8_t> mask(5000, 0);
    for (int i = 0; i < 5000; i += 97) mask[i] = 1;
    uint64_t seed = 0;
    for (int floor = 0; floor < 3; floor++)
        for (const double alpha : {0.0, 0.2, 1.0})
            for (const uint32_t heads : {1u, 3u})
                for (int kind = 0; kind < 3; kind++) {
                    if (floor == 0 && alpha > 0) continue;
                    if (is_quick() && (kind == 1 || heads == 1 || alpha == 1.0)) continue;
                    std::vector<Item> items;
                    const uint32_t prefix = kind == 0 ? 2049 : 300;
                    for (const uint64_t n : {uint64_t(0), uint64_t(1), uint64_t(prefix) * heads / 3, uint64_t(prefix) * heads + 9})
                        items.push_back({prefix - (n == 1), 5, n, params(floor, alpha, 0, nullptr)});
                    items.push_back({prefix, 2, uint64_t(prefix) * heads / 2, params(floor, alpha, 4, nullptr)});
                    items.push_back({prefix, 1, uint64_t(prefix) * heads / 2, params(floor, alpha, 1, mask.data())});
                    check(heads, items, kind, seed++);
                }
    check(2, {{0, 4, 3, params(0, 0, 0, nullptr)}, {1, 1, 1, params(0, 0, 0, nullptr)}}, 0, seed++);
    check(2, {{4100, 2, 1000, params(2, 0.2, 0, nullptr)}}, 0, seed++);
    for (const int kind : {3, 4}) check(2, {{2100, 2, 1000, params(0, 0, 2, nullptr)}, {30, 1, 7, params(1, 0.3, 0, nullptr)}}, kind, seed++);
    check_faults();
    check_tiles();
    for (const uint32_t heads : {1u, 2u, 5u})
        for (int i = 0; i < (is_quick() ? 2 : 8); i++) check_random(heads, 4, seed++);
    // More heads than threads.
    check_random(300, 1, seed++);
    for (int floor = 0; floor < 3; floor++)
        for (const uint32_t resident : {1u, 2u}) {
            check_cascade(2, 5, 130, 4, 300, params(floor, 0.3, 0, nullptr), lava_cascade_params_lava(), resident, seed++);
            check_cascade(3, 4, 61, 1, 200, params(floor, 0.2, 2, mask.data()), lava_cascade_params_lava(), resident, seed++);
            check_cascade(1, 3, 40, 2, 5000, params(floor, 0.2, 0, nullptr), lava_cascade_params_lava(), resident, seed++);
            check_cascade(2, 3, 50, 2, 0, params(floor, 0.2, 0, nullptr), lava_cascade_params_lava(), resident, seed++);
        }
    check_cascade_faults();
    // Of four cascades each has one block, two, or six.
    for (const uint32_t resident : {1u, 9u, 25u}) check_cascades_together(resident, seed++);
    // Earlier layers' heads of several tiles, and of none.
    for (const int by : {LAVA_LAYERS_ENTROPY, LAVA_LAYERS_GLOBAL})
        for (const uint32_t resident : {5u, 11u})
            check_cascade(3, 3, 6200, 1, resident == 5 ? 30000 : 2500, lava_select_params_lava(), cascade_by(by), resident, seed++);
    // What random options may miss: each way of sharing alone, head weights that differ from layer to layer, and promises.
    for (const int by : {LAVA_LAYERS_ENTROPY, LAVA_LAYERS_EQUAL, LAVA_LAYERS_WEIGHTS, LAVA_LAYERS_GLOBAL}) {
        lava_select_params alone = lava_select_params_lava();
        check_cascade(2, 5, 90, 2, 350, alone, cascade_by(by), 2, seed++);
        for (const uint32_t every : {2u, 3u, ~0u}) check_cascade(2, 5, 90, 2, 350, alone, cascade_by(by, every), every == 2 ? 1 : 2, seed++);
        Buffer<double> own(5 * 2);
        for (uint32_t i = 0; i < 10; i++) own[i] = 1 + (7 * i) % 10;
        alone.head_weights = own.data();
        if (by != LAVA_LAYERS_GLOBAL) check_cascade(2, 5, 90, 2, 350, alone, cascade_by(by), 2, seed++);
        // Heads with next to no weight have what they are promised.
        for (uint32_t i = 0; i < 10; i++) own[i] = i % 2 ? 1 : 1e-6;
        alone.head_min = 9;
        if (by != LAVA_LAYERS_GLOBAL) check_cascade(2, 5, 90, 2, 350, alone, cascade_by(by), 2, seed++);
    }
    for (const int by : {LAVA_LAYERS_ENTROPY, LAVA_LAYERS_EQUAL, LAVA_LAYERS_WEIGHTS, LAVA_LAYERS_GLOBAL})
        for (int i = 0; i < (is_quick() ? 3 : 12); i++) check_random_cascade(by, i % 2 ? 2 + uint32_t(i) : 1, seed++);
    return finish("select", n_cases);
}
