//! Metrics as text, in the OpenMetrics format, under the names of Google's load balancing metrics.

use crate::metrics::{BOUNDS_MICROS, Histogram, Labels, Registry, Series};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The prefix of every metric: `loadbalancing.googleapis.com/https/internal/`.
const PREFIX: &str = "loadbalancing_googleapis_com:https_internal_";

/// The prefix of the metrics of services: `run.googleapis.com/`.
const RUN_PREFIX: &str = "run_googleapis_com:";

/// One series summed over all workers.
#[derive(Debug, Default)]
struct Sum {
    requests: u64,
    request_bytes: u64,
    response_bytes: u64,
    total: Distribution,
    backend: Distribution,
}

#[derive(Debug, Default)]
struct Distribution {
    counts: [u64; BOUNDS_MICROS.len() + 1],
    sum_micros: u64,
}

impl Distribution {
    fn merge(&mut self, other: &Distribution) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_micros += other.sum_micros;
    }

    fn add(&mut self, histogram: &Histogram) {
        for (count, cell) in self.counts.iter_mut().zip(&histogram.counts) {
            *count += cell.get();
        }
        self.sum_micros += histogram.sum_micros.get();
    }
}

impl Sum {
    fn merge(&mut self, other: &Sum) {
        self.requests += other.requests;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.total.merge(&other.total);
        self.backend.merge(&other.backend);
    }

    fn add(&mut self, series: &Series) {
        self.requests += series.requests.get();
        self.request_bytes += series.request_bytes.get();
        self.response_bytes += series.response_bytes.get();
        self.total.add(&series.total);
        self.backend.add(&series.backend);
    }
}

/// Renders everything the registry holds.
pub(crate) fn render(registry: &Registry) -> String {
    let mut sums: BTreeMap<(Arc<Labels>, u16), Sum> = BTreeMap::new();
    for (labels, status, series) in registry.all() {
        sums.entry((labels, status)).or_default().add(&series);
    }
    let mut out = String::new();
    let of_services = by_service(&sums);
    let rows: Vec<(String, Sum)> = sums
        .into_iter()
        .filter(|((labels, _), _)| !is_run_app(labels))
        .map(|((labels, status), sum)| (label_text(&labels, status), sum))
        .collect();
    type Count = fn(&Sum) -> u64;
    let counters: [(&str, &str, Count); 3] = [
        ("request_count", "Requests served.", |sum| sum.requests),
        ("request_bytes_count", "Bytes of requests.", |sum| sum.request_bytes),
        ("response_bytes_count", "Bytes of responses.", |sum| sum.response_bytes),
    ];
    for (name, help, count) in counters {
        head(&mut out, PREFIX, name, "counter", help);
        for (labels, sum) in &rows {
            line(&mut out, PREFIX, name, "_total", labels, &count(sum).to_string());
        }
    }
    type Part = fn(&Sum) -> &Distribution;
    let histograms: [(&str, &str, Part); 2] = [
        ("total_latencies", "Milliseconds from a request's head to its last byte.", |sum| {
            &sum.total
        }),
        ("backend_latencies", "Milliseconds an instance took.", |sum| &sum.backend),
    ];
    for (name, help, part) in histograms {
        head(&mut out, PREFIX, name, "histogram", help);
        for (labels, sum) in &rows {
            distribution(&mut out, PREFIX, name, labels, part(sum));
        }
    }
    head(
        &mut out,
        RUN_PREFIX,
        "request_count",
        "counter",
        "Requests to a revision, however they came.",
    );
    for (labels, sum) in &of_services {
        line(&mut out, RUN_PREFIX, "request_count", "_total", labels, &sum.requests.to_string());
    }
    let help = "Milliseconds from a request's head to its last byte.";
    head(&mut out, RUN_PREFIX, "request_latencies", "histogram", help);
    for (labels, sum) in &of_services {
        distribution(&mut out, RUN_PREFIX, "request_latencies", labels, &sum.total);
    }
    own_counters(&mut out, registry);
    out.push_str("# EOF\n");
    out
}

/// Whether the requests came to a service's own address, and through no load balancer.
fn is_run_app(labels: &Labels) -> bool {
    labels.forwarding_rule.is_empty() && labels.network.is_empty() && !labels.protocol.is_empty()
}

/// The requests of each revision by status, whichever way they came, under Cloud Run's labels.
fn by_service(sums: &BTreeMap<(Arc<Labels>, u16), Sum>) -> BTreeMap<String, Sum> {
    let mut of_services: BTreeMap<String, Sum> = BTreeMap::new();
    for ((labels, status), sum) in sums {
        if labels.service.is_empty() {
            continue;
        }
        let pairs = [
            ("project_id", &labels.project),
            ("location", &labels.region),
            ("service_name", &labels.service),
            ("revision_name", &labels.revision),
        ];
        let class = status / 100;
        let text = format!(
            "{}response_code=\"{status}\",response_code_class=\"{class}xx\"",
            pair_text(&pairs)
        );
        of_services.entry(text).or_default().merge(sum);
    }
    of_services
}

fn pair_text(pairs: &[(&str, &String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{name}=\"{escaped}\",");
    }
    text
}

fn own_counters(out: &mut String, registry: &Registry) {
    let own = [
        (
            "access_log_lines_dropped",
            "Log lines the disk was too slow for.",
            &registry.log_lines_dropped,
        ),
        (
            "request_log_entries_dropped",
            "Requests Cloud Logging does not show, for there were too many in a second.",
            &registry.log_entries_dropped,
        ),
        ("panics", "Connections or streams ended by a bug.", &registry.panics),
    ];
    for (name, help, counter) in own {
        let value = counter.load(Ordering::Relaxed);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "# TYPE tidegate_{name} counter\n# HELP tidegate_{name} {help}\ntidegate_{name}_total {value}"
        );
    }
}

fn head(out: &mut String, prefix: &str, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# TYPE {prefix}{name} {kind}\n# HELP {prefix}{name} {help}");
}

fn line(out: &mut String, prefix: &str, name: &str, suffix: &str, labels: &str, value: &str) {
    let _ = writeln!(out, "{prefix}{name}{suffix}{{{labels}}} {value}");
}

fn distribution(out: &mut String, prefix: &str, name: &str, labels: &str, part: &Distribution) {
    let mut below = 0;
    for (count, bound) in part.counts.iter().zip(BOUNDS_MICROS) {
        below += count;
        let labels = format!("{labels},le=\"{}\"", millis(bound));
        line(out, prefix, name, "_bucket", &labels, &below.to_string());
    }
    let all = part.counts.iter().sum::<u64>().to_string();
    line(out, prefix, name, "_bucket", &format!("{labels},le=\"+Inf\""), &all);
    line(out, prefix, name, "_sum", labels, &millis(part.sum_micros));
    line(out, prefix, name, "_count", labels, &all);
}

fn millis(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

fn label_text(labels: &Labels, status: u16) -> String {
    let pairs = [
        ("project_id", &labels.project),
        ("region", &labels.region),
        ("network_name", &labels.network),
        ("forwarding_rule_name", &labels.forwarding_rule),
        ("target_proxy_name", &labels.target_proxy),
        ("backend_target_name", &labels.backend_service),
        ("service_name", &labels.service),
        ("revision_name", &labels.revision),
    ];
    let mut text = pair_text(&pairs);
    let class = u32::from(status) / 100 * 100;
    let _ = write!(
        text,
        "protocol=\"{}\",response_code=\"{status}\",response_code_class=\"{class}\"",
        labels.protocol
    );
    text
}
