// LAVa's score of one layer, sequence by sequence and KV head by KV head, stages 1 and 2: attention of the window, summed for each key.
//
//     score_stats      for each range of keys and query row: maximum and sum of the exponentials
//     score_lse        their merge in the order of the ranges, or the caller's log-sum-exp; resets the value maxima
//     score_columns    for each key: the sum over the window of exp2(logit - lse), reduced over the group; value norms (values.cuh)
//
// pool.cu makes scores of them, after output.cu where that is asked for. A block takes one range of keys of one KV head; its warps hold all
// of the head's query rows in registers, in rounds if there are too many, and tiles of 64 keys stream through shared memory. Keys cross
// the memory bus at most twice: the second pass goes backwards through the blocks, so that it begins with what the first one left in the
// L2 cache. The values are read by every other block of the second pass, whose own work is arithmetic more than memory.
//
// Every sum has an order that does not depend on the schedule.
#include "values.cuh"

namespace lava {

/// Which rows of a tile of 16 are this thread's: this one and, with half = 1, the eighth after it.
__device__ inline uint32_t own_row(uint32_t half) { return threadIdx.x % 32 / 4 + 8 * half; }

/// Row tiles that a warp holds in registers.
template <int D> constexpr int HELD = LAVA_SCORE_TILES_OF_WARP(D);

/// The queries of `M` row tiles, as the tensor cores take them, times -1 if the scale is negative: then a larger dot product is a larger
/// logit. Padding rows are zero.
template <int D, int M>
__device__ void load_queries(uint32_t (&q)[M][D / 16][4], const Range &range, uint32_t row_tile) {
    const uint32_t padded = range.padded(), rows = range.row_tiles() * ROWS, signs = range.args.scale < 0 ? 0x80008000u : 0;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t row = (row_tile + m) * ROWS + own_row(half), j = row % padded;
            const bool real = row < rows && j < range.args.window;
            load_query<D>(q[m], half, range.sequence.q, range.head * range.group() + (real ? row / padded : 0), real ? j : 0, real);
        }
#pragma unroll
        for (int step = 0; step < D / 16; step++)
#pragma unroll
            for (int i = 0; i < 4; i++) q[m][step][i] ^= signs;
    }
}

/// Dot products become exponents of two except for the factor `logits.slope()`, UNSEEN where a row does not see the key.
template <int M>
__device__ void to_exponents(float (&x)[M][2][4], const Range &range, const Logits &logits, uint32_t row_tile, uint32_t key,
                             bool all_see) {
    const uint32_t padded = range.padded(), own_key = key + threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < 2; n++) logits.cap(x[m][n]);
    if (all_see) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint2 seen = range.seen(((row_tile + m) * ROWS + own_row(half)) % padded);
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (own_key + 8 * n + i - seen.x >= seen.y) x[m][n][2 * half + i] = UNSEEN;
        }
}

/// What both passes have in common: a range's keys go through shared memory, tile by tile, once for every round of row tiles.
///
/// `visitor` is told of a round's begin and end (with the first row tile of the warp), of each step's begin and of the last one's end (all
/// of the block's threads are past the step before), and is given the dot products of 16 keys at a time.
template <class T, int D, class Visitor>
__device__ void stream_keys(const Range &range, unsigned char *shared, Visitor &visitor) {
    constexpr int M = HELD<D>, STAGES = LAVA_SCORE_STAGES(D), STAGE = KEYS * PITCH<D>;
    const lava_score_args &args = range.args;
    T *const stages = reinterpret_cast<T *>(shared);
    const uint32_t warp = threadIdx.x / 32, row_warps = args.row_warps, share = warp / row_warps;
    const uint32_t at_once = row_warps * M, tiles = range.tiles();
    const uint32_t row_tiles = range.row_tiles(), steps = tiles * ((row_tiles + at_once - 1) / at_once);
    const Rows<T> keys(range.sequence.k, range.head);
    // Of the step `step`, whose tile is `tile` or that many tiles more than there are.
    const auto fetch = [&](uint32_t step, uint32_t tile) {
        if (step < steps) {
            while (tile >= tiles) tile -= tiles;
            fetch_rows<D, KEYS>(stages + step % STAGES * STAGE, keys, range.first + tile * KEYS, range.end, threadIdx.x, blockDim.x);
        }
        copy_commit();
    };
    for (int step = 0; step < STAGES - 1; step++) fetch(step, step);

    uint32_t q[M][D / 16][4];
    uint32_t tile = 0, row_tile = warp % row_warps * M;
    for (uint32_t step = 0; step < steps; step++) {
        const uint32_t key = range.first + tile * KEYS;
        if (tile == 0) {
            load_queries<D>(q, range, row_tile);
            visitor.begin(row_tile);
        }
        copy_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1, tile + STAGES - 1); // to the place of the tile that all are done with
        visitor.before(step, tile, row_tile - warp % row_warps * M);
        if (row_tile < row_tiles) {
            const bool all_see = range.all_see(key);
            for (uint32_t part = share * 16; part < KEYS; part += args.key_split * 16) {
                float x[M][2][4];
                dot_products<T, D, M>(x, q, stages + step % STAGES * STAGE + part * PITCH<D>);
                visitor.visit(x, row_tile, key, part, all_see);
            }
        }
        if (++tile == tiles) {
            visitor.end(row_tile, share);
            tile = 0;
            row_tile += at_once;
        }
    }
    copy_wait<0>();
    __syncthreads();
    visitor.before(steps, tile, row_tile - warp % row_warps * M);
}

/// The logits of the queries, as load_queries returns them.
__device__ inline Logits logits_of(const lava_score_args &args) { return Logits(fabsf(args.scale), args.softcap); }

template <int M> __device__ void look_for_faults(float &poison, const float (&x)[M][2][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) look_for_fault(poison, x[m][n][i]);
}

// ------------------------------------------------------------------------------------------------------- first pass

/// Where the statistics of a range and a share of its keys go: [heads, ranges * shares, rows], two floats each.
__device__ inline float2 *partial_of(const Head &head, uint32_t part) {
    const lava_score_args &args = head.args;
    const uint64_t parts = uint64_t(lava_score_ranges(&args)) * args.key_split;
    return reinterpret_cast<float2 *>(args.partial) + (head.flat() * parts + part) * lava_score_rows(&args);
}

/// A logit may be this much above what its row takes for the maximum: powers of two have room, and most tiles raise nothing then.
constexpr float SLACK = 8;

/// Each thread keeps statistics of its own rows and keys; lanes with the same rows meet at the end of a round only.
template <int M> struct Statistics {
    const Range &range;
    const Logits logits;
    Softmax rows[M][2];
    float poison = 0;

    __device__ explicit Statistics(const Range &range) : range(range), logits(logits_of(range.args)) {}
    __device__ void begin(uint32_t) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) rows[m][half] = Softmax();
    }
    __device__ void before(uint32_t, uint32_t, uint32_t) {}
    __device__ void visit(float (&x)[M][2][4], uint32_t row_tile, uint32_t key, uint32_t part, bool all_see) {
        look_for_faults(poison, x);
        to_exponents(x, range, logits, row_tile, key + part, all_see);
        const float slope = logits.slope();
        // The last tile's rows after the end are zeros, which the last row of the window does not see either.
        float most[M][2];
        bool rises = false;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                most[m][half] = fmaxf(fmaxf(x[m][0][2 * half], x[m][0][2 * half + 1]), fmaxf(x[m][1][2 * half], x[m][1][2 * half + 1]));
                rises |= fmaf(most[m][half], slope, -rows[m][half].max) > SLACK;
            }
        if (rises) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) rows[m][half].raise(slope * most[m][half]);
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const auto power = [&](int n, int i) { return exp2_fast(fmaf(x[m][n][2 * half + i], slope, -rows[m][half].max)); };
                rows[m][half].sum += (power(0, 0) + power(0, 1)) + (power(1, 0) + power(1, 1));
            }
    }
    __device__ void end(uint32_t row_tile, uint32_t share) {
        float2 *const to = partial_of(range, range.number * range.args.key_split + share);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                rows[m][half].merge_lanes(1);
                rows[m][half].merge_lanes(2);
                if (threadIdx.x % 4 == 0 && row_tile + m < range.row_tiles())
                    to[(row_tile + m) * ROWS + own_row(half)] = float2{rows[m][half].max, rows[m][half].sum};
            }
    }
};

template <class T, int D> __device__ void stats(const lava_score_args &args) {
    LAVA_DYNAMIC_SHARED(shared);
    const Head head(args, blockIdx.z, blockIdx.y);
    const Range range(head, blockIdx.x, head.n_tokens());
    if (head.prefix() == 0 || range.first == range.end) return;
    Statistics<HELD<D>> statistics(range);
    stream_keys<T, D>(range, shared, statistics);
    if (statistics.poison != 0) head.fault(LAVA_FAULT_Q_OR_K);
}

// ------------------------------------------------------------------------------------------------------ second pass

/// Attention of one key, summed row tile by row tile in their order, becomes the group's number or one per query head.
struct ColumnSums {
    /// Of a query head's rows so far: sums. Where a variance is wanted, the mean, and the sum of the squared deviations from it.
    float sum = 0, squares = 0;
    float group = 0, entropy = 0;

    /// The part of the next row tile or two.
    __device__ void add(float more, float more_squares) {
        sum += more;
        squares += more_squares;
    }
    /// The same where a variance is wanted: `more` rows with their own mean and deviations, after `rows` others of the head.
    __device__ void add_spread(float rows, float more, float mean, float deviations) {
        const float apart = mean - sum, all = rows + more;
        squares += deviations + apart * apart * (rows * more / all);
        sum += apart * (more / all);
    }
    /// All rows of query head `h` of the group are there.
    __device__ void end_head(const Head &head, uint32_t key, uint32_t h) {
        const float w = head.args.window, variance = w > 1 ? squares / (w - 1) : 0;
        float value = sum;
        if (head.args.attention == SQUARED) value = squares;
        if (head.args.attention == MEAN_VARIANCE) value = w * (sum + head.args.gamma * variance);
        if (head.args.attention == SPREAD) value = variance;
        if (!lava_score_reduces_first(&head.args)) head.columns(h)[key] = value;
        group = head.args.group_reduce == GROUP_MAX ? fmaxf(group, value) : group + value;
        sum = squares = 0;
    }
    __device__ void write(const Head &head, uint32_t key) const {
        if (lava_score_reduces_first(&head.args)) head.columns(0)[key] = group;
        if (head.args.attention == SPREAD) head.columns(1)[key] = entropy;
    }
};

/// -a ln a of an attention a of 2 to the power `power`, over ln 2. What is not seen has none, and NaN stays.
__device__ inline float surprise(float power) {
    const float a = exp2_fast(power);
    return a > 0 ? -a * power : a;
}

/// Sums over the rows of each tile, or of a warp's two, go to shared memory; a step later, one thread per key adds them up.
template <int M> struct Columns {
    const Range &range;
    const Logits logits;
    /// [2 steps, kinds, sums of a round, KEYS].
    float *const sums;
    /// Of this step's, the one that is this thread's if its warp looks at the first keys.
    float *own = nullptr;
    float lse[M][2];

    __device__ Columns(const Range &range, float *shared) : range(range), logits(logits_of(range.args)), sums(shared) {}

    __device__ uint32_t at_once() const { return lava_score_sums_at_once(&range.args); }
    /// Whether a warp's two row tiles make one sum.
    __device__ bool sums_both() const { return M == 2 && range.args.tiles_of_sum == 2; }
    /// Of the numbers for each row tile and key, [M, 4], sums over eight lanes: this lane's.
    __device__ float sum_of(float (&x)[4 * M]) const {
        if (!sums_both()) return sum_over_eight<16>(x);
        float both[4];
#pragma unroll
        for (int i = 0; i < 4; i++) both[i] = x[i] + x[4 * M - 4 + i];
        return sum_over_eight<16>(both);
    }
    __device__ uint32_t kinds() const { return range.args.kinds; }
    __device__ bool spreads() const { return kinds() > 2; }
    __device__ float *sums_of(uint32_t step, uint32_t kind) const { return sums + (step % 2 * kinds() + kind) * at_once() * KEYS; }
    /// The rest of one of the warp's rows, whose number is the lane's. No other thread reads it. Not in a register: those are scarce.
    __device__ float &own_rest() const { return sums[2 * kinds() * at_once() * KEYS + threadIdx.x]; }
    /// What a key's sums were at the end of the last round: [keys of the range, 4]. Only where there are several rounds.
    __device__ float *carried() const { return sums + 2 * kinds() * at_once() * KEYS + blockDim.x; }

    __device__ void begin(uint32_t row_tile) {
        const uint64_t rows = range.flat() * lava_score_rows(&range.args);
        const float *const from = range.args.row_lse + rows;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                lse[m][half] = row_tile + m < range.row_tiles() ? from[(row_tile + m) * ROWS + own_row(half)] : INFINITY;
        own_rest() = lane() < M * ROWS && row_tile + lane() / ROWS < range.row_tiles() ? range.args.row_rest[rows + row_tile * ROWS + lane()] : 0;
    }
    __device__ void visit(float (&x)[M][2][4], uint32_t row_tile, uint32_t key, uint32_t part, bool all_see) {
        // A fault stays in a number that is there anyway.
        if (range.args.has_lse) look_for_faults(lse[0][0], x);
        to_exponents(x, range, logits, row_tile, key + part, all_see);
        const float slope = logits.slope();
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) x[m][n][i] = fmaf(x[m][n][i], slope, -lse[m][i / 2]);
        const float rest = own_rest();
        if (__any_sync(ALL, rest != 0)) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float its = __shfl_sync(ALL, rest, m * ROWS + own_row(half));
#pragma unroll
                    for (int n = 0; n < 2; n++) x[m][n][2 * half] -= its, x[m][n][2 * half + 1] -= its;
                }
        }
        if (kinds() == 4) add_up_pairs(x, part, 3, [](float a, float b) { return surprise(a) + surprise(b); });
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) x[m][n][i] = exp2_fast(x[m][n][i]);
        if (spreads()) {
            if (lane() < 4) put_away_the_first(x, own + 2 * at_once() * KEYS + part);
            less_the_first(x);
        }
        add_up_pairs(x, part, 0, [](float a, float b) { return a + b; });
        if (kinds() > 1) add_up_pairs(x, part, 1, [](float a, float b) { return a * a + b * b; });
    }
    /// Sums of what `f` makes of a key's two rows, for the block's keys from `part` on.
    template <class F> __device__ void add_up_pairs(const float (&x)[M][2][4], uint32_t part, uint32_t kind, F f) const {
        float numbers[4 * M];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) numbers[4 * m + 2 * n + i] = f(x[m][n][i], x[m][n][i + 2]);
        const float sum = sum_of(numbers);
        // Where there are fewer sums than lanes, two have the same.
        if ((M == 2 && !sums_both()) || threadIdx.x / 4 % 2 == 0) own[kind * at_once() * KEYS + part] = sum;
    }
    /// Attention of each tile's first row, by lanes 0 to 3, which have it.
    __device__ static void put_away_the_first(const float (&x)[M][2][4], float *to) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < 2; n++) {
                to[m * KEYS + 8 * n] = x[m][n][0];
                to[m * KEYS + 8 * n + 1] = x[m][n][1];
            }
    }
    /// Attention becomes what it differs by from that of its tile's first row, which is one of the window's.
    __device__ void less_the_first(float (&x)[M][2][4]) const {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float first = __shfl_sync(ALL, x[m][n][i], lane() % 4);
                    // Padding rows do not count.
                    x[m][n][i] = lse[m][0] < INFINITY ? x[m][n][i] - first : 0;
                    x[m][n][i + 2] = lse[m][1] < INFINITY ? x[m][n][i + 2] - first : 0;
                }
    }
    __device__ void end(uint32_t, uint32_t) {
        if (range.args.has_lse && lse[0][0] != lse[0][0]) range.fault(LAVA_FAULT_Q_OR_K);
    }
    __device__ void before(uint32_t step, uint32_t tile, uint32_t first_row_tile) {
        const uint32_t of_warp = sums_both() ? 1 : M, lane = threadIdx.x % 32, number = of_warp == 2 ? lane / 4 : lane / 8;
        const uint32_t of_round = threadIdx.x / 32 % range.args.row_warps * of_warp + number / 4;
        own = sums_of(step, 0) + of_round * KEYS + number / 2 % 2 * 8 + lane % 4 * 2 + number % 2;
        add_up(step, tile, first_row_tile / range.args.tiles_of_sum);
    }

    /// The step before this one, whose sums are there for all threads.
    __device__ void add_up(uint32_t step, uint32_t tile, uint32_t first_sum) const {
        // Other warps each time, since a processor's quarters have the same warps of all blocks.
        const uint32_t i = (threadIdx.x + step * KEYS) & (blockDim.x - 1);
        if (step == 0 || i >= KEYS) return;
        const uint32_t first = tile == 0 ? first_sum - at_once() : first_sum;
        const uint32_t in_range = (tile == 0 ? range.tiles() - 1 : tile - 1) * KEYS + i, key = range.first + in_range;
        if (key >= range.end || key >= range.n_columns()) return;
        const uint32_t together = ROWS * range.args.tiles_of_sum, of_each = range.padded() / together;
        const uint32_t all = range.group() * of_each, here = min(all - first, at_once());
        float *const carry = carried() + 4 * in_range;
        ColumnSums column;
        uint32_t h = 0, of_head = 0;
        if (first > 0) {
            column.sum = carry[0];
            column.squares = carry[1];
            column.group = carry[2];
            column.entropy = carry[3];
            h = first / of_each, of_head = first % of_each;
        }
        const float *one = sums_of(step - 1, 0) + i;
        const uint32_t apart = at_once() * KEYS;
        for (uint32_t t = 0; t < here; t++, one += KEYS) {
            if (spreads()) {
                const uint32_t rows = of_head * together, more = min(together, range.args.window - rows);
                const float off = one[0] / more;
                column.add_spread(rows, more, one[2 * apart] + off, fmaxf(one[apart] - one[0] * off, 0.0f));
                if (kinds() > 3) column.entropy += one[3 * apart];
            } else {
                column.add(one[0], kinds() > 1 ? one[apart] : 0.0f);
            }
            if (++of_head == of_each) column.end_head(range, key, h), h++, of_head = 0;
        }
        if (first + here == all) {
            column.write(range, key);
        } else {
            carry[0] = column.sum;
            carry[1] = column.squares;
            carry[2] = column.group;
            carry[3] = column.entropy;
        }
    }
};

/// The block's head and range, backwards; false if it has nothing more to do, because it is one that reads values.
struct ColumnJob {
    Head head;
    uint32_t number;
    bool done;

    __device__ explicit ColumnJob(const lava_score_args &args)
        : head(args, gridDim.z - 1 - blockIdx.z, gridDim.y - 1 - blockIdx.y), number(gridDim.x - 1 - blockIdx.x), done(false) {
        const uint32_t kinds = lava_score_has_values(&args) ? 2 : 1;
        done = head.prefix() == 0;
        // One of each pair reads values, not always the same one: a processor's blocks are an even number apart, and it should have both kinds.
        if (!done && kinds == 2 && (number ^ number >> 2) % 2 == 1) {
            value_norms(Range(head, number / 2, head.n_tokens()));
            done = true;
        }
        done = done || args.attention == RECENCY;
        number /= kinds;
    }
    /// With the log-sum-exp given, no other pass looks at the window's keys for NaN.
    __device__ Range range() const { return Range(head, number, head.args.has_lse ? head.n_tokens() : head.n_columns()); }
};

template <class T, int D> __device__ void columns(const lava_score_args &args) {
    LAVA_DYNAMIC_SHARED(shared);
    const ColumnJob job(args);
    if (job.done) return;
    const Range range = job.range();
    if (range.first == range.end) return;
    constexpr int STAGES = LAVA_SCORE_STAGES(D);
    Columns<HELD<D>> columns(range, reinterpret_cast<float *>(shared + STAGES * KEYS * PITCH<D> * sizeof(T)));
    stream_keys<T, D>(range, shared, columns);
}

// ------------------------------------------------------------------------------- any type, dimension and strides

/// Exponents of two, but for the factor `logits.slope()`, of eight rows of a row tile and one key, by 128 threads: thread t has key t mod 64
/// and rows 8 (t / 64) up to the next 8. Dimensions go through shared memory 32 at a time. `faulty` becomes true if one of the dot
/// products is not finite.
__device__ inline void any_exponents(float (&x)[8], const Range &range, const Logits &logits, uint32_t row_tile,
                                     uint32_t first_key, bool &faulty) {
    constexpr uint32_t DIMS = 32, PITCH = DIMS + 1;
    LAVA_SHARED(float, keys, KEYS * PITCH);
    LAVA_SHARED(float, queries, ROWS * PITCH);
    const uint32_t padded = range.padded(), own = threadIdx.x % KEYS, upper = threadIdx.x / KEYS * 8;
    const lava_score_args &args = range.args;
    const float sign = args.scale < 0 ? -1 : 1; // as in load_queries
    for (int i = 0; i < 8; i++) x[i] = 0;
    for (uint32_t c0 = 0; c0 < args.head_dim_k; c0 += DIMS) {
        __syncthreads(); // the last ones are no longer read
        for (uint32_t i = threadIdx.x; i < (KEYS + ROWS) * DIMS; i += blockDim.x) {
            const uint32_t line = i / DIMS, c = c0 + i % DIMS;
            float value = 0;
            if (line < KEYS) {
                if (first_key + line < range.end && c < args.head_dim_k)
                    value = element(range.sequence.k, range.head, first_key + line, c);
                keys[line * PITCH + i % DIMS] = value;
            } else {
                const uint32_t row = row_tile * ROWS + line - KEYS, j = row % padded;
                if (j < args.window && c < args.head_dim_k)
                    value = sign * element(range.sequence.q, range.head * range.group() + row / padded, j, c);
                queries[(line - KEYS) * PITCH + i % DIMS] = value;
            }
        }
        __syncthreads();
        for (uint32_t c = 0; c < DIMS; c++) {
            const float k = keys[own * PITCH + c];
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = fmaf(k, queries[(upper + i) * PITCH + c], x[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) faulty |= !(fabsf(x[i]) < INFINITY);
    logits.cap(x);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint2 seen = range.seen((row_tile * ROWS + upper + i) % padded);
        if (first_key + own - seen.x >= seen.y) x[i] = UNSEEN;
    }
}

__device__ inline void stats_any(const lava_score_args &args) {
    const Head head(args, blockIdx.z, blockIdx.y);
    const Range range(head, blockIdx.x, head.n_tokens());
    if (head.prefix() == 0 || range.first == range.end) return;
    const Logits logits = logits_of(args);
    const float slope = logits.slope();
    const uint32_t upper = threadIdx.x / KEYS * 8;
    // Of the two warps with the same rows, each has a share of the keys.
    float2 *const to = partial_of(range, range.number * 2 + threadIdx.x / 32 % 2);
    bool faulty = false;
    for (uint32_t row_tile = 0; row_tile < range.row_tiles(); row_tile++) {
        Softmax rows[8];
        for (uint32_t key = range.first; key < range.end; key += KEYS) {
            float x[8];
            any_exponents(x, range, logits, row_tile, key, faulty);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                rows[i].raise(slope * x[i]);
                rows[i].sum += exp2_fast(fmaf(x[i], slope, -rows[i].max));
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            for (int distance = 1; distance < 32; distance *= 2) rows[i].merge_lanes(distance);
            if (threadIdx.x % 32 == 0) to[row_tile * ROWS + upper + i] = float2{rows[i].max, rows[i].sum};
        }
    }
    if (faulty) head.fault(LAVA_FAULT_Q_OR_K);
}

__device__ inline void columns_any(const lava_score_args &args) {
    LAVA_SHARED(float, sums, 2 * KEYS);
    LAVA_SHARED(float, squares, 2 * KEYS);
    LAVA_SHARED(float, entropies, 2 * KEYS);
    const ColumnJob job(args);
    if (job.done) return;
    const Range range = job.range();
    const Logits logits = logits_of(args);
    const float slope = logits.slope();
    const uint32_t upper = threadIdx.x / KEYS * 8, own = threadIdx.x % KEYS, tiles_of_head = range.padded() / ROWS;
    const float *const lse = args.row_lse + range.flat() * lava_score_rows(&args), *const rest = args.row_rest + range.flat() * lava_score_rows(&args);
    const bool spreads = lava_score_spreads(&args);
    // Rows of the window among the eight from this one of a query head on.
    const auto rows_of = [&](uint32_t row) { return row < args.window ? min(args.window - row, 8u) : 0u; };
    bool faulty = false;
    for (uint32_t first = range.first; first < range.end; first += KEYS) {
        ColumnSums column;
        const uint32_t key = first + own;
        const bool writes = threadIdx.x < KEYS && key < range.end && key < range.n_columns();
        for (uint32_t row_tile = 0; row_tile < range.row_tiles(); row_tile++) {
            float x[8], one = 0, two = 0, three = 0;
            any_exponents(x, range, logits, row_tile, first, faulty);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] = fmaf(x[i], slope, -lse[row_tile * ROWS + upper + i]);
                x[i] -= rest[row_tile * ROWS + upper + i];
                if (args.attention == SPREAD) three += surprise(x[i]);
                x[i] = exp2_fast(x[i]);
                one += x[i];
                two += x[i] * x[i];
            }
            const uint32_t rows = row_tile % tiles_of_head * ROWS;
            if (spreads) {
                // Of a thread's rows, their mean and the squares of what they are off it.
                const uint32_t n = rows_of(rows + upper);
                one = n > 0 ? one / n : 0, two = 0;
#pragma unroll
                for (uint32_t i = 0; i < 8; i++) two += i < n ? (x[i] - one) * (x[i] - one) : 0;
            }
            sums[threadIdx.x] = one;
            squares[threadIdx.x] = two;
            entropies[threadIdx.x] = three;
            __syncthreads(); // the other one, after the last reads, is the next row tile's first
            if (!writes) continue;
            if (spreads) {
                column.add_spread(rows, rows_of(rows), sums[own], squares[own]);
                if (rows_of(rows + 8) > 0) column.add_spread(rows + 8, rows_of(rows + 8), sums[own + KEYS], squares[own + KEYS]);
            } else {
                column.add(sums[own] + sums[own + KEYS], squares[own] + squares[own + KEYS]);
            }
            column.entropy += entropies[own] + entropies[own + KEYS];
            if ((row_tile + 1) % tiles_of_head == 0) column.end_head(range, key, row_tile / tiles_of_head);
        }
        if (writes) column.write(range, key);
    }
    if (faulty) job.head.fault(LAVA_FAULT_Q_OR_K);
}

// ------------------------------------------------------------------------------------------------------- in between

/// In f32 a log-sum-exp over ln 2 is off by half a unit of its last place. Up to here that is no more than what a logit is off by; beyond,
/// attention would not sum to 1.
constexpr float LARGEST_LSE = 256;

/// Log-sum-exp of 16 rows, over ln 2: the caller's, or what the ranges have merged in their order. Padding rows get
/// +infinity: nothing they look at gets any attention.
__device__ inline void row_lse(const lava_score_args &args) {
    constexpr uint32_t SHARES = 16; // threads of a row
    LAVA_SHARED(float, maxima, SHARES * ROWS);
    LAVA_SHARED(float, sums, SHARES * ROWS);
    const Head head(args, blockIdx.z, blockIdx.y);
    const uint32_t row = blockIdx.x * ROWS + threadIdx.x % ROWS, share = threadIdx.x / ROWS;
    const uint32_t j = row % head.padded();
    if (blockIdx.x == 0 && threadIdx.x == 0) args.value_max[head.flat()] = 0;
    if (head.prefix() == 0 || args.attention == RECENCY) return;
    Softmax softmax;
    if (!args.has_lse) {
        const uint32_t ranges = lava_score_ranges_of(&args, head.n_tokens());
        for (uint32_t part = share; part < ranges * args.key_split; part += SHARES) {
            const float2 its = partial_of(head, part)[row];
            softmax.merge(its.x, its.y);
        }
    }
    maxima[threadIdx.x] = softmax.max;
    sums[threadIdx.x] = softmax.sum;
    __syncthreads();
    if (share != 0) return;
    float lse = INFINITY, rest = 0;
    if (j < args.window) {
        if (args.has_lse) {
            lse = element(head.sequence.lse, head.head * head.group() + row / head.padded(), j, 0) * args.lse_to_base_2;
        } else {
            for (uint32_t i = 1; i < SHARES; i++) softmax.merge(maxima[i * ROWS + threadIdx.x], sums[i * ROWS + threadIdx.x]);
            rest = log2f(softmax.sum);
            lse = softmax.max + rest;
        }
        if (!(fabsf(lse) < INFINITY)) head.fault(args.has_lse ? LAVA_FAULT_LSE : LAVA_FAULT_Q_OR_K);
        // A variance is nothing but what attention differs by.
        const bool splits = fabsf(lse) >= LARGEST_LSE || lava_score_spreads(&args);
        if (!splits) rest = 0;
        else if (!args.has_lse) lse = softmax.max;
        if (args.attention == EXPONENTIAL) {
            // A weight by age, w decay (1 - decay)^age and for the oldest w (1 - decay)^age, is a term in the exponent.
            const float age = args.window - 1 - j, faded = age == 0 ? 0 : age * log2f(1 - args.decay);
            (splits ? rest : lse) -= log2f(float(args.window)) + (j == 0 ? 0 : log2f(args.decay)) + faded;
        }
    }
    args.row_lse[head.flat() * lava_score_rows(&args) + row] = lse;
    args.row_rest[head.flat() * lava_score_rows(&args) + row] = rest;
}

} // namespace lava

#define LAVA_SCORE_KERNELS(name, T, D)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, D > 128 ? 1 : 2) lava_score_stats_##name(const __grid_constant__ lava_score_args args) { \
        lava::stats<T, D>(args);                                                                                           \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, D > 128 ? 1 : 2) lava_score_columns_##name(const __grid_constant__ lava_score_args args) { \
        lava::columns<T, D>(args);                                                                                         \
    }
LAVA_SCORE_KERNELS(f16_64, __half, 64)
LAVA_SCORE_KERNELS(f16_80, __half, 80)
LAVA_SCORE_KERNELS(f16_96, __half, 96)
LAVA_SCORE_KERNELS(f16_128, __half, 128)
LAVA_SCORE_KERNELS(f16_256, __half, 256)
LAVA_SCORE_KERNELS(bf16_64, __nv_bfloat16, 64)
LAVA_SCORE_KERNELS(bf16_80, __nv_bfloat16, 80)
LAVA_SCORE_KERNELS(bf16_96, __nv_bfloat16, 96)
LAVA_SCORE_KERNELS(bf16_128, __nv_bfloat16, 128)
LAVA_SCORE_KERNELS(bf16_256, __nv_bfloat16, 256)

extern "C" __global__ void __launch_bounds__(128, 5) lava_score_stats_any(const __grid_constant__ lava_score_args args) { lava::stats_any(args); }
extern "C" __global__ void __launch_bounds__(128, 5) lava_score_columns_any(const __grid_constant__ lava_score_args args) { lava::columns_any(args); }
extern "C" __global__ void __launch_bounds__(256) lava_score_lse(const __grid_constant__ lava_score_args args) { lava::row_lse(args); }
