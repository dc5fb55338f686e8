use carrel_common::id::{Generation, NodeId, PlacementId, StudentId, WorkspaceUid};
use carrel_common::model::{DesiredItem, DesiredPair, Resources, Run, WorkspaceSpec};

use super::*;

fn container(workspace: WorkspaceUid, generation: i64) -> Container {
    Container {
        container_id: format!("{workspace}-{generation}"),
        workspace,
        student: "ada".parse::<StudentId>().expect("valid"),
        generation: Generation(generation),
        incarnation: 1,
        node: NodeId::new(),
        running: true,
        placement: Some(PlacementId::new()),
        spec: None,
    }
}

fn set_with(container: &Container) -> DesiredSet {
    let item = DesiredItem {
        workspace: container.workspace,
        student: container.student.clone(),
        generation: container.generation,
        incarnation: container.incarnation,
        placement: PlacementId::new(),
        spec: WorkspaceSpec {
            image: "tiny".into(),
            resources: Resources { cpu_millicores: 100, memory_bytes: 64 << 20, pids: 64 },
            probe_port: 8080,
            probe_path: "/healthz".into(),
        },
        run: Run::Running { start_timeout: Duration::from_secs(1) },
        traceparent: String::new(),
        idle_basis_age: None,
    };
    DesiredSet::new(DesiredPair { incarnation: 1, generation: 1 }, vec![item])
}

#[test]
fn only_what_the_set_names_may_write() {
    let desk = WorkspaceUid::new();
    let (ordered, later) = (container(desk, 1), container(desk, 9));
    let set = set_with(&ordered);
    let running = [ordered.clone(), later.clone()];
    assert!(is_wanted(&ordered, Some(&set), &running));
    assert!(!is_wanted(&later, Some(&set), &running), "nobody ordered it");
    let of_another_store = Container { incarnation: 2, ..ordered.clone() };
    assert!(!is_wanted(&of_another_store, Some(&set), &running));
}

#[test]
fn before_the_first_set_one_that_is_alone_may_write() {
    let desk = WorkspaceUid::new();
    let (one, other) = (container(desk, 1), container(desk, 9));
    assert!(is_wanted(&one, None, std::slice::from_ref(&one)));
    let both = [one.clone(), other.clone()];
    assert!(!is_wanted(&one, None, &both) && !is_wanted(&other, None, &both), "nobody knows which");
}
