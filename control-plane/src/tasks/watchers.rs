//! The small loops: the queue, stays that are too long, silent nodes, the database, what is old.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::run_loop;
use crate::app::{App, AppError, SharedReadiness, alone};

const HALF_A_SECOND: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Places what waits, at each nudge and each second.
pub async fn place_waiting(app: App, stop: CancellationToken) {
    let nudge = std::sync::Arc::clone(&app.nudge);
    run_loop("place_waiting", SECOND, &nudge.queue, stop, || async {
        app.place_waiting().await.map(|placed| (placed > 0).then_some(placed))
    })
    .await;
}

/// Ends stays in moving states that are too long.
pub async fn end_overdue(app: App, stop: CancellationToken) {
    run_loop("end_overdue", SECOND, &Notify::new(), stop, || async {
        app.end_all_overdue().await.map(|ended| (ended > 0).then_some(ended))
    })
    .await;
}

/// Gives up nodes that are silent. Only silence that this process has itself listened to counts: after its own start,
/// and after an outage of the database, every node gets the whole time anew.
pub async fn give_up_nodes(app: App, stop: CancellationToken) {
    let listening_since: Mutex<Option<Instant>> = Mutex::new(None);
    run_loop("give_up_nodes", SECOND, &Notify::new(), stop, || async {
        let silence = app.settings.unreachable_after;
        let silent = app.store.silent_nodes(silence).await;
        let listened = {
            let mut since = listening_since.lock().unwrap_or_else(PoisonError::into_inner);
            if silent.is_err() {
                *since = None;
            }
            since.get_or_insert_with(Instant::now).elapsed()
        };
        let silent = silent?;
        if listened < silence {
            return Ok(None);
        }
        let mut concerned = 0;
        for node in &silent {
            concerned += alone(*node, app.give_up_node(*node).await)?;
        }
        Ok::<_, AppError>((concerned > 0).then_some(concerned))
    })
    .await;
}

/// Sees to the nodes that are being emptied.
pub async fn see_to_drains(app: App, stop: CancellationToken) {
    run_loop("see_to_drains", SECOND, &Notify::new(), stop, || async {
        app.see_to_drains().await.map(|seen| (seen > 0).then_some(seen))
    })
    .await;
}

/// Gives a sign of life each second, and follows changes of the policies by other replicas.
pub async fn keep_pulse(app: App, stop: CancellationToken) {
    run_loop("keep_pulse", SECOND, &Notify::new(), stop, || async {
        app.pulse().await.map(|changed| changed.then_some("rules"))
    })
    .await;
}

/// Follows how the store stands in time: that it is behind, and that it was declared restored.
pub async fn watch_state(app: App, stop: CancellationToken) {
    run_loop("watch_state", SECOND, &Notify::new(), stop, || async {
        app.refresh_state().await.map(|changed| changed.then_some("the store"))
    })
    .await;
}

/// Takes on the logs that other replicas want of nodes whose session is here; each is handed over in a task of its own.
pub async fn hand_logs_over(app: App, tasks: TaskTracker, stop: CancellationToken) {
    run_loop("hand_logs_over", HALF_A_SECOND, &Notify::new(), stop.clone(), || async {
        let taken = app.take_on_logs().await?;
        let count = taken.len();
        for handover in taken {
            let (app, stop) = (app.clone(), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = app.hand_over(handover, stop).await {
                    tracing::warn!(%error, "a log was not handed over");
                }
            });
        }
        Ok::<_, AppError>((count > 0).then_some(count))
    })
    .await;
}

/// Says whether the database can be reached.
pub async fn watch_database(app: App, readiness: SharedReadiness, stop: CancellationToken) {
    run_loop("watch_database", SECOND, &Notify::new(), stop, || async {
        let reached = app.store.answers().await;
        readiness.database(reached.is_ok());
        reached.map(|()| None::<()>)
    })
    .await;
}

/// Drops what is kept for a while only.
pub async fn drop_old(app: App, stop: CancellationToken) {
    run_loop("drop_old", HOUR, &Notify::new(), stop, || async {
        app.store.drop_old(app.settings.events_kept).await.map(|rows| (rows > 0).then_some(rows))
    })
    .await;
}
