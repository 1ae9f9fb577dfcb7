// The kernels of attend.cu under emulation, against lava_attend of the CPU library.
//
// The bound. With S the largest scaled sum of |q c| |k c| and u = 2^-24, a logit is off by 4 sqrt(d) u S and a few u S more on
// either side (d u S if all roundings conspired), so a weight by twice that relatively, once in the sum over it and once in the sum of all. Where 16-bit types meet, a weight goes in two pieces and keeps
// 16 digits (bf16) or more: 2^-17. Sums of a head's rows: u times their number. An output is a mean of values with these weights, so it is
// off by that times the mean of |v|, which is at most the largest. A log-sum-exp is off by d u S and the sum's share.
#include "../attend.cu"
#include "attention.h"

using namespace test;

namespace {

struct Case {
    const char *name;
    /// Rows of each head, sequence by sequence.
    std::vector<std::vector<uint32_t>> rows = {{70, 33}};
    uint32_t n_queries = 1, n_q_heads = 8, dim_k = 64, dim_v = 64, rows_per_item = 32, blocks = 2;
    int32_t dtype = LAVA_BF16;
    bool causal = true, ragged = true, lse = true, base_two = false;
    /// Gaps between the kept rows' positions.
    uint32_t sliding_window = 0, n_kept = 20, gap = 3;
    float scale = 0, softcap = 0;
    /// Each head's first row has nearly all attention, the others a hundred thousandth of that each.
    bool faint = false;
    /// The counts are too large: what was never written.
    bool unwritten = false;
    /// kept_indices begin some entries later.
    bool later = false;
    /// Instead of what the rows need.
    uint32_t max_items = 0;
    Case(const char *name) : name(name) {}
};

struct Sequence {
    std::vector<uint32_t> n_rows, starts, kept, cu_kept{0};
    Numbers q, k, v, out, lse;
    uint32_t n_base;

    static std::vector<uint32_t> pack(const Case &c, const std::vector<uint32_t> &rows) {
        std::vector<uint32_t> starts;
        uint32_t next = 2;
        for (uint32_t n : rows) starts.push_back(next), next += n + 1;
        return c.ragged ? starts : std::vector<uint32_t>();
    }
    static uint32_t extent(const Case &c, const std::vector<uint32_t> &rows) {
        if (!c.ragged) return *std::max_element(rows.begin(), rows.end());
        return pack(c, rows).back() + rows.back();
    }
    Sequence(const Case &c, const std::vector<uint32_t> &rows, Random &random)
        : n_rows(rows), starts(pack(c, rows)), q(c.dtype, c.n_queries, c.n_q_heads, c.dim_k, TOKEN_MAJOR),
          k(c.dtype, extent(c, rows), uint32_t(rows.size()), c.dim_k, HEAD_MAJOR, starts),
          v(c.dtype, extent(c, rows), uint32_t(rows.size()), c.dim_v, HEAD_MAJOR, starts),
          out(LAVA_F32, c.n_queries, c.n_q_heads, c.dim_v, TOKEN_MAJOR),
          lse(LAVA_F32, c.n_queries, c.n_q_heads, 1, TOKEN_MAJOR) {
        q.fill(random, 2);
        k.fill(random, 2);
        v.fill(random, 1);
        out.fill(random, 1);
        if (c.faint) {
            for (uint32_t h = 0; h < c.n_q_heads; h++)
                for (uint32_t e = 0; e < c.dim_k; e++) q.set(h, 0, e, 1);
            for (uint32_t h = 0; h < rows.size(); h++)
                for (uint32_t r = 0; r < rows[h]; r++)
                    for (uint32_t e = 0; e < c.dim_k; e++) {
                        k.set(h, r, e, r == 0 ? 1.4375f : 0);
                        v.set(h, r, e, r == 0 ? -1 : 1);
                    }
        }
        for (uint32_t n : rows) {
            for (uint32_t i = 0; i < std::min(n, c.n_kept); i++) kept.push_back(i * c.gap);
            cu_kept.push_back(uint32_t(kept.size()));
        }
        n_base = c.n_kept * c.gap + 1;
    }
};

float scale_of(const Case &c) { return c.scale != 0 ? c.scale : 1 / std::sqrt(float(c.dim_k)); }

struct Result {
    std::vector<float> numbers;
    uint64_t status = LAVA_NO_FAULT;
};

using Kernel = void (*)(const lava_attend_args);
Kernel rows_of(const Case &c, bool instance) {
#define OF(d)                                                                                                              \
    if (instance && c.dim_k == d) return c.dtype == LAVA_F16 ? lava_attend_rows_f16_##d : lava_attend_rows_bf16_##d;
    OF(64) OF(80) OF(96) OF(128) OF(256)
#undef OF
    return lava_attend_rows_any;
}

void append(Result &result, const Case &c, const Sequence &s) {
    for (uint32_t t = 0; t < c.n_queries; t++)
        for (uint32_t h = 0; h < c.n_q_heads; h++) {
            for (uint32_t e = 0; e < c.dim_v; e++) result.numbers.push_back(s.out.get(h, t, e));
            result.numbers.push_back(c.lse ? s.lse.get(h, t, 0) : 0);
        }
}

Result run(const Case &c, const std::vector<std::unique_ptr<Sequence>> &sequences, unsigned seed, uint32_t blocks) {
    Result result;
    Buffer<lava_attend_sequence> list(sequences.size());
    Buffer<uint64_t> status(1, 0xff);
    uint64_t total = 0;
    std::vector<std::unique_ptr<Buffer<uint32_t>>> numbers;
    std::vector<std::unique_ptr<Buffer<uint64_t>>> offsets;
    const auto shown = [&](const std::vector<uint32_t> &v) { // to the kernels
        numbers.emplace_back(new Buffer<uint32_t>(v.size()));
        std::copy(v.begin(), v.end(), numbers.back()->data());
        return numbers.back()->data();
    };
    for (size_t i = 0; i < sequences.size(); i++) {
        const Sequence &s = *sequences[i];
        const uint32_t most = *std::max_element(s.n_rows.begin(), s.n_rows.end());
        const std::vector<uint32_t> counts = c.unwritten ? std::vector<uint32_t>(s.n_rows.size(), 0xa5a5a5a5) : s.n_rows;
        list[i] = {s.q.device(), s.k.device(), s.v.device(), s.out.device(), {}, shown(counts), nullptr, nullptr, nullptr, s.n_base, most};
        if (c.lse) list[i].lse = s.lse.device();
        if (c.sliding_window != 0) {
            std::vector<uint32_t> kept = s.kept;
            if (c.later) {
                kept.insert(kept.begin(), 7, 1000000);
                offsets.emplace_back(new Buffer<uint64_t>(1));
                (*offsets.back())[0] = 7;
                list[i].kept_offset = offsets.back()->data();
            }
            list[i].kept_indices = shown(kept), list[i].cu_kept = shown(s.cu_kept);
        }
        for (uint32_t n : s.n_rows) total += n;
    }
    lava_attend_args args = {};
    if (list.size() == 1) args.one = list[0];
    else args.items = list.data();
    args.layer = 3;
    args.n_queries = c.n_queries, args.n_q_heads = c.n_q_heads, args.n_kv_heads = uint32_t(sequences[0]->n_rows.size());
    args.head_dim_k = c.dim_k, args.head_dim_v = c.dim_v, args.causal = c.causal, args.sliding_window = c.sliding_window;
    args.scale = scale_of(c), args.softcap = c.softcap, args.lse_from_base_2 = c.base_two ? 1 : lava::LN_2, args.n_sequences = uint32_t(list.size());
    args.rows_per_item = c.rows_per_item;
    args.max_items = c.max_items != 0 ? c.max_items : lava_attend_items(&args, total);
    bool instance = true;
    for (size_t i = 0; i < list.size(); i++) instance = instance && lava_attend_is_aligned(&args, &list[i]);
    Buffer<uint8_t> workspace(lava_attend_layout(&args, nullptr), 0xff);
    lava_attend_layout(&args, workspace.data());
    args.status = status.data();
    launch(rows_of(c, instance), blocks, 1, 1, 32 * LAVA_ATTEND_WARPS, instance ? lava_attend_shared(&args) : 0, seed, args);
    launch(lava_attend_merge, lava_attend_queries(&args), args.n_kv_heads, args.n_sequences, 128, 0, seed, args);
    result.status = status[0];
    for (const auto &s : sequences) append(result, c, *s);
    return result;
}

double largest_logit(const Case &c, const Sequence &s) {
    double largest = 0;
    const uint32_t group = c.n_q_heads / uint32_t(s.n_rows.size());
    for (uint32_t h = 0; h < c.n_q_heads; h++)
        for (uint32_t t = 0; t < c.n_queries; t++)
            for (uint32_t i = 0; i < s.n_rows[h / group]; i++) {
                double sum = 0;
                for (uint32_t e = 0; e < c.dim_k; e++) sum += std::abs(double(s.q.get(h, t, e)) * s.k.get(h / group, i, e));
                largest = std::max(largest, std::abs(scale_of(c)) * sum);
            }
    return largest;
}

/// The bits depend on nothing else than the input.
void check_bits(const Case &c, std::vector<std::unique_ptr<Sequence>> &sequences, const Result &got) {
    expect(same_bits(got.numbers, run(c, sequences, 77, c.blocks).numbers), "%s: another schedule, other bits", c.name);
    expect(same_bits(got.numbers, run(c, sequences, 5, 7).numbers), "%s: other blocks, other bits", c.name);
    std::vector<std::unique_ptr<Sequence>> alone;
    alone.push_back(std::move(sequences.back()));
    const Result single = run(c, alone, 9, c.blocks);
    expect(std::equal(single.numbers.rbegin(), single.numbers.rend(), got.numbers.rbegin(),
                      [](float a, float b) { return memcmp(&a, &b, 4) == 0; }),
           "%s: without the other sequences, other bits", c.name);
    sequences.back() = std::move(alone[0]);
}

long n_cases = 0;

void check(const Case &c) {
    SAMPLE;
    n_cases++;
    Random random(c.dim_k + c.n_queries);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (const auto &rows : c.rows) sequences.emplace_back(new Sequence(c, rows, random));
    const Result got = run(c, sequences, 1, c.blocks);
    expect(got.status == LAVA_NO_FAULT, "%s: status %016llx", c.name, (unsigned long long) got.status);
    if (!is_quick()) check_bits(c, sequences, got);

    Result want;
    double worst = 0, bound = 0;
    for (auto &s : sequences) {
        lava_shape shape = lava_shape_init(1, c.n_q_heads, uint32_t(s->n_rows.size()), c.dim_k, c.dim_v, 1);
        lava_attend_params params = lava_attend_params_default();
        shape.sliding_window = c.sliding_window;
        params.causal = c.causal, params.scale = c.scale, params.softcap = c.softcap, params.lse_base = c.base_two;
        params.n_base = s->n_base, params.kept_indices = s->kept.data(), params.cu_kept = s->cu_kept.data();
        size_t bytes = 0;
        lava_attend_workspace_size(&shape, c.n_queries, &bytes, nullptr);
        Buffer<uint8_t> workspace(bytes, 0xff);
        const lava_tensor q = s->q.host(), k = s->k.host(), v = s->v.host(), out = s->out.host(), lse = s->lse.host();
        lava_error error = {};
        error.struct_size = sizeof error;
        const lava_status status = lava_attend(&shape, &params, c.n_queries, &q, &k, &v, s->n_rows.data(), &out, c.lse ? &lse : nullptr, 0, 1,
                                               workspace.data(), bytes, &error);
        expect(status == LAVA_OK, "%s: the CPU says %s: %s", c.name, error.argument, error.message);
        append(want, c, *s);
        const uint32_t most = *std::max_element(s->n_rows.begin(), s->n_rows.end());
        const double pieces = c.dtype == LAVA_F32 ? 0 : 1.0 / (1 << 17);
        bound = std::max(bound, 2 * (HALF_ULP * (2 * (4 * std::sqrt(c.dim_k) + 8) * largest_logit(c, *s) + most + 40) + pieces));
    }
    for (size_t i = 0; i < want.numbers.size(); i++) {
        const float x = got.numbers[i], y = want.numbers[i];
        const double off = x == y ? 0 : std::abs(double(x) - y);
        if (!(off <= bound)) expect(false, "%s: number %zu: %g, not %g (bound %.2g)", c.name, i, x, y, bound);
        worst = std::max(worst, off);
    }
    printf("  %-52s off by %.1e, bound %.1e\n", c.name, worst, bound);
}

/// More rows than the workspace is for: those after it are left out, and nothing else is touched.
void check_less_room() {
    Case c("more rows than in all");
    c.rows = {{70, 70}}, c.rows_per_item = 16, c.causal = false;
    Random random(8);
    std::vector<std::unique_ptr<Sequence>> all;
    all.emplace_back(new Sequence(c, c.rows[0], random));
    c.max_items = 7; // five of the first head, two of the second
    const Result got = run(c, all, 1, 3);
    all[0]->n_rows[1] = 32, c.max_items = 0;
    const Result want = run(c, all, 1, 3);
    expect(same_bits(got.numbers, want.numbers), "%s: not as if they were not there", c.name);
}

void check_fault(const Case &c, const char *what, uint32_t fault, uint32_t head, void (*spoil)(Sequence &)) {
    SAMPLE;
    Random random(5);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (const auto &rows : c.rows) sequences.emplace_back(new Sequence(c, rows, random));
    spoil(*sequences.back());
    const uint64_t status = run(c, sequences, 3, 2).status;
    const uint64_t want = lava_fault(fault, 3, uint32_t(sequences.size() - 1), head);
    expect(status == want, "%s, %s: status %016llx, not %016llx", c.name, what, (unsigned long long) status,
           (unsigned long long) want);
}

} // namespace

int main() {
    std::vector<Case> cases = {Case("plain")};
    const auto add = [&](const char *name, auto change) {
        cases.emplace_back(name);
        change(cases.back());
    };
    add("three sequences, heads of none, one, many", [](Case &c) { c.rows = {{0, 17}, {200, 1}, {64, 48}}, c.causal = false; });
    add("no head has rows", [](Case &c) { c.rows = {{0, 0}}, c.causal = false; });
    add("150 caches", [](Case &c) { c.causal = false, c.n_q_heads = 5, c.rows.assign(30, {1, 0, 3, 2, 17}); });
    add("an item exactly, and one row more", [](Case &c) { c.rows = {{64, 65}}; });
    add("f16, 80", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = c.dim_v = 80; });
    add("bf16, 96, three new tokens", [](Case &c) { c.dim_k = c.dim_v = 96, c.n_queries = 3; });
    add("f16, 128, seven queries of a group", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = c.dim_v = 128, c.n_q_heads = 14; });
    add("bf16, 128", [](Case &c) { c.dim_k = c.dim_v = 128; });
    add("bf16, 256", [](Case &c) { c.dim_k = c.dim_v = 256; });
    add("group 20: two chunks of queries", [](Case &c) { c.n_q_heads = 40; });
    add("five new tokens, group 8: three chunks", [](Case &c) { c.n_queries = 5, c.n_q_heads = 16, c.rows = {{5, 90}}; });
    add("new tokens that see nothing older", [](Case &c) { c.n_queries = 3, c.rows = {{3, 4}}; });
    add("not causal", [](Case &c) { c.n_queries = 2, c.causal = false; });
    add("sliding window 9", [](Case &c) { c.sliding_window = 9, c.n_queries = 3; });
    add("sliding window 40: into the kept rows", [](Case &c) { c.sliding_window = 60, c.n_queries = 2, c.rows = {{22, 47}}; });
    add("the same, kept_indices that begin later", [](Case &c) { c.sliding_window = 60, c.n_queries = 2, c.rows = {{22, 47}, {31, 9}}, c.later = true; });
    add("counts that were never written: the room", [](Case &c) { c.unwritten = true, c.rows = {{70, 70}, {70, 70}}; });
    add("sliding window, not causal", [](Case &c) { c.sliding_window = 11, c.n_queries = 4, c.causal = false, c.rows = {{30, 0}}; });
    add("softcap", [](Case &c) { c.softcap = 1.5f; });
    add("lse of base two", [](Case &c) { c.base_two = true; });
    add("scale negative", [](Case &c) { c.scale = -0.3f; });
    add("f16, logits in the hundreds", [](Case &c) { c.dtype = LAVA_F16, c.scale = 6; });
    add("f16, 2000 faint rows", [](Case &c) { c.dtype = LAVA_F16, c.faint = true, c.rows = {{2000, 5}}, c.rows_per_item = 2048; });
    add("head-major", [](Case &c) { c.ragged = false; });
    add("no lse", [](Case &c) { c.lse = false; });
    add("any: f32", [](Case &c) { c.dtype = LAVA_F32; });
    add("any: f32, 576 and 512, two new tokens", [](Case &c) { c.dtype = LAVA_F32, c.dim_k = 576, c.dim_v = 512, c.n_queries = 2, c.n_q_heads = 2, c.rows = {{40, 3}}; });
    add("any: bf16, 64 and 40, sliding window, softcap", [](Case &c) { c.dim_v = 40, c.sliding_window = 25, c.softcap = 4; });
    add("any: f16, 33", [](Case &c) { c.dtype = LAVA_F16, c.dim_k = c.dim_v = 33, c.n_q_heads = 40, c.n_queries = 2; });
    for (const Case &c : cases) check(c);
    check_less_room();

    Case two("faults"), any("faults, f32");
    two.rows = {{30, 20}, {70, 33}};
    any.rows = two.rows, any.dtype = LAVA_F32;
    for (const Case &c : {two, any}) {
        check_fault(c, "NaN in a key", LAVA_FAULT_Q_OR_K, 1, [](Sequence &s) { s.k.set(1, 32, 5, NAN); });
        check_fault(c, "infinity in a key", LAVA_FAULT_Q_OR_K, 0, [](Sequence &s) { s.k.set(0, 40, 63, -INFINITY); });
        check_fault(c, "NaN in a query", LAVA_FAULT_Q_OR_K, 1, [](Sequence &s) { s.q.set(6, 0, 5, NAN); });
        check_fault(c, "infinity in a value", LAVA_FAULT_V, 0, [](Sequence &s) { s.v.set(0, 69, 63, INFINITY); });
    }
    return finish("attend", n_cases);
}
