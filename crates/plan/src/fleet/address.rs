//! The `run.app` addresses of services: what they are called, and whom a host name means.
//!
//! Invariant: a host that [`hosts`] gives to a service is read back as that service and no other.

use model::Name;

/// The longest label of a host name.
pub const HOST_LABEL_CHARACTERS_MAX: usize = 63;

/// Region codes of the older form of address. A region that is not listed gets a code made of the
/// first letters of its two words, which is how most of these came about.
const REGION_CODES: [(&str, &str); 12] = [
    ("us-central1", "uc"),
    ("us-east1", "ue"),
    ("us-east4", "uk"),
    ("us-west1", "uw"),
    ("us-west2", "wl"),
    ("us-west3", "wm"),
    ("us-west4", "wn"),
    ("europe-west1", "ew"),
    ("europe-west2", "nw"),
    ("europe-west3", "ey"),
    ("europe-west4", "ez"),
    ("asia-northeast1", "an"),
];

/// The host names of a service: the one made of the project's number, and the older one made of a
/// hash. A tag goes in front of either, followed by three hyphens.
pub fn hosts(service: &str, project_number: u64, region: &str) -> [String; 2] {
    [
        format!("{service}-{project_number}.{region}.run.app"),
        format!("{service}-{}-{}.a.run.app", project_hash(project_number), region_code(region)),
    ]
}

/// What a `run.app` host name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address<'h> {
    pub(super) tag: Option<&'h str>,
    pub(super) service: &'h str,
    pub(super) home: Home<'h>,
}

/// The project and region of an address, in one form or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Home<'h> {
    Number { project_number: u64, region: &'h str },
    Hash { key: &'h str },
}

/// Reads a host name, in lower case and without a port.
pub(super) fn parse(host: &str) -> Option<Address<'_>> {
    let (label, region) = host.strip_suffix(".run.app")?.split_once('.')?;
    let (tag, label) = match label.split_once("---") {
        Some((tag, label)) => (Some(tag), label),
        None => (None, label),
    };
    if region == "a" {
        let (rest, _) = label.rsplit_once('-')?;
        let (service, _) = rest.rsplit_once('-')?;
        let key = label.get(service.len() + 1..)?;
        return Some(Address { tag, service, home: Home::Hash { key } });
    }
    let (service, number) = label.rsplit_once('-')?;
    let project_number = number.parse().ok()?;
    Some(Address { tag, service, home: Home::Number { project_number, region } })
}

/// The part of an older address that stands for project and region.
pub(super) fn hash_key(project_number: u64, region: &str) -> Name {
    Name::from(format!("{}-{}", project_hash(project_number), region_code(region)))
}

fn region_code(region: &str) -> String {
    if let Some((_, code)) = REGION_CODES.iter().find(|(known, _)| *known == region) {
        return (*code).to_owned();
    }
    region.split('-').filter_map(|word| word.chars().next()).take(2).collect()
}

/// Ten characters that differ from project to project and never change.
fn project_hash(project_number: u64) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // A fixed odd multiplier spreads neighbouring numbers; it is a name, not a secret.
    let mut bits = project_number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits ^= bits >> 29;
    (0..10)
        .map(|_| {
            let character = ALPHABET[(bits % 32) as usize];
            bits /= 32;
            char::from(character)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_back_with_and_without_a_tag() {
        let [number, hash] = hosts("my-app-2", 123_456, "us-west1");
        assert_eq!(number, "my-app-2-123456.us-west1.run.app");
        let home = Home::Number { project_number: 123_456, region: "us-west1" };
        assert_eq!(parse(&number), Some(Address { tag: None, service: "my-app-2", home }));

        let key = hash_key(123_456, "us-west1");
        let tagged = format!("blue---{hash}");
        let home = Home::Hash { key: &key };
        assert_eq!(parse(&tagged), Some(Address { tag: Some("blue"), service: "my-app-2", home }));
    }

    #[test]
    fn what_is_no_address_is_not_read() {
        for host in [
            "run.app",
            "a.run.app",
            "x.us-west1.run.app",
            "x-y.us-west1.run.app",
            "x-1.example.com",
        ] {
            assert_eq!(parse(host), None, "{host}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_service_is_read_back_from_both_its_hosts(
            service in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
            tag in proptest::option::of("[a-z]([a-z0-9]{0,8})?"),
            project_number: u64,
            region in "[a-z]{2,6}-[a-z]{4,9}[1-9]",
        ) {
            // Three hyphens are what divides a tag from a service.
            proptest::prop_assume!(!service.contains("---"));
            for host in hosts(&service, project_number, &region) {
                let host = tag.as_ref().map_or(host.clone(), |tag| format!("{tag}---{host}"));
                let read = parse(&host);
                proptest::prop_assert_eq!(
                    read.map(|address| (address.tag, address.service)),
                    Some((tag.as_deref(), service.as_str()))
                );
            }
        }

        #[test]
        fn no_host_is_too_strange_to_be_read(host in "\\PC{0,80}(\\.run\\.app)?") {
            parse(&host);
        }
    }
}
