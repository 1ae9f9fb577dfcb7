//! x86-64 with AVX-512F: sixteen f32 per register, thirty-two registers.
//!
//! Where the machine multiplies pairs of bf16 (`avx512_bf16`) and queries and keys are both bf16, they are not widened:
//! twice the products per instruction. A lane is then a pair of neighbours in a row.

use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY: loads and stores are of sixteen elements.
unsafe impl Lanes for Avx512 {
    const N: usize = 16;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: arithmetic; the module's contract gives the machine. The same holds below where nothing else is said.
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
    unsafe fn store_24(self, upper: *mut u16, lower: *mut u8) {
        // SAFETY: the caller promises sixteen writable elements at both, 32 and 16 bytes.
        unsafe {
            let bits = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(1 << 5));
            let bits = _mm512_srli_epi32::<6>(bits);
            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<8>(bits));
            _mm256_storeu_si256(upper as *mut __m256i, high);
            _mm_storeu_si128(lower as *mut __m128i, _mm512_cvtepi32_epi8(bits));
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises sixteen writable elements.
        unsafe { _mm512_storeu_ps(p, self.0) }
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
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        abs(a) = _mm512_abs_ps;
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see `splat`. To an integer, half to even.
        Self(unsafe { _mm512_roundscale_ps::<0>(self.0) })
    }
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        // SAFETY: see `splat`.
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
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
    unsafe fn weighted_less(self, weight: *const f64, less: f64) -> Self {
        // SAFETY: the caller promises sixteen readable weights.
        Self(unsafe {
            let less = _mm512_set1_pd(less);
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(self.0));
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            let high = _mm512_cvtps_pd(_mm256_castpd_ps(high));
            let low = _mm512_cvtpd_ps(_mm512_fmsub_pd(low, _mm512_loadu_pd(weight), less));
            let high = _mm512_cvtpd_ps(_mm512_fmsub_pd(high, _mm512_loadu_pd(weight.add(8)), less));
            let low = _mm512_castpd256_pd512(_mm256_castps_pd(low));
            _mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(high)))
        })
    }
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn sums<const L: usize>(x: [Self; L]) -> Self {
        const { assert!(L == 16) };
        // SAFETY: see `splat`. Each step adds the halves of two registers into one: neighbours, pairs, then quarters.
        // No closure here: it would be compiled without the instruction set.
        Self(unsafe {
            let (mut two, mut four) = ([_mm512_setzero_pd(); 8], [_mm512_setzero_ps(); 4]);
            for i in 0..8 {
                let (a, b) = (x[2 * i].0, x[2 * i + 1].0);
                two[i] = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
            }
            for i in 0..4 {
                let (a, b) = (two[2 * i], two[2 * i + 1]);
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                four[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            }
            let [a, b, c, d] = four;
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xDD>(c, d));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd))
        })
    }
    #[inline(always)]
    unsafe fn maxima<const L: usize>(x: [Self; L]) -> Self {
        const { assert!(L == 16) };
        // SAFETY: see `splat`. As `sums`, with maxima.
        Self(unsafe {
            let (mut two, mut four) = ([_mm512_setzero_pd(); 8], [_mm512_setzero_ps(); 4]);
            for i in 0..8 {
                let (a, b) = (x[2 * i].0, x[2 * i + 1].0);
                two[i] = _mm512_castps_pd(_mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
            }
            for i in 0..4 {
                let (a, b) = (two[2 * i], two[2 * i + 1]);
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                four[i] = _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            }
            let [a, b, c, d] = four;
            let ab = _mm512_max_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
            let cd = _mm512_max_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xDD>(c, d));
            _mm512_max_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd))
        })
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

super::vector::kernels!(c"avx512", Avx512, "avx512f,avx2,fma,f16c", keys: (8, 4), exps: 4, values: 4);

/// Whether the machine multiplies pairs of bf16, which `cpufeatures` does not report.
pub(super) fn has_bf16() -> bool {
    static KNOWN: super::avx2::Answer = super::avx2::Answer::new();
    KNOWN.get(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).eax >= 1 && __cpuid_count(7, 1).eax >> 5 & 1 == 1)
}

/// With pairs of bf16 multiplied as they are.
pub(crate) static KERNELS_BF16: Kernels = Kernels { name: c"avx512_bf16", bf16: Some(&PAIRS), ..KERNELS };

/// What [`KERNELS_BF16`] uses where queries and keys are both bf16: a lane holds two neighbours in a row.
static PAIRS: Kernels = Kernels {
    dims_per_word: 2,
    to_words,
    load_keys: load_pairs,
    logits: logits_pairs,
    dots: dots_pairs,
    ..KERNELS
};

/// Two bf16, as the bits of one lane.
struct Pair;

impl vector::Source for Pair {
    type Element = [u16; 2];
    const DIMS: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const [u16; 2]) -> V {
        // SAFETY: the caller's promise: N elements of four bytes; the load needs no alignment.
        unsafe { V::load(p as *const f32) }
    }
    #[inline(always)]
    unsafe fn one(p: *const [u16; 2]) -> f32 {
        // SAFETY: the caller's promise: one element is readable.
        unsafe { (p as *const f32).read_unaligned() }
    }
}

/// `acc + x₀ · y₀ + x₁ · y₁` per lane: each product is exact, each sum is rounded to f32. Subnormal numbers count as 0.
struct Pairs;

impl vector::Product<Avx512> for Pairs {
    #[inline(always)]
    unsafe fn add(x: Avx512, y: Avx512, acc: Avx512) -> Avx512 {
        // SAFETY: arithmetic, on the machine that `Backend::avx512_bf16` asked for; all three types are 512 plain bits.
        unsafe {
            use core::mem::transmute;
            Avx512(_mm512_dpbf16_ps(
                acc.0,
                transmute::<__m512, __m512bh>(x.0),
                transmute::<__m512, __m512bh>(y.0),
            ))
        }
    }
    #[inline(always)]
    unsafe fn one(x: f32, y: f32) -> f32 {
        let halves = |x: f32| {
            let bits = x.to_bits();
            [f32::from_bits(bits << 16), f32::from_bits(bits & 0xFFFF_0000)]
        };
        let (x, y) = (halves(x), halves(y));
        x[0] * y[0] + x[1] * y[1]
    }
}

fn to_words(row: &[f32], words: &mut [f32]) {
    for (pair, word) in row.chunks_exact(2).zip(words) {
        let bits = |x: f32| half::bf16::from_f32(x).to_bits() as u32;
        *word = f32::from_bits(bits(pair[1]) << 16 | bits(pair[0]));
    }
}

super::vector::entry! { "avx512f,avx512bf16,avx2,fma,f16c"
    fn load_pairs(keys: &Block, rows: &mut [f32]) -> () {
        vector::load_keys::<Avx512, Pair>(keys, rows)
    }
    fn logits_pairs(keys: &[f32], words: usize, panel: &[f32], tile: &mut [f32]) -> bool {
        vector::logits::<Avx512, Pairs, 8, 4>(keys, words, panel, tile)
    }
    fn dots_pairs(keys: &Block, q: &[f32], tile: &mut [f32]) -> bool {
        vector::dots::<Avx512, Pair, Pairs, N>(keys, q, tile)
    }
}
