//! Requests that begin as earlier ones did: the same answers, with fewer tokens read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_serve::ServeOptions;
use serde_json::{Value, json};
use support::{ask, metric, options, post, service};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_prompt_that_was_read_before_is_not_read_again_unless_its_salt_is_another() {
    let reusing = service(ServeOptions { prefix_reuse: true, ..options() });
    let reading = service(options());
    let (router, without) = (reusing.router(), reading.router());
    let prompt: Vec<u32> = (0..30).map(|id| 3 + id * 7 % 300).collect();
    let body = |extra: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let expected = ask(&without, PATH, &body(json!({}))).await;
    let mut total = 0;
    for (extra, least) in [
        (json!({}), 0),
        (json!({}), 29),
        (json!({"cache_salt": "mine"}), 0),
        (json!({"cache_salt": "mine"}), 29),
        (json!({"n": 2}), 29),
        (json!({"echo": true, "logprobs": 0}), 0),
        (json!({"retie": {"recursion_counts": true}}), 29),
    ] {
        let answer = ask(&router, PATH, &body(extra.clone())).await;
        assert_eq!(cached(&answer), least, "{extra}: {answer}");
        total += if extra["n"] == 2 { 2 * least } else { least };
        if extra["echo"].is_null() {
            assert_eq!(answer["choices"][0]["text"], expected["choices"][0]["text"], "{extra}");
        }
    }
    assert_eq!(metric(&router, "prefix_cache_hits_total").await, total as f64);
    let asked = metric(&router, "prefix_cache_queries_total").await;
    assert_eq!(asked, 8.0 * 30.0);
    // Without reuse nothing is counted.
    assert_eq!(cached(&ask(&without, PATH, &body(json!({}))).await), 0);
    assert_eq!(metric(&without, "prefix_cache_queries_total").await, 0.0);
    let (status, _, text) = post(&router, PATH, &body(json!({"cache_salt": 3}))).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("cache_salt")));
}
