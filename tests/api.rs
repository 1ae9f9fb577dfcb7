//! The Rust side with arguments that make no sense: an error or the plain answer, never a panic.

use lava::adjust::mean_over_heads;
use lava::score::{AttentionStats, part_heads, preference};
use lava::{ErrorKind, Rows, SelectParams, Shape, Strides, Tensor};

/// What a call was refused for.
fn refused<T: std::fmt::Debug>(result: lava::Result<T>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind, error.argument.to_str().unwrap().to_owned())
}

#[test]
fn means_over_nothing() {
    // No heads; no prefix; fewer scores than the shape has.
    let no_heads = Shape::dense(6, 0, 0, 4, 4, 1);
    assert_eq!(refused(mean_over_heads(&no_heads, &mut [])), (ErrorKind::Shape, "n_kv_heads".into()));
    assert_eq!(mean_over_heads(&Shape::dense(3, 2, 2, 4, 4, 3), &mut []), Ok(()));
    let two = Shape::dense(4, 2, 2, 4, 4, 1);
    assert_eq!(refused(mean_over_heads(&two, &mut [1.0; 5])), (ErrorKind::BufferSize, "scores".into()));
    let mut scores = [1.0, 2.0, 3.0, 5.0, 0.0, 1.0];
    mean_over_heads(&two, &mut scores).unwrap();
    assert_eq!(scores, [3.0, 1.0, 2.0, 3.0, 1.0, 2.0]);
}

/// However many parts there are, each head is in exactly one of them.
#[test]
fn parts_beyond_counting() {
    for n_heads in [1usize, 2, 7, 8, 1000] {
        let shape = Shape::dense(10, n_heads, n_heads, 4, 4, 2);
        for n_parts in [1usize, 3, 1 << 31, 1 << 32, 1 << 62, (1 << 62) + 1, usize::MAX - 1, usize::MAX] {
            // Part p ends before head n_heads * (p + 1) / n_parts: head h is in the first that ends after it.
            for head in 0..n_heads {
                let part = ((head as u128 + 1) * n_parts as u128).div_ceil(n_heads as u128) - 1;
                let own = part_heads(&shape, part as usize, n_parts).unwrap();
                assert!(own.contains(&head), "head {head} of {n_heads}, part {part} of {n_parts}: {own:?}");
                for other in [part.wrapping_sub(1), part + 1].into_iter().filter(|&p| p < n_parts as u128) {
                    let theirs = part_heads(&shape, other as usize, n_parts).unwrap();
                    assert!(
                        !theirs.contains(&head),
                        "head {head} is in parts {part} and {other} of {n_parts}"
                    );
                }
            }
            assert_eq!(part_heads(&shape, 0, n_parts).unwrap().start, 0);
            assert_eq!(part_heads(&shape, n_parts - 1, n_parts).unwrap().end, n_heads);
        }
        assert_eq!(refused(part_heads(&shape, 0, 0)), (ErrorKind::Argument, "n_parts".into()));
        assert_eq!(refused(part_heads(&shape, usize::MAX, usize::MAX)), (ErrorKind::Argument, "part".into()));
    }
}

/// Nothing beyond the mask is protected, and nothing beyond the layer.
#[test]
fn protection_beyond_the_mask() {
    let mask = [0u8, 1, 0, 1];
    let params = SelectParams { protected_mask: Some(&mask), n_sink: 1, ..SelectParams::lava() };
    let protected: Vec<bool> = [0, 1, 2, 3, 4, 100, usize::MAX].iter().map(|&p| params.protects(p)).collect();
    assert_eq!(protected, [true, true, false, true, false, false, false]);
    // A prefix of nine, of which the mask covers four.
    let shape = Shape::dense(10, 2, 2, 4, 4, 1);
    assert_eq!((params.minimum(&shape, 0), params.layer_minimum(&shape)), (3, 6));
    assert_eq!(refused(params.validate(2, 9)), (ErrorKind::BufferSize, "protected_mask".into()));
    let all = SelectParams { n_sink: usize::MAX, head_min: usize::MAX, ..SelectParams::lava() };
    assert_eq!(all.minimum(&shape, 1), 9);
    assert_eq!(all.layer_minimum(&Shape::dense(10, 0, 0, 4, 4, 1)), 0);
}

#[test]
fn shapes_without_heads() {
    let none = Shape::dense(10, 4, 0, 4, 4, 1);
    assert_eq!((none.group_size(), none.n_scores(), none.capacity(), none.n_rows()), (0, 0, 0, 0));
    assert_eq!(refused(none.validate()), (ErrorKind::Shape, "n_kv_heads".into()));
    // A window longer than the text, and one that sees more than there is.
    let short = Shape::dense(3, 2, 2, 4, 4, usize::MAX).sliding(usize::MAX);
    assert_eq!((short.prefix_len(), short.window_rows(), short.first_visible()), (0, 3, 0));
}

/// A prefix sum that decreases has no rows where it does, and no tensor takes it.
#[test]
fn rows_that_decrease() {
    let cu = [0u32, 5, 3, 8];
    let rows = Rows::Cu(&cu);
    assert_eq!([0, 1, 2].map(|h| rows.of(h)), [5, 0, 5]);
    let data = [0.0f32; 64];
    let view = Tensor::from_slice(&data, Strides::ragged(&[0, 5, 5], 4), rows, 3, 4);
    assert_eq!(view.unwrap_err().kind, ErrorKind::Indices);
}

/// Strides that no integer holds can be made; the first tensor that has them is refused.
#[test]
fn strides_that_overflow() {
    let data = [0.0f32; 64];
    for (heads, dim) in [(usize::MAX, 2), (1 << 62, 4), (1 << 33, 1 << 33), (usize::MAX, usize::MAX)] {
        let strides = [Strides::token_major(heads, dim), Strides::head_major(heads, dim)];
        for strides in strides {
            assert!(Tensor::from_slice(&data, strides, Rows::Same(4), 2, 4).is_err(), "{heads} x {dim}");
        }
    }
    assert!(Tensor::from_slice(&data, Strides::token_major(2, 4), Rows::Same(8), 2, 4).is_ok());
}

#[test]
fn preferences_of_impossible_statistics() {
    let of = |entropy, variance| preference(&[AttentionStats { entropy, variance }], 1.0, 1.0);
    assert_eq!(of(2.0, 3.0), Ok(6.0));
    assert_eq!(of(0.0, 3.0), Ok(0.0));
    for (entropy, variance) in [(-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
        assert_eq!(refused(of(entropy, variance)), (ErrorKind::Argument, "stats".into()));
    }
    // A sum that is not negative must not hide a negative number.
    let stats = [(5.0, 1.0), (-1.0, 1.0)].map(|(entropy, variance)| AttentionStats { entropy, variance });
    assert_eq!(preference(&stats, 1.0, 1.0).unwrap_err().head, Some(1));
    for bad in [f64::NAN, f64::INFINITY] {
        assert_eq!(refused(of(bad, 1.0)), (ErrorKind::NonFinite, "stats".into()));
    }
    for tau in [0.0, -1.0, f64::NAN] {
        assert!(preference(&[], tau, 1.0).is_err() && preference(&[], 1.0, tau).is_err());
    }
}
