//! Blobs of a texture on a texture of the same mean, variance and frequencies.

use super::{Row, Table, Training};
use crate::{
    LabError,
    vision::{
        Interpolation,
        images::{Blob, Texture, TextureKind, maps, picture, uniform},
        layers::{ConvNormRelu, convolution},
        msrnet::{MsrnetConfig, uncertainty_aware},
        num_parameters, resize,
    },
};
use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use burn_nn::conv::Conv2d;
use retie_tasks::Random;
use std::f64::consts::PI;

const SIDE: usize = 32;
/// Pictures of a step, and of the evaluation.
const BATCH: usize = 4;
const EVALUATED: usize = 128;

/// Pictures and masks of their blobs.
fn blobs(random: &mut Random, count: usize, device: &Device) -> (Tensor<4>, Tensor<4>) {
    let (mut values, mut masks) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let direction = uniform(random, [0.0, PI]);
        let mut kind = TextureKind { direction, spread: PI / 8.0, frequencies: [0.12, 0.22] };
        let around = Texture::new(random, kind);
        kind.direction += PI / 2.0;
        let (inside, blob) = (Texture::new(random, kind), Blob::new(random, SIDE));
        let at = |place| if blob.contains(place) { inside.at(place) } else { around.at(place) };
        values.extend(picture([SIDE; 2], at));
        let mask = picture([SIDE; 2], |place| [f64::from(u8::from(blob.contains(place))); 3]);
        masks.extend_from_slice(&mask[..SIDE * SIDE]);
    }
    (maps(values, [3, SIDE, SIDE], device), maps(masks, [1, SIDE, SIDE], device))
}

/// Intersection over union of the pixels of all pictures of the evaluation, in %.
fn overlap(training: Training, logits: impl Fn(Tensor<4>) -> Tensor<4>) -> f64 {
    let mut random = Random::new(training.seed, "evaluated blobs", 0);
    let (mut both, mut either) = (0, 0);
    for _ in 0..EVALUATED / BATCH {
        let (pictures, masks) = blobs(&mut random, BATCH, &Device::flex());
        let (found, masks) = (logits(pictures).into_data(), masks.into_data());
        let pixels = retie_model::kernels::f32_slice(&found).iter().zip(retie_model::kernels::f32_slice(&masks));
        for (logit, mask) in pixels {
            let (is_found, is_blob) = (*logit > 0.0, *mask > 0.5);
            both += usize::from(is_found && is_blob);
            either += usize::from(is_found || is_blob);
        }
    }
    100.0 * both as f64 / either as f64
}

/// A row for a network that finds blobs.
fn row<M: Module>(
    system: String,
    training: Training,
    init: impl FnOnce(&Device) -> M,
    logits: impl Fn(&M, Tensor<4>) -> Tensor<4>,
) -> Result<Row, LabError> {
    let device = training.device();
    let (model, trained) = training.train(init(&device), |model, step| {
        let (pictures, masks) = blobs(&mut Random::new(training.seed, "blobs", step as u64), BATCH, &device);
        uncertainty_aware(logits(model, pictures), masks, step as f64 / training.steps as f64)
    })?;
    let figure = overlap(training, |pictures| logits(&model, pictures));
    Ok(Row { system, figure, trained: Some(trained) })
}

/// Baseline: the same levels of one size of the picture, and a decoder that adds only the output of
/// the level before.
#[derive(Module, Debug)]
struct Plain {
    encoder: Vec<ConvNormRelu>,
    lateral: Vec<ConvNormRelu>,
    decoder: Vec<ConvNormRelu>,
    before: ConvNormRelu,
    out: Conv2d,
}

impl Plain {
    fn new(width: usize, levels: usize, device: &Device) -> Self {
        let convs = |first: usize| {
            (0..levels)
                .map(|level| ConvNormRelu::new([if level == 0 { first } else { width }, width], 3, device))
                .collect()
        };
        Self {
            encoder: convs(3),
            lateral: convs(width),
            decoder: convs(width),
            before: ConvNormRelu::new([width, width], 3, device),
            out: convolution([width, 1], 1, true, device),
        }
    }

    /// The smallest one that has as many parameters.
    fn of_size(parameters: usize, levels: usize, device: &Device) -> Self {
        let width = (8..).find(|width| num_parameters(&Self::new(*width, levels, device)) >= parameters);
        let Some(width) = width else { unreachable!("there is a wider one") };
        Self::new(width, levels, device)
    }

    fn forward(&self, pictures: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = pictures.dims();
        let mut x = pictures;
        let mut levels = Vec::new();
        for conv in &self.encoder {
            let [_, _, height, width] = x.dims();
            x = conv.forward(resize(x, [height / 2, width / 2], Interpolation::Area));
            levels.push(x.clone());
        }
        let mut coarser: Option<Tensor<4>> = None;
        for ((x, lateral), conv) in levels.into_iter().zip(&self.lateral).zip(&self.decoder).rev() {
            let [_, _, height, width] = x.dims();
            let x = lateral.forward(x);
            coarser = Some(conv.forward(match coarser {
                Some(coarser) => x + resize(coarser, [height, width], Interpolation::Bilinear),
                None => x,
            }));
        }
        let Some(finest) = coarser else { unreachable!("a network has levels") };
        self.out.forward(self.before.forward(resize(finest, [height, width], Interpolation::Bilinear)))
    }
}

/// MSRNet beside a plain network of as many parameters.
pub(super) fn msrnet(training: Training) -> Result<Table, LabError> {
    let config = MsrnetConfig { width: 16, levels: vec![16, 16, 24], groups: [4, 6] };
    let network = row("MSRNet".to_owned(), training, |device| config.init(device), |model, x| model.forward(x))?;
    let parameters = network.trained.as_ref().map_or(0, |trained| trained.parameters);
    training.table("intersection over union, %", network, || {
        let init = |device: &Device| Plain::of_size(parameters, config.levels.len(), device);
        let plain = row("one size, feedback of one level".to_owned(), training, init, |model, x| model.forward(x))?;
        let all = overlap(training, |pictures| pictures.narrow(1, 0, 1) * 0.0 + 1.0);
        Ok(vec![plain, Row { system: "every pixel".to_owned(), figure: all, trained: None }])
    })
}
