//! Scores that need no queries of the window, and norms of values: by plain f64, over whole layers, sliding ones and evicted rows.

use ffi_tests::*;

const HEADS: (usize, usize) = (4, 2);
const DIMS: (usize, usize) = (12, 9);

/// A layer's keys or values in plain f64 by head and row, those rows that are live, and the tensor.
struct Side {
    rows: Vec<Vec<Vec<f64>>>,
    live: Vec<std::ops::Range<usize>>,
    laid: Laid,
    shape: lava_shape,
    /// What the shape leads to.
    _rows: Option<Rows>,
}

fn sides(dim: usize, of: fn(&Layer) -> &Grid) -> Vec<Side> {
    let whole = Layer::random(3, shape(50, HEADS, DIMS, 4));
    let mut all = vec![];
    for keys in [0, 20] {
        let shape = sliding(whole.shape, keys);
        let first = if keys == 0 { 0 } else { 50 - keys + 1 };
        let grid = of(&whole);
        let widened =
            |r: usize, h: usize| grid.row(r, h)[..dim].iter().map(|&x| x as f64).collect::<Vec<f64>>();
        let rows = (0..HEADS.1).map(|h| (0..46).map(|r| widened(r, h)).collect()).collect();
        all.push(Side { rows, live: vec![first..46; HEADS.1], laid: grid.lay(), shape, _rows: None });

        let evicted = Rows::random(&mut Rng(8), &shape);
        let prefix = |h: usize| evicted.head(h).iter().filter(|&&p| p < 46).map(|&p| p as usize);
        let rows = (0..HEADS.1).map(|h| prefix(h).map(|r| widened(r, h)).collect()).collect();
        let live = |h: usize| prefix(h).filter(|&p| p < first).count()..prefix(h).count();
        let (live, laid) = ((0..HEADS.1).map(live).collect(), grid.lay_rows(&evicted));
        let shape = evicted.of(shape);
        all.push(Side { rows, live, laid, shape, _rows: Some(evicted) });
    }
    all
}

/// Calls a function part by part, and compares what it wrote with plain code, which gets a head and its live rows.
fn check(
    side: &Side,
    bound: f64,
    function: impl Fn(u32, u32, *mut f32, *mut lava_error) -> lava_status + Sync,
    want: impl Fn(usize, &[Vec<f64>]) -> Vec<f64>,
) {
    let mut bits = vec![];
    for n_parts in [1, 3] {
        let out = Memory::new(4 * n_scores(&side.shape));
        let to = SendPtr(out.ptr::<f32>());
        in_parts(n_parts, false, |part| call(|e| function(part, n_parts, to.get(), e))).unwrap();
        let got = out.to_vec::<f32>();
        let mut at = 0;
        for (h, live) in side.live.iter().enumerate() {
            assert!(got[at..at + live.start].iter().all(|&x| x == 0.0), "dead rows");
            let want = want(h, &side.rows[h][live.clone()]);
            for (got, want) in got[at + live.start..].iter().zip(&want) {
                assert!((*got as f64 - want).abs() <= bound, "head {h}: {got}, not {want}");
            }
            at += side.rows[h].len();
        }
        assert_eq!(at, got.len());
        bits.push(out.to_vec::<u32>());
    }
    assert_eq!(bits[0], bits[1], "the same bits for every split");
}

struct SendPtr(*mut f32);
// SAFETY: each part writes heads of its own.
unsafe impl Sync for SendPtr {}
impl SendPtr {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn form(x: &[f64], gram: &[f64]) -> f64 {
    let n = x.len();
    (0..n * n).map(|i| x[i / n] * gram[i] * x[i % n]).sum()
}

#[test]
fn keys_that_are_unlike_the_others() {
    for side in sides(DIMS.0, |layer| &layer.k) {
        let k = side.laid.tensor();
        check(
            &side,
            1e-6,
            |part, n_parts, to, e| unsafe { lava_score_keys(&side.shape, &k, part, n_parts, to, e) },
            |_, keys| {
                let unit = |k: &Vec<f64>| k.iter().map(|x| x / dot(k, k).sqrt()).collect::<Vec<f64>>();
                let units: Vec<Vec<f64>> = keys.iter().map(unit).collect();
                let sum: Vec<f64> = (0..DIMS.0).map(|c| units.iter().map(|k| k[c]).sum()).collect();
                units.iter().map(|k| 1.0 - dot(k, &sum) / dot(&sum, &sum).sqrt()).collect()
            },
        );
    }
}

/// A key of zeros is unlike nothing; one that is turned away from all others is as unlike as can be.
#[test]
fn keys_of_zeros_and_of_the_other_direction() {
    let shape = shape(6, (1, 1), (2, 2), 1);
    let mut keys = Grid { rows: 6, heads: 1, dim: 2, values: vec![1.0; 12] };
    (0..2).for_each(|c| (keys.set(1, 0, c, 0.0), keys.set(3, 0, c, -2.0)).0);
    let (laid, scores) = (keys.lay(), Memory::new(4 * 5));
    call(|e| unsafe { lava_score_keys(&shape, &laid.tensor(), 0, 1, scores.ptr(), e) }).unwrap();
    assert_eq!(scores.to_vec::<f32>(), [0.0, 0.0, 0.0, 2.0, 0.0]);
}

#[test]
fn norms_by_a_form_and_from_a_centre() {
    let d = DIMS.1;
    let mut rng = Rng(5);
    let w: Vec<f64> = (0..HEADS.1 * d * d).map(|_| rng.element() as f64).collect();
    let row = |h: usize, a: usize| &w[(h * d + a) * d..][..d];
    let gram: Vec<f32> =
        (0..HEADS.1 * d * d).map(|i| dot(row(i / d / d, i / d % d), row(i / d / d, i % d)) as f32).collect();
    let centre: Vec<f32> = (0..HEADS.1 * d).map(|_| rng.element()).collect();
    for side in sides(d, |layer| &layer.v) {
        let v = side.laid.tensor();
        for (by_form, from) in [(true, true), (true, false), (false, true), (false, false)] {
            let g = if by_form { gram.as_ptr() } else { std::ptr::null() };
            let o = if from { centre.as_ptr() } else { std::ptr::null() };
            let (g, o) = (SendConst(g), SendConst(o));
            check(
                &side,
                1e-4,
                |part, n_parts, to, e| unsafe {
                    lava_value_norms(&side.shape, g.get(), o.get(), &v, part, n_parts, to, e)
                },
                |h, values| {
                    let less = |c: usize| if from { centre[h * d + c] as f64 } else { 0.0 };
                    let of_row = |v: &Vec<f64>| {
                        let x: Vec<f64> = (0..d).map(|c| v[c] - less(c)).collect();
                        let own: Vec<f64> = gram[h * d * d..][..d * d].iter().map(|&x| x as f64).collect();
                        if by_form { form(&x, &own).sqrt() } else { dot(&x, &x).sqrt() }
                    };
                    values.iter().map(of_row).collect()
                },
            );
        }
    }
}

struct SendConst(*const f32);
// SAFETY: parts only read it.
unsafe impl Sync for SendConst {}
impl SendConst {
    fn get(&self) -> *const f32 {
        self.0
    }
}

/// Statistics of turned queries, and the attention that such queries are expected to pay.
#[test]
fn expected_attention() {
    let (n, d, heads) = (40, DIMS.0, HEADS.0);
    let frequencies = [0.9f32, 0.2, 0.03, 0.001];
    let (position, n_ahead) = (50u32, 7u32);
    for style in [LAVA_ROPE_PAIRS, LAVA_ROPE_HALVES] {
        let q = Grid::random(&mut Rng(2), n, heads, d);
        // Each query at each position, turned one by one: the mean of the turned is the turned by the mean rotation.
        let turned = |j: usize, h: usize| {
            let x: Vec<f64> = q.row(j, h).iter().map(|&x| x as f64).collect();
            let mut mean = x.clone();
            for (i, &f) in frequencies.iter().enumerate() {
                let (a, b) = if style == LAVA_ROPE_PAIRS { (2 * i, 2 * i + 1) } else { (i, i + 4) };
                (mean[a], mean[b]) = (0.0, 0.0);
                for at in position..position + n_ahead {
                    let (sin, cos) = (at as f64 * f as f64).sin_cos();
                    mean[a] += (x[a] * cos - x[b] * sin) / n_ahead as f64;
                    mean[b] += (x[a] * sin + x[b] * cos) / n_ahead as f64;
                }
            }
            mean
        };
        let laid = q.lay();
        let (mean, covariance) = (Memory::new(8 * heads * d), Memory::new(8 * heads * d * d));
        call(|e| unsafe {
            let (f, shape) = (frequencies.as_ptr(), shape(50, HEADS, DIMS, 4));
            let (to_mean, to_covariance) = (mean.ptr(), covariance.ptr());
            let (n, q) = (n as u32, &laid.tensor());
            lava_query_statistics(
                &shape,
                n,
                q,
                f,
                8,
                style,
                1.0,
                position,
                n_ahead,
                to_mean,
                to_covariance,
                e,
            )
        })
        .unwrap();
        let (mean, covariance) = (mean.to_vec::<f64>(), covariance.to_vec::<f64>());
        for h in 0..heads {
            let all: Vec<Vec<f64>> = (0..n).map(|j| turned(j, h)).collect();
            let of = |c: usize| all.iter().map(|q| q[c]).sum::<f64>() / n as f64;
            let with = |a: usize, b: usize| {
                all.iter().map(|q| (q[a] - of(a)) * (q[b] - of(b))).sum::<f64>() / n as f64
            };
            for a in 0..d {
                assert!((mean[h * d + a] - of(a)).abs() < 1e-12);
                assert!((0..d).all(|b| (covariance[(h * d + a) * d + b] - with(a, b)).abs() < 1e-12));
            }
        }
        for side in sides(d, |layer| &layer.k) {
            let k = side.laid.tensor();
            for (scale, scatter) in [(0.0f32, true), (0.5, true), (0.5, false)] {
                let s = if scale == 0.0 { 1.0 / (d as f64).sqrt() } else { scale as f64 };
                let at = if scatter { covariance.as_ptr() } else { std::ptr::null() } as usize;
                check(
                    &side,
                    1e-6,
                    |part, n_parts, to, e| unsafe {
                        let logits = Memory::new(8 * side.rows.iter().map(Vec::len).max().unwrap());
                        let (mean, at) = (mean.as_ptr(), at as *const f64);
                        lava_score_expected(
                            &side.shape,
                            scale,
                            mean,
                            at,
                            &k,
                            part,
                            n_parts,
                            logits.ptr(),
                            to,
                            e,
                        )
                    },
                    |g, keys| {
                        let mut sum = vec![0.0; keys.len()];
                        for h in [2 * g, 2 * g + 1] {
                            let of_key = |k: &Vec<f64>| {
                                let by = form(k, &covariance[h * d * d..][..d * d]) * scatter as u8 as f64;
                                (s * dot(k, &mean[h * d..][..d]) + s * s / 2.0 * by).exp()
                            };
                            let all: Vec<f64> = keys.iter().map(of_key).collect();
                            let total: f64 = all.iter().sum();
                            sum.iter_mut().zip(&all).for_each(|(s, a)| *s += a / total / 2.0);
                        }
                        sum
                    },
                );
            }
        }
    }
}
