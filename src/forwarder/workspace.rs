//! Connections to workspaces: making them, with TLS or without, and keeping them for the
//! next request. Nothing here knows what is sent on them.

pub(super) mod tls;
pub(super) mod connection;
pub(super) mod pool;
pub(super) mod start_times;
