//! Temperature, the `TemperatureLogitsWarper` of `transformers`.

/// Divides logits by `temperature`, which is above 0.
pub fn apply(logits: &mut [f32], temperature: f32) {
    logits.iter_mut().for_each(|logit| *logit /= temperature);
}
