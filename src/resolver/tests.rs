//! The resolver against a name server that answers, changes its mind, is silent,
//! fails, truncates and lies.
//!
//! The sockets are real, so the clock is stopped only to be moved on.

mod answers;
mod hosts_file;
mod lies;
mod server;
mod staleness;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::name_table::KnownAddresses;
use super::{Lifetimes, NameServers, ResolveError, Resolver};
use apisix_plugin_runner::HostName;

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn ips(addresses: &[&str]) -> KnownAddresses {
    Ok(addresses.iter().map(|address| ip(address)).collect::<Arc<[_]>>())
}

fn resolver_of(server: &server::Server) -> Resolver {
    Resolver::new(&NameServers::Listed(vec![server.address()])).unwrap()
}

async fn ask(resolver: &Resolver, name: &str) -> KnownAddresses {
    resolver.resolve(&host(name)).await
}

/// What is known without any waiting.
#[track_caller]
fn at_once(resolver: &Resolver, name: &str) -> KnownAddresses {
    let name = host(name);
    resolver.resolve(&name).now_or_never().expect("an answer without waiting")
}

/// Lets time pass without a task that waits for it.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

const SECOND: Duration = Duration::from_secs(1);
