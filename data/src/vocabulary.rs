//! Vocabularies of two models that are compared token by token.

use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// A text that tokenizers disagree on quickly: words, digits, white space, scripts, code.
const PROBE: &str = "The 2 quick-brown foxes' naïve café — 12345.678\n\tfor i in range(10): x += i  # Ünïcödé 你好 мир";

/// The tokens of a model.
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary<'a> {
    /// The model, in errors.
    pub model: &'a str,
    /// Rows of its embedding.
    pub size: usize,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// Checks that the distributions of a teacher can be compared with those of a student token by
/// token. A model without a tokenizer is taken to have that of the other.
///
/// # Errors
/// [`DataError::VocabularyMismatch`].
pub fn check_shared_vocabulary(teacher: Vocabulary<'_>, student: Vocabulary<'_>) -> Result<(), DataError> {
    let mismatch = |reason| DataError::VocabularyMismatch {
        teacher: teacher.model.to_owned(),
        student: student.model.to_owned(),
        reason,
    };
    if teacher.size != student.size {
        return Err(mismatch(format!("the teacher has {} tokens, the student {}", teacher.size, student.size)));
    }
    let same = match (teacher.tokenizer, student.tokenizer) {
        (Some(a), Some(b)) => matches!((a.encode(PROBE), b.encode(PROBE)), (Ok(a), Ok(b)) if a == b),
        _ => true,
    };
    if same { Ok(()) } else { Err(mismatch("their tokenizers split the same text differently".to_owned())) }
}
