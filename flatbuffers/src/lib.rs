//! The wire format between Apache APISIX and an external plugin runner.
//!
//! A connection carries frames: [`frame`] is the four-byte header, [`payload`] the
//! FlatBuffers bytes behind it as a runner reads and writes them, and [`gateway_side`]
//! the same payloads as a gateway writes and reads them. To write a plugin, use the
//! crate `apisix-plugin-runner`.
//!
//! ```
//! use apisix_ext_plugin::frame::{FrameHeader, FrameKind};
//! use apisix_ext_plugin::gateway_side::RequestParts;
//! use apisix_ext_plugin::payload::{Encoder, RequestCall};
//!
//! let mut encoder = Encoder::new();
//! encoder.request_call(&RequestParts { path: b"/hello".to_vec(), ..RequestParts::default() });
//! let payload = encoder.payload();
//! let header = FrameHeader { kind: FrameKind::RequestCall, length: payload.len() };
//! assert_eq!(header.encode().map(|bytes| bytes[0]), Some(2));
//! assert_eq!(RequestCall::decode(payload)?.path, b"/hello");
//! # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
//! ```
//!
//! # Invariants
//!
//! - The crate knows no sockets and no async runtime.
//! - [`frame`] knows no FlatBuffers.
//! - A runner believes nothing of a payload before it has checked it: every read is
//!   bounds-checked, and a list is counted before memory is allocated for it.

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
