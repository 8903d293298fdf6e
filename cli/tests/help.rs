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
        "eval",
        "generate",
        "demo",
        "report",
        "doctor",
        "tasks",
        "config",
        "config validate",
    ];
    let pages = commands.map(|command| {
        let page = place.retie(&format!("{command} --help")).ok();
        let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
        format!("$ retie {command} --help\n{}\n", lines.join("\n"))
    });
    insta::assert_snapshot!("help", pages.join("\n"));
}
