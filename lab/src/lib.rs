//! Reference systems for what recursion is claimed to do: small networks that are trained in
//! minutes from a seed. They are beside the language models, and none of them is part of one.
//!
//! [`drive`] computes states over trees and charts in batches, [`trees`] induces trees from masked
//! words.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod adamw;
pub mod drive;
mod error;
pub mod trees;

pub use adamw::{AdamW, AdamWConfig};
pub use error::LabError;
