//! Reference systems for what recursion is claimed to do: small networks that are trained in
//! minutes from a seed. They are beside the language models, and none of them is part of one.
//!
//! - [`drive`] computes states over trees and charts in batches.
//! - [`dynamicformer`]: intersection numbers of ψ-classes.
//! - [`paths`]: logical queries over a knowledge graph.
//! - [`trees`]: trees that are induced from sentences, and a probe of hidden states for them.
//! - [`vision`]: recursive networks on pictures.
//!
//! In `paths` and `dynamicformer` weights, orders and dropout are drawn from a stream of the seed
//! ([`seeded`], [`Noise`]). `trees` and `vision` draw weights from burn's generator, which all
//! threads of a process share: a run repeats itself where nothing else draws from it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod adamw;
mod dra;
pub mod drive;
pub mod dynamicformer;
mod error;
pub mod paths;
mod seeded;
pub mod trees;
pub mod vision;

pub use adamw::{AdamW, AdamWConfig};
pub use dra::{Dra, DraForm};
pub use error::LabError;
pub use seeded::{Noise, seeded};
