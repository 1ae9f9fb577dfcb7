//! Ranks that decide together keep what one process keeps, bit for bit, through the C ABI: on a real model's cache with every scorer and
//! every way of sharing, and on random layers that differ. What goes wrong on one rank is known on all.

use ffi_tests::*;
use safetensors::SafeTensors;
use std::ops::Range;
use std::path::Path;
use std::ptr::null;

/// A layer of the whole model with its scores.
struct Whole {
    shape: lava_shape,
    /// Of a layer that has been compressed before; empty for others.
    rows: Rows,
    scores: Vec<f32>,
}

impl Whole {
    fn shape(&self) -> lava_shape {
        if self.rows.cu.is_empty() { self.shape } else { self.rows.of(self.shape) }
    }

    fn n_heads(&self) -> usize {
        self.shape.n_kv_heads as usize
    }

    /// Scores of a head.
    fn head(&self, h: usize) -> &[f32] {
        let window = self.shape.window.min(self.shape.n_tokens) as usize;
        let at = |h: usize| match self.rows.cu.is_empty() {
            true => h * prefix_len(&self.shape),
            false => self.rows.cu[h] as usize - h * window,
        };
        &self.scores[at(h)..at(h + 1)]
    }

    /// The layer as a rank with these heads has it.
    fn part(&self, heads: Range<usize>) -> Whole {
        let (n, group) = (heads.len() as u32, self.shape.n_q_heads.checked_div(self.shape.n_kv_heads));
        Whole {
            shape: lava_shape { n_kv_heads: n, n_q_heads: n * group.unwrap_or(0), ..self.shape },
            rows: match self.rows.cu.is_empty() || heads.is_empty() {
                true => Rows::default(),
                false => Rows::new(&heads.clone().map(|h| self.rows.head(h).to_vec()).collect::<Vec<_>>()),
            },
            scores: heads.flat_map(|h| self.head(h)).copied().collect(),
        }
    }
}

/// Which heads of each layer a rank has.
type Own = Vec<Range<usize>>;

/// `stages` of layers, each split over `n` ranks, as evenly as can be.
fn split(model: &[Whole], stages: usize, n: usize) -> Vec<Own> {
    let cut = |total: usize, part: usize, parts: usize| total * part / parts..total * (part + 1) / parts;
    (0..stages * n)
        .map(|rank| {
            let layers = cut(model.len(), rank / n, stages);
            let own = |(l, layer): (usize, &Whole)| match layers.contains(&l) {
                true => cut(layer.n_heads(), rank % n, n),
                false => 0..0,
            };
            model.iter().enumerate().map(own).collect()
        })
        .collect()
}

/// What all ranks ask for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    total: u64,
    layers: i32,
    params: lava_select_params,
    weights: Option<&'a [f64]>,
    more_layers: u32,
}

/// A rank with all that its `lava_rank` leads to.
struct Rank {
    own: Own,
    parts: Vec<Whole>,
    shapes: Vec<lava_shape>,
    n_kv_heads: Vec<u32>,
    first_head: Vec<u32>,
    scores: Vec<f32>,
    params: Box<lava_select_params>,
    rank: lava_rank,
    state: Memory,
    state_size: usize,
    n_words: u32,
}

impl Rank {
    fn new(model: &[Whole], own: &Own, asked: Asked) -> Outcome<Self> {
        let parts: Vec<_> = model.iter().zip(own).map(|(layer, own)| layer.part(own.clone())).collect();
        let mut rank = Rank {
            own: own.clone(),
            shapes: parts.iter().map(|part| part.shape()).collect(),
            n_kv_heads: model.iter().map(|layer| layer.shape.n_kv_heads).collect(),
            first_head: own.iter().map(|own| own.start as u32).collect(),
            scores: parts.iter().flat_map(|part| part.scores.clone()).collect(),
            params: Box::new(asked.params),
            parts,
            rank: unsafe { lava_rank_init(0, null(), null(), null(), null(), asked.total) },
            state: Memory::new(0),
            state_size: 0,
            n_words: 0,
        };
        let n = model.len() as u32;
        let (shapes, heads, first) =
            (rank.shapes.as_ptr(), rank.n_kv_heads.as_ptr(), rank.first_head.as_ptr());
        rank.rank = unsafe { lava_rank_init(n, shapes, heads, first, rank.scores.as_ptr(), asked.total) };
        (rank.rank.layers, rank.rank.params) = (asked.layers, &*rank.params);
        (rank.rank.weights, rank.rank.more_layers) =
            (asked.weights.map_or(null(), |w| w.as_ptr()), asked.more_layers);
        let (size, words) = (&mut rank.state_size, &mut rank.n_words);
        call(|e| unsafe { lava_ranks_size(&rank.rank, size, words, e) })?;
        rank.state = Memory::new(rank.state_size + 64);
        call(|e| unsafe { lava_ranks_start(&rank.rank, rank.state.ptr(), rank.state_size, e) })?;
        Ok(rank)
    }

    /// What it counts, in exactly the words that there are.
    fn count(&self) -> Vec<u64> {
        let mut exchange = vec![u64::MAX; self.n_words as usize];
        let n = number(|n, e| unsafe {
            let (state, to) = (self.state.ptr(), exchange.as_mut_ptr());
            lava_ranks_count(&self.rank, state, self.state_size, to, self.n_words, n, e)
        });
        let n = n.unwrap() as usize;
        assert!(exchange[n..].iter().all(|&word| word == u64::MAX), "words beyond n_words were written");
        exchange.truncate(n);
        exchange
    }

    fn round(&self, sums: &[u64]) -> Outcome<bool> {
        let (state, n) = (self.state.ptr(), sums.len() as u32);
        let done = number(|done, e| unsafe {
            lava_ranks_round(&self.rank, state, self.state_size, sums.as_ptr(), n, done, e)
        })?;
        let end = &self.state.to_vec::<u8>()[self.state_size..];
        assert!(end.iter().all(|&byte| byte == POISON), "written after the state");
        Ok(done == 1)
    }

    /// Entries and weights of its heads, entries and entropies of all layers.
    fn entries(&self) -> (Vec<u64>, Vec<f64>, Vec<u64>, Vec<f64>) {
        let n = self.shapes.len();
        let n_own = self.own.iter().map(|own| own.len()).sum();
        let mut out = (vec![u64::MAX; n], vec![f64::NAN; n_own], vec![u64::MAX; n], vec![f64::NAN; n]);
        call(|e| unsafe {
            let (entries, weights) = (out.0.as_mut_ptr(), out.1.as_mut_ptr());
            let (layers, entropies) = (out.2.as_mut_ptr(), out.3.as_mut_ptr());
            let (state, size) = (self.state.ptr(), self.state_size);
            lava_ranks_entries(&self.rank, state, size, entries, weights, layers, entropies, e)
        })
        .unwrap();
        out
    }

    /// What `lava_select` keeps of each head of each layer.
    fn kept(&self) -> Vec<Vec<Vec<u32>>> {
        let (entries, weights, ..) = self.entries();
        let mut first = 0;
        let layer = |(l, part): (usize, &Whole)| {
            if part.n_heads() == 0 {
                return vec![];
            }
            let own = &weights[first..first + part.n_heads()];
            first += part.n_heads();
            let params = lava_select_params { head_weights: own.as_ptr(), ..*self.params };
            let kept = select(&self.shapes[l], &params, &part.scores, entries[l]).unwrap();
            (0..part.n_heads()).map(|h| kept.head(h).to_vec()).collect()
        };
        self.parts.iter().enumerate().map(layer).collect()
    }
}

/// Bytes and exchanges of a decision, per rank.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Cost {
    bytes: usize,
    exchanges: usize,
}

/// Runs ranks in step until all is decided. They agree on how many words there are, and on how it ends.
fn decide(ranks: &[Rank], mut spoil: impl FnMut(usize, usize, &mut [u64])) -> Outcome<Cost> {
    let mut cost = Cost::default();
    loop {
        let mut all: Vec<_> = ranks.iter().map(|rank| rank.count()).collect();
        let n = all[0].len();
        all.iter_mut().enumerate().for_each(|(rank, words)| spoil(rank, cost.exchanges, words));
        assert!(all.iter().all(|words| words.len() == n), "ranks exchange as many words");
        let sums: Vec<u64> =
            (0..n).map(|i| all.iter().map(|words| words[i]).fold(0, u64::wrapping_add)).collect();
        (cost.bytes, cost.exchanges) = (cost.bytes + 8 * n, cost.exchanges + 1);
        let outcomes: Vec<_> = ranks.iter().map(|rank| rank.round(&sums)).collect();
        assert!(outcomes.iter().all(|outcome| outcome == &outcomes[0]), "{outcomes:?}");
        if outcomes[0].clone()? {
            return Ok(cost);
        }
    }
}

/// Each layer's entries and entropy, and each head's kept positions.
type OfOne = (Vec<u64>, Vec<f64>, Vec<Vec<Vec<u32>>>);

/// What one process keeps of each head, and each layer's entropy.
fn one_process(model: &[Whole], asked: Asked) -> Outcome<OfOne> {
    let shapes: Vec<_> = model.iter().map(|layer| layer.shape()).collect();
    let mut entropies = vec![0.0; model.len()];
    let mut head_weights: Option<Vec<f64>> = None;
    let n_heads: usize = model.iter().map(|layer| layer.n_heads()).sum();
    if !asked.params.head_weights.is_null() {
        let given = unsafe { std::slice::from_raw_parts(asked.params.head_weights, n_heads) };
        head_weights = Some(given.to_vec());
    }
    let entries = if asked.layers == LAVA_LAYERS_GLOBAL {
        let scores: Vec<f32> = model.iter().flat_map(|layer| layer.scores.clone()).collect();
        let (entries, heads) = global_entries(&shapes, &asked.params, &scores, asked.total)?;
        head_weights = Some(heads);
        entries
    } else {
        for (l, layer) in model.iter().enumerate() {
            if layer.n_heads() > 0 && asked.layers == LAVA_LAYERS_ENTROPY {
                entropies[l] = entropy(&shapes[l], &layer.scores)?.0;
            }
        }
        let equal = vec![1.0; model.len()];
        let weights = match asked.layers {
            LAVA_LAYERS_ENTROPY => &entropies,
            LAVA_LAYERS_EQUAL => &equal,
            _ => asked.weights.unwrap(),
        };
        layer_entries(&shapes, &asked.params, weights, asked.total)?
    };
    let (mut kept, mut first) = (vec![], 0);
    for (l, layer) in model.iter().enumerate() {
        let own = head_weights.as_ref().map(|all| &all[first..first + layer.n_heads()]);
        first += layer.n_heads();
        kept.push(vec![]);
        if layer.n_heads() > 0 {
            let head_weights = own.map_or(null(), |own| own.as_ptr());
            let params = lava_select_params { head_weights, ..asked.params };
            let got = select(&shapes[l], &params, &layer.scores, entries[l])?;
            kept[l] = (0..layer.n_heads()).map(|h| got.head(h).to_vec()).collect();
        }
    }
    Ok((entries, entropies, kept))
}

/// That ranks keep what one process keeps, or are all refused for the same.
fn check_same(model: &[Whole], splits: &[Vec<Own>], asked: Asked) -> bool {
    let want = one_process(model, asked);
    for own in splits {
        let ranks: Vec<_> = own.iter().map(|own| Rank::new(model, own, asked).unwrap()).collect();
        let got = decide(&ranks, |_, _, _| {});
        let (want, _) = match (&want, got) {
            (Ok(want), Ok(cost)) => (want, cost),
            (Err(want), Err(got)) => {
                assert_eq!((got.status, got.layer, got.head), (want.status, want.layer, want.head));
                continue;
            }
            (want, got) => panic!("one process: {want:?}, ranks: {got:?}"),
        };
        for rank in &ranks {
            let (_, _, layers, entropies) = rank.entries();
            assert_eq!(layers, want.0);
            let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&entropies), bits(&want.1));
            for (l, heads) in rank.kept().iter().enumerate() {
                assert_eq!(heads[..], want.2[l][rank.own[l].clone()], "layer {l}, heads {:?}", rank.own[l]);
            }
        }
    }
    want.is_ok()
}

/// What the examples use: prompts of a small model, as an engine has them at the end of prefill.
struct Capture(Vec<u8>);

const LAYERS: usize = 4;
const HEADS: (usize, usize) = (8, 2);
const DIM: usize = 32;
const QUERIES: usize = 64;

/// One tensor of a capture, where a rank's heads begin, and how many there are.
fn tensor_of(data: &Memory, dtype: lava_dtype, heads: usize, first: usize) -> lava_tensor {
    let size = if dtype == LAVA_F32 { 4 } else { 2 };
    let at = data.ptr::<u8>().wrapping_add(first * DIM * size);
    let (bytes, row) = (data.len() - first * DIM * size, (heads * DIM) as i64);
    unsafe { lava_tensor_init(dtype, at as *mut std::ffi::c_void, bytes, row, DIM as i64, 1) }
}

impl Capture {
    fn tensor(&self, prompt: usize, layer: usize, what: &str) -> Memory {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        Memory::of(tensors.tensor(&format!("prompt{prompt}.layer{layer}.{what}")).unwrap().data())
    }

    /// Scores of these KV heads, and their attention's statistics, as a rank that has them computes them.
    fn score(
        &self,
        (prompt, layer): (usize, usize),
        window: usize,
        params: &lava_score_params,
        heads: Range<usize>,
    ) -> (lava_shape, Vec<f32>, Vec<f64>) {
        let [q, k, v] = ["q", "k", "v"].map(|what| self.tensor(prompt, layer, what));
        let group = HEADS.0 / HEADS.1;
        let last = Memory::of(&q.to_vec::<f32>()[(QUERIES - window) * HEADS.0 * DIM..]);
        let q = tensor_of(&last, LAVA_F32, HEADS.0, heads.start * group);
        let [k, v] = [&k, &v].map(|data| (tensor_of(data, LAVA_F16, HEADS.1, heads.start), data.len()));
        let n_tokens = k.1 / 2 / HEADS.1 / DIM;
        let shape = shape(n_tokens, (heads.len() * group, heads.len()), (DIM, DIM), window);
        let scores = score(&shape, params, [&q, &k.0, &v.0], None, WHOLE).unwrap();
        let bytes = number(|size, e| unsafe { lava_score_workspace_size(&shape, params, size, e) }).unwrap();
        let (space, mut stats) = (Memory::new(bytes), vec![f64::NAN; 2 * heads.len()]);
        call(|e| unsafe {
            let (none, space) = (null(), space.ptr());
            lava_attention_stats(&shape, params, &q, &k.0, none, 0, 1, space, bytes, stats.as_mut_ptr(), e)
        })
        .unwrap();
        (shape, scores, stats)
    }

    /// All layers of a prompt, each head scored by itself, as by ranks with a head each. Also each layer's weight by its statistics, which
    /// ranks sum as integers.
    fn model(&self, prompt: usize, window: usize, params: &lava_score_params) -> (Vec<Whole>, Vec<f64>) {
        let layer = |l| {
            let mut whole =
                Whole { shape: shape(1, (0, 0), (1, 1), 1), rows: Rows::default(), scores: vec![] };
            let mut sums = vec![0u64; 2 * HEADS.1];
            for h in 0..HEADS.1 {
                let (of_head, scores, stats) = self.score((prompt, l), window, params, h..h + 1);
                whole.shape = lava_shape { n_q_heads: 8, n_kv_heads: 2, ..of_head };
                whole.scores.extend(scores);
                // A slot that all others leave 0.
                let mut own = vec![0u64; 2 * HEADS.1];
                own[2 * h..2 * h + 2].copy_from_slice(&[stats[0].to_bits(), stats[1].to_bits()]);
                sums.iter_mut().zip(own).for_each(|(sum, x)| *sum += x);
            }
            let (one, scores, stats) = self.score((prompt, l), window, params, 0..HEADS.1);
            assert_eq!(
                bits(&scores),
                bits(&whole.scores),
                "a head's scores do not depend on who has the others"
            );
            assert_eq!(sums, stats.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            let gathered: Vec<f64> = sums.into_iter().map(f64::from_bits).collect();
            let weight =
                number(|weight, e| unsafe { lava_preference(&one, gathered.as_ptr(), 1.0, 1.0, weight, e) });
            (whole, weight.unwrap())
        };
        (0..LAYERS).map(layer).unzip()
    }
}

fn capture() -> Capture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../eval/model/captures.safetensors");
    Capture(std::fs::read(path).unwrap())
}

/// Presets of lava.h and lava_methods.h, each with its window.
fn scorers() -> Vec<(&'static str, usize, lava_score_params)> {
    unsafe {
        vec![
            ("recommended", 32, lava_score_params_default()),
            ("LAVa", 32, lava_score_params_lava()),
            ("asking, the window", 8, lava_score_params_ask_window(null())),
            ("squares", 32, lava_score_params_squares()),
            ("SnapKV", 32, lava_score_params_snapkv()),
            ("CAKE", 32, lava_score_params_cake(200.0)),
            ("TOVA", 1, lava_score_params_tova()),
            ("StreamingLLM", 32, lava_score_params_streaming()),
            ("VATP", 32, lava_score_params_vatp()),
            ("CAOTE", 32, lava_score_params_caote()),
            ("ReST-KV", 32, lava_score_params_rest_kv(0.3)),
            ("KV-Compress", 32, lava_score_params_kv_compress()),
            ("SAGE-KV", 32, lava_score_params_sage_kv()),
        ]
    }
}

/// Rules of heads.
fn allocators() -> Vec<lava_select_params> {
    let minimum = lava_select_params { head_min: 3, n_sink: 4, ..select_params() };
    unsafe {
        let presets = [lava_select_params_default(), lava_select_params_lava(), lava_select_params_equal()];
        let others = [
            lava_select_params_lava_released(),
            lava_select_params { alpha: 0.7, ..lava_select_params_default() },
            minimum,
        ];
        [presets, others].concat()
    }
}

#[test]
fn every_scorer_and_allocator_on_a_real_cache() {
    let capture = capture();
    let mut n_decided = 0;
    for (i, (name, window, params)) in scorers().into_iter().enumerate() {
        let (mut model, preference) = capture.model(i % 3, window, &params);
        if name == "TOVA" {
            // Means over all heads want all heads' scores: gathered, a slot for each.
            for layer in &mut model {
                let mut sums = vec![0u32; layer.scores.len()];
                for h in 0..HEADS.1 {
                    let n = layer.head(h).len();
                    let own = layer.head(h).iter().map(|x| x.to_bits());
                    sums[h * n..(h + 1) * n].iter_mut().zip(own).for_each(|(sum, x)| *sum += x);
                }
                let mut scores: Vec<f32> = sums.into_iter().map(f32::from_bits).collect();
                call(|e| unsafe { lava_mean_over_heads(&layer.shape, scores.as_mut_ptr(), e) }).unwrap();
                layer.scores = scores;
            }
        }
        // 1, 2, 4 and 8 ranks: heads split, layers split, both.
        let splits =
            [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)].map(|(stages, n)| split(&model, stages, n));
        let shapes: Vec<_> = model.iter().map(|layer| layer.shape).collect();
        let mut pyramid = vec![0.0; LAYERS];
        let prefix = prefix_len(&shapes[0]) as u64;
        call(|e| unsafe { lava_pyramid_weights(4, prefix / 5, prefix, 20.0, pyramid.as_mut_ptr(), e) })
            .unwrap();
        let outside: Vec<f64> = (0..8).map(|h| 1.0 + (h % 3) as f64).collect();
        for head_rule in 0..=allocators().len() {
            let by_weights = lava_select_params { head_weights: outside.as_ptr(), ..select_params() };
            let params = allocators().get(head_rule).copied().unwrap_or(by_weights);
            for (layers, weights) in [
                (LAVA_LAYERS_ENTROPY, None),
                (LAVA_LAYERS_EQUAL, None),
                (LAVA_LAYERS_WEIGHTS, Some(&pyramid[..])),
                (LAVA_LAYERS_WEIGHTS, Some(&preference[..])),
                (LAVA_LAYERS_GLOBAL, None),
            ] {
                let refused = params.head_floor == LAVA_FLOOR_AFFINE || !params.head_weights.is_null();
                if layers == LAVA_LAYERS_GLOBAL && refused {
                    continue; // one sort has no such rule
                }
                let total = total_entries(&shapes, window as u32 + 100).unwrap();
                let asked = Asked { total, layers, params, weights, more_layers: 0 };
                n_decided += check_same(&model, &splits, asked) as usize;
            }
        }
    }
    assert_eq!(n_decided, scorers().len() * (7 * 5 - 3), "every combination was decided");
}

/// Layers of any kind: other heads, lengths, sliding windows, compressed before, without heads. Few steps of scores make ties.
fn random_model(rng: &mut Rng) -> Vec<Whole> {
    let steps = [1, 7, 1 << 20][rng.below(3) as usize];
    (0..1 + rng.below(5))
        .map(|_| {
            let heads = [0, 1, 3, 4, 8][rng.below(5) as usize];
            let (prefix, window) = (rng.below(40) as usize, 1 + rng.below(4) as usize);
            let mut shape = shape(prefix + window, (2 * heads, heads), (3, 2), window);
            if rng.below(3) == 0 {
                shape = sliding(shape, 1 + rng.below(30) as usize);
            }
            let ragged = heads > 0 && rng.below(3) == 0;
            let rows = if ragged { Rows::random(rng, &shape) } else { Rows::default() };
            let n = n_scores(&if ragged { rows.of(shape) } else { shape });
            let scores = (0..n).map(|_| rng.below(steps + 1) as f32 / steps as f32).collect();
            Whole { shape, rows, scores }
        })
        .collect()
}

#[test]
fn layers_that_differ() {
    let rng = &mut Rng(31);
    let mut n_decided = 0;
    for _ in 0..300 {
        let model = random_model(rng);
        let splits =
            [(1, 1), (2, 1), (1, 2), (1, 4), (2, 4), (8, 1)].map(|(stages, n)| split(&model, stages, n));
        let mask: Vec<u8> = (0..44).map(|_| (rng.below(9) == 0) as u8).collect();
        let weights: Vec<f64> = (0..model.len()).map(|_| rng.below(4) as f64).collect();
        let shapes: Vec<_> = model.iter().map(|layer| layer.shape()).collect();
        let capacity = model.iter().map(|layer| layer.scores.len() as u64).sum::<u64>();
        for layers in LAVA_LAYERS_ENTROPY..=LAVA_LAYERS_GLOBAL {
            let mut params = allocators()[rng.below(6) as usize];
            if layers == LAVA_LAYERS_GLOBAL && params.head_floor == LAVA_FLOOR_AFFINE {
                params.head_floor = LAVA_FLOOR_GUARANTEED;
            }
            if rng.below(3) == 0 {
                params.protected_mask = mask.as_ptr();
            }
            let weights = (layers == LAVA_LAYERS_WEIGHTS).then_some(&weights[..]);
            let total = rng.below(capacity + 2);
            let asked = Asked { total, layers, params, weights, more_layers: 0 };
            n_decided += check_same(&model, &splits, asked) as usize;
        }
        assert_eq!(shapes.len(), model.len());
    }
    assert!(n_decided > 400, "{n_decided}");
}

/// One decision after each layer, over the layers so far: what a cascade of one process says after that push.
#[test]
fn a_decision_after_each_layer_is_a_cascade() {
    let capture = capture();
    let recommended = unsafe { lava_score_params_default() };
    let (model, _) = capture.model(0, 32, &recommended);
    for (layers, params) in [
        (LAVA_LAYERS_GLOBAL, unsafe { lava_select_params_default() }),
        (LAVA_LAYERS_ENTROPY, select_params()),
        (LAVA_LAYERS_ENTROPY, unsafe { lava_select_params_lava_released() }),
    ] {
        let shapes: Vec<_> = model.iter().map(|layer| layer.shape).collect();
        let total = total_entries(&shapes, 150).unwrap();
        let cascade =
            Cascade::new(&shapes, total, &params, &lava_cascade_params { layers, ..cascade_params() });
        let cascade = cascade.unwrap();
        for l in 0..model.len() {
            cascade.push(&shapes[l], &model[l].scores, None).unwrap();
            let more_layers = (l + 1 < model.len()) as u32;
            let asked = Asked { total, layers, params, weights: None, more_layers };
            let ranks: Vec<_> = split(&model[..=l], 1, 2)
                .iter()
                .map(|own| Rank::new(&model[..=l], own, asked).unwrap())
                .collect();
            decide(&ranks, |_, _, _| {}).unwrap();
            for (h, rank) in ranks.iter().enumerate() {
                for (i, kept) in rank.kept().iter().enumerate() {
                    assert_eq!(kept[0], cascade.get(i, HEADS.1).head(h), "layer {i}, head {h} after {l}");
                }
            }
        }
    }
}

fn plain(n_heads: usize, n_layers: usize, n_tokens: usize) -> Vec<Whole> {
    let rng = &mut Rng(5);
    let shape = shape(n_tokens, (n_heads, n_heads), (4, 4), 32);
    (0..n_layers)
        .map(|_| Whole {
            shape,
            rows: Rows::default(),
            scores: (0..n_scores(&shape)).map(|_| rng.unit()).collect(),
        })
        .collect()
}

/// As the header says: words of each exchange, and which are left out; and what that is against gathering all scores.
#[test]
fn exchanges_are_as_large_as_the_header_says() {
    let asked =
        |layers, total| Asked { total, layers, params: select_params(), weights: None, more_layers: 0 };
    let cost = |model: &[Whole], stages, n, asked| {
        let ranks: Vec<_> =
            split(model, stages, n).iter().map(|own| Rank::new(model, own, asked).unwrap()).collect();
        let mut words = vec![];
        let cost =
            decide(&ranks, |rank, _, exchange| words.extend((rank == 0).then_some(exchange.len()))).unwrap();
        (words, cost)
    };
    let model = plain(8, 3, 100);
    let hello = LAVA_RANKS_HELLO_WORDS as usize;
    let digits = |c: usize| [32 + 128 * c; 4];
    let (words, _) = cost(&model, 1, 8, asked(LAVA_LAYERS_GLOBAL, 300));
    assert_eq!(words, [&[hello, 32 + 3 * 24], &digits(1)[..], &[32 + 24]].concat());
    let (words, _) = cost(&model, 1, 8, asked(LAVA_LAYERS_ENTROPY, 300));
    assert_eq!(words, [&[hello, 32 + 5 * 24], &digits(3)[..], &[32 + 24]].concat());
    // No layer is split; nothing to compete for.
    assert_eq!(cost(&model, 3, 1, asked(LAVA_LAYERS_ENTROPY, 300)).0, [hello, 32 + 5 * 24]);
    assert_eq!(cost(&model, 1, 2, asked(LAVA_LAYERS_EQUAL, 0)).0, [hello, 32 + 3 * 24]);

    // 32k tokens, 8 heads.
    let model = plain(8, 1, 32 << 10);
    let (_, one) = cost(&model, 1, 8, asked(LAVA_LAYERS_EQUAL, 20_000));
    let gathered = 4 * model[0].scores.len();
    assert_eq!(one.exchanges, 7);
    assert!(gathered >= 150 * one.bytes, "{} bytes against {gathered}", one.bytes);
}

/// Words of each exchange of a decision over `stages` times `n` ranks, each of which keeps what one process keeps.
fn words_of(model: &[Whole], (stages, n): (usize, usize), asked: Asked) -> Vec<usize> {
    let want = one_process(model, asked).unwrap();
    let own = split(model, stages, n);
    let ranks: Vec<_> = own.iter().map(|own| Rank::new(model, own, asked).unwrap()).collect();
    let mut words = vec![];
    decide(&ranks, |rank, _, exchange| words.extend((rank == 0).then_some(exchange.len()))).unwrap();
    for rank in &ranks {
        for (l, heads) in rank.kept().iter().enumerate() {
            assert!(heads[..] == want.2[l][rank.own[l].clone()], "layer {l}, heads {:?}", rank.own[l]);
        }
    }
    words
}

fn bytes_of(words: &[usize]) -> usize {
    8 * words.iter().sum::<usize>()
}

fn with_commas(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap()).collect();
    groups.join(",")
}

/// Seconds of an all-reduce of these bytes, or of a gathering of as many: a tree's latency, a ring's bytes.
fn seconds(bytes: usize, n_ranks: usize, (latency, rate): (f64, f64), times_around: f64) -> f64 {
    let n = n_ranks as f64;
    times_around * (n.log2().ceil() * latency + (n - 1.0) / n * bytes as f64 / rate)
}

/// Latency of a message in seconds, bytes per second in each direction.
const LINKS: [(&str, (f64, f64)); 4] = [
    ("400 GB/s, 3 µs", (3e-6, 400e9)),
    ("50 GB/s, 5 µs", (5e-6, 50e9)),
    ("12.5 GB/s, 10 µs", (10e-6, 12.5e9)),
    ("1.25 GB/s, 50 µs", (50e-6, 1.25e9)),
];

/// The tables of docs/ranks.md.
fn tables() -> String {
    let mut text = String::new();
    let mut line = |cells: &[String]| text += &format!("| {} |\n", cells.join(" | "));
    let ours = |layers, total| Asked { layers, ..asked(total) };

    let head = [
        "tokens",
        "all scores",
        "one layer",
        "times fewer",
        "one of 80 layers, by entropy",
        "one of 80, one sort",
    ];
    line(&head.map(str::to_owned));
    line(&head.map(|_| "---".to_owned()));
    // Of 80 layers only bytes are wanted, which do not depend on the tokens.
    let eighty = plain(8, 80, 40);
    let of_eighty = |layers| bytes_of(&words_of(&eighty, (1, 8), ours(layers, 3000))) as f64 / 80.0;
    let (by_entropy, one_sort) = (of_eighty(LAVA_LAYERS_ENTROPY), of_eighty(LAVA_LAYERS_GLOBAL));
    for tokens in [1 << 12, 1 << 15, 1 << 17] {
        let model = plain(8, 1, tokens);
        let gathered = 4 * model[0].scores.len();
        let one = bytes_of(&words_of(&model, (1, 8), ours(LAVA_LAYERS_EQUAL, gathered as u64 / 40)));
        assert!(tokens < 1 << 15 || gathered >= 50 * one);
        let times = |bytes: f64| format!("{:.0} ({:.0} times fewer)", bytes, gathered as f64 / bytes);
        line(&[
            with_commas(tokens),
            with_commas(gathered),
            with_commas(one),
            format!("{:.0}", gathered as f64 / one as f64),
            times(by_entropy),
            times(one_sort),
        ]);
    }

    // Tensor-parallel over 8, pipeline over 8.
    const RANKS: usize = 64;
    let model = plain(8, 80, 1 << 15);
    let n_scores: usize = model.iter().map(|layer| layer.scores.len()).sum();
    let total = n_scores as u64 / 10;
    let plans = [
        ("one sort over all layers", words_of(&model, (8, 8), ours(LAVA_LAYERS_GLOBAL, total))),
        ("layers share by entropy", words_of(&model, (8, 8), ours(LAVA_LAYERS_ENTROPY, total))),
    ];
    text += "\n";
    let mut line = |cells: &[String]| text += &format!("| {} |\n", cells.join(" | "));
    line(
        &[&["64 ranks, 80 layers, 8 heads, 32,768 tokens", "exchanges", "bytes"], &LINKS.map(|l| l.0)[..]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    );
    line(&vec!["---".to_owned(); 3 + LINKS.len()]);
    let time = |seconds: f64| match seconds {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    };
    for (what, words) in &plans {
        let of = |link| time(words.iter().map(|&n| seconds(8 * n, RANKS, link, 2.0)).sum());
        let start = [what.to_string(), words.len().to_string(), with_commas(bytes_of(words))];
        line(&[&start[..], &LINKS.map(|(_, link)| of(link))].concat());
    }
    let of = |link| time(seconds(4 * n_scores, RANKS, link, 1.0));
    let start = ["all scores gathered".to_owned(), "1".to_owned(), with_commas(4 * n_scores)];
    line(&[&start[..], &LINKS.map(|(_, link)| of(link))].concat());
    text
}

/// `UPDATE_TABLES=1` writes them anew.
#[test]
fn the_tables_of_the_page_are_what_a_decision_costs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ranks.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- tables -->\n").expect("where tables begin");
    let (old, after) = rest.split_once("<!-- end of tables -->").expect("where tables end");
    let new = tables();
    if std::env::var_os("UPDATE_TABLES").is_some() {
        std::fs::write(&path, format!("{before}<!-- tables -->\n{new}<!-- end of tables -->{after}"))
            .unwrap();
        return;
    }
    assert!(
        old == new,
        "docs/ranks.md is stale: `UPDATE_TABLES=1 cargo test -p ffi-tests --test ranks tables`"
    );
}

fn asked(total: u64) -> Asked<'static> {
    Asked { total, layers: LAVA_LAYERS_EQUAL, params: select_params(), weights: None, more_layers: 0 }
}

fn ranks_of(model: &[Whole], n: usize, asked: Asked) -> Vec<Rank> {
    split(model, 1, n).iter().map(|own| Rank::new(model, own, asked).unwrap()).collect()
}

#[test]
fn a_score_that_is_not_finite_is_named_on_every_rank() {
    for n in [1, 2, 4, 8] {
        let mut model = plain(8, 2, 60);
        let at = 5 * 28 + 3;
        model[1].scores[at] = f32::NAN;
        let failure = decide(&ranks_of(&model, n, asked(50)), |_, _, _| {}).unwrap_err();
        let argument = "scores".to_owned();
        let want = Failure { status: LAVA_ERR_NONFINITE, layer: Some(1), head: Some(5), argument };
        assert_eq!(failure, want);
        model[1].scores[at] = -1.0;
        decide(&ranks_of(&model, n, asked(50)), |_, _, _| {}).unwrap();
        let by_entropy = Asked { layers: LAVA_LAYERS_ENTROPY, ..asked(50) };
        let failure = decide(&ranks_of(&model, n, by_entropy), |_, _, _| {}).unwrap_err();
        assert_eq!(failure, Failure { status: LAVA_ERR_ARGUMENT, ..want });
    }
}

#[test]
fn ranks_that_disagree_all_hear_of_it() {
    let model = plain(8, 2, 60);
    let own = split(&model, 1, 4);
    let failure = |odd: &[Whole], theirs: Asked, n_layers: usize| {
        let ranks: Vec<_> = (0..4)
            .map(|rank| match rank {
                2 => Rank::new(odd, &own[rank][..n_layers].to_vec(), theirs).unwrap(),
                _ => Rank::new(&model, &own[rank], asked(50)).unwrap(),
            })
            .collect();
        decide(&ranks, |_, _, _| {}).unwrap_err()
    };
    // Another total; fewer layers; other heads; another rule.
    let shape_of = |argument: &str, layer, head| Failure {
        status: LAVA_ERR_SHAPE,
        layer,
        head,
        argument: argument.to_owned(),
    };
    assert_eq!(failure(&model, asked(51), 2), shape_of("rank", None, None));
    assert_eq!(failure(&model[..1], asked(50), 1), shape_of("rank", None, None));
    assert_eq!(failure(&plain(9, 2, 60), asked(50), 2), shape_of("rank", None, None));
    let by_entropy = Asked { layers: LAVA_LAYERS_ENTROPY, ..asked(50) };
    assert_eq!(failure(&model, by_entropy, 2), shape_of("rank", None, None));
    // Another number of tokens in its part of a layer: its first head is the one that differs.
    assert_eq!(failure(&plain(8, 2, 61), asked(50), 2), shape_of("shapes", Some(0), Some(4)));
}

#[test]
fn a_rank_that_cannot_go_on_ends_it_for_all() {
    let model = plain(8, 2, 60);
    for when in 0..7 {
        let ranks = ranks_of(&model, 4, asked(50));
        let mut n_exchanges = 0;
        let failure = decide(&ranks, |rank, exchange, words| {
            n_exchanges = exchange + 1;
            if (rank, exchange) == (3, when) {
                let (to, n) = (words.as_mut_ptr(), words.len() as u32);
                call(|e| unsafe { lava_ranks_refuse(LAVA_ERR_WORKSPACE, to, n, e) }).unwrap();
            }
        });
        let failure = failure.unwrap_err();
        assert_eq!((failure.status, failure.argument.as_str()), (LAVA_ERR_WORKSPACE, "rank"));
        assert_eq!(n_exchanges, when + 1);
        // It has ended: there is nothing more to count.
        let refused = number(|n, e| unsafe {
            let (rank, mut words) = (&ranks[0], vec![0u64; 2000]);
            let state = rank.state.ptr();
            lava_ranks_count(&rank.rank, state, rank.state_size, words.as_mut_ptr(), 2000, n, e)
        });
        assert_eq!(refused.unwrap_err().status, LAVA_ERR_STATE);
    }
    // A rank that is gone, whose words are missing from the sum.
    for when in 1..7 {
        let failure = decide(&ranks_of(&model, 4, asked(50)), |rank, exchange, words| {
            if rank == 0 && exchange >= when {
                words.fill(0);
            }
        });
        let failure = failure.unwrap_err();
        assert_eq!((failure.status, failure.argument.as_str()), (LAVA_ERR_STATE, "exchange"));
    }
}

/// A rank whose own arguments are refused has filled the exchange with a report: the others need not be told in another way.
#[test]
fn what_is_wrong_with_a_rank_is_reported_in_its_exchange() {
    let model = plain(8, 2, 60);
    let mut ranks = ranks_of(&model, 4, asked(50));
    ranks[1].rank.reserved = 1;
    let rank = &ranks[1];
    let (mut words, mut n, state) = (vec![0u64; rank.n_words as usize], 0, rank.state.ptr());
    let refused = call(|e| unsafe {
        lava_ranks_count(&rank.rank, state, rank.state_size, words.as_mut_ptr(), rank.n_words, &mut n, e)
    });
    assert_eq!(refused.unwrap_err().status, LAVA_ERR_STRUCT_SIZE);
    assert_eq!(n, LAVA_RANKS_HELLO_WORDS as u32);
    words.truncate(n as usize);
    for other in [0, 2, 3] {
        words.iter_mut().zip(ranks[other].count()).for_each(|(sum, x)| *sum += x);
    }
    for other in [0, 2, 3] {
        let failure = ranks[other].round(&words).unwrap_err();
        assert_eq!((failure.status, failure.argument.as_str()), (LAVA_ERR_STRUCT_SIZE, "rank"));
    }
}

/// Ranks on threads of one process, with nothing in common but the sums.
#[test]
fn ranks_run_at_the_same_time() {
    use std::sync::{Barrier, Mutex};
    let model = plain(8, 3, 200);
    let global = || Asked { layers: LAVA_LAYERS_GLOBAL, ..asked(400) };
    let want = one_process(&model, global()).unwrap();
    for n in [2, 4, 8] {
        let (barrier, sums) = (Barrier::new(n), Mutex::new(vec![]));
        let own = split(&model, 1, n);
        std::thread::scope(|scope| {
            for own in &own {
                let (barrier, sums, model, want) = (&barrier, &sums, &model, &want);
                scope.spawn(move || {
                    let rank = Rank::new(model, own, global()).unwrap();
                    loop {
                        let words = rank.count();
                        {
                            let mut sums = sums.lock().unwrap();
                            sums.resize(words.len(), 0u64);
                            sums.iter_mut().zip(words).for_each(|(sum, x)| *sum += x);
                        }
                        barrier.wait();
                        let all = sums.lock().unwrap().clone();
                        if barrier.wait().is_leader() {
                            sums.lock().unwrap().clear();
                        }
                        barrier.wait();
                        if rank.round(&all).unwrap() {
                            break;
                        }
                    }
                    for (l, heads) in rank.kept().iter().enumerate() {
                        assert_eq!(heads[..], want.2[l][own[l].clone()]);
                    }
                });
            }
        });
    }
}
