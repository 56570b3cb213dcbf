//! Compiles the program of the test image: one static executable with nothing but `std` in it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=probe");
    let compiler = env::var_os("RUSTC").expect("cargo names the compiler");
    let target = env::var("TARGET").expect("cargo names the target");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names an output directory"));
    let status = Command::new(compiler)
        .args(["--edition=2024", "--crate-name=probe", "--crate-type=bin"])
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "strip=symbols", "-C", "relocation-model=static", "--target", &target, "-o"])
        .arg(out.join("probe"))
        .arg("probe/main.rs")
        .status()
        .expect("the compiler can be run");
    assert!(status.success(), "the program of the test image does not compile");
}
