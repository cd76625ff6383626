//! Whether an address is this machine's, or the forwarder's.

use std::net::IpAddr;

use super::options::CheckContext;
use super::route::{GatewayRoute, UpstreamNode, unbracketed};

/// Whether a route leads to the forwarder.
pub(super) fn leads_to_forwarder(route: &GatewayRoute<'_>, context: &CheckContext<'_>) -> bool {
    route.upstream.iter().flat_map(|upstream| &upstream.nodes).any(|node| is_forwarder(node, context))
}

/// Whether a node is the forwarder.
pub(super) fn is_forwarder(node: &UpstreamNode<'_>, context: &CheckContext<'_>) -> bool {
    let listens_at = context.options.forwarder.ip();
    let is_address = node.host.parse::<IpAddr>().is_ok_and(|address| address == listens_at);
    let is_name = node.host.eq_ignore_ascii_case("localhost") && listens_at.is_ipv4();
    (is_address || is_name) && node.port == Some(context.options.forwarder.port())
}

pub(super) fn is_loopback(host: &str) -> bool {
    let address = unbracketed(host).parse::<IpAddr>();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("[::1]", true),
            ("localhost", true),
            ("10.0.0.1", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
