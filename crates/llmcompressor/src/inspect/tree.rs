//! Modules as an indented tree, layers that look alike folded.

use bytesize::ByteSize;
use indexmap::IndexMap;

use super::InspectedModule;

/// Whether layers that look alike share a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Folding {
    On,
    Off,
}

/// A module and those inside it.
#[derive(Debug, Default)]
pub(super) struct Tree<'m> {
    module: Option<&'m InspectedModule>,
    children: IndexMap<&'m str, Self>,
}

/// A line of the printed tree: the name, indented, and what stands in the columns.
struct Line {
    name: String,
    columns: [String; 5],
}

impl<'m> Tree<'m> {
    pub(super) fn of(modules: &'m [InspectedModule]) -> Self {
        let mut root = Self::default();
        for module in modules {
            let mut node = &mut root;
            for segment in module.name.split('.') {
                node = node.children.entry(segment).or_default();
            }
            node.module = Some(module);
        }
        root
    }

    pub(super) fn text(&self, folding: Folding) -> String {
        let mut lines = vec![Line {
            name: "module".to_owned(),
            columns: ["shape", "dtype", "scheme", "bits", "size"].map(str::to_owned),
        }];
        self.lines(0, folding, &mut lines);
        let width = |cell: fn(&Line, usize) -> &str, idx: usize| {
            lines.iter().map(|it| cell(it, idx).chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..5).map(|idx| width(|line, idx| &line.columns[idx], idx)).collect();
        let names = width(|line, _| &line.name, 0);
        let print = |line: &Line| {
            let mut text = format!("{:names$}", line.name);
            for (column, width) in line.columns.iter().zip(&widths) {
                text.push_str(&format!("  {column:width$}"));
            }
            text.trim_end().to_owned()
        };
        lines.iter().map(print).collect::<Vec<_>>().join("\n")
    }

    fn lines(&self, depth: usize, folding: Folding, lines: &mut Vec<Line>) {
        let children: Vec<(&str, &Self)> = self.children.iter().map(|(name, it)| (*name, it)).collect();
        let alike = |a: &(&str, &Self), b: &(&str, &Self)| {
            let is_number = |name: &str| name.bytes().all(|it| it.is_ascii_digit());
            folding == Folding::On && is_number(a.0) && is_number(b.0) && a.1.signature() == b.1.signature()
        };
        for run in children.chunk_by(alike) {
            let [(first, node), ..] = run else { continue };
            let name = match run {
                [_] => (*first).to_owned(),
                _ => format!("{first}-{} ({} alike)", run[run.len() - 1].0, run.len()),
            };
            lines.push(Line {
                name: format!("{:indent$}{name}", "", indent = depth * 2),
                columns: node.columns(run.len()),
            });
            node.lines(depth + 1, folding, lines);
        }
    }

    fn columns(&self, n_alike: usize) -> [String; 5] {
        let size = ByteSize(self.bytes() * n_alike as u64).to_string();
        let Some(module) = self.module else {
            return [String::new(), String::new(), String::new(), String::new(), size];
        };
        let shape = module.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let scheme = match (&module.scheme, module.format) {
            (Some(scheme), Some(format)) => format!("{scheme} ({format})"),
            _ => String::new(),
        };
        [shape, module.dtypes.join(" "), scheme, format!("{:.2}", module.bits_per_parameter), size]
    }

    fn bytes(&self) -> u64 {
        self.module.map_or(0, |it| it.bytes) + self.children.values().map(Self::bytes).sum::<u64>()
    }

    /// Everything that is printed of it and below it, but its name.
    fn signature(&self) -> String {
        let mut text = self.columns(1).join("|");
        for (name, child) in &self.children {
            text.push_str(&format!("({name}:{})", child.signature()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, shape: &[usize]) -> InspectedModule {
        InspectedModule {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtypes: vec!["BF16".to_owned()],
            scheme: None,
            format: None,
            n_parameters: 1,
            bits_per_parameter: 16.0,
            bytes: 2,
        }
    }

    #[test]
    fn layers_that_look_alike_share_a_line_and_others_do_not() {
        let modules =
            [module("m.0.q", &[1, 2]), module("m.1.q", &[1, 2]), module("m.2.q", &[3, 2]), module("head", &[1])];
        let folded = Tree::of(&modules).text(Folding::On);
        assert!(folded.contains("0-1 (2 alike)"), "{folded}");
        assert_eq!(folded.lines().count(), 7);
        assert_eq!(Tree::of(&modules).text(Folding::Off).lines().count(), 9);
    }
}
