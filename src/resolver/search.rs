//! The search list of resolv.conf: the full names that a name may mean.

use hickory_resolver::proto::rr::Name;

/// Domains to look for a name in (resolv.conf(5), `search` and `ndots`).
pub(super) struct Search {
    pub(super) domains: Vec<Name>,
    /// The least number of dots of a name that is first looked up as it is.
    pub(super) dots: usize,
}

impl Search {
    /// The full names that a name may mean, in the order in which to ask.
    pub(super) fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut whole = name.clone();
        whole.set_fqdn(true);
        // What gets too long with a domain is no name there.
        let searched = self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        if dots >= self.dots || name.is_localhost() {
            std::iter::once(whole).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(whole)).collect()
        }
    }
}
