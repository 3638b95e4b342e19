//! `eval(...)` in recipes: a small arithmetic language with the syntax and the numbers of the reference's.
//!
//! Values are texts, whole numbers, floats, truth values, lists and nothing. There are no calls: the body
//! of an `eval` holds no parentheses. `math` gives constants.

mod parser;
mod value;

use serde_json::{Map, Value};

use self::{parser::Expression, value::Operand};
use crate::{
    Result,
    error::{Error, ErrorKind, ReferenceKind},
};

/// Longest text that an evaluation may make.
const LONGEST_BYTES: usize = 1 << 16;

/// Rounds of substitution in one text, and of evaluation over a set of arguments.
const MOST_ROUNDS: usize = 100;

/// Gives the value of a name, or nothing where there is none.
type Lookup<'a> = dyn FnMut(&str) -> Result<Option<Value>> + 'a;

pub(super) fn fault(expression: &str, reason: impl ToString, reference: ReferenceKind) -> Error {
    ErrorKind::Expression { expression: expression.to_owned(), reason: reason.to_string(), reference }.into()
}

/// Evaluates every `eval(...)` in a text. A text that reads as a number then is one, as a float.
///
/// # Errors
/// An `eval(` whose body has parentheses or no end, an expression that does not parse or compute, and a
/// substitution that does not end.
pub fn eval_str(text: &str, args: &Map<String, Value>) -> Result<Value> {
    substitute(text, &mut |name| Ok(args.get(name).cloned()))
}

/// Evaluates all texts of a value, at any depth.
///
/// # Errors
/// As [`eval_str`].
pub fn eval_obj(value: &Value, args: &Map<String, Value>) -> Result<Value> {
    Ok(match value {
        Value::String(text) => eval_str(text, args)?,
        Value::Array(items) => Value::Array(items.iter().map(|it| eval_obj(it, args)).collect::<Result<_>>()?),
        Value::Object(map) => Value::Object(eval_fields(map, args)?),
        other => other.clone(),
    })
}

/// Evaluates all texts of a mapping, at any depth.
///
/// # Errors
/// As [`eval_str`].
pub fn eval_fields(map: &Map<String, Value>, args: &Map<String, Value>) -> Result<Map<String, Value>> {
    map.iter().map(|(name, value)| Ok((name.clone(), eval_obj(value, args)?))).collect()
}

fn substitute(text: &str, lookup: &mut Lookup<'_>) -> Result<Value> {
    let mut text = text.to_owned();
    for _ in 0..MOST_ROUNDS {
        if !text.contains("eval(") {
            return Ok(Value::String(text));
        }
        let body = first_body(&text)
            .ok_or_else(|| fault(&text, "`eval(` needs a body without parentheses", ReferenceKind::ValueError))?;
        let result = Expression::parse(body)?.evaluate(lookup).map_err(|it| it.in_expression(body))?;
        let replaced = text.replace(&format!("eval({body})"), &result.to_string());
        if replaced.len() > LONGEST_BYTES {
            return Err(fault(&text, "the text grows too long", ReferenceKind::ValueError));
        }
        text = replaced;
        if let Ok(number) = text.trim().parse::<f64>()
            && number.is_finite()
        {
            return Ok(number.into());
        }
    }
    Err(fault(&text, "the substitution does not end", ReferenceKind::ValueError))
}

/// The body of the first `eval(...)` that holds no parentheses.
fn first_body(text: &str) -> Option<&str> {
    const OPEN: &str = "eval(";
    text.match_indices(OPEN).find_map(|(start, _)| {
        let rest = &text[start + OPEN.len()..];
        let end = rest.find(['(', ')'])?;
        rest[end..].starts_with(')').then(|| &rest[..end])
    })
}

/// Evaluates a recipe's arguments: each after those that it names, whatever their order.
///
/// # Errors
/// As [`eval_str`], and arguments that name each other in a circle.
pub(super) fn resolve_args(args: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut done = Map::new();
    for name in args.keys() {
        resolve_arg(name, args, &mut done, &mut Vec::new())?;
    }
    // The order of the recipe, not of evaluation.
    Ok(args.keys().filter_map(|name| Some((name.clone(), done.get(name)?.clone()))).collect())
}

fn resolve_arg(
    name: &str,
    args: &Map<String, Value>,
    done: &mut Map<String, Value>,
    open: &mut Vec<String>,
) -> Result<Option<Value>> {
    if let Some(value) = done.get(name) {
        return Ok(Some(value.clone()));
    }
    let Some(raw) = args.get(name) else { return Ok(None) };
    if open.iter().any(|it| it == name) || open.len() > MOST_ROUNDS {
        let reason = format!("the arguments {} name each other in a circle", open.join(", "));
        return Err(fault(name, reason, ReferenceKind::ValueError));
    }
    open.push(name.to_owned());
    let value = resolve_value(raw, args, done, open)?;
    open.pop();
    done.insert(name.to_owned(), value.clone());
    Ok(Some(value))
}

fn resolve_value(
    raw: &Value,
    args: &Map<String, Value>,
    done: &mut Map<String, Value>,
    open: &mut Vec<String>,
) -> Result<Value> {
    Ok(match raw {
        Value::String(text) => substitute(text, &mut |name| resolve_arg(name, args, done, open))?,
        Value::Array(items) => {
            Value::Array(items.iter().map(|it| resolve_value(it, args, done, open)).collect::<Result<_>>()?)
        }
        Value::Object(map) => {
            let pair = |(name, value): (&String, &Value)| Ok((name.clone(), resolve_value(value, args, done, open)?));
            Value::Object(map.iter().map(pair).collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}

/// The arguments of a recipe of the first releases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecipeArgs(pub Map<String, Value>);

impl RecipeArgs {
    /// Arguments from pairs as a binding hands them over.
    ///
    /// # Errors
    /// A key that is no text.
    pub fn from_pairs(pairs: &[(Value, Value)]) -> Result<Self> {
        let pair = |(key, value): &(Value, Value)| {
            let key = key.as_str().ok_or_else(|| ErrorKind::OutOfRange {
                argument: "recipe_args",
                found: format!("key {key}"),
                expected: "keys that are texts".to_owned(),
            })?;
            Ok((key.to_owned(), value.clone()))
        };
        Ok(Self(pairs.iter().map(pair).collect::<Result<_>>()?))
    }

    /// These arguments with others over them.
    #[must_use]
    pub fn combine(&self, other: Option<&Self>) -> Self {
        let mut all = self.0.clone();
        all.extend(other.into_iter().flat_map(|it| it.0.clone()));
        Self(all)
    }

    /// Evaluates the texts again and again until none changes. An argument that is not yet evaluated
    /// where another names it takes part as the text that it is.
    ///
    /// # Errors
    /// As [`eval_str`], and arguments that never come to rest.
    pub fn evaluate(&self) -> Result<Self> {
        let mut args = self.0.clone();
        for _ in 0..MOST_ROUNDS {
            let before = args.clone();
            for (name, value) in &before {
                if let Value::String(text) = value {
                    let value = eval_str(text, &args)?;
                    args.insert(name.clone(), value);
                }
            }
            if args == before {
                return Ok(Self(args));
            }
        }
        Err(fault("args", "the arguments never come to rest", ReferenceKind::ValueError))
    }

    /// Evaluates a mapping with these arguments, which are evaluated first.
    ///
    /// # Errors
    /// As [`RecipeArgs::evaluate`].
    pub fn evaluate_ext(&self, target: &Map<String, Value>) -> Result<Map<String, Value>> {
        eval_fields(target, &self.evaluate()?.0)
    }
}

/// A fault of an evaluation that does not yet know the expression it belongs to.
#[derive(Debug)]
enum Fault {
    /// A fault of the language.
    Own(String, ReferenceKind),
    /// A fault of an argument that the expression names.
    Nested(Error),
}

impl Fault {
    fn in_expression(self, expression: &str) -> Error {
        match self {
            Self::Own(reason, reference) => fault(expression, reason, reference),
            Self::Nested(error) => error,
        }
    }
}

impl Expression {
    fn evaluate(&self, lookup: &mut Lookup<'_>) -> Result<Operand, Fault> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Name(name) => match lookup(name).map_err(Fault::Nested)? {
                Some(value) => Operand::from_json(&value)?,
                None => return Err(Fault::Own(format!("`{name}` is not defined"), ReferenceKind::NameError)),
            },
            Self::List(items) => Operand::List(items.iter().map(|it| it.evaluate(lookup)).collect::<Result<_, _>>()?),
            Self::Not(inner) => Operand::Bool(!inner.evaluate(lookup)?.truth()),
            Self::Sign(sign, inner) => Operand::Int(*sign).multiply(&inner.evaluate(lookup)?)?,
            Self::And(left, right) => match left.evaluate(lookup)? {
                left if left.truth() => right.evaluate(lookup)?,
                left => left,
            },
            Self::Or(left, right) => match left.evaluate(lookup)? {
                left if left.truth() => left,
                _ => right.evaluate(lookup)?,
            },
            Self::Conditional { condition, then, otherwise } => {
                if condition.evaluate(lookup)?.truth() {
                    then.evaluate(lookup)?
                } else {
                    otherwise.evaluate(lookup)?
                }
            }
            Self::Arithmetic(operator, left, right) => {
                left.evaluate(lookup)?.arithmetic(*operator, &right.evaluate(lookup)?)?
            }
            Self::Comparison(first, rest) => {
                let mut left = first.evaluate(lookup)?;
                for (relation, right) in rest {
                    let right = right.evaluate(lookup)?;
                    if !left.holds(*relation, &right)? {
                        return Ok(Operand::Bool(false));
                    }
                    left = right;
                }
                Operand::Bool(true)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn eval(text: &str) -> Result<Value> {
        let args = json!({"a": 2, "b": 0.5, "s": "x", "l": [1, "q"], "m": {}, "loop": "eval(loop)"});
        eval_str(text, args.as_object().unwrap())
    }

    #[test]
    fn expressions_have_the_references_values() {
        let cases = [
            ("eval(-7 // 2)", json!(-4.0)),
            ("eval(-7 % 3)", json!(2.0)),
            ("eval(7.5 // 2)", json!(3.0)),
            ("eval(-7.5 % 2)", json!(0.5)),
            ("eval(2 ** -1)", json!(0.5)),
            ("eval(-2 ** 2)", json!(-4.0)),
            ("eval(2 ** 3 ** 2)", json!(512.0)),
            ("eval(1 < a <= 2)", json!("True")),
            ("eval(not a == 2 or b)", json!(0.5)),
            ("eval(a and s)", json!("x")),
            ("eval(1/0 if False else 3)", json!(3.0)),
            ("eval(s + 'y')", json!("xy")),
            ("eval(s * 3)", json!("xxx")),
            ("eval(l)", json!("[1, 'q']")),
            ("eval(None)", json!("None")),
            ("eval(1e3)", json!(1000.0)),
            ("eval(math.inf)", json!("inf")),
            ("eval(True + 1)", json!(2.0)),
            ("eval(\"it's\")", json!("it's")),
        ];
        for (text, value) in cases {
            assert_eq!(eval(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_evaluated_is_an_error_and_never_a_panic() {
        use ReferenceKind as R;
        let cases = [
            ("eval(a +)", R::SyntaxError),
            ("eval(a b)", R::SyntaxError),
            ("eval('open)", R::SyntaxError),
            ("eval(1 if a)", R::SyntaxError),
            ("eval(a $ b)", R::SyntaxError),
            ("eval(math.floor)", R::AttributeError),
            ("eval(a.b)", R::SyntaxError),
            ("eval(s - 1)", R::TypeError),
            ("eval(s < 1)", R::TypeError),
            ("eval(m)", R::TypeError),
            ("eval(1 % 0)", R::ZeroDivisionError),
            ("eval(1.0 // 0)", R::ZeroDivisionError),
            ("eval(0 ** -1)", R::ZeroDivisionError),
            ("eval(2 ** 64)", R::ValueError),
            ("eval(9223372036854775807 + 1)", R::ValueError),
            ("eval(s * 100000)", R::ValueError),
            ("eval(loop)", R::ValueError),
        ];
        for (text, reference) in cases {
            assert_eq!(eval(text).unwrap_err().reference_kind(), reference, "{text}");
        }
        let deep = format!("eval({}1{})", "[".repeat(2000), "]".repeat(2000));
        assert_eq!(eval(&deep).unwrap_err().reference_kind(), R::SyntaxError);
        let signs = format!("eval({}1)", "-".repeat(5000));
        assert_eq!(eval(&signs).unwrap_err().reference_kind(), R::SyntaxError);
    }

    #[test]
    fn a_recipes_arguments_are_evaluated_in_the_order_of_their_names_use() {
        let args = json!({"a": "eval(b * 2)", "b": "eval(c + 1)", "c": 1, "d": ["eval(a)"]});
        let found = resolve_args(args.as_object().unwrap()).unwrap();
        assert_eq!(Value::Object(found), json!({"a": 4.0, "b": 2.0, "c": 1, "d": [4.0]}));
        let circle = json!({"a": "eval(b)", "b": "eval(a)"});
        let error = resolve_args(circle.as_object().unwrap()).unwrap_err();
        assert!(error.to_string().contains("circle"), "{error}");
    }
}
