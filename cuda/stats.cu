// How a layer's window attends to the prefix, as numbers per KV head: what CAKE's layer preference (arXiv 2503.12491) is made of.
// score_columns, with LAVA_SCORE_SPREAD, leaves each key's variance and entropy, summed over its group.
//
//     stats_sum         their sums over the live entries of the prefix
//     stats_preference  (sum of entropies)^(1 / tau1) (sum of variances)^(1 / tau2)
//
// Every sum has an order that does not depend on the schedule.
#include "score.cuh"

namespace lava {

__device__ inline void add_up_stats(const lava_score_args &args) {
    LAVA_SHARED(double, memory, LAVA_SCORE_POOLED / 32);
    const Head head(args, blockIdx.y, blockIdx.x);
    double entropy = 0, variance = 0;
    for (uint32_t i = head.first_live() + threadIdx.x; i < head.prefix(); i += blockDim.x) {
        variance += double(head.columns(0)[i]);
        entropy += double(head.columns(1)[i]);
    }
    entropy = block_sum(entropy, memory);
    variance = block_sum(variance, memory);
    if (threadIdx.x != 0) return;
    double *const stats = head.sequence.stats + 2 * uint64_t(head.head);
    // A row that has all attention has a logarithm a rounding error above 0. NaN stays.
    stats[0] = entropy < 0 ? 0 : entropy * 0.693147180559945309417;
    stats[1] = variance;
}

__device__ inline void preference(const lava_cuda_preference_args &args) {
    const lava_cuda_preference_item &item = LAVA_ITEM(args, blockIdx.x);
    // As the CPU adds them up; a few heads are little work.
    double entropy = 0, variance = 0;
    for (uint32_t h = 0; h < args.n_kv_heads; h++) {
        entropy += item.stats[2 * h];
        variance += item.stats[2 * h + 1];
    }
    const double weight = pow(entropy, 1 / args.tau1) * pow(variance, 1 / args.tau2);
    if (weight < INFINITY) {
        *item.weight = weight;
        return;
    }
    const uint64_t none = LAVA_NO_ENTROPY;
    memcpy(item.weight, &none, 8);
    report(args.status, item.layer, blockIdx.x, LAVA_NO_HEAD, LAVA_FAULT_STATS);
}

} // namespace lava

LAVA_KERNEL(LAVA_SCORE_POOLED) lava_stats_sum(const __grid_constant__ lava_score_args args) { lava::add_up_stats(args); }
LAVA_KERNEL(32) lava_stats_preference(const __grid_constant__ lava_cuda_preference_args args) {
    if (threadIdx.x == 0) lava::preference(args);
}
