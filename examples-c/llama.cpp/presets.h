/*
 * The presets of lava.h and lava_methods.h that need nothing but the window's queries, with the budgets that go with them
 * (docs/methods.md). Not here: asking again, which needs queries of the whole prompt; CAKE and PyramidKV, whose layers share by
 * weights, and TOVA, which scores with the mean of all heads.
 */
#ifndef PRESETS_H
#define PRESETS_H

#include "lava_methods.h"

#include <string>
#include <vector>

struct preset {
    const char *name;
    lava_score_params score;
    lava_select_params select;
    int32_t layers;  /* LAVA_LAYERS_ */
};

inline const std::vector<preset> &presets() {
    auto sinks = [](lava_select_params select, uint32_t n) {
        select.n_sink = n;
        return select;
    };
    static const std::vector<preset> all = [&] {
        const lava_select_params none = lava_select_params_lava(), equal = lava_select_params_equal();
        lava_score_params ada = lava_score_params_snapkv();
        ada.group_reduce = LAVA_GROUP_MEAN;
        return std::vector<preset> {
            {"default", lava_score_params_default(), lava_select_params_default(), LAVA_LAYERS_GLOBAL},
            {"squares", lava_score_params_squares(), lava_select_params_default(), LAVA_LAYERS_GLOBAL},
            {"lava", lava_score_params_lava(), none, LAVA_LAYERS_ENTROPY},
            {"lava-released", lava_score_params_lava(), lava_select_params_lava_released(), LAVA_LAYERS_ENTROPY},
            {"snapkv", lava_score_params_snapkv(), equal, LAVA_LAYERS_EQUAL},
            {"ada-kv", ada, lava_select_params_lava_released(), LAVA_LAYERS_EQUAL},
            {"streaming", lava_score_params_streaming(), sinks(equal, 4), LAVA_LAYERS_EQUAL},
            {"vatp", lava_score_params_vatp(), sinks(equal, 20), LAVA_LAYERS_EQUAL},
            {"caote", lava_score_params_caote(), equal, LAVA_LAYERS_EQUAL},
            {"rest-kv", lava_score_params_rest_kv(0.3f), equal, LAVA_LAYERS_EQUAL},
            {"kv-compress", lava_score_params_kv_compress(), none, LAVA_LAYERS_GLOBAL},
            {"sage-kv", lava_score_params_sage_kv(), sinks(equal, 4), LAVA_LAYERS_EQUAL},
        };
    }();
    return all;
}

inline std::vector<std::string> preset_names() {
    std::vector<std::string> names;
    for (const preset &one : presets()) names.push_back(one.name);
    return names;
}

#endif
