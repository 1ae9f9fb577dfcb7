//! Against results of an independent implementation; see golden/README.md.

use ffi_tests::*;
use safetensors::SafeTensors;
use std::path::Path;

/// One file: its tensors, and the numbers of its metadata.
struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        Self { bytes: std::fs::read(path).unwrap() }
    }

    fn text(&self, key: &str) -> String {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).unwrap();
        header.metadata().as_ref().unwrap()[key].clone()
    }

    fn number(&self, key: &str) -> usize {
        self.text(key).parse().unwrap()
    }

    fn tensor<const N: usize, T>(&self, name: &str, value: impl Fn([u8; N]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(N).map(|bytes| value(bytes.try_into().unwrap())).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name, f32::from_le_bytes)
    }
}

#[test]
fn scores_entropies_and_head_counts_are_the_independent_ones() {
    for name in ["gqa4_max.safetensors", "mha_avg.safetensors", "mqa_max.safetensors"] {
        let golden = Golden::open(name);
        let [tokens, q_heads, kv_heads, dim, window] =
            ["n_tokens", "n_q_heads", "n_kv_heads", "head_dim", "window"].map(|key| golden.number(key));
        let shape = shape(tokens, (q_heads, kv_heads), (dim, dim), window);
        let mut params = score_params();
        params.pool = if golden.text("pool") == "avgpool" { LAVA_POOL_AVG } else { LAVA_POOL_MAX };
        params.pool_kernel = golden.number("pool_kernel") as u32;
        let budget = (golden.number("budget") - window) * kv_heads;
        let entropies = golden.tensor("entropy", f64::from_le_bytes);
        assert_eq!(entropies.len(), golden.number("n_layers"));

        for (l, &want_entropy) in entropies.iter().enumerate() {
            let grid = |what: &str, rows, heads| Grid {
                rows,
                heads,
                dim,
                values: golden.floats(&format!("layer{l}.{what}")),
            };
            let (q, k, v) =
                (grid("q", window, q_heads), grid("k", tokens, kv_heads), grid("v", tokens, kv_heads));
            let scores = Layer { shape, params, q, k, v }.score().unwrap();
            let want = golden.floats(&format!("layer{l}.scores"));
            let largest = want.iter().fold(0.0f32, |m, &x| m.max(x));
            for (i, (got, want)) in scores.iter().zip(&want).enumerate() {
                assert!(
                    (got - want).abs() <= 1e-5 * largest,
                    "{name} layer {l} entry {i}: {got}, want {want}"
                );
            }
            assert_eq!(scores.len(), want.len());

            let (got_entropy, _) = entropy(&shape, &scores).unwrap();
            assert!(
                (got_entropy - want_entropy).abs() <= 1e-6,
                "{name} layer {l}: {got_entropy}, want {want_entropy}"
            );

            let kept = select(&shape, &select_params(), &scores, budget as u64).unwrap();
            let counts: Vec<i32> = (0..kv_heads).map(|h| (kept.head(h).len() - window) as i32).collect();
            let want = golden.tensor(&format!("layer{l}.head_counts_at_uniform_budget"), i32::from_le_bytes);
            assert_eq!(counts, want, "{name} layer {l}");
        }
    }
}
