//! What the test files share.
#![allow(dead_code)]

use lava::workspace::Carver;
use lava::*;

/// A reproducible stream of numbers (splitmix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn reals(&mut self, n: usize, size: f64) -> Vec<f64> {
        (0..n).map(|_| self.real() * size).collect()
    }
}

pub fn aligned(bytes: usize) -> Vec<u128> {
    vec![0; bytes.div_ceil(16)]
}

pub fn carver(memory: &mut [u128]) -> Carver<'_> {
    // SAFETY: u128s are bytes too, and the slice covers exactly their memory.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, size_of_val(memory)) };
    Carver::over(bytes).expect("u128s are aligned")
}

/// Layer 3 of some model, of which nothing has been evicted.
pub fn shape(n_tokens: usize, heads: (usize, usize), dims: (usize, usize), window: usize) -> Shape<'static> {
    Shape { layer: 3, ..Shape::dense(n_tokens, heads.0, heads.1, dims.0, dims.1, window) }
}
