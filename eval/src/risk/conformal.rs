//! Conformal risk control (Angelopoulos et al., <https://arxiv.org/abs/2208.02814>): with `n`
//! exchangeable documents whose losses fall with the threshold and are at most 1, the threshold
//! with `(n R + 1) / (n + 1) ≤ level`, `R` their mean, bounds the expected loss of a new document
//! by the level.

/// Bound of the expected loss of a new document.
pub use retie_tasks::conformal::risk_bound as bound;
