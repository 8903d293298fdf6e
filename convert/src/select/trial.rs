//! Layers on trial: hidden states of some tokens of the calibration text through source layers, and
//! their KL to the source.

use crate::{Calibration, ConvertError, SourceModel, calibrate::Overlay};
use retie_checkpoint::LayerRun;
use retie_config::{Depth, LayerIndex, SelectBy, TensorOwner, TensorRole};

/// Most tokens that layers run on, in sequences of the text as it is.
pub(super) const TOKENS: usize = 2048;

/// As many such sequences for one that says something twice, of [`SelectBy::Copying`].
const PLAIN_FOR_REPEATED: usize = 2;

/// One row in so many is scored: the head costs as much as several layers, and neighbouring rows
/// say much the same.
const SCORED: usize = 4;

/// Inputs that all trials have in common.
pub(super) struct Trial<'a> {
    source: SourceModel<'a>,
    calibration: &'a Calibration<'a>,
    /// Hidden states before the first layer, `[M, D]`.
    embedded: Vec<f32>,
    /// Hidden states of the source after its last layer, of the scored rows.
    reference: Vec<f32>,
    /// Rows that are scored: where a text is repeated, those whose next token was read before.
    scored: Vec<usize>,
    /// Next token of each scored row.
    targets: Vec<u32>,
}

impl<'a> Trial<'a> {
    /// Runs the source on sequences from all over the calibration's tokens.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn start(
        source: SourceModel<'a>,
        calibration: &'a Calibration<'a>,
        select_by: SelectBy,
    ) -> Result<Self, ConvertError> {
        let length = calibration.sequence_length;
        let available = calibration.train.len() / length;
        let plain = (TOKENS / length).clamp(1, available.max(1));
        let repeated = if select_by == SelectBy::Copying { plain.div_ceil(PLAIN_FOR_REPEATED) } else { 0 };
        let sequence = |at: usize| calibration.train[at * length..][..length].iter().copied();
        let mut ids: Vec<u32> = (0..plain).flat_map(|row| sequence(row * available / plain)).collect();
        for row in 0..repeated {
            // The first token, which may be BOS, is not said again.
            let said = sequence((2 * row + 1) * available / (2 * repeated)).take(period(row, length) + 1);
            let said: Vec<u32> = said.collect();
            ids.extend(said.iter().chain(said[1..].iter().cycle()).take(length));
        }
        let (table, width) =
            (source.tensors.read_f32(&TensorOwner::Model.weight(TensorRole::Embedding))?, source.config.hidden_size);
        let rows = ids.iter().flat_map(|id| &table[*id as usize * width..][..width]).copied();
        let embedded = calibration.model.embed(rows.collect());
        let has_next = |row: &usize| row % length < length - 1 && row.is_multiple_of(SCORED);
        let was_read = |row: &usize| match (row / length).checked_sub(plain) {
            Some(repeated) => row % length > period(repeated, length),
            None => true,
        };
        let scored: Vec<usize> = (0..ids.len()).filter(has_next).filter(was_read).collect();
        let targets = scored.iter().map(|row| ids[row + 1]).collect();
        let mut trial = Self { source, calibration, embedded, reference: Vec::new(), scored, targets };
        let mut hidden = trial.embedded.clone();
        for layer in 0..source.config.num_hidden_layers {
            hidden = trial.run(layer, &hidden)?;
        }
        trial.reference = trial.scored_rows(&hidden);
        Ok(trial)
    }

    /// Hidden states before the first layer, `[M, D]`.
    pub fn embedded(&self) -> &[f32] {
        &self.embedded
    }

    /// Number of layers of the source.
    pub fn num_layers(&self) -> usize {
        self.source.config.num_hidden_layers
    }

    /// Number of scored tokens.
    pub fn num_scored(&self) -> usize {
        self.targets.len()
    }

    /// Runs a source layer.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn run(&self, layer: usize, hidden: &[f32]) -> Result<Vec<f32>, ConvertError> {
        let (index, depth) = (LayerIndex(layer), Depth(layer));
        self.run_layer(
            LayerRun { tensors: self.source.tensors, layer: index, depth, kind: depth, from: None, until: None },
            hidden,
        )
    }

    /// Runs a source layer whose outputs are scaled by `gate`.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn run_gated(&self, layer: usize, gate: f32, hidden: &[f32]) -> Result<Vec<f32>, ConvertError> {
        let mut overlay = Overlay::from_source(self.source.tensors, self.source.config, LayerIndex(layer))?;
        overlay.set_gates(self.source.config.hidden_size, gate);
        self.run_layer(overlay.run(None), hidden)
    }

    /// KL to the source of hidden states after the last layer, nats per token.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn kl(&self, hidden: &[f32]) -> Result<f64, ConvertError> {
        let found = self.scored_rows(hidden);
        let scores = self.calibration.model.compare(self.source.tensors, [&self.reference, &found], &self.targets)?;
        // What is not finite is worse than anything.
        Ok(if scores.kl.is_finite() { scores.kl } else { f64::INFINITY })
    }

    fn run_layer(&self, run: LayerRun<'_>, hidden: &[f32]) -> Result<Vec<f32>, ConvertError> {
        Ok(self.calibration.model.run(run, hidden, self.calibration.sequence_length, &mut |_| {})?)
    }

    fn scored_rows(&self, hidden: &[f32]) -> Vec<f32> {
        let width = self.source.config.hidden_size;
        self.scored.iter().flat_map(|row| &hidden[row * width..][..width]).copied().collect()
    }
}

/// Tokens after which the repeated sequence number `row` says the same again: half of it, or a
/// quarter.
fn period(row: usize, length: usize) -> usize {
    (if row.is_multiple_of(2) { length / 2 } else { length / 4 }).max(1)
}
