//! `retie uptrain CONFIG.yaml`: everything that a training run is.

mod anneal;
mod average;
mod data;
mod loggers;
mod teacher;
#[cfg(test)]
mod tests;
mod train;

pub use anneal::{Anneal, Doubling};
pub use average::Average;
pub use data::{DataConfig, DataFormat, Packing, SourceConfig};
pub use loggers::LoggerKind;
pub use teacher::TeacherConfig;
pub use train::{LossSpike, NonFinite, Precision, TrainConfig};

use crate::{
    LossTerm, OptimizerConfig, ScheduleConfig,
    document::{Checks, Document, RenamedKey},
    losses,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of the keys below.
const SCHEMA: u32 = 1;

/// A training run. See `configs/recipes/uptrain-smollm2-r2.yaml` for a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UptrainConfig {
    /// Version of these keys: 1.
    pub schema: u32,
    /// Folder and logs of the run.
    pub run: RunConfig,
    /// The model that is trained.
    pub student: ModelRef,
    /// The frozen model to distil from; needed when a loss needs it, and only then.
    #[serde(default)]
    pub teacher: Option<TeacherConfig>,
    /// The text.
    pub data: DataConfig,
    /// Terms of the loss; their weighted sum is minimised.
    pub losses: Vec<LossTerm>,
    /// Update rule, clipping and parameter groups.
    pub optimizer: OptimizerConfig,
    /// Learning rate over the run.
    pub schedule: ScheduleConfig,
    /// Length, batches, checkpoints.
    pub train: TrainConfig,
}

/// Folder and logs of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Folder of the run: metrics, checkpoints, the resolved configuration.
    pub dir: PathBuf,
    /// Further places for the rows of `metrics.jsonl`, which is always written.
    #[serde(default = "default_loggers")]
    pub loggers: Vec<LoggerKind>,
}

fn default_loggers() -> Vec<LoggerKind> {
    vec![LoggerKind::Console]
}

impl RunConfig {
    /// A run in `dir` that says on stderr how far it is.
    #[must_use]
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir, loggers: default_loggers() }
    }

    /// Whether its rows go to `kind` too.
    #[must_use]
    pub fn logs_to(&self, kind: LoggerKind) -> bool {
        self.loggers.contains(&kind)
    }

    fn check(&self, checks: &mut Checks) {
        check_text("run.dir", &self.dir.to_string_lossy(), checks);
        for (index, kind) in self.loggers.iter().enumerate() {
            if self.loggers[..index].contains(kind) {
                checks.problem(format!("run.loggers.{index}"), format!("`run.loggers.{index}` is there already"));
            }
        }
    }
}

/// A model on the disk or on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// A Hugging Face folder, a `.gguf` file, or a hub id.
    pub model: String,
}

impl UptrainConfig {
    /// Training tokens of one optimizer step.
    #[must_use]
    pub fn tokens_per_step(&self) -> u64 {
        let factors = [self.train.batch_size, self.train.gradient_accumulation, self.data.sequence_length];
        factors.into_iter().fold(1, |product, factor| product.saturating_mul(factor as u64))
    }

    /// Optimizer steps of the run: `train.steps`, or what `train.tokens` needs, rounded up.
    #[must_use]
    pub fn num_steps(&self) -> u64 {
        match (self.train.steps, self.train.tokens) {
            (Some(steps), _) => steps,
            (None, Some(tokens)) => tokens.div_ceil(self.tokens_per_step().max(1)),
            (None, None) => 0,
        }
    }

    /// Refuses cached logits, which are of every token, for conversations, of which some are
    /// learnt.
    fn check_conversations(&self, checks: &mut Checks) {
        let cached = self.teacher.as_ref().is_some_and(|teacher| teacher.logits.is_some());
        if self.data.format == DataFormat::Chat && cached {
            let message = "`data.format: chat` does not go with `teacher.logits`, which has every token's";
            checks.problem("data.format", message).also(&["teacher.logits"]).hint("name a `teacher.model`");
        }
    }

    /// Refuses losses of single depths where nothing of a depth is trained at the start.
    fn check_local(&self, checks: &mut Checks) {
        use crate::ParameterGroup::{Extras, Lora, Norms, Shared, Unshared};
        let parts = [Shared, Unshared, Lora, Extras, Norms];
        let frozen = parts.iter().all(|group| !self.optimizer.groups.get(*group).is_trained_after(0));
        if let Some(loss) = self.losses.iter().find(|loss| loss.needs().is_local() && frozen) {
            let message = format!("loss `{}` trains the layers, and all of their groups are frozen", loss.name());
            checks.problem("optimizer.groups", message).also(&["losses"]).hint("give `shared` or `lora` a rate");
        }
    }

    /// Learning rate of optimizer step `step`, counted from 1.
    #[must_use]
    pub fn lr_at(&self, step: u64) -> f64 {
        self.schedule.lr_at(step, self.num_steps(), self.optimizer.lr)
    }
}

impl Document for UptrainConfig {
    const RENAMED: &'static [RenamedKey] =
        &[RenamedKey { under: "train", old: "depth_warmup_steps", new: "full_recursion_warmup_steps" }];

    fn check(&self, checks: &mut Checks) {
        check_schema(self.schema, checks);
        self.run.check(checks);
        self.check_teacher(checks);
        self.data.check(checks);
        losses::check(&self.losses, checks);
        let num_steps = Some(self.num_steps()).filter(|n| *n > 0 && self.train.steps.xor(self.train.tokens).is_some());
        self.optimizer.check(num_steps, checks);
        self.check_conversations(checks);
        self.check_local(checks);
        self.train.check(&self.data, checks);
        if let Some(anneal) = self.train.anneal {
            anneal.check(num_steps, checks);
        }
        self.schedule.check(num_steps, checks);
    }
}

/// Refuses a version of the keys that this build does not know.
pub(crate) fn check_schema(schema: u32, checks: &mut Checks) {
    checks.require(schema == SCHEMA, "schema", schema, "`1`, the version that this build reads");
}

/// Refuses an empty string.
pub(crate) fn check_text(key: &str, text: &str, checks: &mut Checks) {
    if text.trim().is_empty() {
        checks.problem(key, format!("`{key}` is empty"));
    }
}
