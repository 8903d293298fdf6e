//! Fractions of two 128-bit integers, in lowest terms. Arithmetic that leaves them is an error.

use std::fmt;

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

fn gcd(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.abs()
}

impl Rational {
    /// 0.
    pub const ZERO: Self = Self { numerator: 0, denominator: 1 };
    /// 1.
    pub const ONE: Self = Self { numerator: 1, denominator: 1 };

    /// `numerator / denominator`; `None` for a denominator of 0, and where the result does not fit.
    #[must_use]
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 || numerator == i128::MIN || denominator == i128::MIN {
            return None;
        }
        let divisor = gcd(numerator, denominator) * denominator.signum();
        Some(Self { numerator: numerator / divisor, denominator: denominator / divisor })
    }

    /// Numerator.
    #[must_use]
    pub fn numerator(self) -> i128 {
        self.numerator
    }

    /// Denominator, at least 1.
    #[must_use]
    pub fn denominator(self) -> i128 {
        self.denominator
    }

    /// Sum; `None` where it does not fit.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let divisor = gcd(self.denominator, other.denominator);
        let (own, others) = (self.denominator / divisor, other.denominator / divisor);
        let numerator = self.numerator.checked_mul(others)?.checked_add(other.numerator.checked_mul(own)?)?;
        Self::new(numerator, self.denominator.checked_mul(others)?)
    }

    /// Product; `None` where it does not fit.
    #[must_use]
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        // Reduced before it is multiplied, so that only a result that does not fit overflows.
        let a = gcd(self.numerator, other.denominator).max(1);
        let b = gcd(other.numerator, self.denominator).max(1);
        let numerator = (self.numerator / a).checked_mul(other.numerator / b)?;
        Self::new(numerator, (self.denominator / b).checked_mul(other.denominator / a)?)
    }

    /// The nearest f64, but for the rounding of both numbers and of the quotient.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

impl From<i128> for Rational {
    fn from(number: i128) -> Self {
        Self { numerator: number, denominator: 1 }
    }
}

impl fmt::Display for Rational {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            _ => write!(f, "{}/{}", self.numerator, self.denominator),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fraction() -> impl Strategy<Value = Rational> {
        (-1000_i128..1000, 1_i128..1000).prop_map(|(a, b)| Rational::new(a, b).unwrap())
    }

    proptest! {
        #[test]
        fn fractions_are_a_field(a in fraction(), b in fraction(), c in fraction()) {
            prop_assert_eq!(a.checked_add(b), b.checked_add(a));
            prop_assert_eq!(a.checked_add(b).unwrap().checked_add(c), b.checked_add(c).unwrap().checked_add(a));
            let (left, right) = (a.checked_mul(b.checked_add(c).unwrap()).unwrap(), a.checked_mul(b).unwrap().checked_add(a.checked_mul(c).unwrap()));
            prop_assert_eq!(Some(left), right);
            prop_assert!(gcd(a.numerator(), a.denominator()) == 1 && a.denominator() > 0);
            let negative = a.checked_mul(Rational::from(-1)).unwrap();
            prop_assert_eq!(a.checked_add(negative), Some(Rational::ZERO));
        }
    }

    #[test]
    fn what_does_not_fit_is_no_fraction() {
        let large = Rational::from(i128::MAX);
        assert_eq!(large.checked_add(Rational::ONE), None);
        assert_eq!(large.checked_mul(large), None);
        assert_eq!(large.checked_mul(Rational::new(1, i128::MAX).unwrap()), Some(Rational::ONE));
        assert_eq!(Rational::new(1, 0), None);
        assert_eq!(Rational::new(6, -4).unwrap().to_string(), "-3/2");
    }
}
