//! The formulas of knowledge distillation: transforms of layer outputs, and comparisons of a student with
//! its teacher.
//!
//! Values are f32, sums are taken in f64 in the order of the elements, and exponentials and logarithms are
//! those of `kernels`, so that the same values give the same result on every machine.

use indexmap::IndexMap;
use kernels::elementary::{exp_f64, ln_f64, pow_f64};
use serde_json::{Map, Value};

use crate::{
    Result,
    error::{Error, ErrorKind},
};

/// A dense array.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Dense {
    /// An array of a shape, row-major.
    ///
    /// # Errors
    /// Data that does not fill the shape.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let elements = shape.iter().try_fold(1usize, |product, it| product.checked_mul(*it));
        if elements != Some(data.len()) {
            return Err(Error::failed(format_args!("{} values do not fill the shape {shape:?}", data.len())));
        }
        Ok(Self { shape, data })
    }

    /// Extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    fn axis(&self, dim: i64) -> Result<Axis> {
        let rank = self.shape.len();
        let position = if dim < 0 { dim.checked_add(rank as i64) } else { Some(dim) };
        let position = position.and_then(|it| usize::try_from(it).ok()).filter(|it| *it < rank);
        let Some(position) = position else {
            let expected = format!("a dimension of {rank}");
            return Err(ErrorKind::OutOfRange { argument: "dim", found: dim.to_string(), expected }.into());
        };
        let inner = self.shape[position + 1..].iter().product();
        Ok(Axis { position, length: self.shape[position], inner })
    }

    fn same_shape(&self, other: &Self) -> Result<()> {
        if self.shape == other.shape {
            return Ok(());
        }
        let found = format!("{:?} and {:?}", self.shape, other.shape);
        Err(ErrorKind::OutOfRange { argument: "shape", found, expected: "equal shapes".to_owned() }.into())
    }

    fn map(&self, call: impl Fn(f64) -> f64) -> Self {
        let data = self.data.iter().map(|it| call(f64::from(*it)) as f32).collect();
        Self { shape: self.shape.clone(), data }
    }

    /// Applies a function to every line along a dimension.
    fn map_lines(&self, dim: i64, mut call: impl FnMut(&mut [f64])) -> Result<Self> {
        let axis = self.axis(dim)?;
        let mut out = self.clone();
        let mut line = vec![0.0; axis.length];
        for start in axis.starts(self.data.len()) {
            for (position, slot) in line.iter_mut().enumerate() {
                *slot = f64::from(self.data[start + position * axis.inner]);
            }
            call(&mut line);
            for (position, value) in line.iter().enumerate() {
                out.data[start + position * axis.inner] = *value as f32;
            }
        }
        Ok(out)
    }

    /// Reduces every line along a dimension of two arrays, summing up terms.
    fn sum_lines<const N: usize>(
        &self,
        other: &Self,
        dim: i64,
        term: impl Fn(f64, f64) -> [f64; N],
        result: impl Fn([f64; N]) -> f64,
    ) -> Result<Self> {
        self.same_shape(other)?;
        let axis = self.axis(dim)?;
        let line = |start: usize| {
            let mut sums = [0.0; N];
            for position in 0..axis.length {
                let at = start + position * axis.inner;
                let terms = term(f64::from(self.data[at]), f64::from(other.data[at]));
                sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
            result(sums) as f32
        };
        let data = axis.starts(self.data.len()).map(line).collect();
        let mut shape = self.shape.clone();
        shape.remove(axis.position);
        Ok(Self { shape, data })
    }
}

struct Axis {
    position: usize,
    length: usize,
    inner: usize,
}

impl Axis {
    /// Where lines along the dimension start.
    fn starts(&self, elements: usize) -> impl Iterator<Item = usize> + use<> {
        let (block, inner) = (self.length * self.inner, self.inner);
        let blocks = elements.checked_div(block).unwrap_or(0);
        (0..blocks).flat_map(move |it| (0..inner).map(move |offset| it * block + offset))
    }
}

/// Arguments of a formula, each taken once; what is left over is unknown.
struct Arguments<'a> {
    formula: &'a str,
    left: Map<String, Value>,
}

impl Arguments<'_> {
    fn number(&mut self, name: &'static str, default: f64) -> Result<f64> {
        let Some(value) = self.left.remove(name) else { return Ok(default) };
        let expected = "a number";
        let found = || ErrorKind::WrongType { argument: name, found: value.to_string(), expected };
        Ok(value.as_f64().ok_or_else(found)?)
    }

    fn dim(&mut self) -> Result<i64> {
        Ok(self.number("dim", -1.0)? as i64)
    }

    fn flag(&mut self, name: &'static str) -> Result<bool> {
        let Some(value) = self.left.remove(name) else { return Ok(false) };
        let expected = "true or false";
        let found = || ErrorKind::WrongType { argument: name, found: value.to_string(), expected };
        Ok(value.as_bool().ok_or_else(found)?)
    }

    fn finish<T>(self, formula: T) -> Result<T> {
        match self.left.keys().next() {
            None => Ok(formula),
            Some(name) => Err(ErrorKind::UnknownKey {
                what: format!("argument of {}", self.formula),
                name: name.clone(),
                nearest_names: Vec::new(),
                known: Vec::new(),
            }
            .into()),
        }
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> Error {
    let known = known.iter().map(|it| (*it).to_owned()).collect();
    ErrorKind::UnknownKey { what: what.to_owned(), name: name.to_owned(), nearest_names: Vec::new(), known }.into()
}

/// What is done to a layer's output before it is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transform {
    /// Nothing.
    Identity,
    /// softmax(x / temperature) along `dim`.
    Softmax {
        /// Divides the values.
        temperature: f64,
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// ln softmax(x / temperature) along `dim`.
    LogSoftmax {
        /// Divides the values.
        temperature: f64,
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// x / max(‖x‖ₚ, epsilon) along `dim`, then centred and divided by its deviation where asked for.
    Normalize {
        /// Order of the norm.
        p: f64,
        /// The dimension, from the end where negative.
        dim: i64,
        /// Least norm.
        epsilon: f64,
        /// Whether the mean is subtracted.
        center: bool,
        /// Whether the values are divided by their unbiased deviation.
        scale: bool,
    },
}

impl Transform {
    /// A transform by the reference's name and arguments.
    ///
    /// # Errors
    /// An unknown name or argument.
    pub fn create(name: &str, args: &Map<String, Value>) -> Result<Self> {
        let mut args = Arguments { formula: name, left: args.clone() };
        let transform = match name {
            "identity" => Self::Identity,
            "softmax" => Self::Softmax { temperature: args.number("temperature", 1.0)?, dim: args.dim()? },
            "log_softmax" => Self::LogSoftmax { temperature: args.number("temperature", 1.0)?, dim: args.dim()? },
            "normalize" => Self::Normalize {
                p: args.number("p", 1.0)?,
                dim: args.dim()?,
                epsilon: args.number("epsilon", 1e-12)?,
                center: args.flag("mean")?,
                scale: args.flag("std")?,
            },
            _ => return Err(unknown("transform", name, &["identity", "softmax", "log_softmax", "normalize"])),
        };
        args.finish(transform)
    }

    /// The transformed values.
    ///
    /// # Errors
    /// A dimension that the values lack.
    pub fn apply(&self, values: &Dense) -> Result<Dense> {
        match *self {
            Self::Identity => Ok(values.clone()),
            Self::Softmax { temperature, dim } => values.map_lines(dim, |line| {
                log_softmax(line, temperature);
                line.iter_mut().for_each(|it| *it = exp_f64(*it));
            }),
            Self::LogSoftmax { temperature, dim } => values.map_lines(dim, |line| log_softmax(line, temperature)),
            Self::Normalize { p, dim, epsilon, center, scale } => values.map_lines(dim, |line| {
                let norm = norm(line, p).max(epsilon);
                line.iter_mut().for_each(|it| *it /= norm);
                let mean = line.iter().sum::<f64>() / line.len() as f64;
                // The deviation is that of the values as they are then; a shift does not change it.
                let squares: f64 = line.iter().map(|it| (it - mean) * (it - mean)).sum();
                let deviation = (squares / (line.len() as f64 - 1.0)).sqrt();
                for value in line {
                    *value = if center { *value - mean } else { *value };
                    *value = if scale { *value / deviation } else { *value };
                }
            }),
        }
    }
}

fn log_softmax(line: &mut [f64], temperature: f64) {
    line.iter_mut().for_each(|it| *it /= temperature);
    let largest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = line.iter().map(|it| exp_f64(it - largest)).sum();
    let log_sum = largest + ln_f64(sum);
    line.iter_mut().for_each(|it| *it -= log_sum);
}

fn norm(line: &[f64], p: f64) -> f64 {
    if p == 1.0 {
        return line.iter().map(|it| it.abs()).sum();
    }
    if p == 2.0 {
        return line.iter().map(|it| it * it).sum::<f64>().sqrt();
    }
    pow_f64(line.iter().map(|it| pow_f64(it.abs(), p)).sum(), 1.0 / p)
}

/// What becomes of the losses of several positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// They stay.
    None,
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

/// How far a student's values `a` are from its teacher's `b`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    /// Σ|a − b| along `dim`.
    L1Distance {
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// Σ(a − b)² along `dim`.
    L2Distance {
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// Σab along `dim`.
    InnerProduct {
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// Σab / (‖a‖‖b‖) along `dim`.
    CosineSimilarity {
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// Σ a' ln(a' / b') along `dim` with a' = a / temperature. The values are not made into
    /// probabilities: give a softmax as transform.
    KlDivergence {
        /// Divides the values.
        temperature: f64,
        /// The dimension, from the end where negative.
        dim: i64,
    },
    /// −Σ b' ln softmax(a') along dimension 1, or 0 of a vector, with a' = a / temperature.
    CrossEntropy {
        /// Divides the values.
        temperature: f64,
        /// What becomes of the positions.
        reduction: Reduction,
    },
    /// Σ(b − a)² / Σb² over everything.
    SquareHead,
}

impl Comparison {
    /// A comparison by the reference's name and arguments.
    ///
    /// # Errors
    /// An unknown name or argument.
    pub fn create(name: &str, args: &Map<String, Value>) -> Result<Self> {
        const NAMES: [&str; 7] = [
            "l1_distance",
            "l2_distance",
            "inner_product",
            "cosine_similarity",
            "kl_divergence",
            "cross_entropy",
            "square_head",
        ];
        let mut args = Arguments { formula: name, left: args.clone() };
        let comparison = match name {
            "l1_distance" => Self::L1Distance { dim: args.dim()? },
            "l2_distance" => Self::L2Distance { dim: args.dim()? },
            "inner_product" => Self::InnerProduct { dim: args.dim()? },
            "cosine_similarity" => Self::CosineSimilarity { dim: args.dim()? },
            "kl_divergence" => Self::KlDivergence { temperature: args.number("temperature", 1.0)?, dim: args.dim()? },
            "cross_entropy" => {
                let reduction = args.left.remove("reduction");
                let reduction = match reduction.as_ref().map_or(Some("none"), Value::as_str) {
                    Some("none") => Reduction::None,
                    Some("mean") => Reduction::Mean,
                    Some("sum") => Reduction::Sum,
                    _ => {
                        let found = reduction.unwrap_or_default().to_string();
                        let expected = "`none`, `mean` or `sum`".to_owned();
                        return Err(ErrorKind::OutOfRange { argument: "reduction", found, expected }.into());
                    }
                };
                Self::CrossEntropy { temperature: args.number("temperature", 1.0)?, reduction }
            }
            "square_head" => Self::SquareHead,
            _ => return Err(unknown("comparison", name, &NAMES)),
        };
        args.finish(comparison)
    }

    /// The distance; a single value has no dimensions.
    ///
    /// # Errors
    /// Different shapes, or a dimension that the values lack.
    pub fn apply(&self, a: &Dense, b: &Dense) -> Result<Dense> {
        match *self {
            Self::L1Distance { dim } => a.sum_lines(b, dim, |a, b| [(a - b).abs()], |[sum]| sum),
            Self::L2Distance { dim } => a.sum_lines(b, dim, |a, b| [(a - b) * (a - b)], |[sum]| sum),
            Self::InnerProduct { dim } => a.sum_lines(b, dim, |a, b| [a * b], |[sum]| sum),
            Self::CosineSimilarity { dim } => a.sum_lines(
                b,
                dim,
                |a, b| [a * b, a * a, b * b],
                |[product, of_a, of_b]| product / (of_a.sqrt() * of_b.sqrt()),
            ),
            Self::KlDivergence { temperature, dim } => a.sum_lines(
                b,
                dim,
                |a, b| {
                    let (a, b) = (a / temperature, b / temperature);
                    [a * ln_f64(a / b)]
                },
                |[sum]| sum,
            ),
            Self::CrossEntropy { temperature, reduction } => {
                let dim = i64::from(a.shape.len() > 1);
                let logs = a.map_lines(dim, |line| log_softmax(line, temperature))?;
                let weights = b.map(|it| it / temperature);
                reduce(&logs.sum_lines(&weights, dim, |log, weight| [-weight * log], |[sum]| sum)?, reduction)
            }
            Self::SquareHead => {
                a.same_shape(b)?;
                let pairs = || a.data.iter().zip(&b.data).map(|(a, b)| (f64::from(*a), f64::from(*b)));
                let distance: f64 = pairs().map(|(a, b)| (b - a) * (b - a)).sum();
                let scale: f64 = pairs().map(|(_, b)| b * b).sum();
                Dense::new(Vec::new(), vec![(distance / scale) as f32])
            }
        }
    }

    /// The distances of outputs that are lists or mappings of arrays, each of its partner.
    ///
    /// # Errors
    /// Outputs of different structure, and as [`Comparison::apply`].
    pub fn apply_nested(&self, a: &Outputs, b: &Outputs) -> Result<Outputs> {
        let mismatch = || Error::failed("the outputs of student and teacher differ in structure");
        match (a, b) {
            (Outputs::One(a), Outputs::One(b)) => self.apply(a, b).map(Outputs::One),
            (Outputs::Many(a), Outputs::Many(b)) if a.len() == b.len() => {
                let pairs = a.iter().zip(b);
                pairs.map(|(a, b)| self.apply_nested(a, b)).collect::<Result<_>>().map(Outputs::Many)
            }
            (Outputs::Named(a), Outputs::Named(b)) if a.len() == b.len() => {
                let pair = |(name, a): (&String, &Outputs)| {
                    let b = b.get(name).ok_or_else(mismatch)?;
                    Ok((name.clone(), self.apply_nested(a, b)?))
                };
                a.iter().map(pair).collect::<Result<_>>().map(Outputs::Named)
            }
            _ => Err(mismatch()),
        }
    }
}

fn reduce(losses: &Dense, reduction: Reduction) -> Result<Dense> {
    let sum: f64 = losses.data.iter().map(|it| f64::from(*it)).sum();
    match reduction {
        Reduction::None => Ok(losses.clone()),
        Reduction::Sum => Dense::new(Vec::new(), vec![sum as f32]),
        // The mean over probabilities divides by the batch and every further position.
        Reduction::Mean => Dense::new(Vec::new(), vec![(sum / losses.data.len() as f64) as f32]),
    }
}

/// What a layer gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Outputs {
    /// One array.
    One(Dense),
    /// A list.
    Many(Vec<Outputs>),
    /// A mapping.
    Named(IndexMap<String, Outputs>),
}
