//! How long workspaces are waited for, as it is written in a conf.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use apisix_plugin_runner::upstream::{Timeouts, checked_timeout};

/// `timeout` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct TimeoutFields {
    /// How long a connection to the workspace may take, over all its addresses.
    #[serde(default)]
    connect: Option<Time>,
    /// How long the workspace may take nothing of a request.
    #[serde(default)]
    send: Option<Time>,
    /// How long the workspace may say nothing while its answer is awaited.
    #[serde(default)]
    read: Option<Time>,
}

/// A duration with its unit.
#[derive(Clone, Copy, Debug)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(deserializer)?;
        let time = humantime::parse_duration(&text).map_err(|_| {
            D::Error::custom("not a duration with its unit, such as \"6s\", \"800ms\" or \"2m\"")
        })?;
        checked_timeout(time).map(Self).map_err(D::Error::custom)
    }
}

impl From<TimeoutFields> for Timeouts {
    fn from(fields: TimeoutFields) -> Self {
        let [connect, send, read] =
            [fields.connect, fields.send, fields.read].map(|time| time.map(|Time(time)| time));
        Self { connect, send, read }
    }
}
