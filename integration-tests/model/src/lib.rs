//! A model of what keeps a student's directory to a single writer: lease, fence, fence file, orphan rules, replacement, and a
//! store that goes back in time. Checked exhaustively at a small size: one student, two hosts, one of which suffers.
//!
//! ```text
//!   store ──orders──► host 0 (every fault there is)      share: one fence file
//!     ▲ └──orders──► host 1 (steady)                     time: ticks; F = 2, S = 1, M = 1
//!     └──heartbeats, reports, hellos
//! ```
//!
//! It is written from the protocol, not from the code: a second statement of the same promises, small enough to try every
//! order of events. `state` says what there is, `steps` what can happen and `effects` what that changes, `rules` what the design demands and which of the
//! demands a mutant leaves out: for each of those the checker has to find the accident.
//!
//! The largest of the checks takes some 80 s of one core.

#![cfg(test)]

mod effects;
mod rules;
mod state;
mod steps;
mod tests;
