//! Operation counter: the multiplications and additions that a forward pass computes, counted
//! instead of derived from a formula.
//!
//! Matrix products and attention are counted on the thread that calls them. Norms, activations,
//! rotary embeddings and sampling are not counted: they are linear in the hidden size, and
//! published counts omit them as well.

use std::{cell::Cell, ops::AddAssign};

/// Floating-point operations; a multiply-add counts as two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Products of hidden states and weights, including LoRA and the head.
    pub linear: u64,
    /// Attention: products of queries and keys, and weighted sums of values.
    pub attention: u64,
}

impl Operations {
    /// Sum of both.
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
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
    static DONE: Cell<Operations> = const { Cell::new(Operations { linear: 0, attention: 0 }) };
}

/// Runs `f`; returns its result and the operations that it requested from the kernels on this
/// thread.
pub fn counted<R>(f: impl FnOnce() -> R) -> (R, Operations) {
    let (before, outer) = (DONE.get(), IS_COUNTING.replace(true));
    let result = f();
    IS_COUNTING.set(outer);
    let after = DONE.get();
    let done = Operations { linear: after.linear - before.linear, attention: after.attention - before.attention };
    (result, done)
}

fn add(linear: usize, attention: usize) {
    let mut done = DONE.get();
    done += Operations { linear: linear as u64, attention: attention as u64 };
    DONE.set(done);
}

/// Counts a product of `rows` rows with a weight `[out, in]`.
pub(super) fn product(rows: usize, [out, input]: [usize; 2]) {
    add(2 * rows * out * input, 0);
}

/// Counts the attention of `pairs` of a query and a key in each of `heads` heads. Where a device
/// has selected the queries, `pairs` has to read them.
pub(super) fn pairs(pairs: impl FnOnce() -> usize, heads: usize, head_dim: usize) {
    if IS_COUNTING.get() {
        add(0, 4 * pairs() * heads * head_dim);
    }
}
