//! What is counted of connections by their labels, and the lines of the access log.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use halo_core::access::{AccessLine, Event};
use halo_core::net::OUTBOUND_PORT;
use halo_core::outcome::{Reason, ResponseFlag};
use halo_core::report::{ByDirection, Direction, SeriesReport};

use crate::app::echo;
use crate::peer::Peer;
use crate::rig::{DEADLINE, POD, Rig, SERVICE, each_shard};

/// The one series of a direction.
fn series(rig: &Rig, direction: Direction) -> SeriesReport {
    let reporter = match direction {
        Direction::Outbound => "reporter=\"source\"",
        Direction::Inbound => "reporter=\"destination\"",
    };
    let all = rig.series().into_iter().filter(|series| labels(series).starts_with(reporter));
    let all: Vec<_> = all.collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

fn labels(series: &SeriesReport) -> String {
    let mut text = String::new();
    series.labels.write(&mut text, ResponseFlag::None);
    text
}

/// The next lines, however they are batched.
fn lines(rig: &Rig, count: usize) -> Vec<AccessLine> {
    let mut lines = Vec::new();
    while lines.len() < count {
        lines.extend(rig.lines.recv_timeout(DEADLINE).expect("more lines"));
    }
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

#[test]
fn an_open_connection_shows_in_its_series_and_an_ended_one_has_a_line_at_each_end() {
    each_shard(|mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let service = SocketAddr::from((SERVICE, OUTBOUND_PORT));
        let mut socket = TcpStream::connect_timeout(&service, DEADLINE).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(b"hello").unwrap();
        socket.read_exact(&mut [0; 5]).unwrap();
        rig.until("counted", |report| {
            let counted = report.connections.iter().filter(|conn| conn.bytes_sent == 5);
            counted.count() == 2
        });
        for direction in [Direction::Outbound, Direction::Inbound] {
            let open = series(&rig, direction);
            assert_eq!((open.opened, open.closed), (1, [0; 8]));
            assert_eq!((open.bytes_received, open.bytes_sent), (5, 5));
            let text = labels(&open);
            assert!(text.contains("connection_security_policy=\"mutual_tls\""), "{text}");
        }
        let source = labels(&series(&rig, Direction::Outbound));
        assert!(source.contains("destination_service_namespace=\"shop\""), "{source}");
        // The application's socket, and that of the tunnel.
        assert_eq!(rig.inspect().sockets, ByDirection { outbound: 1, inbound: 1 });
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
        rig.until("closed", |report| report.connections.is_empty());
        assert_eq!(series(&rig, Direction::Inbound).closed[ResponseFlag::None as usize], 1);
        let lines = lines(&rig, 4);
        let count = |event| lines.iter().filter(|line| line.event == event).count();
        assert_eq!((count(Event::Opened), count(Event::Complete)), (2, 2));
        for line in lines.iter().filter(|line| line.event == Event::Complete) {
            assert_eq!(line.bytes, (5, 5));
            assert!(line.authority.is_some() && line.traffic.is_some());
        }
    });
}

#[test]
fn an_application_that_does_not_answer_is_a_failure_with_its_flag_and_a_line() {
    each_shard(|rig| {
        let nobody = TcpListener::bind((POD, 0)).unwrap().local_addr().unwrap();
        let mut peer = Peer::dial(&rig);
        assert_eq!(peer.ask(nobody).1, 503);
        let failed = series(&rig, Direction::Inbound);
        assert_eq!((failed.opened, failed.closed[ResponseFlag::Connect as usize]), (1, 1));
        let lines = lines(&rig, 2);
        assert_eq!((lines[0].event, lines[1].event), (Event::Opened, Event::Failed));
        assert_eq!(lines[1].reason, Reason::ConnectFailed);
        assert_eq!(rig.counters.closed_by(Reason::ConnectFailed), 1);
    });
}

#[test]
fn requests_refused_at_once_share_a_line_and_have_no_series() {
    each_shard(|rig| {
        let mut peer = Peer::dial(&rig);
        let elsewhere = SocketAddr::from(([10, 1, 1, 1], 80));
        for _ in 0..3 {
            assert_eq!(peer.ask(elsewhere).1, 400);
        }
        assert!(rig.series().is_empty());
        let lines = lines(&rig, 1);
        assert_eq!((lines[0].event, lines[0].reason), (Event::Refused, Reason::NotForUs));
        assert_eq!(rig.counters.closed_by(Reason::NotForUs), 3);
    });
}
