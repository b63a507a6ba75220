//! The figures: which there are, their bars, and how they are shown: a table for people, JSON for programs.

use serde_json::{Value, json};

use crate::samples::{Reading, Samples};
use crate::settings::Settings;

/// One row.
#[derive(Clone)]
pub struct Figure {
    /// The name in the JSON.
    pub key: String,
    pub title: String,
    pub unit: &'static str,
    pub series: String,
    pub reading: Reading,
    /// The most that ours may show, or the least.
    pub bar: Option<f64>,
    pub at_least: bool,
}

/// A row read off the samples of every subject.
pub struct Row<'a> {
    pub figure: &'a Figure,
    /// In the order of the subjects.
    pub values: Vec<Option<f64>>,
}

impl Row<'_> {
    /// Whether ours holds its bar; a bar without a value is missed.
    pub fn passes(&self) -> Option<bool> {
        let bar = self.figure.bar?;
        Some(
            self.values
                .first()
                .copied()
                .flatten()
                .is_some_and(|value| if self.figure.at_least { value >= bar } else { value <= bar }),
        )
    }

    /// How many times as much the other one shows.
    pub fn ratio(&self) -> Option<f64> {
        let ours = self.values.first().copied().flatten()?;
        let other = self.values.get(1).copied().flatten()?;
        (ours.abs() > 1e-9).then(|| other / ours)
    }
}

fn figure(title: &str, unit: &'static str, series: &str, reading: Reading, bar: Option<f64>) -> Figure {
    let suffix = if reading == Reading::P99 { "_p99" } else { "" };
    Figure {
        key: format!("{series}{suffix}"),
        title: title.into(),
        unit,
        series: series.into(),
        reading,
        bar,
        at_least: false,
    }
}

fn at_least(figure: Figure) -> Figure {
    Figure { at_least: true, ..figure }
}

/// All figures, in the order of the table.
pub fn all(settings: &Settings) -> Vec<Figure> {
    use Reading::{Median, P99, Sum};
    let mut rows = vec![
        figure("binary size", "MB", "binary_mb", Median, Some(4.5)),
        figure("exec → listening line", "ms", "start_listening_ms", Median, Some(10.0)),
        figure("exec → node.register at the engine", "ms", "start_registered_ms", Median, None),
        figure("exec → API ready", "ms", "start_ready_ms", Median, None),
        figure("orderly stop, 2 agents", "ms", "stop_ms", Median, None),
    ];
    for agents in &settings.idle_agents {
        let bars = match agents {
            0 => (Some(4.0), None),
            20 => (None, Some(0.5)),
            50 => (Some(12.0), None),
            _ => (None, None),
        };
        let mut idle = |what: &str, unit, key: &str, bar| {
            let title = format!("idle, {agents} agents: {what}");
            rows.push(figure(&title, unit, &format!("idle_{agents}_{key}"), Median, bar));
        };
        idle("RSS", "MB", "rss_mb", bars.0);
        idle("private", "MB", "private_mb", None);
        idle("processes", "", "processes", None);
        idle("threads", "", "threads", None);
        idle("context switches", "1/s", "switches_per_s", bars.1);
        idle("of these voluntary", "1/s", "voluntary_per_s", None);
    }
    for (series, agents, first, tail, bar) in [
        ("one", "1 agent".to_string(), Some(1.0), Some(10.0), Some(5.0)),
        ("crowd", format!("{} agents", settings.crowd), None, None, None),
    ] {
        let mut pair = |what: &str, key: &str, bars: (Option<f64>, Option<f64>)| {
            let key = format!("{series}_{key}_ms");
            rows.push(figure(&format!("{agents}: {what}, p50"), "ms", &key, Median, bars.0));
            rows.push(figure(&format!("{agents}: {what}, p99"), "ms", &key, P99, bars.1));
        };
        pair("deliver → first byte read", "first_byte", (first, tail));
        pair("deliver → ack", "ack", (None, None));
        pair("last byte read → ack", "enter_ack", (bar, None));
    }
    let load = format!("{} deliveries, {} agents", settings.load_deliveries, settings.load_agents);
    for (what, unit, key) in [
        ("total", "s", "load_s"),
        ("rate", "msg/s", "load_per_s"),
        ("lost", "", "load_lost"),
        ("doubled", "", "load_doubled"),
        ("out of order", "", "load_misordered"),
        ("never acked", "", "load_unacked"),
        ("peak RSS of the main process", "MB", "load_peak_mb"),
        ("RSS when at rest again", "MB", "load_rest_mb"),
    ] {
        let reading = if unit.is_empty() { Sum } else { Median };
        let bar = unit.is_empty().then_some(0.0);
        rows.push(figure(&format!("{load}: {what}"), unit, key, reading, bar));
    }
    rows.extend([
        figure("idle agent: keystroke → ack, p50", "ms", "key_ack_ms", Median, Some(1.0)),
        figure("idle agent: keystroke → ack, p99", "ms", "key_ack_ms", P99, None),
        at_least(figure("terminal output, one /ws viewer: program", "MB/s", "flood_mb_per_s", Median, Some(60.0))),
        at_least(figure("terminal output, one /ws viewer: seen by it", "%", "flood_seen_percent", Median, Some(100.0))),
        figure("GET /health, p50", "ms", "health_ms", Median, None),
        figure("GET /api/spawned, p50", "ms", "spawned_ms", Median, None),
    ]);
    for (series, beside) in
        [("loud", "beside an agent that prints without end"), ("deaf", "beside one that never reads")]
    {
        let key = format!("{series}_first_byte_ms");
        rows.push(figure(&format!("{beside}: deliver → first byte read, p50"), "ms", &key, Median, None));
        rows.push(figure(&format!("{beside}: deliver → first byte read, p99"), "ms", &key, P99, Some(20.0)));
    }
    let long = format!("{} MB of output, one /ws viewer", settings.long_flood_megabytes);
    rows.push(figure(&format!("{long}: more RSS"), "MB", "long_flood_rss_mb", Median, Some(2.0)));
    rows.push(at_least(figure(&format!("{long}: seen by it"), "%", "long_flood_seen_percent", Median, Some(100.0))));
    let printing = format!("{} agents print 1 MB/s", settings.printers);
    let crowd = format!("{} viewers, {printing}", settings.viewers);
    let mute = format!("a viewer that never reads, {printing}");
    for (title, unit, key, bar) in [
        (format!("{printing}: GET /health, p50"), "ms", "busy_health_ms", Some(0.3)),
        (format!("{printing}: GET /api/spawned, p50"), "ms", "busy_spawned_ms", Some(0.4)),
        (format!("{crowd}: longer for the slowest agent"), "%", "viewers_slowed_percent", Some(5.0)),
        (format!("{crowd}: more RSS"), "MB", "viewers_rss_mb", Some(10.0)),
        (format!("{crowd}: more RSS when they have left"), "MB", "viewers_left_mb", Some(1.0)),
        (format!("{crowd}: seen by the one that saw least"), "%", "viewers_seen_percent", None),
        (format!("{mute}: longer for the slowest agent"), "%", "mute_slowed_percent", Some(5.0)),
        (format!("{mute}: more RSS"), "MB", "mute_rss_mb", Some(5.0)),
    ] {
        rows.push(figure(&title, unit, key, Median, bar));
    }
    rows
}

/// The rows of `figures`, one value per subject. What nobody measured is left out, but a bar without a value stays when
/// everything was to be measured: it is missed.
pub fn rows<'a>(figures: &'a [Figure], samples: &[Samples], everything: bool) -> Vec<Row<'a>> {
    figures
        .iter()
        .map(|figure| Row {
            figure,
            values: samples.iter().map(|samples| samples.read(&figure.series, figure.reading)).collect(),
        })
        .filter(|row| row.values.iter().any(Option::is_some) || (everything && row.figure.bar.is_some()))
        .collect()
}

/// A number with about three digits that matter.
pub fn show(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{}{}{unit}", show(value), if unit.is_empty() { "" } else { " " })
}

/// The table, in Markdown, its columns aligned.
pub fn table(rows: &[Row<'_>], titles: &[&str]) -> String {
    let mut lines = vec![vec!["figure".to_string(), "bar".into(), titles[0].into(), "".into()]];
    if let Some(other) = titles.get(1) {
        lines[0].extend([(*other).to_string(), format!("{other} / {}", titles[0])]);
    }
    for row in rows {
        let unit = row.figure.unit;
        let value =
            |index: usize| row.values.get(index).copied().flatten().map_or("–".into(), |v| with_unit(v, unit));
        let verdict = match row.passes() {
            None => "",
            Some(true) => "pass",
            Some(false) => "MISS",
        };
        let bar = row.figure.bar.map_or(String::new(), |bar| {
            let sign = if row.figure.at_least { '≥' } else { '≤' };
            format!("{sign} {}", with_unit(bar, unit))
        });
        let mut line = vec![row.figure.title.clone(), bar, value(0), verdict.into()];
        if titles.len() > 1 {
            line.extend([value(1), row.ratio().map_or(String::new(), |ratio| format!("× {}", show(ratio)))]);
        }
        lines.push(line);
    }
    layout(&lines)
}

/// First column to the left, the others to the right.
fn layout(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            text.push_str(&if column == 0 { format!("| {cell}{pad} ") } else { format!("| {pad}{cell} ") });
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let rule = "-".repeat(width + 1);
                text.push_str(&if column == 0 { format!("|:{rule}") } else { format!("|{rule}:") });
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Everything, for programs: a missing value is `null`.
pub fn document(rows: &[Row<'_>], settings: &Settings, samples: &[Samples]) -> Value {
    let subjects: Vec<Value> = settings
        .subjects
        .iter()
        .zip(samples)
        .map(|(subject, samples)| {
            json!({"title": subject.title, "binary": subject.binary.display().to_string(), "failures": samples.failures})
        })
        .collect();
    let figures: Vec<Value> = rows
        .iter()
        .map(|row| {
            let values: serde_json::Map<String, Value> = settings
                .subjects
                .iter()
                .zip(row.values.iter().zip(samples))
                .map(|(subject, (value, samples))| {
                    (subject.title.clone(), json!({"value": value, "samples": samples.count(&row.figure.series)}))
                })
                .collect();
            json!({"key": row.figure.key, "title": row.figure.title, "unit": row.figure.unit, "bar": row.figure.bar,
                "at_least": row.figure.at_least, "pass": row.passes(), "ratio": row.ratio(), "values": values})
        })
        .collect();
    json!({"quick": settings.quick, "deliveries": settings.load_deliveries, "subjects": subjects, "figures": figures})
}
