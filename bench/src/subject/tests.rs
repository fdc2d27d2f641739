//! Every subject carries bytes and requests between two nodes, in the way it claims to, and leaves nothing behind.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ::halo::lab::Lab;
use ::halo::lab::capture::{Capture, Seen};
use ::halo::lab::http::{self, Message};
use ::halo::lab::netns::{NAMES, Netns};
use ::halo::lab::topology::{LINK, NodePlan, Pod, Topology};

use super::*;
use crate::model::{ENVOY_HTTP, ENVOY_TCP, HALO, NO_MESH, Way};
use crate::pod::{HTTP_PORT, RAW_PORT};

const MARKER: &str = "a-marker-that-nobody-else-sends";
const PATIENCE: Duration = Duration::from_secs(20);

fn settings() -> Settings {
    let envoy = std::env::var_os("HALO_ENVOY").map(PathBuf::from);
    let envoy =
        envoy::find(envoy.as_deref(), false).unwrap_or_else(|error| panic!("{error} (run tests/run once)"));
    Settings { workers: Some(1), halo: halo_binary().unwrap(), envoy: Some(envoy) }
}

/// Halo again, by the way that peers are started.
fn peer(halo: &Path, authority: &Path) -> PeerOptions {
    let (peer, variable) =
        (format!("again={}", halo.display()), format!("again:HALO_CA_DIR={}", authority.display()));
    let mut peers = PeerOptions::parse(&[peer], &[variable]).unwrap();
    peers[0].arguments = vec!["node".into()];
    peers.remove(0)
}

/// A client and a server, on nodes of their own.
struct Stage {
    lab: Arc<Lab>,
    topology: Arc<Topology>,
}

/// What the server's application and the link saw.
struct Carried {
    request: Message,
    link: Seen,
}

impl Stage {
    fn build(settings: &Settings) -> Self {
        let plan = [NodePlan::new("node-a", &["web"]), NodePlan::new("node-b", &["shop"])];
        let lab = Lab::new(settings.halo.clone()).unwrap_or_else(|error| panic!("{error} (run as root)"));
        let topology = Topology::build(&lab, &plan).unwrap();
        Self { lab: Arc::new(lab), topology: Arc::new(topology) }
    }

    fn subject(&self, settings: &Settings, name: &str) -> Box<dyn Subject> {
        let peers = [peer(&settings.halo, &self.lab.dir().join("ca"))];
        let found = all(settings, &peers).into_iter().find(|subject| subject.info().name == name);
        found.unwrap_or_else(|| panic!("no subject {name}"))
    }

    fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name).unwrap()
    }

    /// Sends the marker over a raw connection, and as a request and its answer.
    fn exchange(&self) -> Message {
        let (web, shop) = (self.pod("web"), self.pod("shop"));
        let echo = serve(&shop.netns, RAW_PORT, |mut stream| {
            let mut bytes = vec![0; MARKER.len()];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let mut stream = connect(&web.netns, (shop.address, RAW_PORT));
        stream.write_all(MARKER.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, MARKER.as_bytes());
        echo.join().unwrap();

        let server = serve(&shop.netns, HTTP_PORT, |mut stream| {
            let request = http::read(&mut BufReader::new(&stream)).unwrap().unwrap();
            http::answer(&mut stream, "200 OK", &request.body).unwrap();
            request
        });
        let mut stream = connect(&web.netns, (shop.address, HTTP_PORT));
        let length = MARKER.len();
        let head =
            format!("POST /{MARKER} HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n{MARKER}");
        stream.write_all(head.as_bytes()).unwrap();
        let answer = http::read(&mut BufReader::new(&stream)).unwrap().unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (Some(200), MARKER), "{answer:?}");
        server.join().unwrap()
    }

    fn captured_exchange(&self) -> Carried {
        let capture = Capture::start(&self.topology.nodes[0].netns, LINK, MARKER).unwrap();
        let request = self.exchange();
        let link = capture.finish().unwrap();
        assert_eq!(link.gaps, 0, "{link:?}");
        Carried { request, link }
    }

    /// Ends the lab and looks whether it is gone.
    fn end(self) {
        let (dir, prefix) = (self.lab.dir().to_owned(), format!("halo-{}-", self.lab.run_id()));
        drop(self);
        let names = std::fs::read_dir(NAMES).unwrap().flatten();
        let left = names.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count();
        assert!(left == 0 && !dir.exists(), "{left} namespaces and {} are left", dir.display());
    }
}

fn serve<T: Send + 'static>(
    netns: &Netns,
    port: u16,
    work: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let listener = netns.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
    thread::spawn(move || work(patient(listener.accept().unwrap().0)))
}

fn connect(netns: &Netns, to: (IpAddr, u16)) -> TcpStream {
    patient(netns.within(|| TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE)).unwrap().unwrap())
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Starts the subject, lets it carry, and ends it. The look at what was carried comes before a pod leaves and returns.
fn carried_by(name: &str, processes: usize, look: impl FnOnce(&Carried)) {
    let settings = settings();
    let stage = Stage::build(&settings);
    let subject = stage.subject(&settings, name);
    let carrier = subject.start(stage.lab.clone(), stage.topology.clone()).unwrap();
    let running = carrier.processes();
    assert_eq!(running.len(), processes);
    look(&stage.captured_exchange());
    if subject.unfit(&Load::Churn { per_second: 1 }).is_none() {
        carrier.cycle("shop").unwrap();
        carrier.cycle("web").unwrap();
        look_again(name, &stage);
    } else {
        assert!(carrier.cycle("shop").is_err());
    }
    assert!(running.iter().all(|process| process.is_running()));
    drop(carrier);
    assert!(!running.iter().any(|process| process.is_running()));
    stage.end();
}

/// What passed through tunnels still does after its pods have left and returned.
fn look_again(name: &str, stage: &Stage) {
    let carried = stage.captured_exchange();
    assert_eq!(carried.link.markers == 0, name != NO_MESH, "{:?}", carried.link);
}

fn in_tunnels(carried: &Carried) {
    let link = carried.link;
    assert!(link.markers == 0 && link.other_segments == 0, "{link:?}");
    assert!(link.tunnel_segments > 0 && link.tls13_handshakes > 0, "{link:?}");
    assert!(link.older_handshakes == 0 && link.tunnels_without_tls == 0, "{link:?}");
}

#[test]
fn without_a_mesh_everything_is_in_the_clear() {
    carried_by(NO_MESH, 0, |carried| assert!(carried.link.markers >= 4, "{:?}", carried.link));
}

#[test]
fn halo_carries_everything_in_tunnels() {
    carried_by(HALO, 2, in_tunnels);
}

#[test]
fn a_peer_carries_everything_in_tunnels() {
    carried_by("again", 2, in_tunnels);
}

#[test]
fn envoy_carries_bytes_encrypted_between_sidecars() {
    carried_by(ENVOY_TCP, 2, |carried| {
        let link = carried.link;
        assert!(link.markers == 0 && link.tunnel_segments == 0 && link.other_segments > 0, "{link:?}");
        assert_eq!(carried.request.header("x-request-id"), None);
    });
}

#[test]
fn envoy_carries_requests_encrypted_between_sidecars() {
    carried_by(ENVOY_HTTP, 2, |carried| {
        let link = carried.link;
        assert!(link.markers == 0 && link.tunnel_segments == 0 && link.other_segments > 0, "{link:?}");
        assert!(carried.request.header("x-request-id").is_some(), "{:?}", carried.request);
    });
}

#[test]
fn subjects_come_in_the_order_of_the_report_and_say_their_version() {
    let settings = settings();
    let infos: Vec<_> = all(&settings, &[peer(&settings.halo, Path::new("ca"))])
        .iter()
        .map(|subject| subject.info())
        .collect();
    let names: Vec<_> = infos.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, [NO_MESH, HALO, ENVOY_TCP, ENVOY_HTTP, "again"]);
    assert!(infos.iter().skip(1).all(|info| !info.version.is_empty()), "{infos:?}");
    assert_eq!(infos[0].version, "");
}

#[test]
fn envoy_says_why_it_is_left_out_of_a_case() {
    let settings = Settings { workers: Some(1), halo: PathBuf::new(), envoy: None };
    let unfit = |mode, load: &Load| Envoy::new(mode, &settings).unfit(load).is_some();
    let raw = [
        Load::Bulk { way: Way::Up, streams: 1 },
        Load::Connects { concurrency: 1 },
        Load::Cold,
        Load::Idle { connections: 0 },
    ];
    let requests = [
        Load::Requests { bytes: 1, connections: 1 },
        Load::Rate { bytes: 1, connections: 1, per_second: 1 },
        Load::Noisy { per_second: 1, streams: 1 },
    ];
    for load in &raw {
        assert!(!unfit(Mode::Tcp, load) && unfit(Mode::Http, load), "{load}");
    }
    for load in &requests {
        assert!(!unfit(Mode::Tcp, load) && !unfit(Mode::Http, load), "{load}");
    }
    let churn = Load::Churn { per_second: 1 };
    assert!(unfit(Mode::Tcp, &churn) && unfit(Mode::Http, &churn));
}

#[test]
fn a_lacking_envoy_names_the_flags_that_help() {
    let lacking = envoy::find(Some(Path::new("/nowhere/envoy")), true).unwrap_err().to_string();
    assert!(lacking.contains("/nowhere/envoy"), "{lacking}");
    let settings = Settings { envoy: None, ..settings() };
    let stage = Stage::build(&settings);
    let envoy = stage.subject(&settings, ENVOY_TCP);
    assert_eq!(envoy.info().version, "");
    let started = envoy.start(stage.lab.clone(), stage.topology.clone());
    let lacking = started.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(lacking.contains("--envoy PATH") && lacking.contains("--install-envoy"), "{lacking}");
    stage.end();
}
