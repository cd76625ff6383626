//! An answer to the client in place of the upstream's response.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderName, StatusCode};
use serde::Serialize;

use crate::changes::{ChangeError, check_value};

/// An answer to the client in place of the upstream's response.
///
/// ```
/// use apisix_plugin_runner::{StatusCode, Stop};
///
/// let stop = Stop::new(StatusCode::FORBIDDEN).header("content-type", "text/plain")?.body("not you");
/// let stop = Stop::redirect(StatusCode::FOUND, "/login")?;
/// let stop = Stop::problem(StatusCode::FORBIDDEN, "not-a-member", "Only members may do this.");
/// let stop = Stop::json(StatusCode::OK, &["a", "b"])?;
/// # Ok::<(), apisix_plugin_runner::ChangeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, Bytes)>,
    pub(crate) body: Bytes,
}

impl Stop {
    /// An answer with this status and no body.
    ///
    /// The status must be 200 to 599, but not 444 or 499, at which the gateway closes the
    /// connection. For any other status, the client gets 503 and the runner logs why. The
    /// gateway adds a page of its own to a 302 or 403 without a body.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// An answer whose body is a JSON text, with the type `application/json`.
    ///
    /// # Errors
    ///
    /// A value that has no JSON text, such as a map whose keys are not texts.
    pub fn json(status: StatusCode, value: &(impl Serialize + ?Sized)) -> Result<Self, ChangeError> {
        let body = serde_json::to_vec(value).map_err(|error| ChangeError::Json(error.to_string().into()))?;
        Ok(Self::typed(status, "application/json", body))
    }

    /// A redirect. The status is one of 301, 302, 303, 307 and 308.
    ///
    /// # Errors
    ///
    /// A status that is no redirect, and a location that no header can hold.
    pub fn redirect(status: StatusCode, location: impl AsRef<[u8]>) -> Result<Self, ChangeError> {
        if !matches!(status.as_u16(), 301..=303 | 307 | 308) {
            return Err(ChangeError::NotARedirect(status.as_u16()));
        }
        Self::new(status).header(LOCATION, location)
    }

    /// A problem document (RFC 9457): `application/problem+json` with the members
    /// `type`, `title`, `status` and `code`. Programs compare the code, which is stable;
    /// people read the title.
    #[must_use]
    pub fn problem(status: StatusCode, code: &str, title: &str) -> Self {
        let problem = serde_json::json!({
            "type": "about:blank", "title": title, "status": status.as_u16(), "code": code,
        });
        Self::typed(status, "application/problem+json", problem.to_string())
    }

    fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let content_type = (CONTENT_TYPE, Bytes::from_static(content_type.as_bytes()));
        Self { status, headers: vec![content_type], body: body.into() }
    }

    /// Adds a header. Several values of one name keep their order. Without a
    /// `content-type` the gateway sends `text/plain`.
    ///
    /// # Errors
    ///
    /// A name or value that no header can have, an empty value, and `content-length`,
    /// `connection` and `transfer-encoding`, which the gateway sets itself.
    pub fn header<N>(mut self, name: N, value: impl AsRef<[u8]>) -> Result<Self, ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        let name = name.try_into()?;
        if ["content-length", "connection", "transfer-encoding"].contains(&name.as_str()) {
            return Err(ChangeError::FixedResponse(name.as_str().into()));
        }
        check_value(&name, value.as_ref())?;
        self.headers.push((name, Bytes::copy_from_slice(value.as_ref())));
        Ok(self)
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into().into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_code() {
        let stop = Stop::problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "runner-failed",
            "The gateway is not able to help.",
        );
        assert_eq!(stop.headers, [(CONTENT_TYPE, Bytes::from("application/problem+json"))]);
        let body: serde_json::Value = serde_json::from_slice(&stop.body).unwrap();
        assert_eq!((&body["code"], &body["status"]), (&"runner-failed".into(), &503.into()));
    }

    #[test]
    fn a_redirect_has_a_status_of_a_redirect_and_a_location() {
        let stop = Stop::redirect(StatusCode::SEE_OTHER, "/there").unwrap();
        assert_eq!(stop.headers, [(LOCATION, Bytes::from("/there"))]);
        let error = Stop::redirect(StatusCode::OK, "/").unwrap_err();
        assert_eq!(error.to_string(), "status 200 is no redirect: 301, 302, 303, 307 and 308 are");
        assert_eq!(
            Stop::redirect(StatusCode::FOUND, "/\r\nx: y").unwrap_err().to_string(),
            "the value for header \"location\" holds a CR, LF or NUL"
        );
    }

    #[test]
    fn json_is_typed() {
        let stop = Stop::json(StatusCode::OK, &[1, 2]).unwrap();
        assert_eq!((&stop.body[..], &stop.headers[0].1[..]), (&b"[1,2]"[..], &b"application/json"[..]));
    }
}
