//! The students' files: whether the base can take them, and a student's directory below it.
//!
//! `check` decides (pure), `probe` gathers what it decides on, `layout` makes and moves directories without ever following a
//! link out of the base. A base that is missing is never made: on a host where the share is not mounted that would be the root
//! disk.

pub mod check;
pub mod layout;
pub mod probe;
