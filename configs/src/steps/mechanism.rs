//! Mechanism of a step: its parameters, and what follows from them.

use super::*;
use crate::{Depth, TensorInit, TensorPart};
use serde_json::{Map, Value};
use std::{fmt, str::FromStr};

/// Calls the macro `$with` with the list of all mechanisms. An entry is the mechanism's name in
/// configurations, its variant of [`Mechanism`] and the struct of its parameters.
#[macro_export]
macro_rules! for_each_mechanism {
    ($with:ident) => {
        $with! {
            /// A recursion over means of several tokens (MSRNet, SpiralFormer).
            "resolution" => Resolution(ResolutionConfig),
            /// Attention within interleaved or consecutive slices of a sequence (SReT).
            "sliced" => Sliced(SlicedConfig),
            /// Attention to the own chunk, and to pooled keys of earlier ones (FlashVGGT).
            "descriptor" => Descriptor(DescriptorConfig),
            /// Attention to the last tokens, and to latents of all earlier ones (RGT).
            "rg" => Rg(RgConfig),
            /// No attention, for a branch in its place.
            "none" => NoAttention(NoAttentionConfig),
            /// Recursive gated convolution beside attention (HorNet).
            "gnconv" => Gnconv(GnconvConfig),
            /// The model's SiLU and a dynamic range activator, which starts at 0.
            "silu_dra" => SiluDra(SiluDraConfig),
            /// Dynamic range activator.
            "dra" => Dra(DraConfig),
            /// Snake, `x + sin²(αx)/α`.
            "snake" => Snake(SnakeConfig),
            /// Learned coefficients of both residual connections (SReT).
            "coefficients" => Coefficients(CoefficientsConfig),
            /// Hybrid adaptive integration: the input of a depth, added to its output (RGT).
            "hai" => Hai(HaiConfig),
            /// Non-linear projection after a recursion (SReT).
            "nll" => Nll(NllConfig),
            /// Dense feedback: what entered every earlier recursion, added to the input.
            "dense" => Dense(DenseConfig),
            /// Fusion of the states after all recursions so far (MSRNet).
            "grouped_softmax" => GroupedSoftmax(GroupedSoftmaxConfig),
        }
    };
}

/// Place of a mechanism in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// What the recursion runs over.
    Resolution,
    /// The keys that queries attend to.
    Attention,
    /// A branch beside attention.
    Branch,
    /// The activation of the feed-forward network.
    Activation,
    /// Between depths and recursions; several in one row.
    Transition,
    /// The state that leaves a recursion.
    Exit,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolution => "resolution",
            Self::Attention => "attention",
            Self::Branch => "branch",
            Self::Activation => "activation",
            Self::Transition => "transition",
            Self::Exit => "exit.fuse",
        })
    }
}

/// A depth of the loop and the model around it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// Its recursion.
    pub recursion: &'a RecursionConfig,
    /// Its share map.
    pub map: &'a ShareMap,
    /// The depth.
    pub depth: &'a DepthAssignment,
}

impl Place<'_> {
    /// True at the first depth of a pass over the shared block.
    #[must_use]
    pub fn begins_pass(&self) -> bool {
        self.map.begins_pass(self.depth)
    }

    /// True at the last depth of a pass over the shared block.
    #[must_use]
    pub fn ends_pass(&self) -> bool {
        let next = self.map.depths().get(self.depth.depth.0 + 1);
        next.is_none_or(|next| next.recursion != self.depth.recursion)
    }

    /// Sliding window of the depth.
    pub(super) fn window(&self) -> Option<usize> {
        let Depth(depth) = self.depth.depth;
        self.model.anatomy.depths.get(depth).and_then(|kind| kind.window)
    }
}

/// Tensor of a mechanism at one depth.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTensor {
    /// Name after `model.depths.{d}.step.`.
    pub path: &'static str,
    /// Weight or bias.
    pub part: TensorPart,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Initial values.
    pub init: TensorInit,
}

impl StepTensor {
    pub(super) fn weight(path: &'static str, shape: &[usize], init: TensorInit) -> Self {
        Self { path, part: TensorPart::Weight, shape: shape.to_vec(), init }
    }

    pub(super) fn bias(path: &'static str, size: usize) -> Self {
        Self { path, part: TensorPart::Bias, shape: vec![size], init: TensorInit::Constant(0.0) }
    }
}

/// Parameters of one mechanism.
pub trait StepMechanism {
    /// Place in a row.
    fn slot(&self) -> Slot;

    /// Reasons why it cannot be at this depth.
    fn problems(&self, _place: &Place<'_>) -> Vec<String> {
        Vec::new()
    }

    /// Tensors that it has at this depth.
    fn tensors(&self, _place: &Place<'_>) -> Vec<StepTensor> {
        Vec::new()
    }

    /// True if what it does to a token in a recursion follows from that token in that recursion
    /// alone, so that tokens can leave the loop early and go through it at their own pace.
    fn is_local(&self) -> bool {
        matches!(self.slot(), Slot::Activation | Slot::Transition)
    }

    /// True if tokens can leave the loop early: what it does to a token follows from that token
    /// alone, in the recursions that it has gone through.
    fn leaves_early(&self) -> bool {
        self.is_local()
    }

    /// True if a model that gets it has the logits that it had.
    fn keeps_logits(&self) -> bool {
        true
    }

    /// Operations of its matrix products on one token at this depth.
    fn operations(&self, place: &Place<'_>) -> f64 {
        let products = self.tensors(place).into_iter().filter(|tensor| tensor.shape.len() == 2);
        products.map(|tensor| 2.0 * tensor.shape.iter().product::<usize>() as f64).sum()
    }

    /// Number of keys that a cache with room for `tokens` tokens holds at this depth; `None` for
    /// those of all tokens.
    fn cached_keys(&self, _tokens: usize) -> Option<usize> {
        None
    }

    /// Numbers in f32 that a cache holds at this depth for each sequence beside keys and values.
    fn state(&self, _place: &Place<'_>) -> usize {
        0
    }

    /// False if the depth computes no attention.
    fn runs_attention(&self) -> bool {
        true
    }

    /// Mean number of keys that a query attends to over `keys` consecutive tokens; `None` if the
    /// model's own attention decides.
    fn mean_keys(&self, _keys: f64) -> Option<f64> {
        None
    }
}

macro_rules! define_mechanism {
    ($($(#[$doc:meta])* $name:literal => $variant:ident($parameters:ident),)+) => {
        /// A mechanism with its parameters. In configurations it is `name`, or `{name: {…}}`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "Value", into = "Value")]
        pub enum Mechanism {
            $($(#[$doc])* $variant($parameters),)+
        }

        impl Mechanism {
            /// The name of every mechanism.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Name in configurations.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)+ }
            }

            /// Its parameters.
            #[must_use]
            pub fn parameters(&self) -> &dyn StepMechanism {
                match self { $(Self::$variant(parameters) => parameters,)+ }
            }

            /// The mechanism of this name with parameters by key.
            ///
            /// # Errors
            /// When there is none, or a parameter is not as expected.
            pub fn named(name: &str, parameters: Value) -> Result<Self, String> {
                match name {
                    $($name => serde_json::from_value(parameters).map(Self::$variant).map_err(|e| format!("`{name}`: {e}")),)+
                    _ => Err(format!("unknown mechanism `{name}`, expected one of {}", Self::NAMES.join(", "))),
                }
            }

            fn parameters_by_key(&self) -> Value {
                let value = match self { $(Self::$variant(parameters) => serde_json::to_value(parameters),)+ };
                value.unwrap_or_default()
            }
        }
    };
}
for_each_mechanism!(define_mechanism);

impl TryFrom<Value> for Mechanism {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let expected = |found: &Value| {
            format!("`{found}` is no mechanism, expected a name or `{{name: {{…}}}}` of {}", Self::NAMES.join(", "))
        };
        match value {
            Value::String(name) => Self::named(&name, Value::Object(Map::new())),
            Value::Object(map) if map.len() == 1 => match map.into_iter().next() {
                Some((name, parameters)) => Self::named(&name, parameters),
                None => Err(expected(&Value::Null)),
            },
            other => Err(expected(&other)),
        }
    }
}

impl From<Mechanism> for Value {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism.parameters_by_key() {
            Self::Object(map) if map.is_empty() => Self::String(mechanism.name().to_owned()),
            parameters => Self::Object(Map::from_iter([(mechanism.name().to_owned(), parameters)])),
        }
    }
}

impl FromStr for Mechanism {
    type Err = String;

    /// Reads `name` or `name:key=value,key=value`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let mut parameters = Map::new();
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(format!("`{setting}` of `{text}` has no value, expected `key=value`"));
            };
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            parameters.insert(key.to_owned(), value);
        }
        Self::named(name, Value::Object(parameters))
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let Value::Object(parameters) = self.parameters_by_key() else { return Ok(()) };
        for (index, (key, value)) in parameters.iter().enumerate() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            write!(f, "{}{key}={value}", if index == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}
