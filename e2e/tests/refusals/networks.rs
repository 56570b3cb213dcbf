//! Refused networks, subnets, firewall rules, addresses, instances, endpoint groups, backend services.

use super::{EXISTS, INVALID, MALFORMED, NOT_FOUND, REQUIRED, Row, post, row};
use e2e::api::{Api, regional, zonal};
use e2e::howto;
use serde_json::{Value, json};

pub(super) fn networks(api: &Api) -> Vec<Row> {
    let networks = || post("global/networks".to_owned());
    let subnets = || post(regional("subnetworks"));
    let network = api.link("global/networks/lb-network");
    let subnet =
        |name: &str, range: &str| json!({ "name": name, "network": network, "ipCidrRange": range });
    let proxy_only = |range: &str, role: &str| {
        let mut body = subnet("second-proxy", range);
        body["purpose"] = "REGIONAL_MANAGED_PROXY".into();
        body["role"] = role.into();
        body
    };
    let named = |name: &str| json!({ "name": name, "autoCreateSubnetworks": false });
    let firewall = |extra: Value| {
        let mut body = json!({ "name": "rule", "network": network });
        for (field, value) in extra.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        body
    };
    let pattern = "Must be a match of regex";
    vec![
        row("a name in capitals", networks(), named("Lb-Network"), INVALID, pattern),
        row("a name that ends in a hyphen", networks(), named("lb-"), INVALID, pattern),
        row("a name of 64 characters", networks(), named(&"a".repeat(64)), INVALID, pattern),
        row("a name that is a path", networks(), named("../x"), INVALID, pattern),
        row(
            "no name",
            networks(),
            json!({ "autoCreateSubnetworks": false }),
            REQUIRED,
            "resource.name",
        ),
        row(
            "a network that exists",
            networks(),
            named("lb-network"),
            EXISTS,
            "global/networks/lb-network' already exists",
        ),
        row(
            "the same range",
            subnets(),
            subnet("again", "10.1.2.0/24"),
            INVALID,
            "conflicts with existing subnetwork 'lb-subnet'",
        ),
        row(
            "a range inside another",
            subnets(),
            subnet("inside", "10.1.2.64/26"),
            INVALID,
            "conflicts with existing subnetwork",
        ),
        row(
            "a range around another",
            subnets(),
            subnet("around", "10.0.0.0/8"),
            INVALID,
            "conflicts with existing subnetwork",
        ),
        row(
            "a range that is none",
            subnets(),
            subnet("none", "10.1.300.0/24"),
            INVALID,
            "resource.ipCidrRange",
        ),
        row(
            "a range with host bits",
            subnets(),
            subnet("bits", "10.7.0.1/24"),
            INVALID,
            "resource.ipCidrRange",
        ),
        row(
            "a range that is too narrow",
            subnets(),
            subnet("narrow", "10.7.0.0/30"),
            INVALID,
            "resource.ipCidrRange",
        ),
        row(
            "a loopback range",
            subnets(),
            subnet("loop", "127.1.0.0/24"),
            INVALID,
            "resource.ipCidrRange",
        ),
        row(
            "a link-local range",
            subnets(),
            subnet("local", "169.254.0.0/24"),
            INVALID,
            "resource.ipCidrRange",
        ),
        row(
            "a missing network",
            subnets(),
            json!({ "name": "lost", "network": api.link("global/networks/nowhere"), "ipCidrRange": "10.8.0.0/24" }),
            NOT_FOUND,
            "global/networks/nowhere' was not found",
        ),
        row(
            "a proxy-only subnet that is too narrow",
            subnets(),
            proxy_only("10.200.0.0/27", "BACKUP"),
            INVALID,
            "resource.ipCidrRange",
        ),
        row(
            "a second active proxy-only subnet",
            subnets(),
            proxy_only("10.200.0.0/24", "ACTIVE"),
            (400, "invalid"),
            "",
        ),
        row(
            "an unknown purpose",
            subnets(),
            json!({ "name": "odd", "network": network, "ipCidrRange": "10.8.0.0/24", "purpose": "FOR_FUN" }),
            MALFORMED,
            "purpose",
        ),
        row(
            "an unknown protocol",
            post("global/firewalls".to_owned()),
            firewall(json!({ "allowed": [{ "IPProtocol": "tpc", "ports": ["22"] }] })),
            INVALID,
            "IPProtocol",
        ),
        row(
            "a port past the last",
            post("global/firewalls".to_owned()),
            firewall(json!({ "allowed": [{ "IPProtocol": "tcp", "ports": ["70000"] }] })),
            INVALID,
            "ports",
        ),
        row(
            "a priority past the last",
            post("global/firewalls".to_owned()),
            firewall(json!({ "priority": 65536, "allowed": [{ "IPProtocol": "tcp" }] })),
            INVALID,
            "priority",
        ),
        row(
            "allowing and denying at once",
            post("global/firewalls".to_owned()),
            firewall(
                json!({ "allowed": [{ "IPProtocol": "tcp" }], "denied": [{ "IPProtocol": "udp" }] }),
            ),
            INVALID,
            "",
        ),
        row(
            "an address outside its subnet",
            post(regional("addresses")),
            json!({ "name": "out", "addressType": "INTERNAL", "address": "10.99.0.5",
                "subnetwork": api.link(&regional("subnetworks/lb-subnet")) }),
            INVALID,
            "address",
        ),
        row(
            "an instance in a proxy-only subnet",
            post(zonal("instances")),
            {
                let mut vm = howto::client_vm(
                    &network,
                    &api.link(&regional("subnetworks/proxy-only-subnet")),
                );
                vm["name"] = "misplaced".into();
                vm
            },
            INVALID,
            "ubnetwork",
        ),
        row(
            "an instance that exists",
            post(zonal("instances")),
            howto::client_vm(&network, &api.link(&regional("subnetworks/lb-subnet"))),
            EXISTS,
            "instances/vm-client' already exists",
        ),
    ]
}

pub(super) fn backends(api: &Api) -> Vec<Row> {
    let services = || post(regional("backendServices"));
    let groups = || post(regional("networkEndpointGroups"));
    let group = |name: &str| api.link(&regional(&format!("networkEndpointGroups/{name}")));
    let service = |extra: Value| {
        let mut body = json!({ "name": "bad-bs", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP" });
        for (field, value) in extra.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        body
    };
    let backed = |extra: Value| {
        let mut body = service(json!({ "backends": [{ "group": group("hello-neg") }] }));
        for (field, value) in extra.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        body
    };
    let masked = |mask: &str| json!({ "name": "bad-neg", "networkEndpointType": "SERVERLESS", "cloudRun": { "urlMask": mask } });
    vec![
        row(
            "a timeout with a serverless backend",
            services(),
            backed(json!({ "timeoutSec": 300 })),
            INVALID,
            "Timeout sec is not supported for a backend service with Serverless network endpoint groups.",
        ),
        row(
            "a port name with a serverless backend",
            services(),
            backed(json!({ "portName": "https" })),
            INVALID,
            "Port name is not supported for a backend service with Serverless network endpoint groups.",
        ),
        row(
            "a balancing mode for a serverless backend",
            services(),
            service(
                json!({ "backends": [{ "group": group("hello-neg"), "balancingMode": "RATE" }] }),
            ),
            INVALID,
            "Balancing mode is not supported for Serverless network endpoint groups.",
        ),
        row(
            "a health check with a serverless backend",
            services(),
            backed(json!({ "healthChecks": [api.link(&regional("healthChecks/none"))] })),
            (400, "invalid"),
            "",
        ),
        row(
            "two serverless backends",
            services(),
            service(
                json!({ "backends": [{ "group": group("hello-neg") }, { "group": group("helloworld-serverless-neg") }] }),
            ),
            INVALID,
            "",
        ),
        row(
            "a missing endpoint group",
            services(),
            service(json!({ "backends": [{ "group": group("nowhere") }] })),
            NOT_FOUND,
            "networkEndpointGroups/nowhere' was not found",
        ),
        row(
            "an unknown scheme",
            services(),
            service(json!({ "loadBalancingScheme": "SIDEWAYS" })),
            MALFORMED,
            "loadBalancingScheme",
        ),
        row(
            "a backend service that exists",
            services(),
            service(json!({ "name": "hello-bs" })),
            EXISTS,
            "backendServices/hello-bs' already exists",
        ),
        row(
            "a mask without a placeholder",
            groups(),
            masked("example.com/login"),
            INVALID,
            "urlMask",
        ),
        row(
            "a mask with a scheme",
            groups(),
            masked("https://example.com/<service>"),
            INVALID,
            "urlMask",
        ),
        row(
            "a mask with an unknown placeholder",
            groups(),
            masked("example.com/<version>"),
            INVALID,
            "urlMask",
        ),
        row(
            "a mask with one placeholder twice",
            groups(),
            masked("<service>.example.com/<service>"),
            INVALID,
            "urlMask",
        ),
        row(
            "neither service nor mask",
            groups(),
            json!({ "name": "bad-neg", "networkEndpointType": "SERVERLESS", "cloudRun": {} }),
            (400, "invalid"),
            "",
        ),
        row(
            "a serverless group with a network",
            groups(),
            json!({ "name": "bad-neg", "networkEndpointType": "SERVERLESS", "cloudRun": { "service": "hello" },
                "network": api.link("global/networks/lb-network") }),
            INVALID,
            "network",
        ),
        row(
            "a stale fingerprint",
            ("PUT", regional("backendServices/hello-bs")),
            {
                let mut body = service(json!({ "name": "hello-bs" }));
                body["fingerprint"] = "AAAAAAAAAAA=".into();
                body
            },
            (412, "conditionNotMet"),
            "ingerprint",
        ),
    ]
}
