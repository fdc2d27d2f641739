use std::time::Duration;

use halo_core::certificate::Revocations;
use halo_core::demand::Question;
use halo_core::policy::{Action, Policy, Scope};
use halo_core::service::{Service, ServiceKey};
use halo_core::snapshot::Mesh;
use halo_core::workload::{Protocol, Workload};

use super::*;
use crate::testing::{DEADLINE, FakeShards, publisher};

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".into(), hostname: name.into() }
}

fn service(name: &str) -> MeshEdit {
    MeshEdit::Service(Arc::new(Service {
        key: key(name),
        name: name.into(),
        vips: Vec::new(),
        cidr_vips: Vec::new(),
        ports: Default::default(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Default::default(),
    }))
}

fn policy(name: &str) -> MeshEdit {
    MeshEdit::Policy(Arc::new(Policy {
        name: name.into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: Vec::new(),
        dry_run: false,
    }))
}

fn answered() -> MeshEdit {
    MeshEdit::Answered(Question::Service(key("s")))
}

fn revocations(byte: u8) -> MeshEdit {
    MeshEdit::Revocations(Some(Arc::new(Revocations { lists: vec![vec![byte]] })))
}

fn workload(uid: &str) -> MeshEdit {
    MeshEdit::Workload(Arc::new(Workload { uid: uid.into(), ..Workload::default() }))
}

#[tokio::test]
async fn edits_that_wait_together_become_one_generation() {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    let (first, second) =
        tokio::join!(publisher.publish(vec![workload("a")]), publisher.publish(vec![workload("b")]));
    assert_eq!((first, second), (Ok(1), Ok(1)));
    assert_eq!(shards.published().workloads.len(), 2);
    assert_eq!(publisher.publish(vec![MeshEdit::RemoveWorkload("a".into())]).await, Ok(2));
    assert_eq!(shards.published().workloads.len(), 1);
    let totals = publisher.totals();
    assert!(totals.edits == 3 && totals.ns >= totals.ns_max && totals.ns_max > 0, "{totals:?}");
}

#[tokio::test]
async fn nothing_to_change_makes_no_generation() {
    let publisher = publisher(&FakeShards::default());
    assert_eq!(publisher.publish(Vec::new()).await, Ok(0));
    let publisher = &publisher;
    let publish = async |edits: fn() -> Vec<MeshEdit>| publisher.publish(edits()).await;
    let things = || vec![workload("a"), service("s"), policy("p"), answered(), revocations(1)];
    assert_eq!(publish(things).await, Ok(1));
    let before = publisher.snapshot();
    // The same things anew, and the absence of things that were never there.
    assert_eq!(publish(things).await, Ok(1));
    assert_eq!(publish(|| vec![MeshEdit::RemoveWorkload("b".into())]).await, Ok(1));
    assert_eq!(publish(|| vec![MeshEdit::RemovePolicy("shop/other".into())]).await, Ok(1));
    assert!(Arc::ptr_eq(&before, &publisher.snapshot()));
    assert_eq!(publisher.totals().edits, 5);
    // Beside a change, what has not changed stays the same allocation.
    assert_eq!(publish(|| vec![workload("a"), policy("p"), revocations(2)]).await, Ok(2));
    let after = publisher.snapshot();
    assert!(Arc::ptr_eq(before.workloads.get("a").unwrap(), after.workloads.get("a").unwrap()));
    assert!(after.workloads.same(&before.workloads) && after.policies.same(&before.policies));
    assert_eq!(publisher.totals().edits, 6);
}

#[tokio::test]
async fn a_thing_that_goes_and_comes_back_in_one_generation_is_there() {
    let publisher = publisher(&FakeShards::default());
    publisher.publish(vec![workload("a")]).await.unwrap();
    let edits = vec![MeshEdit::RemoveWorkload("a".into()), workload("a"), workload("b")];
    assert_eq!(publisher.publish(edits).await, Ok(2));
    assert_eq!(publisher.snapshot().workloads.len(), 2);
    let edits = vec![workload("b"), MeshEdit::RemoveWorkload("b".into())];
    assert_eq!(publisher.publish(edits).await, Ok(3));
    assert!(publisher.snapshot().workloads.get("b").is_none());
}

#[tokio::test]
async fn an_equal_workload_leaves_the_own_identities_as_they_are() {
    let mesh = Arc::new(Mesh { node: "here".into(), ..Mesh::default() });
    let first = Snapshot { mesh, ..Snapshot::default() };
    let (publisher, publishing) = Publisher::new(first, FakeShards::default());
    tokio::spawn(publishing);
    let own = |uid: &str| {
        MeshEdit::Workload(Arc::new(Workload {
            uid: uid.into(),
            service_account: "cart".into(),
            node: "here".into(),
            protocol: Protocol::Hbone,
            ..Workload::default()
        }))
    };
    let identities = publisher.own_identities();
    publisher.publish(vec![own("a"), own("a"), own("b")]).await.unwrap();
    publisher.publish(vec![own("a"), MeshEdit::RemoveWorkload("b".into())]).await.unwrap();
    assert_eq!(identities.borrow().len(), 1);
    publisher.publish(vec![MeshEdit::RemoveWorkload("a".into())]).await.unwrap();
    assert!(identities.borrow().is_empty());
}

#[tokio::test]
async fn the_generation_before_lives_on_for_a_while() {
    let publisher = publisher(&FakeShards::default());
    publisher.publish(vec![workload("a")]).await.unwrap();
    let before = Arc::downgrade(&publisher.snapshot());
    publisher.publish(vec![workload("b")]).await.unwrap();
    assert!(before.upgrade().is_some());
    let gone = tokio::time::timeout(DEADLINE, async {
        while before.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    gone.await.expect("the old generation is kept for ever");
}

#[tokio::test]
async fn an_edit_that_does_not_come_into_force_is_an_error() {
    let shards = FakeShards::default();
    let publisher = publisher(&shards);
    shards.break_publish();
    assert_eq!(publisher.publish(vec![workload("a")]).await, Err(PublisherGone));
    assert_eq!(publisher.publish(vec![workload("b")]).await, Err(PublisherGone));
    assert_eq!(publisher.snapshot().generation, 0);
}
