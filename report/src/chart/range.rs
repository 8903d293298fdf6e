//! Points and axis ranges of a chart.

use super::data::ReferenceLine;
use std::ops::Range;

/// A point of a series.
pub type Point = (f64, f64);

/// The finite points, thinned to at most `max` by means over neighbours.
#[must_use]
pub fn thin(points: &[Point], max: usize) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let group = finite.len().div_ceil(max).max(1);
    let mean = |group: &[Point]| {
        let (x, y) = group.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        (x / group.len() as f64, y / group.len() as f64)
    };
    finite.chunks(group).map(mean).collect()
}

/// Ranges of the axes: all points and reference lines, with `margin` of the height above and below;
/// `None` without a point.
pub fn ranges(series: &[Vec<Point>], lines: &[ReferenceLine], margin: f64) -> Option<(Range<f64>, Range<f64>)> {
    let points = || series.iter().flatten();
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let first = values.next()?;
        Some(values.fold((first, first), |(low, high), v| (low.min(v), high.max(v))))
    };
    let (left, right) = span(&mut points().map(|(x, _)| *x))?;
    let lines = lines.iter().map(|line| line.y).filter(|y| y.is_finite());
    let (low, high) = span(&mut points().map(|(_, y)| *y).chain(lines))?;
    let pad = if high > low { margin * (high - low) } else { 0.5 };
    let x_range = match left < right {
        true => left..right,
        // A single x is centred; counts of tokens have no negative side.
        false if left > 0.0 => 0.0..2.0 * left,
        false => left - 1.0..left + 1.0,
    };
    Some((x_range, low - pad..high + pad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_to_means() {
        let thinned = thin(&(0..2000).map(|i| (f64::from(i), f64::from(i % 2))).collect::<Vec<_>>(), 900);
        assert_eq!(thinned.len(), 667);
        assert_eq!(thinned[0], (1.0, 1.0 / 3.0));
    }

    #[test]
    fn one_point_stands_in_the_middle() {
        let single = |x| ranges(&[vec![(x, 2.0)]], &[], 0.05).unwrap();
        assert_eq!(single(4000.0), (0.0..8000.0, 1.5..2.5));
        assert_eq!(single(0.0), (-1.0..1.0, 1.5..2.5));
        assert_eq!(ranges(&[Vec::new()], &[], 0.05), None);
    }
}
