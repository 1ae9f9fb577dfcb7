// Compress while prefilling: after each layer's scores all layers so far share the total again, on the GPU. plan.h has the launches.
//
// As src/cascade.rs: shares are rounded up until the last layer is there, so that they only shrink, and the kept sets end as those
// of all layers at once. The kept entries' scores, positions and rows are there twice: a push reads one copy and writes the other. A
// launch has cascades of any shapes side by side, each possibly at a different layer.
//
// No fused operations: the CPU's bits are the goal.
// nvcc: -fmad=false
#include <new>
#include "choose.cuh"
#include "entropy.cuh"

namespace lava {

constexpr uint32_t LAYERS_ENTROPY = 0, LAYERS_WEIGHTS = 2, LAYERS_GLOBAL = 3; // LAVA_LAYERS_

/// One of a launch's cascades, and its state's arrays. `old`: the copy that this push reads.
struct State {
    const lava_cuda_cascade_item a;
    uint64_t *const status;
    unsigned char *const workspace;
    double *entropies, *weights, *masses, *shares;
    uint64_t *n_entries, *capacities, *minimums;
    uint64_t *old_starts, *new_starts;
    uint32_t *old_cu, *new_cu, *cu_rows; // [n_layers, n_kv_heads + 1]
    float *old_scores, *new_scores;
    uint32_t *old_positions, *new_positions, *old_rows, *new_rows;
    double *piece_sums;
    uint32_t *failed;
    __device__ explicit State(const lava_cuda_cascade_args &args)
        : a(LAVA_ITEM(args, blockIdx.z)), status(args.status), workspace(args.workspace + blockIdx.z * args.workspace_each) {
        const lava_cuda_cascade_layout l = lava_cuda_cascade_place(&a);
        const auto at = [&](auto type, uint64_t offset) { return reinterpret_cast<decltype(type)>(a.state + offset); };
        const bool second = a.layer % 2 != 0;
        const uint64_t heads = a.n_kv_heads + 1, layers = a.n_layers;
        entropies = at(entropies, l.entropies), masses = at(masses, l.masses), shares = at(shares, l.shares);
        n_entries = at(n_entries, l.n_entries), capacities = at(capacities, l.capacities), minimums = at(minimums, l.minimums);
        old_starts = at(old_starts, l.starts) + second * layers, new_starts = at(new_starts, l.starts) + !second * layers;
        old_cu = at(old_cu, l.cu) + second * layers * heads, new_cu = at(new_cu, l.cu) + !second * layers * heads;
        old_scores = at(old_scores, l.scores) + second * l.capacity, new_scores = at(new_scores, l.scores) + !second * l.capacity;
        old_positions = at(old_positions, l.positions) + second * l.capacity, new_positions = at(new_positions, l.positions) + !second * l.capacity;
        old_rows = at(old_rows, l.rows) + second * l.capacity, new_rows = at(new_rows, l.rows) + !second * l.capacity;
        cu_rows = at(cu_rows, l.cu_rows);
        piece_sums = at(piece_sums, l.piece_sums);
        failed = at(failed, l.failed);
        weights = at(weights, l.weights);
    }
};

/// A block's, in shared memory: registers are scarce.
__device__ inline State &own_state() {
    LAVA_SHARED(uint64_t, memory, sizeof(State) / 8);
    return *reinterpret_cast<State *>(memory);
}
/// Makes it. All threads.
__device__ inline const State &make_state(const lava_cuda_cascade_args &args) {
    if (threadIdx.x == 0) new (static_cast<void *>(&own_state())) State(args);
    __syncthreads();
    return own_state();
}

__device__ inline void fail_cascade(const State &s, uint32_t layer, uint32_t head, uint32_t what) {
    atomicOr(s.failed, 1u);
    report(s.status, layer, blockIdx.z, head, what);
}

/// The heads of all layers so far, layer after layer, as they are before this push; from head `first` on.
struct LayersSoFar {
    uint32_t first;
    __device__ Head operator()(uint32_t h) const {
        const State &s = own_state();
        const lava_cuda_cascade_item &a = s.a;
        const uint32_t layer = (first + h) / a.n_kv_heads, in_layer = (first + h) % a.n_kv_heads;
        if (layer == a.layer) return {a.scores + uint64_t(in_layer) * a.prefix_len, nullptr, a.prefix_len};
        const uint32_t *const cu = s.old_cu + uint64_t(layer) * (a.n_kv_heads + 1) + in_layer;
        const uint64_t row = s.old_starts[layer] + cu[0];
        return {s.old_scores + row, s.old_positions + row, cu[1] - cu[0] - a.window_rows};
    }
};

__device__ inline bool is_global(const lava_cuda_cascade_item &a) { return a.layers == LAYERS_GLOBAL; }

/// The heads that compete for the same entries: one layer's, or with LAVA_LAYERS_GLOBAL those of all layers so far.
__device__ inline Choice<LayersSoFar> heads_of(const State &s, uint32_t layer) {
    const lava_cuda_cascade_item &a = s.a;
    const uint32_t first = is_global(a) ? 0 : layer, n = is_global(a) ? a.layer + 1 : 1;
    Choice<LayersSoFar> c({first * a.n_kv_heads}, a.params, n * a.n_kv_heads, a.prefix_len, a.window_rows);
    if (c.params.head_weights != nullptr) c.params.head_weights += uint64_t(layer) * a.n_kv_heads;
    c.place(s.workspace, first, a.layer + 1, a.prefix_len);
    return c;
}

/// One layer's heads, with what was decided about them.
__device__ inline Choice<LayersSoFar> layer_of(const State &s, uint32_t layer) {
    const lava_cuda_cascade_item &a = s.a;
    Choice<LayersSoFar> c = heads_of(s, layer);
    if (!is_global(a)) return c;
    const uint32_t first = layer * a.n_kv_heads;
    c.head.first = first, c.n_heads = a.n_kv_heads;
    c.control += layer * (LAVA_CUDA_CONTROL_BYTES / 4);
    c.cut_key += first, c.cut_ties += first, c.counts += first;
    c.tile += 2 * uint64_t(first) * c.tiles_per_head, c.tile_mass += 2 * uint64_t(first) * c.tiles_per_head;
    return c;
}

/// Which layers a block is for, and its number among how many. The pushed layer's entries are all there, so half of the blocks are for it,
/// and the others share the layers before it. With fewer blocks than layers some do one layer after the other, and no two of them wait.
struct Team {
    uint32_t first, end, step, block, n_blocks;
    __device__ explicit Team(uint32_t layer) : end(layer + 1), step(1) {
        const uint32_t n = gridDim.x, each = max(n / 2 / max(layer, 1u), 1u), earlier = min(n / 2, each * layer);
        if (blockIdx.x < earlier) first = blockIdx.x / each, end = layer, step = earlier / each, block = blockIdx.x % each, n_blocks = each;
        else first = n == 1 ? 0 : layer, block = blockIdx.x - earlier, n_blocks = n - earlier;
    }
};

__device__ inline void plan_layer(const State &s, uint32_t layer, uint32_t block, uint32_t n_blocks) {
    const lava_cuda_cascade_item &a = s.a;
    LAVA_SHARED(uint64_t, sums, LAVA_CUDA_SELECT_THREADS / 32);
    const uint32_t heads = a.n_kv_heads;
    Choice<LayersSoFar> c = heads_of(s, layer);
    c.share(block, n_blocks);
    begin_choice(c);
    uint64_t entries = 0;
    for (uint32_t h = threadIdx.x; h < c.n_heads; h += blockDim.x) entries += c.len(h);
    entries = block_sum(entries, sums);
    choose(c, s.minimums[layer] / heads, min(is_global(a) ? a.total : s.n_entries[layer], entries), a.layer + 1 == a.n_layers ? Rounding::EXACT : Rounding::UP);
    if (c.block() != 0) return;
    for (uint32_t l = threadIdx.x; l < c.n_heads / heads; l += blockDim.x)
        write_counts(c.counts + l * heads, heads, a.window_rows, s.new_cu + uint64_t(layer + l) * (heads + 1));
}

__device__ inline void write_layer(const State &s, uint32_t layer, uint32_t block, uint32_t n_blocks) {
    const lava_cuda_cascade_item &a = s.a;
    const uint32_t heads = a.n_kv_heads;
    Choice<LayersSoFar> c = layer_of(s, layer);
    c.share(block, n_blocks);
    LAVA_SHARED(uint64_t, sums, LAVA_CUDA_SELECT_THREADS / 32);
    LAVA_SHARED(double, masses, LAVA_CUDA_SELECT_THREADS / 32);
    uint64_t start = 0;
    for (uint32_t l = threadIdx.x; l < layer; l += blockDim.x) start += s.new_cu[uint64_t(l) * (heads + 1) + heads];
    start = block_sum(start, sums);
    const uint64_t counts = uint64_t(layer) * (heads + 1);
    const uint32_t *const cu = s.new_cu + counts;
    // Whether the caller's cache holds what was kept before this push, or all of the new layer; else rows are of what it held earlier.
    const bool is_new = layer == a.layer, evicted = is_new || a.layer % a.evict_every == 0;
    write_kept(c, c.control + 8, [&](uint32_t h, const Head &head, uint32_t row, uint32_t place) {
        const uint64_t to = start + cu[h] + place;
        s.new_scores[to] = row >= head.len ? 0.0f : head.scores[row];
        s.new_positions[to] = head.position(row);
        s.new_rows[to] = evicted ? row : s.old_rows[head.positions + row - s.old_positions];
    });
    if (c.block() != 0) return;
    for (uint32_t h = threadIdx.x; evicted && h <= heads; h += blockDim.x)
        s.cu_rows[counts + h] = is_new ? h * (a.prefix_len + a.window_rows) : s.old_cu[counts + h];
    const double kept_mass = mass_of_tiles(c, 1, masses);
    if (threadIdx.x != 0) return;
    const uint64_t kept = cu[heads] - uint64_t(heads) * a.window_rows;
    s.new_starts[layer] = start;
    s.n_entries[layer] = kept;
    s.shares[layer] = evicted_share(kept == s.capacities[layer], s.masses[layer], kept_mass);
}

} // namespace lava

LAVA_KERNEL(LAVA_CUDA_BUDGET_THREADS) lava_cascade_begin(const __grid_constant__ lava_cuda_cascade_args args) {
    using namespace lava;
    LAVA_SHARED(uint64_t, sums, LAVA_CUDA_BUDGET_THREADS / 32);
    LAVA_SHARED(uint32_t, first, 1);
    const State s(args);
    const lava_cuda_cascade_item &a = s.a;
    if (threadIdx.x == 0) *s.failed = 0;
    if (a.params.head_weights != nullptr) {
        const uint32_t n_heads = a.n_layers * a.n_kv_heads, head = first_faulty_weight(a.params.head_weights, n_heads, first);
        if (head < n_heads) {
            if (threadIdx.x == 0) fail_cascade(s, head / a.n_kv_heads, head % a.n_kv_heads, LAVA_FAULT_WEIGHTS);
            return;
        }
    }
    uint64_t n = 0;
    for (uint32_t i = threadIdx.x; i < a.prefix_len; i += blockDim.x)
        n += i < a.params.n_sink || (a.params.protected_mask != nullptr && a.params.protected_mask[i] != 0);
    const uint64_t each = max(block_sum(n, sums), uint64_t(min(a.params.head_min, a.prefix_len)));
    const uint64_t minimum = each * a.n_kv_heads, entries = uint64_t(a.n_kv_heads) * a.prefix_len;
    for (uint32_t l = threadIdx.x; l < a.n_layers; l += blockDim.x) s.minimums[l] = minimum, s.capacities[l] = entries;
    if (threadIdx.x == 0 && minimum * a.n_layers > min(a.total, entries * a.n_layers)) fail_cascade(s, 0, 0, LAVA_FAULT_BUDGET);
}

LAVA_KERNEL(LAVA_CUDA_ENTROPY_THREADS) lava_cascade_pieces(const __grid_constant__ lava_cuda_cascade_args args) {
    using namespace lava;
    const State s(args);
    const lava_cuda_cascade_item &a = s.a;
    const uint32_t head = blockIdx.y, first = blockIdx.x * LAVA_CUDA_PIECE;
    if (head >= a.n_kv_heads || first >= a.prefix_len) return;
    double *const sums = s.piece_sums + head * lava_cuda_piece_sums(1, a.prefix_len) + 2 * blockIdx.x;
    const uint32_t n = min(uint32_t(LAVA_CUDA_PIECE), a.prefix_len - first);
    if (!entropy_of_piece(a.scores + uint64_t(head) * a.prefix_len + first, n, sums) && threadIdx.x == 0)
        fail_cascade(s, a.layer, head, LAVA_FAULT_SCORES);
}

LAVA_KERNEL(LAVA_CUDA_BUDGET_THREADS) lava_cascade_share(const __grid_constant__ lava_cuda_cascade_args args) {
    using namespace lava;
    LAVA_SHARE_MEMORY(memory, LAVA_CUDA_MAX_LAYERS, LAVA_CUDA_BUDGET_THREADS);
    const State s(args);
    const lava_cuda_cascade_item &a = s.a;
    if (*s.failed) return;
    const uint32_t n = a.layer + 1;
    entropy_of_layer(s.piece_sums, a.n_kv_heads, a.prefix_len, s.entropies + a.layer, s.masses + a.layer);
    if (threadIdx.x == 0)
        s.weights[a.layer] = a.layers == LAYERS_ENTROPY ? s.entropies[a.layer] : a.layers == LAYERS_WEIGHTS ? *a.weight : 1.0;
    uint32_t *const control = reinterpret_cast<uint32_t *>(s.workspace);
    for (uint32_t i = threadIdx.x; i < n * (LAVA_CUDA_CONTROL_BYTES / 4); i += blockDim.x) control[i] = 0;
    if (is_global(a)) return;
    __syncthreads();
    const ShareFault fault = share_total(n, s.weights, s.capacities, s.minimums, a.total, n == a.n_layers ? Rounding::EXACT : Rounding::UP, memory);
    if (fault.what != 0) {
        if (threadIdx.x == 0) fail_cascade(s, fault.layer, LAVA_NO_HEAD, fault.what == FAULT_TOLD ? uint32_t(LAVA_FAULT_WEIGHTS) : fault.what);
        return;
    }
    for (uint32_t l = threadIdx.x; l < n; l += blockDim.x) s.n_entries[l] = memory.share[l];
}

LAVA_SELECT_KERNEL lava_cascade_plan(const __grid_constant__ lava_cuda_cascade_args args) {
    using namespace lava;
    const State &s = make_state(args);
    if (*s.failed) return;
    Team team(s.a.layer);
    // One choice for all layers, and all blocks make it.
    if (is_global(s.a)) team.first = 0, team.end = 1, team.block = blockIdx.x, team.n_blocks = gridDim.x;
    for (uint32_t layer = team.first; layer < team.end; layer += team.step) plan_layer(s, layer, team.block, team.n_blocks);
}

LAVA_SELECT_KERNEL lava_cascade_write(const __grid_constant__ lava_cuda_cascade_args args) {
    using namespace lava;
    const State &s = make_state(args);
    if (*s.failed) return;
    const Team team(s.a.layer);
    for (uint32_t layer = team.first; layer < team.end; layer += team.step) write_layer(s, layer, team.block, team.n_blocks);
}
