//! `GET /v1/models`: the model that is served.

use super::{context::Context, json::Json, refusal::Refusal};
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::sync::Arc;

/// All models: one.
pub async fn list(State(context): State<Arc<Context>>) -> Json {
    Json(json!({"object": "list", "data": [model(&context)]}))
}

/// The model with an id, which may have slashes.
///
/// # Errors
/// It is another one.
pub async fn one(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Result<Json, Refusal> {
    if id == context.model.name { Ok(Json(model(&context))) } else { Err(Refusal::no_model(&id, &context.model.name)) }
}

fn model(context: &Context) -> Value {
    json!({
        "id": context.model.name,
        "object": "model",
        "created": context.created,
        "owned_by": "retie",
        "max_model_len": context.options.engine.context,
        "retie": {
            "num_recursions": context.model.num_recursions,
            "scheduler": context.options.scheduler.name(),
            "exits": context.model.exits.to_json(),
        },
    })
}
