//! The names of issuers, looked up as those of workspaces are: by the same name servers,
//! and with the last good address while these are silent.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::resolver::Resolver;
use apisix_plugin_runner::HostName;

/// The resolver of workspaces' names, for issuers' names.
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
