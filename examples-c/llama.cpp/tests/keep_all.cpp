/*
 * With everything kept, a compressed cache gives stock's logits: bit by bit where every KV head has a stock node of its
 * own, within rounding where one node does all heads or the attention is the library's.
 */
#include "harness.h"

int main(int argc, char ** argv) {
    const std::string path = std::string(argc > 1 ? argv[1] : ".") + "/keep_all.gguf";
    start();
    tiny_model tiny;
    tiny.write(path);
    model_ptr model = load(path);
    const uint32_t n_prompt = 300, n_steps = 12;
    const auto tokens = some_tokens(n_prompt + n_steps, tiny.n_vocab);
    const char * names[] = { "auto", "ragged", "padded", "per head" };

    for (bool flash : { true, false }) {
        for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
            if (ggml_is_quantized(type) && !flash) continue;  // llama.cpp quantises V with flash attention only
            options o;
            o.flash = flash;
            o.type_k = o.type_v = type;
            context_ptr stock = open(model.get(), o);
            const floats prompt = logits_after(stock.get(), tokens.data(), n_prompt);
            const floats want = steps(stock.get(), tokens, n_prompt, n_steps);
            for (int mode : { LLAMA_LAVA_ATTN_RAGGED, LLAMA_LAVA_ATTN_PADDED, LLAMA_LAVA_ATTN_PER_HEAD }) {
                if (ggml_is_quantized(type) && mode == LLAMA_LAVA_ATTN_RAGGED) continue;
                context_ptr ctx = open(model.get(), o);
                llama_lava_params params = llama_lava_default_params();
                params.ratio = 1;
                params.attn = mode;
                const bool enabled = llama_lava_enable(ctx.get(), params) == 0;
                const floats p = logits_after(ctx.get(), tokens.data(), n_prompt);
                const bool compressed = llama_lava_compress(ctx.get()) == 0 && llama_lava_get_info(ctx.get()).compressed;
                const floats got = steps(ctx.get(), tokens, n_prompt, n_steps);
                const bool same = identical(got, want);
                // Stock attention rounds the queries and the probabilities to the cache's type, and on the CPU flash
                // attention adds up F16 values in F16: rounding of 2^-11 to 2^-8. The library computes in F32.
                const double off = apart(got, want), allowed = type == GGML_TYPE_F32 && !flash ? 1e-4 : 3e-2;
                check(enabled && compressed && identical(p, prompt) && (same || (mode != LLAMA_LAVA_ATTN_PER_HEAD && off < allowed)),
                      "keep all, %-4s flash %-3s %-8s: %s, at most %.1e from stock", ggml_type_name(type), flash ? "on," : "off",
                      names[mode], same ? "identical" : "not identical", off);
            }
        }
    }
    return n_failed > 0;
}
