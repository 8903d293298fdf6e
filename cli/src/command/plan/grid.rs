//! The conversions of a model that are compared, and the run that each is planned for.

use super::{GridArgs, row::Kind};
use anyhow::{Context, ensure};
use retie_config::{Init, LoraConfig, ModelConfig, RecursionConfig, Sharing, UptrainConfig, dividing_recursions};
use serde_json::json;

/// A model to be trained.
pub struct Student {
    /// Sharing patterns that cost the same, or what it is.
    pub label: String,
    pub config: ModelConfig,
    pub kind: Kind,
}

impl Student {
    /// A model that is there.
    pub fn as_it_is(config: &ModelConfig) -> Self {
        Self { label: "as it is".to_owned(), config: config.clone(), kind: Kind::AsItIs }
    }
}

/// Patterns that differ only in the order of the layers: without KV sharing they cost the same.
const PATTERNS: [[Sharing; 2]; 2] =
    [[Sharing::Cycle, Sharing::Sequence], [Sharing::MiddleCycle, Sharing::MiddleSequence]];

/// The conversions of a plain model that `args` asks for; numbers of recursions that do not divide
/// its layers are left out.
///
/// # Errors
/// None is left.
pub fn students(model: &ModelConfig, args: &GridArgs) -> anyhow::Result<Vec<Student>> {
    ensure!(args.recursions.iter().all(|count| *count > 1), "`--recursions` has a number below 2, expected 2 or more");
    let mut students = Vec::new();
    for patterns in PATTERNS {
        let fitting = dividing_recursions(model.num_hidden_layers, patterns[0]);
        for count in args.recursions.iter().filter(|count| fitting.contains(count)) {
            for rank in &args.lora_rank {
                let lora = (*rank > 0).then(|| LoraConfig::uniform(*rank));
                let recursion = RecursionConfig { lora, ..RecursionConfig::new(*count, patterns[0], Init::Average) };
                let config = ModelConfig { recursion: Some(recursion), ..model.clone() };
                config.validate()?;
                let label = patterns.map(|sharing| sharing.to_string()).join(", ");
                students.push(Student { label, config, kind: Kind::Conversion });
            }
        }
    }
    ensure!(
        !students.is_empty(),
        "no number of `--recursions` divides the {} layers of the model, as a whole or without the first and the last\nhint: `retie inspect` shows the numbers that do",
        model.num_hidden_layers
    );
    Ok(students)
}

/// The run that a conversion of `model` is planned for: distillation from `model` in sequences of
/// `length` tokens, with AdamW.
///
/// # Errors
/// Never: the keys below are those of a run.
pub fn run(model: &str, length: usize) -> anyhow::Result<UptrainConfig> {
    let keys = json!({
        "schema": 1,
        "run": { "dir": "run" },
        "student": { "model": model },
        "teacher": { "model": model },
        "data": { "train": ["text"], "sequence_length": length },
        "losses": [{ "cross_entropy": { "weight": 0.3 } }, { "distill": { "weight": 0.7 } }],
        "optimizer": { "lr": 5e-4 },
        "schedule": { "cosine": { "warmup_steps": 0 } },
        "train": { "steps": 1, "batch_size": 1 },
    });
    serde_json::from_value(keys).context("the keys of the planned run")
}
