/*
 * The same with lava.hpp, the C++17 wrapper: all layers of one prompt at 20%, at the end of prefill and as a cascade,
 * and a check that the C functions keep the same. Every params argument is left out: the recommended preset.
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
    std::vector<lava_shape> shapes;
    for (std::uint32_t l = 0; l < c.n_layers; l++) {
        in.push_back(capture_get(&c, PROMPT, l, WINDOW));
        shapes.push_back(capture_shape(&c, &in[l], l, WINDOW));
    }
    std::uint64_t total = lava::total_entries(shapes, lava::budget_from_ratio(shapes[0], 0.2));

    lava::workspace scratch;
    lava::cascade cascade(shapes, total);
    std::vector<std::vector<float>> scores;
    std::vector<float> all_scores;
    for (std::uint32_t l = 0; l < c.n_layers; l++) {
        scores.push_back(lava::score(shapes[l], {in[l].q}, {in[l].k}, {in[l].v}, scratch));
        cascade.push(shapes[l], scores[l]);
        all_scores.insert(all_scores.end(), scores[l].begin(), scores[l].end());
    }
    lava::entries_of_model entries = lava::global_entries(shapes, all_scores, total, scratch);

    lava_select_params params = lava_select_params_default();
    for (std::uint32_t l = 0; l < c.n_layers; l++) {
        params.head_weights = entries.heads(l);
        lava::kept kept = lava::select(shapes[l], scores[l], entries.layers[l], scratch, params);
        std::vector<std::uint16_t> k(kept.rows.size() * c.head_dim), v(k.size());
        lava::compact(shapes[l], {in[l].k}, {in[l].v}, kept.rows, kept.cu,
                      lava::ragged(lava::f16(k), kept.cu, c.head_dim), lava::ragged(lava::f16(v), kept.cu, c.head_dim));
        std::printf("layer %u: %6zu bytes of K and V, %5.2f%% of the score mass evicted, kept", l,
                    2 * k.size() * sizeof(k[0]), 100 * kept.selection.evicted_share);
        for (std::uint32_t h = 0; h < c.n_kv_heads; h++) std::printf(" %3zu", kept.head(h).size());
        std::printf("\n");

        lava::cascade_layer same = cascade.layer(l);
        expect(std::equal(same.kept_indices.begin(), same.kept_indices.end(), kept.indices.begin(), kept.indices.end()),
               "the cascade keeps the same tokens");
        lava_error error = lava_error_init();
        std::vector<std::uint32_t> indices(kept.indices.size()), cu(kept.cu.size());
        CHECK(lava_select(&shapes[l], &params, scores[l].data(), entries.layers[l], scratch.data(), scratch.size(),
                          indices.data(), indices.size(), cu.data(), nullptr, nullptr, &error));
        expect(indices == kept.indices && cu == kept.cu, "the C function keeps the same tokens");
    }
    std::printf("the cascade and the C functions keep the same\n");

    /* A refusal is an exception. */
    try {
        lava::total_entries(shapes, WINDOW - 1);
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
