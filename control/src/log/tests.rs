use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::*;
use crate::testing::DEADLINE;

/// What was written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Written {
    /// Long enough for a machine that has other things to do.
    const FLUSH_MAX: Duration = DEADLINE;
}

impl Written {
    /// The lines without their times.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| line.split_once('\t').map_or(line, |(_, rest)| rest).to_owned()).collect()
    }
}

fn said(filter: &str, format: LogFormat, say: impl FnOnce(&LogControl)) -> Vec<String> {
    let written = Written::default();
    let (log, subscriber) = Log::to(written.clone(), filter, format).unwrap();
    tracing::subscriber::with_default(subscriber, || say(&log.control()));
    assert_eq!(log.dropped(), 0);
    drop(log);
    written.lines()
}

#[test]
fn texts_are_quoted_and_other_values_are_not() {
    let lines = said("info", LogFormat::Plain, |_| {
        let address = "10.0.0.1:80";
        info!(target: "access", name = "a \"b\"", src.addr = %address, count = 3, more = None::<u64>, "done");
        debug!("not wanted");
        warn!(target: "halo_control::xds", "lost");
    });
    assert_eq!(
        lines,
        ["info\taccess\tdone\tname=\"a \\\"b\\\"\" src.addr=10.0.0.1:80 count=3", "warn\txds\tlost\t"]
    );
}

#[test]
fn json_lines_have_the_same_in_one_object_and_spans_as_objects() {
    let lines = said("info", LogFormat::Json, |_| {
        let _in = tracing::info_span!("pod", name = "cart").entered();
        info!(target: "access", count = 3, good = true, "done");
    });
    let read: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(read["message"], "done");
    assert_eq!((&read["count"], &read["good"]), (&3.into(), &true.into()));
    assert_eq!(read["pod"]["name"], "cart");
}

#[test]
fn levels_are_added_to_and_reset_and_the_shards_know() {
    let lines = said("info", LogFormat::Plain, |control| {
        let wants = |event| control.access().wants(event);
        assert_eq!(control.level(), "info");
        assert!(wants(access::Event::Complete) && !wants(access::Event::Opened));
        control.set("access:debug").unwrap();
        assert_eq!(control.level(), "access=debug,info");
        assert!(wants(access::Event::Opened));
        debug!(target: "access", "seen");
        debug!("not seen");
        control.set("access=off,halo_control::xds=trace").unwrap();
        assert_eq!(control.level(), "halo_control::xds=trace,access=off,info");
        assert!(!wants(access::Event::Failed));
        control.reset().unwrap();
        assert_eq!(control.level(), "info");
        assert!(wants(access::Event::Complete) && !wants(access::Event::Opened));
    });
    assert_eq!(lines, ["debug\taccess\tseen\t"]);
}

#[test]
fn a_wrong_level_is_refused_with_its_text_and_changes_nothing() {
    said("warn", LogFormat::Plain, |control| {
        let error = control.set("access=loud").unwrap_err().to_string();
        assert!(error.starts_with("`access=loud` is no log filter: "), "{error}");
        let error = control.set(" , ").unwrap_err().to_string();
        assert!(error.contains("it is empty"), "{error}");
        assert_eq!(control.level(), "warn");
    });
}

#[test]
fn a_reader_that_does_not_read_costs_lines_and_nothing_else() {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Output for Stuck {
        // Nothing is waited for that cannot come.
        const FLUSH_MAX: Duration = Duration::ZERO;
    }
    let (release, stuck) = std::sync::mpsc::channel();
    let (log, subscriber) = Log::to(Stuck(stuck), "info", LogFormat::Plain).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..3000 {
            info!("again");
        }
    });
    assert!(log.dropped() > 1000);
    drop(release);
}

#[test]
fn an_output_without_room_is_waited_for_and_one_that_fails_is_counted() {
    /// Takes a byte at a time, and none but every second time; fails once it is told to.
    #[derive(Clone, Default)]
    struct Narrow {
        written: Written,
        full: Arc<AtomicBool>,
        broken: Arc<AtomicBool>,
    }
    impl Write for Narrow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if self.broken.load(SeqCst) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match self.full.load(SeqCst) {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => {
                    self.full.store(true, SeqCst);
                    self.written.write(&text[..1])
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Output for Narrow {
        const FLUSH_MAX: Duration = DEADLINE;

        fn wait(&self) -> io::Result<()> {
            self.full.store(false, SeqCst);
            Ok(())
        }
    }
    let narrow = Narrow::default();
    let (log, subscriber) = Log::to(narrow.clone(), "info", LogFormat::Plain).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        warn!(target: "access", "slow");
        log.flusher()();
        assert_eq!(
            (narrow.written.lines(), log.control().losses().failed()),
            (vec!["warn\taccess\tslow\t".to_owned()], 0)
        );
        narrow.broken.store(true, SeqCst);
        warn!(target: "access", "lost");
        log.flusher()();
    });
    assert_eq!((narrow.written.lines().len(), log.control().losses().failed()), (1, 1));
}

#[test]
fn access_lines_are_written_among_the_others() {
    for (format, expected) in [
        (
            LogFormat::Plain,
            "warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:4000 dst.addr=10.0.0.2:80 direction=\"inbound\" \
             error=\"attempted recursive call to the proxy itself\"",
        ),
        (
            LogFormat::Json,
            "{\"level\":\"warn\",\"time\":\"1970-01-01T00:00:00.000000Z\",\"scope\":\"access\",\
             \"message\":\"connection failed\",\"src.addr\":\"10.0.0.1:4000\",\"dst.addr\":\"10.0.0.2:80\",\
             \"direction\":\"inbound\",\"error\":\"attempted recursive call to the proxy itself\"}",
        ),
    ] {
        let line = AccessLine {
            policy: None,
            time: std::time::UNIX_EPOCH,
            event: access::Event::Refused,
            direction: halo_core::report::Direction::Inbound,
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: Some("10.0.0.2:80".parse().unwrap()),
            authority: None,
            traffic: None,
            bytes: (0, 0),
            duration_ms: 0,
            reason: halo_core::outcome::Reason::OwnPort,
            more: 0,
        };
        let written = Written::default();
        let (log, _) = Log::to(written.clone(), "info", format).unwrap();
        assert!(log.access_lines()(vec![line.clone(), line]));
        drop(log);
        assert_eq!(written.lines(), [expected, expected]);
    }
}
