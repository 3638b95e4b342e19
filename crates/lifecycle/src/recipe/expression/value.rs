//! Values of expressions, and what operators do to them.

use std::{cmp::Ordering, fmt};

use serde_json::Value;

use super::{Fault, LONGEST_BYTES};
use crate::{error::ReferenceKind, number_text::float_text};

/// A value of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Operand>),
}

/// An arithmetic operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

fn type_error<T>(reason: &str) -> Result<T, Fault> {
    Err(Fault::Own(reason.to_owned(), ReferenceKind::TypeError))
}

fn too_large() -> Fault {
    Fault::Own("the number is too large".to_owned(), ReferenceKind::ValueError)
}

fn zero_division<T>() -> Result<T, Fault> {
    Err(Fault::Own("division by zero".to_owned(), ReferenceKind::ZeroDivisionError))
}

impl Operand {
    pub(super) fn from_json(value: &Value) -> Result<Self, Fault> {
        Ok(match value {
            Value::Null => Self::None,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(int), _) => Self::Int(int),
                (None, Some(float)) => Self::Float(float),
                (None, None) => return Err(too_large()),
            },
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from_json).collect::<Result<_, _>>()?),
            Value::Object(_) => return type_error("a mapping has no place in an expression"),
        })
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
        }
    }

    /// A whole number, where the value is one.
    fn int(&self) -> Option<i64> {
        match self {
            Self::Bool(value) => Some(i64::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.int().map(|it| it as f64),
        }
    }

    pub(super) fn multiply(&self, right: &Self) -> Result<Self, Fault> {
        self.arithmetic(Operator::Multiply, right)
    }

    pub(super) fn arithmetic(&self, operator: Operator, right: &Self) -> Result<Self, Fault> {
        if let (Some(left), Some(right)) = (self.int(), right.int()) {
            return ints(operator, left, right);
        }
        if let (Some(left), Some(right)) = (self.float(), right.float()) {
            return floats(operator, left, right).map(Self::Float);
        }
        match (operator, self, right) {
            (Operator::Add, Self::Text(left), Self::Text(right)) => Ok(Self::Text(format!("{left}{right}"))),
            (Operator::Multiply, Self::Text(text), count) | (Operator::Multiply, count, Self::Text(text)) => {
                let Some(count) = count.int() else { return type_error("a text is repeated by a whole number") };
                let count = usize::try_from(count).unwrap_or(0);
                let fits = text.len().checked_mul(count).is_some_and(|it| it <= LONGEST_BYTES);
                if fits { Ok(Self::Text(text.repeat(count))) } else { Err(too_large()) }
            }
            _ => type_error("the operands do not go together"),
        }
    }

    pub(super) fn holds(&self, relation: Relation, right: &Self) -> Result<bool, Fault> {
        let ordering = match (self.float(), right.float(), self, right) {
            (Some(left), Some(right), ..) => left.partial_cmp(&right),
            (_, _, Self::Text(left), Self::Text(right)) => Some(left.cmp(right)),
            _ => match relation {
                Relation::Equal => return Ok(self == right),
                Relation::NotEqual => return Ok(self != right),
                _ => return type_error("the operands have no order"),
            },
        };
        Ok(match relation {
            Relation::Equal => ordering == Some(Ordering::Equal),
            Relation::NotEqual => ordering != Some(Ordering::Equal),
            Relation::Less => ordering == Some(Ordering::Less),
            Relation::LessEqual => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
            Relation::Greater => ordering == Some(Ordering::Greater),
            Relation::GreaterEqual => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
        })
    }
}

fn ints(operator: Operator, left: i64, right: i64) -> Result<Operand, Fault> {
    let modulo = |left: i64, right: i64| {
        let remainder = left.checked_rem(right)?;
        Some(if remainder != 0 && (remainder < 0) != (right < 0) { remainder + right } else { remainder })
    };
    let result = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Subtract => left.checked_sub(right),
        Operator::Multiply => left.checked_mul(right),
        Operator::Divide | Operator::FloorDivide | Operator::Modulo if right == 0 => return zero_division(),
        Operator::Divide => return Ok(Operand::Float(left as f64 / right as f64)),
        Operator::FloorDivide => {
            modulo(left, right).and_then(|it| left.checked_sub(it)).and_then(|it| it.checked_div(right))
        }
        Operator::Modulo => modulo(left, right),
        Operator::Power if right < 0 => return floats(operator, left as f64, right as f64).map(Operand::Float),
        Operator::Power => u32::try_from(right).ok().and_then(|it| left.checked_pow(it)),
    };
    result.map(Operand::Int).ok_or_else(too_large)
}

fn floats(operator: Operator, left: f64, right: f64) -> Result<f64, Fault> {
    let modulo = |left: f64, right: f64| {
        let remainder = left % right;
        if remainder != 0.0 && (remainder < 0.0) != (right < 0.0) { remainder + right } else { remainder }
    };
    Ok(match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide | Operator::FloorDivide | Operator::Modulo if right == 0.0 => return zero_division(),
        Operator::Divide => left / right,
        Operator::FloorDivide => ((left - modulo(left, right)) / right).round(),
        Operator::Modulo => modulo(left, right),
        Operator::Power if left == 0.0 && right < 0.0 => return zero_division(),
        Operator::Power if left < 0.0 && right.fract() != 0.0 => return type_error("the power is no real number"),
        Operator::Power => left.powf(right),
    })
}

impl fmt::Display for Operand {
    /// Writes what the value is substituted by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => f.write_str(&float_text(*value)),
            Self::Text(text) => f.write_str(text),
            Self::List(items) => {
                f.write_str("[")?;
                for (position, item) in items.iter().enumerate() {
                    if position > 0 {
                        f.write_str(", ")?;
                    }
                    match item {
                        Self::Text(text) => write!(f, "'{text}'")?,
                        other => other.fmt(f)?,
                    }
                }
                f.write_str("]")
            }
        }
    }
}
