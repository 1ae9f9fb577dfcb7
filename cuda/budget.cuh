// Integers that sum exactly, by one block: a total shared among layers by weight, a layer's budget among heads. The arithmetic is
// that of src/budget.rs, in 128-bit integers, so the order in which threads add changes nothing.
#pragma once
#include "device.cuh"

namespace lava {

using u128 = unsigned __int128;
using i128 = __int128;

enum class Rounding { EXACT, UP };

constexpr uint64_t OPEN = UINT64_MAX;   // a share that is not settled yet
constexpr uint64_t ALPHA_ONE = 1000000000;

/// Sum over the block, for all threads. `memory`: one entry per thread.
template <class T> __device__ inline T block_total(T x, T *memory) {
    memory[threadIdx.x] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned i = 0; i < blockDim.x; i++) sum += memory[i];
    __syncthreads();
    return sum;
}

/// Turns the real shares `numerator(i) / denominator` of the OPEN slots of `out` into integers. Exact: floors, and the largest
/// remainders get one more, ties to the lower index, so that they sum to `total`. `remainder`: [n]; all denominators are below 2^63.
template <class Numerator>
__device__ void round_shares(Rounding rounding, uint64_t denominator, uint64_t total, uint32_t n, Numerator numerator, uint64_t *out,
                             uint64_t *remainder, uint64_t *memory) {
    constexpr uint64_t NOT_OPEN = UINT64_MAX;
    uint64_t floors = 0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        remainder[i] = NOT_OPEN;
        if (out[i] != OPEN) continue;
        const u128 share = numerator(i);
        const uint64_t floor = uint64_t(share / denominator);
        remainder[i] = uint64_t(share - u128(floor) * denominator);
        if (rounding == Rounding::UP) out[i] = floor + (remainder[i] != 0);
        else out[i] = floor;
        floors += floor;
    }
    const uint64_t left = total - block_total(floors, memory); // synchronises: all remainders are there
    if (rounding == Rounding::UP) return;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        if (remainder[i] == NOT_OPEN) continue;
        uint64_t ahead = 0;
        for (uint32_t j = 0; j < n; j++)
            ahead += remainder[j] != NOT_OPEN && (remainder[j] > remainder[i] || (remainder[j] == remainder[i] && j < i));
        out[i] += ahead < left;
    }
    __syncthreads();
}

struct ShareMemory {
    uint64_t *weight;    // [LAVA_CUDA_MAX_LAYERS]
    uint64_t *remainder; // [LAVA_CUDA_MAX_LAYERS]
    uint64_t *budget;    // [LAVA_CUDA_MAX_LAYERS]
    uint64_t *sums;      // [threads]
    i128 *wide;          // [threads]
};
#define LAVA_SHARE_MEMORY(name)                                                                                           \
    LAVA_SHARED(uint64_t, name##_weight, LAVA_CUDA_MAX_LAYERS);                                                           \
    LAVA_SHARED(uint64_t, name##_remainder, LAVA_CUDA_MAX_LAYERS);                                                        \
    LAVA_SHARED(uint64_t, name##_budget, LAVA_CUDA_MAX_LAYERS);                                                           \
    LAVA_SHARED(uint64_t, name##_sums, LAVA_CUDA_BUDGET_THREADS);                                                         \
    LAVA_SHARED(lava::i128, name##_wide, LAVA_CUDA_BUDGET_THREADS);                                                       \
    const lava::ShareMemory name = {name##_weight, name##_remainder, name##_budget, name##_sums, name##_wide}

/// What can be wrong with a sharing, and with which layer.
struct ShareFault {
    uint32_t what, layer; // what 0: nothing
};

/// Shares `total` among `n` layers in proportion to their weights, into m.budget: as src/budget.rs does, by one block. Weights are
/// taken on a grid of 2^-52.
__device__ inline ShareFault share_total(uint32_t n, const double *weights, const uint64_t *capacities, const uint64_t *minimums,
                                         uint64_t total, Rounding rounding, const ShareMemory &m) {
    const auto minimum = [&](uint32_t l) -> uint64_t { return minimums == nullptr ? 0 : minimums[l]; };
    uint64_t fault = OPEN, capacity = 0, promised = 0;
    double largest = 0.0;
    for (uint32_t l = 0; l < n; l++) {
        // Few, and each thread needs all of them.
        const double w = weights[l];
        if (!(w >= 0.0 && w <= 1.7976931348623157e308)) fault = min(fault, uint64_t(l) << 8 | LAVA_CUDA_BAD_WEIGHTS);
        else if (capacities[l] > UINT32_MAX || minimum(l) > capacities[l]) fault = min(fault, uint64_t(l) << 8 | LAVA_CUDA_BAD_BUDGET);
        if (w > largest) largest = w;
        capacity += capacities[l];
        promised += minimum(l);
    }
    total = min(total, capacity);
    if (fault == OPEN && promised > total) fault = LAVA_CUDA_BAD_BUDGET;
    if (fault != OPEN) return {uint32_t(fault & 0xff), uint32_t(fault >> 8)};

    // Dividing by a power of two changes no digit of a weight.
    const double grid = 4503599627370496.0;
    double unit = grid;
    while (largest * (unit / grid) > 1.0) unit *= 0.5;
    for (uint32_t l = threadIdx.x; l < n; l += blockDim.x) {
        m.weight[l] = uint64_t(rint(weights[l] * unit));
        m.budget[l] = OPEN;
    }
    __syncthreads();

    // Water-filling with bounds on both sides: fix those violations that pull in the direction of the sum, and share again.
    for (;;) {
        uint64_t fixed = 0, sum = 0, n_open = 0;
        for (uint32_t l = threadIdx.x; l < n; l += blockDim.x) {
            if (m.budget[l] == OPEN) sum += m.weight[l], n_open++;
            else fixed += m.budget[l];
        }
        const uint64_t rest = total - block_total(fixed, m.sums);
        sum = block_total(sum, m.sums);
        n_open = block_total(n_open, m.sums);
        const bool equal = sum == 0; // all zero: equal weights
        if (equal) sum = n_open;
        const auto share = [&](uint32_t l) { return u128(rest) * (equal ? 1 : m.weight[l]); };

        // Positive: bounds ask for more than there is.
        i128 excess = 0;
        for (uint32_t l = threadIdx.x; l < n; l += blockDim.x) {
            if (m.budget[l] != OPEN) continue;
            const u128 low = u128(minimum(l)) * sum, high = u128(capacities[l]) * sum, own = share(l);
            excess += i128(own < low ? low : own > high ? high : own) - i128(own);
        }
        excess = block_total(excess, m.wide);
        uint64_t n_fixed = 0;
        for (uint32_t l = threadIdx.x; l < n; l += blockDim.x) {
            if (m.budget[l] != OPEN) continue;
            const u128 own = share(l);
            if (excess >= 0 && own < u128(minimum(l)) * sum) m.budget[l] = minimum(l), n_fixed++;
            else if (excess <= 0 && own > u128(capacities[l]) * sum) m.budget[l] = capacities[l], n_fixed++;
        }
        if (block_total(n_fixed, m.sums) != 0) continue;
        if (n_open != 0) round_shares(rounding, sum, rest, n, share, m.budget, m.remainder, m.sums);
        __syncthreads();
        return {0, 0};
    }
}

/// What each head is promised under the guaranteed floor: ⌊α · b / n_kv_heads⌋.
__device__ inline uint64_t guaranteed_floor(uint64_t alpha, uint64_t budget, uint64_t n_kv_heads) {
    return uint64_t(u128(alpha) * budget / (ALPHA_ONE * n_kv_heads));
}

} // namespace lava
