//! A client that streams completions from a server with the API of OpenAI, and notes when each
//! piece of text comes.

use super::workload::Planned;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Time after which a server that says nothing has failed.
const SILENCE: Duration = Duration::from_secs(600);

/// A server, and the name of its model.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Host and port.
    address: String,
    /// Path before `/v1`.
    base: String,
    model: String,
    api_key: Option<String>,
    /// Whether it is asked for recursion counts, which only ours have.
    asks_counts: bool,
}

/// The times of one answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub sent: Instant,
    /// When each piece of text came, and the end.
    pub pieces: Vec<Instant>,
    /// New tokens.
    pub tokens: usize,
    /// Their recursion counts, if they were asked for.
    pub recursion_counts: Vec<u64>,
}

impl Endpoint {
    /// The server at `url`, `http://HOST:PORT` with `/v1` or without it; asks it for its model.
    ///
    /// # Errors
    /// The address is none, or there is no such server.
    pub fn connect(url: &str, api_key: Option<String>) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("http://");
        let rest = rest.with_context(|| format!("`{url}` is not the address of a server, expected `http://…`"))?;
        let (address, base) = rest.split_once('/').unwrap_or((rest, ""));
        let base = base.trim_end_matches('/').trim_end_matches("v1").trim_end_matches('/');
        let base = if base.is_empty() { String::new() } else { format!("/{base}") };
        let address = if address.contains(':') { address.to_owned() } else { format!("{address}:80") };
        let mut endpoint = Self { address, base, model: String::new(), api_key, asks_counts: false };
        let mut text = String::new();
        endpoint.send("GET", "/v1/models", "")?.read_to_string(&mut text)?;
        let models: Value = serde_json::from_str(&text).with_context(|| format!("the models of `{url}`"))?;
        let model = models["data"][0]["id"].as_str();
        endpoint.model = model.with_context(|| format!("`{url}` names no model: {text}"))?.to_owned();
        Ok(endpoint)
    }

    /// Asks for the recursion count of every new token, too.
    pub fn with_counts(self) -> Self {
        Self { asks_counts: true, ..self }
    }

    /// Sends a request, and reads its answer to the end.
    ///
    /// # Errors
    /// The server refuses it, or the connection ends early.
    pub fn complete(&self, planned: &Planned) -> anyhow::Result<Answer> {
        let mut body = json!({
            "model": self.model,
            "prompt": planned.prompt,
            "max_tokens": planned.new_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.asks_counts {
            body["retie"] = json!({"recursion_counts": true});
        }
        let sent = Instant::now();
        let (mut pieces, mut recursion_counts, mut tokens, mut done) = (Vec::new(), Vec::new(), None, false);
        for line in self.send("POST", "/v1/completions", &body.to_string())?.lines() {
            let line = line?;
            let Some(datum) = line.strip_prefix("data: ") else { continue };
            if datum == "[DONE]" {
                done = true;
                break;
            }
            let chunk: Value = serde_json::from_str(datum).with_context(|| format!("a chunk of a stream: {datum}"))?;
            ensure!(chunk["error"].is_null(), "the server failed: {}", chunk["error"]);
            if chunk["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
                pieces.push(Instant::now());
            }
            let counts = chunk["choices"][0]["retie"]["recursion_counts"].as_array();
            recursion_counts.extend(counts.into_iter().flatten().filter_map(Value::as_u64));
            tokens = chunk["usage"]["completion_tokens"].as_u64().or(tokens);
        }
        ensure!(done, "the answer ended after {} pieces, without `[DONE]`", pieces.len());
        let tokens = tokens.and_then(|tokens| usize::try_from(tokens).ok()).unwrap_or(pieces.len());
        pieces.push(Instant::now());
        Ok(Answer { sent, pieces, tokens, recursion_counts })
    }

    /// The body of the response to a request.
    fn send(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Body> {
        let Self { address, base, api_key, .. } = self;
        let mut stream = TcpStream::connect(address).with_context(|| format!("no server at `{address}`"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let key = api_key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {base}{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{key}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes())?;
        let mut body = Body::open(BufReader::new(stream))?;
        if body.status != 200 {
            let mut text = String::new();
            body.reader.read_to_string(&mut text)?;
            bail!("the server at `{address}` answered {}: {}", body.status, text.trim());
        }
        Ok(body)
    }
}

/// Body of a response of HTTP/1.1: chunked, or up to the end of the connection.
#[derive(Debug)]
struct Body<R = BufReader<TcpStream>> {
    status: u16,
    reader: BufReader<Chunks<R>>,
}

/// The chunks of a body.
#[derive(Debug)]
struct Chunks<R> {
    reader: R,
    /// Bytes left of the current chunk; `None` for a body without chunks.
    left: Option<usize>,
}

impl<R: BufRead> Body<R> {
    /// Reads the head of a response.
    fn open(mut reader: R) -> anyhow::Result<Self> {
        let (mut status, mut chunked, mut line) = (0, false, String::new());
        loop {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "the connection ended in the head of a response");
            let header = line.trim_end().to_ascii_lowercase();
            if header.starts_with("http/") {
                status = header.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            }
            chunked |= header.starts_with("transfer-encoding:") && header.ends_with("chunked");
            if header.is_empty() {
                break;
            }
        }
        let chunks = Chunks { reader, left: chunked.then_some(0) };
        Ok(Self { status, reader: BufReader::new(chunks) })
    }

    fn lines(self) -> impl Iterator<Item = std::io::Result<String>> {
        self.reader.lines()
    }

    fn read_to_string(&mut self, text: &mut String) -> std::io::Result<usize> {
        self.reader.read_to_string(text)
    }
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let Some(left) = &mut self.left else { return self.reader.read(out) };
        let mut line = String::new();
        while *left == 0 {
            // The size of a chunk stands in hexadecimal digits on a line, after the empty end of
            // the line that closes the last chunk.
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Ok(0);
            }
            let digits = line.trim_end().split(';').next().unwrap_or_default();
            match (digits.is_empty(), usize::from_str_radix(digits, 16)) {
                (true, _) => {}
                (false, Ok(0)) => return Ok(0),
                (false, Ok(size)) => *left = size,
                (false, Err(error)) => return Err(std::io::Error::other(format!("the size of a chunk: {error}"))),
            }
        }
        let room = out.len().min(*left);
        let read = self.reader.read(&mut out[..room])?;
        *left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: &str) -> (u16, String) {
        let mut body = Body::open(response.as_bytes()).unwrap();
        let mut text = String::new();
        body.read_to_string(&mut text).unwrap();
        (body.status, text)
    }

    #[test]
    fn a_body_is_read_with_chunks_and_without() {
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab\ncd\r\n0B;x=1\r\n0123456789\n\r\n0\r\n\r\n";
        assert_eq!(body(chunked), (200, "ab\ncd0123456789\n".to_owned()));
        assert_eq!(body("HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabc"), (404, "abc".to_owned()));
        assert!(Body::open("HTTP/1.1 200 OK\r\n".as_bytes()).is_err());
        let mut wrong = Body::open("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".as_bytes()).unwrap();
        assert!(wrong.read_to_string(&mut String::new()).is_err());
    }
}
