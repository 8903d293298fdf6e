//! Parsers of foreign bytes under bytes that nobody meant: one target for each.
//!
//! A target may refuse its input, in a moment and in memory bounded by the input's size. It may not
//! panic, hang, or write outside of its folder. [`Harness::run`] holds it to that, in
//! `tests/smoke.rs` (a few thousand mutations of the corpus) and in `scripts/fuzz` (libFuzzer, with
//! coverage of our crates). `docs/reference/trust.md` has what was run.

mod allocator;
mod harness;
mod mutate;
mod targets;
mod workdir;

pub use harness::Harness;
pub use mutate::{Mutator, dictionary};
pub use targets::{TARGETS, Target};
pub use workdir::Workdir;
