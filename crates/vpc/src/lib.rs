//! vpc
