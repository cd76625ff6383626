//! Who may connect: the credentials of the peer on the unix socket.
//!
//! The file's mode can't tell a gateway's workers from other processes, because they run as
//! `nobody` on package installs. The kernel can: it says which process connected.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::Pid;
use tokio::net::unix::UCred;

use crate::listener::process_end::end_of;

/// The first process of a container, which inherits every orphan: any process can become a child
/// of it, and run any program. So being its child proves nothing, and users are admitted by uid.
const INIT: i32 = 1;

/// Which peers are served.
#[derive(Debug)]
pub(crate) struct Admission {
    own_uid: u32,
    allowed_uids: BTreeSet<u32>,
    gateway: Option<GatewayProcess>,
}

/// The gateway that started this process: the parent of its workers.
///
/// ```
/// use apisix_plugin_runner::Settings;
/// use apisix_plugin_runner::listener::GatewayProcess;
///
/// // The gateway started this runner by its privileged agent, which is this process's parent.
/// let parent = std::os::unix::process::parent_id();
/// let gateway = i32::try_from(parent).ok().and_then(GatewayProcess::above);
/// let settings = Settings::new("/run/my-plugins/runner.sock").gateway(gateway);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayProcess {
    master: i32,
}

impl GatewayProcess {
    /// The gateway above a process that its privileged agent started: the
    /// parent's parent. `None` if that process has ended.
    pub fn above(parent: i32) -> Option<Self> {
        let master = parent_of(parent)?;
        (master > 0).then_some(Self { master })
    }

    /// The gateway with this process's number.
    pub fn new(master: i32) -> Self {
        Self { master }
    }

    /// Its number.
    #[must_use]
    pub fn pid(self) -> i32 {
        self.master
    }

    /// Returns once the process has ended.
    pub(crate) async fn ended(self) {
        let Some(process) = Pid::from_raw(self.master) else { return };
        end_of(process, || !self.is_alive()).await;
    }

    fn is_alive(self) -> bool {
        fs::metadata(format!("/proc/{}", self.master)).is_ok()
    }

    fn is_parent_of(self, pid: i32, uid: u32) -> bool {
        // The number could be another process's by now, so it must also be the same user's.
        let owner = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid());
        owner.is_ok_and(|owner| owner == uid) && self.master != INIT && parent_of(pid) == Some(self.master)
    }
}

impl Admission {
    pub(crate) fn new(allowed_uids: BTreeSet<u32>, gateway: Option<GatewayProcess>) -> Self {
        Self { own_uid: rustix::process::geteuid().as_raw(), allowed_uids, gateway }
    }

    pub(crate) fn admits(&self, peer: &UCred) -> bool {
        let uid = peer.uid();
        if is_foreign_to_our_namespace(uid) {
            return false;
        }
        uid == self.own_uid
            || uid == 0
            || self.allowed_uids.contains(&uid)
            || self.gateway.zip(peer.pid()).is_some_and(|(gateway, pid)| gateway.is_parent_of(pid, uid))
    }
}

impl fmt::Display for Admission {
    /// The peers that are served, as text for the log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uids: BTreeSet<u32> =
            [0, self.own_uid].into_iter().chain(self.allowed_uids.iter().copied()).collect();
        let uids: Vec<String> = uids.iter().map(u32::to_string).collect();
        write!(formatter, "uid {}", uids.join(", "))?;
        match self.gateway.filter(|gateway| gateway.master != INIT) {
            Some(gateway) => write!(formatter, ", and children of the gateway's process {}", gateway.master),
            None => Ok(()),
        }
    }
}

/// Whether a uid that the kernel names may stand for a user that our user namespace does not
/// have. The kernel then names the overflow uid, which is `nobody` on most systems
/// (user_namespaces(7), Unmapped user and group IDs).
pub(crate) fn is_foreign_to_our_namespace(uid: u32) -> bool {
    let overflow = one_line("/proc/sys/kernel/overflowuid").and_then(|text| text.trim().parse().ok());
    // Without /proc, the kernel's default.
    uid == overflow.unwrap_or(65_534)
        && !one_line("/proc/self/uid_map").is_some_and(|map| has_all_users(&map))
}

/// Whether a user namespace has all uids, as the first one does.
fn has_all_users(uid_map: &str) -> bool {
    let mut fields = uid_map.split_ascii_whitespace().map(str::parse);
    fields.next() == Some(Ok(0)) && fields.nth(1) == Some(Ok(u32::MAX))
}

#[allow(clippy::disallowed_methods)] // the kernel's files are short
fn one_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The parent of a process, from the fourth field of its `stat` (proc(5)).
#[allow(clippy::disallowed_methods)] // the kernel's file is one line
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses, which may hold anything.
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> UCred {
        let (one, _other) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        one.peer_cred().expect("credentials")
    }

    #[tokio::test]
    async fn our_own_user_is_served_and_a_stranger_only_by_uid_or_parent() {
        let peer = own();
        assert!(Admission::new(BTreeSet::new(), None).admits(&peer));

        let elsewhere = |allowed: &[u32], gateway| Admission {
            own_uid: u32::MAX - 7,
            allowed_uids: allowed.iter().copied().collect(),
            gateway,
        };
        // Root is always served, so the rest can only be seen by another user's process.
        if peer.uid() != 0 {
            assert!(!elsewhere(&[], None).admits(&peer));
            assert!(elsewhere(&[peer.uid()], None).admits(&peer));
        }
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let parent = parent_of(pid).expect("a parent");
        assert!(GatewayProcess { master: parent }.is_parent_of(pid, peer.uid()));
        assert!(
            !GatewayProcess { master: parent }.is_parent_of(pid, peer.uid() + 1),
            "another user's process"
        );
        assert!(!GatewayProcess { master: pid }.is_parent_of(pid, peer.uid()), "another gateway's process");
        assert_eq!(GatewayProcess::above(pid), Some(GatewayProcess { master: parent }));
        assert_eq!(GatewayProcess::above(i32::MAX), None);
        assert_eq!(
            elsewhere(&[1000], Some(GatewayProcess { master: 7 })).to_string(),
            "uid 0, 1000, 4294967288, and children of the gateway's process 7"
        );
        assert_eq!(elsewhere(&[], Some(GatewayProcess { master: INIT })).to_string(), "uid 0, 4294967288");
    }

    /// Any process becomes a child of the first one by ending its parent.
    #[test]
    fn a_child_of_the_first_process_is_not_its_worker() {
        let orphan = fs::read_dir("/proc").expect("processes").find_map(|process| {
            let pid = process.ok()?.file_name().to_str()?.parse().ok()?;
            (parent_of(pid) == Some(INIT)).then_some(pid)
        });
        let Some(orphan) = orphan else { return };
        let uid = fs::metadata(format!("/proc/{orphan}")).map_or(0, |process| process.uid());
        assert!(!GatewayProcess { master: INIT }.is_parent_of(orphan, uid));
    }

    #[test]
    fn a_user_that_our_namespace_lacks_is_not_taken_for_nobody() {
        assert!(has_all_users("         0          0 4294967295\n"));
        for part in ["0 100000 65536\n", "0 1000 1\n1 100000 65536\n", "0 0 1\n", "1000 0 4294967295\n", ""] {
            assert!(!has_all_users(part), "{part:?}");
        }
        assert!(!is_foreign_to_our_namespace(0) && !is_foreign_to_our_namespace(1000));
    }
}
