//! kube-coders: an Apache APISIX external plugin runner that sends each user to their own
//! workspace.
//!
//! The library is the product without its `main`: [`Program`] is the whole command, to
//! which a program of another name may add plugins. To write plugins, depend on
//! `apisix-plugin-runner` instead, which knows nothing of workspaces.
//!
//! # The way of a request
//!
//! The gateway calls the runner over a unix socket. The plugin `user-upstream` finds out
//! who the user is (`kube-coders-identity`), renders the template of the conf and looks the name up
//! (`resolver`). Its choice of upstream leaves the runner by a carrier (`route`): in
//! forward mode as a stamp, which the `forwarder` checks before it takes the request to
//! the workspace; in direct mode as a decision, which the gateway's own proxy follows. A
//! request that goes nowhere gets an answer of ours (`refusal`).
//!
//! # Invariants
//!
//! - `user_upstream` is an ordinary plugin: it reaches the gateway through public items of
//!   `apisix-plugin-runner` only.
//! - The runner and the forwarder share the stamp's key, the resolver and the pages.
//!   Neither calls the other.
//! - Only `cli` reads the environment, installs a subscriber and starts a runtime; only
//!   `main` exits, and only `cli::keeper` starts a process.
//! - Whatever fails, no request goes anywhere by default.

mod locks;
mod bounded_map;
mod resolver;
mod refusal;
mod route;
mod subject_digest;
mod logged_user;
mod user_upstream;
mod forwarder;
mod cli;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;

pub use cli::program::{Program, ProgramError};
pub use route::gateway;

/// Compiles the README's plugin as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the plugin of the guide for plugin authors as a test.
#[cfg(doctest)]
#[doc = include_str!("../docs/writing-plugins.md")]
struct WritingPlugins;
