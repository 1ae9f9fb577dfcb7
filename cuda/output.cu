// What a score takes for attention with LAVA_VALUE_OUTPUT: by how much a query head's output changes if one entry alone is evicted and the
// others take its share. Source: CAOTE, arXiv 2504.14051, theorem 3.2.
//
//     score_values     for each range of tokens and query head: the sum of a_i v_i, without the entry with the largest attention
//     score_output     their merge in the order of the ranges: the head's output o
//     score_change     w a_i becomes w a_i |o - v_i| / (1 - a_i)
//
// An entry with nearly all the attention is nearly the output: 1 - a_i and o - v_i then cancel. Only the largest can be such an entry, so
// the others are summed by themselves: with their mean m the largest becomes w a_i |m - v_i|.
//
// They run between score_columns, which leaves w a_i of all tokens, the window's too, and score_pool. The values are read twice, by eight
// query heads together. Every sum has an order that depends on the sequence alone.
#include "score.cuh"

namespace lava {

constexpr uint32_t THREADS = LAVA_SCORE_OUTPUT_THREADS;
/// Query heads that use the values together.
constexpr uint32_t TOGETHER = 8;

/// What a range leaves for its KV head's query heads: see lava_score_partial_output_len.
struct Partial {
    float *sums, *rest, *largest;
    uint32_t *token;

    __device__ Partial(const Head &head, uint32_t range) {
        const lava_score_args &args = head.args;
        sums = args.partial_outputs + (head.flat() * lava_score_ranges(&args) + range) * lava_score_partial_output_len(&args);
        rest = sums + lava_score_output_len(&args), largest = rest + head.group();
        token = reinterpret_cast<uint32_t *>(largest + head.group());
    }
};
/// And what all ranges leave: see lava_score_whole_output_len.
struct Whole {
    float *outputs, *means, *all;
    uint32_t *token;

    __device__ explicit Whole(const Head &head) {
        const lava_score_args &args = head.args;
        outputs = args.outputs + head.flat() * lava_score_whole_output_len(&args);
        means = outputs + lava_score_output_len(&args), all = means + lava_score_output_len(&args);
        token = reinterpret_cast<uint32_t *>(all + head.group());
    }
};

/// Finds a range's entry with the largest attention for each of `heads` query heads, one for each warp, and sums up the others' attention.
/// largest: [TOGETHER], receives the tokens.
__device__ inline void find_largest(const Range &range, uint32_t first_head, uint32_t heads, uint32_t *largest) {
    if (warp() >= heads) return;
    const float *const attention = range.columns(first_head + warp());
    float most = -1;
    uint32_t token = range.first;
    for (uint32_t i = range.first + lane(); i < range.end; i += 32)
        if (attention[i] > most) most = attention[i], token = i;
    for (int distance = 16; distance > 0; distance /= 2) {
        const float its = __shfl_xor_sync(ALL, most, distance);
        const uint32_t its_token = __shfl_xor_sync(ALL, token, distance);
        if (its > most || (its == most && its_token < token)) most = its, token = its_token;
    }
    double rest = 0;
    for (uint32_t i = range.first + lane(); i < range.end; i += 32)
        if (i != token) rest += double(attention[i]);
    rest = warp_sum(rest);
    if (lane() != 0) return;
    const Partial to(range, range.number);
    largest[warp()] = to.token[first_head + warp()] = token;
    to.largest[first_head + warp()] = attention[token] / range.args.window;
    to.rest[first_head + warp()] = float(rest / range.args.window);
}

/// `heads` query heads from `first_head` of the group on. Where rows are short, threads of one dimension share the tokens.
///
/// Chains of f32 are no longer than a tile; tiles meet in f64. largest: [TOGETHER], tokens that are left out. weights: [KEYS, TOGETHER].
/// sums: [THREADS].
template <class T>
__device__ void weigh_values(const Range &range, uint32_t first_head, uint32_t heads, const uint32_t *largest, float *weights, double *sums) {
    const lava_device_tensor &v = range.sequence.v;
    const uint32_t dim = range.args.head_dim_v, rounds = (dim + THREADS - 1) / THREADS, width = (dim + rounds - 1) / rounds;
    const uint32_t shares = THREADS / width, share = threadIdx.x / width;
    float *const to = Partial(range, range.number).sums + uint64_t(first_head) * dim;
    for (uint32_t first_dim = 0; first_dim < dim; first_dim += width) {
        const uint32_t c = first_dim + threadIdx.x % width;
        const bool works = share < shares && c < dim;
        double totals[TOGETHER] = {};
        for (uint32_t first = range.first; first < range.end; first += KEYS) {
            const uint32_t n = min(KEYS, range.end - first);
            __syncthreads(); // the last weights are no longer read
            for (uint32_t i = threadIdx.x; i < KEYS * TOGETHER; i += THREADS) {
                const uint32_t h = i / KEYS, token = i % KEYS;
                const bool real = h < heads && token < n && first + token != largest[h];
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
    LAVA_SHARED(uint32_t, largest, TOGETHER);
    const Head head(args, blockIdx.z, blockIdx.y);
    const Range range(head, blockIdx.x, head.n_tokens());
    if (head.prefix() == 0 || range.first == range.end) return;
    for (uint32_t first = 0; first < head.group(); first += TOGETHER) {
        const uint32_t heads = min(TOGETHER, head.group() - first);
        __syncthreads(); // the last tokens are no longer read
        find_largest(range, first, heads, largest);
        __syncthreads();
        switch (head.sequence.v.dtype) {
        case 0: weigh_values<float>(range, first, heads, largest, weights, sums); break;
        case 1: weigh_values<__half>(range, first, heads, largest, weights, sums); break;
        default: weigh_values<__nv_bfloat16>(range, first, heads, largest, weights, sums);
        }
    }
}

/// 256 numbers of a KV head's outputs.
__device__ inline void output(const lava_score_args &args) {
    const Head head(args, blockIdx.z, blockIdx.y);
    const uint64_t i = uint64_t(blockIdx.x) * THREADS + threadIdx.x, n = lava_score_output_len(&args);
    if (head.prefix() == 0 || i >= n) return;
    const uint32_t ranges = lava_score_ranges_of(&args, head.n_tokens()), h = uint32_t(i / args.head_dim_v), c = uint32_t(i % args.head_dim_v);
    const auto value = [&](uint32_t token) { return double(element(head.sequence.v, head.head, token, c)); };
    // The largest of all so far, and everything else.
    float most = Partial(head, 0).largest[h];
    uint32_t token = Partial(head, 0).token[h];
    double sum = 0, rest = 0;
    for (uint32_t range = 0; range < ranges; range++) {
        const Partial its(head, range);
        sum += double(its.sums[i]), rest += double(its.rest[h]);
        if (range == 0) continue;
        const bool is_more = its.largest[h] > most;
        const float less = is_more ? most : its.largest[h];
        // One without any may not be a number.
        if (less > 0) sum += double(less) * value(is_more ? token : its.token[h]), rest += double(less);
        if (is_more) most = its.largest[h], token = its.token[h];
    }
    const Whole to(head);
    const double all = rest + double(most);
    to.outputs[i] = float((most > 0 ? sum + double(most) * value(token) : sum) / all);
    to.means[i] = rest > 0 ? float(sum / rest) : 0.0f;
    if (c == 0) to.all[h] = float(all), to.token[h] = token;
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

/// The entry with the largest attention of each of `heads` query heads, one for each warp, if it is in the range.
__device__ inline void change_largest(const Range &range, uint32_t first_head, uint32_t heads) {
    const Whole whole(range);
    const uint32_t h = first_head + warp(), dim = range.args.head_dim_v;
    if (warp() >= heads) return;
    const uint32_t token = whole.token[h];
    if (token < range.first || token >= min(range.end, range.prefix())) return;
    const float *const mean = whole.means + uint64_t(h) * dim;
    float squares = 0;
    for (uint32_t c = lane(); c < dim; c += 32) {
        const float apart = mean[c] - element(range.sequence.v, range.head, token, c);
        squares = fmaf(apart, apart, squares);
    }
    squares = warp_sum(squares);
    float &attention = range.columns(h)[token];
    if (lane() == 0) attention = attention > 0 ? attention * (sqrtf(squares) / whole.all[h]) : 0;
}

/// A range's other entries, by eight threads per row. outputs: [heads, head_dim_v], of query heads from `first_head` of the group on.
template <class Piece>
__device__ void change(const Range &range, uint32_t first_head, uint32_t heads, const float *outputs) {
    constexpr uint32_t N = Piece::N, AT_ONCE = 4; // rows on their way per eight threads
    const uint32_t dim = range.args.head_dim_v, row = threadIdx.x / 8, own = threadIdx.x % 8, step = THREADS / 8;
    const Whole whole(range);
    const float all = own < heads ? whole.all[first_head + own] : 1.0f;
    const uint32_t largest = own < heads ? whole.token[first_head + own] : 0;
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
            if (own >= heads || token >= range.end || token >= range.prefix() || token == largest) continue;
            float &attention = range.columns(first_head + own)[token];
            attention = attention > 0 ? attention * (sqrtf(sum) / (all - attention / range.args.window)) : 0;
        }
    }
    change_largest(range, first_head, heads);
    // As the CPU says it: of every token, and of a norm that overflows.
    if (faulty) range.fault(LAVA_FAULT_V);
}

__device__ inline void changes(const lava_score_args &args) {
    LAVA_SHARED(float, outputs, TOGETHER * 576); // no head_dim_v is larger
    const Head head(args, blockIdx.z, blockIdx.y);
    const Range range(head, blockIdx.x, head.n_tokens());
    if (head.prefix() == 0 || range.first == range.end) return;
    const lava_device_tensor &v = head.sequence.v;
    const float *const all = Whole(head).outputs;
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
