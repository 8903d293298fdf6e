//! `retie bench serve`: servers under load. Models are served here, on a port of their own; other
//! servers are asked over the network. All targets get the same requests, and take turns.

mod client;
mod exits;
mod figures;
mod load;
mod local;
mod target;
mod workload;

use crate::{
    args::{CaptureArgs, DeviceArgs, DtypeArgs, EngineArgs, JsonArgs, SpeculationArgs},
    choice::choice,
    error::Status,
    machine, output,
    progress::{Progress, Unit},
};
use anyhow::{Context, anyhow, ensure};
use clap::Args;
use client::Endpoint;
use exits::Exits;
use figures::Served;
use local::{Common, Loaded, Local};
use retie_data::Tokenizer;
use retie_engine::{ExitTrace, Scheduler};
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
};
use target::Target;
use workload::{Load, Prompts, Size};

/// Token ids of the prompts: most tokenizers have their special tokens before or after these.
const IDS: std::ops::Range<u32> = 256..4096;

/// Measure servers under load: time to the first token, between tokens, tokens per second
#[derive(Debug, Args)]
pub struct BenchServe {
    /// Models to serve (folders, .gguf files, hub ids), and addresses of servers with the API of
    /// OpenAI (http://HOST:PORT); they take turns. A model can have settings of its own:
    /// MODEL,scheduler=MODE,exit_risk=LEVEL,kv_policy=POLICY,speculate=K, each of them optional
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<String>,
    /// Requests of a round
    #[arg(long, value_name = "N", default_value_t = 64)]
    requests: usize,
    /// Closed loop: clients that each send a request when their last one is answered
    #[arg(long, value_name = "N", default_value_t = 8)]
    clients: usize,
    /// Open loop: requests per second in the mean, which arrive as a Poisson process
    #[arg(long, value_name = "RATE", conflicts_with = "clients")]
    rate: Option<f64>,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_tokens: usize,
    /// New tokens of a request
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
    /// File with a line for each request: tokens of the prompt and new tokens; taken in turn
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "new_tokens"])]
    lengths: Option<PathBuf>,
    /// Text whose parts are the prompts; without it their tokens are drawn. Calibrated exits depend
    /// on the text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Rounds, of which the median of each figure counts; a short one before them warms up
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Seed of prompts and arrivals
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Schedulers to serve each model with, with commas between: full, lockstep, depthwise
    #[arg(long, value_name = "MODES", value_delimiter = ',', default_value = "full",
        value_parser = choice::<Scheduler>(Scheduler::ALL.map(Scheduler::name)))]
    scheduler: Vec<Scheduler>,
    /// Force new tokens to exit after these numbers of recursions, in turn, with commas between,
    /// e.g. 1,1,2: the speed of exits that a model has not been calibrated for. Not with scheduler
    /// full
    #[arg(long, value_name = "COUNTS", value_delimiter = ',')]
    exit_trace: Vec<usize>,
    /// Let tokens leave the loop early by the model's calibrated exits, at this risk
    #[arg(long, value_name = "LEVEL", conflicts_with = "exit_trace")]
    exit_risk: Option<f64>,
    /// Draft only the 4,096 most frequent tokens of this text, for targets with `speculate`
    #[arg(long, value_name = "FILE")]
    draft_text: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// A server under load.
struct UnderLoad {
    name: String,
    exits: Option<Exits>,
    endpoint: Endpoint,
}

/// All figures of a benchmark of servers.
#[derive(Debug, Serialize)]
struct Figures {
    machine: String,
    requests: usize,
    /// Clients of a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<usize>,
    /// Requests per second of an open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    /// Means over the requests.
    prompt_tokens: f64,
    new_tokens: f64,
    rounds: usize,
    seed: u64,
    targets: Vec<Served>,
}

impl BenchServe {
    pub fn run(self) -> anyhow::Result<Status> {
        let counts = [
            ("--requests", self.requests),
            ("--clients", self.clients),
            ("--prompt-tokens", self.prompt_tokens),
            ("--new-tokens", self.new_tokens),
            ("--rounds", self.rounds),
        ];
        for (option, value) in counts {
            ensure!(value > 0, "`{option}` is 0, expected at least 1");
        }
        if let Some(rate) = self.rate {
            ensure!(rate > 0.0 && rate.is_finite(), "`--rate` is {rate}, expected a number above 0");
        }
        let load = self.rate.map_or(Load::Clients(self.clients), Load::Rate);
        let sizes = match &self.lengths {
            Some(path) => workload::read_sizes(path)?,
            None => vec![Size { prompt: self.prompt_tokens, new: self.new_tokens }],
        };
        let trace = (!self.exit_trace.is_empty()).then(|| ExitTrace::new(self.exit_trace.clone()));
        let trace = trace.transpose().map_err(|error| anyhow!("{error}"))?;
        let targets = self.targets.iter().map(|target| Target::parse(target)).collect::<anyhow::Result<Vec<_>>>()?;
        let drafts = SpeculationArgs { speculate: None, draft_text: self.draft_text.clone() };
        let common = Common { engine: self.engine, trace: trace.as_ref(), drafts: &drafts, sizes: &sizes };
        self.capture.apply();
        let (mut servers, mut endpoints, mut ids) = (Vec::<Local>::new(), Vec::new(), IDS);
        let mut loaded: Vec<(String, Loaded)> = Vec::new();
        for target in targets {
            let mut variant = match target {
                Target::Model(variant) => variant,
                Target::Server(url) => {
                    let endpoint = Endpoint::connect(&url, local::api_key())?;
                    endpoints.push(UnderLoad { name: url, exits: None, endpoint });
                    continue;
                }
            };
            // Who has a policy or drafts has no calibrated exits.
            let free = variant.kv_policy.is_none() && variant.speculate.is_none();
            variant.exit_risk = variant.exit_risk.or(self.exit_risk.filter(|_| free));
            ensure!(
                variant.exit_risk.is_none() || trace.is_none(),
                "the target `{}` has calibrated exits, and `--exit-trace` forces others\nhint: leave one of them out",
                variant.name
            );
            if loaded.iter().all(|(model, _)| *model != variant.model) {
                loaded.push((variant.model.clone(), Loaded::load(&variant.model, &self.device, self.dtype)?));
            }
            let Some((_, model)) = loaded.iter().find(|(model, _)| *model == variant.model) else { continue };
            for scheduler in variant.scheduler.map_or_else(|| self.scheduler.clone(), |scheduler| vec![scheduler]) {
                let local = Local::start(model, (&variant, scheduler), &common)?;
                ids.end = ids.end.min(u32::try_from(local.vocab_size).unwrap_or(u32::MAX));
                let endpoint = Endpoint::connect(&local.url, local::api_key())?;
                let endpoint = if variant.exit_risk.is_some() { endpoint.with_counts() } else { endpoint };
                endpoints.push(UnderLoad { name: local.name.clone(), exits: local.exits, endpoint });
                servers.push(local);
            }
        }
        drop(loaded);
        let prompts = match &self.text {
            None => Prompts::Drawn(ids),
            Some(path) => {
                let reader = servers.first().map(|local| &local.tokenizer);
                let reader = reader.context("`--text` is read by the tokenizer of a model, and no target is a model here\nhint: leave it out, or name a model as a target, too")?;
                Prompts::Text(text_tokens(path, reader)?)
            }
        };
        let served = self.measure(&endpoints, &sizes, load, &prompts)?;
        servers.into_iter().try_for_each(Local::stop)?;
        let mean = |value: fn(&Size) -> usize| {
            let sum: usize = sizes.iter().cycle().take(self.requests).map(value).sum();
            sum as f64 / self.requests as f64
        };
        let figures = Figures {
            machine: machine::summary(),
            requests: self.requests,
            clients: self.rate.is_none().then_some(self.clients),
            rate: self.rate,
            prompt_tokens: mean(|size| size.prompt),
            new_tokens: mean(|size| size.new),
            rounds: self.rounds,
            seed: self.seed,
            targets: served,
        };
        if self.json.json {
            output::json(&figures)?
        } else {
            output::data(&figures)?
        }
        Ok(Status::Done)
    }

    /// Sends the same requests to each of `endpoints` in turn, round by round.
    fn measure(
        &self,
        endpoints: &[UnderLoad],
        sizes: &[Size],
        load: Load,
        prompts: &Prompts,
    ) -> anyhow::Result<Vec<Served>> {
        let mut bar = Progress::new("bench", Unit::Count("rounds"), 0);
        let total = ((1 + self.rounds) * endpoints.len()) as u64;
        let mut found = vec![Vec::new(); endpoints.len()];
        for round in 0..=self.rounds {
            // Other prompts in every round: a server may remember those that it has read.
            let seed = self.seed.wrapping_mul(1 << 20).wrapping_add(round as u64);
            let count = if round == 0 { self.requests.min(self.clients) } else { self.requests };
            let planned = workload::plan(sizes, count, load, prompts, seed)?;
            for (index, UnderLoad { name, exits, endpoint }) in endpoints.iter().enumerate() {
                bar.set((round * endpoints.len() + index) as u64, total, name);
                let outcome = load::send(endpoint, &planned, load);
                if let Some(failure) = outcome.failures.first() {
                    let of = planned.len();
                    output::line(&format!("{name}: {} of {of} requests failed: {failure}", outcome.failures.len()));
                }
                ensure!(!outcome.answers.is_empty(), "`{name}` answered no request");
                if round > 0 {
                    found[index].push(Served { exits: *exits, ..Served::of(name, &outcome) });
                }
            }
        }
        Ok(found.iter().map(|rounds| Served::median(rounds)).collect())
    }
}

/// Tokens of a text, its documents one after the other, as many as the prompts of a benchmark need.
fn text_tokens(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    const ENOUGH: usize = 1 << 20;
    if !retie_data::has_rows(path) {
        return Ok(tokenizer.encode(&retie_data::read_text(path)?)?);
    }
    let mut tokens = Vec::new();
    for document in retie_data::documents(path, retie_data::DEFAULT_TEXT_FIELD)? {
        tokens.extend(tokenizer.encode(&document?.text)?);
        if tokens.len() >= ENOUGH {
            break;
        }
    }
    Ok(tokens)
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = match (self.clients, self.rate) {
            (_, Some(rate)) => format!("{rate} a second"),
            (clients, None) => format!("{} clients", clients.unwrap_or_default()),
        };
        let (prompt, new) = (self.prompt_tokens, self.new_tokens);
        writeln!(
            f,
            "{} requests, {load}, {prompt:.0} + {new:.0} tokens, medians of {} rounds",
            self.requests, self.rounds
        )?;
        let mut lines: Vec<String> = self.targets.iter().map(ToString::to_string).collect();
        if let Some((first, others)) = self.targets.split_first() {
            lines.extend(others.iter().map(|other| {
                let ratio = |value: fn(&Served) -> f64| value(other) / value(first);
                let gain = ratio(|served| served.tokens_per_second);
                let allowed =
                    other.exits.map(|exits| format!(" ({:.2} of what operations allow)", gain / exits.allowed_gain));
                format!(
                    "{} / {}: tok/s {gain:.2}{}, first token {:.2}, between tokens {:.2}, a token {:.2}",
                    other.target,
                    first.target,
                    allowed.unwrap_or_default(),
                    ratio(|served| served.time_to_first_token.p50),
                    ratio(|served| served.between_tokens.p50),
                    ratio(|served| served.time_per_token.p50),
                )
            }));
        }
        f.write_str(&lines.join("\n"))
    }
}
