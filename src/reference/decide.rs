//! Entropy, shares and kept sets by plain sorting: layers are lists of heads, heads lists of entries.

use crate::params::{HeadFloor, SelectParams};

/// A head's rows before the window, in order.
#[derive(Clone, Debug)]
pub struct Head {
    /// True position of each.
    pub positions: Vec<usize>,
    /// Score of each.
    pub scores: Vec<f32>,
}

/// What selection needs to know about a layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Tokens so far.
    pub n_tokens: usize,
    /// Each query sees this many keys, its own included.
    pub sliding_window: Option<usize>,
    /// The KV heads.
    pub heads: Vec<Head>,
}

impl Layer {
    /// A layer of which nothing has been evicted, with these scores and a window of `window` tokens.
    pub fn dense(scores: &[Vec<f32>], window: usize) -> Self {
        let head = |s: &Vec<f32>| Head { positions: (0..s.len()).collect(), scores: s.clone() };
        let n_tokens = scores.first().map_or(0, |s| s.len()) + window;
        Self { n_tokens, sliding_window: None, heads: scores.iter().map(head).collect() }
    }

    /// Rows of head `h` that the query after the last token can see: the next one has position `n_tokens`.
    pub fn live(&self, h: usize) -> Vec<usize> {
        let sees = |p: usize| self.sliding_window.is_none_or(|keys| self.n_tokens - p < keys);
        (0..self.heads[h].positions.len()).filter(|&row| sees(self.heads[h].positions[row])).collect()
    }

    /// Prefix entries that can be kept.
    pub fn n_live(&self) -> u64 {
        (0..self.heads.len()).map(|h| self.live(h).len() as u64).sum()
    }

    /// Entries of head `h` that are kept before any compete.
    fn least(&self, params: &SelectParams, h: usize) -> u64 {
        let live = self.live(h);
        let protected =
            live.iter().filter(|&&row| is_protected(params, self.heads[h].positions[row])).count();
        protected.max(params.head_min.min(live.len())) as u64
    }

    /// The same over all heads.
    pub fn minimum(&self, params: &SelectParams) -> u64 {
        (0..self.heads.len()).map(|h| self.least(params, h)).sum()
    }

    /// Stage 6: normalised entropy of the live scores.
    pub fn entropy(&self) -> f64 {
        let live = |h: usize| self.live(h).into_iter().map(move |row| f64::from(self.heads[h].scores[row]));
        let scores: Vec<f64> = (0..self.heads.len()).flat_map(live).collect();
        let mass: f64 = scores.iter().sum();
        if scores.len() < 2 || mass == 0.0 {
            return 0.0;
        }
        let p = scores.iter().map(|&s| s / mass).filter(|&p| p > 0.0);
        -p.map(|p| p * p.ln()).sum::<f64>() / (scores.len() as f64).ln()
    }
}

fn is_protected(params: &SelectParams, position: usize) -> bool {
    position < params.n_sink || params.protected_mask.is_some_and(|mask| mask[position] != 0)
}

/// Real shares of `total` in proportion to integer weights, each between its bounds: numerators, and their common denominator.
///
/// Share `i` is `λ · weight` within its bounds. The sum grows with λ, and changes its slope where a share meets a bound: the last such λ
/// at which the sum is at most the total says which shares are between their bounds; those divide what the others leave.
fn real_shares(weights: &[u128], least: &[u64], most: &[u64], total: u64) -> (Vec<u128>, u128) {
    let n = weights.len();
    let bound = |x: u64| x as u128;
    // Those without weight get their minimum, unless all others have all that they can use.
    let with_weight = |i: usize| if weights[i] > 0 { most[i] } else { least[i] };
    if weights.contains(&0) && total > (0..n).map(with_weight).sum() {
        let open: Vec<usize> = (0..n).filter(|&i| weights[i] == 0).collect();
        let of = |x: &[u64]| open.iter().map(|&i| x[i]).collect::<Vec<u64>>();
        let settled: u64 = (0..n).filter(|&i| weights[i] > 0).map(|i| most[i]).sum();
        let (shares, sum) = real_shares(&vec![1; open.len()], &of(least), &of(most), total - settled);
        let mut all: Vec<u128> = most.iter().map(|&x| bound(x) * sum).collect();
        open.iter().zip(shares).for_each(|(&i, share)| all[i] = share);
        return (all, sum);
    }
    // λ as a fraction (p, q).
    let within =
        |i: usize, (p, q): (u128, u128)| (p * weights[i]).clamp(bound(least[i]) * q, bound(most[i]) * q);
    let mut levels = vec![(0, 1)];
    for i in (0..n).filter(|&i| weights[i] > 0) {
        levels.extend([(bound(least[i]), weights[i]), (bound(most[i]), weights[i])]);
    }
    levels.retain(|&level| (0..n).map(|i| within(i, level)).sum::<u128>() <= bound(total) * level.1);
    let last = levels.into_iter().reduce(|a, b| if b.0 * a.1 > a.0 * b.1 { b } else { a }).expect("0 is one");
    let (p, q) = last;
    let is_open =
        |i: &usize| p * weights[*i] >= bound(least[*i]) * q && p * weights[*i] < bound(most[*i]) * q;
    let open: Vec<usize> = (0..n).filter(|&i| weights[i] > 0).filter(is_open).collect();
    let sum = open.iter().map(|&i| weights[i]).sum::<u128>().max(1);
    let mut all: Vec<u128> = (0..n).map(|i| within(i, last) / q * sum).collect();
    let settled: u128 = (0..n).filter(|i| !open.contains(i)).map(|i| within(i, last) / q).sum();
    open.iter().for_each(|&i| all[i] = (bound(total) - settled) * weights[i]);
    (all, sum)
}

/// Largest remainders; ties to the lower index.
fn whole((shares, sum): (Vec<u128>, u128), total: u64) -> Vec<u64> {
    let mut out: Vec<u64> = shares.iter().map(|share| (share / sum) as u64).collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by_key(|&i| (std::cmp::Reverse(shares[i] % sum), i));
    let left = total - out.iter().sum::<u64>();
    by_remainder[..left as usize].iter().for_each(|&i| out[i] += 1);
    out
}

/// Shares of a total by weight, each between its bounds. Weights are taken in units of 2⁻⁵² of the power of two that is not below any of
/// them, or of 1.
pub fn shares(weights: &[f64], least: &[u64], most: &[u64], total: u64) -> Vec<u64> {
    let total = total.min(most.iter().sum());
    let largest = weights.iter().copied().fold(1.0, f64::max);
    let unit = 52.0 - largest.log2().ceil();
    let weights: Vec<u128> = weights.iter().map(|w| (w * unit.exp2()).round_ties_even() as u128).collect();
    whole(real_shares(&weights, least, most, total), total)
}

/// What each layer keeps, by weight.
pub fn layer_entries(layers: &[Layer], params: &SelectParams, weights: &[f64], total: u64) -> Vec<u64> {
    let least: Vec<u64> = layers.iter().map(|layer| layer.minimum(params)).collect();
    let most: Vec<u64> = layers.iter().map(|layer| layer.n_live()).collect();
    let weight = |(layer, &w): (&Layer, &f64)| if layer.heads.is_empty() { 0.0 } else { w };
    let weights: Vec<f64> = layers.iter().zip(weights).map(weight).collect();
    shares(&weights, &least, &most, total)
}

/// Selection by sorting, from the heads of one layer or of several: the kept prefix rows of each layer and head, ascending.
pub fn select(layers: &[Layer], params: &SelectParams, n_entries: u64) -> Vec<Vec<Vec<usize>>> {
    // Heads of all layers in order; entries as (head, row).
    let heads: Vec<(usize, usize)> =
        (0..layers.len()).flat_map(|l| (0..layers[l].heads.len()).map(move |h| (l, h))).collect();
    let n = heads.len();
    let least: Vec<u64> = heads.iter().map(|&(l, h)| layers[l].least(params, h)).collect();
    let most: Vec<u64> = heads.iter().map(|&(l, h)| layers[l].live(h).len() as u64).collect();
    let n_entries = n_entries.min(most.iter().sum());
    let mut order: Vec<(usize, usize)> = (0..n)
        .flat_map(|g| layers[heads[g].0].live(heads[g].1).into_iter().map(move |row| (g, row)))
        .collect();
    // Protected first, then by score; ties to the lower head, then the lower token (the order they are in).
    let head = |g: usize| &layers[heads[g].0].heads[heads[g].1];
    let protected = |&(g, row): &(usize, usize)| is_protected(params, head(g).positions[row]);
    let score = |&(g, row): &(usize, usize)| head(g).scores[row];
    order.sort_by(|a, b| {
        protected(b).cmp(&protected(a)).then(score(b).partial_cmp(&score(a)).expect("a number"))
    });
    let best_of = |g: usize, n: u64| order.iter().filter(move |e| e.0 == g).take(n as usize).copied();
    // Each head's best entries, as many as it is promised, then the best of the rest.
    let compete = |promised: &[u64]| {
        let mut kept: Vec<_> = (0..n).flat_map(|g| best_of(g, promised[g])).collect();
        let rest: Vec<_> = order.iter().filter(|e| !kept.contains(e)).copied().collect();
        kept.extend(&rest[..n_entries as usize - kept.len()]);
        kept
    };
    let billionths = (params.alpha * 1e9).round() as u128;
    let kept: Vec<(usize, usize)> = match (params.head_weights, params.head_floor) {
        (Some(weights), _) => {
            let counts = shares(&weights[..n], &least, &most, n_entries);
            (0..n).flat_map(|g| best_of(g, counts[g])).collect()
        }
        (None, HeadFloor::None) => compete(&least),
        (None, HeadFloor::Guaranteed) => {
            let mut floor = (billionths * n_entries as u128 / (1_000_000_000 * n.max(1) as u128)) as u64;
            // Promises that do not fit in addition to what must be kept are lowered for all.
            let promise = |floor: u64| (0..n).map(|g| least[g].max(floor.min(most[g]))).sum::<u64>();
            while promise(floor) > n_entries {
                floor -= 1;
            }
            let promised: Vec<u64> = (0..n).map(|g| least[g].max(floor.min(most[g]))).collect();
            compete(&promised)
        }
        (None, HeadFloor::Affine) => {
            let competed = compete(&least);
            // Equal parts within the heads' bounds.
            let (parts, sum) = real_shares(&vec![1; n], &least, &most, n_entries);
            let mixed = |g: usize| {
                let free = competed.iter().filter(|e| e.0 == g).count() as u128;
                (1_000_000_000 - billionths) * free * sum + billionths * parts[g]
            };
            let counts = whole(((0..n).map(mixed).collect(), 1_000_000_000 * sum), n_entries);
            (0..n).flat_map(|g| best_of(g, counts[g])).collect()
        }
    };
    let mut rows: Vec<Vec<Vec<usize>>> = layers.iter().map(|layer| vec![vec![]; layer.heads.len()]).collect();
    kept.iter().for_each(|&(g, row)| rows[heads[g].0][heads[g].1].push(row));
    rows.iter_mut().flatten().for_each(|head| head.sort_unstable());
    rows
}
