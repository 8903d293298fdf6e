//! One term of the training loss, and its spelling: `distill: {weight: 0.7, temperature: 2}`.
//! Weight and schedule, which every loss has, stand among the parameters of the loss.

use super::*;
use super::{keys::keys_of, schedule::factor_at};
use serde::{
    Deserialize, Serialize,
    de::{
        self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, VariantAccess, Visitor,
        value::MapAccessDeserializer,
    },
    ser::Serializer,
};
use std::{fmt, marker::PhantomData, sync::LazyLock};

/// A loss and its part in the training loss.
#[derive(Clone, Debug, PartialEq)]
pub struct LossTerm {
    /// Factor of the loss.
    pub weight: f64,
    /// Factor of the weight over the run; without points 1 throughout.
    pub weight_schedule: Vec<WeightPoint>,
    /// The loss.
    pub kind: LossKind,
}

impl LossTerm {
    /// The loss `kind` with this weight throughout.
    #[must_use]
    pub fn new(weight: f64, kind: impl Into<LossKind>) -> Self {
        Self { weight, weight_schedule: Vec::new(), kind: kind.into() }
    }

    /// Name in configurations and in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Tensors that the loss is computed from.
    #[must_use]
    pub fn needs(&self) -> LossNeeds {
        self.kind.parameters().needs()
    }

    /// The weight in optimizer step `step`, counted from 1.
    #[must_use]
    pub fn weight_at(&self, step: u64) -> f64 {
        self.weight * factor_at(&self.weight_schedule, step)
    }
}

const WEIGHT: &str = "weight";
const WEIGHT_SCHEDULE: &str = "weight_schedule";

/// Entries of a term as they are written.
#[derive(Serialize)]
struct Entries<'a, P> {
    weight: f64,
    weight_schedule: &'a [WeightPoint],
    #[serde(flatten)]
    parameters: &'a P,
}

macro_rules! define_spelling {
    ($($(#[$doc:meta])* $name:ident => $variant:ident($parameters:ident),)+) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];

        impl Serialize for LossTerm {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let Self { weight, weight_schedule, kind } = self;
                let (weight, name) = (*weight, kind.name());
                let index = NAMES.iter().position(|other| *other == name).map_or(0, |index| index as u32);
                match kind {
                    $(LossKind::$variant(parameters) => {
                        let entries = Entries { weight, weight_schedule, parameters };
                        serializer.serialize_newtype_variant("LossTerm", index, name, &entries)
                    })+
                }
            }
        }

        impl<'de> Visitor<'de> for TermVisitor {
            type Value = LossTerm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a loss with its settings")
            }

            fn visit_enum<A: EnumAccess<'de>>(self, term: A) -> Result<LossTerm, A::Error> {
                let (name, content): (String, _) = term.variant()?;
                match name.as_str() {
                    $(stringify!($name) => {
                        static KEYS: LazyLock<Vec<&'static str>> = LazyLock::new(keys_of_term::<$parameters>);
                        content.newtype_variant_seed(EntriesSeed::<$parameters>::new(&KEYS))
                    })+
                    other => Err(de::Error::unknown_variant(other, NAMES)),
                }
            }
        }
    };
}
crate::for_each_loss!(define_spelling);

struct TermVisitor;

impl<'de> Deserialize<'de> for LossTerm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_enum("LossTerm", NAMES, TermVisitor)
    }
}

fn keys_of_term<P: for<'de> Deserialize<'de>>() -> Vec<&'static str> {
    [WEIGHT, WEIGHT_SCHEDULE].into_iter().chain(keys_of::<P>().iter().copied()).collect()
}

/// Reads the entries of a term whose parameters are `P`.
struct EntriesSeed<P> {
    keys: &'static [&'static str],
    parameters: PhantomData<P>,
}

impl<P> EntriesSeed<P> {
    fn new(keys: &'static [&'static str]) -> Self {
        Self { keys, parameters: PhantomData }
    }
}

impl<'de, P: Deserialize<'de> + Into<LossKind>> DeserializeSeed<'de> for EntriesSeed<P> {
    type Value = LossTerm;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<LossTerm, D::Error> {
        deserializer.deserialize_struct("LossTerm", self.keys, self)
    }
}

impl<'de, P: Deserialize<'de> + Into<LossKind>> Visitor<'de> for EntriesSeed<P> {
    type Value = LossTerm;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings of a loss")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<LossTerm, A::Error> {
        let (mut weight, mut weight_schedule) = (None, None);
        let parameters = ParameterEntries { entries, weight: &mut weight, weight_schedule: &mut weight_schedule };
        let kind = P::deserialize(MapAccessDeserializer::new(parameters))?.into();
        let weight = weight.ok_or_else(|| de::Error::missing_field(WEIGHT))?;
        Ok(LossTerm { weight, weight_schedule: weight_schedule.unwrap_or_default(), kind })
    }
}

/// The entries of a term without its weight and schedule, which are read on the way.
struct ParameterEntries<'a, A> {
    entries: A,
    weight: &'a mut Option<f64>,
    weight_schedule: &'a mut Option<Vec<WeightPoint>>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for ParameterEntries<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.entries.next_key::<String>()? {
            match key.as_str() {
                WEIGHT if self.weight.is_some() => return Err(de::Error::duplicate_field(WEIGHT)),
                WEIGHT => *self.weight = Some(self.entries.next_value()?),
                WEIGHT_SCHEDULE if self.weight_schedule.is_some() => {
                    return Err(de::Error::duplicate_field(WEIGHT_SCHEDULE));
                }
                WEIGHT_SCHEDULE => *self.weight_schedule = Some(self.entries.next_value()?),
                _ => return seed.deserialize(key.into_deserializer()).map(Some),
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.entries.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_term_are_those_of_its_loss_and_of_every_term() {
        assert_eq!(keys_of_term::<DistillConfig>(), ["weight", "weight_schedule", "divergence", "temperature"]);
        assert_eq!(keys_of_term::<BlockwiseConfig>(), ["weight", "weight_schedule"]);
    }

    #[test]
    fn a_term_is_written_as_it_is_read() {
        let text =
            r#"{"distill":{"weight":0.7,"weight_schedule":[],"divergence":{"jsd":{"beta":0.5}},"temperature":2.0}}"#;
        let term: LossTerm = serde_json::from_str(text).unwrap();
        let divergence = Divergence::Jsd { beta: 0.5 };
        assert_eq!(term, LossTerm::new(0.7, DistillConfig { divergence, temperature: 2.0 }));
        assert_eq!(serde_json::to_string(&term).unwrap(), text);
        let short: LossTerm = serde_json::from_str(r#"{"router_bce":{"weight":1.0}}"#).unwrap();
        assert_eq!(short, LossTerm::new(1.0, RouterBceConfig {}));
        for bad in ["{}", r#"{"weight":1.0,"wieght":2.0}"#, r#"{"weight":1.0,"weight":2.0}"#] {
            assert!(serde_json::from_str::<LossTerm>(&format!(r#"{{"distill":{bad}}}"#)).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<LossTerm>(r#"{"distil":{"weight":1.0}}"#).is_err());
    }
}
