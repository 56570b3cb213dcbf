//! Session affinity: a cookie that brings a client back to the instance that answered it before.
//!
//! Best effort, as Google's: an instance that has gone or has no room does not hold a request up, and the
//! answer then names the one that took it. Invariant: only the revision a cookie was made for reads it.

use crate::endpoints::InstanceId;
use crate::fields::Fields;
use plan::fleet::RevisionPlan;

/// The cookie's name.
const COOKIE: &str = "GAESA";

/// How long a client keeps the cookie, in seconds: 30 days.
const COOKIE_SECONDS: u32 = 30 * 24 * 3600;

/// Digits of a number in a cookie.
const DIGITS: usize = 16;

/// The instance a client had, and the one it got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affinity {
    revision: u64,
    wanted: Option<InstanceId>,
    given: Option<InstanceId>,
}

impl Affinity {
    /// What the request's cookie says, if the revision wants affinity.
    pub(crate) fn of(revision: &RevisionPlan, fields: &impl Fields) -> Option<Affinity> {
        revision.declared.session_affinity.then(|| {
            let wanted = instance_in(revision.id, fields);
            Affinity { revision: revision.id, wanted, given: None }
        })
    }

    /// The instance to ask first.
    pub(crate) fn wanted(&self) -> Option<InstanceId> {
        self.wanted
    }

    /// This instance answers.
    pub(crate) fn give(&mut self, instance: InstanceId) {
        self.given = Some(instance);
    }

    /// The value of `Set-Cookie`, unless the client has that cookie.
    pub(crate) fn set_cookie(&self) -> Option<String> {
        let given = self.given.filter(|given| Some(*given) != self.wanted)?;
        Some(format!(
            "{COOKIE}={:016x}{:016x}; Max-Age={COOKIE_SECONDS}; Path=/; HttpOnly",
            self.revision, given.0
        ))
    }
}

fn instance_in(revision: u64, fields: &impl Fields) -> Option<InstanceId> {
    let mut found = None;
    fields.for_each(|name, value| {
        if name.eq_ignore_ascii_case(b"cookie") {
            let pairs = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            found = found.or_else(|| pairs.filter_map(|pair| read(revision, pair)).next());
        }
    });
    found
}

fn read(revision: u64, pair: &[u8]) -> Option<InstanceId> {
    let value = std::str::from_utf8(pair).ok()?.strip_prefix(COOKIE)?.strip_prefix('=')?;
    let (its_revision, instance) = value.split_at_checked(DIGITS)?;
    let number = |digits: &str| {
        let is_one = digits.len() == DIGITS && digits.bytes().all(|d| d.is_ascii_hexdigit());
        is_one.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    (number(its_revision)? == revision).then(|| number(instance).map(InstanceId)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_read_by_the_revision_it_was_made_for_and_strange_ones_are_nobodys() {
        let made = Affinity { revision: 7, wanted: None, given: Some(InstanceId(300)) };
        let cookie = made.set_cookie().unwrap();
        let pair = cookie.split(';').next().unwrap().to_owned();
        assert_eq!(read(7, pair.as_bytes()), Some(InstanceId(300)));
        assert_eq!(read(8, pair.as_bytes()), None);
        for strange in
            ["GAESA=", "GAESA=zz", "GAESA", "OTHER=1", "GAESA=+000000000000007000000000000012c"]
        {
            assert_eq!(read(7, strange.as_bytes()), None, "{strange}");
        }
        assert_eq!(read(7, "GAESA=000000000000000ß000000000000012".as_bytes()), None);
        let kept = Affinity { wanted: Some(InstanceId(300)), ..made };
        assert_eq!(kept.set_cookie(), None, "the client has it");
    }
}
