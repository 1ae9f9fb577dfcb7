// Stages 3 and 5 of a score: what score.cu has summed for each key, pooled along the tokens, times the factors.
//
//     score_pool       pooling, reduction over the group if score.cu has left it out, value norms, scores
//     score_smooth     each head's mean score, times the smoothing, is added
#include "score.cuh"

namespace lava {

/// 256 scores of a head: pooled, with what the neighbours need, reduced if they were not, times the factors.
__device__ inline void pool(const lava_score_args &args) {
    constexpr uint32_t BLOCK = LAVA_SCORE_POOLED, MOST = 126;
    LAVA_SHARED(float, near, BLOCK + MOST);
    const Head head(args, blockIdx.z, blockIdx.y);
    const uint32_t first = blockIdx.x * BLOCK, radius = args.pool_kernel / 2, prefix = head.prefix(), live = head.first_live();
    if (first >= prefix) return;
    const bool recency = args.attention == RECENCY;
    const uint32_t rows = lava_score_reduces_first(&args) || recency ? 1 : head.group();
    const uint32_t i = first + threadIdx.x;
    float score = 0;
    for (uint32_t row = 0; row < rows; row++) {
        __syncthreads(); // the last row's are no longer read
        for (uint32_t at = threadIdx.x; at < BLOCK + 2 * radius; at += BLOCK) {
            const uint64_t token = uint64_t(first) + at; // radius ahead
            float x = 0;
            if (token >= uint64_t(radius) + live && token - radius < prefix)
                x = recency ? float(token - radius + 1) : head.columns(row)[token - radius];
            near[at] = x;
        }
        __syncthreads();
        float pooled = 0;
        for (uint32_t at = 0; at < args.pool_kernel; at++) {
            const float x = near[threadIdx.x + at];
            pooled = args.pool == POOL_MAX ? fmaxf(pooled, x) : pooled + x;
        }
        if (args.pool == POOL_AVG) pooled /= args.pool_kernel;
        score = args.group_reduce == GROUP_MAX || rows == 1 ? fmaxf(score, pooled) : score + pooled;
    }
    if (!recency) score *= 1.0f / (float(args.window) * (args.group_reduce == GROUP_MEAN ? head.group() : 1));
    if (args.value_weight == VALUE_HEAD_MAX) score *= __uint_as_float(args.value_max[head.flat()]);
    if (args.value_weight == VALUE_TOKEN && i < prefix) score *= args.value_norms[head.flat() * lava_score_max_prefix(&args) + i];
    score *= args.weight;
    if (i < live || i >= prefix) score = 0;
    if (i < prefix) head.sequence.scores[uint64_t(head.head) * prefix + i] = score;
    if (!(score < INFINITY)) head.fault(LAVA_FAULT_SCORES);
    if (!(args.smoothing > 0)) return;
    LAVA_SHARED(double, sums, BLOCK / 32);
    const double sum = block_sum(double(score), sums);
    if (threadIdx.x == 0) args.sums[head.flat() * lava_score_pool_blocks(&args) + blockIdx.x] = sum;
}

/// Adds the mean score of the head's live entries, times the smoothing, to those among 256.
__device__ inline void smooth(const lava_score_args &args) {
    LAVA_SHARED(double, memory, LAVA_SCORE_POOLED / 32);
    const Head head(args, blockIdx.z, blockIdx.y);
    const uint32_t first = blockIdx.x * LAVA_SCORE_POOLED, prefix = head.prefix(), live = head.first_live(), i = first + threadIdx.x;
    if (first >= prefix) return;
    const double *const sums = args.sums + head.flat() * lava_score_pool_blocks(&args);
    double sum = 0;
    for (uint32_t b = threadIdx.x; b < (prefix + LAVA_SCORE_POOLED - 1) / LAVA_SCORE_POOLED; b += LAVA_SCORE_POOLED) sum += sums[b];
    const float more = float(args.smoothing * (block_sum(sum, memory) / (prefix - live)));
    if (i < live || i >= prefix) return;
    float &score = head.sequence.scores[uint64_t(head.head) * prefix + i];
    score += more;
    if (!(score < INFINITY)) head.fault(LAVA_FAULT_SCORES);
}

} // namespace lava

extern "C" __global__ void __launch_bounds__(256) lava_score_pool(const __grid_constant__ lava_score_args args) { lava::pool(args); }
extern "C" __global__ void __launch_bounds__(256) lava_score_smooth(const __grid_constant__ lava_score_args args) { lava::smooth(args); }
