//! Test support: runs the binary on the bundled model, offline and without colours.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A folder for one test, with the demo's model in `base` and its texts in `text`.
pub struct Place {
    dir: TempDir,
}

/// Exit code and output of a command, in which the test's folder is written as `[DIR]`.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        copy(&assets().join("demo-model"), &place.path("base"));
        copy(&assets().join("demo-text"), &place.path("text"));
        place
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A further copy of the model.
    pub fn model(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        copy(&assets().join("demo-model"), &path);
        path
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs_err::write(&path, content).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }

    /// The binary, to be run in the test's folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retie"));
        self.prepare(&mut command);
        command
    }

    pub fn prepare(&self, command: &mut Command) {
        command
            .current_dir(self.root())
            .env("NO_COLOR", "1")
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("hub"));
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "RUST_LOG", "COLUMNS"] {
            command.env_remove(name);
        }
    }

    /// NLL of a model on the held-out text, nats per token.
    pub fn nll(&self, model: &str) -> f64 {
        let line = format!(
            "eval {model} --tasks perplexity --text text/heldout.jsonl --limit 8 --window 128 --json {model}.json"
        );
        self.retie(&line).ok();
        let results: serde_json::Value = serde_json::from_str(&self.read(&format!("{model}.json"))).unwrap();
        results["results"]["perplexity"]["token_nll"].as_f64().unwrap()
    }

    /// Runs `retie` with the words of `line`.
    pub fn retie(&self, line: &str) -> Run {
        self.retie_with(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn retie_with(&self, args: &[&str]) -> Run {
        self.run(self.command().args(args).output().unwrap())
    }

    pub fn run(&self, output: Output) -> Run {
        let text = |bytes: &[u8]| {
            let canonical = fs_err::canonicalize(self.root()).unwrap();
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.replace(&canonical.display().to_string(), "[DIR]").replace(&self.root().display().to_string(), "[DIR]")
        };
        let code = output.status.code();
        Run { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Every path under the test's folder, ascending.
    pub fn listing(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let mut folders = vec![self.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs_err::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                paths.push(path);
            }
        }
        paths.sort();
        paths
    }

    /// Error message of a command that must fail on bad input: with exit code 2, and without
    /// writing anything.
    pub fn refused(&self, line: &str) -> String {
        let before = self.listing();
        let run = self.retie(line);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert_eq!(run.stdout, "", "{run:?}");
        assert_eq!(self.listing(), before, "something was written");
        run.stderr
    }
}

impl Run {
    /// Asserts that the command succeeded; returns stdout.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }
}

pub fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs_err::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// YAML of a short run in the folder `run`, of the student `converted` and the teacher `base`.
pub fn uptrain_yaml(steps: u64) -> String {
    format!(
        "schema: 1
run: {{dir: run}}
student: {{model: converted}}
teacher: {{model: base}}
data:
  train: [text/train.jsonl]
  heldout: [text/heldout.jsonl]
  sequence_length: 32
losses:
  - cross_entropy: {{weight: 0.3}}
  - distill: {{weight: 0.7}}
optimizer: {{lr: 1e-3}}
schedule:
  cosine: {{warmup_steps: 1}}
train: {{steps: {steps}, batch_size: 2, eval_every: 5, eval_sequences: 2, checkpoint_every: 4}}
"
    )
}

pub const CONVERT: &str =
    "convert base --recursions 2 --sharing middle_cycle --init average --lora-rank 4 -o converted";

/// Two stages to append to [`uptrain_yaml`]: blockwise training, then the whole model.
pub const STAGES: &str = "stages:
  - name: warm
    losses: [{blockwise: {weight: 1.0}}]
    train: {steps: 6}
    optimizer: {lr: 2e-3, groups: {norms: {lr: 0}}}
  - name: whole
    schedule: {warmup_stable_decay: {warmup_steps: 1, decay_steps: 2}}
";
