//! What was declared: the resource kinds, their names and references, and the [`Inventory`] of all of them.
//!
//! Everything here is a value. Nothing reads a clock, a file or a socket, and nothing knows the JSON in
//! which a resource was written; the `api` crate turns documents into these types, and `plan` turns these
//! types into what the appliers do.

pub mod address;
pub mod backend_service;
pub mod certificate;
pub mod endpoint_group;
pub mod firewall;
pub mod forwarding_rule;
pub mod health_check;
pub mod instance;
pub mod inventory;
pub mod name;
pub mod network;
pub mod problem;
pub mod project;
pub mod route;
pub mod run;
pub mod ssl_policy;
pub mod subnetwork;
pub mod target_proxy;
pub mod url_map;

pub use inventory::{Change, Inventory, Resource};
pub use name::{Kind, Location, Name, ResourceName};
pub use problem::{Cause, Problem};
