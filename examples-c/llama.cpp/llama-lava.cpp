/*
 * llama-lava: reads a prompt, compresses its KV cache per layer and head, and generates from what is left.
 *
 *     llama-lava -m model.gguf -p prompt.txt --kv-budget 1024
 *
 * It is also the shortest complete use of what lava.patch adds to llama.h: main() below. The text goes to stdout, everything
 * about it to stderr; with --json one object on stdout says all.
 */
#include "llama-cpp.h"

#include "options.h"
#include "report.h"

#include <nlohmann/json.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <thread>

using json = nlohmann::ordered_json;

static double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

/* A line of /proc/self/status in bytes: VmRSS, VmHWM. 0 where there is no such file. */
static size_t process_memory(const std::string &key) {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.compare(0, key.size() + 1, key + ":") == 0) return std::stoul(line.substr(key.size() + 1)) * 1024;
    return 0;
}

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

/* llama.cpp's errors always, the rest with --verbose. */
static void log_line(ggml_log_level level, const char *text, void *verbose) {
    if (level == GGML_LOG_LEVEL_ERROR || *(const bool *) verbose) fputs(text, stderr);
}

/* How far a long prefill is: in place on a terminal, else a line every ten seconds. */
class progress {
    double begin = now_ms(), last = begin;
    bool terminal = isatty(STDERR_FILENO), shown = false;

  public:
    void at(size_t n, size_t of) {
        double now = now_ms();
        if (now - last < (terminal ? 200 : 10000)) return;
        last = now;
        shown = true;
        fprintf(stderr, "%sprefill: %zu of %zu tokens, %.0f a second%s", terminal ? "\r" : "", n, of,
                1e3 * (double) n / (now - begin), terminal ? "  " : "\n");
    }
    ~progress() {
        if (shown && terminal) fputs("\r\033[K", stderr);
    }
};

/* A model with a context, and what it did so far. */
struct engine {
    const options &o;
    llama_model_ptr model;
    llama_context_ptr context;
    llama_sampler_ptr sampler;
    const llama_vocab *vocab = nullptr;
    std::vector<llama_token> pending;   /* sampled, not decoded yet */
    std::vector<double> decode_ms;      /* of each call with one token */
    std::map<std::string, size_t> rss;

    explicit engine(const options &o) : o(o) {}

    void load() {
        if (!std::ifstream(o.model)) throw usage_error("cannot read the model " + o.model);
        llama_model_params params = llama_model_default_params();
        model.reset(llama_model_load_from_file(o.model.c_str(), params));
        if (!model) throw usage_error(o.model + " is not a model that this llama.cpp can load (see above)");
        vocab = llama_model_get_vocab(model.get());
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE)
            throw usage_error(o.model + " has no tokenizer, so it can't read text; take a model with one");
        if (!llama_model_has_decoder(model.get()) || llama_model_has_encoder(model.get()))
            throw usage_error(o.model + " does not generate text by itself (it has an encoder); take a decoder-only model");
    }

    std::vector<llama_token> tokenize(const std::string &text, bool add_special) const {
        int32_t size = (int32_t) text.size();
        std::vector<llama_token> tokens(text.size() + 8);
        int32_t n = llama_tokenize(vocab, text.data(), size, tokens.data(), (int32_t) tokens.size(), add_special, true);
        if (n < 0) {  /* it says how many there are */
            tokens.resize((size_t) -n);
            n = llama_tokenize(vocab, text.data(), size, tokens.data(), -n, add_special, true);
        }
        if (n < 0) throw usage_error("the tokenizer cannot read this text");
        tokens.resize((size_t) n);
        return tokens;
    }

    std::string piece(llama_token token) const {
        char text[256];
        int32_t n = llama_token_to_piece(vocab, token, text, sizeof(text), 0, false);
        return {text, (size_t) std::max(n, 0)};
    }

    /* n_tokens: all that will ever be decoded. */
    void open(size_t n_tokens) {
        static const std::map<std::string, ggml_type> types = {
            {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"f32", GGML_TYPE_F32}, {"q8_0", GGML_TYPE_Q8_0}};
        llama_context_params params = llama_context_default_params();
        params.n_ctx = (uint32_t) (o.n_ctx > 0 ? (size_t) o.n_ctx : n_tokens);
        params.n_batch = params.n_ubatch = (uint32_t) o.n_ubatch;
        params.n_threads = params.n_threads_batch =
            (int32_t) (o.n_threads > 0 ? o.n_threads : std::max(1u, std::thread::hardware_concurrency()));
        params.flash_attn_type = o.flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.type_k = params.type_v = types.at(o.kv_type);
        params.no_perf = true;
        rss["model"] = process_memory("VmRSS");
        context.reset(llama_init_from_model(model.get(), params));
        if (!context) throw usage_error("llama.cpp cannot make a context for this model and these options (see above)");
        if (n_tokens > llama_n_ctx(context.get()))
            throw usage_error("-c " + std::to_string(o.n_ctx) + " is too small: the texts and answers are " +
                              std::to_string(n_tokens) + " tokens");
        rss["context"] = process_memory("VmRSS");

        sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        if (o.temperature > 0) llama_sampler_chain_add(sampler.get(), llama_sampler_init_temp((float) o.temperature));
        llama_sampler_chain_add(sampler.get(), o.temperature > 0 ? llama_sampler_init_dist((uint32_t) o.seed) : llama_sampler_init_greedy());
    }

    /* What the command line asks of the compressed cache; n_later: tokens that will come after the prompt. */
    void enable(size_t n_later) {
        static const std::map<std::string, llama_lava_attn> modes = {
            {"auto", LLAMA_LAVA_ATTN_AUTO}, {"ragged", LLAMA_LAVA_ATTN_RAGGED},
            {"padded", LLAMA_LAVA_ATTN_PADDED}, {"per-head", LLAMA_LAVA_ATTN_PER_HEAD}};
        lava_select_params select = o.preset == "released" ? lava_select_params_released() : lava_select_params_paper();
        llama_lava_params params = llama_lava_default_params();
        params.budget = (uint32_t) o.budget;
        params.ratio = (float) o.ratio;
        params.window = (uint32_t) o.window;
        params.n_sink = (uint32_t) o.n_sink;
        params.head_floor = select.head_floor;
        params.alpha = select.alpha;
        params.equal_layers = o.equal_layers;
        params.attn = modes.at(o.attn);
        params.n_reserve = (uint32_t) std::clamp<size_t>(n_later, 1, params.n_reserve);
        params.compress_above = (uint32_t) o.compress_above;
        if (llama_lava_enable(context.get(), params) != 0)
            throw usage_error("the cache of this model, with these options, cannot be compressed (see above); --stock runs it as it is");
    }

    /* Decodes tokens, all of a prompt or a turn. compress: with the last of them. */
    void feed(const std::vector<llama_token> &tokens, bool compress) {
        progress shown;
        for (size_t i = 0; i < tokens.size();) {
            size_t n = std::min(tokens.size() - i, (size_t) o.n_ubatch);
            if (compress && i + n == tokens.size()) llama_lava_compress_next(context.get());
            /* the batch is only read, but the type is not const */
            llama_batch batch = llama_batch_get_one(const_cast<llama_token *>(&tokens[i]), (int32_t) n);
            double begin = now_ms();
            int32_t status = llama_decode(context.get(), batch);
            if (status != 0)
                throw std::runtime_error(status == 1 ? "no room left in the context; raise -c" :
                                         "llama_decode failed with " + std::to_string(status) + " (see above)");
            if (n == 1) decode_ms.push_back(now_ms() - begin);
            shown.at(i += n, tokens.size());
        }
        if (compress && llama_lava_last_result(context.get()) < 0)
            throw std::runtime_error("the cache could not be compressed (see above); nothing of it was lost");
    }

    /* Generates up to n tokens; the last one sampled waits until there is more to decode. */
    std::string generate(const std::function<void(const std::string &)> &show) {
        std::string text;
        for (long i = 0; i < o.n_predict; i++) {
            if (!pending.empty()) {
                feed(pending, false);
                pending.clear();
            }
            llama_token token = llama_sampler_sample(sampler.get(), context.get(), -1);
            if (llama_vocab_is_eog(vocab, token) && !o.ignore_eos) break;
            text += piece(token);
            show(piece(token));
            pending.push_back(token);
        }
        return text;
    }
};

/* What each layer and head holds right after the prompt's compression. */
struct kept_rows {
    std::vector<double> entropy;
    std::vector<std::vector<uint32_t>> positions, cu;  /* per layer, head behind head */
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
        snprintf(subtitle, sizeof(subtitle), "%.80s, in llama.cpp. A layer's share follows the entropy of its scores.", name.c_str());
        report_map map = {title, o.equal_layers ? name.c_str() : subtitle, (uint32_t) cu.size(), n_kv_heads, n_tokens, (uint32_t) o.window,
                          entropy.data(), index.data(), prefix.data()};
        if (!report_write_svg(o.kv_map.c_str(), &map)) throw usage_error("the picture could not be written; give --kv-map another path");
    }
};

static int run(const options &o) {
    engine e(o);
    e.load();
    std::vector<llama_token> prompt = e.tokenize(o.prompt, true);
    std::vector<std::vector<llama_token>> turns;
    size_t n_later = (size_t) o.n_predict * std::max<size_t>(1, o.turns.size());
    for (const std::string &text : o.turns) n_later += turns.emplace_back(e.tokenize(text, false)).size();
    e.open(prompt.size() + n_later);

    bool compress = !o.stock;
    if (compress) {
        if (prompt.size() > (size_t) o.window && o.ratio > 0 && o.ratio * (double) prompt.size() < (double) o.window) {
            char text[200];
            snprintf(text, sizeof(text), "--kv-ratio %g of %zu tokens is below the window of %ld, which is always kept and counted; "
                     "raise it or lower --window", o.ratio, prompt.size(), o.window);
            throw usage_error(text);
        }
        e.enable(n_later);
    }
    double begin = now_ms();
    e.feed(prompt, compress);
    double prefill_ms = now_ms() - begin;
    e.rss["compressed"] = process_memory("VmRSS");
    e.rss["prefill_peak"] = process_memory("VmHWM");
    e.decode_ms.clear();

    json result = {{"model", o.model}, {"n_prompt", prompt.size()}, {"n_threads", llama_n_threads(e.context.get())},
                   {"kv_type", o.kv_type}, {"flash_attn", o.flash_attn}, {"n_ctx", llama_n_ctx(e.context.get())}};
    bool compressed = compress && llama_lava_last_result(e.context.get()) == 0;
    result["compressed"] = compressed;
    if (compressed) {
        llama_lava_info info = llama_lava_get_info(e.context.get());
        kept_rows kept(e.context.get(), llama_model_n_layer(e.model.get()));
        prefill_ms -= info.t_compress_ms;
        fprintf(stderr, "kept %.0f of %zu tokens per head on average (%.1f%%; heads from %u to %u): K+V %s -> %s, %.1f%% saved; "
                "compressed in %.1f ms, %.1f%% of prefill\n", kept.per_head(), prompt.size(), 100 * kept.per_head() / (double) prompt.size(),
                kept.least, kept.most, megabytes(info.kv_bytes_dense).c_str(), megabytes(info.kv_bytes).c_str(),
                100 * (1 - (double) info.kv_bytes / (double) info.kv_bytes_dense), info.t_compress_ms, 100 * info.t_compress_ms / prefill_ms);
        json layers = json::array();
        for (size_t l = 0; l < kept.cu.size(); l++) {
            std::vector<uint32_t> counts;
            for (size_t h = 0; h + 1 < kept.cu[l].size(); h++) counts.push_back(kept.cu[l][h + 1] - kept.cu[l][h]);
            layers.push_back({{"entropy", kept.entropy[l]}, {"kept", counts}});
        }
        result["kept"] = {{"per_head", kept.per_head()}, {"rows", kept.rows}, {"rows_dense", kept.heads * prompt.size()},
                          {"evicted_share", kept.evicted_share}, {"layers", layers}};
        result["kv_bytes"] = {{"dense", info.kv_bytes_dense}, {"now", info.kv_bytes}, {"used", info.kv_bytes_used}, {"peak", info.kv_bytes_peak}};
        result["compress_ms"] = info.t_compress_ms;
        result["score_ms"] = info.t_score_ms;
        if (!o.kv_map.empty()) kept.draw(o, (uint32_t) prompt.size());
    } else if (compress) {
        fprintf(stderr, "the prompt's %zu tokens are no more than the window of %ld, which is always kept: nothing was compressed\n",
                prompt.size(), o.window);
    }
    result["prefill_ms"] = prefill_ms;

    auto show = [&o](const std::string &text) {
        if (o.json) return;
        fwrite(text.data(), 1, text.size(), stdout);
        fflush(stdout);
    };
    result["turns"] = json::array();
    if (turns.empty()) result["turns"].push_back({{"text", ""}, {"answer", e.generate(show)}});
    for (size_t i = 0; i < turns.size(); i++) {
        show(o.turns[i]);
        e.pending.insert(e.pending.end(), turns[i].begin(), turns[i].end());
        e.feed(e.pending, o.recompress && compressed);
        e.pending.clear();
        result["turns"].push_back({{"text", o.turns[i]}, {"answer", e.generate(show)}});
    }
    show("\n");
    double ms = median(e.decode_ms);
    if (!e.decode_ms.empty()) fprintf(stderr, "prefill %.0f ms; decode %.2f ms a token (median of %zu)\n", prefill_ms, ms, e.decode_ms.size());
    e.rss["end"] = process_memory("VmRSS");
    result["decode_ms"] = ms;
    result["n_decode"] = e.decode_ms.size();
    if (compressed) result["n_compress"] = llama_lava_get_info(e.context.get()).n_compress;
    result["rss"] = e.rss;
    if (o.json) printf("%s\n", result.dump(2, ' ', false, json::error_handler_t::replace).c_str());
    return 0;
}

int main(int argc, char **argv) {
    options o;
    try {
        if (!parse_options(argc, argv, o)) return 0;
        llama_log_set(log_line, &o.verbose);
        llama_backend_init();
        return run(o);
    } catch (const usage_error &e) {
        fprintf(stderr, "llama-lava: %s\n", e.what());
        return 2;
    } catch (const std::exception &e) {
        fprintf(stderr, "llama-lava: %s\n", e.what());
        return 1;
    }
}
