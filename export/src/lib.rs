//! Exports: a recursive model in the formats of other programs, on the CPU, without any model code.
//!
//! Formats without recursion get the [`Unrolled`] model, the plain one of the source's
//! family that computes the same. It has one layer for each depth, with the LoRA or DoRA of the
//! depth merged into its linears, its own norms in their places, and the extras folded that can be.
//!
//! A format is a file with a [`Format`] and an entry in [`FORMATS`]. [`export`] writes it beside
//! its place; the caller compares what was written with the model ([`Written::model_path`],
//! [`check_weights`]) and then publishes it.
//!
//! # Memory
//! Tensors stream: one is held at a time, with its factors.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cast;
mod error;
mod export;
mod folder;
mod format;
mod gguf_file;
mod hf;
mod hf_nanbeige;
mod hf_unrolled;
mod joined;
mod merge;
mod obstacles;
mod peft;
mod report;
mod round;
mod stored_type;
mod unrolled;
mod weights;

pub use error::ExportError;
pub use export::{ExportOptions, Written, export};
pub use format::{ExportModel, FORMATS, Format, Progress};
pub use peft::Adapted;
pub use report::ExportReport;
pub use stored_type::StoredType;
pub use unrolled::Unrolled;
pub use weights::{WeightCheck, check_weights};
