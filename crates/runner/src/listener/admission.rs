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

/// The first process of a container, which inherits every orphan. If it is the gateway's
/// own, a child of it is a worker only if it runs the same program.
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
        owner.is_ok_and(|owner| owner == uid)
            && parent_of(pid) == Some(self.master)
            && (self.master != INIT || runs_the_same(pid, self.master))
    }
}

impl Admission {
    pub(crate) fn new(allowed_uids: BTreeSet<u32>, gateway: Option<GatewayProcess>) -> Self {
        Self { own_uid: rustix::process::geteuid().as_raw(), allowed_uids, gateway }
    }

    pub(crate) fn admits(&self, peer: &UCred) -> bool {
        let uid = peer.uid();
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
        match self.gateway {
            Some(gateway) => write!(formatter, ", and children of the gateway's process {}", gateway.master),
            None => Ok(()),
        }
    }
}

fn runs_the_same(one: i32, other: i32) -> bool {
    let program = |pid| fs::read_link(format!("/proc/{pid}/exe"));
    program(one).is_ok_and(|one| program(other).is_ok_and(|other| one == other))
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
        assert!(runs_the_same(pid, pid) && !runs_the_same(pid, parent) && !runs_the_same(pid, i32::MAX));
        assert_eq!(GatewayProcess::above(pid), Some(GatewayProcess { master: parent }));
        assert_eq!(GatewayProcess::above(i32::MAX), None);
        assert_eq!(
            elsewhere(&[1000], Some(GatewayProcess { master: 7 })).to_string(),
            "uid 0, 1000, 4294967288, and children of the gateway's process 7"
        );
    }
}
