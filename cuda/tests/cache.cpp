// lava_compact_*: the CPU library's bytes. lava_attend_*: its outputs, within 1e-5 of the largest value a row could give: weights sum
// to 1, and each has a relative error of a few 1e-6 from its logit (d products in f32) and its exponential.
#include "test.h"
#include "../compact.cu"
#include "../attend.cu"

#include <algorithm>
#include <numeric>

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
        t.gpu = {t.memory.data(), start, int64_t(dim), 0, 1};
    };
    lava_cuda_compact_args a = {};
    a.n_items = 2, a.n_kv_heads = heads, a.per_head = kind == WITHIN_HEADS;
    for (int i = 0; i < 2; i++) {
        const uint32_t room = kind == WITHIN_RAGGED ? cu_rows[heads] + 2 * heads : n_tokens;
        src.emplace_back(new Tensor(dtype, room, kind == WITHIN_RAGGED ? 1 : heads, dims[i], kind == WITHIN_RAGGED ? TOKEN_MAJOR : layout));
        for (size_t b = 0; b < src[i]->memory.bytes(); b++) src[i]->memory[b] = uint8_t(random.next());
        for (auto *list : {&dst, &cpu_dst}) {
            if (kind == TO_RAGGED) {
                list->emplace_back(new Tensor(dtype, uint32_t(rows.size()), 1, dims[i], TOKEN_MAJOR));
                ragged(*list->back(), g_to_starts.data(), dims[i]);
            } else {
                list->emplace_back(new Tensor(dtype, room, kind == WITHIN_RAGGED ? 1 : heads, dims[i], kind == WITHIN_RAGGED ? TOKEN_MAJOR : layout));
                if (kind == WITHIN_RAGGED) ragged(*list->back(), g_to_starts.data(), dims[i]);
            }
            // In place: the source's bytes, in a copy for each side.
            if (within) memcpy(list->back()->memory.data(), src[i]->memory.data(), src[i]->memory.bytes());
        }
        a.item[i] = {src[i]->gpu, dst[i]->gpu, g_rows.data(), g_cu.data(), offset.data(), dims[i], 0};
        if (within) a.item[i].src.data = a.item[i].dst.data;
        if (kind == WITHIN_RAGGED) a.item[i].src.row_start = g_starts.data(), a.item[i].src.stride_head = 0, a.item[i].src.stride_token = dims[i];
    }
    const lava_shape shape = lava_shape_init(std::max(1u, n_tokens), heads, heads, dk, dv, 1);
    lava_tensor k = within ? cpu_dst[0]->cpu : src[0]->cpu, v = within ? cpu_dst[1]->cpu : src[1]->cpu;
    if (kind == WITHIN_RAGGED) k.row_start = v.row_start = g_starts.data();
    CHECK(lava_compact(&shape, &k, &v, kind == WITHIN_RAGGED ? cu_rows.data() : nullptr, g_rows.data() + 3, cu.data(), &cpu_dst[0]->cpu, &cpu_dst[1]->cpu, 0, 1, nullptr) == LAVA_OK, "the CPU refuses");
    std::vector<std::vector<uint8_t>> before;
    for (auto &t : dst) before.emplace_back(t->memory.data(), t->memory.data() + t->memory.bytes());
    for (unsigned s = 0; s < n_seeds(); s++) {
        for (int i = 0; i < 2; i++) std::copy(before[i].begin(), before[i].end(), dst[i]->memory.data());
        const bool narrow = size_of(dtype) == 2;
        if (within) {
            const uint32_t slices = lava_cuda_compact_slices(std::max(dk, dv), uint32_t(size_of(dtype)));
            launch(narrow ? lava_compact_within_16 : lava_compact_within_32, slices, kind == WITHIN_HEADS ? heads : 1, 2, LAVA_CUDA_COMPACT_THREADS, 0, s, a);
        } else {
            launch(narrow ? lava_compact_16 : lava_compact_32, 2, heads, 2, LAVA_CUDA_COMPACT_THREADS, 0, s, a);
        }
        for (int i = 0; i < 2; i++) CHECK(dst[i]->memory.bytes() == 0 || memcmp(dst[i]->memory.data(), cpu_dst[i]->memory.data(), dst[i]->memory.bytes()) == 0, "%s kind %d layout %d: %s", name_of(dtype), kind, layout, i ? "v" : "k");
    }
    n_cases++;
}

struct Attend {
    lava_dtype dtype;
    uint32_t n_q_heads, n_kv_heads, dk, dv, n_new, causal, n_splits;
    std::vector<uint32_t> rows;
    uint32_t sliding = 0;
    float scale = 0, softcap = 0;
    bool transposed_v = false;
};
using Kernel = void (*)(const lava_cuda_attend_args);
static Kernel variant(lava_dtype dtype, uint32_t columns) {
    const uint32_t known[] = {2, 3, 4, 8, 18};
    const Kernel f16[] = {lava_attend_f16_2, lava_attend_f16_3, lava_attend_f16_4, lava_attend_f16_8, lava_attend_f16_18};
    const Kernel bf16[] = {lava_attend_bf16_2, lava_attend_bf16_3, lava_attend_bf16_4, lava_attend_bf16_8, lava_attend_bf16_18};
    const Kernel f32[] = {lava_attend_f32_2, lava_attend_f32_3, lava_attend_f32_4, lava_attend_f32_8, lava_attend_f32_18};
    const long at = std::find(known, known + 5, columns) - known;
    return (dtype == LAVA_F16 ? f16 : dtype == LAVA_BF16 ? bf16 : f32)[at];
}
static double worst = 0;

static void check_attend(const Attend &c, int fault = 0) {
    Random random(c.dk + c.n_new + c.rows[0]);
    const uint32_t heads = c.n_kv_heads, total = std::accumulate(c.rows.begin(), c.rows.end(), 0u);
    const uint32_t longest = *std::max_element(c.rows.begin(), c.rows.end());
    Buffer<uint32_t> start(heads), n_rows(heads), cu(heads + 1);
    std::vector<uint32_t> positions;
    cu[0] = 0;
    for (uint32_t h = 0, at = 0; h < heads; at += c.rows[h++]) {
        start[h] = at, n_rows[h] = c.rows[h];
        // All but the last few rows were kept from a longer text.
        const uint32_t kept = c.rows[h] > c.n_new ? c.rows[h] - c.n_new : 0;
        for (uint32_t r = 0; r < kept; r++) positions.push_back(2 * r + random.below(2));
        cu[h + 1] = cu[h] + kept;
    }
    Buffer<uint32_t> kept(positions.size());
    fill(kept, positions);
    Tensor q(c.dtype, c.n_new, c.n_q_heads, c.dk, TOKEN_MAJOR), k(c.dtype, total, 1, c.dk, TOKEN_MAJOR);
    Tensor v(c.dtype, c.transposed_v ? longest : total, c.transposed_v ? heads : 1, c.dv, c.transposed_v ? TRANSPOSED : TOKEN_MAJOR);
    Tensor out(LAVA_F32, c.n_new, c.n_q_heads, c.dv, TOKEN_MAJOR), lse(LAVA_F32, c.n_new, c.n_q_heads, 1, TOKEN_MAJOR);
    Tensor want(LAVA_F32, c.n_new, c.n_q_heads, c.dv, TOKEN_MAJOR), want_lse(LAVA_F32, c.n_new, c.n_q_heads, 1, TOKEN_MAJOR);
    q.randomise(random, 1.5f), k.randomise(random, 1), v.randomise(random, 1);
    k.cpu = lava_tensor_ragged(c.dtype, k.memory.data(), k.memory.bytes(), start.data(), c.dk);
    k.gpu = {k.memory.data(), start.data(), c.dk, 0, 1};
    if (!c.transposed_v) {
        v.cpu = lava_tensor_ragged(c.dtype, v.memory.data(), v.memory.bytes(), start.data(), c.dv);
        v.gpu = {v.memory.data(), start.data(), c.dv, 0, 1};
    }
    lava_attend_params params = lava_attend_params_init();
    params.causal = c.causal, params.scale = c.scale, params.softcap = c.softcap, params.sliding_window = c.sliding;
    params.n_base = 2 * longest + 5, params.kept_indices = kept.data(), params.cu_kept = cu.data();
    const lava_shape shape = lava_shape_init(c.n_new, c.n_q_heads, heads, c.dk, c.dv, 1);
    size_t size = 0;
    lava_attend_workspace_size(&shape, &size, nullptr);
    std::unique_ptr<char, void (*)(void *)> cpu(static_cast<char *>(aligned_alloc(64, (size + 64) / 64 * 64)), free);
    CHECK(lava_attend(&shape, &params, &q.cpu, &k.cpu, &v.cpu, n_rows.data(), &want.cpu, &want_lse.cpu, 0, 1, cpu.get(), size, nullptr) == LAVA_OK, "the CPU refuses");
    if (fault == 1) k.set(size_t(total) * c.dk - 1, NAN);
    if (fault == 2) v.set(size_t(total) * c.dv - 1, INFINITY);

    lava_cuda_attend_args a = {};
    a.n_seqs = 1, a.n_new = c.n_new, a.n_q_heads = c.n_q_heads, a.n_kv_heads = heads, a.head_dim_k = c.dk, a.head_dim_v = c.dv;
    a.causal = c.causal, a.sliding_window = c.sliding, a.n_splits = c.n_splits, a.scale = c.scale != 0 ? c.scale : float(1 / sqrt(double(c.dk))), a.softcap = c.softcap;
    a.seq[0] = {q.gpu, k.gpu, v.gpu, out.gpu, lse.gpu, n_rows.data(), kept.data(), cu.data(), params.n_base, 3};
    Buffer<float> workspace(lava_cuda_attend_workspace(&a) / 4);
    Buffer<uint64_t> status(1, 0xFF);
    a.workspace = workspace.data(), a.status = status.data();
    std::vector<uint8_t> first;
    for (unsigned s = 0; s < n_seeds(); s++) {
        const uint32_t columns = lava_cuda_attend_columns(c.dv);
        launch(variant(c.dtype, columns), c.n_splits * lava_cuda_attend_tiles(&a), heads, 1, LAVA_CUDA_ATTEND_THREADS, lava_cuda_attend_shared(&a), s, a);
        launch(lava_attend_merge, c.n_new * (c.n_q_heads / heads), heads, 1, LAVA_CUDA_ATTEND_THREADS, 0, s, a);
        if (fault != 0) {
            CHECK(status[0] == LAVA_CUDA_STATUS(3, 0, heads - 1, fault == 1 ? LAVA_CUDA_BAD_QK : LAVA_CUDA_BAD_V), "status %llx", (unsigned long long) status[0]);
            continue;
        }
        CHECK(status[0] == LAVA_CUDA_STATUS_OK, "status %llx", (unsigned long long) status[0]);
        const auto compare = [&](Tensor &got, Tensor &wanted, double bound, const char *what) {
            const float *x = reinterpret_cast<float *>(got.memory.data()), *y = reinterpret_cast<float *>(wanted.memory.data());
            for (size_t i = 0; i < got.memory.bytes() / 4; i++) {
                const bool same = x[i] == y[i] || fabs(double(x[i]) - y[i]) <= bound;
                CHECK(same, "%s %s d=%u/%u new %u splits %u sliding %u: [%zu] %g, the CPU %g", what, name_of(c.dtype), c.dk, c.dv, c.n_new, c.n_splits, c.sliding, i, x[i], y[i]);
                if (x[i] != y[i]) worst = std::max(worst, fabs(double(x[i]) - y[i]) / bound);
            }
        };
        compare(out, want, 1e-5, "out");
        compare(lse, want_lse, 1e-5, "lse");
        std::vector<uint8_t> bits(out.memory.data(), out.memory.data() + out.memory.bytes());
        if (s == 0) first = bits;
        CHECK(bits == first, "another schedule, other bits");
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
    for (const lava_dtype t : {LAVA_F16, LAVA_BF16, LAVA_F32}) {
        if (is_skipped(t)) continue;
        for (const uint32_t d : {64u, 80u, 128u, 256u, 33u}) check_attend({t, 4, 2, d, d, 1, 1, 2, {100, 37}});
        for (const uint32_t n : {1u, 31u, 32u, 33u, 127u, 128u, 129u, 300u}) check_attend({t, 2, 2, 64, 64, 1, 1, 3, {n, 1}});
        for (const uint32_t causal : {0u, 1u})
            for (const uint32_t n_new : {1u, 3u, 5u}) {
                Attend c = {t, 6, 2, 64, 96, n_new, causal, 2, {90, 61}};
                check_attend(c);
                c.sliding = 40, check_attend(c);
                c.softcap = 3, c.scale = -0.2f, check_attend(c);
                c.transposed_v = true, check_attend(c);
            }
        check_attend({t, 2, 2, 64, 64, 1, 0, 2, {50, 0}});
        // A warp that comes back for more rows, and rescales what it has when a larger logit comes.
        check_attend({t, 8, 2, 64, 80, 1, 1, 1, {700, 300}});
        check_attend({t, 4, 2, 64, 64, 1, 1, 2, {50, 40}}, 1);
        check_attend({t, 4, 2, 64, 64, 1, 1, 2, {50, 40}}, 2);
    }
    check_attend({LAVA_BF16, 1, 1, 576, 512, 2, 1, 1, {40}});
    printf("attend     worst error: %.2f of the bound\n", worst);
    return finish("cache", n_cases);
}
