//! Google's messages as gRPC carries them: protobuf bytes to and from the JSON of the same message.
//!
//! The messages are described by `descriptors.binpb`, which `generate/descriptors.py` takes from
//! Google's own client packages; nothing here knows a particular one.
//!
//! Invariant: what is decoded is JSON that the REST method of the same name reads, and what a REST
//! method answers can be encoded.

use prost_reflect::prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, EnumDescriptor, Kind, MessageDescriptor,
    SerializeOptions,
};
use serde_json::{Map, Value};
use std::fmt;
use std::sync::LazyLock;

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!("../generate/descriptors.binpb").as_slice()).ok()
});

/// How deep JSON is followed when enums are named; protobuf's own limit is the same.
const DEPTH_MAX: usize = 100;

/// Why a message could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcError(String);

impl fmt::Display for GrpcError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for GrpcError {}

fn described(message: &str) -> Result<MessageDescriptor, GrpcError> {
    let found = POOL.as_ref().and_then(|pool| pool.get_message_by_name(message));
    found.ok_or_else(|| GrpcError(format!("{message} is not described")))
}

/// Whether the messages of this full name are described.
pub fn knows(message: &str) -> bool {
    described(message).is_ok()
}

/// Reads protobuf bytes as the JSON of this message.
pub fn decode(message: &str, bytes: &[u8]) -> Result<Value, GrpcError> {
    let kind = described(message)?;
    let decoded = DynamicMessage::decode(kind, bytes)
        .map_err(|error| GrpcError(format!("The bytes are no {message}: {error}")))?;
    decoded
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .map_err(|error| GrpcError(format!("{message}: {error}")))
}

/// Writes the JSON of this message as protobuf bytes. What the message has no field for is left out,
/// as an older client leaves out what it does not know.
pub fn encode(message: &str, value: &Value) -> Result<Vec<u8>, GrpcError> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(described(message)?, value, &options)
        .map(|message| message.encode_to_vec())
        .map_err(|error| GrpcError(format!("{message}: {error}")))
}

/// Writes the enums in the JSON of this message by name, which clients may send by number. Numbers
/// that have no name stay for a judge to refuse.
pub fn name_enums(message: &str, value: &mut Value) {
    if let Ok(kind) = described(message)
        && let Value::Object(object) = value
    {
        name_enums_of(&kind, object, DEPTH_MAX);
    }
}

fn name_enums_of(kind: &MessageDescriptor, object: &mut Map<String, Value>, depth: usize) {
    if depth == 0 {
        return;
    }
    for (name, inner) in object.iter_mut() {
        let Some(field) = kind.get_field_by_json_name(name) else { continue };
        let of_field = match field.kind() {
            Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
            other => other,
        };
        let values: Vec<&mut Value> = match inner {
            Value::Array(items) => items.iter_mut().collect(),
            Value::Object(entries) if field.is_map() => entries.values_mut().collect(),
            single => vec![single],
        };
        for value in values {
            match (&of_field, value) {
                (Kind::Enum(kind), value) => name_enum(kind, value),
                (Kind::Message(kind), Value::Object(object)) => {
                    name_enums_of(kind, object, depth - 1);
                }
                _ => {}
            }
        }
    }
}

fn name_enum(kind: &EnumDescriptor, value: &mut Value) {
    let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
    if let Some(found) = number.and_then(|number| kind.get_value(number)) {
        *value = found.name().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SERVICE: &str = "google.cloud.run.v2.Service";

    fn service() -> Value {
        json!({
            "name": "projects/p/locations/r/services/s",
            "generation": "7",
            "ingress": "INGRESS_TRAFFIC_ALL",
            "labels": { "colour": "blue" },
            "createTime": "2026-11-24T10:00:00.123456Z",
            "template": {
                "timeout": "300s",
                "scaling": { "maxInstanceCount": 3 },
                "containers": [{ "image": "i", "resources": { "limits": { "cpu": "1" } } }],
            },
            "traffic": [{ "type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100 }],
            "terminalCondition": { "type": "Ready", "state": "CONDITION_SUCCEEDED" },
        })
    }

    #[test]
    fn a_service_goes_to_protobuf_and_back_unchanged() {
        let bytes = encode(SERVICE, &service()).expect("encoded");
        assert_eq!(decode(SERVICE, &bytes), Ok(service()));
    }

    #[test]
    fn what_an_operation_answers_with_stands_inside_any() {
        let mut held = service();
        held["@type"] = format!("type.googleapis.com/{SERVICE}").into();
        let operation = json!({ "name": "o", "done": true, "metadata": held, "response": held });
        let bytes = encode("google.longrunning.Operation", &operation).expect("encoded");
        assert_eq!(decode("google.longrunning.Operation", &bytes), Ok(operation));
    }

    #[test]
    fn enums_sent_by_number_are_read_by_name() {
        let mut value = service();
        value["ingress"] = 1.into();
        value["traffic"][0]["type"] = 1.into();
        value["terminalCondition"]["state"] = 4.into();
        name_enums(SERVICE, &mut value);
        assert_eq!(value, service());
        value["ingress"] = 99.into();
        name_enums(SERVICE, &mut value);
        assert_eq!(value["ingress"], 99);
    }

    #[test]
    fn bytes_that_are_no_message_and_unknown_messages_are_refused() {
        assert!(decode(SERVICE, b"\xff\xff\xff").is_err());
        assert!(decode("google.cloud.run.v2.Nothing", b"").is_err());
        assert!(encode(SERVICE, &json!({ "generation": "seven" })).is_err());
        assert!(encode(SERVICE, &json!({ "aFieldOfTomorrow": 1 })).is_ok());
    }
}
