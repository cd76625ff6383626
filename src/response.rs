//! An upstream's response as a plugin sees it, and the changes that it records.

use std::fmt;

use bytes::Bytes;

use crate::changes::{ChangeError, check_status, check_value};
use crate::extra_info::{AskError, ExtraInfo};
use crate::headers::{HeaderName, Headers};
use crate::wire::ResponseCall;

/// Headers that the gateway makes itself for the response that it sends.
const GATEWAYS_OWN: [&str; 3] = ["connection", "content-length", "transfer-encoding"];

/// An upstream's response, before it goes to the client.
///
/// The gateway asks about responses on routes with `ext-plugin-post-resp`, which
/// should have no WebSockets: there the gateway asks the upstream twice.
pub struct Response<'f> {
    pub(crate) id: u32,
    status: u16,
    headers: Headers<'f>,
    pub(crate) extra_info: ExtraInfo<'f>,
    pub(crate) changes: ResponseChanges,
}

/// What the plugins of a chain want changed.
#[derive(Debug)]
pub(crate) struct ResponseChanges {
    pub(crate) status: Option<u16>,
    headers: Vec<(HeaderName, Option<Vec<u8>>)>,
    pub(crate) body: Option<Vec<u8>>,
    bytes: usize,
    max_bytes: usize,
}

impl ResponseChanges {
    fn charge(&mut self, bytes: usize) -> Result<(), ChangeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes > self.max_bytes {
            true => Err(ChangeError::TooLarge { limit: self.max_bytes }),
            false => Ok(()),
        }
    }
}

impl<'f> Response<'f> {
    pub(crate) fn new(call: ResponseCall<'f>, extra_info: ExtraInfo<'f>, max_change_bytes: usize) -> Self {
        Self {
            id: call.id,
            status: call.status,
            headers: Headers::new(call.headers),
            extra_info,
            changes: ResponseChanges {
                status: None,
                headers: Vec::new(),
                body: None,
                bytes: 0,
                max_bytes: max_change_bytes,
            },
        }
    }

    /// The status that the upstream gave.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first value of a header, whatever the case of its name.
    #[must_use]
    pub fn header(&self, name: impl AsRef<str>) -> Option<&'f [u8]> {
        self.headers.first(name.as_ref())
    }

    /// All values of a header, in their order.
    pub fn headers_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + 'a {
        self.headers.named(name)
    }

    /// All headers, as the upstream sent them.
    pub fn headers(&self) -> impl Iterator<Item = (&'f [u8], &'f [u8])> + '_ {
        self.headers.all()
    }

    /// An nginx or APISIX variable; `None` where there is none of this name.
    ///
    /// # Errors
    ///
    /// As [`Request::var`](crate::Request::var).
    pub async fn var(&mut self, name: &str) -> Result<Option<Bytes>, AskError> {
        self.extra_info.variable(name).await
    }

    /// The response's body, whole; `None` where there is none.
    ///
    /// # Errors
    ///
    /// As [`Request::var`](crate::Request::var).
    pub async fn body(&mut self) -> Result<Option<Bytes>, AskError> {
        self.extra_info.response_body().await
    }

    /// Sets the status.
    ///
    /// # Errors
    ///
    /// A status outside 200 to 599, 444 and 499.
    pub fn set_status(&mut self, status: u16) -> Result<(), ChangeError> {
        check_status(status)?;
        self.changes.status = Some(status);
        Ok(())
    }

    /// Sets a header, in place of all its values.
    ///
    /// # Errors
    ///
    /// A name or value that no header can have, an empty value, and
    /// `connection`, `content-length` and `transfer-encoding`, which the gateway
    /// sets itself.
    pub fn set_header<N>(&mut self, name: N, value: impl AsRef<[u8]>) -> Result<(), ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        let name = name.try_into()?;
        check_value(&name, value.as_ref())?;
        self.change(name, Some(value.as_ref().to_vec()))
    }

    /// Removes all values of a header.
    ///
    /// # Errors
    ///
    /// As [`set_header`](Self::set_header).
    pub fn remove_header<N>(&mut self, name: N) -> Result<(), ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        self.change(name.try_into()?, None)
    }

    /// Replaces the body.
    ///
    /// # Errors
    ///
    /// An empty body, which the protocol can't say.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) -> Result<(), ChangeError> {
        let body = body.into();
        if body.is_empty() {
            return Err(ChangeError::EmptyBody);
        }
        self.changes.charge(body.len())?;
        self.changes.body = Some(body);
        Ok(())
    }

    fn change(&mut self, name: HeaderName, value: Option<Vec<u8>>) -> Result<(), ChangeError> {
        if GATEWAYS_OWN.contains(&name.as_str()) {
            return Err(ChangeError::FixedResponse(name.as_str().into()));
        }
        self.changes.charge(name.as_str().len() + value.as_ref().map_or(0, Vec::len))?;
        match self.changes.headers.iter_mut().find(|(known, _)| *known == name) {
            Some(change) => change.1 = value,
            None => self.changes.headers.push((name, value)),
        }
        Ok(())
    }

    /// All headers that the client shall get.
    ///
    /// Without a list the gateway drops ten of the upstream's headers,
    /// `Content-Type` among them (GATEWAY.md, HTTPRespCall), so there is always
    /// a list.
    pub(crate) fn resulting_headers(&self) -> Vec<(&[u8], Option<&[u8]>)> {
        let changed = |name: &[u8]| {
            self.changes.headers.iter().any(|(known, _)| name.eq_ignore_ascii_case(known.as_str().as_bytes()))
        };
        let gateways_own =
            |name: &[u8]| GATEWAYS_OWN.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        let kept = self.headers.all().filter(|(name, _)| !changed(name) && !gateways_own(name));
        let set = self.changes.headers.iter();
        let set = set.filter_map(|(name, value)| Some((name.as_str().as_bytes(), value.as_deref()?)));
        kept.chain(set).map(|(name, value)| (name, Some(value))).collect()
    }
}

impl fmt::Debug for Response<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Response")
            .field("id", &self.id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
