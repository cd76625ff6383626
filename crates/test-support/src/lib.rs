//! What the tests and the quickstart of kube-coders share. Nothing in production
//! imports it.

mod name_server;
mod signer;

pub use name_server::{Mode, NameServer};
pub use signer::{Signer, claims, key_set, message, now};
