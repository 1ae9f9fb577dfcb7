//! The rows of the table on a published model.

use lava::params::Attention;
use lava::{HeadFloor, Pool, ScoreParams, SelectParams, ValueWeight};

use super::ask::{Again, Ask};
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
    let largest = ScoreParams {
        attention: Attention::Max,
        value_weight: ValueWeight::TokenL2,
        pool_kernel: 1,
        ..ScoreParams::lava()
    };
    let asked = |name, again, projection| {
        let ask = Ask { again, projection, smoothing: 0.5, n_sink: 4 };
        let mut method = one_sort(name, largest, floor(0.2, 4));
        method.scorer.kind = Kind::Asked(ask);
        method
    };
    // This project's: few rows kept for their place alone, what comes after a place that the window looks at, novel queries.
    let ours = |name, again, projection| {
        let params = ScoreParams {
            attention: Attention::Norm4,
            value_weight: ValueWeight::HeadMeanL2,
            pool: Pool::After,
            pool_kernel: 8,
            weight: 0.5,
            ..ScoreParams::lava()
        };
        let mut method = asked(name, again, projection);
        method.scorer = Scorer { params, window: 8, ..method.scorer };
        // Without the projection and the residual, half of what makes layers unlike is taken out by their sums.
        method.layers = Layers::Global(if projection { Weight::One } else { Weight::Mass(-0.5) });
        method
    };
    let mut kvzip = asked("KVzip", Again::SecondPass, false);
    let ask = Ask { again: Again::SecondPass, projection: false, smoothing: 0.0, n_sink: 4 };
    let params = ScoreParams { value_weight: ValueWeight::None, ..largest };
    kvzip.scorer = Scorer { kind: Kind::Asked(ask), params, window: 1 };
    kvzip.select = SelectParams { n_sink: 4, ..SelectParams::lava() };
    let mut random = with_sinks(equal("random, 4 sinks", ScoreParams::snapkv()));
    random.scorer.kind = Kind::Random;
    // Recommended until this table was made, and at first.
    let squares = ScoreParams {
        attention: Attention::Squared,
        value_weight: ValueWeight::Token,
        ..ScoreParams::lava()
    };
    let window = ScoreParams {
        attention: Attention::Max,
        value_weight: ValueWeight::HeadMeanL2,
        pool: Pool::After,
        pool_kernel: 8,
        smoothing: 0.5,
        ..ScoreParams::lava()
    };
    vec![
        random,
        with_sinks(equal("StreamingLLM", ScoreParams::streaming())),
        equal("SnapKV", ScoreParams::snapkv()),
        lava,
        one_sort("LAVa's score, one sort", ScoreParams::lava(), SelectParams::lava()),
        one_sort(DEFAULT, window, floor(0.2, 4)),
        one_sort("squares", squares, floor(0.1, 4)),
        one_sort("squares, smoothed", ScoreParams { smoothing: 1.0, ..squares }, floor(0.1, 0)),
        Method {
            layers: Layers::Preference { tau1: 1.0, weight: Weight::One },
            ..equal("CAKE", ScoreParams::cake(200.0))
        },
        one_sort("KV-Compress", ScoreParams::kv_compress(), SelectParams::lava()),
        kvzip,
        asked("L", Again::No, true),
        asked("L, no W_O", Again::No, false),
        asked("W", Again::Spread(128), true),
        asked("W, no W_O", Again::Spread(128), false),
        ours("Ask again", Again::Novel, true),
        ours("Ask again, no W_O", Again::Novel, false),
    ]
}
