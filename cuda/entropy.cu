// Stage 6: how evenly a layer's scores are spread. entropy.cuh says how its bits come to be the CPU's.
//
// No fused operations: the CPU's bits are the goal.
// nvcc: -fmad=false
#include "entropy.cuh"

LAVA_KERNEL(LAVA_CUDA_ENTROPY_THREADS) lava_entropy_heads(const __grid_constant__ lava_cuda_entropy_args a) {
    using namespace lava;
    const lava_cuda_entropy_item &item = LAVA_ITEM(a, blockIdx.y);
    const uint32_t head = blockIdx.x;
    double *sums = a.workspace + 2 * (uint64_t(blockIdx.y) * a.n_kv_heads + head);
    if (!entropy_of_head(item.scores + uint64_t(head) * item.prefix_len, item.prefix_len, sums) && threadIdx.x == 0)
        report(a.status, item.layer, blockIdx.y, head, LAVA_FAULT_SCORES);
}

LAVA_KERNEL(32) lava_entropy_layer(const __grid_constant__ lava_cuda_entropy_args a) {
    using namespace lava;
    const lava_cuda_entropy_item &item = LAVA_ITEM(a, blockIdx.x);
    if (threadIdx.x == 0)
        entropy_of_layer(a.workspace + 2 * uint64_t(blockIdx.x) * a.n_kv_heads, a.n_kv_heads, item.prefix_len, item.entropy, item.mass);
}
