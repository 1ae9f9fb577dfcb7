//! Means over texts with 95% intervals, by bootstrap. All methods saw the same texts, and each replicate draws the same
//! texts for all of them: so the difference of two methods is paired, and its interval much tighter than theirs.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::measure::{Outcome, TextResult};
use crate::tasks::Task;

const REPLICATES: usize = 1000;

/// All texts of a task and a length.
pub struct Cell {
    pub task: Task,
    pub length: usize,
    pub results: Vec<TextResult>,
    /// Which texts each replicate draws: `[REPLICATES, texts]`.
    draws: Vec<u32>,
}

impl Cell {
    pub fn new(seed: u64, task: Task, length: usize, results: Vec<TextResult>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(((task as u64) << 48) | ((length as u64) << 32));
        let n = results.len() as u32;
        let draws = (0..REPLICATES as u32 * n).map(|_| rng.random_range(0..n)).collect();
        Self { task, length, results, draws }
    }

    fn estimate(&self, pick: impl Fn(&TextResult) -> f64) -> Estimate {
        let values: Vec<f64> = self.results.iter().map(pick).collect();
        let mean = |sum: f64| sum / values.len() as f64;
        Estimate {
            mean: mean(values.iter().sum()),
            replicates: self
                .draws
                .chunks_exact(values.len())
                .map(|draw| mean(draw.iter().map(|&i| values[i as usize]).sum()))
                .collect(),
        }
    }
}

/// A mean and what it would have been on other draws of the same number of texts.
#[derive(Clone, Debug)]
pub struct Estimate {
    pub mean: f64,
    replicates: Vec<f64>,
}

impl Estimate {
    /// The mean over cells, all with the same weight, of what is picked from each text. `None` without cells.
    pub fn over<'a>(
        cells: impl IntoIterator<Item = &'a Cell>,
        pick: impl Fn(&TextResult) -> f64 + Copy,
    ) -> Option<Self> {
        let parts: Vec<Self> = cells.into_iter().map(|c| c.estimate(pick)).collect();
        let n = parts.len() as f64;
        (!parts.is_empty()).then(|| Self {
            mean: parts.iter().map(|p| p.mean).sum::<f64>() / n,
            replicates: (0..REPLICATES)
                .map(|r| parts.iter().map(|p| p.replicates[r]).sum::<f64>() / n)
                .collect(),
        })
    }

    /// The same of a method at a ratio; `None` if it was not run on one of the cells.
    pub fn of<'a>(
        cells: impl IntoIterator<Item = &'a Cell> + Clone,
        method: usize,
        ratio: usize,
        pick: impl Fn(&Outcome) -> f64 + Copy,
    ) -> Option<Self> {
        let ran = cells.clone().into_iter().all(|c| c.results.iter().all(|r| r.of[method][ratio].is_some()));
        let outcome = |r: &TextResult| r.of[method][ratio].as_ref().map_or(f64::NAN, pick);
        if ran { Self::over(cells, outcome) } else { None }
    }

    pub fn minus(&self, other: &Self) -> Self {
        let pairs = self.replicates.iter().zip(&other.replicates);
        Self { mean: self.mean - other.mean, replicates: pairs.map(|(a, b)| a - b).collect() }
    }

    /// Bounds of the middle 95% of the replicates.
    pub fn interval(&self) -> (f64, f64) {
        let mut sorted = self.replicates.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted[REPLICATES / 40], sorted[REPLICATES - 1 - REPLICATES / 40])
    }

    /// Half the interval's width: the number after ±.
    pub fn half_width(&self) -> f64 {
        let (low, high) = self.interval();
        (high - low) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts whose accuracy is `values`, all else nothing.
    fn cell(values: &[f64]) -> Cell {
        let result = |&accuracy: &f64| TextResult {
            full: Outcome { accuracy, ..Outcome::default() },
            of: vec![vec![Some(Outcome { accuracy: accuracy + 0.25, ..Outcome::default() }), None]],
            depths: vec![],
        };
        Cell::new(1, Task::Copy, 512, values.iter().map(result).collect())
    }

    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        let values: Vec<f64> = (0..100).map(|i| (i % 10) as f64).collect();
        let full = Estimate::over([&cell(&values)], |r| r.full.accuracy).unwrap();
        assert!((full.mean - 4.5).abs() < 1e-12);
        // 1.96 standard errors; with 1000 replicates a quantile is off by a few percent.
        let theory = 1.96 * (8.25f64 / 100.0).sqrt();
        assert!((full.half_width() / theory - 1.0).abs() < 0.12, "{} against {theory}", full.half_width());
        let (low, high) = full.interval();
        assert!(low < full.mean && full.mean < high);
    }

    #[test]
    fn a_paired_difference_has_no_noise_of_the_texts() {
        let cell = cell(&[0.0, 1.0, 0.0, 1.0, 1.0]);
        let full = Estimate::over([&cell], |r| r.full.accuracy).unwrap();
        let method = Estimate::of([&cell], 0, 0, |o| o.accuracy).unwrap();
        let (low, high) = method.minus(&full).interval();
        assert!((low - 0.25).abs() < 1e-9 && (high - 0.25).abs() < 1e-9);
        assert!(Estimate::of([&cell], 0, 1, |o| o.accuracy).is_none(), "a ratio that was not run");
    }
}
