//! Real connections: bodies that are cut off, clients that leave, and the end of the server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_serve::{Ended, Lifetime, ServeError, bind, serve};
use serde_json::json;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use support::{options, service};

/// A server on a free port.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Ended, ServeError>>,
}

impl Server {
    fn start(drain: Duration) -> Self {
        let listener = bind("127.0.0.1", 0).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let lifetime = Lifetime { stop: Arc::clone(&stop), drain };
        let thread = std::thread::spawn(move || serve(service(options()), listener, lifetime));
        Self { address, stop, thread }
    }

    /// A connection with a request on it, of which the server waits for `length` bytes of body.
    fn request(&self, length: usize, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        stream
    }

    fn send(&self, body: &serde_json::Value) -> TcpStream {
        let body = body.to_string();
        self.request(body.len(), &body)
    }

    fn metric(&self, name: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("vllm:{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    }

    fn wait_for_running(&self, expected: &str) {
        let start = Instant::now();
        while self.metric("num_requests_running") != expected {
            assert!(start.elapsed() < Duration::from_secs(20), "expected {expected} to run");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn finish(self) -> Ended {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap().unwrap()
    }
}

/// A stream with several hundred kilobytes: more than the buffers of a connection hold, so that the
/// sequences of a client that does not read go on to run.
fn long_stream() -> serde_json::Value {
    json!({
        "prompt": vec!["x"; 8], "n": 8, "max_tokens": 120, "stream": true, "logprobs": 20, "ignore_eos": true,
    })
}

#[test]
fn a_body_that_is_cut_in_half_is_refused() {
    let server = Server::start(Duration::from_secs(5));
    let mut stream = server.request(100, "{\"prompt\": ");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    // The server may close the connection in place of an answer.
    _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let mut stream = server.send(&json!({"prompt": "x", "max_tokens": 1}));
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n", "the server goes on");
    server.finish();
}

#[test]
fn a_connection_that_is_closed_ends_its_sequences() {
    let server = Server::start(Duration::from_secs(5));
    let mut stream = server.send(&long_stream());
    let mut first = [0; 20];
    stream.read_exact(&mut first).unwrap();
    server.wait_for_running("4");
    drop(stream);
    server.wait_for_running("0");
    server.finish();
}

#[test]
fn a_client_that_does_not_wait_for_its_response_ends_its_sequences() {
    let server = Server::start(Duration::from_secs(5));
    let mut body = long_stream();
    body["stream"] = json!(false);
    let stream = server.send(&body);
    server.wait_for_running("4");
    drop(stream);
    server.wait_for_running("0");
    let generated: usize = server.metric("generation_tokens_total").parse().unwrap();
    assert!(generated < 8 * 8 * 120, "all of {generated} tokens were generated");
    server.finish();
}

#[test]
fn a_server_that_is_stopped_finishes_what_it_accepted() {
    let server = Server::start(Duration::from_secs(60));
    let stream = server.send(&json!({"prompt": "x", "max_tokens": 120, "stream": true, "ignore_eos": true}));
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next().unwrap().unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(server.finish(), Ended::Finished);
    let text: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(text.iter().any(|line| line == "data: [DONE]"), "{text:?}");
}

#[test]
fn a_server_that_is_stopped_ends_what_takes_too_long() {
    let server = Server::start(Duration::from_millis(200));
    let stream = server.send(&long_stream());
    server.wait_for_running("4");
    let start = Instant::now();
    assert_eq!(server.finish(), Ended::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(10), "nobody reads the stream");
    drop(stream);
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let listener = bind("127.0.0.1", 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = bind("127.0.0.1", port).unwrap_err().to_string();
    let hint = "hint: `--port` takes another one; 0 is any free one";
    assert_eq!(error, format!("port {port} of `127.0.0.1` is in use, expected a free one\n{hint}"));
    let error = bind("no such host", 0).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen at port 0 of `no such host`\nhint: "), "{error}");
}
