//! The integration tests.

// All of this is tests, of which clippy knows only the functions marked so.
#![allow(clippy::unwrap_used)]

// The quickstart: its built binary started, asked as its users, and stopped.
mod quickstart;
