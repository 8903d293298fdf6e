//! Conversations as training text: `data.format: chat` from the tokens to the trained model, and
//! what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
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
    // The loss of all tokens is another one.
    let all =
        place.read("run.yaml").replace("  format: chat\n", "  text_field: text\n").replace("dir: run}", "dir: all}");
    let text = place.read("text/train.jsonl").replace("\"messages\"", "\"messages\": 0, \"text\": \"x\", \"m\"");
    place.write("text/train.jsonl", &text);
    place.write("text/heldout.jsonl", &text);
    place.write("all.yaml", all);
    place.retie("uptrain all.yaml").ok();
    assert!((losses(&place.read("all/metrics.jsonl"))[0] - first[0]).abs() > 1e-3);
}

#[test]
fn what_cannot_be_learnt_from_is_refused_with_its_row() {
    let place = place();
    place.write("text/train.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"");
    assert_snapshot!(place.refused("uptrain run.yaml --set data.train=[text/heldout.txt]"), @"");
    fs_err::remove_file(place.path("converted/chat_template.jinja")).unwrap();
    assert_snapshot!(place.refused("uptrain run.yaml"), @"");
    place.write("converted/chat_template.jinja", "{% for %}");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"");
}
