use super::*;

const CLIENT: [u8; 4] = [10, 1, 0, 10];
const SERVER: [u8; 4] = [10, 2, 0, 10];

fn frame(ports: (u16, u16), sequence: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend([0x08, 0x00, 0x45, 0]);
    bytes.extend((40 + data.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend(CLIENT);
    bytes.extend(SERVER);
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

fn frame_v6(ports: (u16, u16), sequence: u32, data: &[u8]) -> Vec<u8> {
    let v4 = frame(ports, sequence, data);
    let mut bytes = vec![0; 12];
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend((20 + data.len() as u16).to_be_bytes());
    bytes.extend([6, 64]);
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfe; 16]);
    bytes.extend(&v4[34..54 + data.len()]);
    // A trailer is no data.
    bytes.extend([b'm'; 6]);
    bytes
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 3, 3];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn server_hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![2, 0, 0, 0, 3, 3];
    body.extend([7; 32]);
    body.extend([4, 1, 2, 3, 4, 0x13, 0x01, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    record(22, &body)
}

fn seen(frames: &[Vec<u8>]) -> Seen {
    let mut reader = Reader::new(b"marker");
    for frame in frames {
        reader.packet(frame);
    }
    reader.seen
}

#[test]
fn marker_is_found_across_segments_and_not_twice_in_a_retransmission() {
    let frames = [
        frame((4000, 80), 100, b"a mar"),
        frame((4000, 80), 105, b"ker, marker"),
        frame((4000, 80), 105, b"ker, marker"),
        frame((4000, 80), 113, b"ker!"),
    ];
    let seen = seen(&frames);
    assert_eq!((seen.markers, seen.gaps), (2, 0));
    assert_eq!((seen.other_segments, seen.tunnel_segments), (4, 0));
}

#[test]
fn ipv6_is_read_like_ipv4() {
    let frames = [
        frame_v6((4000, 80), 1, b"mark"),
        frame_v6((4000, 80), 5, b"er"),
        frame_v6((4000, 15008), 1, &record(23, b"sealed")),
    ];
    let seen = seen(&frames);
    assert_eq!((seen.markers, seen.gaps, seen.data_records), (1, 0, 1), "{seen:?}");
    assert_eq!((seen.other_segments, seen.tunnel_segments, seen.tunnels_without_tls), (2, 1, 0));
}

#[test]
fn missing_bytes_are_a_gap() {
    let frames = [frame((4000, 80), 100, b"mar"), frame((4000, 80), 104, b"ker")];
    let seen = seen(&frames);
    assert_eq!((seen.markers, seen.gaps), (0, 1));
}

#[test]
fn padding_of_a_short_frame_is_no_data() {
    assert_eq!(seen(&[frame((4000, 80), 1, b"")]).segments, 0);
}

#[test]
fn tls13_server_hello_and_data_records_are_counted_however_they_are_cut() {
    let mut bytes = server_hello(&[0, 51, 0, 2, 1, 2, 0, 43, 0, 2, 3, 4]);
    bytes.extend(record(20, &[1]));
    bytes.extend(record(23, &[9; 3000]));
    bytes.extend(record(23, b"marker"));
    for size in [1, 2, 7, 1000, bytes.len()] {
        let mut sequence = u32::MAX - 10;
        let mut frames = Vec::new();
        for piece in bytes.chunks(size) {
            frames.push(frame((15008, 4000), sequence, piece));
            sequence = sequence.wrapping_add(piece.len() as u32);
        }
        let seen = seen(&frames);
        assert_eq!((seen.tls13_handshakes, seen.data_records, seen.gaps), (1, 2, 0), "pieces of {size}");
        assert_eq!((seen.older_handshakes, seen.tunnels_without_tls, seen.markers), (0, 0, 1));
    }
}

#[test]
fn server_hello_without_the_extension_is_older() {
    let seen = seen(&[frame((15008, 4000), 1, &server_hello(&[0xff, 1, 0, 1, 0]))]);
    assert_eq!((seen.tls13_handshakes, seen.older_handshakes), (0, 1));
}

#[test]
fn retry_request_is_no_handshake() {
    let mut hello = server_hello(&[0, 43, 0, 2, 3, 4]);
    hello[11..19].copy_from_slice(&[0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11]);
    assert_eq!(seen(&[frame((15008, 4000), 1, &hello)]).tls13_handshakes, 0);
}

#[test]
fn plaintext_on_the_tunnel_port_is_noticed() {
    let seen = seen(&[frame((4000, 15008), 1, b"CONNECT / HTTP/2")]);
    assert_eq!((seen.tunnels_without_tls, seen.data_records), (1, 0));
}

#[test]
fn broken_packets_are_left_alone() {
    let data = record(23, &[1; 50]);
    for whole in [frame((4000, 15008), 1, &data), frame_v6((4000, 15008), 1, &data)] {
        for length in 0..whole.len() {
            let mut reader = Reader::new(b"marker");
            reader.packet(&whole[..length]);
            for byte in 0..whole.len() {
                let mut broken = whole.clone();
                broken[byte] ^= 0xff;
                reader.packet(&broken[..length]);
            }
        }
    }
}
