//! Plain text of an [`Inspection`].

use super::facts::{DepthFacts, Inspection, Recursion, SequenceCost, Sizes, Token};
use retie_checkpoint::StoredLayer;
use retie_config::{Cost, LoraConfig};
use retie_report::number::{bytes, grouped};
use std::fmt::{self, Display, Formatter};

impl Display for Inspection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        field(f, "model", &self.model)?;
        if self.path != self.model {
            field(f, "path", &self.path)?;
        }
        field(f, "architecture", &self.architecture)?;
        sizes(f, &self.sizes)?;
        writeln!(f)?;
        let p = &self.parameters;
        field(f, "parameters", grouped(p.total as u64))?;
        field(f, "  embedding", grouped(p.embedding as u64))?;
        field(f, "  without embedding", grouped(p.non_embedding as u64))?;
        if p.depth_vectors > 0 {
            field(f, "    norms of depths", grouped(p.depth_vectors as u64))?;
        }
        if p.lora > 0 {
            let lora = self.recursion.as_ref().and_then(|recursion| recursion.config.lora.as_ref());
            let title = lora.map_or("LoRA", LoraConfig::title);
            field(f, &format!("    {title}"), grouped(p.lora as u64))?;
        }
        if p.extras > 0 {
            field(f, "    extras", grouped(p.extras as u64))?;
        }
        if p.steps > 0 {
            field(f, "    steps", grouped(p.steps as u64))?;
        }
        for (dtype, stored) in &self.stored {
            let size = stored.bytes.map_or_else(String::new, |b| format!(", {}", bytes(b as u64)));
            let what = format!("{} tensors, {} parameters{size}", stored.tensors, grouped(stored.parameters as u64));
            field(f, &format!("stored as {dtype}"), what)?;
        }
        let kv = &self.kv_cache_bytes_per_token;
        field(f, "KV cache per token", format!("{} B in f32", grouped(kv.f32 as u64)))?;
        if let Some(cost) = &self.cost {
            write!(f, "\n{cost}")?;
        }
        writeln!(f)?;
        match &self.tokenizer {
            None => field(f, "tokenizer", "none (no `tokenizer.json`)")?,
            Some(t) => {
                field(f, "tokenizer", format!("{} tokens, ids up to {}", grouped(t.tokens as u64), t.largest_id))?;
                field(f, "  begin of text", t.bos.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string))?;
                let eos: Vec<_> = t.eos.iter().map(ToString::to_string).collect();
                field(f, "  end of text", if eos.is_empty() { "none".to_owned() } else { eos.join(", ") })?;
            }
        }
        if let Some(dividing) = &self.dividing_recursions {
            writeln!(f, "\nrecursions that divide the layers")?;
            for (sharing, numbers) in dividing {
                let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
                let numbers = if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") };
                field(f, &format!("  {sharing}"), numbers)?;
            }
        }
        if let Some(recursion) = &self.recursion {
            write!(f, "\n{recursion}")?;
        }
        if let Some(provenance) = &self.provenance {
            writeln!(f)?;
            field(f, "made by", format!("{} {}, {}", provenance.tool, provenance.version, provenance.date))?;
            if let Some(parent) = &provenance.parent {
                field(f, "made from", &parent.model)?;
            }
            field(f, "with", provenance.command.join(" "))?;
        }
        Ok(())
    }
}

impl Display for SequenceCost {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { tokens, expected, full_recursion, .. } = self;
        let mut columns = vec![("expected", expected)];
        if expected != full_recursion {
            columns.push(("full recursion", full_recursion));
        }
        let heading = format!("cost of {} tokens", grouped(*tokens as u64));
        let names: String = columns.iter().map(|(name, _)| format!("{name:>16}")).collect();
        writeln!(f, "{heading:<21}{names}")?;
        let mut row = |name: &str, cell: &dyn Fn(&Cost) -> String| {
            let cells: String = columns.iter().map(|(_, cost)| format!("{:>16}", cell(cost))).collect();
            writeln!(f, "{name:<21}{cells}")
        };
        row("  KV cache", &|cost| bytes(cost.cache_bytes.round() as u64))?;
        type Part = (&'static str, fn(&Cost) -> f64);
        let parts: [Part; 5] = [
            ("  linears", |cost| cost.linear),
            ("  routers", |cost| cost.routers),
            ("  attention", |cost| cost.attention),
            ("  head", |cost| cost.head),
            ("  operations", Cost::operations),
        ];
        parts.into_iter().try_for_each(|(name, part)| row(name, &|cost| format!("{:.3e}", part(cost))))
    }
}

fn sizes(f: &mut Formatter<'_>, s: &Sizes) -> fmt::Result {
    field(f, "layers", s.num_hidden_layers)?;
    field(f, "hidden size", s.hidden_size)?;
    field(f, "mlp size", s.intermediate_size)?;
    field(
        f,
        "heads",
        format!("{} of {}, {} for keys and values", s.num_attention_heads, s.head_dim, s.num_key_value_heads),
    )?;
    field(
        f,
        "vocabulary",
        format!("{}, {}", grouped(s.vocab_size as u64), if s.tie_word_embeddings { "tied" } else { "untied" }),
    )?;
    field(f, "context", format!("{} tokens", grouped(s.max_position_embeddings as u64)))?;
    for rope in &s.rope {
        let part =
            if rope.rotary_dim < s.head_dim { format!(", {} of a head", rope.rotary_dim) } else { String::new() };
        field(f, "rope", format!("base {}, scaling {}{part}", rope.theta, rope.scaling))?;
    }
    if !s.depths.is_empty() {
        field(f, "depths", kinds(&s.depths))?;
    }
    let named = [(s.qkv_bias, "q, k, v"), (s.output_bias, "o"), (s.mlp_bias, "mlp")];
    let biases: Vec<&str> = named.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    field(f, "biases", if biases.is_empty() { "none".to_owned() } else { biases.join(", ") })
}

/// Runs of depths of one kind: `5 × window of 512 tokens, rope base 10000; 1 × …`.
fn kinds(depths: &[DepthFacts]) -> String {
    let runs = depths.chunk_by(|a, b| a.kind == b.kind);
    runs.map(|run| format!("{} × {}", run.len(), run[0].kind)).collect::<Vec<_>>().join("; ")
}

impl Display for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{} `{text}`", self.id),
            None => write!(f, "{} (not a token of the tokenizer)", self.id),
        }
    }
}

impl Display for Recursion {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let c = &self.config;
        field(f, "recursions", c.num_recursions)?;
        field(f, "sharing", c.sharing)?;
        for (name, layers) in [("  prelude", c.prelude), ("  coda", c.coda)] {
            if let Some(layers) = layers {
                field(f, name, format!("{layers} unshared"))?;
            }
        }
        field(f, "init", c.init)?;
        field(f, "norms", if c.share_norms { "shared" } else { "each depth has its own" })?;
        let lora = c.lora.as_ref().map_or_else(
            || "none".to_owned(),
            |lora| match lora.ranks.is_empty() {
                true => format!("rank {}", lora.rank),
                false => format!("ranks up to {}, by depth and linear", lora.rank),
            },
        );
        field(f, c.lora.as_ref().map_or("LoRA", LoraConfig::title), lora)?;
        if !c.extras.is_empty() {
            let names: Vec<_> = c.extras.iter().map(ToString::to_string).collect();
            field(f, "extras", names.join(", "))?;
        }
        for (recursion, step) in c.steps.iter().enumerate() {
            let name = if c.steps.len() == 1 { "steps".to_owned() } else { format!("step {recursion}") };
            let mechanisms: Vec<_> = step.mechanisms().map(ToString::to_string).collect();
            field(f, &name, if mechanisms.is_empty() { "none".to_owned() } else { mechanisms.join(", ") })?;
        }
        if let Some(router) = &c.router {
            let (kind, network, gating) = (router.kind(), router.network(), router.gating());
            field(f, "router", format!("{kind}, {network}, gating {gating}"))?;
            for (name, value) in router.spec().rows().into_iter().chain(router.spec().fitted_rows()) {
                field(f, &format!("  {name}"), value)?;
            }
        }
        field(f, "stored layers", format!("{} for {} depths", self.stored_layers, self.aliases.len()))?;
        let known = self.aliases.iter().any(|alias| !alias.sources.is_empty());
        writeln!(
            f,
            "\n{:>5} {:>6} {:>10}{}",
            "depth",
            "layer",
            "recursion",
            if known { "  source layers" } else { "" }
        )?;
        for alias in &self.aliases {
            let recursion = alias.recursion.map_or_else(|| "unshared".to_owned(), |r| r.to_string());
            let sources = alias.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let place = alias.stands_for.map_or_else(String::new, |layer| format!(" (in the place of {layer})"));
            let line = format!("{:>5} {:>6} {recursion:>10}  {sources}{place}", alias.depth, alias.layer);
            writeln!(f, "{}", line.trim_end())?;
        }
        layers(f, &self.layers)
    }
}

/// Table of the stored layers: the depths that run each, its bytes on disk and its hash.
fn layers(f: &mut Formatter<'_>, layers: &[StoredLayer]) -> fmt::Result {
    let list = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let width = layers.iter().map(|layer| list(&layer.depths).len()).max().unwrap_or(0).max("depths".len());
    writeln!(
        f,
        "\n{:>5}  {:<width$} {:>11} {:>13}  SHA-256 of the layer",
        "layer", "depths", "on disk", "own of depths"
    )?;
    for layer in layers {
        let own_bytes = layer.own_bytes.iter().sum::<usize>();
        let same = layer.same_as.map_or_else(String::new, |other| format!(", the same as layer {other}"));
        writeln!(
            f,
            "{:>5}  {:<width$} {:>11} {:>13}  {}…{same}",
            layer.layer,
            list(&layer.depths),
            bytes(layer.bytes as u64),
            bytes(own_bytes as u64),
            &layer.sha256[..12]
        )?;
    }
    Ok(())
}

fn field(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:<21}{value}")
}
