//! Integers that sum exactly: a total shared among layers by weight, a layer's entries among heads.
//!
//! Shares are exact rationals. Weights are taken on a grid of 2⁻⁵², and every product and remainder is an integer, so no
//! rounding can lose a token or break a tie. (The authors' released code truncates floats and loses up to a token per
//! layer per head.)

use core::ffi::CStr;

use crate::error::{ErrorKind, Result, ensure};
use crate::params::{Layers, SelectParams};

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

/// What each layer or head keeps at least, and can keep at most: both below 2³², and the first never above the second.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub least: &'a [u64],
    pub most: &'a [u64],
}

/// Shares `total` among layers in proportion to `weights`, into `entries`: how many prefix entries each layer keeps.
///
/// - They sum to exactly `min(total, all live entries)`: largest remainder, ties to the lower layer.
/// - No layer gets more than its live entries or less than what its heads keep whatever their scores (`params`: sinks, the
///   mask, `head_min`); what it cannot use goes to the others in proportion.
/// - Where all open layers weigh zero they share equally.
/// - A layer without KV heads gets 0, and its weight is not looked at.
///
/// Weights are finite and not negative. They are resolved to 2⁻⁵² (of the next power of two, where the largest of those that are
/// still open is above 1); smaller ones count as zero. Floors and `head_weights` of `params` decide inside a layer, not here.
pub fn layer_entries(
    layers: &(impl Layers + ?Sized),
    params: &SelectParams,
    weights: &[f64],
    total: u64,
    entries: &mut [u64],
) -> Result<()> {
    layers.validate()?;
    let n = layers.n_layers();
    SelectParams { head_weights: None, ..*params }.validate(0, layers.longest_prefix())?;
    ensure(weights.len() >= n, ErrorKind::BufferSize, c"weights")?;
    ensure(entries.len() >= n, ErrorKind::BufferSize, c"entries")?;
    // A mask takes long to count, so it is counted once.
    let (mut least, mut most) = ([0; MAX_LAYERS], [0; MAX_LAYERS]);
    for l in 0..n {
        let shape = layers.layer(l);
        if shape.n_kv_heads > 0 {
            check_weight(weights[l], c"weights").map_err(|e| e.at_layer(l as u32))?;
            (least[l], most[l]) = (params.layer_minimum(&shape), shape.capacity());
        }
    }
    let weight = |l: usize| if layers.layer(l).n_kv_heads > 0 { weights[l] } else { 0.0 };
    share(weight, Bounds { least: &least[..n], most: &most[..n] }, total, Rounding::Exact, &mut entries[..n])
}

/// Checks that shares can be in proportion to `weight`.
pub(crate) fn check_weight(weight: f64, name: &'static CStr) -> Result<()> {
    ensure(weight.is_finite(), ErrorKind::NonFinite, name)?;
    ensure(weight >= 0.0, ErrorKind::Argument, name)
}

/// Shares `total`, or all that can be kept if that is less, in proportion to weights that are finite and not negative.
pub(crate) fn share(
    weight: impl Fn(usize) -> f64,
    bounds: Bounds,
    total: u64,
    rounding: Rounding,
    out: &mut [u64],
) -> Result<()> {
    let total = total.min(bounds.most.iter().sum());
    ensure(bounds.least.iter().sum::<u64>() <= total, ErrorKind::Budget, c"total")?;
    water_fill(weight, bounds, total, rounding, out);
    Ok(())
}

/// The same, where `total` is known to be between the sums of the bounds.
pub(crate) fn water_fill(
    weight: impl Fn(usize) -> f64,
    bounds: Bounds,
    total: u64,
    rounding: Rounding,
    out: &mut [u64],
) {
    out.fill(OPEN);
    loop {
        // Weights are resolved again once shares have been settled, so that one large weight of a layer that can use little does
        // not turn the others into zeros. In a cascade a share may grow by that, but by less than one over their number. Largest
        // remainders never round up so little: that would take more shares than there are.
        let unit = unit((0..out.len()).filter(|&i| out[i] == OPEN).map(&weight));
        let weight = |i: usize| on_grid(weight(i), unit);
        if let Some(level) = settle(weight, bounds, total, out) {
            return round(rounding, level.sum, level.rest, |i| level.share(weight(i)), out);
        }
    }
}

/// The grid's unit for these weights: dividing by a power of two changes no digit of a weight.
fn unit(weights: impl Iterator<Item = f64>) -> f64 {
    let largest = weights.fold(0.0f64, f64::max);
    let mut unit = GRID;
    while largest * (unit / GRID) > 1.0 {
        unit *= 0.5;
    }
    unit
}

fn on_grid(weight: f64, unit: f64) -> u128 {
    libm::rint(weight * unit) as u128
}

/// Marks a share that is still open. No share is that large.
const OPEN: u64 = u64::MAX;

/// What the open shares divide: `rest`, in proportion to weights that sum to `sum`.
struct Level {
    rest: u128,
    sum: u128,
    /// All open weights are zero, and count as one.
    equal: bool,
}

impl Level {
    /// The share of an open slot with this weight, times `sum`.
    fn share(&self, weight: u128) -> u128 {
        self.rest * if self.equal { 1 } else { weight }
    }
}

/// One step of water-filling with bounds on both sides: if open shares violate their bounds, those that pull in the direction of the sum
/// are settled there. Otherwise this is the level.
///
/// Products fit: of a total and capacities below 2³² a layer, with weights of at most 2⁵² and at most 2³² of them.
fn settle(weight: impl Fn(usize) -> u128, bounds: Bounds, total: u64, out: &mut [u64]) -> Option<Level> {
    let (mut rest, mut sum, mut n_open) = (total as u128, 0, 0);
    for (i, &share) in out.iter().enumerate() {
        if share == OPEN {
            sum += weight(i);
            n_open += 1;
        } else {
            rest -= share as u128;
        }
    }
    let equal = sum == 0;
    let level = Level { rest, sum: if equal { n_open } else { sum }, equal };
    let least = |i: usize| bounds.least[i] as u128 * level.sum;
    let most = |i: usize| bounds.most[i] as u128 * level.sum;

    // Positive: bounds ask for more than there is.
    let mut excess = 0i128;
    for i in (0..out.len()).filter(|&i| out[i] == OPEN) {
        let share = level.share(weight(i));
        excess += share.clamp(least(i), most(i)) as i128 - share as i128;
    }
    let mut settled_any = false;
    for i in 0..out.len() {
        if out[i] == OPEN {
            let share = level.share(weight(i));
            if excess >= 0 && share < least(i) {
                out[i] = bounds.least[i];
                settled_any = true;
            } else if excess <= 0 && share > most(i) {
                out[i] = bounds.most[i];
                settled_any = true;
            }
        }
    }
    if settled_any { None } else { Some(level) }
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

/// PyramidKV's weights for [`layer_entries`]: entries fall linearly from the first layer to the last.
///
/// `prefix_budget` is the average number of prefix tokens kept per head, `budget − window`, and `prefix_len` is the number of prefix
/// tokens. The last layer gets `prefix_budget / beta`, the first as much above the average as the last is below it. If that is more
/// than `prefix_len`, the first layer keeps everything and the last gets that much more. Published with `beta` = 20 and a window of 8.
///
/// Source: PyramidKV, arXiv 2406.02069, section 4.2; the cap as in the published code. The fractions here are exact: the published
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

/// What each head is promised under the guaranteed floor: `⌊α · n_entries / n_heads⌋`, but where heads that keep more than that
/// anyway (`least`) leave too little, as much as can be promised to all others alike.
pub(crate) fn guaranteed_floor(alpha: f64, n_entries: u64, Bounds { least, most }: Bounds) -> u64 {
    let floor = (alpha_units(alpha) * n_entries as u128 / (ALPHA_ONE * least.len().max(1) as u128)) as u64;
    let promised = |floor: u64| least.iter().zip(most).map(move |(&least, &most)| least.max(floor).min(most));
    let fits = |floor: u64| promised(floor).sum::<u64>() <= n_entries;
    if fits(floor) {
        return floor;
    }
    let (mut fitting, mut too_much) = (0, floor);
    while too_much - fitting > 1 {
        let middle = fitting + (too_much - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            too_much = middle;
        }
    }
    fitting
}

/// Head counts under the affine floor: `h · (1 − α) + α · e`, from the counts `h` of free competition and from equal parts
/// `e` of `n_entries`, both of which sum to that. A part that leaves its bounds ends there, and the others share what is left.
///
/// Where all heads are alike, `e` is `n_entries / n_heads`. `equal` is memory for the equal parts.
pub(crate) fn affine_counts(
    alpha: f64,
    free: &[u64],
    bounds: Bounds,
    n_entries: u64,
    rounding: Rounding,
    equal: &mut [u64],
    counts: &mut [u64],
) {
    equal.fill(OPEN);
    let level = loop {
        if let Some(level) = settle(|_| 1, bounds, n_entries, equal) {
            break level;
        }
    };
    let a = alpha_units(alpha);
    // The level is a fraction, and so is everything here. Where no part is open, parts are integers.
    let (rest, sum) = (level.rest, level.sum.max(1));
    let part = |h: usize| if equal[h] == OPEN { rest } else { equal[h] as u128 * sum };
    let numerator = |h: usize| (ALPHA_ONE - a) * free[h] as u128 * sum + a * part(h);
    counts.fill(OPEN);
    round(rounding, ALPHA_ONE * sum, n_entries as u128, numerator, counts);
}
