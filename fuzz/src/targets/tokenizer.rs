//! `tokenizer.json`, and the template of chats with the configuration that it may stand in.

use super::Target;
use retie_data::{ChatTemplate, DecodeStream, Tokenizer};
use serde_json::{Map, json};
use std::path::Path;

pub const TOKENIZER: Target = Target { name: "tokenizer", files: &[], run: |input, _| tokenizer(input) };

pub const CHAT_TEMPLATE: Target = Target { name: "chat_template", files: &[], run: |input, _| chat_template(input) };

const TEXT: &str = "The colony of 1923 é 😀\n\n\tdef f(x): return x ▁<|endoftext|> ";

/// The tokenizer of the tests.
pub fn tiny() -> Option<Tokenizer> {
    let json = include_bytes!("../../../data/tests/golden/tiny_tokenizer.json");
    Tokenizer::from_bytes(json, Path::new("tokenizer.json")).ok()
}

fn tokenizer(input: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(input, Path::new("tokenizer.json")) else { return };
    _ = tokenizer.fingerprint();
    let Ok(ids) = tokenizer.encode_start(TEXT) else { return };
    _ = tokenizer.decode(&ids, false);
    let mut stream = DecodeStream::new(&tokenizer, true);
    for id in ids.iter().take(64) {
        _ = stream.step(*id);
        _ = tokenizer.token_bytes(*id);
    }
    _ = stream.finish();
    _ = tokenizer.for_model(64);
}

fn chat_template(input: &[u8]) {
    let name = if input.first() == Some(&b'{') && input.get(1) != Some(&b'{') && input.get(1) != Some(&b'%') {
        "tokenizer_config.json"
    } else {
        "chat_template.jinja"
    };
    let files = [(name.to_owned(), input.to_vec())];
    let Ok(Some(template)) = ChatTemplate::from_model_files(&files, Path::new("model")) else { return };
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who founded it?"}]},
        {"role": "assistant", "content": "Nobody."},
        {"role": "user", "content": "é😀"},
    ]);
    let variables = Map::from_iter([("add_generation_prompt".to_owned(), true.into())]);
    _ = template.render(&messages, &variables);
}
