// Entropy of a layer's scores with the bits of src/entropy.rs: f64, the same operations in the same order, none of them fused
// (compile with -fmad=false). A piece of a head has eight running sums, and the order within each is the scores'; so a block computes
// its piece's terms in parallel, then two times eight threads add them up. Pieces of all heads go side by side.
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

/// One piece of a head by one block: sums[0] = Σ S·ln S, sums[1] = ΣS. False, for all threads, if a score is negative, NaN or infinite.
__device__ inline bool entropy_of_piece(const float *scores, uint32_t n, double *sums) {
    constexpr uint32_t PITCH = LAVA_CUDA_PIECE + 8; // eight threads' terms are in other banks than the scores of the next eight
    LAVA_SHARED(double, terms, 2 * PITCH);
    LAVA_SHARED(double, lanes, 16);
    LAVA_SHARED(unsigned, bad, 1);
    double *const values = terms + PITCH;
    if (threadIdx.x == 0) *bad = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        const float score = scores[i];
        if (!(score >= 0.0f && is_finite(score))) atomicOr(bad, 1u);
        const double s = score;
        terms[i] = s * natural_log(s > 0.0 ? s : 1.0);
        values[i] = s;
    }
    __syncthreads();
    if (threadIdx.x < 16) {
        double sum = 0.0;
        for (uint32_t i = threadIdx.x % 8; i < n; i += 8) sum += terms[threadIdx.x / 8 * PITCH + i];
        lanes[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
        const double *l = lanes + 8 * threadIdx.x;
        sums[threadIdx.x] = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    }
    return *bad == 0;
}

/// Entropy and mass of a layer from its pieces' sums, by one block; thread 0 has them. `sums` is used up.
__device__ inline void entropy_of_layer(double *sums, uint32_t n_kv_heads, uint32_t prefix_len, double *entropy, double *mass) {
    const uint32_t pieces = lava_cuda_pieces(prefix_len);
    const uint64_t apart = lava_cuda_piece_sums(1, prefix_len);
    for (uint32_t h = threadIdx.x; h < n_kv_heads; h += blockDim.x) {
        double *const its = sums + h * apart;
        double weighted = 0.0, total = 0.0;
#pragma unroll 8 // the loads are on their way together, the sums in order
        for (uint32_t p = 0; p < pieces; p++) weighted += its[2 * p], total += its[2 * p + 1];
        its[0] = weighted, its[1] = total;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    double weighted = 0.0, total = 0.0;
    for (uint32_t h = 0; h < n_kv_heads; h++) weighted += sums[h * apart], total += sums[h * apart + 1];
    if (mass != nullptr) *mass = total;
    const uint64_t n = uint64_t(n_kv_heads) * prefix_len;
    double e = 0.0;
    if (n > 1 && total != 0.0) e = (natural_log(total) - weighted / total) / natural_log(double(n));
    *entropy = e < 0.0 ? 0.0 : e > 1.0 ? 1.0 : e;
    const uint64_t none = LAVA_NO_ENTROPY;
    if (!(total == total)) memcpy(static_cast<void *>(entropy), &none, sizeof none);
}

} // namespace lava
