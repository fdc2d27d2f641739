//! Keeps the mesh equal to the local file. A text that cannot be read or is wrong changes nothing: what was in force
//! stays in force, and the error is told once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256_OUTPUT_LEN};
use tokio::sync::watch;
use tracing::{error, info};

use crate::config::LocalSource;
use crate::edit::MeshEdit;
use crate::local::{Defaults, LocalError, LocalState};
use crate::publish::{Publisher, PublisherGone};
use crate::watch::FileWatch;

/// Why a source's text is not in force.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("{0}")]
    Wrong(#[from] LocalError),
    #[error("cannot be published: {0}")]
    Unpublished(#[from] PublisherGone),
}

/// How a source fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Whether a text has been taken since start.
    pub synced: bool,
    /// Texts taken.
    pub loads: u64,
    /// Texts refused, counting the same text once.
    pub errors: u64,
    /// Why the text that is there now is not in force.
    pub error: Option<Arc<str>>,
}

/// A text that is refused is read again after this, and judged by what it is then: a writer may have been at it.
const CONFIRM: Duration = Duration::from_millis(20);

/// Pause between two readings of a file that cannot be watched, for want of inotify instances for example.
const POLL: Duration = Duration::from_secs(1);

/// Where the mesh's state goes: to a node's shards, or to the subscribers of a control plane.
pub(crate) trait Sink: Send + Sync + 'static {
    /// Brings edits into force as one generation, and gives the one in force.
    fn apply(&self, edits: Vec<MeshEdit>) -> impl Future<Output = Result<u64, PublisherGone>> + Send;
}

impl Sink for Publisher {
    fn apply(&self, edits: Vec<MeshEdit>) -> impl Future<Output = Result<u64, PublisherGone>> + Send {
        self.publish(edits)
    }
}

/// Loads a source and, if it is a file, follows it for ever.
pub(crate) async fn run(
    source: LocalSource,
    defaults: Defaults,
    sink: impl Sink,
    status: watch::Sender<SourceStatus>,
) {
    let mut follower = Follower { defaults, sink, status, state: LocalState::default(), judged: None };
    match source {
        LocalSource::Inline(text) => {
            if let Some(judged) = follower.judge(Ok(text)).await {
                follower.settle("LOCAL_XDS", judged).await;
            }
        }
        LocalSource::File(path) => follow(path, &mut follower).await,
    }
}

async fn follow(path: PathBuf, follower: &mut Follower<impl Sink>) {
    let name = path.display().to_string();
    let watch = match FileWatch::new(&path) {
        Ok(watch) => Some(watch),
        Err(error) => {
            error!(file = name, %error, "the file cannot be watched and is read every second");
            None
        }
    };
    reread(&path, watch, follower).await;
}

/// Reads a file whenever its watch tells, or without one from time to time.
async fn reread(path: &Path, mut watch: Option<FileWatch>, follower: &mut Follower<impl Sink>) {
    let name = path.display().to_string();
    loop {
        follower.read(path, &name).await;
        match &mut watch {
            Some(watch) => watch.changed().await,
            None => tokio::time::sleep(POLL).await,
        }
    }
}

struct Follower<S> {
    defaults: Defaults,
    sink: S,
    status: watch::Sender<SourceStatus>,
    /// What is in force.
    state: LocalState,
    /// The digest of the text that was last judged, so that it is judged once.
    judged: Option<[u8; SHA256_OUTPUT_LEN]>,
}

impl<S: Sink> Follower<S> {
    /// Reads a file and takes what it says, unless it says what it said last.
    async fn read(&mut self, path: &Path, name: &str) {
        let mut judged = self.judge(tokio::fs::read_to_string(path).await).await;
        if matches!(judged, Some(Err(_))) {
            tokio::time::sleep(CONFIRM).await;
            // The same text is the same judgement.
            judged = self.judge(tokio::fs::read_to_string(path).await).await.or(judged);
        }
        if let Some(judged) = judged {
            self.settle(name, judged).await;
        }
    }

    /// What a text says; `None` if it is the one that was judged last. A large one takes seconds, which this thread has
    /// others to serve in.
    async fn judge(&mut self, read: std::io::Result<String>) -> Option<Result<LocalState, SourceError>> {
        let text = match read {
            Ok(text) => text,
            Err(error) => {
                self.judged = None;
                return Some(Err(SourceError::Read(error)));
            }
        };
        let (last, defaults) = (self.judged, self.defaults.clone());
        let judging = tokio::task::spawn_blocking(move || {
            let digest = sha256(text.as_bytes());
            let judged = (last != Some(digest)).then(|| LocalState::parse(&text, &defaults));
            (digest, judged)
        });
        match judging.await {
            Ok((digest, judged)) => {
                self.judged = Some(digest);
                judged.map(|judged| judged.map_err(SourceError::Wrong))
            }
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process ends.
                Err(_) => None,
            },
        }
    }

    async fn settle(&mut self, name: &str, judged: Result<LocalState, SourceError>) {
        let adopted = match judged {
            Ok(next) => self.adopt(name, next).await,
            Err(error) => Err(error),
        };
        if let Err(error) = adopted {
            self.refuse(name, &error);
        }
    }

    async fn adopt(&mut self, name: &str, next: LocalState) -> Result<(), SourceError> {
        let edits = self.state.diff(&next);
        let changes = edits.len();
        let generation = self.sink.apply(edits).await?;
        self.state = next;
        self.status.send_modify(|status| {
            status.synced = true;
            status.loads += 1;
            status.error = None;
        });
        info!(source = name, changes, generation, "the mesh follows its local source");
        Ok(())
    }

    fn refuse(&self, name: &str, reason: &SourceError) {
        let text: Arc<str> = reason.to_string().into();
        let news = self.status.borrow().error.as_ref() != Some(&text);
        if news {
            error!(source = name, error = %text, "the source is refused; what was in force stays in force");
            self.status.send_modify(|status| {
                status.errors += 1;
                status.error = Some(text);
            });
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut digest = [0; SHA256_OUTPUT_LEN];
    digest.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use std::fs;

    use halo_core::snapshot::Snapshot;

    use super::*;
    use crate::testing::{DEADLINE, FakeShards, publisher};

    struct Bench {
        folder: tempfile::TempDir,
        shards: FakeShards,
        status: watch::Receiver<SourceStatus>,
    }

    impl Bench {
        fn start(file: &str, prepare: impl FnOnce(&Path)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let shards = FakeShards::default();
            let publisher = publisher(&shards);
            let (sender, status) = watch::channel(SourceStatus::default());
            let defaults = Defaults { trust_domain: "td".into(), cluster: "one".into() };
            tokio::spawn(run(LocalSource::File(folder.path().join(file)), defaults, publisher, sender));
            Self { folder, shards, status }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn replace(&self, name: &str, text: &str) {
            self.write("next", text);
            fs::rename(self.folder.path().join("next"), self.folder.path().join(name)).unwrap();
        }

        async fn has(&self, names: &[&str]) -> Arc<Snapshot> {
            let same = |snapshot: &Snapshot| {
                let mut found: Vec<_> =
                    snapshot.workloads.iter().map(|workload| workload.name.to_string()).collect();
                found.sort();
                found == names
            };
            self.shards.snapshot_where(same).await
        }

        async fn status_where(&mut self, holds: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
            let found = tokio::time::timeout(DEADLINE, self.status.wait_for(|status| holds(status))).await;
            found.expect("no such status in time").unwrap().clone()
        }
    }

    fn follower(shards: &FakeShards) -> Follower<Publisher> {
        Follower {
            defaults: Defaults { trust_domain: "td".into(), cluster: "one".into() },
            sink: publisher(shards),
            status: watch::channel(SourceStatus::default()).0,
            state: LocalState::default(),
            judged: None,
        }
    }

    fn mesh(names: &[&str]) -> String {
        let item = |name: &&str| format!("- {{name: {name}, namespace: a, workloadIps: []}}\n");
        format!("workloads:\n{}", names.iter().map(item).collect::<String>())
    }

    #[tokio::test]
    async fn writing_renaming_removing_and_creating_the_file_are_all_followed() {
        let bench =
            Bench::start("mesh.yaml", |folder| fs::write(folder.join("mesh.yaml"), mesh(&["a"])).unwrap());
        let before = bench.has(&["a"]).await;
        bench.write("mesh.yaml", &mesh(&["a", "b"]));
        let after = bench.has(&["a", "b"]).await;
        let uid = "one//Pod/a/a";
        let kept = (before.workloads.get(uid).unwrap(), after.workloads.get(uid).unwrap());
        assert!(Arc::ptr_eq(kept.0, kept.1), "a workload that did not change was touched");
        bench.replace("mesh.yaml", &mesh(&["c"]));
        bench.has(&["c"]).await;
        fs::remove_file(bench.folder.path().join("mesh.yaml")).unwrap();
        bench.write("mesh.yaml", &mesh(&["d"]));
        bench.has(&["d"]).await;
    }

    #[tokio::test]
    async fn a_swap_of_links_is_followed() {
        use std::os::unix::fs::symlink;
        let bench = Bench::start("mesh.yaml", |folder| {
            fs::create_dir(folder.join("..1")).unwrap();
            fs::write(folder.join("..1/mesh.yaml"), mesh(&["a"])).unwrap();
            symlink("..1", folder.join("..data")).unwrap();
            symlink("..data/mesh.yaml", folder.join("mesh.yaml")).unwrap();
        });
        bench.has(&["a"]).await;
        let folder = bench.folder.path();
        fs::create_dir(folder.join("..2")).unwrap();
        fs::write(folder.join("..2/mesh.yaml"), mesh(&["b"])).unwrap();
        symlink("..2", folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        bench.has(&["b"]).await;
        // The new target is followed in place too.
        fs::write(folder.join("..2/mesh.yaml"), mesh(&["c"])).unwrap();
        bench.has(&["c"]).await;
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_not_read_before_it_is_closed() {
        use std::io::Write;
        let bench =
            Bench::start("mesh.yaml", |folder| fs::write(folder.join("mesh.yaml"), mesh(&["a"])).unwrap());
        let before = bench.has(&["a"]).await;
        let mut file = fs::File::create(bench.folder.path().join("mesh.yaml")).unwrap();
        file.write_all(b"workloads: []\n").unwrap();
        for number in 0..20 {
            bench.write(&format!("other{number}"), "noise");
            tokio::task::yield_now().await;
        }
        file.write_all(b"services: []\n").unwrap();
        drop(file);
        let after = bench.has(&[]).await;
        assert_eq!(after.generation, before.generation + 1);
    }

    #[tokio::test]
    async fn a_wrong_text_leaves_the_mesh_as_it_was() {
        let mut bench =
            Bench::start("mesh.yaml", |folder| fs::write(folder.join("mesh.yaml"), mesh(&["a"])).unwrap());
        bench.has(&["a"]).await;
        bench.write("mesh.yaml", "workloads:\n- colour: red\n");
        let status = bench.status_where(|status| status.errors == 1).await;
        assert!(status.error.unwrap().starts_with("line 2, workloads[0].colour: "));
        assert_eq!((status.synced, bench.shards.published().workloads.len()), (true, 1));
        bench.replace("mesh.yaml", &mesh(&["a", "b"]));
        bench.status_where(|status| status.error.is_none()).await;
        bench.has(&["a", "b"]).await;
    }

    #[tokio::test]
    async fn a_wrong_text_is_counted_once_however_often_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.yaml");
        let shards = FakeShards::default();
        let mut follower = follower(&shards);
        let read = async |follower: &mut Follower<Publisher>, text: &str| {
            fs::write(&path, text).unwrap();
            follower.read(&path, "mesh").await;
            follower.status.borrow().clone()
        };
        read(&mut follower, &mesh(&["a"])).await;
        for (text, errors) in [
            ("workloads:\n- colour: red\n", 1),
            ("workloads:\n- colour: red\n", 1),
            ("workloads:\n- colour: red\n# The same mistake\n", 1),
            ("workloads:\n- shape: round\n", 2),
        ] {
            let status = read(&mut follower, text).await;
            assert_eq!((status.loads, status.errors), (1, errors), "{text}");
            assert!(status.error.is_some());
        }
        assert_eq!(shards.published().generation, 1);
        let status = read(&mut follower, &mesh(&["a", "b"])).await;
        assert_eq!((status.loads, status.errors, status.error), (2, 2, None));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_watched_is_followed_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (path, shards) = (folder.path().join("mesh.yaml"), FakeShards::default());
        let mut follower = follower(&shards);
        let read = path.clone();
        tokio::spawn(async move { reread(&read, None, &mut follower).await });
        for count in [1, 2] {
            fs::write(&path, mesh(&["a", "b"][..count])).unwrap();
            shards.snapshot_where(|snapshot| snapshot.workloads.len() == count).await;
        }
    }

    #[tokio::test]
    async fn a_text_that_is_not_published_is_not_taken() {
        let mut bench =
            Bench::start("mesh.yaml", |folder| fs::write(folder.join("mesh.yaml"), mesh(&["a"])).unwrap());
        bench.has(&["a"]).await;
        bench.status_where(|status| status.synced).await;
        bench.shards.break_publish();
        bench.write("mesh.yaml", &mesh(&["a", "b"]));
        let status = bench.status_where(|status| status.errors == 1).await;
        assert_eq!(
            (status.loads, status.error.as_deref()),
            (1, Some("cannot be published: the publisher has ended"))
        );
    }

    #[tokio::test]
    async fn a_file_that_comes_later_is_taken_when_it_comes() {
        let mut bench = Bench::start("mesh.yaml", |_| {});
        let status = bench.status_where(|status| status.errors == 1).await;
        assert!(!status.synced && status.error.unwrap().contains("cannot be read"));
        bench.write("mesh.yaml", &mesh(&["a"]));
        bench.has(&["a"]).await;
        assert!(bench.status_where(|status| status.synced).await.error.is_none());
    }
}
