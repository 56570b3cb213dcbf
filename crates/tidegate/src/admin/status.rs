//! What is served and what runs, as one JSON document.

use super::Admin;
use crate::joins::run_apps::listener_name;
use api::Observed;
use model::Kind;
use plan::Plan;
use plan::decision::Scheme;
use proxy::RuleStatus;
use serde_json::{Value, json};
use serverless::fleet::RevisionStatus;
use std::collections::HashMap;
use std::net::SocketAddrV4;

/// Everything a person would want to see of a server.
pub(super) async fn collect(admin: &Admin) -> Value {
    let state = admin.api.world().state();
    let plan = state.compiled.plan.clone();
    let rules: HashMap<_, _> =
        admin.applier.proxy.status().into_iter().map(|s| (s.rule.clone(), s)).collect();
    let fleet: HashMap<_, _> =
        admin.applier.fleet.status().await.into_iter().map(|s| (s.revision.clone(), s)).collect();
    let applied = *admin.applier.progress.progress().borrow();
    json!({
        "planNumber": plan.number,
        "appliedPlanNumber": applied,
        "forwardingRules": forwarding_rules(admin, &plan, &rules),
        "runApp": run_app(admin, &rules),
        "services": services(&plan, &fleet),
        "instances": instances(admin, &plan),
    })
}

fn forwarding_rules(
    admin: &Admin,
    plan: &Plan,
    rules: &HashMap<model::ResourceName, RuleStatus>,
) -> Vec<Value> {
    let state = admin.api.world().state();
    let declared = state.compiled.inventory().forwarding_rules.values();
    declared
        .map(|rule| {
            let listener = plan.listeners.get(&rule.name);
            let seen = rules.get(&rule.name);
            let problem = state.compiled.problems.iter().find(|p| p.resource == rule.name);
            let health = match (listener, seen, problem) {
                (Some(_), Some(_), _) => "SERVING".to_owned(),
                (Some(_), None, _) => "NOT LISTENING".to_owned(),
                (None, _, Some(problem)) => format!("REFUSED: {problem}"),
                (None, _, None) => "NOT SERVED: its target is not sound".to_owned(),
            };
            let protocol = match rule.target.kind {
                Kind::TargetHttpsProxy => "HTTPS",
                _ => "HTTP",
            };
            json!({
                "name": rule.name.to_string(),
                "network": rule.network.name.as_str(),
                "address": rule.address,
                "port": rule.port,
                "protocol": protocol,
                "target": rule.target.name.as_str(),
                "urlMap": listener.map(|listener| listener.url_map.name.name.as_str()),
                "health": health,
                "connections": seen.map_or(0, |seen| seen.connections),
                "requests": seen.map_or(0, |seen| seen.requests),
                "responsesByClass": seen.map(|seen| seen.responses_by_class),
            })
        })
        .collect()
}

/// Where services are answered under their own addresses, without and with TLS.
fn run_app(admin: &Admin, rules: &HashMap<model::ResourceName, RuleStatus>) -> Vec<Value> {
    let addresses = admin.run_app;
    let listeners = [(Scheme::Http, addresses.http), (Scheme::Https, addresses.https)];
    let listener = |(scheme, address): (Scheme, SocketAddrV4)| {
        let seen = rules.get(&listener_name(scheme));
        json!({
            "protocol": scheme.as_str().to_uppercase(),
            "address": address,
            "connections": seen.map_or(0, |seen| seen.connections),
            "requests": seen.map_or(0, |seen| seen.requests),
            "responsesByClass": seen.map(|seen| seen.responses_by_class),
        })
    };
    listeners.into_iter().map(listener).collect()
}

fn services(plan: &Plan, fleet: &HashMap<model::ResourceName, RevisionStatus>) -> Vec<Value> {
    let revision = |service: &plan::fleet::ServicePlan, revision: &plan::fleet::RevisionPlan| {
        let seen = fleet.get(&revision.name);
        let shares = service.traffic_in_force.iter().filter(|t| t.revision.id == revision.id);
        let tags: Vec<_> = shares.clone().filter_map(|t| Some(t.tag.as_ref()?.as_str())).collect();
        let outcome = revision.declared.outcome.as_ref();
        json!({
            "name": revision.name.name.as_str(),
            "ready": outcome.map(|outcome| outcome.ready),
            "message": outcome.map(|outcome| outcome.message.as_str()),
            "percent": shares.map(|t| t.percent).sum::<u32>(),
            "tags": tags,
            "instancesReady": seen.map_or(0, |seen| seen.instances_ready),
            "instancesStarting": seen.map_or(0, |seen| seen.instances_starting),
            "requestsInFlight": seen.map_or(0, |seen| seen.requests_in_flight),
            "requestsWaiting": seen.map_or(0, |seen| seen.requests_waiting),
            "lastFailure": seen.and_then(|seen| seen.last_failure.as_ref()).map(|(_, why)| why),
        })
    };
    plan.fleet
        .services()
        .map(|service| {
            let revisions = service.revisions.values().map(|plan| revision(service, plan));
            json!({
                "name": service.name().to_string(),
                "url": service.hosts.first().map(|host| format!("https://{host}")),
                "ingress": service.declared.ingress.as_str(),
                "isPublic": service.is_public(),
                "revisions": revisions.collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn instances(admin: &Admin, plan: &Plan) -> Vec<Value> {
    let networks = plan.networks.iter();
    let instances = networks
        .flat_map(|network| network.instances.values().map(move |instance| (network, instance)));
    instances
        .map(|(network, instance)| {
            let seen = admin.applier.vpc.observe(&instance.name);
            let status = admin.applier.progress.instance_status(&instance.name);
            json!({
                "name": instance.name.to_string(),
                "network": network.name.name.as_str(),
                "address": instance.address,
                "status": status.map(api::InstanceStatus::as_str),
                "failure": seen.and_then(|seen| seen.failure),
            })
        })
        .collect()
}
