//! A network endpoint group: which serverless service answers, by name or by URL mask.

use crate::name::{Name, ResourceName};

/// One network endpoint group (Compute `NetworkEndpointGroup`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointGroup {
    /// `projects/P/regions/R/networkEndpointGroups/G`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `networkEndpointType` with what belongs to it.
    pub endpoints: Endpoints,
}

/// What a group's endpoints are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// `SERVERLESS` with `cloudRun`: a Cloud Run service or a 2nd-generation function.
    CloudRun {
        /// `cloudRun.service`.
        service: Option<Name>,
        /// `cloudRun.tag`.
        tag: Option<Name>,
        /// `cloudRun.urlMask`.
        url_mask: Option<String>,
    },
    /// `SERVERLESS` with `cloudFunction`: 1st-generation functions, which an internal balancer refuses.
    CloudFunction,
    /// `SERVERLESS` with `appEngine`, which an internal balancer refuses.
    AppEngine,
}

impl EndpointGroup {
    /// A serverless group names its service without a reference: it may be deployed later.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}
