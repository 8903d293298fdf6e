//! The tokens of a calibration: sequences spread evenly over a text, the last ones held out.
//!
//! Neighbouring sequences are of one document or one subject; spread ones show more of what the text has. The text is cut into as many
//! parts of equal length as sequences are wanted, and each sequence begins with the first line that begins in its part. Where a
//! part is too short for that, the sequences lie side by side from the beginning. The file is read whole, the tokens that
//! are used are encoded.

use crate::model;
use anyhow::bail;
use retie_checkpoint::ModelSource;
use retie_convert::{Calibration, calibrate::LayerModel};
use retie_data::Tokenizer;
use std::path::Path;

/// Tokens of a sequence, where the model's context is not shorter.
const SEQUENCE_LENGTH: usize = 512;

/// One held-out sequence for so many that are fitted to.
const FIT_FOR_HELDOUT: usize = 4;

/// More held-out sequences take time and say little more.
const MOST_HELDOUT: usize = 8;

/// Bytes that are encoded first for each token that is wanted; doubled until they are enough.
const BYTES_FOR_TOKEN: usize = 6;

/// Tokens that are fitted to, and others.
pub struct CalibrationText {
    name: String,
    sequence_length: usize,
    fit: Vec<u32>,
    heldout: Vec<u32>,
}

impl CalibrationText {
    /// Reads `path` with the tokenizer of `source`: `tokens` tokens, rounded down to whole sequences, and the held-out ones.
    pub fn read(source: &ModelSource, path: &Path, tokens: usize) -> anyhow::Result<Self> {
        let tokenizer = model::tokenizer(source)?;
        let bos = model::bos_token(source)?;
        let text = model::read_text(path)?;
        let sequence_length = SEQUENCE_LENGTH.min(source.config.max_position_embeddings).min(tokens);
        let num_fit = (tokens / sequence_length).max(1);
        let num_heldout = num_fit.div_ceil(FIT_FOR_HELDOUT).min(MOST_HELDOUT);
        let cut = Cut { tokenizer: &tokenizer, bos, length: sequence_length, count: num_fit + num_heldout };
        let ids = match cut.spread(&text)? {
            Some(ids) => ids,
            None => cut.consecutive(&text, path)?,
        };
        let (fit, heldout) = ids.split_at(num_fit * sequence_length);
        Ok(Self { name: path.display().to_string(), sequence_length, fit: fit.to_vec(), heldout: heldout.to_vec() })
    }

    /// With the model that runs on it.
    pub fn calibration<'m>(&self, model: &'m dyn LayerModel) -> Calibration<'m> {
        Calibration {
            model,
            text: self.name.clone(),
            sequence_length: self.sequence_length,
            fit: self.fit.clone(),
            heldout: self.heldout.clone(),
        }
    }
}

/// How a text is cut: `count` sequences of `length` tokens, each after a `bos` if there is one.
struct Cut<'t> {
    tokenizer: &'t Tokenizer,
    bos: Option<u32>,
    length: usize,
    count: usize,
}

impl Cut<'_> {
    /// Sequences from all over the text, one after the other; `None` where it is too short.
    fn spread(&self, text: &str) -> anyhow::Result<Option<Vec<u32>>> {
        let border =
            |part: usize| text.floor_char_boundary((part as u128 * text.len() as u128 / self.count as u128) as usize);
        let mut ids = Vec::with_capacity(self.count * self.length);
        for part in 0..self.count {
            let part_text = &text[border(part)..border(part + 1)];
            let line = if part == 0 { 0 } else { part_text.find('\n').map_or(0, |newline| newline + 1) };
            let Some(sequence) = self.first(part_text[line..].trim_start())? else { return Ok(None) };
            ids.extend(sequence);
        }
        Ok(Some(ids))
    }

    /// The first sequence of `text`; `None` where it is too short.
    fn first(&self, text: &str) -> anyhow::Result<Option<Vec<u32>>> {
        let mut bytes = BYTES_FOR_TOKEN * self.length;
        loop {
            let end = text.floor_char_boundary(bytes);
            let mut ids: Vec<u32> = self.bos.into_iter().collect();
            ids.extend(self.tokenizer.encode(&text[..end])?);
            // The last token may be a piece of a longer one that was cut.
            if ids.len() > self.length || (ids.len() == self.length && end == text.len()) {
                ids.truncate(self.length);
                return Ok(Some(ids));
            }
            if end == text.len() {
                return Ok(None);
            }
            bytes *= 2;
        }
    }

    /// Sequences side by side, from the beginning.
    fn consecutive(&self, text: &str, path: &Path) -> anyhow::Result<Vec<u32>> {
        let own = self.length - usize::from(self.bos.is_some());
        let ids = self.tokenizer.encode(text)?;
        if ids.len() < self.count * own {
            bail!(
                "`{}` has {} tokens, expected at least {}: {} sequences of {}, part of them held out\nhint: name a longer text, or ask for fewer tokens",
                path.display(),
                ids.len(),
                self.count * own,
                self.count,
                self.length
            );
        }
        let rows = ids.chunks_exact(own).take(self.count);
        Ok(rows.flat_map(|row| self.bos.into_iter().chain(row.iter().copied())).collect())
    }
}
