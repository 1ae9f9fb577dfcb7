// What score.cu and attend.cu share: reading the caller's tensors, logits, faults.
#pragma once
#include "device.cuh"
#include "plan_attention.h"

#include <cfloat>

namespace lava {

/// A key that a query does not see: 2 to it is 0.
constexpr float UNSEEN = -INFINITY;
/// A maximum before anything was seen. Finite, so that UNSEEN less it is not NaN.
constexpr float NOTHING_YET = -FLT_MAX;

/// Element `c` of a row, of any type at any stride.
__device__ inline float element(const lava_device_tensor &t, uint32_t head, uint64_t row, uint32_t c) {
    const int64_t at = c * t.stride_dim;
    switch (t.dtype) {
    case 0: return row_of<const float>(t, head, row)[at];
    case 1: return widen(row_of<const __half>(t, head, row)[at]);
    default: return widen(row_of<const __nv_bfloat16>(t, head, row)[at]);
    }
}

/// A lane's elements of a row of queries as the tensor cores take them, two in a register, the lower index in the lower half. `half`: whether
/// it is the row of the tile's upper or lower eight. Zeros where there is no such row.
template <int D>
__device__ void load_query(uint32_t (&q)[D / 16][4], int half, const lava_device_tensor &from, uint32_t head, uint32_t row, bool real) {
    const int64_t apart = from.stride_dim;
    const uint16_t *const at = row_of<const uint16_t>(from, head, row) + threadIdx.x % 4 * 2 * apart;
    const auto fill = [&](auto two_from) {
#pragma unroll
        for (int step = 0; step < D / 16; step++)
#pragma unroll
            for (int upper = 0; upper < 2; upper++) q[step][half + 2 * upper] = two_from(16 * step + 8 * upper);
    };
    if (!real) fill([](int) { return 0u; });
    // One load for two elements, where they are adjacent and aligned.
    else if (apart == 1 && reinterpret_cast<uintptr_t>(at) % 4 == 0) fill([&](int c) { return *reinterpret_cast<const uint32_t *>(at + c); });
    else fill([&](int c) { return at[c * apart] | uint32_t(at[(c + 1) * apart]) << 16; });
}

/// What becomes of q·k: an exponent of two.
struct Logits {
    float factor, softcap;

    __device__ Logits(float scale, float softcap) : factor(softcap > 0 ? scale / softcap : scale * LOG2_E), softcap(softcap) {}
    template <int N> __device__ void apply(float (&dots)[N]) const {
        cap(dots);
#pragma unroll
        for (int i = 0; i < N; i++) dots[i] *= slope();
    }
    /// The same except for a factor, `slope`, which a fused multiply-add applies at no cost.
    template <int N> __device__ void cap(float (&dots)[N]) const {
        if (!(softcap > 0)) return;
#pragma unroll
        for (int i = 0; i < N; i++) dots[i] = tanhf(dots[i] * factor);
    }
    __device__ float slope() const { return softcap > 0 ? softcap * LOG2_E : factor; }
};

/// Elements of a row of `D` 16-bit elements in shared memory. Rows start an odd number of 16 bytes apart, so that eight rows'
/// pieces are in different banks.
template <int D> constexpr int PITCH = D + 8;

/// A head's rows: where the first is, worked out once for all tiles. The distance from one to the next is looked up: registers are scarce.
template <class T> struct Rows {
    const T *data;
    const int64_t &apart;

    __device__ Rows(const lava_device_tensor &t, uint32_t head) : data(row_of<const T>(t, head, 0)), apart(t.stride_token) {}
};

/// Asks for rows `first` .. `first + N` of a head, by `n_threads` threads of which this one is `thread`; zeros from row `end` on. A
/// thread goes down the same columns, so an address is the one before and a step; it has an even number of rows.
template <int D, int N, class T>
__device__ void fetch_rows(T *to, const Rows<T> &from, uint32_t first, uint32_t end, uint32_t thread, uint32_t n_threads) {
    constexpr uint32_t PIECES = D / 8, ACROSS = PIECES > 16 ? 32 : PIECES > 8 ? 16 : 8;
    const uint32_t own = thread / ACROSS, step = n_threads / ACROSS, c = thread % ACROSS * 8;
    if (PIECES < ACROSS && c >= D) return;
    const int64_t apart = step * from.apart;
    const T *at = from.data + int64_t(first + own) * from.apart + c;
    T *into = to + own * PITCH<D> + c;
    // Where the compiler knows how often, and there are registers for the addresses.
#pragma unroll (N <= 16 && D <= 128 ? 4 : 1)
    for (uint32_t row = own; row < N; row += 2 * step) {
        copy_async(into, at, first + row < end);
        copy_async(into + step * PITCH<D>, at + apart, first + row + step < end);
        at += 2 * apart;
        into += 2 * step * PITCH<D>;
    }
}

/// Dot products of `M` tiles of 16 queries, in registers, and 16 rows of keys in shared memory.
///
/// dots[m][n][i] is that of row 16 m + lane / 4 + 8 (i / 2) and key 8 n + 2 (lane mod 4) + i mod 2.
template <class T, int D, int M>
__device__ void dot_products(float (&dots)[M][2][4], const uint32_t (&q)[M][D / 16][4], const T *keys) {
    const uint32_t lane = threadIdx.x % 32;
    const T *const mine = keys + (lane / 16 * 8 + lane % 8) * PITCH<D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) dots[m][n][i] = 0;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t b[4];
        load_matrices(b, mine + 16 * step);
#pragma unroll
        for (int m = 0; m < M; m++) {
            multiply(T(), dots[m][0], q[m][step], b[0], b[1]);
            multiply(T(), dots[m][1], q[m][step], b[2], b[3]);
        }
    }
}

/// Becomes NaN if `x` is infinite or NaN, and stays it. A product costs half of what a comparison does.
__device__ inline void look_for_fault(float &poison, float x) { poison = fmaf(x, 0.0f, poison); }

/// A maximum and a sum of powers of two less it.
struct Softmax {
    float max = NOTHING_YET, sum = 0;

    /// Makes room for `x`: all that was added is taken less the new maximum. Returns the factor.
    __device__ float raise(float x) {
        if (!(x > max)) return 1;
        const float shrink = exp2_fast(max - x);
        sum *= shrink;
        max = x;
        return shrink;
    }
    __device__ void merge(float other_max, float other_sum) {
        const float most = fmaxf(max, other_max);
        sum = sum * exp2_fast(max - most) + other_sum * exp2_fast(other_max - most);
        max = most;
    }
    /// With that of the lanes whose number differs in the bit `distance`.
    __device__ void merge_lanes(int distance) {
        const float other_max = __shfl_xor_sync(ALL, max, distance);
        merge(other_max, __shfl_xor_sync(ALL, sum, distance));
    }
};

} // namespace lava
