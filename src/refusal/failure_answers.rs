//! The runner's answers to calls that could not be decided, as pages and problem documents.

use apisix_plugin_runner::{FailedCall, FailureAnswers, StatusCode, Stop};

use super::facts::Refusal;
use super::page::More;
use super::reader::Reader;
use super::response::Rendered;

/// Answers a failed call as any other refusal.
pub(crate) struct RefusalAnswers;

impl FailureAnswers for RefusalAnswers {
    fn answer(&self, call: FailedCall<'_>) -> Stop {
        let refusal = match call.code() {
            code if code == Refusal::WorkspaceNotFound.code() => Refusal::WorkspaceNotFound,
            code if code == Refusal::ResolverUnavailable.code() => Refusal::ResolverUnavailable,
            _ => Refusal::RunnerFailed,
        };
        // A call that could not be read does not say what its client can read.
        let method = call.method().map_or("", |method| method.as_str());
        let reader = Reader::new(method, |name| call.header(name));
        refusal.render(&reader, call.request_id(), More::Nothing).into_stop()
    }
}

impl Rendered {
    /// The refusal as a plugin's or the runner's answer.
    pub(crate) fn into_stop(self) -> Stop {
        let status = StatusCode::from_u16(self.status).expect("every refusal has a registered status");
        let stop = Stop::new(status).body(self.body);
        let with_headers =
            self.headers.into_iter().try_fold(stop, |stop, (name, value)| stop.header(name, value));
        with_headers.expect("a refusal's headers are the product's own")
    }
}
