//! `retie chat`: a conversation on the terminal.

use crate::{
    args::{CaptureArgs, DeviceArgs, DtypeArgs, SamplingArgs},
    error::Status,
    model::{self, TextModel},
    output,
};
use clap::Args;
use retie_data::{ChatTemplate, DecodeStream};
use retie_engine::{Engine, EngineOptions, FinishReason, Request, Sampling, StopConditions};
use retie_model::kernels::on_worker;
use serde_json::{Value, json};
use std::io::{self, BufRead, IsTerminal, Write};

/// Most tokens of a prompt that one pass reads.
const MAX_STEP_TOKENS: usize = 512;

/// Talk to a model that has a chat template: each line of stdin is a message, its end ends the
/// conversation
#[derive(Debug, Args)]
pub struct Chat {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// A message of the system before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Stop an answer after this many tokens; default: when the context is full
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_new_tokens: Option<u64>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
}

impl Chat {
    pub fn run(self) -> anyhow::Result<Status> {
        let sampling = self.sampling.checked()?;
        self.capture.apply();
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        let template = model::chat_template(&source)?;
        let model = TextModel::load(&source, &device, self.dtype.get())?;
        let context = source.config.max_position_embeddings;
        let options = EngineOptions { num_slots: 1, context, max_step_tokens: MAX_STEP_TOKENS };
        let mut conversation = Conversation {
            engine: Engine::new(model.model.clone(), options)?,
            model,
            template,
            sampling,
            max_new_tokens: self.max_new_tokens.map(usize::try_from).transpose()?,
            messages: self.system.iter().map(|text| json!({"role": "system", "content": text})).collect(),
        };
        let stdin = io::stdin();
        loop {
            if stdin.is_terminal() {
                write!(io::stderr(), "> ")?;
            }
            let mut line = String::new();
            if stdin.lock().read_line(&mut line)? == 0 {
                return Ok(Status::Done);
            }
            let message = line.trim_end_matches(['\n', '\r']);
            if !message.trim().is_empty() {
                on_worker(|| conversation.answer(message))?;
            }
        }
    }
}

/// A conversation with a model.
struct Conversation {
    engine: Engine,
    model: TextModel,
    template: ChatTemplate,
    sampling: Sampling,
    max_new_tokens: Option<usize>,
    messages: Vec<Value>,
}

impl Conversation {
    /// Answers a message and prints the answer as it is generated. Each answer reads the whole
    /// conversation again.
    fn answer(&mut self, message: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": message}));
        let prompt = self.model.encode_messages(&self.template, &Value::Array(self.messages.clone()))?;
        let mut stop = StopConditions::for_model(self.engine.config(), self.max_new_tokens);
        stop.eos_token_ids.extend(self.template.end_tokens());
        let mut decoder = DecodeStream::after(&self.model.tokenizer, true, &prompt)?;
        let request = Request { prompt, sampling: self.sampling.clone(), stop, ..Request::default() };
        self.engine.admit(request)?;
        let mut answer = String::new();
        while !self.engine.is_idle() {
            for progress in self.engine.step() {
                progress.failed.map_or(Ok(()), Err)?;
                let is_text = progress.finish != Some(FinishReason::EndOfText);
                if let Some(token) = progress.token.filter(|_| is_text) {
                    let piece = decoder.step(token)?;
                    output::stream(&piece)?;
                    answer += &piece;
                }
            }
        }
        let rest = decoder.finish()?;
        output::stream(&(rest.clone() + "\n"))?;
        self.messages.push(json!({"role": "assistant", "content": answer + &rest}));
        Ok(())
    }
}
