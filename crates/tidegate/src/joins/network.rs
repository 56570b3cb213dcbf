//! What instances send beyond themselves, carried by the VPC part.

use plan::fleet::RevisionPlan;
use serverless::runtime::{InstanceId, Network, Outward, Pending};
use std::sync::Arc;
use vpc::egress::Egress;

/// Attaches instances by `Egress`.
#[derive(Debug)]
pub(crate) struct VpcEgress(pub(crate) Egress);

impl Network for VpcEgress {
    fn attach(
        &self,
        _instance: &InstanceId,
        revision: &Arc<RevisionPlan>,
        outward: Outward,
    ) -> Pending<'static, ()> {
        let declared = Arc::clone(&revision.declared);
        Box::pin(self.0.clone().carry(declared, outward.connections, outward.names))
    }
}
