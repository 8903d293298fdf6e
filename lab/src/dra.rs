//! The dynamic range activator (Hashemi, Corominas and Giacchetto 2024,
//! <https://arxiv.org/abs/2408.14915>), with four learned scalars, in the three forms that were
//! published ([`retie_tasks::regression`] has them too, in f64).

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};
use retie_tasks::regression::Activation;

/// One of the three published forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraForm {
    /// Of the paper: `x + a·sin²(x/b) + c·cos(bx) + d·tanh(bx)`.
    Paper,
    /// Of the code of the paper's model: `x + a·sin²(ax)/b + c·cos(bx) + d·tanh(bx)`.
    Model,
    /// Of the package `torch-dra`: `x + b·sin²(ax)/a + c·cos(ax) + d·tanh(bx)`.
    Package,
}

impl DraForm {
    /// The form that an activation is; `None` for one that is none.
    #[must_use]
    pub fn of(activation: Activation) -> Option<Self> {
        match activation {
            Activation::DraPaper => Some(Self::Paper),
            Activation::DraModel => Some(Self::Model),
            Activation::DraPackage => Some(Self::Package),
            Activation::Relu | Activation::Silu | Activation::Tanh | Activation::Snake => None,
        }
    }
}

/// What a scalar that is divided by counts as where it is nearer to 0.
const LEAST: f32 = 1e-3;

/// The activation.
#[derive(Module, Debug)]
pub struct Dra {
    /// `a`, `b`, `c` and `d`, `[4]`.
    pub scalars: Param<Tensor<1>>,
    /// Which formula.
    #[module(skip)]
    pub form: DraForm,
}

impl Dra {
    /// An activation with the scalars 1, 1, 0 and 0; [`seeded`](crate::seeded) draws them.
    #[must_use]
    pub fn new(form: DraForm, device: &Device) -> Self {
        Self { scalars: Param::from_data([1.0_f32, 1.0, 0.0, 0.0], device), form }
    }

    /// The activation of every element of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let scalar = |index: usize| self.scalars.val().narrow(0, index, 1);
        let wide = |scalar: Tensor<1>| scalar.reshape([1; D]);
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| wide(scalar(index)));
        let turned = x.clone() * b.clone();
        let (squared, cosine) = match self.form {
            DraForm::Paper => (a * (x.clone() * wide(inverse(scalar(1)))).sin().square(), turned.clone().cos()),
            DraForm::Model => {
                ((x.clone() * a.clone()).sin().square() * (a * wide(inverse(scalar(1)))), turned.clone().cos())
            }
            DraForm::Package => {
                let turned = x.clone() * a;
                (turned.clone().sin().square() * (b * wide(inverse(scalar(0)))), turned.cos())
            }
        };
        x + squared + cosine * c + turned.tanh() * d
    }
}

/// The reciprocal of a scalar, or of [`LEAST`] with its sign where it is nearer to 0.
fn inverse(scalar: Tensor<1>) -> Tensor<1> {
    let near = scalar.clone().abs().lower_scalar(LEAST);
    let negative = scalar.clone().lower_scalar(0.0);
    let least = Tensor::full_like(&scalar.clone().detach(), LEAST).mask_fill(negative, -LEAST);
    scalar.mask_where(near, least).recip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;
    use retie_tasks::Random;
    use std::f32::consts::FRAC_PI_2;

    const FORMS: [DraForm; 3] = [DraForm::Paper, DraForm::Model, DraForm::Package];

    fn with(form: DraForm, scalars: [f32; 4], device: &Device) -> Dra {
        Dra { scalars: Param::from_data(scalars, device), form }
    }

    fn values(tensor: Tensor<1>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// The formulas, in f64.
    fn expected(form: DraForm, [a, b, c, d]: [f64; 4], x: f64) -> f64 {
        let sine = |by: f64| (by * x).sin().powi(2);
        match form {
            DraForm::Paper => x + a * sine(1.0 / b) + c * (b * x).cos() + d * (b * x).tanh(),
            DraForm::Model => x + a * sine(a) / b + c * (b * x).cos() + d * (b * x).tanh(),
            DraForm::Package => x + b * sine(a) / a + c * (a * x).cos() + d * (b * x).tanh(),
        }
    }

    #[test]
    fn every_form_has_its_values_and_four_scalars() {
        let device = Device::flex();
        let (x, scalars) = ([-2.0_f32, -0.3, 0.0, 0.7, 5.0], [0.8_f32, -1.3, 0.4, 0.9]);
        for form in FORMS {
            let dra = with(form, scalars, &device);
            assert_eq!(dra.num_params(), 4);
            let found = values(dra.forward(Tensor::from_data(x, &device)));
            for (x, found) in x.into_iter().zip(found) {
                let expected = expected(form, scalars.map(f64::from), f64::from(x));
                // A few f32 roundings of numbers up to 6.
                assert!((f64::from(found) - expected).abs() < 3e-6, "{form:?} {x}: {found} {expected}");
            }
            // sin²(π/2) = 1, with all but the first terms left out.
            let simple = with(form, [1.0, 1.0, 0.0, 0.0], &device);
            let found = values(simple.forward(Tensor::from_data([FRAC_PI_2], &device)))[0];
            assert!((found - FRAC_PI_2 - 1.0).abs() < 1e-6, "{form:?}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let device = Device::flex().autodiff();
        let (x, scalars) = ([-1.2_f64, 0.4, 2.5], [0.7_f64, -0.9, 0.5, 1.1]);
        for form in FORMS {
            let dra = with(form, scalars.map(|s| s as f32), &device);
            let input = Tensor::<1>::from_data(x.map(|x| x as f32), &device).require_grad();
            let grads = dra.forward(input.clone()).sum().backward();
            let by_scalars = values(dra.scalars.val().grad(&grads).unwrap());
            let by_x = values(input.grad(&grads).unwrap());
            let sum = |scalars: [f64; 4]| x.iter().map(|x| expected(form, scalars, *x)).sum::<f64>();
            for (index, found) in by_scalars.into_iter().enumerate() {
                let moved = |by: f64| sum(std::array::from_fn(|at| scalars[at] + if at == index { by } else { 0.0 }));
                let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                // f32 roundings of slopes below 10; those of the differences are smaller.
                assert!((f64::from(found) - slope).abs() < 1e-5, "{form:?} {index}: {found} {slope}");
            }
            for (x, found) in x.into_iter().zip(by_x) {
                let slope = (expected(form, scalars, x + 1e-6) - expected(form, scalars, x - 1e-6)) / 2e-6;
                assert!((f64::from(found) - slope).abs() < 1e-5, "{form:?} {x}: {found} {slope}");
            }
        }
    }

    #[test]
    fn a_scalar_near_zero_divides_as_a_small_one() {
        let device = Device::flex().autodiff();
        for form in FORMS {
            for [near, counts_as] in [[0.0, 1e-3], [-1e-5, -1e-3]] {
                let at = |by: f32| match form {
                    DraForm::Paper | DraForm::Model => [2e-3, by, 0.0, 0.0],
                    DraForm::Package => [by, 2e-3, 0.0, 0.0],
                };
                let found = |scalars: [f32; 4]| {
                    let dra = with(form, scalars, &device);
                    let y = dra.forward(Tensor::<1>::from_data([0.5_f32], &device));
                    let grads = y.clone().sum().backward();
                    (values(y)[0], values(dra.scalars.val().grad(&grads).unwrap()))
                };
                let (y, slopes) = found(at(near));
                assert!(y.is_finite() && slopes.iter().all(|slope| slope.is_finite()), "{form:?} {slopes:?}");
                if form == DraForm::Package {
                    // Its sine is of a·x, so that nothing is left of the quotient.
                    assert!((y - 0.5).abs() < 1e-6, "{y}");
                } else {
                    assert!((y - found(at(counts_as)).0).abs() < 1e-7, "{form:?} {y}");
                }
            }
        }
    }

    #[test]
    fn scalars_are_drawn_from_a_stream() {
        let drawn = |seed| {
            let dra = seeded(Dra::new(DraForm::Model, &Device::flex()), &mut Random::new(seed, "dra", 0));
            values(dra.scalars.val())
        };
        assert_eq!(drawn(1), drawn(1));
        assert!(drawn(1).iter().zip(drawn(2)).all(|(one, other)| *one != other));
        assert_eq!(DraForm::of(Activation::DraPackage), Some(DraForm::Package));
        assert_eq!(DraForm::of(Activation::Snake), None);
    }
}
