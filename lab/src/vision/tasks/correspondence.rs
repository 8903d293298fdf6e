//! Two views of a plane: in which patch of one the middle of each patch of the other is. Features
//! of patches are compared, as VGGT tracks points.

use super::{Row, Table, Training};
use crate::{
    LabError,
    vision::{
        flash_vggt::{FlashVggtConfig, ViewKeys},
        images::{Similarity, Texture, TextureKind, maps, picture},
    },
};
use burn::tensor::{
    Device, Int, Tensor, TensorData,
    activation::{log_softmax, softmax},
};
use retie_model::kernels::f32_slice;
use retie_tasks::Random;

const SIDE: usize = 32;
const PATCH: usize = 4;
/// Patches of a side and of a view.
const ACROSS: usize = SIDE / PATCH;
const PATCHES: usize = ACROSS * ACROSS;
/// Largest turn in radians, growth and move in pixels of the second view.
const MOTION: [f64; 3] = [0.3, 0.1, 6.0];
/// Scenes of a step, and of the evaluation.
const BATCH: usize = 8;
const EVALUATED: usize = 128;

/// Scenes of two views each, scene by scene.
struct Scenes {
    /// `[2B, 3, H, W]`.
    views: Tensor<4>,
    /// Where the middles of patches are in the other view, in pixels: `[2B, patches, 2]`.
    places: Tensor<3>,
    /// The patches there, `[2B, patches, 1]`; any where there is none.
    patches: Tensor<3, Int>,
    /// 1 where there is one, `[2B, patches]`.
    is_inside: Tensor<2>,
}

/// Middle of a patch in pixels.
fn middle(patch: usize) -> [f64; 2] {
    [patch / ACROSS, patch % ACROSS].map(|at| (at as f64 + 0.5) * PATCH as f64)
}

impl Scenes {
    fn new(random: &mut Random, count: usize, device: &Device) -> Self {
        let (mut views, mut places, mut patches, mut is_inside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let texture = Texture::new(random, TextureKind::isotropic([0.03, 0.1]));
            let map = Similarity::new(random, SIDE, MOTION);
            views.extend(picture([SIDE; 2], |place| texture.at(place)));
            views.extend(picture([SIDE; 2], |place| texture.at(map.undo(place))));
            for is_first in [true, false] {
                for patch in 0..PATCHES {
                    let [y, x] = if is_first { map.apply(middle(patch)) } else { map.undo(middle(patch)) };
                    let inside = [y, x].iter().all(|at| (0.0..SIDE as f64).contains(at));
                    let [row, column] = [y, x].map(|at| (at / PATCH as f64) as usize);
                    places.extend([y as f32, x as f32]);
                    patches.push(if inside { (row * ACROSS + column) as i32 } else { 0 });
                    is_inside.push(f32::from(u8::from(inside)));
                }
            }
        }
        Self {
            views: maps(views, [3, SIDE, SIDE], device),
            places: Tensor::from_data(TensorData::new(places, [2 * count, PATCHES, 2]), device),
            patches: Tensor::<1, Int>::from_ints(patches.as_slice(), device).reshape([2 * count, PATCHES, 1]),
            is_inside: Tensor::from_data(TensorData::new(is_inside, [2 * count, PATCHES]), device),
        }
    }

    /// Mean over the patches that are inside the other view.
    fn mean(&self, of_patches: Tensor<2>) -> Tensor<1> {
        (of_patches * self.is_inside.clone()).sum() / self.is_inside.clone().sum()
    }

    /// Cross-entropy of the patches by `scores [2B, patches, patches]`.
    fn loss(&self, scores: Tensor<3>) -> Tensor<1> {
        let chosen = log_softmax(scores, 2).gather(2, self.patches.clone());
        let [views, patches, _] = chosen.dims();
        self.mean(chosen.reshape([views, patches]) * -1.0)
    }

    /// Mean distance in pixels from the places to those of `shares [2B, patches, patches]`, which
    /// are means of middles.
    fn distance(&self, shares: Tensor<3>) -> f64 {
        let [views, patches, _] = shares.dims();
        let middles: Vec<f32> = (0..PATCHES).flat_map(|patch| middle(patch).map(|at| at as f32)).collect();
        let middles: Tensor<3> = Tensor::from_data(TensorData::new(middles, [1, PATCHES, 2]), &shares.device());
        let apart = shares.matmul(middles.repeat_dim(0, views)) - self.places.clone();
        let distance = apart.square().sum_dim(2).sqrt().reshape([views, patches]);
        f64::from(f32_slice(&self.mean(distance).into_data())[0])
    }
}

/// Scores of the patches of the other view from features of both: `[2B, D, H', W']` → `[2B,
/// patches, patches]`.
fn compared(features: Tensor<4>) -> Tensor<3> {
    let [views, channels, height, width] = features.dims();
    let own = features.reshape([views / 2, 2, channels, height * width]);
    let other = own.clone().flip([1]);
    let scores = own.swap_dims(2, 3).matmul(other) / (channels as f32).sqrt();
    scores.reshape([views, height * width, height * width])
}

/// Shares of the patch of the other view whose pixels differ least.
fn nearest(views: &Tensor<4>) -> Tensor<3> {
    let [count, channels, ..] = views.dims();
    let patches = views.clone().reshape([count, channels, ACROSS, PATCH, ACROSS, PATCH]).permute([0, 2, 4, 1, 3, 5]);
    let own = patches.reshape([count / 2, 2, PATCHES, channels * PATCH * PATCH]);
    let other = own.clone().flip([1]);
    let squares = other.clone().square().sum_dim(3).swap_dims(2, 3);
    let apart = squares - own.matmul(other.swap_dims(2, 3)) * 2.0; // without the square of the own patch
    // So large a factor leaves the smallest alone.
    softmax(apart * -1e4, 3).reshape([count, PATCHES, PATCHES])
}

/// Mean distance over the scenes of the evaluation.
fn measure(training: Training, shares: impl Fn(&Scenes) -> Tensor<3>) -> f64 {
    let mut random = Random::new(training.seed, "evaluated scenes", 0);
    let batches = EVALUATED / BATCH;
    let one = |_| {
        let scenes = Scenes::new(&mut random, BATCH, &Device::flex());
        scenes.distance(shares(&scenes))
    };
    (0..batches).map(one).sum::<f64>() / batches as f64
}

/// FlashVGGT with all keys and with descriptors.
pub(super) fn flash_vggt(training: Training) -> Result<Table, LabError> {
    let config =
        FlashVggtConfig { width: 32, num_heads: 2, depth: 2, patch: PATCH, specials: 2, outputs: 32, scale: 0.5 };
    let arm = |system: &str, keys: ViewKeys| {
        let device = training.device();
        let (model, trained) = training.train(config.init(&device), |model, step| {
            let scenes = Scenes::new(&mut Random::new(training.seed, "scenes", step as u64), BATCH, &device);
            scenes.loss(compared(model.forward(scenes.views.clone(), 2, &keys)))
        })?;
        let shares = |scenes: &Scenes| softmax(compared(model.forward(scenes.views.clone(), 2, &keys)), 2);
        Ok::<_, LabError>(Row { system: system.to_owned(), figure: measure(training, shares), trained: Some(trained) })
    };
    let descriptors = |whole| ViewKeys::Descriptors { ratio: 2, whole };
    let formula = |system: &str, figure| Row { system: system.to_owned(), figure, trained: None };
    let still =
        |scenes: &Scenes| Tensor::<2>::eye(PATCHES, &scenes.views.device()).unsqueeze().repeat_dim(0, 2 * BATCH);
    training.table("distance, pixels", arm("descriptors of 2 × 2, first view whole", descriptors(vec![0]))?, || {
        Ok(vec![
            arm("descriptors of 2 × 2", descriptors(Vec::new()))?,
            arm("all tokens", ViewKeys::All)?,
            formula("most similar pixels", measure(training, |scenes| nearest(&scenes.views))),
            formula("same place", measure(training, still)),
        ])
    })
}
