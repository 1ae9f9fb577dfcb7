//! Plots as SVG: accuracy against bytes for each task, and a map of needles by depth and length.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::colours::{self, Colour, heat};
use crate::report::Run;
use crate::statistics::{Cell, Estimate};
use crate::tasks::{Group, Task};

/// Methods that the plots show; the rest is in the tables.
const SHOWN: [&str; 8] =
    ["LAVa", crate::methods::DEFAULT, "SnapKV", "CAKE", "KV-Compress", "TOVA", "StreamingLLM", "LKV"];

const FONT: &str = "sans-serif";

fn rgb((r, g, b): Colour) -> RGBColor {
    RGBColor(r, g, b)
}

fn shown(run: &Run) -> Vec<(usize, &'static str, RGBColor)> {
    let find = |name: &str| run.methods.iter().position(|m| m.name == name);
    SHOWN.iter().filter_map(|&name| Some((find(name)?, name, rgb(colours::of(name))))).collect()
}

/// One panel per task: percent right, mean over lengths, against the share of the whole cache's bytes that is kept.
pub fn accuracy(run: &Run, path: &Path) -> Result<()> {
    let mut tasks: Vec<Task> = run.cells.iter().map(|c| c.task).collect();
    tasks.sort_unstable();
    tasks.dedup();
    let rows = (tasks.len() + 1).div_ceil(4);
    let root = SVGBackend::new(path, (1200, 300 * rows as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let panels = root.split_evenly((rows, 4));
    for (task, panel) in tasks.iter().zip(&panels) {
        let cells = || run.cells.iter().filter(|c| c.task == *task);
        let share = |method: usize, ratio: usize| {
            let bytes = Estimate::of(cells(), method, ratio, |o| o.bytes as f64)?;
            let whole = Estimate::over(cells(), |r| r.full.bytes as f64)?;
            Some(100.0 * bytes.mean / whole.mean)
        };
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{}: right, %", task.name()), (FONT, 18))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(40)
            .build_cartesian_2d((2.5f64..60.0).log_scale(), 0.0f64..100.0)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("bytes kept, % of the whole cache")
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        for (method, _, colour) in shown(run) {
            let points: Vec<(f64, f64)> = (0..run.ratios.len())
                .filter_map(|r| {
                    let right = Estimate::of(cells(), method, r, |o| 100.0 * o.accuracy)?;
                    Some((share(method, r)?, right.mean))
                })
                .collect();
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
        }
    }
    if let Some(panel) = panels.get(tasks.len()) {
        for (i, (_, name, colour)) in shown(run).into_iter().enumerate() {
            let y = 50 + 26 * i as i32;
            panel.draw(&PathElement::new(vec![(30, y), (60, y)], colour.stroke_width(3)))?;
            panel.draw(&Text::new(name, (70, y - 8), (FONT, 16)))?;
        }
    }
    root.present().map_err(|e| anyhow!("{}: {e}", path.display()))
}

const DEPTHS: usize = 10;

/// Facts found again that were asked only after eviction, by depth (left: the prompt's beginning) and length, for each of the
/// shown methods at the ratio nearest to `ratio`.
pub fn needles(run: &Run, group: Group, ratio: f64, path: &Path) -> Result<()> {
    let distance = |r: &usize| (run.ratios[*r] - ratio).abs();
    let Some(ratio) = (0..run.ratios.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))) else {
        return Ok(());
    };
    let mut lengths: Vec<usize> = run.group(group).map(|c| c.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let methods = shown(run);
    let (width, height) = (44, 34);
    let panel = 46 + height * lengths.len() as i32;
    let root = SVGBackend::new(path, (1200, (50 + panel * methods.len().div_ceil(2) as i32) as u32))
        .into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "Asked {}, {} of the prefix kept: facts found, by depth in the prompt and by length",
        if group == Group::Known { "in the window" } else { "only after eviction" },
        run.percent(ratio)
    );
    root.draw(&Text::new(title, (20, 12), (FONT, 18)))?;
    for (i, (method, name, _)) in methods.into_iter().enumerate() {
        let (x0, y0) = (80 + 600 * (i as i32 % 2), 70 + panel * (i as i32 / 2));
        root.draw(&Text::new(name, (x0, y0 - 20), (FONT, 16)))?;
        for (row, &length) in lengths.iter().enumerate() {
            let y = y0 + height * row as i32;
            root.draw(&Text::new(length.to_string(), (x0 - 50, y + 8), (FONT, 14)))?;
            for depth in 0..DEPTHS {
                let x = x0 + width * depth as i32;
                let found = found(run.group(group).filter(|c| c.length == length), method, ratio, depth);
                let (colour, white) = found.map_or(((235, 235, 235), false), heat);
                let text = found.map_or("–".to_string(), |share| format!("{:.0}", 100.0 * share));
                let colour = rgb(colour);
                root.draw(&Rectangle::new([(x, y), (x + width - 2, y + height - 2)], colour.filled()))?;
                let ink = if white { WHITE } else { BLACK };
                root.draw(&Text::new(text, (x + 10, y + 9), (FONT, 14).into_font().color(&ink)))?;
            }
        }
    }
    root.present().map_err(|e| anyhow!("{}: {e}", path.display()))
}

/// Share of facts at this depth that were found.
fn found<'a>(
    cells: impl Iterator<Item = &'a Cell>,
    method: usize,
    ratio: usize,
    depth: usize,
) -> Option<f64> {
    let (mut right, mut all) = (0, 0);
    for result in cells.flat_map(|c| &c.results) {
        let outcome = result.of[method][ratio].as_ref()?;
        for (at, hit) in result.depths.iter().zip(&outcome.hits) {
            if at.is_some_and(|d| (d * DEPTHS as f32) as usize == depth) {
                all += 1;
                right += *hit as usize;
            }
        }
    }
    (all > 0).then(|| right as f64 / all as f64)
}
