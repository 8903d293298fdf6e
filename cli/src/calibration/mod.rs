//! The calibration of a conversion: tokens of a text, and the model that runs on them layer by
//! layer.

use crate::{model, output};
use retie_checkpoint::ModelSource;
use retie_config::CalibrationSource;
use retie_convert::Calibration;
use retie_data::CalibrationText;
use retie_model::LayerByLayer;

/// A text and a model, ready to be run.
pub struct CalibrationRun {
    text: CalibrationText,
    model: LayerByLayer,
}

impl CalibrationRun {
    /// Reads the text with the tokenizer of `source`.
    pub fn read(source: &ModelSource, calibration: &CalibrationSource) -> anyhow::Result<Self> {
        let tokenizer = model::tokenizer(source)?;
        let max_length = source.config.max_position_embeddings;
        let text = CalibrationText::read(&calibration.path, &tokenizer, max_length, calibration.tokens)?;
        output::line(&format!("calibration: {}", tokenizer.start_in_words()));
        let model = LayerByLayer::new(&source.config, &retie_model::device("cpu")?);
        Ok(Self { text, model })
    }

    /// As the conversion takes it.
    pub fn calibration(&self) -> Calibration<'_> {
        let CalibrationText { name, sequence_length, train, heldout } = self.text.clone();
        Calibration { model: &self.model, text: name, sequence_length, train, heldout }
    }
}
