//! Two views of a plane: where each patch of one is in the other.

use super::{Row, Table, Training, mean};
use crate::{
    LabError,
    vision::{
        flash_vggt::{FlashVggtConfig, ViewKeys},
        images::{Similarity, Texture, TextureKind, maps, picture},
    },
};
use burn::tensor::{Device, Tensor};
use retie_tasks::Random;

const SIDE: usize = 32;
const PATCH: usize = 4;
/// Largest turn in radians, growth and move in pixels of the second view.
const MOTION: [f64; 3] = [0.1, 0.05, 4.0];
/// Scenes of a step, and of the evaluation.
const BATCH: usize = 8;
const EVALUATED: usize = 256;

/// Views of scenes, two and two, and how far the middle of each patch is from its place in the other
/// view: `[2B, 3, H, W]` and, in patches, `[2B, 2, H/4, W/4]`.
fn scenes(random: &mut Random, count: usize, device: &Device) -> (Tensor<4>, Tensor<4>) {
    const PATCHES: usize = SIDE / PATCH;
    let (mut views, mut motions) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let texture = Texture::new(random, TextureKind::isotropic([0.02, 0.08]));
        let map = Similarity::new(random, SIDE, MOTION);
        views.extend(picture([SIDE; 2], |place| texture.at(place)));
        views.extend(picture([SIDE; 2], |place| texture.at(map.undo(place))));
        let to = |goes: &dyn Fn([f64; 2]) -> [f64; 2]| {
            let middle = |index: usize| (index as f64 + 0.5) * PATCH as f64;
            let motion = |at: usize| {
                let from = [middle(at / PATCHES), middle(at % PATCHES)];
                let to = goes(from);
                [0, 1].map(|axis| ((to[axis] - from[axis]) / PATCH as f64) as f32)
            };
            let motions: Vec<_> = (0..PATCHES * PATCHES).map(motion).collect();
            (0..2).flat_map(|axis| motions.iter().map(|motion| motion[axis]).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        motions.extend(to(&|place| map.apply(place)));
        motions.extend(to(&|place| map.undo(place)));
    }
    (maps(views, [3, SIDE, SIDE], device), maps(motions, [2, PATCHES, PATCHES], device))
}

/// Mean distance in pixels between where a patch is found and where it is.
fn error(training: Training, find: impl Fn(Tensor<4>) -> Option<Tensor<4>>) -> f64 {
    let mut random = Random::new(training.seed, "evaluated scenes", 0);
    let batches = EVALUATED / BATCH;
    let one = |_| {
        let (views, motions) = scenes(&mut random, BATCH, &Device::flex());
        let apart = match find(views) {
            Some(found) => found - motions,
            None => motions,
        };
        mean(apart.square().sum_dim(1).sqrt()) * PATCH as f64
    };
    (0..batches).map(one).sum::<f64>() / batches as f64
}

/// FlashVGGT with all keys and with descriptors.
pub(super) fn flash_vggt(training: Training) -> Result<Table, LabError> {
    let config = FlashVggtConfig { width: 64, num_heads: 4, depth: 2, patch: PATCH, specials: 2, outputs: 2 };
    let arm = |system: &str, keys: ViewKeys| {
        let device = training.device();
        let (model, trained) = training.train(config.init(&device), |model, step| {
            let (views, motions) = scenes(&mut Random::new(training.seed, "scenes", step as u64), BATCH, &device);
            (model.forward(views, 2, &keys) - motions).square().mean()
        })?;
        let figure = error(training, |views| Some(model.forward(views, 2, &keys)));
        Ok::<_, LabError>(Row { system: system.to_owned(), figure, trained: Some(trained) })
    };
    let descriptors = |whole| ViewKeys::Descriptors { ratio: 2, whole };
    let still = Row { system: "no motion".to_owned(), figure: error(training, |_| None), trained: None };
    let rows = vec![
        arm("all tokens", ViewKeys::All)?,
        arm("descriptors of 2 × 2, first view whole", descriptors(vec![0]))?,
        arm("descriptors of 2 × 2", descriptors(Vec::new()))?,
        still,
    ];
    Ok(Table { measure: "distance, pixels", rows })
}
