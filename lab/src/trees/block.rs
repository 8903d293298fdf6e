//! The block that makes a cell of its context, and the scorers of splits (ReCAT, Hu et al. 2024,
//! <https://arxiv.org/abs/2309.16319>, and its code,
//! <https://github.com/ant-research/StructuredLM_RTDT>).
//!
//! ```text
//! B(x; c) = LN₂(u + MLP(u)),  u = LN₁(x + MHA(x + ρ_x; c + ρ))
//! ```
//!
//! with a vector ρ for each role in the context `c` of three cells: two parts and what is above.
//! `D` is the hidden size, `P` a number of pairs, `N` the number of heads.

use burn::{
    module::{Module, Param},
    tensor::{
        Device, Int, Tensor,
        activation::{gelu, softmax},
    },
};
use burn_nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};

/// Standard deviation of the vectors that start as noise.
const NOISE: f64 = 0.02;

/// Attention over three cells and a network, with normalisation after each, shared by both passes
/// of a layer.
#[derive(Module, Debug)]
pub struct Block {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    attention_norm: LayerNorm,
    up_proj: Linear,
    down_proj: Linear,
    mlp_norm: LayerNorm,
    /// Of what is above, the left part and the right part, as the inside pass has them: `[3, D]`.
    inside_roles: Param<Tensor<2>>,
    /// Of the left part, the right part and what is above, in the outside pass: `[3, D]`.
    outside_roles: Param<Tensor<2>>,
    num_heads: usize,
}

/// Which pass a block runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// From parts to wholes.
    Inside,
    /// From wholes to parts.
    Outside,
}

/// Keys and values of cells without a role: `[_, D]` each.
#[derive(Clone, Debug)]
pub struct KeyValue {
    /// Keys.
    pub key: Tensor<2>,
    /// Values.
    pub value: Tensor<2>,
}

impl KeyValue {
    fn plus(self, other: Self) -> Self {
        Self { key: self.key + other.key, value: self.value + other.value }
    }
}

/// Queries, keys and values of the roles of a pass, which are added to those of the cells: a
/// projection is linear. `[3, D]` each.
#[derive(Debug)]
pub struct Roles {
    query: Tensor<2>,
    both: KeyValue,
}

impl Roles {
    /// Query of role number `role`: `[1, D]`.
    #[must_use]
    pub fn query(&self, role: usize) -> Tensor<2> {
        self.query.clone().narrow(0, role, 1)
    }

    /// Queries of a role for each pair: `[P, D]`.
    #[must_use]
    pub fn queries(&self, roles: Tensor<1, Int>) -> Tensor<2> {
        self.query.clone().select(0, roles)
    }

    /// `cells` in role number `role`.
    #[must_use]
    pub fn set(&self, cells: KeyValue, role: usize) -> KeyValue {
        let row = |x: &Tensor<2>| x.clone().narrow(0, role, 1);
        cells.plus(KeyValue { key: row(&self.both.key), value: row(&self.both.value) })
    }

    /// `cells`, one a pair, each in its own role.
    #[must_use]
    pub fn set_each(&self, cells: KeyValue, roles: Tensor<1, Int>) -> KeyValue {
        let rows = |x: &Tensor<2>| x.clone().select(0, roles.clone());
        cells.plus(KeyValue { key: rows(&self.both.key), value: rows(&self.both.value) })
    }
}

impl Block {
    /// A block of `hidden` features in `heads` heads, `intermediate` in its network.
    #[must_use]
    pub fn new(hidden: usize, heads: usize, intermediate: usize, device: &Device) -> Self {
        let square = || LinearConfig::new(hidden, hidden).init(device);
        let norm = || LayerNormConfig::new(hidden).init(device);
        let noise = Initializer::Normal { mean: 0.0, std: NOISE };
        Self {
            q_proj: square(),
            k_proj: square(),
            v_proj: square(),
            o_proj: square(),
            attention_norm: norm(),
            up_proj: LinearConfig::new(hidden, intermediate).init(device),
            down_proj: LinearConfig::new(intermediate, hidden).init(device),
            mlp_norm: norm(),
            inside_roles: noise.init([3, hidden], device),
            outside_roles: noise.init([3, hidden], device),
            num_heads: heads,
        }
    }

    /// Keys and values of `cells [_, D]` without their roles.
    #[must_use]
    pub fn key_value(&self, cells: Tensor<2>) -> KeyValue {
        KeyValue { key: self.k_proj.forward(cells.clone()), value: self.v_proj.forward(cells) }
    }

    /// Queries of `cells [_, D]` without their roles.
    #[must_use]
    pub fn query(&self, cells: Tensor<2>) -> Tensor<2> {
        self.q_proj.forward(cells)
    }

    /// What the roles of a pass add.
    #[must_use]
    pub fn roles(&self, pass: Pass) -> Roles {
        let roles = match pass {
            Pass::Inside => self.inside_roles.val(),
            Pass::Outside => self.outside_roles.val(),
        };
        let of = |proj: &Linear| roles.clone().matmul(proj.weight.val());
        Roles { query: of(&self.q_proj), both: KeyValue { key: of(&self.k_proj), value: of(&self.v_proj) } }
    }

    /// `B(source; context)` for each pair: `source [P, D]` without its role, its `query [P, D]` and
    /// the context with their roles.
    #[must_use]
    pub fn forward(&self, source: Tensor<2>, query: Tensor<2>, context: [KeyValue; 3]) -> Tensor<2> {
        let attended = self.attend(query, context);
        let u = self.attention_norm.forward(source + self.o_proj.forward(attended));
        let mlp = self.down_proj.forward(gelu(self.up_proj.forward(u.clone())));
        self.mlp_norm.forward(u + mlp)
    }

    fn attend(&self, query: Tensor<2>, context: [KeyValue; 3]) -> Tensor<2> {
        let ([pairs, hidden], heads) = (query.dims(), self.num_heads);
        let size = hidden / heads;
        let by_head = |x: Tensor<2>| x.reshape([pairs * heads, size]);
        let query = by_head(query.div_scalar((size as f64).sqrt()));
        let (mut scores, mut values) = (Vec::with_capacity(3), Vec::with_capacity(3));
        for KeyValue { key, value } in context {
            scores.push((query.clone() * by_head(key)).sum_dim(1));
            values.push(by_head(value));
        }
        let weights = softmax(Tensor::cat(scores, 1), 1); // [P·N, 3]
        let weighted = values
            .into_iter()
            .enumerate()
            .map(|(cell, value)| value * weights.clone().slice([0..pairs * heads, cell..cell + 1]));
        let sum = weighted.reduce(|sum, value| sum + value);
        sum.unwrap_or_else(|| query.zeros_like()).reshape([pairs, hidden])
    }
}

/// Two layers that make the vector whose products score splits.
#[derive(Module, Debug)]
pub struct Scorer {
    hidden: Linear,
    output: Linear,
}

impl Scorer {
    fn new(hidden: usize, size: usize, device: &Device) -> Self {
        Self {
            hidden: LinearConfig::new(hidden, hidden).init(device),
            output: LinearConfig::new(hidden, size).init(device),
        }
    }

    /// `cells [_, D]` → `[_, size]`.
    #[must_use]
    pub fn forward(&self, cells: Tensor<2>) -> Tensor<2> {
        self.output.forward(gelu(self.hidden.forward(cells)))
    }
}

/// The scorers of both passes, shared by all layers.
#[derive(Module, Debug)]
pub struct Scorers {
    /// φ_L
    pub inside_left: Scorer,
    /// φ_R
    pub inside_right: Scorer,
    /// ψ_P
    pub outside_parent: Scorer,
    /// ψ_L
    pub outside_left: Scorer,
    /// ψ_R
    pub outside_right: Scorer,
}

impl Scorers {
    /// Scorers of cells of `hidden` features with products of `size` numbers.
    #[must_use]
    pub fn new(hidden: usize, size: usize, device: &Device) -> Self {
        let scorer = || Scorer::new(hidden, size, device);
        Self {
            inside_left: scorer(),
            inside_right: scorer(),
            outside_parent: scorer(),
            outside_left: scorer(),
            outside_right: scorer(),
        }
    }
}

/// `⟨a, b⟩ / √c` of each pair: `[P, c]` → `[P, 1]`.
#[must_use]
pub fn product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [_, size] = a.dims();
    (a * b).sum_dim(1).div_scalar((size as f64).sqrt())
}

#[cfg(test)]
impl Block {
    /// `B(source; context)` of one pair as it is defined, `[1, D]`: attention by matrix products
    /// over the three cells with their roles added.
    pub(super) fn as_defined(&self, pass: Pass, source: (Tensor<2>, usize), context: [Tensor<2>; 3]) -> Tensor<2> {
        let roles = match pass {
            Pass::Inside => self.inside_roles.val(),
            Pass::Outside => self.outside_roles.val(),
        };
        let (x, role) = source;
        let query = self.q_proj.forward(x.clone() + roles.clone().narrow(0, role, 1));
        let context = Tensor::cat(context.to_vec(), 0) + roles; // [3, D]
        let (keys, values) = (self.k_proj.forward(context.clone()), self.v_proj.forward(context));
        let [_, hidden] = query.dims();
        let size = hidden / self.num_heads;
        let head = |head: usize| {
            let part = |x: &Tensor<2>, rows| x.clone().slice([0..rows, head * size..(head + 1) * size]);
            let scores = part(&query, 1).matmul(part(&keys, 3).transpose()).div_scalar((size as f64).sqrt());
            softmax(scores, 1).matmul(part(&values, 3))
        };
        let attended = Tensor::cat((0..self.num_heads).map(head).collect(), 1);
        let u = self.attention_norm.forward(x + self.o_proj.forward(attended));
        self.mlp_norm.forward(u.clone() + self.down_proj.forward(gelu(self.up_proj.forward(u))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_paper_s_model() {
        let device = Device::flex();
        assert_eq!(Block::new(768, 12, 3072, &device).num_params(), 7_092_480);
        assert_eq!(Scorers::new(768, 128, &device).num_params(), 3_445_120);
    }
}
