//! Refusals: errors of a request, as the OpenAI API writes them:
//! `{"error": {"message", "type", "param", "code"}}`.

use super::json::Json;
use crate::{inbox::NotAccepted, job::Failure, queue::Refused};
use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use retie_data::DataError;
use retie_engine::EngineError;
use serde_json::{Value, json};

/// Seconds after which a refused client may try again.
const RETRY_SECONDS: u32 = 1;

/// An error of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    message: String,
    /// The field that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// The request is wrong as a whole.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request is wrong.
    pub fn of_field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad_request(message) }
    }

    /// There is no such route.
    pub fn no_route(method: &str, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no `{method} {path}`"))
    }

    /// There is no such model.
    pub fn no_model(found: &str, expected: &str) -> Self {
        let message = format!("the model `{found}` does not exist, expected `{expected}`");
        let param = Some("model".to_owned());
        Self { param, code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    /// The API key is missing or wrong.
    pub fn unauthorized() -> Self {
        let message = "the API key is missing or wrong, expected `Authorization: Bearer KEY`";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// The body is larger than the limit.
    pub fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"))
    }

    /// The body did not arrive in time.
    pub fn timeout(seconds: u64) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {seconds} s"))
    }

    /// The body is not declared as JSON.
    pub fn not_json() -> Self {
        let message = "expected the header `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// There is no room for another request now.
    pub fn overloaded() -> Self {
        let message = "too many requests are waiting, try again later";
        Self { code: Some("rate_limit_exceeded"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// The engine cannot answer: the reason.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: Some("server_is_overloaded"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The model cannot answer: the reason.
    pub fn model_failed(message: impl Into<String>) -> Self {
        Self { code: Some("model_failed"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, message) }
    }

    /// The engine has stopped.
    pub fn stopped() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has stopped")
    }

    /// The object under `error`.
    pub fn to_json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        response
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::OutOfRange { name, found, expected } => {
                let name = if name == "max_new_tokens" { "max_tokens" } else { name };
                Self::of_field(name, format!("`{name}` is `{found}`, expected {expected}"))
            }
            EngineError::TooLong { prompt_tokens, new_tokens, context } => {
                let message = format!(
                    "the prompt has {prompt_tokens} tokens and {new_tokens} new ones are asked for, expected at most \
                     {context} together"
                );
                Self { code: Some("context_length_exceeded"), ..Self::bad_request(message) }
            }
            EngineError::UnknownToken { token, vocab_size } => Self::of_field(
                "prompt",
                format!("token {token} of the prompt is not in the vocabulary of {vocab_size} tokens"),
            ),
            error => Self::bad_request(error.to_string().lines().next().unwrap_or_default()),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unavailable(reason) => Self::unavailable(reason),
            Failure::Model(reason) => Self::model_failed(reason),
        }
    }
}

impl From<DataError> for Refusal {
    fn from(error: DataError) -> Self {
        Self::bad_request(error.to_string().lines().next().unwrap_or_default())
    }
}

impl From<NotAccepted> for Refusal {
    fn from(reason: NotAccepted) -> Self {
        match reason {
            NotAccepted::Refused(Refused::Full) => Self::overloaded(),
            NotAccepted::Refused(Refused::TooLarge) => {
                Self::bad_request("the request has more prompts and choices than may wait at once")
            }
            NotAccepted::Closed => Self::unavailable("the server shuts down"),
        }
    }
}
