//! The headers `baggage` and `forwarded` of an HBONE CONNECT: what the two ends tell each other about their workloads
//! and the service that was addressed, for labels only.
//!
//! They prove nothing: no decision may read them. The keys, their order and the lack of escaping are those of Istio's node
//! proxy; the frames are W3C Baggage and RFC 7239.

use std::fmt;

use crate::workload::{Workload, WorkloadType};

/// What a baggage says about one workload. Empty means "not said".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Baggage<'a> {
    /// `k8s.cluster.name`.
    pub cluster: &'a str,
    /// `k8s.namespace.name`.
    pub namespace: &'a str,
    /// The middle of the workload's key, for example `deployment` in `k8s.deployment.name`.
    pub workload_type: WorkloadType,
    /// The workload's name.
    pub workload_name: &'a str,
    /// `service.name`.
    pub service_name: &'a str,
    /// `service.version`.
    pub service_version: &'a str,
    /// `cloud.region`.
    pub region: &'a str,
    /// `cloud.availability_zone`.
    pub zone: &'a str,
}

impl<'a> Baggage<'a> {
    /// What we say about a workload.
    pub fn of(workload: &'a Workload) -> Self {
        Self {
            cluster: &workload.cluster_id,
            namespace: &workload.namespace,
            workload_type: workload.workload_type,
            workload_name: &workload.workload_name,
            service_name: &workload.canonical_name,
            service_version: &workload.canonical_revision,
            region: &workload.locality.region,
            zone: &workload.locality.zone,
        }
    }

    /// Reads the header's lines. Whatever is not understood is skipped; of a repeated key the last value stays.
    pub fn parse(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut baggage = Self::default();
        let items = lines.into_iter().flat_map(|line| line.split(','));
        for (key, value) in items.filter_map(|item| item.split_once('=')) {
            baggage.set(key, value);
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &'a str) {
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let kind = key.strip_prefix("k8s.").and_then(|key| key.strip_suffix(".name"));
                let Some(kind) = kind.and_then(workload_type) else { return };
                self.workload_type = kind;
                &mut self.workload_name
            }
        };
        *field = value;
    }
}

/// The first `host` in the lines of a `forwarded` header, without quotes. A line that is not ASCII is passed over, and so
/// is a host that is empty or holds an escape.
pub fn forwarded_host<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    lines.into_iter().filter(|line| line.is_ascii()).flat_map(parameters).find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let valid = !unquoted.is_empty() && !unquoted.contains(['"', '\\']);
        (name.eq_ignore_ascii_case("host") && valid).then_some(unquoted)
    })
}

/// The parts between the semicolons and commas that are not quoted (RFC 7239, section 4).
fn parameters(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |char| {
        quoted ^= char == '"';
        !quoted && matches!(char, ';' | ',')
    })
}

impl fmt::Display for Baggage<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = match self.workload_type {
            WorkloadType::Deployment => "k8s.deployment.name",
            WorkloadType::CronJob => "k8s.cronjob.name",
            WorkloadType::Pod => "k8s.pod.name",
            WorkloadType::Job => "k8s.job.name",
        };
        let items = [
            ("k8s.cluster.name", self.cluster),
            ("k8s.namespace.name", self.namespace),
            (workload, self.workload_name),
            ("service.name", self.service_name),
            ("service.version", self.service_version),
            ("cloud.region", self.region),
            ("cloud.availability_zone", self.zone),
        ];
        let mut separator = "";
        for (key, value) in items.into_iter().filter(|(_, value)| !value.is_empty()) {
            write!(out, "{separator}{key}={value}")?;
            separator = ",";
        }
        Ok(())
    }
}

fn workload_type(text: &str) -> Option<WorkloadType> {
    match text {
        "deployment" => Some(WorkloadType::Deployment),
        "cronjob" => Some(WorkloadType::CronJob),
        "pod" => Some(WorkloadType::Pod),
        "job" => Some(WorkloadType::Job),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.cronjob.name=cart,service.name=cart,\
                        service.version=v2,cloud.region=r1,cloud.availability_zone=z1";

    #[test]
    fn a_full_baggage_survives_a_round_trip_in_the_stock_order() {
        let baggage = Baggage::parse([FULL]);
        assert_eq!(baggage.workload_type, WorkloadType::CronJob);
        assert_eq!((baggage.workload_name, baggage.zone), ("cart", "z1"));
        assert_eq!(baggage.to_string(), FULL);
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let workload =
            Workload { namespace: "shop".into(), canonical_name: "cart".into(), ..Default::default() };
        assert_eq!(Baggage::of(&workload).to_string(), "k8s.namespace.name=shop,service.name=cart");
        assert_eq!(Baggage::default().to_string(), "");
    }

    #[test]
    fn parsing_skips_what_it_does_not_know_trims_nothing_and_keeps_the_last_value() {
        let lines = ["service.name=a,junk,=,k8s.replicaset.name=x, cloud.region=r1", "service.name=b=c"];
        let expected = Baggage { service_name: "b=c", ..Default::default() };
        assert_eq!(Baggage::parse(lines), expected);
        assert_eq!(Baggage::parse([""]), Baggage::default());
    }

    #[test]
    fn the_host_of_a_forwarded_header_is_found_with_and_without_quotes() {
        for (lines, expected) in [
            (&["for=\"10.0.0.1:4000\";host=cart.shop"][..], Some("cart.shop")),
            (&["for=\"[fd00::1]:4000\"; Host=\"cart.shop\""], Some("cart.shop")),
            (&["host=cart.shop"], Some("cart.shop")),
            (&["for=a;host=one, host=two"], Some("one")),
            (&["for=\"a;host=evil\";host=cart"], Some("cart")),
            (&["for=a", "host=cart"], Some("cart")),
            (&["host=é;for=a", "host=cart"], Some("cart")),
            (&["host=;host=\"\"", "host=\"a\\b\"", "host=\"a"], None),
            (&["ghost=a", "host", "", ";;,="], None),
            (&[], None),
        ] {
            assert_eq!(forwarded_host(lines.iter().copied()), expected, "{lines:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_host_that_is_found_is_a_part_of_the_line(line in "(for=|host=|\"|;|,|\\\\|a|b|é| ){0,12}") {
            if let Some(host) = forwarded_host([line.as_str()]) {
                proptest::prop_assert!(line.contains(host) && !host.is_empty() && !host.contains('"'));
            }
        }

        #[test]
        fn any_text_is_read_and_what_was_read_is_read_again_from_its_text(line in "[a-z0-9.=, ]{0,60}|(k8s\\.(pod|job)\\.name=[a-z]{0,3},?){0,4}") {
            let baggage = Baggage::parse([line.as_str()]);
            let text = baggage.to_string();
            let again = Baggage::parse([text.as_str()]);
            // A type without a name has no place in the text.
            let kind = if baggage.workload_name.is_empty() { Default::default() } else { baggage.workload_type };
            proptest::prop_assert_eq!(again, Baggage { workload_type: kind, ..baggage });
        }
    }
}
