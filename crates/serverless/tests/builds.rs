//! Sources become images that run: Node.js and Python, functions and web servers, from the package
//! registries this host is set up for. Needs root, `npm` and `python3` with pip.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serverless::builds::runtimes::{Language, Runtime};
use serverless::builds::{BuildLog, Builder, BuilderConfig, Buildpack, Method, Order};
use serverless::images::{ImageStore, ImageStoreConfig};
use serverless::runtime::InstanceSpec;
use support::{World, container, get, helper, root};

/// A builder with a store of its own, and a runtime to try its images with.
struct Yard {
    world: World,
    images: ImageStore,
    builder: Builder,
}

impl Yard {
    async fn open() -> Option<Yard> {
        if !root() {
            return None;
        }
        let world = World::new().await;
        let path = |name: &str| world.directory.path().join(name);
        let images =
            ImageStore::open(ImageStoreConfig { directory: path("images"), credentials: None });
        let images = images.unwrap();
        let builder = Builder::open(BuilderConfig {
            directory: path("builds"),
            helper: helper(),
            images: images.clone(),
            base_images: None,
            docker_socket: path("no-engine"),
        });
        Some(Yard { builder: builder.await.unwrap(), images, world })
    }

    /// The preferred runtime of a language; says why there is none.
    async fn runtime(&self, language: Language) -> Option<Runtime> {
        let offered = self.builder.runtimes().await;
        let found = offered.into_iter().find(|runtime| runtime.language == language);
        if found.is_none() {
            eprintln!("SKIPPED: {language:?} is not installed (scripts/packages run test)");
        }
        found
    }

    fn archive(&self, files: &[(&str, &str)]) -> PathBuf {
        let path = self.world.directory.path().join("source.zip");
        let mut writer = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        for (name, text) in files {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    async fn build(&self, buildpack: Buildpack, files: &[(&str, &str)]) -> Result<String, String> {
        let order = Order {
            source: self.archive(files),
            reference: "us-west1-docker.pkg.dev/p/builds/app:latest".to_owned(),
            method: Method::Buildpack(buildpack),
        };
        let log = Arc::new(BuildLog::default());
        let built = self.builder.build(&order, &log).await;
        eprintln!("{}", log.text());
        assert!(is_empty(&self.world.directory.path().join("builds/work")), "the build left files");
        built.map(|built| built.digest).map_err(|error| error.to_string())
    }

    /// Runs the image that was built and asks it for a path.
    async fn answer(&self, digest: &str, path: &str) -> String {
        let image = self.images.local(&format!("us-west1-docker.pkg.dev/p/builds/app@{digest}"));
        let mut ingress = container("app", image.unwrap(), &[]);
        ingress.command = Vec::new();
        ingress.port = Some(8080);
        let spec = InstanceSpec { containers: vec![ingress], ..self.world.spec("app", &[]) };
        let live = self.world.launch(spec).await.unwrap();
        let answer = get(live.instance(), path).await.1;
        live.stop(Duration::ZERO).await;
        answer
    }

    async fn close(self) {
        self.builder.shut_down().await;
        self.world.runtime.shut_down().await;
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

fn function(name: &str, runtime: Option<Runtime>) -> Buildpack {
    Buildpack {
        runtime: runtime.map(|runtime| runtime.to_string()),
        function: Some(name.to_owned()),
        signature: None,
        environment: BTreeMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_functions_and_servers_are_built_and_run() {
    let Some(yard) = Yard::open().await else { return };
    let Some(runtime) = yard.runtime(Language::Node).await else { return };
    let source = "const marked = require('is-number');\n\
                  exports.hello = (req, res) => res.send(`node says ${marked(5)} to ${req.query.q}`);\n";
    let package = r#"{"main":"index.js","dependencies":{"is-number":"^7.0.0"}}"#;
    let files = [("index.js", source), ("package.json", package)];
    let digest = yard.build(function("hello", Some(runtime)), &files).await.unwrap();
    assert_eq!(yard.answer(&digest, "/?q=you").await, "node says true to you");

    let server = "require('http').createServer((_, r) => r.end('served by ' + process.env.NAME))\
                  .listen(process.env.PORT);";
    let package = r#"{"scripts":{"start":"NAME=npm node server.js"}}"#;
    let files = [("server.js", server), ("package.json", package)];
    let digest = yard.build(Buildpack::default(), &files).await.unwrap();
    assert_eq!(yard.answer(&digest, "/").await, "served by npm");

    let package = r#"{"dependencies":{"no-such-package-anywhere-at-all":"1.0.0"}}"#;
    let files = [("index.js", source), ("package.json", package)];
    let told = yard.build(function("hello", None), &files).await.unwrap_err();
    assert!(told.starts_with("npm install failed: npm error"), "{told}");
    assert!(told.contains("no-such-package-anywhere-at-all"), "{told}");
    yard.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_functions_and_servers_are_built_and_run() {
    let Some(yard) = Yard::open().await else { return };
    let Some(runtime) = yard.runtime(Language::Python).await else { return };
    let source = "import functions_framework\nimport idna\n\n@functions_framework.http\n\
                  def hello(request):\n    return 'python says ' + idna.encode(request.args['q']).decode()\n";
    let files = [("main.py", source), ("requirements.txt", "idna\n")];
    let digest = yard.build(function("hello", Some(runtime)), &files).await.unwrap();
    assert_eq!(yard.answer(&digest, "/?q=%C3%BC.example").await, "python says xn--tda.example");

    let source =
        "def app(environ, start):\n    start('200 OK', [])\n    return [b'served by gunicorn']\n";
    let digest = yard.build(Buildpack::default(), &[("main.py", source)]).await.unwrap();
    let answer = yard.answer(&digest, "/").await;
    assert!(answer.contains("served by gunicorn"), "{answer}");

    let files = [("main.py", source), ("requirements.txt", "no-such-package-anywhere-at-all\n")];
    let told = yard.build(function("hello", None), &files).await.unwrap_err();
    assert!(told.starts_with("pip install failed: ERROR:"), "{told}");
    assert!(told.contains("no-such-package-anywhere-at-all"), "{told}");
    yard.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_built_says_so() {
    let Some(yard) = Yard::open().await else { return };
    let told = yard.build(function("f", None), &[("main.go", "package p")]).await.unwrap_err();
    assert!(told.starts_with("No buildpack fits"), "{told}");
    let old = Runtime { language: Language::Python, major: 3, minor: 1 };
    let told = yard.build(function("f", Some(old)), &[("main.py", "")]).await.unwrap_err();
    assert!(told.contains("`python3.1` is not installed on this host"), "{told}");
    let order = Order {
        source: yard.archive(&[("Dockerfile", "FROM scratch")]),
        reference: "localhost/app:latest".to_owned(),
        method: Method::Dockerfile,
    };
    let log = Arc::new(BuildLog::default());
    let told = yard.builder.build(&order, &log).await.unwrap_err().to_string();
    assert!(told.contains("which Docker Engine builds, and none answers at"), "{told}");
    yard.close().await;
}
