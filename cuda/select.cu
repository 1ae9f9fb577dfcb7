// From scores to kept_indices and cu_kept, for layers or sequences side by side. choose.cuh says how.
#include "choose.cuh"

LAVA_KERNEL(LAVA_CUDA_SELECT_THREADS) lava_select_entries(const __grid_constant__ lava_cuda_select_args a) {
    using namespace lava;
    const lava_cuda_select_item &item = a.item[blockIdx.y];
    Choice c = {};
    c.scores = item.scores;
    c.params = item.params;
    c.n_heads = a.n_kv_heads, c.prefix_len = item.prefix_len, c.window_rows = item.window_rows;
    c.place(a.workspace, blockIdx.y, a.n_items, a.max_prefix);
    const uint64_t entries = uint64_t(c.n_heads) * c.prefix_len, budget = min(*item.budget, entries);
    begin_choice(c);
    // A fault is a fault for all blocks: nothing has been written yet, and nothing will be.
    const uint32_t fault = c.control[1], n_protected = c.control[2];
    if (fault != 0 || budget < n_protected) {
        if (c.block == 0 && threadIdx.x == 0)
            report(a.status, item.layer, blockIdx.y, fault != 0 ? UINT32_MAX - fault : 0, fault != 0 ? LAVA_CUDA_BAD_SCORES : LAVA_CUDA_BAD_BUDGET);
        return;
    }
    choose(c, budget, Rounding::EXACT);
    if (c.block == 0 && threadIdx.x == 0) write_counts(c, item.cu_kept);
    write_kept(c, c.control, [&](uint32_t h, uint32_t row, uint32_t place) { item.kept_indices[item.cu_kept[h] + place] = row; });
    if (c.block == 0 && threadIdx.x == 0 && item.selection != nullptr) {
        const double mass = mass_of_tiles(c, 0), kept = mass_of_tiles(c, 1);
        const bool everything = budget == entries;
        *item.selection = {item.cu_kept[c.n_heads], budget, mass, evicted_share(everything, mass, kept), everything, 0};
    }
}
