//! `retie generate`: text that goes on from a prompt, as it comes.

mod depth;

use crate::{
    args::{DeviceArgs, DtypeArgs, JsonArgs},
    error::Status,
    model::{self, TextModel},
    number::rate,
    output,
};
use anyhow::ensure;
use clap::Args;
use depth::{Depths, Pieces};
use retie_model::{KvCache, ModelError, Routing, Sampler, Sampling, kernels::on_worker};
use serde::Serialize;
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
    /// Stop after this many tokens, if the model does not stop before
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    max_new_tokens: u64,
    /// 0 takes the most probable token; the higher, the more even the draw
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the fewest tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Of a routed model: show the prompt too, and each token in the colour of the recursions it went through
    #[arg(long)]
    show_depth: bool,
    /// Of a routed model: write prompt and text here, as a web page with each token in the colour of its recursions
    #[arg(long, value_name = "FILE")]
    show_depth_html: Option<PathBuf>,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// What was generated, and how fast.
#[derive(Debug, Serialize)]
struct Generation {
    prompt: String,
    text: String,
    ids: Vec<u32>,
    stop: Stop,
    prompt_tokens: usize,
    /// Recursions of each token of the prompt, and of each new one, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    depths: Option<Depths>,
    /// Tokens of the prompt by the time until the first new token.
    prefill_tokens_per_second: f64,
    /// New tokens after the first by the time after it; absent if there is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_tokens_per_second: Option<f64>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stop {
    EndOfText,
    MaxNewTokens,
}

impl Generate {
    pub fn run(self) -> anyhow::Result<Status> {
        ensure!(
            self.temperature.is_finite() && self.temperature >= 0.0,
            "`--temperature` is `{}`, expected a finite number, 0 or more",
            self.temperature
        );
        ensure!(self.top_p > 0.0 && self.top_p <= 1.0, "`--top-p` is `{}`, expected above 0, up to 1", self.top_p);
        if let Some(path) = &self.show_depth_html {
            output::check_file(path)?;
        }
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        let model = TextModel::load(&source, &device, self.dtype.get())?;
        for (option, given) in
            [("--show-depth", self.show_depth), ("--show-depth-html", self.show_depth_html.is_some())]
        {
            ensure!(
                model.model.router().is_some() || !given,
                "every token of `{}` goes through all recursions: it has no router\nhint: leave `{option}` out",
                self.model
            );
        }
        let (json, model_name) = (self.json.json, self.model.clone());
        let mut show = |text: &str| if json { Ok(()) } else { output::stream(text) };
        let page = self.show_depth_html.clone();
        let generation = on_worker(|| self.generate(&model, &mut show))?;
        if let (Some(path), Some(depths)) = (&page, &generation.depths) {
            fs_err::write(path, depths.page(&model_name)?)?;
            output::wrote(path);
        }
        if json {
            output::json(&generation)?;
        } else {
            output::stream("\n")?;
        }
        if let Some(depths) = &generation.depths {
            output::line(&depths.legend(output::Style::of_stderr()));
        }
        let decode = generation.decode_tokens_per_second;
        output::line(&format!(
            "prefill {} tokens at {} tok/s, decode {} tokens at {} tok/s",
            generation.prompt_tokens,
            rate(generation.prefill_tokens_per_second),
            generation.ids.len(),
            decode.map_or_else(|| "–".to_owned(), rate),
        ));
        Ok(Status::Done)
    }

    fn generate(
        self,
        model: &TextModel,
        show: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> anyhow::Result<Generation> {
        let config = model.model.config();
        let mut prompt = model.encode_start(&self.prompt)?;
        if prompt.is_empty() {
            prompt.push(model.prefix_token()?);
        }
        let max_new_tokens = usize::try_from(self.max_new_tokens)?;
        let asked = prompt.len().saturating_add(max_new_tokens);
        if asked > config.max_position_embeddings {
            let max_position_embeddings = config.max_position_embeddings;
            let hint = "shorten the prompt or lower `--max-new-tokens`";
            return Err(ModelError::ContextTooLong { asked, max_position_embeddings, hint }.into());
        }
        let sampling = Sampling { temperature: self.temperature, top_p: self.top_p, seed: self.seed };
        let mut sampler = Sampler::new(sampling);
        let mut cache = KvCache::new(config, 1, asked, &model.device);
        let with_depths = self.show_depth || self.show_depth_html.is_some();
        let mut text_of = Pieces::new(model, show, with_depths, self.show_depth);
        let mut ids = Vec::new();
        let mut stop = Stop::MaxNewTokens;
        let start = Instant::now();
        let mut routing = Routing::default();
        let mut next = sampler.next(&model.next_logits_with(&prompt, &mut cache, &mut routing));
        let first_token = start.elapsed().as_secs_f64();
        text_of.prompt(&prompt, &routing)?;
        loop {
            if config.eos_token_ids.contains(&next) {
                stop = Stop::EndOfText;
                break;
            }
            ids.push(next);
            text_of.token(next)?;
            // The depth of a token is known when it has been read.
            if ids.len() == max_new_tokens && !with_depths {
                break;
            }
            let mut routing = Routing::default();
            let logits = model.next_logits_with(&[next], &mut cache, &mut routing);
            text_of.depth(&routing)?;
            if ids.len() == max_new_tokens {
                break;
            }
            next = sampler.next(&logits);
        }
        let decoding = start.elapsed().as_secs_f64() - first_token;
        let (text, depths) = text_of.finish()?;
        // Each forward pass after the first gave one token, the one that ended the text included.
        let decoded = match stop {
            Stop::EndOfText => ids.len(),
            Stop::MaxNewTokens if with_depths => ids.len(),
            Stop::MaxNewTokens => ids.len() - 1,
        };
        Ok(Generation {
            prompt_tokens: prompt.len(),
            prefill_tokens_per_second: prompt.len() as f64 / first_token,
            decode_tokens_per_second: (decoded > 0).then(|| decoded as f64 / decoding),
            prompt: self.prompt,
            depths,
            text,
            ids,
            stop,
        })
    }
}
