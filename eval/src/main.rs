use eval::*;
use std::time::Instant;
fn main() {
    let model = model::Model::load(std::path::Path::new("model/recall.safetensors")).unwrap();
    for length in [512, 1024, 2048] {
        for task in tasks::Task::ALL {
            let (mut right, mut n, mut pre, mut dec) = (0, 0, 0.0, 0.0);
            for i in 0..6 {
                let t = task.text(1000, length, i);
                assert_eq!(t.prompt.len() + t.continuation.len(), length);
                let start = Instant::now();
                let p = model.prefill(&t.prompt);
                pre += start.elapsed().as_secs_f64();
                let start = Instant::now();
                let mut caches: Vec<_> = p
                    .layers
                    .iter()
                    .map(|l| {
                        cache::Cache::compact(
                            &model.cfg,
                            l,
                            &cache::Kept::everything(2, t.prompt.len()),
                            t.continuation.len(),
                        )
                        .unwrap()
                    })
                    .collect();
                let logits = model.decode(&mut caches, t.prompt.len(), &t.continuation, None).unwrap();
                dec += start.elapsed().as_secs_f64();
                for s in &t.scored {
                    let row = &logits[s.step * 259..][..259];
                    let best = (0..259).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                    right += (best == s.target as usize) as usize;
                    n += 1;
                }
            }
            println!(
                "{length} {:<12} {right}/{n} {:.3} prefill {:.3}s decode {:.4}s",
                task.name(),
                right as f64 / n as f64,
                pre / 6.0,
                dec / 6.0
            );
        }
    }
}
