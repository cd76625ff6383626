//! Where a request goes: the destination that a plugin chooses for it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _};
use thiserror::Error;

/// How long a DNS name may be, in bytes without a final dot (RFC 1035, section
/// 2.3.4: 255 bytes on the wire, which is 253 as text).
pub const MAX_NAME: usize = 253;

/// How long one label of a DNS name may be, in bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// How long a subject may be, in characters (OpenID Connect Core 1.0, section 2).
const MAX_SUBJECT: usize = 255;

/// The shortest timeout of an upstream.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(1);
/// The longest timeout of an upstream.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

/// How a workspace is spoken to.
///
/// ```
/// use apisix_plugin_runner::Scheme;
///
/// let scheme: Scheme = "https".parse()?;
/// assert_eq!((scheme, scheme.as_str()), (Scheme::Https, "https"));
/// # Ok::<(), apisix_plugin_runner::UpstreamError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// HTTP/1.1 without TLS.
    Http,
    /// HTTP/1.1 within TLS; the certificate is for the upstream's host.
    Https,
}

impl Scheme {
    /// The scheme as it is written before `://`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl FromStr for Scheme {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        match text {
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            _ => Err(UpstreamError::Scheme),
        }
    }
}

/// A DNS name in lower case without a final dot, or an IP address.
///
/// Labels hold letters, digits, `-` and `_`, one to 63 of them, and a name at
/// most 253 bytes.
///
/// ```
/// use apisix_plugin_runner::HostName;
///
/// let name: HostName = "Code-Alice.Example".parse()?;
/// assert_eq!(name.as_str(), "code-alice.example");
/// let address: HostName = "[::1]".parse()?;
/// assert_eq!(address.as_ip(), Some(std::net::Ipv6Addr::LOCALHOST.into()));
/// # Ok::<(), apisix_plugin_runner::UpstreamError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// The name as text. An IPv6 address has no brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, if this is one and no name.
    #[must_use]
    pub fn as_ip(&self) -> Option<IpAddr> {
        // No top-level domain is numeric and every IPv6 address has a colon, so
        // most names are told apart by their last byte.
        match self.0.as_bytes().last() {
            Some(byte) if byte.is_ascii_hexdigit() || *byte == b':' => self.0.parse().ok(),
            _ => None,
        }
    }
}

impl FromStr for HostName {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(inside) = bracketed {
            let address: IpAddr = inside.parse().map_err(|_| UpstreamError::Host)?;
            return match address {
                IpAddr::V6(_) => Ok(Self(address.to_string().into())),
                IpAddr::V4(_) => Err(UpstreamError::Host),
            };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.to_string().into()));
        }
        let label_is_valid = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = text.rsplit('.').next().unwrap_or_default();
        if text.len() > MAX_NAME || is_numeric(last) || !text.split('.').all(label_is_valid) {
            return Err(UpstreamError::Host);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

/// Whether a label is a number.
///
/// A name whose last label is a number would be read as an IPv4 address by some
/// (RFC 1123, section 2.1), and `1.2.3` or `0x7f.1` is never meant.
///
/// ```
/// use apisix_plugin_runner::upstream::is_numeric;
///
/// assert!(is_numeric("1") && is_numeric("0x7f"));
/// assert!(!is_numeric("1a"));
/// ```
#[must_use]
pub fn is_numeric(label: &str) -> bool {
    match label.strip_prefix("0x").or_else(|| label.strip_prefix("0X")) {
        Some(rest) => rest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// How a request gets to its upstream.
///
/// ```
/// use apisix_plugin_runner::{Upstream, UpstreamMode};
///
/// let upstream: Upstream = "http://code-alice:8443".parse()?;
/// let upstream = upstream.in_mode("direct".parse()?);
/// assert_eq!(upstream.mode(), Some(UpstreamMode::Direct));
/// # Ok::<(), apisix_plugin_runner::UpstreamError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamMode {
    /// Through a forwarder, which the route has as its upstream.
    Forward,
    /// By the gateway's own proxy. A small plugin in the gateway reads the choice from a
    /// header.
    Direct,
}

impl UpstreamMode {
    /// The mode as it is written in settings and confs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Direct => "direct",
        }
    }
}

impl FromStr for UpstreamMode {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        match text {
            "forward" => Ok(Self::Forward),
            "direct" => Ok(Self::Direct),
            _ => Err(UpstreamError::Mode),
        }
    }
}

/// How long to wait for an upstream; `None` leaves it to the carrier's settings.
///
/// ```
/// use std::time::Duration;
///
/// use apisix_plugin_runner::Upstream;
/// use apisix_plugin_runner::upstream::Timeouts;
///
/// let timeouts = Timeouts { connect: Some(Duration::from_secs(2)), ..Timeouts::default() };
/// let upstream: Upstream = "http://code-alice:8443".parse()?;
/// assert_eq!(upstream.with_timeouts(timeouts).timeouts().read, None);
/// # Ok::<(), apisix_plugin_runner::UpstreamError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// To connect to it, over all its addresses.
    pub connect: Option<Duration>,
    /// Until it takes more of what is sent to it.
    pub send: Option<Duration>,
    /// Until it sends more of its response.
    pub read: Option<Duration>,
}

impl Timeouts {
    fn clamped(self) -> Self {
        let clamped = |timeout: Option<Duration>| timeout.map(clamped_timeout);
        Self { connect: clamped(self.connect), send: clamped(self.send), read: clamped(self.read) }
    }
}

/// A destination for one request: scheme, host name, port, the subject on whose behalf the
/// request goes there, and timeouts.
///
/// ```
/// use apisix_plugin_runner::Upstream;
///
/// let upstream: Upstream = "http://code-alice:8443".parse()?;
/// assert_eq!(upstream.host().as_str(), "code-alice");
/// assert_eq!(upstream.for_subject("alice")?.to_string(), "http://code-alice:8443");
/// # Ok::<(), apisix_plugin_runner::UpstreamError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    scheme: Scheme,
    host: HostName,
    port: u16,
    subject: Option<Arc<str>>,
    timeouts: Timeouts,
    mode: Option<UpstreamMode>,
}

impl Upstream {
    /// A destination without a subject.
    ///
    /// # Errors
    ///
    /// Port 0 is refused.
    pub fn new(scheme: Scheme, host: HostName, port: u16) -> Result<Self, UpstreamError> {
        if port == 0 {
            return Err(UpstreamError::Port);
        }
        Ok(Self { scheme, host, port, subject: None, timeouts: Timeouts::default(), mode: None })
    }

    /// Sets the subject on whose behalf the request goes there.
    ///
    /// # Errors
    ///
    /// A subject that is empty or longer than 255 characters (OpenID Connect
    /// Core 1.0, section 2).
    pub fn for_subject(mut self, subject: impl Into<Arc<str>>) -> Result<Self, UpstreamError> {
        let subject = subject.into();
        if subject.is_empty() || subject.chars().nth(MAX_SUBJECT).is_some() {
            return Err(UpstreamError::Subject);
        }
        self.subject = Some(subject);
        Ok(self)
    }

    /// Sets how long connecting may take in total, over all addresses of the host.
    /// Defaults to the carrier's setting.
    ///
    /// # Errors
    ///
    /// Less than a millisecond, or more than a day.
    pub fn connect_timeout(mut self, timeout: Duration) -> Result<Self, UpstreamError> {
        self.timeouts.connect = Some(checked_timeout(timeout)?);
        Ok(self)
    }

    /// Sets how long the upstream may take no more of the request. Defaults to the
    /// carrier's setting.
    ///
    /// # Errors
    ///
    /// Less than a millisecond, or more than a day.
    pub fn send_timeout(mut self, timeout: Duration) -> Result<Self, UpstreamError> {
        self.timeouts.send = Some(checked_timeout(timeout)?);
        Ok(self)
    }

    /// Sets how long the upstream may send nothing while its response is awaited. Defaults
    /// to the carrier's setting.
    ///
    /// # Errors
    ///
    /// Less than a millisecond, or more than a day.
    pub fn read_timeout(mut self, timeout: Duration) -> Result<Self, UpstreamError> {
        self.timeouts.read = Some(checked_timeout(timeout)?);
        Ok(self)
    }

    /// Sets how the request gets there, for a carrier that knows several ways. Defaults to
    /// the carrier's setting.
    #[must_use]
    pub fn in_mode(mut self, mode: UpstreamMode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// How the upstream is reached, if the plugin said so.
    #[must_use]
    pub fn mode(&self) -> Option<UpstreamMode> {
        self.mode
    }

    /// Replaces all three timeouts. One that is shorter than a millisecond, or longer than a
    /// day, is set to that.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts.clamped();
        self
    }

    /// The timeouts that the plugin chose.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// How the upstream is spoken to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host name, or the address, that the request goes to.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// The TCP port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// On whose behalf the request goes there, if the plugin said so.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }
}

/// The nearest timeout from 1 ms to a day.
pub(crate) fn clamped_timeout(timeout: Duration) -> Duration {
    timeout.clamp(MIN_TIMEOUT, MAX_TIMEOUT)
}

/// A timeout from 1 ms to a day.
///
/// ```
/// use std::time::Duration;
///
/// use apisix_plugin_runner::UpstreamError;
/// use apisix_plugin_runner::upstream::checked_timeout;
///
/// let second = Duration::from_secs(1);
/// assert_eq!(checked_timeout(second), Ok(second));
/// assert_eq!(checked_timeout(Duration::ZERO), Err(UpstreamError::Timeout));
/// ```
///
/// # Errors
///
/// [`UpstreamError::Timeout`] for a timeout outside this range.
pub fn checked_timeout(timeout: Duration) -> Result<Duration, UpstreamError> {
    if (MIN_TIMEOUT..=MAX_TIMEOUT).contains(&timeout) { Ok(timeout) } else { Err(UpstreamError::Timeout) }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    /// Reads `http://host:port` or `https://host:port`; the port is required.
    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let (scheme, rest) = text.split_once("://").ok_or(UpstreamError::Scheme)?;
        let scheme = scheme.parse()?;
        let (host, port) = rest.rsplit_once(':').ok_or(UpstreamError::Port)?;
        // `parse` would take a sign.
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UpstreamError::Port);
        }
        if host.contains(':') && !host.starts_with('[') {
            return Err(UpstreamError::Host);
        }
        Self::new(scheme, host.parse()?, port.parse().map_err(|_| UpstreamError::Port)?)
    }
}

impl<'de> Deserialize<'de> for Upstream {
    /// Reads the text `http://host:port`, so that a plugin's config can hold one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port) = (self.scheme.as_str(), self.port);
        match self.host.as_str() {
            host if host.contains(':') => write!(formatter, "{scheme}://[{host}]:{port}"),
            host => write!(formatter, "{scheme}://{host}:{port}"),
        }
    }
}

/// Why a text is no upstream.
///
/// The text itself is not repeated: it may come from a client.
///
/// ```
/// use apisix_plugin_runner::{Upstream, UpstreamError};
///
/// assert_eq!("ftp://files:21".parse::<Upstream>(), Err(UpstreamError::Scheme));
/// assert_eq!("http://code-alice".parse::<Upstream>(), Err(UpstreamError::Port));
/// assert_eq!("http://a b:80".parse::<Upstream>(), Err(UpstreamError::Host));
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The text does not start with `http://` or `https://`.
    #[error("an upstream starts with http:// or https://")]
    Scheme,
    /// The text between scheme and port is neither a DNS name nor an IP address.
    #[error("the upstream's host is neither a DNS name nor an IP address (IPv6 in brackets)")]
    Host,
    /// The subject is empty or too long.
    #[error("a subject has 1 to {MAX_SUBJECT} characters")]
    Subject,
    /// Neither `forward` nor `direct`.
    #[error("a request goes to its upstream by \"forward\" or \"direct\"")]
    Mode,
    /// A time to wait is zero, or too long.
    #[error("a timeout is between 1 ms and 1 day")]
    Timeout,
    /// The port is missing or not between 1 and 65535.
    #[error("the upstream needs a port from 1 to 65535 behind its host, and nothing after it")]
    Port,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, UpstreamError>) {
        let parsed = text.parse::<Upstream>().map(|upstream| upstream.to_string());
        assert_eq!(parsed.as_deref(), expected.as_ref().map(|text| *text), "{text}");
    }

    #[test]
    fn upstreams_are_read_and_shown() {
        check("http://code-alice:8443", Ok("http://code-alice:8443"));
        check("http://Code-Alice.Example:80", Ok("http://code-alice.example:80"));
        check("http://127.0.0.1:65535", Ok("http://127.0.0.1:65535"));
        check("http://[::1]:1", Ok("http://[::1]:1"));
        check("https://Code-Alice:8443", Ok("https://code-alice:8443"));
    }

    /// The gateway's plugin reads the same table: what is a host here must be one there.
    #[test]
    fn the_table_of_hosts_holds() {
        #[derive(serde::Deserialize)]
        struct Case {
            host: String,
            is_host: bool,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/vectors/hosts.json")).unwrap();
        assert!(cases.len() > 30);
        for Case { host, is_host } in cases {
            let name = host.parse::<HostName>();
            assert_eq!(name.is_ok_and(|name| name.as_str() == host), is_host, "{host:?}");
        }
    }

    #[test]
    fn a_subject_has_a_length() {
        let upstream = || "http://a:1".parse::<Upstream>().unwrap();
        assert_eq!(upstream().for_subject("김".repeat(255)).unwrap().subject(), Some(&*"김".repeat(255)));
        for subject in [String::new(), "김".repeat(256)] {
            let error = upstream().for_subject(subject).unwrap_err();
            assert_eq!(error.to_string(), "a subject has 1 to 255 characters");
        }
    }

    #[test]
    fn a_timeout_is_neither_nothing_nor_a_day_and_more() {
        let upstream = || "http://a:1".parse::<Upstream>().unwrap();
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let timeouts = upstream().connect_timeout(second).and_then(|it| it.send_timeout(day)).unwrap();
        let expected = Timeouts { connect: Some(second), send: Some(day), read: None };
        assert_eq!(timeouts.timeouts(), expected);
        assert_eq!(upstream().read_timeout(second).unwrap().timeouts().read, Some(second));
        for wrong in [Duration::ZERO, Duration::from_micros(999), day + Duration::from_nanos(1)] {
            for error in [
                upstream().connect_timeout(wrong).unwrap_err(),
                upstream().send_timeout(wrong).unwrap_err(),
                upstream().read_timeout(wrong).unwrap_err(),
            ] {
                assert_eq!(error.to_string(), "a timeout is between 1 ms and 1 day");
            }
        }
    }

    #[test]
    fn an_invalid_upstream_is_refused() {
        check("", Err(UpstreamError::Scheme));
        check("ftp://a:1", Err(UpstreamError::Scheme));
        for host in [
            "",
            "a b",
            "a..b",
            ".",
            "-a",
            "a-",
            "a/b",
            "a@b",
            "1.2.3",
            "0x7f.0x1",
            "2130706433",
            "::1",
            "[127.0.0.1]",
            "ü",
        ] {
            check(&format!("http://{host}:80"), Err(UpstreamError::Host));
        }
        check(&format!("http://{}:80", "a".repeat(64)), Err(UpstreamError::Host));
        check(
            &format!("http://{}:80", ["a"; 127].join(".")),
            Ok(&format!("http://{}:80", ["a"; 127].join("."))),
        );
        check(&format!("http://{}:80", ["a"; 128].join(".")), Err(UpstreamError::Host));
        for port in ["", "0", "65536", "+80", "80/", "8 0"] {
            check(&format!("http://a:{port}"), Err(UpstreamError::Port));
        }
        check("http://a", Err(UpstreamError::Port));
    }
}
