//! Errors of this crate.

use crate::Check;
use retie_checkpoint::CheckpointError;
use retie_config::{ConfigError, LayerIndex, ShareError, Sharing};
use std::path::PathBuf;

/// Why a model cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The source cannot be read, does not fit its configuration, or the folder cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The sharing pattern does not fit.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A file cannot be written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The source was converted before.
    #[error(
        "the model is recursive already (`{sharing}`, {num_recursions} recursions), expected a plain one\n\
         hint: convert the model that it was made from (`parent` in its `retie.json`)"
    )]
    AlreadyRecursive {
        /// Its pattern.
        sharing: Sharing,
        /// Its number of recursions.
        num_recursions: usize,
    },
    /// Routers are for the recursions of a recursive model.
    #[error(
        "the model is not recursive, expected one whose layers run in a loop\n\
         hint: convert it first (`--recursions`, `--sharing cycle` or `middle_cycle`, `--init`), then add the router to what was written"
    )]
    RouterWithoutRecursion,
    /// Mechanisms are for the recursions of a recursive model.
    #[error(
        "the model is not recursive, expected one whose layers run in a loop\n\
         hint: `retie convert` makes one of it"
    )]
    StepsWithoutRecursion,
    /// The source has a router.
    #[error(
        "the model has an `{kind}` router already, expected one without\n\
         hint: add another one to the model that it was made from (`parent` in its `retie.json`)"
    )]
    AlreadyRouted {
        /// Its kind.
        kind: &'static str,
    },
    /// No matrix of the model has that rank.
    #[error(
        "LoRA rank `{rank}` is out of range, expected 1 to {largest}\nhint: {largest} is the full rank of `{projection}`"
    )]
    RankOutOfRange {
        /// The rank that was asked for.
        rank: usize,
        /// Largest full rank of a projection.
        largest: usize,
        /// A projection that has it.
        projection: String,
    },
    /// Ranks are given for what the model does not have.
    #[error("the model has no linear {}\nhint: its linears are {}", quoted(unknown), quoted(known))]
    UnknownProjections {
        /// The names.
        unknown: Vec<String>,
        /// The linears of the model.
        known: Vec<String>,
    },
    /// A budget does not reach for one rank anywhere.
    #[error("{budget} parameters of LoRA buy nothing: one rank has at least {cheapest}, or nothing is lost by sharing")]
    BudgetTooSmall {
        /// The budget.
        budget: usize,
        /// Parameters of the smallest rank.
        cheapest: usize,
    },
    /// No depth is left that could have LoRA.
    #[error("no depth has LoRA from recursion {from} on\nhint: recursions are counted from 0; 1 leaves out the first")]
    NoDepthForLora {
        /// The first recursion that has it.
        from: usize,
    },
    /// A layer would serve depths that compute different things.
    #[error(
        "`{sharing}` with {num_recursions} recursions ties depths that differ in kind: layer {layer} would run {} and {}\nhint: {}",
        depths[0],
        depths[1],
        mixed_hint(fits)
    )]
    MixedKinds {
        /// The pattern.
        sharing: Sharing,
        /// Its number of recursions.
        num_recursions: usize,
        /// The first such layer.
        layer: LayerIndex,
        /// Two of its depths, with their kinds.
        depths: [String; 2],
        /// Patterns that tie depths of one kind only.
        fits: Vec<String>,
    },
    /// A calibrated start has nothing to be fitted to.
    #[error(
        "what is fitted to a text has no calibration text\nhint: give one, or choose another init, or no compensation"
    )]
    NoCalibration,
    /// A budget that no selection of layers fits, or that all layers fit.
    #[error(
        "the budget `{budget}` is {allowed} parameters, expected at least {smallest} and less than the {all} of the model\nhint: {}",
        if allowed >= all { "nothing has to be removed: ask for less" } else { "one layer and the embeddings are the least" }
    )]
    SelectionBudget {
        /// The budget as it was asked for.
        budget: String,
        /// The budget in parameters.
        allowed: usize,
        /// Parameters of the source.
        all: usize,
        /// Parameters of the smallest selection.
        smallest: usize,
    },
    /// A budget that no pairs of factors fit, or that all matrices fit.
    #[error(
        "the budget `{budget}` is {allowed} parameters, expected at least {smallest} and less than the {all} of the model\nhint: {}",
        if allowed >= all { "nothing has to be replaced: ask for less" } else { "factors of rank 1 and what is no matrix are the least" }
    )]
    LowRankBudget {
        /// The budget as it was asked for.
        budget: String,
        /// The budget in parameters.
        allowed: usize,
        /// Parameters of the source.
        all: usize,
        /// Parameters with rank 1 everywhere.
        smallest: usize,
    },
    /// No candidate of a search fits.
    #[error(
        "nothing can be tried within the budget `{budget}` ({allowed} parameters):\n{}\nhint: raise the budget, or try other recursions, patterns or a `fit`",
        indented(reasons)
    )]
    NothingToSearch {
        /// The budget as it was asked for.
        budget: String,
        /// The budget in parameters.
        allowed: usize,
        /// Why each pattern was passed over.
        reasons: Vec<String>,
    },
    /// The inputs of the linears of a depth are not finite, so they have no second moments.
    #[error(
        "what `{projection}` at depth {depth} reads of the calibration text is not finite\nhint: the model overflows on this text; try another one"
    )]
    BadMoments {
        /// Position in the stack.
        depth: usize,
        /// The first linear that reads it.
        projection: String,
    },
    /// Weights hold infinities or NaNs, of which there is no SVD.
    #[error("{} values that are not finite: {}", if tensors.len() == 1 { "a tensor holds" } else { "tensors hold" }, places(tensors))]
    NotFinite {
        /// Every such tensor of the tied group and its file.
        tensors: Vec<(String, PathBuf)>,
    },
    /// The eigenvalue iteration gave up.
    #[error("the decomposition of `{tensor}` minus its shared weight did not converge")]
    NoConvergence {
        /// The source tensor.
        tensor: String,
    },
    /// The written folder is not as it should be.
    #[error("checks of the written checkpoint failed, nothing was kept:\n{}", lines(failures))]
    ChecksFailed {
        /// Every failed check.
        failures: Vec<Check>,
    },
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn places(tensors: &[(String, PathBuf)]) -> String {
    tensors.iter().map(|(tensor, path)| format!("`{tensor}` in `{}`", path.display())).collect::<Vec<_>>().join(", ")
}

fn lines(failures: &[Check]) -> String {
    failures.iter().map(|check| format!("  {}: {}", check.name, check.detail)).collect::<Vec<_>>().join("\n")
}

fn mixed_hint(fits: &[String]) -> String {
    let allow = "`tie_across_kinds` (`--tie-across-kinds`) ties them all the same: each depth keeps its own window and rotation";
    match fits {
        [] => allow.to_owned(),
        fits => format!("these tie depths of one kind: {}; {allow}", fits.join("; ")),
    }
}
