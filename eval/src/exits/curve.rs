//! Risk and mean recursion count of a rule over its thresholds, with the keys and values of the
//! whole stack: one pass over a document is enough for every rule and threshold.

use super::document::Passages;

/// Most thresholds of a rule.
pub const MOST: usize = 12;

/// Parts of the tokens that leave at the thresholds of a rule's grid.
const PARTS: [f64; MOST] = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Numbers of a rule: of each document, at exits `1 … R − 1`, of each token.
pub type Numbers = Vec<Vec<Vec<f32>>>;

/// Thresholds of a rule, from the safest to the most eager: quantiles of `numbers`.
pub fn grid(numbers: &Numbers) -> Vec<f64> {
    let mut all: Vec<f32> = numbers.iter().flatten().flatten().copied().filter(|x| x.is_finite()).collect();
    all.sort_unstable_by(|a, b| b.total_cmp(a));
    let Some(last) = all.len().checked_sub(1) else { return Vec::new() };
    let mut grid: Vec<f64> = PARTS.iter().map(|part| f64::from(all[(part * last as f64).round() as usize])).collect();
    grid.dedup();
    grid
}

/// Mean loss and mean recursion count of a document at `threshold`.
pub fn at_threshold(passages: &Passages, numbers: &[Vec<f32>], threshold: f64) -> (f64, f64) {
    let tokens = numbers.first().map_or(0, Vec::len);
    let (mut loss, mut recursions) = (0.0, 0.0);
    let first_exit = |token: usize| numbers.iter().position(|numbers| f64::from(numbers[token]) >= threshold);
    for (token, exit) in (0..tokens).map(first_exit).enumerate() {
        loss += exit.map_or(0.0, |exit| f64::from(passages.losses[exit][token]));
        let count = passages.counts[token];
        recursions += exit.map_or(count, |exit| count.min(exit + 1)) as f64;
    }
    (loss / tokens.max(1) as f64, recursions / tokens.max(1) as f64)
}
