//! The kernels of scoring: lanes hold query rows.
//!
//! ```text
//! load_keys      per row: widened, one after the other
//! logits         for NK keys and NR registers of query rows at a time:
//!                for each c: acc[k][j] += keys[k, c] · panel[c, j]
//! absorb         per register of query rows: maximum over the block's keys, 2 to the differences, their sum
//! add_exp        per N keys: acc[k] += weight · 2 to the difference over the query rows; then the N sums across lanes
//! add_weighted   per N keys: acc[k] += weight · exponential over the query rows; then the N sums across lanes
//! add_fourths, fourths_weighted: the same with fourth powers
//! max_exp, max_weighted: the same with maxima in place of sums
//! spread         2 to the differences; per N keys: weighted, less the first row's, in f64; their mean;
//!                the squares of what is left
//! max_l1         per row: Σ|v| across lanes
//! times_l2       per row: Σv² across lanes, its root
//! pool_max       per register: maximum of the kernel's loads, one element apart
//! ```

use super::{AHEAD, Lanes, Product, Source, ahead_of, exp2, exp2_above, scalar};
use crate::backend::{Block, ExactSoftmax, KEY_BLOCK, PUT_AWAY, ROW_BLOCK, Softmax, Spread};

#[inline(always)]
pub(in crate::backend) unsafe fn prefetch<V: Lanes>(rows: &Block) {
    if rows.tensor.is_row_contiguous() {
        let bytes = rows.tensor.dim() * rows.tensor.dtype().size();
        for i in 0..rows.n {
            for line in (0..bytes).step_by(64) {
                // SAFETY: a hint, at an address inside the row.
                unsafe { V::prefetch(rows.row(i).wrapping_add(line)) };
            }
        }
    }
}

#[inline(always)]
pub(in crate::backend) unsafe fn load_keys<V: Lanes, S: Source>(keys: &Block, rows: &mut [f32]) {
    let words = keys.tensor.dim() / S::DIMS;
    assert!(rows.len() == KEY_BLOCK * words && keys.n <= KEY_BLOCK);
    let (full, rest) = rows.split_at_mut(keys.n * words);
    for (i, to) in full.chunks_exact_mut(words).enumerate() {
        let from = keys.row(i) as *const S::Element;
        let mut c = 0;
        // SAFETY: the row has `words` lanes side by side, and so has `to`.
        unsafe {
            while c + V::N <= words {
                S::load::<V>(from.add(c)).store(to.as_mut_ptr().add(c));
                c += V::N;
            }
            for c in c..words {
                to[c] = S::one(from.add(c));
            }
        }
    }
    rest.fill(0.0);
}

/// `NK` keys against `NR` registers of query rows. Returns `poison + 0 · logits`.
#[inline(always)]
unsafe fn logits_at<V: Lanes, P: Product<V>, const NK: usize, const NR: usize>(
    keys: *const f32,
    words: usize,
    panel: *const f32,
    rows: usize,
    tile: *mut f32,
    mut poison: V,
) -> V {
    // SAFETY: the caller promises NK keys of `words` lanes, and NR · N of the rows of panel and tile.
    unsafe {
        let mut acc = [[V::splat(0.0); NR]; NK];
        let mut key = [keys; NK];
        for k in 0..NK {
            key[k] = keys.add(k * words);
        }
        for c in 0..words {
            let mut q = [V::splat(0.0); NR];
            for j in 0..NR {
                q[j] = V::load(panel.add(c * rows + j * V::N));
            }
            for k in 0..NK {
                let x = V::splat(key[k].add(c).read());
                for j in 0..NR {
                    acc[k][j] = P::add(x, q[j], acc[k][j]);
                }
            }
        }
        for k in 0..NK {
            for j in 0..NR {
                acc[k][j].store(tile.add(k * rows + j * V::N));
                poison = acc[k][j].fma(V::splat(0.0), poison);
            }
        }
        poison
    }
}

/// Every key against `NR` registers of query rows, `NK` keys at a time, then `NS`. `NS` is smaller than `NK`, so that
/// sixteen keys leave no single one over: 16 = 6 + 6 + 4.
#[inline(always)]
unsafe fn logits_strip<V: Lanes, P: Product<V>, const NK: usize, const NS: usize, const NR: usize>(
    (keys, n): (*const f32, usize),
    words: usize,
    panel: *const f32,
    rows: usize,
    tile: *mut f32,
    mut poison: V,
) -> V {
    let mut k = 0;
    while k < n {
        let left = n - k;
        // SAFETY: the caller promises n keys, n rows of the tile, and NR · N of the rows of panel and tile.
        unsafe {
            let (keys, tile) = (keys.add(k * words), tile.add(k * rows));
            if left >= NK {
                poison = logits_at::<V, P, NK, NR>(keys, words, panel, rows, tile, poison);
                k += NK;
            } else if left >= NS {
                poison = logits_at::<V, P, NS, NR>(keys, words, panel, rows, tile, poison);
                k += NS;
            } else {
                poison = logits_at::<V, P, 1, NR>(keys, words, panel, rows, tile, poison);
                k += 1;
            }
        }
    }
    poison
}

#[inline(always)]
pub(in crate::backend) unsafe fn logits<V: Lanes, P: Product<V>, const NK: usize, const NS: usize>(
    keys: &[f32],
    words: usize,
    panel: &[f32],
    tile: &mut [f32],
) -> bool {
    let (n, rows) = (keys.len() / words, panel.len() / words);
    assert!(tile.len() >= n * rows && rows.is_multiple_of(V::N));
    let (keys, panel, tile) = ((keys.as_ptr(), n), panel.as_ptr(), tile.as_mut_ptr());
    // SAFETY: the lengths were just checked; r + NR · N stays within the rows.
    unsafe {
        let mut poison = V::splat(0.0);
        let mut r = 0;
        while r + 2 * V::N <= rows {
            poison = logits_strip::<V, P, NK, NS, 2>(keys, words, panel.add(r), rows, tile.add(r), poison);
            r += 2 * V::N;
        }
        if r < rows {
            poison = logits_strip::<V, P, NK, NS, 1>(keys, words, panel.add(r), rows, tile.add(r), poison);
        }
        poison.total() == 0.0
    }
}

#[inline(always)]
pub(in crate::backend) unsafe fn absorb<V: Lanes, const E: usize, const EXACTLY: bool>(
    tile: &[f32],
    scale: f32,
    max: &mut [f32],
    sum: &mut [f64],
    away: &mut [u8],
) {
    let rows = max.len();
    assert!(tile.len() == KEY_BLOCK * rows && sum.len() == rows && rows.is_multiple_of(V::N));
    assert!(away.is_empty() || away.len() == KEY_BLOCK * rows * PUT_AWAY);
    let keep = !away.is_empty();
    let mut lanes = [0.0f32; KEY_BLOCK];
    // SAFETY: r + N ≤ rows; a tile's row and `max` have `rows` elements; there is memory for what is stored;
    // `lanes` has at least N elements.
    unsafe {
        for r in (0..rows).step_by(V::N) {
            let column = tile.as_ptr().add(r);
            let mut most = V::load(column);
            for i in 1..KEY_BLOCK {
                most = most.max(V::load(column.add(i * rows)));
            }
            let (scale, old) = (V::splat(scale), V::load(max.as_ptr().add(r)));
            let most = most.mul(scale).max(old);
            if most.any_above(old) {
                most.store(max.as_mut_ptr().add(r));
                exp2([old.sub(most)])[0].store(lanes.as_mut_ptr());
                for (sum, shrink) in sum[r..r + V::N].iter_mut().zip(lanes) {
                    *sum *= shrink as f64;
                }
            }
            let mut total = V::splat(0.0);
            for i in (0..KEY_BLOCK).step_by(E) {
                let mut x = [total; E];
                for j in 0..E {
                    x[j] = V::load(column.add((i + j) * rows)).mul(scale).sub(most);
                }
                let e = exp2(x);
                for j in 0..E {
                    if EXACTLY {
                        e[j].store(lanes.as_mut_ptr());
                        add_lanes(&lanes, &mut sum[r..r + V::N]);
                        continue;
                    }
                    total = total.add(e[j]);
                    if keep {
                        let (upper, lower) = put_away_at::<V>(away.as_mut_ptr(), r, i + j);
                        e[j].store_24(upper, lower);
                    }
                }
            }
            if !EXACTLY {
                total.store(lanes.as_mut_ptr());
                add_lanes(&lanes, &mut sum[r..r + V::N]);
            }
        }
    }
}

/// Adds a register's lanes, stored, to sums in f64.
#[inline(always)]
fn add_lanes(lanes: &[f32; KEY_BLOCK], sums: &mut [f64]) {
    sums.iter_mut().zip(lanes).for_each(|(sum, &lane)| *sum += lane as f64);
}

/// Where the upper and the lower bits of key `i` and the rows from `r` on, a multiple of `N`, are stored.
#[inline(always)]
unsafe fn put_away_at<V: Lanes>(away: *mut u8, r: usize, i: usize) -> (*mut u16, *mut u8) {
    const PLANE: usize = KEY_BLOCK * ROW_BLOCK;
    let at = i * ROW_BLOCK + r % ROW_BLOCK;
    // SAFETY: the caller's memory holds KEY_BLOCK · PUT_AWAY bytes a row, and N rows from r on.
    unsafe {
        let block = away.add(r / ROW_BLOCK * PLANE * PUT_AWAY);
        ((block as *mut u16).add(at), block.add(2 * PLANE + at))
    }
}

#[inline(always)]
pub(in crate::backend) unsafe fn add_exp<V: Lanes, const N: usize, const E: usize, const HOW: u8>(
    tile: &[f32],
    scale: f32,
    rows: Softmax,
    sums: &mut [f32; KEY_BLOCK],
    totals: &mut [f64],
) {
    // SAFETY: the module's contract gives the machine.
    unsafe {
        match totals.is_empty() {
            true => add_exp_and::<V, N, E, HOW, false>(tile, scale, rows, sums, totals),
            false => add_exp_and::<V, N, E, HOW, true>(tile, scale, rows, sums, totals),
        }
    }
}

/// `HOW`: the sum, that of the squares or fourth powers, or the largest; `TOTALS`: and each row's own sum.
#[inline(always)]
unsafe fn add_exp_and<V: Lanes, const N: usize, const E: usize, const HOW: u8, const TOTALS: bool>(
    tile: &[f32],
    scale: f32,
    Softmax { shift, weight }: Softmax,
    sums: &mut [f32; KEY_BLOCK],
    totals: &mut [f64],
) {
    let rows = shift.len();
    assert!(tile.len() == KEY_BLOCK * rows && weight.len() == rows && rows.is_multiple_of(N));
    assert!(!TOTALS || totals.len() == rows);
    let mut lanes = [0.0f32; KEY_BLOCK];
    // SAFETY: r + N ≤ rows and i + N ≤ KEY_BLOCK; a tile's row, `shift` and `weight` have `rows` elements; `lanes` has
    // at least N.
    unsafe {
        let scale = V::splat(scale);
        for i in (0..KEY_BLOCK).step_by(N) {
            let mut acc = [V::splat(0.0); N];
            for r in (0..rows).step_by(N) {
                let shift = V::load(shift.as_ptr().add(r));
                let weight = V::load(weight.as_ptr().add(r));
                let weight = if HOW == SQUARES { weight.mul(weight) } else { weight };
                let mut total = V::splat(0.0);
                for first in (0..N).step_by(E) {
                    let mut x = [shift; E];
                    for j in 0..E {
                        let logit = V::load(tile.as_ptr().add((i + first + j) * rows + r));
                        // Only a log-sum-exp that is too small needs the cap: the result is large instead of wrapping around.
                        x[j] = logit.mul(scale).sub(shift).min(V::splat(127.0));
                    }
                    let e = if HOW == SQUARES { exp2_above(scalar::LEAST_SQUARED, x) } else { exp2(x) };
                    for j in 0..E {
                        acc[first + j] = match HOW {
                            MAX => e[j].mul(weight).max(acc[first + j]),
                            SQUARES => e[j].mul(e[j]).fma(weight, acc[first + j]),
                            FOURTHS => add_fourth(e[j].mul(weight), acc[first + j]),
                            _ => e[j].fma(weight, acc[first + j]),
                        };
                        if TOTALS {
                            total = total.add(e[j]);
                        }
                    }
                }
                if TOTALS {
                    total.store(lanes.as_mut_ptr());
                    add_lanes(&lanes, &mut totals[r..r + N]);
                }
            }
            add_to::<V, HOW>(across::<V, N, HOW>(acc), &mut sums[i..i + N]);
        }
    }
}

/// What becomes of the exponentials of a key: their sum, ...
pub(in crate::backend) const SUM: u8 = 0;
/// ... that of their squares, ...
pub(in crate::backend) const SQUARES: u8 = 1;
/// ... that of their fourth powers, ...
pub(in crate::backend) const FOURTHS: u8 = 3;
/// ... or the largest.
pub(in crate::backend) const MAX: u8 = 2;

/// `sum + x⁴`, without what would be subnormal.
#[inline(always)]
unsafe fn add_fourth<V: Lanes>(x: V, sum: V) -> V {
    // SAFETY: arithmetic, on the machine that the module's contract asks for.
    unsafe {
        let x = x.where_above(V::splat(exp2_of(scalar::LEAST_FOURTH)), x);
        let square = x.mul(x);
        square.fma(square, sum)
    }
}

/// 2 to a whole power of a normal number.
const fn exp2_of(power: f32) -> f32 {
    f32::from_bits(((power as i32 + 127) as u32) << 23)
}

/// The lanes of each register added up, or the largest.
#[inline(always)]
unsafe fn across<V: Lanes, const N: usize, const HOW: u8>(x: [V; N]) -> V {
    // SAFETY: arithmetic, on the machine that the module's contract asks for.
    unsafe { if HOW == MAX { V::maxima(x) } else { V::sums(x) } }
}

#[inline(always)]
pub(in crate::backend) unsafe fn spread<V: Lanes, const N: usize, const E: usize>(
    tile: &mut [f32],
    scale: f32,
    rows: ExactSoftmax,
    out: &mut Spread,
    totals: &mut [f64],
) {
    let n = rows.shift.len();
    assert!(tile.len() == KEY_BLOCK * n && n.is_multiple_of(N));
    assert!(rows.weight.len() == n && (1..=n).contains(&rows.n) && (totals.is_empty() || totals.len() == n));
    let own = rows.n as f32;
    let (mut less, mut lanes, mut mean) = ([0.0f64; N], [0.0f32; KEY_BLOCK], [0.0f32; N]);
    // SAFETY: r + N ≤ n and i + N ≤ KEY_BLOCK, a multiple of E; a tile's row, `shift` and `weight` have n elements;
    // `lanes` has at least N.
    unsafe {
        let scale = V::splat(scale);
        let tile = tile.as_mut_ptr();
        for r in (0..n).step_by(N) {
            let shift = V::load(rows.shift.as_ptr().add(r));
            for i in (0..KEY_BLOCK).step_by(E) {
                let mut x = [shift; E];
                for j in 0..E {
                    let logit = V::load(tile.add((i + j) * n + r));
                    x[j] = logit.mul(scale).sub(shift).min(V::splat(127.0));
                }
                let e = exp2(x);
                for j in 0..E {
                    e[j].store(tile.add((i + j) * n + r));
                }
            }
        }
        for i in (0..KEY_BLOCK).step_by(N) {
            // Attention less that of the first row: what is left is the spread, which f32 holds well.
            for k in 0..N {
                less[k] = tile.add((i + k) * n).read() as f64 * rows.weight[0];
            }
            let mut acc = [V::splat(0.0); N];
            for r in (0..n).step_by(N) {
                let shift = V::load(rows.shift.as_ptr().add(r));
                let mut total = V::splat(0.0);
                for k in 0..N {
                    let at = tile.add((i + k) * n + r);
                    let e = V::load(at);
                    total = total.add(e);
                    let a = e.weighted_less(rows.weight.as_ptr().add(r), less[k]);
                    // Rows that fill up the register have a shift of infinity.
                    let a = V::splat(f32::MAX).where_above(shift, a);
                    a.store(at);
                    acc[k] = acc[k].add(a);
                }
                if !totals.is_empty() {
                    total.store(lanes.as_mut_ptr());
                    add_lanes(&lanes, &mut totals[r..r + N]);
                }
            }
            V::sums(acc).store(lanes.as_mut_ptr());
            for k in 0..N {
                mean[k] = lanes[k] / own;
                out.sums[i + k] = (rows.n as f64 * less[k] + lanes[k] as f64) as f32;
            }
            let mut acc = [V::splat(0.0); N];
            for r in (0..n).step_by(N) {
                let shift = V::load(rows.shift.as_ptr().add(r));
                for k in 0..N {
                    let deviation = V::load(tile.add((i + k) * n + r)).sub(V::splat(mean[k]));
                    let deviation = V::splat(f32::MAX).where_above(shift, deviation);
                    acc[k] = deviation.fma(deviation, acc[k]);
                }
            }
            V::sums(acc).store(lanes.as_mut_ptr());
            out.deviations[i..i + N].copy_from_slice(&lanes[..N]);
        }
    }
}

/// The rows from `r` on that fill `NR` registers.
#[inline(always)]
unsafe fn add_weighted_at<V: Lanes, const N: usize, const NR: usize, const HOW: u8>(
    away: *mut u8,
    r: usize,
    max: *const f32,
    (shift, weight): (*const f32, *const f32),
    sums: &mut [f32; KEY_BLOCK],
) {
    // SAFETY: the caller promises NR · N rows of what was stored, of `max`, `shift` and `weight` from r on; i + N ≤
    // KEY_BLOCK.
    unsafe {
        let mut weights = [V::splat(0.0); NR];
        for j in 0..NR {
            weights[j] = V::load(max.add(r + j * N)).sub(V::load(shift.add(r + j * N)));
        }
        let mut weights = exp2(weights);
        for j in 0..NR {
            weights[j] = weights[j].mul(V::load(weight.add(r + j * N)));
        }
        // What was stored is in the order of use.
        for line in (0..NR * N * KEY_BLOCK * PUT_AWAY).step_by(64) {
            V::prefetch_once(away.wrapping_add(r * KEY_BLOCK * PUT_AWAY + AHEAD + line));
        }
        let mut i = 0;
        while i < KEY_BLOCK {
            let mut acc = [V::splat(0.0); N];
            for k in 0..N {
                for j in 0..NR {
                    let (upper, lower) = put_away_at::<V>(away, r + j * N, i + k);
                    let e = V::load_24(upper, lower);
                    acc[k] = match HOW {
                        MAX => weights[j].mul(e).max(acc[k]),
                        FOURTHS => add_fourth(weights[j].mul(e), acc[k]),
                        _ => weights[j].fma(e, acc[k]),
                    };
                }
            }
            add_to::<V, HOW>(across::<V, N, HOW>(acc), &mut sums[i..i + N]);
            i += N;
        }
    }
}

#[inline(always)]
pub(in crate::backend) unsafe fn add_weighted<V: Lanes, const N: usize, const HOW: u8>(
    away: &[u8],
    max: &[f32],
    Softmax { shift, weight }: Softmax,
    sums: &mut [f32; KEY_BLOCK],
) {
    let rows = max.len();
    assert!(away.len() == KEY_BLOCK * rows * PUT_AWAY && rows.is_multiple_of(N));
    assert!(shift.len() == rows && weight.len() == rows);
    let (away, max, factors) = (away.as_ptr() as *mut u8, max.as_ptr(), (shift.as_ptr(), weight.as_ptr()));
    let mut r = 0;
    // SAFETY: the lengths were just checked, r + 2 · N or r + N is at most `rows`, and nothing is written to what was
    // stored.
    unsafe {
        while r + 2 * N <= rows {
            add_weighted_at::<V, N, 2, HOW>(away, r, max, factors, sums);
            r += 2 * N;
        }
        if r < rows {
            add_weighted_at::<V, N, 1, HOW>(away, r, max, factors, sums);
        }
    }
}

/// Adds the lanes to `N` sums, or takes them into `N` maxima.
#[inline(always)]
unsafe fn add_to<V: Lanes, const HOW: u8>(x: V, sums: &mut [f32]) {
    assert!(sums.len() == V::N);
    // SAFETY: N elements, just checked.
    unsafe {
        let old = V::load(sums.as_ptr());
        (if HOW == MAX { x.max(old) } else { x.add(old) }).store(sums.as_mut_ptr());
    }
}

#[inline(always)]
pub(in crate::backend) unsafe fn max_l1<V: Lanes, S: Source>(values: &Block) -> f32 {
    let d = values.tensor.dim();
    let (mut max, mut poison) = (0.0f32, 0.0f32);
    // Where other threads take some heads of a token, memory is not read in one run that the hardware would notice.
    let ahead = ahead_of(values);
    for i in 0..values.n {
        let row = values.row(i) as *const S::Element;
        // SAFETY: the row has d elements side by side.
        let norm = unsafe {
            let mut acc = [V::splat(0.0); 2];
            let mut c = 0;
            while c + 2 * V::N <= d {
                V::prefetch_once((row.add(c) as *const u8).wrapping_add(ahead));
                acc[0] = acc[0].add(S::load::<V>(row.add(c)).abs());
                acc[1] = acc[1].add(S::load::<V>(row.add(c + V::N)).abs());
                c += 2 * V::N;
            }
            let mut norm = acc[0].add(acc[1]).total();
            for c in c..d {
                norm += S::one(row.add(c)).abs();
            }
            norm
        };
        poison += 0.0 * norm;
        max = if norm > max { norm } else { max };
    }
    max + poison
}

#[inline(always)]
pub(in crate::backend) unsafe fn times_l2<V: Lanes, S: Source>(values: &Block, x: &mut [f32]) {
    let d = values.tensor.dim();
    let ahead = ahead_of(values);
    for (i, x) in x.iter_mut().enumerate() {
        let row = values.row(i) as *const S::Element;
        // SAFETY: the row has d elements side by side.
        let squares = unsafe {
            let mut acc = [V::splat(0.0); 2];
            let mut c = 0;
            while c + 2 * V::N <= d {
                V::prefetch_once((row.add(c) as *const u8).wrapping_add(ahead));
                let (a, b) = (S::load::<V>(row.add(c)), S::load::<V>(row.add(c + V::N)));
                acc = [a.fma(a, acc[0]), b.fma(b, acc[1])];
                c += 2 * V::N;
            }
            let mut squares = acc[0].add(acc[1]).total();
            for c in c..d {
                let v = S::one(row.add(c));
                squares += v * v;
            }
            squares
        };
        *x *= scalar::l2(values, i, squares);
    }
}

#[inline(always)]
pub(in crate::backend) unsafe fn pool_max<V: Lanes>(x: &[f32], kernel: usize, out: &mut [f32]) {
    let n = out.len();
    assert!(x.len() >= n + kernel - 1);
    let mut i = 0;
    // SAFETY: i + N ≤ n, so every shifted load ends before n + kernel − 1.
    unsafe {
        while i + V::N <= n {
            let mut m = V::load(x.as_ptr().add(i));
            for shift in 1..kernel {
                m = m.max(V::load(x.as_ptr().add(i + shift)));
            }
            m.store(out.as_mut_ptr().add(i));
            i += V::N;
        }
    }
    for i in i..n {
        out[i] = x[i..i + kernel].iter().fold(x[i], |m, &x| if x > m { x } else { m });
    }
}
