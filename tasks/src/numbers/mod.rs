//! Numbers that are defined by recursion: [`bitwise`] and [`PsiNumbers`], in exact arithmetic, and
//! the coefficients of the recursion of the latter ([`b_entries`]).

mod airy;
mod psi;
mod rational;

pub use airy::{BEntry, b_entries};
pub use psi::{PsiNumbers, PsiSample};
pub use rational::Rational;

/// `r(0) = 0`, `r(n) = n + (n AND r(n - 1))` for `n` = 0 to `last` (Hashemi, Corominas and
/// Giacchetto 2024, <https://arxiv.org/abs/2408.14915>).
#[must_use]
pub fn bitwise(last: u32) -> Vec<u64> {
    let mut all = vec![0];
    for n in 1..=u64::from(last) {
        let before = all.last().copied().unwrap_or(0);
        all.push(n + (n & before));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::bitwise;

    #[test]
    fn the_bitwise_sequence_follows_its_definition() {
        // By hand: r(3) = 3 + (3 AND 2) = 5, r(5) = 5 + (5 AND 8 = 0) …
        assert_eq!(bitwise(8), [0, 1, 2, 5, 8, 5, 10, 9, 16]);
        let all = bitwise(1_000);
        assert!((1..=1_000).all(|n| all[n] >= n as u64 && all[n] <= 2 * n as u64));
    }
}
