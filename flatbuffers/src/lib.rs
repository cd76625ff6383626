//! The wire format between Apache APISIX and an external plugin runner.
//!
//! This crate is for people who write another runner, or a stand-in for the gateway in
//! tests. To write a plugin, use the crate `apisix-plugin-runner`.
//!
//! The gateway connects to the runner's unix socket. Both sides send frames: a header of
//! four bytes, then a FlatBuffers payload. The gateway sends a call, and the runner answers
//! with a frame of the same kind, or with an error. Before it answers, the runner may ask
//! the gateway for variables and bodies.
//!
//! ```
//! use apisix_ext_plugin::frame::{FrameHeader, FrameKind};
//! use apisix_ext_plugin::gateway_side::{RequestAnswer, RequestParts, decode_request_answer};
//! use apisix_ext_plugin::payload::{Encoder, RequestCall, StopParts};
//!
//! // The gateway calls.
//! let mut gateway = Encoder::new();
//! gateway.request_call(&RequestParts { id: 7, path: b"/private".to_vec(), ..RequestParts::default() });
//! let header = FrameHeader { kind: FrameKind::RequestCall, length: gateway.payload().len() };
//! assert_eq!(header.encode().map(|bytes| bytes[0]), Some(2));
//!
//! // The runner decides.
//! let call = RequestCall::decode(gateway.payload())?;
//! let mut runner = Encoder::new();
//! match call.path {
//!     b"/private" => runner.stop(call.id, StopParts { status: 403, headers: &[], body: b"" }),
//!     _ => runner.unchanged(call.id),
//! }
//!
//! // The gateway reads the answer.
//! let (id, answer) = decode_request_answer(runner.payload())?;
//! assert!(id == 7 && matches!(answer, RequestAnswer::Stop { status: 403, .. }));
//! # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
//! ```
//!
//! # Where to look
//!
//! | I want to | in a runner | in a gateway |
//! |---|---|---|
//! | read or write a frame's header | [`FrameHeader`](frame::FrameHeader) | the same |
//! | prepare the confs of a route | [`PrepareConf`](payload::PrepareConf), [`prepared`](payload::Encoder::prepared) | [`prepare_conf_call`](payload::Encoder::prepare_conf_call), [`decode_prepared`](gateway_side::decode_prepared) |
//! | decide about a request | [`RequestCall`](payload::RequestCall); [`unchanged`](payload::Encoder::unchanged), [`rewrite`](payload::Encoder::rewrite) or [`stop`](payload::Encoder::stop) | [`request_call`](payload::Encoder::request_call), [`decode_request_answer`](gateway_side::decode_request_answer) |
//! | change a response | [`ResponseCall`](payload::ResponseCall), [`response`](payload::Encoder::response) | [`response_call`](payload::Encoder::response_call), [`decode_response_answer`](gateway_side::decode_response_answer) |
//! | ask for a variable or a body | [`question`](payload::Encoder::question), [`decode_extra_info`](payload::decode_extra_info) | [`decode_question`](gateway_side::decode_question), [`extra_info`](payload::Encoder::extra_info) |
//! | report a failed call | [`error`](payload::Encoder::error) | [`decode_error`](gateway_side::decode_error) |
//!
//! The crate opens no socket and needs no async runtime. Payloads may come from anywhere:
//! a runner's reads are checked against the payload's bounds, and a list of more than
//! 65,536 entries is rejected before memory is allocated for it.

pub mod frame;
mod malformed;
pub mod payload;
mod table;
pub mod gateway_side;
#[cfg(fuzzing)]
pub mod fuzzing;

#[allow(
    unsafe_code,
    unreachable_pub,
    missing_docs,
    deprecated,
    unused_imports,
    dead_code,
    clippy::all,
    clippy::unwrap_used,
    clippy::semicolon_if_nothing_returned,
    clippy::uninlined_format_args,
    clippy::fn_params_excessive_bools
)]
#[rustfmt::skip]
mod generated;

/// Compiles the README's example as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
