//! Services, revisions, configurations and routes as version 1 shows them.

use model::{Kind, ResourceName};
use plan::fleet::{Role, ServicePlan};
use serde_json::{Value, json};
use std::sync::Arc;

use super::document::{self, RevisionDocument, ServiceDocument, annotation, object, text};
use super::status::{self, Seen};
use super::{missing, names};
use crate::Api;
use crate::error::ApiError;
use crate::world::State;

/// A service with all that its status is derived from.
pub(crate) struct ServiceView {
    pub(crate) name: ResourceName,
    pub(crate) document: ServiceDocument,
    pub(crate) plan: Arc<ServicePlan>,
    pub(crate) latest: Option<RevisionDocument>,
    pub(crate) is_applied: bool,
}

impl ServiceView {
    /// The service of that name in this state.
    pub(crate) fn of(
        api: &Api,
        state: &State,
        name: &ResourceName,
    ) -> Result<ServiceView, ApiError> {
        let plan = state.compiled.plan.fleet.service(name).cloned();
        let (Some(kept), Some(plan)) = (state.documents.get(&*name.to_string()), plan) else {
            return Err(missing(name));
        };
        let mut revision_of_store = kept.revision;
        let newest = plan.latest_created.as_ref();
        let latest = match newest.and_then(|r| state.documents.get(&*r.name.to_string())) {
            Some(kept) => {
                revision_of_store = revision_of_store.max(kept.revision);
                Some(document::read_kept(kept)?)
            }
            None => None,
        };
        let is_applied = *api.observed().progress().borrow() >= revision_of_store;
        let document = document::read_kept(kept)?;
        Ok(ServiceView { name: name.clone(), document, plan, latest, is_applied })
    }

    /// What the status is derived from.
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen {
            service: &self.document,
            plan: &self.plan,
            latest: self.latest.as_ref(),
            is_applied: self.is_applied,
        }
    }

    /// The service as version 1 writes it.
    pub(crate) fn v1(&self) -> Value {
        let mut service = self.document.resource.clone();
        let ingress = annotation(&service, names::INGRESS).unwrap_or("all").to_owned();
        let urls = status::urls(&self.plan);
        let annotations = object(&mut service["metadata"], "annotations");
        annotations.insert(names::INGRESS_STATUS.into(), ingress.into());
        if !urls.is_empty() {
            annotations.insert(names::URLS.into(), json!(urls).to_string().into());
        }
        service["status"] = status::service_v1(self.seen());
        service
    }

    /// The configuration every service has: its template and the revisions it made.
    pub(crate) fn configuration_v1(&self) -> Value {
        let status = status::service_v1(self.seen());
        let ready = status::service_conditions(self.seen())
            .into_iter()
            .find(|condition| condition.kind == "ConfigurationsReady")
            .map(|mut condition| {
                condition.kind = "Ready";
                condition.to_v1()
            });
        let mut shown = json!({
            "apiVersion": names::API_VERSION,
            "kind": "Configuration",
            "metadata": self.part_metadata("configurations"),
            "spec": { "template": self.document.resource["spec"]["template"] },
            "status": {
                "observedGeneration": self.document.generation(),
                "conditions": ready.into_iter().collect::<Vec<_>>(),
            },
        });
        for key in ["latestCreatedRevisionName", "latestReadyRevisionName"] {
            if let Some(name) = status.get(key) {
                shown["status"][key] = name.clone();
            }
        }
        shown
    }

    /// The route every service has: where its traffic goes.
    pub(crate) fn route_v1(&self) -> Value {
        let status = status::service_v1(self.seen());
        let ready = status::service_conditions(self.seen())
            .into_iter()
            .find(|condition| condition.kind == "RoutesReady")
            .map(|mut condition| {
                condition.kind = "Ready";
                condition.to_v1()
            });
        let mut shown = json!({
            "apiVersion": names::API_VERSION,
            "kind": "Route",
            "metadata": self.part_metadata("routes"),
            "spec": { "traffic": self.document.resource["spec"]["traffic"] },
            "status": {
                "observedGeneration": self.document.generation(),
                "conditions": ready.into_iter().collect::<Vec<_>>(),
            },
        });
        for key in ["url", "address", "traffic"] {
            if let Some(value) = status.get(key) {
                shown["status"][key] = value.clone();
            }
        }
        shown
    }

    /// The metadata of a configuration or route, which belong to their service and share its name.
    fn part_metadata(&self, collection: &str) -> Value {
        let of_service = &self.document.resource["metadata"];
        let uid = text(of_service, "/uid");
        let namespace = text(of_service, "/namespace");
        let name = &self.name.name;
        json!({
            "name": name.as_str(),
            "namespace": namespace,
            "selfLink": format!("/apis/{}/namespaces/{namespace}/{collection}/{name}", names::API_VERSION),
            "uid": uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{uid}/{collection}").as_bytes()).to_string(),
            "resourceVersion": of_service["resourceVersion"],
            "generation": of_service["generation"],
            "creationTimestamp": of_service["creationTimestamp"],
            "labels": {
                names::SERVICE_LABEL: name.as_str(),
                names::SERVICE_UID_LABEL: uid,
                names::LOCATION_LABEL: self.name.region().unwrap_or_default(),
            },
            "ownerReferences": [{
                "apiVersion": names::API_VERSION,
                "kind": "Service",
                "name": name.as_str(),
                "uid": uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        })
    }
}

/// A revision and why it has instances, if it has any.
pub(crate) struct RevisionView {
    pub(crate) name: ResourceName,
    pub(crate) document: RevisionDocument,
    pub(crate) role: Option<Role>,
}

impl RevisionView {
    /// The revision of that name in this state.
    pub(crate) fn of(state: &State, name: &ResourceName) -> Result<RevisionView, ApiError> {
        let document: RevisionDocument = document::of(state, name)?;
        let role = Self::service_of(name, &document)
            .and_then(|service| state.compiled.plan.fleet.service(&service))
            .and_then(|plan| {
                let of_it = plan.deployments.iter().find(|d| d.revision.name == *name);
                of_it.map(|deployment| deployment.role)
            });
        Ok(RevisionView { name: name.clone(), document, role })
    }

    fn service_of(name: &ResourceName, document: &RevisionDocument) -> Option<ResourceName> {
        let region = name.region()?;
        Some(ResourceName::regional(&name.project, region, Kind::Service, &document.service))
    }

    /// The service it belongs to.
    pub(crate) fn service(&self) -> Option<ResourceName> {
        Self::service_of(&self.name, &self.document)
    }

    /// The revision as version 1 writes it.
    pub(crate) fn v1(&self) -> Value {
        let mut revision = self.document.resource.clone();
        revision["status"] = status::revision_v1(&self.document, self.role);
        revision
    }
}
