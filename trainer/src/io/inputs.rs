//! Inputs of a run: student, teacher, tokenizer, text; checked against each other before anything
//! is written.

use super::{
    router_checks::{check_routers, check_states},
    texts::{TextFiles, Texts, Tokenizing},
};
use crate::{
    TrainError,
    loss::{self, Stacks},
};
use retie_checkpoint::ModelSource;
use retie_collective::Collective;
use retie_config::{Anneal, DataConfig, DataFormat, LossNeeds, ParameterGroup, UptrainConfig};
use retie_data::{
    ChatTemplate, Conversations, DataError, Progress, Tokenizer, Vocabulary, check_shared_vocabulary,
    logits::LogitsCache,
};
use std::{collections::BTreeSet, sync::Arc};

/// The token between documents, if the tokenizer has it: the end of a *text*, which in chat models
/// differs from the end of a turn that `eos_token_id` names.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Checks that every rank has the same number of micro-batches.
///
/// # Errors
/// [`TrainError::UnevenRanks`].
pub fn check_ranks(config: &UptrainConfig, world: usize) -> Result<(), TrainError> {
    let accumulation = config.train.gradient_accumulation;
    if accumulation.is_multiple_of(world) { Ok(()) } else { Err(TrainError::UnevenRanks { accumulation, world }) }
}

/// Models and texts, open and checked; weights are not yet read.
pub struct Inputs {
    pub student: ModelSource,
    pub teacher: Option<ModelSource>,
    /// Cached logits of a teacher, in place of one.
    pub logits: Option<LogitsCache>,
    pub stacks: Stacks,
    pub tokenizer: Tokenizer,
    pub end_of_text: u32,
    conversations: Option<Conversations>,
    files: TextFiles,
}

impl Inputs {
    /// Opens what `config` names; `student` stands in for its student when a run is resumed.
    ///
    /// # Errors
    /// When a data file is missing, or a model or tokenizer is missing, damaged, or does not fit
    /// the others.
    pub fn open(config: &UptrainConfig, student: Option<ModelSource>) -> Result<Self, TrainError> {
        let files = TextFiles::find(&config.data)?;
        let student = match student {
            Some(student) => student,
            None => ModelSource::open(&config.student.model)?,
        };
        student.validate()?;
        check_trained(config, &student)?;
        check_routers(config, &student)?;
        let tokenizer = tokenizer(&student)?;
        check_context(config.data.sequence_length, &student);
        let end_of_text = end_of_text(&student, &tokenizer)?;
        let conversations = conversations(&config.data, &student)?;
        let named = config.teacher.as_ref();
        let teacher = named.and_then(|t| t.model.as_ref()).map(|model| ModelSource::open(model)).transpose()?;
        let logits = named.and_then(|t| t.logits.as_ref()).map(|dir| LogitsCache::open(dir)).transpose()?;
        if let Some(logits) = &logits {
            logits.check_tokenizer(&tokenizer, student.config.vocab_size)?;
            check_temperatures(config, logits.meta().temperature)?;
        }
        if let Some(teacher) = &teacher {
            teacher.validate()?;
            check_context(config.data.sequence_length, teacher);
            let own = teacher.tokenizer_json().map(|_| self::tokenizer(teacher)).transpose()?;
            check_shared_vocabulary(vocabulary(teacher, own.as_ref()), vocabulary(&student, Some(&tokenizer)))?;
        }
        check_anneal(config, &student)?;
        let stacks = stacks(&student, teacher.as_ref())?;
        loss::check(&config.losses, &stacks)?;
        check_states(&student, teacher.as_ref(), &config.losses, &stacks)?;
        Ok(Self { student, teacher, logits, stacks, tokenizer, end_of_text, conversations, files })
    }

    /// Tokenises the texts. `events` gets the name of the text, `train` or `heldout`, and the
    /// progress.
    ///
    /// # Errors
    /// When a text is missing, malformed or too short, or the cached logits are of another one.
    pub fn texts(
        &self,
        ranks: &dyn Collective,
        events: &mut dyn FnMut(&'static str, Progress),
    ) -> Result<Texts, TrainError> {
        let (tokenizer, end_of_text, conversations) = (&self.tokenizer, self.end_of_text, self.conversations.clone());
        let mut tokenizing = Tokenizing { tokenizer, end_of_text, conversations, events };
        let texts = self.files.on_ranks(ranks, |files| {
            Ok(Texts { train: Arc::new(files.train(&mut tokenizing)?), heldout: files.heldout(&mut tokenizing)? })
        })?;
        if let Some(logits) = &self.logits {
            logits.check_rows(&texts.train)?;
        }
        Ok(texts)
    }
}

/// Refuses schedules of mechanisms that the student does not have.
fn check_anneal(config: &UptrainConfig, student: &ModelSource) -> Result<(), TrainError> {
    let recursion = student.config.recursion.as_ref();
    let has = |name: &str| recursion.is_some_and(|recursion| recursion.mechanisms().contains(&name));
    let mut schedules = config.train.anneal.iter().flat_map(Anneal::each);
    match schedules.find(|(name, _)| !has(name)) {
        Some((mechanism, _)) => Err(TrainError::NothingAnnealed { model: student.spec.clone(), mechanism }),
        None => Ok(()),
    }
}

/// Refuses a run whose first step trains nothing of `student`.
fn check_trained(config: &UptrainConfig, student: &ModelSource) -> Result<(), TrainError> {
    let has: BTreeSet<ParameterGroup> = student.config.tensors().iter().map(|spec| spec.group).collect();
    if has.iter().any(|group| config.optimizer.groups.get(*group).is_trained_after(0)) {
        return Ok(());
    }
    let groups = has.into_iter().map(ParameterGroup::name).collect();
    Err(TrainError::NothingTrained { model: student.spec.clone(), groups })
}

/// The token that ends a text of `model`.
///
/// # Errors
/// [`TrainError::NoEndOfText`].
pub fn end_of_text(model: &ModelSource, tokenizer: &Tokenizer) -> Result<u32, TrainError> {
    let found = tokenizer.token_id(END_OF_TEXT).or_else(|| model.config.eos_token_ids.first().copied());
    found.ok_or_else(|| TrainError::NoEndOfText { model: model.spec.clone() })
}

/// What turns conversations into tokens, if the text of a run is conversations.
///
/// # Errors
/// `model` has no chat template, or one that is not Jinja.
pub fn conversations(data: &DataConfig, model: &ModelSource) -> Result<Option<Conversations>, TrainError> {
    if data.format == DataFormat::Text {
        return Ok(None);
    }
    let template = ChatTemplate::from_model_files(&model.companions, &model.path)?;
    let template = template.ok_or_else(|| DataError::NoChatTemplate { model: model.spec.clone() })?;
    Ok(Some(Conversations::new(template)))
}

/// Refuses losses at another temperature than that of the cached logits.
fn check_temperatures(config: &UptrainConfig, cached: f64) -> Result<(), TrainError> {
    for term in &config.losses {
        if let LossNeeds::TeacherLogits { temperature } = term.needs()
            && temperature != cached
        {
            let reason = format!("its temperature is `{temperature}`, `teacher.logits` was made with `{cached}`");
            let hint = "the two have to be the same: `retie cache-logits --temperature` makes others";
            return Err(TrainError::Loss { loss: term.name(), reason, hint });
        }
    }
    Ok(())
}

fn vocabulary<'a>(model: &'a ModelSource, tokenizer: Option<&'a Tokenizer>) -> Vocabulary<'a> {
    Vocabulary { model: &model.spec, size: model.config.vocab_size, tokenizer }
}

fn stacks(student: &ModelSource, teacher: Option<&ModelSource>) -> Result<Stacks, TrainError> {
    Ok(Stacks {
        student: student.config.share_map(),
        teacher_depths: teacher.map(|teacher| teacher.config.num_hidden_layers),
        widths: (student.config.hidden_size, teacher.map(|teacher| teacher.config.hidden_size)),
    })
}

/// Says where sequences of `sequence_length` tokens are longer than the context of `model`, which
/// has never seen positions past it.
pub fn check_context(sequence_length: usize, model: &ModelSource) {
    let context = model.config.max_position_embeddings;
    if sequence_length > context {
        tracing::warn!(sequence_length, context, "sequences are longer than the context of `{}`", model.spec);
    }
}

/// The tokenizer of `model`.
///
/// # Errors
/// It has none, or one that is damaged or of another model.
pub fn tokenizer(model: &ModelSource) -> Result<Tokenizer, TrainError> {
    let tokenizer = Tokenizer::from_model_files(&model.companions, &model.path)?;
    let tokenizer = tokenizer.ok_or_else(|| TrainError::NoTokenizer { model: model.spec.clone() })?;
    Ok(tokenizer.for_model(model.config.vocab_size)?)
}
