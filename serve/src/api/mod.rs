//! The HTTP interface: the API of OpenAI (<https://platform.openai.com/docs/api-reference>) with
//! the extensions of vLLM, metrics, and a page for a person.
//!
//! | route | file |
//! |---|---|
//! | `POST /v1/completions` | `completions` |
//! | `POST /v1/chat/completions` | `chat` |
//! | `GET /v1/models`, `/v1/models/{id}` | `models` |
//! | `POST /tokenize`, `/detokenize`, `GET /tokenizer_info` | `tokens` |
//! | `GET /health`, `/metrics`, `/` | here |

mod body;
mod chat;
mod completions;
mod context;
mod exits;
mod fields;
mod generation;
mod json;
mod logprobs;
mod models;
mod prompts;
mod refusal;
mod stream;
mod tokens;

pub use context::{Context, Model};
pub use exits::Exits;

use crate::inbox::State as ServiceState;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use refusal::Refusal;
use std::sync::Arc;

const PAGE: &str = include_str!("page.html");
/// What the page may load: itself.
const PAGE_POLICY: &str =
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:";

/// All routes.
pub fn router(context: Arc<Context>) -> Router {
    let protected = Router::new()
        .route("/v1/completions", post(completions::handle))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&context), authorize));
    Router::new()
        .merge(protected)
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .with_state(context)
}

/// Lets requests pass that have the API key, if there is one.
async fn authorize(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    let Some(key) = &context.options.api_key else { return next.run(request).await };
    if bearer(request.headers()).is_some_and(|found| same(found.as_bytes(), key.as_bytes())) {
        return next.run(request).await;
    }
    Refusal::unauthorized().into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// True if the two are equal; the time that it takes does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
    ];
    (headers, PAGE).into_response()
}

/// 200 while requests are accepted, else 503.
async fn health(State(context): State<Arc<Context>>) -> StatusCode {
    match context.inbox.state() {
        ServiceState::Open => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], context.metrics.render()).into_response()
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    Refusal::no_route(method.as_str(), uri.path())
}
