//! Write Apache APISIX external plugins in Rust.
//!
//! APISIX calls an external plugin over a unix socket for each request of a route. The
//! plugin reads the request, changes it, answers in place of the upstream, or chooses the
//! upstream. A plugin is a type that implements [`Plugin`]; a program is a [`Runner`] with
//! its plugins.
//!
//! ```no_run
//! use apisix_plugin_runner::{Action, Plugin, PluginError, Request, Runner, StatusCode, Stop};
//!
//! struct Hello;
//!
//! impl Plugin for Hello {
//!     const NAME: &'static str = "hello";
//!     type Config = ();
//!
//!     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
//!         let Some(name) = request.header_str("x-name") else {
//!             return Ok(Stop::new(StatusCode::UNAUTHORIZED).into());
//!         };
//!         request.set_header("x-greeting", format!("hello {name}"))?;
//!         Ok(Action::Continue)
//!     }
//! }
//!
//! # #[cfg(feature = "cli")]
//! fn main() -> std::process::ExitCode {
//!     Runner::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).plugin(Hello).main()
//! }
//! # #[cfg(not(feature = "cli"))]
//! # fn main() {}
//! ```
//!
//! Run it with `run --listen-address unix:/tmp/hello.sock`, name the socket in the
//! gateway's `ext-plugin.path_for_test`, and put the plugin into a route:
//! `{"ext-plugin-pre-req": {"conf": [{"name": "hello", "value": "null"}]}}`.
//!
//! # Where to look
//!
//! Write a plugin:
//!
//! | I want to | use |
//! |---|---|
//! | decide about requests | [`Plugin::on_request`], [`Action`] |
//! | read and change a request | [`Request`] |
//! | ask the gateway for a variable or the body | [`Request::var`], [`Request::body`] |
//! | answer in place of the upstream | [`Stop`] |
//! | change responses | [`Plugin::on_response`], [`Response`] |
//! | choose the upstream | [`Request::set_upstream`], [`Upstream`], and a [`Carrier`] such as [`direct::Direct`] |
//! | remove session cookies from a request | [`Request::remove_cookies`], [`CookieNames`] |
//! | tell whether a person or a program reads the response | [`Request::is_navigation`], [`accept`] |
//! | let the gateway cache a decision | [`Request::cache_for`], [`Plugin::cache_key`], [`CacheKey`] |
//! | read a config, and reject a wrong one | [`Plugin::Config`], [`Plugin::check`], [`config`] |
//! | make a value of the config once for each route | [`PreparedPlugin`] |
//! | read a file that a config names | [`read_bounded`] |
//! | run background work that ends with the runner | [`Plugin::start`], [`Plugin::stop`], [`Tasks`] |
//! | report that a call failed | [`PluginError`] |
//! | test a plugin without a gateway | [`gateway`] |
//!
//! Make a program of plugins:
//!
//! | I want to | use |
//! |---|---|
//! | get a command line, a log and signal handling | [`Runner::main`] |
//! | add commands or settings of my own | [`command`] |
//! | run a runner inside a larger program | [`Runner::run`], [`Settings`] |
//! | send pages of my own for calls that failed | [`FailureAnswers`], [`Runner::failure_answers`] |
//! | show the request id that the logs show | [`request_id`] |
//! | stop a runner by tokens, or in two steps | [`Runner::serve`], [`Start`], [`Control`] |
//! | wait for signals, or for the end of the gateway | [`listener`] |
//! | pass connections of a TCP service on to the next runner | [`Companion`], [`listener::Succession`] |
//!
//! # Features
//!
//! | feature | default | gives |
//! |---|---|---|
//! | `cli` | yes | `Runner::main`: the command line, the log on standard error, signals |
//! | `direct` | yes | [`direct`]: the gateway's own proxy goes to the chosen upstream |
//! | `schema` | no | `config_schema`: the JSON Schema of a plugin's config |

mod locks;
mod bounded_file;
mod connection;
mod headers;
mod extra_info;
mod cookies;
mod changes;
pub mod accept;
pub mod upstream;
mod cache;
mod request;
mod response;
mod stop;
mod plugin;
mod tasks;
mod containment;
mod registry;
pub mod config;
mod carrier;
#[cfg(feature = "direct")]
pub mod direct;
mod failure;
mod answers;
mod call_context;
mod chains;
mod dispatcher;
mod single_poll;
pub mod request_id;
pub mod listener;
mod settings;
mod runner;
pub mod gateway;
#[cfg(feature = "cli")]
pub mod command;
#[cfg(feature = "schema")]
mod schema;
#[cfg(fuzzing)]
pub mod fuzzing;

pub use http::{HeaderName, Method, StatusCode};

pub use bounded_file::read_bounded;
pub use cache::CacheKey;
pub use carrier::{Carried, Carrier, CarrierError, CarrierFuture, Choice};
pub use changes::ChangeError;
pub use config::ConfError;
pub use cookies::{CookieNames, CookieNamesError, EditedCookies};
pub use extra_info::AskError;
pub use failure::{FailedCall, FailureAnswers, RUNNER_FAILED};
pub use plugin::{Action, Plugin, PluginError, PreparedPlugin};
pub use request::{MAX_FRAME_HEADERS, Request};
pub use response::Response;
pub use runner::{
    Companion, CompanionParts, Control, InheritedListener, PreparedStart, RunError, Runner, Start,
};
#[cfg(feature = "schema")]
pub use schema::config_schema;
pub use settings::{MAX_CALL_DEADLINE, Settings};
pub use stop::Stop;
pub use tasks::Tasks;
pub use upstream::{HostName, Scheme, Upstream, UpstreamError, UpstreamMode};

/// Compiles the README's plugin as a test.
#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../README.md")]
struct Readme;
