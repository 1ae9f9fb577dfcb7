//! Bytes become choices. After the last byte choices go on at random, but fixed by the bytes, so short inputs are whole cases.

/// Small fast generator (splitmix64); the same numbers everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// In [-1, 1).
    pub fn real(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

pub struct Choices<'a> {
    data: &'a [u8],
    behind: Random,
}

impl<'a> Choices<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        let seed = data.iter().fold(data.len() as u64, |h, &b| (h ^ b as u64).wrapping_mul(0x100_0000_01B3));
        Self { data, behind: Random(seed) }
    }

    pub fn byte(&mut self) -> u8 {
        match self.data.split_first() {
            Some((&byte, rest)) => {
                self.data = rest;
                byte
            }
            None => self.behind.bits() as u8,
        }
    }

    pub fn bits(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Below `n`, which is at most 65536.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = if n > 256 { self.byte() as usize * 256 } else { 0 };
        (wide + self.byte() as usize) % n
    }

    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// True once in `n`, by all bytes together. Used for what makes a case large: a fuzzer would find the byte for it, keep it for
    /// what it covers, and do little else.
    pub fn rarely(&mut self, n: u64) -> bool {
        self.behind.bits().is_multiple_of(n)
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// Numbers for a case's contents: their bits are not worth a fuzzer's time.
    pub fn random(&mut self) -> Random {
        Random(self.byte() as u64 | self.behind.bits() << 8)
    }
}
