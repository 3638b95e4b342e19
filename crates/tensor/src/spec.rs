//! Shapes with symbolic extents, so that one trace serves every batch and length.

use std::fmt;

use crate::error::{ErrorKind, Result};
use crate::{DType, Tensor};

/// An extent that a trace leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Symbol {
    /// B, rows of a batch.
    Batch,
    /// T, tokens of a row.
    Time,
    /// R, rows that a router handed to experts.
    Routed,
}

/// An extent: a known factor times symbols, so that B * T is one too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dim {
    factor: usize,
    symbols: Vec<Symbol>,
}

/// What is known of a tensor before it exists: dtype and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<Dim>,
}

impl Dim {
    /// The extent that `symbol` stands for.
    pub fn symbol(symbol: Symbol) -> Self {
        Self { factor: 1, symbols: vec![symbol] }
    }

    /// The extent as a number.
    ///
    /// # Errors
    /// [`ErrorKind::Symbolic`] where a trace leaves it open.
    pub fn known(&self) -> Result<usize> {
        if self.symbols.is_empty() { Ok(self.factor) } else { Err(ErrorKind::Symbolic { dim: self.clone() }.into()) }
    }

    /// The extent of two dimensions made one.
    #[must_use]
    pub fn times(&self, other: &Self) -> Self {
        let mut symbols = [self.symbols.as_slice(), other.symbols.as_slice()].concat();
        symbols.sort_unstable();
        Self { factor: self.factor.saturating_mul(other.factor), symbols }
    }

    /// The extent under a choice of symbols.
    pub fn resolve(&self, value_of: impl Fn(Symbol) -> usize) -> usize {
        self.symbols.iter().fold(self.factor, |product, &symbol| product.saturating_mul(value_of(symbol)))
    }
}

impl From<usize> for Dim {
    fn from(factor: usize) -> Self {
        Self { factor, symbols: Vec::new() }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters: Vec<_> = self
            .symbols
            .iter()
            .map(|symbol| match symbol {
                Symbol::Batch => "B",
                Symbol::Time => "T",
                Symbol::Routed => "R",
            })
            .collect();
        match (self.factor, letters.is_empty()) {
            (factor, true) => write!(f, "{factor}"),
            (1, false) => f.write_str(&letters.join("*")),
            (factor, false) => write!(f, "{factor}*{}", letters.join("*")),
        }
    }
}

impl Spec {
    /// A spec from a dtype and extents.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        Self { dtype, shape }
    }

    /// The spec of a tensor that exists.
    pub fn of(tensor: &Tensor) -> Self {
        Self { dtype: tensor.dtype(), shape: tensor.shape().iter().map(|&n| n.into()).collect() }
    }

    /// Extent of the last dimension as a number.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for a scalar, [`ErrorKind::Symbolic`] where a trace leaves it open.
    pub fn width(&self) -> Result<usize> {
        match self.shape.last() {
            Some(dim) => dim.known(),
            None => Err(ErrorKind::Shape { argument: "x", found: vec![], expected: "a dimension".into() }.into()),
        }
    }

    /// The same dtype with another last extent.
    #[must_use]
    pub fn with_width(&self, width: usize) -> Self {
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = width.into();
        }
        Self { dtype: self.dtype, shape }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (idx, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if idx == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbolic_extent_is_no_number_and_says_so() {
        let rows = Dim::symbol(Symbol::Time).times(&Dim::symbol(Symbol::Batch)).times(&2.into());
        assert_eq!(rows.to_string(), "2*B*T");
        assert_eq!(rows.known().unwrap_err().kind(), &ErrorKind::Symbolic { dim: rows.clone() });
        assert_eq!(rows.resolve(|symbol| if symbol == Symbol::Batch { 3 } else { 5 }), 30);
        assert_eq!(Dim::from(4).times(&3.into()).known().unwrap(), 12);
    }
}
