// Stages 1 to 5: queries of the window, keys and values → one f32 score per prefix entry.
//
//     rows      for each query row r and part of the keys: max and Σ 2^(x − max) of x = scale · log2(e) · q_r·k_i
//     lse       lse[r] = log2 Σ 2^x, over the parts in order; or the caller's
//     columns   raw[i] = max or Σ over the group of Σ_j 2^(x − lse[r(h, j)])
//     pool      S[i] = vmax · pool(raw)[i] / window
//
// K goes by twice (once if the log-sum-exp is given), V once; Q's rows stay on chip.
//
// A warp works by itself: it streams slices of 8 to 32 keys through two buffers of its own, takes a slice into registers as
// the right side of the tensor cores' product, and goes through all query rows with it. So keys are read from shared memory once,
// no warp waits for another, and a column's sum over a head's rows stays in registers. Rows are laid out head by head, each head
// filled up to 16 rows with zeros whose log-sum-exp is +∞: nothing they look at gets any attention.
//
// f32 has no tensor cores that keep f32: there each thread computes the same four products from shared memory.
#include <cstring>

#include "device.cuh"

namespace lava {

/// Sizes that every kernel of this file derives from the arguments.
struct Rows {
    uint32_t group, per_head, all, prefix, span;
    __device__ Rows(const lava_cuda_score_args &a, uint32_t n_tokens)
        : group(a.n_q_heads / a.n_kv_heads), per_head(lava_cuda_score_head_rows(&a)), all(lava_cuda_score_rows(&a)),
          prefix(lava_cuda_score_prefix(n_tokens, a.window)), span(lava_cuda_score_span(n_tokens)) {}
};

/// The workspace's part of a sequence's KV head.
struct Memory {
    float2 *partial;  // [LAVA_CUDA_MAX_SPLITS, rows]: maximum, sum
    float *lse;       // [rows]
    float *value_max; // [LAVA_CUDA_MAX_SPLITS]
    float *raw;       // [1 or group, max_prefix]
    float *open;      // [max_prefix]
    __device__ Memory(const lava_cuda_score_args &a, uint32_t seq, uint32_t head) {
        const lava_cuda_score_layout l = lava_cuda_score_place(&a);
        const uint64_t at = uint64_t(seq) * a.n_kv_heads + head, rows = lava_cuda_score_rows(&a);
        const uint64_t raw_rows = lava_cuda_score_reduce_first(&a) ? 1 : a.n_q_heads / a.n_kv_heads;
        partial = reinterpret_cast<float2 *>(a.workspace + l.partial) + at * LAVA_CUDA_MAX_SPLITS * rows;
        lse = reinterpret_cast<float *>(a.workspace + l.lse) + at * rows;
        value_max = reinterpret_cast<float *>(a.workspace + l.value_max) + at * LAVA_CUDA_MAX_SPLITS;
        raw = reinterpret_cast<float *>(a.workspace + l.raw) + at * raw_rows * a.max_prefix;
        open = reinterpret_cast<float *>(a.workspace + l.open) + at * a.max_prefix;
    }
};

/// Copies rows of `dim` elements into shared memory by `n_threads` threads, zeros behind them and for rows without a source.
/// `source(i)` is row i's first element or NULL. The caller waits for the copies.
template <class T, class Source>
__device__ inline void load_rows(T *to, uint32_t stride, uint32_t n, uint32_t dim, uint32_t padded, bool sixteens, int64_t stride_dim,
                                 uint32_t thread, uint32_t n_threads, Source source) {
    constexpr uint32_t PER = 16 / sizeof(T);
    if (sixteens) {
        const uint32_t parts = padded / PER;
        for (uint32_t at = thread; at < n * parts; at += n_threads) {
            const uint32_t i = at / parts, c = at % parts * PER;
            const T *from = source(i);
            if (from != nullptr && c < dim) copy_async(to + i * stride + c, from + c);
            else *reinterpret_cast<uint4 *>(to + i * stride + c) = make_uint4(0, 0, 0, 0);
        }
    } else {
        for (uint32_t at = thread; at < n * padded; at += n_threads) {
            const uint32_t i = at / padded, c = at % padded;
            const T *from = source(i);
            to[i * stride + c] = from != nullptr && c < dim ? from[int64_t(c) * stride_dim] : zero<T>();
        }
    }
}

/// A slice of keys as the right side of a product. D: head_dim_k, or 0 where it is not known before.
template <class T, int D, int TILES> struct Slice {
    static constexpr int STEPS = D / 16 > 0 ? D / 16 : 1;
    uint32_t b[TILES][STEPS][2];
    const T *keys;

    /// Where a lane's row of keys begins: tiles t and t + 1, dims 0 to 7 and 8 to 15.
    __device__ static uint32_t at(uint32_t stride) {
        const uint32_t m = lane() / 8;
        return (m / 2 * 8 + lane() % 8) * stride + m % 2 * 8;
    }
    __device__ void load(const T *from, uint32_t stride) {
        keys = from;
        for (int t = 0; t < TILES && D != 0; t += 2)
            for (int s = 0; s < STEPS; s++) {
                uint32_t m[4];
                load_matrices(m, from + t * 8 * stride + at(stride) + s * 16);
                b[t][s][0] = m[0], b[t][s][1] = m[1], b[t + 1][s][0] = m[2], b[t + 1][s][1] = m[3];
            }
    }
    /// acc[t][0, 1]: row lane / 4 of `rows`, keys 8 t + 2 (lane mod 4) and the next; acc[t][2, 3]: row + 8.
    __device__ void multiply(float (&acc)[TILES][4], const T *rows, uint32_t stride, uint32_t padded) const {
        const T *row = rows + (lane() % 16) * stride + lane() / 16 * 8;
        for (int t = 0; t < TILES; t++)
            for (int i = 0; i < 4; i++) acc[t][i] = 0.0f;
        if (D != 0) {
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                uint32_t q[4];
                load_matrices(q, row + s * 16);
#pragma unroll
                for (int t = 0; t < TILES; t++) lava::multiply(T(), acc[t], q, b[t][s][0], b[t][s][1]);
            }
        } else {
            for (uint32_t c = 0; c < padded; c += 16) {
                uint32_t q[4];
                load_matrices(q, row + c);
#pragma unroll
                for (int t = 0; t < TILES; t += 2) {
                    uint32_t m[4];
                    load_matrices(m, keys + t * 8 * stride + at(stride) + c);
                    lava::multiply(T(), acc[t], q, m[0], m[1]);
                    lava::multiply(T(), acc[t + 1], q, m[2], m[3]);
                }
            }
        }
    }
};

template <int D, int TILES> struct Slice<float, D, TILES> {
    const float *keys;
    __device__ void load(const float *from, uint32_t) { keys = from; }
    __device__ void multiply(float (&acc)[TILES][4], const float *rows, uint32_t stride, uint32_t padded) const {
        const float *q0 = rows + lane() / 4 * stride, *q1 = q0 + 8 * stride;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const float *k0 = keys + (t * 8 + lane() % 4 * 2) * stride, *k1 = k0 + stride;
            float s[4] = {};
            for (uint32_t c = 0; c < padded; c += 4) {
                const float4 x0 = *reinterpret_cast<const float4 *>(q0 + c), x1 = *reinterpret_cast<const float4 *>(q1 + c);
                const float4 y0 = *reinterpret_cast<const float4 *>(k0 + c), y1 = *reinterpret_cast<const float4 *>(k1 + c);
                s[0] += x0.x * y0.x + x0.y * y0.y + x0.z * y0.z + x0.w * y0.w;
                s[1] += x0.x * y1.x + x0.y * y1.y + x0.z * y1.z + x0.w * y1.w;
                s[2] += x1.x * y0.x + x1.y * y0.y + x1.z * y0.z + x1.w * y0.w;
                s[3] += x1.x * y1.x + x1.y * y1.y + x1.z * y1.z + x1.w * y1.w;
            }
            for (int i = 0; i < 4; i++) acc[t][i] = s[i];
        }
    }
};

/// What the rows and the columns kernel have in common: the block's part of the keys against chunks of query rows.
template <class T, int D, int TILES> struct Stream {
    static constexpr uint32_t KEYS = 8 * TILES;
    const lava_cuda_score_args &a;
    const lava_cuda_score_seq &seq;
    const Rows rows;
    const uint32_t head, dim, padded, stride;
    T *queries; // [chunk_rows, stride]
    T *keys;    // [2, KEYS, stride], this warp's own
    float *row_memory; // behind them: [n_warps, chunk_rows] pairs, or [chunk_rows]
    bool q_sixteens, k_sixteens;
    float poison = 0.0f; // NaN once a product was not finite

    __device__ Stream(const lava_cuda_score_args &a, unsigned char *memory)
        : a(a), seq(a.seq[blockIdx.z]), rows(a, seq.n_tokens), head(blockIdx.y), dim(D > 0 ? D : a.head_dim_k),
          padded((dim + 15) / 16 * 16), stride(padded + 16 / sizeof(T)) {
        queries = reinterpret_cast<T *>(memory);
        T *all_keys = queries + a.chunk_rows * stride;
        keys = all_keys + warp() * 2 * KEYS * stride;
        row_memory = reinterpret_cast<float *>(all_keys + a.n_warps * 2 * KEYS * stride);
        q_sixteens = in_sixteens<T>(seq.q, dim);
        k_sixteens = in_sixteens<T>(seq.k, dim);
    }

    /// Rows `first .. first + n` of the group into shared memory, for the whole block. The caller synchronises.
    __device__ void load_queries(uint32_t first, uint32_t n) {
        load_rows(queries, stride, n, dim, padded, q_sixteens, seq.q.stride_dim, threadIdx.x, blockDim.x, [&](uint32_t i) -> const T * {
            const uint32_t h = (first + i) / rows.per_head, j = (first + i) % rows.per_head;
            return j < a.window ? row_of<T>(seq.q, head * rows.group + h, j) : nullptr;
        });
        copy_commit();
        copy_wait<0>();
    }

    __device__ void ask_for(uint32_t slice, uint32_t end, uint32_t buffer) {
        if (slice < end)
            load_rows(keys + buffer * KEYS * stride, stride, KEYS, dim, padded, k_sixteens, seq.k.stride_dim, lane(), 32u,
                      [&](uint32_t i) -> const T * { return slice + i < seq.n_tokens ? row_of<T>(seq.k, head, slice + i) : nullptr; });
        copy_commit();
    }

    /// Calls `f(first key, slice)` for each of this warp's slices of keys begin .. end.
    template <class F> __device__ void for_slices(uint32_t begin, uint32_t end, F f) {
        const uint32_t step = a.n_warps * KEYS;
        uint32_t buffer = 0;
        ask_for(begin + warp() * KEYS, end, 0);
        for (uint32_t first = begin + warp() * KEYS; first < end; first += step, buffer ^= 1) {
            ask_for(first + step, end, buffer ^ 1);
            copy_wait<1>();
            __syncwarp();
            Slice<T, D, TILES> slice;
            slice.load(keys + buffer * KEYS * stride, stride);
            f(first, slice);
            __syncwarp(); // before the next copies into this buffer
        }
        copy_wait<0>();
    }

    /// Logits over ln 2 of 16 rows, in place of the products.
    __device__ void to_logits(float (&acc)[TILES][4]) {
        const bool capped = a.softcap > 0.0f;
        const float factor = capped ? a.scale / a.softcap : a.scale * LOG2_E;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                poison += acc[t][i] * 0.0f;
                acc[t][i] *= factor;
                if (capped) acc[t][i] = a.softcap * LOG2_E * tanhf(acc[t][i]);
            }
    }

    /// Whether window query j sees key i: not later than itself, and not older than the sliding window.
    __device__ bool sees(uint32_t j, uint32_t i) const {
        const uint64_t own = uint64_t(rows.prefix) + j;
        return i <= own && i < seq.n_tokens && (a.sliding_window == 0 || i + uint64_t(a.sliding_window) > own);
    }
    __device__ void report_poison() const {
        if (__any_sync(ALL, poison != 0.0f) && lane() == 0) report(a.status, seq.layer, blockIdx.z, head, LAVA_CUDA_BAD_QK);
    }
};

template <class T, int D, int TILES> __device__ void score_rows(const lava_cuda_score_args &a) {
    LAVA_DYNAMIC_SHARED(memory);
    const lava_cuda_score_seq &seq = a.seq[blockIdx.z];
    const Rows rows(a, seq.n_tokens);
    const uint32_t begin = blockIdx.x * rows.span;
    if (rows.prefix == 0 || begin >= seq.n_tokens || seq.lse.data != nullptr) return;
    const uint32_t end = min(begin + rows.span, seq.n_tokens);
    Stream<T, D, TILES> s(a, memory);
    float2 *const own = reinterpret_cast<float2 *>(s.row_memory) + warp() * a.chunk_rows; // this warp's maxima and sums
    float2 *const partial = Memory(a, blockIdx.z, blockIdx.y).partial + uint64_t(blockIdx.x) * rows.all;

    for (uint32_t chunk = 0; chunk < rows.all; chunk += a.chunk_rows) {
        const uint32_t n = min(a.chunk_rows, rows.all - chunk);
        s.load_queries(chunk, n);
        for (uint32_t r = lane(); r < n; r += 32) own[r] = make_float2(-INFINITY, 0.0f);
        __syncthreads();
        s.for_slices(begin, end, [&](uint32_t first, const Slice<T, D, TILES> &slice) {
            const bool all_seen = first + 8 * TILES <= rows.prefix + 1 && a.sliding_window == 0;
            for (uint32_t r = 0; r < n; r += 16) {
                float x[TILES][4];
                slice.multiply(x, s.queries + r * s.stride, s.stride, s.padded);
                s.to_logits(x);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const uint32_t row = r + lane() / 4 + half * 8, j = (chunk + row) % rows.per_head;
                    float most = -INFINITY;
#pragma unroll
                    for (int t = 0; t < TILES; t++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float &logit = x[t][half * 2 + i];
                            if (!all_seen && !s.sees(j, first + t * 8 + lane() % 4 * 2 + i)) logit = -INFINITY;
                            most = fmaxf(most, logit);
                        }
                    // The four lanes of a row.
                    most = fmaxf(most, __shfl_xor_sync(ALL, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(ALL, most, 2));
                    const float2 before = own[row];
                    most = fmaxf(most, before.x);
                    float sum = 0.0f;
                    if (most > -INFINITY)
#pragma unroll
                        for (int t = 0; t < TILES; t++)
#pragma unroll
                            for (int i = 0; i < 2; i++) sum += exp2_fast(x[t][half * 2 + i] - most);
                    sum += __shfl_xor_sync(ALL, sum, 1);
                    sum += __shfl_xor_sync(ALL, sum, 2);
                    __syncwarp(); // all four have read the row
                    if (lane() % 4 == 0 && most > -INFINITY)
                        own[row] = make_float2(most, before.y * exp2_fast(before.x - most) + sum);
                }
            }
            __syncwarp();
        });
        __syncthreads();
        // The warps' statistics, in order.
        const float2 *const all = reinterpret_cast<const float2 *>(s.row_memory);
        for (uint32_t r = threadIdx.x; r < n; r += blockDim.x) {
            float2 sum = make_float2(-INFINITY, 0.0f);
            for (uint32_t w = 0; w < a.n_warps; w++) {
                const float2 part = all[w * a.chunk_rows + r];
                const float most = fmaxf(sum.x, part.x);
                if (most > -INFINITY)
                    sum = make_float2(most, sum.y * exp2_fast(sum.x - most) + part.y * exp2_fast(part.x - most));
            }
            partial[chunk + r] = sum;
        }
        __syncthreads(); // before the next chunk is loaded over this one
    }
    s.report_poison();
}

template <class T, int D, int TILES> __device__ void score_columns(const lava_cuda_score_args &a) {
    LAVA_DYNAMIC_SHARED(memory);
    const lava_cuda_score_seq &seq = a.seq[blockIdx.z];
    const Rows rows(a, seq.n_tokens);
    const uint32_t begin = blockIdx.x * rows.span;
    // With the log-sum-exp given, nobody has looked at the window's keys yet.
    const uint32_t last = seq.lse.data != nullptr ? seq.n_tokens : rows.prefix;
    if (rows.prefix == 0 || begin >= last) return;
    const uint32_t end = min(begin + rows.span, last);
    Stream<T, D, TILES> s(a, memory);
    const Memory m(a, blockIdx.z, blockIdx.y);
    const bool reduce = lava_cuda_score_reduce_first(&a), mean = a.group_reduce != 0;

    for (uint32_t chunk = 0; chunk < rows.all; chunk += a.chunk_rows) {
        const uint32_t n = min(a.chunk_rows, rows.all - chunk);
        s.load_queries(chunk, n);
        for (uint32_t r = threadIdx.x; r < n; r += blockDim.x) s.row_memory[r] = m.lse[chunk + r];
        __syncthreads();
        s.for_slices(begin, end, [&](uint32_t first, const Slice<T, D, TILES> &slice) {
            const bool all_seen = a.sliding_window == 0;
            // Each key's: reduced over the heads so far, and the sum of the head at hand.
            float done[TILES][2], open[TILES][2];
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const uint32_t key = first + t * 8 + lane() % 4 * 2 + i;
                    // Only the lanes of row 0 carry on where the last chunk ended; the others add zeros.
                    const bool carries = chunk > 0 && lane() < 4 && key < rows.prefix;
                    done[t][i] = carries && reduce ? m.raw[key] : 0.0f;
                    open[t][i] = carries && chunk % rows.per_head != 0 ? m.open[key] : 0.0f;
                }
            for (uint32_t r = 0; r < n; r += 16) {
                float x[TILES][4];
                slice.multiply(x, s.queries + r * s.stride, s.stride, s.padded);
                s.to_logits(x);
                const float lse0 = s.row_memory[r + lane() / 4], lse1 = s.row_memory[r + lane() / 4 + 8];
                const uint32_t j = (chunk + r) % rows.per_head + lane() / 4;
                const bool head_ends = (chunk + r + 16) % rows.per_head == 0;
#pragma unroll
                for (int t = 0; t < TILES; t++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint32_t key = first + t * 8 + lane() % 4 * 2 + i;
                        if (all_seen || s.sees(j, key)) open[t][i] += exp2_fast(x[t][i] - lse0);
                        if (all_seen || s.sees(j + 8, key)) open[t][i] += exp2_fast(x[t][2 + i] - lse1);
                        if (!head_ends) continue;
                        float sum = open[t][i];
                        for (int by = 4; by < 32; by *= 2) sum += __shfl_xor_sync(ALL, sum, by);
                        open[t][i] = 0.0f;
                        if (!reduce && lane() < 4 && key < rows.prefix)
                            m.raw[uint64_t((chunk + r) / rows.per_head) * a.max_prefix + key] = sum;
                        done[t][i] = mean ? done[t][i] + sum : fmaxf(done[t][i], sum);
                    }
            }
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const uint32_t key = first + t * 8 + lane() % 4 * 2 + i;
                    float sum = open[t][i];
                    if ((chunk + n) % rows.per_head != 0) {
                        for (int by = 4; by < 32; by *= 2) sum += __shfl_xor_sync(ALL, sum, by);
                        if (lane() < 4 && key < rows.prefix) m.open[key] = sum;
                    }
                    if (reduce && lane() < 4 && key < rows.prefix) m.raw[key] = done[t][i];
                }
        });
        __syncthreads(); // before the next chunk is loaded over this one
    }
    s.report_poison();
}

/// Stage 4, a part of the tokens: the largest L1 norm, by as many lanes a row as it has 16 bytes.
template <class T> __device__ void score_values(const lava_cuda_score_args &a) {
    const lava_cuda_score_seq &seq = a.seq[blockIdx.z];
    const Rows rows(a, seq.n_tokens);
    const uint32_t begin = blockIdx.x * rows.span, head = blockIdx.y, dim = a.head_dim_v;
    if (rows.prefix == 0 || begin >= seq.n_tokens) return;
    const uint32_t end = min(begin + rows.span, seq.n_tokens);
    constexpr uint32_t PER = 16 / sizeof(T);
    const bool sixteens = in_sixteens<T>(seq.v, dim);
    const uint32_t parts = sixteens ? dim / PER : dim;
    uint32_t lanes = 1;
    while (lanes < parts && lanes < 32) lanes *= 2;
    const uint32_t at_once = 32 / lanes, mine = lane() % lanes;
    float most = 0.0f;
    bool bad = false;
    for (uint32_t step = begin + warp() * at_once; step < end; step += blockDim.x / 32 * at_once) {
        const uint32_t token = step + lane() / lanes;
        float norm = 0.0f;
        if (token < end) {
            const T *row = row_of<T>(seq.v, head, token);
            for (uint32_t part = mine; part < parts; part += lanes) {
                if (sixteens) {
                    const uint4 words = *reinterpret_cast<const uint4 *>(row + part * PER);
                    T elements[PER];
                    memcpy(static_cast<void *>(elements), &words, 16);
#pragma unroll
                    for (uint32_t i = 0; i < PER; i++) norm += fabsf(widen(elements[i]));
                } else {
                    norm += fabsf(widen(row[int64_t(part) * seq.v.stride_dim]));
                }
            }
        }
        for (uint32_t by = lanes / 2; by > 0; by /= 2) norm += __shfl_xor_sync(ALL, norm, by);
        bad |= !is_finite(norm);
        if (token < rows.prefix || a.value_span != 0) most = fmaxf(most, norm);
    }
    if (__any_sync(ALL, bad) && lane() == 0) report(a.status, seq.layer, blockIdx.z, head, LAVA_CUDA_BAD_V);
    LAVA_SHARED(float, warps, LAVA_CUDA_VALUE_THREADS / 32);
    most = warp_max(most);
    if (lane() == 0) warps[warp()] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < blockDim.x / 32; w++) most = fmaxf(most, warps[w]);
        Memory(a, blockIdx.z, head).value_max[blockIdx.x] = most;
    }
}

} // namespace lava

/// Each row's log-sum-exp over ln 2, from the parts in order or from the caller.
LAVA_KERNEL(LAVA_CUDA_LSE_THREADS) lava_score_lse(const __grid_constant__ lava_cuda_score_args a) {
    using namespace lava;
    const lava_cuda_score_seq &seq = a.seq[blockIdx.z];
    const Rows rows(a, seq.n_tokens);
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y;
    if (rows.prefix == 0 || row >= rows.all) return;
    const Memory m(a, blockIdx.z, head);
    const uint32_t h = row / rows.per_head, j = row % rows.per_head;
    float lse = INFINITY; // of the rows that fill a head up
    if (j < a.window && seq.lse.data != nullptr) {
        lse = *row_of<float>(seq.lse, head * rows.group + h, j) * LOG2_E;
        if (!is_finite(lse)) report(a.status, seq.layer, blockIdx.z, head, LAVA_CUDA_BAD_LSE);
    } else if (j < a.window) {
        const uint32_t n = lava_cuda_score_splits(seq.n_tokens);
        float most = -INFINITY;
        for (uint32_t i = 0; i < n; i++) most = fmaxf(most, m.partial[uint64_t(i) * rows.all + row].x);
        float sum = 0.0f;
        for (uint32_t i = 0; i < n; i++) {
            const float2 part = m.partial[uint64_t(i) * rows.all + row];
            sum += part.y * exp2f(part.x - most);
        }
        lse = most + log2f(sum);
    }
    m.lse[row] = lse;
}

/// Stages 3 and 5 and the factors, a tile of one KV head's scores. What lies outside the prefix is zero: the smallest score for a
/// maximum, and what the field's average counts.
LAVA_KERNEL(LAVA_CUDA_POOL_THREADS) lava_score_pool(const __grid_constant__ lava_cuda_score_args a) {
    using namespace lava;
    constexpr uint32_t PER = LAVA_CUDA_POOL_TILE / LAVA_CUDA_POOL_THREADS;
    LAVA_SHARED(float, near, LAVA_CUDA_POOL_TILE + 126);
    const lava_cuda_score_seq &seq = a.seq[blockIdx.z];
    const Rows rows(a, seq.n_tokens);
    const uint32_t first = blockIdx.x * LAVA_CUDA_POOL_TILE, head = blockIdx.y, radius = a.pool_kernel / 2;
    if (first >= rows.prefix) return;
    const Memory m(a, blockIdx.z, head);
    const bool mean = a.group_reduce != 0;
    const uint32_t n_raw = lava_cuda_score_reduce_first(&a) ? 1 : rows.group;
    float reduced[PER] = {};
    for (uint32_t h = 0; h < n_raw; h++) {
        const float *raw = m.raw + uint64_t(h) * a.max_prefix;
        for (uint32_t i = threadIdx.x; i < LAVA_CUDA_POOL_TILE + 2 * radius; i += blockDim.x) {
            const int64_t from = int64_t(first) + i - radius;
            near[i] = from >= 0 && from < rows.prefix ? raw[from] : 0.0f;
        }
        __syncthreads();
        for (uint32_t p = 0; p < PER; p++) {
            const float *const around = near + threadIdx.x + p * blockDim.x;
            float pooled = 0.0f;
            for (uint32_t c = 0; c < a.pool_kernel; c++) pooled = a.pool == 0 ? fmaxf(pooled, around[c]) : pooled + around[c];
            if (a.pool != 0) pooled /= float(a.pool_kernel);
            reduced[p] = mean ? reduced[p] + pooled : fmaxf(reduced[p], pooled);
        }
        __syncthreads();
    }
    const uint32_t n_parts = lava_cuda_score_splits(seq.n_tokens);
    float vmax = 0.0f;
    for (uint32_t i = 0; i < n_parts; i++) vmax = fmaxf(vmax, m.value_max[i]);
    // Attention is a mean over the window; a mean over the group is folded in.
    const float factor = 1.0f / float(a.window * (mean ? rows.group : 1));
    bool bad = false;
    for (uint32_t p = 0; p < PER; p++) {
        const uint32_t i = first + threadIdx.x + p * blockDim.x;
        if (i >= rows.prefix) continue;
        const float score = reduced[p] * factor * vmax;
        bad |= !is_finite(score);
        seq.scores[uint64_t(head) * rows.prefix + i] = score;
    }
    if (bad) report(a.status, seq.layer, blockIdx.z, head, LAVA_CUDA_BAD_SCORES);
}

#define LAVA_SCORE(name, T, D, TILES)                                                                                     \
    LAVA_KERNEL(256) lava_score_rows_##name(const __grid_constant__ lava_cuda_score_args a) {                             \
        lava::score_rows<T, D, TILES>(a);                                                                                 \
    }                                                                                                                     \
    LAVA_KERNEL(256) lava_score_columns_##name(const __grid_constant__ lava_cuda_score_args a) {                          \
        lava::score_columns<T, D, TILES>(a);                                                                              \
    }
#define LAVA_SCORE_DIMS(name, T)                                                                                          \
    LAVA_SCORE(name##_64, T, 64, 4)                                                                                       \
    LAVA_SCORE(name##_80, T, 80, 4)                                                                                       \
    LAVA_SCORE(name##_96, T, 96, 4)                                                                                       \
    LAVA_SCORE(name##_128, T, 128, 4)                                                                                     \
    LAVA_SCORE(name##_256, T, 256, 2)                                                                                     \
    LAVA_SCORE(name##_any, T, 0, 2)
LAVA_SCORE_DIMS(f16, __half)
LAVA_SCORE_DIMS(bf16, __nv_bfloat16)
LAVA_SCORE(f32, float, 0, 1)

#define LAVA_SCORE_VALUES(name, T)                                                                                        \
    LAVA_KERNEL(LAVA_CUDA_VALUE_THREADS) lava_score_values_##name(const __grid_constant__ lava_cuda_score_args a) {       \
        lava::score_values<T>(a);                                                                                         \
    }
LAVA_SCORE_VALUES(f16, __half)
LAVA_SCORE_VALUES(bf16, __nv_bfloat16)
LAVA_SCORE_VALUES(f32, float)
