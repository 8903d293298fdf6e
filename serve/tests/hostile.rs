//! Requests that no client should send: every one is answered, none with an error of the server,
//! and the server goes on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::{JSON, NAME, ask, metric, options, post, read, send, service, wait_for};

const FIELDS: &[&str] = &[
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
    "stop",
    "stream",
    "stream_options",
    "echo",
    "logprobs",
    "top_logprobs",
    "ignore_eos",
    "add_special_tokens",
    "add_generation_prompt",
    "chat_template_kwargs",
    "tools",
    "best_of",
    "logit_bias",
    "response_format",
    "suffix",
    "user",
    "",
];

/// Values that are wrong for most fields, or at the edge of what they take.
fn values() -> Vec<Value> {
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(3.5),
        json!(1e-45),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("x"),
        json!("\u{0}\u{fffd}🦀"),
        json!("x".repeat(300)),
        json!([]),
        json!([1]),
        json!([-1]),
        json!([u64::MAX]),
        json!([[]]),
        json!([[1], "x"]),
        json!(["x", ""]),
        json!(vec!["ab"; 16]),
        json!({}),
        json!({"x": 1}),
        json!({"include_usage": 3}),
        json!({"messages": 3, "bos_token": [], "add_generation_prompt": 1}),
        json!([{"role": "user", "content": ""}]),
        json!([{"role": "user", "content": [{"type": "text", "text": 3}]}]),
        nested,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_every_field_is_answered() {
    let service = service(options());
    let router = service.router();
    let chat = json!([{"role": "user", "content": "hi"}]);
    let routes = [
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 3})),
        ("/v1/chat/completions", json!({"messages": chat, "max_tokens": 3})),
        ("/tokenize", json!({"prompt": "x"})),
        ("/detokenize", json!({"tokens": [1, 2]})),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for (path, body) in &routes {
        for field in FIELDS.iter().chain(&["tokens"]) {
            for value in values() {
                let mut body = body.clone();
                body[*field] = value;
                let (status, _, text) = post(&router, path, &body).await;
                match status.as_u16() {
                    200 => accepted += 1,
                    400 | 404 => {
                        refused += 1;
                        let error: Value = serde_json::from_str(&text).unwrap();
                        assert!(
                            error["error"]["message"].as_str().is_some_and(|message| message.len() < 400),
                            "{text}"
                        );
                    }
                    status => panic!("{path} {body}: {status} {text}"),
                }
            }
        }
    }
    assert!(accepted > 500 && refused > 500, "{accepted} {refused}");
    ask(&router, "/v1/completions", &json!({"model": NAME, "prompt": "x", "max_tokens": 1})).await;
    wait_for(&router, "num_requests_running", 0.0).await;
    assert_eq!(metric(&router, "kv_cache_usage_perc").await, 0.0);
}

#[tokio::test]
async fn bodies_of_any_bytes_are_refused() {
    let service = service(options());
    let router = service.router();
    let whole = br#"{"prompt": "x", "max_tokens": 3, "stop": ["\u00e9"]}"#;
    for at in 0..whole.len() {
        for change in [0x00, 0xff, b'"', b'{', b'\\'] {
            let mut body = whole.to_vec();
            body[at] = change;
            for body in [&body[..], &body[..=at]] {
                let (status, _, text) = read(send(&router, "POST", "/v1/completions", &[JSON], body).await).await;
                assert!([200, 400].contains(&status.as_u16()), "{:?}: {status} {text}", String::from_utf8_lossy(body));
            }
        }
    }
    let surrogate = br#"{"prompt": "\ud800", "max_tokens": 1}"#;
    let (status, _, text) = read(send(&router, "POST", "/v1/completions", &[JSON], surrogate).await).await;
    assert!(status == 400 && text.contains("the body is not JSON"), "{text}");
}
