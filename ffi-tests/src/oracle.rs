//! What the C functions must give, in plain lines over exact numbers.

use std::cmp::Reverse;

/// Which prefix entries a layer keeps, per head, by sorting: no thresholds, no floats but the scores.
pub struct Rule<'a> {
    pub scores: &'a [f32],
    pub n_heads: usize,
    pub protected: &'a [bool],
}

impl Rule<'_> {
    fn entry(&self, h: usize, i: usize) -> (bool, f32) {
        (self.protected[i], self.scores[h * self.protected.len() + i])
    }

    /// The best `n` of `entries`: protected first, then by score, then the lower head, then the lower token.
    fn best(&self, mut entries: Vec<(usize, usize)>, n: usize) -> Vec<(usize, usize)> {
        entries.sort_by(|&a, &b| {
            let key = |(h, i): (usize, usize)| self.entry(h, i);
            let ((pa, sa), (pb, sb)) = (key(a), key(b));
            let by_score = if pa && pb { std::cmp::Ordering::Equal } else { sb.total_cmp(&sa) };
            pb.cmp(&pa).then(by_score).then(a.cmp(&b))
        });
        entries.truncate(n);
        entries
    }

    fn all(&self, heads: std::ops::Range<usize>) -> Vec<(usize, usize)> {
        heads.flat_map(|h| (0..self.protected.len()).map(move |i| (h, i))).collect()
    }

    fn count(&self, entries: &[(usize, usize)]) -> Vec<usize> {
        (0..self.n_heads).map(|h| entries.iter().filter(|e| e.0 == h).count()).collect()
    }

    /// How many entries each head keeps under no floor.
    pub fn free(&self, budget: usize) -> Vec<usize> {
        self.count(&self.best(self.all(0..self.n_heads), budget))
    }

    /// Each head's best ⌊α·b/n⌋ first, the rest compete. α in billionths.
    pub fn guaranteed(&self, budget: usize, alpha: u128) -> Vec<usize> {
        let floor = (alpha * budget as u128 / (1_000_000_000 * self.n_heads as u128)) as usize;
        let mut kept: Vec<_> = (0..self.n_heads).flat_map(|h| self.best(self.all(h..h + 1), floor)).collect();
        let rest = self.all(0..self.n_heads).into_iter().filter(|e| !kept.contains(e)).collect();
        let won = self.best(rest, budget - kept.len());
        kept.extend(won);
        self.count(&kept)
    }

    /// h·(1 − α) + α·b/n, rounded by largest remainders.
    pub fn affine(&self, budget: usize, alpha: u128) -> Vec<usize> {
        let (one, n) = (1_000_000_000u128, self.n_heads as u128);
        let exact =
            self.free(budget).into_iter().map(|h| (one - alpha) * h as u128 * n + alpha * budget as u128);
        largest_remainder(&exact.collect::<Vec<_>>(), one * n, budget)
    }

    /// Positions that the heads keep for these counts, ascending.
    pub fn positions(&self, counts: &[usize]) -> Vec<Vec<u32>> {
        let head = |(h, &n): (usize, &usize)| {
            let mut positions: Vec<u32> =
                self.best(self.all(h..h + 1), n).into_iter().map(|(_, i)| i as u32).collect();
            positions.sort_unstable();
            positions
        };
        counts.iter().enumerate().map(head).collect()
    }
}

/// `numerators / denominator` as integers that sum to `total`: the largest remainders round up, ties to the lower index.
pub fn largest_remainder(numerators: &[u128], denominator: u128, total: usize) -> Vec<usize> {
    let mut counts: Vec<_> = numerators.iter().map(|n| (n / denominator) as usize).collect();
    let mut order: Vec<_> = (0..counts.len()).collect();
    order.sort_by_key(|&i| (Reverse(numerators[i] % denominator), i));
    let left = total - counts.iter().sum::<usize>();
    order.into_iter().take(left).for_each(|i| counts[i] += 1);
    counts
}
