//! `retie doctor`: diagnosis of this machine: hardware, backends, hub cache, missing parts.

use crate::{args::JsonArgs, error::Status, machine, output};
use burn::tensor::Tensor;
use clap::Args;
use retie_checkpoint::Hub;
use retie_model::kernels::f32_slice;
use retie_report::number::bytes;
use serde::Serialize;
use std::{panic, path::Path};

/// Show what this machine can run, where the caches are, and what is missing
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    json: JsonArgs,
}

/// Result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Present and sufficient.
    Ok,
    /// Absent or insufficient; the hint says for which use.
    Missing,
    /// Present, but with wrong results.
    Failed,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), hint: None }
    }

    fn missing(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, state: State::Missing, detail: detail.into(), hint: Some(hint.into()) }
    }
}

impl Doctor {
    pub fn run(self) -> anyhow::Result<Status> {
        let mut findings = vec![program(), processor()];
        findings.extend(memory());
        findings.extend([backend("cpu"), backend("wgpu"), backend("cuda")]);
        findings.extend(hub());
        if self.json.json {
            output::json(&findings)?;
        } else {
            output::data(findings.iter().map(line).collect::<Vec<_>>().join("\n"))?;
        }
        output::next("retie demo");
        Ok(if findings.iter().any(|f| f.state == State::Failed) { Status::CheckFailed } else { Status::Done })
    }
}

fn line(finding: &Finding) -> String {
    let state = match finding.state {
        State::Ok => "ok",
        State::Missing => "–",
        State::Failed => "FAILED",
    };
    let hint = finding.hint.as_ref().map_or_else(String::new, |hint| format!("\n{:<20}hint: {hint}", ""));
    format!("{state:<8}{:<12}{}{hint}", finding.name, finding.detail)
}

fn program() -> Finding {
    let commit = option_env!("RETIE_COMMIT").map_or_else(String::new, |commit| format!(", commit {commit}"));
    Finding::ok("retie", format!("{}{commit}", env!("CARGO_PKG_VERSION")))
}

fn processor() -> Finding {
    let vectors = machine::vector_instructions();
    let detail = format!("{}, {} threads, {}", machine::processor(), machine::threads(), vectors.join(" "));
    match vectors.is_empty() || (cfg!(target_arch = "x86_64") && !vectors.contains(&"avx2")) {
        false => Finding::ok("processor", detail),
        true => Finding::missing("processor", detail, "without AVX2 (x86-64) or NEON (ARM) everything works, slowly"),
    }
}

fn memory() -> Option<Finding> {
    /// Approximate bytes for uptraining SmolLM2-135M with its teacher at 2 × 512 tokens.
    const COMFORTABLE: u64 = 6 << 30;
    let (total, free) = machine::memory()?;
    let detail = format!("{} free of {}", bytes(free), bytes(total));
    Some(match free >= COMFORTABLE {
        true => Finding::ok("memory", detail),
        false => Finding::missing(
            "memory",
            detail,
            "`retie uptrain CONFIG --dry-run` says what a run needs; a smaller `train.batch_size` needs less",
        ),
    })
}

/// Checks that a backend is built in and computes a small matrix product exactly.
fn backend(name: &'static str) -> Finding {
    let device = match retie_model::device(name) {
        Ok(device) => device,
        Err(error) => {
            let text = error.to_string();
            let (message, hint) = text.split_once("\nhint: ").unwrap_or((text.as_str(), "build it in"));
            return Finding::missing(name, message, hint);
        }
    };
    let multiply = || {
        // Small integers: every order of summation gives the same floats.
        let x = Tensor::<1>::from_floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &device).reshape([2, 3]);
        f32_slice(&x.clone().matmul(x.transpose()).into_data()).to_vec()
    };
    // The backend panics if the driver is missing, and the default hook would print the panic.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let product = panic::catch_unwind(panic::AssertUnwindSafe(multiply));
    panic::set_hook(hook);
    match product {
        Ok(product) if product == [14.0, 32.0, 32.0, 77.0] => Finding::ok(name, "computes"),
        Ok(product) => Finding {
            name,
            state: State::Failed,
            detail: format!("a product came out as {product:?}, expected [14.0, 32.0, 32.0, 77.0]"),
            hint: Some("update the driver, or use `--device cpu`".to_owned()),
        },
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let reason = text.and_then(|text| text.lines().next()).unwrap_or("no device or driver for it");
            Finding::missing(
                name,
                format!("built in, but fails: {reason}"),
                "is its driver installed? `--device cpu` works",
            )
        }
    }
}

fn hub() -> Vec<Finding> {
    let hub = Hub::from_env();
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let cache = hub.cache_dir().display().to_string();
    let cached = cached_models(hub.cache_dir());
    let models = match cached.len() {
        0 => "no models yet".to_owned(),
        n => format!("{n} models: {}", cached.join(", ")),
    };
    let mut findings = vec![Finding::ok("hub cache", format!("{cache}, {models}"))];
    findings.push(match (hub.is_offline(), set("HF_ENDPOINT")) {
        (true, _) => {
            Finding::missing("hub", "nothing is downloaded: `HF_HUB_OFFLINE` is set", "unset it to download models")
        }
        (false, true) => Finding::ok("hub", "`HF_ENDPOINT` names another hub than huggingface.co"),
        (false, false) => Finding::ok("hub", "huggingface.co (not contacted)"),
    });
    findings.push(match (hub.has_token(), set("HF_TOKEN")) {
        (true, true) => Finding::ok("hub token", "`HF_TOKEN` is set"),
        (true, false) => Finding::ok("hub token", "in the file that `hf auth login` writes"),
        (false, _) => {
            Finding::missing("hub token", "none", "private and gated models need `HF_TOKEN`, or `hf auth login`")
        }
    });
    findings
}

/// Hub ids of the models that have a folder in the hub cache, sorted.
fn cached_models(cache: &Path) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(cache) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut models: Vec<String> =
        names.filter_map(|name| Some(name.strip_prefix("models--")?.replacen("--", "/", 1))).collect();
    models.sort();
    models
}
