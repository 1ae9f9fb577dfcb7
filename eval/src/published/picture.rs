//! Lines → pictures, as SVG. Text is left to whoever shows them; numbers have a fixed format, so that the same lines give the same bytes.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::run::{KeptCounts, Line};
use super::table::{Cells, Ratio, asked, ratio};
use crate::colours::{self, Colour, heat};
use crate::methods::{BASE, DEFAULT};

/// Methods with a line in the picture of accuracy.
pub const SHOWN: [&str; 7] = [BASE, DEFAULT, "Ask again", "KVzip", "SnapKV", "StreamingLLM", "DefensiveKV"];
/// Methods with a map of depths.
pub const NEEDLES: [&str; 4] = [BASE, DEFAULT, "KVzip", "Ask again"];
/// Methods with a map of heads.
pub const KEPT: [&str; 3] = [BASE, DEFAULT, "Ask again"];
const LENGTH: usize = 1024;
const DEPTHS: usize = 8;

fn hex((r, g, b): Colour) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A page with a background of its own: a dark theme would show black text on black otherwise.
fn page((width, height): (u32, u32), title: &str, about: &str, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-labelledby=\"title desc\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <title id=\"title\">{title}</title>\n<desc id=\"desc\">{about}</desc>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         {body}</svg>\n"
    )
}

fn text(svg: &mut String, (x, y): (f64, f64), more: &str, what: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{what}</text>");
}

const BOLD: &str = "font-weight=\"bold\" font-size=\"14\"";
const HEADING: &str = "font-weight=\"bold\" font-size=\"16\"";
const PALE: &str = "fill=\"#555\"";
const MIDDLE: &str = "text-anchor=\"middle\"";
const END: &str = "text-anchor=\"end\"";

/// From a value to a place, along one axis.
struct Axis {
    from: (f64, f64),
    to: (f64, f64),
    log: bool,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let of = |x: f64| if self.log { x.ln() } else { x };
        let part = (of(value) - of(self.from.0)) / (of(self.from.1) - of(self.from.0));
        self.to.0 + part * (self.to.1 - self.to.0)
    }
}

/// Marks of a log axis around all values: the nearest of 1, 2, 5, 10 below and above them and those between.
fn marks(values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let all: Vec<f64> = (-4..=4).flat_map(|e| [1.0, 2.0, 5.0].map(|x| x * 10f64.powi(e))).collect();
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(0.0, f64::max);
    let first = all.iter().rposition(|&m| m <= low).unwrap_or(0);
    let last = all.iter().position(|&m| m >= high).unwrap_or(all.len() - 1);
    all[first.min(last)..=last].to_vec()
}

/// A method's values by budget, in percent of the tokens.
type Curve<'a> = (&'a str, Vec<(f64, Ratio)>);

struct Panel<'a> {
    title: &'static str,
    log: bool,
    curves: Vec<Curve<'a>>,
}

const PLOT: (f64, f64) = (266.0, 250.0);

impl Panel<'_> {
    /// With the plot's upper left corner at `(x, y)`.
    fn draw(&self, svg: &mut String, (x, y): (f64, f64)) {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let marks = if self.log {
            marks(points().flat_map(|(_, r)| [r.low, r.high]).filter(|&v| v > 0.0))
        } else {
            vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
        };
        let (bottom, right) = (y + PLOT.1, x + PLOT.0);
        let range = (marks[0], marks[marks.len() - 1]);
        let up = Axis { from: range, to: (bottom, y), log: self.log };
        let along = Axis { from: (4.6, 54.0), to: (x, right), log: true };
        text(svg, (x, y - 12.0), BOLD, self.title);
        for &mark in &marks {
            let at = up.at(mark);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {at:.1}H{right:.1}\" stroke=\"{}\"/>",
                if self.log && mark == 1.0 { "#999" } else { "#e4e4e4" }
            );
            text(svg, (x - 6.0, at + 4.0), END, &format!("{mark}"));
        }
        let budgets: BTreeSet<u64> = points().map(|(b, _)| (b * 10.0).round() as u64).collect();
        for budget in budgets.iter().map(|&b| b as f64 / 10.0) {
            let at = along.at(budget);
            let _ = writeln!(svg, "<path d=\"M{at:.1} {bottom:.1}v4\" stroke=\"#222\"/>");
            text(svg, (at, bottom + 18.0), MIDDLE, &format!("{budget}%"));
        }
        let _ = writeln!(svg, "<path d=\"M{x:.1} {bottom:.1}H{right:.1}\" stroke=\"#222\"/>");
        text(svg, ((x + right) / 2.0, bottom + 36.0), MIDDLE, "bytes kept, of the whole cache's");
        let place =
            |(b, v): (f64, f64)| format!("{:.1},{:.1}", along.at(b), up.at(v.clamp(range.0, range.1)));
        // All bands first: no band hides a line.
        for (method, points) in &self.curves {
            let low = points.iter().map(|(b, r)| place((*b, r.low)));
            let high = points.iter().rev().map(|(b, r)| place((*b, r.high)));
            let band: Vec<String> = low.chain(high).collect();
            let colour = hex(colours::of(method));
            let _ = writeln!(
                svg,
                "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.09\"/>",
                band.join(" ")
            );
        }
        for (method, points) in &self.curves {
            let line: Vec<String> = points.iter().map(|(b, r)| place((*b, r.value))).collect();
            let colour = hex(colours::of(method));
            let _ = writeln!(
                svg,
                "<g fill=\"{colour}\"><title>{method}</title><polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"2\"/>",
                line.join(" ")
            );
            for (b, r) in points {
                let (cx, cy) = (along.at(*b), up.at(r.value));
                let _ = writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"/>");
            }
            svg.push_str("</g>\n");
        }
    }
}

fn of_task<'a>(lines: &'a [Line], task: &'a str) -> impl Iterator<Item = &'a Line> {
    lines.iter().filter(move |l| l.length == LENGTH && l.task == task)
}

/// Three panels: the KL as a multiple of LAVa's, facts asked later, questions in the window.
pub fn accuracy(lines: &[Line]) -> String {
    let goes_on = Cells::new(of_task(lines, "goes on"));
    let facts = Cells::new(of_task(lines, "facts"));
    let budgets: BTreeSet<u64> = [&goes_on, &facts].iter().flat_map(|c| c.rows.keys()).map(|k| k.1).collect();
    let panel = |title, log, value: &dyn Fn(&str, u64) -> Option<Ratio>| {
        let curve = |method| {
            let point = |&b: &u64| Some((b as f64 / 1e4, value(method, b)?));
            let points: Vec<_> = budgets.iter().filter_map(point).collect();
            (!points.is_empty()).then_some((method, points))
        };
        Panel { title, log, curves: SHOWN.into_iter().filter_map(curve).collect() }
    };
    let percent = |r: Ratio| Ratio { value: 100.0 * r.value, low: 100.0 * r.low, high: 100.0 * r.high };
    let panels = [
        panel("KL, as a multiple of LAVa's", true, &|m, b| ratio(&goes_on.paired(m, b, |r| r.kl)?)),
        panel("Facts asked later, right, %", false, &|m, b| {
            facts.share(m, b, |l, r| Some((r.later?, l.asked_later?))).map(percent)
        }),
        panel("Question in the window, right, %", false, &|m, b| {
            facts.share(m, b, |l, r| Some((r.known?, l.asked_known?))).map(percent)
        }),
    ];
    let texts = |cells: &Cells, method: &str| {
        let of = cells.rows.iter().filter(|((m, _), _)| *m == method);
        of.map(|(_, texts)| texts.len()).max().unwrap_or(0)
    };
    let (n_on, n_facts) = (texts(&goes_on, BASE), texts(&facts, BASE));
    let mut svg = String::new();
    text(
        &mut svg,
        (20.0, 28.0),
        HEADING,
        "What eviction loses: SmolLM2-135M-Instruct, prompts of 1,024 tokens",
    );
    let (later, known) =
        (asked(lines, LENGTH, "facts", |l| l.asked_later), asked(lines, LENGTH, "facts", |l| l.asked_known));
    let from = format!(
        "{n_on} texts that go on; {n_facts} with facts, {later} asked later, {known} in the window. Bands: 95%. On the left less is \
         better, else more."
    );
    text(&mut svg, (20.0, 48.0), PALE, &from);
    let shown: Vec<&str> =
        SHOWN.into_iter().filter(|m| panels.iter().any(|p| p.curves.iter().any(|c| c.0 == *m))).collect();
    let mut x = 20.0;
    for method in shown {
        let (own_on, own_facts) = (texts(&goes_on, method), texts(&facts, method));
        let fewer = match (own_on < n_on, own_facts < n_facts) {
            (false, false) => String::new(),
            _ if own_on == own_facts => format!(" ({own_on} texts)"),
            _ => format!(" ({own_on} and {own_facts} texts)"),
        };
        let name = format!("{method}{fewer}");
        let colour = hex(colours::of(method));
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} 70h22\" stroke=\"{colour}\" stroke-width=\"3\"/><circle cx=\"{:.1}\" cy=\"70\" r=\"3.5\" fill=\"{colour}\"/>",
            x + 11.0
        );
        text(&mut svg, (x + 28.0, 74.0), "", &name);
        x += 46.0 + 7.6 * name.chars().count() as f64;
    }
    for (i, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, (44.0 + 322.0 * i as f64, 116.0));
    }
    page(
        (970, 418),
        "What eviction loses against the bytes it keeps",
        "Three panels, one line for each method, from 5 to 50 percent of the bytes kept: the KL divergence from the whole cache as a \
         multiple of LAVa's, facts asked only after eviction, and questions that stand in the window.",
        &svg,
    )
}

/// A cell of a heat map.
fn cell(svg: &mut String, (x, y): (f64, f64), (width, height): (f64, f64), share: Option<f64>, what: &str) {
    let (colour, white) = share.map_or(((235, 235, 235), false), heat);
    let colour = hex(colour);
    let (w, h) = (width - 2.0, height - 2.0);
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{colour}\" stroke=\"#ddd\"/>"
    );
    let ink = if white { "#fff" } else { "#222" };
    // Four digits have to fit as well.
    let size = if what.len() > 3 && width < 40.0 { 11 } else { 12 };
    let more = format!("text-anchor=\"middle\" font-size=\"{size}\" fill=\"{ink}\"");
    text(svg, (x + w / 2.0, y + h / 2.0 + 4.0), &more, what);
}

/// Facts asked later, by depth and budget; `None` without a line that says which facts came back.
pub fn needles(lines: &[Line]) -> Option<String> {
    let at = |depth: f64| ((depth * DEPTHS as f64) as usize).min(DEPTHS - 1);
    let lines: Vec<&Line> = lines.iter().filter(|l| l.length == LENGTH && !l.depths.is_empty()).collect();
    let cells = Cells::new(lines.iter().copied());
    let budgets: BTreeSet<u64> = cells.rows.keys().map(|k| k.1).collect();
    let budgets: Vec<u64> = budgets.into_iter().rev().collect();
    // Facts that came back, of all, by depth.
    let counts = |method: &str, budget: u64| {
        let mut counts = [(0, 0); DEPTHS];
        for (line, row) in cells.rows.get(&(method, budget))?.values() {
            for (&depth, &back) in line.depths.iter().zip(&row.came_back) {
                let (right, all) = &mut counts[at(depth)];
                *right += back as usize;
                *all += 1;
            }
        }
        counts.iter().any(|c| c.1 > 0).then_some(counts)
    };
    let first = *budgets.first()?;
    let of_lava = counts(BASE, first)?;
    let n: usize = of_lava.iter().map(|c| c.1).sum();
    let n_texts = cells.rows[&(BASE, first)].len();
    let (w, h) = (48.0, 28.0);
    let panel = 78.0 + h * budgets.len() as f64;
    let mut svg = String::new();
    text(
        &mut svg,
        (20.0, 28.0),
        HEADING,
        "Facts asked only after eviction, by where they stand in the prompt",
    );
    let from = format!(
        "SmolLM2-135M-Instruct, {n_texts} prompts of 1,024 tokens, {n} facts that the whole cache answers. In a cell: percent right."
    );
    text(&mut svg, (20.0, 48.0), PALE, &from);
    for (i, method) in NEEDLES.into_iter().enumerate() {
        let (x, y) = (66.0 + 468.0 * (i % 2) as f64, 112.0 + panel * (i / 2) as f64);
        text(&mut svg, (x, y - 28.0), BOLD, method);
        for (depth, (_, all)) in of_lava.iter().enumerate() {
            let middle = x + w * depth as f64 + w / 2.0 - 1.0;
            text(
                &mut svg,
                (middle, y - 8.0),
                "text-anchor=\"middle\" font-size=\"11\" fill=\"#555\"",
                &format!("{all} facts"),
            );
        }
        for (row, &budget) in budgets.iter().enumerate() {
            let y = y + h * row as f64;
            text(&mut svg, (x - 8.0, y + h / 2.0 + 3.0), END, &format!("{}%", budget as f64 / 1e4));
            let counts = counts(method, budget).unwrap_or_default();
            for (depth, &(right, all)) in counts.iter().enumerate() {
                let share = (all > 0).then(|| right as f64 / all as f64);
                let what = share.map_or("–".to_string(), |s| format!("{:.0}", 100.0 * s));
                cell(&mut svg, (x + w * depth as f64, y), (w, h), share, &what);
            }
        }
        let below = y + h * budgets.len() as f64 + 14.0;
        text(&mut svg, (x, below), PALE, "the prompt's beginning");
        text(&mut svg, (x + w * DEPTHS as f64 - 2.0, below), "text-anchor=\"end\" fill=\"#555\"", "its end");
    }
    Some(page(
        (940, (84.0 + 2.0 * panel) as u32),
        "Facts asked only after eviction, by depth and budget",
        "Four maps, one for each method: columns are eighths of the prompt from its beginning to its end, rows are shares of the bytes kept, \
         and a cell is the percentage of facts that come back.",
        &svg,
    ))
}

/// How many entries each head of each layer keeps; `None` if the counts lack a method.
pub fn who_keeps_what(kept: &KeptCounts) -> Option<String> {
    let of = |name: &str| kept.methods.iter().find(|m| m.method == name);
    let panels = KEPT.iter().map(|m| of(m)).collect::<Option<Vec<_>>>()?;
    let first = &panels.first()?.layers;
    let (n_layers, n_heads) = (first.len(), first.first()?.len());
    let (w, h) = (30.0, 22.0);
    let panel = 64.0 + h * n_heads as f64;
    let mut svg = String::new();
    let heading =
        format!("Who keeps what: entries of each KV head at {}% of one prompt", kept.budget * 100.0);
    text(&mut svg, (20.0, 28.0), HEADING, &heading);
    let from = format!(
        "SmolLM2-135M-Instruct, the first text that goes on ({}), {} tokens: a head of the whole cache has as many entries. All keep as \
         many in total.",
        kept.book, kept.length
    );
    text(&mut svg, (20.0, 48.0), PALE, &from);
    for (i, counts) in panels.into_iter().enumerate() {
        let (x, y) = (66.0, 104.0 + panel * i as f64);
        let all = || counts.layers.iter().flatten();
        let range = format!(
            "<tspan font-weight=\"bold\" font-size=\"14\">{}</tspan><tspan fill=\"#555\" dx=\"12\">from {} to {} entries a head</tspan>",
            counts.method,
            all().min()?,
            all().max()?
        );
        text(&mut svg, (x, y - 24.0), "", &range);
        text(&mut svg, (x - 8.0, y - 7.0), "text-anchor=\"end\" font-size=\"11\" fill=\"#555\"", "layer");
        for head in 0..n_heads {
            text(&mut svg, (x - 8.0, y + h * head as f64 + 14.0), END, &format!("head {head}"));
        }
        for (layer, heads) in counts.layers.iter().enumerate() {
            let x = x + w * layer as f64;
            text(
                &mut svg,
                (x + w / 2.0 - 1.0, y - 7.0),
                "text-anchor=\"middle\" font-size=\"10\" fill=\"#555\"",
                &layer.to_string(),
            );
            for (head, n) in heads.iter().enumerate() {
                let share = *n as f64 / kept.length as f64;
                cell(&mut svg, (x, y + h * head as f64), (w, h), Some(share), &n.to_string());
            }
        }
    }
    Some(page(
        ((86.0 + w * n_layers as f64) as u32, (80.0 + 3.0 * panel) as u32),
        "How many entries each KV head keeps",
        "Three maps, one for each method: columns are layers, rows are KV heads, and a cell is the number of entries that the head keeps.",
        &svg,
    ))
}

#[cfg(test)]
mod tests {
    use super::super::run::{MethodCounts, Row};
    use super::*;

    const BUDGETS: [f64; 3] = [0.5, 0.2, 0.1];

    /// Every method but LAVa has a KL of `factor` times LAVa's, and half of the facts.
    fn lines(factor: f64) -> Vec<Line> {
        let line = |task: &str, text, rows| Line {
            task: task.into(),
            length: LENGTH,
            text,
            asked_later: Some(4),
            asked_known: Some(2),
            depths: if task == "facts" { vec![0.01, 0.3, 0.6, 0.99] } else { vec![] },
            rows,
            ..Line::default()
        };
        let rows = |of: &dyn Fn(&str) -> Row| {
            let each = |m: &&str| BUDGETS.map(|budget| Row { method: m.to_string(), budget, ..of(m) });
            SHOWN.iter().flat_map(each).collect::<Vec<Row>>()
        };
        let on = |m: &str| Row { kl: Some(if m == BASE { 1.0 } else { factor }), ..Row::default() };
        let came_back = vec![true, false, true, false];
        let facts =
            |_: &str| Row { later: Some(2), known: Some(1), came_back: came_back.clone(), ..Row::default() };
        (0..4).flat_map(|t| [line("goes on", t, rows(&on)), line("facts", t, rows(&facts))]).collect()
    }

    /// Heights of each line's points.
    fn heights(svg: &str) -> Vec<Vec<f64>> {
        let lines = svg.split("<polyline points=\"").skip(1).map(|s| &s[..s.find('"').unwrap()]);
        let y = |p: &str| p.split(',').nth(1).unwrap().parse().unwrap();
        lines.map(|l| l.split(' ').map(y).collect()).collect()
    }

    #[test]
    fn each_panel_has_a_line_for_each_method() {
        let svg = accuracy(&lines(0.5));
        let heights = heights(&svg);
        assert_eq!(heights.len(), 3 * SHOWN.len());
        assert!(heights.iter().all(|h| h.len() == BUDGETS.len()));
        for method in SHOWN {
            assert_eq!(svg.matches(&format!("<title>{method}</title>")).count(), 3, "{method}");
        }
        assert_eq!(svg, accuracy(&lines(0.5)), "the same lines, other bytes");
        let without: Vec<Line> = lines(0.5)
            .into_iter()
            .map(|l| Line { rows: l.rows.into_iter().filter(|r| r.method != "KVzip").collect(), ..l })
            .collect();
        assert_eq!(accuracy(&without).matches("<polyline").count(), 3 * (SHOWN.len() - 1));
    }

    #[test]
    fn heights_follow_the_values() {
        let (top, bottom) = (116.0, 116.0 + PLOT.1);
        let of = heights(&accuracy(&lines(0.5)));
        // Marks 0.5 and 1: LAVa is the highest, the others the lowest.
        assert!(of[0].iter().all(|&y| y == top), "{:?}", of[0]);
        assert!(of[1].iter().all(|&y| y == bottom), "{:?}", of[1]);
        // Marks 0.1 to 1 on a log axis: three tenths are log10(3) of the way up.
        let mut wide = lines(0.3);
        wide[0].rows.last_mut().unwrap().kl = Some(0.1);
        let of = heights(&accuracy(&wide));
        let expected = bottom - 3f64.log10() * PLOT.1;
        assert!((of[1][0] - expected).abs() < 0.06, "{} {expected}", of[1][0]);
        // Two of four facts are half the height.
        assert!(of[SHOWN.len()].iter().all(|&y| y == (top + bottom) / 2.0));
    }

    #[test]
    fn a_fact_is_counted_at_its_depth() {
        let svg = needles(&lines(0.5)).unwrap();
        let cells = |what: &str| svg.matches(&format!(">{what}</text>")).count();
        let maps = NEEDLES.len() * BUDGETS.len();
        assert_eq!((cells("100"), cells("0"), cells("–")), (2 * maps, 2 * maps, 4 * maps));
        assert_eq!(cells("4 facts"), 4 * NEEDLES.len());
        assert!(needles(&[]).is_none());
    }

    #[test]
    fn a_map_has_a_cell_for_each_head() {
        let layers = vec![vec![7, 8, 9], vec![1, 2, 1024]];
        let counts = |m: &&str| MethodCounts { method: m.to_string(), layers: layers.clone() };
        let mut kept = KeptCounts { length: LENGTH, budget: 0.2, ..KeptCounts::default() };
        kept.methods = KEPT.iter().map(counts).collect();
        let svg = who_keeps_what(&kept).unwrap();
        assert_eq!(svg.matches("<rect x=").count(), 6 * KEPT.len());
        assert_eq!(svg.matches("from 1 to 1024 entries").count(), KEPT.len());
        // A head that keeps everything is as dark as it gets.
        assert_eq!(svg.matches("fill=\"#0072b2\"").count(), KEPT.len());
        kept.methods.pop();
        assert!(who_keeps_what(&kept).is_none());
    }

    #[test]
    fn marks_are_around_the_values() {
        assert_eq!(marks([0.3, 2.54].into_iter()), [0.2, 0.5, 1.0, 2.0, 5.0]);
        assert_eq!(marks([0.5, 1.0].into_iter()), [0.5, 1.0]);
    }
}
