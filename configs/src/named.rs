//! Enums whose variants have a name in configurations and on the command line: each name is written
//! once.

/// Declares an enum of unit variants with their names; `$what` is the noun of its error messages.
///
/// Gives `ALL`, `NAMES`, `name()`, `Display`, `FromStr` and serde by name.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant),+
        }

        impl $type {
            /// Every variant, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name of every variant, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The name in configurations and on the command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let unknown = || {
                    format!(concat!("unknown ", $what, " `{}`, expected one of {}"), name, Self::NAMES.join(", "))
                };
                Self::ALL.iter().copied().find(|choice| choice.name() == name).ok_or_else(unknown)
            }
        }
    };
}

pub(crate) use named;
