//! Attention within windows, of half the heads in wide ones and of half in high ones.

use super::{
    super::{
        layers::{affine, depthwise, filtered, norm, normalised},
        pictures::{Pictures, behind_zeros},
    },
    EPS, RgtConfig,
};
use burn::{
    module::Module,
    tensor::{
        Device, Tensor, TensorData,
        activation::{relu, softmax},
    },
};
use retie_model::{Affine, Norm, kernels};

/// Score of pixels that moved windows bring together from apart.
const APART: f32 = -100.0;

/// Weights of the attention.
#[derive(Module, Debug)]
pub struct LocalAttention {
    pub qkv: Affine,
    /// Biases of the heads of both kinds of windows.
    pub biases: Vec<PositionBias>,
    /// Of values, beside attention.
    pub around: Affine,
    pub proj: Affine,
    #[module(skip)]
    num_heads: usize,
    /// Sides of the windows of both kinds.
    #[module(skip)]
    windows: [[usize; 2]; 2],
    #[module(skip)]
    is_moved: bool,
}

/// Network from the distance of two pixels to the biases of their scores.
#[derive(Module, Debug)]
pub struct PositionBias {
    pub first: Affine,
    pub norms: Vec<Norm>,
    pub layers: Vec<Affine>,
}

impl PositionBias {
    fn new(width: usize, num_heads: usize, device: &Device) -> Self {
        Self {
            first: affine(2, width, device),
            norms: (0..3).map(|_| norm(width, device)).collect(),
            layers: [width, width, num_heads].map(|to| affine(width, to, device)).into(),
        }
    }

    /// Biases of all pairs of pixels of a window: `[heads, n, n]`.
    fn forward(&self, [height, width]: [usize; 2], device: &Device) -> Tensor<3> {
        let (rows, columns) = (2 * height - 1, 2 * width - 1);
        let distance = |at: usize, side: usize| at as f32 - (side as f32 - 1.0);
        let distances: Vec<f32> = (0..rows * columns)
            .flat_map(|at| [distance(at / columns, height), distance(at % columns, width)])
            .collect();
        let first = self.first.forward(Tensor::from_data(TensorData::new(distances, [rows * columns, 2]), device));
        let layer = |x, (norm, layer): (&Norm, &Affine)| layer.forward(relu(normalised(norm, x, EPS)));
        let biases = self.norms.iter().zip(&self.layers).fold(first, layer);
        let pixels = height * width;
        let pair = |pair: usize| {
            let (to, from) = (pair / pixels, pair % pixels);
            let apart = |to: usize, from: usize, side: usize| to + side - 1 - from;
            apart(to / width, from / width, height) * columns + apart(to % width, from % width, width)
        };
        let [_, heads] = biases.dims();
        let all = kernels::gather(biases, &(0..pixels * pixels).map(pair).collect());
        all.reshape([pixels, pixels, heads]).permute([2, 0, 1])
    }
}

/// Windows of pictures that are padded with zeros to whole ones.
struct Windows {
    /// Row behind one of zeros of each pixel of each window.
    rows: Vec<usize>,
    /// Windows of a picture.
    per_picture: usize,
    /// For each row of the pictures its place in `rows`.
    back: Vec<usize>,
    /// Scores to add in each window of a picture, `n × n`, where windows are moved.
    mask: Option<Vec<f32>>,
}

impl Windows {
    fn new(pictures: &Pictures, [height, width]: [usize; 2], is_moved: bool) -> Self {
        // Both kinds of windows fill the padded picture.
        let side = height.max(width);
        let [down, across] = [pictures.height, pictures.width].map(|size| size.next_multiple_of(side));
        let moved = if is_moved { [height / 2, width / 2] } else { [0, 0] };
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        let mut back = vec![0; pictures.num_rows()];
        // The last window is made of what the move leaves of two: 0 before it, then 1 and 2.
        let part = |at: usize, size: usize, side: usize, by: usize| {
            usize::from(at >= size - side) + usize::from(by > 0 && at >= size - by)
        };
        for picture in 0..pictures.count {
            for (top, left) in (0..down).step_by(height).flat_map(|y| (0..across).step_by(width).map(move |x| (y, x))) {
                for (y, x) in (top..top + height).flat_map(|y| (left..left + width).map(move |x| (y, x))) {
                    if picture == 0 {
                        parts.push(3 * part(y, down, height, moved[0]) + part(x, across, width, moved[1]));
                    }
                    let (y, x) = ((y + moved[0]) % down, (x + moved[1]) % across);
                    let is_inside = y < pictures.height && x < pictures.width;
                    if is_inside {
                        back[pictures.row(picture, y, x)] = rows.len();
                    }
                    rows.push(if is_inside { 1 + pictures.row(picture, y, x) } else { 0 });
                }
            }
        }
        let pairs = |window: &[usize]| -> Vec<f32> {
            let from_all = |a: &usize| window.iter().map(|b| if a == b { 0.0 } else { APART }).collect::<Vec<_>>();
            window.iter().flat_map(from_all).collect()
        };
        let mask = is_moved.then(|| parts.chunks(height * width).flat_map(pairs).collect());
        Self { rows, per_picture: down * across / (height * width), back, mask }
    }
}

impl LocalAttention {
    pub(super) fn new(config: &RgtConfig, is_moved: bool, device: &Device) -> Self {
        let RgtConfig { width, num_heads, window: [height, across], .. } = *config;
        // A quarter of the channels of half the heads, and of these a quarter again.
        let bias = |_| PositionBias::new(width / 2 / 4 / 4, num_heads / 2, device);
        Self {
            qkv: affine(width, 3 * width, device),
            biases: [0, 1].map(bias).into(),
            around: depthwise(width, 9, device),
            proj: affine(width, width, device),
            num_heads,
            windows: [[height, across], [across, height]],
            is_moved,
        }
    }

    /// `[M, C]` → `[M, C]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>, pictures: &Pictures) -> Tensor<2> {
        let [_, width] = x.dims();
        let qkv = self.qkv.forward(x).chunk(3, 1);
        let half = |kind: usize| {
            let parts = [0, 1, 2].map(|part| qkv[part].clone().narrow(1, kind * width / 2, width / 2));
            self.within(parts, pictures, kind)
        };
        let attended = Tensor::cat(vec![half(0), half(1)], 1);
        self.proj.forward(attended + filtered(&self.around, qkv[2].clone(), pictures))
    }

    /// Attention of half the channels `[M, C/2]` in windows of one kind → `[M, C/2]`.
    fn within(&self, qkv: [Tensor<2>; 3], pictures: &Pictures, kind: usize) -> Tensor<2> {
        let [num_rows, width] = qkv[0].dims();
        let window = self.windows[kind];
        let pixels = window[0] * window[1];
        let Windows { rows, per_picture, back, mask } = Windows::new(pictures, window, self.is_moved);
        let (heads, num_windows) = (self.num_heads / 2, rows.len() / pixels);
        let rows = rows.into();
        let [q, k, v] = qkv.map(|x| {
            let x = kernels::gather(behind_zeros(x), &rows);
            x.reshape([num_windows, pixels, heads, width / heads]).swap_dims(1, 2) // [w, heads, n, C/N]
        });
        let device = q.device();
        let scores = q.matmul(k.swap_dims(2, 3)) / ((width / heads) as f32).sqrt();
        let mut scores = scores + self.biases[kind].forward(window, &device).unsqueeze();
        if let Some(mask) = mask {
            let mask: Tensor<5> =
                Tensor::from_data(TensorData::new(mask, [1, per_picture, 1, pixels, pixels]), &device);
            let in_pictures = scores.reshape([pictures.count, per_picture, heads, pixels, pixels]) + mask;
            scores = in_pictures.reshape([num_windows, heads, pixels, pixels]);
        }
        let attended = softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([num_windows * pixels, width]);
        kernels::gather(attended, &back.into()).reshape([num_rows, width])
    }
}
