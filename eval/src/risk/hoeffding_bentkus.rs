//! Hoeffding-Bentkus p-value of "the mean loss is above `level`" (Bates et al.,
//! <https://arxiv.org/abs/2101.02703>, §3.1): with the mean `R` of `n` losses, the smaller of
//!
//! - `exp(−n h(min(R, level), level))`, `h(a, b) = a ln(a/b) + (1 − a) ln((1 − a)/(1 − b))`;
//! - `e P(Binomial(n, level) ≤ ⌈n R⌉)`.

use super::mean;

/// The p-value.
pub fn p_value(losses: &[f64], level: f64) -> f64 {
    if losses.is_empty() || level <= 0.0 {
        return 1.0;
    }
    if level >= 1.0 {
        return 0.0;
    }
    let (count, risk) = (losses.len(), mean(losses));
    let part = |a: f64, b: f64| if a > 0.0 { a * (a / b).ln() } else { 0.0 };
    let lower = risk.min(level);
    let divergence = part(lower, level) + part(1.0 - lower, 1.0 - level);
    let hoeffding = (-(count as f64) * divergence).exp();
    // A sum like 3 · 0.1 is not to count as one loss more.
    let most = (count as f64 * risk - 1e-9).ceil().max(0.0) as usize;
    let bentkus = std::f64::consts::E * binomial_cdf(most, count, level);
    hoeffding.min(bentkus).min(1.0)
}

/// `P(Binomial(count, p) ≤ most)`.
fn binomial_cdf(most: usize, count: usize, p: f64) -> f64 {
    let (log_p, log_q) = (p.ln(), (-p).ln_1p());
    let mut log_term = count as f64 * log_q;
    let mut sum = log_term.exp();
    for k in 1..=most.min(count) {
        log_term += ((count - k + 1) as f64 / k as f64).ln() + log_p - log_q;
        sum += log_term.exp();
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binomial_probabilities_have_their_known_values() {
        // Exact: (1 + 10 + 45) / 1024, and 0.9^20 + 20 · 0.1 · 0.9^19.
        assert!((binomial_cdf(2, 10, 0.5) - 56.0 / 1024.0).abs() < 1e-12);
        assert!((binomial_cdf(1, 20, 0.1) - (0.9f64.powi(20) + 2.0 * 0.9f64.powi(19))).abs() < 1e-12);
        assert!((binomial_cdf(10, 10, 0.3) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_p_value_is_the_smaller_of_two_bounds() {
        // No loss in 100: exp(100 ln 0.95) is the less, as e times the same probability is more.
        assert!((p_value(&[0.0; 100], 0.05) - 0.95f64.powi(100)).abs() < 1e-12);
        assert_eq!(p_value(&[0.1; 50], 0.1), 1.0);
        assert_eq!((p_value(&[], 0.1), p_value(&[0.5], 0.0)), (1.0, 1.0));
    }
}
