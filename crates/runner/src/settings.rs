//! The settings of a runner, for programs that hold one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::dispatcher::CallLimits;
use crate::listener::admission::GatewayProcess;
use crate::listener::socket_file::SocketFile;

/// The longest time that a call may take. The gateway waits 60 s for an answer
/// (docs/gateway.md, Connections), and a failed call waits a moment for its request id.
pub const MAX_CALL_DEADLINE: Duration = Duration::from_secs(59);

/// Where a runner listens, and its limits.
///
/// ```
/// use std::time::Duration;
///
/// use apisix_plugin_runner::Settings;
///
/// let settings = Settings::new("/run/my-plugins/runner.sock")
///     .socket_mode(0o660)
///     .call_deadline(Duration::from_secs(2));
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) socket: SocketFile,
    pub(crate) is_mode_chosen: bool,
    pub(crate) has_takeover: bool,
    pub(crate) allowed_uids: BTreeSet<u32>,
    pub(crate) gateway: Option<GatewayProcess>,
    pub(crate) conf_expire_time: Duration,
    pub(crate) max_connections: usize,
    pub(crate) max_confs: usize,
    pub(crate) call: CallLimits,
    pub(crate) drain: Duration,
}

impl Settings {
    /// The defaults, with the socket at this path.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: SocketFile { path: socket.into(), mode: 0o600, owner: None, group: None },
            is_mode_chosen: false,
            has_takeover: true,
            allowed_uids: BTreeSet::new(),
            gateway: None,
            conf_expire_time: Duration::from_secs(3600),
            max_connections: 4096,
            max_confs: 4096,
            call: CallLimits {
                deadline: Duration::from_secs(5),
                questions: 64,
                bytes: 32 << 20,
                asks_request_id: false,
            },
            drain: Duration::from_secs(240),
        }
    }

    /// The path of the socket.
    #[must_use]
    pub fn socket_path(&self) -> &std::path::Path {
        &self.socket.path
    }

    /// How many connections of the gateway are served at a time.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.max_connections
    }

    /// Sets the socket's permission bits. A process needs write permission to connect.
    /// Defaults to `0o666` with [`allow_uid`](Self::allow_uid), else to `0o660` with
    /// [`socket_group`](Self::socket_group), else to `0o600`.
    #[must_use]
    pub fn socket_mode(mut self, mode: u32) -> Self {
        self.socket.mode = mode;
        self.is_mode_chosen = true;
        self
    }

    /// The mode that lets in what the other settings permit, unless a mode was chosen.
    fn widen_mode(&mut self, mode: u32) {
        if !self.is_mode_chosen {
            self.socket.mode = self.socket.mode.max(mode);
        }
    }

    /// Sets the socket's owner by number. Defaults to the user of the process.
    #[must_use]
    pub fn socket_owner(mut self, uid: u32) -> Self {
        self.socket.owner = Some(uid);
        self
    }

    /// Sets the socket's group by number. Defaults to the group of the process.
    #[must_use]
    pub fn socket_group(mut self, gid: u32) -> Self {
        self.socket.group = Some(gid);
        self.widen_mode(0o660);
        self
    }

    /// Also serves processes of this user. Root, the runner's own user, and the workers of
    /// the gateway that started the runner are always served.
    #[must_use]
    pub fn allow_uid(mut self, uid: u32) -> Self {
        self.allowed_uids.insert(uid);
        self.widen_mode(0o666);
        self
    }

    /// Also serves the children of this process: the workers of the gateway that started
    /// the runner.
    #[must_use]
    pub fn gateway(mut self, gateway: Option<GatewayProcess>) -> Self {
        self.gateway = gateway;
        self
    }

    /// Turns off takeover, including the socket `<socket>.takeover`. A restart then closes the
    /// connections.
    #[must_use]
    pub fn without_takeover(mut self) -> Self {
        self.has_takeover = false;
        self
    }

    /// Sets how long the gateway keeps a conf token. The runner keeps it 1.2 times as
    /// long. Defaults to 3600 s, the gateway's own default.
    #[must_use]
    pub fn conf_expire_time(mut self, time: Duration) -> Self {
        self.conf_expire_time = time;
        self
    }

    /// Sets how many connections of the gateway are served at a time. Defaults to 4096.
    #[must_use]
    pub fn max_connections(mut self, count: usize) -> Self {
        self.max_connections = count;
        self
    }

    /// Sets how many prepared confs are kept. Defaults to 4096.
    #[must_use]
    pub fn max_confs(mut self, count: usize) -> Self {
        self.max_confs = count;
        self
    }

    /// Sets how long a call may take, over all its plugins. Defaults to 5 s; higher values
    /// are lowered to [`MAX_CALL_DEADLINE`].
    #[must_use]
    pub fn call_deadline(mut self, deadline: Duration) -> Self {
        self.call.deadline = deadline.min(MAX_CALL_DEADLINE);
        self
    }

    /// Sets how many questions (variables, bodies) a call may ask the gateway. Defaults
    /// to 64.
    #[must_use]
    pub fn max_questions(mut self, count: usize) -> Self {
        self.call.questions = count;
        self
    }

    /// Sets how many bytes a call may copy for answers to its questions, and as many again
    /// for its changes. Defaults to 32 MiB.
    #[must_use]
    pub fn max_call_bytes(mut self, bytes: usize) -> Self {
        self.call.bytes = bytes;
        self
    }

    /// Asks the gateway for the request's id in each call, so that each log line of a
    /// plugin shows it. It costs a round trip to the gateway for each call. By default a
    /// line shows the id once a plugin has asked for it.
    #[must_use]
    pub fn ask_request_id(mut self) -> Self {
        self.call.asks_request_id = true;
        self
    }

    /// Sets how long calls may go on after the runner was told to end. Defaults to 240 s.
    #[must_use]
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain = deadline;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_lets_in_what_is_permitted_unless_it_is_chosen() {
        let mode = |settings: Settings| settings.socket.mode;
        assert_eq!(mode(Settings::new("/s")), 0o600);
        assert_eq!(mode(Settings::new("/s").socket_group(7)), 0o660);
        assert_eq!(mode(Settings::new("/s").allow_uid(7).socket_group(7)), 0o666);
        assert_eq!(mode(Settings::new("/s").allow_uid(7).socket_mode(0o620)), 0o620);
        assert_eq!(mode(Settings::new("/s").socket_mode(0o600).allow_uid(7)), 0o600);
    }
}
