// Entries of layers: a total shared by weight, capped, exact. One block per sequence; a few dozen layers are little work for a GPU, but
// the weights are there, and the host need not wait for them.
//
// No fused operations: the CPU's bits are the goal.
// nvcc: -fmad=false
#include "budget.cuh"

LAVA_KERNEL(LAVA_CUDA_BUDGET_THREADS) lava_share_layers(const __grid_constant__ lava_cuda_share_args a) {
    using namespace lava;
    LAVA_SHARE_MEMORY(memory, LAVA_CUDA_MAX_LAYERS, LAVA_CUDA_BUDGET_THREADS);
    const lava_cuda_share_item &item = LAVA_ITEM(a, blockIdx.x);
    const ShareFault fault = share_total(item.n_layers, item.weights, item.capacities, item.minimums, item.total,
                                         item.round_up ? Rounding::UP : Rounding::EXACT, memory);
    if (fault.what != 0 && fault.what != FAULT_TOLD && threadIdx.x == 0) report(a.status, fault.layer, blockIdx.x, LAVA_NO_HEAD, fault.what);
    for (uint32_t l = threadIdx.x; l < item.n_layers; l += blockDim.x)
        item.entries[l] = fault.what != 0 ? LAVA_NO_ENTRIES : memory.share[l];
}
