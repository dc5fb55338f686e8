//! Containers that no order names.

use carrel_common::id::NodeId;
use carrel_common::model::{Container, Verdict};

use super::settle::settle;
use super::{App, Result};
use crate::domain::event::{Actor, Entry, Subject};
use crate::domain::reconcile::judge_orphan;
use crate::domain::workspace::Workspace;
use crate::store::Locked;

impl App {
    /// What is to be done with an orphan; an adopted one has been taken into the store.
    ///
    /// # Errors
    /// [`super::AppError`]; then nothing is to be done with it.
    pub async fn judge(&self, node: NodeId, container: &Container) -> Result<(Verdict, &'static str)> {
        let (verdict, reason) = settle!(self.judge_once(node, container))?;
        self.metrics.orphan(verdict);
        tracing::warn!(
            node.id = %node, workspace.id = %container.workspace, generation = container.generation.0,
            container.id = %container.container_id, ?verdict, reason, "an orphan was judged",
        );
        Ok((verdict, reason))
    }

    async fn judge_once(&self, node: NodeId, container: &Container) -> Result<(Verdict, &'static str)> {
        let known = match self.store.find_workspace(&container.student).await? {
            Some(workspace) => Some(workspace),
            None => self.store.find_tombstone(&container.student).await?,
        };
        let mut work = self.store.begin().await?;
        // Looked at again under the lock, unless there is nothing to lock.
        let locked = match &known {
            Some(workspace) => work.lock(workspace.uid).await?,
            None => None,
        };
        let placed = match &known {
            Some(workspace) => work.find_placement(workspace.uid).await?.is_some(),
            None => false,
        };
        let known = locked.map(|l| l.workspace).or(known);
        let (mut verdict, mut reason) = judge_orphan(container, known.as_ref(), placed);
        if verdict == Verdict::Adopt && known.as_ref().is_some_and(|w| w.uid != container.workspace) {
            (verdict, reason) = (Verdict::Hold, "OF_ANOTHER_DESK");
        }
        if verdict == Verdict::Adopt && container.node != node {
            (verdict, reason) = (Verdict::Hold, "MADE_BY_ANOTHER_NODE");
        }
        if verdict == Verdict::Adopt {
            self.adopt(&mut work, node, container).await?;
        }
        let kind = match verdict {
            Verdict::Stop => "orphan.stopped",
            Verdict::Adopt => "orphan.adopted",
            Verdict::Hold => "orphan.held",
        };
        let entry = Entry::new(kind, Actor::ControlPlane)
            .because(reason)
            .with("container_id", container.container_id.as_str())
            .with("generation", container.generation.0);
        let subject =
            Subject { workspace: Some((container.workspace, container.student.clone())), node: Some(node) };
        work.append(subject, entry).await?;
        self.nudge.ring(&work.commit().await?);
        Ok((verdict, reason))
    }

    /// Takes what runs into the store: its row is made or raised, and its idle clock begins when it answers.
    async fn adopt(&self, work: &mut crate::store::Work, node: NodeId, container: &Container) -> Result<()> {
        let now = work.now().await?;
        let spec = self.rules.get().book.spec(None, &container.student);
        let make = Workspace::new(
            container.workspace,
            container.student.clone(),
            carrel_common::id::Generation(0),
            spec,
            now,
        );
        let uid = work.find_or_make(make).await?;
        let Some(Locked { workspace: before, now, .. }) = work.lock(uid).await? else { return Ok(()) };
        let next = before.adopted(container.generation, node, now);
        // The share and the container know the placement by its name: a container that is adopted keeps it.
        let placement = container.placement.unwrap_or_else(carrel_common::id::PlacementId::new);
        work.insert_placement_as(placement, Some(container.incarnation), &next, node).await?;
        work.save(
            &before,
            next,
            vec![Entry::new("workspace.requested", Actor::ControlPlane).with("adopted", true)],
            now,
        )
        .await?;
        Ok(())
    }
}
