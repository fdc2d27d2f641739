use super::*;

fn stream(id: u32) -> Stream {
    Stream {
        id: StreamId(id),
        send: SendState::Open,
        receive: ReceiveState::Open,
        send_window: SendWindow::new(1),
        receive_window: ReceiveWindow::new(1, 0),
        starved: false,
        queued: false,
    }
}

#[test]
fn a_stale_identifier_finds_nothing_although_its_slot_is_taken_again() {
    let mut streams = Streams::default();
    streams.insert(stream(1));
    assert!(streams.find_mut(StreamId(1)).is_some());
    streams.remove(StreamId(1));
    streams.insert(stream(3));
    assert!(streams.find(StreamId(1)).is_none());
    assert!(streams.find_mut(StreamId(1)).is_none());
    assert!(streams.remove(StreamId(1)).is_none());
    assert_eq!(streams.find(StreamId(3)).map(|stream| stream.id), Some(StreamId(3)));
    assert_eq!(streams.len(), 1);
}

#[test]
fn iteration_starts_where_it_is_told_and_visits_each_stream_once() {
    let mut streams = Streams::default();
    assert_eq!(streams.iter_mut_from(7).count(), 0);
    for id in [1, 3, 5] {
        streams.insert(stream(id));
    }
    let order: Vec<u32> = streams.iter_mut_from(4).map(|stream| stream.id.0).collect();
    assert_eq!(order, [3, 5, 1]);
}

#[test]
fn resets_are_forgotten_oldest_first() {
    let mut resets = RecentResets::default();
    for id in 0..=RESETS_REMEMBERED as u32 {
        resets.remember(StreamId(id));
    }
    assert!(!resets.contains(StreamId(0)));
    assert!(resets.contains(StreamId(1)));
    assert!(resets.contains(StreamId(RESETS_REMEMBERED as u32)));
}
