//! Activations, with the gradients of their learned scalars:
//!
//! | name | `f(x)` |
//! |---|---|
//! | `relu`, `silu`, `tanh` | without scalars |
//! | `snake` | `x + sin²(ax)/a` (<https://arxiv.org/abs/2006.08195>) |
//! | `dra:paper` | `x + a·sin²(x/b) + c·cos(bx) + d·tanh(bx)` |
//! | `dra:model` | `x + a·sin²(ax)/b + c·cos(bx) + d·tanh(bx)` |
//! | `dra:package` | `x + b·sin²(ax)/a + c·cos(ax) + d·tanh(bx)` |
//!
//! The dynamic range activator was published in three forms, in the paper, in the code of its model
//! and in the package `torch-dra`; its scalars start from `N(0, 1)`. A scalar that is divided by
//! counts as 1e-3 where it is smaller than that.

use crate::{Random, TaskError};
use std::{f64::consts::TAU, str::FromStr};

/// Activation of the hidden layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The larger of `x` and 0.
    Relu,
    /// `x σ(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// With a learned frequency.
    Snake,
    /// Dynamic range activator, of the paper.
    DraPaper,
    /// The same, of the code of the paper's model.
    DraModel,
    /// The same, of the package `torch-dra`.
    DraPackage,
}

/// Learned scalars `a`, `b`, `c` and `d`; those that an activation does not have count for nothing.
pub(super) type Scalars = [f64; 4];

/// What a scalar that is divided by counts as where it is nearer to 0.
const LEAST: f64 = 1e-3;

impl Activation {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::DraPaper, Self::DraModel, Self::DraPackage, Self::Snake, Self::Relu, Self::Silu, Self::Tanh];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Silu => "silu",
            Self::Tanh => "tanh",
            Self::Snake => "snake",
            Self::DraPaper => "dra:paper",
            Self::DraModel => "dra:model",
            Self::DraPackage => "dra:package",
        }
    }

    /// Number of learned scalars.
    pub(super) fn num_scalars(self) -> usize {
        match self {
            Self::Relu | Self::Silu | Self::Tanh => 0,
            Self::Snake => 1,
            Self::DraPaper | Self::DraModel | Self::DraPackage => 4,
        }
    }

    /// Scalars to start from.
    pub(super) fn initial(self, random: &mut Random) -> Scalars {
        match self {
            Self::Relu | Self::Silu | Self::Tanh => [0.0; 4],
            Self::Snake => [1.0, 0.0, 0.0, 0.0],
            Self::DraPaper | Self::DraModel | Self::DraPackage => [(); 4].map(|()| normal(random)),
        }
    }

    /// `f(x)`.
    pub(super) fn value(self, [a, b, c, d]: Scalars, x: f64) -> f64 {
        match self {
            Self::Relu => x.max(0.0),
            Self::Silu => x * sigmoid(x),
            Self::Tanh => x.tanh(),
            Self::Snake => x + (a * x).sin().powi(2) / divisor(a).0,
            Self::DraPaper => x + a * (x / divisor(b).0).sin().powi(2) + c * (b * x).cos() + d * (b * x).tanh(),
            Self::DraModel => x + a * (a * x).sin().powi(2) / divisor(b).0 + c * (b * x).cos() + d * (b * x).tanh(),
            Self::DraPackage => x + b * (a * x).sin().powi(2) / divisor(a).0 + c * (a * x).cos() + d * (b * x).tanh(),
        }
    }

    /// The derivatives of `f` by `x` and by the scalars.
    pub(super) fn derivatives(self, [a, b, c, d]: Scalars, x: f64) -> (f64, Scalars) {
        match self {
            Self::Relu => (f64::from(u8::from(x > 0.0)), [0.0; 4]),
            Self::Silu => {
                let gate = sigmoid(x);
                (gate * (1.0 + x * (1.0 - gate)), [0.0; 4])
            }
            Self::Tanh => (1.0 - x.tanh().powi(2), [0.0; 4]),
            Self::Snake => {
                let (square, slope) = sine_squared(a * x);
                let (by, by_a) = divisor(a);
                (1.0 + a * slope / by, [x * slope / by - square / by.powi(2) * by_a, 0.0, 0.0, 0.0])
            }
            Self::DraPaper => {
                let (by, by_b) = divisor(b);
                let (square, slope) = sine_squared(x / by);
                let ((sin, cos), bound, flat) = turned(b * x);
                let by_x = 1.0 + a * slope / by + b * (d * flat - c * sin);
                (by_x, [square, x * (d * flat - c * sin) - a * slope * x / by.powi(2) * by_b, cos, bound])
            }
            Self::DraModel => {
                let (by, by_b) = divisor(b);
                let (square, slope) = sine_squared(a * x);
                let ((sin, cos), bound, flat) = turned(b * x);
                let by_x = 1.0 + a * a * slope / by + b * (d * flat - c * sin);
                let by_second = x * (d * flat - c * sin) - a * square / by.powi(2) * by_b;
                (by_x, [(square + a * x * slope) / by, by_second, cos, bound])
            }
            Self::DraPackage => {
                let (by, by_a) = divisor(a);
                let (square, slope) = sine_squared(a * x);
                let (sin, cos) = (a * x).sin_cos();
                let (_, bound, flat) = turned(b * x);
                let by_x = 1.0 + a * b * slope / by - a * c * sin + b * d * flat;
                let by_first = b * (x * slope / by - square / by.powi(2) * by_a) - c * x * sin;
                (by_x, [by_first, square / by + x * d * flat, cos, bound])
            }
        }
    }
}

impl FromStr for Activation {
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self, TaskError> {
        Self::ALL.into_iter().find(|activation| activation.name() == name).ok_or_else(|| TaskError::Regression {
            found: format!("the activation `{name}`"),
            expected: format!("one of {}", Self::ALL.map(Self::name).join(", ")),
        })
    }
}

/// The scalar, or [`LEAST`] of its sign where it is nearer to 0, and what that changes by it.
fn divisor(scalar: f64) -> (f64, f64) {
    if scalar.abs() < LEAST { (LEAST.copysign(scalar), 0.0) } else { (scalar, 1.0) }
}

/// `sin²(x)` and its derivative.
fn sine_squared(x: f64) -> (f64, f64) {
    let (sin, cos) = x.sin_cos();
    (sin * sin, 2.0 * sin * cos)
}

/// Sine and cosine of `x`, its hyperbolic tangent, and the derivative of that.
fn turned(x: f64) -> ((f64, f64), f64, f64) {
    let bound = x.tanh();
    (x.sin_cos(), bound, 1.0 - bound * bound)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A number of `N(0, 1)` (Box and Muller).
fn normal(random: &mut Random) -> f64 {
    let uniform = |random: &mut Random| ((random.bits() >> 11) as f64 + 0.5) / 2_f64.powi(53);
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (TAU * uniform(random)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::FRAC_PI_2;

    #[test]
    fn the_forms_are_those_that_were_published() {
        const PI: f64 = 2.0 * FRAC_PI_2;
        let adds = |activation: Activation, scalars, x, expected: f64| {
            let added = activation.value(scalars, x) - x;
            assert!((added - expected).abs() < 1e-12, "{}: {added}", activation.name());
        };
        // By hand: sin² is 1 at π/2.
        adds(Activation::DraPackage, [1.0, 1.0, 0.0, 0.0], FRAC_PI_2, 1.0);
        adds(Activation::DraPaper, [3.0, 2.0, 0.0, 0.0], PI, 3.0);
        adds(Activation::DraModel, [0.5, 4.0, 0.0, 0.0], PI, 0.125);
        adds(Activation::Snake, [0.5, 0.0, 0.0, 0.0], PI, 2.0);
        // The cosine turns with a in the package, and with b elsewhere.
        adds(Activation::DraPackage, [2.0, 0.0, 1.0, 5.0], FRAC_PI_2, -1.0);
        adds(Activation::DraModel, [0.0, 2.0, 1.0, 0.0], FRAC_PI_2, -1.0);
        assert!(Activation::DraPaper.value([1.0, 0.0, 0.0, 0.0], 1.0).is_finite());
        assert_eq!("dra:model".parse::<Activation>().unwrap(), Activation::DraModel);
        assert!("gelu".parse::<Activation>().unwrap_err().to_string().contains("one of dra:paper"));
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        const STEP: f64 = 1e-6;
        let close = |found: f64, low: f64, high: f64, what: &str| {
            let expected = (high - low) / (2.0 * STEP);
            assert!((found - expected).abs() < 1e-7 * expected.abs().max(1.0), "{what}: {found}, {expected}");
        };
        let mut random = Random::new(3, "gradients", 0);
        for activation in Activation::ALL {
            for _ in 0..50 {
                let scalars = [(); 4].map(|()| normal(&mut random)).map(|scalar| scalar + 0.3_f64.copysign(scalar));
                let x = 2.0 * normal(&mut random);
                let (by_x, by_scalars) = activation.derivatives(scalars, x);
                let name = activation.name();
                close(by_x, activation.value(scalars, x - STEP), activation.value(scalars, x + STEP), name);
                for (index, found) in by_scalars.into_iter().enumerate() {
                    let moved = |by: f64| {
                        let mut scalars = scalars;
                        scalars[index] += by;
                        activation.value(scalars, x)
                    };
                    close(found, moved(-STEP), moved(STEP), &format!("{name}, scalar {index}"));
                }
            }
        }
    }

    #[test]
    fn scalars_start_as_they_should() {
        let mut random = Random::new(5, "scalars", 0);
        let all: Vec<f64> = (0..5_000).flat_map(|_| Activation::DraPaper.initial(&mut random)).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64;
        // Five standard deviations of 20,000 draws.
        assert!(mean.abs() < 0.036 && (variance - 1.0).abs() < 0.05, "{mean}, {variance}");
        assert_eq!(Activation::Snake.initial(&mut random)[..Activation::Snake.num_scalars()], [1.0]);
    }
}
