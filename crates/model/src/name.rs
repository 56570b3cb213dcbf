//! How a resource is called: project, location, kind and name, as one typed value.
//!
//! Its text form is Google's relative resource path, `projects/P/regions/R/urlMaps/M`, which is also the
//! key of the resource's document. Comparing two [`ResourceName`]s compares exactly what Google's links
//! identify: the scheme, host and API version in front of `projects/` never matter.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A short, shared, immutable string: a resource's own name, a project, a region, a tag.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Name {
        Name("".into())
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Name {
        Name(text.into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Name {
        Name(text.into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, out)
    }
}

/// Where a resource lives: `global`, `regions/R`, `zones/Z`, or `locations/L` for the APIs that say so.
///
/// `Region` stands for Compute's `regions/R` and for the `locations/R` of Cloud Run and Certificate
/// Manager; which word is written follows from the [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// Compute's `global`, and everything that has no location at all (a project).
    Global,
    /// A region such as `us-west1`.
    Region(Name),
    /// A zone such as `us-west1-a`.
    Zone(Name),
}

impl Location {
    /// The region this location is in: of a zone, the part before its last hyphen; none for `global`.
    pub fn region(&self) -> Option<&str> {
        match self {
            Location::Global => None,
            Location::Region(region) => Some(region),
            Location::Zone(zone) => zone.rsplit_once('-').map(|(region, _)| region),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $collection:literal $word:literal $scope:ident;)*) => {
        /// Every kind of resource Tidegate keeps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// All kinds, in declaration order.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind,)*];

            /// The collection's word in a resource path, such as `urlMaps`.
            pub fn collection(self) -> &'static str {
                match self { $(Kind::$kind => $collection,)* }
            }

            /// The word Google's error texts use for the kind, such as `url_map`.
            pub fn word(self) -> &'static str {
                match self { $(Kind::$kind => $word,)* }
            }

            /// The family of paths this kind's names are written in.
            pub fn scope(self) -> Scope {
                match self { $(Kind::$kind => Scope::$scope,)* }
            }
        }
    };
}

/// The family of resource paths a [`Kind`] belongs to, which decides how its location is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `projects/P`: the project itself.
    Project,
    /// Compute: `global`, `regions/R` or `zones/Z` in front of the collection.
    Compute,
    /// Cloud Run, Certificate Manager and their like: `locations/L` in front of the collection.
    Located,
    /// `projects/P/COLLECTION/NAME`, with no location.
    Plain,
}

kinds! {
    /// A project; its name is the project id.
    Project "projects" "project" Project;
    /// A VPC network.
    Network "networks" "network" Compute;
    /// A subnet of a network, proxy-only ones included.
    Subnetwork "subnetworks" "subnetwork" Compute;
    /// A reserved address.
    Address "addresses" "address" Compute;
    /// A VPC firewall rule.
    Firewall "firewalls" "firewall" Compute;
    /// A route of a network.
    Route "routes" "route" Compute;
    /// A client VM.
    Instance "instances" "instance" Compute;
    /// A network endpoint group.
    NetworkEndpointGroup "networkEndpointGroups" "network_endpoint_group" Compute;
    /// A backend service.
    BackendService "backendServices" "backend_service" Compute;
    /// A URL map.
    UrlMap "urlMaps" "url_map" Compute;
    /// A target HTTP proxy.
    TargetHttpProxy "targetHttpProxies" "target_http_proxy" Compute;
    /// A target HTTPS proxy.
    TargetHttpsProxy "targetHttpsProxies" "target_https_proxy" Compute;
    /// A Compute Engine SSL certificate.
    SslCertificate "sslCertificates" "ssl_certificate" Compute;
    /// An SSL policy.
    SslPolicy "sslPolicies" "ssl_policy" Compute;
    /// A health check.
    HealthCheck "healthChecks" "health_check" Compute;
    /// A forwarding rule.
    ForwardingRule "forwardingRules" "forwarding_rule" Compute;
    /// A Certificate Manager certificate.
    Certificate "certificates" "certificate" Located;
    /// A Cloud Run service.
    Service "services" "service" Located;
    /// A Cloud Run revision.
    Revision "revisions" "revision" Located;
    /// An IAM service account; its name is its e-mail address.
    ServiceAccount "serviceAccounts" "service_account" Plain;
}

/// The full name of one resource. Its `Display` is Google's relative path, `projects/…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName {
    /// The project id (never the number).
    pub project: Name,
    /// Where it lives.
    pub location: Location,
    /// What it is.
    pub kind: Kind,
    /// Its own name, the last segment of the path.
    pub name: Name,
}

impl ResourceName {
    /// The name of a project itself.
    pub fn project(project: &str) -> ResourceName {
        let name = Name::from(project);
        ResourceName {
            project: name.clone(),
            location: Location::Global,
            kind: Kind::Project,
            name,
        }
    }

    /// A global resource of `project`.
    pub fn global(project: &str, kind: Kind, name: &str) -> ResourceName {
        let location = Location::Global;
        ResourceName { project: project.into(), location, kind, name: name.into() }
    }

    /// A regional resource of `project`, or one of a `locations/R`.
    pub fn regional(project: &str, region: &str, kind: Kind, name: &str) -> ResourceName {
        let location = Location::Region(region.into());
        ResourceName { project: project.into(), location, kind, name: name.into() }
    }

    /// A zonal resource of `project`.
    pub fn zonal(project: &str, zone: &str, kind: Kind, name: &str) -> ResourceName {
        let location = Location::Zone(zone.into());
        ResourceName { project: project.into(), location, kind, name: name.into() }
    }

    /// The region the resource is in, if it is in one.
    pub fn region(&self) -> Option<&str> {
        self.location.region()
    }

    /// Reads a relative path (`projects/P/regions/R/urlMaps/M`), or any URL that ends in one; what
    /// precedes `projects/` is ignored, as Google's servers do. `None` when it is not one of our kinds.
    pub fn parse(link: &str) -> Option<ResourceName> {
        let start = if link.starts_with("projects/") { 0 } else { link.find("/projects/")? + 1 };
        let segments: Vec<&str> = link[start..].split('/').collect();
        let by_collection = |word: &str| Kind::ALL.iter().copied().find(|k| k.collection() == word);
        if segments.iter().any(|segment| segment.is_empty()) {
            return None;
        }
        let (project, location, kind, name) = match segments[..] {
            ["projects", project] => return Some(ResourceName::project(project)),
            ["projects", project, "global", collection, name] => {
                (project, Location::Global, by_collection(collection)?, name)
            }
            ["projects", project, "regions" | "locations", region, collection, name] => {
                (project, Location::Region(region.into()), by_collection(collection)?, name)
            }
            ["projects", project, "zones", zone, collection, name] => {
                (project, Location::Zone(zone.into()), by_collection(collection)?, name)
            }
            ["projects", project, collection, name] => {
                (project, Location::Global, by_collection(collection)?, name)
            }
            _ => return None,
        };
        Some(ResourceName { project: project.into(), location, kind, name: name.into() })
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "projects/{}", self.project)?;
        match (self.kind.scope(), &self.location) {
            (Scope::Project, _) => return Ok(()),
            (Scope::Plain, _) => {}
            (Scope::Located, Location::Region(location)) => write!(out, "/locations/{location}")?,
            (Scope::Located, _) => out.write_str("/locations/global")?,
            (Scope::Compute, Location::Global) => out.write_str("/global")?,
            (Scope::Compute, Location::Region(region)) => write!(out, "/regions/{region}")?,
            (Scope::Compute, Location::Zone(zone)) => write!(out, "/zones/{zone}")?,
        }
        write!(out, "/{}/{}", self.kind.collection(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_any_host_and_its_path_are_the_same_name() {
        for link in [
            "https://www.googleapis.com/compute/v1/projects/p/regions/us-west1/urlMaps/m",
            "https://compute.googleapis.com/compute/v1/projects/p/regions/us-west1/urlMaps/m",
            "projects/p/regions/us-west1/urlMaps/m",
        ] {
            let name = ResourceName::parse(link).expect(link);
            assert_eq!(name.to_string(), "projects/p/regions/us-west1/urlMaps/m");
        }
    }

    #[test]
    fn every_scope_is_written_and_read_back() {
        for path in [
            "projects/p",
            "projects/p/global/networks/n",
            "projects/p/zones/us-west1-a/instances/vm",
            "projects/p/locations/us-west1/services/hello",
            "projects/p/serviceAccounts/a@p.iam.gserviceaccount.com",
        ] {
            assert_eq!(ResourceName::parse(path).expect(path).to_string(), path);
        }
    }

    #[test]
    fn what_is_not_a_resource_has_no_name() {
        for path in [
            "",
            "projects",
            "projects/p/regions/r/urlMaps",
            "projects/p/global/cats/x",
            "projects//global/networks/n",
        ] {
            assert_eq!(ResourceName::parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_zone_knows_its_region() {
        assert_eq!(Location::Zone("us-west1-a".into()).region(), Some("us-west1"));
    }
}
