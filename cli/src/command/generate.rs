//! `retie generate`: continues a prompt and streams the text to stdout.

mod recursions;

use crate::{
    args::{CaptureArgs, DeviceArgs, DtypeArgs, JsonArgs, SamplingArgs, SpeculationArgs},
    error::Status,
    exits::{ChosenExits, ExitArgs},
    model::{self, TextModel},
    output,
};
use anyhow::ensure;
use clap::Args;
use recursions::{Pieces, RecursionCounts};
use retie_data::ChatTemplate;
use retie_engine::{
    Engine, EngineOptions, FinishReason, Progress, Request, Sampling, SpeculationCounts, StopConditions,
};
use retie_model::kernels::on_worker;
use retie_report::number::rate;
use serde::Serialize;
use serde_json::json;
use std::{path::PathBuf, time::Instant};

/// Write text that goes on from a prompt
#[derive(Debug, Args)]
pub struct Generate {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text to go on from
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// The text is a message, and the model answers it: the prompt is what its chat template makes
    #[arg(long)]
    chat: bool,
    /// Stop after this many tokens, if the model does not stop before
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    max_new_tokens: u64,
    /// End the text before this string; can be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    exits: ExitArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Of a routed model: show the prompt too, and each token in the colour of the recursions it
    /// went through
    #[arg(long)]
    show_recursions: bool,
    /// Of a routed model: write prompt and text here, as a web page with each token in the colour
    /// of its recursions
    #[arg(long, value_name = "FILE")]
    show_recursions_html: Option<PathBuf>,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// Generated text and its speed.
#[derive(Debug, Serialize)]
struct Generation {
    prompt: String,
    text: String,
    ids: Vec<u32>,
    stop: StopReason,
    prompt_tokens: usize,
    /// Recursion counts of the tokens of the prompt and of the new ones, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    recursion_counts: Option<RecursionCounts>,
    /// Tokens of the prompt, divided by the seconds until the first new token.
    prefill_tokens_per_second: f64,
    /// Tokens read after the prompt, divided by the seconds after the first new token; absent if
    /// there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_tokens_per_second: Option<f64>,
    /// Drafts and those that were right, if tokens were drafted.
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation: Option<Drafts>,
}

/// Drafts of a generation.
#[derive(Clone, Copy, Debug, Serialize)]
struct Drafts {
    drafted: usize,
    accepted: usize,
    /// Passes that verified drafts.
    verifications: usize,
    /// Tokens decoded without drafts.
    plain: usize,
}

/// Reason for the end of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum StopReason {
    EndOfText,
    StopText,
    MaxNewTokens,
}

impl Generate {
    pub fn run(self) -> anyhow::Result<Status> {
        let sampling = self.sampling.checked()?;
        ensure!(self.stop.iter().all(|text| !text.is_empty()), "`--stop` is empty, expected a text");
        if let Some(path) = &self.show_recursions_html {
            output::check_file(path)?;
        }
        self.capture.apply();
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        let model = TextModel::load(&source, &device, self.dtype.get())?;
        let exits = self.exits.choose(&source, &model.model)?;
        ensure!(
            exits.is_none() || self.speculation.speculate.is_none(),
            "`--speculate` verifies every token by the whole stack\nhint: leave it out, or the options of early exits"
        );
        for (option, given) in [
            ("--show-recursions", self.show_recursions),
            ("--show-recursions-html", self.show_recursions_html.is_some()),
        ] {
            ensure!(
                model.model.router().is_some() || exits.is_some() || !given,
                "every token of `{}` goes through all recursions: it has no router\nhint: leave `{option}` out, or let \
                 tokens leave early with `--exit-risk`",
                self.model
            );
        }
        let template = self.chat.then(|| model::chat_template(&source)).transpose()?;
        let (json, model_name) = (self.json.json, self.model.clone());
        let mut show = |text: &str| if json { Ok(()) } else { output::stream(text) };
        let page = self.show_recursions_html.clone();
        let generation = on_worker(|| self.generate(&model, template.as_ref(), (sampling, exits), &mut show))?;
        if let (Some(path), Some(counts)) = (&page, &generation.recursion_counts) {
            fs_err::write(path, counts.page(&model_name)?)?;
            output::wrote(path);
        }
        if json {
            output::json(&generation)?;
        } else {
            output::stream("\n")?;
        }
        if let Some(counts) = &generation.recursion_counts {
            output::line(&counts.legend(output::Style::of_stderr()));
        }
        let decode = generation.decode_tokens_per_second;
        output::line(&format!(
            "prefill {} tokens at {} tok/s, decode {} tokens at {} tok/s",
            generation.prompt_tokens,
            rate(generation.prefill_tokens_per_second),
            generation.ids.len(),
            decode.map_or_else(|| "–".to_owned(), rate),
        ));
        if let Some(Drafts { drafted, accepted, verifications, plain }) = generation.speculation {
            output::line(&format!(
                "drafted {drafted} tokens in {verifications} passes, {accepted} were right; {plain} tokens without drafts"
            ));
        }
        Ok(Status::Done)
    }

    fn generate(
        self,
        model: &TextModel,
        template: Option<&ChatTemplate>,
        (sampling, exits): (Sampling, Option<ChosenExits>),
        show: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> anyhow::Result<Generation> {
        let config = model.model.config();
        let mut conditions = StopConditions::for_model(config, None);
        let mut prompt = match template {
            None => model.tokenizer.encode_start(&self.prompt)?,
            Some(template) => {
                conditions.eos_token_ids.extend(template.end_tokens());
                model.encode_messages(template, &json!([{"role": "user", "content": self.prompt}]))?
            }
        };
        if prompt.is_empty() {
            prompt.push(model.prefix_token()?);
        }
        let (prompt_tokens, max_new_tokens) = (prompt.len(), usize::try_from(self.max_new_tokens)?);
        let context = prompt_tokens.saturating_add(max_new_tokens).min(config.max_position_embeddings);
        let options = EngineOptions { num_slots: 1, context, max_step_tokens: prompt_tokens };
        let mut engine = Engine::new(model.model.clone(), options)?;
        if let Some(options) = self.speculation.options(model)? {
            engine = engine.with_speculation(options)?;
        }
        let with_counts = self.show_recursions || self.show_recursions_html.is_some() || exits.is_some();
        let (mut max_recursions, mut exit_threshold) = (None, None);
        if let Some(ChosenExits { engine: options, max_recursions: most, threshold }) = exits {
            engine = engine.with_exits(options)?;
            (max_recursions, exit_threshold) = (most, threshold);
        }
        let mut pieces = Pieces::new(model, show, self.stop, with_counts.then_some(self.show_recursions));
        let sequence = engine.admit(Request {
            prompt: prompt.clone(),
            sampling,
            stop: StopConditions { max_new_tokens: Some(max_new_tokens), ..conditions },
            recursion_counts: with_counts,
            max_recursions,
            exit_threshold,
            ..Request::default()
        })?;
        let (mut ids, mut stop) = (Vec::new(), StopReason::MaxNewTokens);
        let start = Instant::now();
        let (mut num_steps, mut decoded, mut first_token) = (0usize, 0usize, 0.0);
        while !engine.is_idle() {
            let progress = engine.step();
            num_steps += 1;
            // Every progress after the prompt read one token.
            decoded += if num_steps > 1 { progress.len() } else { 0 };
            if num_steps == 1 {
                first_token = start.elapsed().as_secs_f64();
            }
            for Progress { recursion_counts, token, finish, failed, .. } in progress {
                failed.map_or(Ok(()), Err)?;
                if num_steps == 1 {
                    pieces.prompt(&prompt, &recursion_counts)?;
                } else {
                    pieces.recursions(&recursion_counts)?;
                }
                match (token, finish) {
                    // This step read the last token only for its recursion count.
                    _ if stop == StopReason::StopText => _ = engine.evict(sequence),
                    (_, Some(FinishReason::EndOfText)) => stop = StopReason::EndOfText,
                    (Some(token), _) => {
                        ids.push(token);
                        if pieces.token(token)? {
                            stop = StopReason::StopText;
                            if !with_counts {
                                engine.evict(sequence);
                            }
                        }
                    }
                    (None, _) => {}
                }
            }
        }
        let decoding = start.elapsed().as_secs_f64() - first_token;
        let (text, recursion_counts) = pieces.finish()?;
        let speculation = engine.speculation_counts().map(|SpeculationCounts { cycles, drafted, accepted, plain }| {
            Drafts { drafted, accepted, verifications: cycles, plain }
        });
        Ok(Generation {
            speculation,
            prompt_tokens,
            prefill_tokens_per_second: prompt_tokens as f64 / first_token,
            decode_tokens_per_second: (decoded > 0).then(|| decoded as f64 / decoding),
            prompt: self.prompt,
            recursion_counts,
            text,
            ids,
            stop,
        })
    }
}
