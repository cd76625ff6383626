//! A name server's answer, and what it means for a name.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::resolve_error::ResolveError;

/// What asking for a name came to, with the time that the servers gave it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FoundAddresses {
    Addresses { addresses: Vec<IpAddr>, good_for: Duration },
    Nothing { good_for: Duration },
}

/// What one question came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DnsAnswer {
    Addresses {
        addresses: Vec<IpAddr>,
        good_for: Duration,
    },
    /// The name has no record of this kind, or does not exist at all.
    Nothing {
        good_for: Duration,
        exists: bool,
    },
    Unavailable,
}

impl DnsAnswer {
    /// Reads the answer to the question for a name's records of a kind.
    pub(super) fn read(result: Result<Lookup, NetError>, name: &Name, kind: RecordType) -> Self {
        match result {
            Ok(lookup) => Self::from_records(lookup.answers(), name, kind),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                // A server that only names others, without an SOA record, has no answer
                // (RFC 2308, section 2.2).
                let is_referral = none.ns.is_some() && none.soa.is_none();
                match none.response_code {
                    ResponseCode::NoError if is_referral => Self::Unavailable,
                    ResponseCode::NoError | ResponseCode::NXDomain => Self::Nothing {
                        good_for: Duration::from_secs(none.negative_ttl.unwrap_or(0).into()),
                        exists: none.response_code == ResponseCode::NoError,
                    },
                    _ => Self::Unavailable,
                }
            }
            Err(_) => Self::Unavailable,
        }
    }

    /// Takes only the records of the name that was asked for, or of the name that it is an
    /// alias of. hickory also passes on other records.
    fn from_records(records: &[Record], name: &Name, kind: RecordType) -> Self {
        let (mut owner, mut ttl) = (name, u32::MAX);
        // Each alias leads one step on, so that a circle of them ends as well.
        for _ in records {
            let alias = records.iter().find_map(|record| match &record.data {
                RData::CNAME(alias) if record.name == *owner => Some((&alias.0, record.ttl)),
                _ => None,
            });
            let Some((target, alias_ttl)) = alias else { break };
            (owner, ttl) = (target, ttl.min(alias_ttl));
        }
        let mut addresses = Vec::new();
        for record in records {
            if record.name == *owner && record.record_type() == kind {
                addresses.extend(record.data.ip_addr().filter(can_be_a_workspace));
                ttl = ttl.min(record.ttl);
            }
        }
        match addresses.is_empty() {
            false => Self::Addresses { addresses, good_for: Duration::from_secs(ttl.into()) },
            // Records, but none that was asked for, so the name is still unknown.
            true => Self::Unavailable,
        }
    }

    /// Puts the answers for A and AAAA together.
    pub(super) fn join(self, other: Self) -> Result<FoundAddresses, ResolveError> {
        Ok(match (self, other) {
            (
                Self::Addresses { mut addresses, good_for },
                Self::Addresses { addresses: more, good_for: other },
            ) => {
                addresses.extend(more);
                FoundAddresses::Addresses { addresses, good_for: good_for.min(other) }
            }
            (Self::Addresses { addresses, good_for }, _) | (_, Self::Addresses { addresses, good_for }) => {
                FoundAddresses::Addresses { addresses, good_for }
            }
            (Self::Nothing { good_for, .. }, Self::Nothing { good_for: other, .. }) => {
                FoundAddresses::Nothing { good_for: good_for.min(other) }
            }
            // A name that does not exist has no record of any kind.
            (Self::Nothing { good_for, exists: false }, _)
            | (_, Self::Nothing { good_for, exists: false }) => FoundAddresses::Nothing { good_for },
            _ => return Err(ResolveError::Unavailable),
        })
    }
}

/// Whether an address may be a workspace's. The unspecified one would lead to this
/// very host, and the others to many.
fn can_be_a_workspace(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A::new(127, 0, 0, last)))
    }

    fn alias(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn addresses(last: &[u8], ttl: u64) -> DnsAnswer {
        let addresses = last.iter().map(|last| IpAddr::from([127, 0, 0, *last])).collect();
        DnsAnswer::Addresses { addresses, good_for: Duration::from_secs(ttl) }
    }

    #[track_caller]
    fn check(records: &[Record], expected: &DnsAnswer) {
        assert_eq!(DnsAnswer::from_records(records, &name("asked.test."), RecordType::A), *expected);
    }

    #[test]
    fn only_records_of_the_name_are_taken() {
        check(&[a("asked.test.", 30, 1), a("other.test.", 5, 6)], &addresses(&[1], 30));
        check(&[a("ASKED.test.", 30, 1), a("asked.test.", 20, 2)], &addresses(&[1, 2], 20));
        check(&[a("other.test.", 5, 6)], &DnsAnswer::Unavailable);
        let six = Record::from_rdata(name("asked.test."), 5, RData::from("::6".parse::<IpAddr>().unwrap()));
        check(&[six], &DnsAnswer::Unavailable);
        check(&[], &DnsAnswer::Unavailable);
    }

    #[test]
    fn an_address_that_no_workspace_can_have_is_dropped() {
        for refused in ["0.0.0.0", "255.255.255.255", "224.0.0.1"] {
            let record =
                Record::from_rdata(name("asked.test."), 5, RData::from(refused.parse::<IpAddr>().unwrap()));
            check(std::slice::from_ref(&record), &DnsAnswer::Unavailable);
            check(&[record, a("asked.test.", 30, 1)], &addresses(&[1], 5));
        }
        for refused in ["::", "ff02::1"] {
            let record =
                Record::from_rdata(name("asked.test."), 5, RData::from(refused.parse::<IpAddr>().unwrap()));
            assert_eq!(
                DnsAnswer::from_records(&[record], &name("asked.test."), RecordType::AAAA),
                DnsAnswer::Unavailable
            );
        }
    }

    #[test]
    fn an_alias_leads_to_the_records_and_its_ttl_counts() {
        let far = alias("next.test.", 9, "end.test.");
        let near = alias("asked.test.", 60, "next.test.");
        check(&[near.clone(), far.clone(), a("end.test.", 30, 1)], &addresses(&[1], 9));
        check(&[a("end.test.", 30, 1), far, near.clone()], &addresses(&[1], 9));
        check(&[near.clone(), a("asked.test.", 30, 6)], &DnsAnswer::Unavailable);
        check(&[near, alias("next.test.", 9, "asked.test.")], &DnsAnswer::Unavailable);
    }

    #[test]
    fn one_kind_unanswered_is_no_missing_name() {
        let nothing = |exists| DnsAnswer::Nothing { good_for: Duration::from_secs(1), exists };
        let found = |a: DnsAnswer, aaaa: DnsAnswer| match a.join(aaaa) {
            Ok(FoundAddresses::Addresses { .. }) => "addresses",
            Ok(FoundAddresses::Nothing { .. }) => "nothing",
            Err(_) => "unavailable",
        };
        assert_eq!(found(nothing(true), DnsAnswer::Unavailable), "unavailable");
        assert_eq!(found(DnsAnswer::Unavailable, nothing(true)), "unavailable");
        assert_eq!(found(nothing(false), DnsAnswer::Unavailable), "nothing");
        assert_eq!(found(DnsAnswer::Unavailable, nothing(true)), "unavailable");
        assert_eq!(found(addresses(&[1], 1), DnsAnswer::Unavailable), "addresses");
        assert_eq!(found(DnsAnswer::Unavailable, addresses(&[1], 1)), "addresses");
        assert_eq!(found(nothing(true), nothing(true)), "nothing");
    }
}
