/*
 * What is kept is what the library keeps of the same tensors, and the logits after eviction are those of attention over the kept
 * rows in double precision. With all types, flash attention on and off, prompts cut into ubatches and chunks.
 */
#include "oracle.h"

static const uint32_t WINDOW = 32, BUDGET = 90, N_PROMPT = 300, N_STEPS = 8;

/* Rows that the library keeps of what the witness saw, all layers at once. */
static kept_rows kept_by_library(const witness & w, const llama_lava_params & params, bool quantized) {
    kept_rows kept;
    floats all_scores;
    std::vector<double> entropies;
    std::vector<lava_shape> shapes;
    uint64_t total = 0;
    for (const auto & [il, l] : w.layers) {
        const uint32_t n = (uint32_t) l.q.size();
        const lava_shape shape = lava_shape_init(n, l.n_head, l.n_head_kv, l.dim, l.dim, WINDOW);
        floats q;
        for (uint32_t i = n - WINDOW; i < n; i++) q.insert(q.end(), l.q[i].begin(), l.q[i].end());
        floats plain[2], scores((size_t) l.n_head_kv * (n - WINDOW));
        lava_tensor t[2];
        for (int is_v = 0; is_v < 2; is_v++) {
            const ggml_tensor & g = is_v ? l.v : l.k;
            char * data = const_cast<char *>((is_v ? l.v_data : l.k_data).data());
            const lava_dtype type = g.type == GGML_TYPE_F32 ? LAVA_F32 : g.type == GGML_TYPE_BF16 ? LAVA_BF16 : LAVA_F16;
            if (quantized) {  // dequantised, and V turned back by a Hadamard matrix of 64
                for (uint32_t p = 0; p < n; p++)
                    for (uint32_t h = 0; h < l.n_head_kv; h++)
                        for (uint32_t e = 0; e < l.dim; e++) {
                            double x = (double) l.at(is_v != 0, h, p, e);
                            if (is_v) {
                                x = 0;
                                for (uint32_t i = 0; i < 64; i++)
                                    x += (double) l.at(true, h, p, e / 64 * 64 + i) * (__builtin_parity(i & (e % 64)) ? -0.125 : 0.125);
                            }
                            plain[is_v].push_back((float) x);
                        }
                t[is_v] = lava_tensor_token_major(LAVA_F32, plain[is_v].data(), plain[is_v].size() * sizeof(float), l.n_head_kv, l.dim);
            } else if (is_v && l.trans) {
                t[1] = lava_tensor_transposed(type, data, l.v_data.size(), (uint32_t) g.ne[1], l.dim);
            } else {
                t[is_v] = lava_tensor_token_major(type, data, (is_v ? l.v_data : l.k_data).size(), l.n_head_kv, l.dim);
            }
        }
        size_t size = 0;
        lava_score_workspace_size(&shape, params.score, &size, nullptr);
        std::vector<char> workspace(size);
        const lava_tensor tq = lava_tensor_token_major(LAVA_F32, q.data(), q.size() * sizeof(float), l.n_head, l.dim);
        if (lava_score(&shape, params.score, &tq, &t[0], &t[1], nullptr, 0, 1, workspace.data(), size, scores.data(), nullptr) != LAVA_OK) return {};
        double entropy = 0;
        lava_entropy(&shape, scores.data(), &entropy, nullptr, nullptr);
        entropies.push_back(entropy);
        all_scores.insert(all_scores.end(), scores.begin(), scores.end());
        shapes.push_back(shape);
    }
    const uint32_t n_layers = (uint32_t) shapes.size();
    std::vector<uint64_t> entries(n_layers);
    std::vector<double> head_weights;
    for (const lava_shape & shape : shapes) head_weights.resize(head_weights.size() + shape.n_kv_heads);
    lava_total_entries(shapes.data(), n_layers, n_layers, params.budget, &total, nullptr);
    const bool global = params.layers == LAVA_LAYERS_GLOBAL;
    if (global) {
        size_t size = 0;
        lava_global_entries_workspace_size(shapes.data(), n_layers, n_layers, &size, nullptr);
        std::vector<char> workspace(size);
        lava_global_entries(shapes.data(), n_layers, n_layers, params.select, all_scores.data(), total, workspace.data(), size, entries.data(), head_weights.data(), nullptr);
    } else {
        lava_layer_entries(shapes.data(), n_layers, n_layers, params.select, entropies.data(), total, entries.data(), nullptr);
    }
    const float * scores = all_scores.data();
    const double * weights = head_weights.data();
    for (uint32_t il = 0; il < n_layers; il++) {
        const lava_shape & shape = shapes[il];
        uint64_t n_kept = 0;
        size_t size = 0;
        lava_n_kept(&shape, entries[il], &n_kept, nullptr);
        lava_select_workspace_size(&shape, &size, nullptr);
        std::vector<char> workspace(size);
        std::vector<uint32_t> rows(n_kept), cu(shape.n_kv_heads + 1);
        lava_select_params how = params.select ? *params.select : lava_select_params_default();
        how.head_weights = global ? weights : nullptr;
        lava_select(&shape, &how, scores, entries[il], workspace.data(), size, rows.data(), n_kept, cu.data(), nullptr, nullptr, nullptr);
        kept.emplace_back();
        for (uint32_t h = 0; h < shape.n_kv_heads; h++) kept.back().emplace_back(rows.begin() + cu[h], rows.begin() + cu[h + 1]);
        scores += lava_n_scores(&shape);
        weights += shape.n_kv_heads;
    }
    return kept;
}

static size_t count(const kept_rows & rows) {
    size_t n = 0;
    for (const auto & layer : rows)
        for (const auto & head : layer) n += head.size();
    return n;
}

struct variant {
    const char * name;
    ggml_type type;
    bool flash;
    uint32_t n_ubatch, chunk;
    llama_lava_attn attn;
    double allowed;
};

int main(int argc, char ** argv) {
    const std::string path = std::string(argc > 1 ? argv[1] : ".") + "/evict.gguf";
    start();
    tiny_model tiny;
    tiny.write(path);
    model_ptr model = load(path);
    const auto tokens = some_tokens(N_PROMPT + N_STEPS, tiny.n_vocab);

    // The library computes in F32. Stock attention rounds to the cache's type and adds F16 values up in F16.
    const variant variants[] = {
        { "f16",                       GGML_TYPE_F16,  true,  512, N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "f16, ubatches of 64",       GGML_TYPE_F16,  true,  64,  N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "f16, chunks of 7",          GGML_TYPE_F16,  true,  512, 7,        LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "f16, flash off",            GGML_TYPE_F16,  false, 512, N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "bf16",                      GGML_TYPE_BF16, true,  512, N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "bf16, flash off",           GGML_TYPE_BF16, false, 512, N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "f32",                       GGML_TYPE_F32,  true,  512, N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "f32, flash off, ub of 100", GGML_TYPE_F32,  false, 100, N_PROMPT, LLAMA_LAVA_ATTN_RAGGED,   1e-4 },
        { "f32, flash off, padded",    GGML_TYPE_F32,  false, 512, N_PROMPT, LLAMA_LAVA_ATTN_PADDED,   1e-4 },
        { "f32, flash off, per head",  GGML_TYPE_F32,  false, 512, N_PROMPT, LLAMA_LAVA_ATTN_PER_HEAD, 1e-4 },
        { "f16, padded",               GGML_TYPE_F16,  true,  512, N_PROMPT, LLAMA_LAVA_ATTN_PADDED,   3e-2 },
        { "f16, per head",             GGML_TYPE_F16,  true,  512, N_PROMPT, LLAMA_LAVA_ATTN_PER_HEAD, 3e-2 },
        { "q8_0, padded",              GGML_TYPE_Q8_0, true,  512, N_PROMPT, LLAMA_LAVA_ATTN_PADDED,   6e-2 },
    };
    for (bool by_default : { true, false })
    for (const variant & v : variants) {
        const bool quantized = v.type == GGML_TYPE_Q8_0;
        options o;
        witness prefill, decoding;
        o.type_k = o.type_v = v.type;
        o.flash = v.flash;
        o.n_ubatch = v.n_ubatch;
        o.cb = witness::callback;
        o.cb_data = &prefill;
        context_ptr ctx = open(model.get(), o);
        llama_lava_params params = by_default ? llama_lava_default_params() : published();
        params.budget = BUDGET;
        params.window = WINDOW;
        params.attn = v.attn;
        if (llama_lava_enable(ctx.get(), params) != 0) check(false, "%s: enable", v.name);
        for (uint32_t i = 0; i < N_PROMPT; i += v.chunk) decode(ctx.get(), &tokens[i], (int) std::min(v.chunk, N_PROMPT - i));
        if (llama_lava_compress(ctx.get()) != 0) check(false, "%s: compress", v.name);
        const kept_rows kept = all_positions(ctx.get());
        check(kept == kept_by_library(prefill, params, quantized), "%-26s keeps what the library keeps of a capture, preset %s", v.name, by_default ? "default" : "lava");
        check(count(kept) == (size_t) BUDGET * tiny.n_layer * tiny.n_head_kv, "%-26s %zu rows: the budget's arithmetic, exactly", v.name, count(kept));
        const floats got = steps(ctx.get(), tokens, N_PROMPT, N_STEPS);

        o.cb_data = &decoding;
        context_ptr stock = open(model.get(), o);
        for (uint32_t i = 0; i < N_PROMPT; i += v.chunk) decode(stock.get(), &tokens[i], (int) std::min(v.chunk, N_PROMPT - i));
        decoding.rows = &kept;
        decoding.n_base = N_PROMPT;
        floats want;
        for (uint32_t i = 0; i < N_STEPS; i++) {
            decoding.n_past = N_PROMPT + i;
            const floats l = logits_after(stock.get(), &tokens[N_PROMPT + i], 1);
            want.insert(want.end(), l.begin(), l.end());
        }
        const double off = apart(got, want);
        check(off < v.allowed, "%-26s logits at most %.1e from attention over the kept rows in double precision", v.name, off);
    }

    // An F32 cache against the whole model in double precision, which shares no code with llama.cpp. Flash attention off: on, it
    // rounds F32 rows to F16 while the prompt is evaluated.
    options o;
    o.type_k = o.type_v = GGML_TYPE_F32;
    o.flash = false;
    context_ptr ctx = open(model.get(), o);
    llama_lava_params params = llama_lava_default_params();
    params.budget = BUDGET;
    llama_lava_enable(ctx.get(), params);
    decode(ctx.get(), tokens.data(), (int) N_PROMPT);
    llama_lava_compress(ctx.get());
    exact_model exact(tiny);
    for (uint32_t i = 0; i < N_PROMPT; i++) exact.step(tokens[i], i);
    exact.keep(all_positions(ctx.get()));
    floats want;
    for (uint32_t i = 0; i < N_STEPS; i++)
        for (double x : exact.step(tokens[N_PROMPT + i], N_PROMPT + i)) want.push_back((float) x);
    const double off = apart(steps(ctx.get(), tokens, N_PROMPT, N_STEPS), want);
    check(off < 1e-4, "f32, flash off: logits at most %.1e from the whole model in double precision over the kept rows", off);
    return n_failed > 0;
}
