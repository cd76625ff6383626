//! The hosts file, for `crate::fuzzing`.

use std::fmt::Write as _;

use super::hosts::parse;

/// Each name has addresses, none twice and IPv4 first, and a file that says the same reads
/// the same.
pub(crate) fn hosts(text: &str) {
    let names = parse(text);
    let mut again = String::new();
    for (name, addresses) in &names {
        assert!(!addresses.is_empty(), "{name}");
        assert!(addresses.is_sorted_by_key(|address| address.is_ipv6()), "{name}: {addresses:?}");
        for (index, address) in addresses.iter().enumerate() {
            assert!(!addresses[..index].contains(address), "{name}: {addresses:?}");
            let _ = writeln!(again, "{address}\t{name} # {name}");
        }
    }
    assert_eq!(parse(&again), names, "{text:?}");
}
