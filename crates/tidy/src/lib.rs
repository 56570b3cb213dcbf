//! The house rules as functions over the repository: what is read here is source, never the product.
//!
//! Each rule takes what it judges as an argument and returns the complaints, one line each, so every rule
//! is tested on small pictures of good and bad code before it judges the real tree in `tests/house.rs`.
//!
//! Invariant: a number in a rule asks a question; an exception answers it with a reason, and an exception
//! that is no longer needed is itself a complaint.

pub mod arrows;
pub mod documents;
pub mod goldens;
pub mod source;
pub mod tree;
