//! Questions and answers, a line each.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::answer::{Question, answer};
use super::{Guest, GuestKind, Machine, Metadata};
use crate::http::Response;
use crate::oauth::Identity;
use crate::{Api, InstanceStatus, Observed, Settled, World};

const EMAIL: &str = "7-compute@developer.gserviceaccount.com";

#[derive(Debug)]
struct Nobody(watch::Sender<u64>);

impl Observed for Nobody {
    fn progress(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn settled(&self, _: u64, _: &model::ResourceName) -> Settled {
        Settled::Done
    }

    fn instance_status(&self, _: &model::ResourceName) -> Option<InstanceStatus> {
        None
    }

    fn serial_output(&self, _: &model::ResourceName) -> String {
        String::new()
    }

    fn host_keys(&self, _: &model::ResourceName) -> Vec<(String, String)> {
        Vec::new()
    }
}

struct Stage {
    metadata: Metadata,
    identity: Arc<Identity>,
    api: Api,
    guest: Guest,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let store = store::Store::open(folder.path().join("store")).unwrap();
        let world = World::open(store).unwrap();
        let nobody = Arc::new(Nobody(watch::Sender::new(u64::MAX)));
        let api = Api::new(world, nobody, Arc::new(crate::Machine));
        api.ensure_project("demo", "Demo").await.unwrap();
        let identity = Arc::new(Identity::open(folder.path(), "owner@example.com").unwrap());
        let metadata = Metadata::new(api.clone(), Arc::clone(&identity));
        let number = super::number_of(&api.world().state(), "demo");
        let guest = Guest {
            project: "demo".to_owned(),
            project_number: number,
            project_attributes: Vec::new(),
            accounts: vec![EMAIL.replacen('7', &number.to_string(), 1)],
            kind: GuestKind::Container { id: "hello-1".into(), region: "us-west1".into() },
        };
        Stage { metadata, identity, api, guest, _folder: folder }
    }

    fn ask_with(&self, target: &str, headers: &[(&'static str, &'static str)]) -> Response {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let question = Question { method: &Method::GET, path, query, headers: &map };
        answer(&self.metadata, &self.guest, &question)
    }

    /// Below `/computeMetadata/v1/`, with the header.
    fn ask(&self, target: &str) -> (u16, String) {
        let target = format!("/computeMetadata/v1/{target}");
        let response = self.ask_with(&target, &[("metadata-flavor", "Google")]);
        assert_eq!(response.headers["metadata-flavor"], "Google");
        let text = String::from_utf8(response.body.to_vec()).unwrap();
        (response.status.as_u16(), text.replace(&self.guest.project_number.to_string(), "7"))
    }
}

#[tokio::test]
async fn an_instance_reads_about_itself() {
    let stage = Stage::new().await;
    for (target, expected) in [
        ("", "instance/\nproject/\n"),
        ("project/", "numeric-project-id\nproject-id\n"),
        ("project/project-id", "demo"),
        ("project/project-id?alt=json", "\"demo\""),
        ("project/numeric-project-id", "7"),
        ("instance/", "id\nregion\nservice-accounts/\nzone\n"),
        ("instance/id", "hello-1"),
        ("instance/region", "projects/7/regions/us-west1"),
        ("instance/zone", "projects/7/zones/us-west1-1"),
        ("instance/service-accounts/default/", "aliases\nemail\nidentity\nscopes\ntoken\n"),
        ("instance/service-accounts/default/email", EMAIL),
        ("instance/service-accounts/default/aliases", "default\n"),
        (
            "instance/service-accounts/7-compute%40developer.gserviceaccount.com/scopes",
            "https://www.googleapis.com/auth/cloud-platform\n",
        ),
        ("project/?recursive=true&alt=text", "numeric-project-id 7\nproject-id demo\n"),
        ("project/?alt=json", r#"["numeric-project-id","project-id"]"#),
        ("project?recursive=true", r#"{"numericProjectId":7,"projectId":"demo"}"#),
        (
            "instance/service-accounts/default/?recursive=true",
            r#"{"aliases":["default"],"email":"7-compute@developer.gserviceaccount.com","scopes":["https://www.googleapis.com/auth/cloud-platform"]}"#,
        ),
    ] {
        let target = match target.split_once("7-compute%40") {
            Some((before, after)) => {
                format!("{before}{}-compute%40{after}", stage.guest.project_number)
            }
            None => target.to_owned(),
        };
        assert_eq!(stage.ask(&target), (200, expected.to_owned()), "{target}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_googles_words() {
    let stage = Stage::new().await;
    for (target, status, part) in [
        ("instance/cat", 404, "<code>/computeMetadata/v1/instance/cat</code> was not found"),
        ("instance/id/", 404, "was not found"),
        ("instance/service-accounts/other@p.iam.gserviceaccount.com/token", 404, "not found"),
        ("instance/<b>", 404, "&lt;b&gt;"),
        ("instance", 301, "/computeMetadata/v1/instance/"),
        ("instance/service-accounts/default/identity", 400, "non-empty audience parameter"),
        ("instance/service-accounts/default/identity?audience=a&format=x", 400, "invalid format"),
    ] {
        let (seen, text) = stage.ask(target);
        assert!(seen == status && text.contains(part), "{target}: {seen} {text}");
    }
}

#[tokio::test]
async fn without_the_header_nothing_is_told() {
    let stage = Stage::new().await;
    let path = "/computeMetadata/v1/project/project-id";
    let flavor = ("metadata-flavor", "Google");
    for (headers, status, part) in [
        (&[][..], 403, "Missing Metadata-Flavor:Google header."),
        (&[("metadata-flavor", "google")], 403, "Missing Metadata-Flavor"),
        (&[flavor, ("x-forwarded-for", "10.0.0.1")], 403, "Your client does not have permission"),
        (&[flavor], 200, "demo"),
    ] {
        let response = stage.ask_with(path, headers);
        let text = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(response.status.as_u16(), status, "{headers:?}");
        assert!(text.contains(part), "{headers:?}: {text}");
    }
    // Clients find out whether there is a metadata server at all by asking for this.
    let response = stage.ask_with("/", &[]);
    assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"computeMetadata/\n"[..]));
}

#[tokio::test]
async fn its_tokens_are_its_accounts_and_good() {
    let mut stage = Stage::new().await;
    let (status, text) = stage.ask("instance/service-accounts/default/token");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &answer["token_type"], &answer["expires_in"]),
        (200, &json!("Bearer"), &json!(3599))
    );
    let now = stage.api.surroundings().now();
    let response = stage.ask_with(
        "/computeMetadata/v1/instance/service-accounts/default/token",
        &[("metadata-flavor", "Google")],
    );
    let answer: Value = serde_json::from_slice(&response.body).unwrap();
    let bearer = answer["access_token"].as_str().unwrap();
    let state = stage.api.world().state();
    let holder = stage.identity.principal(bearer, &*state, now).unwrap();
    assert_eq!(holder.email, stage.guest.accounts[0]);
    assert!(holder.is_service_account);

    let target = "/computeMetadata/v1/instance/service-accounts/default/identity\
                  ?audience=https%3A%2F%2Fa.run.app&format=full";
    let response = stage.ask_with(target, &[("metadata-flavor", "Google")]);
    let token = String::from_utf8(response.body.to_vec()).unwrap();
    let said = stage.identity.verify_id_token(&token, now).unwrap();
    assert_eq!((said.email, said.audience.as_str()), (holder.email, "https://a.run.app"));

    // An account that is gone gets none.
    stage.guest.accounts = vec!["gone@demo.iam.gserviceaccount.com".to_owned()];
    assert_eq!(stage.ask("instance/service-accounts/default/token").0, 404);
}

#[tokio::test]
async fn a_machine_reads_what_compute_engine_tells() {
    let mut stage = Stage::new().await;
    stage.guest.project_attributes = vec![("motd".into(), "hello".into())];
    stage.guest.kind = GuestKind::Machine(Box::new(Machine {
        id: 42,
        name: "vm".into(),
        hostname: "vm.us-west1-a.c.demo.internal".into(),
        zone: "us-west1-a".into(),
        machine_type: "e2-micro".into(),
        tags: vec!["web".into()],
        attributes: vec![("my-key".into(), "a\nb".into())],
        interfaces: vec![(Ipv4Addr::new(10, 1, 2, 3), "net".into())],
    }));
    for (target, expected) in [
        ("instance/name", "vm"),
        ("instance/id", "42"),
        ("instance/zone", "projects/7/zones/us-west1-a"),
        ("instance/machine-type", "projects/7/machineTypes/e2-micro"),
        ("instance/network-interfaces/", "0/\n"),
        ("instance/network-interfaces/0/ip", "10.1.2.3"),
        ("instance/attributes/my-key", "a\nb"),
        ("project/attributes/motd", "hello"),
        ("instance/tags?alt=json", r#"["web"]"#),
        (
            "instance/network-interfaces/?recursive=true",
            r#"[{"ip":"10.1.2.3","network":"projects/7/networks/net"}]"#,
        ),
    ] {
        assert_eq!(stage.ask(target), (200, expected.to_owned()), "{target}");
    }
}

#[tokio::test]
async fn only_known_guests_are_answered_and_the_socket_ends_with_the_future() {
    let stage = Stage::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (guest, known) = (stage.guest.clone(), Arc::new(std::sync::Mutex::new(true)));
    let asked = Arc::clone(&known);
    let who = move |_| asked.lock().unwrap().then(|| guest.clone());
    let serving = tokio::spawn(super::serve(stage.metadata.clone(), listener, who));
    let ask = async || {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let head = "GET /computeMetadata/v1/project/project-id HTTP/1.1\r\nHost: m\r\n\
                    Metadata-Flavor: Google\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    };
    assert!(ask().await.unwrap().ends_with("\r\n\r\ndemo"));
    *known.lock().unwrap() = false;
    assert!(!ask().await.unwrap_or_default().contains("demo"));
    serving.abort();
    let _ = serving.await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
