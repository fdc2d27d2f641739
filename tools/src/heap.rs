//! The profiler of this binary's allocator.

use std::sync::Arc;

use halo_control::node::{HeapError, HeapProfiler};
use jemalloc_pprof::{JemallocProfCtl, PROF_CTL};
use tokio::sync::Mutex;

/// jemalloc's profiler.
struct Jemalloc(Arc<Mutex<JemallocProfCtl>>);

impl std::fmt::Debug for Jemalloc {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Jemalloc")
    }
}

/// The profiler, if the allocator was built with one.
pub(crate) fn profiler() -> Option<Arc<dyn HeapProfiler>> {
    let control = PROF_CTL.as_ref()?.clone();
    Some(Arc::new(Jemalloc(control)))
}

fn failed(error: impl std::fmt::Display) -> HeapError {
    HeapError(error.to_string())
}

impl HeapProfiler for Jemalloc {
    fn is_active(&self) -> bool {
        self.0.blocking_lock().activated()
    }

    fn activate(&self, active: bool) -> Result<(), HeapError> {
        let mut control = self.0.blocking_lock();
        match active {
            true => control.activate(),
            false => control.deactivate(),
        }
        .map_err(failed)
    }

    fn profile(&self) -> Result<Vec<u8>, HeapError> {
        self.0.blocking_lock().dump_pprof().map_err(failed)
    }
}
