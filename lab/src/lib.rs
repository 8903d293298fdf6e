//! Reference systems for what recursion is claimed to do: small networks that are trained in
//! minutes from a seed. They are beside the language models, and none of them is part of one.
//!
//! [`drive`] computes states over trees and charts in batches.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod drive;
mod error;

pub use error::LabError;
