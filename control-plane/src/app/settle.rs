//! Trying again what lost a race.

/// How often before the caller is told.
pub(super) const TRIES: usize = 4;

/// Runs a use case again while another change came first; each run begins from what is then in the store. A macro,
/// since a function over async closures cannot say that their futures are `Send`.
macro_rules! settle {
    ($once:expr) => {{
        let mut tries = 1;
        loop {
            match $once.await {
                Err(error)
                    if $crate::app::AppError::is_conflict(&error) && tries < $crate::app::settle::TRIES =>
                {
                    tries += 1;
                }
                result => break result,
            }
        }
    }};
}
pub(super) use settle;
