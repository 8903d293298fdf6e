//! Parameters of networks on pictures beside those of the published ones, whose authors' code was
//! counted where a paper rounds.

use burn::{module::Module, tensor::Device};
use retie_lab::vision::{
    hornet::HornetConfig,
    msrnet::{Absiu, Aspp, Mgfu},
    num_parameters,
    rgt::RgtConfig,
    sret::SretConfig,
};

#[test]
fn sret_has_the_published_parameters() {
    let counts = [SretConfig::tiny(), SretConfig::larger_tiny(), SretConfig::small()]
        .map(|config| num_parameters(&config.init(&Device::flex())));
    assert_eq!(counts, [4_755_979, 4_988_024, 20_899_692]);
}

#[test]
fn rgt_has_the_published_parameters() {
    let at = |upscale| {
        let of = |config: RgtConfig| num_parameters(&RgtConfig { upscale, ..config }.init(&Device::flex()));
        [of(RgtConfig::small()), of(RgtConfig::base())]
    };
    assert_eq!([at(2), at(4)], [[10_051_055, 13_217_831], [10_198_767, 13_365_543]]);
}

#[test]
fn hornet_has_the_published_parameters() {
    let counts = [HornetConfig::tiny(), HornetConfig::small(), HornetConfig::base()]
        .map(|config| num_parameters(&config.init(&Device::flex())));
    assert_eq!(counts, [22_409_512, 49_528_264, 87_256_680]);
}

#[test]
fn modules_of_msrnet_have_the_published_parameters() {
    let device = Device::flex();
    let counts = [
        num_parameters(&Mgfu::new(64, 6, &device)),
        num_parameters(&Absiu::new(64, 4, &device)),
        num_parameters(&Aspp::new([512, 64], &device)),
    ];
    assert_eq!(counts, [422_688, 262_643, 238_592]);
}

/// burn counts the running means and variances of a batch norm, which are not trained.
#[test]
fn statistics_are_no_parameters() {
    let module = Aspp::new([6, 4], &Device::flex());
    // Batch norms of 2·4, 4, 4, 4, 4, 4 and 4 channels.
    assert_eq!(module.num_params() - num_parameters(&module), 2 * (8 + 6 * 4));
}
