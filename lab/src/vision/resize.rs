//! Resizing of maps by products with matrices, so that every backend has their gradients.
//!
//! Pixels are squares: the centre of pixel `i` is at `i + ½` (`align_corners=False` of torch).

use burn::tensor::{Device, Tensor, TensorData};

/// What a new pixel is made of in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// The two nearest pixels.
    Bilinear,
    /// The four nearest pixels, by the cubic of Keys (1981,
    /// <https://doi.org/10.1109/TASSP.1981.1163711>) with `a = −¾`.
    Bicubic,
    /// The mean of the pixels that it covers, `⌊i·n/m⌋` to `⌈(i + 1)·n/m⌉`: adaptive pooling.
    Area,
}

impl Interpolation {
    /// Index and weight of the pixels of `from` that make pixel `to_index` of `to`. Indices outside
    /// are those of the nearest pixel inside.
    fn weights(self, to_index: usize, from: usize, to: usize) -> Vec<(usize, f32)> {
        let inside = |index: isize| index.clamp(0, from as isize - 1) as usize;
        let centre = (to_index as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        match self {
            Self::Bilinear => {
                let centre = centre.max(0.0);
                let (first, rest) = (centre.floor() as isize, centre.fract() as f32);
                vec![(inside(first), 1.0 - rest), (inside(first + 1), rest)]
            }
            Self::Bicubic => {
                let first = centre.floor() as isize - 1;
                (first..first + 4).map(|at| (inside(at), keys_cubic((centre - at as f64).abs()) as f32)).collect()
            }
            Self::Area => {
                let pixels = to_index * from / to..((to_index + 1) * from).div_ceil(to);
                let share = 1.0 / pixels.len() as f32;
                pixels.map(|at| (at, share)).collect()
            }
        }
    }

    /// Matrix `[to, from]`.
    fn matrix(self, from: usize, to: usize, device: &Device) -> Tensor<2> {
        let mut values = vec![0.0f32; to * from];
        for row in 0..to {
            for (at, weight) in self.weights(row, from, to) {
                values[row * from + at] += weight;
            }
        }
        Tensor::from_data(TensorData::new(values, [to, from]), device)
    }
}

fn keys_cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    match distance {
        d if d <= 1.0 => ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0,
        d if d < 2.0 => ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A,
        _ => 0.0,
    }
}

/// Maps of another size: `[B, C, H, W]` → `[B, C, height, width]`.
#[must_use]
pub fn resize(x: Tensor<4>, [height, width]: [usize; 2], how: Interpolation) -> Tensor<4> {
    let [count, channels, from_height, from_width] = x.dims();
    if [from_height, from_width] == [height, width] {
        return x;
    }
    let device = x.device();
    let across = how.matrix(from_width, width, &device).transpose(); // [W, width]
    let x = x.reshape([count * channels * from_height, from_width]).matmul(across);
    let x = x.reshape([count * channels, from_height, width]).swap_dims(1, 2); // [B·C, width, H]
    let down = how.matrix(from_height, height, &device).transpose(); // [H, height]
    let x = x.reshape([count * channels * width, from_height]).matmul(down);
    x.reshape([count * channels, width, height]).swap_dims(1, 2).reshape([count, channels, height, width])
}
