//! The loopback listener that the gateway forwards requests to. It sends each request to
//! the workspace that the request's stamp names.
//!
//! `listener` accepts the gateway's connections, and `gateway_connection` serves the
//! requests of one of them. `stamped_request` is such a request, `exchange` a request and
//! its response, `transfer` both on their way, `relay` one body, and `tunnel` what follows
//! an upgrade. `http` is the grammar of HTTP/1.1, `workspace` has the connections to
//! workspaces, and `error_response` answers requests that get no response from a workspace.
//!
//! # Invariants
//!
//! - The forwarder connects to a workspace only for a request with a valid stamp.
//! - A request that a workspace may have received is never sent again.
//! - No body is ever held as a whole.
//! - A message that two programs could understand differently is rejected, from the gateway as
//!   from a workspace.
//! - `http` knows no sockets and no stamps. `workspace` knows no HTTP.

mod limits;
mod http;
mod buffered_stream;
mod write_buffer;
mod deadline_timer;
mod workspace;
mod peer_state;
mod relay;
mod stamped_request;
mod exchange_failure;
mod subjects;
mod strangers;
mod refusal_log;
mod counters;
mod tasks;
mod state;
mod error_response;
mod transfer;
mod tunnel;
mod exchange;
mod gateway_connection;
mod listener;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

pub(crate) use limits::ForwarderLimits;
pub(crate) use state::Forwarder;
pub(crate) use workspace::tls::CertificateTrust;
