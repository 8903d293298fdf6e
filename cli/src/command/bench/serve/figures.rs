//! Figures of a server under load, as `vllm bench serve` has them.

use super::{exits::Exits, load::Outcome};
use retie_report::number::rate;
use serde::Serialize;
use std::fmt;

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
}

/// Figures of one target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Served {
    /// The model with its scheduler, or the address of a server.
    pub target: String,
    /// Forced exits, if there are any.
    #[serde(flatten)]
    pub exits: Option<Exits>,
    /// Mean recursion count of the new tokens, where calibrated exits choose it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_recursions: Option<f64>,
    /// Requests of all rounds that were not answered.
    pub failed: usize,
    /// New tokens per second, of all requests together.
    pub tokens_per_second: f64,
    pub requests_per_second: f64,
    /// Seconds from a request to its first piece of text.
    pub time_to_first_token: Spread,
    /// Seconds between two pieces of text of an answer.
    pub between_tokens: Spread,
    /// Seconds from the first token to the last, divided by the tokens after the first.
    pub time_per_token: Spread,
    /// Seconds from a request to the end of its answer.
    pub latency: Spread,
}

/// Nearest-rank percentiles; NaN of no values.
fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let rank = |part: f64| ((part * values.len() as f64).ceil() as usize).saturating_sub(1);
    let at = |part| values.get(rank(part)).copied().unwrap_or(f64::NAN);
    Spread { p50: at(0.5), p99: at(0.99) }
}

impl Served {
    /// Figures of one round.
    pub fn of(target: &str, outcome: &Outcome) -> Self {
        let Outcome { answers, failures, duration } = outcome;
        let (mut first, mut between, mut each, mut whole) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for answer in answers {
            let since = |at: &std::time::Instant| at.saturating_duration_since(answer.sent).as_secs_f64();
            let times: Vec<f64> = answer.pieces.iter().map(since).collect();
            let (Some(start), Some(end)) = (times.first(), times.last()) else { continue };
            // The last time is that of the end, which brings no text.
            let texts = &times[..times.len() - 1];
            first.push(*start);
            between.extend(texts.windows(2).map(|pair| pair[1] - pair[0]));
            if answer.tokens > 1 {
                each.push((end - start) / (answer.tokens - 1) as f64);
            }
            whole.push(*end);
        }
        let seconds = duration.as_secs_f64();
        let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
        let counts: Vec<u64> = answers.iter().flat_map(|answer| answer.recursion_counts.iter().copied()).collect();
        let chosen = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        Self {
            target: target.to_owned(),
            exits: None,
            chosen_recursions: Some(chosen).filter(|chosen| chosen.is_finite()),
            failed: failures.len(),
            tokens_per_second: tokens as f64 / seconds,
            requests_per_second: answers.len() as f64 / seconds,
            time_to_first_token: spread(first),
            between_tokens: spread(between),
            time_per_token: spread(each),
            latency: spread(whole),
        }
    }

    /// The median of each figure over `rounds`, of which there is at least one.
    pub fn median(rounds: &[Self]) -> Self {
        let median = |value: fn(&Self) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let both = |spread: [fn(&Self) -> f64; 2]| Spread { p50: median(spread[0]), p99: median(spread[1]) };
        Self {
            target: rounds.first().map(|round| round.target.clone()).unwrap_or_default(),
            exits: rounds.first().and_then(|round| round.exits),
            chosen_recursions: rounds
                .first()
                .and_then(|round| round.chosen_recursions)
                .map(|_| median(|round| round.chosen_recursions.unwrap_or(f64::NAN))),
            failed: rounds.iter().map(|round| round.failed).sum(),
            tokens_per_second: median(|round| round.tokens_per_second),
            requests_per_second: median(|round| round.requests_per_second),
            time_to_first_token: both([|r| r.time_to_first_token.p50, |r| r.time_to_first_token.p99]),
            between_tokens: both([|r| r.between_tokens.p50, |r| r.between_tokens.p99]),
            time_per_token: both([|r| r.time_per_token.p50, |r| r.time_per_token.p99]),
            latency: both([|r| r.latency.p50, |r| r.latency.p99]),
        }
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds =
            |name: &str, Spread { p50, p99 }: Spread| format!("{name} {:.1} ms (p99 {:.1})", 1e3 * p50, 1e3 * p99);
        writeln!(
            f,
            "{}: {} tok/s, {:.2} requests/s{}",
            self.target,
            rate(self.tokens_per_second),
            self.requests_per_second,
            if self.failed > 0 { format!(", {} requests failed", self.failed) } else { String::new() }
        )?;
        if let Some(Exits { mean_recursions, allowed_gain }) = self.exits {
            writeln!(
                f,
                "    exits forced: {mean_recursions:.2} recursions in the mean, operations allow {allowed_gain:.2} times the tok/s of full depth"
            )?;
        }
        if let Some(chosen) = self.chosen_recursions {
            writeln!(f, "    exits by calibration: {chosen:.2} recursions in the mean")?;
        }
        let parts = [
            milliseconds("first token", self.time_to_first_token),
            milliseconds("between tokens", self.between_tokens),
            milliseconds("a token", self.time_per_token),
            milliseconds("whole", self.latency),
        ];
        write!(f, "    {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Answer;
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn figures_are_percentiles_of_times_since_the_request() {
        let start = Instant::now();
        let answer = |offset: u64| {
            let at = |ms: u64| start + Duration::from_millis(offset + ms);
            Answer {
                sent: at(0),
                pieces: vec![at(100), at(110), at(140), at(140)],
                tokens: 5,
                recursion_counts: vec![1, 2],
            }
        };
        let outcome = Outcome {
            answers: (0..100).map(answer).collect(),
            failures: vec!["full".to_owned()],
            duration: Duration::from_secs(2),
        };
        let found = Served::of("x", &outcome);
        assert_eq!((found.failed, found.tokens_per_second, found.requests_per_second), (1, 250.0, 50.0));
        let near = |found: Spread, p50: f64, p99: f64| {
            assert!((found.p50 - p50).abs() < 1e-9 && (found.p99 - p99).abs() < 1e-9, "{found:?}");
        };
        near(found.time_to_first_token, 0.1, 0.1);
        near(found.between_tokens, 0.01, 0.03);
        near(found.time_per_token, 0.01, 0.01);
        near(found.latency, 0.14, 0.14);
        let faster = Served { tokens_per_second: 300.0, ..found.clone() };
        let slower = Served { tokens_per_second: 10.0, ..found.clone() };
        let median = Served::median(&[found, faster, slower]);
        assert_eq!((median.tokens_per_second, median.failed), (250.0, 3));
    }
}
