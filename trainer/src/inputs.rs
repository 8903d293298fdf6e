//! What a run reads: student, teacher, tokenizer, text; checked against each other before anything is written.

use crate::{
    Event, TrainError,
    loss::{self, Asked, Stacks},
    routing,
};
use retie_checkpoint::{ModelSource, share_map};
use retie_config::UptrainConfig;
use retie_data::{DatasetOptions, TokenDataset, Tokenizer, document::check_files};
use std::{path::PathBuf, sync::Arc};

/// The token between documents, if the tokenizer has it: the end of a *text*, which in chat models differs from the end of a
/// turn that `eos_token_id` names.
const END_OF_TEXT: &str = "<|endoftext|>";

/// A text that tokenizers disagree on quickly: words, digits, white space, scripts, code.
const PROBE: &str = "The 2 quick-brown foxes' naïve café — 12345.678\n\tfor i in range(10): x += i  # Ünïcödé 你好 мир";

/// Open and checked, weights not yet read.
pub struct Inputs {
    pub student: ModelSource,
    pub teacher: Option<ModelSource>,
    pub stacks: Stacks,
    pub tokenizer: Tokenizer,
    pub end_of_text: u32,
}

/// Tokenised text.
pub struct Texts {
    pub train: Arc<TokenDataset>,
    pub heldout: Option<TokenDataset>,
}

impl Inputs {
    /// Opens what `config` names; `student` stands in for its student when a run is resumed.
    ///
    /// # Errors
    /// When a data file is missing, or a model or tokenizer is missing, damaged, or does not fit the others.
    pub fn open(config: &UptrainConfig, student: Option<ModelSource>) -> Result<Self, TrainError> {
        let files: Vec<PathBuf> = config.data.train.iter().chain(&config.data.heldout).cloned().collect();
        check_files(&files)?;
        let student = match student {
            Some(student) => student,
            None => ModelSource::open(&config.student.model)?,
        };
        student.validate()?;
        routing::check(config, &student)?;
        let tokenizer = tokenizer(&student)?;
        tokenizer.check_vocab(student.config.vocab_size)?;
        let end_of_text = tokenizer.token_id(END_OF_TEXT).or_else(|| student.config.eos_token_ids.first().copied());
        let end_of_text = end_of_text.ok_or_else(|| TrainError::NoEndOfText { model: student.spec.clone() })?;
        let teacher = config.teacher.as_ref().map(|t| ModelSource::open(&t.model)).transpose()?;
        if let Some(teacher) = &teacher {
            teacher.validate()?;
            check_vocabularies(teacher, &student, &tokenizer)?;
        }
        let stacks = stacks(&student, teacher.as_ref())?;
        config.losses.iter().try_for_each(|loss| loss::of(loss).check(&stacks))?;
        routing::check_states(&student, teacher.as_ref(), &Asked::by(&config.losses, 1.0, &stacks))?;
        Ok(Self { student, teacher, stacks, tokenizer, end_of_text })
    }

    /// Tokenises the texts of `config`.
    ///
    /// # Errors
    /// When a text is missing, malformed or too short.
    pub fn texts(&self, config: &UptrainConfig, events: &mut dyn FnMut(Event<'_>)) -> Result<Texts, TrainError> {
        let mut build = |what: &'static str, files: &[PathBuf]| {
            let options = DatasetOptions {
                files: files.to_vec(),
                text_field: config.data.text_field.clone(),
                sequence_length: config.data.sequence_length,
                eos_token_id: self.end_of_text,
                cache_dir: config.data.cache_dir.clone(),
            };
            TokenDataset::build(&options, &self.tokenizer, &mut |progress| events(Event::Tokenizing { what, progress }))
        };
        let train = Arc::new(build("train", &config.data.train)?);
        let heldout = match config.data.heldout.as_slice() {
            [] => None,
            files => Some(build("heldout", files)?),
        };
        Ok(Texts { train, heldout })
    }
}

fn stacks(student: &ModelSource, teacher: Option<&ModelSource>) -> Result<Stacks, TrainError> {
    Ok(Stacks {
        student: share_map(&student.config)?,
        teacher_depths: teacher.map(|teacher| teacher.config.num_hidden_layers),
        widths: (student.config.hidden_size, teacher.map(|teacher| teacher.config.hidden_size)),
    })
}

fn tokenizer(model: &ModelSource) -> Result<Tokenizer, TrainError> {
    let json = model.tokenizer_json().ok_or_else(|| TrainError::NoTokenizer { model: model.spec.clone() })?;
    Ok(Tokenizer::from_bytes(json, &model.path.join("tokenizer.json"))?)
}

fn check_vocabularies(teacher: &ModelSource, student: &ModelSource, tokenizer: &Tokenizer) -> Result<(), TrainError> {
    let mismatch = |reason| TrainError::VocabularyMismatch {
        teacher: teacher.spec.clone(),
        student: student.spec.clone(),
        reason,
    };
    let (ours, theirs) = (student.config.vocab_size, teacher.config.vocab_size);
    if ours != theirs {
        return Err(mismatch(format!("the teacher has {theirs} tokens, the student {ours}")));
    }
    let same = tokenizer_of(teacher)?.is_none_or(|other| match (other.encode(PROBE), tokenizer.encode(PROBE)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    });
    if same { Ok(()) } else { Err(mismatch("their tokenizers split the same text differently".into())) }
}

/// The teacher's own tokenizer, where it has one.
fn tokenizer_of(model: &ModelSource) -> Result<Option<Tokenizer>, TrainError> {
    model.tokenizer_json().map(|_| tokenizer(model)).transpose()
}
