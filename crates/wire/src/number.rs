//! 64-bit integers as Google's JSON has them: written as strings, read from strings or numbers.

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $expecting:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                struct Either;
                impl Visitor<'_> for Either {
                    type Value = $name;
                    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                        out.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map($name).map_err(|_| {
                            E::invalid_value(de::Unexpected::Str(text), &self)
                        })
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        <$inner>::try_from(number).map($name).map_err(|_| {
                            E::invalid_value(de::Unexpected::Unsigned(number), &self)
                        })
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        <$inner>::try_from(number).map($name).map_err(|_| {
                            E::invalid_value(de::Unexpected::Signed(number), &self)
                        })
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    };
}

number!(
    /// A signed 64-bit integer.
    Int64(i64),
    "a 64-bit integer, as a number or a string"
);
number!(
    /// An unsigned 64-bit integer, such as a resource's id.
    Uint64(u64),
    "an unsigned 64-bit integer, as a number or a string"
);
