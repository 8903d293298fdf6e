//! FlashVGGT (<https://arxiv.org/abs/2512.01540>): views of a scene, blocks that attend within a
//! view and to all of them in turn, and descriptors of the views in the place of all their patches.
//!
//! A descriptor is the mean of the central 2 × 2 patches of a block of an even side (what bilinear
//! resizing without a filter takes), or the one in the middle of an odd side. It is made of the
//! hidden states that enter a block, before their projection to keys and values; its position is
//! that of the first patch of its block. Whole views and special tokens are attended to besides.
//!
//! The mean is the operator that makes descriptors of chunks in a step of a language model, on
//! blocks of two dimensions. A step has to make them of keys and values, which its cache holds.

use super::{
    layers::{affine, constant, norm, normalised},
    pictures::Pictures,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData},
};
use burn_nn::{
    Initializer,
    conv::{Conv2d, Conv2dConfig},
};
use retie_config::Activation;
use retie_model::{
    Affine, Norm, attend_slices,
    kernels::{self, Layout, RowSet, Scoring, Segment},
    pool,
};

const EPS: f32 = 1e-5;
/// Base of the frequencies of the rotary embedding, in VGGT.
const ROPE_BASE: f32 = 100.0;

/// Sizes of a network.
#[derive(Clone, Debug)]
pub struct FlashVggtConfig {
    pub width: usize,
    pub num_heads: usize,
    /// Blocks within views, and as many over all.
    pub depth: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Tokens of a view beside its patches: the camera and the registers.
    pub specials: usize,
    /// Channels of what a patch predicts.
    pub outputs: usize,
    /// What the scales of both branches of a block start as; 0.01 in VGGT, which is pretrained.
    pub scale: f64,
}

/// Keys of the attention to all views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewKeys {
    /// All tokens: VGGT.
    All,
    /// Special tokens, descriptors of blocks of `ratio × ratio` patches, and all patches of `whole`
    /// views, the reference and key frames.
    Descriptors { ratio: usize, whole: Vec<usize> },
}

impl FlashVggtConfig {
    /// The network with random weights.
    #[must_use]
    pub fn init(&self, device: &Device) -> FlashVggt {
        let patches = Conv2dConfig::new([3, self.width], [self.patch; 2]).with_stride([self.patch; 2]);
        let blocks = || (0..self.depth).map(|_| self.block(device)).collect();
        let specials = Initializer::Normal { mean: 0.0, std: 0.02 };
        FlashVggt {
            patches: patches.init(device),
            specials: specials.init([2 * self.specials, self.width], device),
            within: blocks(),
            across: blocks(),
            norm: norm(self.width, device),
            head: affine(self.width, self.outputs, device),
            num_specials: self.specials,
        }
    }

    fn block(&self, device: &Device) -> ViewBlock {
        let (width, head_dim) = (self.width, self.width / self.num_heads);
        ViewBlock {
            norm1: norm(width, device),
            q_proj: affine(width, width, device),
            k_proj: affine(width, width, device),
            v_proj: affine(width, width, device),
            q_norm: norm(head_dim, device),
            k_norm: norm(head_dim, device),
            o_proj: affine(width, width, device),
            scale1: constant(width, self.scale, device),
            norm2: norm(width, device),
            up: affine(width, 4 * width, device),
            down: affine(4 * width, width, device),
            scale2: constant(width, self.scale, device),
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct FlashVggt {
    pub patches: Conv2d,
    /// Special tokens of the first view, then those of the others.
    pub specials: Param<Tensor<2>>,
    pub within: Vec<ViewBlock>,
    pub across: Vec<ViewBlock>,
    pub norm: Norm,
    pub head: Affine,
    #[module(skip)]
    num_specials: usize,
}

/// A block: attention with normalised and rotated queries and keys, and an MLP.
#[derive(Module, Debug)]
pub struct ViewBlock {
    pub norm1: Norm,
    pub q_proj: Affine,
    pub k_proj: Affine,
    pub v_proj: Affine,
    pub q_norm: Norm,
    pub k_norm: Norm,
    pub o_proj: Affine,
    pub scale1: Param<Tensor<1>>,
    pub norm2: Norm,
    pub up: Affine,
    pub down: Affine,
    pub scale2: Param<Tensor<1>>,
}

/// Tokens of scenes in rows: scene by scene and view by view, special tokens before patches.
#[derive(Clone, Copy, Debug)]
pub struct Views {
    pub scenes: usize,
    pub views: usize,
    pub specials: usize,
    /// Patches of a view from top to bottom.
    pub height: usize,
    /// Patches of a view from left to right.
    pub width: usize,
}

impl Views {
    fn tokens(&self) -> usize {
        self.specials + self.height * self.width
    }

    fn start(&self, scene: usize, view: usize) -> usize {
        (scene * self.views + view) * self.tokens()
    }

    /// Runs of rows of all views, or of all scenes.
    fn runs(&self, is_scene: bool) -> Vec<Vec<usize>> {
        let length = self.tokens() * if is_scene { self.views } else { 1 };
        let all = self.scenes * self.views * self.tokens();
        (0..all / length).map(|run| (run * length..(run + 1) * length).collect()).collect()
    }

    /// Positions of all tokens: patches count from 1, special tokens are at the origin.
    fn positions(&self) -> Vec<[usize; 2]> {
        let patches = (0..self.height * self.width).map(|patch| [1 + patch / self.width, 1 + patch % self.width]);
        let view: Vec<_> = std::iter::repeat_n([0, 0], self.specials).chain(patches).collect();
        view.repeat(self.scenes * self.views)
    }

    /// What is attended to with descriptors, scene by scene: rows of whole patches, and for each
    /// view those of its special tokens and of the blocks of its descriptors.
    fn keys(&self, ratio: usize, whole: &[usize]) -> Vec<Vec<Vec<usize>>> {
        let patches = Pictures { count: 1, height: self.height, width: self.width }.blocks(ratio);
        let of = |scene: usize| {
            let all = |view: &usize| {
                let start = self.start(scene, *view);
                (start + self.specials..start + self.tokens()).map(|row| vec![row]).collect::<Vec<_>>()
            };
            let mut keys: Vec<Vec<usize>> = whole.iter().flat_map(all).collect();
            for view in 0..self.views {
                let start = self.start(scene, view);
                keys.extend((start..start + self.specials).map(|row| vec![row]));
                keys.extend(patches.iter().map(|block| block.iter().map(|at| start + self.specials + at).collect()));
            }
            keys
        };
        (0..self.scenes).map(of).collect()
    }
}

/// Parts of a block of `ratio × ratio` patches that its descriptor is the mean of.
fn central(ratio: usize) -> Vec<usize> {
    let middle = (ratio - 1) / 2;
    let sides = if ratio.is_multiple_of(2) { vec![middle, middle + 1] } else { vec![middle] };
    sides.iter().flat_map(|y| sides.iter().map(move |x| y * ratio + x)).collect()
}

impl FlashVggt {
    /// Predictions of the patches of views `[B·V, 3, H, W]`, of `num_views` for each scene → `[B·V,
    /// outputs, H/patch, W/patch]`.
    ///
    /// # Panics
    /// When the views are no whole number of scenes.
    #[must_use]
    pub fn forward(&self, pictures: Tensor<4>, num_views: usize, keys: &ViewKeys) -> Tensor<4> {
        let (patches, sizes) = Pictures::rows(self.patches.forward(pictures));
        assert!(sizes.count.is_multiple_of(num_views), "{} views of scenes of {num_views}", sizes.count);
        let (specials, scenes) = (self.num_specials, sizes.count / num_views);
        let Pictures { height, width, .. } = sizes;
        let views = Views { scenes, views: num_views, specials, height, width };
        // Rows of the special tokens, then those of the patches.
        let token = |at: usize| {
            let (view, token) = (at / views.tokens(), at % views.tokens());
            let other = if view.is_multiple_of(num_views) { 0 } else { specials };
            match token.checked_sub(specials) {
                None => other + token,
                Some(patch) => 2 * specials + view * sizes.num_pixels() + patch,
            }
        };
        let tokens: RowSet = (0..sizes.count * views.tokens()).map(token).collect();
        let mut x = kernels::gather(Tensor::cat(vec![self.specials.val(), patches], 0), &tokens);
        for (within, across) in self.within.iter().zip(&self.across) {
            x = within.forward(x, |block, x| block.attend(x, &views, &views.runs(false)));
            x = across.forward(x, |block, x| match keys {
                ViewKeys::All => block.attend(x, &views, &views.runs(true)),
                ViewKeys::Descriptors { ratio, whole } => block.attend_descriptors(x, &views, *ratio, whole),
            });
        }
        let is_patch = |row: &usize| row % views.tokens() >= specials;
        let patches = (0..sizes.count * views.tokens()).filter(is_patch).collect();
        sizes.maps(self.head.forward(normalised(&self.norm, kernels::gather(x, &patches), EPS)))
    }
}

impl ViewBlock {
    fn forward(&self, x: Tensor<2>, attend: impl FnOnce(&Self, Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let attended = attend(self, normalised(&self.norm1, x.clone(), EPS));
        let x = x + self.o_proj.forward(attended) * self.scale1.val().unsqueeze();
        let wide = kernels::activation(self.up.forward(normalised(&self.norm2, x.clone(), EPS)), Activation::Gelu);
        x + self.down.forward(wide) * self.scale2.val().unsqueeze()
    }

    /// Queries or keys: normalised heads that are rotated to their positions, `[M, N, H]`.
    fn rotated(&self, x: Tensor<2>, norm: &Norm, positions: &[[usize; 2]]) -> Tensor<3> {
        let ([rows, width], [head_dim]) = (x.dims(), norm.weight.dims());
        let heads = width / head_dim;
        let x = normalised(norm, x.reshape([rows * heads, head_dim]), EPS).reshape([1, rows, heads, head_dim]);
        // Half the channels of a head are rotated by the row of a patch, half by its column.
        let half = head_dim / 2;
        let device = x.device().inner();
        let part = |axis: usize| {
            let frequency = |index: usize| 1.0 / ROPE_BASE.powf((2 * index) as f32 / half as f32);
            let angles = positions
                .iter()
                .flat_map(|position| (0..half / 2).map(move |index| position[axis] as f32 * frequency(index)));
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
            let tensor = |values| Tensor::<2>::from_data(TensorData::new(values, [rows, half / 2]), &device);
            kernels::rope(x.clone().narrow(3, axis * half, half), tensor(cos), tensor(sin))
        };
        Tensor::cat(vec![part(0), part(1)], 3).reshape([rows, heads, head_dim])
    }

    fn values(&self, x: Tensor<2>) -> Tensor<3> {
        let ([rows, width], [head_dim]) = (x.dims(), self.k_norm.weight.dims());
        self.v_proj.forward(x).reshape([rows, width / head_dim, head_dim])
    }

    /// Attention to all tokens of the same run: `[M, C]` → `[M, C]`.
    fn attend(&self, x: Tensor<2>, views: &Views, runs: &[Vec<usize>]) -> Tensor<2> {
        let ([rows, width], positions) = (x.dims(), views.positions());
        let q = self.rotated(self.q_proj.forward(x.clone()), &self.q_norm, &positions);
        let k = self.rotated(self.k_proj.forward(x.clone()), &self.k_norm, &positions);
        let [_, _, head_dim] = q.dims();
        attend_slices(q, k, self.values(x), runs, Scoring::plain(head_dim)).reshape([rows, width])
    }

    /// Attention to descriptors of the scene: `[M, C]` → `[M, C]`.
    fn attend_descriptors(&self, x: Tensor<2>, views: &Views, ratio: usize, whole: &[usize]) -> Tensor<2> {
        let ([rows, width], positions) = (x.dims(), views.positions());
        let q = self.rotated(self.q_proj.forward(x.clone()), &self.q_norm, &positions);
        let scenes = views.keys(ratio, whole);
        let num_keys = scenes[0].len();
        let keys: Vec<Vec<usize>> = scenes.into_iter().flatten().collect();
        let (blocks, singles): (Vec<Vec<usize>>, Vec<Vec<usize>>) = keys.iter().cloned().partition(|key| key.len() > 1);
        let singles: RowSet = singles.into_iter().flatten().collect();
        let num_singles = singles.len();
        let single_rows = kernels::gather(x.clone(), &singles);
        let pooled = if blocks.is_empty() {
            single_rows
        } else {
            let means = pool(&x.reshape([rows, 1, width]), &blocks, central(ratio), |x, _| x);
            Tensor::cat(vec![single_rows, means.reshape([blocks.len(), width])], 0)
        };
        // In the order of the keys: single rows and means of blocks stand apart.
        let (mut next_single, mut next_block) = (0, num_singles);
        let order = keys.iter().map(|key| {
            let next = if key.len() > 1 { &mut next_block } else { &mut next_single };
            *next += 1;
            *next - 1
        });
        let hidden = kernels::gather(pooled, &order.collect());
        let positions: Vec<[usize; 2]> = keys.iter().map(|key| positions[key[0]]).collect();
        let k = self.rotated(self.k_proj.forward(hidden.clone()), &self.k_norm, &positions);
        // A segment has no more queries than keys.
        let queries = rows / views.scenes;
        let segments = (0..views.scenes).flat_map(|scene| {
            let keys = scene * num_keys..(scene + 1) * num_keys;
            (0..queries).step_by(num_keys).map(move |first| {
                let rows = scene * queries + first..scene * queries + queries.min(first + num_keys);
                let own = Some(vec![num_keys - 1; rows.len()].into());
                Segment { queries: rows, prefix: 0..0, keys: keys.clone(), own }
            })
        });
        let layout = Layout::ragged(segments.collect());
        let [_, _, head_dim] = q.dims();
        kernels::attention(q, k, self.values(hidden), &layout, Scoring::plain(head_dim)).reshape([rows, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_in_the_middle_of_its_block() {
        assert_eq!(central(1), [0]);
        assert_eq!(central(2), [0, 1, 2, 3]);
        assert_eq!(central(3), [4]);
        assert_eq!(central(4), [5, 6, 9, 10]);
    }

    #[test]
    fn keys_are_whole_views_special_tokens_and_blocks() {
        let views = Views { scenes: 1, views: 2, specials: 1, height: 2, width: 2 };
        let found = views.keys(2, &[0]);
        let expected: [&[usize]; 8] = [&[1], &[2], &[3], &[4], &[0], &[1, 2, 3, 4], &[5], &[6, 7, 8, 9]];
        assert_eq!(found, [expected.map(<[usize]>::to_vec)]);
    }
}
