//! Untrusted names as they may stand in a message: no control characters, no text direction changes, bounded.

/// Longest name, in characters, that a message shows whole.
const SHOWN_CHARS: usize = 160;
/// Most names that a message lists.
const SHOWN_NAMES: usize = 10;

/// A name with control, direction and zero-width characters escaped, cut in the middle where it is long.
pub(crate) fn shown(name: &str) -> String {
    let n_chars = name.chars().count();
    let mut out = String::new();
    for (idx, c) in name.chars().enumerate() {
        if n_chars > SHOWN_CHARS && idx == SHOWN_CHARS / 2 {
            out.push_str(&format!("...({} more characters)...", n_chars - SHOWN_CHARS));
        }
        if n_chars > SHOWN_CHARS && (SHOWN_CHARS / 2..n_chars - SHOWN_CHARS / 2).contains(&idx) {
            continue;
        }
        if is_hazardous(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The first names of a list, each as [`shown`], in backticks.
pub(crate) fn shown_list(names: &[String]) -> String {
    let mut out: Vec<_> = names.iter().take(SHOWN_NAMES).map(|it| format!("`{}`", shown(it))).collect();
    if names.len() > SHOWN_NAMES {
        out.push(format!("and {} more", names.len() - SHOWN_NAMES));
    }
    out.join(", ")
}

fn is_hazardous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_newlines_and_direction_marks_are_spelt_out() {
        assert_eq!(shown("a\u{1b}[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\\u{a}\\u{202e}c");
    }

    #[test]
    fn a_long_name_is_cut_in_the_middle() {
        let text = shown(&"x".repeat(5_000));
        assert!(text.len() < 220, "{}", text.len());
        assert!(text.contains("4840 more characters"));
    }

    #[test]
    fn a_long_list_is_counted() {
        let names: Vec<_> = (0..12).map(|it| it.to_string()).collect();
        assert!(shown_list(&names).ends_with("`9`, and 2 more"));
    }
}
