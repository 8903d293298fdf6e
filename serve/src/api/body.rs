//! The body of a request: JSON, limited in size and time.

use super::{context::Context, fields::Fields, refusal::Refusal};
use axum::{
    body::to_bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use std::{sync::Arc, time::Duration};

/// Bodies that arrive at once; further ones wait unread, so that their memory is bounded.
pub const BODIES: usize = 64;
/// Time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The fields of a JSON body.
#[derive(Debug)]
pub struct JsonBody(pub Fields);

impl FromRequest<Arc<Context>> for JsonBody {
    type Rejection = Refusal;

    async fn from_request(request: Request, context: &Arc<Context>) -> Result<Self, Refusal> {
        let limit = context.options.body_bytes;
        let headers = request.headers();
        if !is_json(headers) {
            return Err(Refusal::not_json());
        }
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(Refusal::too_large(limit));
        }
        let read = async {
            let _permit = context.bodies.acquire().await;
            to_bytes(request.into_body(), limit).await
        };
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, read).await {
            Err(_) => return Err(Refusal::timeout(BODY_TIMEOUT.as_secs())),
            // A body of unknown length is too large; another one was cut off.
            Ok(Err(_)) if length.is_none() => return Err(Refusal::too_large(limit)),
            Ok(Err(_)) => return Err(Refusal::bad_request("the body ends before its length")),
            Ok(Ok(bytes)) => bytes,
        };
        Fields::parse(&bytes).map(Self)
    }
}

/// True for a body that is declared as JSON. A page of another site cannot send such a body without
/// being asked for permission first.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}
