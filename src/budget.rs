//! Integers that sum exactly: a total shared among layers by weight, a layer's budget among heads.
//!
//! Shares are exact rationals. Weights are taken on a grid of 2⁻⁵², and every product and remainder is an integer, so no
//! rounding can lose a token or decide a tie. (The authors' released code truncates floats and loses up to a token per
//! layer per head.)

use crate::error::{ErrorKind, Result, ensure};

/// Most layers that a total can be shared among.
pub const MAX_LAYERS: usize = 1024;

/// Weights are integers in units of 2⁻⁵².
const GRID: f64 = (1u64 << 52) as f64;

/// How the real shares become integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Largest remainder, ties to the lower index: sums exactly.
    Exact,
    /// Rounded up: never below any later share of a cascade, in which real shares only shrink. (Largest remainders
    /// alone may grow by one when a layer arrives.)
    Up,
}

/// Marks a layer whose share is still open. No budget is that large.
const OPEN: u64 = u64::MAX;

/// Shares `total` among layers in proportion to `weights`, into `budgets`.
///
/// - They sum to exactly `min(total, Σ capacities)`: largest remainder, ties to the lower layer.
/// - No layer gets more than its capacity or less than its minimum; what it cannot use goes to the others in proportion.
/// - Where all open layers weigh zero they share equally.
///
/// Weights are finite and not negative. They are resolved to 2⁻⁵² (of the next power of two, where the largest is above 1);
/// smaller ones count as zero. Capacities are below 2³².
pub fn layer_budgets(
    weights: &[f64],
    capacities: &[u64],
    minimums: Option<&[u64]>,
    total: u64,
    budgets: &mut [u64],
) -> Result<()> {
    share(weights, capacities, minimums, total, Rounding::Exact, budgets)
}

pub(crate) fn share(
    weights: &[f64],
    capacities: &[u64],
    minimums: Option<&[u64]>,
    total: u64,
    rounding: Rounding,
    budgets: &mut [u64],
) -> Result<()> {
    let n = weights.len();
    ensure(n > 0 && n <= MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
    ensure(capacities.len() >= n, ErrorKind::BufferSize, c"capacities")?;
    ensure(minimums.is_none_or(|m| m.len() >= n), ErrorKind::BufferSize, c"minimums")?;
    ensure(budgets.len() >= n, ErrorKind::BufferSize, c"budgets")?;
    for (l, &w) in weights.iter().enumerate() {
        ensure(w.is_finite() && w >= 0.0, ErrorKind::NonFinite, c"weights")
            .map_err(|e| e.at_layer(l as u32))?;
    }
    let minimum = |l: usize| minimums.map_or(0, |m| m[l]);
    for l in 0..n {
        ensure(capacities[l] <= u32::MAX as u64, ErrorKind::Overflow, c"capacities")
            .and_then(|()| ensure(minimum(l) <= capacities[l], ErrorKind::Budget, c"minimums"))
            .map_err(|e| e.at_layer(l as u32))?;
    }
    let total = total.min(capacities[..n].iter().sum());
    ensure((0..n).map(minimum).sum::<u64>() <= total, ErrorKind::Budget, c"total")?;
    water_fill(weights, capacities, minimum, total, rounding, &mut budgets[..n]);
    Ok(())
}

/// [`share`], where everything is known to fit: weights are finite and not negative, capacities below 2³², and `total` is
/// between the sums of the minimums and of the capacities.
pub(crate) fn water_fill(
    weights: &[f64],
    capacities: &[u64],
    minimum: impl Fn(usize) -> u64,
    total: u64,
    rounding: Rounding,
    budgets: &mut [u64],
) {
    let n = weights.len();
    let largest = weights.iter().fold(0.0f64, |most, &w| most.max(w));
    // Dividing by a power of two changes no digit of a weight.
    let mut unit = GRID;
    while largest * (unit / GRID) > 1.0 {
        unit *= 0.5;
    }
    let weight = |l: usize| libm::rint(weights[l] * unit) as u128;

    // Water-filling with bounds on both sides: as long as bounds are violated, fix those violations that pull in the
    // direction of the sum, and share again among the rest.
    budgets.fill(OPEN);
    loop {
        let mut rest = total as u128;
        let mut sum = 0u128;
        let mut n_open = 0usize;
        for l in 0..n {
            if budgets[l] == OPEN {
                sum += weight(l);
                n_open += 1;
            } else {
                rest -= budgets[l] as u128;
            }
        }
        // All zero: equal weights.
        let (sum, equal) = if sum == 0 { (n_open as u128, 1) } else { (sum, 0) };
        let share = |l: usize| rest * if equal == 1 { 1 } else { weight(l) };

        // Positive: bounds ask for more than there is.
        let mut excess = 0i128;
        for l in (0..n).filter(|&l| budgets[l] == OPEN) {
            let bounded = share(l).clamp(minimum(l) as u128 * sum, capacities[l] as u128 * sum);
            excess += bounded as i128 - share(l) as i128;
        }
        let mut fixed_any = false;
        for l in 0..n {
            if budgets[l] == OPEN {
                if excess >= 0 && share(l) < minimum(l) as u128 * sum {
                    budgets[l] = minimum(l);
                    fixed_any = true;
                } else if excess <= 0 && share(l) > capacities[l] as u128 * sum {
                    budgets[l] = capacities[l];
                    fixed_any = true;
                }
            }
        }
        if fixed_any {
            continue;
        }
        round(rounding, sum, rest, share, budgets);
        return;
    }
}

/// Turns the real shares `numerator(i) / denominator` of the [`OPEN`] slots into integers.
///
/// Exact: each gets its floor, and those with the largest remainders one more, ties to the lower index, so that they sum
/// to `total`. The remainders are compared pairwise instead of being stored and sorted, since there is no memory to
/// store them in: quadratic in the number of layers or heads, microseconds for tens of them.
fn round(
    rounding: Rounding,
    denominator: u128,
    total: u128,
    numerator: impl Fn(usize) -> u128,
    out: &mut [u64],
) {
    let n = out.len();
    if rounding == Rounding::Up {
        for (i, slot) in out.iter_mut().enumerate().filter(|(_, slot)| **slot == OPEN) {
            *slot = numerator(i).div_ceil(denominator) as u64;
        }
        return;
    }
    // An open slot that gets one more. Marked first: all ranks must be seen before any slot is filled.
    const OPEN_PLUS_ONE: u64 = OPEN - 1;
    let floors: u128 = (0..n).filter(|&i| out[i] == OPEN).map(|i| numerator(i) / denominator).sum();
    let left = (total - floors) as usize;
    for i in 0..n {
        if left == 0 || out[i] != OPEN {
            continue;
        }
        let mine = numerator(i) % denominator;
        let is_ahead = |j: usize| {
            let other = numerator(j) % denominator;
            other > mine || (other == mine && j < i)
        };
        let ahead = (0..n).filter(|&j| j != i && out[j] >= OPEN_PLUS_ONE && is_ahead(j)).take(left).count();
        if ahead < left {
            out[i] = OPEN_PLUS_ONE;
        }
    }
    for (i, slot) in out.iter_mut().enumerate() {
        match *slot {
            OPEN => *slot = (numerator(i) / denominator) as u64,
            OPEN_PLUS_ONE => *slot = (numerator(i) / denominator) as u64 + 1,
            _ => {}
        }
    }
}

/// PyramidKV's weights for [`layer_budgets`]: budgets fall linearly from the first layer to the last.
///
/// `prefix_budget` is the average number of prefix tokens kept per head, `budget − window`, and `prefix_len` all there are. The last
/// layer's is `prefix_budget / beta`, the first's as far above the average as that is below it; where that is more than
/// `prefix_len`, the first layer keeps everything and the last's is raised by as much. Published with `beta` = 20 and a window of 8.
///
/// Source: PyramidKV, arXiv 2406.02069, section 4.2; the cap as in the published code. Here as exact fractions: the published
/// code rounds the step down, and so misses the total.
pub fn pyramid_weights(prefix_budget: u64, prefix_len: u64, beta: f64, weights: &mut [f64]) -> Result<()> {
    let n = weights.len();
    ensure(n > 0 && n <= MAX_LAYERS, ErrorKind::Shape, c"n_layers")?;
    ensure(beta.is_finite() && beta >= 1.0, ErrorKind::Argument, c"beta")?;
    let (average, all) = (prefix_budget.min(prefix_len) as f64, prefix_len as f64);
    let most = (2.0 * average - average / beta).min(all);
    let least = 2.0 * average - most;
    for (l, weight) in weights.iter_mut().enumerate() {
        let down = if n == 1 { 0.5 } else { l as f64 / (n - 1) as f64 };
        *weight = most + (least - most) * down;
    }
    Ok(())
}

/// α is taken in billionths, so that 0.2 means one fifth and a head's floor is an exact rational too.
const ALPHA_ONE: u128 = 1_000_000_000;

pub(crate) fn alpha_units(alpha: f64) -> u128 {
    libm::rint(alpha * ALPHA_ONE as f64) as u128
}

/// What each head is promised under the guaranteed floor: `⌊α · b / n_kv_heads⌋`.
pub(crate) fn guaranteed_floor(alpha: f64, budget: u64, n_kv_heads: usize) -> u64 {
    (alpha_units(alpha) * budget as u128 / (ALPHA_ONE * n_kv_heads as u128)) as u64
}

/// Head counts under the affine floor: `h · (1 − α) + α · b / n_kv_heads`, from the counts `h` of free competition, which
/// sum to `b`. `counts` holds `h` on entry.
pub(crate) fn affine_counts(alpha: f64, budget: u64, rounding: Rounding, free: &[u64], counts: &mut [u64]) {
    let n = free.len() as u128;
    let a = alpha_units(alpha);
    let numerator = |h: usize| (ALPHA_ONE - a) * free[h] as u128 * n + a * budget as u128;
    let denominator = ALPHA_ONE * n;
    counts.fill(OPEN);
    round(rounding, denominator, budget as u128, numerator, counts);
}
