//! What the server and an instance's helper process say to each other, and how it is framed.
//!
//! One Unix stream socket per instance. A frame is a length of four bytes and JSON; descriptors
//! travel beside the frame that announces them, in order.
//!
//! Invariant: the end of the stream means the other side is gone. A helper that reads it kills its
//! containers; nothing else is needed when the server dies.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A longer frame is a broken peer: environments and secrets are bounded far below.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Descriptors beside one frame: the sockets around an instance.
pub(crate) const DESCRIPTORS_MAX: usize = 3;
const READ_BYTES: usize = 16 * 1024;

/// What the server asks of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Become this instance: directory, shared volumes, control groups.
    Prepare(SandboxPlan),
    /// Run this container.
    Start(Box<ContainerPlan>),
    /// Send a signal to the first process of every container.
    Signal(i32),
}

/// What the helper tells the server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The namespaces exist; the helper waits for its instance. The sockets around the
    /// instance come beside this frame.
    Ready,
    /// The instance's directory is set up.
    Prepared,
    /// The container's program was executed; its two outputs come beside this frame.
    Started { container: String, process: i32 },
    /// The container could not be started, by its own fault or this host's.
    Failed { container: String, reason: String, is_host_fault: bool },
    /// The first process of the container ended.
    Exited { container: String, status: ExitStatus },
}

/// How a process ended, as the kernel tells it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum ExitStatus {
    Code(i32),
    Signal(i32),
}

/// What the containers of an instance share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxPlan {
    /// An empty directory of the host that belongs to this instance.
    pub(crate) directory: PathBuf,
    pub(crate) volumes: Vec<PlannedVolume>,
    /// For each container its control groups.
    pub(crate) groups: Vec<PlannedGroup>,
}

/// The control groups of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PlannedGroup {
    pub(crate) container: String,
    /// Where its processes are put.
    pub(crate) directories: Vec<PathBuf>,
    /// Directory and name under `/sys/fs/cgroup` inside the container.
    pub(crate) shown: Vec<(PathBuf, String)>,
}

/// A directory that containers of the instance share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PlannedVolume {
    pub(crate) name: String,
    pub(crate) source: PlannedSource,
}

/// Where it comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum PlannedSource {
    Memory {
        bytes_max: u64,
    },
    /// Path, contents, mode.
    Files(Vec<(String, Vec<u8>, u32)>),
    HostDirectory {
        path: PathBuf,
        read_only: bool,
    },
}

/// One container, decided to the last detail but for what only its files can tell (user, program).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    /// Unpacked layers, the lowest first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) arguments: Vec<String>,
    /// `NAME=value`, each name once.
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: String,
    /// As the image says it; resolved against its `/etc/passwd`.
    pub(crate) user: String,
    pub(crate) host_name: String,
    /// `/etc/hosts` of the container.
    pub(crate) hosts: String,
    pub(crate) writable_bytes_max: u64,
    /// Set where no control group counts processes: then those of the user are.
    pub(crate) processes_of_user_max: Option<u64>,
    /// Volume name, path inside.
    pub(crate) mounts: Vec<(String, String)>,
}

/// Writes one frame, with descriptors beside it; blocks until all of it is written.
pub(crate) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = frame(message)?;
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut sent = 0;
    while sent < bytes.len() {
        let rights = [ControlMessage::ScmRights(&raw)];
        let beside: &[ControlMessage<'_>] =
            if sent == 0 && !raw.is_empty() { &rights } else { &[] };
        let parts = [io::IoSlice::new(&bytes[sent..])];
        match sendmsg::<()>(socket.as_raw_fd(), &parts, beside, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(count) => sent += count,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The bytes of one frame.
pub(crate) fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Takes frames and descriptors off a socket.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads once from the socket; `false` at the end of the stream.
    pub(crate) fn read(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut bytes = vec![0; READ_BYTES];
        let mut space = cmsg_space!([i32; DESCRIPTORS_MAX]);
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for beside in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = beside {
                for descriptor in raw {
                    // SAFETY: the kernel just made these descriptors for us and nobody else knows
                    // their numbers.
                    #[allow(unsafe_code)]
                    self.descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
            }
        }
        let count = got.bytes;
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count > 0)
    }

    /// The next complete frame.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.buffer[4..4 + length])?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }

    /// The descriptors that came beside the frames so far and were not taken yet.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }
}
