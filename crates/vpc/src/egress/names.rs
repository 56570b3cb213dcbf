//! The name server of instances: names of their VPC network and of Cloud Run services are answered here, all
//! others by the name server of this host.
//!
//! Only what is needed of the protocol is read: the first question of a datagram.
//!
//! Invariant: every answer repeats the question it is for, and a name under `internal` never leaves.

use super::LOOKUPS_MAX;
use futures_util::stream::{FuturesUnordered, StreamExt};
use plan::network::NetworkPlan;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;

/// A longer datagram is cut, and then is no question.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// How long this host's name server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Where this host says who its name server is.
const RESOLVER_FILE: &str = "/etc/resolv.conf";
const NAMES_PORT: u16 = 53;
const HEADER_BYTES: usize = 12;
const LABEL_BYTES_MAX: u8 = 63;
/// How long an answer of ours may be kept, in seconds.
const KEPT_SECONDS: u32 = 30;
/// `A`, `IN`.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];
/// Response, recursion available.
const ANSWERS: [u8; 2] = [0x80, 0x80];
/// The names of the metadata server, which every container has in its `/etc/hosts` as well.
const METADATA: [&str; 2] = ["metadata.google.internal", "metadata"];
const INTERNAL: &str = "internal";
/// What the names of services end with.
const RUN_APP: &str = ".run.app";

/// Response codes.
const FINE: u8 = 0;
const MALFORMED: u8 = 1;
const FAILED: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// The answer to a datagram.
pub(super) async fn answer(asked: &[u8], network: Option<&NetworkPlan>) -> Vec<u8> {
    let Some(question) = Question::read(asked) else { return refusal(asked, MALFORMED) };
    match question.own_answer(network) {
        Some(own) => own,
        None => forward(asked).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "a name could not be looked up");
            question.answer(FAILED, None)
        }),
    }
}

/// Answers the questions that come to a socket, with the names of the network as it is at the time.
pub(super) async fn serve(socket: UdpSocket, network: impl Fn() -> Option<Arc<NetworkPlan>>) {
    let mut lookups = FuturesUnordered::new();
    let mut question = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let may_receive = lookups.len() < LOOKUPS_MAX;
        tokio::select! {
            Some(answered) = lookups.next() => {
                let (answer, asker): (Vec<u8>, SocketAddr) = answered;
                // Whoever asked may be gone.
                let _ = socket.send_to(&answer, asker).await;
            }
            received = socket.recv_from(&mut question), if may_receive => {
                let Ok((count, asker)) = received else { continue };
                let hosts = network();
                let asked = question[..count].to_vec();
                lookups.push(async move { (answer(&asked, hosts.as_deref()).await, asker) });
            }
        }
    }
}

/// The first question of a datagram.
struct Question<'a> {
    asked: &'a [u8],
    /// In lower case, without the last dot.
    name: String,
    /// Type and class.
    kind: [u8; 4],
    /// Where the question ends.
    end: usize,
}

impl<'a> Question<'a> {
    fn read(asked: &'a [u8]) -> Option<Question<'a>> {
        let is_question = asked.get(2)? & 0x80 == 0;
        let count = u16::from_be_bytes([*asked.get(4)?, *asked.get(5)?]);
        if !is_question || count != 1 {
            return None;
        }
        let (mut at, mut labels) = (HEADER_BYTES, Vec::new());
        loop {
            let length = *asked.get(at)?;
            at += 1;
            if length == 0 {
                break;
            }
            if length > LABEL_BYTES_MAX {
                return None;
            }
            let label = asked.get(at..at + usize::from(length))?;
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            at += usize::from(length);
        }
        let kind = *asked.get(at..)?.first_chunk::<4>()?;
        Some(Question { asked, name: labels.join("."), kind, end: at + 4 })
    }

    /// What is answered here; nothing for names that are somebody else's.
    fn own_answer(&self, network: Option<&NetworkPlan>) -> Option<Vec<u8>> {
        let address = match self.name.as_str() {
            name if METADATA.contains(&name) => Some(crate::METADATA_ADDRESS),
            name if name.ends_with(RUN_APP) => Some(crate::RUN_APP_ADDRESS),
            name => network.and_then(|network| network.hosts.get(name).copied()),
        };
        let is_internal = self.name.rsplit('.').next() == Some(INTERNAL);
        match address {
            // Another type of record of a name that is there: there is none.
            Some(address) => Some(self.answer(FINE, (self.kind == ADDRESS).then_some(address))),
            None if is_internal => Some(self.answer(NO_SUCH_NAME, None)),
            None => None,
        }
    }

    fn answer(&self, code: u8, address: Option<Ipv4Addr>) -> Vec<u8> {
        let mut bytes = self.asked[..2].to_vec();
        let recursion_desired = self.asked[2] & 1;
        bytes.extend([ANSWERS[0] | recursion_desired, ANSWERS[1] | code]);
        bytes.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
        bytes.extend(&self.asked[HEADER_BYTES..self.end]);
        if let Some(address) = address {
            // The name is the one at the beginning.
            bytes.extend([0xc0, 12]);
            bytes.extend(ADDRESS);
            bytes.extend(KEPT_SECONDS.to_be_bytes());
            bytes.extend([0, 4]);
            bytes.extend(address.octets());
        }
        bytes
    }
}

/// To what could not be read.
fn refusal(asked: &[u8], code: u8) -> Vec<u8> {
    let mut bytes = asked.get(..2).unwrap_or(&[0, 0]).to_vec();
    bytes.extend([ANSWERS[0], ANSWERS[1] | code, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// The answer of this host's name server, as it is.
async fn forward(asked: &[u8]) -> io::Result<Vec<u8>> {
    let text = fs::read_to_string(RESOLVER_FILE)?;
    let server = name_server(&text).ok_or(io::ErrorKind::NotFound)?;
    let own: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(own, 0)).await?;
    socket.connect(SocketAddr::new(server, NAMES_PORT)).await?;
    socket.send(asked).await?;
    let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
    let receiving = socket.recv(&mut bytes);
    let count = tokio::time::timeout(ANSWER_WITHIN, receiving)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    bytes.truncate(count);
    Ok(bytes)
}

fn name_server(text: &str) -> Option<IpAddr> {
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.find_map(|rest| rest.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn question(name: &str, kind: u8) -> Vec<u8> {
        let mut bytes = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).expect("short"));
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, kind, 0, 1]);
        bytes
    }

    /// Code, and the last four bytes where there is an answer.
    fn own(name: &str, kind: u8) -> Option<(u8, Option<[u8; 4]>)> {
        let asked = question(name, kind);
        let answer = Question::read(&asked).expect("a question").own_answer(None)?;
        assert_eq!(answer[..2], [7, 9]);
        assert_eq!(answer[2] & 0x81, 0x81, "an answer, recursion as desired");
        let address = (answer[7] == 1).then(|| *answer.last_chunk::<4>().expect("four bytes"));
        Some((answer[3] & 0xf, address))
    }

    #[test]
    fn internal_names_are_answered_here_and_others_are_not() {
        let metadata = Some((0, Some([169, 254, 169, 254])));
        assert_eq!(own("metadata.google.internal", 1), metadata);
        assert_eq!(own("Metadata.Google.Internal", 1), metadata);
        assert_eq!(own("metadata.google.internal", 28), Some((0, None)));
        assert_eq!(own("vm.us-west1-a.c.p.internal", 1), Some((3, None)));
        let service = Some((0, Some([34, 143, 72, 2])));
        assert_eq!(own("app-902184053779.us-west1.run.app", 1), service);
        assert_eq!(own("blue---app-xennwr7e7x-uw.a.run.app", 1), service);
        assert_eq!(own("app-902184053779.us-west1.run.app", 28), Some((0, None)));
        assert_eq!(own("run.app.example.com", 1), None);
        assert_eq!(own("example.com", 1), None);
    }

    #[test]
    fn the_first_name_server_of_this_host_is_asked() {
        let text = "# nameserver 9.9.9.9\nsearch a\nnameserver nonsense\nnameserver 127.0.0.53\n";
        assert_eq!(name_server(text), Some(Ipv4Addr::new(127, 0, 0, 53).into()));
        assert_eq!(name_server(""), None);
    }

    proptest! {
        #[test]
        fn no_datagram_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(question) = Question::read(&bytes) {
                let _ = question.own_answer(None);
            }
            let _ = refusal(&bytes, MALFORMED);
        }
    }
}
