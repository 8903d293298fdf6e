//! The content of a chart: curves and reference lines.

use crate::Label;

/// Curves over a common axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// Name of the horizontal axis.
    pub x_label: String,
    /// Name of the vertical axis.
    pub y_label: String,
    /// The curves.
    pub series: Vec<Series>,
    /// Values for comparison, drawn as dashed lines.
    pub reference_lines: Vec<ReferenceLine>,
}

/// A curve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: Label,
    /// Points `(x, y)` with ascending x; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// A constant value for comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceLine {
    /// Its name in the legend.
    pub name: Label,
    /// The value.
    pub y: f64,
}

/// A name in a chart's legend; its position is the index of its colour.
pub struct LegendEntry<'a> {
    /// The name.
    pub name: &'a Label,
    /// True for a reference line.
    pub dashed: bool,
}

impl Chart {
    /// Legend entries: the series, then the reference lines.
    pub(crate) fn legend(&self) -> impl Iterator<Item = LegendEntry<'_>> {
        let series = self.series.iter().map(|series| LegendEntry { name: &series.name, dashed: false });
        series.chain(self.reference_lines.iter().map(|line| LegendEntry { name: &line.name, dashed: true }))
    }
}
