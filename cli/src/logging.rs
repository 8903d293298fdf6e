//! Logs: `tracing` events on stderr, above the progress bars, filtered by `RUST_LOG`.

use crate::{bars, output};
use anyhow::Context;
use std::io::{self, Write};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::MakeWriter};

/// Starts logging: warnings by default, otherwise as `RUST_LOG` says.
///
/// # Errors
/// `RUST_LOG` is malformed.
pub fn start() -> anyhow::Result<()> {
    let directives = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).parse(&directives);
    let filter = filter
        .with_context(|| format!("`RUST_LOG` is `{directives}`, expected e.g. `info` or `retie_trainer=debug,warn`"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveBars)
        .with_ansi(output::Style::of_stderr() == output::Style::Colour)
        .without_time()
        .init();
    Ok(())
}

/// Makes writers that collect an event and write it at once.
struct AboveBars;

/// One event's text.
struct Event(Vec<u8>);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event(Vec::new())
    }
}

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        bars::write_above(|| _ = io::stderr().lock().write_all(&self.0));
    }
}
