//! DynamicFormer beside torch, its symmetries, and fits of small sizes.

#![expect(clippy::unwrap_used, reason = "what fails here is a test")]

mod support;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Gradients, Tensor},
};
use retie_lab::{
    DraForm, LabError, Noise,
    dynamicformer::{
        DynamicFormer, DynamicFormerConfig, FittedFormer, FormerSettings, Inputs, cross_correlation, r_squared,
    },
    seeded,
};
use retie_tasks::{
    Random,
    numbers::{PsiNumbers, PsiSample, Rational},
};
use retie_testing::{Golden, differences, values};
use support::{golden, loaded};

const FORMS: [(&str, DraForm); 3] =
    [("paper", DraForm::Paper), ("model", DraForm::Model), ("package", DraForm::Package)];

fn tiny(form: DraForm) -> DynamicFormerConfig {
    DynamicFormerConfig {
        largest_exponent: 6,
        element_size: 8,
        mlp_size: 12,
        hidden_size: 16,
        intermediate_size: 24,
        num_attention_heads: 2,
        norm_groups: 4,
        dropout: 0.0,
        form,
    }
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{what} {index}: {found} {expected}");
    }
}

fn samples_of(golden: &Golden) -> Vec<PsiSample> {
    let (spaces, _) = golden.ints("golden.spaces");
    let (exponents, shape) = golden.ints("golden.exponents");
    let rows = spaces.chunks(2).zip(exponents.chunks(shape[1]));
    let sample = |(space, row): (&[i64], &[i64])| PsiSample {
        genus: space[0] as usize,
        exponents: row.iter().filter(|exponent| **exponent >= 0).map(|exponent| *exponent as usize).collect(),
        value: Rational::ONE,
    };
    rows.map(sample).collect()
}

/// Compares the gradients of a module with those of a file, within `tolerance` of the largest
/// element of each (at least 1e-2).
fn assert_gradients<M: Module>(module: &M, grads: &Gradients, golden: &Golden, tolerance: f32) {
    let mut compare = Compare { grads, golden, tolerance, path: Vec::new(), count: 0 };
    module.visit(&mut compare);
    assert_eq!(compare.count, golden.names_after("golden.grad.").len());
}

struct Compare<'g> {
    grads: &'g Gradients,
    golden: &'g Golden,
    tolerance: f32,
    path: Vec<String>,
    count: usize,
}

impl ModuleVisitor for Compare<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        if name.contains("running_") {
            return;
        }
        let expected = self.golden.floats(&format!("golden.grad.{name}"));
        let found = param.val().grad(self.grads).map_or_else(|| vec![0.0; expected.len()], values);
        let most = expected.iter().fold(1e-2_f32, |most, value| most.max(value.abs()));
        let apart = differences(&found, &expected).0;
        assert!(apart <= self.tolerance * most, "{name}: {apart} of {most}");
        self.count += 1;
    }
}

#[test]
fn values_and_gradients_are_those_of_torch() {
    let device = Device::flex().autodiff();
    let golden = golden("dynamicformer");
    let samples = samples_of(&golden);
    let samples: Vec<&PsiSample> = samples.iter().collect();
    for (name, form) in FORMS {
        let network = loaded(DynamicFormer::new(&tiny(form), &device), &golden);
        let inputs = Inputs::new(&samples, &tiny(form), &device).unwrap();
        // Samples of a space share its entries; the file has them for each sample.
        assert_eq!(inputs.entries.dims()[0], 4);
        let entries = inputs.entries.clone().select(0, inputs.space.clone());
        // One f32 rounding of numbers below 8.
        assert_close(&values(entries), &golden.floats("golden.entries"), 1e-6, "entries");

        let output = network.forward(&inputs, &mut Noise::default());
        let correlation = cross_correlation(output.point_memory.clone(), output.entry_memory.clone());
        let of = |key: &str| golden.floats(&format!("golden.{name}.{key}"));
        // f32 through two batch norms of five samples, beside f64.
        assert_close(&values(output.prediction.clone()), &of("prediction"), 2e-4, name);
        assert_close(&values(output.point_memory), &of("points"), 1e-4, name);
        assert_close(&values(output.entry_memory), &of("entries"), 1e-4, name);
        assert_close(&values(correlation.clone()), &of("correlation"), 1e-2, name);
        if form == DraForm::Paper {
            let loss = output.prediction.sub_scalar(1.0).abs().sum() + correlation;
            assert_gradients(&network, &loss.backward(), &golden, 2e-3);
        }
    }
}

#[test]
fn the_order_of_entries_and_points_does_not_matter() {
    let device = Device::flex();
    let config = tiny(DraForm::Model);
    let network = seeded(DynamicFormer::new(&config, &device), &mut Random::new(5, "test", 0));
    let samples = PsiNumbers::new().all(1, 3).unwrap();
    let turned: Vec<PsiSample> = samples
        .iter()
        .map(|sample| PsiSample { exponents: sample.exponents.iter().rev().copied().collect(), ..sample.clone() })
        .collect();
    let predict = |inputs: &Inputs| values(network.forward(inputs, &mut Noise::default()).prediction);
    let inputs = |samples: &[PsiSample]| Inputs::new(&samples.iter().collect::<Vec<_>>(), &config, &device).unwrap();
    let expected = predict(&inputs(&samples));
    assert!(expected.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-3), "{expected:?}");
    // f32 sums in another order.
    let tolerance = 1e-4 * expected.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    assert_close(&predict(&inputs(&turned)), &expected, tolerance, "points");
    let mut shuffled = inputs(&samples);
    shuffled.entries = shuffled.entries.flip([1]);
    shuffled.entry_mask = shuffled.entry_mask.flip([1]);
    assert_close(&predict(&shuffled), &expected, tolerance, "entries");
    // Padding, and other samples, do not matter either.
    let others: Vec<PsiSample> = [samples.clone(), PsiNumbers::new().all(2, 5).unwrap()].concat();
    let others: Vec<PsiSample> = others.into_iter().filter(|sample| sample.exponents.iter().all(|d| *d <= 6)).collect();
    assert_close(&predict(&inputs(&others))[..samples.len()], &expected, tolerance, "padding");
    // The entries do matter.
    let mut without = inputs(&samples);
    without.entries = without.entries.mul_scalar(0.5);
    let found = predict(&without);
    assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() > tolerance), "{found:?}");
}

fn numbers(genus: usize, points: usize) -> Vec<PsiSample> {
    let mut numbers = PsiNumbers::new();
    (1..=genus).flat_map(|g| (1..=points).flat_map(|n| numbers.all(g, n).unwrap()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_fit_lowers_the_error_and_follows_from_its_seed() {
    let device = Device::flex().autodiff();
    let all = numbers(2, 3);
    let samples: Vec<&PsiSample> = all.iter().collect();
    let config = DynamicFormerConfig { dropout: 0.1, ..tiny(DraForm::Model) };
    let fit = |seed: u64, epochs: usize| {
        let settings = FormerSettings { epochs, batch_size: 16, learning_rate: 3e-3, seed };
        FittedFormer::fit(&samples, &config, &settings, &device).unwrap()
    };
    let fitted = fit(1, 60);
    let (first, last) = (fitted.errors[0], fitted.errors[59]);
    assert!(last < 0.4 * first, "{first} {last}");
    let predictions = fitted.predict(&samples).unwrap();
    let found = r_squared(&samples, &predictions);
    assert!(found > 0.8, "{found}");
    let (one, same, other) = (fit(2, 3), fit(2, 3), fit(3, 3));
    assert_eq!(one.errors, same.errors);
    assert_eq!(one.predict(&samples).unwrap(), same.predict(&samples).unwrap());
    assert_ne!(one.errors, other.errors);
}

#[test]
fn settings_and_samples_that_do_not_do_are_refused() {
    let device = Device::flex().autodiff();
    let all = numbers(2, 2);
    let samples: Vec<&PsiSample> = all.iter().collect();
    let settings = FormerSettings { epochs: 1, ..FormerSettings::published(0) };
    let refused = |samples: &[&PsiSample], config: DynamicFormerConfig, settings: &FormerSettings| {
        FittedFormer::fit(samples, &config, settings, &device).unwrap_err()
    };
    let config = tiny(DraForm::Paper);
    let message =
        |samples: &[&PsiSample], config, settings: &FormerSettings| refused(samples, config, settings).to_string();
    assert_eq!(
        message(&samples[..1], config.clone(), &settings),
        "1 samples, expected at least 2, for norms over a batch"
    );
    assert!(
        message(&samples, DynamicFormerConfig { num_attention_heads: 3, ..config.clone() }, &settings)
            .contains("3 heads")
    );
    assert!(
        message(&samples, DynamicFormerConfig { dropout: 1.0, ..config.clone() }, &settings).contains("a dropout of 1")
    );
    assert!(
        message(&samples, DynamicFormerConfig { mlp_size: 0, ..config.clone() }, &settings).contains("a width of 0")
    );
    let small = DynamicFormerConfig { largest_exponent: 3, ..config.clone() };
    assert!(message(&samples, small, &settings).starts_with("an exponent of 5, expected at most 3"));
    assert!(message(&samples, config.clone(), &FormerSettings { epochs: 0, ..settings.clone() }).contains("0 epochs"));
    let wild = FormerSettings { learning_rate: f64::INFINITY, ..settings.clone() };
    assert!(message(&samples, config.clone(), &wild).contains("a learning rate of inf"));
    let wild = FormerSettings { learning_rate: 1e38, epochs: 3, ..settings };
    assert!(matches!(refused(&samples, config, &wild), LabError::Diverged { .. }));
}

#[test]
fn correlation_is_least_for_equal_and_independent_tokens() {
    let device = Device::flex();
    // Columns of mean 0 and variance 1 that are orthogonal: C is the unit matrix.
    let independent = Tensor::<2>::from_data([[1.0_f32, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], &device);
    let loss = |left: &Tensor<2>, right: &Tensor<2>| values(cross_correlation(left.clone(), right.clone()))[0];
    // The variance's 1e-5.
    assert!(loss(&independent, &independent) < 1e-8);
    let opposite = independent.clone().neg();
    assert!((loss(&independent, &opposite) - 8.0).abs() < 1e-3);
    // Both columns equal: C is all ones, with two elements beside the diagonal.
    let equal = independent.narrow(1, 0, 1).repeat_dim(1, 2);
    assert!((loss(&equal, &equal) - 1.0).abs() < 1e-3);
}
