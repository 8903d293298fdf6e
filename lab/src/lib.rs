//! Reference systems for what recursion is claimed to do: small networks that are trained in
//! minutes from a seed. They are beside the language models, and none of them is part of one.
//!
//! - [`dynamicformer`]: intersection numbers of ψ-classes.
//!
//! Weights, orders and dropout are drawn from a stream of the seed ([`seeded`], [`Noise`]), so that
//! a run is the same in every process.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod clip;
mod dra;
pub mod dynamicformer;
mod error;
mod seeded;

pub use dra::{Dra, DraForm};
pub use error::LabError;
pub use seeded::{Noise, seeded};
