//! What networks on pictures compute, beside torch: `golden/make_vision.py` has the equations.
//! Weights are drawn by name on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData},
};
use retie_lab::vision::{
    Pictures,
    flash_vggt::{FlashVggtConfig, ViewKeys},
    hornet::HornetConfig,
    msrnet::{Absiu, Aspp, Mgfu, MsrnetConfig},
    rgt::{RgtBlock, RgtConfig},
    sret::{SretConfig, SretStageConfig},
};
use retie_model::{NamedMapper, map_named, update_value};
use retie_tasks::Random;
use retie_testing::{Golden, differences, values};
use std::path::Path;

/// Numbers from −1 to 1.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    let mut random = Random::new(0, name, 0);
    (0..count).map(move |_| (random.bits() >> 11) as f64 / 2f64.powi(53) * 2.0 - 1.0)
}

fn tensor<const D: usize>(values: impl Iterator<Item = f64>, shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Pictures, or rows, of a name.
fn input<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
    tensor(uniform(name, shape.iter().product()), shape)
}

/// Weights by their names: of variance `1/fan_in`, or near 1 for factors, or near 0 for biases.
struct Draw<'a>(&'a str);

impl NamedMapper for Draw<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        update_value(param, |old| {
            let shape = old.dims();
            let drawn = uniform(&format!("{}.{name}", self.0), shape.iter().product());
            let fan_in: usize = shape[1..].iter().product();
            let is_bias = ["bias", "beta", "running_mean"].iter().any(|end| name.ends_with(end));
            tensor(
                drawn.map(|value| match (D, is_bias) {
                    (1, true) => 0.5 * value,
                    (1, false) => 1.0 + 0.5 * value,
                    _ => value * (3.0 / fan_in as f64).sqrt(),
                }),
                shape,
            )
        })
    }
}

fn drawn<M: Module>(name: &str, module: M) -> M {
    map_named(module, &mut Draw(name))
}

fn compare<const D: usize>(name: &str, found: Tensor<D>) {
    let golden = Golden::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/vision.safetensors")));
    assert_eq!(golden.shape(name), found.dims(), "{name}");
    let expected = golden.floats(name);
    let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    // Sums and products in f32 against f64.
    let (max, _) = differences(&values(found), &expected);
    assert!(max <= 1e-5 * scale, "{name} differs by {max}, the largest is {scale}");
}

#[test]
fn sret_has_the_values_of_torch() {
    let config = SretConfig {
        image_size: 32,
        head_dim: 4,
        stages: vec![
            SretStageConfig { num_heads: 2, num_blocks: 2, groups: [4, 2] },
            SretStageConfig { num_heads: 4, num_blocks: 1, groups: [2, 1] },
        ],
        mlp_ratio: 1.6,
        nll_ratio: 2,
        num_classes: 5,
    };
    let network = drawn("sret", config.init(&Device::flex()));
    compare("sret", network.forward(input("sret.pictures", [2, 3, 32, 32])));
}

#[test]
fn hornet_has_the_values_of_torch() {
    let (depths, orders) = (vec![2, 1], vec![2, 3]);
    let config = HornetConfig { width: 8, depths, orders, kernel: 5, patch: 2, num_classes: 5, scale: 1.0 };
    let network = drawn("hornet", config.init(&Device::flex()));
    compare("hornet", network.forward(input("hornet.pictures", [2, 3, 12, 16])));
}

#[test]
fn rgt_has_the_values_of_torch() {
    let config = RgtConfig { width: 64, num_heads: 4, groups: vec![3, 2], mlp_ratio: 2, window: [2, 4], upscale: 2 };
    let network = drawn("rgt", config.init(&Device::flex()));
    compare("rgt", network.forward(input("rgt.pictures", [2, 3, 12, 10]), 1));
}

#[test]
fn one_filter_that_is_applied_twice_has_the_values_of_torch() {
    let config = RgtConfig { width: 32, num_heads: 2, groups: vec![2], mlp_ratio: 2, window: [2, 4], upscale: 2 };
    let block: RgtBlock = drawn("rgt.block", config.init(&Device::flex()).groups[0].blocks[1].clone());
    let pictures = Pictures { count: 1, height: 32, width: 16 };
    compare("rgt.block", block.forward(input("rgt.rows", [512, 32]), &pictures, 2));
}

#[test]
fn modules_of_msrnet_have_the_values_of_torch() {
    let device = Device::flex();
    let sizes = [("large", [12, 8]), ("main", [6, 4]), ("small", [9, 6])]
        .map(|(name, [height, width])| input(&format!("absiu.{name}"), [2, 8, height, width]));
    compare("absiu", drawn("absiu", Absiu::new(8, 2, &device)).forward(sizes));
    compare("mgfu", drawn("mgfu", Mgfu::new(8, 3, &device)).forward(input("mgfu.maps", [2, 8, 5, 6])));
    compare("aspp", drawn("aspp", Aspp::new([10, 4], &device)).forward(input("aspp.maps", [2, 10, 7, 6])));
}

#[test]
fn msrnet_has_the_values_of_torch() {
    let config = MsrnetConfig { width: 8, levels: vec![6, 10], groups: [2, 3] };
    let network = drawn("msrnet", config.init(&Device::flex()));
    compare("msrnet", network.forward(input("msrnet.pictures", [2, 3, 16, 12])));
}

#[test]
fn flash_vggt_has_the_values_of_torch() {
    let config = FlashVggtConfig { width: 16, num_heads: 2, depth: 2, patch: 2, specials: 2, outputs: 3, scale: 1.0 };
    let network = drawn("views", config.init(&Device::flex()));
    let descriptors = |ratio, whole: &[usize]| ViewKeys::Descriptors { ratio, whole: whole.to_vec() };
    let cases = [
        ("views.all", [6, 6], ViewKeys::All),
        ("views.whole", [6, 6], descriptors(2, &[0])),
        ("views.odd", [6, 6], descriptors(3, &[])),
        ("views.wide", [8, 4], descriptors(4, &[0, 2])),
    ];
    for (name, [height, width], keys) in cases {
        let pictures = input(&format!("views.pictures.{height}"), [6, 3, 2 * height, 2 * width]);
        compare(name, network.forward(pictures, 3, &keys));
    }
}

/// Blocks of one patch are the patches.
#[test]
fn descriptors_of_single_patches_are_all_tokens() {
    let config = FlashVggtConfig { width: 16, num_heads: 2, depth: 2, patch: 2, specials: 2, outputs: 3, scale: 1.0 };
    let network = drawn("views", config.init(&Device::flex()));
    let pictures = input("views.pictures.6", [6, 3, 12, 12]);
    let single = ViewKeys::Descriptors { ratio: 1, whole: Vec::new() };
    let [all, single] = [ViewKeys::All, single].map(|keys| values(network.forward(pictures.clone(), 3, &keys)));
    let (max, _) = differences(&all, &single);
    // The order of sums may differ.
    assert!(max <= 1e-5, "differs by {max}");
}
