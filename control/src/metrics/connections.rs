//! The series of connections, summed over the shards by their labels.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use halo_core::labels::{Labels, reporter};
use halo_core::outcome::ResponseFlag;
use halo_core::report::{ByDirection, Direction, SeriesReport, ShardReport};

use super::text::Text;

/// About the length of a sample, for room.
const SAMPLE_LEN: usize = 900;

/// Writes the families of connections.
pub(super) fn write(text: &mut Text, reports: &mut [ShardReport]) {
    let series = merged(reports.iter_mut().map(|report| std::mem::take(&mut report.series)));
    text.reserve(series.len() * 4 * SAMPLE_LEN);
    opened(text, &series);
    closed(text, &series);
    type Total = fn(&SeriesReport) -> u64;
    let bytes: [(&str, &str, Total); 2] = [
        ("istio_tcp_received_bytes_total", "Bytes from the client side.", |series| series.bytes_received),
        ("istio_tcp_sent_bytes_total", "Bytes back to the client side.", |series| series.bytes_sent),
    ];
    for (name, help, total) in bytes {
        text.head(name, "counter", help);
        for series in &series {
            text.labelled(name, |out| series.labels.write(out, ResponseFlag::None), total(series));
        }
    }
    let help = "Sockets that clients have open.";
    by_reporter(text, ("istio_tcp_sockets_open", "gauge", help), reports, |report| report.sockets);
    let name = "istio_crl_policy_rejections_total";
    let help = "Tunnels refused or cut because a certificate is revoked.";
    by_reporter(text, (name, "counter", help), reports, |report| report.crl_rejections);
}

/// The series of all shards, in order of their labels; without those that no shard shows.
fn merged(shards: impl Iterator<Item = Vec<SeriesReport>>) -> Vec<SeriesReport> {
    let mut all: HashMap<Arc<Labels>, SeriesReport> = HashMap::new();
    for series in shards.flatten() {
        match all.entry(series.labels.clone()) {
            Entry::Vacant(place) => drop(place.insert(series)),
            Entry::Occupied(mut same) => same.get_mut().merge(&series),
        }
    }
    let mut all: Vec<_> = all.into_values().filter(|series| series.is_live).collect();
    all.sort_unstable_by(|one, other| one.labels.cmp(&other.labels));
    all
}

fn opened(text: &mut Text, series: &[SeriesReport]) {
    let name = "istio_tcp_connections_opened_total";
    text.head(name, "counter", "Connections that began.");
    for series in series {
        text.labelled(name, |out| series.labels.write(out, ResponseFlag::None), series.opened);
    }
}

/// Ends by their flags; those with any flag are failures as well.
fn closed(text: &mut Text, series: &[SeriesReport]) {
    let families = [
        ("istio_tcp_connections_closed_total", "Connections that ended.", 0),
        ("istio_tcp_connections_failed_total", "Connections that ended with an error.", 1),
    ];
    for (name, help, flags_from) in families {
        text.head(name, "counter", help);
        for series in series {
            let totals = ResponseFlag::ALL.into_iter().zip(series.closed).skip(flags_from);
            for (flag, total) in totals.filter(|(_, total)| *total > 0) {
                text.labelled(name, |out| series.labels.write(out, flag), total);
            }
        }
    }
}

fn by_reporter(
    text: &mut Text,
    (name, kind, help): (&str, &str, &str),
    reports: &[ShardReport],
    of: fn(&ShardReport) -> ByDirection,
) {
    text.head(name, kind, help);
    for direction in [Direction::Outbound, Direction::Inbound] {
        let total: u64 = reports.iter().map(|report| *of(report).of(direction)).sum();
        text.sample(name, &format!("{{reporter=\"{}\"}}", reporter(direction)), total);
    }
}
