//! The server: a model behind the HTTP API of OpenAI.
//!
//! 1. [`Service::start`] starts the engine thread, which owns the [`retie_engine::Engine`] and runs
//!    one forward pass after the other over the sequences that have a slot (`worker`).
//! 2. Handlers (`api`) check a request, tokenize it, and offer its sequences to the queue
//!    (`queue`, `inbox`); without room it is refused at once.
//! 3. Progress comes back through one bounded channel for each request (`job`). A client that does
//!    not read pauses its own sequences, one that leaves ends them before the next pass.
//! 4. [`serve`] listens until it is told to stop, then finishes what was accepted.
//!
//! The tokens of a request are those of `retie generate`, whatever else is in the batch, up to ties
//! within the rounding of f32. docs/guides/serve.md describes the API.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod active;
mod api;
mod connection;
mod error;
mod inbox;
mod job;
mod metrics;
mod options;
mod queue;
mod server;
mod service;
mod worker;

pub use error::ServeError;
pub use options::{ServeOptions, ServedExits, ServedModel};
pub use queue::QueueLimits;
pub use server::{Ended, Lifetime, bind, serve};
pub use service::Service;
