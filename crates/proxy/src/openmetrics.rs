//! Metrics as text, in the OpenMetrics format, under the names of Google's load balancing metrics.

use crate::metrics::{BOUNDS_MICROS, Histogram, Labels, Registry, Series};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The prefix of every metric: `loadbalancing.googleapis.com/https/internal/`.
const PREFIX: &str = "loadbalancing_googleapis_com:https_internal_";

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
    fn add(&mut self, histogram: &Histogram) {
        for (count, cell) in self.counts.iter_mut().zip(&histogram.counts) {
            *count += cell.get();
        }
        self.sum_micros += histogram.sum_micros.get();
    }
}

impl Sum {
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
    let rows: Vec<(String, Sum)> = sums
        .into_iter()
        .map(|((labels, status), sum)| (label_text(&labels, status), sum))
        .collect();
    let mut out = String::new();
    type Count = fn(&Sum) -> u64;
    let counters: [(&str, &str, Count); 3] = [
        ("request_count", "Requests served.", |sum| sum.requests),
        ("request_bytes_count", "Bytes of requests.", |sum| sum.request_bytes),
        ("response_bytes_count", "Bytes of responses.", |sum| sum.response_bytes),
    ];
    for (name, help, count) in counters {
        head(&mut out, name, "counter", help);
        for (labels, sum) in &rows {
            line(&mut out, name, "_total", labels, &count(sum).to_string());
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
        head(&mut out, name, "histogram", help);
        for (labels, sum) in &rows {
            distribution(&mut out, name, labels, part(sum));
        }
    }
    own_counters(&mut out, registry);
    out.push_str("# EOF\n");
    out
}

fn own_counters(out: &mut String, registry: &Registry) {
    let own = [
        (
            "access_log_lines_dropped",
            "Log lines the disk was too slow for.",
            &registry.log_lines_dropped,
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

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# TYPE {PREFIX}{name} {kind}\n# HELP {PREFIX}{name} {help}");
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &str, value: &str) {
    let _ = writeln!(out, "{PREFIX}{name}{suffix}{{{labels}}} {value}");
}

fn distribution(out: &mut String, name: &str, labels: &str, part: &Distribution) {
    let mut below = 0;
    for (count, bound) in part.counts.iter().zip(BOUNDS_MICROS) {
        below += count;
        let labels = format!("{labels},le=\"{}\"", millis(bound));
        line(out, name, "_bucket", &labels, &below.to_string());
    }
    let all = part.counts.iter().sum::<u64>().to_string();
    line(out, name, "_bucket", &format!("{labels},le=\"+Inf\""), &all);
    line(out, name, "_sum", labels, &millis(part.sum_micros));
    line(out, name, "_count", labels, &all);
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
    let mut text = String::new();
    for (name, value) in pairs {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{name}=\"{escaped}\",");
    }
    let class = u32::from(status) / 100 * 100;
    let _ = write!(
        text,
        "protocol=\"{}\",response_code=\"{status}\",response_code_class=\"{class}\"",
        labels.protocol
    );
    text
}
