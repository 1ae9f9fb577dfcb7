//! Asking again: further queries joined by maximum, smoothing after that, queries turned to a position; and what of it keeps a fact that
//! the window does not look at.

use ffi_tests::oracle::{check_scores, scores, scores_by, scores_by_queries};
use ffi_tests::*;

/// Attention's maximum times the value's own norm, not pooled.
fn largest() -> lava_score_params {
    lava_score_params {
        attention: LAVA_ATTENTION_MAX,
        value_weight: LAVA_VALUE_TOKEN_L2,
        pool_kernel: 1,
        ..score_params()
    }
}

/// Joins what these queries say with the scores, each part with a workspace of its own.
fn ask(
    shape: &lava_shape,
    params: &lava_score_params,
    n_queries: u32,
    [q, k, v]: [&lava_tensor; 3],
    (n_parts, at_once): Split,
    scores: &Memory,
) -> Outcome<()> {
    let size = number(|to, e| unsafe { lava_score_queries_workspace_size(shape, params, n_queries, to, e) })?;
    in_parts(n_parts, at_once, |part| {
        let (workspace, to) = (Memory::new(size), scores.ptr());
        call(|e| unsafe {
            let space = workspace.ptr();
            lava_score_queries(shape, params, n_queries, q, k, v, part, n_parts, space, size, to, e)
        })
    })
}

fn larger(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a.max(*b)).collect()
}

#[test]
fn maximum_attention_own_norms_and_weights() {
    let weights = [0.5f32, 0.0, 2.0, 1.0, 0.0, 0.0];
    for (attention, value_weight) in [
        (LAVA_ATTENTION_MAX, LAVA_VALUE_TOKEN_L2),
        (LAVA_ATTENTION_MAX, LAVA_VALUE_HEAD_MAX),
        (LAVA_ATTENTION_NORM4, LAVA_VALUE_HEAD_MEAN_L2),
        (LAVA_ATTENTION_MEAN, LAVA_VALUE_TOKEN_L2),
        (LAVA_ATTENTION_MEAN, LAVA_VALUE_OUTPUT),
        (LAVA_ATTENTION_RECENCY, LAVA_VALUE_NONE),
    ] {
        for (pool, pool_kernel, group_reduce) in [
            (LAVA_POOL_MAX, 7, LAVA_GROUP_MAX),
            (LAVA_POOL_AVG, 7, LAVA_GROUP_MAX),
            (LAVA_POOL_AFTER, 8, LAVA_GROUP_MAX),
            (LAVA_POOL_AFTER, 5, LAVA_GROUP_MEAN),
        ] {
            for weights in [std::ptr::null(), weights.as_ptr()] {
                let mut layer = Layer::random(1, shape(140, (6, 2), (24, 10), 7));
                layer.params = lava_score_params {
                    attention,
                    value_weight,
                    pool,
                    pool_kernel,
                    group_reduce,
                    query_head_weights: weights,
                    ..score_params()
                };
                let what = format!("attention {attention}, value {value_weight}, pool {pool}");
                check_scores(&what, &layer.score().unwrap(), &scores(&layer));
            }
        }
    }
}

#[test]
fn further_queries_are_joined_by_maximum() {
    for (n_queries, sliding_window) in [(1, 0), (40, 0), (13, 50)] {
        for params in [largest(), score_params(), unsafe { lava_score_params_snapkv() }] {
            let mut layer = Layer::random(2, sliding(shape(150, (6, 2), (24, 10), 7), sliding_window));
            layer.params = params;
            let q = Grid::random(&mut Rng(9), n_queries, 6, 24);
            let want = larger(&scores(&layer), &scores_by_queries(&layer, &q));
            let rows = Rows::random(&mut Rng(3), &layer.shape);
            let evicted = Layer { shape: rows.of(layer.shape), ..Layer::random(2, layer.shape) };
            let evicted = Layer { params, ..evicted };
            let want_evicted = larger(&scores(&evicted), &scores_by_queries(&evicted, &q));
            let [asked, k, v] = [&q, &layer.k, &layer.v].map(Grid::lay);
            let [k_rows, v_rows] = [&layer.k, &layer.v].map(|grid| grid.lay_rows(&rows));
            let n = n_queries as u32;
            for split in [WHOLE, (3, false), (2, true)] {
                let got = Memory::of(&layer.score().unwrap());
                let tensors = [&asked.tensor(), &k.tensor(), &v.tensor()];
                ask(&layer.shape, &params, n, tensors, split, &got).unwrap();
                check_scores(&format!("{n} queries"), &got.to_vec::<f32>(), &want);
                // Again: the same bits.
                let before = got.to_vec::<u32>();
                ask(&layer.shape, &params, n, tensors, WHOLE, &got).unwrap();
                assert_eq!(got.to_vec::<u32>(), before);

                let got = Memory::of(&layer.score_rows(&rows).unwrap());
                let tensors = [&asked.tensor(), &k_rows.tensor(), &v_rows.tensor()];
                ask(&evicted.shape, &params, n, tensors, split, &got).unwrap();
                check_scores(&format!("{n} queries, evicted"), &got.to_vec::<f32>(), &want_evicted);
            }
        }
    }
}

/// Queries that stand inside the prompt see what is before them; those of the window's own positions are the window.
#[test]
fn further_queries_at_positions_of_their_own() {
    for (at, sliding_window) in [(vec![0u32, 7, 7, 90, 149], 0), (vec![60, 61, 150], 50)] {
        for params in [largest(), score_params()] {
            let mut layer = Layer::random(2, sliding(shape(150, (6, 2), (24, 10), 7), sliding_window));
            layer.params = params;
            let q = Grid::random(&mut Rng(9), at.len(), 6, 24);
            let asked = q.lay();
            let (k, v) = (layer.k.lay(), layer.v.lay());
            let by = |q: &Laid, at: &[u32], split: Split| {
                let scores = Memory::of(&vec![0f32; n_scores(&layer.shape)]);
                let positions = Memory::of(at);
                let n = at.len() as u32;
                let size = number(|to, e| unsafe {
                    lava_score_queries_workspace_size(&layer.shape, &params, n, to, e)
                })
                .unwrap();
                in_parts(split.0, split.1, |part| {
                    let workspace = Memory::new(size);
                    let (to, tensors) = (scores.ptr(), [q.tensor(), k.tensor(), v.tensor()]);
                    call(|e| unsafe {
                        let (shape, at, space) = (&layer.shape, positions.ptr(), workspace.ptr());
                        let [q, k, v] = &tensors;
                        lava_score_queries_at(
                            shape, &params, n, at, q, k, v, part, split.0, space, size, to, e,
                        )
                    })
                })
                .unwrap();
                scores.to_vec::<f32>()
            };
            for split in [WHOLE, (2, true)] {
                let want = scores_by(&layer, &q, &|j| at[j] as usize);
                check_scores(&format!("{at:?}"), &by(&asked, &at, split), &want);
            }
            let window: Vec<u32> = (143..150).collect();
            let own = by(&layer.q.lay(), &window, WHOLE);
            check_scores("the window's", &own, &scores(&layer));
        }
    }
}

/// Without a value weight V may be NULL.
#[test]
fn values_may_be_missing() {
    let layer = Layer::random(2, shape(30, (2, 2), (8, 8), 3));
    let params = lava_score_params { value_weight: LAVA_VALUE_NONE, ..largest() };
    let (q, k) = (layer.q.lay(), layer.k.lay());
    let size = number(|to, e| unsafe { lava_score_queries_workspace_size(&layer.shape, &params, 3, to, e) })
        .unwrap();
    let (workspace, to) = (Memory::new(size), Memory::of(&[0f32; 54]));
    call(|e| unsafe {
        let (q, k, v, space) = (&q.tensor(), &k.tensor(), nothing(), workspace.ptr());
        lava_score_queries(&layer.shape, &params, 3, q, k, v, 0, 1, space, size, to.ptr(), e)
    })
    .unwrap();
    assert!(to.to_vec::<f32>().iter().all(|&s| s > 0.0));
}

#[test]
fn smoothing_leaves_out_what_is_protected() {
    let shape = shape(9, (2, 2), (1, 1), 3);
    let scores = [8.0f32, 1.0, 2.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0];
    let smoothed = |params: Option<&lava_select_params>| {
        let own = Memory::of(&scores);
        let params = params.map_or(std::ptr::null(), |p| p);
        call(|e| unsafe { lava_smooth(&shape, params, 0.5, own.ptr(), e) }).unwrap();
        own.to_vec::<f32>()
    };
    let plus = |a: f32, b: f32| -> Vec<f32> {
        scores.iter().enumerate().map(|(i, s)| s + if i < 6 { a } else { b }).collect()
    };
    let mask = [0u8, 0, 0, 0, 0, 1];
    let none = select_params();
    assert_eq!(smoothed(Some(&none)), plus(1.5, 0.5));
    assert_eq!(smoothed(Some(&lava_select_params { n_sink: 1, ..none })), plus(1.0, 0.6));
    let masked = lava_select_params { n_sink: 1, protected_mask: mask.as_ptr(), ..none };
    assert_eq!(smoothed(Some(&masked)), plus(0.75, 0.0));
    assert_eq!(smoothed(Some(&lava_select_params { n_sink: 6, ..none })), plus(0.0, 0.0));
    // The recommended preset keeps four sinks.
    assert_eq!(smoothed(None), plus(1.0, 1.5));
    assert_eq!(smoothed(None), smoothed(Some(&unsafe { lava_select_params_default() })));
}

#[test]
fn clamps_and_two_stages() {
    let shape = shape(9, (2, 2), (1, 1), 3);
    let scores = [8.0f32, 1.0, 2.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0];
    let clamped = |n_sink| {
        let own = Memory::of(&scores);
        let params = lava_select_params { n_sink, ..select_params() };
        call(|e| unsafe { lava_clamp(&shape, &params, 1.0, own.ptr(), e) }).unwrap();
        own.to_vec::<f32>()
    };
    assert_eq!(clamped(0), [8.0, 3.0, 3.0, 3.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0]);
    assert_eq!(clamped(1), [8.0, 2.0, 2.0, 3.0, 2.0, 4.0, 1.2, 1.2, 1.2, 1.2, 1.2, 6.0]);

    // By another score: half of a head's sum, of equals the first; and no more than so many.
    let by = Memory::of(&[1.0f32, 3.0, 1.0, 3.0, 1.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]);
    let raised = |share, most: Option<[u32; 2]>| {
        let own = Memory::of(&scores);
        let most = most.map(|most| Memory::of(&most));
        let at = most.as_ref().map_or(std::ptr::null(), |m| m.ptr::<u32>());
        call(|e| unsafe { lava_raise(&shape, by.ptr(), share, at, own.ptr(), e) }).unwrap();
        let all = own.to_vec::<f32>();
        (0..12).filter(|&i| all[i] != scores[i]).map(|i| (i, all[i])).collect::<Vec<_>>()
    };
    assert_eq!(raised(0.5, None), [(1, 8.0), (3, 8.0), (8, 8.0)]);
    assert_eq!(raised(0.2, None), [(1, 8.0), (8, 8.0)]);
    assert_eq!(raised(0.5, Some([1, 0])), [(1, 8.0)]);
    assert_eq!(raised(1.0, Some([3, 2])), [(1, 8.0), (3, 8.0), (6, 8.0), (8, 8.0)]);
}

/// Cosines with the mean of all by plain f64, the most novel of each stretch, of equals the first.
#[test]
fn each_stretch_gives_its_most_novel_query() {
    let (n, heads, dim) = (23, 3, 8);
    let shape = shape(1, (heads, 1), (dim, 1), 1);
    let mut q = Grid::random(&mut Rng(6), n, heads, dim);
    // Rows 12 and 14 are the same, and unlike all others.
    for (h, c) in (0..heads).flat_map(|h| (0..dim).map(move |c| (h, c))) {
        (0..n).for_each(|j| q.set(j, h, c, q.row(j, h)[c] + 0.3));
        [12, 14].into_iter().for_each(|j| q.set(j, h, c, -1.0));
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let row = |j: usize, h: usize| q.row(j, h).iter().map(|&x| x as f64).collect::<Vec<f64>>();
    let cosine = |j: usize, h: usize| {
        let mean: Vec<f64> = (0..dim).map(|c| (0..n).map(|j| row(j, h)[c]).sum()).collect();
        dot(&row(j, h), &mean) / (dot(&row(j, h), &row(j, h)) * dot(&mean, &mean)).sqrt()
    };
    let want: Vec<f64> = (0..n).map(|j| -(0..heads).map(|h| cosine(j, h)).sum::<f64>()).collect();
    for n_picked in [1, 2, 5, n] {
        let laid = q.lay();
        let (novelty, picked) = (Memory::of(&vec![0f32; n]), Memory::of(&vec![0u32; n_picked]));
        call(|e| unsafe {
            let (n, n_picked) = (n as u32, n_picked as u32);
            lava_pick_queries(&shape, n, &laid.tensor(), n_picked, novelty.ptr(), picked.ptr(), e)
        })
        .unwrap();
        let novelty = novelty.to_vec::<f32>();
        assert!(novelty.iter().zip(&want).all(|(got, want)| (*got as f64 - want).abs() < 1e-5));
        let most = |i: usize| {
            let stretch = i * n / n_picked..(i + 1) * n / n_picked;
            stretch.fold(None, |m: Option<usize>, j| m.filter(|&m| novelty[m] >= novelty[j]).or(Some(j)))
        };
        let want: Vec<u32> = (0..n_picked).map(|i| most(i).unwrap() as u32).collect();
        assert_eq!(picked.to_vec::<u32>(), want);
        assert!(n_picked > 2 || want.contains(&12));
    }
}

/// Turned by plain f64, of which only some elements have frequencies.
#[test]
fn queries_are_turned() {
    let (n, heads, dim) = (3, 2, 10);
    let shape = shape(1, (heads, 1), (dim, 1), 1);
    let q = Grid::random(&mut Rng(4), n, heads, dim);
    let frequencies = [1.0f32, 0.25, 0.01];
    for (style, n_rot) in
        [(LAVA_ROPE_PAIRS, 6), (LAVA_ROPE_HALVES, 6), (LAVA_ROPE_HALVES, 4), (LAVA_ROPE_PAIRS, 0)]
    {
        for (position, magnitude) in [(0u32, 0.0f32), (1000, 1.0), (77, 1.25)] {
            let (from, out) = (q.lay(), Laid::empty(Layout::head_major(n, dim), n, heads, dim));
            let (from, to) = (from.tensor(), out.tensor());
            call(|e| unsafe {
                let f = frequencies.as_ptr();
                lava_rotate(&shape, n as u32, &from, f, n_rot, style, magnitude, position, &to, e)
            })
            .unwrap();
            let half = n_rot as usize / 2;
            for (r, h) in (0..n).flat_map(|r| (0..heads).map(move |h| (r, h))) {
                let mut want: Vec<f64> = q.row(r, h).iter().map(|&x| x as f64).collect();
                for (i, &frequency) in frequencies[..half].iter().enumerate() {
                    let (a, b) = if style == LAVA_ROPE_PAIRS { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    let (sin, cos) = (position as f64 * frequency as f64).sin_cos();
                    let size = if magnitude == 0.0 { 1.0 } else { magnitude as f64 };
                    (want[a], want[b]) =
                        (size * (want[a] * cos - want[b] * sin), size * (want[a] * sin + want[b] * cos));
                }
                let got = out.layout.row(&out.memory, r, h, dim);
                for (got, want) in got.iter().zip(&want) {
                    assert!((*got as f64 - want).abs() < 1e-6, "{got}, want {want}");
                }
            }
        }
    }
}

/// A fact that the prompt's last lines do not look at: the window gives it nothing, the query of its own topic, asked again, keeps it.
#[test]
fn what_is_asked_later_is_kept() {
    let (n, w, dim, fact) = (200, 4, 4, 50);
    let mut layer = Layer::random(5, shape(n, (1, 1), (dim, dim), w));
    layer.params = largest();
    let topic = [0.0f32, 12.0, 0.0, 0.0];
    let quiet = |grid: &mut Grid| grid.values.iter_mut().for_each(|x| *x *= 0.2);
    quiet(&mut layer.k);
    quiet(&mut layer.q);
    (0..dim).for_each(|c| layer.k.set(fact, 0, c, topic[c] / 2.0));
    (0..w).for_each(|j| layer.q.set(j, 0, 1, -0.3));
    let asked = Grid { rows: 1, heads: 1, dim, values: topic.to_vec() };
    let kept = |scores: &[f32]| select(&layer.shape, &select_params(), scores, 20).unwrap();
    let got = Memory::of(&layer.score().unwrap());
    assert!(!kept(&got.to_vec()).indices.contains(&(fact as u32)));
    let [q, k, v] = [&asked, &layer.k, &layer.v].map(Grid::lay);
    ask(&layer.shape, &layer.params, 1, [&q.tensor(), &k.tensor(), &v.tensor()], WHOLE, &got).unwrap();
    assert!(kept(&got.to_vec()).indices.contains(&(fact as u32)));
}
