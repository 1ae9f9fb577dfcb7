//! The model equals PyTorch's: queries, keys, values and the continuation of three captured prompts.

use std::path::Path;

use eval::cache::{Cache, Kept};
use eval::model::{Model, numbers};
use safetensors::SafeTensors;

/// Relative to the tensor's largest number: errors grow with what is added up.
fn worst(ours: impl IntoIterator<Item = f32>, theirs: &[f32]) -> f32 {
    let largest = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let ours: Vec<f32> = ours.into_iter().collect();
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn captured_prompts_give_the_same_numbers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("model");
    let model = Model::load(&folder.join("recall.safetensors")).unwrap();
    let bytes = std::fs::read(folder.join("captures.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta = header.metadata().as_ref().unwrap();
    let (n_prompts, n_next): (usize, usize) =
        (meta["n_prompts"].parse().unwrap(), meta["n_next"].parse().unwrap());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let get = |name: String| numbers(&file.tensor(&name).unwrap());
    assert_eq!(n_prompts, 3);
    for p in 0..n_prompts {
        let tokens: Vec<u32> = get(format!("prompt{p}.tokens")).iter().map(|&t| t as u32).collect();
        let (prompt, next) = tokens.split_at(tokens.len() - n_next);
        let prefill = model.prefill(prompt);
        let mut caches: Vec<Cache> = prefill
            .layers
            .iter()
            .map(|layer| {
                let all = Kept::everything(model.cfg.n_kv_heads, prompt.len());
                Cache::compact(&model.cfg, layer, &all, n_next).unwrap()
            })
            .collect();
        let mut trace = vec![];
        model.decode(&mut caches, prompt.len(), next, Some(&mut trace)).unwrap();
        let wide = |x: &[half::f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        for (l, (layer, trace)) in prefill.layers.iter().zip(&trace).enumerate() {
            let of = |name: &str| get(format!("prompt{p}.layer{l}.{name}"));
            for (name, ours) in [
                ("q", layer.q.clone()),
                ("k", wide(&layer.k)),
                ("v", wide(&layer.v)),
                ("q_next", trace.q.clone()),
                ("k_next", wide(&trace.k)),
                ("v_next", wide(&trace.v)),
            ] {
                // Queries are f32 on both sides: sums in another order. Keys and values are f16: half a unit in the last place.
                // Decoding reads an f16 cache where PyTorch's is f32, so all its errors are a cache's, some 2^-11 each.
                let bound = match name {
                    "q" => 1e-5,
                    "k" | "v" => 1e-3,
                    _ => 4e-3,
                };
                let error = worst(ours, &of(name));
                assert!(error < bound, "prompt {p}, layer {l}, {name}: off by {error}");
            }
        }
    }
}
