//! The two ends of a client's connection: what headers, variables and logs say about them.

use plan::decision::Scheme;
use std::net::SocketAddrV4;
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

impl Peer {
    pub(crate) fn new(
        client: SocketAddrV4,
        server: SocketAddrV4,
        tls: Option<TlsFacts>,
    ) -> Rc<Peer> {
        let forwarded = format!("{},{}", client.ip(), server.ip()).into();
        let remote = client.to_string().into();
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
