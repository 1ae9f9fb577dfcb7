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
/// mistake of four billion heads. Now the steps grow with the root.
#[test]
fn the_workspace_of_billions_of_heads_is_sized_at_once() {
    // Primes: no group of heads divides them.
    let of = |n_q_heads: usize| {
        let shape = shape(2, (n_q_heads, 1), (1, 1), 1);
        number(|size, e| unsafe { lava_score_workspace_size(&shape, &score_params(), size, e) }).unwrap();
    };
    let (few, many) = (time(|| of(1_048_573)), time(|| of(4_294_967_291)));
    // Root 64, linear 4096.
    assert!(many < few * 700 + Duration::from_micros(50), "{many:?} against {few:?}");
}

/// A tensor's rows were counted head by head before its memory was looked at, though all heads had the same.
#[test]
fn a_tensor_of_billions_of_heads_is_refused_at_once() {
    let of = |heads: usize| {
        let shape = shape(1, (heads, heads), (1, 1), 1);
        let memory = Memory::new(16);
        let tensor = Layout::token_major(1, 1).tensor(&memory);
        let (params, t, to) = (score_params(), &raw const tensor, memory.ptr());
        let none = nothing();
        let got =
            call(|e| unsafe { lava_score(&shape, &params, t, t, t, none, 0, 1, none.cast(), 0, to, e) });
        assert_eq!(got.unwrap_err().status, LAVA_ERR_BUFFER_SIZE);
    };
    let (few, many) = (time(|| of(1 << 20)), time(|| of(ALL)));
    assert!(many < few * 700 + Duration::from_micros(50), "{many:?} against {few:?}");
}

const MILLION: usize = 1_000_000;
/// 2^31 and a little.
const LONG: usize = (1 << 31) + 10;
const ALL: usize = u32::MAX as usize;

/// Shapes at the edge of what is taken, and their exact numbers.
#[test]
fn shapes_up_to_the_limit_are_counted_exactly() {
    for (tokens, heads, window) in
        [(LONG, 1, 4), (ALL, 1, 1), (ALL, 1, ALL), (1, ALL, 1), (65535, 65537, 1), (3, ALL / 3, 2)]
    {
        let shape = shape(tokens, (heads, heads), (576, 576), window.min(ALL / heads));
        let prefix = prefix_len(&shape) as u64;
        let all = prefix * heads as u64;
        let windows = (tokens as u64 - prefix) * heads as u64;
        for (n_entries, want) in [(0, 0), (all, all), (u64::MAX, all), (all / 2, all / 2)] {
            let got = number(|n, e| unsafe { lava_n_kept(&shape, n_entries, n, e) });
            assert_eq!(got, Ok(want + windows), "{tokens} tokens, {heads} heads, {n_entries} entries");
        }
        for n_layers in [1, LAVA_MAX_LAYERS as u32] {
            let total = number(|n, e| unsafe { lava_total_entries(&shape, 1, n_layers, u32::MAX, n, e) });
            assert_eq!(total, Ok(all * n_layers as u64), "{tokens} tokens, {heads} heads");
        }
        assert_eq!(budget_from_ratio(&shape, &select_params(), 1.0), Ok(tokens as u32));
        // Sizes are no less than what they must hold, and do not wrap.
        let size = number(|n, e| unsafe { lava_select_workspace_size(&shape, n, e) }).unwrap();
        assert!(size >= heads * 24, "{size} bytes for {heads} heads");
        let (params, cascade) = (select_params(), cascade_params());
        let of = |total| {
            number(|n, e| unsafe { lava_cascade_state_size(&shape, 1, 1024, total, &params, &cascade, n, e) })
        };
        let (least, most) = (of(0).unwrap(), of(u64::MAX).unwrap());
        let rows = 1024 * (all + windows) as usize;
        assert!(most >= 12 * rows && least >= 12 * 1024 * windows as usize, "{least} {most} for {rows} rows");
        let score = number(|n, e| unsafe { lava_score_workspace_size(&shape, &score_params(), n, e) });
        assert!(score.unwrap() >= if prefix > 0 { heads * 4 } else { 0 });
        let attend = number(|n, e| unsafe { lava_attend_workspace_size(&shape, tokens as u32, n, e) });
        assert!(attend.unwrap() >= 2 * 576 * 4);
    }
}

/// Words of the longest exchange of a rank that has all of so many layers.
fn ranks_words(shape: &lava_shape, n_layers: usize) -> Outcome<u32> {
    let (heads, first) = (vec![shape.n_kv_heads; n_layers], vec![0u32; n_layers]);
    // Where they are, which is not looked at.
    let scores = [0f32; 1];
    let (heads, first, scores) = (heads.as_ptr(), first.as_ptr(), scores.as_ptr());
    let rank = unsafe { lava_rank_init(n_layers as u32, shape, heads, first, scores, 1) };
    let rank = lava_rank { n_shapes: 1, layers: LAVA_LAYERS_EQUAL, ..rank };
    let mut size = 0;
    number(|words, e| unsafe { lava_ranks_size(&rank, &mut size, words, e) })
}

/// Heads are not gone through to say how large an exchange is, and more words than 32 bits hold are refused.
#[test]
fn exchanges_of_billions_of_heads_are_sized_at_once() {
    let of = |heads: usize| ranks_words(&shape(1, (heads, heads), (1, 1), 1), 1);
    assert_eq!(of(1 << 20), Ok(32 + 3 * (1 << 20)));
    assert_eq!(of((ALL - 32) / 3), Ok(32 + 3 * ((ALL - 32) / 3) as u32));
    let failure = of((ALL - 32) / 3 + 1).unwrap_err();
    assert_eq!((failure.status, failure.argument.as_str()), (LAVA_ERR_OVERFLOW, "n_kv_heads"));
    let time_of = |heads| time(|| drop(of(heads)));
    let (few, many) = (time_of(1 << 20), time_of(ALL));
    assert!(many < few * 700 + Duration::from_micros(50), "{many:?} against {few:?}");
}

/// What a function returns for a shape.
type Answer = fn(&lava_shape) -> Outcome<()>;

/// Products beyond 32 and beyond 64 bits, in every function that takes a shape: no pointer is followed.
#[test]
fn shapes_beyond_the_limit_are_refused_by_every_function() {
    let functions: [(&str, Answer); 16] = [
        ("total_entries", |s| {
            number(|n, e| unsafe { lava_total_entries(s, 1, 1024, ALL as u32, n, e) }).map(drop)
        }),
        ("budget_from_ratio", |s| budget_from_ratio(s, None, 1.0).map(drop)),
        ("layer_entries", |s| layer_entries(&[*s], None, &[1.0; 1024], 1).map(drop)),
        ("global_entries_workspace_size", |s| {
            number(|n, e| unsafe { lava_global_entries_workspace_size(s, 1, 1024, n, e) }).map(drop)
        }),
        ("score_workspace_size", |s| {
            number(|n, e| unsafe { lava_score_workspace_size(s, &score_params(), n, e) }).map(drop)
        }),
        ("score", |s| {
            let (p, t) = (score_params(), nothing());
            call(|e| unsafe { lava_score(s, &p, t, t, t, t, 0, 1, nothing(), 0, nothing(), e) })
        }),
        ("entropy", |s| call(|e| unsafe { lava_entropy(s, nothing(), nothing(), nothing(), e) })),
        ("n_kept", |s| number(|n, e| unsafe { lava_n_kept(s, u64::MAX, n, e) }).map(drop)),
        ("select_workspace_size", |s| {
            number(|n, e| unsafe { lava_select_workspace_size(s, n, e) }).map(drop)
        }),
        ("select", |s| {
            let (p, to) = (select_params(), nothing());
            call(|e| unsafe { lava_select(s, &p, nothing(), 9, nothing(), 0, to, 9, to, to, nothing(), e) })
        }),
        ("entries_for_share", |s| {
            call(|e| unsafe { lava_entries_for_share(s, nothing(), 0.5, nothing(), 0, nothing(), e) })
        }),
        ("compact", |s| {
            let (t, n) = (nothing(), nothing());
            call(|e| unsafe { lava_compact(s, t, t, n, n, n, t, t, 0, 1, e) })
        }),
        ("cascade_state_size", |s| {
            let none = nothing();
            number(|n, e| unsafe { lava_cascade_state_size(s, 1, 1024, u64::MAX, nothing(), none, n, e) })
                .map(drop)
        }),
        ("cascade_init", |s| {
            let (none, state) = (nothing(), nothing());
            call(|e| unsafe { lava_cascade_init(s, 1, 1024, u64::MAX, nothing(), none, state, 0, e) })
        }),
        ("ranks_size", |s| ranks_words(s, 1024).map(drop)),
        ("cascade_push", |s| {
            call(|e| unsafe { lava_cascade_push(nothing(), 0, s, nothing(), nothing(), e) })
        }),
    ];
    // Products of 2^32, 2^32 + 1 (wraps to 1), nearly 2^64; of the window too.
    let shapes = [
        shape(1 << 16, (1 << 16, 1 << 16), (1, 1), 1),
        shape(641, (6_700_417, 6_700_417), (1, 1), 1),
        shape(ALL, (ALL, ALL), (1, 1), 1),
        shape(5, (1 << 16, 1), (1, 1), 1 << 16),
        shape(5, (6_700_417, 1), (1, 1), 641),
        shape(5, (ALL, 1), (576, 576), ALL),
    ];
    for (name, answer) in functions {
        for shape in &shapes {
            assert_eq!(answer(shape).unwrap_err().status, LAVA_ERR_OVERFLOW, "{name}");
        }
    }
}

/// Strides whose products wrap to a small number in 64 bits, or in bytes: none reaches into other memory.
#[test]
fn strides_that_wrap_are_refused() {
    let layer = Layer::random(1, shape(9, (2, 2), (4, 4), 1));
    let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(Grid::lay);
    let (good_q, good_v) = (q.tensor(), v.tensor());
    // Eight steps of 2^61 are 2^64; of 2^60 elements, 2^66 bytes.
    for stride in [1i64 << 61, 1 << 60, 1 << 62, (1 << 61) + 1, i64::MAX, i64::MAX / 8, i64::MAX / 8 + 1] {
        for axis in 0..3 {
            let mut bad = k.tensor();
            *[&mut bad.stride_token, &mut bad.stride_head, &mut bad.stride_dim][axis] = stride;
            let got = score(&layer.shape, &layer.params, [&good_q, &bad, &good_v], None, WHOLE).unwrap_err();
            let told = (got.status, got.argument.as_str(), got.layer);
            assert_eq!(told, (LAVA_ERR_BUFFER_SIZE, "k", Some(0)), "stride {stride} of axis {axis}");
        }
    }
    // A first row that wraps with its stride.
    let start = [0u32, u32::MAX];
    let mut bad = k.tensor();
    (bad.row_start, bad.stride_head) = (start.as_ptr(), 0);
    for stride in [4, 1i64 << 30, 1 << 32, 1 << 60] {
        bad.stride_token = stride;
        let got = score(&layer.shape, &layer.params, [&good_q, &bad, &good_v], None, WHOLE).unwrap_err();
        assert!([LAVA_ERR_OVERFLOW, LAVA_ERR_BUFFER_SIZE].contains(&got.status), "{got:?}");
    }
}

#[test]
fn the_largest_totals_are_shared_exactly() {
    let n = LAVA_MAX_LAYERS as usize;
    let shapes = vec![shape(ALL, (1, 1), (1, 1), 1); n];
    let each = u32::MAX as u64 - 1;
    let all = each * n as u64;
    let weights: Vec<f64> = (0..n).map(|l| if l % 3 == 0 { f64::MAX } else { f64::MAX / 7.0 }).collect();
    for total in [0, 1, all - 1, all, u64::MAX, all / 2 + 1] {
        let got = layer_entries(&shapes, &select_params(), &weights, total).unwrap();
        assert_eq!(got.iter().sum::<u64>(), total.min(all), "of {total}");
        assert!(got.iter().all(|&b| b <= each));
    }
}

/// Rows beyond 2^31, in four gigabytes that are mapped and never touched except for these rows.
#[test]
fn rows_beyond_two_billion_move() {
    let rows = [0u32, 1 << 31, (1 << 31) + 1, LONG as u32 - 1];
    // Fresh zeros: the system maps them when they are touched.
    let mut cache = vec![0u16; LONG];
    rows.iter().enumerate().for_each(|(i, &r)| cache[r as usize] = i as u16 + 1);
    let shape = shape(LONG, (1, 1), (1, 1), 1);
    let cu = [0u32, rows.len() as u32];
    let mut keys = unsafe { lava_tensor_token_major(LAVA_F16, cache.as_mut_ptr().cast(), 2 * LONG, 1, 1) };
    let to = Memory::new(rows.len() * 2);
    let target = unsafe { lava_tensor_ragged(LAVA_F16, to.ptr(), to.len(), cu.as_ptr(), 1) };
    let go = |src: &lava_tensor, dst: &lava_tensor| {
        let (rows, cu, none, all) = (rows.as_ptr(), cu.as_ptr(), nothing(), nothing());
        call(|e| unsafe { lava_compact(&shape, src, none, all, rows, cu, dst, none, 0, 1, e) })
    };
    go(&keys, &target).unwrap();
    assert_eq!(to.to_vec::<u16>(), [1, 2, 3, 4]);
    go(&keys, &keys).unwrap();
    assert_eq!(cache[..5], [1, 2, 3, 4, 0]);
    keys.size -= 1;
    assert_eq!(go(&keys, &target).unwrap_err().status, LAVA_ERR_BUFFER_SIZE);
}

/// Positions beyond 2^32: a sliding window still goes by them.
#[test]
fn positions_beyond_four_billion_do_not_wrap() {
    let layer = Layer::random(2, shape(6, (1, 1), (4, 4), 1));
    let sliding = lava_shape { sliding_window: 4, ..layer.shape };
    let (q, k, v) = (Grid::random(&mut Rng(3), 2, 1, 4).lay(), layer.k.lay(), layer.v.lay());
    let tensors = [&q.tensor(), &k.tensor(), &v.tensor()];
    let (kept, cu) = ([7u32, 9], [0u32, 2]);
    let of = |n_base: u32| {
        let mut params = attend_params();
        params.n_base = n_base;
        (params.kept_indices, params.cu_kept) = (kept.as_ptr(), cu.as_ptr());
        attend(&sliding, &params, 2, tensors, &[6], WHOLE).unwrap()
    };
    // Rows 2 to 5 from 100 on, or from 2^32 - 2 on: in both the kept ones are out of sight.
    assert_eq!(of(100), of(u32::MAX - 1));
}

/// A million tokens through the real code, keys and values in memory that is mapped where it is read.
#[test]
fn a_million_tokens() {
    let (heads, dim, window) = ((4, 2), 32, 16);
    let shape = shape(MILLION, heads, (dim, dim), window);
    let n = MILLION * heads.1 * dim;
    let one = half::f16::from_f32(1.0).to_bits();
    let (mut k, mut v) = (vec![0u16; n], vec![0u16; n]);
    let mut q = vec![0f32; window * heads.0 * dim];
    q.iter_mut().step_by(dim).for_each(|x| *x = 8.0);
    // The queries look at these tokens, each a little less than the one before.
    let needles: Vec<usize> = (0..40).map(|i| (i * 24_989 + 17) % (MILLION - window)).collect();
    for (i, &token) in needles.iter().enumerate() {
        let h = i % heads.1;
        k[(token * heads.1 + h) * dim] = half::f16::from_f32(24.0 - i as f32 / 8.0).to_bits();
    }
    (0..heads.1).for_each(|h| v[h * dim] = one);
    let bytes = 2 * n;
    let (tq, tk, tv) = unsafe {
        (
            lava_tensor_token_major(LAVA_F32, q.as_mut_ptr().cast(), 4 * q.len(), heads.0 as u32, dim as u32),
            lava_tensor_token_major(LAVA_F16, k.as_mut_ptr().cast(), bytes, heads.1 as u32, dim as u32),
            lava_tensor_token_major(LAVA_F16, v.as_mut_ptr().cast(), bytes, heads.1 as u32, dim as u32),
        )
    };
    let mut params = score_params();
    params.pool_kernel = 1;
    let scores = score(&shape, &params, [&tq, &tk, &tv], None, (2, true)).unwrap();
    assert_eq!(scores.len(), heads.1 * (MILLION - window));
    let (entropy, mass) = entropy(&shape, &scores).unwrap();
    assert!(entropy > 0.0 && entropy < 1.0 && mass > 0.0 && mass <= 2.0 + 1e-4, "{entropy} {mass}");

    let kept = select(&shape, &select_params(), &scores, needles.len() as u64).unwrap();
    for h in 0..heads.1 {
        let mut want: Vec<u32> = needles.iter().skip(h).step_by(heads.1).map(|&t| t as u32).collect();
        want.sort_unstable();
        want.extend((MILLION - window) as u32..MILLION as u32);
        assert_eq!(kept.head(h), want, "head {h}");
    }
    let marks: Vec<u16> = (0..heads.1)
        .flat_map(|h| kept.head(h).iter().map(move |&t| (t as usize * heads.1 + h) * dim))
        .map(|i| k[i])
        .collect();
    compact(&shape, [&tk, &tv], None, (&kept.indices, &kept.cu), [&tk, &tv], WHOLE).unwrap();
    for h in 0..heads.1 {
        for r in 0..kept.head(h).len() {
            assert_eq!(k[(r * heads.1 + h) * dim], marks[kept.cu[h] as usize + r], "row {r} of head {h}");
        }
    }
}
