//! Caching a teacher's distributions for the rows of a text: the teacher runs once over every row,
//! not in every run.

use super::{
    inputs::{check_context, end_of_text, tokenizer},
    texts::{TextFiles, Tokenizing},
};
use crate::{
    Job, TrainError,
    objective::{layout, token_ids},
};
use retie_checkpoint::{FolderLock, ModelSource, Parent};
use retie_collective::{Collective, lead_first};
use retie_config::{DataConfig, Packing};
use retie_data::{
    Batch, Mixture, Progress,
    logits::{LOGITS_SCHEMA, LogitsMeta, LogitsWriter},
};
use retie_model::{
    CausalLm, WeightDtype,
    kernels::{HeadInput, TopProbs, top_probs},
};
use std::path::PathBuf;

/// Bytes of a shard, about.
const SHARD_BYTES: usize = 64 << 20;

/// Options of a cache of logits.
#[derive(Clone, Debug)]
pub struct KeepLogits {
    /// The teacher's files.
    pub teacher: Parent,
    /// The training text of it.
    pub data: DataConfig,
    /// Tokens that are kept of each distribution.
    pub top_k: usize,
    /// Only as many of them as have this probability together.
    pub top_p: Option<f64>,
    /// The distributions are softmax(logits / temperature).
    pub temperature: f64,
    /// Rows that the teacher reads at once.
    pub batch_size: usize,
    /// Folder of the cache.
    pub output: PathBuf,
}

/// Progress of [`keep_logits`].
#[derive(Clone, Copy, Debug)]
pub enum KeepEvent {
    /// The text is being tokenised.
    Tokenizing(Progress),
    /// Rows are in the cache, without those that other ranks write.
    Rows {
        /// Rows that are done.
        done: usize,
        /// All rows.
        total: usize,
    },
}

/// A cache.
#[derive(Clone, Debug)]
pub struct KeptLogits {
    /// Its source and shape.
    pub meta: LogitsMeta,
    /// Bytes of all rows on the disk; `None` where the job was stopped before they were there, and
    /// on other ranks than the first.
    pub bytes: Option<u64>,
    /// Whether all rows are in it.
    pub finished: bool,
}

/// Writes the cache, or the missing shards of it, each rank a part of them. The stop flag is looked
/// at after each batch; whole shards stay.
///
/// # Errors
/// A file is missing, damaged or does not fit; the folder holds a cache of other things; the disk
/// fails. Other ranks may wait for this one then, so the job has to end.
pub fn keep_logits(
    options: &KeepLogits,
    teacher: &ModelSource,
    dtype: WeightDtype,
    job: Job<'_>,
    events: &mut dyn FnMut(KeepEvent),
) -> Result<KeptLogits, TrainError> {
    let ranks = job.ranks;
    options.check(teacher.config.vocab_size)?;
    let files = lead_first(ranks, || TextFiles::find(&options.data))?;
    let tokenizer = tokenizer(teacher)?;
    check_context(options.data.sequence_length, teacher);
    let end_of_text = end_of_text(teacher, &tokenizer)?;
    let mut tokenizing = Tokenizing {
        tokenizer: &tokenizer,
        end_of_text,
        conversations: None,
        events: &mut |_, progress| events(KeepEvent::Tokenizing(progress)),
    };
    let dataset = files.on_ranks(ranks, |files| files.train(&mut tokenizing))?;
    let meta = options.meta(teacher.config.vocab_size, tokenizer.fingerprint(), &dataset);
    let lock = || ranks.leads().then(|| FolderLock::take(&options.output)).transpose();
    let _lock = lead_first(ranks, lock)?;
    let mut writer = lead_first(ranks, || LogitsWriter::open(&options.output, meta.clone()))?;
    let missing = missing(&writer, ranks);
    let rows_of = |shards: &[usize]| shards.iter().map(|shard| meta.rows_of(*shard).len()).sum::<usize>();
    let mut done = meta.rows - rows_of(&missing);
    let missing: Vec<usize> = missing.into_iter().skip(ranks.rank()).step_by(ranks.world()).collect();
    let total = done + rows_of(&missing);
    events(KeepEvent::Rows { done, total });
    let mut stopped = false;
    if !missing.is_empty() {
        let device = job.device.clone().inner();
        let model = CausalLm::load_with(&teacher.config, teacher.tensors.as_ref(), &device, dtype)?;
        'shards: for shard in missing {
            let rows: Vec<usize> = meta.rows_of(shard).collect();
            for rows in rows.chunks(options.batch_size.max(1)) {
                if job.is_stopped() {
                    stopped = true;
                    break 'shards;
                }
                let top = distributions(&model, &dataset.batch(rows)?, options);
                top.rows().for_each(|(ids, log_probs)| writer.push(ids, log_probs));
                done += rows.len();
                events(KeepEvent::Rows { done, total });
            }
            writer.finish_shard(shard)?;
        }
    }
    // All ranks have written their shards when this is known.
    let finished = !ranks.any(stopped);
    let bytes = if finished && ranks.leads() { Some(writer.payload_bytes()?) } else { None };
    Ok(KeptLogits { meta, bytes, finished })
}

impl KeepLogits {
    fn check(&self, vocab_size: usize) -> Result<(), TrainError> {
        if !(1..=vocab_size).contains(&self.top_k) {
            return Err(TrainError::TopK { found: self.top_k, vocab_size });
        }
        let numbers = [
            ("temperature", self.temperature, f64::MAX, "a finite number above 0"),
            ("top_p", self.top_p.unwrap_or(1.0), 1.0, "a number above 0, up to 1"),
        ];
        for (key, found, most, expected) in numbers {
            if !(found > 0.0 && found <= most) {
                return Err(TrainError::KeptDistribution { key, found, expected });
            }
        }
        if self.data.packing == Packing::BestFit {
            return Err(TrainError::RowsOfOtherLengths);
        }
        Ok(())
    }

    fn meta(&self, vocab_size: usize, tokenizer: &str, dataset: &Mixture) -> LogitsMeta {
        let mut meta = LogitsMeta {
            schema: LOGITS_SCHEMA,
            teacher: self.teacher.model.clone(),
            teacher_files: self.teacher.files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect(),
            tokenizer: tokenizer.to_owned(),
            data: dataset.fingerprint(),
            rows: dataset.num_rows(),
            sequence_length: self.data.sequence_length,
            vocab_size,
            top_k: self.top_k,
            top_p: self.top_p,
            temperature: self.temperature,
            rows_per_shard: 1,
        };
        meta.rows_per_shard = (SHARD_BYTES / (meta.bytes_per_token() * meta.sequence_length)).max(1);
        meta
    }
}

/// Shards that are not there; one rank looks.
fn missing(writer: &LogitsWriter, ranks: &dyn Collective) -> Vec<usize> {
    let mut absent = vec![0u8; writer.meta().num_shards()];
    if ranks.leads() {
        writer.missing().into_iter().for_each(|shard| absent[shard] = 1);
    }
    ranks.broadcast(&mut absent);
    absent.iter().enumerate().filter(|(_, absent)| **absent == 1).map(|(shard, _)| shard).collect()
}

fn distributions(model: &CausalLm, batch: &Batch, options: &KeepLogits) -> TopProbs {
    let hidden = model.forward_packed(token_ids(batch, &model.device()), layout(batch));
    let head = HeadInput { hidden, head: model.head() };
    top_probs(&head, options.top_k, options.top_p, options.temperature as f32)
}
