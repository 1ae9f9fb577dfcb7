//! `make eval`: what eviction loses on a published model.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use eval::methods::Method;
use eval::published::books::{Book, Half};
use eval::published::gguf::Gguf;
use eval::published::run::{self, KeptCounts, Line};
use eval::published::tasks::Facts;
use eval::published::{cost, methods, picture, ruler, table, tasks};
use eval::report::between_markers;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use tokenizers::Tokenizer;

#[derive(Parser)]
#[command(about = "What KV-cache eviction methods lose on SmolLM2-135M-Instruct, at equal bytes")]
struct Args {
    /// Which half of each book: settings are chosen on one, the table is made on the other
    #[arg(long, value_enum, default_value_t = Part::Reporting)]
    half: Part,
    /// Of the texts; 1 for choosing and 2 for reporting, if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Methods by name; all, if none is named
    #[arg(long, value_delimiter = ';')]
    methods: Vec<String>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Task::GoesOn, Task::Facts])]
    tasks: Vec<Task>,
    /// Tokens of a prompt
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 2048])]
    lengths: Vec<usize>,
    /// Shares of the tokens to keep, the window included
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 0.2, 0.1, 0.05])]
    budgets: Vec<f64>,
    /// Texts of each task and length
    #[arg(long, default_value_t = 24)]
    texts: usize,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
    threads: usize,
    /// Three short texts of each task, nothing written: a look at everything in a few minutes
    #[arg(long)]
    quick: bool,
    /// Only what scoring takes beside prefill, one text of each length
    #[arg(long)]
    cost: bool,
    /// Only the tables, of what has been run
    #[arg(long)]
    table: bool,
    /// Only how many entries each head keeps of one text at a fifth: into kept.json, for a picture
    #[arg(long)]
    kept: bool,
    /// Put the pictures of what has been run into this folder
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// Gemma takes `--tasks goes-on,code` only, since the facts are asked in SmolLM2's format
    #[arg(long, value_enum, default_value_t = Published::Smollm2)]
    model: Published,
    /// What `eval/fetch.sh` brought
    #[arg(long, default_value = "target/published")]
    data: PathBuf,
    /// Results go here, a line a text, and are not made again
    #[arg(long, default_value = "eval/results/published")]
    out: PathBuf,
    /// Put the tables between the marker comments of this file
    #[arg(long)]
    readme: Option<PathBuf>,
}

const NEEDLES: &str = "needles.jsonl";
const KEPT: &str = "kept.json";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Choosing,
    Reporting,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Published {
    /// SmolLM2-135M-Instruct
    Smollm2,
    /// gemma-3-270m, which `eval/fetch.sh gemma` brings
    Gemma,
}

impl Published {
    fn file(self) -> &'static str {
        match self {
            Self::Smollm2 => "model.gguf",
            Self::Gemma => "gemma.gguf",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Task {
    GoesOn,
    Code,
    Facts,
    InTurn,
    Cloze,
    Values,
    Chains,
    Summary,
    Question,
    Words,
    /// The facts asked later alone, for the picture of depths: into a file of its own, needles.jsonl
    Needles,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Self::GoesOn => "goes on",
            Self::Code => "code",
            Self::Facts => "facts",
            Self::InTurn => "in turn",
            Self::Cloze => "cloze",
            Self::Values => "values",
            Self::Chains => "chains",
            Self::Summary => "summary",
            Self::Question => "question",
            Self::Words => "words",
            Self::Needles => "needles",
        }
    }
}

/// Results so far. A line that was cut off when a run was stopped is left out.
fn read(path: &Path) -> Result<Vec<Line>> {
    if !path.exists() {
        return Ok(vec![]);
    }
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.texts, args.lengths) = (args.texts.min(3), vec![1024]);
    }
    let (half, name, seed) = match args.half {
        Part::Choosing => (Half::Choosing, "choosing", 1),
        Part::Reporting => (Half::Reporting, "reporting", 2),
    };
    let seed = args.seed.unwrap_or(seed);
    let suffix = if args.model == Published::Gemma { "-gemma" } else { "" };
    let needles = args.tasks == [Task::Needles];
    if !needles && args.tasks.contains(&Task::Needles) {
        bail!("needles go into a file of their own, without other tasks");
    }
    let file = if needles { NEEDLES.into() } else { format!("{name}{suffix}.jsonl") };
    let path = args.out.join(file);
    let mut all = methods::all();
    if half == Half::Choosing {
        all.extend(methods::ablations());
    }
    for name in &args.methods {
        if !all.iter().any(|m| m.name == name) {
            bail!("there is no {name}; see src/published/methods.rs");
        }
    }
    let chosen: Vec<Method> = all
        .iter()
        .filter(|m| args.methods.is_empty() || args.methods.iter().any(|n| n == m.name))
        .copied()
        .collect();
    if args.cost {
        return cost(&args, half, seed, &chosen);
    }
    if args.kept {
        return kept(&args, half, seed, &all);
    }
    if args.model == Published::Gemma && args.tasks.iter().any(|t| !matches!(t, Task::GoesOn | Task::Code)) {
        bail!("gemma-3-270m takes --tasks goes-on,code only");
    }
    let mut lines = if args.quick { vec![] } else { read(&path)? };
    if !args.table {
        lines.extend(measure(&args, half, seed, &chosen, &lines, &path)?);
    }
    if needles {
        return Ok(());
    }
    lines.retain(|l| l.seed == seed);
    let names: Vec<&str> = chosen.iter().map(|m| m.name).collect();
    let page = table::markdown(&lines, &names);
    println!("{page}");
    if let Some(folder) = &args.pictures {
        if args.model == Published::Gemma || half == Half::Choosing {
            bail!("the pictures are of SmolLM2's reported half");
        }
        pictures(&args, seed, &lines, folder)?;
    }
    if let Some(readme) = &args.readme {
        let marker = match (args.model, half) {
            (Published::Gemma, Half::Choosing) => "choosing-gemma",
            (Published::Gemma, Half::Reporting) => "gemma",
            (Published::Smollm2, Half::Choosing) => "choosing",
            (Published::Smollm2, Half::Reporting) => "published",
        };
        let text = fs::read_to_string(readme)?;
        let page = format!("{page}Seed {seed}, the {name} half of each book.\n");
        let new = between_markers(&text, marker, &page)
            .with_context(|| format!("{} lacks the marker comments", readme.display()))?;
        fs::write(readme, new)?;
    }
    Ok(())
}

fn cost(args: &Args, half: Half, seed: u64, methods: &[Method]) -> Result<()> {
    let mut gguf = Gguf::open(&args.data.join(args.model.file()))?;
    let (model, tokenizer) = (gguf.model()?, gguf.tokenizer()?);
    let books = Book::all(&args.data.join("text"))?;
    for &length in &args.lengths {
        let text = tasks::goes_on(&books, &tokenizer, seed, half, length, 0)?;
        print!("{}", cost::markdown(&model, &text.prompt, methods)?);
    }
    Ok(())
}

fn kept(args: &Args, half: Half, seed: u64, all: &[Method]) -> Result<()> {
    let mut gguf = Gguf::open(&args.data.join(args.model.file()))?;
    let (model, tokenizer) = (gguf.model()?, gguf.tokenizer()?);
    let books = Book::all(&args.data.join("text"))?;
    let text = tasks::goes_on(&books, &tokenizer, seed, half, 1024, 0)?;
    let methods: Vec<Method> = all.iter().filter(|m| picture::KEPT.contains(&m.name)).copied().collect();
    let counts = KeptCounts { seed, ..run::kept_counts(&model, &text, &methods, 0.2)? };
    fs::create_dir_all(&args.out)?;
    Ok(fs::write(args.out.join(KEPT), serde_json::to_string(&counts)? + "\n")?)
}

/// A picture whose results are not there is left as it is.
fn pictures(args: &Args, seed: u64, lines: &[Line], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("accuracy.svg"), picture::accuracy(lines))?;
    let own = read(&args.out.join(NEEDLES))?.into_iter().filter(|l| l.seed == seed);
    let with_depths: Vec<Line> = lines.iter().cloned().chain(own).collect();
    match picture::needles(&with_depths) {
        Some(svg) => fs::write(folder.join("needles.svg"), svg)?,
        None => eprintln!("needles.svg needs --tasks needles"),
    }
    let counts = fs::read_to_string(args.out.join(KEPT)).ok();
    let counts = counts.map(|t| serde_json::from_str::<KeptCounts>(&t)).transpose()?;
    match counts.as_ref().and_then(picture::who_keeps_what) {
        Some(svg) => fs::write(folder.join("who-keeps-what.svg"), svg)?,
        None => eprintln!("who-keeps-what.svg needs --kept"),
    }
    Ok(())
}

/// Runs what no line has yet, a line a text.
fn measure(
    args: &Args,
    half: Half,
    seed: u64,
    methods: &[Method],
    known: &[Line],
    path: &PathBuf,
) -> Result<Vec<Line>> {
    let mut gguf = Gguf::open(&args.data.join(args.model.file()))?;
    let (model, tokenizer, bos) = (gguf.model()?, gguf.tokenizer()?, gguf.bos()?);
    let books = Book::all(&args.data.join("text"))?;
    let code = if args.tasks.contains(&Task::Code) { Book::code(&args.data.join("text"))? } else { vec![] };
    // Text by text over all tasks and lengths, so that a run that is stopped has some of each.
    let mut jobs = vec![];
    for text in 0..args.texts {
        for &length in &args.lengths {
            for &task in &args.tasks {
                let done: BTreeSet<&str> = known
                    .iter()
                    .filter(|l| (l.seed, l.length, l.text) == (seed, length, text) && l.task == task.name())
                    .flat_map(|l| {
                        // A text whose facts the full cache does not know has no rows, whatever the method.
                        let none = l.rows.is_empty();
                        let all = methods.iter().filter(move |_| none).map(|m| m.name);
                        l.rows.iter().map(|r| r.method.as_str()).chain(all)
                    })
                    .collect();
                let left: Vec<Method> = methods.iter().filter(|m| !done.contains(m.name)).copied().collect();
                if !left.is_empty() {
                    jobs.push((text, length, task, left));
                }
            }
        }
    }
    let file = if args.quick {
        None
    } else {
        fs::create_dir_all(&args.out)?;
        Some(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?))
    };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} texts, {elapsed} gone, {eta} left")?;
    let bar = ProgressBar::new(jobs.len() as u64).with_style(style);
    bar.tick();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    pool.install(|| {
        // In order, unlike par_iter: a run that is stopped has the first texts of all tasks.
        jobs.iter()
            .par_bridge()
            .map(|(text, length, task, methods)| {
                let (text, length) = (*text, *length);
                let books = if *task == Task::Code { &code } else { &books };
                let goes_on = || tasks::goes_on(books, &tokenizer, seed, half, length, text);
                let told = |of| run::told(&model, &of, methods, &args.budgets);
                let found = |make: MakeFacts| {
                    run::facts(
                        &model,
                        &make(books, &tokenizer, seed, half, length, text)?,
                        methods,
                        &args.budgets,
                    )
                };
                let line = match task {
                    Task::GoesOn | Task::Code => {
                        let mut of = goes_on()?;
                        if let Some(bos) = bos {
                            of.prompt[0] = bos;
                        }
                        run::goes_on(&model, &of, methods, &args.budgets)?
                    }
                    Task::Facts => found(tasks::facts)?,
                    Task::Cloze => found(tasks::cloze)?,
                    Task::Values => found(ruler::values)?,
                    Task::Chains => found(ruler::chains)?,
                    Task::Needles => {
                        let of = tasks::facts(books, &tokenizer, seed, half, length, text)?;
                        run::needles(&model, &of, methods, &args.budgets)?
                    }
                    Task::InTurn => {
                        let of = tasks::facts(books, &tokenizer, seed, half, length, text)?;
                        run::in_turn(&model, &of, methods, &args.budgets)?
                    }
                    Task::Summary => told(tasks::summary(&tokenizer, goes_on()?)?)?,
                    Task::Question => told(tasks::question(&tokenizer, goes_on()?)?)?,
                    Task::Words => told(ruler::words(books, &tokenizer, seed, half, length, text)?)?,
                };
                let line = Line { task: task.name().into(), length, text, seed, ..line };
                if let Some(file) = &file {
                    append(file, &line)?;
                }
                bar.inc(1);
                if bar.is_hidden() {
                    eprintln!("{} of {} texts, {:.0?}", bar.position(), jobs.len(), bar.elapsed());
                }
                Ok(line)
            })
            .collect::<Result<Vec<Line>>>()
    })
}

type MakeFacts = fn(&[Book], &Tokenizer, u64, Half, usize, usize) -> Result<Facts>;

/// One write a line, so that a run that is stopped leaves whole lines.
fn append(file: &Mutex<File>, line: &Line) -> Result<()> {
    let text = serde_json::to_string(line)? + "\n";
    let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
    Ok(file.write_all(text.as_bytes())?)
}
