//! A tensor's layout and element type change where things are, never the results.

use ffi_tests::*;

const TOKENS: usize = 70;
const HEADS: (usize, usize) = (6, 3);
const DIMS: (usize, usize) = (20, 12);
const WINDOW: usize = 5;

fn layer() -> Layer {
    Layer::random(3, shape(TOKENS, HEADS, DIMS, WINDOW))
}

/// Layouts of `[rows, heads, dim]` from element `first` on.
fn dense(rows: usize, heads: usize, dim: usize) -> Vec<(&'static str, Layout)> {
    vec![
        ("token-major", Layout::token_major(heads, dim)),
        ("head-major", Layout::head_major(rows, dim)),
        ("transposed", Layout::transposed(rows, dim)),
        ("padded tokens", Layout::strides(heads * dim + 7, dim, 1)),
        ("padded heads", Layout::strides(heads * (dim + 3), dim + 3, 1)),
        ("spread elements", Layout::strides(heads * dim * 2, dim * 2, 2)),
        ("padded head-major", Layout::strides(dim + 5, rows * (dim + 5) + 11, 1)),
        ("after something else", Layout::token_major(heads, dim).from(13)),
        ("ragged", Layout::ragged(&(0..heads).map(|h| (h * (rows + 2)) as u32).collect::<Vec<_>>(), dim)),
    ]
}

/// Lays a grid out; ragged layouts have all heads in one column of rows.
fn lay(layout: Layout, grid: &Grid) -> Laid {
    match layout.row_start.clone() {
        None => Laid::new(layout, grid),
        Some(start) => {
            let rows = *start.last().unwrap() as usize + grid.rows;
            let laid = Laid::empty(layout, rows, 1, grid.dim);
            laid.layout.fill(&laid.memory, grid);
            laid
        }
    }
}

#[test]
fn scores_do_not_depend_on_the_layout_or_the_element_type() {
    let layer = layer();
    let want = layer.score().unwrap();
    let all = |grid: &Grid| {
        let layouts = dense(grid.rows, grid.heads, grid.dim);
        let mut laid = Vec::new();
        for dtype in [LAVA_F32, LAVA_F16, LAVA_BF16] {
            laid.extend(layouts.iter().map(|(name, l)| (*name, dtype, lay(l.clone().of(dtype), grid))));
        }
        laid
    };
    let (q, k, v) = (all(&layer.q), all(&layer.k), all(&layer.v));
    let n = q.len();
    // Each of q, k, v goes through all kinds; the other two are always of a different one.
    for i in 0..n {
        let chosen = [&q[i], &k[(i + 5) % n], &v[(i + 11) % n]];
        let [q, k, v] = chosen.map(|c| c.2.tensor());
        let got = score(&layer.shape, &layer.params, [&q, &k, &v], None, WHOLE).unwrap();
        assert_eq!(got, want, "{:?}", chosen.map(|c| (c.0, c.1)));
    }
}

#[test]
fn scores_of_keys_and_values_in_one_buffer() {
    let layer = layer();
    let (want, q) = (layer.score().unwrap(), layer.q.lay());
    for (name, memory, k, v) in interleaved(TOKENS, HEADS.1, DIMS) {
        k.fill(&memory, &layer.k);
        v.fill(&memory, &layer.v);
        let (k, v) = (k.tensor(&memory), v.tensor(&memory));
        assert_eq!(
            score(&layer.shape, &layer.params, [&q.tensor(), &k, &v], None, WHOLE).unwrap(),
            want,
            "{name}"
        );
    }
}

/// K and V in one buffer, in the ways engines do it.
fn interleaved(
    rows: usize,
    heads: usize,
    (dk, dv): (usize, usize),
) -> Vec<(&'static str, Memory, Layout, Layout)> {
    let both = dk + dv;
    let by = |name, token, head, v_first| {
        let k = Layout::strides(token, head, 1);
        let v = k.clone().from(v_first);
        (name, Memory::new(rows * heads * both * 4), k, v)
    };
    // Where one head stride must serve both tensors, the wider of the two sets it.
    let wide = dk.max(dv);
    let fused = |name| {
        let k = Layout::strides(2 * heads * wide, wide, 1);
        (name, Memory::new(rows * heads * 2 * wide * 4), k.clone(), k.from(heads * wide))
    };
    vec![
        by("[tokens, heads, k|v]", heads * both, both, dk),
        by("[heads, tokens, k|v]", both, rows * both, dk),
        fused("[tokens, k heads|v heads]"),
    ]
}

/// Kept rows of each head: only the window, a few, many. Ascending.
fn kept(counts: [usize; 3]) -> (Vec<u32>, Vec<u32>) {
    let rng = &mut Rng(4);
    let (mut rows, mut cu) = (Vec::new(), vec![0]);
    for n in counts {
        let mut all: Vec<u32> = (0..TOKENS as u32).collect();
        while all.len() > n {
            all.remove(rng.below(all.len() as u64) as usize);
        }
        rows.extend(all);
        cu.push(rows.len() as u32);
    }
    (rows, cu)
}

const COUNTS: [[usize; 3]; 6] =
    [[5, 31, 64], [1, 1, 1], [1, 2, 40], [0, 0, 3], [0, 0, 0], [TOKENS, TOKENS, TOKENS]];

#[test]
fn compaction_out_of_place_writes_the_kept_rows_and_nothing_else() {
    let layer = layer();
    for counts in COUNTS {
        let (rows, cu) = kept(counts);
        let most = counts.into_iter().max().unwrap().max(1);
        // Ragged without gaps, ragged with room after each head, and the dense ones.
        let room: Vec<u32> = cu.iter().enumerate().map(|(h, &c)| c + 9 * h as u32).collect();
        let targets = |dim: usize| {
            let ragged = |name, start: &[u32]| {
                (name, Laid::empty(Layout::ragged(start, dim), start[2] as usize + most + 9, 1, dim))
            };
            let mut targets = vec![ragged("ragged", &cu), ragged("reserve", &room)];
            for (name, layout) in dense(most, HEADS.1, dim).into_iter().filter(|l| l.1.row_start.is_none()) {
                targets.push((name, Laid::empty(layout, most, HEADS.1, dim)));
            }
            targets
        };
        let (k, v) = (layer.k.lay(), layer.v.lay());
        let (k_targets, v_targets) = (targets(DIMS.0), targets(DIMS.1));
        for (i, (name, k_dst)) in k_targets.iter().enumerate() {
            // V goes to another layout than K.
            let (v_name, v_dst) = &v_targets[(i + 3) % v_targets.len()];
            let what = format!("{counts:?} {name}/{v_name}");
            [k_dst, v_dst].into_iter().for_each(|d| d.memory.poison());
            let dst = [&k_dst.tensor(), &v_dst.tensor()];
            let src = [&k.tensor(), &v.tensor()];
            compact(&layer.shape, src, None, (&rows, &cu), dst, WHOLE).expect(&what);
            for (dst, grid) in [(k_dst, &layer.k), (v_dst, &layer.v)] {
                let poison = vec![POISON; dst.memory.len()];
                check_rows(&what, &dst.memory, &poison, &[(&dst.layout, grid)], (&rows, &cu));
            }
        }
    }
}

#[test]
fn compaction_in_place_moves_each_head_to_its_front() {
    let layer = layer();
    for counts in COUNTS {
        let (rows, cu) = kept(counts);
        for dtype in [LAVA_F32, LAVA_F16, LAVA_BF16] {
            let layouts = dense(TOKENS, HEADS.1, DIMS.0).into_iter().zip(dense(TOKENS, HEADS.1, DIMS.1));
            for ((name, k), (_, v)) in layouts {
                let what = format!("{counts:?} {name} {dtype}");
                let (k, v) = (lay(k.of(dtype), &layer.k), lay(v.of(dtype), &layer.v));
                let before = [&k, &v].map(|t| t.memory.to_vec::<u8>());
                let (kt, vt) = (&k.tensor(), &v.tensor());
                compact(&layer.shape, [kt, vt], None, (&rows, &cu), [kt, vt], (3, true)).expect(&what);
                check_rows(&what, &k.memory, &before[0], &[(&k.layout, &layer.k)], (&rows, &cu));
                check_rows(&what, &v.memory, &before[1], &[(&v.layout, &layer.v)], (&rows, &cu));
            }
        }
    }
}

#[test]
fn compaction_in_place_of_keys_and_values_in_one_buffer() {
    let layer = layer();
    for counts in COUNTS {
        let (rows, cu) = kept(counts);
        for (name, memory, k, v) in interleaved(TOKENS, HEADS.1, DIMS) {
            let what = format!("{counts:?} {name}");
            k.fill(&memory, &layer.k);
            v.fill(&memory, &layer.v);
            let before = memory.to_vec::<u8>();
            let (kt, vt) = (&k.tensor(&memory), &v.tensor(&memory));
            compact(&layer.shape, [kt, vt], None, (&rows, &cu), [kt, vt], WHOLE).expect(&what);
            check_rows(&what, &memory, &before, &[(&k, &layer.k), (&v, &layer.v)], (&rows, &cu));
        }
    }
}

#[test]
fn compaction_to_interleaved_keys_and_values() {
    let layer = layer();
    for counts in COUNTS {
        let (rows, cu) = kept(counts);
        for (name, memory, k, v) in interleaved(TOKENS, HEADS.1, DIMS) {
            let (what, before) = (format!("{counts:?} {name}"), memory.to_vec::<u8>());
            let (k_src, v_src) = (layer.k.lay(), layer.v.lay());
            let src = [&k_src.tensor(), &v_src.tensor()];
            compact(&layer.shape, src, None, (&rows, &cu), [&k.tensor(&memory), &v.tensor(&memory)], WHOLE)
                .expect(&what);
            check_rows(&what, &memory, &before, &[(&k, &layer.k), (&v, &layer.v)], (&rows, &cu));
        }
    }
}

/// A compressed cache is compressed again, its heads closing ranks: every row moves to the front or stays.
#[test]
fn compaction_of_a_ragged_cache_forward_in_place() {
    let layer = layer();
    let shape = layer.shape;
    let (all, first) = ((layer.k.lay(), layer.v.lay()), kept([20, 40, 60]));
    // Every other row of what is left.
    let mut second = (Vec::new(), vec![0u32]);
    for h in 0..HEADS.1 {
        second.0.extend((0..first.1[h + 1] - first.1[h]).filter(|r| r % 2 == (h % 2) as u32));
        second.1.push(second.0.len() as u32);
    }
    let composed: Vec<u32> = (0..HEADS.1)
        .flat_map(|h| {
            let own = &second.0[second.1[h] as usize..second.1[h + 1] as usize];
            own.iter().map(|&r| first.0[(first.1[h] + r) as usize]).collect::<Vec<_>>()
        })
        .collect();
    let ragged = |dim| Laid::empty(Layout::ragged(&first.1, dim), first.0.len(), 1, dim);
    let (k, v) = (ragged(DIMS.0), ragged(DIMS.1));
    let src = [&k.tensor(), &v.tensor()];
    compact(&shape, [&all.0.tensor(), &all.1.tensor()], None, (&first.0, &first.1), src, WHOLE).unwrap();
    let before = [&k, &v].map(|t| t.memory.to_vec::<u8>());

    let closed = [&k, &v].map(|t| Layout { row_start: Some(second.1.clone()), ..t.layout.clone() });
    let dst = [&closed[0].tensor(&k.memory), &closed[1].tensor(&v.memory)];
    // Rows cross heads, so parts would race.
    let refused = compact(&shape, src, Some(&first.1), (&second.0, &second.1), dst, (2, false)).unwrap_err();
    assert_eq!(refused.status, LAVA_ERR_OVERLAP);
    compact(&shape, src, Some(&first.1), (&second.0, &second.1), dst, WHOLE).unwrap();
    check_rows("k", &k.memory, &before[0], &[(&closed[0], &layer.k)], (&composed, &second.1));
    check_rows("v", &v.memory, &before[1], &[(&closed[1], &layer.v)], (&composed, &second.1));
}

/// With different numbers of rows per head, equal strides do not make two tensors interleaved: the second head's rows meet.
#[test]
fn destinations_that_meet_in_one_head_only_are_refused() {
    let layer = layer();
    let (rows, cu) = kept([1, 6, 1]);
    let (k_src, v_src) = (layer.k.lay(), layer.v.lay());
    let dim = DIMS.1;
    let memory = Memory::new(4 * 1000);
    let mut shape = layer.shape;
    shape.head_dim_k = dim as u32;
    let k = Layout::strides(dim, 20 * dim, 1);
    let v = k.clone().from(2 * dim);
    let k_view = Layout::strides(HEADS.1 * DIMS.0, DIMS.0, 1).tensor(&k_src.memory);
    let before = memory.to_vec::<u8>();
    let dst = [&k.tensor(&memory), &v.tensor(&memory)];
    let refused = compact(&shape, [&k_view, &v_src.tensor()], None, (&rows, &cu), dst, WHOLE).unwrap_err();
    assert_eq!(refused.status, LAVA_ERR_OVERLAP);
    assert!(memory.to_vec::<u8>() == before);
}

/// Where a ragged cache's heads start, and its rows' stride.
type Place = ([u32; 3], usize);

/// Compacts K and V from one ragged layout to another, each within its own memory. `places[0]` is K's source and
/// destination, `places[1]` V's. Both end as the plain rule has it, or (not `allowed`) are refused and untouched.
fn move_within(places: [(Place, Place); 2], cu_rows: &[u32], (rows, cu): (&[u32], &[u32]), allowed: bool) {
    const DIM: usize = 4;
    let shape = shape(10, (3, 3), (DIM, DIM), 1);
    let what = format!("{places:?} {rows:?} {cu:?}");
    let layout = |(start, stride): Place| Layout { token: stride, ..Layout::ragged(&start, DIM) };
    let [k, v] = places.map(|(from, to)| {
        let numbers: Vec<f32> = (0..400).map(|i| i as f32).collect();
        (layout(from), layout(to), Memory::of(&numbers), numbers)
    });
    let src = [&k.0.tensor(&k.2), &v.0.tensor(&v.2)];
    let dst = [&k.1.tensor(&k.2), &v.1.tensor(&v.2)];
    let got = compact(&shape, src, Some(cu_rows), (rows, cu), dst, WHOLE);
    let status = got.map_or_else(|f| f.status, |()| LAVA_OK);
    assert_eq!(status, if allowed { LAVA_OK } else { LAVA_ERR_OVERLAP }, "{what}");
    for (from, to, memory, before) in [k, v] {
        let mut want = before.clone();
        for h in (0..3).filter(|_| allowed) {
            for (r, &row) in rows[cu[h] as usize..cu[h + 1] as usize].iter().enumerate() {
                (0..DIM).for_each(|c| want[to.index(r, h, c)] = before[from.index(row as usize, h, c)]);
            }
        }
        assert_eq!(memory.to_vec::<f32>(), want, "{what}");
    }
}

#[test]
fn a_ragged_cache_within_its_memory() {
    const TEN_EACH: [u32; 4] = [0, 10, 20, 30];
    const START: Place = ([0, 10, 20], 4);
    let one_each = (&[3u32, 4, 0][..], &[0u32, 1, 2, 3]);
    let two_each = (&[3u32, 8, 2, 9, 0, 1][..], &[0u32, 2, 4, 6]);
    let one_in_all = (&[9u32][..], &[0u32, 1, 1, 1]);
    let two_in_all = (&[8u32, 9][..], &[0u32, 0, 2, 2]);
    let arena: Place = ([5, 20, 40], 4);
    let cases = [
        // The stride places each head's first row too, so that another one moves heads that have no second row.
        (START, ([0, 10, 20], 8), one_each, false),
        (([0, 10, 20], 8), START, one_each, false),
        (START, ([0, 10, 20], 8), two_each, false),
        // One head's row would move back: the last, the first.
        (START, ([0, 10, 21], 4), one_each, false),
        (START, ([0, 10, 21], 4), two_each, false),
        (START, ([4, 10, 20], 4), one_each, false),
        (START, ([0, 13, 20], 4), two_each, false),
        // As far back as the first kept rows, or to the front.
        (START, ([3, 14, 20], 4), one_each, true),
        (START, ([3, 12, 20], 4), two_each, true),
        (START, ([0, 2, 4], 4), two_each, true),
        // Rows at the very front of the buffer, where there is only a single one.
        (arena, ([0, 0, 0], 4), one_in_all, true),
        (arena, ([0, 0, 0], 4), two_in_all, true),
        (arena, ([0, 1, 2], 4), one_each, true),
        (([5, 15, 25], 8), ([0, 0, 0], 8), one_in_all, true),
        // And from there.
        (([0, 10, 20], 4), ([1, 1, 1], 4), (&[0], &[0, 1, 1, 1]), false),
    ];
    for (from, to, kept, allowed) in cases {
        // Both like that, and each with one that stays where it is.
        let (moves, stays) = ((from, to), (START, START));
        for places in [[moves, moves], [moves, stays], [stays, moves]] {
            move_within(places, &TEN_EACH, (kept.0, &kept.1[..]), allowed);
        }
    }
}

/// Where a cache's heads start is read while rows move, K's and V's.
#[test]
fn destinations_on_a_row_start_are_refused() {
    let (rows, cu_rows, cu) = ([0u32, 1, 0, 1, 0, 1], [0u32, 4, 8, 12], [0u32, 2, 4, 6]);
    let shape = shape(4, (3, 3), (4, 4), 1);
    let of = [&cu_rows, &cu_rows, &cu, &cu].map(|start| Layout::ragged(&start[..3], 4));
    // Sources, then destinations. Row 1 of a destination's head 0 is one of the arrays.
    for (owner, target) in (0..4).flat_map(|owner| [(owner, 2), (owner, 3)]) {
        // If rows ever moved onto it, the array would still lead to somewhere inside.
        let memory = [(); 4].map(|()| Memory::of(&[2u32; 48]));
        let start = of[owner].row_start.as_ref().unwrap();
        start.iter().enumerate().for_each(|(h, &s)| memory[target].set(4 + h, s));
        let mut tensors = [0, 1, 2, 3].map(|t: usize| of[t].tensor(&memory[t]));
        tensors[owner].row_start = memory[target].ptr::<u32>().wrapping_add(4);
        let before = [0, 1, 2, 3].map(|t: usize| memory[t].to_vec::<u8>());
        let [k_src, v_src, k_dst, v_dst] = &tensors;
        let refused = compact(&shape, [k_src, v_src], Some(&cu_rows), (&rows, &cu), [k_dst, v_dst], WHOLE);
        assert_eq!(refused.unwrap_err().status, LAVA_ERR_OVERLAP, "{owner} in {target}");
        assert!((0..4).all(|t| memory[t].to_vec::<u8>() == before[t]), "{owner} in {target}");
    }
}

/// Interleaved, but the upper tensor's rows reach into the lower one's next.
#[test]
fn interleaved_destinations_that_overhang_are_refused() {
    let (rows, cu) = kept([5, 31, 64]);
    let (heads, dim) = (HEADS.1, DIMS.0);
    let layer = Layer::random(3, shape(TOKENS, HEADS, (dim, dim), WINDOW));
    let (k_src, v_src) = (layer.k.lay(), layer.v.lay());
    let by_token = Layout::strides(2 * heads * dim, dim, 1);
    let by_head = Layout::strides(2 * dim, TOKENS * 2 * dim, 1);
    // From where the upper one just fits on.
    for (lower, upper) in [(&by_token, heads * dim), (&by_head, dim)] {
        for (overhang, k_first) in [(0, true), (0, false), (1, true), (1, false), (dim - 1, true)] {
            let memory = Memory::new((TOKENS + 1) * heads * 2 * dim * 4);
            let before = memory.to_vec::<u8>();
            let both = [lower.clone(), lower.clone().from(upper + overhang)];
            let [k, v] = if k_first { [&both[0], &both[1]] } else { [&both[1], &both[0]] };
            let (src, dst) = ([&k_src.tensor(), &v_src.tensor()], [&k.tensor(&memory), &v.tensor(&memory)]);
            let got = compact(&layer.shape, src, None, (&rows, &cu), dst, WHOLE);
            let what = format!("{both:?}, K first {k_first}");
            if overhang == 0 {
                got.expect(&what);
                check_rows(&what, &memory, &before, &[(k, &layer.k), (v, &layer.v)], (&rows, &cu));
            } else {
                assert_eq!(got.expect_err(&what).status, LAVA_ERR_OVERLAP, "{what}");
                assert!(memory.to_vec::<u8>() == before, "{what}");
            }
        }
    }
}

#[test]
fn attention_agrees_over_layouts_and_element_types() {
    let (layer, new) = (layer(), 4);
    let shape = shape(new, HEADS, DIMS, 1);
    let q = Grid::random(&mut Rng(5), new, HEADS.0, DIMS.0);
    let n_rows = [TOKENS as u32, 33, 4];
    let of = |q: &Laid, k: &Laid, v: &Laid| {
        attend(&shape, &attend_params(), new, [&q.tensor(), &k.tensor(), &v.tensor()], &n_rows, WHOLE)
            .unwrap()
    };
    let want = of(&q.lay(), &layer.k.lay(), &layer.v.lay());
    for dtype in [LAVA_F32, LAVA_F16, LAVA_BF16] {
        let q_layouts = dense(new, HEADS.0, DIMS.0);
        let layouts =
            dense(TOKENS, HEADS.1, DIMS.0).into_iter().zip(dense(TOKENS, HEADS.1, DIMS.1).into_iter().rev());
        for ((name, k), (v_name, v)) in layouts {
            let q_layout = q_layouts[dtype as usize].1.clone();
            let got = of(&lay(q_layout, &q), &lay(k.of(dtype), &layer.k), &lay(v.of(dtype), &layer.v));
            // Another order of summation: logits stay below 20 and values below 2, f32 has 24 bits.
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5);
            assert!(close(&got.0, &want.0) && close(&got.1, &want.1), "{name}/{v_name} {dtype}");
        }
    }
}
