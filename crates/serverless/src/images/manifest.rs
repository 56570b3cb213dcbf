//! Manifests, indexes and configurations as registries and archives hold them.
//!
//! Pure parsing of foreign JSON, strict about what is used and indifferent to the rest.
//!
//! Invariant: a digest that came out of here is `sha256:` and 64 hexadecimal digits, so it can be
//! part of a path.

use serde::Deserialize;

use super::ImageConfig;
use super::limits::LAYERS_MAX;

/// Accepted when asking a registry, the most wanted first.
pub(crate) const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const ARCHITECTURE: &str = "amd64";
const SYSTEM: &str = "linux";

/// A digest that may be part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Sha256Digest(String);

impl Sha256Digest {
    pub(crate) fn parse(text: &str) -> Result<Sha256Digest, String> {
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64);
        match digits {
            Some(digits) if digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                Ok(Sha256Digest(text.to_owned()))
            }
            _ => Err(format!("`{text}` is not a sha256 digest")),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits alone.
    pub(crate) fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

/// A blob somewhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Sha256Digest,
    pub(crate) bytes: u64,
}

/// What a manifest turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// One image for one platform.
    Image { config: Blob, layers: Vec<Blob> },
    /// An index: the manifest for linux/amd64 is elsewhere.
    Elsewhere(Blob),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    schema_version: u32,
    config: Option<DescriptorJson>,
    layers: Option<Vec<DescriptorJson>>,
    manifests: Option<Vec<DescriptorJson>>,
}

#[derive(Deserialize)]
struct DescriptorJson {
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<PlatformJson>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct PlatformJson {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

impl DescriptorJson {
    fn blob(&self) -> Result<Blob, String> {
        Ok(Blob { digest: Sha256Digest::parse(&self.digest)?, bytes: self.size })
    }

    fn fits(&self) -> bool {
        match &self.platform {
            Some(platform) => platform.architecture == ARCHITECTURE && platform.os == SYSTEM,
            None => true,
        }
    }
}

impl Manifest {
    /// The error is a sentence about the document.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let json: ManifestJson =
            serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
        if json.schema_version != 2 {
            return Err(format!(
                "manifests of schema version {} are not supported",
                json.schema_version
            ));
        }
        if let Some(manifests) = json.manifests {
            // An exact platform is better than none said.
            let fitting = manifests
                .iter()
                .find(|each| each.platform.is_some() && each.fits())
                .or_else(|| manifests.iter().find(|each| each.fits()));
            return match fitting {
                Some(found) => Ok(Manifest::Elsewhere(found.blob()?)),
                None => Err("the image must support amd64/linux".to_owned()),
            };
        }
        let (Some(config), Some(layers)) = (json.config, json.layers) else {
            return Err("a manifest without configuration or layers".to_owned());
        };
        if layers.len() > LAYERS_MAX {
            return Err(format!("more than {LAYERS_MAX} layers"));
        }
        let layers = layers.iter().map(DescriptorJson::blob).collect::<Result<Vec<_>, _>>()?;
        Ok(Manifest::Image { config: config.blob()?, layers })
    }
}

/// The manifests an OCI layout's index names, each with the references given to it.
pub(crate) fn parse_layout_index(bytes: &[u8]) -> Result<Vec<(Blob, Option<String>)>, String> {
    const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let json: ManifestJson =
        serde_json::from_slice(bytes).map_err(|error| format!("not an index: {error}"))?;
    let mut found = Vec::new();
    for each in json.manifests.unwrap_or_default() {
        if each.fits() {
            let name = NAMES.iter().find_map(|name| each.annotations.get(*name)).cloned();
            found.push((each.blob()?, name));
        }
    }
    Ok(found)
}

/// What an image configuration says about running it, and the digests of its layers' archives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Sha256Digest>,
}

#[derive(Deserialize)]
struct ConfigurationJson {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<RunJson>,
    rootfs: RootJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunJson {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct RootJson {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Configuration {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Configuration, String> {
        let json: ConfigurationJson = serde_json::from_slice(bytes)
            .map_err(|error| format!("not an image configuration: {error}"))?;
        let other = |value: &str, wanted: &str| !value.is_empty() && value != wanted;
        if other(&json.architecture, ARCHITECTURE) || other(&json.os, SYSTEM) {
            return Err(format!(
                "the image is for {}/{}, but must support amd64/linux",
                json.architecture, json.os
            ));
        }
        let run = json.config.unwrap_or_default();
        let layers = json.rootfs.diff_ids.iter().map(|text| Sha256Digest::parse(text));
        Ok(Configuration {
            config: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                command: run.cmd.unwrap_or_default(),
                environment: run.env.unwrap_or_default(),
                working_directory: run.working_dir.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
            },
            layers: layers.collect::<Result<Vec<_>, _>>()?,
        })
    }
}

/// One entry of `manifest.json` in a `docker save` archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SavedImage {
    pub(crate) config: String,
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn read(json: &str) -> String {
        match Manifest::parse(json.replace("$A", A).replace("$B", B).as_bytes()) {
            Ok(Manifest::Image { config, layers }) => {
                format!("image {} with {} layers", &config.digest.hex()[..1], layers.len())
            }
            Ok(Manifest::Elsewhere(blob)) => format!("elsewhere {}", &blob.digest.hex()[..1]),
            Err(text) => text,
        }
    }

    #[test]
    fn manifests_and_indexes_are_told_apart_by_what_they_hold() {
        let cases = [
            (
                r#"{"schemaVersion":2,"config":{"digest":"$A","size":1},"layers":[{"digest":"$B"}]}"#,
                "image a with 1 layers",
            ),
            (
                r#"{"schemaVersion":2,"manifests":[
                    {"digest":"$A","platform":{"os":"linux","architecture":"arm64"}},
                    {"digest":"$B","platform":{"os":"linux","architecture":"amd64"}}]}"#,
                "elsewhere b",
            ),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"$A"}]}"#, "elsewhere a"),
            (
                r#"{"schemaVersion":2,"manifests":[
                    {"digest":"$A","platform":{"os":"windows","architecture":"amd64"}}]}"#,
                "the image must support amd64/linux",
            ),
            (r#"{"schemaVersion":1}"#, "manifests of schema version 1 are not supported"),
            (r#"{"schemaVersion":2}"#, "a manifest without configuration or layers"),
            (
                r#"{"schemaVersion":2,"config":{"digest":"sha256:../../etc"},"layers":[]}"#,
                "`sha256:../../etc` is not a sha256 digest",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(read(json), expected);
        }
    }

    #[test]
    fn a_configuration_for_another_platform_is_refused() {
        let json = br#"{"architecture":"arm64","os":"linux","rootfs":{"diff_ids":[]}}"#;
        let error = Configuration::parse(json).unwrap_err();
        assert_eq!(error, "the image is for arm64/linux, but must support amd64/linux");
    }

    #[test]
    fn a_configuration_may_leave_everything_out() {
        let parsed = Configuration::parse(br#"{"config":null,"rootfs":{"diff_ids":[]}}"#).unwrap();
        assert_eq!(parsed.config, ImageConfig::default());
    }
}
