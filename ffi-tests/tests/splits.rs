//! Work that can be split gives the same bits for every split, in turn and on threads at once.

use ffi_tests::*;

const TOKENS: usize = 150;
const HEADS: (usize, usize) = (10, 5);
const DIMS: (usize, usize) = (24, 16);
const WINDOW: usize = 9;

/// Fewer parts than heads, as many, more, and many more.
fn splits() -> impl Iterator<Item = Split> {
    [1, 2, 3, 4, 5, 6, 8, 97].into_iter().flat_map(|n| [(n, false), (n, true)])
}

fn layer() -> Layer {
    Layer::random(1, shape(TOKENS, HEADS, DIMS, WINDOW))
}

#[test]
fn scores() {
    let mut layer = layer();
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    // Both orders of pooling and reduction, which use different buffers.
    for group_reduce in [LAVA_GROUP_MAX, LAVA_GROUP_MEAN] {
        layer.params.group_reduce = group_reduce;
        let of =
            |split| score(&layer.shape, &layer.params, [&q.tensor(), &k.tensor(), &v.tensor()], None, split);
        let whole = bits(&of(WHOLE).unwrap());
        splits().for_each(|split| assert_eq!(bits(&of(split).unwrap()), whole, "{split:?}"));
    }
}

#[test]
fn attention() {
    let (layer, new) = (layer(), 11);
    let shape = shape(new, HEADS, DIMS, 1);
    let queries = Grid::random(&mut Rng(2), new, HEADS.0, DIMS.0).lay();
    let (k, v) = (layer.k.lay(), layer.v.lay());
    let n_rows = [150, 11, 40, 149, 64];
    let of = |split| {
        attend(&shape, &attend_params(), new, [&queries.tensor(), &k.tensor(), &v.tensor()], &n_rows, split)
            .unwrap()
    };
    let (whole_out, whole_lse) = of(WHOLE);
    for split in splits() {
        let (out, lse) = of(split);
        assert_eq!(bits(&out), bits(&whole_out), "{split:?}");
        assert_eq!(bits(&lse), bits(&whole_lse), "{split:?}");
    }
}

#[test]
fn compaction() {
    let layer = layer();
    let kept = select(&layer.shape, &select_params(), &layer.score().unwrap(), 200).unwrap();
    let n_kept = kept.indices.len();
    // Out of place into the ragged cache, and in place to the front of each head.
    let of = |in_place: bool, split| {
        let (k, v) = (layer.k.lay(), layer.v.lay());
        let ragged = |dim| Laid::empty(Layout::ragged(&kept.cu, dim), n_kept, 1, dim);
        let apart = (ragged(DIMS.0), ragged(DIMS.1));
        let (k_dst, v_dst) = if in_place { (&k, &v) } else { (&apart.0, &apart.1) };
        let (src, dst) = ([&k.tensor(), &v.tensor()], [&k_dst.tensor(), &v_dst.tensor()]);
        let before = [k_dst, v_dst].map(|t| t.memory.to_vec::<u8>());
        compact(&layer.shape, src, None, (&kept.indices, &kept.cu), dst, split).unwrap();
        for ((dst, before), grid) in [k_dst, v_dst].into_iter().zip(before).zip([&layer.k, &layer.v]) {
            let (what, kept) = (format!("in place {in_place}, {split:?}"), (&kept.indices[..], &kept.cu[..]));
            check_rows(&what, &dst.memory, &before, &[(&dst.layout, grid)], kept);
        }
    };
    assert!((0..HEADS.1).all(|h| kept.head(h).len() > WINDOW), "each head has something to move");
    for split in splits() {
        of(false, split);
        of(true, split);
    }
}
