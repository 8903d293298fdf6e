//! Every `retie` command of the README, in its order, run as it stands there but for what a test cannot have: the hub's model
//! is the bundled one, texts and task data are small, and runs are short.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};
use support::Place;

/// What stands in the README or a recipe, and what the test has in its place.
const SUBSTITUTIONS: &[(&str, &str)] = &[
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "base"),
    ("train.tokens=100000", "train.tokens=1000"),
    ("sequence_length: 512", "sequence_length: 64"),
    ("--sequence-length 512", "--sequence-length 64"),
    ("warmup_steps: 20, decay_steps: 60", "warmup_steps: 2, decay_steps: 2"),
    ("--limit 200", "--limit 2 --data tasks"),
    ("--window 512", "--window 64 --limit 4"),
    ("bench checkpoints/store/smollm2-r2", "bench checkpoints/store/smollm2-r2 --seq 16 --new-tokens 4 --rounds 1"),
];

fn substituted(text: &str) -> String {
    SUBSTITUTIONS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The lines of the `sh` blocks that begin with `retie `, continued lines joined.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("retie ")).collect()
}

#[test]
fn every_command_of_the_readme_runs() {
    let place = Place::new();
    for folder in ["configs/recipes", "checkpoints/store", "data/cache", "tasks"] {
        fs_err::create_dir_all(place.path(folder)).unwrap();
    }
    for entry in fs_err::read_dir(repository().join("configs/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = substituted(&fs_err::read_to_string(&path).unwrap());
        place.write(&format!("configs/recipes/{}", path.file_name().unwrap().display()), recipe);
    }
    place.write("data/cache/train.jsonl", place.read("text/train.jsonl"));
    place.write("data/cache/heldout.jsonl", place.read("text/heldout.jsonl"));
    place.write("heldout.txt", place.read("text/heldout.jsonl"));
    let row = r#"{"contexts": ["The", "The"], "continuations": [" cell", " sun"], "gold": 0}"#;
    place.write("tasks/piqa.jsonl", format!("{row}\n{row}\n"));
    place.write(
        "tasks/lambada_openai.jsonl",
        "{\"contexts\": [\"The\"], \"continuations\": [\" cell\"], \"gold\": 0}\n",
    );

    let binary = Path::new(env!("CARGO_BIN_EXE_retie")).parent().unwrap().to_owned();
    let path = env::join_paths(std::iter::once(binary).chain(env::split_paths(&env::var_os("PATH").unwrap()))).unwrap();
    let page = fs_err::read_to_string(repository().join("README.md")).unwrap();
    let commands = commands(&page);
    assert!(commands.len() >= 12, "{commands:?}");
    for command in commands {
        let mut shell = Command::new("sh");
        place.prepare(&mut shell);
        let run = place.run(shell.env("PATH", &path).args(["-c", &substituted(&command)]).output().unwrap());
        assert_eq!(run.code, Some(0), "{command}\n{}", run.stderr);
    }
}
