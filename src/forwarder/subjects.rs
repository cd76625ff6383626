//! The subjects that use the forwarder: their requests under way, their open tunnels, and
//! when each was last active.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::Lifecycle;
use tokio::time::Instant;

use crate::bounded_map::{BoundedMap, bounded_map};
use crate::locks::lock;
use apisix_plugin_runner::Upstream;

/// How many subjects are remembered. Active subjects are always remembered.
const MAX_SUBJECTS: usize = 100_000;

/// All subjects, in one table in memory.
pub(crate) struct Subjects {
    table: BoundedMap<String, Arc<Subject>, RandomState, ActiveStay>,
    made: Instant,
    tunnels: AtomicU64,
}

#[derive(Default)]
struct Subject {
    /// Requests under way, and tunnels.
    open: AtomicUsize,
    /// The last activity, in milliseconds since the table was made.
    last: AtomicU64,
    tunnels: Mutex<BTreeMap<u64, (Upstream, Instant)>>,
}

/// Pins the subjects that a request or a tunnel holds. A subject that was forgotten while it
/// is active could have twice as many connections as its limit allows.
#[derive(Clone, Default)]
struct ActiveStay;

impl Lifecycle<String, Arc<Subject>> for ActiveStay {
    type RequestState = ();

    fn is_pinned(&self, _: &String, subject: &Arc<Subject>) -> bool {
        Arc::strong_count(subject) > 1
    }
}

/// What a subject does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Activity {
    pub(crate) subject: String,
    /// How many requests are under way and tunnels open.
    pub(crate) open: usize,
    /// The upstream of each tunnel, and how long it has been open.
    pub(crate) tunnels: Vec<(Upstream, Duration)>,
    /// How long ago the last request began, or bytes of the client's came through a
    /// tunnel.
    pub(crate) idle: Duration,
}

impl Subjects {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_room(MAX_SUBJECTS)
    }

    fn with_room(max_subjects: usize) -> Arc<Self> {
        let (table, tunnels) = (bounded_map(max_subjects), AtomicU64::new(0));
        Arc::new(Self { table, made: Instant::now(), tunnels })
    }

    /// Counts a request of a subject until the result is dropped. `None` if the subject has
    /// reached its limit. A request without a subject is not counted.
    pub(super) fn begin(self: &Arc<Self>, subject: Option<&str>, most: usize) -> Option<Use> {
        let Some(name) = subject else { return Some(Use(None)) };
        let now = Instant::now();
        let made = || Ok::<_, Infallible>(Arc::default());
        // It is cloned under the map's lock, and so can't be forgotten from here on.
        let Ok(subject) = self.table.get_or_insert_with(name, made);
        let open = subject.open.fetch_add(1, Ordering::Relaxed);
        let held = Held { subject, subjects: Arc::clone(self) };
        if open >= most {
            return None;
        }
        held.touch(now);
        Some(Use(Some(held)))
    }

    /// What all subjects do, in no order.
    pub(crate) fn activities(&self) -> Vec<Activity> {
        let now = Instant::now();
        let activity = |(subject, state): (String, Arc<Subject>)| {
            let tunnels = lock(&state.tunnels);
            let tunnels = tunnels.values().map(|(to, since)| (to.clone(), now.duration_since(*since)));
            let last = self.made + Duration::from_millis(state.last.load(Ordering::Relaxed));
            Activity {
                subject,
                open: state.open.load(Ordering::Relaxed),
                tunnels: tunnels.collect(),
                idle: now.saturating_duration_since(last),
            }
        };
        self.table.iter().map(activity).collect()
    }
}

/// A request that counts for its subject, if it has one.
pub(super) struct Use(Option<Held>);

struct Held {
    subject: Arc<Subject>,
    subjects: Arc<Subjects>,
}

impl Held {
    fn touch(&self, now: Instant) {
        let since = now.saturating_duration_since(self.subjects.made);
        let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.subject.last.fetch_max(milliseconds, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.subject.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Use {
    /// How many other requests and tunnels the subject has; `None` without a subject.
    pub(super) fn others_open(&self) -> Option<usize> {
        self.0.as_ref().map(|held| held.subject.open.load(Ordering::Relaxed).saturating_sub(1))
    }

    /// Counts on for a tunnel to this upstream.
    pub(super) fn into_tunnel(self, to: Upstream) -> TunnelUse {
        let number = self.0.as_ref().map_or(0, |held| {
            let number = held.subjects.tunnels.fetch_add(1, Ordering::Relaxed);
            lock(&held.subject.tunnels).insert(number, (to, Instant::now()));
            number
        });
        TunnelUse { held: self, number }
    }
}

/// A tunnel that counts for its subject, if it has one.
pub(super) struct TunnelUse {
    held: Use,
    number: u64,
}

impl TunnelUse {
    /// Notes that bytes came from the client.
    pub(super) fn touch(&self) {
        if let Some(held) = &self.held.0 {
            held.touch(Instant::now());
        }
    }
}

impl Drop for TunnelUse {
    fn drop(&mut self) {
        if let Some(held) = &self.held.0 {
            lock(&held.subject.tunnels).remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> Upstream {
        "http://a:1".parse().unwrap()
    }

    fn of(subjects: &Subjects, name: &str) -> Option<(usize, usize, u64)> {
        let activities = subjects.activities();
        let found = activities.iter().find(|activity| *activity.subject == *name)?;
        Some((found.open, found.tunnels.len(), found.idle.as_secs()))
    }

    #[tokio::test(start_paused = true)]
    async fn open_requests_and_the_last_activity_are_known() {
        let (subjects, second) = (Subjects::new(), Duration::from_secs(1));
        assert_eq!(of(&subjects, "alice"), None);
        let request = subjects.begin(Some("alice"), 10).unwrap();
        let tunnel = subjects.begin(Some("alice"), 10).unwrap().into_tunnel(upstream());
        let _other = subjects.begin(Some("bob"), 10).unwrap();
        assert_eq!(of(&subjects, "alice"), Some((2, 1, 0)));
        tokio::time::advance(3 * second).await;
        drop(request);
        assert_eq!(of(&subjects, "alice"), Some((1, 1, 3)), "an end is no activity");
        tunnel.touch();
        assert_eq!(of(&subjects, "alice"), Some((1, 1, 0)));
        tokio::time::advance(5 * second).await;
        let alice = subjects.activities().into_iter().find(|activity| &*activity.subject == "alice");
        assert_eq!(alice.unwrap().tunnels, [(upstream(), 8 * second)]);
        drop(tunnel);
        assert_eq!(of(&subjects, "alice"), Some((0, 0, 5)));
        assert_eq!(of(&subjects, "bob"), Some((1, 0, 8)));
    }

    #[tokio::test]
    async fn a_subject_has_only_so_many() {
        let subjects = Subjects::new();
        let held: Vec<_> = (0..3).map(|_| subjects.begin(Some("alice"), 3).unwrap()).collect();
        assert!(subjects.begin(Some("alice"), 3).is_none());
        assert!(subjects.begin(Some("bob"), 3).is_some());
        assert!(subjects.begin(None, 0).is_some(), "requests without a subject have no such limit");
        assert_eq!(of(&subjects, "alice"), Some((3, 0, 0)));
        drop(held);
        assert!(subjects.begin(Some("alice"), 3).is_some());
    }

    #[tokio::test]
    async fn subjects_are_bounded_in_number_and_active_ones_stay() {
        let subjects = Subjects::with_room(128);
        let _active: Vec<_> =
            (0..50).map(|number| subjects.begin(Some(&format!("active-{number}")), 1).unwrap()).collect();
        for number in 0..5000 {
            // A subject that comes again is one that would rather stay.
            for _ in 0..2 {
                subjects.begin(Some(&format!("idle-{number}")), 1).unwrap();
            }
        }
        let activities = subjects.activities();
        assert!((128..=144).contains(&activities.len()), "{}", activities.len());
        assert_eq!(activities.iter().filter(|activity| activity.open == 1).count(), 50);
        assert!((0..50).all(|number| subjects.begin(Some(&format!("active-{number}")), 1).is_none()));
    }

    #[test]
    fn limits_hold_while_subjects_come_and_go() {
        let subjects = Subjects::with_room(128);
        // Twice as many as there is room for, so that each is forgotten again and again.
        let held: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
        std::thread::scope(|scope| {
            for step in [3, 5, 7, 11] {
                let (subjects, held) = (&subjects, &held);
                scope.spawn(move || {
                    let begin = |number| subjects.begin(Some(&format!("user-{number}")), 1);
                    for number in (0..5000).map(|turn| turn * step % held.len()) {
                        let counted = begin(number);
                        if counted.is_some() {
                            assert_eq!(held[number].fetch_add(1, Ordering::SeqCst), 0, "user-{number}");
                        }
                        for other in 1..8 {
                            drop(begin((number + 17 * other) % held.len()));
                        }
                        if counted.is_some() {
                            held[number].fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(subjects.activities().iter().map(|activity| activity.open).sum::<usize>(), 0);
    }
}
