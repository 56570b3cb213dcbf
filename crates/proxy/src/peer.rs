//! The two ends of a client's connection: what headers, variables and logs say about them.

use crate::fields::put_decimal;
use plan::decision::Scheme;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

/// What one connection of a client is, for all its requests.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) client: SocketAddrV4,
    pub(crate) server: SocketAddrV4,
    /// `client,balancer`, what is appended to `X-Forwarded-For`.
    pub(crate) forwarded: Box<str>,
    /// The client's address and port, as the log writes them.
    pub(crate) remote: Box<str>,
    pub(crate) tls: Option<TlsFacts>,
}

/// What a TLS connection agreed on.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFacts {
    pub(crate) version: &'static str,
    /// The cipher suite's number in four hexadecimal digits.
    pub(crate) cipher: String,
    pub(crate) server_name: Option<String>,
}

fn put_number(out: &mut String, number: u64) {
    put_decimal(number, |digits| out.extend(digits.iter().map(|digit| char::from(*digit))));
}

fn put_address(out: &mut String, address: Ipv4Addr) {
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        put_number(out, u64::from(octet));
    }
}

impl Peer {
    pub(crate) fn new(
        client: SocketAddrV4,
        server: SocketAddrV4,
        tls: Option<TlsFacts>,
    ) -> Rc<Peer> {
        let mut forwarded = String::with_capacity(31);
        put_address(&mut forwarded, *client.ip());
        let mut remote = String::with_capacity(21);
        remote.push_str(&forwarded);
        remote.push(':');
        put_number(&mut remote, u64::from(client.port()));
        forwarded.push(',');
        put_address(&mut forwarded, *server.ip());
        let (forwarded, remote) = (forwarded.into(), remote.into());
        Rc::new(Peer { client, server, forwarded, remote, tls })
    }

    pub(crate) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    /// Appends the value of one of Google's header variables; of an unknown one, nothing.
    pub(crate) fn append_variable(&self, name: &str, protocol: &str, out: &mut Vec<u8>) {
        let tls = self.tls.as_ref();
        let text = match name {
            "client_ip_address" => self.client.ip().to_string(),
            "client_port" => self.client.port().to_string(),
            "client_encrypted" => tls.is_some().to_string(),
            "client_protocol" => protocol.to_owned(),
            "server_ip_address" => self.server.ip().to_string(),
            "server_port" => self.server.port().to_string(),
            "tls_sni_hostname" => tls.and_then(|tls| tls.server_name.clone()).unwrap_or_default(),
            "tls_version" => tls.map(|tls| tls.version.to_owned()).unwrap_or_default(),
            "tls_cipher_suite" => tls.map(|tls| tls.cipher.clone()).unwrap_or_default(),
            _ => return,
        };
        out.extend_from_slice(text.as_bytes());
    }
}
