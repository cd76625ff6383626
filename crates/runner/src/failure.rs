//! What a client gets when its call could not be decided.

use http::{Method, StatusCode};

use crate::request::Request;
use crate::stop::Stop;

/// The code of an answer to a call whose plugin failed, panicked or missed its deadline.
pub const RUNNER_FAILED: &str = "runner-failed";

/// A call that could not be decided.
///
/// ```
/// use apisix_plugin_runner::{FailedCall, Stop, StatusCode};
///
/// /// The page for a browser.
/// fn page(call: FailedCall<'_>) -> Stop {
///     let text = format!("Something went wrong ({}). Request: {}", call.code(), call.request_id());
///     Stop::new(StatusCode::SERVICE_UNAVAILABLE).body(text)
/// }
/// ```
#[derive(Clone, Copy)]
pub struct FailedCall<'a> {
    code: &'static str,
    request_id: &'a str,
    request: Option<&'a (dyn RequestHead + 'a)>,
}

/// What a failed call still shows of its request.
pub(crate) trait RequestHead {
    fn method(&self) -> &Method;
    fn header(&self, name: &str) -> Option<&[u8]>;
}

impl RequestHead for Request<'_> {
    fn method(&self) -> &Method {
        Request::method(self)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        Request::header(self, name)
    }
}

impl<'a> FailedCall<'a> {
    pub(crate) fn new(
        code: &'static str,
        request_id: &'a str,
        request: Option<&'a (dyn RequestHead + 'a)>,
    ) -> Self {
        Self { code, request_id, request }
    }

    /// The stable code: [`RUNNER_FAILED`], or the code of a
    /// [`CarrierError`](crate::CarrierError).
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The id by which people find the request in the gateway's and the runner's logs.
    #[must_use]
    pub fn request_id(&self) -> &'a str {
        self.request_id
    }

    /// The request's method; `None` if the call could not be read.
    #[must_use]
    pub fn method(&self) -> Option<&'a Method> {
        self.request.map(RequestHead::method)
    }

    /// The first value of a header of the request.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.request.and_then(|request| request.header(name))
    }
}

/// Makes the answers to calls that could not be decided, for a program that has pages of
/// its own. By default the runner sends a problem document (RFC 9457) with status 503.
///
/// ```
/// use apisix_plugin_runner::{FailedCall, FailureAnswers, Runner, StatusCode, Stop};
///
/// struct ShortPages;
///
/// impl FailureAnswers for ShortPages {
///     fn answer(&self, call: FailedCall<'_>) -> Stop {
///         let text = format!("Please try again. Request: {}", call.request_id());
///         Stop::new(StatusCode::SERVICE_UNAVAILABLE).body(text)
///     }
/// }
///
/// let runner = Runner::named("my-plugins", "1.0.0").failure_answers(ShortPages);
/// ```
pub trait FailureAnswers: Send + Sync + 'static {
    /// The answer to this call.
    fn answer(&self, call: FailedCall<'_>) -> Stop;
}

/// The runner's own answers.
pub(crate) struct ProblemAnswers;

impl FailureAnswers for ProblemAnswers {
    fn answer(&self, call: FailedCall<'_>) -> Stop {
        let title = "The gateway could not decide about this request.";
        let problem = serde_json::json!({
            "type": "about:blank", "title": title, "status": 503, "code": call.code(), "request_id": call.request_id(),
        });
        let stop = Stop::new(StatusCode::SERVICE_UNAVAILABLE).body(problem.to_string());
        stop.header("content-type", "application/problem+json")
            .and_then(|stop| stop.header("cache-control", "no-store"))
            .unwrap_or_else(|_| Stop::new(StatusCode::SERVICE_UNAVAILABLE))
    }
}
