//! The table of names: what is known of each, until it expires.

use std::net::IpAddr;
use std::sync::Arc;

use quick_cache::sync::{EntryAction, EntryResult};
use tokio::time::Instant;

use super::resolve_error::ResolveError;
use crate::bounded_map::{BoundedMap, bounded_map};
use apisix_plugin_runner::HostName;

/// What is known of a name: its addresses, at least one, or why it has none.
pub(super) type KnownAddresses = Result<Arc<[IpAddr]>, ResolveError>;

/// Names and what is known of them, bounded in number. If there are too many, names that
/// are not in use make room.
pub(super) struct NameTable(BoundedMap<HostName, NameEntry>);

/// What is known of a name, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameEntry {
    pub(super) known: KnownAddresses,
    pub(super) source: NameSource,
    /// The state of the hosts file when the entry was made.
    pub(super) hosts: u32,
    /// From when on a caller checks the entry before it is used.
    pub(super) due_at: Instant,
    /// Until when the addresses may be used without asking again.
    pub(super) good_until: Instant,
    /// When the name servers were asked for it.
    pub(super) asked_at: Instant,
    /// Until when the entry is kept in case no name server answers.
    pub(super) kept_until: Instant,
}

/// The source of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameSource {
    Hosts,
    Dns,
    /// From the name servers, which did not answer when they were asked again.
    FailingDns,
}

/// An entry that a lookup in the table finds.
pub(super) enum TableHit {
    /// It can be used as it is.
    Good(KnownAddresses),
    /// It has to be checked: it has expired or soon will, or the hosts file has changed.
    Due(NameEntry),
}

impl NameEntry {
    fn is_gone(&self, now: Instant) -> bool {
        now >= self.kept_until
    }
}

impl NameTable {
    /// A table with room for so many names.
    pub(super) fn new(max_names: usize) -> Self {
        Self(bounded_map(max_names))
    }

    /// What is known of a name now, given this state of the hosts file. `None` if nothing
    /// is known.
    pub(super) fn get(&self, name: &HostName, hosts: u32, now: Instant) -> Option<TableHit> {
        let entry = self.0.get(name)?;
        if now < entry.due_at && entry.hosts == hosts {
            Some(TableHit::Good(entry.known))
        } else {
            (!entry.is_gone(now)).then_some(TableHit::Due(entry))
        }
    }

    /// Ends the use of a name's addresses if it has expired, and returns what is left of it.
    pub(super) fn drop_stale(&self, name: &HostName, now: Instant) -> Option<NameEntry> {
        let entry = self.0.get(name)?;
        if now < entry.good_until {
            return Some(entry);
        }
        self.0.remove(name);
        None
    }

    pub(super) fn insert(&self, name: HostName, entry: NameEntry) {
        self.0.insert(name, entry);
    }

    /// Changes the entry of a name, if it has one that is not gone, and returns
    /// what is known of it.
    pub(super) fn change(
        &self,
        name: &HostName,
        now: Instant,
        change: impl FnOnce(&mut NameEntry),
    ) -> Option<KnownAddresses> {
        let changed = self.0.entry(name, None, |_, entry| {
            if entry.is_gone(now) {
                return EntryAction::Remove;
            }
            change(entry);
            EntryAction::Retain(entry.known.clone())
        });
        match changed {
            EntryResult::Retained(known) => Some(known),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(number: usize) -> HostName {
        format!("code-{number}.test").parse().unwrap()
    }

    fn known(number: u8) -> KnownAddresses {
        Ok([IpAddr::from([127, 0, 0, number])].into())
    }

    fn entry(known: KnownAddresses, good_until: Instant) -> NameEntry {
        NameEntry {
            known,
            source: NameSource::Dns,
            hosts: 0,
            due_at: good_until,
            good_until,
            asked_at: good_until,
            kept_until: good_until,
        }
    }

    #[track_caller]
    fn check(table: &NameTable, name: &HostName, now: Instant, expected: Option<KnownAddresses>) {
        let found = table.get(name, 0, now).map(|seen| match seen {
            TableHit::Good(known) => known,
            TableHit::Due(entry) => panic!("{entry:?}"),
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_name_is_known_until_it_is_not_good() {
        let (table, start) = (NameTable::new(100), Instant::now());
        let second = Duration::from_secs(1);
        let nothing = Err(ResolveError::NotFound);
        table.insert(name(1), entry(known(1), start + second));
        table.insert(name(2), entry(nothing.clone(), start + second));
        check(&table, &name(1), start, Some(known(1)));
        check(&table, &name(2), start, Some(nothing));
        check(&table, &name(3), start, None);
        check(&table, &name(1), start + second, None);
        check(&table, &name(2), start + second, None);
    }

    #[test]
    fn a_due_entry_is_shown_as_one_until_it_is_gone() {
        let (table, start) = (NameTable::new(100), Instant::now());
        let second = Duration::from_secs(1);
        let kept_until = start + 4 * second;
        let due = NameEntry { due_at: start + second, kept_until, ..entry(known(1), start + 2 * second) };
        table.insert(name(1), due.clone());
        check(&table, &name(1), start, Some(known(1)));
        let is_due = |hosts, now| {
            let hit = table.get(&name(1), hosts, now);
            matches!(hit, Some(TableHit::Due(entry)) if entry == due)
        };
        assert!(is_due(0, start + second));
        assert!(is_due(0, kept_until - Duration::from_nanos(1)));
        assert!(is_due(1, start), "the hosts file has changed");
        check(&table, &name(1), kept_until, None);
    }

    #[test]
    fn only_what_is_there_is_changed() {
        let (table, start) = (NameTable::new(100), Instant::now());
        let second = Duration::from_secs(1);
        table.insert(name(1), entry(known(1), start + second));
        let change =
            |name: HostName, now, number| table.change(&name, now, |entry| entry.known = known(number));
        assert_eq!(change(name(1), start, 2), Some(known(2)));
        check(&table, &name(1), start, Some(known(2)));
        assert_eq!(change(name(1), start + second, 3), None);
        assert_eq!(change(name(2), start, 3), None);
        check(&table, &name(2), start, None);
    }

    #[test]
    fn a_newer_answer_takes_the_place_of_an_older() {
        let (table, start) = (NameTable::new(100), Instant::now());
        let later = start + Duration::from_secs(1);
        table.insert(name(1), entry(known(1), later));
        table.insert(name(1), entry(known(2), later));
        check(&table, &name(1), start, Some(known(2)));
        assert_eq!(table.0.len(), 1);
    }

    #[test]
    fn names_are_bounded_in_number() {
        for limit in [128, 1280] {
            let (table, start) = (NameTable::new(limit), Instant::now());
            for number in 0..5000 {
                table.insert(name(number), entry(known(1), start + Duration::from_secs(1)));
                check(&table, &name(number), start, Some(known(1)));
            }
            assert!((limit..=limit * 9 / 8).contains(&table.0.len()), "{limit}: {}", table.0.len());
        }
    }

    #[test]
    fn as_many_names_as_asked_for_are_kept() {
        let (table, start) = (NameTable::new(50_000), Instant::now());
        let later = start + Duration::from_secs(1);
        for number in 0..50_000 {
            table.insert(name(number), entry(known(1), later));
        }
        assert!((0..50_000).all(|number| table.get(&name(number), 0, start).is_some()));
    }

    #[test]
    fn names_that_are_no_longer_used_make_room() {
        let (table, start) = (NameTable::new(1280), Instant::now());
        let (soon, later) = (start + Duration::from_secs(1), start + Duration::from_secs(2));
        for number in 0..5000 {
            table.insert(name(number), entry(known(1), soon));
        }
        for number in 5000..6280 {
            table.insert(name(number), entry(known(1), later));
            check(&table, &name(number), soon, Some(known(1)));
        }
        assert!((0..5000).all(|number| table.get(&name(number), 0, soon).is_none()));
        let kept = (5000..6280).filter(|number| table.get(&name(*number), 0, soon).is_some()).count();
        assert!(kept >= 1200, "{kept}");
        assert!(table.0.len() <= 1440);
    }
}
