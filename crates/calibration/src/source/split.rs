//! The split grammar: `train`, `train[:5%]`, `train[10:20]+test[-5:]`.

use std::{ops::Range, path::Path, sync::LazyLock};

use regex::Regex;

use super::{Row, Source};
use crate::{ErrorKind, Place, Result, arguments::invalid};

/// A part of one split.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Name of the split.
    pub name: String,
    from: Option<i64>,
    to: Option<i64>,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Rows,
    /// Percent, boundaries rounded to the nearest row, halves to even.
    Closest,
    /// Percent of rows that divide by a hundred.
    DropRemainder,
}

static PART: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\s*([\w.\-]+)(?:\[\s*(?:(-?\d+)(%)?)?\s*:\s*(?:(-?\d+)(%)?)?\s*\])?(?:\((\w+)\))?\s*$")
        .expect("the pattern is constant and tested")
});

impl Split {
    /// Reads a split expression; parts are joined by `+`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] naming `splits`.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        text.split('+').map(|part| Self::part(part, text)).collect()
    }

    fn part(part: &str, whole: &str) -> Result<Self> {
        let refused =
            || invalid("splits", &format!("`{whole}`"), "name, name[from:to] or name[from%:to%], joined by +");
        let found = PART.captures(part).ok_or_else(refused)?;
        let number = |i: usize| match found.get(i) {
            Some(digits) => digits.as_str().parse::<i64>().map(Some).map_err(|_| refused()),
            None => Ok(None),
        };
        let (from, to) = (number(2)?, number(4)?);
        let [from_percent, to_percent] = [3, 5].map(|i| found.get(i).is_some());
        let percent = from_percent || to_percent;
        if percent && ((from.is_some() && !from_percent) || (to.is_some() && !to_percent)) {
            return Err(invalid("splits", &format!("`{whole}`"), "both boundaries in rows or both in percent"));
        }
        if percent && [from, to].into_iter().flatten().any(|boundary| boundary.abs() > 100) {
            return Err(invalid("splits", &format!("`{whole}`"), "percent between -100 and 100"));
        }
        let unit = match (percent, found.get(6).map(|rounding| rounding.as_str())) {
            (false, None) => Unit::Rows,
            (true, None | Some("closest")) => Unit::Closest,
            (true, Some("pct1_dropremainder")) => Unit::DropRemainder,
            _ => return Err(invalid("splits", &format!("`{whole}`"), "rounding closest or pct1_dropremainder")),
        };
        Ok(Self { name: found[1].to_owned(), from, to, unit })
    }

    /// Whether the whole split is meant.
    pub fn is_whole(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// Whether the rows can be told without counting all of them.
    fn needs_no_count(&self) -> bool {
        let is_row = |boundary: Option<i64>| boundary.is_none_or(|boundary| boundary >= 0);
        self.unit == Unit::Rows && is_row(self.from) && self.to.is_some_and(|to| to >= 0)
    }

    /// Rows meant, of `n` rows.
    pub fn range(&self, n: usize) -> Range<usize> {
        let n_signed = i64::try_from(n).unwrap_or(i64::MAX);
        let rows = |boundary: i64| match self.unit {
            Unit::Rows => boundary,
            Unit::Closest => (boundary as f64 * n as f64 / 100.0).round_ties_even() as i64,
            Unit::DropRemainder => boundary * (n_signed / 100),
        };
        let clamp = |boundary: i64| {
            let boundary = if boundary < 0 { n_signed.saturating_add(boundary) } else { boundary };
            usize::try_from(boundary).unwrap_or(0).min(n)
        };
        let from = clamp(self.from.map_or(0, rows));
        let to = self.to.map_or(n, |to| clamp(rows(to)));
        from..to.max(from)
    }
}

/// The split names of an expression, which decide the files; all parts must name the same.
///
/// # Errors
/// What [`Split::parse`] refuses, and parts of different splits.
pub fn split_name(parts: &[Split]) -> Result<&str> {
    let first = parts.first().map_or("train", |part| part.name.as_str());
    match parts.iter().find(|part| part.name != first) {
        None => Ok(first),
        Some(other) => {
            let what = format!("a sum of the splits `{first}` and `{}`", other.name);
            Err(ErrorKind::Unsupported { what, hint: "name parts of one split".to_owned() }.into())
        }
    }
}

/// Parts of a source, one after the other.
pub struct Sliced {
    source: Box<dyn Source>,
    ranges: Vec<Range<usize>>,
}

impl Sliced {
    /// Takes the parts of a source; rows are counted only where a part needs it.
    ///
    /// # Errors
    /// What counting the source refuses.
    pub fn new(mut source: Box<dyn Source>, parts: &[Split]) -> Result<Self> {
        let mut ranges = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let from = part.from.unwrap_or(0);
            // Row boundaries past the end end the source by themselves, but only the last part may be short.
            let range = match part.to {
                Some(to) if part.needs_no_count() && i + 1 == parts.len() => {
                    let [from, to] = [from, to].map(|boundary| usize::try_from(boundary).unwrap_or(0));
                    from..to.max(from)
                }
                _ => part.range(source.count()?),
            };
            ranges.push(range);
        }
        Ok(Self { source, ranges })
    }

    fn inner(&self, index: usize) -> Option<usize> {
        let mut left = index;
        for range in &self.ranges {
            if left < range.len() {
                return Some(range.start + left);
            }
            left -= range.len();
        }
        None
    }
}

impl Source for Sliced {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        match self.inner(index) {
            Some(inner) => self.source.row(inner),
            None => Ok(None),
        }
    }

    fn count(&mut self) -> Result<usize> {
        let n = self.source.count()?;
        Ok(self.ranges.iter().map(|range| range.end.min(n).saturating_sub(range.start)).sum())
    }

    fn expect_rows(&mut self, rows: &[usize]) -> Result<()> {
        let inner: Vec<usize> = rows.iter().filter_map(|&row| self.inner(row)).collect();
        self.source.expect_rows(&inner)
    }

    fn place(&self, index: usize) -> Place {
        self.source.place(self.inner(index).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str, n: usize) -> Vec<(usize, usize)> {
        let parts = Split::parse(text).unwrap();
        parts.iter().map(|part| part.range(n)).map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn the_grammar_takes_rows_percent_negatives_and_sums() {
        assert_eq!(ranges("train", 7), [(0, 7)]);
        assert_eq!(ranges("train[:5%]", 1000), [(0, 50)]);
        assert_eq!(ranges("train[10:20]", 15), [(10, 15)]);
        assert_eq!(ranges("train[-5:]", 15), [(10, 15)]);
        assert_eq!(ranges("train[:-5]", 15), [(0, 10)]);
        assert_eq!(ranges("train[50%:]", 5), [(2, 5)]);
        assert_eq!(ranges("train[:50%]", 7), [(0, 4)]);
        assert_eq!(ranges("train[:50%](pct1_dropremainder)", 250), [(0, 100)]);
        assert_eq!(ranges("train[:2]+train[4:6]", 5), [(0, 2), (4, 5)]);
        assert_eq!(ranges("train[9:3]", 5), [(5, 5)]);
        assert_eq!(ranges("train[-99:]", 5), [(0, 5)]);
    }

    #[test]
    fn what_the_grammar_does_not_know_is_refused_by_name() {
        for text in ["", "train[", "train[5]", "train[:5%", "train[1:50%]", "train[:101%]", "train[:5](closest)", "a b"]
        {
            let error = Split::parse(text).unwrap_err();
            let is_splits = matches!(error.kind(), ErrorKind::InvalidArgument { argument, .. } if argument == "splits");
            assert!(is_splits, "{text}: {error}");
        }
        split_name(&Split::parse("train+test").unwrap()).unwrap_err();
    }
}
