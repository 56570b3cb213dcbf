//! What becomes of a request to a service's own `run.app` address, in words.
//!
//! Invariant: the words come from the functions that serve: the address is read by [`FleetPlan::by_host`]
//! and the verdict is [`ServicePlan::admits`].

use super::{AccessVerdict, Arrival, Caller, FleetPlan, ServicePlan, Tagged};
use serde::Serialize;
use std::fmt;

/// Why a request to a `run.app` address is answered the way it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnAddress {
    /// The host that was asked for.
    pub host: String,
    /// The service it is an address of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The tag in front of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The revisions that answer, each with its share in percent.
    pub revisions: Vec<String>,
    /// Whether the service lets a request without a token in: `ingress` first, then access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// In a sentence.
    pub summary: String,
}

/// Explains a request of this caller, who came this way.
pub fn explain(fleet: &FleetPlan, host: &str, arrival: Arrival, caller: Caller<'_>) -> OwnAddress {
    let host = host.split_once(':').map_or(host, |(host, _)| host).to_ascii_lowercase();
    let mut told = OwnAddress { host: host.clone(), ..OwnAddress::default() };
    let Some(found) = fleet.by_host(&host) else {
        told.summary = "404: no service has this address".to_owned();
        return told;
    };
    let service = found.service;
    told.service = Some(service.name().to_string());
    told.tag = found.tag.map(str::to_owned);
    let missing = match found.tag.map(|tag| (tag, service.tagged(tag))) {
        None => {
            let parts = service.traffic_in_force.iter().filter(|part| part.percent > 0);
            told.revisions = parts
                .map(|part| format!("{} ({} %)", part.revision.name.name, part.percent))
                .collect();
            told.revisions.is_empty().then(|| "503: no revision is ready".to_owned())
        }
        Some((_, Tagged::Revision(revision))) => {
            told.revisions = vec![revision.name.name.to_string()];
            None
        }
        Some((tag, Tagged::NotReady)) => {
            Some(format!("503: the revision of tag {tag} is not ready"))
        }
        Some((tag, Tagged::NoSuchTag)) => Some(format!("404: the service has no tag {tag}")),
    };
    let (access, refused) = verdict(service, arrival, caller);
    told.access = Some(access);
    told.summary = missing.or(refused).unwrap_or_else(|| match &told.revisions[..] {
        [one] => format!("{one} answers"),
        several => format!("one of {} answers", several.join(", ")),
    });
    told
}

/// The verdict in a sentence, and what it makes of a request that is not admitted.
fn verdict(
    service: &ServicePlan,
    arrival: Arrival,
    caller: Caller<'_>,
) -> (String, Option<String>) {
    let ingress = service.declared.ingress.as_str();
    let verdict = service.admits(arrival, caller);
    let text = match verdict {
        AccessVerdict::Admitted if service.is_public() => {
            format!("admitted: ingress is {ingress}, and everybody may invoke the service")
        }
        AccessVerdict::Admitted => format!("admitted: ingress is {ingress}"),
        AccessVerdict::WrongIngress if service.declared.default_url_disabled => {
            "refused: the service's own addresses are turned off".to_owned()
        }
        AccessVerdict::WrongIngress => {
            format!("refused: ingress is {ingress}, and the request comes from outside")
        }
        AccessVerdict::Unauthenticated => {
            format!(
                "ingress {ingress} admits it, but roles/run.invoker and an identity token are needed"
            )
        }
        AccessVerdict::InvalidToken => "refused: the token is not good here".to_owned(),
        AccessVerdict::NotAllowed => "refused: the caller lacks roles/run.invoker".to_owned(),
    };
    let refused =
        verdict.refusal("/").map(|refusal| format!("{}: {}", refusal.status, refusal.log));
    (text, refused)
}

impl fmt::Display for OwnAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} is the address of a Cloud Run service itself", self.host)?;
        if let Some(service) = &self.service {
            writeln!(out, "  service    {service}")?;
        }
        if let Some(tag) = &self.tag {
            writeln!(out, "  tag        {tag}")?;
        }
        for revision in &self.revisions {
            writeln!(out, "  revision   {revision}")?;
        }
        if let Some(access) = &self.access {
            writeln!(out, "  access     {access}")?;
        }
        write!(out, "  answer     {}", self.summary)
    }
}
