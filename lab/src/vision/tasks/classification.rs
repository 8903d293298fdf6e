//! Classification of textures by the direction of their waves and by their frequencies.

use super::{Row, Table, Training};
use crate::{
    LabError,
    vision::{
        hornet::HornetConfig,
        images::{Texture, TextureKind, maps, picture, uniform},
        layers::affine,
        sret::{SretConfig, SretStageConfig},
    },
};
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, activation::log_softmax},
};
use retie_tasks::Random;
use std::f64::consts::PI;

/// Directions, and bands of frequencies.
const DIRECTIONS: usize = 4;
const BANDS: [[f64; 2]; 2] = [[0.06, 0.12], [0.13, 0.22]];
const NUM_CLASSES: usize = DIRECTIONS * BANDS.len();
const MEASURE: &str = "right classes of 8, %";
/// Largest distance from the direction of a class: directions of neighbours meet.
const SPREAD: f64 = PI / DIRECTIONS as f64 / 2.0;
/// Half the range of the noise of a pixel; the texture has a standard deviation of 1.
const NOISE: f64 = 2.0;
/// Pictures of a step, and of the evaluation.
const BATCH: usize = 16;
const EVALUATED: usize = 256;

/// Textures with noise and their classes.
fn textures(random: &mut Random, count: usize, side: usize, device: &Device) -> (Tensor<4>, Vec<i32>) {
    let (mut values, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let class = random.below(NUM_CLASSES);
        let direction = PI * (class % DIRECTIONS) as f64 / DIRECTIONS as f64;
        let kind = TextureKind { direction, spread: SPREAD, frequencies: BANDS[class / DIRECTIONS] };
        let texture = Texture::new(random, kind);
        let pixels = picture([side; 2], |place| texture.at(place));
        values.extend(pixels.into_iter().map(|value| value + uniform(random, [-NOISE, NOISE]) as f32));
        classes.push(class as i32);
    }
    (maps(values, [3, side, side], device), classes)
}

/// A row for a classifier of pictures of `side × side` pixels.
fn row<M: Module>(
    system: &str,
    (training, side): (Training, usize),
    init: impl FnOnce(&Device) -> M,
    logits: impl Fn(&M, Tensor<4>) -> Tensor<2>,
) -> Result<Row, LabError> {
    let device = training.device();
    let (model, trained) = training.train(init(&device), |model, step| {
        let mut random = Random::new(training.seed, "textures", step as u64);
        let (pictures, classes) = textures(&mut random, BATCH, side, &device);
        let classes: Tensor<1, Int> = Tensor::from_ints(classes.as_slice(), &device);
        let chosen = log_softmax(logits(model, pictures), 1).gather(1, classes.reshape([BATCH, 1]));
        chosen.mean() * -1.0
    })?;
    let mut random = Random::new(training.seed, "evaluated textures", 0);
    let mut right = 0;
    for _ in 0..EVALUATED / BATCH {
        let (pictures, classes) = textures(&mut random, BATCH, side, &device.clone().inner());
        let found = logits(&model, pictures).into_data();
        let best = |logits: &[f32]| (0..NUM_CLASSES).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        let rows = retie_model::kernels::f32_slice(&found).chunks(NUM_CLASSES);
        right += rows.zip(classes).filter(|(row, class)| best(row) == Some(*class as usize)).count();
    }
    Ok(Row { system: system.to_owned(), figure: 100.0 * right as f64 / EVALUATED as f64, trained: Some(trained) })
}

/// Baselines of a classifier.
fn baselines(training: Training, side: usize) -> Result<[Row; 2], LabError> {
    let linear = row(
        "linear classifier of the pixels",
        (training, side),
        |device| affine(3 * side * side, NUM_CLASSES, device),
        |model, pictures| {
            let [count, ..] = pictures.dims();
            model.forward(pictures.reshape([count, 3 * side * side]))
        },
    )?;
    Ok([linear, Row { system: "chance".to_owned(), figure: 100.0 / NUM_CLASSES as f64, trained: None }])
}

/// SReT with and without slices.
pub(super) fn sret(training: Training) -> Result<Table, LabError> {
    const SIDE: usize = 32;
    let arm = |system, groups: [[usize; 2]; 2]| {
        let sizes = [(2, 1, groups[0]), (4, 2, groups[1])];
        let stages = sizes.map(|(num_heads, num_blocks, groups)| SretStageConfig { num_heads, num_blocks, groups });
        let config = SretConfig {
            image_size: SIDE,
            head_dim: 16,
            stages: stages.into(),
            mlp_ratio: 2.0,
            nll_ratio: 1,
            num_classes: NUM_CLASSES,
        };
        row(system, (training, SIDE), |device| config.init(device), |model, x| model.forward(x))
    };
    let network = arm("SReT, 4 slices then 2, and 2 then 1", [[4, 2], [2, 1]])?;
    training.table(MEASURE, network, || {
        let [linear, chance] = baselines(training, SIDE)?;
        Ok(vec![arm("SReT, one slice", [[1, 1], [1, 1]])?, linear, chance])
    })
}

/// HorNet with gates of several orders and with one gate.
pub(super) fn hornet(training: Training) -> Result<Table, LabError> {
    const SIDE: usize = 32;
    let arm = |system, orders: [usize; 2]| {
        let config = HornetConfig {
            width: 16,
            depths: vec![1, 1],
            orders: orders.into(),
            kernel: 7,
            patch: 2,
            num_classes: NUM_CLASSES,
            scale: 1.0,
        };
        row(system, (training, SIDE), |device| config.init(device), |model, x| model.forward(x))
    };
    training.table(MEASURE, arm("HorNet, orders 2 and 3", [2, 3])?, || {
        let [linear, chance] = baselines(training, SIDE)?;
        Ok(vec![arm("HorNet, one gate", [1, 1])?, linear, chance])
    })
}
