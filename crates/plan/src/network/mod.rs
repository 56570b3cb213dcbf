//! VPC networks as the host sees them.

/// Every network of the plan.
#[derive(Clone, Debug, Default)]
pub struct Networks {}
