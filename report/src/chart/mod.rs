//! Curves over a common axis, as SVG.

mod data;
mod draw;
mod range;

pub use data::{Chart, ReferenceLine, Series};
pub use draw::{NARROW, WIDE, svg};
pub use range::thin;
