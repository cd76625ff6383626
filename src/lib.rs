//! kube-coders: an Apache APISIX external plugin runner that sends each user to
//! their own workspace, and the SDK to write such plugins.
//!
//! # A plugin
//!
//! ```no_run
//! use kube_coders::{Action, Plugin, PluginError, Request};
//!
//! struct Hello;
//!
//! impl Plugin for Hello {
//!     const NAME: &'static str = "hello";
//!     type Config = ();
//!
//!     async fn on_request(&self, _: &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
//!         request.set_header("x-hello", "world")?;
//!         Ok(Action::Continue)
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     kube_coders::Command::new().plugin(Hello).main()
//! }
//! ```
//!
//! [`Plugin`] is what an author writes, [`Request`] and [`Response`] what it
//! sees, [`Upstream`] where it may send a request, [`Command`] the whole program
//! with it inside, and [`testing`] a gateway to try it with.
//!
//! # The way of a call
//!
//! The gateway connects to a unix socket and sends a frame: `server` accepts and
//! admits, `connection` reads the frame, `wire` decodes it, `runner` finds the
//! chain behind its conf token and runs the plugins, and what they recorded goes
//! back the same way. Where a plugin chose an upstream, the answer carries a
//! `stamp`; the gateway sends the request to the `forwarder`, which checks the
//! stamp and takes the request there. In `direct` mode it carries a decision, and the
//! gateway goes there itself.
//!
//! A runner that is started where one serves already has its connections handed over
//! by `takeover`, and one that a gateway starts has a `keeper` above it, which the
//! gateway may kill.
//!
//! Beside the runner, `check` reads a gateway's configuration, `call`, `explain` and
//! `install` do what their commands say, and `command` is the program with all of them.
//!
//! # Invariants
//!
//! - `frame` knows no FlatBuffers; `wire` knows no sockets.
//! - `plugin`, `request`, `response`, `headers`, `changes`, `direct`, `extra_info`,
//!   `upstream` and `testing` know no shipped plugin.
//! - `user_upstream` reaches the gateway only through the public SDK; what else
//!   it uses, `resolver`, `refusal`, `request_id`, `pem_file` and the names of
//!   the headers of stamp and decision, speaks to no gateway.
//! - `runner` and `forwarder` share only `upstream`, the stamp's key, `refusal`
//!   and `request_id`, `server` and `forwarder` the `takeover` and `limit_log`, and `forwarder`,
//!   `direct` and `user_upstream` the `resolver`. Neither calls the other.
//! - `takeover` knows descriptors, and nothing of what is said through them.
//! - `check` reads files and asks nobody; of `user_upstream` it knows the conf.
//! - `testing` is a gateway. Of what is shipped, only the commands that call a
//!   running runner use it.
//! - Only `command` reads the environment, installs a subscriber and starts a
//!   runtime; only `main` exits, and only `keeper` starts a process.
//! - Only `server`, `forwarder` and `testing` spawn tasks, and what must go on
//!   beside calls: `user_upstream::keys`, which fetches issuers' keys, and
//!   `resolver`, whose lookups have many waiting. Their tasks end with them.
//! - Whatever fails, no request goes anywhere by default.

mod frame;
mod connection;
mod wire;
mod headers;
mod changes;
mod direct;
mod extra_info;
mod request;
mod response;
mod upstream;
mod stamp;
mod plugin;
mod conf;
mod answers;
mod runner;
mod admission;
mod limit_log;
mod socket_file;
mod key_file;
mod pem_file;
mod takeover;
mod server;
mod shutdown;
mod keeper;
mod resolver;
mod refusal;
mod request_id;
mod user_upstream;
mod forwarder;
mod settings;
mod cli;
mod run;
mod call;
mod explain;
mod check;
mod install;
mod command;
pub mod testing;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;

pub use changes::ChangeError;
pub use command::{Command, CommandError};
pub use direct::Basis;
pub use extra_info::AskError;
pub use headers::HeaderName;
pub use plugin::{Action, Plugin, PluginError, Stop};
pub use request::{Method, Request};
pub use response::Response;
pub use upstream::{HostName, Scheme, Upstream, UpstreamError, UpstreamMode};

/// Compiles the README's plugin as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
