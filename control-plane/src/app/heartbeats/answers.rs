//! What those who reported are told, once a batch is committed: the database writes the next one meanwhile.

use std::sync::Arc;

use carrel_common::model::Signal;

use super::{Answer, Batch, Recorded};
use crate::app::rules::Rules;
use crate::app::{App, AppError, IdleView, Result};
use crate::domain::activity::falls_short;
use crate::store::{Beat, Beaten, Known};

/// What became of a student's reports, as each of them is told.
#[derive(Debug)]
enum Outcome {
    /// The deadline that follows.
    Recorded(IdleView),
    /// It was not, or what it led to cannot be told; and what that counts as.
    Refused(&'static str, AppError),
    /// There is no such workspace.
    NotFound,
}

impl App {
    pub(super) async fn answer_batch(&self, Batch { waiting, places, input: written, jobs: granted }: Batch) {
        let rules = self.rules.get();
        let (mut input, mut jobs) = (Vec::with_capacity(written.len()), Vec::with_capacity(granted.len()));
        for (round, written) in written {
            let beaten = match written {
                Ok(written) => self.store.what_became_of(&round, &written).await.map_err(AppError::from),
                Err(error) => Err(error),
            };
            input.push(self.outcomes(&rules, beaten).await);
        }
        for beaten in granted {
            jobs.push(self.outcomes(&rules, beaten).await);
        }
        let mut places = places.iter();
        for waiting in waiting {
            let mut answers = Vec::with_capacity(waiting.beats.len());
            for (beat, place) in waiting.beats.iter().zip(&mut places) {
                let rounds = if beat.signal == Signal::Job { &jobs } else { &input };
                answers.push(match rounds.get(place.round) {
                    Some(Err(error)) => Err(error.clone()),
                    Some(Ok(outcomes)) => self.answer(beat, outcomes.get(place.at)),
                    None => self.answer(beat, None),
                });
            }
            // A caller that went away needs no answer; what it reported counts all the same.
            waiting.answer.send(answers).ok();
        }
    }

    /// One for each that a statement named. Whether the nodes have told all that they saw is asked only of those for which it
    /// matters, and once for all of them: heartbeats are many.
    async fn outcomes(&self, rules: &Rules, beaten: Result<Vec<Beaten>>) -> Result<Vec<Outcome>> {
        let beaten = beaten?;
        let (mut outcomes, mut due) = (Vec::with_capacity(beaten.len()), Vec::new());
        for (at, beaten) in beaten.iter().enumerate() {
            outcomes.push(match beaten {
                Beaten::Recorded { workspace, activity, now } => {
                    if workspace.warning.is_some() {
                        self.nudge.look_at(workspace.uid, *now);
                    }
                    let known = Known { activity: *activity, heard: true };
                    let idle = self.idle_after(rules, workspace, &known, *now);
                    if idle.is_due() {
                        due.push((at, workspace, known, *now));
                    }
                    Outcome::Recorded(idle)
                }
                Beaten::NotRunning { stop } => {
                    let stop = stop.clone().map(Box::new);
                    Outcome::Refused("not_running", AppError::NotRunning { state: None, stop })
                }
                Beaten::OtherGeneration { present } => {
                    Outcome::Refused("not_running", AppError::GenerationOver { present: *present })
                }
                Beaten::Unreadable(error) => {
                    Outcome::Refused("unreadable", AppError::Store(Arc::clone(error)))
                }
                Beaten::NotFound => Outcome::NotFound,
            });
        }
        if due.is_empty() {
            return Ok(outcomes);
        }
        let ids = due.iter().map(|(_, workspace, ..)| workspace.uid).collect();
        let told = self.store.activities(ids, self.settings.told_within()).await.map_err(AppError::from);
        for (at, workspace, known, now) in due {
            outcomes[at] = match &told {
                Ok((told, _)) => {
                    let heard = told.get(&workspace.uid).is_some_and(|told| told.heard);
                    Outcome::Recorded(self.idle_after(rules, workspace, &Known { heard, ..known }, now))
                }
                Err(error) => Outcome::Refused("recorded", error.clone()),
            };
        }
        Ok(outcomes)
    }

    fn answer(&self, beat: &Beat, outcome: Option<&Outcome>) -> Answer {
        let (counts_as, answer) = match outcome {
            Some(Outcome::Recorded(idle)) => {
                let clamped =
                    beat.signal == Signal::Job && falls_short(idle.awake_until, beat.keep_awake, idle.now);
                ("recorded", Ok(Recorded { idle: idle.clone(), clamped }))
            }
            Some(Outcome::Refused(counts_as, error)) => (*counts_as, Err(error.clone())),
            Some(Outcome::NotFound) | None => {
                ("not_found", Err(AppError::WorkspaceNotFound(beat.student.clone())))
            }
        };
        self.metrics.heartbeat(counts_as);
        answer
    }
}
