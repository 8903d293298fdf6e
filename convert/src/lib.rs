//! From a pretrained model to a recursive one, on the CPU, without any model code: which source
//! layers each stored layer comes from ([`init`]) or how it is fitted to a text ([`calibrate`]),
//! the mean over a tied group, per-depth LoRA from the SVD of what sharing changed, a report, and
//! checks of what was written.
//!
//! Papers: Relaxed Recursive Transformers (<https://arxiv.org/abs/2410.20672>) §2 and
//! Mixture-of-Recursions (<https://arxiv.org/abs/2507.10524>) §3. The layout of the folder that is
//! written is in `docs/reference/checkpoint-layout.md`.
//!
//! # Memory
//! Tensors stream: the source is read and the folder written one tensor at a time. The most that is
//! ever held is one projection's tied group (its stored weight, `R` residuals, and the working
//! copies of at most as many decompositions as there are threads, never more than `R`) and the
//! factors of that group. A calibrated start holds more: see [`calibrate`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod calibrate;
mod check;
mod counts;
mod enlarged;
mod error;
mod factorize;
pub mod init;
mod insert;
mod kinds;
mod lints;
mod low_rank;
mod magnitudes;
mod output_files;
mod pipeline;
mod plan;
mod progress;
mod ranks;
mod render;
mod report;
mod router;
mod search;
mod select;
mod source_model;
mod spectra;
mod tied_group;
mod verify;

pub use calibrate::Calibration;
pub use check::Check;
pub use counts::ParameterCounts;
pub use enlarged::Enlarged;
pub use error::ConvertError;
pub use insert::{INSERT_REPORT_FILE, InsertOptions, InsertReport, insert, with_steps};
pub use output_files::OutputFiles;
pub use pipeline::{REPORT_FILE, convert};
pub use progress::{Phase, Progress};
pub use report::{
    Alias, CalibrationReport, ConvertReport, DepthEnergy, LoraReport, PlainError, ProjectionEnergy, Scores,
};
pub use router::{ROUTER_REPORT_FILE, RouterOptions, RouterReport, add_router};
pub use search::{CandidateReport, SearchReport, search};
pub use select::{LoopCandidate, RemovedLayer, SelectionReport, select};
pub use source_model::SourceModel;
