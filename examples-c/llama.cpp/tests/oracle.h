/*
 * Three ways to know what is right: the tensors that a graph computed, caught on their way; attention in double precision put in
 * the place of stock's; and a forward pass of the whole model in double precision.
 */
#pragma once

#include "ggml-backend.h"
#include "harness.h"

#include <functional>

using kept_rows = std::vector<std::vector<std::vector<llama_pos>>>;  // [layer][KV head]

inline kept_rows all_positions(llama_context * ctx) {
    kept_rows rows;
    llama_lava_layer layer = {};
    for (int il = 0; llama_lava_get_layer(ctx, il, &layer); il++) {
        rows.emplace_back();
        for (int ih = 0; ih < (int) layer.n_head_kv; ih++) rows.back().push_back(positions(ctx, il, ih));
    }
    return rows;
}

/* A layer's attention as a dense cache has it. */
struct seen_layer {
    uint32_t n_head = 0, n_head_kv = 0, dim = 0;
    std::vector<floats> q;                     // per position, [n_head, dim]
    ggml_tensor k = {}, v = {};                // the cache's own tensors, with a copy of what they held
    std::vector<char> k_data, v_data;
    bool trans = false;

    // element e of position p of KV head h, as a number
    float at(bool of_v, uint32_t h, uint32_t p, uint32_t e) const {
        const ggml_tensor & t = of_v ? v : k;
        const char * data = (of_v ? v_data : k_data).data();
        if (of_v && trans) return element(t.type, data + ((size_t) (h * dim + e) * t.ne[1] + p) * ggml_type_size(t.type), 0);
        return element(t.type, data + p * t.nb[1] + h * ggml_row_size(t.type, dim), e);
    }
    static float element(ggml_type type, const char * row, uint32_t e) {
        if (type == GGML_TYPE_F32) return ((const float *) row)[e];
        if (type == GGML_TYPE_F16) return ggml_fp16_to_fp32(((const ggml_fp16_t *) row)[e]);
        if (type == GGML_TYPE_BF16) return ggml_bf16_to_fp32(((const ggml_bf16_t *) row)[e]);
        const char * block = row + e / 32 * 34;  // q8_0: an F16 factor and 32 bytes
        return ggml_fp16_to_fp32(*(const ggml_fp16_t *) block) * (float) (int8_t) block[2 + e % 32];
    }
};

/* For cb_eval: catches Q, K and V of each layer, and may put attention over chosen rows in the place of stock's. */
struct witness {
    std::map<int, seen_layer> layers;
    bool copy_cache = true;
    const kept_rows * rows = nullptr;          // replace: attend to these positions ...
    uint32_t n_base = 0, n_past = 0;           // ... and to those from n_base to n_past

    static bool callback(ggml_tensor * t, bool ask, void * data) { return ((witness *) data)->look(t, ask); }

private:
    static int layer_of(const ggml_tensor * t) {
        int il = -1;
        std::sscanf(t->view_src ? t->view_src->name : t->name, "cache_%*c_l%d", &il);
        return il;
    }

    bool look(ggml_tensor * t, bool ask) {
        const bool flash = t->op == GGML_OP_FLASH_ATTN_EXT;
        const bool kq = t->op == GGML_OP_MUL_MAT && std::strncmp(t->name, "kq-", 3) == 0;
        const bool kqv = t->op == GGML_OP_MUL_MAT && std::strncmp(t->name, "kqv-", 4) == 0;
        if (!flash && !kq && !kqv) return false;
        const ggml_tensor * q = flash ? t->src[0] : kq ? t->src[1] : nullptr;
        const ggml_tensor * k = flash ? t->src[1] : kq ? t->src[0] : nullptr;
        const ggml_tensor * v = flash ? t->src[2] : kqv ? t->src[0] : nullptr;
        while (k && k->op == GGML_OP_CPY) k = k->src[0];  // flash attention wants F32 rows as F16
        while (v && v->op == GGML_OP_CPY) v = v->src[0];
        const int il = layer_of(k ? k : v);
        if (il < 0) return false;
        if (ask) return true;
        seen_layer & l = layers[il];
        if (q) {
            l.dim = (uint32_t) q->ne[0];
            l.n_head = (uint32_t) q->ne[2];
            l.n_head_kv = (uint32_t) k->ne[2];
            for (int64_t i = 0; i < q->ne[1]; i++) {
                floats row;
                for (uint32_t h = 0; h < l.n_head; h++) {
                    const float * from = (const float *) ((const char *) q->data + i * q->nb[1] + h * q->nb[2]);
                    row.insert(row.end(), from, from + l.dim);
                }
                l.q.push_back(row);
            }
        }
        if (copy_cache && k) l.k = *k->view_src, l.k_data.assign((char *) l.k.data, (char *) l.k.data + ggml_nbytes(&l.k));
        if (copy_cache && v) l.v = *v->view_src, l.v_data.assign((char *) l.v.data, (char *) l.v.data + ggml_nbytes(&l.v)), l.trans = kqv;
        if (rows && (flash || kqv)) replace(t, il, l, flash);
        return true;
    }

    // One query. dst: [dim, n_head, 1] with flash attention, [dim, 1, n_head] without.
    void replace(ggml_tensor * dst, int il, const seen_layer & l, bool flash) const {
        for (uint32_t h = 0; h < l.n_head; h++) {
            const uint32_t g = h / (l.n_head / l.n_head_kv);
            std::vector<llama_pos> see = (*rows)[(size_t) il][g];
            for (uint32_t p = n_base; p <= n_past; p++) see.push_back((llama_pos) p);
            const float * q = l.q.back().data() + (size_t) h * l.dim;
            std::vector<double> weight, out(l.dim);
            double top = -INFINITY, sum = 0;
            for (llama_pos p : see) {
                double logit = 0;
                for (uint32_t e = 0; e < l.dim; e++) logit += (double) q[e] * (double) l.at(false, g, (uint32_t) p, e);
                weight.push_back(logit / std::sqrt((double) l.dim));
                top = std::max(top, weight.back());
            }
            for (double & x : weight) sum += x = std::exp(x - top);
            for (size_t i = 0; i < see.size(); i++)
                for (uint32_t e = 0; e < l.dim; e++) out[e] += weight[i] / sum * (double) l.at(true, g, (uint32_t) see[i], e);
            float * to = (float *) ((char *) dst->data + h * (flash ? dst->nb[1] : dst->nb[2]));
            for (uint32_t e = 0; e < l.dim; e++) to[e] = (float) out[e];
        }
    }
};

/* The whole of a tiny model in double precision, over a cache from which rows can be dropped. */
struct exact_model {
    const tiny_model & m;
    using row = std::vector<double>;
    std::vector<std::vector<std::vector<std::pair<row, row>>>> cache;  // [layer][KV head][row]: K and V

    explicit exact_model(const tiny_model & m) : m(m), cache(m.n_layer, std::vector<std::vector<std::pair<row, row>>>(m.n_head_kv)) {}

    void keep(const kept_rows & rows) {
        for (uint32_t l = 0; l < m.n_layer; l++)
            for (uint32_t h = 0; h < m.n_head_kv; h++) {
                std::vector<std::pair<row, row>> kept;
                for (llama_pos p : rows[l][h]) kept.push_back(cache[l][h][(size_t) p]);
                cache[l][h] = kept;
            }
    }

    // The logits after a token at a position.
    row step(llama_token token, uint32_t position) {
        const uint32_t d = m.head_dim, gqa = m.n_head / m.n_head_kv;
        const float * embd = m.get("token_embd.weight") + (size_t) token * m.n_embd;
        row x(embd, embd + m.n_embd);
        for (uint32_t l = 0; l < m.n_layer; l++) {
            const std::string at = "blk." + std::to_string(l) + ".";
            const row in = norm(x);
            row q = times(at + "attn_q.weight", in), k = times(at + "attn_k.weight", in), v = times(at + "attn_v.weight", in);
            rope(q, position);
            rope(k, position);
            for (uint32_t h = 0; h < m.n_head_kv; h++)
                cache[l][h].emplace_back(row(k.begin() + h * d, k.begin() + (h + 1) * d), row(v.begin() + h * d, v.begin() + (h + 1) * d));
            row heads(m.n_head * d);
            for (uint32_t h = 0; h < m.n_head; h++) {
                const auto & rows = cache[l][h / gqa];
                std::vector<double> weight;
                double top = -INFINITY, sum = 0;
                for (const auto & [rk, rv] : rows) {
                    double logit = 0;
                    for (uint32_t e = 0; e < d; e++) logit += q[h * d + e] * rk[e];
                    weight.push_back(logit / std::sqrt((double) d));
                    top = std::max(top, weight.back());
                }
                for (double & w : weight) sum += w = std::exp(w - top);
                for (size_t i = 0; i < rows.size(); i++)
                    for (uint32_t e = 0; e < d; e++) heads[h * d + e] += weight[i] / sum * rows[i].second[e];
            }
            add(x, times(at + "attn_output.weight", heads));
            const row ff = norm(x);
            row gate = times(at + "ffn_gate.weight", ff);
            const row up = times(at + "ffn_up.weight", ff);
            for (size_t i = 0; i < gate.size(); i++) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
            add(x, times(at + "ffn_down.weight", gate));
        }
        return times("output.weight", norm(x));
    }

private:
    static void add(row & x, const row & y) {
        for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
    }
    static row norm(const row & x) {
        double sum = 0;
        for (double e : x) sum += e * e;
        row y;
        for (double e : x) y.push_back(e / std::sqrt(sum / (double) x.size() + 1e-5));
        return y;
    }
    row times(const std::string & name, const row & x) const {
        const auto & w = m.weights.at(name);
        row y(w.size() / x.size());
        for (size_t o = 0; o < y.size(); o++)
            for (size_t i = 0; i < x.size(); i++) y[o] += (double) w[o * x.size() + i] * x[i];
        return y;
    }
    void rope(row & x, uint32_t position) const {
        for (size_t i = 0; i < x.size(); i += 2) {
            const double angle = position * std::pow(10000.0, -(double) (i % m.head_dim) / m.head_dim);
            const double a = x[i], b = x[i + 1];
            x[i] = a * std::cos(angle) - b * std::sin(angle);
            x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
        }
    }
};
