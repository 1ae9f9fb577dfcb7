/*
 * Tiny models with random weights, written as GGUF: a vocabulary of numbers, F32 weights. Architecture llama; others, to be
 * refused: cohere2 (sliding-window attention), refact (ALiBi), mamba (no KV cache at all); deci, whose layers may be unlike.
 */
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

struct tiny_model {
    uint32_t n_layer = 3, n_head = 8, n_head_kv = 2, head_dim = 64, n_embd = 96, n_ff = 64, n_vocab = 200;
    uint32_t n_head_kv_last = 0;  // KV heads of the last layer, if other
    std::map<std::string, std::vector<float>> weights;  // by name, rows one after the other

    const float * get(const std::string & name) const { return weights.at(name).data(); }

    uint32_t kv_heads(uint32_t layer) const { return n_head_kv_last != 0 && layer + 1 == n_layer ? n_head_kv_last : n_head_kv; }

    // A file that llama.cpp loads. broken: a token whose embedding is NaN.
    void write(const std::string & path, const std::string & arch = "llama", int32_t broken = -1) {
        const uint32_t q = n_head * head_dim;
        const bool is_mamba = arch == "mamba", is_cohere = arch == "cohere2";
        ggml_context * ctx = ggml_init({ (size_t) 64 << 20, nullptr, false });
        gguf_context * out = gguf_init_empty();
        gguf_set_val_str(out, "general.architecture", arch.c_str());
        gguf_set_val_str(out, "general.name", "tiny");
        auto set = [&](const char * key, uint32_t value) { gguf_set_val_u32(out, (arch + "." + key).c_str(), value); };
        set("context_length", 65536);
        set("embedding_length", n_embd);
        set("block_count", n_layer);
        set("feed_forward_length", n_ff);
        set("attention.head_count", n_head);
        std::vector<uint32_t> all_kv_heads;
        for (uint32_t l = 0; l < n_layer; l++) all_kv_heads.push_back(kv_heads(l));
        gguf_set_arr_data(out, (arch + ".attention.head_count_kv").c_str(), GGUF_TYPE_UINT32, all_kv_heads.data(), n_layer);
        set("attention.key_length", head_dim);
        set("attention.value_length", head_dim);
        set("rope.dimension_count", head_dim);
        set("vocab_size", n_vocab);
        set("attention.sliding_window", 64);
        set("ssm.conv_kernel", 4);
        set("ssm.inner_size", 2 * n_embd);
        set("ssm.state_size", 16);
        set("ssm.time_step_rank", 8);
        for (const auto & [key, value] : { std::pair<const char *, float>{ "rope.freq_base", 10000.0f }, { "logit_scale", 1.0f },
                 { "attention.layer_norm_rms_epsilon", 1e-5f }, { "attention.layer_norm_epsilon", 1e-5f } })
            gguf_set_val_f32(out, (arch + "." + key).c_str(), value);
        gguf_set_val_str(out, "tokenizer.ggml.model", "none");

        std::mt19937 rng(1);
        std::normal_distribution<float> normal;
        auto add = [&](const std::string & name, uint32_t n_in, uint32_t n_out, float gain) {
            auto & w = weights[name];
            w.resize((size_t) n_in * n_out);
            for (auto & x : w) x = gain > 0 ? normal(rng) * gain / std::sqrt((float) n_in) : 1.0f;
            if (broken >= 0 && name == "token_embd.weight") std::fill_n(w.begin() + broken * (int32_t) n_in, n_in, NAN);
            ggml_tensor * t = n_out > 1 ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_in, n_out) : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_in);
            ggml_set_name(t, name.c_str());
            std::copy(w.begin(), w.end(), (float *) t->data);
            gguf_add_tensor(out, t);
        };
        add("token_embd.weight", n_embd, n_vocab, std::sqrt((float) n_embd));
        add("output_norm.weight", n_embd, 1, 0);
        if (!is_cohere) add("output.weight", n_embd, n_vocab, 1);
        for (uint32_t l = 0; l < n_layer; l++) {
            const std::string at = "blk." + std::to_string(l) + ".";
            const uint32_t kv = kv_heads(l) * head_dim;
            add(at + "attn_norm.weight", n_embd, 1, 0);
            if (is_mamba) {
                add(at + "ssm_in.weight", n_embd, 4 * n_embd, 1);
                add(at + "ssm_conv1d.weight", 4, 2 * n_embd, 1);
                add(at + "ssm_conv1d.bias", 2 * n_embd, 1, 1);
                add(at + "ssm_x.weight", 2 * n_embd, 8 + 2 * 16, 1);
                add(at + "ssm_dt.weight", 8, 2 * n_embd, 1);
                add(at + "ssm_dt.bias", 2 * n_embd, 1, 1);
                add(at + "ssm_a", 16, 2 * n_embd, 1);
                add(at + "ssm_d", 2 * n_embd, 1, 1);
                add(at + "ssm_out.weight", 2 * n_embd, n_embd, 1);
                continue;
            }
            add(at + "attn_q.weight", n_embd, q, 1.5f);
            add(at + "attn_k.weight", n_embd, kv, 1.5f);
            add(at + "attn_v.weight", n_embd, kv, 1);
            add(at + "attn_output.weight", q, n_embd, 1);
            if (!is_cohere) add(at + "ffn_norm.weight", n_embd, 1, 0);
            add(at + "ffn_gate.weight", n_embd, n_ff, 1);
            add(at + "ffn_up.weight", n_embd, n_ff, 1);
            add(at + "ffn_down.weight", n_ff, n_embd, 1);
        }
        if (!gguf_write_to_file(out, path.c_str(), false)) {
            std::fprintf(stderr, "cannot write %s\n", path.c_str());
            std::exit(1);
        }
        gguf_free(out);
        ggml_free(ctx);
    }
};
