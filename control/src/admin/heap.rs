//! `/debug/pprof/heap`: what the process's memory is held by, as the allocator of the binary samples it.

use std::fmt::Debug;
use std::sync::Arc;

use hyper::StatusCode;

use crate::http::{Answer, Request};

/// A profiler that did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the allocator's profiler: {0}")]
pub struct HeapError(pub String);

/// The profiler of the binary's allocator. Its calls block.
pub trait HeapProfiler: Debug + Send + Sync {
    /// Whether it samples.
    fn is_active(&self) -> bool;
    /// Starts or stops sampling. Stopping forgets what was sampled.
    ///
    /// # Errors
    /// The allocator refuses.
    fn activate(&self, active: bool) -> Result<(), HeapError>;
    /// What is held of all that was allocated while it sampled: profile.proto, compressed with gzip.
    ///
    /// # Errors
    /// The allocator refuses, or the profile cannot be put together.
    fn profile(&self) -> Result<Vec<u8>, HeapError>;
}

const NONE: &str = "heap profiling is not enabled\n";
const ASLEEP: &str = "heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true\n";

/// Answers with a profile.
pub(super) async fn profile(heap: Option<Arc<dyn HeapProfiler>>) -> Answer {
    let Some(heap) = heap else { return failed(NONE) };
    blocking(move || {
        if !heap.is_active() {
            return failed(ASLEEP);
        }
        heap.profile().map_or_else(|error| failed(&format!("{error}\n")), Answer::binary)
    })
    .await
}

/// Starts or stops sampling, and tells whether it goes on.
pub(super) async fn activate(heap: Option<Arc<dyn HeapProfiler>>, request: &Request) -> Answer {
    let Some(heap) = heap else { return failed(NONE) };
    let wanted = match request.parameter("activate") {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => {
            let text = format!("invalid activate value {other:?}; expected true or false\n");
            return Answer::text(StatusCode::BAD_REQUEST, text);
        }
    };
    blocking(move || match wanted.map_or(Ok(()), |active| heap.activate(active)) {
        Ok(()) => Answer::text(StatusCode::OK, format!("heap profiling active: {}\n", heap.is_active())),
        Err(error) => failed(&format!("{error}\n")),
    })
    .await
}

fn failed(text: &str) -> Answer {
    Answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}

/// Runs away from the thread that serves.
pub(super) async fn blocking(work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| failed(&format!("internal error: {error}\n")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    pub(crate) struct Fake(AtomicBool);

    impl HeapProfiler for Fake {
        fn is_active(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }

        fn activate(&self, active: bool) -> Result<(), HeapError> {
            self.0.store(active, Ordering::SeqCst);
            Ok(())
        }

        fn profile(&self) -> Result<Vec<u8>, HeapError> {
            Ok(b"profile".to_vec())
        }
    }

    async fn set(heap: &Arc<dyn HeapProfiler>, query: &[(&str, &str)]) -> (StatusCode, String) {
        let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = Request { query, ..Request::default() };
        activate(Some(heap.clone()), &request).await.into_parts()
    }

    #[tokio::test]
    async fn a_profile_is_given_while_the_profiler_is_awake() {
        let heap: Arc<dyn HeapProfiler> = Arc::new(Fake::default());
        let asleep = (StatusCode::INTERNAL_SERVER_ERROR, ASLEEP.to_owned());
        assert_eq!(profile(Some(heap.clone())).await.into_parts(), asleep);
        for (query, active) in
            [(&[("activate", "true")][..], true), (&[], true), (&[("activate", "false")], false)]
        {
            let told = (StatusCode::OK, format!("heap profiling active: {active}\n"));
            assert_eq!(set(&heap, query).await, told);
        }
        let (status, text) = set(&heap, &[("activate", "yes")]).await;
        assert_eq!((status, text.contains("\"yes\"")), (StatusCode::BAD_REQUEST, true));
        set(&heap, &[("activate", "true")]).await;
        let given = (StatusCode::OK, "profile".to_owned());
        assert_eq!(profile(Some(heap)).await.into_parts(), given);
        assert_eq!(profile(None).await.into_parts(), (StatusCode::INTERNAL_SERVER_ERROR, NONE.to_owned()));
    }
}
