//! x86-64 with AVX-512F: sixteen f32 a register, thirty-two registers.
//!
//! Keys are packed by the AVX2 code, which every such machine runs: transposing is bound by shuffles, not by width.

use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY: loads and stores are of sixteen elements.
unsafe impl Lanes for Avx512 {
    const N: usize = 16;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: arithmetic; the module's contract gives the machine. So below, where nothing else is said.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises sixteen readable elements; the load needs no alignment.
        Self(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller promises sixteen readable elements, 32 bytes.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p as *const __m256i)) })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller promises sixteen readable elements, 32 bytes. A bf16 is the upper half of an f32.
        Self(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p as *const __m256i));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_24(upper: *const u16, lower: *const u8) -> Self {
        // SAFETY: the caller promises sixteen readable elements at both, 32 and 16 bytes.
        Self(unsafe {
            let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(upper as *const __m256i));
            let lower = _mm512_cvtepu8_epi32(_mm_loadu_si128(lower as *const __m128i));
            _mm512_castsi512_ps(_mm512_or_si512(
                _mm512_slli_epi32::<14>(upper),
                _mm512_slli_epi32::<6>(lower),
            ))
        })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises sixteen writable elements.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p as *const i8) }
    }
    // The maximum and minimum return their second operand where one is NaN, as `Lanes` asks.
    super::vector::instructions! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        abs(a) = _mm512_abs_ps;
    }
    #[inline(always)]
    unsafe fn times_pow2(self, shifted: Self) -> Self {
        // SAFETY: see `splat`. Added to the exponent, which is where an f32 has its bits 23 and up.
        Self(unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n))
        })
    }
    #[inline(always)]
    unsafe fn where_above(self, bound: Self, x: Self) -> Self {
        // SAFETY: see `splat`. The ordered comparison is false for NaN.
        Self(unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, bound.0), x.0) })
    }
    #[inline(always)]
    unsafe fn any_above(self, bound: Self) -> bool {
        // SAFETY: see `splat`.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, bound.0) != 0 }
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn totals(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: see `splat`; the store is into an array of four.
        unsafe {
            let half = |x: Self| {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x.0)));
                _mm256_add_ps(_mm512_castps512_ps256(x.0), high)
            };
            let (a, b) = (_mm256_hadd_ps(half(x[0]), half(x[1])), _mm256_hadd_ps(half(x[2]), half(x[3])));
            let halves = _mm256_hadd_ps(a, b);
            let mut out = [0.0; 4];
            let sum = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            _mm_storeu_ps(out.as_mut_ptr(), sum);
            out
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

super::vector::kernels!(
    "avx512",
    Avx512,
    "avx512f,avx2,fma,f16c",
    (12, 8, 2),
    super::avx2::pack_keys,
    super::avx2::put_away
);
