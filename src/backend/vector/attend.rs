//! The kernels of attention over the compressed cache: lanes hold keys, or the dims of a row.
//!
//! ```text
//! dots           for NQ queries and N / NQ keys at a time: acc[q][k] += q[c ..] · k[c ..];
//!                then the N sums across lanes at once
//! softmax_rows   per row: maximum over the tile's row, 2 to the differences, their sum
//! add_values     for NQ queries and NV registers of dims at a time: for each row: acc += weight · v
//! ```

use super::{Lanes, Product, Source, ahead_of, exp2};
use crate::backend::{Block, KEY_BLOCK, UNSEEN, scalar};

/// Addresses of a block's rows: the first and the last are checked, the others are between them. Those from `n` on
/// repeat the last.
#[inline(always)]
fn rows_of<E>(block: &Block) -> [*const E; KEY_BLOCK] {
    assert!((1..=KEY_BLOCK).contains(&block.n));
    let (last, step) = (block.row(block.n - 1), block.tensor.row_step());
    let mut row = block.row(0);
    let mut rows = [last as *const E; KEY_BLOCK];
    for at in &mut rows[..block.n] {
        *at = row as *const E;
        row = row.wrapping_add(step);
    }
    rows
}

/// `NQ` queries against `N / NQ` keys, one product per lane: that of query `m` and key `j` in lane `m · N / NQ + j`.
#[inline(always)]
unsafe fn dots_at<V: Lanes, S: Source, P: Product<V>, const N: usize, const NQ: usize>(
    keys: &[*const S::Element],
    ahead: usize,
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
                V::prefetch_once((keys[j] as *const u8).wrapping_add(c * size_of::<S::Element>() + ahead));
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
    (n, ahead): (usize, usize),
    q: *const f32,
    words: usize,
    tile: &mut [f32],
    mut poison: V,
) -> V {
    let nk = N / NQ;
    let mut lanes = [0.0f32; N];
    for i in (0..n).step_by(nk) {
        // SAFETY: the caller promises NQ queries; `keys` are KEY_BLOCK rows, of which N / NQ follow at i; `lanes` has N
        // elements.
        unsafe {
            let dots = dots_at::<V, S, P, N, NQ>(&keys[i..i + nk], ahead, q, words);
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
pub(in crate::backend) unsafe fn dots<V: Lanes, S: Source, P: Product<V>, const N: usize>(
    keys: &Block,
    q: &[f32],
    tile: &mut [f32],
) -> bool {
    let words = keys.tensor.dim() / S::DIMS;
    let n_queries = q.len() / words;
    assert!(tile.len() >= n_queries * KEY_BLOCK && keys.n > 0);
    let rows = rows_of::<S::Element>(keys);
    let ahead = ahead_of(keys);
    let mut m = 0;
    // SAFETY: each call is given as many queries as are left; every row of the block has `words` lanes side by side.
    unsafe {
        let mut poison = V::splat(0.0);
        while m < n_queries {
            let (q, tile) = (q.as_ptr().add(m * words), &mut tile[m * KEY_BLOCK..]);
            match n_queries - m {
                4.. => {
                    poison = dots_strip::<V, S, P, N, 4>(&rows, (keys.n, ahead), q, words, tile, poison);
                    m += 4;
                }
                2..4 => {
                    poison = dots_strip::<V, S, P, N, 2>(&rows, (keys.n, ahead), q, words, tile, poison);
                    m += 2;
                }
                _ => {
                    poison = dots_strip::<V, S, P, N, 1>(&rows, (keys.n, ahead), q, words, tile, poison);
                    m += 1;
                }
            }
        }
        for row in tile[..n_queries * KEY_BLOCK].chunks_exact_mut(KEY_BLOCK) {
            row[keys.n..].fill(UNSEEN);
        }
        poison.total() == 0.0
    }
}

/// `NQ` queries' weighted sums of `NV` vectors of dims, over all rows of the block.
#[inline(always)]
unsafe fn add_values_at<V: Lanes, S: Source, const NQ: usize, const NV: usize>(
    rows: &[*const S::Element],
    ahead: usize,
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
                V::prefetch_once((row as *const u8).wrapping_add(j * V::N * size_of::<S::Element>() + ahead));
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
    ahead: usize,
    (mut c, d): (usize, usize),
    weights: *const f32,
    acc: *mut f32,
) -> usize {
    while c + NV * V::N <= d {
        // SAFETY: the caller promises NQ rows of weights and sums; c + NV · N ≤ d.
        unsafe { add_values_at::<V, S, NQ, NV>(rows, ahead, (c, d), weights, acc) };
        c += NV * V::N;
    }
    c
}

#[inline(always)]
pub(in crate::backend) unsafe fn add_values<V: Lanes, S: Source, const NV: usize>(
    values: &Block,
    tile: &[f32],
    acc: &mut [f32],
) {
    let d = values.tensor.dim();
    let n_queries = acc.len() / d;
    assert!(tile.len() >= n_queries * KEY_BLOCK && values.n > 0);
    let rows = rows_of::<S::Element>(values);
    let ahead = ahead_of(values);
    let rows = &rows[..values.n];
    let mut m = 0;
    while m < n_queries {
        let step = if m + 4 <= n_queries { 4 } else { 1 };
        // SAFETY: m + step rows of weights and sums follow; c stays below d.
        unsafe {
            let (weights, sums) = (tile.as_ptr().add(m * KEY_BLOCK), acc.as_mut_ptr().add(m * d));
            let c = if step == 4 {
                let c = add_values_strip::<V, S, 4, NV>(rows, ahead, (0, d), weights, sums);
                add_values_strip::<V, S, 4, 1>(rows, ahead, (c, d), weights, sums)
            } else {
                let c = add_values_strip::<V, S, 1, NV>(rows, ahead, (0, d), weights, sums);
                add_values_strip::<V, S, 1, 1>(rows, ahead, (c, d), weights, sums)
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

#[inline(always)]
pub(in crate::backend) unsafe fn softmax_rows<V: Lanes, const NV: usize>(
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
