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
fn a_template_that_grows_without_end_is_refused_at_once() {
    let grown = "{% set ns = namespace(x=['x'], y=['x']) %}{% for i in range(60) %}\
                 {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    let less = grown.replace("60", "13");
    let (fuel, large) = ("engine ran out of fuel", "a list or map of the template is too large");
    let (deep, namespace) = ("has more than 256 levels", "a namespace stands where only its attributes may");
    let repeats = "{% for i in range(9999) %}{% for j in range(9999) %}";
    let ends = "{% endfor %}{% endfor %}";
    for (source, expected) in [
        (
            "{% set ns = namespace(x='xxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".into(),
            fuel,
        ),
        (format!("{grown}{{{{ ns.x }}}}"), large),
        (format!("{grown}{{% set y = ns.x ~ 'a' %}}"), large),
        (format!("{grown}{{{{ ','.join(ns.x) }}}}"), large),
        (format!("{grown}{{{{ ns.x | tojson }}}}"), large),
        (format!("{less}{repeats}{{% set z = ns.x == ns.y %}}{ends}"), fuel),
        (format!("{less}{repeats}{{% set z = ns.x in [ns.y] %}}{ends}"), fuel),
        (format!("{less}{repeats}{{% set z = ns.x | sort %}}{ends}"), fuel),
        (format!("{less}{repeats}{{% set z = ns.x | unique %}}{ends}"), fuel),
        (format!("{less}{repeats}{{% set z = {{'a': ns.x}} %}}{ends}"), fuel),
        (format!("{{% set ns = namespace(x=[]) %}}{repeats}{{% set ns.x = [[[ns.x]]] %}}{ends}"), deep),
        (format!("{{% set ns = namespace(x=range(9999)) %}}{repeats}{{% set ns.x = ns.x[1:] %}}{ends}"), fuel),
        (format!("{repeats}{{{{ 'a\n' | replace('a', 'a' * 9999) }}}}{ends}"), fuel),
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into(), namespace),
        ("{% set ns = namespace(x=1) %}{{ ns }}".into(), namespace),
        ("{% set a = namespace() %}{% set b = namespace(x=a) %}".into(), namespace),
        ("{% macro f(x) %}{{ f([x, x, x, x]) }}{% endmacro %}{{ f(1) }}".into(), large),
        ("{% for x in [1] recursive %}{{ loop([[x, x, x, x], [x]]) }}{% endfor %}".into(), large),
        ("{% set x = range(9999) | list %}{{ (x + x + x + x) | length }}".into(), large),
        ("{% set x = [1] %}{{ (x * 90000000) ~ '' }}".into(), large),
        ("{{ '{:>99999999999}'.format(1) }}".into(), "widths of 3 digits at most"),
        ("{{ '{:{}}'.format(1, 99999999999) }}".into(), "widths of 3 digits at most"),
    ] {
        let start = std::time::Instant::now();
        let error = template(&source).unwrap().render(&json!([]), &Map::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
        // A tenth of a second, unless the machine is busy; the harness of fuzz/ asks for one of
        // processor time.
        assert!(start.elapsed().as_secs() < 10, "{source} took {:?}", start.elapsed());
    }
    let error = template("{% set y = ([1] * 90000000) ~ '' %}").unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("an expression with a list multiplies"), "{cause}");
}

#[test]
fn bounds_change_nothing_that_templates_do() {
    let source = "{% set ns = namespace(found=false, items=[]) %}{% for i in range(5) %}\
        {% if i > 2 and not ns.found %}{% set ns.found = true %}{% endif %}\
        {% set ns.items = ns.items + [{'a': i, 'b': (i, 'x')}] %}{% endfor %}\
        {{ ns.items[1:] | tojson }} {{ ns.items | map(attribute='a') | join(',') }} {{ 1 < 2 < 3 }} \
        {{ 'a' if ns.found else 'b' }} {{ ns.items | selectattr('a', 'gt', 2) | list | length }} \
        {% for k, v in {'x': 1, 'y': [2]}.items() %}{{ k }}={{ v }};{% endfor %} \
        {% macro m(a, b=3) %}{{ a }}-{{ b }}{{ caller() if caller else '' }}{% endmacro %}{{ m(1) }} \
        {{ m(2, b=[4]) }} {% call m(9) %}in{% endcall %} {{ (1, 2) == (1, 2) }} {{ 'ab' * 3 }} \
        {{ 'abc'[::-1] }} {{ [3, 1, 2] | sort }} {{ [3, 1, 2] | max }} {{ range(3) | list }} \
        {{ 'a,b'.split(',')[-1] }} {{ dict(a=1) }} {{ 'x' in ['x'] }} {{ 'x' ~ 1 ~ [2] }} \
        {{ '{} {}'.format(1, 'b') }} {% for g in [{'r': 1}, {'r': 2}] | groupby('r') %}{{ g.grouper }}{{ g.list }}\
        {% endfor %}{{ ns.items[0].b[1] }} {{ messages[1:] | length }} {{ ns.found is defined }}";
    let bounded = template(source).unwrap();
    let mut environment = bounded.environment.clone();
    environment.set_fuel(Some(1 << 40));
    let plain = environment.get_template(NAME).unwrap().render(minijinja::context! { messages => [1, 2] }).unwrap();
    assert!(plain.contains("9-3in") && plain.ends_with("x 1 True"), "{plain}");
    assert_eq!(bounded.render(&json!([1, 2]), &Map::new()).unwrap(), plain);
}

#[test]
fn a_long_conversation_has_the_fuel_that_it_takes() {
    let source = "{% set ns = namespace(n=0, calls=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
        {% if m.role == 'user' and ns.n % 2 == 1 %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content | trim ~ '<|im_end|>' }}\
        {% elif m.role in ['assistant', 'tool'] %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}\
        {{ content | trim }}{% set ns.calls = ns.calls + [m.role] %}{% endif %}{% endfor %}{{ messages[1:] | length }}";
    let messages: Vec<Value> = (0..5000)
        .map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": "a few words ".repeat(i % 90)}))
        .collect();
    let text = template(source).unwrap().render(&Value::from(messages), &Map::new()).unwrap();
    assert!(text.ends_with("4999") && text.len() > 2_000_000);
}

#[test]
fn the_time_is_that_of_now() {
    let template = template("{{ strftime_now('%Y') }}").unwrap();
    let year: u32 = template.render(&json!([]), &Map::new()).unwrap().parse().unwrap();
    assert!(year >= 2026);
}
