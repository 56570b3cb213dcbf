//! Links, addresses and routes, through netlink, in the namespace of the calling thread.
//!
//! Everything is declared: a function is told what must be there, lists what is, and adds or removes the
//! difference. Something that is already there, or already gone, is as good as done.
//!
//! Invariant: only what carries our mark ([`OURS`] on routes) is ever removed, besides the addresses of
//! `lo` and the links of namespaces that are ours as a whole.

use crate::error::VpcError;
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{
    AddressMessageBuilder, Error, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder, new_connection,
};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The routing protocol number that marks our routes.
const OURS: RouteProtocol = RouteProtocol::Other(84);
/// The index of `lo`, in every namespace.
const LOOPBACK: u32 = 1;
/// The routing table of the namespace's own addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;
/// `ENODEV`, `ENOENT`, `ESRCH`: what netlink says of something that is gone.
const GONE: [i32; 3] = [19, 2, 3];
/// `EEXIST`.
const EXISTS: i32 = 17;
/// `EADDRNOTAVAIL`: the address is gone.
const NO_SUCH_ADDRESS: i32 = 99;

/// Runs netlink work in the namespace of the calling thread, which must be a throwaway one.
pub(crate) fn run<T, F: Future<Output = Result<T, VpcError>>>(
    work: impl FnOnce(Links) -> F,
) -> Result<T, VpcError> {
    let failed = |what: &'static str| {
        move |source: std::io::Error| VpcError::Socket { what: what.into(), source }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed("start a netlink runtime"))?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(failed("open a netlink socket"))?;
        let connection = tokio::spawn(connection);
        let done = work(Links { handle }).await;
        connection.abort();
        done
    })
}

/// What one namespace's routing is asked and told.
pub(crate) struct Links {
    handle: Handle,
}

/// A route to be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WantedRoute {
    /// Packets to these addresses are for this namespace itself.
    Local(Ipv4Net),
    /// Packets to the one address leave by the link; those made here say they come from `source`.
    Direct { to: Ipv4Addr, link: u32, source: Ipv4Addr },
    /// Packets to the range go to the neighbour `via` on the link.
    Via { to: Ipv4Net, via: Ipv4Addr, link: u32 },
}

impl Links {
    /// The links of the namespace besides `lo`: name and index.
    pub(crate) async fn list(&self) -> Result<BTreeMap<String, u32>, VpcError> {
        let mut links = BTreeMap::new();
        let mut found = Box::pin(self.handle.link().get().execute());
        while let Some(link) = found.try_next().await.map_err(VpcError::link("list links"))? {
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            if let Some(name) = name.filter(|_| link.header.index != LOOPBACK) {
                links.insert(name, link.header.index);
            }
        }
        Ok(links)
    }

    /// Makes the pair `name` here and `eth0` in the other namespace; its index here. An older link
    /// of that name is replaced, since its other end belonged to an instance that is no more.
    pub(crate) async fn make_pair(
        &self,
        name: &str,
        other: BorrowedFd<'_>,
        mtu_bytes: u32,
    ) -> Result<u32, VpcError> {
        if let Some(index) = self.list().await?.get(name) {
            self.remove(name, *index).await?;
        }
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0")
            .mtu(mtu_bytes)
            .setns_by_fd(other.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .mtu(mtu_bytes)
            .up()
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        let what = format!("make link `{name}`");
        self.handle.link().add(pair).execute().await.map_err(VpcError::link(&what))?;
        let index = self.list().await?.get(name).copied();
        index.ok_or(VpcError::Link { what, source: Error::RequestFailed })
    }

    /// Brings a link up.
    pub(crate) async fn bring_up(&self, index: u32) -> Result<(), VpcError> {
        let up = LinkUnspec::new_with_index(index).up().build();
        let what = format!("bring up link {index}");
        self.handle.link().set(up).execute().await.map_err(VpcError::link(what))
    }

    /// Brings `lo` up.
    pub(crate) async fn bring_up_loopback(&self) -> Result<(), VpcError> {
        self.bring_up(LOOPBACK).await
    }

    /// Sets the largest packet of a link.
    pub(crate) async fn set_mtu(&self, index: u32, mtu_bytes: u32) -> Result<(), VpcError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu_bytes).build();
        let what = format!("set the MTU of link {index} to {mtu_bytes}");
        self.handle.link().set(message).execute().await.map_err(VpcError::link(what))
    }

    /// Removes a link, and with it its other end.
    pub(crate) async fn remove(&self, name: &str, index: u32) -> Result<(), VpcError> {
        let removed = self.handle.link().del(index).execute().await;
        settle(removed, &GONE).map_err(VpcError::link(format!("remove link `{name}`")))
    }

    /// Adds an address to a link.
    pub(crate) async fn add_address(&self, index: u32, address: Ipv4Addr) -> Result<(), VpcError> {
        let added = self.handle.address().add(index, address.into(), 32).execute().await;
        settle(added, &[EXISTS]).map_err(VpcError::link(format!("add address {address}")))
    }

    /// Makes `wanted` the addresses of `lo`, besides 127.0.0.1.
    pub(crate) async fn set_loopback_addresses(
        &self,
        wanted: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), VpcError> {
        let mut present = BTreeSet::new();
        let listing = || VpcError::link("list addresses");
        let mut found =
            Box::pin(self.handle.address().get().set_link_index_filter(LOOPBACK).execute());
        let mut superfluous = Vec::new();
        while let Some(message) = found.try_next().await.map_err(listing())? {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            match address {
                Some(address) if wanted.contains(&address) => {
                    present.insert(address);
                }
                Some(address) if !address.is_loopback() => superfluous.push((address, message)),
                _ => {}
            }
        }
        for address in wanted.difference(&present) {
            self.add_address(LOOPBACK, *address).await?;
        }
        for (address, message) in superfluous {
            self.remove_address(address, message).await?;
        }
        Ok(())
    }

    /// Adds and removes addresses of `lo`, for one who knows which are there.
    pub(crate) async fn change_loopback_addresses(
        &self,
        added: impl IntoIterator<Item = Ipv4Addr>,
        removed: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Result<(), VpcError> {
        for address in added {
            self.add_address(LOOPBACK, address).await?;
        }
        for address in removed {
            let message = AddressMessageBuilder::<Ipv4Addr>::new()
                .index(LOOPBACK)
                .address(address, 32)
                .build();
            self.remove_address(address, message).await?;
        }
        Ok(())
    }

    async fn remove_address(
        &self,
        address: Ipv4Addr,
        message: AddressMessage,
    ) -> Result<(), VpcError> {
        let removed = self.handle.address().del(message).execute().await;
        settle(removed, &[NO_SUCH_ADDRESS, GONE[0], GONE[1], GONE[2]])
            .map_err(VpcError::link(format!("remove address {address}")))
    }

    /// Adds a route, or puts it in the place of another to the same range.
    pub(crate) async fn put_route(&self, route: &WantedRoute) -> Result<(), VpcError> {
        let added = self.handle.route().add(message(route)).replace().execute().await;
        settle(added, &[EXISTS]).map_err(VpcError::link(format!("add route {route:?}")))
    }

    /// Makes `wanted` our routes of these two kinds: local ranges, and ranges behind a neighbour.
    pub(crate) async fn set_routes(&self, wanted: &[WantedRoute]) -> Result<(), VpcError> {
        for route in wanted {
            self.put_route(route).await?;
        }
        let keys: BTreeSet<(bool, Ipv4Net)> = wanted.iter().filter_map(key_of_wanted).collect();
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let listing = || VpcError::link("list routes");
        let mut found = Box::pin(self.handle.route().get(all).execute());
        let mut superfluous = Vec::new();
        while let Some(route) = found.try_next().await.map_err(listing())? {
            if key_of_present(&route).is_some_and(|key| !keys.contains(&key)) {
                superfluous.push(route);
            }
        }
        for route in superfluous {
            let removed = self.handle.route().del(route).execute().await;
            settle(removed, &GONE).map_err(VpcError::link("remove a route"))?;
        }
        Ok(())
    }
}

/// Whether netlink's refusal means that nothing was left to do.
fn settle(done: Result<(), Error>, harmless: &[i32]) -> Result<(), Error> {
    match done {
        Err(Error::NetlinkError(refusal)) if harmless.contains(&-refusal.raw_code()) => Ok(()),
        done => done,
    }
}

fn message(route: &WantedRoute) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().protocol(OURS);
    match *route {
        WantedRoute::Local(range) => builder
            .destination_prefix(range.network(), range.prefix_len())
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LOOPBACK)
            .build(),
        WantedRoute::Direct { to, link, source } => builder
            .destination_prefix(to, 32)
            .scope(RouteScope::Link)
            .output_interface(link)
            .pref_source(source)
            .build(),
        WantedRoute::Via { to, via, link } => builder
            .destination_prefix(to.network(), to.prefix_len())
            .gateway(via)
            .output_interface(link)
            .onlink()
            .build(),
    }
}

/// What tells the routes that [`Links::set_routes`] is about apart: local or not, and the range.
fn key_of_wanted(route: &WantedRoute) -> Option<(bool, Ipv4Net)> {
    match *route {
        WantedRoute::Local(range) => Some((true, range)),
        WantedRoute::Via { to, .. } => Some((false, to)),
        WantedRoute::Direct { .. } => None,
    }
}

fn key_of_present(route: &RouteMessage) -> Option<(bool, Ipv4Net)> {
    let header = &route.header;
    if header.protocol != OURS || header.address_family != AddressFamily::Inet {
        return None;
    }
    let is_local = header.kind == RouteType::Local;
    let has_gateway = route.attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_)));
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let address = destination.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let range = Ipv4Net::new(address, header.destination_prefix_length).ok()?;
    (is_local || has_gateway).then_some((is_local, range))
}
