//! The helper of an instance as a program of its own, for the tests and benchmarks of this crate.
//! The product re-executes itself instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    serverless::runtime::helper_main()
}
