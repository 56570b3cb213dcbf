//! The metadata server: what an instance or a VM may ask about itself, and the tokens it gets.
//!
//! Who asks is known before it is asked: the caller hands over sockets that only one guest can
//! reach, or knows guests by their addresses. Nothing is authenticated here and nothing can be
//! changed; the header `Metadata-Flavor: Google` keeps pages and forwarded requests out.
//!
//! Invariant: a guest is told about itself, its project and its own service account, and about
//! nothing else.

mod answer;
mod listener;
mod tree;

use std::net::Ipv4Addr;
use std::sync::Arc;

use model::ResourceName;
use model::instance::Instance;
use model::run::Revision;
use serde_json::Value;
use time::OffsetDateTime;

use crate::Api;
use crate::error::ApiError;
use crate::http::Principal;
use crate::oauth::{ACCESS_TOKEN_SECONDS, AccountKeys, Identity};
use crate::world::State;

pub use listener::{CONNECTIONS_MAX, HEAD_BYTES_MAX, HEAD_PATIENCE, serve};

/// What tokens of a service account may be used for, as far as the metadata says.
const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/cloud-platform"];

/// Everything that can be said to one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The project's id.
    pub project: String,
    /// The project's number.
    pub project_number: u64,
    /// `commonInstanceMetadata`, of VMs.
    pub project_attributes: Vec<(String, String)>,
    /// Its service accounts; the first is the default one.
    pub accounts: Vec<String>,
    /// What it is.
    pub kind: GuestKind,
}

/// What a guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// An instance of a Cloud Run revision.
    Container {
        /// The instance's name.
        id: String,
        /// Its region.
        region: String,
    },
    /// A VM.
    Machine(Box<Machine>),
}

/// What a VM is told about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its numeric id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its name in internal DNS.
    pub hostname: String,
    /// Its zone.
    pub zone: String,
    /// `machineType`, the last segment.
    pub machine_type: String,
    /// Its network tags.
    pub tags: Vec<String>,
    /// `metadata.items[]`.
    pub attributes: Vec<(String, String)>,
    /// Its interfaces: address and network.
    pub interfaces: Vec<(Ipv4Addr, String)>,
}

/// The metadata of everything in a world. Clones share it.
#[derive(Clone, Debug)]
pub struct Metadata {
    api: Api,
    identity: Arc<Identity>,
}

impl Metadata {
    /// Answers about this world, with tokens of this identity.
    pub fn new(api: Api, identity: Arc<Identity>) -> Metadata {
        Metadata { api, identity }
    }

    /// What an instance of a revision may know.
    pub fn container(&self, revision: &Revision, instance: &str) -> Guest {
        let state = self.api.world().state();
        let project = revision.name.project.to_string();
        let project_number = number_of(&state, &project);
        let default = || format!("{project_number}-compute@developer.gserviceaccount.com");
        let account = revision.service_account.as_ref().map_or_else(default, ToString::to_string);
        let region = revision.name.region().unwrap_or_default().to_owned();
        Guest {
            project,
            project_number,
            project_attributes: Vec::new(),
            accounts: vec![account],
            kind: GuestKind::Container { id: instance.to_owned(), region },
        }
    }

    /// What the VM with this address in the network may know.
    pub fn machine_at(&self, network: &ResourceName, address: Ipv4Addr) -> Option<Guest> {
        let state = self.api.world().state();
        let inventory = state.compiled.inventory();
        let is_there = |instance: &&Arc<Instance>| {
            let mut interfaces = instance.interfaces.iter();
            interfaces.any(|i| i.network == *network && i.address == Some(address))
        };
        let instance = inventory.instances.values().find(is_there)?;
        let plan = state.compiled.plan.networks.get(network)?;
        let hostname = &plan.instances.get(&instance.name)?.hostname;
        let pairs = |items: &[(model::Name, String)]| {
            items.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()
        };
        let project = instance.name.project.to_string();
        let declared = inventory.projects.get(&ResourceName::project(&project));
        let document = state.get(&instance.name.to_string());
        let machine_type = document.as_ref().and_then(|document| document["machineType"].as_str());
        let zone = match &instance.name.location {
            model::Location::Zone(zone) => zone.to_string(),
            _ => String::new(),
        };
        let interfaces = instance.interfaces.iter();
        let machine = Machine {
            id: instance.id,
            name: instance.name.name.to_string(),
            hostname: hostname.clone(),
            zone,
            machine_type: last_segment(machine_type.unwrap_or_default()).to_owned(),
            tags: instance.tags.iter().map(ToString::to_string).collect(),
            attributes: pairs(&instance.metadata),
            interfaces: interfaces
                .filter_map(|i| Some((i.address?, i.network.name.to_string())))
                .collect(),
        };
        let attributes = declared.map(|project| &project.common_instance_metadata[..]);
        Some(Guest {
            project_number: declared.map_or(0, |project| project.number),
            project_attributes: pairs(attributes.unwrap_or_default()),
            accounts: instance.service_accounts.iter().map(ToString::to_string).collect(),
            kind: GuestKind::Machine(Box::new(machine)),
            project,
        })
    }

    fn now(&self) -> OffsetDateTime {
        self.api.surroundings().now()
    }

    /// Whether the account still exists: tokens of one that is gone are good for nothing.
    fn is_account(&self, email: &str) -> bool {
        self.api.world().state().is_account(email)
    }

    fn access_token(&self, email: &str) -> Value {
        let principal = Principal { email: email.to_owned(), is_service_account: true };
        let token = self.identity.access_token(&principal, ACCESS_TOKEN_SECONDS, self.now());
        // Google's own answer is of a token that is some moments old already.
        let seconds = ACCESS_TOKEN_SECONDS - 1;
        serde_json::json!({ "access_token": token, "expires_in": seconds, "token_type": "Bearer" })
    }

    fn identity_token(&self, email: &str, audience: &str) -> Result<String, ApiError> {
        self.identity.id_token(email, audience, self.now())
    }
}

fn number_of(state: &State, project: &str) -> u64 {
    let projects = &state.compiled.inventory().projects;
    projects.get(&ResourceName::project(project)).map_or(0, |project| project.number)
}

fn last_segment(link: &str) -> &str {
    link.rsplit('/').next().unwrap_or(link)
}

#[cfg(test)]
mod tests;
