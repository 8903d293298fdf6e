//! A service of a tiny model with random weights, and requests to it without a network.
#![allow(dead_code)] // each test file uses a part

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
    response::Response,
};
use burn::tensor::Device;
use retie_config::ModelConfig;
use retie_data::{ChatTemplate, Tokenizer};
use retie_engine::{Engine, EngineOptions, Progress, Request as EngineRequest, Scheduler, TokenLogprobs};
use retie_model::CausalLm;
use retie_serve::{QueueLimits, ServeOptions, ServedModel, Service};
use retie_testing::RandomWeights;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tower::ServiceExt;

pub const CONTEXT: usize = 128;
pub const NAME: &str = "org/tiny";
const VOCAB_SIZE: usize = 402;
const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}\
                        {% if messages[0].content == 'refuse' %}{{ raise_exception('not this') }}{% endif %}";

/// A Llama of three layers of width 16 for the tokenizer of the tests.
pub fn model() -> CausalLm {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT, "eos_token_id": 0,
    }) else {
        unreachable!()
    };
    let config = ModelConfig::from_json(map, Path::new("tiny")).unwrap();
    CausalLm::load(&config, &RandomWeights::new(&config), &Device::flex()).unwrap()
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/tiny_tokenizer.json"))
        .unwrap()
}

pub fn options() -> ServeOptions {
    ServeOptions {
        engine: EngineOptions { num_slots: 4, context: CONTEXT, max_step_tokens: 16 },
        kv_tokens: None,
        scheduler: Scheduler::Full,
        exit_trace: None,
        exit_risk: None,
        speculation: None,
        prefix_reuse: false,
        queue: QueueLimits { sequences: 64, tokens: 4096 },
        body_bytes: 1 << 16,
        timeout: Duration::from_secs(60),
        api_key: None,
    }
}

pub fn served() -> ServedModel {
    let tokenizer = tokenizer();
    let files = [("chat_template.jinja".to_owned(), TEMPLATE.as_bytes().to_vec())];
    ServedModel {
        name: NAME.to_owned(),
        model: model(),
        chat_template: ChatTemplate::from_model_files(&files, Path::new("there")).unwrap(),
        prefix_token: tokenizer.bos_token(),
        tokenizer,
        exits: None,
    }
}

pub fn service(options: ServeOptions) -> Service {
    Service::start(served(), options).unwrap()
}

/// Tokens of a request in an engine of its own, with the log-probabilities of its prompt.
pub fn alone(request: EngineRequest) -> (Vec<u32>, Vec<TokenLogprobs>) {
    let mut engine =
        Engine::new(model(), EngineOptions { num_slots: 1, context: CONTEXT, max_step_tokens: CONTEXT }).unwrap();
    engine.admit(request).unwrap();
    let (mut tokens, mut scored) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        for Progress { token, prompt_logprobs, .. } in engine.step() {
            tokens.extend(token);
            scored.extend(prompt_logprobs);
        }
    }
    (tokens, scored)
}

/// Sends a request; its response, whose body may not be there yet.
pub async fn send(router: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    router.clone().oneshot(request.body(Body::from(body.to_vec())).unwrap()).await.unwrap()
}

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// Status, headers and text of the response to a POST.
pub async fn post(router: &Router, path: &str, body: &Value) -> (StatusCode, HeaderMap, String) {
    read(send(router, "POST", path, &[JSON], body.to_string().as_bytes()).await).await
}

/// Text of the response to a GET, which has to succeed.
pub async fn get(router: &Router, path: &str) -> String {
    let (status, _, text) = read(send(router, "GET", path, &[], b"").await).await;
    assert_eq!(status, StatusCode::OK, "{path}: {text}");
    text
}

/// JSON of the response to a POST that has to succeed.
pub async fn ask(router: &Router, path: &str, body: &Value) -> Value {
    let (status, _, text) = post(router, path, body).await;
    assert_eq!(status, StatusCode::OK, "{body}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// JSON data of the stream that answers a POST. The last datum has to be `[DONE]`.
pub async fn stream(router: &Router, path: &str, body: &Value) -> Vec<Value> {
    let (status, headers, text) = post(router, path, body).await;
    assert_eq!((status, headers["content-type"].as_bytes()), (StatusCode::OK, &b"text/event-stream"[..]), "{text}");
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|datum| serde_json::from_str(datum).unwrap()).collect()
}

pub async fn read(response: Response) -> (StatusCode, HeaderMap, String) {
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
}

/// Value of a metric without further labels.
pub async fn metric(router: &Router, name: &str) -> f64 {
    let text = get(router, "/metrics").await;
    let line = text.lines().find(|line| line.starts_with(&format!("vllm:{name}{{"))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until a metric has a value.
pub async fn wait_for(router: &Router, name: &str, value: f64) {
    for _ in 0..1000 {
        if metric(router, name).await == value {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("`{name}` is {}, expected {value}", metric(router, name).await);
}
