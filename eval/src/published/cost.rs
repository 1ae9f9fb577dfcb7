//! What scoring takes, beside prefill, one thread each: how much a method adds to reading a prompt.

use std::fmt::Write;
use std::time::Instant;

use anyhow::Result;

use crate::keep::Prompt;
use crate::methods::{BASE, Method};
use crate::model::Model;

/// Runs of which the shortest counts.
const RUNS: usize = 3;

fn seconds(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        work()?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// A table: scores of all layers by each method, in milliseconds, as a multiple of LAVa's and as a share of prefill.
pub fn markdown(model: &Model, tokens: &[u32], methods: &[Method]) -> Result<String> {
    let mut prefill = None;
    let whole = seconds(|| {
        prefill = Some(model.prefill(tokens));
        Ok(())
    })?;
    let prefill = prefill.expect("runs at least once");
    let mut times = vec![];
    for method in methods {
        let time = seconds(|| Prompt::new(model, None, &prefill).scores(method.scorer).map(|_| ()))?;
        times.push((method.name, time));
    }
    let base = times.iter().find(|(name, _)| *name == BASE).map_or(f64::NAN, |(_, time)| *time);
    let mut page = format!(
        "**{} tokens**, {} layers; prefill {:.0} ms.\n\n| scores of all layers | ms | of LAVa's | of prefill |\n|---|---:|---:|---:|\n",
        tokens.len(),
        model.cfg.n_layers,
        whole * 1e3
    );
    for (name, time) in times {
        let (ms, ratio, share) = (time * 1e3, time / base, time / whole * 100.0);
        writeln!(page, "| {name} | {ms:.0} | {ratio:.1} | {share:.1}% |")?;
    }
    Ok(page + "\n")
}
