// Entropy of a layer's scores with the bits of src/entropy.rs: f64, the same operations in the same order, none of them fused
// (compile with -fmad=false). A head has eight running sums, and the order within each is the scores'; so a block computes its head's
// terms in parallel, a tile ahead of the two times eight threads that add them up.
#pragma once
#include <cstring>

#include "device.cuh"

namespace lava {

/// Natural logarithm of a positive normal f64: m · 2^k with m in [√½, √2), ln m = 2·atanh((m − 1)/(m + 1)).
__device__ inline double natural_log(double x) {
    int64_t bits;
    memcpy(&bits, &x, 8);
    const int64_t k = (bits - 0x3FE6A09E667F3BCD) >> 52;
    const int64_t mantissa = bits - int64_t(uint64_t(k) << 52);
    double m;
    memcpy(&m, &mantissa, 8);
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 21.0;
    p = p * z + 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    p = p * z + 1.0;
    return double(k) * 0.693147180559945309417232121458 + 2.0 * s * p;
}

/// Entries whose terms a block computes at the same time, one by each thread but warp 0's. A multiple of 8, as the running sums want it.
constexpr uint32_t ENTROPY_TILE = LAVA_CUDA_ENTROPY_THREADS - 32;
/// From one array to the next: eight threads' numbers of one lie in other banks than those of the other.
constexpr uint32_t ENTROPY_PITCH = ENTROPY_TILE + 8;

/// One head by one block: sums[0] = Σ S·ln S, sums[1] = ΣS. False, for all threads, if a score is negative, NaN or infinite.
__device__ inline bool entropy_of_head(const float *scores, uint32_t n, double *sums) {
    LAVA_SHARED(double, tiles, 4 * ENTROPY_PITCH); // of two tiles: terms, then scores
    LAVA_SHARED(double, lanes, 16);
    LAVA_SHARED(unsigned, bad, 1);
    if (threadIdx.x == 0) *bad = 0;
    __syncthreads();
    double sum = 0.0;
    const uint32_t n_tiles = (n + ENTROPY_TILE - 1) / ENTROPY_TILE, own = threadIdx.x - 32;
    float next = warp() != 0 && own < n ? scores[own] : 0;
    // The tile whose terms are computed while the one before it is added up. Warp 0 adds, and computes nothing.
    for (uint32_t tile = 0; tile <= n_tiles; tile++) {
        const uint64_t i = uint64_t(tile) * ENTROPY_TILE + own;
        if (warp() != 0 && i < n) {
            double *const terms = tiles + tile % 2 * 2 * ENTROPY_PITCH, *const values = terms + ENTROPY_PITCH;
            const float score = next;
            if (i + ENTROPY_TILE < n) next = scores[i + ENTROPY_TILE]; // comes while this one's logarithm is computed
            if (!(score >= 0.0f && is_finite(score))) atomicOr(bad, 1u);
            const double s = score;
            terms[own] = s * natural_log(s > 0.0 ? s : 1.0);
            values[own] = s;
        } else if (threadIdx.x < 16 && tile > 0) {
            const uint32_t before = tile - 1, end = min(ENTROPY_TILE, n - before * ENTROPY_TILE);
            // One loop for both sums: two in one warp would run one behind the other, and this chain of additions is what all wait for.
            const double *const from = tiles + (before % 2 * 2 + threadIdx.x / 8) * ENTROPY_PITCH;
            for (uint32_t i = threadIdx.x % 8; i < end; i += 8) sum += from[i];
        }
        __syncthreads();
    }
    if (threadIdx.x < 16) lanes[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < 2) {
        const double *l = lanes + 8 * threadIdx.x;
        sums[threadIdx.x] = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    }
    return *bad == 0;
}

/// A layer from its heads' sums, by one thread.
__device__ inline void entropy_of_layer(const double *sums, uint32_t n_kv_heads, uint32_t prefix_len, double *entropy, double *mass) {
    double weighted = 0.0, total = 0.0;
    for (uint32_t h = 0; h < n_kv_heads; h++) weighted += sums[2 * h], total += sums[2 * h + 1];
    if (mass != nullptr) *mass = total;
    const uint64_t n = uint64_t(n_kv_heads) * prefix_len;
    double e = 0.0;
    if (n > 1 && total != 0.0) e = (natural_log(total) - weighted / total) / natural_log(double(n));
    *entropy = e < 0.0 ? 0.0 : e > 1.0 ? 1.0 : e;
    const uint64_t none = LAVA_NO_ENTROPY;
    if (!(total == total)) memcpy(static_cast<void *>(entropy), &none, sizeof none);
}

} // namespace lava
