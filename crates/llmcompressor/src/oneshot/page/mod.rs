//! `report.html`: the report of a run on one page that needs nothing else.

mod charts;

use bytesize::ByteSize;
use minijinja::{Environment, Value, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use serde_json::json;

use super::{ModuleReport, OneshotReport};
use crate::error::{ErrorKind, Result};
use charts::{bar, error_chart, token_map};

/// The page; what it shows is escaped by the engine.
const TEMPLATE: &str = include_str!("page.html");

/// Modules in the table of the worst.
const N_WORST: usize = 10;

/// Modules in the table of all; the others are in `report.json`.
const N_LISTED: usize = 2000;

/// A row of a table.
#[derive(Debug, Serialize)]
struct Row<'a> {
    module: &'a str,
    scheme: &'a str,
    shape: String,
    tokens: Option<String>,
    weight_db: Option<String>,
    output_db: Option<String>,
    error: Option<String>,
    loss: Option<String>,
    notes: Vec<String>,
}

/// The page of a report.
///
/// # Errors
/// `Page`, for a template that does not fit the report.
pub(super) fn render(report: &OneshotReport) -> Result<String> {
    let fault = |source| ErrorKind::Page { source };
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fault)?;
    environment.set_syntax(syntax);
    environment.add_template("page.html", TEMPLATE).map_err(fault)?;
    let has_output = report.modules.iter().any(|it| it.record.output.is_some());
    let error = |it: &ModuleReport| {
        let distance = if has_output { it.record.output } else { it.record.weight };
        distance.map(|it| it.relative_error)
    };
    let mut sorted: Vec<&ModuleReport> = report.modules.iter().collect();
    sorted.sort_by(|a, b| error(b).unwrap_or(-1.0).total_cmp(&error(a).unwrap_or(-1.0)));
    let rows: Vec<Row<'_>> = sorted.iter().take(N_LISTED).map(|it| row(it, error(it))).collect();
    let total: f64 = report.phases.values().sum();
    let phases: Vec<(&str, f64, String)> =
        report.phases.iter().map(|(name, seconds)| (name.as_str(), *seconds, seconds_text(*seconds))).collect();
    let [before, after] = sizes(report);
    let ratio = report.input_bytes as f64 / report.output_bytes.max(1) as f64;
    let peak = report.peak_resident_bytes.map(bytes_text);
    let page = json!({
        "model": name_of(&report.inputs.model),
        "output": report.output.display().to_string(),
        "report": report,
        "ratio": format!("{ratio:.2}"),
        "size_before": bytes_text(report.input_bytes),
        "size_after": bytes_text(report.output_bytes),
        "bits": bits(report).map(|it| format!("{it:.2}")),
        "weight_db": mean(report, |it| it.record.weight.and_then(|it| it.sqnr_db)),
        "output_db": mean(report, |it| it.record.output.and_then(|it| it.sqnr_db)),
        "n_tokens": grouped(report.n_tokens as u64),
        "seconds": seconds_text(report.seconds),
        "peak": peak,
        "has_output": has_output,
        "errors": error_chart(&report.modules, error),
        "phases": bar(phases, total),
        "before": before,
        "after": after,
        "tokens": token_map(&report.modules),
        "worst": rows.iter().take(N_WORST).collect::<Vec<_>>(),
        "rows": &rows,
        "n_unlisted": report.modules.len() - rows.len(),
        "has_tokens": rows.iter().any(|it| it.tokens.is_some()),
        "has_loss": rows.iter().any(|it| it.loss.is_some()),
    });
    Ok(environment.get_template("page.html").and_then(|it| it.render(Value::from(Serde(page)))).map_err(fault)?)
}

fn row(module: &ModuleReport, error: Option<f64>) -> Row<'_> {
    let record = &module.record;
    let db = |it: Option<super::Distance>| it.map(|it| it.sqnr_db.map_or("exact".to_owned(), |db| format!("{db:.1}")));
    let mut notes = Vec::new();
    if let Some(reason) = &record.fallback {
        notes.push(format!("rounded to nearest: {reason}"));
    } else if record.attempts.is_some_and(|it| it > 1) {
        notes.push(format!("damping raised to {:.3}", record.dampening_frac.unwrap_or_default()));
    }
    match record.dead_columns {
        Some(0) | None => {}
        Some(1) => notes.push("1 dead column".to_owned()),
        Some(n) => notes.push(format!("{n} dead columns")),
    }
    Row {
        module: &record.module,
        scheme: &module.scheme,
        shape: format!("{} \u{d7} {}", module.shape[0], module.shape[1]),
        tokens: record.tokens.map(grouped),
        weight_db: db(record.weight),
        output_db: db(record.output),
        error: error.map(|it| format!("{:.2} %", it * 100.0)),
        loss: record.loss.map(significant),
        notes,
    }
}

/// Bars of the bytes before and after: compressed weights, and everything else.
fn sizes(report: &OneshotReport) -> [charts::Bar; 2] {
    let whole = report.input_bytes.max(report.output_bytes) as f64;
    let weights = |of: fn(&ModuleReport) -> u64| report.modules.iter().map(of).sum::<u64>();
    let one = |all: u64, weights: u64| {
        let rest = all.saturating_sub(weights);
        let part = |name, bytes: u64| (name, bytes as f64, bytes_text(bytes));
        bar([part("quantized modules", weights), part("everything else", rest)], whole)
    };
    [one(report.input_bytes, weights(|it| it.input_bytes)), one(report.output_bytes, weights(|it| it.output_bytes))]
}

/// Bits on disk per parameter of the compressed modules.
fn bits(report: &OneshotReport) -> Option<f64> {
    let n_parameters: usize = report.modules.iter().map(|it| it.shape[0] * it.shape[1]).sum();
    let bytes: u64 = report.modules.iter().map(|it| it.output_bytes).sum();
    (n_parameters > 0).then(|| bytes as f64 * 8.0 / n_parameters as f64)
}

fn mean(report: &OneshotReport, of: impl Fn(&ModuleReport) -> Option<f64>) -> Option<String> {
    let values: Vec<f64> = report.modules.iter().filter_map(of).collect();
    (!values.is_empty()).then(|| format!("{:.1}", values.iter().sum::<f64>() / values.len() as f64))
}

/// The last part of a path or hub id.
fn name_of(model: &str) -> &str {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model)
}

fn bytes_text(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn seconds_text(seconds: f64) -> String {
    match seconds {
        it if it < 10.0 => format!("{it:.2} s"),
        it if it < 120.0 => format!("{it:.1} s"),
        it if it < 7200.0 => format!("{:.1} min", it / 60.0),
        it => format!("{:.1} h", it / 3600.0),
    }
}

/// Four significant digits, without a power of ten where that is short.
fn significant(value: f64) -> String {
    match value.abs() {
        it if it >= 1e6 || (it > 0.0 && it < 1e-4) => format!("{value:.3e}"),
        it if it >= 1000.0 => format!("{value:.0}"),
        it => format!("{value:.*}", (3 - it.max(1e-4).log10().floor() as i32).clamp(0, 7) as usize),
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}
