//! Starts through Carrel.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace::State;
use integration_tests::client::{Client, name_of};
use integration_tests::cluster::Cluster;
use integration_tests::docker::Found;
use tonic::Streaming;

use crate::bare::answers;

/// A caller with a watch, as an LMS has one.
pub(crate) struct Carrel<'a> {
    cluster: &'a Cluster,
    client: Client,
    /// Students so far: each start is a student's first.
    students: usize,
    running: Vec<String>,
}

impl<'a> Carrel<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, client: cluster.client(), students: 0, running: Vec::new() }
    }

    /// The time until so many new students, who press Start at once, all have an editor that answers.
    pub(crate) async fn start_many(&mut self, count: usize) -> Duration {
        let names: Vec<_> = (0..count).map(|number| format!("student-{}", self.students + number)).collect();
        self.students += count;
        let mut watch = self.watch(&names).await;
        let begun = Instant::now();
        let presses = futures_util::future::join_all(names.iter().map(|name| self.client.start(name)));
        let watching = async {
            let (mut waiting, mut opening) = (names.iter().cloned().collect::<HashSet<_>>(), Vec::new());
            while !waiting.is_empty() {
                let change =
                    watch.message().await.expect("no error").expect("no end").change.expect("a change");
                let Some(workspace) = change.workspace else { continue };
                assert_ne!(workspace.state(), State::Failed, "{workspace:#?}");
                if workspace.state() == State::Running && waiting.remove(&workspace.student_id) {
                    opening.push(tokio::spawn(open(self.client.clone(), workspace.student_id)));
                }
            }
            for opened in opening {
                opened.await.expect("the editor answers");
            }
        };
        tokio::join!(presses, watching);
        let took = begun.elapsed();
        self.running.extend(names);
        took
    }

    /// A watch of these students that has told its snapshot.
    async fn watch(&self, students: &[String]) -> Streaming<pb::WatchWorkspacesResponse> {
        let names = students.iter().map(|student| name_of(student)).collect();
        let request = pb::WatchWorkspacesRequest { names, ..Default::default() };
        let mut watch =
            self.client.workspaces.clone().watch_workspaces(request).await.expect("a watch").into_inner();
        watch.message().await.expect("no error").expect("SYNCED");
        watch
    }

    /// A container that runs now.
    pub(crate) async fn example(&self) -> Found {
        self.cluster.containers().await.into_iter().find(|found| found.running).expect("one runs")
    }

    /// Stops what runs and waits until it is gone.
    pub(crate) async fn stop_all(&mut self) {
        let stops = self.running.drain(..).map(|student| {
            let client = self.client.clone();
            async move { client.stop_and_wait(&student).await }
        });
        futures_util::future::join_all(stops).await;
    }
}

/// What the LMS does next: asks for the address and sends the browser there.
async fn open(client: Client, student: String) {
    let url = client.access(&student).await;
    let address = url.trim_start_matches("http://").split(['/', '?']).next().expect("an address");
    assert!(answers(address).await, "{url} does not answer");
}
