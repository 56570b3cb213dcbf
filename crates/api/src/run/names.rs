//! The annotations and labels Cloud Run gives a meaning to.

pub(crate) const API_VERSION: &str = "serving.knative.dev/v1";

/// Where requests may come from: `all`, `internal`, `internal-and-cloud-load-balancing`.
pub(crate) const INGRESS: &str = "run.googleapis.com/ingress";
pub(crate) const INGRESS_STATUS: &str = "run.googleapis.com/ingress-status";
pub(crate) const URLS: &str = "run.googleapis.com/urls";
pub(crate) const OPERATION_ID: &str = "run.googleapis.com/operation-id";
pub(crate) const CREATOR: &str = "serving.knative.dev/creator";
pub(crate) const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";
pub(crate) const CLIENT_NAME: &str = "run.googleapis.com/client-name";
pub(crate) const CLIENT_VERSION: &str = "run.googleapis.com/client-version";
pub(crate) const DESCRIPTION: &str = "run.googleapis.com/description";
pub(crate) const LAUNCH_STAGE: &str = "run.googleapis.com/launch-stage";

pub(crate) const DEFAULT_URL_DISABLED: &str = "run.googleapis.com/default-url-disabled";
pub(crate) const INVOKER_IAM_DISABLED: &str = "run.googleapis.com/invoker-iam-disabled";
pub(crate) const CUSTOM_AUDIENCES: &str = "run.googleapis.com/custom-audiences";
pub(crate) const SERVICE_MIN_SCALE: &str = "run.googleapis.com/minScale";
pub(crate) const SERVICE_MAX_SCALE: &str = "run.googleapis.com/maxScale";
pub(crate) const SCALING_MODE: &str = "run.googleapis.com/scalingMode";
pub(crate) const MANUAL_INSTANCES: &str = "run.googleapis.com/manualInstanceCount";

pub(crate) const MIN_SCALE: &str = "autoscaling.knative.dev/minScale";
pub(crate) const MAX_SCALE: &str = "autoscaling.knative.dev/maxScale";
pub(crate) const CONCURRENCY_TARGET: &str = "run.googleapis.com/scaling-concurrency-target";
pub(crate) const CPU_TARGET: &str = "run.googleapis.com/scaling-cpu-target";
pub(crate) const CPU_THROTTLING: &str = "run.googleapis.com/cpu-throttling";
pub(crate) const STARTUP_CPU_BOOST: &str = "run.googleapis.com/startup-cpu-boost";
pub(crate) const SESSION_AFFINITY: &str = "run.googleapis.com/sessionAffinity";
pub(crate) const EXECUTION_ENVIRONMENT: &str = "run.googleapis.com/execution-environment";
pub(crate) const DEPENDENCIES: &str = "run.googleapis.com/container-dependencies";
pub(crate) const NETWORK_INTERFACES: &str = "run.googleapis.com/network-interfaces";
/// Short names for secrets of other projects.
pub(crate) const SECRETS: &str = "run.googleapis.com/secrets";
pub(crate) const VPC_EGRESS: &str = "run.googleapis.com/vpc-access-egress";

pub(crate) const LOCATION_LABEL: &str = "cloud.googleapis.com/location";
pub(crate) const SERVICE_LABEL: &str = "serving.knative.dev/service";
pub(crate) const SERVICE_UID_LABEL: &str = "serving.knative.dev/serviceUid";
pub(crate) const CONFIGURATION_LABEL: &str = "serving.knative.dev/configuration";
pub(crate) const CONFIGURATION_GENERATION_LABEL: &str =
    "serving.knative.dev/configurationGeneration";

/// Prefixes of annotations and labels that only v1 writes; v2 has fields for them.
pub(crate) const SYSTEM_PREFIXES: &[&str] = &[
    "run.googleapis.com/",
    "cloud.googleapis.com/",
    "serving.knative.dev/",
    "autoscaling.knative.dev/",
    "client.knative.dev/",
];

/// Whether an annotation or label is the system's and not the user's own.
pub(crate) fn is_system(name: &str) -> bool {
    SYSTEM_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
