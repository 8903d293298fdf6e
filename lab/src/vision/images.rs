//! Generated pictures: textures, camouflaged blobs, and views of a plane. Everything follows from a
//! seed.
//!
//! A texture is a function of the plane, so that it can be sampled in any place and at any size: a
//! sum of waves in each colour, of random directions and phases.

use burn::tensor::{Device, Tensor, TensorData};
use retie_tasks::Random;
use std::f64::consts::{PI, TAU};

/// Waves of a colour.
const NUM_WAVES: usize = 6;

/// What the waves of a texture have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextureKind {
    /// Direction of the waves in radians, the same for a direction and its opposite.
    pub direction: f64,
    /// Largest distance from that direction.
    pub spread: f64,
    /// Waves in a pixel: the smallest and the largest number.
    pub frequencies: [f64; 2],
}

impl TextureKind {
    /// Waves of all directions.
    #[must_use]
    pub fn isotropic(frequencies: [f64; 2]) -> Self {
        Self { direction: 0.0, spread: PI / 2.0, frequencies }
    }
}

/// A wave of one colour.
#[derive(Clone, Copy, Debug)]
struct Wave {
    /// Radians in a pixel, down and across.
    by: [f64; 2],
    phase: f64,
}

/// A texture: values of mean 0 and, over its phases, variance 1.
#[derive(Clone, Debug)]
pub struct Texture([[Wave; NUM_WAVES]; 3]);

/// A number from `range`, uniformly.
pub(super) fn uniform(random: &mut Random, [from, to]: [f64; 2]) -> f64 {
    from + (to - from) * (random.bits() >> 11) as f64 / 2f64.powi(53)
}

impl Texture {
    /// A texture of a kind.
    #[must_use]
    pub fn new(random: &mut Random, kind: TextureKind) -> Self {
        let mut wave = |_| {
            let direction = kind.direction + uniform(random, [-kind.spread, kind.spread]);
            let frequency = TAU * uniform(random, kind.frequencies);
            let by = [frequency * direction.sin(), frequency * direction.cos()];
            Wave { by, phase: uniform(random, [0.0, TAU]) }
        };
        Self([0; 3].map(|_| [0; NUM_WAVES].map(&mut wave)))
    }

    /// The three colours in a place, in pixels down and across.
    #[must_use]
    pub fn at(&self, [y, x]: [f64; 2]) -> [f64; 3] {
        let height = (2.0 / NUM_WAVES as f64).sqrt();
        let value = |wave: &Wave| (wave.by[0] * y + wave.by[1] * x + wave.phase).cos() * height;
        self.0.each_ref().map(|waves| waves.iter().map(value).sum())
    }
}

/// A picture of `height × width` pixels, of the colours that `at` gives their centres: its values,
/// colour by colour and row by row.
pub fn picture([height, width]: [usize; 2], at: impl Fn([f64; 2]) -> [f64; 3]) -> Vec<f32> {
    let centre = |index: usize| index as f64 + 0.5;
    let colours: Vec<_> = (0..height * width).map(|i| at([centre(i / width), centre(i % width)])).collect();
    (0..3).flat_map(|colour| colours.iter().map(move |colours| colours[colour] as f32)).collect()
}

/// Pictures as maps: `count·channels·height·width` values → `[B, C, H, W]`.
#[must_use]
pub fn maps(values: Vec<f32>, [channels, height, width]: [usize; 3], device: &Device) -> Tensor<4> {
    let count = values.len() / (channels * height * width);
    Tensor::from_data(TensorData::new(values, [count, channels, height, width]), device)
}

/// A region of a picture that waves around a circle.
#[derive(Clone, Debug)]
pub struct Blob {
    centre: [f64; 2],
    radius: f64,
    /// Height and phase of the waves of the border, by their number around the circle from 2 on.
    border: [[f64; 2]; 3],
}

impl Blob {
    /// A blob within a picture of `side × side` pixels, with a radius of a sixth to a quarter of
    /// it.
    #[must_use]
    pub fn new(random: &mut Random, side: usize) -> Self {
        let side = side as f64;
        let radius = uniform(random, [side / 6.0, side / 4.0]);
        let mut centre = || uniform(random, [1.3 * radius, side - 1.3 * radius]);
        let centre = [centre(), centre()];
        Self { centre, radius, border: [0; 3].map(|_| [uniform(random, [0.0, 0.1]), uniform(random, [0.0, TAU])]) }
    }

    /// Whether a place is in the blob.
    #[must_use]
    pub fn contains(&self, [y, x]: [f64; 2]) -> bool {
        let (y, x) = (y - self.centre[0], x - self.centre[1]);
        let angle = y.atan2(x);
        let waves = (2..).zip(&self.border).map(|(n, [height, phase])| height * (f64::from(n) * angle + phase).cos());
        y.hypot(x) < self.radius * (1.0 + waves.sum::<f64>())
    }
}

/// A similarity of the plane around a point: turn, scale and move.
#[derive(Clone, Copy, Debug)]
pub struct Similarity {
    /// Columns of its matrix: `[c, −s; s, c]`.
    matrix: [f64; 2],
    around: [f64; 2],
    moved: [f64; 2],
}

impl Similarity {
    /// A turn by at most `turn` radians, a scale of at most `1 + grow` or its inverse and a move by
    /// at most `by` pixels in each direction, around the middle of a picture of `side × side`
    /// pixels.
    #[must_use]
    pub fn new(random: &mut Random, side: usize, [turn, grow, by]: [f64; 3]) -> Self {
        let scale = (1.0 + grow).powf(uniform(random, [-1.0, 1.0]));
        let angle = uniform(random, [-turn, turn]);
        Self {
            matrix: [scale * angle.cos(), scale * angle.sin()],
            around: [side as f64 / 2.0; 2],
            moved: [uniform(random, [-by, by]), uniform(random, [-by, by])],
        }
    }

    /// Where a point goes.
    #[must_use]
    pub fn apply(&self, [y, x]: [f64; 2]) -> [f64; 2] {
        let ([c, s], y, x) = (self.matrix, y - self.around[0], x - self.around[1]);
        [c * y - s * x + self.around[0] + self.moved[0], s * y + c * x + self.around[1] + self.moved[1]]
    }

    /// Where the point came from that goes to this one.
    #[must_use]
    pub fn undo(&self, [y, x]: [f64; 2]) -> [f64; 2] {
        let ([c, s], square) = (self.matrix, self.matrix[0].powi(2) + self.matrix[1].powi(2));
        let (y, x) = (y - self.around[0] - self.moved[0], x - self.around[1] - self.moved[1]);
        [(c * y + s * x) / square + self.around[0], (c * x - s * y) / square + self.around[1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_texture() {
        let kind = TextureKind::isotropic([0.1, 0.2]);
        let sampled =
            |seed| picture([4, 4], |place| Texture::new(&mut Random::new(seed, "texture", 0), kind).at(place));
        assert_eq!(sampled(3), sampled(3));
        assert_ne!(sampled(3), sampled(4));
    }

    #[test]
    fn textures_have_mean_zero_and_variance_one() {
        let mut random = Random::new(0, "texture", 0);
        let values: Vec<f32> = (0..400)
            .flat_map(|_| {
                let texture = Texture::new(&mut random, TextureKind::isotropic([0.1, 0.3]));
                picture([8, 8], |place| texture.at(place))
            })
            .collect();
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        // Standard deviations of both are about 0.01.
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "mean {mean}, variance {variance}");
    }

    #[test]
    fn a_similarity_is_undone() {
        let mut random = Random::new(0, "similarity", 0);
        for _ in 0..100 {
            let map = Similarity::new(&mut random, 32, [0.5, 0.3, 6.0]);
            let point = [uniform(&mut random, [0.0, 32.0]), uniform(&mut random, [0.0, 32.0])];
            let back = map.undo(map.apply(point));
            assert!((back[0] - point[0]).abs() < 1e-9 && (back[1] - point[1]).abs() < 1e-9, "{point:?}, {back:?}");
        }
    }
}
