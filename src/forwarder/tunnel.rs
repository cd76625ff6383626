//! What follows an upgrade: bytes both ways, which are none of our business.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// Copies both ways until both sides have ended, or one has failed.
///
/// An end of one side is passed to the other as what it is: that side may
/// still speak. What either side sent before the upgrade was complete has been
/// read already and comes first.
pub(super) async fn run(gateway: OnUpgrade, workspace: OnUpgrade, request_id: &str) {
    let upgraded = tokio::try_join!(gateway, workspace);
    let copied = match upgraded {
        Ok((gateway, workspace)) => {
            tokio::io::copy_bidirectional(&mut TokioIo::new(gateway), &mut TokioIo::new(workspace)).await
        }
        Err(error) => {
            tracing::debug!(request_id, %error, "upgrade failed");
            return;
        }
    };
    match copied {
        Ok((to_workspace, to_gateway)) => {
            tracing::debug!(request_id, to_workspace, to_gateway, "tunnel ended");
        }
        Err(error) => tracing::debug!(request_id, %error, "tunnel broke off"),
    }
}
