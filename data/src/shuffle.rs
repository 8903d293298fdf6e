//! The order of the rows in an epoch: a Fisher–Yates shuffle
//! (<https://en.wikipedia.org/wiki/Fisher%E2%80%93Yates_shuffle>) drawn from ChaCha20
//! (<https://cr.yp.to/chacha/chacha-20080128.pdf>), key from the seed and stream number from the
//! epoch.
//!
//! The algorithm is written out here, not taken from `rand`, whose shuffle may change between
//! versions: a resumed run must find the order that it left. The draws below a bound are unbiased
//! (<https://arxiv.org/abs/1805.10941>).

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Sets this use of a seed apart from others: the last 24 bytes of the key.
const PURPOSE: &[u8; 24] = b"retie: order of the rows";

/// `0..num_rows`, each once, in the order of `epoch`.
pub(crate) fn permutation(num_rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..].copy_from_slice(PURPOSE);
    let mut rng = ChaCha20Rng::from_seed(key);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..num_rows).collect();
    for last in (1..num_rows).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// A uniform number below `bound`, which is at least 1.
fn below(rng: &mut ChaCha20Rng, bound: u64) -> u64 {
    // The lowest `2^64 mod bound` values of the low half would give some numbers one draw more than
    // others.
    let rejected = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= rejected {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // From tests/golden/make_permutations.py, whose keystream is OpenSSL's.
    const GOLDEN_0_0: [usize; 12] = [0, 10, 8, 7, 2, 9, 5, 6, 1, 4, 11, 3];
    const GOLDEN_42_0: [usize; 12] = [9, 10, 5, 0, 2, 11, 7, 3, 6, 8, 4, 1];
    const GOLDEN_42_7: [usize; 12] = [4, 0, 7, 1, 3, 10, 9, 6, 2, 5, 8, 11];

    #[test]
    fn the_order_is_fixed_for_ever() {
        assert_eq!(permutation(12, 0, 0), GOLDEN_0_0);
        assert_eq!(permutation(12, 42, 0), GOLDEN_42_0);
        assert_eq!(permutation(12, 42, 7), GOLDEN_42_7);
    }

    #[test]
    fn each_row_comes_once_and_each_epoch_has_its_own_order() {
        let mut orders = std::collections::HashSet::new();
        for epoch in [0, 1, 2, u64::MAX] {
            let order = permutation(1000, 5, epoch);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..1000));
            orders.insert(order);
        }
        assert_eq!(orders.len(), 4);
        assert_eq!(permutation(0, 1, 1), [0; 0]);
        assert_eq!(permutation(1, 1, 1), [0]);
    }

    #[test]
    fn all_orders_of_four_rows_are_about_equally_frequent() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..24_000 {
            *counts.entry(permutation(4, 3, epoch)).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // 1000 each expected, standard deviation about 31: five of those.
        assert!(counts.values().all(|count| count.abs_diff(1000) < 155), "{counts:?}");
    }
}
