// Stage 4 of a score: the values' L1 norms, by blocks of score_columns that do nothing else.
#pragma once
#include "score.cuh"

namespace lava {

/// The values' L1 norms over a range of tokens: by eight threads a row, 16 bytes at a time.
template <class T> __device__ float row_norm(const T *row, uint32_t dim) {
    constexpr uint32_t N = 16 / sizeof(T);
    float sum = 0;
    for (uint32_t c = threadIdx.x % 8 * N; c < dim; c += 8 * N) {
        float x[N];
        load_piece(x, row + c);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) sum += fabsf(x[i]);
    }
    return sum;
}

__device__ inline float row_norm(const Head &head, uint32_t token, bool aligned) {
    const lava_device_tensor &v = head.sequence.v;
    const uint32_t dim = head.args.head_dim_v;
    if (!aligned) {
        float sum = 0;
        for (uint32_t c = threadIdx.x % 8; c < dim; c += 8) sum += fabsf(element(v, head.head, token, c));
        return sum;
    }
    switch (v.dtype) {
    case 0: return row_norm(row_of<const float>(v, head.head, token), dim);
    case 1: return row_norm(row_of<const __half>(v, head.head, token), dim);
    default: return row_norm(row_of<const __nv_bfloat16>(v, head.head, token), dim);
    }
}

/// Norms of a range's values: each one's own where it is wanted, else the largest that counts.
__device__ inline void value_norms(const Range &range) {
    constexpr uint32_t AT_ONCE = 4; // rows on their way per eight threads
    const lava_score_args &args = range.args;
    const bool aligned = lava_rows_are_aligned(&range.sequence.v, args.head_dim_v);
    const uint32_t counted = args.value_span == VALUES_ALL ? range.n_tokens() : range.prefix();
    const uint32_t own = threadIdx.x / 8, step = blockDim.x / 8;
    float most = 0;
    bool faulty = false;
    // All threads of a warp go round equally often: they exchange sums.
    for (uint32_t first = range.first; first < range.end; first += step * AT_ONCE) {
        float norms[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t token = first + i * step + own;
            norms[i] = token < range.end ? row_norm(range, token, aligned) : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t token = first + i * step + own;
            for (int distance = 1; distance < 8; distance *= 2) norms[i] += __shfl_xor_sync(ALL, norms[i], distance);
            faulty |= !(norms[i] < INFINITY);
            if (token < counted) most = fmaxf(most, norms[i]);
            if (args.value_weight == VALUE_TOKEN && token < range.prefix() && threadIdx.x % 8 == 0)
                args.value_norms[range.flat() * lava_score_max_prefix(&args) + token] = norms[i];
        }
    }
    for (int distance = 8; distance < 32; distance *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, distance));
    // Bits of floats that are not negative ascend as the floats do, and a maximum has no order.
    if (threadIdx.x % 32 == 0) atomicMax(args.value_max + range.flat(), __float_as_uint(most));
    if (faulty) range.fault(LAVA_FAULT_V);
}

} // namespace lava
