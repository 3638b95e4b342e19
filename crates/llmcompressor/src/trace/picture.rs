//! Subgraphs as a picture: a row each, values between them as lines, costs as bars; nothing outside of it is needed.

use std::fmt::Write as _;

use bytesize::ByteSize;

use super::{
    Trace, TracedSubgraph,
    text::{calls, heading, short},
};

/// Where rows begin, below title, key and column heads.
const TOP: usize = 132;
/// Height of a row.
const ROW: usize = 44;
/// Left edge of the index, and of names.
const INDEX: usize = 24;
const NAMES: usize = 64;
/// Left edge of the lines of values.
const LANES: usize = 452;
/// From one line of values to the next.
const LANE: usize = 16;
/// Width of the longest bar, and of a column of bars.
const BAR: usize = 104;
const COLUMN: usize = 196;
/// Letters of a name and of the line below it that fit.
const NAME_LETTERS: usize = 50;
const NOTE_LETTERS: usize = 58;

const STYLE: &str = "
.page{fill:#ffffff}.stripe{fill:#f4f6f8}.ink{fill:#1c2430}.pale{fill:#66707d}
.title{font-size:20px;font-weight:600}.head{font-size:11px;font-weight:600;letter-spacing:.04em}
.name{font-size:13px;font-weight:500}.note{font-size:11px}.figure{font-size:11.5px}
.track{fill:#e3e8ee}.parameters{fill:#3d6fb6}.flop{fill:#d9822b}.kept{fill:#2f9b7c}
.line{stroke:#2f9b7c;stroke-width:2.5;stroke-linecap:round}.long{stroke:#8a63c9}
.from{fill:#ffffff;stroke:#2f9b7c;stroke-width:2}.from.long{stroke:#8a63c9}.to{fill:#2f9b7c}.to.long{fill:#8a63c9}
@media (prefers-color-scheme:dark){
.page{fill:#15191f}.stripe{fill:#1b2129}.ink{fill:#e6eaf0}.pale{fill:#98a3b1}.track{fill:#2a323d}
.from{fill:#15191f}}";

/// A value on its way: made by a row, or there from the start; taken by others.
struct Line {
    name: String,
    /// None for an input of the model.
    made_by: Option<usize>,
    taken_by: Vec<usize>,
    lane: usize,
}

pub(super) fn svg(trace: &Trace) -> String {
    let lines = lines(&trace.subgraphs);
    let n_lanes = lines.iter().map(|it| it.lane + 1).max().unwrap_or(0);
    let bars = LANES + n_lanes.max(4) * LANE + 28;
    let (width, height) = (bars + 3 * COLUMN, TOP + trace.subgraphs.len() * ROW + 56);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n<title>{}</title>\n<style>{STYLE}\n</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n",
        escaped(&heading(trace))
    );
    head(&mut out, trace, bars);
    let most = |of: fn(&TracedSubgraph) -> u64| trace.subgraphs.iter().map(of).max().unwrap_or(0);
    let columns = [
        Column { class: "parameters", of: |it| it.parameter_bytes, text: size, most: most(|it| it.parameter_bytes) },
        Column { class: "flop", of: |it| it.flop_per_token, text: short, most: most(|it| it.flop_per_token) },
        Column {
            class: "kept",
            of: |it| it.kept_bytes_per_token,
            text: size,
            most: most(|it| it.kept_bytes_per_token),
        },
    ];
    for (idx, subgraph) in trace.subgraphs.iter().enumerate() {
        row(&mut out, idx, subgraph, width);
        for (number, column) in columns.iter().enumerate() {
            column.bar(&mut out, subgraph, bars + number * COLUMN, TOP + idx * ROW + ROW / 2);
        }
    }
    for line in &lines {
        line.draw(&mut out, trace);
    }
    let totals = &trace.totals;
    let bottom = TOP + trace.subgraphs.len() * ROW + 30;
    let sums = [size(totals.parameter_bytes), short(totals.flop_per_token), size(totals.largest_kept_bytes_per_token)];
    text(&mut out, [NAMES, bottom], "name ink", "all of them");
    for (number, (sum, note)) in sums.iter().zip(["each once", "in all", "at most"]).enumerate() {
        text(&mut out, [bars + number * COLUMN, bottom], "figure ink", &format!("{sum} {note}"));
    }
    out.push_str("</svg>\n");
    out
}

pub(super) fn html(trace: &Trace) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>{}</title>\n<style>\nbody {{ margin: 0; \
         background: #ffffff; }}\nsvg {{ display: block; margin: 0 auto; max-width: 100%; height: auto; }}\n\
         @media (prefers-color-scheme: dark) {{ body {{ background: #15191f; }} }}\n</style>\n</head>\n<body>\n{}</body>\n\
         </html>\n",
        escaped(&heading(trace)),
        svg(trace)
    )
}

/// Title, what was cut, key, and heads of columns.
fn head(out: &mut String, trace: &Trace, bars: usize) {
    let heading = heading(trace);
    let said = heading.get(trace.model.len() + 2..).unwrap_or_default();
    let name = trace.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    text(out, [INDEX, 40], "title ink", name);
    text(out, [INDEX, 64], "name pale", said);
    let y = 88;
    let key = [
        ("line", "from", "to", "a value, taken by the next subgraph"),
        ("line long", "from long", "to long", "carried further"),
    ];
    let mut x = INDEX + 6;
    for (line, from, to, said) in key {
        let _ = writeln!(out, "<path class=\"{line}\" d=\"M{x} {y}h28\"/>");
        let _ = writeln!(out, "<circle class=\"{from}\" cx=\"{x}\" cy=\"{y}\" r=\"4\"/>");
        let _ = writeln!(out, "<circle class=\"{to}\" cx=\"{}\" cy=\"{y}\" r=\"3.5\"/>", x + 28);
        text(out, [x + 42, y + 4], "note pale", said);
        x += 280;
    }
    text(out, [NAMES, TOP - 12], "head pale", "SUBGRAPH");
    text(out, [LANES - 8, TOP - 12], "head pale", "VALUES");
    for (number, title) in ["PARAMETERS", "FLOP PER TOKEN", "KEPT PER TOKEN"].into_iter().enumerate() {
        text(out, [bars + number * COLUMN, TOP - 12], "head pale", title);
    }
}

/// Index and name of a subgraph, what it takes and gives.
fn row(out: &mut String, idx: usize, it: &TracedSubgraph, width: usize) {
    let top = TOP + idx * ROW;
    if idx.is_multiple_of(2) {
        let _ = writeln!(out, "<rect class=\"stripe\" y=\"{top}\" width=\"{width}\" height=\"{ROW}\"/>");
    }
    let names = |values: &[super::TracedValue]| values.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ");
    let name = calls(it).join(", ");
    let note = format!("{} \u{2192} {}", names(&it.inputs), names(&it.outputs));
    let values =
        |values: &[super::TracedValue]| values.iter().map(super::TracedValue::text).collect::<Vec<_>>().join("\n    ");
    let told = format!(
        "{name}\ntakes\n    {}\ngives\n    {}\ndrops\n    {}",
        values(&it.inputs),
        values(&it.outputs),
        it.consumed.join("\n    ")
    );
    let _ = writeln!(out, "<g><title>{}</title>", escaped(&told));
    let _ = writeln!(
        out,
        "<rect y=\"{top}\" width=\"{}\" height=\"{ROW}\" fill=\"none\" pointer-events=\"all\"/>",
        LANES - 20
    );
    text(out, [INDEX, top + 19], "figure pale", &it.index.to_string());
    text(out, [NAMES, top + 19], "name ink", &cut(&name, NAME_LETTERS));
    text(out, [NAMES, top + 35], "note pale", &cut(&note, NOTE_LETTERS));
    out.push_str("</g>\n");
}

/// A figure of all subgraphs.
struct Column {
    class: &'static str,
    of: fn(&TracedSubgraph) -> u64,
    text: fn(u64) -> String,
    most: u64,
}

impl Column {
    fn bar(&self, out: &mut String, it: &TracedSubgraph, x: usize, middle: usize) {
        let n = (self.of)(it);
        let share = n as f64 / self.most.max(1) as f64;
        // What is not nothing is seen.
        let width = if n == 0 { 0.0 } else { (share * BAR as f64).max(2.0) };
        let y = middle - 5;
        let _ = writeln!(out, "<rect class=\"track\" x=\"{x}\" y=\"{y}\" width=\"{BAR}\" height=\"10\" rx=\"3\"/>");
        if n > 0 {
            let class = self.class;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"10\" rx=\"3\"/>"
            );
        }
        let said = if n == 0 { "\u{2013}".to_owned() } else { (self.text)(n) };
        text(out, [x + BAR + 8, middle + 4], "figure ink", &said);
    }
}

/// Values that subgraphs take, each on a lane that no other value uses at the same time.
fn lines(subgraphs: &[TracedSubgraph]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (idx, subgraph) in subgraphs.iter().enumerate() {
        for value in &subgraph.inputs {
            match lines.iter_mut().find(|it| it.name == value.name) {
                Some(line) => line.taken_by.push(idx),
                None => {
                    let made_by =
                        subgraphs[..idx].iter().position(|it| it.outputs.iter().any(|it| it.name == value.name));
                    lines.push(Line { name: value.name.clone(), made_by, taken_by: vec![idx], lane: 0 });
                }
            }
        }
    }
    // Long ones first, so that those from row to row keep to one lane each.
    lines.sort_by_key(|it| (it.made_by, std::cmp::Reverse(it.end())));
    let mut free_from: Vec<usize> = Vec::new();
    for line in &mut lines {
        let start = line.made_by.unwrap_or(0);
        line.lane = free_from.iter().position(|end| *end <= start).unwrap_or(free_from.len());
        if line.lane == free_from.len() {
            free_from.push(0);
        }
        free_from[line.lane] = line.end();
    }
    lines
}

impl Line {
    fn end(&self) -> usize {
        self.taken_by.last().copied().unwrap_or(0)
    }

    fn draw(&self, out: &mut String, trace: &Trace) {
        let middle = |idx: usize| TOP + idx * ROW + ROW / 2;
        let is_long = self.made_by.is_none_or(|it| self.end() > it + 1) && self.end() > 0;
        let long = if is_long { " long" } else { "" };
        let (x, end) = (LANES + self.lane * LANE, middle(self.end()) - 5);
        // A value is given below the middle of its row and taken above it.
        let begin = self.made_by.map_or(TOP - 4, |it| middle(it) + 5);
        let value = trace.subgraphs.iter().flat_map(|it| &it.inputs).find(|it| it.name == self.name);
        let told = value.map(super::TracedValue::text).unwrap_or_default();
        let _ = writeln!(out, "<g><title>{}</title>", escaped(&told));
        let _ = writeln!(out, "<path class=\"line{long}\" d=\"M{x} {begin}V{end}\"/>");
        let _ = writeln!(out, "<circle class=\"from{long}\" cx=\"{x}\" cy=\"{begin}\" r=\"4\"/>");
        for &idx in &self.taken_by {
            let _ = writeln!(out, "<circle class=\"to{long}\" cx=\"{x}\" cy=\"{}\" r=\"3.5\"/>", middle(idx) - 5);
        }
        out.push_str("</g>\n");
    }
}

fn text(out: &mut String, [x, y]: [usize; 2], class: &str, said: &str) {
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(said));
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// The front of a text, with an ellipsis where it was longer.
fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters - 1).chain(['\u{2026}']).collect()
}

/// A text as it stands in XML; letters that XML cannot hold become a mark.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_would_end_a_text_are_escaped() {
        assert_eq!(escaped("a<b>&\"\u{1}\u{1b}c"), "a&lt;b&gt;&amp;&quot;\u{fffd}\u{fffd}c");
    }

    #[test]
    fn a_long_name_is_cut_between_letters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö\u{2026}");
    }
}
