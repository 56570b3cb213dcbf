//! Compiles the shipped hello image's program: one static executable with nothing but `std` in it.
//!
//! Invariant: the program depends on no crate, so it is built by the compiler alone and the image
//! needs no operating system below it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=hello");
    let compiler = env::var_os("RUSTC").expect("cargo names the compiler");
    let target = env::var("TARGET").expect("cargo names the target");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names an output directory"));
    let status = Command::new(compiler)
        .args(["--edition=2024", "--crate-name=hello", "--crate-type=bin"])
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "codegen-units=1", "-C", "strip=symbols", "-C", "relocation-model=static"])
        .args(["--target", &target, "-o"])
        .arg(out.join("hello"))
        .arg("hello/main.rs")
        .status()
        .expect("the compiler can be run");
    assert!(status.success(), "the hello program does not compile");
}
