//! Who may log in to an instance: the `ssh-keys` metadata of the project and the instance, read.
//!
//! Invariant: a key that comes out is one line that sshd reads as a key with at most an expiry, never
//! as an option of the writer's choosing.

use model::Name;
use model::instance::Instance;
use model::project::Project;

/// The longest name of a user an instance will make.
pub const USER_BYTES_MAX: usize = 32;
/// Keys read for one instance; what comes after them is not looked at.
pub const KEYS_MAX: usize = 1024;

/// A user of an instance and one key that opens the door.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SshKey {
    /// The name of the account.
    pub user: Name,
    /// The line of the `authorized_keys` file.
    pub line: String,
}

/// The keys in force on an instance: its own, and the project's unless it blocks them.
pub fn of_instance(project: Option<&Project>, instance: &Instance) -> Vec<SshKey> {
    // The older `sshKeys` of an instance replaces the project's keys, as it always has.
    let older = instance.metadata_value("sshKeys");
    let blocked = older.is_some() || is_true(instance.metadata_value("block-project-ssh-keys"));
    let of_project = project.filter(|_| !blocked).into_iter().flat_map(|project| {
        let items = project.common_instance_metadata.iter();
        items
            .filter(|(key, _)| matches!(key.as_str(), "ssh-keys" | "sshKeys"))
            .map(|(_, v)| v.as_str())
    });
    let texts = of_project.chain(older).chain(instance.metadata_value("ssh-keys"));
    let mut keys: Vec<SshKey> =
        texts.flat_map(str::lines).filter_map(read).take(KEYS_MAX).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Whether a metadata value says yes, in the spellings Google's guest environment takes.
fn is_true(value: Option<&str>) -> bool {
    let word = value.unwrap_or_default().trim().to_ascii_lowercase();
    matches!(word.as_str(), "true" | "1" | "y" | "yes")
}

/// Reads one line, `USER:TYPE KEY COMMENT`; `None` when it is anything else.
fn read(line: &str) -> Option<SshKey> {
    let (user, key) = line.trim().split_once(':')?;
    if !is_user_name(user) {
        return None;
    }
    let mut words = key.split_ascii_whitespace();
    let (kind, blob) = (words.next()?, words.next()?);
    let is_kind =
        |kind: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|start| kind.starts_with(start));
    let of_key =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'@' | b'.');
    if !is_kind(kind) || !kind.bytes().all(of_key) || !blob.bytes().all(of_key) {
        return None;
    }
    let comment: String = key.split_once(blob)?.1.trim().into();
    let line = match expiry(&comment) {
        Some(Expiry::At(moment)) => format!("expiry-time=\"{moment}\" {kind} {blob} {user}"),
        Some(Expiry::Unreadable) => return None,
        None => format!("{kind} {blob} {user}"),
    };
    Some(SshKey { user: user.into(), line })
}

/// Whether the account can be made: what `useradd` takes, dots allowed as Google's guest agent does.
fn is_user_name(user: &str) -> bool {
    let starts = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let goes_on = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    user.len() <= USER_BYTES_MAX
        && user.bytes().next().is_some_and(starts)
        && user.bytes().all(goes_on)
}

/// Until when a key is good.
enum Expiry {
    /// The moment in sshd's form, `YYYYMMDDHHMMSS` in UTC.
    At(String),
    /// There is a bound that cannot be read; such a key opens nothing.
    Unreadable,
}

/// The `expireOn` of a `google-ssh {...}` comment, written as `2030-01-02T03:04:05+0000`.
fn expiry(comment: &str) -> Option<Expiry> {
    let json = comment.strip_prefix("google-ssh")?;
    let after = json.split_once("\"expireOn\"")?.1;
    let moment =
        after.trim_start_matches([':', ' ']).strip_prefix('"').and_then(|m| m.split('"').next());
    let Some((moment, zone)) = moment.and_then(|m| m.get(..19).zip(m.get(19..))) else {
        return Some(Expiry::Unreadable);
    };
    let shape = moment.bytes().zip("9999-99-99T99:99:99".bytes());
    let fits = shape.into_iter().all(|(b, s)| if s == b'9' { b.is_ascii_digit() } else { b == s });
    if !fits || !matches!(zone, "+0000" | "Z" | "+00:00") {
        return Some(Expiry::Unreadable);
    }
    Some(Expiry::At(moment.chars().filter(char::is_ascii_digit).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Kind, ResourceName};
    use proptest::prelude::*;

    fn instance(metadata: &[(&str, &str)]) -> Instance {
        Instance {
            name: ResourceName::zonal("p", "us-west1-a", Kind::Instance, "vm"),
            id: 1,
            interfaces: Vec::new(),
            tags: Vec::new(),
            metadata: metadata.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            service_accounts: Vec::new(),
            can_ip_forward: false,
            deletion_protection: false,
            hostname: None,
            running: true,
            boot: 0,
        }
    }

    fn project(keys: &str) -> Project {
        let common_instance_metadata = vec![("ssh-keys".into(), keys.into())];
        Project { name: ResourceName::project("p"), number: 7, common_instance_metadata }
    }

    fn users(project: &Project, instance: &Instance) -> Vec<String> {
        of_instance(Some(project), instance).iter().map(|key| key.user.to_string()).collect()
    }

    #[test]
    fn an_instance_has_its_own_keys_and_the_projects_unless_it_blocks_them() {
        let project = project("amy:ssh-rsa AAAA amy@home");
        let own = ("ssh-keys", "bob:ssh-ed25519 BBBB\ncy:ecdsa-sha2-nistp256 CCCC");
        assert_eq!(users(&project, &instance(&[])), ["amy"]);
        assert_eq!(users(&project, &instance(&[own])), ["amy", "bob", "cy"]);
        let blocked = ("block-project-ssh-keys", "TRUE");
        assert_eq!(users(&project, &instance(&[own, blocked])), ["bob", "cy"]);
        assert_eq!(users(&project, &instance(&[("sshKeys", "old:ssh-rsa DDDD")])), ["old"]);
    }

    #[test]
    fn a_line_is_a_key_or_nothing() {
        for (line, read_as) in [
            ("amy:ssh-rsa AAAA+/== amy@home", Some("ssh-rsa AAAA+/== amy")),
            ("  amy:ssh-rsa AAAA  ", Some("ssh-rsa AAAA amy")),
            (
                "john.doe:sk-ssh-ed25519@openssh.com AAAA",
                Some("sk-ssh-ed25519@openssh.com AAAA john.doe"),
            ),
            ("amy:command=\"reboot\" ssh-rsa AAAA", None),
            ("amy:ssh-rsa", None),
            ("ssh-rsa AAAA", None),
            ("../etc:ssh-rsa AAAA", None),
            ("-x:ssh-rsa AAAA", None),
            (":ssh-rsa AAAA", None),
            ("amy:ssh-rsa AA\"AA", None),
        ] {
            assert_eq!(read(line).map(|key| key.line).as_deref(), read_as, "{line}");
        }
    }

    #[test]
    fn a_key_that_expires_says_so_to_sshd() {
        let line = |moment: &str| {
            format!(
                "amy:ssh-rsa AAAA google-ssh {{\"userName\":\"amy\",\"expireOn\":\"{moment}\"}}"
            )
        };
        let read_as = |moment: &str| read(&line(moment)).map(|key| key.line);
        assert_eq!(
            read_as("2030-01-02T03:04:05+0000").as_deref(),
            Some("expiry-time=\"20300102030405\" ssh-rsa AAAA amy")
        );
        assert_eq!(read_as("soon"), None);
        assert_eq!(read_as("2030-01-02T03:04:05+0200"), None);
    }

    proptest! {
        #[test]
        fn whatever_the_metadata_says_a_key_is_one_line_with_no_option_but_its_expiry(
            text in prop_oneof![
                any::<String>(),
                "([a-z.-]{1,4}:(ssh-rsa|ecdsa-x|[ -~]{0,9}) [ -~]{0,9}( google-ssh [ -~]{0,30})?\n){0,4}",
            ],
        ) {
            for key in of_instance(Some(&project(&text)), &instance(&[])) {
                let kind = match key.line.split_once(' ') {
                    Some((expiry, rest)) if expiry.starts_with("expiry-time=") => rest,
                    _ => &key.line,
                };
                prop_assert!(["ssh-", "ecdsa-", "sk-"].iter().any(|start| kind.starts_with(start)));
                prop_assert!(!key.line.contains(['\n', '\r', '\0']), "{:?}", key.line);
                prop_assert!(is_user_name(&key.user));
            }
        }
    }
}
