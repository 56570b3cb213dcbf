//! The two ends of a client's connection: what headers, variables and logs say about them.

use plan::decision::Scheme;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of two addresses and the comma between them.
const ADDRESSES_BYTES_MAX: usize = 31;

/// What one connection of a client is, for all its requests.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) client: SocketAddrV4,
    pub(crate) server: SocketAddrV4,
    /// `client,balancer`, kept in place because most connections are short.
    addresses: [u8; ADDRESSES_BYTES_MAX],
    client_bytes: u8,
    addresses_bytes: u8,
    forwarded_bytes: u8,
    pub(crate) tls: Option<Box<TlsFacts>>,
}

/// What a TLS connection agreed on.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFacts {
    pub(crate) version: &'static str,
    /// The cipher suite's number in four hexadecimal digits.
    pub(crate) cipher: String,
    pub(crate) server_name: Option<String>,
}

/// Writes an address at `at` and says where it ends.
fn put_address(out: &mut [u8; ADDRESSES_BYTES_MAX], mut at: u8, address: Ipv4Addr) -> u8 {
    let mut put = |byte: u8| {
        out[usize::from(at)] = byte;
        at += 1;
    };
    for (place, octet) in address.octets().into_iter().enumerate() {
        if place > 0 {
            put(b'.');
        }
        if octet >= 100 {
            put(b'0' + octet / 100);
        }
        if octet >= 10 {
            put(b'0' + octet / 10 % 10);
        }
        put(b'0' + octet % 10);
    }
    at
}

impl Peer {
    /// `names_itself`: a load balancer adds its own address to the client's, the front end of `run.app`
    /// addresses does not.
    pub(crate) fn new(
        client: SocketAddrV4,
        server: SocketAddrV4,
        tls: Option<TlsFacts>,
        names_itself: bool,
    ) -> Peer {
        let mut addresses = [b','; ADDRESSES_BYTES_MAX];
        let client_bytes = put_address(&mut addresses, 0, *client.ip());
        let addresses_bytes = put_address(&mut addresses, client_bytes + 1, *server.ip());
        let tls = tls.map(Box::new);
        let forwarded_bytes = if names_itself { addresses_bytes } else { client_bytes };
        Peer { client, server, addresses, client_bytes, addresses_bytes, forwarded_bytes, tls }
    }

    /// `client,balancer` or `client`, what is appended to `X-Forwarded-For`.
    pub(crate) fn forwarded(&self) -> &[u8] {
        &self.addresses[..usize::from(self.forwarded_bytes)]
    }

    /// The client's address in text.
    pub(crate) fn client_address(&self) -> &[u8] {
        &self.addresses[..usize::from(self.client_bytes)]
    }

    /// The balancer's address in text.
    pub(crate) fn server_address(&self) -> &[u8] {
        let from = usize::from(self.client_bytes) + 1;
        &self.addresses[from..usize::from(self.addresses_bytes)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_everybody_writes_them() {
        for (client, server) in
            [("1.2.3.4", "10.0.0.1"), ("255.255.255.255", "199.200.109.90"), ("0.0.0.0", "0.0.0.0")]
        {
            let end = |address: &str| SocketAddrV4::new(address.parse().unwrap(), 80);
            let peer = Peer::new(end(client), end(server), None, true);
            assert_eq!(peer.forwarded(), format!("{client},{server}").as_bytes());
            assert_eq!(peer.client_address(), client.as_bytes());
            assert_eq!(peer.server_address(), server.as_bytes());
        }
    }
}
