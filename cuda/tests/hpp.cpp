// lava_cuda.hpp over the fake driver: a prefill of two sequences through it, against the CPU through lava.hpp, and what it adds to the
// C functions: exceptions, ownership, and nothing else. What the calls compute is path.c's.
#include <lava_cuda.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <limits>

// With the fake driver: modules that are loaded.
extern "C" __attribute__((weak)) int fake_modules();

// Not inlined: GCC 12 would take malloc and delete, or new and free, for a pair.
#define APART __attribute__((noinline))
static long n_allocations = 0;
APART void *operator new(std::size_t size) {
    n_allocations++;
    if (void *memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
APART void *operator new(std::size_t size, std::align_val_t to) {
    n_allocations++;
    const std::size_t step = std::size_t(to);
    if (void *memory = std::aligned_alloc(step, (size + step - 1) / step * step)) return memory;
    throw std::bad_alloc();
}
APART void operator delete(void *memory) noexcept { std::free(memory); }
APART void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }
APART void operator delete(void *memory, std::align_val_t) noexcept { std::free(memory); }
APART void operator delete(void *memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using lava::cuda::init;
using std::uint16_t, std::uint32_t, std::uint64_t, std::size_t;

#define CHECK(condition) do { if (!(condition)) { std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); std::exit(1); } } while (0)
#define CU(call) CHECK((call) == CUDA_SUCCESS)
/// The call throws a lava::error with this status, argument and function.
#define REFUSED(wanted, name, function, ...) do { \
    bool is_thrown = false; \
    try { __VA_ARGS__; } catch (const lava::error &e) { \
        is_thrown = true; \
        if (e.status() != (wanted) || std::strcmp(e.argument(), name) != 0 || std::strncmp(e.what(), function ": ", sizeof(function) + 1) != 0) { \
            std::fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, e.what(), e.argument()); std::exit(1); } } \
    CHECK(is_thrown && #__VA_ARGS__ != nullptr); } while (0)

CUstream stream = nullptr;
int loaded() { return fake_modules ? fake_modules() : 0; }
void settle() { CU(cuStreamSynchronize(stream)); }

/// Memory of both sides.
template <class T> class Device {
public:
    explicit Device(size_t n = 1) : n(n) {
        CUdeviceptr at = 0;
        CU(cuMemAllocManaged(&at, std::max<size_t>(n, 1) * sizeof(T), CU_MEM_ATTACH_GLOBAL));
        memory = reinterpret_cast<T *>(at);
    }
    Device(Device &&from) noexcept : memory(std::exchange(from.memory, nullptr)), n(from.n) {}
    ~Device() {
        if (memory) CU(cuMemFree(reinterpret_cast<CUdeviceptr>(memory)));
    }
    T *data() const { return memory; }
    size_t size() const { return n; }
    T &operator[](size_t i) const { return memory[i]; }
    operator lava::cuda::device_memory() const { return {memory, n * sizeof(T)}; }

private:
    T *memory = nullptr;
    size_t n;
};
using Bytes = Device<unsigned char>;

/// bf16 numbers in [-1, 1), exact.
Device<uint16_t> numbers(size_t n) {
    static uint32_t seed = 1;
    Device<uint16_t> out(n);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        const float x = float(seed >> 24) / 128 - 1;
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        out[i] = uint16_t(bits >> 16);
    }
    return out;
}

constexpr uint32_t N = 2, LAYERS = 3, Q_HEADS = 4, HEADS = 2, DIM = 64, WINDOW = 8;
constexpr uint32_t LENGTHS[N] = {180, 97};
constexpr uint64_t TOTALS[N] = {LAYERS * HEADS * 40, LAYERS * HEADS * 25};

lava_shape shape_of(uint32_t sequence, uint32_t layer = 0) {
    lava_shape shape = lava_shape_init(LENGTHS[sequence], Q_HEADS, HEADS, DIM, DIM, WINDOW);
    shape.layer = layer;
    return shape;
}

/// A layer of a sequence: what the engine has, on the device and for the CPU, and its scores.
struct Layer {
    Device<uint16_t> q, k, v;
    std::vector<uint16_t> k_host, v_host;
    lava::tensor q_in, k_in, v_in, k_cpu, v_cpu;
    Device<float> scores;

    explicit Layer(uint32_t sequence)
        : q(numbers(WINDOW * Q_HEADS * DIM)), k(numbers(LENGTHS[sequence] * HEADS * DIM)), v(numbers(k.size())),
          k_host(k.data(), k.data() + k.size()), v_host(v.data(), v.data() + v.size()),
          q_in(lava::token_major(lava::bf16(q), Q_HEADS, DIM)), k_in(lava::token_major(lava::bf16(k), HEADS, DIM)),
          v_in(lava::token_major(lava::bf16(v), HEADS, DIM)), k_cpu(lava::token_major(lava::bf16(k_host), HEADS, DIM)),
          v_cpu(lava::token_major(lava::bf16(v_host), HEADS, DIM)), scores(lava::n_scores(shape_of(sequence))) {}
    lava_cuda_score_sequence to_score(uint32_t n_tokens) const {
        auto s = init<lava_cuda_score_sequence>();
        s.n_tokens = n_tokens;
        s.q = &q_in.c, s.k = &k_in.c, s.v = &v_in.c;
        s.scores = scores.data();
        return s;
    }
};

struct Model {
    std::vector<Layer> layers[N];
    Device<uint64_t> status;

    Model() {
        for (uint32_t i = 0; i < N; i++)
            for (uint32_t l = 0; l < LAYERS; l++) layers[i].emplace_back(i);
        status[0] = ~uint64_t(0);
    }
    std::vector<lava_cuda_score_sequence> to_score(uint32_t layer) const {
        return {layers[0][layer].to_score(LENGTHS[0]), layers[1][layer].to_score(LENGTHS[1])};
    }
    /// The stream is past all, and nothing went wrong.
    void fine() const {
        settle();
        lava::cuda::result(status[0]);
    }
};

bool same(const uint32_t *device, lava::span<const uint32_t> want) { return std::equal(want.begin(), want.end(), device); }
bool is_near(double got, double want, double bound) { return std::fabs(got - want) <= bound; }

void contexts() {
    static_assert(!std::is_copy_constructible_v<lava::cuda::context> && !std::is_copy_assignable_v<lava::cuda::context>);
    static_assert(std::is_nothrow_move_constructible_v<lava::cuda::context> && std::is_nothrow_move_assignable_v<lava::cuda::context>);
    static_assert(sizeof(lava::cuda::context) == sizeof(void *));
    CUcontext cuda = nullptr;
    CU(cuInit(0));
    REFUSED(LAVA_ERR_CONTEXT, "no current context", "lava_cuda_init", lava::cuda::context());
    CU(cuDevicePrimaryCtxRetain(&cuda, 0));
    CU(cuCtxSetCurrent(cuda));
    CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    if (fake_modules) {
        setenv("FAKE_FAIL", "third load", 1);
        REFUSED(LAVA_ERR_DRIVER, "CUDA_ERROR_NO_BINARY_FOR_GPU", "lava_cuda_init", lava::cuda::context());
        unsetenv("FAKE_FAIL");
        CHECK(loaded() == 0);
    }
    int once = 0;
    {
        lava::cuda::context first;
        once = loaded();
        CHECK(once > 0 || !fake_modules);
        const void *const at = first.c();
        lava::cuda::context second = std::move(first);
        CHECK(second.c() == at && second.compact_workspace_size(3) > 0 && loaded() == once);
        REFUSED(LAVA_ERR_NULL, "context", "lava_cuda_compact_workspace_size", first.compact_workspace_size(3));
        REFUSED(LAVA_ERR_NULL, "context", "lava_cuda_destroy", first.destroy());
        first = lava::cuda::context();
        CHECK(first.compact_workspace_size(3) > 0 && loaded() == 2 * once);
        // What was in `first` is unloaded.
        first = std::move(second);
        CHECK(first.c() == at && loaded() == once);

        CU(cuCtxSetCurrent(nullptr));
        REFUSED(LAVA_ERR_CONTEXT, "no current context", "lava_cuda_destroy", first.destroy());
        CU(cuCtxSetCurrent(cuda));
        CHECK(first.compact_workspace_size(3) > 0 && loaded() == once);
    }
    CHECK(loaded() == 0);
    lava::cuda::context told;
    CHECK(loaded() == once);
    told.destroy();
    CHECK(loaded() == 0);
    REFUSED(LAVA_ERR_STATE, "context", "lava_cuda_destroy", told.destroy());
    REFUSED(LAVA_ERR_STATE, "context", "lava_cuda_compact_workspace_size", told.compact_workspace_size(3));
    std::printf("  context    loaded, moved, replaced, unloaded\n");
}

void prefill(const lava::cuda::context &gpu) {
    Model model;
    uint64_t *const status = model.status.data();
    const lava_score_params scoring = lava_score_params_squares();
    const lava_select_params selecting = lava_select_params_default();
    Bytes states[N] = {Bytes(lava::cuda::cascade::state_size(shape_of(0), LAYERS, TOTALS[0], selecting)),
                       Bytes(lava::cuda::cascade::state_size(shape_of(1), LAYERS, TOTALS[1], selecting))};
    std::vector<lava::cuda::cascade> cascades;
    std::vector<lava::cascade> cpu;
    size_t push_size = 0;
    for (uint32_t i = 0; i < N; i++) {
        cascades.emplace_back(gpu, shape_of(i), LAYERS, TOTALS[i], states[i], status, stream, selecting);
        cpu.emplace_back(lava::layers(shape_of(i), LAYERS), TOTALS[i], selecting);
        push_size = std::max(push_size, cascades[i].workspace_size(gpu, N));
    }
    const Bytes score_room(gpu.score_workspace_size(shape_of(0), scoring, N)), push_room(push_size),
        compact_room(gpu.compact_workspace_size(N * LAYERS));
    Device<uint32_t> n_rows(N * HEADS);
    lava::workspace scratch;

    for (uint32_t l = 0; l < LAYERS; l++) {
        const std::vector<lava_cuda_score_sequence> scored = model.to_score(l);
        gpu.score(shape_of(0, l), scoring, scored, score_room, status, stream);
        const lava_cuda_push_sequence pushes[N] = {cascades[0].next(model.layers[0][l].scores.data()),
                                                   cascades[1].next(model.layers[1][l].scores.data())};
        gpu.cascade_push(pushes, push_room, status, stream);
        // All layers so far, in place; the last ones say what is left.
        std::vector<lava_cuda_compact_sequence> moves;
        for (uint32_t i = 0; i < N; i++) {
            for (uint32_t x = 0; x <= l; x++) {
                const lava_cuda_cascade_layer where = cascades[i].layer(x);
                auto s = init<lava_cuda_compact_sequence>();
                s.max_rows = LENGTHS[i];
                s.k_src = s.k_dst = &model.layers[i][x].k_in.c;
                s.v_src = s.v_dst = &model.layers[i][x].v_in.c;
                s.rows = where.rows, s.rows_offset = where.offset, s.cu_kept = where.cu_kept;
                if (x == LAYERS - 1) s.n_rows = &n_rows[i * HEADS];
                moves.push_back(s);
            }
        }
        gpu.compact(shape_of(0), moves, compact_room, status, stream);
    }
    model.fine();

    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            const Layer &layer = model.layers[i][l];
            // path.c bounds the scores themselves: here they are of the right tensors and options.
            const std::vector<float> scores = lava::score(shape_of(i), layer.q_in, layer.k_cpu, layer.v_cpu, scratch, scoring);
            const float largest = *std::max_element(scores.begin(), scores.end());
            for (size_t s = 0; s < scores.size(); s++) CHECK(is_near(layer.scores[s], scores[s], 1e-3 * largest));
        }
        for (uint32_t l = 0; l < LAYERS; l++) {
            cpu[i].push(shape_of(i), model.layers[i][l].scores);
            for (uint32_t x = 0; x <= l; x++) {
                const lava::cascade_layer its = cpu[i].layer(x);
                const Layer &layer = model.layers[i][x];
                lava::compact(shape_of(i), layer.k_cpu, layer.v_cpu, its.rows, its.cu_kept, layer.k_cpu, layer.v_cpu, its.cu_rows);
            }
        }
        CHECK(cascades[i].n_pushed() == LAYERS);
        for (uint32_t l = 0; l < LAYERS; l++) {
            const lava::cascade_layer want = cpu[i].layer(l);
            const lava_cuda_cascade_layer got = cascades[i].layer(l);
            const Layer &layer = model.layers[i][l];
            CHECK(same(got.cu_kept, want.cu_kept) && same(got.kept_indices + *got.offset, want.kept_indices));
            CHECK(want.kept_indices.size() < HEADS * LENGTHS[i] && *got.n_entries == want.n_entries);
            CHECK(std::equal(layer.k_host.begin(), layer.k_host.end(), layer.k.data()));
            CHECK(std::equal(layer.v_host.begin(), layer.v_host.end(), layer.v.data()));
            for (uint32_t h = 0; h < HEADS && l == LAYERS - 1; h++)
                CHECK(n_rows[i * HEADS + h] == want.cu_kept[h + 1] - want.cu_kept[h]);
        }
        REFUSED(LAVA_ERR_STATE, "cascade", "lava_cuda_cascade_push",
                cascades[i].push(gpu, model.layers[i][0].scores.data(), push_room, status, stream));
    }
    std::printf("  prefill    two sequences of three layers: kept sets and caches are the CPU's\n");

    // A decoding step over the last layer.
    const lava_shape one = lava_shape_init(1, Q_HEADS, HEADS, DIM, DIM, 1);
    const lava_attend_params attending = lava_attend_params_default();
    const Device<uint16_t> q = numbers(N * Q_HEADS * DIM);
    const Device<float> out(q.size());
    std::vector<float> want(Q_HEADS * DIM);
    lava_cuda_attend_sequence list[N];
    lava::const_tensor query[N];
    lava::tensor result[N];
    for (uint32_t i = 0; i < N; i++) {
        query[i] = lava::token_major(lava::bf16(q.data() + i * want.size(), want.size()), Q_HEADS, DIM);
        result[i] = lava::token_major(lava::f32(out.data() + i * want.size(), want.size()), Q_HEADS, DIM);
        list[i] = init<lava_cuda_attend_sequence>();
        list[i].max_rows = LENGTHS[i];
        list[i].q = &query[i].c, list[i].k = &model.layers[i].back().k_in.c, list[i].v = &model.layers[i].back().v_in.c;
        list[i].out = &result[i].c;
        list[i].n_rows = &n_rows[i * HEADS];
    }
    const Bytes attend_room(gpu.attend_workspace_size(one, 1, N, HEADS * (LENGTHS[0] + LENGTHS[1])));
    gpu.attend(one, attending, 1, list, attend_room, status, stream);
    model.fine();
    for (uint32_t i = 0; i < N; i++) {
        const Layer &layer = model.layers[i].back();
        lava::attend(one, 1, query[i], layer.k_cpu, layer.v_cpu, {&n_rows[i * HEADS], HEADS},
                     lava::token_major(lava::f32(want), Q_HEADS, DIM), scratch);
        // Logits of at most 8 in size, values of at most 1: see attend.cpp.
        for (size_t x = 0; x < want.size(); x++) CHECK(is_near(out[i * want.size() + x], want[x], 1e-4));
    }
    std::printf("  prefill    attention over what is left is the CPU's\n");
}

/// Without a cascade, and with weights: what the other calls leave is the CPU's. One sequence.
void decisions(const lava::cuda::context &gpu) {
    Model model;
    const std::vector<Layer> &layers = model.layers[0];
    uint64_t *const status = model.status.data();
    const lava_shape shape = shape_of(0);
    const lava_score_params scoring = lava_score_params_cake(2);
    const size_t n_scores = lava::n_scores(shape);
    Device<double> stats(2 * HEADS), weights(LAYERS), entropies(LAYERS), masses(LAYERS), head_weights(LAYERS * HEADS);
    Device<uint64_t> capacities(LAYERS), entries(LAYERS);
    Device<const float *> all(LAYERS);
    lava::workspace scratch;

    const Bytes score_room(gpu.score_workspace_size(shape, scoring, 1)), stats_room(gpu.attention_stats_workspace_size(shape, scoring, 1)),
        entropy_room(gpu.entropy_workspace_size(shape, LAYERS));
    std::vector<lava_cuda_entropy_sequence> sum;
    for (uint32_t l = 0; l < LAYERS; l++) {
        const auto score = layers[l].to_score(LENGTHS[0]);
        auto look = init<lava_cuda_stats_sequence>();
        look.n_tokens = LENGTHS[0], look.q = score.q, look.k = score.k, look.stats = stats.data();
        auto weigh = init<lava_cuda_preference_sequence>();
        weigh.layer = l, weigh.stats = stats.data(), weigh.weight = &weights[l];
        gpu.score(shape_of(0, l), scoring, {&score, 1}, score_room, status, stream);
        gpu.attention_stats(shape_of(0, l), scoring, {&look, 1}, stats_room, status, stream);
        gpu.preference(shape_of(0, l), 1.6, 0.7, {&weigh, 1}, {}, status, stream);
        sum.push_back(init<lava_cuda_entropy_sequence>());
        sum[l].n_tokens = LENGTHS[0], sum[l].layer = l, sum[l].scores = score.scores;
        sum[l].entropy = &entropies[l], sum[l].mass = &masses[l];
        capacities[l] = n_scores;
        all[l] = score.scores;
    }
    gpu.entropy(shape, sum, entropy_room, status, stream);
    auto shares = init<lava_cuda_entries_sequence>();
    shares.n_layers = LAYERS, shares.total = TOTALS[0];
    shares.weights = entropies.data(), shares.capacities = capacities.data(), shares.entries = entries.data();
    gpu.layer_entries({&shares, 1}, {}, status, stream);
    model.fine();
    std::vector<double> want_entropies;
    std::vector<float> scores;
    for (uint32_t l = 0; l < LAYERS; l++) {
        const std::vector<double> spread = lava::attention_stats(shape, layers[l].q_in, layers[l].k_cpu, scratch, scoring);
        const double weight = lava::preference(shape, spread, 1.6, 0.7);
        CHECK(is_near(weights[l], weight, 1e-3 * weight));
        const lava::entropy_and_mass want = lava::entropy(shape, layers[l].scores);
        CHECK(entropies[l] == want.entropy && masses[l] == want.mass);
        want_entropies.push_back(want.entropy);
        scores.insert(scores.end(), layers[l].scores.data(), layers[l].scores.data() + n_scores);
    }
    const lava::layers alike(shape, LAYERS);
    const std::vector<uint64_t> shared = lava::layer_entries(alike, want_entropies, TOTALS[0], lava_select_params_lava());
    CHECK(std::equal(shared.begin(), shared.end(), entries.data()));

    // One sort over all layers, and each layer's entries by it.
    lava_select_params selecting = lava_select_params_default();
    auto sort = init<lava_cuda_global_sequence>();
    sort.n_tokens = LENGTHS[0], sort.total = TOTALS[0], sort.scores = all.data();
    sort.entries = entries.data(), sort.head_weights = head_weights.data();
    const Bytes global_room(gpu.global_entries_workspace_size(shape, LAYERS, 1)), select_room(gpu.select_workspace_size(shape, LAYERS));
    gpu.global_entries(shape, LAYERS, selecting, {&sort, 1}, global_room, status, stream);
    const Device<uint32_t> kept(LAYERS * HEADS * LENGTHS[0]), cu(LAYERS * (HEADS + 1));
    std::vector<lava_cuda_select_sequence> picks;
    for (uint32_t l = 0; l < LAYERS; l++) {
        picks.push_back(init<lava_cuda_select_sequence>());
        picks[l].n_tokens = LENGTHS[0], picks[l].layer = l, picks[l].scores = all[l], picks[l].n_entries = &entries[l];
        picks[l].head_weights = &head_weights[l * HEADS];
        picks[l].kept_indices = &kept[l * HEADS * LENGTHS[0]], picks[l].cu_kept = &cu[l * (HEADS + 1)];
    }
    gpu.select(shape, selecting, picks, select_room, status, stream);
    model.fine();
    const lava::entries_of_model want = lava::global_entries(alike, scores, TOTALS[0], scratch, selecting);
    CHECK(std::equal(want.layers.begin(), want.layers.end(), entries.data()));
    for (uint32_t l = 0; l < LAYERS; l++) {
        selecting.head_weights = want.heads(l);
        const lava::kept its = lava::select(shape, layers[l].scores, want.layers[l], scratch, selecting);
        CHECK(same(picks[l].cu_kept, its.cu) && same(picks[l].kept_indices, its.indices));
    }

    // A cascade by weights, moved between its pushes.
    const lava_select_params plain = lava_select_params_lava();
    lava_cascade_params by_weights = lava_cascade_params_default();
    by_weights.layers = LAVA_LAYERS_WEIGHTS;
    const Bytes state(lava::cuda::cascade::state_size(shape, LAYERS, TOTALS[0], plain, by_weights));
    lava::cuda::cascade first(gpu, shape, LAYERS, TOTALS[0], state, status, stream, plain, by_weights);
    const Bytes push_room(first.workspace_size(gpu));
    first.push(gpu, all[0], push_room, status, stream, &weights[0]);
    lava::cuda::cascade second = std::move(first);
    CHECK(first.n_pushed() == 0 && second.n_pushed() == 1);
    REFUSED(LAVA_ERR_STATE, "cascade", "lava_cuda_cascade_push", first.push(gpu, all[1], push_room, status, stream, &weights[1]));
    REFUSED(LAVA_ERR_STATE, "cascade", "lava_cuda_cascade_get", first.layer(0));
    second.push(gpu, all[1], push_room, status, stream, &weights[1]);
    first = std::move(second);
    REFUSED(LAVA_ERR_STATE, "layer", "lava_cuda_cascade_get", first.layer(2));
    REFUSED(LAVA_ERR_NULL, "weight", "lava_cuda_cascade_push", first.push(gpu, all[2], push_room, status, stream));
    CHECK(first.n_pushed() == 2);
    first.push(gpu, all[2], push_room, status, stream, &weights[2]);
    model.fine();
    lava::cascade cpu(alike, TOTALS[0], plain, by_weights);
    for (uint32_t l = 0; l < LAYERS; l++) cpu.push(shape, layers[l].scores, weights[l]);
    for (uint32_t l = 0; l < LAYERS; l++) {
        const lava_cuda_cascade_layer got = first.layer(l);
        CHECK(same(got.cu_kept, cpu.layer(l).cu_kept) && same(got.kept_indices + *got.offset, cpu.layer(l).kept_indices));
    }

    std::vector<float> mean(layers[0].scores.data(), layers[0].scores.data() + n_scores);
    lava::mean_over_heads(shape, mean);
    auto level = init<lava_cuda_mean_sequence>();
    level.n_tokens = LENGTHS[0], level.scores = layers[0].scores.data();
    gpu.mean_over_heads(shape, {&level, 1}, {}, status, stream);
    model.fine();
    CHECK(std::equal(mean.begin(), mean.end(), layers[0].scores.data()));
    std::printf("  decisions  entropies, entries, kept sets, means and a weighted cascade are the CPU's\n");
}

void errors(const lava::cuda::context &gpu) {
    Model model;
    uint64_t *const status = model.status.data();
    const lava_score_params scoring = lava_score_params_squares();
    const lava_shape shape = shape_of(0, 2);
    const Bytes room(gpu.score_workspace_size(shape, scoring, N));
    std::vector<lava_cuda_score_sequence> list = model.to_score(2);
#define SCORE(...) REFUSED(__VA_ARGS__, gpu.score(shape, scoring, list, where, status, stream))
    lava::cuda::device_memory where = room;
    where.size--;
    SCORE(LAVA_ERR_WORKSPACE, "workspace_size", "lava_cuda_score");
    where = {};
    SCORE(LAVA_ERR_NULL, "workspace", "lava_cuda_score");
    where = room;
    list[1].k = nullptr;
    SCORE(LAVA_ERR_NULL, "k", "lava_cuda_score");
    list = model.to_score(2);
    list[1].struct_size = 0;
    SCORE(LAVA_ERR_STRUCT_SIZE, "sequences", "lava_cuda_score");
    list = model.to_score(2);
    // A number above 32 bits is not cut off.
    REFUSED(LAVA_ERR_ARGUMENT, "n_sequences", "lava_cuda_score",
            gpu.score(shape, scoring, {list.data(), size_t(1) << 32 | 2}, room, status, stream));
    REFUSED(LAVA_ERR_SHAPE, "window", "lava_cuda_cascade_state_size",
            lava::cuda::cascade::state_size(lava_shape_init(1, 1, 1, 1, 1, 0), 1, 1));
    if (fake_modules) {
        setenv("FAKE_FAIL", "launch", 1);
        SCORE(LAVA_ERR_LAUNCH, "CUDA_ERROR_ILLEGAL_ADDRESS", "lava_cuda_score");
        unsetenv("FAKE_FAIL");
    }
    model.fine();

    // What the kernels find.
    model.layers[1][2].k[(5 * HEADS + 1) * DIM + 3] = 0x7fc0;
    gpu.score(shape, scoring, list, room, status, stream);
    settle();
    bool is_thrown = false;
    try {
        lava::cuda::result(status[0]);
    } catch (const lava::cuda::fault &e) {
        is_thrown = e.status() == LAVA_ERR_NONFINITE && e.sequence() == 1 && e.layer() == 2 && e.head() == 1 &&
                    std::strcmp(e.argument(), "q") == 0 && std::strstr(e.what(), "lava_cuda_result: sequence 1: ") == e.what();
        if (!is_thrown) std::fprintf(stderr, "%s\n", e.what());
    }
    CHECK(is_thrown);
    REFUSED(LAVA_ERR_NONFINITE, "q", "lava_cuda_result: sequence 1", lava::cuda::result(status[0]));
    REFUSED(LAVA_ERR_ARGUMENT, "word", "lava_cuda_result", lava::cuda::result(0));
    status[0] = ~uint64_t(0);

    // The C++ call allocates only what the C call does. (The fake driver, in this process, allocates.)
    list = model.to_score(1);
    lava_error error = lava_error_init();
    settle();
    long before = n_allocations;
    CHECK(lava_cuda_score(gpu.c(), &shape, &scoring, list.data(), N, room.data(), room.size(), status, stream, &error) == LAVA_OK);
    const long of_c = n_allocations - before;
    settle();
    before = n_allocations;
    gpu.score(shape, scoring, list, room, status, stream);
    CHECK(n_allocations - before == of_c);
    model.fine();
    before = n_allocations;
    lava::cuda::result(status[0]);
    CHECK(gpu.compact_workspace_size(7) > 0 && n_allocations == before);
    std::printf("  errors     are thrown with their status, argument and sequence; no call allocates\n");
}

} // namespace

int main() {
    std::printf("lava_cuda.hpp over %s, C++%ld\n", fake_modules ? "the fake driver" : "the driver", __cplusplus / 100 % 100);
    try {
        contexts();
        lava::cuda::context gpu;
        prefill(gpu);
        decisions(gpu);
        errors(gpu);
        gpu.destroy();
        CHECK(loaded() == 0);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    CU(cuStreamDestroy(stream));
    return 0;
}
