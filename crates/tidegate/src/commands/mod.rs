//! One file a verb: what the command line asks for, done with the parts of the other crates.

pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod env;
pub(crate) mod explain;
pub(crate) mod image;
pub(crate) mod logs;
pub(crate) mod status;
pub(crate) mod up;
