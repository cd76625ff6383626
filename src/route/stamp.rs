//! The stamp: the mark that carries an upstream from a plugin to the forwarder,
//! and that only a holder of the key can make.
//!
//! A header's value, base64 without padding in the URL-safe alphabet, of:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 3 |
//! | 8 | expiry, seconds since 1970, big-endian |
//! | 4 + 4 + 4 | how long to wait: to connect, to send, to read, in milliseconds, big-endian; 0 for the forwarder's setting |
//! | 1 | scheme: 0 for http, 1 for https |
//! | 2 | port, big-endian |
//! | 1 | length of the host name |
//! | … | host name |
//! | 2 | length of the subject, big-endian; 0 for none |
//! | … | subject |
//! | … | names of headers that plugins set, in lower case, of cookies that they remove, each with `=` before it, and of the route, with `:` before it; a line feed follows each name |
//! | 32 | HMAC-SHA256 of all before it |
//!
//! Upstream, subject and names are under the MAC, so the stamp is bound to them.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use thiserror::Error;

use super::key_file::KeyBytes;
#[cfg(test)]
use super::key_file::MIN_KEY;
use apisix_plugin_runner::CookieNames;
use apisix_plugin_runner::upstream::{Scheme, Timeouts, Upstream};

/// The header that carries the stamp from the gateway to the forwarder.
pub(crate) const STAMP_HEADER: &str = "x-kube-coders-stamp";

const VERSION: u8 = 3;

/// What is before the name of a cookie, and in no header's name.
const COOKIE: char = '=';

/// What is before the id of the route, and in no header's name.
const ROUTE: char = ':';

/// How many bytes of a route's id are carried. The gateway accepts 64 by its Admin API.
const MAX_ROUTE: usize = 128;

const MAC: usize = 32;
const BEFORE_HOST: usize = 1 + 8 + 3 * 4 + 1 + 2 + 1;

/// How many bytes the names of headers and cookies may have. A hundred names of 40 bytes fit.
pub(crate) const MAX_NAMES: usize = 4096;

/// How long a stamp may be as a header's value. Host name, subject and names have at most
/// 253, 1,020 and 4,096 bytes; a longer stamp is not ours.
const MAX_TEXT: usize = 8192;

/// What a stamp says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamped {
    pub(crate) upstream: Upstream,
    pub(crate) names: StampedNames,
}

/// The names of headers that plugins set, which no client may remove, of cookies that
/// plugins remove, also from lines that the gateway did not show them, and of the route, for
/// the log.
///
/// The stamp's text of them. A header's name has neither `=` nor `:`, so a forwarder that knows
/// nothing of cookies or routes reads the stamp as well: two versions serve side by side during
/// a takeover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StampedNames(String);

impl StampedNames {
    /// The names of headers, in lower case, and of cookies; `None` if they are too many for a
    /// stamp.
    pub(crate) fn new<'n>(
        headers: impl IntoIterator<Item = &'n str>,
        cookies: impl IntoIterator<Item = &'n str>,
    ) -> Option<Self> {
        let mut names = Self::default();
        for header in headers {
            names.0.push_str(header);
            names.0.push('\n');
        }
        let headers = names.0.len();
        for cookie in cookies {
            let is_new = names.0[headers..].lines().all(|line| line.strip_prefix(COOKIE) != Some(cookie));
            if is_new {
                names.0.push(COOKIE);
                names.0.push_str(cookie);
                names.0.push('\n');
            }
        }
        (names.0.len() <= MAX_NAMES && names.cookies().is_some()).then_some(names)
    }

    /// The same with the id of a route, unless it is long or not plain.
    pub(crate) fn with_route(mut self, route: &str) -> Self {
        let is_plain = route.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain && route.len() <= MAX_ROUTE && self.0.len() + route.len() + 2 <= MAX_NAMES {
            self.0.push(ROUTE);
            self.0.push_str(route);
            self.0.push('\n');
        }
        self
    }

    /// The id of the route.
    pub(crate) fn route(&self) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(ROUTE))
    }

    /// Whether plugins set a header of this name, whatever its case.
    pub(crate) fn has_header(&self, name: &[u8]) -> bool {
        self.0.lines().any(|header| name.eq_ignore_ascii_case(header.as_bytes()))
    }

    /// The cookies that plugins removed; `None` if they are more than a list can have.
    pub(crate) fn cookies(&self) -> Option<CookieNames> {
        CookieNames::new(self.0.lines().filter_map(|line| line.strip_prefix(COOKIE))).ok()
    }
}

/// The secret that stamps are made and checked with.
#[derive(Clone)]
pub(crate) struct StampKey {
    keyed: Hmac<Sha256>,
}

impl StampKey {
    /// A key that no other process has and that ends with this process.
    #[cfg(test)]
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; MIN_KEY];
        getrandom::fill(&mut secret)?;
        Ok(Self::new(&KeyBytes::new(&secret).expect("the secret has the length that a key needs")))
    }

    pub(crate) fn new(key: &KeyBytes) -> Self {
        Self { keyed: Hmac::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length") }
    }

    /// The stamp for this upstream without names, valid until `expires`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn make(&self, upstream: &Upstream, expires: SystemTime) -> String {
        self.make_with_names(upstream, &StampedNames::default(), expires)
    }

    /// The stamp for this upstream and these names, valid until `expires`.
    pub(crate) fn make_with_names(
        &self,
        upstream: &Upstream,
        names: &StampedNames,
        expires: SystemTime,
    ) -> String {
        let host = upstream.host().as_str().as_bytes();
        let subject = upstream.subject().map(str::as_bytes).unwrap_or_default();
        let mut bytes =
            Vec::with_capacity(BEFORE_HOST + host.len() + 2 + subject.len() + names.0.len() + MAC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&unix_seconds(expires).to_be_bytes());
        let Timeouts { connect, send, read } = upstream.timeouts();
        for timeout in [connect, send, read] {
            let milliseconds = timeout.map_or(0, |timeout| timeout.as_millis());
            let milliseconds = u32::try_from(milliseconds).expect("a timeout is at most a day");
            bytes.extend_from_slice(&milliseconds.to_be_bytes());
        }
        bytes.push(match upstream.scheme() {
            Scheme::Http => 0,
            Scheme::Https => 1,
        });
        bytes.extend_from_slice(&upstream.port().to_be_bytes());
        bytes.push(u8::try_from(host.len()).expect("a host name has at most 253 bytes"));
        bytes.extend_from_slice(host);
        let length = u16::try_from(subject.len()).expect("a subject has at most 255 characters");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(subject);
        bytes.extend_from_slice(names.0.as_bytes());
        let mac = self.keyed.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The upstream of a stamp that this key made and that is still valid.
    #[cfg(test)]
    pub(crate) fn check(&self, stamp: &[u8], now: SystemTime) -> Result<Upstream, StampError> {
        self.open(stamp, now).map(|stamped| stamped.upstream)
    }

    /// What a stamp says that this key made and that is still valid.
    pub(crate) fn open(&self, stamp: &[u8], now: SystemTime) -> Result<Stamped, StampError> {
        if stamp.len() > MAX_TEXT {
            return Err(StampError::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(stamp).map_err(|_| StampError::Forged)?;
        let (content, mac) = bytes.split_last_chunk::<MAC>().ok_or(StampError::Forged)?;
        // The comparison takes the same time wherever the two differ.
        self.keyed.clone().chain_update(content).verify_slice(mac).map_err(|_| StampError::Forged)?;
        let (expires, stamped) = decode(content).ok_or(StampError::Forged)?;
        if unix_seconds(now) >= expires {
            return Err(StampError::Expired);
        }
        Ok(stamped)
    }
}

impl fmt::Debug for StampKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StampKey(…)")
    }
}

/// Makes the runner's stamps: a key, and for how long its stamps are good.
#[derive(Clone, Debug)]
pub(crate) struct Stamper {
    pub(crate) key: StampKey,
    pub(crate) lifetime: Duration,
}

impl Stamper {
    pub(crate) fn stamp(&self, upstream: &Upstream, names: &StampedNames) -> String {
        self.key.make_with_names(upstream, names, SystemTime::now() + self.lifetime)
    }
}

/// Why a stamp is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum StampError {
    #[error("no stamp")]
    Missing,
    #[error("more than one stamp")]
    Repeated,
    #[error("not a stamp of this key")]
    Forged,
    #[error("expired")]
    Expired,
}

/// Whole seconds, rounded down, so that a stamp lives up to a second less.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn decode(content: &[u8]) -> Option<(u64, Stamped)> {
    let (&[version], content) = content.split_first_chunk()?;
    let (expires, content) = content.split_first_chunk()?;
    let mut timeouts = [None; 3];
    let mut content = content;
    for timeout in &mut timeouts {
        let (milliseconds, rest) = content.split_first_chunk()?;
        let milliseconds = u32::from_be_bytes(*milliseconds);
        *timeout = (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()));
        content = rest;
    }
    let [connect, send, read] = timeouts;
    let (&[scheme], content) = content.split_first_chunk()?;
    let (port, content) = content.split_first_chunk()?;
    let (&[host_length], content) = content.split_first_chunk()?;
    let (host, content) = content.split_at_checked(host_length.into())?;
    let (subject_length, content) = content.split_first_chunk()?;
    let (subject, names) = content.split_at_checked(u16::from_be_bytes(*subject_length).into())?;
    if version != VERSION {
        return None;
    }
    let host = std::str::from_utf8(host).ok()?.parse().ok()?;
    let scheme = match scheme {
        0 => Scheme::Http,
        1 => Scheme::Https,
        _ => return None,
    };
    let upstream = Upstream::new(scheme, host, u16::from_be_bytes(*port)).ok()?;
    let upstream = match subject {
        [] => upstream,
        subject => upstream.for_subject(std::str::from_utf8(subject).ok()?).ok()?,
    };
    let upstream = upstream.with_timeouts(Timeouts { connect, send, read });
    let names = StampedNames(std::str::from_utf8(names).ok()?.to_owned());
    Some((u64::from_be_bytes(*expires), Stamped { upstream, names }))
}

/// The upstream that a stamp names. The MAC is not checked, so use it only to show the
/// stamp to people, never to decide.
pub(crate) fn claimed_upstream(stamp: &[u8]) -> Option<Upstream> {
    let bytes = URL_SAFE_NO_PAD.decode(stamp).ok()?;
    let (content, _) = bytes.split_last_chunk::<MAC>()?;
    decode(content).map(|(_, stamped)| stamped.upstream)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; MIN_KEY] = [7; MIN_KEY];

    fn key() -> StampKey {
        StampKey::new(&KeyBytes::new(&SECRET).unwrap())
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn alice() -> Upstream {
        "http://code-alice:8443".parse::<Upstream>().unwrap().for_subject("alice").unwrap()
    }

    #[test]
    fn a_stamp_with_any_changed_byte_is_refused() {
        let stamp = key().make(&alice(), at(100)).into_bytes();
        assert_eq!(key().check(&stamp, at(0)), Ok(alice()));
        for position in 0..stamp.len() {
            for flip in [0x01, 0x02, 0x10, 0x20, 0x80] {
                let mut changed = stamp.clone();
                changed[position] ^= flip;
                assert_eq!(key().check(&changed, at(0)), Err(StampError::Forged), "byte {position} ^ {flip}");
            }
        }
        // The same under the base64, where every bit can be reached.
        let bytes = URL_SAFE_NO_PAD.decode(&stamp).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let changed = URL_SAFE_NO_PAD.encode(changed);
            assert_eq!(key().check(changed.as_bytes(), at(0)), Err(StampError::Forged), "bit {bit}");
        }
    }

    #[test]
    fn the_names_of_headers_and_cookies_travel_with_the_stamp() {
        let names = StampedNames::new(["x-greeting", "x-team"], ["session", "Own", "session"]).unwrap();
        let stamp = key().make_with_names(&alice(), &names, at(100));
        let stamped = key().open(stamp.as_bytes(), at(0)).unwrap();
        assert_eq!(stamped, Stamped { upstream: alice(), names });
        assert!(stamped.names.has_header(b"X-Greeting") && stamped.names.has_header(b"x-team"));
        assert!(["x-gree", "", "session"].iter().all(|name| !stamped.names.has_header(name.as_bytes())));
        assert_eq!(stamped.names.cookies(), CookieNames::new(["session", "Own"]).ok());
        assert_eq!(StampedNames::default().cookies(), CookieNames::new([""; 0]).ok());
    }

    #[test]
    fn a_stamp_tells_the_route_if_it_is_plain_and_there_is_room() {
        let names = || StampedNames::new(["x-team"], ["session"]).unwrap();
        let stamp = key().make_with_names(&alice(), &names().with_route("r-1.a"), at(9));
        let opened = key().open(stamp.as_bytes(), at(0)).unwrap().names;
        assert_eq!(opened.route(), Some("r-1.a"));
        assert!(opened.has_header(b"x-team") && !opened.has_header(b"r-1.a"));
        assert_eq!(opened.cookies(), CookieNames::new(["session"]).ok());
        for route in ["a b", "a\nx-evil", "\u{e4}", &"r".repeat(129)] {
            assert_eq!(names().with_route(route), names(), "{route:?}");
        }
        let full = StampedNames::new(["x"; MAX_NAMES / 2], []).unwrap();
        assert_eq!(full.clone().with_route("r"), full);
        assert_eq!(names().route(), None);
    }

    #[test]
    fn a_stamp_holds_so_many_names_and_no_more() {
        assert_eq!(StampedNames::new(["x"; MAX_NAMES], []), None);
        assert_eq!(StampedNames::new(["x"; MAX_NAMES / 2], ["c"]), None);
        assert!(StampedNames::new(["x"; MAX_NAMES / 2], []).is_some());
        let cookies: Vec<_> = (0..65).map(|number| format!("c{number}")).collect();
        assert!(StampedNames::new([], cookies[..64].iter().map(|name| &**name)).is_some());
        assert_eq!(StampedNames::new([], cookies.iter().map(|name| &**name)), None);
    }

    #[test]
    fn a_stamp_that_was_cut_or_extended_is_refused() {
        let stamp = key().make(&alice(), at(100));
        for length in 0..stamp.len() {
            assert_eq!(key().check(&stamp.as_bytes()[..length], at(0)), Err(StampError::Forged), "{length}");
            assert_eq!(
                key().check(&stamp.as_bytes()[length + 1..], at(0)),
                Err(StampError::Forged),
                "{length}"
            );
        }
        for more in ["A", "AA", "AAA", "AAAA", "=", "==", " ", "\n", ",", "\0"] {
            for extended in [format!("{stamp}{more}"), format!("{more}{stamp}")] {
                assert_eq!(key().check(extended.as_bytes(), at(0)), Err(StampError::Forged), "{extended:?}");
            }
        }
        let long = "A".repeat(MAX_TEXT + 1);
        assert_eq!(key().check(long.as_bytes(), at(0)), Err(StampError::Forged));
    }

    #[test]
    fn a_stamp_of_another_key_is_refused() {
        let mut other = SECRET;
        other[MIN_KEY - 1] ^= 1;
        let stamp = StampKey::new(&KeyBytes::new(&other).unwrap()).make(&alice(), at(100));
        assert_eq!(key().check(stamp.as_bytes(), at(0)), Err(StampError::Forged));
        let random = StampKey::random().unwrap();
        let stamp = random.make(&alice(), at(100));
        assert_eq!(random.check(stamp.as_bytes(), at(0)), Ok(alice()));
        assert_eq!(StampKey::random().unwrap().check(stamp.as_bytes(), at(0)), Err(StampError::Forged));
    }

    #[test]
    fn a_stamp_expires_at_its_second() {
        let stamp = key().make(&alice(), at(100));
        let check = |now| key().check(stamp.as_bytes(), now).map(|_| ());
        assert_eq!(check(at(99) + Duration::from_nanos(999_999_999)), Ok(()));
        assert_eq!(check(at(100)), Err(StampError::Expired));
        assert_eq!(check(at(101)), Err(StampError::Expired));
        // A clock before 1970 reads as 1970, and what never was good stays so.
        assert_eq!(check(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), Ok(()));
        let never = key().make(&alice(), SystemTime::UNIX_EPOCH);
        assert_eq!(key().check(never.as_bytes(), at(0)), Err(StampError::Expired));
    }

    #[test]
    fn a_stamp_depends_on_its_user_and_upstream() {
        let bob = "http://code-alice:8443".parse::<Upstream>().unwrap().for_subject("bob").unwrap();
        let without_subject: Upstream = "http://code-alice:8443".parse().unwrap();
        let secure = "https://code-alice:8443".parse::<Upstream>().unwrap().for_subject("alice").unwrap();
        let elsewhere = "http://code-alice:8444".parse::<Upstream>().unwrap().for_subject("alice").unwrap();
        let stamps: Vec<_> = [alice(), bob.clone(), without_subject.clone(), elsewhere, secure]
            .iter()
            .map(|to| key().make(to, at(100)))
            .collect();
        for (position, stamp) in stamps.iter().enumerate() {
            assert!(!stamps[..position].contains(stamp));
        }
        assert_eq!(key().check(stamps[1].as_bytes(), at(0)), Ok(bob));
        assert_eq!(key().check(stamps[2].as_bytes(), at(0)), Ok(without_subject));
    }

    #[test]
    fn a_short_secret_is_refused_and_no_secret_is_shown() {
        assert!(KeyBytes::new(&[]).is_none());
        assert!(KeyBytes::new(&[7; MIN_KEY - 1]).is_none());
        let stamper = Stamper { key: key(), lifetime: Duration::from_secs(5) };
        assert_eq!(format!("{stamper:?}"), "Stamper { key: StampKey(…), lifetime: 5s }");
    }

    #[test]
    fn refusals_are_worded() {
        let texts = [StampError::Missing, StampError::Repeated, StampError::Forged, StampError::Expired]
            .map(|error| error.to_string());
        assert_eq!(texts, ["no stamp", "more than one stamp", "not a stamp of this key", "expired"]);
    }

    proptest! {
        #[test]
        fn a_stamp_opens_to_its_content(
            host in "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\\.[a-z][a-z0-9]{0,10}){0,3}\\.x",
            port in 1..=u16::MAX,
            subject in proptest::option::of(".{1,255}"),
            lifetime in 1..1_000_000_u64,
            is_secure in any::<bool>(),
            timeouts in proptest::array::uniform3(proptest::option::of(1..86_400_000_u64)),
        ) {
            let [connect, send, read] = timeouts.map(|timeout| timeout.map(Duration::from_millis));
            let scheme = if is_secure { Scheme::Https } else { Scheme::Http };
            let upstream = Upstream::new(scheme, host.parse().unwrap(), port).unwrap();
            let upstream = upstream.with_timeouts(Timeouts { connect, send, read });
            let upstream = match subject {
                Some(subject) => upstream.for_subject(subject).unwrap(),
                None => upstream,
            };
            let stamp = key().make(&upstream, at(lifetime));
            prop_assert!(stamp.len() <= MAX_TEXT);
            prop_assert!(stamp.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            prop_assert_eq!(key().check(stamp.as_bytes(), at(lifetime - 1)), Ok(upstream));
            prop_assert_eq!(key().check(stamp.as_bytes(), at(lifetime)), Err(StampError::Expired));
        }

        #[test]
        fn no_bytes_make_the_check_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(key().check(&bytes, at(0)), Err(StampError::Forged));
            // Under the right key, too: whatever is decoded, it does not panic.
            let _ = decode(&bytes);
        }
    }
}
