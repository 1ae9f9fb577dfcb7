// Stage 6: how evenly a layer's scores are spread. entropy.cuh says how its bits come to be the CPU's.
//
// No fused operations: the CPU's bits are the goal.
// nvcc: -fmad=false
#include "entropy.cuh"

LAVA_KERNEL(LAVA_CUDA_ENTROPY_THREADS) lava_entropy_pieces(const __grid_constant__ lava_cuda_entropy_args a) {
    using namespace lava;
    const lava_cuda_entropy_item &item = LAVA_ITEM(a, blockIdx.z);
    const uint32_t head = blockIdx.y, first = blockIdx.x * LAVA_CUDA_PIECE;
    if (first >= item.prefix_len) return;
    double *const sums = a.workspace + blockIdx.z * lava_cuda_piece_sums(a.n_kv_heads, a.max_prefix) +
                         head * lava_cuda_piece_sums(1, item.prefix_len) + 2 * blockIdx.x;
    const uint32_t n = min(uint32_t(LAVA_CUDA_PIECE), item.prefix_len - first);
    if (entropy_of_piece(item.scores + uint64_t(head) * item.prefix_len + first, n, sums)) return;
    __syncthreads(); // the sums are written
    if (threadIdx.x != 0) return;
    sums[0] = sums[1] = NAN;
    report(a.status, item.layer, blockIdx.z, head, LAVA_FAULT_SCORES);
}

LAVA_KERNEL(LAVA_CUDA_BUDGET_THREADS) lava_entropy_layer(const __grid_constant__ lava_cuda_entropy_args a) {
    using namespace lava;
    const lava_cuda_entropy_item &item = LAVA_ITEM(a, blockIdx.x);
    double *const sums = a.workspace + blockIdx.x * lava_cuda_piece_sums(a.n_kv_heads, a.max_prefix);
    entropy_of_layer(sums, a.n_kv_heads, item.prefix_len, item.entropy, item.mass);
}
