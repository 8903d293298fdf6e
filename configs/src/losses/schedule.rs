//! The weight of a term over the run: lines between points, and the first and the last point's
//! factor outside of them.

use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// A point of a term's schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightPoint {
    /// Optimizer step, counted from 1.
    pub step: u64,
    /// Factor of the term's weight in that step.
    pub factor: f64,
}

/// The factor in optimizer step `step`; 1 without points.
pub(super) fn factor_at(points: &[WeightPoint], step: u64) -> f64 {
    let after = points.partition_point(|point| point.step <= step);
    match (after.checked_sub(1).and_then(|i| points.get(i)), points.get(after)) {
        (Some(a), Some(b)) => {
            let part = (step - a.step) as f64 / (b.step - a.step) as f64;
            a.factor + part * (b.factor - a.factor)
        }
        (Some(only), None) | (None, Some(only)) => only.factor,
        (None, None) => 1.0,
    }
}

/// Checks the points of the term at `key`.
pub(super) fn check(points: &[WeightPoint], key: &str, checks: &mut Checks) {
    for (index, point) in points.iter().enumerate() {
        let key = format!("{key}.weight_schedule.{index}");
        let fits = point.factor.is_finite() && point.factor >= 0.0;
        checks.require(fits, format!("{key}.factor"), point.factor, "a finite number, 0 or more");
        let before = index.checked_sub(1).map_or(0, |before| points[before].step);
        let expected = format!("more than {before}: steps are counted from 1 and ascend");
        checks.require(point.step > before, format!("{key}.step"), point.step, &expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_lie_on_lines_between_the_points_and_are_constant_outside() {
        let points = [(3, 0.0), (5, 1.0), (6, 0.25)].map(|(step, factor)| WeightPoint { step, factor });
        let factors: Vec<f64> = (1..=8).map(|step| factor_at(&points, step)).collect();
        assert_eq!(factors, [0.0, 0.0, 0.0, 0.5, 1.0, 0.25, 0.25, 0.25]);
        assert_eq!(factor_at(&[], 4), 1.0);
    }
}
