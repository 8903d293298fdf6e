//! Bodies of requests to the server of a tiny model: every answer is JSON or a stream, with a
//! status that says whose fault it is. The first byte of the input chooses the route.

use super::Target;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use burn::tensor::Device;
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::ModelConfig;
use retie_data::ChatTemplate;
use retie_engine::{EngineOptions, Scheduler};
use retie_model::CausalLm;
use retie_serve::{QueueLimits, ServeOptions, ServedModel, Service};
use serde_json::{Value, json};
use std::{borrow::Cow, cell::OnceCell, collections::BTreeMap, path::Path, time::Duration};
use tokio::runtime::Runtime;
use tower::ServiceExt;

pub const HTTP: Target = Target { name: "http", files: &[], run: |input, _| http(input) };

const ROUTES: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];
/// Enough for a stream of several tokens; a longer answer has no other bytes to be read.
const CONTEXT: usize = 8;
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}{{ message.content }}{% endfor %}";

struct Server {
    runtime: Runtime,
    router: Router,
    /// Ends the engine when it is dropped.
    _service: Service,
}

fn http(input: &[u8]) {
    thread_local! {
        static SERVER: OnceCell<Option<Server>> = const { OnceCell::new() };
    }
    let Some((route, body)) = input.split_first() else { return };
    let route = ROUTES[usize::from(*route) % ROUTES.len()];
    SERVER.with(|server| {
        let Some(Server { runtime, router, .. }) = server.get_or_init(start) else { panic!("the server") };
        let request = Request::post(route).header("content-type", "application/json").body(Body::from(body.to_vec()));
        let Ok(request) = request else { panic!("the request") };
        runtime.block_on(async {
            let Ok(response) = router.clone().oneshot(request).await;
            let (parts, body) = response.into_parts();
            let Ok(text) = to_bytes(body, 1 << 20).await else { panic!("the answer does not end") };
            let expected = [200, 400, 404, 413, 429].map(|code| StatusCode::from_u16(code).ok());
            let shown = String::from_utf8_lossy(&text);
            assert!(expected.contains(&Some(parts.status)), "{route}: {} {shown}", parts.status);
            if !shown.starts_with("data: ") {
                assert!(serde_json::from_slice::<Value>(&text).is_ok(), "{route}: {shown}");
            }
        });
    });
}

fn start() -> Option<Server> {
    let tokenizer = super::tokenizer::tiny()?;
    let Value::Object(keys) = json!({
        "model_type": "llama", "vocab_size": 402, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT, "eos_token_id": 0,
    }) else {
        return None;
    };
    let config = ModelConfig::from_json(keys, Path::new("config.json")).ok()?;
    let model = CausalLm::load(&config, &Waves::of(&config), &Device::flex()).ok()?;
    let files = [("chat_template.jinja".to_owned(), TEMPLATE.as_bytes().to_vec())];
    let served = ServedModel {
        name: "tiny".to_owned(),
        model,
        chat_template: ChatTemplate::from_model_files(&files, Path::new("model")).ok()?,
        prefix_token: tokenizer.bos_token(),
        tokenizer,
        exits: None,
    };
    let options = ServeOptions {
        engine: EngineOptions { num_slots: 2, context: CONTEXT, max_step_tokens: 16 },
        kv_tokens: None,
        scheduler: Scheduler::Full,
        exit_trace: None,
        exit_risk: None,
        speculation: None,
        prefix_reuse: true,
        queue: QueueLimits { sequences: 8, tokens: 256 },
        body_bytes: 1 << 14,
        timeout: Duration::from_secs(60),
        api_key: None,
    };
    let service = Service::start(served, options).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    Some(Server { runtime, router: service.router(), _service: service })
}

/// Weights of sines.
struct Waves(BTreeMap<String, TensorInfo>);

impl Waves {
    fn of(config: &ModelConfig) -> Self {
        let info = |shape| TensorInfo { dtype: Dtype::F32, shape };
        Self(config.tensors().into_iter().map(|spec| (spec.name(), info(spec.shape))).collect())
    }
}

impl TensorSource for Waves {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.get(name)
    }

    fn path_of(&self, _: &str) -> &Path {
        Path::new("waves")
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let count = self.info(name).map_or(0, TensorInfo::num_elements);
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7 + name.len() as f32).sin()).collect();
        Ok(narrow(&values, Dtype::F32).into())
    }
}
