//! The integration tests: real sockets, real processes, nothing of the crate
//! but what it shows.

// What production leaves to one place, tests and tools may do.
#![allow(clippy::disallowed_methods)]
// What a helper of a test can't do fails the test, as an `unwrap` in it would.
#![allow(clippy::unwrap_used)]

/// What a test does that can't run here: it says why, and is counted.
mod skip;

/// The protocol, read and written with nothing but the generated code.
mod wire;

/// One connection to a runner, frame by frame.
mod peer;

/// The real binary as a process, its log and its memory.
mod program;

/// A runner in this process with plugins of the tests.
mod served;

/// Workspaces to be sent to, and a gateway that goes there.
mod workspace;

/// An issuer on loopback that publishes them.
mod issuer;

/// Where keys come from: TLS, redirects, rotation, issuers that are away.
mod issuers;

/// What a client can try, a line a trick, each with its answer.
mod tricks;

/// `explain` and the runner, on the tricks and on random requests and confs.
mod agreement;

/// What a real gateway sent: every frame is read, and every call answered.
mod golden;

/// The stand-in sends what the real gateway sent.
mod stand_in;

/// Malformed frames, and their answers.
mod conversation;

/// Calls that go wrong in a plugin, and the limits on them.
mod limits;

/// The whole path: two users, one URL, two workspaces.
mod workspaces;

/// One browser, two users: what is cleared between them, and when.
mod browsers;

/// Chromium.
mod chromium;

/// What one user leaves in a real browser, and what the next one finds.
mod shared_browser;

/// Direct mode: the runner's decision, and the gateway's plugin that reads it.
mod direct;

/// The gateway's plugin on a real nginx.
mod plugin_in_nginx;

/// Everything that fails is an answer of ours, and nothing goes anywhere.
mod refusals;

/// The life of the process: successors, signals, who may connect.
mod process;

/// A program made with the SDK alone, started as a gateway starts one.
mod spawned_plugin;

/// Ten takeovers under load, and not a request lost, not a WebSocket closed.
mod takeover;

/// What can be typed, and every example that is shipped.
mod cli;

/// The check of configurations, and every configuration that is shipped.
mod check;

/// npm's oidc-provider, and a login there.
mod provider;

/// The forwarder between h11, wsproto and websockets.
mod peers;

/// Tokens of a real provider, its keys rotated, itself away and back.
mod real_issuer;

/// A decision step by step, the same as the runner's.
mod explain;

/// What the README says of commands, settings and files.
mod readme;

/// The generated code is what the schema generates.
mod schema;

/// The quickstart: its built binary started, asked as its users, and stopped.
mod quickstart;
