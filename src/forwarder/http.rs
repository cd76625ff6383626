//! The grammar of HTTP/1.1: from bytes to the parts of a message and back.
//!
//! Nothing here reads or writes a socket, waits, or knows what a stamp is.

pub(super) mod token;
pub(super) mod head;
pub(super) mod framing;
mod document_caching;
pub(super) mod origin_headers;
pub(super) mod headers;
pub(super) mod chunked;
pub(super) mod websocket;
