//! The image store: container images pulled, verified, unpacked once and shared by every instance.

mod hello;
pub mod resolved;

pub use resolved::{ImageConfig, ImagePin, ResolvedImage, Substitution};
