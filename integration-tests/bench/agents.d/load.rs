//! Students who come and go: a stop or a start each second.

use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace_service_client::WorkspaceServiceClient;
use integration_tests::bench::replica::Replica;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::tally::middle_and_tail;

/// A desk that was stopped is started again one step later.
const STEP: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Load {
    stop: CancellationToken,
    task: JoinHandle<Vec<Duration>>,
}

impl Load {
    /// Ends it; from StartWorkspace to RUNNING, p50 and p99.
    pub(crate) async fn end(self) -> [Duration; 2] {
        self.stop.cancel();
        middle_and_tail(&mut self.task.await.expect("students came and went"))
    }
}

pub(crate) fn begin(replica: &Replica, desks: u64) -> Load {
    let (client, stop) = (WorkspaceServiceClient::new(replica.channel()), CancellationToken::new());
    let task = tokio::spawn(come_and_go(client, desks, stop.clone()));
    Load { stop, task }
}

async fn come_and_go(
    mut client: WorkspaceServiceClient<Channel>,
    desks: u64,
    stop: CancellationToken,
) -> Vec<Duration> {
    let (mut steps, mut times) = (tokio::time::interval(STEP), Vec::new());
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        let student_id = format!("student-{}", rand::random_range(1..=desks));
        let name = format!("workspaces/{student_id}");
        steps.tick().await;
        let request = pb::StopWorkspaceRequest { name: name.clone(), ..Default::default() };
        client.stop_workspace(request).await.expect("stopped");
        until(&mut client, &name, pb::workspace::State::Stopped).await;
        steps.tick().await;
        let from = Instant::now();
        let request = pb::StartWorkspaceRequest { student_id, ..Default::default() };
        client.start_workspace(request).await.expect("started");
        until(&mut client, &name, pb::workspace::State::Running).await;
        times.push(from.elapsed());
    }
    times
}

async fn until(client: &mut WorkspaceServiceClient<Channel>, name: &str, wanted: pb::workspace::State) {
    let from = Instant::now();
    loop {
        let request = pb::GetWorkspaceRequest { name: name.to_owned() };
        let found =
            client.get_workspace(request).await.expect("found").into_inner().workspace.expect("a workspace");
        if found.state() == wanted {
            return;
        }
        assert!(from.elapsed() < PATIENCE, "not {wanted:?} but {found:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
