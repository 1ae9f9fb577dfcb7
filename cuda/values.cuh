// Stage 4 of a score: the values' L1 norms, by blocks of score_columns that do nothing else.
#pragma once
#include "score.cuh"

namespace lava {

/// This thread's part of the L1 norms of `N` rows, the first `token` and each `step` behind the one before, by eight threads a row. Zero
/// behind the range.
template <class T, uint32_t N>
__device__ void row_norms(float (&norms)[N], const Range &range, uint32_t token, uint32_t step) {
    constexpr uint32_t PER = 16 / sizeof(T);
    const lava_device_tensor &v = range.sequence.v;
    const T *const rows = row_of<const T>(v, range.head, token);
    const int64_t apart = v.stride_token * step;
    const uint32_t dim = range.args.head_dim_v, end = range.end;
    for (uint32_t c = threadIdx.x % 8 * PER; c < dim; c += 8 * PER) {
        // All are on their way before the first is looked at: memory is far away, and few of these blocks run at a time.
        uint4 pieces[N];
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            pieces[i] = uint4{0, 0, 0, 0};
            if (token + i * step < end) pieces[i] = load_streaming(reinterpret_cast<const uint4 *>(rows + i * apart + c));
        }
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            T x[PER];
            memcpy(static_cast<void *>(x), &pieces[i], 16);
#pragma unroll
            for (uint32_t k = 0; k < PER; k++) norms[i] += fabsf(widen(x[k]));
        }
    }
}

/// The same of any values.
template <uint32_t N>
__device__ void row_norms_any(float (&norms)[N], const Range &range, uint32_t token, uint32_t step) {
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t c = threadIdx.x % 8; token + i * step < range.end && c < range.args.head_dim_v; c += 8)
            norms[i] += fabsf(element(range.sequence.v, range.head, token + i * step, c));
}

/// Norms of a range's values: each one's own where it is wanted, else the largest that counts.
__device__ inline void value_norms(const Range &range) {
    constexpr uint32_t AT_ONCE = 8; // rows on their way per eight threads
    const lava_score_args &args = range.args;
    const bool aligned = lava_rows_are_aligned(&range.sequence.v, args.head_dim_v);
    const int32_t dtype = range.sequence.v.dtype;
    const uint32_t counted = args.value_span == VALUES_ALL ? range.n_tokens() : range.prefix();
    const uint32_t wanted = min(range.prefix(), range.end); // a round may be longer than the range
    const uint32_t own = threadIdx.x / 8, step = blockDim.x / 8;
    float most = 0;
    bool faulty = false;
    // All threads of a warp go round equally often: they exchange sums.
    for (uint32_t first = range.first; first < range.end; first += step * AT_ONCE) {
        float norms[AT_ONCE] = {};
        if (!aligned) row_norms_any(norms, range, first + own, step);
        else if (dtype == 0) row_norms<float>(norms, range, first + own, step);
        else if (dtype == 1) row_norms<__half>(norms, range, first + own, step);
        else row_norms<__nv_bfloat16>(norms, range, first + own, step);
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t token = first + i * step + own;
            for (int distance = 1; distance < 8; distance *= 2) norms[i] += __shfl_xor_sync(ALL, norms[i], distance);
            faulty |= !(norms[i] < INFINITY);
            if (token < counted) most = fmaxf(most, norms[i]);
            if (args.value_weight == VALUE_TOKEN && token < wanted && threadIdx.x % 8 == 0)
                args.value_norms[range.flat() * lava_score_max_prefix(&args) + token] = norms[i];
        }
    }
    for (int distance = 8; distance < 32; distance *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, distance));
    // Bits of floats that are not negative ascend as the floats do, and a maximum has no order.
    if (threadIdx.x % 32 == 0) atomicMax(args.value_max + range.flat(), __float_as_uint(most));
    if (faulty) range.fault(LAVA_FAULT_V);
}

} // namespace lava
