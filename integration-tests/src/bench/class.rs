//! Starts through Carrel.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::workspace::State;
use tokio::task::JoinSet;
use tonic::Streaming;

use crate::client::{Client, name_of};

/// Whatever the machine is busy with, all of a class are up or down by then.
const PATIENCE: Duration = Duration::from_secs(600);

/// A class and its LMS, which has a watch.
#[derive(Debug)]
pub struct Class {
    client: Client,
    /// Students so far: each start is a student's first.
    students: usize,
    running: Vec<String>,
}

/// How long it took.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// From the first press until everything was done for the last.
    pub took: Duration,
    /// From a press to the answer of StartWorkspace, the longest.
    pub longest_answer: Duration,
}

impl Class {
    /// Of the control plane that this client knows.
    pub fn new(client: Client) -> Self {
        Self { client, students: 0, running: Vec::new() }
    }

    /// So many new students press Start, evenly spread over `within`; for each that is RUNNING `then` is done.
    pub async fn start_many<F>(
        &mut self,
        count: usize,
        within: Duration,
        then: impl Fn(Client, String) -> F,
    ) -> Started
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let names: Vec<_> = (0..count).map(|number| format!("student-{}", self.students + number)).collect();
        self.students += count;
        let mut watch = self.watch(&names).await;
        let begun = Instant::now();
        let client = &self.client;
        let presses = names.iter().zip(0_u32..).map(|(name, number)| async move {
            tokio::time::sleep(within * number / u32::try_from(count).expect("a class")).await;
            let pressed = Instant::now();
            client.start(name).await;
            pressed.elapsed()
        });
        let watching = async {
            let mut following = JoinSet::new();
            until(&mut watch, &names, State::Running, |student| {
                following.spawn(then(client.clone(), student));
            })
            .await;
            following.join_all().await;
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(presses), watching);
        let took = begun.elapsed();
        self.running.extend(names);
        Started { took, longest_answer: answers.into_iter().max().unwrap_or_default() }
    }

    /// A watch of these students that was accepted before it is returned.
    async fn watch(&self, students: &[String]) -> Streaming<pb::WatchWorkspacesResponse> {
        let names = students.iter().map(|student| name_of(student)).collect();
        let request = pb::WatchWorkspacesRequest { names, ..Default::default() };
        self.client.workspaces.clone().watch_workspaces(request).await.expect("a watch").into_inner()
    }

    /// Stops what runs and waits until it is gone.
    pub async fn stop_all(&mut self) {
        let students = std::mem::take(&mut self.running);
        let stops = students.iter().map(|student| self.client.try_stop(student));
        futures_util::future::try_join_all(stops).await.expect("StopWorkspace");
        let mut watch = self.watch(&students).await;
        until(&mut watch, &students, State::Stopped, |_| {}).await;
    }
}

/// Reads a watch until each of these students was in a state; `each` is told when one is.
async fn until(
    watch: &mut Streaming<pb::WatchWorkspacesResponse>,
    students: &[String],
    state: State,
    mut each: impl FnMut(String),
) {
    let mut waiting: HashSet<_> = students.iter().cloned().collect();
    let reading = async {
        while !waiting.is_empty() {
            let message = watch.message().await.expect("no error").expect("no end");
            let Some(workspace) = message.change.expect("a change").workspace else { continue };
            assert_ne!(workspace.state(), State::Failed, "{workspace:#?}");
            if workspace.state() == state && waiting.remove(&workspace.student_id) {
                each(workspace.student_id);
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    read.unwrap_or_else(|_| panic!("{} of {} are not {state:?}", waiting.len(), students.len()));
}
