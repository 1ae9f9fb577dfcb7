//! The kernels once, for vectors of any width: an instruction set brings its registers as a type ([`Lanes`]), and
//! [`kernels!`] makes a table of them.
//!
//! ```text
//! logits         for MR rows of q and NB vectors of keys at a time: for each c: acc[m][j] += q[m, c] · panel[c, j]
//! softmax_rows   per row: maximum over the tile's row, exp of the differences, their sum
//! dots           for 4 queries and 2 keys at a time: acc[k][q] += q[c ..] · k[c ..], then the sums across lanes
//! add_values     for 4 queries and 2 vectors of dims at a time: for each row: acc += weight · v
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

use super::{Block, KEY_BLOCK, PUT_AWAY_ROW, scalar};
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
    /// Numbers of 24 bits, as `put_away` leaves them: `upper` and `lower` hold `N` elements.
    unsafe fn load_24(upper: *const u16, lower: *const u8) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Asks for the cache line at `p`, which may be any address.
    unsafe fn prefetch(p: *const u8);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// `self · b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where `self` is NaN.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// `self · 2^n`, for `n` in the lowest bits of `shifted` and a result that is a normal number.
    unsafe fn times_pow2(self, shifted: Self) -> Self;
    /// `x` where `self > bound`, else 0, also where `self` is NaN.
    unsafe fn where_above(self, bound: Self, x: Self) -> Self;
    /// Whether any lane is above `bound`'s.
    unsafe fn any_above(self, bound: Self) -> bool;
    /// Sum of the lanes.
    unsafe fn total(self) -> f32;
    /// The same of four registers.
    unsafe fn totals(x: [Self; 4]) -> [f32; 4];
    /// Largest of the lanes, none of which is NaN.
    unsafe fn largest(self) -> f32;
}

/// An element type as a vector kernel reads it.
pub(super) trait Source {
    type Element: Copy;
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

/// `e^x` for `x ≤ 88`, the scalar backend's polynomial with fused steps; 0 below −87.3 and for NaN. Several registers side by
/// side, since one alone would wait for itself at every step.
#[inline(always)]
unsafe fn exp<V: Lanes, const N: usize>(x: [V; N]) -> [V; N] {
    // SAFETY: arithmetic only, on the machine that the module's contract asks for.
    unsafe {
        // Adding 1.5 · 2²³ rounds to an integer and leaves it in the lowest bits.
        let magic = V::splat(12_582_912.0);
        let (mut shifted, mut r, mut y) = (x, x, x);
        for j in 0..N {
            shifted[j] = x[j].fma(V::splat(core::f32::consts::LOG2_E), magic);
            let n = shifted[j].sub(magic);
            r[j] = n.fma(V::splat(-scalar::LN2_LO), n.fma(V::splat(-scalar::LN2_HI), x[j]));
            y[j] = V::splat(scalar::EXP[0]);
        }
        // By index: an iterator here is not always unrolled.
        for i in 1..scalar::EXP.len() {
            let c = V::splat(scalar::EXP[i]);
            for j in 0..N {
                y[j] = y[j].fma(r[j], c);
            }
        }
        for j in 0..N {
            // Far below the range this is nonsense, and not used.
            y[j] = x[j].where_above(V::splat(-87.3), y[j].times_pow2(shifted[j]));
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

/// `MR` rows of `q` against `NB` vectors of the panel's keys. Returns `poison + 0 · logits`.
#[inline(always)]
unsafe fn logits_at<V: Lanes, const MR: usize, const NB: usize>(
    q: *const f32,
    d: usize,
    panel: *const f32,
    tile: *mut f32,
    mut poison: V,
) -> V {
    // SAFETY: the caller promises q over MR · d elements, and NB · N keys of the panel's and the tile's rows.
    unsafe {
        let mut acc = [[V::splat(0.0); NB]; MR];
        for c in 0..d {
            let mut keys = [V::splat(0.0); NB];
            for j in 0..NB {
                keys[j] = V::load(panel.add(c * KEY_BLOCK + j * V::N));
            }
            for m in 0..MR {
                let x = V::splat(q.add(m * d + c).read());
                for j in 0..NB {
                    acc[m][j] = x.fma(keys[j], acc[m][j]);
                }
            }
        }
        for m in 0..MR {
            for j in 0..NB {
                acc[m][j].store(tile.add(m * KEY_BLOCK + j * V::N));
                poison = acc[m][j].fma(V::splat(0.0), poison);
            }
        }
        poison
    }
}

/// `MR · NB` registers hold sums. `MS` rows are fewer than `MR`, so that the sixteen rows that usually come need no single
/// ones: 16 = 2·6 + 4, and where twice `MS` are left they go as two halves, 16 = 2·8.
#[inline(always)]
pub(super) unsafe fn logits<V: Lanes, const MR: usize, const MS: usize, const NB: usize>(
    q: &[f32],
    panel: &[f32],
    tile: &mut [f32],
) -> bool {
    let d = panel.len() / KEY_BLOCK;
    let rows = q.len() / d;
    assert!(
        tile.len() >= rows * KEY_BLOCK && panel.len() == d * KEY_BLOCK && KEY_BLOCK.is_multiple_of(NB * V::N)
    );
    // SAFETY: the lengths were just checked; rows and keys are handled in runs that stay within.
    unsafe {
        let mut poison = V::splat(0.0);
        for first in (0..KEY_BLOCK).step_by(NB * V::N) {
            let (panel, mut r) = (panel.as_ptr().add(first), 0);
            while r < rows {
                let (q, tile, left) =
                    (q.as_ptr().add(r * d), tile.as_mut_ptr().add(r * KEY_BLOCK + first), rows - r);
                if left >= MR && left != 2 * MS {
                    poison = logits_at::<V, MR, NB>(q, d, panel, tile, poison);
                    r += MR;
                } else if left >= MS {
                    poison = logits_at::<V, MS, NB>(q, d, panel, tile, poison);
                    r += MS;
                } else {
                    poison = logits_at::<V, 1, NB>(q, d, panel, tile, poison);
                    r += 1;
                }
            }
        }
        poison.total() == 0.0
    }
}

#[inline(always)]
pub(super) unsafe fn softmax_rows<V: Lanes, const NV: usize>(
    tile: &mut [f32],
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
            if most.any_above(V::splat(max[r])) {
                let largest = most.largest();
                sum[r] *= scalar::exp(max[r] - largest) as f64;
                max[r] = largest;
            }
            let shift = V::splat(max[r]);
            let mut total = V::splat(0.0);
            for j in 0..NV {
                x[j] = x[j].sub(shift);
            }
            let e = exp(x);
            for j in 0..NV {
                e[j].store(row.add(j * V::N));
                total = total.add(e[j]);
            }
            sum[r] += total.total() as f64;
        }
    }
}

#[inline(always)]
pub(super) unsafe fn add_exp_rows<V: Lanes, const NV: usize>(
    tile: &[f32],
    lse: &[f32],
    sums: &mut [f32; KEY_BLOCK],
) {
    // SAFETY: rows and sums have KEY_BLOCK = NV · N elements.
    unsafe {
        let mut acc = [V::splat(0.0); NV];
        for (row, lse) in tile.chunks_exact(KEY_BLOCK).zip(lse) {
            let shift = V::splat(*lse);
            let mut x = acc;
            for j in 0..NV {
                // Only a log-sum-exp that is too small needs the cap: large, not wrapped around.
                x[j] = V::load(row.as_ptr().add(j * V::N)).sub(shift).min(V::splat(88.0));
            }
            let e = exp(x);
            for j in 0..NV {
                acc[j] = acc[j].add(e[j]);
            }
        }
        add_to(acc, sums);
    }
}

#[inline(always)]
pub(super) unsafe fn add_weighted_rows<V: Lanes, const NV: usize>(
    memory: &[u8],
    max: &[f32],
    lse: &[f32],
    sums: &mut [f32; KEY_BLOCK],
) {
    let rows = max.len().min(lse.len()).min(memory.len() / PUT_AWAY_ROW);
    let mut weights = [0.0f32; KEY_BLOCK];
    // SAFETY: rows and sums have KEY_BLOCK = NV · N elements; weights are loaded and stored N at a time only where as many
    // rows are left, and KEY_BLOCK is a multiple of N.
    unsafe {
        let mut acc = [V::splat(0.0); NV];
        for first in (0..rows).step_by(KEY_BLOCK) {
            let n = KEY_BLOCK.min(rows - first);
            let mut i = 0;
            while i + V::N <= n {
                let (max, lse) = (max.as_ptr().add(first + i), lse.as_ptr().add(first + i));
                exp([V::load(max).sub(V::load(lse))])[0].store(weights.as_mut_ptr().add(i));
                i += V::N;
            }
            for i in i..n {
                weights[i] = scalar::exp(max[first + i] - lse[first + i]);
            }
            for i in 0..n {
                let upper = memory.as_ptr().add((first + i) * PUT_AWAY_ROW);
                let lower = upper.add(2 * KEY_BLOCK);
                let weight = V::splat(weights[i]);
                for j in 0..NV {
                    let x = V::load_24((upper as *const u16).add(j * V::N), lower.add(j * V::N));
                    acc[j] = weight.fma(x, acc[j]);
                }
            }
        }
        add_to(acc, sums);
    }
}

#[inline(always)]
unsafe fn add_to<V: Lanes, const NV: usize>(acc: [V; NV], sums: &mut [f32; KEY_BLOCK]) {
    // SAFETY: NV · N = KEY_BLOCK.
    unsafe {
        for j in 0..NV {
            let at = sums.as_mut_ptr().add(j * V::N);
            acc[j].add(V::load(at)).store(at);
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

/// Four queries against `NK` keys.
#[inline(always)]
unsafe fn dots_of<V: Lanes, S: Source, const NK: usize>(
    keys: [*const S::Element; NK],
    d: usize,
    q: [*const f32; 4],
) -> [[f32; 4]; NK] {
    // SAFETY: the caller promises d elements at each key and each query.
    unsafe {
        let mut acc = [[V::splat(0.0); 4]; NK];
        let mut c = 0;
        while c + V::N <= d {
            let mut k = [V::splat(0.0); NK];
            for j in 0..NK {
                k[j] = S::load::<V>(keys[j].add(c));
            }
            for m in 0..4 {
                let x = V::load(q[m].add(c));
                for j in 0..NK {
                    acc[j][m] = x.fma(k[j], acc[j][m]);
                }
            }
            c += V::N;
        }
        let mut dots = [[0.0; 4]; NK];
        for j in 0..NK {
            dots[j] = V::totals(acc[j]);
            for c in c..d {
                let k = S::one(keys[j].add(c));
                for m in 0..4 {
                    dots[j][m] += q[m].add(c).read() * k;
                }
            }
        }
        dots
    }
}

#[inline(always)]
pub(super) unsafe fn dots<V: Lanes, S: Source>(keys: &Block, q: &[f32], tile: &mut [f32]) -> bool {
    let d = keys.tensor.dim();
    let n_queries = q.len() / d;
    assert!(tile.len() >= n_queries * KEY_BLOCK && keys.n > 0);
    let rows = rows_of::<S::Element>(keys);
    let mut poison = 0.0f32;
    for m in (0..n_queries).step_by(4) {
        // Fewer than four queries are filled up with the last; what they give is not stored.
        let n = 4.min(n_queries - m);
        // SAFETY: m + n ≤ n_queries rows of q, d elements each; every row of the block has d elements side by side.
        unsafe {
            let four = core::array::from_fn(|j| q.as_ptr().add((m + j.min(n - 1)) * d));
            for i in (0..keys.n).step_by(2) {
                let pair = dots_of::<V, S, 2>([rows[i], rows[(i + 1) % KEY_BLOCK]], d, four);
                for j in 0..n {
                    let at = &mut tile[(m + j) * KEY_BLOCK + i..][..2];
                    at[0] = pair[0][j];
                    at[1] = pair[1][j];
                    poison += 0.0 * pair[0][j] + 0.0 * pair[1][j];
                }
            }
        }
    }
    for row in tile.chunks_exact_mut(KEY_BLOCK) {
        row[keys.n..].fill(super::UNSEEN);
    }
    poison == 0.0
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

#[inline(always)]
pub(super) unsafe fn add_values<V: Lanes, S: Source>(values: &Block, tile: &[f32], acc: &mut [f32]) {
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
            let mut c = 0;
            while c + 2 * V::N <= d {
                match step {
                    4 => add_values_at::<V, S, 4, 2>(rows, (c, d), weights, sums),
                    _ => add_values_at::<V, S, 1, 2>(rows, (c, d), weights, sums),
                }
                c += 2 * V::N;
            }
            while c + V::N <= d {
                match step {
                    4 => add_values_at::<V, S, 4, 1>(rows, (c, d), weights, sums),
                    _ => add_values_at::<V, S, 1, 1>(rows, (c, d), weights, sums),
                }
                c += V::N;
            }
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

/// Makes the table of an instruction set: `$lanes` are its registers, `$features` what the machine must have, `$mr · $nb` sums
/// fill its registers with `$nb` vectors of keys and one of q beside them.
macro_rules! kernels {
    ($name:literal, $lanes:ty, $features:literal, ($mr:literal, $ms:literal, $nb:literal), $pack:path, $away:path) => {
        use $crate::backend::vector::{self, Bf16, F16, F32, Lanes};
        use $crate::backend::{Block, KEY_BLOCK, Kernels, scalar};
        use $crate::view::Dtype;

        const NV: usize = KEY_BLOCK / <$lanes as Lanes>::N;

        /// The table. Only `Backend`'s constructor hands it out, on machines that have what it needs.
        pub(crate) static KERNELS: Kernels = Kernels {
            name: $name,
            prefetch,
            pack_keys: $pack,
            logits,
            dots,
            softcap: scalar::KERNELS.softcap,
            softmax_rows,
            put_away: $away,
            add_exp_rows,
            add_weighted_rows,
            max_l1,
            pool_max,
            add_values,
        };

        $crate::backend::vector::entry! { $features
            fn prefetch(rows: &Block) -> () {
                vector::prefetch::<$lanes>(rows)
            }
            fn logits(q: &[f32], panel: &[f32], tile: &mut [f32]) -> bool {
                vector::logits::<$lanes, $mr, $ms, $nb>(q, panel, tile)
            }
            fn softmax_rows(tile: &mut [f32], max: &mut [f32], sum: &mut [f64]) -> () {
                vector::softmax_rows::<$lanes, NV>(tile, max, sum)
            }
            fn add_exp_rows(tile: &[f32], lse: &[f32], sums: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_exp_rows::<$lanes, NV>(tile, lse, sums)
            }
            fn add_weighted_rows(memory: &[u8], max: &[f32], lse: &[f32], sums: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_weighted_rows::<$lanes, NV>(memory, max, lse, sums)
            }
            fn pool_max(x: &[f32], kernel: usize, out: &mut [f32]) -> () {
                vector::pool_max::<$lanes>(x, kernel, out)
            }
            fn max_l1(values: &Block) -> f32 {
                match values.tensor.dtype() {
                    _ if !values.tensor.is_row_contiguous() => (scalar::KERNELS.max_l1)(values),
                    Dtype::F32 => vector::max_l1::<$lanes, F32>(values),
                    Dtype::F16 => vector::max_l1::<$lanes, F16>(values),
                    Dtype::BF16 => vector::max_l1::<$lanes, Bf16>(values),
                }
            }
            fn dots(keys: &Block, q: &[f32], tile: &mut [f32]) -> bool {
                match keys.tensor.dtype() {
                    _ if !keys.tensor.is_row_contiguous() => (scalar::KERNELS.dots)(keys, q, tile),
                    Dtype::F32 => vector::dots::<$lanes, F32>(keys, q, tile),
                    Dtype::F16 => vector::dots::<$lanes, F16>(keys, q, tile),
                    Dtype::BF16 => vector::dots::<$lanes, Bf16>(keys, q, tile),
                }
            }
            fn add_values(values: &Block, tile: &[f32], acc: &mut [f32]) -> () {
                match values.tensor.dtype() {
                    _ if !values.tensor.is_row_contiguous() => (scalar::KERNELS.add_values)(values, tile, acc),
                    Dtype::F32 => vector::add_values::<$lanes, F32>(values, tile, acc),
                    Dtype::F16 => vector::add_values::<$lanes, F16>(values, tile, acc),
                    Dtype::BF16 => vector::add_values::<$lanes, Bf16>(values, tile, acc),
                }
            }
        }
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

pub(super) use {entry, instructions, kernels};
