//! Conversations as training text: `data.format: chat` from the tokens to the trained model, and
//! what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::{CONVERT, Place, uptrain_yaml};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A place with a converted model that has a chat template, conversations, and a run on them.
fn place() -> Place {
    let place = Place::new();
    place.write("base/chat_template.jinja", TEMPLATE);
    place.retie(CONVERT).ok();
    let talk = |row: usize| {
        json!({ "messages": [
            { "role": "user", "content": format!("What is {row}?") },
            { "role": "assistant", "content": format!("A number, {} more than {row}.", row % 7) },
        ] })
    };
    let rows = |rows: std::ops::Range<usize>| rows.map(|row| format!("{}\n", talk(row))).collect::<String>();
    place.write("text/train.jsonl", rows(0..60));
    place.write("text/heldout.jsonl", rows(60..80));
    let chat = "  format: chat\n  packing: best_fit\n  sequence_length: 128\n";
    place.write("run.yaml", uptrain_yaml(6).replace("  sequence_length: 32\n", chat));
    place
}

#[test]
fn a_run_learns_the_answers_and_is_bit_for_bit_the_same_from_a_cache() {
    let place = place();
    let tokenized = "tokenize --config run.yaml --cache-dir cache --json";
    let texts: Value = serde_json::from_str(&place.retie(tokenized).ok()).unwrap();
    assert_eq!((&texts["texts"][0]["documents"], &texts["texts"][1]["documents"]), (&json!(60), &json!(20)));
    place.retie("uptrain run.yaml").ok();
    let rows = place.read("run/metrics.jsonl");
    let losses = |rows: &str| -> Vec<f64> {
        let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
        rows.lines().map(loss).collect()
    };
    let first = losses(&rows);
    assert!(first.len() == 6 && first.iter().all(|loss| loss.is_finite()) && first[5] < first[0], "{first:?}");
    let last: Value = serde_json::from_str(rows.lines().last().unwrap()).unwrap();
    assert!(last["tokens"].as_u64().unwrap() <= 6 * 2 * 128, "{last}");
    place.retie("uptrain run.yaml --set run.dir=again --set data.cache_dir=cache").ok();
    assert_eq!(losses(&place.read("again/metrics.jsonl")), first);
}

#[test]
fn what_cannot_be_learnt_from_is_refused_with_its_row() {
    let place = place();
    place.write("text/train.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n");
    let refused = |line: &str, parts: &[&str]| {
        let message = place.refused(line);
        assert!(parts.iter().all(|part| message.contains(part)), "{line}\n{message}");
    };
    let row = ["document 1 of `text/train.jsonl` cannot be tokenised", "no message has the role `assistant`"];
    refused("uptrain run.yaml", &row);
    place.write("text/a.txt", "x");
    refused("uptrain run.yaml --set data.train=[text/a.txt]", &["`text/a.txt` cannot hold conversations"]);
    place.write("cached.yaml", place.read("run.yaml").replace("teacher: {model: base}", "teacher: {logits: base}"));
    refused("uptrain cached.yaml", &["`data.format: chat` does not go with `teacher.logits`"]);
    place.write("converted/chat_template.jinja", "{% for %}");
    refused("uptrain run.yaml", &["the chat template of `converted/chat_template.jinja` cannot be read"]);
    fs_err::remove_file(place.path("converted/chat_template.jinja")).unwrap();
    refused("uptrain run.yaml", &["`converted` has no chat template, which `data.format: chat` needs"]);
}
