//! Many ranks decide what one process decides, to the bit: random unlike layers, split over heads, over layers and over both, with every
//! rule of heads and layers; and what is refused is refused on every rank.

mod common;

use common::{Random, aligned, carver};
use lava::ranks::{self, Part, Ranks};
use lava::workspace::Carver;
use lava::*;

/// Rows of one head: positions of the prefix, then of the window.
type HeadRows = Vec<u32>;

#[derive(Clone)]
struct Layer {
    n_tokens: usize,
    window: usize,
    sliding: Option<usize>,
    ragged: bool,
    heads: Vec<(HeadRows, Vec<f32>)>,
}

/// What a set of shapes leads to.
struct Held {
    cu_rows: Vec<Vec<u32>>,
    positions: Vec<Vec<u32>>,
    sizes: Vec<(usize, usize, Option<usize>, bool, usize)>,
    scores: Vec<f32>,
}

impl Held {
    /// The heads `of(l)` of each layer.
    fn new(model: &[Layer], of: impl Fn(usize) -> std::ops::Range<usize>) -> Self {
        let mut held = Held { cu_rows: vec![], positions: vec![], sizes: vec![], scores: vec![] };
        for (l, layer) in model.iter().enumerate() {
            let (mut cu, mut positions) = (vec![0], vec![]);
            for (rows, scores) in &layer.heads[of(l)] {
                positions.extend(rows);
                cu.push(positions.len() as u32);
                held.scores.extend(scores);
            }
            held.cu_rows.push(cu);
            held.positions.push(positions);
            held.sizes.push((layer.n_tokens, layer.window, layer.sliding, layer.ragged, of(l).len()));
        }
        held
    }

    fn shapes(&self) -> Vec<Shape<'_>> {
        let layers = self.sizes.iter().enumerate();
        layers
            .map(|(l, &(n_tokens, window, sliding_window, ragged, n))| {
                let dense = Shape {
                    layer: l as u32,
                    sliding_window,
                    ..Shape::dense(n_tokens, 2 * n, n, 4, 4, window)
                };
                if ragged && n > 0 { dense.with_rows(&self.cu_rows[l], &self.positions[l]) } else { dense }
            })
            .collect()
    }
}

fn random_model(r: &mut Random) -> Vec<Layer> {
    let steps = [2, 9, 1 << 20][r.below(3)];
    let negative = r.below(4) == 0;
    (0..1 + r.below(6))
        .map(|_| {
            let (n_tokens, window) = (2 + r.below(60), 1 + r.below(4));
            let ragged = r.below(3) == 0;
            let sliding = if r.below(3) == 0 { Some(1 + r.below(50)) } else { None };
            let n_heads = [0, 1, 2, 3, 4, 8, 8][r.below(7)];
            let heads = (0..n_heads).map(|_| {
                let dense = n_tokens.saturating_sub(window);
                let keep = 1 + r.below(4);
                let rows: Vec<u32> = (0..n_tokens)
                    .filter(|&i| i >= dense || !ragged || r.below(4) < keep)
                    .map(|i| i as u32)
                    .collect();
                let n = rows.len() - n_tokens.min(window);
                let scores = (0..n).map(|_| {
                    let x = r.below(steps) as f32 / steps as f32;
                    if negative { x - 0.3 } else { x }
                });
                let scores = scores.collect();
                (rows, scores)
            });
            Layer { n_tokens, window, sliding, ragged, heads: heads.collect() }
        })
        .collect()
}

/// Which heads of each layer a rank has.
type Split = Vec<Vec<std::ops::Range<usize>>>;

/// `stages` of layers, each split over `per_stage` ranks, at random cuts.
fn random_split(r: &mut Random, model: &[Layer], stages: usize, per_stage: usize) -> Split {
    let cuts = |r: &mut Random, n: usize, parts: usize| {
        let mut at: Vec<usize> = (1..parts).map(|_| r.below(n + 1)).collect();
        at.extend([0, n]);
        at.sort();
        at
    };
    let layer_cuts = cuts(r, model.len(), stages);
    let mut split = vec![vec![0..0; model.len()]; stages * per_stage];
    for stage in 0..stages {
        for l in layer_cuts[stage]..layer_cuts[stage + 1] {
            let at = cuts(r, model[l].heads.len(), per_stage);
            (0..per_stage).for_each(|p| split[stage * per_stage + p][l] = at[p]..at[p + 1]);
        }
    }
    split
}

/// Rules of a decision.
#[derive(Clone, Copy)]
struct Rules<'a> {
    total: u64,
    share: LayerShare,
    weights: Option<&'a [f64]>,
    select: SelectParams<'a>,
    more_layers: bool,
}

/// What each rank gets: its layers' entries, its heads' counts, all layers' entries and entropies.
type Outcome = (Vec<u64>, Vec<f64>, (Vec<u64>, Vec<f64>));

fn decide(model: &[Layer], split: &Split, rules: Rules, order: &mut Random) -> Vec<Result<Outcome>> {
    decide_with(model, split, |_| rules, order, |_, _, _| {})
}

/// What a sum is refused with that these ranks have not counted.
const NO_SUM: Error = Error { kind: ErrorKind::State, argument: c"exchange", layer: None, head: None };

/// Runs all ranks in step, each with its rules. `spoil` may change what a rank has counted in an exchange before it is summed.
fn decide_with<'r>(
    model: &[Layer],
    split: &Split,
    rules: impl Fn(usize) -> Rules<'r>,
    order: &mut Random,
    mut spoil: impl FnMut(usize, usize, &mut [u64]),
) -> Vec<Result<Outcome>> {
    let n_kv_heads: Vec<u32> = model.iter().map(|layer| layer.heads.len() as u32).collect();
    let held: Vec<Held> = split.iter().map(|own| Held::new(model, |l| own[l].clone())).collect();
    let shapes: Vec<_> = held.iter().map(|held| held.shapes()).collect();
    let first: Vec<Vec<u32>> =
        split.iter().map(|own| own.iter().map(|heads| heads.start as u32).collect()).collect();
    let parts: Vec<Part<[Shape]>> = (0..split.len())
        .map(|rank| Part {
            layers: &shapes[rank][..],
            n_kv_heads: &n_kv_heads,
            first_head: &first[rank],
            scores: &held[rank].scores,
            total: rules(rank).total,
            share: rules(rank).share,
            weights: rules(rank).weights,
            select: rules(rank).select,
            more_layers: rules(rank).more_layers,
        })
        .collect();
    let mut memory: Vec<_> = parts.iter().map(|part| aligned(ranks::state_size(part).unwrap())).collect();
    let mut states: Vec<Ranks> = parts
        .iter()
        .zip(&mut memory)
        .map(|(part, memory)| Ranks::new(part, &mut carver(memory)).unwrap())
        .collect();
    for round in 0.. {
        let n = states[0].n_words();
        assert!(states.iter().all(|state| state.n_words() == n), "ranks exchange as many words");
        let mut all: Vec<Vec<u64>> = (0..parts.len())
            .map(|rank| {
                let mut exchange = vec![u64::MAX; ranks::most_words(&parts[rank]).unwrap()];
                states[rank].count(&parts[rank], &mut exchange).unwrap();
                assert!(exchange[n..].iter().all(|&word| word == u64::MAX), "words beyond the exchange");
                exchange.truncate(n);
                spoil(rank, round, &mut exchange);
                exchange
            })
            .collect();
        let mut sums = vec![0u64; n];
        while !all.is_empty() {
            let one = all.swap_remove(order.below(all.len()));
            sums.iter_mut().zip(one).for_each(|(sum, x)| *sum = sum.wrapping_add(x));
        }
        let done: Vec<_> =
            states.iter_mut().zip(&parts).map(|(state, part)| state.round(part, &sums)).collect();
        if done.iter().any(|d| d != &done[0]) {
            // Only a sum that is none may be seen by one rank alone, by what it has.
            let alone = |d: &Result<bool>| d.is_ok() || d == &Err(NO_SUM);
            assert!(done.iter().all(alone), "ranks agree: {done:?}");
            return vec![Err(NO_SUM); parts.len()];
        }
        if done[0] == Ok(false) {
            continue;
        }
        return (0..parts.len())
            .map(|rank| {
                done[rank]?;
                let (part, state) = (&parts[rank], &states[rank]);
                assert_eq!(state.n_words(), 0);
                let mut entries = vec![u64::MAX; model.len()];
                let mut weights = vec![f64::NAN; split[rank].iter().map(|heads| heads.len()).sum()];
                state.entries(part, &mut entries, &mut weights)?;
                let mut layers = (vec![u64::MAX; model.len()], vec![f64::NAN; model.len()]);
                state.layers(part, &mut layers.0, &mut layers.1)?;
                Ok((entries, weights, layers))
            })
            .collect();
    }
    unreachable!()
}

fn keep(shape: &Shape, select: &SelectParams, scores: &[f32], n: u64) -> (Vec<u32>, Vec<u32>) {
    let n_kept = select::n_kept(shape, n).unwrap() as usize;
    let (mut kept, mut cu) = (vec![0; n_kept], vec![0; shape.n_kv_heads + 1]);
    let mut memory = aligned(select::workspace_size(shape).unwrap());
    select::select(shape, select, scores, n, &mut carver(&mut memory), &mut kept, &mut cu, None).unwrap();
    (kept, cu)
}

/// Each layer's entries and entropy, and each head's kept positions.
type OfOne = (Vec<u64>, Vec<f64>, Vec<Vec<Vec<u32>>>);

/// What one process decides: each layer's entries, and each head's kept positions.
fn one_process(model: &[Layer], rules: Rules) -> Result<OfOne> {
    let held = Held::new(model, |l| 0..model[l].heads.len());
    let shapes = held.shapes();
    let n_heads: usize = model.iter().map(|layer| layer.heads.len()).sum();
    let (mut entries, mut weights) = (vec![0; model.len()], vec![0.0; n_heads]);
    let mut entropies = vec![0.0; model.len()];
    let mut rest = &held.scores[..];
    let scores: Vec<&[f32]> = shapes
        .iter()
        .map(|shape| {
            let (own, others) =
                rest.split_at(if shape.n_kv_heads > 0 { shape.n_scores() as usize } else { 0 });
            rest = others;
            own
        })
        .collect();
    let taking_part: Vec<usize> = (0..model.len()).filter(|&l| !model[l].heads.is_empty()).collect();
    if rules.share == LayerShare::Global {
        let mut memory = aligned(select::global_entries_workspace_size(&shapes[..]).unwrap());
        let space: &mut Carver = &mut carver(&mut memory);
        select::global_entries(
            &shapes[..],
            &rules.select,
            &held.scores,
            rules.total,
            space,
            &mut entries,
            &mut weights,
        )?;
    } else {
        for &l in taking_part.iter().filter(|_| rules.share == LayerShare::Entropy) {
            entropies[l] = entropy::entropy(&shapes[l], scores[l])?.entropy;
        }
        let equal = vec![1.0; model.len()];
        let by = match rules.share {
            LayerShare::Entropy => &entropies,
            LayerShare::Equal => &equal,
            _ => rules.weights.unwrap(),
        };
        budget::layer_entries(&shapes[..], &rules.select, by, rules.total, &mut entries)?;
    }
    let mut kept = vec![];
    let mut first = 0;
    for (l, layer) in model.iter().enumerate() {
        let own = first..first + layer.heads.len();
        first = own.end;
        let all =
            if rules.share == LayerShare::Global { Some(&weights[..]) } else { rules.select.head_weights };
        let select = SelectParams { head_weights: all.map(|all| &all[own]), ..rules.select };
        kept.push(if layer.heads.is_empty() {
            vec![]
        } else {
            let (kept, cu) = keep(&shapes[l], &select, scores[l], entries[l]);
            cu.windows(2).map(|cu| kept[cu[0] as usize..cu[1] as usize].to_vec()).collect()
        });
    }
    Ok((entries, entropies, kept))
}

/// That each rank keeps of its heads what one process keeps of them.
fn check_same(model: &[Layer], split: &Split, rules: Rules, order: &mut Random) {
    let got = decide(model, split, rules, order);
    let want = match one_process(model, rules) {
        Ok(want) => want,
        Err(e) => {
            for rank in got {
                let error = rank.unwrap_err();
                assert_eq!(
                    (error.kind, error.layer, error.head),
                    (e.kind, e.layer, e.head),
                    "{error} for {e}"
                );
            }
            return;
        }
    };
    for (own, got) in split.iter().zip(got) {
        let (entries, weights, layers) = got.unwrap();
        let held = Held::new(model, |l| own[l].clone());
        let (shapes, mut weights, mut scores) = (held.shapes(), &weights[..], &held.scores[..]);
        for (l, shape) in shapes.iter().enumerate() {
            assert_eq!(layers.0[l], want.0[l], "layer {l}");
            if rules.share == LayerShare::Entropy {
                assert_eq!(layers.1[l].to_bits(), want.1[l].to_bits(), "layer {l}");
            }
            if shape.n_kv_heads == 0 {
                assert_eq!(entries[l], 0);
                continue;
            }
            let (head_weights, others) = weights.split_at(shape.n_kv_heads);
            weights = others;
            let (own_scores, others) = scores.split_at(shape.n_scores() as usize);
            scores = others;
            let select = SelectParams { head_weights: Some(head_weights), ..rules.select };
            let (kept, cu) = keep(shape, &select, own_scores, entries[l]);
            for h in 0..shape.n_kv_heads {
                let head = &kept[cu[h] as usize..cu[h + 1] as usize];
                assert_eq!(head, want.2[l][own[l].start + h], "layer {l}, head {}", own[l].start + h);
            }
        }
    }
}

/// Rules at random, each combination that has a meaning.
fn with_rules(r: &mut Random, model: &[Layer], check: impl FnOnce(&mut Random, Rules)) {
    let held = Held::new(model, |l| 0..model[l].heads.len());
    let shapes = held.shapes();
    let layers = &shapes[..];
    let longest = model.iter().map(|layer| layer.n_tokens).max().unwrap();
    let mask: Vec<u8> = (0..longest).map(|_| (r.below(8) == 0) as u8).collect();
    let share = [LayerShare::Entropy, LayerShare::Equal, LayerShare::Weights, LayerShare::Global][r.below(4)];
    let floors = [HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine];
    let is_global = share == LayerShare::Global;
    let head_weights: Vec<f64> = (0..layers.n_heads()).map(|_| r.below(5) as f64 / 3.0).collect();
    let weights: Vec<f64> = model.iter().map(|_| r.below(4) as f64 / 3.0).collect();
    let select = SelectParams {
        head_floor: floors[r.below(if is_global { 2 } else { 3 })],
        alpha: [0.0, 0.2, 0.7, 1.0][r.below(4)],
        head_min: [0, 0, 1, 3][r.below(4)],
        head_weights: (!is_global && r.below(4) == 0).then_some(&head_weights),
        n_sink: [0, 4][r.below(2)],
        protected_mask: (r.below(3) == 0).then_some(&mask),
    };
    let capacity = layers.n_entries();
    // Also more than there is, and less than what is protected, which one process refuses too.
    let total = r.below(capacity as usize * 5 / 4 + 2) as u64;
    let weights = (share == LayerShare::Weights).then_some(&weights[..]);
    check(r, Rules { total, share, weights, select, more_layers: false });
}

#[test]
fn ranks_keep_what_one_process_keeps() {
    let r = &mut Random(21);
    let mut n_decided = [0; 2];
    for case in 0..6000 {
        let model = random_model(r);
        let n_ranks = [1, 2, 4, 8][case % 4];
        let stages = [1, n_ranks, [1, 1, 2, 2][case % 4]][case / 4 % 3];
        let split = random_split(r, &model, stages, n_ranks / stages);
        with_rules(r, &model, |r, rules| {
            n_decided[one_process(&model, rules).is_ok() as usize] += 1;
            check_same(&model, &split, rules, r);
        });
    }
    assert!(n_decided[1] > 2000 && n_decided[0] > 500, "refused, decided: {n_decided:?}");
}

/// Decisions over the layers so far are what a cascade keeps after each push, and the last one is that of all layers at once.
#[test]
fn ranks_keep_what_a_cascade_keeps_after_each_push() {
    let r = &mut Random(22);
    let mut n_compared = 0;
    for case in 0..2000 {
        // What a cascade takes: scores that are not negative.
        let mut model = random_model(r);
        model.iter_mut().flat_map(|layer| &mut layer.heads).for_each(|head| {
            head.1.iter_mut().for_each(|score| *score = score.abs());
        });
        let n_ranks = [1, 2, 4, 8][case % 4];
        let stages = [1, n_ranks][case / 4 % 2];
        let split = random_split(r, &model, stages, n_ranks / stages);
        with_rules(r, &model, |r, rules| {
            let held = Held::new(&model, |l| 0..model[l].heads.len());
            let shapes = held.shapes();
            let params = cascade::CascadeParams { layers: rules.share, evict_every: 1 };
            let size = cascade::state_size(&shapes[..], rules.total, &rules.select, &params);
            let Ok(size) = size else { return };
            let mut memory = aligned(size);
            let state = &mut carver(&mut memory);
            let mut cascade =
                cascade::Cascade::new(&shapes[..], rules.total, &rules.select, &params, state).unwrap();
            let mut scores = &held.scores[..];
            let last = (0..model.len()).rfind(|&l| !model[l].heads.is_empty());
            for l in 0..model.len() {
                if model[l].heads.is_empty() {
                    continue;
                }
                let (own, others) = scores.split_at(shapes[l].n_scores() as usize);
                scores = others;
                cascade.push(&shapes[l], own, rules.weights.map(|weights| weights[l])).unwrap();
                let so_far: Split = split.iter().map(|own| own[..=l].to_vec()).collect();
                let n_heads = model[..=l].iter().map(|layer| layer.heads.len()).sum();
                let select = SelectParams {
                    head_weights: rules.select.head_weights.map(|all| &all[..n_heads]),
                    ..rules.select
                };
                let now = Rules { more_layers: Some(l) != last, select, ..rules };
                let got = decide(&model[..=l], &so_far, now, r);
                for (own, got) in so_far.iter().zip(got) {
                    let (entries, weights, _) = got.unwrap();
                    let mine = Held::new(&model[..=l], |l| own[l].clone());
                    let (mut weights, mut scores) = (&weights[..], &mine.scores[..]);
                    for (i, shape) in mine.shapes().iter().enumerate().filter(|(_, s)| s.n_kv_heads > 0) {
                        let (head_weights, others) = weights.split_at(shape.n_kv_heads);
                        weights = others;
                        let (own_scores, others) = scores.split_at(shape.n_scores() as usize);
                        scores = others;
                        let select = SelectParams { head_weights: Some(head_weights), ..rules.select };
                        let (kept, cu) = keep(shape, &select, own_scores, entries[i]);
                        let want = cascade.layer(i).unwrap();
                        for h in 0..shape.n_kv_heads {
                            let all = own[i].start + h;
                            let head = want.cu_kept[all] as usize..want.cu_kept[all + 1] as usize;
                            let got = &kept[cu[h] as usize..cu[h + 1] as usize];
                            assert_eq!(got, &want.kept_indices[head], "layer {i}, head {all}, after {l}");
                            n_compared += 1;
                        }
                    }
                }
            }
        });
    }
    assert!(n_compared > 10_000, "{n_compared}");
}

/// Two layers of eight heads with different scores, over `n_ranks`.
fn plain(n_ranks: usize) -> (Vec<Layer>, Split) {
    let r = &mut Random(23);
    let layer = |r: &mut Random| Layer {
        n_tokens: 40,
        window: 4,
        sliding: None,
        ragged: false,
        heads: (0..8).map(|_| ((0..40).collect(), (0..36).map(|_| r.below(1000) as f32).collect())).collect(),
    };
    let model = vec![layer(r), layer(r)];
    let per_rank = 8 / n_ranks;
    let split = (0..n_ranks).map(|rank| vec![rank * per_rank..(rank + 1) * per_rank; 2]).collect();
    (model, split)
}

const EQUAL: Rules = Rules {
    total: 100,
    share: LayerShare::Equal,
    weights: None,
    select: SelectParams::lava(),
    more_layers: false,
};

fn refused(got: Vec<Result<Outcome>>) -> Error {
    let errors: Vec<_> = got.into_iter().map(|rank| rank.expect_err("refused")).collect();
    assert!(errors.iter().all(|e| e == &errors[0]), "{errors:?}");
    errors[0]
}

#[test]
fn bad_scores_of_one_rank_are_named_on_all() {
    let r = &mut Random(24);
    for share in [LayerShare::Equal, LayerShare::Entropy, LayerShare::Global] {
        for (bad, kind) in [
            (f32::NAN, ErrorKind::NonFinite),
            (f32::NEG_INFINITY, ErrorKind::NonFinite),
            (-1.0, ErrorKind::Argument),
        ] {
            let (mut model, split) = plain(4);
            (model[1].heads[6].1[30], model[1].heads[7].1[0]) = (bad, bad);
            let got = decide(&model, &split, Rules { share, ..EQUAL }, r);
            if kind == ErrorKind::Argument && share != LayerShare::Entropy {
                assert!(got.iter().all(|rank| rank.is_ok()), "only entropies want no negative scores");
                continue;
            }
            let e = refused(got);
            assert_eq!((e.kind, e.layer, e.head), (kind, Some(1), Some(6)));
        }
    }
}

#[test]
fn ranks_that_ask_for_different_things_all_hear_of_it() {
    let r = &mut Random(25);
    let mask = [1u8; 36];
    let weights = [[1.0; 2], [1.0, 2.0]];
    let heads = [[1.0; 16], [2.0; 16]];
    let lava = SelectParams::lava();
    let differ: [[Rules; 2]; 7] = [
        [EQUAL, Rules { total: 101, ..EQUAL }],
        [EQUAL, Rules { share: LayerShare::Global, ..EQUAL }],
        [EQUAL, Rules { select: SelectParams { head_min: 1, ..lava }, ..EQUAL }],
        [EQUAL, Rules { select: SelectParams { protected_mask: Some(&mask), ..lava }, total: 600, ..EQUAL }],
        [EQUAL, Rules { more_layers: true, ..EQUAL }],
        [0, 1].map(|i| Rules { share: LayerShare::Weights, weights: Some(&weights[i]), ..EQUAL }),
        [0, 1].map(|i| Rules { select: SelectParams { head_weights: Some(&heads[i]), ..lava }, ..EQUAL }),
    ];
    for (n_ranks, odd) in [(2, 0), (4, 3), (8, 5)] {
        let (model, split) = plain(n_ranks);
        for rules in differ {
            let e =
                refused(decide_with(&model, &split, |rank| rules[(rank == odd) as usize], r, |_, _, _| {}));
            assert_eq!((e.kind, e.argument), (ErrorKind::Shape, c"rank"));
        }
        // Masks of the same length with other bytes: found when heads of a layer are compared.
        let other = [0u8; 36];
        let with = |mask| SelectParams { protected_mask: Some(mask), ..lava };
        let rules =
            |rank| Rules { select: with(if rank == odd { &other } else { &mask }), total: 600, ..EQUAL };
        let e = refused(decide_with(&model, &split, rules, r, |_, _, _| {}));
        assert_eq!((e.kind, e.argument, e.layer), (ErrorKind::Shape, c"shapes", Some(0)));
    }
}

#[test]
fn a_rank_that_refuses_ends_every_exchange_for_all() {
    let r = &mut Random(26);
    let (model, split) = plain(4);
    // As many exchanges as a decision has.
    for when in 0..7 {
        let mut n_rounds = 0;
        let got = decide_with(
            &model,
            &split,
            |_| EQUAL,
            r,
            |rank, round, exchange| {
                n_rounds = round + 1;
                if (rank, round) == (2, when) {
                    ranks::refuse(ErrorKind::Driver, exchange).unwrap();
                }
            },
        );
        let e = refused(got);
        assert_eq!((e.kind, e.argument, n_rounds), (ErrorKind::Driver, c"rank", when + 1));
    }
}

#[test]
fn heads_of_no_rank_or_of_two_are_refused() {
    let r = &mut Random(27);
    let (model, split) = plain(4);
    let mut twice = split.clone();
    twice[3][1] = 5..8;
    let e = refused(decide(&model, &twice, EQUAL, r));
    assert_eq!((e.kind, e.layer, e.head), (ErrorKind::Shape, Some(1), Some(5)));
    let mut never = split.clone();
    never[0][0] = 1..2;
    let e = refused(decide(&model, &never, EQUAL, r));
    assert_eq!((e.kind, e.layer, e.head), (ErrorKind::Shape, Some(0), Some(0)));
    // A rank that is not there any more: its words are missing from the sum.
    for when in 1..7 {
        let got = decide_with(
            &model,
            &split,
            |_| EQUAL,
            r,
            |rank, round, exchange| {
                if rank == 1 && round >= when {
                    exchange.fill(0);
                }
            },
        );
        assert_eq!(refused(got).kind, ErrorKind::State);
    }
}

/// Sums that nobody has counted: no panic, and all ranks hear the same.
#[test]
fn any_sum_is_taken_or_refused() {
    let r = &mut Random(28);
    let mut n_refused = 0;
    for case in 0..4000 {
        let model = random_model(r);
        let n_ranks = [1, 2, 4][case % 3];
        let split = random_split(r, &model, 1, n_ranks);
        with_rules(r, &model, |r, rules| {
            let (when, n_words) = (r.below(8), 1 + r.below(3));
            let mut noise = Random(r.next());
            let got = decide_with(
                &model,
                &split,
                |_| rules,
                r,
                |rank, round, exchange| {
                    for _ in 0..n_words * (rank == 0 && round == when) as usize {
                        let at = noise.below(exchange.len());
                        exchange[at] = match noise.below(3) {
                            0 => noise.next(),
                            1 => exchange[at].wrapping_add(1),
                            _ => exchange[at].wrapping_sub(1),
                        };
                    }
                },
            );
            n_refused += got[0].is_err() as usize;
        });
    }
    assert!(n_refused > 1000, "{n_refused}");
}

/// Another part than the one that a decision was started with, one that is not valid, and a decision that has ended.
#[test]
fn a_part_and_a_state_belong_together() {
    let (model, _) = plain(1);
    let held = Held::new(&model, |_| 0..8);
    let shapes = held.shapes();
    let part = Part {
        layers: &shapes[..],
        n_kv_heads: &[8, 8],
        first_head: &[0, 0],
        scores: &held.scores,
        total: 100,
        share: LayerShare::Equal,
        weights: None,
        select: SelectParams::lava(),
        more_layers: false,
    };
    let mut memory = aligned(ranks::state_size(&part).unwrap());
    assert_eq!(Ranks::reopen(&mut carver(&mut memory)).err().unwrap().kind, ErrorKind::State);
    let mut state = Ranks::new(&part, &mut carver(&mut memory)).unwrap();
    let exchange = &mut vec![0; ranks::most_words(&part).unwrap()][..];
    let other = Part { total: 99, ..part };
    let e = state.count(&other, exchange).unwrap_err();
    assert_eq!((e.kind, e.argument, exchange[0], exchange[15]), (ErrorKind::State, c"rank", 1, 1));
    assert_eq!(state.round(&other, exchange).unwrap_err().argument, c"rank");
    assert_eq!(
        state.count(&part, &mut exchange[..ranks::HELLO_WORDS - 1]).unwrap_err().kind,
        ErrorKind::BufferSize
    );
    assert_eq!(state.entries(&part, &mut [0; 2], &mut [0.0; 16]).unwrap_err().kind, ErrorKind::State);
    let short = Part { scores: &held.scores[1..], ..part };
    assert_eq!(state.count(&short, exchange).unwrap_err().kind, ErrorKind::BufferSize);
    for (part, kind) in [
        (Part { n_kv_heads: &[8], ..part }, ErrorKind::BufferSize),
        (Part { first_head: &[0], ..part }, ErrorKind::BufferSize),
        (Part { first_head: &[0, 1], ..part }, ErrorKind::Shape),
        (Part { n_kv_heads: &[8, 7], ..part }, ErrorKind::Shape),
        (Part { weights: Some(&[1.0; 2]), ..part }, ErrorKind::Argument),
        (Part { share: LayerShare::Weights, ..part }, ErrorKind::Argument),
        (Part { share: LayerShare::Weights, weights: Some(&[1.0, -1.0]), ..part }, ErrorKind::Argument),
        (Part { share: LayerShare::Weights, weights: Some(&[1.0, f64::NAN]), ..part }, ErrorKind::NonFinite),
        (
            Part { share: LayerShare::Global, select: SelectParams::lava_released(), ..part },
            ErrorKind::Argument,
        ),
    ] {
        assert_eq!(ranks::state_size(&part).unwrap_err().kind, kind);
    }
    // It goes on where it was, and ends.
    loop {
        state.count(&part, exchange).unwrap();
        if state.round(&part, exchange).unwrap() {
            break;
        }
    }
    assert_eq!(state.count(&part, exchange).unwrap_err().kind, ErrorKind::State);
    assert_eq!(state.round(&part, exchange).unwrap_err().kind, ErrorKind::State);
    assert_eq!(state.entries(&part, &mut [0; 2], &mut [0.0; 15]).unwrap_err().kind, ErrorKind::BufferSize);
    state.entries(&part, &mut [0; 2], &mut [0.0; 16]).unwrap();
}
