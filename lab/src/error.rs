use thiserror::Error;

/// Why a reference system was not made or trained.
#[derive(Debug, Error)]
pub enum LabError {
    /// The loss is not a number any more.
    #[error("the loss is not finite after step {step} at a learning rate of {learning_rate}; try a smaller one")]
    Diverged {
        /// Steps done.
        step: usize,
        /// Learning rate.
        learning_rate: f64,
    },
    /// A setting, or what is to be learned, that does not do.
    #[error("{found}, expected {expected}")]
    Setting {
        /// What it is.
        found: String,
        /// What does.
        expected: String,
    },
}
