//! Reports: self-contained HTML pages, SVG charts and number formatting.
//!
//! A [`Page`] holds tables, [`Chart`]s and passages of text with marked tokens; [`Page::to_html`]
//! writes it. [`charts_to_svg`] writes charts alone. The crate knows nothing of models or runs: the
//! commands that report fill the pages.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod chart;
mod error;
mod escape;
mod label;
pub mod number;
mod page;
mod palette;
mod svg_file;

pub use chart::{Chart, ReferenceLine, Series, thin};
pub use error::ReportError;
pub use label::Label;
pub use page::{Facts, HeatMap, MarkedToken, Page, Passage, Table, TreeDrawing};
pub use svg_file::{charts_to_svg, with_light_colours};
