//! x86-64 with AVX2, FMA and F16C: eight f32 per register.

use core::arch::x86_64::*;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Whether the machine converts f16, which `cpufeatures` does not report.
pub(super) fn has_f16c() -> bool {
    static KNOWN: Answer = Answer::new();
    // Miri cannot ask. `fuzz/miri.sh` says what it assumes instead.
    KNOWN.get(|| cfg!(miri) || __cpuid(1).ecx >> 29 & 1 == 1)
}

/// What `cpuid` said. Asked once: a virtual machine answers slowly.
pub(super) struct Answer(AtomicU8);

impl Answer {
    const UNASKED: u8 = 2;

    pub const fn new() -> Self {
        Self(AtomicU8::new(Self::UNASKED))
    }

    /// Every thread would store the same answer, so no order among them is needed.
    pub fn get(&self, ask: impl Fn() -> bool) -> bool {
        if self.0.load(Relaxed) == Self::UNASKED {
            self.0.store(ask() as u8, Relaxed);
        }
        self.0.load(Relaxed) == 1
    }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

// SAFETY: loads and stores are of eight elements.
unsafe impl Lanes for Avx2 {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: arithmetic; the module's contract gives the machine. The same holds below where nothing else is said.
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises eight readable elements; the load needs no alignment.
        Self(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller promises eight readable elements, 16 bytes.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p as *const __m128i)) })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller promises eight readable elements, 16 bytes. A bf16 is the upper half of an f32.
        Self(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p as *const __m128i));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_24(upper: *const u16, lower: *const u8) -> Self {
        // SAFETY: the caller promises eight readable elements at both, 16 and 8 bytes.
        Self(unsafe {
            let upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(upper as *const __m128i));
            let lower = _mm256_cvtepu8_epi32(_mm_loadl_epi64(lower as *const __m128i));
            _mm256_castsi256_ps(_mm256_or_si256(
                _mm256_slli_epi32::<14>(upper),
                _mm256_slli_epi32::<6>(lower),
            ))
        })
    }
    #[inline(always)]
    unsafe fn store_24(self, upper: *mut u16, lower: *mut u8) {
        // SAFETY: the caller promises eight writable elements at both, 16 and 8 bytes.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let bits = _mm256_srli_epi32::<6>(_mm256_add_epi32(bits, _mm256_set1_epi32(1 << 5)));
            // Packing works within halves; the unpacked upper parts are numbers below 2^16.
            let high = _mm256_srli_epi32::<8>(bits);
            let high = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
            _mm_storeu_si128(upper as *mut __m128i, high);
            let low = _mm256_and_si256(bits, _mm256_set1_epi32(0xFF));
            let low = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storel_epi64(lower as *mut __m128i, _mm_packus_epi16(low, low));
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises eight writable elements.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p as *const i8) }
    }
    #[inline(always)]
    unsafe fn prefetch_once(p: *const u8) {
        // SAFETY: a hint may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p as *const i8) }
    }
    // The maximum and minimum return their second operand where one is NaN, as `Lanes` asks.
    super::vector::instructions! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see `splat`.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see `splat`.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        // SAFETY: see `splat`. Added to the exponent, which is an f32's bits 23 and up.
        Self(unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n.0));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), n))
        })
    }
    #[inline(always)]
    unsafe fn where_above(self, bound: Self, x: Self) -> Self {
        // SAFETY: see `splat`. The ordered comparison is false for NaN.
        Self(unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, bound.0), x.0) })
    }
    #[inline(always)]
    unsafe fn any_above(self, bound: Self) -> bool {
        // SAFETY: see `splat`.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, bound.0)) != 0 }
    }
    #[inline(always)]
    unsafe fn weighted_less(self, weight: *const f64, less: f64) -> Self {
        // SAFETY: the caller promises eight readable weights.
        Self(unsafe {
            let less = _mm256_set1_pd(less);
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(self.0));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0));
            let low = _mm256_cvtpd_ps(_mm256_fmsub_pd(low, _mm256_loadu_pd(weight), less));
            let high = _mm256_cvtpd_ps(_mm256_fmsub_pd(high, _mm256_loadu_pd(weight.add(4)), less));
            _mm256_set_m128(high, low)
        })
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn sums<const L: usize>(x: [Self; L]) -> Self {
        const { assert!(L == 8) };
        // SAFETY: see `splat`. Adding neighbours twice leaves sums of four within the halves of a register.
        Self(unsafe {
            let mut four = [_mm256_setzero_ps(); 2];
            for i in 0..2 {
                let (a, b) = (
                    _mm256_hadd_ps(x[4 * i].0, x[4 * i + 1].0),
                    _mm256_hadd_ps(x[4 * i + 2].0, x[4 * i + 3].0),
                );
                four[i] = _mm256_hadd_ps(a, b);
            }
            let [low, high] = four;
            _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            )
        })
    }
    #[inline(always)]
    unsafe fn maxima<const L: usize>(x: [Self; L]) -> Self {
        const { assert!(L == 8) };
        // SAFETY: see `splat`. Each step takes two registers into one: neighbours, pairs within the halves of a register, then halves.
        Self(unsafe {
            let (mut two, mut four) = ([_mm256_setzero_pd(); 4], [_mm256_setzero_ps(); 2]);
            for i in 0..4 {
                let (a, b) = (x[2 * i].0, x[2 * i + 1].0);
                two[i] = _mm256_castps_pd(_mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
            }
            for i in 0..2 {
                let (a, b) = (two[2 * i], two[2 * i + 1]);
                let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
                four[i] = _mm256_max_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
            }
            let [low, high] = four;
            _mm256_max_ps(
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            )
        })
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

#[cfg(not(miri))]
super::vector::kernels!(c"avx2", Avx2, "avx2,fma,f16c", keys: (6, 4), exps: 4, values: 2);
#[cfg(miri)]
super::vector::kernels!(c"avx2", Avx2, "avx2,fma", keys: (6, 4), exps: 4, values: 2);

/// Miri has no conversion of f16, so there the kernels do without f16c, and this function takes the instruction's name.
#[cfg(miri)]
fn _mm256_cvtph_ps(x: __m128i) -> __m256 {
    use core::mem::transmute;
    // SAFETY: all of these are plain bits.
    unsafe { transmute(transmute::<__m128i, [half::f16; 8]>(x).map(half::f16::to_f32)) }
}
