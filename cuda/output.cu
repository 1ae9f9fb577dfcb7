// What a score takes for attention with LAVA_VALUE_OUTPUT: by how much a query head's output changes if one entry goes alone and the
// others take its share. Source: CAOTE, arXiv 2504.14051, theorem 3.2.
//
//     score_values     for each range of tokens and query head: the sum of a_i v_i
//     score_output     their merge in the order of the ranges: the head's output o
//     score_change     w a_i becomes w a_i |o - v_i| / (1 - a_i)
//
// They run between score_columns, which leaves w a_i of all tokens, the window's too, and score_pool. The values are read twice, by eight
// query heads together. Every sum has an order that depends on the sequence alone.
#include "score.cuh"

namespace lava {

constexpr uint32_t THREADS = LAVA_SCORE_OUTPUT_THREADS;
/// Query heads that go over the values together.
constexpr uint32_t TOGETHER = 8;

/// The sum of a range's values, weighed, for one query head: [heads, ranges, group, head_dim_v].
__device__ inline float *partial_output(const Head &head, uint32_t range) {
    const lava_score_args &args = head.args;
    return args.partial_outputs + (head.flat() * lava_score_ranges(&args) + range) * lava_score_output_len(&args);
}

/// `heads` query heads from `first_head` of the group on. Where rows are short, threads of one dimension share the tokens.
///
/// Chains of f32 are no longer than a tile; tiles meet in f64. weights: [KEYS, TOGETHER]. sums: [THREADS].
template <class T>
__device__ void weigh_values(const Range &range, uint32_t first_head, uint32_t heads, float *weights, double *sums) {
    const lava_device_tensor &v = range.sequence.v;
    const uint32_t dim = range.args.head_dim_v, rounds = (dim + THREADS - 1) / THREADS, width = (dim + rounds - 1) / rounds;
    const uint32_t shares = THREADS / width, share = threadIdx.x / width;
    float *const to = partial_output(range, range.number) + uint64_t(first_head) * dim;
    for (uint32_t first_dim = 0; first_dim < dim; first_dim += width) {
        const uint32_t c = first_dim + threadIdx.x % width;
        const bool works = share < shares && c < dim;
        double totals[TOGETHER] = {};
        for (uint32_t first = range.first; first < range.end; first += KEYS) {
            const uint32_t n = min(KEYS, range.end - first);
            __syncthreads(); // the last weights are no longer read
            for (uint32_t i = threadIdx.x; i < KEYS * TOGETHER; i += THREADS) {
                const uint32_t h = i / KEYS, token = i % KEYS;
                const bool real = h < heads && token < n;
                weights[token * TOGETHER + h] = real ? range.columns(first_head + h)[first + token] / range.args.window : 0;
            }
            __syncthreads();
            if (!works) continue;
            const T *const column = row_of<const T>(v, range.head, first) + c * v.stride_dim;
            float parts[TOGETHER] = {};
#pragma unroll 8
            for (uint32_t i = share; i < n; i += shares) {
                const float x = widen(column[i * v.stride_token]);
#pragma unroll
                for (uint32_t h = 0; h < TOGETHER; h++) parts[h] = fmaf(weights[i * TOGETHER + h], x, parts[h]);
            }
#pragma unroll
            for (uint32_t h = 0; h < TOGETHER; h++) totals[h] += double(parts[h]);
        }
#pragma unroll
        for (uint32_t h = 0; h < TOGETHER; h++) {
            if (h >= heads) break;
            __syncthreads(); // the last head's sums are no longer read
            sums[threadIdx.x] = totals[h];
            __syncthreads();
            if (share != 0 || c >= dim) continue;
            double sum = 0;
            for (uint32_t s = 0; s < shares; s++) sum += sums[s * width + threadIdx.x];
            to[uint64_t(h) * dim + c] = float(sum);
        }
    }
}

__device__ inline void values(const lava_score_args &args) {
    LAVA_SHARED(float, weights, KEYS * TOGETHER);
    LAVA_SHARED(double, sums, THREADS);
    const Head head(args, blockIdx.z, blockIdx.y);
    const Range range(head, blockIdx.x, head.n_tokens());
    if (head.prefix() == 0 || range.first == range.end) return;
    for (uint32_t first = 0; first < head.group(); first += TOGETHER) {
        const uint32_t heads = min(TOGETHER, head.group() - first);
        switch (head.sequence.v.dtype) {
        case 0: weigh_values<float>(range, first, heads, weights, sums); break;
        case 1: weigh_values<__half>(range, first, heads, weights, sums); break;
        default: weigh_values<__nv_bfloat16>(range, first, heads, weights, sums);
        }
    }
}

/// 256 numbers of a KV head's outputs, [heads, group, head_dim_v].
__device__ inline void output(const lava_score_args &args) {
    const Head head(args, blockIdx.z, blockIdx.y);
    const uint64_t i = uint64_t(blockIdx.x) * THREADS + threadIdx.x, n = lava_score_output_len(&args);
    if (head.prefix() == 0 || i >= n) return;
    const uint32_t ranges = lava_score_ranges_of(&args, head.n_tokens());
    double sum = 0;
    for (uint32_t range = 0; range < ranges; range++) sum += double(partial_output(head, range)[i]);
    args.outputs[head.flat() * n + i] = float(sum);
}

/// Pieces of a value that one thread takes at a time: 16 bytes, or an element of any type at any stride.
template <class T> struct Piece {
    static constexpr uint32_t N = 16 / sizeof(T);
    __device__ static void load(float (&x)[N], const Range &range, uint32_t token, uint32_t c) {
        load_piece(x, row_of<const T>(range.sequence.v, range.head, token) + c);
    }
};
struct Element {
    static constexpr uint32_t N = 1;
    __device__ static void load(float (&x)[N], const Range &range, uint32_t token, uint32_t c) {
        x[0] = element(range.sequence.v, range.head, token, c);
    }
};

/// A range's entries, by eight threads a row. outputs: [heads, head_dim_v], of query heads from `first_head` of the group on.
template <class Piece>
__device__ void change(const Range &range, uint32_t first_head, uint32_t heads, const float *outputs) {
    constexpr uint32_t N = Piece::N, AT_ONCE = 4; // rows on their way per eight threads
    constexpr float LEAST = 1.0f / (1 << 24);     // an entry that has all attention is the output: 0 over this
    const uint32_t dim = range.args.head_dim_v, row = threadIdx.x / 8, own = threadIdx.x % 8, step = THREADS / 8;
    bool faulty = false;
    // All threads of a warp go round equally often: they exchange sums.
    for (uint32_t first = range.first; first < range.end; first += step * AT_ONCE) {
        float squares[AT_ONCE][TOGETHER] = {}, norms[AT_ONCE] = {};
        for (uint32_t c = own * N; c < dim; c += 8 * N) {
            float x[AT_ONCE][N];
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; i++) {
                Piece::load(x[i], range, min(first + i * step + row, range.end - 1), c);
#pragma unroll
                for (uint32_t e = 0; e < N; e++) norms[i] += fabsf(x[i][e]);
            }
#pragma unroll
            for (uint32_t h = 0; h < TOGETHER; h++) {
                if (h >= heads) break;
#pragma unroll
                for (uint32_t e = 0; e < N; e++) {
                    const float o = outputs[h * dim + c + e];
#pragma unroll
                    for (uint32_t i = 0; i < AT_ONCE; i++) squares[i][h] = fmaf(o - x[i][e], o - x[i][e], squares[i][h]);
                }
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t token = first + i * step + row;
            for (int distance = 1; distance < 8; distance *= 2) norms[i] += __shfl_xor_sync(ALL, norms[i], distance);
            faulty |= !(norms[i] < INFINITY);
            const float sum = sum_over_eight<4>(squares[i]);
            if (own >= heads || token >= range.end || token >= range.prefix()) continue;
            float &attention = range.columns(first_head + own)[token];
            attention *= sqrtf(sum) / fmaxf(1 - attention / range.args.window, LEAST);
        }
    }
    // As the CPU says it: of every token, and of a norm that overflows.
    if (faulty) range.fault(LAVA_FAULT_V);
}

__device__ inline void changes(const lava_score_args &args) {
    LAVA_SHARED(float, outputs, TOGETHER * 576); // no head_dim_v is larger
    const Head head(args, blockIdx.z, blockIdx.y);
    const Range range(head, blockIdx.x, head.n_tokens());
    if (head.prefix() == 0 || range.first == range.end) return;
    const lava_device_tensor &v = head.sequence.v;
    const float *const all = args.outputs + head.flat() * lava_score_output_len(&args);
    for (uint32_t first = 0; first < head.group(); first += TOGETHER) {
        const uint32_t heads = min(TOGETHER, head.group() - first);
        __syncthreads(); // the last outputs are no longer read
        for (uint32_t i = threadIdx.x; i < heads * args.head_dim_v; i += THREADS) outputs[i] = all[uint64_t(first) * args.head_dim_v + i];
        __syncthreads();
        switch (lava_rows_are_aligned(&v, args.head_dim_v) ? v.dtype : -1) {
        case 0: change<Piece<float>>(range, first, heads, outputs); break;
        case 1: change<Piece<__half>>(range, first, heads, outputs); break;
        case 2: change<Piece<__nv_bfloat16>>(range, first, heads, outputs); break;
        default: change<Element>(range, first, heads, outputs);
        }
    }
}

} // namespace lava

extern "C" __global__ void __launch_bounds__(256, 3) lava_score_values(const __grid_constant__ lava_score_args args) { lava::values(args); }
LAVA_KERNEL(256) lava_score_output(const __grid_constant__ lava_score_args args) { lava::output(args); }
LAVA_KERNEL(256) lava_score_change(const __grid_constant__ lava_score_args args) { lava::changes(args); }
