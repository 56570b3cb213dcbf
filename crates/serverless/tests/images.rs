//! Images out of a real registry (Debian's `docker-registry` on a loopback port) and out of files.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod registry;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use registry::{Pushed, Registry, layer};
use serverless::images::{ImageError, ImageStore, ImageStoreConfig, Progress};

fn store(directory: &Path) -> ImageStore {
    let directory = directory.join("images");
    ImageStore::open(ImageStoreConfig { directory, credentials: None }).unwrap()
}

fn quiet(_: Progress) {}

fn read(layers: &[PathBuf], path: &str) -> Option<String> {
    layers.iter().rev().find_map(|layer| fs::read_to_string(layer.join(path)).ok())
}

#[tokio::test]
async fn an_image_is_pulled_verified_pinned_and_found_again() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer(&[("app/one", "1"), ("app/two", "2")]), layer(&[("app/two", "22")])];
    let pushed = registry.push("shop", "v1", &layers, &["gzip", "zstd"]).await;
    let reference = registry.reference("shop:v1");

    let images = store(directory.path());
    let told = Mutex::new(Vec::new());
    let image = images.resolve(&reference, &|step| told.lock().unwrap().push(step)).await.unwrap();
    assert_eq!(image.digest, pushed.digest);
    assert_eq!(image.pinned, format!("{}/shop@{}", registry.address(), pushed.digest));
    assert_eq!(image.config.entrypoint, ["/app/run"]);
    assert_eq!(image.config.environment, ["A=1"]);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(read(&image.layers, "app/one").as_deref(), Some("1"));
    assert_eq!(read(&image.layers, "app/two").as_deref(), Some("22"));
    assert!(image.substitution.is_none());
    let last = *told.lock().unwrap().last().unwrap();
    assert_eq!((last.layers_done, last.layers_total), (2, 2));
    assert_eq!(last.bytes_done, last.bytes_total);

    // The tag moves on; what was pinned stays, also without the registry and after a restart.
    let moved = registry.push("shop", "v1", &[layer(&[("app/one", "new")])], &["plain"]).await;
    let newer = images.resolve(&reference, &quiet).await.unwrap();
    assert_eq!(newer.digest, moved.digest);
    drop(registry);
    drop(images);
    let images = store(directory.path());
    let again = images.local(&image.pinned).unwrap();
    assert_eq!(again.layers, image.layers);
    assert_eq!(images.resolve(&image.pinned, &quiet).await.unwrap().digest, pushed.digest);
    assert_eq!(images.local(&reference).unwrap().digest, moved.digest);
    // The registry is gone: better the image as it was last seen than none.
    assert_eq!(images.resolve(&reference, &quiet).await.unwrap().digest, moved.digest);
}

#[tokio::test]
async fn of_an_index_the_image_for_this_platform_is_taken() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let other = registry.push("multi", "arm", &[layer(&[("which", "arm64")])], &["gzip"]).await;
    let ours = registry.push("multi", "amd", &[layer(&[("which", "amd64")])], &["gzip"]).await;
    registry.push_index("multi", "both", &[("arm64", &other), ("amd64", &ours)]).await;
    registry.push_index("multi", "foreign", &[("arm64", &other)]).await;
    let images = store(directory.path());
    let image = images.resolve(&registry.reference("multi:both"), &quiet).await.unwrap();
    assert_eq!(image.digest, ours.digest);
    assert_eq!(read(&image.layers, "which").as_deref(), Some("amd64"));
    let error = images.resolve(&registry.reference("multi:foreign"), &quiet).await.unwrap_err();
    assert!(error.to_string().ends_with("the image must support amd64/linux"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_had_is_said_in_words() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let images = store(directory.path());
    let missing = registry.reference("nothing:v1");
    let error = images.resolve(&missing, &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("Image '{missing}' not found."));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = images.resolve(&format!("{closed}/x:1"), &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    let error = images.resolve("x:y:z", &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::Reference { .. }), "{error:?}");
}

#[tokio::test]
async fn a_tampered_blob_is_refused_and_leaves_nothing() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let pushed: Pushed = registry.push("shop", "v1", &[layer(&[("a", "1")])], &["gzip"]).await;
    registry.tamper(&pushed.layers[0]);
    let images = store(directory.path());
    let error = images.resolve(&registry.reference("shop:v1"), &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error:?}");
    assert!(images.list().is_empty());
    for name in ["layers", "staging", "images", "references"] {
        let left = fs::read_dir(directory.path().join("images").join(name)).unwrap().count();
        assert_eq!(left, 0, "{name}");
    }
}

#[tokio::test]
async fn a_private_registry_is_opened_with_the_credentials_given() {
    let Some(registry) = Registry::start(Some(("ann", "secret"))) else { return };
    let directory = tempfile::tempdir().unwrap();
    registry.push("shop", "v1", &[layer(&[("a", "1")])], &["gzip"]).await;
    let reference = registry.reference("shop:v1");
    let error = store(directory.path()).resolve(&reference, &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::Forbidden { .. }), "{error:?}");

    let credentials = directory.path().join("config.json");
    let entry = format!(
        r#"{{"auths":{{"{}":{{"username":"ann","password":"secret"}}}}}}"#,
        registry.address()
    );
    fs::write(&credentials, entry).unwrap();
    let images = ImageStore::open(ImageStoreConfig {
        directory: directory.path().join("images"),
        credentials: Some(credentials),
    })
    .unwrap();
    assert_eq!(images.resolve(&reference, &quiet).await.unwrap().layers.len(), 1);
}

#[tokio::test]
async fn layers_are_shared_and_collected_when_nobody_has_them() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let (base, one, two) =
        (layer(&[("base", "b")]), layer(&[("one", "1")]), layer(&[("two", "2")]));
    registry.push("first", "v1", &[base.clone(), one], &["gzip", "gzip"]).await;
    registry.push("second", "v1", &[base, two], &["plain", "gzip"]).await;
    let images = store(directory.path());
    let first = images.resolve(&registry.reference("first:v1"), &quiet).await.unwrap();
    let second = images.resolve(&registry.reference("second:v1"), &quiet).await.unwrap();
    assert_eq!(first.layers[0], second.layers[0]);
    assert_eq!(images.list().len(), 2);

    assert!(images.remove(&registry.reference("first:v1")).unwrap());
    assert!(!images.remove(&registry.reference("first:v1")).unwrap());
    // Somebody still has it.
    assert_eq!(images.collect(&[]).await.unwrap().layers, 0);
    let (digest, layers) = (first.digest.clone(), first.layers.clone());
    drop(first);
    assert_eq!(images.collect(&[digest]).await.unwrap().layers, 0);
    let collected = images.collect(&[]).await.unwrap();
    assert_eq!((collected.images, collected.layers), (1, 1));
    assert!(layers[0].is_dir(), "the shared layer stays");
    assert!(!layers[1].exists());
    assert_eq!(images.list().len(), 1);
    // A name that was only pulled goes with its image.
    drop(second);
    let collected = images.collect(&[]).await.unwrap();
    assert_eq!((collected.images, collected.layers), (1, 2));
    assert_eq!(images.list(), []);
}

#[tokio::test]
async fn pulls_of_one_image_at_once_agree() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer(&[("a", "1")]), layer(&[("b", "2")])];
    registry.push("shop", "v1", &layers, &["gzip", "gzip"]).await;
    registry.push("copy", "v1", &layers, &["gzip", "plain"]).await;
    let images = store(directory.path());
    let names = ["shop:v1", "copy:v1", "shop:v1", "copy:v1"].map(|name| registry.reference(name));
    let pulls = names.iter().map(|name| images.resolve(name, &quiet));
    let found = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(found.iter().all(|image| image.layers == found[0].layers));
}

#[tokio::test]
async fn a_pull_that_is_given_up_leaves_nothing_half() {
    let Some(registry) = Registry::start(None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let noise: String = (0..400_000u32).map(|n| char::from(b'!' + (n * 7919 % 90) as u8)).collect();
    registry.push("big", "v1", &[layer(&[("noise", &noise)])], &["plain"]).await;
    let images = store(directory.path());
    let started = tokio::sync::Notify::new();
    let reference = registry.reference("big:v1");
    let on_progress = |_: Progress| started.notify_one();
    tokio::select! {
        _ = images.resolve(&reference, &on_progress) => {}
        () = started.notified() => {}
    }
    assert_eq!(images.collect(&[]).await.unwrap().images, 0);
    // What a crash leaves is thrown away when the store is opened.
    fs::create_dir_all(directory.path().join("images/staging/99/etc")).unwrap();
    drop(images);
    let images = store(directory.path());
    assert_eq!(fs::read_dir(directory.path().join("images/staging")).unwrap().count(), 0);
    assert_eq!(images.resolve(&reference, &quiet).await.unwrap().layers.len(), 1);
}

#[tokio::test]
async fn the_shipped_image_answers_where_its_registry_cannot_be_reached() {
    let directory = tempfile::tempdir().unwrap();
    let images = store(directory.path());
    let own = images.resolve("localhost/tidegate/hello:latest", &quiet).await.unwrap();
    assert!(own.substitution.is_none());
    assert!(own.layers[0].join("hello").is_file());
    assert_eq!(own.config.entrypoint, ["/hello"]);
    // A pinned stand-in is known as one later, without asking anybody.
    let pinned = format!("us-docker.pkg.dev/cloudrun/container/hello@{}", own.digest);
    let again = images.resolve(&pinned, &quiet).await.unwrap();
    assert_eq!(again.digest, own.digest);
    let told = again.substitution.unwrap().to_string();
    assert!(
        told.starts_with("the image us-docker.pkg.dev/cloudrun/container/hello could not"),
        "{told}"
    );
}

#[tokio::test]
async fn archives_and_layouts_are_loaded_with_the_names_they_have() {
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer(&[("app/one", "1")]), layer(&[("app/two", "2")])];
    let saved = registry::docker_save(directory.path(), "shop:v2", &layers);
    let layout = registry::oci_layout(directory.path(), "v3", &layers);
    let packed = registry::pack(directory.path(), &layout);
    let cases = [
        (saved, "docker.io/library/shop:v2"),
        (layout, "localhost/layout:v3"),
        (packed, "localhost/layout:v3"),
    ];
    for (path, expected) in cases {
        let own = tempfile::tempdir().unwrap();
        let images = store(own.path());
        assert_eq!(images.load(&path, &quiet).await.unwrap(), [expected], "{}", path.display());
        // No registry is asked for what was loaded.
        let image = images.resolve(expected, &quiet).await.unwrap();
        assert_eq!(image.config.entrypoint, ["/app/run"]);
        assert_eq!(read(&image.layers, "app/two").as_deref(), Some("2"));
        assert_eq!(images.list()[0].references, [expected]);
    }
}

#[tokio::test]
async fn a_file_that_holds_no_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let images = store(directory.path());
    let text = directory.path().join("text");
    fs::File::create(&text).unwrap().write_all(&[b'x'; 2048]).unwrap();
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let broken = registry::oci_layout(directory.path(), "v1", &[layer(&[("a", "1")])]);
    for entry in fs::read_dir(broken.join("blobs/sha256")).unwrap().flatten() {
        fs::write(entry.path(), "{}").unwrap();
    }
    for path in [text, empty, broken, directory.path().join("absent")] {
        let error = images.load(&path, &quiet).await.unwrap_err();
        let expected = matches!(error, ImageError::Archive { .. } | ImageError::Corrupt { .. });
        assert!(expected, "{}: {error:?}", path.display());
        assert!(images.list().is_empty());
    }
}
