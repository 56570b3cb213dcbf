//! Which host a client asks for: an API, the SSH tunnel, a service's own address, or somebody else's.
//!
//! Pure and total. A name is ours only when it is spelt out here, because everything that is ours
//! is answered with a certificate of the private CA and everything else passes untouched.

/// The port HTTPS clients ask for when they mean Google.
pub const HTTPS_PORT: u16 = 443;

/// The host that carries `gcloud compute ssh`.
pub const IAP_TUNNEL_HOST: &str = "tunnel.cloudproxy.app";

/// The domains whose certificates the private CA may sign; also its name constraints.
pub const DOMAINS: &[&str] = &["googleapis.com", "cloudproxy.app", "run.app"];

/// Whose host it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// One of Google's APIs.
    Api(ApiHost),
    /// `www.googleapis.com`: the path says which API.
    AnyApi,
    /// The IAP tunnel.
    IapTunnel,
    /// The address of a Cloud Run service or of one of its tags.
    RunApp(String),
    /// Not Google's.
    Foreign,
}

/// An API's host taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiHost {
    /// The API, such as `compute`.
    pub service: String,
    /// The region in front of it, as in `us-west1-run.googleapis.com`.
    pub region: Option<String>,
}

/// Classifies a host name, without its port.
pub fn host(name: &str) -> Host {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name == IAP_TUNNEL_HOST {
        return Host::IapTunnel;
    }
    if name.ends_with(".run.app") && is_dns_name(&name) {
        return Host::RunApp(name);
    }
    match name.strip_suffix(".googleapis.com") {
        Some("www") => Host::AnyApi,
        Some(label) if is_dns_name(label) => api_host(label).map_or(Host::Foreign, Host::Api),
        _ => Host::Foreign,
    }
}

/// Reads `compute`, `us-west1-run`, `compute.mtls` and `run.us-west1.rep`.
fn api_host(label: &str) -> Option<ApiHost> {
    let labels: Vec<&str> = label.split('.').collect();
    let (service, region) = match labels[..] {
        [service, region, "rep"] if is_region(region) => (service, Some(region)),
        [service] | [service, "mtls"] => match split_region(service) {
            Some((region, service)) => (service, Some(region)),
            None => (service, None),
        },
        _ => return None,
    };
    Some(ApiHost { service: service.to_owned(), region: region.map(str::to_owned) })
}

/// `us-west1-run` is the region and the service; `run` is neither.
fn split_region(label: &str) -> Option<(&str, &str)> {
    let mut hyphens = label.match_indices('-').map(|(at, _)| at);
    let second = hyphens.nth(1)?;
    let (region, service) = (&label[..second], &label[second + 1..]);
    (is_region(region) && !service.is_empty()).then_some((region, service))
}

/// Whether a word is shaped like a region: two words and a number at the end, as in `us-west1`.
fn is_region(word: &str) -> bool {
    let Some((continent, place)) = word.split_once('-') else { return false };
    let letters = place.trim_end_matches(|digit: char| digit.is_ascii_digit());
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase());
    is_word(continent) && is_word(letters) && letters.len() < place.len()
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Takes an authority (`host`, `host:port`, `[v6]:port`) apart; the port is absent when not given.
pub fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"@/?#\\[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_plain) {
        return None;
    }
    match port {
        None => Some((host, None)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some((host, Some(digits.parse().ok()?)))
        }
        Some(_) => None,
    }
}

/// The APIs that may stand as the first segment of a path on the plain port: `/run/v1/…`.
const PREFIXES: &[&str] = &[
    "artifactregistry",
    "certificatemanager",
    "cloudbuild",
    "cloudfunctions",
    "cloudresourcemanager",
    "compute",
    "iam",
    "iamcredentials",
    "logging",
    "oauth2",
    "run",
    "serviceusage",
    "storage",
    "tidegate",
];

/// Which API a path on the plain port means, and the path as that API knows it.
///
/// `/run/v1/projects/p/locations` names its API; Compute's and Knative's paths name theirs by
/// themselves; the `/v1/projects/…` that several share is told apart by what follows.
pub fn api_of_path(path: &str) -> Option<(&'static str, &str)> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if let [first, second, ..] = segments[..]
        && let Some(service) = PREFIXES.iter().find(|prefix| **prefix == first)
        && !(first == "compute" && second.starts_with('v'))
        && !(first == "oauth2" && second.starts_with('v'))
        // Storage's own paths begin with its name; after a prefix they do so again.
        && !(first == "storage" && second.starts_with('v') && segments.get(2) == Some(&"b"))
    {
        return Some((service, &path[1 + first.len()..]));
    }
    let service = match segments[..] {
        ["compute", ..] | ["batch", "compute", ..] => "compute",
        ["storage", "v1", "b", ..] | ["upload", "storage", "v1", "b", ..] => "storage",
        ["apis", "serving.knative.dev", ..] => "run",
        ["token"] | ["oauth2", ..] => "oauth2",
        ["v2", "entries:list" | "entries:tail" | "entries:write"] => "logging",
        ["v2", "projects", _, "locations", ..] => "run",
        ["v1", "roles", ..] => "iam",
        ["v1", "projects", _, "serviceAccounts", ref rest @ ..] => match rest {
            [account] if account.contains(":generate") || account.contains(":sign") => {
                "iamcredentials"
            }
            _ => "iam",
        },
        ["v1", "projects", _, word, ..] if word.starts_with("services") => "serviceusage",
        ["v1", "projects", _, "locations", _, collection, ..]
            if collection.starts_with("certificate") || collection == "dnsAuthorizations" =>
        {
            "certificatemanager"
        }
        ["v1", "projects", _, "locations", ..] => "run",
        ["v1", "projects"] | ["v1", "projects", _] => "cloudresourcemanager",
        _ => return None,
    };
    Some((service, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_googles_only_when_it_is_spelt_out() {
        for (name, expected) in [
            ("compute.googleapis.com", "api compute"),
            ("Compute.GoogleAPIs.com.", "api compute"),
            ("us-west1-run.googleapis.com", "api run in us-west1"),
            ("northamerica-northeast1-run.googleapis.com", "api run in northamerica-northeast1"),
            ("run.us-west1.rep.googleapis.com", "api run in us-west1"),
            ("compute.mtls.googleapis.com", "api compute"),
            ("www.googleapis.com", "any api"),
            ("tunnel.cloudproxy.app", "iap tunnel"),
            ("hello-1.us-west1.run.app", "run app hello-1.us-west1.run.app"),
            ("googleapis.com", "foreign"),
            ("evilgoogleapis.com", "foreign"),
            ("compute.googleapis.com.evil.example", "foreign"),
            (".googleapis.com", "foreign"),
            ("a b.googleapis.com", "foreign"),
            ("other.cloudproxy.app", "foreign"),
            ("us-docker.pkg.dev", "foreign"),
            ("127.0.0.1", "foreign"),
            ("", "foreign"),
        ] {
            let seen = match host(name) {
                Host::Api(ApiHost { service, region: None }) => format!("api {service}"),
                Host::Api(ApiHost { service, region: Some(region) }) => {
                    format!("api {service} in {region}")
                }
                Host::AnyApi => "any api".to_owned(),
                Host::IapTunnel => "iap tunnel".to_owned(),
                Host::RunApp(name) => format!("run app {name}"),
                Host::Foreign => "foreign".to_owned(),
            };
            assert_eq!(seen, expected, "{name}");
        }
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for (authority, expected) in [
            ("h", Some(("h", None))),
            ("h:443", Some(("h", Some(443)))),
            ("[::1]:80", Some(("::1", Some(80)))),
            ("[::1]", Some(("::1", None))),
            ("::1", None),
            ("h:", None),
            ("h:x", None),
            ("h:70000", None),
            ("", None),
            (":80", None),
            ("u@h", None),
            ("h/x", None),
        ] {
            let seen = split_authority(authority);
            assert_eq!(seen, expected, "{authority}");
        }
    }

    #[test]
    fn a_path_on_the_plain_port_finds_its_api() {
        for (path, expected) in [
            (
                "/compute/v1/projects/p/global/networks",
                "compute /compute/v1/projects/p/global/networks",
            ),
            ("/compute/compute/v1/projects/p", "compute /compute/v1/projects/p"),
            ("/storage/v1/b/x/o/y", "storage /storage/v1/b/x/o/y"),
            ("/storage/storage/v1/b/x", "storage /storage/v1/b/x"),
            ("/cloudfunctions/v2/projects/p/locations", "cloudfunctions /v2/projects/p/locations"),
            ("/batch/compute/v1", "compute /batch/compute/v1"),
            (
                "/apis/serving.knative.dev/v1/namespaces/p/services",
                "run /apis/serving.knative.dev/v1/namespaces/p/services",
            ),
            ("/run/v1/projects/p/locations", "run /v1/projects/p/locations"),
            ("/iam/v1/roles/x", "iam /v1/roles/x"),
            (
                "/v1/projects/p/locations/r/services/s:getIamPolicy",
                "run /v1/projects/p/locations/r/services/s:getIamPolicy",
            ),
            (
                "/v1/projects/p/locations/r/certificates",
                "certificatemanager /v1/projects/p/locations/r/certificates",
            ),
            (
                "/v1/projects/p/services/run.googleapis.com",
                "serviceusage /v1/projects/p/services/run.googleapis.com",
            ),
            (
                "/v1/projects/p/services:batchEnable",
                "serviceusage /v1/projects/p/services:batchEnable",
            ),
            ("/v1/projects/p:getIamPolicy", "cloudresourcemanager /v1/projects/p:getIamPolicy"),
            (
                "/v1/projects/-/serviceAccounts/a@b:generateIdToken",
                "iamcredentials /v1/projects/-/serviceAccounts/a@b:generateIdToken",
            ),
            (
                "/v1/projects/-/serviceAccounts/a@b/keys",
                "iam /v1/projects/-/serviceAccounts/a@b/keys",
            ),
            ("/v2/entries:list", "logging /v2/entries:list"),
            ("/v2/projects/p/locations/r/services", "run /v2/projects/p/locations/r/services"),
            ("/token", "oauth2 /token"),
            ("/oauth2/v3/certs", "oauth2 /oauth2/v3/certs"),
            ("/oauth2/token", "oauth2 /token"),
            ("/", "none"),
            ("/metrics", "none"),
        ] {
            let seen = match api_of_path(path) {
                Some((service, path)) => format!("{service} {path}"),
                None => "none".to_owned(),
            };
            assert_eq!(seen, expected, "{path}");
        }
    }
}
