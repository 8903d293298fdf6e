//! HTTP requests to the hub: the token, redirects, time limits and retries.

use super::{Remote, RequestError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{io::Read, thread, time::Duration};
use ureq::{
    Agent, Body, SendBody,
    http::{HeaderMap, Response, StatusCode, Uri, header, uri::Authority},
    tls::{RootCerts, TlsConfig},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts after the first one that failed; with the delays below they take 1.4 s.
const MAX_RETRIES: u32 = 3;
/// Delay before the first retry; it doubles with every further one.
const RETRY_DELAY: Duration = Duration::from_millis(200);
const MAX_REDIRECTS: usize = 5;
/// Largest JSON answer that is read; a page of a file list has about 200 kB.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Longest error message of a server that is quoted.
const MAX_MESSAGE_CHARS: usize = 300;
/// RFC 3986 unreserved characters, which stay as they are in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One segment of a URL's path, percent-encoded; a slash in it is encoded too.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A path of several segments, percent-encoded.
pub(super) fn segments(path: &str) -> String {
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// A client of one hub. The token goes to the hub's own host only.
pub(super) struct HubClient {
    agent: Agent,
    endpoint: String,
    /// Scheme and authority of the endpoint.
    origin: String,
    authority: Authority,
    authorization: Option<String>,
}

impl HubClient {
    pub fn new(remote: &Remote) -> Result<Self, RequestError> {
        let endpoint = remote.endpoint.trim_end_matches('/').to_owned();
        let bad = || RequestError::from(ureq::Error::BadUri(endpoint.clone()));
        let uri: Uri = endpoint.parse().map_err(|_| bad())?;
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(bad)?;
        let config = Agent::config_builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            // Followed here, where it is decided what goes with them.
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        Ok(Self {
            agent: config.build().into(),
            origin: format!("{scheme}://{authority}"),
            authority: authority.clone(),
            authorization: remote.token.as_ref().map(|token| format!("Bearer {token}")),
            endpoint,
        })
    }

    /// The URL of a percent-encoded path on the hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// The JSON document at `url`, and the URL of the page after it, if there is one.
    pub fn json<T: DeserializeOwned>(&self, url: &str) -> Result<(T, Option<String>), RequestError> {
        with_retries(|| {
            let mut answer = success(self.get(url, None)?)?;
            let body = answer.body_mut().with_config().limit(MAX_JSON_BYTES).read_to_vec()?;
            Ok((serde_json::from_slice(&body)?, next_page(answer.headers())))
        })
    }

    /// The answer to a JSON document.
    pub fn post<T: DeserializeOwned>(&self, url: &str, body: &Value) -> Result<T, RequestError> {
        self.post_as(url, "application/json", &body.to_string())
    }

    /// The answer to a document of Git LFS.
    pub fn post_lfs<T: DeserializeOwned>(&self, url: &str, body: &Value) -> Result<T, RequestError> {
        self.post_as(url, "application/vnd.git-lfs+json", &body.to_string())
    }

    /// The answer to JSON documents, a line each.
    pub fn post_lines<T: DeserializeOwned>(&self, url: &str, lines: &str) -> Result<T, RequestError> {
        self.post_as(url, "application/x-ndjson", lines)
    }

    fn post_as<T: DeserializeOwned>(&self, url: &str, kind: &str, body: &str) -> Result<T, RequestError> {
        with_retries(|| {
            let request = self.authorized(self.agent.post(url), url);
            let request = request.header(header::CONTENT_TYPE, kind).header(header::ACCEPT, kind);
            let mut answer = success(request.send(body)?)?;
            let body = answer.body_mut().with_config().limit(MAX_JSON_BYTES).read_to_vec()?;
            // Some answers have no content.
            let body = if body.is_empty() { b"null".as_slice() } else { &body };
            Ok(serde_json::from_slice(body)?)
        })
    }

    /// Puts `bytes` bytes, which `open` gives from their start, at `url`; gives the entity tag of
    /// the answer, empty if it has none.
    pub fn put<R: Read>(
        &self,
        url: &str,
        bytes: u64,
        open: impl Fn() -> std::io::Result<R>,
    ) -> Result<String, RequestError> {
        with_retries(|| {
            let mut content = open().map_err(ureq::Error::from)?;
            let request = self.authorized(self.agent.put(url), url).header(header::CONTENT_LENGTH, bytes);
            let answer = success(request.send(SendBody::from_reader(&mut content))?)?;
            Ok(text(answer.headers(), header::ETAG.as_str()).unwrap_or_default().to_owned())
        })
    }

    /// The entity tag of the file at `url`, which names its blob in the cache. A file in large
    /// storage is redirected to another host, but its entity tag is in the hub's own answer, so
    /// that only redirects within the hub (as of a renamed repository) are followed.
    pub fn etag(&self, url: &str) -> Result<String, RequestError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let answer = with_retries(|| {
                let answer = self.authorized(self.agent.head(&url), &url).call()?;
                if answer.status().is_redirection() { Ok(answer) } else { success(answer) }
            })?;
            let moved = text(answer.headers(), header::LOCATION.as_str());
            match moved.filter(|to| to.starts_with('/') && !to.starts_with("//")) {
                Some(path) if answer.status().is_redirection() => url = format!("{}{path}", self.origin),
                _ => return etag(answer.headers()),
            }
        }
        Err(ureq::Error::TooManyRedirects.into())
    }

    /// The content of the file at `url` from byte `start` on, and the byte at which it really
    /// starts, which is zero if the server cannot start elsewhere.
    pub fn content(&self, url: &str, start: u64) -> Result<(u64, impl Read + use<>), RequestError> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let answer = self.get(url, range.as_deref())?;
        if start > 0 && answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let whole = success(self.get(url, None)?)?;
            return Ok((0, whole.into_body().into_reader()));
        }
        let answer = success(answer)?;
        let starts_at = if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(answer.headers(), header::CONTENT_RANGE.as_str());
            let expected = format!("bytes {start}-");
            if !range.is_some_and(|range| range.starts_with(&expected)) {
                return Err(RequestError::Answer { expected: format!("`Content-Range: {expected}…`") });
            }
            start
        } else {
            0
        };
        Ok((starts_at, answer.into_body().into_reader()))
    }

    /// Asks for `url`, or a part of it, and follows redirects. Each request is decided about anew:
    /// one to another scheme, host or port than the hub's carries no token.
    fn get(&self, url: &str, range: Option<&str>) -> Result<Response<Body>, RequestError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.authorized(self.agent.get(&url), &url);
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            let answer = request.call()?;
            match text(answer.headers(), header::LOCATION.as_str()) {
                Some(to) if answer.status().is_redirection() => url = target(&url, to)?,
                _ => return Ok(answer),
            }
        }
        Err(ureq::Error::TooManyRedirects.into())
    }

    /// `request` with the token, if `url` is on the hub.
    fn authorized<B>(&self, request: ureq::RequestBuilder<B>, url: &str) -> ureq::RequestBuilder<B> {
        let on_hub = url.parse::<Uri>().is_ok_and(|uri| uri.authority() == Some(&self.authority))
            && url.starts_with(&self.origin);
        match &self.authorization {
            Some(authorization) if on_hub => request.header(header::AUTHORIZATION, authorization),
            _ => request,
        }
    }
}

/// Retries of a request, with growing delays.
#[derive(Default)]
pub(super) struct Retries {
    done: u32,
}

impl Retries {
    /// Waits until the next attempt is due; gives `error` back if there is none.
    pub fn wait(&mut self, error: RequestError) -> Result<(), RequestError> {
        if self.done == MAX_RETRIES || !error.may_pass() {
            return Err(error);
        }
        tracing::debug!(%error, "request failed, trying again");
        thread::sleep(RETRY_DELAY * 2_u32.pow(self.done));
        self.done += 1;
        Ok(())
    }

    /// Starts over, after an attempt that got further.
    pub fn reset(&mut self) {
        self.done = 0;
    }
}

fn with_retries<T>(mut attempt: impl FnMut() -> Result<T, RequestError>) -> Result<T, RequestError> {
    let mut retries = Retries::default();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => retries.wait(error)?,
        }
    }
}

/// `answer` if its status says success.
fn success(answer: Response<Body>) -> Result<Response<Body>, RequestError> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let message = text(answer.headers(), "x-error-message");
    let message = message.map(|message| message.chars().take(MAX_MESSAGE_CHARS).collect());
    Err(RequestError::Status { status: answer.status().as_u16(), message })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The entity tag that `headers` state, without its quotation marks; `X-Linked-ETag` is that of a
/// file in large storage.
fn etag(headers: &HeaderMap) -> Result<String, RequestError> {
    let tag = text(headers, "x-linked-etag").or_else(|| text(headers, header::ETAG.as_str()));
    let tag = tag.map(|tag| tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"'));
    let is_file_name = |tag: &&str| {
        tag.starts_with(|c: char| c.is_ascii_alphanumeric())
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let tag = tag.filter(is_file_name).ok_or_else(|| RequestError::Answer { expected: "an entity tag".to_owned() });
    tag.map(ToOwned::to_owned)
}

/// Where a redirect from `url` to `location` leads: a URL, or a path on the same server. One that
/// leaves TLS is refused.
fn target(url: &str, location: &str) -> Result<String, RequestError> {
    let bad = || RequestError::from(ureq::Error::BadUri(location.to_owned()));
    let from: Uri = url.parse().map_err(|_| bad())?;
    let (scheme, authority) = from.scheme_str().zip(from.authority()).ok_or_else(bad)?;
    let to = match location {
        path if path.starts_with("//") => format!("{scheme}:{path}"),
        path if path.starts_with('/') => format!("{scheme}://{authority}{path}"),
        url => url.to_owned(),
    };
    let is_http = to.starts_with("https://") || to.starts_with("http://") && scheme == "http";
    if is_http { Ok(to) } else { Err(bad()) }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = text(headers, header::LINK.as_str())?.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (_, target) = link.split_once('<')?;
    Some(target.split_once('>')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_entity_tag_of_large_storage_comes_first_and_is_a_file_name() {
        assert_eq!(etag(&headers(&[("etag", "W/\"a-1\"")])).unwrap(), "a-1");
        assert_eq!(etag(&headers(&[("etag", "\"a\""), ("x-linked-etag", "\"b\"")])).unwrap(), "b");
        for bad in ["\"\"", "\"../b\"", "\"a/b\"", "\".\""] {
            assert!(etag(&headers(&[("etag", bad)])).is_err(), "{bad}");
        }
        assert!(etag(&headers(&[])).is_err());
    }

    #[test]
    fn the_next_page_is_named_by_a_link() {
        let link = "<https://hub/a?cursor=0>; rel=\"prev\", <https://hub/a?cursor=2>; rel=\"next\"";
        assert_eq!(next_page(&headers(&[("link", link)])).as_deref(), Some("https://hub/a?cursor=2"));
        assert_eq!(next_page(&headers(&[("link", "<https://hub/a>; rel=\"prev\"")])), None);
        assert_eq!(next_page(&headers(&[])), None);
    }

    #[test]
    fn a_redirect_leads_to_a_url_or_a_path_and_never_from_tls_to_plain_text() {
        let from = |url: &str, location: &str| target(url, location).ok();
        assert_eq!(from("https://hub:1/a/b", "/c?d").as_deref(), Some("https://hub:1/c?d"));
        assert_eq!(from("https://hub/a", "//cdn/c").as_deref(), Some("https://cdn/c"));
        assert_eq!(from("http://hub/a", "https://cdn/c").as_deref(), Some("https://cdn/c"));
        assert_eq!(from("http://hub/a", "http://cdn/c").as_deref(), Some("http://cdn/c"));
        for location in ["http://hub/a", "file:///etc/passwd", "c", ""] {
            assert_eq!(from("https://hub/a", location), None, "{location}");
        }
    }

    #[test]
    fn a_revision_is_one_segment_and_a_path_several() {
        assert_eq!(segment("refs/convert/parquet"), "refs%2Fconvert%2Fparquet");
        assert_eq!(segments("data/a b#1.txt"), "data/a%20b%231.txt");
    }
}
