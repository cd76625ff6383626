//! Looks up the addresses of names: for the plugin, which must know whether a workspace
//! exists, and for the forwarder, which connects to it.
//!
//! The hosts file comes first, then the cache, then the name servers. An expired address
//! is used only while no name server answers, because another machine may have it by now.

mod resolve_error;
mod address_policy;
mod lifetimes;
mod name_servers;
mod hosts;
mod name_table;
mod lookups;
mod name_cache;
mod dns;
mod search;
mod answer;
mod caching_resolver;
#[cfg(test)]
mod tests;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;

pub(crate) use address_policy::AddressPolicy;
pub(crate) use caching_resolver::Resolver;
pub(crate) use lifetimes::Lifetimes;
pub(crate) use lookups::most_sockets;
pub(crate) use name_servers::{NameServers, NameServersError};
pub(crate) use resolve_error::ResolveError;
pub(crate) use search::SearchDomains;
