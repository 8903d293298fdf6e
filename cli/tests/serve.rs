//! `retie serve`, `retie chat` and `retie generate --chat`: the program on a port, its signals, and
//! the texts of a chat template.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr, Stdio},
};
use support::Place;

const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// A running `retie serve`.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: String,
}

impl Server {
    fn start(place: &Place, arguments: &str) -> Self {
        Self::of("base", place, arguments)
    }

    fn of(model: &str, place: &Place, arguments: &str) -> Self {
        let words = format!("serve {model} --port 0 --device cpu {arguments}");
        let mut child = place.command().args(words.split_whitespace()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        let address =
            line.split_once("at http://").and_then(|(_, rest)| rest.split_once(": ")).map(|(address, _)| address);
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, stderr, address }
    }

    /// Status and body of the response to a POST.
    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// Sends a signal; returns the exit code, and stderr after the first line.
    fn stop(mut self, signal: &str) -> (Option<i32>, String) {
        std::process::Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

#[test]
fn a_served_model_says_what_generate_says() {
    let place = Place::new();
    place.write("base/chat_template.jinja", TEMPLATE);
    let server = Server::start(&place, "--name demo --num-slots 2 --context 200");
    for (options, sampling) in [
        ("", json!({"temperature": 0})),
        (
            "--temperature 0.8 --seed 11 --top-k 40 --min-p 0.02",
            json!({"temperature": 0.8, "seed": 11, "top_k": 40, "min_p": 0.02}),
        ),
    ] {
        let line = format!("generate base --prompt Colonists --max-new-tokens 20 --device cpu --json {options}");
        let generated: Value = serde_json::from_str(&place.retie(&line).ok()).unwrap();
        let mut body = json!({"model": "demo", "prompt": "Colonists", "max_tokens": 20});
        body.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!((status, &answer["choices"][0]["text"]), (200, &generated["text"]), "{answer}");

        let line = format!("generate base --chat --prompt Colonists --max-new-tokens 20 --device cpu --json {options}");
        let generated: Value = serde_json::from_str(&place.retie(&line).ok()).unwrap();
        body.as_object_mut().unwrap().remove("prompt");
        body["messages"] = json!([{"role": "user", "content": "Colonists"}]);
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &generated["text"]), "{answer}");
        assert_eq!(answer["usage"]["prompt_tokens"], generated["prompt_tokens"]);
    }
    for _ in 0..2 {
        let body = json!({"prompt": "x", "max_tokens": 1, "colour": "red", "messages": [{"role": "user"}]});
        assert_eq!(server.post("/v1/completions", &body).0, 200, "unknown fields are ignored");
    }
    let (status, error) = server.post("/v1/completions", &json!({"prompt": vec![5; 150], "max_tokens": 60}));
    assert_eq!(status, 400);
    let message = "the prompt has 150 tokens and 60 new ones are asked for, expected at most 200 together";
    assert_eq!(error["error"]["message"], message);
    let (code, log) = server.stop("-TERM");
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.contains("field=colour")).count(), 1, "logged once: {log}");
    assert!(lines.iter().any(|line| line.contains("field=messages")), "{log}");
    assert_eq!(lines.last(), Some(&"all requests are finished"));
}

#[test]
fn a_served_model_with_calibrated_exits_says_what_generate_says_in_every_scheduler() {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_cycle --init average --lora-rank 4 -o looped").ok();
    let text = "--text text/train.jsonl --window 32 --level 0.6,0.97 --confidence 0.5";
    place.retie(&format!("calibrate looped {text} --kv-policy propagate")).ok();
    let generated = |options: &str| -> Value {
        let line = format!("generate looped --prompt Colonists --max-new-tokens 20 --device cpu --json {options}");
        serde_json::from_str(&place.retie(&line).ok()).unwrap()
    };
    let [never, risky] = ["", "--exit-risk 0.98"].map(generated);
    assert!(risky["recursion_counts"]["new"].as_array().unwrap().iter().any(|count| count.as_u64() < Some(3)));
    for scheduler in ["full", "lockstep", "depthwise"] {
        let server = Server::of("looped", &place, &format!("--num-slots 2 --scheduler {scheduler}"));
        for (own, expected) in [(json!({}), &never), (json!({"exit_risk": 0.98}), &risky)] {
            let body = json!({"prompt": "Colonists", "max_tokens": 20, "temperature": 0, "retie": own});
            let (status, answer) = server.post("/v1/completions", &body);
            assert_eq!((status, &answer["choices"][0]["text"]), (200, &expected["text"]), "{scheduler}: {answer}");
        }
        let low = json!({"prompt": "Colonists", "retie": {"exit_risk": 0.5}});
        let (status, error) = server.post("/v1/completions", &low);
        assert_eq!((status, &error["error"]["param"]), (400, &json!("retie.exit_risk")), "{error}");
        assert_eq!(server.stop("-TERM").0, Some(0));
    }
    // Thresholds of another checkpoint, and none.
    let low = place.refused("serve looped --port 0 --exit-risk 0.5");
    assert!(low.contains("`--exit-risk` is `0.5`, expected one of the calibrated levels or more: 0.6, 0.97"), "{low}");
    place.retie("convert base --recursions 3 --sharing middle_cycle --init lower --lora-rank 4 -o other").ok();
    fs_err::copy(place.path("other/model.safetensors"), place.path("looped/model.safetensors")).unwrap();
    let other = place.refused("serve looped --port 0");
    assert!(other.contains("made for another checkpoint") && other.contains("hint: retie calibrate looped"), "{other}");
    let none = place.refused("serve other --port 0 --exit-risk 0.5");
    assert!(none.contains("`other` has no calibrated exits") && none.contains("retie calibrate other"), "{none}");
}

#[test]
fn a_chat_answers_each_line_with_what_was_said_before() {
    let place = Place::new();
    place.write("base/chat_template.jinja", TEMPLATE);
    let arguments = "chat base --device cpu --max-new-tokens 12 --system Brief";
    let mut child = place
        .command()
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Colonists\n\n  \nWho were they?\n").unwrap();
    let run = place.run(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    // The same by hand: the prompt of each answer is the conversation so far.
    let mut prompt = "system: Brief\n".to_owned();
    let mut expected = String::new();
    for message in ["Colonists", "Who were they?"] {
        prompt += &format!("user: {message}\nassistant:");
        let generated = place.retie_with(&[
            "generate",
            "base",
            "--prompt",
            &prompt,
            "--max-new-tokens",
            "12",
            "--device",
            "cpu",
            "--json",
        ]);
        let generated: Value = serde_json::from_str(&generated.ok()).unwrap();
        let answer = generated["text"].as_str().unwrap();
        expected += &format!("{answer}\n");
        prompt += &format!("__{answer}\n");
        prompt = prompt.replace("assistant:__", "assistant: ");
    }
    assert_eq!(run.stdout, expected);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let message = place.refused(&format!("serve base --port {port}"));
    assert!(
        message.starts_with(&format!("error: port {port} of `127.0.0.1` is in use, expected a free one\nhint: ")),
        "{message}"
    );
    let message = place.refused("serve base --port 0 --context 257 --device cpu");
    assert!(message.starts_with("error: `context` is `257`, expected 1 to 256, the context of the model"), "{message}");
    assert!(place.refused("serve base --port 0 --max-queue 0").contains("expected an integer of at least 1"));
    for command in ["chat base", "generate base --chat --prompt hi"] {
        let message = place.refused(command);
        assert!(
            message.starts_with("error: `base` has no chat template, expected `chat_template.jinja` or a key"),
            "{message}"
        );
    }
    place.write("base/chat_template.jinja", "{% if %}");
    let message = place.refused("chat base");
    assert!(
        message.starts_with("error: the chat template of `base/chat_template.jinja` cannot be read\n  caused by: "),
        "{message}"
    );
}
