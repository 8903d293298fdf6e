//! Commands of the README and of the guides, run as written and in reading order in a copy of a
//! clone. Only the parts that a test cannot have are substituted: the bundled model for that of the
//! hub, files for the data of tasks, and short runs for long ones.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};
use support::{Place, Run, assets, copy};

/// Pages whose commands run one after the other.
const PAGES: &[&str] = &[
    "README.md",
    "docs/guides/convert.md",
    "docs/guides/plan.md",
    "docs/guides/distil.md",
    "docs/guides/route.md",
    "docs/guides/exits.md",
    "docs/guides/export.md",
    "docs/guides/measure.md",
];

/// Text of a command or recipe, and its substitute.
const SUBSTITUTIONS: &[(&str, &str)] = &[
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "base"),
    ("train.tokens=100000", "train.tokens=1000"),
    ("tokens: 600_000", "tokens: 1_000"),
    ("tokens: 60_000", "tokens: 1_000"),
    ("warmup_steps: 14, decay_steps: 24", "warmup_steps: 2, decay_steps: 2"),
    (
        "source_layers: [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 4, 6, 7, 8, 9, 10, 11, 19, 20, 21, 22, 23, 24, 25, 27, 28, 29]",
        "source_layers: [0, 1, 2, 1, 2, 7]",
    ),
    ("steps: 300", "steps: 4"),
    ("warmup_steps: 150", "warmup_steps: 2"),
    ("sequence_length: 512", "sequence_length: 64"),
    ("--sequence-length 512", "--sequence-length 64"),
    ("warmup_steps: 20, decay_steps: 60", "warmup_steps: 2, decay_steps: 2"),
    ("warmup_steps: 20, decay_steps: 240", "warmup_steps: 2, decay_steps: 2"),
    ("cosine: {warmup_steps: 20}", "cosine: {warmup_steps: 1}"),
    ("eval_sequences: 64", "eval_sequences: 4"),
    ("calibration_tokens: 16384", "calibration_tokens: 1024"),
    ("calibration_tokens: 65536", "calibration_tokens: 1024"),
    ("--calibration-tokens 65536", "--calibration-tokens 1024"),
    ("--budget 103M", "--budget 75%"),
    ("--limit 200", "--limit 2 --data tasks"),
    ("--window 512 --limit 64", "--window 64 --limit 4"),
    ("--window 512 --limit 16", "--window 64 --limit 4"),
    ("--window 512", "--window 64 --limit 4"),
    ("--window 128 --limit 16", "--window 64 --limit 4"),
    ("bench checkpoints/store/smollm2-r2", "bench checkpoints/store/smollm2-r2 --seq 16 --new-tokens 4 --rounds 1"),
    ("--decode-batch 1,8", "--decode-batch 1,2 --rounds 1"),
];

fn substituted(text: &str) -> String {
    SUBSTITUTIONS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The lines of the `sh` blocks that run `retie` or `scripts/data`, continued lines joined.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("retie ") || line.starts_with("scripts/data")).collect()
}

/// A folder with the parts of a clone that the commands read.
fn clone() -> Place {
    let place = Place::new();
    for folder in ["configs/recipes", "scripts", "tasks"] {
        fs_err::create_dir_all(place.path(folder)).unwrap();
    }
    for folder in ["demo-model", "demo-text"] {
        copy(&assets().join(folder), &place.path("cli/assets").join(folder));
    }
    fs_err::copy(repository().join("scripts/data"), place.path("scripts/data")).unwrap();
    for entry in fs_err::read_dir(repository().join("configs/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = substituted(&fs_err::read_to_string(&path).unwrap());
        place.write(&format!("configs/recipes/{}", path.file_name().unwrap().display()), recipe);
    }
    let row = r#"{"contexts": ["The", "The"], "continuations": [" cell", " sun"], "gold": 0}"#;
    place.write("tasks/piqa.jsonl", format!("{row}\n{row}\n"));
    place.write(
        "tasks/lambada_openai.jsonl",
        "{\"contexts\": [\"The\"], \"continuations\": [\" cell\"], \"gold\": 0}\n",
    );
    place
}

/// A shell in the copy, without the text that the environment of the test may name.
fn shell(place: &Place) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_retie")).parent().unwrap().to_owned();
    let path = env::join_paths(std::iter::once(binary).chain(env::split_paths(&env::var_os("PATH").unwrap()))).unwrap();
    let mut shell = Command::new("sh");
    place.prepare(&mut shell);
    shell.env("PATH", &path).env_remove("RETIE_TEXT").env("RETIE_ASSETS", place.path("no-assets"));
    shell
}

#[test]
fn every_command_of_the_readme_and_the_guides_runs() {
    let place = clone();
    for name in PAGES {
        let page = fs_err::read_to_string(repository().join(name)).unwrap();
        let commands = commands(&page);
        assert!(commands.len() >= 4, "{name}: {commands:?}");
        for command in commands {
            let run = place.run(shell(&place).args(["-c", &substituted(&command)]).output().unwrap());
            assert_eq!(run.code, Some(0), "{name}: {command}\n{}", run.stderr);
        }
    }
    assert_eq!(place.read("data/cache/train.jsonl"), place.read("text/train.jsonl"));
}

#[test]
fn scripts_data_takes_the_first_text_that_exists() {
    let place = clone();
    for (folder, prefix) in [("assets/text", "openstax_"), ("mine", "")] {
        fs_err::create_dir_all(place.path(folder)).unwrap();
        for part in ["train", "heldout"] {
            place.write(&format!("{folder}/{prefix}{part}.jsonl"), format!("{{\"text\": \"{folder}, {part}\"}}\n"));
        }
    }
    let data = |variables: &[(&str, &str)]| -> Run {
        let variables = variables.iter().map(|(name, folder)| (*name, place.path(folder)));
        place.run(shell(&place).envs(variables).args(["-c", "scripts/data out"]).output().unwrap())
    };
    let (assets, mine) = (("RETIE_ASSETS", "assets"), ("RETIE_TEXT", "mine"));

    let refused = data(&[assets, ("RETIE_TEXT", "nowhere")]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("`[DIR]/nowhere`, expected a folder with train.jsonl"), "{refused:?}");

    data(&[assets]).ok();
    assert_eq!(place.read("out/heldout.jsonl"), place.read("assets/text/openstax_heldout.jsonl"));
    let rerun = data(&[]);
    assert!(rerun.stderr.contains("there already"), "{rerun:?}");
    assert_eq!(place.read("out/train.jsonl"), place.read("assets/text/openstax_train.jsonl"));
    data(&[assets, mine]).ok();
    assert_eq!(place.read("out/train.jsonl"), place.read("mine/train.jsonl"));
}
