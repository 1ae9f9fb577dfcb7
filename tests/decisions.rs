//! What is kept, against plain sorting: entropies, shares of a total, selection, one sort over all layers, the cascade, compaction.
//! Models are small and of every kind: layers that differ, sliding windows, caches that have been compressed before, ties everywhere.

use lava::cascade::{self, Cascade, CascadeLayer, CascadeParams, CascadeView};
use lava::params::total_entries;
use lava::reference::{self, Head, Layer};
use lava::workspace::{Carver, Reader};
use lava::*;
use proptest::prelude::*;

/// A reproducible stream of numbers (splitmix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn aligned(bytes: usize) -> Vec<u128> {
    vec![0; bytes.div_ceil(16)]
}

fn carver(memory: &mut [u128]) -> Carver<'_> {
    // SAFETY: u128s are bytes too, and the slice covers exactly their memory.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, size_of_val(memory)) };
    Carver::over(bytes).expect("u128s are aligned")
}

/// A layer with all that it owns.
#[derive(Clone, Debug)]
struct Own {
    n_tokens: usize,
    heads: usize,
    window: usize,
    sliding_window: Option<usize>,
    /// Of a cache that has been compressed before: `cu_rows` and positions.
    ragged: Option<(Vec<u32>, Vec<u32>)>,
    scores: Vec<f32>,
}

impl Own {
    fn dense(n_tokens: usize, heads: usize, window: usize, sliding_window: Option<usize>) -> Self {
        Self { n_tokens, heads, window, sliding_window, ragged: None, scores: vec![] }
    }

    fn shape(&self) -> Shape<'_> {
        let dense = Shape::dense(self.n_tokens, self.heads * 2, self.heads, 1 + self.heads, 3, self.window);
        let shape = Shape { sliding_window: self.sliding_window, ..dense };
        self.ragged.as_ref().map_or(shape, |(cu, positions)| shape.with_rows(cu, positions))
    }

    /// Positions of a head's prefix rows, and where their scores begin.
    fn prefix(&self, h: usize) -> (Vec<usize>, usize) {
        let window_rows = self.window.min(self.n_tokens);
        match &self.ragged {
            None => ((0..self.n_tokens - window_rows).collect(), h * (self.n_tokens - window_rows)),
            Some((cu, positions)) => {
                let (start, end) = (cu[h] as usize, cu[h + 1] as usize - window_rows);
                (positions[start..end].iter().map(|&p| p as usize).collect(), start - h * window_rows)
            }
        }
    }

    /// The same for the reference.
    fn plain(&self) -> Layer {
        let head = |h: usize| {
            let (positions, first) = self.prefix(h);
            let scores = self.scores[first..first + positions.len()].to_vec();
            Head { positions, scores }
        };
        let heads = (0..self.heads).map(head).collect();
        Layer { n_tokens: self.n_tokens, sliding_window: self.sliding_window, heads }
    }

    /// Drops rows before the window at random.
    fn compressed(mut self, random: &mut Random) -> Self {
        let (mut cu, mut positions) = (vec![0], vec![]);
        for _ in 0..self.heads {
            let keep = random.below(5);
            let prefix = self.n_tokens.saturating_sub(self.window);
            positions.extend((0..prefix).filter(|_| random.below(4) < keep).map(|p| p as u32));
            positions.extend((prefix..self.n_tokens).map(|p| p as u32));
            cu.push(positions.len() as u32);
        }
        self.ragged = Some((cu, positions));
        self
    }

    /// Few different values: plateaus everywhere. Or many. Some heads far above the others, so that floors matter. Some layers
    /// almost flat, some with one score only. Dead entries may be anything.
    fn scored(mut self, random: &mut Random, levels: usize) -> Self {
        let plain = |own: &Self, h: usize| own.prefix(h).0.len();
        let peak = random.once_in(4);
        for h in 0..self.heads {
            let size = random.pick(&[0.37, 0.37, 3.7, 37.0]) * if peak { 1e-6 } else { 1.0 };
            self.scores.extend((0..plain(&self, h)).map(|_| random.below(levels) as f32 * size));
        }
        if peak && !self.scores.is_empty() {
            let at = random.below(self.scores.len());
            self.scores[at] = 40.0;
        }
        let layer = self.plain();
        for h in 0..self.heads {
            let first = self.prefix(h).1;
            let live = layer.live(h);
            for row in (0..layer.heads[h].positions.len()).filter(|row| !live.contains(row)) {
                self.scores[first + row] = random.pick(&[f32::NAN, f32::INFINITY, -3.0, 1e30, 0.0]);
            }
        }
        self
    }
}

/// A small model.
#[derive(Clone, Debug)]
struct Model(Vec<Own>);

impl Model {
    /// Of every kind: alike, five sliding layers to a full one with other head counts (Gemma), or layers that have nothing in common.
    fn new(seed: u64, levels: usize) -> Self {
        let mut random = Random(seed);
        let n_layers = 1 + random.below(7);
        let (heads, window) = (1 + random.below(4), 1 + random.below(4));
        let (n_tokens, sliding) = (1 + random.below(45), 1 + random.below(20));
        let kind = random.below(4);
        let mut layer = |l: usize| {
            let r = &mut random;
            let own = match kind {
                0 => Own::dense(n_tokens, heads, window, None),
                1 if l % 6 == 5 => Own::dense(n_tokens, heads, window, None),
                1 => Own::dense(n_tokens, heads + 1, window, Some(sliding)),
                _ => {
                    let heads = if r.once_in(6) { 0 } else { 1 + r.below(4) };
                    let n_tokens = if r.once_in(3) { 1 + r.below(30) } else { n_tokens };
                    let sliding = r.once_in(2).then(|| 1 + r.below(40));
                    let own = Own::dense(n_tokens, heads, 1 + r.below(4), sliding);
                    if r.once_in(2) { own.compressed(r) } else { own }
                }
            };
            own.scored(r, levels)
        };
        Self((0..n_layers).map(&mut layer).collect())
    }

    fn shapes(&self) -> Vec<Shape<'_>> {
        self.0.iter().map(|own| own.shape()).collect()
    }

    fn plain(&self) -> Vec<Layer> {
        self.0.iter().map(|own| own.plain()).collect()
    }

    fn scores(&self) -> Vec<f32> {
        self.0.iter().flat_map(|own| own.scores.clone()).collect()
    }

    fn n_heads(&self) -> usize {
        self.0.iter().map(|own| own.heads).sum()
    }
}

/// Options of selection with the arrays they refer to.
#[derive(Clone, Debug)]
struct Options {
    floor: (HeadFloor, f64),
    head_min: usize,
    n_sink: usize,
    mask: Option<Vec<u8>>,
    weights: Option<Vec<f64>>,
}

impl Options {
    fn new(seed: u64, n_heads: usize) -> Self {
        let mut random = Random(seed ^ 0x0F0F);
        let r = &mut random;
        let floor = r.pick(&[HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine]);
        let alpha = [0.0, 0.1, 0.2, 0.5, 1.0, r.below(1000) as f64 / 999.0][r.below(6)];
        Self {
            floor: (floor, alpha),
            head_min: r.below(9) * r.below(2),
            n_sink: r.below(6) * r.below(2),
            mask: r.once_in(3).then(|| (0..50).map(|_| r.once_in(6) as u8 * 3).collect()),
            weights: r.once_in(4).then(|| (0..n_heads).map(|_| r.below(5) as f64 / 8.0).collect()),
        }
    }

    fn params(&self) -> SelectParams<'_> {
        SelectParams {
            head_floor: self.floor.0,
            alpha: self.floor.1,
            head_min: self.head_min,
            n_sink: self.n_sink,
            protected_mask: self.mask.as_deref(),
            head_weights: self.weights.as_deref(),
        }
    }

    /// As one sort takes them.
    fn global(self) -> Self {
        let (floor, alpha) = self.floor;
        let floor = if floor == HeadFloor::Affine { HeadFloor::Guaranteed } else { floor };
        Self { floor: (floor, alpha), weights: None, ..self }
    }
}

/// Something between what must be kept and a little more than there is.
fn between(least: u64, all: u64, fill: f64) -> u64 {
    least + ((all - least) as f64 * fill * 1.1) as u64
}

struct Kept {
    done: select::Selection,
    /// Prefix rows of each head.
    rows: Vec<Vec<usize>>,
    indices: Vec<u32>,
    cu: Vec<u32>,
}

/// Selects in one layer. Indices are the positions of the rows, and end in the window.
fn run_select(own: &Own, params: &SelectParams, n_entries: u64) -> Kept {
    let shape = own.shape();
    let mut workspace = aligned(select::workspace_size(&shape).unwrap());
    let n = select::n_kept(&shape, n_entries).unwrap() as usize;
    let (mut indices, mut rows, mut cu) =
        (vec![u32::MAX; n], vec![u32::MAX; n], vec![u32::MAX; own.heads + 1]);
    let memory = &mut carver(&mut workspace);
    let all_rows = Some(&mut rows[..]);
    let done =
        select::select(&shape, params, &own.scores, n_entries, memory, &mut indices, &mut cu, all_rows)
            .unwrap();
    assert_eq!((done.n_kept, cu[own.heads] as usize), (n as u64, n));
    let of_head = |h: usize| {
        let mut positions = own.prefix(h).0;
        let prefix_rows = positions.len();
        positions.extend(own.n_tokens.saturating_sub(own.window)..own.n_tokens);
        let kept = cu[h] as usize..cu[h + 1] as usize;
        let mut own_rows: Vec<usize> = rows[kept.clone()].iter().map(|&row| row as usize).collect();
        let want: Vec<u32> = own_rows.iter().map(|&row| positions[row] as u32).collect();
        assert_eq!(indices[kept], want, "head {h} of {own:?}");
        let window = own_rows.split_off(own_rows.len() - (positions.len() - prefix_rows));
        assert_eq!(window, (prefix_rows..positions.len()).collect::<Vec<_>>());
        own_rows
    };
    Kept { done, rows: (0..own.heads).map(of_head).collect(), indices, cu }
}

/// Kept sets against sorting, and what the selection says about them.
fn check_select(own: &Own, params: &SelectParams, n_entries: u64) {
    let layer = own.plain();
    let kept = run_select(own, params, n_entries);
    assert_eq!(
        kept.rows,
        reference::select(std::slice::from_ref(&layer), params, n_entries)[0],
        "{own:?} {params:?}"
    );
    let live: Vec<(usize, usize)> =
        (0..own.heads).flat_map(|h| layer.live(h).into_iter().map(move |row| (h, row))).collect();
    let score = |&(h, row): &(usize, usize)| layer.heads[h].scores[row] as f64;
    let base = live.iter().map(score).fold(0.0, f64::min);
    let mass: f64 = live.iter().map(|e| score(e) - base).sum();
    let evicted: f64 =
        live.iter().filter(|(h, row)| !kept.rows[*h].contains(row)).map(|e| score(e) - base).sum();
    assert!((kept.done.mass - mass).abs() <= 1e-12 * mass);
    assert!(
        mass == 0.0 || (kept.done.evicted_share - evicted / mass).abs() < 1e-9,
        "{:?} {evicted} of {mass}",
        kept.done
    );
    assert_eq!(kept.done.n_entries, n_entries.min(live.len() as u64));
    assert_eq!(kept.done.everything_kept, n_entries >= live.len() as u64);
}

/// One sort: each layer's entries, and each head's.
fn run_global(
    layers: &(impl Layers + ?Sized),
    params: &SelectParams,
    scores: &[f32],
    total: u64,
) -> (Vec<u64>, Vec<f64>) {
    let mut workspace = aligned(select::global_entries_workspace_size(layers).unwrap());
    let n_heads = (0..layers.n_layers()).map(|l| layers.layer(l).n_kv_heads).sum();
    let (mut entries, mut heads) = (vec![u64::MAX; layers.n_layers()], vec![f64::NAN; n_heads]);
    select::global_entries(
        layers,
        params,
        scores,
        total,
        &mut carver(&mut workspace),
        &mut entries,
        &mut heads,
    )
    .unwrap();
    (entries, heads)
}

/// All layers at once: what a cascade has to end in. `None` for layers that take no part.
fn at_once(
    model: &Model,
    options: &Options,
    how: LayerShare,
    weights: &[f64],
    total: u64,
) -> Vec<Option<Kept>> {
    let (shapes, params) = (model.shapes(), options.params());
    let (entries, head_weights) = if how == LayerShare::Global {
        let (entries, heads) = run_global(&shapes[..], &params, &model.scores(), total);
        (entries, Some(heads))
    } else {
        let weights: Vec<f64> = match how {
            LayerShare::Entropy => model
                .0
                .iter()
                .map(|own| {
                    if own.heads == 0 {
                        f64::NAN
                    } else {
                        entropy::entropy(&own.shape(), &own.scores).unwrap().entropy
                    }
                })
                .collect(),
            LayerShare::Equal => vec![1.0; shapes.len()],
            _ => weights[..shapes.len()].to_vec(),
        };
        let mut entries = vec![u64::MAX; shapes.len()];
        budget::layer_entries(&shapes[..], &params, &weights, total, &mut entries).unwrap();
        (entries, options.weights.clone())
    };
    assert_eq!(
        entries.iter().sum::<u64>(),
        total.min(model.plain().iter().map(|layer| layer.n_live()).sum())
    );
    let mut first_head = 0;
    let mut kept = vec![];
    for (own, &n) in model.0.iter().zip(&entries) {
        let heads = first_head..first_head + own.heads;
        first_head = heads.end;
        let own_weights = head_weights.as_ref().map(|all| &all[heads]);
        // One sort has taken head_min in already.
        let head_min = if how == LayerShare::Global { 0 } else { params.head_min };
        let params = SelectParams { head_weights: own_weights, head_min, ..params };
        assert!(own.heads > 0 || n == 0);
        kept.push((own.heads > 0).then(|| run_select(own, &params, n)));
    }
    kept
}

/// Runs a cascade, checks it after every push, and that it ends where all layers at once do.
fn check_cascade(
    model: &Model,
    options: &Options,
    cascade_params: CascadeParams,
    weights: &[f64],
    total: u64,
) {
    let (shapes, params) = (model.shapes(), options.params());
    let mut memory = aligned(cascade::state_size(&shapes[..], total, &params, &cascade_params).unwrap());
    let mut cascade =
        Cascade::new(&shapes[..], total, &params, &cascade_params, &mut carver(&mut memory)).unwrap();
    let takes_part = |l: &usize| model.0[*l].heads > 0;
    let pushed: Vec<usize> = (0..shapes.len()).filter(takes_part).collect();
    // The positions that the caller's cache holds, moved along by `rows` alone, and only when it is time.
    let mut cache: Vec<(usize, Vec<Vec<u32>>)> = vec![];
    for (n, &l) in pushed.iter().enumerate() {
        let own = &model.0[l];
        assert_eq!((cascade.next_layer(), cascade.n_scores()), (l, own.scores.len() as u64));
        let weight = (cascade_params.layers == LayerShare::Weights).then(|| weights[l]);
        cascade.push(&shapes[l], &own.scores, weight).unwrap();
        let window = own.n_tokens.saturating_sub(own.window)..own.n_tokens;
        let positions =
            |h: usize| own.prefix(h).0.into_iter().chain(window.clone()).map(|p| p as u32).collect();
        cache.push((l, (0..own.heads).map(positions).collect()));
        let evicts = n + 1 == pushed.len() || (n + 1).is_multiple_of(cascade_params.evict_every.max(1));
        let mut held = 0;
        for (j, heads) in &mut cache {
            let now = cascade.layer(*j).unwrap();
            held += now.n_entries;
            let window_rows = model.0[*j].window.min(model.0[*j].n_tokens);
            assert_eq!(now.n_entries as usize, now.kept_indices.len() - heads.len() * window_rows);
            for (h, head) in heads.iter_mut().enumerate() {
                let range = now.cu_kept[h] as usize..now.cu_kept[h + 1] as usize;
                assert_eq!((now.cu_rows[h + 1] - now.cu_rows[h]) as usize, head.len());
                let kept: Vec<u32> = now.rows[range.clone()].iter().map(|&row| head[row as usize]).collect();
                assert_eq!(&now.kept_indices[range], &kept[..]);
                if evicts {
                    *head = kept;
                }
            }
        }
        if options.floor.0 == HeadFloor::None && options.head_min == 0 && options.weights.is_none() {
            assert!(held <= total + cache.len() as u64);
        }
    }
    assert_eq!(cascade.push(&shapes[0], &[], None).unwrap_err().kind, ErrorKind::State);
    assert_eq!(cascade.layer(shapes.len()).unwrap_err().kind, ErrorKind::State);
    for (l, want) in at_once(model, options, cascade_params.layers, weights, total).iter().enumerate() {
        let end = cascade.layer(l).unwrap();
        let Some(want) = want else {
            assert_eq!((end.cu_kept, end.cu_rows, end.n_entries), (&[0][..], &[0][..], 0));
            assert!(end.kept_indices.is_empty() && end.rows.is_empty());
            continue;
        };
        assert_eq!(end.kept_indices, want.indices, "layer {l} of {model:?} {params:?} {total}");
        assert_eq!(end.cu_kept, want.cu);
        assert_eq!(end.n_entries, want.done.n_entries);
        assert_eq!(end.evicted_share.to_bits(), want.done.evicted_share.to_bits());
        assert_eq!(end.mass.to_bits(), want.done.mass.to_bits());
    }
}

fn levels() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(5), Just(1_000_000)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn selection_is_what_sorting_gives(seed: u64, levels in levels(), fill in 0.0..=1.0f64) {
        for own in Model::new(seed, levels).0.iter().filter(|own| own.heads > 0) {
            let options = Options::new(seed, own.heads);
            let layer = own.plain();
            check_select(own, &options.params(), between(layer.minimum(&options.params()), layer.n_live(), fill));
        }
    }

    #[test]
    fn negative_scores_count_from_the_smallest(seed: u64, levels in levels(), fill in 0.0..=1.0f64, down in 0.0..50.0f32) {
        for own in &mut Model::new(seed, levels).0 {
            own.scores.iter_mut().for_each(|score| *score -= down);
            if own.heads > 0 {
                check_select(own, &SelectParams::lava(), between(0, own.plain().n_live(), fill));
            }
        }
    }

    #[test]
    fn layers_share_by_weight(seed: u64, levels in levels(), fill in 0.0..=1.0f64, scale in 0u32..3) {
        let model = Model::new(seed, levels);
        let (shapes, plain) = (model.shapes(), model.plain());
        let options = Options::new(seed, model.n_heads());
        let params = options.params();
        let total = between(plain.iter().map(|l| l.minimum(&params)).sum(), plain.iter().map(|l| l.n_live()).sum(), fill);
        let mut random = Random(seed ^ 1);
        // Whole numbers of 64ths: the grid holds them whatever its unit. Those of layers that take no part are not looked at.
        let mut weights: Vec<f64> = shapes.iter().map(|_| random.below(64) as f64 / 64.0 * 64f64.powi(scale as i32)).collect();
        for (weight, own) in weights.iter_mut().zip(&model.0) {
            if own.heads == 0 { *weight = f64::NAN }
        }
        let mut entries = vec![0; shapes.len()];
        budget::layer_entries(&shapes[..], &params, &weights, total, &mut entries).unwrap();
        prop_assert_eq!(&entries, &reference::layer_entries(&plain, &params, &weights, total));
        prop_assert_eq!(entries.iter().sum::<u64>(), total.min(plain.iter().map(|l| l.n_live()).sum()));
        let entropies: Vec<f64> = model.0.iter().map(|own| if own.heads == 0 { -1.0 } else {
            entropy::entropy(&own.shape(), &own.scores).unwrap().entropy
        }).collect();
        for (layer, got) in plain.iter().zip(&entropies).filter(|(layer, _)| !layer.heads.is_empty()) {
            prop_assert!((layer.entropy() - got).abs() < 1e-13);
        }
        budget::layer_entries(&shapes[..], &params, &entropies, total, &mut entries).unwrap();
        prop_assert_eq!(&entries, &reference::layer_entries(&plain, &params, &entropies, total));
    }

    #[test]
    fn one_sort_is_one_sort(seed: u64, levels in levels(), fill in 0.0..=1.0f64) {
        let model = Model::new(seed, levels);
        let options = Options::new(seed, 0).global();
        let plain = model.plain();
        let total = between(plain.iter().map(|l| l.minimum(&options.params())).sum(), plain.iter().map(|l| l.n_live()).sum(), fill);
        let want = reference::select(&plain, &options.params(), total);
        for (l, kept) in at_once(&model, &options, LayerShare::Global, &[], total).iter().enumerate() {
            let got = kept.as_ref().map_or(vec![], |kept| kept.rows.clone());
            prop_assert_eq!(&got, &want[l], "layer {} of {:?}", l, &model);
        }
    }

    #[test]
    fn a_cascade_ends_where_one_shot_does(
        seed: u64, levels in levels(), fill in 0.0..=1.0f64,
        layers in prop_oneof![
            Just(LayerShare::Entropy), Just(LayerShare::Equal), Just(LayerShare::Weights), Just(LayerShare::Global)
        ],
        weights in prop::collection::vec(
            prop_oneof![Just(0.0), Just(1e-20), Just(1.0 / 3.0), Just(2.0 / 3.0), 0.0..2.0f64, 1e3..1e4, Just(1e18), Just(1e300)], 7,
        ),
        evict_every in prop_oneof![0usize..3, Just(5), Just(usize::MAX)],
    ) {
        let model = Model::new(seed, levels);
        let options = Options::new(seed, model.n_heads());
        let options = if layers == LayerShare::Global { options.global() } else { options };
        let (plain, params) = (model.plain(), options.params());
        let total = between(plain.iter().map(|l| l.minimum(&params)).sum(), plain.iter().map(|l| l.n_live()).sum(), fill);
        check_cascade(&model, &options, CascadeParams { layers, evict_every }, &weights, total);
    }

    #[test]
    fn the_fewest_entries_for_a_share(seed: u64, levels in levels(), epsilon in 0.0..=1.0f64) {
        for own in Model::new(seed, levels).0.iter().filter(|own| own.heads > 0) {
            let layer = own.plain();
            let mut workspace = aligned(select::entries_for_share_workspace_size().unwrap());
            let n = select::entries_for_share(&own.shape(), &own.scores, epsilon, &mut carver(&mut workspace)).unwrap();
            let mut sorted: Vec<f64> =
                (0..own.heads).flat_map(|h| layer.live(h).into_iter().map(move |row| (h, row))).map(|(h, row)| layer.heads[h].scores[row] as f64).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let mass: f64 = sorted.iter().sum();
            let evicted = |n: u64| sorted[n as usize..].iter().sum::<f64>() / mass.max(1e-300);
            prop_assert!(evicted(n) <= epsilon + 1e-9);
            prop_assert!(n == 0 || evicted(n - 1) >= epsilon - 1e-9);
        }
    }
}

/// Five sliding layers and a full one, 20 percent: entries that no query sees take nothing, whichever way layers share.
#[test]
fn dead_entries_take_no_budget() {
    let mut random = Random(7);
    let mut layer = |l: usize| {
        let own = Own::dense(2048, 2, 16, (l != 5).then_some(128));
        own.scored(&mut random, 1_000_000)
    };
    let model = Model((0..6).map(&mut layer).collect());
    let shapes = model.shapes();
    let total = total_entries(&shapes[..], 2048 / 5).unwrap();
    // 111 tokens of the prefix are in sight of a sliding layer's next query: positions from 1921 on.
    assert_eq!(total, 2 * (5 * 111 + 393));
    for (layers, select) in [
        (LayerShare::Global, SelectParams::default()),
        (LayerShare::Global, SelectParams::lava()),
        (LayerShare::Entropy, SelectParams::lava()),
        (LayerShare::Equal, SelectParams::lava_released()),
    ] {
        let options = Options {
            floor: (select.head_floor, select.alpha),
            head_min: 0,
            n_sink: select.n_sink,
            mask: None,
            weights: None,
        };
        for (l, kept) in at_once(&model, &options, layers, &[], total).into_iter().flatten().enumerate() {
            let oldest = if l == 5 { 0 } else { 1921 };
            assert!(kept.indices.iter().all(|&p| p >= oldest), "{layers:?}, layer {l}");
            let capacity = shapes[l].capacity();
            assert!(l == 5 || kept.done.n_entries <= capacity);
            // What the sliding layers cannot use is the full layer's.
            assert!(
                l != 5 || kept.done.n_entries >= total / 6,
                "{layers:?}: {} of {total}",
                kept.done.n_entries
            );
        }
        check_cascade(&model, &options, CascadeParams { layers, evict_every: 1 }, &[], total);
    }
    // Even what is protected: all tokens are, and those that no query sees are evicted.
    let all = [1u8; 2048];
    let params = SelectParams { protected_mask: Some(&all), ..SelectParams::lava() };
    assert_eq!(params.layer_minimum(&shapes[0]), 2 * 111);
    let kept = run_select(&model.0[0], &params, u64::MAX);
    assert!(kept.done.everything_kept && kept.done.evicted_share == 0.0);
    assert_eq!(kept.indices.len(), 2 * 127);
}

/// Protected entries win over every floor, even where heads hold different numbers of them.
#[test]
fn floors_make_room_for_what_is_protected() {
    let cu = [0, 9, 19];
    let positions: Vec<u32> = (0..8).chain([18]).chain(9..19).collect();
    let own = Own {
        ragged: Some((cu.to_vec(), positions)),
        scores: (0..17).map(|i| i as f32).collect(),
        ..Own::dense(19, 2, 1, None)
    };
    let params = |floor, alpha| SelectParams { head_floor: floor, alpha, n_sink: 8, ..SelectParams::lava() };
    for floor in [HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine] {
        let kept = run_select(&own, &params(floor, 1.0), 10);
        assert_eq!(kept.rows, [(0..8).collect::<Vec<_>>(), vec![7, 8]]);
        check_select(&own, &params(floor, 1.0), 10);
    }
}

/// A state may be read by several at a time, and reading one layer leaves what was read of another unchanged. (Miri says whether the
/// pointers are valid.)
#[test]
fn reading_a_state_leaves_what_was_read() {
    let model = Model::new(6, 5);
    let shapes = model.shapes();
    let (select, params) = (SelectParams::lava(), CascadeParams { evict_every: 2, ..CascadeParams::lava() });
    let total = model.plain().iter().map(|layer| layer.n_live()).sum::<u64>() / 3;
    let size = cascade::state_size(&shapes[..], total, &select, &params).unwrap();
    let mut memory = aligned(size);
    let base = memory.as_mut_ptr() as *mut u8;
    // SAFETY: the memory is as long, is used through `base` only, and what is read has been written by the first carver.
    let (start, again, read) = unsafe {
        (
            || Carver::over_raw(base, size).unwrap(),
            || Carver::reopen_raw(base, size).unwrap(),
            || Reader::over_raw(base.cast_const(), size).unwrap(),
        )
    };
    let pointers = |l: usize| {
        let view = CascadeView::read(&mut read()).unwrap();
        let CascadeLayer { kept_indices, cu_kept, rows, cu_rows, .. } = view.layer(l).unwrap();
        [kept_indices, cu_kept, rows, cu_rows].map(|s| (s.as_ptr(), s.len(), s.to_vec()))
    };
    Cascade::new(&shapes[..], total, &select, &params, &mut start()).unwrap();
    let pushed: Vec<usize> = (0..shapes.len()).filter(|&l| shapes[l].n_kv_heads > 0).collect();
    assert!(pushed.len() > 2);
    for &l in &pushed {
        Cascade::reopen(&mut again()).unwrap().push(&shapes[l], &model.0[l].scores, None).unwrap();
        let seen: Vec<_> = (0..=l).flat_map(&pointers).collect();
        for (at, n, want) in seen {
            // SAFETY: nothing has been pushed since.
            assert_eq!(unsafe { std::slice::from_raw_parts(at, n) }, want);
        }
    }
    let nothing = aligned(size);
    // SAFETY: as long, and initialised.
    let mut nothing = unsafe { Reader::over_raw(nothing.as_ptr() as *const u8, size).unwrap() };
    assert_eq!(CascadeView::read(&mut nothing).err().map(|e| e.kind), Some(ErrorKind::State));
}

/// What is refused, and where.
#[test]
fn refusals() {
    let shape = Shape { layer: 3, ..Shape::dense(12, 2, 2, 4, 4, 2) };
    let scores = vec![1.0f32; 20];
    let mut bad = scores.clone();
    let what =
        |r: Result<()>| r.map_err(|e| (e.kind, e.argument.to_str().unwrap(), e.layer, e.head)).unwrap_err();
    let share = |scores: &[f32], epsilon| {
        select::entries_for_share(&shape, scores, epsilon, &mut carver(&mut aligned(1 << 15))).map(|_| ())
    };
    let selected = |params: &SelectParams, scores: &[f32], n| {
        let (mut kept, mut cu) = ([0; 24], [0; 3]);
        let memory = &mut aligned(1 << 15);
        select::select(&shape, params, scores, n, &mut carver(memory), &mut kept, &mut cu, None).map(|_| ())
    };
    for (score, kind) in [(f32::NAN, ErrorKind::NonFinite), (-1.0, ErrorKind::Argument)] {
        bad[13] = score;
        assert_eq!(what(entropy::entropy(&shape, &bad).map(|_| ())), (kind, "scores", Some(3), Some(1)));
        assert_eq!(what(share(&bad, 0.5)), (kind, "scores", Some(3), Some(1)));
        assert_eq!(selected(&SelectParams::lava(), &bad, 5).is_err(), score.is_nan());
    }
    assert_eq!(what(share(&scores, 1.5)).0, ErrorKind::Argument);
    assert_eq!(what(share(&scores[..19], 0.5)).0, ErrorKind::BufferSize);
    let sinks = SelectParams { n_sink: 3, ..SelectParams::lava() };
    assert_eq!(what(selected(&sinks, &scores, 5)), (ErrorKind::Budget, "n_entries", Some(3), None));
    let negative = SelectParams { head_weights: Some(&[1.0, -1.0]), ..SelectParams::lava() };
    assert_eq!(
        what(selected(&negative, &scores, 5)),
        (ErrorKind::Argument, "head_weights", Some(3), Some(1))
    );

    let layers = Alike(shape, 2);
    let entries =
        |weights: &[f64], total| budget::layer_entries(&layers, &sinks, weights, total, &mut [0; 2]);
    assert_eq!(what(entries(&[1.0, -1.0], 20)), (ErrorKind::Argument, "weights", Some(1), None));
    assert_eq!(what(entries(&[f64::INFINITY, 1.0], 20)), (ErrorKind::NonFinite, "weights", Some(0), None));
    assert_eq!(what(entries(&[1.0], 20)), (ErrorKind::BufferSize, "weights", None, None));
    assert_eq!(what(entries(&[1.0; 2], 11)), (ErrorKind::Budget, "total", None, None));
    assert_eq!(entries(&[1.0; 2], 12), Ok(()));

    let params = CascadeParams { layers: LayerShare::Weights, evict_every: 1 };
    let mut memory = aligned(cascade::state_size(&layers, 20, &sinks, &params).unwrap());
    let mut cascade = Cascade::new(&layers, 20, &sinks, &params, &mut carver(&mut memory)).unwrap();
    bad[13] = -2.0;
    assert_eq!(
        what(cascade.push(&shape, &bad, Some(1.0))),
        (ErrorKind::Argument, "scores", Some(0), Some(1))
    );
    assert_eq!(what(cascade.push(&shape, &scores, None)), (ErrorKind::Argument, "weight", Some(0), None));
    assert_eq!(
        what(cascade.push(&shape, &scores, Some(-1.0))),
        (ErrorKind::Argument, "weight", Some(0), None)
    );
    assert_eq!(
        what(cascade.push(&shape, &scores, Some(f64::NAN))),
        (ErrorKind::NonFinite, "weight", Some(0), None)
    );
    let positions: Vec<u32> = (0..12).chain(0..12).collect();
    for other in [
        Shape { n_kv_heads: 1, ..shape },
        Shape { n_tokens: 13, ..shape },
        Shape { n_tokens: 13, window: 3, ..shape },
        shape.sliding(7),
    ] {
        assert_eq!(
            what(cascade.push(&other, &scores, Some(1.0))),
            (ErrorKind::Shape, "shape", Some(0), None)
        );
    }
    // The same numbers are the same layer.
    assert_eq!(cascade.push(&shape.with_rows(&[0, 12, 24], &positions), &scores, Some(1.0)), Ok(()));
    assert_eq!(cascade.layer(0).unwrap().entropy, 1.0);
}

/// No argument makes a function panic.
#[test]
fn nothing_panics() {
    let sizes = [0, 1, 2, 5, u32::MAX as usize, 1 << 40, usize::MAX];
    let masks = [None, Some(&[][..]), Some(&[1u8, 0][..])];
    let mut random = Random(5);
    let r = &mut random;
    let positions = [0, 1, 2, 3, 4, 0, 4];
    for _ in 0..20_000 {
        let mut one = || Shape {
            layer: 0,
            n_tokens: r.pick(&sizes),
            n_q_heads: r.pick(&sizes),
            n_kv_heads: r.pick(&sizes),
            head_dim_k: r.pick(&[1, 1, 0, usize::MAX]),
            head_dim_v: r.pick(&[1, 1, 577]),
            window: r.pick(&sizes),
            sliding_window: r.pick(&[None, Some(0), Some(1), Some(3), Some(usize::MAX)]),
            ragged: r.pick(&[
                None,
                Some(RaggedRows { cu_rows: &[], positions: &[] }),
                Some(RaggedRows { cu_rows: &[0, 5], positions: &positions }),
                Some(RaggedRows { cu_rows: &[0, 5, 7], positions: &positions }),
                Some(RaggedRows { cu_rows: &[0, 5, 3], positions: &positions }),
                Some(RaggedRows { cu_rows: &[0, 5, 90], positions: &positions }),
            ]),
        };
        let shapes = [one(), one()];
        let weights = [0.5, f64::NAN, -1.0, 0.0];
        let some = &weights[..r.below(5)];
        let params = SelectParams {
            head_floor: r.pick(&[HeadFloor::None, HeadFloor::Guaranteed, HeadFloor::Affine]),
            alpha: r.pick(&[0.0, 1.0, f64::NAN, -1.0, 2.0]),
            head_min: r.pick(&sizes),
            head_weights: r.pick(&[None, Some(some)]),
            n_sink: r.pick(&sizes),
            protected_mask: r.pick(&masks),
        };
        let scores = [1.0, 2.0, f32::NAN, 0.0, -1.0, 0.0, 1.0, 3.0];
        let scores = &scores[..r.below(9)];
        let n = r.pick(&[0, 1, 3, 1 << 40, u64::MAX]);
        let mut memory = aligned(r.pick(&[0, 100, 1 << 14]));
        let mut outputs = ([0u32; 9], [0u32; 9], [0u32; 9], [0u64; 2], [0.0f64; 9]);
        let room = r.below(10);
        let out = &mut outputs;
        for shape in &shapes {
            let _ = entropy::entropy(shape, scores);
            let _ = select::n_kept(shape, n);
            let _ = select::workspace_size(shape);
            let _ = select::entries_for_share(shape, scores, 0.5, &mut carver(&mut memory));
            let rows = Some(&mut out.2[..r.below(10)]);
            let (kept, cu) = (&mut out.0[..room], &mut out.1[..r.below(10)]);
            let _ = select::select(shape, &params, scores, n, &mut carver(&mut memory), kept, cu, rows);
        }
        let any: [&dyn Layers; 3] = [&Alike(shapes[0], 2), &Alike(shapes[0], usize::MAX), &Both(shapes)];
        let layers = any[r.below(3)];
        let share =
            r.pick(&[LayerShare::Entropy, LayerShare::Equal, LayerShare::Weights, LayerShare::Global]);
        let cascade_params = CascadeParams { layers: share, evict_every: r.pick(&sizes) };
        let weights = &weights[..r.below(5)];
        let _ = budget::layer_entries(layers, &params, weights, n, &mut out.3);
        let _ = select::global_entries_workspace_size(layers);
        let (heads, all) = (&mut out.4[..room], &mut carver(&mut memory));
        let _ = select::global_entries(layers, &params, scores, n, all, &mut out.3, heads);
        let _ = cascade::state_size(layers, n, &params, &cascade_params);
        let started = Cascade::new(layers, n, &params, &cascade_params, &mut carver(&mut memory));
        if let Ok(mut cascade) = started {
            for shape in shapes.iter().chain(&shapes) {
                let _ = cascade.push(shape, scores, None);
                let _ = cascade.push(shape, scores, Some(1.0));
                let _ = (cascade.layer(0), cascade.layer(1), cascade.layer(usize::MAX));
            }
        }
        let _ = budget::pyramid_weights(n, 5, 2.0, &mut out.4[..r.below(10)]);
    }
}

/// Two layers, of the caller's own type.
struct Both<'a>([Shape<'a>; 2]);

impl Layers for Both<'_> {
    fn n_layers(&self) -> usize {
        2
    }
    fn layer(&self, l: usize) -> Shape<'_> {
        self.0[l]
    }
}

/// The published rule in integers, where its step needs no rounding: `b_l = most − l · (most − least) / (L − 1)`.
#[test]
fn a_pyramid_falls_linearly_and_is_exact() {
    let pyramid = |n, average, all: u64, beta: f64| {
        let mut weights = vec![0.0; n];
        budget::pyramid_weights(average, all, beta, &mut weights).unwrap();
        let mut entries = vec![0; n];
        let layers = Alike(Shape::dense(all as usize + 8, 2, 2, 1, 1, 8), n);
        budget::layer_entries(&layers, &SelectParams::lava(), &weights, 2 * average * n as u64, &mut entries)
            .unwrap();
        entries
    };
    // Two KV heads. Average 100, last 100 / 20 = 5, first 195.
    assert_eq!(pyramid(5, 100, 1000, 20.0), [390, 295, 200, 105, 10]);
    // Only 150 tokens: the first has them all, the last 200 − 150 = 50.
    assert_eq!(pyramid(3, 100, 150, 20.0), [300, 200, 100]);
    assert_eq!(pyramid(1, 100, 150, 20.0), [200]);
    assert_eq!(pyramid(4, 150, 150, 20.0), [300; 4]);
    assert!(budget::pyramid_weights(10, 10, 0.5, &mut [0.0]).is_err());
}

#[test]
fn bounds_that_cancel_are_both_kept() {
    // Shares 2 and 8; the first layer's three heads keep one each, the second has seven entries.
    let layers = [Shape::dense(5, 3, 3, 1, 1, 1), Shape::dense(8, 1, 1, 1, 1, 1)];
    let params = SelectParams { n_sink: 1, ..SelectParams::lava() };
    let mut entries = [0; 2];
    budget::layer_entries(&layers[..], &params, &[0.2, 0.8], 10, &mut entries).unwrap();
    assert_eq!(entries, [3, 7]);
}

/// A layer with a huge weight and little to use leaves the others' weights as they are.
#[test]
fn a_huge_weight_does_not_turn_the_others_to_zeros() {
    let layers =
        [Shape::dense(2, 1, 1, 1, 1, 1), Shape::dense(99, 1, 1, 1, 1, 1), Shape::dense(99, 1, 1, 1, 1, 1)];
    let mut entries = [0; 3];
    budget::layer_entries(&layers[..], &SelectParams::lava(), &[1e300, 0.25, 0.75], 41, &mut entries)
        .unwrap();
    assert_eq!(entries, [1, 10, 30]);
}

#[test]
fn entropy_agrees_with_the_reference() {
    for (heads, prefix) in [(1, 2), (1, 7), (2, 8), (3, 9), (8, 1000)] {
        let own = Own::dense(prefix + 1, heads, 1, None).scored(&mut Random(5), 1000);
        let got = entropy::entropy(&own.shape(), &own.scores).unwrap().entropy;
        assert!((got - own.plain().entropy()).abs() < 1e-13);
    }
}

#[test]
fn compaction_moves_rows_in_every_layout() {
    let (n, heads, dim) = (40usize, 3usize, 5usize);
    let mut random = Random(8);
    let value = |t: usize, h: usize, c: usize| (t * 100 + h * 10 + c) as f32;
    let layouts = [
        Strides::token_major(heads, dim),
        Strides::head_major(n, dim),
        // Transposed, and padded in every direction.
        Strides { token: 1, head: (dim * n) as i64, dim: n as i64, row_start: None },
        Strides { token: 64, head: 14, dim: 2, row_start: None },
    ];
    for strides in layouts {
        let mut kept = vec![];
        let mut cu = vec![0u32];
        for _ in 0..heads {
            kept.extend((0..n as u32).filter(|_| random.below(3) > 0));
            cu.push(kept.len() as u32);
        }
        let at = |t: usize, h: usize, c: usize| {
            t * strides.token as usize + h * strides.head as usize + c * strides.dim as usize
        };
        let mut memory = vec![-1.0f32; at(n - 1, heads - 1, dim - 1) + 1];
        for (t, h, c) in (0..n).flat_map(|t| (0..heads).flat_map(move |h| (0..dim).map(move |c| (t, h, c)))) {
            memory[at(t, h, c)] = value(t, h, c);
        }
        let before = memory.clone();

        let mut ragged = vec![-1.0f32; kept.len() * dim];
        {
            let src = Tensor::from_slice(&memory, strides, Rows::Same(n), heads, dim).unwrap();
            let mut dst =
                TensorMut::from_slice(&mut ragged, Strides::ragged(&cu, dim), Rows::Cu(&cu), heads, dim)
                    .unwrap();
            compact::compact(&src, &mut dst, &kept, &cu, 0..heads).unwrap();
        }
        let mut in_place = TensorMut::from_slice(&mut memory, strides, Rows::Cu(&cu), heads, dim).unwrap();
        compact::compact_within(&mut in_place.within(None, Rows::Same(n)).unwrap(), &kept, &cu).unwrap();
        let mut untouched = before.clone();
        for h in 0..heads {
            for (r, &t) in kept[cu[h] as usize..cu[h + 1] as usize].iter().enumerate() {
                for c in 0..dim {
                    let want = value(t as usize, h, c);
                    assert_eq!(ragged[(cu[h] as usize + r) * dim + c], want);
                    assert_eq!(memory[at(r, h, c)], want, "in place, {strides:?}");
                    untouched[at(r, h, c)] = want;
                }
            }
        }
        assert_eq!(memory, untouched, "rows after the kept ones are as they were");
    }
}

#[test]
fn bad_indices_move_nothing() {
    let mut memory: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let before = memory.clone();
    let mut tensor =
        TensorMut::from_slice(&mut memory, Strides::token_major(1, 2), Rows::Same(6), 1, 2).unwrap();
    for (rows, cu) in [(vec![2, 1], [0, 2]), (vec![1, 1], [0, 2]), (vec![5, 6], [0, 2]), (vec![1, 2], [2, 0])]
    {
        let mut within = tensor.within(None, Rows::Same(6)).unwrap();
        let error = compact::compact_within(&mut within, &rows, &cu).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Indices);
    }
    assert_eq!(memory, before);
    // Nor does anything panic.
    let mut tensor =
        TensorMut::from_slice(&mut memory, Strides::token_major(1, 2), Rows::Same(6), 1, 2).unwrap();
    let mut random = Random(3);
    for _ in 0..10_000 {
        let r = &mut random;
        let numbers = [0, 1, 2, 3, 5, 6, 7, u32::MAX];
        let rows: Vec<u32> = (0..r.below(5)).map(|_| r.pick(&numbers)).collect();
        let cu: Vec<u32> = (0..r.below(4)).map(|_| r.pick(&numbers)).collect();
        let heads = r.pick(&[0, 1, 2, usize::MAX])..r.pick(&[0, 1, 2, usize::MAX]);
        let src = tensor.as_tensor();
        let _ = compact::check_rows(&src, &src, &rows, &cu, heads.clone());
        let mut to = [0.0f32; 12];
        let mut dst =
            TensorMut::from_slice(&mut to, Strides::token_major(1, 2), Rows::Same(6), 1, 2).unwrap();
        let _ = compact::compact(&src, &mut dst, &rows, &cu, heads);
        let _ = compact::compact_within(&mut tensor.within(None, Rows::Same(6)).unwrap(), &rows, &cu);
    }
}
