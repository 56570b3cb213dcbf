//! One server taking the place of another: listening sockets and the lock of the data directory pass from
//! the old process to the new one over a Unix socket in that directory.
//!
//! Messages are lines of JSON, each with at most one descriptor, and each is acknowledged before the next
//! is sent, so that a descriptor cannot be mistaken for another's.
//!
//! Invariant: a socket that is handed over stays open in both processes until the new one has said that it
//! serves; no connection is refused at any moment.

use crate::data_dir::DataDir;
use anyhow::{Context, bail, ensure};
use model::ResourceName;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// The socket's name in the data directory.
const SOCKET: &str = "replace.sock";

/// A message, its line end included.
const MESSAGE_BYTES_MAX: usize = 4096;

/// How long one message and its acknowledgement may take.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the old server may take to finish what its API has begun, and to let go of the store.
const LET_GO_WITHIN: Duration = Duration::from_secs(30);

/// How long the new server may take until it serves.
const SERVING_WITHIN: Duration = Duration::from_secs(120);

const ACKNOWLEDGED: &[u8] = b"k";
const SERVING: &[u8] = b"s";

/// What one message hands over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Message {
    /// The lock of the data directory, and where the old server's containers are kept.
    Lock { runtime: String },
    /// The API's listener.
    Api,
    /// The listener of the metrics.
    Metrics,
    /// A listener of the data plane in this network; none for the host's own.
    DataPlane { network: Option<String> },
    /// There is no more.
    End,
}

/// Everything that passes from one server to the next.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// The lock of the data directory.
    pub(crate) lock: File,
    /// The folder of the old server's containers.
    pub(crate) runtime: String,
    /// The API's listener.
    pub(crate) api: TcpListener,
    /// The listener of the metrics.
    pub(crate) metrics: TcpListener,
    /// The data plane's, each with its network; none for the host's own.
    pub(crate) data_plane: Vec<(Option<ResourceName>, TcpListener)>,
}

/// The place where a successor asks.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
}

/// A successor that has asked.
#[derive(Debug)]
pub(crate) struct Successor(UnixStream);

/// The server that is being replaced, which waits for a word.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

fn socket(dir: &DataDir) -> PathBuf {
    dir.join(SOCKET)
}

impl Door {
    /// Opens the place. The data directory is its owner's alone, and so is whoever can connect.
    pub(crate) fn open(dir: &DataDir) -> anyhow::Result<Door> {
        let (path, new) = (socket(dir), dir.join("replace.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(&new)
            .with_context(|| format!("could not listen on `{}`", path.display()))?;
        // In one step, so that there is always somebody to ask.
        fs::rename(&new, &path)?;
        listener.set_nonblocking(true)?;
        Ok(Door { listener })
    }

    /// Waits for a successor.
    pub(crate) async fn asked(&self) -> anyhow::Result<Successor> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let caller = stream.peer_cred()?.uid();
            let own = nix::unistd::geteuid().as_raw();
            if caller == own || caller == 0 {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                return Ok(Successor(stream));
            }
            tracing::warn!(uid = caller, "another user asked to take this server's place");
        }
    }
}

impl Successor {
    /// Hands everything over. Blocks.
    pub(crate) fn give(&mut self, inheritance: &Inheritance) -> anyhow::Result<()> {
        self.0.set_read_timeout(Some(MESSAGE_PATIENCE))?;
        self.0.set_write_timeout(Some(MESSAGE_PATIENCE))?;
        let runtime = inheritance.runtime.clone();
        self.send(&Message::Lock { runtime }, Some(inheritance.lock.as_fd()))?;
        self.send(&Message::Api, Some(inheritance.api.as_fd()))?;
        self.send(&Message::Metrics, Some(inheritance.metrics.as_fd()))?;
        for (network, listener) in &inheritance.data_plane {
            let network = network.as_ref().map(ToString::to_string);
            self.send(&Message::DataPlane { network }, Some(listener.as_fd()))?;
        }
        self.send(&Message::End, None)
    }

    fn send(
        &mut self,
        message: &Message,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(message)?;
        text.push(b'\n');
        ensure!(text.len() <= MESSAGE_BYTES_MAX, "a message is too long to be handed over");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        ensure!(sent == text.len(), "a message was cut off");
        let mut answer = [0];
        self.0.read_exact(&mut answer).context("the successor does not answer")?;
        ensure!(answer == ACKNOWLEDGED, "the successor answers in another language");
        Ok(())
    }

    /// Waits until the successor serves. Blocks.
    pub(crate) fn until_it_serves(&mut self) -> anyhow::Result<()> {
        self.0.set_read_timeout(Some(SERVING_WITHIN))?;
        let mut answer = [0];
        self.0.read_exact(&mut answer).context("the successor ended before it served")?;
        ensure!(answer == SERVING, "the successor answers in another language");
        Ok(())
    }
}

impl Predecessor {
    /// Asks the server on this directory for everything it has. Blocks until it has let go.
    pub(crate) fn of(dir: &DataDir) -> anyhow::Result<(Predecessor, Inheritance)> {
        let path = socket(dir);
        let stream = UnixStream::connect(&path).with_context(|| {
            format!("the server on `{}` cannot be replaced: stop it first", dir.root().display())
        })?;
        stream.set_read_timeout(Some(LET_GO_WITHIN))?;
        let mut predecessor = Predecessor(stream);
        let inheritance = predecessor.inherit().context("the server did not hand over")?;
        Ok((predecessor, inheritance))
    }

    fn inherit(&mut self) -> anyhow::Result<Inheritance> {
        let (mut lock, mut api, mut metrics) = (None, None, None);
        let mut data_plane = Vec::new();
        loop {
            let (message, descriptor) = self.receive()?;
            let descriptor = || descriptor.context("a message came without its descriptor");
            match message {
                Message::Lock { runtime } => lock = Some((File::from(descriptor()?), runtime)),
                Message::Api => api = Some(TcpListener::from(descriptor()?)),
                Message::Metrics => metrics = Some(TcpListener::from(descriptor()?)),
                Message::DataPlane { network } => {
                    let network = network.map(|name| {
                        ResourceName::parse(&name)
                            .with_context(|| format!("`{name}` is no network"))
                    });
                    data_plane.push((network.transpose()?, TcpListener::from(descriptor()?)));
                }
                Message::End => break,
            }
        }
        let (Some((lock, runtime)), Some(api), Some(metrics)) = (lock, api, metrics) else {
            bail!("the server handed over only a part");
        };
        Ok(Inheritance { lock, runtime, api, metrics, data_plane })
    }

    fn receive(&mut self) -> anyhow::Result<(Message, Option<OwnedFd>)> {
        let mut text = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags)?;
        let line = text[..received.bytes].strip_suffix(b"\n");
        let line = line.context("the server ended in the middle")?;
        let message = serde_json::from_slice(line).context("the server speaks another language")?;
        let mut descriptor = None;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                descriptor = descriptors.last();
            }
        }
        self.0.write_all(ACKNOWLEDGED)?;
        Ok((message, descriptor))
    }

    /// Tells the old server that it may go.
    pub(crate) fn dismiss(mut self) -> anyhow::Result<()> {
        self.0.write_all(SERVING).context("the old server is gone already")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[tokio::test]
    async fn everything_passes_from_one_server_to_the_next_and_sockets_stay_open() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::of(Some(folder.path())).unwrap();
        let door = Door::open(&dir).unwrap();
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let network = ResourceName::parse("projects/p/global/networks/n").unwrap();
        let given = Inheritance {
            lock: File::create(folder.path().join("lock")).unwrap(),
            runtime: "runtime".into(),
            api: listener(),
            metrics: listener(),
            data_plane: vec![(Some(network.clone()), listener()), (None, listener())],
        };
        let addresses: Vec<_> = [&given.api, &given.metrics, &given.data_plane[0].1]
            .map(|listener| listener.local_addr().unwrap())
            .into();
        let asking = std::thread::spawn(move || Predecessor::of(&dir).unwrap());
        let mut successor = door.asked().await.unwrap();
        let giving = std::thread::spawn(move || {
            successor.give(&given).unwrap();
            drop(given);
            successor.until_it_serves().unwrap();
        });
        let (predecessor, taken) = asking.join().unwrap();
        assert_eq!(taken.runtime, "runtime");
        assert_eq!(taken.data_plane[0].0, Some(network));
        assert_eq!(taken.data_plane[1].0, None);
        predecessor.dismiss().unwrap();
        giving.join().unwrap();
        let listeners = [&taken.api, &taken.metrics, &taken.data_plane[0].1];
        for (listener, address) in listeners.into_iter().zip(addresses) {
            assert_eq!(listener.local_addr().unwrap(), address);
            let _client = TcpStream::connect(address).unwrap();
            listener.accept().unwrap();
        }
    }

    #[tokio::test]
    async fn a_successor_that_ends_too_early_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::of(Some(folder.path())).unwrap();
        assert!(Predecessor::of(&dir).is_err(), "nobody is there to ask");
        let door = Door::open(&dir).unwrap();
        let path = socket(&dir);
        let asking = std::thread::spawn(move || drop(UnixStream::connect(path).unwrap()));
        let mut successor = door.asked().await.unwrap();
        asking.join().unwrap();
        assert!(successor.send(&Message::End, None).is_err());
    }
}
