//! The object `stack` of `config.json`: everything that `modeling_retie.py` needs to build and run
//! the model, spelled out for each depth.

use retie_config::{
    Activation, Anatomy, KvSharing, MlpKind, ModelConfig, NormKind, QkNorm, Relax, Residual, Rope, RopeScaling,
    RouterKind, TensorOwner, TensorPart, TensorRole, TensorSpec,
};
use serde_json::{Map, Value, json};

/// The object for a model.
pub(super) fn stack(config: &ModelConfig) -> Map<String, Value> {
    let (anatomy, specs) = (&config.anatomy, config.tensors());
    let linears: Map<_, _> =
        config.projection_shapes().iter().map(|(projection, shape)| (projection.to_string(), json!(shape))).collect();
    let vectors = config.layer_vectors();
    let norms: Map<_, _> = vectors
        .iter()
        .filter_map(|(role, part, size)| match (role, part) {
            (TensorRole::Norm(position), TensorPart::Weight) => Some((position.name().to_owned(), json!(size))),
            _ => None,
        })
        .collect();
    let biases = vectors.iter().filter_map(|(role, _, _)| match role {
        TensorRole::Projection(projection) => Some(projection.name()),
        _ => None,
    });
    let lora = config.recursion.as_ref().and_then(|recursion| recursion.lora.as_ref());
    let map = config.share_map();
    let object = json!({
        "num_layers": map.num_layers(),
        "coda": map.exits().map_or(map.num_depths(), |exits| exits.coda().start),
        "share_norms": !config.has_depth_vectors(),
        "norm": match anatomy.norm {
            NormKind::Rms => "rms",
            NormKind::RmsPlusOne => "rms_plus_one",
            NormKind::Layer => "layer",
        },
        "norm_eps": anatomy.norm_eps,
        "residual": match anatomy.residual {
            Residual::PreNorm => "pre_norm",
            Residual::Sandwich => "sandwich",
            Residual::PostNorm => "post_norm",
            Residual::Parallel => "parallel",
        },
        "qk_norm": anatomy.qk_norm.map(|norm| match norm {
            QkNorm::Head => "head",
            QkNorm::Full => "full",
        }),
        "activation": activation(anatomy),
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": anatomy.query_pre_attn_scalar,
        "attn_logit_softcapping": anatomy.attn_logit_softcapping,
        "final_logit_softcapping": anatomy.final_logit_softcapping,
        "embedding_scale": anatomy.embedding_scale,
        "linears": linears,
        "biases": biases.collect::<Vec<_>>(),
        "norms": norms,
        "dora": lora.is_some_and(|lora| lora.relax == Relax::Dora),
        "ropes": anatomy.ropes.iter().map(rope).collect::<Vec<_>>(),
        "depths": depths(config, &specs),
        "routers": routers(RouterKind::Main, config, &specs),
        "auxiliary_routers": routers(RouterKind::Auxiliary, config, &specs),
    });
    match object {
        Value::Object(map) => map,
        _ => unreachable!("the literal above is an object"),
    }
}

fn activation(anatomy: &Anatomy) -> &'static str {
    let (MlpKind::Gated(activation) | MlpKind::Plain(activation)) = anatomy.mlp;
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Gelu => "gelu",
    }
}

fn rope(rope: &Rope) -> Value {
    let scaling = match rope.scaling {
        RopeScaling::Default => json!({ "type": "default" }),
        RopeScaling::Linear { factor } => json!({ "type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    };
    json!({ "theta": rope.theta, "rotary_dim": rope.rotary_dim, "scaling": scaling })
}

/// For each depth its stored layer, rotary embedding and window, the rank of each linear, its
/// extras, and the depth whose keys and values it reads (`null` for its own).
fn depths(config: &ModelConfig, specs: &[TensorSpec]) -> Vec<Value> {
    let map = config.share_map();
    let shared = config.recursion.as_ref().is_some_and(|recursion| recursion.kv_sharing == KvSharing::Shared);
    let depth = |step: &retie_config::DepthAssignment| {
        let own = || specs.iter().filter(|spec| spec.owner == TensorOwner::Depth(step.depth));
        let ranks = own().filter_map(|spec| match spec.role {
            TensorRole::LoraA(projection) => Some((projection.to_string(), json!(spec.shape[0]))),
            _ => None,
        });
        let extras = own().filter_map(|spec| match spec.role {
            TensorRole::Extra(vector) => Some(vector.name().trim_start_matches("extras.")),
            _ => None,
        });
        let later = shared && step.recursion.is_some_and(|recursion| recursion > 0);
        let first = map.depths_of(step.layer).first().filter(|_| later).map(|first| first.0);
        let kind = config.anatomy.depths[step.depth.0];
        json!({
            "layer": step.layer.0,
            "rope": kind.rope,
            "window": kind.window,
            "ranks": ranks.collect::<Map<_, _>>(),
            "extras": extras.collect::<Vec<_>>(),
            "keys_of": first,
        })
    };
    map.depths().iter().map(depth).collect()
}

/// For each router of a kind the shapes of its linears.
fn routers(kind: RouterKind, config: &ModelConfig, specs: &[TensorSpec]) -> Vec<Value> {
    let router = |index: usize| {
        let own = specs.iter().filter(move |spec| spec.owner == TensorOwner::Router(kind, index));
        let shapes = own.map(|spec| match spec.role {
            TensorRole::RouterUp => ("up_proj".to_owned(), json!(spec.shape)),
            _ => ("out_proj".to_owned(), json!(spec.shape)),
        });
        Value::Object(shapes.collect())
    };
    (0..config.num_routers(kind)).map(router).collect()
}
