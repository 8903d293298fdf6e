//! Reference pages agree with the program: `docs/reference/commands.md` is the help of every
//! command, `docs/reference/messages.md` lists every error message, and every key of a YAML
//! document or of `config.json` is on its page. `RETIE_BLESS=1` writes the first two.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    collections::BTreeSet,
    fmt::Write,
    path::{Path, PathBuf},
};
use support::Place;

const COMMANDS: &str = "# Commands

This page is the `--help` of every command. A test compares it with the program, and
`RETIE_BLESS=1 cargo test --release -p retie --test reference` writes it.

MODEL is a local Hugging Face folder (safetensors), a `.gguf` file, or a hub id. Exit codes and messages are under
[errors](errors.md), the keys of YAML files under [configuration keys](configuration.md). `retie completions SHELL`
prints a script for a shell to complete commands and options, `retie man` the manual page.
";

const MESSAGES: &str = "# Messages

The error messages of each crate, from its sources: `{name}` is a value, `…` a value without a name. A test compares
this page with the sources, and `RETIE_BLESS=1 cargo test --release -p retie --test reference` writes it. How messages
are printed, and the exit codes, are under [errors](errors.md).
";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Asserts that a page of the reference is `expected`, and writes it first if `RETIE_BLESS` is 1.
fn assert_page(name: &str, expected: &str) {
    let path = repository().join("docs/reference").join(name);
    if std::env::var("RETIE_BLESS").is_ok_and(|value| value == "1") {
        fs_err::write(&path, expected).unwrap();
    }
    let page = fs_err::read_to_string(&path).unwrap();
    assert!(page == expected, "docs/reference/{name} is out of date: this test with RETIE_BLESS=1 writes it");
}

/// The `.rs` files under `folder`, in the order of their paths.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
}

/// The names below `Commands:` in a help text, without `help`.
fn subcommands(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Continued descriptions are indented further.
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").collect()
}

/// Appends the help of `command` and of its subcommands to `page`.
fn describe(place: &Place, command: &str, page: &mut String) {
    let help = place.retie(&format!("{command} --help")).ok();
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let title = format!("retie {command}");
    write!(page, "\n## {}\n\n```text\n{}\n```\n", title.trim_end(), lines.join("\n")).unwrap();
    for name in subcommands(&help) {
        describe(place, format!("{command} {name}").trim_start(), page);
    }
}

#[test]
fn the_page_of_commands_is_their_help() {
    let mut page = COMMANDS.to_owned();
    describe(&Place::new(), "", &mut page);
    assert_page("commands.md", &page);
}

/// The string literal at the start of `source`, and the source after it.
fn string_literal(source: &str) -> Option<(String, &str)> {
    let mut chars = source.strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match chars.next()? {
            '"' => return Some((text, chars.as_str())),
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                '\n' => chars = chars.as_str().trim_start().chars(),
                escaped => text.push(escaped),
            },
            c => text.push(c),
        }
    }
}

/// A format string with `…` for values without a name.
fn template(format: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let (argument, after) = after.split_once('}').unwrap_or((after, ""));
        let name = argument.split(':').next().unwrap_or_default();
        if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            write!(text, "{{{name}}}").unwrap();
        } else if argument == "{" {
            // `{{` is a brace.
            text.push('{');
        } else {
            text.push('…');
        }
        rest = after;
    }
    text + rest
}

/// A row for each `#[error("…")]`: the variant, its documentation, the message, the hints.
fn message_rows(source: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("#[error(") {
        rest = after;
        // `#[error(transparent)]` has the message of another error.
        let Some((format, after)) = string_literal(after.trim_start()) else { continue };
        let documentation: Vec<&str> =
            before.trim_end().lines().rev().map_while(|line| line.trim().strip_prefix("///")).map(str::trim).collect();
        let documentation: Vec<&str> = documentation.into_iter().rev().collect();
        let declaration = after.split_once(")]\n").map_or("", |(_, declaration)| declaration);
        let variant = declaration.lines().map(str::trim).find(|line| !line.starts_with(['#', '/'])).unwrap_or_default();
        let variant = variant.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let text = template(&format);
        let (hints, message): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("hint: "));
        let hints: Vec<&str> = hints.into_iter().map(|hint| hint.trim_start_matches("hint: ")).collect();
        let cells =
            [documentation.join(" "), message.join("<br>"), hints.join("<br>")].map(|cell| cell.replace('|', "\\|"));
        rows.push(format!("| `{variant}` | {} |", cells.join(" | ")));
        rest = after;
    }
    rows
}

#[test]
fn the_page_of_messages_agrees_with_the_sources() {
    let mut page = MESSAGES.to_owned();
    let entries = fs_err::read_dir(repository()).unwrap().map(|entry| entry.unwrap().path());
    let mut crates: Vec<PathBuf> = entries.filter(|path| path.join("Cargo.toml").is_file()).collect();
    crates.sort();
    for folder in crates {
        let files = sources(&folder.join("src")).into_iter().map(|path| fs_err::read_to_string(path).unwrap());
        let rows: Vec<String> = files.flat_map(|source| message_rows(&source)).collect();
        if !rows.is_empty() {
            let title = folder.file_name().unwrap().display();
            write!(page, "\n## {title}\n\n| error | when | message | hint |\n|---|---|---|---|\n").unwrap();
            page += &(rows.join("\n") + "\n");
        }
    }
    assert_page("messages.md", &page);
}

/// Keys of all structs with `deny_unknown_fields`, as they are spelt in a document.
fn keys(source: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for body in source.split("#[serde(deny_unknown_fields").skip(1) {
        let fields = body.split_once('{').unwrap().1.split("\n}").next().unwrap();
        let mut renamed = None;
        for line in fields.lines().map(str::trim) {
            if let Some((_, name)) = line.split_once("rename = \"") {
                renamed = name.split('"').next();
            }
            let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) else { continue };
            if name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
                keys.insert(renamed.take().unwrap_or(name).to_owned());
            }
        }
    }
    keys
}

/// Words of the code spans and code blocks of a page.
fn words_of_code(page: &str) -> BTreeSet<&str> {
    let code = page.split('`').skip(1).step_by(2);
    code.flat_map(|span| span.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')).collect()
}

#[test]
fn every_key_is_on_a_page() {
    let pages = ["configuration.md", "checkpoint-layout.md"];
    let pages = pages.map(|page| fs_err::read_to_string(repository().join("docs/reference").join(page)).unwrap());
    let words: BTreeSet<&str> = pages.iter().flat_map(|page| words_of_code(page)).collect();
    let files =
        sources(&repository().join("configs/src")).into_iter().map(|path| fs_err::read_to_string(path).unwrap());
    let keys: BTreeSet<String> = files.flat_map(|source| keys(&source)).collect();
    assert!(keys.len() > 60, "{keys:?}");
    let missing: Vec<&String> = keys.iter().filter(|key| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "neither docs/reference/configuration.md nor checkpoint-layout.md has {missing:?}");
}
