//! The agent against a real Docker daemon and a control plane made for the test.
//!
//! Needs a daemon (DOCKER_HOST or the default socket) and the images of `integration-tests/tiny-image/build`.

mod control_plane;
mod rig;

mod activity;
mod adopting;
mod broken;
mod failing;
mod fencing;
mod line;
mod logs;
mod starting;
mod stopping;
