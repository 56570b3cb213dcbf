//! Everything that is declared, in one persistent value.
//!
//! Maps share structure with their earlier versions, so the world as it would become is made by one
//! insertion into a clone that costs nothing, and two inventories that agree on a resource hold the very
//! same `Arc`: `Arc::ptr_eq` is how `plan::compile` sees what did not change.
//!
//! Invariant: a resource's key is its own `name`.

use crate::name::{Kind, ResourceName};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::sync::Arc;

/// Resources of one kind by name.
pub type Collection<T> = OrdMap<ResourceName, Arc<T>>;

/// One resource that differs between two worlds: added, replaced or removed.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it was, if it existed.
    pub before: Option<Resource>,
    /// What it is, if it still exists.
    pub after: Option<Resource>,
}

impl Change {
    /// The name of the resource that changed.
    pub fn name(&self) -> Option<&ResourceName> {
        self.after.as_ref().or(self.before.as_ref()).map(Resource::name)
    }
}

macro_rules! inventory {
    ($($(#[$doc:meta])* $field:ident: $kind:ident($type:ty);)*) => {
        /// The whole declared world at one moment.
        #[derive(Clone, Debug, Default)]
        pub struct Inventory {
            $($(#[$doc])* pub $field: Collection<$type>,)*
        }

        /// One resource of any kind.
        #[derive(Clone, Debug)]
        pub enum Resource { $($(#[$doc])* $kind(Arc<$type>),)* }

        impl Inventory {
            /// Puts a resource in the place of the one of its name, if any.
            pub fn insert(&mut self, resource: Resource) {
                match resource {
                    $(Resource::$kind(value) => {
                        self.$field.insert(value.name.clone(), value);
                    })*
                }
            }

            /// Takes a resource out; true if it was there.
            pub fn remove(&mut self, name: &ResourceName) -> bool {
                match name.kind {
                    $(Kind::$kind => self.$field.remove(name).is_some(),)*
                    #[allow(unreachable_patterns, reason = "kinds without a model type have nothing to remove")]
                    _ => false,
                }
            }

            /// Whether a resource of that name exists.
            pub fn contains(&self, name: &ResourceName) -> bool {
                match name.kind {
                    $(Kind::$kind => self.$field.contains_key(name),)*
                    #[allow(unreachable_patterns, reason = "kinds without a model type are never contained")]
                    _ => false,
                }
            }

            /// What it takes to get from this world to `next`. Shared structure is skipped, so the cost
            /// follows the size of the change and not the size of the world.
            pub fn changes(&self, next: &Inventory) -> Vec<Change> {
                let mut changes = Vec::new();
                $(for item in self.$field.diff(&next.$field) {
                    changes.push(match item {
                        DiffItem::Add(_, after) => {
                            Change { before: None, after: Some(Resource::$kind(after.clone())) }
                        }
                        DiffItem::Update { old: (_, before), new: (_, after) } => Change {
                            before: Some(Resource::$kind(before.clone())),
                            after: Some(Resource::$kind(after.clone())),
                        },
                        DiffItem::Remove(_, before) => {
                            Change { before: Some(Resource::$kind(before.clone())), after: None }
                        }
                    });
                })*
                changes
            }

            /// The resource of that name.
            pub fn get(&self, name: &ResourceName) -> Option<Resource> {
                match name.kind {
                    $(Kind::$kind => self.$field.get(name).cloned().map(Resource::$kind),)*
                    #[allow(unreachable_patterns, reason = "kinds without a model type are never found")]
                    _ => None,
                }
            }
        }

        impl Resource {
            /// The resource's name.
            pub fn name(&self) -> &ResourceName {
                match self { $(Resource::$kind(value) => &value.name,)* }
            }

            /// Every resource this one names, with the field that names it, as Google writes it.
            /// [`Resource::targets`] is cheaper where fields do not matter.
            pub fn references(&self) -> Vec<(String, ResourceName)> {
                match self { $(Resource::$kind(value) => value.references(),)* }
            }
        }
    };
}

impl Resource {
    /// Every resource this one names, each once and in order.
    pub fn targets(&self) -> Vec<ResourceName> {
        if let Resource::UrlMap(map) = self {
            return map.backend_services().into_iter().cloned().collect();
        }
        let mut targets: Vec<ResourceName> =
            self.references().into_iter().map(|(_, target)| target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }
}

// Each kind's struct has `pub name: ResourceName` and `fn references(&self) -> Vec<(String, ResourceName)>`.
inventory! {
    /// A project.
    projects: Project(crate::project::Project);
    /// A VPC network.
    networks: Network(crate::network::Network);
    /// A subnet.
    subnetworks: Subnetwork(crate::subnetwork::Subnetwork);
    /// A reserved address.
    addresses: Address(crate::address::Address);
    /// A firewall rule.
    firewalls: Firewall(crate::firewall::Firewall);
    /// A route.
    routes: Route(crate::route::Route);
    /// A client VM.
    instances: Instance(crate::instance::Instance);
    /// A network endpoint group.
    endpoint_groups: NetworkEndpointGroup(crate::endpoint_group::EndpointGroup);
    /// A backend service.
    backend_services: BackendService(crate::backend_service::BackendService);
    /// A URL map.
    url_maps: UrlMap(crate::url_map::UrlMap);
    /// A target HTTP proxy.
    target_http_proxies: TargetHttpProxy(crate::target_proxy::TargetHttpProxy);
    /// A target HTTPS proxy.
    target_https_proxies: TargetHttpsProxy(crate::target_proxy::TargetHttpsProxy);
    /// A Compute Engine SSL certificate.
    ssl_certificates: SslCertificate(crate::certificate::Certificate);
    /// A Certificate Manager certificate.
    certificates: Certificate(crate::certificate::Certificate);
    /// An SSL policy.
    ssl_policies: SslPolicy(crate::ssl_policy::SslPolicy);
    /// A health check.
    health_checks: HealthCheck(crate::health_check::HealthCheck);
    /// A forwarding rule.
    forwarding_rules: ForwardingRule(crate::forwarding_rule::ForwardingRule);
    /// A Cloud Run service.
    services: Service(crate::run::Service);
    /// A Cloud Run revision.
    revisions: Revision(crate::run::Revision);
}
