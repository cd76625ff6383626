//! What a request of the gateway's asks for, and the same request as it goes to a
//! workspace.

use std::time::SystemTime;

use thiserror::Error;

use super::framing::{self, Framing, FramingError};
use super::head::{HeadError, RequestHead, Version};
use super::headers::{self, Named, NamedError};
use crate::stamp::{STAMP_HEADER, StampError, StampKey};
use crate::upstream::Upstream;

/// Where a request goes, and what its response must know of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) upstream: Upstream,
    pub(super) framing: Framing,
    pub(super) version: Version,
    /// Whether it is a HEAD, whose answer has no body.
    pub(super) is_head: bool,
    /// The protocols to go on with, if it wants an upgrade.
    pub(super) protocols: Option<Box<[u8]>>,
    /// Whether it waits for a 100 before its body.
    pub(super) expects_continue: bool,
    /// Whether the gateway sends no other request on its connection.
    pub(super) is_last: bool,
    /// The head as it goes to the workspace.
    pub(super) head: Vec<u8>,
}

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum AskedError {
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error("{0}")]
    Framing(#[from] FramingError),
    #[error("{0}")]
    Named(#[from] NamedError),
    #[error("host is missing, stands there twice, or is none")]
    Host,
    #[error("the target is neither a path nor, with OPTIONS, `*`, nor a URL of the same host")]
    Target,
    /// It asks for a tunnel to a host of the client's choice.
    #[error("the method is CONNECT")]
    Connect,
    /// All else is well: the body can be read over.
    #[error("{error}")]
    Stamp { error: StampError, framing: Framing, is_last: bool },
}

impl Asked {
    /// Reads a request's whole head.
    pub(super) fn read(head: &[u8], key: &StampKey, now: SystemTime) -> Result<Self, AskedError> {
        let head = RequestHead::parse(head)?;
        if head.method == b"CONNECT" {
            return Err(AskedError::Connect);
        }
        let framing = framing::of_request(&head)?;
        let target = origin_form(&head)?;
        let named = Named::in_fields(&head.fields)?;
        let is_last = head.version == Version::Http10 || named.has(b"close");
        let upstream =
            stamped(&head, key, now).map_err(|error| AskedError::Stamp { error, framing, is_last })?;
        let protocols = headers::wanted_protocols(&head, &named);
        let length: usize = head.fields.iter().map(|field| field.line.len() + 2).sum();
        let mut output = Vec::with_capacity(length + target.len() + 128);
        headers::write_request(&head, target, &named, framing, protocols, &mut output);
        Ok(Self {
            upstream,
            framing,
            version: head.version,
            is_head: head.method == b"HEAD",
            protocols: protocols.map(Box::from),
            expects_continue: head.version == Version::Http11 && expects_continue(&head),
            is_last,
            head: output,
        })
    }
}

fn expects_continue(head: &RequestHead<'_>) -> bool {
    head.fields.iter().any(|field| field.is("expect") && field.value.eq_ignore_ascii_case(b"100-continue"))
}

/// The upstream of a request's one good stamp.
fn stamped(head: &RequestHead<'_>, key: &StampKey, now: SystemTime) -> Result<Upstream, StampError> {
    let mut stamps = head.fields.iter().filter(|field| field.is(STAMP_HEADER));
    let stamp = stamps.next().ok_or(StampError::Missing)?;
    match stamps.next() {
        Some(_) => Err(StampError::Repeated),
        None => key.check(stamp.value, now),
    }
}

/// The target as a server takes it. One for a proxy, a whole URL (RFC 9112, section
/// 3.2.2), must name the host that `Host` names: where the request goes, the stamp
/// has said, and whoever reads it must not read of another host.
fn origin_form<'b>(head: &RequestHead<'b>) -> Result<&'b [u8], AskedError> {
    let host = host(head)?;
    match head.target {
        [b'/', ..] => Ok(head.target),
        b"*" if head.method == b"OPTIONS" => Ok(head.target),
        target => {
            let rest = without_scheme(target).ok_or(AskedError::Target)?;
            let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let is_same = host.is_some_and(|host| host.eq_ignore_ascii_case(authority));
            match path {
                [] if is_same => Ok(b"/"),
                [b'/', ..] if is_same => Ok(path),
                _ => Err(AskedError::Target),
            }
        }
    }
}

fn without_scheme(target: &[u8]) -> Option<&[u8]> {
    let starts = [&b"http://"[..], b"https://"];
    starts.iter().find_map(|start| {
        let (scheme, rest) = target.split_at_checked(start.len())?;
        scheme.eq_ignore_ascii_case(start).then_some(rest)
    })
}

/// The value of the one `Host`, which HTTP/1.0 may leave out.
fn host<'b>(head: &RequestHead<'b>) -> Result<Option<&'b [u8]>, AskedError> {
    let mut hosts = head.fields.iter().filter(|field| field.name.len() == 4 && field.is("host"));
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::Http10 => Ok(None),
        (Some(host), None) if !host.value.is_empty() && host.value.iter().all(is_allowed) => {
            Ok(Some(host.value))
        }
        _ => Err(AskedError::Host),
    }
}
