//! Python's regular expressions in the syntax of the Rust engines.
//!
//! The scan re-emits every construct instead of patching text: character classes lose Python's loose
//! literals (`[[a]` and `[a&&b]` mean other things in Rust), octal and hexadecimal escapes become
//! code points, `\Z` becomes `\z`, `{,3}` becomes `{0,3}`, a brace that is no quantifier is a literal,
//! verbose mode is resolved, comments go, named groups are numbered. What Python refuses is refused. What
//! stays different: `$` does not match before a final newline, which no module name has; `\B` matches the
//! empty name, as in Python 3.14; a repeated look-around and verbose mode for one group are refused.

/// Longest pattern taken, in characters.
const MAX_CHARS: usize = 10_000;

/// Deepest nesting of groups taken; both engines recurse over it.
const MAX_DEPTH: usize = 60;

/// A pattern for the Rust engines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    /// The pattern.
    pub(super) text: String,
    /// Whether it has look-around, references, atomic groups or conditions.
    pub(super) needs_backtracking: bool,
}

/// Rewrites `pattern`; the error says why Python refuses it, or which construct has no counterpart.
pub(super) fn translate(pattern: &str) -> Result<Translated, String> {
    let chars: Vec<char> = pattern.chars().collect();
    if chars.len() > MAX_CHARS {
        return Err(format!("{} characters, at most {MAX_CHARS}", chars.len()));
    }
    let mut scan = Scan { chars, only_flags: true, ..Scan::default() };
    while let Some(c) = scan.next() {
        scan.only_flags &= c == '(' && scan.peek() == Some('?');
        scan.item(c)?;
    }
    if scan.depth > 0 {
        return Err("missing `)`".to_owned());
    }
    Ok(Translated { text: scan.out, needs_backtracking: scan.backtracks })
}

/// A member of a character class.
enum Member {
    Char(char),
    Set(char),
}

#[derive(Default)]
struct Scan {
    chars: Vec<char>,
    at: usize,
    out: String,
    depth: usize,
    backtracks: bool,
    verbose: bool,
    /// Whether nothing but flags came so far.
    only_flags: bool,
    /// Whether a quantifier may follow.
    repeatable: bool,
    /// Capturing groups opened so far, by name where they have one.
    groups: Vec<Option<String>>,
}

impl Scan {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn skip(&mut self, text: &str) -> bool {
        let found = text.chars().enumerate().all(|(i, c)| self.chars.get(self.at + i) == Some(&c));
        self.at += if found { text.chars().count() } else { 0 };
        found
    }

    fn until(&mut self, end: char, what: &str) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some(c) if c == end => return Ok(text),
                Some(c) => text.push(c),
                None => return Err(format!("unterminated {what}")),
            }
        }
    }

    fn item(&mut self, c: char) -> Result<(), String> {
        match c {
            '\\' => self.escape(),
            '[' => self.class(),
            '(' => self.open(),
            ')' => self.close(),
            '*' | '+' | '?' => self.repeat(&c.to_string()),
            '{' => match self.braces() {
                Some(range) => self.repeat(&range),
                None => self.literal('{'),
            },
            '|' | '^' | '$' => {
                self.out.push(c);
                self.repeatable = false;
                Ok(())
            }
            '.' => self.atom("."),
            c if self.verbose && c.is_whitespace() => Ok(()),
            '#' if self.verbose => {
                while self.next().is_some_and(|c| c != '\n') {}
                Ok(())
            }
            c => self.literal(c),
        }
    }

    fn atom(&mut self, text: &str) -> Result<(), String> {
        self.out.push_str(text);
        self.repeatable = true;
        Ok(())
    }

    fn literal(&mut self, c: char) -> Result<(), String> {
        if r"\.+*?()|[]{}^$".contains(c) {
            self.out.push('\\');
        }
        self.out.push(c);
        self.repeatable = true;
        Ok(())
    }

    /// The range in braces after the opening one, or nothing where the brace is a literal.
    fn braces(&mut self) -> Option<String> {
        let rest = &self.chars[self.at..];
        let len = rest.iter().position(|&c| c == '}')?;
        let inner: String = rest[..len].iter().collect();
        let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        let range = match inner.split_once(',') {
            Some((least, most)) if digits(least) && digits(most) => {
                format!("{{{},{most}}}", if least.is_empty() { "0" } else { least })
            }
            None if !inner.is_empty() && digits(&inner) => format!("{{{inner}}}"),
            _ => return None,
        };
        self.at += len + 1;
        Some(range)
    }

    fn repeat(&mut self, quantifier: &str) -> Result<(), String> {
        if !self.repeatable {
            return Err(format!("nothing to repeat with `{quantifier}`"));
        }
        self.out.push_str(quantifier);
        if self.skip("?") {
            self.out.push('?');
        } else if self.skip("+") {
            self.out.push('+');
            self.backtracks = true;
        }
        self.repeatable = false;
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        self.depth = self.depth.checked_sub(1).ok_or("unbalanced `)`")?;
        self.atom(")")
    }

    fn open(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} nested groups"));
        }
        let was_repeatable = std::mem::take(&mut self.repeatable);
        if !self.skip("?") {
            self.groups.push(None);
            self.out.push('(');
            return Ok(());
        }
        if self.skip(":") {
            self.out.push_str("(?:");
            return Ok(());
        }
        if self.skip("P<") {
            let name = self.until('>', "group name")?;
            let word = name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if !word || name.is_empty() || name.starts_with(|c: char| c.is_numeric()) {
                return Err(format!("bad group name `{name}`"));
            }
            if self.groups.contains(&Some(name.clone())) {
                return Err(format!("redefinition of group `{name}`"));
            }
            self.groups.push(Some(name));
            self.out.push('(');
            return Ok(());
        }
        for backtracking in ["=", "!", "<=", "<!", ">"] {
            if self.skip(backtracking) {
                self.out.push_str("(?");
                self.out.push_str(backtracking);
                self.backtracks = true;
                return Ok(());
            }
        }
        if self.skip("#") {
            self.depth -= 1;
            self.repeatable = was_repeatable;
            return self.until(')', "comment").map(|_| ());
        }
        if self.skip("P=") {
            self.depth -= 1;
            let name = self.until(')', "group reference")?;
            return self.reference(&name);
        }
        if self.skip("(") {
            let group = self.until(')', "condition")?;
            let number = self.group(&group)?;
            self.out.push_str(&format!("(?({number})"));
            self.backtracks = true;
            return Ok(());
        }
        self.flags()
    }

    /// The number of an earlier group, given by number or by name.
    fn group(&self, group: &str) -> Result<usize, String> {
        let named = || self.groups.iter().position(|it| it.as_deref() == Some(group)).map(|at| at + 1);
        let numbered = group.parse().ok().filter(|number| (1..=self.groups.len()).contains(number));
        numbered.or_else(named).ok_or_else(|| format!("no group `{group}` before this"))
    }

    fn reference(&mut self, group: &str) -> Result<(), String> {
        let number = self.group(group)?;
        self.backtracks = true;
        self.atom(&format!("(?:\\{number})"))
    }

    /// Inline flags: for the whole pattern at its start, or for one group.
    fn flags(&mut self) -> Result<(), String> {
        let start = self.at;
        let at_start = self.only_flags && self.depth == 1;
        let verbose_before = self.verbose;
        let mut flags = String::new();
        loop {
            match self.next() {
                Some(c @ ('i' | 'm' | 's' | '-')) => flags.push(c),
                Some('u') => {}
                Some('x') if at_start => self.verbose = true,
                Some(end @ (':' | ')')) => {
                    if self.at == start + 1 {
                        return Err("empty extension `(?)`".to_owned());
                    }
                    let global = end == ')';
                    if global && !at_start {
                        return Err("global flags not at the start".to_owned());
                    }
                    if self.verbose && !verbose_before && !global {
                        return Err("verbose mode for one group is not supported".to_owned());
                    }
                    self.only_flags &= global;
                    self.depth -= usize::from(global);
                    if !(global && flags.is_empty()) {
                        self.out.push_str("(?");
                        self.out.push_str(&flags);
                        self.out.push(end);
                    }
                    return Ok(());
                }
                Some(c) => return Err(format!("extension `(?{c}` is not supported")),
                None => return Err("unterminated group".to_owned()),
            }
        }
    }

    fn escape(&mut self) -> Result<(), String> {
        let c = self.next().ok_or("a backslash at the end")?;
        match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => self.atom(&format!("\\{c}")),
            'A' | 'b' | 'B' => {
                self.out.push('\\');
                self.out.push(c);
                self.repeatable = false;
                Ok(())
            }
            'Z' | 'z' => {
                self.out.push_str(r"\z");
                self.repeatable = false;
                Ok(())
            }
            '1'..='9' if !self.is_octal(c) => {
                let mut group = c.to_string();
                if let Some(second) = self.peek().filter(char::is_ascii_digit) {
                    self.at += 1;
                    group.push(second);
                }
                self.reference(&group)
            }
            c => {
                let c = self.code_point(c)?;
                self.literal(c)
            }
        }
    }

    /// Whether the escape that begins with `first` is three octal digits.
    fn is_octal(&self, first: char) -> bool {
        let digit = |c: Option<&char>| c.is_some_and(|c| c.is_digit(8));
        first.is_digit(8) && digit(self.chars.get(self.at)) && digit(self.chars.get(self.at + 1))
    }

    /// The character that an escape stands for, after its first letter `c`.
    fn code_point(&mut self, c: char) -> Result<char, String> {
        let hexadecimal = |scan: &mut Self, digits: usize| {
            let text: String = scan.chars.iter().skip(scan.at).take(digits).collect();
            scan.at += digits;
            let code = (text.len() == digits).then(|| u32::from_str_radix(&text, 16).ok()).flatten();
            code.and_then(char::from_u32).ok_or_else(|| format!("incomplete escape `\\{c}{text}`"))
        };
        match c {
            'a' => Ok('\x07'),
            'f' => Ok('\x0c'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'v' => Ok('\x0b'),
            'x' => hexadecimal(self, 2),
            'u' => hexadecimal(self, 4),
            'U' => hexadecimal(self, 8),
            '0'..='7' => {
                let mut code = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    if let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) {
                        self.at += 1;
                        code = code * 8 + digit;
                    }
                }
                char::from_u32(code).filter(|_| code <= 0o377).ok_or("octal escape past 0o377".to_owned())
            }
            c if c.is_ascii_alphanumeric() => Err(format!("bad escape `\\{c}`")),
            c => Ok(c),
        }
    }

    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.skip("^") {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            match self.next() {
                None => return Err("unterminated character set".to_owned()),
                Some(']') if !first => return self.atom("]"),
                Some(c) => {
                    let low = self.member(c)?;
                    let dashed = self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|&c| c != ']');
                    if !dashed {
                        self.put(&low);
                    } else {
                        self.at += 1;
                        let end = self.next().ok_or("unterminated character set")?;
                        match (low, self.member(end)?) {
                            (Member::Char(low), Member::Char(high)) if low <= high => {
                                self.put(&Member::Char(low));
                                self.out.push('-');
                                self.put(&Member::Char(high));
                            }
                            _ => return Err("bad character range".to_owned()),
                        }
                    }
                }
            }
            first = false;
        }
    }

    fn member(&mut self, c: char) -> Result<Member, String> {
        if c != '\\' {
            return Ok(Member::Char(c));
        }
        match self.next().ok_or("unterminated character set")? {
            c @ ('d' | 'D' | 's' | 'S' | 'w' | 'W') => Ok(Member::Set(c)),
            'b' => Ok(Member::Char('\x08')),
            c => self.code_point(c).map(Member::Char),
        }
    }

    fn put(&mut self, member: &Member) {
        match *member {
            Member::Set(c) => {
                self.out.push('\\');
                self.out.push(c);
            }
            Member::Char(c) => {
                if r"\[]^-&~".contains(c) {
                    self.out.push('\\');
                }
                self.out.push(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(pattern: &str) -> String {
        let found = translate(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
        assert!(!found.needs_backtracking, "{pattern}");
        found.text
    }

    fn refused(pattern: &str) -> String {
        translate(pattern).expect_err(pattern)
    }

    #[test]
    fn common_patterns_stay_as_they_are() {
        for pattern in [r".*self_attn\.(q|k|v)_proj$", r"model\.layers\.\d+\..*", "^lm_head$", "(x)+?", "(?i:a)b"] {
            assert_eq!(plain(pattern), pattern);
        }
    }

    #[test]
    fn python_spellings_are_rewritten() {
        assert_eq!(plain(r"a\Z"), r"a\z");
        assert_eq!(plain(r"a{,3}b{2}c{1,}{"), r"a{0,3}b{2}c{1,}\{");
        assert_eq!(plain(r"{x}\/\_\<"), r"\{x\}/_<");
        assert_eq!(plain(r"\x41\u0042\103\0"), "ABC\0");
        assert_eq!(plain("(?x) a b # rest\n c"), "abc");
        assert_eq!(plain("(?i)(?s)a(?#note)*b"), "(?i)(?s)a*b");
        assert_eq!(plain("(?x)(?i:a ) b"), "(?i:a)b");
        assert_eq!(plain("(?P<n>a)"), "(a)");
        assert_eq!(translate(r"(?P<n>a)(?P=n)\1(?(n)b)").unwrap().text, r"(a)(?:\1)(?:\1)(?(1)b)");
        assert_eq!(plain(r"[]a][[:x&&y][^\]-][\b]"), "[\\]a][\\[:x\\&\\&y][^\\]\\-][\x08]");
    }

    #[test]
    fn look_around_references_and_atomic_groups_need_backtracking() {
        for pattern in
            [r"(?!a)b", "(?<=a)b", "(?<!a)b", "a(?=b)", r"(a)\1", "(?P<n>a)(?P=n)", "a++", "(?>a)b", "(a)?(?(1)b|c)"]
        {
            assert!(translate(pattern).unwrap().needs_backtracking, "{pattern}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused_with_the_reason() {
        for (pattern, reason) in [
            ("*a", "nothing to repeat with `*`"),
            ("a**", "nothing to repeat with `*`"),
            ("(a", "missing `)`"),
            ("a)(b", "unbalanced `)`"),
            ("[a", "unterminated character set"),
            ("[z-a]", "bad character range"),
            (r"[\d-z]", "bad character range"),
            (r"\q", r"bad escape `\q`"),
            (r"\x4", r"incomplete escape `\x4`"),
            ("a\\", "a backslash at the end"),
            ("a(?i)b", "global flags not at the start"),
            ("(?)", "empty extension `(?)`"),
            ("(?&a)", "extension `(?&` is not supported"),
            (r"\1(a)", "no group `1` before this"),
            ("(?P=n)", "no group `n` before this"),
            ("(?P<n>a)(?P<n>b)", "redefinition of group `n`"),
            ("(?P<1>a)", "bad group name `1`"),
            ("(?:(?i)a)", "global flags not at the start"),
            ("a(?x: b)", "extension `(?x` is not supported"),
        ] {
            assert_eq!(refused(pattern), reason, "{pattern}");
        }
        assert_eq!(refused(&"(".repeat(61)), "more than 60 nested groups");
        assert_eq!(refused(&"a".repeat(10_001)), "10001 characters, at most 10000");
    }
}
