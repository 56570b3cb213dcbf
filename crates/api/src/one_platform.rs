//! What all of Google's APIs but Compute have in common: paths with a verb after a colon, strict
//! bodies, long-running operations, and one envelope for answers and errors.

use http::StatusCode;
use model::name::{Name, ResourceName};
use serde_json::{Value, json};
use wire::Message;

use crate::Api;
use crate::compute::body::json_body;
use crate::error::{ApiError, Dialect, Reason};
use crate::http::{Request, Response};
use crate::query::{Query, decoded_segment};
use crate::world::State;

/// Items on one page when the client does not say.
pub(crate) const PAGE_SIZE_DEFAULT: usize = 100;
/// Items on one page at most.
pub(crate) const PAGE_SIZE_MAX: usize = 1000;

/// One request, taken apart.
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Api,
    pub(crate) request: &'a Request,
    /// The path's segments, decoded, without the verb.
    segments: Vec<String>,
    /// What follows the last colon of the last segment: `setIamPolicy`.
    verb: String,
    pub(crate) query: Query,
    body: Option<Value>,
}

/// A project that exists.
#[derive(Clone, Debug)]
pub(crate) struct ProjectKey {
    pub(crate) id: Name,
    pub(crate) number: u64,
}

impl<'a> Call<'a> {
    pub(crate) fn read(api: &'a Api, request: &'a Request) -> Result<Call<'a>, ApiError> {
        let path = request.path.trim_matches('/');
        let mut segments: Vec<String> = path.split('/').map(decoded_segment).collect();
        let mut verb = String::new();
        if let Some(last) = segments.last_mut()
            && let Some((name, after)) = last.rsplit_once(':')
        {
            verb = after.to_owned();
            *last = name.to_owned();
        }
        let query = Query::parse(&request.query);
        let body = json_body(request)?;
        Ok(Call { api, request, segments, verb, query, body })
    }

    /// The path's segments, as they are matched.
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// Method and verb, as they are matched: `("POST", "setIamPolicy")`.
    pub(crate) fn action(&self) -> (&'a str, &str) {
        (self.request.method.as_str(), self.verb.as_str())
    }

    /// The caller's address.
    pub(crate) fn caller(&self) -> &'a str {
        &self.request.principal.email
    }

    /// The moment of the request, as these APIs write it.
    pub(crate) fn now(&self) -> String {
        crate::surroundings::utc_timestamp(self.api.surroundings().now())
    }

    /// The body, judged as the message `T`; `{}` when there is none.
    pub(crate) fn body<T: Message>(&self, root: &str) -> Result<Value, ApiError> {
        let body = self.body.clone().unwrap_or_else(|| json!({}));
        wire::check(&body, T::schema(), root)?;
        Ok(body)
    }

    /// The body of a method that cannot do without one.
    pub(crate) fn required_body<T: Message>(&self, root: &str) -> Result<Value, ApiError> {
        match &self.body {
            Some(_) => self.body::<T>(root),
            None => Err(ApiError::new(Reason::BadRequest, "The request has no body.")),
        }
    }

    /// Such a body, judged after `prepared` has put it into the form that is judged.
    pub(crate) fn required_body_after<T: Message>(
        &self,
        root: &str,
        prepared: impl FnOnce(&mut Value),
    ) -> Result<Value, ApiError> {
        let Some(mut body) = self.body.clone() else { return self.required_body::<T>(root) };
        prepared(&mut body);
        wire::check(&body, T::schema(), root)?;
        Ok(body)
    }

    /// The project a path names by id or number.
    pub(crate) fn project(&self, state: &State, given: &str) -> Result<ProjectKey, ApiError> {
        project(state, given).ok_or_else(|| {
            let message = format!("Permission denied on resource project {given}.");
            ApiError::new(Reason::Forbidden, message)
        })
    }

    /// One page of `items`, which are in order, and the token of the next page.
    pub(crate) fn page<T>(
        &self,
        items: Vec<(String, T)>,
        size: &str,
        token: &str,
    ) -> Result<(Vec<T>, Option<String>), ApiError> {
        let size = match self.query.get(size).unwrap_or("0").parse::<i64>() {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(wanted) if wanted > 0 => {
                usize::try_from(wanted).unwrap_or(PAGE_SIZE_MAX).min(PAGE_SIZE_MAX)
            }
            _ => return Err(ApiError::new(Reason::Invalid, format!("{size}: is not a page size"))),
        };
        let after = self.query.get(token).filter(|token| !token.is_empty());
        let start = after.map_or(0, |after| {
            items.iter().position(|(key, _)| key == after).map_or(items.len(), |at| at + 1)
        });
        let mut rest = items.into_iter().skip(start).peekable();
        let mut page = Vec::new();
        let mut last = None;
        while page.len() < size {
            let Some((key, item)) = rest.next() else { break };
            last = Some(key);
            page.push(item);
        }
        let next = last.filter(|_| rest.peek().is_some());
        Ok((page, next))
    }

    /// The method or path does not exist.
    pub(crate) fn unserved(&self) -> ApiError {
        let Request { service, method, path, .. } = self.request;
        let message = format!("{service}.googleapis.com does not serve {method} {path} here.");
        ApiError::new(Reason::Unimplemented, message)
    }
}

/// A name nobody else has.
pub(crate) fn uuid(api: &Api) -> String {
    let surroundings = api.surroundings();
    let random = u128::from(surroundings.random()) << 64 | u128::from(surroundings.random());
    uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().to_string()
}

/// The project of this id or number, if there is one.
pub(crate) fn project(state: &State, given: &str) -> Option<ProjectKey> {
    let projects = &state.compiled.inventory().projects;
    let project = match given.parse::<u64>() {
        Ok(number) => projects.values().find(|project| project.number == number),
        Err(_) => projects.get(&ResourceName::project(given)),
    }?;
    Some(ProjectKey { id: project.name.name.clone(), number: project.number })
}

/// The answer in Google's envelope.
pub(crate) fn respond(request: &Request, result: Result<Value, ApiError>) -> Response {
    match result {
        Ok(value) => {
            let query = Query::parse(&request.query);
            match query.get("prettyPrint").map(str::to_ascii_lowercase).as_deref() {
                Some("false" | "0") => Response::json_text(StatusCode::OK, value.to_string()),
                _ => Response::json(StatusCode::OK, &value),
            }
        }
        Err(error) => error.response(Dialect::OnePlatform),
    }
}

/// An operation that is done.
pub(crate) fn done(name: &str, kind: &str, response: Value) -> Value {
    let mut response = response;
    if let Value::Object(response) = &mut response {
        response.insert("@type".into(), format!("type.googleapis.com/{kind}").into());
    }
    json!({ "name": name, "done": true, "response": response })
}
