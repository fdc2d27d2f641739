//! A control plane that says what ours never would: it sends resources byte by byte, as one that is newer than the
//! node proxy does. It speaks the delta protocol without TLS, gives everybody everything, and changes nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, server};
use halo::lab::mesh::TRUST_DOMAIN;
use halo::lab::netns::Netns;
use halo_control::local::{Defaults, LocalState};
use halo_control::wire;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::{Rig, socket};

const PORT: u16 = 15_010;
/// Type URL of workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// One resource, as it is on the wire.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its type URL.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its message.
    pub message: Vec<u8>,
}

/// The workloads and services of the rig's mesh.
pub fn addresses(rig: &Rig) -> Vec<Resource> {
    let defaults = Defaults { trust_domain: TRUST_DOMAIN.into(), cluster: "Kubernetes".into() };
    let state = LocalState::parse(&rig.mesh.text().unwrap(), &defaults).unwrap();
    let workloads =
        state.workloads.iter().map(|(uid, workload)| (uid.to_string(), wire::encode_workload(workload)));
    let services =
        state.services.iter().map(|(key, service)| (key.to_string(), wire::encode_service(service)));
    let resource = |(name, message)| Resource { kind: ADDRESS, name, message };
    workloads.chain(services).map(resource).collect()
}

/// Field `number` of a message, with a text, bytes or another message in it (Protocol Buffers' wire type 2).
pub fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = varint(number << 3 | 2);
    out.extend(varint(u32::try_from(content.len()).unwrap()));
    out.extend_from_slice(content);
    out
}

/// Field `number` of a message, with a number in it (wire type 0).
pub fn number(number: u32, value: u32) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u32) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A running control plane. It ends with its value.
#[derive(Debug)]
pub struct ControlPlane {
    /// Its URL.
    pub url: String,
    over: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Serves these resources in a namespace, on this address of it.
    pub fn serve(netns: &Netns, address: IpAddr, resources: Vec<Resource>) -> Self {
        let listener = socket::listen(netns, PORT);
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(Notify::new());
        let ends = over.clone();
        let run = move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = ends.notified() => {}
                    () = accept(&listener, &resources) => {}
                }
            });
        };
        let thread = thread::Builder::new().name("control-plane".into()).spawn(run).unwrap();
        let url = format!("http://{}", SocketAddr::from((address, PORT)));
        Self { url, over, thread: Some(thread) }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.over.notify_one();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn accept(listener: &TcpListener, resources: &[Resource]) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(connection(stream, resources.to_vec()));
    }
}

/// One connection; its client may cut it at any time.
async fn connection(stream: TcpStream, resources: Vec<Resource>) {
    let Ok(mut connection) = server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let resources = resources.clone();
        tokio::task::spawn_local(async move { discovery(request, respond, &resources).await });
    }
}

/// Answers the first request for each type with all of its resources. Everything after it acknowledges.
async fn discovery(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    resources: &[Resource],
) -> Option<()> {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut answers = respond.send_response(head, false).ok()?;
    let (mut body, mut input, mut served) = (request.into_body(), BytesMut::new(), Vec::new());
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        let _ = body.flow_control().release_capacity(data.len());
        input.extend_from_slice(&data);
        while let Some(message) = message(&mut input) {
            for kind in [ADDRESS, AUTHORIZATION] {
                let asks = message.windows(kind.len()).any(|window| window == kind.as_bytes());
                if asks && !served.contains(&kind) {
                    served.push(kind);
                    answers.send_data(answer(kind, resources), false).ok()?;
                }
            }
        }
    }
    None
}

/// Takes one message of a gRPC stream: five bytes of head, the last four of them its length.
fn message(input: &mut BytesMut) -> Option<BytesMut> {
    let len = u32::from_be_bytes(input.get(1..5)?.try_into().ok()?) as usize;
    (input.len() >= 5 + len).then(|| {
        input.advance(5);
        input.split_to(len)
    })
}

/// A `DeltaDiscoveryResponse` with all resources of a type.
fn answer(kind: &str, resources: &[Resource]) -> Bytes {
    let mut response = Vec::new();
    for Resource { name, message, .. } in resources.iter().filter(|resource| resource.kind == kind) {
        let any = [field(1, kind.as_bytes()), field(2, message)].concat();
        let resource = [field(1, b"1"), field(2, &any), field(3, name.as_bytes())].concat();
        response.extend(field(2, &resource));
    }
    response.extend(field(4, kind.as_bytes()));
    response.extend(field(5, b"1"));
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(response.len()).unwrap().to_be_bytes());
    framed.extend(response);
    framed.into()
}
