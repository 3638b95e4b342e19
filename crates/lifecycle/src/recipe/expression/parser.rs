//! Reads the body of an `eval(...)`.

use super::{
    fault,
    value::{Operand, Operator, Relation},
};
use crate::{
    Result,
    error::{Error, ReferenceKind},
};

/// How deep expressions may nest.
const DEEPEST: usize = 64;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Literal(Operand),
    Name(String),
    List(Vec<Expression>),
    Not(Box<Expression>),
    Sign(i64, Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Conditional { condition: Box<Expression>, then: Box<Expression>, otherwise: Box<Expression> },
    Arithmetic(Operator, Box<Expression>, Box<Expression>),
    Comparison(Box<Expression>, Vec<(Relation, Expression)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Value(Operand),
    Word(String),
    Symbol(&'static str),
}

/// Symbols, longer ones before those that they begin with.
const SYMBOLS: [&str; 19] =
    ["**", "//", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "[", "]", ",", ".", "{", "}"];

impl Expression {
    /// Reads an expression.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0 };
        let expression = parser.expression()?;
        if parser.at < parser.tokens.len() {
            return Err(parser.syntax("an operator is missing"));
        }
        Ok(expression)
    }
}

fn syntax(text: &str, reason: &str) -> Error {
    fault(text, reason, ReferenceKind::SyntaxError)
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(letter) = rest.chars().next() {
        let begins_number =
            letter.is_ascii_digit() || (letter == '.' && rest[1..].starts_with(|it: char| it.is_ascii_digit()));
        let (token, length) = if begins_number {
            number(text, rest)?
        } else if letter == '\'' || letter == '"' {
            let end = rest[1..].find(letter).ok_or_else(|| syntax(text, "a text has no end"))?;
            (Token::Value(Operand::Text(rest[1..=end].to_owned())), end + 2)
        } else if letter.is_alphabetic() || letter == '_' {
            let length = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
            (Token::Word(rest[..length].to_owned()), length)
        } else {
            let symbol = SYMBOLS.into_iter().find(|it| rest.starts_with(it));
            let symbol = symbol.ok_or_else(|| syntax(text, &format!("`{letter}` means nothing here")))?;
            (Token::Symbol(symbol), symbol.len())
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn number(text: &str, rest: &str) -> Result<(Token, usize)> {
    let bytes = rest.as_bytes();
    let digits = |from: usize| from + bytes[from..].iter().take_while(|it| it.is_ascii_digit()).count();
    let mut end = digits(0);
    let mut is_float = false;
    if bytes.get(end) == Some(&b'.') {
        is_float = true;
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let after = digits(end + 1 + sign);
        if after > end + 1 + sign {
            is_float = true;
            end = after;
        }
    }
    let value = if is_float {
        rest[..end].parse().ok().map(Operand::Float)
    } else {
        rest[..end].parse().ok().map(Operand::Int)
    };
    let value = value.ok_or_else(|| fault(text, "the number is too large", ReferenceKind::ValueError))?;
    Ok((Token::Value(value), end))
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn syntax(&self, reason: &str) -> Error {
        syntax(self.text, reason)
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Symbol(it)) if *it == symbol);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(it)) if it == word);
        self.at += usize::from(found);
        found
    }

    /// Runs a rule one level deeper.
    fn nested(&mut self, rule: impl FnOnce(&mut Self) -> Result<Expression>) -> Result<Expression> {
        if self.depth == DEEPEST {
            return Err(self.syntax("the expression nests too deep"));
        }
        self.depth += 1;
        let result = rule(self);
        self.depth -= 1;
        result
    }

    fn expression(&mut self) -> Result<Expression> {
        self.nested(|it| {
            let then = it.disjunction()?;
            if !it.word("if") {
                return Ok(then);
            }
            let condition = it.disjunction()?;
            if !it.word("else") {
                return Err(it.syntax("`if` needs `else`"));
            }
            let otherwise = Box::new(it.expression()?);
            Ok(Expression::Conditional { condition: Box::new(condition), then: Box::new(then), otherwise })
        })
    }

    fn disjunction(&mut self) -> Result<Expression> {
        let mut left = self.conjunction()?;
        while self.word("or") {
            left = Expression::Or(Box::new(left), Box::new(self.conjunction()?));
        }
        Ok(left)
    }

    fn conjunction(&mut self) -> Result<Expression> {
        let mut left = self.negation()?;
        while self.word("and") {
            left = Expression::And(Box::new(left), Box::new(self.negation()?));
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<Expression> {
        if self.word("not") {
            return self.nested(|it| Ok(Expression::Not(Box::new(it.negation()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression> {
        const RELATIONS: [(&str, Relation); 6] = [
            ("==", Relation::Equal),
            ("!=", Relation::NotEqual),
            ("<=", Relation::LessEqual),
            (">=", Relation::GreaterEqual),
            ("<", Relation::Less),
            (">", Relation::Greater),
        ];
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some((_, relation)) = RELATIONS.into_iter().find(|it| self.symbol(it.0)) {
            rest.push((relation, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Comparison(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expression> {
        let mut left = self.product()?;
        while let Some(operator) = self.operator(&[("+", Operator::Add), ("-", Operator::Subtract)]) {
            left = Expression::Arithmetic(operator, Box::new(left), Box::new(self.product()?));
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Expression> {
        let operators = [
            ("*", Operator::Multiply),
            ("//", Operator::FloorDivide),
            ("/", Operator::Divide),
            ("%", Operator::Modulo),
        ];
        let mut left = self.sign()?;
        while let Some(operator) = self.operator(&operators) {
            left = Expression::Arithmetic(operator, Box::new(left), Box::new(self.sign()?));
        }
        Ok(left)
    }

    fn operator(&mut self, operators: &[(&str, Operator)]) -> Option<Operator> {
        operators.iter().find(|it| self.symbol(it.0)).map(|it| it.1)
    }

    fn sign(&mut self) -> Result<Expression> {
        for (symbol, sign) in [("-", -1), ("+", 1)] {
            if self.symbol(symbol) {
                return self.nested(|it| Ok(Expression::Sign(sign, Box::new(it.sign()?))));
            }
        }
        self.power()
    }

    fn power(&mut self) -> Result<Expression> {
        let base = self.atom()?;
        if !self.symbol("**") {
            return Ok(base);
        }
        self.nested(|it| Ok(Expression::Arithmetic(Operator::Power, Box::new(base), Box::new(it.sign()?))))
    }

    fn atom(&mut self) -> Result<Expression> {
        if self.symbol("[") {
            let mut items = Vec::new();
            while !self.symbol("]") {
                items.push(self.expression()?);
                if !self.symbol(",") && !matches!(self.tokens.get(self.at), Some(Token::Symbol("]"))) {
                    return Err(self.syntax("a list has no end"));
                }
            }
            return Ok(Expression::List(items));
        }
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        match token {
            Some(Token::Value(value)) => Ok(Expression::Literal(value)),
            Some(Token::Word(word)) => match word.as_str() {
                "True" => Ok(Expression::Literal(Operand::Bool(true))),
                "False" => Ok(Expression::Literal(Operand::Bool(false))),
                "None" => Ok(Expression::Literal(Operand::None)),
                "if" | "else" | "and" | "or" | "not" => Err(self.syntax("a value is missing")),
                "math" if self.symbol(".") => self.constant(),
                _ => Ok(Expression::Name(word)),
            },
            _ => Err(self.syntax("a value is missing")),
        }
    }

    fn constant(&mut self) -> Result<Expression> {
        use std::f64::consts;
        let Some(Token::Word(name)) = self.tokens.get(self.at) else {
            return Err(self.syntax("`math.` needs a name"));
        };
        let value = match name.as_str() {
            "pi" => consts::PI,
            "e" => consts::E,
            "tau" => consts::TAU,
            "inf" => f64::INFINITY,
            "nan" => f64::NAN,
            _ => {
                let reason = format!("`math.{name}` is no constant");
                return Err(fault(self.text, reason, ReferenceKind::AttributeError));
            }
        };
        self.at += 1;
        Ok(Expression::Literal(Operand::Float(value)))
    }
}
