//! Coordinates of the page's charts: what is drawn where, in the units of an SVG's view box.

use indexmap::IndexMap;
use serde::Serialize;

use crate::oneshot::ModuleReport;

/// Colours of the page's palette.
const N_COLOURS: usize = 8;

/// Width of every chart.
const WIDTH: f64 = 960.0;

/// Most cells of a map; beyond them a page takes too long to draw.
const MAX_CELLS: usize = 20_000;

/// A place in a model: which layer, which expert, and what the module is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) layer: u64,
    pub(super) expert: Option<u64>,
    pub(super) role: String,
}

impl Site {
    /// From a module's name; none outside of layers.
    pub(super) fn of(module: &str) -> Option<Self> {
        let segments: Vec<&str> = module.split('.').collect();
        let at = segments.iter().position(|it| it.parse::<u64>().is_ok())?;
        let layer = segments[at].parse().ok()?;
        let rest = &segments[at + 1..];
        let expert = rest.iter().find_map(|it| it.parse().ok());
        let named: Vec<&str> = rest.iter().copied().filter(|it| it.parse::<u64>().is_err()).collect();
        // The last name tells modules apart, and experts from what is beside them.
        let from = named.len().saturating_sub(if expert.is_some() { 2 } else { 1 });
        Some(Self { layer, expert, role: named[from..].join(".") })
    }
}

/// A line per role over the layers.
#[derive(Debug, Serialize)]
pub(super) struct LineChart {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    bottom: f64,
    series: Vec<Series>,
    y_ticks: Vec<Tick>,
    x_ticks: Vec<Tick>,
}

#[derive(Debug, Serialize)]
struct Series {
    name: String,
    colour: usize,
    path: String,
    dots: Vec<Dot>,
}

#[derive(Debug, Serialize)]
struct Dot {
    x: f64,
    y: f64,
    title: String,
}

#[derive(Debug, Serialize)]
struct Tick {
    at: f64,
    label: String,
}

/// Sums of errors by layer, with the number of modules in each.
type ByLayer = IndexMap<u64, (f64, usize)>;

/// Relative error by layer and role; experts of a layer are averaged. None without layers.
pub(super) fn error_chart(modules: &[ModuleReport], error: impl Fn(&ModuleReport) -> Option<f64>) -> Option<LineChart> {
    let mut sums: IndexMap<String, ByLayer> = IndexMap::new();
    for module in modules {
        let (Some(site), Some(error)) = (Site::of(&module.record.module), error(module)) else { continue };
        let sum = sums.entry(site.role).or_default().entry(site.layer).or_insert((0.0, 0));
        *sum = (sum.0 + error, sum.1 + 1);
    }
    let mean = |sum: &(f64, usize)| sum.0 / sum.1.max(1) as f64;
    let layers = sums.values().flat_map(IndexMap::keys).copied();
    let (first, last) = (layers.clone().min()?, layers.max()?);
    let largest = sums.values().flat_map(IndexMap::values).map(mean).fold(0.0, f64::max);
    let (step, n_steps) = nice_steps(largest * 100.0);
    let top = step * n_steps as f64 / 100.0;
    let (left, right, above, bottom) = (52.0, WIDTH - 16.0, 16.0, 280.0);
    let x = |layer: u64| {
        let span = (last - first).max(1) as f64;
        if first == last {
            (left + right) / 2.0
        } else {
            left + 12.0 + (layer - first) as f64 / span * (right - left - 24.0)
        }
    };
    let y = |error: f64| bottom - error / top.max(f64::MIN_POSITIVE) * (bottom - above);
    let one = |(idx, (role, by_layer)): (usize, (&String, &mut ByLayer))| {
        by_layer.sort_keys();
        let dot = |(layer, sum): (&u64, &(f64, usize))| {
            let of = if sum.1 > 1 { format!(", mean of {}", sum.1) } else { String::new() };
            let title = format!("layer {layer}, {role}: {:.2} %{of}", mean(sum) * 100.0);
            Dot { x: round(x(*layer)), y: round(y(mean(sum))), title }
        };
        let dots: Vec<Dot> = by_layer.iter().map(dot).collect();
        let path: Vec<String> = dots.iter().map(|it| format!("{},{}", it.x, it.y)).collect();
        Series { name: role.clone(), colour: idx % N_COLOURS, path: path.join(" "), dots }
    };
    let series = sums.iter_mut().enumerate().map(one).collect();
    let tick = |idx: usize| {
        let percent = step * idx as f64;
        Tick { at: round(y(percent / 100.0)), label: format!("{} %", trimmed(percent)) }
    };
    let every = ((last - first) / 16 + 1) as usize;
    let x_ticks = (first..=last).step_by(every).map(|it| Tick { at: round(x(it)), label: it.to_string() }).collect();
    let y_ticks = (0..=n_steps).map(tick).collect();
    Some(LineChart { width: WIDTH, height: 324.0, left, right, bottom, series, y_ticks, x_ticks })
}

/// A bar that is cut into parts.
#[derive(Debug, Serialize)]
pub(super) struct Bar {
    pub(super) width: f64,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) colour: usize,
    pub(super) x: f64,
    pub(super) width: f64,
    pub(super) value: String,
    pub(super) percent: String,
}

/// Parts of `whole`; a whole that is 0 has none.
pub(super) fn bar<'n>(parts: impl IntoIterator<Item = (&'n str, f64, String)>, whole: f64) -> Bar {
    let mut at = 0.0;
    let mut bar = Bar { width: WIDTH, parts: Vec::new() };
    for (colour, (name, value, text)) in parts.into_iter().enumerate() {
        let width = if whole > 0.0 { value / whole * WIDTH } else { 0.0 };
        let percent = if whole > 0.0 { format!("{:.0} %", value / whole * 100.0) } else { String::new() };
        let (x, colour) = (round(at), colour % N_COLOURS);
        bar.parts.push(Part { name: name.to_owned(), colour, x, width: round(width), value: text, percent });
        at += width;
    }
    bar
}

/// Layers by experts, coloured by tokens.
#[derive(Debug, Serialize)]
pub(super) struct TokenMap {
    width: f64,
    height: f64,
    left: f64,
    cell: [f64; 2],
    cells: Vec<Cell>,
    rows: Vec<Tick>,
    columns: Vec<Tick>,
    /// Fewest, median and most tokens.
    range: [u64; 3],
    /// Experts that no token reached.
    n_unseen: usize,
}

#[derive(Debug, Serialize)]
struct Cell {
    x: f64,
    y: f64,
    /// 0 for none, then 1 to 6 from few to many.
    level: u8,
    title: String,
}

/// Tokens that reached each expert; none for a model without experts, or with too many to draw.
pub(super) fn token_map(modules: &[ModuleReport]) -> Option<TokenMap> {
    let mut tokens: IndexMap<(u64, u64), u64> = IndexMap::new();
    for module in modules {
        let Some(Site { layer, expert: Some(expert), .. }) = Site::of(&module.record.module) else { continue };
        let Some(n_tokens) = module.record.tokens else { continue };
        let least = tokens.entry((layer, expert)).or_insert(n_tokens);
        *least = (*least).min(n_tokens);
    }
    tokens.sort_keys();
    let n_columns = tokens.keys().map(|it| it.1).max()? + 1;
    let mut layers: Vec<u64> = tokens.keys().map(|it| it.0).collect();
    layers.dedup();
    if layers.len().saturating_mul(usize::try_from(n_columns).ok()?) > MAX_CELLS {
        return None;
    }
    let mut sorted: Vec<u64> = tokens.values().copied().collect();
    sorted.sort_unstable();
    let range = [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]];
    let left = 52.0;
    let across = (WIDTH - left) / n_columns as f64;
    let down = across.clamp(10.0, 22.0);
    let row_of = |layer: u64| layers.iter().position(|it| *it == layer).unwrap_or(0) as f64;
    let cell = |((layer, expert), n_tokens): (&(u64, u64), &u64)| Cell {
        x: round(left + across * *expert as f64),
        y: round(down * row_of(*layer)),
        level: level(*n_tokens, range[2]),
        title: format!("layer {layer}, expert {expert}: {n_tokens} tokens"),
    };
    let cells = tokens.iter().map(cell).collect();
    let height = down * layers.len() as f64;
    let every = layers.len() / 24 + 1;
    let label = |it: &u64| Tick { at: round(down * (row_of(*it) + 0.5)), label: it.to_string() };
    let rows = layers.iter().step_by(every).map(label).collect();
    let every = usize::try_from(n_columns / 16 + 1).unwrap_or(1);
    let column = |it: u64| Tick { at: round(left + across * (it as f64 + 0.5)), label: it.to_string() };
    let columns = (0..n_columns).step_by(every).map(column).collect();
    let gap = if across > 8.0 { 2.0 } else { 0.5 };
    let n_unseen = sorted.iter().filter(|it| **it == 0).count();
    let cell = [round(across - gap), round(down - 2.0)];
    Some(TokenMap { width: WIDTH, height: round(height + 24.0), left, cell, cells, rows, columns, range, n_unseen })
}

fn level(n_tokens: u64, most: u64) -> u8 {
    match n_tokens {
        0 => 0,
        // At most 6, since no count exceeds the largest.
        n => 1 + (n.saturating_mul(5) / most.max(1)).min(5) as u8,
    }
}

/// A step of 1, 2 or 5 times a power of ten, and how many of them hold `largest`.
fn nice_steps(largest: f64) -> (f64, usize) {
    let raw = (largest / 4.0).max(1e-6);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|it| it * power >= raw).unwrap_or(10.0) * power;
    (step, ((largest / step).ceil() as usize).max(1))
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_modules_name_says_its_layer_expert_and_role() {
        let site = |layer, expert, role: &str| Some(Site { layer, expert, role: role.to_owned() });
        assert_eq!(Site::of("model.layers.12.self_attn.q_proj"), site(12, None, "q_proj"));
        assert_eq!(Site::of("model.layers.3.mlp.experts.7.up_proj"), site(3, Some(7), "experts.up_proj"));
        assert_eq!(Site::of("transformer.h.0.mlp.c_fc"), site(0, None, "c_fc"));
        assert_eq!(Site::of("lm_head"), None);
    }

    #[test]
    fn steps_of_an_axis_are_round_and_hold_the_largest_value() {
        for (largest, step) in [(0.9, 0.5), (7.3, 2.0), (10.0, 5.0), (0.031, 0.01), (0.0, 1e-6)] {
            let (found, n_steps) = nice_steps(largest);
            assert!((found / step - 1.0).abs() < 1e-9, "{largest}: {found}");
            assert!(found * n_steps as f64 >= largest);
        }
    }

    #[test]
    fn levels_go_from_unseen_to_most() {
        assert_eq!([0, 1, 499, 500, 1000].map(|it| level(it, 1000)), [0, 1, 3, 3, 6]);
    }
}
