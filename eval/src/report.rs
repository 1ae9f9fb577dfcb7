//! Tables of a run: Markdown for people, CSV for programs.

use std::fmt::Write;

use crate::measure::Outcome;
use crate::methods::{BASE, DEFAULT, Family, Method};
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

/// A Markdown table whose columns line up: words to the left, numbers to the right.
pub fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().map(|r| &r[c]).chain([&head[c]]);
        cells.map(|s| s.chars().count()).max().unwrap_or(0).max(3)
    };
    let is_words = |c: usize| c == 0 || rows.iter().any(|r| r[c].starts_with(char::is_alphabetic));
    let columns: Vec<(usize, bool)> = (0..head.len()).map(|c| (width(c), is_words(c))).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&columns).map(|(s, &(w, words))| match words {
            true => format!(" {s:<w$} "),
            false => format!(" {s:>w$} "),
        });
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule = columns.iter().map(|&(w, words)| match words {
        true => "-".repeat(w + 2),
        false => "-".repeat(w + 1) + ":",
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

    /// LAVa's presets, the setting that exploration found, and the peers.
    fn main_methods(&self) -> Vec<usize> {
        let mut methods = self.family(&[Family::Lava]);
        methods.extend(self.method(DEFAULT).filter(|m| !methods.contains(m)));
        methods.extend(self.family(&[Family::Peer]));
        methods
    }

    fn method(&self, name: &str) -> Option<usize> {
        self.methods.iter().position(|m| m.name == name)
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

    /// Paired differences `a − b` by ratios with their intervals; bold where the interval does not contain zero.
    fn paired(&self, title: &str, group: Group, rows: &[(&str, usize, usize)]) -> String {
        let of = |m, r| Estimate::of(self.group(group), m, r, |o| Measure::Accuracy.of(o));
        let rows: Vec<_> = rows
            .iter()
            .map(|&(name, a, b)| {
                let cell = |r| match (of(a, r), of(b, r)) {
                    (Some(a), Some(b)) => {
                        let d = a.minus(&b);
                        let (low, high) = d.interval();
                        let bold = if low > 0.0 || high < 0.0 { "**" } else { "" };
                        format!("{bold}{:+.1}{bold} [{low:+.1}, {high:+.1}]", d.mean)
                    }
                    _ => "–".to_string(),
                };
                std::iter::once(name.to_string()).chain((0..self.ratios.len()).map(cell)).collect()
            })
            .collect();
        table(&self.head(title), &rows)
    }

    /// Accuracy of methods minus LAVa's.
    fn minus_base(&self, group: Group, methods: &[usize]) -> String {
        let Some(base) = self.method(BASE) else { return String::new() };
        let rows: Vec<_> =
            methods.iter().filter(|&&m| m != base).map(|&m| (self.methods[m].name, m, base)).collect();
        self.paired("minus LAVa", group, &rows)
    }

    /// Accuracy of the default minus each method's whose budgets do not depend on the prompt.
    fn against_static(&self, group: Group) -> String {
        let Some(default) = self.method(DEFAULT) else { return String::new() };
        let rows: Vec<_> = (0..self.methods.len())
            .filter(|&m| self.methods[m].is_static())
            .map(|m| (self.methods[m].name, default, m))
            .collect();
        self.paired(&format!("{DEFAULT}, minus"), group, &rows)
    }

    /// Methods by lengths, at one ratio.
    fn by_length(&self, group: Group, ratio: usize, methods: &[usize]) -> String {
        let lengths = self.lengths();
        let rows: Vec<_> = methods
            .iter()
            .map(|&m| {
                let cell = |&l: &usize| {
                    let cells = self.group(group).filter(move |c| c.length == l);
                    Estimate::of(cells, m, ratio, |o| Measure::Accuracy.of(o))
                        .map_or("–".into(), |e| format!("{:.1} ± {:.1}", e.mean, e.half_width()))
                };
                std::iter::once(self.methods[m].name.to_string()).chain(lengths.iter().map(cell)).collect()
            })
            .collect();
        let title = format!("{} kept, tokens", self.percent(ratio));
        let head: Vec<String> = std::iter::once(title).chain(lengths.iter().map(usize::to_string)).collect();
        table(&head, &rows)
    }

    /// Those of the run's ratios that are among `wanted`.
    fn those_of(&self, wanted: &[f64]) -> Vec<usize> {
        (0..self.ratios.len()).filter(|&r| wanted.contains(&self.ratios[r])).collect()
    }

    fn lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = self.cells.iter().map(|c| c.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    fn full_cache(&self) -> String {
        let lengths = self.lengths();
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
        let lengths = self.lengths();
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
                    (0..self.n_layers())
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

    /// What each method is.
    fn methods(&self) -> String {
        let head = ["method", "score", "budgets", "window", "sinks", "published"].map(String::from);
        let rows: Vec<_> = self
            .methods
            .iter()
            .map(|m| {
                vec![
                    m.name.to_string(),
                    m.score_in_words(),
                    m.budgets_in_words(),
                    m.scorer.window.to_string(),
                    m.select.n_sink.to_string(),
                    m.source.to_string(),
                ]
            })
            .collect();
        table(&head, &rows)
    }

    /// Everything, as one Markdown page.
    pub fn page(&self) -> String {
        let mut page = String::from("# What eviction loses\n\n");
        let main = self.main_methods();
        let others = [
            ("Ablations of LAVa", self.family(&[Family::Ablation])),
            ("Beyond the paper", self.family(&[Family::Beyond])),
        ];
        let _ = writeln!(
            page,
            "Written by `make eval-small`. Seed {}, {} texts a task and length, {}. Intervals: 95%, bootstrap over texts; differences are \
             paired by text. Bold: the interval has no zero in it.\n",
            self.seed, self.n_texts, self.machine
        );
        let _ = writeln!(
            page,
            "## Methods\n\nAll keep the same number of tokens, their window and sinks among them, and are applied once, after prefill, \
             with their published constants. Questions of ten facts take 30 tokens: a smaller window does not see them all. LKV was \
             trained on texts of these kinds; the others have seen none.\n\n{}",
            self.methods()
        );
        let _ = writeln!(
            page,
            "## With the whole cache\n\nRight answers or next tokens, %.\n\n{}",
            self.full_cache()
        );
        let _ = writeln!(page, "## Bytes\n\nKiB of K and V in f16, achieved.\n\n{}", self.bytes());
        for group in self.groups() {
            let name = group.name();
            let _ = writeln!(page, "## {name}\n\n{}\n", group.meaning());
            for measure in Measure::ALL {
                let _ = writeln!(page, "{}:\n\n{}", measure.title(), self.means(group, measure, &main));
            }
            let _ = writeln!(page, "The same, accuracy minus LAVa's:\n\n{}", self.minus_base(group, &main));
            for ratio in self.those_of(&[0.2, 0.05]) {
                let _ = writeln!(page, "{}", self.by_length(group, ratio, &main));
            }
            for (title, methods) in &others {
                if !methods.is_empty() {
                    let _ = writeln!(
                        page,
                        "### {name}: {title}\n\nAccuracy minus LAVa's:\n\n{}",
                        self.minus_base(group, methods)
                    );
                    for measure in [Measure::Accuracy, Measure::Error] {
                        let _ =
                            writeln!(page, "{}:\n\n{}", measure.title(), self.means(group, measure, methods));
                    }
                }
            }
            let _ = writeln!(
                page,
                "### {name}: is dynamic worth it\n\nThe default's accuracy minus that of each method whose budgets are the same for every \
                 prompt:\n\n{}",
                self.against_static(group)
            );
            let _ = writeln!(
                page,
                "### {name}: where the budget goes\n\nShares of layers 0 to {}, %.\n\n{}",
                self.n_layers() - 1,
                self.layer_shares(group)
            );
        }
        page
    }

    fn n_layers(&self) -> usize {
        self.cells[0].results[0].full.layer_error.len()
    }

    /// One line per task, length, method and ratio; `_pm` is half the 95% interval.
    pub fn csv(&self) -> String {
        let mut csv = String::from(
            "task,length,kept,method,accuracy,accuracy_pm,minus_lava,minus_lava_low,minus_lava_high,error,error_pm,kl,nll,bytes\n",
        );
        let base = self.method(BASE);
        for cell in &self.cells {
            for (m, method) in self.methods.iter().enumerate() {
                for r in 0..self.ratios.len() {
                    let of = |m, pick: fn(&Outcome) -> f64| Estimate::of([cell], m, r, pick);
                    let (Some(accuracy), Some(error)) = (of(m, |o| 100.0 * o.accuracy), of(m, |o| o.error))
                    else {
                        continue;
                    };
                    let mean = |pick| of(m, pick).map_or(0.0, |e| e.mean);
                    let difference =
                        base.and_then(|b| of(b, |o| 100.0 * o.accuracy)).map(|b| accuracy.minus(&b));
                    let difference = difference.map_or(",,".to_string(), |d| {
                        format!("{:.1},{:.1},{:.1}", d.mean, d.interval().0, d.interval().1)
                    });
                    let _ = writeln!(
                        csv,
                        "{},{},{},\"{}\",{:.1},{:.1},{difference},{:.3},{:.3},{:.3},{:.3},{:.0}",
                        cell.task.name(),
                        cell.length,
                        self.ratios[r],
                        method.name,
                        accuracy.mean,
                        accuracy.half_width(),
                        error.mean,
                        error.half_width(),
                        mean(|o| o.kl),
                        mean(|o| o.nll),
                        mean(|o| o.bytes as f64)
                    );
                }
            }
        }
        csv
    }

    /// For the README: the main methods' accuracy at three budgets of each group.
    pub fn readme(&self) -> String {
        let shown = self.those_of(&[0.2, 0.1, 0.05]);
        let mut head = vec!["right, %".to_string()];
        let groups: Vec<Group> = self.groups().collect();
        for group in &groups {
            head.extend(shown.iter().map(|&r| format!("{}, {}", group.name(), self.percent(r))));
        }
        let methods = self.main_methods();
        let rows: Vec<_> = methods
            .iter()
            .map(|&m| {
                let mut row = vec![self.methods[m].name.to_string()];
                for &group in &groups {
                    row.extend(shown.iter().map(|&r| {
                        Estimate::of(self.group(group), m, r, |o| Measure::Accuracy.of(o))
                            .map_or("–".into(), |e| format!("{:.0} ± {:.0}", e.mean, e.half_width()))
                    }));
                }
                row
            })
            .collect();
        format!("{}\nSeed {}, {} texts a task and length.\n", table(&head, &rows), self.seed, self.n_texts)
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

/// The text of a file with everything between the two marker lines replaced.
pub fn between_markers(text: &str, name: &str, new: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin"), format!("<!-- {name}: end"));
    let from = text.find(&begin)?;
    let from = from + text[from..].find('\n')? + 1;
    let to = from + text[from..].find(&end)?;
    Some([&text[..from], new, &text[to..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |a: &str, b: &str| vec![a.to_string(), b.to_string()];
        let text = table(&row("name", "50%"), &[row("LAVa", "99.6 ± 0.5"), row("g", "–")]);
        let widths: Vec<usize> = text.lines().map(|l| l.chars().count()).collect();
        assert_eq!(widths, [21; 4]);
    }

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let text = "a\n<!-- eval: begin, by make eval -->\nold\n<!-- eval: end -->\nb\n";
        let new = between_markers(text, "eval", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- eval: begin, by make eval -->\nnew\n<!-- eval: end -->\nb\n");
        assert_eq!(between_markers("no markers", "eval", "new"), None);
    }
}
