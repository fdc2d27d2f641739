//! What the operating system and the control thread's runtime say of the process.

use nix::sys::resource::{Resource, getrlimit};
use tokio::runtime::Handle;

use super::text::Text;

/// Writes how many descriptors there are and may be; what the system does not say is left out.
pub(super) fn descriptors(text: &mut Text) {
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // Looking takes one.
        let open = (open.count() as u64).saturating_sub(1);
        text.gauge("process_open_fds", "Open file descriptors.", open);
    }
    if let Ok((max, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        text.gauge("process_max_fds", "Most file descriptors that may be open.", max);
    }
}

/// Writes how the runtime of the control thread is doing. No connection runs on it.
pub(super) fn runtime(text: &mut Text) {
    let metrics = Handle::current().metrics();
    let workers = metrics.num_workers();
    text.gauge("tokio_num_workers", "Threads of the control runtime.", workers as u64);
    let alive = metrics.num_alive_tasks() as u64;
    text.gauge("tokio_num_alive_tasks", "Tasks of the control runtime.", alive);
    let waiting = metrics.global_queue_depth() as u64;
    text.gauge("tokio_global_queue_depth", "Tasks that wait in the control runtime's queue.", waiting);
    let each = |text: &mut Text, name: &str, help: &str, of: &dyn Fn(usize) -> String| {
        text.head(name, "counter", help);
        for worker in 0..workers {
            text.sample(name, &format!("{{worker=\"{worker}\"}}"), of(worker));
        }
    };
    let name = "tokio_worker_total_busy_duration_seconds_total";
    each(text, name, "Time that the thread was busy.", &|worker| {
        metrics.worker_total_busy_duration(worker).as_secs_f64().to_string()
    });
    let name = "tokio_worker_park_count_total";
    each(text, name, "Times that the thread went to sleep.", &|worker| {
        metrics.worker_park_count(worker).to_string()
    });
    let name = "tokio_worker_park_unpark_count_total";
    each(text, name, "Times that the thread went to sleep or woke.", &|worker| {
        metrics.worker_park_unpark_count(worker).to_string()
    });
}
