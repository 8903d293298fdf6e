//! Intersection numbers of ψ-classes on moduli spaces of curves, `⟨τ_{d_1} … τ_{d_n}⟩_g` with
//! `Σ d_i = 3g - 3 + n`, by the recursion of Dijkgraaf, Verlinde and Verlinde
//! (<https://doi.org/10.1016/0550-3213(91)90129-L>, equivalent to the conjecture of Witten that
//! Kontsevich proved).

use super::Rational;
use crate::TaskError;
use std::collections::HashMap;

/// A number with what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PsiSample {
    /// Genus.
    pub genus: usize,
    /// Exponents, descending, one for each marked point.
    pub exponents: Vec<usize>,
    /// The number.
    pub value: Rational,
}

/// Which exponent the recursion takes away; the result does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reduced {
    #[default]
    Smallest,
    #[cfg(test)]
    Largest,
}

/// Intersection numbers, each computed once.
#[derive(Clone, Debug, Default)]
pub struct PsiNumbers {
    reduced: Reduced,
    /// By descending exponents.
    known: HashMap<Vec<usize>, Rational>,
}

/// `first · (first + 2) · … · last`, of odd numbers.
fn odd_product(first: usize, last: usize) -> Option<i128> {
    (first..=last).step_by(2).try_fold(1_i128, |product, odd| product.checked_mul(odd as i128))
}

/// `(2a + 1)!! / (2c + 3)!!` with `a ≤ c`.
fn double_factorial_ratio(a: usize, c: usize) -> Option<Rational> {
    Rational::new(1, odd_product(2 * a + 3, 2 * c + 3)?)
}

/// Genus of exponents; `None` if no genus has numbers with these.
fn genus(exponents: &[usize]) -> Option<usize> {
    let three_g = (exponents.iter().sum::<usize>() + 3).checked_sub(exponents.len())?;
    let is_stable = exponents.len() >= 3 || (three_g >= 3 && !exponents.is_empty());
    (three_g.is_multiple_of(3) && is_stable).then_some(three_g / 3)
}

impl PsiNumbers {
    /// No number yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `⟨τ_{d_1} … τ_{d_n}⟩`, of the genus that follows from the exponents; 0 where there is none.
    ///
    /// # Errors
    /// A number on the way does not fit a fraction of two 128-bit integers.
    pub fn number(&mut self, exponents: &[usize]) -> Result<Rational, TaskError> {
        let mut sorted = exponents.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        self.sorted(sorted).ok_or_else(|| TaskError::Overflow {
            what: format!("the intersection number of the exponents {exponents:?}"),
        })
    }

    /// All numbers of a genus with a number of points, by their exponents.
    ///
    /// # Errors
    /// `2g - 2 + n` is not positive; those of [`PsiNumbers::number`].
    pub fn all(&mut self, genus: usize, points: usize) -> Result<Vec<PsiSample>, TaskError> {
        if points == 0 || 2 * genus + points <= 2 {
            return Err(TaskError::Unstable { genus, points });
        }
        let mut samples = Vec::new();
        for exponents in partitions(3 * genus + points - 3, points) {
            let value = self.number(&exponents)?;
            samples.push(PsiSample { genus, exponents, value });
        }
        Ok(samples)
    }

    /// Number of descending exponents.
    fn sorted(&mut self, exponents: Vec<usize>) -> Option<Rational> {
        if genus(&exponents).is_none() {
            return Some(Rational::ZERO);
        }
        match exponents.as_slice() {
            [0, 0, 0] => return Some(Rational::ONE),
            [1] => return Rational::new(1, 24),
            _ => {}
        }
        if let Some(known) = self.known.get(&exponents) {
            return Some(*known);
        }
        let value = self.reduce(&exponents)?;
        self.known.insert(exponents, value);
        Some(value)
    }

    /// With the exponent `k + 1` taken away:
    ///
    /// ```text
    /// (2k+3)!! ⟨τ_{k+1} Π τ_d⟩_g = Σ_j (2k+2d_j+1)!!/(2d_j-1)!! ⟨τ_{d_j+k} Π_{i≠j} τ_{d_i}⟩_g
    ///     + ½ Σ_{a+b=k-1} (2a+1)!!(2b+1)!! (⟨τ_a τ_b Π τ_d⟩_{g-1} + Σ_{I⊔J} ⟨τ_a τ_I⟩ ⟨τ_b τ_J⟩)
    /// ```
    fn reduce(&mut self, exponents: &[usize]) -> Option<Rational> {
        let (first, rest) = match self.reduced {
            Reduced::Smallest => exponents.split_last()?,
            #[cfg(test)]
            Reduced::Largest => exponents.split_first()?,
        };
        let mut sum = Rational::ZERO;
        for (index, exponent) in rest.iter().enumerate() {
            // d_j + k = d_j + first - 1.
            let Some(joined) = (exponent + first).checked_sub(1) else { continue };
            let mut others = rest.to_vec();
            others[index] = joined;
            others.sort_unstable_by(|a, b| b.cmp(a));
            // (2k+2d+1)!! / ((2d-1)!! (2k+3)!!), with 2k + 3 = 2 first + 1.
            let factor = Rational::new(odd_product(2 * exponent + 1, 2 * joined + 1)?, odd_product(3, 2 * first + 1)?)?;
            sum = sum.checked_add(factor.checked_mul(self.sorted(others)?)?)?;
        }
        // a + b = k - 1 = first - 2.
        for a in 0..first.saturating_sub(1) {
            let b = first - 2 - a;
            let inner = self.split(a, b, rest)?;
            let factor =
                double_factorial_ratio(a, first - 1)?.checked_mul(Rational::from(odd_product(3, 2 * b + 1)?))?;
            sum = sum.checked_add(factor.checked_mul(inner)?.checked_mul(Rational::new(1, 2)?)?)?;
        }
        Some(sum)
    }

    /// `⟨τ_a τ_b Π τ_d⟩_{g-1} + Σ_{I⊔J} ⟨τ_a τ_I⟩ ⟨τ_b τ_J⟩`.
    fn split(&mut self, a: usize, b: usize, rest: &[usize]) -> Option<Rational> {
        let with = |exponents: &[usize], more: &[usize]| {
            let mut all = [exponents, more].concat();
            all.sort_unstable_by(|a, b| b.cmp(a));
            all
        };
        let mut sum = self.sorted(with(rest, &[a, b]))?;
        for subset in 0_u32..1 << rest.len() {
            let part = |inside: bool| -> Vec<usize> {
                let has = |index: usize| (subset >> index & 1 == 1) == inside;
                rest.iter().enumerate().filter(|(index, _)| has(*index)).map(|(_, d)| *d).collect()
            };
            let (left, right) = (with(&part(true), &[a]), with(&part(false), &[b]));
            // The genus of one part fixes that of the other.
            if genus(&left).is_some() && genus(&right).is_some() {
                sum = sum.checked_add(self.sorted(left)?.checked_mul(self.sorted(right)?)?)?;
            }
        }
        Some(sum)
    }
}

/// Descending lists of `parts` numbers from 0 on with the sum `total`.
fn partitions(total: usize, parts: usize) -> Vec<Vec<usize>> {
    fn fill(total: usize, parts: usize, largest: usize, list: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if parts == 0 {
            if total == 0 {
                all.push(list.clone());
            }
            return;
        }
        for part in (0..=total.min(largest)).rev() {
            if part * parts < total {
                break;
            }
            list.push(part);
            fill(total - part, parts - 1, part, list, all);
            list.pop();
        }
    }
    let mut all = Vec::new();
    fill(total, parts, total, &mut Vec::new(), &mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(exponents: &[usize]) -> String {
        PsiNumbers::new().number(exponents).unwrap().to_string()
    }

    #[test]
    fn published_numbers_are_met() {
        // Witten 1991 and Faber's tables.
        let known: [(&[usize], &str); 10] = [
            (&[0, 0, 0], "1"),
            (&[1], "1/24"),
            (&[4], "1/1152"),
            (&[2, 3], "29/5760"),
            (&[1, 4], "1/384"),
            (&[0, 5], "1/1152"),
            (&[2, 2, 2], "7/240"),
            (&[7], "1/82944"),
            (&[1, 1], "1/24"),
            (&[0, 0, 1, 0], "1"),
        ];
        for (exponents, value) in known {
            assert_eq!(number(exponents), value, "{exponents:?}");
        }
        // No genus has these.
        assert_eq!(number(&[2]), "0");
        assert_eq!(number(&[0, 0]), "0");
    }

    #[test]
    fn one_point_numbers_have_their_closed_form() {
        // ⟨τ_{3g-2}⟩ = 1 / (24^g g!).
        let mut numbers = PsiNumbers::new();
        let mut expected = Rational::ONE;
        for g in 1..=8 {
            expected = expected.checked_mul(Rational::new(1, 24 * g).unwrap()).unwrap();
            assert_eq!(numbers.number(&[3 * g as usize - 2]).unwrap(), expected, "{g}");
        }
    }

    /// Exponents of genus at most 3 with at most 4 points.
    fn small() -> Vec<Vec<usize>> {
        let spaces = (0..=3).flat_map(|g: usize| (1..=4).map(move |n: usize| (g, n)));
        spaces.filter(|(g, n)| 2 * g + n > 2).flat_map(|(g, n)| partitions(3 * g + n - 3, n)).collect()
    }

    #[test]
    fn the_string_and_dilaton_equations_hold_and_any_point_can_be_taken_away() {
        // With the largest exponent taken away neither equation is a case of the recursion.
        let mut by_largest = PsiNumbers { reduced: Reduced::Largest, ..PsiNumbers::default() };
        let mut by_smallest = PsiNumbers::new();
        for exponents in small() {
            let value = by_largest.number(&exponents).unwrap();
            assert_eq!(by_smallest.number(&exponents).unwrap(), value, "{exponents:?}");
            let with = |more: usize| [exponents.as_slice(), &[more]].concat();
            let mut string = Rational::ZERO;
            for (index, exponent) in exponents.iter().enumerate().filter(|(_, exponent)| **exponent > 0) {
                let mut lower = exponents.clone();
                lower[index] = exponent - 1;
                string = string.checked_add(by_largest.number(&lower).unwrap()).unwrap();
            }
            assert_eq!(by_largest.number(&with(0)).unwrap(), string, "string, {exponents:?}");
            let euler = 2 * genus(&exponents).unwrap() as i128 - 2 + exponents.len() as i128;
            let dilaton = value.checked_mul(Rational::from(euler)).unwrap();
            assert_eq!(by_largest.number(&with(1)).unwrap(), dilaton, "dilaton, {exponents:?}");
        }
    }

    #[test]
    fn all_numbers_up_to_genus_eight_and_five_points_are_exact_fractions() {
        let mut numbers = PsiNumbers::new();
        let mut count = |genus| (1..=5).map(|points| numbers.all(genus, points).unwrap().len()).sum::<usize>();
        assert_eq!((1..=8).map(&mut count).collect::<Vec<_>>(), [18, 40, 78, 135, 219, 333, 487, 686]);
        assert!(numbers.known.values().all(|value| value.numerator() > 0));
        assert!(matches!(numbers.all(0, 2), Err(TaskError::Unstable { .. })));
    }

    #[test]
    fn partitions_are_all_descending_lists() {
        assert_eq!(partitions(4, 3), [vec![4, 0, 0], vec![3, 1, 0], vec![2, 2, 0], vec![2, 1, 1]]);
        assert_eq!(partitions(0, 2), [vec![0, 0]]);
    }
}
