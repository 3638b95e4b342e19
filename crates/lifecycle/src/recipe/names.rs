//! Which known names are close to a mistyped one.

/// At most three names that are close to `name`, best first.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    const CLOSE: f64 = 0.75;
    // What all modifiers' names share says nothing.
    let stem = |it: &str| it.strip_suffix("Modifier").unwrap_or(it).to_lowercase();
    let mut scored: Vec<(f64, &str)> =
        known.into_iter().map(|it| (strsim::jaro_winkler(&stem(name), &stem(it)), it)).collect();
    scored.retain(|it| it.0 >= CLOSE);
    scored.sort_by(|left, right| right.0.total_cmp(&left.0));
    scored.into_iter().take(3).map(|it| it.1.to_owned()).collect()
}
