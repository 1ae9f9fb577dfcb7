//! aarch64 with NEON: two registers of four f32 as one of eight. So f16 and bf16 are loaded by whole registers, and the
//! kernels' loops have as many sums side by side as it takes to keep four units with a latency of four busy.

use core::arch::aarch64::*;
use core::arch::asm;

#[derive(Clone, Copy)]
pub(super) struct Neon([float32x4_t; 2]);

impl Neon {
    #[inline(always)]
    fn of(f: impl Fn(usize) -> float32x4_t) -> Self {
        Self([f(0), f(1)])
    }
}

// SAFETY: loads and stores are of twice four elements.
unsafe impl Lanes for Neon {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: arithmetic; the module's contract gives the machine. The same holds below where nothing else is said.
        Self::of(|_| unsafe { vdupq_n_f32(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises eight readable elements.
        Self::of(|i| unsafe { vld1q_f32(p.add(4 * i)) })
    }
    /// The intrinsics that convert f16 are stable from Rust 1.94 on; this crate asks for less.
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller promises eight readable elements. The instructions convert the lower and the upper four.
        unsafe {
            let x = vld1q_u16(p);
            let (low, high): (float32x4_t, float32x4_t);
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) low, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
            asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) high, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
            Self([low, high])
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller promises eight readable elements. A bf16 is the upper half of an f32.
        unsafe {
            let x = vld1q_u16(p);
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(x)), vshll_high_n_u16::<16>(x));
            Self([vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)])
        }
    }
    #[inline(always)]
    unsafe fn load_24(upper: *const u16, lower: *const u8) -> Self {
        // SAFETY: the caller promises eight readable elements at both. Each upper half is joined with its lower one, then
        // both are shifted right by the two clear bits.
        unsafe {
            let (upper, lower) = (vld1q_u16(upper), vshll_n_u8::<8>(vld1_u8(lower)));
            let both = [vzip1q_u16(lower, upper), vzip2q_u16(lower, upper)];
            Self::of(|i| vreinterpretq_f32_u32(vshrq_n_u32::<2>(vreinterpretq_u32_u16(both[i]))))
        }
    }
    #[inline(always)]
    unsafe fn store_24(self, upper: *mut u16, lower: *mut u8) {
        // SAFETY: the caller promises eight writable elements at both. The first shift rounds, as adding half a unit
        // would.
        unsafe {
            let [low, high] = self.0.map(|x| vrshrq_n_u32::<6>(vreinterpretq_u32_f32(x)));
            vst1q_u16(upper, vshrn_high_n_u32::<8>(vshrn_n_u32::<8>(low), high));
            vst1_u8(lower, vmovn_u16(vmovn_high_u32(vmovn_u32(low), high)));
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises eight writable elements.
        unsafe {
            vst1q_f32(p, self.0[0]);
            vst1q_f32(p.add(4), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint may name any address. It has no stable intrinsic.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) p, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn prefetch_once(p: *const u8) {
        // SAFETY: see `prefetch`.
        unsafe { asm!("prfm pldl1strm, [{0}]", in(reg) p, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see `splat`.
        Self::of(|i| unsafe { vaddq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see `splat`.
        Self::of(|i| unsafe { vsubq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see `splat`.
        Self::of(|i| unsafe { vmulq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see `splat`.
        Self::of(|i| unsafe { vfmaq_f32(c.0[i], self.0[i], b.0[i]) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see `splat`. Of a number and a quiet NaN the instruction returns the number, as `Lanes` asks.
        Self::of(|i| unsafe { vmaxnmq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see `max`.
        Self::of(|i| unsafe { vminnmq_f32(self.0[i], other.0[i]) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see `splat`.
        Self::of(|i| unsafe { vabsq_f32(self.0[i]) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see `splat`.
        Self::of(|i| unsafe { vrndnq_f32(self.0[i]) })
    }
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        // SAFETY: see `splat`. Added to the exponent, which is an f32's bits 23 and up.
        Self::of(|i| unsafe {
            let n = vshlq_n_s32::<23>(vcvtnq_s32_f32(n.0[i]));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self.0[i]), n))
        })
    }
    #[inline(always)]
    unsafe fn where_above(self, bound: Self, x: Self) -> Self {
        // SAFETY: see `splat`. The comparison is false for NaN.
        Self::of(|i| unsafe {
            vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(self.0[i], bound.0[i]), vreinterpretq_u32_f32(x.0[i])))
        })
    }
    #[inline(always)]
    unsafe fn any_above(self, bound: Self) -> bool {
        // SAFETY: see `splat`.
        unsafe {
            let above = |i: usize| vcgtq_f32(self.0[i], bound.0[i]);
            vmaxvq_u32(vorrq_u32(above(0), above(1))) != 0
        }
    }
    #[inline(always)]
    unsafe fn weighted_less(self, weight: *const f64, less: f64) -> Self {
        // SAFETY: the caller promises eight readable weights.
        Self::of(|i| unsafe {
            let (weight, less) = (weight.add(4 * i), vdupq_n_f64(-less));
            let low = vfmaq_f64(less, vcvt_f64_f32(vget_low_f32(self.0[i])), vld1q_f64(weight));
            let high = vfmaq_f64(less, vcvt_high_f64_f32(self.0[i]), vld1q_f64(weight.add(2)));
            vcvt_high_f32_f64(vcvt_f32_f64(low), high)
        })
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { vaddvq_f32(vaddq_f32(self.0[0], self.0[1])) }
    }
    #[inline(always)]
    unsafe fn sums<const L: usize>(x: [Self; L]) -> Self {
        const { assert!(L == 8) };
        // SAFETY: see `splat`. Halves, then neighbours twice.
        Self::of(|i| unsafe {
            let four = |j: usize| vaddq_f32(x[4 * i + j].0[0], x[4 * i + j].0[1]);
            vpaddq_f32(vpaddq_f32(four(0), four(1)), vpaddq_f32(four(2), four(3)))
        })
    }
    #[inline(always)]
    unsafe fn maxima<const L: usize>(x: [Self; L]) -> Self {
        const { assert!(L == 8) };
        // SAFETY: see `splat`. Halves, then neighbours twice.
        Self::of(|i| unsafe {
            let four = |j: usize| vmaxq_f32(x[4 * i + j].0[0], x[4 * i + j].0[1]);
            vpmaxq_f32(vpmaxq_f32(four(0), four(1)), vpmaxq_f32(four(2), four(3)))
        })
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { vmaxvq_f32(vmaxq_f32(self.0[0], self.0[1])) }
    }
}

// Six keys by four registers of query rows: 24 sums, and eight registers for the rows and the keys. A step is 38
// instructions for 24 multiply-adds, which take the key by element.
super::vector::kernels!(c"neon", Neon, "neon", keys: (6, 4), exps: 2, values: 2);
