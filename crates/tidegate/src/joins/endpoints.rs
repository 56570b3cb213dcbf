//! Instances for the data plane: its questions put to the fleet.

use model::run::PortProtocol;
use plan::fleet::RevisionPlan;
use proxy::{Acquire, Dialing, Endpoints, InstanceId, Protocol};
use serverless::fleet::{Acquired, Fleet};
use std::sync::Arc;

/// Answers from `Fleet`.
#[derive(Debug)]
pub(crate) struct FleetEndpoints(pub(crate) Fleet);

/// A lease of the fleet is given back when it is dropped; the data plane's lease holds it until then.
struct Held(#[expect(dead_code, reason = "held for its drop")] serverless::fleet::Lease);

impl proxy::Release for Held {
    fn release(&self) {}
}

impl Endpoints for FleetEndpoints {
    fn acquire(&self, revision: &Arc<RevisionPlan>) -> Acquire {
        self.acquire_preferring(revision, None)
    }

    fn acquire_preferring(
        &self,
        revision: &Arc<RevisionPlan>,
        instance: Option<InstanceId>,
    ) -> Acquire {
        let protocol = match revision.protocol {
            PortProtocol::Http1 => Protocol::Http1,
            PortProtocol::H2c => Protocol::H2c,
        };
        match self.0.acquire_preferring(revision, instance.map(|instance| instance.0)) {
            Acquired::Ready(lease) => Acquire::Ready(lend(lease, protocol)),
            Acquired::Refused(refusal) => Acquire::Refused(refused(&refusal)),
            Acquired::Waiting(waiting) => Acquire::Wait(Box::pin(async move {
                waiting.await.map(|lease| lend(lease, protocol)).map_err(|why| refused(&why))
            })),
        }
    }

    fn dial(&self, instance: InstanceId) -> Dialing {
        Box::pin(self.0.dial(instance.0))
    }
}

fn lend(lease: serverless::fleet::Lease, protocol: Protocol) -> proxy::Lease {
    let instance = InstanceId(lease.instance());
    proxy::Lease::new(instance, protocol, Arc::new(Held(lease)))
}

fn refused(refusal: &serverless::fleet::Refusal) -> proxy::Refusal {
    proxy::Refusal {
        status: refusal.status,
        body: refusal.body.into(),
        reason: refusal.reason.into(),
    }
}
