//! One meaning of "default": NULL, the `_default` functions and Rust's `Default` are the same, bit for bit; and every other preset is
//! Rust's of that name.

use ffi_tests::*;
use lava::score::{ScoreInputs, workspace_size};
use lava::workspace::Carver;
use lava::{Backend, ScoreParams, SelectParams, Shape, Strides, Tensor};
use std::ptr::null;

const TOKENS: usize = 90;
const HEADS: (usize, usize) = (6, 2);
const DIMS: (usize, usize) = (16, 10);
const WINDOW: usize = 7;

fn layer() -> Layer {
    Layer::random(5, shape(TOKENS, HEADS, DIMS, WINDOW))
}

/// The recommended presets, as C has them.
fn defaults() -> (lava_score_params, lava_select_params, lava_cascade_params, lava_attend_params) {
    unsafe {
        (
            lava_score_params_default(),
            lava_select_params_default(),
            lava_cascade_params_default(),
            lava_attend_params_default(),
        )
    }
}

fn rust_shape() -> Shape<'static> {
    Shape::dense(TOKENS, HEADS.0, HEADS.1, DIMS.0, DIMS.1, WINDOW)
}

/// Memory for a Rust call.
fn carve<T>(bytes: usize, work: impl FnOnce(&mut Carver) -> T) -> T {
    let memory = Memory::new(bytes);
    // SAFETY: the block is this function's alone.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.ptr::<u8>(), memory.len()) };
    work(&mut Carver::over(bytes).unwrap())
}

fn rust_score(params: &ScoreParams) -> Vec<f32> {
    let (layer, shape) = (layer(), rust_shape());
    fn view(grid: &Grid) -> Tensor<'_> {
        let strides = Strides::token_major(grid.heads, grid.dim);
        Tensor::from_slice(&grid.values, strides, lava::Rows::Same(grid.rows), grid.heads, grid.dim).unwrap()
    }
    let inputs = ScoreInputs { q: view(&layer.q), k: view(&layer.k), v: view(&layer.v), lse: None };
    let mut scores = vec![0.0; shape.n_scores() as usize];
    carve(workspace_size(&shape, params).unwrap(), |carver| {
        lava::score::score(Backend::detect(), &shape, params, &inputs, 0, 1, carver, &mut scores).unwrap();
    });
    scores
}

#[test]
fn scoring_presets_are_rusts() {
    let weights: Vec<f32> = (0..HEADS.0).map(|h| 0.5 + h as f32).collect();
    let presets: [(&str, lava_score_params, ScoreParams); 17] = unsafe {
        [
            ("default", lava_score_params_default(), ScoreParams::default()),
            ("lava", lava_score_params_lava(), ScoreParams::lava()),
            ("ask_again", lava_score_params_ask_again(std::ptr::null()), ScoreParams::ask_again(None)),
            ("ask_window", lava_score_params_ask_window(std::ptr::null()), ScoreParams::ask_window(None)),
            ("weighted", lava_score_params_weighted(weights.as_ptr()), ScoreParams::weighted(&weights)),
            (
                "ask_again, weighted",
                lava_score_params_ask_again(weights.as_ptr()),
                ScoreParams::ask_again(Some(&weights)),
            ),
            (
                "ask_window, weighted",
                lava_score_params_ask_window(weights.as_ptr()),
                ScoreParams::ask_window(Some(&weights)),
            ),
            ("squares", lava_score_params_squares(), ScoreParams::squares()),
            ("snapkv", lava_score_params_snapkv(), ScoreParams::snapkv()),
            ("cake", lava_score_params_cake(200.0), ScoreParams::cake(200.0)),
            ("tova", lava_score_params_tova(), ScoreParams::tova()),
            ("streaming", lava_score_params_streaming(), ScoreParams::streaming()),
            ("vatp", lava_score_params_vatp(), ScoreParams::vatp()),
            ("caote", lava_score_params_caote(), ScoreParams::caote()),
            ("rest_kv", lava_score_params_rest_kv(0.3), ScoreParams::rest_kv(0.3)),
            ("kv_compress", lava_score_params_kv_compress(), ScoreParams::kv_compress()),
            ("sage_kv", lava_score_params_sage_kv(), ScoreParams::sage_kv()),
        ]
    };
    for (name, c, rust) in presets {
        let got = Layer { params: c, ..layer() }.score().unwrap();
        assert_eq!(bits(&got), bits(&rust_score(&rust)), "{name}");
    }
    let scored = |params| bits(&Layer { params, ..layer() }.score().unwrap()).to_vec();
    let [unweighted, default] =
        unsafe { [lava_score_params_weighted(std::ptr::null()), lava_score_params_default()] };
    assert_eq!(scored(unweighted), scored(default));
}

/// What a selection keeps by a Rust preset.
fn rust_select(params: &SelectParams, scores: &[f32], n_entries: u64) -> (Vec<u32>, Vec<u32>) {
    let shape = rust_shape();
    let n_kept = lava::select::n_kept(&shape, n_entries).unwrap() as usize;
    let (mut indices, mut cu) = (vec![0; n_kept], vec![0; HEADS.1 + 1]);
    carve(lava::select::workspace_size(&shape).unwrap(), |carver| {
        lava::select::select(&shape, params, scores, n_entries, carver, &mut indices, &mut cu, None).unwrap();
    });
    (indices, cu)
}

#[test]
fn selecting_presets_are_rusts() {
    let presets: [(&str, lava_select_params, SelectParams); 4] = unsafe {
        [
            ("default", lava_select_params_default(), SelectParams::default()),
            ("lava", lava_select_params_lava(), SelectParams::lava()),
            ("lava_released", lava_select_params_lava_released(), SelectParams::lava_released()),
            ("equal", lava_select_params_equal(), SelectParams::equal()),
        ]
    };
    // Nothing of head 1 would be kept by its scores, nor the first tokens.
    let n = TOKENS - WINDOW;
    let scores: Vec<f32> = (0..2 * n).map(|i| i as f32 + if i < n { 1000.0 } else { 0.0 }).collect();
    let mut kept = vec![];
    for (name, c, rust) in presets {
        let got = select(&layer().shape, &c, &scores, 60).unwrap();
        let want = rust_select(&rust, &scores, 60);
        assert_eq!((&got.indices, &got.cu), (&want.0, &want.1), "{name}");
        kept.push(got.rest);
    }
    assert!((1..4).all(|i| !kept[..i].contains(&kept[i])), "each keeps something different");
    // The first four and two more make up a fifth of an equal part: the rest is head 0's.
    let last = (n as u32 - 2..TOKENS as u32).collect::<Vec<_>>();
    assert_eq!(kept[0].head(1), [&[0, 1, 2, 3][..], &last].concat());
}

#[test]
fn a_cascades_presets_are_rusts() {
    let rust = [lava::cascade::CascadeParams::default(), lava::cascade::CascadeParams::lava()];
    let c = unsafe { [lava_cascade_params_default(), lava_cascade_params_lava()] };
    for (c, rust) in c.into_iter().zip(rust) {
        assert_eq!((c.layers, c.evict_every.max(1) as usize), (rust.layers as i32, rust.evict_every.max(1)));
    }
    assert_eq!(c.map(|c| c.layers), [LAVA_LAYERS_GLOBAL, LAVA_LAYERS_ENTROPY]);
}

/// NULL in the place of any params is what the `_default` function gives, in every function that takes params.
#[test]
fn null_is_the_default() {
    let (layer, (scoring, selecting, cascading, attending)) = (layer(), defaults());
    let shape = &layer.shape;
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];

    // Scoring, its workspace, its statistics.
    let sizes = [null(), &raw const scoring]
        .map(|p| number(|n, e| unsafe { lava_score_workspace_size(shape, p, n, e) }).unwrap());
    assert_eq!(sizes[0], sizes[1]);
    let scores = score(shape, None, tensors, None, WHOLE).unwrap();
    assert_eq!(bits(&scores), bits(&score(shape, &scoring, tensors, None, WHOLE).unwrap()));
    assert_ne!(scores, layer.score().unwrap(), "LAVa as published is different");
    let stats = [null(), &raw const scoring].map(|p| {
        let (space, stats) = (Memory::new(sizes[0]), Memory::new(16 * HEADS.1));
        call(|e| unsafe {
            let (space, to) = (space.ptr(), stats.ptr());
            lava_attention_stats(shape, p, tensors[0], tensors[1], nothing(), 0, 1, space, sizes[0], to, e)
        })
        .unwrap();
        stats.to_vec::<u64>()
    });
    assert_eq!(stats[0], stats[1]);

    // Budgets.
    let layers = [*shape; 3];
    for ratio in [0.0, 0.05, 0.1, 0.5, 1.0] {
        assert_eq!(budget_from_ratio(shape, None, ratio), budget_from_ratio(shape, &selecting, ratio));
    }
    // What the sinks need.
    assert_eq!(budget_from_ratio(shape, None, 0.0), Ok(WINDOW as u32 + 4));
    let weights = [0.0, 1.0, 0.25];
    for total in [24, 100, 10_000] {
        let [null, default] =
            [None, Some(&selecting)].map(|p| layer_entries(&layers, p, &weights, total).unwrap());
        assert_eq!(null, default);
        assert!(null[0] >= 8, "sinks");
        let all = [&scores[..], &scores, &scores].concat();
        let [null, default] =
            [None, Some(&selecting)].map(|p| global_entries(&layers, p, &all, total).unwrap());
        assert_eq!(null, default);
    }

    // Selection.
    for n_entries in [8, 20, 60, 1000] {
        let [null, default] =
            [None, Some(&selecting)].map(|p| select(shape, p, &scores, n_entries).unwrap().rest);
        assert_eq!(null, default);
        assert_eq!(null.head(1)[..4], [0, 1, 2, 3]);
    }

    // The cascade: the same size, and the same rows after each push.
    let push_all = |params: Option<&lava_select_params>, cascade: Option<&lava_cascade_params>| {
        let state = Cascade::new(&layers, 90, params, cascade).unwrap();
        let kept = (0..3).map(|l| {
            // Of different sizes, so that the one sort gives the layers other shares than their entropies, which are alike.
            let of_layer: Vec<f32> = scores.iter().map(|s| s * [1.0, 4.0, 0.5][l]).collect();
            state.push(shape, &of_layer, None).unwrap();
            (0..=l).map(|l| (state.get(l, HEADS.1).rest, state.get(l, HEADS.1).cu_rows)).collect::<Vec<_>>()
        });
        (kept.collect::<Vec<_>>(), state.size)
    };
    let want = push_all(Some(&selecting), Some(&cascading));
    for (params, cascade) in [(None, None), (Some(&selecting), None), (None, Some(&cascading))] {
        assert_eq!(push_all(params, cascade), want);
    }

    // Attention.
    let n_rows = [TOKENS as u32, 40];
    let [null, default] = [None, Some(&attending)]
        .map(|p| attend(shape, p, WINDOW, tensors, &n_rows, WHOLE).unwrap())
        .map(|(out, lse)| (bits(&out), bits(&lse)));
    assert_eq!(null, default);
    let not_causal = lava_attend_params { causal: 0, ..attending };
    let other = attend(shape, &not_causal, WINDOW, tensors, &n_rows, WHOLE).unwrap();
    assert_ne!(bits(&other.0), null.0, "NULL is causal");
}

/// What the recommended preset is made of: docs/evaluation.md says why.
#[test]
fn the_recommended_preset() {
    let (scoring, selecting, cascading, attending) = defaults();
    assert_eq!((scoring.attention, scoring.value_weight), (LAVA_ATTENTION_MAX, LAVA_VALUE_NONE));
    assert_eq!(
        (scoring.pool, scoring.pool_kernel, scoring.group_reduce),
        (LAVA_POOL_AFTER, 6, LAVA_GROUP_MAX)
    );
    assert_eq!(scoring.smoothing, 0.5);
    assert_eq!((selecting.head_floor, selecting.alpha, selecting.n_sink), (LAVA_FLOOR_GUARANTEED, 0.2, 4));
    assert_eq!((cascading.layers, attending.causal), (LAVA_LAYERS_GLOBAL, 1));
    let (lava, published) = (score_params(), select_params());
    assert_eq!((lava.attention, lava.value_weight), (LAVA_ATTENTION_MEAN, LAVA_VALUE_HEAD_MAX));
    assert_eq!((published.head_floor, published.n_sink), (LAVA_FLOOR_NONE, 0));
}
