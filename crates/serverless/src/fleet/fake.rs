//! A runtime without containers: instances are values, starting one takes a settable time on the
//! virtual clock, and it can be told to fail or crash.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::{ImageFailure, ImageSource, ImageTrouble, SecretSource};
use crate::images::{ImageConfig, ImagePin, Progress, ResolvedImage};
use crate::runtime::{
    Allowance, Exit, ExitCause, Instance, InstanceId, InstanceSpec, LogLine, Pending, Reconciled,
    Runtime, StartError, Stream, Usage,
};

/// Counts and faults of a fake runtime.
#[derive(Debug)]
pub(crate) struct FakeRuntime {
    /// What every instance is dialled at.
    listener: Arc<TcpListener>,
    pub(crate) startup: Mutex<Duration>,
    /// Starts that will fail, counted down; the revision's name must contain the text.
    pub(crate) failing: Mutex<Option<(String, u32)>>,
    pub(crate) alive: Mutex<HashMap<InstanceId, Arc<FakeInstance>>>,
    pub(crate) created: AtomicU32,
    pub(crate) alive_most: AtomicU32,
    this: std::sync::Weak<FakeRuntime>,
}

#[derive(Debug)]
pub(crate) struct FakeInstance {
    id: InstanceId,
    runtime: std::sync::Weak<FakeRuntime>,
    pub(crate) spec: Arc<InstanceSpec>,
    exit: watch::Sender<Option<Exit>>,
    pub(crate) allowances: Mutex<Vec<Allowance>>,
}

impl FakeRuntime {
    pub(crate) fn new() -> Arc<FakeRuntime> {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let accepting = Arc::clone(&listener);
        // Ends with the process; a probe only wants to be accepted.
        std::thread::spawn(move || accepting.incoming().for_each(drop));
        Arc::new_cyclic(|this| FakeRuntime {
            listener,
            startup: Mutex::new(Duration::from_millis(100)),
            failing: Mutex::default(),
            alive: Mutex::default(),
            created: AtomicU32::new(0),
            alive_most: AtomicU32::new(0),
            this: this.clone(),
        })
    }

    pub(crate) fn alive(&self) -> usize {
        self.alive.lock().unwrap().len()
    }

    pub(crate) fn alive_of(&self, revision: &str) -> usize {
        self.alive.lock().unwrap().values().filter(|each| each.spec.revision == revision).count()
    }

    /// Ends an instance as if its container had exited; false if there is none.
    pub(crate) fn crash_one(&self) -> bool {
        let alive = self.alive.lock().unwrap();
        let Some(instance) = alive.values().next().cloned() else { return false };
        drop(alive);
        instance.end(ExitCause::Code(1));
        true
    }
}

impl FakeInstance {
    fn end(&self, cause: ExitCause) {
        let exit = Exit { container: "c".to_owned(), cause };
        self.exit.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(exit);
            is_first
        });
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.alive.lock().unwrap().remove(&self.id);
        }
    }
}

impl Runtime for FakeRuntime {
    fn create(
        &self,
        spec: Arc<InstanceSpec>,
    ) -> Pending<'_, Result<Arc<dyn Instance>, StartError>> {
        self.created.fetch_add(1, Ordering::SeqCst);
        let instance = Arc::new(FakeInstance {
            id: spec.id.clone(),
            runtime: self.this.clone(),
            spec,
            exit: watch::Sender::new(None),
            allowances: Mutex::default(),
        });
        let mut alive = self.alive.lock().unwrap();
        alive.insert(instance.id.clone(), Arc::clone(&instance));
        let count = u32::try_from(alive.len()).unwrap();
        self.alive_most.fetch_max(count, Ordering::SeqCst);
        Box::pin(async move { Ok(instance as Arc<dyn Instance>) })
    }

    fn reconcile(&self) -> Pending<'_, Reconciled> {
        Box::pin(async { Reconciled::default() })
    }

    fn shut_down(&self) -> Pending<'_, ()> {
        Box::pin(async {})
    }
}

impl Instance for FakeInstance {
    fn id(&self) -> &InstanceId {
        &self.id
    }

    fn start_container<'a>(&'a self, name: &'a str) -> Pending<'a, Result<(), StartError>> {
        Box::pin(async move {
            let Some(runtime) = self.runtime.upgrade() else { return Ok(()) };
            let startup = *runtime.startup.lock().unwrap();
            tokio::time::sleep(startup).await;
            let mut failing = runtime.failing.lock().unwrap();
            match failing.as_mut() {
                Some((revision, left)) if self.spec.revision.contains(&**revision) && *left > 0 => {
                    *left -= 1;
                    let reason = "no such file".to_owned();
                    Err(StartError::Execute { container: name.to_owned(), reason })
                }
                _ => Ok(()),
            }
        })
    }

    fn dial(&self, _port: u16) -> Pending<'_, std::io::Result<TcpStream>> {
        let address = self.runtime.upgrade().map(|runtime| runtime.listener.local_addr());
        Box::pin(async move {
            let address = address.ok_or(std::io::ErrorKind::NotConnected)??;
            let stream = TcpStream::connect(address)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
    }

    fn exited(&self) -> Pending<'static, Exit> {
        let mut seen = self.exit.subscribe();
        Box::pin(async move {
            let exit = seen.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            exit.unwrap_or(Exit { container: String::new(), cause: ExitCause::Stopped })
        })
    }

    fn stop(&self, _grace: Duration) -> Pending<'static, ()> {
        self.end(ExitCause::Stopped);
        Box::pin(async {})
    }

    fn log_tail(&self, _lines_max: usize) -> Vec<LogLine> {
        vec![LogLine {
            at: SystemTime::UNIX_EPOCH,
            container: "c".into(),
            stream: Stream::Stderr,
            text: "last words".to_owned(),
            dropped_before: 0,
        }]
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn set_processor(&self, allowance: Allowance) {
        self.allowances.lock().unwrap().push(allowance);
    }
}

/// Every image exists but those with `missing` in their name.
#[derive(Debug)]
pub(crate) struct FakeImages;

impl ImageSource for FakeImages {
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        digest: Option<&'a str>,
    ) -> Pending<'a, Result<ResolvedImage, ImageFailure>> {
        Box::pin(async move {
            if image.contains("missing") {
                let message = format!("Image '{image}' not found.");
                return Err(ImageFailure { trouble: ImageTrouble::Missing, message });
            }
            let digest = digest.map_or_else(|| format!("sha256:{}", image.len()), str::to_owned);
            Ok(ResolvedImage {
                reference: image.to_owned(),
                pinned: format!("{image}@{digest}"),
                config: Arc::new(ImageConfig::default()),
                layers: Vec::new(),
                substitution: None,
                pin: Arc::new(ImagePin { digest: digest.clone() }),
                digest,
            })
        })
    }

    fn progress(&self, _image: &str) -> Option<Progress> {
        None
    }

    fn damage<'a>(&'a self, _image: &'a ResolvedImage) -> Pending<'a, Option<String>> {
        Box::pin(async { None })
    }
}

/// The only secret is `key` in version 1.
#[derive(Debug)]
pub(crate) struct FakeSecrets;

impl SecretSource for FakeSecrets {
    fn read(&self, _project: &str, secret: &str, version: &str) -> Result<Arc<[u8]>, String> {
        match (secret, version) {
            ("key", "1") => Ok(b"value".as_slice().into()),
            _ => Err(format!("Secret {secret} was not found")),
        }
    }
}

/// An instance that is simply there.
pub(crate) fn standing_instance() -> Arc<dyn Instance> {
    Arc::new(FakeInstance {
        id: InstanceId::new("standing").unwrap(),
        runtime: std::sync::Weak::new(),
        spec: Arc::new(InstanceSpec {
            id: InstanceId::new("standing").unwrap(),
            service: String::new(),
            revision: String::new(),
            configuration: String::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            startup_boost: false,
            host_name: String::new(),
            revision_plan: None,
        }),
        exit: watch::Sender::new(None),
        allowances: Mutex::default(),
    })
}
