//! What a message looks like on the wire, as tables that can be walked.
//!
//! The generated modules hold one [`Schema`] beside each struct, from the same source, so a body
//! is judged field by field with its path known before it becomes a struct.

use serde::de::DeserializeOwned;

/// A message of one of Google's APIs: a strict struct with the table it was generated with.
pub trait Message: DeserializeOwned {
    /// The message's table.
    fn schema() -> &'static Schema;
}

/// One message.
#[derive(Debug)]
pub struct Schema {
    /// The message's full name, such as `google.cloud.compute.v1.UrlMap`.
    pub name: &'static str,
    /// Its fields, in the document's order.
    pub fields: &'static [Field],
}

impl Schema {
    /// The field of that name, if the message has one.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// One field of a message.
#[derive(Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// What its value must be.
    pub shape: Shape,
    /// Whether only the server writes it; a client's value is ignored.
    pub output_only: bool,
    /// The methods that demand it, such as `compute.networks.insert`.
    pub required_by: &'static [&'static str],
}

/// What a value must be.
#[derive(Debug)]
pub enum Shape {
    /// Any text.
    Text,
    /// One of the named values.
    Enum {
        /// The enumeration's full name.
        name: &'static str,
        /// The values it has.
        values: &'static [&'static str],
    },
    /// Base64.
    Bytes,
    /// An RFC 3339 moment.
    Timestamp,
    /// Seconds with the suffix `s`.
    Duration,
    /// `true` or `false`.
    Bool,
    /// A signed 32-bit integer.
    Int32,
    /// An unsigned 32-bit integer.
    Uint32,
    /// A signed 64-bit integer, as a string or a number.
    Int64,
    /// An unsigned 64-bit integer, as a string or a number.
    Uint64,
    /// A floating-point number.
    Double,
    /// Any JSON at all.
    Any,
    /// Another message; a function, because messages may hold each other.
    Message(fn() -> &'static Schema),
    /// A list of such values.
    List(&'static Shape),
    /// An object with any keys and such values.
    Map(&'static Shape),
}

/// A query parameter of a method.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What its value must be.
    pub shape: Shape,
    /// Whether it may be given several times.
    pub repeated: bool,
}

/// One method of an API.
#[derive(Debug)]
pub struct Method {
    /// Its id, such as `compute.networks.insert`.
    pub id: &'static str,
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub http_method: &'static str,
    /// The path below the API's own, with `{parameter}` segments.
    pub path: &'static str,
    /// The query parameters beyond the standard ones.
    pub query: &'static [Parameter],
    /// The message its body must be.
    pub request: Option<fn() -> &'static Schema>,
}
