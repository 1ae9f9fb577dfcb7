//! The whole method in plain f64 loops: the oracle of every test, and the place to read what is computed.
//!
//! Nothing here is fast or shares code with the stages it checks. Arrays are nested the way the formulas index them.
//!
//! Source: arXiv 2509.09754; stage numbers as in the README's page on the method.

mod score;

use crate::params::{HeadFloor, SelectParams};

pub use score::*;

/// Stage 6: normalised entropy of a layer's scores.
pub fn entropy(scores: &[f32]) -> f64 {
    let mass: f64 = scores.iter().map(|&s| f64::from(s)).sum();
    if scores.len() < 2 || mass == 0.0 {
        return 0.0;
    }
    let p = scores.iter().map(|&s| f64::from(s) / mass).filter(|&p| p > 0.0);
    -p.map(|p| p * p.ln()).sum::<f64>() / (scores.len() as f64).ln()
}

/// Layer budgets: proportional, capped, exact. Weights whose products with `total` are whole numbers below 2⁵³ make every
/// remainder exact.
pub fn layer_budgets(weights: &[f64], capacities: &[u64], total: u64) -> Vec<u64> {
    let n = weights.len();
    let total = total.min(capacities.iter().sum());
    let mut budgets: Vec<Option<u64>> = vec![None; n];
    loop {
        let open: Vec<usize> = (0..n).filter(|&l| budgets[l].is_none()).collect();
        let rest = (total - budgets.iter().flatten().sum::<u64>()) as f64;
        let sum: f64 = open.iter().map(|&l| weights[l]).sum();
        let weight = |l: usize| if sum == 0.0 { 1.0 } else { weights[l] };
        let sum = if sum == 0.0 { open.len() as f64 } else { sum };
        let full: Vec<usize> =
            open.iter().copied().filter(|&l| rest * weight(l) > capacities[l] as f64 * sum).collect();
        if !full.is_empty() {
            full.iter().for_each(|&l| budgets[l] = Some(capacities[l]));
            continue;
        }
        let floor = |l: usize| ((rest * weight(l) - rest * weight(l) % sum) / sum).round() as u64;
        let mut by_remainder = open.clone();
        by_remainder
            .sort_by(|&a, &b| (rest * weight(b) % sum).total_cmp(&(rest * weight(a) % sum)).then(a.cmp(&b)));
        let left = rest as u64 - open.iter().map(|&l| floor(l)).sum::<u64>();
        for (rank, &l) in by_remainder.iter().enumerate() {
            budgets[l] = Some(floor(l) + u64::from((rank as u64) < left));
        }
        return budgets.into_iter().flatten().collect();
    }
}

/// Selection by sorting: each head's kept prefix positions, ascending. `scores[g][i]`.
pub fn select(scores: &[Vec<f32>], params: &SelectParams, budget: u64) -> Vec<Vec<usize>> {
    let heads = scores.len();
    let mut order: Vec<(usize, usize)> =
        (0..heads).flat_map(|g| (0..scores[g].len()).map(move |i| (g, i))).collect();
    // Protected first, then by score; ties to the lower head, then the lower token (the order they are in).
    order.sort_by(|&(g, i), &(h, j)| {
        params.protects(j).cmp(&params.protects(i)).then(scores[h][j].total_cmp(&scores[g][i]))
    });
    let best_of = |g: usize, n: usize| order.iter().filter(|e| e.0 == g).take(n).copied().collect::<Vec<_>>();
    let budget = budget as usize;
    if let Some(weights) = params.head_weights {
        let lengths: Vec<u64> = scores.iter().map(|head| head.len() as u64).collect();
        let counts = layer_budgets(weights, &lengths, budget as u64);
        let mut kept: Vec<Vec<usize>> =
            (0..heads).map(|g| best_of(g, counts[g] as usize).iter().map(|e| e.1).collect()).collect();
        kept.iter_mut().for_each(|head| head.sort_unstable());
        return kept;
    }
    let billionths = (params.alpha * 1e9).round() as u128;
    // Each head's best `floor`, then the best of the rest.
    let compete = |floor: usize| {
        let mut kept: Vec<_> = (0..heads).flat_map(|g| best_of(g, floor)).collect();
        let rest: Vec<_> = order.iter().filter(|e| !kept.contains(e)).copied().collect();
        kept.extend(&rest[..budget - kept.len()]);
        kept
    };
    let kept: Vec<(usize, usize)> = match params.head_floor {
        HeadFloor::None => compete(params.head_min),
        HeadFloor::Guaranteed => {
            let floor = (billionths * budget as u128 / (1_000_000_000 * heads as u128)) as usize;
            compete(floor.max(params.head_min))
        }
        HeadFloor::Affine => {
            // Quotas in units of one billionth of a head's share, so that they are whole numbers.
            let unit = 1_000_000_000 * heads as u128;
            let competed = compete(params.head_min);
            let quota = |g: usize| {
                let free = competed.iter().filter(|e| e.0 == g).count() as u128;
                (1_000_000_000 - billionths) * free * heads as u128 + billionths * budget as u128
            };
            let mut counts: Vec<usize> = (0..heads).map(|g| (quota(g) / unit) as usize).collect();
            let mut by_remainder: Vec<usize> = (0..heads).collect();
            by_remainder.sort_by_key(|&g| (std::cmp::Reverse(quota(g) % unit), g));
            let left = budget - counts.iter().sum::<usize>();
            by_remainder[..left].iter().for_each(|&g| counts[g] += 1);
            (0..heads).flat_map(|g| best_of(g, counts[g])).collect()
        }
    };
    (0..heads)
        .map(|g| {
            let mut head: Vec<usize> = kept.iter().filter(|e| e.0 == g).map(|e| e.1).collect();
            head.sort_unstable();
            head
        })
        .collect()
}
