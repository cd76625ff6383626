//! The names of issuers, looked up by the same name servers as those of workspaces, and with
//! the last good address while these are silent. An administrator writes them, so they may be
//! completed from the system's search list.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::resolver::Resolver;
use apisix_plugin_runner::HostName;

/// The resolver of issuers' names.
pub(super) struct IssuerNames(pub(super) Arc<Resolver>);

impl Resolve for IssuerNames {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = Arc::clone(&self.0);
        Box::pin(async move {
            let host: HostName = name.as_str().parse()?;
            let addresses = resolver.resolve(&host).await?;
            let addresses: Vec<_> = addresses.iter().map(|address| SocketAddr::new(*address, 0)).collect();
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}
