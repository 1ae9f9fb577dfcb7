//! x86-64 with AVX2, FMA and F16C: eight f32 a register.

use core::arch::x86_64::*;

use super::PUT_AWAY_ROW;
use super::vector::Source;

/// Whether the machine converts f16, which `cpufeatures` does not tell. Asked once: a virtual machine answers slowly.
pub(super) fn has_f16c() -> bool {
    use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
    static KNOWN: AtomicU8 = AtomicU8::new(UNASKED);
    const UNASKED: u8 = 2;
    // Every thread would store the same answer, so no order among them is needed.
    if KNOWN.load(Relaxed) == UNASKED {
        KNOWN.store((__cpuid(1).ecx >> 29 & 1) as u8, Relaxed);
    }
    KNOWN.load(Relaxed) == 1
}

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

// SAFETY: loads and stores are of eight elements.
unsafe impl Lanes for Avx2 {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: arithmetic; the module's contract gives the machine. So below, where nothing else is said.
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
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises eight writable elements.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p as *const i8) }
    }
    // The maximum and minimum return their second operand where one is NaN, as `Lanes` asks.
    super::vector::instructions! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
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
    unsafe fn times_pow2(self, shifted: Self) -> Self {
        // SAFETY: see `splat`. Added to the exponent, which is where an f32 has its bits 23 and up.
        Self(unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0));
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
    unsafe fn total(self) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn totals(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: see `splat`; the store is into an array of four.
        unsafe {
            let (a, b) = (_mm256_hadd_ps(x[0].0, x[1].0), _mm256_hadd_ps(x[2].0, x[3].0));
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
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

super::vector::kernels!("avx2", Avx2, "avx2,fma,f16c", (6, 4, 2), pack_keys, put_away);

super::vector::entry! { "avx2,fma,f16c"
    pub(super) fn pack_keys(keys: &Block, panel: &mut [f32]) -> () {
        match keys.tensor.dtype() {
            _ if keys.n < KEY_BLOCK || !keys.tensor.is_row_contiguous() => (scalar::KERNELS.pack_keys)(keys, panel),
            Dtype::F32 => pack::<F32>(keys, panel),
            Dtype::F16 => pack::<F16>(keys, panel),
            Dtype::BF16 => pack::<Bf16>(keys, panel),
        }
    }
}

super::vector::entry! { "avx2,fma,f16c"
    pub(super) fn put_away(tile: &[f32], memory: &mut [u8]) -> () {
        put_rows_away(tile, memory)
    }
}

/// Stores past the caches: what was there need not be read first, and nothing that is needed soon is pushed out.
#[inline(always)]
unsafe fn put_rows_away(tile: &[f32], memory: &mut [u8]) {
    let rows = tile.len() / KEY_BLOCK;
    assert!(memory.len() >= rows * PUT_AWAY_ROW && (memory.as_ptr() as usize).is_multiple_of(16));
    // SAFETY: a row of the tile is four registers, a row of memory six aligned stores of 16 bytes; both slices hold `rows` of
    // them (just checked). The fence orders the stores before whatever follows, as the instruction's contract asks.
    unsafe {
        for r in 0..rows {
            let row = tile.as_ptr().add(r * KEY_BLOCK);
            let to = memory.as_mut_ptr().add(r * PUT_AWAY_ROW) as *mut __m128i;
            let (mut upper, mut lower) = ([_mm256_setzero_si256(); 4], [_mm256_setzero_si256(); 4]);
            for j in 0..4 {
                let bits = _mm256_castps_si256(_mm256_loadu_ps(row.add(8 * j)));
                let bits = _mm256_srli_epi32::<6>(_mm256_add_epi32(bits, _mm256_set1_epi32(1 << 5)));
                upper[j] = _mm256_srli_epi32::<8>(bits);
                lower[j] = _mm256_and_si256(bits, _mm256_set1_epi32(0xFF));
            }
            // Packing works within halves: a's and b's first four, then a's and b's last four.
            for (i, pair) in [(upper[0], upper[1]), (upper[2], upper[3])].into_iter().enumerate() {
                let packed = _mm256_permute4x64_epi64::<0xD8>(_mm256_packus_epi32(pair.0, pair.1));
                _mm_stream_si128(to.add(2 * i), _mm256_castsi256_si128(packed));
                _mm_stream_si128(to.add(2 * i + 1), _mm256_extracti128_si256::<1>(packed));
            }
            let halves = _mm256_packus_epi16(
                _mm256_packus_epi32(lower[0], lower[1]),
                _mm256_packus_epi32(lower[2], lower[3]),
            );
            let packed = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm_stream_si128(to.add(4), _mm256_castsi256_si128(packed));
            _mm_stream_si128(to.add(5), _mm256_extracti128_si256::<1>(packed));
        }
        _mm_sfence();
    }
}

/// Widens and transposes a full block of keys, eight keys and eight dims at a time.
#[inline(always)]
unsafe fn pack<S: Source>(keys: &Block, panel: &mut [f32]) {
    let d = keys.tensor.dim();
    assert!(panel.len() == d * KEY_BLOCK && keys.n == KEY_BLOCK);
    let panel = panel.as_mut_ptr();
    for i in (0..KEY_BLOCK).step_by(8) {
        let rows: [*const S::Element; 8] = core::array::from_fn(|j| keys.row(i + j) as *const S::Element);
        // SAFETY: each row has d elements side by side; c + 8 ≤ d in the vector part; the panel has d · KEY_BLOCK.
        unsafe {
            let mut c = 0;
            while c + 8 <= d {
                let mut x = [_mm256_setzero_ps(); 8];
                for j in 0..8 {
                    x[j] = S::load::<Avx2>(rows[j].add(c)).0;
                }
                let x = transpose(x);
                for j in 0..8 {
                    _mm256_storeu_ps(panel.add((c + j) * KEY_BLOCK + i), x[j]);
                }
                c += 8;
            }
            for c in c..d {
                for j in 0..8 {
                    *panel.add(c * KEY_BLOCK + i + j) = S::one(rows[j].add(c));
                }
            }
        }
    }
}

/// Eight rows of eight, turned: pairs, then quarters, then halves.
#[inline(always)]
unsafe fn transpose(x: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: shuffles only.
    unsafe {
        let mut t = x;
        for j in 0..4 {
            t[2 * j] = _mm256_unpacklo_ps(x[2 * j], x[2 * j + 1]);
            t[2 * j + 1] = _mm256_unpackhi_ps(x[2 * j], x[2 * j + 1]);
        }
        let mut u = t;
        for h in [0, 4] {
            u[h] = _mm256_shuffle_ps::<0x44>(t[h], t[h + 2]);
            u[h + 1] = _mm256_shuffle_ps::<0xEE>(t[h], t[h + 2]);
            u[h + 2] = _mm256_shuffle_ps::<0x44>(t[h + 1], t[h + 3]);
            u[h + 3] = _mm256_shuffle_ps::<0xEE>(t[h + 1], t[h + 3]);
        }
        let mut y = u;
        for j in 0..4 {
            y[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[j + 4]);
            y[j + 4] = _mm256_permute2f128_ps::<0x31>(u[j], u[j + 4]);
        }
        y
    }
}
