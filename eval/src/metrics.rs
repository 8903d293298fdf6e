//! Metrics of log-likelihoods as the harness defines them: accuracies, perplexity, standard errors.

use crate::{Example, TokenScores};
use std::fmt;

/// Metric of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Accuracy: the choice with the largest log-likelihood is the right one; with a single
    /// continuation, greedy decoding gives it.
    Acc,
    /// Accuracy with each log-likelihood divided by the choice's length in characters.
    AccNorm,
    /// exp of the mean negative log-likelihood of the continuations.
    Perplexity,
}

impl Metric {
    /// Name in the harness.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::Perplexity => "perplexity",
        }
    }

    /// The metric over `answers`, at least one.
    pub(crate) fn over(self, answers: &[Answer]) -> Estimate {
        let hits = |hit: fn(&Answer) -> bool| {
            Estimate::of_mean(&answers.iter().map(|a| f64::from(u8::from(hit(a)))).collect::<Vec<_>>())
        };
        match self {
            Self::Acc => hits(|a| a.hit),
            Self::AccNorm => hits(|a| a.hit_norm),
            Self::Perplexity => {
                let sum: f64 = answers.iter().map(|a| a.gold_log_likelihood).sum();
                Estimate { value: (-sum / answers.len() as f64).exp(), stderr: None }
            }
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Standard error of the mean, from the sample's standard deviation (divisor n − 1); `None` for
    /// a single example and for a perplexity (the harness bootstraps that one).
    pub stderr: Option<f64>,
}

impl Estimate {
    fn of_mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let stderr = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
        Self { value: mean, stderr }
    }
}

/// Correctness and log-likelihood of one example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    hit: bool,
    hit_norm: bool,
    gold_log_likelihood: f64,
}

impl Answer {
    /// Answer from one score per choice; `is_single` as in [`crate::Task`].
    pub(crate) fn new(example: &Example, scores: &[TokenScores], is_single: bool) -> Self {
        let sums: Vec<f64> = scores.iter().map(TokenScores::sum).collect();
        let normed: Vec<f64> = sums.iter().zip(&example.continuations).map(|(sum, c)| sum / num_chars(c)).collect();
        let gold = example.gold;
        let hit = if is_single { scores.iter().all(TokenScores::all_greedy) } else { argmax(&sums) == gold };
        Self {
            hit,
            hit_norm: argmax(&normed) == gold,
            gold_log_likelihood: sums.get(gold).copied().unwrap_or(f64::NAN),
        }
    }
}

/// Characters of a choice: the continuation without the space that the harness puts before it.
fn num_chars(continuation: &str) -> f64 {
    continuation.strip_prefix(' ').unwrap_or(continuation).chars().count() as f64
}

/// Index of the largest value; the first of equal ones.
fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_choices_wins() {
        assert_eq!(argmax(&[-2.0, -1.0, -1.0]), 1);
        assert_eq!(argmax(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), 0);
    }

    #[test]
    fn lengths_are_characters_without_one_leading_space() {
        assert_eq!(num_chars(" Käse"), 4.0);
        assert_eq!(num_chars("  x"), 2.0);
        assert_eq!(num_chars("x"), 1.0);
    }

    #[test]
    fn the_standard_error_divides_by_n_minus_1() {
        // mean 0.75, squares 0.75: sqrt(0.75 / 3) / 2.
        assert_eq!(Estimate::of_mean(&[1.0, 1.0, 0.0, 1.0]), Estimate { value: 0.75, stderr: Some(0.25) });
        assert_eq!(Estimate::of_mean(&[1.0]).stderr, None);
    }
}
