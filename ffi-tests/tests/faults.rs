//! What goes wrong in an engine although every pointer is right: work that is dropped, memory that is used again, wrong counts,
//! threads that come late or not at all.

use ffi_tests::*;
use std::ffi::c_void;

const TOKENS: usize = 60;
const HEADS: (usize, usize) = (6, 3);
const DIMS: (usize, usize) = (8, 6);
const WINDOW: usize = 4;
const PREFIX: usize = TOKENS - WINDOW;

fn layer(seed: u64) -> Layer {
    Layer::random(seed, shape(TOKENS, HEADS, DIMS, WINDOW))
}

// A cascade dropped half way.

/// A state for `n_layers`, in its own memory or in what is given.
fn start(n_layers: u32, total: u64, memory: Option<Memory>) -> Memory {
    let (shape, params, cascade) = (layer(0).shape, select_params(), cascade_params());
    let (s, p, c) = (&raw const shape, &raw const params, &raw const cascade);
    let size =
        number(|size, e| unsafe { lava_cascade_state_size(s, 1, n_layers, total, p, c, size, e) }).unwrap();
    let memory = memory.unwrap_or_else(|| Memory::new(size));
    assert!(memory.len() >= size);
    let (state, size) = (memory.ptr(), memory.len());
    call(|e| unsafe { lava_cascade_init(s, 1, n_layers, total, p, c, state, size, e) }).unwrap();
    memory
}

fn push(state: &Memory, scores: &[f32]) {
    let (shape, none) = (layer(0).shape, nothing());
    call(|e| unsafe { lava_cascade_push(state.ptr(), state.len(), &shape, scores.as_ptr(), none, e) })
        .unwrap();
}

/// Positions and prefix sum of a layer.
fn kept(state: &Memory, layer: u32) -> (Vec<u32>, Vec<u32>) {
    let mut report = unsafe { lava_cascade_layer_init() };
    call(|e| unsafe { lava_cascade_get(state.ptr(), state.len(), layer, &mut report, e) }).unwrap();
    // SAFETY: the header's lengths, read before the next push.
    unsafe {
        let cu = std::slice::from_raw_parts(report.cu_kept, HEADS.1 + 1).to_vec();
        (std::slice::from_raw_parts(report.kept_indices, cu[HEADS.1] as usize).to_vec(), cu)
    }
}

#[test]
fn a_cascade_dropped_half_way_leaves_no_trace() {
    let scores: Vec<_> = (0..3).map(|l| layer(l).score().unwrap()).collect();
    let whole = start(3, 100, None);
    scores.iter().for_each(|s| push(&whole, s));

    // Other layers, another total, another number of layers; then the same memory for the real ones.
    let used = start(5, 170, None);
    (0..2).for_each(|i| push(&used, &scores[2 - i]));
    let again = start(3, 100, Some(used));
    scores.iter().for_each(|s| push(&again, s));
    (0..3).for_each(|l| assert_eq!(kept(&again, l), kept(&whole, l), "layer {l}"));
}

#[test]
fn copies_of_a_cascade_are_independent() {
    let scores: Vec<_> = (0..3).map(|l| layer(l).score().unwrap()).collect();
    let first = start(2, 80, None);
    push(&first, &scores[0]);
    let second = Memory::of(&first.to_vec::<u8>());
    let before = first.to_vec::<u8>();
    push(&second, &scores[2]);
    assert!(first.to_vec::<u8>() == before, "a push on a copy wrote the original");
    push(&first, &scores[1]);
    for (state, last) in [(&first, 1), (&second, 2)] {
        let whole = start(2, 80, None);
        [0, last].iter().for_each(|&l| push(&whole, &scores[l]));
        (0..2).for_each(|l| assert_eq!(kept(state, l), kept(&whole, l)));
    }
}

// A cache changed between score and select.

#[test]
fn a_cache_changed_after_scoring_is_compacted_as_it_is() {
    let mut layer = layer(1);
    let scores = layer.score().unwrap();
    let want = select(&layer.shape, &select_params(), &scores, 50).unwrap();
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    let again = score(&layer.shape, &layer.params, [&q.tensor(), &k.tensor(), &v.tensor()], None, WHOLE);
    assert_eq!(bits(&again.unwrap()), bits(&scores));

    // What is selected goes by the scores alone; the rows that move are those of now, NaN included.
    (0..TOKENS).for_each(|t| (0..HEADS.1).for_each(|h| layer.k.set(t, h, 0, t as f32)));
    layer.k.set(TOKENS - 1, 0, 1, f32::INFINITY);
    layer.k.lay().memory.to_vec::<f32>().iter().enumerate().for_each(|(i, &x)| k.memory.set(i, x));
    let kept = select(&layer.shape, &select_params(), &scores, 50).unwrap();
    assert_eq!((&kept.indices, &kept.cu), (&want.indices, &want.cu));
    let before = k.memory.to_vec::<u8>();
    let (src, rows) = ([&k.tensor(), &v.tensor()], (&kept.indices[..], &kept.cu[..]));
    compact(&layer.shape, src, None, rows, src, WHOLE).unwrap();
    check_rows("in place", &k.memory, &before, &[(&k.layout, &layer.k)], rows);
}

#[test]
fn scores_overwritten_before_selection_are_refused_or_selected_as_they_are() {
    let layer = layer(2);
    let mut scores = layer.score().unwrap();
    scores[PREFIX + 3] = f32::NAN;
    let refused = select(&layer.shape, &select_params(), &scores, 50).unwrap_err();
    assert_eq!((refused.status, refused.head), (LAVA_ERR_NONFINITE, Some(1)));
    scores.fill(0.0);
    let kept = select(&layer.shape, &select_params(), &scores, 50).unwrap();
    assert_eq!(kept.head(0)[..50], (0..50).collect::<Vec<u32>>());
}

/// Found by breaking it on purpose: a score that is not a number is only found after all sizes have been checked.
#[test]
fn a_selection_refused_for_its_scores_has_written_nothing() {
    let layer = layer(2);
    let (shape, params) = (&layer.shape, select_params());
    let size = number(|n, e| unsafe { lava_select_workspace_size(shape, n, e) }).unwrap();
    let n_kept = 50 + WINDOW * HEADS.1;
    let scores = Memory::of(&layer.score().unwrap());
    scores.set(3 * PREFIX - 1, f32::INFINITY);
    let (workspace, indices, cu) =
        (Memory::new(size), Memory::new(4 * n_kept), Memory::new(4 * (HEADS.1 + 1)));
    let mut report = unsafe { lava_selection_init() };
    report.n_kept = 9;
    let (from, space, to, to_cu) = (scores.ptr(), workspace.ptr(), indices.ptr(), cu.ptr());
    let (n, out) = (n_kept as u64, &raw mut report);
    let (rows, to_rows) = (Memory::new(4 * n_kept), nothing());
    for to_rows in [to_rows, rows.ptr()] {
        let got = call(|e| unsafe {
            lava_select(shape, &params, from, 50, space, size, to, n, to_cu, to_rows, out, e)
        });
        assert_eq!(got.unwrap_err().status, LAVA_ERR_NONFINITE);
        assert!([&indices, &cu, &rows].iter().all(|m| m.to_vec::<u8>().iter().all(|&b| b == POISON)));
        assert_eq!(report.n_kept, 9);
    }
}

// A workspace reused.

/// No result depends on what a workspace holds at first: poison, all ones, NaNs, or what other functions left.
#[test]
fn workspaces_are_used_again_by_all_functions() {
    let layer = layer(3);
    let shape = &layer.shape;
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(|g| g.lay());
    let tensors = [q.tensor(), k.tensor(), v.tensor()];
    let (params, select_params, attend_params) = (score_params(), select_params(), attend_params());
    let sizes = [
        number(|n, e| unsafe { lava_score_workspace_size(shape, &params, n, e) }).unwrap(),
        number(|n, e| unsafe { lava_select_workspace_size(shape, n, e) }).unwrap(),
        number(|n, e| unsafe { lava_entries_for_share_workspace_size(n, e) }).unwrap(),
        number(|n, e| unsafe { lava_attend_workspace_size(shape, WINDOW as u32, n, e) }).unwrap(),
    ];
    let one = Memory::new(sizes.into_iter().max().unwrap());
    let (n_kept, n_rows) = (50 + WINDOW * HEADS.1, [TOKENS as u32; HEADS.1]);
    let scores = layer.score().unwrap();

    // Every function in turn, each with the one workspace. All results of a round, as bytes.
    let round = || {
        let (space, size) = (one.ptr::<c_void>(), one.len());
        let to_scores = Memory::new(scores.len() * 4);
        let to = to_scores.ptr();
        let [q, k, v] = &tensors;
        let no_lse = nothing();
        call(|e| unsafe { lava_score(shape, &params, q, k, v, no_lse, 0, 1, space, size, to, e) }).unwrap();
        let (indices, cu) = (Memory::new(n_kept * 4), Memory::new((HEADS.1 + 1) * 4));
        let (to, n, to_cu) = (indices.ptr(), n_kept as u64, cu.ptr());
        call(|e| unsafe {
            let (from, none) = (to_scores.ptr(), nothing());
            lava_select(shape, &select_params, from, 50, space, size, to, n, to_cu, none, nothing(), e)
        })
        .unwrap();
        let n_entries = number(|n_entries, e| unsafe {
            lava_entries_for_share(shape, to_scores.ptr(), 0.1, space, size, n_entries, e)
        });
        let out = Laid::empty(Layout::token_major(HEADS.0, DIMS.1), WINDOW, HEADS.0, DIMS.1);
        let (tensor, rows) = (out.tensor(), n_rows.as_ptr());
        call(|e| unsafe {
            let n = WINDOW as u32;
            lava_attend(shape, &attend_params, n, q, k, v, rows, &tensor, no_lse, 0, 1, space, size, e)
        })
        .unwrap();
        let memories = [to_scores, indices, cu, out.memory];
        (memories.map(|m| m.to_vec::<u8>()), n_entries.unwrap())
    };
    let first = round();
    assert_eq!(first.0[0], Memory::of(&scores).to_vec::<u8>());
    let fills: [u8; 3] = [0xFF, 0x7F, 0];
    for fill in fills {
        (0..one.len()).for_each(|i| one.set(i, fill));
        assert!(round() == first, "a workspace full of {fill:#x}");
        assert!(round() == first, "a workspace as the last call left it");
    }
}

// Wrong counts.

#[test]
fn rows_that_a_cache_does_not_have_are_refused() {
    let layer = layer(4);
    let (k, v) = (layer.k.lay(), layer.v.lay());
    let before = k.memory.to_vec::<u8>();
    let src = [&k.tensor(), &v.tensor()];
    let ragged = |cu: &[u32], dim| Laid::empty(Layout::ragged(&cu[..HEADS.1], dim), 64, 1, dim);
    let n = TOKENS as u32;
    // What the source has, what is kept, which rows, and what that is.
    type Lie = (&'static str, [u32; 4], [u32; 4], Vec<u32>, lava_status);
    let lies: [Lie; 6] = [
        (
            "more source rows than memory",
            [0, n, 2 * n, 3 * n + 1],
            [0, 1, 2, 3],
            vec![0; 3],
            LAVA_ERR_BUFFER_SIZE,
        ),
        ("a head of no rows keeps one", [0, 0, n, 2 * n], [0, 1, 2, 3], vec![0; 3], LAVA_ERR_INDICES),
        ("rows descend", [0, n, 2 * n, 3 * n], [0, 2, 3, 3], vec![5, 4, 0], LAVA_ERR_INDICES),
        ("a row too many", [0, n, 2 * n, 3 * n], [0, 1, 2, 3], vec![0, 0, n], LAVA_ERR_INDICES),
        ("kept counts decrease", [0, n, 2 * n, 3 * n], [0, 3, 2, 3], vec![0; 3], LAVA_ERR_INDICES),
        ("source counts decrease", [0, n, n - 1, 3 * n], [0, 1, 2, 3], vec![0; 3], LAVA_ERR_INDICES),
    ];
    for (what, cu_rows, cu, rows, status) in lies {
        let (k_dst, v_dst) = (ragged(&[0, 20, 40], DIMS.0), ragged(&[0, 20, 40], DIMS.1));
        let dst = [&k_dst.tensor(), &v_dst.tensor()];
        let got = compact(&layer.shape, src, Some(&cu_rows), (&rows, &cu), dst, WHOLE);
        assert_eq!(got.expect_err(what).status, status, "{what}");
        assert!(
            k.memory.to_vec::<u8>() == before && k_dst.memory.to_vec::<u8>().iter().all(|&b| b == POISON)
        );
    }
}

/// Found by breaking it on purpose: heads of a ragged cache that share one row.
#[test]
fn heads_that_share_a_row_are_refused() {
    let layer = layer(4);
    let (k, v) = (layer.k.lay(), layer.v.lay());
    let (rows, cu) = ([0u32, 1, 0, 1, 0], [0u32, 2, 4, 5]);
    let v_start = [0u32, 2, 4];
    for (start, shared) in [([0u32, 2, 4], false), ([0, 1, 4], true), ([0, 2, 3], true), ([1, 0, 4], true)] {
        let ragged = |start: &[u32], dim| Laid::empty(Layout::ragged(start, dim), 6, 1, dim);
        let (k_dst, v_dst) = (ragged(&start, DIMS.0), ragged(&v_start, DIMS.1));
        let (src, dst) = ([&k.tensor(), &v.tensor()], [&k_dst.tensor(), &v_dst.tensor()]);
        let got = compact(&layer.shape, src, None, (&rows, &cu), dst, WHOLE);
        assert_eq!(got.err().map(|e| e.status), shared.then_some(LAVA_ERR_OVERLAP), "{start:?}");
    }
}

/// `lava_attend` believes the positions: they shape the mask and nothing else. Wrong ones give a wrong mask, never more.
#[test]
fn wrong_positions_only_change_the_mask() {
    let layer = layer(5);
    let sliding = lava_shape { sliding_window: 5, ..layer.shape };
    let (q, k, v) = (Grid::random(&mut Rng(6), 3, HEADS.0, DIMS.0).lay(), layer.k.lay(), layer.v.lay());
    let n_rows = [TOKENS as u32, 9, 30];
    let lies: [(&str, Vec<u32>, [u32; 4]); 4] = [
        ("descend", (0..40).rev().collect(), [0, 20, 30, 40]),
        ("all the same", vec![7; 40], [0, 20, 30, 40]),
        ("far beyond the text", vec![u32::MAX; 40], [0, 20, 30, 40]),
        ("more than there are rows", (0..80).collect(), [0, 0, 50, 80]),
    ];
    for (what, kept, cu) in lies {
        for (causal, n_base) in [(0, 0), (1, 0), (1, u32::MAX)] {
            let mut params = attend_params();
            (params.causal, params.n_base) = (causal, n_base);
            (params.kept_indices, params.cu_kept) = (kept.as_ptr(), cu.as_ptr());
            let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
            let (out, _) = attend(&sliding, &params, 3, tensors, &n_rows, WHOLE).expect(what);
            // Weights are at most 1 and values below 2, whatever is seen.
            assert!(out.iter().all(|x| x.abs() <= 2.0), "{what}");
        }
    }
}

#[test]
fn a_state_of_another_size_is_refused_or_does_not_matter() {
    let scores = layer(6).score().unwrap();
    let state = start(2, 80, None);
    let before = state.to_vec::<u8>();
    for short in [0, 16, 64, 128, state.len() / 2, state.len() - 64] {
        let (shape, none) = (layer(6).shape, nothing());
        let got =
            call(|e| unsafe { lava_cascade_push(state.ptr(), short, &shape, scores.as_ptr(), none, e) });
        assert_eq!(got.unwrap_err().status, LAVA_ERR_WORKSPACE, "{short} of {} bytes", state.len());
        assert!(state.to_vec::<u8>() == before);
    }
    // More than was asked for.
    let larger = start(2, 80, Some(Memory::new(state.len() + 4096)));
    for state in [&state, &larger] {
        push(state, &scores);
    }
    assert_eq!(kept(&state, 0), kept(&larger, 0));
}

// Threads that come late.

/// Parts in any order, and one that is missing: its heads are unchanged, all others are done. It may come later.
#[test]
fn a_part_that_is_missing_leaves_its_heads_and_may_come_later() {
    let layer = layer(7);
    let shape = &layer.shape;
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(|g| g.lay());
    let tensors = [q.tensor(), k.tensor(), v.tensor()];
    let params = score_params();
    let size = number(|n, e| unsafe { lava_score_workspace_size(shape, &params, n, e) }).unwrap();
    let whole = layer.score().unwrap();
    let kept = select(shape, &select_params(), &whole, 50).unwrap();
    let rows = (&kept.indices[..], &kept.cu[..]);
    for missing in 0..3 {
        let order = [(missing + 2) % 3, (missing + 1) % 3];
        let scores = Memory::new(whole.len() * 4);
        let part = |part: usize| {
            let (workspace, to) = (Memory::new(size), scores.ptr());
            let [q, k, v] = &tensors;
            let (space, part) = (workspace.ptr(), part as u32);
            call(|e| unsafe { lava_score(shape, &params, q, k, v, nothing(), part, 3, space, size, to, e) })
                .unwrap();
        };
        order.into_iter().for_each(part);
        let own = missing * PREFIX..(missing + 1) * PREFIX;
        let poison = u32::from_ne_bytes([POISON; 4]);
        for (i, (got, want)) in scores.to_vec::<u32>().into_iter().zip(bits(&whole)).enumerate() {
            assert_eq!(got, if own.contains(&i) { poison } else { want }, "part {missing} missing, {i}");
        }
        part(missing);
        assert_eq!(scores.to_vec::<u32>(), bits(&whole));

        // In place: the missing part's heads have not moved, the others have.
        let (k, v) = (layer.k.lay(), layer.v.lay());
        let t = [&k.tensor(), &v.tensor()];
        let before = k.memory.to_vec::<u8>();
        let move_part = |part: usize| {
            let (rows, cu, part) = (kept.indices.as_ptr(), kept.cu.as_ptr(), part as u32);
            call(|e| unsafe { lava_compact(shape, t[0], t[1], nothing(), rows, cu, t[0], t[1], part, 3, e) })
                .unwrap();
        };
        order.into_iter().for_each(move_part);
        for token in 0..TOKENS {
            assert_eq!(k.layout.row(&k.memory, token, missing, DIMS.0), layer.k.row(token, missing));
        }
        move_part(missing);
        check_rows("late", &k.memory, &before, &[(&k.layout, &layer.k)], rows);
    }
}

/// The same for attention: one of three parts, the others' outputs untouched.
#[test]
fn a_part_of_attention_writes_its_own_query_heads() {
    let layer = layer(8);
    let shape = &layer.shape;
    let (q, k, v) = (Grid::random(&mut Rng(9), 2, HEADS.0, DIMS.0).lay(), layer.k.lay(), layer.v.lay());
    let tensors = [q.tensor(), k.tensor(), v.tensor()];
    let (params, n_rows) = (attend_params(), [TOKENS as u32; HEADS.1]);
    let size = number(|n, e| unsafe { lava_attend_workspace_size(shape, 2, n, e) }).unwrap();
    for part in 0..3 {
        let result = |dim| Laid::empty(Layout::token_major(HEADS.0, dim), 2, HEADS.0, dim);
        let (out, lse, workspace) = (result(DIMS.1), result(1), Memory::new(size));
        let (to, to_lse, rows, space) = (out.tensor(), lse.tensor(), n_rows.as_ptr(), workspace.ptr());
        let [q, k, v] = &tensors;
        call(|e| unsafe {
            lava_attend(shape, &params, 2, q, k, v, rows, &to, &to_lse, part as u32, 3, space, size, e)
        })
        .unwrap();
        for (laid, dim) in [(&out, DIMS.1), (&lse, 1)] {
            for (t, h) in (0..2).flat_map(|t| (0..HEADS.0).map(move |h| (t, h))) {
                let untouched = laid
                    .layout
                    .row(&laid.memory, t, h, dim)
                    .iter()
                    .all(|x| x.to_bits() == u32::from_ne_bytes([POISON; 4]));
                assert_eq!(untouched, h / 2 != part, "part {part}, query {t}, head {h}");
            }
        }
    }
}
