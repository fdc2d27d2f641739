//! `/debug/pprof/profile`: where the process spends its CPU time, in the form that `pprof` reads.
//!
//! A timer of the process interrupts whichever thread runs, and its stack is taken down. Names are looked up once the
//! time is over, away from the thread that serves.

mod proto;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use pprof::{Frames, ProfilerGuard, ProfilerGuardBuilder};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::heap::{HeapProfiler, blocking};
use crate::http::{Answer, Request};

/// How long a profile may take, and takes unless told, s.
const SECONDS: (u64, u64, u64) = (1, 300, 10);
/// How often samples may be taken, and are unless told, Hz. The timer's signals do not queue, so that a higher rate on
/// many busy cores counts too little.
const FREQUENCY: (u64, u64, u64) = (1, 1000, 100);

/// Libraries whose code is not walked through: a signal may come while they hold locks that the walk would take.
const BLOCKLIST: &[&str] = &["libc", "libgcc", "pthread", "vdso"];

/// Takes a profile. The process has one timer, so only one is taken at a time, for whoever holds `turn`; and none while
/// the allocator takes stacks down, because neither walk may interrupt the other.
pub(super) async fn answer(
    turn: &Mutex<()>,
    heap: Option<Arc<dyn HeapProfiler>>,
    request: &Request,
) -> Answer {
    let asked = number(request, "seconds", SECONDS)
        .and_then(|seconds| Ok((seconds, number(request, "frequency", FREQUENCY)?)));
    let (seconds, frequency) = match asked {
        Ok(asked) => asked,
        Err(wrong) => return Answer::text(StatusCode::BAD_REQUEST, wrong),
    };
    let Ok(_turn) = turn.try_lock() else {
        let text = "a CPU profile is being taken already; try again once it is done\n";
        return Answer::text(StatusCode::CONFLICT, text);
    };
    if let Some(heap) = heap
        && spawn_blocking(move || heap.is_active()).await.unwrap_or(true)
    {
        let text = "heap profiling is active; end it with /debug/pprof/heap/profiling?activate=false\n";
        return Answer::text(StatusCode::CONFLICT, text);
    }
    let frequency = i32::try_from(frequency).unwrap_or(i32::MAX);
    let builder = ProfilerGuardBuilder::default().frequency(frequency).blocklist(BLOCKLIST);
    let guard = match builder.build() {
        Ok(guard) => guard,
        Err(error) => return failed(&error),
    };
    sleep(Duration::from_secs(seconds)).await;
    blocking(move || finish(&guard)).await
}

fn finish(guard: &ProfilerGuard<'_>) -> Answer {
    let report = match guard.report().build() {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    let timing = &report.timing;
    let taken =
        Taken { frequency: timing.frequency.into(), began: timing.start_time, duration: timing.duration };
    match profile(&report.data, &taken).gzip() {
        Ok(bytes) => Answer::binary(bytes),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Answer {
    Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("no CPU profile: {error}\n"))
}

/// A parameter between a least and a most, or what holds without it.
fn number(request: &Request, name: &str, (least, most, default): (u64, u64, u64)) -> Result<u64, String> {
    let Some(text) = request.parameter(name) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("invalid {name} value {text:?}; expected {least}-{most}\n"))
}

/// When samples were taken, and how often in a second.
struct Taken {
    frequency: i64,
    began: SystemTime,
    duration: Duration,
}

fn profile(data: &HashMap<Frames, isize>, when: &Taken) -> proto::Profile {
    let mut tables = Tables::default();
    tables.text("");
    let (samples, count) = (tables.text("samples"), tables.text("count"));
    let (cpu, nanoseconds) = (tables.text("cpu"), tables.text("nanoseconds"));
    let thread = tables.text("thread");
    let period_ns = 1_000_000_000 / when.frequency.max(1);
    let mut taken = Vec::with_capacity(data.len());
    for (frames, hits) in data {
        let hits = i64::try_from(*hits).unwrap_or(i64::MAX);
        let name = tables.text(&frames.thread_name_or_id());
        taken.push(proto::Sample {
            location_id: frames.frames.iter().map(|symbols| tables.location(symbols)).collect(),
            value: vec![hits, hits.saturating_mul(period_ns)],
            label: vec![proto::Label { key: thread, str: name, num: 0 }],
        });
    }
    let since = when.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanoseconds_of = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let in_nanoseconds = proto::ValueType { kind: cpu, unit: nanoseconds };
    proto::Profile {
        sample_type: vec![proto::ValueType { kind: samples, unit: count }, in_nanoseconds],
        sample: taken,
        location: tables.locations,
        function: tables.functions,
        string_table: tables.texts,
        time_nanos: nanoseconds_of(since),
        duration_nanos: nanoseconds_of(when.duration),
        period_type: Some(in_nanoseconds),
        period: period_ns,
    }
}

/// What samples refer to by number, each thing once.
#[derive(Debug, Default)]
struct Tables {
    texts: Vec<String>,
    text_numbers: HashMap<String, i64>,
    functions: Vec<proto::Function>,
    function_numbers: HashMap<(i64, i64), u64>,
    locations: Vec<proto::Location>,
    location_numbers: HashMap<Vec<(u64, i64)>, u64>,
}

impl Tables {
    /// The place of a text; the first is 0.
    fn text(&mut self, text: &str) -> i64 {
        if let Some(number) = self.text_numbers.get(text) {
            return *number;
        }
        let number = i64::try_from(self.texts.len()).unwrap_or(i64::MAX);
        self.texts.push(text.to_owned());
        self.text_numbers.insert(text.to_owned(), number);
        number
    }

    /// The number of a function; the first is 1.
    fn function(&mut self, symbol: &pprof::Symbol) -> u64 {
        let (name, file) = (self.text(&symbol.name()), self.text(&symbol.filename()));
        let next = self.functions.len() as u64 + 1;
        let number = *self.function_numbers.entry((name, file)).or_insert(next);
        if number == next {
            let system_name = self.text(&symbol.sys_name());
            self.functions.push(proto::Function { id: number, name, system_name, filename: file });
        }
        number
    }

    /// The number of a place in the code; the first is 1. Of functions that the compiler has put into one another, the
    /// innermost comes first.
    fn location(&mut self, symbols: &[pprof::Symbol]) -> u64 {
        let lines: Vec<_> =
            symbols.iter().map(|symbol| (self.function(symbol), i64::from(symbol.lineno()))).collect();
        let next = self.locations.len() as u64 + 1;
        let number = *self.location_numbers.entry(lines.clone()).or_insert(next);
        if number == next {
            let line =
                lines.into_iter().map(|(function_id, line)| proto::Line { function_id, line }).collect();
            self.locations.push(proto::Location { id: number, line });
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use pprof::Symbol;
    use prost::Message;
    use std::io::Read;

    use super::*;
    use crate::admin::heap::tests::Fake;

    fn symbol(name: &str, line: u32) -> Symbol {
        Symbol { name: Some(name.into()), addr: None, lineno: Some(line), filename: Some("a.rs".into()) }
    }

    fn frames(thread: &str, frames: Vec<Vec<Symbol>>) -> Frames {
        Frames { frames, thread_name: thread.into(), thread_id: 7, sample_timestamp: UNIX_EPOCH }
    }

    #[test]
    fn a_report_becomes_samples_of_functions_with_their_time() {
        let (inner, outer) = (|| vec![symbol("seal", 3), symbol("send", 9)], || vec![symbol("main", 1)]);
        let data = HashMap::from([
            (frames("shard-0", vec![inner(), outer()]), 5),
            (frames("shard-1", vec![outer()]), 2),
        ]);
        let duration = Duration::from_secs(2);
        let taken = Taken { frequency: 100, began: UNIX_EPOCH + duration, duration };
        let bytes = profile(&data, &taken).gzip().unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        let read = proto::Profile::decode(&plain[..]).unwrap();

        let text = |number: i64| read.string_table[usize::try_from(number).unwrap()].as_str();
        assert_eq!(read.string_table[0], "");
        let types: Vec<_> = read.sample_type.iter().map(|of| (text(of.kind), text(of.unit))).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!((read.period, read.duration_nanos), (10_000_000, 2_000_000_000));
        assert_eq!((read.location.len(), read.function.len()), (2, 3));
        let place = |id: u64| {
            let location = read.location.iter().find(|location| location.id == id).unwrap();
            let function = |line: &proto::Line| {
                let found = read.function.iter().find(|function| function.id == line.function_id).unwrap();
                format!("{}:{}", text(found.name), line.line)
            };
            location.line.iter().map(function).collect::<Vec<_>>().join(" in ")
        };
        let mut samples: Vec<_> = read
            .sample
            .iter()
            .map(|one| {
                let stack: Vec<_> = one.location_id.iter().map(|id| place(*id)).collect();
                (text(one.label[0].str), one.value.clone(), stack)
            })
            .collect();
        samples.sort();
        let stack = |places: &[&str]| places.iter().map(|&place| place.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            samples,
            [
                ("shard-0", vec![5, 50_000_000], stack(&["seal:3 in send:9", "main:1"])),
                ("shard-1", vec![2, 20_000_000], stack(&["main:1"])),
            ]
        );
    }

    #[tokio::test]
    async fn values_out_of_bounds_and_a_second_profile_are_refused() {
        let turn = Mutex::new(());
        for (name, value) in [
            ("seconds", "0"),
            ("seconds", "301"),
            ("seconds", "-1"),
            ("frequency", "1001"),
            ("frequency", "x"),
        ] {
            let query = vec![(name.to_owned(), value.to_owned())];
            let request = Request { query, ..Request::default() };
            let (status, text) = answer(&turn, None, &request).await.into_parts();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.starts_with(&format!("invalid {name} value {value:?}; expected 1-")), "{text}");
        }
        let request = Request::default();
        let heap: Arc<dyn HeapProfiler> = Arc::new(Fake::default());
        heap.activate(true).unwrap();
        let (status, text) = answer(&turn, Some(heap), &request).await.into_parts();
        assert_eq!((status, text.contains("heap profiling is active")), (StatusCode::CONFLICT, true));
        let _taken = turn.lock().await;
        assert_eq!(answer(&turn, None, &request).await.into_parts().0, StatusCode::CONFLICT);
    }
}
