//! Pictures of twice the size, of textures with edges.

use super::{Row, Table, Training, mean};
use crate::{
    LabError,
    vision::{
        Interpolation,
        images::{Texture, TextureKind, maps, picture},
        resize,
        rgt::{RgtConfig, num_reductions},
    },
};
use burn::tensor::{Device, Tensor};
use retie_tasks::Random;

/// Sides of the pictures.
const SIDE: usize = 32;
const HALF: usize = SIDE / 2;
/// Pictures of a step, and of the evaluation.
const BATCH: usize = 4;
const EVALUATED: usize = 64;

/// Pictures with values from 0 to 1, and their halves: means of 2 × 2 pixels.
fn pairs(random: &mut Random, count: usize, device: &Device) -> (Tensor<4>, Tensor<4>) {
    let mut values = Vec::new();
    for _ in 0..count {
        let texture = Texture::new(random, TextureKind::isotropic([0.03, 0.12]));
        // Waves alone have no edges, and bicubic interpolation knows them already.
        let edges = |place| texture.at(place).map(|value| 0.5 + 0.4 * (3.0 * value).tanh());
        values.extend(picture([SIDE; 2], edges));
    }
    let pictures = maps(values, [3, SIDE, SIDE], device);
    (pictures.clone(), resize(pictures, [HALF; 2], Interpolation::Area))
}

/// Peak signal-to-noise ratio in dB: the mean over the pictures of the evaluation.
fn psnr(training: Training, enlarge: impl Fn(Tensor<4>) -> Tensor<4>) -> f64 {
    let mut random = Random::new(training.seed, "evaluated pictures", 0);
    let one = |_| {
        let (pictures, halves) = pairs(&mut random, 1, &Device::flex());
        -10.0 * mean((enlarge(halves).clamp(0.0, 1.0) - pictures).square()).log10()
    };
    (0..EVALUATED).map(one).sum::<f64>() / EVALUATED as f64
}

/// RGT beside interpolation.
pub(super) fn rgt(training: Training) -> Result<Table, LabError> {
    let config = RgtConfig { width: 64, num_heads: 4, groups: vec![2], mlp_ratio: 2, window: [4, 8], upscale: 2 };
    let reductions = num_reductions([HALF; 2], 4, 0);
    let device = training.device();
    let (model, trained) = training.train(config.init(&device), |model, step| {
        let (pictures, halves) = pairs(&mut Random::new(training.seed, "pictures", step as u64), BATCH, &device);
        (model.forward(halves, reductions) - pictures).abs().mean()
    })?;
    let network = psnr(training, |halves| model.forward(halves, reductions));
    let interpolated = |system: &str, how| Row {
        system: system.to_owned(),
        figure: psnr(training, |halves| resize(halves, [SIDE; 2], how)),
        trained: None,
    };
    let network = Row { system: "RGT".to_owned(), figure: network, trained: Some(trained) };
    training.table("PSNR, dB", network, || {
        let [cubic, linear] = [Interpolation::Bicubic, Interpolation::Bilinear];
        Ok(vec![interpolated("bicubic", cubic), interpolated("bilinear", linear)])
    })
}
