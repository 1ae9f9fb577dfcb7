// Entries of layers and heads by one threshold over all layers of a model: as src/select.rs's global_entries. The results are what
// lava_select_entries takes, layer for layer. choose.cuh says how.
//
// No fused operations: the CPU's bits are the goal.
// nvcc: -fmad=false
#include "choose.cuh"

namespace lava {

/// The heads of all layers, layer after layer, before the first eviction.
struct DenseLayers {
    const float *const *scores;
    uint32_t n_kv_heads, prefix_len;
    __device__ Head operator()(uint32_t h) const {
        return {scores[h / n_kv_heads] + uint64_t(h % n_kv_heads) * prefix_len, nullptr, prefix_len};
    }
};

} // namespace lava

LAVA_KERNEL(32) lava_global_begin(const __grid_constant__ lava_cuda_global_args a) { lava::clear_control(a.workspace, blockIdx.x); }

LAVA_SELECT_KERNEL lava_share_globally(const __grid_constant__ lava_cuda_global_args a) {
    using namespace lava;
    const lava_cuda_global_item &item = LAVA_ITEM(a, blockIdx.y);
    Choice<DenseLayers> c({item.scores, a.n_kv_heads, item.prefix_len}, item.params, a.n_layers * a.n_kv_heads, item.prefix_len, 0);
    c.place(a.workspace, blockIdx.y, a.n_items, a.max_prefix);
    c.share(blockIdx.x, gridDim.x);
    const uint64_t total = min(item.total, uint64_t(c.n_heads) * c.prefix_len);
    begin_choice(c);
    const Fault fault = fault_of(c, total);
    if (fault.what == 0) compete(c, floor_of(item.params, total, c.n_heads), total);
    if (c.block() != 0) return;
    if (fault.what != 0 && threadIdx.x == 0) report(a.status, fault.head / a.n_kv_heads, blockIdx.y, fault.head % a.n_kv_heads, fault.what);
    __syncthreads();
    for (uint32_t l = threadIdx.x; l < a.n_layers; l += blockDim.x) {
        uint64_t n_entries = fault.what == 0 ? 0 : LAVA_NO_ENTRIES;
        for (uint32_t h = l * a.n_kv_heads; fault.what == 0 && h < (l + 1) * a.n_kv_heads; h++) {
            n_entries += c.counts[h];
            item.head_weights[h] = c.counts[h];
        }
        item.entries[l] = n_entries;
    }
}
