//! What is wrong with a declared service or revision, in Cloud Run's words.
//!
//! Fields are written as the v1 API has them, which is what `gcloud` shows.

use imbl::OrdMap;
use model::run::{
    CONCURRENCY_MAX, Container, Probe, ProbeAction, Revision, RevisionChoice, Service,
    TIMEOUT_SECONDS_MAX,
};
use model::{Name, Problem, ResourceName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The longest name of a service.
const SERVICE_NAME_CHARACTERS_MAX: usize = 49;
/// The longest tag and service name together, so that they fit a host name with what joins them.
const TAG_AND_SERVICE_CHARACTERS_MAX: usize = 46;
/// The most containers of a revision.
const CONTAINERS_MAX: usize = 10;

const MEBIBYTE: u64 = 1024 * 1024;
const GIBIBYTE: u64 = 1024 * MEBIBYTE;

/// Environment variables the server sets itself.
const RESERVED_ENVIRONMENT: [&str; 4] = ["PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION"];

/// For each number of processors, in thousandths: the least and the most memory.
const MEMORY_FOR_PROCESSORS: [(u32, u64, u64); 5] = [
    (1000, 128 * MEBIBYTE, 4 * GIBIBYTE),
    (2000, 128 * MEBIBYTE, 8 * GIBIBYTE),
    (4000, 2 * GIBIBYTE, 16 * GIBIBYTE),
    (6000, 4 * GIBIBYTE, 24 * GIBIBYTE),
    (8000, 4 * GIBIBYTE, 32 * GIBIBYTE),
];
const PROCESSOR_MILLIS_MIN: u32 = 80;

pub(super) fn find(service: &Service, revisions: &OrdMap<Name, Arc<Revision>>) -> Vec<Problem> {
    let mut found = Found { resource: &service.name, problems: Vec::new() };
    check_service(service, revisions, &mut found);
    let mut problems = found.problems;
    for revision in revisions.values() {
        let mut found = Found { resource: &revision.name, problems: Vec::new() };
        check_revision(revision, &service.name.name, &mut found);
        problems.append(&mut found.problems);
    }
    problems
}

struct Found<'a> {
    resource: &'a ResourceName,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn add(&mut self, field: impl Into<String>, sentence: impl AsRef<str>) {
        let field = field.into();
        let message = format!("{field}: {}", sentence.as_ref());
        self.problems.push(Problem::refused(self.resource, field, message));
    }

    fn add_if(&mut self, wrong: bool, field: impl Into<String>, sentence: impl AsRef<str>) {
        if wrong {
            self.add(field, sentence);
        }
    }
}

fn check_service(
    service: &Service,
    revisions: &OrdMap<Name, Arc<Revision>>,
    found: &mut Found<'_>,
) {
    let name = &service.name.name;
    found.add_if(
        !is_label(name, SERVICE_NAME_CHARACTERS_MAX),
        "metadata.name",
        "only lowercase, digits, and hyphens; must begin with letter, and cannot end with hyphen; \
         must be less than 50 characters",
    );
    if let Some(max) = service.scaling.instances_max {
        found.add_if(
            max == 0,
            "metadata.annotations[run.googleapis.com/maxScale]",
            "must be at least 1",
        );
        found.add_if(
            service.scaling.instances_min > max && max > 0,
            "metadata.annotations[run.googleapis.com/minScale]",
            "minScale must be less than or equal to maxScale",
        );
    }
    if service.traffic.is_empty() {
        return;
    }
    let sum: u64 = service.traffic.iter().map(|target| u64::from(target.percent)).sum();
    found.add_if(
        sum != 100,
        "spec.traffic",
        format!("traffic percentages must sum to 100, but sum to {sum}"),
    );
    let mut tags = BTreeSet::new();
    for (index, target) in service.traffic.iter().enumerate() {
        if let RevisionChoice::Named(revision) = &target.revision {
            found.add_if(
                !revisions.contains_key(revision),
                format!("spec.traffic[{index}].revisionName"),
                format!("Revision '{revision}' is not found."),
            );
        }
        let Some(tag) = &target.tag else { continue };
        let field = format!("spec.traffic[{index}].tag");
        found.add_if(
            !is_label(tag, TAG_AND_SERVICE_CHARACTERS_MAX),
            &field,
            format!(
                "'{tag}' is not a valid traffic tag: it must start with a letter and can only use \
                 lowercase letters, numbers and hyphens"
            ),
        );
        found.add_if(
            tag.len() + name.len() > TAG_AND_SERVICE_CHARACTERS_MAX,
            &field,
            format!(
                "the tag '{tag}' and the service name together must have at most \
                 {TAG_AND_SERVICE_CHARACTERS_MAX} characters"
            ),
        );
        found.add_if(!tags.insert(tag), &field, format!("the tag '{tag}' is used more than once"));
    }
}

fn check_revision(revision: &Revision, service: &Name, found: &mut Found<'_>) {
    let name = &revision.name.name;
    let suffix = name.strip_prefix(service.as_str()).and_then(|rest| rest.strip_prefix('-'));
    found.add_if(
        suffix.is_none_or(str::is_empty) || !is_label(name, 63),
        "spec.template.metadata.name",
        format!(
            "Revision name must be prefixed by the name of the enclosing Service with a trailing -, \
             and use only lowercase letters, numbers and hyphens: '{name}' is not of the form \
             '{service}-SUFFIX'"
        ),
    );
    found.add_if(
        !(1..=CONCURRENCY_MAX).contains(&revision.concurrency),
        "spec.template.spec.containerConcurrency",
        format!("must be between 1 and {CONCURRENCY_MAX}, inclusive"),
    );
    found.add_if(
        !(1..=TIMEOUT_SECONDS_MAX).contains(&revision.timeout_seconds),
        "spec.template.spec.timeoutSeconds",
        format!("must be between 1 and {TIMEOUT_SECONDS_MAX}, inclusive"),
    );
    check_scaling(revision, found);
    check_containers(revision, found);
    check_volumes(revision, found);
}

fn check_scaling(revision: &Revision, found: &mut Found<'_>) {
    let scaling = &revision.scaling;
    let field = |name: &str| format!("spec.template.metadata.annotations[{name}]");
    if let Some(max) = scaling.instances_max {
        let max_scale = "autoscaling.knative.dev/maxScale";
        found.add_if(max == 0, field(max_scale), "must be at least 1");
        found.add_if(
            max > 0 && scaling.instances_min > max,
            field("autoscaling.knative.dev/minScale"),
            format!(
                "minScale ({}) must be less than or equal to maxScale ({max})",
                scaling.instances_min
            ),
        );
    }
    let (concurrency, cpu) =
        (scaling.concurrency_utilization_percent, scaling.cpu_utilization_percent);
    let within = |percent: u8, most: u8| percent == 0 || (10..=most).contains(&percent);
    found.add_if(
        !within(concurrency, 95),
        field("run.googleapis.com/scaling-concurrency-target"),
        "must be 0 or between 0.1 and 0.95",
    );
    found.add_if(
        !within(cpu, 90),
        field("run.googleapis.com/scaling-cpu-target"),
        "must be 0 or between 0.1 and 0.90",
    );
    found.add_if(
        concurrency == 0 && cpu == 0,
        field("run.googleapis.com/scaling-cpu-target"),
        "cpu and concurrency targets cannot both be disabled",
    );
}

fn check_containers(revision: &Revision, found: &mut Found<'_>) {
    let containers = &revision.containers;
    let all = "spec.template.spec.containers";
    found.add_if(containers.is_empty(), all, "at least one container is required");
    found.add_if(
        containers.len() > CONTAINERS_MAX,
        all,
        format!("at most {CONTAINERS_MAX} containers are allowed"),
    );
    let with_port = containers.iter().filter(|container| container.port.is_some()).count();
    found.add_if(
        containers.len() > 1 && with_port != 1,
        all,
        format!(
            "Revision template should contain exactly one container with an exposed port, but \
             has {with_port}"
        ),
    );
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let field = format!("{all}[{index}]");
        found.add_if(
            !names.insert(&container.name),
            format!("{field}.name"),
            format!("the container name '{}' must be unique", container.name),
        );
        check_container(revision, container, &field, found);
    }
    check_start_order(containers, found);
}

fn check_container(revision: &Revision, container: &Container, field: &str, found: &mut Found<'_>) {
    found.add_if(
        container.image.trim().is_empty(),
        format!("{field}.image"),
        "Revision template should have an image",
    );
    if let Some(port) = container.port {
        found.add_if(
            port.number == 0,
            format!("{field}.ports[0].container_port"),
            "must be between 1 and 65535, inclusive",
        );
    }
    let names: BTreeSet<&str> = container.environment.iter().map(|v| v.name.as_str()).collect();
    let reserved: Vec<&str> =
        names.iter().copied().filter(|name| RESERVED_ENVIRONMENT.contains(name)).collect();
    found.add_if(
        !reserved.is_empty(),
        format!("{field}.env"),
        format!(
            "The following reserved env names were provided: {}. These values are automatically \
             set by the system.",
            reserved.join(", ")
        ),
    );
    found.add_if(
        names.iter().any(|name| name.is_empty() || name.contains(['=', '\0'])),
        format!("{field}.env"),
        "an environment variable needs a name without '='",
    );
    check_limits(revision, container, field, found);
    let probes = [
        ("startupProbe", &container.startup_probe, 240),
        ("livenessProbe", &container.liveness_probe, 3600),
        ("readinessProbe", &container.readiness_probe, 3600),
    ];
    for (name, probe, seconds_max) in probes {
        let Some(probe) = probe else { continue };
        check_probe(probe, &format!("{field}.{name}"), seconds_max, found);
    }
    found.add_if(
        matches!(&container.liveness_probe, Some(Probe { action: ProbeAction::Tcp { .. }, .. })),
        format!("{field}.livenessProbe.tcpSocket"),
        "Cloud Run currently does not support TCP socket in liveness probe",
    );
}

fn check_limits(revision: &Revision, container: &Container, field: &str, found: &mut Found<'_>) {
    let limits = container.limits;
    let cpu = format!("{field}.resources.limits.cpu");
    if limits.processor_millis < 1000 {
        found.add_if(
            limits.processor_millis < PROCESSOR_MILLIS_MIN,
            &cpu,
            "Invalid value specified for cpu. The value must be at least 0.08.",
        );
        found.add_if(
            revision.containers.len() == 1 && revision.concurrency > 1,
            &cpu,
            "Invalid value specified for cpu. Total cpu < 1 is not supported with concurrency > 1.",
        );
        return;
    }
    let known =
        MEMORY_FOR_PROCESSORS.iter().find(|(millis, ..)| *millis == limits.processor_millis);
    let Some((millis, least, most)) = known else {
        let sentence = "Invalid value specified for cpu. The value must be less than 1, or one of \
                        1, 2, 4, 6 or 8.";
        found.add(cpu, sentence);
        return;
    };
    found.add_if(
        !(*least..=*most).contains(&limits.memory_bytes),
        format!("{field}.resources.limits.memory"),
        format!(
            "Invalid value specified for container memory. For {}.0 CPU, memory must be between \
             {} and {} inclusive.",
            millis / 1000,
            binary(*least),
            binary(*most)
        ),
    );
}

fn binary(bytes: u64) -> String {
    match bytes.is_multiple_of(GIBIBYTE) {
        true => format!("{}Gi", bytes / GIBIBYTE),
        false => format!("{}Mi", bytes / MEBIBYTE),
    }
}

fn check_probe(probe: &Probe, field: &str, seconds_max: u32, found: &mut Found<'_>) {
    found.add_if(
        probe.initial_delay_seconds > seconds_max,
        format!("{field}.initialDelaySeconds"),
        format!("must be between 0 and {seconds_max}, inclusive"),
    );
    found.add_if(
        !(1..=seconds_max).contains(&probe.period_seconds),
        format!("{field}.periodSeconds"),
        format!("must be between 1 and {seconds_max}, inclusive"),
    );
    found.add_if(
        !(1..=3600).contains(&probe.timeout_seconds),
        format!("{field}.timeoutSeconds"),
        "must be between 1 and 3600, inclusive",
    );
    found.add_if(
        probe.timeout_seconds > probe.period_seconds,
        format!("{field}.timeoutSeconds"),
        "must be less than or equal to periodSeconds",
    );
    found.add_if(
        probe.failure_threshold == 0,
        format!("{field}.failureThreshold"),
        "must be at least 1",
    );
    if let ProbeAction::Http { path, .. } = &probe.action {
        found.add_if(
            !path.starts_with('/'),
            format!("{field}.httpGet.path"),
            "must start with '/'",
        );
    }
}

/// Takes away, again and again, the containers that wait for nobody who is left; what cannot be
/// taken away waits for itself.
fn check_start_order(containers: &[Container], found: &mut Found<'_>) {
    let field = "spec.template.metadata.annotations[run.googleapis.com/container-dependencies]";
    let names: BTreeSet<&Name> = containers.iter().map(|container| &container.name).collect();
    for missing in containers.iter().flat_map(|c| &c.depends_on).filter(|n| !names.contains(n)) {
        found.add(field, format!("the container '{missing}' does not exist"));
    }
    let mut left: Vec<&Container> = containers.iter().collect();
    loop {
        let waiting: BTreeSet<&Name> = left.iter().map(|container| &container.name).collect();
        let before = left.len();
        left.retain(|container| container.depends_on.iter().any(|name| waiting.contains(name)));
        if left.len() == before {
            break;
        }
    }
    found.add_if(!left.is_empty(), field, "the dependencies of the containers form a cycle");
}

fn check_volumes(revision: &Revision, found: &mut Found<'_>) {
    let mut names = BTreeSet::new();
    for (index, volume) in revision.volumes.iter().enumerate() {
        let field = format!("spec.template.spec.volumes[{index}].name");
        found.add_if(
            !names.insert(&volume.name),
            field,
            format!("the volume name '{}' must be unique", volume.name),
        );
    }
    for (container_index, container) in revision.containers.iter().enumerate() {
        let field = format!("spec.template.spec.containers[{container_index}].volumeMounts");
        for (index, mount) in container.mounts.iter().enumerate() {
            found.add_if(
                !names.contains(&mount.volume),
                format!("{field}[{index}].name"),
                format!("the volume '{}' does not exist", mount.volume),
            );
            found.add_if(
                !mount.path.starts_with('/') || mount.path.len() < 2,
                format!("{field}[{index}].mountPath"),
                "must be an absolute path other than '/'",
            );
        }
    }
}

/// A lower-case DNS label that begins with a letter.
fn is_label(text: &str, characters_max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=characters_max).contains(&text.len())
        && text.bytes().all(plain)
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && !text.ends_with('-')
}
