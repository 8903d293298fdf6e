//! Conformal risk control (Angelopoulos et al., <https://arxiv.org/abs/2208.02814>): with `n`
//! exchangeable documents whose losses fall with the threshold and are at most 1, the threshold
//! with `(n R + 1) / (n + 1) ≤ level`, `R` their mean, bounds the expected loss of a new document
//! by the level.

/// Bound of the expected loss of a new document.
pub fn bound(losses: &[f64]) -> f64 {
    (losses.iter().sum::<f64>() + 1.0) / (losses.len() as f64 + 1.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_new_document_counts_as_the_worst() {
        assert_eq!(super::bound(&[0.0; 9]), 0.1);
        assert_eq!(super::bound(&[0.5, 0.0, 0.5]), 0.5);
    }
}
