//! Errors of this crate.

/// Errors of making a page or a picture.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A chart cannot be drawn.
    #[error("the chart `{title}` cannot be drawn")]
    Chart {
        /// Its heading.
        title: String,
        /// Cause.
        source: plotters::drawing::DrawingAreaErrorKind<std::io::Error>,
    },
}
