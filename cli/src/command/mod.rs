//! Subcommands, one module each: first the arguments, then the implementation.

pub mod bench;
pub mod cache_logits;
pub mod calibrate;
pub mod card;
pub mod chat;
pub mod check;
pub mod completions;
pub mod config;
pub mod convert;
pub mod demo;
pub mod doctor;
mod enlarge;
pub mod eval;
pub mod export;
pub mod generate;
pub mod insert;
pub mod inspect;
pub mod lab;
pub mod man;
pub mod plot;
pub mod push;
pub mod report;
pub mod route;
pub mod serve;
pub mod tasks;
pub mod tokenize;
pub mod uptrain;
