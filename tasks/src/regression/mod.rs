//! Regression of numbers that are defined by recursion: a small network is fitted to the first of
//! them, and asked for those beyond. What it makes of these depends on its activation (Hashemi,
//! Corominas and Giacchetto 2024, <https://arxiv.org/abs/2408.14915>).
//!
//! Everything is f64 and follows from a seed. Of numbers over many orders of magnitude the target
//! is the logarithm ([`psi_rows`]).

mod activation;
mod adamw;
mod network;

pub use activation::Activation;

use crate::{Random, TaskError, numbers::PsiSample};
use adamw::AdamW;
use network::Network;

/// A number with what it is to be predicted from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Features.
    pub features: Vec<f64>,
    /// What is predicted.
    pub target: f64,
}

/// How a network is made and fitted.
#[derive(Clone, Debug)]
pub struct FitSettings {
    /// Shifts and scales features and targets to mean 0 and variance 1 on the fitted rows. As they
    /// are, a line is what a network of large inputs finds first, and what it goes on with.
    pub standardise: bool,
    /// Activation of every hidden layer; its scalars are learned, for each layer.
    pub activation: Activation,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Passes over the rows, in their order.
    pub epochs: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Learning rate of AdamW (β₁ 0.9, β₂ 0.999, weight decay 0.01).
    pub learning_rate: f64,
    /// Seed of the initial weights: `U(-1/√n, 1/√n)` of `n` inputs.
    pub seed: u64,
}

/// A fitted network.
#[derive(Clone, Debug)]
pub struct Regression {
    network: Network,
    parameters: Vec<f64>,
    inputs: Vec<Scale>,
    target: Scale,
}

/// Mean and standard deviation of what is made to have 0 and 1.
#[derive(Clone, Copy, Debug)]
struct Scale {
    mean: f64,
    deviation: f64,
}

impl Scale {
    const NONE: Self = Self { mean: 0.0, deviation: 1.0 };

    fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Self {
        let count = values.len() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let deviation = (values.map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
        // A feature that does not vary is 0.
        Self { mean, deviation: if deviation > 0.0 { deviation } else { 1.0 } }
    }

    fn scaled(self, value: f64) -> f64 {
        (value - self.mean) / self.deviation
    }
}

impl Regression {
    /// Fits a network to `rows` by the mean squared error.
    ///
    /// # Errors
    /// Rows with different features, none, or one that is not finite; settings of 0; losses that
    /// are not finite.
    pub fn fit(rows: &[Row], settings: &FitSettings) -> Result<Self, TaskError> {
        check(rows, settings)?;
        let num_features = rows[0].features.len();
        let (inputs, target) = match settings.standardise {
            true => {
                let column = |index: usize| Scale::of(rows.iter().map(move |row| row.features[index]));
                ((0..num_features).map(column).collect(), Scale::of(rows.iter().map(|row| row.target)))
            }
            false => (vec![Scale::NONE; num_features], Scale::NONE),
        };
        let scaled: Vec<(Vec<f64>, f64)> =
            rows.iter().map(|row| (scaled(&inputs, &row.features), target.scaled(row.target))).collect();

        let network = Network::new(inputs.len(), &settings.hidden, settings.activation);
        let mut parameters = network.initial(&mut Random::new(settings.seed, "regression", 0));
        let mut optimizer = AdamW::new(settings.learning_rate, parameters.len());
        let mut gradient = vec![0.0; parameters.len()];
        for epoch in 0..settings.epochs {
            let mut loss = 0.0;
            for batch in scaled.chunks(settings.batch_size) {
                gradient.fill(0.0);
                for (features, target) in batch {
                    loss += network.add_gradient(&parameters, features, *target, batch.len(), &mut gradient);
                }
                optimizer.step(&mut parameters, &gradient);
            }
            if !loss.is_finite() {
                return Err(TaskError::Diverged { epoch: epoch + 1, learning_rate: settings.learning_rate });
            }
        }
        Ok(Self { network, parameters, inputs, target })
    }

    /// What is predicted of `features`.
    #[must_use]
    pub fn predict(&self, features: &[f64]) -> f64 {
        let output = self.network.output(&self.parameters, &scaled(&self.inputs, features));
        self.target.mean + self.target.deviation * output
    }

    /// Coefficient of determination on `rows`: 1 for what is right, 0 for what is no better than
    /// the mean of their targets, and negative for what is worse.
    #[must_use]
    pub fn r_squared(&self, rows: &[Row]) -> f64 {
        let mean = rows.iter().map(|row| row.target).sum::<f64>() / rows.len() as f64;
        let squares = |of: &dyn Fn(&Row) -> f64| rows.iter().map(|row| of(row).powi(2)).sum::<f64>();
        1.0 - squares(&|row| row.target - self.predict(&row.features)) / squares(&|row| row.target - mean)
    }
}

fn scaled(scales: &[Scale], features: &[f64]) -> Vec<f64> {
    scales.iter().zip(features).map(|(scale, feature)| scale.scaled(*feature)).collect()
}

fn check(rows: &[Row], settings: &FitSettings) -> Result<(), TaskError> {
    let bad = |found: String, expected: &str| Err(TaskError::Regression { found, expected: expected.to_owned() });
    let Some(first) = rows.first() else { return bad("no row".to_owned(), "at least one") };
    for (index, row) in rows.iter().enumerate() {
        if row.features.len() != first.features.len() {
            let found = format!("{} features in row {index}", row.features.len());
            return bad(found, &format!("{}, as in the first", first.features.len()));
        }
        if let Some(found) = row.features.iter().chain([&row.target]).find(|value| !value.is_finite()) {
            return bad(format!("{found} in row {index}"), "finite numbers");
        }
    }
    if settings.hidden.contains(&0) || settings.batch_size == 0 || settings.epochs == 0 {
        return bad("0 for a width, `batch_size` or `epochs`".to_owned(), "at least 1");
    }
    match settings.learning_rate > 0.0 && settings.learning_rate.is_finite() {
        true => Ok(()),
        false => bad(format!("a learning rate of {}", settings.learning_rate), "a positive number"),
    }
}

/// `r(n)` for `n` = 0 to the last of `values`, each to be predicted from `n`
/// ([`bitwise`](crate::numbers::bitwise)).
#[must_use]
pub fn bitwise_rows(values: &[u64]) -> Vec<Row> {
    let row = |(n, value): (usize, &u64)| Row { features: vec![n as f64], target: *value as f64 };
    values.iter().enumerate().map(row).collect()
}

/// Intersection numbers, the logarithm of each to be predicted from eleven features of genus and
/// exponents: sizes of the factorials that the recursion divides by, and what the exponents are.
#[must_use]
pub fn psi_rows(samples: &[PsiSample]) -> Vec<Row> {
    let log_factorial = |n: usize| (2..=n).map(|k| (k as f64).ln()).sum::<f64>();
    let log_double_factorial = |d: usize| (1..=d).map(|k| ((2 * k + 1) as f64).ln()).sum::<f64>();
    let row = |PsiSample { genus, exponents, value }: &PsiSample| {
        let (g, n) = (*genus, exponents.len());
        let count = |of: usize| exponents.iter().filter(|exponent| **exponent == of).count() as f64;
        let features = vec![
            g as f64,
            n as f64,
            (g * n) as f64,
            log_factorial(g),
            log_factorial((3 * g + n).saturating_sub(3)),
            exponents.iter().map(|d| log_double_factorial(*d)).sum(),
            exponents.iter().map(|d| log_factorial(*d)).sum(),
            count(0),
            count(1),
            count(2),
            exponents.iter().max().map_or(0.0, |most| *most as f64),
        ];
        Row { features, target: value.to_f64().ln() }
    };
    samples.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::{PsiNumbers, bitwise};

    fn settings(activation: Activation) -> FitSettings {
        let (hidden, epochs, batch_size, learning_rate) = (vec![16, 8], 400, 10, 3e-3);
        FitSettings { standardise: true, activation, hidden, epochs, batch_size, learning_rate, seed: 1 }
    }

    #[test]
    fn every_activation_fits_a_line() {
        let rows: Vec<Row> =
            (0..40).map(|x| Row { features: vec![f64::from(x), 7.0], target: 3.0 - 2.0 * f64::from(x) }).collect();
        for activation in Activation::ALL {
            let fitted = Regression::fit(&rows, &settings(activation)).unwrap();
            let (fit, name) = (fitted.r_squared(&rows), activation.name());
            assert!(fit > 0.99, "{name}: {fit}");
            let again = Regression::fit(&rows, &settings(activation)).unwrap();
            assert_eq!(again.predict(&[3.5, 7.0]).to_bits(), fitted.predict(&[3.5, 7.0]).to_bits(), "{name}");
        }
    }

    #[test]
    fn logarithms_of_intersection_numbers_are_predicted() {
        let mut numbers = PsiNumbers::new();
        let samples: Vec<PsiSample> = (1..=4).flat_map(|g| numbers.all(g, 3).unwrap()).collect();
        let rows = psi_rows(&samples);
        assert!(rows.iter().all(|row| row.features.len() == 11));
        // ⟨τ_4⟩ of genus 2 is 1/1152.
        let one = psi_rows(&numbers.all(2, 1).unwrap());
        assert!((one[0].target + 1152_f64.ln()).abs() < 1e-12);
        let fitted = Regression::fit(&rows, &settings(Activation::Snake)).unwrap();
        assert!(fitted.r_squared(&rows) > 0.99);
    }

    #[test]
    fn rows_and_settings_that_cannot_be_fitted_are_refused() {
        let rows = bitwise_rows(&bitwise(8));
        assert_eq!(rows[3], Row { features: vec![3.0], target: 5.0 });
        let refused = |rows: &[Row], change: fn(&mut FitSettings)| {
            let mut settings = settings(Activation::Tanh);
            change(&mut settings);
            Regression::fit(rows, &settings).unwrap_err().to_string()
        };
        assert!(refused(&[], |_| ()).contains("no row"));
        assert!(refused(&rows, |s| s.hidden = vec![4, 0]).contains("at least 1"));
        assert!(refused(&rows, |s| s.learning_rate = -1.0).contains("a learning rate of -1"));
        assert!(refused(&rows, |s| s.learning_rate = 1e300).contains("not finite after epoch"));
        let mut bad = rows.clone();
        bad[2].target = f64::NAN;
        assert!(refused(&bad, |_| ()).contains("NaN in row 2"));
        bad[2].features.push(1.0);
        assert!(refused(&bad, |_| ()).contains("2 features in row 2"));
    }
}
