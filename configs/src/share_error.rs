//! Errors of sharing patterns.

/// Why a sharing pattern cannot be laid over a stack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// `R` does not divide the layers that the pattern shares.
    #[error(
        "`{num_recursions}` recursions do not divide the {num_shared} layers that {pattern} shares \
         (of {num_hidden_layers})\nhint: these numbers of recursions do: {}; with `fit` (`drop`, `repeat`, `pad-unshared`) others can be had",
        list(divisors)
    )]
    Indivisible {
        /// Layers of the source model.
        num_hidden_layers: usize,
        /// Layers that the pattern shares.
        num_shared: usize,
        /// What was asked for.
        num_recursions: usize,
        /// The pattern, as it is shown.
        pattern: String,
        /// The numbers that divide.
        divisors: Vec<usize>,
    },
    /// The pattern leaves nothing to share.
    #[error("{pattern} needs at least {needed} layers, found {num_hidden_layers}")]
    TooFewLayers {
        /// Layers of the source model.
        num_hidden_layers: usize,
        /// Smallest stack that the pattern accepts.
        needed: usize,
        /// The pattern, as it is shown.
        pattern: String,
    },
    /// Keys of a pattern that do not go together.
    #[error("{problem}\nhint: {hint}")]
    Mismatch {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// Chosen source layers have no form that can be stored.
    #[error(
        "{problem}\nhint: kept layers are listed once and ascending, and the layers of one loop again for each recursion, e.g. `0, 1, 2, 3, 2, 3, 7`"
    )]
    SourceLayers {
        /// What is wrong.
        problem: String,
    },
    /// The stack has no early exits. What needs them adds a hint.
    #[error("{pattern} has no early exits: {reason}")]
    NoExits {
        /// The pattern, as it is shown.
        pattern: String,
        /// What the pattern lacks.
        reason: &'static str,
    },
    /// A map has another length than the stack.
    #[error(
        "a map of {found} depths does not fit {num_hidden_layers} layers\nhint: give one number for each layer of the model"
    )]
    MapLength {
        /// Layers of the source model.
        num_hidden_layers: usize,
        /// Length of the map.
        found: usize,
    },
    /// A map numbers its layers in another order than that of their first use, or leaves a number
    /// out.
    #[error(
        "layers of a map are numbered in the order of their first use, and depth {depth} has `{found}` where at most `{expected}` is next\nhint: the same sharing is written {renumbered:?}"
    )]
    MapNumbers {
        /// The first depth at fault.
        depth: usize,
        /// Its number.
        found: usize,
        /// The next unused number.
        expected: usize,
        /// The map with its layers renumbered.
        renumbered: Vec<usize>,
    },
    /// A map has another number of recursions than is said beside it.
    #[error(
        "the map runs a layer `{found}` times at most, but `{expected}` recursions are asked for\nhint: leave the number of recursions out, or correct it"
    )]
    MapRecursions {
        /// The most depths of one layer.
        found: usize,
        /// What was asked for.
        expected: usize,
    },
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
