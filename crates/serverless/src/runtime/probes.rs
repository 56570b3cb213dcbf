//! When a probe is asked, what its answers add up to, and how its failure is put into words.
//!
//! Pure: answers and times come from the caller.
//!
//! Invariant: a verdict changes only after as many answers in a row as its threshold says.

use std::time::{Duration, Instant};

use super::{Probe, ProbeAction};

/// What the answers so far add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough answers in a row yet.
    Undecided,
    /// Enough passes in a row.
    Passing,
    /// Enough failures in a row.
    Failing,
}

/// The answers of one probe, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    passes: u32,
    failures: u32,
}

impl Answers {
    /// Counts one answer and says what they add up to now.
    pub fn note(&mut self, probe: &Probe, passed: bool) -> Verdict {
        if passed {
            self.passes = self.passes.saturating_add(1);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.passes = 0;
        }
        if self.passes >= probe.success_threshold.max(1) {
            Verdict::Passing
        } else if self.failures >= probe.failure_threshold.max(1) {
            Verdict::Failing
        } else {
            Verdict::Undecided
        }
    }
}

/// When the question after this one is asked.
pub fn next_at(probe: &Probe, asked_at: Instant, now: Instant) -> Instant {
    (asked_at + probe.period).max(now)
}

/// How long one question may take. A port that is to open is watched from one question to the
/// next, since watching costs the container nothing; every other question has its time-out.
pub fn patience(probe: &Probe, kind: ProbeKind) -> Duration {
    match (&probe.action, kind) {
        (ProbeAction::Tcp { .. }, ProbeKind::Startup | ProbeKind::DefaultStartup) => {
            probe.timeout.max(probe.period)
        }
        _ => probe.timeout,
    }
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// The one a container with a port gets when the user gave none.
    DefaultStartup,
    /// Has to pass before the container counts as started.
    Startup,
    /// Ends the instance when it fails.
    Liveness,
    /// Takes the instance out of traffic.
    Readiness,
}

/// Cloud Run's sentence about a probe that failed.
pub fn failure_text(probe: &Probe, kind: ProbeKind, container: &str) -> String {
    let name = match kind {
        ProbeKind::DefaultStartup => "Default STARTUP",
        ProbeKind::Startup => "STARTUP",
        ProbeKind::Liveness => "LIVENESS",
        ProbeKind::Readiness => "READINESS",
    };
    let consequence = match kind {
        ProbeKind::DefaultStartup | ProbeKind::Startup => "The instance was not started.",
        ProbeKind::Liveness => "The instance has been shut down.",
        ProbeKind::Readiness => "The instance receives no requests.",
    };
    let times = probe.failure_threshold.max(1);
    let plural = if times == 1 { "time" } else { "times" };
    let (protocol, place) = match &probe.action {
        ProbeAction::Tcp { port } => ("TCP", format!("port {port}")),
        ProbeAction::Http { port, path, .. } => ("HTTP", format!("port {port} path \"{path}\"")),
        ProbeAction::Grpc { port, service } if service.is_empty() => {
            ("GRPC", format!("port {port}"))
        }
        ProbeAction::Grpc { port, service } => {
            ("GRPC", format!("port {port} service \"{service}\""))
        }
    };
    format!(
        "{name} {protocol} probe failed {times} {plural} consecutively for container \
         \"{container}\" on {place}. {consequence}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(failure_threshold: u32, success_threshold: u32) -> Probe {
        let action = ProbeAction::Tcp { port: 8080 };
        Probe { failure_threshold, success_threshold, ..Probe::with_defaults(action) }
    }

    /// One letter for each verdict.
    fn verdicts(probe: &Probe, answers: &str) -> String {
        let mut counted = Answers::default();
        let letters = answers.chars().map(|answer| match counted.note(probe, answer == '+') {
            Verdict::Undecided => '?',
            Verdict::Passing => 'P',
            Verdict::Failing => 'F',
        });
        letters.collect()
    }

    #[test]
    fn a_verdict_needs_its_threshold_of_answers_in_a_row() {
        let cases = [
            (probe(3, 1), "---", "??F"),
            (probe(3, 1), "--+---", "??P??F"),
            (probe(1, 1), "-", "F"),
            (probe(2, 2), "+-+-++--", "?????P?F"),
            (probe(0, 0), "-+", "FP"),
        ];
        for (probe, answers, expected) in cases {
            assert_eq!(verdicts(&probe, answers), expected, "{answers}");
        }
    }

    #[test]
    fn questions_keep_their_period_and_never_lie_in_the_past() {
        let start = Instant::now();
        let probe = probe(3, 1);
        let soon = start + Duration::from_secs(1);
        assert_eq!(next_at(&probe, start, soon), start + Duration::from_secs(10));
        let late = start + Duration::from_secs(12);
        assert_eq!(next_at(&probe, start, late), late);
    }

    #[test]
    fn a_failure_reads_as_on_cloud_run() {
        let http = Probe::with_defaults(ProbeAction::Http {
            port: 80,
            path: "/up".to_owned(),
            headers: Vec::new(),
        });
        let grpc = ProbeAction::Grpc { port: 50, service: "shop".to_owned() };
        let grpc = Probe { failure_threshold: 1, ..Probe::with_defaults(grpc) };
        let cases = [
            (
                Probe::default_startup(8080),
                ProbeKind::DefaultStartup,
                "Default STARTUP TCP probe failed 1 time consecutively for container \"x\" on \
                 port 8080. The instance was not started.",
            ),
            (
                http,
                ProbeKind::Liveness,
                "LIVENESS HTTP probe failed 3 times consecutively for container \"x\" on port 80 \
                 path \"/up\". The instance has been shut down.",
            ),
            (
                grpc,
                ProbeKind::Readiness,
                "READINESS GRPC probe failed 1 time consecutively for container \"x\" on port 50 \
                 service \"shop\". The instance receives no requests.",
            ),
        ];
        for (probe, kind, expected) in cases {
            assert_eq!(failure_text(&probe, kind, "x"), expected);
        }
    }
}
