//! The hosts file, read again when it changes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::locks::{read_lock, try_lock, write_lock};
use apisix_plugin_runner::{HostName, read_bounded};

/// The shortest time between two looks at the file. A look takes a microsecond.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How many bytes the file may have. It is read during a call. The limit is a hundred times
/// what a cluster writes into one.
const MAX_BYTES: u64 = 1 << 20;

/// How long after its last change a file may be changed again without a trace: a
/// file system counts in steps, and some in whole seconds.
const STAMP_STEP: Duration = Duration::from_secs(2);

/// The names of a hosts file, with all their addresses.
type HostNames = HashMap<HostName, Arc<[IpAddr]>>;

/// What a hosts file says now.
pub(super) struct Hosts {
    /// Without a path there are no names and no file to look at.
    path: Option<PathBuf>,
    names: RwLock<HostNames>,
    /// How often the names have changed. The cache keeps this number with each answer,
    /// and so notices that the file may have changed.
    generation: AtomicU32,
    made: Instant,
    /// When the file is to be looked at next, in nanoseconds since `made`.
    check_at: AtomicU64,
    seen: Mutex<FileState>,
}

/// The file as it was last read.
#[derive(Default)]
struct FileState {
    stamp: Option<Stamp>,
    /// Whether it is known that it can't be read, so that the log hears of it once.
    is_unreadable: bool,
}

impl Hosts {
    /// No hosts file at all.
    pub(super) fn none() -> Self {
        Self::with(None, HostNames::new(), FileState::default())
    }

    /// The names of this file. There may be none yet.
    pub(super) fn read(path: &Path) -> Self {
        let mut seen = FileState::default();
        let names = match read(path) {
            Ok((stamp, names)) => {
                seen.stamp = Some(stamp);
                names
            }
            Err(error) => {
                // A system without a hosts file has no names in it.
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(path = %path.display(), %error, "hosts file not read");
                }
                seen.is_unreadable = true;
                HostNames::new()
            }
        };
        Self::with(Some(path.to_owned()), names, seen)
    }

    fn with(path: Option<PathBuf>, names: HostNames, seen: FileState) -> Self {
        Self {
            path,
            names: RwLock::new(names),
            generation: AtomicU32::new(0),
            made: Instant::now(),
            check_at: AtomicU64::new(nanoseconds(CHECK_INTERVAL)),
            seen: Mutex::new(seen),
        }
    }

    /// Reads the file again if it has changed, and returns how often its names have changed.
    /// Looks at the file once a second; other calls cost a comparison.
    pub(super) fn check(&self, now: Instant) -> u32 {
        if let Some(path) = &self.path {
            let age = nanoseconds(now.saturating_duration_since(self.made));
            let due = self.check_at.load(Ordering::Relaxed);
            if age >= due {
                let next = age.saturating_add(nanoseconds(CHECK_INTERVAL));
                let claim = self.check_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
                if claim.is_ok() {
                    self.read_again(path);
                }
            }
        }
        self.generation.load(Ordering::Acquire)
    }

    /// The addresses of a name, if the file has it.
    pub(super) fn get(&self, name: &HostName) -> Option<Arc<[IpAddr]>> {
        read_lock(&self.names).get(name).cloned()
    }

    #[cold]
    fn read_again(&self, path: &Path) {
        // A disk that hangs must not take one call after the other.
        let Some(mut seen) = try_lock(&self.seen) else { return };
        let stamp = std::fs::metadata(path).map(|metadata| Stamp::of(&metadata));
        let is_same =
            matches!((&stamp, &seen.stamp), (Ok(now), Some(then)) if now == then && then.is_settled);
        if is_same && !seen.is_unreadable {
            return;
        }
        match stamp.and_then(|_| read(path)) {
            Ok((stamp, names)) => {
                *seen = FileState { stamp: Some(stamp), is_unreadable: false };
                self.replace(names);
            }
            Err(error) => {
                if !seen.is_unreadable {
                    warn!(path = %path.display(), %error, "hosts file not read, what it said last still holds");
                }
                seen.is_unreadable = true;
            }
        }
    }

    fn replace(&self, names: HostNames) {
        // Only one caller at a time reads the file. Others wait neither while the names are
        // compared nor while the old names are dropped.
        if *read_lock(&self.names) == names {
            return;
        }
        info!(names = names.len(), "hosts file read again");
        let _old = mem::replace(&mut *write_lock(&self.names), names);
        // Counted last, so that no caller takes old names for new ones.
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// What tells one state of a file from another.
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    file: (u64, u64),
    bytes: u64,
    /// Whether another change would show.
    is_settled: bool,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        let parts = |stamp: &Self| (stamp.modified, stamp.changed, stamp.file, stamp.bytes);
        parts(self) == parts(other)
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.size(),
            is_settled: age.is_some_and(|age| age >= STAMP_STEP),
        }
    }
}

fn read(path: &Path) -> io::Result<(Stamp, HostNames)> {
    let file = File::open(path)?;
    // Of the open file and before it is read: a change while it is read shows.
    let stamp = Stamp::of(&file.metadata()?);
    let bytes = read_bounded(file, MAX_BYTES)?;
    // What a crash leaves of a file that was being written.
    if bytes.contains(&0) {
        return Err(io::Error::other("not a text: it has a zero byte"));
    }
    Ok((stamp, parse(&String::from_utf8_lossy(&bytes))))
}

/// Reads `address name…` lines. What is no address or no name is passed over, as
/// every resolver does (hosts(5)).
pub(super) fn parse(text: &str) -> HostNames {
    let mut found: HashMap<HostName, Vec<IpAddr>> = HashMap::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        let names = words.filter_map(|word| word.strip_suffix('.').unwrap_or(word).parse::<HostName>().ok());
        for name in names {
            let addresses = found.entry(name).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    let names = found.into_iter().map(|(name, mut addresses)| {
        // IPv4 first, as in answers of name servers.
        addresses.sort_by_key(IpAddr::is_ipv6);
        (name, addresses.into())
    });
    names.collect()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, name: &str, expected: &[&str]) {
        let expected: Vec<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
        let names = parse(text);
        let found = names.get(&name.parse().unwrap()).map(|found| found.to_vec()).unwrap_or_default();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn a_line_is_an_address_and_its_names() {
        check("127.0.0.1 a b\n127.0.0.2\tc  d # e\n", "a", &["127.0.0.1"]);
        check("127.0.0.1 a b\n127.0.0.2\tc  d # e\n", "d", &["127.0.0.2"]);
        check("127.0.0.1 a b\n127.0.0.2\tc  d # e\n", "e", &[]);
        check("127.0.0.1 A.Test.\r\n", "a.test", &["127.0.0.1"]);
        check("\u{feff}127.0.0.1 a", "a", &["127.0.0.1"]);
    }

    #[test]
    fn all_addresses_of_a_name_count_ipv4_first() {
        check("::1 a\n127.0.0.2 a\n127.0.0.1 a\n127.0.0.2 a", "a", &["127.0.0.2", "127.0.0.1", "::1"]);
    }

    #[test]
    fn invalid_addresses_and_names_are_skipped() {
        check("localhost a\nfe80::1%lo0 a\n127.0.0.1 -b a 1.2.3.4 \u{fffd}\n", "a", &["127.0.0.1"]);
        assert!(parse("# nothing\n\n127.0.0.1\n127.0.0.1 *\n").is_empty());
    }
}
