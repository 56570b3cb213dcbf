//! What becomes of images when their disk is damaged or full: they are brought anew, or refused with
//! the reason, and nothing half is left.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod registry;

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use registry::{Registry, layer};
use serverless::fleet::ImageFailure;
use serverless::images::{ImageError, ImageStore, ImageStoreConfig, Progress, ResolvedImage};

fn quiet(_: Progress) {}

fn store(directory: &Path) -> ImageStore {
    let directory = directory.join("images");
    ImageStore::open(ImageStoreConfig { directory, credentials: None }).unwrap()
}

/// The first file in a folder of the store.
fn file_in(directory: &Path, folder: &str) -> PathBuf {
    let mut entries = fs::read_dir(directory.join("images").join(folder)).unwrap().flatten();
    entries.next().unwrap().path()
}

/// What an image with the file `bin/run` may suffer on disk.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 7] = [
    ("a file that was cut", |directory| {
        fs::write(file_in(directory, "layers").join("bin/run"), "pro").unwrap();
    }),
    ("garbage in a file", |directory| {
        fs::write(file_in(directory, "layers").join("bin/run"), "garbage").unwrap();
    }),
    ("a file that is gone", |directory| {
        fs::remove_file(file_in(directory, "layers").join("bin/run")).unwrap();
    }),
    ("a layer that is gone", |directory| {
        fs::remove_dir_all(file_in(directory, "layers")).unwrap();
    }),
    ("a layer that is a file", |directory| {
        let path = file_in(directory, "layers");
        fs::remove_dir_all(&path).unwrap();
        fs::write(path, "").unwrap();
    }),
    ("a record that was cut", |directory| {
        fs::write(file_in(directory, "images"), "{\"digest\":").unwrap();
    }),
    ("a store that is gone", |directory| {
        fs::remove_dir_all(directory.join("images")).unwrap();
    }),
];

fn program(image: &ResolvedImage) -> Option<String> {
    fs::read_to_string(image.layers[0].join("bin/run")).ok()
}

#[tokio::test]
async fn what_is_damaged_is_brought_anew_after_a_restart() {
    let Some(registry) = Registry::start(None) else { return };
    registry.push("shop", "v1", &[layer(&[("bin/run", "program")])], &["gzip"]).await;
    let reference = registry.reference("shop:v1");
    for (what, damage) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let pinned = store(directory.path()).resolve(&reference, &quiet).await.unwrap().pinned;
        damage(directory.path());
        for wanted in [&pinned, &reference] {
            let found = store(directory.path()).resolve(wanted, &quiet).await.unwrap();
            assert_eq!(program(&found).as_deref(), Some("program"), "{what}");
        }
    }
}

#[tokio::test]
async fn what_was_damaged_since_the_start_is_found_when_instances_do_not_start() {
    let Some(registry) = Registry::start(None) else { return };
    registry.push("shop", "v1", &[layer(&[("bin/run", "program")])], &["gzip"]).await;
    let reference = registry.reference("shop:v1");
    for (what, damage) in &DAMAGES[..5] {
        let directory = tempfile::tempdir().unwrap();
        let images = store(directory.path());
        let image = images.resolve(&reference, &quiet).await.unwrap();
        assert_eq!(images.damage(&image).await, None, "{what}");
        damage(directory.path());
        let found = images.damage(&image).await.unwrap_or_default();
        assert!(found.starts_with("layer sha256:"), "{what}: {found}");
        let again = images.resolve(&image.pinned, &quiet).await.unwrap();
        assert_eq!(again.layers, image.layers);
        assert_eq!(program(&again).as_deref(), Some("program"), "{what}");
        assert_eq!(images.damage(&again).await, None, "{what}");
    }
}

#[tokio::test]
async fn what_is_damaged_and_cannot_be_had_again_is_refused_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let shop = registry::oci_layout(directory.path(), "v1", &[layer(&[("bin/run", "program")])]);
    for (what, damage) in &DAMAGES[..6] {
        let own = tempfile::tempdir().unwrap();
        let images = store(own.path());
        images.load(&shop, &quiet).await.unwrap();
        damage(own.path());
        drop(images);
        let images = store(own.path());
        let error = images.resolve("localhost/layout:v1", &quiet).await.unwrap_err();
        assert!(matches!(error, ImageError::Damaged { .. }), "{what}: {error:?}");
        let told = ImageFailure::from(error).message;
        assert!(
            told.starts_with("image 'localhost/layout:v1' is damaged on this disk ("),
            "{told}"
        );
        assert!(told.contains("the registry localhost cannot be reached"), "{told}");
        let other = images.resolve("localhost/tidegate/hello:latest", &quiet).await.unwrap();
        assert!(other.layers[0].join("hello").is_file(), "{what}");
        // Loading it again is all it takes.
        images.load(&shop, &quiet).await.unwrap();
        let again = images.resolve("localhost/layout:v1", &quiet).await.unwrap();
        assert_eq!(program(&again).as_deref(), Some("program"), "{what}");
    }
}

#[tokio::test]
async fn the_shipped_image_is_never_damaged_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let images = store(directory.path());
    let own = images.resolve("localhost/tidegate/hello:latest", &quiet).await.unwrap();
    fs::write(own.layers[0].join("hello"), "cut").unwrap();
    assert!(images.damage(&own).await.unwrap().contains("`/hello` is not as it was unpacked"));
    let again = images.resolve(&own.pinned, &quiet).await.unwrap();
    assert!(fs::metadata(again.layers[0].join("hello")).unwrap().len() > 1000);
}

#[tokio::test]
async fn layers_in_use_stay_when_what_was_recorded_of_them_is_lost() {
    let Some(registry) = Registry::start(None) else { return };
    registry.push("shop", "v1", &[layer(&[("bin/run", "program")])], &["gzip"]).await;
    let directory = tempfile::tempdir().unwrap();
    let images = store(directory.path());
    let used = images.resolve(&registry.reference("shop:v1"), &quiet).await.unwrap();
    fs::write(file_in(directory.path(), "images"), "").unwrap();
    images.collect(&[]).await.unwrap();
    assert_eq!(program(&used).as_deref(), Some("program"));
}

const SMALL: &str = "size=4m";

/// A disk of its own for a store, in a mount namespace of this thread and those it starts.
fn small_disk(directory: &Path) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: mounting a small disk needs root");
        return false;
    }
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("disk"), directory, Some("tmpfs"), MsFlags::empty(), Some(SMALL)).unwrap();
    true
}

fn make_space(directory: &Path) {
    let none = None::<&str>;
    mount(none, directory, none, MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
}

fn assert_nothing_half(directory: &Path) {
    for name in ["layers", "listings", "staging", "images", "references"] {
        let left = fs::read_dir(directory.join("images").join(name)).unwrap().count();
        assert_eq!(left, 0, "{name}");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_with_its_image_and_leaves_nothing_half() {
    let disk = tempfile::tempdir().unwrap();
    if !small_disk(disk.path()) {
        return;
    }
    let Some(registry) = Registry::start(None) else { return };
    let large = "x".repeat(8 * 1024 * 1024);
    let large = layer(&[("bin/run", "program"), ("large", &large)]);
    // Too large as it comes, and too large once it is unpacked.
    for (tag, packed, step) in
        [("plain", "plain", "keep what is fetched"), ("packed", "gzip", "unpack a layer")]
    {
        registry.push("shop", tag, std::slice::from_ref(&large), &[packed]).await;
        let images = store(disk.path());
        let reference = registry.reference(&format!("shop:{tag}"));
        let error = images.resolve(&reference, &quiet).await.unwrap_err();
        let told = ImageFailure::from(error).message;
        let place = disk.path().join("images");
        let expected = format!(
            "image '{reference}': the disk of {} is full, the image store cannot {step}: ",
            place.display()
        );
        assert!(told.starts_with(&expected), "{told}");
        assert_nothing_half(disk.path());
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let saved = registry::docker_save(elsewhere.path(), "shop:v2", &[large]);
    let error = store(disk.path()).load(&saved, &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error:?}");
    assert_nothing_half(disk.path());

    make_space(disk.path());
    let images = store(disk.path());
    let image = images.resolve(&registry.reference("shop:packed"), &quiet).await.unwrap();
    assert_eq!(program(&image).as_deref(), Some("program"));
}
