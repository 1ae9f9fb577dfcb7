//! The rows of the table on a published model.

use lava::params::Attention;
use lava::{HeadFloor, ScoreParams, SelectParams, ValueWeight};

use super::ask::{Again, Ask};
use crate::methods::{BASE, DEFAULT, Family, Kind, Layers, Method, Scorer, Ties, WINDOW, Weight};

/// The recommended preset, with what each query head's output counts.
const WEIGHTED: &str = "recommended, weights";

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
    let mut kvzip = asked("KVzip", Again::SecondPass, false);
    let ask = Ask { again: Again::SecondPass, projection: false, smoothing: 0.0, n_sink: 4 };
    let params = ScoreParams { value_weight: ValueWeight::None, ..LARGEST };
    kvzip.scorer = Scorer { kind: Kind::Asked(ask), params, window: 1 };
    kvzip.select = SelectParams { n_sink: 4, ..SelectParams::lava() };
    let outside = |name, kind, layers, select| Method {
        name,
        scorer: Scorer { params: ScoreParams::snapkv(), window: WINDOW, kind },
        layers,
        select,
        ..lava
    };
    // Ada-KV's head budgets, and the sinks that the method keeps.
    let ada = SelectParams { n_sink: 4, ..SelectParams::lava_released() };
    let mut random = with_sinks(equal("random, 4 sinks", ScoreParams::snapkv()));
    random.scorer.kind = Kind::Random;
    // The default with weights of the query heads; its own smoothing is in its params.
    let ask = Ask { again: Again::No, projection: true, smoothing: 0.0, n_sink: 4 };
    let mut weighted = one_sort(WEIGHTED, ScoreParams::default(), SelectParams::default());
    weighted.scorer.params.value_weight = ValueWeight::HeadMeanL2;
    weighted.scorer.kind = Kind::Asked(ask);
    // Recommended until this table was made, and at first.
    let squares = ScoreParams::squares();
    vec![
        random,
        with_sinks(equal("StreamingLLM", ScoreParams::streaming())),
        equal("SnapKV", ScoreParams::snapkv()),
        lava,
        one_sort("LAVa's score, one sort", ScoreParams::lava(), SelectParams::lava()),
        one_sort(DEFAULT, ScoreParams::default(), SelectParams::default()),
        weighted,
        one_sort("squares", squares, floor(0.1, 4)),
        one_sort("squares, smoothed", ScoreParams { smoothing: 1.0, ..squares }, floor(0.1, 0)),
        Method {
            layers: Layers::Preference { tau1: 1.0, weight: Weight::One },
            ..equal("CAKE", ScoreParams::cake(200.0))
        },
        one_sort("KV-Compress", ScoreParams::kv_compress(), SelectParams::lava()),
        kvzip,
        outside("DefensiveKV", Kind::Defensive, Layers::Global(Weight::One), SelectParams::lava()),
        outside("CriticalKV", Kind::Critical, Layers::Equal, SelectParams::lava_released()),
        outside("KeyDiff", Kind::KeyDifference, Layers::Equal, SelectParams::equal()),
        outside("Expected Attention", Kind::Expected, Layers::Equal, ada),
        asked("L", Again::No, true),
        asked("L, no W_O", Again::No, false),
        asked("W", Again::Spread(128), true),
        asked("W, no W_O", Again::Spread(128), false),
        ours("Ask again", Again::Novel(4), true),
        ours("Ask again, no W_O", Again::Novel(4), false),
    ]
}

/// The largest attention that the window's and other queries pay, half a head's mean added, one sort: `L` and `W`.
const LARGEST: ScoreParams = ScoreParams {
    attention: Attention::Max,
    value_weight: ValueWeight::TokenL2,
    pool_kernel: 1,
    ..ScoreParams::lava()
};

fn asked(name: &'static str, again: Again, projection: bool) -> Method {
    let kind = Kind::Asked(Ask { again, projection, smoothing: 0.5, n_sink: 4 });
    Method {
        name,
        family: Family::Lava,
        scorer: Scorer { params: LARGEST, window: WINDOW, kind },
        layers: Layers::Global(Weight::One),
        select: SelectParams::default(),
        ties: Ties::LowerToken,
        source: "",
    }
}

/// This project's asking again. With weights, the values' norms count too.
fn ours(name: &'static str, again: Again, weights: bool) -> Method {
    let mut method = asked(name, again, weights);
    let value_weight = if weights { ValueWeight::HeadMeanL2 } else { ValueWeight::None };
    let params = ScoreParams { value_weight, ..ScoreParams::ask_window(None) };
    method.scorer = Scorer { params, window: 8, ..method.scorer };
    method
}

/// The recommended preset, and asking again, with one thing as it was before: why each is as it is. Only the half for choosing has these
/// rows.
pub fn ablations() -> Vec<Method> {
    let of_default = |name, change: fn(&mut Method)| {
        let default = all().into_iter().find(|m| m.name == DEFAULT);
        let mut method = Method { name, ..default.expect("the default has a row") };
        change(&mut method);
        method
    };
    let whole = ours("Ask again", Again::Novel(4), true);
    let with = |name, change: fn(&mut Method)| {
        let mut method = Method { name, ..whole };
        change(&mut method);
        method
    };
    let queries = |name, again| ours(name, again, true);
    vec![
        of_default("recommended, times value norms", |m| {
            m.scorer.params.value_weight = ValueWeight::HeadMeanL2;
        }),
        of_default("recommended, seven tenths sure", |m| m.select.alpha = 0.7),
        of_default("recommended, nothing added", |m| m.scorer.params.smoothing = 0.0),
        of_default("recommended, three after", |m| m.scorer.params.pool_kernel = 4),
        of_default("recommended, mean attention", |m| m.scorer.params.attention = Attention::Mean),
        with("a window of 32", |m| m.scorer.window = 32),
        with("largest attention", |m| m.scorer.params.attention = Attention::Max),
        with("own value norms", |m| m.scorer.params.value_weight = ValueWeight::TokenL2),
        with("window without what comes after", |m| m.scorer.params.pool_kernel = 1),
        with("window counts whole", |m| m.scorer.params.weight = 1.0),
        queries("every fourth query", Again::Spread(256)),
        queries("novel of each eight", Again::Novel(8)),
        queries("novel of each two", Again::Novel(2)),
        queries("nobody asks again", Again::No),
    ]
}
