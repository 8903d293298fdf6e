//! `retie cache-logits`: the most probable next tokens of a teacher for a text, written to disk for
//! runs that distil from them.

use crate::{
    args::{DeviceArgs, DtypeArgs, JsonArgs},
    error::Status,
    memory::{self, Need},
    model, output,
    progress::{Progress, Unit},
    ranks, signal,
};
use burn::tensor::Device;
use clap::Args;
use retie_checkpoint::ModelSource;
use retie_collective::{Collective, lead_first};
use retie_config::{DataConfig, UptrainConfig, document};
use retie_model::CausalLm;
use retie_report::number::{bytes, grouped};
use retie_trainer::{Job, KeepEvent, KeepLogits, keep_logits};
use serde_json::json;
use std::path::PathBuf;

/// Keep the most probable next tokens of a teacher for a text; `uptrain` distils from them without
/// the teacher
#[derive(Debug, Args)]
pub struct CacheLogits {
    /// The teacher: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, value_name = "MODEL")]
    teacher: String,
    /// The training text of this run, with its `data.mixture` and `data.packing`
    #[arg(long, value_name = "CONFIG.yaml", conflicts_with_all = ["data", "text_field", "sequence_length", "cache_dir"])]
    config: Option<PathBuf>,
    /// The training text, as in `data.train`: .jsonl, .txt, .parquet or .arrow files or patterns in
    /// the same order
    #[arg(long, value_name = "FILE", required_unless_present = "config", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Key or column of the text, as in `data.text_field`
    #[arg(long, value_name = "FIELD", default_value = retie_data::DEFAULT_TEXT_FIELD)]
    text_field: String,
    /// Tokens of a sequence, as in `data.sequence_length`
    #[arg(long, value_name = "T", required_unless_present = "config", value_parser = clap::value_parser!(u32).range(2..))]
    sequence_length: Option<u32>,
    /// Where tokenised text is kept between runs, as in `data.cache_dir`
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Tokens that are kept of each distribution; all others are one further outcome
    #[arg(long, value_name = "K", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Of those only the first that have this probability together; a token then takes as many
    /// bytes as it needs
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Keep softmax(logits / T); the run's `temperature` has to be the same
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,
    /// Sequences that the teacher reads at once; the result does not depend on it
    #[arg(long, value_name = "B", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Folder of the cache; one that was not finished goes on
    #[arg(long, short = 'o', value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

impl CacheLogits {
    pub fn run(self) -> anyhow::Result<Status> {
        ranks::run(|ranks| self.on(ranks))
    }

    fn on(self, ranks: &dyn Collective) -> anyhow::Result<Status> {
        let device = retie_model::device(&self.device.device)?;
        let teacher = lead_first(ranks, || model::open(&self.teacher))?;
        if ranks.leads() && retie_model::is_host(&device) {
            self.check_memory(&teacher, &device)?;
        }
        let options = KeepLogits {
            teacher: model::parent(&teacher)?,
            data: self.text()?,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            temperature: self.temperature,
            batch_size: self.batch_size as usize,
            output: self.output.clone(),
        };
        let stop = signal::stop_flag()?;
        let mut tokenizing: Option<Progress> = None;
        let mut running: Option<Progress> = None;
        let job = Job { device: &device, ranks, stop: &stop };
        let cache =
            keep_logits(&options, &teacher, self.dtype.get(), job, &mut |event| match event {
                _ if !ranks.leads() => {}
                KeepEvent::Tokenizing(p) => tokenizing
                    .get_or_insert_with(|| Progress::new("tokenize text", Unit::Bytes, p.bytes_total))
                    .set(p.bytes_done, p.bytes_total, &format!("{} tokens", grouped(p.tokens))),
                KeepEvent::Rows { done, total } => {
                    tokenizing = None;
                    running
                        .get_or_insert_with(|| Progress::new("teacher", Unit::Count("sequences"), total as u64))
                        .set(done as u64, total as u64, "");
                }
            })?;
        drop((tokenizing, running));
        let status = if cache.finished { Status::Done } else { Status::Interrupted };
        if !ranks.leads() {
            return Ok(status);
        }
        let Some(size) = cache.bytes else {
            output::line("interrupted; the same command goes on");
            return Ok(status);
        };
        let meta = cache.meta;
        let tokens = (meta.rows * meta.sequence_length) as u64;
        let per_token = size as f64 / tokens as f64;
        match self.json.json {
            true => output::json(&json!({
                "meta": meta, "tokens": tokens, "bytes_per_token": per_token, "bytes": size, "shards": meta.num_shards(),
            }))?,
            false => output::data(format!(
                "tokens            {}\nbytes per token   {per_token:.1} ({}{} of the distribution each)\nsize              {} in {} shards",
                grouped(tokens),
                if meta.top_p.is_some() { "up to " } else { "" },
                meta.top_k,
                bytes(size),
                meta.num_shards(),
            ))?,
        }
        output::wrote(&self.output);
        output::next(&format!("retie uptrain CONFIG.yaml --set 'teacher={{logits: {}}}'", self.output.display()));
        Ok(status)
    }

    /// Compares the memory of the teacher and of one pass with what is free.
    fn check_memory(&self, teacher: &ModelSource, device: &Device) -> anyhow::Result<()> {
        /// Rows that wait to be written, and the logits of the tokens that are reduced at once.
        const BUFFERS: u64 = 256 << 20;
        let config = &teacher.config;
        let weights = CausalLm::weight_bytes(config, teacher.tensors.as_ref(), device, self.dtype.get()) as u64;
        let length = self.text()?.sequence_length;
        let of_token =
            4 * config.hidden_size + 2 * (config.query_size() + config.key_value_size() + config.intermediate_size);
        let sequence = 4 * (length * of_token) as u64;
        let pass = sequence.saturating_mul(u64::from(self.batch_size));
        let need = Need { least: weights, estimate: weights.saturating_add(pass).saturating_add(BUFFERS) };
        memory::check("the teacher", need, |free| match free.saturating_sub(weights + BUFFERS) / sequence.max(1) {
            0 => "`--dtype bf16` needs half the memory for the weights".to_owned(),
            sequences => format!("`--batch-size {sequences}` would fit"),
        })
    }

    /// The training text: that of the run in `--config`, or else the one that the arguments name.
    fn text(&self) -> anyhow::Result<DataConfig> {
        if let Some(path) = &self.config {
            return Ok(document::load::<UptrainConfig>(path, &[])?.data);
        }
        Ok(DataConfig {
            text_field: self.text_field.clone(),
            cache_dir: self.cache_dir.clone(),
            ..DataConfig::from_files(self.data.clone(), self.sequence_length.unwrap_or_default() as usize)
        })
    }
}
