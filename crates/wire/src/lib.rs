//! Google's JSON as strict Rust types, generated from the discovery documents.
//!
//! Each module is one API; its structs refuse unknown fields, and beside each stands the table it
//! was generated with. [`parse`] is the one way in: it judges a body with the path of every fault
//! known, in the words Google's servers use, and only then makes a struct of it.
//!
//! Invariant: what [`parse`] accepts, [`clean`]ed and serialized again, is accepted again.

mod check;
mod number;
mod schema;

pub mod artifact_registry;
pub mod certificate_manager;
pub mod cloud_functions;
pub mod compute;
pub mod grpc;
pub mod iam;
pub mod iam_credentials;
pub mod logging;
pub mod resource_manager;
pub mod run_v1;
pub mod run_v2;
pub mod service_usage;
pub mod storage;

pub use check::{Violation, WireError, check, check_parameter, clean, parse};
pub use number::{Int64, Uint64};
pub use schema::{Field, Message, Method, Parameter, Schema, Shape};
