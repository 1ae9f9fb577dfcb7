//! Lines → tables. A text counts once; each replicate of the bootstrap draws the same texts for all methods, so that ratios are
//! paired.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::run::{Line, Row};
use crate::methods::BASE;

const REPLICATES: usize = 2000;

/// A sum over a sum, with its 95% interval over draws of the texts.
pub(super) struct Ratio {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

pub(super) fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    let of = |draw: &mut dyn Iterator<Item = (f64, f64)>| {
        let (a, b) = draw.fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        (b != 0.0).then(|| a / b)
    };
    let value = of(&mut pairs.iter().copied())?;
    // The same draws wherever there are as many texts.
    let mut rng = ChaCha8Rng::seed_from_u64(pairs.len() as u64);
    let mut replicates: Vec<f64> = (0..REPLICATES)
        .filter_map(|_| of(&mut (0..pairs.len()).map(|_| pairs[rng.random_range(0..pairs.len())])))
        .collect();
    replicates.sort_by(f64::total_cmp);
    let n = replicates.len();
    Some(Ratio { value, low: replicates[n / 40], high: replicates[n - 1 - n / 40] })
}

/// What each text showed of one method and budget, by the text's number.
pub(super) type Texts<'a> = BTreeMap<usize, (&'a Line, &'a Row)>;

/// All rows of a task and length, by method and budget.
pub(super) struct Cells<'a> {
    pub rows: BTreeMap<(&'a str, u64), Texts<'a>>,
}

/// A budget as a key.
fn key(budget: f64) -> u64 {
    (budget * 1e6).round() as u64
}

impl<'a> Cells<'a> {
    pub fn new(lines: impl Iterator<Item = &'a Line>) -> Self {
        let mut rows: BTreeMap<_, Texts> = BTreeMap::new();
        for line in lines {
            for row in &line.rows {
                let cell = rows.entry((row.method.as_str(), key(row.budget))).or_default();
                cell.insert(line.text, (line, row));
            }
        }
        Self { rows }
    }

    /// Pairs over the texts that both the method and LAVa saw.
    pub fn paired(
        &self,
        method: &str,
        budget: u64,
        pick: impl Fn(&Row) -> Option<f64>,
    ) -> Option<Vec<(f64, f64)>> {
        let (ours, base) = (self.rows.get(&(method, budget))?, self.rows.get(&(BASE, budget))?);
        let pair = |(text, (_, row)): (&usize, &(&Line, &Row))| Some((pick(row)?, pick(base.get(text)?.1)?));
        Some(ours.iter().filter_map(pair).collect())
    }

    pub fn share(
        &self,
        method: &str,
        budget: u64,
        pick: impl Fn(&Line, &Row) -> Option<(usize, usize)>,
    ) -> Option<Ratio> {
        let cell = self.rows.get(&(method, budget))?;
        let pairs: Vec<_> = cell
            .values()
            .filter_map(|(line, row)| pick(line, row))
            .map(|(a, b)| (a as f64, b as f64))
            .collect();
        ratio(&pairs)
    }
}

/// Tasks by how far distributions move, and their names in the tables.
const DISTANCES: [(&str, &str); 5] = [
    ("goes on", "text that goes on"),
    ("code", "code that goes on"),
    ("summary", "a summary"),
    ("question", "a question about the text"),
    ("words", "common words of a list"),
];
/// Tasks by right answers.
const ANSWERS: [(&str, &str); 4] = [
    ("facts", "facts"),
    ("values", "several values of a key"),
    ("chains", "chains of variables"),
    ("cloze", "the next word of a sentence"),
];
/// Facts of a task that count, each text once however many lines it has.
pub(super) fn asked(lines: &[Line], length: usize, task: &str, count: fn(&Line) -> Option<usize>) -> usize {
    let mut seen = BTreeSet::new();
    let own = lines.iter().filter(|l| l.length == length && l.task == task);
    own.filter(|l| seen.insert(l.text)).filter_map(count).sum()
}

/// The tables of all lengths in Markdown.
pub fn markdown(lines: &[Line], methods: &[&str]) -> String {
    let mut page = String::new();
    let lengths: BTreeSet<usize> = lines.iter().map(|l| l.length).collect();
    for length in lengths {
        let of = |task: &'static str| {
            Cells::new(lines.iter().filter(move |l| l.length == length && l.task == task))
        };
        let goes_on = of("goes on");
        let distances = DISTANCES.map(|(task, title)| (task, title, of(task)));
        let answers = ANSWERS.map(|(task, title)| (task, title, of(task)));
        let in_turn = of("in turn");
        let all = distances.iter().chain(&answers).map(|(.., cells)| cells).chain([&in_turn]);
        let budgets: BTreeSet<u64> = all.flat_map(|c| c.rows.keys()).map(|k| k.1).collect();
        let budgets: Vec<u64> = budgets.into_iter().rev().collect();
        let n_texts = |task: &str| {
            let texts = lines.iter().filter(|l| l.length == length && l.task == task && !l.rows.is_empty());
            texts.map(|l| l.text).collect::<BTreeSet<_>>().len()
        };
        let asked = |task: &str, count| asked(lines, length, task, count);
        let _ = writeln!(page, "**{length} tokens**\n");
        let percent = |b: u64| format!("{}%", b as f64 / 1e4);
        let mut table = |title: &str, cell: &dyn Fn(&str, u64) -> Option<String>| {
            if !methods.iter().any(|m| budgets.iter().any(|&b| cell(m, b).is_some())) {
                return;
            }
            let head: Vec<String> = budgets.iter().map(|&b| percent(b)).collect();
            let _ = writeln!(page, "| {title} | {} |", head.join(" | "));
            let _ = writeln!(page, "|---|{}", "---:|".repeat(budgets.len()));
            for method in methods {
                let cells: Vec<_> = budgets.iter().map(|&b| cell(method, b)).collect();
                if cells.iter().any(Option::is_some) {
                    let cells: Vec<String> = cells.into_iter().map(|c| c.unwrap_or("–".into())).collect();
                    let _ = writeln!(page, "| {method} | {} |", cells.join(" | "));
                }
            }
            page.push('\n');
        };
        let text = |r: Ratio| format!("{:.2} ({:.2}–{:.2})", r.value, r.low, r.high);
        for (task, title, cells) in &distances {
            let title = format!("{title}: KL, as a multiple of LAVa's; {} texts", n_texts(task));
            table(&title, &|m, b| {
                let ratio = ratio(&cells.paired(m, b, |r| r.kl)?)?;
                Some(if m == BASE { "1".into() } else { text(ratio) })
            });
        }
        let mean = |pick: fn(&Row) -> Option<f64>, m: &str, b: u64| {
            let pairs: Vec<_> =
                goes_on.rows.get(&(m, b))?.values().filter_map(|(_, r)| Some((pick(r)?, 1.0))).collect();
            ratio(&pairs)
        };
        table("text that goes on: KL / growth of the NLL, nats / agreement, %", &|m, b| {
            let (kl, nll, agree) = (mean(|r| r.kl, m, b)?, mean(|r| r.nll, m, b)?, mean(|r| r.agree, m, b)?);
            Some(format!("{:.3} / {:.3} / {:.0}", kl.value, nll.value, agree.value * 100.0))
        });
        let share = |r: Ratio| format!("{:.0} ({:.0}–{:.0})", r.value * 100.0, r.low * 100.0, r.high * 100.0);
        for (task, title, cells) in &answers {
            let (n, in_window) = (asked(task, |l| l.asked_later), asked(task, |l| l.asked_known));
            let later = format!("{title}, asked later: right, % of {n} in {} texts", n_texts(task));
            table(&later, &|m, b| cells.share(m, b, |l, r| Some((r.later?, l.asked_later?))).map(share));
            table(&format!("{title}, question in the window: right, % of {in_window}"), &|m, b| {
                cells.share(m, b, |l, r| Some((r.known?, l.asked_known?))).map(share)
            });
        }
        let n = asked("in turn", |l| l.asked_in_turn);
        let title = format!("facts, asked in turn: right, % of {n} in {} texts", n_texts("in turn"));
        table(&title, &|m, b| in_turn.share(m, b, |l, r| Some((r.in_turn?, l.asked_in_turn?))).map(share));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: usize, kl: [f64; 2]) -> Line {
        let row =
            |method: &str, kl| Row { method: method.into(), budget: 0.2, kl: Some(kl), ..Row::default() };
        let rows = vec![row(BASE, kl[0]), row("W", kl[1])];
        Line { task: "goes on".into(), length: 1024, text, rows, ..Line::default() }
    }

    #[test]
    fn a_ratio_that_every_text_has_is_certain() {
        let lines: Vec<Line> = (1..=8).map(|i| line(i, [i as f64, i as f64 / 2.0])).collect();
        let page = markdown(&lines, &[BASE, "W"]);
        assert!(page.contains("| W | 0.50 (0.50–0.50) |"), "{page}");
        assert!(page.contains("| text that goes on: KL, as a multiple of LAVa's; 8 texts | 20% |"), "{page}");
        assert!(!page.contains("facts"), "{page}");
    }

    #[test]
    fn texts_that_lava_did_not_see_are_not_in_the_ratio() {
        let mut lines: Vec<Line> = (0..4).map(|i| line(i, [1.0, 2.0])).collect();
        lines[0].rows.remove(0);
        lines[0].rows[0].kl = Some(100.0);
        assert!(markdown(&lines, &[BASE, "W"]).contains("| W | 2.00 (2.00–2.00) |"));
    }
}
