// The kernels of score.cu, output.cu and pool.cu under emulation, against lava_score of the CPU library; those of stats.cu against
// doubles.
//
// The bound. Let S be the largest sum of |q c| |k c| over a head's d dimensions, scaled: both sides sum d products in f32, in
// different orders. The roundings (u = 2^-24) are as good as independent, so a logit is off by no more than 4 sqrt(d) u S (d u S if all
// of them conspired), an exponent of two and its log-sum-exp by a few u S more, and an exponential by as much relatively. Sums
// of positive numbers are off by u times the longest chain of additions: a thread's keys of a range, a row's parts, w rows, d_v
// norms. exp2 is good to a few u. Twice that, for two sides that may both be off.
//
// LAVA_VALUE_OUTPUT: s = a |o - v| / (1 - a), where o - v may cancel. Let e be the relative error of an a, and V the largest |v|. Then o
// is off by no more than (e + 80 u) V: an a is off by e a, they sum to 1, and 80 covers the chain of f32 (a tile) and the roundings of
// its sum. 1 - a is off by e + u. As o - v_i = sum a_j (v_j - v_i), |o - v| <= 2 (1 - a) V, so that s is off by a / (1 - a) times
// V (e + 80 u) + 2 V (e + u). Of the largest a, the only one that may be above 1/2, the others' mean m is off as o is, and s = a |m - v|
// by a times V (e + 80 u) and e s. So no s is off by more than min(a / (1 - a), 1) times V (3 e + 82 u), twice for two sides. Pooling and
// reduction move no score by more than the most any of theirs is moved.
#include "../score.cu"
#include "../output.cu"
#include "../pool.cu"
#include "../stats.cu"
#include "attention.h"

using namespace test;

namespace {

struct Case {
    const char *name;
    std::vector<uint32_t> lengths = {150};
    uint32_t n_q_heads = 4, n_kv_heads = 2, dim_k = 64, dim_v = 24, window = 8;
    int32_t dtype = LAVA_BF16, dtype_v = LAVA_BF16;
    Layout layout = TOKEN_MAJOR, layout_q = TOKEN_MAJOR, layout_v = TOKEN_MAJOR;
    bool lse = false, base_two = false, stats = false;
    uint32_t keys_per_range = 64;
    float size = 1;
    uint32_t sliding_window = 0;
    lava_score_params params = lava_score_params_lava();
    /// Token 66 + h of head h has all attention, but for what a logit of less_by lower leaves to the others, and a value of 0. 0: not so.
    float less_by = 0;
    /// Logits rise by about this much from each token to the next, up to token 100.
    float rise = 0;
    /// By how much larger each query of less_by is than the one before it, of three.
    float tilt = 0;
    /// All keys are the same, and their logits are this. Attention is then exact, however large it is.
    float flat = 0;
    Case(const char *name) : name(name) {}
    template <class Change> Case with(Change change) const {
        Case other = *this;
        change(other);
        return other;
    }
};

/// Queries and keys of 8, with a scale that makes a flat logit of them.
float scale_of(const Case &c) { return c.flat != 0 ? c.flat / (64 * float(c.dim_k)) : c.params.scale != 0 ? c.params.scale : 1 / std::sqrt(float(c.dim_k)); }

struct Sequence {
    Numbers q, k, v, lse;
    Sequence(const Case &c, uint32_t n, Random &random)
        : q(c.dtype, c.window, c.n_q_heads, c.dim_k, c.layout_q), k(c.dtype, n, c.n_kv_heads, c.dim_k, c.layout),
          v(c.dtype_v, n, c.n_kv_heads, c.dim_v, c.layout_v), lse(LAVA_F32, c.window, c.n_q_heads, 1, TOKEN_MAJOR) {
        q.fill(random, c.size * 2);
        k.fill(random, c.size * 2);
        v.fill(random, 1);
        for (uint32_t h = 0; c.rise > 0 && h < c.n_kv_heads; h++)
            for (uint32_t i = 0; i < n; i++) k.set(h, i, 0, i < 100 ? c.rise * float(i) / scale_of(c) : 0);
        for (uint32_t h = 0; c.rise > 0 && h < c.n_q_heads; h++)
            for (uint32_t j = 0; j < c.window; j++) q.set(h, j, 0, 1);
        for (uint32_t h = 0; c.less_by > 0 && h < c.n_kv_heads; h++)
            for (uint32_t i = 0; i < n; i++)
                for (uint32_t e = 0; e < std::max(c.dim_k, c.dim_v); e++) {
                    const bool chosen = i == 66 + h;
                    if (e < c.dim_k) k.set(h, i, e, chosen ? 8 : 8 - c.less_by / (8 * std::sqrt(float(c.dim_k))));
                    if (e < c.dim_v && chosen) v.set(h, i, e, 0);
                }
        for (uint32_t h = 0; (c.less_by > 0 || c.flat != 0) && h < c.n_q_heads; h++)
            for (uint32_t j = 0; j < c.window; j++)
                for (uint32_t e = 0; e < c.dim_k; e++) q.set(h, j, e, 8 + c.tilt * float(j % 3));
        for (uint32_t h = 0; c.flat != 0 && h < c.n_kv_heads; h++)
            for (uint32_t i = 0; i < n; i++)
                for (uint32_t e = 0; e < c.dim_k; e++) k.set(h, i, e, 8);
    }
};

/// What doubles say of a sequence.
struct Look {
    /// The largest sum of |q||k|.
    double logits = 0;
    /// Of each KV head: entropy and variance of its attention over the prefix, the attention itself, its squares, and by what the variance
    /// changes with the attention: the root of variance times squares.
    std::vector<double> entropy, variance, mass, squares, change;
    /// [n_q_heads, n], each key's, over the window.
    std::vector<double> attention;
};

/// What a query's attention counts for: the weights of a window sum to 1.
double weight_of(const Case &c, uint32_t j) {
    if (c.params.attention != LAVA_ATTENTION_EXPONENTIAL) return 1.0 / c.window;
    const double decay = c.params.decay == 0 ? 1 : c.params.decay;
    return (j == 0 ? 1 : decay) * std::pow(1 - decay, c.window - 1.0 - j);
}

/// The first token that a later query sees.
uint32_t first_live(const Case &c, uint32_t n) { return c.sliding_window == 0 ? 0 : n + 1 - std::min(n + 1, c.sliding_window); }

/// Sets the log-sum-exp.
Look look(const Case &c, Sequence &s, uint32_t n) {
    Look all;
    double &largest = all.logits;
    for (auto *of_head : {&all.entropy, &all.variance, &all.mass, &all.squares, &all.change}) of_head->assign(c.n_kv_heads, 0);
    all.attention.assign(size_t(c.n_q_heads) * n, 0);
    const uint32_t group = c.n_q_heads / c.n_kv_heads, prefix = n > c.window ? n - c.window : 0;
    for (uint32_t h = 0; h < c.n_q_heads; h++) {
        std::vector<double> sums(prefix), squares(prefix);
        for (uint32_t j = 0; j < c.window; j++) {
            std::vector<double> logits;
            std::vector<uint32_t> seen;
            for (uint32_t i = 0; i < n && prefix > 0; i++) {
                double dot = 0, sum = 0;
                for (uint32_t e = 0; e < c.dim_k; e++) {
                    const double product = double(s.q.get(h, j, e)) * s.k.get(h / group, i, e);
                    dot += product;
                    sum += std::abs(product);
                }
                largest = std::max(largest, std::abs(scale_of(c)) * sum);
                if (i > prefix + j || (c.sliding_window != 0 && i + c.sliding_window <= prefix + j)) continue;
                dot *= scale_of(c);
                logits.push_back(c.params.softcap > 0 ? c.params.softcap * std::tanh(dot / c.params.softcap) : dot);
                seen.push_back(i);
            }
            double sum = 0, most = -INFINITY;
            for (double x : logits) most = std::max(most, x);
            for (double x : logits) sum += std::exp(x - most);
            s.lse.set(h, j, 0, float((most + std::log(sum)) * (c.base_two ? 1 / std::log(2.0) : 1)));
            for (size_t e = 0; e < seen.size(); e++) {
                const double a = std::exp(logits[e] - most) / sum;
                all.attention[size_t(h) * n + seen[e]] += weight_of(c, j) * a;
                if (seen[e] < first_live(c, n) || seen[e] >= prefix) continue;
                sums[seen[e]] += a, squares[seen[e]] += a * a;
                all.entropy[h / group] -= a > 0 ? a * std::log(a) : 0;
            }
        }
        for (uint32_t i = first_live(c, n); i < prefix; i++) {
            all.mass[h / group] += sums[i];
            if (c.window == 1) continue;
            const double w = c.window, variance = std::max(squares[i] - sums[i] * sums[i] / w, 0.0) / (w - 1);
            all.variance[h / group] += variance;
            all.squares[h / group] += squares[i] / (w - 1);
            all.change[h / group] += std::sqrt(variance * squares[i] / (w - 1));
        }
    }
    return all;
}

/// The largest |v| of a head.
double largest_value(const Case &c, const Sequence &s, uint32_t n, uint32_t head) {
    double largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        double squares = 0;
        for (uint32_t e = 0; e < c.dim_v; e++) squares += double(s.v.get(head, i, e)) * s.v.get(head, i, e);
        largest = std::max(largest, std::sqrt(squares));
    }
    return largest;
}

/// By how many times V (3 e + 82 u) entry `i` of a head may be off with LAVA_VALUE_OUTPUT: see the top.
double amplified(const Case &c, const std::vector<double> &attention, uint32_t n, uint32_t head, uint32_t i) {
    const uint32_t group = c.n_q_heads / c.n_kv_heads, radius = c.params.pool_kernel / 2, prefix = n - c.window;
    double most = 0;
    for (uint32_t h = head * group; h < (head + 1) * group; h++)
        for (uint32_t at = i < radius ? 0 : i - radius; at < std::min(i + radius + 1, prefix); at++) {
            const double a = attention[size_t(h) * n + at];
            most = std::max(most, a < 0.5 ? a / (1 - a) : 1);
        }
    return 2 * most * (c.params.weight == 0 ? 1 : c.params.weight);
}

/// What the CPU library says.
lava_status ask_cpu(const Case &c, const Sequence &s, uint32_t n, std::vector<float> &scores, lava_error &error) {
    lava_shape shape = lava_shape_init(n, c.n_q_heads, c.n_kv_heads, c.dim_k, c.dim_v, c.window);
    shape.sliding_window = c.sliding_window;
    lava_score_params params = c.params;
    params.scale = scale_of(c);
    size_t bytes = 0;
    lava_score_workspace_size(&shape, &params, &bytes, nullptr);
    Buffer<uint8_t> workspace(bytes, 0xff);
    scores.resize(size_t(c.n_kv_heads) * (n - c.window));
    const lava_tensor q = s.q.host(), k = s.k.host(), v = s.v.host(), lse = s.lse.host();
    error = lava_error_init();
    return lava_score(&shape, &params, &q, &k, &v, c.lse ? &lse : nullptr, 0, 1, workspace.data(), bytes, scores.data(), &error);
}

struct Result {
    std::vector<std::vector<float>> scores;
    std::vector<std::vector<double>> stats;
    uint64_t status;
};

using Kernel = void (*)(const lava_score_args);
Kernel stats_of(const Case &c, bool instance) {
#define OF(d)                                                                                                              \
    if (instance && c.dim_k == d) return c.dtype == LAVA_F16 ? lava_score_stats_f16_##d : lava_score_stats_bf16_##d;
    OF(64) OF(80) OF(96) OF(128) OF(256)
#undef OF
    return lava_score_stats_any;
}
Kernel columns_of(const Case &c, bool instance) {
#define OF(d)                                                                                                              \
    if (instance && c.dim_k == d) return c.dtype == LAVA_F16 ? lava_score_columns_f16_##d : lava_score_columns_bf16_##d;
    OF(64) OF(80) OF(96) OF(128) OF(256)
#undef OF
    return lava_score_columns_any;
}

Result run(const Case &c, const std::vector<std::unique_ptr<Sequence>> &sequences, unsigned seed) {
    Result result;
    Buffer<lava_score_sequence> list(sequences.size());
    Buffer<uint64_t> status(1, 0xff);
    std::vector<std::unique_ptr<Buffer<float>>> scores;
    std::vector<std::unique_ptr<Buffer<double>>> stats;
    for (size_t i = 0; i < sequences.size(); i++) {
        stats.emplace_back(new Buffer<double>(2 * c.n_kv_heads, 0xff));
        const uint32_t prefix = c.lengths[i] > c.window ? c.lengths[i] - c.window : 0;
        scores.emplace_back(new Buffer<float>(size_t(c.n_kv_heads) * prefix, 0xff));
    }
    lava_score_args args = {};
    for (size_t i = 0; i < sequences.size(); i++) {
        const Sequence &s = *sequences[i];
        list[i] = {s.q.device(), s.k.device(), s.v.device(), {}, {scores[i]->data()}, c.lengths[i], 0};
        if (c.stats) list[i].stats = stats[i]->data();
        if (c.lse) list[i].lse = s.lse.device();
        if (c.params.value_weight == LAVA_VALUE_NONE) list[i].v.data = nullptr;
        args.max_tokens = std::max(args.max_tokens, c.lengths[i]);
    }
    if (list.size() == 1) args.one = list[0];
    else args.items = list.data();
    args.layer = 3;
    args.n_q_heads = c.n_q_heads, args.n_kv_heads = c.n_kv_heads;
    args.head_dim_k = c.dim_k, args.head_dim_v = c.dim_v, args.window = c.window;
    args.pool = c.params.pool, args.pool_kernel = c.params.pool_kernel, args.group_reduce = c.params.group_reduce;
    args.value_span = c.params.value_span, args.attention = c.params.attention, args.value_weight = c.params.value_weight;
    args.sliding_window = c.sliding_window, args.scale = scale_of(c), args.softcap = c.params.softcap;
    args.gamma = c.params.gamma, args.decay = c.params.decay == 0 ? 1 : c.params.decay;
    args.weight = c.params.weight == 0 ? 1 : c.params.weight, args.smoothing = c.params.smoothing;
    args.has_lse = c.lse, args.lse_to_base_2 = c.base_two ? 1 : lava::LOG2_E, args.n_sequences = uint32_t(list.size());
    if (c.stats) {
        args.attention = LAVA_SCORE_SPREAD, args.pool = LAVA_POOL_AVG, args.pool_kernel = 1, args.group_reduce = LAVA_GROUP_MEAN;
        args.value_weight = LAVA_VALUE_NONE, args.smoothing = 0;
    }
    bool instance = true;
    for (size_t i = 0; i < list.size(); i++) instance = instance && lava_score_is_aligned(&args, &list[i]);
    lava_score_split(&args, instance);
    args.keys_per_range = c.keys_per_range;
    const size_t bytes = lava_score_layout(&args, nullptr);
    Buffer<uint8_t> workspace(bytes, 0xff);
    lava_score_layout(&args, workspace.data());
    args.status = status.data();

    const auto go = [&](Kernel kernel, uint32_t x, uint32_t threads, size_t shared) {
        launch(kernel, x, c.n_kv_heads, args.n_sequences, threads, shared, seed, args);
    };
    const bool looks = c.params.attention != LAVA_ATTENTION_RECENCY;
    if (looks && !c.lse)
        go(stats_of(c, instance), lava_score_ranges(&args), lava_score_threads(&args), instance ? lava_score_stats_shared(&args) : 0);
    go(lava_score_lse, lava_score_rows(&args) / LAVA_SCORE_ROWS, 256, 0);
    go(columns_of(c, instance), lava_score_column_blocks(&args), lava_score_threads(&args),
       instance ? lava_score_columns_shared(&args) : 0);
    if (c.stats) {
        launch(lava_stats_sum, c.n_kv_heads, args.n_sequences, 1, LAVA_SCORE_POOLED, 0, seed, args);
        for (const auto &s : stats) result.stats.emplace_back(s->data(), s->data() + s->size());
        result.status = status[0];
        return result;
    }
    if (c.params.value_weight == LAVA_VALUE_OUTPUT) {
        go(lava_score_values, lava_score_ranges(&args), LAVA_SCORE_OUTPUT_THREADS, 0);
        go(lava_score_output, lava_score_output_blocks(&args), LAVA_SCORE_OUTPUT_THREADS, 0);
        go(lava_score_change, lava_score_ranges(&args), LAVA_SCORE_OUTPUT_THREADS, 0);
    }
    go(lava_score_pool, lava_score_pool_blocks(&args), LAVA_SCORE_POOLED, 0);
    if (c.params.smoothing > 0) go(lava_score_smooth, lava_score_pool_blocks(&args), LAVA_SCORE_POOLED, 0);
    for (const auto &s : scores) result.scores.emplace_back(s->data(), s->data() + s->size());
    result.status = status[0];
    return result;
}

long n_cases = 0;

void check(const Case &c) {
    SAMPLE;
    n_cases++;
    Random random(c.dim_k * 31 + c.window);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (uint32_t n : c.lengths) sequences.emplace_back(new Sequence(c, n, random));
    double logits = 0;
    const bool changes = c.params.value_weight == LAVA_VALUE_OUTPUT;
    std::vector<Look> looks;
    for (size_t i = 0; i < sequences.size(); i++) looks.push_back(look(c, *sequences[i], c.lengths[i]));
    for (const Look &one : looks) logits = c.flat != 0 ? 0 : std::max(logits, one.logits);
    const Result got = run(c, sequences, 1), again = is_quick() ? got : run(c, sequences, 77);
    expect(got.status == LAVA_NO_FAULT, "%s: status %016llx", c.name, (unsigned long long) got.status);
    double worst = 0, bound = 0;
    for (size_t i = 0; i < sequences.size(); i++) {
        const uint32_t n = c.lengths[i], prefix = n > c.window ? n - c.window : 0;
        expect(same_bits(got.scores[i], again.scores[i]), "%s: another schedule, other bits", c.name);
        if (sequences.size() > 1 && !is_quick()) {
            std::vector<std::unique_ptr<Sequence>> only;
            only.push_back(std::move(sequences[i]));
            const Result alone = run(c.with([n](Case &c) { c.lengths = {n}; }), only, 5);
            expect(same_bits(got.scores[i], alone.scores[0]), "%s: sequence %zu alone, other bits", c.name, i);
            sequences[i] = std::move(only[0]);
        }
        const Sequence &s = *sequences[i];
        if (prefix == 0) continue;
        std::vector<float> want;
        lava_error error;
        expect(ask_cpu(c, s, n, want, error) == LAVA_OK, "%s: the CPU says %s: %s", c.name, error.argument, error.message);
        const double chain = c.keys_per_range / 8 + n / 64 + c.window + c.dim_v + c.params.pool_kernel + 40;
        // Squares double an exponential's error; a variance is a difference, and gamma says how much of it there is.
        const double kind = c.params.attention == LAVA_ATTENTION_SQUARED          ? 2
                            : c.params.attention == LAVA_ATTENTION_MEAN_VARIANCE ? 2 + 4 * c.params.gamma
                                                                                  : 1;
        bound = 2 * kind * HALF_ULP * ((4 * std::sqrt(c.dim_k) + 8) * logits + chain);
        double value = 0;
        for (size_t e = 0; e < want.size(); e++) {
            const uint32_t head = uint32_t(e / prefix);
            if (changes && e % prefix == 0) value = largest_value(c, s, n, head) * (3 * bound + 82 * HALF_ULP);
            const double absolute = changes ? value * amplified(c, looks[i].attention, n, head, e % prefix) : 0;
            const double off = std::abs(double(got.scores[i][e]) - want[e]) / (want[e] + absolute / bound + 1e-30);
            if (!(off <= bound))
                expect(false, "%s: sequence %zu, entry %zu of %u: %g, not %g (off by %.2g, bound %.2g)", c.name, i, e, prefix,
                       got.scores[i][e], want[e], off, bound);
            worst = std::max(worst, off);
        }
    }
    printf("  %-52s off by %.1e, bound %.1e\n", c.name, worst, bound);
}

/// Entropies and variances against doubles. With `e` the relative error of one attention `a`, a ln a is off by no more than
/// e (a |ln a| + a). A variance is the sum of d^2 / (w - 1), where d, by what an attention differs from the mean, is off by e a: so it is off by
/// no more than 2 e times the root of variance times squares, and e^2 times the squares. Both are sums of many, in f32 for short chains.
void check_stats(Case c) {
    SAMPLE;
    n_cases++;
    c.stats = true;
    Random random(c.dim_k * 31 + c.window);
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<Look> want;
    double logits = 0;
    for (uint32_t n : c.lengths) {
        sequences.emplace_back(new Sequence(c, n, random));
        want.push_back(look(c, *sequences.back(), n));
        // Of a sink the products are exact, and so are their sums.
        logits = c.flat != 0 || c.tilt != 0 ? 0 : std::max(logits, want.back().logits);
    }
    const Result got = run(c, sequences, 2), again = is_quick() ? got : run(c, sequences, 99);
    expect(got.status == LAVA_NO_FAULT, "%s: status %016llx", c.name, (unsigned long long) got.status);
    // A sink's attention is off by the others' errors times what it leaves to them, a twentieth, and by some roundings of its own.
    const double chain = c.tilt != 0 ? 16 : c.keys_per_range / 8 + c.window + 40;
    const double e = HALF_ULP * ((4 * std::sqrt(c.dim_k) + 8) * logits + chain);
    double worst = 0;
    for (size_t i = 0; i < want.size(); i++) {
        expect(got.stats[i] == again.stats[i], "%s: another schedule, other bits", c.name);
        if (want.size() > 1 && !is_quick()) {
            std::vector<std::unique_ptr<Sequence>> only;
            only.push_back(std::move(sequences[i]));
            const Result alone = run(c.with([&](Case &one) { one.lengths = {c.lengths[i]}; }), only, 5);
            expect(got.stats[i] == alone.stats[0], "%s: sequence %zu alone, other bits", c.name, i);
            sequences[i] = std::move(only[0]);
        }
        for (uint32_t h = 0; h < c.n_kv_heads; h++) {
            const double bounds[] = {e * (want[i].entropy[h] + want[i].mass[h]), 2 * e * want[i].change[h] + e * e * want[i].squares[h] + 100 * HALF_ULP * want[i].variance[h]};
            const double numbers[] = {want[i].entropy[h], want[i].variance[h]};
            for (int which = 0; which < 2; which++) {
                const double off = std::abs(got.stats[i][2 * h + which] - numbers[which]);
                expect(off <= bounds[which], "%s: sequence %zu, head %u, %s %g, not %g (bound %.2g)", c.name, i, h,
                       which ? "variance" : "entropy", got.stats[i][2 * h + which], numbers[which], bounds[which]);
                if (bounds[which] > 0) worst = std::max(worst, off / bounds[which]);
            }
        }
    }
    printf("  statistics, %-57s off by %.0e of the bound\n", c.name, worst);

    // And what CAKE makes of them.
    std::vector<std::unique_ptr<Buffer<double>>> stats;
    Buffer<double> weights(want.size());
    Buffer<lava_cuda_preference_item> list(want.size());
    Buffer<uint64_t> status(1, 0xff);
    for (size_t i = 0; i < want.size(); i++) {
        stats.emplace_back(new Buffer<double>(2 * c.n_kv_heads));
        memcpy(stats[i]->data(), got.stats[i].data(), stats[i]->bytes());
        list[i] = {stats[i]->data(), &weights[i], 5, 0};
    }
    lava_cuda_preference_args args = {};
    args.items = list.data(), args.n_items = uint32_t(list.size()), args.n_kv_heads = c.n_kv_heads;
    args.status = status.data(), args.tau1 = 1.6, args.tau2 = 0.7;
    launch(lava_stats_preference, args.n_items, 1, 1, 32, 0, 1, args);
    for (size_t i = 0; i < want.size(); i++) {
        const lava_shape shape = lava_shape_init(c.window + 1, c.n_q_heads, c.n_kv_heads, 1, 1, c.window);
        double weight = -1;
        expect(lava_preference(&shape, stats[i]->data(), args.tau1, args.tau2, &weight, nullptr) == LAVA_OK, "%s: the CPU refuses", c.name);
        expect(std::abs(weights[i] - weight) <= 1e-14 * weight, "%s: preference %.17g, not %.17g", c.name, weights[i], weight);
    }
    expect(status[0] == LAVA_NO_FAULT, "%s: status %016llx", c.name, (unsigned long long) status[0]);
    for (const double bad : {double(NAN), double(INFINITY)}) {
        status[0] = LAVA_NO_FAULT, (*stats.back())[1] = bad;
        launch(lava_stats_preference, args.n_items, 1, 1, 32, 0, 1, args);
        expect(status[0] == lava_fault(LAVA_FAULT_STATS, 5, args.n_items - 1, LAVA_NO_HEAD), "%s: status %016llx", c.name, (unsigned long long) status[0]);
        const uint64_t none = LAVA_NO_ENTROPY;
        expect(memcmp(&weights[want.size() - 1], &none, 8) == 0, "%s: %g for %g", c.name, weights[want.size() - 1], bad);
    }
}

/// What a status word must say when one number is not finite.
void check_fault(const Case &c, const char *what, uint32_t fault, uint32_t head, void (*spoil)(Sequence &)) {
    SAMPLE;
    Random random(5);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (uint32_t n : c.lengths) sequences.emplace_back(new Sequence(c, n, random));
    for (size_t i = 0; i < sequences.size(); i++) look(c, *sequences[i], c.lengths[i]);
    spoil(*sequences.back());
    static const char *const names[] = {"lse", "q or k", "v", "scores"};
    std::vector<float> scores;
    lava_error error;
    const lava_status cpu = ask_cpu(c, *sequences.back(), c.lengths.back(), scores, error);
    const bool as_cpu = cpu == LAVA_ERR_NONFINITE && error.head == head && strstr(names[fault - LAVA_FAULT_LSE], error.argument);
    expect(as_cpu, "%s, %s: the CPU says %s of head %u", c.name, what, error.argument, error.head);
    const uint64_t status = run(c, sequences, 3).status, want = lava_fault(fault, 3, uint32_t(sequences.size() - 1), head);
    expect(status == want, "%s, %s: status %016llx, not %016llx", c.name, what, (unsigned long long) status,
           (unsigned long long) want);
}

/// The same where there is nothing to find.
void check_no_fault(const Case &c, const char *what, void (*spoil)(Sequence &)) {
    SAMPLE;
    Random random(5);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (uint32_t n : c.lengths) sequences.emplace_back(new Sequence(c, n, random));
    spoil(*sequences.back());
    std::vector<float> scores;
    lava_error error;
    expect(ask_cpu(c, *sequences.back(), c.lengths.back(), scores, error) == LAVA_OK, "%s, %s: the CPU says %s", c.name, what, error.argument);
    const uint64_t status = run(c, sequences, 3).status;
    expect(status == LAVA_NO_FAULT, "%s, %s: status %016llx", c.name, what, (unsigned long long) status);
}

} // namespace

/// score [PART]: only cases with this in their names.
int main(int argc, char **argv) {
    const Case base("plain");
    const auto is = [](const char *name) { return Case(name); };
    std::vector<Case> cases = {base};
    const auto add = [&](const char *name, auto change) { cases.push_back(is(name).with(change)); };
    add("three sequences, one all window", [](Case &c) { c.lengths = {70, 8, 201}; });
    add("one token of prefix", [](Case &c) { c.lengths = {9}; });
    add("a tile exactly", [](Case &c) { c.lengths = {64}; });
    add("a prefix of a tile exactly", [](Case &c) { c.lengths = {72}; });
    add("ranges of two tiles, and one key more", [](Case &c) { c.lengths = {257}, c.keys_per_range = 128; });
    add("f16, 80", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = 80; });
    add("bf16, 96, window 17", [](Case &c) { c.dim_k = 96, c.window = 17; });
    add("f16, 128, window 32, group 4", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = 128, c.window = 32, c.n_q_heads = 4, c.n_kv_heads = 1; });
    add("bf16, 256, window 20", [](Case &c) { c.dim_k = 256, c.window = 20; });
    add("bf16, 256, several rounds", [](Case &c) { c.dim_k = 256, c.window = 40, c.n_q_heads = 3, c.n_kv_heads = 1, c.keys_per_range = 128; });
    add("window 150, group 2: two rounds", [](Case &c) { c.window = 150, c.n_q_heads = 2, c.n_kv_heads = 1, c.lengths = {300}, c.keys_per_range = 128; });
    add("window 300: a head over two rounds", [](Case &c) { c.window = 300, c.n_q_heads = 1, c.n_kv_heads = 1, c.lengths = {400}, c.keys_per_range = 192; });
    add("group 1, window 1", [](Case &c) { c.window = 1, c.n_q_heads = 2; });
    add("group 5", [](Case &c) { c.n_q_heads = 5, c.n_kv_heads = 1; });
    add("sliding window 40", [](Case &c) { c.sliding_window = 40; });
    add("sliding window 3: nothing is live", [](Case &c) { c.sliding_window = 3; });
    add("sliding window 12: three live entries, smoothing", [](Case &c) { c.sliding_window = 12, c.params.smoothing = 1; });
    add("sliding window 100, own norms, averages", [](Case &c) { c.sliding_window = 100, c.params = lava_score_params_vatp(), c.params.pool_kernel = 9, c.params.pool = LAVA_POOL_AVG; });
    add("sliding window 80, recency", [](Case &c) { c.sliding_window = 80, c.params = lava_score_params_streaming(); });
    add("softcap 2", [](Case &c) { c.params.softcap = 2; });
    add("scale negative", [](Case &c) { c.params.scale = -0.2f; });
    add("logits in the hundreds", [](Case &c) { c.params.scale = 4; });
    add("flat logits of 1e5", [](Case &c) { c.flat = 1e5f; });
    add("flat logits of -1e7, several rounds", [](Case &c) { c.flat = -1e7f, c.dim_k = 256, c.window = 40, c.n_q_heads = 3, c.n_kv_heads = 1, c.keys_per_range = 128; });
    add("flat logits of 1e7, squares, capped at 1e6", [](Case &c) { c.flat = 1e7f, c.params = lava_score_params_kv_compress(), c.params.softcap = 1e6f; });
    add("flat logits of 1e9, exponential", [](Case &c) { c.flat = 1e9f, c.params.attention = LAVA_ATTENTION_EXPONENTIAL, c.params.decay = 0.3f; });
    add("logits rising by 128 from tile to tile", [](Case &c) { c.rise = 2, c.keys_per_range = 128; });
    add("logits rising slowly", [](Case &c) { c.rise = 0.5f, c.keys_per_range = 128; });
    add("lse given", [](Case &c) { c.lse = true; });
    add("lse given, of base two", [](Case &c) { c.lse = c.base_two = true, c.params.lse_base = LAVA_LSE_BASE2; });
    add("lse given, softcap, sliding window", [](Case &c) { c.lse = true, c.params.softcap = 5, c.sliding_window = 60; });
    add("values over all tokens, f32", [](Case &c) { c.params.value_span = LAVA_VALUES_ALL, c.dtype_v = LAVA_F32; });
    add("f16 values, transposed", [](Case &c) { c.dtype_v = LAVA_F16, c.layout_v = TRANSPOSED; });
    add("a range of 576 keys: more than one round of values", [](Case &c) { c.lengths = {550}, c.keys_per_range = 576; });
    add("values of 5 dimensions", [](Case &c) { c.dim_v = 5; });
    add("values of 200 dimensions", [](Case &c) { c.dim_v = 200; });
    add("no values", [](Case &c) { c.params = lava_score_params_snapkv(); });
    add("each value's own norm", [](Case &c) { c.params = lava_score_params_vatp(); });
    add("mean over the group after max-pooling", [](Case &c) { c.params.group_reduce = LAVA_GROUP_MEAN; });
    add("max over the group after average pooling", [](Case &c) { c.params.pool = LAVA_POOL_AVG; });
    add("the same over two rounds", [](Case &c) { c.params.pool = LAVA_POOL_AVG, c.window = 150, c.n_q_heads = 2, c.n_kv_heads = 1, c.lengths = {300}, c.keys_per_range = 128; });
    add("averages", [](Case &c) { c.params.pool = LAVA_POOL_AVG, c.params.group_reduce = LAVA_GROUP_MEAN, c.params.pool_kernel = 5; });
    add("no pooling, mean", [](Case &c) { c.params.pool_kernel = 1, c.params.group_reduce = LAVA_GROUP_MEAN; });
    add("pooling over 127, two blocks", [](Case &c) { c.params.pool_kernel = 127, c.lengths = {280}, c.n_q_heads = c.n_kv_heads = 1; });
    add("squares", [](Case &c) { c.params = lava_score_params_kv_compress(); });
    add("mean and variance", [](Case &c) { c.params = lava_score_params_cake(2); });
    add("mean and variance, two rounds", [](Case &c) { c.params = lava_score_params_cake(2), c.window = 150, c.n_q_heads = 2, c.n_kv_heads = 1, c.lengths = {300}; });
    add("exponential", [](Case &c) { c.params.attention = LAVA_ATTENTION_EXPONENTIAL, c.params.decay = 0.3f; });
    add("the last query alone", [](Case &c) { c.params = lava_score_params_sage_kv(); });
    add("recency", [](Case &c) { c.params = lava_score_params_streaming(); });
    add("weight", [](Case &c) { c.params.weight = 0.5f; });
    add("squares, token norms, smoothing", [](Case &c) { c.params = lava_score_params_squares(), c.params.smoothing = 1, c.lengths = {600, 8, 100}; });
    add("smoothing alone", [](Case &c) { c.params.smoothing = 2.5f, c.lengths = {264}; });
    add("head-major", [](Case &c) { c.layout = c.layout_q = c.layout_v = HEAD_MAJOR; });
    add("queries at odd strides", [](Case &c) { c.layout_q = GAPS; });
    add("any: f32", [](Case &c) { c.dtype = c.dtype_v = LAVA_F32; });
    add("any: f32, 40, sliding, softcap", [](Case &c) { c.dtype = LAVA_F32, c.dim_k = 40, c.sliding_window = 50, c.params.softcap = 3; });
    add("any: f32, flat logits of 1e7, two sequences", [](Case &c) { c.flat = 1e7f, c.dtype = LAVA_F32, c.lengths = {90, 300}; });
    add("any: f32, 128, lse given", [](Case &c) { c.dtype = LAVA_F32, c.dim_k = 128, c.lse = true; });
    add("any: f16, 33", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = 33; });
    add("any: bf16, 576", [](Case &c) { c.dim_k = 576, c.window = 3; });
    add("any: transposed", [](Case &c) { c.layout = c.layout_v = TRANSPOSED; });
    add("any: gaps, mean and variance, two sequences", [](Case &c) { c.layout = c.layout_q = GAPS, c.params = lava_score_params_cake(2), c.lengths = {90, 130}; });
    add("any: mean after max-pooling, ranges of 128", [](Case &c) { c.dtype = LAVA_F32, c.params.group_reduce = LAVA_GROUP_MEAN, c.keys_per_range = 128; });
    const auto change = [&](const char *name, auto change) {
        cases.push_back(is(name).with([](Case &c) { c.params = lava_score_params_caote(); }).with(change));
    };
    change("CAOTE", [](Case &) {});
    change("CAOTE: three sequences, one all window", [](Case &c) { c.lengths = {70, 8, 201}; });
    change("CAOTE: one token of prefix, window 1", [](Case &c) { c.lengths = {2}, c.window = 1; });
    change("CAOTE: two tiles and one key more, ranges of 128", [](Case &c) { c.lengths = {257, 129}, c.keys_per_range = 128; });
    change("CAOTE: f16, group 4, window 32, 128", [](Case &c) { c.dtype = c.dtype_v = LAVA_F16, c.dim_k = c.dim_v = 128, c.window = 32, c.n_kv_heads = 1; });
    change("CAOTE: group 1", [](Case &c) { c.n_q_heads = 2; });
    change("CAOTE: group 5, mean", [](Case &c) { c.n_q_heads = 10, c.params.group_reduce = LAVA_GROUP_MEAN; });
    change("CAOTE: group 9, max-pooling", [](Case &c) { c.n_q_heads = 9, c.n_kv_heads = 1, c.params.pool_kernel = 7; });
    change("CAOTE: average pooling, mean", [](Case &c) { c.params.pool = LAVA_POOL_AVG, c.params.pool_kernel = 5, c.params.group_reduce = LAVA_GROUP_MEAN; });
    change("CAOTE: lse given", [](Case &c) { c.lse = true, c.lengths = {150, 70}; });
    change("CAOTE: sliding window, softcap, weight", [](Case &c) { c.sliding_window = 40, c.params.softcap = 3, c.params.weight = 0.5f; });
    change("CAOTE: two rounds of rows", [](Case &c) { c.window = 150, c.n_q_heads = 2, c.n_kv_heads = 1, c.lengths = {300}, c.keys_per_range = 128; });
    change("CAOTE: attention in the hundreds", [](Case &c) { c.params.scale = 4; });
    change("CAOTE: one entry has all attention, and is the output", [](Case &c) { c.less_by = 1024; });
    change("CAOTE: so near to all that 1 - a is 0", [](Case &c) { c.less_by = 24; });
    change("CAOTE: so near to all that 1 - a is 0, f32", [](Case &c) { c.less_by = 24, c.dtype = LAVA_F32; });
    change("CAOTE: f32 values of 256", [](Case &c) { c.dtype_v = LAVA_F32, c.dim_v = 256; });
    change("CAOTE: f32 values of 260", [](Case &c) { c.dtype_v = LAVA_F32, c.dim_v = 260, c.lengths = {100}; });
    change("CAOTE: bf16 values of 576", [](Case &c) { c.dim_v = 576, c.lengths = {100}; });
    change("CAOTE: f16 values of 255", [](Case &c) { c.dtype_v = LAVA_F16, c.dim_v = 255, c.lengths = {100}; });
    change("CAOTE: values of 1", [](Case &c) { c.dim_v = 1; });
    change("CAOTE: values of 5, transposed", [](Case &c) { c.dim_v = 5, c.layout_v = TRANSPOSED; });
    change("CAOTE: values with gaps", [](Case &c) { c.layout_v = GAPS; });
    change("CAOTE: head-major", [](Case &c) { c.layout = c.layout_q = c.layout_v = HEAD_MAJOR; });
    change("CAOTE, any: f32", [](Case &c) { c.dtype = c.dtype_v = LAVA_F32; });
    change("CAOTE, any: f32, 40, lse, three sequences", [](Case &c) { c.dtype = LAVA_F32, c.dim_k = 40, c.lse = true, c.lengths = {8, 90, 131}; });
    add("ReST-KV", [](Case &c) { c.params = lava_score_params_rest_kv(0.3f), c.lengths = {150, 9}; });
    add("ReST-KV, any, group 4", [](Case &c) { c.params = lava_score_params_rest_kv(0.3f), c.dtype = LAVA_F32, c.n_kv_heads = 1; });
    for (const Case &c : cases)
        if (argc < 2 || strstr(c.name, argv[1])) check(c);

    std::vector<Case> spreads = {base};
    const auto spread = [&](const char *name, auto change) { spreads.push_back(is(name).with(change)); };
    spread("three sequences, one all window", [](Case &c) { c.lengths = {70, 8, 201}; });
    spread("one token of prefix, window 1", [](Case &c) { c.lengths = {2}, c.window = 1; });
    spread("lse given, a tile and one key", [](Case &c) { c.lse = true, c.lengths = {73}; });
    spread("f16, 128, window 32, group 4, ranges of two tiles", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = 128, c.window = 32, c.n_q_heads = 4, c.n_kv_heads = 1, c.lengths = {289}, c.keys_per_range = 128; });
    spread("256, several rounds", [](Case &c) { c.dim_k = 256, c.window = 40, c.n_q_heads = 3, c.n_kv_heads = 1, c.keys_per_range = 128; });
    spread("sliding window, softcap", [](Case &c) { c.sliding_window = 40, c.params.softcap = 2; });
    spread("logits in the hundreds", [](Case &c) { c.params.scale = 4; });
    spread("a sink with nearly all attention", [](Case &c) { c.less_by = 8, c.tilt = 0.0625f, c.window = 24; });
    spread("the same with a log-sum-exp below 256", [](Case &c) { c.less_by = 24, c.params.scale = 1 / 29.0f, c.tilt = 0.0625f, c.window = 24; });
    spread("the same, a query head of four tiles", [](Case &c) { c.less_by = 8, c.tilt = 0.0625f, c.window = 57, c.lengths = {300}; });
    spread("any: f32, the same", [](Case &c) { c.less_by = 8, c.tilt = 0.0625f, c.window = 21, c.dtype = LAVA_F32; });
    spread("flat logits of 1e6", [](Case &c) { c.flat = 1e6f; });
    spread("any: f32, 40, two sequences", [](Case &c) { c.dtype = LAVA_F32, c.dim_k = 40, c.lengths = {90, 137}; });
    spread("any: lse given, group 5", [](Case &c) { c.dtype = LAVA_F32, c.lse = true, c.n_q_heads = 5, c.n_kv_heads = 1; });
    for (const Case &c : spreads)
        if (argc < 2 || strstr("statistics", argv[1])) check_stats(c);
    if (argc > 1) return finish("score", n_cases);

    const Case two = Case("faults").with([](Case &c) { c.lengths = {70, 131}; });
    const Case any = two.with([](Case &c) { c.dtype = LAVA_F32, c.name = "faults, f32"; });
    const Case given = two.with([](Case &c) { c.lse = true, c.name = "faults, lse given"; });
    const Case swa = two.with([](Case &c) { c.sliding_window = 120, c.name = "faults, sliding window"; });
    for (const Case &c : {two, any, given, swa}) {
        check_fault(c, "NaN in a key", LAVA_FAULT_Q_OR_K, 1, [](Sequence &s) { s.k.set(1, 17, 9, NAN); });
        check_fault(c, "infinity in the last key", LAVA_FAULT_Q_OR_K, 0, [](Sequence &s) { s.k.set(0, 130, 63, INFINITY); });
        check_fault(c, "infinity in both heads' keys", LAVA_FAULT_Q_OR_K, 0, [](Sequence &s) {
            s.k.set(1, 64, 0, -INFINITY);
            s.k.set(0, 100, 1, -INFINITY);
        });
        check_fault(c, "NaN in a query", LAVA_FAULT_Q_OR_K, 1, [](Sequence &s) { s.q.set(3, 7, 0, NAN); });
        check_fault(c, "infinity in a value", LAVA_FAULT_V, 1, [](Sequence &s) { s.v.set(1, 130, 23, -INFINITY); });
        check_fault(c, "NaN in a value", LAVA_FAULT_V, 0, [](Sequence &s) { s.v.set(0, 12, 0, NAN); });
    }
    check_no_fault(swa, "NaN in a dead value", [](Sequence &s) { s.v.set(0, 11, 0, NAN); });
    check_fault(two, "a norm that overflows", LAVA_FAULT_V, 1, [](Sequence &s) { s.v.set(1, 30, 2, 3e38f), s.v.set(1, 30, 3, 3e38f); });
    check_fault(two, "a dot product that overflows", LAVA_FAULT_Q_OR_K, 0, [](Sequence &s) {
        for (uint32_t e = 0; e < 4; e++) s.q.set(1, 2, e, 1e19f), s.k.set(0, 40, e, -3e19f);
    });
    check_fault(given, "NaN in the lse", LAVA_FAULT_LSE, 1, [](Sequence &s) { s.lse.set(2, 7, 0, NAN); });
    check_fault(given, "infinite lse", LAVA_FAULT_LSE, 0, [](Sequence &s) { s.lse.set(1, 0, 0, -INFINITY); });
    const Case large = two.with([](Case &c) { c.dtype_v = LAVA_F32, c.params.weight = 1e20f, c.name = "overflow"; });
    check_fault(large, "scores", LAVA_FAULT_SCORES, 0, [](Sequence &s) {
        for (uint32_t e = 0; e < 24; e++) s.v.set(0, 9, e, 1e30f);
    });
    const Case output = two.with([](Case &c) { c.params = lava_score_params_caote(), c.dtype_v = LAVA_F32, c.name = "faults, CAOTE"; });
    check_fault(output, "NaN in a value", LAVA_FAULT_V, 0, [](Sequence &s) { s.v.set(0, 0, 0, NAN); });
    check_fault(output, "infinity in a value of the window", LAVA_FAULT_V, 1, [](Sequence &s) { s.v.set(1, 130, 23, -INFINITY); });
    check_fault(output, "NaN in the last range's value", LAVA_FAULT_V, 1, [](Sequence &s) { s.v.set(1, 129, 8, NAN); });
    check_fault(output, "a norm that overflows", LAVA_FAULT_V, 1, [](Sequence &s) { s.v.set(1, 130, 2, 3e38f), s.v.set(1, 130, 3, 3e38f); });
    const Case heavy = output.with([](Case &c) { c.params.weight = 1e30f, c.name = "faults, CAOTE of great weight"; });
    check_fault(heavy, "scores that overflow", LAVA_FAULT_SCORES, 0, [](Sequence &s) { s.v.set(0, 130, 2, 1e15f); });
    check_fault(output, "NaN in a key", LAVA_FAULT_Q_OR_K, 1, [](Sequence &s) { s.k.set(1, 17, 9, NAN); });
    return finish("score", n_cases);
}
