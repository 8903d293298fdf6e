//! Tensors of the quantum Airy structure of ψ-classes: the coefficients of the recursion of
//! [`PsiNumbers`](super::PsiNumbers), as Kontsevich and Soibelman
//! (<https://arxiv.org/abs/1701.09137>) and Andersen, Borot, Chekhov and Orantin
//! (<https://arxiv.org/abs/1703.03307>) write one. For numbers `F[d] = ⟨τ_{d_1} … τ_{d_n}⟩`,
//!
//! ```text
//! F_g[i, J] = Σ_{j ∈ J} Σ_k B^i_{jk} F_g[k, J∖j]
//!           + ½ Σ_{ab} C^i_{ab} (F_{g-1}[a, b, J] + Σ F[a, I] F[b, I'])
//! B^i_{jk} = (2k+1)!! / ((2i+1)!! (2j-1)!!) where k = i + j - 1, and 0 elsewhere
//! C^i_{ab} = (2a+1)!! (2b+1)!! / (2i+1)!!   where a + b = i - 2, and 0 elsewhere
//! ```
//!
//! which is the recursion of Dijkgraaf, Verlinde and Verlinde, divided by `(2i+1)!!`.

/// An entry of `B` that is not 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BEntry {
    /// The exponent that the recursion takes away.
    pub i: usize,
    /// The exponent that it is joined with.
    pub j: usize,
    /// What the two become, `i + j - 1`.
    pub k: usize,
    /// `B^i_{jk}`.
    pub value: f64,
}

/// The entries of `B` that are not 0, of indices up to `largest`, by `i` and `j`. The numbers of
/// genus `g` with `n` points have indices up to `3g - 3 + n`.
#[must_use]
pub fn b_entries(largest: usize) -> Vec<BEntry> {
    let mut entries = Vec::new();
    for i in 0..=largest {
        for j in 0..=largest {
            let Some(k) = (i + j).checked_sub(1).filter(|k| *k <= largest) else { continue };
            entries.push(BEntry { i, j, k, value: b_value(i, j) });
        }
    }
    entries
}

/// `(2k+1)!! / ((2i+1)!! (2j-1)!!)` with `k = i + j - 1`, factor by factor.
fn b_value(i: usize, j: usize) -> f64 {
    match j {
        // (2i-1)!! / (2i+1)!!, with (-1)!! = 1.
        0 => 1.0 / (2 * i + 1) as f64,
        _ => (1..j).map(|t| (2 * (i + t) + 1) as f64 / (2 * t + 1) as f64).product(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::{PsiNumbers, Rational};

    fn double_factorial(odd: i128) -> i128 {
        (1..=odd).step_by(2).product()
    }

    #[test]
    fn entries_are_quotients_of_double_factorials() {
        for BEntry { i, j, k, value } in b_entries(9) {
            let odd = |n: usize, shift: i128| double_factorial(2 * n as i128 + shift);
            let exact = Rational::new(odd(k, 1), odd(i, 1) * odd(j, -1)).unwrap().to_f64();
            // A product of at most nine factors.
            assert!((value / exact - 1.0).abs() < 1e-14, "{i} {j}: {value} {exact}");
        }
    }

    #[test]
    fn indices_up_to_a_largest_have_the_published_number_of_entries() {
        // The reader of the paper's data has room for tensors of at most 1,428 entries, which is
        // that of indices up to 51; of indices up to 28 there are 462 (comments of
        // `data/TR_data.py` in <https://github.com/Baran-phys/DynamicFormer>).
        assert_eq!((b_entries(51).len(), b_entries(28).len()), (1_428, 462));
        let pairs: Vec<(usize, usize)> = b_entries(1).iter().map(|entry| (entry.i, entry.j)).collect();
        assert_eq!(pairs, [(0, 1), (1, 0), (1, 1)]);
    }

    #[test]
    fn numbers_with_an_exponent_of_at_most_one_follow_from_the_entries_alone() {
        let mut numbers = PsiNumbers::new();
        let entries = b_entries(8);
        for (g, n) in [(0, 4), (1, 2), (2, 3), (3, 2)] {
            for sample in numbers.all(g, n).unwrap() {
                let (i, rest) = sample.exponents.split_last().unwrap();
                // An exponent of at most 1 has no C.
                if *i > 1 {
                    continue;
                }
                let mut sum = 0.0;
                for (at, j) in rest.iter().enumerate() {
                    let Some(entry) = entries.iter().find(|entry| (entry.i, entry.j) == (*i, *j)) else { continue };
                    let mut joined = rest.to_vec();
                    joined[at] = entry.k;
                    sum += entry.value * numbers.number(&joined).unwrap().to_f64();
                }
                let expected = sample.value.to_f64();
                assert!((sum - expected).abs() <= 1e-13 * expected, "{:?}: {sum} {expected}", sample.exponents);
            }
        }
    }
}
