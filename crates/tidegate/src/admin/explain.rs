//! The decision about a request, told by the plan that serves.

use super::{Admin, read_body, required};
use crate::question::Question;
use api::{ApiError, Reason};
use plan::Plan;
use plan::fleet::{Arrival, Caller, explain_own_address};
use plan::load_balancer::Listener;
use plan::routing::ORDINARY_DICE;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Answers `{url, method, headers[], network, address, project}` with the forwarding rule and the
/// explanation, as text and as fields. Without a network and an address, a `run.app` URL is a request to the
/// service's own address.
pub(super) fn answer(admin: &Admin, body: &[u8]) -> Result<Value, ApiError> {
    let body = read_body(body)?;
    let headers: Vec<String> = body["headers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|header| header.as_str().map(str::to_owned))
        .collect();
    let method = body["method"].as_str().unwrap_or("GET");
    let question = Question::new(required(&body, "url")?, method, &headers)
        .map_err(|error| ApiError::new(Reason::Invalid, format!("{error:#}")))?;
    let address = match body["address"].as_str() {
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::new(Reason::Invalid, format!("`{text}` is not an IPv4 address"))
        })?),
        None => question.literal_address(),
    };
    let state = admin.api.world().state();
    let plan = &state.compiled.plan;
    let names_a_place = address.is_some() || body["network"].is_string();
    if question.is_for_run_app() && !names_a_place {
        let host = question.head().authority;
        let told = explain_own_address(&plan.fleet, host, Arrival::Outside, Caller::Anonymous);
        return Ok(json!({
            "planNumber": plan.number,
            "text": told.to_string(),
            "ownAddress": told,
        }));
    }
    let listener = listener(plan, &body, address, question.port())?;
    let explanation =
        listener.url_map.explain(&plan.fleet, &question.head(), Caller::Anonymous, ORDINARY_DICE);
    let scheme = if listener.tls.is_some() { "HTTPS" } else { "HTTP" };
    let heading = format!(
        "{}:{} in network {} is {} ({scheme}), target {}",
        listener.address, listener.port, listener.network.name, listener.name, listener.target.name,
    );
    Ok(json!({
        "planNumber": plan.number,
        "forwardingRule": listener.name.to_string(),
        "target": listener.target.to_string(),
        "explanation": explanation,
        "text": format!("{heading}\n{explanation}"),
    }))
}

/// Answers `{document}`, a URL map as it would be imported, with what is hardly meant in it: also what only
/// the backend services and endpoint groups of this server show.
pub(super) fn lint(admin: &Admin, body: &[u8]) -> Result<Value, ApiError> {
    let body = read_body(body)?;
    let (map, _) = api::compute::url_maps::parse_document(required(&body, "document")?)
        .map_err(|error| ApiError::new(Reason::Invalid, error.to_string()))?;
    let state = admin.api.world().state();
    let findings = plan::routing::lint_within(&Arc::new(map), state.compiled.inventory());
    let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Ok(json!({ "findings": findings, "text": text.join("\n") }))
}

/// The forwarding rule a client would reach, or a sentence about those there are.
fn listener<'p>(
    plan: &'p Plan,
    body: &Value,
    address: Option<Ipv4Addr>,
    port: u16,
) -> Result<&'p Arc<Listener>, ApiError> {
    let fits = |field: &str, value: &str| body[field].as_str().is_none_or(|asked| asked == value);
    let candidates: Vec<&Arc<Listener>> = plan
        .listeners
        .values()
        .filter(|listener| fits("network", &listener.network.name))
        .filter(|listener| fits("project", &listener.name.project))
        .filter(|listener| address.is_none_or(|address| listener.address == address))
        .filter(|listener| listener.port == port)
        .collect();
    match candidates[..] {
        [one] => Ok(one),
        [] => {
            let known = plan.listeners.values().map(|listener| {
                format!("{}:{} in {}", listener.address, listener.port, listener.network.name)
            });
            let known: Vec<String> = known.take(10).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let at = address.map_or_else(String::new, |address| format!(" at {address}"));
            let message = format!(
                "No forwarding rule answers{at} on port {port}. Forwarding rules that serve: {known}."
            );
            Err(ApiError::new(Reason::NotFound, message))
        }
        [first, second, ..] => {
            let message = format!(
                "More than one forwarding rule answers on port {port}, such as {} at {} and {} at {}: \
                 say which with the network and the address.",
                first.name.name, first.address, second.name.name, second.address
            );
            Err(ApiError::new(Reason::Invalid, message))
        }
    }
}
