//! A model that the benchmark serves itself, at a free port of this machine.

use super::{exits::Exits, workload::Size};
use crate::{
    args::{DeviceArgs, DtypeArgs, EngineArgs},
    exits as calibrated,
    model::{self, TextModel},
};
use anyhow::{Context, anyhow, ensure};
use retie_data::Tokenizer;
use retie_engine::{ExitTrace, Scheduler};
use retie_serve::{Lifetime, QueueLimits, ServeError, ServeOptions, ServedModel, Service};
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

impl Local {
    /// Serves the MODEL `spec` with each of `schedulers`, a server for each; `trace` are the forced
    /// exits of those whose tokens exit, and `risk` is that of calibrated ones.
    ///
    /// # Errors
    /// There is no such model, the largest of `sizes` does not fit its context, or it has no
    /// threshold for the risk.
    pub fn start(
        spec: &str,
        (device, dtype, engine): (&DeviceArgs, DtypeArgs, EngineArgs),
        schedulers: &[Scheduler],
        (trace, risk): (Option<&ExitTrace>, Option<f64>),
        sizes: &[Size],
    ) -> anyhow::Result<Vec<Self>> {
        let device = retie_model::device(&device.device)?;
        let source = model::open(spec)?;
        let engine = engine.options(&source.config);
        let longest = sizes.iter().map(|size| size.prompt.saturating_add(size.new)).max().unwrap_or(0);
        ensure!(
            longest <= engine.context,
            "a request has {longest} tokens, prompt and new ones, and `{spec}` is served with a context of {}\nhint: `--context`, or shorter requests",
            engine.context
        );
        let text_model = TextModel::load(&source, &device, dtype.get())?;
        if let Some(level) = risk {
            calibrated::threshold(&calibrated::calibration(&source)?, level)?;
        }
        let served_exits = calibrated::served(&source, &text_model.model)?;
        let TextModel { model, tokenizer, .. } = text_model;
        let options = |scheduler: Scheduler| ServeOptions {
            engine,
            scheduler,
            exit_trace: trace.filter(|_| scheduler != Scheduler::Full).cloned(),
            exit_risk: risk,
            // Every round sends the same prompts, and is to read them.
            prefix_reuse: false,
            queue: QueueLimits { sequences: usize::MAX, tokens: usize::MAX },
            body_bytes: usize::MAX,
            timeout: TIMEOUT,
            api_key: api_key(),
        };
        let start = |scheduler: &Scheduler| -> anyhow::Result<Self> {
            let (model, tokenizer, name) = (model.clone(), tokenizer.clone(), format!("{spec} {scheduler}"));
            let (name_of_model, exits) = (name.clone(), served_exits.clone());
            let (reader, chat_template, prefix_token) = (tokenizer.clone(), None, None);
            let served = ServedModel { name: name_of_model, model, tokenizer, chat_template, prefix_token, exits };
            let listener = retie_serve::bind("127.0.0.1", 0)?;
            let url = format!("http://{}", listener.local_addr().context("the address of the server")?);
            let service = Service::start(served, options(*scheduler))?;
            let stop = Arc::new(AtomicBool::new(false));
            let lifetime = Lifetime { stop: Arc::clone(&stop), drain: Duration::ZERO };
            let thread = std::thread::spawn(move || retie_serve::serve(service, listener, lifetime));
            let exits = options(*scheduler).exit_trace.map(|trace| Exits::of(&source.config, &trace, sizes));
            let vocab_size = source.config.vocab_size;
            Ok(Self { name, url, vocab_size, tokenizer: reader, exits, stop, thread })
        };
        schedulers.iter().map(start).collect()
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
