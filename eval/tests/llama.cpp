// Writes what llama.cpp makes of a text: its tokens, and of the last 64 positions the 20 likeliest next tokens with their
// log-probabilities. eval/tests/llama.json is its output for eval/tests/llama.txt and SmolLM2-135M-Instruct; eval/tests/published.rs
// compares with that; gemma.json is the same for gemma.txt and gemma.gguf. To make it again, after `make eval-fetch` and the build of llama-lava:
//
//     b=target/llama.cpp/build/llama.cpp
//     g++ -std=c++17 -O2 -I target/llama.cpp/src/include -I target/llama.cpp/src/ggml/include eval/tests/llama.cpp -o target/llama-golden \
//         $b/src/libllama.a $b/ggml/src/libggml.a $b/ggml/src/libggml-cpu.a $b/ggml/src/ggml-rpc/libggml-rpc.a \
//         $b/ggml/src/libggml-base.a target/capi/capi/liblava.a -fopenmp -lpthread -ldl
//     target/llama-golden target/published/model.gguf eval/tests/llama.txt >eval/tests/llama.json
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    std::ifstream in(argv[2]);
    std::stringstream buffer;
    buffer << in.rdbuf();
    const std::string text = buffer.str();

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    const llama_vocab *vocab = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(text.size() + 8);
    int n = llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, true);
    if (n <= 0) return 1;
    tokens.resize(n);

    llama_context_params params = llama_context_default_params();
    params.n_ctx = n + 8;
    params.n_batch = params.n_ubatch = n;
    params.type_k = params.type_v = GGML_TYPE_F16;
    llama_context *ctx = llama_init_from_model(model, params);
    const int n_out = std::min(n, 64);
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i >= n - n_out;
    }
    if (llama_decode(ctx, batch)) return 1;

    std::printf("{\"tokens\":[");
    for (int i = 0; i < n; ++i) std::printf("%s%d", i ? "," : "", tokens[i]);
    std::printf("],\n\"next\":[");
    const int n_vocab = llama_vocab_n_tokens(vocab);
    for (int i = n - n_out; i < n; ++i) {
        const float *logits = llama_get_logits_ith(ctx, i);
        const float most = *std::max_element(logits, logits + n_vocab);
        double sum = 0;
        for (int t = 0; t < n_vocab; ++t) sum += std::exp((double)logits[t] - most);
        std::vector<int> order(n_vocab);
        for (int t = 0; t < n_vocab; ++t) order[t] = t;
        std::partial_sort(order.begin(), order.begin() + 20, order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
        std::printf("%s[", i > n - n_out ? ",\n" : "");
        for (int j = 0; j < 20; ++j)
            std::printf("%s[%d,%.5f]", j ? "," : "", order[j], logits[order[j]] - most - std::log(sum));
        std::printf("]");
    }
    std::printf("]}\n");
}
