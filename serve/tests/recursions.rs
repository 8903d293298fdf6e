//! The object `retie` of a request: most recursions of its new tokens, and the recursion counts in
//! the answer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_config::{Init, ModelConfig, RecursionConfig, Sharing};
use retie_engine::Scheduler;
use retie_model::CausalLm;
use retie_serve::{ServeOptions, ServedModel, Service};
use retie_testing::RandomWeights;
use serde_json::{Value, json};
use support::{ask, model, options, post, served, stream};

const PATH: &str = "/v1/completions";

/// The model of the other tests with its three layers as one that runs three times.
fn recursive() -> CausalLm {
    let recursion = Some(RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise));
    let config = ModelConfig { recursion, ..model().config().clone() };
    CausalLm::load(&config, &RandomWeights::new(&config), &model().device()).unwrap()
}

fn service(scheduler: Scheduler) -> Service {
    Service::start(ServedModel { model: recursive(), ..served() }, ServeOptions { scheduler, ..options() }).unwrap()
}

#[tokio::test]
async fn a_request_limits_its_recursions_and_learns_them() {
    let [full, depthwise] = [Scheduler::Full, Scheduler::Depthwise].map(service);
    let plain = json!({"prompt": "the cell", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let with = |own: Value| {
        let mut body = plain.clone();
        body["retie"] = own;
        body
    };
    let whole = ask(&full.router(), PATH, &plain).await;
    assert_eq!(whole["usage"]["retie"], json!({"tokens_by_recursions": [0, 0, 8], "mean_recursions": 3.0}));
    assert!(whole["choices"][0]["retie"].is_null());
    let router = depthwise.router();
    assert_eq!(ask(&router, PATH, &plain).await["choices"], whole["choices"], "no limit, no exits");
    let limited = ask(&router, PATH, &with(json!({"max_recursions": 1, "recursion_counts": true}))).await;
    // The prompt is read at full depth, and the first token is chosen from its end.
    assert_eq!(limited["choices"][0]["retie"], json!({"recursion_counts": [3, 1, 1, 1, 1, 1, 1, 1]}));
    assert_eq!(limited["usage"]["retie"], json!({"tokens_by_recursions": [7, 0, 1], "mean_recursions": 1.25}));
    assert_ne!(limited["choices"][0]["text"], whole["choices"][0]["text"]);
    // The pieces of a stream have the same counts.
    let mut body = with(json!({"max_recursions": 1, "recursion_counts": true}));
    body["stream"] = json!(true);
    let counts = |chunk: &Value| chunk["choices"][0]["retie"]["recursion_counts"].as_array().cloned();
    let counts: Vec<Value> = stream(&router, PATH, &body).await.iter().filter_map(counts).flatten().collect();
    assert_eq!(Value::from(counts), limited["choices"][0]["retie"]["recursion_counts"]);
}

#[tokio::test]
async fn wrong_fields_of_the_object_are_refused_by_name() {
    let [full, depthwise] = [Scheduler::Full, Scheduler::Depthwise].map(service);
    for (service, field, value, expected) in [
        (
            &depthwise,
            "max_recursions",
            json!(4),
            "`retie.max_recursions` is the number `4`, expected an integer from 1 to 3",
        ),
        (
            &depthwise,
            "max_recursions",
            json!("1"),
            "`retie.max_recursions` is the text `\"1\"`, expected an integer from 1 to 3",
        ),
        (&depthwise, "exit_risk", json!(0.02), "`retie.exit_risk` is not supported"),
        (
            &depthwise,
            "recursion_counts",
            json!(1),
            "`retie.recursion_counts` is the number `1`, expected true or false",
        ),
        (
            &full,
            "max_recursions",
            json!(2),
            "`retie.max_recursions` needs a server whose tokens exit: `--scheduler depthwise` or `lockstep`",
        ),
    ] {
        let (status, _, text) = post(&service.router(), PATH, &json!({"prompt": "x", "retie": {field: value}})).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status.as_u16(), error["error"]["param"].as_str().unwrap()),
            (400, format!("retie.{field}").as_str())
        );
        assert_eq!(error["error"]["message"], expected);
    }
    ask(&full.router(), PATH, &json!({"prompt": "x", "max_tokens": 1, "retie": {"max_recursions": 3}})).await;
}
