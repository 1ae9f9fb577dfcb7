/*
 * llama-lava: reads a prompt, compresses its KV cache per layer and head, and generates from what is left.
 *
 *     llama-lava -m model.gguf -f prompt.txt --kv-budget 1024
 *
 * options.h is its command line, presets.h what can be asked for by name, engine.h the model at work: the shortest complete use of what lava.patch adds to llama.h.
 * Here is what it reports. The text goes to stdout, everything about it to stderr; with --json one object on stdout says all.
 */
#include "engine.h"
#include "report.h"

#include <nlohmann/json.hpp>

#include <cstring>
#include <iostream>

using json = nlohmann::ordered_json;

static std::string megabytes(size_t bytes) {
    char text[32];
    snprintf(text, sizeof(text), bytes < 100000000 ? "%.2f MB" : "%.0f MB", (double) bytes / 1e6);
    return text;
}

static double median(std::vector<double> x) {
    if (x.empty()) return 0;
    std::nth_element(x.begin(), x.begin() + (long) (x.size() / 2), x.end());
    return x[x.size() / 2];
}

/* llama.cpp's errors and the patch's warnings always, the rest with --verbose. */
static void log_line(ggml_log_level level, const char *text, void *verbose) {
    bool warns = level == GGML_LOG_LEVEL_WARN && strncmp(text, "lava: ", 6) == 0;
    if (level == GGML_LOG_LEVEL_ERROR || warns || *(const bool *) verbose) fputs(text, stderr);
}

/* What each layer and head holds right after the first compression. */
struct kept_rows {
    std::vector<double> entropy;
    std::vector<std::vector<uint32_t>> positions, cu;  /* per layer, head after head */
    uint64_t rows = 0, heads = 0;
    uint32_t least = UINT32_MAX, most = 0;
    double evicted_share = 0;  /* mean over layers */

    explicit kept_rows(const llama_context *context, int32_t n_layers) {
        for (int32_t il = 0; il < n_layers; il++) {
            llama_lava_layer layer;
            if (!llama_lava_get_layer(context, il, &layer)) continue;
            entropy.push_back(layer.entropy);
            evicted_share += layer.evicted_share;
            positions.emplace_back();
            cu.push_back({0});
            for (uint32_t ih = 0; ih < layer.n_head_kv; ih++) {
                uint32_t n = (uint32_t) llama_lava_n_kept(context, il, (int32_t) ih);
                std::vector<llama_pos> head(n);
                llama_lava_kept_positions(context, il, (int32_t) ih, head.data(), (int32_t) n);
                positions.back().insert(positions.back().end(), head.begin(), head.end());
                cu.back().push_back(cu.back().back() + n);
                least = std::min(least, n);
                most = std::max(most, n);
                rows += n;
                heads++;
            }
        }
        evicted_share /= std::max<size_t>(1, entropy.size());
    }

    double per_head() const { return (double) rows / (double) heads; }

    void draw(const options &o, uint32_t n_tokens) const {
        std::vector<const uint32_t *> index, prefix;
        uint32_t n_kv_heads = (uint32_t) cu[0].size() - 1;
        for (size_t l = 0; l < cu.size(); l++) {
            if (cu[l].size() != cu[0].size())
                throw usage_error("--kv-map needs layers with the same number of KV heads, which this model's are not");
            index.push_back(positions[l].data());
            prefix.push_back(cu[l].data());
        }
        char title[96], subtitle[192];
        snprintf(title, sizeof(title), "Kept: %.0f of %u tokens per KV head on average", per_head(), n_tokens);
        std::string name = o.model.substr(o.model.find_last_of('/') + 1);
        snprintf(subtitle, sizeof(subtitle), "%.80s, in llama.cpp, preset %s.", name.c_str(), o.preset.c_str());
        report_map map = {title, subtitle, (uint32_t) cu.size(), n_kv_heads, n_tokens, (uint32_t) o.window, index.data(), prefix.data()};
        if (!report_write_svg(o.kv_map.c_str(), &map)) throw usage_error("the picture could not be written; give --kv-map another path");
    }
};

/* The line of what was kept and saved, and the same for --json. */
static json report_kept(const kept_rows &kept, const llama_lava_info &info, size_t n_ctx, double prefill_ms) {
    size_t n_prompt = info.n_tokens;
    /* of the tokens there are: room for later ones, in either cache, is nothing that eviction saves */
    double before = (double) info.kv_bytes_dense / (double) n_ctx * (double) n_prompt;
    double saved = 1 - (double) info.kv_bytes_used / before;
    fprintf(stderr, "kept %.0f of %zu tokens per head on average (%.1f%%; heads from %u to %u): K+V %s -> %s, %.1f%% saved "
            "(%s with room for new tokens); compressed in %.1f ms, %.1f%% of the prefill's %.0f ms\n",
            kept.per_head(), n_prompt, 100 * kept.per_head() / (double) n_prompt, kept.least, kept.most,
            megabytes((size_t) before).c_str(), megabytes(info.kv_bytes_used).c_str(), 100 * saved,
            megabytes(info.kv_bytes).c_str(), info.t_compress_ms, 100 * info.t_compress_ms / prefill_ms, prefill_ms);
    json layers = json::array();
    for (size_t l = 0; l < kept.cu.size(); l++) {
        std::vector<uint32_t> counts;
        for (size_t h = 0; h + 1 < kept.cu[l].size(); h++) counts.push_back(kept.cu[l][h + 1] - kept.cu[l][h]);
        layers.push_back({{"entropy", kept.entropy[l]}, {"kept", counts}});
    }
    return {{"per_head", kept.per_head()}, {"rows", kept.rows}, {"rows_dense", kept.heads * n_prompt},
            {"evicted_share", kept.evicted_share}, {"compress_ms", info.t_compress_ms}, {"score_ms", info.t_score_ms},
            {"kv_bytes_dense", info.kv_bytes_dense}, {"kv_bytes", info.kv_bytes}, {"kv_bytes_used", info.kv_bytes_used},
            {"kv_bytes_peak", info.kv_bytes_peak}, {"saved", saved}, {"layers", layers}};
}

/* What is typed next; a sign is shown only to people. */
static bool next_line(std::string &line) {
    do {
        if (isatty(STDIN_FILENO)) fputs("\n> ", stderr);
        if (!std::getline(std::cin, line)) return false;
    } while (line.empty());
    return true;
}

static void run(const options &o) {
    engine e(o);
    e.load();
    std::string first = o.prompt;
    if (first.empty() && !next_line(first)) return;
    std::vector<llama_token> prompt = e.tokenize(e.in_template(first), true);
    /* what a chat template puts around a text: no more than around the first, and that is short */
    size_t around = o.conversation ? prompt.size() - std::min(prompt.size(), e.tokenize(first, false).size()) + 8 : 0;
    /* with -cnv the prompt is a turn of its own, which is answered before the next */
    bool answered = o.turns.empty() || o.conversation;
    size_t n_later = (size_t) std::max(0l, o.n_predict) * (o.turns.size() + answered);
    for (const std::string &text : o.turns) n_later += e.tokenize(text, false).size() + around;
    e.open(prompt.size(), n_later);
    size_t n_most = std::max(prompt.size() + n_later, o.n_predict < 0 || o.interactive ? llama_n_ctx(e.context.get()) : (size_t) 0);
    if (n_most > e.n_trained())
        fprintf(stderr, "warning: the texts and answers are up to %zu tokens, and this model was trained on %u: beyond those it answers badly, "
                "compressed or not\n", n_most, e.n_trained());

    size_t n_done = e.prompt_cache(prompt);
    e.feed({prompt.begin() + (long) n_done, prompt.end()}, !o.stock);
    e.rss["prefill"] = process_memory("VmRSS");
    e.rss["prefill_peak"] = process_memory("VmHWM");
    e.decode_ms.clear();
    double prefill_ms = e.feed_ms;

    json result = {{"model", o.model}, {"n_prompt", prompt.size()}, {"n_loaded", e.n_loaded}, {"n_ctx", llama_n_ctx(e.context.get())},
                   {"n_threads", llama_n_threads(e.context.get())}, {"type_k", o.type_k}, {"type_v", o.type_v}, {"flash_attn", o.flash_attn}};
    result["compressed"] = false;
    auto report = [&] {  /* of the first compression, which may be that of a later text */
        llama_lava_info info = llama_lava_get_info(e.context.get());
        if (!info.compressed || result["compressed"] == true) return;
        kept_rows kept(e.context.get(), llama_model_n_layer(e.model.get()));
        result["compressed"] = true;
        result["kept"] = report_kept(kept, info, llama_n_ctx(e.context.get()), e.feed_ms - info.t_compress_ms);
        if (!o.kv_map.empty()) kept.draw(o, info.n_tokens);
    };
    if (!o.stock) report();
    if (result["compressed"] == true) prefill_ms -= llama_lava_get_info(e.context.get()).t_compress_ms;
    else if (!o.stock)
        fprintf(stderr, "the prompt's %zu tokens are no more than the window of %ld, which is always kept: nothing was compressed%s\n",
                prompt.size(), o.window, o.recompress ? " yet" : "; with --recompress it is, as soon as later texts are enough");

    auto show = [&o](const std::string &text) {
        if (o.json) return;
        fwrite(text.data(), 1, text.size(), stdout);
        fflush(stdout);
    };
    result["turns"] = json::array();
    if (answered) result["turns"].push_back({{"text", ""}, {"answer", e.generate(show)}});
    auto take = [&](const std::string &text) {
        std::vector<llama_token> tokens = e.tokenize(e.in_template(text), false);
        e.pending.insert(e.pending.end(), tokens.begin(), tokens.end());
        e.feed(e.pending, o.recompress && !o.stock);
        e.pending.clear();
        if (!o.stock) report();
        result["turns"].push_back({{"text", text}, {"answer", e.generate(show)}});
    };
    for (const std::string &text : o.turns) {
        show(o.conversation ? "\n\n> " + text + "\n" : text);
        take(text);
    }
    show("\n");
    for (std::string line; o.interactive && next_line(line);) {
        take(line);
        show("\n");
    }

    double ms = median(e.decode_ms);
    if (!e.decode_ms.empty())
        fprintf(stderr, "prefill %.0f ms; decode %.2f ms a token (median of %zu)\n", prefill_ms, ms, e.decode_ms.size());
    if (!o.json) return;
    result["prefill_ms"] = prefill_ms;
    result["decode_ms"] = ms;
    result["n_decode"] = e.decode_ms.size();
    result["n_compress"] = o.stock ? 0 : llama_lava_get_info(e.context.get()).n_compress;
    e.rss["end"] = process_memory("VmRSS");
    llama_memory_clear(llama_get_memory(e.context.get()), false);  /* a compressed cache gives all its memory back: so one sees how much */
    e.rss["cleared"] = process_memory("VmRSS");
    result["rss"] = e.rss;
    printf("%s\n", result.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

int main(int argc, char **argv) {
    options o;
    try {
        if (!parse_options(argc, argv, o, preset_names(), lava_version_string())) return 0;
        llama_log_set(log_line, &o.verbose);
        llama_backend_init();
        run(o);
        return 0;
    } catch (const usage_error &e) {
        fprintf(stderr, "llama-lava: %s\n", e.what());
        return 2;
    } catch (const std::exception &e) {
        fprintf(stderr, "llama-lava: %s\n", e.what());
        return 1;
    }
}
