//! `/v1/completions`: its tokens are those of the engine alone, its log-probabilities are what
//! evaluation harnesses expect, and a stream is the response in pieces.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_engine::{Request, Sampling, StopConditions};
use retie_serve::{ServedModel, Service};
use serde_json::{Value, json};
use support::{CONTEXT, NAME, alone, ask, metric, options, post, served, service, stream, tokenizer, wait_for};

const PATH: &str = "/v1/completions";

/// The request that the engine gets for a text.
fn engine_request(text: &str, new: usize, sampling: Sampling) -> Request {
    let prompt = tokenizer().encode_start(text).unwrap();
    let stop = StopConditions { max_new_tokens: Some(new), eos_token_ids: vec![0], ..StopConditions::default() };
    Request { prompt, sampling, stop, ..Request::default() }
}

/// The text of new tokens, without an EOS token.
fn text(tokens: &[u32]) -> String {
    tokenizer().decode(tokens, true).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_any_mix_are_those_of_each_request_alone() {
    let service = service(options());
    let router = service.router();
    let mut tasks = Vec::new();
    for i in 0..24u64 {
        let router = router.clone();
        tasks.push(tokio::spawn(async move {
            let prompt = "def function(x): return ".repeat(1 + i as usize % 3) + &i.to_string();
            let (new, temperature) = (3 + i as usize % 20, if i.is_multiple_of(3) { 0.0 } else { 0.8 });
            let body = json!({
                "prompt": prompt, "max_tokens": new, "temperature": temperature, "seed": i, "top_k": 50,
                "frequency_penalty": 0.1, "stream": i.is_multiple_of(2),
            });
            let found = if i.is_multiple_of(2) {
                let chunks = stream(&router, PATH, &body).await;
                assert!(chunks.iter().all(|chunk| chunk["choices"].as_array().unwrap().len() == 1));
                chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect::<String>()
            } else {
                let answer = ask(&router, PATH, &body).await;
                let prompt_tokens = tokenizer().encode_start(&prompt).unwrap().len();
                assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens);
                answer["choices"][0]["text"].as_str().unwrap().to_owned()
            };
            let sampling = Sampling { temperature, seed: i, top_k: 50, frequency_penalty: 0.1, ..Sampling::default() };
            let (tokens, _) = alone(engine_request(&prompt, new, sampling));
            let tokens = tokens.strip_suffix(&[0]).unwrap_or(&tokens);
            assert_eq!(found, text(tokens), "request {i}");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    wait_for(&router, "num_requests_running", 0.0).await;
    assert_eq!(metric(&router, "kv_cache_usage_perc").await, 0.0);
}

#[tokio::test]
async fn a_response_has_the_fields_of_the_api() {
    let service = service(options());
    let answer = ask(&service.router(), PATH, &json!({"model": NAME, "prompt": "def f", "temperature": 0})).await;
    let (tokens, _) = alone(engine_request("def f", 16, Sampling::default()));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!(NAME)));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let ended = if tokens.last() == Some(&0) { "stop" } else { "length" };
    let expected = json!([{
        "index": 0, "text": text(tokens.strip_suffix(&[0]).unwrap_or(&tokens)), "logprobs": null, "finish_reason": ended,
    }]);
    assert_eq!(answer["choices"], expected);
    let prompt_tokens = tokenizer().encode_start("def f").unwrap().len();
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": tokens.len(), "total_tokens": prompt_tokens + tokens.len(),
        "prompt_tokens_details": {"cached_tokens": 0},
        "retie": {"tokens_by_recursions": {"1": tokens.len()}, "mean_recursions": 1.0},
    });
    assert_eq!(answer["usage"], usage);
}

#[tokio::test]
async fn several_prompts_and_choices_come_in_order_and_a_seed_repeats() {
    let service = service(options());
    let router = service.router();
    let body = json!({"prompt": ["import", "path ="], "n": 3, "seed": 5, "max_tokens": 9, "temperature": 1.3});
    let answer = ask(&router, PATH, &body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let sampling = Sampling { temperature: 1.3, seed: 5 + index as u64 % 3, ..Sampling::default() };
        let (tokens, _) = alone(engine_request(["import", "path ="][index / 3], 9, sampling));
        assert_eq!(choice["text"], text(tokens.strip_suffix(&[0]).unwrap_or(&tokens)), "choice {index}");
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(ask(&router, PATH, &body).await["choices"], answer["choices"]);
    let random = json!({"prompt": "import", "max_tokens": 20});
    assert_ne!(ask(&router, PATH, &random).await["choices"], ask(&router, PATH, &random).await["choices"]);
}

/// What lm-evaluation-harness sends for log-likelihoods (`lm_eval/models/openai_completions.py`).
#[tokio::test]
async fn scores_of_texts_are_what_a_harness_reads() {
    let service = service(options());
    let texts = ["def tokens(self):\n    return 1", "naïve 🦀", "x"];
    let prompts: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer().encode_start(text).unwrap()).collect();
    let body = json!({
        "model": NAME, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true,
    });
    let answer = ask(&service.router(), PATH, &body).await;
    for (choice, prompt) in answer["choices"].as_array().unwrap().iter().zip(&prompts) {
        let stop = StopConditions { max_new_tokens: Some(1), eos_token_ids: vec![0], ..StopConditions::default() };
        let request = Request { prompt: prompt.clone(), stop, prompt_logprobs: Some(1), ..Request::default() };
        let (tokens, expected) = alone(request);
        let lists = &choice["logprobs"];
        let list = |name: &str| lists[name].as_array().unwrap();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), prompt.len() + 1, "{name}");
        }
        assert_eq!((&list("token_logprobs")[0], &list("top_logprobs")[0]), (&Value::Null, &Value::Null));
        for (i, expected) in expected.iter().enumerate() {
            let found = list("token_logprobs")[i + 1].as_f64().unwrap();
            // The same f32 in JSON, but for the rounding of products in batches of other sizes.
            assert!((found - f64::from(expected.logprob)).abs() < 1e-5);
            let top = list("top_logprobs")[i + 1].as_object().unwrap();
            let largest = top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
            assert!(top.values().any(|value| value.as_f64() == Some(found)), "the token itself is there");
            assert_eq!(found == largest, expected.top[0].1 == expected.logprob, "greedy or not");
        }
        // The new token is in the lists, an EOS token too.
        let last = String::from_utf8(tokenizer().token_bytes(tokens[0]));
        let last = last.unwrap_or_else(|_| format!("token_id:{}", tokens[0]));
        assert_eq!(list("tokens").last().unwrap(), &json!(last));
        let text = choice["text"].as_str().unwrap();
        let offsets: Vec<u64> = list("text_offset").iter().map(|offset| offset.as_u64().unwrap()).collect();
        assert!(offsets.is_sorted() && *offsets.last().unwrap() as usize <= text.chars().count());
    }
    // A character of several tokens: each of its tokens is named by its id.
    let crab = answer["choices"][1]["logprobs"]["tokens"].to_string();
    assert!(crab.contains("token_id:"), "{crab}");
}

#[tokio::test]
async fn a_text_is_scored_without_a_new_token() {
    let service = service(options());
    let body = json!({"prompt": "import json", "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = ask(&service.router(), PATH, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("import json"), &json!("length")));
    let ids = tokenizer().encode_start("import json").unwrap();
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), ids.len());
    assert!(choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len() == 1);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    // Without log-probabilities it is an echo, and the whole context fits.
    let ids = vec![5; CONTEXT];
    let answer = ask(&service.router(), PATH, &json!({"prompt": ids, "max_tokens": 0, "echo": true})).await;
    assert_eq!(answer["choices"][0]["text"], text(&ids));
}

#[tokio::test]
async fn the_pieces_of_a_stream_are_the_response() {
    let service = service(options());
    let router = service.router();
    let mut body = json!({
        "prompt": ["from pathlib", "🦀 = "], "n": 2, "seed": 3, "max_tokens": 24, "temperature": 1.1, "logprobs": 2,
        "echo": true, "ignore_eos": true,
    });
    let whole = ask(&router, PATH, &body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut chunks = stream(&router, PATH, &body).await;
    let usage = chunks.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
    for (index, expected) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let pieces = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let pieces: Vec<&Value> = pieces.collect();
        let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!(expected["text"], text);
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let parts = pieces.iter().flat_map(|piece| piece["logprobs"][name].as_array().unwrap());
            let parts: Vec<&Value> = parts.collect();
            let expected = expected["logprobs"][name].as_array().unwrap();
            assert_eq!(parts.len(), expected.len(), "{name}");
            if name == "tokens" || name == "text_offset" {
                assert_eq!(parts, expected.iter().collect::<Vec<_>>(), "{name}");
            }
        }
        let reasons: Vec<&Value> = pieces.iter().map(|piece| &piece["finish_reason"]).collect();
        let (last, before) = reasons.split_last().unwrap();
        assert!(before.iter().all(|reason| reason.is_null()) && **last == expected["finish_reason"]);
    }
}

#[tokio::test]
async fn a_stop_string_is_cut_off_even_from_the_first_token() {
    let service = service(options());
    let router = service.router();
    let body = json!({"prompt": "def f", "temperature": 0, "max_tokens": 30, "ignore_eos": true});
    let whole = ask(&router, PATH, &body).await["choices"][0]["text"].as_str().unwrap().to_owned();
    for skipped in [0, 4] {
        let stop: String = whole.chars().skip(skipped).take(2).collect();
        let mut body = body.clone();
        body["stop"] = json!(["~never~", stop]);
        let choice = ask(&router, PATH, &body).await["choices"][0].clone();
        assert_eq!(choice["text"], whole[..whole.find(&stop).unwrap()]);
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn an_empty_prompt_is_the_start_of_a_text() {
    let service = service(options());
    let router = service.router();
    let bos = tokenizer().bos_token().unwrap();
    let of = |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 8});
    let empty = ask(&router, PATH, &of(json!(""))).await;
    assert_eq!(empty["choices"], ask(&router, PATH, &of(json!([bos]))).await["choices"]);
    let mut bare = of(json!(""));
    bare["add_special_tokens"] = json!(false);
    assert_eq!(empty["choices"], ask(&router, PATH, &bare).await["choices"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn logits_that_are_no_numbers_are_an_error_of_the_request() {
    let healthy = served();
    let model = retie_testing::overflowing_model(healthy.model.config());
    let service = Service::start(ServedModel { model, ..healthy }, options()).unwrap();
    let router = service.router();
    let body = json!({"prompt": "def", "max_tokens": 4});
    let (status, _, text) = post(&router, PATH, &body).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), &error["error"]["type"]), (500, &"server_error".into()), "{text}");
    assert_eq!(error["error"]["code"], "model_failed");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("the model's logits after ") && message.contains("are not numbers"), "{message}");
    let (_, _, text) = post(&router, PATH, &json!({"prompt": "def", "max_tokens": 4, "stream": true})).await;
    assert!(text.contains("\"model_failed\"") && !text.contains("[DONE]"), "{text}");
    wait_for(&router, "num_requests_running", 0.0).await;
}
