//! The data plane's listening sockets, made inside VPC networks.

use model::ResourceName;
use std::io;
use std::net::{SocketAddrV4, TcpListener};
use vpc::Vpc;

/// Opens sockets in the namespaces of `Vpc`.
#[derive(Debug)]
pub(crate) struct VpcSockets(pub(crate) Vpc);

impl proxy::Sockets for VpcSockets {
    fn listen(
        &self,
        network: &ResourceName,
        address: SocketAddrV4,
        count: usize,
    ) -> io::Result<Vec<TcpListener>> {
        let opened = self.0.within(network, || proxy::sockets::listen_here(address, count));
        opened.map_err(io::Error::other)?
    }
}
