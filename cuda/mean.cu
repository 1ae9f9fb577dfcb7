// All heads get the mean of their scores, in place: TOVA's one set for all (arXiv 2401.06104). The CPU's bits: doubles, head by head.
#include "device.cuh"
#include "plan.h"

LAVA_KERNEL(LAVA_CUDA_MEAN_THREADS) lava_mean_heads(const __grid_constant__ lava_cuda_mean_args args) {
    using namespace lava;
    const lava_cuda_mean_item &item = LAVA_ITEM(args, blockIdx.y);
    const uint64_t prefix = item.prefix_len, i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= prefix) return;
    double sum = 0;
    for (uint32_t h = 0; h < args.n_kv_heads; h++) {
        const float score = item.scores[h * prefix + i];
        if (!(fabsf(score) < INFINITY)) {
            report(args.status, item.layer, blockIdx.y, h, LAVA_FAULT_SCORES);
            return;
        }
        sum += double(score);
    }
    const float mean = float(sum / args.n_kv_heads);
    for (uint32_t h = 0; h < args.n_kv_heads; h++) item.scores[h * prefix + i] = mean;
}
