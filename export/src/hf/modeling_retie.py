"""A Recursive Transformer: layers are stored once, and each runs at several depths.

`retie export --to hf` wrote this file beside the weights; it needs nothing but `torch` and `transformers`.

    model.embed_tokens, model.norm, lm_head
    model.layers.{i}     stored layers: the linears, and norms and biases that all of its depths share
    model.depths.{d}     what depth d has for itself: LoRA or DoRA, norms, biases, extras
    model.routers.{k}    routers of a routed model; this code sends every token through all recursions

Depth d runs the stored layer `config.stack["depths"][d]["layer"]`. Every depth has its own slot in the KV cache, except those
whose `keys_of` names another depth. Shapes: B sequences, T tokens, D hidden, N heads, K key-value heads, H head size.
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_retie import RetieConfig

# transformers 5.24 calls `cache` what was `past_key_values`.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class Norm(nn.Module):
    """RMSNorm with weight `w` or `1 + w`, or LayerNorm, computed in f32."""

    def __init__(self, size, stack):
        super().__init__()
        self.kind, self.eps = stack["norm"], stack["norm_eps"]
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if self.kind == "layer" else None

    def forward(self, x):
        y, weight = x.float(), self.weight.float()
        if self.kind == "layer":
            return F.layer_norm(y, y.shape[-1:], weight, self.bias.float(), self.eps).to(x.dtype)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1 + weight if self.kind == "rms_plus_one" else weight)).to(x.dtype)


class Correction(nn.Module):
    """What a depth adds to a linear W: `y = (W + B A) x + b`; with DoRA `y = m / |W + B A| * (W + B A) x + b`, norms by row."""

    def __init__(self, shape, rank, dora, bias):
        super().__init__()
        out, inp = shape
        self.rank = rank
        if rank:
            self.lora_A = nn.Linear(inp, rank, bias=False)
            self.lora_B = nn.Linear(rank, out, bias=False)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(out)) if rank and dora else None
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x, linear):
        y = F.linear(x, linear.weight)
        if self.rank:
            y = y + self.lora_B(self.lora_A(x))
        if self.lora_magnitude_vector is not None:
            length = (linear.weight + self.lora_B.weight @ self.lora_A.weight).float().norm(dim=1).detach()
            y = y * (self.lora_magnitude_vector.float() / torch.where(length == 0, 1.0, length)).to(y.dtype)
        bias = self.bias if linear.bias is None else linear.bias
        return y if bias is None else y + bias


class Weights(nn.Module):
    """Modules and parameters by their names, such as `self_attn.q_proj`."""

    def put(self, name, child):
        *parents, last = name.split(".")
        module = self
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        setattr(module, last, child)

    def get(self, name):
        module = self
        for part in name.split("."):
            module = getattr(module, part, None)
        return module


class Layer(Weights):
    """A stored layer."""

    def __init__(self, stack):
        super().__init__()
        shared = stack["share_norms"]
        for name, (out, inp) in stack["linears"].items():
            self.put(name, nn.Linear(inp, out, bias=shared and name in stack["biases"]))
        for name, size in stack["norms"].items() if shared else []:
            self.put(name, Norm(size, stack))


class DepthAttention(nn.Module):
    """Attention of one depth. It has no weights: its keys and values go to the slot `layer_idx` of the cache."""

    is_causal = True

    def __init__(self, config, depth):
        super().__init__()
        stack = config.stack
        self.config, self.layer_idx = config, depth
        self.window = stack["depths"][depth]["window"]
        self.num_key_value_groups = stack["linears"]["self_attn.q_proj"][0] // stack["linears"]["self_attn.k_proj"][0]
        self.scaling = stack["query_pre_attn_scalar"] ** -0.5
        self.softcap = stack["attn_logit_softcapping"]

    def forward(self, query, key, value, step):
        name = self.config._attn_implementation
        # SDPA has no soft cap. Other functions than these two make their own mask.
        attend = eager_attention if name == "eager" or (self.softcap and name == "sdpa") else ALL_ATTENTION_FUNCTIONS[name]
        mask = step.mask(query.shape[2], key.shape[2], self.window, query) if name in ("eager", "sdpa") else step.padding
        settings = step.settings | ({"softcap": self.softcap} if self.softcap else {})
        out, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0, sliding_window=self.window, **settings)
        return out.reshape(*out.shape[:2], -1)


def eager_attention(module, query, key, value, mask, scaling, softcap=None, **_):
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores.float() + mask.float()).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class Step:
    """What all depths of one forward pass share: padding, cache, settings of the attention function, keys that later depths read."""

    def __init__(self, stack, positions, padding, cache, past, settings):
        self.padding, self.cache, self.settings = padding, cache, settings
        self.total = past + positions.shape[1]
        self.rotations = [rotation(rope, positions) for rope in stack["ropes"]]
        self.keys_values = {}
        # Place of the running depth in the cache: the depth itself, but for drafts, which run fewer.
        self.slot = 0

    def mask(self, queries, keys, window, like):
        """Additive mask `[B or 1, 1, T, S]`. A cache with a window returns the last keys only, a static one also empty places."""
        if self.padding is not None and self.padding.dim() == 4:
            return self.padding
        device = like.device
        places = torch.arange(keys, device=device) + max(self.total - keys, 0)
        here = torch.arange(self.total - queries, self.total, device=device)[:, None]
        seen = places <= here
        if window:
            seen = seen & (here - places < window)
        seen = seen[None, None]
        if self.padding is not None:
            padding = F.pad(self.padding.bool(), (0, max(0, keys - self.padding.shape[1])))
            seen = seen & padding[:, places][:, None, None]
        return torch.zeros(seen.shape, dtype=like.dtype, device=device).masked_fill(~seen, torch.finfo(like.dtype).min)


def rotation(rope, positions):
    """Cosines and sines `[B, 1, T, rotary_dim]` in f32. Computed, not kept: a buffer would not be filled by `from_pretrained`."""
    dim, scaling = rope["rotary_dim"], rope["scaling"]
    frequency = 1.0 / rope["theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
    if scaling["type"] == "linear":
        frequency = frequency / scaling["factor"]
    elif scaling["type"] == "llama3":
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (kept + (1 - kept) / scaling["factor"])
    angle = (positions[..., None].float() * frequency).repeat(1, 1, 2)[:, None]
    return angle.cos(), angle.sin()


def rotate(x, rotation):
    cos, sin = rotation
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = turned.chunk(2, -1)
    turned = turned.float() * cos + torch.cat([-right, left], -1).float() * sin
    return torch.cat([turned.to(x.dtype), rest], -1)


class Depth(Weights):
    """One depth of the unrolled stack: what it has for itself, and its run of a stored layer."""

    def __init__(self, config, depth):
        super().__init__()
        self.stack = stack = config.stack
        self.own = own = stack["depths"][depth]
        for name, shape in stack["linears"].items():
            bias = not stack["share_norms"] and name in stack["biases"]
            self.put(name, Correction(shape, own["ranks"].get(name, 0), stack["dora"], bias))
        for name, size in stack["norms"].items() if not stack["share_norms"] else []:
            self.put(name, Norm(size, stack))
        for name in own["extras"]:
            start = torch.ones if name.endswith("scale") else torch.zeros
            self.put(f"extras.{name}", nn.Parameter(start(config.hidden_size)))
        self.depth, self.attention = depth, DepthAttention(config, depth)

    def forward(self, x, layer, step):
        """`[B, T, D]` -> `[B, T, D]`."""

        def linear(name, x):
            return self.get(name)(x, layer.get(name))

        def norm(name, x):
            return (self.get(name) if layer.get(name) is None else layer.get(name))(x)

        def scaled(name, x):
            scale = self.get(f"extras.{name}")
            return x if scale is None else x * scale

        def attention(x):
            return linear("self_attn.o_proj", self.attend(x, linear, norm, step))

        def mlp(x):
            activation, up = ACTIVATIONS[self.stack["activation"]], linear("mlp.up_proj", x)
            gated = "mlp.gate_proj" in self.stack["linears"]
            return linear("mlp.down_proj", activation(linear("mlp.gate_proj", x)) * up if gated else activation(up))

        x, residual = self.enter(x), self.stack["residual"]
        if residual == "pre_norm":
            x = x + scaled("attention_scale", attention(norm("input_layernorm", x)))
            return x + scaled("mlp_scale", mlp(norm("post_attention_layernorm", x)))
        if residual == "parallel":
            attended = scaled("attention_scale", attention(norm("input_layernorm", x)))
            return x + attended + scaled("mlp_scale", mlp(norm("post_attention_layernorm", x)))
        before = norm if residual == "sandwich" else lambda _, x: x
        x = x + scaled("attention_scale", norm("post_attention_layernorm", attention(before("input_layernorm", x))))
        return x + scaled("mlp_scale", norm("post_feedforward_layernorm", mlp(before("pre_feedforward_layernorm", x))))

    def enter(self, x):
        """The input of a recursion: `x + loop_norm * RMSNorm(x) + loop_embedding`."""
        norm, embedding = self.get("extras.loop_norm"), self.get("extras.loop_embedding")
        if norm is not None:
            y = x.float()
            x = x + (norm * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.stack["norm_eps"])).to(x.dtype)
        return x if embedding is None else x + embedding

    def attend(self, x, linear, norm, step):
        rope, qk_norm = self.own["rope"], self.stack["qk_norm"]

        def heads(name, y):
            """`[B, T, N·H]` -> `[B, N, T, H]`, normalised and rotated."""
            y = norm(f"self_attn.{name}", y) if qk_norm == "full" and name else y
            y = y.view(*x.shape[:2], -1, self.stack["head_dim"])
            y = (norm(f"self_attn.{name}", y) if qk_norm == "head" and name else y).transpose(1, 2)
            return y if rope is None or name is None else rotate(y, step.rotations[rope])

        query = heads("q_norm", linear("self_attn.q_proj", x))
        if self.own["keys_of"] is not None:
            key, value = step.keys_values[self.own["keys_of"]]
        else:
            key, value = heads("k_norm", linear("self_attn.k_proj", x)), heads(None, linear("self_attn.v_proj", x))
            if step.cache is not None:
                key, value = step.cache.update(key, value, step.slot)
            step.keys_values[self.depth] = key, value
        return self.attention(query, key, value, step)


class Router(nn.Module):
    """A router; it is kept with the model, and not asked."""

    def __init__(self, shapes):
        super().__init__()
        for name, (out, inp) in shapes.items():
            setattr(self, name, nn.Linear(inp, out, bias=False))


class RetiePreTrainedModel(PreTrainedModel):
    config_class = RetieConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer", "Depth"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_attention_backend = True
    _supports_cache_class = True


class RetieModel(RetiePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        stack = config.stack
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(stack) for _ in range(stack["num_layers"]))
        self.depths = nn.ModuleList(Depth(config, depth) for depth in range(len(stack["depths"])))
        self.routers = nn.ModuleList(Router(shapes) for shapes in stack["routers"])
        self.auxiliary_routers = nn.ModuleList(Router(shapes) for shapes in stack["auxiliary_routers"])
        self.norm = Norm(config.hidden_size, stack)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                use_cache=None, output_hidden_states=None, return_dict=None, cache=None, **kwargs):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        scale = self.config.stack["embedding_scale"]
        if scale is not None:
            x = x * torch.tensor(scale, dtype=x.dtype)
        cache = past_key_values if cache is None else cache
        use_cache = getattr(self.config, "use_cache", True) if use_cache is None else use_cache
        if cache is None and use_cache and not self.training:
            cache = DynamicCache()
        past = 0 if cache is None else int(cache.get_seq_length())
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        step = Step(self.config.stack, position_ids, attention_mask, cache, past, kwargs)
        states = [x]
        for step.slot, depth in enumerate(self.running_depths()):
            states.append(depth(states[-1], self.layers[depth.own["layer"]], step))
            if not output_hidden_states:
                states = states[-1:]
        x = self.norm(states[-1])
        if return_dict is False:
            return (x,)
        hidden = tuple(states) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden, **{CACHE: cache})

    def running_depths(self):
        """The depths to run: all, or for drafts of `generate(assistant_early_exit=n)`, which lowers `num_hidden_layers`, n of them.
        A draft leaves the loop early and goes on with the layers after it."""
        count, coda = self.config.num_hidden_layers, self.config.stack["coda"]
        after_loop = len(self.depths) - coda
        if count >= len(self.depths) or count <= after_loop:
            return self.depths[:count]
        return [*self.depths[: count - after_loop], *self.depths[coda:]]


class RetieForCausalLM(RetiePreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = RetieModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                labels=None, use_cache=None, output_hidden_states=None, logits_to_keep=0, cache=None, **kwargs):
        kwargs["return_dict"] = True
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, use_cache=use_cache, output_hidden_states=output_hidden_states, cache=cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        cap = self.config.stack["final_logit_softcapping"]
        if cap:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=out.hidden_states, **{CACHE: getattr(out, CACHE)})
