//! The responses to requests that are refused: a status, a stable code, and a page or a
//! problem document.
//!
//! The plugin `user-upstream` and the forwarder share them, so a client can't tell which of
//! the two refused its request. A response contains nothing from the request except the
//! request ID: no name, token, claim or address.

mod facts;
mod reader;
mod page;
mod response;
mod failure_answers;
#[cfg(test)]
mod tests;

pub(crate) use facts::Refusal;
pub(crate) use failure_answers::RefusalAnswers;
pub(crate) use page::More;
pub(crate) use reader::Reader;
