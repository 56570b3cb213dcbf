//! What services and revisions mean, on small worlds.

use super::*;
use model::Kind;
use model::run::{
    Access, Container, ContainerLimits, EnvironmentValue, EnvironmentVariable, Ingress, Member,
    Outcome, Probe, ProbeAction, RevisionScaling, ServiceScaling,
};

const PROJECT: &str = "p";
const REGION: &str = "us-west1";
const PROJECT_NUMBER: u64 = 4711;

fn service(name: &str, traffic: &[(&str, u32, &str)]) -> Service {
    let targets = traffic.iter().map(|(revision, percent, tag)| target(revision, *percent, tag));
    Service {
        name: ResourceName::regional(PROJECT, REGION, Kind::Service, name),
        id: 1,
        ingress: Ingress::All,
        default_url_disabled: false,
        access: Access::default(),
        traffic: targets.collect(),
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    }
}

fn target(revision: &str, percent: u32, tag: &str) -> TrafficTarget {
    let choice = match revision {
        "LATEST" => RevisionChoice::Latest,
        name => RevisionChoice::Named(name.into()),
    };
    TrafficTarget { revision: choice, percent, tag: (!tag.is_empty()).then(|| tag.into()) }
}

/// A revision `SERVICE-0000G-x` of generation G; `ready` is `None` while nobody knows.
fn revision(service: &str, generation: u64, ready: Option<bool>) -> Revision {
    let name = format!("{service}-{generation:05}-x");
    let outcome = ready.map(|ready| Outcome {
        ready,
        reason: String::new(),
        message: String::new(),
        image_digests: Vec::new(),
    });
    Revision {
        name: ResourceName::regional(PROJECT, REGION, Kind::Revision, &name),
        id: generation,
        service: ResourceName::regional(PROJECT, REGION, Kind::Service, service),
        generation,
        containers: vec![container("")],
        volumes: Vec::new(),
        concurrency: 80,
        timeout_seconds: 300,
        scaling: RevisionScaling::default(),
        cpu_idle: true,
        startup_cpu_boost: false,
        session_affinity: false,
        service_account: None,
        execution_environment: None,
        vpc_access: None,
        outcome,
    }
}

fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        image: "registry.example/app".to_owned(),
        command: Vec::new(),
        arguments: Vec::new(),
        environment: Vec::new(),
        working_directory: None,
        port: None,
        limits: ContainerLimits::default(),
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        mounts: Vec::new(),
        depends_on: Vec::new(),
    }
}

fn world(services: Vec<Service>, revisions: Vec<Revision>) -> Inventory {
    let mut inventory = Inventory::default();
    let name = ResourceName::project(PROJECT);
    let project = Project { name, number: PROJECT_NUMBER, common_instance_metadata: Vec::new() };
    inventory.insert(model::Resource::Project(Arc::new(project)));
    for service in services {
        inventory.insert(model::Resource::Service(Arc::new(service)));
    }
    for revision in revisions {
        inventory.insert(model::Resource::Revision(Arc::new(revision)));
    }
    inventory
}

fn compiled(inventory: &Inventory) -> FleetPlan {
    compile(inventory, &FleetPlan::default()).0
}

/// `name xCOUNT` for each revision over a hundred turns, or `nothing`.
fn picture(service: &ServicePlan) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for turn in 0..100 {
        if let Some(revision) = service.pick(turn) {
            *counts.entry(revision.name.name.to_string()).or_insert(0) += 1;
        }
    }
    let lines: Vec<_> = counts.iter().map(|(name, count)| format!("{name} x{count}")).collect();
    if lines.is_empty() { "nothing".to_owned() } else { lines.join(", ") }
}

fn check_traffic(
    traffic: &[(&str, u32, &str)],
    before: &[(&str, u32, &str)],
    readiness: &[Option<bool>],
    expected: &str,
) {
    let mut declared = service("s", traffic);
    declared.traffic_before = before.iter().map(|(r, p, t)| target(r, *p, t)).collect();
    let revisions =
        (1..).zip(readiness).map(|(generation, ready)| revision("s", generation, *ready));
    let plan = compiled(&world(vec![declared], revisions.collect()));
    let service = plan.services().next().unwrap();
    assert_eq!(picture(service), expected, "{traffic:?} {before:?} {readiness:?}");
}

const READY: Option<bool> = Some(true);
const FAILED: Option<bool> = Some(false);
const PENDING: Option<bool> = None;

#[test]
fn latest_is_the_newest_revision_that_is_ready() {
    let latest = &[("LATEST", 100, "")];
    check_traffic(latest, &[], &[READY, READY], "s-00002-x x100");
    check_traffic(latest, &[], &[READY, PENDING], "s-00001-x x100");
    check_traffic(latest, &[], &[READY, FAILED], "s-00001-x x100");
    check_traffic(latest, &[], &[PENDING], "nothing");
    check_traffic(latest, &[], &[FAILED], "nothing");
    check_traffic(&[], &[], &[READY], "s-00001-x x100");
}

#[test]
fn percentages_are_exact() {
    let split = &[("s-00001-x", 90, ""), ("LATEST", 7, ""), ("s-00002-x", 3, "blue")];
    check_traffic(split, &[], &[READY, READY, READY], "s-00001-x x90, s-00002-x x3, s-00003-x x7");
    check_traffic(split, &[], &[READY, READY], "s-00001-x x90, s-00002-x x10");
}

#[test]
fn a_revision_that_is_not_ready_takes_no_traffic_and_the_old_one_keeps_serving() {
    let to_new = &[("s-00003-x", 100, "")];
    let old = &[("s-00001-x", 100, "")];
    check_traffic(to_new, old, &[READY, READY, PENDING], "s-00001-x x100");
    check_traffic(to_new, old, &[READY, READY, FAILED], "s-00001-x x100");
    check_traffic(to_new, old, &[READY, READY, READY], "s-00003-x x100");
    check_traffic(to_new, &[], &[READY, READY, FAILED], "s-00002-x x100");
    let half = &[("s-00001-x", 50, ""), ("s-00003-x", 50, "")];
    check_traffic(half, &[], &[READY, READY, PENDING], "s-00001-x x100");
}

#[test]
fn a_tag_leads_to_its_revision_once_that_is_ready() {
    let traffic = &[("s-00001-x", 100, "green"), ("s-00002-x", 0, "blue")];
    let describe = |tagged: Tagged<'_>| match tagged {
        Tagged::Revision(revision) => revision.name.name.to_string(),
        Tagged::NotReady => "not ready".to_owned(),
        Tagged::NoSuchTag => "no such tag".to_owned(),
    };
    for (second, blue) in [(READY, "s-00002-x"), (PENDING, "not ready"), (FAILED, "not ready")] {
        let revisions = vec![revision("s", 1, READY), revision("s", 2, second)];
        let plan = compiled(&world(vec![service("s", traffic)], revisions));
        let service = plan.services().next().unwrap();
        assert_eq!(describe(service.tagged("blue")), blue);
        assert_eq!(describe(service.tagged("green")), "s-00001-x");
        assert_eq!(describe(service.tagged("red")), "no such tag");
    }
}

#[test]
fn only_revisions_with_a_role_are_deployed_and_limits_follow_traffic() {
    let traffic = &[("s-00001-x", 70, ""), ("s-00002-x", 30, ""), ("s-00003-x", 0, "test")];
    let mut declared = service("s", traffic);
    declared.scaling =
        ServiceScaling { instances_min: 10, instances_max: Some(20), instances_manual: None };
    let mut second = revision("s", 2, READY);
    second.scaling.instances_max = Some(4);
    let revisions = vec![
        revision("s", 1, READY),
        second,
        revision("s", 3, READY),
        revision("s", 4, READY),
        revision("s", 5, FAILED),
        revision("s", 6, PENDING),
    ];
    let plan = compiled(&world(vec![declared], revisions));
    let service = plan.services().next().unwrap();
    let lines: Vec<String> = service
        .deployments
        .iter()
        .map(|Deployment { revision, role, scaling }| {
            let Scaling { instances_min, instances_max, .. } = scaling;
            format!("{} {role:?} {instances_min}..{instances_max}", revision.name.name)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "s-00001-x Serving { percent: 70 } 7..14",
            "s-00002-x Serving { percent: 30 } 3..4",
            "s-00003-x Tagged 0..20",
            "s-00006-x Check 0..20",
        ]
    );
}

#[test]
fn what_did_not_change_is_shared_and_turns_go_on() {
    let latest = &[("LATEST", 100, "")];
    let revisions = vec![revision("a", 1, READY), revision("b", 2, READY)];
    let first = world(vec![service("a", latest), service("b", latest)], revisions);
    let (before, _) = compile(&first, &FleetPlan::default());
    let mut second = first.clone();
    second.insert(model::Resource::Revision(Arc::new(revision("b", 3, PENDING))));
    let (after, _) = compile(&second, &before);

    let find = |plan: &FleetPlan, name: &str| {
        Arc::clone(plan.services_in(PROJECT, REGION).unwrap().get(name).unwrap())
    };
    assert!(Arc::ptr_eq(&find(&before, "a"), &find(&after, "a")));
    assert!(!Arc::ptr_eq(&find(&before, "b"), &find(&after, "b")));
    let kept = |plan: &FleetPlan| Arc::clone(&find(plan, "b").revisions["b-00002-x"]);
    assert!(Arc::ptr_eq(&kept(&before), &kept(&after)));
    let turn = find(&before, "b").next_turn();
    assert_eq!(find(&after, "b").next_turn(), turn + 1);
    let only_b = imbl::OrdSet::unit(find(&after, "b").name().clone());
    assert_eq!(after.changed_since(&before), only_b);

    let mut third = second.clone();
    third.remove(find(&after, "b").name());
    let (last, _) = compile(&third, &after);
    assert_eq!(last.services().count(), 1);
    assert_eq!(last.changed_since(&before), only_b);
}

#[test]
fn a_service_is_found_by_each_of_its_hosts() {
    let inventory = world(vec![service("s", &[])], vec![revision("s", 1, READY)]);
    let plan = compiled(&inventory);
    let hosts = plan.services().next().unwrap().hosts.clone();
    assert_eq!(hosts[0], "s-4711.us-west1.run.app");
    for host in hosts {
        for (host, tag) in [
            (host.clone(), None),
            (format!("{host}:443"), None),
            (format!("blue---{host}"), Some("blue")),
        ] {
            let found = plan.by_host(&host).unwrap();
            assert_eq!((found.service.name().name.as_str(), found.tag), ("s", tag), "{host}");
        }
    }
    for host in ["t-4711.us-west1.run.app", "s-4712.us-west1.run.app", "s-4711.us-east1.run.app"] {
        assert!(plan.by_host(host).is_none(), "{host}");
    }
}

#[test]
fn ingress_is_asked_before_access() {
    use AccessVerdict::*;
    let user = Member::User("ann@example.com".into());
    let other = Member::ServiceAccount("app@p.iam.gserviceaccount.com".into());
    let own = "https://s-4711.us-west1.run.app";
    let known = |member, audience| Caller::Identified { member, audience };
    let invokers = |members: &[&str]| members.iter().filter_map(|m| Member::parse(m)).collect();
    let cases: Vec<(Ingress, &[&str], Arrival, Caller<'_>, AccessVerdict)> = vec![
        (Ingress::All, &["allUsers"], Arrival::Outside, Caller::Anonymous, Admitted),
        (Ingress::All, &["allUsers"], Arrival::Outside, Caller::Invalid, Admitted),
        (Ingress::Internal, &["allUsers"], Arrival::Outside, Caller::Anonymous, WrongIngress),
        (Ingress::Internal, &["allUsers"], Arrival::Vpc, Caller::Anonymous, Admitted),
        (Ingress::Internal, &[], Arrival::InternalLoadBalancer, Caller::Anonymous, Unauthenticated),
        (
            Ingress::None,
            &["allUsers"],
            Arrival::InternalLoadBalancer,
            Caller::Anonymous,
            WrongIngress,
        ),
        (Ingress::All, &[], Arrival::Outside, Caller::Invalid, InvalidToken),
        (Ingress::All, &["user:ann@example.com"], Arrival::Outside, known(&user, own), Admitted),
        (
            Ingress::All,
            &["user:ann@example.com"],
            Arrival::Outside,
            known(&user, "https://x"),
            InvalidToken,
        ),
        (
            Ingress::All,
            &["user:ann@example.com"],
            Arrival::Outside,
            known(&user, "https://lb.example"),
            Admitted,
        ),
        (Ingress::All, &["user:ann@example.com"], Arrival::Outside, known(&other, own), NotAllowed),
        (Ingress::All, &["domain:example.com"], Arrival::Outside, known(&user, own), Admitted),
        (Ingress::All, &["allAuthenticatedUsers"], Arrival::Outside, known(&other, own), Admitted),
    ];
    for (ingress, members, arrival, caller, verdict) in cases {
        let mut declared = service("s", &[]);
        declared.ingress = ingress;
        declared.access.invokers = invokers(members);
        declared.access.custom_audiences = vec!["https://lb.example".into()];
        let plan = compiled(&world(vec![declared], vec![]));
        let service = plan.services().next().unwrap();
        let got = service.admits(arrival, caller);
        assert_eq!(got, verdict, "{ingress:?} {members:?} {arrival:?} {caller:?}");
    }
}

#[test]
fn a_refused_caller_reads_googles_words_and_nothing_of_theirs_is_markup() {
    let refusal = AccessVerdict::Unauthenticated.refusal("/<script>").unwrap();
    assert_eq!(refusal.status, 403);
    assert!(refusal.body.contains("<h1>Error: Forbidden</h1>"), "{}", refusal.body);
    assert!(refusal.body.contains("get URL <code>/&#60;script&#62;</code> from this server."));
    assert_eq!(AccessVerdict::WrongIngress.refusal("/").unwrap().status, 404);
    let unauthorized = AccessVerdict::InvalidToken.refusal("/").unwrap();
    assert!(unauthorized.status == 401 && unauthorized.authenticate.is_some());
    assert_eq!(AccessVerdict::Admitted.refusal("/"), None);
}

fn messages(service: Service, revisions: Vec<Revision>) -> Vec<String> {
    let (_, problems) = compile(&world(vec![service], revisions), &FleetPlan::default());
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_wrong_with_traffic_is_said() {
    for (traffic, expected) in [
        (
            &[("LATEST", 90, "")][..],
            "spec.traffic: traffic percentages must sum to 100, but sum to 90",
        ),
        (
            &[("s-00009-x", 100, "")],
            "spec.traffic[0].revisionName: Revision 's-00009-x' is not found.",
        ),
        (
            &[("LATEST", 100, "a"), ("LATEST", 0, "a")],
            "spec.traffic[1].tag: the tag 'a' is used more than once",
        ),
    ] {
        assert_eq!(messages(service("s", traffic), vec![revision("s", 1, READY)]), [expected]);
    }
    let none: [&str; 0] = [];
    assert_eq!(
        messages(service("s", &[("LATEST", 100, "a")]), vec![revision("s", 1, READY)]),
        none
    );
}

#[test]
fn what_is_wrong_with_a_revision_is_said() {
    type Edit = fn(&mut Revision);
    let cases: Vec<(Edit, &str)> = vec![
        (
            |r| r.concurrency = 1001,
            "spec.template.spec.containerConcurrency: must be between 1 and 1000",
        ),
        (
            |r| r.timeout_seconds = 3601,
            "spec.template.spec.timeoutSeconds: must be between 1 and 3600",
        ),
        (
            |r| r.name = ResourceName::regional(PROJECT, REGION, Kind::Revision, "other"),
            "spec.template.metadata.name: Revision name must be prefixed by the name",
        ),
        (
            |r| r.containers[0].image = String::new(),
            "spec.template.spec.containers[0].image: Revision",
        ),
        (
            |r| {
                let value = EnvironmentValue::Literal("1".to_owned());
                r.containers[0].environment =
                    vec![EnvironmentVariable { name: "PORT".into(), value }];
            },
            "spec.template.spec.containers[0].env: The following reserved env names were provided: PORT.",
        ),
        (
            |r| r.containers[0].limits.processor_millis = 500,
            "spec.template.spec.containers[0].resources.limits.cpu: Invalid value specified for cpu. \
             Total cpu < 1 is not supported with concurrency > 1.",
        ),
        (
            |r| r.containers[0].limits.processor_millis = 4000,
            "spec.template.spec.containers[0].resources.limits.memory: Invalid value specified for \
             container memory. For 4.0 CPU, memory must be between 2Gi and 16Gi inclusive.",
        ),
        (
            |r| {
                r.containers[0].liveness_probe = Some(Probe {
                    action: ProbeAction::Tcp { port: None },
                    initial_delay_seconds: 0,
                    period_seconds: 10,
                    timeout_seconds: 1,
                    failure_threshold: 3,
                    success_threshold: 1,
                });
            },
            "spec.template.spec.containers[0].livenessProbe.tcpSocket: Cloud Run currently does not \
             support TCP socket in liveness probe",
        ),
        (
            |r| r.containers.push(container("sidecar")),
            "spec.template.spec.containers: Revision template should contain exactly one container \
             with an exposed port, but has 0",
        ),
        (
            |r| {
                r.containers[0].name = "app".into();
                r.containers[0].port = Some(<_>::default());
                r.containers[0].depends_on = vec!["side".into()];
                r.containers.push(container("side"));
                r.containers[1].depends_on = vec!["app".into()];
            },
            "spec.template.metadata.annotations[run.googleapis.com/container-dependencies]: the \
             dependencies of the containers form a cycle",
        ),
        (
            |r| {
                r.scaling.instances_min = 5;
                r.scaling.instances_max = Some(3);
            },
            "spec.template.metadata.annotations[autoscaling.knative.dev/minScale]: minScale (5) must \
             be less than or equal to maxScale (3)",
        ),
    ];
    for (edit, expected) in cases {
        let mut wrong = revision("s", 1, PENDING);
        edit(&mut wrong);
        let found = messages(service("s", &[]), vec![wrong]);
        assert_eq!(found.len(), 1, "{expected}: {found:?}");
        assert!(found[0].starts_with(expected), "{found:?}");
    }
}

/// Everything a plan says, as text.
fn whole_picture(plan: &FleetPlan, problems: &[Problem]) -> String {
    let mut lines = Vec::new();
    for service in plan.services() {
        let name = service.name();
        let latest = service.latest_ready.as_ref().map(|latest| latest.name.name.to_string());
        lines.push(format!("{name} {} latest {latest:?}", picture(service)));
        lines.extend(service.hosts.iter().map(|host| {
            let found = plan.by_host(host).map(|found| found.service.name().to_string());
            format!("{host} -> {found:?}")
        }));
        for deployment in &service.deployments {
            let (name, role) = (&deployment.revision.name.name, deployment.role);
            lines.push(format!("{name} {role:?} {:?}", deployment.scaling));
        }
        for tag in ["blue", "green"] {
            let kind = match service.tagged(tag) {
                Tagged::Revision(revision) => revision.name.name.to_string(),
                Tagged::NotReady => "not ready".to_owned(),
                Tagged::NoSuchTag => continue,
            };
            lines.push(format!("{tag} {kind}"));
        }
    }
    let mut problems: Vec<String> =
        problems.iter().map(|problem| format!("{} {problem}", problem.resource)).collect();
    problems.sort();
    lines.extend(problems);
    lines.join("\n")
}

#[derive(Clone, Debug)]
enum Step {
    Service { name: usize, target: u64, percent: u32, tag: usize },
    Revision { service: usize, generation: u64, ready: Option<bool> },
    RemoveService(usize),
    RemoveRevision(usize, u64),
    Project(u64),
}

/// One name is the beginning of another.
const NAMES: [&str; 3] = ["a", "ab", "c"];

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        (0..3_usize, 0..4_u64, 0..=100_u32, 0..3_usize)
            .prop_map(|(name, target, percent, tag)| Step::Service { name, target, percent, tag }),
        (0..3_usize, 1..4_u64, any::<Option<bool>>()).prop_map(|(service, generation, ready)| {
            Step::Revision { service, generation, ready }
        }),
        (0..3_usize).prop_map(Step::RemoveService),
        (0..3_usize, 1..4_u64).prop_map(|(service, g)| Step::RemoveRevision(service, g)),
        (1..3_u64).prop_map(Step::Project),
    ]
}

fn take(step: &Step, world: &mut Inventory) {
    let service_name =
        |index: usize| ResourceName::regional(PROJECT, REGION, Kind::Service, NAMES[index]);
    match step {
        Step::Service { name, target, percent, tag } => {
            let revision = match target {
                0 => "LATEST".to_owned(),
                generation => format!("{}-{generation:05}-x", NAMES[*name]),
            };
            let traffic = [
                (revision.as_str(), *percent, ["", "blue", "green"][*tag]),
                ("LATEST", 100 - percent, ""),
            ];
            let declared = service(NAMES[*name], &traffic);
            world.insert(model::Resource::Service(Arc::new(declared)));
        }
        Step::Revision { service, generation, ready } => {
            let declared = revision(NAMES[*service], *generation, *ready);
            world.insert(model::Resource::Revision(Arc::new(declared)));
        }
        Step::RemoveService(index) => {
            world.remove(&service_name(*index));
        }
        Step::RemoveRevision(index, generation) => {
            let name = format!("{}-{generation:05}-x", NAMES[*index]);
            world.remove(&ResourceName::regional(PROJECT, REGION, Kind::Revision, &name));
        }
        Step::Project(number) => {
            let name = ResourceName::project(PROJECT);
            let project = Project { name, number: *number, common_instance_metadata: Vec::new() };
            world.insert(model::Resource::Project(Arc::new(project)));
        }
    }
}

proptest::proptest! {
    #[test]
    fn a_plan_brought_forward_says_what_one_from_nothing_says(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut world = world(vec![], vec![]);
        let mut plan = FleetPlan::default();
        for step in &steps {
            take(step, &mut world);
            let (next, problems) = compile(&world, &plan);
            let (fresh, fresh_problems) = compile(&world, &FleetPlan::default());
            proptest::prop_assert_eq!(
                whole_picture(&next, &problems),
                whole_picture(&fresh, &fresh_problems)
            );
            plan = next;
        }
    }
}

#[test]
fn a_request_to_a_services_own_address_is_told_by_service_tag_share_and_access() {
    let declared = service("s", &[("s-00001-x", 25, ""), ("s-00002-x", 75, "blue")]);
    let revisions = vec![revision("s", 1, READY), revision("s", 2, READY)];
    let mut open = declared.clone();
    open.access.invokers = [Member::AllUsers].into();
    let told = |service: Service, host: &str| {
        let plan = compiled(&world(vec![service], revisions.clone()));
        explain_own_address(&plan, host, Arrival::Outside, Caller::Anonymous)
    };
    let own = "S-4711.us-west1.run.app:443";
    assert_eq!(
        told(open.clone(), own).to_string(),
        "s-4711.us-west1.run.app is the address of a Cloud Run service itself\n  \
         service    projects/p/locations/us-west1/services/s\n  \
         revision   s-00001-x (25 %)\n  \
         revision   s-00002-x (75 %)\n  \
         access     admitted: ingress is all, and everybody may invoke the service\n  \
         answer     one of s-00001-x (25 %), s-00002-x (75 %) answers"
    );
    let mut inside = open.clone();
    inside.ingress = Ingress::Internal;
    for (service, host, summary) in [
        (open.clone(), "blue---s-4711.us-west1.run.app", "s-00002-x answers"),
        (open.clone(), "red---s-4711.us-west1.run.app", "404: the service has no tag red"),
        (open.clone(), "t-4711.us-west1.run.app", "404: no service has this address"),
        (declared.clone(), own, "403: The request was not authenticated."),
        (inside, own, "404: The request was not allowed by the ingress settings"),
    ] {
        let told = told(service, host).summary;
        assert!(told.starts_with(summary), "{host}: {told}");
    }
}
