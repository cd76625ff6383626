//! The full names that a name may mean.

use hickory_resolver::proto::rr::Name;

use apisix_plugin_runner::HostName;

/// The domains in which a resolver looks for names that are not full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SearchDomains {
    /// Those of the system's resolv.conf, by its rules: for names that an administrator writes.
    System,
    /// Only these, and only for names of one label. A name that has a user's claim in it is never
    /// completed otherwise: a record for all names of a domain, such as `*.example.com`, would
    /// send a user without a workspace to a stranger.
    Listed(Vec<HostName>),
}

/// Domains to look for a name in.
pub(super) enum Search {
    /// As resolv.conf(5) says, with `search` and `ndots`.
    System {
        domains: Vec<Name>,
        /// The least number of dots of a name that is first looked up as it is.
        dots: usize,
    },
    Listed(Vec<Name>),
}

impl Search {
    /// The full names that a name may mean, in the order in which to ask.
    pub(super) fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut whole = name.clone();
        whole.set_fqdn(true);
        // What gets too long with a domain is no name there.
        let within = |domains: &[Name]| -> Vec<Name> {
            domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect()
        };
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        match self {
            Self::System { domains, dots: least } if dots >= *least || name.is_localhost() => {
                std::iter::once(whole).chain(within(domains)).collect()
            }
            Self::System { domains, .. } => within(domains).into_iter().chain([whole]).collect(),
            Self::Listed(domains) if dots == 0 && !domains.is_empty() => within(domains),
            Self::Listed(_) => vec![whole],
        }
    }

    /// Whether the next name is asked for although the servers of one could not say. It is
    /// another name, and takes its place only if an administrator has listed both domains.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self, Self::Listed(_))
    }
}
