//! Reference systems for what recursion is claimed to do: small networks that are trained in
//! minutes from a seed. They are beside the language models, and none of them is part of one.
//!
//! [`vision`] has recursive networks on pictures.

mod adamw;
mod error;
pub mod vision;

pub use adamw::{AdamW, AdamWConfig};
pub use error::LabError;
