// What score.cu, its values, output.cu and pool.cu share: a sequence's head, a range of its keys, and who sees what.
#pragma once
#include "attention.cuh"

namespace lava {

constexpr uint32_t KEYS = LAVA_SCORE_KEYS, ROWS = LAVA_SCORE_ROWS;

// As LAVA_ATTENTION_, LAVA_GROUP_, LAVA_POOL_, LAVA_VALUE_ and LAVA_VALUES_ of lava.h.
constexpr int32_t SQUARED = 1, MEAN_VARIANCE = 2, EXPONENTIAL = 3, RECENCY = 4, SPREAD = LAVA_SCORE_SPREAD;
constexpr int32_t GROUP_MAX = 0, GROUP_MEAN = 1, POOL_MAX = 0, POOL_AVG = 1;
constexpr int32_t VALUE_HEAD_MAX = 0, VALUE_TOKEN = 2, VALUES_ALL = 1;

/// A sequence and one of its KV heads.
struct Head {
    const lava_score_args &args;
    const lava_score_sequence &sequence;
    uint32_t index, head;

    __device__ Head(const lava_score_args &args, uint32_t index, uint32_t head)
        : args(args), sequence(LAVA_ITEM(args, index)), index(index), head(head) {}

    __device__ uint32_t n_tokens() const { return sequence.n_tokens; }
    __device__ uint32_t prefix() const { return n_tokens() > args.window ? n_tokens() - args.window : 0; }
    /// The first token of the prefix that a later query can see. Those before it are dead: they score 0 and count nowhere.
    __device__ uint32_t first_live() const {
        return args.sliding_window == 0 ? 0 : min(prefix(), n_tokens() + 1 - min(n_tokens() + 1, args.sliding_window));
    }
    __device__ uint32_t group() const { return args.n_q_heads / args.n_kv_heads; }
    /// Of all heads of all sequences, this one.
    __device__ uint64_t flat() const { return uint64_t(index) * args.n_kv_heads + head; }
    __device__ uint32_t padded() const { return (args.window + ROWS - 1) / ROWS * ROWS; }
    __device__ uint32_t row_tiles() const { return group() * padded() / ROWS; }
    __device__ void fault(uint32_t what) const { report(args.status, args.layer, index, head, what); }
    __device__ float *columns(uint32_t row) const {
        const uint64_t rows = lava_score_column_rows(&args);
        return args.columns + (flat() * rows + row) * lava_score_max_columns(&args);
    }
    /// Keys whose attention is summed.
    __device__ uint32_t n_columns() const { return lava_score_has_output(&args) ? n_tokens() : prefix(); }

    /// Whether all rows see all keys of a tile.
    __device__ bool all_see(uint32_t first_key) const {
        const bool earlier = uint64_t(first_key) + KEYS <= uint64_t(prefix()) + 1;
        return earlier && (args.sliding_window == 0 || uint64_t(first_key) + args.sliding_window >= n_tokens());
    }
    /// The keys that row `j` of a window sees: the first, and how many.
    __device__ uint2 seen(uint32_t j) const {
        if (j >= args.window) return uint2{0, 0};
        const uint32_t up_to = prefix() + j + 1, hidden = args.sliding_window == 0 ? 0 : up_to - min(up_to, args.sliding_window);
        return uint2{hidden, up_to - hidden};
    }
};

/// A head and a range of its keys.
struct Range : Head {
    uint32_t number, first, end;

    __device__ Range(const Head &head, uint32_t number, uint32_t n_keys) : Head(head), number(number) {
        const uint32_t keys = lava_score_range_keys(&args, n_tokens()), before = n_keys / keys;
        first = number <= before ? number * keys : n_keys;
        end = number < before ? first + keys : n_keys;
    }
    __device__ uint32_t tiles() const { return (end - first + KEYS - 1) / KEYS; }
};

/// Sums of `N` numbers over the eight lanes whose numbers differ in the bits FIRST, FIRST / 2 and FIRST / 4. With N = 8 each lane takes
/// that of the number which these bits are, with N = 4 that of the upper two. Each exchange halves what is left to be summed.
template <int FIRST, int N> __device__ float sum_over_eight(float (&x)[N]) {
    const uint32_t lane = threadIdx.x % 32;
    int n = N;
#pragma unroll
    for (int distance = FIRST; distance >= FIRST / 4; distance /= 2) {
        if (n == 1) {
            x[0] += __shfl_xor_sync(ALL, x[0], distance);
            continue;
        }
        n /= 2;
        const bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (i >= n) break;
            const float given = upper ? x[i] : x[i + n], kept = upper ? x[i + n] : x[i];
            x[i] = kept + __shfl_xor_sync(ALL, given, distance);
        }
    }
    return x[0];
}

} // namespace lava
