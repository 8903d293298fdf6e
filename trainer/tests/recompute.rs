//! Computing each recursion again for its backward pass changes memory and time, not the run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use support::{config, run};

#[test]
fn losses_and_gradient_norms_are_those_of_one_graph() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path());
    let mut parts = whole.clone();
    parts.run.dir = dir.path().join("parts");
    parts.train.checkpoint_recursions = true;
    let (whole, parts) = (run(&whole, "cpu"), run(&parts, "cpu"));
    assert_eq!(whole.len(), parts.len());
    for (a, b) in whole.iter().zip(&parts) {
        // The uses of a shared weight are summed in another order: rounding of f32, carried through
        // six steps.
        for (what, a, b) in [("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)] {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "{what} {a} and {b}");
        }
    }
}
