//! The project's rules about its own source tree. Their limits are in one table, `rules`.
//!
//! `cargo` asks for the packages, `modules` reads the source files of one library or
//! program, `workspace` has them all, `imports` follows each path to the module that defines what it names,
//! and `circles`, `arrows`, `reach`, `hidden`, `boxes`, `names`, `test_code`, `crates` and `examples`
//! each look for one kind of finding. `cargo run -p kube-coders-house` prints all findings, also those of rules
//! that don't hold yet.
//!
//! Invariants: nothing here writes a file or builds anything; test modules are left
//! out by their `cfg`, not by their name.

// It asks Cargo and reads sources, and is in no product.
#![allow(clippy::disallowed_methods)]

mod error;
mod cargo;
mod attributes;
mod modules;
mod workspace;
mod imports;
mod circles;
mod arrows;
mod reach;
mod hidden;
mod boxes;
mod names;
mod test_code;
mod crates;
mod examples;
mod rules;

pub use error::Error;
pub use rules::{RULES, Rule};
pub use workspace::Workspace;
