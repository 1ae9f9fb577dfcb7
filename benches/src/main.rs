//! `make bench`: the time of each stage, the floor under it, and the same pipeline in PyTorch, all measured in one run.
//!
//! The floor of scoring one layer is the larger of two times: `q·k` of the window against all keys at the rate of a good
//! GEMM, and K and V once at the rate at which memory is read. Both rates are measured here, next to what they are compared
//! with, since machines are noisy: ratios mean something, times alone do not.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::Instant;

use benches::{Layer, Number, Outputs, SHAPES, WINDOW};
use clap::Parser;
use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};
use lava::Backend;

#[derive(Parser)]
#[command(about = "Times lava's stages against the machine's limits and against PyTorch")]
struct Args {
    /// Prompt lengths
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 8192, 32768, 131072])]
    tokens: Vec<usize>,
    /// Threads
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// A Python that has PyTorch; without one the PyTorch column stays empty
    #[arg(long, default_value = "python3")]
    python: String,
    /// Kernels to use instead of what the library would choose: scalar, avx2, ...
    #[arg(long)]
    backend: Option<String>,
    /// Runs of each measurement; the fastest counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Also write the tables to this file
    #[arg(long)]
    record: Option<std::path::PathBuf>,
    /// Only run the 32-layer cascade and print its peak memory (used by the run itself)
    #[arg(long, hide = true)]
    cascade: bool,
}

impl Args {
    fn backend(&self) -> Backend {
        match &self.backend {
            None => Backend::detect(),
            Some(name) => Backend::all().find(|b| b.name() == name).unwrap_or_else(|| {
                let names: Vec<_> = Backend::all().map(|b| b.name()).collect();
                eprintln!("this machine has no backend {name}, only {}", names.join(", "));
                std::process::exit(2)
            }),
        }
    }
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Runs `f(thread)` on this many threads at once.
fn on_threads(n: usize, f: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        (0..n).for_each(|i| {
            drop(scope.spawn({
                let f = &f;
                move || f(i)
            }))
        })
    });
}

/// The machine's limits, in one place so that every measurement can be repeated next to what it is compared with.
struct Limits {
    a: Vec<f32>,
    big: Vec<u64>,
}

impl Limits {
    const SIDE: usize = 768;

    fn new() -> Self {
        Self { a: vec![0.5; Self::SIDE * Self::SIDE], big: (0..32 << 20).collect() }
    }

    /// f32 multiply-adds per second, times two: a square product, the shape that GEMMs are best at.
    fn gemm(&self, threads: usize) -> f64 {
        let n = Self::SIDE;
        let time = seconds(|| {
            on_threads(threads, |_| {
                let mut c = vec![0.0f32; n * n];
                let (s, p) = (n as isize, gemm::Parallelism::None);
                let (a, c) = (self.a.as_ptr(), c.as_mut_ptr());
                // SAFETY: three n × n matrices without gaps.
                unsafe {
                    gemm::gemm(n, n, n, c, 1, s, false, a, 1, s, a, 1, s, 0.0, 1.0, false, false, false, p)
                };
            })
        });
        threads as f64 * 2.0 * (n as f64).powi(3) / time
    }

    /// Bytes read per second, from a buffer far larger than the caches.
    fn read(&self, threads: usize) -> f64 {
        let share = self.big.len() / threads;
        let time = seconds(|| {
            on_threads(threads, |i| {
                let mut sums = [0u64; 16];
                for block in self.big[i * share..(i + 1) * share].chunks_exact(16) {
                    sums.iter_mut().zip(block).for_each(|(s, x)| *s ^= x);
                }
                std::hint::black_box(sums);
            })
        });
        (share * threads * 8) as f64 / time
    }
}

/// One line of the table.
struct Case {
    dtype: &'static str,
    shape: (usize, usize, usize),
    tokens: usize,
    threads: usize,
    score: f64,
    score_lse: f64,
    floor: f64,
    entropy: f64,
    select: f64,
    compact: f64,
    attend_rate: f64,
    read: f64,
    torch: Option<f64>,
    workspace: usize,
    layer: usize,
}

fn fastest(rounds: usize, mut f: impl FnMut()) -> f64 {
    (0..rounds).map(|_| seconds(&mut f)).fold(f64::MAX, f64::min)
}

fn measure<T: Number>(
    args: &Args,
    limits: &Limits,
    shape: (usize, usize, usize),
    tokens: usize,
) -> Vec<Case> {
    let layer = Layer::<T>::new(shape, tokens, args.backend());
    let mut out = Outputs::new(&layer, 1024);
    let (n_q_heads, _, dim) = shape;
    args.threads
        .iter()
        .map(|&threads| {
            let (mut score, mut gemm, mut read) = (f64::MAX, 0.0f64, 0.0f64);
            layer.score(&mut out, threads, false);
            for _ in 0..args.rounds {
                // Side by side, so that a slow moment of the machine hits both.
                gemm = gemm.max(limits.gemm(threads));
                score = score.min(seconds(|| layer.score(&mut out, threads, false)));
                read = read.max(limits.read(threads));
            }
            let score_lse = fastest(args.rounds.min(3), || layer.score(&mut out, threads, true));
            layer.score(&mut out, threads, false);
            let entropy = fastest(args.rounds, || {
                std::hint::black_box(layer.entropy(&out));
            });
            let select = fastest(args.rounds, || layer.select(&mut out));
            let compact = fastest(args.rounds, || layer.compact(&mut out));
            let one_read = (0..args.rounds).map(|_| limits.read(1)).fold(0.0, f64::max);
            out.spread();
            let attend = fastest(args.rounds * 10, || layer.attend(&mut out));
            let operations = 2.0 * (WINDOW * n_q_heads) as f64 * tokens as f64 * dim as f64;
            Case {
                dtype: T::NAME,
                shape,
                tokens,
                threads,
                score,
                score_lse,
                floor: (operations / gemm).max(layer.bytes() as f64 / read),
                entropy,
                select,
                compact,
                attend_rate: out.bytes() as f64 / attend,
                read: one_read,
                torch: torch(args, T::NAME, shape, tokens, threads),
                workspace: layer.workspace_bytes(),
                layer: layer.bytes(),
            }
        })
        .collect()
}

/// Seconds of the same scoring in PyTorch.
fn torch(
    args: &Args,
    dtype: &str,
    shape: (usize, usize, usize),
    tokens: usize,
    threads: usize,
) -> Option<f64> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/torch_pipeline.py");
    let numbers = [shape.0, shape.1, shape.2, tokens, threads, args.rounds.min(3)].map(|n| n.to_string());
    let run = Command::new(&args.python).arg(script).arg(dtype).args(numbers).output().ok()?;
    String::from_utf8(run.stdout).ok()?.trim().parse().ok()
}

fn table(cases: &[Case]) -> String {
    let mut text = String::from(
        "dtype  heads   d   tokens thr |  score   floor  ratio  lse given |  torch  ratio | entropy  select compact | attend, of read bw | work memory\n",
    );
    text += &format!("{}\n", "-".repeat(text.len() - 1));
    for c in cases {
        let ms = |s: f64| format!("{:.1}", s * 1e3);
        let torch = c.torch.map_or(("-".into(), "-".into()), |t| (ms(t), format!("{:.1}x", t / c.score)));
        text += &format!(
            "{:5} {:>3}/{:<2} {:>3} {:>8} {:>3} | {:>6}  {:>6} {:>5.2}x  {:>9} | {:>6} {:>6} | {:>7} {:>7} {:>7} | {:>6.1} GB/s  {:>3.0}%  | {:>5.1} MB {:>4.1}%\n",
            c.dtype,
            c.shape.0,
            c.shape.1,
            c.shape.2,
            c.tokens,
            c.threads,
            ms(c.score),
            ms(c.floor),
            c.score / c.floor,
            ms(c.score_lse),
            torch.0,
            torch.1,
            ms(c.entropy),
            ms(c.select),
            ms(c.compact),
            c.attend_rate / 1e9,
            100.0 * c.attend_rate / c.read,
            c.workspace as f64 / 1e6,
            100.0 * c.workspace as f64 / c.layer as f64,
        );
    }
    text
}

/// The targets, and what this run says about them.
fn verdicts(cases: &[Case]) -> String {
    let find = |dtype: &str, tokens: usize, threads: usize| {
        cases
            .iter()
            .find(|c| c.dtype == dtype && c.tokens == tokens && c.threads == threads && c.shape == SHAPES[0])
    };
    let mut text = String::new();
    let mut say =
        |what: &str, target: &str, got: String| text += &format!("{what:<58} {target:>10}   {got}\n");
    if let Some(c) = find("f16", 32768, 1) {
        say(
            "scoring, f16, 32k, one thread, against the floor",
            "<= 1.6x",
            format!("{:.2}x", c.score / c.floor),
        );
        let share = 100.0 * (c.select + c.compact) / c.score;
        say("select + compact, budget 1024, of scoring's time", "< 10%", format!("{share:.1}%"));
    }
    for (dtype, target) in [("f16", "6x"), ("bf16", "2x"), ("f32", "3x")] {
        for threads in [1, 2] {
            if let Some((c, t)) = find(dtype, 32768, threads).and_then(|c| Some((c, c.torch?))) {
                let what = format!("scoring, {dtype}, 32k, against PyTorch, {threads} thread(s)");
                say(&what, &format!(">= {target}"), format!("{:.1}x", t / c.score));
            }
        }
    }
    for dtype in ["f16", "bf16", "f32"] {
        if let Some(c) = find(dtype, 32768, 1) {
            let share = 100.0 * c.attend_rate / c.read;
            say(&format!("attend, one token, {dtype}, of read bandwidth"), ">= 80%", format!("{share:.0}%"));
        }
    }
    if let (Some(short), Some(long)) = (find("f16", 8192, 1), find("f16", 131072, 1)) {
        let growth = long.score / short.score / 16.0 - 1.0;
        say("growth from 8k to 128k, f16, beyond linear", "<= 15%", format!("{:+.0}%", 100.0 * growth));
    }
    if let (Some(one), Some(two)) = (find("f16", 32768, 1), find("f16", 32768, 2)) {
        say("scaling from 1 to 2 threads, f16, 32k", ">= 1.8x", format!("{:.2}x", one.score / two.score));
    }
    text
}

/// Peak memory of a 32-layer cascade at 32k tokens, run by itself so that nothing else is counted.
fn cascade() -> ExitCode {
    let (layers, tokens, budget) = (32, 32768, 1024);
    let mut at_start = resident("VmRSS");
    let report =
        benches::run_cascade::<f16>(SHAPES[0], tokens, layers, budget, || at_start = resident("VmRSS"));
    let peak = resident("VmHWM") - at_start;
    println!("{peak} {} {}", report.buffers, report.state);
    ExitCode::SUCCESS
}

/// A line of /proc/self/status, in bytes.
fn resident(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(name));
    line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) * 1024
}

fn cascade_line() -> Option<String> {
    let run = Command::new(std::env::current_exe().ok()?).arg("--cascade").output().ok()?;
    let text = String::from_utf8(run.stdout).ok()?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [peak, buffers, state] = numbers[..] else { return None };
    Some(format!(
        "cascade, 32 layers, 32k tokens, f16, budget 1024: peak resident {:.1} MB; one full layer + the final total {:.1} MB, \
         state and scratch {:.1} MB\n",
        peak / 1e6,
        buffers / 1e6,
        state / 1e6
    ))
}

fn machine(backend: Backend) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("unknown")
        .trim_matches([':', '\t', ' ']);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let date = Command::new("date")
        .arg("+%F")
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    format!("{}; {model}, {cores} cores; {} kernels\n", date.unwrap_or_default(), backend.name())
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.cascade {
        return cascade();
    }
    let limits = Limits::new();
    let has_torch =
        Command::new(&args.python).args(["-c", "import torch"]).output().is_ok_and(|o| o.status.success());
    if !has_torch {
        eprintln!("{} has no PyTorch: its column stays empty. Name one that has with --python.", args.python);
    }
    let bar = ProgressBar::new(3 * args.tokens.len() as u64 + 2).with_style(
        ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} ({elapsed})")
            .unwrap_or(ProgressStyle::default_bar()),
    );
    let mut cases = vec![];
    for &tokens in &args.tokens {
        for dtype in 0..3 {
            bar.set_message(format!("{} at {tokens} tokens", ["f16", "bf16", "f32"][dtype]));
            cases.extend(match dtype {
                0 => measure::<f16>(&args, &limits, SHAPES[0], tokens),
                1 => measure::<bf16>(&args, &limits, SHAPES[0], tokens),
                _ => measure::<f32>(&args, &limits, SHAPES[0], tokens),
            });
            bar.inc(1);
        }
    }
    bar.set_message("8/8 heads of 64");
    cases.extend(measure::<f16>(
        &args,
        &limits,
        SHAPES[1],
        32768.min(args.tokens.iter().copied().max().unwrap_or(0)),
    ));
    bar.inc(1);
    bar.set_message("the cascade");
    let cascade = cascade_line().unwrap_or_default();
    bar.finish_and_clear();

    let text = format!(
        "{}times in ms, the fastest of {} runs; window {WINDOW}, budget 1024 per head; torch: the same scoring in PyTorch\n\n{}\n{}\n{cascade}",
        machine(args.backend()),
        args.rounds,
        table(&cases),
        verdicts(&cases),
    );
    print!("{text}");
    match args.record {
        Some(path) => match std::fs::File::create(&path).and_then(|mut f| f.write_all(text.as_bytes())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("cannot write {}: {e}", path.display());
                ExitCode::FAILURE
            }
        },
        None => ExitCode::SUCCESS,
    }
}
