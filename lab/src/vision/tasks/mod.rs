//! Small tasks on generated pictures, each the smallest of the kind that its network was published
//! for. Nothing is tuned: one learning rate and one schedule for all.

mod camouflage;
mod classification;
mod correspondence;
mod super_resolution;

use crate::{AdamW, AdamWConfig, LabError};
use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use std::{f64::consts::PI, time::Instant};

/// How long a network is trained, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    pub steps: usize,
    /// Seed of the weights and of all pictures.
    pub seed: u64,
    /// Whether the network is trained without the baselines and the other arms.
    pub is_alone: bool,
}

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Textures are classified by SReT.
    Sret,
    /// Pictures of half the size are enlarged by RGT.
    Rgt,
    /// Camouflaged blobs are found by MSRNet.
    Msrnet,
    /// Textures are classified by HorNet.
    Hornet,
    /// Points are found in another view by FlashVGGT.
    FlashVggt,
}

/// Result of a task.
#[derive(Clone, Debug)]
pub struct Table {
    /// What is measured, with its unit.
    pub measure: &'static str,
    pub rows: Vec<Row>,
}

/// Result of one system.
#[derive(Clone, Debug)]
pub struct Row {
    pub system: String,
    pub figure: f64,
    /// What was trained; `None` for a formula.
    pub trained: Option<Trained>,
}

/// What is known of a trained network.
#[derive(Clone, Debug)]
pub struct Trained {
    pub parameters: usize,
    /// Losses of the steps.
    pub losses: Vec<f32>,
    pub seconds: f64,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 5] = [Self::Sret, Self::Rgt, Self::Msrnet, Self::Hornet, Self::FlashVggt];

    /// Name of its network.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sret => "sret",
            Self::Rgt => "rgt",
            Self::Msrnet => "msrnet",
            Self::Hornet => "hornet",
            Self::FlashVggt => "flash_vggt",
        }
    }

    /// Steps of a run that takes about a minute on two cores.
    #[must_use]
    pub fn steps(self) -> usize {
        match self {
            Self::Sret | Self::Hornet => 300,
            Self::Rgt | Self::Msrnet => 200,
            Self::FlashVggt => 500,
        }
    }

    /// Trains the network, then its baselines and other arms, and measures all on pictures that
    /// they have not seen.
    ///
    /// # Errors
    /// When a loss is not finite.
    pub fn run(self, training: Training) -> Result<Table, LabError> {
        match self {
            Self::Sret => classification::sret(training),
            Self::Rgt => super_resolution::rgt(training),
            Self::Msrnet => camouflage::msrnet(training),
            Self::Hornet => classification::hornet(training),
            Self::FlashVggt => correspondence::flash_vggt(training),
        }
    }
}

/// Learning rate of all tasks, at the end of the warm-up.
const LEARNING_RATE: f64 = 2e-3;
/// Share of the steps in which the learning rate rises.
const WARMUP: f64 = 0.05;

impl Training {
    /// Device of the training. The weights of the next network follow from the seed.
    fn device(&self) -> Device {
        let device = Device::flex().autodiff();
        device.seed(self.seed);
        device
    }

    /// The row of the network and, unless it is alone, the others.
    fn table(
        &self,
        measure: &'static str,
        network: Row,
        others: impl FnOnce() -> Result<Vec<Row>, LabError>,
    ) -> Result<Table, LabError> {
        let others = if self.is_alone { Vec::new() } else { others()? };
        Ok(Table { measure, rows: [network].into_iter().chain(others).collect() })
    }

    /// Learning rate of a step: a linear rise, then half a cosine to zero.
    fn learning_rate(&self, step: usize) -> f64 {
        let done = (step as f64 + 0.5) / self.steps as f64;
        let factor =
            if done < WARMUP { done / WARMUP } else { (1.0 + (PI * (done - WARMUP) / (1.0 - WARMUP)).cos()) / 2.0 };
        LEARNING_RATE * factor
    }

    /// Trains with AdamW: `loss` of a step.
    fn train<M: Module>(&self, mut model: M, loss: impl Fn(&M, usize) -> Tensor<1>) -> Result<(M, Trained), LabError> {
        let start = Instant::now();
        let parameters = super::num_parameters(&model);
        let mut optimizer = AdamW::new(AdamWConfig::default());
        let mut losses = Vec::with_capacity(self.steps);
        for step in 0..self.steps {
            let (loss, learning_rate) = (loss(&model, step), self.learning_rate(step));
            let value = retie_model::kernels::f32_slice(&loss.clone().into_data())[0];
            if !value.is_finite() {
                return Err(LabError::Diverged { step, learning_rate });
            }
            losses.push(value);
            model = optimizer.step(model, loss.backward(), learning_rate);
        }
        Ok((model.valid(), Trained { parameters, losses, seconds: start.elapsed().as_secs_f64() }))
    }
}

/// Mean of a tensor on the host.
fn mean<const D: usize>(x: Tensor<D>) -> f64 {
    f64::from(retie_model::kernels::f32_slice(&x.mean().into_data())[0])
}
