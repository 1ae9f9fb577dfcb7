//! The kernels once, for vectors of any width: an instruction set brings its registers as a type ([`Lanes`]), and
//! [`kernels!`] makes a table of them.
//!
//! ```text
//! load_keys      per row: widened, one behind the other
//! logits         for NK keys and NR registers of query rows at a time: for each c: acc[k][j] += keys[k, c] · panel[c, j]
//! absorb         per register of query rows: maximum over the block's keys, 2 to the differences, their sum
//! add_weighted   per N keys: acc[k] += weight · exponential over the query rows, then the N sums across lanes at once
//! dots           for NQ queries and N / NQ keys at a time: acc[q][k] += q[c ..] · k[c ..], then the N sums across lanes at once
//! softmax_rows   per row: maximum over the tile's row, 2 to the differences, their sum
//! add_values     for NQ queries and NV registers of dims at a time: for each row: acc += weight · v
//! max_l1         per row: Σ|v| across lanes
//! ```
//!
//! Where this departs from the scalar kernels: products are fused into sums, and sums run across lanes first, so results
//! differ in the last bits. f16 and bf16 are widened in registers. Rows whose elements do not lie side by side, and
//! blocks of keys that are not full, go to the scalar kernels.
//!
//! # Safety
//! Every function here is `unsafe` for one reason: it must be inlined into a function that runs only on machines with the
//! instruction set of its `Lanes`. [`kernels!`] sees to the inlining; `Backend`'s constructors see to the machine.
#![allow(clippy::missing_safety_doc)]

use super::{Block, KEY_BLOCK, PUT_AWAY, ROW_BLOCK, scalar};
use half::{bf16, f16};

/// A register of f32s.
///
/// # Safety
/// `load` and `store` touch exactly `N` elements.
pub(super) unsafe trait Lanes: Copy {
    /// Elements of a register.
    const N: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Numbers of 24 bits, as `store_24` leaves them: `upper` and `lower` hold `N` elements.
    unsafe fn load_24(upper: *const u16, lower: *const u8) -> Self;
    /// Bits 29 to 14 to `upper`, 13 to 6 to `lower`, of a number from 0 to 1 to which half of bit 6 was added.
    unsafe fn store_24(self, upper: *mut u16, lower: *mut u8);
    unsafe fn store(self, p: *mut f32);
    /// Asks for the cache line at `p`, which may be any address.
    unsafe fn prefetch(p: *const u8);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where `self` is NaN.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The nearest integer.
    unsafe fn round(self) -> Self;
    /// `self · 2^n`, for an integer `n` and a result that is a normal number.
    unsafe fn times_pow2(self, n: Self) -> Self;
    /// `x` where `self > bound`, else 0, also where `self` is NaN.
    unsafe fn where_above(self, bound: Self, x: Self) -> Self;
    /// Whether any lane is above `bound`'s.
    unsafe fn any_above(self, bound: Self) -> bool;
    /// Sum of the lanes.
    unsafe fn total(self) -> f32;
    /// The same of each of `L = N` registers: lane `i` holds the sum of register `i`.
    unsafe fn sums<const L: usize>(x: [Self; L]) -> Self;
    /// Largest of the lanes, none of which is NaN.
    unsafe fn largest(self) -> f32;
}

/// An element type as a vector kernel reads it.
pub(super) trait Source {
    type Element: Copy;
    /// Dims that one lane holds.
    const DIMS: usize = 1;
    unsafe fn load<V: Lanes>(p: *const Self::Element) -> V;
    unsafe fn one(p: *const Self::Element) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Source for F32 {
    type Element = f32;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const f32) -> V {
        // SAFETY: the caller's promise: N elements are readable.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    unsafe fn one(p: *const f32) -> f32 {
        // SAFETY: the caller's promise: one element is readable.
        unsafe { p.read() }
    }
}

impl Source for F16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u16) -> V {
        // SAFETY: as for F32.
        unsafe { V::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u16) -> f32 {
        // SAFETY: as for F32.
        f16::from_bits(unsafe { p.read() }).to_f32()
    }
}

impl Source for Bf16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const u16) -> V {
        // SAFETY: as for F32.
        unsafe { V::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u16) -> f32 {
        // SAFETY: as for F32.
        bf16::from_bits(unsafe { p.read() }).to_f32()
    }
}

/// How a lane of keys meets a lane of queries.
pub(super) trait Product<V: Lanes> {
    /// `acc + x · y`, lane by lane.
    unsafe fn add(x: V, y: V, acc: V) -> V;
    /// The same of one lane.
    unsafe fn one(x: f32, y: f32) -> f32;
}

/// Lanes are numbers.
pub(super) struct Numbers;

impl<V: Lanes> Product<V> for Numbers {
    #[inline(always)]
    unsafe fn add(x: V, y: V, acc: V) -> V {
        // SAFETY: arithmetic, on the machine that the module's contract asks for.
        unsafe { x.fma(y, acc) }
    }
    #[inline(always)]
    unsafe fn one(x: f32, y: f32) -> f32 {
        x * y
    }
}

/// `2^x` for `x < 128`, the scalar backend's polynomial with fused steps; 0 below −126 and for NaN. Several registers side by
/// side, since one alone would wait for itself at every step.
#[inline(always)]
unsafe fn exp2<V: Lanes, const N: usize>(x: [V; N]) -> [V; N] {
    // SAFETY: arithmetic only, on the machine that the module's contract asks for.
    unsafe {
        let (mut n, mut r, mut y) = (x, x, x);
        for j in 0..N {
            n[j] = x[j].round();
            r[j] = x[j].sub(n[j]);
            y[j] = V::splat(scalar::EXP2[0]);
        }
        // By index: an iterator here is not always unrolled.
        for i in 1..scalar::EXP2.len() {
            let c = V::splat(scalar::EXP2[i]);
            for j in 0..N {
                y[j] = y[j].fma(r[j], c);
            }
        }
        for j in 0..N {
            // Far below the range this is nonsense, and not used.
            y[j] = x[j].where_above(V::splat(-126.0), y[j].times_pow2(n[j]));
        }
        y
    }
}

#[inline(always)]
pub(super) unsafe fn prefetch<V: Lanes>(rows: &Block) {
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
pub(super) unsafe fn load_keys<V: Lanes, S: Source>(keys: &Block, rows: &mut [f32]) {
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

/// Every key against `NR` registers of query rows, `NK` keys at a time; `NS` are fewer than `NK`, so that sixteen keys need
/// no single ones: 16 = 6 + 6 + 4.
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
pub(super) unsafe fn logits<V: Lanes, P: Product<V>, const NK: usize, const NS: usize>(
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
pub(super) unsafe fn absorb<V: Lanes, const E: usize>(
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
    // SAFETY: r + N ≤ rows; a tile's row and `max` have `rows` elements; there is memory for what is put away;
    // `lanes` has at least N elements.
    unsafe {
        for r in (0..rows).step_by(V::N) {
            let column = tile.as_ptr().add(r);
            let mut most = V::load(column);
            for i in 1..KEY_BLOCK {
                most = most.max(V::load(column.add(i * rows)));
            }
            let (scale, old) = (V::splat(scale), V::load(max.as_ptr().add(r)));
            // No key seen and a scale of 0 make NaN, which leaves the old one.
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
                    total = total.add(e[j]);
                    if keep {
                        let (upper, lower) = put_away_at::<V>(away.as_mut_ptr(), r, i + j);
                        e[j].store_24(upper, lower);
                    }
                }
            }
            total.store(lanes.as_mut_ptr());
            for (sum, total) in sum[r..r + V::N].iter_mut().zip(lanes) {
                *sum += total as f64;
            }
        }
    }
}

/// Where the upper and the lower bits of key `i` and the rows from `r` on, a multiple of `N`, are put away.
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
pub(super) unsafe fn add_exp<V: Lanes, const N: usize, const E: usize>(
    tile: &[f32],
    scale: f32,
    lse: &[f32],
    sums: &mut [f32; KEY_BLOCK],
) {
    let rows = lse.len();
    assert!(tile.len() == KEY_BLOCK * rows && rows.is_multiple_of(N));
    // SAFETY: r + N ≤ rows and i + N ≤ KEY_BLOCK; a tile's row and `lse` have `rows` elements.
    unsafe {
        let scale = V::splat(scale);
        for i in (0..KEY_BLOCK).step_by(N) {
            let mut acc = [V::splat(0.0); N];
            for r in (0..rows).step_by(N) {
                let shift = V::load(lse.as_ptr().add(r));
                for first in (0..N).step_by(E) {
                    let mut x = [shift; E];
                    for j in 0..E {
                        let logit = V::load(tile.as_ptr().add((i + first + j) * rows + r));
                        // Only a log-sum-exp that is too small needs the cap: large, not wrapped around.
                        x[j] = logit.mul(scale).sub(shift).min(V::splat(127.0));
                    }
                    let e = exp2(x);
                    for j in 0..E {
                        acc[first + j] = acc[first + j].add(e[j]);
                    }
                }
            }
            add_to(V::sums(acc), &mut sums[i..i + N]);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn add_weighted<V: Lanes, const N: usize>(
    away: &[u8],
    max: &[f32],
    lse: &[f32],
    sums: &mut [f32; KEY_BLOCK],
) {
    let rows = max.len();
    assert!(away.len() == KEY_BLOCK * rows * PUT_AWAY && lse.len() == rows && rows.is_multiple_of(N));
    // Rows go in steps of one or two registers, whose weights stay in registers.
    let step = if rows.is_multiple_of(2 * N) { 2 } else { 1 };
    // SAFETY: r + step · N ≤ rows and i + N ≤ KEY_BLOCK; `max` and `lse` have `rows` elements; what was put away has
    // PUT_AWAY bytes for each key and row.
    unsafe {
        for r in (0..rows).step_by(step * N) {
            let mut weights = [V::splat(0.0); 2];
            for j in 0..step {
                let at = r + j * N;
                weights[j] = exp2([V::load(max.as_ptr().add(at)).sub(V::load(lse.as_ptr().add(at)))])[0];
            }
            for i in (0..KEY_BLOCK).step_by(N) {
                let mut acc = [V::splat(0.0); N];
                for k in 0..N {
                    for j in 0..step {
                        let (upper, lower) = put_away_at::<V>(away.as_ptr() as *mut u8, r + j * N, i + k);
                        acc[k] = weights[j].fma(V::load_24(upper, lower), acc[k]);
                    }
                }
                add_to(V::sums(acc), &mut sums[i..i + N]);
            }
        }
    }
}

/// Adds the lanes to `N` sums.
#[inline(always)]
unsafe fn add_to<V: Lanes>(x: V, sums: &mut [f32]) {
    assert!(sums.len() == V::N);
    // SAFETY: N elements, just checked.
    unsafe { x.add(V::load(sums.as_ptr())).store(sums.as_mut_ptr()) }
}

#[inline(always)]
pub(super) unsafe fn softmax_rows<V: Lanes, const NV: usize>(
    tile: &mut [f32],
    scale: f32,
    max: &mut [f32],
    sum: &mut [f64],
) {
    for (r, row) in tile.chunks_exact_mut(KEY_BLOCK).enumerate() {
        // SAFETY: a row has KEY_BLOCK = NV · N elements.
        unsafe {
            let row = row.as_mut_ptr();
            let mut x = [V::splat(0.0); NV];
            for j in 0..NV {
                x[j] = V::load(row.add(j * V::N));
            }
            let mut most = x[0];
            for j in 1..NV {
                most = most.max(x[j]);
            }
            // A scale of 0 makes NaN of a row of which no key is seen, and that is above nothing.
            if most.mul(V::splat(scale)).any_above(V::splat(max[r])) {
                let largest = most.largest() * scale;
                sum[r] *= scalar::exp2(max[r] - largest) as f64;
                max[r] = largest;
            }
            let shift = V::splat(max[r]);
            let mut total = V::splat(0.0);
            for j in 0..NV {
                x[j] = x[j].mul(V::splat(scale)).sub(shift);
            }
            let e = exp2(x);
            for j in 0..NV {
                e[j].store(row.add(j * V::N));
                total = total.add(e[j]);
            }
            sum[r] += total.total() as f64;
        }
    }
}

#[inline(always)]
pub(super) unsafe fn max_l1<V: Lanes, S: Source>(values: &Block) -> f32 {
    let d = values.tensor.dim();
    let (mut max, mut poison) = (0.0f32, 0.0f32);
    for i in 0..values.n {
        let row = values.row(i) as *const S::Element;
        // SAFETY: the row has d elements side by side.
        let norm = unsafe {
            let mut acc = [V::splat(0.0); 2];
            let mut c = 0;
            while c + 2 * V::N <= d {
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
pub(super) unsafe fn pool_max<V: Lanes>(x: &[f32], kernel: usize, out: &mut [f32]) {
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

/// Addresses of a block's rows, each checked once. Those from `n` on are not used.
#[inline(always)]
fn rows_of<E>(block: &Block) -> [*const E; KEY_BLOCK] {
    assert!(block.n <= KEY_BLOCK);
    core::array::from_fn(|i| block.row(i.min(block.n - 1)) as *const E)
}

/// `NQ` queries against `N / NQ` keys, a product a lane: that of query `m` and key `j` in lane `m · N / NQ + j`.
#[inline(always)]
unsafe fn dots_at<V: Lanes, S: Source, P: Product<V>, const N: usize, const NQ: usize>(
    keys: &[*const S::Element],
    q: *const f32,
    words: usize,
) -> V {
    let nk = N / NQ;
    // SAFETY: the caller promises N / NQ keys and NQ queries of `words` lanes.
    unsafe {
        let mut acc = [V::splat(0.0); N];
        let mut c = 0;
        while c + N <= words {
            let mut k = [V::splat(0.0); N];
            for j in 0..nk {
                k[j] = S::load::<V>(keys[j].add(c));
            }
            for m in 0..NQ {
                let x = V::load(q.add(m * words + c));
                for j in 0..nk {
                    acc[m * nk + j] = P::add(k[j], x, acc[m * nk + j]);
                }
            }
            c += N;
        }
        let dots = V::sums(acc);
        if c == words {
            return dots;
        }
        let mut rest = [0.0f32; N];
        for m in 0..NQ {
            for c in c..words {
                let x = q.add(m * words + c).read();
                for j in 0..nk {
                    rest[m * nk + j] += P::one(S::one(keys[j].add(c)), x);
                }
            }
        }
        dots.add(V::load(rest.as_ptr()))
    }
}

/// All keys of a block against `NQ` queries. Returns `poison + 0 · dots`.
#[inline(always)]
unsafe fn dots_strip<V: Lanes, S: Source, P: Product<V>, const N: usize, const NQ: usize>(
    keys: &[*const S::Element; KEY_BLOCK],
    n: usize,
    q: *const f32,
    words: usize,
    tile: &mut [f32],
    mut poison: V,
) -> V {
    let nk = N / NQ;
    let mut lanes = [0.0f32; N];
    for i in (0..n).step_by(nk) {
        // SAFETY: the caller promises NQ queries; `keys` are KEY_BLOCK rows, of which N / NQ follow at i; `lanes` has N elements.
        unsafe {
            let dots = dots_at::<V, S, P, N, NQ>(&keys[i..i + nk], q, words);
            poison = dots.fma(V::splat(0.0), poison);
            dots.store(lanes.as_mut_ptr());
        }
        for m in 0..NQ {
            tile[m * KEY_BLOCK + i..][..nk].copy_from_slice(&lanes[m * nk..][..nk]);
        }
    }
    poison
}

#[inline(always)]
pub(super) unsafe fn dots<V: Lanes, S: Source, P: Product<V>, const N: usize>(
    keys: &Block,
    q: &[f32],
    tile: &mut [f32],
) -> bool {
    let words = keys.tensor.dim() / S::DIMS;
    let n_queries = q.len() / words;
    assert!(tile.len() >= n_queries * KEY_BLOCK && keys.n > 0);
    let rows = rows_of::<S::Element>(keys);
    let mut m = 0;
    // SAFETY: so many queries are left as each call is told; every row of the block has `words` lanes side by side.
    unsafe {
        let mut poison = V::splat(0.0);
        while m < n_queries {
            let (q, tile) = (q.as_ptr().add(m * words), &mut tile[m * KEY_BLOCK..]);
            match n_queries - m {
                4.. => {
                    poison = dots_strip::<V, S, P, N, 4>(&rows, keys.n, q, words, tile, poison);
                    m += 4;
                }
                2..4 => {
                    poison = dots_strip::<V, S, P, N, 2>(&rows, keys.n, q, words, tile, poison);
                    m += 2;
                }
                _ => {
                    poison = dots_strip::<V, S, P, N, 1>(&rows, keys.n, q, words, tile, poison);
                    m += 1;
                }
            }
        }
        for row in tile[..n_queries * KEY_BLOCK].chunks_exact_mut(KEY_BLOCK) {
            row[keys.n..].fill(super::UNSEEN);
        }
        poison.total() == 0.0
    }
}

/// `NQ` queries' weighted sums of `NV` vectors of dims, over all rows of the block.
#[inline(always)]
unsafe fn add_values_at<V: Lanes, S: Source, const NQ: usize, const NV: usize>(
    rows: &[*const S::Element],
    (c, d): (usize, usize),
    weights: *const f32,
    acc: *mut f32,
) {
    // SAFETY: the caller promises NQ rows of KEY_BLOCK weights, NQ rows of d sums, and c + NV · N ≤ d.
    unsafe {
        let mut sums = [[V::splat(0.0); NV]; NQ];
        for m in 0..NQ {
            for j in 0..NV {
                sums[m][j] = V::load(acc.add(m * d + c + j * V::N));
            }
        }
        for (i, row) in rows.iter().enumerate() {
            let row = row.add(c);
            let mut v = [V::splat(0.0); NV];
            for j in 0..NV {
                v[j] = S::load::<V>(row.add(j * V::N));
            }
            for m in 0..NQ {
                let weight = V::splat(weights.add(m * KEY_BLOCK + i).read());
                for j in 0..NV {
                    sums[m][j] = weight.fma(v[j], sums[m][j]);
                }
            }
        }
        for m in 0..NQ {
            for j in 0..NV {
                sums[m][j].store(acc.add(m * d + c + j * V::N));
            }
        }
    }
}

/// All dims from `c` on that fill `NV` registers. Returns the first of those left.
#[inline(always)]
unsafe fn add_values_strip<V: Lanes, S: Source, const NQ: usize, const NV: usize>(
    rows: &[*const S::Element],
    (mut c, d): (usize, usize),
    weights: *const f32,
    acc: *mut f32,
) -> usize {
    while c + NV * V::N <= d {
        // SAFETY: the caller promises NQ rows of weights and sums; c + NV · N ≤ d.
        unsafe { add_values_at::<V, S, NQ, NV>(rows, (c, d), weights, acc) };
        c += NV * V::N;
    }
    c
}

#[inline(always)]
pub(super) unsafe fn add_values<V: Lanes, S: Source, const NV: usize>(
    values: &Block,
    tile: &[f32],
    acc: &mut [f32],
) {
    let d = values.tensor.dim();
    let n_queries = acc.len() / d;
    assert!(tile.len() >= n_queries * KEY_BLOCK && values.n > 0);
    let rows = rows_of::<S::Element>(values);
    let rows = &rows[..values.n];
    let mut m = 0;
    while m < n_queries {
        let step = if m + 4 <= n_queries { 4 } else { 1 };
        // SAFETY: m + step rows of weights and sums follow; c stays below d.
        unsafe {
            let (weights, sums) = (tile.as_ptr().add(m * KEY_BLOCK), acc.as_mut_ptr().add(m * d));
            let c = if step == 4 {
                let c = add_values_strip::<V, S, 4, NV>(rows, (0, d), weights, sums);
                add_values_strip::<V, S, 4, 1>(rows, (c, d), weights, sums)
            } else {
                let c = add_values_strip::<V, S, 1, NV>(rows, (0, d), weights, sums);
                add_values_strip::<V, S, 1, 1>(rows, (c, d), weights, sums)
            };
            for (i, row) in rows.iter().enumerate() {
                for c in c..d {
                    let v = S::one(row.add(c));
                    for k in 0..step {
                        *sums.add(k * d + c) += weights.add(k * KEY_BLOCK + i).read() * v;
                    }
                }
            }
        }
        m += step;
    }
}

/// Operations of a `Lanes` that are one instruction: `name(a, b) = intrinsic`.
macro_rules! instructions {
    ($($name:ident($first:ident $(, $other:ident)*) = $intrinsic:ident;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self $(, $other: Self)*) -> Self {
            let $first = self;
            // SAFETY: arithmetic on registers; the module's contract gives the machine.
            Self(unsafe { $intrinsic($first.0 $(, $other.0)*) })
        })*
    };
}

/// Makes the table of an instruction set: `$lanes` are its registers, `$features` what the machine must have. `$nk` keys and two
/// registers of query rows make the sums of a tile of logits, `$ns` where fewer keys are left; `$e` exponentials go side by
/// side; `$nv` registers of values are summed for four queries.
macro_rules! kernels {
    ($name:literal, $lanes:ty, $features:literal, keys: ($nk:literal, $ns:literal), exps: $e:literal, values: $nv:literal) => {
        use $crate::backend::vector::{self, Bf16, F16, F32, Lanes, Numbers};
        use $crate::backend::{Block, KEY_BLOCK, Kernels, scalar};
        use $crate::view::Dtype;

        const N: usize = <$lanes as Lanes>::N;

        /// The table. Only `Backend`'s constructor hands it out, on machines that have what it needs.
        pub(crate) static KERNELS: Kernels = Kernels {
            name: $name,
            dims_per_word: 1,
            bf16: None,
            prefetch,
            to_words: scalar::KERNELS.to_words,
            load_keys,
            logits,
            dots,
            softcap: scalar::KERNELS.softcap,
            absorb,
            add_exp,
            add_weighted,
            softmax_rows,
            max_l1,
            pool_max,
            add_values,
        };

        $crate::backend::vector::entry! { $features
            fn prefetch(rows: &Block) -> () {
                vector::prefetch::<$lanes>(rows)
            }
            fn logits(keys: &[f32], words: usize, panel: &[f32], tile: &mut [f32]) -> bool {
                vector::logits::<$lanes, Numbers, $nk, $ns>(keys, words, panel, tile)
            }
            fn absorb(tile: &[f32], scale: f32, max: &mut [f32], sum: &mut [f64], away: &mut [u8]) -> () {
                vector::absorb::<$lanes, $e>(tile, scale, max, sum, away)
            }
            fn add_exp(tile: &[f32], scale: f32, lse: &[f32], sums: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_exp::<$lanes, N, $e>(tile, scale, lse, sums)
            }
            fn add_weighted(away: &[u8], max: &[f32], lse: &[f32], sums: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_weighted::<$lanes, N>(away, max, lse, sums)
            }
            fn softmax_rows(tile: &mut [f32], scale: f32, max: &mut [f32], sum: &mut [f64]) -> () {
                vector::softmax_rows::<$lanes, { KEY_BLOCK / N }>(tile, scale, max, sum)
            }
            fn pool_max(x: &[f32], kernel: usize, out: &mut [f32]) -> () {
                vector::pool_max::<$lanes>(x, kernel, out)
            }
        }
        $crate::backend::vector::entry_by_dtype! { $features
            fn load_keys(keys: &Block, rows: &mut [f32]) -> () = load_keys::<$lanes>;
            fn dots(keys: &Block, q: &[f32], tile: &mut [f32]) -> bool = dots::<$lanes>, Numbers, N;
            fn max_l1(values: &Block) -> f32 = max_l1::<$lanes>;
            fn add_values(values: &Block, tile: &[f32], acc: &mut [f32]) -> () = add_values::<$lanes>, $nv;
        }
    };
}

/// Functions for the table that read rows of any element type. Rows whose elements do not lie side by side go to the
/// scalar kernels.
macro_rules! entry_by_dtype {
    ($features:literal $(fn $name:ident($rows:ident: &Block $(, $arg:ident: $type:ty)*) -> $out:ty
        = $kernel:ident::<$lanes:ty> $(, $more:tt)*;)*) => {
        $($crate::backend::vector::entry! { $features
            fn $name($rows: &Block $(, $arg: $type)*) -> $out {
                match $rows.tensor.dtype() {
                    _ if !$rows.tensor.is_row_contiguous() => (scalar::KERNELS.$name)($rows $(, $arg)*),
                    Dtype::F32 => vector::$kernel::<$lanes, F32 $(, $more)*>($rows $(, $arg)*),
                    Dtype::F16 => vector::$kernel::<$lanes, F16 $(, $more)*>($rows $(, $arg)*),
                    Dtype::BF16 => vector::$kernel::<$lanes, Bf16 $(, $more)*>($rows $(, $arg)*),
                }
            }
        })*
    };
}

/// A safe function for the table around a body that is compiled for the instruction set.
macro_rules! entry {
    ($features:literal $($visibility:vis fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty { $body:expr })*) => {
        $($visibility fn $name($($arg: $type),*) -> $out {
            #[target_feature(enable = $features)]
            unsafe fn compiled($($arg: $type),*) -> $out {
                // SAFETY: this function has the features that the generic kernel is to be inlined with.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
            // SAFETY: the table that holds this function is handed out only where the machine has the features.
            unsafe { compiled($($arg),*) }
        })*
    };
}

pub(super) use {entry, entry_by_dtype, instructions, kernels};
