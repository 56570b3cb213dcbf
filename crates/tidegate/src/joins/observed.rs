//! What has become of the plan, for operations: DONE is what every applier has reported.

use api::{InstanceStatus, Observed, Settled};
use model::{Kind, ResourceName};
use plan::Plan;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use vpc::Vpc;

/// The word operations give when the host could not carry out what was accepted.
const FAILED_CODE: &str = "INTERNAL_ERROR";

/// What the appliers report, and what is seen of instances.
#[derive(Debug)]
pub(crate) struct Progress {
    vpc: Vpc,
    applied: watch::Sender<u64>,
    latest: Mutex<Latest>,
}

/// The newest plan that was carried out, and what of it failed.
#[derive(Debug, Default)]
struct Latest {
    plan: Arc<Plan>,
    failures: HashMap<ResourceName, String>,
}

impl Progress {
    pub(crate) fn new(vpc: Vpc) -> Progress {
        Progress { vpc, applied: watch::Sender::new(0), latest: Mutex::default() }
    }

    /// Every applier has carried out `plan`, but for the resources in `failures`.
    pub(crate) fn report(&self, plan: Arc<Plan>, failures: HashMap<ResourceName, String>) {
        let number = plan.number;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Latest { plan, failures };
        self.applied.send_replace(number);
    }

    /// Tells those who wait whenever something seen of an instance changes.
    pub(crate) async fn follow_instances(self: Arc<Self>) {
        let mut changes = self.vpc.changes();
        while changes.changed().await.is_ok() {
            self.applied.send_modify(|_| {});
        }
    }

    fn instance_settled(&self, plan: &Plan, instance: &ResourceName) -> Settled {
        let wanted = plan.networks.iter().find_map(|network| network.instances.get(instance));
        let seen = self.vpc.observe(instance);
        let is_there = seen.is_some();
        let status = seen.as_ref().and_then(|seen| seen.status);
        let boot = seen.as_ref().map(|seen| seen.boot);
        let failure = seen.and_then(|seen| seen.failure);
        match (wanted, status) {
            (None, _) if is_there => Settled::Pending,
            (None, _) => Settled::Done,
            (Some(wanted), Some(vpc::InstanceStatus::Running)) if wanted.running => {
                if boot == Some(wanted.boot) { Settled::Done } else { Settled::Pending }
            }
            (Some(wanted), Some(vpc::InstanceStatus::Terminated)) => match failure {
                _ if !wanted.running => Settled::Done,
                Some(message) if boot == Some(wanted.boot) => {
                    Settled::Failed { code: FAILED_CODE.into(), message }
                }
                _ => Settled::Pending,
            },
            (Some(_), _) => Settled::Pending,
        }
    }
}

impl Observed for Progress {
    fn progress(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn settled(&self, revision: u64, target: &ResourceName) -> Settled {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.plan.number < revision {
            return Settled::Pending;
        }
        if let Some(message) = latest.failures.get(target) {
            return Settled::Failed { code: FAILED_CODE.into(), message: message.clone() };
        }
        match target.kind {
            Kind::Instance => self.instance_settled(&latest.plan, target),
            _ => Settled::Done,
        }
    }

    fn instance_status(&self, instance: &ResourceName) -> Option<InstanceStatus> {
        self.vpc.instance_status(instance).map(|status| match status {
            vpc::InstanceStatus::Provisioning => InstanceStatus::Provisioning,
            vpc::InstanceStatus::Staging => InstanceStatus::Staging,
            vpc::InstanceStatus::Running => InstanceStatus::Running,
            vpc::InstanceStatus::Stopping => InstanceStatus::Stopping,
            vpc::InstanceStatus::Terminated => InstanceStatus::Terminated,
        })
    }

    fn serial_output(&self, instance: &ResourceName) -> String {
        self.vpc.serial_output(instance).unwrap_or_default()
    }

    fn host_keys(&self, instance: &ResourceName) -> Vec<(String, String)> {
        self.vpc.host_keys(instance)
    }
}
