/*
 * A model at work on a prompt and what comes after it, in llama.cpp with lava.patch: load, open, enable, feed, generate.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include "llama-cpp.h"

#include "options.h"
#include "presets.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

inline double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

/* A line of /proc/self/status in bytes: VmRSS, VmHWM. 0 where there is no such file. What was freed is given back first. */
inline size_t process_memory(const std::string &key) {
    malloc_trim(0);
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.compare(0, key.size() + 1, key + ":") == 0) return std::stoul(line.substr(key.size() + 1)) * 1024;
    return 0;
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
    double feed_ms = 0;                 /* of all calls */
    std::vector<std::pair<std::string, std::string>> messages;  /* of -cnv: role and text */
    std::string chat, answer;           /* the template's text up to the last answer, and that answer */
    size_t n_loaded = 0;                /* tokens that came from --prompt-cache */
    lava_score_params score = lava_score_params_default();
    lava_select_params select = lava_select_params_default();
    std::map<std::string, size_t> rss;

    explicit engine(const options &o) : o(o) {}

    void load() {
        if (!std::ifstream(o.model)) throw usage_error("cannot read the model " + o.model);
        llama_model_params params = llama_model_default_params();
        if (o.n_gpu_layers >= 0) params.n_gpu_layers = (int32_t) o.n_gpu_layers;
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

    /*
     * The next turn as the model's chat template has it: what is new since the text before, which ends with the last answer.
     * Without -cnv the text itself.
     */
    std::string in_template(const std::string &text) {
        if (!o.conversation) return text;
        const char *form = llama_model_chat_template(model.get(), nullptr);
        if (messages.empty() && !o.system_prompt.empty()) messages.emplace_back("system", o.system_prompt);
        if (!messages.empty() && messages.back().first == "user") messages.emplace_back("assistant", answer);
        auto written = [&](bool open_answer) {
            std::vector<llama_chat_message> list;
            for (const auto &[role, content] : messages) list.push_back({role.c_str(), content.c_str()});
            int32_t n = form == nullptr ? -1 : llama_chat_apply_template(form, list.data(), list.size(), open_answer, nullptr, 0);
            if (n < 0) throw usage_error(o.model + " has no chat template that llama.cpp knows without jinja; leave -cnv out");
            std::string whole((size_t) n, '\0');
            llama_chat_apply_template(form, list.data(), list.size(), open_answer, whole.data(), n);
            return whole;
        };
        std::string held = chat + answer;
        if (!messages.empty() && messages.back().first == "assistant" && written(false).compare(0, held.size(), held) != 0)
            held = written(false);  /* a template that writes answers in another way */
        messages.emplace_back("user", text);
        chat = written(true);
        return chat.substr(std::min(held.size(), chat.size()));
    }

    std::string piece(llama_token token) const {
        char text[256];
        int32_t n = llama_token_to_piece(vocab, token, text, sizeof(text), 0, false);
        return {text, (size_t) std::max(n, 0)};
    }

    /* What the command line asks of the compressed cache; n_later: tokens that will come after the prompt. */
    llama_lava_params lava_params(size_t n_later) {
        static const std::map<std::string, llama_lava_attn> modes = {
            {"auto", LLAMA_LAVA_ATTN_AUTO}, {"ragged", LLAMA_LAVA_ATTN_RAGGED},
            {"padded", LLAMA_LAVA_ATTN_PADDED}, {"per-head", LLAMA_LAVA_ATTN_PER_HEAD}};
        llama_lava_params params = llama_lava_default_params();
        static const std::map<std::string, int32_t> shares = {
            {"global", LAVA_LAYERS_GLOBAL}, {"entropy", LAVA_LAYERS_ENTROPY}, {"equal", LAVA_LAYERS_EQUAL}};
        for (const preset &one : presets()) {
            if (o.preset != one.name) continue;
            score = one.score;
            select = one.select;
            params.layers = one.layers;
        }
        if (o.n_sink >= 0) select.n_sink = (uint32_t) o.n_sink;
        if (o.alpha >= 0) select.alpha = o.alpha;
        if (o.smoothing >= 0) score.smoothing = (float) o.smoothing;
        if (o.pool_kernel > 0) score.pool_kernel = (uint32_t) o.pool_kernel;
        if (!o.layers.empty()) params.layers = shares.at(o.layers);
        params.score = &score;
        params.select = &select;
        params.budget = (uint32_t) o.budget;
        params.ratio = o.ratio;
        params.window = (uint32_t) o.window;
        params.attn = modes.at(o.attn);
        params.n_reserve = (uint32_t) std::clamp<size_t>(n_later, 1, params.n_reserve);
        params.compress_above = (uint32_t) o.compress_above;
        return params;
    }

    uint32_t n_trained() const { return (uint32_t) llama_model_n_ctx_train(model.get()); }

    /* A context for n_prompt tokens and n_later more. */
    void open(size_t n_prompt, size_t n_later) {
        size_t n_tokens = n_prompt + n_later;
        static const std::map<std::string, ggml_type> types = {
            {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"f32", GGML_TYPE_F32}, {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}};
        llama_context_params params = llama_context_default_params();
        bool unknown = o.n_ctx < 0 && (o.interactive || o.n_predict < 0);  /* how much will come: what the model was trained on, then */
        params.n_ctx = unknown ? std::max(n_trained(), (uint32_t) n_tokens) : o.n_ctx >= 0 ? (uint32_t) o.n_ctx : (uint32_t) n_tokens;
        params.n_batch = params.n_ubatch = (uint32_t) o.n_ubatch;
        params.n_threads = params.n_threads_batch =
            (int32_t) (o.n_threads > 0 ? o.n_threads : std::max(1u, std::thread::hardware_concurrency()));
        params.flash_attn_type = o.flash_attn == "on" ? LLAMA_FLASH_ATTN_TYPE_ENABLED :
                                 o.flash_attn == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
        params.type_k = types.at(o.type_k);
        params.type_v = types.at(o.type_v);
        params.no_perf = true;
        llama_lava_params lava = lava_params(n_later);
        if (!o.stock) params.lava = &lava;
        rss["model"] = process_memory("VmRSS");
        context.reset(llama_init_from_model(model.get(), params));
        if (!context)
            throw usage_error(std::string("llama.cpp cannot make a context for this model and these options (see above)") +
                              (o.stock ? "" : "; where it is the compression that does not fit, --stock runs it as it is"));
        if (n_tokens > llama_n_ctx(context.get()))
            throw usage_error("-c " + std::to_string(o.n_ctx) + " is too small: the texts and answers are " +
                              std::to_string(n_tokens) + " tokens");
        rss["context"] = process_memory("VmRSS");

        sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        auto add = [this](llama_sampler *one) { llama_sampler_chain_add(sampler.get(), one); };
        if (o.temperature > 0) {
            if (o.top_k > 0) add(llama_sampler_init_top_k((int32_t) o.top_k));
            if (o.top_p < 1) add(llama_sampler_init_top_p((float) o.top_p, 1));
            if (o.min_p > 0) add(llama_sampler_init_min_p((float) o.min_p, 1));
            add(llama_sampler_init_temp((float) o.temperature));
        }
        add(o.temperature > 0 ? llama_sampler_init_dist(o.seed < 0 ? LLAMA_DEFAULT_SEED : (uint32_t) o.seed) : llama_sampler_init_greedy());
    }

    /*
     * The first part of the prompt from --prompt-cache, or into it: whole ubatches, so many that the window's queries are
     * still to come, since a saved state has none. Returns how many tokens the cache holds then.
     */
    size_t prompt_cache(const std::vector<llama_token> &prompt) {
        size_t n = prompt.size() - std::min(prompt.size(), (size_t) o.window);
        n -= n % (size_t) o.n_ubatch;
        if (o.prompt_cache.empty() || n == 0) return 0;
        if (!std::ifstream(o.prompt_cache)) {
            feed({prompt.begin(), prompt.begin() + (long) n}, false);
            if (llama_state_seq_save_file(context.get(), o.prompt_cache.c_str(), 0, prompt.data(), n) == 0)
                throw usage_error("cannot write " + o.prompt_cache + "; is there room, and may you write there?");
            return n;
        }
        std::vector<llama_token> tokens(prompt.size());
        if (llama_state_seq_load_file(context.get(), o.prompt_cache.c_str(), 0, tokens.data(), tokens.size(), &n_loaded) == 0 ||
            n_loaded > n || !std::equal(tokens.begin(), tokens.begin() + (long) n_loaded, prompt.begin()))
            throw usage_error(o.prompt_cache + " was made with another model, cache type or prompt; delete it or name another file");
        return n_loaded;
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
            feed_ms += now_ms() - begin;
            if (n == 1) decode_ms.push_back(now_ms() - begin);
            shown.at(i += n, tokens.size());
        }
        if (compress && llama_lava_last_result(context.get()) < 0)
            throw std::runtime_error("the cache could not be compressed (see above); nothing of it was lost");
    }

    /* Generates up to n tokens; the last one sampled waits until there is more to decode. */
    std::string generate(const std::function<void(const std::string &)> &show) {
        std::string text;
        for (long i = 0; o.n_predict < 0 || i < o.n_predict; i++) {
            llama_pos n_held = llama_memory_seq_pos_max(llama_get_memory(context.get()), 0) + 1;
            if (o.n_predict < 0 && (size_t) n_held + pending.size() >= llama_n_ctx(context.get())) break;
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
        answer = text;
        return text;
    }
};

#endif
