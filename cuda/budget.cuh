// Integers that sum exactly, by one block: a total shared among layers by weight, a layer's entries among heads. The arithmetic is
// that of src/budget.rs, in 128-bit integers, so the order in which threads add changes nothing.
#pragma once
#include <cstring>

#include "device.cuh"

namespace lava {

using u128 = unsigned __int128;
using i128 = __int128;

enum class Rounding { EXACT, UP };

constexpr uint64_t OPEN = UINT64_MAX;   // a share that is not settled yet
constexpr uint64_t ALPHA_ONE = 1000000000;

/// Whether shares can be in proportion to it: finite and not negative.
__device__ inline bool is_weight(double w) { return w >= 0.0 && w <= 1.7976931348623157e308; }

/// The first of `n` weights that is not valid, or `n`; for all threads. `memory`: one entry.
__device__ inline uint32_t first_faulty_weight(const double *weights, uint32_t n, uint32_t *memory) {
    if (threadIdx.x == 0) *memory = n;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        if (!is_weight(weights[i])) atomicMin(memory, i);
    __syncthreads();
    const uint32_t first = *memory;
    __syncthreads();
    return first;
}

/// 128 bits go through a shuffle in halves.
template <> __device__ inline i128 warp_sum(i128 x) {
    for (int by = 16; by > 0; by /= 2) {
        const uint64_t low = __shfl_xor_sync(ALL, uint64_t(x), by), high = __shfl_xor_sync(ALL, uint64_t(u128(x) >> 64), by);
        x += i128(u128(high) << 64 | low);
    }
    return x;
}

/// Quotient and remainder, bit for bit: that of 128-bit numbers is a call, around which registers would spill. The divisor is below 2^63,
/// the quotient below 2^64.
struct Division {
    uint64_t quotient, remainder;
};
__device__ inline Division divide(u128 dividend, uint64_t divisor) {
    uint64_t quotient = 0, remainder = uint64_t(dividend >> 64), low = uint64_t(dividend);
    for (int bit = 0; bit < 64; bit++) {
        remainder = remainder << 1 | low >> 63;
        low <<= 1;
        const bool goes = remainder >= divisor;
        if (goes) remainder -= divisor;
        quotient = quotient << 1 | goes;
    }
    return {quotient, remainder};
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
        const Division share = divide(numerator(i), denominator);
        remainder[i] = share.remainder;
        out[i] = share.quotient + (rounding == Rounding::UP && share.remainder != 0);
        floors += share.quotient;
    }
    const uint64_t left = total - block_sum(floors, memory); // synchronises: all remainders are there
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

/// What sharing needs: a few numbers for each sharer, layers or heads, and for each thread.
struct ShareMemory {
    uint64_t *weight, *remainder, *share; // [n]
    uint64_t *sums;                       // [warps]
    i128 *wide;                           // [warps]
};
#define LAVA_SHARE_MEMORY(name, n, threads)                                                                               \
    LAVA_SHARED(uint64_t, name##_weight, n);                                                                              \
    LAVA_SHARED(uint64_t, name##_remainder, n);                                                                           \
    LAVA_SHARED(uint64_t, name##_share, n);                                                                               \
    LAVA_SHARED(uint64_t, name##_sums, (threads) / 32);                                                                   \
    LAVA_SHARED(lava::i128, name##_wide, (threads) / 32);                                                                 \
    const lava::ShareMemory name = {name##_weight, name##_remainder, name##_share, name##_sums, name##_wide}

/// Puts the weights of the open shares on a grid of 2^-52 of the next power of two above the largest of them, or of 1 if that is more.
__device__ inline void resolve_weights(uint32_t n, const double *weights, const ShareMemory &m) {
    // Few, and each thread needs all of them.
    double largest = 0.0;
    for (uint32_t i = 0; i < n; i++)
        if (m.share[i] == OPEN && weights[i] > largest) largest = weights[i];
    // Dividing by a power of two changes no digit of a weight.
    const double grid = 4503599627370496.0;
    double unit = grid;
    while (largest * (unit / grid) > 1.0) unit *= 0.5;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) m.weight[i] = uint64_t(rint(weights[i] * unit));
    __syncthreads();
}

/// Shares `total` among `n` in proportion to their weights, into m.share: as src/budget.rs does, by one block. Weights are finite and
/// not negative; capacities are below 2^32, and `total` is between the sums of the minimums and of the capacities.
template <class Capacity, class Minimum>
__device__ void water_fill(uint32_t n, const double *weights, Capacity capacity, Minimum minimum, uint64_t total, Rounding rounding,
                           const ShareMemory &m) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) m.share[i] = OPEN;
    __syncthreads();

    // Water-filling with bounds on both sides: settle those violations that pull in the direction of the sum, and share again.
    for (;;) {
        resolve_weights(n, weights, m);
        uint64_t fixed = 0, sum = 0, n_open = 0;
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            if (m.share[i] == OPEN) sum += m.weight[i], n_open++;
            else fixed += m.share[i];
        }
        const uint64_t rest = total - block_sum(fixed, m.sums);
        sum = block_sum(sum, m.sums);
        n_open = block_sum(n_open, m.sums);
        const bool equal = sum == 0; // all zero: equal weights
        if (equal) sum = n_open;
        const auto share = [&](uint32_t i) { return u128(rest) * (equal ? 1 : m.weight[i]); };

        // Positive: bounds ask for more than there is.
        i128 excess = 0;
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            if (m.share[i] != OPEN) continue;
            const u128 low = u128(minimum(i)) * sum, high = u128(capacity(i)) * sum, own = share(i);
            excess += i128(own < low ? low : own > high ? high : own) - i128(own);
        }
        excess = block_sum(excess, m.wide);
        uint64_t n_fixed = 0;
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            if (m.share[i] != OPEN) continue;
            const u128 own = share(i);
            if (excess >= 0 && own < u128(minimum(i)) * sum) m.share[i] = minimum(i), n_fixed++;
            else if (excess <= 0 && own > u128(capacity(i)) * sum) m.share[i] = capacity(i), n_fixed++;
        }
        if (block_sum(n_fixed, m.sums) != 0) continue;
        if (n_open != 0) round_shares(rounding, sum, rest, n, share, m.share, m.remainder, m.sums);
        __syncthreads();
        return;
    }
}

/// Wrong, but not reported again: the kernel that found it has reported it.
constexpr uint32_t FAULT_TOLD = 255;

/// What is wrong with a sharing, and with which layer.
struct ShareFault {
    uint32_t what, layer; // what 0: nothing
};

/// Shares `total` among `n` layers, into m.share.
__device__ inline ShareFault share_total(uint32_t n, const double *weights, const uint64_t *capacities, const uint64_t *minimums,
                                         uint64_t total, Rounding rounding, const ShareMemory &m) {
    const auto minimum = [&](uint32_t l) -> uint64_t { return minimums == nullptr ? 0 : minimums[l]; };
    uint64_t fault = OPEN, capacity = 0, promised = 0;
    for (uint32_t l = 0; l < n; l++) {
        if (!is_weight(weights[l])) {
            uint64_t bits;
            memcpy(&bits, &weights[l], sizeof bits);
            fault = min(fault, uint64_t(l) << 8 | (bits == LAVA_NO_ENTROPY ? FAULT_TOLD : uint32_t(LAVA_FAULT_WEIGHTS)));
        }
        else if (capacities[l] > UINT32_MAX || minimum(l) > capacities[l]) fault = min(fault, uint64_t(l) << 8 | LAVA_FAULT_BUDGET);
        capacity += capacities[l];
        promised += minimum(l);
    }
    total = min(total, capacity);
    if (fault == OPEN && promised > total) fault = LAVA_FAULT_BUDGET;
    if (fault != OPEN) return {uint32_t(fault & 0xff), uint32_t(fault >> 8)};
    water_fill(n, weights, [&](uint32_t l) { return capacities[l]; }, minimum, total, rounding, m);
    return {0, 0};
}

/// What each head is promised under the guaranteed floor: ⌊α · n_entries / n_kv_heads⌋.
__device__ inline uint64_t guaranteed_floor(uint64_t alpha, uint64_t n_entries, uint64_t n_kv_heads) {
    return divide(u128(alpha) * n_entries, ALPHA_ONE * n_kv_heads).quotient;
}

} // namespace lava
