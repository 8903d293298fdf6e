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
/// token: every token of the student is the same one for the teacher, special ones too, and text is
/// cut into the same. A model without a tokenizer is taken to have that of the other.
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
    let (Some(of_teacher), Some(of_student)) = (teacher.tokenizer, student.tokenizer) else { return Ok(()) };
    if of_teacher.fingerprint() != of_student.fingerprint()
        && let Some(reason) = difference(of_teacher, of_student, student.size)
    {
        return Err(mismatch(reason));
    }
    let bos = [of_teacher, of_student].map(Tokenizer::bos_token);
    if bos[0] != bos[1] {
        let [teacher, student] = bos;
        tracing::warn!(
            teacher,
            student,
            "teacher and student have another BOS token before a text; the student's stands"
        );
    }
    Ok(())
}

/// The first difference between two tokenizers in what a model with `size` tokens can see.
fn difference(teacher: &Tokenizer, student: &Tokenizer, size: usize) -> Option<String> {
    let (of_teacher, of_student) = (teacher.tokens(), student.tokens());
    let seen = of_student.iter().filter(|(id, _)| (**id as usize) < size);
    let mut differ = seen.filter(|(id, token)| of_teacher.get(id) != Some(*token) && **token != padding(**id));
    if let Some((id, token)) = differ.next() {
        let of_teacher = of_teacher.get(id).map_or_else(|| "no token".to_owned(), |token| format!("`{token}`"));
        let more = match differ.count() {
            0 => String::new(),
            more => format!(", and {more} more differ"),
        };
        return Some(format!("token {id} is {of_teacher} to the teacher and `{token}` to the student{more}"));
    }
    let same = matches!((teacher.encode(PROBE), student.encode(PROBE)), (Ok(a), Ok(b)) if a == b);
    (!same).then(|| "their tokenizers split the same text differently".to_owned())
}

/// The name that converters to GGUF give to a row that no token uses.
fn padding(id: u32) -> String {
    format!("[PAD{id}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::tiny;
    use std::path::Path;

    /// The tiny tokenizer after a change of its JSON.
    fn changed(change: impl Fn(&mut serde_json::Value)) -> Tokenizer {
        let mut json = serde_json::from_slice(&fs_err::read(tiny().origin()).unwrap()).unwrap();
        change(&mut json);
        Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("other")).unwrap()
    }

    fn check(teacher: &Tokenizer, student: &Tokenizer) -> Result<(), String> {
        let of = |model, tokenizer| Vocabulary { model, size: 402, tokenizer: Some(tokenizer) };
        check_shared_vocabulary(of("t", teacher), of("s", student)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_teacher_whose_special_tokens_have_other_ids_is_refused() {
        let swapped = changed(|json| {
            let added = json["added_tokens"].as_array_mut().unwrap();
            let [a, b] = [added[0]["id"].clone(), added[1]["id"].clone()];
            (added[0]["id"], added[1]["id"]) = (b, a);
            let names = [added[0]["content"].clone(), added[1]["content"].clone()];
            let vocab = json["model"]["vocab"].as_object_mut().unwrap();
            let [a, b] = names.map(|name| name.as_str().unwrap().to_owned());
            if let (Some(x), Some(y)) = (vocab.get(&a).cloned(), vocab.get(&b).cloned()) {
                vocab.insert(a, y);
                vocab.insert(b, x);
            }
        });
        let error = check(&swapped, &tiny()).unwrap_err();
        assert!(error.contains("to the teacher and `") && error.contains(", and 1 more differ"), "{error}");
        check(&tiny(), &tiny()).unwrap();
    }

    #[test]
    fn a_token_that_only_one_of_them_has_counts_where_the_student_has_it() {
        let more = changed(|json| {
            let mut token = json["added_tokens"][0].clone();
            (token["id"], token["content"]) = (402.into(), "<more>".into());
            json["added_tokens"].as_array_mut().unwrap().push(token);
        });
        let of = |tokenizer| Vocabulary { model: "m", size: 410, tokenizer: Some(tokenizer) };
        let (less, more) = (tiny(), more);
        check_shared_vocabulary(of(&more), of(&less)).unwrap();
        let error = check_shared_vocabulary(of(&less), of(&more)).unwrap_err().to_string();
        assert!(error.contains("token 402 is no token to the teacher and `<more>` to the student"), "{error}");
        // Past the table of both.
        check(&less, &more).unwrap();
    }

    #[test]
    fn tokenizers_of_one_vocabulary_that_cut_otherwise_are_told_apart() {
        let without_merges = changed(|json| json["model"]["merges"] = serde_json::json!([]));
        assert!(check(&without_merges, &tiny()).unwrap_err().contains("split the same text differently"));
    }
}
