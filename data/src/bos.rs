//! The token that a tokenizer puts before every text (BOS).

use serde_json::Value;

/// The special token that the template of a `tokenizer.json` begins with, if it begins with one.
pub(crate) fn template_bos(tokenizer: &Value) -> Option<u32> {
    let post = tokenizer.get("post_processor")?;
    let steps = match post["type"].as_str()? {
        "Sequence" => post["processors"].as_array()?.iter().collect(),
        _ => vec![post],
    };
    let template = steps.into_iter().find(|step| step["type"] == "TemplateProcessing")?;
    let first = template["single"].as_array()?.first()?.get("SpecialToken")?["id"].as_str()?;
    template["special_tokens"].get(first)?["ids"].get(0)?.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bos_token_is_what_the_template_begins_with() {
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}
        });
        assert_eq!(template_bos(&json!({ "post_processor": template })), Some(7));
        let sequence = json!({ "type": "Sequence", "processors": [{"type": "ByteLevel"}, template] });
        assert_eq!(template_bos(&json!({ "post_processor": sequence })), Some(7));
        assert_eq!(template_bos(&json!({ "post_processor": null })), None);
        assert_eq!(template_bos(&json!({ "post_processor": {"type": "ByteLevel"} })), None);
    }
}
