//! Google's predefined roles: what each lets its members do.
//!
//! Pure tables. A role is a list of permission patterns; `compute.*` stands for every permission
//! of Compute. Roles that are not listed exist and grant nothing here.

/// One predefined role.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    /// Permissions, or all those with a prefix when they end in `*`.
    grants: &'static [&'static str],
    /// Exceptions from the patterns above.
    denies: &'static [&'static str],
}

/// Every role with a meaning here.
pub(crate) static ROLES: &[Role] = &[
    Role {
        name: "roles/owner",
        title: "Owner",
        description: "Full access to most resources.",
        grants: &["*"],
        denies: &[],
    },
    Role {
        name: "roles/editor",
        title: "Editor",
        description: "View, create, update, and delete most resources.",
        grants: &["*"],
        denies: &["*.setIamPolicy"],
    },
    Role {
        name: "roles/viewer",
        title: "Viewer",
        description: "View most resources.",
        grants: &["*.get", "*.list", "*.getIamPolicy"],
        denies: &[],
    },
    Role {
        name: "roles/run.admin",
        title: "Cloud Run Admin",
        description: "Full control over all Cloud Run resources.",
        grants: &["run.*", "resourcemanager.projects.get", "resourcemanager.projects.list"],
        denies: &[],
    },
    Role {
        name: "roles/run.developer",
        title: "Cloud Run Developer",
        description: "Read and write access to all Cloud Run resources.",
        grants: &["run.*", "resourcemanager.projects.get", "resourcemanager.projects.list"],
        denies: &["run.services.setIamPolicy", "run.jobs.setIamPolicy"],
    },
    Role {
        name: "roles/run.viewer",
        title: "Cloud Run Viewer",
        description: "Can view the state of all Cloud Run resources, including IAM policies.",
        grants: &["run.*.get", "run.*.list", "run.*.getIamPolicy"],
        denies: &[],
    },
    Role {
        name: "roles/cloudfunctions.developer",
        title: "Cloud Functions Developer",
        description: "Read and write access to all functions-related resources.",
        grants: &["cloudfunctions.*", "cloudbuild.builds.*", "run.*", "storage.objects.create"],
        denies: &["*.setIamPolicy"],
    },
    Role {
        name: "roles/run.sourceDeveloper",
        title: "Cloud Run Source Developer",
        description: "Deploy and manage Cloud Run source deployed resources.",
        grants: &[
            "run.*",
            "cloudbuild.builds.get",
            "cloudbuild.builds.list",
            "artifactregistry.repositories.*",
            "storage.buckets.*",
            "storage.objects.*",
        ],
        denies: &["*.setIamPolicy"],
    },
    Role {
        name: "roles/run.invoker",
        title: "Cloud Run Invoker",
        description: "Can invoke Cloud Run services and execute Cloud Run jobs.",
        grants: &["run.routes.invoke", "run.jobs.run", "run.executions.cancel"],
        denies: &[],
    },
    Role {
        name: "roles/run.servicesInvoker",
        title: "Cloud Run Services Invoker",
        description: "Can invoke Cloud Run services.",
        grants: &["run.routes.invoke"],
        denies: &[],
    },
    Role {
        name: "roles/compute.networkAdmin",
        title: "Compute Network Admin",
        description: "Full control of Compute Engine networking resources.",
        grants: &[
            "compute.addresses.*",
            "compute.networks.*",
            "compute.subnetworks.*",
            "compute.routes.*",
            "compute.regionBackendServices.*",
            "compute.regionUrlMaps.*",
            "compute.regionTargetHttpProxies.*",
            "compute.regionTargetHttpsProxies.*",
            "compute.regionSslPolicies.*",
            "compute.regionHealthChecks.*",
            "compute.forwardingRules.*",
            "compute.firewalls.get",
            "compute.firewalls.list",
            "compute.instances.get",
            "compute.instances.list",
            "compute.instances.use",
            "compute.regionNetworkEndpointGroups.get",
            "compute.regionNetworkEndpointGroups.list",
            "compute.regionNetworkEndpointGroups.use",
            "compute.regionSecurityPolicies.get",
            "compute.regionSecurityPolicies.list",
            "compute.regionSecurityPolicies.use",
            "compute.regionSslCertificates.get",
            "compute.regionSslCertificates.list",
            "compute.regionOperations.get",
            "compute.regionOperations.list",
            "compute.globalOperations.get",
            "compute.globalOperations.list",
            "compute.zoneOperations.get",
            "compute.zoneOperations.list",
            "compute.projects.get",
            "compute.regions.*",
            "compute.zones.*",
        ],
        denies: &["*.setIamPolicy"],
    },
    Role {
        name: "roles/compute.instanceAdmin.v1",
        title: "Compute Instance Admin (v1)",
        description: "Full control of Compute Engine instances, instance groups, disks, snapshots, and images.",
        grants: &[
            "compute.instances.*",
            "compute.disks.*",
            "compute.images.*",
            "compute.snapshots.*",
            "compute.machineTypes.*",
            "compute.networkEndpointGroups.*",
            "compute.regionNetworkEndpointGroups.*",
            "compute.addresses.createInternal",
            "compute.addresses.deleteInternal",
            "compute.addresses.get",
            "compute.addresses.list",
            "compute.addresses.use",
            "compute.addresses.useInternal",
            "compute.networks.get",
            "compute.networks.list",
            "compute.networks.use",
            "compute.subnetworks.get",
            "compute.subnetworks.list",
            "compute.subnetworks.use",
            "compute.subnetworks.useExternalIp",
            "compute.regionSslCertificates.get",
            "compute.regionSslCertificates.list",
            "compute.projects.get",
            "compute.projects.setCommonInstanceMetadata",
            "compute.regions.*",
            "compute.zones.*",
            "compute.regionOperations.*",
            "compute.globalOperations.*",
            "compute.zoneOperations.*",
        ],
        denies: &[],
    },
    Role {
        name: "roles/compute.securityAdmin",
        title: "Compute Security Admin",
        description: "Permissions to create, modify, and delete firewall rules and SSL certificates.",
        grants: &[
            "compute.firewalls.*",
            "compute.networks.get",
            "compute.networks.list",
            "compute.networks.updatePolicy",
            "compute.regionSslCertificates.*",
            "compute.regionSslPolicies.*",
            "compute.regionSecurityPolicies.*",
            "compute.globalOperations.get",
            "compute.globalOperations.list",
            "compute.projects.get",
            "compute.regions.*",
            "compute.zones.*",
        ],
        denies: &[],
    },
    Role {
        name: "roles/compute.admin",
        title: "Compute Admin",
        description: "Full control of all Compute Engine resources.",
        grants: &["compute.*", "resourcemanager.projects.get", "resourcemanager.projects.list"],
        denies: &[],
    },
    Role {
        name: "roles/compute.loadBalancerAdmin",
        title: "Compute Load Balancer Admin",
        description: "Permissions to create, modify, and delete load balancers and associate resources.",
        grants: &[
            "compute.addresses.*",
            "compute.forwardingRules.*",
            "compute.regionBackendServices.*",
            "compute.regionHealthChecks.*",
            "compute.regionNetworkEndpointGroups.*",
            "compute.regionSecurityPolicies.get",
            "compute.regionSecurityPolicies.list",
            "compute.regionSecurityPolicies.use",
            "compute.regionSslCertificates.*",
            "compute.regionSslPolicies.*",
            "compute.regionTargetHttpProxies.*",
            "compute.regionTargetHttpsProxies.*",
            "compute.regionUrlMaps.*",
            "compute.networks.get",
            "compute.networks.list",
            "compute.networks.use",
            "compute.subnetworks.get",
            "compute.subnetworks.list",
            "compute.subnetworks.use",
            "compute.projects.get",
            "compute.regions.*",
            "compute.zones.*",
        ],
        denies: &[],
    },
    Role {
        name: "roles/iam.securityAdmin",
        title: "Security Admin",
        description: "Permissions to get and set any IAM policy.",
        grants: &["*.getIamPolicy", "*.setIamPolicy", "*.list", "iam.roles.get"],
        denies: &[],
    },
    Role {
        name: "roles/iam.serviceAccountUser",
        title: "Service Account User",
        description: "Run operations as the service account.",
        grants: &[
            "iam.serviceAccounts.actAs",
            "iam.serviceAccounts.get",
            "iam.serviceAccounts.list",
        ],
        denies: &[],
    },
    Role {
        name: "roles/iam.serviceAccountTokenCreator",
        title: "Service Account Token Creator",
        description: "Impersonate service accounts (create OAuth2 access tokens, sign blobs or JWTs, etc).",
        grants: &[
            "iam.serviceAccounts.getAccessToken",
            "iam.serviceAccounts.getOpenIdToken",
            "iam.serviceAccounts.implicitDelegation",
            "iam.serviceAccounts.signBlob",
            "iam.serviceAccounts.signJwt",
        ],
        denies: &[],
    },
    Role {
        name: "roles/logging.viewer",
        title: "Logs Viewer",
        description: "Access to view logs, except for logs with private contents.",
        grants: &["logging.*.get", "logging.*.list"],
        denies: &[],
    },
];

/// The role of that name.
pub(crate) fn role(name: &str) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.name == name)
}

/// Whether the text is how roles are named: predefined, or a project's or organisation's own.
pub(crate) fn is_well_formed(name: &str) -> bool {
    let is_id = |id: &str| {
        !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    match name.split('/').collect::<Vec<_>>()[..] {
        ["roles", id] | ["projects" | "organizations", _, "roles", id] => is_id(id),
        _ => false,
    }
}

/// Whether a role grants a permission.
pub(crate) fn grants(name: &str, permission: &str) -> bool {
    let covers = |pattern: &&str| matches(pattern, permission);
    role(name).is_some_and(|role| role.grants.iter().any(covers) && !role.denies.iter().any(covers))
}

impl Role {
    /// The permissions that stand in the role without a pattern.
    pub(crate) fn listed_permissions(&self) -> impl Iterator<Item = &'static str> {
        self.grants.iter().copied().filter(|grant| !grant.contains('*'))
    }
}

/// `*` stands for any characters, dots included.
fn matches(pattern: &str, permission: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == permission,
        Some((before, after)) => {
            permission.len() >= before.len() + after.len()
                && permission.starts_with(before)
                && permission.ends_with(after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_how_tos_roles_grant_what_google_says_and_no_more() {
        for (role, permission, expected) in [
            ("roles/owner", "run.services.setIamPolicy", true),
            ("roles/editor", "run.services.create", true),
            ("roles/editor", "run.services.setIamPolicy", false),
            ("roles/viewer", "run.services.get", true),
            ("roles/viewer", "run.services.create", false),
            ("roles/run.admin", "run.services.setIamPolicy", true),
            ("roles/run.developer", "run.services.create", true),
            ("roles/run.developer", "run.services.setIamPolicy", false),
            ("roles/run.invoker", "run.routes.invoke", true),
            ("roles/run.invoker", "run.services.get", false),
            ("roles/compute.networkAdmin", "compute.regionUrlMaps.create", true),
            ("roles/compute.networkAdmin", "compute.firewalls.create", false),
            ("roles/compute.networkAdmin", "compute.regionNetworkEndpointGroups.create", false),
            ("roles/compute.networkAdmin", "compute.regionSslCertificates.create", false),
            ("roles/compute.instanceAdmin.v1", "compute.regionNetworkEndpointGroups.create", true),
            ("roles/compute.securityAdmin", "compute.regionSslCertificates.create", true),
            ("roles/iam.securityAdmin", "compute.regionSslCertificates.create", false),
            ("roles/iam.securityAdmin", "compute.regionSslCertificates.list", true),
            ("roles/nobody.knows", "run.services.get", false),
        ] {
            assert_eq!(grants(role, permission), expected, "{role} {permission}");
        }
    }
}
