use halo_core::options::{Keepalive, OriginalSource, TlsMode};

use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn read(pairs: Pairs<'_>) -> Result<Config, ConfigError> {
    let resolv_conf = Some("nameserver 10.96.0.10\n".to_owned());
    let files = Files { resolv_conf, ..Files::default() };
    Config::read(&pairs.iter().copied().collect::<Variables>().with_files(files), &Overrides::default())
}

#[test]
fn without_variables_the_defaults_of_the_stock_proxy_hold() {
    let config = read(&[]).unwrap();
    assert_eq!(config.cluster, "Kubernetes");
    assert_eq!(config.zds_path.to_str(), Some("/var/run/ztunnel/ztunnel.sock"));
    assert_eq!(config.secret_ttl, Duration::from_secs(86_400));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(config.readiness.to_string(), "[::]:15021");
    assert_eq!(config.metrics.to_string(), "[::]:15020");
}

#[test]
fn each_variable_reaches_its_field() {
    let config = read(&[
        ("NODE_NAME", "node-1"),
        ("CLUSTER_ID", "one"),
        ("ISTIO_META_CLUSTER_ID", "two"),
        ("SECRET_TTL", "1h30m"),
        ("ZTUNNEL_WORKER_THREADS", "50%"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "250ms"),
        ("PACKET_MARK", "0x539"),
        ("IPV6_ENABLED", "false"),
        ("HALO_RING", "epoll"),
        ("HALO_CORES", "6,0-3"),
        ("HALO_RECORDS", "rustls"),
        ("HTTP2_STREAM_WINDOW_SIZE", "65535"),
        ("LOG_FORMAT", "json"),
        ("NETWORK", ""),
    ])
    .unwrap();
    assert_eq!((config.node.as_str(), config.cluster.as_str()), ("node-1", "two"));
    assert_eq!(config.secret_ttl, Duration::from_secs(5400));
    assert_eq!(config.shards.on(8), 4);
    assert_eq!(config.limits.tunnel_idle_ms_max, 250);
    assert_eq!(config.limits.packet_mark, 1337);
    assert_eq!(config.readiness.to_string(), "0.0.0.0:15021");
    assert_eq!((config.ring, config.records), (RingMode::Epoll, RecordsMode::Rustls));
    assert_eq!(config.cores.unwrap().list(), [6, 0, 1, 2, 3]);
    assert_eq!(config.limits.stream_window_initial, 65_535);
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn an_error_names_the_variable_the_value_and_the_reason() {
    for (name, value, reason) in [
        ("SECRET_TTL", "soon", "duration"),
        ("SECRET_TTL", "0", "longer"),
        ("PROXY_MODE", "sidecar", "shared or dedicated"),
        ("PROXY_MODE", "dedicated", "PROXY_WORKLOAD_INFO is not set"),
        ("PROXY_WORKLOAD_INFO", "shop/pay", "namespace/name/serviceaccount"),
        ("PROXY_WORKLOAD_INFO", "shop//pay", "namespace/name/serviceaccount"),
        ("PROXY_WORKLOAD_INFO", "shop/pay-0/pay/x", "namespace/name/serviceaccount"),
        ("ENABLE_PROXY", "false", "take the pods out of the mesh"),
        ("FAKE_CA", "true", "CA_ADDRESS"),
        ("ZTUNNEL_CPU_LIMIT", "0", "from 1"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "0", "such as 2, 1.5 or 500m"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "inf", "such as 2, 1.5 or 500m"),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "2 cores", "such as 2, 1.5 or 500m"),
        ("SECRET_TTL", "5 m", "duration"),
        ("SECRET_TTL", "1s", "whole seconds, at least 2"),
        ("SECRET_TTL", "1999ms", "whole seconds, at least 2"),
        ("SECRET_TTL", "3600500ms", "whole seconds, at least 2"),
        ("ZTUNNEL_WORKER_THREADS", "-1", "number of threads"),
        ("ZTUNNEL_WORKER_THREADS", "0%", "percentage"),
        ("ZTUNNEL_WORKER_THREADS", "101%", "percentage"),
        ("IPV6_ENABLED", "yes", "true or false"),
        ("HTTP2_FRAME_SIZE", "1", "16384"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "65535", "HTTP2_STREAM_WINDOW_SIZE"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0", "from 1"),
        ("PACKET_MARK", "0xzz", "hexadecimal"),
        ("HALO_HANDSHAKE_TIMEOUT", "0s", "longer than 0"),
        ("HALO_HALF_CLOSE_TIMEOUT", "five", "duration"),
        ("HALO_ANSWER_TIMEOUT", "9999ms", "HALO_CONNECT_TIMEOUT, 10000ms"),
        ("HALO_RING", "kqueue", "auto or io_uring or epoll"),
        ("HALO_CORES", "0-", "0-3,6"),
        ("HALO_CORES", ",", "0-3,6"),
        ("HALO_CORES", "0-1-2", "0-3,6"),
        ("HALO_CORES", "1024", "to 1023"),
        ("HALO_CORES", "3-1", "empty; write 1-3"),
        ("HALO_CORES", "0-3,2", "core 2 is listed twice"),
        ("HALO_RECORDS", "openssl", "sealed or rustls"),
        ("HALO_ADMIN_ADDR", "localhost", "address with its port"),
        ("KEEPALIVE_TIME", "500ms", "whole seconds, from 1 to 32767"),
        ("KEEPALIVE_INTERVAL", "10h", "whole seconds, from 1 to 32767"),
        ("KEEPALIVE_RETRIES", "0", "from 1 to 127"),
        ("TRUST_DOMAIN_ALIASES", "a,,b", "separated by commas"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "-1", "duration"),
        ("CONNECTION_TERMINATION_DEADLINE", "99999999999999999999s", "duration"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert_eq!((&*error.variable, error.value.as_str()), (name, value));
        assert!(error.reason.contains(reason), "{error}");
        assert!(error.to_string().starts_with(&format!("{name}={value:?}: ")), "{error}");
    }
    let error = read(&[("LOCAL_XDS_PATH", "/a"), ("LOCAL_XDS", "workloads: []")]).unwrap_err();
    assert_eq!(error.variable, "LOCAL_XDS_PATH");
}

#[test]
fn what_the_stock_proxy_takes_for_unknown_words_holds_nothing_and_is_warned_of() {
    for (name, value, expected, held) in [
        ("COMPLIANCE_POLICY", "fips-140-2", "expected pqc", "no policy holds"),
        ("TLS12_ENABLED", "1", "expected true or false", "TLS 1.2 is not spoken"),
        ("LOG_FORMAT", "text", "expected plain or json", "lines are plain"),
    ] {
        let config = read(&[(name, value)]).unwrap();
        let warning = format!("{name}={value:?}: {expected}; {held}");
        assert_eq!(config.warnings(), [warning]);
        let unset = read(&[]).unwrap();
        assert_eq!((config.options, config.log_format), (unset.options, unset.log_format));
    }
}

#[test]
fn large_windows_of_streams_raise_the_window_of_their_tunnel_unless_it_is_set() {
    let window = |stream| read(&[("HTTP2_STREAM_WINDOW_SIZE", stream)]).unwrap().limits.connection_window;
    assert_eq!(window("65535"), 16_777_216);
    assert_eq!(window("33554432"), 4 * 33_554_432);
    assert_eq!(window("2147483647"), 2_147_483_647);
    let both = [("HTTP2_STREAM_WINDOW_SIZE", "33554432"), ("HTTP2_CONNECTION_WINDOW_SIZE", "33554431")];
    let error = read(&both).unwrap_err().to_string();
    assert!(error.contains("must not be below HTTP2_STREAM_WINDOW_SIZE, 33554432"), "{error}");
}

#[test]
fn where_ports_are_not_shared_one_shard_runs_unless_a_number_was_asked_for() {
    let alone = read(&[("INPOD_PORT_REUSE", "false")]).unwrap();
    assert_eq!(alone.shards_on(64), 1);
    assert!(alone.warnings().iter().any(|line| line.contains("so one shard runs")), "{:?}", alone.warnings());
    let asked = read(&[("INPOD_PORT_REUSE", "false"), ("ZTUNNEL_WORKER_THREADS", "2")]).unwrap();
    assert_eq!((asked.shards_on(64), asked.warnings()), (2, Vec::new()));
}

#[test]
fn the_shortest_life_of_a_certificate_is_two_seconds() {
    for (text, seconds) in [("2s", 2), ("4000ms", 4), ("6s", 6)] {
        assert_eq!(read(&[("SECRET_TTL", text)]).unwrap().secret_ttl, Duration::from_secs(seconds));
    }
}

#[test]
fn the_grace_period_leaves_time_to_end_and_never_underflows() {
    for (grace, drain_ms) in [("0", 1_000), ("1", 1_000), ("10", 9_000), ("11", 6_000), ("30", 25_000)] {
        let config = read(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap();
        assert_eq!(config.limits.drain_ms_max, drain_ms, "{grace}");
    }
    let both = [("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "2s")];
    assert_eq!(read(&both).unwrap().limits.drain_ms_max, 2_000);
}

#[test]
fn every_deadline_of_a_connection_can_be_set() {
    let limits = |variables: &[(&str, &str)]| read(variables).unwrap().limits;
    let set = limits(&[
        ("HALO_CONNECT_TIMEOUT", "1s"),
        ("HALO_HANDSHAKE_TIMEOUT", "2s"),
        ("HALO_ANSWER_TIMEOUT", "3s"),
        ("HALO_HALF_CLOSE_TIMEOUT", "4s"),
        ("HALO_LOOKUP_TIMEOUT", "5s"),
        ("HALO_PING_INTERVAL", "6s"),
        ("HALO_PING_TIMEOUT", "7s"),
    ]);
    let wanted = Limits {
        connect_ms_max: 1_000,
        handshake_ms_max: 2_000,
        connect_answer_ms_max: 3_000,
        half_close_ms_max: 4_000,
        lookup_ms_max: 5_000,
        ping_interval_ms: 6_000,
        ping_timeout_ms: 7_000,
        ..limits(&[])
    };
    assert_eq!(set, wanted);
}

#[test]
fn the_number_of_shards_stays_within_the_cores() {
    for (text, cores, shards) in
        [("0", 8, 8), ("3", 8, 3), ("1%", 8, 1), ("50%", 3, 2), ("100%", 4, 4), ("12", 8, 12)]
    {
        assert_eq!(read(&[("ZTUNNEL_WORKER_THREADS", text)]).unwrap().shards.on(cores), shards, "{text}");
    }
    for (cores, shards) in [(1, 1), (2, 1), (4, 1), (5, 2), (16, 4), (18, 5)] {
        assert_eq!(ShardCount::Auto.on(cores), shards, "{cores} cores");
    }
}

#[test]
fn a_cpu_limit_or_request_decides_the_shards_that_nobody_asked_for() {
    let limit = |text| ("ZTUNNEL_RESOURCE_CPU_LIMIT", text);
    let request = |text| ("ZTUNNEL_RESOURCE_CPU_REQUEST", text);
    let assumed = |text| ("ZTUNNEL_CPU_LIMIT", text);
    let threads = |text| ("ZTUNNEL_WORKER_THREADS", text);
    let cases: &[(Pairs<'_>, usize, usize)] = &[
        (&[], 16, 4),
        (&[], 0, 1),
        (&[request("200m")], 4, 1),
        (&[request("2000m")], 4, 2),
        (&[request("8")], 4, 4),
        (&[limit("1500m")], 16, 2),
        (&[limit("2"), request("3")], 16, 3),
        (&[limit("32")], 16, 16),
        (&[assumed("8")], 16, 2),
        (&[limit("4"), assumed("16"), threads("50%")], 16, 2),
        (&[limit("4"), threads("0")], 16, 4),
        (&[limit("4"), threads("6")], 2, 6),
    ];
    for (pairs, usable, shards) in cases {
        assert_eq!(read(pairs).unwrap().shards_on(*usable), *shards, "{pairs:?} on {usable}");
    }
}

#[test]
fn a_dedicated_proxy_serves_its_workload_and_marks_nothing_unless_told_to() {
    let dedicated = [("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "shop/pay-0/pay")];
    let config = read(&dedicated).unwrap();
    let ProxyMode::Dedicated(workload) = &config.mode else { panic!("{:?}", config.mode) };
    assert_eq!((&*workload.namespace, &*workload.name, &*workload.service_account), ("shop", "pay-0", "pay"));
    assert_eq!((config.limits.packet_mark, config.to_json()["packetMark"].as_u64()), (0, None));
    let marked = read(&[dedicated[0], dedicated[1], ("PACKET_MARK", "1337")]).unwrap();
    assert_eq!((marked.limits.packet_mark, marked.to_json()["packetMark"].as_u64()), (1337, Some(1337)));
    let shared = read(&[("PROXY_MODE", "shared"), dedicated[1]]).unwrap();
    assert_eq!((shared.mode, shared.limits.packet_mark), (ProxyMode::Shared, 1337));
}

#[test]
fn the_proxys_own_pod_is_known_once_all_three_variables_name_it() {
    let all = [("POD_NAME", "ztunnel-x"), ("POD_NAMESPACE", "istio-system"), ("SERVICE_ACCOUNT", "ztunnel")];
    let own = read(&all).unwrap().own_workload().unwrap();
    assert_eq!(
        (&*own.name, &*own.namespace, &*own.service_account),
        ("ztunnel-x", "istio-system", "ztunnel")
    );
    for missing in 0..3 {
        let mut some = all.to_vec();
        some.remove(missing);
        assert_eq!(read(&some).unwrap().own_workload(), None, "{some:?}");
    }
    let mut dedicated = all.to_vec();
    dedicated.extend([("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "shop/pay-0/pay")]);
    assert_eq!(read(&dedicated).unwrap().own_workload(), None);
}

#[test]
fn a_number_alone_is_a_duration_in_seconds() {
    let config = read(&[("CONNECTION_TERMINATION_DEADLINE", "7"), ("SECRET_TTL", "3600")]).unwrap();
    assert_eq!((config.limits.drain_ms_max, config.secret_ttl.as_secs()), (7_000, 3600));
    assert_eq!(read(&[("CONNECTION_TERMINATION_DEADLINE", "0")]).unwrap().limits.drain_ms_max, 0);
}

#[test]
fn a_core_that_the_process_may_not_use_is_named_with_those_that_it_may() {
    let cores = |text| read(&[("HALO_CORES", text)]).unwrap().cores.unwrap();
    assert_eq!(cores("5,0-2,4").within(&[0, 1, 2, 3, 4, 5]), Ok(()));
    let error = cores("0-2,7").within(&[0, 1, 2, 4]).unwrap_err().to_string();
    let wanted = "core 7 does not exist or is outside this process's cpuset; it may use 0-2,4";
    assert_eq!(error, format!("HALO_CORES=\"0-2,7\": {wanted}"));
}

#[test]
fn a_flag_wins_over_its_variable() {
    let variables: Variables =
        [("NODE_NAME", "a"), ("LOCAL_XDS", "x"), ("HALO_ADMIN_ADDR", "[::1]:1"), ("HALO_CORES", "0")]
            .into_iter()
            .collect();
    let flags = Overrides {
        node: Some("b".into()),
        local: Some("/mesh.yaml".into()),
        admin: Some("127.0.0.1:2".parse().unwrap()),
        shards: Some("2".into()),
        cores: Some("1".into()),
        ..Overrides::default()
    };
    let config = Config::read(&variables, &flags).unwrap();
    assert_eq!(config.node, "b");
    assert_eq!(config.local, Some(LocalSource::File("/mesh.yaml".into())));
    assert_eq!((config.admin.port(), config.shards.on(64)), (2, 2));
    assert_eq!(config.cores.unwrap().list(), [1]);
    let wrong = Overrides { ring: Some("fast".into()), ..Overrides::default() };
    assert_eq!(Config::read(&variables, &wrong).unwrap_err().variable, "--ring");
}

#[test]
fn the_table_names_each_variable_once_and_documents_it() {
    let mut names: Vec<_> = resolved::VARIABLES.iter().map(|variable| variable.name).collect();
    assert!(
        resolved::VARIABLES
            .iter()
            .all(|variable| !variable.meaning.is_empty() && !variable.default.is_empty())
    );
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// Variables of the stock node proxy and its manifest. Each is read, or refused where it asks for what there is not.
const STOCK: &[&str] = &[
    "ENABLE_PROXY",
    "PROXY_MODE",
    "PROXY_WORKLOAD_INFO",
    "INPOD_ENABLED",
    "NETWORK",
    "NODE_NAME",
    "ISTIO_META_CLUSTER_ID",
    "CLUSTER_ID",
    "KUBERNETES_SERVICE_HOST",
    "XDS_ADDRESS",
    "CA_ADDRESS",
    "XDS_ROOT_CA",
    "CA_ROOT_CA",
    "ALT_XDS_HOSTNAME",
    "ALT_CA_HOSTNAME",
    "AUTH_TOKEN",
    "XDS_HEADER_*",
    "CA_HEADER_*",
    "XDS_ON_DEMAND",
    "LOCAL_XDS_PATH",
    "LOCAL_XDS",
    "SECRET_TTL",
    "FAKE_CA",
    "CRL_PATH",
    "PREFERED_SERVICE_NAMESPACE",
    "ZTUNNEL_WORKER_THREADS",
    "ZTUNNEL_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_REQUEST",
    "POOL_MAX_STREAMS_PER_CONNECTION",
    "POOL_UNUSED_RELEASE_TIMEOUT",
    "HTTP2_STREAM_WINDOW_SIZE",
    "HTTP2_CONNECTION_WINDOW_SIZE",
    "HTTP2_FRAME_SIZE",
    "CONNECTION_TERMINATION_DEADLINE",
    "TERMINATION_GRACE_PERIOD_SECONDS",
    "PACKET_MARK",
    "INPOD_UDS",
    "IPV6_ENABLED",
    "AUTHZ_POLICY_INFO_LOGGING",
    "PROXY_CONFIG",
    "ISTIO_META_*",
    "ISTIO_METAJSON_*",
    "POD_NAME",
    "POD_NAMESPACE",
    "SERVICE_ACCOUNT",
    "INSTANCE_IP",
    "TRUST_DOMAIN",
    "ISTIO_META_ISTIO_VERSION",
    "RUST_LOG",
    "LOG_FORMAT",
];

#[test]
fn every_variable_of_the_stock_proxy_is_known() {
    for name in STOCK {
        assert!(resolved::VARIABLES.iter().any(|variable| variable.name == *name), "{name}");
    }
}

#[test]
fn what_the_stock_manifest_sets_for_others_is_taken_silently() {
    let set = [
        ("INPOD_ENABLED", "true"),
        ("ENABLE_PROXY", "true"),
        ("FAKE_CA", "false"),
        ("AUTHZ_POLICY_INFO_LOGGING", "1"),
        ("NOBODY_KNOWS_THIS", "x"),
    ];
    let config = read(&set).unwrap();
    assert_eq!((config.warnings(), config), (Vec::new(), read(&[]).unwrap()));
}

#[test]
fn a_printed_configuration_is_yaml_or_json_of_the_same_value() {
    let config = read(&[("NODE_NAME", "node-1")]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&config.print(PrintFormat::Json)).unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_str(&config.print(PrintFormat::Yaml)).unwrap();
    assert_eq!(json, yaml);
    assert_eq!(json["localNode"], "node-1");
    assert_eq!(json["limits"]["packetMark"], 1337);
    for (key, value) in
        [("proxyMode", "Shared"), ("inboundAddr", "[::]:15008"), ("poolUnusedReleaseTimeout", "300s")]
    {
        assert_eq!(json[key], value, "{key}");
    }
}

#[test]
fn connections_are_made_as_the_stock_proxy_makes_them_unless_set_otherwise() {
    let config = read(&[]).unwrap();
    assert_eq!(config.options, Options::default());
    let probes = Keepalive { time_s: 180, interval_s: 180, retries: 9 };
    assert_eq!((config.options.keepalive, config.options.user_timeout_s), (Some(probes), None));
    assert!(config.trust_domain_aliases.is_empty() && config.application_tunnels_local);
    let config = read(&[
        ("COMPLIANCE_POLICY", "pqc"),
        ("TLS12_ENABLED", "true"),
        ("KEEPALIVE_TIME", "1m"),
        ("KEEPALIVE_INTERVAL", "10s"),
        ("KEEPALIVE_RETRIES", "3"),
        ("USER_TIMEOUT_ENABLED", "true"),
        ("ENABLE_ORIG_SRC", "true"),
        ("INPOD_PORT_REUSE", "false"),
        ("LOCALHOST_APP_TUNNEL", "false"),
        ("ENABLE_RESPONSE_BAGGAGE", "false"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("TRUST_DOMAIN_ALIASES", "old.example, older.example"),
    ])
    .unwrap();
    let expected = Options {
        tls: TlsMode { pqc_only: true, tls12: true },
        keepalive: Some(Keepalive { time_s: 60, interval_s: 10, retries: 3 }),
        user_timeout_s: Some(90),
        original_source: OriginalSource::Always,
        port_reuse: false,
        response_baggage: false,
        socks5: true,
    };
    assert_eq!(config.options, expected);
    assert_eq!(config.trust_domain_aliases, ["old.example", "older.example"]);
    assert!(!config.application_tunnels_local);
    assert!(config.warnings().iter().any(|warning| warning.contains("TLS12_ENABLED has no effect")));
    let silent = read(&[("KEEPALIVE_ENABLED", "false"), ("USER_TIMEOUT_ENABLED", "true")]).unwrap();
    assert_eq!((silent.options.keepalive, silent.options.user_timeout_s), (None, Some(1800)));
    assert_eq!(read(&[("ENABLE_ORIG_SRC", "false")]).unwrap().options.original_source, OriginalSource::Never);
}

#[test]
fn aliases_of_the_mesh_configuration_count_unless_the_variable_says_otherwise() {
    let files = || Files {
        mesh_config: Some("trustDomainAliases: [one, two]".into()),
        token: false,
        ..Files::default()
    };
    let read = |pairs: &[(&str, &str)]| {
        let variables = pairs.iter().copied().collect::<Variables>().with_files(files());
        Config::read(&variables, &Overrides::default()).unwrap().trust_domain_aliases
    };
    assert_eq!(read(&[]), ["one", "two"]);
    assert_eq!(read(&[("TRUST_DOMAIN_ALIASES", "three")]), ["three"]);
}
