// From scores to the kept set, by the blocks of one item together: thresholds by radix histograms, never a sort.
//
//     k-th largest   three digits of an order-preserving key, 11 + 11 + 10 bits: histogram of the keys that share the digits so far,
//                    then the bucket with the k-th
//     choose         the `n_entries` largest; with a floor also each head's own best; or counts by weights from outside; then one cut
//                    per head
//     write          entries above their head's cut, and the first of those equal to it, in token order
//
// The rules are src/select.rs's: of equal scores the lower head's, then the lower token's. All sums are of integers, so neither
// the number of blocks nor their schedule matters. Blocks meet after each histogram and each bucket (meet_blocks).
//
// Only the source of the entries knows whose heads they are: a layer's, or those of all layers.
//
// Entries that a floor has taken do not compete. They are those above the head's cut and some of those equal to it; a histogram
// needs no ranks, so what is taken of the equal ones is subtracted from their bucket.
#pragma once
#include "budget.cuh"

/// Without this the compiler saves registers for more blocks than the shared memory has room for, and spills.
#define LAVA_SELECT_KERNEL extern "C" __global__ void __launch_bounds__(LAVA_CUDA_SELECT_THREADS, 2)

namespace lava {

constexpr uint32_t NOTHING = UINT32_MAX;   // a cut that keeps nothing, with no ties
constexpr uint32_t PROTECTED = UINT32_MAX; // key of a protected entry, above every score's
constexpr uint32_t FLOOR_GUARANTEED = 1, FLOOR_AFFINE = 2; // LAVA_FLOOR_

/// An integer with the order of the score; −0 and 0 are the same.
__device__ inline uint32_t order_key(float score) {
    const uint32_t bits = __float_as_uint(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// A head's entries in token order, without its window.
struct Head {
    const float *scores;
    const uint32_t *positions; // NULL: entry i is token i
    uint32_t len;
    __device__ uint32_t position(uint32_t i) const { return positions == nullptr ? i : positions[i]; }
};

/// Heads of one layer that nothing was evicted from yet: [n_heads, prefix_len].
struct Dense {
    const float *scores;
    uint32_t prefix_len;
    __device__ Head operator()(uint32_t h) const { return {scores + uint64_t(h) * prefix_len, nullptr, prefix_len}; }
};

/// Which of an item's blocks a block is, and where its share of the tiles begins. In shared memory: registers are scarce.
struct Share {
    uint32_t block, n_blocks, first_head, first_tile, n_tiles;
};
__device__ inline Share &own_share() {
    LAVA_SHARED(Share, own, 1);
    return *own;
}

/// An item's entries and memory, as one of its blocks sees them. `Source` gives a head by its number.
template <class Source> struct Choice {
    Source head;
    lava_cuda_select_params params;
    uint32_t n_heads, prefix_len, window_rows;
    uint32_t tiles_per_head;
    uint32_t *control; // [16]: counter of meetings, faulty scores' first head, protected entries of a head, layer's cut, its ties, smallest score
    uint32_t *histogram; // [n_heads, LAVA_CUDA_BUCKETS]
    uint32_t *taken_key, *taken_ties, *cut_key, *cut_ties, *counts, *above, *equal; // [n_heads]
    uint32_t *tile;      // [tiles, 2]: entries above the cut, equal to it
    double *tile_mass;   // [tiles, 2]: all, kept

    __device__ Choice(const Source &head, const lava_cuda_select_params &params, uint32_t n_heads, uint32_t prefix_len, uint32_t window_rows)
        : head(head), params(params), n_heads(n_heads), prefix_len(prefix_len), window_rows(window_rows) {}
    /// Where its memory is: after the control words of all `n_items`.
    __device__ void place(unsigned char *workspace, uint32_t item, uint32_t n_items, uint32_t max_prefix) {
        const lava_cuda_choice_layout l = lava_cuda_choice_place(n_heads, max_prefix);
        control = reinterpret_cast<uint32_t *>(workspace + uint64_t(item) * LAVA_CUDA_CONTROL_BYTES);
        unsigned char *own = workspace + uint64_t(n_items) * LAVA_CUDA_CONTROL_BYTES + item * l.size;
        histogram = reinterpret_cast<uint32_t *>(own + l.histogram);
        uint32_t *const first = reinterpret_cast<uint32_t *>(own + l.head);
        const auto of_heads = [&](uint32_t which) { return first + uint64_t(which) * n_heads; };
        taken_key = of_heads(0), taken_ties = of_heads(1), cut_key = of_heads(2), cut_ties = of_heads(3);
        counts = of_heads(4), above = of_heads(5), equal = of_heads(6);
        tile = reinterpret_cast<uint32_t *>(own + l.tile);
        tile_mass = reinterpret_cast<double *>(own + l.tile_mass);
        tiles_per_head = lava_cuda_tiles(prefix_len);
    }
    /// Makes this block one of `n`. Each gets as many of the tiles that there are: of a head that was evicted from, most are not.
    __device__ void share(uint32_t block, uint32_t n) const {
        LAVA_SHARED(uint32_t, warps, LAVA_CUDA_SELECT_THREADS / 32);
        Share &own = own_share();
        const uint32_t each = (n_heads + blockDim.x - 1) / blockDim.x, begin = threadIdx.x * each, end = min(begin + each, n_heads);
        uint32_t tiles = 0, all = 0;
        for (uint32_t h = begin; h < end; h++) tiles += lava_cuda_tiles(len(h));
        uint32_t before = sum_before(tiles, warps);
        for (uint32_t w = 0; w < blockDim.x / 32; w++) all += warps[w];
        const uint32_t first = uint32_t(uint64_t(all) * block / n);
        if (threadIdx.x == 0) own.block = block, own.n_blocks = n, own.n_tiles = uint32_t(uint64_t(all) * (block + 1) / n) - first;
        for (uint32_t h = begin; h < end && before <= first; h++) {
            const uint32_t its = lava_cuda_tiles(len(h));
            if (first - before < its) own.first_head = h, own.first_tile = first - before;
            before += its;
        }
        __syncthreads();
    }
    __device__ uint32_t block() const { return own_share().block; }
    __device__ uint32_t n_blocks() const { return own_share().n_blocks; }
    __device__ void meet() const { meet_blocks(control, n_blocks()); }
    __device__ uint32_t len(uint32_t h) const { return head(h).len; }
    __device__ bool is_protected(uint32_t position) const {
        return position < params.n_sink || (params.protected_mask != nullptr && params.protected_mask[position] != 0);
    }
    __device__ uint32_t key(const Head &of, uint32_t i) const {
        return is_protected(of.position(i)) ? PROTECTED : order_key(of.scores[i]);
    }
    /// Calls `f(key)` for each of a head's entries `first` up to `end`, by its thread. Of eight of them all scores are on their way before the
    /// first is looked at, protected or not: memory is far away.
    template <class F> __device__ void for_keys(const Head &of, uint32_t first, uint32_t end, F f) const {
        constexpr uint32_t AT_ONCE = 8, APART = LAVA_CUDA_SELECT_THREADS;
        for (uint32_t at = first + threadIdx.x; at < end; at += AT_ONCE * APART) {
            float score[AT_ONCE];
            uint32_t position[AT_ONCE];
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++) {
                const uint32_t i = min(at + k * APART, end - 1);
                score[k] = of.scores[i];
                position[k] = of.position(i);
            }
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++)
                if (at + k * APART < end) f(is_protected(position[k]) ? PROTECTED : order_key(score[k]));
        }
    }
    /// What scores count from: 0, or the smallest where that is negative. After begin_choice.
    __device__ double base() const { return double(__uint_as_float(control[5])); }
    /// Entries that each head keeps before any compete. After begin_choice, and where nothing was evicted.
    __device__ uint32_t minimum() const { return max(control[2], min(params.head_min, prefix_len)); }

    /// Calls `f(tile, h, head, first, end)` for this block's share of the tiles, for all threads.
    template <class F> __device__ void for_tiles(F f) const {
        uint32_t h = own_share().first_head, tile = own_share().first_tile;
        for (uint32_t left = own_share().n_tiles; left > 0; h++, tile = 0) {
            const Head own = head(h);
            for (; left > 0 && tile * LAVA_CUDA_SELECT_TILE < own.len; tile++, left--)
                f(h * tiles_per_head + tile, h, own, tile * LAVA_CUDA_SELECT_TILE, min(own.len, (tile + 1) * LAVA_CUDA_SELECT_TILE));
        }
    }
};

/// For each field, a head or the whole layer, the `ties[f]`-th largest key: into key[f], and into ties[f] how many of those equal to
/// it are among the largest. 0 of them: NOTHING. For the whole layer, what is taken does not count. Histograms are zero before and
/// after it; all blocks have met after it.
template <class Source> __device__ void kth_largest(const Choice<Source> &c, bool per_head, uint32_t *key, uint32_t *ties) {
    LAVA_SHARED(uint32_t, local, LAVA_CUDA_BUCKETS);
    LAVA_SHARED(uint32_t, sums, LAVA_CUDA_SELECT_THREADS / 32);
    for (uint32_t b = threadIdx.x; b < LAVA_CUDA_BUCKETS; b += blockDim.x) local[b] = 0;
    for (uint32_t fixed = 0; fixed < 32;) {
        const uint32_t bits = min(11u, 32 - fixed), shift = 32 - fixed - bits, mask = (1u << bits) - 1;
        const auto matches = [&](uint32_t k, uint32_t prefix) { return fixed == 0 || k >> (32 - fixed) == prefix; };
        const auto flush = [&](uint32_t field) {
            __syncthreads();
            for (uint32_t b = threadIdx.x; b <= mask; b += blockDim.x)
                if (local[b] != 0) {
                    atomicAdd(&c.histogram[uint64_t(field) * LAVA_CUDA_BUCKETS + b], local[b]);
                    local[b] = 0;
                }
            __syncthreads();
        };
        __syncthreads();
        c.for_tiles([&](uint32_t, uint32_t h, const Head &head, uint32_t first, uint32_t end) {
            const uint32_t field = per_head ? h : 0, prefix = key[field], highest = per_head ? UINT32_MAX : c.taken_key[h];
            c.for_keys(head, first, end, [&](uint32_t k) {
                if (matches(k, prefix) && k <= highest) atomicAdd(&local[k >> shift & mask], 1u);
            });
            if (!per_head && first == 0 && threadIdx.x == 0 && matches(highest, prefix))
                atomicAdd(&c.histogram[highest >> shift & mask], 0u - c.taken_ties[h]);
            if (per_head) flush(field);
        });
        if (!per_head) flush(0);
        c.meet();
        for (uint32_t field = c.block(); field < (per_head ? c.n_heads : 1); field += c.n_blocks()) {
            // Each thread takes eight buckets, thread 0 the highest.
            constexpr uint32_t PER = LAVA_CUDA_BUCKETS / LAVA_CUDA_SELECT_THREADS;
            uint32_t *const histogram = c.histogram + uint64_t(field) * LAVA_CUDA_BUCKETS;
            const uint32_t top = LAVA_CUDA_BUCKETS - 1 - threadIdx.x * PER;
            uint32_t count[PER], own = 0;
            for (uint32_t b = 0; b < PER; b++) {
                count[b] = histogram[top - b];
                histogram[top - b] = 0;
                own += count[b];
            }
            uint32_t before = sum_before(own, sums);
            const uint32_t wanted = ties[field], prefix = fixed == 0 ? 0 : key[field] << bits;
            __syncthreads(); // all have read what one of them writes
            if (wanted == 0) {
                if (threadIdx.x == 0) key[field] = prefix | mask;
            } else {
                for (uint32_t b = 0; b < PER; b++) {
                    if (before < wanted && wanted <= before + count[b]) {
                        key[field] = prefix | (top - b);
                        ties[field] = wanted - before;
                    }
                    before += count[b];
                }
            }
            __syncthreads();
        }
        c.meet();
        fixed += bits;
    }
}

/// Zeroes what `choose` counts in; looks for faulty scores and counts the first head's protected entries. All blocks have met after it.
template <class Source> __device__ void begin_choice(const Choice<Source> &c) {
    LAVA_SHARED(uint32_t, warps, LAVA_CUDA_SELECT_THREADS / 32);
    for (uint64_t b = uint64_t(c.block()) * blockDim.x + threadIdx.x; b < uint64_t(c.n_heads) * LAVA_CUDA_BUCKETS; b += uint64_t(c.n_blocks()) * blockDim.x)
        c.histogram[b] = 0;
    if (c.block() == 0)
        for (uint32_t h = threadIdx.x; h < c.n_heads; h += blockDim.x) c.above[h] = c.equal[h] = 0;
    c.for_tiles([&](uint32_t, uint32_t h, const Head &head, uint32_t first, uint32_t end) {
        bool faulty = false;
        float smallest = 0;
        for (uint32_t i = first + threadIdx.x; i < end; i += blockDim.x) {
            const float score = head.scores[i];
            faulty |= !is_finite(score);
            smallest = fminf(smallest, score);
        }
        // The lowest head at fault: the largest complement. The smallest score: the smaller a negative number, the larger its bits.
        if (faulty) atomicMax(&c.control[1], UINT32_MAX - h);
        if (smallest < 0) atomicMax(&c.control[5], __float_as_uint(smallest));
        if (h != 0) return;
        uint32_t n = 0;
        for (uint32_t i = first + threadIdx.x; i < end; i += blockDim.x) n += c.is_protected(head.position(i));
        n = block_sum(n, warps);
        if (threadIdx.x == 0 && n != 0) atomicAdd(&c.control[2], n);
    });
    c.meet();
}

/// What is wrong with a choice, and with which head.
struct Fault {
    uint32_t what, head; // what 0: nothing
};

/// What is wrong before the first choice, for all threads of all blocks; in the order in which the CPU looks. After begin_choice.
template <class Source> __device__ Fault fault_of(const Choice<Source> &c, uint64_t n_entries) {
    LAVA_SHARED(uint32_t, first, 1);
    if (c.params.head_weights != nullptr) {
        const uint32_t head = first_faulty_weight(c.params.head_weights, c.n_heads, first);
        if (head < c.n_heads) return {LAVA_FAULT_WEIGHTS, head};
    }
    if (n_entries < uint64_t(c.minimum()) * c.n_heads) return {LAVA_FAULT_BUDGET, 0};
    if (c.control[1] != 0) return {LAVA_FAULT_SCORES, UINT32_MAX - c.control[1]};
    return {0, 0};
}

/// Each head's `guarantee` best entries, and the best of the others, `n_entries` in all: counts, and where nothing is guaranteed the cuts.
/// Block 0 alone has them after it.
template <class Source> __device__ void compete(const Choice<Source> &c, uint64_t guarantee, uint64_t n_entries) {
    LAVA_SHARED(uint32_t, warps, LAVA_CUDA_SELECT_THREADS / 32);
    LAVA_SHARED(uint64_t, wide, LAVA_CUDA_SELECT_THREADS / 32);
    LAVA_SHARED(uint32_t, equals, LAVA_CUDA_SELECT_THREADS);
    uint64_t all_taken = 0;
    for (uint32_t h = threadIdx.x; h < c.n_heads; h += blockDim.x) {
        const uint32_t taken = uint32_t(min(guarantee, uint64_t(c.len(h))));
        all_taken += taken;
        if (c.block() != 0) continue;
        c.taken_key[h] = c.cut_key[h] = NOTHING;
        c.taken_ties[h] = c.counts[h] = taken;
        c.cut_ties[h] = 0;
    }
    const uint64_t left = n_entries - block_sum(all_taken, wide);
    uint32_t *const layer_key = c.control + 3, *const layer_ties = c.control + 4;
    if (c.block() == 0 && threadIdx.x == 0) *layer_ties = uint32_t(left);
    c.meet();
    if (guarantee > 0) kth_largest(c, true, c.taken_key, c.taken_ties);
    if (left == 0) return;
    kth_largest(c, false, layer_key, layer_ties);
    const uint32_t threshold = *layer_key;
    c.for_tiles([&](uint32_t, uint32_t h, const Head &head, uint32_t first, uint32_t end) {
        const uint32_t highest = c.taken_key[h];
        uint32_t above = 0, equal = 0;
        c.for_keys(head, first, end, [&](uint32_t key) {
            above += key > threshold && key <= highest;
            equal += key == threshold && key <= highest;
        });
        above = block_sum(above, warps);
        equal = block_sum(equal, warps);
        if (threadIdx.x == 0) {
            atomicAdd(&c.above[h], above);
            atomicAdd(&c.equal[h], equal);
        }
    });
    c.meet();
    if (c.block() != 0) return;
    // Ties go to the lower head.
    uint32_t ties = *layer_ties;
    for (uint32_t first = 0; first < c.n_heads; first += blockDim.x) {
        const uint32_t h = first + threadIdx.x, n = min(c.n_heads - first, uint32_t(blockDim.x));
        const bool is_head = threadIdx.x < n;
        const uint32_t equal = is_head ? c.equal[h] - (c.taken_key[h] == threshold ? c.taken_ties[h] : 0) : 0;
        equals[threadIdx.x] = equal;
        __syncthreads();
        uint32_t lower = 0, all = 0;
        for (uint32_t t = 0; t < n; t++) {
            if (t < threadIdx.x) lower += equals[t];
            all += equals[t];
        }
        __syncthreads();
        if (is_head) {
            const uint32_t won = min(equal, ties - min(ties, lower));
            c.counts[h] += c.above[h] - (c.taken_key[h] > threshold ? c.taken_ties[h] : 0) + won;
            c.cut_key[h] = threshold;
            c.cut_ties[h] = won;
        }
        ties -= min(ties, all);
    }
}

/// What each head is promised: the guaranteed floor's part of `n_entries`, or head_min.
__device__ inline uint64_t floor_of(const lava_cuda_select_params &params, uint64_t n_entries, uint32_t n_heads) {
    const uint64_t guaranteed = params.head_floor == FLOOR_GUARANTEED ? guaranteed_floor(params.alpha_billionths, n_entries, n_heads) : 0;
    return max(guaranteed, uint64_t(params.head_min));
}

/// How many entries each head keeps, and its cut. `n_entries` is at most their number and holds each head's `minimum`, the protected ones
/// among them. Rounding::UP: the smallest set that holds every set that the same entries would give for `n_entries` or less.
template <class Source> __device__ void choose(const Choice<Source> &c, uint64_t minimum, uint64_t n_entries, Rounding rounding) {
    LAVA_SHARE_MEMORY(m, LAVA_CUDA_MAX_HEADS, LAVA_CUDA_SELECT_THREADS);
    const lava_cuda_select_params &params = c.params;
    const auto at_most = [&](uint64_t n, uint32_t h) { return uint32_t(min(n, uint64_t(c.len(h)))); };
    const auto each = [&](auto f) {
        for (uint32_t h = threadIdx.x; h < c.n_heads; h += blockDim.x) f(h);
        __syncthreads();
    };
    if (params.head_weights != nullptr) {
        if (c.block() == 0) {
            const auto least = [&](uint32_t h) -> uint64_t { return at_most(minimum, h); };
            water_fill(c.n_heads, params.head_weights, [&](uint32_t h) -> uint64_t { return c.len(h); }, least, n_entries, rounding, m);
            each([&](uint32_t h) { c.counts[h] = at_most(m.share[h], h); });
        }
    } else {
        const uint64_t floor = floor_of(params, n_entries, c.n_heads);
        compete(c, rounding == Rounding::EXACT ? floor : 0, n_entries);
        if (floor == 0 && params.head_floor != FLOOR_AFFINE) {
            c.meet();
            return;
        }
        if (c.block() == 0) each([&](uint32_t h) { c.counts[h] = max(c.counts[h], at_most(floor, h)); });
        if (c.block() == 0 && params.head_floor == FLOOR_AFFINE) {
            const uint64_t alpha = params.alpha_billionths;
            uint32_t *const free = c.above; // it has done its work
            each([&](uint32_t h) { free[h] = c.counts[h], m.share[h] = OPEN; });
            const auto numerator = [&](uint32_t h) { return u128(ALPHA_ONE - alpha) * free[h] * c.n_heads + u128(alpha) * n_entries; };
            round_shares(rounding, ALPHA_ONE * c.n_heads, n_entries, c.n_heads, numerator, m.share, m.remainder, m.sums);
            __syncthreads();
            // The counts of a later, smaller number start from free competition again.
            each([&](uint32_t h) { c.counts[h] = at_most(rounding == Rounding::UP ? max(m.share[h], uint64_t(free[h])) : m.share[h], h); });
        }
    }
    if (c.block() == 0)
        for (uint32_t h = threadIdx.x; h < c.n_heads; h += blockDim.x) c.cut_ties[h] = c.counts[h];
    c.meet();
    kth_largest(c, true, c.cut_key, c.cut_ties);
}

/// Rows of each head in the kept set: what `choose` decided, and its window. Their sums from 0, by one thread.
__device__ inline void write_counts(const uint32_t *counts, uint32_t n_heads, uint32_t window_rows, uint32_t *cu_kept) {
    uint32_t sum = 0;
    for (uint32_t h = 0; h <= n_heads; h++) {
        cu_kept[h] = sum;
        if (h < n_heads) sum += counts[h] + window_rows;
    }
}

/// Calls `emit(h, head, row, place)` for each kept row of each head, the window's after the others; `place` is its row among the kept
/// ones. Leaves sums of scores, from the base on, in tile_mass. All blocks have met after it.
template <class Source, class Emit> __device__ void write_kept(const Choice<Source> &c, uint32_t *counter, Emit emit) {
    LAVA_SHARED(uint32_t, warps, LAVA_CUDA_SELECT_THREADS / 32);
    LAVA_SHARED(uint32_t, equal_of, LAVA_CUDA_SELECT_THREADS / 32);
    LAVA_SHARED(uint32_t, kept_of, LAVA_CUDA_SELECT_THREADS / 32);
    LAVA_SHARED(double, masses, LAVA_CUDA_SELECT_THREADS / 32);
    const double base = c.base();
    c.for_tiles([&](uint32_t t, uint32_t h, const Head &head, uint32_t first, uint32_t end) {
        const uint32_t cut = c.cut_key[h];
        uint32_t above = 0, equal = 0;
        c.for_keys(head, first, end, [&](uint32_t key) {
            above += key > cut;
            equal += key == cut;
        });
        above = block_sum(above, warps);
        equal = block_sum(equal, warps);
        if (threadIdx.x == 0) c.tile[2 * t] = above, c.tile[2 * t + 1] = equal;
    });
    meet_blocks(counter, c.n_blocks());
    c.for_tiles([&](uint32_t t, uint32_t h, const Head &head, uint32_t first, uint32_t end) {
        uint32_t above = 0, equal_before = 0;
        for (uint32_t before = h * c.tiles_per_head + threadIdx.x; before < t; before += blockDim.x)
            above += c.tile[2 * before], equal_before += c.tile[2 * before + 1];
        above = block_sum(above, warps);
        equal_before = block_sum(equal_before, warps);
        const uint32_t cut = c.cut_key[h], ties = c.cut_ties[h];
        uint32_t place = above + min(equal_before, ties);
        double mass = 0.0, kept_mass = 0.0;
        uint32_t next = first + threadIdx.x < end ? c.key(head, first + threadIdx.x) : 0;
        for (uint32_t step = first; step < end; step += blockDim.x) {
            const uint32_t i = step + threadIdx.x, below = (1u << lane()) - 1, key = next;
            next = i + blockDim.x < end ? c.key(head, i + blockDim.x) : 0; // comes while the ranks are counted
            const bool is_equal = i < end && key == cut;
            const uint32_t equals = __ballot_sync(ALL, is_equal);
            if (lane() == 0) equal_of[warp()] = __popc(equals);
            __syncthreads();
            uint32_t rank = equal_before + __popc(equals & below);
            for (uint32_t w = 0; w < blockDim.x / 32; w++) {
                if (w < warp()) rank += equal_of[w];
                equal_before += equal_of[w];
            }
            const bool kept = i < end && (key > cut || (is_equal && rank < ties));
            const uint32_t keeps = __ballot_sync(ALL, kept);
            if (lane() == 0) kept_of[warp()] = __popc(keeps);
            __syncthreads();
            uint32_t own = place + __popc(keeps & below);
            for (uint32_t w = 0; w < blockDim.x / 32; w++) {
                if (w < warp()) own += kept_of[w];
                place += kept_of[w];
            }
            if (i < end) mass += double(head.scores[i]) - base;
            if (kept) {
                kept_mass += double(head.scores[i]) - base;
                emit(h, head, i, own);
            }
        }
        mass = block_sum(mass, masses);
        kept_mass = block_sum(kept_mass, masses);
        if (threadIdx.x == 0) c.tile_mass[2 * t] = mass, c.tile_mass[2 * t + 1] = kept_mass;
    });
    for (uint32_t h = c.block(); h < c.n_heads; h += c.n_blocks()) {
        const Head head = c.head(h);
        for (uint32_t j = threadIdx.x; j < c.window_rows; j += blockDim.x) emit(h, head, head.len + j, c.counts[h] + j);
    }
    meet_blocks(counter, c.n_blocks());
}

/// Sum over the tiles by one block, for all of its threads: of all scores (0) or of the kept ones (1). `memory`: one entry per warp.
template <class Source> __device__ double mass_of_tiles(const Choice<Source> &c, int which, double *memory) {
    double mass = 0.0;
    for (uint32_t t = threadIdx.x; t < c.n_heads * c.tiles_per_head; t += blockDim.x)
        if (t % c.tiles_per_head < lava_cuda_tiles(c.len(t / c.tiles_per_head))) mass += c.tile_mass[2 * t + which];
    return block_sum(mass, memory);
}

__device__ inline double evicted_share(bool everything_kept, double mass, double kept_mass) {
    if (everything_kept || !(mass > 0.0)) return 0.0;
    const double share = 1.0 - kept_mass / mass;
    return share < 0.0 ? 0.0 : share > 1.0 ? 1.0 : share;
}

/// No block has arrived, and nothing is found: an item's control words, before any of its blocks begin.
__device__ inline void clear_control(unsigned char *workspace, uint32_t item) {
    uint32_t *const control = reinterpret_cast<uint32_t *>(workspace + uint64_t(item) * LAVA_CUDA_CONTROL_BYTES);
    if (threadIdx.x < LAVA_CUDA_CONTROL_BYTES / 4) control[threadIdx.x] = 0;
}

} // namespace lava
