/*
 * The command line of llama-lava: one table of options, which is also what --help prints. What llama.cpp has too is called as there
 * and means the same; an option that is not in the table is an error, for one that is read and not obeyed would be worse.
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

/* A mistake of the caller's: its message is what the user sees, so it says what to do. */
struct usage_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct options {
    std::string model;
    std::string prompt;              /* the text itself */
    std::string system_prompt;
    std::vector<std::string> turns;  /* texts that arrive after compression */
    bool conversation = false;       /* texts are turns of the model's chat template */
    bool interactive = false;        /* and more of them come from stdin, a line each */
    long n_predict = 128;            /* after each turn; after the prompt where there are none. -1: to the end of the context */
    bool stock = false;              /* llama.cpp's own cache */
    long budget = 0;                 /* tokens per KV head, window included; 0: not given */
    double ratio = 0;                /* the same as a share of the prompt; 0: not given */
    long window = 32;
    std::string preset = "default";
    long n_sink = -1;                /* here and below, -1 and "": the preset's */
    double alpha = -1;
    double smoothing = -1;
    long pool_kernel = -1;
    std::string layers;
    bool recompress = false;         /* with every turn */
    long compress_above = 0;         /* 0: never */
    std::string attn = "auto";
    std::string type_k = "f16", type_v = "f16";
    std::string flash_attn = "on";
    long n_gpu_layers = -1;          /* llama.cpp's choice */
    long n_threads = 0;              /* 0: as many as the machine has */
    long n_ctx = -1;                 /* -1: what the prompt, the turns and the answers need; 0: the model's */
    long n_ubatch = 512;
    double temperature = 0;          /* 0: greedy */
    long top_k = 0;                  /* 0: all */
    double top_p = 1, min_p = 0;
    long seed = 1;                   /* -1: another each time */
    bool ignore_eos = false;
    bool json = false;
    bool verbose = false;
    std::string kv_map;
    std::string prompt_cache;
};

inline std::string read_text(const std::string &path) {
    std::ifstream file(path == "-" ? "/dev/stdin" : path, std::ios::binary);
    if (!file) throw usage_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

/* Without its last newline, as llama.cpp reads a prompt. */
inline std::string read_prompt(const std::string &path) {
    std::string text = read_text(path);
    if (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

/* \n, \r, \t, \', \", \\ and \xHH of a text from the command line, as llama.cpp reads them. Files are taken as they are. */
inline std::string unescaped(const std::string &text) {
    static const std::string letters = "nrt'\"\\", meant = "\n\r\t'\"\\";
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        size_t which = text[i] == '\\' && i + 1 < text.size() ? letters.find(text[i + 1]) : std::string::npos;
        if (which != std::string::npos) {
            out += meant[which];
            i++;
        } else if (text.compare(i, 2, "\\x") == 0 && i + 3 < text.size() && isxdigit((unsigned char) text[i + 2]) && isxdigit((unsigned char) text[i + 3])) {
            out += (char) strtol(text.substr(i + 2, 2).c_str(), nullptr, 16);
            i += 3;
        } else {
            out += text[i];
        }
    }
    return out;
}

inline double to_number(const char *text, const std::string &name, double least, double most) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end != '\0' || !(x >= least && x <= most)) {
        char limits[80];
        snprintf(limits, sizeof(limits), most >= INT_MAX ? "at least %g" : "from %g to %g", least, most);
        throw usage_error(name + " takes a number " + limits + ", not '" + text + "'");
    }
    return x;
}

inline long to_integer(const char *text, const std::string &name, long least) {
    double x = to_number(text, name, (double) least, INT_MAX);
    if (x != std::floor(x)) throw usage_error(name + " takes a whole number, not '" + text + "'");
    return (long) x;
}

struct option_row {
    std::vector<std::string> names;
    const char *value;  /* nullptr: a flag */
    std::string help;
    std::function<void(const char *)> set;
};

/* One of a few words. */
inline std::function<void(const char *)> choice(std::string &to, const char *name, std::vector<std::string> words) {
    return [&to, name, words = std::move(words)](const char *text) {
        std::string all;
        for (const std::string &word : words) {
            if (word == text) {
                to = word;
                return;
            }
            all += (all.empty() ? "" : ", ") + word;
        }
        throw usage_error(std::string(name) + " is one of " + all + ", not '" + text + "'");
    };
}

/* False if only help or the version was asked for, which has then been printed. */
inline bool parse_options(int argc, char **argv, options &o, const std::vector<std::string> &presets, const char *version) {
    bool help = false, show_version = false, escape = true, single_turn = false;
    std::string preset_names;
    for (const std::string &name : presets) preset_names += (preset_names.empty() ? "" : ", ") + name;
    std::vector<std::pair<bool, std::string>> turns;  /* from a file?, the text */
    std::string prompt_text;
    const std::vector<std::string> types = {"f16", "bf16", "f32", "q8_0", "q4_0"};
    auto integer = [](long &to, const char *name, long least) {
        return [&to, name, least](const char *text) { to = to_integer(text, name, least); };
    };
    auto number = [](double &to, const char *name, double least, double most) {
        return [&to, name, least, most](const char *text) { to = to_number(text, name, least, most); };
    };
    auto flag = [](bool &to, bool value = true) { return [&to, value](const char *) { to = value; }; };
    auto text_to = [](std::string &to) { return [&to](const char *text) { to = text; }; };
    const std::vector<option_row> rows = {
        {{"-m", "--model"}, "FILE", "the model, GGUF", text_to(o.model)},
        {{"-p", "--prompt"}, "TEXT", "the prompt", text_to(prompt_text)},
        {{"-f", "--file"}, "FILE", "the prompt from a file; - is stdin", [&](const char *text) { o.prompt = read_prompt(text); }},
        {{"-n", "--predict", "--n-predict"}, "N", "tokens to generate (128); -1: to the end of the context", integer(o.n_predict, "-n", -1)},
        {{"--ask"}, "TEXT", "text that arrives after compression; may be repeated, -n tokens follow each",
         [&](const char *text) { turns.emplace_back(false, text); }},
        {{"--then"}, "FILE", "the same from a file", [&](const char *text) { turns.emplace_back(true, read_text(text)); }},
        {{"-e", "--escape"}, nullptr, "\\n, \\t and the like in -p, -sys and --ask are what they stand for (default)", flag(escape)},
        {{"--no-escape"}, nullptr, "they are not", flag(escape, false)},
        {{"-i", "--interactive"}, nullptr, "then a line of stdin at a time, until it ends", flag(o.interactive)},
        {{"-cnv", "--conversation"}, nullptr, "the model's chat template around every text, and -i where there is no --ask, --then or -st", flag(o.conversation)},
        {{"-no-cnv", "--no-conversation"}, nullptr, "texts as they are (default)", flag(o.conversation, false)},
        {{"-st", "--single-turn"}, nullptr, "-cnv for one turn", flag(single_turn)},
        {{"-sys", "--system-prompt"}, "TEXT", "the system's message, with -cnv", text_to(o.system_prompt)},
        {{"--kv-budget"}, "N", "tokens to keep per KV head on average, window included; 0: as --stock",
         [&](const char *text) {
             o.budget = to_integer(text, "--kv-budget", 0);
             o.stock |= o.budget == 0;
         }},
        {{"--kv-ratio"}, "X", "the same as a share of the prompt, 0.1 for a tenth, but never less than the window and the sinks; 1 packs and keeps all",
         [&](const char *text) {
             o.ratio = to_number(text, "--kv-ratio", 0, 1);
             if (o.ratio == 0) throw usage_error("--kv-ratio 0 would keep nothing; take a share above 0, or --stock to keep the cache as it is");
         }},
        {{"--stock"}, nullptr, "llama.cpp's own cache, nothing compressed", flag(o.stock)},
        {{"--preset"}, "NAME", "what is kept: " + preset_names + " (default)", choice(o.preset, "--preset", presets)},
        {{"--window"}, "N", "last tokens whose queries score the others; always kept (32)", integer(o.window, "--window", 1)},
        {{"--sink"}, "N", "first tokens that every head keeps (the preset's)", integer(o.n_sink, "--sink", 0)},
        {{"--smooth"}, "X", "how much of a head's mean score is added to each (the preset's)", number(o.smoothing, "--smooth", 0, INT_MAX)},
        {{"--pool"}, "N", "tokens that a score is pooled over (the preset's)", integer(o.pool_kernel, "--pool", 1)},
        {{"--alpha"}, "X", "share of an equal part that heads are sure of (the preset's)", number(o.alpha, "--alpha", 0, 1)},
        {{"--layers"}, "HOW", "layers share by global, entropy or equal (the preset's)", choice(o.layers, "--layers", {"global", "entropy", "equal"})},
        {{"--recompress"}, nullptr, "compress again with each --then, --ask and line, to the same budget", flag(o.recompress)},
        {{"--compress-above"}, "N", "compress again when heads hold more than N rows on average", integer(o.compress_above, "--compress-above", 0)},
        {{"--attn"}, "MODE", "over the kept rows: auto, ragged (CPU), padded (any backend), per-head (for tests) (auto)",
         choice(o.attn, "--attn", {"auto", "ragged", "padded", "per-head"})},
        {{"-ctk", "--cache-type-k"}, "TYPE", "of the keys: f16, bf16, f32, q8_0, q4_0 (f16)", choice(o.type_k, "-ctk", types)},
        {{"-ctv", "--cache-type-v"}, "TYPE", "of the values (f16)", choice(o.type_v, "-ctv", types)},
        {{"-fa", "--flash-attn"}, "WHEN", "llama.cpp's flash attention: on, off, auto (on)", choice(o.flash_attn, "-fa", {"on", "off", "auto"})},
        {{"-ngl", "--gpu-layers", "--n-gpu-layers"}, "N", "layers in the memory of a GPU, where this build has one: a number, all, auto (auto)",
         [&](const char *text) { o.n_gpu_layers = std::string(text) == "auto" ? -1 : std::string(text) == "all" ? INT_MAX : to_integer(text, "-ngl", 0); }},
        {{"-t", "--threads"}, "N", "threads (all cores)", integer(o.n_threads, "-t", 1)},
        {{"-c", "--ctx-size"}, "N", "context; 0: the model's (what the texts and answers need)", integer(o.n_ctx, "-c", 0)},
        {{"-ub", "--ubatch-size"}, "N", "prompt tokens computed at a time (512)", integer(o.n_ubatch, "-ub", 1)},
        {{"--temp", "--temperature"}, "X", "sampling temperature; 0 is greedy (0)", number(o.temperature, "--temp", 0, 100)},
        {{"--top-k"}, "N", "only the N likeliest tokens; 0: all (0)", integer(o.top_k, "--top-k", 0)},
        {{"--top-p"}, "X", "only the likeliest tokens that make up X (1: all)", number(o.top_p, "--top-p", 0, 1)},
        {{"--min-p"}, "X", "only tokens of X times the likeliest one's probability (0: all)", number(o.min_p, "--min-p", 0, 1)},
        {{"-s", "--seed"}, "N", "of sampling; -1: another each time (1)", integer(o.seed, "-s", -1)},
        {{"--ignore-eos"}, nullptr, "generate on past the end of the text", flag(o.ignore_eos)},
        {{"--json"}, nullptr, "one JSON object on stdout instead of text", flag(o.json)},
        {{"--kv-map"}, "FILE", "draw which tokens each layer and head kept, as SVG", text_to(o.kv_map)},
        {{"--prompt-cache"}, "FILE", "keeps the prompt's prefill, or takes it from there: to try several budgets", text_to(o.prompt_cache)},
        {{"-v", "--verbose"}, nullptr, "llama.cpp's own log too", flag(o.verbose)},
        {{"--version"}, nullptr, "of lava", flag(show_version)},
        {{"-h", "--help"}, nullptr, "this", flag(help)},
    };

    for (int i = 1; i < argc; i++) {
        const option_row *found = nullptr;
        for (const option_row &row : rows)
            for (const std::string &name : row.names)
                if (name == argv[i]) found = &row;
        if (found == nullptr && argv[i][0] != '-')
            throw usage_error("unexpected argument '" + std::string(argv[i]) + "'; the prompt's text is -p TEXT, its file -f FILE; see --help");
        if (found == nullptr) throw usage_error("unknown option " + std::string(argv[i]) + "; see --help");
        if (found->value != nullptr && i + 1 == argc) throw usage_error(std::string(argv[i]) + " needs a value: " + found->value + "; see --help");
        found->set(found->value != nullptr ? argv[++i] : nullptr);
    }
    if (help) {
        printf("usage: llama-lava -m MODEL (-p TEXT | -f FILE) (--kv-budget N | --kv-ratio X | --stock) [options]\n\n"
               "Reads a prompt, compresses its KV cache per layer and head, and generates from what is left.\n\n");
        for (const option_row &row : rows) {
            std::string left;
            for (const std::string &name : row.names) left += (left.empty() ? "" : ", ") + name;
            if (row.value != nullptr) left += " " + std::string(row.value);
            printf("  %-38s %s\n", left.c_str(), row.help.c_str());
        }
        return false;
    }
    if (show_version) {
        printf("llama-lava %s\n", version);
        return false;
    }
    auto given = [escape](const std::string &text) { return escape ? unescaped(text) : text; };
    if (!prompt_text.empty()) {
        if (!o.prompt.empty()) throw usage_error("give -p TEXT or -f FILE, not both");
        if (std::ifstream(prompt_text)) fprintf(stderr, "warning: -p takes the text itself, and there is a file of that name; -f reads it\n");
        o.prompt = given(prompt_text);
    }
    o.system_prompt = given(o.system_prompt);
    for (const auto &[from_file, text] : turns) o.turns.push_back(from_file ? text : given(text));
    o.interactive |= o.conversation && !single_turn && turns.empty();
    if (!o.system_prompt.empty() && !o.conversation) throw usage_error("-sys is part of a conversation: give -cnv too");
    if (o.model.empty()) throw usage_error("which model? give -m FILE.gguf");
    if (o.prompt.empty() && !o.interactive) throw usage_error("the prompt is missing or empty: give -p TEXT, or -f FILE with some text in it");
    if (o.json && o.interactive) throw usage_error("--json and -i don't go together; give the texts with --ask, and -st for one turn of -cnv");
    if ((o.budget > 0) + (o.ratio > 0) + o.stock > 1) throw usage_error("give one of --kv-budget, --kv-ratio and --stock");
    if ((o.budget > 0) + (o.ratio > 0) + o.stock == 0)
        throw usage_error("how much is to be kept? give --kv-budget N, --kv-ratio X or --stock");
    if (o.budget > 0 && o.budget < o.window)
        throw usage_error("--kv-budget " + std::to_string(o.budget) + " is below the window of " + std::to_string(o.window) +
                          " tokens, which are always kept and counted; raise it or lower --window");
    return true;
}

#endif
