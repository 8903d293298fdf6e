//! Ranks of factors by linear and depth: as asked for, or a number of parameters spread by where
//! the residuals' energy is, or by what replaced matrices lose ([`allot`]).
//!
//! The best correction of rank `r` keeps the `r` largest singular values of a residual, so one more
//! rank there is worth `σ²_{r+1}`, and it costs `in + out` parameters. The ranks that keep most in
//! total are those with the largest `σ² / (in + out)`: singular values only fall, so taking them in
//! that order takes every linear's in theirs. What is kept is counted as the start counts it: `‖W_d
//! − W'‖²`, or with a calibration the squared error of the output. Counted in parts of the linear's
//! own energy it makes worse starts (`docs/log.md`).

use crate::ConvertError;
use retie_config::{Depth, LoraConfig, LoraRanks, LoraSpec, ModelConfig, Projection, Relax, ShareMap};
use std::collections::BTreeMap;

/// Squared singular values of the residual of one linear at one depth, largest first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spectrum {
    pub depth: Depth,
    pub projection: Projection,
    /// As many as the smaller side of the matrix.
    pub values: Vec<f64>,
}

/// The ranks of `lora` by linear and depth, for the model of `config` over `map`; `None` where a
/// budget decides about them.
///
/// # Errors
/// When a rank is out of range, a linear is unknown, or no depth is left that could have LoRA.
pub(crate) fn named_ranks(
    lora: &LoraSpec,
    config: &ModelConfig,
    map: &ShareMap,
) -> Result<Option<LoraConfig>, ConvertError> {
    let LoraRanks::Named { rank, by_linear } = &lora.ranks else { return Ok(None) };
    let shapes = config.projection_shapes();
    let (largest, widest) = shapes.iter().fold((0, ""), |(largest, name), (projection, [out, inp])| {
        if *out.min(inp) > largest { (*out.min(inp), projection.name()) } else { (largest, name) }
    });
    for rank in by_linear.values().copied().chain(*rank) {
        if !(1..=largest).contains(&rank) {
            return Err(ConvertError::RankOutOfRange { rank, largest, projection: widest.to_owned() });
        }
    }
    let matches = |name: &str, projection: Projection| {
        name == projection.name() || projection.name().ends_with(&format!(".{name}"))
    };
    let unknown = by_linear.keys().filter(|name| !shapes.iter().any(|(projection, _)| matches(name, *projection)));
    let unknown: Vec<String> = unknown.cloned().collect();
    if !unknown.is_empty() {
        let known = shapes.iter().map(|(projection, _)| projection.name().to_owned()).collect();
        return Err(ConvertError::UnknownProjections { unknown, known });
    }
    if let (Some(rank), true, 0) = (*rank, by_linear.is_empty(), lora.from) {
        return Ok(Some(LoraConfig::uniform(rank).with(lora.relax)));
    }
    let ranks = shapes.iter().map(|(projection, [out, inp])| {
        let named = by_linear.iter().find(|(name, _)| matches(name, *projection)).map(|(_, rank)| *rank);
        let rank = named.or(*rank).unwrap_or(0).min(*out).min(*inp);
        let at = |step| if lora.is_at(map, step) { rank } else { 0 };
        (projection.name().to_owned(), map.depths().iter().map(at).collect())
    });
    let table = LoraConfig::table(ranks.collect()).ok_or(ConvertError::NoDepthForLora { from: lora.from })?;
    Ok(Some(table.with(lora.relax)))
}

/// Spreads at most `budget` parameters over `spectra`. The magnitudes of DoRA, `out` of them, are
/// paid with the first rank of a linear at a depth.
///
/// # Errors
/// When the budget buys nothing.
pub(crate) fn spread_budget(
    (budget, relax): (usize, Relax),
    spectra: &[Spectrum],
    config: &ModelConfig,
    map: &ShareMap,
) -> Result<LoraConfig, ConvertError> {
    let shape = |spectrum: &Spectrum| config.projection_shape(spectrum.projection);
    let cost = |spectrum: &Spectrum| shape(spectrum).iter().sum::<usize>();
    let first = |spectrum: &Spectrum| match relax {
        Relax::Lora => cost(spectrum),
        Relax::Dora => cost(spectrum) + shape(spectrum)[0],
    };
    let mut offers: Vec<(f64, usize, usize)> = Vec::new(); // worth of a parameter, rank, which
    for (which, spectrum) in spectra.iter().enumerate() {
        let worth = spectrum.values.iter().map(|value| value / cost(spectrum) as f64).enumerate();
        offers.extend(worth.filter(|(_, worth)| *worth > 0.0).map(|(rank, worth)| (worth, rank, which)));
    }
    offers.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.2, x.1).cmp(&(y.2, y.1))));
    let shapes = config.projection_shapes().into_iter();
    let mut ranks: BTreeMap<String, Vec<usize>> =
        shapes.map(|(projection, _)| (projection.name().to_owned(), vec![0; map.num_depths()])).collect();
    let mut left = budget;
    for (_, _, which) in offers {
        let spectrum = &spectra[which];
        let Some(rank) = ranks.get_mut(spectrum.projection.name()).map(|ranks| &mut ranks[spectrum.depth.0]) else {
            continue;
        };
        let cost = if *rank == 0 { first(spectrum) } else { cost(spectrum) };
        if let Some(rest) = left.checked_sub(cost) {
            *rank += 1;
            left = rest;
        }
    }
    let cheapest = spectra.iter().map(first).min().unwrap_or(0);
    Ok(LoraConfig::table(ranks).ok_or(ConvertError::BudgetTooSmall { budget, cheapest })?.with(relax))
}

/// Halvings of the range in which the price of a parameter is searched.
const HALVINGS: usize = 100;

/// The ranks of pairs of factors that replace the linears of `spectra`, with at most `allowed`
/// parameters, so that as little as possible of the spectra is lost in total. A linear whose best
/// rank would have as many parameters as its matrix keeps the matrix (rank 0).
///
/// At a price of a parameter every linear has its best rank; the price is the lowest at which all
/// are within `allowed`. `None` where even rank 1 everywhere is not.
pub(crate) fn allot(allowed: usize, spectra: &[Spectrum], config: &ModelConfig) -> Option<LoraConfig> {
    let ranks_at = |price: f64| -> (usize, Vec<usize>) {
        let best = |spectrum: &Spectrum| best_rank(spectrum, config.projection_shape(spectrum.projection), price);
        let found: Vec<(usize, usize)> = spectra.iter().map(best).collect();
        (found.iter().map(|(cost, _)| cost).sum(), found.into_iter().map(|(_, rank)| rank).collect())
    };
    let total: f64 = spectra.iter().flat_map(|spectrum| &spectrum.values).sum();
    let (mut low, mut high) = (0.0, total.max(f64::MIN_POSITIVE));
    let (cost, mut ranks) = ranks_at(high);
    if cost > allowed {
        return None;
    }
    for _ in 0..HALVINGS {
        let price = f64::midpoint(low, high);
        let (cost, found) = ranks_at(price);
        if cost <= allowed { (high, ranks) = (price, found) } else { low = price }
    }
    let shapes = config.projection_shapes().into_iter();
    let depths = spectra.iter().map(|spectrum| spectrum.depth.0 + 1).max().unwrap_or(0);
    let mut table: BTreeMap<String, Vec<usize>> =
        shapes.map(|(projection, _)| (projection.name().to_owned(), vec![0; depths])).collect();
    for (spectrum, rank) in spectra.iter().zip(ranks) {
        if let Some(ranks) = table.get_mut(spectrum.projection.name()) {
            ranks[spectrum.depth.0] = rank;
        }
    }
    LoraConfig::table(table).map(LoraConfig::without_base)
}

/// Parameters and rank of a linear that lose least, with what its parameters cost at `price`.
fn best_rank(spectrum: &Spectrum, [out, inp]: [usize; 2], price: f64) -> (usize, usize) {
    let mut lost: f64 = spectrum.values.iter().sum();
    let mut best = (price * (out * inp) as f64, out * inp, 0); // the matrix itself
    for (rank, value) in (1..).zip(&spectrum.values) {
        lost -= value;
        let cost = rank * (out + inp);
        if cost >= out * inp {
            break;
        }
        let worth = lost.max(0.0) + price * cost as f64;
        if worth < best.0 {
            best = (worth, cost, rank);
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::Sharing;
    use serde_json::json;
    use std::path::Path;

    /// Costs of one rank: 16 for q and o, 12 for k and v, 24 for the MLP.
    fn model() -> (ModelConfig, ShareMap) {
        let serde_json::Value::Object(map) = json!({
            "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        }) else {
            unreachable!()
        };
        (ModelConfig::from_json(map, Path::new("x")).unwrap(), ShareMap::new(4, 2, Sharing::Cycle).unwrap())
    }

    fn spectrum(depth: usize, projection: Projection, values: &[f64]) -> Spectrum {
        Spectrum { depth: Depth(depth), projection, values: values.to_vec() }
    }

    /// Every choice of ranks and matrices, by hand.
    #[test]
    fn factors_lose_as_little_as_any_choice_within_the_budget() {
        let (config, _) = model();
        // 8 × 8: ranks 1 to 3 at 16 a rank, or 64. 4 × 8: ranks 1 and 2 at 12, or 32.
        let spectra = [
            spectrum(0, Projection::Q, &[9.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.0, 0.0]),
            spectrum(1, Projection::Q, &[1.0, 0.5, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]),
            spectrum(1, Projection::K, &[6.0, 3.0, 2.5, 2.0]),
        ];
        let lost = |i: usize, rank: usize| spectra[i].values[rank..].iter().sum::<f64>();
        let options = |i: usize| -> Vec<(usize, f64, usize)> {
            let [out, inp] = config.projection_shape(spectra[i].projection);
            let factors = (1..).take_while(|rank| rank * (out + inp) < out * inp);
            factors.map(|rank| (rank * (out + inp), lost(i, rank), rank)).chain([(out * inp, 0.0, 0)]).collect()
        };
        for allowed in [44, 50, 64, 80, 96, 112, 130, 159] {
            let found = allot(allowed, &spectra, &config).unwrap();
            assert_eq!(found.base, retie_config::LoraBase::None);
            let q = &found.ranks["self_attn.q_proj"];
            let ranks = [q[0], q[1], found.ranks["self_attn.k_proj"][1]];
            let chosen = (0..3).map(|i| *options(i).iter().find(|option| option.2 == ranks[i]).unwrap());
            let (cost, loss) = chosen.fold((0, 0.0), |(cost, loss), option| (cost + option.0, loss + option.1));
            assert!(cost <= allowed, "{cost} {allowed}");
            // No choice that costs as little loses less.
            for a in options(0) {
                for b in options(1) {
                    for c in options(2) {
                        assert!(
                            a.0 + b.0 + c.0 > cost || a.1 + b.1 + c.1 > loss - 1e-12,
                            "{ranks:?} {a:?} {b:?} {c:?}"
                        );
                    }
                }
            }
        }
        assert_eq!(allot(43, &spectra, &config), None);
    }

    #[test]
    fn a_budget_goes_where_a_parameter_keeps_most() {
        let (config, map) = model();
        // Worth of a parameter: q at depth 0: 4/16, 1/16; k at depth 1: 4/12, 0; up at depth 2:
        // 3/24, 3/24, 1/24.
        let spectra = [
            spectrum(0, Projection::Q, &[4.0, 1.0]),
            spectrum(1, Projection::K, &[4.0, 0.0]),
            spectrum(2, Projection::Up, &[3.0, 3.0, 1.0]),
        ];
        let spread = |budget, relax| {
            let lora = spread_budget((budget, relax), &spectra, &config, &map).unwrap();
            assert_eq!(lora.relax, relax);
            [("self_attn.q_proj", 0), ("self_attn.k_proj", 1), ("mlp.up_proj", 2)]
                .map(|(name, depth)| lora.ranks[name][depth])
        };
        let ranks = |budget| spread(budget, Relax::Lora);
        assert_eq!(ranks(12), [0, 1, 0]);
        // An offer that costs more than is left is passed over for a cheaper one.
        assert_eq!(ranks(27), [0, 1, 0]);
        assert_eq!(ranks(28), [1, 1, 0]);
        assert_eq!(ranks(76), [1, 1, 2]);
        // Nothing is bought that keeps nothing.
        assert_eq!(ranks(10_000), [2, 1, 3]);
        // Magnitudes come with the first rank: 4 of k, 8 of q, 16 of up.
        let dora = |budget| spread(budget, Relax::Dora);
        assert_eq!((dora(16), dora(39), dora(40)), ([0, 1, 0], [0, 1, 0], [1, 1, 0]));
        assert_eq!((dora(80), dora(104), dora(10_000)), ([1, 1, 1], [1, 1, 2], [2, 1, 3]));
        for (relax, cheapest) in [(Relax::Lora, 12), (Relax::Dora, 16)] {
            let error = spread_budget((cheapest - 1, relax), &spectra, &config, &map).unwrap_err();
            assert!(matches!(error, ConvertError::BudgetTooSmall { cheapest: found, .. } if found == cheapest));
        }
    }
}
