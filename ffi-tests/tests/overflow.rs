//! Sizes at and beyond what their types hold, in every function: refused, or computed exactly, and at once.

use ffi_tests::*;
use std::time::{Duration, Instant};

/// The least of a few runs.
fn time(work: impl Fn()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..3).map(run).min().unwrap()
}

/// The size of a scoring workspace was found by trying every number up to the group's size: most of a minute for a caller's
/// mistake of four billion heads. It takes steps that grow with the root.
#[test]
fn the_workspace_of_billions_of_heads_is_told_at_once() {
    // Primes: no group of heads divides them.
    let of = |n_q_heads: usize| {
        let shape = shape(2, (n_q_heads, 1), (1, 1), 1);
        number(|size, e| unsafe { lava_score_workspace_size(&shape, &score_params(), size, e) }).unwrap()
    };
    let (few, many) = (time(|| drop(of(1_048_573))), time(|| drop(of(4_294_967_291))));
    // Root 64, linear 4096.
    assert!(many < few * 700 + Duration::from_micros(50), "{many:?} against {few:?}");
}
