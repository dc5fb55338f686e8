//! The end-to-end tests: what a user of Carrel sees, with both binaries as processes.
