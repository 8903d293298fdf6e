//! The object `retie` of a request: when its tokens leave the loop, and the recursion counts in the
//! answer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_config::{
    CalibratedText, ExitCalibration, ExitRuleKind, ExitThreshold, Init, LoraConfig, ModelConfig, RecursionConfig,
    RiskKind, RiskProcedure, Sharing, SkippedKv,
};
use retie_engine::{
    Engine, EngineOptions, ExitOptions, Request, Sampling, Scheduler, SpeculationOptions, StopConditions,
};
use retie_model::{CausalLm, ExitRule};
use retie_serve::{ServeOptions, ServedExits, ServedModel, Service};
use retie_testing::RandomWeights;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use support::{CONTEXT, ask, get, model, options, post, served, stream, tokenizer};

const PATH: &str = "/v1/completions";

/// The model of the other tests with its three layers as one that runs three times, with LoRA.
fn recursive() -> CausalLm {
    let recursion = RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise);
    let recursion = Some(RecursionConfig { lora: Some(LoraConfig::uniform(2)), ..recursion });
    let config = ModelConfig { recursion, ..model().config().clone() };
    CausalLm::load(&config, &RandomWeights::new(&config), &model().device()).unwrap()
}

/// Exits by the change of the hidden state; at the level 0.5 a part of the tokens leaves early, at
/// 0.01 none.
fn exits(kv: SkippedKv) -> ServedExits {
    let threshold = |level, threshold| ExitThreshold {
        risk: RiskKind::Disagreement,
        level,
        procedure: RiskProcedure::Betting,
        confidence: Some(0.9),
        threshold,
        mean_recursions: 2.0,
    };
    let calibration = ExitCalibration {
        schema: 1,
        model: Vec::new(),
        num_recursions: 3,
        rule: ExitRuleKind::Change,
        probes: Vec::new(),
        kv_policy: kv,
        text: CalibratedText { sha256: "00".to_owned(), documents: 40, window: 64 },
        thresholds: vec![threshold(0.01, None), threshold(0.5, Some(f64::from(THRESHOLD)))],
    };
    let rule = ExitRule::new(ExitRuleKind::Change, &[], &model().device());
    ServedExits { options: ExitOptions { rule: Some(rule), kv }, calibration: Some(calibration) }
}

/// Reached by some tokens after one recursion, by some after two, and by some never.
const THRESHOLD: f32 = 0.2;

fn service(scheduler: Scheduler) -> Service {
    calibrated(scheduler, None, SkippedKv::Latest)
}

fn calibrated(scheduler: Scheduler, exit_risk: Option<f64>, kv: SkippedKv) -> Service {
    let served = ServedModel { model: recursive(), exits: Some(exits(kv)), ..served() };
    Service::start(served, ServeOptions { scheduler, exit_risk, ..options() }).unwrap()
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
    assert_eq!(whole["usage"]["retie"], json!({"tokens_by_recursions": {"3": 8}, "mean_recursions": 3.0}));
    assert!(whole["choices"][0]["retie"].is_null());
    let router = depthwise.router();
    assert_eq!(ask(&router, PATH, &plain).await["choices"], whole["choices"], "no limit, no exits");
    let limited = ask(&router, PATH, &with(json!({"max_recursions": 1, "recursion_counts": true}))).await;
    assert_eq!(limited["choices"][0]["retie"], json!({"recursion_counts": [1, 1, 1, 1, 1, 1, 1, 1]}));
    assert_eq!(limited["usage"]["retie"], json!({"tokens_by_recursions": {"1": 8}, "mean_recursions": 1.0}));
    let same = ask(&full.router(), PATH, &with(json!({"max_recursions": 1, "recursion_counts": true}))).await;
    assert_eq!(same["choices"], limited["choices"]);
    assert_ne!(limited["choices"][0]["text"], whole["choices"][0]["text"]);
    // The pieces of a stream have the same counts.
    let mut body = with(json!({"max_recursions": 1, "recursion_counts": true}));
    body["stream"] = json!(true);
    let counts = |chunk: &Value| chunk["choices"][0]["retie"]["recursion_counts"].as_array().cloned();
    let counts: Vec<Value> = stream(&router, PATH, &body).await.iter().filter_map(counts).flatten().collect();
    assert_eq!(Value::from(counts), limited["choices"][0]["retie"]["recursion_counts"]);
}

/// Greedy tokens and recursion counts of an engine that has the request alone, as `retie generate
/// --exit-risk` has.
fn alone(prompt: &str, new: usize, kv: SkippedKv, threshold: Option<f32>) -> (Vec<u32>, Vec<usize>) {
    let engine = EngineOptions { num_slots: 1, context: CONTEXT, max_step_tokens: CONTEXT };
    let mut engine = Engine::new(recursive(), engine).unwrap().with_exits(exits(kv).options).unwrap();
    let prompt = tokenizer().encode_start(prompt).unwrap();
    let stop = StopConditions { max_new_tokens: Some(new), ..StopConditions::default() };
    let sampling = Sampling::default();
    engine.admit(Request { prompt, sampling, stop, exit_threshold: threshold, ..Request::default() }).unwrap();
    let (mut tokens, mut counts) = (Vec::new(), Vec::new());
    while !engine.is_idle() {
        for progress in engine.step() {
            counts.extend(progress.token.map(|_| progress.recursions));
            tokens.extend(progress.token);
        }
    }
    (tokens, counts)
}

#[tokio::test]
async fn requests_of_any_risk_get_the_tokens_that_they_have_alone_in_every_scheduler() {
    let prompts = ["the cell", "x", "Rome was not built in a day, and the cell is a thing", "a b c"];
    for kv in [SkippedKv::Latest, SkippedKv::Recompute] {
        // Of every prompt, with and without exits.
        let expected = prompts.map(|prompt| [None, Some(THRESHOLD)].map(|threshold| alone(prompt, 9, kv, threshold)));
        for scheduler in Scheduler::ALL {
            let service = calibrated(scheduler, None, kv);
            let router = service.router();
            let risks = [json!(0.5), json!(0.01), json!(0), Value::Null];
            let mut asked = Vec::new();
            for (at, risk) in (0..prompts.len()).flat_map(|at| risks.iter().map(move |risk| (at, risk))) {
                let prompt = prompts[at];
                let body = json!({"prompt": prompt, "max_tokens": 9, "temperature": 0, "ignore_eos": true,
                                  "retie": {"exit_risk": risk, "recursion_counts": true}});
                let router = router.clone();
                let answer = tokio::spawn(async move { ask(&router, PATH, &body).await });
                asked.push((at, risk.as_f64() == Some(0.5), answer));
            }
            let mut early = 0;
            for (at, leaves, answer) in asked {
                let answer = answer.await.unwrap();
                let (tokens, counts) = &expected[at][usize::from(leaves)];
                let text = tokenizer().decode(tokens, true).unwrap();
                let place = format!("{}, {scheduler}, {kv}", prompts[at]);
                assert_eq!(answer["choices"][0]["text"], json!(text), "{place}");
                assert_eq!(answer["choices"][0]["retie"]["recursion_counts"], json!(counts), "{place}");
                let mut by_recursions = BTreeMap::<usize, usize>::new();
                counts.iter().for_each(|count| *by_recursions.entry(*count).or_default() += 1);
                assert_eq!(answer["usage"]["retie"]["tokens_by_recursions"], json!(by_recursions), "{place}");
                early += counts.iter().filter(|count| **count < 3).count();
                assert!(leaves || counts.iter().all(|count| *count == 3), "{place}");
            }
            assert!(early > 0, "some tokens leave");
        }
    }
}

#[tokio::test]
async fn a_server_has_a_risk_for_requests_that_name_none_and_says_what_there_is() {
    let service = calibrated(Scheduler::Depthwise, Some(0.5), SkippedKv::Propagate);
    let router = service.router();
    let counts = |own: Value| {
        let body = json!({"prompt": "the cell", "max_tokens": 9, "temperature": 0, "ignore_eos": true, "retie": own});
        let router = router.clone();
        async move { ask(&router, PATH, &body).await["usage"]["retie"]["mean_recursions"].as_f64().unwrap() }
    };
    let plain = counts(json!({})).await;
    assert!(plain < 3.0, "{plain}");
    assert_eq!(plain, counts(json!({"exit_risk": 0.9})).await);
    assert_eq!([counts(json!({"exit_risk": 0})).await, counts(json!({"exit_risk": 0.01})).await], [3.0, 3.0]);
    let models: Value = serde_json::from_str(&get(&router, "/v1/models").await).unwrap();
    assert_eq!(
        models["data"][0]["retie"]["exits"],
        json!({"kv_policy": "propagate", "rule": "change", "levels": [
            {"risk": "disagreement", "level": 0.01, "mean_recursions": 2.0},
            {"risk": "disagreement", "level": 0.5, "mean_recursions": 2.0},
        ]})
    );
}

#[tokio::test]
async fn a_server_that_drafts_gives_the_same_text_and_counts_the_drafts() {
    let start = |exits, speculation| {
        let served = ServedModel { model: recursive(), exits, ..served() };
        Service::start(served, ServeOptions { speculation, ..options() })
    };
    let drafts = Some(SpeculationOptions { num_drafts: Some(3), ..SpeculationOptions::default() });
    let [plain, drafting] = [None, drafts.clone()].map(|drafts| start(None, drafts).unwrap());
    let body = json!({"prompt": "the cell", "max_tokens": 24, "temperature": 0.8, "seed": 3, "ignore_eos": true});
    let expected = ask(&plain.router(), PATH, &body).await;
    let router = drafting.router();
    let found = ask(&router, PATH, &body).await;
    assert_eq!((&found["choices"], &found["usage"]), (&expected["choices"], &expected["usage"]));
    // A stream has the same pieces of text, several of them of a pass.
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let text: String =
        stream(&router, PATH, &streamed).await.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(json!(text), expected["choices"][0]["text"]);
    // Several at once are decoded plainly.
    let asked: Vec<_> = (0..3)
        .map(|_| {
            let (router, body) = (router.clone(), body.clone());
            tokio::spawn(async move { ask(&router, PATH, &body).await })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap()["choices"], expected["choices"]);
    }
    let metrics = get(&router, "/metrics").await;
    let drafted = metrics.lines().find(|line| line.starts_with("vllm:spec_decode_num_draft_tokens_total")).unwrap();
    assert!(!drafted.ends_with(" 0"), "{drafted}");
    let by_recursions = "retie:generation_tokens_by_recursions_total";
    assert!(metrics.lines().any(|line| line.starts_with(by_recursions) && line.contains("recursions=\"3\"")));
    let both = start(Some(exits(SkippedKv::Latest)), drafts).unwrap_err().to_string();
    assert!(both.contains("its tokens leave the loop early"), "{both}");
}

#[tokio::test]
async fn exits_that_are_not_there_are_refused() {
    let start = |model: CausalLm, exits: Option<ServedExits>, scheduler, exit_risk| {
        let served = ServedModel { model, exits, ..served() };
        Service::start(served, ServeOptions { scheduler, exit_risk, ..options() })
    };
    let refused = |model, exits, scheduler, risk| start(model, exits, scheduler, risk).unwrap_err().to_string();
    let low = refused(recursive(), Some(exits(SkippedKv::Latest)), Scheduler::Full, Some(0.001));
    assert!(
        low.starts_with("`exit_risk` is `0.001`, expected one of the calibrated levels or more: 0.01, 0.5"),
        "{low}"
    );
    let policy = refused(recursive(), Some(exits(SkippedKv::Shared)), Scheduler::Full, None);
    assert!(policy.contains("the policy `shared` needs `kv_sharing: shared`"), "{policy}");
    let plain = refused(model(), Some(exits(SkippedKv::Latest)), Scheduler::Full, None);
    assert!(plain.contains("it has one recursion"), "{plain}");

    let limits = ServedExits { options: ExitOptions { rule: None, kv: SkippedKv::Latest }, calibration: None };
    let uncalibrated = start(recursive(), Some(limits), Scheduler::Depthwise, None).unwrap();
    let never = start(model(), None, Scheduler::Full, None).unwrap();
    let none = "`retie.exit_risk` cannot be served: this model has no calibrated exits; \
                `retie calibrate MODEL --text FILE` makes them";
    let one = "`retie.exit_risk` cannot be served: no token of this model leaves early: it has one recursion";
    for (service, expected) in [(&uncalibrated, none), (&never, one)] {
        let body = json!({"prompt": "x", "retie": {"exit_risk": 0.05}});
        let (status, _, text) = post(&service.router(), PATH, &body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("retie.exit_risk")));
        assert_eq!(error["error"]["message"], expected);
    }
    ask(&uncalibrated.router(), PATH, &json!({"prompt": "x", "max_tokens": 1, "retie": {"max_recursions": 1}})).await;
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
        (&depthwise, "exit_risk", json!("low"), "`retie.exit_risk` is the text `\"low\"`, expected a number"),
        (
            &full,
            "exit_risk",
            json!(0.002),
            "`retie.exit_risk` is the number `0.002`, expected one of the calibrated levels or more: 0.01, 0.5",
        ),
        (&full, "exit_risk", json!(1.5), "`retie.exit_risk` is the number `1.5`, expected a number between 0 and 1"),
        (
            &depthwise,
            "recursion_counts",
            json!(1),
            "`retie.recursion_counts` is the number `1`, expected true or false",
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
