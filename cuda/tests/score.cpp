// lava_score_* against lava_score of the CPU library.
//
// The bound: a logit is a sum of d products in f32, in another order than the CPU's, of inputs that are the same bits. Its error is
// at most d·2^-24·Σ|q·k|·scale, a few 1e-6 for these inputs, and exponentials and their sums add some 1e-6 each: 2e-5 of the score,
// and of the largest score 1e-7 where the score itself is next to nothing. The CPU's exponentials that were put away have 17 bits
// (4e-6). The bf16 products of pairs that some CPUs have are exact in f32 as well.
#include "test.h"
#include "../score.cu"

using namespace test;

struct Case {
    lava_dtype dtype, value_dtype;
    uint32_t n_tokens, n_q_heads, n_kv_heads, dk, dv, window;
    Layout layout;
    uint32_t shared_limit = SHARED_LIMIT;
    uint32_t pool = 0, kernel = 7, reduce = 0, span = 0, sliding = 0;
    float scale = 0, softcap = 0;
    bool lse = false;
};

using Kernel = void (*)(const lava_cuda_score_args);

template <class F> Kernel variant(lava_dtype dtype, uint32_t d, F pick) {
    const uint32_t dims[] = {64, 80, 96, 128, 256};
    int at = 5;
    for (int i = 0; i < 5; i++) if (dims[i] == d) at = i;
    return pick(dtype, at);
}
#define VARIANTS(stage)                                                                                                    \
    [](lava_dtype dtype, int at) -> Kernel {                                                                               \
        const Kernel f16[] = {stage##_f16_64, stage##_f16_80, stage##_f16_96, stage##_f16_128, stage##_f16_256, stage##_f16_any};      \
        const Kernel bf16[] = {stage##_bf16_64, stage##_bf16_80, stage##_bf16_96, stage##_bf16_128, stage##_bf16_256, stage##_bf16_any}; \
        return dtype == LAVA_F32 ? stage##_f32 : dtype == LAVA_F16 ? f16[at] : bf16[at];                                   \
    }

struct Sequence {
    Tensor q, k, v, lse;
    Buffer<float> scores;
    std::vector<float> want;
    Sequence(const Case &c, uint32_t n)
        : q(c.dtype, std::min(c.window, n), c.n_q_heads, c.dk, c.layout), k(c.dtype, n, c.n_kv_heads, c.dk, c.layout),
          v(c.value_dtype, n, c.n_kv_heads, c.dv, c.layout), lse(LAVA_F32, std::min(c.window, n), c.n_q_heads, 1, TOKEN_MAJOR),
          scores(size_t(c.n_kv_heads) * lava_cuda_score_prefix(n, c.window)) {}
};

/// The log-sum-exp in f64, from the numbers as they are stored.
static void fill_lse(const Case &c, uint32_t n, Sequence &s) {
    const auto at = [](const Tensor &t, uint32_t h, uint32_t r, uint32_t i) -> double {
        const int64_t e = r * t.gpu.stride_token + h * t.gpu.stride_head + i * t.gpu.stride_dim;
        if (t.dtype == LAVA_F32) return static_cast<float *>(t.gpu.data)[e];
        if (t.dtype == LAVA_F16) return __half2float(static_cast<__half *>(t.gpu.data)[e]);
        return __bfloat162float(static_cast<__nv_bfloat16 *>(t.gpu.data)[e]);
    };
    const double scale = c.scale != 0 ? c.scale : 1 / sqrt(double(c.dk));
    for (uint32_t j = 0; j < c.window; j++)
        for (uint32_t h = 0; h < c.n_q_heads; h++) {
            double sum = 0;
            for (uint32_t i = 0; i <= n - c.window + j; i++) {
                if (c.sliding != 0 && i + c.sliding <= n - c.window + j) continue;
                double x = 0;
                for (uint32_t e = 0; e < c.dk; e++) x += at(s.q, h, j, e) * at(s.k, h / (c.n_q_heads / c.n_kv_heads), i, e);
                x *= scale;
                sum += exp(c.softcap > 0 ? c.softcap * tanh(x / c.softcap) : x);
            }
            s.lse.set(size_t(j) * c.n_q_heads + h, float(log(sum)));
        }
}

static lava_shape shape_of(const Case &c, uint32_t n) { return lava_shape_init(n, c.n_q_heads, c.n_kv_heads, c.dk, c.dv, c.window); }

static lava_status on_cpu(const Case &c, uint32_t n, Sequence &s) {
    const lava_shape shape = shape_of(c, n);
    lava_score_params params = lava_score_params_init();
    params.pool = int32_t(c.pool), params.pool_kernel = c.kernel, params.group_reduce = int32_t(c.reduce);
    params.value_span = int32_t(c.span), params.sliding_window = c.sliding, params.scale = c.scale, params.softcap = c.softcap;
    size_t size = 0;
    lava_score_workspace_size(&shape, &params, &size, nullptr);
    std::unique_ptr<char, void (*)(void *)> workspace(static_cast<char *>(aligned_alloc(64, (size + 64) / 64 * 64)), free);
    s.want.assign(s.scores.size(), -1.0f);
    return lava_score(&shape, &params, &s.q.cpu, &s.k.cpu, &s.v.cpu, c.lse ? &s.lse.cpu : nullptr, 0, 1, workspace.get(), size,
                      s.want.data(), nullptr);
}

static uint64_t on_gpu(const Case &c, const std::vector<uint32_t> &lengths, std::vector<std::unique_ptr<Sequence>> &seqs, unsigned seed) {
    lava_cuda_score_args a = {};
    a.n_seqs = uint32_t(lengths.size());
    a.n_q_heads = c.n_q_heads, a.n_kv_heads = c.n_kv_heads, a.head_dim_k = c.dk, a.head_dim_v = c.dv, a.window = c.window;
    a.pool = c.pool, a.pool_kernel = c.kernel, a.group_reduce = c.reduce, a.value_span = c.span, a.sliding_window = c.sliding;
    a.scale = c.scale != 0 ? c.scale : float(1 / sqrt(double(c.dk))), a.softcap = c.softcap;
    uint32_t splits = 0;
    for (uint32_t i = 0; i < a.n_seqs; i++) {
        Sequence &s = *seqs[i];
        memset(s.scores.data(), 0xA5, s.scores.bytes());
        a.seq[i] = {s.q.gpu, s.k.gpu, s.v.gpu, s.lse.gpu, s.scores.data(), lengths[i], 7};
        if (!c.lse) a.seq[i].lse.data = nullptr;
        splits = std::max(splits, lava_cuda_score_splits(lengths[i]));
        a.max_prefix = std::max(a.max_prefix, lava_cuda_score_prefix(lengths[i], c.window));
    }
    lava_cuda_score_plan(&a, uint32_t(size_of(c.dtype)), c.shared_limit);
    CHECK(a.shared_bytes <= c.shared_limit, "%u bytes of shared memory", a.shared_bytes);
    Buffer<unsigned char> workspace(lava_cuda_score_workspace(&a));
    Buffer<uint64_t> status(1, 0xFF);
    a.workspace = workspace.data();
    a.status = status.data();
    const uint32_t heads = c.n_kv_heads, threads = 32 * a.n_warps;
    const Kernel values = c.value_dtype == LAVA_F32 ? lava_score_values_f32 : c.value_dtype == LAVA_F16 ? lava_score_values_f16 : lava_score_values_bf16;
    launch(values, splits, heads, a.n_seqs, LAVA_CUDA_VALUE_THREADS, 0, seed, a);
    if (!c.lse) launch(variant(c.dtype, c.dk, VARIANTS(lava_score_rows)), splits, heads, a.n_seqs, threads, a.shared_bytes, seed, a);
    launch(lava_score_lse, (lava_cuda_score_rows(&a) + LAVA_CUDA_LSE_THREADS - 1) / LAVA_CUDA_LSE_THREADS, heads, a.n_seqs, LAVA_CUDA_LSE_THREADS, 0, seed, a);
    launch(variant(c.dtype, c.dk, VARIANTS(lava_score_columns)), splits, heads, a.n_seqs, threads, a.shared_bytes, seed, a);
    launch(lava_score_pool, (a.max_prefix + LAVA_CUDA_POOL_TILE - 1) / LAVA_CUDA_POOL_TILE, heads, a.n_seqs, LAVA_CUDA_POOL_THREADS, 0, seed, a);
    return status[0];
}

static double worst = 0;

static void check(const Case &c, const std::vector<uint32_t> &lengths) {
    Random random(c.n_tokens * 31 + c.dk);
    std::vector<std::unique_ptr<Sequence>> seqs;
    for (const uint32_t n : lengths) {
        seqs.emplace_back(new Sequence(c, n));
        Sequence &s = *seqs.back();
        s.q.randomise(random, 1.5f), s.k.randomise(random, 1.0f), s.v.randomise(random, 1.0f);
        if (c.lse && n > c.window) fill_lse(c, n, s);
        CHECK(on_cpu(c, n, s) == LAVA_OK, "the CPU refuses");
    }
    std::vector<float> first;
    for (unsigned seed = 0; seed < n_seeds(); seed++) {
        const uint64_t status = on_gpu(c, lengths, seqs, seed);
        CHECK(status == LAVA_CUDA_STATUS_OK, "status %llx", (unsigned long long) status);
        std::vector<float> all;
        for (size_t i = 0; i < lengths.size(); i++) {
            Sequence &s = *seqs[i];
            float largest = 0;
            for (const float x : s.want) largest = std::max(largest, x);
            for (size_t e = 0; e < s.want.size(); e++) {
                const double bound = 2e-5 * s.want[e] + 1e-7 * largest, off = fabs(double(s.scores[e]) - s.want[e]);
                CHECK(off <= bound, "%s d=%u w=%u N=%u %u/%u layout %d: [%zu] %g, the CPU %g", name_of(c.dtype), c.dk, c.window,
                      lengths[i], c.n_q_heads, c.n_kv_heads, c.layout, e, s.scores[e], s.want[e]);
                worst = std::max(worst, off / bound);
                all.push_back(s.scores[e]);
            }
        }
        if (seed == 0) first = all;
        CHECK(all.size() == first.size() && memcmp(all.data(), first.data(), all.size() * 4) == 0, "another schedule, other bits");
    }
}

/// A fault anywhere is told with its sequence and head.
static void check_fault(lava_dtype dtype, int which, float bad, bool lse) {
    Case c = {dtype, dtype, 150, 4, 2, 64, 64, 16, TOKEN_MAJOR};
    c.lse = lse;
    Random random(3);
    std::vector<std::unique_ptr<Sequence>> seqs;
    for (int i = 0; i < 2; i++) {
        seqs.emplace_back(new Sequence(c, 150));
        seqs[i]->q.randomise(random, 1), seqs[i]->k.randomise(random, 1), seqs[i]->v.randomise(random, 1);
        if (lse) fill_lse(c, 150, *seqs[i]);
    }
    // Head 1 of sequence 1: the last token, in the window, or the last query.
    Tensor &t = which == 0 ? seqs[1]->q : which == 1 ? seqs[1]->k : which == 2 ? seqs[1]->v : seqs[1]->lse;
    t.set(t.memory.bytes() / size_of(t.dtype) - 1, bad);
    const uint32_t what[] = {LAVA_CUDA_BAD_QK, LAVA_CUDA_BAD_QK, LAVA_CUDA_BAD_V, LAVA_CUDA_BAD_LSE};
    const uint64_t status = on_gpu(c, {150, 150}, seqs, 1), want = LAVA_CUDA_STATUS(7, 1, 1, what[which]);
    CHECK(status == want, "%s tensor %d: status %llx, not %llx", name_of(dtype), which, (unsigned long long) status, (unsigned long long) want);
}

int main() {
    long n = 0;
    const auto go = [&](const Case &c, std::vector<uint32_t> lengths = {}) {
        if (lengths.empty()) lengths = {c.n_tokens};
        check(c, lengths);
        n++;
    };
    const lava_dtype dtypes[] = {LAVA_F16, LAVA_BF16, LAVA_F32};
    for (const lava_dtype t : dtypes) {
        if (is_skipped(t)) continue;
        // Every variant; sizes on both sides of a slice, a span and a block of rows.
        for (const uint32_t d : {64u, 80u, 96u, 128u, 256u, 40u, 67u}) go({t, t, 131, 4, 2, d, d, 8, TOKEN_MAJOR});
        for (const uint32_t tokens : {9u, 10u, 127u, 128u, 129u, 257u, 300u}) go({t, t, tokens, 2, 1, 64, 48, 8, HEAD_MAJOR});
        for (const uint32_t w : {1u, 15u, 16u, 17u, 32u}) go({t, t, 100, 3, 1, 64, 64, w, TOKEN_MAJOR});
        for (const Layout layout : {HEAD_MAJOR, TRANSPOSED, GAPS}) go({t, t, 77, 4, 2, 64, 64, 8, layout});
        // Sequences of unlike length, one that its window covers among them.
        go({t, t, 0, 4, 2, 64, 64, 8, TOKEN_MAJOR}, {140, 8, 9, 65});
        for (const bool lse : {false, true}) {
            Case c = {t, t, 170, 4, 2, 64, 64, 8, TOKEN_MAJOR};
            c.lse = lse;
            go(c);
            c.sliding = 60, go(c);
            c.softcap = 2, go(c);
            c.scale = -0.3f, go(c);
            c.sliding = 0, c.span = 1, go(c);
        }
        for (const uint32_t pool : {0u, 1u})
            for (const uint32_t reduce : {0u, 1u})
                for (const uint32_t kernel : {1u, 5u, 127u}) {
                    Case c = {t, t, 90, 4, 2, 64, 64, 8, TOKEN_MAJOR};
                    c.pool = pool, c.reduce = reduce, c.kernel = kernel;
                    go(c);
                }
        // Rows that do not fit on chip: chunks of whole heads, and chunks that end inside a head.
        for (const uint32_t limit : {24u << 10, 40u << 10}) {
            for (const uint32_t reduce : {0u, 1u}) {
                Case c = {t, t, 140, 6, 2, 128, 64, 20, TOKEN_MAJOR, limit};
                c.reduce = reduce;
                go(c);
                c.window = 70, go(c);
            }
        }
        for (int which = 0; which < 4; which++)
            for (const bool lse : {false, true})
                for (const float bad : {INFINITY, NAN})
                    if (which != 3 || lse) check_fault(t, which, bad, lse), n++;
    }
    go({LAVA_F16, LAVA_BF16, 64, 2, 2, 64, 64, 8, TOKEN_MAJOR});
    go({LAVA_BF16, LAVA_BF16, 40, 1, 1, 576, 512, 4, TOKEN_MAJOR});
    go({LAVA_F32, LAVA_F16, 40, 1, 1, 576, 512, 4, TOKEN_MAJOR});
    printf("score      worst error: %.2f of the bound\n", worst);
    return finish("score", n);
}
