//! VPC networks on this host: namespaces, addresses, links, firewall, and the client VMs in them.
//!
//! One network namespace per network, routed: every instance has a /32 and a link of its own to the
//! namespace, the gateways and the addresses of load balancers are addresses of the namespace, and the
//! firewall stands between. The host has no route into it; whoever must get in opens a socket there
//! ([`Vpc::listen`], [`Vpc::connect`]).
//!
//! The crate carries a [`plan`] out and decides nothing about it.

pub mod egress;
mod error;
mod instance;
mod links;
mod namespace;
mod network;
pub mod nft;
mod requirements;
mod vpc;

pub use error::{Failure, VpcError};
pub use instance::{InstanceStatus, Observation, helper_main};
pub use network::{METADATA_ADDRESS, RUN_APP_ADDRESS, TUNNEL_ADDRESS};
pub use requirements::{Requirement, requirements};
pub use vpc::Vpc;
