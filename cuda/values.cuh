// Stage 4 of a score: the values' L1 norms, by blocks of score_columns that do nothing else.
#pragma once
#include "score.cuh"

#include <type_traits>

namespace lava {

constexpr uint32_t AT_ONCE = 8; // rows of a thread on their way from memory

/// 16 bytes of each of this thread's rows, the first `token` and each `step` after the one before, from dimension `c` on. Zeros after the
/// range and the dimensions. All are on their way before the first is looked at: memory is far away, and few of these blocks run at a time.
template <class T> __device__ void fetch_values(uint4 (&pieces)[AT_ONCE], const Range &range, uint32_t token, uint32_t step, uint32_t c) {
    const lava_device_tensor &v = range.sequence.v;
    const T *const rows = row_of<const T>(v, range.head, token);
    const int64_t apart = v.stride_token * step;
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; i++) {
        pieces[i] = uint4{0, 0, 0, 0};
        if (c < range.args.head_dim_v && token + i * step < range.end) pieces[i] = load_streaming(reinterpret_cast<const uint4 *>(rows + i * apart + c));
    }
}

/// L1 norms of a thread's rows, which `OF_ROW` threads share, with whatever is best for the values' type.
struct TensorNorms {
    /// Sixteen bits: magnitudes by ones, as the tensor cores take them. Two rows make a tile: its upper and its lower eight. Which four of a
    /// row's sixteen a thread has does not matter to their sum.
    static constexpr uint32_t OF_ROW = 4;
    template <class T> __device__ static void add(float (&norms)[AT_ONCE], const Range &range, uint32_t token, uint32_t step) {
        const uint32_t ones = std::is_same<T, __half>::value ? 0x3c003c00 : 0x3f803f80, dim = range.args.head_dim_v;
        float sums[AT_ONCE / 2][4] = {};
        for (uint32_t first = 0; first < dim; first += OF_ROW * 8) {
            uint4 pieces[AT_ONCE];
            fetch_values<T>(pieces, range, token, step, first + threadIdx.x % OF_ROW * 8);
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; i += 2) {
                constexpr uint32_t MAGNITUDES = 0x7fff7fff;
                const uint4 upper = pieces[i], lower = pieces[i + 1];
                const uint32_t a[4] = {upper.x & MAGNITUDES, lower.x & MAGNITUDES, upper.y & MAGNITUDES, lower.y & MAGNITUDES};
                const uint32_t b[4] = {upper.z & MAGNITUDES, lower.z & MAGNITUDES, upper.w & MAGNITUDES, lower.w & MAGNITUDES};
                multiply(T(), sums[i / 2], a, ones, ones);
                multiply(T(), sums[i / 2], b, ones, ones);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            // What is too large may be cut off to the largest number.
            const float sum = sums[i / 2][i % 2 * 2];
            norms[i] = sum < FLT_MAX ? sum : INFINITY;
        }
    }
};
struct PlainNorms {
    static constexpr uint32_t OF_ROW = 8;
    __device__ static void add_up(float (&norms)[AT_ONCE]) {
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++)
            for (uint32_t distance = 1; distance < OF_ROW; distance *= 2) norms[i] += __shfl_xor_sync(ALL, norms[i], distance);
    }
    __device__ static void add(float (&norms)[AT_ONCE], const Range &range, uint32_t token, uint32_t step) {
        for (uint32_t c = threadIdx.x % OF_ROW * 4; c < range.args.head_dim_v; c += OF_ROW * 4) {
            uint4 pieces[AT_ONCE];
            fetch_values<float>(pieces, range, token, step, c);
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; i++)
                norms[i] += (fabsf(__uint_as_float(pieces[i].x)) + fabsf(__uint_as_float(pieces[i].y))) +
                            (fabsf(__uint_as_float(pieces[i].z)) + fabsf(__uint_as_float(pieces[i].w)));
        }
        add_up(norms);
    }
    /// Any values.
    __device__ static void add_any(float (&norms)[AT_ONCE], const Range &range, uint32_t token, uint32_t step) {
        for (uint32_t i = 0; i < AT_ONCE; i++)
            for (uint32_t c = threadIdx.x % OF_ROW; token + i * step < range.end && c < range.args.head_dim_v; c += OF_ROW)
                norms[i] += fabsf(element(range.sequence.v, range.head, token + i * step, c));
        add_up(norms);
    }
};

/// Goes over a range's values: each one's own norm where it is wanted, else the largest that counts.
template <uint32_t OF_ROW, class Add> __device__ void norms_of_range(const Range &range, Add add) {
    const lava_score_args &args = range.args;
    const uint32_t counted = args.value_span == VALUES_ALL ? range.n_tokens() : range.prefix(), live = range.first_live();
    const uint32_t wanted = min(range.prefix(), range.end); // a round may be longer than the range
    const uint32_t own = threadIdx.x / OF_ROW, step = blockDim.x / OF_ROW;
    float most = 0;
    bool faulty = false;
    // All threads of a warp go round equally often: they do sums together.
    for (uint32_t first = range.first; first < range.end; first += step * AT_ONCE) {
        float norms[AT_ONCE] = {};
        add(norms, range, first + own, step);
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t token = first + i * step + own;
            faulty |= token >= live && !(norms[i] < INFINITY);
            if (token >= live && token < counted) most = fmaxf(most, norms[i]);
            if (args.value_weight == VALUE_TOKEN && token < wanted && threadIdx.x % OF_ROW == 0)
                args.value_norms[range.flat() * lava_score_max_prefix(&args) + token] = norms[i];
        }
    }
    for (int distance = OF_ROW; distance < 32; distance *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, distance));
    // Bits of floats that are not negative ascend as the floats do, and a maximum has no order.
    if (threadIdx.x % 32 == 0) atomicMax(args.value_max + range.flat(), __float_as_uint(most));
    if (faulty) range.fault(LAVA_FAULT_V);
}
__device__ inline void value_norms(const Range &range) {
    const int32_t dtype = range.sequence.v.dtype;
    if (!lava_rows_are_aligned(&range.sequence.v, range.args.head_dim_v)) norms_of_range<PlainNorms::OF_ROW>(range, PlainNorms::add_any);
    else if (dtype == 0) norms_of_range<PlainNorms::OF_ROW>(range, PlainNorms::add);
    else if (dtype == 1) norms_of_range<TensorNorms::OF_ROW>(range, TensorNorms::add<__half>);
    else norms_of_range<TensorNorms::OF_ROW>(range, TensorNorms::add<__nv_bfloat16>);
}

} // namespace lava
