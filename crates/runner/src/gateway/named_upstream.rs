//! An upstream as a text, for runners in memory whose choices a test wants to see.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::upstream::{Timeouts, Upstream};

#[derive(Serialize, Deserialize)]
struct NamedUpstream {
    url: String,
    subject: Option<String>,
    connect: Option<Duration>,
    send: Option<Duration>,
    read: Option<Duration>,
    mode: Option<String>,
}

pub(super) fn write(upstream: &Upstream) -> String {
    let Timeouts { connect, send, read } = upstream.timeouts();
    let named = NamedUpstream {
        url: upstream.to_string(),
        subject: upstream.subject().map(str::to_owned),
        connect,
        send,
        read,
        mode: upstream.mode().map(|mode| mode.as_str().to_owned()),
    };
    serde_json::to_string(&named).expect("texts and numbers are JSON")
}

pub(super) fn read(header: &[u8]) -> Option<Upstream> {
    let NamedUpstream { url, subject, connect, send, read, mode } = serde_json::from_slice(header).ok()?;
    let mut upstream = url.parse::<Upstream>().ok()?.with_timeouts(Timeouts { connect, send, read });
    if let Some(subject) = subject {
        upstream = upstream.for_subject(subject).ok()?;
    }
    if let Some(mode) = mode {
        upstream = upstream.in_mode(mode.parse().ok()?);
    }
    Some(upstream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamMode;

    #[test]
    fn a_written_frame_is_read() {
        let plain: Upstream = "http://[::1]:80".parse().unwrap();
        let full = "https://code-a:8443".parse::<Upstream>().unwrap().for_subject("조").unwrap();
        let full = full.connect_timeout(Duration::from_millis(1)).unwrap().in_mode(UpstreamMode::Direct);
        for upstream in [plain, full] {
            assert_eq!(read(write(&upstream).as_bytes()), Some(upstream));
        }
    }
}
