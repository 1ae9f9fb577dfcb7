// From scores to kept_indices and cu_kept, for layers or sequences side by side. choose.cuh says how.
//
// No fused operations: the CPU's bits are the goal.
// nvcc: -fmad=false
#include "choose.cuh"

LAVA_KERNEL(32) lava_select_begin(const __grid_constant__ lava_cuda_select_args a) { lava::clear_control(a.workspace, blockIdx.x); }

LAVA_SELECT_KERNEL lava_select_entries(const __grid_constant__ lava_cuda_select_args a) {
    using namespace lava;
    const lava_cuda_select_item &item = LAVA_ITEM(a, blockIdx.y);
    Choice<Dense> c({item.scores, item.prefix_len}, item.params, a.n_kv_heads, item.prefix_len, item.window_rows);
    c.place(a.workspace, blockIdx.y, a.n_items, a.max_prefix);
    c.share(blockIdx.x, gridDim.x);
    if (*item.n_entries == LAVA_NO_ENTRIES) return;
    const uint64_t n_entries = min(*item.n_entries, uint64_t(c.n_heads) * c.prefix_len);
    begin_choice(c);
    // A fault is a fault for all blocks: nothing has been written yet, and nothing will be.
    const Fault fault = fault_of(c, n_entries);
    if (fault.what != 0) {
        if (c.block() == 0 && threadIdx.x == 0) report(a.status, item.layer, blockIdx.y, fault.head, fault.what);
        return;
    }
    choose(c, c.minimum(), n_entries, Rounding::EXACT);
    if (c.block() == 0 && threadIdx.x == 0) write_counts(c.counts, c.n_heads, c.window_rows, item.cu_kept);
    write_kept(c, c.control, [&](uint32_t h, const Head &, uint32_t row, uint32_t place) { item.kept_indices[item.cu_kept[h] + place] = row; });
    if (c.block() != 0 || item.selection == nullptr) return;
    LAVA_SHARED(double, masses, LAVA_CUDA_SELECT_THREADS / 32);
    const double mass = mass_of_tiles(c, 0, masses), kept_mass = mass_of_tiles(c, 1, masses);
    if (threadIdx.x != 0) return;
    const uint64_t rows = item.cu_kept[c.n_heads], kept = rows - uint64_t(c.n_heads) * c.window_rows;
    const bool everything = kept == uint64_t(c.n_heads) * c.prefix_len;
    *item.selection = {sizeof *item.selection, everything, rows, kept, mass, evicted_share(everything, mass, kept_mass)};
}
