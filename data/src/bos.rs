//! The tokens that a tokenizer puts around every text: before it (BOS), and behind it.

use serde_json::Value;

/// What the post-processor of a `tokenizer.json` puts around a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Around {
    /// Id of the first token before it.
    pub(crate) bos: Option<u32>,
    /// The tokens before it.
    pub(crate) before: Vec<String>,
    /// The tokens behind it.
    pub(crate) after: Vec<String>,
}

impl Around {
    /// What the tokenizer says.
    pub(crate) fn of(tokenizer: &Value) -> Self {
        let Some(post) = tokenizer.get("post_processor") else { return Self::default() };
        let steps = match post["type"].as_str() {
            Some("Sequence") => post["processors"].as_array().map_or(&[][..], Vec::as_slice),
            _ => std::slice::from_ref(post),
        };
        steps.iter().find_map(Self::of_step).unwrap_or_default()
    }

    fn of_step(step: &Value) -> Option<Self> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match step["type"].as_str()? {
            "TemplateProcessing" => {
                let parts = step["single"].as_array()?;
                let text = parts.iter().position(|part| part.get("Sequence").is_some()).unwrap_or(parts.len());
                let names = |parts: &[Value]| -> Vec<String> {
                    let name = |part: &Value| part.get("SpecialToken")?["id"].as_str().map(str::to_owned);
                    let ids = |name: &String| step["special_tokens"][name]["ids"].as_array().map_or(1, Vec::len);
                    // A name stands for each of its ids.
                    parts.iter().filter_map(name).flat_map(|name| vec![name.clone(); ids(&name)]).collect()
                };
                let before = names(&parts[..text]);
                let bos = before.first().and_then(|name| id(step["special_tokens"].get(name)?["ids"].get(0)?));
                Some(Self { bos, before, after: names(&parts[text..]) })
            }
            "BertProcessing" | "RobertaProcessing" => {
                let name = |key: &str| step[key][0].as_str().map(str::to_owned);
                let (before, after) = (name("cls").into_iter().collect(), name("sep").into_iter().collect());
                Some(Self { bos: id(&step["cls"][1]), before, after })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(name: &str) -> Value {
        json!({"SpecialToken": {"id": name, "type_id": 0}})
    }

    fn template(single: Vec<Value>) -> Value {
        let entry = |name: &str, ids: &[u32]| json!({"id": name, "ids": ids, "tokens": [name]});
        let tokens = json!({"<s>": entry("<s>", &[7]), "</s>": entry("</s>", &[8]), "<two>": entry("<two>", &[1, 2])});
        json!({"type": "TemplateProcessing", "single": single, "special_tokens": tokens})
    }

    fn around(post_processor: Value) -> Around {
        Around::of(&json!({ "post_processor": post_processor }))
    }

    #[test]
    fn a_bos_token_is_what_the_template_begins_with() {
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let plain = template(vec![token("<s>"), text.clone()]);
        let expected = Around { bos: Some(7), before: names(&["<s>"]), after: vec![] };
        assert_eq!(around(plain.clone()), expected);
        assert_eq!(around(json!({ "type": "Sequence", "processors": [{"type": "ByteLevel"}, plain] })), expected);
        let ends = around(template(vec![token("<s>"), text.clone(), token("</s>")]));
        assert_eq!(ends, Around { after: names(&["</s>"]), ..expected });
        let two = around(template(vec![token("</s>"), token("<s>"), text.clone()]));
        assert_eq!(two, Around { bos: Some(8), before: names(&["</s>", "<s>"]), after: vec![] });
        assert_eq!(around(template(vec![token("<two>"), text])).before, names(&["<two>", "<two>"]));
        for kind in ["BertProcessing", "RobertaProcessing"] {
            let found = around(json!({"type": kind, "cls": ["<s>", 7], "sep": ["</s>", 8]}));
            assert_eq!(found, Around { bos: Some(7), before: names(&["<s>"]), after: names(&["</s>"]) });
        }
        for nothing in [Value::Null, json!({"type": "ByteLevel"}), json!({"type": "Sequence"})] {
            assert_eq!(around(nothing), Around::default());
        }
    }
}
