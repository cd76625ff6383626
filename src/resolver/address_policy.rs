//! Addresses that no workspace has: a name server, or a user whose workspace has a name, must
//! not lead requests to the machine itself or to the cloud's metadata.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

/// Metadata services of clouds, and addresses that only a machine itself or its link has.
const REFUSED: [&str; 17] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    // Alibaba Cloud, Azure, Oracle Cloud.
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "224.0.0.0/4",
    // Reserved, with the broadcast address.
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
    // AWS, Google Cloud, Scaleway.
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
    "fd00:42::42/128",
    // Teredo, and NAT64 of one's own network: they lead to an IPv4 address that can't be told.
    "2001::/32",
    "64:ff9b:1::/48",
];

/// Which addresses workspaces may have.
#[derive(Clone, Debug)]
pub(crate) struct AddressPolicy {
    /// The networks that an administrator allows in addition.
    allowed: Vec<IpNet>,
    refused: Vec<IpNet>,
}

impl AddressPolicy {
    /// Refuses the addresses that no workspace has, but for those of these networks.
    pub(crate) fn allowing(allowed: Vec<IpNet>) -> Self {
        let refused = REFUSED.iter().map(|net| net.parse().expect("a network")).collect();
        Self { allowed, refused }
    }

    /// Refuses nothing: for names that an administrator writes.
    pub(crate) fn any() -> Self {
        Self { allowed: Vec::new(), refused: Vec::new() }
    }

    /// The addresses that a workspace may have, and the others.
    pub(super) fn split(&self, addresses: &[IpAddr]) -> (Vec<IpAddr>, Vec<IpAddr>) {
        // They can change, as those of a container that moves to another network.
        let own = if self.refused.is_empty() { Vec::new() } else { own_addresses() };
        addresses.iter().partition(|address| self.permits(**address, &own))
    }

    fn permits(&self, address: IpAddr, own: &[IpAddr]) -> bool {
        // An address within another one leads there, whatever the outer one is.
        if let Some(inner) = inner_address(address) {
            return self.permits(inner.into(), own);
        }
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        is_in(&self.allowed) || self.refused.is_empty() || !is_in(&self.refused) && !own.contains(&address)
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped and compatible (RFC 4291, section
/// 2.5.5), translated (RFC 7915), NAT64 (RFC 6052), 6to4 (RFC 3056) and ISATAP (RFC 5214).
fn inner_address(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let segments = address.segments();
    let [.., a, b, c, d] = address.octets();
    let last = Some(Ipv4Addr::new(a, b, c, d));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => last,
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => last,
        [0x2002, high, low, ..] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => last,
        _ => None,
    }
}

/// The addresses of this machine's interfaces. None if they can't be read: then the other rules
/// remain.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(policy: &AddressPolicy, address: &str) -> bool {
        policy.split(&[address.parse().unwrap()]).1.is_empty()
    }

    fn allowing(nets: &[&str]) -> AddressPolicy {
        AddressPolicy::allowing(nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    #[test]
    fn addresses_that_no_workspace_has_are_refused() {
        let policy = allowing(&[]);
        for address in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.1.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:42::42",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2:3:4:5601:5601",
            "64:ff9b:1:a9fe:a9:fe00:808:808",
            "::ffff:0:169.254.169.254",
            "fd00::5efe:127.0.0.1",
            "2001:db8::200:5efe:169.254.169.254",
        ] {
            assert!(!permits(&policy, address), "{address}");
            assert!(permits(&AddressPolicy::any(), address), "{address}");
        }
        for address in [
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.201",
            "172.16.0.1",
            "192.168.1.1",
            "203.0.113.7",
            "fd00::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "::ffff:0:10.0.0.1",
            "fd00::5efe:10.0.0.1",
        ] {
            assert!(permits(&policy, address), "{address}");
        }
    }

    #[test]
    fn the_machines_own_addresses_are_refused() {
        let own = own_addresses();
        assert!(own.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{own:?}");
        assert!(own.iter().all(|address| !permits(&allowing(&[]), &address.to_string())), "{own:?}");
    }

    #[test]
    fn a_listed_network_is_allowed_and_nothing_else() {
        let policy = allowing(&["127.0.0.0/24", "fd00:ec2::/64", "169.254.7.7/32"]);
        for address in ["127.0.0.9", "::ffff:127.0.0.9", "fd00:ec2::254", "169.254.7.7"] {
            assert!(permits(&policy, address), "{address}");
        }
        for address in ["127.0.1.1", "169.254.169.254", "::1", "64:ff9b::169.254.169.254"] {
            assert!(!permits(&policy, address), "{address}");
        }
        let (good, bad) = policy.split(&["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]);
        assert_eq!((good.len(), bad.len()), (1, 1));
    }
}
