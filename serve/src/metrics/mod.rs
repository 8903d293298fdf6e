//! Metrics in the text format of Prometheus, under the names of vLLM
//! (<https://docs.vllm.ai/en/latest/design/metrics.html>), so that its dashboards work. A "request"
//! of a metric is one sequence: a choice of a request of the API.

mod histogram;

use histogram::Histogram;
use retie_engine::{PrefixCounts, SpeculationCounts};
use std::{
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Buckets of durations in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Buckets of numbers of tokens.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100_000.0,
];

/// Reason why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// An EOS token or a stop string.
    Stop,
    /// The requested number of tokens, or the end of the context.
    Length,
    /// Its client has left, or it was cancelled.
    Abort,
}

/// Numbers of a sequence that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Why it ended.
    pub ended: Ended,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens that were generated.
    pub new_tokens: usize,
    /// From the request to its slot.
    pub queued: Duration,
    /// From its slot to its first token; `None` if there was none.
    pub prefill: Option<Duration>,
    /// From its first token to its last; `None` if there was none.
    pub decode: Option<Duration>,
    /// From the request to its end.
    pub total: Duration,
}

/// State of the engine after a pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Sequences that have a slot.
    pub running: usize,
    /// Sequences that wait for one, those that gave theirs up among them.
    pub waiting: usize,
    /// Fraction of the KV cache that sequences with a slot occupy.
    pub cache_usage: f64,
    /// Times that a sequence gave up its memory for another one.
    pub preemptions: u64,
    /// Tokens of prompts that were reused.
    pub prefixes: PrefixCounts,
    /// Drafts of speculation.
    pub drafts: SpeculationCounts,
}

/// All metrics of a service.
#[derive(Debug)]
pub struct Metrics {
    model: String,
    numbers: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    gauges: Gauges,
    prompt_tokens: u64,
    generation_tokens: u64,
    /// Generated tokens by the recursion count of the computation that they were chosen from.
    by_recursions: Vec<u64>,
    ended: [u64; 3],
    iteration_tokens: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    total: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
}

impl Metrics {
    /// Metrics of a model, all zero.
    pub fn new(model: &str) -> Self {
        let (seconds, tokens) = (|| Histogram::new(SECONDS), || Histogram::new(TOKENS));
        let numbers = Numbers {
            gauges: Gauges::default(),
            prompt_tokens: 0,
            generation_tokens: 0,
            by_recursions: Vec::new(),
            ended: [0; 3],
            iteration_tokens: tokens(),
            time_to_first_token: seconds(),
            inter_token_latency: seconds(),
            total: seconds(),
            queued: seconds(),
            prefill: seconds(),
            decode: seconds(),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
        };
        let model = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Self { model, numbers: Mutex::new(numbers) }
    }

    /// Records a pass that read `prompt_tokens` of prompts and gave `new_tokens`.
    pub fn pass(&self, prompt_tokens: usize, new_tokens: usize) {
        let mut numbers = self.lock();
        numbers.prompt_tokens += prompt_tokens as u64;
        numbers.generation_tokens += new_tokens as u64;
        numbers.iteration_tokens.observe((prompt_tokens + new_tokens) as f64);
    }

    /// Records a new token that was chosen after so many recursions.
    pub fn token(&self, recursions: usize) {
        let mut numbers = self.lock();
        if numbers.by_recursions.len() <= recursions {
            numbers.by_recursions.resize(recursions + 1, 0);
        }
        numbers.by_recursions[recursions] += 1;
    }

    /// Records the time from a request to its first token.
    pub fn first_token(&self, time: Duration) {
        self.lock().time_to_first_token.observe(time.as_secs_f64());
    }

    /// Records the time between two tokens of a sequence.
    pub fn next_token(&self, time: Duration) {
        self.lock().inter_token_latency.observe(time.as_secs_f64());
    }

    /// Records a sequence that has ended.
    pub fn ended(&self, sample: Sample) {
        let mut numbers = self.lock();
        numbers.ended[sample.ended as usize] += 1;
        numbers.total.observe(sample.total.as_secs_f64());
        numbers.queued.observe(sample.queued.as_secs_f64());
        if let Some(prefill) = sample.prefill {
            numbers.prefill.observe(prefill.as_secs_f64());
        }
        if let Some(decode) = sample.decode {
            numbers.decode.observe(decode.as_secs_f64());
        }
        numbers.request_prompt_tokens.observe(sample.prompt_tokens as f64);
        numbers.request_generation_tokens.observe(sample.new_tokens as f64);
    }

    /// Records the state of the engine.
    pub fn set(&self, gauges: Gauges) {
        self.lock().gauges = gauges;
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let numbers = self.lock();
        let labels = format!("engine=\"0\",model_name=\"{}\"", self.model);
        let mut text = String::new();
        let head = |name: &str, kind: &str, help: &str, text: &mut String| {
            _ = write!(text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n");
        };
        let Gauges { running, waiting, cache_usage, preemptions, prefixes, drafts } = numbers.gauges;
        for (name, value, help) in [
            ("num_requests_running", running as f64, "Sequences that have a slot."),
            ("num_requests_waiting", waiting as f64, "Sequences that wait for a slot."),
            ("kv_cache_usage_perc", cache_usage, "Fraction of the KV cache that is occupied."),
        ] {
            head(name, "gauge", help, &mut text);
            _ = writeln!(text, "vllm:{name}{{{labels}}} {value}");
        }
        for (name, value, help) in [
            ("prompt_tokens_total", numbers.prompt_tokens, "Tokens of prompts that were read."),
            ("generation_tokens_total", numbers.generation_tokens, "Tokens that were generated."),
            ("num_preemptions_total", preemptions, "Sequences that gave up their memory for another one."),
            ("prefix_cache_queries_total", prefixes.asked, "Tokens of prompts that could be reused."),
            ("prefix_cache_hits_total", prefixes.reused, "Tokens of prompts that were not read again."),
            ("spec_decode_num_draft_tokens_total", drafts.drafted as u64, "Tokens that were drafted."),
            ("spec_decode_num_accepted_tokens_total", drafts.accepted as u64, "Drafts that were right."),
        ] {
            head(name, "counter", help, &mut text);
            _ = writeln!(text, "vllm:{name}{{{labels}}} {value}");
        }
        head("request_success_total", "counter", "Sequences that have ended.", &mut text);
        for (reason, count) in ["stop", "length", "abort"].iter().zip(numbers.ended) {
            _ = writeln!(text, "vllm:request_success_total{{{labels},finished_reason=\"{reason}\"}} {count}");
        }
        let name = "retie:generation_tokens_by_recursions_total";
        _ = write!(text, "# HELP {name} Generated tokens by recursion count.\n# TYPE {name} counter\n");
        for (recursions, count) in numbers.by_recursions.iter().enumerate().filter(|(_, count)| **count > 0) {
            _ = writeln!(text, "{name}{{{labels},recursions=\"{recursions}\"}} {count}");
        }
        for (name, histogram, help) in [
            ("iteration_tokens_total", &numbers.iteration_tokens, "Tokens of a pass."),
            ("time_to_first_token_seconds", &numbers.time_to_first_token, "From the request to the first token."),
            ("inter_token_latency_seconds", &numbers.inter_token_latency, "Between two tokens of a sequence."),
            ("e2e_request_latency_seconds", &numbers.total, "From the request to the end."),
            ("request_queue_time_seconds", &numbers.queued, "From the request to a slot."),
            ("request_prefill_time_seconds", &numbers.prefill, "From a slot to the first token."),
            ("request_decode_time_seconds", &numbers.decode, "From the first token to the last."),
            ("request_prompt_tokens", &numbers.request_prompt_tokens, "Tokens of a prompt."),
            ("request_generation_tokens", &numbers.request_generation_tokens, "Generated tokens of a sequence."),
        ] {
            head(name, "histogram", help, &mut text);
            histogram.render(&format!("vllm:{name}"), &labels, &mut text);
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_of_vllm_and_the_model_as_a_label() {
        let metrics = Metrics::new("a\"b");
        metrics.pass(7, 2);
        metrics.pass(0, 3);
        [2, 1, 2].into_iter().for_each(|recursions| metrics.token(recursions));
        metrics.first_token(Duration::from_millis(30));
        metrics.ended(Sample {
            ended: Ended::Length,
            prompt_tokens: 7,
            new_tokens: 5,
            queued: Duration::from_secs(1),
            prefill: Some(Duration::from_secs(2)),
            decode: None,
            total: Duration::from_secs(3),
        });
        let prefixes = PrefixCounts { asked: 40, reused: 16 };
        let drafts = SpeculationCounts { drafted: 9, accepted: 4, ..SpeculationCounts::default() };
        metrics.set(Gauges { running: 2, waiting: 1, cache_usage: 0.25, preemptions: 3, prefixes, drafts });
        let text = metrics.render();
        let labels = "engine=\"0\",model_name=\"a\\\"b\"";
        for line in [
            "# TYPE vllm:num_requests_running gauge".to_owned(),
            format!("vllm:num_requests_running{{{labels}}} 2"),
            format!("vllm:kv_cache_usage_perc{{{labels}}} 0.25"),
            format!("vllm:num_preemptions_total{{{labels}}} 3"),
            format!("vllm:prompt_tokens_total{{{labels}}} 7"),
            format!("vllm:generation_tokens_total{{{labels}}} 5"),
            format!("vllm:prefix_cache_hits_total{{{labels}}} 16"),
            format!("vllm:spec_decode_num_draft_tokens_total{{{labels}}} 9"),
            format!("vllm:spec_decode_num_accepted_tokens_total{{{labels}}} 4"),
            "# TYPE retie:generation_tokens_by_recursions_total counter".to_owned(),
            format!("retie:generation_tokens_by_recursions_total{{{labels},recursions=\"2\"}} 2"),
            format!("vllm:request_success_total{{{labels},finished_reason=\"length\"}} 1"),
            format!("vllm:request_success_total{{{labels},finished_reason=\"abort\"}} 0"),
            "# TYPE vllm:time_to_first_token_seconds histogram".to_owned(),
            format!("vllm:time_to_first_token_seconds_bucket{{{labels},le=\"0.02\"}} 0"),
            format!("vllm:time_to_first_token_seconds_bucket{{{labels},le=\"0.04\"}} 1"),
            format!("vllm:iteration_tokens_total_count{{{labels}}} 2"),
            format!("vllm:request_decode_time_seconds_count{{{labels}}} 0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
