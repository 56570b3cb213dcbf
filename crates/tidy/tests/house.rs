//! The house rules, held against this repository.

use std::process::Command;
use tidy::source::Exception;
use tidy::{arrows, documents, goldens, source, tree};

/// Files and functions that may be longer than the number asks, each with the reason.
const SIZE_EXCEPTIONS: &[Exception] = &[];

/// Files that may name a folder beside the checkout or of a machine, each with the reason.
const PATH_EXCEPTIONS: &[Exception] = &[];

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn arrows_between_the_rooms_point_one_way() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(tree::root())
        .output()
        .expect("cargo metadata runs");
    let metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    none(&arrows::complaints(&metadata, arrows::ROOMS));
}

#[test]
fn every_rust_file_says_what_it_is_for() {
    none(&source::headers(&tree::files(&tree::root())));
}

#[test]
fn files_and_functions_fit_in_the_head() {
    none(&source::sizes(&tree::files(&tree::root()), SIZE_EXCEPTIONS));
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_switched_off() {
    none(&source::leftovers(&tree::files(&tree::root())));
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let mut files = tree::files(&tree::root());
    files.retain(|file| !PATH_EXCEPTIONS.iter().any(|(path, _)| *path == file.path));
    none(&source::machine_paths(&files));
}

#[test]
fn unsafe_code_stays_where_the_kernel_is_spoken_to() {
    none(&source::unsafe_code(&tree::files(&tree::root())));
}

#[test]
fn every_crate_takes_the_lints_of_the_house() {
    none(&source::lints(&tree::files(&tree::root())));
}

#[test]
fn every_golden_file_is_read_by_a_test() {
    none(&goldens::complaints(&tree::files(&tree::root())));
}

#[test]
fn links_between_documents_lead_somewhere() {
    none(&documents::links(&tree::files(&tree::root())));
}

#[test]
fn decisions_are_numbered_once() {
    none(&documents::decisions(&tree::files(&tree::root())));
}
