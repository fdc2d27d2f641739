//! The stock node proxy's manifest starts this binary unchanged: its arguments, its variables, its files in their places,
//! its socket. Needs root and fails without it.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use halo::lab::Lab;
use halo::lab::admin::{self, ADMIN_PORT, READINESS_PORT};
use halo::lab::agent::Agent;
use halo::lab::client::{Client, Server};
use halo::lab::controller::Controller;
use halo::lab::http::Message;
use halo::lab::load::LoadPlan;
use halo::lab::mesh::{Mesh, spiffe_id};
use halo::lab::pod::{Ask, Outcome};
use halo::lab::process::{Process, Spec};
use halo::lab::topology::{Node, NodePlan, Topology};
use halo_control::redirect::Options;

const SOON: Duration = Duration::from_secs(20);

/// Goes to where the container's root would be, with its `/var/run` in place, and becomes the container's command.
const CONTAINER: &str = r#"cd "$1" && mount --bind "$2" /var/run && shift 2 && exec "$@""#;

/// A proxy started as the stock manifest does, on the first node.
struct Stock {
    process: Arc<Process>,
    agent: Agent,
}

impl Stock {
    fn start(lab: &Lab, node: &Node, controller: &Controller) -> Self {
        let (root, run) = (lab.dir().join("root"), lab.dir().join("run"));
        let secrets = root.join("var/run/secrets");
        for folder in [secrets.join("istio"), secrets.join("tokens"), run.join("ztunnel")] {
            fs::create_dir_all(folder).unwrap();
        }
        let control_plane = controller.control_plane();
        fs::copy(&control_plane.root, secrets.join("istio/root-cert.pem")).unwrap();
        fs::copy(control_plane.tokens.join(&node.name), secrets.join("tokens/istio-token")).unwrap();
        let agent = Agent::start(&run.join("ztunnel/ztunnel.sock")).unwrap();
        let environment = [
            ("CA_ADDRESS", control_plane.address.as_str()),
            ("XDS_ADDRESS", &control_plane.address),
            ("RUST_LOG", "info"),
            ("LOG_FORMAT", "json"),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ("NETWORK", ""),
            ("INPOD_ENABLED", "true"),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
            ("NODE_NAME", &node.name),
            ("POD_NAME", "ztunnel-8xq2k"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.244.0.7"),
            ("SERVICE_ACCOUNT", "ztunnel"),
            ("ZTUNNEL_CPU_LIMIT", "2"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), OsString::from(value)));
        let arguments: [OsString; 9] = [
            "--mount".into(),
            "sh".into(),
            "-c".into(),
            CONTAINER.into(),
            "container".into(),
            root.into(),
            run.into(),
            lab.binary().into(),
            "proxy".into(),
        ];
        let process = lab.spawn(Spec {
            name: "ztunnel".into(),
            program: "unshare".into(),
            arguments: arguments.into_iter().chain(["ztunnel".into()]).collect(),
            environment: environment.to_vec(),
            netns: node.netns.clone(),
            piped: false,
        });
        Self { process: process.unwrap(), agent }
    }
}

fn request(node: &Node, method: &str, path: &str) -> Message {
    admin::ask(&node.netns, ADMIN_PORT, (method, path), SOON).unwrap()
}

/// An answer's status and text.
fn told(node: &Node, method: &str, path: &str) -> (u16, String) {
    let answer = request(node, method, path);
    (answer.status().unwrap(), answer.text())
}

#[test]
fn the_stock_manifest_starts_this_binary_unchanged() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_halo").into()).expect("this test needs root");
    let plan = [NodePlan::new("node-a", &["web", "shop"]), NodePlan::new("node-b", &["greeter"])];
    let topology = Topology::build(&lab, &plan).unwrap();
    let (node, web, shop) = (&topology.nodes[0], topology.pod("web").unwrap(), topology.pod("shop").unwrap());
    let mut mesh = Mesh::new(&lab.dir().join("mesh.yaml"), &topology);
    mesh.publish().unwrap();
    let controller = Controller::start(&lab, &topology, &mesh).unwrap();
    controller.wait_ready(SOON).unwrap();
    let stock = Stock::start(&lab, node, &controller);
    stock.agent.wait_connected(&stock.process, SOON).unwrap();
    let ready = || admin::readiness(&node.netns, READINESS_PORT);
    stock.process.wait_for("becoming ready", SOON, ready).unwrap();

    for pod in [web, shop] {
        stock.agent.enrol(pod, &Options::default()).unwrap();
        mesh.enrolled.insert(pod.name.clone());
    }
    mesh.publish().unwrap();
    let adopted = || {
        let dump = admin::dump(&node.netns).map_err(|error| error.to_string())?;
        let workloads = dump.all["workloads"].as_array().cloned().unwrap_or_default();
        let count = workloads.iter().filter(|workload| workload["protocol"] == "HBONE").count();
        let certified = |name| {
            let of = |one: &&admin::Certificate| one.identity == spiffe_id(name) && one.state == "Available";
            dump.certificates.iter().find(of).is_some()
        };
        match count == 2 && certified("web") && certified("shop") {
            true => Ok(dump.all),
            false => Err(format!("{count} enrolled, {:?}", dump.certificates)),
        }
    };
    let dump = stock.process.wait_for("adopting the mesh", SOON, adopted).unwrap();
    assert_eq!(dump["config"]["proxyArgs"], "proxy ztunnel");
    assert_eq!(dump["config"]["ztunnelIdentity"], "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    let _server = Server::http(&lab, shop, 8080).unwrap();
    let client = Client::start(&lab, web, "client").unwrap();
    let target = SocketAddr::from((shop.address, 8080));
    let outcome = client.get(&Ask::new(target)).unwrap();
    assert!(matches!(outcome, Outcome::Answer { status: 200, .. }), "{outcome:?}");

    profiles_are_taken_while_traffic_flows(node, &client, target);
    assert_eq!(told(node, "POST", "/logging?level=access:debug,warning").0, 200);
    assert_eq!(told(node, "POST", "/logging").1, "current log level is access=debug,warn\n");
    assert_eq!(told(node, "POST", "/logging?reset").1, "current log level is info\n");
    assert_eq!(told(node, "POST", "/quitquitquit"), (200, "shutdown now\n".to_owned()));
    let over = || stock.process.exit_status().ok_or_else(|| "it runs".to_owned());
    let status = halo::lab::process::wait_for("the end", SOON, over).unwrap();
    assert!(status.success(), "{status}");
}

fn profiles_are_taken_while_traffic_flows(node: &Node, client: &Client, target: SocketAddr) {
    let plan = LoadPlan { target, connections: 4, seconds: 2.0 };
    let (load, profile) = std::thread::scope(|scope| {
        let load = scope.spawn(|| client.load(&plan).unwrap());
        let profile = request(node, "GET", "/debug/pprof/profile?seconds=1&frequency=500");
        (load.join().unwrap(), profile)
    });
    assert!(load.requests > 0 && load.errors == 0, "{load:?}");
    assert_eq!(profile.status(), Some(200), "{}", profile.text());
    assert!(holds(&profile.body, b"shard-0"), "the profile names no shard");
    assert_eq!(told(node, "GET", "/debug/pprof/heap").0, 500);
    let (status, text) = told(node, "GET", "/debug/pprof/heap/profiling?activate=true");
    assert_eq!((status, text.as_str()), (200, "heap profiling active: true\n"));
    // Both unwind stacks in their own way; one at a time.
    assert_eq!(told(node, "GET", "/debug/pprof/profile?seconds=1").0, 409);
    assert_eq!(client.load(&plan).unwrap().errors, 0);
    let heap = request(node, "GET", "/debug/pprof/heap");
    assert_eq!(heap.status(), Some(200), "{}", heap.text());
    assert!(holds(&heap.body, b"inuse_space"));
    let (_, text) = told(node, "GET", "/debug/pprof/heap/profiling?activate=false");
    assert_eq!(text, "heap profiling active: false\n");
}

/// Whether a compressed file holds these bytes.
fn holds(gzip: &[u8], bytes: &[u8]) -> bool {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(gzip).read_to_end(&mut plain).unwrap();
    plain.windows(bytes.len()).any(|window| window == bytes)
}
