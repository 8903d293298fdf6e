//! Errors of this crate.

use std::path::PathBuf;

/// Why a run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file cannot be read or written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A configuration cannot be used.
    #[error(transparent)]
    Config(#[from] retie_config::ConfigError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] retie_checkpoint::CheckpointError),
    /// A text cannot be used.
    #[error(transparent)]
    Data(#[from] retie_data::DataError),
    /// A model cannot be built.
    #[error(transparent)]
    Model(#[from] retie_model::ModelError),
    /// The run's folder is taken.
    #[error("`{}` already holds a run\nhint: `--resume` continues it; another `run.dir` starts a new one", path.display())]
    RunExists {
        /// `run.dir`.
        path: PathBuf,
    },
    /// A file that is in the place of a log of the run.
    #[error("`{}` is not a log of this program, expected it to begin with {expected}\nhint: move it away, or take its kind out of `run.loggers`", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
        /// Its expected beginning.
        expected: &'static str,
    },
    /// `--resume` with other settings.
    #[error("`{}` differs from the configuration of the run:\n{}\nhint: `--allow-change {example}` goes on with a change; another `run.dir` starts a new run", path.display(), differences.join("\n"))]
    ConfigChanged {
        /// The stored configuration.
        path: PathBuf,
        /// Keys that differ, with both values.
        differences: Vec<String>,
        /// The first of the keys.
        example: String,
    },
    /// `--allow-change` with a key that no configuration has.
    #[error(
        "`--allow-change {key}`: the configuration has no such key\nhint: keys are written as for `--set`, e.g. `optimizer.lr`; a part such as `optimizer` stands for all in it"
    )]
    NoSuchKey {
        /// The value that was asked for.
        key: String,
    },
    /// `--resume=PATH` with something else.
    #[error("`{}` is no checkpoint, expected a folder `ckpt/step-N` of a run, or a run's folder that has one", path.display())]
    NotACheckpoint {
        /// The value that was asked for.
        path: PathBuf,
    },
    /// `--resume=PATH` with an older checkpoint of the same run.
    #[error("`{}` is not the last checkpoint of its run, `{}` is later\nhint: another `run.dir` begins a new run from it; or move the later ones away", path.display(), later.display())]
    LaterCheckpoints {
        /// The value that was asked for.
        path: PathBuf,
        /// The next one.
        later: PathBuf,
    },
    /// A checkpoint to go on from that is damaged, where an earlier one is not.
    #[error(
        "the checkpoint `{}` cannot be read\n\
         hint: the one before it, `{}`, is whole: move the damaged one away, and `--resume` goes on from there",
        path.display(),
        before.display()
    )]
    DamagedCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// The last one before it that can be read.
        before: PathBuf,
        /// Cause.
        source: Box<TrainError>,
    },
    /// A model without a tokenizer.
    #[error(
        "`{model}` has no `tokenizer.json`\nhint: put the tokenizer of the original model beside its `config.json`"
    )]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// Nothing tells where a document ends.
    #[error(
        "`{model}` names no end-of-text token: neither `<|endoftext|>` in its tokenizer nor `eos_token_id` in its `config.json`"
    )]
    NoEndOfText {
        /// The model.
        model: String,
    },
    /// A loss asks for what the models do not have.
    #[error("loss `{loss}` does not fit the models: {reason}\nhint: {hint}")]
    Loss {
        /// The loss.
        loss: &'static str,
        /// The missing part.
        reason: String,
        /// The fix.
        hint: &'static str,
    },
    /// Frozen groups that are all that a model has.
    #[error(
        "nothing of `{model}` would be trained in the first step: all of its parameter groups are frozen then, {}\nhint: give one of them a rate above 0 and no `freeze_until`",
        groups.iter().map(|group| format!("`{group}`")).collect::<Vec<_>>().join(", ")
    )]
    NothingTrained {
        /// The model.
        model: String,
        /// Its parameter groups.
        groups: Vec<&'static str>,
    },
    /// Settings of routers for a model that has none, or none with weights.
    #[error(
        "`{model}` has no router that could be trained, but there {} {}\nhint: give it one with `retie route`, or leave that out",
        if keys.len() == 1 { "is" } else { "are" },
        keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" and ")
    )]
    NoRouter {
        /// The model.
        model: String,
        /// The settings.
        keys: Vec<String>,
    },
    /// A schedule of a mechanism for a model without.
    #[error(
        "`train.anneal.{mechanism}` is a schedule of the mechanism `{mechanism}`, `{model}` has none\nhint: leave it out, or give the model one with `retie insert`"
    )]
    NothingAnnealed {
        /// The model.
        model: String,
        /// The mechanism.
        mechanism: &'static str,
    },
    /// A setting of routers of another kind.
    #[error(
        "`{key}` is of `{expected}` routers, `{model}` has `{found}`\nhint: leave it out, or take a model with other routers"
    )]
    OtherRouter {
        /// The setting.
        key: &'static str,
        /// The model.
        model: String,
        /// Its kind of router.
        found: &'static str,
        /// The kind that the setting is for.
        expected: &'static str,
    },
    /// `--resume` with another cache in the place of the one that the run began with.
    #[error(
        "the cache of logits in `{}` is not the one that the run began with\nhint: make it of the same teacher, `top_k` and text, or start a new run in another `run.dir`",
        path.display()
    )]
    LogitsChanged {
        /// `teacher.logits`.
        path: PathBuf,
    },
    /// Logits are kept of rows of one length.
    #[error(
        "logits are kept of sequences of one length, `data.packing: best_fit` makes others\nhint: take `documents`, or name the teacher's model in the run"
    )]
    RowsOfOtherLengths,
    /// Ranks that would not have the same number of micro-batches.
    #[error(
        "`train.gradient_accumulation` is `{accumulation}`, expected a multiple of the {world} ranks\n\
         hint: it counts the micro-batches of a step on all ranks together"
    )]
    UnevenRanks {
        /// `train.gradient_accumulation`.
        accumulation: usize,
        /// Ranks.
        world: usize,
    },
    /// Ranks have come to weights of their own.
    #[error(
        "the ranks do not have the same weights after step {step}\n\
         hint: they have to run one build on processors of one kind, or with `train.shard_optimizer`; the last checkpoint is intact"
    )]
    RanksDiffer {
        /// The step.
        step: u64,
    },
    /// A device that does not know bf16.
    #[error(
        "`train.precision` is `bf16`, which this device has not\nhint: leave the key out, or choose another `--device`"
    )]
    NoBf16,
    /// More tokens of a distribution than there are, or none.
    #[error("`top_k` is `{found}`, expected a number from 1 to the teacher's {vocab_size} tokens")]
    TopK {
        /// The value that was asked for.
        found: usize,
        /// Tokens of the teacher.
        vocab_size: usize,
    },
    /// A number that says how distributions are kept.
    #[error("`{key}` is `{found}`, expected {expected}")]
    KeptDistribution {
        /// Its name.
        key: &'static str,
        /// The value that was asked for.
        found: f64,
        /// The possible values.
        expected: &'static str,
    },
    /// A file of a run is not what this program wrote.
    #[error("`{}` cannot be read as a file of a run", path.display())]
    BadRunFile {
        /// The file.
        path: PathBuf,
        /// Place and cause.
        source: serde_json::Error,
    },
    /// The loss or the gradient is no longer a number.
    #[error(
        "the loss of step {step} is `{loss}` and its gradient norm `{grad_norm}`, after {skipped} steps that were skipped; its text is in `{}`\n\
         hint: a lower `optimizer.lr` or a longer warm-up; the last checkpoint is intact",
        path.display()
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
        /// The norm.
        grad_norm: f64,
        /// Steps before it that were skipped for the same reason.
        skipped: u64,
        /// File of the step's text.
        path: PathBuf,
    },
}
