//! Tables of a run: Markdown for people, CSV for programs.

use std::fmt::Write;

use crate::measure::Outcome;
use crate::methods::{BASE, Family, Method};
use crate::statistics::{Cell, Estimate};
use crate::tasks::Group;

/// A finished run.
pub struct Run {
    pub seed: u64,
    pub n_texts: usize,
    pub methods: Vec<Method>,
    pub ratios: Vec<f64>,
    pub cells: Vec<Cell>,
    /// Where it ran, in words.
    pub machine: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Measure {
    Accuracy,
    Error,
    Kl,
    Nll,
}

impl Measure {
    const ALL: [Self; 4] = [Self::Accuracy, Self::Error, Self::Kl, Self::Nll];

    fn of(self, o: &Outcome) -> f64 {
        match self {
            Self::Accuracy => 100.0 * o.accuracy,
            Self::Error => o.error,
            Self::Kl => o.kl,
            Self::Nll => o.nll,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Accuracy => "right answers or next tokens, %",
            Self::Error => "relative error of the attention output",
            Self::Kl => "KL divergence of the next token from the full cache's, nats",
            Self::Nll => "growth of the negative log-likelihood, nats",
        }
    }

    fn decimals(self) -> usize {
        if self == Self::Accuracy { 1 } else { 3 }
    }
}

/// A Markdown table whose columns line up: the first to the left, numbers to the right.
pub fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().map(|r| &r[c]).chain([&head[c]]);
        cells.map(|s| s.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (s, &w))| match c {
            0 => format!(" {s:<w$} "),
            _ => format!(" {s:>w$} "),
        });
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule = widths.iter().enumerate().map(|(c, w)| match c {
        0 => "-".repeat(w + 2),
        _ => "-".repeat(w + 1) + ":",
    });
    let rule = format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    line(head) + &rule + &rows.iter().map(|r| line(r)).collect::<String>()
}

impl Run {
    pub fn group(&self, group: Group) -> impl Iterator<Item = &Cell> + Clone {
        self.cells.iter().filter(move |c| c.task.group() == group)
    }

    fn groups(&self) -> impl Iterator<Item = Group> {
        Group::ALL.into_iter().filter(|&g| self.group(g).next().is_some())
    }

    pub fn percent(&self, ratio: usize) -> String {
        format!("{}%", (1000.0 * self.ratios[ratio]).round() / 10.0)
    }

    fn family(&self, families: &[Family]) -> Vec<usize> {
        (0..self.methods.len()).filter(|&m| families.contains(&self.methods[m].family)).collect()
    }

    fn base(&self) -> Option<usize> {
        self.methods.iter().position(|m| m.name == BASE)
    }

    fn head(&self, first: &str) -> Vec<String> {
        std::iter::once(first.to_string()).chain((0..self.ratios.len()).map(|r| self.percent(r))).collect()
    }

    /// Methods by ratios, `mean ± half interval`.
    fn means(&self, group: Group, measure: Measure, methods: &[usize]) -> String {
        let decimals = measure.decimals();
        let rows: Vec<_> = methods
            .iter()
            .map(|&m| {
                let cell = |r| match Estimate::of(self.group(group), m, r, |o| measure.of(o)) {
                    Some(e) => format!("{:.decimals$} ± {:.decimals$}", e.mean, e.half_width()),
                    None => "–".to_string(),
                };
                std::iter::once(self.methods[m].name.to_string())
                    .chain((0..self.ratios.len()).map(cell))
                    .collect()
            })
            .collect();
        table(&self.head("kept of the prefix"), &rows)
    }

    /// Methods by ratios, the paired difference from LAVa with its interval; bold where the interval has no zero in it.
    fn differences(&self, group: Group, measure: Measure, methods: &[usize]) -> String {
        let Some(base) = self.base() else { return String::new() };
        let decimals = measure.decimals();
        let rows: Vec<_> = methods
            .iter()
            .filter(|&&m| m != base)
            .map(|&m| {
                let of = |m, r| Estimate::of(self.group(group), m, r, |o| measure.of(o));
                let cell = |r| match (of(m, r), of(base, r)) {
                    (Some(e), Some(b)) => {
                        let d = e.minus(&b);
                        let (low, high) = d.interval();
                        let bold = if low > 0.0 || high < 0.0 { "**" } else { "" };
                        format!("{bold}{:+.decimals$}{bold} [{low:+.decimals$}, {high:+.decimals$}]", d.mean)
                    }
                    _ => "–".to_string(),
                };
                std::iter::once(self.methods[m].name.to_string())
                    .chain((0..self.ratios.len()).map(cell))
                    .collect()
            })
            .collect();
        table(&self.head("minus LAVa"), &rows)
    }

    fn full_cache(&self) -> String {
        let mut lengths: Vec<usize> = self.cells.iter().map(|c| c.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut tasks: Vec<_> = self.cells.iter().map(|c| c.task).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let head: Vec<String> = std::iter::once("whole cache".into())
            .chain(lengths.iter().map(|l| format!("{l} tokens")))
            .collect();
        let rows: Vec<_> = tasks
            .iter()
            .map(|&t| {
                let cell = |&l: &usize| {
                    let cell = self.cells.iter().filter(|c| c.task == t && c.length == l);
                    Estimate::over(cell, |r| 100.0 * r.full.accuracy)
                        .map_or("–".into(), |e| format!("{:.1} ± {:.1}", e.mean, e.half_width()))
                };
                std::iter::once(t.name().to_string()).chain(lengths.iter().map(cell)).collect()
            })
            .collect();
        table(&head, &rows)
    }

    fn bytes(&self) -> String {
        let mut lengths: Vec<usize> = self.cells.iter().map(|c| c.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut head = self.head("tokens");
        head.insert(1, "whole cache".into());
        let rows: Vec<_> = lengths
            .iter()
            .map(|&l| {
                let results = || self.cells.iter().filter(move |c| c.length == l).flat_map(|c| &c.results);
                let range = |bytes: Vec<usize>| {
                    let kib = |b: Option<&usize>| *b.unwrap_or(&0) as f64 / 1024.0;
                    let (min, max) = (kib(bytes.iter().min()), kib(bytes.iter().max()));
                    if min == max { format!("{min:.1}") } else { format!("{min:.1} to {max:.1}") }
                };
                // Prompts of one length differ by what is decoded after them: compare within a text.
                let spread = results()
                    .flat_map(|r| {
                        (0..self.ratios.len()).map(|ratio| {
                            let b: Vec<_> = r.of.iter().flat_map(|m| &m[ratio]).map(|o| o.bytes).collect();
                            b.iter().max().unwrap_or(&0) - b.iter().min().unwrap_or(&0)
                        })
                    })
                    .max()
                    .unwrap_or(0);
                let at = |ratio: usize| {
                    range(
                        results()
                            .flat_map(|r| r.of.iter().flat_map(move |m| &m[ratio]))
                            .map(|o| o.bytes)
                            .collect(),
                    )
                };
                let mut row = vec![l.to_string(), range(results().map(|r| r.full.bytes).collect())];
                row.extend((0..self.ratios.len()).map(at));
                row.push(spread.to_string());
                row
            })
            .collect();
        head.push("largest difference between methods, bytes".into());
        table(&head, &rows)
    }

    /// Each layer's share of the kept prefix entries.
    fn layer_shares(&self, group: Group) -> String {
        let rows: Vec<_> = (0..self.methods.len())
            .map(|m| {
                let cell = |r| {
                    let share =
                        |l: usize| Estimate::of(self.group(group), m, r, |o| 100.0 * o.layer_share[l]);
                    (0..4)
                        .map(|l| share(l).map_or("–".into(), |e| format!("{:.0}", e.mean)))
                        .collect::<Vec<_>>()
                        .join(" ")
                };
                std::iter::once(self.methods[m].name.to_string())
                    .chain((0..self.ratios.len()).map(cell))
                    .collect()
            })
            .collect();
        table(&self.head("layers' shares, %"), &rows)
    }

    /// Everything, as one Markdown page.
    pub fn page(&self) -> String {
        let mut page = String::from("# What eviction loses\n\n");
        let main = self.family(&[Family::Lava, Family::Peer]);
        let others = [
            ("Ablations of LAVa", self.family(&[Family::Ablation])),
            ("Beyond the paper", self.family(&[Family::Beyond])),
        ];
        let _ = writeln!(
            page,
            "Written by `make eval`. Seed {}, {} texts a task and length, {}. Intervals: 95%, bootstrap over texts; differences are \
             paired by text. Bold: the interval has no zero in it.\n",
            self.seed, self.n_texts, self.machine
        );
        let _ = writeln!(
            page,
            "## With the whole cache\n\nRight answers or next tokens, %.\n\n{}",
            self.full_cache()
        );
        let _ = writeln!(page, "## Bytes\n\nKiB of K and V in f16, achieved.\n\n{}", self.bytes());
        for group in self.groups() {
            let _ = writeln!(page, "## {}\n", group.name());
            for measure in Measure::ALL {
                let _ = writeln!(
                    page,
                    "### {}: {}\n\n{}",
                    group.name(),
                    measure.title(),
                    self.means(group, measure, &main)
                );
            }
            let _ = writeln!(
                page,
                "Accuracy minus LAVa's:\n\n{}",
                self.differences(group, Measure::Accuracy, &main)
            );
            for (title, methods) in &others {
                if !methods.is_empty() {
                    let _ = writeln!(
                        page,
                        "### {}: {title}\n\nAccuracy minus LAVa's:\n\n{}",
                        group.name(),
                        self.differences(group, Measure::Accuracy, methods)
                    );
                    let _ = writeln!(
                        page,
                        "{}:\n\n{}",
                        Measure::Accuracy.title(),
                        self.means(group, Measure::Accuracy, methods)
                    );
                    let _ = writeln!(
                        page,
                        "{}:\n\n{}",
                        Measure::Error.title(),
                        self.means(group, Measure::Error, methods)
                    );
                }
            }
            let _ =
                writeln!(page, "### {}: where the budget goes\n\n{}", group.name(), self.layer_shares(group));
        }
        page
    }

    /// One line a task, length, method and ratio.
    pub fn csv(&self) -> String {
        let mut csv = String::from("task,length,kept,method,texts");
        for name in ["accuracy", "error", "kl", "nll"] {
            let _ = write!(csv, ",{name},{name}_low,{name}_high");
        }
        csv += ",accuracy_minus_lava,low,high,bytes\n";
        for cell in &self.cells {
            for (m, method) in self.methods.iter().enumerate() {
                for r in 0..self.ratios.len() {
                    let of = |m, measure: Measure| Estimate::of([cell], m, r, |o| measure.of(o));
                    let Some(accuracy) = of(m, Measure::Accuracy) else { continue };
                    let _ = write!(
                        csv,
                        "{},{},{},\"{}\",{}",
                        cell.task.name(),
                        cell.length,
                        self.ratios[r],
                        method.name,
                        cell.results.len()
                    );
                    let mut numbers: Vec<Estimate> = Measure::ALL.iter().filter_map(|&x| of(m, x)).collect();
                    if let Some(base) = self.base().and_then(|b| of(b, Measure::Accuracy)) {
                        numbers.push(accuracy.minus(&base));
                    }
                    for e in numbers {
                        let (low, high) = e.interval();
                        let _ = write!(csv, ",{:.4},{low:.4},{high:.4}", e.mean);
                    }
                    let bytes = Estimate::of([cell], m, r, |o| o.bytes as f64).map_or(0.0, |e| e.mean);
                    let _ = writeln!(csv, ",{bytes:.0}");
                }
            }
        }
        csv
    }

    /// The short form for the terminal.
    pub fn summary(&self) -> String {
        let all: Vec<usize> = (0..self.methods.len()).collect();
        let mut text = format!("whole cache, %\n{}\n", self.full_cache());
        for group in self.groups() {
            let _ = writeln!(
                text,
                "{}: {}\n{}",
                group.name(),
                Measure::Accuracy.title(),
                self.means(group, Measure::Accuracy, &all)
            );
        }
        text
    }
}

/// The text of a file with what stands between the two marker lines replaced.
pub fn between_markers(text: &str, name: &str, new: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin"), format!("<!-- {name}: end"));
    let from = text.find(&begin)?;
    let from = from + text[from..].find('\n')? + 1;
    let to = from + text[from..].find(&end)?;
    Some([&text[..from], new, &text[to..]].concat())
}
