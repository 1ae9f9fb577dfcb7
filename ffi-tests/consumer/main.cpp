/* The same as main.c in C++, with lava.hpp. */
#include <lava.hpp>

#include <cstdio>

int main() {
    constexpr std::uint32_t n_tokens = 64, n_heads = 2, dim = 8, window = 8;
    std::vector<float> q(window * n_heads * dim), k(n_tokens * n_heads * dim), v(k.size());
    for (std::size_t i = 0; i < q.size(); i++) q[i] = static_cast<float>(i * 7 % 13) / 8;
    for (std::size_t i = 0; i < k.size(); i++) {
        k[i] = static_cast<float>(i * 5 % 17) / 8 - 1;
        v[i] = static_cast<float>(i * 3 % 19) / 8 - 1;
    }
    lava_shape shape = lava_shape_init(n_tokens, n_heads, n_heads, dim, dim, window);
    lava::workspace scratch;
    lava::tensor k_in = lava::token_major(lava::f32(k), n_heads, dim), v_in = lava::token_major(lava::f32(v), n_heads, dim);
    std::vector<float> scores = lava::score(shape, lava::token_major(lava::f32(q), n_heads, dim), k_in, v_in, scratch);
    lava::kept kept = lava::select(shape, scores, scores.size() / 2, scratch);
    std::vector<float> k_small(kept.indices.size() * dim), v_small(k_small.size());
    lava::compact(shape, k_in, v_in, kept.rows, kept.cu, lava::ragged(lava::f32(k_small), kept.cu, dim),
                  lava::ragged(lava::f32(v_small), kept.cu, dim));
    if (kept.indices.size() != scores.size() / 2 + n_heads * window) return 1;
    for (std::uint32_t h = 0; h < n_heads; h++)
        for (std::uint32_t r = kept.cu[h]; r < kept.cu[h + 1]; r++)
            for (std::uint32_t d = 0; d < dim; d++)
                if (k_small[r * dim + d] != k[(kept.indices[r] * n_heads + h) * dim + d]) return 2;
    try {  // no C frame is in the exception's way, and it is caught
        lava::budget_from_ratio(shape, 2);
        return 3;
    } catch (const lava::error &e) {
        if (e.status() != LAVA_ERR_ARGUMENT) return 4;
    }
    std::printf("%s %s\n", lava_version_string(), lava_backend_name(LAVA_BACKEND_BEST));
    return 0;
}
