/*
 * What the tests share: contexts over a tiny model, logits and how far they are apart, one line per check.
 */
#pragma once

#include "lava_methods.h"
#include "llama.h"
#include "model.h"

#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

inline int n_failed = 0;
inline std::string log_text;  // what llama.cpp logged as a warning or an error since it was last cleared

__attribute__((format(printf, 2, 3))) inline void check(bool ok, const char * format, ...) {
    va_list args;
    va_start(args, format);
    std::printf("%s  ", ok ? "ok  " : "FAIL");
    std::vprintf(format, args);
    std::printf("\n");
    std::fflush(stdout);
    va_end(args);
    if (!ok) {
        n_failed++;
        std::printf("      log: %s\n", log_text.c_str());
    }
}

// A message, not just a refusal.
inline void check_refused(bool refused, const char * what, const char * message) {
    check(refused && log_text.find(message) != std::string::npos, "%s is refused: \"... %s ...\"", what, message);
    log_text.clear();
}

struct free_context { void operator()(llama_context * c) const { llama_free(c); } };
struct free_model { void operator()(llama_model * m) const { llama_model_free(m); } };
using context_ptr = std::unique_ptr<llama_context, free_context>;
using model_ptr   = std::unique_ptr<llama_model, free_model>;
using floats      = std::vector<float>;

inline void start() {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        static ggml_log_level last = GGML_LOG_LEVEL_NONE;
        if (level != GGML_LOG_LEVEL_CONT) last = level;
        if (last >= GGML_LOG_LEVEL_WARN) log_text += text;
        if (getenv("VERBOSE")) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
}

inline model_ptr load(const std::string & path) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    model_ptr model(llama_model_load_from_file(path.c_str(), params));
    if (!model) std::printf("cannot load %s: %s\n", path.c_str(), log_text.c_str()), std::exit(1);
    return model;
}

struct options {
    ggml_type type_k = GGML_TYPE_F16, type_v = GGML_TYPE_F16;
    bool flash = true;
    uint32_t n_ctx = 1024, n_ubatch = 512, n_seq_max = 1;
    int n_threads = 1;
    ggml_backend_sched_eval_callback cb = nullptr;
    void * cb_data = nullptr;
    const llama_lava_params * lava = nullptr;
};

/* LAVa as published. */
inline llama_lava_params published() {
    static const lava_score_params score = lava_score_params_lava();
    static const lava_select_params select = lava_select_params_lava();
    llama_lava_params p = llama_lava_default_params();
    p.layers = LAVA_LAYERS_ENTROPY;
    p.score = &score;
    p.select = &select;
    return p;
}

inline context_ptr open(llama_model * model, const options & o) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = o.n_ctx;
    p.n_batch = o.n_ctx;
    p.n_ubatch = o.n_ubatch;
    p.n_seq_max = o.n_seq_max;
    p.n_threads = p.n_threads_batch = o.n_threads;
    p.type_k = o.type_k;
    p.type_v = o.type_v;
    p.flash_attn_type = o.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.cb_eval = o.cb;
    p.cb_eval_user_data = o.cb_data;
    p.lava = o.lava;
    p.no_perf = true;
    return context_ptr(llama_init_from_model(model, p));
}

inline std::vector<llama_token> some_tokens(uint32_t n, uint32_t n_vocab, unsigned seed = 7) {
    std::mt19937 rng(seed);
    std::vector<llama_token> tokens(n);
    for (auto & t : tokens) t = (llama_token) (rng() % n_vocab);
    return tokens;
}

inline int decode(llama_context * ctx, const llama_token * tokens, int32_t n) {
    return llama_decode(ctx, llama_batch_get_one(const_cast<llama_token *>(tokens), n));
}

// Logits after the last of these tokens; empty if llama_decode failed.
inline floats logits_after(llama_context * ctx, const llama_token * tokens, int32_t n) {
    if (decode(ctx, tokens, n) != 0) return {};
    const float * l = llama_get_logits_ith(ctx, -1);
    return floats(l, l + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
}

// One decode step per token, all logits one after the other.
inline floats steps(llama_context * ctx, const std::vector<llama_token> & tokens, size_t from, size_t n) {
    floats all;
    for (size_t i = from; i < from + n; i++) {
        floats l = logits_after(ctx, &tokens[i], 1);
        all.insert(all.end(), l.begin(), l.end());
    }
    return all;
}

inline double apart(const floats & a, const floats & b) {
    if (a.size() != b.size() || a.empty()) return INFINITY;
    double worst = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double d = std::fabs((double) a[i] - b[i]);
        worst = d > worst || std::isnan(d) ? d : worst;
    }
    return std::isnan(worst) ? INFINITY : worst;
}

inline bool identical(const floats & a, const floats & b) {
    return !a.empty() && a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline std::vector<llama_pos> positions(llama_context * ctx, int il, int ih) {
    std::vector<llama_pos> p(std::max(0, llama_lava_n_kept(ctx, il, ih)));
    llama_lava_kept_positions(ctx, il, ih, p.data(), (int32_t) p.size());
    return p;
}
