//! A model that the benchmark serves itself, at a free port of this machine.

use super::{exits::Exits, target::Variant, workload::Size};
use crate::{
    args::{DeviceArgs, DtypeArgs, EngineArgs, SpeculationArgs},
    exits as calibrated,
    model::{self, TextModel},
};
use anyhow::{Context, anyhow, ensure};
use retie_checkpoint::ModelSource;
use retie_data::Tokenizer;
use retie_engine::{ExitOptions, ExitTrace, Scheduler};
use retie_serve::{Lifetime, QueueLimits, ServeError, ServeOptions, ServedExits, ServedModel, Service};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Time after which a request is ended.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// A server on a thread of this process.
pub struct Local {
    /// The model with its scheduler.
    pub name: String,
    pub url: String,
    /// Forced exits, if there are any.
    pub exits: Option<Exits>,
    pub vocab_size: usize,
    pub tokenizer: Tokenizer,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<retie_serve::Ended, ServeError>>,
}

/// The key that servers need, as `retie serve` has it.
pub fn api_key() -> Option<String> {
    std::env::var(crate::command::serve::API_KEY).ok()
}

/// A model that is loaded once, for all targets that serve it.
pub struct Loaded {
    source: ModelSource,
    model: TextModel,
}

impl Loaded {
    /// Loads the MODEL `spec`.
    ///
    /// # Errors
    /// There is no such model.
    pub fn load(spec: &str, device: &DeviceArgs, dtype: DtypeArgs) -> anyhow::Result<Self> {
        let device = retie_model::device(&device.device)?;
        let source = model::open(spec)?;
        let model = TextModel::load(&source, &device, dtype.get())?;
        Ok(Self { source, model })
    }

    /// The exits that a server of `variant` has.
    fn exits(&self, variant: &Variant) -> anyhow::Result<Option<ServedExits>> {
        let Self { source, model } = self;
        if let Some(level) = variant.exit_risk {
            calibrated::threshold(&calibrated::calibration(source)?, level)?;
        }
        match (variant.speculate, variant.kv_policy) {
            // Drafts are verified by the whole stack.
            (Some(_), _) => Ok(None),
            (None, Some(kv)) => {
                let refused = |reason| anyhow!("tokens of `{}` cannot leave early: {reason}", variant.name);
                model.model.check_exits(kv).map_err(refused)?;
                Ok(Some(ServedExits { options: ExitOptions { rule: None, kv }, calibration: None }))
            }
            (None, None) => calibrated::served(source, &model.model),
        }
    }
}

/// What all servers of a benchmark have in common.
pub struct Common<'a> {
    pub engine: EngineArgs,
    /// Forced exits of those whose tokens exit.
    pub trace: Option<&'a ExitTrace>,
    pub drafts: &'a SpeculationArgs,
    pub sizes: &'a [Size],
}

impl Local {
    /// Serves a model as `variant` says, with `scheduler`.
    ///
    /// # Errors
    /// The largest request does not fit the context, or the model has no threshold for the risk, no
    /// such policy, or cannot speculate.
    pub fn start(
        loaded: &Loaded,
        (variant, scheduler): (&Variant, Scheduler),
        common: &Common<'_>,
    ) -> anyhow::Result<Self> {
        let Common { sizes, .. } = *common;
        let config = &loaded.source.config;
        let engine = common.engine.options(config);
        let longest = sizes.iter().map(|size| size.prompt.saturating_add(size.new)).max().unwrap_or(0);
        ensure!(
            longest <= engine.context,
            "a request has {longest} tokens, prompt and new ones, and `{}` is served with a context of {}\nhint: `--context`, or shorter requests",
            variant.model,
            engine.context
        );
        let served_exits = loaded.exits(variant)?;
        let drafts = variant.speculate.map(|drafts| common.drafts.options_with(drafts, &loaded.model));
        let options = ServeOptions {
            engine,
            kv_tokens: common.engine.kv_tokens(config),
            scheduler,
            exit_trace: common.trace.filter(|_| scheduler != Scheduler::Full).cloned(),
            exit_risk: variant.exit_risk,
            speculation: drafts.transpose()?,
            // Every round sends the same prompts, and is to read them.
            prefix_reuse: false,
            queue: QueueLimits { sequences: usize::MAX, tokens: usize::MAX },
            body_bytes: usize::MAX,
            timeout: TIMEOUT,
            api_key: api_key(),
        };
        let TextModel { model, tokenizer, .. } = &loaded.model;
        let name = match variant.scheduler {
            Some(_) => variant.name.clone(),
            None => format!("{} {scheduler}", variant.name),
        };
        let exits = options.exit_trace.as_ref().map(|trace| Exits::of(config, trace, sizes));
        let served = ServedModel {
            name: name.clone(),
            model: model.clone(),
            tokenizer: tokenizer.clone(),
            chat_template: None,
            prefix_token: None,
            exits: served_exits,
        };
        let listener = retie_serve::bind("127.0.0.1", 0)?;
        let url = format!("http://{}", listener.local_addr().context("the address of the server")?);
        let service = Service::start(served, options)?;
        let stop = Arc::new(AtomicBool::new(false));
        let lifetime = Lifetime { stop: Arc::clone(&stop), drain: Duration::ZERO };
        let thread = std::thread::spawn(move || retie_serve::serve(service, listener, lifetime));
        Ok(Self { name, url, vocab_size: config.vocab_size, tokenizer: tokenizer.clone(), exits, stop, thread })
    }

    /// Ends the server.
    ///
    /// # Errors
    /// It has failed before.
    pub fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("the server's thread has panicked"))??;
        Ok(())
    }
}
