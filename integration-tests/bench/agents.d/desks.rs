//! The workspaces an agent holds, and what it tells of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use carrel_proto::v1 as pb;
use carrel_proto::v1::observation::State;

/// From an order to an editor that answers.
const START: Duration = Duration::from_millis(300);

#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) student: String,
    pub(crate) generation: i64,
    pub(crate) incarnation: i64,
    pub(crate) placement: String,
    /// When its editor answers.
    pub(crate) ready_at: Instant,
    pub(crate) active_at: Option<Instant>,
}

/// Sorted by uid.
#[derive(Debug, Default)]
pub(crate) struct Desks {
    held: BTreeMap<String, Desk>,
    /// Reports that are not acked.
    reports: BTreeMap<String, pb::Observation>,
    sequence: i64,
}

impl Desks {
    pub(crate) fn new(held: BTreeMap<String, Desk>) -> Self {
        Self { held, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn inventory(&self, node: &str) -> Vec<pb::Container> {
        let container = |(uid, desk): (&String, &Desk)| pb::Container {
            container_id: format!("{uid}-{}", desk.generation),
            workspace_uid: uid.clone(),
            student_id: desk.student.clone(),
            generation: desk.generation,
            incarnation: desk.incarnation,
            node_id: node.to_owned(),
            running: true,
            placement_id: desk.placement.clone(),
            spec: None,
        };
        self.held.iter().map(container).collect()
    }

    /// Everything is told anew in a new session.
    pub(crate) fn tell_all(&mut self) -> Vec<pb::Observation> {
        let now = Instant::now();
        for (uid, desk) in self.held.clone() {
            self.report(
                &uid,
                desk.generation,
                if desk.ready_at <= now { State::Running } else { State::Starting },
            );
        }
        self.reports.values().cloned().collect()
    }

    /// Carries an order out; what is to be told.
    pub(crate) fn take(&mut self, items: Vec<pb::DesiredItem>) -> Vec<pb::Observation> {
        let mut told = Vec::new();
        let before = self.reports.clone();
        self.reports.retain(|uid, _| items.iter().any(|item| item.workspace_uid == *uid));
        for item in items {
            let (uid, generation) = (item.workspace_uid.clone(), item.generation);
            let held = self.held.get(&uid).is_some_and(|desk| desk.generation == generation);
            if item.run() == pb::desired_item::Run::Running {
                if !held {
                    let ready_at = Instant::now() + START;
                    let desk = Desk {
                        student: item.student_id,
                        generation,
                        incarnation: item.incarnation,
                        placement: item.placement_id,
                        ready_at,
                        active_at: None,
                    };
                    self.held.insert(uid.clone(), desk);
                    told.push(self.report(&uid, generation, State::Starting));
                }
            } else if before.get(&uid).is_none_or(|o| o.state() != State::Gone || o.generation != generation)
            {
                if held {
                    self.held.remove(&uid);
                }
                told.push(self.report(&uid, generation, State::Gone));
            }
        }
        told
    }

    /// Those whose editor has come up by now; what is to be told.
    pub(crate) fn ready(&mut self) -> Vec<pb::Observation> {
        let now = Instant::now();
        let starting = |o: &&pb::Observation| o.state() == State::Starting;
        let up: Vec<_> = self.reports.values().filter(starting).cloned().collect();
        let up = up
            .into_iter()
            .filter(|o| self.held.get(&o.workspace_uid).is_some_and(|desk| desk.ready_at <= now));
        up.collect::<Vec<_>>()
            .iter()
            .map(|o| self.report(&o.workspace_uid, o.generation, State::Running))
            .collect()
    }

    /// An ack never forgets a desk that is on its way up: the next report is about it.
    pub(crate) fn acked(&mut self, acked: &[pb::observation_ack::Acked]) {
        for one in acked {
            let done = |o: &pb::Observation| o.sequence <= one.sequence && o.state() != State::Starting;
            if self.reports.get(&one.workspace_uid).is_some_and(done) {
                self.reports.remove(&one.workspace_uid);
            }
        }
    }

    /// Students type in a share of the desks; what a heartbeat tells of it, or of all in the first of a session.
    pub(crate) fn activity(&mut self, share: f64, all: bool) -> Vec<pb::ActivityReport> {
        let now = Instant::now();
        let mut told = Vec::new();
        for (uid, desk) in &mut self.held {
            let typed = desk.ready_at <= now && rand::random_bool(share);
            if typed {
                desk.active_at = Some(
                    now.checked_sub(Duration::from_millis(rand::random_range(0..10_000))).unwrap_or(now),
                );
            }
            let Some(at) = desk.active_at.filter(|_| typed || all) else { continue };
            let age = prost_types::Duration::try_from(now - at).expect("seconds");
            told.push(pb::ActivityReport {
                workspace_uid: uid.clone(),
                generation: desk.generation,
                signal: pb::Signal::EditorInput.into(),
                age: Some(age),
            });
        }
        told
    }

    fn report(&mut self, uid: &str, generation: i64, state: State) -> pb::Observation {
        self.sequence += 1;
        let endpoint = if state == State::Running { "127.0.0.1:1".to_owned() } else { String::new() };
        let observation = pb::Observation {
            workspace_uid: uid.to_owned(),
            generation,
            sequence: self.sequence,
            state: state.into(),
            stage: if state == State::Starting { pb::progress::Stage::Starting.into() } else { 0 },
            endpoint,
            container_id: format!("{uid}-{generation}"),
            ..Default::default()
        };
        self.reports.insert(uid.to_owned(), observation.clone());
        observation
    }
}
