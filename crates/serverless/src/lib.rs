//! Cloud Run's other half: revisions into instances.
//!
//! A request that reaches a service needs an instance of one of its revisions. `fleet` says which
//! there are and starts and stops them; `autoscaler` says how many there should be, and is pure;
//! `waiting_room` holds the requests in between; `images` has what they run and `runtime` runs
//! them; `logs` keeps what they write.
//!
//! Invariant: no file of this crate routes a request: it is told the revision.

pub mod autoscaler;
pub mod builds;
pub mod fleet;
pub mod images;
pub mod logs;
pub mod runtime;
pub mod waiting_room;
