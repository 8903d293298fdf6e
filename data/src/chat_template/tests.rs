//! Tests of chat templates, with prompts that `transformers` made
//! (tests/golden/make_chat_templates.py).

use serde_json::json;

use super::*;

#[derive(serde::Deserialize)]
struct Golden {
    special_tokens: Map<String, Value>,
    templates: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    messages: Value,
    variables: Map<String, Value>,
    text: Option<String>,
    error: Option<String>,
}

fn template(source: &str) -> Result<ChatTemplate, DataError> {
    ChatTemplate::new(source.to_owned(), Map::new(), PathBuf::from("there"))
}

#[test]
fn prompts_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat_templates.json");
    let golden: Golden = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    assert!(golden.cases.len() > 50);
    for Case { name, messages, variables, text, error } in golden.cases {
        let source = golden.templates[&name].as_str().unwrap().to_owned();
        let template = ChatTemplate::new(source, golden.special_tokens.clone(), PathBuf::from("there")).unwrap();
        let found = template.render(&messages, &variables);
        match error {
            None => assert_eq!(found.unwrap(), text.unwrap(), "{name}: {messages} {variables:?}"),
            Some(reason) => {
                let expected = format!("the chat template of `there` does not take the messages: {reason}");
                assert_eq!(found.unwrap_err().to_string(), expected, "{name}");
            }
        }
    }
}

#[test]
fn a_template_comes_from_its_own_file_or_from_the_configuration() {
    let files = |files: &[(&str, &Value)]| -> Vec<(String, Vec<u8>)> {
        let bytes = |value: &Value| value.as_str().map_or_else(|| value.to_string().into(), |text| text.into());
        files.iter().map(|(name, value)| ((*name).to_owned(), bytes(value))).collect()
    };
    let read = |given: &[(&str, &Value)]| {
        let template = ChatTemplate::from_model_files(&files(given), Path::new("there")).unwrap();
        template.map(|template| template.render(&json!([]), &Map::new()).unwrap())
    };
    let config = json!({"chat_template": "config {{ bos_token }}{{ eos_token }}", "bos_token": {"content": "<s>"}});
    let own = json!("own {{ bos_token }}{{ eos_token }}");
    let special = json!({"bos_token": "<t>", "eos_token": "</t>", "additional_special_tokens": ["x"]});
    assert_eq!(read(&[(TOKENIZER_CONFIG, &config)]).unwrap(), "config <s>");
    let all = [(TOKENIZER_CONFIG, &config), (TEMPLATE, &own), (SPECIAL_TOKENS, &special)];
    assert_eq!(read(&all).unwrap(), "own <s></t>", "the configuration comes first");
    for (eos, expected) in [(json!(7), vec![7]), (json!([7, 9]), vec![7, 9]), (json!(null), vec![])] {
        let generation = json!({ "eos_token_id": eos });
        let given = files(&[(TOKENIZER_CONFIG, &config), (GENERATION, &generation)]);
        let template = ChatTemplate::from_model_files(&given, Path::new("there")).unwrap().unwrap();
        assert_eq!(template.end_tokens(), expected);
    }
    let named = json!({"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]});
    assert_eq!(read(&[(TOKENIZER_CONFIG, &named)]).unwrap(), "b");
    assert_eq!(read(&[(TOKENIZER_CONFIG, &json!({}))]), None);
    assert_eq!(read(&[]), None);
    let broken = files(&[(TOKENIZER_CONFIG, &json!("{"))]);
    let error = ChatTemplate::from_model_files(&broken, Path::new("there")).unwrap_err().to_string();
    assert_eq!(error, "`there/tokenizer_config.json` is not JSON");
}

#[test]
fn a_template_that_is_wrong_or_endless_is_an_error() {
    let error = template("{% if %}").unwrap_err();
    assert_eq!(error.to_string(), "the chat template of `there` cannot be read");
    let render = |source: &str| template(source).unwrap().render(&json!([]), &Map::new()).unwrap_err().to_string();
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert_eq!(render(endless), "the chat template of `there` does not take the messages: engine ran out of fuel");
    assert!(render("{{ strftime_now('%Q') }}").ends_with("`strftime_now` does not know `%Q`"));
    assert!(render("{{ {} | tojson(sort_keys=true) }}").contains("sort_keys"));
    assert!(render("{{ {} | tojson(indent=9223372036854775807) }}").contains("at most"));
}

#[test]
fn the_time_is_that_of_now() {
    let template = template("{{ strftime_now('%Y') }}").unwrap();
    let year: u32 = template.render(&json!([]), &Map::new()).unwrap().parse().unwrap();
    assert!(year >= 2026);
}
