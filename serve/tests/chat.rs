//! `/v1/chat/completions`, models and the tokenizer over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_serve::{ServedModel, Service};
use serde_json::{Value, json};
use support::{CONTEXT, NAME, ask, get, options, post, served, service, stream, tokenizer};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_answer_goes_on_from_the_rendered_messages() {
    let service = service(options());
    let router = service.router();
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
    ]);
    let body =
        json!({"model": NAME, "messages": messages, "temperature": 0, "max_completion_tokens": 12, "max_tokens": 3});
    let answer = ask(&router, PATH, &body).await;
    let ids = tokenizer().encode("<system>Be brief.\n<user>One\ntwo\n<assistant>").unwrap();
    let same = json!({"prompt": ids, "temperature": 0, "max_tokens": 12});
    let completion = ask(&router, "/v1/completions", &same).await;
    let choice = &answer["choices"][0];
    let message = json!({"role": "assistant", "content": completion["choices"][0]["text"], "refusal": null});
    assert_eq!((&choice["message"], &choice["logprobs"]), (&message, &Value::Null));
    assert_eq!(choice["finish_reason"], completion["choices"][0]["finish_reason"]);
    assert_eq!((&answer["usage"], &answer["object"]), (&completion["usage"], &json!("chat.completion")));
    // The tokenizer renders alike.
    let tokens = ask(&router, "/tokenize", &json!({ "messages": messages })).await;
    assert_eq!((&tokens["tokens"], &tokens["max_model_len"]), (&json!(ids), &json!(CONTEXT)));
}

#[tokio::test]
async fn without_a_limit_an_answer_fills_the_context() {
    let service = service(options());
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "ignore_eos": true});
    let answer = ask(&service.router(), PATH, &body).await;
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let service = service(options());
    let router = service.router();
    let mut body = json!({
        "messages": [{"role": "user", "content": "hi"}], "n": 2, "seed": 1, "max_tokens": 20, "logprobs": true,
        "top_logprobs": 2, "temperature": 1.2,
    });
    let whole = ask(&router, PATH, &body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut chunks = stream(&router, PATH, &body).await;
    let usage = chunks.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    for (index, expected) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let pieces = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let pieces: Vec<&Value> = pieces.collect();
        assert_eq!(pieces[0]["delta"], json!({"role": "assistant", "content": ""}));
        let last = pieces.last().unwrap();
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &expected["finish_reason"]));
        let between = &pieces[1..pieces.len() - 1];
        let text: String = between.iter().map(|piece| piece["delta"]["content"].as_str().unwrap()).collect();
        assert_eq!(expected["message"]["content"], text);
        let tokens = between.iter().flat_map(|piece| piece["logprobs"]["content"].as_array().unwrap());
        let tokens: Vec<&Value> = tokens.map(|entry| &entry["token"]).collect();
        let content = expected["logprobs"]["content"].as_array().unwrap();
        assert_eq!(tokens, content.iter().map(|entry| &entry["token"]).collect::<Vec<_>>());
        // The bytes of the tokens together are the text.
        let bytes = content.iter().flat_map(|entry| entry["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
        assert!(content.iter().all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 2));
        assert!(content.iter().all(|entry| entry["logprob"].as_f64().unwrap() <= 0.0));
    }
}

#[tokio::test]
async fn messages_that_the_template_or_the_model_do_not_take_are_refused() {
    let service = service(options());
    let router = service.router();
    let refused = async |router: &axum::Router, messages: Value| {
        let (status, _, text) = post(router, PATH, &json!({ "messages": messages })).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, 400, "{text}");
        let text = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    };
    for (messages, param, message) in [
        (json!("hi"), "messages", "`messages` is the text `\"hi\"`, expected an array of messages"),
        (json!([]), "messages", "`messages` is missing, expected an array of messages"),
        (json!([3]), "messages[0]", "`messages[0]` is not an object"),
        (
            json!([{"role": "user"}]),
            "messages[0].content",
            "`messages[0].content` is missing, expected a text or an array of text parts",
        ),
        (
            json!([{"content": "x"}]),
            "messages[0].role",
            "`messages[0].role` is missing, expected one of system, developer, user, assistant, tool",
        ),
        (
            json!([{"role": "god", "content": "x"}]),
            "messages[0].role",
            "`messages[0].role` is the text `\"god\"`, expected one of system, developer, user, assistant, tool",
        ),
        (
            json!([{"role": "user", "content": 3}]),
            "messages[0].content",
            "`messages[0].content` is the number `3`, expected a text or an array of text parts",
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0].type",
            "`messages[0].content[0].type` is the text `\"image_url\"`, expected `text`: the model reads nothing else",
        ),
        (
            json!([{"role": "assistant", "content": "x", "tool_calls": []}]),
            "messages[0].tool_calls",
            "`messages[0].tool_calls` is not supported",
        ),
        (
            json!([{"role": "user", "content": "refuse"}]),
            "",
            "the chat template of `there/chat_template.jinja` does not take the messages: not this",
        ),
    ] {
        assert_eq!(refused(&router, messages).await, (param.to_owned(), message.to_owned()));
    }
    let served = ServedModel { chat_template: None, ..served() };
    let without = Service::start(served, options()).unwrap();
    let (_, message) = refused(&without.router(), json!([{"role": "user", "content": "hi"}])).await;
    assert!(
        message.starts_with("the model has no chat template, expected one in `tokenizer_config.json`"),
        "{message}"
    );
}

#[tokio::test]
async fn the_model_and_its_tokenizer_are_described() {
    let service = service(options());
    let router = service.router();
    let models: Value = serde_json::from_str(&get(&router, "/v1/models").await).unwrap();
    assert_eq!(models["object"], "list");
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["max_model_len"]),
        (&json!(NAME), &json!("model"), &json!(CONTEXT))
    );
    let one: Value = serde_json::from_str(&get(&router, "/v1/models/org/tiny").await).unwrap();
    assert_eq!(one, *model);
    let info: Value = serde_json::from_str(&get(&router, "/tokenizer_info").await).unwrap();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|endoftext|>"), &json!("<|bos|>")));
    assert!(info["chat_template"].as_str().unwrap().starts_with("{% for message"));

    let text = "naïve 🦀<|endoftext|>";
    let with_bos = tokenizer().encode_start(text).unwrap();
    let tokens = ask(&router, "/tokenize", &json!({"model": NAME, "prompt": text})).await;
    assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!(with_bos), &json!(with_bos.len())));
    let body = json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true});
    let tokens = ask(&router, "/tokenize", &body).await;
    assert_eq!(tokens["tokens"], json!(with_bos[1..]));
    assert_eq!(tokens["token_strs"].as_array().unwrap().last().unwrap(), "<|endoftext|>");
    let back = ask(&router, "/detokenize", &json!({"tokens": with_bos})).await;
    assert_eq!(back["prompt"], format!("<|bos|>{text}"));
    let (status, _, message) = post(&router, "/tokenize", &json!({})).await;
    assert!(status == 400 && message.contains("`prompt` is missing, expected a text, or `messages`"), "{message}");
}
