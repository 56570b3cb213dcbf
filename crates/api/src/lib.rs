//! Google's dialects: the only room that knows their JSON.
//!
//! A request comes in already authenticated, is answered from one snapshot of the world, and a
//! change is acknowledged after its documents and its operation are on disk together.

pub mod door;
pub mod error;
pub mod http;
pub mod jwt;
pub mod oauth;

pub use self::http::{Principal, Request, Response};
pub use error::{ApiError, Dialect, Reason};
