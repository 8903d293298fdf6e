//! The answers in a rendered conversation: the parts of its text that a model writes, from behind
//! the prompt to the token that ends the turn, without the line break behind it.
//!
//! A template that marks them with `{% generation %}` is taken at its word, as by
//! `return_assistant_tokens_mask` of `transformers`. Of another one the conversation is rendered up
//! to each answer with the prompt for it, and up to its end: both have to be how the whole begins.

use std::{collections::BTreeSet, ops::Range};

use minijinja::Error;
use serde_json::{Map, Value};

use super::{ChatTemplate, MARKED};
use crate::error::DataError;

/// Put around what a `{% generation %}` block gives: code points that no text has.
const MARKS: [char; 2] = ['\u{10fffe}', '\u{10ffff}'];

/// The filter that takes the place of the block.
pub(super) const FILTER: &str = "mark_generation";

pub(super) fn mark(text: String) -> Result<minijinja::Value, Error> {
    Ok(minijinja::Value::from_safe_string(format!("{}{text}{}", MARKS[0], MARKS[1])))
}

impl ChatTemplate {
    /// The text of a conversation, an array of objects with `role` and `content`, and where the
    /// answers of the assistant are in it, in bytes.
    ///
    /// # Errors
    /// The template refuses the messages, or fails on them; the messages have no answer; the
    /// template writes an answer otherwise when messages follow it, and does not mark answers.
    pub fn answers(&self, messages: &Value) -> Result<(String, Vec<Range<usize>>), DataError> {
        let problem = |reason: &str| DataError::Conversation { reason: reason.to_owned() };
        let Some(list) = messages.as_array() else { return Err(problem("it is not an array of messages")) };
        let has_text = |message: &Value| message["role"].is_string() && message.get("content").is_some();
        if let Some(at) = list.iter().position(|message| !has_text(message)) {
            let (keys, share_gpt) = keys(&list[at]);
            let format = if share_gpt { SHARE_GPT } else { "" };
            return Err(problem(&format!("message {} {keys}, expected `role` and `content`{format}", at + 1)));
        }
        let is_answer = |message: &Value| message["role"] == "assistant";
        if !list.iter().any(is_answer) {
            let roles: BTreeSet<&str> = list.iter().filter_map(|message| message["role"].as_str()).collect();
            let found = roles.into_iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ");
            let found = if found.is_empty() { "there are no messages".to_owned() } else { format!("found {found}") };
            return Err(problem(&format!(
                "no message has the role `assistant`, so that there is nothing to learn: {found}"
            )));
        }
        let text = self.render(messages, &Map::new())?;
        if self.marks_answers {
            let answers = marked(&self.render_as(MARKED, messages, &Map::new())?, &text);
            return match answers {
                Some(answers) if !answers.is_empty() => Ok((text, answers)),
                _ => Err(problem("the template marks no answer in it with `{% generation %}`")),
            };
        }
        let mut answers = Vec::new();
        let prompt = Map::from_iter([("add_generation_prompt".to_owned(), Value::Bool(true))]);
        for (at, _) in list.iter().enumerate().filter(|(_, message)| is_answer(message)) {
            let before = self.render(&Value::from(&list[..at]), &prompt)?;
            let with = self.render(&Value::from(&list[..=at]), &Map::new())?;
            let end = with.trim_end().len();
            if !text.starts_with(&before) || !text.starts_with(&with[..end]) || end < before.len() {
                return Err(problem(&format!(
                    "the template writes message {}, an answer, otherwise where messages follow it",
                    at + 1
                )));
            }
            answers.push(before.len()..end);
        }
        Ok((text, answers))
    }
}

const SHARE_GPT: &str = ": these are conversations of ShareGPT";

/// What a message is that is none, in words, and whether it is one of ShareGPT.
fn keys(message: &Value) -> (String, bool) {
    let Some(object) = message.as_object() else { return ("is not an object".to_owned(), false) };
    let keys: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
    let share_gpt = ["from", "value"].iter().all(|key| object.contains_key(*key));
    (if keys.is_empty() { "is empty".to_owned() } else { format!("has {}", keys.join(", ")) }, share_gpt)
}

/// Where the parts between marks are in the text without them; `None` if that is not `text`.
fn marked(with_marks: &str, text: &str) -> Option<Vec<Range<usize>>> {
    let (mut plain, mut answers, mut start) = (String::with_capacity(text.len()), Vec::new(), None);
    for c in with_marks.chars() {
        if c == MARKS[0] {
            start = Some(plain.len());
        } else if c == MARKS[1] {
            answers.extend(start.take().map(|start| start..plain.len()).filter(|answer| !answer.is_empty()));
        } else {
            plain.push(c);
        }
    }
    (plain == text).then_some(answers)
}
