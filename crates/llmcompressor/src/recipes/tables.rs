//! The fields of all modifiers as Markdown tables, which the documentation holds.

use lifecycle::recipe::{FieldSpec, ModifierSpec};
use modifiers::MODIFIERS;

/// The fields that every modifier has, which the documentation says once.
const EVERY: [&str; 6] = ["requires_calibration_data", "index", "group", "start", "end", "update"];

/// A section for every modifier: what it does, and its fields with what they take and their defaults.
pub fn field_tables() -> String {
    let sections: Vec<String> = MODIFIERS.iter().map(section).collect();
    sections.join("\n")
}

/// Fields of a modifier that are its own.
pub(crate) fn own_fields(spec: &ModifierSpec) -> Vec<FieldSpec> {
    spec.all_fields().into_iter().filter(|it| !EVERY.contains(&it.name) && !it.name.ends_with('_')).collect()
}

/// The default as a recipe would write it.
pub(crate) fn default_text(field: &FieldSpec) -> String {
    field.default.map_or_else(|| "required".to_owned(), |it| format!("`{it}`"))
}

fn section(spec: &ModifierSpec) -> String {
    let mut text = format!("### {}\n\n{}\n\n| field | takes | default | |\n|---|---|---|---|\n", spec.name, spec.doc);
    for field in own_fields(spec) {
        let takes = field.kind.expected().replace('|', "\\|");
        text.push_str(&format!("| `{}` | {takes} | {} | {} |\n", field.name, default_text(&field), field.doc));
    }
    text
}
