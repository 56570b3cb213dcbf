//! A client of Google's REST APIs that reaches the server as gcloud does: through the forward proxy,
//! over TLS signed by the private CA, with the token `tidegate env` prints.
//!
//! Invariant: a call returns the status and body it got; only the `…_done` calls judge them.

use crate::{REGION, ZONE};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

/// How long one call may take; an operation's `wait` holds it for a while.
const CALL_LIMIT: Duration = Duration::from_secs(150);

/// How long a deployment may take to become ready.
const DEPLOY_LIMIT: Duration = Duration::from_secs(120);

/// What a call got.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body; null when there is none.
    pub body: Value,
}

impl Answer {
    /// The body of a success; an error that shows the body otherwise.
    pub fn ok(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "{}: {:#}", self.status, self.body);
        Ok(self.body)
    }

    /// `error.message`, or nothing.
    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    /// `error.errors[0].reason`, or nothing.
    pub fn reason(&self) -> &str {
        self.body["error"]["errors"][0]["reason"].as_str().unwrap_or_default()
    }
}

/// Which collection of Compute is meant: the path below `projects/P`.
pub fn regional(collection: &str) -> String {
    format!("regions/{REGION}/{collection}")
}

/// A zonal collection of Compute.
pub fn zonal(collection: &str) -> String {
    format!("zones/{ZONE}/{collection}")
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Api {
    agent: ureq::Agent,
    token: String,
    /// The project the environment names.
    pub project: String,
}

impl Api {
    /// A client from the variables of `tidegate env`.
    pub fn new(environment: &BTreeMap<String, String>) -> Result<Api> {
        let read = |name: &str| {
            environment.get(name).with_context(|| format!("`tidegate env` prints no {name}"))
        };
        let bundle = fs::read(read("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE")?)?;
        let roots: Vec<Certificate<'static>> = ureq::tls::parse_pem(&bundle)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(roots))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let agent = ureq::Agent::config_builder()
            .proxy(Some(ureq::Proxy::new(read("HTTPS_PROXY")?)?))
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(CALL_LIMIT))
            .build()
            .into();
        let token = fs::read_to_string(read("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")?)?.trim().to_owned();
        Ok(Api { agent, token, project: read("CLOUDSDK_CORE_PROJECT")?.clone() })
    }

    /// The same client with another token.
    pub fn with_token(&self, token: &str) -> Api {
        Api { token: token.to_owned(), ..self.clone() }
    }

    /// The token calls are made with.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// One call; `body` is sent as it is. An error means that no answer came.
    pub fn call(&self, method: &str, url: &str, body: Option<&str>) -> Result<Answer> {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        let mut response = match body {
            Some(body) => self
                .agent
                .run(request.header("content-type", "application/json").body(body.to_owned())?),
            None => self.agent.run(request.body(())?),
        }
        .with_context(|| format!("{method} {url}"))?;
        let text = response.body_mut().read_to_string()?;
        let body = match text.trim() {
            "" => Value::Null,
            json => serde_json::from_str(json).unwrap_or_else(|_| Value::String(text.clone())),
        };
        Ok(Answer { status: response.status().as_u16(), body })
    }

    /// The URL of a path of Compute below the project, such as `regions/R/urlMaps`.
    pub fn compute_url(&self, path: &str) -> String {
        let project = &self.project;
        format!("https://compute.googleapis.com/compute/v1/projects/{project}/{path}")
    }

    /// The link Compute's bodies name a resource by.
    pub fn link(&self, path: &str) -> String {
        self.compute_url(path)
    }

    /// The URL of a Cloud Run service in the Knative-style API, or of the collection.
    pub fn run_url(&self, service: &str) -> String {
        let project = &self.project;
        let collection = format!(
            "https://{REGION}-run.googleapis.com/apis/serving.knative.dev/v1/namespaces/{project}/services"
        );
        if service.is_empty() { collection } else { format!("{collection}/{service}") }
    }

    /// A call of Compute, below the project.
    pub fn compute(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let text = body.map(Value::to_string);
        self.call(method, &self.compute_url(path), text.as_deref())
    }

    /// Reads one resource of Compute.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.compute("GET", path, None)?.ok().with_context(|| format!("GET {path}"))
    }

    /// Changes something in Compute and waits until the operation is done without an error.
    pub fn change(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let operation = self.compute(method, path, body)?.ok();
        self.done(operation.with_context(|| format!("{method} {path}"))?)
    }

    /// Inserts into a collection of Compute, waits, and reads what was made.
    pub fn insert(&self, collection: &str, body: &Value) -> Result<Value> {
        self.change("POST", collection, Some(body))?;
        let name = body["name"].as_str().context("a resource has a name")?;
        self.get(&format!("{collection}/{name}"))
    }

    /// Waits until an operation of Compute is done; an error in it is an error here.
    pub fn done(&self, operation: Value) -> Result<Value> {
        let operation = self.wait(operation)?;
        ensure!(operation["error"].is_null(), "{:#}", operation["error"]);
        Ok(operation)
    }

    /// Waits until an operation of Compute says DONE, whatever else it says.
    pub fn wait(&self, mut operation: Value) -> Result<Value> {
        while operation["status"] != "DONE" {
            let link = operation["selfLink"].as_str().context("an operation has a selfLink")?;
            let at = link.find("/projects/").context("a selfLink has a project")?;
            let url = format!("https://compute.googleapis.com/compute/v1{}/wait", &link[at..]);
            operation = self.call("POST", &url, None)?.ok()?;
        }
        Ok(operation)
    }

    /// The names in a collection of Compute.
    pub fn names(&self, collection: &str) -> Result<Vec<String>> {
        let list = self.get(collection)?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(items.iter().filter_map(|item| item["name"].as_str().map(str::to_owned)).collect())
    }

    /// The body of a service that gcloud would send for `run deploy --ingress=internal`.
    pub fn service(&self, name: &str, image: &str, environment: &[(&str, &str)]) -> Value {
        let variables: Vec<Value> = environment
            .iter()
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect();
        json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": self.project,
                "annotations": { "run.googleapis.com/ingress": "internal" },
            },
            "spec": { "template": { "spec": { "containers": [{ "image": image, "env": variables }] } } },
        })
    }

    /// Deploys a service for everyone inside, and waits until it is ready.
    pub fn deploy(&self, name: &str, image: &str, environment: &[(&str, &str)]) -> Result<Value> {
        let body = self.service(name, image, environment).to_string();
        self.call("POST", &self.run_url(""), Some(&body))?.ok()?;
        self.allow_unauthenticated(name)?;
        self.ready(name)
    }

    /// `--allow-unauthenticated`.
    pub fn allow_unauthenticated(&self, name: &str) -> Result<()> {
        let project = &self.project;
        let url = format!(
            "https://run.googleapis.com/v1/projects/{project}/locations/{REGION}/services/{name}:setIamPolicy"
        );
        let bindings = json!([{ "role": "roles/run.invoker", "members": ["allUsers"] }]);
        let body = json!({ "policy": { "bindings": bindings } }).to_string();
        self.call("POST", &url, Some(&body))?.ok()?;
        Ok(())
    }

    /// Waits until a service is ready; an error with the condition's message if it failed.
    pub fn ready(&self, name: &str) -> Result<Value> {
        let url = self.run_url(name);
        let what = format!("service {name} is ready");
        crate::wait::until(&what, DEPLOY_LIMIT, || {
            let service = match self.call("GET", &url, None).and_then(Answer::ok) {
                Ok(service) => service,
                Err(error) => return Some(Err(error)),
            };
            let condition = condition(&service, "Ready");
            let is_current =
                service["status"]["observedGeneration"] == service["metadata"]["generation"];
            match condition["status"].as_str() {
                Some("True") if is_current => Some(Ok(service)),
                Some("False") if is_current => {
                    Some(Err(anyhow::anyhow!("{name}: {}", condition["message"])))
                }
                _ => None,
            }
        })?
    }

    /// Deletes a service and waits until it is gone.
    pub fn delete_service(&self, name: &str) -> Result<()> {
        let url = self.run_url(name);
        self.call("DELETE", &url, None)?.ok()?;
        crate::wait::until("the service is gone", DEPLOY_LIMIT, || {
            match self.call("GET", &url, None) {
                Ok(answer) if answer.status == 404 => Some(Ok(())),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        })?
    }

    /// Every resource there is, for comparing before and after: lists by collection.
    pub fn everything(&self) -> Result<BTreeMap<String, Value>> {
        let global = ["networks", "firewalls", "routes"].map(|name| format!("global/{name}"));
        let regions = [
            "subnetworks",
            "addresses",
            "networkEndpointGroups",
            "backendServices",
            "urlMaps",
            "targetHttpProxies",
            "targetHttpsProxies",
            "sslCertificates",
            "forwardingRules",
        ]
        .map(regional);
        let mut world = BTreeMap::new();
        for collection in global.into_iter().chain(regions).chain([zonal("instances")]) {
            let items = self.get(&collection)?["items"].take();
            world.insert(collection, items);
        }
        let services = self.call("GET", &self.run_url(""), None)?.ok()?;
        world.insert("services".to_owned(), services["items"].clone());
        if world.is_empty() {
            bail!("there is no collection to compare");
        }
        Ok(world)
    }
}

/// The condition of a type in a Knative-style status; null when there is none.
pub fn condition(resource: &Value, kind: &str) -> Value {
    let conditions =
        resource["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}
