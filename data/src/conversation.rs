//! Conversations as tokens of which some are learnt: those of the assistant's answers.
//!
//! A token of a stream of conversations has two bits more than its id: that it is not learnt as a
//! target, and that it is the last of its conversation. The template says which special tokens
//! there are; none is added to them.

use std::sync::Arc;

use serde_json::Value;

use crate::chat_template::ChatTemplate;
use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// Bit of a token that is no target.
const NOT_LEARNT: u32 = 1 << 31;
/// Bit of the last token of a conversation.
const LAST: u32 = 1 << 30;
/// All that is not the id.
const BITS: u32 = NOT_LEARNT | LAST;

/// Conversations become tokens with the template of a model.
#[derive(Debug, Clone)]
pub struct Conversations {
    template: Arc<ChatTemplate>,
}

impl Conversations {
    /// With a template.
    pub fn new(template: ChatTemplate) -> Self {
        Self { template: Arc::new(template) }
    }

    /// Everything that tokens depend on beside the tokenizer and the messages.
    pub(crate) fn key(&self) -> String {
        format!("chat {} {:?}", self.template.source(), self.template.special_tokens())
    }

    /// Ids of a conversation, and whether each is learnt.
    ///
    /// # Errors
    /// As [`ChatTemplate::answers`] and [`Tokenizer::encode`]; no answer has a token.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &Value) -> Result<(Vec<u32>, Vec<bool>), DataError> {
        let (text, answers) = self.template.answers(messages)?;
        let (ids, places) = tokenizer.encode_with_places(&text)?;
        let mut learnt = vec![false; ids.len()];
        for answer in answers {
            let within = |place: &std::ops::Range<usize>| place.start < answer.end && place.end > answer.start;
            let first = places.iter().position(within);
            let last = places.iter().rposition(within);
            if let (Some(first), Some(last)) = (first, last) {
                learnt[first..=last].fill(true);
            }
        }
        // The first token is never a target.
        match learnt.iter().skip(1).any(|learnt| *learnt) {
            true => Ok((ids, learnt)),
            false => Err(DataError::Conversation { reason: "its answers have no token".to_owned() }),
        }
    }

    /// Tokens of a stream for the conversation that `json` is.
    pub(crate) fn tokens(&self, tokenizer: &Tokenizer, json: &str) -> Result<Vec<u32>, DataError> {
        let messages = serde_json::from_str(json)
            .map_err(|error| DataError::Conversation { reason: format!("it is not JSON: {error}") })?;
        let (ids, learnt) = self.encode(tokenizer, &messages)?;
        let bit = |(id, learnt): (u32, bool)| if learnt { id } else { id | NOT_LEARNT };
        let mut tokens: Vec<u32> = ids.into_iter().zip(learnt).map(bit).collect();
        if let Some(last) = tokens.last_mut() {
            *last |= LAST;
        }
        Ok(tokens)
    }
}

/// Whether a token of a stream of conversations is the last of one.
pub(crate) fn is_last(token: u32) -> bool {
    token & LAST != 0
}

/// Whether it is learnt.
pub(crate) fn is_learnt(token: u32) -> bool {
    token & NOT_LEARNT == 0
}

/// Its id.
pub(crate) fn id(token: u32) -> u32 {
    token & !BITS
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::{Map, json};

    use super::*;
    use crate::{DatasetOptions, Packing, Split, TextFile, TokenDataset};

    fn golden(name: &str) -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
    }

    /// The tiny tokenizer with the special tokens of chats.
    fn tokenizer() -> Tokenizer {
        let mut json = golden("tiny_tokenizer.json");
        json["added_tokens"] = golden("answers.json")["added_tokens"].take();
        Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("there")).unwrap()
    }

    fn conversations(source: &str) -> Conversations {
        let Value::Object(special) = golden("chat_templates.json")["special_tokens"].take() else { unreachable!() };
        Conversations::new(ChatTemplate::new(source.to_owned(), special, PathBuf::from("there")).unwrap())
    }

    #[test]
    fn tokens_and_answers_are_those_of_transformers() {
        let (tokenizer, templates, cases) = (tokenizer(), golden("chat_templates.json"), golden("answers.json"));
        let mut families = std::collections::BTreeSet::new();
        for case in cases["cases"].as_array().unwrap() {
            let name = case["template"].as_str().unwrap();
            let conversations = conversations(templates["templates"][name].as_str().unwrap());
            let (ids, learnt) = conversations.encode(&tokenizer, &case["messages"]).unwrap();
            assert_eq!(json!(ids), case["ids"], "{name}");
            let mask: String = learnt.iter().map(|learnt| if *learnt { '1' } else { '0' }).collect();
            assert_eq!(json!(mask), case["mask"], "{name} {}", case["messages"]);
            families.insert(name.to_owned());
        }
        assert_eq!(families.len(), 6);
    }

    const PLAIN: &str = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}\
                         {% if add_generation_prompt %}<|im_start|>assistant {% endif %}";

    #[test]
    fn what_cannot_be_learnt_from_is_refused() {
        let refused = |source: &str, messages: Value| {
            conversations(source).encode(&tokenizer(), &messages).unwrap_err().to_string()
        };
        let talk = || json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let begins = "the conversation cannot be learnt from: ";
        assert_eq!(
            refused(PLAIN, json!([{"role": "user", "content": "a"}])),
            format!(
                "{begins}no message has the role `assistant`, so that there is nothing to learn: found `user`\n\
                 hint: leave such rows out"
            )
        );
        assert!(refused(PLAIN, json!([])).contains("no message has the role"));
        assert_eq!(refused(PLAIN, json!({})), format!("{begins}it is not an array of messages"));
        let message = refused(PLAIN, json!([{"role": "assistant"}]));
        assert_eq!(message, format!("{begins}message 1 has `role`, expected `role` and `content`"));
        let message = refused(PLAIN, json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]));
        let share_gpt =
            "message 1 has `from`, `value`, expected `role` and `content`: these are conversations of ShareGPT";
        assert!(message.starts_with(&format!("{begins}{share_gpt}\nhint: rename their keys")), "{message}");
        // An answer that is written otherwise when another message follows.
        let other = "{% for m in messages %}{{ m.role }} {{ m.content }}{% if loop.last %}!{% endif %} {% endfor %}";
        let longer = json!([{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]);
        let message = refused(other, longer);
        assert!(message.contains("writes message 1, an answer, otherwise where messages follow it\nhint: mark"));
        // Loops without an end run out of instructions; marks around nothing mark no answer.
        let endless = "{% macro f() %}{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}\
                       {% endmacro %}{{ f() }}";
        assert!(refused(endless, talk()).contains("does not take the messages: "), "{}", refused(endless, talk()));
        let unmarked = format!("{PLAIN}{{% generation %}}{{% endgeneration %}}");
        assert!(refused(&unmarked, talk()).contains("the template marks no answer"));
        let wrong = ChatTemplate::new("{% if %}".to_owned(), Map::new(), PathBuf::from("there"));
        assert_eq!(wrong.unwrap_err().to_string(), "the chat template of `there` cannot be read");
    }

    #[test]
    fn rows_say_what_is_learnt_and_conversations_do_not_see_one_another() {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
        let path = folder.path().join("a.jsonl");
        let row = |question: &str, answer: &str| {
            let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
            format!("{}\n", json!({ "messages": messages }))
        };
        fs_err::write(&path, row("one", "two") + &row("What is rain?", "Water that falls from the sky.")).unwrap();
        let options = DatasetOptions {
            files: vec![TextFile { path: path.clone(), text_field: "messages".to_owned() }],
            split: Split::All,
            sequence_length: 200,
            packing: Packing::BestFit,
            conversations: Some(conversations(PLAIN)),
            eos_token_id: 0,
            cache_dir: Some(folder.path().join("cache")),
        };
        let build = |options: &DatasetOptions| TokenDataset::build(options, &tokenizer, &mut |_| ());
        let dataset = build(&options).unwrap();
        assert_eq!((dataset.num_documents(), dataset.num_rows()), (2, 1));
        let batch = dataset.batch(&[0]).unwrap();
        // Each conversation is a piece; the longer one is first.
        let whole = |question: &str, answer: &str| {
            tokenizer
                .encode(&format!("<|im_start|>user {question}<|im_end|><|im_start|>assistant {answer}<|im_end|>"))
                .unwrap()
        };
        let (long, short) = (whole("What is rain?", "Water that falls from the sky."), whole("one", "two"));
        assert_eq!(batch.pieces, [long.len() - 1, short.len() - 1]);
        assert_eq!(batch.inputs, [&long[..long.len() - 1], &short[..short.len() - 1]].concat());
        assert_eq!(batch.targets, [&long[1..], &short[1..]].concat());
        let (targets, rows) = batch.learnt_targets().unwrap();
        let learnt = tokenizer.encode("Water that falls from the sky.<|im_end|>two<|im_end|>").unwrap();
        assert_eq!(tokenizer.decode(&targets, false).unwrap(), tokenizer.decode(&learnt, false).unwrap());
        assert!(rows.iter().zip(&targets).all(|(row, target)| batch.targets[*row] == *target));
        assert_eq!(batch.num_learnt(), targets.len());
        // From the cache the same, and nothing of the cache is taken for text.
        let again = build(&options).unwrap();
        assert!(again.from_cache() && again.fingerprint() == dataset.fingerprint());
        assert_eq!(again.batch(&[0]).unwrap(), batch);
        let shard = dataset.folder().unwrap().join("shard-00000.tokens");
        let file = TextFile { path: shard, text_field: "text".to_owned() };
        let as_text =
            DatasetOptions { files: vec![file.clone()], conversations: None, cache_dir: None, ..options.clone() };
        assert!(build(&as_text).unwrap_err().to_string().contains("were made with another tokenizer"));
        let as_chat = DatasetOptions { files: vec![file], cache_dir: None, ..options.clone() };
        assert!(build(&as_chat).unwrap_err().to_string().contains("cannot hold conversations"));
        // A row is named by its number.
        fs_err::write(&path, row("one", "two") + "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n")
            .unwrap();
        let error = build(&options).unwrap_err();
        assert!(error.to_string().starts_with("document 2 of `") && error.to_string().ends_with("cannot be tokenised"));
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("no message has the role"));
        fs_err::write(&path, "{\"messages\": \"x\"}\n").unwrap();
        assert!(
            build(&options)
                .unwrap_err()
                .to_string()
                .ends_with("has a string in `messages`, expected an array of messages")
        );
    }
}
