//! Which REST method each gRPC method is, and the request it becomes.
//!
//! Pure. Invariant: a name reaches a path only when it has the shape its method expects, so no name
//! can lead to another method.

use http::Method as Verb;
use serde_json::{Map, Value};

use crate::error::{ApiError, Reason};

/// One method as gRPC names it and as REST does, in the words of Google's `google.api.http`.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) path: &'static str,
    /// The API that answers.
    pub(super) service: &'static str,
    pub(super) input: &'static str,
    pub(super) output: &'static str,
    verb: Verb,
    template: &'static str,
    body: Body,
}

/// Which part of the message is the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Nothing,
    /// What is not in the path.
    Rest,
    Field(&'static str),
}

/// A request without its transport.
#[derive(Debug, PartialEq)]
pub(super) struct Rest {
    pub(super) verb: Verb,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body: Option<Value>,
}

macro_rules! methods {
    ($($path:literal $service:literal $input:literal $output:literal $verb:ident $template:literal $body:expr;)*) => {
        &[$(Method {
            path: $path,
            service: $service,
            input: $input,
            output: $output,
            verb: Verb::$verb,
            template: $template,
            body: $body,
        },)*]
    };
}

static METHODS: &[Method] = methods! {
    "/google.cloud.run.v2.Services/CreateService" "run" "google.cloud.run.v2.CreateServiceRequest" "google.longrunning.Operation"
        POST "/v2/{parent=projects/*/locations/*}/services" Body::Field("service");
    "/google.cloud.run.v2.Services/GetService" "run" "google.cloud.run.v2.GetServiceRequest" "google.cloud.run.v2.Service"
        GET "/v2/{name=projects/*/locations/*/services/*}" Body::Nothing;
    "/google.cloud.run.v2.Services/ListServices" "run" "google.cloud.run.v2.ListServicesRequest" "google.cloud.run.v2.ListServicesResponse"
        GET "/v2/{parent=projects/*/locations/*}/services" Body::Nothing;
    "/google.cloud.run.v2.Services/UpdateService" "run" "google.cloud.run.v2.UpdateServiceRequest" "google.longrunning.Operation"
        PATCH "/v2/{service.name=projects/*/locations/*/services/*}" Body::Field("service");
    "/google.cloud.run.v2.Services/DeleteService" "run" "google.cloud.run.v2.DeleteServiceRequest" "google.longrunning.Operation"
        DELETE "/v2/{name=projects/*/locations/*/services/*}" Body::Nothing;
    "/google.cloud.run.v2.Services/GetIamPolicy" "run" "google.iam.v1.GetIamPolicyRequest" "google.iam.v1.Policy"
        GET "/v2/{resource=projects/*/locations/*/services/*}:getIamPolicy" Body::Nothing;
    "/google.cloud.run.v2.Services/SetIamPolicy" "run" "google.iam.v1.SetIamPolicyRequest" "google.iam.v1.Policy"
        POST "/v2/{resource=projects/*/locations/*/services/*}:setIamPolicy" Body::Rest;
    "/google.cloud.run.v2.Services/TestIamPermissions" "run" "google.iam.v1.TestIamPermissionsRequest" "google.iam.v1.TestIamPermissionsResponse"
        POST "/v2/{resource=projects/*/locations/*/services/*}:testIamPermissions" Body::Rest;
    "/google.cloud.run.v2.Revisions/GetRevision" "run" "google.cloud.run.v2.GetRevisionRequest" "google.cloud.run.v2.Revision"
        GET "/v2/{name=projects/*/locations/*/services/*/revisions/*}" Body::Nothing;
    "/google.cloud.run.v2.Revisions/ListRevisions" "run" "google.cloud.run.v2.ListRevisionsRequest" "google.cloud.run.v2.ListRevisionsResponse"
        GET "/v2/{parent=projects/*/locations/*/services/*}/revisions" Body::Nothing;
    "/google.cloud.run.v2.Revisions/DeleteRevision" "run" "google.cloud.run.v2.DeleteRevisionRequest" "google.longrunning.Operation"
        DELETE "/v2/{name=projects/*/locations/*/services/*/revisions/*}" Body::Nothing;
    "/google.longrunning.Operations/ListOperations" "run" "google.longrunning.ListOperationsRequest" "google.longrunning.ListOperationsResponse"
        GET "/v2/{name=projects/*/locations/*}/operations" Body::Nothing;
    "/google.longrunning.Operations/GetOperation" "run" "google.longrunning.GetOperationRequest" "google.longrunning.Operation"
        GET "/v2/{name=projects/*/locations/*/operations/*}" Body::Nothing;
    "/google.longrunning.Operations/DeleteOperation" "run" "google.longrunning.DeleteOperationRequest" "google.protobuf.Empty"
        DELETE "/v2/{name=projects/*/locations/*/operations/*}" Body::Nothing;
    "/google.longrunning.Operations/WaitOperation" "run" "google.longrunning.WaitOperationRequest" "google.longrunning.Operation"
        POST "/v2/{name=projects/*/locations/*/operations/*}:wait" Body::Rest;
    "/google.cloud.location.Locations/ListLocations" "run" "google.cloud.location.ListLocationsRequest" "google.cloud.location.ListLocationsResponse"
        GET "/v2/{name=projects/*}/locations" Body::Nothing;
    "/google.logging.v2.LoggingServiceV2/ListLogEntries" "logging" "google.logging.v2.ListLogEntriesRequest" "google.logging.v2.ListLogEntriesResponse"
        POST "/v2/entries:list" Body::Rest;
};

/// The method of this path, if it is served.
pub(super) fn method(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

impl Method {
    /// The REST request that asks the same as this message.
    pub(super) fn rest(&self, message: Value) -> Result<Rest, ApiError> {
        let mut rest = message;
        let path = self.filled(&mut rest)?;
        let body = match self.body {
            Body::Nothing => None,
            Body::Rest => Some(std::mem::take(&mut rest)),
            Body::Field(field) => {
                let taken = rest.as_object_mut().and_then(|message| message.remove(field));
                Some(taken.unwrap_or_else(|| Value::Object(Map::new())))
            }
        };
        let mut parameters = Vec::new();
        flatten("", &rest, &mut parameters);
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
                .to_string()
        };
        let pairs = parameters.iter().map(|(name, text)| format!("{name}={}", encode(text)));
        let query = pairs.collect::<Vec<_>>().join("&");
        Ok(Rest { verb: self.verb.clone(), path, query, body })
    }

    /// The path, with the field it names taken out of the message. A field of the body stays in it.
    fn filled(&self, message: &mut Value) -> Result<String, ApiError> {
        let Some((before, after)) = self.template.split_once('{') else {
            return Ok(self.template.to_owned());
        };
        let (variable, after) = after.split_once('}').unwrap_or((after, ""));
        let (field, pattern) = variable.split_once('=').unwrap_or((variable, "*"));
        let given = match field.split_once('.') {
            Some((outer, inner)) => {
                message.get(outer).and_then(|inside| inside.get(inner)).cloned()
            }
            None => message.as_object_mut().and_then(|message| message.remove(field)),
        };
        let given = given.as_ref().and_then(Value::as_str).unwrap_or_default();
        if !fits(given, pattern) {
            return Err(ApiError::new(
                Reason::Invalid,
                format!("{field}: '{given}' is not of the form '{pattern}'"),
            ));
        }
        Ok(format!("{before}{}{after}", given.replace('%', "%25")))
    }
}

/// Whether a name has the segments of a pattern; `*` is any that is not empty and holds no verb.
fn fits(name: &str, pattern: &str) -> bool {
    let (names, patterns) = (name.split('/'), pattern.split('/'));
    names.clone().count() == patterns.clone().count()
        && names.zip(patterns).all(|(name, pattern)| match pattern {
            "*" => !name.is_empty() && !name.contains(':'),
            literal => name == literal,
        })
}

/// The scalars of a message as query parameters, those of inner messages by their whole path.
fn flatten(prefix: &str, value: &Value, parameters: &mut Vec<(String, String)>) {
    let Value::Object(object) = value else { return };
    for (name, inner) in object {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match inner {
            Value::Object(_) => flatten(&name, inner, parameters),
            Value::Array(items) => {
                parameters.extend(items.iter().map(|item| (name.clone(), text_of(item))));
            }
            scalar => parameters.push((name, text_of(scalar))),
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(method_path: &str, message: Value) -> String {
        let found = method(method_path).expect("a method");
        match found.rest(message) {
            Ok(Rest { verb, path, query, body }) => {
                let query = if query.is_empty() { query } else { format!("?{query}") };
                let body = body.map_or(String::new(), |body| format!(" {body}"));
                format!("{verb} {path}{query}{body}")
            }
            Err(error) => format!("{}: {error}", error.reason.word()),
        }
    }

    #[test]
    fn every_method_speaks_described_messages() {
        for method in METHODS {
            assert!(wire::grpc::knows(method.input), "{}", method.input);
            assert!(wire::grpc::knows(method.output), "{}", method.output);
        }
    }

    #[test]
    fn a_message_becomes_the_request_rest_clients_send() {
        for (method, message, expected) in [
            (
                "/google.cloud.run.v2.Services/CreateService",
                json!({ "parent": "projects/p/locations/r", "serviceId": "s", "validateOnly": true,
                        "service": { "description": "d" } }),
                r#"POST /v2/projects/p/locations/r/services?serviceId=s&validateOnly=true {"description":"d"}"#,
            ),
            (
                "/google.cloud.run.v2.Services/UpdateService",
                json!({ "service": { "name": "projects/p/locations/r/services/s" },
                        "updateMask": "template.timeout,labels", "allowMissing": true }),
                r#"PATCH /v2/projects/p/locations/r/services/s?allowMissing=true&updateMask=template%2Etimeout%2Clabels {"name":"projects/p/locations/r/services/s"}"#,
            ),
            (
                "/google.cloud.run.v2.Services/GetIamPolicy",
                json!({ "resource": "projects/p/locations/r/services/s",
                        "options": { "requestedPolicyVersion": 3 } }),
                "GET /v2/projects/p/locations/r/services/s:getIamPolicy?options.requestedPolicyVersion=3",
            ),
            (
                "/google.longrunning.Operations/WaitOperation",
                json!({ "name": "projects/p/locations/r/operations/o", "timeout": "5s" }),
                r#"POST /v2/projects/p/locations/r/operations/o:wait {"timeout":"5s"}"#,
            ),
            (
                "/google.logging.v2.LoggingServiceV2/ListLogEntries",
                json!({ "resourceNames": ["projects/p"] }),
                r#"POST /v2/entries:list {"resourceNames":["projects/p"]}"#,
            ),
        ] {
            assert_eq!(asked(method, message), expected);
        }
    }

    #[test]
    fn a_name_of_another_shape_reaches_no_method() {
        for name in [
            "",
            "projects/p/locations/r",
            "projects/p/locations/r/operations/o",
            "projects/p/locations/r/services/s/revisions/v",
            "projects/p/locations/r/services/",
            "projects/p/locations/r/services/s:setIamPolicy",
        ] {
            let refused =
                asked("/google.cloud.run.v2.Services/DeleteService", json!({ "name": name }));
            assert!(refused.starts_with("invalid: name: "), "{name}: {refused}");
        }
        assert_eq!(
            asked(
                "/google.cloud.run.v2.Services/GetService",
                json!({ "name": "projects/p/locations/r/services/a%2Fb" })
            ),
            "GET /v2/projects/p/locations/r/services/a%252Fb"
        );
    }
}
