//! Conformal prediction: intervals and bounds that hold for exchangeable points whatever the model
//! and the distribution are (Vovk, Gammerman and Shafer 2005, as in Angelopoulos and Bates 2021,
//! <https://arxiv.org/abs/2107.07511>).
//!
//! A *score* says how wrong a prediction is, e.g. `|y - ŷ|`. With `n` calibration points and the
//! `⌈(n + 1)(1 - α)⌉`-th smallest score as the radius, the interval `ŷ ± radius` holds a new point
//! with a probability of at least `1 - α`, and at most `1 - α + 1 / (n + 1)` without ties.
//!
//! The spread of scores may depend on a group key, such as the number of marked points of a moduli
//! space (Hashemi, Corominas and Giacchetto 2024, <https://arxiv.org/abs/2408.14915>) or the
//! position of a token: [`SlidingWindow`] calibrates each group on the groups around it.

use crate::TaskError;
use serde::Serialize;

/// Least number of calibration points for `alpha`: with fewer, no finite radius has the level.
///
/// # Errors
/// `alpha` is not between 0 and 1.
pub fn points_needed(alpha: f64) -> Result<usize, TaskError> {
    check_alpha(alpha)?;
    let mut points = (1.0 / alpha - 1.0).floor() as usize;
    // Rounding of the quotient.
    while rank(points, alpha) > points {
        points += 1;
    }
    Ok(points.max(1))
}

fn check_alpha(alpha: f64) -> Result<(), TaskError> {
    if alpha > 0.0 && alpha < 1.0 { Ok(()) } else { Err(TaskError::Alpha { found: alpha }) }
}

/// `⌈(n + 1)(1 - α)⌉`, at least 1. A product that is an integer but for rounding is that integer.
fn rank(points: usize, alpha: f64) -> usize {
    // A unit in the last place for each of the factors.
    const ROUNDING: f64 = 4.0 * f64::EPSILON;
    let product = (points as f64 + 1.0) * (1.0 - alpha);
    ((product * (1.0 - ROUNDING)).ceil() as usize).max(1)
}

/// Radius of the level `1 - alpha`, from the scores of calibration points.
///
/// # Errors
/// `alpha` is not between 0 and 1, a score is not finite, or there are too few of them.
pub fn radius(scores: &[f64], alpha: f64) -> Result<f64, TaskError> {
    let needed = points_needed(alpha)?;
    if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
        return Err(TaskError::Score { index, found: scores[index] });
    }
    if scores.len() < needed {
        return Err(TaskError::TooFew { found: scores.len(), needed, alpha });
    }
    let mut sorted = scores.to_vec();
    let (_, radius, _) = sorted.select_nth_unstable_by(rank(scores.len(), alpha) - 1, f64::total_cmp);
    Ok(*radius)
}

/// Bound of the expected loss of a new point, whose losses are at most 1 and fall with a threshold
/// (conformal risk control, Angelopoulos et al. 2022, <https://arxiv.org/abs/2208.02814>): the
/// calibration points and one more, which counts as the worst.
#[must_use]
pub fn risk_bound(losses: &[f64]) -> f64 {
    (losses.iter().sum::<f64>() + 1.0) / (losses.len() as f64 + 1.0)
}

/// Calibration points with a group key each.
#[derive(Clone, Debug)]
pub struct SlidingWindow {
    /// Keys and scores, by key.
    points: Vec<(i64, f64)>,
    alpha: f64,
    /// Least distance of the groups that a group is calibrated on.
    width: u64,
}

/// Radius of a group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GroupRadius {
    /// The radius.
    pub radius: f64,
    /// Largest distance of a key among the points that it follows from.
    pub width: u64,
    /// Those points.
    pub points: usize,
}

impl SlidingWindow {
    /// Calibration at the level `1 - alpha`: each group on those whose key is at most `width` away,
    /// and on those further away where they have too few points for the level.
    ///
    /// # Errors
    /// Those of [`radius`] over all points.
    pub fn new(mut points: Vec<(i64, f64)>, alpha: f64, width: u64) -> Result<Self, TaskError> {
        let scores: Vec<f64> = points.iter().map(|(_, score)| *score).collect();
        radius(&scores, alpha)?;
        points.sort_by_key(|(key, _)| *key);
        Ok(Self { points, alpha, width })
    }

    /// Radius of the group `key`, whether it has calibration points or not.
    ///
    /// # Errors
    /// None for what [`SlidingWindow::new`] accepts.
    pub fn at(&self, key: i64) -> Result<GroupRadius, TaskError> {
        let needed = points_needed(self.alpha)?;
        let mut distances: Vec<u64> = self.points.iter().map(|(other, _)| other.abs_diff(key)).collect();
        distances.sort_unstable();
        // The window that has enough points, all of a distance or none.
        let enough = distances.get(needed - 1).copied().unwrap_or(u64::MAX);
        let width = self.width.max(enough);
        let near = self.points.iter().filter(|(other, _)| other.abs_diff(key) <= width);
        let scores: Vec<f64> = near.map(|(_, score)| *score).collect();
        Ok(GroupRadius { radius: radius(&scores, self.alpha)?, width, points: scores.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    /// A score with a skewed distribution, on the scale of its group.
    fn score(random: &mut Random, scale: f64) -> f64 {
        let u = (random.bits() >> 11) as f64 / 2f64.powi(53);
        scale * -(1.0 - u).ln()
    }

    #[test]
    fn the_radius_is_the_order_statistic_with_a_new_point_counted() {
        let scores: Vec<f64> = (1..=9).rev().map(f64::from).collect();
        assert_eq!(radius(&scores, 0.1).unwrap(), 9.0);
        assert_eq!(radius(&scores, 0.2).unwrap(), 8.0);
        assert_eq!(radius(&scores, 0.5).unwrap(), 5.0);
        assert_eq!(radius(&scores, 0.99).unwrap(), 1.0);
    }

    #[test]
    fn points_that_a_level_needs_are_one_less_than_its_inverse() {
        for (alpha, points) in [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3), (0.9, 1)] {
            assert_eq!(points_needed(alpha).unwrap(), points, "{alpha}");
        }
    }

    #[test]
    fn levels_scores_and_numbers_of_points_that_cannot_be_are_refused() {
        for alpha in [0.0, 1.0, -0.1, f64::NAN] {
            let message = radius(&[1.0; 50], alpha).unwrap_err().to_string();
            assert!(message.contains("expected a number between 0 and 1"), "{message}");
        }
        let message = radius(&[1.0; 18], 0.05).unwrap_err().to_string();
        let expected = "18 calibration points do not suffice for alpha 0.05, expected at least 19\nhint: ";
        assert!(message.starts_with(expected), "{message}");
        let message = radius(&[1.0, f64::NAN, 2.0], 0.4).unwrap_err().to_string();
        assert!(message.contains("calibration point 1 has the score NaN"), "{message}");
        assert!(SlidingWindow::new(vec![(0, 1.0); 8], 0.1, 0).is_err());
    }

    /// Fraction of `trials` in which a new point is inside, with `points` calibration points.
    fn coverage(points: usize, alpha: f64, trials: u64) -> f64 {
        let inside = (0..trials).filter(|trial| {
            let mut random = Random::new(7, "coverage", *trial);
            let scores: Vec<f64> = (0..points).map(|_| score(&mut random, 1.0)).collect();
            score(&mut random, 1.0) <= radius(&scores, alpha).unwrap()
        });
        inside.count() as f64 / trials as f64
    }

    #[test]
    fn coverage_is_the_level_and_at_most_a_point_more() {
        for (points, alpha) in [(9, 0.1), (30, 0.1), (57, 0.2), (99, 0.01)] {
            let found = coverage(points, alpha, 10_000);
            let sigma = 3.0 * (alpha * (1.0 - alpha) / 10_000.0).sqrt();
            let band = 1.0 - alpha - sigma..=1.0 - alpha + 1.0 / (points as f64 + 1.0) + sigma;
            assert!(band.contains(&found), "{points} points, alpha {alpha}: {found} not in {band:?}");
        }
    }

    #[test]
    fn groups_are_covered_each_by_itself_where_one_radius_for_all_covers_none_rightly() {
        // The scale of the scores doubles from group to group.
        let (alpha, trials) = (0.1, 2_000);
        let mut inside = [[0_u32; 2]; 6];
        for trial in 0..trials {
            let mut random = Random::new(8, "groups", trial);
            let scale = |group: usize| f64::from(1 << group);
            let points: Vec<(i64, f64)> = (0..6)
                .flat_map(|group| [group; 19])
                .map(|group| (group as i64, score(&mut random, scale(group))))
                .collect();
            let all: Vec<f64> = points.iter().map(|(_, score)| *score).collect();
            let window = SlidingWindow::new(points, alpha, 0).unwrap();
            let one = radius(&all, alpha).unwrap();
            for (group, inside) in inside.iter_mut().enumerate() {
                let new = score(&mut random, scale(group));
                let found = window.at(group as i64).unwrap();
                assert_eq!((found.width, found.points), (0, 19));
                inside[0] += u32::from(new <= found.radius);
                inside[1] += u32::from(new <= one);
            }
        }
        let share = |count: u32| f64::from(count) / trials as f64;
        // 18 of 19 points and the new one: 0.9 at least, 0.95 at most; three standard deviations.
        assert!(inside.iter().all(|group| (0.88..=0.97).contains(&share(group[0]))), "{inside:?}");
        assert!(share(inside[0][1]) > 0.99 && share(inside[5][1]) < 0.75, "{inside:?}");
    }

    #[test]
    fn a_window_grows_until_it_has_enough_points() {
        let points = (0..10).map(|key| (key, key as f64)).collect();
        let window = SlidingWindow::new(points, 0.25, 1).unwrap();
        // Three points are needed.
        assert_eq!(window.at(5).unwrap(), GroupRadius { radius: 6.0, width: 1, points: 3 });
        assert_eq!(window.at(0).unwrap(), GroupRadius { radius: 2.0, width: 2, points: 3 });
        assert_eq!(window.at(20).unwrap(), GroupRadius { radius: 9.0, width: 13, points: 3 });
    }

    #[test]
    fn a_new_point_counts_as_the_worst_in_the_bound_of_a_risk() {
        assert_eq!(risk_bound(&[0.0; 9]), 0.1);
        assert_eq!(risk_bound(&[0.5, 0.0, 0.5]), 0.5);
    }
}
