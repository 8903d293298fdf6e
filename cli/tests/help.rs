//! Help, shell completions and manual pages of every command.
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
        "route",
        "insert",
        "plan",
        "uptrain",
        "cache-logits",
        "tokenize",
        "eval",
        "generate",
        "chat",
        "serve",
        "export",
        "card",
        "push",
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
        "completions",
        "man",
    ];
    let pages = commands.map(|command| {
        let line = format!("{command} --help");
        let page = place.retie(&line).ok();
        let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
        format!("$ retie {}\n{}\n", line.trim(), lines.join("\n"))
    });
    insta::assert_snapshot!("help", pages.join("\n"));
}

/// Names of the subcommands of `retie`.
fn subcommands(place: &Place) -> Vec<String> {
    let help = place.retie("--help").ok();
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Continued lines of a long summary are indented further.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn shells_complete_every_command() {
    let place = Place::new();
    let names = subcommands(&place);
    assert!(names.len() > 15, "{names:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = place.retie(&format!("completions {shell}")).ok();
        for name in &names {
            assert!(script.contains(name.as_str()), "{shell}: {name}");
        }
        assert!(script.contains("retie"));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    let page = place.retie("man").ok();
    assert!(page.contains(".TH retie 1"), "{page}");
    place.retie("man -o pages").ok();
    for name in subcommands(&place).iter().filter(|name| *name != "help") {
        let file = place.read(&format!("pages/retie-{name}.1"));
        assert!(page.contains(&format!("retie\\-{}(1)", name.replace('-', "\\-"))), "{name}: {page}");
        assert!(file.contains(".SH SYNOPSIS"), "{name}: {file}");
    }
    place.write("taken", "");
    insta::assert_snapshot!(place.refused("man -o taken"), @"error: `taken` is a file, expected a folder");
}
