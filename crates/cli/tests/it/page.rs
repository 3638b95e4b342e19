//! The page of a run: well-formed, whole without a network, and what a browser makes of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    command::run,
    oneshot::{Cell, MODELS, PARTITIONS, RECIPES},
};

/// Elements of a page without an end.
const VOID: [&str; 1] = ["meta"];

/// Opening tags of a page, after a check that every one is closed where it must be.
#[track_caller]
fn tags(page: &str) -> Vec<String> {
    let (mut open, mut found) = (Vec::<String>::new(), Vec::new());
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a bare > near {}", &rest[..at]);
        let end = at + rest[at..].find('>').unwrap();
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap().to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "</{name}> closes another");
        } else {
            found.push(tag.to_owned());
            if name == "style" {
                rest = &rest[rest.find("</style>").unwrap() + "</style>".len()..];
            } else if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    found
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|it| dir.join(it))).find(|it| it.is_file())
}

/// What a browser says and the text that it shows; none where there is no browser.
fn browse(page: &Path, folder: &Path, options: &[&str]) -> Option<(String, String)> {
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    let mut browser = Command::new(chromium()?);
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1120,2400"]);
    browser.args(options).arg(profile).arg(format!("file://{}", page.display())).stdin(Stdio::null());
    let ran = browser.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    Some((String::from_utf8_lossy(&ran.stderr).into_owned(), String::from_utf8_lossy(&ran.stdout).into_owned()))
}

#[test]
fn the_page_is_well_formed_needs_no_network_and_shows_every_part() {
    // Experts that saw different numbers of tokens.
    let cell = Cell::new(&MODELS[1], &RECIPES[0], PARTITIONS[0]);
    let out = cell.out("out");
    cell.run(&out, "--experts routed_then_fallback --min-expert-tokens 50").expect(0);
    let path = out.join("report.html");
    let page = fs::read_to_string(&path).unwrap();
    let tags = tags(&page);
    for tag in &tags {
        assert!(!tag.starts_with("script") && !tag.contains(" src=") && !tag.contains("href="), "<{tag}>");
    }
    for part in ["http:", "https:", "url(", "@import"] {
        assert!(!page.contains(part), "{part}");
    }
    let titles = [
        "<h2>Warnings</h2>",
        "<h2>Error per layer</h2>",
        "<h2>The 10 worst modules</h2>",
        "<h2>Tokens per expert</h2>",
        "<h2>Size</h2>",
        "<h2>Time per phase</h2>",
        "<h2>Recipe</h2>",
    ];
    titles.into_iter().for_each(|it| assert!(page.contains(it), "{it}"));
    let figures = ["verified: sound", "Modules quantized", "Mean output SQNR", "too few tokens", "GPTQModifier:"];
    figures.into_iter().for_each(|it| assert!(page.contains(it), "{it}"));
    // Two layers of seven roles, and of six experts.
    assert_eq!(tags.iter().filter(|it| it.starts_with("circle")).count(), 14);
    let is_cell = |it: &&String| it.starts_with("rect class=\"t") && !it.contains("track");
    assert_eq!(tags.iter().filter(is_cell).count(), 12);
    assert_eq!(tags.iter().filter(|it| it.starts_with("polyline")).count(), 7);

    let folder = cell.out("browser");
    let Some((complaints, dom)) = browse(&path, &folder, &["--dump-dom"]) else { return };
    assert!(!complaints.contains("CONSOLE"), "{complaints}");
    assert_eq!(dom.matches("<circle").count(), 14);
    let shot = cell.out("page.png");
    browse(&path, &folder, &[&format!("--screenshot={}", shot.display())]);
    assert!(fs::metadata(shot).unwrap().len() > 20_000);
}

#[test]
fn a_page_is_made_anew_from_its_report_and_escapes_what_it_shows() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    let out = cell.out("out");
    cell.run(&out, "").expect(0);
    let (path, page) = (out.join("report.json"), out.join("report.html"));
    let before = fs::read_to_string(&page).unwrap();
    fs::remove_file(&page).unwrap();
    run(&["report", out.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read_to_string(&page).unwrap(), before);
    let mut report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let hostile = "<script>alert('x')</script>\"&";
    report["inputs"]["model"] = json!(format!("org{hostile}"));
    report["modules"][0]["module"] = json!(hostile);
    report["warnings"] = json!([hostile]);
    fs::write(&path, report.to_string()).unwrap();
    run(&["report", out.to_str().unwrap()]).expect(0);
    let page = fs::read_to_string(&page).unwrap();
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    tags(&page);
}
