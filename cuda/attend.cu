// Attention of new queries over compressed caches: sequences and heads of different lengths, grouped queries.
//
//     attend_rows      for each item (a number of rows of one head) and query: maximum, sum, weighted sum of values
//     attend_merge     their merge in the order of the rows; outputs and log-sum-exp
//
// The unit of work is an item, and a warp does one by itself: no warp waits for another except at the end, and heads of very different
// lengths share the machine evenly. The lengths stay on the device: warps count the items themselves. A head's rows are cut in the same
// places whatever other sequences there are, so the results of a sequence do not depend on its batch.
//
// The queries of a group use a row together, so rows cross the memory bus once.
#include "attention.cuh"

namespace lava {

constexpr uint32_t QUERIES = LAVA_ATTEND_QUERIES, STEP = LAVA_ATTEND_KEYS;

/// One KV head of one sequence.
struct Cache {
    const lava_attend_args &args;
    const lava_attend_sequence &sequence;
    uint32_t head, n_rows;

    __device__ Cache(const lava_attend_args &args, uint32_t flat)
        : args(args), sequence(LAVA_ITEM(args, flat / args.n_kv_heads)),
          head(flat % args.n_kv_heads), n_rows(min(sequence.n_rows[head], sequence.max_rows)) {}

    __device__ uint32_t n_items() const { return (n_rows + args.rows_per_item - 1) / args.rows_per_item; }
    __device__ uint32_t group() const { return args.n_q_heads / args.n_kv_heads; }
    __device__ void fault(uint32_t what) const {
        report(args.status, args.layer, args.items == nullptr ? 0 : uint32_t(&sequence - args.items), head, what);
    }

    /// Position of a row in the text.
    __device__ uint64_t position(uint32_t row) const {
        const uint32_t first = sequence.cu_kept[head], n_kept = sequence.cu_kept[head + 1] - first;
        const uint64_t offset = sequence.kept_offset != nullptr ? *sequence.kept_offset : 0;
        return row < n_kept ? sequence.kept_indices[offset + first + row] : uint64_t(sequence.n_base) + (row - n_kept);
    }
    /// The rows that new token `t` sees.
    __device__ uint2 seen(uint32_t t) const {
        const uint32_t hidden = args.causal ? args.n_queries - 1 - t : 0, end = n_rows > hidden ? n_rows - hidden : 0;
        if (args.sliding_window == 0 || end == 0) return uint2{0, end};
        // A query's own row is the last that it sees; without causal it comes after all rows.
        const uint64_t own = args.causal ? position(end - 1) : position(end) + t;
        uint32_t low = 0, high = end;
        while (low < high) { // the first row that is not too old
            const uint32_t middle = low + (high - low) / 2;
            if (position(middle) + args.sliding_window <= own)
                low = middle + 1;
            else
                high = middle;
        }
        return uint2{low, end};
    }
};

/// Counts items, cache by cache. A warp asks for them in ascending order.
struct Counter {
    static constexpr uint32_t PER_LANE = 4;
    const lava_attend_args &args;
    /// The cache that the count has come to, and the items of all before it.
    uint32_t cache = 0, counted = 0;

    __device__ explicit Counter(const lava_attend_args &args) : args(args) {}

    /// Finds an item: its cache, and its number within it. False if there are fewer.
    __device__ bool find(uint32_t item, uint32_t &its_cache, uint32_t &part) {
        const uint32_t lane = threadIdx.x % 32, n_caches = args.n_sequences * args.n_kv_heads;
        for (; cache < n_caches; cache += 32 * PER_LANE) {
            uint32_t own[PER_LANE];
#pragma unroll
            for (uint32_t i = 0; i < PER_LANE; i++) {
                // Without a condition, so that all four are on their way at once.
                const uint32_t at = cache + lane * PER_LANE + i, items = Cache(args, min(at, n_caches - 1)).n_items();
                own[i] = at < n_caches ? items : 0;
            }
            const uint32_t sum = own[0] + own[1] + own[2] + own[3];
            uint32_t through = sum;
            for (uint32_t distance = 1; distance < 32; distance *= 2) {
                const uint32_t lower = __shfl_up_sync(ALL, through, distance);
                if (lane >= distance) through += lower;
            }
            const uint32_t all = __shfl_sync(ALL, through, 31);
            if (item - counted >= all) {
                counted += all;
                continue;
            }
            uint32_t rest = item - counted, found = 0;
            const uint32_t before = through - sum;
            const bool mine = before <= rest && rest < through;
            rest -= before;
#pragma unroll
            for (uint32_t i = 0; i + 1 < PER_LANE; i++)
                if (found == i && rest >= own[i]) {
                    rest -= own[i];
                    found = i + 1;
                }
            const uint32_t owner = first_lane(__ballot_sync(ALL, mine));
            its_cache = cache + owner * PER_LANE + __shfl_sync(ALL, found, owner);
            part = __shfl_sync(ALL, rest, owner);
            return true;
        }
        return false;
    }
    __device__ static uint32_t first_lane(uint32_t lanes) { return 31 - __clz(int(lanes & (0 - lanes))); }
};

/// Some queries over the rows of an item.
struct Work {
    uint32_t item, first_query, first_row, end_row;
    __device__ Work(const Cache &cache, uint32_t item, uint32_t part, uint32_t chunk) : item(item), first_query(chunk * QUERIES) {
        const uint64_t first = uint64_t(part) * cache.args.rows_per_item, end = first + cache.args.rows_per_item;
        first_row = uint32_t(first);
        end_row = uint32_t(end < cache.n_rows ? end : cache.n_rows);
    }
};

/// Of an item and a query: head_dim_v sums, the maximum, the sum.
__device__ inline float *partial_of(const lava_attend_args &args, uint32_t item, uint32_t query) {
    return args.partial + (uint64_t(item) * lava_attend_queries(&args) + query) * lava_attend_partial(&args);
}

/// Gives each warp its work, `Run(cache, work)`.
template <class Run> __device__ void for_each_item(const lava_attend_args &args, Run run) {
    const uint32_t chunks = (lava_attend_queries(&args) + QUERIES - 1) / QUERIES, warps = gridDim.x * LAVA_ATTEND_WARPS;
    Counter counter(args);
    uint32_t its_cache, part;
    // Neighbouring warps do the query chunks of one item, so that its rows are read from memory once. Blocks that run at the
    // same time have neighbouring items.
    for (uint64_t unit = threadIdx.x / 32 * uint64_t(gridDim.x) + blockIdx.x;; unit += warps) {
        const uint32_t item = uint32_t(unit / chunks);
        // Counts that were never written may be more than the workspace has room for.
        if (item >= args.max_items || !counter.find(item, its_cache, part)) return;
        const Cache cache(args, its_cache);
        run(cache, Work(cache, item, part, uint32_t(unit % chunks)));
    }
}

/// Exponents are taken 11 lower than they could be, so that weights fill the range of f16, up to 2048, and small ones keep their
/// digits. It goes into the maximum.
constexpr float HEADROOM = 11;

template <class T> __device__ uint32_t pack(float lower, float upper);
template <> __device__ inline uint32_t pack<__half>(float lower, float upper) {
    const __half2 two = __floats2half2_rn(lower, upper);
    uint32_t bits;
    memcpy(&bits, &two, 4);
    return bits;
}
template <> __device__ inline uint32_t pack<__nv_bfloat16>(float lower, float upper) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(lower, upper);
    uint32_t bits;
    memcpy(&bits, &two, 4);
    return bits;
}
/// What `pack` left of a number.
template <class T> __device__ float rest(float x) { return x - widen(T(x)); }

template <class T, int D> __device__ void attend_item(const Cache &cache, const Work &work, T *shared) {
    constexpr int STAGES = LAVA_ATTEND_STAGES(D), TILE = STEP * PITCH<D>;
    const lava_attend_args &args = cache.args;
    const uint32_t lane = threadIdx.x % 32, group = cache.group(), n_queries = lava_attend_queries(&args);

    // A warp's queries: rows lane / 4 and that plus 8.
    uint2 seen[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t query = work.first_query + lane / 4 + 8 * half;
        seen[half] = query < n_queries ? cache.seen(query / group) : uint2{cache.n_rows, 0};
    }
    // Rows that one of them sees.
    uint32_t first = seen[0].x < seen[1].x ? seen[0].x : seen[1].x, end = seen[0].y > seen[1].y ? seen[0].y : seen[1].y;
    for (int distance = 4; distance < 32; distance *= 2) {
        first = min(first, __shfl_xor_sync(ALL, first, distance));
        end = max(end, __shfl_xor_sync(ALL, end, distance));
    }
    first = max(first, work.first_row) / STEP * STEP;
    end = min(end, work.end_row);
    const uint32_t steps = first < end ? (end - first + STEP - 1) / STEP : 0;

    const auto fetch = [&](uint32_t step) {
        if (step < steps) {
            T *const to = shared + step % STAGES * 2 * TILE;
            // Looked up each time: at 256 dimensions there is no register left to keep it in.
            fetch_rows<D, STEP>(to, Rows<T>(cache.sequence.k, cache.head), first + step * STEP, end, lane, 32);
            fetch_rows<D, STEP>(to + TILE, Rows<T>(cache.sequence.v, cache.head), first + step * STEP, end, lane, 32);
        }
        copy_commit();
    };
    for (uint32_t step = 0; step + 1 < STAGES; step++) fetch(step);

    // The queries, in registers; they come while the first rows do.
    uint32_t q[1][D / 16][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t query = work.first_query + lane / 4 + 8 * half;
        const bool real = query < n_queries;
        load_query<D>(q[0], half, cache.sequence.q, cache.head * group + (real ? query % group : 0), real ? query / group : 0, real);
    }
    const Logits logits(args.scale, args.softcap);
    Softmax softmax[2];
    float sums[D / 8][4], poison = 0;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0;
    for (uint32_t step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncwarp();
        fetch(step + STAGES - 1); // to the place of the tile that all lanes are done with
        const T *const keys = shared + step % STAGES * 2 * TILE, *const values = keys + TILE;
        float x[1][2][4];
        dot_products<T, D, 1>(x, q, keys);
        const uint32_t own = first + step * STEP + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) look_for_fault(poison, x[0][n][i]);
            logits.apply(x[0][n]);
        }
        uint32_t weights[4], rests[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = UNSEEN;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &own_x = x[0][n][2 * half + i];
                    const uint32_t row = own + 8 * n + i;
                    if (row < seen[half].x || row >= seen[half].y) own_x = UNSEEN;
                    most = fmaxf(most, own_x);
                }
            // The four lanes of a row share its maximum.
            most = fmaxf(most, __shfl_xor_sync(ALL, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL, most, 2));
            const float shrink = softmax[half].raise(most - HEADROOM);
            if (shrink != 1) {
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    sums[n][2 * half] *= shrink;
                    sums[n][2 * half + 1] *= shrink;
                }
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float a = exp2_fast(x[0][n][2 * half] - softmax[half].max);
                const float b = exp2_fast(x[0][n][2 * half + 1] - softmax[half].max);
                softmax[half].sum += a + b;
                weights[half + 2 * n] = pack<T>(a, b);
                // A weight in two pieces has twice the digits of T.
                rests[half + 2 * n] = pack<T>(rest<T>(a), rest<T>(b));
            }
        }
        const T *const mine = values + (lane / 8 % 2 * 8 + lane % 8) * PITCH<D> + lane / 16 * 8;
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, mine + 8 * n);
            multiply(T(), sums[n], weights, b[0], b[1]);
            multiply(T(), sums[n], rests, b[0], b[1]);
            multiply(T(), sums[n + 1], weights, b[2], b[3]);
            multiply(T(), sums[n + 1], rests, b[2], b[3]);
        }
    }
    copy_wait<0>();
    __syncwarp(); // the next item's rows come to the same place
    if (poison != 0) cache.fault(LAVA_FAULT_Q_OR_K);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = softmax[half].sum;
        sum += __shfl_xor_sync(ALL, sum, 1);
        sum += __shfl_xor_sync(ALL, sum, 2);
        const uint32_t query = work.first_query + lane / 4 + 8 * half;
        if (query >= n_queries) continue;
        float *const to = partial_of(args, work.item, query);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<float2 *>(to + 8 * n + lane % 4 * 2) = make_float2(sums[n][2 * half], sums[n][2 * half + 1]);
        if (lane % 4 == 0) {
            to[D] = softmax[half].max;
            to[D + 1] = sum;
        }
    }
}

template <class T, int D> __device__ void attend_rows(const lava_attend_args &args) {
    LAVA_DYNAMIC_SHARED(shared);
    constexpr int STAGES = LAVA_ATTEND_STAGES(D), OF_WARP = STAGES * 2 * STEP * PITCH<D>;
    T *const own = reinterpret_cast<T *>(shared) + threadIdx.x / 32 * OF_WARP;
    for_each_item(args, [&](const Cache &cache, const Work &work) { attend_item<T, D>(cache, work, own); });
}

/// Any type, dimensions and strides: one query at a time, one lane per row, then one lane per dimension of the values.
__device__ inline void attend_item_any(const Cache &cache, const Work &work) {
    constexpr uint32_t MOST = 18; // dimensions of a lane: 576 / 32
    const lava_attend_args &args = cache.args;
    const lava_attend_sequence &s = cache.sequence;
    const uint32_t lane = threadIdx.x % 32, group = cache.group();
    const Logits logits(args.scale, args.softcap);
    const uint32_t last_query = min(work.first_query + QUERIES, lava_attend_queries(&args));
    float poison = 0;
    for (uint32_t query = work.first_query; query < last_query; query++) {
        const uint32_t t = query / group, head = cache.head * group + query % group;
        const uint2 seen = cache.seen(t);
        const uint32_t first = max(seen.x, work.first_row), end = min(seen.y, work.end_row);
        Softmax softmax;
        float sums[MOST];
#pragma unroll
        for (uint32_t i = 0; i < MOST; i++) sums[i] = 0;
        for (uint32_t row = first; row < end; row += 32) {
            float dot[1] = {0};
            for (uint32_t c = 0; row + lane < end && c < args.head_dim_k; c++)
                dot[0] = fmaf(element(s.q, head, t, c), element(s.k, cache.head, row + lane, c), dot[0]);
            look_for_fault(poison, dot[0]);
            logits.apply(dot);
            const float x = row + lane < end ? dot[0] : UNSEEN;
            float most = x;
            for (int distance = 1; distance < 32; distance *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, distance));
            const float shrink = softmax.raise(most), weight = exp2_fast(x - softmax.max);
            softmax.sum += weight;
#pragma unroll
            for (uint32_t i = 0; i < MOST; i++) sums[i] *= shrink;
            for (uint32_t k = 0; k < min(end - row, 32u); k++) {
                const float its_weight = __shfl_sync(ALL, weight, int(k));
#pragma unroll
                for (uint32_t i = 0; i < MOST; i++)
                    if (lane + 32 * i < args.head_dim_v)
                        sums[i] = fmaf(its_weight, element(s.v, cache.head, row + k, lane + 32 * i), sums[i]);
            }
        }
        float sum = softmax.sum;
        for (int distance = 1; distance < 32; distance *= 2) sum += __shfl_xor_sync(ALL, sum, distance);
        float *const to = partial_of(args, work.item, query);
#pragma unroll
        for (uint32_t i = 0; i < MOST; i++)
            if (lane + 32 * i < args.head_dim_v) to[lane + 32 * i] = sums[i];
        if (lane == 0) {
            to[args.head_dim_v] = softmax.max;
            to[args.head_dim_v + 1] = sum;
        }
    }
    if (poison != 0) cache.fault(LAVA_FAULT_Q_OR_K);
}

/// One query: its items' sums, each taken less the largest maximum, in the order of the rows.
__device__ inline void attend_merge(const lava_attend_args &args) {
    constexpr uint32_t THREADS = 128, MOST = 5; // dimensions of a thread: 576 / 128
    LAVA_SHARED(uint32_t, counts, THREADS / 32);
    LAVA_SHARED(float, maxima, THREADS / 32);
    LAVA_SHARED(float, sums_of_warps, THREADS / 32);
    LAVA_SHARED(float, weights, THREADS);
    const uint32_t query = blockIdx.x, flat = blockIdx.z * args.n_kv_heads + blockIdx.y, dim = args.head_dim_v;
    const Cache cache(args, flat);
    // The items of the caches before this one.
    uint32_t before = 0;
    for (uint32_t other = threadIdx.x; other < flat; other += blockDim.x) before += Cache(args, other).n_items();
    for (int distance = 1; distance < 32; distance *= 2) before += __shfl_xor_sync(ALL, before, distance);
    if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = before;
    __syncthreads();
    before = counts[0] + counts[1] + counts[2] + counts[3];

    const float *const first = partial_of(args, before, query);
    const uint64_t stride = uint64_t(lava_attend_queries(&args)) * lava_attend_partial(&args);
    const uint32_t room = args.max_items - min(args.max_items, before), n_items = min(cache.n_items(), room);
    float most = NOTHING_YET;
    for (uint32_t item = threadIdx.x; item < n_items; item += blockDim.x) most = fmaxf(most, first[item * stride + dim]);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = most;
    __syncthreads();
    most = fmaxf(fmaxf(maxima[0], maxima[1]), fmaxf(maxima[2], maxima[3]));

    // Each item's weight is worked out once, by one thread; then a thread has a few dimensions of all.
    float sums[MOST], weight_sum = 0, poison = 0;
#pragma unroll
    for (uint32_t k = 0; k < MOST; k++) sums[k] = 0;
    for (uint32_t begin = 0; begin < n_items; begin += THREADS) {
        __syncthreads(); // the last weights are no longer read
        if (begin + threadIdx.x < n_items) {
            const float *const its = first + (begin + threadIdx.x) * stride + dim;
            weights[threadIdx.x] = exp2_fast(its[0] - most);
            weight_sum = fmaf(its[1], weights[threadIdx.x], weight_sum);
        }
        __syncthreads();
        const float *its = first + begin * stride;
        for (uint32_t i = 0; i < min(THREADS, n_items - begin); i++, its += stride)
#pragma unroll
            for (uint32_t k = 0; k < MOST; k++)
                if (threadIdx.x + k * THREADS < dim) sums[k] = fmaf(its[threadIdx.x + k * THREADS], weights[i], sums[k]);
    }
    weight_sum = block_sum(weight_sum, sums_of_warps);
    const float inverse = weight_sum > 0 ? 1 / weight_sum : 0;

    const uint32_t t = query / cache.group(), head = cache.head * cache.group() + query % cache.group();
#pragma unroll
    for (uint32_t k = 0; k < MOST; k++) {
        const uint32_t c = threadIdx.x + k * THREADS;
        if (c >= dim) break;
        look_for_fault(poison, sums[k]);
        row_of<float>(cache.sequence.out, head, t)[c * cache.sequence.out.stride_dim] = sums[k] * inverse;
    }
    if (poison != 0) cache.fault(LAVA_FAULT_V);
    if (threadIdx.x == 0 && cache.sequence.lse.data != nullptr)
        *row_of<float>(cache.sequence.lse, head, t) = (most + log2f(weight_sum)) * args.lse_from_base_2;
}

} // namespace lava

#define LAVA_ATTEND_KERNEL(name, T, D)                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * LAVA_ATTEND_WARPS, LAVA_ATTEND_BLOCKS(D))                             \
        lava_attend_rows_##name(const __grid_constant__ lava_attend_args args) {                                           \
        lava::attend_rows<T, D>(args);                                                                                     \
    }
LAVA_ATTEND_KERNEL(f16_64, __half, 64)
LAVA_ATTEND_KERNEL(f16_80, __half, 80)
LAVA_ATTEND_KERNEL(f16_96, __half, 96)
LAVA_ATTEND_KERNEL(f16_128, __half, 128)
LAVA_ATTEND_KERNEL(f16_256, __half, 256)
LAVA_ATTEND_KERNEL(bf16_64, __nv_bfloat16, 64)
LAVA_ATTEND_KERNEL(bf16_80, __nv_bfloat16, 80)
LAVA_ATTEND_KERNEL(bf16_96, __nv_bfloat16, 96)
LAVA_ATTEND_KERNEL(bf16_128, __nv_bfloat16, 128)
LAVA_ATTEND_KERNEL(bf16_256, __nv_bfloat16, 256)

extern "C" __global__ void __launch_bounds__(32 * LAVA_ATTEND_WARPS, LAVA_ATTEND_ANY_BLOCKS)
    lava_attend_rows_any(const __grid_constant__ lava_attend_args args) {
    lava::for_each_item(args, [](const lava::Cache &cache, const lava::Work &work) { lava::attend_item_any(cache, work); });
}
extern "C" __global__ void __launch_bounds__(128) lava_attend_merge(const __grid_constant__ lava_attend_args args) {
    lava::attend_merge(args);
}
