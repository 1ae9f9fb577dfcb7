// lava_compact_*: the CPU library's bytes.
#include "test.h"
#include "../compact.cu"

#include <algorithm>

using namespace test;

static long n_cases = 0;

/// Kept rows: of each head's `n[h]` about one in `one_in`.
static void keep(Random &random, const std::vector<uint32_t> &n, uint32_t one_in, std::vector<uint32_t> &rows, std::vector<uint32_t> &cu) {
    cu.assign(1, 0), rows.clear();
    for (const uint32_t rows_of_head : n) {
        for (uint32_t r = 0; r < rows_of_head; r++)
            if (random.below(one_in) == 0) rows.push_back(r);
        cu.push_back(uint32_t(rows.size()));
    }
}

template <class T> static void fill(Buffer<T> &to, const std::vector<T> &from) { std::copy(from.begin(), from.end(), to.data()); }

enum Kind { TO_RAGGED, TO_LAYOUT, WITHIN_HEADS, WITHIN_RAGGED };

static void check_compact(lava_dtype dtype, Kind kind, Layout layout, uint32_t heads, uint32_t n_tokens, uint32_t dk, uint32_t dv, uint32_t one_in, uint64_t seed) {
    SAMPLE;
    Random random(seed);
    std::vector<uint32_t> lengths(heads, n_tokens);
    std::vector<uint32_t> starts(heads), to_starts(heads), cu_rows(1, 0);
    if (kind == WITHIN_RAGGED)
        for (uint32_t h = 0; h < heads; h++) lengths[h] = random.below(n_tokens + 1);
    for (uint32_t h = 0; h < heads; h++) starts[h] = cu_rows[h] + 2 * h, cu_rows.push_back(cu_rows[h] + lengths[h]);
    std::vector<uint32_t> rows, cu;
    keep(random, lengths, one_in, rows, cu);
    for (uint32_t h = 0; h < heads; h++) to_starts[h] = cu[h];
    Buffer<uint32_t> g_rows(rows.size() + 3), g_cu(heads + 1), g_starts(heads), g_to_starts(heads);
    fill(g_cu, cu), fill(g_starts, starts), fill(g_to_starts, to_starts);
    std::copy(rows.begin(), rows.end(), g_rows.data() + 3);
    Buffer<uint64_t> offset(1);
    offset[0] = 3;

    const bool within = kind == WITHIN_HEADS || kind == WITHIN_RAGGED;
    const uint32_t dims[2] = {dk, dv};
    std::vector<std::unique_ptr<Tensor>> src, dst, cpu_dst;
    const auto ragged = [&](Tensor &t, uint32_t *start, uint32_t dim) {
        t.cpu = lava_tensor_ragged(dtype, t.memory.data(), t.memory.bytes(), start, dim);
        t.gpu = {t.memory.data(), int64_t(dim), 0, 1, start, dtype, 0};
    };
    lava_cuda_compact_args a = {};
    Buffer<lava_cuda_compact_item> list(2);
    Buffer<uint64_t> status(1, 0xFF);
    Buffer<uint32_t> n_rows(heads);
    a.items = list.data(), a.n_items = 2, a.n_kv_heads = heads, a.per_head = kind == WITHIN_HEADS, a.status = status.data();
    for (int i = 0; i < 2; i++) {
        const uint32_t room = kind == WITHIN_RAGGED ? cu_rows[heads] + 2 * heads : n_tokens;
        src.emplace_back(new Tensor(dtype, room, kind == WITHIN_RAGGED ? 1 : heads, dims[i], kind == WITHIN_RAGGED ? TOKEN_MAJOR : layout));
        for (size_t b = 0; b < src[i]->memory.bytes(); b++) src[i]->memory[b] = uint8_t(random.next());
        for (auto *to : {&dst, &cpu_dst}) {
            if (kind == TO_RAGGED) {
                to->emplace_back(new Tensor(dtype, uint32_t(rows.size()), 1, dims[i], TOKEN_MAJOR));
                ragged(*to->back(), g_to_starts.data(), dims[i]);
            } else {
                to->emplace_back(new Tensor(dtype, room, kind == WITHIN_RAGGED ? 1 : heads, dims[i], kind == WITHIN_RAGGED ? TOKEN_MAJOR : layout));
                if (kind == WITHIN_RAGGED) ragged(*to->back(), g_to_starts.data(), dims[i]);
            }
            // In place: the source's bytes, in a copy for each side.
            if (within) memcpy(to->back()->memory.data(), src[i]->memory.data(), src[i]->memory.bytes());
        }
        list[i] = {src[i]->gpu, dst[i]->gpu, g_rows.data(), g_cu.data(), offset.data(), dims[i], 0, i == 0 ? n_rows.data() : nullptr};
        if (within) list[i].src.data = list[i].dst.data;
        if (kind == WITHIN_RAGGED) list[i].src.row_start = g_starts.data(), list[i].src.stride_head = 0, list[i].src.stride_token = dims[i];
    }
    const lava_shape shape = lava_shape_init(std::max(1u, n_tokens), heads, heads, dk, dv, 1);
    lava_tensor k = within ? cpu_dst[0]->cpu : src[0]->cpu, v = within ? cpu_dst[1]->cpu : src[1]->cpu;
    if (kind == WITHIN_RAGGED) k.row_start = v.row_start = g_starts.data();
    CHECK(lava_compact(&shape, &k, &v, kind == WITHIN_RAGGED ? cu_rows.data() : nullptr, g_rows.data() + 3, cu.data(), &cpu_dst[0]->cpu, &cpu_dst[1]->cpu, 0, 1, nullptr) == LAVA_OK, "the CPU refuses");
    std::vector<std::vector<uint8_t>> before;
    for (auto &t : dst) before.emplace_back(t->memory.data(), t->memory.data() + t->memory.bytes());
    // The last one with a fault: nothing moves.
    for (unsigned s = 0; s <= n_seeds(); s++) {
        const bool moves = s < n_seeds();
        if (!moves) status[0] = lava_fault(LAVA_FAULT_SCORES, 0, 0, 0);
        for (int i = 0; i < 2; i++) std::copy(before[i].begin(), before[i].end(), dst[i]->memory.data());
        const bool narrow = size_of(dtype) == 2;
        if (within) {
            const uint32_t slices = lava_cuda_compact_slices(std::max(dk, dv), uint32_t(size_of(dtype)));
            launch(narrow ? lava_compact_within_16 : lava_compact_within_32, slices, kind == WITHIN_HEADS ? heads : 1, 2, LAVA_CUDA_COMPACT_THREADS, 0, s, a);
        } else {
            launch(narrow ? lava_compact_16 : lava_compact_32, 2, heads, 2, LAVA_CUDA_COMPACT_THREADS, 0, s, a);
        }
        for (uint32_t h = 0; h < heads; h++) CHECK(n_rows[h] == cu[h + 1] - cu[h], "rows of head %u", h);
        for (int i = 0; i < 2; i++) CHECK(dst[i]->memory.bytes() == 0 || memcmp(dst[i]->memory.data(), moves ? cpu_dst[i]->memory.data() : before[i].data(), dst[i]->memory.bytes()) == 0, "%s kind %d layout %d: %s", name_of(dtype), kind, layout, i ? "v" : "k");
    }
    n_cases++;
}

int main() {
    uint64_t seed = 0;
    for (const lava_dtype t : {LAVA_BF16, LAVA_F32}) {
        for (const Layout layout : {TOKEN_MAJOR, HEAD_MAJOR, TRANSPOSED, GAPS})
            for (const Kind kind : {TO_RAGGED, TO_LAYOUT, WITHIN_HEADS})
                for (const uint32_t one_in : {1u, 3u}) check_compact(t, kind, layout, 3, 150, 64, 40, one_in, seed++);
        for (const uint32_t one_in : {1u, 2u, 9u}) {
            check_compact(t, WITHIN_RAGGED, TOKEN_MAJOR, 4, 300, 64, 128, one_in, seed++);
            check_compact(t, WITHIN_RAGGED, TOKEN_MAJOR, 3, 1500, 8, 7, one_in, seed++);
            check_compact(t, WITHIN_HEADS, TOKEN_MAJOR, 2, 3000, 16, 3, one_in, seed++);
        }
    }
    return finish("compact", n_cases);
}
