//! What `--init calibrated` is given: tokens of a text, and a model that runs layer by layer.

mod layers;
mod text;

pub use layers::Layers;
pub use text::CalibrationText;
