//! The methods: a scorer, a rule for layers and a rule for heads, at a budget that is the same for all.

use lava::params::Attention;
use lava::{GroupReduce, HeadFloor, Pool, ScoreParams, SelectParams, ValueWeight};

use crate::published::ask::Ask;

/// How prefix entries are scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scorer {
    pub params: ScoreParams<'static>,
    /// The last tokens, always kept, whose queries do the scoring.
    pub window: usize,
    pub kind: Kind,
}

/// What happens to the library's scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    AsTheyAre,
    /// All heads get the mean of their scores, and so keep the same tokens.
    OneForAll,
    /// They are not used: a learned scorer looks at keys and values.
    Learned,
    /// Times `‖W_o v_i‖`, the norm of what the entry's value becomes after the output projection: root of the mean square over
    /// the group's query heads.
    ProjectedToken,
    /// Times the largest of these in the head.
    ProjectedMax,
    /// They are not asked for: chance decides.
    Random,
    /// They are joined with those of other queries than the window's.
    Asked(Ask),
    /// They are only the first stage's (`published/others.rs`).
    Critical,
    /// They are not asked for: they come from outside (`published/others.rs`).
    Defensive,
    KeyDifference,
    Expected,
}

pub const WINDOW: usize = 32;

/// How the total is shared among layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layers {
    Equal,
    /// By the entropy of their scores: LAVa.
    Entropy,
    /// Falling from the first layer to the last: PyramidKV.
    Pyramid {
        beta: f64,
    },
    /// By entropy (to the power 1/τ1) times variance of the window's attention, times the weight: CAKE, with τ1 = 1.
    Preference {
        tau1: f64,
        weight: Weight,
    },
    /// Learned head budgets for the whole model: LKV.
    Learned,
    /// `entropy^(1 − mass) · mass^mass` of scores times the weight.
    Blend {
        mass: f64,
        weight: Weight,
    },
    /// All layers' entries, times the weight, in one sort: the largest of the whole model are kept.
    Global(Weight),
}

/// A factor on a layer's scores before they meet another layer's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    One,
    /// Frobenius norm of the output projection.
    Projection,
    /// The same over the residual stream's norm at that layer.
    ProjectionOverResidual,
    /// `Σ scores` to this power.
    Mass(f32),
}

/// Which of equal scores goes first. Max-pooling makes plateaus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ties {
    /// The library's rule.
    LowerToken,
    HigherToken,
    /// The one with the larger score before pooling.
    Unpooled,
}

/// The tables that a method is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LAVa's presets.
    Lava,
    Peer,
    Ablation,
    /// Settings that the paper does not have.
    Beyond,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lava => "lava",
            Self::Peer => "peers",
            Self::Ablation => "ablations",
            Self::Beyond => "beyond",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Method {
    pub name: &'static str,
    pub family: Family,
    pub scorer: Scorer,
    pub layers: Layers,
    /// Sinks, and how heads share a layer's budget, or under [`Layers::Global`] the total.
    pub select: SelectParams<'static>,
    pub ties: Ties,
    /// Where it was published.
    pub source: &'static str,
}

impl Method {
    /// Whether every prompt gets the same budgets.
    pub fn is_static(&self) -> bool {
        let layers = matches!(self.layers, Layers::Equal | Layers::Pyramid { .. });
        let heads = self.select.head_floor == HeadFloor::Affine && self.select.alpha == 1.0;
        self.layers == Layers::Learned || layers && heads
    }

    /// The score, in words.
    pub fn score_in_words(&self) -> String {
        let p = &self.scorer.params;
        if self.scorer.kind == Kind::Learned {
            return "learned, of key and value".into();
        }
        let attention = match p.attention {
            Attention::Mean => "mean attention".to_string(),
            Attention::Squared => "mean squared attention".to_string(),
            Attention::MeanVariance => format!("mean + {} variance of attention", p.gamma),
            Attention::Exponential if p.decay == 1.0 => "last query's attention".to_string(),
            Attention::Exponential => format!("exponential mean of attention, {}", p.decay),
            Attention::Recency => return "position".into(),
            Attention::Max => "largest attention".to_string(),
            Attention::Norm4 => "4-norm of attention".to_string(),
        };
        let values = match (self.scorer.kind, p.value_weight) {
            (Kind::ProjectedToken, _) => " × norm of W_o v",
            (_, ValueWeight::HeadMax) => " × head's largest norm",
            (_, ValueWeight::HeadMeanL2) => " × head's mean norm",
            (_, ValueWeight::None) => "",
            (_, ValueWeight::Token | ValueWeight::TokenL2) => " × token's norm",
            (_, ValueWeight::Output) => " → change of output",
        };
        let pool = match (p.pool, p.pool_kernel) {
            (_, 1) => String::new(),
            (Pool::Max, k) => format!(", max-pool {k}"),
            (Pool::After, k) => format!(", max-pool over {k} before"),
            (Pool::Avg, k) => format!(", average-pool {k}"),
        };
        let group = match p.group_reduce {
            _ if self.scorer.kind == Kind::OneForAll => ", mean of all heads",
            GroupReduce::Max => "",
            GroupReduce::Mean => ", group mean",
        };
        let smoothing =
            if p.smoothing > 0.0 { format!(", + {} head's mean", p.smoothing) } else { String::new() };
        format!("{attention}{values}{pool}{group}{smoothing}")
    }

    /// Who gets how much, in words.
    pub fn budgets_in_words(&self) -> String {
        let weight = |w| match w {
            Weight::One => "",
            Weight::Projection => " × W_o",
            Weight::ProjectionOverResidual => " × W_o/residual",
            Weight::Mass(_) => " / mass",
        };
        let layers = match self.layers {
            Layers::Equal => "layers equal".to_string(),
            Layers::Entropy => "layers by entropy".to_string(),
            Layers::Pyramid { .. } => "layers falling".to_string(),
            Layers::Preference { weight: w, .. } => format!("layers by entropy · variance{}", weight(w)),
            Layers::Learned => return "learned for each head".into(),
            Layers::Blend { mass: 1.0, weight: w } => format!("layers by mass{}", weight(w)),
            Layers::Blend { weight: w, .. } => format!("layers by √(entropy · mass){}", weight(w)),
            Layers::Global(w) => format!("one sort{}", weight(w)),
        };
        let heads = match (self.select.head_floor, self.select.alpha) {
            (HeadFloor::None, _) if matches!(self.layers, Layers::Global(_)) => String::new(),
            (HeadFloor::None, _) => ", heads compete".into(),
            (HeadFloor::Affine, 1.0) => ", heads equal".into(),
            (HeadFloor::Affine, a) => format!(", heads compete, affine {a}"),
            (HeadFloor::Guaranteed, a) => format!(", heads compete, guaranteed {a}"),
        };
        let ties = match self.ties {
            Ties::LowerToken => "",
            Ties::HigherToken => ", ties to the higher token",
            Ties::Unpooled => ", ties by unpooled score",
        };
        format!("{layers}{heads}{ties}")
    }
}

/// The recommended preset.
pub const DEFAULT: &str = "recommended";

/// The setting that exploration on this model, on other texts than the tables, found best. On a published model it was much worse than LAVa.
pub const SMOOTHED: &str = "LAVa global";

/// The method that all others are compared with.
pub const BASE: &str = "LAVa";

pub fn all() -> Vec<Method> {
    [presets(), peers(), ablations(), beyond()].concat()
}

fn presets() -> Vec<Method> {
    let lava = lava();
    vec![
        lava,
        Method {
            name: "LAVa, released",
            select: SelectParams::lava_released(),
            source: "the authors' code",
            ..lava
        },
    ]
}

fn lava() -> Method {
    Method {
        name: BASE,
        family: Family::Lava,
        scorer: Scorer { params: ScoreParams::lava(), window: WINDOW, kind: Kind::AsTheyAre },
        layers: Layers::Entropy,
        select: SelectParams::lava(),
        ties: Ties::LowerToken,
        source: "arXiv 2509.09754",
    }
}

/// `alpha` of a layer's budget goes to its heads in equal parts first.
fn floor(head_floor: HeadFloor, alpha: f64) -> SelectParams<'static> {
    SelectParams { head_floor, alpha, ..SelectParams::lava() }
}

fn peers() -> Vec<Method> {
    let peer =
        Method { family: Family::Peer, layers: Layers::Equal, select: SelectParams::equal(), ..lava() };
    let with =
        |name, params, source| Method { name, scorer: Scorer { params, ..peer.scorer }, source, ..peer };
    let sinks =
        |n_sink, method: Method| Method { select: SelectParams { n_sink, ..method.select }, ..method };
    let window = |window, method: Method| Method { scorer: Scorer { window, ..method.scorer }, ..method };
    let kind = |kind, method: Method| Method { scorer: Scorer { kind, ..method.scorer }, ..method };
    let snapkv = ScoreParams::snapkv();
    let ada = ScoreParams { group_reduce: GroupReduce::Mean, ..snapkv };
    vec![
        with("SnapKV", snapkv, "arXiv 2404.14469"),
        Method { select: SelectParams::lava_released(), ..with("Ada-KV", ada, "arXiv 2407.11550") },
        window(
            8,
            Method {
                layers: Layers::Pyramid { beta: 20.0 },
                ..with("PyramidKV", snapkv, "arXiv 2406.02069")
            },
        ),
        Method {
            layers: Layers::Preference { tau1: 1.0, weight: Weight::One },
            ..with("CAKE", ScoreParams::cake(200.0), "arXiv 2503.12491")
        },
        window(1, kind(Kind::OneForAll, with("TOVA", ScoreParams::tova(), "arXiv 2401.06104"))),
        sinks(4, with("StreamingLLM", ScoreParams::streaming(), "arXiv 2309.17453")),
        sinks(20, with("VATP", ScoreParams::vatp(), "arXiv 2406.12335")),
        with("CAOTE", ScoreParams::caote(), "arXiv 2504.14051"),
        with("ReST-KV", ScoreParams::rest_kv(0.3), "arXiv 2605.08840"),
        Method {
            layers: Layers::Global(Weight::One),
            select: SelectParams::lava(),
            ..with("KV-Compress", ScoreParams::kv_compress(), "arXiv 2410.00161")
        },
        sinks(4, with("SAGE-KV", ScoreParams::sage_kv(), "arXiv 2503.08879")),
        kind(Kind::Learned, Method { layers: Layers::Learned, ..with("LKV", snapkv, "arXiv 2605.06676") }),
    ]
}

fn ablations() -> Vec<Method> {
    let base = Method { family: Family::Ablation, source: "", ..lava() };
    let select = |name, select| Method { name, select, ..base };
    let score = |name, params| Method { name, scorer: Scorer { params, ..base.scorer }, ..base };
    let window = |name, window| Method { name, scorer: Scorer { window, ..base.scorer }, ..base };
    let lava = ScoreParams::lava();
    vec![
        select("no head budgets", SelectParams::equal()),
        Method { name: "no layer budgets", layers: Layers::Equal, ..base },
        Method { layers: Layers::Equal, ..select("neither", SelectParams::equal()) },
        score("no value norm", ScoreParams::snapkv()),
        score("value norm per token", ScoreParams { value_weight: ValueWeight::Token, ..lava }),
        score("no pooling", ScoreParams { pool_kernel: 1, ..lava }),
        score("average pooling", ScoreParams { pool: Pool::Avg, ..lava }),
        score("group mean", ScoreParams { group_reduce: GroupReduce::Mean, ..lava }),
        select("floor guaranteed 0.2", floor(HeadFloor::Guaranteed, 0.2)),
        select("floor guaranteed 0.5", floor(HeadFloor::Guaranteed, 0.5)),
        select("floor affine 0.5", floor(HeadFloor::Affine, 0.5)),
        select("sinks 4", SelectParams { n_sink: 4, ..SelectParams::lava() }),
        Method { name: "ties by unpooled score", ties: Ties::Unpooled, ..base },
        Method { name: "ties to higher token", ties: Ties::HigherToken, ..base },
        window("window 8", 8),
        window("window 16", 16),
        window("window 64", 64),
    ]
}

fn beyond() -> Vec<Method> {
    let base = Method { family: Family::Beyond, layers: Layers::Global(Weight::One), source: "", ..lava() };
    let lava = ScoreParams::lava();
    let token = ScoreParams { value_weight: ValueWeight::Token, ..lava };
    let squared = ScoreParams { attention: Attention::Squared, ..lava };
    let both = ScoreParams { value_weight: ValueWeight::Token, ..squared };
    let global = |name, weight, params| Method {
        name,
        layers: Layers::Global(weight),
        scorer: Scorer { params, ..base.scorer },
        ..base
    };
    let smooth = |smoothing, params| ScoreParams { smoothing, ..params };
    let best = |name, weight| global(name, weight, smooth(1.0, both));
    let with_floor = |select, method: Method| Method { select, ..method };
    let by_mass = Layers::Blend { mass: 1.0, weight: Weight::Projection };
    let preference = |weight| Layers::Preference { tau1: 1.0, weight };
    vec![
        global("global", Weight::One, lava),
        global("global, W_o", Weight::Projection, lava),
        global("global, W_o/residual", Weight::ProjectionOverResidual, lava),
        global("global, 1/mass", Weight::Mass(-1.0), lava),
        Method {
            select: floor(HeadFloor::Guaranteed, 0.2),
            ..global("global, W_o, guaranteed 0.2", Weight::Projection, lava)
        },
        Method { ties: Ties::Unpooled, ..global("global, W_o, ties unpooled", Weight::Projection, lava) },
        global("global, W_o, token norm", Weight::Projection, token),
        Method {
            scorer: Scorer { kind: Kind::ProjectedToken, params: ScoreParams::snapkv(), ..base.scorer },
            ..global("global, projected norm", Weight::One, lava)
        },
        global("global, squared", Weight::One, squared),
        global("global, smoothed", Weight::One, smooth(1.0, lava)),
        global("global, squared, smoothed", Weight::One, smooth(1.0, squared)),
        with_floor(floor(HeadFloor::Guaranteed, 0.1), best(SMOOTHED, Weight::One)),
        with_floor(SelectParams::default(), global(DEFAULT, Weight::One, ScoreParams::default())),
        best("LAVa global, no floor", Weight::One),
        with_floor(floor(HeadFloor::Guaranteed, 0.2), best("LAVa global, guaranteed 0.2", Weight::One)),
        best("LAVa global, no floor, W_o", Weight::Projection),
        global("LAVa global, no floor, smoothing 0.3", Weight::One, smooth(0.3, both)),
        global("LAVa global, no floor, smoothing 3", Weight::One, smooth(3.0, both)),
        Method { layers: by_mass, ..global("layers by mass, W_o", Weight::Projection, lava) },
        Method {
            layers: Layers::Blend { mass: 0.5, weight: Weight::Projection },
            ..global("layers by entropy and mass, W_o", Weight::Projection, lava)
        },
        Method { layers: preference(Weight::One), ..global("CAKE's layers", Weight::One, lava) },
        Method {
            layers: preference(Weight::Projection),
            ..global("CAKE's layers, W_o, token norm", Weight::One, token)
        },
        Method { layers: Layers::Learned, ..global("LAVa's score, LKV's budgets", Weight::One, lava) },
        Method { layers: Layers::Learned, ..global("its score, LKV's budgets", Weight::One, both) },
        Method {
            layers: Layers::Equal,
            select: SelectParams::equal(),
            ..global("its score, equal budgets", Weight::One, both)
        },
    ]
}
