//! Cloud Storage, as far as sources of builds and their logs need it: buckets, and objects that are
//! written whole.
//!
//! A bucket and an object are documents; the bytes of an object are a file of this machine, named
//! after what it holds.
//!
//! Invariant: an object's document names a file that was complete before the document was written.

mod files;
mod signed;
mod upload;

use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::path::PathBuf;
use wire::storage as messages;

use crate::Api;
use crate::builds::{self, Home};
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, respond};
use crate::query::decoded_segment;
use crate::world::State;

pub(crate) use signed::Sessions;

/// Bytes of one object: a source as gcloud packs it.
pub const OBJECT_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Buckets of one project.
pub(crate) const BUCKETS_MAX: usize = 1000;

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let path = request.path.clone();
    let segments: Vec<String> =
        path.trim_start_matches('/').split('/').map(decoded_segment).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let result = match (&request.method, &segments[..]) {
        (_, ["upload" | "resumable", ..]) => upload::answer(api, request, &segments).await,
        (_, ["storage", "v1", rest @ ..]) => json_api(api, request, rest).await,
        (&Method::PUT, [bucket, object @ ..]) => {
            upload::whole(api, request, bucket, &object.join("/")).await
        }
        (&Method::GET, [bucket, object @ ..]) if !object.is_empty() => {
            download(api, request, bucket, &object.join("/"))
        }
        _ => Err(ApiError::new(Reason::NotFound, "Not Found")),
    };
    result.unwrap_or_else(|error| respond(request, Err(error)))
}

async fn json_api(api: &Api, request: &Request, rest: &[&str]) -> Result<Response, ApiError> {
    let call = Call::read(api, request)?;
    let state = api.world().state();
    let answer = match (call.request.method.as_str(), rest) {
        ("GET", ["b"]) => list_buckets(&call, &state),
        ("POST", ["b"]) => insert_bucket(&call).await,
        ("GET", ["b", bucket]) => bucket_of(&state, bucket),
        ("DELETE", ["b", bucket]) => {
            delete_bucket(api, bucket).await?;
            return Ok(Response::empty());
        }
        ("GET", ["b", bucket, "o"]) => list_objects(&call, &state, bucket),
        ("GET", ["b", bucket, "o", object @ ..]) if call.query.get("alt") == Some("media") => {
            return download(api, request, bucket, &object.join("/"));
        }
        ("GET", ["b", bucket, "o", object @ ..]) => object_of(&state, bucket, &object.join("/")),
        ("DELETE", ["b", bucket, "o", object @ ..]) => {
            let object = object.join("/");
            object_of(&state, bucket, &object)?;
            forget(api, bucket, &object).await;
            return Ok(Response::empty());
        }
        _ => Err(call.unserved()),
    };
    Ok(respond(request, answer))
}

fn bucket_key(bucket: &str) -> String {
    format!("storage/buckets/{bucket}")
}

fn object_key(bucket: &str, object: &str) -> String {
    format!("storage/objects/{bucket}/{object}")
}

/// Who owns a bucket; none where there is no such bucket.
pub(crate) fn project_of(state: &State, bucket: &str) -> Option<String> {
    let bucket = state.get(&bucket_key(bucket))?;
    bucket["project"].as_str().map(str::to_owned)
}

fn bucket_of(state: &State, bucket: &str) -> Result<Value, ApiError> {
    let mut shown = state
        .get(&bucket_key(bucket))
        .ok_or_else(|| ApiError::new(Reason::NotFound, "The specified bucket does not exist."))?;
    if let Value::Object(shown) = &mut shown {
        shown.remove("project");
    }
    Ok(shown)
}

fn object_of(state: &State, bucket: &str, object: &str) -> Result<Value, ApiError> {
    let mut shown = state.get(&object_key(bucket, object)).ok_or_else(|| {
        let message = format!("No such object: {bucket}/{object}");
        ApiError::new(Reason::NotFound, message)
    })?;
    if let Value::Object(shown) = &mut shown {
        shown.remove("file");
    }
    Ok(shown)
}

/// The file with an object's bytes.
pub(crate) fn file_of(
    api: &Api,
    state: &State,
    bucket: &str,
    object: &str,
) -> Result<PathBuf, ApiError> {
    object_of(state, bucket, object)?;
    let document = state.get(&object_key(bucket, object));
    let file = document.and_then(|document| document["file"].as_str().map(str::to_owned));
    Ok(builds::of(api)?.objects().join(file.unwrap_or_default()))
}

fn list_buckets(call: &Call<'_>, state: &State) -> Result<Value, ApiError> {
    let project = call.project(state, call.query.get("project").unwrap_or_default())?;
    let prefix = bucket_key(call.query.get("prefix").unwrap_or_default());
    let items = state
        .scan(&prefix)
        .filter(|(_, kept)| kept.value()["project"] == project.id.as_str())
        .filter_map(|(key, kept)| {
            let document = kept.value();
            let name = document["name"].as_str()?;
            Some((key.to_string(), bucket_of(state, name).ok()?))
        })
        .collect();
    page(call, items, "storage#buckets")
}

fn list_objects(call: &Call<'_>, state: &State, bucket: &str) -> Result<Value, ApiError> {
    bucket_of(state, bucket)?;
    let prefix = object_key(bucket, call.query.get("prefix").unwrap_or_default());
    let items = state
        .scan(&prefix)
        .filter_map(|(key, kept)| {
            let document = kept.value();
            let name = document["name"].as_str()?;
            Some((key.to_string(), object_of(state, bucket, name).ok()?))
        })
        .collect();
    page(call, items, "storage#objects")
}

fn page(call: &Call<'_>, items: Vec<(String, Value)>, kind: &str) -> Result<Value, ApiError> {
    let (items, next) = call.page(items, "maxResults", "pageToken")?;
    let mut answer = json!({ "kind": kind, "items": items });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

async fn insert_bucket(call: &Call<'_>) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::Bucket>("")?;
    let state = call.api.world().state();
    let project = call.project(&state, call.query.get("project").unwrap_or_default())?;
    let name = body["name"].as_str().unwrap_or_default().to_owned();
    if !is_bucket_name(&name) {
        return Err(ApiError::new(Reason::Invalid, format!("Invalid bucket name: '{name}'")));
    }
    let home =
        Home { project, region: body["location"].as_str().unwrap_or("US").to_ascii_lowercase() };
    let number = call.api.new_id();
    let now = call.now();
    let made = call.api.world().change(|draft| {
        if draft.contains(&bucket_key(&name)) {
            let message = "Your previous request to create the named bucket succeeded and you already own it.";
            return Err(ApiError::new(Reason::AlreadyExists, message));
        }
        if draft.before().scan("storage/buckets/").count() >= BUCKETS_MAX {
            let message = format!("Quota 'Buckets' exceeded. Limit: {BUCKETS_MAX}.");
            return Err(ApiError::new(Reason::QuotaExceeded, message));
        }
        draft.put(bucket_key(&name), bucket(&name, &home, &number, &now, &body));
        Ok(())
    });
    let changed = made.await?;
    bucket_of(&changed.state, &name)
}

/// The document of a bucket; what the client said of it is kept.
fn bucket(name: &str, home: &Home, metageneration: &str, now: &str, body: &Value) -> Value {
    let mut document = body.as_object().cloned().unwrap_or_default();
    for (field, value) in [
        ("kind", json!("storage#bucket")),
        ("id", json!(name)),
        ("name", json!(name)),
        ("selfLink", json!(format!("https://www.googleapis.com/storage/v1/b/{name}"))),
        ("projectNumber", json!(home.project.number.to_string())),
        ("project", json!(home.project.id.as_str())),
        ("location", json!(home.region.to_ascii_uppercase())),
        ("locationType", json!("region")),
        ("storageClass", json!("STANDARD")),
        ("metageneration", json!("1")),
        ("etag", json!(metageneration)),
        ("timeCreated", json!(now)),
        ("updated", json!(now)),
    ] {
        document.insert(field.to_owned(), value);
    }
    Value::Object(document)
}

fn is_bucket_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    (3..=222).contains(&name.len())
        && name.bytes().all(plain)
        && ends(name.as_bytes().first())
        && ends(name.as_bytes().last())
        && !name.contains("..")
}

async fn delete_bucket(api: &Api, bucket: &str) -> Result<(), ApiError> {
    let deleted = api.world().change(|draft| {
        bucket_of(draft.before(), bucket)?;
        if draft.before().scan(&object_key(bucket, "")).next().is_some() {
            let message = "The bucket you tried to delete is not empty.";
            return Err(ApiError::new(Reason::AlreadyExists, message));
        }
        draft.delete(bucket_key(bucket));
        Ok(())
    });
    deleted.await.map(|_| ())
}

/// Writes an object of this server's own, in a bucket that is made when it is absent.
pub(crate) async fn keep(
    api: &Api,
    home: &Home,
    bucket_name: &str,
    object: &str,
    content_type: &str,
    bytes: Vec<u8>,
) -> Result<Value, ApiError> {
    ensure_bucket(api, home, bucket_name).await?;
    put(api, bucket_name, object, content_type, bytes.into()).await
}

/// Makes a bucket of this server's own, if it is absent.
pub(crate) async fn ensure_bucket(api: &Api, home: &Home, name: &str) -> Result<(), ApiError> {
    let now = crate::surroundings::utc_timestamp(api.surroundings().now());
    let number = api.new_id();
    let made = api.world().change(|draft| {
        if !draft.contains(&bucket_key(name)) {
            draft.put(bucket_key(name), bucket(name, home, &number, &now, &json!({})));
        }
        Ok(())
    });
    made.await.map(|_| ())
}

/// Writes an object of an existing bucket.
async fn put(
    api: &Api,
    bucket: &str,
    object: &str,
    content_type: &str,
    bytes: bytes::Bytes,
) -> Result<Value, ApiError> {
    bucket_of(&api.world().state(), bucket)?;
    if object.is_empty() || object.len() > 1024 {
        return Err(ApiError::new(Reason::Invalid, "The object's name is not one."));
    }
    let directory = builds::of(api)?.objects().to_owned();
    let size = bytes.len();
    let generation = api.new_id();
    let file = files::write(directory.clone(), bucket, object, &generation, bytes).await?;
    let now = crate::surroundings::utc_timestamp(api.surroundings().now());
    let key = object_key(bucket, object);
    let document = json!({
        "kind": "storage#object",
        "id": format!("{bucket}/{object}/{generation}"),
        "bucket": bucket,
        "name": object,
        "generation": generation,
        "metageneration": "1",
        "contentType": content_type,
        "size": size.to_string(),
        "storageClass": "STANDARD",
        "timeCreated": now,
        "updated": now,
        "file": file,
    });
    let written = api.world().change(|draft| {
        let before = draft.get(&key).and_then(|known| known["file"].as_str().map(str::to_owned));
        draft.put(key.clone(), document.clone());
        Ok(before)
    });
    match written.await {
        Ok(changed) => {
            if let Some(before) = changed.value {
                files::remove(directory, before).await;
            }
            object_of(&changed.state, bucket, object)
        }
        Err(error) => {
            files::remove(directory, file).await;
            Err(error)
        }
    }
}

/// Removes an object, if it is there.
pub(crate) async fn forget(api: &Api, bucket: &str, object: &str) {
    let key = object_key(bucket, object);
    let removed = api.world().change(|draft| {
        let file = draft.get(&key).and_then(|known| known["file"].as_str().map(str::to_owned));
        draft.delete(key.clone());
        Ok(file)
    });
    match (removed.await, builds::of(api)) {
        (Ok(changed), Ok(builds)) => {
            if let Some(file) = changed.value {
                files::remove(builds.objects().to_owned(), file).await;
            }
        }
        (Err(error), _) => tracing::warn!(%error, bucket, object, "an object stays"),
        (Ok(_), Err(_)) => {}
    }
}

/// The bytes of an object, or of the range that is asked for.
fn download(
    api: &Api,
    request: &Request,
    bucket: &str,
    object: &str,
) -> Result<Response, ApiError> {
    let state = api.world().state();
    let builds = builds::of(api)?;
    // The log of a build can be read while it is written.
    let id = object.strip_prefix("log-").and_then(|rest| rest.strip_suffix(".txt"));
    let (bytes, content_type) = match id.and_then(|id| builds.log(id)) {
        Some(log) => (log.into_bytes(), "text/plain".to_owned()),
        None => {
            let shown = object_of(&state, bucket, object)?;
            let path = file_of(api, &state, bucket, object)?;
            let bytes = std::fs::read(&path).map_err(|error| {
                ApiError::new(Reason::Internal, format!("The object cannot be read: {error}."))
            })?;
            (bytes, shown["contentType"].as_str().unwrap_or_default().to_owned())
        }
    };
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    let total = bytes.len();
    let range = request.headers.get(RANGE).and_then(|value| value.to_str().ok());
    let Some(start) = range.and_then(start_of_range) else {
        return Ok(Response { status: StatusCode::OK, headers, body: bytes.into() });
    };
    if start >= total {
        return Ok(Response {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            headers,
            body: bytes::Bytes::new(),
        });
    }
    if let Ok(value) = HeaderValue::try_from(format!("bytes {start}-{}/{total}", total - 1)) {
        headers.insert(CONTENT_RANGE, value);
    }
    let body = bytes::Bytes::from(bytes).slice(start..);
    Ok(Response { status: StatusCode::PARTIAL_CONTENT, headers, body })
}

/// `bytes=100-` begins at 100; every other form is answered with everything, as it may be.
fn start_of_range(range: &str) -> Option<usize> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_are_googles() {
        for (name, valid) in [
            ("run-sources-demo-us-west1", true),
            ("a.b_c", true),
            ("ab", false),
            ("-ab", false),
            ("Abc", false),
            ("a..b", false),
            ("a/b", false),
        ] {
            assert_eq!(is_bucket_name(name), valid, "{name}");
        }
    }

    #[test]
    fn an_open_range_begins_somewhere() {
        assert_eq!(start_of_range("bytes=100-"), Some(100));
        assert_eq!(start_of_range("bytes=1-2"), None);
        assert_eq!(start_of_range("lines=1-"), None);
    }
}
