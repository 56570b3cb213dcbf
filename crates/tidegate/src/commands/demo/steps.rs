//! The how-to as data: what is called, with what body, and what is waited for.

use crate::client::Client;
use anyhow::Context;
use http::Method;
use model::{Kind, ResourceName};
use serde_json::{Value, json};

/// The region of the how-to's resources.
pub(super) const REGION: &str = "us-west1";
/// The zone of its client VM.
pub(super) const ZONE: &str = "us-west1-a";
/// The domain its certificate is for.
pub(super) const DOMAIN: &str = "test.example.com";
/// The quickstart's image.
const IMAGE: &str = "us-docker.pkg.dev/cloudrun/container/hello";

/// One step of the how-to.
pub(super) struct Step {
    /// What a person reads.
    pub(super) title: &'static str,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) body: Option<Value>,
    /// The resource the step makes.
    pub(super) name: &'static str,
    pub(super) wait: Wait,
}

/// What a step waits for after its call.
pub(super) enum Wait {
    /// The answer is enough.
    Nothing,
    /// The Compute operation it started.
    Operation,
    /// The Cloud Run service's `Ready` condition.
    Ready,
}

/// The how-to's resources in one project.
pub(super) struct World {
    project: String,
    ssh_keys: String,
    certificate_pem: String,
    private_key_pem: String,
}

impl World {
    /// The how-to in `project`, with a new self-signed certificate for its domain
    /// and a VM that lets the holder of `ssh_keys` in.
    pub(super) fn of(project: &str, ssh_keys: String) -> anyhow::Result<World> {
        let made = rcgen::generate_simple_self_signed([DOMAIN.to_owned()])
            .context("could not make a certificate")?;
        Ok(World {
            project: project.to_owned(),
            ssh_keys,
            certificate_pem: made.cert.pem(),
            private_key_pem: made.signing_key.serialize_pem(),
        })
    }

    /// The client VM.
    pub(super) fn vm(&self) -> ResourceName {
        ResourceName::zonal(&self.project, ZONE, Kind::Instance, "vm-client")
    }

    /// The address of the rule for `protocol`, `http` or `https`.
    pub(super) async fn address_of(
        &self,
        client: &Client,
        protocol: &str,
    ) -> anyhow::Result<String> {
        let rule =
            client.get(&self.regional(&format!("forwardingRules/hello-{protocol}-fr"))).await?;
        Ok(rule["IPAddress"].as_str().context("a forwarding rule without an address")?.to_owned())
    }

    /// Every step, in the how-to's order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = self.service();
        steps.extend(self.network());
        steps.extend(self.backend());
        steps.extend(self.frontend());
        steps.extend(self.client_vm());
        steps
    }

    fn service(&self) -> Vec<Step> {
        let project = &self.project;
        let annotations = json!({ "run.googleapis.com/ingress": "internal" });
        let service = json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": { "name": "hello", "namespace": project, "annotations": annotations },
            "spec": { "template": { "spec": { "containers": [{ "image": IMAGE }] } } },
        });
        let everyone = json!({
            "policy": { "bindings": [{ "role": "roles/run.invoker", "members": ["allUsers"] }] },
        });
        let run = format!("http://{REGION}-run.googleapis.com");
        let namespace = format!("{run}/apis/serving.knative.dev/v1/namespaces/{project}/services");
        let iam =
            format!("{run}/v1/projects/{project}/locations/{REGION}/services/hello:setIamPolicy");
        vec![
            Step {
                title: "Deploy the Cloud Run service hello",
                method: Method::POST,
                url: namespace,
                body: Some(service),
                name: "hello",
                wait: Wait::Ready,
            },
            Step {
                title: "Let everyone who can reach it invoke it",
                method: Method::POST,
                url: iam,
                body: Some(everyone),
                name: "hello",
                wait: Wait::Nothing,
            },
        ]
    }

    fn network(&self) -> Vec<Step> {
        let network = self.global_link("networks/lb-network");
        vec![
            self.insert(
                "Create the VPC network lb-network",
                self.global("networks"),
                json!({ "name": "lb-network", "autoCreateSubnetworks": false }),
            ),
            self.insert(
                "Create its subnet lb-subnet, 10.1.2.0/24",
                self.regional("subnetworks"),
                json!({ "name": "lb-subnet", "network": network, "ipCidrRange": "10.1.2.0/24" }),
            ),
            self.insert(
                "Create its proxy-only subnet, 10.129.0.0/23",
                self.regional("subnetworks"),
                json!({
                    "name": "proxy-only-subnet",
                    "network": network,
                    "ipCidrRange": "10.129.0.0/23",
                    "purpose": "REGIONAL_MANAGED_PROXY",
                    "role": "ACTIVE",
                }),
            ),
        ]
    }

    fn backend(&self) -> Vec<Step> {
        let group = self.regional_link("networkEndpointGroups/hello-neg");
        vec![
            self.insert(
                "Create the serverless NEG hello-neg",
                self.regional("networkEndpointGroups"),
                json!({
                    "name": "hello-neg",
                    "networkEndpointType": "SERVERLESS",
                    "cloudRun": { "service": "hello" },
                }),
            ),
            self.insert(
                "Create the backend service hello-bs with it",
                self.regional("backendServices"),
                json!({
                    "name": "hello-bs",
                    "loadBalancingScheme": "INTERNAL_MANAGED",
                    "protocol": "HTTP",
                    "backends": [{ "group": group }],
                }),
            ),
            self.insert(
                "Create the URL map hello-map",
                self.regional("urlMaps"),
                json!({
                    "name": "hello-map",
                    "defaultService": self.regional_link("backendServices/hello-bs"),
                }),
            ),
        ]
    }

    fn frontend(&self) -> Vec<Step> {
        let url_map = self.regional_link("urlMaps/hello-map");
        let rule = |name: &str, target: String, port: &str| {
            json!({
                "name": name,
                "loadBalancingScheme": "INTERNAL_MANAGED",
                "network": self.global_link("networks/lb-network"),
                "subnetwork": self.regional_link("subnetworks/lb-subnet"),
                "target": target,
                "portRange": port,
            })
        };
        let http = self.regional_link("targetHttpProxies/hello-http-proxy");
        let https = self.regional_link("targetHttpsProxies/hello-https-proxy");
        vec![
            self.insert(
                "Create the certificate hello-cert for test.example.com",
                self.regional("sslCertificates"),
                json!({
                    "name": "hello-cert",
                    "certificate": self.certificate_pem,
                    "privateKey": self.private_key_pem,
                }),
            ),
            self.insert(
                "Create the target HTTP proxy hello-http-proxy",
                self.regional("targetHttpProxies"),
                json!({ "name": "hello-http-proxy", "urlMap": url_map }),
            ),
            self.insert(
                "Create the target HTTPS proxy hello-https-proxy",
                self.regional("targetHttpsProxies"),
                json!({
                    "name": "hello-https-proxy",
                    "urlMap": url_map,
                    "sslCertificates": [self.regional_link("sslCertificates/hello-cert")],
                }),
            ),
            self.insert(
                "Create the forwarding rule hello-http-fr on port 80",
                self.regional("forwardingRules"),
                rule("hello-http-fr", http, "80"),
            ),
            self.insert(
                "Create the forwarding rule hello-https-fr on port 443",
                self.regional("forwardingRules"),
                rule("hello-https-fr", https, "443"),
            ),
        ]
    }

    fn client_vm(&self) -> Vec<Step> {
        let project = &self.project;
        let source = "projects/debian-cloud/global/images/family/debian-12";
        vec![
            self.insert(
                "Create the client VM vm-client",
                format!("{COMPUTE}/projects/{project}/zones/{ZONE}/instances"),
                json!({
                    "name": "vm-client",
                    "machineType": format!("projects/{project}/zones/{ZONE}/machineTypes/n1-standard-1"),
                    "disks": [{ "boot": true, "initializeParams": { "sourceImage": source } }],
                    "networkInterfaces": [{
                        "network": self.global_link("networks/lb-network"),
                        "subnetwork": self.regional_link("subnetworks/lb-subnet"),
                        "accessConfigs": [{ "name": "external-nat", "type": "ONE_TO_ONE_NAT" }],
                    }],
                    "metadata": { "items": [{ "key": "ssh-keys", "value": self.ssh_keys }] },
                    "tags": { "items": ["allow-ssh"] },
                }),
            ),
            self.insert(
                "Create the firewall rule fw-allow-ssh",
                self.global("firewalls"),
                json!({
                    "name": "fw-allow-ssh",
                    "network": self.global_link("networks/lb-network"),
                    "direction": "INGRESS",
                    "targetTags": ["allow-ssh"],
                    "allowed": [{ "IPProtocol": "tcp", "ports": ["22"] }],
                }),
            ),
        ]
    }

    fn insert(&self, title: &'static str, url: String, body: Value) -> Step {
        let wait = Wait::Operation;
        Step { title, method: Method::POST, url, body: Some(body), name: "", wait }
    }

    fn global(&self, path: &str) -> String {
        format!("{COMPUTE}/projects/{}/global/{path}", self.project)
    }

    fn regional(&self, path: &str) -> String {
        format!("{COMPUTE}/projects/{}/regions/{REGION}/{path}", self.project)
    }

    fn global_link(&self, path: &str) -> String {
        format!("projects/{}/global/{path}", self.project)
    }

    fn regional_link(&self, path: &str) -> String {
        format!("projects/{}/regions/{REGION}/{path}", self.project)
    }
}

const COMPUTE: &str = "http://compute.googleapis.com/compute/v1";

/// What a page says it is: its first heading, else its title, else its first line.
pub(super) fn title_of(page: &str) -> String {
    let between = |open: &str, close: &str| {
        let start = page.find(open)? + open.len();
        let start = start + page[start..].find('>')? + 1;
        let end = start + page[start..].find(close)?;
        Some(page[start..end].trim().to_owned())
    };
    let first_line = || page.lines().next().unwrap_or_default().trim().to_owned();
    between("<h1", "</h1>").or_else(|| between("<title", "</title>")).unwrap_or_else(first_line)
}

#[cfg(test)]
mod tests {
    use super::title_of;

    #[test]
    fn a_page_is_told_by_its_heading_its_title_or_its_first_line() {
        for (page, title) in [
            ("<title>a</title><h1 class=\"x\">It's running!</h1>", "It's running!"),
            ("<html><title>Congratulations</title>", "Congratulations"),
            ("hello\nworld", "hello"),
            ("", ""),
        ] {
            assert_eq!(title_of(page), title);
        }
    }
}
