//! A tensor's layout and element type change where things are, never what comes out.

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
        ("behind something else", Layout::token_major(heads, dim).from(13)),
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
    // Each of q, k, v runs through all; the others beside it are always of another kind.
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
    // Where a head's stride must serve both tensors, the wider of the two sets it.
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

/// That `memory` holds exactly the kept rows, and what it held before in every byte that is none of theirs.
fn check_rows(
    what: &str,
    memory: &Memory,
    before: &[u8],
    views: &[(&Layout, &Grid)],
    (rows, cu): (&[u32], &[u32]),
) {
    let want = Memory::of(before);
    for (layout, grid) in views {
        for h in 0..grid.heads {
            let kept = &rows[cu[h] as usize..cu[h + 1] as usize];
            for (to, &from) in kept.iter().enumerate() {
                let row = grid.row(from as usize, h);
                row.iter().enumerate().for_each(|(c, &x)| layout.set(&want, to, h, c, x));
            }
        }
    }
    let (got, want) = (memory.to_vec::<u8>(), want.to_vec::<u8>());
    let differs = got.iter().zip(&want).position(|(a, b)| a != b);
    assert!(differs.is_none(), "{what}: first difference at byte {differs:?}");
}

#[test]
fn compaction_out_of_place_writes_the_kept_rows_and_nothing_else() {
    let layer = layer();
    for counts in COUNTS {
        let (rows, cu) = kept(counts);
        let most = counts.into_iter().max().unwrap().max(1);
        // Ragged without gaps, ragged with room behind each head, and the dense ones.
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

/// With unlike numbers of rows per head, equal strides do not make two tensors interleaved: the second head's rows meet.
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

#[test]
fn attention_agrees_over_layouts_and_element_types() {
    let (layer, new) = (layer(), 4);
    let shape = shape(new, HEADS, DIMS, 1);
    let q = Grid::random(&mut Rng(5), new, HEADS.0, DIMS.0);
    let n_rows = [TOKENS as u32, 33, 4];
    let of = |q: &Laid, k: &Laid, v: &Laid| {
        attend(&shape, &attend_params(), [&q.tensor(), &k.tensor(), &v.tensor()], &n_rows, WHOLE).unwrap()
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
