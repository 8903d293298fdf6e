//! MSRNet (<https://arxiv.org/abs/2511.12810>): one encoder over three sizes of a picture, modules
//! that fuse these, and a decoder in which every finer level is fed all coarser outputs.
//!
//! The fusion and the feedback are those of the steps of a language model, where recursions stand
//! for sizes and levels. The encoder here is small and is trained from scratch; the authors take a
//! pretrained PVTv2.

use super::{
    layers::{ConvNormRelu, convolution},
    pictures::Pictures,
    resize::{Interpolation, resize},
};
use burn::{
    module::Module,
    tensor::{
        Device, Tensor,
        activation::{relu, sigmoid, softmax},
    },
};
use burn_nn::conv::Conv2d;
use retie_model::{EnteredStates, fuse, kernels};
use std::f64::consts::PI;

/// Fusion of three sizes with attention in groups of channels (ABSIU).
#[derive(Module, Debug)]
pub struct Absiu {
    pub large_before: ConvNormRelu,
    pub small_before: ConvNormRelu,
    /// Of the large, the main and the small size.
    pub sizes: Vec<ConvNormRelu>,
    pub scores: ConvNormRelu,
    pub merged: ConvNormRelu,
    pub narrow: ConvNormRelu,
    pub around: ConvNormRelu,
    pub out: Conv2d,
    #[module(skip)]
    groups: usize,
}

impl Absiu {
    /// The module of `width` channels in `groups` groups.
    #[must_use]
    pub fn new(width: usize, groups: usize, device: &Device) -> Self {
        let (three, part) = (3 * width, width / groups);
        let around = || ConvNormRelu::new([width, width], 3, device);
        Self {
            large_before: around(),
            small_before: around(),
            sizes: (0..3).map(|_| around()).collect(),
            scores: ConvNormRelu::new([three, three], 1, device),
            merged: ConvNormRelu::new([three, three], 1, device),
            narrow: ConvNormRelu::new([3 * part, part], 1, device),
            around: ConvNormRelu::new([part, part], 3, device),
            out: convolution([part, 3], 1, true, device),
            groups,
        }
    }

    /// Maps of three sizes, the `main` one in the middle, as maps of that size: `[B, C, ·, ·]` →
    /// `[B, C, H, W]`.
    #[must_use]
    pub fn forward(&self, [large, main, small]: [Tensor<4>; 3]) -> Tensor<4> {
        let [count, width, height, across] = main.dims();
        let to_main = |x: Tensor<4>| {
            let x_max = adaptive_max(x.clone(), [height, across]);
            x_max + resize(x, [height, across], Interpolation::Area)
        };
        let (large, small) = (to_main(self.large_before.forward(large)), to_main(self.small_before.forward(small)));
        let sizes = self.sizes.iter().zip([large, main, small]).map(|(conv, x)| conv.forward(x));
        let all = Tensor::cat(sizes.collect(), 1);
        let part = width / self.groups;
        // A group has its channels of each size.
        let grouped = self.scores.forward(all.clone()).reshape([count, 3, self.groups, part * height * across]);
        let grouped = grouped.swap_dims(1, 2).reshape([count * self.groups, 3 * part, height, across]);
        let scores = self.out.forward(self.around.forward(self.narrow.forward(grouped)));
        let scores = scores.reshape([count, self.groups, 3, height * across]).permute([0, 3, 1, 2]);
        let scores = scores.reshape([count * height * across, self.groups, 3]);
        let merged = self.merged.forward(all).chunk(3, 1);
        let pictures = Pictures { count, height, width: across };
        pictures.maps(fuse(merged.into_iter().map(|x| Pictures::rows(x).0).collect(), scores))
    }
}

/// Largest pixel of those that a new one covers, `⌊i·n/m⌋` to `⌈(i + 1)·n/m⌉`: `[B, C, ·, ·]` →
/// `[B, C, height, width]`.
fn adaptive_max(x: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let (rows, from) = Pictures::rows(x);
    let to = Pictures { count: from.count, height, width };
    let covered = |index: usize, from: usize, to: usize| index * from / to..((index + 1) * from).div_ceil(to);
    let most = |from: usize, to: usize| (0..to).map(|index| covered(index, from, to).len()).max().unwrap_or(0);
    let (down, across) = (most(from.height, height), most(from.width, width));
    // A pixel that covers fewer has its last one several times.
    let part = |part: usize| {
        let row = |(picture, y, x): (usize, usize, usize)| {
            let (ys, xs) = (covered(y, from.height, height), covered(x, from.width, width));
            let at = |range: std::ops::Range<usize>, by: usize| (range.start + by).min(range.end - 1);
            from.row(picture, at(ys, part / across), at(xs, part % across))
        };
        kernels::gather(rows.clone(), &to.pixels().map(row).collect())
    };
    let Some(largest) = (0..down * across).map(part).reduce(Tensor::max_pair) else { unreachable!("maps have pixels") };
    to.maps(largest)
}

/// Gated unit that is recursive over groups of channels (MGFU).
#[derive(Module, Debug)]
pub struct Mgfu {
    pub expand: ConvNormRelu,
    /// One for each group, which reads the fork of the one before.
    pub groups: Vec<ConvNormRelu>,
    pub gate_in: Conv2d,
    pub gate_out: Conv2d,
    pub join: ConvNormRelu,
}

impl Mgfu {
    /// The module of `width` channels, which it expands to half of them in each group.
    #[must_use]
    pub fn new(width: usize, num_groups: usize, device: &Device) -> Self {
        let part = width / 2;
        let group = |index: usize| {
            let from = if index == 0 { part } else { 2 * part };
            let to = if index + 1 == num_groups { 2 * part } else { 3 * part };
            ConvNormRelu::new([from, to], 3, device)
        };
        Self {
            expand: ConvNormRelu::new([width, num_groups * part], 1, device),
            groups: (0..num_groups).map(group).collect(),
            gate_in: convolution([num_groups * part, part], 1, true, device),
            gate_out: convolution([part, num_groups * part], 1, true, device),
            join: ConvNormRelu::new([num_groups * part, width], 3, device),
        }
    }

    /// `[B, C, H, W]` → `[B, C, H, W]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (mut outputs, mut gates, mut fork) = (Vec::new(), Vec::new(), None);
        for (conv, part) in self.groups.iter().zip(self.expand.forward(x.clone()).chunk(self.groups.len(), 1)) {
            let [_, width, ..] = part.dims();
            let y = conv.forward(Tensor::cat([Some(part), fork].into_iter().flatten().collect(), 1));
            let [_, all, ..] = y.dims();
            outputs.push(y.clone().narrow(1, 0, width));
            gates.push(y.clone().narrow(1, all - width, width));
            fork = Some(y.narrow(1, width, width));
        }
        let mean = Tensor::cat(gates, 1).mean_dim(3).mean_dim(2);
        let gate = softmax(self.gate_out.forward(relu(self.gate_in.forward(mean))), 1);
        relu(self.join.linear(Tensor::cat(outputs, 1) * gate) + x)
    }
}

/// Dilated convolutions one behind the other, and the mean of the picture (ASPP).
#[derive(Module, Debug)]
pub struct Aspp {
    pub split: ConvNormRelu,
    pub mean: ConvNormRelu,
    pub dilated: Vec<ConvNormRelu>,
    pub fuse: ConvNormRelu,
    pub around: ConvNormRelu,
}

impl Aspp {
    /// The module from `from` to `to` channels.
    #[must_use]
    pub fn new([from, to]: [usize; 2], device: &Device) -> Self {
        Self {
            split: ConvNormRelu::new([from, 2 * to], 1, device),
            mean: ConvNormRelu::new([to, to], 1, device),
            dilated: (0..3).map(|_| ConvNormRelu::dilated([to, to], 3, device)).collect(),
            fuse: ConvNormRelu::new([5 * to, to], 1, device),
            around: ConvNormRelu::new([to, to], 3, device),
        }
    }

    /// `[B, C, H, W]` → `[B, C', H, W]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let both = self.split.forward(x);
        let [_, width, height, across] = both.dims();
        let (mut y, mean) = (both.clone().narrow(1, 0, width / 2), both.narrow(1, width / 2, width / 2));
        let mean = self.mean.forward(mean.mean_dim(3).mean_dim(2));
        let mut parts = vec![mean.repeat_dim(2, height).repeat_dim(3, across), y.clone()];
        for conv in &self.dilated {
            y = conv.forward(y);
            parts.push(y.clone());
        }
        self.around.forward(self.fuse.forward(Tensor::cat(parts, 1)))
    }
}

/// Sizes of a network.
#[derive(Clone, Debug)]
pub struct MsrnetConfig {
    /// Channels of the decoder.
    pub width: usize,
    /// Channels of the levels of the encoder, each with half the pixels of a side of the one
    /// before.
    pub levels: Vec<usize>,
    /// Groups of the fusion and of the gated units.
    pub groups: [usize; 2],
}

impl MsrnetConfig {
    /// The network with random weights.
    #[must_use]
    pub fn init(&self, device: &Device) -> Msrnet {
        let from = [3].into_iter().chain(self.levels.iter().copied());
        let (last, width) = (self.levels.len() - 1, self.width);
        let finer = &self.levels[..last];
        Msrnet {
            encoder: from.zip(&self.levels).map(|(from, to)| ConvNormRelu::new([from, *to], 3, device)).collect(),
            coarsest: Aspp::new([self.levels[last], width], device),
            finer: finer.iter().map(|level| ConvNormRelu::new([*level, width], 3, device)).collect(),
            fusions: self.levels.iter().map(|_| Absiu::new(width, self.groups[0], device)).collect(),
            units: self.levels.iter().map(|_| Mgfu::new(width, self.groups[1], device)).collect(),
            before: ConvNormRelu::new([width, width / 2], 3, device),
            out: convolution([width / 2, 1], 1, true, device),
        }
    }
}

/// The network, with a small encoder.
#[derive(Module, Debug)]
pub struct Msrnet {
    pub encoder: Vec<ConvNormRelu>,
    pub coarsest: Aspp,
    pub finer: Vec<ConvNormRelu>,
    /// By level, as the encoder.
    pub fusions: Vec<Absiu>,
    pub units: Vec<Mgfu>,
    pub before: ConvNormRelu,
    pub out: Conv2d,
}

/// Factors of the sides of a picture: of the large, the main and the small size. The authors' small
/// size is larger than the main one.
pub const SIZES: [f64; 3] = [2.0, 1.0, 1.5];

impl Msrnet {
    /// Logits of the pixels of pictures: `[B, 3, H, W]` → `[B, 1, H, W]`.
    #[must_use]
    pub fn forward(&self, pictures: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = pictures.dims();
        let scaled = |size: f64| {
            let sides = [height, width].map(|side| (side as f64 * size) as usize);
            self.encode(resize(pictures.clone(), sides, Interpolation::Bilinear))
        };
        let [large, main, small] = SIZES.map(scaled);
        let mut coarser: Vec<Tensor<4>> = Vec::new();
        for level in (0..self.encoder.len()).rev() {
            let sizes = [&large, &main, &small].map(|levels| match self.finer.get(level) {
                Some(conv) => conv.forward(levels[level].clone()),
                None => self.coarsest.forward(levels[level].clone()),
            });
            coarser.push(self.units[level].forward(fed_back(self.fusions[level].forward(sizes), &coarser)));
        }
        let Some(finest) = coarser.pop() else { unreachable!("a network has levels") };
        let finest = resize(finest, [height, width], Interpolation::Bilinear);
        self.out.forward(self.before.forward(finest))
    }

    /// Maps of the levels of pictures. Before each level maps are halved by means.
    fn encode(&self, mut x: Tensor<4>) -> Vec<Tensor<4>> {
        let level = |conv: &ConvNormRelu| {
            let [_, _, height, width] = x.dims();
            x = conv.forward(resize(x.clone(), [height / 2, width / 2], Interpolation::Area));
            x.clone()
        };
        self.encoder.iter().map(level).collect()
    }
}

/// Maps with all coarser outputs added to them: dense feedback with factors of 1.
fn fed_back(x: Tensor<4>, coarser: &[Tensor<4>]) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let Some(last) = coarser.len().checked_sub(1) else { return x };
    let mut entered = EnteredStates::default();
    for (index, output) in coarser.iter().enumerate() {
        let output = resize(output.clone(), [height, width], Interpolation::Bilinear);
        entered.insert(index, index, Pictures::rows(output).0);
    }
    let (rows, pictures) = Pictures::rows(x);
    let ones = Tensor::ones([coarser.len()], &rows.device());
    pictures.maps(entered.feed_back(rows, last, &ones))
}

/// Loss of the authors: cross-entropy of the pixels, and `λ·(1 − (2p − 1)²)` that punishes
/// undecided ones, with `λ = (1 − cos πt)/2` of the share `t` of the training that is done.
/// `logits` and the mask `targets`, of zeros and ones, are `[B, 1, H, W]`.
#[must_use]
pub fn uncertainty_aware(logits: Tensor<4>, targets: Tensor<4>, done: f64) -> Tensor<1> {
    let weight = (1.0 - (PI * done).cos()) / 2.0;
    let p = sigmoid(logits.clone());
    let undecided = (p.clone() * 2.0 - 1.0).square() * -1.0 + 1.0;
    cross_entropy(logits, targets) + undecided.mean() * weight
}

/// Cross-entropy of pixels: `log(1 + e^−|u|) + max(u, 0) − u·y`.
#[must_use]
pub fn cross_entropy(logits: Tensor<4>, targets: Tensor<4>) -> Tensor<1> {
    let soft = (logits.clone().abs() * -1.0).exp().log1p();
    (soft + relu(logits.clone()) - logits * targets).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_testing::values;

    #[test]
    fn undecided_pixels_cost_more_as_training_goes_on() {
        let device = Device::flex();
        let (logits, targets) = (Tensor::zeros([1, 1, 2, 2], &device), Tensor::zeros([1, 1, 2, 2], &device));
        let at = |done| values(uncertainty_aware(logits.clone(), targets.clone(), done))[0];
        let expected = [0.0, 0.5, 1.0].map(|weight| std::f32::consts::LN_2 + weight);
        for (found, expected) in [0.0, 0.5, 1.0].map(at).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        }
    }

    #[test]
    fn decided_pixels_cost_nothing_more() {
        let device = Device::flex();
        let (logits, targets) = (Tensor::full([1, 1, 1, 2], 40.0, &device), Tensor::ones([1, 1, 1, 2], &device));
        assert!(values(uncertainty_aware(logits, targets, 1.0))[0].abs() < 1e-6);
    }
}
