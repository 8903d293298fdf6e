//! The key `init`: an initialisation, or `auto`, which measures candidates and takes the best.

use crate::Init;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{EnumAccess, Error, VariantAccess, Visitor},
};
use std::fmt;

/// How a conversion comes to its initialisation. A checkpoint has an [`Init`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitChoice {
    /// The one that is named.
    Fixed(Init),
    /// The best of several candidates by measurement, with its sharing pattern and ranks.
    Auto,
}

const AUTO: &str = "auto";

impl InitChoice {
    /// The name of every choice, in the order of the documentation.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [AUTO; Init::NAMES.len() + 1];
        let mut i = 0;
        while i < Init::NAMES.len() {
            names[i] = Init::NAMES[i];
            i += 1;
        }
        names
    };

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed(init) => init.name(),
            Self::Auto => AUTO,
        }
    }
}

impl From<Init> for InitChoice {
    fn from(init: Init) -> Self {
        Self::Fixed(init)
    }
}

impl fmt::Display for InitChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for InitChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == AUTO {
            return Ok(Self::Auto);
        }
        let unknown = |_| format!("unknown init `{name}`, expected one of {}", Self::NAMES.join(", "));
        name.parse().map(Self::Fixed).map_err(unknown)
    }
}

impl Serialize for InitChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for InitChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;
        impl<'de> Visitor<'de> for ByName {
            type Value = InitChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "one of {}", InitChoice::NAMES.join(", "))
            }

            fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<InitChoice, A::Error> {
                let (name, content) = access.variant::<String>()?;
                content.unit_variant()?;
                name.parse().map_err(|_| A::Error::unknown_variant(&name, InitChoice::NAMES))
            }
        }
        // As an enum, so that a document's reader knows the names.
        deserializer.deserialize_enum("InitChoice", Self::NAMES, ByName)
    }
}
