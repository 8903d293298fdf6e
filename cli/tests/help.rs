//! The help of every command, as it is shown.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use support::Place;

#[test]
fn help_is_as_recorded() {
    let place = Place::new();
    let commands = [
        "",
        "inspect",
        "convert",
        "uptrain",
        "cache-logits",
        "tokenize",
        "eval",
        "generate",
        "bench",
        "demo",
        "report",
        "plot",
        "doctor",
        "tasks",
        "check",
        "check identity",
        "config",
        "config validate",
    ];
    let pages = commands.map(|command| {
        let line = format!("{command} --help");
        let page = place.retie(&line).ok();
        let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
        format!("$ retie {}\n{}\n", line.trim(), lines.join("\n"))
    });
    insta::assert_snapshot!("help", pages.join("\n"));
}
