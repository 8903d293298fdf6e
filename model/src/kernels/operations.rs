//! Counts the multiplications and additions that a forward pass does: what is computed, not what a formula says.
//!
//! Products with weights and attention are counted where they are called, by this thread; norms, activations, rotations and sampling are
//! not (they are linear in the hidden size, as in every published count).

use std::{cell::Cell, ops::AddAssign};

/// Floating-point operations: a multiply-add is two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Products of hidden states and weights, LoRA and head included.
    pub linear: u64,
    /// Scores of queries and keys, and sums of values.
    pub attention: u64,
}

impl Operations {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.linear + self.attention
    }
}

impl AddAssign for Operations {
    fn add_assign(&mut self, other: Self) {
        self.linear += other.linear;
        self.attention += other.attention;
    }
}

thread_local! {
    static DONE: Cell<Operations> = const { Cell::new(Operations { linear: 0, attention: 0 }) };
}

/// What `f` gives, and the operations that it asked the kernels for on this thread.
pub fn counted<R>(f: impl FnOnce() -> R) -> (R, Operations) {
    let before = DONE.get();
    let result = f();
    let after = DONE.get();
    let done = Operations { linear: after.linear - before.linear, attention: after.attention - before.attention };
    (result, done)
}

fn add(linear: usize, attention: usize) {
    let mut done = DONE.get();
    done += Operations { linear: linear as u64, attention: attention as u64 };
    DONE.set(done);
}

/// `rows` rows times a weight `[out, in]`.
pub(super) fn product(rows: usize, [out, input]: [usize; 2]) {
    add(2 * rows * out * input, 0);
}

/// `pairs` of a query and a key in each of `heads` heads.
pub(super) fn pairs(pairs: usize, heads: usize, head_dim: usize) {
    add(0, 4 * pairs * heads * head_dim);
}
