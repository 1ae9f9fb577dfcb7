/*
 * The same with lava.hpp, the C++17 wrapper: all layers of one prompt at 20%, at the end of prefill and as a cascade, and
 * a check that the C functions keep the same.
 */
#include "capture.h"
#include "lava.hpp"

#include <algorithm>
#include <cstdio>
#include <exception>

namespace {

constexpr std::uint32_t WINDOW = 32, PROMPT = 0;

void compress(const capture &c) {
    std::vector<capture_layer> in;
    for (std::uint32_t l = 0; l < c.n_layers; l++) in.push_back(capture_get(&c, PROMPT, l, WINDOW));
    lava_shape shape = capture_shape(&c, &in[0], 0, WINDOW);
    std::uint64_t total = lava::total_entries(shape, lava::budget_from_ratio(shape, 0.2), c.n_layers);

    lava::workspace scratch;
    lava::cascade cascade(shape, c.n_layers, total);
    std::vector<std::vector<float>> scores;
    std::vector<double> entropies;
    std::vector<std::uint64_t> capacities(c.n_layers, lava::n_scores(shape));
    for (const capture_layer &layer : in) {
        scores.push_back(lava::score(shape, {layer.q}, {layer.k}, {layer.v}, scratch));
        entropies.push_back(lava::entropy(shape, scores.back()).entropy);
        cascade.push(scores.back());
    }
    std::vector<std::uint64_t> budgets = lava::layer_budgets(entropies, capacities, total);

    for (std::uint32_t l = 0; l < c.n_layers; l++) {
        shape.layer = l;
        lava::kept kept = lava::select(shape, scores[l], budgets[l], scratch);
        std::vector<std::uint16_t> k(kept.indices.size() * c.head_dim), v(k.size());
        lava::compact(shape, {in[l].k}, {in[l].v}, kept.indices, kept.cu, lava::ragged(lava::f16(k), kept.cu, c.head_dim),
                      lava::ragged(lava::f16(v), kept.cu, c.head_dim));
        std::printf("layer %u: entropy %.4f, %zu bytes of K and V, %.2f%% of the score mass evicted, kept", l, entropies[l],
                    2 * k.size() * sizeof(k[0]), 100 * kept.selection.evicted_share);
        for (std::uint32_t h = 0; h < c.n_kv_heads; h++) std::printf(" %zu", kept.head(h).size());
        std::printf("\n");

        lava::cascade_layer same = cascade.layer(l);
        expect(std::equal(same.kept_indices.begin(), same.kept_indices.end(), kept.indices.begin(), kept.indices.end()),
               "the cascade keeps the same tokens");
        lava_error error = lava_error_init();
        lava_select_params params = lava_select_params_init();
        std::vector<std::uint32_t> indices(kept.indices.size()), cu(kept.cu.size());
        CHECK(lava_select(&shape, &params, scores[l].data(), budgets[l], scratch.data(), scratch.size(), indices.data(),
                          indices.size(), cu.data(), nullptr, &error));
        expect(indices == kept.indices && cu == kept.cu, "the C function keeps the same tokens");
    }
    std::printf("the cascade and the C functions keep the same\n");

    /* A refusal is an exception. */
    try {
        lava::budget_from_ratio(shape, 0.001);
        expect(false, "a budget below the window is refused");
    } catch (const lava::error &e) {
        expect(e.status() == LAVA_ERR_BUDGET, "it says why");
        std::printf("refused, as it should be: %s\n", e.what());
    }
}

}  // namespace

int main() {
    capture c = capture_open(CAPTURE_PATH);
    try {
        compress(c);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
    capture_close(&c);
    return 0;
}
