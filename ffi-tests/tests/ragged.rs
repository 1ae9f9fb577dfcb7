//! A cache that has been compressed before is scored, budgeted, selected from and compacted again, by its rows and their positions.

use ffi_tests::oracle::{check_scores, scores};
use ffi_tests::*;

const TOKENS: usize = 130;
const HEADS: (usize, usize) = (6, 3);
const DIMS: (usize, usize) = (20, 12);
const WINDOW: usize = 5;
const PREFIX: usize = TOKENS - WINDOW;

fn layer() -> Layer {
    Layer::random(3, shape(TOKENS, HEADS, DIMS, WINDOW))
}

/// All rows; some, a different number per head; of one head only the window.
fn caches() -> Vec<(&'static str, Rows)> {
    let (dense, rng) = (layer().shape, &mut Rng(9));
    let all: Vec<u32> = (0..TOKENS as u32).collect();
    let window = all[PREFIX..].to_vec();
    let mut some = move || Rows::random(rng, &dense);
    let every_third: Vec<u32> = all.iter().copied().filter(|&p| p % 3 == 0 || p >= PREFIX as u32).collect();
    vec![
        ("all rows", Rows::new(&[all.clone(), all.clone(), all])),
        ("some rows", some()),
        ("other rows", some()),
        ("a head of the window alone", Rows::new(&[every_third.clone(), window.clone(), every_third])),
        ("windows alone", Rows::new(&[window.clone(), window.clone(), window])),
    ]
}

/// The scores of a compressed cache are those of the method over the rows that it has.
#[test]
fn scores_of_a_compressed_cache() {
    let presets = unsafe {
        [
            ("LAVa", lava_score_params_lava()),
            ("recommended", lava_score_params_default()),
            ("CAKE", lava_score_params_cake(200.0)),
            ("StreamingLLM", lava_score_params_streaming()),
            ("CAOTE", lava_score_params_caote()),
            ("ReST-KV", lava_score_params_rest_kv(0.3)),
        ]
    };
    let sinks = [1.0f32, 0.0, -2.0, 5.0, 0.5, 2.0];
    for ((name, params), (what, rows)) in
        presets.into_iter().flat_map(|p| caches().into_iter().map(move |c| (p, c)))
    {
        for (keys, with_sinks, smoothing) in
            [(0, false, 0.0), (40, false, 0.2), (0, true, 0.0), (3, false, 0.0)]
        {
            // What evicting does to the output depends on all rows that are seen, live or dead.
            let mut layer = layer();
            (layer.params, layer.shape.sliding_window) = (lava_score_params { smoothing, ..params }, keys);
            if with_sinks {
                layer.params.sink_logits = sinks.as_ptr();
            }
            let got = layer.score_rows(&rows).unwrap_or_else(|e| panic!("{name}, {what}: {e:?}"));
            layer.shape = rows.of(layer.shape);
            check_scores(&format!("{name}, {what}, {keys} keys, sinks {with_sinks}"), &got, &scores(&layer));
        }
    }
}

/// Heads that all lost the same tokens have the scores of a prompt that never had them. (Keys already include RoPE: positions matter
/// only with a sliding window.)
#[test]
fn heads_that_lost_the_same_tokens_score_as_a_dense_cache() {
    let dense = layer();
    let kept: Vec<u32> = (0..TOKENS as u32).filter(|&p| p % 4 != 1 || p >= PREFIX as u32).collect();
    let rows = Rows::new(&[kept.clone(), kept.clone(), kept.clone()]);
    let got = dense.score_rows(&rows).unwrap();
    let pick = |grid: &Grid| {
        let values = kept.iter().flat_map(|&t| (0..grid.heads).map(move |h| (t, h)));
        let values = values.flat_map(|(t, h)| grid.row(t as usize, h).to_vec()).collect();
        Grid { rows: kept.len(), values, ..grid.clone() }
    };
    let (k, v) = (pick(&dense.k), pick(&dense.v));
    let shorter = shape(kept.len(), HEADS, DIMS, WINDOW);
    let want = Layer { shape: shorter, params: dense.params, q: dense.q.clone(), k, v };
    let want: Vec<f64> = want.score().unwrap().into_iter().map(f64::from).collect();
    check_scores("the same tokens", &got, &want);
}

/// The whole way twice: score, select, compact, and then the same from what is left.
#[test]
fn compressing_again() {
    let mut layer = layer();
    layer.params = unsafe { lava_score_params_default() };
    let params = lava_select_params { n_sink: 2, ..select_params() };
    let (mut k, mut v) = (layer.k.lay(), layer.v.lay());
    let mut rows: Option<Rows> = None;
    for n_entries in [150u64, 60, 7] {
        let shape = rows.as_ref().map_or(layer.shape, |rows| rows.of(layer.shape));
        let q = layer.q.lay();
        let got = score(&shape, &layer.params, [&q.tensor(), &k.tensor(), &v.tensor()], None, WHOLE).unwrap();
        let of_rows =
            Layer { shape, params: layer.params, q: layer.q.clone(), k: layer.k.clone(), v: layer.v.clone() };
        check_scores("again", &got, &scores(&of_rows));
        let kept = select(&shape, &params, &got, n_entries).unwrap();
        assert_eq!(kept.report.n_entries, n_entries);
        let (entropy, mass) = entropy(&shape, &got).unwrap();
        assert!(entropy > 0.0 && entropy < 1.0);
        assert_eq!(mass, kept.report.mass);
        let counts: Vec<u32> = kept.cu.windows(2).map(|c| c[1] - c[0]).collect();

        // Rows are numbers within the cache as it is; positions are those in the text.
        let ragged = |dim| Laid::empty(Layout::ragged(&kept.cu[..HEADS.1], dim), kept.indices.len(), 1, dim);
        let (to_k, to_v) = (ragged(DIMS.0), ragged(DIMS.1));
        let (src, dst) = ([&k.tensor(), &v.tensor()], [&to_k.tensor(), &to_v.tensor()]);
        // The shape itself says which rows the source has.
        compact(&shape, src, None, (&kept.rows, &kept.cu), dst, (2, true)).unwrap();
        for (laid, grid) in [(&to_k, &layer.k), (&to_v, &layer.v)] {
            for (h, &n) in counts.iter().enumerate() {
                for r in 0..n as usize {
                    let token = kept.head(h)[r] as usize;
                    assert_eq!(laid.layout.row(&laid.memory, r, h, grid.dim), grid.row(token, h));
                }
            }
        }
        (k, v) = (to_k, to_v);
        rows = Some(Rows { cu: kept.cu.clone(), positions: kept.indices.clone() });
    }
}

/// Which rows and positions are kept if the cache has gaps already.
#[test]
fn rows_and_positions_differ() {
    let shape = shape(10, (2, 2), (2, 2), 2);
    let rows = Rows::new(&[vec![1, 4, 6, 8, 9], vec![0, 2, 3, 7, 8, 9]]);
    let shape = rows.of(shape);
    assert_eq!(n_scores(&shape), 7);
    let scores = [3.0, 1.0, 2.0, 0.5, 9.0, 0.0, 4.0f32];
    let kept = select(&shape, &select_params(), &scores, 4).unwrap();
    assert_eq!(
        (&kept.indices[..], &kept.rows[..]),
        (&[1, 6, 8, 9, 2, 7, 8, 9][..], &[0, 2, 3, 4, 1, 3, 4, 5][..])
    );
    assert_eq!(kept.cu, [0, 4, 8]);
    // Sinks and masks go by positions: head 0 has lost token 0.
    let params = lava_select_params { n_sink: 2, ..select_params() };
    assert_eq!(select(&shape, &params, &scores, 2).unwrap().indices, [1, 8, 9, 0, 8, 9]);
    let mask = [0u8, 0, 0, 0, 1, 0, 0, 1];
    let params = lava_select_params { protected_mask: mask.as_ptr(), ..select_params() };
    assert_eq!(select(&shape, &params, &scores, 2).unwrap().indices, [4, 8, 9, 7, 8, 9]);
    assert_eq!(select(&shape, &params, &scores, 1).unwrap_err().status, LAVA_ERR_BUDGET);
    // And so does what later queries see: positions 6 to 9.
    let seen = sliding(shape, 5);
    let kept = select(&seen, &select_params(), &scores, 10).unwrap();
    assert_eq!((&kept.indices[..], kept.report.everything_kept), (&[6, 8, 9, 7, 8, 9][..], 1));
    assert_eq!(total_entries(&[seen], 10), Ok(2));
    assert_eq!(total_entries(&[shape], 4), Ok(4));
}

/// A budget of all layers over caches that have been compressed before: `lava_n_scores` and the workspaces follow the rows.
#[test]
fn a_cascade_over_compressed_caches() {
    let layers: Vec<(Layer, Rows)> = caches()
        .into_iter()
        .enumerate()
        .map(|(l, (_, rows))| (Layer::random(l as u64, layer().shape), rows))
        .collect();
    let shapes: Vec<_> = layers.iter().map(|(layer, rows)| rows.of(layer.shape)).collect();
    let scores: Vec<_> = layers.iter().map(|(layer, rows)| layer.score_rows(rows).unwrap()).collect();
    let cascade = Cascade::new(&shapes, 90, None, None).unwrap();
    shapes.iter().zip(&scores).for_each(|(shape, scores)| cascade.push(shape, scores, None).unwrap());
    let (entries, heads) = global_entries(&shapes, None, &scores.concat(), 90).unwrap();
    assert_eq!(entries.iter().sum::<u64>(), 90);
    for (l, shape) in shapes.iter().enumerate() {
        let own = heads[l * HEADS.1..].as_ptr();
        let params = lava_select_params { head_weights: own, ..unsafe { lava_select_params_default() } };
        let want = select(shape, &params, &scores[l], entries[l]).unwrap();
        assert_eq!(cascade.get(l, HEADS.1).indices, want.indices, "layer {l}");
    }
}

/// Rows and positions that contradict the shape are refused by every function that looks at them.
#[test]
fn wrong_rows_are_refused() {
    type Answer = fn(&lava_shape) -> Outcome<()>;
    let functions: [(&str, Answer); 12] = [
        ("score_workspace_size", |s| {
            number(|n, e| unsafe { lava_score_workspace_size(s, nothing(), n, e) }).map(drop)
        }),
        ("score", |s| {
            let t = nothing();
            call(|e| unsafe { lava_score(s, nothing(), t, t, t, t, 0, 1, nothing(), 0, nothing(), e) })
        }),
        ("entropy", |s| entropy(s, &[1.0; 20]).map(drop)),
        ("n_kept", |s| number(|n, e| unsafe { lava_n_kept(s, 5, n, e) }).map(drop)),
        ("select_workspace_size", |s| {
            number(|n, e| unsafe { lava_select_workspace_size(s, n, e) }).map(drop)
        }),
        ("entries_for_share", |s| entries_for_share(s, &[1.0; 20], 0.1).map(drop)),
        ("budget_from_ratio", |s| budget_from_ratio(s, None, 0.5).map(drop)),
        ("total_entries", |s| total_entries(&[*s], 9).map(drop)),
        ("layer_entries", |s| layer_entries(&[*s], None, &[1.0], 9).map(drop)),
        ("global_entries", |s| global_entries(&[*s], None, &[1.0; 20], 9).map(drop)),
        ("cascade", |s| Cascade::new(&[*s], 9, None, None).map(drop)),
        ("push", |s| call(|e| unsafe { lava_cascade_push(nothing(), 0, s, nothing(), nothing(), e) })),
    ];
    let good: [Vec<u32>; 2] = [vec![1, 4, 6, 8, 9], vec![0, 2, 3, 7, 8, 9]];
    let with = |change: &dyn Fn(&mut Vec<u32>, &mut Vec<u32>)| {
        let mut rows = Rows::new(&good);
        change(&mut rows.cu, &mut rows.positions);
        rows
    };
    let lies: [(&str, Rows, &str, Option<u32>); 9] = [
        ("begins after 0", with(&|cu, _| cu[0] = 1), "cu_rows", None),
        ("decreases", with(&|cu, _| cu[1] = 12), "cu_rows", None),
        ("fewer rows than the window", with(&|cu, _| cu[1] = 1), "cu_rows", Some(0)),
        ("descends", with(&|_, p| p.swap(0, 1)), "positions", Some(0)),
        ("a position twice", with(&|_, p| p[6] = 0), "positions", Some(1)),
        ("beyond the text", with(&|_, p| p[10] = 10), "positions", Some(1)),
        ("far beyond the text", with(&|_, p| p[4] = u32::MAX), "positions", Some(0)),
        ("a gap in the window", with(&|_, p| (p[8], p[9]) = (6, 7)), "positions", Some(1)),
        ("the window's first is missing", with(&|_, p| p[3] = 7), "positions", Some(0)),
    ];
    let dense = lava_shape { layer: 4, ..shape(10, (2, 2), (2, 2), 2) };
    for (name, answer) in functions {
        let array = ["total_entries", "layer_entries", "global_entries", "cascade"].contains(&name);
        let layer = Some(if array { 0 } else { 4 });
        for (what, rows, argument, head) in &lies {
            let refused = answer(&rows.of(dense)).expect_err(name);
            let told = (refused.status, refused.argument.as_str(), refused.layer, refused.head);
            assert_eq!(told, (LAVA_ERR_INDICES, *argument, layer, *head), "{name}: {what}");
        }
        let no_positions = lava_shape { positions: std::ptr::null(), ..Rows::new(&good).of(dense) };
        let cu = Rows::new(&good).cu;
        let refused = answer(&lava_shape { cu_rows: cu.as_ptr(), ..no_positions }).expect_err(name);
        assert_eq!((refused.status, refused.argument.as_str()), (LAVA_ERR_NULL, "positions"), "{name}");
    }
    // One set of tokens for all heads needs heads that have the same tokens.
    let rows = Rows::new(&good);
    let refused = call(|e| unsafe { lava_mean_over_heads(&rows.of(dense), [1.0f32; 20].as_mut_ptr(), e) });
    assert_eq!(refused.unwrap_err().status, LAVA_ERR_UNSUPPORTED);
}

/// The parts of a ragged layer are its heads too: the same bits for every split.
#[test]
fn parts_of_a_compressed_cache() {
    let layer = layer();
    for (what, rows) in caches() {
        let [k, v] = [&layer.k, &layer.v].map(|grid| grid.lay_rows(&rows));
        let (shape, q) = (rows.of(layer.shape), layer.q.lay());
        let of = |split| {
            let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
            bits(&score(&shape, &layer.params, tensors, None, split).unwrap())
        };
        let whole = of(WHOLE);
        for split in [(2, false), (3, true), (7, true)] {
            assert_eq!(of(split), whole, "{what}, {split:?}");
        }
    }
}
