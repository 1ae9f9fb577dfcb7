// Attention of new queries over the ragged cache: heads of unlike length, a group's queries together, no copy of K or V.
//
// A block takes a part of a head's rows for four queries of its group; its warps take 32 rows at a time. Four lanes read a key
// together, so that each ends with one query's logit of eight keys; then all lanes go through the values, each with its own columns.
// Each warp keeps a running maximum, sum and weighted sum; warps and parts are merged in order. All products are f32: decoding
// waits for memory, and the weights lose no digits.
#include <cstring>

#include "device.cuh"

namespace lava {

constexpr uint32_t QUERIES = LAVA_CUDA_ATTEND_ROWS, WARPS = LAVA_CUDA_ATTEND_THREADS / 32;
static_assert(QUERIES == 4, "the four lanes that share a key end with one query each");

/// Position of a head's row in the text.
__device__ inline uint64_t position_of(const lava_cuda_attend_seq &seq, uint32_t head, uint32_t row) {
    const uint32_t first = seq.cu_kept[head], n = seq.cu_kept[head + 1] - first;
    return row < n ? seq.kept_indices[first + row] : uint64_t(seq.n_base) + (row - n);
}

struct Range {
    uint32_t begin, end;
};
/// The rows that new token t sees.
__device__ inline Range visible(const lava_cuda_attend_args &a, const lava_cuda_attend_seq &seq, uint32_t head, uint32_t t) {
    const uint32_t n_rows = seq.n_rows[head], hidden = a.causal ? a.n_new - 1 - t : 0, end = n_rows > hidden ? n_rows - hidden : 0;
    if (a.sliding_window == 0 || seq.cu_kept == nullptr || end == 0) return {0, end};
    // A query's own row is its last visible one; without `causal` it comes after all rows.
    const uint64_t own = a.causal ? position_of(seq, head, end - 1) : position_of(seq, head, end) + t;
    const uint64_t oldest = own + 1 > a.sliding_window ? own + 1 - a.sliding_window : 0;
    uint32_t low = 0, high = end; // positions ascend along the rows
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (position_of(seq, head, middle) < oldest) low = middle + 1;
        else high = middle;
    }
    return {low, end};
}

/// Partial result of a query: [maximum, sum, weighted values].
__device__ inline float *partial_of(const lava_cuda_attend_args &a, uint32_t seq, uint32_t head, uint32_t split, uint32_t query) {
    const uint64_t queries = uint64_t(lava_cuda_attend_tiles(&a)) * QUERIES;
    return a.workspace + (((uint64_t(seq) * a.n_kv_heads + head) * a.n_splits + split) * queries + query) * (a.head_dim_v + 2);
}

template <class T, int COLUMNS> __device__ void attend(const lava_cuda_attend_args &a) {
    LAVA_DYNAMIC_SHARED(memory);
    LAVA_SHARED(Range, ranges, QUERIES);
    const uint32_t split = blockIdx.x % a.n_splits, tile = blockIdx.x / a.n_splits, head = blockIdx.y;
    const lava_cuda_attend_seq &seq = a.seq[blockIdx.z];
    const uint32_t group = a.n_q_heads / a.n_kv_heads, n_queries = a.n_new * group, dk = a.head_dim_k, dv = a.head_dim_v;
    const uint32_t dk_padded = (dk + 3) / 4 * 4;
    float *const q = reinterpret_cast<float *>(memory); // [QUERIES, dk_padded]
    float *const merged = q + QUERIES * dk_padded;      // [WARPS, QUERIES, 32 * COLUMNS + 2]

    for (uint32_t at = threadIdx.x; at < QUERIES * dk; at += blockDim.x) {
        const uint32_t r = at / dk, c = at % dk, query = tile * QUERIES + r;
        float x = 0.0f;
        if (query < n_queries) x = widen(row_of<const T>(seq.q, head * group + query % group, query / group)[int64_t(c) * seq.q.stride_dim]);
        q[r * dk_padded + c] = x;
    }
    if (threadIdx.x < QUERIES) {
        const uint32_t query = tile * QUERIES + threadIdx.x;
        ranges[threadIdx.x] = query < n_queries ? visible(a, seq, head, query / group) : Range{UINT32_MAX, 0};
    }
    __syncthreads();
    uint32_t begin = UINT32_MAX, end = 0;
    for (uint32_t r = 0; r < QUERIES; r++) begin = min(begin, ranges[r].begin), end = max(end, ranges[r].end);
    if (begin < end) {
        const uint32_t span = ((end - begin + a.n_splits - 1) / a.n_splits + 31) / 32 * 32;
        const uint64_t from = begin + uint64_t(split) * span;
        end = uint32_t(min(uint64_t(end), from + span));
        begin = uint32_t(min(from, uint64_t(end)));
    }

    constexpr uint32_t PER = 16 / sizeof(T);
    const bool sixteens = in_sixteens<T>(seq.k, dk);
    const uint32_t mine = lane() % 4; // the query whose logits this lane ends with
    const Range range = ranges[mine];
    const bool capped = a.softcap > 0.0f;
    const float factor = capped ? a.scale / a.softcap : a.scale * LOG2_E;
    float most = -INFINITY, sum = 0.0f, poison = 0.0f, acc[QUERIES][COLUMNS] = {};
    for (uint64_t first = uint64_t(begin) + 32 * warp(); first < end; first += 32 * WARPS) {
        float x[4];
#pragma unroll
        for (uint32_t pass = 0; pass < 4; pass++) {
            const uint64_t row = first + pass * 8 + lane() / 4;
            float dots[QUERIES] = {};
            if (row < end) {
                const T *const key = row_of<const T>(seq.k, head, row);
                if (sixteens) {
                    for (uint32_t c = mine * PER; c < dk; c += 4 * PER) {
                        const uint4 words = *reinterpret_cast<const uint4 *>(key + c);
                        T k[PER];
                        memcpy(static_cast<void *>(k), &words, 16);
#pragma unroll
                        for (uint32_t i = 0; i < PER; i++)
#pragma unroll
                            for (uint32_t r = 0; r < QUERIES; r++) dots[r] += q[r * dk_padded + c + i] * widen(k[i]);
                    }
                } else {
                    for (uint32_t c = mine; c < dk; c += 4)
                        for (uint32_t r = 0; r < QUERIES; r++) dots[r] += q[r * dk_padded + c] * widen(key[int64_t(c) * seq.k.stride_dim]);
                }
            }
            x[pass] = 0.0f;
#pragma unroll
            for (uint32_t r = 0; r < QUERIES; r++) {
                dots[r] += __shfl_xor_sync(ALL, dots[r], 1);
                dots[r] += __shfl_xor_sync(ALL, dots[r], 2);
                if (r == mine) x[pass] = dots[r];
            }
            poison += x[pass] * 0.0f;
            x[pass] *= factor;
            if (capped) x[pass] = a.softcap * LOG2_E * tanhf(x[pass]);
            if (row < range.begin || row >= min(range.end, end)) x[pass] = -INFINITY;
        }
        float now = most;
        for (uint32_t pass = 0; pass < 4; pass++) now = fmaxf(now, x[pass]);
        for (int by = 4; by < 32; by *= 2) now = fmaxf(now, __shfl_xor_sync(ALL, now, by));
        const float shrink = now > -INFINITY ? exp2_fast(most - now) : 1.0f;
        float total = 0.0f;
        for (uint32_t pass = 0; pass < 4; pass++) {
            x[pass] = now > -INFINITY ? exp2_fast(x[pass] - now) : 0.0f;
            total += x[pass];
        }
        for (int by = 4; by < 32; by *= 2) total += __shfl_xor_sync(ALL, total, by);
        most = now;
        sum = sum * shrink + total;
#pragma unroll
        for (uint32_t r = 0; r < QUERIES; r++) {
            const float by = __shfl_sync(ALL, shrink, r);
#pragma unroll
            for (uint32_t c = 0; c < COLUMNS; c++) acc[r][c] *= by;
        }
#pragma unroll
        for (uint32_t pass = 0; pass < 4; pass++)
            for (uint32_t key = 0; key < 8; key++) {
                const uint64_t row = first + pass * 8 + key;
                if (row >= end) break; // for all lanes alike
                const T *const value = row_of<const T>(seq.v, head, row);
                float weights[QUERIES];
#pragma unroll
                for (uint32_t r = 0; r < QUERIES; r++) weights[r] = __shfl_sync(ALL, x[pass], key * 4 + r);
#pragma unroll
                for (uint32_t c = 0; c < COLUMNS; c++) {
                    if (c * 32 + lane() >= dv) continue;
                    const float v = widen(value[int64_t(c * 32 + lane()) * seq.v.stride_dim]);
#pragma unroll
                    for (uint32_t r = 0; r < QUERIES; r++) acc[r][c] += weights[r] * v;
                }
            }
    }
    if (__any_sync(ALL, poison != 0.0f) && lane() == 0) report(a.status, seq.layer, blockIdx.z, head, LAVA_CUDA_BAD_QK);

    constexpr uint32_t WIDTH = 32 * COLUMNS + 2;
    float *const own = merged + warp() * QUERIES * WIDTH;
    for (uint32_t r = 0; r < QUERIES; r++)
        for (uint32_t c = 0; c < COLUMNS; c++) own[r * WIDTH + 2 + c * 32 + lane()] = acc[r][c];
    if (lane() < QUERIES) own[lane() * WIDTH] = most, own[lane() * WIDTH + 1] = sum;
    __syncthreads();
    for (uint32_t r = 0; r < QUERIES; r++) {
        const auto part = [&](uint32_t w) { return merged + (w * QUERIES + r) * WIDTH; };
        float largest = -INFINITY;
        for (uint32_t w = 0; w < WARPS; w++) largest = fmaxf(largest, part(w)[0]);
        float *const to = partial_of(a, blockIdx.z, head, split, tile * QUERIES + r);
        for (uint32_t c = threadIdx.x; c < dv + 1; c += blockDim.x) {
            float total = 0.0f;
            for (uint32_t w = 0; w < WARPS; w++)
                if (part(w)[0] > -INFINITY) total += part(w)[1 + c] * exp2_fast(part(w)[0] - largest);
            to[1 + c] = total;
        }
        if (threadIdx.x == 0) to[0] = largest;
    }
}

} // namespace lava

LAVA_KERNEL(LAVA_CUDA_ATTEND_THREADS) lava_attend_merge(const __grid_constant__ lava_cuda_attend_args a) {
    using namespace lava;
    const uint32_t query = blockIdx.x, head = blockIdx.y, group = a.n_q_heads / a.n_kv_heads;
    const lava_cuda_attend_seq &seq = a.seq[blockIdx.z];
    const uint32_t h = head * group + query % group, t = query / group;
    const auto part = [&](uint32_t split) { return partial_of(a, blockIdx.z, head, split, query); };
    float most = -INFINITY, sum = 0.0f;
    for (uint32_t s = 0; s < a.n_splits; s++) most = fmaxf(most, part(s)[0]);
    for (uint32_t s = 0; s < a.n_splits; s++)
        if (part(s)[0] > -INFINITY) sum += part(s)[1] * exp2f(part(s)[0] - most);
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    bool bad = false;
    for (uint32_t c = threadIdx.x; c < a.head_dim_v; c += blockDim.x) {
        float x = 0.0f;
        for (uint32_t s = 0; s < a.n_splits; s++)
            if (part(s)[0] > -INFINITY) x += part(s)[2 + c] * exp2f(part(s)[0] - most);
        bad |= !is_finite(x);
        row_of<float>(seq.out, h, t)[int64_t(c) * seq.out.stride_dim] = x * inverse;
    }
    if (bad) report(a.status, seq.layer, blockIdx.z, head, LAVA_CUDA_BAD_V);
    if (threadIdx.x == 0 && seq.lse.data != nullptr) *row_of<float>(seq.lse, h, t) = sum > 0.0f ? (most + log2f(sum)) * LN_2 : -INFINITY;
}

#define LAVA_ATTEND(name, T, COLUMNS)                                                                                     \
    LAVA_KERNEL(LAVA_CUDA_ATTEND_THREADS) lava_attend_##name##_##COLUMNS(const __grid_constant__ lava_cuda_attend_args a) { \
        lava::attend<T, COLUMNS>(a);                                                                                      \
    }
#define LAVA_ATTEND_COLUMNS(name, T)                                                                                      \
    LAVA_ATTEND(name, T, 2)                                                                                               \
    LAVA_ATTEND(name, T, 3)                                                                                               \
    LAVA_ATTEND(name, T, 4)                                                                                               \
    LAVA_ATTEND(name, T, 8)                                                                                               \
    LAVA_ATTEND(name, T, 18)
LAVA_ATTEND_COLUMNS(f16, __half)
LAVA_ATTEND_COLUMNS(bf16, __nv_bfloat16)
LAVA_ATTEND_COLUMNS(f32, float)
