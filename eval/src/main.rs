//! `make eval-small`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use eval::lkv::Lkv;
use eval::measure::{TextResult, run};
use eval::methods::{self, Layers, Method};
use eval::model::Model;
use eval::plot;
use eval::report::{Run, between_markers};
use eval::statistics::Cell;
use eval::tasks::{Group, Task};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

#[derive(Parser)]
#[command(about = "What KV-cache eviction methods lose, at equal bytes")]
struct Args {
    /// Methods by name, or by family: lava, peers, ablations, beyond. All, if none is named
    #[arg(long, value_delimiter = ';')]
    methods: Vec<String>,
    /// Tasks by name or group: known, later, generation
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Tokens of a text, those that are decoded included; the model knows 2,048
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024, 2048], value_parser = length)]
    lengths: Vec<usize>,
    /// Shares of the prefix to keep
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 0.2, 0.1, 0.05, 0.02], value_parser = ratio)]
    ratios: Vec<f64>,
    /// Texts of each task and length
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    texts: usize,
    /// Of the texts. Settings are chosen on others than those that the table is made on
    #[arg(long, default_value_t = 2)]
    seed: u64,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()), value_parser = at_least_one)]
    threads: usize,
    /// Few short texts: a look at everything in a minute
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value = "eval/model/recall.safetensors")]
    weights: PathBuf,
    /// Of LKV's scorer and budgets; where the file is not there the method is left out
    #[arg(long, default_value = "eval/model/lkv.safetensors")]
    lkv: PathBuf,
    /// Write tables and plots into this folder; without it they are only printed
    #[arg(long)]
    out: Option<PathBuf>,
    /// Put the short table between the marker comments of this file
    #[arg(long)]
    readme: Option<PathBuf>,
}

/// A number that is inside its range, or what the range is.
fn within<T: std::str::FromStr>(
    text: &str,
    range: &str,
    is_inside: impl Fn(&T) -> bool,
) -> Result<T, String> {
    text.parse().ok().filter(is_inside).ok_or_else(|| format!("expected {range}"))
}

fn length(text: &str) -> Result<usize, String> {
    within(text, "256 to 4096 tokens", |n| (256..=4096).contains(n))
}

fn ratio(text: &str) -> Result<f64, String> {
    within(text, "a share above 0 and at most 1", |r| *r > 0.0 && *r <= 1.0)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    within(text, "a number of at least 1", |n| *n >= 1)
}

/// Those of `all` that are named.
fn chosen<T>(all: Vec<T>, words: &[String], matches: impl Fn(&T, &str) -> bool) -> Result<Vec<T>> {
    for word in words {
        if !all.iter().any(|x| matches(x, word)) {
            bail!("there is no {word}; see --help and src/methods.rs, src/tasks.rs");
        }
    }
    Ok(all.into_iter().filter(|x| words.is_empty() || words.iter().any(|w| matches(x, w))).collect())
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.texts, args.lengths) = (args.texts.min(8), vec![512]);
    }
    let model = Model::load(&args.weights)?;
    let lkv = if args.lkv.exists() { Some(Lkv::load(&model.cfg, &args.lkv)?) } else { None };
    let runnable =
        methods::all().into_iter().filter(|m| lkv.is_some() || m.layers != Layers::Learned).collect();
    let methods = chosen(runnable, &args.methods, |m: &Method, w| m.name == w || m.family.name() == w)?;
    let tasks = chosen(Task::ALL.to_vec(), &args.tasks, |t, w| t.name() == w || t.group().name() == w)?;
    let cells: Vec<(Task, usize)> =
        args.lengths.iter().flat_map(|&l| tasks.iter().map(move |&t| (t, l))).collect();
    let jobs: Vec<(Task, usize, usize)> =
        cells.iter().flat_map(|&(t, l)| (0..args.texts).map(move |i| (t, l, i))).collect();

    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} texts, {eta} left")?;
    let bar = ProgressBar::new(jobs.len() as u64).with_style(style);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    // One text per piece of work: their times differ by an order of magnitude. Results come in the texts' order.
    let results: Vec<TextResult> = pool.install(|| {
        jobs.par_iter()
            .with_max_len(1)
            .map(|&(task, length, i)| {
                let result =
                    run(&model, lkv.as_ref(), &task.text(args.seed, length, i), &methods, &args.ratios);
                bar.inc(1);
                result.with_context(|| format!("{}, {length} tokens, text {i}", task.name()))
            })
            .collect::<Result<_>>()
    })?;
    bar.finish_and_clear();

    let mut results = results.into_iter();
    let cells = cells
        .iter()
        .map(|&(task, length)| {
            Cell::new(args.seed, task, length, results.by_ref().take(args.texts).collect())
        })
        .collect();
    let machine = format!(
        "{} threads on {}, kernels {}",
        args.threads,
        std::env::consts::ARCH,
        lava::Backend::detect().name()
    );
    let run = Run { seed: args.seed, n_texts: args.texts, methods, ratios: args.ratios, cells, machine };
    println!("{}", run.summary());
    if let Some(out) = args.out {
        std::fs::create_dir_all(&out)?;
        std::fs::write(out.join("tables.md"), run.page())?;
        std::fs::write(out.join("cells.csv"), run.csv())?;
        plot::accuracy(&run, &out.join("accuracy.svg"))?;
        plot::needles(&run, Group::Known, 0.1, &out.join("needles-known.svg"))?;
        plot::needles(&run, Group::Later, 0.2, &out.join("needles-later.svg"))?;
    }
    if let Some(path) = args.readme {
        let text = std::fs::read_to_string(&path)?;
        let new = between_markers(&text, "eval", &run.readme()).with_context(|| {
            format!("{} lacks the lines <!-- eval: begin ... and <!-- eval: end", path.display())
        })?;
        std::fs::write(&path, new)?;
    }
    Ok(())
}
