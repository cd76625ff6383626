//! An upstream's response as a plugin sees it, and the changes that it records.

use std::fmt;

use apisix_ext_plugin::payload::ResponseCall;
use bytes::Bytes;
use http::{HeaderName, StatusCode};

use crate::changes::{ChangeBudget, ChangeError, check_status, check_value};
use crate::extra_info::{AskError, ExtraInfo};
use crate::headers::Headers;

/// Headers that the gateway makes itself for the response that it sends.
const GATEWAYS_OWN: [&str; 3] = ["connection", "content-length", "transfer-encoding"];

/// An upstream's response, before it goes to the client.
///
/// The gateway asks about responses on routes with `ext-plugin-post-resp`, which
/// should have no WebSockets: there the gateway asks the upstream twice.
///
/// ```
/// use apisix_plugin_runner::{Action, Plugin, PluginError, Request, Response};
///
/// /// Hides the upstream's software from clients.
/// struct HideServer;
///
/// impl Plugin for HideServer {
///     const NAME: &'static str = "hide-server";
///     type Config = ();
///
/// #   async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> { Ok(Action::Continue) }
///     async fn on_response(&self, (): &(), response: &mut Response<'_>) -> Result<(), PluginError> {
///         if response.header("server").is_some() {
///             response.remove_header("server")?;
///         }
///         Ok(())
///     }
/// }
/// ```
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
    budget: ChangeBudget,
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
                budget: ChangeBudget::new(max_change_bytes),
            },
        }
    }

    /// The status that the upstream gave.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first value of a header. The case of the name does not matter.
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

    /// An nginx or APISIX variable; `None` if there is none of this name.
    ///
    /// # Errors
    ///
    /// As [`Request::var`](crate::Request::var).
    pub async fn var(&mut self, name: &str) -> Result<Option<Bytes>, AskError> {
        self.extra_info.variable(name).await
    }

    /// The response's whole body; `None` if there is none.
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
    pub fn set_status(&mut self, status: StatusCode) -> Result<(), ChangeError> {
        check_status(status.as_u16())?;
        self.changes.status = Some(status.as_u16());
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
        self.changes.budget.charge(body.len())?;
        self.changes.body = Some(body);
        Ok(())
    }

    fn change(&mut self, name: HeaderName, value: Option<Vec<u8>>) -> Result<(), ChangeError> {
        if GATEWAYS_OWN.contains(&name.as_str()) {
            return Err(ChangeError::FixedResponse(name.as_str().into()));
        }
        self.changes.budget.charge(name.as_str().len() + value.as_ref().map_or(0, Vec::len))?;
        match self.changes.headers.iter_mut().find(|(known, _)| *known == name) {
            Some(change) => change.1 = value,
            None => self.changes.headers.push((name, value)),
        }
        Ok(())
    }

    /// All headers that the client is to get.
    ///
    /// Without a list, the gateway drops ten of the upstream's headers,
    /// `Content-Type` among them (docs/gateway.md, HTTPRespCall), so there is always
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{ClientRequest, ClientResponse, Gateway, Route};
    use crate::plugin::{Action, Plugin, PluginError};
    use crate::request::Request;

    /// Changes what its conf says.
    struct Change;

    impl Plugin for Change {
        const NAME: &'static str = "change";
        type Config = String;

        async fn on_request(&self, _: &String, _: &mut Request<'_>) -> Result<Action, PluginError> {
            Ok(Action::Continue)
        }

        async fn on_response(&self, config: &String, response: &mut Response<'_>) -> Result<(), PluginError> {
            match config.as_str() {
                "nothing" => {}
                "status" => response.set_status(StatusCode::IM_A_TEAPOT)?,
                "headers" => {
                    assert_eq!(response.headers_named("set-cookie").collect::<Vec<_>>(), [b"a=1", b"b=2"]);
                    response.set_header("Set-Cookie", "c=3")?;
                    response.remove_header("x-up")?;
                    let route = response.var("route_id").await?.unwrap_or_default();
                    response.set_header("x-route", route)?;
                }
                "body" => {
                    let body = response.body().await?.unwrap_or_default();
                    assert_eq!(response.status(), 200);
                    response.set_body([&body[..], b", changed"].concat())?;
                }
                error => return Err(error.into()),
            }
            Ok(())
        }
    }

    fn upstreams() -> ClientResponse {
        let header = |name: &str, value: &str| (name.to_owned(), value.into());
        ClientResponse {
            status: 200,
            headers: vec![
                header("content-type", "text/html"),
                header("x-up", "1"),
                header("set-cookie", "a=1"),
                header("set-cookie", "b=2"),
                header("content-length", "4"),
            ],
            body: b"body".to_vec(),
        }
    }

    async fn client_gets(change: &str) -> ClientResponse {
        let route = Route::new("r").plugin("change", &format!("{change:?}"));
        let gateway = Gateway::new().plugin(Change);
        gateway.call_for_response(&route, &ClientRequest::get("/"), &upstreams()).await.unwrap()
    }

    /// What a client gets of the upstream's when nothing is changed: the gateway
    /// measures the body itself.
    fn untouched() -> ClientResponse {
        let mut answer = upstreams();
        answer.headers.pop();
        answer
    }

    #[tokio::test]
    async fn an_unchanged_response_arrives_with_its_content_type() {
        assert_eq!(client_gets("nothing").await, untouched());
    }

    #[tokio::test]
    async fn status_headers_and_body_can_be_changed() {
        assert_eq!(client_gets("status").await, ClientResponse { status: 418, ..untouched() });
        assert_eq!(
            client_gets("body").await,
            ClientResponse { body: b"body, changed".to_vec(), ..untouched() }
        );
        let headers = client_gets("headers").await.headers;
        let expected = [("content-type", "text/html"), ("set-cookie", "c=3"), ("x-route", "test")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(headers, expected);
    }

    #[tokio::test]
    async fn a_failure_lets_nothing_of_the_upstreams_through() {
        let answer = client_gets("a failure").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("content-type"), Some(&b"application/problem+json"[..]));
        assert_eq!((answer.header("x-up"), answer.header("set-cookie")), (None, None));
        let body = String::from_utf8(answer.body).unwrap();
        assert!(body.contains("runner-failed") && !body.contains("a failure"), "{body}");
    }

    #[tokio::test]
    async fn a_response_header_that_the_gateway_sets_is_refused() {
        struct Length;
        impl Plugin for Length {
            const NAME: &'static str = "length";
            type Config = ();

            async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
                Ok(Action::Continue)
            }

            async fn on_response(&self, (): &(), response: &mut Response<'_>) -> Result<(), PluginError> {
                for name in GATEWAYS_OWN {
                    let error = response.set_header(name, "1").unwrap_err();
                    assert_eq!(error, ChangeError::FixedResponse(name.into()));
                    assert_eq!(response.remove_header(name).unwrap_err(), error);
                }
                assert_eq!(response.set_body("").unwrap_err(), ChangeError::EmptyBody);
                assert_eq!(
                    response.set_status(StatusCode::SWITCHING_PROTOCOLS).unwrap_err(),
                    ChangeError::Status(101)
                );
                Ok(())
            }
        }
        let route = Route::new("r").plugin("length", "null");
        let gateway = Gateway::new().plugin(Length);
        let answer = gateway.call_for_response(&route, &ClientRequest::get("/"), &upstreams()).await.unwrap();
        assert_eq!(answer, untouched());
    }
}
