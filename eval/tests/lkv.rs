//! LKV's scorer is read and computed as it was written: `eval/model/lkv.py` scales each head's scores to mean 0 and deviation 1 over
//! contexts of 512 tokens, half recall and half copying.

use std::path::Path;

use eval::lkv::Lkv;
use eval::methods::WINDOW;
use eval::model::Model;
use eval::tasks::Task;

#[test]
fn scores_are_scaled_as_they_were_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("model");
    let model = Model::load(&folder.join("recall.safetensors")).unwrap();
    let cfg = &model.cfg;
    let lkv = Lkv::load(cfg, &folder.join("lkv.safetensors")).unwrap();
    assert!((lkv.head_share.iter().sum::<f64>() - 1.0).abs() < 1e-5);

    let heads = cfg.n_layers * cfg.n_kv_heads;
    let mut scores: Vec<Vec<f32>> = vec![vec![]; heads];
    for task in [Task::LaterMany, Task::Copy] {
        for i in 0..8 {
            let prefill = model.prefill(&task.text(7, 512, i).prompt);
            let prefix = prefill.n_tokens - WINDOW;
            for (l, layer) in prefill.layers.iter().enumerate() {
                let of_layer = lkv.scores(cfg, l, layer, prefix);
                for (g, head) in of_layer.chunks_exact(prefix).enumerate() {
                    scores[l * cfg.n_kv_heads + g].extend(head);
                }
            }
        }
    }
    for (h, s) in scores.iter().enumerate() {
        let n = s.len() as f32;
        let mean = s.iter().sum::<f32>() / n;
        let deviation = (s.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
        // Our texts have fewer facts and more filler than those it was scaled over.
        assert!(mean.abs() < 0.5 && (0.5..2.0).contains(&deviation), "head {h}: {mean} ± {deviation}");
    }
}
