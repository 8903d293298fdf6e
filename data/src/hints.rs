//! Ways out of errors of data, where they depend on what was found.

/// The way out of a conversation that cannot be learnt from.
pub(crate) fn conversation_hint(reason: &str) -> &'static str {
    match reason {
        _ if reason.contains("where messages follow it") => {
            "\nhint: mark the answers in the template with `{% generation %}`, or give rows whose one answer is at the end"
        }
        _ if reason.ends_with("ShareGPT") => {
            "\nhint: rename their keys `from` and `value`, and the roles `human` to `user` and `gpt` to `assistant`"
        }
        _ if reason.contains("no message has the role") => "\nhint: leave such rows out",
        _ => "",
    }
}

/// The way from the fields `found` to one that holds the text.
pub(crate) fn field_hint(found: &[String]) -> &'static str {
    let is_chat = |name: &String| ["messages", "conversations"].iter().any(|chat| name.split('.').next() == Some(chat));
    match found {
        [] => "",
        _ if found.iter().any(is_chat) => {
            "\nhint: these are conversations: `data.format: chat` trains on their answers; elsewhere write the text that \
             `tokenizer.apply_chat_template(messages, tokenize=False)` makes of each into a field"
        }
        _ => "\nhint: name the one that holds the text with `text_field`",
    }
}

/// The way from one JSON document to lines.
pub(crate) fn lines_hint(is_one_document: bool) -> &'static str {
    match is_one_document {
        true => {
            "\nhint: the file seems to be one JSON document: `jq -c '.[]?'` makes lines of a list, `jq -c .` of objects"
        }
        false => "",
    }
}
