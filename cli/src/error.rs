//! Exit codes, and the message of an error on stderr.
//!
//! | code | when |
//! |---|---|
//! | 0 | done |
//! | 1 | a check of the result failed |
//! | 2 | usage, configuration, bad input, or a disk that does not take the output |
//! | 130 | interrupted, and what was done is saved |
//!
//! A message is `error: …`, then each cause on a `  caused by: …` line, then all their hints.

use crate::output;
use retie_convert::ConvertError;
use retie_eval::EvalError;
use std::{io, process::ExitCode};

/// Outcome of a command that did not return an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Completed.
    Done,
    /// Completed, but a check of the result failed; the output says which.
    CheckFailed,
    /// Stopped by a signal after saving.
    Interrupted,
}

const CHECK_FAILED: u8 = 1;
const BAD_INPUT: u8 = 2;
const INTERRUPTED: u8 = 130;

/// Prints the error, if there is one, and returns the exit code.
pub fn exit_code(result: anyhow::Result<Status>) -> ExitCode {
    match result {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::CheckFailed) => ExitCode::from(CHECK_FAILED),
        Ok(Status::Interrupted) => ExitCode::from(INTERRUPTED),
        // The reader of stdout has closed the pipe, which is not a failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// Prints an error and returns its exit code.
pub fn report(error: &anyhow::Error) -> u8 {
    output::line(&render(error, output::Style::of_stderr()));
    if is_failed_check(error) { CHECK_FAILED } else { BAD_INPUT }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// True if a computed result is wrong, false if the input is.
fn is_failed_check(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(ConvertError::ChecksFailed { .. } | ConvertError::NoConvergence { .. }))
            || matches!(cause.downcast_ref(), Some(EvalError::NotALogProb { .. } | EvalError::ScoreCount { .. }))
    })
}

/// The whole message, without a newline at its end.
fn render(error: &anyhow::Error, style: output::Style) -> String {
    let mut lines = Vec::new();
    let mut hints: Vec<String> = Vec::new();
    let mut said = String::new();
    for (index, cause) in error.chain().enumerate() {
        let (message, more) = split_hints(&cause.to_string());
        for hint in more {
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
        // Skip a cause that only repeats the message of its wrapper.
        if index > 0 && said == message {
            continue;
        }
        lines.push(match index {
            0 => format!("{} {message}", style.red("error:")),
            _ => format!("  caused by: {}", message.replace('\n', "\n    ")),
        });
        said = message;
    }
    lines.extend(hints.into_iter().map(|hint| format!("{} {hint}", style.cyan("hint:"))));
    lines.join("\n")
}

/// The text of a message and the hints that follow it, each from a line that starts with `hint: `.
fn split_hints(message: &str) -> (String, Vec<String>) {
    let (hints, text): (Vec<&str>, Vec<&str>) = message.lines().partition(|line| line.starts_with("hint: "));
    let hints = hints.into_iter().map(|hint| hint.trim_start_matches("hint: ").to_owned());
    (text.join("\n"), hints.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use insta::assert_snapshot;

    #[test]
    fn causes_are_indented_and_hints_come_last_and_once() {
        let cause = anyhow!("the cache lacks `x`\nhint: download it").context("`a/b` cannot be had\nhint: try again");
        let error =
            Err::<(), _>(cause).context("there is no model `a/b`:\n  looked here\nhint: try again").unwrap_err();
        assert_snapshot!(render(&error, output::Style::PLAIN), @"
        error: there is no model `a/b`:
          looked here
          caused by: `a/b` cannot be had
          caused by: the cache lacks `x`
        hint: try again
        hint: download it
        ");
    }

    #[test]
    fn failed_checks_are_distinguished_from_bad_input() {
        let failed = anyhow::Error::from(ConvertError::ChecksFailed { failures: Vec::new() }).context("demo");
        assert!(is_failed_check(&failed));
        assert!(!is_failed_check(&ConvertError::RouterWithoutRecursion.into()));
    }
}
