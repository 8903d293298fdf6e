//! Fitting: the sum of absolute errors of a batch and a tenth of [`cross_correlation`], AdamW with
//! a learning rate that is halved in steps, gradients clipped by their norm.

use super::{DynamicFormer, DynamicFormerConfig, Inputs, cross_correlation};
use crate::{AdamW, AdamWConfig, LabError, Noise, seeded};
use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use retie_tasks::{Random, numbers::PsiSample};

/// Weight of the cross-correlation.
const CORRELATION_WEIGHT: f64 = 0.1;

/// Weight decay; the paper's code adds as much to the gradients.
const WEIGHT_DECAY: f32 = 1e-5;

/// Largest norm of a step's gradients.
const MAX_NORM: f32 = 10.0;

/// Parts of the epochs after each of which the learning rate is halved: 14 of 100 in the paper's
/// code.
const HALVED_EVERY: f64 = 0.14;

/// How a network is fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct FormerSettings {
    /// Passes over the samples, each in an order of its own.
    pub epochs: usize,
    /// Samples of a step; what is left of an epoch is left out, unless it is all that there is.
    pub batch_size: usize,
    /// Learning rate at the start.
    pub learning_rate: f64,
    /// Seed of weights, orders and dropout.
    pub seed: u64,
}

impl FormerSettings {
    /// Those of the paper's code, but for the seed.
    #[must_use]
    pub fn published(seed: u64) -> Self {
        Self { epochs: 100, batch_size: 64, learning_rate: 5e-4, seed }
    }
}

/// A fitted network.
#[derive(Debug)]
pub struct FittedFormer {
    network: DynamicFormer,
    config: DynamicFormerConfig,
    mean: f64,
    deviation: f64,
    /// Mean absolute error of the samples of each epoch while it was fitted.
    pub errors: Vec<f64>,
}

/// `log` of a number.
fn target(sample: &PsiSample) -> f64 {
    sample.value.to_f64().ln()
}

impl FittedFormer {
    /// Fits a network to the logarithms of `samples`, on `device`, which has autodiff.
    ///
    /// # Errors
    /// No sample, settings of 0, those of [`DynamicFormerConfig::check`] and [`Inputs::new`]; a
    /// loss that is not finite.
    pub fn fit(
        samples: &[&PsiSample],
        config: &DynamicFormerConfig,
        settings: &FormerSettings,
        device: &Device,
    ) -> Result<Self, LabError> {
        config.check()?;
        check(samples, settings)?;
        let targets: Vec<f64> = samples.iter().map(|sample| target(sample)).collect();
        let count = targets.len() as f64;
        let mean = targets.iter().sum::<f64>() / count;
        let variance = targets.iter().map(|target| (target - mean).powi(2)).sum::<f64>() / count;
        // Equal targets have none.
        let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };

        let mut network =
            seeded(DynamicFormer::new(config, device), &mut Random::new(settings.seed, "dynamicformer weights", 0));
        let mut optimizer =
            AdamW::new(AdamWConfig { weight_decay: WEIGHT_DECAY, max_norm: Some(MAX_NORM), ..AdamWConfig::default() });
        let mut random = Random::new(settings.seed, "dynamicformer steps", 0);
        let mut order: Vec<usize> = (0..samples.len()).collect();
        let (mut errors, mut step) = (Vec::with_capacity(settings.epochs), 0);
        for epoch in 0..settings.epochs {
            random.shuffle(&mut order);
            let halvings = (epoch as f64 / (HALVED_EVERY * settings.epochs as f64)).floor();
            let learning_rate = settings.learning_rate * 0.5_f64.powf(halvings);
            let (mut error, mut seen) = (0.0, 0);
            for batch in order.chunks(settings.batch_size) {
                if batch.len() < settings.batch_size.min(order.len()) {
                    continue;
                }
                step += 1;
                let chosen: Vec<&PsiSample> = batch.iter().map(|index| samples[*index]).collect();
                let inputs = Inputs::new(&chosen, config, device)?;
                let expected: Vec<f32> = batch.iter().map(|index| targets[*index] as f32).collect();
                let expected = Tensor::<1>::from_data(TensorData::new(expected, [batch.len()]), device);
                let output = network.forward(&inputs, &mut Noise::new(&mut random, config.dropout));
                let absolute = (output.prediction * deviation + mean - expected).abs().sum();
                let batch_error = f64::from(absolute.clone().into_scalar::<f32>());
                let correlation = cross_correlation(output.point_memory, output.entry_memory);
                let loss = absolute + correlation * CORRELATION_WEIGHT;
                if !batch_error.is_finite() {
                    return Err(LabError::Diverged { step, learning_rate });
                }
                network = optimizer.step(network, loss.backward(), learning_rate);
                error += batch_error;
                seen += batch.len();
            }
            errors.push(error / seen as f64);
        }
        Ok(Self { network: network.valid(), config: config.clone(), mean, deviation, errors })
    }

    /// Predicted logarithms.
    ///
    /// # Errors
    /// Those of [`Inputs::new`].
    pub fn predict(&self, samples: &[&PsiSample]) -> Result<Vec<f64>, LabError> {
        /// Samples of a forward pass.
        const BATCH: usize = 256;
        let mut all = Vec::with_capacity(samples.len());
        for batch in samples.chunks(BATCH) {
            let device = Device::flex();
            let inputs = Inputs::new(batch, &self.config, &device)?;
            let output = self.network.forward(&inputs, &mut Noise::default()).prediction;
            all.extend(output.into_data().iter::<f64>().map(|value| self.mean + self.deviation * value));
        }
        Ok(all)
    }
}

fn check(samples: &[&PsiSample], settings: &FormerSettings) -> Result<(), LabError> {
    let bad = |found: String, expected: &str| Err(LabError::Setting { found, expected: expected.to_owned() });
    if samples.len() < 2 {
        return bad(format!("{} samples", samples.len()), "at least 2, for norms over a batch");
    }
    if settings.epochs == 0 || settings.batch_size < 2 {
        let found = format!("{} epochs and a batch of {}", settings.epochs, settings.batch_size);
        return bad(found, "at least 1 epoch and a batch of 2");
    }
    match settings.learning_rate > 0.0 && settings.learning_rate.is_finite() {
        true => Ok(()),
        false => bad(format!("a learning rate of {}", settings.learning_rate), "a positive number"),
    }
}

/// Coefficient of determination of predicted logarithms: 1 for what is right, 0 for what is no
/// better than the mean of the logarithms.
#[must_use]
pub fn r_squared(samples: &[&PsiSample], predictions: &[f64]) -> f64 {
    let mean = samples.iter().map(|sample| target(sample)).sum::<f64>() / samples.len() as f64;
    let pairs = samples.iter().zip(predictions);
    let left: f64 = pairs.map(|(sample, prediction)| (target(sample) - prediction).powi(2)).sum();
    1.0 - left / samples.iter().map(|sample| (target(sample) - mean).powi(2)).sum::<f64>()
}
