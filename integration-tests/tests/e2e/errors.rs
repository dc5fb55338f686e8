//! What bad input gets: a clear code with details, nothing half done, and it works again when the cause is gone.

use std::process::Command;
use std::time::Duration;

use carrel_proto::v1::workspace::{State, StatusReason};
use carrel_proto::v1::{self as pb};
use integration_tests::client::{Client, name_of, reason, violations};
use integration_tests::cluster::{Cluster, Options};
use integration_tests::docker::Docker;
use integration_tests::process::Process;
use integration_tests::{http, settings};
use tonic::Code;
use tonic_types::StatusExt as _;

async fn list(
    client: &Client,
    request: pb::ListWorkspacesRequest,
) -> Result<pb::ListWorkspacesResponse, tonic::Status> {
    client.workspaces.clone().list_workspaces(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let cluster = Cluster::start_without_agent(Options::new()).await;
    let client = cluster.client();
    let long = "a".repeat(65);
    for bad in ["", "../etc", ".hidden", "-rf", "a/b", "a b", "ä", "a\0b", long.as_str()] {
        let status = client.try_start(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}: {status}");
        assert_eq!(violations(&status), ["student_id"], "{bad:?}");
    }
    for bad in ["ada", "workspaces/", "workspaces/../x", "nodes/ada", "workspaces/a/b"] {
        let request = pb::GetWorkspaceRequest { name: bad.into() };
        let status = client.workspaces.clone().get_workspace(request).await.unwrap_err();
        assert_eq!(
            (status.code(), violations(&status)),
            (Code::InvalidArgument, vec!["name".to_owned()]),
            "{bad:?}"
        );
    }
    let request =
        pb::StartWorkspaceRequest { student_id: "ada".into(), course_id: "a/b".into(), ..Default::default() };
    let status = client.workspaces.clone().start_workspace(request).await.unwrap_err();
    assert_eq!(violations(&status), ["course_id"]);
    let request = pb::StartWorkspaceRequest {
        student_id: "ada".into(),
        request_id: "no-uuid".into(),
        ..Default::default()
    };
    let status = client.workspaces.clone().start_workspace(request).await.unwrap_err();
    assert_eq!(violations(&status), ["request_id"]);
    // As a form may send it; the database would not take it.
    let request =
        pb::StopWorkspaceRequest { name: name_of("ada"), reason: "a\0b".into(), ..Default::default() };
    let status = client.workspaces.clone().stop_workspace(request).await.unwrap_err();
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, vec!["reason".to_owned()]));

    let status =
        list(&client, pb::ListWorkspacesRequest { page_size: -1, ..Default::default() }).await.unwrap_err();
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, vec!["page_size".to_owned()]));
    let request = pb::ListWorkspacesRequest { page_token: "nonsense".into(), ..Default::default() };
    let status = list(&client, request).await.unwrap_err();
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, vec!["page_token".to_owned()]));
    assert_eq!(client.list_events(pb::EventFilter::default()).await, [], "nothing was half done");
}

#[tokio::test]
async fn an_id_that_differs_in_case_only_is_refused() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start("Ada").await;
    let status = client.try_start("ada").await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    assert_eq!(client.get("Ada").await.student_id, "Ada", "stored as given");
}

#[tokio::test]
async fn a_request_id_gives_the_first_answer_again() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let request_id = uuid::Uuid::new_v4().to_string();
    let request = pb::StartWorkspaceRequest {
        student_id: "ada".into(),
        request_id: request_id.clone(),
        ..Default::default()
    };
    let start = async |request| {
        client.workspaces.clone().start_workspace(request).await.map(|r| r.into_inner().workspace.unwrap())
    };
    let first = start(request.clone()).await.unwrap();
    client.wait_for("ada", State::Running).await;
    client.stop_and_wait("ada").await;
    let repeated = start(request.clone()).await.unwrap();
    assert_eq!(
        (repeated.generation, repeated.version),
        (first.generation, first.version),
        "the first answer"
    );
    assert_eq!(client.get("ada").await.state(), State::Stopped, "and no second start");

    let other = pb::StartWorkspaceRequest { student_id: "bob".into(), ..request };
    let status = start(other).await.unwrap_err();
    assert_eq!((status.code(), violations(&status)), (Code::InvalidArgument, vec!["request_id".to_owned()]));
    assert_eq!(client.try_get("bob").await.unwrap_err().code(), Code::NotFound);

    // Of several at once with one id, one does it and all tell it.
    let request = pb::StartWorkspaceRequest {
        student_id: "eve".into(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let answers = futures_util::future::join_all((0..8).map(|_| start(request.clone()))).await;
    for answer in answers {
        match answer {
            Ok(workspace) => assert_eq!(workspace.generation, 1),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "the first is still at it: {status}"),
        }
    }
}

#[tokio::test]
async fn a_stale_etag_deletes_nothing() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let early = client.start("ada").await.etag;
    let now = client.wait_for("ada", State::Running).await;
    let status = client.try_delete("ada", &early, true).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert_eq!(client.get("ada").await.state(), State::Running);
    client.try_delete("ada", &now.etag, false).await.expect("the present etag");
}

#[tokio::test]
async fn pages_stay_stable_while_rows_change() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    for student in ["d", "B", "f", "a", "E", "c"] {
        client.start(student).await;
    }
    let mut request = pb::ListWorkspacesRequest { page_size: 2, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = list(&client, request.clone()).await.unwrap();
        assert!(page.workspaces.len() <= 2);
        seen.extend(page.workspaces.into_iter().map(|w| w.student_id));
        // Before the next page, one that has been told goes and one behind it changes.
        if seen.len() == 2 {
            client.delete_and_wait("a", false).await;
            client.try_stop("E").await.unwrap();
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, ["a", "B", "c", "d", "E", "f"]);

    let first =
        list(&client, pb::ListWorkspacesRequest { page_size: 2, ..Default::default() }).await.unwrap();
    let filter = Some(pb::WorkspaceFilter { course_id: "other".into(), ..Default::default() });
    let request =
        pb::ListWorkspacesRequest { page_token: first.next_page_token, filter, ..Default::default() };
    let status = list(&client, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "a token belongs to its filter");
    let all =
        list(&client, pb::ListWorkspacesRequest { page_size: 10_000, ..Default::default() }).await.unwrap();
    assert_eq!(all.workspaces.len(), 5, "a large page is cut, not refused");
}

#[tokio::test]
async fn an_unknown_desk_is_not_found_everywhere() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    let mut codes = vec![
        client.try_get("nobody").await.unwrap_err(),
        client.try_stop("nobody").await.unwrap_err(),
        client.try_delete("nobody", "", false).await.unwrap_err(),
        client.try_heartbeat("nobody").await.unwrap_err(),
        client.try_logs("nobody", 1).await.unwrap_err(),
    ];
    let request = pb::CreateAccessRequest { name: name_of("nobody"), ..Default::default() };
    codes.push(client.workspaces.clone().create_access(request).await.unwrap_err());
    for status in codes {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::NotFound, "WORKSPACE_NOT_FOUND"),
            "{status}"
        );
    }
}

#[tokio::test]
async fn access_to_a_desk_that_does_not_run_is_refused() {
    let cluster = Cluster::start(Options::new()).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    client.stop_and_wait("ada").await;
    let request = pb::CreateAccessRequest { name: name_of("ada"), ..Default::default() };
    let status = client.workspaces.clone().create_access(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "WORKSPACE_NOT_RUNNING")
    );
}

#[tokio::test]
async fn without_a_node_a_start_says_when_to_try_again_and_makes_nothing() {
    let cluster = Cluster::start_without_agent(Options::new()).await;
    let client = cluster.client();
    let status = client.try_start("ada").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NO_NODE_READY"));
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert_eq!(client.try_get("ada").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_image_that_does_not_exist_fails_the_start_with_its_name() {
    let cluster = Cluster::start(Options::new().image("carrel/no-such-image:ever")).await;
    let client = cluster.client();
    client.start("ada").await;
    let failed = client.wait_for("ada", State::Failed).await;
    assert_eq!(failed.status_reason(), StatusReason::ImageUnavailable, "{failed:?}");
    assert!(failed.status_message.contains("carrel/no-such-image:ever"), "{failed:?}");
    assert_eq!(cluster.containers().await, []);
    client.stop_and_wait("ada").await;
    // A Start tries again, with a generation of its own.
    assert_eq!(client.start("ada").await.generation, 2);
}

#[tokio::test]
async fn limits_beyond_every_node_are_refused() {
    // Processors are promised many times over, but Docker gives no single container more than there are.
    let processors = Docker::at(&settings::docker_host()).api().info().await.unwrap().ncpu.unwrap();
    for (flag, limit) in [("memory", 1 << 40), ("cpu-millicores", (processors + 1) * 1000)] {
        let cluster = Cluster::start(Options::new().flag(flag, &limit.to_string())).await;
        let client = cluster.client();
        let status = client.try_start("ada").await.unwrap_err();
        let told = (status.code(), reason(&status));
        assert_eq!(told, (Code::FailedPrecondition, "LIMITS_BEYOND_NODES".to_owned()), "{flag}");
        assert_eq!(client.try_get("ada").await.unwrap_err().code(), Code::NotFound, "nothing half done");
    }
}

#[tokio::test]
async fn a_full_node_makes_desks_wait_in_line_and_take_what_becomes_free() {
    let cluster = Cluster::start(Options::new().agent_flag("max-workspaces", "1")).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    for (place, student) in [(1, "bob"), (2, "eve")] {
        let waiting = client.start(student).await;
        assert_eq!((waiting.state(), waiting.status_reason()), (State::Pending, StatusReason::NoCapacity));
        assert_eq!(client.get(student).await.progress.unwrap().queue_position, place);
    }
    client.stop_and_wait("ada").await;
    client.wait_for("bob", State::Running).await;
    assert_eq!(client.get("eve").await.progress.unwrap().queue_position, 1);
    client.stop_and_wait("bob").await;
    client.wait_for("eve", State::Running).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_ends_the_process() {
    let cluster = Cluster::start(Options::new()).await;
    let log = cluster.dir().join("second.log");
    let second = Command::new(settings::binary("control-plane"))
        .args(["serve", "--dev", "--database-url", &cluster.database().url()])
        .args([
            "--listen",
            &cluster.address(),
            "--agent-listen",
            &format!("127.0.0.1:{}", settings::free_port()),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success());
    assert!(said.contains(&cluster.address()), "it names the address: {said}");
    assert!(http::is_ok(&format!("http://{}/readyz", cluster.address())).await, "the first goes on");

    let mut agent = Command::new(settings::binary("node-agent"));
    agent
        .args(["run", "--dev", "--storage", "directory", "--control-plane", "http://127.0.0.1:9"])
        .args(["--metrics-listen", &cluster.address(), "--docker-host", &settings::docker_host()])
        .arg("--workspace-base-path")
        .arg(cluster.base())
        .arg("--state-dir")
        .arg(cluster.dir().join("second-state"));
    let mut agent = Process::spawn("second agent", &mut agent, &log);
    assert!(!agent.wait(Duration::from_secs(10)).await.success());
    assert!(agent.log_tail(20).contains(&cluster.address()), "{}", agent.log_tail(20));
}

#[tokio::test]
async fn plaintext_is_refused_off_loopback_and_without_dev() {
    let serve = |flags: &[&str]| {
        let command = ["serve", "--database-url", "postgres://nobody@localhost/none"];
        let output =
            Command::new(settings::binary("control-plane")).args(command).args(flags).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (flags, way_out) in [
        // Agents get TLS from an authority; callers' tokens are not there yet.
        (&["--dev", "--agent-listen", "0.0.0.0:7301"][..], "--ca-dir"),
        (&["--dev", "--listen", "0.0.0.0:7300"], "--dev"),
        (&[], "--dev"),
    ] {
        let (success, said) = serve(flags);
        assert!(!success && said.contains(way_out), "{flags:?}: {said}");
    }
}

#[tokio::test]
async fn an_unknown_path_is_a_problem_and_an_unknown_method_unimplemented() {
    let cluster = Cluster::start_without_agent(Options::new()).await;
    let (status, problem) = http::get(&format!("http://{}/nowhere", cluster.address())).await.unwrap();
    assert_eq!(status, 404);
    assert!(problem.contains("ROUTE_NOT_FOUND"), "{problem}");
    for path in ["healthz", "readyz", "metrics"] {
        assert!(http::is_ok(&format!("http://{}/{path}", cluster.address())).await, "{path}");
    }
}
