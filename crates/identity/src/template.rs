//! The upstream of a conf, with holes for claims.
//!
//! All that can be known beforehand is checked when the template is parsed, so
//! that rendering has only to look at the claims: whatever is rendered is a valid
//! host name.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use thiserror::Error;

use super::claims::{ClaimPath, Claims};
use super::digits::parse_digits;
use super::label::{HashDigits, push_label};
use apisix_plugin_runner::upstream::{
    HostName, MAX_LABEL, MAX_NAME, Scheme, Upstream, UpstreamError, is_numeric,
};

/// An upstream with holes: `http://code-{sub}.workspaces:8443`.
///
/// ```
/// use kube_coders_identity::Template;
/// use kube_coders_identity::claims::{Wanted, decode};
///
/// let template = Template::parse("http://code-{sub}.workspaces:8443")?;
/// let claims = decode(br#"{"sub": "alice"}"#, &Wanted::new(template.claim_names())).expect("claims");
/// let upstream = template.render(&claims).map(|upstream| upstream.to_string());
/// assert_eq!(upstream.as_deref(), Ok("http://code-alice.workspaces:8443"));
/// # Ok::<(), kube_coders_identity::TemplateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    scheme: Scheme,
    host: HostTemplate,
    port: u16,
}

impl fmt::Display for HostTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Hole { before, prefix, claim, suffix } in &self.holes {
            write!(formatter, "{before}{prefix}{{{claim}}}{suffix}")?;
        }
        formatter.write_str(&self.rest)
    }
}

impl Template {
    /// The part that names the host.
    pub fn host(&self) -> &HostTemplate {
        &self.host
    }

    /// Parses `scheme://host:port`; only the host may have holes.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its position.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Self::parse_with(text, HashDigits::Full)
    }

    /// Parses `scheme://host:port`, whose host's labels have so many digits if they need a hash.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its position.
    ///
    /// ```
    /// use kube_coders_identity::Template;
    /// use kube_coders_identity::label::HashDigits;
    ///
    /// let old = Template::parse_with("http://code-{sub}:8443", HashDigits::Short)?;
    /// let name = old.host().render_value("Alice").map(|name| name.to_string());
    /// assert_eq!(name.as_deref(), Ok("code-alice---3bc51062973c458d"));
    /// # Ok::<(), kube_coders_identity::TemplateError>(())
    /// ```
    pub fn parse_with(text: &str, digits: HashDigits) -> Result<Self, TemplateError> {
        let (scheme, rest) = text.split_once("://").ok_or(UpstreamError::Scheme)?;
        let scheme: Scheme = scheme.parse()?;
        let host_at = text.len() - rest.len();
        let (host, port) = rest.split_at(end_of_host(rest, host_at)?);
        let port = port.strip_prefix(':').and_then(parse_port).ok_or(UpstreamError::Port)?;
        let host = match host.parse::<HostName>() {
            Ok(address) if address.as_ip().is_some() => HostTemplate::fixed(&address),
            _ if host.starts_with('[') => return Err(UpstreamError::Host.into()),
            _ => HostTemplate::parse_at(host, host_at, digits)?,
        };
        Ok(Self { scheme, host, port })
    }

    /// The scheme of all its upstreams.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The upstream for these claims, without a subject.
    pub fn render(&self, claims: &Claims) -> Result<Upstream, RenderError> {
        let host = self.host.render(claims)?;
        Ok(Upstream::new(self.scheme, host, self.port).expect("a template's port is never 0"))
    }

    /// The top-level claims that rendering needs.
    pub fn claim_names(&self) -> impl Iterator<Item = &str> {
        self.host.claim_names()
    }

    /// Each claim of the template, and the label that it makes of these claims.
    pub fn labels(&self, claims: &Claims) -> impl Iterator<Item = (&ClaimPath, Option<String>)> {
        self.host.holes.iter().map(|hole| {
            let mut label = String::new();
            let value = claims.text(&hole.claim);
            let is_one = value.is_some_and(|value| {
                push_label(&mut label, &hole.prefix, value, &hole.suffix, self.host.digits)
            });
            (&hole.claim, is_one.then_some(label))
        })
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serde's own message for another type would repeat the value.
        match Value::deserialize(deserializer)? {
            Value::String(text) => Self::parse(&text).map_err(de::Error::custom),
            _ => Err(de::Error::custom("an upstream is a string, such as \"http://code-{sub}:8443\"")),
        }
    }
}

/// The end of the host: the colon before the port, which is neither in a hole nor in the
/// brackets of an IPv6 address.
fn end_of_host(text: &str, at: usize) -> Result<usize, TemplateError> {
    let mut opened = None;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'[' if opened.is_none() => opened = Some((index, byte)),
            b'}' if matches!(opened, Some((_, b'{'))) => opened = None,
            b']' if matches!(opened, Some((_, b'['))) => opened = None,
            b':' if opened.is_none() => return Ok(index),
            _ => {}
        }
    }
    match opened {
        Some((index, b'{')) => Err(TemplateError::Unclosed { at: at + index }),
        _ => Err(UpstreamError::Port.into()),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    parse_digits(text.as_bytes()).filter(|port| *port != 0)
}

/// Domains of one label under which private networks have hosts (RFC 6761, RFC 6762, appendix
/// G, and ICANN's `internal`).
const PRIVATE_DOMAINS: [&str; 12] = [
    "corp",
    "example",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "private",
    "test",
];

/// A host name with holes: `code-{sub}.workspaces`.
///
/// ```
/// use kube_coders_identity::HostTemplate;
///
/// let template = HostTemplate::parse("code-{sub}.workspaces")?;
/// let name = template.render_value("alice").map(|name| name.to_string());
/// assert_eq!(name.as_deref(), Ok("code-alice.workspaces"));
/// # Ok::<(), kube_coders_identity::TemplateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTemplate {
    holes: Box<[Hole]>,
    /// The text after the last label with a hole, with its leading dot.
    rest: Box<str>,
    /// The digits of the hash in labels that need one.
    digits: HashDigits,
}

/// A label with a claim in it, and the text before that label.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hole {
    before: Box<str>,
    prefix: Box<str>,
    claim: ClaimPath,
    suffix: Box<str>,
}

impl HostTemplate {
    /// Parses a host name with holes, such as `code-{sub}.workspaces`. A name with a dot is full,
    /// and may have one at its end, too: it means the same.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its position.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Self::parse_with(text, HashDigits::Full)
    }

    /// Parses a host name with holes, whose labels have so many digits if they need a hash.
    ///
    /// ```
    /// use kube_coders_identity::HostTemplate;
    /// use kube_coders_identity::label::HashDigits;
    ///
    /// let old = HostTemplate::parse_with("code-{sub}", HashDigits::Short)?;
    /// let name = old.render_value("Alice").map(|name| name.to_string());
    /// assert_eq!(name.as_deref(), Ok("code-alice---3bc51062973c458d"));
    /// # Ok::<(), kube_coders_identity::TemplateError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its position.
    pub fn parse_with(text: &str, digits: HashDigits) -> Result<Self, TemplateError> {
        Self::parse_at(text, 0, digits)
    }

    fn parse_at(text: &str, at: usize, digits: HashDigits) -> Result<Self, TemplateError> {
        let full = text.strip_suffix('.').and_then(|full| Self::parse_labels(full, at, digits).ok());
        match full.filter(Self::has_dot) {
            Some(full) => Ok(full),
            None => Self::parse_labels(text, at, digits),
        }
    }

    fn has_dot(&self) -> bool {
        self.rest.contains('.') || self.holes.iter().any(|hole| hole.before.contains('.'))
    }

    /// The domain that is missing at the end of a name that seems to be meant for Kubernetes's
    /// search list: `code-{sub}.namespace` and `code-{sub}.namespace.svc`. Such a name is looked
    /// up as it is, and does not exist.
    ///
    /// ```
    /// use kube_coders_identity::HostTemplate;
    ///
    /// let missing = |text: &str| HostTemplate::parse(text).map(|host| host.missing_domain());
    /// assert_eq!(missing("code-{sub}.code-server"), Ok(Some("svc.cluster.local")));
    /// assert_eq!(missing("code-{sub}.code-server.svc"), Ok(Some("cluster.local")));
    /// assert_eq!(missing("code-{sub}.code-server.svc.cluster.local"), Ok(None));
    /// ```
    pub fn missing_domain(&self) -> Option<&'static str> {
        let last = self.rest.rsplit('.').next().unwrap_or_default();
        match &*self.holes {
            _ if self.rest.ends_with(".svc") => Some("cluster.local"),
            // There is no domain of the Internet for each user.
            [hole] if hole.before.is_empty() && self.rest.matches('.').count() == 1 => {
                (!PRIVATE_DOMAINS.contains(&last)).then_some("svc.cluster.local")
            }
            _ => None,
        }
    }

    /// The claim that is the whole host, if one is.
    pub(super) fn whole_claim(&self) -> Option<String> {
        match &*self.holes {
            [Hole { before, prefix, claim, suffix }]
                if [before, prefix, suffix, &self.rest].iter().all(|text| text.is_empty()) =>
            {
                Some(claim.to_string())
            }
            _ => None,
        }
    }

    /// The paths of the claims, in their order.
    pub(super) fn claim_texts(&self) -> impl Iterator<Item = String> {
        self.holes.iter().map(|hole| hole.claim.to_string())
    }

    /// The labels: the text before a claim, whether there is one, and the text after it.
    pub(super) fn labels_around_claims(&self) -> Vec<(String, bool, String)> {
        let mut labels = Vec::new();
        let literal = |text: &str| -> Vec<_> {
            let labels = text.split('.').filter(|label| !label.is_empty());
            labels.map(|label| (label.to_owned(), false, String::new())).collect()
        };
        for hole in &self.holes {
            labels.extend(literal(&hole.before));
            labels.push((hole.prefix.to_string(), true, hole.suffix.to_string()));
        }
        labels.extend(literal(&self.rest));
        labels
    }

    fn parse_labels(text: &str, at: usize, digits: HashDigits) -> Result<Self, TemplateError> {
        let mut holes = Vec::new();
        let mut literal = String::new();
        let mut longest = 0;
        let mut labels = Labels { text, next: Some(0) };
        while let Some(start) = labels.next {
            let label = labels.cut(at)?;
            let is_last = labels.next.is_none();
            if start > 0 {
                literal.push('.');
                longest += 1;
            }
            match Label::parse(label, at + start, digits)? {
                Label::Literal(label) => {
                    if is_last && is_numeric(label) {
                        return Err(TemplateError::Numeric { at: at + start });
                    }
                    literal.push_str(label);
                    longest += label.len();
                }
                Label::Claim { prefix, claim, suffix } => {
                    let before = std::mem::take(&mut literal).into();
                    holes.push(Hole { before, prefix: prefix.into(), claim, suffix: suffix.into() });
                    longest += MAX_LABEL;
                }
            }
        }
        if longest > MAX_NAME {
            return Err(TemplateError::NameTooLong { longest });
        }
        Ok(Self { holes: holes.into(), rest: literal.into(), digits })
    }

    fn fixed(host: &HostName) -> Self {
        Self { holes: Box::default(), rest: host.as_str().into(), digits: HashDigits::Full }
    }

    /// Fills each hole with the label of its claim.
    ///
    /// # Errors
    ///
    /// A claim is missing, or no label can be made of it.
    pub fn render(&self, claims: &Claims) -> Result<HostName, RenderError> {
        self.render_with(|path| claims.text(path).ok_or(RenderError::NoClaim))
    }

    /// The host name with this value in every hole. The names of the claims do not matter.
    pub fn render_value(&self, value: &str) -> Result<HostName, RenderError> {
        self.render_with(|_| Ok(value))
    }

    /// The top-level claims that rendering needs.
    pub fn claim_names(&self) -> impl Iterator<Item = &str> {
        self.holes.iter().map(|hole| hole.claim.name())
    }

    fn render_with<'a>(
        &self,
        value_of: impl Fn(&ClaimPath) -> Result<&'a str, RenderError>,
    ) -> Result<HostName, RenderError> {
        let mut name = String::with_capacity(MAX_LABEL * self.holes.len().min(2) + self.rest.len());
        let mut last_label = 0;
        for hole in &self.holes {
            name.push_str(&hole.before);
            last_label = name.len();
            if !push_label(&mut name, &hole.prefix, value_of(&hole.claim)?, &hole.suffix, self.digits) {
                return Err(RenderError::NoLabel);
            }
        }
        // Only what a claim made can still be a number here, or the gateway's own
        // host, which every resolver takes `localhost` for (RFC 6761, section 6.3).
        let last = &name[last_label..];
        if self.rest.is_empty() && (is_numeric(last) || last == "localhost") {
            return Err(RenderError::NoLabel);
        }
        name.push_str(&self.rest);
        name.parse().map_err(|_| RenderError::NoLabel)
    }
}

/// Cuts a host template at the dots that are not in a hole.
struct Labels<'a> {
    text: &'a str,
    next: Option<usize>,
}

impl<'a> Labels<'a> {
    fn cut(&mut self, at: usize) -> Result<&'a str, TemplateError> {
        let start = self.next.expect("asked only while there is a next label");
        let mut opened = None;
        for (index, byte) in self.text.bytes().enumerate().skip(start) {
            match (byte, opened) {
                (b'{', None) => opened = Some(index),
                (b'}', Some(_)) => opened = None,
                (b'.', None) => {
                    self.next = Some(index + 1);
                    return Ok(&self.text[start..index]);
                }
                _ => {}
            }
        }
        self.next = None;
        match opened {
            Some(index) => Err(TemplateError::Unclosed { at: at + index }),
            None => Ok(&self.text[start..]),
        }
    }
}

/// One label of a host template.
enum Label<'a> {
    Literal(&'a str),
    Claim { prefix: &'a str, claim: ClaimPath, suffix: &'a str },
}

impl<'a> Label<'a> {
    fn parse(text: &'a str, at: usize, digits: HashDigits) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::EmptyLabel { at });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(TemplateError::Hyphen { at });
        }
        let Some((prefix, inside)) = text.split_once('{') else {
            check_literal(text, at)?;
            if text.len() > MAX_LABEL {
                return Err(TemplateError::LabelTooLong { at, length: text.len(), limit: MAX_LABEL });
            }
            return Ok(Self::Literal(text));
        };
        let claim_at = prefix.len() + 1;
        let (path, suffix) = inside.split_once('}').expect("labels are cut where no hole is open");
        let suffix_at = claim_at + path.len() + 1;
        if let Some(second) = suffix.find('{') {
            return Err(TemplateError::SecondClaim { at: at + suffix_at + second });
        }
        let claim = ClaimPath::parse(path).ok_or(TemplateError::Claim { at: at + claim_at })?;
        check_literal(prefix, at)?;
        check_literal(suffix, at + suffix_at)?;
        let (length, limit) = (prefix.len() + suffix.len(), MAX_LABEL - digits.min_room());
        if length > limit {
            return Err(TemplateError::LabelTooLong { at, length, limit });
        }
        Ok(Self::Claim { prefix, claim, suffix })
    }
}

fn check_literal(text: &str, at: usize) -> Result<(), TemplateError> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    match text.bytes().position(|byte| !allowed(byte)) {
        Some(index) if text.as_bytes()[index] == b'}' => Err(TemplateError::Unopened { at: at + index }),
        Some(index) => Err(TemplateError::Character { at: at + index }),
        None => Ok(()),
    }
}

/// Why a text is not a template. Positions count the text's bytes from 0.
///
/// ```
/// use kube_coders_identity::{HostTemplate, TemplateError};
///
/// assert_eq!(HostTemplate::parse("code-{sub").err(), Some(TemplateError::Unclosed { at: 5 }));
/// assert_eq!(HostTemplate::parse("Code-{sub}").err(), Some(TemplateError::Character { at: 0 }));
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// The scheme, the port, or a host without holes is wrong.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// A hole has no end within its label.
    #[error("the `{{` at byte {at} is never closed")]
    Unclosed {
        /// The position of the brace.
        at: usize,
    },
    /// A hole has no beginning.
    #[error("the `}}` at byte {at} closes nothing")]
    Unopened {
        /// The position of the brace.
        at: usize,
    },
    /// The text between the braces is not the path of a claim.
    #[error("at byte {at} is not a claim: a name, or names with dots between them")]
    Claim {
        /// The position of the path.
        at: usize,
    },
    /// A label has more than one hole.
    #[error("the claim at byte {at} is the second of its label, which can hold only one")]
    SecondClaim {
        /// The position of the second hole.
        at: usize,
    },
    /// A literal part has a character that host names can't have.
    #[error("the character at byte {at} is not allowed in a host name: only a-z, 0-9, `-` and `_` are")]
    Character {
        /// The position of the character.
        at: usize,
    },
    /// Two dots follow each other, or one is at an end.
    #[error("the label at byte {at} is empty")]
    EmptyLabel {
        /// The position at which the label would begin.
        at: usize,
    },
    /// DNS allows no hyphen at the ends of a label.
    #[error("the label at byte {at} starts or ends with `-`")]
    Hyphen {
        /// The position of the label.
        at: usize,
    },
    /// The literal parts leave too little of a label's 63 bytes for the claim, or exceed them.
    #[error("the label at byte {at} has {length} bytes of its own, and {limit} are allowed there")]
    LabelTooLong {
        /// The position of the label.
        at: usize,
        /// Bytes of its literal parts.
        length: usize,
        /// Bytes that they may have.
        limit: usize,
    },
    /// The longest labels that claims can make don't fit into a host name.
    #[error("the host name can grow to {longest} bytes, and {MAX_NAME} are allowed")]
    NameTooLong {
        /// Bytes of the longest name that can be rendered.
        longest: usize,
    },
    /// Resolvers read a name that ends in a number as an IPv4 address.
    #[error("the last label, at byte {at}, is a number: only the last label of an IP address can be")]
    Numeric {
        /// The position of the label.
        at: usize,
    },
}

/// Why a template has no upstream for these claims.
///
/// ```
/// use kube_coders_identity::Template;
/// use kube_coders_identity::claims::{Wanted, decode};
/// use kube_coders_identity::template::RenderError;
///
/// let template = Template::parse("http://code-{team}:8443")?;
/// let claims = decode(br#"{"sub": "alice"}"#, &Wanted::new(template.claim_names())).expect("claims");
/// assert_eq!(template.render(&claims), Err(RenderError::NoClaim));
/// # Ok::<(), kube_coders_identity::TemplateError>(())
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RenderError {
    /// The identity lacks a claim that a hole names, or its value is not a text.
    #[error("a claim of the template is missing or not a text")]
    NoClaim,
    /// A claim's value can't become part of a host name.
    #[error(
        "the value has no label: it is empty, longer than 255 characters, or makes the name a number or localhost"
    )]
    NoLabel,
}

#[cfg(test)]
mod tests {
    use super::super::claims::{self, Wanted};
    use super::*;
    use proptest::prelude::*;

    fn claims(template: &Template, json: &str) -> Claims {
        claims::decode(json.as_bytes(), &Wanted::new(template.claim_names())).unwrap()
    }

    #[track_caller]
    fn check(template: &str, json: &str, expected: Result<&str, RenderError>) {
        let template = Template::parse(template).unwrap();
        let upstream = template.render(&claims(&template, json)).map(|upstream| upstream.to_string());
        assert_eq!(upstream.as_deref(), expected.as_ref().map(|text| *text));
    }

    #[track_caller]
    fn refused(template: &str, expected: &str) {
        assert_eq!(Template::parse(template).unwrap_err().to_string(), expected, "{template}");
    }

    #[track_caller]
    fn named(template: &str, value: &str, expected: Result<&str, RenderError>) {
        let name = HostTemplate::parse(template).unwrap().render_value(value);
        assert_eq!(name.as_ref().map(HostName::as_str), expected.as_ref().map(|text| *text));
    }

    #[test]
    fn a_dot_at_the_end_means_the_same() {
        for (text, plain) in [
            ("code-{sub}.ns.svc.cluster.local.", "code-{sub}.ns.svc.cluster.local"),
            ("{a.b}.test.", "{a.b}.test"),
            ("code.test.", "code.test"),
        ] {
            assert_eq!(HostTemplate::parse(text), HostTemplate::parse(plain), "{text}");
            assert_eq!(HostTemplate::parse(text).unwrap().to_string(), plain);
            let whole = |host: &str| Template::parse(&format!("http://{host}:1"));
            assert_eq!(whole(text), whole(plain), "{text}");
        }
        for text in ["code-{sub}.", "{a.b}.", ".", "code-{sub}.test..", "code-{sub}..", "."] {
            assert!(matches!(HostTemplate::parse(text), Err(TemplateError::EmptyLabel { .. })), "{text}");
        }
    }

    #[test]
    fn a_name_for_a_search_list_is_known_by_its_end() {
        let missing = |text: &str| HostTemplate::parse(text).unwrap().missing_domain();
        for text in ["code-{sub}.code-server", "{sub}.dev", "code-{sub}-x.workspaces."] {
            assert_eq!(missing(text), Some("svc.cluster.local"), "{text}");
        }
        for text in ["code-{sub}.ns.svc", "a.{sub}.svc", "code.svc"] {
            assert_eq!(missing(text), Some("cluster.local"), "{text}");
        }
        for text in [
            "code-{sub}",
            "code-{sub}.test",
            "code-{sub}.corp",
            "code-{sub}.example.com",
            "code-{sub}.ns.svc.cluster.local",
            "a.{sub}",
            "{sub}.{team}.x",
            "code.workspaces",
        ] {
            assert_eq!(missing(text), None, "{text}");
        }
    }

    #[test]
    fn claims_fill_the_holes() {
        check("http://code-{sub}:8443", r#"{"sub":"alice"}"#, Ok("http://code-alice:8443"));
        check(
            "http://a.code-{sub}-dev.{org.unit}.svc.cluster.local:1",
            r#"{"sub":"Alice","org":{"unit":"a.b"}}"#,
            Ok(
                "http://a.code-alice---3bc51062973c458d5a6f2d8d64a02324-dev.a-b---2e7336dc8eba87ef472df568c35482ab.svc.cluster.local:1",
            ),
        );
        check("http://{https://x}:8443", r#"{"sub":"a","https://x":"b"}"#, Ok("http://b:8443"));
    }

    #[test]
    fn a_template_may_have_no_hole() {
        check("http://one.workspace:80", r#"{"sub":"alice"}"#, Ok("http://one.workspace:80"));
        check("http://127.0.0.1:80", r#"{"sub":"alice"}"#, Ok("http://127.0.0.1:80"));
        check("http://[::1]:80", r#"{"sub":"alice"}"#, Ok("http://[::1]:80"));
    }

    #[test]
    fn a_missing_claim_is_no_upstream() {
        for json in [
            r#"{"sub":"a"}"#,
            r#"{"sub":"a","org":"b"}"#,
            r#"{"sub":"a","org":{}}"#,
            r#"{"sub":"a","org":{"unit":7}}"#,
            r#"{"sub":"a","org":{"unit":["b"]}}"#,
            r#"{"sub":"a","org":{"unit":null}}"#,
        ] {
            check("http://{org.unit}:80", json, Err(RenderError::NoClaim));
        }
    }

    #[test]
    fn a_value_without_label_is_no_upstream() {
        check("http://{org}:80", r#"{"sub":"a","org":""}"#, Err(RenderError::NoLabel));
        named("code-{sub}", &"a".repeat(256), Err(RenderError::NoLabel));
    }

    #[test]
    fn render_errors_name_the_mistake() {
        assert_eq!(RenderError::NoClaim.to_string(), "a claim of the template is missing or not a text");
        assert_eq!(
            RenderError::NoLabel.to_string(),
            "the value has no label: it is empty, longer than 255 characters, or makes the name a number or localhost"
        );
    }

    #[test]
    fn a_name_is_never_made_a_number() {
        named("{sub}", "localhost", Err(RenderError::NoLabel));
        named("{sub}.a", "localhost", Ok("localhost.a"));
        named("{sub}", "127", Err(RenderError::NoLabel));
        named("{sub}", "0x7f", Err(RenderError::NoLabel));
        named("0x{sub}", "7f", Err(RenderError::NoLabel));
        named("10.0.0.{sub}", "1", Err(RenderError::NoLabel));
        named("{sub}", "127a", Ok("127a"));
        named("{sub}.a", "127", Ok("127.a"));
    }

    #[test]
    fn one_value_fills_every_hole() {
        named("code-{sub}.{org.unit}", "alice", Ok("code-alice.alice"));
    }

    #[test]
    fn needed_claims_are_listed() {
        let template = Template::parse("http://{sub}.{org.unit}.x:80").unwrap();
        assert_eq!(template.claim_names().collect::<Vec<_>>(), ["sub", "org"]);
    }

    #[test]
    fn an_invalid_upstream_is_refused() {
        refused("", "an upstream starts with http:// or https://");
        refused("code-{sub}:80", "an upstream starts with http:// or https://");
        for text in [
            "http://{sub}",
            "http://{sub}:",
            "http://{sub}:0",
            "http://{sub}:65536",
            "http://{sub}:+8",
            "http://{sub}:80/",
            "http://{sub}:{port}",
            "http://[::1]",
        ] {
            refused(text, "the upstream needs a port from 1 to 65535 behind its host, and nothing after it");
        }
        for text in ["http://[::1:80", "http://[{sub}]:80", "http://[127.0.0.1]:80"] {
            let error = Template::parse(text).unwrap_err();
            assert!(
                matches!(error, TemplateError::Upstream(UpstreamError::Host | UpstreamError::Port)),
                "{text}"
            );
        }
    }

    #[test]
    fn holes_are_refused_with_their_place() {
        refused("http://code-{sub:80", "the `{` at byte 12 is never closed");
        refused("http://code-sub}:80", "the `}` at byte 15 closes nothing");
        refused("http://code-{sub}}:80", "the `}` at byte 17 closes nothing");
        for (text, at) in
            [("{}", 8), ("a{.}", 9), ("{a.}", 8), ("{a..b}", 8), ("{a b}", 8), ("{{a}}", 8), ("{ü}", 8)]
        {
            let message = format!("at byte {at} is not a claim: a name, or names with dots between them");
            refused(&format!("http://{text}:80"), &message);
        }
        refused(
            "http://{a}-{b}:80",
            "the claim at byte 11 is the second of its label, which can hold only one",
        );
    }

    #[test]
    fn text_that_is_no_name_is_refused_with_its_place() {
        let rule = "is not allowed in a host name: only a-z, 0-9, `-` and `_` are";
        refused("http://Code-{sub}:80", &format!("the character at byte 7 {rule}"));
        refused("http://{sub} b:80", &format!("the character at byte 12 {rule}"));
        refused("http://u@{sub}:80", &format!("the character at byte 8 {rule}"));
        refused("http://{sub}.a/b:80", &format!("the character at byte 14 {rule}"));
        refused("http://{sub}.ü:80", &format!("the character at byte 13 {rule}"));
        refused("http://:80", "the label at byte 7 is empty");
        refused("http://{sub}..a:80", "the label at byte 13 is empty");
        refused("http://{sub}.:80", "the label at byte 13 is empty");
        refused("http://-{sub}:80", "the label at byte 7 starts or ends with `-`");
        refused("http://a.{sub}-:80", "the label at byte 9 starts or ends with `-`");
        refused("http://{sub}.-a:80", "the label at byte 13 starts or ends with `-`");
        let number = "the last label, at byte 13, is a number: only the last label of an IP address can be";
        refused("http://{sub}.10:80", number);
        refused("http://{sub}.0x1f:80", number);
    }

    #[test]
    fn text_that_leaves_no_room_is_refused() {
        let room = |length| format!("http://{}{{sub}}:80", "a".repeat(length));
        assert!(Template::parse(&room(27)).is_ok());
        refused(&room(28), "the label at byte 7 has 28 bytes of its own, and 27 are allowed there");
        let long = "a".repeat(64);
        refused(
            &format!("http://{{sub}}.{long}:80"),
            "the label at byte 13 has 64 bytes of its own, and 63 are allowed there",
        );
        assert!(
            Template::parse(
                "http://{a}.{b}.{c}.aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffg:80"
            )
            .is_ok()
        );
        refused("http://{a}.{b}.{c}.{d}:80", "the host name can grow to 255 bytes, and 253 are allowed");
    }

    #[test]
    fn another_type_is_refused_without_its_content() {
        let error = serde_json::from_str::<Template>("7123").unwrap_err();
        assert_eq!(error.to_string(), "an upstream is a string, such as \"http://code-{sub}:8443\"");
    }

    proptest! {
        #[test]
        fn a_rendered_name_is_a_host_name(template in r"[-a-c0-9_.{}x]{1,12}|([a-c0-9-]{0,5}\{a\}[a-c0-9_-]{0,5}\.?){1,3}", value in "[-a-fA-F0-9x.]{0,70}|\\PC{0,300}") {
            if let Ok(template) = HostTemplate::parse(&template)
                && let Ok(name) = template.render_value(&value)
            {
                let parsed = name.as_str().parse::<HostName>();
                prop_assert_eq!(parsed.as_ref(), Ok(&name));
                prop_assert!(name.as_ip().is_none());
            }
        }

        #[test]
        fn any_text_is_a_template_or_refused(text in any::<String>(), holes in r"(http://)?[\[\]{}:.a1-]{0,20}") {
            let _ = Template::parse(&text);
            let _ = Template::parse(&holes);
            let _ = HostTemplate::parse(&holes);
        }
    }
}
