//! What the check knows of the runner: a test of the whole program holds these equal to the
//! runner's own.

use std::time::Duration;

/// The runner's plugin that sends users to their workspaces.
pub const USER_UPSTREAM: &str = "user-upstream";

/// The header of the runner's choice of upstream in forward mode.
pub const STAMP_HEADER: &str = "x-kube-coders-stamp";

/// The header of the runner's choice of upstream in direct mode.
pub const DECISION_HEADER: &str = "x-kube-coders-upstream";

/// How long the runner waits for a workspace's answer if neither its conf nor
/// `--read-timeout` says otherwise.
pub const READ_TIMEOUT: Duration = Duration::from_secs(300);
