//! What makes the comparison fair: all methods keep the same number of bytes of the real caches, and the numbers do not
//! depend on threads.

use std::path::Path;

use eval::cache::shape;
use eval::keep::Prompt;
use eval::measure::{budget, run};
use eval::methods::{self, Layers, Method, WINDOW};
use eval::model::{Model, Prefill};
use eval::tasks::Task;
use lava::workspace::Carver;

const RATIOS: [f64; 5] = [0.5, 0.2, 0.1, 0.05, 0.02];

fn model() -> Model {
    Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("model/recall.safetensors")).unwrap()
}

/// Without LKV, whose weights are another file.
fn methods() -> Vec<Method> {
    methods::all().into_iter().filter(|m| m.layers != Layers::Learned).collect()
}

#[test]
fn all_methods_keep_the_same_bytes_and_their_own_window() {
    let model = model();
    let (heads, layers) = (model.cfg.n_kv_heads, model.cfg.n_layers);
    let text = Task::LaterMany.text(7, 512, 0);
    let prefill = model.prefill(&text.prompt);
    let mut prompt = Prompt::new(&model, None, &prefill);
    for method in methods() {
        for ratio in RATIOS {
            let budget = budget(prefill.n_tokens, ratio);
            let Some(kept) = prompt.keep(&method, budget).unwrap() else {
                assert!(budget < method.scorer.window + method.select.n_sink, "{}", method.name);
                continue;
            };
            let rows: usize = kept.iter().map(|k| k.indices.len()).sum();
            assert_eq!(rows, budget * heads * layers, "{} at {ratio}", method.name);
            for head in kept.iter().flat_map(|k| (0..heads).map(|h| k.head(h))) {
                assert!(head.is_sorted_by(|a, b| a < b));
                let window = (prefill.n_tokens - method.scorer.window) as u32..prefill.n_tokens as u32;
                assert!(head.ends_with(&window.collect::<Vec<_>>()), "{}", method.name);
                assert!((0..method.select.n_sink as u32).all(|sink| head.contains(&sink)), "{}", method.name);
            }
        }
    }
}

/// Methods with another window or sinks compete for the same bytes: `budget` is the harness's, not theirs.
#[test]
fn the_budget_is_a_share_of_what_is_before_the_window() {
    assert_eq!(budget(1032, 0.1), WINDOW + 100);
    assert_eq!(budget(1032, 1.0), 1032);
}

#[test]
fn one_sort_over_the_model_is_the_librarys_global_entries() {
    let model = model();
    let cfg = model.cfg;
    let text = Task::Copy.text(7, 512, 0);
    let prefill: Prefill = model.prefill(&text.prompt);
    let shape = shape(&cfg, prefill.n_tokens, WINDOW);
    let mut prompt = Prompt::new(&model, None, &prefill);
    let global = methods().into_iter().find(|m| m.name == "KV-Compress").unwrap();
    let budget = budget(prefill.n_tokens, 0.1);
    let kept = prompt.keep(&global, budget).unwrap().unwrap();
    let counts: Vec<u64> =
        kept.iter().flat_map(|k| k.cu.windows(2).map(|w| (w[1] - w[0]) as u64 - WINDOW as u64)).collect();

    let scores = prompt.scores(global.scorer).unwrap().concat();
    let layers = lava::Alike(shape, cfg.n_layers);
    let total = lava::params::total_entries(&layers, budget).unwrap();
    let size = lava::select::global_entries_workspace_size(&layers).unwrap();
    let mut memory = vec![0u8; size + 16];
    let start = memory.as_ptr().align_offset(16);
    let mut workspace = Carver::over(&mut memory[start..start + size]).unwrap();
    let params = global.select;
    let (mut entries, mut heads) = (vec![0; cfg.n_layers], vec![0.0; counts.len()]);
    lava::select::global_entries(&layers, &params, &scores, total, &mut workspace, &mut entries, &mut heads)
        .unwrap();
    assert_eq!(counts.iter().map(|&n| n as f64).collect::<Vec<_>>(), heads);
    assert_eq!(counts.iter().sum::<u64>(), entries.iter().sum::<u64>());
}

#[test]
fn with_everything_kept_nothing_changes() {
    let model = model();
    let text = Task::KnownMany.text(7, 512, 1);
    let result = run(&model, None, &text, &methods()[..1], &[1.0]).unwrap();
    let kept = result.of[0][0].as_ref().unwrap();
    assert_eq!(kept.hits, result.full.hits);
    assert_eq!(kept.bytes, result.full.bytes);
    assert_eq!((kept.error, kept.kl, kept.nll), (0.0, 0.0, 0.0));
}

#[test]
fn numbers_do_not_depend_on_the_thread() {
    let model = model();
    let few: Vec<Method> = methods().into_iter().take(4).collect();
    let numbers = |i: usize| {
        let result = run(&model, None, &Task::KnownMany.text(7, 512, i), &few, &[0.1]).unwrap();
        let of = |o: &eval::measure::Outcome| (o.error.to_bits(), o.kl.to_bits(), o.hits.clone());
        result.of.iter().flatten().flatten().map(of).collect::<Vec<_>>()
    };
    let here: Vec<_> = (0..3).map(numbers).collect();
    let there: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..3).map(|i| s.spawn(move || numbers(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(here, there);
}
