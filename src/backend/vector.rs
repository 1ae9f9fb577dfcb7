//! The kernels, written once for vectors of any width: an instruction set brings its registers as a type ([`Lanes`]), and
//! [`kernels!`] makes a table of them.
//!
//! [`score`] and [`attend`] begin with pseudocode of their kernels.
//!
//! Where this departs from the scalar kernels: products are fused into sums, and sums run across lanes first, so
//! results differ in the last bits. f16 and bf16 are widened in registers. Rows whose elements are not side by side go
//! to the scalar kernels.
//!
//! # Safety
//! Every function here is `unsafe` for one reason: it must be inlined into a function that runs only on machines with
//! the instruction set of its `Lanes`. [`kernels!`] sees to the inlining; `Backend`'s constructors see to the machine.
#![allow(clippy::missing_safety_doc)]

mod attend;
mod score;

use super::{Block, scalar};
use half::{bf16, f16};

pub(super) use attend::*;
pub(super) use score::*;

/// A register of f32s.
///
/// # Safety
/// What a function reads or writes at a pointer is exactly `N` elements.
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
    /// The same for a line that will be used once.
    unsafe fn prefetch_once(p: *const u8);
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
    /// `x` where `self > bound`, else 0; so 0 where `self` is NaN.
    unsafe fn where_above(self, bound: Self, x: Self) -> Self;
    /// Whether any lane is above `bound`'s.
    unsafe fn any_above(self, bound: Self) -> bool;
    /// `self · weight − less` in f64, rounded to f32 at the end.
    unsafe fn weighted_less(self, weight: *const f64, less: f64) -> Self;
    /// Sum of the lanes.
    unsafe fn total(self) -> f32;
    /// The same of each of `L = N` registers: lane `i` holds the sum of register `i`.
    unsafe fn sums<const L: usize>(x: [Self; L]) -> Self;
    /// The largest of each of `L = N` registers, none of which holds NaN, in the same way.
    unsafe fn maxima<const L: usize>(x: [Self; L]) -> Self;
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

/// `2^x` for `x < 128`, the scalar backend's polynomial with fused steps; 0 below −126 and for NaN.
#[inline(always)]
unsafe fn exp2<V: Lanes, const N: usize>(x: [V; N]) -> [V; N] {
    // SAFETY: the module's contract gives the machine.
    unsafe { exp2_above(-126.0, x) }
}

/// The same with 0 below `least`, which is at least −126. Several registers side by side, since one alone would wait
/// for itself at every step.
#[inline(always)]
unsafe fn exp2_above<V: Lanes, const N: usize>(least: f32, x: [V; N]) -> [V; N] {
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
            // Far below the range this is meaningless, and not used.
            y[j] = x[j].where_above(V::splat(least), y[j].times_pow2(n[j]));
        }
        y
    }
}

/// Bytes of rows between the one in use and the one that is prefetched: what memory delivers within its latency.
const AHEAD: usize = 12288;

/// The same as a distance in memory.
#[inline(always)]
fn ahead_of(rows: &Block) -> usize {
    (AHEAD / (rows.tensor.dim() * rows.tensor.dtype().size())).max(1) * rows.tensor.row_step()
}

/// Operations of a `Lanes` that are one instruction: `name(a, b) = intrinsic`.
#[cfg(target_arch = "x86_64")]
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

/// Makes the table of an instruction set: `$lanes` are its registers, `$features` what the machine must have. `$nk`
/// keys and two registers of query rows make the sums of a tile of logits, `$ns` where fewer keys are left; `$e`
/// exponentials go side by side; `$nv` registers of values are summed for four queries.
macro_rules! kernels {
    ($name:literal, $lanes:ty, $features:literal, keys: ($nk:literal, $ns:literal), exps: $e:literal, values: $nv:literal) => {
        use $crate::backend::vector::{self, Bf16, F16, F32, Lanes, Numbers};
        use $crate::backend::{Block, ExactSoftmax, KEY_BLOCK, Kernels, Softmax, Spread, scalar};
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
            absorb_exactly,
            add_exp,
            add_squares,
            add_fourths,
            max_exp,
            add_weighted,
            fourths_weighted,
            max_weighted,
            spread,
            softmax_rows,
            max_l1,
            times_l2,
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
                vector::absorb::<$lanes, $e, false>(tile, scale, max, sum, away)
            }
            fn absorb_exactly(tile: &[f32], scale: f32, max: &mut [f32], sum: &mut [f64]) -> () {
                vector::absorb::<$lanes, $e, true>(tile, scale, max, sum, &mut [])
            }
            fn add_exp(
                tile: &[f32], scale: f32, rows: Softmax, sums: &mut [f32; KEY_BLOCK], totals: &mut [f64]
            ) -> () {
                vector::add_exp::<$lanes, N, $e, { vector::SUM }>(tile, scale, rows, sums, totals)
            }
            fn add_squares(
                tile: &[f32], scale: f32, rows: Softmax, sums: &mut [f32; KEY_BLOCK], totals: &mut [f64]
            ) -> () {
                vector::add_exp::<$lanes, N, $e, { vector::SQUARES }>(tile, scale, rows, sums, totals)
            }
            fn add_fourths(
                tile: &[f32], scale: f32, rows: Softmax, sums: &mut [f32; KEY_BLOCK], totals: &mut [f64]
            ) -> () {
                vector::add_exp::<$lanes, N, $e, { vector::FOURTHS }>(tile, scale, rows, sums, totals)
            }
            fn max_exp(
                tile: &[f32], scale: f32, rows: Softmax, maxima: &mut [f32; KEY_BLOCK], totals: &mut [f64]
            ) -> () {
                vector::add_exp::<$lanes, N, $e, { vector::MAX }>(tile, scale, rows, maxima, totals)
            }
            fn add_weighted(away: &[u8], max: &[f32], rows: Softmax, sums: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_weighted::<$lanes, N, { vector::SUM }>(away, max, rows, sums)
            }
            fn fourths_weighted(away: &[u8], max: &[f32], rows: Softmax, sums: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_weighted::<$lanes, N, { vector::FOURTHS }>(away, max, rows, sums)
            }
            fn max_weighted(away: &[u8], max: &[f32], rows: Softmax, maxima: &mut [f32; KEY_BLOCK]) -> () {
                vector::add_weighted::<$lanes, N, { vector::MAX }>(away, max, rows, maxima)
            }
            fn spread(
                tile: &mut [f32], scale: f32, rows: ExactSoftmax, out: &mut Spread, totals: &mut [f64]
            ) -> () {
                vector::spread::<$lanes, N, $e>(tile, scale, rows, out, totals)
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
            fn times_l2(values: &Block, x: &mut [f32]) -> () = times_l2::<$lanes>;
            fn add_values(values: &Block, tile: &[f32], acc: &mut [f32]) -> () = add_values::<$lanes>, $nv;
        }
    };
}

/// Functions for the table that read rows of any element type. Rows whose elements are not side by side go to the
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
                // SAFETY: this function has the features that the generic kernel must be inlined with.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
            // SAFETY: the table that holds this function is handed out only where the machine has the features.
            unsafe { compiled($($arg),*) }
        })*
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use instructions;
pub(super) use {entry, entry_by_dtype, kernels};
