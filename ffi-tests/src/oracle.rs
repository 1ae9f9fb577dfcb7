//! What the C functions must give, in plain lines over exact numbers.

use crate::*;
use std::cmp::Reverse;

/// A prefix entry that competes: a row that a later query can see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    pub position: u32,
    pub row: u32,
    pub score: f32,
    pub protected: bool,
}

/// Which entries are kept, per head, by sorting: no thresholds, no floats but the scores. The heads are those of one layer, or of
/// all layers where they compete together.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub heads: Vec<Vec<Entry>>,
    pub head_min: usize,
}

/// True positions of each row of a head.
pub fn positions(shape: &lava_shape, h: usize) -> Vec<u32> {
    if shape.cu_rows.is_null() {
        return (0..shape.n_tokens).collect();
    }
    // SAFETY: the tests' shapes lead to `Rows` that are alive.
    unsafe {
        let (first, end) = (*shape.cu_rows.add(h) as usize, *shape.cu_rows.add(h + 1) as usize);
        std::slice::from_raw_parts(shape.positions.add(first), end - first).to_vec()
    }
}

/// Whether a query at position n_tokens can see a row at this position.
pub fn is_live(shape: &lava_shape, position: u32) -> bool {
    shape.sliding_window == 0 || position as u64 + shape.sliding_window as u64 > shape.n_tokens as u64
}

impl Rule {
    /// A dense layer's heads, of which all rows are seen.
    pub fn dense(scores: &[f32], n_heads: usize, protected: &[bool]) -> Self {
        let n = protected.len();
        let entry = |h: usize, i: usize| Entry {
            position: i as u32,
            row: i as u32,
            score: scores[h * n + i],
            protected: protected[i],
        };
        let heads = (0..n_heads).map(|h| (0..n).map(|i| entry(h, i)).collect()).collect();
        Self { heads, head_min: 0 }
    }

    /// The heads of these layers, whose scores are stored one after the other.
    pub fn of(shapes: &[lava_shape], scores: &[f32], params: &lava_select_params) -> Self {
        let mut scores = scores.iter();
        let mut heads = vec![];
        for shape in shapes {
            let window = shape.window.min(shape.n_tokens) as usize;
            for h in 0..shape.n_kv_heads as usize {
                let rows = positions(shape, h);
                let mut head = vec![];
                for (row, &position) in rows[..rows.len() - window].iter().enumerate() {
                    let score = *scores.next().unwrap();
                    // SAFETY: the tests' masks are as long as the longest prefix.
                    let masked = !params.protected_mask.is_null()
                        && unsafe { *params.protected_mask.add(position as usize) } != 0;
                    let protected = position < params.n_sink || masked;
                    if is_live(shape, position) {
                        head.push(Entry { position, row: row as u32, score, protected });
                    }
                }
                heads.push(head);
            }
        }
        assert!(scores.next().is_none());
        Self { heads, head_min: params.head_min as usize }
    }

    /// Entries that can be kept.
    pub fn capacity(&self) -> usize {
        self.heads.iter().map(Vec::len).sum()
    }

    /// What is kept whatever the scores.
    pub fn minimum(&self) -> usize {
        (0..self.heads.len()).map(|h| self.base(h, 0)).sum()
    }

    /// Entries that a head keeps before any compete.
    fn base(&self, h: usize, floor: usize) -> usize {
        let protected = self.heads[h].iter().filter(|e| e.protected).count();
        floor.max(self.head_min).max(protected).min(self.heads[h].len())
    }

    /// The best `n` of `entries`, `(head, index)`: protected first, then by score, then the lower head, then the lower token.
    fn best(&self, mut entries: Vec<(usize, usize)>, n: usize) -> Vec<(usize, usize)> {
        entries.sort_by(|&a, &b| {
            let [x, y] = [a, b].map(|(h, i)| self.heads[h][i]);
            let by_score = match x.protected && y.protected {
                true => std::cmp::Ordering::Equal,
                false => y.score.partial_cmp(&x.score).unwrap(),
            };
            y.protected.cmp(&x.protected).then(by_score).then(a.cmp(&b))
        });
        entries.truncate(n);
        entries
    }

    fn all(&self, heads: std::ops::Range<usize>) -> Vec<(usize, usize)> {
        heads.flat_map(|h| (0..self.heads[h].len()).map(move |i| (h, i))).collect()
    }

    fn count(&self, entries: &[(usize, usize)]) -> Vec<usize> {
        (0..self.heads.len()).map(|h| entries.iter().filter(|e| e.0 == h).count()).collect()
    }

    /// How many entries each head keeps if each is promised `floor`, and the rest compete. `None` if that asks for more than `n`.
    fn compete(&self, n: usize, floor: usize) -> Option<Vec<usize>> {
        let n_heads = self.heads.len();
        let mut kept: Vec<_> =
            (0..n_heads).flat_map(|h| self.best(self.all(h..h + 1), self.base(h, floor))).collect();
        let rest = self.all(0..n_heads).into_iter().filter(|e| !kept.contains(e)).collect();
        let won = self.best(rest, n.checked_sub(kept.len())?);
        kept.extend(won);
        Some(self.count(&kept))
    }

    /// How many entries each head keeps without a floor.
    pub fn free(&self, n: usize) -> Vec<usize> {
        self.compete(n, 0).expect("no fewer than what is protected")
    }

    /// Each head's best ⌊α·n/heads⌋ first, the rest compete; if heads that keep more anyway leave too little for that, the largest
    /// number that all others can have alike. α in billionths.
    pub fn guaranteed(&self, n: usize, alpha: u128) -> Vec<usize> {
        let heads = self.heads.len().max(1) as u128;
        let floor = (alpha * n as u128 / (1_000_000_000 * heads)) as usize;
        (0..=floor).rev().find_map(|floor| self.compete(n, floor)).expect("no fewer than what is protected")
    }

    /// h·(1 − α) + α·n/heads, rounded by largest remainders. For heads with the same number of entries each.
    pub fn affine(&self, n: usize, alpha: u128) -> Vec<usize> {
        let (one, heads) = (1_000_000_000u128, self.heads.len() as u128);
        let exact = self.free(n).into_iter().map(|h| (one - alpha) * h as u128 * heads + alpha * n as u128);
        largest_remainder(&exact.collect::<Vec<_>>(), one * heads, n)
    }

    /// What the heads keep for these counts, ascending.
    pub fn kept(&self, counts: &[usize]) -> Vec<Vec<Entry>> {
        let head = |(h, &n): (usize, &usize)| {
            let mut kept: Vec<_> =
                self.best(self.all(h..h + 1), n).into_iter().map(|(h, i)| self.heads[h][i]).collect();
            kept.sort_unstable_by_key(|e| e.row);
            kept
        };
        counts.iter().enumerate().map(head).collect()
    }
}

/// Checks that `rest` has the positions that a layer's heads keep, and each head's window.
#[track_caller]
pub fn check_positions(what: &str, shape: &lava_shape, kept: &[Vec<Entry>], rest: &Rest) {
    check(what, shape, kept, rest, false);
}

/// The same, and that its rows are those of the shape's cache.
#[track_caller]
pub fn check_kept(what: &str, shape: &lava_shape, kept: &[Vec<Entry>], rest: &Rest) {
    check(what, shape, kept, rest, true);
}

#[track_caller]
fn check(what: &str, shape: &lava_shape, kept: &[Vec<Entry>], rest: &Rest, with_rows: bool) {
    let window = shape.window.min(shape.n_tokens) as usize;
    assert_eq!(rest.cu.len(), kept.len() + 1);
    for (h, entries) in kept.iter().enumerate() {
        let all = positions(shape, h);
        let of_window = all.len() - window..all.len();
        let mut want: Vec<_> = entries.iter().map(|e| (e.position, e.row)).collect();
        want.extend(of_window.map(|row| (all[row], row as u32)));
        let (positions, rows): (Vec<_>, Vec<_>) = want.into_iter().unzip();
        assert_eq!(rest.head(h), positions, "{what}, head {h}");
        let own = rest.cu[h] as usize..rest.cu[h + 1] as usize;
        assert!(!with_rows || rest.rows[own] == rows, "{what}, head {h}: rows");
    }
}

/// One query's attention to a head's rows, in f64.
pub struct Attention {
    /// To each row; 0 where it is not seen.
    pub rows: Vec<f64>,
    /// To the learned sink.
    pub sink: f64,
    /// Natural log-sum-exp of all logits, the sink's among them.
    pub lse: f64,
}

/// A softmax over logits, `None` where a key is not seen, and a sink.
pub fn softmax(logits: &[Option<f64>], sink: f64) -> Attention {
    let top = logits.iter().flatten().fold(sink, |m, &x| m.max(x));
    let exp = |x: f64| if x == f64::NEG_INFINITY { 0.0 } else { (x - top).exp() };
    let exps: Vec<f64> = logits.iter().map(|x| x.map_or(0.0, exp)).collect();
    let sum = exps.iter().sum::<f64>() + exp(sink);
    Attention { rows: exps.iter().map(|x| x / sum).collect(), sink: exp(sink) / sum, lse: top + sum.ln() }
}

/// Attention of window query `j` of head `h` to the rows at these positions.
pub fn attention(layer: &Layer, j: usize, h: usize, rows: &[u32]) -> Attention {
    attention_of(layer, (layer.q.row(j, h), prefix_len(&layer.shape) + j), h, rows)
}

/// Attention of a query of head `h` at its own position.
fn attention_of(layer: &Layer, (q, own): (&[f32], usize), h: usize, rows: &[u32]) -> Attention {
    let (shape, params) = (&layer.shape, &layer.params);
    let g = h / (shape.n_q_heads / shape.n_kv_heads) as usize;
    let scale =
        if params.scale == 0.0 { 1.0 / (shape.head_dim_k as f64).sqrt() } else { params.scale as f64 };
    let reach = if shape.sliding_window == 0 { usize::MAX } else { shape.sliding_window as usize };
    let logit = |&i: &u32| {
        let i = i as usize;
        let dot: f64 = q.iter().zip(layer.k.row(i, g)).map(|(a, b)| *a as f64 * *b as f64).sum();
        let cap = params.softcap as f64;
        let capped = if cap > 0.0 { cap * (scale * dot / cap).tanh() } else { scale * dot };
        (i <= own && own - i < reach).then_some(capped)
    };
    // SAFETY: the tests' sinks have a number per query head.
    let sink = match params.sink_logits.is_null() {
        true => f64::NEG_INFINITY,
        false => unsafe { *params.sink_logits.add(h) as f64 },
    };
    softmax(&rows.iter().map(logit).collect::<Vec<_>>(), sink)
}

/// Reduces the window's attention to one row to one number, the oldest query first.
fn over_window(a: &[f64], params: &lava_score_params) -> f64 {
    let (n, mean) = (a.len() as f64, a.iter().sum::<f64>() / a.len() as f64);
    match params.attention {
        LAVA_ATTENTION_MEAN => mean,
        LAVA_ATTENTION_MAX => a.iter().copied().fold(0.0, f64::max),
        LAVA_ATTENTION_NORM4 => a.iter().map(|x| x.powi(4)).sum::<f64>().powf(0.25),
        LAVA_ATTENTION_SQUARED => a.iter().map(|x| x * x).sum::<f64>() / n,
        LAVA_ATTENTION_MEAN_VARIANCE => {
            let spread = a.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            mean + if a.len() > 1 { params.gamma as f64 * spread / (n - 1.0) } else { 0.0 }
        }
        _ => {
            let decay = if params.decay == 0.0 { 1.0 } else { params.decay as f64 };
            a[1..].iter().fold(a[0], |average, x| decay * x + (1.0 - decay) * average)
        }
    }
}

/// What evicting each row alone does to the output. With the mean of the other rows' values, m, it is `a · |m − v|`: `1 − a` and
/// `o − v` are never formed. A sink is one of the others, whose value is zero.
fn output_change(a: &[f64], sink: f64, values: &[&[f32]]) -> Vec<f64> {
    let change = |i: usize| {
        let others = || (0..a.len()).filter(move |&k| k != i);
        let rest = others().map(|k| a[k]).sum::<f64>() + sink;
        let away = |c: usize| {
            let mean = others().map(|k| a[k] * values[k][c] as f64).sum::<f64>() / rest;
            (mean - values[i][c] as f64).powi(2)
        };
        a[i] * (0..values[i].len()).map(away).sum::<f64>().sqrt()
    };
    (0..a.len()).map(change).collect()
}

/// A layer's scores by the method in plain loops, head after head. The layer's K and V are dense; only the rows that the shape has are
/// read.
pub fn scores(layer: &Layer) -> Vec<f64> {
    let prefix = prefix_len(&layer.shape);
    scores_by(layer, &layer.q, &|j| prefix + j)
}

/// The same by queries that are not in the cache: each sees what one at position `n_tokens` does.
pub fn scores_by_queries(layer: &Layer, q: &Grid) -> Vec<f64> {
    scores_by(layer, q, &|_| layer.shape.n_tokens as usize)
}

/// By these queries, each at its own position.
pub fn scores_by(layer: &Layer, q: &Grid, own: &dyn Fn(usize) -> usize) -> Vec<f64> {
    let (shape, params) = (&layer.shape, &layer.params);
    let window = shape.window.min(shape.n_tokens) as usize;
    let (group, kernel) = ((shape.n_q_heads / shape.n_kv_heads) as usize, params.pool_kernel as usize);
    let (before, after) =
        if params.pool == LAVA_POOL_AFTER { (kernel - 1, 0) } else { (kernel / 2, kernel / 2) };
    let mut scores = vec![];
    for g in 0..shape.n_kv_heads as usize {
        let rows = positions(shape, g);
        let n_dead = rows.iter().filter(|&&p| !is_live(shape, p)).count().min(rows.len() - window);
        let live = n_dead..rows.len() - window;
        let values: Vec<&[f32]> = rows.iter().map(|&p| layer.v.row(p as usize, g)).collect();
        let norm = |i: usize| values[i].iter().map(|x| x.abs() as f64).sum::<f64>();
        let span = if params.value_span == LAVA_VALUES_ALL { n_dead..rows.len() } else { live.clone() };
        let l2 = |i: usize| values[i].iter().map(|&x| (x as f64).powi(2)).sum::<f64>().sqrt();
        let largest = span.clone().map(norm).fold(0.0, f64::max);
        let mean_l2 = span.clone().map(l2).sum::<f64>() / span.len() as f64;
        let of_head = |h: usize| -> Vec<f64> {
            let seen: Vec<_> =
                (0..q.rows).map(|j| attention_of(layer, (q.row(j, h), own(j)), h, &rows)).collect();
            let column = |i: usize| seen.iter().map(|a| a.rows[i]).collect::<Vec<_>>();
            let mut a: Vec<f64> = match params.attention {
                LAVA_ATTENTION_RECENCY => rows.iter().map(|&p| p as f64 + 1.0).collect(),
                _ => (0..rows.len()).map(|i| over_window(&column(i), params)).collect(),
            };
            if params.value_weight == LAVA_VALUE_OUTPUT {
                let sink = over_window(&seen.iter().map(|a| a.sink).collect::<Vec<_>>(), params);
                a = output_change(&a, sink, &values);
            }
            let a = &a[live.clone()];
            let near = |i: usize| &a[i.saturating_sub(before)..(i + after + 1).min(a.len())];
            let pool = |i| match params.pool {
                LAVA_POOL_MAX | LAVA_POOL_AFTER => near(i).iter().fold(0.0, |m: f64, &x| m.max(x)),
                _ => near(i).iter().sum::<f64>() / params.pool_kernel as f64,
            };
            // SAFETY: the tests' weights have a number per query head.
            let weight = match params.query_head_weights.is_null() {
                true => 1.0,
                false => unsafe { *params.query_head_weights.add(h) as f64 },
            };
            (0..a.len()).map(|i| weight * pool(i)).collect()
        };
        let heads: Vec<_> = (g * group..(g + 1) * group).map(of_head).collect();
        let weight = if params.weight == 0.0 { 1.0 } else { params.weight as f64 };
        let reduced = |i: usize| {
            let of_heads = heads.iter().map(|head| head[i]);
            let value = match params.value_weight {
                LAVA_VALUE_HEAD_MAX => largest,
                LAVA_VALUE_TOKEN => norm(n_dead + i),
                LAVA_VALUE_TOKEN_L2 => l2(n_dead + i),
                LAVA_VALUE_HEAD_MEAN_L2 => mean_l2,
                _ => 1.0,
            };
            weight
                * value
                * match params.group_reduce {
                    LAVA_GROUP_MAX => of_heads.fold(0.0, f64::max),
                    _ => of_heads.sum::<f64>() / group as f64,
                }
        };
        let own: Vec<f64> = (0..live.len()).map(reduced).collect();
        let more = params.smoothing as f64 * own.iter().sum::<f64>() / own.len().max(1) as f64;
        scores.extend((0..n_dead).map(|_| 0.0).chain(own.iter().map(|s| s + more)));
    }
    scores
}

/// The log-sum-exps of a dense layer's window queries, in the base of its options: `[window, n_q_heads, 1]`.
pub fn log_sum_exps(layer: &Layer) -> Grid {
    let (shape, rows) = (&layer.shape, (0..layer.shape.n_tokens).collect::<Vec<_>>());
    let (window, heads) = (shape.window.min(shape.n_tokens) as usize, shape.n_q_heads as usize);
    let unit = if layer.params.lse_base == LAVA_LSE_BASE2 { std::f64::consts::LN_2 } else { 1.0 };
    let of = |j, h| (attention(layer, j, h, &rows).lse / unit) as f32;
    let values = (0..window).flat_map(|j| (0..heads).map(move |h| (j, h))).map(|(j, h)| of(j, h)).collect();
    Grid { rows: window, heads, dim: 1, values }
}

/// Checks that scores are the method's, within the golden data's bound: 1e-5 of the layer's largest.
#[track_caller]
pub fn check_scores(what: &str, got: &[f32], want: &[f64]) {
    let bound = 1e-5 * want.iter().fold(0.0, |m: f64, &x| m.max(x));
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!((got as f64 - want).abs() <= bound, "{what}, entry {i}: {got}, want {want}");
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
