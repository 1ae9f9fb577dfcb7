/*
 * The command line of llama-lava: one table of options, from which both getopt_long and --help are fed.
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <getopt.h>

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
    std::vector<std::string> turns;  /* texts that arrive after compression */
    long n_predict = 128;            /* after each turn; after the prompt where there are none */
    bool stock = false;              /* llama.cpp's own cache */
    long budget = 0;                 /* tokens per KV head, window included; 0: not given */
    double ratio = 0;                /* the same as a share of the prompt; 0: not given */
    long window = 32;
    long n_sink = -1;                /* the preset's */
    std::string preset = "default";
    bool equal_layers = false;
    bool recompress = false;         /* with every turn */
    long compress_above = 0;         /* 0: never */
    std::string attn = "auto";
    std::string kv_type = "f16";
    bool flash_attn = true;
    long n_threads = 0;              /* 0: as many as the machine has */
    long n_ctx = 0;                  /* 0: what the prompt, the turns and the answers need */
    long n_ubatch = 512;
    double temperature = 0;          /* 0: greedy */
    long seed = 1;
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

inline double to_number(const char *text, const std::string &name, double least, double most) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end != '\0' || !(x >= least && x <= most)) {
        char limits[80];
        snprintf(limits, sizeof(limits), most >= INT_MAX ? "at least %g" : "from %g to %g", least, most);
        throw usage_error("--" + name + " takes a number " + limits + ", not '" + text + "'");
    }
    return x;
}

inline long to_integer(const char *text, const std::string &name, long least) {
    double x = to_number(text, name, (double) least, INT_MAX);
    if (x != std::floor(x)) throw usage_error("--" + name + " takes a whole number, not '" + text + "'");
    return (long) x;
}

struct option_row {
    char letter;  /* 0: none */
    const char *name;
    const char *value;  /* nullptr: a flag */
    const char *help;
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
        throw usage_error("--" + std::string(name) + " is one of " + all + ", not '" + text + "'");
    };
}

/* False if only help was asked for, which has then been printed. */
inline bool parse_options(int argc, char **argv, options &o) {
    std::string flash_attn = "on";
    bool help = false;
    auto integer = [](long &to, const char *name, long least) {
        return [&to, name, least](const char *text) { to = to_integer(text, name, least); };
    };
    auto number = [](double &to, const char *name, double least, double most) {
        return [&to, name, least, most](const char *text) { to = to_number(text, name, least, most); };
    };
    auto flag = [](bool &to) { return [&to](const char *) { to = true; }; };
    const std::vector<option_row> rows = {
        {'m', "model", "FILE", "the model, GGUF", [&](const char *text) { o.model = text; }},
        {'p', "prompt", "FILE", "file with the prompt; - is stdin", [&](const char *text) { o.prompt = read_text(text); }},
        {'n', "predict", "N", "tokens to generate (128)", integer(o.n_predict, "predict", 0)},
        {0, "then", "FILE", "text that arrives after compression; may be repeated, -n tokens follow each",
         [&](const char *text) { o.turns.push_back(read_text(text)); }},
        {0, "ask", "TEXT", "the same, from the command line", [&](const char *text) { o.turns.push_back(text); }},
        {0, "kv-budget", "N", "tokens to keep per KV head on average, window included; 0: as --stock",
         [&](const char *text) {
             o.budget = to_integer(text, "kv-budget", 0);
             o.stock |= o.budget == 0;
         }},
        {0, "kv-ratio", "X", "the same as a share of the prompt, 0.1 for a tenth, but never less than the window and the sinks; 1 packs and keeps all",
         [&](const char *text) {
             o.ratio = to_number(text, "kv-ratio", 0, 1);
             if (o.ratio == 0) throw usage_error("--kv-ratio 0 would keep nothing; take a share above 0, or --stock to keep the cache as it is");
         }},
        {0, "stock", nullptr, "llama.cpp's own cache, nothing compressed", flag(o.stock)},
        {0, "window", "N", "last tokens whose queries score the others; always kept (32)", integer(o.window, "window", 1)},
        {0, "sink", "N", "first tokens that every head keeps (the preset's: 4, or 0 in those of papers)", integer(o.n_sink, "sink", 0)},
        {0, "preset", "NAME", "what is kept: default, the recommended one; lava, as published; lava-released, as in its authors' code; snapkv (default)",
         choice(o.preset, "preset", {"default", "lava", "lava-released", "snapkv"})},
        {0, "equal-layers", nullptr, "every layer keeps the same", flag(o.equal_layers)},
        {0, "recompress", nullptr, "compress again with each --then and --ask, to the same budget", flag(o.recompress)},
        {0, "compress-above", "N", "compress again when heads hold more than N rows on average", integer(o.compress_above, "compress-above", 0)},
        {0, "attn", "MODE", "over the kept rows: auto, ragged (CPU), padded (any backend), per-head (for tests) (auto)",
         choice(o.attn, "attn", {"auto", "ragged", "padded", "per-head"})},
        {0, "kv-type", "TYPE", "of the cache: f16, bf16, f32, q8_0, q4_0 (f16)", choice(o.kv_type, "kv-type", {"f16", "bf16", "f32", "q8_0", "q4_0"})},
        {0, "flash-attn", "on|off", "llama.cpp's flash attention (on)", choice(flash_attn, "flash-attn", {"on", "off"})},
        {'t', "threads", "N", "threads (all cores)", integer(o.n_threads, "threads", 1)},
        {'c', "ctx-size", "N", "context (what the texts and answers need)", integer(o.n_ctx, "ctx-size", 1)},
        {0, "ubatch-size", "N", "prompt tokens computed at a time (512); also -ub", integer(o.n_ubatch, "ubatch-size", 1)},
        {0, "temp", "X", "sampling temperature; 0 is greedy (0)", number(o.temperature, "temp", 0, 100)},
        {0, "seed", "N", "of sampling (1)", integer(o.seed, "seed", 0)},
        {0, "ignore-eos", nullptr, "generate on past the end of the text", flag(o.ignore_eos)},
        {0, "json", nullptr, "one JSON object on stdout instead of text", flag(o.json)},
        {0, "kv-map", "FILE", "draw which tokens each layer and head kept, as SVG", [&](const char *text) { o.kv_map = text; }},
        {0, "prompt-cache", "FILE", "keeps the prompt's prefill, or takes it from there: to try several budgets",
         [&](const char *text) { o.prompt_cache = text; }},
        {'v', "verbose", nullptr, "llama.cpp's own log too", flag(o.verbose)},
        {'h', "help", nullptr, "this", flag(help)},
    };

    std::string letters = "";
    std::vector<option> longs;
    for (const option_row &row : rows) {
        longs.push_back({row.name, row.value == nullptr ? no_argument : required_argument, nullptr, 0});
        if (row.letter != 0) letters += std::string(1, row.letter) + (row.value == nullptr ? "" : ":");
    }
    longs.push_back({nullptr, 0, nullptr, 0});
    std::vector<std::string> words(argv, argv + argc);
    std::vector<char *> pointers;
    for (std::string &word : words) {
        if (word == "-ub") word = "--ubatch-size";  /* llama.cpp's spelling, which getopt would read as -u -b */
        pointers.push_back(word.data());
    }
    opterr = 1;
    for (int index, c; (c = getopt_long(argc, pointers.data(), letters.c_str(), longs.data(), &index)) != -1;) {
        if (c == '?') throw usage_error("see --help");
        const option_row *row = &rows[0];
        if (c == 0) row = &rows[(size_t) index];
        else while (row->letter != c) row++;
        row->set(optarg);
    }
    if (help) {
        printf("usage: llama-lava -m MODEL -p PROMPT (--kv-budget N | --kv-ratio X | --stock) [options]\n\n"
               "Reads a prompt, compresses its KV cache per layer and head, and generates from what is left.\n\n");
        for (const option_row &row : rows) {
            std::string left = row.letter != 0 ? std::string("-") + row.letter + ", " : "    ";
            left += "--" + std::string(row.name) + (row.value != nullptr ? " " + std::string(row.value) : "");
            printf("  %-24s %s\n", left.c_str(), row.help);
        }
        return false;
    }
    if (optind < argc) throw usage_error("unexpected argument '" + words[(size_t) optind] + "'; see --help");
    o.flash_attn = flash_attn == "on";
    if (o.model.empty()) throw usage_error("which model? give -m FILE.gguf");
    if (o.prompt.empty()) throw usage_error("the prompt is missing or empty: give -p FILE with some text in it");
    if ((o.budget > 0) + (o.ratio > 0) + o.stock > 1) throw usage_error("give one of --kv-budget, --kv-ratio and --stock");
    if ((o.budget > 0) + (o.ratio > 0) + o.stock == 0)
        throw usage_error("how much is to be kept? give --kv-budget N, --kv-ratio X or --stock");
    if (o.budget > 0 && o.budget < o.window)
        throw usage_error("--kv-budget " + std::to_string(o.budget) + " is below the window of " + std::to_string(o.window) +
                          " tokens, which are always kept and counted; raise it or lower --window");
    return true;
}

#endif
