//! What a run reads: student, teacher, tokenizer, text; checked against each other before anything is written.

use crate::{
    Event, TrainError,
    collective::Collective,
    loss::{self, Asked, Stacks},
    routing,
    texts::{TextFiles, Texts, Tokenizing},
};
use retie_checkpoint::{ModelSource, share_map};
use retie_config::{EarlyExitConfig, LossConfig, UptrainConfig};
use retie_data::{Tokenizer, logits::LogitsCache};
use std::sync::Arc;

/// The token between documents, if the tokenizer has it: the end of a *text*, which in chat models differs from the end of a
/// turn that `eos_token_id` names.
const END_OF_TEXT: &str = "<|endoftext|>";

/// A text that tokenizers disagree on quickly: words, digits, white space, scripts, code.
const PROBE: &str = "The 2 quick-brown foxes' naïve café — 12345.678\n\tfor i in range(10): x += i  # Ünïcödé 你好 мир";

/// Open and checked, weights not yet read.
pub struct Inputs {
    pub student: ModelSource,
    pub teacher: Option<ModelSource>,
    /// What was kept of a teacher, in place of one.
    pub logits: Option<LogitsCache>,
    pub stacks: Stacks,
    pub tokenizer: Tokenizer,
    pub end_of_text: u32,
    files: TextFiles,
}

impl Inputs {
    /// Opens what `config` names; `student` stands in for its student when a run is resumed.
    ///
    /// # Errors
    /// When a data file is missing, or a model or tokenizer is missing, damaged, or does not fit the others.
    pub fn open(config: &UptrainConfig, student: Option<ModelSource>) -> Result<Self, TrainError> {
        let files = TextFiles::find(&config.data)?;
        let student = match student {
            Some(student) => student,
            None => ModelSource::open(&config.student.model)?,
        };
        student.validate()?;
        routing::check(config, &student)?;
        let tokenizer = tokenizer(&student)?;
        tokenizer.check_vocab(student.config.vocab_size)?;
        let end_of_text = end_of_text(&student, &tokenizer)?;
        let named = config.teacher.as_ref();
        let teacher = named.and_then(|t| t.model.as_ref()).map(|model| ModelSource::open(model)).transpose()?;
        let logits = named.and_then(|t| t.logits.as_ref()).map(|dir| LogitsCache::open(dir)).transpose()?;
        if let Some(logits) = &logits {
            logits.check_tokenizer(&tokenizer, student.config.vocab_size)?;
            check_temperatures(config, logits.meta().temperature)?;
        }
        if let Some(teacher) = &teacher {
            teacher.validate()?;
            check_vocabularies(teacher, &student, &tokenizer)?;
        }
        let stacks = stacks(&student, teacher.as_ref())?;
        config.losses.iter().try_for_each(|loss| loss::of(loss).check(&stacks))?;
        routing::check_states(&student, teacher.as_ref(), &Asked::by(&config.losses, 1.0, &stacks))?;
        Ok(Self { student, teacher, logits, stacks, tokenizer, end_of_text, files })
    }

    /// Tokenises the texts.
    ///
    /// # Errors
    /// When a text is missing, malformed or too short, or what was kept of a teacher is of another one.
    pub fn texts(&self, ranks: &dyn Collective, events: &mut dyn FnMut(Event<'_>)) -> Result<Texts, TrainError> {
        let mut tokenizing = Tokenizing {
            tokenizer: &self.tokenizer,
            end_of_text: self.end_of_text,
            events: &mut |what, progress| events(Event::Tokenizing { what, progress }),
        };
        let texts = self.files.on_ranks(ranks, |files| {
            Ok(Texts { train: Arc::new(files.train(&mut tokenizing)?), heldout: files.heldout(&mut tokenizing)? })
        })?;
        if let Some(logits) = &self.logits {
            logits.check_rows(&texts.train)?;
        }
        Ok(texts)
    }
}

/// The token that ends a text of `model`.
///
/// # Errors
/// [`TrainError::NoEndOfText`].
pub fn end_of_text(model: &ModelSource, tokenizer: &Tokenizer) -> Result<u32, TrainError> {
    let found = tokenizer.token_id(END_OF_TEXT).or_else(|| model.config.eos_token_ids.first().copied());
    found.ok_or_else(|| TrainError::NoEndOfText { model: model.spec.clone() })
}

/// What was kept of a teacher was kept at one temperature.
fn check_temperatures(config: &UptrainConfig, kept: f64) -> Result<(), TrainError> {
    for loss in config.losses.iter().filter(|loss| loss.needs_teacher()) {
        let asked = match loss {
            LossConfig::Distill(c) => c.temperature,
            LossConfig::EarlyExit(EarlyExitConfig { distill: Some(c), .. }) => c.temperature,
            LossConfig::CrossEntropy(_)
            | LossConfig::EarlyExit(_)
            | LossConfig::Hidden(_)
            | LossConfig::Blockwise(_)
            | LossConfig::RouterBce(_)
            | LossConfig::AuxiliaryRouterBce(_)
            | LossConfig::RouterZLoss(_)
            | LossConfig::RouterBalancing(_)
            | LossConfig::RouterDecisiveness(_) => continue,
        };
        if asked != kept {
            let reason = format!("its temperature is `{asked}`, `teacher.logits` was made with `{kept}`");
            let hint = "the two have to be the same: `retie cache-logits --temperature` makes others";
            return Err(TrainError::Loss { loss: loss.name(), reason, hint });
        }
    }
    Ok(())
}

fn stacks(student: &ModelSource, teacher: Option<&ModelSource>) -> Result<Stacks, TrainError> {
    Ok(Stacks {
        student: share_map(&student.config)?,
        teacher_depths: teacher.map(|teacher| teacher.config.num_hidden_layers),
        widths: (student.config.hidden_size, teacher.map(|teacher| teacher.config.hidden_size)),
    })
}

/// The tokenizer of `model`.
///
/// # Errors
/// It has none, or a damaged one.
pub fn tokenizer(model: &ModelSource) -> Result<Tokenizer, TrainError> {
    let json = model.tokenizer_json().ok_or_else(|| TrainError::NoTokenizer { model: model.spec.clone() })?;
    Ok(Tokenizer::from_bytes(json, &model.path.join("tokenizer.json"))?)
}

/// Checks that a teacher can be compared with a student token by token.
///
/// # Errors
/// [`TrainError::VocabularyMismatch`], or its tokenizer is damaged.
pub fn check_vocabularies(
    teacher: &ModelSource,
    student: &ModelSource,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
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
