//! `retie serve`: serves a model over HTTP.

use crate::{
    args::{CaptureArgs, DeviceArgs, DtypeArgs, EngineArgs, SpeculationArgs, parse_duration},
    choice::choice,
    error::Status,
    exits,
    memory::{self, Need},
    model::{self, TextModel},
    output, signal,
};
use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use retie_checkpoint::ModelSource;
use retie_data::ChatTemplate;
use retie_engine::{EngineOptions, Scheduler};
use retie_model::CausalLm;
use retie_report::number::{bytes, grouped};
use retie_serve::{Ended, Lifetime, QueueLimits, ServeOptions, ServedModel, Service};
use std::time::Duration;

/// Variable with the API key, which other users of the machine do not see.
pub const API_KEY: &str = "RETIE_API_KEY";

/// Serve a model over HTTP: the API of OpenAI, metrics, and a page to try it
#[derive(Debug, Args)]
pub struct Serve {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Address or name of this machine to listen at; 0.0.0.0 is all of its addresses
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 is any free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Name of the model in the API; default: MODEL
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Key that requests need, as `Authorization: Bearer KEY`; default: the variable RETIE_API_KEY
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Which tokens share a pass: full, all of a step; lockstep and depthwise, part by part, for
    /// models whose tokens exit
    #[arg(long, value_name = "MODE", default_value_t, value_parser = choice::<Scheduler>(Scheduler::ALL.map(Scheduler::name)))]
    scheduler: Scheduler,
    /// Let tokens of requests that name no `retie.exit_risk` leave the loop early, with the
    /// threshold that `retie calibrate` found for this risk or the next lower one
    #[arg(long, value_name = "LEVEL", conflicts_with = "speculate")]
    exit_risk: Option<f64>,
    #[command(flatten)]
    speculation: SpeculationArgs,
    /// Read every prompt from its start, without the first tokens that other requests have read
    #[arg(long)]
    no_prefix_reuse: bool,
    /// Most sequences that wait for a slot; further requests are refused
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    max_queue: usize,
    /// Most tokens of the prompts of those that wait
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = at_least_one)]
    max_queue_tokens: usize,
    /// Largest body of a request, in bytes
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = at_least_one)]
    max_body: usize,
    /// End a request after this time, e.g. 90s, 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
    /// After a signal, finish the accepted requests for this time at most
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    drain: Duration,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
}

impl Serve {
    pub fn run(self) -> anyhow::Result<Status> {
        // The port first: loading a model takes longer than to find it in use.
        let listener = retie_serve::bind(&self.host, self.port)?;
        let address = listener.local_addr().context("the address of the server")?;
        self.capture.apply();
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        let chat_template = ChatTemplate::from_model_files(&source.companions, &source.path)?;
        let engine = self.engine.options(&source.config);
        if retie_model::is_host(&device) {
            self.check_memory(&source, &device, &engine)?;
        }
        let text_model = TextModel::load(&source, &device, self.dtype.get())?;
        let options = ServeOptions {
            engine,
            kv_tokens: self.engine.kv_tokens(&source.config),
            scheduler: self.scheduler,
            exit_trace: None,
            exit_risk: self.exit_risk,
            speculation: self.speculation.options(&text_model)?,
            prefix_reuse: !self.no_prefix_reuse,
            queue: QueueLimits { sequences: self.max_queue, tokens: self.max_queue_tokens },
            body_bytes: self.max_body,
            timeout: self.timeout,
            api_key: self.api_key.clone().or_else(|| std::env::var(API_KEY).ok()),
        };
        let name = self.name.clone().unwrap_or_else(|| self.model.clone());
        if let Some(level) = self.exit_risk {
            exits::threshold(&exits::calibration(&source)?, level)?;
        }
        // Drafts are verified by the whole stack.
        let served_exits = match options.speculation {
            Some(_) => None,
            None => exits::served(&source, &text_model.model)?,
        };
        let has_template = chat_template.is_some();
        let prefix_token = text_model.prefix_token().ok();
        let TextModel { model, tokenizer, .. } = text_model;
        let served =
            ServedModel { name: name.clone(), model, tokenizer, chat_template, prefix_token, exits: served_exits };
        let kv_tokens = options.kv_tokens;
        let service = Service::start(served, options)?;
        let lifetime = Lifetime { stop: signal::stop_flag()?, drain: self.drain };
        output::line(&format!(
            "serving `{name}` at http://{address}: {} slots of {} tokens, KV cache {}{}{}",
            engine.num_slots,
            engine.context,
            bytes(service.cache_bytes() as u64),
            kv_tokens.map_or_else(String::new, |tokens| format!(" for {} tokens", grouped(tokens as u64))),
            if has_template { "" } else { ", no chat template" },
        ));
        output::line(match retie_serve::serve(service, listener, lifetime)? {
            Ended::Finished => "all requests are finished",
            Ended::Cancelled => "some requests were ended before they were finished",
        });
        Ok(Status::Done)
    }
}

impl Serve {
    /// Compares the memory of weights, KV cache and one pass with what is free.
    fn check_memory(&self, source: &ModelSource, device: &Device, engine: &EngineOptions) -> anyhow::Result<()> {
        let config = &source.config;
        let weights = CausalLm::weight_bytes(config, source.tensors.as_ref(), device, self.dtype.get()) as u64;
        let cache = self.engine.kv_bytes(config);
        let of_token =
            4 * config.hidden_size + 2 * (config.query_size() + config.key_value_size() + config.intermediate_size);
        let pass = 4 * (engine.max_step_tokens * of_token + engine.num_slots * config.vocab_size) as u64;
        let held = weights.saturating_add(cache);
        let need = Need { least: held, estimate: held.saturating_add(pass) };
        memory::check("the server", need, |free| {
            let share = free.saturating_sub(weights + pass) as f64 / cache.max(1) as f64;
            let tokens = self.engine.kv_tokens(config).unwrap_or(engine.num_slots.saturating_mul(engine.context));
            match (share * tokens as f64) as usize {
                tokens if tokens < engine.context => "a smaller `--context`, or `--dtype bf16`, needs less".to_owned(),
                tokens => format!("`--kv-tokens {tokens}` would fit, or a smaller `--context`"),
            }
        })
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected an integer of at least 1".to_owned())
}
