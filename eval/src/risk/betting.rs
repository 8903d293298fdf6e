//! Upper confidence bound of a mean by betting (Waudby-Smith and Ramdas,
//! <https://arxiv.org/abs/2010.09686>): were the mean above `level`, the capital
//!
//! `K_i = Π_(j ≤ i) (1 − ν_j (x_j − level))`
//!
//! would be a supermartingale, and reach `1/δ` with probability `δ` at most. The bets `ν_j` depend
//! on earlier losses alone: `min(1, √(2 ln(1/δ) / (n σ²_(j−1))))`.

/// True if, with probability `1 − delta`, the mean of the distribution of `losses` is at most
/// `level`.
pub fn is_below(losses: &[f64], level: f64, delta: f64) -> bool {
    let count = losses.len() as f64;
    let (mut log_capital, mut sum, mut squares) = (0.0f64, 0.5, 0.25);
    for (i, loss) in losses.iter().enumerate() {
        let seen = i as f64 + 1.0;
        let variance = squares / seen;
        let bet = (2.0 * (1.0 / delta).ln() / (count * variance)).sqrt().min(1.0);
        log_capital += (-bet * (loss - level)).ln_1p();
        if log_capital >= (1.0 / delta).ln() {
            return true;
        }
        sum += loss;
        squares += (loss - sum / (seen + 1.0)).powi(2);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Least level that is accepted.
    fn bound(losses: &[f64], delta: f64) -> f64 {
        let levels = (0..=2000).map(|i| f64::from(i) / 2000.0);
        levels.into_iter().find(|level| is_below(losses, *level, delta)).unwrap_or(1.0)
    }

    #[test]
    fn the_bound_comes_near_the_mean_as_documents_are_added() {
        // Mean 0.05 and standard deviation 0.034.
        let losses =
            |count: usize| -> Vec<f64> { (0..count).map(|i| if i % 2 == 0 { 0.016 } else { 0.084 }).collect() };
        let slack = |count| bound(&losses(count), 0.1) - 0.05;
        assert!((slack(100) - 0.025).abs() < 0.006, "{}", slack(100));
        assert!((slack(300) - 0.009).abs() < 0.003, "{}", slack(300));
        assert!(slack(1000) < 0.005, "{}", slack(1000));
        assert!(bound(&[], 0.1) == 1.0 && bound(&[0.0; 5], 0.1) > 0.2, "few documents promise little");
    }
}
