//! The subcommands, a file each: arguments, then what they do.

pub mod bench;
pub mod cache_logits;
pub mod check;
pub mod config;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod plot;
pub mod report;
pub mod tasks;
pub mod tokenize;
pub mod uptrain;
