//! What is refused, and what is ignored; limits, the API key, a full queue, clients that leave.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_engine::{EngineError, EngineOptions};
use retie_serve::{QueueLimits, ServeError, ServeOptions, Service};
use serde_json::{Value, json};
use std::time::Duration;
use support::{CONTEXT, JSON, NAME, ask, get, metric, options, post, read, send, served, service, wait_for};

const PATH: &str = "/v1/completions";

/// Status, `type`, `param`, `code` and `message` of a refusal.
fn error(status: u16, text: &str) -> (u16, String, String, String, String) {
    let error: Value = serde_json::from_str(text).unwrap();
    let text = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
    (status, text("type"), text("param"), text("code"), text("message"))
}

#[tokio::test]
async fn fields_of_the_wrong_type_or_out_of_range_are_named() {
    let service = service(options());
    let router = service.router();
    let long = vec![5; 100];
    for (field, value, message) in [
        (
            "prompt",
            json!(null),
            "`prompt` is missing, expected a text, an array of texts, an array of token ids, or an array of such arrays",
        ),
        (
            "prompt",
            json!([]),
            "`prompt` is the array `[]`, expected a text, an array of texts, an array of token ids, or an array of such arrays",
        ),
        (
            "prompt",
            json!(["a", 3]),
            "`prompt` is the array `[\"a\",3]`, expected a text, an array of texts, an array of token ids, or an array of such arrays",
        ),
        (
            "prompt",
            json!([5, -1]),
            "`prompt` is the array `[5,-1]`, expected a text, an array of texts, an array of token ids, or an array of such arrays",
        ),
        ("prompt", json!([402]), "token 402 of the prompt is not in the vocabulary of 402 tokens"),
        ("max_tokens", json!("3"), "`max_tokens` is the text `\"3\"`, expected an integer of at least 0"),
        ("max_tokens", json!(0), "`max_tokens` is `0`, expected at least 1 without `echo`"),
        ("temperature", json!(-1), "`temperature` is `-1`, expected a finite number, 0 or more"),
        ("temperature", json!(true), "`temperature` is the boolean `true`, expected a number"),
        ("top_p", json!(0), "`top_p` is `0`, expected above 0, up to 1"),
        ("top_k", json!(-2), "`top_k` is the number `-2`, expected an integer"),
        ("presence_penalty", json!(3), "`presence_penalty` is `3`, expected -2 to 2"),
        ("n", json!(9), "`n` is the number `9`, expected an integer from 1 to 8"),
        ("seed", json!(1.5), "`seed` is the number `1.5`, expected an integer"),
        ("logprobs", json!(21), "`logprobs` is the number `21`, expected an integer from 0 to 20"),
        ("echo", json!("yes"), "`echo` is the text `\"yes\"`, expected true or false"),
        (
            "stop",
            json!(["a", ""]),
            "`stop` is the array `[\"a\",\"\"]`, expected a text or up to 16 texts, of 1 to 256 bytes each",
        ),
        ("stop", json!(vec!["a"; 17]), ""),
        ("stream", json!(1), "`stream` is the number `1`, expected true or false"),
        ("stream_options", json!({"include_usage": true}), "`stream_options` needs `stream: true`"),
        ("model", json!(3), "`model` is the number `3`, expected a text"),
        ("suffix", json!("end"), "`suffix` is not supported"),
        ("best_of", json!(2), "`best_of` is not supported"),
        ("tools", json!([{"type": "function"}]), "`tools` is not supported"),
        ("response_format", json!({"type": "json_object"}), "`response_format` is not supported"),
        ("logit_bias", json!({"5": 1}), "`logit_bias` is not supported"),
        ("retie", json!(3), "`retie` is the number `3`, expected an object"),
    ] {
        let mut body = json!({"prompt": "x"});
        body[field] = value.clone();
        let (status, _, text) = post(&router, PATH, &body).await;
        let (status, kind, param, _, found) = error(status.as_u16(), &text);
        assert_eq!((status, kind.as_str(), param.as_str()), (400, "invalid_request_error", field), "{value}: {found}");
        assert!(found == message || message.is_empty(), "{found}");
    }
    let (status, _, text) = post(&router, PATH, &json!({"prompt": long, "max_tokens": 50})).await;
    let (status, _, _, code, message) = error(status.as_u16(), &text);
    assert_eq!((status, code.as_str()), (400, "context_length_exceeded"));
    assert_eq!(message, "the prompt has 100 tokens and 50 new ones are asked for, expected at most 128 together");
    let (status, _, text) = post(&router, PATH, &json!({"model": "other", "prompt": "x"})).await;
    let (status, _, param, code, message) = error(status.as_u16(), &text);
    assert_eq!((status, param.as_str(), code.as_str()), (404, "model", "model_not_found"));
    assert_eq!(message, "the model `other` does not exist, expected `org/tiny`");
    // Nothing of that has reached the engine, and a good request still does.
    assert_eq!(metric(&router, "prompt_tokens_total").await, 0.0);
    ask(&router, PATH, &json!({"prompt": "x", "max_tokens": 1})).await;
}

#[tokio::test]
async fn unknown_fields_and_unsupported_ones_without_effect_are_ignored() {
    let service = service(options());
    let router = service.router();
    let plain = json!({"prompt": "x", "max_tokens": 5, "temperature": 0});
    let mut body = plain.clone();
    for (name, value) in [
        ("user", json!("me")),
        ("store", json!(true)),
        ("metadata", json!({"a": 1})),
        ("best_of", json!(1)),
        ("suffix", json!(null)),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("response_format", json!({"type": "text"})),
        ("logit_bias", json!({})),
        ("top_k", json!(-1)),
        ("seed", json!(-3)),
    ] {
        body[name] = value;
    }
    assert_eq!(ask(&router, PATH, &body).await["choices"], ask(&router, PATH, &plain).await["choices"]);
}

#[tokio::test]
async fn bodies_that_are_no_json_and_wrong_routes_are_refused() {
    let service = service(options());
    let router = service.router();
    let refused = async |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let (status, _, text) = read(send(&router, method, path, headers, body).await).await;
        let (status, kind, _, _, message) = error(status.as_u16(), &text);
        assert_eq!(kind, "invalid_request_error");
        (status, message)
    };
    let (status, message) = refused("POST", PATH, &[JSON], b"{\"prompt\": \"\xff\"}").await;
    assert_eq!((status, message.as_str()), (400, "the body is not UTF-8: the byte at 12 cannot be decoded"));
    let (status, message) = refused("POST", PATH, &[JSON], b"{\"prompt\": \"x\"").await;
    assert!(status == 400 && message.starts_with("the body is not JSON: EOF"), "{message}");
    let (status, message) = refused("POST", PATH, &[JSON], b"[]").await;
    assert_eq!((status, message.as_str()), (400, "the body is not a JSON object"));
    let (status, message) = refused("POST", PATH, &[], b"{}").await;
    assert_eq!((status, message.as_str()), (415, "expected the header `Content-Type: application/json`"));
    assert_eq!(refused("POST", PATH, &[("content-type", "text/plain")], b"{}").await.0, 415);
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(70_000));
    let (status, message) = refused("POST", PATH, &[JSON], large.as_bytes()).await;
    assert_eq!((status, message.as_str()), (413, "the body is larger than 65536 bytes"));
    assert_eq!(refused("GET", "/v2/x", &[], b"").await, (404, "there is no `GET /v2/x`".to_owned()));
    assert_eq!(refused("GET", PATH, &[], b"").await, (404, format!("there is no `GET {PATH}`")));
    let (status, message) = refused("GET", "/v1/models/other", &[], b"").await;
    assert_eq!((status, message.as_str()), (404, "the model `other` does not exist, expected `org/tiny`"));
}

#[tokio::test]
async fn a_key_is_needed_where_there_is_one() {
    let service = service(ServeOptions { api_key: Some("secret".to_owned()), ..options() });
    let router = service.router();
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    for (key, expected) in
        [(None, 401), (Some("Bearer wrong"), 401), (Some("secret"), 401), (Some("Bearer secret"), 200)]
    {
        let mut headers = vec![JSON];
        headers.extend(key.map(|key| ("authorization", key)));
        let (status, _, text) = read(send(&router, "POST", PATH, &headers, body.as_bytes()).await).await;
        assert_eq!(status.as_u16(), expected, "{text}");
        if expected == 401 {
            let (_, kind, _, code, message) = error(401, &text);
            assert_eq!((kind.as_str(), code.as_str()), ("authentication_error", "invalid_api_key"));
            assert_eq!(message, "the API key is missing or wrong, expected `Authorization: Bearer KEY`");
        }
    }
    for path in ["/v1/models", "/tokenizer_info"] {
        assert_eq!(send(&router, "GET", path, &[], b"").await.status(), 401, "{path}");
    }
    for path in ["/health", "/metrics", "/"] {
        assert_eq!(send(&router, "GET", path, &[], b"").await.status(), 200, "{path}");
    }
    let empty = Service::start(served(), ServeOptions { api_key: Some(String::new()), ..options() });
    assert!(matches!(empty, Err(ServeError::EmptyApiKey)));
}

#[tokio::test]
async fn the_page_is_one_file_that_loads_nothing_else() {
    let service = service(options());
    let page = get(&service.router(), "/").await;
    assert!(page.starts_with("<!doctype html>") && page.contains("/v1/chat/completions"));
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
    assert_eq!(get(&service.router(), "/health").await, "");
}

/// Options with one slot and room for two sequences that wait.
fn narrow() -> ServeOptions {
    let engine = EngineOptions { num_slots: 1, context: CONTEXT, max_step_tokens: 16 };
    ServeOptions { engine, queue: QueueLimits { sequences: 2, tokens: 40 }, ..options() }
}

/// A stream of so many pieces that a client that does not read it stops it.
fn endless() -> Vec<u8> {
    let body = json!({
        "prompt": "x", "max_tokens": 120, "stream": true, "temperature": 0, "logprobs": 0, "ignore_eos": true,
    });
    body.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_says_when_to_try_again() {
    let service = service(narrow());
    let router = service.router();
    // It holds the slot while nobody reads it.
    let running = send(&router, "POST", PATH, &[JSON], &endless()).await;
    wait_for(&router, "num_requests_running", 1.0).await;
    let short = json!({"prompt": "x", "max_tokens": 2, "temperature": 0});
    let task = |body: Value| {
        let router = router.clone();
        tokio::spawn(async move { post(&router, PATH, &body).await })
    };
    let waiting = [task(short.clone()), task(short.clone())];
    wait_for(&router, "num_requests_waiting", 2.0).await;
    for body in [&short, &json!({"prompt": vec![5; 20]})] {
        let (status, headers, text) = post(&router, PATH, body).await;
        let (status, kind, _, code, message) = error(status.as_u16(), &text);
        assert_eq!((status, kind.as_str(), code.as_str()), (429, "rate_limit_error", "rate_limit_exceeded"));
        assert_eq!(message, "too many requests are waiting, try again later");
        assert_eq!(headers["retry-after"], "1");
    }
    // More than could ever wait is another matter.
    let (status, _, text) = post(&router, PATH, &json!({"prompt": "x", "n": 3, "max_tokens": 1})).await;
    assert_eq!(status, 429, "{text}");
    drop(running);
    for task in waiting {
        let (status, _, text) = task.await.unwrap();
        assert_eq!(status, 200, "{text}");
    }
    let (status, _, text) = post(&router, PATH, &json!({"prompt": "x", "n": 3, "max_tokens": 1})).await;
    let (status, _, _, _, message) = error(status.as_u16(), &text);
    assert_eq!((status, message.as_str()), (400, "the request has more prompts and choices than may wait at once"));
    wait_for(&router, "num_requests_running", 0.0).await;
    assert_eq!(metric(&router, "kv_cache_usage_perc").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_stops_only_itself() {
    let service = service(options());
    let router = service.router();
    let slow = send(&router, "POST", PATH, &[JSON], &endless()).await;
    let body = json!({"prompt": "x", "max_tokens": 100, "ignore_eos": true});
    for _ in 0..3 {
        ask(&router, PATH, &body).await;
    }
    // It still waits for its reader.
    wait_for(&router, "num_requests_running", 1.0).await;
    let (status, _, text) = read(slow).await;
    assert!(status == 200 && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(text.matches("\"token_logprobs\"").count(), 120, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_while_the_server_drains_and_ended_when_it_stops() {
    let service = service(options());
    let router = service.router();
    let running = send(&router, "POST", PATH, &[JSON], &endless()).await;
    wait_for(&router, "num_requests_running", 1.0).await;
    service.drain();
    let (status, headers, text) = post(&router, PATH, &json!({"prompt": "x"})).await;
    let (status, kind, _, _, message) = error(status.as_u16(), &text);
    assert_eq!((status, kind.as_str(), message.as_str()), (503, "server_error", "the server shuts down"));
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(send(&router, "GET", "/health", &[], b"").await.status(), 503);
    service.cancel();
    let (status, _, text) = read(running).await;
    assert_eq!(status, 200);
    let last = text.trim_end().lines().last().unwrap().strip_prefix("data: ").unwrap();
    assert_eq!(error(503, last).4, "the server shuts down");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_ended() {
    let service = service(ServeOptions { timeout: Duration::from_millis(300), ..narrow() });
    let router = service.router();
    let _holds = send(&router, "POST", PATH, &[JSON], &endless()).await;
    wait_for(&router, "num_requests_running", 1.0).await;
    // It waits for the slot, which is free when the first one has run out of time.
    let (status, _, text) = post(&router, PATH, &json!({"prompt": "x", "max_tokens": 2})).await;
    assert!(status == 200 || error(status.as_u16(), &text).4 == "the request took more than 0 s", "{text}");
    wait_for(&router, "num_requests_running", 0.0).await;
}

#[test]
fn options_out_of_range_are_refused() {
    let engine = EngineOptions { num_slots: 4, context: CONTEXT + 1, max_step_tokens: 16 };
    let error = Service::start(served(), ServeOptions { engine, ..options() }).unwrap_err();
    assert!(matches!(error, ServeError::Engine(EngineError::OutOfRange { name: "context", .. })), "{error}");
    let error = Service::start(served(), ServeOptions { kv_tokens: Some(CONTEXT - 1), ..options() }).unwrap_err();
    assert!(matches!(error, ServeError::Engine(EngineError::OutOfRange { name: "kv_tokens", .. })), "{error}");
    assert_eq!(served().name, NAME);
}
