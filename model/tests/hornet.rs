//! HorNet (<https://arxiv.org/abs/2207.14284>) in two dimensions: the gated convolution of a step
//! over neighbourhoods of a picture, against `torch`; its parameters, against the published models.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::{
    module::Param,
    tensor::{Device, Tensor, TensorData},
};
use retie_config::{GnconvConfig, Init, Mechanism, ModelConfig, RecursionConfig, Sharing, StepConfig};
use retie_model::{Affine, Gnconv, kernels::RowSet};
use retie_testing::{Golden, differences, tiny_llama, values};

/// Hidden size of the golden file.
const D: usize = 16;

/// Pictures in rows: `count` of `height` × `width`.
struct Pictures {
    count: usize,
    height: usize,
    width: usize,
}

impl Pictures {
    fn num_rows(&self) -> usize {
        self.count * self.height * self.width
    }

    /// For each tap of a square filter the rows that it reads, behind one of zeros, which stands
    /// for what is outside of a picture.
    fn taps(&self, kernel: usize) -> Vec<RowSet> {
        let Self { height, width, .. } = *self;
        let inside = |at: usize, by: usize, size: usize| (at + by).checked_sub(kernel / 2).filter(|at| *at < size);
        let row = |row: usize, dy: usize, dx: usize| {
            let (picture, y, x) = (row / (height * width), row / width % height, row % width);
            let found = inside(y, dy, height).zip(inside(x, dx, width));
            found.map_or(0, |(y, x)| 1 + (picture * height + y) * width + x)
        };
        let tap = |tap: usize| (0..self.num_rows()).map(|at| row(at, tap / kernel, tap % kernel)).collect();
        (0..kernel * kernel).map(tap).collect()
    }
}

fn matrix(golden: &Golden, name: &str, rows: usize) -> Tensor<2> {
    let found = golden.floats(name);
    let columns = found.len() / rows;
    Tensor::from_data(TensorData::new(found, [rows, columns]), &Device::flex())
}

/// The branch of a case of the golden file; `bias` is a factor of its biases.
fn branch(golden: &Golden, case: &str, order: usize, kernel: usize, bias: f32) -> Gnconv {
    let config = GnconvConfig { order, kernel: kernel * kernel };
    let widths = config.widths(D);
    let affine = |name: &str, out: usize| {
        let biases = golden.floats(&format!("{case}.{name}.bias"));
        let biases: Tensor<1> = Tensor::from_data(TensorData::new(biases, [out]), &Device::flex());
        let weight = matrix(golden, &format!("{case}.{name}.weight"), out);
        Affine { weight: Param::from_tensor(weight), bias: Param::from_tensor(biases * bias) }
    };
    Gnconv {
        in_proj: affine("in_proj", 2 * D),
        conv: affine("conv", widths.iter().sum()),
        between: (1..order).map(|k| affine(&format!("between.{}", k - 1), widths[k])).collect(),
        out_proj: affine("out_proj", D),
        scale: Param::from_tensor(Tensor::ones([D], &Device::flex())),
        config,
    }
}

const CASES: [(&str, usize, usize, Pictures); 2] =
    [("a", 3, 3, Pictures { count: 2, height: 5, width: 6 }), ("b", 5, 7, Pictures { count: 1, height: 4, width: 9 })];

#[test]
fn pictures_have_the_values_of_torch() {
    let golden = Golden::named("hornet");
    for (case, order, kernel, pictures) in CASES {
        let x = matrix(&golden, &format!("{case}.x"), pictures.num_rows());
        let found = branch(&golden, case, order, kernel, 1.0).forward_over(x, &pictures.taps(kernel));
        let expected = golden.floats(&format!("{case}.y"));
        let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        // Products of up to six sums in f32 against f64.
        let (max, _) = differences(&values(found), &expected);
        assert!(max <= 1e-5 * scale, "{case}: differs by {max}, the largest is {scale}");
    }
}

/// Without biases the output of order `n` is homogeneous of degree `n + 1`; powers of two are exact
/// factors.
#[test]
fn an_order_is_the_degree_of_a_picture() {
    let golden = Golden::named("hornet");
    for (case, order, kernel, pictures) in CASES {
        let branch = branch(&golden, case, order, kernel, 0.0);
        let x = matrix(&golden, &format!("{case}.x"), pictures.num_rows());
        let [one, two] = [1.0, 2.0].map(|by| branch.forward_over(x.clone() * by, &pictures.taps(kernel)));
        let degree = 2f32.powi(order as i32 + 1);
        assert_eq!(values(two), values(one * degree), "{case}");
    }
}

/// Parameters of a gated convolution of `width` with a filter of 7 × 7, as a step has them.
fn of_branch(width: usize, order: usize) -> usize {
    let branch = Some(Mechanism::Gnconv(GnconvConfig { order, kernel: 49 }));
    let steps = vec![StepConfig { branch, ..StepConfig::default() }];
    let recursion = RecursionConfig { steps, ..RecursionConfig::new(2, Sharing::Cycle, Init::Average) };
    let config = ModelConfig { recursion: Some(recursion), hidden_size: width, ..tiny_llama() };
    let tensors = config.tensors().into_iter().filter(|spec| spec.name().starts_with("model.depths.0.step."));
    tensors.map(|spec| spec.num_elements()).sum()
}

/// HorNet-T, -S and -B with filters of 7 × 7, and a head of 1,000 classes.
#[test]
fn networks_of_it_have_the_parameters_of_the_published_ones() {
    for (width, expected) in [(64, 22_409_512), (96, 49_528_264), (128, 87_256_680)] {
        let affine = |from: usize, to: usize| from * to + to;
        let widths = [0, 1, 2, 3].map(|stage| width << stage);
        // Patches of 4 × 4 pixels of three colours and a norm, then norms and patches of 2 × 2.
        let stem = affine(3 * 16, width) + 2 * width;
        let between: usize = widths.windows(2).map(|pair| 2 * pair[0] + affine(4 * pair[0], pair[1])).sum();
        // The branch with its scale, two norms, an MLP of four times the width and its scale.
        let block = |width: usize, order| {
            of_branch(width, order) + 4 * width + affine(width, 4 * width) + affine(4 * width, width) + width
        };
        let stages = widths.into_iter().zip([(2, 2), (3, 3), (18, 4), (2, 5)]);
        let blocks: usize = stages.map(|(width, (depth, order))| depth * block(width, order)).sum();
        assert_eq!(stem + between + blocks + 2 * widths[3] + affine(widths[3], 1000), expected);
    }
}
