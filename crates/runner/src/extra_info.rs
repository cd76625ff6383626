//! Asking the gateway, while it waits for an answer, for what the frame does
//! not carry: a variable, the request's body, the response's body.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use apisix_ext_plugin::payload::{MalformedPayload, Question};
use bytes::Bytes;
use thiserror::Error;

use crate::call_context::CallContext;
use crate::connection::ReadError;

/// Why a question has no answer.
///
/// ```
/// use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
/// use apisix_plugin_runner::{Action, AskError, Plugin, PluginError, Request};
///
/// struct Asks;
///
/// impl Plugin for Asks {
///     const NAME: &'static str = "asks";
///     type Config = ();
///
///     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
///         assert!(matches!(request.var("").await, Err(AskError::NoName)));
///         Ok(Action::Continue)
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let route = Route::new("asks").plugin("asks", "null");
/// Gateway::new().plugin(Asks).call(&route, &ClientRequest::get("/")).await.forwarded();
/// # });
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AskError {
    /// One call may ask only so often.
    #[error("a call may ask {limit} questions, and this was one more")]
    TooMany {
        /// The limit, in questions.
        limit: usize,
    },
    /// The answers of one call are more than is kept for it.
    #[error("the answers to a call's questions are more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// An earlier question's future was dropped before its answer came.
    #[error("an earlier question was abandoned, so its answer would be taken for this one's")]
    Abandoned,
    /// The name of a variable is empty.
    #[error("a variable needs a name")]
    NoName,
    /// The gateway closed the connection instead of answering.
    #[error("the gateway closed the connection instead of answering a question")]
    Closed,
    /// The gateway sent something that is no answer to a question.
    #[error("the gateway sent something else than the answer to a question")]
    Unexpected,
    /// The gateway's answer could not be read.
    #[error("the gateway's answer to a question: {0}")]
    Malformed(Box<str>),
    /// The connection failed.
    #[error("asking the gateway: {0}")]
    Io(#[from] io::Error),
}

impl From<MalformedPayload> for AskError {
    fn from(malformed: MalformedPayload) -> Self {
        Self::Malformed(malformed.to_string().into())
    }
}

impl From<ReadError> for AskError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Io(error),
            ReadError::Cut => Self::Closed,
            other => Self::Malformed(other.to_string().into()),
        }
    }
}

pub(crate) type AnswerFuture<'a> = Pin<Box<dyn Future<Output = Result<Option<Bytes>, AskError>> + Send + 'a>>;

/// Carries a question to the gateway and its answer back.
pub(crate) trait Ask: Send + Sync {
    fn ask<'a>(&'a mut self, question: Question<'a>) -> AnswerFuture<'a>;
}

/// What a call may ask for in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskLimits {
    pub(crate) questions: usize,
    /// How many bytes of answers are kept.
    pub(crate) bytes: usize,
}

/// The questions of one call, with the answers that came.
pub(crate) struct ExtraInfo<'c> {
    asker: &'c mut dyn Ask,
    context: Option<Arc<CallContext>>,
    limits: AskLimits,
    questions: usize,
    bytes: usize,
    waiting: bool,
    variables: Vec<(Box<str>, Option<Bytes>)>,
    request_body: Option<Option<Bytes>>,
    response_body: Option<Option<Bytes>>,
}

impl<'c> ExtraInfo<'c> {
    pub(crate) fn new(asker: &'c mut dyn Ask, limits: AskLimits) -> Self {
        Self {
            asker,
            context: None,
            limits,
            questions: 0,
            bytes: 0,
            waiting: false,
            variables: Vec::new(),
            request_body: None,
            response_body: None,
        }
    }

    /// Notes the request's id in the context of the call as soon as it is known.
    pub(crate) fn with_context(mut self, context: Option<&Arc<CallContext>>) -> Self {
        self.context = context.cloned();
        self
    }

    /// Whether the answer to an abandoned question is still to come.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.waiting
    }

    pub(crate) async fn variable(&mut self, name: &str) -> Result<Option<Bytes>, AskError> {
        if name.is_empty() {
            return Err(AskError::NoName);
        }
        if let Some((_, value)) = self.variables.iter().find(|(known, _)| &**known == name) {
            return Ok(value.clone());
        }
        let value = self.ask(Question::Variable(name)).await?;
        if let (Some(context), Some(id), "request_id") = (&self.context, &value, name) {
            context.set_request_id(id);
        }
        self.variables.push((name.into(), value.clone()));
        Ok(value)
    }

    pub(crate) async fn request_body(&mut self) -> Result<Option<Bytes>, AskError> {
        if self.request_body.is_none() {
            self.request_body = Some(self.ask(Question::RequestBody).await?);
        }
        Ok(self.request_body.clone().flatten())
    }

    pub(crate) async fn response_body(&mut self) -> Result<Option<Bytes>, AskError> {
        if self.response_body.is_none() {
            self.response_body = Some(self.ask(Question::ResponseBody).await?);
        }
        Ok(self.response_body.clone().flatten())
    }

    async fn ask(&mut self, question: Question<'_>) -> Result<Option<Bytes>, AskError> {
        if self.waiting {
            return Err(AskError::Abandoned);
        }
        if self.questions == self.limits.questions {
            return Err(AskError::TooMany { limit: self.limits.questions });
        }
        self.questions += 1;
        // Stays set if this future is dropped before the answer comes.
        self.waiting = true;
        let answer = self.asker.ask(question).await;
        // Something else came, so the answer may still come.
        self.waiting = matches!(answer, Err(AskError::Unexpected));
        let answer = answer?;
        self.bytes += answer.as_ref().map_or(0, Bytes::len);
        if self.bytes > self.limits.bytes {
            return Err(AskError::TooLarge { limit: self.limits.bytes });
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use std::pin::pin;

    use super::*;
    use crate::single_poll::now_or_never;

    /// Gives these answers, and none after them.
    struct Answers(VecDeque<Result<Option<Bytes>, AskError>>);

    impl Ask for Answers {
        fn ask<'a>(&'a mut self, _: Question<'a>) -> AnswerFuture<'a> {
            match self.0.pop_front() {
                Some(answer) => Box::pin(std::future::ready(answer)),
                None => Box::pin(std::future::pending()),
            }
        }
    }

    const LIMITS: AskLimits = AskLimits { questions: 2, bytes: 4 };

    fn answers(answers: impl IntoIterator<Item = Result<Option<Bytes>, AskError>>) -> Answers {
        Answers(answers.into_iter().collect())
    }

    #[tokio::test]
    async fn an_answer_is_kept_and_each_question_counts_once() {
        let mut gateway = answers([Ok(Some("7".into())), Ok(None)]);
        let mut extra_info = ExtraInfo::new(&mut gateway, LIMITS);
        for _ in 0..3 {
            assert_eq!(extra_info.variable("route_id").await.unwrap().as_deref(), Some(&b"7"[..]));
            assert_eq!(extra_info.request_body().await.unwrap(), None);
        }
        let error = extra_info.variable("scheme").await.unwrap_err();
        assert_eq!(error.to_string(), "a call may ask 2 questions, and this was one more");
        assert_eq!(extra_info.variable("").await.unwrap_err().to_string(), "a variable needs a name");
        assert!(!extra_info.is_abandoned());
    }

    #[tokio::test]
    async fn answers_over_the_limit_are_refused() {
        let mut gateway = answers([Ok(Some("12345".into()))]);
        let error = ExtraInfo::new(&mut gateway, LIMITS).response_body().await.unwrap_err();
        assert_eq!(error.to_string(), "the answers to a call's questions are more than 4 bytes");
    }

    #[tokio::test]
    async fn an_abandoned_question_ends_the_questions_of_its_call() {
        let mut gateway = answers([]);
        let mut extra_info = ExtraInfo::new(&mut gateway, LIMITS);
        assert!(now_or_never(pin!(extra_info.variable("route_id"))).is_none());
        assert!(extra_info.is_abandoned());
        let error = extra_info.variable("scheme").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "an earlier question was abandoned, so its answer would be taken for this one's"
        );
    }

    #[tokio::test]
    async fn only_an_answer_that_may_still_come_is_waited_for() {
        for (failure, text, is_owed) in [
            (AskError::Closed, "the gateway closed the connection instead of answering a question", false),
            (AskError::Unexpected, "the gateway sent something else than the answer to a question", true),
            (AskError::Malformed("x".into()), "the gateway's answer to a question: x", false),
        ] {
            let mut gateway = answers([Err(failure)]);
            let mut extra_info = ExtraInfo::new(&mut gateway, LIMITS);
            assert_eq!(extra_info.variable("route_id").await.unwrap_err().to_string(), text);
            assert_eq!(extra_info.is_abandoned(), is_owed, "{text}");
        }
    }
}
