//! The checked-in code is what the generator writes from the checked-in documents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every generated file below a folder, by its path in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for api in
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
    {
        if !api.is_dir() {
            continue;
        }
        for file in
            std::fs::read_dir(&api).expect("a folder").map(|entry| entry.expect("an entry").path())
        {
            let path = file.strip_prefix(folder).expect("below the folder").to_path_buf();
            found.insert(path, std::fs::read_to_string(file).expect("a file"));
        }
    }
    found
}

fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn the_generated_modules_are_what_the_generator_writes() {
    if !succeeds(Command::new("python3").arg("--version"))
        || !succeeds(Command::new("rustfmt").arg("--version"))
    {
        eprintln!(
            "SKIPPED: python3 and rustfmt are needed to see that the generated code is current"
        );
        return;
    }
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a folder");
    let generator = crate_folder.join("generate/generate.py");
    assert!(succeeds(Command::new("python3").arg(generator).arg("write").arg(fresh.path())));
    let config = crate_folder.join("../../rustfmt.toml");
    let sources = files(fresh.path()).into_keys().filter(|path| !path.ends_with("mod.rs"));
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024", "--config-path"]).arg(config);
    rustfmt.args(sources.map(|path| fresh.path().join(path)));
    assert!(succeeds(&mut rustfmt));

    let (fresh, kept) = (files(fresh.path()), files(&crate_folder.join("src")));
    assert_eq!(fresh.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
    let stale: Vec<_> =
        fresh.iter().filter(|(path, text)| kept.get(*path) != Some(*text)).collect();
    let stale: Vec<_> = stale.iter().map(|(path, _)| path.display().to_string()).collect();
    assert!(stale.is_empty(), "`make wire` writes these anew: {stale:?}");
}
