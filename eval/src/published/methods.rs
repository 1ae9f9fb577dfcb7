//! The rows of the table on a published model.

use lava::params::Attention;
use lava::{HeadFloor, ScoreParams, SelectParams, ValueWeight};

use super::ask::Ask;
use crate::methods::{BASE, DEFAULT, Family, Kind, Layers, Method, Scorer, Ties, WINDOW, Weight};

pub fn all() -> Vec<Method> {
    let lava = Method {
        name: BASE,
        family: Family::Lava,
        scorer: Scorer { params: ScoreParams::lava(), window: WINDOW, kind: Kind::AsTheyAre },
        layers: Layers::Entropy,
        select: SelectParams::lava(),
        ties: Ties::LowerToken,
        source: "",
    };
    let equal = |name, params| Method {
        name,
        scorer: Scorer { params, ..lava.scorer },
        layers: Layers::Equal,
        select: SelectParams::equal(),
        ..lava
    };
    let one_sort = |name, params, select| Method {
        name,
        scorer: Scorer { params, ..lava.scorer },
        layers: Layers::Global(Weight::One),
        select,
        ..lava
    };
    let with_sinks = |m: Method| Method { select: SelectParams { n_sink: 4, ..m.select }, ..m };
    let floor = |alpha, n_sink| SelectParams {
        head_floor: HeadFloor::Guaranteed,
        alpha,
        n_sink,
        ..SelectParams::lava()
    };
    let asked = |name, again, projection| {
        let ask = Ask { again, projection, smoothing: 0.5, n_sink: 4 };
        let params = ScoreParams {
            attention: Attention::Max,
            value_weight: ValueWeight::TokenL2,
            pool_kernel: 1,
            ..ScoreParams::lava()
        };
        let mut method = one_sort(name, params, floor(0.2, 4));
        method.scorer.kind = Kind::Asked(ask);
        method
    };
    let mut random = with_sinks(equal("random, 4 sinks", ScoreParams::snapkv()));
    random.scorer.kind = Kind::Random;
    let old = ScoreParams { value_weight: ValueWeight::Token, smoothing: 1.0, ..ScoreParams::kv_compress() };
    let old = ScoreParams { group_reduce: ScoreParams::lava().group_reduce, ..old };
    vec![
        random,
        with_sinks(equal("StreamingLLM", ScoreParams::streaming())),
        equal("SnapKV", ScoreParams::snapkv()),
        lava,
        one_sort("LAVa's score, one sort", ScoreParams::lava(), SelectParams::lava()),
        one_sort(DEFAULT, ScoreParams::default(), SelectParams::default()),
        one_sort("recommended before", old, floor(0.1, 0)),
        Method {
            layers: Layers::Preference { tau1: 1.0, weight: Weight::One },
            ..equal("CAKE", ScoreParams::cake(200.0))
        },
        one_sort("KV-Compress", ScoreParams::kv_compress(), SelectParams::lava()),
        asked("L", false, true),
        asked("L, no W_O", false, false),
        asked("W", true, true),
        asked("W, no W_O", true, false),
    ]
}
