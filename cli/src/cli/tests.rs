//! Tests of the command line definition and of the commands that the documentation shows.

use super::*;
use std::path::Path;

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

/// All `retie …` lines in the `console`, `sh`, `bash` and `shell` blocks of a Markdown page, with
/// continued lines joined.
fn commands(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_block = false;
    let mut command = String::new();
    for line in page.lines() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            in_block = !in_block && matches!(language, "console" | "sh" | "bash" | "shell");
            command.clear();
            continue;
        }
        if !in_block {
            continue;
        }
        let line = line.strip_prefix("$ ").unwrap_or(line);
        match line.strip_suffix('\\') {
            Some(start) => command += start,
            None => commands.push(std::mem::take(&mut command) + line),
        }
    }
    let retie = |command: &String| command.split_whitespace().next().is_some_and(|word| word.ends_with("retie"));
    commands.into_iter().filter(retie).collect()
}

/// Words of a command as a shell splits them: with quotes and comments, without variables.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in command.chars() {
        match (quote, c) {
            (None, '#') if !any => break,
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (Some(open), c) if open == c => quote = None,
            (None, c) if c.is_whitespace() => {
                if std::mem::take(&mut any) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => {
                word.push(c);
                any = true;
            }
        }
    }
    words.extend(any.then_some(word));
    words
}

#[test]
fn every_command_of_the_documentation_parses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    assert!(pages.len() > 20, "{pages:?}");
    for page in &pages {
        for command in commands(&fs_err::read_to_string(page).unwrap()) {
            if let Err(error) = Cli::try_parse_from(words(&command)) {
                panic!("{}: `{command}`\n{error}", page.display());
            }
        }
    }
}

#[test]
fn commands_are_found_joined_and_split() {
    let page = "text\n```console\n$ retie demo --out 'a b' # comment\n$ ls\n  retie convert m \\\n    -o d\n```\n```yaml\nretie: 1\n```\n";
    let found = commands(page);
    assert_eq!(found.len(), 2);
    assert_eq!(words(&found[0]), ["retie", "demo", "--out", "a b"]);
    assert_eq!(words(&found[1]), ["retie", "convert", "m", "-o", "d"]);
}
