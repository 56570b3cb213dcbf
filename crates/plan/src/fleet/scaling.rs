//! How many instances each revision of a service may and must have: the bounds of the service
//! shared out by traffic, within the bounds of the revision.

use model::run::{INSTANCES_MAX_DEFAULT, Revision, ServiceScaling};

/// The bounds and targets of one revision, as the autoscaler takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// Instances kept whatever the load.
    pub instances_min: u32,
    /// Instances never exceeded, at least 1.
    pub instances_max: u32,
    /// Exactly so many, whatever the load and the bounds.
    pub instances_manual: Option<u32>,
    /// The share of the concurrency to aim for, in percent; 0 when it does not drive scaling.
    pub concurrency_utilization_percent: u8,
    /// The share of the processor to aim for, in percent; 0 when it does not drive scaling.
    pub cpu_utilization_percent: u8,
}

impl Scaling {
    /// The bounds of a revision that gets `percent` of its service's requests.
    pub(super) fn of(service: &ServiceScaling, revision: &Revision, percent: u32) -> Scaling {
        let share = |instances: u32| (u64::from(instances) * u64::from(percent)).div_ceil(100);
        let share = |instances: u32| u32::try_from(share(instances)).unwrap_or(u32::MAX);
        let own = &revision.scaling;
        let own_max = own.instances_max.unwrap_or(INSTANCES_MAX_DEFAULT).max(1);
        // A tagged revision without traffic has no share of the service's bound, and yet its
        // address must answer.
        let of_service =
            service.instances_max.map(|max| if percent == 0 { max } else { share(max) });
        let instances_max = of_service.map_or(own_max, |max| max.max(1).min(own_max));
        let instances_min = share(service.instances_min).max(own.instances_min).min(instances_max);
        let instances_manual = service.instances_manual.filter(|_| percent > 0).map(share);
        Scaling {
            instances_min,
            instances_max,
            instances_manual,
            concurrency_utilization_percent: own.concurrency_utilization_percent,
            cpu_utilization_percent: own.cpu_utilization_percent,
        }
    }
}
